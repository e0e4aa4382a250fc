/* Constant folding, nodes that do nothing, and BatchNormalization multiplied into the Conv before it. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "model.h"
#include "resample.h"

static int no_memory(struct hapi_binding *b)
{
    return hapi_err_set(b->err, HAPI_ETOOBIG, 0, "the bound graph needs more memory than the model's limit");
}

bool hapi_fold_constant(const struct hapi_binding *b, int value)
{
    return b->g->values[value].data || b->tensor_of[value] >= 0;
}

const void *hapi_fold_data(struct hapi_binding *b, int value)
{
    struct hapi_value *v = &b->g->values[value];

    if (!v->data && b->tensor_of[value] >= 0)
        v->data = hapi_onnx_tensor_data(&b->m->onnx.tensors[b->tensor_of[value]]);
    return v->data;
}

/* ------------------------------------------------------------------ nodes that do nothing */

/* Dropout in training mode would be random; with a ratio of 0 (as torchvision's Swin exports it) it is not.
 */
static int check_dropout(struct hapi_binding *b, const struct hapi_node *n)
{
    const struct hapi_value *ratio = n->n_in > 1 && n->in[1] >= 0 ? &b->g->values[n->in[1]] : NULL;
    const struct hapi_value *training = n->n_in > 2 && n->in[2] >= 0 ? &b->g->values[n->in[2]] : NULL;

    if (!training)
        return 0;
    if (training->dtype == HAPI_BOOL && training->data && !*(const uint8_t *)training->data)
        return 0;
    if (ratio && ratio->dtype == HAPI_F32 && ratio->data && *(const float *)ratio->data == 0)
        return 0;
    if (ratio && ratio->dtype == HAPI_F64 && ratio->data && *(const double *)ratio->data == 0)
        return 0;
    return hapi_err_set(b->err, HAPI_EUNSUPPORTED, 0,
                        "node \"%.150s\" (Dropout): training mode: export the model in eval mode", n->name);
}

/* A Pad that pads nothing, as torch.onnx puts before every AveragePool. */
static bool pads_nothing(const struct hapi_binding *b, const struct hapi_node *n)
{
    const struct hapi_value *v = n->n_in > 1 && n->in[1] >= 0 ? &b->g->values[n->in[1]] : NULL;
    const struct hapi_attr *a = hapi_node_attr(n, b->g->opset < 2 ? "paddings" : "pads");
    bool zero = true;

    if (n->op != HAPI_OP_Pad)
        return false;
    if (v) /* shape inference has seen a list of i64 or i32, with data */
        for (int64_t i = 0; i < v->shape.dim[0]; i++)
            zero &=
                (v->dtype == HAPI_I64 ? ((const int64_t *)v->data)[i] : ((const int32_t *)v->data)[i]) == 0;
    else
        for (size_t i = 0; a && i < a->n; i++)
            zero &= a->ints[i] == 0;
    return zero;
}

/* Identity, Dropout and empty Pads: readers take the input instead. Where the output's name must stay, an
 * Identity does, unless it is a constant, which can have two names. */
static int fold_identity(struct hapi_binding *b, struct hapi_node *n)
{
    int in = n->in[0], out = n->out[0];

    if (n->op == HAPI_OP_Dropout) {
        int rc = check_dropout(b, n);
        if (rc || n->n_out > 1) /* its mask is asked for */
            return rc;
    }
    if (hapi_fold_constant(b, in)) {
        b->g->values[out].data = b->g->values[in].data;
        b->tensor_of[out] = b->tensor_of[in];
        b->scratched[out] = b->scratched[in];
        return 1;
    }
    if (b->kept[out]) {
        n->op = HAPI_OP_Identity;
        n->n_in = 1;
        n->n_attrs = 0;
        return 0;
    }
    b->alias[out] = in;
    return 1;
}

/* ------------------------------------------------------------------ constants */

static uint64_t elements(const struct hapi_value *v)
{
    int64_t n = 0;
    return hapi_shape_elements(&v->shape, &n) ? UINT64_MAX / 2 : (uint64_t)n;
}

static uint64_t times(uint64_t a, uint64_t b)
{
    uint64_t r;
    return __builtin_mul_overflow(a, b, &r) ? UINT64_MAX : r;
}

uint64_t hapi_node_flops(const struct hapi_graph *g, const struct hapi_node *n)
{
    const struct hapi_value *a, *b;
    uint64_t out, depth = 1;

    if (n->op != HAPI_OP_Conv && n->op != HAPI_OP_ConvTranspose && n->op != HAPI_OP_Gemm &&
        n->op != HAPI_OP_MatMul)
        return 0;
    a = &g->values[n->in[0]];
    b = &g->values[n->in[1]];
    /* Each element of a ConvTranspose's input goes to (M/group) * kernel of the output. */
    out = elements(n->op == HAPI_OP_ConvTranspose ? a : &g->values[n->out[0]]);
    if (n->op == HAPI_OP_Conv || n->op == HAPI_OP_ConvTranspose)
        for (int i = 1; i < b->shape.rank; i++)
            depth = times(depth, (uint64_t)b->shape.dim[i]);
    else if (n->op == HAPI_OP_Gemm)
        depth = (uint64_t)a->shape.dim[hapi_node_int(n, "transA", 0) ? 0 : 1];
    else
        depth = (uint64_t)a->shape.dim[a->shape.rank - 1];
    return times(2, times(out, depth));
}

/* What evaluating the node touches, so that a small file cannot ask for hours of folding. */
static uint64_t cost(const struct hapi_binding *b, const struct hapi_node *n)
{
    uint64_t sum = hapi_node_flops(b->g, n) / 2;
    struct hapi_window w;

    for (int k = 0; k < n->n_in + n->n_out; k++) {
        int v = k < n->n_in ? n->in[k] : n->out[k - n->n_in];
        if (v >= 0 && __builtin_add_overflow(sum, elements(&b->g->values[v]), &sum))
            return UINT64_MAX;
    }
    if ((n->op == HAPI_OP_MaxPool || n->op == HAPI_OP_AveragePool) && !hapi_window_of(b->g, n, &w, NULL))
        sum = times(sum, times((uint64_t)w.kernel[0], times((uint64_t)w.kernel[1], (uint64_t)w.kernel[2])));
    if (n->op == HAPI_OP_LRN)
        sum = times(sum, (uint64_t)hapi_node_int(n, "size", 1));
    if (n->op == HAPI_OP_Resize || n->op == HAPI_OP_Upsample)
        sum = times(sum, hapi_resize_work(b->g, n));
    return sum;
}

static int evaluate(struct hapi_binding *b, const struct hapi_node *n)
{
    size_t n_in = (size_t)n->n_in, n_out = (size_t)n->n_out, bytes;
    const void **in = hapi_arena_array(b->scratch, n_in, sizeof *in);
    void **out = hapi_arena_array(b->scratch, n_out, sizeof *out);
    uint64_t work = cost(b, n);

    if ((n_in && !in) || !out)
        return no_memory(b);
    if (work > b->work)
        return hapi_err_set(b->err, HAPI_ETOOBIG, 0,
                            "node \"%.150s\" (%s): folding the model's constants takes too much work",
                            n->name, hapi_op_name(n->op));
    b->work -= work;
    for (size_t i = 0; i < n_in; i++) {
        in[i] = n->in[i] < 0 || n->op == HAPI_OP_Shape ? NULL : hapi_fold_data(b, n->in[i]);
        if (n->in[i] >= 0 && n->op != HAPI_OP_Shape && !in[i])
            return no_memory(b);
    }
    for (size_t i = 0; i < n_out; i++) {
        if (n->out[i] < 0)
            continue;
        struct hapi_value *v = &b->g->values[n->out[i]];
        if (hapi_tensor_bytes(&v->shape, v->dtype, &bytes))
            return no_memory(b);
        out[i] = hapi_arena_alloc(b->scratch, bytes ? bytes : 1, 64);
        if (!out[i])
            return no_memory(b);
    }
    int rc = hapi_ref_eval(b->g, n, in, out, b->err);
    if (rc)
        return rc;
    for (size_t i = 0; i < n_out; i++)
        if (n->out[i] >= 0) {
            b->g->values[n->out[i]].data = out[i];
            b->scratched[n->out[i]] = true;
        }
    return 1;
}

static int fold_size(struct hapi_binding *b, const struct hapi_node *n)
{
    int64_t *count = hapi_arena_array(b->scratch, 1, sizeof *count);

    if (!count)
        return no_memory(b);
    *count = (int64_t)elements(&b->g->values[n->in[0]]);
    b->g->values[n->out[0]].data = count;
    b->scratched[n->out[0]] = true;
    return 1;
}

/* A Shape needs no data, and its result is copied out here: the evaluator is for values. */
static int fold_shape(struct hapi_binding *b, const struct hapi_node *n)
{
    const struct hapi_shape *s = &b->g->values[n->in[0]].shape;
    struct hapi_value *o = &b->g->values[n->out[0]];
    int64_t start = hapi_node_int(n, "start", 0), count = o->shape.dim[0];
    int64_t *dims = hapi_arena_array(b->scratch, HAPI_MAX_RANK, sizeof *dims);

    if (!dims)
        return no_memory(b);
    start = start < -s->rank ? -s->rank : start > s->rank ? s->rank : start;
    start += start < 0 ? s->rank : 0;
    for (int64_t i = 0; i < count; i++)
        dims[i] = s->dim[start + i];
    o->data = dims;
    b->scratched[n->out[0]] = true;
    return 1;
}

int hapi_fold_node(struct hapi_binding *b, struct hapi_node *n)
{
    if (n->op == HAPI_OP_Identity || n->op == HAPI_OP_Dropout || pads_nothing(b, n))
        return fold_identity(b, n);
    if (n->op == HAPI_OP_Shape)
        return fold_shape(b, n);
    if (n->op == HAPI_OP_Size)
        return fold_size(b, n);
    if (n->op == HAPI_OP_Constant && n->attrs[0].type == HAPI_ATTR_TENSOR) {
        b->tensor_of[n->out[0]] = b->tensor_of[n->attrs[0].value];
        b->g->values[n->out[0]].data = b->g->values[n->attrs[0].value].data;
        return 1;
    }
    for (int k = 0; k < n->n_in; k++)
        if (n->in[k] >= 0 && !hapi_fold_constant(b, n->in[k]))
            return 0;
    return evaluate(b, n);
}

/* ------------------------------------------------------------------ BatchNormalization into Conv */

/* The Conv whose only reader is the BatchNormalization, if its weights are f32 constants and its own output
 * is not asked for; else NULL. */
static struct hapi_node *foldable(struct hapi_binding *b, const struct hapi_node *bn)
{
    struct hapi_graph *g = b->g;
    int x = bn->in[0], p = g->values[x].producer;

    if (p < 0 || g->nodes[p].op != HAPI_OP_Conv || g->values[x].n_uses != 1 || b->kept[x])
        return NULL;
    for (int k = 1; k < 5; k++)
        if (!hapi_fold_constant(b, bn->in[k]) || g->values[bn->in[k]].dtype != HAPI_F32)
            return NULL;
    for (int k = 1; k < g->nodes[p].n_in; k++)
        if (g->nodes[p].in[k] >= 0 &&
            (!hapi_fold_constant(b, g->nodes[p].in[k]) || g->values[g->nodes[p].in[k]].dtype != HAPI_F32))
            return NULL;
    return &g->nodes[p];
}

/* w'[m] = w[m] * k[m], b'[m] = (b[m] - mean[m]) * k[m] + beta[m], k = gamma / sqrt(var + epsilon): in f64,
 * rounded once. */
static int multiply_in(struct hapi_binding *b, const struct hapi_node *conv, const struct hapi_node *bn,
                       float *w, float *bias)
{
    const struct hapi_value *weight = &b->g->values[conv->in[1]];
    const float *p[5] = {NULL}, *w0 = hapi_fold_data(b, conv->in[1]), *b0 = NULL;
    double epsilon = (double)hapi_node_float(bn, "epsilon", 1e-5F);
    int64_t m = weight->shape.dim[0], n = (int64_t)elements(weight) / m;
    bool has_bias = conv->n_in > 2 && conv->in[2] >= 0;

    for (int k = 1; k < 5; k++)
        if (!(p[k] = hapi_fold_data(b, bn->in[k])))
            return no_memory(b);
    if (has_bias)
        b0 = hapi_fold_data(b, conv->in[2]);
    if (!w0 || (has_bias && !b0))
        return no_memory(b);
    for (int64_t i = 0; i < m; i++) {
        double k = (double)p[1][i] / sqrt((double)p[4][i] + epsilon);
        for (int64_t j = 0; j < n; j++)
            w[i * n + j] = (float)((double)w0[i * n + j] * k);
        bias[i] = (float)(((b0 ? (double)b0[i] : 0) - (double)p[3][i]) * k + (double)p[2][i]);
    }
    return 0;
}

/* Whether everything comes straight from the file: then the result is the same at every batch, and kept. */
static bool from_file(const struct hapi_binding *b, const struct hapi_node *conv, const struct hapi_node *bn)
{
    bool all = b->tensor_of[conv->in[1]] >= 0 &&
               (conv->n_in < 3 || conv->in[2] < 0 || b->tensor_of[conv->in[2]] >= 0);

    for (int k = 1; k < 5; k++)
        all = all && b->tensor_of[bn->in[k]] >= 0;
    return all;
}

static int folded_data(struct hapi_binding *b, const struct hapi_node *conv, const struct hapi_node *bn,
                       struct hapi_value *w, struct hapi_value *bias)
{
    struct hapi_model_cache *c = b->m->cache;
    size_t at = b->node_of[conv - b->g->nodes], n_w = (size_t)elements(w) * 4,
           n_b = (size_t)elements(bias) * 4;
    struct hapi_folded *f, own = {NULL, NULL};
    int rc = 0;

    if (!c->folded)
        c->folded = calloc(b->o->n_nodes, sizeof *c->folded);
    if (!c->folded)
        return no_memory(b);
    f = from_file(b, conv, bn) ? &c->folded[at] : &own;
    if (!f->weight) {
        f->weight = f == &own ? hapi_arena_alloc(b->g->arena, n_w, 64) : malloc(n_w);
        f->bias = f == &own ? hapi_arena_alloc(b->g->arena, n_b, 64) : malloc(n_b);
        rc = f->weight && f->bias ? multiply_in(b, conv, bn, f->weight, f->bias) : no_memory(b);
    }
    if (rc && f != &own) {
        free(f->weight);
        free(f->bias);
        *f = (struct hapi_folded){NULL, NULL};
    }
    if (!rc) {
        w->data = f->weight;
        bias->data = f->bias;
    }
    return rc;
}

/* The Conv takes the BatchNormalization's place in the list of values: it writes its output's name. */
static int fold_one(struct hapi_binding *b, struct hapi_node *conv, struct hapi_node *bn)
{
    struct hapi_graph *g = b->g;
    int *in = hapi_arena_array(g->arena, 3, sizeof *in);
    int w = hapi_binding_value(b, g->values[bn->out[0]].name, ":weight");
    int bias = hapi_binding_value(b, g->values[bn->out[0]].name, ":bias"), rc;

    if (!in || w < 0 || bias < 0)
        return no_memory(b);
    g->values[w].dtype = g->values[bias].dtype = HAPI_F32;
    g->values[w].shape = g->values[conv->in[1]].shape;
    g->values[bias].shape = g->values[bn->in[1]].shape;
    if (b->shapes_only) { /* constants all the same: of the tensors that they would be made from */
        b->tensor_of[w] = b->tensor_of[conv->in[1]];
        b->tensor_of[bias] = b->tensor_of[bn->in[1]];
        b->scratched[w] = b->scratched[conv->in[1]];
        b->scratched[bias] = b->scratched[bn->in[1]];
        g->values[w].data = g->values[conv->in[1]].data;
        g->values[bias].data = g->values[bn->in[1]].data;
    } else {
        rc = folded_data(b, conv, bn, &g->values[w], &g->values[bias]);
        if (rc)
            return rc;
    }
    in[0] = conv->in[0];
    in[1] = w;
    in[2] = bias;
    conv->in = in;
    conv->n_in = 3;
    conv->out = bn->out;
    conv->n_out = 1;
    g->values[conv->out[0]].producer = (int)(conv - g->nodes);
    bn->op = HAPI_OP_NONE;
    return 0;
}

void hapi_fold_count(struct hapi_binding *b)
{
    struct hapi_graph *g = b->g;

    for (size_t i = 0; i < g->n_values; i++)
        g->values[i].n_uses = 0;
    for (size_t i = 0; i < g->n_nodes; i++)
        for (int k = 0; k < g->nodes[i].n_in; k++)
            if (g->nodes[i].in[k] >= 0)
                g->values[g->nodes[i].in[k]].n_uses++;
    for (size_t i = 0; i < g->n_outputs; i++)
        g->values[g->outputs[i]].n_uses++;
}

void hapi_fold_compact(struct hapi_binding *b)
{
    struct hapi_graph *g = b->g;
    size_t kept = 0;

    for (size_t i = 0; i < g->n_nodes; i++) {
        if (g->nodes[i].op == HAPI_OP_NONE)
            continue;
        b->node_of[kept] = b->node_of[i];
        g->nodes[kept] = g->nodes[i];
        for (int k = 0; k < g->nodes[kept].n_out; k++)
            if (g->nodes[kept].out[k] >= 0)
                g->values[g->nodes[kept].out[k]].producer = (int)kept;
        kept++;
    }
    g->n_nodes = kept;
}

int hapi_fold_batchnorm(struct hapi_binding *b)
{
    struct hapi_graph *g = b->g;
    int rc = 0;

    hapi_fold_count(b);
    for (size_t i = 0; i < g->n_nodes && !rc; i++) {
        struct hapi_node *conv =
            g->nodes[i].op == HAPI_OP_BatchNormalization ? foldable(b, &g->nodes[i]) : NULL;
        if (conv)
            rc = fold_one(b, conv, &g->nodes[i]);
    }
    hapi_fold_compact(b);
    return rc;
}
