/* ConvTranspose as oneDNN's deconvolution: channels-last, rank 3 as rank 4 with height 1, rank 5 with a
 * depth. */
#include <string.h>

#include "onednn.h"
#include "ref.h"

/* ONNX has (C, M/group, [kD,] kH, kW), oneDNN wants ([G,] M/G, C/G, ...): the same numbers by other strides.
 */
static dnnl_status_t weights_md(const struct hapi_dnn *b, struct hapi_dnn_conv *c,
                                const struct hapi_dnn_geometry *geo)
{
    const struct hapi_shape *s = &b->g->values[c->weights].shape;
    int64_t g = c->w.group, in = s->dim[0] / g, out = s->dim[1], size = 1;
    dnnl_dims_t dims = {g, out, in}, strides = {0};
    int skip = g > 1 ? 0 : 1, n = geo->spatial + 3 - skip;

    for (int i = geo->spatial - 1; i >= 0; i--) {
        dims[3 + i] = geo->kernel[i];
        strides[3 + i] = size;
        size *= geo->kernel[i];
    }
    strides[0] = in * out * size;
    strides[1] = size;
    strides[2] = out * size;
    dnnl_status_t st =
        dnnl_memory_desc_init_by_strides(&c->wei_plain, n, dims + skip, dnnl_f32, strides + skip);

    return st ? st
              : dnnl_memory_desc_init_by_tag(&c->wei, n, dims + skip, hapi_dnn_type(c->dtype),
                                             dnnl_format_tag_any);
}

static int deconv_pd(struct hapi_dnn *b, struct hapi_dnn_conv *c, dnnl_primitive_desc_t *pd)
{
    struct hapi_dnn_geometry geo;
    dnnl_deconvolution_desc_t d;
    dnnl_primitive_attr_t attr;
    int rc = HAPI_DNN_NONE;

    hapi_dnn_geometry_of(&c->w, hapi_dnn_spatial(b, c->x), &geo);
    if (!hapi_dnn_attr(false, NULL, &attr) && !hapi_dnn_conv_edges(b, c) && !weights_md(b, c, &geo) &&
        !dnnl_dilated_deconvolution_forward_desc_init(
            &d, dnnl_forward_inference, dnnl_deconvolution_direct, &c->src, &c->wei,
            c->bias >= 0 ? &c->bia : NULL, &c->dst, geo.stride, geo.dilation, geo.pad_begin, geo.pad_end))
        rc = hapi_dnn_pd(b, &d, attr, pd);
    dnnl_primitive_attr_destroy(attr);
    return rc;
}

static int deconv_emit(struct hapi_dnn *b, struct hapi_dnn_conv *c, dnnl_primitive_desc_t pd,
                       struct hapi_err *err)
{
    struct hapi_dnn_arg args[4];
    int n = hapi_dnn_conv_args(b, c, pd, args, err);
    int y = n < 0 ? n : hapi_dnn_make(b, b->step->out, c->out_dtype, c->layout, err);

    if (y < 0) {
        dnnl_primitive_desc_destroy(pd);
        return y;
    }
    args[2].storage = b->reps[y].storage;
    return hapi_dnn_execute(b, pd, args, n, err);
}

int hapi_dnn_deconv(struct hapi_dnn *b, struct hapi_err *err)
{
    const struct hapi_node *n = b->step->node;
    struct hapi_dnn_conv c = hapi_dnn_conv_of(b, n->in[0]);
    dnnl_primitive_desc_t pd;
    int rc = hapi_window_of(b->g, n, &c.w, err);

    if (rc)
        return rc;
    if (b->g->values[c.x].dtype != HAPI_F32 || b->g->values[c.x].shape.rank > 5)
        return HAPI_DNN_NONE;
    rc = HAPI_DNN_NONE;
    for (int i = 0; i < 2 && rc == HAPI_DNN_NONE; i++) {
        c.layout = i == 0 ? HAPI_LAYOUT_NHWC : HAPI_LAYOUT_PLAIN;
        rc = deconv_pd(b, &c, &pd);
    }
    return rc ? rc : deconv_emit(b, &c, pd, err);
}
