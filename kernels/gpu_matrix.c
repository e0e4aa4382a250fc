/* Products by constants, softmax, layer norm: rows stay in the order in which they lie. */
#include <string.h>

#include "gpu_tail.h"
#include "ref.h"

/* ------------------------------------------------------------------ rows */

/* A value as a matrix: its last `inner` dims are the columns, neighbours; the others rows, evenly `pitch`
 * elements apart in the order in which they lie. */
struct rows {
    struct hapi_gpu_view view;
    int64_t n, columns, pitch;
};

/* Of factors: their order by stride, widest first. */
static void by_stride(const struct hapi_gpu_factor *f, int n, int *order)
{
    for (int i = 0; i < n; i++) {
        int k = i;
        for (; k > 0 && f[order[k - 1]].stride < f[i].stride; k--)
            order[k] = order[k - 1];
        order[k] = i;
    }
}

static bool rows_of(const struct hapi_gpu_view *v, int inner, struct rows *out)
{
    struct hapi_gpu_factor columns[HAPI_GPU_FACTORS];
    int order[HAPI_GPU_FACTORS] = {0}, outer = v->first[v->rank - inner], n;

    *out = (struct rows){.view = *v, .n = 1, .columns = 1};
    n = hapi_gpu_view_span(v, v->rank - inner, v->rank, columns);
    if (n > 1 || (n == 1 && columns[0].stride != 1) || !hapi_gpu_aligned(v))
        return false;
    out->columns = n ? columns[0].size : 1;
    out->pitch = out->columns;
    by_stride(v->f, outer, order);
    for (int i = outer - 1; i >= 0; i--) {
        const struct hapi_gpu_factor *f = &v->f[order[i]];
        if (i == outer - 1)
            out->pitch = f->stride;
        if (f->stride != out->pitch * out->n)
            return false;
        out->n *= f->size;
    }
    return out->pitch >= out->columns;
}

/* The value as rows, copied if it must be. */
static int rows_need(struct hapi_gpu_build *b, int value, int inner, struct rows *out)
{
    struct hapi_gpu_view v, dense;
    int rc = hapi_gpu_need(b, value, &v);

    if (rc || rows_of(&v, inner, out))
        return rc;
    hapi_gpu_view_dense(&dense, &b->g->values[value].shape, HAPI_LAYOUT_PLAIN);
    rc = hapi_gpu_copy(b, &v, &dense);
    (void)rows_of(&v, inner, out); /* dense: rows */
    return rc;
}

/* Dense, its rows in x's order, with the columns of value's shape instead; false: more factors than a view
 * has. */
static bool rows_result(const struct rows *x, int inner, const struct hapi_shape *s,
                        struct hapi_gpu_view *out)
{
    struct hapi_shape columns = {.rank = inner};
    struct hapi_gpu_view last;
    int64_t n = 1;

    for (int i = 0; i < inner; i++)
        n *= columns.dim[i] = s->dim[s->rank - inner + i];
    hapi_gpu_view_dense(&last, &columns, HAPI_LAYOUT_PLAIN);
    *out = x->view;
    out->offset = 0;
    out->n = x->view.first[x->view.rank - inner];
    for (int i = 0; i < out->n; i++)
        out->f[i].stride = x->view.f[i].stride / x->pitch * n;
    for (int i = 0; i < inner; i++) {
        bool one = last.first[i + 1] == last.first[i];
        if (!one && out->n == HAPI_GPU_FACTORS)
            return false;
        if (!one)
            out->f[out->n++] = last.f[last.first[i]];
        out->first[out->rank - inner + i + 1] = out->n;
    }
    return true;
}

/* The value (of y's shape) as rows in the order of y, copied if it must be. */
static int rows_match(struct hapi_gpu_build *b, int value, const struct hapi_gpu_view *y, int inner,
                      struct rows *out)
{
    const struct hapi_gpu_view *views[2];
    struct hapi_gpu_loop loop;
    struct hapi_gpu_view v;
    int rc = hapi_gpu_need(b, value, &v);
    bool same = !rc && rows_of(&v, inner, out);

    /* One loop over both of two dims at most: rows and columns go alike. */
    views[0] = y;
    views[1] = &v;
    if (same && hapi_gpu_view_loop(views, 2, &loop) && loop.rank <= 2)
        return HAPI_OK;
    if (!rc)
        rc = hapi_gpu_copy(b, &v, y);
    if (!rc && !rows_of(&v, inner, out))
        rc = hapi_gpu_refuse(b, "its rows lie unevenly");
    return rc;
}

static int matrix(struct hapi_cudnn_graph *g, enum hapi_dtype dtype, int64_t rows, int64_t columns,
                  int64_t row, int64_t column, bool is_virtual)
{
    const int64_t dim[3] = {1, rows, columns}, stride[3] = {rows * columns, row, column};

    return hapi_cudnn_tensor_add(g, dtype, 3, dim, stride, is_virtual);
}

/* ------------------------------------------------------------------ products by constants */

struct product {
    struct rows x, residual;
    struct hapi_gpu_view w, y, bias;
    int64_t n;      /* columns of the result */
    int64_t wk, wn; /* strides of the weights */
};

static int product_launch(struct hapi_gpu_build *b, const struct product *p, const struct hapi_gpu_tail *tail,
                          bool *taken)
{
    const struct hapi_gpu_tail none = {.bias = NULL};
    const struct hapi_gpu_view *views[HAPI_CUDNN_TENSORS] = {NULL};
    struct hapi_cudnn_graph *g = hapi_gpu_graph(b);
    int64_t m = p->x.n, k = p->x.columns, n = p->n;

    if (!g)
        return HAPI_ENOMEM;
    tail = tail ? tail : &none;
    bool last = hapi_gpu_tail_ops(tail) == 0;
    int x = matrix(g, b->dtype, m, k, p->x.pitch, 1, false),
        w = matrix(g, b->dtype, k, n, p->wk, p->wn, false);
    int y = matrix(g, last ? b->dtype : HAPI_F32, m, n, n, 1, !last);
    views[x] = &p->x.view;
    views[w] = &p->w;
    hapi_gpu_op_binary(hapi_cudnn_op_add(g, HAPI_CUDNN_MATMUL, y), HAPI_CUDNN_ADD, x, w);
    const struct hapi_gpu_tail_tensors t = {.dtype = b->dtype,
                                            .rank = 3,
                                            .dim = {1, m, n},
                                            .stride = {m * n, n, 1},
                                            .residual_stride = {m * p->residual.pitch, p->residual.pitch, 1},
                                            .bias_dim = {1, 1, n}};
    y = hapi_gpu_tail_add(g, tail, &t, y, views);
    views[y] = &p->y;
    return hapi_gpu_launch_graph(b, g, views, 2 * (uint64_t)m * (uint64_t)k * (uint64_t)n, taken);
}

/* What cuDNN did not take, in place. */
static int product_rest(struct hapi_gpu_build *b, const struct product *p, const struct hapi_gpu_tail *tail)
{
    const struct hapi_shape *s = &b->g->values[b->step->out].shape;
    struct hapi_gpu_view bias;
    struct hapi_gpu_tail wide = *tail;

    if (tail->bias) {
        if (!hapi_gpu_view_expand(&bias, tail->bias, s))
            return hapi_gpu_refuse(b, "its bias does not fit");
        wide.bias = &bias;
    }
    return hapi_gpu_tail_run(b, &p->y, &wide);
}

static int product_by_constant(struct hapi_gpu_build *b, struct product *p, struct hapi_gpu_tail *tail)
{
    const struct hapi_step *s = b->step;
    struct hapi_cudnn_op unused = {.kind = HAPI_CUDNN_POINTWISE};
    struct hapi_gpu_tail inside, after = {.bias = NULL};
    bool taken = false;
    int rc = rows_need(b, s->x, 1, &p->x);

    if (rc)
        return rc;
    if (!rows_result(&p->x, 1, &b->g->values[s->out].shape, &p->y))
        return hapi_gpu_refuse(b, "its rows lie in too many dims");
    if (s->residual >= 0) {
        rc = rows_match(b, s->residual, &p->y, 1, &p->residual);
        tail->residual = &p->residual.view;
    }
    if (!rc)
        rc = hapi_gpu_result(b, s->out, &p->y, false);
    inside = *tail;
    if (tail->act.kind != HAPI_ACT_NONE && !hapi_gpu_act_mode(&tail->act, &unused)) {
        inside.act.kind = HAPI_ACT_NONE;
        after.act = tail->act;
    }
    if (!rc)
        rc = product_launch(b, p, &inside, &taken);
    if (!rc && !taken && hapi_gpu_tail_ops(&inside)) {
        rc = product_launch(b, p, NULL, &taken);
        after = *tail;
    }
    if (!rc && !taken)
        return hapi_err_context(b->err, "no kernel for node `%s`", s->node->name);
    return rc ? rc : product_rest(b, p, &after);
}

/* ------------------------------------------------------------------ steps */

static int gemm_constants(struct hapi_gpu_build *b, struct product *p, struct hapi_gpu_tail *tail)
{
    const struct hapi_node *n = b->step->node;
    const struct hapi_shape *w = &b->g->values[n->in[1]].shape;
    bool swapped = hapi_node_int(n, "transB", 0) != 0;
    int c = n->n_in > 2 ? n->in[2] : HAPI_NO_VALUE, rc;

    if (hapi_node_int(n, "transA", 0) || hapi_node_float(n, "alpha", 1) != 1 ||
        (c >= 0 && hapi_node_float(n, "beta", 1) != 1))
        return hapi_gpu_refuse(b, "transA, or factors other than one");
    p->n = swapped ? w->dim[0] : w->dim[1];
    p->wk = swapped ? 1 : w->dim[1];
    p->wn = swapped ? w->dim[1] : 1;
    rc = hapi_gpu_need(b, n->in[1], &p->w);
    if (rc || c < 0)
        return rc;
    const struct hapi_shape *cs = &b->g->values[c].shape;
    if (!b->g->values[c].data || hapi_ref_count(cs) != p->n || cs->dim[cs->rank - 1] != p->n)
        return hapi_gpu_refuse(b, "its third operand is no constant row");
    rc = hapi_gpu_need_wide(b, c, &p->bias);
    if (!rc && !hapi_gpu_view_reshape(&p->bias, &p->bias, &(struct hapi_shape){1, {p->n}}))
        return hapi_gpu_refuse(b, "its third operand is no constant row");
    tail->bias = &p->bias;
    return rc;
}

int hapi_gpu_product(struct hapi_gpu_build *b)
{
    const struct hapi_step *s = b->step;
    const struct hapi_value *w = &b->g->values[s->node->in[1]];
    struct product p = {.n = 0};
    struct hapi_gpu_tail tail = {.act = s->act};
    int rc;

    if (b->values[s->out].made) /* attention has made it */
        return HAPI_OK;
    if (w->data && w->shape.rank == 2 && !b->g->values[s->node->in[0]].data) {
        if (s->node->op == HAPI_OP_Gemm) {
            rc = gemm_constants(b, &p, &tail);
        } else {
            p.n = p.wk = w->shape.dim[1];
            p.wn = 1;
            rc = hapi_gpu_need(b, s->node->in[1], &p.w);
            if (!rc && s->bias >= 0) {
                rc = hapi_gpu_need_wide(b, s->bias, &p.bias);
                tail.bias = &p.bias;
            }
        }
        return rc ? rc : product_by_constant(b, &p, &tail);
    }
    if (s->node->op == HAPI_OP_Gemm)
        return hapi_gpu_refuse(b, "its second operand is no constant");
    return hapi_gpu_product_batched(b);
}

int hapi_gpu_softmax(struct hapi_gpu_build *b)
{
    const struct hapi_step *s = b->step;
    const struct hapi_shape *xs = &b->g->values[s->node->in[0]].shape;
    bool inner[HAPI_MAX_RANK] = {false};
    struct hapi_gpu_view x, y;
    int axis = hapi_ref_axis(hapi_node_int(s->node, "axis", b->g->opset < 13 ? 1 : -1), xs->rank), rc;

    if (b->values[s->out].lazy == HAPI_GPU_INSIDE)
        return HAPI_OK;
    if (axis < 0)
        return hapi_gpu_refuse(b, "its axis is out of range");
    for (int d = axis; d < (b->g->opset < 13 ? xs->rank : axis + 1);
         d++) /* before opset 13 all dims from there on */
        inner[d] = true;
    rc = hapi_gpu_need(b, s->node->in[0], &x);
    if (rc)
        return rc;
    hapi_gpu_view_like(&y, &x);
    rc = hapi_gpu_result(b, s->out, &y, false);
    return rc ? rc : hapi_gpu_over(b, HAPI_GPU_SOFTMAX, &y, &x, inner);
}

int hapi_gpu_layer_norm(struct hapi_gpu_build *b)
{
    const struct hapi_node *n = b->step->node;
    const struct hapi_shape *xs = &b->g->values[n->in[0]].shape;
    int axis = hapi_ref_axis(hapi_node_int(n, "axis", -1), xs->rank), rc;
    struct hapi_cudnn_graph *g = hapi_gpu_graph(b);
    struct hapi_gpu_view scale, shift, y;
    struct rows x;
    bool taken = false;

    if (!g)
        return HAPI_ENOMEM;
    for (int k = 1; k < 3; k++)
        if (n->n_in < 3 || n->in[k] < 0 || !b->g->values[n->in[k]].data)
            return hapi_gpu_refuse(b, "its scale and shift are no constants");
    if (axis < 1 || (n->n_out > 1 && n->out[1] >= 0 && b->values[n->out[1]].reader != -1))
        return hapi_gpu_refuse(b, "a norm over everything, or one that gives its statistics");
    rc = rows_need(b, n->in[0], xs->rank - axis, &x);
    if (!rc)
        rc = hapi_gpu_need_wide(b, n->in[1], &scale);
    if (!rc)
        rc = hapi_gpu_need_wide(b, n->in[2], &shift);
    if (rc)
        return rc;
    if (!rows_result(&x, xs->rank - axis, xs, &y))
        return hapi_gpu_refuse(b, "its rows lie in too many dims");
    rc = hapi_gpu_result(b, b->step->out, &y, false);
    if (rc)
        return rc;
    const int64_t c = x.columns, dim[4] = {x.n, c, 1, 1}, in[4] = {x.pitch, 1, c, c}, out[4] = {c, 1, c, c},
                  one[4] = {1, c, 1, 1};
    int tx = hapi_cudnn_tensor_add(g, b->dtype, 4, dim, in, false),
        ts = hapi_cudnn_tensor_add(g, HAPI_F32, 4, one, out, false);
    int tb = hapi_cudnn_tensor_add(g, HAPI_F32, 4, one, out, false);
    int te = hapi_cudnn_scalar_add(g, hapi_node_float(n, "epsilon", 1e-5F));
    int ty = hapi_cudnn_tensor_add(g, b->dtype, 4, dim, out, false);
    struct hapi_cudnn_op *op = hapi_cudnn_op_add(g, HAPI_CUDNN_LAYER_NORM, ty);
    op->n_in = 4;
    memcpy(op->in, (int[]){tx, ts, tb, te}, 4 * sizeof *op->in);
    const struct hapi_gpu_view *views[HAPI_CUDNN_TENSORS] = {&x.view, &scale, &shift, NULL, &y};
    rc = hapi_gpu_launch_graph(b, g, views, 0, &taken);
    return rc || taken ? rc : hapi_err_context(b->err, "no kernel for node `%s`", n->name);
}
