/* Products of two activations, and attention: batches of small matrices that lie as they lie. */
#include <string.h>

#include "gpu_tail.h"
#include "ref.h"

/* ------------------------------------------------------------------ products of activations */

/* One operand of a batched product: dims [0, rank - 2) are the batch, as two factors at most. */
struct batched {
    struct hapi_gpu_view view;
    struct hapi_gpu_factor batch[HAPI_GPU_FACTORS];
    int n_batch;
    int64_t rows, columns, row, column; /* sizes and strides */
};

static bool batched_of(const struct hapi_gpu_view *v, struct batched *out)
{
    int r = v->rank, m = v->first[r - 1] - v->first[r - 2], k = v->first[r] - v->first[r - 1];

    if (m > 1 || k > 1 || !hapi_gpu_aligned(v))
        return false;
    *out = (struct batched){.view = *v, .rows = hapi_gpu_dim(v, r - 2), .columns = hapi_gpu_dim(v, r - 1)};
    out->row = m ? v->f[v->first[r - 2]].stride : out->columns;
    out->column = k ? v->f[v->first[r - 1]].stride : 1;
    out->n_batch = hapi_gpu_view_span(v, 0, r - 2, out->batch);
    return (out->column == 1 && out->row >= out->columns) || (out->row == 1 && out->column >= out->rows);
}

/* Copied if it is no such operand, has more than `most` factors of its batch, or is to be. */
static int batched_need(struct hapi_gpu_build *b, int value, const struct hapi_shape *batch,
                        struct batched *out, bool copy, int most)
{
    const struct hapi_shape *s = &b->g->values[value].shape;
    struct hapi_shape wide = *batch;
    struct hapi_gpu_view v, dense;
    int rc = hapi_gpu_need(b, value, &v);

    if (rc)
        return rc;
    wide.dim[wide.rank - 2] = s->dim[s->rank - 2];
    wide.dim[wide.rank - 1] = s->dim[s->rank - 1];
    if (!hapi_gpu_view_expand(&v, &v, &wide))
        return hapi_gpu_refuse(b, "its operands lie in too many dims");
    if (!copy && batched_of(&v, out) && out->n_batch <= most)
        return HAPI_OK;
    hapi_gpu_view_dense(&dense, &wide, HAPI_LAYOUT_PLAIN);
    rc = hapi_gpu_copy(b, &v, &dense);
    (void)batched_of(&v, out); /* dense: it is */
    return rc;
}

/* The batch dims of all operands at the same places; false: more than `most`. */
static bool batched_zip(struct batched **ops, int n, int most)
{
    struct hapi_gpu_factor lists[4][HAPI_GPU_FACTORS];
    int counts[4], made = 0;

    for (int i = 0; i < n; i++) {
        memcpy(lists[i], ops[i]->batch, sizeof lists[i]);
        counts[i] = ops[i]->n_batch;
    }
    if (counts[0])
        made = hapi_gpu_factors_zip(lists, counts, n);
    if (made < 0 || made > most)
        return false;
    for (int i = 0; i < n; i++) {
        memcpy(ops[i]->batch, lists[i], sizeof lists[i]);
        ops[i]->n_batch = made;
    }
    return true;
}

/* As a tensor of `rank` 3, (B,M,K), or 4, (B1,B2,M,K). */
static int batched_tensor(struct hapi_cudnn_graph *g, enum hapi_dtype dtype, const struct batched *o,
                          int rank, bool swapped)
{
    int64_t rows = swapped ? o->columns : o->rows, columns = swapped ? o->rows : o->columns;
    int64_t dim[4] = {1, 1, 1, 1}, stride[4] = {0};
    int n = rank - 2;

    dim[n] = rows;
    dim[n + 1] = columns;
    stride[n] = swapped ? o->column : o->row;
    stride[n + 1] = swapped ? o->row : o->column;
    for (int i = 0; i < o->n_batch; i++) {
        dim[n - o->n_batch + i] = o->batch[i].size;
        stride[n - o->n_batch + i] = o->batch[i].stride;
    }
    for (int i = n - 1; i >= 0; i--)
        if (dim[i] == 1)
            stride[i] = i == n - 1 ? rows * columns : dim[i + 1] * stride[i + 1];
    return hapi_cudnn_tensor_add(g, dtype, rank, dim, stride, false);
}

/* Follows the value through what only renames dims to whoever reads it: written like this, it is dense there.
 */
static void dense_for_reader(const struct hapi_gpu_build *b, int value, struct hapi_gpu_view *out)
{
    enum { CHAIN = 8 };
    const struct hapi_step *chain[CHAIN];
    struct hapi_gpu_view view, back;
    int n = 0, at = value;

    while (n < CHAIN && b->values[at].reader >= 0) {
        const struct hapi_step *s = &b->steps[b->values[at].reader];
        enum hapi_op_kind op = s->node->op;
        if (op != HAPI_OP_Transpose && op != HAPI_OP_Reshape && op != HAPI_OP_Squeeze &&
            op != HAPI_OP_Unsqueeze)
            break;
        chain[n++] = s;
        at = s->out;
    }
    hapi_gpu_view_dense(&view, &b->g->values[at].shape, HAPI_LAYOUT_PLAIN);
    for (bool good = true; n-- > 0;) {
        const struct hapi_shape *before = &b->g->values[chain[n]->node->in[0]].shape;
        int64_t perm[HAPI_MAX_RANK], inverse[HAPI_MAX_RANK];
        if (chain[n]->node->op == HAPI_OP_Transpose) {
            size_t given = hapi_node_ints(chain[n]->node, "perm", perm, HAPI_MAX_RANK);
            for (int i = 0; i < before->rank; i++)
                inverse[given ? perm[i] : before->rank - 1 - i] = i;
            good = hapi_gpu_view_transpose(&back, &view, inverse);
        } else {
            good = hapi_gpu_view_reshape(&back, &view, before);
        }
        if (!good) {
            hapi_gpu_view_dense(&view, &b->g->values[value].shape, HAPI_LAYOUT_PLAIN);
            break;
        }
        view = back;
    }
    *out = view;
}

/* y's view for the batched product or attention whose operands' batches are zipped with it; false: try the
 * dense one. */
static bool batched_result(struct hapi_gpu_build *b, int value, bool plain, struct batched *y)
{
    struct hapi_gpu_view view;

    if (plain)
        hapi_gpu_view_dense(&view, &b->g->values[value].shape, HAPI_LAYOUT_PLAIN);
    else
        dense_for_reader(b, value, &view);
    return batched_of(&view, y) && y->column == 1;
}

static int batched_launch(struct hapi_gpu_build *b, const struct batched *x, const struct batched *w,
                          const struct batched *y, bool *taken)
{
    struct hapi_cudnn_graph *g = hapi_gpu_graph(b);
    const struct hapi_gpu_view *views[HAPI_CUDNN_TENSORS] = {&x->view, &w->view, &y->view};
    uint64_t batch = 1;

    if (!g)
        return HAPI_ENOMEM;
    int a = batched_tensor(g, b->dtype, x, 3, false), c = batched_tensor(g, b->dtype, w, 3, false);
    int o = batched_tensor(g, b->dtype, y, 3, false);
    hapi_gpu_op_binary(hapi_cudnn_op_add(g, HAPI_CUDNN_MATMUL, o), HAPI_CUDNN_ADD, a, c);
    for (int i = 0; i < y->n_batch; i++)
        batch *= (uint64_t)y->batch[i].size;
    return hapi_gpu_launch_graph(b, g, views,
                                 2 * batch * (uint64_t)(x->rows * x->columns) * (uint64_t)w->columns, taken);
}

/* As they lie, where that is one batch for cuDNN; else those copied that are not; else all of them. */
static int product(struct hapi_gpu_build *b)
{
    enum { AS_THEY_LIE, UNEVEN, ALL, WAYS };
    const struct hapi_step *s = b->step;
    const struct hapi_shape *ys = &b->g->values[s->out].shape;
    struct batched x, w, y, *all[] = {&x, &w, &y};
    bool taken = false;
    int rc = HAPI_OK;

    if (s->residual >= 0 || s->bias >= 0 || s->act.kind != HAPI_ACT_NONE || ys->rank < 3)
        return hapi_gpu_refuse(b, "a product of two activations with more to it, or without a batch");
    for (int way = AS_THEY_LIE; way < WAYS && !rc && !taken; way++) {
        int most = way == UNEVEN ? 1 : HAPI_GPU_FACTORS;
        rc = batched_need(b, s->node->in[0], ys, &x, way == ALL, most);
        if (!rc)
            rc = batched_need(b, s->node->in[1], ys, &w, way == ALL, most);
        if (rc || !batched_result(b, s->out, way != AS_THEY_LIE, &y) || !batched_zip(all, 3, 1))
            continue;
        rc = hapi_gpu_place_new(b, &y.view, b->dtype);
        if (!rc)
            rc = batched_launch(b, &x, &w, &y, &taken);
    }
    if (!rc && !taken)
        return hapi_err_context(b->err, "no kernel for node `%s`", s->node->name);
    if (!rc)
        hapi_gpu_made(b, s->out, &y.view);
    return rc;
}

/* ------------------------------------------------------------------ attention */

/* softmax(scale q k^T) v: three steps of which nobody else sees the results. */
struct attention {
    const struct hapi_step *softmax, *second;
    int q, k, v;
    float scale;
};

static bool attention_find(const struct hapi_gpu_build *b, struct attention *a)
{
    const struct hapi_step *s = b->step;
    const struct hapi_gpu_value *q = &b->values[s->node->in[0]];
    int reader = b->values[s->out].reader;

    *a = (struct attention){.q = s->node->in[0], .k = s->node->in[1], .scale = 1};
    if (s->node->op != HAPI_OP_MatMul || s->residual >= 0 || s->bias >= 0 || s->act.kind != HAPI_ACT_NONE ||
        reader < 0)
        return false;
    a->softmax = &b->steps[reader];
    const struct hapi_shape *xs = &b->g->values[s->out].shape;
    if (a->softmax->node->op != HAPI_OP_Softmax || xs->rank < 3 ||
        hapi_ref_axis(hapi_node_int(a->softmax->node, "axis", b->g->opset < 13 ? 1 : -1), xs->rank) !=
            xs->rank - 1)
        return false;
    reader = b->values[a->softmax->out].reader;
    if (reader < 0)
        return false;
    a->second = &b->steps[reader];
    if (a->second->node->op != HAPI_OP_MatMul || a->second->node->in[0] != a->softmax->out ||
        a->second->residual >= 0 || a->second->bias >= 0 || a->second->act.kind != HAPI_ACT_NONE)
        return false;
    a->v = a->second->node->in[1];
    if (b->g->values[a->v].data || b->g->values[a->k].data || !b->values[a->v].made || !b->values[a->k].made)
        return false;
    if (q->lazy == HAPI_GPU_SCALED && q->reader >= 0) {
        const struct hapi_node *n = q->step->node;
        bool second = b->g->values[n->in[1]].data != NULL;
        memcpy(&a->scale, b->g->values[n->in[second ? 1 : 0]].data, sizeof a->scale);
        a->scale = n->op == HAPI_OP_Div ? 1 / a->scale : a->scale;
        a->q = n->in[second ? 0 : 1];
    }
    return true;
}

/* *taken: it is one launch, and the values of all three steps are made. */
static int attention(struct hapi_gpu_build *b, bool *taken)
{
    struct attention a;
    struct batched q, k, v, y, *all[] = {&q, &k, &v, &y};
    struct hapi_cudnn_graph *g;
    int rc;

    *taken = false;
    if (!attention_find(b, &a))
        return HAPI_OK;
    const struct hapi_shape *ys = &b->g->values[a.second->out].shape;
    rc = batched_need(b, a.q, ys, &q, false, 2);
    if (!rc)
        rc = batched_need(b, a.k, ys, &k, false, 2);
    if (!rc)
        rc = batched_need(b, a.v, ys, &v, false, 2);
    if (rc || !batched_result(b, a.second->out, false, &y) || !batched_zip(all, 4, 2) || q.column != 1 ||
        k.row != 1 || v.column != 1)
        return rc;
    g = hapi_gpu_graph(b);
    if (!g)
        return HAPI_ENOMEM;
    rc = hapi_gpu_place_new(b, &y.view, b->dtype);
    if (rc)
        return rc;
    int tq = batched_tensor(g, b->dtype, &q, 4, false), tk = batched_tensor(g, b->dtype, &k, 4, true);
    int tv = batched_tensor(g, b->dtype, &v, 4, false), ts = hapi_cudnn_scalar_add(g, a.scale);
    int ty = batched_tensor(g, b->dtype, &y, 4, false);
    struct hapi_cudnn_op *op = hapi_cudnn_op_add(g, HAPI_CUDNN_SDPA, ty);
    op->n_in = 4;
    memcpy(op->in, (int[]){tq, tk, tv, ts}, 4 * sizeof *op->in);
    const struct hapi_gpu_view *views[HAPI_CUDNN_TENSORS] = {&q.view, &k.view, &v.view, NULL, &y.view};
    uint64_t macs = (uint64_t)(q.rows * k.columns) * (uint64_t)(q.columns + v.columns);
    for (int i = 0; i < q.n_batch; i++)
        macs *= (uint64_t)q.batch[i].size;
    rc = hapi_gpu_launch_graph(b, g, views, 2 * macs, taken);
    if (!rc && *taken) {
        hapi_gpu_made(b, a.second->out, &y.view);
        b->values[b->step->out].lazy = b->values[a.softmax->out].lazy = HAPI_GPU_INSIDE;
    }
    return rc;
}

int hapi_gpu_product_batched(struct hapi_gpu_build *b)
{
    bool taken;
    int rc = attention(b, &taken);

    return rc || taken ? rc : product(b);
}
