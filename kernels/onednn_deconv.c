/* ConvTranspose as oneDNN's deconvolution: channels-last, rank 3 as rank 4 with height 1. */
#include <string.h>

#include "onednn.h"
#include "ref.h"

struct deconv {
    struct hapi_window w;
    int x, weights, bias; /* values; bias may be HAPI_NO_VALUE */
    enum hapi_layout layout;
    enum hapi_dtype dtype, out_dtype;
    dnnl_memory_desc_t src, wei, wei_plain, bia, dst;
};

/* ONNX has (C, M/group, kH, kW), oneDNN wants ([G,] M/G, C/G, kH, kW): the same numbers by other strides. */
static dnnl_status_t weights_md(const struct hapi_dnn *b, struct deconv *c)
{
    const struct hapi_shape *s = &b->g->values[c->weights].shape;
    int64_t g = c->w.group, in = s->dim[0] / g, out = s->dim[1], h = c->w.kernel[0], w = c->w.kernel[1];
    dnnl_dims_t dims = {g, out, in, h, w}, strides = {in * out * h * w, h * w, out * h * w, w, 1};
    int skip = g > 1 ? 0 : 1, n = 5 - skip;
    dnnl_status_t st =
        dnnl_memory_desc_init_by_strides(&c->wei_plain, n, dims + skip, dnnl_f32, strides + skip);

    return st ? st
              : dnnl_memory_desc_init_by_tag(&c->wei, n, dims + skip, hapi_dnn_type(c->dtype),
                                             dnnl_format_tag_any);
}

static int deconv_pd(struct hapi_dnn *b, struct deconv *c, dnnl_primitive_desc_t *pd)
{
    const struct hapi_shape *xs = &b->g->values[c->x].shape, *os = &b->g->values[b->step->out].shape;
    const struct hapi_window *w = &c->w;
    dnnl_dims_t bias = {os->dim[1]}, stride = {w->stride[0], w->stride[1]},
                dilation = {w->dilation[0] - 1, w->dilation[1] - 1},
                begin = {w->pad_begin[0], w->pad_begin[1]}, end = {w->pad_end[0], w->pad_end[1]};
    dnnl_deconvolution_desc_t d;
    dnnl_primitive_attr_t attr;
    int rc = HAPI_DNN_NONE;

    if (!hapi_dnn_attr(false, NULL, &attr) && !hapi_dnn_md4(xs, c->dtype, c->layout, &c->src) &&
        !hapi_dnn_md4(os, c->out_dtype, c->layout, &c->dst) && !weights_md(b, c) &&
        !dnnl_memory_desc_init_by_tag(&c->bia, 1, bias, dnnl_f32, dnnl_a) &&
        !dnnl_dilated_deconvolution_forward_desc_init(&d, dnnl_forward_inference, dnnl_deconvolution_direct,
                                                      &c->src, &c->wei, c->bias >= 0 ? &c->bia : NULL,
                                                      &c->dst, stride, dilation, begin, end))
        rc = hapi_dnn_pd(b, &d, attr, pd);
    dnnl_primitive_attr_destroy(attr);
    return rc;
}

static int deconv_emit(struct hapi_dnn *b, struct deconv *c, dnnl_primitive_desc_t pd, struct hapi_err *err)
{
    const dnnl_memory_desc_t *wei = dnnl_primitive_desc_query_md(pd, dnnl_query_weights_md, 0);
    int bias = -1, n = 3;
    int x = hapi_dnn_need(b, c->x, c->dtype, c->layout, err);
    int weights = x < 0 ? x : hapi_dnn_weight_of(b, c->weights, &c->wei_plain, wei, err);

    if (weights >= 0 && c->bias >= 0)
        bias = hapi_dnn_need(b, c->bias, HAPI_F32, HAPI_LAYOUT_PLAIN, err);
    int y = weights < 0                ? weights
            : c->bias >= 0 && bias < 0 ? bias
                                       : hapi_dnn_make(b, b->step->out, c->out_dtype, c->layout, err);
    if (y < 0) {
        dnnl_primitive_desc_destroy(pd);
        return y;
    }
    struct hapi_dnn_arg args[4] = {{DNNL_ARG_SRC, &c->src, b->reps[x].storage},
                                   {DNNL_ARG_WEIGHTS, wei, weights},
                                   {DNNL_ARG_DST, &c->dst, b->reps[y].storage}};
    if (bias >= 0)
        args[n++] = (struct hapi_dnn_arg){DNNL_ARG_BIAS, &c->bia, b->reps[bias].storage};
    return hapi_dnn_execute(b, pd, args, n, err);
}

int hapi_dnn_deconv(struct hapi_dnn *b, struct hapi_err *err)
{
    const struct hapi_node *n = b->step->node;
    struct deconv c = {.x = n->in[0], .weights = n->in[1], .bias = n->n_in > 2 ? n->in[2] : HAPI_NO_VALUE};
    dnnl_primitive_desc_t pd;
    int rc = hapi_window_of(b->g, n, &c.w, err);

    if (rc)
        return rc;
    if (b->g->values[c.x].dtype != HAPI_F32 || b->g->values[c.x].shape.rank > 4)
        return HAPI_DNN_NONE;
    c.dtype = b->spec.dtype;
    c.out_dtype = b->out_of[b->step->out] >= 0 ? HAPI_F32 : c.dtype;
    rc = HAPI_DNN_NONE;
    for (int i = 0; i < 2 && rc == HAPI_DNN_NONE; i++) {
        c.layout = i == 0 ? HAPI_LAYOUT_NHWC : HAPI_LAYOUT_PLAIN;
        rc = deconv_pd(b, &c, &pd);
    }
    return rc ? rc : deconv_emit(b, &c, pd, err);
}
