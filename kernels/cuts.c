/* Where a network can be split: sets of tensors by name, and the default; cut_list.c has the listings. */
#include "cuts.h"

#include <stdlib.h>
#include <string.h>

enum { DISTANCE_MAX = 128, CANDIDATES_MAX = 4096 };

void hapi_cuts_free(struct hapi_cuts *c)
{
    if (!c)
        return;
    hapi_graph_free(c->g);
    hapi_arena_free(c->arena);
    free(c);
}

static int no_memory(struct hapi_err *err)
{
    return hapi_err_set(err, HAPI_ENOMEM, 0, "no memory for the list of cuts");
}

/* ------------------------------------------------------------------ names */

/* Levenshtein's distance; both at most DISTANCE_MAX bytes. */
static size_t distance(const char *a, size_t n, const char *b, size_t m)
{
    size_t row[DISTANCE_MAX + 1];

    for (size_t j = 0; j <= m; j++)
        row[j] = j;
    for (size_t i = 1; i <= n; i++) {
        size_t diagonal = row[0];
        row[0] = i;
        for (size_t j = 1; j <= m; j++) {
            size_t best = diagonal + (a[i - 1] != b[j - 1]);
            diagonal = row[j];
            if (row[j] + 1 < best)
                best = row[j] + 1;
            if (row[j - 1] + 1 < best)
                best = row[j - 1] + 1;
            row[j] = best;
        }
    }
    return row[m];
}

/* The output of a node, or the input, that is spelt most like it; NULL when it is too long to be compared. */
static const char *nearest(const struct hapi_onnx *o, const char *name, size_t n)
{
    size_t best = SIZE_MAX, tried = 0;
    const char *found = NULL;

    for (size_t i = 0; i < o->n_values && n <= DISTANCE_MAX && tried < CANDIDATES_MAX; i++) {
        size_t m = strlen(o->values[i].name), d;
        if (o->values[i].tensor >= 0 || m > DISTANCE_MAX)
            continue;
        tried++;
        d = distance(name, n, o->values[i].name, m);
        if (d < best) {
            best = d;
            found = o->values[i].name;
        }
    }
    return found;
}

static int no_such_tensor(const struct hapi_model *m, const char *name, size_t n, struct hapi_err *err)
{
    const char *near = nearest(&m->onnx, name, n);

    return hapi_err_set(err, HAPI_ENOENT, 0, "no tensor \"%.*s\"%s%.150s%s", (int)(n < 150 ? n : 150), name,
                        near ? " (nearest: \"" : "", near ? near : "", near ? "\")" : "");
}

void hapi_cuts_sort(int *v, const char **names, size_t n)
{
    for (size_t i = 1; i < n; i++) {
        const char *name = names[i];
        int moving = v[i];
        size_t k = i;
        for (; k > 0 && strcmp(names[k - 1], name) > 0; k--) {
            v[k] = v[k - 1];
            names[k] = names[k - 1];
        }
        v[k] = moving;
        names[k] = name;
    }
}

int hapi_model_values(const struct hapi_model *m, const char *id, int **out, size_t *n, struct hapi_err *err)
{
    const struct hapi_onnx *o = &m->onnx;
    const char *names[HAPI_CUT_TENSORS_MAX];
    int values[HAPI_CUT_TENSORS_MAX], whole = hapi_onnx_find(o, id, strlen(id));
    size_t count = 0, k;

    for (const char *s = id;; s += k + 1) {
        k = whole >= 0 ? strlen(s) : strcspn(s, ","); /* one name may hold a comma itself */
        if (count == HAPI_CUT_TENSORS_MAX)
            return hapi_err_set(err, HAPI_EINVAL, 0, "a cut of more than %d tensors", HAPI_CUT_TENSORS_MAX);
        values[count] = hapi_onnx_find(o, s, k);
        if (values[count] < 0)
            return no_such_tensor(m, s, k, err);
        names[count] = o->values[values[count]].name;
        count++;
        if (!s[k])
            break;
    }
    hapi_cuts_sort(values, names, count);
    for (size_t i = 1; i < count; i++)
        if (values[i] == values[i - 1])
            return hapi_err_set(err, HAPI_EINVAL, 0, "tensor \"%.200s\" twice", o->values[values[i]].name);
    *out = malloc(count * sizeof **out);
    if (!*out)
        return no_memory(err);
    memcpy(*out, values, count * sizeof *values);
    *n = count;
    return 0;
}

/* ------------------------------------------------------------------ one cut */

static uint64_t count_of(const struct hapi_value *v)
{
    int64_t n = 0;
    return hapi_shape_elements(&v->shape, &n) ? 0 : (uint64_t)n;
}

bool hapi_cuts_is_float(enum hapi_dtype d)
{
    return d == HAPI_F32 || d == HAPI_F16 || d == HAPI_BF16 || d == HAPI_F64;
}

bool *hapi_cuts_dynamic(const struct hapi_graph *g, struct hapi_arena *arena)
{
    bool *dynamic = hapi_arena_array(arena, g->n_values, sizeof *dynamic);

    for (size_t i = 0; dynamic && i < g->n_values; i++)
        dynamic[i] = g->values[i].producer >= 0;
    for (size_t i = 0; dynamic && i < g->n_inputs; i++)
        dynamic[g->inputs[i]] = true;
    return dynamic;
}

void hapi_cuts_add_node(const struct hapi_graph *g, const struct hapi_node *n, bool *seen,
                        struct hapi_cut *sum)
{
    sum->flops += hapi_node_flops(g, n) / (uint64_t)g->batch;
    for (int k = 0; k < n->n_in; k++) {
        if (n->in[k] < 0 || seen[n->in[k]])
            continue;
        seen[n->in[k]] = true;
        const struct hapi_value *v = &g->values[n->in[k]];
        sum->params += hapi_cuts_is_float(v->dtype) && v->shape.rank ? count_of(v) : 0;
    }
}

int hapi_cuts_describe(struct hapi_arena *arena, const struct hapi_graph *g, const int *values, size_t n,
                       struct hapi_cut *cut, struct hapi_err *err)
{
    struct hapi_tensor_desc *d = hapi_arena_array(arena, n, sizeof *d);
    size_t length = 0, at = 0;

    for (size_t i = 0; i < n; i++)
        length += strlen(g->values[values[i]].name) + 1;
    char *id = hapi_arena_alloc(arena, length, 1);
    if (!d || !id)
        return no_memory(err);
    for (size_t i = 0; i < n; i++) {
        const struct hapi_value *v = &g->values[values[i]];
        size_t k = strlen(v->name);
        char *name = hapi_arena_strndup(arena, v->name, k);
        if (!name)
            return no_memory(err);
        memcpy(id + at, v->name, k);
        at += k;
        id[at++] = i + 1 < n ? ',' : '\0';
        d[i] = (struct hapi_tensor_desc){.name = name, .dtype = v->dtype, .shape = v->shape};
        d[i].shape.dim[0] /= g->batch;
        d[i].layout = v->shape.rank == 4 ? HAPI_LAYOUT_NHWC : HAPI_LAYOUT_PLAIN;
        cut->bytes_f32 += 4 * count_of(v) / (uint64_t)g->batch;
    }
    cut->id = id;
    cut->n_tensors = (uint32_t)n;
    cut->tensors = d;
    return 0;
}

/* ------------------------------------------------------------------ the listings */

static int cuts_get(struct hapi_model *m, struct hapi_cuts **out, struct hapi_err *err)
{
    struct hapi_cuts *c;
    int rc = 0;

    if (!m->cache->cuts) {
        rc = hapi_model_flags(m, err);
        if (rc)
            return rc;
        c = calloc(1, sizeof *c);
        if (c)
            c->arena = hapi_arena_new((size_t)m->limits.arena_bytes);
        rc = c && c->arena ? hapi_graph_shapes(&c->g, m, NULL, err) : no_memory(err);
        rc = rc ? rc : hapi_cuts_list(c, 1, &c->single, err);
        if (rc) {
            hapi_cuts_free(c);
            return rc;
        }
        m->cache->cuts = c;
    }
    *out = m->cache->cuts;
    return 0;
}

int hapi_model_cuts(struct hapi_model *m, const struct hapi_cut **out, size_t *n, struct hapi_err *err)
{
    struct hapi_cuts *c;
    int rc = cuts_get(m, &c, err);

    if (rc)
        return rc;
    *out = c->single.cuts;
    *n = c->single.n;
    return 0;
}

int hapi_model_cuts_all(struct hapi_model *m, uint32_t max_tensors, const struct hapi_cut **out, size_t *n,
                        struct hapi_err *err)
{
    struct hapi_cuts *c;
    int rc = cuts_get(m, &c, err);

    if (!rc && (!max_tensors || max_tensors > HAPI_CUT_TENSORS_MAX))
        rc = hapi_err_set(err, HAPI_EINVAL, 0, "cuts of %u tensors: 1 to %d are possible", max_tensors,
                          HAPI_CUT_TENSORS_MAX);
    if (!rc && c->all.max_tensors != max_tensors)
        rc = hapi_cuts_list(c, max_tensors, &c->all, err);
    if (rc)
        return rc;
    *out = c->all.cuts;
    *n = c->all.n;
    return 0;
}

/* ------------------------------------------------------------------ any set of tensors */

/* Walks back from the outputs and stops at the set. */
static int check_separates(const struct hapi_graph *g, const int *set, size_t n, bool *in_set, bool *reached,
                           struct hapi_err *err)
{
    for (size_t i = 0; i < n; i++)
        in_set[set[i]] = true;
    for (size_t i = 0; i < g->n_outputs; i++)
        reached[g->outputs[i]] = true;
    for (size_t i = g->n_nodes; i-- > 0;) {
        bool on = false;
        for (int k = 0; k < g->nodes[i].n_out; k++)
            on |= g->nodes[i].out[k] >= 0 && reached[g->nodes[i].out[k]] && !in_set[g->nodes[i].out[k]];
        for (int k = 0; on && k < g->nodes[i].n_in; k++)
            if (g->nodes[i].in[k] >= 0)
                reached[g->nodes[i].in[k]] = true;
    }
    for (size_t i = 0; i < g->n_inputs; i++)
        if (reached[g->inputs[i]])
            return hapi_err_set(err, HAPI_EINVAL, 0,
                                "not a cut: a path from input \"%.100s\" to an output goes around it",
                                g->values[g->inputs[i]].name);
    for (size_t i = 0; i < n; i++)
        if (!reached[set[i]])
            return hapi_err_set(err, HAPI_EINVAL, 0, "not a cut: tensor \"%.150s\" is not needed after it",
                                g->values[set[i]].name);
    return 0;
}

static int check_tensor(const struct hapi_graph *g, int v, const char *name, struct hapi_err *err)
{
    const char *why = v < 0                       ? "it is a constant, or leads to no output"
                      : g->values[v].producer < 0 ? "it is the model's own input, or a constant"
                      : !g->values[v].batch_first || !hapi_cuts_is_float(g->values[v].dtype)
                          ? "its dim 0 is not the batch, or it is not of floats"
                          : NULL;

    return why ? hapi_err_set(err, HAPI_EINVAL, 0, "tensor \"%.150s\" cannot be in a cut: %s", name, why) : 0;
}

/* What lies before the set: its ancestors. */
static void sum_before(const struct hapi_graph *g, const int *set, size_t n, bool *wanted, bool *seen,
                       struct hapi_cut *cut)
{
    for (size_t i = 0; i < n; i++)
        wanted[set[i]] = true;
    for (size_t i = g->n_nodes; i-- > 0;) {
        bool on = false;
        for (int k = 0; k < g->nodes[i].n_out; k++)
            on |= g->nodes[i].out[k] >= 0 && wanted[g->nodes[i].out[k]];
        for (int k = 0; on && k < g->nodes[i].n_in; k++)
            if (g->nodes[i].in[k] >= 0)
                wanted[g->nodes[i].in[k]] = true;
        if (on)
            hapi_cuts_add_node(g, &g->nodes[i], seen, cut);
    }
}

/* Numbers of the named values in g, or -1. */
static void locate(const struct hapi_model *m, const struct hapi_graph *g, const int *values, size_t n,
                   int *out)
{
    for (size_t i = 0; i < n; i++) {
        const char *name = m->onnx.values[values[i]].name;
        out[i] = -1;
        for (size_t k = 0; k < g->n_values && out[i] < 0; k++)
            if (!strcmp(g->values[k].name, name))
                out[i] = (int)k;
    }
}

static int make_cut(struct hapi_cuts *c, struct hapi_model *m, const struct hapi_graph *g, const int *values,
                    size_t n, struct hapi_cut *cut, struct hapi_err *err)
{
    int set[HAPI_CUT_TENSORS_MAX], rc = 0;
    struct hapi_arena *scratch = hapi_arena_new((size_t)m->limits.arena_bytes);
    bool *marks = scratch ? hapi_arena_array(scratch, g->n_values, 3 * sizeof *marks) : NULL;
    bool *seen = scratch ? hapi_cuts_dynamic(g, scratch) : NULL;

    if (!marks || !seen)
        rc = no_memory(err);
    locate(m, g, values, n, set);
    for (size_t i = 0; i < n && !rc; i++)
        rc = check_tensor(g, set[i], m->onnx.values[values[i]].name, err);
    rc = rc ? rc : check_separates(g, set, n, marks, marks + g->n_values, err);
    if (!rc) {
        sum_before(g, set, n, marks + 2 * g->n_values, seen, cut);
        rc = hapi_cuts_describe(c->arena, g, set, n, cut, err);
        cut->name = cut->id;
        cut->index = (uint32_t)(c->single.n + c->n_found);
    }
    hapi_arena_free(scratch);
    return rc;
}

static bool same_set(const struct hapi_model *m, const struct hapi_cut *cut, const int *values, size_t n)
{
    bool same = cut->n_tensors == n;

    for (size_t i = 0; same && i < n; i++)
        same = !strcmp(cut->tensors[i].name, m->onnx.values[values[i]].name);
    return same;
}

/* A set that is not listed. Its tensors may be ones that a fold removes: the graph is bound with them kept.
 */
static int find_new(struct hapi_cuts *c, struct hapi_model *m, const char *id, const int *values, size_t n,
                    const struct hapi_cut **out, struct hapi_err *err)
{
    struct hapi_graph *g;
    struct hapi_cut *cut = NULL;
    int rc;

    if (c->n_found == HAPI_CUTS_FOUND_MAX)
        return hapi_err_set(err, HAPI_ETOOBIG, 0, "more than %d different cuts of one model",
                            HAPI_CUTS_FOUND_MAX);
    rc = hapi_graph_shapes(&g, m, id, err);
    if (rc)
        return rc;
    cut = hapi_arena_array(c->arena, 1, sizeof *cut);
    rc = cut ? make_cut(c, m, g, values, n, cut, err) : no_memory(err);
    hapi_graph_free(g);
    if (rc)
        return rc;
    c->found[c->n_found++] = cut;
    *out = cut;
    return 0;
}

int hapi_model_cut_find(struct hapi_model *m, const char *id, const struct hapi_cut **out,
                        struct hapi_err *err)
{
    struct hapi_cuts *c;
    int *values, rc = cuts_get(m, &c, err);
    size_t n;

    rc = rc ? rc : hapi_model_values(m, id, &values, &n, err);
    if (rc)
        return rc;
    for (size_t i = 0; i < c->single.n + c->n_found; i++) {
        const struct hapi_cut *cut = i < c->single.n ? &c->single.cuts[i] : c->found[i - c->single.n];
        if (!same_set(m, cut, values, n))
            continue;
        *out = cut;
        free(values);
        return 0;
    }
    rc = find_new(c, m, id, values, n, out, err);
    free(values);
    return rc;
}

/* ------------------------------------------------------------------ the default */

/* The product with constant weights that ends the network, with no more than a bias, a softmax or a new
 * shape behind it. */
static const struct hapi_node *classifier(const struct hapi_graph *g)
{
    int v = g->n_outputs == 1 ? g->outputs[0] : -1;

    while (v >= 0 && g->values[v].producer >= 0) {
        const struct hapi_node *n = &g->nodes[g->values[v].producer];
        int next = -1;
        switch (n->op) {
        case HAPI_OP_Gemm:
        case HAPI_OP_MatMul:
            return g->values[n->in[1]].producer < 0 ? n : NULL;
        case HAPI_OP_Add:
            next = g->values[n->in[0]].producer < 0   ? n->in[1]
                   : g->values[n->in[1]].producer < 0 ? n->in[0]
                                                      : -1;
            break;
        case HAPI_OP_Identity:
        case HAPI_OP_Softmax:
        case HAPI_OP_Sigmoid:
        case HAPI_OP_Reshape:
        case HAPI_OP_Flatten:
        case HAPI_OP_Squeeze:
            next = n->in[0];
            break;
        default:
            break;
        }
        v = next;
    }
    return NULL;
}

int hapi_model_cut_default(struct hapi_model *m, const struct hapi_cut **out, struct hapi_err *err)
{
    const struct hapi_node *n;
    struct hapi_cuts *c;
    int rc = cuts_get(m, &c, err);

    if (rc)
        return rc;
    n = c->standard ? NULL : classifier(c->g);
    /* Not every input of a classifier is a cut of the right form: then the last one. */
    if (n && hapi_model_cut_find(m, c->g->values[n->in[0]].name, &c->standard, NULL))
        c->standard = NULL;
    if (!c->standard && c->single.n)
        c->standard = &c->single.cuts[c->single.n - 1];
    if (!c->standard)
        return hapi_err_set(err, HAPI_EINVAL, 0,
                            "the model has no cut of one tensor whose dim 0 is the batch");
    *out = c->standard;
    return 0;
}
