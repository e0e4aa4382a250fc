/* Normalisations and reductions; sums are kept in f64. */
#include <math.h>

#include "ref.h"

/* n elements, `step` apart, from element `at`. */
static void softmax_line(const void *x, void *y, enum hapi_dtype d, int64_t at, int64_t n, int64_t step)
{
    double top = -INFINITY, sum = 0;

    for (int64_t i = 0; i < n; i++) {
        double v = hapi_ref_get_f(x, d, at + i * step);
        if (v > top || v != v)
            top = v;
    }
    for (int64_t i = 0; i < n; i++)
        sum += exp(hapi_ref_get_f(x, d, at + i * step) - top);
    for (int64_t i = 0; i < n; i++)
        hapi_ref_put_f(y, d, at + i * step, exp(hapi_ref_get_f(x, d, at + i * step) - top) / sum);
}

/* Along one axis since opset 13; before, over all dims from `axis` on. */
int hapi_ref_softmax(const struct hapi_ref_call *c)
{
    const struct hapi_value *x = hapi_ref_in(c, 0);
    bool one = c->g->opset >= 13;
    int rank = x->shape.rank;
    int64_t raw = hapi_node_int(c->n, "axis", one ? -1 : 1);
    int axis = !one && raw == rank ? rank : hapi_ref_axis(raw, rank);

    if (axis < 0)
        return hapi_ref_fail(c, HAPI_EFORMAT, "axis out of range");
    int64_t outer = hapi_ref_span(&x->shape, 0, axis);
    int64_t n = one ? x->shape.dim[axis] : hapi_ref_span(&x->shape, axis, rank);
    int64_t inner = one ? hapi_ref_span(&x->shape, axis + 1, rank) : 1;
    for (int64_t o = 0; o < outer; o++)
        for (int64_t i = 0; i < inner; i++)
            softmax_line(c->in[0], c->out[0], x->dtype, o * n * inner + i, n, inner);
    return HAPI_OK;
}

int hapi_ref_layer_norm(const struct hapi_ref_call *c)
{
    const struct hapi_value *x = hapi_ref_in(c, 0), *scale = hapi_ref_in(c, 1), *bias = hapi_ref_in(c, 2);
    const struct hapi_value *mean_out = hapi_ref_out(c, 1), *inv_out = hapi_ref_out(c, 2);
    int axis = hapi_ref_axis(hapi_node_int(c->n, "axis", -1), x->shape.rank);
    double epsilon = hapi_node_float(c->n, "epsilon", 1e-5F);

    if (axis < 0)
        return hapi_ref_fail(c, HAPI_EFORMAT, "axis out of range");
    int64_t rows = hapi_ref_span(&x->shape, 0, axis), n = hapi_ref_span(&x->shape, axis, x->shape.rank);
    int64_t ns = hapi_ref_count(&scale->shape), nb = bias ? hapi_ref_count(&bias->shape) : 1;
    for (int64_t r = 0; r < rows; r++) {
        double mean = 0, var = 0, inv;
        for (int64_t i = 0; i < n; i++)
            mean += hapi_ref_get_f(c->in[0], x->dtype, r * n + i);
        mean /= (double)n;
        for (int64_t i = 0; i < n; i++) {
            double d = hapi_ref_get_f(c->in[0], x->dtype, r * n + i) - mean;
            var += d * d;
        }
        inv = 1 / sqrt(var / (double)n + epsilon);
        for (int64_t i = 0; i < n; i++) {
            double v = (hapi_ref_get_f(c->in[0], x->dtype, r * n + i) - mean) * inv *
                       hapi_ref_get_f(c->in[1], scale->dtype, i % ns);
            hapi_ref_put_f(c->out[0], x->dtype, r * n + i,
                           v + (bias ? hapi_ref_get_f(c->in[2], bias->dtype, i % nb) : 0));
        }
        if (mean_out)
            hapi_ref_put_f(c->out[1], mean_out->dtype, r, mean);
        if (inv_out)
            hapi_ref_put_f(c->out[2], inv_out->dtype, r, inv);
    }
    return HAPI_OK;
}

/* Inference form: x (N,C,...), scale, bias, mean, variance (C). */
int hapi_ref_batch_norm(const struct hapi_ref_call *c)
{
    const struct hapi_value *x = hapi_ref_in(c, 0);
    double epsilon = hapi_node_float(c->n, "epsilon", 1e-5F);

    if (hapi_node_int(c->n, "training_mode", 0))
        return hapi_ref_fail(c, HAPI_EUNSUPPORTED, "training_mode");
    if (x->shape.rank < 2)
        return hapi_ref_fail(c, HAPI_EFORMAT, "input has no channels");
    int64_t channels = x->shape.dim[1], plane = hapi_ref_span(&x->shape, 2, x->shape.rank);
    for (int i = 1; i < 5; i++)
        if (!hapi_ref_in(c, i) || hapi_ref_count(&hapi_ref_in(c, i)->shape) != channels)
            return hapi_ref_fail(c, HAPI_EFORMAT, "parameters do not have one value per channel");
    for (int64_t nc = 0; nc < x->shape.dim[0] * channels; nc++) {
        double p[5];
        for (int i = 1; i < 5; i++)
            p[i] = hapi_ref_get_f(c->in[i], hapi_ref_in(c, i)->dtype, nc % channels);
        double k = p[1] / sqrt(p[4] + epsilon);
        for (int64_t i = nc * plane; i < (nc + 1) * plane; i++)
            hapi_ref_put_f(c->out[0], x->dtype, i, (hapi_ref_get_f(c->in[0], x->dtype, i) - p[3]) * k + p[2]);
    }
    return HAPI_OK;
}

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
    double f;
    int64_t i;
    int64_t n;
};

static void sum_add(struct sum *s, enum hapi_op_kind op, const void *x, enum hapi_dtype d, int64_t at)
{
    double f = hapi_ref_get_f(x, d, at);
    int64_t i = hapi_ref_get_i(x, d, at);
    bool more = hapi_ref_is_float(d) ? f > s->f || f != f
                : d == HAPI_U64      ? (uint64_t)i > (uint64_t)s->i
                                     : i > s->i;

    if (op != HAPI_OP_ReduceMax) {
        s->f += f;
        s->i = (int64_t)((uint64_t)s->i + (uint64_t)i);
    } else if (!s->n || more) {
        s->f = f;
        s->i = i;
    }
    s->n++;
}

int hapi_ref_reduce(const struct hapi_ref_call *c)
{
    const struct hapi_value *x = hapi_ref_in(c, 0);
    struct hapi_shape kept = {0}, gone = {0};
    struct hapi_ref_walk k, g;
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
    __builtin_memcpy(k.stride[0], ks, sizeof ks);
    for (int64_t r = 0; r < k.rows; r++, hapi_ref_walk_next(&k))
        for (int64_t i = 0; i < k.inner; i++, to++) {
            struct sum s = {0};
            hapi_ref_walk_init(&g, &gone);
            __builtin_memcpy(g.stride[0], gs, sizeof gs);
            for (int64_t q = 0; q < g.rows; q++, hapi_ref_walk_next(&g))
                for (int64_t j = 0; j < g.inner; j++)
                    sum_add(&s, c->n->op, c->in[0], x->dtype,
                            k.off[0] + i * k.stride[0][k.rank - 1] + g.off[0] + j * g.stride[0][g.rank - 1]);
            if (c->n->op == HAPI_OP_ReduceMean) {
                s.f /= (double)s.n;
                s.i = s.n ? s.i / s.n : 0;
            }
            if (hapi_ref_is_float(x->dtype))
                hapi_ref_put_f(c->out[0], x->dtype, to, s.f);
            else
                hapi_ref_put_i(c->out[0], x->dtype, to, s.i);
        }
    return HAPI_OK;
}
