/* By index and by blocks. */
#include <string.h>

#include "ref.h"

/* No elements: its one number is known without data. */
int hapi_ref_size(const struct hapi_ref_call *c)
{
    *(int64_t *)c->out[0] = hapi_ref_count(&hapi_ref_in(c, 0)->shape);
    return HAPI_OK;
}

int hapi_ref_tile(const struct hapi_ref_call *c)
{
    const struct hapi_value *x = hapi_ref_in(c, 0), *o = hapi_ref_out(c, 0);
    size_t size = hapi_dtype_size(x->dtype);
    unsigned char *d = c->out[0];
    struct hapi_ref_walk w;
    int rank = x->shape.rank;
    int64_t row = rank ? x->shape.dim[rank - 1] : 1;

    hapi_ref_walk_init(&w, &o->shape);
    for (int64_t r = 0; r < w.rows; r++, hapi_ref_walk_next(&w)) {
        int64_t at = 0;
        for (int k = 0; k < rank - 1; k++)
            at += w.at[k] % x->shape.dim[k] * hapi_ref_span(&x->shape, k + 1, rank);
        for (int64_t i = 0; i < w.inner; i += row, d += (size_t)row * size)
            memcpy(d, (const unsigned char *)c->in[0] + (size_t)at * size, (size_t)row * size);
    }
    return HAPI_OK;
}

/* Both directions are a transposition of (N, ., ., ., ., .): what a dim of the output moves by in the input.
 */
int hapi_ref_depth_to_space(const struct hapi_ref_call *c)
{
    const struct hapi_shape *x = &hapi_ref_in(c, 0)->shape, *o = &hapi_ref_out(c, 0)->shape;
    const struct hapi_attr *mode = hapi_node_attr(c->n, "mode");
    int64_t b = hapi_node_int(c->n, "blocksize", 1), h = x->dim[2], w = x->dim[3], plane = h * w;
    bool crd = mode && !strcmp(mode->s, "CRD");
    struct hapi_shape s;
    int64_t stride[HAPI_MAX_RANK] = {x->dim[1] * plane};

    if (c->n->op == HAPI_OP_DepthToSpace) {
        int64_t of_c = crd ? b * b * plane : plane, of_block = crd ? plane : o->dim[1] * plane;
        s = (struct hapi_shape){6, {x->dim[0], o->dim[1], h, b, w, b}};
        memcpy(stride + 1, (int64_t[]){of_c, w, b * of_block, 1, of_block}, 5 * sizeof *stride);
    } else {
        s = (struct hapi_shape){6, {x->dim[0], b, b, x->dim[1], h / b, w / b}};
        memcpy(stride + 1, (int64_t[]){w, 1, plane, b * w, b}, 5 * sizeof *stride);
    }
    hapi_ref_copy_strided(c->out[0], &s, c->in[0], stride, hapi_dtype_size(hapi_ref_in(c, 0)->dtype));
    return HAPI_OK;
}

/* Where the element at `at` of the indices points in a tensor of shape s; -1 when it is outside. */
static int64_t along(const struct hapi_ref_call *c, const struct hapi_shape *s, int axis, const int64_t *at,
                     int64_t index)
{
    int64_t to = 0;

    index += index < 0 ? s->dim[axis] : 0;
    if (index < 0 || index >= s->dim[axis])
        return hapi_ref_fail(c, HAPI_EINVAL, "index out of range"), -1;
    for (int k = 0; k < s->rank; k++)
        to = to * s->dim[k] + (k == axis ? index : at[k]);
    return to;
}

int hapi_ref_gather_elements(const struct hapi_ref_call *c)
{
    const struct hapi_value *x = hapi_ref_in(c, 0), *ids = hapi_ref_in(c, 1);
    int axis = hapi_ref_axis(hapi_node_int(c->n, "axis", 0), x->shape.rank);
    size_t size = hapi_dtype_size(x->dtype);
    struct hapi_ref_walk w;
    int64_t i = 0;

    if (axis < 0)
        return hapi_ref_fail(c, HAPI_EFORMAT, "axis out of range");
    hapi_ref_walk_init(&w, &ids->shape);
    for (int64_t r = 0; r < w.rows; r++, hapi_ref_walk_next(&w))
        for (w.at[w.rank - 1] = 0; w.at[w.rank - 1] < w.inner; w.at[w.rank - 1]++, i++) {
            int64_t from = along(c, &x->shape, axis, w.at, hapi_ref_get_i(c->in[1], ids->dtype, i));
            if (from < 0)
                return HAPI_EINVAL;
            memcpy((char *)c->out[0] + (size_t)i * size, (const char *)c->in[0] + (size_t)from * size, size);
        }
    return HAPI_OK;
}

int hapi_ref_scatter_elements(const struct hapi_ref_call *c)
{
    const struct hapi_value *x = hapi_ref_in(c, 0), *ids = hapi_ref_in(c, 1);
    enum hapi_ref_reduction how = hapi_ref_reduction_of(c->n);
    int axis = hapi_ref_axis(hapi_node_int(c->n, "axis", 0), x->shape.rank);
    struct hapi_ref_walk w;
    int64_t i = 0;

    if (axis < 0)
        return hapi_ref_fail(c, HAPI_EFORMAT, "axis out of range");
    memmove(c->out[0], c->in[0], (size_t)hapi_ref_count(&x->shape) * hapi_dtype_size(x->dtype));
    hapi_ref_walk_init(&w, &ids->shape);
    for (int64_t r = 0; r < w.rows; r++, hapi_ref_walk_next(&w))
        for (w.at[w.rank - 1] = 0; w.at[w.rank - 1] < w.inner; w.at[w.rank - 1]++, i++) {
            int64_t to = along(c, &x->shape, axis, w.at, hapi_ref_get_i(c->in[1], ids->dtype, i));
            if (to < 0)
                return HAPI_EINVAL;
            hapi_ref_update(c, x->dtype, to, i, how);
        }
    return HAPI_OK;
}

/* Each tuple of k numbers names a block of data, beneath the batch that the tuple itself lies in. */
int hapi_ref_gather_nd(const struct hapi_ref_call *c)
{
    const struct hapi_shape *x = &hapi_ref_in(c, 0)->shape, *ids = &hapi_ref_in(c, 1)->shape;
    int batch = (int)hapi_node_int(c->n, "batch_dims", 0);
    size_t size = hapi_dtype_size(hapi_ref_in(c, 0)->dtype);
    int64_t k = ids->dim[ids->rank - 1], batches = hapi_ref_span(x, 0, batch);
    int64_t tuples = hapi_ref_span(ids, batch, ids->rank - 1), whole = hapi_ref_span(x, batch, x->rank);
    size_t block = (size_t)hapi_ref_span(x, batch + (int)k, x->rank) * size;
    char *d = c->out[0];

    for (int64_t t = 0; t < batches * tuples; t++, d += block) {
        int64_t at = 0;
        for (int64_t j = 0; j < k; j++) {
            int64_t n = x->dim[batch + j], i = hapi_ref_get_i(c->in[1], hapi_ref_in(c, 1)->dtype, t * k + j);
            i += i < 0 ? n : 0;
            if (i < 0 || i >= n)
                return hapi_ref_fail(c, HAPI_EINVAL, "index out of range");
            at = at * n + i;
        }
        memcpy(d, (const char *)c->in[0] + (size_t)(t / tuples * whole) * size + (size_t)at * block, block);
    }
    return HAPI_OK;
}

/* Keeps the upper or lower triangle of the last two dims, diagonal k included. */
int hapi_ref_trilu(const struct hapi_ref_call *c)
{
    const struct hapi_value *x = hapi_ref_in(c, 0), *kv = hapi_ref_in(c, 1);
    int64_t k = kv ? hapi_ref_get_i(c->in[1], kv->dtype, 0) : 0;
    int64_t rows = x->shape.dim[x->shape.rank - 2], columns = x->shape.dim[x->shape.rank - 1];
    bool upper = hapi_node_int(c->n, "upper", 1) != 0;
    size_t size = hapi_dtype_size(x->dtype);

    /* Beyond the matrix all diagonals are alike, and i + k cannot overflow. */
    k = k > columns ? columns : k < -rows - 1 ? -rows - 1 : k;
    for (int64_t at = 0, n = hapi_ref_count(&x->shape); at < n; at++) {
        int64_t i = at / columns % rows, j = at % columns;
        char *d = (char *)c->out[0] + (size_t)at * size;
        if (upper ? j >= i + k : j <= i + k)
            memcpy(d, (const char *)c->in[0] + (size_t)at * size, size);
        else
            memset(d, 0, size);
    }
    return HAPI_OK;
}

/* One line of n elements, `step` apart. */
static void cum_sum_line(const struct hapi_ref_call *c, enum hapi_dtype d, int64_t from, int64_t n,
                         int64_t step)
{
    bool exclusive = hapi_node_int(c->n, "exclusive", 0) != 0;
    double f = 0;
    uint64_t s = 0;

    for (int64_t i = 0; i < n; i++, from += step) {
        if (exclusive && hapi_ref_is_float(d))
            hapi_ref_put_f(c->out[0], d, from, f);
        else if (exclusive)
            hapi_ref_put_i(c->out[0], d, from, (int64_t)s);
        f += hapi_ref_get_f(c->in[0], d, from);
        s += (uint64_t)hapi_ref_get_i(c->in[0], d, from);
        if (!exclusive && hapi_ref_is_float(d))
            hapi_ref_put_f(c->out[0], d, from, f);
        else if (!exclusive)
            hapi_ref_put_i(c->out[0], d, from, (int64_t)s);
    }
}

int hapi_ref_cum_sum(const struct hapi_ref_call *c)
{
    const struct hapi_value *x = hapi_ref_in(c, 0);
    int axis = hapi_ref_axis(hapi_ref_get_i(c->in[1], hapi_ref_in(c, 1)->dtype, 0), x->shape.rank);
    bool reverse = hapi_node_int(c->n, "reverse", 0) != 0;

    if (axis < 0)
        return hapi_ref_fail(c, HAPI_EINVAL, "axis out of range");
    int64_t n = x->shape.dim[axis], inner = hapi_ref_span(&x->shape, axis + 1, x->shape.rank);
    for (int64_t o = 0; o < hapi_ref_span(&x->shape, 0, axis); o++)
        for (int64_t i = 0; i < inner; i++)
            cum_sum_line(c, x->dtype, (o * n + (reverse ? n - 1 : 0)) * inner + i, n,
                         reverse ? -inner : inner);
    return HAPI_OK;
}
