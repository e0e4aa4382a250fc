/* Normalisations; sums are kept in f64. */
#include <math.h>

#include "ref.h"

/* n elements, `step` apart, from element `at`. */
static void softmax_line(const void *x, void *y, enum hapi_dtype d, int64_t at, int64_t n, int64_t step,
                         bool log_of)
{
    double top = -INFINITY, sum = 0;

    for (int64_t i = 0; i < n; i++) {
        double v = hapi_ref_get_f(x, d, at + i * step);
        if (v > top || v != v)
            top = v;
    }
    for (int64_t i = 0; i < n; i++)
        sum += exp(hapi_ref_get_f(x, d, at + i * step) - top);
    for (int64_t i = 0; i < n; i++) {
        double v = hapi_ref_get_f(x, d, at + i * step) - top;
        hapi_ref_put_f(y, d, at + i * step, log_of ? v - log(sum) : exp(v) / sum);
    }
}

/* Softmax, LogSoftmax: along one axis since opset 13; before, over all dims from `axis` on. */
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
            softmax_line(c->in[0], c->out[0], x->dtype, o * n * inner + i, n, inner,
                         c->n->op == HAPI_OP_LogSoftmax);
    return HAPI_OK;
}

/* n numbers from element `at`: what makes them of mean 0 and variance 1. */
static void moments(const void *x, enum hapi_dtype d, int64_t at, int64_t n, double epsilon, double *mean,
                    double *inv)
{
    double var = 0;

    *mean = 0;
    for (int64_t i = 0; i < n; i++)
        *mean += hapi_ref_get_f(x, d, at + i);
    *mean /= (double)n;
    for (int64_t i = 0; i < n; i++) {
        double v = hapi_ref_get_f(x, d, at + i) - *mean;
        var += v * v;
    }
    *inv = 1 / sqrt(var / (double)n + epsilon);
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
        double mean, inv;
        moments(c->in[0], x->dtype, r * n, n, epsilon, &mean, &inv);
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

/* InstanceNormalization (each channel is a group) and GroupNormalization of x (N,C,...). Scale and bias have
 * one number per channel, or per group. */
int hapi_ref_channel_norm(const struct hapi_ref_call *c)
{
    const struct hapi_value *x = hapi_ref_in(c, 0), *scale = hapi_ref_in(c, 1);
    int64_t channels = x->shape.dim[1], plane = hapi_ref_span(&x->shape, 2, x->shape.rank);
    int64_t groups = c->n->op == HAPI_OP_GroupNormalization ? hapi_node_int(c->n, "num_groups", 1) : channels;
    int64_t n = channels / groups * plane, per = channels / scale->shape.dim[0];
    double epsilon = hapi_node_float(c->n, "epsilon", 1e-5F), mean, inv;

    for (int64_t g = 0; g < x->shape.dim[0] * groups; g++) {
        moments(c->in[0], x->dtype, g * n, n, epsilon, &mean, &inv);
        for (int64_t i = g * n; i < (g + 1) * n; i++) {
            int64_t k = i / plane % channels / per;
            double v = (hapi_ref_get_f(c->in[0], x->dtype, i) - mean) * inv;
            hapi_ref_put_f(c->out[0], x->dtype, i,
                           v * hapi_ref_get_f(c->in[1], x->dtype, k) + hapi_ref_get_f(c->in[2], x->dtype, k));
        }
    }
    return HAPI_OK;
}

/* x / (bias + alpha / size * sum of the squares of `size` channels around it) ^ beta */
int hapi_ref_lrn(const struct hapi_ref_call *c)
{
    const struct hapi_value *x = hapi_ref_in(c, 0);
    int64_t channels = x->shape.dim[1], plane = hapi_ref_span(&x->shape, 2, x->shape.rank);
    int64_t size = hapi_node_int(c->n, "size", 1), before = (size - 1) / 2;
    double alpha = hapi_node_float(c->n, "alpha", 1e-4F), beta = hapi_node_float(c->n, "beta", 0.75F);
    double bias = hapi_node_float(c->n, "bias", 1);

    for (int64_t i = 0, count = hapi_ref_count(&x->shape); i < count; i++) {
        int64_t at = i / plane % channels;
        double sum = 0;
        for (int64_t k = at < before ? -at : -before; k < size - before && at + k < channels; k++) {
            double v = hapi_ref_get_f(c->in[0], x->dtype, i + k * plane);
            sum += v * v;
        }
        hapi_ref_put_f(c->out[0], x->dtype, i,
                       hapi_ref_get_f(c->in[0], x->dtype, i) / pow(bias + alpha / (double)size * sum, beta));
    }
    return HAPI_OK;
}
