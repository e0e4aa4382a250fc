#include "gpu_tail.h"

#include <math.h>

bool hapi_gpu_act_mode(const struct hapi_act *act, struct hapi_cudnn_op *op)
{
    op->lower = 0;
    op->upper = INFINITY;
    op->slope = 0;
    switch (act->kind) {
    case HAPI_ACT_RELU:
        op->mode = HAPI_CUDNN_RELU;
        op->slope = act->alpha;
        return true;
    case HAPI_ACT_CLIP:
        op->mode = HAPI_CUDNN_RELU;
        op->lower = act->alpha;
        op->upper = act->beta;
        return isfinite(act->alpha);
    case HAPI_ACT_SIGMOID:
        op->mode = HAPI_CUDNN_SIGMOID;
        return true;
    case HAPI_ACT_SWISH:
        op->mode = HAPI_CUDNN_SWISH;
        return true;
    case HAPI_ACT_TANH:
        op->mode = HAPI_CUDNN_TANH;
        return true;
    case HAPI_ACT_ELU:
        op->mode = HAPI_CUDNN_ELU;
        op->slope = act->alpha;
        return true;
    case HAPI_ACT_GELU:
        op->mode = HAPI_CUDNN_GELU;
        return true;
    case HAPI_ACT_GELU_TANH:
        op->mode = HAPI_CUDNN_GELU_TANH;
        return true;
    default:
        return false;
    }
}

void hapi_gpu_op_unary(struct hapi_cudnn_op *op, int x)
{
    op->n_in = 1;
    op->in[0] = x;
}

void hapi_gpu_op_binary(struct hapi_cudnn_op *op, enum hapi_cudnn_mode mode, int x, int y)
{
    op->mode = mode;
    op->n_in = 2;
    op->in[0] = x;
    op->in[1] = y;
}

int hapi_gpu_tail_ops(const struct hapi_gpu_tail *tail)
{
    return (tail->bias != NULL) + (tail->residual != NULL) + (tail->act.kind != HAPI_ACT_NONE);
}

/* The tensor after one more op: virtual while any are left. */
static int next(struct hapi_cudnn_graph *g, const struct hapi_gpu_tail_tensors *t, int *left)
{
    bool last = --*left == 0;

    return hapi_cudnn_tensor_add(g, last ? t->dtype : HAPI_F32, t->rank, t->dim, t->stride, !last);
}

int hapi_gpu_tail_add(struct hapi_cudnn_graph *g, const struct hapi_gpu_tail *tail,
                      const struct hapi_gpu_tail_tensors *t, int x, const struct hapi_gpu_view **views)
{
    int left = hapi_gpu_tail_ops(tail), other, y;
    struct hapi_cudnn_op *op;

    if (tail->bias) {
        int64_t stride[HAPI_CUDNN_RANK], n = 1;
        for (int i = 0; i < t->rank; i++)
            n *= t->bias_dim[i];
        for (int i = 0; i < t->rank; i++) /* one dim is not 1, and lies densely */
            stride[i] = t->bias_dim[i] == 1 ? n : 1;
        other = hapi_cudnn_tensor_add(g, HAPI_F32, t->rank, t->bias_dim, stride, false);
        views[other] = tail->bias;
        y = next(g, t, &left);
        op = hapi_cudnn_op_add(g, HAPI_CUDNN_POINTWISE, y);
        hapi_gpu_op_binary(op, HAPI_CUDNN_ADD, x, other);
        x = y;
    }
    if (tail->residual) {
        other = hapi_cudnn_tensor_add(g, t->dtype, t->rank, t->dim, t->residual_stride, false);
        views[other] = tail->residual;
        y = next(g, t, &left);
        op = hapi_cudnn_op_add(g, HAPI_CUDNN_POINTWISE, y);
        hapi_gpu_op_binary(op, HAPI_CUDNN_ADD, x, other);
        x = y;
    }
    if (tail->act.kind != HAPI_ACT_NONE) {
        y = next(g, t, &left);
        op = hapi_cudnn_op_add(g, HAPI_CUDNN_POINTWISE, y);
        (void)hapi_gpu_act_mode(&tail->act, op); /* the caller has looked */
        hapi_gpu_op_unary(op, x);
        x = y;
    }
    return x;
}

int hapi_gpu_tail_run(struct hapi_gpu_build *b, const struct hapi_gpu_view *y,
                      const struct hapi_gpu_tail *tail)
{
    const struct hapi_gpu_view *first = tail->bias ? tail->bias : tail->residual;

    if (!hapi_gpu_tail_ops(tail))
        return HAPI_OK;
    if (tail->bias && tail->residual)
        return hapi_gpu_pointwise(b, HAPI_GPU_ADD_ADD, &tail->act, y, y, tail->bias, tail->residual);
    return hapi_gpu_pointwise(b, first ? HAPI_GPU_ADD : HAPI_GPU_COPY, &tail->act, y, y, first, NULL);
}
