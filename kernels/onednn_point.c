/* Element by element, and concatenation. */
#include <string.h>

#include "onednn.h"
#include "ref.h"

/* ------------------------------------------------------------------ activations */

/* The first of the activation as a primitive of its own, the rest as post-ops of it. */
static dnnl_status_t act_head(const struct hapi_act *a, dnnl_alg_kind_t *alg, float *alpha, float *beta)
{
    static const dnnl_alg_kind_t algs[] = {
        [HAPI_ACT_RELU] = dnnl_eltwise_relu,          [HAPI_ACT_CLIP] = dnnl_eltwise_clip,
        [HAPI_ACT_SIGMOID] = dnnl_eltwise_logistic,   [HAPI_ACT_SWISH] = dnnl_eltwise_swish,
        [HAPI_ACT_HARDSIGMOID] = dnnl_eltwise_linear, [HAPI_ACT_HARDSWISH] = dnnl_eltwise_hardswish,
        [HAPI_ACT_TANH] = dnnl_eltwise_tanh,          [HAPI_ACT_ELU] = dnnl_eltwise_elu,
        [HAPI_ACT_GELU] = dnnl_eltwise_gelu_erf,      [HAPI_ACT_GELU_TANH] = dnnl_eltwise_gelu_tanh,
    };

    if (a->kind == HAPI_ACT_NONE)
        return dnnl_unimplemented;
    *alg = algs[a->kind];
    *alpha = a->kind == HAPI_ACT_SWISH ? 1 : a->alpha;
    *beta = a->beta;
    return dnnl_success;
}

static int eltwise(struct hapi_dnn *b, dnnl_alg_kind_t alg, float alpha, float beta,
                   const struct hapi_act *then, int x_rep, int out_rep, struct hapi_err *err)
{
    const struct hapi_dnn_rep x = b->reps[x_rep], y = b->reps[out_rep];
    dnnl_memory_desc_t md;
    dnnl_eltwise_desc_t d;
    dnnl_primitive_attr_t attr;
    dnnl_primitive_desc_t pd;
    int rc = HAPI_DNN_NONE;

    if (!hapi_dnn_attr(false, then, &attr) &&
        !hapi_dnn_md(&b->g->values[y.value].shape, y.dtype, y.layout, 0, &md) &&
        !dnnl_eltwise_forward_desc_init(&d, dnnl_forward_inference, alg, &md, alpha, beta))
        rc = hapi_dnn_pd(b, &d, attr, &pd);
    dnnl_primitive_attr_destroy(attr);
    if (rc)
        return hapi_dnn_fail(b, dnnl_unimplemented, "no fast activation", err);
    struct hapi_dnn_arg args[2] = {{DNNL_ARG_SRC, &md, x.storage}, {DNNL_ARG_DST, &md, y.storage}};
    return hapi_dnn_execute(b, pd, args, 2, err);
}

int hapi_dnn_activate(struct hapi_dnn *b, int x_rep, int out_rep, const struct hapi_act *act,
                      struct hapi_err *err)
{
    static const struct hapi_act unit = {HAPI_ACT_CLIP, 0, 1};
    dnnl_alg_kind_t alg;
    float alpha, beta;

    if (b->vector && hapi_vector_act(act) && b->reps[x_rep].dtype == b->reps[out_rep].dtype)
        return hapi_dnn_vector_act(b, x_rep, out_rep, act, err);
    if (act_head(act, &alg, &alpha, &beta))
        return hapi_dnn_fail(b, dnnl_unimplemented, "unknown activation", err);
    return eltwise(b, alg, alpha, beta, act->kind == HAPI_ACT_HARDSIGMOID ? &unit : NULL, x_rep, out_rep,
                   err);
}

int hapi_dnn_activation(struct hapi_dnn *b, struct hapi_err *err)
{
    const struct hapi_step *s = b->step;
    struct hapi_act plain = s->act;
    enum hapi_op_kind op = s->node->op;
    dnnl_alg_kind_t alg = op == HAPI_OP_Exp    ? dnnl_eltwise_exp
                          : op == HAPI_OP_Sqrt ? dnnl_eltwise_sqrt
                                               : dnnl_eltwise_abs;

    if (b->g->values[s->x].dtype != HAPI_F32 || !hapi_ref_count(&b->g->values[s->x].shape))
        return HAPI_DNN_NONE;
    int x = hapi_dnn_need(b, s->x, b->spec.dtype, hapi_dnn_layout(b, s->x), err);
    int y = x < 0 ? x : hapi_dnn_make_over(b, x, err);
    if (y < 0)
        return y;
    return s->act_only ? hapi_dnn_activate(b, x, y, &plain, err) : eltwise(b, alg, 0, 0, NULL, x, y, err);
}

/* ------------------------------------------------------------------ two operands */

static int binary_pd(struct hapi_dnn *b, dnnl_alg_kind_t alg, const dnnl_memory_desc_t *md,
                     const struct hapi_act *act, dnnl_primitive_desc_t *pd)
{
    dnnl_binary_desc_t d;
    dnnl_primitive_attr_t attr;
    int rc = HAPI_DNN_NONE;

    if (!hapi_dnn_attr(false, act, &attr) && !dnnl_binary_desc_init(&d, alg, &md[0], &md[1], &md[2]))
        rc = hapi_dnn_pd(b, &d, attr, pd);
    dnnl_primitive_attr_destroy(attr);
    return rc;
}

static int binary_execute(struct hapi_dnn *b, dnnl_primitive_desc_t pd, const dnnl_memory_desc_t *md, int x,
                          int y, int out, struct hapi_err *err)
{
    struct hapi_dnn_arg args[3] = {{DNNL_ARG_SRC_0, &md[0], b->reps[x].storage},
                                   {DNNL_ARG_SRC_1, &md[1], b->reps[y].storage},
                                   {DNNL_ARG_DST, &md[2], b->reps[out].storage}};
    return hapi_dnn_execute(b, pd, args, 3, err);
}

/* What of an activation the primitive takes as a post-op, and the rest, behind it: what rounds is made by the
 * kernel that makes it elsewhere, else a cut before the addition would change bits. */
static const struct hapi_act *post_part(const struct hapi_dnn *b, const struct hapi_act *act)
{
    return hapi_dnn_post_act(b, act) ? act : NULL;
}

static int rest_part(struct hapi_dnn *b, int rep, const struct hapi_act *act, struct hapi_err *err)
{
    bool done = act->kind == HAPI_ACT_NONE || hapi_dnn_post_act(b, act);
    return done ? HAPI_OK : hapi_dnn_activate(b, rep, rep, act, err);
}

int hapi_dnn_add(struct hapi_dnn *b, int a_rep, int b_rep, int out_rep, const struct hapi_act *act,
                 struct hapi_err *err)
{
    const int reps[3] = {a_rep, b_rep, out_rep};
    dnnl_memory_desc_t md[3];
    dnnl_primitive_desc_t pd;

    for (int i = 0; i < 3; i++) {
        const struct hapi_dnn_rep *r = &b->reps[reps[i]];
        if (hapi_dnn_md(&b->g->values[r->value].shape, r->dtype, r->layout, 0, &md[i]))
            return hapi_dnn_fail(b, dnnl_invalid_arguments, "cannot describe a tensor", err);
    }
    if (binary_pd(b, dnnl_binary_add, md, post_part(b, act), &pd))
        return hapi_dnn_fail(b, dnnl_unimplemented, "no fast addition", err);
    int rc = binary_execute(b, pd, md, a_rep, b_rep, out_rep, err);
    return rc ? rc : rest_part(b, out_rep, act, err);
}

enum hapi_dnn_join hapi_dnn_join(const struct hapi_dnn *b, int residual, int x)
{
    if (b->avx2)
        return HAPI_DNN_PLUS;
    /* The kernel reads x while it writes over the residual: they must not be one buffer. */
    return hapi_dnn_dies(b, residual) && b->reps[residual].storage != x ? HAPI_DNN_SUM : HAPI_DNN_APART;
}

/* Descriptor of an operand against an output of rank n, in the rep that it gets: operands of full rank take
 * the output's layout, others (scales, biases: few elements) stay in the model's order. */
static dnnl_status_t operand_md(const struct hapi_dnn *b, int value, int n, enum hapi_layout layout,
                                enum hapi_dtype dtype, enum hapi_layout *taken, dnnl_memory_desc_t *md)
{
    const struct hapi_shape *s = &b->g->values[value].shape;

    *taken = s->rank == n ? layout : HAPI_LAYOUT_PLAIN;
    return hapi_dnn_md(s, dtype, *taken, n, md);
}

static bool alg_of(enum hapi_op_kind op, dnnl_alg_kind_t *alg)
{
    static const struct {
        enum hapi_op_kind op;
        dnnl_alg_kind_t alg;
    } known[] = {{HAPI_OP_Add, dnnl_binary_add}, {HAPI_OP_Sub, dnnl_binary_sub},
                 {HAPI_OP_Mul, dnnl_binary_mul}, {HAPI_OP_Div, dnnl_binary_div},
                 {HAPI_OP_Max, dnnl_binary_max}, {HAPI_OP_Min, dnnl_binary_min}};

    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (known[i].op == op) {
            *alg = known[i].alg;
            return true;
        }
    return false;
}

/* Channels-last when an operand of the output's shape is. */
static enum hapi_layout binary_layout(const struct hapi_dnn *b, const int *in, int out)
{
    const struct hapi_shape *o = &b->g->values[out].shape;

    for (int i = 0; i < 2; i++)
        if (hapi_shape_equal(&b->g->values[in[i]].shape, o) && hapi_dnn_layout(b, in[i]) == HAPI_LAYOUT_NHWC)
            return HAPI_LAYOUT_NHWC;
    return HAPI_LAYOUT_PLAIN;
}

int hapi_dnn_binary(struct hapi_dnn *b, struct hapi_err *err)
{
    const struct hapi_step *s = b->step;
    const struct hapi_value *o = &b->g->values[s->out];
    int in[2] = {s->node->in[0], s->node->n_in == 2 ? s->node->in[1] : HAPI_NO_VALUE}, rep[2],
        rc = HAPI_DNN_NONE;
    enum hapi_dtype dtype = b->spec.dtype;
    enum hapi_layout taken[2];
    dnnl_memory_desc_t md[3];
    dnnl_alg_kind_t alg;
    dnnl_primitive_desc_t pd;

    if (in[1] < 0 || o->dtype != HAPI_F32 || !alg_of(s->node->op, &alg) || !hapi_ref_count(&o->shape) ||
        (b->g->opset < 7 && hapi_node_attr(s->node, "axis")))
        return HAPI_DNN_NONE;
    /* oneDNN broadcasts the second operand only. */
    bool commutes = s->node->op != HAPI_OP_Sub && s->node->op != HAPI_OP_Div;
    if (commutes && !hapi_shape_equal(&b->g->values[in[0]].shape, &o->shape)) {
        in[0] = s->node->in[1];
        in[1] = s->node->in[0];
    }
    if (!hapi_shape_equal(&b->g->values[in[0]].shape, &o->shape))
        return HAPI_DNN_NONE;
    enum hapi_layout layout = binary_layout(b, in, s->out);
    int n = o->shape.rank ? o->shape.rank : 1;
    if (!operand_md(b, in[0], n, layout, dtype, &taken[0], &md[0]) &&
        !operand_md(b, in[1], n, layout, dtype, &taken[1], &md[1]) &&
        !hapi_dnn_md(&o->shape, dtype, layout, n, &md[2]))
        rc = binary_pd(b, alg, md, post_part(b, &s->act), &pd);
    if (rc)
        return rc;
    for (int i = 0; i < 2; i++) {
        rep[i] = hapi_dnn_need(b, in[i], dtype, taken[i], err);
        if (rep[i] < 0) {
            dnnl_primitive_desc_destroy(pd);
            return rep[i];
        }
    }
    int over = hapi_dnn_dies(b, rep[0]) || !hapi_shape_equal(&b->g->values[in[1]].shape, &o->shape) ? 0 : 1;
    int y = hapi_dnn_make_over(b, rep[over], err);
    if (y < 0) {
        dnnl_primitive_desc_destroy(pd);
        return y;
    }
    rc = binary_execute(b, pd, md, rep[0], rep[1], y, err);
    return rc ? rc : rest_part(b, y, &s->act, err);
}

/* ------------------------------------------------------------------ moving */

int hapi_dnn_concat(struct hapi_dnn *b, struct hapi_err *err)
{
    enum { INPUTS_MAX = 32 };
    const struct hapi_node *n = b->step->node;
    const struct hapi_value *o = &b->g->values[b->step->out];
    int axis = hapi_ref_axis(hapi_node_int(n, "axis", 1), o->shape.rank), y;
    enum hapi_layout layout = HAPI_LAYOUT_PLAIN;
    struct hapi_dnn_arg args[INPUTS_MAX + 1];
    dnnl_memory_desc_t src[INPUTS_MAX], dst;
    dnnl_primitive_attr_t attr = NULL;
    dnnl_primitive_desc_t pd;

    if (o->dtype != HAPI_F32 || n->n_in > INPUTS_MAX || axis < 0)
        return HAPI_DNN_NONE;
    for (int i = 0; i < n->n_in; i++) {
        if (!hapi_ref_count(&b->g->values[n->in[i]].shape))
            return HAPI_DNN_NONE;
        if (hapi_dnn_layout(b, n->in[i]) == HAPI_LAYOUT_NHWC)
            layout = HAPI_LAYOUT_NHWC;
    }
    for (int i = 0; i < n->n_in; i++)
        if (hapi_dnn_md(&b->g->values[n->in[i]].shape, b->spec.dtype, layout, 0, &src[i]))
            return HAPI_DNN_NONE;
    dnnl_status_t s = hapi_dnn_md(&o->shape, b->spec.dtype, layout, 0, &dst);
    if (!s)
        s = hapi_dnn_attr(false, NULL, &attr);
    if (!s)
        s = dnnl_concat_primitive_desc_create(&pd, &dst, n->n_in, axis, src, attr, b->engine);
    dnnl_primitive_attr_destroy(attr);
    if (s || hapi_dnn_pd_fast(&pd))
        return HAPI_DNN_NONE;
    for (int i = 0; i < n->n_in; i++) {
        int r = hapi_dnn_need(b, n->in[i], b->spec.dtype, layout, err);
        if (r < 0) {
            dnnl_primitive_desc_destroy(pd);
            return r;
        }
        args[i] = (struct hapi_dnn_arg){DNNL_ARG_MULTIPLE_SRC + i, &src[i], b->reps[r].storage};
    }
    y = hapi_dnn_make(b, b->step->out, b->spec.dtype, layout, err);
    if (y < 0) {
        dnnl_primitive_desc_destroy(pd);
        return y;
    }
    args[n->n_in] = (struct hapi_dnn_arg){DNNL_ARG_DST, &dst, b->reps[y].storage};
    return hapi_dnn_execute(b, pd, args, n->n_in + 1, err);
}
