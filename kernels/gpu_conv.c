/* Convolutions, pools and batch norms: channels-last, what follows and what goes before in the same operation
 * graph. */
#include <math.h>
#include <string.h>

#include "gpu_tail.h"

/* ------------------------------------------------------------------ channels-last */

/* Elements from pixel to pixel where the value is channels-last, a whole image after the other; 0: it is not.
 */
static int64_t pixel_row(const struct hapi_gpu_view *v)
{
    const struct hapi_gpu_factor *f = v->f;
    struct hapi_gpu_factor outer[HAPI_GPU_FACTORS], rows[HAPI_GPU_FACTORS];
    int64_t c = hapi_gpu_dim(v, 1), row = c, pixels = hapi_gpu_dim(v, 2) * hapi_gpu_dim(v, 3);
    int nc = v->first[2] - v->first[1];

    if (nc > 1 || (nc == 1 && f[v->first[1]].stride != 1))
        return 0;
    int n = hapi_gpu_view_span(v, 2, 4, rows), m = hapi_gpu_view_span(v, 0, 1, outer);
    if (n > 1 || m > 1)
        return 0;
    if (n)
        row = rows[0].stride;
    else if (m)
        row = outer[0].stride / pixels;
    if (row < c || (m && outer[0].stride != row * pixels) || !hapi_gpu_aligned(v))
        return 0;
    return row;
}

/* The value channels-last, copied if it must be. */
static int nhwc(struct hapi_gpu_build *b, int value, struct hapi_gpu_view *out, int64_t *row)
{
    struct hapi_gpu_view like;
    int rc = hapi_gpu_need(b, value, out);

    if (rc)
        return rc;
    *row = pixel_row(out);
    if (*row)
        return HAPI_OK;
    hapi_gpu_view_dense(&like, &b->g->values[value].shape, HAPI_LAYOUT_NHWC);
    rc = hapi_gpu_copy(b, out, &like);
    *row = b->g->values[value].shape.dim[1];
    return rc;
}

static int image(struct hapi_cudnn_graph *g, enum hapi_dtype dtype, const int64_t *dim, int64_t row,
                 bool is_virtual)
{
    int64_t stride[4] = {row * dim[2] * dim[3], 1, row * dim[3], row};

    return hapi_cudnn_tensor_add(g, dtype, 4, dim, stride, is_virtual);
}

/* ------------------------------------------------------------------ a convolution's operation graph */

struct conv {
    struct hapi_window w;
    struct hapi_gpu_view x, weights, y, bias, residual, scale, shift;
    int64_t x_row, y_row, residual_row;
    bool prologue; /* x is act(x * scale + shift) */
    struct hapi_act before;
    const struct hapi_shape *xs, *ws, *ys;
};

/* Appends act(x * scale + shift). Returns the tensor of its result. */
static int prologue_add(struct hapi_cudnn_graph *g, const struct conv *c, enum hapi_dtype dtype, int x,
                        const struct hapi_gpu_view **views)
{
    const int64_t channels[4] = {1, c->xs->dim[1], 1, 1};
    int scale = image(g, HAPI_F32, channels, channels[1], false);
    int shift = image(g, HAPI_F32, channels, channels[1], false);
    int mul = image(g, HAPI_F32, c->xs->dim, channels[1], true), add = -1;
    int y = image(g, dtype, c->xs->dim, channels[1], true);
    struct hapi_cudnn_op *op = hapi_cudnn_op_add(g, HAPI_CUDNN_POINTWISE, mul);

    views[scale] = &c->scale;
    views[shift] = &c->shift;
    hapi_gpu_op_binary(op, HAPI_CUDNN_MUL, x, scale);
    if (c->before.kind != HAPI_ACT_NONE)
        add = image(g, HAPI_F32, c->xs->dim, channels[1], true);
    op = hapi_cudnn_op_add(g, HAPI_CUDNN_POINTWISE, add < 0 ? y : add);
    hapi_gpu_op_binary(op, HAPI_CUDNN_ADD, mul, shift);
    if (add >= 0) {
        op = hapi_cudnn_op_add(g, HAPI_CUDNN_POINTWISE, y);
        (void)hapi_gpu_act_mode(&c->before, op); /* batch_norm() has looked */
        hapi_gpu_op_unary(op, add);
    }
    return y;
}

static void window_set(struct hapi_cudnn_op *op, const struct hapi_window *w)
{
    op->spatial = 2;
    for (int i = 0; i < 2; i++) {
        op->kernel[i] = w->kernel[i];
        op->stride[i] = w->stride[i];
        op->dilation[i] = w->dilation[i];
        op->pad_begin[i] = w->pad_begin[i];
        op->pad_end[i] = w->pad_end[i];
    }
}

/* With tail, or (NULL) the bare convolution. */
static int conv_launch(struct hapi_gpu_build *b, const struct conv *c, const struct hapi_gpu_tail *tail,
                       bool *taken)
{
    struct hapi_cudnn_graph *g = hapi_gpu_graph(b);
    const struct hapi_gpu_view *views[HAPI_CUDNN_TENSORS] = {NULL};
    const struct hapi_gpu_tail none = {.bias = NULL};
    const int64_t channels[4] = {1, c->ys->dim[1], 1, 1};
    struct hapi_gpu_tail_tensors t;

    if (!g)
        return HAPI_ENOMEM;
    tail = tail ? tail : &none;
    int x = image(g, b->dtype, c->xs->dim, c->x_row, false);
    views[x] = &c->x;
    int src = c->prologue ? prologue_add(g, c, b->dtype, x, views) : x;
    int w = image(g, b->dtype, c->ws->dim, c->ws->dim[1], false);
    views[w] = &c->weights;
    bool last = hapi_gpu_tail_ops(tail) == 0;
    int y = image(g, last ? b->dtype : HAPI_F32, c->ys->dim, last ? c->y_row : c->ys->dim[1], !last);
    struct hapi_cudnn_op *op = hapi_cudnn_op_add(g, HAPI_CUDNN_CONV, y);
    hapi_gpu_op_binary(op, op->mode, src, w);
    window_set(op, &c->w);
    t = (struct hapi_gpu_tail_tensors){.dtype = b->dtype, .rank = 4};
    memcpy(t.dim, c->ys->dim, sizeof t.dim[0] * 4);
    memcpy(t.bias_dim, channels, sizeof channels);
    memcpy(t.stride, (int64_t[4]){c->y_row * t.dim[2] * t.dim[3], 1, c->y_row * t.dim[3], c->y_row},
           4 * sizeof(int64_t));
    int64_t r = c->residual_row;
    memcpy(t.residual_stride, (int64_t[4]){r * t.dim[2] * t.dim[3], 1, r * t.dim[3], r}, 4 * sizeof(int64_t));
    y = hapi_gpu_tail_add(g, tail, &t, y, views);
    views[y] = &c->y;
    uint64_t macs = 1;
    for (int i = 0; i < 4; i++)
        macs *= (uint64_t)c->ys->dim[i];
    macs *= (uint64_t)(c->ws->dim[1] * c->ws->dim[2] * c->ws->dim[3]);
    return hapi_gpu_launch_graph(b, g, views, 2 * macs, taken);
}

/* Constant weights (K,C,R,S) in memory as (K,R,S,C). */
static int conv_weights(struct hapi_gpu_build *b, int value, struct hapi_gpu_view *out)
{
    static const int64_t perm[] = {0, 2, 3, 1};
    const struct hapi_shape *s = &b->g->values[value].shape;
    const struct hapi_shape krsc = {4, {s->dim[0], s->dim[2], s->dim[3], s->dim[1]}};
    struct hapi_gpu_view plain, from, to;

    hapi_gpu_view_dense(&plain, s, HAPI_LAYOUT_PLAIN);
    hapi_gpu_view_dense(&to, &krsc, HAPI_LAYOUT_PLAIN);
    (void)hapi_gpu_view_transpose(&from, &plain, perm); /* of a dense view: always one */
    return hapi_gpu_constant(b, value, HAPI_GPU_FILTER, &from, &to, out);
}

static int conv_operands(struct hapi_gpu_build *b, struct conv *c, struct hapi_gpu_tail *tail)
{
    const struct hapi_step *s = b->step;
    int bias = s->node->n_in > 2 ? s->node->in[2] : HAPI_NO_VALUE;
    int rc = conv_weights(b, s->node->in[1], &c->weights);

    if (!rc && bias >= 0) {
        if (!b->g->values[bias].data)
            return hapi_gpu_refuse(b, "its bias is no constant");
        rc = hapi_gpu_need_wide(b, bias, &c->bias);
        tail->bias = &c->bias;
    }
    if (!rc && s->residual >= 0) {
        rc = nhwc(b, s->residual, &c->residual, &c->residual_row);
        tail->residual = &c->residual;
    }
    return rc;
}

/* A batch norm that only this convolution reads may be its first part: where no padding comes between them.
 */
static int conv_input(struct hapi_gpu_build *b, struct conv *c)
{
    const struct hapi_window *w = &c->w;
    struct hapi_gpu_value *v = &b->values[b->step->x];
    bool point = w->kernel[0] == 1 && w->kernel[1] == 1 && !w->pad_begin[0] && !w->pad_begin[1] &&
                 !w->pad_end[0] && !w->pad_end[1];

    if (v->lazy != HAPI_GPU_AFFINE || !point)
        return nhwc(b, b->step->x, &c->x, &c->x_row);
    const struct hapi_step *before = v->step;
    int rc = nhwc(b, before->node->in[0], &c->x, &c->x_row);
    c->prologue = true;
    c->before = before->act;
    return rc ? rc : hapi_gpu_affine_constants(b, before, &c->scale, &c->shift);
}

/* What of the tail cuDNN did not take, by a kernel of ours, in place. */
static int tail_run(struct hapi_gpu_build *b, const struct hapi_gpu_view *y, const struct hapi_gpu_tail *tail)
{
    struct hapi_gpu_view bias;
    struct hapi_gpu_tail wide = *tail;

    if (tail->bias) { /* along the channels */
        const struct hapi_shape *s = &b->g->values[b->step->out].shape;
        const struct hapi_shape c = {3, {s->dim[1], 1, 1}};
        if (!hapi_gpu_view_reshape(&bias, tail->bias, &c) || !hapi_gpu_view_expand(&bias, &bias, s))
            return hapi_gpu_refuse(b, "its bias does not fit");
        wide.bias = &bias;
    }
    return hapi_gpu_tail_run(b, y, &wide);
}

/* The whole in one graph; or without what goes before it; or alone. */
static int conv_forms(struct hapi_gpu_build *b, struct conv *c, struct hapi_gpu_tail *tail)
{
    struct hapi_cudnn_op unused = {.kind = HAPI_CUDNN_POINTWISE};
    struct hapi_gpu_tail inside = *tail, after = {.bias = NULL};
    bool taken = false;
    int rc;

    if (tail->act.kind != HAPI_ACT_NONE && !hapi_gpu_act_mode(&tail->act, &unused)) {
        inside.act.kind = HAPI_ACT_NONE;
        after.act = tail->act;
    }
    rc = conv_launch(b, c, &inside, &taken);
    if (!rc && !taken && c->prologue) {
        c->prologue = false;
        rc = nhwc(b, b->step->x, &c->x, &c->x_row);
        if (!rc)
            rc = conv_launch(b, c, &inside, &taken);
    }
    if (!rc && !taken && hapi_gpu_tail_ops(&inside)) {
        rc = conv_launch(b, c, NULL, &taken);
        after = *tail;
    }
    if (!rc && !taken)
        return hapi_err_context(b->err, "no kernel for node `%s`", b->step->node->name);
    return rc ? rc : tail_run(b, &c->y, &after);
}

int hapi_gpu_conv(struct hapi_gpu_build *b)
{
    const struct hapi_step *s = b->step;
    struct conv c = {.xs = &b->g->values[s->x].shape,
                     .ws = &b->g->values[s->node->in[1]].shape,
                     .ys = &b->g->values[s->out].shape};
    struct hapi_gpu_tail tail = {.act = s->act};
    int rc;

    if (c.xs->rank != 4)
        return hapi_gpu_refuse(b, "only 2-D convolutions run there");
    rc = hapi_window_of(b->g, s->node, &c.w, b->err);
    if (rc)
        return rc;
    for (int i = 0; i < 2; i++) {
        c.w.pad_begin[i] += s->pad[i];
        c.w.pad_end[i] += s->pad[2 + i];
    }
    rc = conv_input(b, &c);
    if (!rc)
        rc = conv_operands(b, &c, &tail);
    hapi_gpu_view_dense(&c.y, c.ys, HAPI_LAYOUT_NHWC);
    if (!rc)
        rc = hapi_gpu_result(b, s->out, &c.y, true);
    if (rc)
        return rc;
    c.y_row = pixel_row(&c.y);
    if (!c.y_row) { /* a part of a concatenation that starts between the 16 bytes: not there */
        b->values[s->out].block = -1;
        hapi_gpu_view_dense(&c.y, c.ys, HAPI_LAYOUT_NHWC);
        rc = hapi_gpu_result(b, s->out, &c.y, false);
        c.y_row = c.ys->dim[1];
    }
    return rc ? rc : conv_forms(b, &c, &tail);
}

/* ------------------------------------------------------------------ pools */

static int pool_window(struct hapi_gpu_build *b, struct hapi_window *w)
{
    const struct hapi_node *n = b->step->node;
    const struct hapi_shape *xs = &b->g->values[n->in[0]].shape;
    bool global = n->op == HAPI_OP_GlobalAveragePool || n->op == HAPI_OP_GlobalMaxPool;
    int rc = HAPI_OK;

    if (xs->rank != 4)
        return hapi_gpu_refuse(b, "only 2-D pools run there");
    if (!global)
        rc = hapi_window_of(b->g, n, w, b->err);
    for (int i = 0; i < 2 && global; i++) {
        w->kernel[i] = xs->dim[2 + i];
        w->stride[i] = w->dilation[i] = 1;
    }
    for (int i = 0; i < 2 && !rc; i++) {
        int64_t out = b->g->values[b->step->out].shape.dim[2 + i];
        int64_t end = (out - 1) * w->stride[i] + w->kernel[i] - xs->dim[2 + i] - w->pad_begin[i];
        if (w->dilation[i] != 1)
            return hapi_gpu_refuse(b, "a dilated pool");
        /* ceil_mode: more padding at the end, which counts nowhere. */
        if (n->op == HAPI_OP_AveragePool && w->count_include_pad && end > w->pad_end[i])
            return hapi_gpu_refuse(b, "ceil_mode with count_include_pad");
        w->pad_end[i] = end > w->pad_end[i] ? end : w->pad_end[i];
    }
    return rc;
}

static int pool_launch(struct hapi_gpu_build *b, const struct hapi_window *w, const struct hapi_gpu_view *x,
                       int64_t x_row, const struct hapi_gpu_view *y, int64_t y_row, bool *taken)
{
    const struct hapi_node *n = b->step->node;
    struct hapi_cudnn_graph *g = hapi_gpu_graph(b);
    const struct hapi_gpu_view *views[HAPI_CUDNN_TENSORS] = {x, y};
    struct hapi_cudnn_op *op;

    if (!g)
        return HAPI_ENOMEM;
    int in = image(g, b->dtype, b->g->values[n->in[0]].shape.dim, x_row, false);
    int out = image(g, b->dtype, b->g->values[b->step->out].shape.dim, y_row, false);
    op = hapi_cudnn_op_add(g, HAPI_CUDNN_RESAMPLE, out);
    hapi_gpu_op_unary(op, in);
    window_set(op, w);
    op->mode = n->op == HAPI_OP_MaxPool || n->op == HAPI_OP_GlobalMaxPool ? HAPI_CUDNN_MAX_POOL
               : w->count_include_pad                                     ? HAPI_CUDNN_AVG_POOL_INCLUDING
                                                                          : HAPI_CUDNN_AVG_POOL;
    return hapi_gpu_launch_graph(b, g, views, 0, taken);
}

int hapi_gpu_pool(struct hapi_gpu_build *b)
{
    const struct hapi_node *n = b->step->node;
    const struct hapi_shape *ys = &b->g->values[b->step->out].shape;
    struct hapi_window w = {.count_include_pad = false};
    struct hapi_gpu_view x, y;
    int64_t row;
    bool taken = false;
    int rc = pool_window(b, &w);

    if (n->n_out > 1 && n->out[1] >= 0 && b->values[n->out[1]].reader != -1)
        return hapi_gpu_refuse(b, "the indices of a pool");
    if (!rc)
        rc = nhwc(b, n->in[0], &x, &row);
    hapi_gpu_view_dense(&y, ys, HAPI_LAYOUT_NHWC);
    if (!rc)
        rc = hapi_gpu_result(b, b->step->out, &y, false); /* cuDNN has no pool into wider rows */
    if (!rc)
        rc = pool_launch(b, &w, &x, row, &y, ys->dim[1], &taken);
    if (!rc && !taken && n->op == HAPI_OP_GlobalAveragePool) {
        const bool inner[4] = {false, false, true, true};
        return hapi_gpu_over(b, HAPI_GPU_MEAN, &y, &x, inner);
    }
    return rc ? rc : taken ? HAPI_OK : hapi_err_context(b->err, "no kernel for node `%s`", n->name);
}

/* ------------------------------------------------------------------ batch norm */

int hapi_gpu_affine_constants(struct hapi_gpu_build *b, const struct hapi_step *s,
                              struct hapi_gpu_view *scale, struct hapi_gpu_view *shift)
{
    const struct hapi_node *n = s->node;
    int64_t c = b->g->values[n->in[1]].shape.dim[0];
    float *p = hapi_arena_array(b->p->mem, 2 * (size_t)c, sizeof *p),
          eps = hapi_node_float(n, "epsilon", 1e-5F);
    int rc;

    if (!p)
        return hapi_err_set(b->err, HAPI_ENOMEM, 0, "no memory for a GPU program");
    for (int64_t i = 0; i < c; i++) {
        float v[4];
        for (int k = 0; k < 4; k++)
            memcpy(&v[k], (const unsigned char *)b->g->values[n->in[1 + k]].data + (size_t)i * sizeof *v,
                   sizeof *v);
        p[i] = v[0] / sqrtf(v[3] + eps);
        p[c + i] = v[1] - v[2] * p[i];
    }
    rc = hapi_gpu_weight_vector(b, p, c, scale);
    return rc ? rc : hapi_gpu_weight_vector(b, p + c, c, shift);
}

int hapi_gpu_batch_norm(struct hapi_gpu_build *b)
{
    const struct hapi_step *s = b->step;
    struct hapi_gpu_value *v = &b->values[s->out];
    struct hapi_cudnn_op unused = {.kind = HAPI_CUDNN_POINTWISE};
    bool representable = s->act.kind == HAPI_ACT_NONE || hapi_gpu_act_mode(&s->act, &unused);

    for (int k = 1; k < 5; k++)
        if (s->node->n_in < 5 || !b->g->values[s->node->in[k]].data ||
            b->g->values[s->node->in[k]].dtype != HAPI_F32)
            return hapi_gpu_refuse(b, "its statistics are no constants of f32");
    v->lazy = HAPI_GPU_AFFINE;
    v->step = s;
    if (representable && v->reader >= 0 && b->steps[v->reader].node->op == HAPI_OP_Conv &&
        b->steps[v->reader].x == s->out)
        return HAPI_OK; /* the convolution decides */
    return hapi_gpu_affine(b, s->out);
}

int hapi_gpu_affine(struct hapi_gpu_build *b, int value)
{
    const struct hapi_step *s = b->values[value].step;
    const struct hapi_shape *shape = &b->g->values[value].shape,
                            along = {3, {shape->rank > 1 ? shape->dim[1] : 1, 1, 1}};
    struct hapi_gpu_view x, y, scale, shift, wide[2];
    int rc = hapi_gpu_need(b, s->node->in[0], &x);

    if (shape->rank != 4)
        return hapi_gpu_refuse(b, "only batch norms of images run there");
    if (!rc)
        rc = hapi_gpu_affine_constants(b, s, &scale, &shift);
    if (rc)
        return rc;
    if (!hapi_gpu_view_reshape(&wide[0], &scale, &along) ||
        !hapi_gpu_view_expand(&wide[0], &wide[0], shape) ||
        !hapi_gpu_view_reshape(&wide[1], &shift, &along) || !hapi_gpu_view_expand(&wide[1], &wide[1], shape))
        return hapi_gpu_refuse(b, "its statistics do not fit");
    hapi_gpu_view_like(&y, &x);
    rc = hapi_gpu_result(b, value, &y, true);
    return rc ? rc : hapi_gpu_pointwise(b, HAPI_GPU_FMA, &s->act, &y, &x, &wide[0], &wide[1]);
}
