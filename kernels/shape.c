#include "shape.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* Fewest and most inputs, most outputs; MANY: as many as there are. */
enum { MANY = 1 << 30 };

static const struct {
    hapi_shape_fn *fn;
    int min_in, max_in, max_out;
} rules[HAPI_OP_COUNT] = {
    [HAPI_OP_Abs] = {hapi_shape_unary, 1, 1, 1},
    [HAPI_OP_Add] = {hapi_shape_binary, 2, 2, 1},
    [HAPI_OP_And] = {hapi_shape_logic, 2, 2, 1},
    [HAPI_OP_ArgMax] = {hapi_shape_arg, 1, 1, 1},
    [HAPI_OP_ArgMin] = {hapi_shape_arg, 1, 1, 1},
    [HAPI_OP_AveragePool] = {hapi_shape_pool, 1, 1, 1},
    [HAPI_OP_BatchNormalization] = {hapi_shape_batch_norm, 5, 5, 1},
    [HAPI_OP_Cast] = {hapi_shape_cast, 1, 1, 1},
    [HAPI_OP_CastLike] = {hapi_shape_cast_like, 2, 2, 1},
    [HAPI_OP_Ceil] = {hapi_shape_unary, 1, 1, 1},
    [HAPI_OP_Celu] = {hapi_shape_unary, 1, 1, 1},
    [HAPI_OP_Clip] = {hapi_shape_clip, 1, 3, 1},
    [HAPI_OP_Concat] = {hapi_shape_concat, 1, MANY, 1},
    [HAPI_OP_Constant] = {hapi_shape_constant, 0, 0, 1},
    [HAPI_OP_ConstantOfShape] = {hapi_shape_constant_of_shape, 1, 1, 1},
    [HAPI_OP_Conv] = {hapi_shape_conv, 2, 3, 1},
    [HAPI_OP_ConvTranspose] = {hapi_shape_conv_transpose, 2, 3, 1},
    [HAPI_OP_Cos] = {hapi_shape_unary, 1, 1, 1},
    [HAPI_OP_CumSum] = {hapi_shape_cum_sum, 2, 2, 1},
    [HAPI_OP_DepthToSpace] = {hapi_shape_depth_to_space, 1, 1, 1},
    [HAPI_OP_Div] = {hapi_shape_binary, 2, 2, 1},
    [HAPI_OP_Dropout] = {hapi_shape_dropout, 1, 3, 2},
    [HAPI_OP_Elu] = {hapi_shape_unary, 1, 1, 1},
    [HAPI_OP_Equal] = {hapi_shape_compare, 2, 2, 1},
    [HAPI_OP_Erf] = {hapi_shape_unary, 1, 1, 1},
    [HAPI_OP_Exp] = {hapi_shape_unary, 1, 1, 1},
    [HAPI_OP_Expand] = {hapi_shape_expand, 2, 2, 1},
    [HAPI_OP_Flatten] = {hapi_shape_flatten, 1, 1, 1},
    [HAPI_OP_Floor] = {hapi_shape_unary, 1, 1, 1},
    [HAPI_OP_Gather] = {hapi_shape_gather, 2, 2, 1},
    [HAPI_OP_GatherElements] = {hapi_shape_gather_elements, 2, 2, 1},
    [HAPI_OP_GatherND] = {hapi_shape_gather_nd, 2, 2, 1},
    [HAPI_OP_Gelu] = {hapi_shape_gelu, 1, 1, 1},
    [HAPI_OP_Gemm] = {hapi_shape_gemm, 2, 3, 1},
    [HAPI_OP_GlobalAveragePool] = {hapi_shape_global_pool, 1, 1, 1},
    [HAPI_OP_GlobalMaxPool] = {hapi_shape_global_pool, 1, 1, 1},
    [HAPI_OP_Greater] = {hapi_shape_compare, 2, 2, 1},
    [HAPI_OP_GreaterOrEqual] = {hapi_shape_compare, 2, 2, 1},
    [HAPI_OP_GroupNormalization] = {hapi_shape_channel_norm, 3, 3, 1},
    [HAPI_OP_HardSigmoid] = {hapi_shape_unary, 1, 1, 1},
    [HAPI_OP_HardSwish] = {hapi_shape_unary, 1, 1, 1},
    [HAPI_OP_Identity] = {hapi_shape_same, 1, 1, 1},
    [HAPI_OP_InstanceNormalization] = {hapi_shape_channel_norm, 3, 3, 1},
    [HAPI_OP_LRN] = {hapi_shape_lrn, 1, 1, 1},
    [HAPI_OP_LayerNormalization] = {hapi_shape_layer_norm, 2, 3, 3},
    [HAPI_OP_LeakyRelu] = {hapi_shape_unary, 1, 1, 1},
    [HAPI_OP_Less] = {hapi_shape_compare, 2, 2, 1},
    [HAPI_OP_LessOrEqual] = {hapi_shape_compare, 2, 2, 1},
    [HAPI_OP_Log] = {hapi_shape_unary, 1, 1, 1},
    [HAPI_OP_LogSoftmax] = {hapi_shape_axis_same, 1, 1, 1},
    [HAPI_OP_MatMul] = {hapi_shape_matmul, 2, 2, 1},
    [HAPI_OP_Max] = {hapi_shape_variadic, 1, MANY, 1},
    [HAPI_OP_MaxPool] = {hapi_shape_pool, 1, 1, 2},
    [HAPI_OP_Mean] = {hapi_shape_variadic, 1, MANY, 1},
    [HAPI_OP_Min] = {hapi_shape_variadic, 1, MANY, 1},
    [HAPI_OP_Mish] = {hapi_shape_unary, 1, 1, 1},
    [HAPI_OP_Mod] = {hapi_shape_binary, 2, 2, 1},
    [HAPI_OP_Mul] = {hapi_shape_binary, 2, 2, 1},
    [HAPI_OP_Neg] = {hapi_shape_unary, 1, 1, 1},
    [HAPI_OP_Not] = {hapi_shape_not, 1, 1, 1},
    [HAPI_OP_Or] = {hapi_shape_logic, 2, 2, 1},
    [HAPI_OP_PRelu] = {hapi_shape_prelu, 2, 2, 1},
    [HAPI_OP_Pad] = {hapi_shape_pad, 1, 4, 1},
    [HAPI_OP_Pow] = {hapi_shape_binary, 2, 2, 1},
    [HAPI_OP_Range] = {hapi_shape_range, 3, 3, 1},
    [HAPI_OP_Reciprocal] = {hapi_shape_unary, 1, 1, 1},
    [HAPI_OP_ReduceL1] = {hapi_shape_reduce, 1, 2, 1},
    [HAPI_OP_ReduceL2] = {hapi_shape_reduce, 1, 2, 1},
    [HAPI_OP_ReduceLogSum] = {hapi_shape_reduce, 1, 2, 1},
    [HAPI_OP_ReduceLogSumExp] = {hapi_shape_reduce, 1, 2, 1},
    [HAPI_OP_ReduceMax] = {hapi_shape_reduce, 1, 2, 1},
    [HAPI_OP_ReduceMean] = {hapi_shape_reduce, 1, 2, 1},
    [HAPI_OP_ReduceMin] = {hapi_shape_reduce, 1, 2, 1},
    [HAPI_OP_ReduceProd] = {hapi_shape_reduce, 1, 2, 1},
    [HAPI_OP_ReduceSum] = {hapi_shape_reduce, 1, 2, 1},
    [HAPI_OP_ReduceSumSquare] = {hapi_shape_reduce, 1, 2, 1},
    [HAPI_OP_Relu] = {hapi_shape_unary, 1, 1, 1},
    [HAPI_OP_Reshape] = {hapi_shape_reshape, 1, 2, 1},
    [HAPI_OP_Resize] = {hapi_shape_resize, 1, 4, 1},
    [HAPI_OP_Round] = {hapi_shape_unary, 1, 1, 1},
    [HAPI_OP_Scatter] = {hapi_shape_scatter_elements, 3, 3, 1},
    [HAPI_OP_ScatterElements] = {hapi_shape_scatter_elements, 3, 3, 1},
    [HAPI_OP_ScatterND] = {hapi_shape_scatter_nd, 3, 3, 1},
    [HAPI_OP_Selu] = {hapi_shape_unary, 1, 1, 1},
    [HAPI_OP_Shape] = {hapi_shape_shape, 1, 1, 1},
    [HAPI_OP_Sigmoid] = {hapi_shape_unary, 1, 1, 1},
    [HAPI_OP_Sign] = {hapi_shape_unary, 1, 1, 1},
    [HAPI_OP_Sin] = {hapi_shape_unary, 1, 1, 1},
    [HAPI_OP_Size] = {hapi_shape_size, 1, 1, 1},
    [HAPI_OP_Slice] = {hapi_shape_slice, 1, 5, 1},
    [HAPI_OP_Softmax] = {hapi_shape_axis_same, 1, 1, 1},
    [HAPI_OP_Softplus] = {hapi_shape_unary, 1, 1, 1},
    [HAPI_OP_Softsign] = {hapi_shape_unary, 1, 1, 1},
    [HAPI_OP_SpaceToDepth] = {hapi_shape_space_to_depth, 1, 1, 1},
    [HAPI_OP_Split] = {hapi_shape_split, 1, 2, MANY},
    [HAPI_OP_Sqrt] = {hapi_shape_unary, 1, 1, 1},
    [HAPI_OP_Squeeze] = {hapi_shape_squeeze, 1, 2, 1},
    [HAPI_OP_Sub] = {hapi_shape_binary, 2, 2, 1},
    [HAPI_OP_Sum] = {hapi_shape_variadic, 1, MANY, 1},
    [HAPI_OP_Tanh] = {hapi_shape_unary, 1, 1, 1},
    [HAPI_OP_ThresholdedRelu] = {hapi_shape_unary, 1, 1, 1},
    [HAPI_OP_Tile] = {hapi_shape_tile, 2, 2, 1},
    [HAPI_OP_Transpose] = {hapi_shape_transpose, 1, 1, 1},
    [HAPI_OP_Trilu] = {hapi_shape_trilu, 1, 2, 1},
    [HAPI_OP_Unsqueeze] = {hapi_shape_unsqueeze, 1, 2, 1},
    [HAPI_OP_Upsample] = {hapi_shape_resize, 1, 2, 1},
    [HAPI_OP_Where] = {hapi_shape_where, 3, 3, 1},
    [HAPI_OP_Xor] = {hapi_shape_logic, 2, 2, 1},
};

int hapi_shape_fail(const struct hapi_infer *c, int code, const char *fmt, ...)
{
    char text[256];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    return hapi_err_set(c->err, code, 0, "node \"%.150s\" (%s): %s", c->n->name, hapi_op_name(c->n->op),
                        text);
}

const struct hapi_value *hapi_shape_in(const struct hapi_infer *c, int k)
{
    return k < c->n->n_in && c->n->in[k] >= 0 ? &c->g->values[c->n->in[k]] : NULL;
}

int hapi_shape_set(const struct hapi_infer *c, int k, enum hapi_dtype dtype, const struct hapi_shape *s)
{
    if (k < c->n->n_out && c->n->out[k] >= 0) {
        c->g->values[c->n->out[k]].dtype = dtype;
        c->g->values[c->n->out[k]].shape = *s;
    }
    return 0;
}

int hapi_shape_axis(const struct hapi_infer *c, int64_t axis, int rank, int *out)
{
    if (axis < -rank || axis >= rank)
        return hapi_shape_fail(c, HAPI_EFORMAT, "axis %lld of a tensor of rank %d", (long long)axis, rank);
    *out = (int)(axis < 0 ? axis + rank : axis);
    return 0;
}

static int64_t integer(const struct hapi_value *v, int64_t i)
{
    return v->dtype == HAPI_I64 ? ((const int64_t *)v->data)[i] : ((const int32_t *)v->data)[i];
}

int hapi_shape_list(const struct hapi_infer *c, int k, const char *attr, int64_t *out, size_t max, int *n)
{
    const struct hapi_value *v = k >= 0 ? hapi_shape_in(c, k) : NULL;
    size_t have;

    *n = -1;
    if (!v) {
        const struct hapi_attr *a = hapi_node_attr(c->n, attr);
        have = hapi_node_ints(c->n, attr, out, max);
        if (have > max)
            return hapi_shape_fail(c, HAPI_EFORMAT, "%s has %zu values", attr, have);
        if (a && a->type == HAPI_ATTR_INTS)
            *n = (int)have;
        return 0;
    }
    if (v->dtype != HAPI_I64 && v->dtype != HAPI_I32)
        return hapi_shape_fail(c, HAPI_EFORMAT, "input %s is not of integers", attr);
    if (v->shape.rank > 1)
        return hapi_shape_fail(c, HAPI_EFORMAT, "input %s is not a list", attr);
    have = v->shape.rank ? (size_t)v->shape.dim[0] : 1;
    if (have > max)
        return hapi_shape_fail(c, HAPI_EFORMAT, "input %s has %zu values", attr, have);
    if (have && !v->data)
        return hapi_shape_fail(c, HAPI_EUNSUPPORTED, "input %s (\"%.100s\") is not a constant", attr,
                               v->name);
    for (size_t i = 0; i < have; i++)
        out[i] = integer(v, (int64_t)i);
    *n = (int)have;
    return 0;
}

int hapi_shape_broadcast(const struct hapi_infer *c, struct hapi_shape *a, const struct hapi_shape *b)
{
    struct hapi_shape s = {.rank = a->rank > b->rank ? a->rank : b->rank};
    char one[64], two[64];

    for (int i = 0; i < s.rank; i++) {
        int ia = i - (s.rank - a->rank), ib = i - (s.rank - b->rank);
        int64_t da = ia < 0 ? 1 : a->dim[ia], db = ib < 0 ? 1 : b->dim[ib];
        if (da != db && da != 1 && db != 1)
            return hapi_shape_fail(c, HAPI_EFORMAT, "shapes %s and %s do not broadcast",
                                   hapi_shape_text(a, one, sizeof one), hapi_shape_text(b, two, sizeof two));
        s.dim[i] = da == 1 ? db : da;
    }
    *a = s;
    return 0;
}

bool hapi_shape_vector(const struct hapi_value *v, int64_t n)
{
    return v->shape.rank == 1 && v->shape.dim[0] == n;
}

bool hapi_shape_float(enum hapi_dtype d)
{
    return d == HAPI_F32 || d == HAPI_F16 || d == HAPI_BF16 || d == HAPI_F64;
}

int hapi_shape_alike(const struct hapi_infer *c, const struct hapi_value *a, const struct hapi_value *b)
{
    if (a->dtype == b->dtype)
        return 0;
    return hapi_shape_fail(c, HAPI_EFORMAT, "inputs of dtype %s and %s", hapi_dtype_name(a->dtype),
                           hapi_dtype_name(b->dtype));
}

int hapi_shape_infer(struct hapi_graph *g, const struct hapi_node *n, struct hapi_err *err)
{
    struct hapi_infer c = {g, n, err};
    int min = rules[n->op].min_in, max = rules[n->op].max_in;

    if (!rules[n->op].fn)
        return hapi_shape_fail(&c, HAPI_EUNSUPPORTED, "no shape rule");
    if (n->n_in < min || n->n_in > max)
        return hapi_shape_fail(&c, HAPI_EFORMAT, "%d inputs (%d to %d are meant)", n->n_in, min, max);
    for (int i = 0; i < n->n_in; i++)
        if (n->in[i] == HAPI_NO_VALUE && (i < min || max == MANY))
            return hapi_shape_fail(&c, HAPI_EFORMAT, "input %d is left out", i);
    if (n->n_out > rules[n->op].max_out)
        return hapi_shape_fail(&c, HAPI_EUNSUPPORTED, "its output %d is used, which is not supported",
                               rules[n->op].max_out);
    return rules[n->op].fn(&c);
}
