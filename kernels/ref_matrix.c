/* Matrix products: f64 sums for floats, wrapping 64-bit ones for integers. */
#include "ref.h"

enum { TILE = 16 };

/* Strides in elements of A (rows x depth), B (depth x columns); C is dense. */
struct product {
    int64_t rows, columns, depth;
    int64_t a_row, a_depth, b_depth, b_column;
    enum hapi_dtype dtype;
    double alpha; /* scales the sum */
};

/* c += alpha * a.b; what c holds is the bias. Offsets are in elements. */
static void product_f32(const struct product *p, const float *a, const float *b, float *c)
{
    for (int64_t i = 0; i < p->rows; i++)
        for (int64_t j0 = 0; j0 < p->columns; j0 += TILE) {
            int64_t n = p->columns - j0 < TILE ? p->columns - j0 : TILE;
            double acc[TILE] = {0};
            for (int64_t k = 0; k < p->depth; k++) {
                double v = a[i * p->a_row + k * p->a_depth];
                const float *row = b + k * p->b_depth + j0 * p->b_column;
                for (int64_t j = 0; j < n; j++)
                    acc[j] += v * (double)row[j * p->b_column];
            }
            for (int64_t j = 0; j < n; j++)
                c[i * p->columns + j0 + j] = (float)((double)c[i * p->columns + j0 + j] + p->alpha * acc[j]);
        }
}

static void product_any(const struct product *p, const void *a, int64_t a0, const void *b, int64_t b0,
                        void *c, int64_t c0)
{
    enum hapi_dtype d = p->dtype;

    for (int64_t i = 0; i < p->rows; i++)
        for (int64_t j = 0; j < p->columns; j++) {
            int64_t at = c0 + i * p->columns + j;
            double f = 0;
            uint64_t s = 0;
            for (int64_t k = 0; k < p->depth; k++) {
                int64_t ia = a0 + i * p->a_row + k * p->a_depth, ib = b0 + k * p->b_depth + j * p->b_column;
                if (hapi_ref_is_float(d))
                    f += hapi_ref_get_f(a, d, ia) * hapi_ref_get_f(b, d, ib);
                else
                    s += (uint64_t)hapi_ref_get_i(a, d, ia) * (uint64_t)hapi_ref_get_i(b, d, ib);
            }
            if (hapi_ref_is_float(d))
                hapi_ref_put_f(c, d, at, hapi_ref_get_f(c, d, at) + p->alpha * f);
            else
                hapi_ref_put_i(
                    c, d, at,
                    (int64_t)((uint64_t)hapi_ref_get_i(c, d, at) +
                              (p->alpha == 1 ? s : (uint64_t)(int64_t)(p->alpha * (double)(int64_t)s))));
        }
}

static void product_run(const struct product *p, const void *a, int64_t a0, const void *b, int64_t b0,
                        void *c, int64_t c0)
{
    if (p->dtype == HAPI_F32)
        product_f32(p, (const float *)a + a0, (const float *)b + b0, (float *)c + c0);
    else
        product_any(p, a, a0, b, b0, c, c0);
}

/* beta * C broadcast into the output (before opset 7 with `broadcast`, which the same rule covers). */
static void gemm_bias(const struct hapi_ref_call *c, const struct hapi_value *bias,
                      const struct hapi_value *o)
{
    double beta = hapi_node_float(c->n, "beta", 1);
    struct hapi_ref_walk w;

    hapi_ref_walk_init(&w, &o->shape);
    hapi_ref_walk_operand(&w, 0, &bias->shape, -1);
    for (int64_t r = 0; r < w.rows; r++, hapi_ref_walk_next(&w))
        for (int64_t i = 0; i < w.inner; i++) {
            int64_t from = w.off[0] + i * w.stride[0][w.rank - 1], to = r * w.inner + i;
            if (hapi_ref_is_float(o->dtype))
                hapi_ref_put_f(c->out[0], o->dtype, to, beta * hapi_ref_get_f(c->in[2], bias->dtype, from));
            else
                hapi_ref_put_i(c->out[0], o->dtype, to,
                               (int64_t)beta * hapi_ref_get_i(c->in[2], bias->dtype, from));
        }
}

/* alpha * A'(M,K) . B'(K,N) + beta * C, ' as transA and transB say. */
int hapi_ref_gemm(const struct hapi_ref_call *c)
{
    const struct hapi_value *a = hapi_ref_in(c, 0), *b = hapi_ref_in(c, 1), *bias = hapi_ref_in(c, 2);
    const struct hapi_value *o = hapi_ref_out(c, 0);
    bool ta = hapi_node_int(c->n, "transA", 0) != 0, tb = hapi_node_int(c->n, "transB", 0) != 0;
    struct product p = {.dtype = o->dtype, .alpha = hapi_node_float(c->n, "alpha", 1)};

    if (a->shape.rank != 2 || b->shape.rank != 2)
        return hapi_ref_fail(c, HAPI_EFORMAT, "operands are not matrices");
    p.rows = o->shape.dim[0];
    p.columns = o->shape.dim[1];
    p.depth = a->shape.dim[ta ? 0 : 1];
    p.a_row = ta ? 1 : a->shape.dim[1];
    p.a_depth = ta ? a->shape.dim[1] : 1;
    p.b_depth = tb ? 1 : b->shape.dim[1];
    p.b_column = tb ? b->shape.dim[1] : 1;
    __builtin_memset(c->out[0], 0, (size_t)hapi_ref_count(&o->shape) * hapi_dtype_size(o->dtype));
    if (bias)
        gemm_bias(c, bias, o);
    product_run(&p, c->in[0], 0, c->in[1], 0, c->out[0], 0);
    return HAPI_OK;
}

/* Walk over the leading (batch) dims only: s without its last two dims, or none for a vector. */
static struct hapi_shape leading(const struct hapi_shape *s)
{
    struct hapi_shape l = *s;
    l.rank = s->rank > 2 ? s->rank - 2 : 0;
    return l;
}

/* numpy.matmul: leading dims broadcast, a vector is a row on the left and a column on the right. */
int hapi_ref_matmul(const struct hapi_ref_call *c)
{
    const struct hapi_value *a = hapi_ref_in(c, 0), *b = hapi_ref_in(c, 1), *o = hapi_ref_out(c, 0);
    struct hapi_shape lead = {0}, la = leading(&a->shape), lb = leading(&b->shape);
    int ra = a->shape.rank, rb = b->shape.rank;
    struct hapi_ref_walk w;

    if (ra < 1 || rb < 1)
        return hapi_ref_fail(c, HAPI_EFORMAT, "an operand is a scalar");
    struct product p = {.dtype = o->dtype, .alpha = 1};
    p.rows = ra > 1 ? a->shape.dim[ra - 2] : 1;
    p.depth = a->shape.dim[ra - 1];
    p.columns = rb > 1 ? b->shape.dim[rb - 1] : 1;
    p.a_row = p.depth;
    p.a_depth = 1;
    p.b_depth = p.columns;
    p.b_column = 1;
    lead.rank = o->shape.rank - (ra > 1) - (rb > 1);
    for (int i = 0; i < lead.rank; i++)
        lead.dim[i] = o->shape.dim[i];
    hapi_ref_walk_init(&w, &lead);
    hapi_ref_walk_operand(&w, 0, &la, -1);
    hapi_ref_walk_operand(&w, 1, &lb, -1);
    __builtin_memset(c->out[0], 0, (size_t)hapi_ref_count(&o->shape) * hapi_dtype_size(o->dtype));
    for (int64_t r = 0; r < w.rows; r++, hapi_ref_walk_next(&w))
        for (int64_t i = 0; i < w.inner; i++)
            product_run(&p, c->in[0], (w.off[0] + i * w.stride[0][w.rank - 1]) * p.rows * p.depth, c->in[1],
                        (w.off[1] + i * w.stride[1][w.rank - 1]) * p.depth * p.columns, c->out[0],
                        (r * w.inner + i) * p.rows * p.columns);
    return HAPI_OK;
}
