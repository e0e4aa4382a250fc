/* Where the steps of the oneDNN back end run on kernels of our own (vector.h). */
#include <math.h>
#include <string.h>

#include "onednn.h"
#include "ref.h"

bool hapi_vector_runs(const struct hapi_vector *v, enum hapi_dtype dtype)
{
    if (dtype != HAPI_F32 && (dtype != HAPI_BF16 || !v->bf16 || !hapi_cpu_has_bf16(NULL)))
        return false;
    if (v == &hapi_vector_avx2)
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

const struct hapi_vector *hapi_vector_of(enum hapi_dtype dtype)
{
    static const struct {
        unsigned isa;
        const struct hapi_vector *vector;
    } builds[] = {{dnnl_cpu_isa_avx512_core, &hapi_vector_avx512}, {dnnl_cpu_isa_avx2, &hapi_vector_avx2}};
    unsigned isa = (unsigned)dnnl_get_effective_cpu_isa();

    for (size_t i = 0; i < sizeof builds / sizeof *builds; i++)
        if ((isa & builds[i].isa) == builds[i].isa && hapi_vector_runs(builds[i].vector, dtype))
            return builds[i].vector;
    return NULL;
}

bool hapi_vector_act(const struct hapi_act *act)
{
    switch (act->kind) {
    case HAPI_ACT_NONE:
    case HAPI_ACT_RELU:
    case HAPI_ACT_CLIP:
    case HAPI_ACT_SIGMOID:
    case HAPI_ACT_SWISH:
    case HAPI_ACT_GELU:
        return true;
    default:
        return false;
    }
}

bool hapi_dnn_post_act(const struct hapi_dnn *b, const struct hapi_act *act)
{
    bool inexact = act->kind == HAPI_ACT_SIGMOID || act->kind == HAPI_ACT_SWISH || act->kind == HAPI_ACT_GELU;

    return act->kind != HAPI_ACT_NONE && !(b->vector && inexact);
}

void hapi_dnn_vector_run(const struct hapi_vector *v, const struct hapi_dnn_op *op, void *dst,
                         const void *src, const void *scale, const void *shift, const void *plus)
{
    struct hapi_affine a = op->vector.affine;
    struct hapi_layer_norm l;

    src = (const unsigned char *)src + op->src_offset;
    dst = (unsigned char *)dst + op->dst_offset;
    switch (op->kind) {
    case HAPI_DNN_AFFINE:
        a.scale = scale;
        a.shift = shift;
        v->affine(&a, dst, src);
        break;
    case HAPI_DNN_SOFTMAX:
        v->softmax(&op->vector.softmax, dst, src, (const float *const[HAPI_MASKS]){scale, shift});
        break;
    case HAPI_DNN_CONV:
        v->conv(&op->vector.conv, dst, src, scale, shift, plus);
        break;
    default:
        l = op->vector.layer_norm;
        l.scale = scale;
        l.shift = shift;
        v->layer_norm(&l, dst, src);
    }
}

struct hapi_dnn_op *hapi_dnn_vector_op(struct hapi_dnn *b, enum hapi_dnn_op_kind kind, const char *name,
                                       int src, int dst, int scale, int shift)
{
    struct hapi_dnn_op *op = hapi_dnn_op_next(b, kind);

    if (!op)
        return NULL;
    op->kernel = name;
    op->src = src;
    op->dst = dst;
    op->scale = scale;
    op->shift = shift;
    hapi_dnn_touch(b, src);
    hapi_dnn_touch(b, dst);
    if (scale >= 0)
        hapi_dnn_touch(b, scale);
    if (shift >= 0)
        hapi_dnn_touch(b, shift);
    b->n_ops++;
    return op;
}

static int no_memory(struct hapi_err *err)
{
    return hapi_err_set(err, HAPI_ENOMEM, 0, "no memory for a plan");
}

/* A storage with the n f32 numbers at p. */
static int vector_of(struct hapi_dnn *b, const float *p, int64_t n, struct hapi_err *err)
{
    dnnl_memory_desc_t md;
    dnnl_dims_t dims = {n};
    dnnl_status_t s = dnnl_memory_desc_init_by_tag(&md, 1, dims, dnnl_f32, dnnl_a);

    return s ? hapi_dnn_fail(b, s, "cannot describe a vector", err)
             : hapi_dnn_weight(b, p, false, &md, &md, err);
}

int hapi_dnn_vector_act(struct hapi_dnn *b, int x_rep, int y_rep, const struct hapi_act *act,
                        struct hapi_err *err)
{
    const struct hapi_dnn_rep *x = &b->reps[x_rep], *y = &b->reps[y_rep];
    struct hapi_dnn_op *op =
        hapi_dnn_vector_op(b, HAPI_DNN_AFFINE, "hapi:activation", x->storage, y->storage, -1, -1);
    int64_t n = hapi_ref_count(&b->g->values[y->value].shape);

    if (!op)
        return no_memory(err);
    op->vector.affine = (struct hapi_affine){.rows = {1, n, n, n, x->dtype, y->dtype}, .act = *act};
    return HAPI_OK;
}

/* The rep of a channels-last value as rows, dense or not, in the dtype of computing. */
static int rows_of(struct hapi_dnn *b, int value, int64_t *row, struct hapi_err *err)
{
    enum hapi_dtype dtype = hapi_dnn_dtype(b, value);

    for (int r = b->rep_of[value]; r >= 0; r = b->reps[r].next)
        if (b->reps[r].row && b->reps[r].dtype == dtype) {
            *row = b->reps[r].row;
            return r;
        }
    *row = b->g->values[value].shape.dim[1];
    return hapi_dnn_need(b, value, dtype, HAPI_LAYOUT_NHWC, err);
}

/* The file's bytes may be unaligned. */
static double element(const unsigned char *data, int64_t i)
{
    float x;

    memcpy(&x, data + (size_t)i * sizeof x, sizeof x);
    return (double)x;
}

/* scale = gamma / sqrt(var + eps), shift = beta - mean * scale, as storages. */
static int batch_norm_lines(struct hapi_dnn *b, int *scale, int *shift, struct hapi_err *err)
{
    const struct hapi_node *n = b->step->node;
    const unsigned char *p[5] = {NULL};
    int64_t c = b->g->values[n->in[0]].shape.dim[1];
    float *lines = hapi_arena_array(b->mem, 2 * (size_t)c, sizeof *lines);
    double epsilon = (double)hapi_node_float(n, "epsilon", 1e-5F);

    if (!lines)
        return no_memory(err);
    for (int i = 1; i < 5; i++) {
        const struct hapi_value *v = &b->g->values[n->in[i]];
        if (!v->data || v->dtype != HAPI_F32 || hapi_ref_count(&v->shape) != c)
            return HAPI_DNN_NONE;
        p[i] = v->data;
    }
    for (int64_t i = 0; i < c; i++) {
        double k = element(p[1], i) / sqrt(element(p[4], i) + epsilon);
        lines[i] = (float)k;
        lines[c + i] = (float)(element(p[2], i) - element(p[3], i) * k);
    }
    hapi_dnn_source_read(b, 4 * (size_t)c * sizeof *lines);
    *scale = vector_of(b, lines, c, err);
    *shift = *scale < 0 ? *scale : vector_of(b, lines + c, c, err);
    return *shift < 0 ? *shift : HAPI_OK;
}

int hapi_dnn_vector_batch_norm(struct hapi_dnn *b, struct hapi_err *err)
{
    const struct hapi_node *n = b->step->node;
    const struct hapi_value *x = &b->g->values[n->in[0]];
    enum hapi_dtype dtype = hapi_dnn_dtype(b, n->in[0]);
    int scale, shift;
    int64_t row;

    if (x->dtype != HAPI_F32 || (x->shape.rank != 3 && x->shape.rank != 4) || !hapi_ref_count(&x->shape) ||
        n->n_in < 5 || hapi_node_int(n, "training_mode", 0) || !hapi_vector_act(&b->step->act))
        return HAPI_DNN_NONE;
    int rc = batch_norm_lines(b, &scale, &shift, err);
    if (rc)
        return rc;
    int r = rows_of(b, n->in[0], &row, err);
    int y = r < 0 ? r : hapi_dnn_make(b, b->step->out, dtype, HAPI_LAYOUT_NHWC, err);
    if (y < 0)
        return y;
    struct hapi_dnn_op *op = hapi_dnn_vector_op(b, HAPI_DNN_AFFINE, "hapi:batch_norm", b->reps[r].storage,
                                                b->reps[y].storage, scale, shift);
    if (!op)
        return no_memory(err);
    int64_t c = x->shape.dim[1];
    op->vector.affine = (struct hapi_affine){.rows = {hapi_ref_count(&x->shape) / c, c, row, c, dtype, dtype},
                                             .scale_dtype = HAPI_F32,
                                             .act = b->step->act};
    return HAPI_OK;
}

/* (N,C,H,W) * (N,C,1,1): the gate of squeeze and excitation. */
int hapi_dnn_vector_gate(struct hapi_dnn *b, struct hapi_err *err)
{
    const struct hapi_node *n = b->step->node;
    const struct hapi_shape *o = &b->g->values[b->step->out].shape, *g;
    enum hapi_dtype dtype = b->spec.dtype;
    int wide, gate;

    if (n->op != HAPI_OP_Mul || n->n_in != 2 || o->rank != 4 ||
        b->g->values[b->step->out].dtype != HAPI_F32 || !hapi_ref_count(o) ||
        !hapi_vector_act(&b->step->act) || b->g->opset < 7)
        return HAPI_DNN_NONE;
    wide = hapi_shape_equal(&b->g->values[n->in[0]].shape, o) ? 0 : 1;
    gate = n->in[!wide];
    wide = n->in[wide];
    g = &b->g->values[gate].shape;
    if (!hapi_shape_equal(&b->g->values[wide].shape, o) || g->rank != 4 || g->dim[0] != o->dim[0] ||
        g->dim[1] != o->dim[1] || g->dim[2] != 1 || g->dim[3] != 1 ||
        hapi_dnn_layout(b, wide) != HAPI_LAYOUT_NHWC)
        return HAPI_DNN_NONE;
    int x = hapi_dnn_need(b, wide, dtype, HAPI_LAYOUT_NHWC, err);
    int k = x < 0 ? x : hapi_dnn_need(b, gate, dtype, HAPI_LAYOUT_NHWC, err);
    if (k < 0)
        return k;
    int y = hapi_dnn_make_over(b, x, err);
    if (y < 0)
        return y;
    struct hapi_dnn_op *op = hapi_dnn_vector_op(b, HAPI_DNN_AFFINE, "hapi:gate", b->reps[x].storage,
                                                b->reps[y].storage, b->reps[k].storage, -1);
    if (!op)
        return no_memory(err);
    int64_t c = o->dim[1], pixels = o->dim[2] * o->dim[3];
    op->vector.affine = (struct hapi_affine){.rows = {o->dim[0] * pixels, c, c, c, dtype, dtype},
                                             .scale_dtype = dtype,
                                             .group = pixels,
                                             .act = b->step->act};
    return HAPI_OK;
}

/* x in the model's order and the step's output, over x where that may be overwritten. */
static int row_edges(struct hapi_dnn *b, int value, int *x, int *y, struct hapi_err *err)
{
    *x = hapi_dnn_need(b, value, hapi_dnn_dtype(b, value), HAPI_LAYOUT_PLAIN, err);
    if (*x < 0)
        return *x;
    *y = hapi_dnn_make_over(b, *x, err);
    return *y < 0 ? *y : HAPI_OK;
}

int hapi_dnn_vector_softmax(struct hapi_dnn *b, struct hapi_err *err)
{
    const struct hapi_node *n = b->step->node;
    const struct hapi_value *v = &b->g->values[b->step->x];
    const struct hapi_shape *s = &v->shape;
    bool one = b->g->opset >= 13;
    int axis = hapi_ref_axis(hapi_node_int(n, "axis", one ? -1 : 1), b->g->values[n->in[0]].shape.rank), x, y;
    int mask[HAPI_MASKS] = {-1, -1};

    if (v->dtype != HAPI_F32 || axis < 0 || !hapi_ref_count(s) ||
        (one && axis != b->g->values[n->in[0]].shape.rank - 1))
        return HAPI_DNN_NONE;
    int64_t cols = hapi_ref_span(&b->g->values[n->in[0]].shape, axis, b->g->values[n->in[0]].shape.rank);
    for (int k = 0; k < HAPI_MASKS; k++) {
        if (b->step->mask[k].value < 0)
            continue;
        int r = hapi_dnn_need(b, b->step->mask[k].value, HAPI_F32, HAPI_LAYOUT_PLAIN, err);
        if (r < 0)
            return r;
        mask[k] = b->reps[r].storage;
    }
    int rc = row_edges(b, b->step->x, &x, &y, err);
    if (rc)
        return rc;
    enum hapi_dtype dtype = b->reps[x].dtype;
    struct hapi_dnn_op *op = hapi_dnn_vector_op(b, HAPI_DNN_SOFTMAX, "hapi:softmax", b->reps[x].storage,
                                                b->reps[y].storage, mask[0], mask[1]);
    if (!op)
        return no_memory(err);
    op->vector.softmax =
        (struct hapi_softmax){.rows = {hapi_ref_count(s) / cols, cols, cols, cols, dtype, dtype}};
    memcpy(op->vector.softmax.mask, b->step->mask, sizeof b->step->mask);
    return HAPI_OK;
}

int hapi_dnn_vector_layer_norm(struct hapi_dnn *b, struct hapi_err *err)
{
    const struct hapi_node *n = b->step->node;
    const struct hapi_shape *s = &b->g->values[n->in[0]].shape;
    int axis = hapi_ref_axis(hapi_node_int(n, "axis", -1), s->rank), x, y, line[3] = {-1, -1, -1};

    if (b->g->values[n->in[0]].dtype != HAPI_F32 || axis < 0 || !hapi_ref_count(s) ||
        (n->n_out > 1 && n->out[1] >= 0) || (n->n_out > 2 && n->out[2] >= 0))
        return HAPI_DNN_NONE;
    int64_t cols = hapi_ref_span(s, axis, s->rank);
    for (int i = 1; i < 3 && i < n->n_in; i++) {
        if (n->in[i] < 0)
            continue;
        if (hapi_ref_count(&b->g->values[n->in[i]].shape) != cols)
            return HAPI_DNN_NONE;
        int r = hapi_dnn_need(b, n->in[i], HAPI_F32, HAPI_LAYOUT_PLAIN, err);
        if (r < 0)
            return r;
        line[i] = b->reps[r].storage;
    }
    int rc = row_edges(b, n->in[0], &x, &y, err);
    if (rc)
        return rc;
    enum hapi_dtype dtype = b->reps[x].dtype;
    struct hapi_dnn_op *op = hapi_dnn_vector_op(b, HAPI_DNN_LAYER_NORM, "hapi:layer_norm", b->reps[x].storage,
                                                b->reps[y].storage, line[1], line[2]);
    if (!op)
        return no_memory(err);
    op->vector.layer_norm =
        (struct hapi_layer_norm){.rows = {hapi_ref_count(s) / cols, cols, cols, cols, dtype, dtype},
                                 .epsilon = hapi_node_float(n, "epsilon", 1e-5F)};
    return HAPI_OK;
}

/* InstanceNormalization (each channel is a group) and GroupNormalization, whose parameters have one number
 * for each channel, or for each group. */
int hapi_dnn_vector_channel_norm(struct hapi_dnn *b, struct hapi_err *err)
{
    const struct hapi_node *n = b->step->node;
    const struct hapi_shape *s = &b->g->values[n->in[0]].shape;
    int64_t channels = s->dim[1], plane = hapi_ref_span(s, 2, s->rank);
    int64_t groups = n->op == HAPI_OP_GroupNormalization ? hapi_node_int(n, "num_groups", 1) : channels;
    int x, y, line[3] = {-1};

    if (b->g->values[n->in[0]].dtype != HAPI_F32 || !hapi_ref_count(s))
        return HAPI_DNN_NONE;
    int64_t per = channels / b->g->values[n->in[1]].shape.dim[0], cols = channels / groups * plane;
    if (per != 1 && per != channels / groups)
        return HAPI_DNN_NONE;
    for (int i = 1; i < 3; i++) {
        int r = hapi_dnn_need(b, n->in[i], HAPI_F32, HAPI_LAYOUT_PLAIN, err);
        if (r < 0)
            return r;
        line[i] = b->reps[r].storage;
    }
    int rc = row_edges(b, n->in[0], &x, &y, err);
    if (rc)
        return rc;
    struct hapi_dnn_op *op = hapi_dnn_vector_op(b, HAPI_DNN_LAYER_NORM, "hapi:channel_norm",
                                                b->reps[x].storage, b->reps[y].storage, line[1], line[2]);
    if (!op)
        return no_memory(err);
    op->vector.layer_norm = (struct hapi_layer_norm){
        .rows = {hapi_ref_count(s) / cols, cols, cols, cols, b->reps[x].dtype, b->reps[x].dtype},
        .plane = per * plane,
        .period = groups,
        .epsilon = hapi_node_float(n, "epsilon", 1e-5F)};
    return HAPI_OK;
}

/* ------------------------------------------------------------------ blocks of concatenations */

static bool on_channels(const struct hapi_dnn *b, const struct hapi_node *n)
{
    const struct hapi_shape *o = &b->g->values[n->out[0]].shape;

    return n->op == HAPI_OP_Concat && o->rank == 4 && hapi_ref_axis(hapi_node_int(n, "axis", 1), 4) == 1;
}

/* Whether `longer` begins with all that n concatenates. */
static bool goes_on(const struct hapi_node *n, const struct hapi_node *longer)
{
    return longer->n_in > n->n_in && !memcmp(n->in, longer->in, (size_t)n->n_in * sizeof *n->in);
}

/* Channels of the longest concatenation to come that begins with n; 0: none. */
static int64_t channels_to_come(const struct hapi_dnn *b, const struct hapi_node *n)
{
    int64_t most = 0;

    for (const struct hapi_step *s = b->step + 1; s < b->steps + b->n_steps; s++)
        if (on_channels(b, s->node) && goes_on(n, s->node)) {
            int64_t c = b->g->values[s->node->out[0]].shape.dim[1];
            most = c > most ? c : most;
        }
    return most;
}

static struct hapi_dnn_block *block_of(struct hapi_dnn *b, const struct hapi_node *n, struct hapi_err *err)
{
    const struct hapi_shape *o = &b->g->values[n->out[0]].shape;
    struct hapi_dnn_block *block = b->blocks;
    enum hapi_dtype dtype = b->spec.dtype;

    while (block && !(block->row >= o->dim[1] && goes_on(block->concat, n)))
        block = block->next;
    if (block)
        return block;
    int64_t row = channels_to_come(b, n);
    if (!row)
        return NULL;
    block = hapi_arena_array(b->mem, 1, sizeof *block);
    size_t bytes = (size_t)(hapi_ref_count(o) / o->dim[1] * row) * hapi_dtype_size(dtype);
    int storage = block ? hapi_dnn_storage(b, HAPI_DNN_ARENA, bytes, err) : -1;
    if (storage < 0)
        return NULL;
    *block = (struct hapi_dnn_block){b->blocks, n, storage, row, 0};
    b->blocks = block;
    return block;
}

int hapi_dnn_vector_concat(struct hapi_dnn *b, struct hapi_err *err)
{
    const struct hapi_node *n = b->step->node;
    const struct hapi_value *o = &b->g->values[b->step->out];
    enum hapi_dtype dtype = b->spec.dtype;
    int64_t at = 0;

    if (o->dtype != HAPI_F32 || !on_channels(b, n))
        return HAPI_DNN_NONE;
    for (int i = 0; i < n->n_in; i++)
        if (hapi_dnn_layout(b, n->in[i]) != HAPI_LAYOUT_NHWC ||
            !hapi_ref_count(&b->g->values[n->in[i]].shape))
            return HAPI_DNN_NONE;
    struct hapi_dnn_block *block = block_of(b, n, err);
    if (!block)
        return HAPI_DNN_NONE;
    for (int i = 0; i < n->n_in; i++) {
        const struct hapi_shape *s = &b->g->values[n->in[i]].shape;
        int64_t c = s->dim[1];
        at += c;
        if (at <= block->used)
            continue;
        int r = hapi_dnn_need(b, n->in[i], dtype, HAPI_LAYOUT_NHWC, err);
        if (r < 0)
            return r;
        struct hapi_dnn_op *op =
            hapi_dnn_vector_op(b, HAPI_DNN_AFFINE, "hapi:append", b->reps[r].storage, block->storage, -1, -1);
        if (!op)
            return no_memory(err);
        op->dst_offset = (size_t)(at - c) * hapi_dtype_size(dtype);
        op->vector.affine =
            (struct hapi_affine){.rows = {hapi_ref_count(s) / c, c, c, block->row, dtype, dtype}};
    }
    block->used = at;
    block->concat = n;
    int y = hapi_dnn_rep_add(b, b->step->out, dtype, HAPI_LAYOUT_NHWC, block->storage, err);
    if (y < 0)
        return y;
    b->reps[y].row = block->row;
    return HAPI_OK;
}
