#include "opgraph_eval.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "convert.h"

/* A tensor as dense f32: channels-last where it is of rank 4 and an image, else in the order of its dims. */
struct dense {
    float *p;
    const struct hapi_cudnn_tensor *t;
    int order[HAPI_CUDNN_RANK]; /* dims, outermost first */
    int64_t stride[HAPI_CUDNN_RANK];
    int64_t n;
};

static struct dense dense_new(const struct hapi_cudnn_tensor *t, bool image)
{
    struct dense d = {.t = t, .n = 1};

    for (int i = 0; i < t->rank; i++)
        d.order[i] = !image || i == 0 ? i : i == t->rank - 1 ? 1 : i + 1;
    for (int i = t->rank - 1; i >= 0; i--) {
        d.stride[d.order[i]] = d.n;
        d.n *= t->dim[d.order[i]];
    }
    d.p = calloc((size_t)d.n, sizeof *d.p);
    if (!d.p)
        abort();
    return d;
}

/* Visits all elements in the order of the dense copy: calls with where each lies in memory. */
static void walk(const struct dense *d, unsigned char *memory, bool read)
{
    const struct hapi_cudnn_tensor *t = d->t;
    int64_t at[HAPI_CUDNN_RANK] = {0};
    size_t size = hapi_dtype_size(t->dtype);

    for (int64_t i = 0; i < d->n; i++) {
        int64_t from = 0;
        for (int k = 0; k < t->rank; k++)
            from += at[k] * t->stride[k];
        if (read)
            hapi_convert(&d->p[i], HAPI_F32, memory + (size_t)from * size, t->dtype, 1);
        else
            hapi_convert(memory + (size_t)from * size, t->dtype, &d->p[i], HAPI_F32, 1);
        for (int k = t->rank - 1; k >= 0 && ++at[d->order[k]] == t->dim[d->order[k]]; k--)
            at[d->order[k]] = 0;
    }
}

/* ------------------------------------------------------------------ ops */

static float dot(const float *a, const float *b, int64_t n)
{
    float s[16] = {0}, sum = 0;
    int64_t i = 0;

    for (; i + 16 <= n; i += 16)
        for (int k = 0; k < 16; k++)
            s[k] += a[i + k] * b[i + k];
    for (; i < n; i++)
        sum += a[i] * b[i];
    for (int k = 0; k < 16; k++)
        sum += s[k];
    return sum;
}

/* Images are (N,H,W,C), weights (K,R,S,C/groups). */
static void conv(const struct hapi_cudnn_op *op, const struct dense *x, const struct dense *w,
                 const struct dense *y)
{
    const int64_t *xd = x->t->dim, *wd = w->t->dim, *yd = y->t->dim;
    int64_t cg = wd[1], group = xd[1] / cg, kg = wd[0] / group;

    for (int64_t n = 0; n < yd[0]; n++)
        for (int64_t i = 0; i < yd[2]; i++)
            for (int64_t j = 0; j < yd[3]; j++) {
                float *out = &y->p[((n * yd[2] + i) * yd[3] + j) * yd[1]];
                memset(out, 0, (size_t)yd[1] * sizeof *out);
                for (int64_t r = 0; r < wd[2]; r++)
                    for (int64_t s = 0; s < wd[3]; s++) {
                        int64_t h = i * op->stride[0] + r * op->dilation[0] - op->pad_begin[0];
                        int64_t v = j * op->stride[1] + s * op->dilation[1] - op->pad_begin[1];
                        if (h < 0 || h >= xd[2] || v < 0 || v >= xd[3])
                            continue;
                        const float *in = &x->p[((n * xd[2] + h) * xd[3] + v) * xd[1]];
                        for (int64_t k = 0; k < wd[0]; k++)
                            out[k] += dot(in + k / kg * cg, &w->p[((k * wd[2] + r) * wd[3] + s) * cg], cg);
                    }
            }
}

static void pool(const struct hapi_cudnn_op *op, const struct dense *x, const struct dense *y)
{
    const int64_t *xd = x->t->dim, *yd = y->t->dim;
    bool most = op->mode == HAPI_CUDNN_MAX_POOL;

    for (int64_t n = 0; n < yd[0]; n++)
        for (int64_t i = 0; i < yd[2]; i++)
            for (int64_t j = 0; j < yd[3]; j++)
                for (int64_t c = 0; c < yd[1]; c++) {
                    float v = most ? -INFINITY : 0;
                    int64_t seen = 0;
                    for (int64_t r = 0; r < op->kernel[0]; r++)
                        for (int64_t s = 0; s < op->kernel[1]; s++) {
                            int64_t h = i * op->stride[0] + r - op->pad_begin[0],
                                    w = j * op->stride[1] + s - op->pad_begin[1];
                            if (h < 0 || h >= xd[2] || w < 0 || w >= xd[3])
                                continue;
                            float e = x->p[((n * xd[2] + h) * xd[3] + w) * xd[1] + c];
                            v = most ? fmaxf(v, e) : v + e;
                            seen++;
                        }
                    if (op->mode == HAPI_CUDNN_AVG_POOL_INCLUDING)
                        seen = op->kernel[0] * op->kernel[1];
                    y->p[((n * yd[2] + i) * yd[3] + j) * yd[1] + c] = most ? v : v / (float)seen;
                }
}

/* Element of a matrix within a batch, broadcast where the batch is 1. */
static int64_t batch_at(const struct dense *d, const int64_t *dims, int64_t b)
{
    int64_t at = 0;

    for (int k = d->t->rank - 3; k >= 0; k--) {
        int64_t i = b % dims[k];
        b /= dims[k];
        at += d->t->dim[k] == 1 ? 0 : i * d->stride[k];
    }
    return at;
}

static void matmul(const struct dense *a, const struct dense *b, const struct dense *y)
{
    int r = y->t->rank;
    int64_t m = y->t->dim[r - 2], n = y->t->dim[r - 1], k = a->t->dim[r - 1], batch = y->n / (m * n);
    float *column = malloc((size_t)(k * n) * sizeof *column);

    if (!column)
        abort();
    for (int64_t i = 0; i < batch; i++) {
        const float *pa = a->p + batch_at(a, y->t->dim, i), *pb = b->p + batch_at(b, y->t->dim, i);
        for (int64_t c = 0; c < n; c++)
            for (int64_t e = 0; e < k; e++)
                column[c * k + e] = pb[e * n + c];
        for (int64_t row = 0; row < m; row++)
            for (int64_t c = 0; c < n; c++)
                y->p[i * m * n + row * n + c] = dot(pa + row * k, column + c * k, k);
    }
    free(column);
}

static float apply(const struct hapi_cudnn_op *op, float x, float b)
{
    float v;

    switch (op->mode) {
    case HAPI_CUDNN_ADD:
        return x + b;
    case HAPI_CUDNN_MUL:
        return x * b;
    case HAPI_CUDNN_RELU:
        v = x < op->lower ? op->lower + op->slope * (x - op->lower) : x;
        return fminf(v, op->upper);
    case HAPI_CUDNN_SIGMOID:
        return 1 / (1 + expf(-x));
    case HAPI_CUDNN_SWISH:
        return x / (1 + expf(-x));
    case HAPI_CUDNN_TANH:
        return tanhf(x);
    case HAPI_CUDNN_ELU:
        return x < 0 ? op->slope * expm1f(x) : x;
    case HAPI_CUDNN_GELU:
        return 0.5F * x * (1 + erff(x * (float)M_SQRT1_2));
    case HAPI_CUDNN_GELU_TANH:
        return 0.5F * x * (1 + tanhf(0.7978845608F * (x + 0.044715F * x * x * x)));
    default:
        return x;
    }
}

static void pointwise(const struct hapi_cudnn_op *op, const struct dense *x, const struct dense *b,
                      const struct dense *y)
{
    const struct hapi_cudnn_tensor *t = y->t;
    int64_t at[HAPI_CUDNN_RANK] = {0};

    for (int64_t i = 0; i < y->n; i++) {
        int64_t ix = 0, ib = 0;
        for (int k = 0; k < t->rank; k++) {
            ix += x->t->dim[k] == 1 ? 0 : at[k] * x->stride[k];
            ib += !b || b->t->dim[k] == 1 ? 0 : at[k] * b->stride[k];
        }
        y->p[i] = apply(op, x->p[ix], b ? b->p[ib] : 0);
        for (int k = t->rank - 1; k >= 0 && ++at[y->order[k]] == t->dim[y->order[k]]; k--)
            at[y->order[k]] = 0;
    }
}

static void layer_norm(const struct dense *x, const struct dense *scale, const struct dense *shift, float eps,
                       const struct dense *y)
{
    int64_t c = x->t->dim[1];

    for (int64_t r = 0; r < x->t->dim[0]; r++) {
        double mean = 0, var = 0;
        for (int64_t i = 0; i < c; i++)
            mean += (double)x->p[r * c + i] / (double)c;
        for (int64_t i = 0; i < c; i++)
            var += ((double)x->p[r * c + i] - mean) * ((double)x->p[r * c + i] - mean) / (double)c;
        for (int64_t i = 0; i < c; i++)
            y->p[r * c + i] =
                (float)(((double)x->p[r * c + i] - mean) / sqrt(var + (double)eps)) * scale->p[i] +
                shift->p[i];
    }
}

static void sdpa(const struct dense *q, const struct dense *k, const struct dense *v, float scale,
                 const struct dense *o)
{
    const int64_t *d = q->t->dim;
    int64_t s = k->t->dim[2], width = d[3], out = v->t->dim[3];
    float *w = malloc((size_t)s * sizeof *w);

    if (!w)
        abort();
    for (int64_t b = 0; b < d[0] * d[1]; b++)
        for (int64_t i = 0; i < d[2]; i++) {
            float most = -INFINITY, sum = 0;
            for (int64_t j = 0; j < s; j++) {
                w[j] = scale * dot(&q->p[(b * d[2] + i) * width], &k->p[(b * s + j) * width], width);
                most = fmaxf(most, w[j]);
            }
            for (int64_t j = 0; j < s; j++)
                sum += w[j] = expf(w[j] - most);
            float *to = &o->p[(b * d[2] + i) * out];
            memset(to, 0, (size_t)out * sizeof *to);
            for (int64_t j = 0; j < s; j++)
                for (int64_t e = 0; e < out; e++)
                    to[e] += w[j] / sum * v->p[(b * s + j) * out + e];
        }
    free(w);
}

/* ------------------------------------------------------------------ graphs */

void opgraph_eval(const struct hapi_cudnn_graph *g, void *const *memory)
{
    struct dense t[HAPI_CUDNN_TENSORS];
    bool images =
        g->tensors[0].rank == 4 && g->ops[0].kind != HAPI_CUDNN_SDPA && g->ops[0].kind != HAPI_CUDNN_MATMUL;

    for (int i = 0; i < g->n_tensors; i++) {
        t[i] = dense_new(&g->tensors[i], images);
        if (g->tensors[i].by_value)
            t[i].p[0] = g->tensors[i].value;
        else if (!g->tensors[i].is_virtual)
            walk(&t[i], memory[i], true);
    }
    for (int i = 0; i < g->n_ops; i++) {
        const struct hapi_cudnn_op *op = &g->ops[i];
        const struct dense *out = &t[op->out], *in[HAPI_CUDNN_INPUTS] = {out, out, out, out, out, out};
        for (int k = 0; k < op->n_in; k++)
            in[k] = &t[op->in[k]];
        switch (op->kind) {
        case HAPI_CUDNN_CONV:
            conv(op, in[0], in[1], out);
            break;
        case HAPI_CUDNN_MATMUL:
            matmul(in[0], in[1], out);
            break;
        case HAPI_CUDNN_POINTWISE:
            pointwise(op, in[0], op->n_in > 1 ? in[1] : NULL, out);
            break;
        case HAPI_CUDNN_RESAMPLE:
            pool(op, in[0], out);
            break;
        case HAPI_CUDNN_LAYER_NORM:
            layer_norm(in[0], in[1], in[2], in[3]->p[0], out);
            break;
        case HAPI_CUDNN_SDPA:
            sdpa(in[0], in[1], in[2], in[3]->p[0], out);
            break;
        }
        if (!g->tensors[op->out].is_virtual)
            walk(out, memory[op->out], false);
    }
    for (int i = 0; i < g->n_tensors; i++)
        free(t[i].p);
}
