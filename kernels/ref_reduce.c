/* Reductions; sums are kept in f64, those of whole numbers wrap. */
#include <math.h>
#include <string.h>

#include "ref.h"

/* Axes come as an attribute or, in later opsets, as the second input. */
static int reduce_axes(const struct hapi_ref_call *c, int rank, bool *reduced)
{
    const struct hapi_value *v = hapi_ref_in(c, 1);
    int64_t axes[HAPI_MAX_RANK], n = 0;

    if (v) {
        n = hapi_ref_count(&v->shape);
        for (int64_t i = 0; i < n && i < HAPI_MAX_RANK; i++)
            axes[i] = hapi_ref_get_i(c->in[1], v->dtype, i);
    } else {
        n = (int64_t)hapi_node_ints(c->n, "axes", axes, HAPI_MAX_RANK);
    }
    if (n > HAPI_MAX_RANK)
        return hapi_ref_fail(c, HAPI_EFORMAT, "too many axes");
    for (int i = 0; i < rank; i++)
        reduced[i] = !n && !hapi_node_int(c->n, "noop_with_empty_axes", 0);
    for (int64_t i = 0; i < n; i++) {
        int a = hapi_ref_axis(axes[i], rank);
        if (a < 0)
            return hapi_ref_fail(c, HAPI_EFORMAT, "axis out of range");
        reduced[a] = true;
    }
    return HAPI_OK;
}

struct sum {
    double f, top; /* top: the largest so far, which ReduceLogSumExp takes out of its exponents */
    int64_t i;
    int64_t n;
};

static void sum_float(struct sum *s, enum hapi_op_kind op, double v)
{
    switch (op) {
    case HAPI_OP_ReduceMax:
        s->f = !s->n || v > s->f || v != v ? v : s->f;
        break;
    case HAPI_OP_ReduceMin:
        s->f = !s->n || v < s->f || v != v ? v : s->f;
        break;
    case HAPI_OP_ReduceProd:
        s->f = s->n ? s->f * v : v;
        break;
    case HAPI_OP_ReduceL1:
        s->f += fabs(v);
        break;
    case HAPI_OP_ReduceL2:
    case HAPI_OP_ReduceSumSquare:
        s->f += v * v;
        break;
    case HAPI_OP_ReduceLogSumExp:
        if (!s->n || v > s->top) {
            s->f = s->n ? s->f * exp(s->top - v) : 0;
            s->top = v;
        }
        s->f += v == s->top ? 1 : exp(v - s->top);
        break;
    default:
        s->f += v;
    }
    s->n++;
}

static void sum_whole(struct sum *s, enum hapi_op_kind op, int64_t v, bool is_unsigned)
{
    bool more = is_unsigned ? (uint64_t)v > (uint64_t)s->i : v > s->i;
    uint64_t a = (uint64_t)s->i, b = (uint64_t)v;

    switch (op) {
    case HAPI_OP_ReduceMax:
        s->i = !s->n || more ? v : s->i;
        break;
    case HAPI_OP_ReduceMin:
        s->i = s->n && more ? s->i : v;
        break;
    case HAPI_OP_ReduceProd:
        s->i = s->n ? (int64_t)(a * b) : v;
        break;
    case HAPI_OP_ReduceL1:
        s->i = (int64_t)(a + (v < 0 && !is_unsigned ? 0 - b : b));
        break;
    case HAPI_OP_ReduceSumSquare:
        s->i = (int64_t)(a + b * b);
        break;
    default:
        s->i = (int64_t)(a + b);
    }
    s->n++;
}

static double finish_float(const struct sum *s, enum hapi_op_kind op)
{
    switch (op) {
    case HAPI_OP_ReduceMean:
        return s->f / (double)s->n;
    case HAPI_OP_ReduceL2:
        return sqrt(s->f);
    case HAPI_OP_ReduceLogSum:
        return log(s->f);
    case HAPI_OP_ReduceLogSumExp:
        return s->top + log(s->f);
    default:
        return s->f;
    }
}

/* Whether whole numbers give a whole number; the rest is computed as of floats, and cut off. */
static bool is_whole(enum hapi_op_kind op)
{
    return op != HAPI_OP_ReduceL2 && op != HAPI_OP_ReduceLogSum && op != HAPI_OP_ReduceLogSumExp;
}

static void reduce_one(const struct hapi_ref_call *c, const struct hapi_shape *gone, const int64_t *stride,
                       int64_t from, int64_t to)
{
    enum hapi_dtype d = hapi_ref_in(c, 0)->dtype;
    bool whole = !hapi_ref_is_float(d) && is_whole(c->n->op);
    struct sum s = {.n = 0};
    struct hapi_ref_walk g;

    hapi_ref_walk_init(&g, gone);
    memcpy(g.stride[0], stride, HAPI_MAX_RANK * sizeof *stride);
    for (int64_t q = 0; q < g.rows; q++, hapi_ref_walk_next(&g))
        for (int64_t j = 0; j < g.inner; j++) {
            int64_t at = from + g.off[0] + j * g.stride[0][g.rank - 1];
            if (whole)
                sum_whole(&s, c->n->op, hapi_ref_get_i(c->in[0], d, at), d == HAPI_U64);
            else
                sum_float(&s, c->n->op, hapi_ref_get_f(c->in[0], d, at));
        }
    if (!whole)
        hapi_ref_put_f(c->out[0], d, to, finish_float(&s, c->n->op));
    else
        hapi_ref_put_i(c->out[0], d, to, c->n->op == HAPI_OP_ReduceMean && s.n ? s.i / s.n : s.i);
}

int hapi_ref_reduce(const struct hapi_ref_call *c)
{
    const struct hapi_value *x = hapi_ref_in(c, 0);
    struct hapi_shape kept = {0}, gone = {0};
    struct hapi_ref_walk k;
    bool reduced[HAPI_MAX_RANK] = {false};
    int64_t ks[HAPI_MAX_RANK] = {0}, gs[HAPI_MAX_RANK] = {0}, to = 0;
    int rc = reduce_axes(c, x->shape.rank, reduced);

    if (rc)
        return rc;
    for (int i = 0; i < x->shape.rank; i++) {
        int64_t s = hapi_ref_span(&x->shape, i + 1, x->shape.rank);
        if (reduced[i]) {
            gs[gone.rank] = s;
            gone.dim[gone.rank++] = x->shape.dim[i];
        } else {
            ks[kept.rank] = s;
            kept.dim[kept.rank++] = x->shape.dim[i];
        }
    }
    hapi_ref_walk_init(&k, &kept);
    memcpy(k.stride[0], ks, sizeof ks);
    for (int64_t r = 0; r < k.rows; r++, hapi_ref_walk_next(&k))
        for (int64_t i = 0; i < k.inner; i++, to++)
            reduce_one(c, &gone, gs, k.off[0] + i * k.stride[0][k.rank - 1], to);
    return HAPI_OK;
}

/* Whether element i takes the place of the best so far. */
static bool better(const struct hapi_ref_call *c, int64_t i, int64_t best, bool last)
{
    enum hapi_dtype d = hapi_ref_in(c, 0)->dtype;
    bool max = c->n->op == HAPI_OP_ArgMax, less, equal;

    if (hapi_ref_is_float(d)) {
        double v = hapi_ref_get_f(c->in[0], d, i), b = hapi_ref_get_f(c->in[0], d, best);
        return (max ? v > b : v < b) || (last && v == b);
    }
    int64_t v = hapi_ref_get_i(c->in[0], d, i), b = hapi_ref_get_i(c->in[0], d, best);
    less = d == HAPI_U64 ? (uint64_t)v < (uint64_t)b : v < b;
    equal = v == b;
    return equal ? last : less != max;
}

int hapi_ref_arg(const struct hapi_ref_call *c)
{
    const struct hapi_value *x = hapi_ref_in(c, 0);
    bool last = hapi_node_int(c->n, "select_last_index", 0) != 0;
    int axis = hapi_ref_axis(hapi_node_int(c->n, "axis", 0), x->shape.rank);

    if (axis < 0)
        return hapi_ref_fail(c, HAPI_EFORMAT, "axis out of range");
    int64_t n = x->shape.dim[axis], inner = hapi_ref_span(&x->shape, axis + 1, x->shape.rank);
    int64_t outer = hapi_ref_span(&x->shape, 0, axis);
    for (int64_t o = 0; o < outer * inner; o++) {
        int64_t from = o / inner * n * inner + o % inner, best = 0;
        for (int64_t i = 1; i < n; i++)
            if (better(c, from + i * inner, from + best * inner, last))
                best = i;
        ((int64_t *)c->out[0])[o] = best;
    }
    return HAPI_OK;
}
