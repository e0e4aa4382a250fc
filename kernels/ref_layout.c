/* What moves elements without computing. */
#include <string.h>

#include "ref.h"

static size_t value_bytes(const struct hapi_value *v)
{
    return (size_t)hapi_ref_count(&v->shape) * hapi_dtype_size(v->dtype);
}

/* Reshape, Flatten, Squeeze, Unsqueeze, Identity: the same bytes in the same order. */
int hapi_ref_same(const struct hapi_ref_call *c)
{
    memmove(c->out[0], c->in[0], value_bytes(hapi_ref_in(c, 0)));
    return HAPI_OK;
}

/* Inference: a copy, and a mask of ones when it is asked for. */
int hapi_ref_dropout(const struct hapi_ref_call *c)
{
    const struct hapi_value *mask = hapi_ref_out(c, 1);

    for (int64_t i = 0; mask && i < hapi_ref_count(&mask->shape); i++)
        hapi_ref_put_i(c->out[1], mask->dtype, i, 1);
    return hapi_ref_same(c);
}

static void dense_strides(const struct hapi_shape *s, int64_t *stride)
{
    for (int i = 0; i < s->rank; i++)
        stride[i] = hapi_ref_span(s, i + 1, s->rank);
}

int hapi_ref_transpose(const struct hapi_ref_call *c)
{
    const struct hapi_value *x = hapi_ref_in(c, 0), *o = hapi_ref_out(c, 0);
    int64_t perm[HAPI_MAX_RANK], dense[HAPI_MAX_RANK], stride[HAPI_MAX_RANK] = {0};
    size_t n = hapi_node_ints(c->n, "perm", perm, HAPI_MAX_RANK);
    int rank = x->shape.rank;

    if (n && n != (size_t)rank)
        return hapi_ref_fail(c, HAPI_EFORMAT, "perm does not fit the input's rank");
    dense_strides(&x->shape, dense);
    for (int i = 0; i < rank; i++) {
        int64_t from = n ? perm[i] : rank - 1 - i;
        if (from < 0 || from >= rank)
            return hapi_ref_fail(c, HAPI_EFORMAT, "perm out of range");
        stride[i] = dense[from];
    }
    hapi_ref_copy_strided(c->out[0], &o->shape, c->in[0], stride, hapi_dtype_size(x->dtype));
    return HAPI_OK;
}

/* k-th number of Slice's list: attribute `name` before opset 10, input `index` since. False: not given. */
static bool slice_number(const struct hapi_ref_call *c, const char *name, int index, int64_t k, int64_t *out)
{
    const struct hapi_value *v = hapi_ref_in(c, index);
    const struct hapi_attr *a = hapi_node_attr(c->n, name);

    if (v && k < hapi_ref_count(&v->shape)) {
        *out = hapi_ref_get_i(c->in[index], v->dtype, k);
        return true;
    }
    if (!v && a && a->type == HAPI_ATTR_INTS && k < (int64_t)a->n) {
        *out = a->ints[k];
        return true;
    }
    return false;
}

int hapi_ref_slice(const struct hapi_ref_call *c)
{
    const struct hapi_value *x = hapi_ref_in(c, 0), *o = hapi_ref_out(c, 0);
    size_t size = hapi_dtype_size(x->dtype);
    int64_t stride[HAPI_MAX_RANK] = {0}, at = 0, start, axis, step;

    dense_strides(&x->shape, stride);
    for (int64_t k = 0; k < HAPI_MAX_RANK && slice_number(c, "starts", 1, k, &start); k++) {
        if (!slice_number(c, "axes", 3, k, &axis))
            axis = k;
        if (!slice_number(c, "steps", 4, k, &step))
            step = 1;
        int d = hapi_ref_axis(axis, x->shape.rank);
        if (d < 0 || !step)
            return hapi_ref_fail(c, HAPI_EFORMAT, "axis or step out of range");
        int64_t n = x->shape.dim[d], top = step < 0 ? n - 1 : n;
        start += start < 0 ? n : 0;
        start = start < 0 ? 0 : start > top ? top : start;
        at += start * stride[d];
        stride[d] *= step;
    }
    if (hapi_ref_count(&o->shape))
        hapi_ref_copy_strided(c->out[0], &o->shape, (const char *)c->in[0] + at * (int64_t)size, stride,
                              size);
    return HAPI_OK;
}

int hapi_ref_expand(const struct hapi_ref_call *c)
{
    const struct hapi_value *x = hapi_ref_in(c, 0), *o = hapi_ref_out(c, 0);
    struct hapi_ref_walk w;

    hapi_ref_walk_init(&w, &o->shape);
    hapi_ref_walk_operand(&w, 0, &x->shape, -1);
    hapi_ref_copy_strided(c->out[0], &o->shape, c->in[0], w.stride[0], hapi_dtype_size(x->dtype));
    return HAPI_OK;
}

int hapi_ref_concat(const struct hapi_ref_call *c)
{
    const struct hapi_value *o = hapi_ref_out(c, 0);
    int axis = hapi_ref_axis(hapi_node_int(c->n, "axis", 1), o->shape.rank);

    if (axis < 0)
        return hapi_ref_fail(c, HAPI_EFORMAT, "axis out of range");
    size_t size = hapi_dtype_size(o->dtype), at = 0;
    size_t inner = (size_t)hapi_ref_span(&o->shape, axis + 1, o->shape.rank) * size;
    size_t pitch = (size_t)o->shape.dim[axis] * inner;
    int64_t outer = hapi_ref_span(&o->shape, 0, axis);
    for (int k = 0; k < c->n->n_in; k++) {
        const struct hapi_value *x = hapi_ref_in(c, k);
        size_t block = x ? (size_t)x->shape.dim[axis] * inner : 0;
        for (int64_t i = 0; block && i < outer; i++)
            memcpy((char *)c->out[0] + (size_t)i * pitch + at, (const char *)c->in[k] + (size_t)i * block,
                   block);
        at += block;
    }
    return HAPI_OK;
}

int hapi_ref_split(const struct hapi_ref_call *c)
{
    const struct hapi_value *x = hapi_ref_in(c, 0);
    int axis = hapi_ref_axis(hapi_node_int(c->n, "axis", 0), x->shape.rank);

    if (axis < 0)
        return hapi_ref_fail(c, HAPI_EFORMAT, "axis out of range");
    size_t inner = (size_t)hapi_ref_span(&x->shape, axis + 1, x->shape.rank) * hapi_dtype_size(x->dtype);
    size_t pitch = (size_t)x->shape.dim[axis] * inner, at = 0;
    int64_t outer = hapi_ref_span(&x->shape, 0, axis);
    for (int k = 0; k < c->n->n_out; k++) {
        const struct hapi_value *o = &c->g->values[c->n->out[k]];
        size_t block = (size_t)o->shape.dim[axis] * inner;
        for (int64_t i = 0; block && c->out[k] && i < outer; i++)
            memcpy((char *)c->out[k] + (size_t)i * block, (const char *)c->in[0] + (size_t)i * pitch + at,
                   block);
        at += block;
    }
    return HAPI_OK;
}

int hapi_ref_gather(const struct hapi_ref_call *c)
{
    const struct hapi_value *x = hapi_ref_in(c, 0), *ids = hapi_ref_in(c, 1);
    int axis = hapi_ref_axis(hapi_node_int(c->n, "axis", 0), x->shape.rank);

    if (axis < 0)
        return hapi_ref_fail(c, HAPI_EFORMAT, "axis out of range");
    size_t inner = (size_t)hapi_ref_span(&x->shape, axis + 1, x->shape.rank) * hapi_dtype_size(x->dtype);
    int64_t outer = hapi_ref_span(&x->shape, 0, axis), n = x->shape.dim[axis],
            count = hapi_ref_count(&ids->shape);
    char *d = c->out[0];
    for (int64_t o = 0; o < outer; o++)
        for (int64_t i = 0; i < count; i++, d += inner) {
            int64_t at = hapi_ref_get_i(c->in[1], ids->dtype, i);
            at += at < 0 ? n : 0;
            if (at < 0 || at >= n)
                return hapi_ref_fail(c, HAPI_EINVAL, "index out of range");
            memcpy(d, (const char *)c->in[0] + (size_t)(o * n + at) * inner, inner);
        }
    return HAPI_OK;
}

enum pad_mode { PAD_CONSTANT, PAD_REFLECT, PAD_EDGE };

/* Source index of position i (before 0 or past n - 1 is padding), -1 for the constant. */
static int64_t pad_source(enum pad_mode mode, int64_t i, int64_t n)
{
    if (i >= 0 && i < n)
        return i;
    if (mode == PAD_CONSTANT || n < 1)
        return -1;
    if (mode == PAD_EDGE || n == 1)
        return i < 0 ? 0 : n - 1;
    i %= 2 * (n - 1);
    i += i < 0 ? 2 * (n - 1) : 0;
    return i < n ? i : 2 * (n - 1) - i;
}

/* Leading pads per dim, from the attribute (`paddings` in opset 1) or the inputs pads and axes. */
static int pad_begins(const struct hapi_ref_call *c, int rank, int64_t *begin)
{
    const struct hapi_value *v = hapi_ref_in(c, 1), *axes = hapi_ref_in(c, 3);
    int64_t list[2 * HAPI_MAX_RANK], n;

    if (v) {
        n = hapi_ref_count(&v->shape) / 2;
        for (int64_t i = 0; i < n && i < HAPI_MAX_RANK; i++)
            list[i] = hapi_ref_get_i(c->in[1], v->dtype, i);
    } else {
        n = (int64_t)hapi_node_ints(c->n, "pads", list, 2 * HAPI_MAX_RANK) / 2;
        n = n ? n : (int64_t)hapi_node_ints(c->n, "paddings", list, 2 * HAPI_MAX_RANK) / 2;
    }
    if (n > rank || (!axes && n != rank))
        return hapi_ref_fail(c, HAPI_EFORMAT, "pads do not fit the input's rank");
    for (int64_t i = 0; i < n; i++) {
        int d = axes ? (i < hapi_ref_count(&axes->shape)
                            ? hapi_ref_axis(hapi_ref_get_i(c->in[3], axes->dtype, i), rank)
                            : -1)
                     : (int)i;
        if (d < 0)
            return hapi_ref_fail(c, HAPI_EFORMAT, "axis out of range");
        begin[d] = list[i];
    }
    return HAPI_OK;
}

int hapi_ref_pad(const struct hapi_ref_call *c)
{
    const struct hapi_value *x = hapi_ref_in(c, 0), *o = hapi_ref_out(c, 0), *v = hapi_ref_in(c, 2);
    const struct hapi_attr *a = hapi_node_attr(c->n, "mode");
    enum pad_mode mode = !a || !a->s || !strcmp(a->s, "constant") ? PAD_CONSTANT
                         : !strcmp(a->s, "reflect")               ? PAD_REFLECT
                                                                  : PAD_EDGE;
    int64_t begin[HAPI_MAX_RANK] = {0}, stride[HAPI_MAX_RANK];
    size_t size = hapi_dtype_size(x->dtype);
    unsigned char fill[8] = {0}, *d = c->out[0];
    struct hapi_ref_walk w;
    int rc = pad_begins(c, x->shape.rank, begin);

    if (rc)
        return rc;
    if (v)
        memcpy(fill, c->in[2], size);
    else
        hapi_ref_put_f(fill, x->dtype, 0, hapi_node_float(c->n, "value", 0));
    dense_strides(&x->shape, stride);
    hapi_ref_walk_init(&w, &o->shape);
    for (int64_t r = 0; r < w.rows; r++, hapi_ref_walk_next(&w))
        for (int64_t i = 0; i < w.inner; i++, d += size) {
            int64_t at = 0;
            for (int k = 0; k < x->shape.rank && at >= 0; k++) {
                int64_t pos = k == w.rank - 1 ? i : w.at[k];
                int64_t s = pad_source(mode, pos - begin[k], x->shape.dim[k]);
                at = s < 0 ? -1 : at + s * stride[k];
            }
            memcpy(d, at < 0 ? fill : (const unsigned char *)c->in[0] + (size_t)at * size, size);
        }
    return HAPI_OK;
}
