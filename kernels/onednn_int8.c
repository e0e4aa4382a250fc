/*
 * Convolutions and products by constants in int8, with the scales that the model's ranges give.
 *
 *     x = q * scale       u8 where nothing is negative (scale = hi / 255), else s8 (scale = max |x| / 127)
 *     w[c] = q * scale[c] s8, symmetric, a scale for each output channel
 *     y[c] = x_scale * w_scale[c] * (sum of q * q + bias[c] / (x_scale * w_scale[c]))  + residual, activation
 *
 * The sums are exact, and scales are constants of the model, so that a sample's bits do not depend on the
 * batch. A value has one scale and one type in int8, beside its f32 form where something wants that. It is
 * written in int8 at once where all its readers take it so, else in f32.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "onednn.h"
#include "ranges.h"
#include "ref.h"

/* One convolution or product. */
struct int8 {
    int x, weights, bias; /* values; bias may be HAPI_NO_VALUE */
    int64_t channels;     /* of the output */
    bool by_row;          /* in memory a channel's weights are adjacent; else channels are */
    float alpha, beta;    /* factors of weights and bias */
    enum hapi_layout layout;
    enum hapi_dtype out_dtype;
    const struct hapi_window *w; /* NULL: a product */
    dnnl_memory_desc_t src, wei, wei_plain, bia, dst;
    int residual; /* a rep, or -1 */
    bool sum, act;
    int8_t *q;                       /* the weights; NULL when measuring */
    float *w_scale, *scale, *bias_q; /* by channel */
};

/* ------------------------------------------------------------------ which values */

static bool is_constant_f32(const struct hapi_dnn *b, int value)
{
    return value >= 0 && b->g->values[value].data && b->g->values[value].dtype == HAPI_F32;
}

/* Whether the step may run in int8, as far as its operands say. */
static bool step_takes(const struct hapi_dnn *b, const struct hapi_step *s)
{
    const struct hapi_node *n = s->node;
    int bias = n->op == HAPI_OP_MatMul ? s->bias : n->n_in > 2 ? n->in[2] : HAPI_NO_VALUE;

    if (s->act_only || (n->op != HAPI_OP_Conv && n->op != HAPI_OP_Gemm && n->op != HAPI_OP_MatMul))
        return false;
    if (!is_constant_f32(b, n->in[1]) || (bias >= 0 && !is_constant_f32(b, bias)))
        return false;
    int x = n->op == HAPI_OP_Conv ? s->x : n->in[0];
    return b->quant[x].dtype && !b->g->values[x].data;
}

static bool is_max_pool(const struct hapi_step *s)
{
    return !s->act_only && s->node->op == HAPI_OP_MaxPool && s->node->n_out == 1;
}

static void range_take(struct hapi_dnn *b, int value)
{
    const struct hapi_value *v = &b->g->values[value];
    const struct hapi_range *r = v->dtype == HAPI_F32 ? hapi_ranges_find(b->g->ranges, v->name) : NULL;
    struct hapi_dnn_quant *q = &b->quant[value];

    if (!r)
        return;
    q->dtype = r->lo < 0 ? HAPI_I8 : HAPI_U8;
    q->scale = r->lo < 0 ? fmaxf(-r->lo, r->hi) / 127 : r->hi / 255;
}

int hapi_dnn_int8_prepare(struct hapi_dnn *b, struct hapi_err *err)
{
    const struct hapi_graph *g = b->g;

    b->quant = hapi_arena_array(b->mem, g->n_values + 1, sizeof *b->quant);
    if (!b->quant)
        return hapi_err_set(err, HAPI_ENOMEM, 0, "no memory for a plan of %zu values", g->n_values);
    for (size_t i = 0; i < g->n_values; i++) {
        range_take(b, (int)i);
        b->quant[i].wanted = b->quant[i].dtype != HAPI_DTYPE_NONE;
    }
    /* What a pool passes on has the scale that it came with. */
    for (size_t i = 0; i < b->n_steps; i++)
        if (is_max_pool(&b->steps[i]))
            b->quant[b->steps[i].out] = b->quant[b->steps[i].node->in[0]];
    for (size_t i = 0; i < b->n_steps; i++) {
        const struct hapi_step *s = &b->steps[i];
        bool takes = is_max_pool(s) || step_takes(b, s);
        for (int k = 0; k < s->n_nodes; k++)
            for (int j = 0; j < s->nodes[k]->n_in; j++)
                if (s->nodes[k]->in[j] >= 0 && !takes)
                    b->quant[s->nodes[k]->in[j]].wanted = false;
    }
    return HAPI_OK;
}

enum hapi_dtype hapi_dnn_int8_pool(const struct hapi_dnn *b, int x, int out)
{
    int r = b->rep_of[x];
    bool quantised = b->quant && r >= 0 && b->quant[x].dtype && b->reps[r].dtype == b->quant[x].dtype;

    return quantised && b->out_of[out] < 0 ? b->reps[r].dtype : hapi_dnn_dtype(b, x);
}

dnnl_status_t hapi_dnn_int8_convert(const struct hapi_dnn *b, int value, enum hapi_dtype to,
                                    dnnl_primitive_attr_t attr)
{
    float scale = b->quant[value].scale;

    if (to != HAPI_F32)
        scale = 1 / scale;
    return dnnl_primitive_attr_set_output_scales(attr, 1, 0, &scale);
}

/* ------------------------------------------------------------------ weights */

static float element(const unsigned char *data, int64_t i)
{
    float x;

    memcpy(&x, data + (size_t)i * sizeof x, sizeof x); /* the file's bytes may be unaligned */
    return x;
}

/* Scales by channel, then the weights; adjacent ones go together in either order. */
static void weights_quantise(struct int8 *p, const unsigned char *w, int64_t n)
{
    int64_t cols = p->by_row ? n / p->channels : p->channels, rows = n / cols;

    memset(p->w_scale, 0, (size_t)p->channels * sizeof *p->w_scale);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < cols; c++) {
            float a = fabsf(element(w, r * cols + c)), *max = &p->w_scale[p->by_row ? r : c];
            *max = a > *max ? a : *max;
        }
    for (int64_t c = 0; c < p->channels; c++)
        p->w_scale[c] = p->w_scale[c] >= 1e-30F && p->w_scale[c] <= 1e30F ? p->w_scale[c] / 127 : 1;
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < cols; c++) {
            float q = element(w, r * cols + c) / p->w_scale[p->by_row ? r : c];
            p->q[r * cols + c] = (int8_t)lrintf(fmaxf(-127, fminf(127, q)));
        }
}

/* When measuring, only how much there is counts. */
static int constants_make(struct hapi_dnn *b, struct int8 *p, struct hapi_err *err)
{
    const struct hapi_value *w = &b->g->values[p->weights];
    int64_t n = hapi_ref_count(&w->shape);
    float x_scale = b->quant[p->x].scale;

    p->w_scale = calloc(3 * (size_t)p->channels + 1, sizeof *p->w_scale);
    p->q = b->weights ? malloc((size_t)n + 1) : NULL;
    if (!p->w_scale || (b->weights && !p->q))
        return hapi_err_set(err, HAPI_ENOMEM, 0, "no memory for int8 weights");
    p->scale = p->w_scale + p->channels;
    p->bias_q = p->scale + p->channels;
    if (b->weights)
        weights_quantise(p, w->data, n);
    for (int64_t c = 0; c < p->channels; c++) {
        p->scale[c] = b->weights ? x_scale * p->w_scale[c] * p->alpha : 1;
        if (b->weights && p->bias >= 0)
            p->bias_q[c] = p->beta * element(b->g->values[p->bias].data, c) / p->scale[c];
    }
    return HAPI_OK;
}

static void constants_free(struct int8 *p)
{
    free(p->q);
    free(p->w_scale);
}

/* ------------------------------------------------------------------ the primitive */

/* Without an activation that is curved, all is computed in units of the output's scale, and what a u8 cannot
 * hold need not be cut off before. */
static dnnl_status_t post_ops(const struct hapi_dnn *b, const struct int8 *p, dnnl_post_ops_t ops,
                              float *unit)
{
    const struct hapi_step *s = b->step;
    bool quantised = p->out_dtype != HAPI_F32;
    float out = quantised ? b->quant[s->out].scale : 1;
    struct hapi_act act = p->act ? s->act : (struct hapi_act){HAPI_ACT_NONE, 0, 0};
    bool linear = act.kind == HAPI_ACT_NONE || act.kind == HAPI_ACT_RELU || act.kind == HAPI_ACT_CLIP;
    dnnl_status_t st = dnnl_success;

    *unit = linear ? 1 / out : 1;
    if (p->sum) {
        const struct hapi_dnn_rep *r = &b->reps[p->residual];
        float scale = r->dtype == HAPI_F32 ? 1 : b->quant[s->residual].scale;
        st = dnnl_post_ops_append_sum_v2(ops, scale * *unit, hapi_dnn_type(r->dtype));
    }
    if (linear && act.kind == HAPI_ACT_CLIP) {
        act.alpha *= *unit;
        act.beta *= *unit;
    }
    if (p->out_dtype == HAPI_U8 && act.alpha == 0 &&
        (act.kind == HAPI_ACT_RELU || (act.kind == HAPI_ACT_CLIP && act.beta >= 254.999F)))
        return st;
    return st ? st : hapi_dnn_append_act(ops, &act, linear ? 1 : 1 / out);
}

static dnnl_status_t attr_make(const struct hapi_dnn *b, const struct int8 *p, dnnl_primitive_attr_t *attr)
{
    dnnl_post_ops_t ops = NULL;
    float unit = 1, *scale = malloc(((size_t)p->channels + 1) * sizeof *scale);
    dnnl_status_t st = hapi_dnn_attr(false, NULL, attr);

    if (!st)
        st = scale ? dnnl_post_ops_create(&ops) : dnnl_out_of_memory;
    if (!st)
        st = post_ops(b, p, ops, &unit);
    if (!st)
        st = dnnl_primitive_attr_set_post_ops(*attr, ops);
    for (int64_t c = 0; !st && c < p->channels; c++)
        scale[c] = p->scale[c] * unit;
    if (!st)
        st = dnnl_primitive_attr_set_output_scales(*attr, p->channels, 1 << 1, scale);
    dnnl_post_ops_destroy(ops);
    free(scale);
    return st;
}

static int pd_make(struct hapi_dnn *b, struct int8 *p, dnnl_primitive_desc_t *pd)
{
    const dnnl_memory_desc_t *bia = p->bias >= 0 ? &p->bia : NULL;
    dnnl_primitive_attr_t attr;
    dnnl_convolution_desc_t conv;
    dnnl_matmul_desc_t mul;
    struct hapi_dnn_geometry geo;
    dnnl_status_t st = attr_make(b, p, &attr);

    p->dst.data_type = hapi_dnn_type(p->out_dtype);
    if (!st && p->w) {
        hapi_dnn_geometry_of(p->w, 2, &geo);
        st = dnnl_dilated_convolution_forward_desc_init(
            &conv, dnnl_forward_inference, dnnl_convolution_direct, &p->src, &p->wei, bia, &p->dst,
            geo.stride, geo.dilation, geo.pad_begin, geo.pad_end);
    } else if (!st) {
        st = dnnl_matmul_desc_init(&mul, &p->src, &p->wei, bia, &p->dst);
    }
    int rc = st ? HAPI_DNN_NONE : hapi_dnn_pd(b, p->w ? (const void *)&conv : &mul, attr, pd);
    dnnl_primitive_attr_destroy(attr);
    return rc;
}

/* In the output's own int8 the residual must be there, too, and die; else both are f32. */
static int residual_take(struct hapi_dnn *b, struct int8 *p, int x, bool fused, struct hapi_err *err)
{
    int value = b->step->residual;

    p->residual = -1;
    p->sum = false;
    if (value < 0)
        return HAPI_OK;
    if (p->out_dtype != HAPI_F32 && b->quant[value].dtype) {
        p->residual = hapi_dnn_need(b, value, b->quant[value].dtype, p->layout, err);
        if (p->residual < 0)
            return p->residual;
        p->sum = hapi_dnn_dies(b, p->residual) && b->reps[p->residual].storage != b->reps[x].storage;
    }
    if (p->sum)
        return HAPI_OK;
    p->out_dtype = HAPI_F32;
    p->residual = hapi_dnn_need(b, value, HAPI_F32, p->layout, err);
    if (p->residual < 0)
        return p->residual;
    p->sum = fused && hapi_dnn_dies(b, p->residual) && b->reps[p->residual].storage != b->reps[x].storage;
    return HAPI_OK;
}

static int emit(struct hapi_dnn *b, struct int8 *p, int x, dnnl_primitive_desc_t pd, struct hapi_err *err)
{
    const struct hapi_step *s = b->step;
    const dnnl_memory_desc_t *wei = dnnl_primitive_desc_query_md(pd, dnnl_query_weights_md, 0);
    int bias = -1, y, n = 3, weights = hapi_dnn_weight(b, p->q, false, &p->wei_plain, wei, err);

    y = weights;
    if (y >= 0 && p->bias >= 0)
        y = bias = hapi_dnn_weight(b, p->bias_q, false, &p->bia, &p->bia, err);
    if (y >= 0)
        y = p->sum ? hapi_dnn_make_in(b, s->out, p->out_dtype, p->layout, b->reps[p->residual].storage, err)
                   : hapi_dnn_make(b, s->out, p->out_dtype, p->layout, err);
    if (y < 0) {
        dnnl_primitive_desc_destroy(pd);
        return y;
    }
    struct hapi_dnn_arg args[4] = {{DNNL_ARG_SRC, &p->src, b->reps[x].storage},
                                   {DNNL_ARG_WEIGHTS, wei, weights},
                                   {DNNL_ARG_DST, &p->dst, b->reps[y].storage}};
    if (bias >= 0)
        args[n++] = (struct hapi_dnn_arg){DNNL_ARG_BIAS, &p->bia, bias};
    int rc = hapi_dnn_execute(b, pd, args, n, err);
    if (!rc && p->residual >= 0 && !p->sum)
        rc = hapi_dnn_add(b, y, p->residual, y, p->act ? NULL : &s->act, err);
    else if (!rc && !p->act && s->act.kind != HAPI_ACT_NONE)
        rc = hapi_dnn_activate(b, y, y, &s->act, err);
    return rc;
}

/* fused: in int8 throughout where that is wanted; else what comes after the sums is done in f32, apart. */
static int attempt(struct hapi_dnn *b, struct int8 *p, bool fused, struct hapi_err *err)
{
    const struct hapi_step *s = b->step;
    const struct hapi_dnn_quant *out = &b->quant[s->out];
    dnnl_primitive_desc_t pd;
    int x = hapi_dnn_need(b, p->x, b->quant[p->x].dtype, p->layout, err);

    if (x < 0)
        return x;
    p->act = fused && (s->act.kind == HAPI_ACT_NONE || hapi_dnn_post_act(b, &s->act));
    p->out_dtype = p->act && out->wanted && b->out_of[s->out] < 0 ? out->dtype : HAPI_F32;
    int rc = residual_take(b, p, x, fused, err);
    if (rc)
        return rc;
    p->act = p->act && (p->residual < 0 || p->sum);
    rc = pd_make(b, p, &pd);
    return rc ? rc : emit(b, p, x, pd, err);
}

static int compile(struct hapi_dnn *b, struct int8 *p, struct hapi_err *err)
{
    int rc = constants_make(b, p, err);

    rc = rc ? rc : attempt(b, p, true, err);
    if (rc == HAPI_DNN_NONE)
        rc = attempt(b, p, false, err);
    constants_free(p);
    return rc;
}

/* ------------------------------------------------------------------ the steps */

int hapi_dnn_int8_conv(struct hapi_dnn *b, const struct hapi_window *w, struct hapi_err *err)
{
    const struct hapi_node *n = b->step->node;
    const struct hapi_shape *k = &b->g->values[n->in[1]].shape, *xs = &b->g->values[b->step->x].shape,
                            *os = &b->g->values[b->step->out].shape;
    int64_t m = k->dim[0], per = k->dim[1], g = w->group;
    dnnl_dims_t plain = {m, per, w->kernel[0], w->kernel[1]}, bias = {m};
    dnnl_dims_t grouped = {g, m / g, per, w->kernel[0], w->kernel[1]};
    struct int8 p = {.x = b->step->x,
                     .weights = n->in[1],
                     .bias = n->n_in > 2 ? n->in[2] : HAPI_NO_VALUE,
                     .channels = m,
                     .by_row = true,
                     .alpha = 1,
                     .beta = 1,
                     .layout = HAPI_LAYOUT_NHWC,
                     .w = w};
    int rank = g > 1 ? 5 : 4;
    const dnnl_dim_t *dims = g > 1 ? grouped : plain;

    if (!step_takes(b, b->step) || hapi_ref_count(k) < 1 || k->rank > 4)
        return HAPI_DNN_NONE;
    if (hapi_dnn_md4(xs, b->quant[p.x].dtype, p.layout, &p.src) ||
        hapi_dnn_md4(os, HAPI_F32, p.layout, &p.dst) ||
        dnnl_memory_desc_init_by_tag(&p.wei_plain, rank, dims, dnnl_s8, g > 1 ? dnnl_abcde : dnnl_abcd) ||
        dnnl_memory_desc_init_by_tag(&p.wei, rank, dims, dnnl_s8, dnnl_format_tag_any) ||
        dnnl_memory_desc_init_by_tag(&p.bia, 1, bias, dnnl_f32, dnnl_a))
        return HAPI_DNN_NONE;
    return compile(b, &p, err);
}

/* All rows of x as one matrix, times (K, N), which a Gemm may have transposed. */
int hapi_dnn_int8_product(struct hapi_dnn *b, struct hapi_err *err)
{
    const struct hapi_node *n = b->step->node;
    bool gemm = n->op == HAPI_OP_Gemm, tb = gemm && hapi_node_int(n, "transB", 0);
    const struct hapi_shape *xs = &b->g->values[n->in[0]].shape, *ws = &b->g->values[n->in[1]].shape;
    struct int8 p = {.x = n->in[0],
                     .weights = n->in[1],
                     .bias = !gemm         ? b->step->bias
                             : n->n_in > 2 ? n->in[2]
                                           : HAPI_NO_VALUE,
                     .by_row = tb,
                     .alpha = gemm ? hapi_node_float(n, "alpha", 1) : 1,
                     .beta = gemm ? hapi_node_float(n, "beta", 1) : 1,
                     .layout = HAPI_LAYOUT_PLAIN};

    if (!step_takes(b, b->step) || ws->rank != 2 || xs->rank < 2 || (gemm && xs->rank != 2) ||
        (gemm && hapi_node_int(n, "transA", 0)) || hapi_ref_count(ws) < 1 || !(fabsf(p.alpha) >= 1e-15F))
        return HAPI_DNN_NONE;
    int64_t k = ws->dim[tb], c = ws->dim[!tb], m = hapi_ref_count(xs) / k;
    struct hapi_shape src = {2, {m, k}}, dst = {2, {m, c}}, bia = {2, {1, c}};
    dnnl_dims_t wei = {k, c}, wei_s = {tb ? 1 : c, tb ? k : 1};
    p.channels = c;
    if (p.bias >= 0) {
        const struct hapi_shape *bs = &b->g->values[p.bias].shape;
        if (hapi_ref_count(bs) != c || bs->rank < 1 || bs->dim[bs->rank - 1] != c)
            return HAPI_DNN_NONE;
    }
    if (m < 1 || hapi_dnn_md(&src, b->quant[p.x].dtype, p.layout, 2, &p.src) ||
        hapi_dnn_md(&dst, HAPI_F32, p.layout, 2, &p.dst) ||
        hapi_dnn_md(&bia, HAPI_F32, p.layout, 2, &p.bia) ||
        dnnl_memory_desc_init_by_strides(&p.wei_plain, 2, wei, dnnl_s8, wei_s) ||
        dnnl_memory_desc_init_by_tag(&p.wei, 2, wei, dnnl_s8, dnnl_format_tag_any))
        return HAPI_DNN_NONE;
    return compile(b, &p, err);
}
