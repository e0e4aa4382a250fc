/*
 * What of a model is a batch. A symbolic dim 0 is one. A fixed one can stand for any number where that is
 * proven: when every value that depends on the inputs grows with it in dim 0 and nowhere else, and no node
 * works along dim 0, then each sample is computed by itself, and in the same way whatever the number. Where
 * that cannot be shown (a transformer that moves the batch about, with Reshape constants that hold it), a
 * model for B samples runs B samples at a time, which is what it says; plan.c fills the last B up.
 */
#include <stdlib.h>
#include <string.h>

#include "model.h"

enum { GROUP_MAX = 4096 };

static const struct hapi_plan_spec at_one = {.batch = 1}, at_three = {.batch = 3};

/* Shapes of all values at a batch, as the file numbers them. */
static int shapes_at(struct hapi_model *m, const struct hapi_plan_spec *spec, struct hapi_binding *b,
                     struct hapi_err *err)
{
    int rc = hapi_binding_new(b, m, spec, true, err);

    rc = rc ? rc : hapi_binding_infer(b);
    return rc ? hapi_err_context(err, "at batch %lld", (long long)spec->batch), rc : 0;
}

static void binding_free(struct hapi_binding *b)
{
    hapi_graph_free(b->g);
    hapi_binding_fini(b);
}

static bool scales(const struct hapi_shape *one, const struct hapi_shape *three)
{
    struct hapi_shape s = *one;

    if (s.rank < 1 || s.dim[0] != 1)
        return false;
    s.dim[0] = 3;
    return hapi_shape_equal(&s, three);
}

static bool is_dynamic(const struct hapi_binding *b, size_t value)
{
    return b->g->values[value].dtype && !hapi_fold_constant(b, (int)value);
}

/* Whether the node may mix what lies at different places of its operands' dim 0, though shapes do not show
 * it. */
static bool along_first(const struct hapi_graph *g, const struct hapi_node *n)
{
    const struct hapi_value *x = n->n_in && n->in[0] >= 0 ? &g->values[n->in[0]] : NULL;
    int64_t axis = hapi_node_int(n, "axis", n->op == HAPI_OP_LayerNormalization ? -1 : 0);

    switch (n->op) {
    case HAPI_OP_Softmax:
    case HAPI_OP_LogSoftmax:
        axis = hapi_node_int(n, "axis", g->opset < 13 ? 1 : -1);
        return !x || axis == 0 || axis == -x->shape.rank;
    case HAPI_OP_LayerNormalization:
    case HAPI_OP_GatherElements:
        return !x || axis == 0 || axis == -x->shape.rank;
    case HAPI_OP_Trilu:
        return !x || x->shape.rank < 3;
    case HAPI_OP_CumSum:
    case HAPI_OP_GatherND:
    case HAPI_OP_Scatter:
    case HAPI_OP_ScatterElements:
    case HAPI_OP_ScatterND:
        return true;
    case HAPI_OP_Slice: /* that the length stays does not say in which order */
        return n->n_in > 4 && n->in[4] >= 0;
    default:
        return false;
    }
}

/* Whether re-binding a fixed batch is right, of the model bound at 1 and at 3. */
static bool is_proven(const struct hapi_binding *one, const struct hapi_binding *three)
{
    for (size_t i = 0; i < one->o->n_values; i++)
        if (is_dynamic(one, i) &&
            (!is_dynamic(three, i) || !scales(&one->g->values[i].shape, &three->g->values[i].shape)))
            return false;
    for (size_t i = 0; i < one->g->n_nodes; i++)
        if (along_first(one->g, &one->g->nodes[i]))
            return false;
    return true;
}

/* The number that the file fixes dim 0 of its inputs to; 0 where some input's is free, or none has dims. */
static int64_t fixed_batch(const struct hapi_onnx *o)
{
    int64_t n = 0;

    for (size_t i = 0; i < o->n_inputs; i++) {
        if (o->inputs[i].rank < 1 || o->inputs[i].dim[0] < 0)
            return 0;
        n = n ? n : o->inputs[i].dim[0];
    }
    return n;
}

/* What a model that runs in groups cannot be: the bound is against files that name absurd numbers. */
static int group_check(const struct hapi_onnx *o, int64_t group, struct hapi_err *err)
{
    for (size_t i = 0; i < o->n_inputs; i++)
        if (o->inputs[i].dim[0] != group)
            return hapi_err_set(
                err, HAPI_EUNSUPPORTED, 0,
                "the model's inputs are of %lld and of %lld samples: export it with one batch",
                (long long)group, (long long)o->inputs[i].dim[0]);
    return group > GROUP_MAX
               ? hapi_err_set(err, HAPI_ETOOBIG, 0,
                              "the model is for %lld samples at a time, and no other number is possible (at "
                              "most %d are): export it for fewer, or with a dynamic batch",
                              (long long)group, GROUP_MAX)
               : HAPI_OK;
}

/* Whether the output k of n holds one sample after the other, given which of the values before do. A moved
 * batch is lost and found again where a residual that was not moved is added. */
static bool samples_in_order(const struct hapi_graph *g, const struct hapi_node *n, int k,
                             const bool *ordered)
{
    const struct hapi_shape *out = &g->values[n->out[k]].shape;
    int64_t perm[HAPI_MAX_RANK] = {HAPI_MAX_RANK};

    switch (n->op) {
    case HAPI_OP_Reshape:
    case HAPI_OP_Flatten:
    case HAPI_OP_Squeeze:
    case HAPI_OP_Unsqueeze:
        return ordered[n->in[0]];
    case HAPI_OP_Transpose:
        return hapi_node_ints(n, "perm", perm, HAPI_MAX_RANK) && perm[0] == 0 && ordered[n->in[0]];
    case HAPI_OP_Gather:
        return ordered[n->in[hapi_node_int(n, "axis", 0) ? 0 : 1]];
    default:
        break;
    }
    for (int i = 0; i < n->n_in && n->op != HAPI_OP_GatherND; i++) {
        const struct hapi_shape *in = n->in[i] < 0 ? NULL : &g->values[n->in[i]].shape;
        bool lost = in && out->rank < in->rank && in->rank > 1 && in->dim[1] == in->dim[0]; /* which is it? */
        if (in && ordered[n->in[i]] && out->rank > 0 && out->dim[0] == in->dim[0] && !lost)
            return true;
    }
    return false;
}

/* Bound at its own number, shapes do not show what the batch is: it is followed from the inputs on. Dim 0 of
 * an output is what the file says it is. */
static int group_flags(struct hapi_model *m, int64_t group, bool *batch_first, struct hapi_err *err)
{
    struct hapi_plan_spec spec = {.batch = group};
    struct hapi_binding b = {.g = NULL};
    int rc = group_check(&m->onnx, group, err);
    bool *ordered = NULL;

    rc = rc ? rc : shapes_at(m, &spec, &b, err);
    if (!rc && !(ordered = hapi_arena_array(b.scratch, b.g->n_values, sizeof *ordered)))
        rc = hapi_err_set(err, HAPI_ENOMEM, 0, "out of memory");
    for (size_t i = 0; !rc && i < b.g->n_inputs; i++)
        ordered[b.g->inputs[i]] = true;
    for (size_t i = 0; !rc && i < b.g->n_nodes; i++)
        for (int k = 0; k < b.g->nodes[i].n_out; k++)
            if (b.g->nodes[i].out[k] >= 0)
                ordered[b.g->nodes[i].out[k]] = samples_in_order(b.g, &b.g->nodes[i], k, ordered);
    for (size_t i = 0; !rc && i < b.g->n_outputs; i++)
        ordered[b.g->outputs[i]] = is_dynamic(&b, (size_t)b.g->outputs[i]);
    for (size_t i = 0; !rc && i < m->onnx.n_values; i++)
        batch_first[i] =
            ordered[b.alias[i]] && b.g->values[i].shape.rank > 0 && b.g->values[i].shape.dim[0] == group;
    binding_free(&b);
    return rc;
}

static void flags_fill(struct hapi_model *m)
{
    struct hapi_model_cache *c = m->cache;
    struct hapi_binding one = {.g = NULL}, three = {.g = NULL};
    int alone = shapes_at(m, &at_one, &one, &c->flags_err);
    bool rebound;

    c->fixed = fixed_batch(&m->onnx);
    c->flags_rc = alone ? alone : shapes_at(m, &at_three, &three, &c->flags_err);
    rebound = !c->flags_rc && (!c->fixed || is_proven(&one, &three));
    c->batch = !c->fixed       ? HAPI_MODEL_BATCH_FREE
               : rebound       ? HAPI_MODEL_BATCH_REBOUND
               : c->fixed == 1 ? HAPI_MODEL_BATCH_ONE
                               : HAPI_MODEL_BATCH_PADDED;
    if (c->batch == HAPI_MODEL_BATCH_ONE)
        c->flags_rc = alone;
    else if (c->batch == HAPI_MODEL_BATCH_PADDED)
        c->flags_rc = group_flags(m, c->fixed, c->batch_first, &c->flags_err);
    c->group = !c->flags_rc && c->fixed && !rebound ? c->fixed : 0;
    for (size_t i = 0; !c->flags_rc && c->group < 2 && i < m->onnx.n_values; i++) {
        const struct hapi_shape *s = &one.g->values[i].shape;
        c->batch_first[i] =
            !hapi_fold_constant(&one, (int)i) &&
            (c->group ? s->rank > 0 && s->dim[0] == 1
                      : !hapi_fold_constant(&three, (int)i) && scales(s, &three.g->values[i].shape));
    }
    binding_free(&one);
    binding_free(&three);
}

int hapi_model_flags(struct hapi_model *m, struct hapi_err *err)
{
    struct hapi_model_cache *c = m->cache;

    if (!c->flagged) {
        c->flagged = true;
        c->batch_first = calloc(m->onnx.n_values + 1, sizeof *c->batch_first);
        c->flags_rc = c->batch_first ? 0 : hapi_err_set(&c->flags_err, HAPI_ENOMEM, 0, "out of memory");
        if (!c->flags_rc)
            flags_fill(m);
    }
    if (c->flags_rc && err)
        *err = c->flags_err;
    return c->flags_rc;
}

enum hapi_model_batch hapi_model_batch(struct hapi_model *m, int64_t *fixed)
{
    hapi_model_flags(m, NULL);
    if (fixed)
        *fixed = m->cache->fixed;
    return m->cache->batch;
}
