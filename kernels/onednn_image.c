/* Resize as oneDNN's resampling and LRN as its own: channels-last, rank 3 as rank 4 with height 1. */
#include <math.h>

#include "onednn.h"
#include "ref.h"
#include "resample.h"

/* y = f(x), both channels-last and described by md[0] and md[1]. */
static int emit(struct hapi_dnn *b, const void *desc, const dnnl_memory_desc_t *md, struct hapi_err *err)
{
    int value = b->step->node->in[0];
    enum hapi_dtype dtype = hapi_dnn_dtype(b, value);
    dnnl_primitive_attr_t attr;
    dnnl_primitive_desc_t pd;
    int rc = hapi_dnn_attr(false, NULL, &attr) ? HAPI_DNN_NONE : hapi_dnn_pd(b, desc, attr, &pd);

    dnnl_primitive_attr_destroy(attr);
    if (rc)
        return rc;
    int x = hapi_dnn_need(b, value, dtype, HAPI_LAYOUT_NHWC, err);
    int y = x < 0 ? x : hapi_dnn_make(b, b->step->out, dtype, HAPI_LAYOUT_NHWC, err);
    if (y < 0) {
        dnnl_primitive_desc_destroy(pd);
        return y;
    }
    struct hapi_dnn_arg args[2] = {{DNNL_ARG_SRC, &md[0], b->reps[x].storage},
                                   {DNNL_ARG_DST, &md[1], b->reps[y].storage}};
    return hapi_dnn_execute(b, pd, args, 2, err);
}

/* Whether oneDNN takes output coordinate i from where ONNX does, by its own arithmetic: half pixels, rounded
 * or split between two neighbours. */
static bool same_taps(const struct hapi_resample *r, int axis, int64_t i)
{
    const struct hapi_resample_axis *a = &r->axis[axis];
    float at = ((float)i + 0.5F) * (float)a->in / (float)a->out - 0.5F, weight = at - floorf(at);
    int64_t low = (int64_t)floorf(at), last = a->in - 1, near = (int64_t)roundf(at);
    struct hapi_resample_taps t;
    double sum[2] = {0, 0};

    hapi_resample_taps(r, axis, i, &t);
    near = near < 0 ? 0 : near > last ? last : near;
    if (t.outside || r->mode == HAPI_RESAMPLE_NEAREST)
        return !t.outside && t.n == 1 && t.index[0] == near;
    for (int k = 0; k < t.n; k++) {
        int64_t left = low < 0 ? 0 : low;
        if (t.index[k] != left && t.index[k] != (low + 1 > last ? last : low + 1))
            return false;
        sum[t.index[k] != left] += t.weight[k];
    }
    /* At the edges both neighbours are one element. */
    return low < 0 || low >= last ? fabs(sum[0] + sum[1] - 1) < 1e-6
                                  : fabs(sum[1] - (double)weight) < 1e-5 && fabs(sum[0] + sum[1] - 1) < 1e-6;
}

int hapi_dnn_resize(struct hapi_dnn *b, struct hapi_err *err)
{
    const struct hapi_value *x = &b->g->values[b->step->node->in[0]];
    enum hapi_dtype dtype = hapi_dnn_dtype(b, b->step->node->in[0]);
    struct hapi_resample r;
    dnnl_resampling_desc_t d;
    dnnl_memory_desc_t md[2];
    int rc = hapi_resample_of(b->g, b->step->node, &r, err);

    if (rc)
        return rc;
    if (x->dtype != HAPI_F32 || r.rank < 3 || r.rank > 5 || r.mode == HAPI_RESAMPLE_CUBIC ||
        r.axis[0].in != r.axis[0].out || r.axis[1].in != r.axis[1].out)
        return HAPI_DNN_NONE;
    for (int axis = 0; axis < r.rank; axis++)
        for (int64_t i = 0; i < r.axis[axis].out; i++)
            if (!same_taps(&r, axis, i))
                return HAPI_DNN_NONE;
    if (hapi_dnn_md4(&x->shape, dtype, HAPI_LAYOUT_NHWC, &md[0]) ||
        hapi_dnn_md4(&b->g->values[b->step->out].shape, dtype, HAPI_LAYOUT_NHWC, &md[1]) ||
        dnnl_resampling_forward_desc_init(&d, dnnl_forward_inference,
                                          r.mode == HAPI_RESAMPLE_NEAREST ? dnnl_resampling_nearest
                                                                          : dnnl_resampling_linear,
                                          NULL, &md[0], &md[1]))
        return HAPI_DNN_NONE;
    return emit(b, &d, md, err);
}

/* An even number of channels has its middle elsewhere than oneDNN's. */
int hapi_dnn_lrn(struct hapi_dnn *b, struct hapi_err *err)
{
    const struct hapi_node *n = b->step->node;
    const struct hapi_value *x = &b->g->values[n->in[0]];
    int64_t size = hapi_node_int(n, "size", 1);
    dnnl_memory_desc_t md[2];
    dnnl_lrn_desc_t d;

    if (x->dtype != HAPI_F32 || x->shape.rank < 3 || x->shape.rank > 4 || size % 2 == 0 ||
        hapi_dnn_md4(&x->shape, hapi_dnn_dtype(b, n->in[0]), HAPI_LAYOUT_NHWC, &md[0]) ||
        dnnl_lrn_forward_desc_init(&d, dnnl_forward_inference, dnnl_lrn_across_channels, &md[0], size,
                                   hapi_node_float(n, "alpha", 1e-4F), hapi_node_float(n, "beta", 0.75F),
                                   hapi_node_float(n, "bias", 1)))
        return HAPI_DNN_NONE;
    md[1] = md[0];
    return emit(b, &d, md, err);
}
