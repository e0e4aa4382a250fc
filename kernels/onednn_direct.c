/* Convolutions on a kernel of our own (vector.h), where oneDNN's is slow. */
#include <string.h>

#include "onednn.h"
#include "ref.h"

/* Whether it takes the window, and is the faster one: of images with few channels, oneDNN's is, but for large
 * windows, which it leaves to a product. */
static bool takes(const struct hapi_dnn *b, const struct hapi_dnn_conv *c)
{
    const struct hapi_shape *k = &b->g->values[c->weights].shape;
    const struct hapi_window *w = &c->w;
    int64_t channels = k->dim[1], taps = w->kernel[0] * w->kernel[1];

    return b->vector && b->vector->conv && c->dtype == HAPI_F32 && c->out_dtype == HAPI_F32 && k->rank == 4 &&
           w->group == 1 && w->dilation[1] == 1 && taps > 1 && k->dim[0] % 8 == 0 &&
           k->dim[0] >= HAPI_CONV_MAPS && w->kernel[1] * channels <= HAPI_CONV_RUN_MAX &&
           (channels >= 16 || taps * channels > 256);
}

static int describe(const struct hapi_dnn *b, const struct hapi_dnn_conv *c, dnnl_memory_desc_t *plain,
                    dnnl_memory_desc_t *blocks)
{
    const struct hapi_shape *k = &b->g->values[c->weights].shape;
    dnnl_dims_t dims = {k->dim[0], k->dim[1], k->dim[2], k->dim[3]};

    return dnnl_memory_desc_init_by_tag(plain, 4, dims, dnnl_f32, dnnl_abcd) ||
                   dnnl_memory_desc_init_by_tag(blocks, 4, dims, dnnl_f32, dnnl_Acdb16a)
               ? HAPI_DNN_NONE
               : HAPI_OK;
}

static struct hapi_conv shape_of(const struct hapi_dnn *b, const struct hapi_dnn_conv *c)
{
    const struct hapi_shape *x = &b->g->values[c->x].shape, *y = &b->g->values[b->step->out].shape;
    const struct hapi_window *w = &c->w;

    return (struct hapi_conv){
        .images = x->dim[0],
        .in = {x->dim[2], x->dim[3]},
        .channels = x->dim[1],
        .out = {y->dim[2], y->dim[3]},
        .maps = y->dim[1],
        .kernel = {w->kernel[0], w->kernel[1]},
        .stride = {w->stride[0], w->stride[1]},
        .pad = {w->pad_begin[0], w->pad_begin[1]},
        .dilation = w->dilation[0],
    };
}

int hapi_dnn_direct_conv(struct hapi_dnn *b, const struct hapi_dnn_conv *c, struct hapi_err *err)
{
    const struct hapi_step *s = b->step;
    enum hapi_act_kind act = s->act.kind;
    bool fused = act == HAPI_ACT_NONE || act == HAPI_ACT_RELU || act == HAPI_ACT_CLIP;
    dnnl_memory_desc_t plain, blocks;
    int bias = -1, plus = -1;

    if (!takes(b, c) || !hapi_ref_count(&b->g->values[s->out].shape) || describe(b, c, &plain, &blocks))
        return HAPI_DNN_NONE;
    int x = hapi_dnn_need(b, c->x, HAPI_F32, HAPI_LAYOUT_NHWC, err);
    int weights = x < 0 ? x : hapi_dnn_weight_of(b, c->weights, &plain, &blocks, err);
    if (weights >= 0 && c->bias >= 0)
        bias = hapi_dnn_need(b, c->bias, HAPI_F32, HAPI_LAYOUT_PLAIN, err);
    if (weights >= 0 && (c->bias < 0 || bias >= 0) && s->residual >= 0)
        plus = hapi_dnn_need(b, s->residual, HAPI_F32, HAPI_LAYOUT_NHWC, err);
    if (weights < 0 || (c->bias >= 0 && bias < 0) || (s->residual >= 0 && plus < 0))
        return weights < 0 ? weights : c->bias >= 0 && bias < 0 ? bias : plus;
    int y = hapi_dnn_make(b, s->out, HAPI_F32, HAPI_LAYOUT_NHWC, err);
    if (y < 0)
        return y;
    struct hapi_dnn_op *op =
        hapi_dnn_vector_op(b, HAPI_DNN_CONV, "hapi:conv", b->reps[x].storage, b->reps[y].storage, weights,
                           bias < 0 ? -1 : b->reps[bias].storage);
    if (!op)
        return hapi_err_set(err, HAPI_ENOMEM, 0, "no memory for a plan");
    op->plus = plus < 0 ? -1 : b->reps[plus].storage;
    if (op->plus >= 0)
        hapi_dnn_touch(b, op->plus);
    op->vector.conv = shape_of(b, c);
    if (fused)
        op->vector.conv.act = s->act;
    return fused ? HAPI_OK : hapi_dnn_activate(b, y, y, &s->act, err);
}
