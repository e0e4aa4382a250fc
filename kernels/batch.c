/*
 * What of a model is a batch. A symbolic dim 0 is one. A fixed one can stand for any number where that is
 * proven: when every value that depends on the inputs grows with it in dim 0 and nowhere else, and no node
 * works along dim 0, then each sample is computed by itself, and in the same way whatever the number. Where
 * that cannot be shown (a transformer that moves the batch about, with Reshape constants that hold it), a
 * model for one sample runs one sample at a time, which is what it says; one for more is refused.
 */
#include <stdlib.h>
#include <string.h>

#include "model.h"

static const struct hapi_plan_spec at_one = {.batch = 1}, at_three = {.batch = 3};

/* Shapes of all values at a batch, as the file numbers them. */
static int shapes_at(struct hapi_model *m, const struct hapi_plan_spec *spec, struct hapi_binding *b,
                     struct hapi_err *err)
{
    int rc = hapi_binding_new(b, m, spec, true, err);

    rc = rc ? rc : hapi_binding_infer(b);
    return rc ? hapi_err_context(err, "at batch %lld", (long long)spec->batch), rc : 0;
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

static int refuse(struct hapi_model_cache *c)
{
    const char *text = c->flags_rc ? c->flags_err.text : "samples may not be independent of each other";
    struct hapi_err e = {0};
    int rc = hapi_err_set(
        &e, HAPI_EUNSUPPORTED, 0,
        "the model is for %lld samples at a time, and no other number is possible: %.300s; export it "
        "for one, or with a dynamic batch",
        (long long)c->fixed, text);

    c->flags_err = e;
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
    c->batch = !c->fixed ? HAPI_MODEL_BATCH_FREE : rebound ? HAPI_MODEL_BATCH_REBOUND : HAPI_MODEL_BATCH_ONE;
    if (c->batch == HAPI_MODEL_BATCH_ONE)
        c->flags_rc = c->fixed != 1 ? refuse(c) : alone;
    for (size_t i = 0; !c->flags_rc && i < m->onnx.n_values; i++) {
        const struct hapi_shape *s = &one.g->values[i].shape;
        c->batch_first[i] = !hapi_fold_constant(&one, (int)i) &&
                            (c->batch == HAPI_MODEL_BATCH_ONE ? s->rank > 0 && s->dim[0] == 1
                                                              : !hapi_fold_constant(&three, (int)i) &&
                                                                    scales(s, &three.g->values[i].shape));
    }
    hapi_graph_free(one.g);
    hapi_graph_free(three.g);
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
