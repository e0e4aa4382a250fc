/* How many samples of a micro-batch run at a time, and what that takes. */
#include "tiles.h"

#include "int8.h"
#include "model.h"

/* What the activations of a tile may take of the caches: a core's own, within what was tried. On a Xeon with
 * large ones 8 MB ran ResNets and DenseNet 5 to 8 % slower than 32; where a core has 17, as on a Zen 4, 32
 * ran most networks 2 to 9 % slower than 16, and 8 was no better. */
static double cache_bytes(void)
{
    double own = (double)hapi_cpu_cache_bytes(), least = 16 << 20, most = 32 << 20;

    return own <= 0 || own > most ? most : own < least ? least : own;
}

/* Bytes that nodes make in one run: about what a run moves once its activations do not stay in the caches. */
static double made_bytes(const struct hapi_graph *g)
{
    double sum = 0;

    for (size_t i = 0; i < g->n_nodes; i++)
        for (int k = 0; k < g->nodes[i].n_out; k++) {
            const struct hapi_value *v = g->nodes[i].out[k] < 0 ? NULL : &g->values[g->nodes[i].out[k]];
            size_t bytes = 0;
            if (v && !hapi_tensor_bytes(&v->shape, v->dtype, &bytes))
                sum += (double)bytes;
        }
    return sum;
}

static bool edges_batch_first(const struct hapi_graph *g)
{
    for (size_t i = 0; i < g->n_inputs; i++)
        if (!g->values[g->inputs[i]].batch_first)
            return false;
    for (size_t i = 0; i < g->n_outputs; i++)
        if (!g->values[g->outputs[i]].batch_first)
            return false;
    return g->n_inputs > 0;
}

/* How many samples to run at a time. Each run reads all weights once: weights / tile bytes a sample. What of
 * a tile's activations does not fit the cache moves through memory as well. The least of the two wins
 * (MobileNets take one or two images, AlexNet with its 244 MB of weights the whole batch), and the arena is
 * that of a tile. Allowed because a sample's bits do not depend on the batch (tests/kernels/test_onednn.c),
 * and because the samples of a micro-batch never mix. `hapi run` (plain_io) runs any model, and so never in
 * parts; neither does a model that cannot be bound to one sample. */
static int64_t tile_choose(struct hapi_model *m, const struct hapi_plan_spec *spec,
                           const struct hapi_backend_ops *ops)
{
    struct hapi_plan_spec one = *spec;
    struct hapi_plan_memory mem;
    struct hapi_backend *b = NULL;
    struct hapi_graph *g = NULL;
    int64_t tile = spec->batch;
    double best = -1;

    if (!ops->tiled || spec->batch < 2 || spec->n_bind || spec->plain_io)
        return tile;
    one.batch = 1;
    if (hapi_graph_bind_raw(&g, m, &one, ops->copies, NULL))
        return tile;
    if (edges_batch_first(g) && !ops->compile(&b, g, &one, NULL, NULL)) {
        double made = made_bytes(g), cache = cache_bytes();
        ops->memory(b, &mem);
        for (int64_t t = 1; t <= spec->batch; t++) {
            double arena = (double)t * (double)mem.arena;
            double spills = arena > cache ? 1 - cache / arena : 0;
            double cost = (double)mem.weights / (double)t + spills * made;
            if (spec->batch % t || (best >= 0 && cost >= best))
                continue;
            best = cost;
            tile = t;
        }
        ops->free(b);
    }
    hapi_graph_free(g);
    return tile;
}

int hapi_tiles_bind(struct hapi_graph **g, struct hapi_tiles *t, struct hapi_model *m,
                    const struct hapi_plan_spec *spec, const struct hapi_backend_ops *ops,
                    struct hapi_err *err)
{
    struct hapi_plan_spec part = *spec;
    int64_t group = spec->batch && !spec->n_bind && !hapi_model_flags(m, NULL) ? m->cache->group : 0;
    bool grouped = group && spec->batch != group;

    part.batch = grouped ? group : tile_choose(m, spec, ops);
    *t = (struct hapi_tiles){.runs = 1, .samples = part.batch};
    if (part.batch) {
        t->runs = (spec->batch + part.batch - 1) / part.batch;
        t->tail = spec->batch % part.batch;
    }
    int rc = hapi_graph_bind_raw(g, m, &part, ops->copies, err);
    if (!rc && grouped && !edges_batch_first(*g))
        rc =
            hapi_err_set(err, HAPI_EUNSUPPORTED, 0,
                         "the model is for %lld sample(s) at a time, and dim 0 of an edge of the plan is not "
                         "their number",
                         (long long)group);
    return rc;
}

enum hapi_dtype hapi_edge_dtype(const struct hapi_plan_spec *spec, const struct hapi_value *v, bool input)
{
    return input ? (spec->image ? HAPI_U8 : v->dtype) : spec->wire ? spec->wire : v->dtype;
}

int hapi_edge_bytes(const struct hapi_plan_spec *spec, const struct hapi_value *v, bool input, size_t *bytes)
{
    enum hapi_dtype dtype = hapi_edge_dtype(spec, v, input);
    struct hapi_i8 form;
    int rc;

    if (input || spec->wire != HAPI_I8)
        return hapi_tensor_bytes(&v->shape, dtype, bytes);
    rc = hapi_i8_form(&form, &v->shape);
    if (!rc && __builtin_mul_overflow(hapi_i8_row(&form), (size_t)v->shape.dim[0], bytes))
        rc = HAPI_ETOOBIG;
    return rc;
}

int hapi_tiles_memory(struct hapi_backend *b, const struct hapi_graph *g, const struct hapi_plan_spec *spec,
                      const struct hapi_tiles *t, struct hapi_plan_memory *out, size_t *pad_at,
                      struct hapi_err *err)
{
    size_t sum, bytes;

    b->ops->memory(b, out);
    sum = *pad_at = hapi_tiles_round(out->arena + out->scratch);
    if (!t->tail)
        return HAPI_OK;
    for (size_t i = 0; i < g->n_inputs + g->n_outputs; i++) {
        int v = i < g->n_inputs ? g->inputs[i] : g->outputs[i - g->n_inputs];
        if (hapi_edge_bytes(spec, &g->values[v], i < g->n_inputs, &bytes) || bytes > SIZE_MAX / 8 - sum)
            return hapi_err_set(err, HAPI_ETOOBIG, 0, "edge `%s` is too large", g->values[v].name);
        sum += hapi_tiles_round(bytes);
    }
    out->arena = sum - out->scratch;
    return HAPI_OK;
}
