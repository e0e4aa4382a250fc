/* Binding: from what the file says to a graph whose every shape is a number. */
#include "graph.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model.h"
#include "shape.h"

/* Constants up to SMALL bytes are loaded at once: shapes, axes, pads are; of f32 up to FEW: scales, bounds,
 * exponents. Other f32 stay in the file where the caller can take them from there. */
enum { SMALL = 4096, FEW = 64 };

static int no_memory(struct hapi_binding *b)
{
    return hapi_err_set(b->err, HAPI_ETOOBIG, 0, "the bound graph needs more memory than the model's limit");
}

void hapi_graph_free(struct hapi_graph *g)
{
    if (!g)
        return;
    hapi_arena_free(g->arena);
    free(g);
}

static uint64_t model_bytes(const struct hapi_model *m)
{
    uint64_t bytes = m->bytes.n;

    for (size_t i = 0; i < hapi_externals_files(m->externals); i++)
        bytes += hapi_externals_file(m->externals, i).n;
    return bytes;
}

int hapi_binding_value(struct hapi_binding *b, const char *name, const char *suffix)
{
    int v = (int)b->g->n_values;
    size_t n = strlen(name) + strlen(suffix) + 1;
    char *s = hapi_arena_alloc(b->g->arena, n, 1);

    if (!s || b->g->n_values == b->capacity)
        return -1;
    snprintf(s, n, "%s%s", name, suffix);
    b->g->values[v] = (struct hapi_value){.name = s, .producer = -1};
    b->g->n_values++;
    return v;
}

/* Values keep the file's numbers until the end; then come tensors of attributes, then what folding adds. */
static int allocate(struct hapi_binding *b)
{
    struct hapi_graph *g = b->g;
    const struct hapi_onnx *o = b->o;

    b->capacity = o->n_values + (o->n_tensors - o->n_initializers) + 2 * o->n_nodes;
    g->values = hapi_arena_array(b->scratch, b->capacity, sizeof *g->values);
    g->nodes = hapi_arena_array(b->scratch, o->n_nodes, sizeof *g->nodes);
    g->inputs = hapi_arena_array(g->arena, o->n_inputs, sizeof *g->inputs);
    g->outputs = hapi_arena_array(g->arena, o->n_outputs, sizeof *g->outputs);
    b->tensor_of = hapi_arena_array(b->scratch, b->capacity, sizeof *b->tensor_of);
    b->alias = hapi_arena_array(b->scratch, b->capacity, sizeof *b->alias);
    b->kept = hapi_arena_array(b->scratch, b->capacity, sizeof *b->kept);
    b->scratched = hapi_arena_array(b->scratch, b->capacity, sizeof *b->scratched);
    b->node_of = hapi_arena_array(b->scratch, o->n_nodes, sizeof *b->node_of);
    if (!g->values || !g->nodes || !g->inputs || !g->outputs || !b->tensor_of || !b->alias || !b->kept ||
        !b->scratched || !b->node_of)
        return no_memory(b);
    for (size_t i = 0; i < b->capacity; i++) {
        b->tensor_of[i] = -1;
        b->alias[i] = (int)i;
    }
    return 0;
}

static int keep_edges(struct hapi_binding *b, const char *id)
{
    int *values, rc;
    size_t n;

    if (!id)
        return 0;
    rc = hapi_model_values(b->m, id, &values, &n, b->err);
    if (rc)
        return rc;
    for (size_t i = 0; i < n; i++)
        b->kept[values[i]] = true;
    free(values);
    return 0;
}

int hapi_binding_new(struct hapi_binding *b, struct hapi_model *m, const struct hapi_plan_spec *spec,
                     bool shapes_only, struct hapi_err *err)
{
    int rc;

    *b = (struct hapi_binding){.m = m, .o = &m->onnx, .spec = spec, .err = err, .shapes_only = shapes_only};
    /* In proportion to what the files hold, with some room for what small ones expand. */
    b->work = m->limits.arena_bytes / 16 + 2 * model_bytes(m);
    b->g = calloc(1, sizeof *b->g);
    if (!b->g)
        return no_memory(b);
    b->g->arena = hapi_arena_new((size_t)(m->limits.arena_bytes + 4 * model_bytes(m)));
    b->scratch = hapi_arena_new((size_t)(m->limits.arena_bytes + 4 * model_bytes(m)));
    b->g->batch = spec->batch;
    b->g->opset = m->onnx.opset;
    if (!b->g->arena || !b->scratch)
        return no_memory(b);
    rc = allocate(b);
    for (size_t i = 0; !rc && i < b->o->n_outputs; i++)
        b->kept[b->o->outputs[i].value] = true;
    rc = rc ? rc : keep_edges(b, spec->from);
    return rc ? rc : keep_edges(b, spec->to);
}

void hapi_binding_fini(struct hapi_binding *b)
{
    hapi_arena_free(b->scratch);
    b->scratch = NULL;
}

/* ------------------------------------------------------------------ inputs and constants */

static int set_tensor(struct hapi_binding *b, int value, int tensor)
{
    struct hapi_onnx_tensor *t = &b->m->onnx.tensors[tensor];
    struct hapi_value *v = &b->g->values[value];

    v->dtype = t->dtype;
    v->shape = t->shape;
    b->tensor_of[value] = tensor;
    return t->bytes > (t->dtype == HAPI_F32 ? FEW : SMALL) || hapi_fold_data(b, value) ? 0 : no_memory(b);
}

/* A value that the caller gave for a graph input: a constant from here on. */
static int bind_given(struct hapi_binding *b, const struct hapi_onnx_io *io, const struct hapi_tensor_desc *d,
                      const void *data)
{
    struct hapi_value *v = &b->g->values[io->value];
    size_t bytes;

    if (io->dtype && io->dtype != d->dtype)
        return hapi_err_set(b->err, HAPI_EINVAL, 0, "input \"%s\" is of dtype %s, given is %s", v->name,
                            hapi_dtype_name(io->dtype), hapi_dtype_name(d->dtype));
    if (hapi_tensor_bytes(&d->shape, d->dtype, &bytes) || bytes > b->m->limits.tensor_bytes)
        return hapi_err_set(b->err, HAPI_ETOOBIG, 0, "input \"%s\": the tensor given is too large", v->name);
    /* Copied: the caller's may be gone when the plan runs. */
    void *copy = hapi_arena_alloc(b->g->arena, bytes ? bytes : 1, 64);
    if (!copy)
        return no_memory(b);
    memcpy(copy, data, bytes);
    v->dtype = d->dtype;
    v->shape = d->shape;
    v->data = copy;
    return 0;
}

/* Dim 0 is the batch, also where the file fixes it (batch.c says when that is right). Other symbols have no
 * meaning here. */
static int bind_input(struct hapi_binding *b, size_t k)
{
    const struct hapi_onnx_io *io = &b->o->inputs[k];
    struct hapi_value *v = &b->g->values[io->value];
    int64_t batch = b->spec->batch;

    for (size_t i = 0; i < b->spec->n_bind; i++)
        if (!strcmp(b->spec->bind[i].name, v->name))
            return bind_given(b, io, &b->spec->bind[i], b->spec->bind_data[i]);
    if (!io->dtype || io->rank < 0)
        return hapi_err_set(b->err, HAPI_EUNSUPPORTED, 0, "input \"%s\": the model does not say its %s",
                            v->name, io->dtype ? "shape" : "dtype");
    v->dtype = io->dtype;
    v->shape.rank = io->rank;
    for (int i = 0; i < io->rank; i++) {
        v->shape.dim[i] = i == 0 && batch ? batch : io->dim[i];
        if (v->shape.dim[i] >= 0)
            continue;
        if (batch)
            return hapi_err_set(
                b->err, HAPI_EUNSUPPORTED, 0,
                "input \"%s\": dim %d (\"%.60s\") is not fixed; only dim 0, the batch, may be", v->name, i,
                io->param[i]);
        v->shape.dim[i] = 1;
    }
    b->g->inputs[b->g->n_inputs++] = io->value;
    return 0;
}

static int check_bind_names(struct hapi_binding *b)
{
    for (size_t i = 0; i < b->spec->n_bind; i++) {
        const char *name = b->spec->bind[i].name;
        int v = hapi_onnx_find(b->o, name, strlen(name));
        if (v < 0 || b->o->values[v].input < 0)
            return hapi_err_set(b->err, HAPI_ENOENT, 0, "no input \"%s\" to bind", name);
    }
    return 0;
}

static int check_size(struct hapi_binding *b, const struct hapi_value *v)
{
    uint64_t limit = b->m->limits.tensor_bytes;
    size_t bytes;

    if (b->spec->batch > 1 && __builtin_mul_overflow(limit, (uint64_t)b->spec->batch, &limit))
        limit = UINT64_MAX;
    if (hapi_tensor_bytes(&v->shape, v->dtype, &bytes) || bytes > limit)
        return hapi_err_set(b->err, HAPI_ETOOBIG, 0,
                            "tensor \"%.200s\": its dims overflow, or it has more than %llu bytes", v->name,
                            (unsigned long long)limit);
    return 0;
}

static int setup_values(struct hapi_binding *b)
{
    const struct hapi_onnx *o = b->o;
    int rc = check_bind_names(b);

    for (size_t i = 0; !rc && i < o->n_values; i++) {
        b->g->values[i] = (struct hapi_value){.name = o->values[i].name, .producer = -1};
        if (o->values[i].tensor >= 0)
            rc = set_tensor(b, (int)i, o->values[i].tensor);
    }
    b->g->n_values = o->n_values;
    for (size_t i = o->n_initializers; !rc && i < o->n_tensors; i++) {
        b->g->values[b->g->n_values++] = (struct hapi_value){.name = "", .producer = -1};
        rc = set_tensor(b, (int)b->g->n_values - 1, (int)i);
    }
    for (size_t i = 0; !rc && i < o->n_inputs; i++) {
        rc = bind_input(b, i);
        rc = rc ? rc : check_size(b, &b->g->values[o->inputs[i].value]);
    }
    for (size_t i = 0; i < o->n_outputs; i++)
        b->g->outputs[b->g->n_outputs++] = o->outputs[i].value;
    return rc;
}

/* ------------------------------------------------------------------ nodes */

/* needed[i]: some output of node i leads to an output of the graph. */
static bool *mark_needed(struct hapi_binding *b)
{
    const struct hapi_onnx *o = b->o;
    bool *needed = hapi_arena_array(b->scratch, o->n_nodes, sizeof *needed);
    bool *used = hapi_arena_array(b->scratch, o->n_values, sizeof *used);

    if (!needed || !used)
        return NULL;
    for (size_t i = 0; i < o->n_outputs; i++)
        used[o->outputs[i].value] = true;
    for (size_t i = o->n_nodes; i-- > 0;) {
        for (int k = 0; k < o->nodes[i].n_out; k++)
            needed[i] |= o->nodes[i].out[k] >= 0 && used[o->nodes[i].out[k]];
        for (int k = 0; needed[i] && k < o->nodes[i].n_in; k++)
            if (o->nodes[i].in[k] >= 0)
                used[o->nodes[i].in[k]] = true;
    }
    /* An output that nobody reads, and that not every rule knows, is as if left out. */
    for (size_t i = 0; i < o->n_values; i++)
        b->g->values[i].n_uses = used[i];
    return needed;
}

/* A node with its inputs resolved; outputs without a reader at the end are dropped. */
static int make_node(struct hapi_binding *b, const struct hapi_onnx_node *from, struct hapi_node *n)
{
    int *in = hapi_arena_array(b->scratch, (size_t)from->n_in, sizeof *in);
    size_t first = b->o->n_values, n_tensors = 0;

    if (from->n_in && !in)
        return no_memory(b);
    for (int k = 0; k < from->n_in; k++)
        in[k] = from->in[k] < 0 ? HAPI_NO_VALUE : b->alias[from->in[k]];
    *n = (struct hapi_node){.op = from->op,
                            .name = from->name,
                            .n_in = from->n_in,
                            .n_out = from->n_out,
                            .in = in,
                            .out = from->out,
                            .n_attrs = from->n_attrs,
                            .attrs = from->attrs};
    while (n->op != HAPI_OP_Split && n->n_out > 1 &&
           (n->out[n->n_out - 1] < 0 || !b->g->values[n->out[n->n_out - 1]].n_uses))
        n->n_out--;
    for (size_t i = 0; i < n->n_attrs; i++)
        n_tensors += n->attrs[i].type == HAPI_ATTR_TENSOR;
    if (!n_tensors)
        return 0;
    struct hapi_attr *attrs = hapi_arena_array(b->g->arena, n->n_attrs, sizeof *attrs);
    if (!attrs)
        return no_memory(b);
    for (size_t i = 0; i < n->n_attrs; i++) {
        attrs[i] = from->attrs[i];
        if (attrs[i].type == HAPI_ATTR_TENSOR)
            attrs[i].value = (int)first + (attrs[i].value - (int)b->o->n_initializers);
    }
    n->attrs = attrs;
    return 0;
}

static int infer_node(struct hapi_binding *b, size_t i)
{
    struct hapi_node *n = &b->g->nodes[b->g->n_nodes];
    int rc = make_node(b, &b->o->nodes[i], n);

    rc = rc ? rc : hapi_shape_infer(b->g, n, b->err);
    for (int k = 0; !rc && k < n->n_out; k++)
        if (n->out[k] >= 0)
            rc = check_size(b, &b->g->values[n->out[k]]);
    if (rc)
        return rc;
    rc = hapi_fold_node(b, n);
    if (rc)
        return rc < 0 ? rc : 0;
    for (int k = 0; k < n->n_out; k++)
        if (n->out[k] >= 0)
            b->g->values[n->out[k]].producer = (int)b->g->n_nodes;
    b->node_of[b->g->n_nodes++] = i;
    return 0;
}

int hapi_binding_infer(struct hapi_binding *b)
{
    int rc = setup_values(b);
    bool *needed = rc ? NULL : mark_needed(b);

    if (!rc && !needed)
        rc = no_memory(b);
    for (size_t i = 0; !rc && i < b->o->n_nodes; i++)
        if (needed[i])
            rc = infer_node(b, i);
    return rc;
}

/* ------------------------------------------------------------------ cutting and compaction */

/* The edges of a plan, while nodes are picked. */
struct edges {
    int *from, *to;
    size_t n_from, n_to;
    bool *wanted; /* value: needed for an output */
    bool *stop;   /* value: in `from` */
};

static int find_edges(struct hapi_binding *b, struct edges *e)
{
    int rc = 0;

    e->wanted = hapi_arena_array(b->scratch, b->capacity, sizeof *e->wanted);
    e->stop = hapi_arena_array(b->scratch, b->capacity, sizeof *e->stop);
    if (!e->wanted || !e->stop)
        return no_memory(b);
    if (b->spec->from)
        rc = hapi_model_values(b->m, b->spec->from, &e->from, &e->n_from, b->err);
    if (!rc && b->spec->to)
        rc = hapi_model_values(b->m, b->spec->to, &e->to, &e->n_to, b->err);
    for (size_t i = 0; !rc && i < e->n_from + e->n_to; i++) {
        int v = i < e->n_from ? e->from[i] : e->to[i - e->n_from];
        if (b->g->values[v].producer < 0 && b->o->values[v].input < 0)
            rc = hapi_err_set(b->err, HAPI_EINVAL, 0,
                              "tensor \"%.200s\" is a constant, or leads to no output", b->g->values[v].name);
        else if (i < e->n_from)
            e->stop[v] = true;
    }
    return rc;
}

/* Walks backwards from the outputs, stops at `from`, and drops the nodes that it did not meet. */
static void pick_nodes(struct hapi_graph *g, struct edges *e)
{
    size_t kept = 0;

    for (size_t i = 0; i < g->n_outputs; i++)
        e->wanted[g->outputs[i]] = true;
    for (size_t i = g->n_nodes; i-- > 0;) {
        struct hapi_node *n = &g->nodes[i];
        bool on = false;
        for (int k = 0; k < n->n_out; k++)
            on |= n->out[k] >= 0 && e->wanted[n->out[k]] && !e->stop[n->out[k]];
        for (int k = 0; on && k < n->n_in; k++)
            if (n->in[k] >= 0)
                e->wanted[n->in[k]] = true;
        if (!on)
            n->op = HAPI_OP_NONE;
    }
    for (size_t i = 0; i < g->n_nodes; i++)
        if (g->nodes[i].op != HAPI_OP_NONE)
            g->nodes[kept++] = g->nodes[i];
    g->n_nodes = kept;
}

/* *list = a copy of the n values, in the graph's arena. */
static int set_list(struct hapi_binding *b, int **list, size_t *n_list, const int *values, size_t n)
{
    *list = hapi_arena_array(b->g->arena, n, sizeof **list);
    if (!*list)
        return no_memory(b);
    memcpy(*list, values, n * sizeof *values);
    *n_list = n;
    return 0;
}

/* Keeps the nodes on the way from `from` to `to`, which become inputs and outputs in the order of their
 * names. */
static int restrict_nodes(struct hapi_binding *b)
{
    struct edges e = {.from = NULL};
    struct hapi_graph *g = b->g;
    int rc = find_edges(b, &e);

    if (!rc && e.to)
        rc = set_list(b, &g->outputs, &g->n_outputs, e.to, e.n_to);
    if (rc)
        goto out;
    pick_nodes(g, &e);
    for (size_t i = 0; e.from && i < g->n_inputs && !rc; i++)
        if (e.wanted[g->inputs[i]] && !e.stop[g->inputs[i]])
            rc = hapi_err_set(b->err, HAPI_EINVAL, 0, "the tensors %.200s do not separate the graph",
                              b->spec->from);
    if (!rc && e.from)
        rc = set_list(b, &g->inputs, &g->n_inputs, e.from, e.n_from);
    if (!rc && !g->n_nodes)
        rc = hapi_err_set(b->err, HAPI_EINVAL, 0, "there is nothing to compute between the two cuts");
out:
    free(e.from);
    free(e.to);
    return rc;
}

static void use(struct hapi_graph *g, int v)
{
    if (v >= 0)
        g->values[v].n_uses++;
}

/* New numbers for the values that are left, in the old order; nodes and values are now the graph's own. */
static int renumber(struct hapi_binding *b, const int *to)
{
    struct hapi_graph *g = b->g;
    struct hapi_node *nodes = hapi_arena_array(g->arena, g->n_nodes, sizeof *nodes);
    struct hapi_value *values = hapi_arena_array(g->arena, g->n_values, sizeof *values);

    if (!nodes || !values)
        return no_memory(b);
    memcpy(nodes, g->nodes, g->n_nodes * sizeof *nodes);
    memcpy(values, g->values, g->n_values * sizeof *values);
    g->nodes = nodes;
    g->values = values;
    for (size_t i = 0; i < g->n_nodes; i++) {
        struct hapi_node *n = &g->nodes[i];
        int *in = hapi_arena_array(g->arena, (size_t)n->n_in, sizeof *in);
        int *out = hapi_arena_array(g->arena, (size_t)n->n_out, sizeof *out);
        if ((n->n_in && !in) || !out)
            return no_memory(b);
        for (int k = 0; k < n->n_in; k++)
            in[k] = n->in[k] < 0 ? HAPI_NO_VALUE : to[n->in[k]];
        for (int k = 0; k < n->n_out; k++) {
            out[k] = n->out[k] < 0 ? HAPI_NO_VALUE : to[n->out[k]];
            if (out[k] >= 0)
                g->values[out[k]].producer = (int)i;
        }
        n->in = in;
        n->out = out;
    }
    for (size_t i = 0; i < g->n_inputs; i++)
        g->inputs[i] = to[g->inputs[i]];
    for (size_t i = 0; i < g->n_outputs; i++)
        g->outputs[i] = to[g->outputs[i]];
    return 0;
}

/* A constant that is left in the graph gets its data. What was folded is copied from the scratch arena, and
 * so is what lies in a file as it has to, where a back end copies the rest: else each run would touch a page
 * of the file for each of them, and the kernel maps 16 around it. */
static bool load(struct hapi_binding *b, int value)
{
    struct hapi_value *v = &b->g->values[value];
    const struct hapi_onnx_tensor *t = b->tensor_of[value] >= 0 ? &b->o->tensors[b->tensor_of[value]] : NULL;
    size_t bytes;

    if (b->raw && t && !v->data && t->raw && !t->copy && t->dtype == HAPI_F32 && t->bytes > FEW) {
        v->data = t->raw;
        v->raw = true;
    }
    if (!b->shapes_only && !hapi_fold_data(b, value))
        return false;
    bool mapped = b->raw && b->m->mapped && t && v->data == t->raw && !v->raw;
    if (!v->data || !(b->scratched[value] || mapped))
        return true;
    void *copy = hapi_tensor_bytes(&v->shape, v->dtype, &bytes)
                     ? NULL
                     : hapi_arena_alloc(b->g->arena, bytes ? bytes : 1, 64);
    if (copy)
        memcpy(copy, v->data, bytes);
    v->data = copy;
    return copy != NULL;
}

static int compact(struct hapi_binding *b)
{
    struct hapi_graph *g = b->g;
    const bool *flags = b->m->cache->batch_first;
    bool *present = hapi_arena_array(b->scratch, g->n_values, sizeof *present);
    int *to = hapi_arena_array(b->scratch, g->n_values, sizeof *to);
    size_t n = 0;

    if (!present || !to)
        return no_memory(b);
    for (size_t i = 0; i < g->n_values; i++)
        g->values[i].n_uses = 0;
    for (size_t i = 0; i < g->n_inputs; i++)
        present[g->inputs[i]] = true;
    for (size_t i = 0; i < g->n_outputs; i++)
        use(g, g->outputs[i]);
    for (size_t i = 0; i < g->n_nodes; i++) {
        for (int k = 0; k < g->nodes[i].n_in; k++)
            use(g, g->nodes[i].in[k]);
        for (int k = 0; k < g->nodes[i].n_out; k++)
            if (g->nodes[i].out[k] >= 0)
                present[g->nodes[i].out[k]] = true;
    }
    for (size_t i = 0; i < g->n_values; i++) {
        struct hapi_value *v = &g->values[i];
        to[i] = -1;
        if (!present[i] && !v->n_uses)
            continue;
        if (hapi_fold_constant(b, (int)i) && !load(b, (int)i))
            return no_memory(b);
        v->producer = -1;
        v->batch_first = b->spec->batch && flags && i < b->o->n_values && flags[i];
        to[i] = (int)n;
        g->values[n++] = *v;
    }
    g->n_values = n;
    return renumber(b, to);
}

/* ------------------------------------------------------------------ entry points */

static int bind(struct hapi_graph **out, struct hapi_model *m, const struct hapi_plan_spec *spec,
                bool shapes_only, bool raw, struct hapi_err *err)
{
    struct hapi_binding b;
    int rc;

    if (spec->batch < 0)
        return hapi_err_set(err, HAPI_EINVAL, 0, "a batch of %lld", (long long)spec->batch);
    rc = hapi_binding_new(&b, m, spec, shapes_only, err);
    b.raw = raw;
    rc = rc ? rc : hapi_binding_infer(&b);
    rc = rc ? rc : hapi_fold_batchnorm(&b);
    rc = rc ? rc : hapi_patterns(&b);
    rc = rc || shapes_only || (!spec->from && !spec->to) ? rc : restrict_nodes(&b);
    rc = rc ? rc : compact(&b);
    hapi_binding_fini(&b);
    if (rc) {
        hapi_graph_free(b.g);
        return rc;
    }
    b.g->mapped = m->mapped ? m : NULL;
    b.g->ranges = &m->onnx.ranges;
    *out = b.g;
    return 0;
}

int hapi_graph_bind_raw(struct hapi_graph **out, struct hapi_model *m, const struct hapi_plan_spec *spec,
                        bool raw, struct hapi_err *err)
{
    /* Without flags (a model that binds at its own batch only) no value is said to be batch-first. */
    if (spec->batch > 0 && !spec->n_bind) {
        int rc = hapi_model_flags(m, NULL);
        int64_t fixed;
        if (hapi_model_batch(m, &fixed) >= HAPI_MODEL_BATCH_ONE && spec->batch != fixed)
            return rc ? hapi_model_flags(m, err)
                      : hapi_err_set(err, HAPI_EUNSUPPORTED, 0,
                                     "the model is bound to %lld sample(s) at a time only", (long long)fixed);
    }
    return bind(out, m, spec, false, raw, err);
}

int hapi_graph_bind(struct hapi_graph **out, struct hapi_model *m, const struct hapi_plan_spec *spec,
                    struct hapi_err *err)
{
    return hapi_graph_bind_raw(out, m, spec, false, err);
}

int hapi_graph_shapes(struct hapi_graph **out, struct hapi_model *m, const char *keep, struct hapi_err *err)
{
    bool grouped = !hapi_model_flags(m, NULL) && m->cache->group;
    struct hapi_plan_spec spec = {.batch = grouped ? m->cache->group : 1, .to = keep};
    return bind(out, m, &spec, true, false, err);
}
