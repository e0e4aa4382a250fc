/* Convolutions and pooling. */
#include <math.h>

#include "ref.h"

enum { TILE = 16 }; /* output columns whose f64 sums are kept at once */
enum { H, W, D };   /* how hapi_window numbers spatial dims */

/* One row tile of one output channel: for output columns [ow, ow + n). All pointers are to this sample's and
 * group's channels. Weights of channel c begin at c * pitch. */
struct row {
    const struct hapi_window *w;
    int64_t channels, pitch, od, oh, ow, n;
};

/* Where the tap (kd, kh) of the output's row reads, as a row of the input's plane; -1: padding. */
static int64_t conv_line(const struct row *r, int64_t kd, int64_t kh)
{
    const struct hapi_window *w = r->w;
    int64_t d = r->od * w->stride[D] - w->pad_begin[D] + kd * w->dilation[D];
    int64_t h = r->oh * w->stride[H] - w->pad_begin[H] + kh * w->dilation[H];

    return d < 0 || d >= w->in[D] || h < 0 || h >= w->in[H] ? -1 : d * w->in[H] + h;
}

/* The same for ConvTranspose: position t of the output is input t / stride of tap k where that is whole. */
static int64_t spread_from(const struct hapi_window *w, int d, int64_t out, int64_t k)
{
    int64_t t = out + w->pad_begin[d] - k * w->dilation[d];

    return t < 0 || t % w->stride[d] || t / w->stride[d] >= w->in[d] ? -1 : t / w->stride[d];
}

static int64_t spread_line(const struct row *r, int64_t kd, int64_t kh)
{
    int64_t d = spread_from(r->w, D, r->od, kd), h = spread_from(r->w, H, r->oh, kh);

    return d < 0 || h < 0 ? -1 : d * r->w->in[H] + h;
}

/* Columns j of the tile that tap kw contributes to: [from, to), every `step`-th, reading column first + i *
 * next for the i-th of them. */
struct columns {
    int64_t from, to, step, first, next;
};

static struct columns conv_columns(const struct row *r, int64_t kw)
{
    const struct hapi_window *w = r->w;
    int64_t s = w->stride[W], x = r->ow * s - w->pad_begin[W] + kw * w->dilation[W];
    struct columns c = {.step = 1, .next = s};

    c.from = x >= 0 ? 0 : (-x + s - 1) / s;
    c.to = x < w->in[W] ? (w->in[W] - x + s - 1) / s : 0;
    c.to = c.to > r->n ? r->n : c.to;
    c.first = x + c.from * s;
    return c;
}

static struct columns spread_columns(const struct row *r, int64_t kw)
{
    const struct hapi_window *w = r->w;
    int64_t s = w->stride[W], t = r->ow + w->pad_begin[W] - kw * w->dilation[W];
    struct columns c = {.step = s, .next = 1};

    c.from = t < 0 ? -t : (s - t % s) % s;
    c.to = w->in[W] * s - t < r->n ? w->in[W] * s - t : r->n;
    c.first = (t + c.from) / s;
    return c;
}

#define ROW(name, type, line_of, columns_of)                                                                 \
    static void name(const struct row *r, const type *x, const type *k, double *acc)                         \
    {                                                                                                        \
        const struct hapi_window *w = r->w;                                                                  \
        int64_t plane = w->in[D] * w->in[H];                                                                 \
                                                                                                             \
        for (int64_t c = 0; c < r->channels; c++)                                                            \
            for (int64_t kd = 0; kd < w->kernel[D]; kd++)                                                    \
                for (int64_t kh = 0; kh < w->kernel[H]; kh++) {                                              \
                    int64_t line = line_of(r, kd, kh);                                                       \
                    if (line < 0)                                                                            \
                        continue;                                                                            \
                    const type *from = x + (c * plane + line) * w->in[W];                                    \
                    const type *tap = k + c * r->pitch + (kd * w->kernel[H] + kh) * w->kernel[W];            \
                    for (int64_t kw = 0; kw < w->kernel[W]; kw++) {                                          \
                        struct columns q = columns_of(r, kw);                                                \
                        double v = tap[kw];                                                                  \
                        for (int64_t j = q.from, i = q.first; j < q.to; j += q.step, i += q.next)            \
                            acc[j] += v * (double)from[i];                                                   \
                    }                                                                                        \
                }                                                                                            \
    }

ROW(conv_row_f32, float, conv_line, conv_columns)
ROW(conv_row_f64, double, conv_line, conv_columns)
ROW(spread_row_f32, float, spread_line, spread_columns)
ROW(spread_row_f64, double, spread_line, spread_columns)

/* One plane (n, m) of the output: x and k are offsets of its first input channel and of its weights. */
static void plane_run(const struct hapi_ref_call *c, struct row *r, int64_t x, int64_t k, int64_t nm,
                      double bias)
{
    enum hapi_dtype d = hapi_ref_in(c, 0)->dtype;
    const struct hapi_window *w = r->w;
    bool spread = c->n->op == HAPI_OP_ConvTranspose;

    for (int64_t line = 0; line < w->out[D] * w->out[H]; line++)
        for (r->ow = 0; r->ow < w->out[W]; r->ow += TILE) {
            double acc[TILE];
            r->od = line / w->out[H];
            r->oh = line % w->out[H];
            r->n = w->out[W] - r->ow < TILE ? w->out[W] - r->ow : TILE;
            for (int64_t j = 0; j < r->n; j++)
                acc[j] = bias;
            if (d == HAPI_F32)
                (spread ? spread_row_f32 : conv_row_f32)(r, (const float *)c->in[0] + x,
                                                         (const float *)c->in[1] + k, acc);
            else
                (spread ? spread_row_f64 : conv_row_f64)(r, (const double *)c->in[0] + x,
                                                         (const double *)c->in[1] + k, acc);
            for (int64_t j = 0; j < r->n; j++)
                hapi_ref_put_f(c->out[0], d, (nm * w->out[D] * w->out[H] + line) * w->out[W] + r->ow + j,
                               acc[j]);
        }
}

/* x: (N,C,[D,]H,W), weights: (M,C/group,..) or, transposed, (C,M/group,..), bias: (M) or none. */
int hapi_ref_conv(const struct hapi_ref_call *c)
{
    const struct hapi_value *x = hapi_ref_in(c, 0), *k = hapi_ref_in(c, 1), *b = hapi_ref_in(c, 2);
    bool spread = c->n->op == HAPI_OP_ConvTranspose;
    struct hapi_window w;
    int rc = hapi_window_of(c->g, c->n, &w, c->err);

    if (rc)
        return rc;
    if (x->dtype != HAPI_F32 && x->dtype != HAPI_F64)
        return hapi_ref_fail(c, HAPI_EUNSUPPORTED, "not defined here for %s", hapi_dtype_name(x->dtype));
    int64_t in_c = x->shape.dim[1], out_c = spread ? k->shape.dim[1] * w.group : k->shape.dim[0];
    int64_t per_in = in_c / w.group, per_out = out_c / w.group;
    if (k->shape.dim[0] != (spread ? in_c : out_c) || (!spread && k->shape.dim[1] != per_in) ||
        in_c % w.group || out_c % w.group)
        return hapi_ref_fail(c, HAPI_EFORMAT, "channels and groups do not fit the weights");
    int64_t plane = w.in[D] * w.in[H] * w.in[W], taps = w.kernel[D] * w.kernel[H] * w.kernel[W];
    struct row r = {.w = &w, .channels = per_in, .pitch = spread ? per_out * taps : taps};
    for (int64_t nm = 0; nm < x->shape.dim[0] * out_c; nm++) {
        int64_t m = nm % out_c, group = m / per_out;
        int64_t at = spread ? (group * per_in * per_out + m % per_out) * taps : m * per_in * taps;
        plane_run(c, &r, (nm / out_c * in_c + group * per_in) * plane, at, nm,
                  b ? hapi_ref_get_f(c->in[2], x->dtype, m) : 0);
    }
    return HAPI_OK;
}

/* ------------------------------------------------------------------ pools */

struct pool {
    struct hapi_window w;
    enum hapi_dtype dtype;
    bool max;
    bool column_major; /* of the indices */
    double best, sum;  /* of the window at hand */
    int64_t n, index;
};

static void pool_see(struct pool *p, const void *x, int64_t base, const int64_t *at)
{
    const struct hapi_window *w = &p->w;
    bool real = true, padded = true;

    for (int d = 0; d < HAPI_SPATIAL; d++) {
        real &= at[d] >= 0 && at[d] < w->in[d];
        padded &= at[d] < w->in[d] + w->pad_end[d];
    }
    if (!real) {
        p->n += w->count_include_pad && padded;
        return;
    }
    int64_t i = (at[D] * w->in[H] + at[H]) * w->in[W] + at[W];
    double e = hapi_ref_get_f(x, p->dtype, base + i);
    p->n++;
    p->sum += e;
    if (p->index < 0 || e > p->best || e != e) {
        p->best = e;
        p->index = base + (p->column_major ? (at[W] * w->in[H] + at[H]) * w->in[D] + at[D] : i);
    }
}

/* One output of the plane whose first element is `base`; p->index is the flat index of the maximum. */
static double pool_one(struct pool *p, const void *x, int64_t base, const int64_t *out)
{
    const struct hapi_window *w = &p->w;
    int64_t k[HAPI_SPATIAL], at[HAPI_SPATIAL];

    p->best = -INFINITY;
    p->sum = 0;
    p->n = 0;
    p->index = -1;
    for (k[D] = 0; k[D] < w->kernel[D]; k[D]++)
        for (k[H] = 0; k[H] < w->kernel[H]; k[H]++)
            for (k[W] = 0; k[W] < w->kernel[W]; k[W]++) {
                for (int d = 0; d < HAPI_SPATIAL; d++)
                    at[d] = out[d] * w->stride[d] - w->pad_begin[d] + k[d] * w->dilation[d];
                pool_see(p, x, base, at);
            }
    return p->max ? p->best : p->n ? p->sum / (double)p->n : 0;
}

/* x: (N,C,[D,]H,W); MaxPool's second output has the indices (i64, into the whole tensor). */
int hapi_ref_pool(const struct hapi_ref_call *c)
{
    const struct hapi_value *x = hapi_ref_in(c, 0);
    int64_t *indices = hapi_ref_out(c, 1) ? c->out[1] : NULL, to = 0, o[HAPI_SPATIAL];
    struct pool p = {.dtype = x->dtype};
    int rc = hapi_window_of(c->g, c->n, &p.w, c->err);

    if (rc)
        return rc;
    p.max = c->n->op == HAPI_OP_MaxPool || c->n->op == HAPI_OP_GlobalMaxPool;
    p.column_major = hapi_node_int(c->n, "storage_order", 0) != 0;
    int64_t planes = x->shape.dim[0] * x->shape.dim[1], plane = p.w.in[D] * p.w.in[H] * p.w.in[W];
    for (int64_t i = 0; i < planes; i++)
        for (o[D] = 0; o[D] < p.w.out[D]; o[D]++)
            for (o[H] = 0; o[H] < p.w.out[H]; o[H]++)
                for (o[W] = 0; o[W] < p.w.out[W]; o[W]++, to++) {
                    double v = pool_one(&p, c->in[0], i * plane, o);
                    hapi_ref_put_f(c->out[0], x->dtype, to, v);
                    if (indices)
                        indices[to] = p.index;
                }
    return HAPI_OK;
}
