/* Back end `ref`: every node by hapi_ref_eval in the model's own order, one buffer per value, placed by
 * lifetime. The truth that other back ends are compared with; not meant to be fast. */
#include <stdlib.h>
#include <string.h>

#include "kernels_ops.h"
#include "memory.h"
#include "ref.h"

enum slot_kind { SLOT_NONE, SLOT_ARENA, SLOT_IN, SLOT_OUT, SLOT_CONST };

struct slot {
    enum slot_kind kind;
    size_t index; /* of the edge (IN, OUT) or the lifetime (ARENA) */
};

struct ref_backend {
    struct hapi_backend base;
    const struct hapi_graph *g;
    struct hapi_plan_spec spec;
    struct slot *slots;          /* per value */
    struct hapi_lifetime *lives; /* per value; 0 bytes when it is not in the arena */
    size_t arena_bytes, weight_bytes;
    const void **in; /* of the node that runs */
    void **out;
};

void hapi_layout_to_nhwc(void *dst, const void *src, const struct hapi_shape *s, size_t size)
{
    struct hapi_shape last = *s;
    int64_t stride[HAPI_MAX_RANK] = {0}, inner = hapi_ref_span(s, 2, s->rank);

    if (s->rank != 3 && s->rank != 4) {
        memcpy(dst, src, (size_t)hapi_ref_count(s) * size);
        return;
    }
    for (int i = 2; i < s->rank; i++) {
        last.dim[i - 1] = s->dim[i];
        stride[i - 1] = hapi_ref_span(s, i + 1, s->rank);
    }
    last.dim[s->rank - 1] = s->dim[1];
    stride[s->rank - 1] = inner;
    stride[0] = s->dim[1] * inner;
    hapi_ref_copy_strided(dst, &last, src, stride, size);
}

void hapi_layout_to_plain(void *dst, const void *src, const struct hapi_shape *s, size_t size)
{
    int64_t stride[HAPI_MAX_RANK] = {0};

    if (s->rank != 3 && s->rank != 4) {
        memcpy(dst, src, (size_t)hapi_ref_count(s) * size);
        return;
    }
    stride[0] = hapi_ref_span(s, 1, s->rank);
    stride[1] = 1;
    for (int i = 2; i < s->rank; i++)
        stride[i] = hapi_ref_span(s, i + 1, s->rank) * s->dim[1];
    hapi_ref_copy_strided(dst, s, src, stride, size);
}

static size_t value_bytes(const struct hapi_value *v)
{
    return (size_t)hapi_ref_count(&v->shape) * hapi_dtype_size(v->dtype);
}

static bool edge_plain(const struct ref_backend *b, const struct hapi_value *v)
{
    return hapi_edge_layout(&b->spec, &v->shape) == HAPI_LAYOUT_PLAIN;
}

/* Step 0 converts inputs, step i + 1 is node i, the last one converts outputs. */
static void in_arena(struct ref_backend *b, int value, int step)
{
    b->slots[value] = (struct slot){SLOT_ARENA, (size_t)value};
    b->lives[value] = (struct hapi_lifetime){value_bytes(&b->g->values[value]), step, step, 0};
}

static void slots_assign(struct ref_backend *b)
{
    const struct hapi_graph *g = b->g;
    int end = (int)g->n_nodes + 1;

    for (size_t i = 0; i < g->n_inputs; i++) {
        if (edge_plain(b, &g->values[g->inputs[i]]))
            b->slots[g->inputs[i]] = (struct slot){SLOT_IN, i};
        else
            in_arena(b, g->inputs[i], 0);
    }
    for (size_t i = 0; i < g->n_nodes; i++) {
        for (int k = 0; k < g->nodes[i].n_out; k++)
            if (g->nodes[i].out[k] >= 0)
                in_arena(b, g->nodes[i].out[k], (int)i + 1);
        for (int k = 0; k < g->nodes[i].n_in; k++)
            if (g->nodes[i].in[k] >= 0)
                b->lives[g->nodes[i].in[k]].last = (int)i + 1;
    }
    for (size_t i = 0; i < g->n_values; i++)
        if (g->values[i].data) {
            b->slots[i] = (struct slot){SLOT_CONST, i};
            b->weight_bytes += value_bytes(&g->values[i]);
        }
    for (size_t i = 0; i < g->n_outputs; i++) {
        struct slot *s = &b->slots[g->outputs[i]];
        b->lives[g->outputs[i]].last = end;
        if (s->kind != SLOT_ARENA || g->values[g->outputs[i]].producer < 0 ||
            !edge_plain(b, &g->values[g->outputs[i]]))
            continue;
        *s = (struct slot){SLOT_OUT, i};
        b->lives[g->outputs[i]].bytes = 0;
    }
}

static void ref_free(struct hapi_backend *base)
{
    struct ref_backend *b = (struct ref_backend *)base;

    free(b->out);
    free(b->in);
    free(b->lives);
    free(b->slots);
    free(b);
}

/* What a value without a slot would mean: the graph uses what nothing makes. */
static int slots_check(const struct ref_backend *b, struct hapi_err *err)
{
    const struct hapi_graph *g = b->g;

    for (size_t i = 0; i < g->n_nodes; i++)
        for (int k = 0; k < g->nodes[i].n_in; k++)
            if (g->nodes[i].in[k] >= 0 && b->slots[g->nodes[i].in[k]].kind == SLOT_NONE)
                return hapi_err_set(err, HAPI_EFORMAT, 0, "node `%s` (%s): nothing makes its input `%s`",
                                    g->nodes[i].name, hapi_op_name(g->nodes[i].op),
                                    g->values[g->nodes[i].in[k]].name);
    for (size_t i = 0; i < g->n_outputs; i++)
        if (b->slots[g->outputs[i]].kind == SLOT_NONE)
            return hapi_err_set(err, HAPI_EFORMAT, 0, "nothing makes the output `%s`",
                                g->values[g->outputs[i]].name);
    return HAPI_OK;
}

static int ref_compile(struct hapi_backend **out, const struct hapi_graph *g,
                       const struct hapi_plan_spec *spec, void **weights, struct hapi_err *err)
{
    struct ref_backend *b = calloc(1, sizeof *b);
    size_t widest = 1;
    int rc;

    (void)weights; /* constants are used where the model's file has them */
    if (!b)
        return hapi_err_set(err, HAPI_ENOMEM, 0, "no memory for a plan");
    b->base.ops = &hapi_backend_ref;
    b->g = g;
    b->spec = *spec;
    for (size_t i = 0; i < g->n_nodes; i++) {
        if ((size_t)g->nodes[i].n_in > widest)
            widest = (size_t)g->nodes[i].n_in;
        if ((size_t)g->nodes[i].n_out > widest)
            widest = (size_t)g->nodes[i].n_out;
    }
    b->slots = calloc(g->n_values + 1, sizeof *b->slots);
    b->lives = calloc(g->n_values + 1, sizeof *b->lives);
    b->in = calloc(widest, sizeof *b->in);
    b->out = calloc(widest, sizeof *b->out);
    if (!b->slots || !b->lives || !b->in || !b->out) {
        rc = hapi_err_set(err, HAPI_ENOMEM, 0, "no memory for a plan of %zu nodes", g->n_nodes);
        goto fail;
    }
    slots_assign(b);
    rc = slots_check(b, err);
    if (!rc)
        rc = hapi_memory_place(b->lives, g->n_values, &b->arena_bytes, err);
    if (rc)
        goto fail;
    *out = &b->base;
    return HAPI_OK;
fail:
    ref_free(&b->base);
    return rc;
}

static void ref_memory(const struct hapi_backend *base, struct hapi_plan_memory *out)
{
    const struct ref_backend *b = (const struct ref_backend *)base;
    *out = (struct hapi_plan_memory){.weights = b->weight_bytes, .arena = b->arena_bytes};
}

struct run {
    unsigned char *arena;
    const void *const *in;
    void *const *out;
};

static const void *value_read(const struct ref_backend *b, const struct run *r, int value)
{
    const struct slot *s = &b->slots[value];

    switch (s->kind) {
    case SLOT_ARENA:
        return r->arena + b->lives[value].offset;
    case SLOT_IN:
        return r->in[s->index];
    case SLOT_OUT:
        return r->out[s->index];
    case SLOT_CONST:
        return b->g->values[value].data;
    default:
        return NULL;
    }
}

static void *value_write(const struct ref_backend *b, const struct run *r, int value)
{
    const struct slot *s = &b->slots[value];
    return s->kind == SLOT_OUT ? r->out[s->index] : r->arena + b->lives[value].offset;
}

static void outputs_finish(const struct ref_backend *b, const struct run *r)
{
    const struct hapi_graph *g = b->g;

    for (size_t i = 0; i < g->n_outputs; i++) {
        const struct hapi_value *v = &g->values[g->outputs[i]];
        const struct slot *s = &b->slots[g->outputs[i]];
        const void *from = value_read(b, r, g->outputs[i]);
        if (s->kind == SLOT_OUT && s->index == i)
            continue;
        if (edge_plain(b, v))
            memcpy(r->out[i], from, value_bytes(v));
        else
            hapi_layout_to_nhwc(r->out[i], from, &v->shape, hapi_dtype_size(v->dtype));
    }
}

static int ref_run(struct hapi_backend *base, void *arena, const void *const *in, void *const *out,
                   struct hapi_err *err)
{
    struct ref_backend *b = (struct ref_backend *)base;
    const struct hapi_graph *g = b->g;
    struct run r = {arena, in, out};

    for (size_t i = 0; i < g->n_inputs; i++) {
        const struct hapi_value *v = &g->values[g->inputs[i]];
        if (b->slots[g->inputs[i]].kind == SLOT_ARENA)
            hapi_layout_to_plain(value_write(b, &r, g->inputs[i]), in[i], &v->shape,
                                 hapi_dtype_size(v->dtype));
    }
    for (size_t i = 0; i < g->n_nodes; i++) {
        const struct hapi_node *n = &g->nodes[i];
        for (int k = 0; k < n->n_in; k++)
            b->in[k] = n->in[k] >= 0 ? value_read(b, &r, n->in[k]) : NULL;
        for (int k = 0; k < n->n_out; k++)
            b->out[k] = n->out[k] >= 0 ? value_write(b, &r, n->out[k]) : NULL;
        int rc = hapi_ref_eval(g, n, b->in, b->out, err);
        if (rc)
            return rc;
    }
    outputs_finish(b, &r);
    return HAPI_OK;
}

static void ref_weights_free(void *weights)
{
    (void)weights;
}

static const char *ref_class(void)
{
    return "ref";
}

const struct hapi_backend_ops hapi_backend_ref = {
    .name = "ref",
    .compile = ref_compile,
    .memory = ref_memory,
    .run = ref_run,
    .free = ref_free,
    .weights_free = ref_weights_free,
    .numeric_class = ref_class,
};
