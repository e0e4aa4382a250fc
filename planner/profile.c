#include "profile.h"

#include <stdlib.h>
#include <string.h>

#include "arena.h"
#include "json.h"
#include "profile_fields.h"

/* What a profile may take once it is read: its text is bounded, and no key of it grows by more. */
#define ARENA_MAX ((size_t)1 << 30)

static const struct hapi_curve not_said = {.s = -1};

/* ------------------------------------------------------------------ wires, curves */

static const struct {
    enum hapi_dtype dtype;
    const char *name;
} wires[] = {
#define X(name, dtype, key) [name] = {dtype, key},
    HAPI_WIRES(X)
#undef X
};

const char *hapi_wire_name(enum hapi_wire wire)
{
    return wire == HAPI_WIRE_RAW ? "raw" : wires[wire].name;
}

enum hapi_dtype hapi_wire_dtype(enum hapi_wire wire)
{
    return wire == HAPI_WIRE_RAW ? HAPI_DTYPE_NONE : wires[wire].dtype;
}

int hapi_wire_from_name(enum hapi_wire *out, const char *name)
{
    for (int i = 0; i < HAPI_WIRES_N; i++)
        if (!strcmp(name, wires[i].name)) {
            *out = (enum hapi_wire)i;
            return 0;
        }
    return HAPI_EINVAL;
}

double hapi_curve_at(const struct hapi_curve *c, double batch)
{
    const struct hapi_curve_point *p = c->points;
    uint32_t i = 0;

    if (!p)
        return c->s > 0 ? c->s : 0;
    while (i < c->n && p[i].batch < batch)
        i++;
    if (i == c->n)
        return p[i - 1].s;
    if (i == 0 || p[i].batch == batch)
        return p[i].s;
    double from = p[i - 1].batch * p[i - 1].s, to = p[i].batch * p[i].s;
    double part = (batch - p[i - 1].batch) / ((double)p[i].batch - p[i - 1].batch);
    return (from + (to - from) * part) / batch;
}

/* ------------------------------------------------------------------ making */

int hapi_profile_new(struct hapi_profile **out, uint32_t n_cuts, uint32_t n_nodes, struct hapi_err *err)
{
    if (!n_cuts || n_cuts > HAPI_PROFILE_CUTS_MAX || n_nodes > HAPI_PROFILE_NODES_MAX)
        return hapi_err_set(err, HAPI_EINVAL, 0, "a profile has 1 to %d cuts and at most %d nodes",
                            HAPI_PROFILE_CUTS_MAX, HAPI_PROFILE_NODES_MAX);
    struct hapi_arena *a = hapi_arena_new(ARENA_MAX);
    struct hapi_profile *p = a ? hapi_arena_alloc(a, sizeof *p, _Alignof(struct hapi_profile)) : NULL;
    if (p) {
        p->arena = a;
        p->n_cuts = n_cuts;
        p->n_node_list = n_nodes;
        p->cuts = hapi_arena_array(a, n_cuts, sizeof *p->cuts);
        p->node_list = n_nodes ? hapi_arena_array(a, n_nodes, sizeof *p->node_list) : NULL;
    }
    if (!p || !p->cuts || (n_nodes && !p->node_list)) {
        hapi_arena_free(a);
        return hapi_err_set(err, HAPI_ENOMEM, 0, "no memory for a profile of %u cuts", n_cuts);
    }
    p->storage.cores = p->compute.cores = 1;
    p->source_compute_s = p->serialise_s = not_said;
    for (int w = 0; w < HAPI_WIRES_N; w++)
        p->convert_s[w] = not_said;
    for (uint32_t i = 0; i < n_cuts; i++) {
        p->cuts[i].serialise_s = not_said;
        for (int w = 0; w < HAPI_WIRES_N; w++)
            p->cuts[i].convert_s[w] = not_said;
    }
    for (uint32_t i = 0; i < n_nodes; i++)
        p->node_list[i].speed = 1;
    *out = p;
    return 0;
}

void hapi_profile_free(struct hapi_profile *p)
{
    if (p)
        hapi_arena_free(p->arena);
}

const char *hapi_profile_text(struct hapi_profile *p, const char *text)
{
    return hapi_arena_strndup(p->arena, text, strlen(text));
}

int hapi_profile_curve(struct hapi_profile *p, struct hapi_curve *out, const struct hapi_curve_point *points,
                       uint32_t n)
{
    struct hapi_curve_point *copy = hapi_arena_array(p->arena, n, sizeof *copy);

    if (!copy || !n)
        return n ? HAPI_ENOMEM : HAPI_EINVAL;
    memcpy(copy, points, n * sizeof *copy);
    *out = (struct hapi_curve){.n = n, .points = copy};
    return 0;
}

/* ------------------------------------------------------------------ reading */

static int by_batch(const void *a, const void *b)
{
    const struct hapi_curve_point *x = a, *y = b;

    return x->batch < y->batch ? -1 : x->batch > y->batch;
}

/* "8" and nothing else: 0 for what is no micro-batch. */
static uint32_t batch_of(const char *key)
{
    uint32_t n = 0;

    for (const char *c = key; *c; c++) {
        if (*c < '0' || *c > '9' || (c == key && *c == '0') || n > 1 << 20)
            return 0;
        n = n * 10 + (uint32_t)(*c - '0');
    }
    return n;
}

static void curve_read(struct hapi_profile *p, const struct hapi_json *at, const struct hapi_field *f,
                       struct hapi_curve *out)
{
    struct hapi_curve_point points[HAPI_CURVE_POINTS_MAX];
    uint32_t n = 0;

    if (!cJSON_IsObject(at->value)) {
        *out = (struct hapi_curve){.s = hapi_json_number(at, f->min, f->max)};
        return;
    }
    if (!hapi_json_object(at))
        return;
    for (const cJSON *v = at->value->child; v; v = v->next, n++) {
        struct hapi_json point = hapi_json_member(at, v->string);
        if (n == HAPI_CURVE_POINTS_MAX)
            hapi_json_bad(at, "has more than %d micro-batches", HAPI_CURVE_POINTS_MAX);
        else if (!batch_of(v->string))
            hapi_json_bad(&point, "is no micro-batch: keys are whole numbers from 1 on");
        if (at->state->rc)
            return;
        points[n] = (struct hapi_curve_point){batch_of(v->string), hapi_json_number(&point, f->min, f->max)};
    }
    if (!n)
        hapi_json_bad(at, "is empty");
    if (at->state->rc)
        return;
    qsort(points, n, sizeof *points, by_batch);
    if (hapi_profile_curve(p, out, points, n))
        hapi_json_no_memory(at);
}

static void text_read(struct hapi_profile *p, const struct hapi_json *at, const char **out)
{
    const char *s = hapi_json_string(at);

    if (s && !(*out = hapi_profile_text(p, s)))
        hapi_json_no_memory(at);
}

static void flag_read(const struct hapi_json *at, bool *out)
{
    if (!cJSON_IsBool(at->value))
        hapi_json_bad(at, "must be true or false");
    *out = cJSON_IsTrue(at->value);
}

static void field_read(struct hapi_profile *p, const struct hapi_json *at, const struct hapi_field *f,
                       void *out)
{
    switch (f->kind) {
    case HAPI_FIELD_TEXT:
        text_read(p, at, out);
        break;
    case HAPI_FIELD_COUNT:
        *(uint32_t *)out = (uint32_t)hapi_json_count(at, (uint64_t)f->min, (uint64_t)f->max);
        break;
    case HAPI_FIELD_LONG:
        *(uint64_t *)out = hapi_json_count(at, (uint64_t)f->min, (uint64_t)f->max);
        break;
    case HAPI_FIELD_AMOUNT:
        *(double *)out = hapi_json_number(at, f->min, f->max);
        break;
    case HAPI_FIELD_TIME:
        curve_read(p, at, f, out);
        break;
    case HAPI_FIELD_FLAG:
        flag_read(at, out);
        break;
    }
}

static void fields_read(struct hapi_profile *p, const struct hapi_json *in, const struct hapi_fields *t,
                        void *out)
{
    if (!hapi_json_object(in))
        return;
    for (size_t i = 0; i < t->n && !in->state->rc; i++) {
        struct hapi_json v = hapi_json_member(in, t->at[i].key);
        if (v.value || t->at[i].required)
            field_read(p, &v, &t->at[i], (char *)out + t->at[i].offset);
    }
}

static void memory_read(struct hapi_profile *p, const struct hapi_json *in, const char *key,
                        struct hapi_profile_memory *out)
{
    struct hapi_json v = hapi_json_member(in, key);

    fields_read(p, &v, &hapi_profile_memory_fields, out);
}

/* convert_s, of the profile or of a cut: each wire dtype that it names. */
static void convert_read(struct hapi_profile *p, const struct hapi_json *in, struct hapi_curve *out)
{
    static const struct hapi_field time = {.max = 1e9};
    struct hapi_json all = hapi_json_member(in, "convert_s");
    enum hapi_wire wire;

    if (!all.value || !hapi_json_object(&all))
        return;
    for (const cJSON *v = all.value->child; v; v = v->next) {
        struct hapi_json one = hapi_json_member(&all, v->string);
        if (hapi_wire_from_name(&wire, v->string))
            hapi_json_bad(&one, "is no wire dtype: f32, f16, bf16, int8");
        else
            curve_read(p, &one, &time, &out[wire]);
    }
}

/* f32 is needed: features that are kept are f32. */
static void wires_read(const struct hapi_json *in, struct hapi_profile_cut *c)
{
    struct hapi_json all = hapi_json_member(in, "wire_bytes"), f32;
    enum hapi_wire wire;

    if (!hapi_json_object(&all))
        return;
    for (const cJSON *v = all.value->child; v; v = v->next) {
        struct hapi_json one = hapi_json_member(&all, v->string);
        if (hapi_wire_from_name(&wire, v->string))
            hapi_json_bad(&one, "is no wire dtype: f32, f16, bf16, int8");
        else
            c->wire_bytes[wire] = hapi_json_number(&one, 1, 1e18);
    }
    f32 = hapi_json_member(&all, "f32");
    if (!f32.value)
        hapi_json_bad(&f32, "is missing");
}

/* Marks the cut's index as taken; says so when it was or lies beyond the freeze layer. */
static void index_check(const struct hapi_profile *p, const struct hapi_json *cut, uint32_t index,
                        uint8_t *taken)
{
    struct hapi_json at = hapi_json_member(cut, "index");

    if (cut->state->rc)
        return;
    if (index > p->freeze)
        hapi_json_bad(&at, "is beyond the freeze layer, %u", p->freeze);
    else if (taken[index / 8] >> index % 8 & 1)
        hapi_json_bad(&at, "is %u, as that of a cut before it", index);
    else
        taken[index / 8] |= (uint8_t)(1 << index % 8);
}

static void cuts_read(struct hapi_profile *p, const struct hapi_json *list)
{
    uint8_t *taken = calloc(p->freeze / 8 + 1, 1);
    uint32_t i = 0;

    if (!taken) {
        hapi_json_no_memory(list);
        return;
    }
    for (const cJSON *v = list->value->child; v && !list->state->rc; v = v->next, i++) {
        struct hapi_json at = hapi_json_item(list, v, i);
        struct hapi_profile_cut *c = &p->cuts[i];
        fields_read(p, &at, &hapi_profile_cut_fields, c);
        wires_read(&at, c);
        convert_read(p, &at, c->convert_s);
        memory_read(p, &at, "storage_memory", &c->storage_memory);
        memory_read(p, &at, "compute_memory", &c->compute_memory);
        index_check(p, &at, c->index, taken);
    }
    free(taken);
}

static void tiers_read(struct hapi_profile *p, const struct hapi_json *top)
{
    struct hapi_json tiers = hapi_json_member(top, "tiers");

    if (!tiers.value || !hapi_json_object(&tiers))
        return;
    struct hapi_json storage = hapi_json_member(&tiers, "storage");
    struct hapi_json compute = hapi_json_member(&tiers, "compute");
    if (storage.value)
        fields_read(p, &storage, &hapi_profile_tier_fields, &p->storage);
    if (compute.value)
        fields_read(p, &compute, &hapi_profile_tier_fields, &p->compute);
    struct hapi_json shares = hapi_json_member(&storage, "train_shares");
    if (shares.value)
        hapi_json_bad(&shares, "is of the compute tier: nothing is trained on a node");
}

static void nodes_read(struct hapi_profile *p, const struct hapi_json *list)
{
    uint32_t i = 0;

    if (!list->value)
        return;
    if (p->n_node_list != p->nodes)
        hapi_json_bad(list, "has %u nodes where `nodes` says %u", p->n_node_list, p->nodes);
    for (const cJSON *v = list->value->child; v && !list->state->rc; v = v->next, i++) {
        struct hapi_json at = hapi_json_item(list, v, i);
        struct hapi_profile_node *n = &p->node_list[i];
        n->bandwidth_Bps = p->bandwidth_Bps;
        n->cores = p->storage.cores;
        fields_read(p, &at, &hapi_profile_node_fields, n);
    }
}

/* ------------------------------------------------------------------ what concerns several keys */

static int by_index(const void *a, const void *b)
{
    const struct hapi_profile_cut *x = a, *y = b;

    return x->index < y->index ? -1 : x->index > y->index;
}

static void cuts_check(struct hapi_profile *p, const struct hapi_json *top)
{
    bool node = false, client = false;

    qsort(p->cuts, p->n_cuts, sizeof *p->cuts, by_index);
    for (uint32_t i = 0; i < p->n_cuts; i++) {
        const struct hapi_profile_cut *c = &p->cuts[i];
        node |= c->storage_memory.fixed + c->storage_memory.per_image <= p->storage_memory;
        client |= c->compute_memory.fixed + c->compute_memory.per_image <= p->compute_memory;
    }
    if (p->cuts[p->n_cuts - 1].index != p->freeze) {
        struct hapi_json freeze = hapi_json_member(top, "freeze");
        hapi_json_bad(&freeze, "is %u, and no cut has this index", p->freeze);
    }
    struct hapi_json memory = hapi_json_member(top, node ? "compute_memory" : "storage_memory");
    if (!node || !client)
        hapi_json_bad(&memory, "is too small for one image at any cut");
}

static void all_read(struct hapi_profile *p, const struct hapi_json *top, const struct hapi_json *cuts,
                     const struct hapi_json *nodes)
{
    fields_read(p, top, &hapi_profile_fields, p);
    convert_read(p, top, p->convert_s);
    tiers_read(p, top);
    nodes_read(p, nodes);
    cuts_read(p, cuts);
    if (!top->state->rc)
        cuts_check(p, top);
}

static int root_read(struct hapi_profile **out, const cJSON *root, struct hapi_err *err)
{
    struct hapi_json_state state = {.err = err};
    struct hapi_json top = hapi_json_top(root, &state);
    struct hapi_profile *p = NULL;

    if (!hapi_json_object(&top))
        return state.rc;
    struct hapi_json cuts = hapi_json_member(&top, "cuts"), nodes = hapi_json_member(&top, "node_list");
    uint32_t n_cuts = hapi_json_array(&cuts, HAPI_PROFILE_CUTS_MAX);
    uint32_t n_nodes = nodes.value ? hapi_json_array(&nodes, HAPI_PROFILE_NODES_MAX) : 0;
    if (!n_cuts)
        hapi_json_bad(&cuts, "is empty");
    if (state.rc)
        return state.rc;
    int rc = hapi_profile_new(&p, n_cuts, n_nodes, err);
    if (rc)
        return rc;
    all_read(p, &top, &cuts, &nodes);
    if (state.rc)
        hapi_profile_free(p);
    else
        *out = p;
    return state.rc;
}

int hapi_profile_parse(struct hapi_profile **out, const char *text, size_t size, struct hapi_err *err)
{
    cJSON *root;

    if (size > HAPI_PROFILE_BYTES_MAX)
        return hapi_err_set(err, HAPI_ETOOBIG, 0, "a profile has at most %zu bytes", HAPI_PROFILE_BYTES_MAX);
    int rc = hapi_json_parse(&root, text, size, err);
    if (rc)
        return rc;
    rc = root_read(out, root, err);
    cJSON_Delete(root);
    return rc;
}

/* ------------------------------------------------------------------ what is derived */

const struct hapi_profile_cut *hapi_profile_cut_find(const struct hapi_profile *p, uint32_t index)
{
    const struct hapi_profile_cut key = {.index = index};

    return bsearch(&key, p->cuts, p->n_cuts, sizeof key, by_index);
}

static bool said(const struct hapi_curve *c)
{
    return c->points || c->s >= 0;
}

double hapi_profile_source_compute(const struct hapi_profile *p, double batch)
{
    const struct hapi_profile_cut *first = &p->cuts[0], *last = &p->cuts[p->n_cuts - 1];

    if (said(&p->source_compute_s))
        return hapi_curve_at(&p->source_compute_s, batch);
    double before = hapi_curve_at(&first->storage_s, batch), here = hapi_curve_at(&first->compute_s, batch);
    double there = hapi_curve_at(&last->storage_s, batch) - before;
    return here + before * (here > 0 && there > 0 ? here / there : 1);
}

double hapi_profile_convert(const struct hapi_profile *p, const struct hapi_profile_cut *cut,
                            enum hapi_wire wire, double batch)
{
    return hapi_curve_at(said(&cut->convert_s[wire]) ? &cut->convert_s[wire] : &p->convert_s[wire], batch);
}

double hapi_profile_serialise(const struct hapi_profile *p, const struct hapi_profile_cut *cut, double batch)
{
    return hapi_curve_at(said(&cut->serialise_s) ? &cut->serialise_s : &p->serialise_s, batch);
}
