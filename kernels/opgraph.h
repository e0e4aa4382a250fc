/*
 * Operation graphs as data: what one cuDNN execution plan computes, before cuDNN sees it. Internal to
 * kernels/.
 *
 *     cudnn_lower.c ──> struct hapi_cudnn_graph ──> hapi_cudnn_graph_check() ──> hapi_cudnn_plan_new()
 *                       a few ops, their tensors     what cuDNN lets pass         engine, workspace
 *
 * Shapes are logical: (N,C,H,W) for convolutions and pools, (B,M,K) for products, (N,C,1,1) for norms.
 * Strides are in elements. Tensors that only ops of the same graph see are virtual: they never exist in
 * memory. The arithmetic of every op is f32. Plain data, no heap: one graph is a few kilobytes. Thread-safe:
 * no state.
 */
#ifndef HAPI_KERNELS_OPGRAPH_H
#define HAPI_KERNELS_OPGRAPH_H

#include "err.h"
#include "tensor.h"

enum {
    HAPI_CUDNN_TENSORS = 24,
    HAPI_CUDNN_OPS = 10,
    HAPI_CUDNN_RANK = 5,
    HAPI_CUDNN_INPUTS = 6,
    HAPI_CUDNN_SPATIAL = 3
};

struct hapi_cudnn_tensor {
    int64_t uid; /* > 0, unique in the graph: how run time names its memory */
    enum hapi_dtype dtype;
    int rank;
    int64_t dim[HAPI_CUDNN_RANK], stride[HAPI_CUDNN_RANK];
    bool is_virtual;
    bool by_value; /* one f32 that the host gives: `value` */
    float value;
};

enum hapi_cudnn_op_kind {
    HAPI_CUDNN_CONV,       /* in: x (N,C,H,W), w (K,C/groups,R,S) */
    HAPI_CUDNN_MATMUL,     /* in: a (B,M,K), b (B or 1,K,N) */
    HAPI_CUDNN_POINTWISE,  /* in: x, b for modes of two operands, which broadcasts; t for SELECT */
    HAPI_CUDNN_RESAMPLE,   /* in: x. Max and average pools */
    HAPI_CUDNN_LAYER_NORM, /* in: x (N,C,1,1), scale, bias (1,C,1,1), epsilon by value */
    HAPI_CUDNN_SDPA        /* in: q, k, v (B,heads,S,D), scale by value. softmax(scale q k^T) v */
};

enum hapi_cudnn_mode {
    HAPI_CUDNN_ADD,
    HAPI_CUDNN_MUL,
    HAPI_CUDNN_RELU, /* clipped: min(max(x, lower), upper), below lower with slope */
    HAPI_CUDNN_SIGMOID,
    HAPI_CUDNN_SWISH,
    HAPI_CUDNN_TANH,
    HAPI_CUDNN_ELU,
    HAPI_CUDNN_GELU,
    HAPI_CUDNN_GELU_TANH,
    HAPI_CUDNN_IDENTITY,
    HAPI_CUDNN_MAX_POOL,          /* RESAMPLE; padding counts as -infinity */
    HAPI_CUDNN_AVG_POOL,          /* padding not counted */
    HAPI_CUDNN_AVG_POOL_INCLUDING /* padding counted */
};

struct hapi_cudnn_op {
    enum hapi_cudnn_op_kind kind;
    enum hapi_cudnn_mode mode; /* POINTWISE, RESAMPLE */
    int n_in;
    int in[HAPI_CUDNN_INPUTS]; /* indices of tensors */
    int out;
    int spatial; /* CONV, RESAMPLE: 2 or 3, and as many of each of these */
    int64_t kernel[HAPI_CUDNN_SPATIAL], stride[HAPI_CUDNN_SPATIAL], dilation[HAPI_CUDNN_SPATIAL];
    int64_t pad_begin[HAPI_CUDNN_SPATIAL], pad_end[HAPI_CUDNN_SPATIAL];
    float lower, upper, slope; /* RELU; slope also ELU's alpha */
};

struct hapi_cudnn_graph {
    const char *name; /* of the first ONNX node that it computes: for messages; borrowed */
    struct hapi_cudnn_tensor tensors[HAPI_CUDNN_TENSORS];
    struct hapi_cudnn_op ops[HAPI_CUDNN_OPS];
    int n_tensors, n_ops;
};

/* Append; -1 when the graph is full, which hapi_cudnn_graph_check() reports. uid: the tensor's index + 1. */
int hapi_cudnn_tensor_add(struct hapi_cudnn_graph *g, enum hapi_dtype dtype, int rank, const int64_t *dim,
                          const int64_t *stride, bool is_virtual);
int hapi_cudnn_scalar_add(struct hapi_cudnn_graph *g, float value);
struct hapi_cudnn_op *hapi_cudnn_op_add(struct hapi_cudnn_graph *g, enum hapi_cudnn_op_kind kind, int out);

/* Everything that must hold before cuDNN is asked: among it what cuDNN itself lets pass (two tensors of one
 * uid, a result that stays virtual, a virtual one that nothing makes, a result written twice), and what it
 * would say in its own words (channels, shapes of windows and products, dtypes). Errors, in order of check,
 * each naming g->name, the op and the numbers: HAPI_ETOOBIG (full), HAPI_EINVAL, HAPI_EUNSUPPORTED (dtype,
 * rank). */
int hapi_cudnn_graph_check(const struct hapi_cudnn_graph *g, struct hapi_err *err);

/* SHA-256 of all that makes two graphs the same: everything but the name. */
enum { HAPI_CUDNN_KEY = 32 };
void hapi_cudnn_graph_key(const struct hapi_cudnn_graph *g, uint8_t out[HAPI_CUDNN_KEY]);

const char *hapi_cudnn_op_text(const struct hapi_cudnn_op *op); /* "conv", "relu": static */
/* "conv+add+add+relu" into buf, terminated. Returns buf. */
char *hapi_cudnn_graph_text(const struct hapi_cudnn_graph *g, char *buf, size_t size);

#endif
