/* Convolution and pooling. */
#include <math.h>

#include "ref.h"

enum { TILE = 16 }; /* output columns whose f64 sums are kept at once */

/* One row tile of one output channel: for output columns [ow, ow + n). All pointers are to this sample's and
 * group's channels. */
struct conv_row {
    const struct hapi_window *w;
    int64_t channels, oh, ow, n;
};

/* Columns j of the tile whose input column ow*stride - pad + kw*dilation + j*stride is inside. */
static void inside(const struct conv_row *r, int64_t kw, int64_t *first, int64_t *j0, int64_t *j1)
{
    const struct hapi_window *w = r->w;
    int64_t s = w->stride[1], x = r->ow * s - w->pad_begin[1] + kw * w->dilation[1];

    *j0 = x >= 0 ? 0 : (-x + s - 1) / s;
    *j1 = x < w->in[1] ? (w->in[1] - x + s - 1) / s : 0;
    if (*j1 > r->n)
        *j1 = r->n;
    *first = x;
}

#define CONV_ROW(name, type)                                                                                 \
    static void name(const struct conv_row *r, const type *x, const type *k, double *acc)                    \
    {                                                                                                        \
        const struct hapi_window *w = r->w;                                                                  \
        int64_t first, j0, j1;                                                                               \
                                                                                                             \
        for (int64_t c = 0; c < r->channels; c++)                                                            \
            for (int64_t kh = 0; kh < w->kernel[0]; kh++) {                                                  \
                int64_t ih = r->oh * w->stride[0] - w->pad_begin[0] + kh * w->dilation[0];                   \
                if (ih < 0 || ih >= w->in[0])                                                                \
                    continue;                                                                                \
                const type *row = x + (c * w->in[0] + ih) * w->in[1];                                        \
                for (int64_t kw = 0; kw < w->kernel[1]; kw++) {                                              \
                    double v = k[(c * w->kernel[0] + kh) * w->kernel[1] + kw];                               \
                    inside(r, kw, &first, &j0, &j1);                                                         \
                    for (int64_t j = j0; j < j1; j++)                                                        \
                        acc[j] += v * (double)row[first + j * w->stride[1]];                                 \
                }                                                                                            \
            }                                                                                                \
    }

CONV_ROW(conv_row_f32, float)
CONV_ROW(conv_row_f64, double)

/* x: (N,C,H,W), weights: (M,C/group,kH,kW), bias: (M) or none. */
int hapi_ref_conv(const struct hapi_ref_call *c)
{
    const struct hapi_value *x = hapi_ref_in(c, 0), *k = hapi_ref_in(c, 1), *b = hapi_ref_in(c, 2);
    enum hapi_dtype d = x->dtype;
    struct hapi_window w;
    int rc = hapi_window_of(c->g, c->n, &w, c->err);

    if (rc)
        return rc;
    if (d != HAPI_F32 && d != HAPI_F64)
        return hapi_ref_fail(c, HAPI_EUNSUPPORTED, "not defined here for %s", hapi_dtype_name(d));
    int64_t batch = x->shape.dim[0], in_c = x->shape.dim[1], out_c = k->shape.dim[0], per = k->shape.dim[1];
    if (per * w.group != in_c || out_c % w.group)
        return hapi_ref_fail(c, HAPI_EFORMAT, "channels and groups do not fit the weights");
    int64_t plane = w.in[0] * w.in[1], taps = per * w.kernel[0] * w.kernel[1];
    struct conv_row r = {&w, per, 0, 0, 0};

    for (int64_t nm = 0; nm < batch * out_c; nm++) {
        int64_t n = nm / out_c, m = nm % out_c, from = (n * in_c + m / (out_c / w.group) * per) * plane;
        for (r.oh = 0; r.oh < w.out[0]; r.oh++)
            for (r.ow = 0; r.ow < w.out[1]; r.ow += TILE) {
                double acc[TILE];
                r.n = w.out[1] - r.ow < TILE ? w.out[1] - r.ow : TILE;
                for (int64_t j = 0; j < r.n; j++)
                    acc[j] = b ? hapi_ref_get_f(c->in[2], d, m) : 0;
                if (d == HAPI_F32)
                    conv_row_f32(&r, (const float *)c->in[0] + from, (const float *)c->in[1] + m * taps, acc);
                else
                    conv_row_f64(&r, (const double *)c->in[0] + from, (const double *)c->in[1] + m * taps,
                                 acc);
                for (int64_t j = 0; j < r.n; j++)
                    hapi_ref_put_f(c->out[0], d, (nm * w.out[0] + r.oh) * w.out[1] + r.ow + j, acc[j]);
            }
    }
    return HAPI_OK;
}

struct pool {
    struct hapi_window w;
    enum hapi_dtype dtype;
    bool max;
    bool column_major; /* of the indices */
};

/* One output of one plane whose first element is `base`; *index is the flat index of the maximum. */
static double pool_one(const struct pool *p, const void *x, int64_t base, int64_t oh, int64_t ow,
                       int64_t *index)
{
    const struct hapi_window *w = &p->w;
    int64_t h0 = oh * w->stride[0] - w->pad_begin[0], w0 = ow * w->stride[1] - w->pad_begin[1];
    double best = -INFINITY, sum = 0;
    int64_t n = 0;

    *index = -1;
    for (int64_t kh = 0; kh < w->kernel[0]; kh++)
        for (int64_t kw = 0; kw < w->kernel[1]; kw++) {
            int64_t h = h0 + kh * w->dilation[0], v = w0 + kw * w->dilation[1];
            bool real = h >= 0 && h < w->in[0] && v >= 0 && v < w->in[1];
            bool padded = h < w->in[0] + w->pad_end[0] && v < w->in[1] + w->pad_end[1];
            if (!real) {
                n += w->count_include_pad && padded;
                continue;
            }
            double e = hapi_ref_get_f(x, p->dtype, base + h * w->in[1] + v);
            n++;
            sum += e;
            if (*index < 0 || e > best || e != e) {
                best = e;
                *index = base + (p->column_major ? v * w->in[0] + h : h * w->in[1] + v);
            }
        }
    return p->max ? best : n ? sum / (double)n : 0;
}

/* x: (N,C,H,W) -> (N,C,oH,oW); MaxPool's second output has the indices (i64, into the whole tensor). */
int hapi_ref_pool(const struct hapi_ref_call *c)
{
    const struct hapi_value *x = hapi_ref_in(c, 0);
    int64_t *indices = hapi_ref_out(c, 1) ? c->out[1] : NULL, at = 0, index;
    struct pool p = {.dtype = x->dtype};
    int rc = hapi_window_of(c->g, c->n, &p.w, c->err);

    if (rc)
        return rc;
    p.max = c->n->op == HAPI_OP_MaxPool || c->n->op == HAPI_OP_GlobalMaxPool;
    p.column_major = hapi_node_int(c->n, "storage_order", 0) != 0;
    int64_t planes = x->shape.dim[0] * x->shape.dim[1];
    for (int64_t i = 0; i < planes; i++)
        for (int64_t oh = 0; oh < p.w.out[0]; oh++)
            for (int64_t ow = 0; ow < p.w.out[1]; ow++, at++) {
                double v = pool_one(&p, c->in[0], i * p.w.in[0] * p.w.in[1], oh, ow, &index);
                hapi_ref_put_f(c->out[0], x->dtype, at, v);
                if (indices)
                    indices[at] = index;
            }
    return HAPI_OK;
}
