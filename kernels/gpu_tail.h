/* What follows a product inside of its operation graph: bias, residual, activation. Internal to gpu_*.c. */
#ifndef HAPI_KERNELS_GPU_TAIL_H
#define HAPI_KERNELS_GPU_TAIL_H

#include "gpu_build.h"

struct hapi_gpu_tail {
    const struct hapi_gpu_view *bias, *residual; /* or NULL */
    struct hapi_act act;
};

/* How its tensors lie: those in between are virtual, the last one has these strides. */
struct hapi_gpu_tail_tensors {
    enum hapi_dtype dtype;
    int rank;
    int64_t dim[HAPI_CUDNN_RANK], stride[HAPI_CUDNN_RANK], residual_stride[HAPI_CUDNN_RANK],
        bias_dim[HAPI_CUDNN_RANK];
};

/* cuDNN's mode for the activation; false: none, a kernel of ours does it. */
bool hapi_gpu_act_mode(const struct hapi_act *act, struct hapi_cudnn_op *op);
void hapi_gpu_op_unary(struct hapi_cudnn_op *op, int x);
void hapi_gpu_op_binary(struct hapi_cudnn_op *op, enum hapi_cudnn_mode mode, int x, int y);
int hapi_gpu_tail_ops(const struct hapi_gpu_tail *tail);
/* Appends them after tensor x (virtual f32, unless there are none). Returns the tensor of the result. */
int hapi_gpu_tail_add(struct hapi_cudnn_graph *g, const struct hapi_gpu_tail *tail,
                      const struct hapi_gpu_tail_tensors *t, int x, const struct hapi_gpu_view **views);

/* The same by a kernel of ours, in place: what cuDNN did not take. bias and residual are of y's shape. */
int hapi_gpu_tail_run(struct hapi_gpu_build *b, const struct hapi_gpu_view *y,
                      const struct hapi_gpu_tail *tail);

/* Constants of the affine map that the step's batch norm is. */
int hapi_gpu_affine_constants(struct hapi_gpu_build *b, const struct hapi_step *s,
                              struct hapi_gpu_view *scale, struct hapi_gpu_view *shift);

#endif
