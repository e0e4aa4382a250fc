/* What makes tensors out of shapes and indices; mostly folded away before anything runs. */
#include <string.h>

#include "ref.h"

int hapi_ref_constant(const struct hapi_ref_call *c)
{
    const struct hapi_value *o = hapi_ref_out(c, 0);
    int64_t n = hapi_ref_count(&o->shape);

    for (size_t k = 0; k < c->n->n_attrs; k++) {
        const struct hapi_attr *a = &c->n->attrs[k];
        if (a->type == HAPI_ATTR_TENSOR) {
            memcpy(c->out[0], c->g->values[a->value].data, (size_t)n * hapi_dtype_size(o->dtype));
            return HAPI_OK;
        }
        for (int64_t i = 0; i < n && strncmp(a->name, "value", 5) == 0; i++) {
            if (a->type == HAPI_ATTR_INT || a->type == HAPI_ATTR_INTS)
                hapi_ref_put_i(c->out[0], o->dtype, i, a->type == HAPI_ATTR_INT ? a->i : a->ints[i]);
            else if (a->type == HAPI_ATTR_FLOAT || a->type == HAPI_ATTR_FLOATS)
                hapi_ref_put_f(c->out[0], o->dtype, i,
                               (double)(a->type == HAPI_ATTR_FLOAT ? a->f : a->floats[i]));
            else
                return hapi_ref_fail(c, HAPI_EUNSUPPORTED, "attribute `%s`", a->name);
        }
    }
    return HAPI_OK;
}

int hapi_ref_constant_of_shape(const struct hapi_ref_call *c)
{
    const struct hapi_value *o = hapi_ref_out(c, 0);
    const struct hapi_attr *a = hapi_node_attr(c->n, "value");
    size_t size = hapi_dtype_size(o->dtype);
    int64_t n = hapi_ref_count(&o->shape);

    for (int64_t i = 0; i < n; i++) {
        if (a && a->type == HAPI_ATTR_TENSOR)
            memcpy((char *)c->out[0] + (size_t)i * size, c->g->values[a->value].data, size);
        else
            memset((char *)c->out[0] + (size_t)i * size, 0, size);
    }
    return HAPI_OK;
}

/* start is clamped as in Python's slices; the output's length already says where it ends. */
int hapi_ref_shape(const struct hapi_ref_call *c)
{
    const struct hapi_value *x = hapi_ref_in(c, 0), *o = hapi_ref_out(c, 0);
    int64_t start = hapi_node_int(c->n, "start", 0), rank = x->shape.rank;

    start += start < 0 ? rank : 0;
    start = start < 0 ? 0 : start > rank ? rank : start;
    for (int64_t i = 0; i < hapi_ref_count(&o->shape) && start + i < rank; i++)
        ((int64_t *)c->out[0])[i] = x->shape.dim[start + i];
    return HAPI_OK;
}

int hapi_ref_range(const struct hapi_ref_call *c)
{
    const struct hapi_value *o = hapi_ref_out(c, 0);
    int64_t n = hapi_ref_count(&o->shape);

    for (int64_t i = 0; i < n; i++) {
        if (hapi_ref_is_float(o->dtype))
            hapi_ref_put_f(c->out[0], o->dtype, i,
                           hapi_ref_get_f(c->in[0], o->dtype, 0) +
                               (double)i * hapi_ref_get_f(c->in[2], o->dtype, 0));
        else
            hapi_ref_put_i(c->out[0], o->dtype, i,
                           (int64_t)((uint64_t)hapi_ref_get_i(c->in[0], o->dtype, 0) +
                                     (uint64_t)i * (uint64_t)hapi_ref_get_i(c->in[2], o->dtype, 0)));
    }
    return HAPI_OK;
}

static void update_f(void *o, enum hapi_dtype d, int64_t at, double v, enum hapi_ref_reduction how)
{
    double old = hapi_ref_get_f(o, d, at);

    if (how == HAPI_REF_ADD)
        v += old;
    else if (how == HAPI_REF_MUL)
        v *= old;
    else if ((how == HAPI_REF_MAX && old > v) || (how == HAPI_REF_MIN && old < v))
        v = old;
    hapi_ref_put_f(o, d, at, v);
}

static void update_i(void *o, enum hapi_dtype d, int64_t at, int64_t v, enum hapi_ref_reduction how)
{
    int64_t old = hapi_ref_get_i(o, d, at);

    if (how == HAPI_REF_ADD)
        v = (int64_t)((uint64_t)v + (uint64_t)old);
    else if (how == HAPI_REF_MUL)
        v = (int64_t)((uint64_t)v * (uint64_t)old);
    else if ((how == HAPI_REF_MAX && old > v) || (how == HAPI_REF_MIN && old < v))
        v = old;
    hapi_ref_put_i(o, d, at, v);
}

enum hapi_ref_reduction hapi_ref_reduction_of(const struct hapi_node *n)
{
    static const char *const names[] = {"none", "add", "mul", "max", "min"};
    const struct hapi_attr *a = hapi_node_attr(n, "reduction");

    for (int i = 0; a && a->type == HAPI_ATTR_STRING && i < 5; i++)
        if (!strcmp(a->s, names[i]))
            return (enum hapi_ref_reduction)i;
    return HAPI_REF_REPLACE;
}

void hapi_ref_update(const struct hapi_ref_call *c, enum hapi_dtype d, int64_t at, int64_t from,
                     enum hapi_ref_reduction how)
{
    if (hapi_ref_is_float(d))
        update_f(c->out[0], d, at, hapi_ref_get_f(c->in[2], d, from), how);
    else
        update_i(c->out[0], d, at, hapi_ref_get_i(c->in[2], d, from), how);
}

/* Flat offset of the block that one index tuple names; negative when a number is out of range. */
static int64_t scatter_at(const struct hapi_ref_call *c, const struct hapi_shape *s,
                          const struct hapi_value *ids, int64_t row, int64_t k)
{
    int64_t at = 0;

    for (int64_t j = 0; j < k; j++) {
        int64_t i = hapi_ref_get_i(c->in[1], ids->dtype, row * k + j);
        i += i < 0 ? s->dim[j] : 0;
        if (i < 0 || i >= s->dim[j])
            return -1;
        at += i * hapi_ref_span(s, (int)j + 1, s->rank);
    }
    return at;
}

int hapi_ref_scatter_nd(const struct hapi_ref_call *c)
{
    const struct hapi_value *x = hapi_ref_in(c, 0), *ids = hapi_ref_in(c, 1);
    enum hapi_ref_reduction how = hapi_ref_reduction_of(c->n);
    int rank = ids->shape.rank;
    int64_t k = rank ? ids->shape.dim[rank - 1] : 0;

    if (k < 1 || k > x->shape.rank)
        return hapi_ref_fail(c, HAPI_EFORMAT, "indices do not fit the data's rank");
    int64_t rows = hapi_ref_span(&ids->shape, 0, rank - 1),
            block = hapi_ref_span(&x->shape, (int)k, x->shape.rank);
    if (rows * block != hapi_ref_count(&hapi_ref_in(c, 2)->shape))
        return hapi_ref_fail(c, HAPI_EFORMAT, "updates do not fit the indices");
    memmove(c->out[0], c->in[0], (size_t)hapi_ref_count(&x->shape) * hapi_dtype_size(x->dtype));
    for (int64_t i = 0; i < rows; i++) {
        int64_t at = scatter_at(c, &x->shape, ids, i, k);
        if (at < 0)
            return hapi_ref_fail(c, HAPI_EINVAL, "index out of range");
        for (int64_t j = 0; j < block; j++)
            hapi_ref_update(c, x->dtype, at + j, i * block + j, how);
    }
    return HAPI_OK;
}
