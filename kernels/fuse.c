#include "fuse.h"

#include <math.h>
#include <string.h>

struct fusion {
    const struct hapi_graph *g;
    int (*read)[2]; /* per value: the nodes of its first two reads */
    int *user;      /* per value: the one node that reads it; -1: none; -2: several, or a graph output too */
    int *uses;      /* per value: by nodes; a graph output counts as very many */
    bool *taken;    /* per node: part of a step already */
    bool masks;
};

static bool same_shape(const struct hapi_graph *g, int a, int b)
{
    return hapi_shape_equal(&g->values[a].shape, &g->values[b].shape) &&
           g->values[a].dtype == g->values[b].dtype;
}

/* The value of a constant with one element (or all equal), of dtype f32. */
static bool constant_f32(const struct hapi_graph *g, int value, float *out)
{
    const struct hapi_value *v = value >= 0 ? &g->values[value] : NULL;
    int64_t n;

    if (!v || !v->data || v->dtype != HAPI_F32 || hapi_shape_elements(&v->shape, &n) || n != 1)
        return false;
    memcpy(out, v->data, sizeof *out);
    return true;
}

static bool clip_bounds(const struct hapi_graph *g, const struct hapi_node *n, struct hapi_act *act)
{
    act->kind = HAPI_ACT_CLIP;
    act->alpha = hapi_node_float(n, "min", -INFINITY);
    act->beta = hapi_node_float(n, "max", INFINITY);
    if (n->n_in > 1 && n->in[1] >= 0 && !constant_f32(g, n->in[1], &act->alpha))
        return false;
    if (n->n_in > 2 && n->in[2] >= 0 && !constant_f32(g, n->in[2], &act->beta))
        return false;
    return true;
}

/* Whether one node is an activation of f32. */
static bool act_of(const struct hapi_graph *g, const struct hapi_node *n, struct hapi_act *act)
{
    static const struct {
        enum hapi_op_kind op;
        enum hapi_act_kind kind;
        float alpha, beta;
    } known[] = {
        {HAPI_OP_Relu, HAPI_ACT_RELU, 0, 0},
        {HAPI_OP_LeakyRelu, HAPI_ACT_RELU, 0.01F, 0},
        {HAPI_OP_Sigmoid, HAPI_ACT_SIGMOID, 0, 0},
        {HAPI_OP_HardSigmoid, HAPI_ACT_HARDSIGMOID, 0.2F, 0.5F},
        {HAPI_OP_HardSwish, HAPI_ACT_HARDSWISH, 0, 0},
        {HAPI_OP_Tanh, HAPI_ACT_TANH, 0, 0},
        {HAPI_OP_Elu, HAPI_ACT_ELU, 1, 0},
    };

    if (g->values[n->out[0]].dtype != HAPI_F32)
        return false;
    if (n->op == HAPI_OP_Clip)
        return clip_bounds(g, n, act);
    if (n->op == HAPI_OP_Gelu) {
        const struct hapi_attr *how = hapi_node_attr(n, "approximate");
        act->kind = how && !strcmp(how->s, "tanh") ? HAPI_ACT_GELU_TANH : HAPI_ACT_GELU;
        return true;
    }
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (known[i].op == n->op) {
            act->kind = known[i].kind;
            act->alpha = hapi_node_float(n, "alpha", known[i].alpha);
            act->beta = hapi_node_float(n, "beta", known[i].beta);
            return true;
        }
    return false;
}

/* The node that alone reads v, or -1. */
static int sole_user(const struct fusion *f, int v)
{
    int u = f->user[v];
    return u >= 0 && !f->taken[u] ? u : -1;
}

/* The operand of a two-input node that is not v, or HAPI_NO_VALUE. */
static int other_operand(const struct hapi_node *n, int v)
{
    if (n->n_in != 2)
        return HAPI_NO_VALUE;
    return n->in[0] == v ? n->in[1] : n->in[1] == v ? n->in[0] : HAPI_NO_VALUE;
}

/* The nodes that read v, where there are exactly two reads, both after node `from`; else NULL. */
static const int *readers(const struct fusion *f, int v, int from)
{
    return f->uses[v] == 2 && f->read[v][0] > from ? f->read[v] : NULL;
}

/* v -> Sigmoid -> Mul(v, .): SiLU. Its nodes go to chain; the Mul is last. */
static int swish_of(const struct fusion *f, int first, int v, int *chain)
{
    const struct hapi_node *s = &f->g->nodes[first];
    int mul;

    if (s->op != HAPI_OP_Sigmoid || s->in[0] != v || f->g->values[v].dtype != HAPI_F32)
        return 0;
    mul = sole_user(f, s->out[0]);
    if (mul < 0 || f->g->nodes[mul].op != HAPI_OP_Mul || other_operand(&f->g->nodes[mul], s->out[0]) != v)
        return 0;
    chain[0] = first;
    chain[1] = mul;
    return 2;
}

static void take(struct fusion *f, struct hapi_step *s, int node)
{
    f->taken[node] = true;
    s->out = f->g->nodes[node].out[0];
    s->nodes[s->n_nodes++] = &f->g->nodes[node];
    if (node > s->last)
        s->last = node;
}

/* Extends the step by an activation of its output, if that is all its output is used for. */
static void take_act(struct fusion *f, struct hapi_step *s)
{
    int u = sole_user(f, s->out), chain[2];
    const int *list = readers(f, s->out, s->last);

    if (u >= 0) {
        if (f->g->nodes[u].in[0] == s->out && act_of(f->g, &f->g->nodes[u], &s->act))
            take(f, s, u);
        return;
    }
    for (int i = 0; list && i < 2; i++) {
        int len = f->taken[list[i]] ? 0 : swish_of(f, list[i], s->out, chain);
        bool all = len > 0;
        for (int k = 0; k < 2; k++) {
            bool found = false;
            for (int j = 0; j < len; j++)
                found |= chain[j] == list[k];
            all &= found;
        }
        if (!all)
            continue;
        s->act = (struct hapi_act){HAPI_ACT_SWISH, 1, 0};
        for (int j = 0; j < len; j++)
            take(f, s, chain[j]);
        return;
    }
}

static bool per_column(const struct hapi_graph *g, int value, int out)
{
    const struct hapi_shape *b = &g->values[value].shape, *o = &g->values[out].shape;
    return g->values[value].data && g->values[value].dtype == HAPI_F32 && b->rank == 1 && o->rank >= 1 &&
           b->dim[0] == o->dim[o->rank - 1];
}

/* MatMul then Add of a constant row. */
static void take_bias(struct fusion *f, struct hapi_step *s)
{
    int u = sole_user(f, s->out);

    if (u < 0 || f->g->nodes[u].op != HAPI_OP_Add)
        return;
    int other = other_operand(&f->g->nodes[u], s->out);
    if (other < 0 || !per_column(f->g, other, s->out) || !same_shape(f->g, s->out, f->g->nodes[u].out[0]))
        return;
    s->bias = other;
    take(f, s, u);
}

static void take_residual(struct fusion *f, struct hapi_step *s)
{
    int u = sole_user(f, s->out);

    if (u < 0 || f->g->nodes[u].op != HAPI_OP_Add)
        return;
    int other = other_operand(&f->g->nodes[u], s->out);
    if (other < 0 || other == s->out || f->g->values[other].data || !same_shape(f->g, other, s->out) ||
        !same_shape(f->g, s->out, f->g->nodes[u].out[0]))
        return;
    /* Of two producers that both could take the sum, the later one does: the other is then ready. */
    if (f->g->values[other].producer > s->last)
        return;
    s->residual = other;
    take(f, s, u);
}

/* The pads of a constant Pad with zeros of the spatial dims of (N,C,H,W) or (N,C,W). */
static bool pad_read(const struct hapi_graph *g, const struct hapi_node *n, int64_t *pad)
{
    const struct hapi_attr *mode = hapi_node_attr(n, "mode");
    const struct hapi_value *x = &g->values[n->in[0]],
                            *p = n->n_in > 1 && n->in[1] >= 0 ? &g->values[n->in[1]] : NULL;
    int64_t v[8] = {0};
    int rank = x->shape.rank;
    float value = hapi_node_float(n, "value", 0);

    if (x->dtype != HAPI_F32 || (rank != 3 && rank != 4) || (mode && strcmp(mode->s, "constant")) ||
        n->n_in > 3)
        return false;
    if (n->n_in > 2 && n->in[2] >= 0 && !constant_f32(g, n->in[2], &value))
        return false;
    if (p && p->data && p->dtype == HAPI_I64 && p->shape.dim[0] == 2 * rank)
        memcpy(v, p->data, 2 * (size_t)rank * sizeof *v);
    else if (p || hapi_node_ints(n, "pads", v, 8) != 2 * (size_t)rank)
        return false;
    for (int i = 0; i < 2; i++) {
        if (v[i] || v[rank + i] || value != 0)
            return false;
        pad[i] = rank == 3 && i == 0 ? 0 : v[rank - 2 + i];
        pad[2 + i] = rank == 3 && i == 0 ? 0 : v[2 * rank - 2 + i];
    }
    return pad[0] >= 0 && pad[1] >= 0 && pad[2] >= 0 && pad[3] >= 0;
}

/* A Pad that one Conv alone reads is that Conv's own padding: it is left for step_make() of the Conv. */
static bool pad_of_conv(const struct fusion *f, int i)
{
    const struct hapi_node *n = &f->g->nodes[i];
    int64_t pad[4];
    int u = n->op == HAPI_OP_Pad ? sole_user(f, n->out[0]) : -1;

    return u >= 0 && f->g->nodes[u].op == HAPI_OP_Conv && f->g->nodes[u].in[0] == n->out[0] &&
           pad_read(f->g, n, pad);
}

static void take_pad(struct fusion *f, struct hapi_step *s)
{
    int p = f->g->values[s->x].producer;

    if (p < 0 || f->taken[p] || !pad_of_conv(f, p) || !pad_read(f->g, &f->g->nodes[p], s->pad))
        return;
    f->taken[p] = true;
    s->nodes[1] = s->nodes[0];
    s->nodes[0] = &f->g->nodes[p];
    s->n_nodes = 2;
    s->x = f->g->nodes[p].in[0];
}

/* The mask that an Add of v and a constant is to the rows of its output: from the right, the constant has the
 * dims of `block`, then ones (`group` has v's), then the dims of `count`, then ones. */
static bool mask_of(const struct hapi_graph *g, const struct hapi_node *n, int v, struct hapi_mask *m)
{
    int other = other_operand(n, v), k;
    const struct hapi_shape *o = &g->values[n->out[0]].shape,
                            *c = other >= 0 ? &g->values[other].shape : NULL;

    if (!c || !g->values[other].data || g->values[other].dtype != HAPI_F32 || !same_shape(g, v, n->out[0]) ||
        o->rank < 2 || c->rank < 1 || c->rank > o->rank || c->dim[c->rank - 1] != o->dim[o->rank - 1])
        return false;
    *m = (struct hapi_mask){other, 1, 1, 1};
    for (k = 2; k <= c->rank && c->dim[c->rank - k] == o->dim[o->rank - k]; k++)
        m->block *= o->dim[o->rank - k];
    m->group = m->block;
    for (; k <= c->rank && c->dim[c->rank - k] == 1; k++)
        m->group *= o->dim[o->rank - k];
    for (; k <= c->rank && c->dim[c->rank - k] == o->dim[o->rank - k]; k++)
        m->count *= o->dim[o->rank - k];
    while (k <= c->rank && c->dim[c->rank - k] == 1)
        k++;
    return k > c->rank && m->block && m->group && m->count;
}

static bool same_rows(const struct hapi_graph *g, int a, int b)
{
    const struct hapi_shape *x = &g->values[a].shape, *y = &g->values[b].shape;

    return x->rank >= 1 && y->rank >= 1 && x->dim[x->rank - 1] == y->dim[y->rank - 1];
}

/* Add i as the first of the masks of a Softmax, to which only it and reshapes of its rows lead. */
static bool take_masks(struct fusion *f, struct hapi_step *s, int i)
{
    const struct hapi_graph *g = f->g;
    struct hapi_mask mask[HAPI_MASKS] = {{HAPI_NO_VALUE, 0, 0, 0}, {HAPI_NO_VALUE, 0, 0, 0}};
    int chain[HAPI_STEP_NODES], n = 0, masks = 0, x = HAPI_NO_VALUE;

    for (int u = i; u >= 0 && n < HAPI_STEP_NODES; u = sole_user(f, g->nodes[u].out[0])) {
        const struct hapi_node *node = &g->nodes[u];
        int v = n ? g->nodes[chain[n - 1]].out[0] : HAPI_NO_VALUE;
        chain[n++] = u;
        if (node->op == HAPI_OP_Add && masks < HAPI_MASKS) {
            v = v >= 0 ? v : g->values[node->in[0]].data ? node->in[1] : node->in[0];
            x = masks ? x : v;
            if (!mask_of(g, node, v, &mask[masks++]))
                return false;
        } else if (node->op == HAPI_OP_Softmax) {
            int rank = g->values[v].shape.rank;
            int64_t axis = hapi_node_int(node, "axis", g->opset >= 13 ? -1 : 1);
            if (axis != -1 && axis != rank - 1)
                return false;
            s->node = node;
            s->x = x;
            memcpy(s->mask, mask, sizeof mask);
            for (int k = 1; k < n; k++)
                take(f, s, chain[k]);
            return true;
        } else if (node->op != HAPI_OP_Reshape || node->in[0] != v || !same_rows(g, v, node->out[0])) {
            return false;
        }
    }
    return false;
}

static void step_make(struct fusion *f, struct hapi_step *s, int i)
{
    const struct hapi_node *n = &f->g->nodes[i];
    int chain[2], len = 0;

    *s = (struct hapi_step){.node = n,
                            .x = n->n_in ? n->in[0] : HAPI_NO_VALUE,
                            .bias = HAPI_NO_VALUE,
                            .residual = HAPI_NO_VALUE,
                            .mask = {{HAPI_NO_VALUE, 0, 0, 0}, {HAPI_NO_VALUE, 0, 0, 0}},
                            .out = n->n_out ? n->out[0] : HAPI_NO_VALUE,
                            .last = i,
                            .nodes = {n},
                            .n_nodes = 1};
    f->taken[i] = true;
    if (s->out < 0 || f->g->values[s->out].dtype != HAPI_F32)
        return;
    if (f->masks && n->op == HAPI_OP_Add && take_masks(f, s, i))
        return;
    for (int k = 0; k < n->n_in && !len; k++)
        if (n->in[k] >= 0) {
            f->taken[i] = false;
            len = swish_of(f, i, n->in[k], chain);
            f->taken[i] = true;
            if (len)
                s->x = n->in[k];
        }
    if (len) {
        s->act_only = true;
        s->act = (struct hapi_act){HAPI_ACT_SWISH, 1, 0};
        for (int j = 1; j < len; j++)
            take(f, s, chain[j]);
        return;
    }
    if (act_of(f->g, n, &s->act)) {
        s->act_only = true;
        return;
    }
    if (n->op == HAPI_OP_Conv) {
        f->taken[i] = false;
        take_pad(f, s);
        f->taken[i] = true;
    }
    bool product = n->op == HAPI_OP_Conv || n->op == HAPI_OP_Gemm || n->op == HAPI_OP_MatMul;
    if (n->op == HAPI_OP_MatMul)
        take_bias(f, s);
    if (product)
        take_residual(f, s);
    if (product || n->op == HAPI_OP_Add || n->op == HAPI_OP_BatchNormalization)
        take_act(f, s);
}

static bool fusion_prepare(struct fusion *f, struct hapi_arena *arena)
{
    const struct hapi_graph *g = f->g;

    f->user = hapi_arena_array(arena, g->n_values + 1, sizeof *f->user);
    f->taken = hapi_arena_array(arena, g->n_nodes + 1, sizeof *f->taken);
    f->uses = hapi_arena_array(arena, g->n_values + 1, sizeof *f->uses);
    f->read = hapi_arena_array(arena, g->n_values + 1, sizeof *f->read);
    if (!f->user || !f->taken || !f->uses || !f->read)
        return false;
    for (size_t i = 0; i < g->n_values; i++)
        f->user[i] = -1;
    for (size_t i = 0; i < g->n_nodes; i++)
        for (int k = 0; k < g->nodes[i].n_in; k++) {
            int v = g->nodes[i].in[k];
            if (v < 0)
                continue;
            f->user[v] = f->user[v] == -1 ? (int)i : -2;
            if (f->uses[v] < 2)
                f->read[v][f->uses[v]] = (int)i;
            f->uses[v]++;
        }
    for (size_t i = 0; i < g->n_outputs; i++) {
        f->user[g->outputs[i]] = -2;
        f->uses[g->outputs[i]] = 1 << 30;
    }
    return true;
}

/* The steps, in the order in which they were found; at[node] is the one whose last node that is. */
static size_t steps_find(struct fusion *f, struct hapi_step *list, struct hapi_step **at)
{
    size_t count = 0;

    for (size_t i = 0; i < f->g->n_nodes; i++) {
        if (f->taken[i] || pad_of_conv(f, (int)i))
            continue;
        step_make(f, &list[count], (int)i);
        at[list[count].last] = &list[count];
        count++;
    }
    return count;
}

int hapi_fuse(const struct hapi_graph *g, struct hapi_arena *arena, bool masks, struct hapi_step **steps,
              size_t *n, struct hapi_err *err)
{
    struct fusion f = {.g = g, .masks = masks};
    struct hapi_arena *scratch = hapi_arena_new(SIZE_MAX); /* some hundred bytes for each of g's nodes */
    struct hapi_step *list = NULL, **at = NULL, *ordered = NULL;
    size_t count = 0, k = 0;

    if (scratch && fusion_prepare(&f, scratch)) {
        list = hapi_arena_array(scratch, g->n_nodes + 1, sizeof *list);
        at = hapi_arena_array(scratch, g->n_nodes + 1, sizeof *at);
    }
    if (list && at) {
        count = steps_find(&f, list, at);
        ordered = hapi_arena_array(arena, count + 1, sizeof *ordered);
    }
    /* A step stands where its last node stood: by then all that any of its nodes reads has been made. */
    for (size_t i = 0; ordered && i < g->n_nodes; i++)
        if (at[i])
            ordered[k++] = *at[i];
    hapi_arena_free(scratch);
    if (!ordered)
        return hapi_err_set(err, HAPI_ENOMEM, 0, "no memory to fuse %zu nodes", g->n_nodes);
    *steps = ordered;
    *n = count;
    return HAPI_OK;
}
