#include "ref.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "convert.h"

int hapi_ref_fail(const struct hapi_ref_call *c, int code, const char *fmt, ...)
{
    char text[256];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    return hapi_err_set(c->err, code, 0, "node `%s` (%s): %s", c->n->name, hapi_op_name(c->n->op), text);
}

const struct hapi_value *hapi_ref_in(const struct hapi_ref_call *c, int i)
{
    return i < c->n->n_in && c->n->in[i] >= 0 && c->in[i] ? &c->g->values[c->n->in[i]] : NULL;
}

const struct hapi_value *hapi_ref_out(const struct hapi_ref_call *c, int i)
{
    return i < c->n->n_out && c->n->out[i] >= 0 && c->out[i] ? &c->g->values[c->n->out[i]] : NULL;
}

int64_t hapi_ref_span(const struct hapi_shape *s, int from, int to)
{
    int64_t n = 1;
    for (int i = from; i < to; i++)
        n *= s->dim[i];
    return n;
}

int64_t hapi_ref_count(const struct hapi_shape *s)
{
    return hapi_ref_span(s, 0, s->rank);
}

int hapi_ref_axis(int64_t axis, int rank)
{
    if (axis < -rank || axis >= rank)
        return -1;
    return (int)(axis < 0 ? axis + rank : axis);
}

bool hapi_ref_is_float(enum hapi_dtype d)
{
    return d == HAPI_F32 || d == HAPI_F64 || d == HAPI_F16 || d == HAPI_BF16;
}

static double half_get(const void *p, enum hapi_dtype d, int64_t i)
{
    float f;
    hapi_convert(&f, HAPI_F32, (const uint16_t *)p + i, d, 1);
    return f;
}

double hapi_ref_get_f(const void *p, enum hapi_dtype d, int64_t i)
{
    switch (d) {
    case HAPI_F32:
        return ((const float *)p)[i];
    case HAPI_F64:
        return ((const double *)p)[i];
    case HAPI_F16:
    case HAPI_BF16:
        return half_get(p, d, i);
    case HAPI_U64:
        return (double)((const uint64_t *)p)[i];
    default:
        return (double)hapi_ref_get_i(p, d, i);
    }
}

/* A float outside int64 has no meaning here; the clamp keeps the cast defined. */
static int64_t truncate(double v)
{
    if (!(v > -9.2e18))
        return v != v ? 0 : INT64_MIN;
    return v < 9.2e18 ? (int64_t)v : INT64_MAX;
}

int64_t hapi_ref_get_i(const void *p, enum hapi_dtype d, int64_t i)
{
    switch (d) {
    case HAPI_I8:
        return ((const int8_t *)p)[i];
    case HAPI_U8:
        return ((const uint8_t *)p)[i];
    case HAPI_BOOL:
        return ((const uint8_t *)p)[i] != 0;
    case HAPI_I16:
        return ((const int16_t *)p)[i];
    case HAPI_U16:
        return ((const uint16_t *)p)[i];
    case HAPI_I32:
        return ((const int32_t *)p)[i];
    case HAPI_U32:
        return ((const uint32_t *)p)[i];
    case HAPI_I64:
    case HAPI_U64:
        return ((const int64_t *)p)[i];
    default:
        return truncate(hapi_ref_get_f(p, d, i));
    }
}

void hapi_ref_put_f(void *p, enum hapi_dtype d, int64_t i, double v)
{
    float f = (float)v;

    switch (d) {
    case HAPI_F32:
        ((float *)p)[i] = f;
        break;
    case HAPI_F64:
        ((double *)p)[i] = v;
        break;
    case HAPI_F16:
    case HAPI_BF16:
        hapi_convert((uint16_t *)p + i, d, &f, HAPI_F32, 1);
        break;
    case HAPI_BOOL:
        ((uint8_t *)p)[i] = v != 0;
        break;
    case HAPI_U64:
        ((uint64_t *)p)[i] =
            v >= 9.2e18 ? (v < 1.8446744073709551e19 ? (uint64_t)v : UINT64_MAX) : (uint64_t)truncate(v);
        break;
    default:
        hapi_ref_put_i(p, d, i, truncate(v));
    }
}

void hapi_ref_put_i(void *p, enum hapi_dtype d, int64_t i, int64_t v)
{
    switch (d) {
    case HAPI_I8:
    case HAPI_U8:
        ((uint8_t *)p)[i] = (uint8_t)v;
        break;
    case HAPI_BOOL:
        ((uint8_t *)p)[i] = v != 0;
        break;
    case HAPI_I16:
    case HAPI_U16:
        ((uint16_t *)p)[i] = (uint16_t)v;
        break;
    case HAPI_I32:
    case HAPI_U32:
        ((uint32_t *)p)[i] = (uint32_t)v;
        break;
    case HAPI_I64:
    case HAPI_U64:
        ((int64_t *)p)[i] = v;
        break;
    default:
        hapi_ref_put_f(p, d, i, (double)v);
    }
}

void hapi_ref_walk_init(struct hapi_ref_walk *w, const struct hapi_shape *out)
{
    memset(w, 0, sizeof *w);
    w->rank = out->rank ? out->rank : 1;
    w->dim[0] = 1;
    for (int i = 0; i < out->rank; i++)
        w->dim[i] = out->dim[i];
    w->inner = w->dim[w->rank - 1];
    w->rows = w->inner ? 1 : 0;
    for (int i = 0; i < w->rank - 1; i++)
        w->rows *= w->dim[i];
}

void hapi_ref_walk_operand(struct hapi_ref_walk *w, int k, const struct hapi_shape *s, int axis)
{
    int shift = axis >= 0 ? axis : w->rank - s->rank;
    int64_t step = 1;

    for (int i = s->rank - 1; i >= 0; i--) {
        if (s->dim[i] != 1 && i + shift >= 0 && i + shift < w->rank)
            w->stride[k][i + shift] = step;
        step *= s->dim[i];
    }
}

void hapi_ref_walk_next(struct hapi_ref_walk *w)
{
    for (int d = w->rank - 2; d >= 0; d--) {
        w->at[d]++;
        for (int k = 0; k < HAPI_REF_OPERANDS; k++)
            w->off[k] += w->stride[k][d];
        if (w->at[d] < w->dim[d])
            return;
        for (int k = 0; k < HAPI_REF_OPERANDS; k++)
            w->off[k] -= w->stride[k][d] * w->dim[d];
        w->at[d] = 0;
    }
}

static void copy_row(unsigned char *dst, const unsigned char *src, int64_t n, int64_t stride, size_t size)
{
    if (stride == 1) {
        memcpy(dst, src, (size_t)n * size);
        return;
    }
#define COPY(type)                                                                                           \
    for (int64_t i = 0; i < n; i++)                                                                          \
    ((type *)(void *)dst)[i] = ((const type *)(const void *)src)[i * stride]
    switch (size) {
    case 1:
        COPY(uint8_t);
        break;
    case 2:
        COPY(uint16_t);
        break;
    case 4:
        COPY(uint32_t);
        break;
    default:
        COPY(uint64_t);
    }
#undef COPY
}

void hapi_ref_copy_strided(void *dst, const struct hapi_shape *s, const void *src, const int64_t *stride,
                           size_t size)
{
    struct hapi_ref_walk w;
    unsigned char *d = dst;

    hapi_ref_walk_init(&w, s);
    for (int i = 0; i < s->rank; i++)
        w.stride[0][i] = stride[i];
    for (int64_t r = 0; r < w.rows; r++) {
        copy_row(d, (const unsigned char *)src + w.off[0] * (int64_t)size, w.inner, w.stride[0][w.rank - 1],
                 size);
        d += (size_t)w.inner * size;
        hapi_ref_walk_next(&w);
    }
}

int hapi_ref_legacy_axis(const struct hapi_ref_call *c, const struct hapi_shape *a,
                         const struct hapi_shape *b)
{
    const struct hapi_attr *axis = hapi_node_attr(c->n, "axis");

    if (c->g->opset >= 7 || !axis || axis->type != HAPI_ATTR_INT)
        return -1;
    int at = hapi_ref_axis(axis->i, a->rank);
    return at >= 0 && at + b->rank <= a->rank ? at : -1;
}

static hapi_ref_fn *const table[HAPI_OP_COUNT] = {
    [HAPI_OP_Abs] = hapi_ref_unary,
    [HAPI_OP_Add] = hapi_ref_binary,
    [HAPI_OP_And] = hapi_ref_compare,
    [HAPI_OP_ArgMax] = hapi_ref_arg,
    [HAPI_OP_ArgMin] = hapi_ref_arg,
    [HAPI_OP_AveragePool] = hapi_ref_pool,
    [HAPI_OP_BatchNormalization] = hapi_ref_batch_norm,
    [HAPI_OP_Cast] = hapi_ref_cast,
    [HAPI_OP_CastLike] = hapi_ref_cast,
    [HAPI_OP_Ceil] = hapi_ref_unary,
    [HAPI_OP_Celu] = hapi_ref_unary,
    [HAPI_OP_Clip] = hapi_ref_clip,
    [HAPI_OP_Concat] = hapi_ref_concat,
    [HAPI_OP_Constant] = hapi_ref_constant,
    [HAPI_OP_ConstantOfShape] = hapi_ref_constant_of_shape,
    [HAPI_OP_Conv] = hapi_ref_conv,
    [HAPI_OP_ConvTranspose] = hapi_ref_conv,
    [HAPI_OP_Cos] = hapi_ref_unary,
    [HAPI_OP_CumSum] = hapi_ref_cum_sum,
    [HAPI_OP_DepthToSpace] = hapi_ref_depth_to_space,
    [HAPI_OP_Div] = hapi_ref_binary,
    [HAPI_OP_Dropout] = hapi_ref_dropout,
    [HAPI_OP_Elu] = hapi_ref_unary,
    [HAPI_OP_Equal] = hapi_ref_compare,
    [HAPI_OP_Erf] = hapi_ref_unary,
    [HAPI_OP_Exp] = hapi_ref_unary,
    [HAPI_OP_Expand] = hapi_ref_expand,
    [HAPI_OP_Flatten] = hapi_ref_same,
    [HAPI_OP_Floor] = hapi_ref_unary,
    [HAPI_OP_Gather] = hapi_ref_gather,
    [HAPI_OP_GatherElements] = hapi_ref_gather_elements,
    [HAPI_OP_GatherND] = hapi_ref_gather_nd,
    [HAPI_OP_Gelu] = hapi_ref_unary,
    [HAPI_OP_Gemm] = hapi_ref_gemm,
    [HAPI_OP_GlobalAveragePool] = hapi_ref_pool,
    [HAPI_OP_GlobalMaxPool] = hapi_ref_pool,
    [HAPI_OP_Greater] = hapi_ref_compare,
    [HAPI_OP_GreaterOrEqual] = hapi_ref_compare,
    [HAPI_OP_GroupNormalization] = hapi_ref_channel_norm,
    [HAPI_OP_HardSigmoid] = hapi_ref_unary,
    [HAPI_OP_HardSwish] = hapi_ref_unary,
    [HAPI_OP_Identity] = hapi_ref_same,
    [HAPI_OP_InstanceNormalization] = hapi_ref_channel_norm,
    [HAPI_OP_LRN] = hapi_ref_lrn,
    [HAPI_OP_LayerNormalization] = hapi_ref_layer_norm,
    [HAPI_OP_LeakyRelu] = hapi_ref_unary,
    [HAPI_OP_Less] = hapi_ref_compare,
    [HAPI_OP_LessOrEqual] = hapi_ref_compare,
    [HAPI_OP_Log] = hapi_ref_unary,
    [HAPI_OP_LogSoftmax] = hapi_ref_softmax,
    [HAPI_OP_MatMul] = hapi_ref_matmul,
    [HAPI_OP_Max] = hapi_ref_variadic,
    [HAPI_OP_MaxPool] = hapi_ref_pool,
    [HAPI_OP_Mean] = hapi_ref_variadic,
    [HAPI_OP_Min] = hapi_ref_variadic,
    [HAPI_OP_Mish] = hapi_ref_unary,
    [HAPI_OP_Mod] = hapi_ref_binary,
    [HAPI_OP_Mul] = hapi_ref_binary,
    [HAPI_OP_Neg] = hapi_ref_unary,
    [HAPI_OP_Not] = hapi_ref_not,
    [HAPI_OP_Or] = hapi_ref_compare,
    [HAPI_OP_PRelu] = hapi_ref_prelu,
    [HAPI_OP_Pad] = hapi_ref_pad,
    [HAPI_OP_Pow] = hapi_ref_binary,
    [HAPI_OP_Range] = hapi_ref_range,
    [HAPI_OP_Reciprocal] = hapi_ref_unary,
    [HAPI_OP_ReduceL1] = hapi_ref_reduce,
    [HAPI_OP_ReduceL2] = hapi_ref_reduce,
    [HAPI_OP_ReduceLogSum] = hapi_ref_reduce,
    [HAPI_OP_ReduceLogSumExp] = hapi_ref_reduce,
    [HAPI_OP_ReduceMax] = hapi_ref_reduce,
    [HAPI_OP_ReduceMean] = hapi_ref_reduce,
    [HAPI_OP_ReduceMin] = hapi_ref_reduce,
    [HAPI_OP_ReduceProd] = hapi_ref_reduce,
    [HAPI_OP_ReduceSum] = hapi_ref_reduce,
    [HAPI_OP_ReduceSumSquare] = hapi_ref_reduce,
    [HAPI_OP_Relu] = hapi_ref_unary,
    [HAPI_OP_Reshape] = hapi_ref_same,
    [HAPI_OP_Resize] = hapi_ref_resize,
    [HAPI_OP_Round] = hapi_ref_unary,
    [HAPI_OP_Scatter] = hapi_ref_scatter_elements,
    [HAPI_OP_ScatterElements] = hapi_ref_scatter_elements,
    [HAPI_OP_ScatterND] = hapi_ref_scatter_nd,
    [HAPI_OP_Selu] = hapi_ref_unary,
    [HAPI_OP_Shape] = hapi_ref_shape,
    [HAPI_OP_Sigmoid] = hapi_ref_unary,
    [HAPI_OP_Sign] = hapi_ref_unary,
    [HAPI_OP_Sin] = hapi_ref_unary,
    [HAPI_OP_Size] = hapi_ref_size,
    [HAPI_OP_Slice] = hapi_ref_slice,
    [HAPI_OP_Softmax] = hapi_ref_softmax,
    [HAPI_OP_Softplus] = hapi_ref_unary,
    [HAPI_OP_Softsign] = hapi_ref_unary,
    [HAPI_OP_SpaceToDepth] = hapi_ref_depth_to_space,
    [HAPI_OP_Split] = hapi_ref_split,
    [HAPI_OP_Sqrt] = hapi_ref_unary,
    [HAPI_OP_Squeeze] = hapi_ref_same,
    [HAPI_OP_Sub] = hapi_ref_binary,
    [HAPI_OP_Sum] = hapi_ref_variadic,
    [HAPI_OP_Tanh] = hapi_ref_unary,
    [HAPI_OP_ThresholdedRelu] = hapi_ref_unary,
    [HAPI_OP_Tile] = hapi_ref_tile,
    [HAPI_OP_Transpose] = hapi_ref_transpose,
    [HAPI_OP_Trilu] = hapi_ref_trilu,
    [HAPI_OP_Unsqueeze] = hapi_ref_same,
    [HAPI_OP_Upsample] = hapi_ref_resize,
    [HAPI_OP_Where] = hapi_ref_where,
    [HAPI_OP_Xor] = hapi_ref_compare,
};

int hapi_ref_eval(const struct hapi_graph *g, const struct hapi_node *n, const void *const *in,
                  void *const *out, struct hapi_err *err)
{
    struct hapi_ref_call c = {g, n, in, out, err};

    if (n->op <= HAPI_OP_NONE || n->op >= HAPI_OP_COUNT || !table[n->op])
        return hapi_ref_fail(&c, HAPI_EUNSUPPORTED, "no reference for this op");
    return table[n->op](&c);
}
