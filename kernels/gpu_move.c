/* Element by element: one kernel of ours; and what only moves or renames: views. */
#include <stdlib.h>
#include <string.h>

#include "gpu_build.h"
#include "ref.h"

/* ------------------------------------------------------------------ element by element */

static bool math_of(enum hapi_op_kind op, enum hapi_gpu_math *out)
{
    static const struct {
        enum hapi_op_kind op;
        enum hapi_gpu_math math;
    } known[] = {{HAPI_OP_Add, HAPI_GPU_ADD},
                 {HAPI_OP_Sub, HAPI_GPU_SUB},
                 {HAPI_OP_Mul, HAPI_GPU_MUL},
                 {HAPI_OP_Div, HAPI_GPU_DIV},
                 {HAPI_OP_Max, HAPI_GPU_MAX},
                 {HAPI_OP_Min, HAPI_GPU_MIN},
                 {HAPI_OP_Pow, HAPI_GPU_POW},
                 {HAPI_OP_Sqrt, HAPI_GPU_SQRT},
                 {HAPI_OP_Exp, HAPI_GPU_EXP},
                 {HAPI_OP_Erf, HAPI_GPU_ERF},
                 {HAPI_OP_Neg, HAPI_GPU_NEG},
                 {HAPI_OP_Abs, HAPI_GPU_ABS},
                 {HAPI_OP_Reciprocal, HAPI_GPU_RECIPROCAL}};

    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (known[i].op == op) {
            *out = known[i].math;
            return true;
        }
    return false;
}

static int binary_run(struct hapi_gpu_build *b, const struct hapi_step *s)
{
    const struct hapi_value *o = &b->g->values[s->out];
    struct hapi_gpu_view in[2], y;
    enum hapi_gpu_math math = HAPI_GPU_COPY;
    int like =
        hapi_shape_equal(&b->g->values[s->node->in[0]].shape, &o->shape) && !b->g->values[s->node->in[0]].data
            ? 0
            : 1;
    int rc = HAPI_OK;

    for (int k = 0; k < 2 && !rc; k++) {
        struct hapi_gpu_view v;
        rc = hapi_gpu_need_wide(b, s->node->in[k], &v);
        if (!rc && !hapi_gpu_view_expand(&in[k], &v, &o->shape))
            rc = hapi_gpu_refuse(b, "its operands lie in too many dims");
    }
    if (rc)
        return rc;
    (void)math_of(s->node->op, &math); /* the caller has looked */
    hapi_gpu_view_like(&y, &in[like]);
    rc = hapi_gpu_result(b, s->out, &y, true);
    return rc ? rc : hapi_gpu_pointwise(b, math, &s->act, &y, &in[0], &in[1], NULL);
}

int hapi_gpu_scaled(struct hapi_gpu_build *b, int value)
{
    return binary_run(b, b->values[value].step);
}

int hapi_gpu_binary(struct hapi_gpu_build *b)
{
    const struct hapi_step *s = b->step;
    struct hapi_gpu_value *v = &b->values[s->out];
    enum hapi_gpu_math math;

    if (s->node->n_in != 2 || b->g->values[s->out].dtype != HAPI_F32 || !math_of(s->node->op, &math))
        return hapi_gpu_refuse(b, "only two operands of f32 run there");
    if (b->g->opset < 7 && hapi_node_attr(s->node, "axis"))
        return hapi_gpu_refuse(b, "the broadcasting of opsets before 7");
    bool one[2], scales = s->node->op == HAPI_OP_Mul || s->node->op == HAPI_OP_Div;
    for (int k = 0; k < 2; k++) {
        const struct hapi_value *c = &b->g->values[s->node->in[k]];
        one[k] = c->data && hapi_ref_count(&c->shape) == 1 && c->dtype == HAPI_F32;
    }
    scales = scales && (one[1] || (one[0] && s->node->op == HAPI_OP_Mul)) && s->act.kind == HAPI_ACT_NONE;
    if (scales && v->reader >= 0 && b->steps[v->reader].node->op == HAPI_OP_MatMul &&
        b->steps[v->reader].node->in[0] == s->out) {
        v->lazy = HAPI_GPU_SCALED;
        v->step = s;
        return HAPI_OK; /* the product decides */
    }
    return binary_run(b, s);
}

static int unary_run(struct hapi_gpu_build *b, enum hapi_gpu_math math, const struct hapi_act *act)
{
    struct hapi_gpu_view x, y;
    int rc = hapi_gpu_need(b, b->step->x, &x);

    if (rc)
        return rc;
    hapi_gpu_view_like(&y, &x);
    rc = hapi_gpu_result(b, b->step->out, &y, true);
    return rc ? rc : hapi_gpu_pointwise(b, math, act, &y, &x, NULL, NULL);
}

int hapi_gpu_unary(struct hapi_gpu_build *b)
{
    enum hapi_gpu_math math = HAPI_GPU_COPY;

    (void)math_of(b->step->node->op, &math); /* step_compile() has looked */
    return unary_run(b, math, NULL);
}

int hapi_gpu_activation(struct hapi_gpu_build *b)
{
    return unary_run(b, HAPI_GPU_COPY, &b->step->act);
}

int hapi_gpu_mean(struct hapi_gpu_build *b)
{
    const struct hapi_node *n = b->step->node;
    const struct hapi_shape *xs = &b->g->values[n->in[0]].shape;
    struct hapi_shape kept = *xs;
    int64_t axes[HAPI_MAX_RANK];
    bool inner[HAPI_MAX_RANK] = {false};
    struct hapi_gpu_view x, y, wide;
    size_t given = hapi_node_ints(n, "axes", axes, HAPI_MAX_RANK);
    int rc = hapi_gpu_need(b, n->in[0], &x);

    if (rc)
        return rc;
    if (n->n_in > 1 && n->in[1] >= 0) {
        const struct hapi_value *v = &b->g->values[n->in[1]];
        given = v->data ? (size_t)hapi_ref_count(&v->shape) : 0;
        for (size_t i = 0; i < given; i++)
            axes[i] = hapi_ref_get_i(v->data, v->dtype, (int64_t)i);
    }
    for (size_t i = 0; i < given; i++) {
        int d = hapi_ref_axis(axes[i], xs->rank);
        if (d < 0)
            return hapi_gpu_refuse(b, "an axis is out of range");
        inner[d] = true;
        kept.dim[d] = 1;
    }
    if (!given)
        return hapi_gpu_refuse(b, "the mean of everything");
    hapi_gpu_view_dense(&wide, &kept, HAPI_LAYOUT_PLAIN);
    rc = hapi_gpu_place_new(b, &wide, b->dtype);
    if (!rc)
        rc = hapi_gpu_over(b, HAPI_GPU_MEAN, &wide, &x, inner);
    if (!rc && !hapi_gpu_view_reshape(&y, &wide, &b->g->values[b->step->out].shape))
        return hapi_gpu_refuse(b, "its result lies in too many dims");
    if (!rc)
        hapi_gpu_made(b, b->step->out, &y);
    return rc;
}

/* ------------------------------------------------------------------ views */

/* The input as a view without its step taking part; edges of f32 stay so. */
static int looked_at(struct hapi_gpu_build *b, int value, struct hapi_gpu_view *out)
{
    if (b->values[value].made && b->values[value].lazy == HAPI_GPU_READY) {
        *out = b->values[value].view;
        return HAPI_OK;
    }
    return hapi_gpu_need(b, value, out);
}

int hapi_gpu_reshape(struct hapi_gpu_build *b)
{
    const struct hapi_step *s = b->step;
    struct hapi_gpu_view x, y, dense;
    int rc = looked_at(b, s->node->in[0], &x);

    if (!rc && !hapi_gpu_view_reshape(&y, &x, &b->g->values[s->out].shape)) {
        hapi_gpu_view_dense(&dense, &b->g->values[s->node->in[0]].shape, HAPI_LAYOUT_PLAIN);
        rc = hapi_gpu_copy(b, &x, &dense);
        if (!rc && !hapi_gpu_view_reshape(&y, &x, &b->g->values[s->out].shape))
            return hapi_gpu_refuse(b, "its result lies in too many dims");
    }
    if (!rc)
        hapi_gpu_made(b, s->out, &y);
    return rc;
}

int hapi_gpu_transpose(struct hapi_gpu_build *b)
{
    const struct hapi_node *n = b->step->node;
    int rank = b->g->values[n->in[0]].shape.rank;
    int64_t perm[HAPI_MAX_RANK];
    struct hapi_gpu_view x, y;
    size_t given = hapi_node_ints(n, "perm", perm, HAPI_MAX_RANK);
    int rc = looked_at(b, n->in[0], &x);

    for (int i = 0; i < rank && !given; i++)
        perm[i] = rank - 1 - i;
    if (!rc && !hapi_gpu_view_transpose(&y, &x, perm))
        return hapi_gpu_refuse(b, "its result lies in too many dims");
    if (!rc)
        hapi_gpu_made(b, b->step->out, &y);
    return rc;
}

/* k-th number of a list of Slice: of an input, or of the attribute (opset < 10). */
static bool slice_number(const struct hapi_gpu_build *b, const char *name, int index, int64_t k, int64_t *out)
{
    const struct hapi_node *n = b->step->node;
    int64_t list[HAPI_MAX_RANK];

    if (index < n->n_in && n->in[index] >= 0) {
        const struct hapi_value *v = &b->g->values[n->in[index]];
        if (!v->data || k >= hapi_ref_count(&v->shape))
            return false;
        *out = hapi_ref_get_i(v->data, v->dtype, k);
        return true;
    }
    if (k >= (int64_t)hapi_node_ints(n, name, list, HAPI_MAX_RANK))
        return false;
    *out = list[k];
    return true;
}

/* Part of one dim; copied first where that is no view. */
static int part_of(struct hapi_gpu_build *b, struct hapi_gpu_view *v, const struct hapi_shape *s, int d,
                   int64_t start, int64_t step, int64_t n)
{
    struct hapi_gpu_view part, dense;
    int rc = HAPI_OK;

    if (!hapi_gpu_view_slice(&part, v, d, start, step, n)) {
        hapi_gpu_view_dense(&dense, s, HAPI_LAYOUT_PLAIN);
        rc = hapi_gpu_copy(b, v, &dense);
        if (!rc && !hapi_gpu_view_slice(&part, v, d, start, step, n))
            return hapi_gpu_refuse(b, "its result lies in too many dims");
    }
    if (!rc)
        *v = part;
    return rc;
}

int hapi_gpu_slice(struct hapi_gpu_build *b)
{
    const struct hapi_node *n = b->step->node;
    struct hapi_shape s = b->g->values[n->in[0]].shape;
    const struct hapi_shape *os = &b->g->values[b->step->out].shape;
    int64_t start, axis, step;
    struct hapi_gpu_view v;
    int rc = looked_at(b, n->in[0], &v);

    for (int i = 1; i < n->n_in; i++)
        if (n->in[i] >= 0 && !b->g->values[n->in[i]].data)
            return hapi_gpu_refuse(b, "where it begins is computed");
    for (int64_t k = 0; k < s.rank && !rc && slice_number(b, "starts", 1, k, &start); k++) {
        if (!slice_number(b, "axes", 3, k, &axis))
            axis = k;
        if (!slice_number(b, "steps", 4, k, &step))
            step = 1;
        int d = hapi_ref_axis(axis, s.rank);
        if (d < 0 || step < 1)
            return hapi_gpu_refuse(b, "a step backwards, or an axis out of range");
        start += start < 0 ? s.dim[d] : 0;
        start = start < 0 ? 0 : start > s.dim[d] ? s.dim[d] : start;
        rc = part_of(b, &v, &s, d, start, step, os->dim[d]);
        s.dim[d] = os->dim[d];
    }
    if (!rc)
        hapi_gpu_made(b, b->step->out, &v);
    return rc;
}

int hapi_gpu_split(struct hapi_gpu_build *b)
{
    const struct hapi_node *n = b->step->node;
    const struct hapi_shape *s = &b->g->values[n->in[0]].shape;
    int axis = hapi_ref_axis(hapi_node_int(n, "axis", 0), s->rank), rc;
    struct hapi_gpu_view x, v;
    int64_t at = 0;

    rc = looked_at(b, n->in[0], &x);
    if (!rc && axis < 0)
        return hapi_gpu_refuse(b, "its axis is out of range");
    for (int i = 0; i < n->n_out && !rc; i++) {
        if (n->out[i] < 0)
            return hapi_gpu_refuse(b, "a part of it is left out");
        int64_t size = b->g->values[n->out[i]].shape.dim[axis];
        v = x;
        rc = part_of(b, &v, s, axis, at, 1, size);
        if (!rc)
            hapi_gpu_made(b, n->out[i], &v);
        at += size;
    }
    return rc;
}

int hapi_gpu_expand(struct hapi_gpu_build *b)
{
    struct hapi_gpu_view x, y;
    int rc = looked_at(b, b->step->node->in[0], &x);

    if (!rc && !hapi_gpu_view_expand(&y, &x, &b->g->values[b->step->out].shape))
        return hapi_gpu_refuse(b, "its result lies in too many dims");
    if (!rc)
        hapi_gpu_made(b, b->step->out, &y);
    return rc;
}

int hapi_gpu_gather(struct hapi_gpu_build *b)
{
    const struct hapi_node *n = b->step->node;
    const struct hapi_value *ids = &b->g->values[n->in[1]];
    const struct hapi_shape *s = &b->g->values[n->in[0]].shape;
    int axis = hapi_ref_axis(hapi_node_int(n, "axis", 0), s->rank), rc;
    struct hapi_gpu_view x, y;

    if (axis < 0 || !ids->data || hapi_ref_count(&ids->shape) != 1)
        return hapi_gpu_refuse(b, "only one constant index is taken there");
    int64_t at = hapi_ref_get_i(ids->data, ids->dtype, 0);
    at += at < 0 ? s->dim[axis] : 0;
    if (at < 0 || at >= s->dim[axis])
        return hapi_gpu_refuse(b, "its index is out of range");
    rc = looked_at(b, n->in[0], &x);
    if (!rc)
        rc = part_of(b, &x, s, axis, at, 1, 1);
    if (!rc && !hapi_gpu_view_reshape(&y, &x, &b->g->values[b->step->out].shape))
        return hapi_gpu_refuse(b, "its result lies in too many dims");
    if (!rc)
        hapi_gpu_made(b, b->step->out, &y);
    return rc;
}

/* ------------------------------------------------------------------ concatenation */

/* Whether n begins with the inputs of the block's last concatenation, along the same axis. */
static bool goes_on(const struct hapi_gpu_build *b, const struct hapi_gpu_block *k, const struct hapi_node *n)
{
    if (!k->last || hapi_node_int(n, "axis", 1) != hapi_node_int(k->last, "axis", 1) ||
        n->n_in < k->last->n_in)
        return false;
    for (int i = 0; i < k->last->n_in; i++)
        if (n->in[i] != k->last->in[i] || b->values[n->in[i]].block != (int)(k - b->blocks))
            return false;
    return true;
}

/* Gives n's inputs that are nobody's their places in block k. */
static bool block_take(struct hapi_gpu_build *b, int k, const struct hapi_node *n)
{
    int64_t at = 0;

    for (int i = 0; i < n->n_in; i++) {
        struct hapi_gpu_value *v = &b->values[n->in[i]];
        if (v->block >= 0 && (v->block != k || v->at != at))
            return false;
        if (v->block < 0 && b->g->values[n->in[i]].data)
            return false;
        at += b->g->values[n->in[i]].shape.dim[b->blocks[k].axis];
    }
    at = 0;
    for (int i = 0; i < n->n_in; i++) {
        b->values[n->in[i]].block = k;
        b->values[n->in[i]].at = at;
        at += b->g->values[n->in[i]].shape.dim[b->blocks[k].axis];
    }
    b->blocks[k].last = n;
    return true;
}

int hapi_gpu_blocks_find(struct hapi_gpu_build *b)
{
    b->blocks = calloc(b->n_steps + 1, sizeof *b->blocks);
    if (!b->blocks)
        return hapi_err_set(b->err, HAPI_ENOMEM, 0, "no memory for a GPU program");
    for (size_t i = 0; i < b->n_steps; i++) {
        const struct hapi_node *n = b->steps[i].node;
        if (n->op != HAPI_OP_Concat || b->g->values[n->out[0]].dtype != HAPI_F32)
            continue;
        int axis = hapi_ref_axis(hapi_node_int(n, "axis", 1), b->g->values[n->out[0]].shape.rank);
        size_t k = b->n_blocks;
        if (axis < 0 || (k > 0 && goes_on(b, &b->blocks[k - 1], n) && block_take(b, (int)k - 1, n)))
            continue;
        b->blocks[k] = (struct hapi_gpu_block){.last = n, .axis = axis, .storage = -1};
        b->n_blocks += block_take(b, (int)k, n);
    }
    return HAPI_OK;
}

/* In the block whose parts its inputs are; those that lie elsewhere are copied there once. */
static int concat_block(struct hapi_gpu_build *b, int k)
{
    const struct hapi_node *n = b->step->node;
    const struct hapi_shape *os = &b->g->values[n->out[0]].shape;
    struct hapi_gpu_view from, part, all;
    int rc = HAPI_OK;

    for (int i = 0; i < n->n_in && !rc; i++) {
        rc = hapi_gpu_need(b, n->in[i], &from);
        if (!rc)
            rc = hapi_gpu_block_part(b, n->in[i], &part);
        bool there = !rc && from.storage == part.storage && from.offset == part.offset;
        if (rc || there)
            continue;
        rc = hapi_gpu_pointwise(b, HAPI_GPU_COPY, NULL, &part, &from, NULL, NULL);
        hapi_gpu_made(b, n->in[i], &part);
    }
    if (rc)
        return rc;
    hapi_gpu_block_all(b, k, &all);
    if (!hapi_gpu_view_slice(&part, &all, b->blocks[k].axis, 0, 1, os->dim[b->blocks[k].axis]))
        return hapi_gpu_refuse(b, "its result lies in too many dims");
    hapi_gpu_made(b, n->out[0], &part);
    return HAPI_OK;
}

int hapi_gpu_concat(struct hapi_gpu_build *b)
{
    const struct hapi_node *n = b->step->node;
    const struct hapi_shape *os = &b->g->values[n->out[0]].shape;
    int axis = hapi_ref_axis(hapi_node_int(n, "axis", 1), os->rank), k = b->values[n->in[0]].block, rc;
    struct hapi_gpu_view y, part, x;
    int64_t at = 0;

    if (axis < 0 || b->g->values[n->out[0]].dtype != HAPI_F32)
        return hapi_gpu_refuse(b, "only tensors of f32 are joined there");
    for (int i = 0; i < n->n_in && k >= 0; i++) {
        if (b->values[n->in[i]].block != k || b->values[n->in[i]].at != at)
            k = -1;
        at += b->g->values[n->in[i]].shape.dim[axis];
    }
    if (k >= 0)
        return concat_block(b, k);
    hapi_gpu_view_dense(&y, os, os->rank == 4 && axis == 1 ? HAPI_LAYOUT_NHWC : HAPI_LAYOUT_PLAIN);
    rc = hapi_gpu_result(b, n->out[0], &y, false);
    at = 0;
    for (int i = 0; i < n->n_in && !rc; i++) {
        int64_t size = b->g->values[n->in[i]].shape.dim[axis];
        rc = hapi_gpu_need(b, n->in[i], &x);
        if (!rc && !hapi_gpu_view_slice(&part, &y, axis, at, 1, size))
            return hapi_gpu_refuse(b, "its result lies in too many dims");
        if (!rc)
            rc = hapi_gpu_pointwise(b, HAPI_GPU_COPY, NULL, &part, &x, NULL, NULL);
        at += size;
    }
    return rc;
}
