/* An operation graph in cuDNN's descriptors. */
#include "cudnn_descriptor.h"

#include <math.h>

cudnnBackendDescriptor_t hapi_cudnn_make(struct hapi_cudnn_builder *b, cudnnBackendDescriptorType_t type)
{
    cudnnBackendDescriptor_t d = NULL;

    if (!b->status && b->n == HAPI_CUDNN_DESCRIPTORS)
        b->status = CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED;
    if (b->status)
        return NULL;
    b->status = b->lib->BackendCreateDescriptor(type, &d);
    if (!b->status)
        b->made[b->n++] = d;
    return d;
}

void hapi_cudnn_put(struct hapi_cudnn_builder *b, cudnnBackendDescriptor_t d,
                    cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type, int64_t n,
                    const void *values)
{
    if (!b->status)
        b->status = b->lib->BackendSetAttribute(d, name, type, n, values);
}

void hapi_cudnn_done(struct hapi_cudnn_builder *b, cudnnBackendDescriptor_t d)
{
    if (!b->status)
        b->status = b->lib->BackendFinalize(d);
}

void hapi_cudnn_builder_fini(struct hapi_cudnn_builder *b)
{
    while (b->n)
        (void)b->lib->BackendDestroyDescriptor(b->made[--b->n]);
}

static cudnnDataType_t type_of(enum hapi_dtype d)
{
    switch (d) {
    case HAPI_F16:
        return CUDNN_DATA_HALF;
    case HAPI_BF16:
        return CUDNN_DATA_BFLOAT16;
    case HAPI_I8:
        return CUDNN_DATA_INT8;
    case HAPI_U8:
        return CUDNN_DATA_UINT8;
    default:
        return CUDNN_DATA_FLOAT;
    }
}

static void put_type(struct hapi_cudnn_builder *b, cudnnBackendDescriptor_t d,
                     cudnnBackendAttributeName_t name)
{
    const cudnnDataType_t f32 = CUDNN_DATA_FLOAT;

    hapi_cudnn_put(b, d, name, CUDNN_TYPE_DATA_TYPE, 1, &f32);
}

static void put_tensor(struct hapi_cudnn_builder *b, cudnnBackendDescriptor_t d,
                       cudnnBackendAttributeName_t name, cudnnBackendDescriptor_t tensor)
{
    hapi_cudnn_put(b, d, name, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &tensor);
}

static void put_float(struct hapi_cudnn_builder *b, cudnnBackendDescriptor_t d,
                      cudnnBackendAttributeName_t name, float v)
{
    double wide = (double)v;

    if (isfinite(v))
        hapi_cudnn_put(b, d, name, CUDNN_TYPE_DOUBLE, 1, &wide);
}

static cudnnBackendDescriptor_t tensor(struct hapi_cudnn_builder *b, const struct hapi_cudnn_tensor *t)
{
    cudnnBackendDescriptor_t d = hapi_cudnn_make(b, CUDNN_BACKEND_TENSOR_DESCRIPTOR);
    const cudnnDataType_t type = type_of(t->dtype);
    const int64_t alignment = t->by_value ? 4 : 16;

    hapi_cudnn_put(b, d, CUDNN_ATTR_TENSOR_DATA_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &type);
    hapi_cudnn_put(b, d, CUDNN_ATTR_TENSOR_DIMENSIONS, CUDNN_TYPE_INT64, t->rank, t->dim);
    hapi_cudnn_put(b, d, CUDNN_ATTR_TENSOR_STRIDES, CUDNN_TYPE_INT64, t->rank, t->stride);
    hapi_cudnn_put(b, d, CUDNN_ATTR_TENSOR_UNIQUE_ID, CUDNN_TYPE_INT64, 1, &t->uid);
    hapi_cudnn_put(b, d, CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, CUDNN_TYPE_INT64, 1, &alignment);
    hapi_cudnn_put(b, d, CUDNN_ATTR_TENSOR_IS_VIRTUAL, CUDNN_TYPE_BOOLEAN, 1, &t->is_virtual);
    if (t->by_value)
        hapi_cudnn_put(b, d, CUDNN_ATTR_TENSOR_IS_BY_VALUE, CUDNN_TYPE_BOOLEAN, 1, &t->by_value);
    hapi_cudnn_done(b, d);
    return d;
}

/* ------------------------------------------------------------------ ops */

/* Operands by position; the result is [HAPI_CUDNN_INPUTS]. */
typedef cudnnBackendDescriptor_t operands[HAPI_CUDNN_INPUTS + 1];

static cudnnBackendDescriptor_t conv(struct hapi_cudnn_builder *b, const struct hapi_cudnn_op *op,
                                     const operands t)
{
    cudnnBackendDescriptor_t d = hapi_cudnn_make(b, CUDNN_BACKEND_CONVOLUTION_DESCRIPTOR), o;
    const cudnnConvolutionMode_t mode = CUDNN_CROSS_CORRELATION;
    const int64_t n = op->spatial;
    const float one = 1, zero = 0;

    put_type(b, d, CUDNN_ATTR_CONVOLUTION_COMP_TYPE);
    hapi_cudnn_put(b, d, CUDNN_ATTR_CONVOLUTION_CONV_MODE, CUDNN_TYPE_CONVOLUTION_MODE, 1, &mode);
    hapi_cudnn_put(b, d, CUDNN_ATTR_CONVOLUTION_SPATIAL_DIMS, CUDNN_TYPE_INT64, 1, &n);
    hapi_cudnn_put(b, d, CUDNN_ATTR_CONVOLUTION_DILATIONS, CUDNN_TYPE_INT64, n, op->dilation);
    hapi_cudnn_put(b, d, CUDNN_ATTR_CONVOLUTION_FILTER_STRIDES, CUDNN_TYPE_INT64, n, op->stride);
    hapi_cudnn_put(b, d, CUDNN_ATTR_CONVOLUTION_PRE_PADDINGS, CUDNN_TYPE_INT64, n, op->pad_begin);
    hapi_cudnn_put(b, d, CUDNN_ATTR_CONVOLUTION_POST_PADDINGS, CUDNN_TYPE_INT64, n, op->pad_end);
    hapi_cudnn_done(b, d);
    o = hapi_cudnn_make(b, CUDNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR);
    put_tensor(b, o, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_CONV_DESC, d);
    put_tensor(b, o, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_X, t[0]);
    put_tensor(b, o, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_W, t[1]);
    put_tensor(b, o, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_Y, t[HAPI_CUDNN_INPUTS]);
    hapi_cudnn_put(b, o, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_ALPHA, CUDNN_TYPE_FLOAT, 1, &one);
    hapi_cudnn_put(b, o, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_BETA, CUDNN_TYPE_FLOAT, 1, &zero);
    return o;
}

static cudnnBackendDescriptor_t matmul(struct hapi_cudnn_builder *b, const struct hapi_cudnn_op *op,
                                       const operands t)
{
    cudnnBackendDescriptor_t d = hapi_cudnn_make(b, CUDNN_BACKEND_MATMUL_DESCRIPTOR), o;

    (void)op;
    put_type(b, d, CUDNN_ATTR_MATMUL_COMP_TYPE);
    hapi_cudnn_done(b, d);
    o = hapi_cudnn_make(b, CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR);
    put_tensor(b, o, CUDNN_ATTR_OPERATION_MATMUL_DESC, d);
    put_tensor(b, o, CUDNN_ATTR_OPERATION_MATMUL_ADESC, t[0]);
    put_tensor(b, o, CUDNN_ATTR_OPERATION_MATMUL_BDESC, t[1]);
    put_tensor(b, o, CUDNN_ATTR_OPERATION_MATMUL_CDESC, t[HAPI_CUDNN_INPUTS]);
    return o;
}

static cudnnBackendDescriptor_t pointwise(struct hapi_cudnn_builder *b, const struct hapi_cudnn_op *op,
                                          const operands t)
{
    static const cudnnPointwiseMode_t modes[] = {
        [HAPI_CUDNN_ADD] = CUDNN_POINTWISE_ADD,
        [HAPI_CUDNN_MUL] = CUDNN_POINTWISE_MUL,
        [HAPI_CUDNN_RELU] = CUDNN_POINTWISE_RELU_FWD,
        [HAPI_CUDNN_SIGMOID] = CUDNN_POINTWISE_SIGMOID_FWD,
        [HAPI_CUDNN_SWISH] = CUDNN_POINTWISE_SWISH_FWD,
        [HAPI_CUDNN_TANH] = CUDNN_POINTWISE_TANH_FWD,
        [HAPI_CUDNN_ELU] = CUDNN_POINTWISE_ELU_FWD,
        [HAPI_CUDNN_GELU] = CUDNN_POINTWISE_GELU_FWD,
        [HAPI_CUDNN_GELU_TANH] = CUDNN_POINTWISE_GELU_APPROX_TANH_FWD,
        [HAPI_CUDNN_IDENTITY] = CUDNN_POINTWISE_IDENTITY,
    };
    cudnnBackendDescriptor_t d = hapi_cudnn_make(b, CUDNN_BACKEND_POINTWISE_DESCRIPTOR), o;

    hapi_cudnn_put(b, d, CUDNN_ATTR_POINTWISE_MODE, CUDNN_TYPE_POINTWISE_MODE, 1, &modes[op->mode]);
    put_type(b, d, CUDNN_ATTR_POINTWISE_MATH_PREC);
    if (op->mode == HAPI_CUDNN_RELU) {
        put_float(b, d, CUDNN_ATTR_POINTWISE_RELU_LOWER_CLIP, op->lower);
        put_float(b, d, CUDNN_ATTR_POINTWISE_RELU_UPPER_CLIP, op->upper);
        put_float(b, d, CUDNN_ATTR_POINTWISE_RELU_LOWER_CLIP_SLOPE, op->slope);
    }
    if (op->mode == HAPI_CUDNN_ELU)
        put_float(b, d, CUDNN_ATTR_POINTWISE_ELU_ALPHA, op->slope);
    hapi_cudnn_done(b, d);
    o = hapi_cudnn_make(b, CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR);
    put_tensor(b, o, CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, d);
    put_tensor(b, o, CUDNN_ATTR_OPERATION_POINTWISE_XDESC, t[0]);
    if (op->n_in > 1)
        put_tensor(b, o, CUDNN_ATTR_OPERATION_POINTWISE_BDESC, t[1]);
    put_tensor(b, o, CUDNN_ATTR_OPERATION_POINTWISE_YDESC, t[HAPI_CUDNN_INPUTS]);
    return o;
}

static cudnnBackendDescriptor_t resample(struct hapi_cudnn_builder *b, const struct hapi_cudnn_op *op,
                                         const operands t)
{
    cudnnBackendDescriptor_t d = hapi_cudnn_make(b, CUDNN_BACKEND_RESAMPLE_DESCRIPTOR), o;
    const cudnnResampleMode_t mode = op->mode == HAPI_CUDNN_MAX_POOL ? CUDNN_RESAMPLE_MAXPOOL
                                     : op->mode == HAPI_CUDNN_AVG_POOL
                                         ? CUDNN_RESAMPLE_AVGPOOL_EXCLUDE_PADDING
                                         : CUDNN_RESAMPLE_AVGPOOL_INCLUDE_PADDING;
    const cudnnPaddingMode_t padding = op->mode == HAPI_CUDNN_MAX_POOL ? CUDNN_NEG_INF_PAD : CUDNN_ZERO_PAD;
    const int64_t n = op->spatial;
    cudnnFraction_t window[HAPI_CUDNN_SPATIAL], stride[HAPI_CUDNN_SPATIAL], pre[HAPI_CUDNN_SPATIAL],
        post[HAPI_CUDNN_SPATIAL];

    for (int i = 0; i < n; i++) {
        window[i] = (cudnnFraction_t){op->kernel[i], 1};
        stride[i] = (cudnnFraction_t){op->stride[i], 1};
        pre[i] = (cudnnFraction_t){op->pad_begin[i], 1};
        post[i] = (cudnnFraction_t){op->pad_end[i], 1};
    }
    hapi_cudnn_put(b, d, CUDNN_ATTR_RESAMPLE_MODE, CUDNN_TYPE_RESAMPLE_MODE, 1, &mode);
    put_type(b, d, CUDNN_ATTR_RESAMPLE_COMP_TYPE);
    hapi_cudnn_put(b, d, CUDNN_ATTR_RESAMPLE_PADDING_MODE, CUDNN_TYPE_PADDING_MODE, 1, &padding);
    hapi_cudnn_put(b, d, CUDNN_ATTR_RESAMPLE_SPATIAL_DIMS, CUDNN_TYPE_INT64, 1, &n);
    hapi_cudnn_put(b, d, CUDNN_ATTR_RESAMPLE_WINDOW_DIMS, CUDNN_TYPE_FRACTION, n, window);
    hapi_cudnn_put(b, d, CUDNN_ATTR_RESAMPLE_STRIDES, CUDNN_TYPE_FRACTION, n, stride);
    hapi_cudnn_put(b, d, CUDNN_ATTR_RESAMPLE_PRE_PADDINGS, CUDNN_TYPE_FRACTION, n, pre);
    hapi_cudnn_put(b, d, CUDNN_ATTR_RESAMPLE_POST_PADDINGS, CUDNN_TYPE_FRACTION, n, post);
    hapi_cudnn_done(b, d);
    o = hapi_cudnn_make(b, CUDNN_BACKEND_OPERATION_RESAMPLE_FWD_DESCRIPTOR);
    put_tensor(b, o, CUDNN_ATTR_OPERATION_RESAMPLE_FWD_DESC, d);
    put_tensor(b, o, CUDNN_ATTR_OPERATION_RESAMPLE_FWD_XDESC, t[0]);
    put_tensor(b, o, CUDNN_ATTR_OPERATION_RESAMPLE_FWD_YDESC, t[HAPI_CUDNN_INPUTS]);
    return o;
}

static cudnnBackendDescriptor_t layer_norm(struct hapi_cudnn_builder *b, const struct hapi_cudnn_op *op,
                                           const operands t)
{
    cudnnBackendDescriptor_t o = hapi_cudnn_make(b, CUDNN_BACKEND_OPERATION_NORM_FORWARD_DESCRIPTOR);
    const cudnnBackendNormMode_t mode = CUDNN_LAYER_NORM;
    const cudnnBackendNormFwdPhase_t phase = CUDNN_NORM_FWD_INFERENCE;

    (void)op;
    hapi_cudnn_put(b, o, CUDNN_ATTR_OPERATION_NORM_FWD_MODE, CUDNN_TYPE_NORM_MODE, 1, &mode);
    hapi_cudnn_put(b, o, CUDNN_ATTR_OPERATION_NORM_FWD_PHASE, CUDNN_TYPE_NORM_FWD_PHASE, 1, &phase);
    put_tensor(b, o, CUDNN_ATTR_OPERATION_NORM_FWD_XDESC, t[0]);
    put_tensor(b, o, CUDNN_ATTR_OPERATION_NORM_FWD_SCALE_DESC, t[1]);
    put_tensor(b, o, CUDNN_ATTR_OPERATION_NORM_FWD_BIAS_DESC, t[2]);
    put_tensor(b, o, CUDNN_ATTR_OPERATION_NORM_FWD_EPSILON_DESC, t[3]);
    put_tensor(b, o, CUDNN_ATTR_OPERATION_NORM_FWD_YDESC, t[HAPI_CUDNN_INPUTS]);
    return o;
}

static cudnnBackendDescriptor_t sdpa(struct hapi_cudnn_builder *b, const struct hapi_cudnn_op *op,
                                     const operands t)
{
    cudnnBackendDescriptor_t o = hapi_cudnn_make(b, CUDNN_BACKEND_OPERATION_SDPA_FWD_DESCRIPTOR);

    (void)op;
    put_tensor(b, o, CUDNN_ATTR_OPERATION_SDPA_FWD_QDESC, t[0]);
    put_tensor(b, o, CUDNN_ATTR_OPERATION_SDPA_FWD_KDESC, t[1]);
    put_tensor(b, o, CUDNN_ATTR_OPERATION_SDPA_FWD_VDESC, t[2]);
    put_tensor(b, o, CUDNN_ATTR_OPERATION_SDPA_FWD_SCALEDESC, t[3]);
    put_tensor(b, o, CUDNN_ATTR_OPERATION_SDPA_FWD_ODESC, t[HAPI_CUDNN_INPUTS]);
    return o;
}

cudnnBackendDescriptor_t hapi_cudnn_describe(struct hapi_cudnn_builder *b, const struct hapi_cudnn_graph *g)
{
    static cudnnBackendDescriptor_t (*const by_kind[])(struct hapi_cudnn_builder *,
                                                       const struct hapi_cudnn_op *, const operands) = {
        [HAPI_CUDNN_CONV] = conv,
        [HAPI_CUDNN_MATMUL] = matmul,
        [HAPI_CUDNN_POINTWISE] = pointwise,
        [HAPI_CUDNN_RESAMPLE] = resample,
        [HAPI_CUDNN_LAYER_NORM] = layer_norm,
        [HAPI_CUDNN_SDPA] = sdpa,
    };
    cudnnBackendDescriptor_t tensors[HAPI_CUDNN_TENSORS], ops[HAPI_CUDNN_OPS], graph;

    for (int i = 0; i < g->n_tensors; i++)
        tensors[i] = tensor(b, &g->tensors[i]);
    for (int i = 0; i < g->n_ops; i++) {
        operands t = {NULL};
        for (int k = 0; k < g->ops[i].n_in; k++)
            t[k] = tensors[g->ops[i].in[k]];
        t[HAPI_CUDNN_INPUTS] = tensors[g->ops[i].out];
        ops[i] = by_kind[g->ops[i].kind](b, &g->ops[i], t);
        hapi_cudnn_done(b, ops[i]);
    }
    graph = hapi_cudnn_make(b, CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR);
    if (b->handle)
        hapi_cudnn_put(b, graph, CUDNN_ATTR_OPERATIONGRAPH_HANDLE, CUDNN_TYPE_HANDLE, 1, &b->handle);
    hapi_cudnn_put(b, graph, CUDNN_ATTR_OPERATIONGRAPH_OPS, CUDNN_TYPE_BACKEND_DESCRIPTOR, g->n_ops, ops);
    hapi_cudnn_done(b, graph);
    return b->status ? NULL : graph;
}
