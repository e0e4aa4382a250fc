/*
 * Listings of cuts. In topological order a value is alive from its producer to its last reader. What is alive
 * after a node is a cut: all that is not before it is after it, and an edge around it would keep another
 * value alive. So one sweep finds them all; where one value is alive, every path passes through it.
 */
#include <stdio.h>
#include <string.h>

#include "cuts.h"
#include "fuse.h"

/* The values alive, and how many of them no cut may have: inputs of the model, what is not batch-first, and
 * what is inside of an activation. */
struct frontier {
    int *members, *at; /* at[value]: its place in members, or -1 */
    const bool *inside;
    size_t n, unfit;
};

/* The cuts found: after node[i], members[i][0..count[i]). */
struct found {
    struct hapi_arena *arena;
    size_t *node;
    int **members;
    uint32_t *count;
    size_t n, max;
};

static int no_memory(struct hapi_err *err)
{
    return hapi_err_set(err, HAPI_ENOMEM, 0, "no memory for the list of cuts");
}

/* inside[v]: made within an activation that is written in several nodes. A cut there would give other bits,
 * since the whole is one kernel; before and after it there are cuts enough. NULL without memory. */
static bool *mark_inside(const struct hapi_graph *g, struct hapi_arena *arena, struct hapi_err *err)
{
    bool *inside = hapi_arena_array(arena, g->n_values, sizeof *inside);
    struct hapi_step *steps;
    size_t n = 0;

    if (!inside || hapi_fuse(g, arena, false, &steps, &n, err))
        return NULL;
    for (size_t i = 0; i < n; i++) {
        int nodes = steps[i].act.kind == HAPI_ACT_SWISH ? 2 : 1; /* GELU is one node here: patterns.c */
        for (int k = 1; k < nodes && k < steps[i].n_nodes; k++)
            inside[steps[i].nodes[steps[i].n_nodes - 1 - k]->out[0]] = true;
    }
    return inside;
}

static bool fit(const struct frontier *f, const struct hapi_graph *g, int v)
{
    return g->values[v].producer >= 0 && g->values[v].batch_first && hapi_cuts_is_float(g->values[v].dtype) &&
           !f->inside[v];
}

static void frontier_add(struct frontier *f, const struct hapi_graph *g, int v)
{
    f->at[v] = (int)f->n;
    f->members[f->n++] = v;
    f->unfit += !fit(f, g, v);
}

static void frontier_remove(struct frontier *f, const struct hapi_graph *g, int v)
{
    int last = f->members[--f->n];

    f->members[f->at[v]] = last;
    f->at[last] = f->at[v];
    f->at[v] = -1;
    f->unfit -= !fit(f, g, v);
}

/* Whether a cut after node n says something that the one before it does not. */
static bool worth_listing(const struct hapi_graph *g, const struct hapi_node *n)
{
    int p = n->n_in && n->in[0] >= 0 ? g->values[n->in[0]].producer : -1;
    enum hapi_op_kind before = p >= 0 ? g->nodes[p].op : HAPI_OP_NONE;

    switch (n->op) {
    case HAPI_OP_Identity:
    case HAPI_OP_Dropout:
    case HAPI_OP_Reshape:
    case HAPI_OP_Squeeze:
    case HAPI_OP_Unsqueeze:
        return false;
    case HAPI_OP_Flatten:
        return before == HAPI_OP_GlobalAveragePool || before == HAPI_OP_GlobalMaxPool ||
               before == HAPI_OP_AveragePool || before == HAPI_OP_MaxPool || before == HAPI_OP_ReduceMean;
    default:
        return true;
    }
}

static int found_add(struct found *out, const struct hapi_graph *g, size_t node, const struct frontier *f,
                     uint32_t max_tensors, struct hapi_err *err)
{
    const char *names[HAPI_CUT_TENSORS_MAX];

    if (out->n == out->max)
        return hapi_err_set(err, HAPI_ETOOBIG, 0,
                            "more than %d cuts of at most %u tensors: ask for those of fewer tensors",
                            HAPI_CUTS_ALL_MAX, max_tensors);
    int *members = hapi_arena_array(out->arena, f->n, sizeof *members);
    if (!members)
        return no_memory(err);
    for (size_t i = 0; i < f->n; i++) {
        members[i] = f->members[i];
        names[i] = g->values[members[i]].name;
    }
    hapi_cuts_sort(members, names, f->n);
    out->node[out->n] = node;
    out->members[out->n] = members;
    out->count[out->n++] = (uint32_t)f->n;
    return 0;
}

/* Steps over node i: its outputs that are read come alive, its inputs that are not read again die. */
static void step(const struct hapi_graph *g, size_t i, const bool *dynamic, int *left, struct frontier *f)
{
    const struct hapi_node *n = &g->nodes[i];

    for (int k = 0; k < n->n_out; k++)
        if (n->out[k] >= 0 && left[n->out[k]] > 0)
            frontier_add(f, g, n->out[k]);
    for (int k = 0; k < n->n_in; k++)
        if (n->in[k] >= 0 && --left[n->in[k]] == 0 && dynamic[n->in[k]])
            frontier_remove(f, g, n->in[k]);
}

static bool makes_live(const struct hapi_node *n, const struct frontier *f)
{
    for (int k = 0; k < n->n_out; k++)
        if (n->out[k] >= 0 && f->at[n->out[k]] >= 0)
            return true;
    return false;
}

static int sweep(const struct hapi_graph *g, uint32_t max_tensors, const bool *dynamic, struct found *out,
                 struct hapi_err *err)
{
    int *left = hapi_arena_array(out->arena, g->n_values, sizeof *left);
    struct frontier f = {.members = hapi_arena_array(out->arena, g->n_values, sizeof *f.members),
                         .at = hapi_arena_array(out->arena, g->n_values, sizeof *f.at),
                         .inside = mark_inside(g, out->arena, err)};
    int rc = 0;

    if (!left || !f.members || !f.at || !f.inside)
        return no_memory(err);
    for (size_t i = 0; i < g->n_values; i++) {
        left[i] = g->values[i].n_uses;
        f.at[i] = -1;
    }
    for (size_t i = 0; i < g->n_inputs; i++)
        if (left[g->inputs[i]] > 0)
            frontier_add(&f, g, g->inputs[i]);
    for (size_t i = 0; i < g->n_nodes && !rc; i++) {
        step(g, i, dynamic, left, &f);
        if (f.n >= 1 && f.n <= max_tensors && !f.unfit && makes_live(&g->nodes[i], &f) &&
            worth_listing(g, &g->nodes[i]))
            rc = found_add(out, g, i, &f, max_tensors, err);
    }
    return rc;
}

/* "layer1.0.conv1+2": after that node, two more tensors cross. */
static bool name_more(struct hapi_arena *arena, struct hapi_cut *cut)
{
    size_t n = strlen(cut->name) + 16;
    char *name = cut->n_tensors > 1 ? hapi_arena_alloc(arena, n, 1) : NULL;

    if (cut->n_tensors == 1)
        return true;
    if (name)
        snprintf(name, n, "%s+%u", cut->name, cut->n_tensors - 1);
    cut->name = name;
    return name != NULL;
}

/* The cuts found, with what lies before each. */
static int fill(struct hapi_cuts *c, const struct found *found, const char **names, bool *seen,
                struct hapi_cut_list *out, struct hapi_err *err)
{
    struct hapi_cut sum = {.id = NULL};
    size_t at = 0;

    for (size_t i = 0; i < c->g->n_nodes && at < found->n; i++) {
        hapi_cuts_add_node(c->g, &c->g->nodes[i], seen, &sum);
        if (found->node[at] != i)
            continue;
        struct hapi_cut *cut = &out->cuts[at];
        *cut = sum;
        cut->index = (uint32_t)at;
        cut->name = names[at];
        int rc = hapi_cuts_describe(c->arena, c->g, found->members[at], found->count[at], cut, err);
        if (rc)
            return rc;
        if (!name_more(c->arena, cut))
            return no_memory(err);
        at++;
    }
    return 0;
}

/* With tables in `scratch`, which the listing does not need. */
static int list_make(struct hapi_cuts *c, struct hapi_arena *scratch, struct hapi_cut_list *out,
                     struct hapi_err *err)
{
    size_t most =
        out->max_tensors > 1 && c->g->n_nodes > HAPI_CUTS_ALL_MAX ? HAPI_CUTS_ALL_MAX : c->g->n_nodes;
    struct found found = {.arena = scratch,
                          .node = hapi_arena_array(scratch, most, sizeof *found.node),
                          .members = hapi_arena_array(scratch, most, sizeof *found.members),
                          .count = hapi_arena_array(scratch, most, sizeof *found.count),
                          .max = most};
    const char **names = hapi_arena_array(scratch, most, sizeof *names);
    bool *dynamic = hapi_cuts_dynamic(c->g, scratch);

    if (!found.node || !found.members || !found.count || !names || !dynamic)
        return no_memory(err);
    int rc = sweep(c->g, out->max_tensors, dynamic, &found, err);
    if (rc)
        return rc;
    out->n = found.n;
    out->cuts = hapi_arena_array(c->arena, found.n, sizeof *out->cuts);
    if (!out->cuts || !hapi_cut_names(c->g, found.node, found.n, c->arena, names))
        return no_memory(err);
    return fill(c, &found, names, dynamic, out, err);
}

int hapi_cuts_list(struct hapi_cuts *c, uint32_t max_tensors, struct hapi_cut_list *out, struct hapi_err *err)
{
    struct hapi_arena *scratch = hapi_arena_new(SIZE_MAX); /* in proportion to c->g, and to the cuts found */
    struct hapi_cut_list list = {.max_tensors = max_tensors};
    int rc = scratch ? list_make(c, scratch, &list, err) : no_memory(err);

    hapi_arena_free(scratch);
    if (!rc)
        *out = list;
    return rc;
}
