#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "model.h"
#include "tiles.h"

/* Weights as a back end wants them, shared by the plans that differ in batch (or edges' layout) only. */
struct store {
    struct store *next;
    const struct hapi_model *model;
    const struct hapi_backend_ops *ops;
    char *from, *to; /* "" for none */
    enum hapi_dtype dtype;
    void *weights;
    int refs;
};

static pthread_mutex_t stores_lock = PTHREAD_MUTEX_INITIALIZER;
static struct store *stores;

struct hapi_plan {
    struct hapi_graph *g;
    struct hapi_tiles tiles;
    struct hapi_backend *backend;
    struct store *store;
    struct hapi_tensor_desc *in, *out; /* edges in the caller's order */
    size_t *in_at, *out_at;            /* caller's position -> graph's position */
    size_t *in_bytes, *out_bytes;      /* of one tile, in the graph's order */
    const void **in_ptr;               /* in the graph's order, filled by each run */
    void **out_ptr;
    struct hapi_plan_memory memory;
    size_t pad_at; /* in the arena: edges of a run that is filled up */
};

/* ------------------------------------------------------------------ weight stores */

static void store_free(struct store *s)
{
    if (s->weights)
        s->ops->weights_free(s->weights);
    free(s->to);
    free(s->from);
    free(s);
}

static void store_put(struct store *s)
{
    if (!s)
        return;
    pthread_mutex_lock(&stores_lock);
    if (--s->refs) {
        pthread_mutex_unlock(&stores_lock);
        return;
    }
    for (struct store **p = &stores; *p; p = &(*p)->next)
        if (*p == s) {
            *p = s->next;
            break;
        }
    pthread_mutex_unlock(&stores_lock);
    store_free(s);
}

static struct store *store_new(const struct hapi_model *m, const struct hapi_backend_ops *ops,
                               const char *from, const char *to, enum hapi_dtype dtype)
{
    struct store *s = calloc(1, sizeof *s);

    if (!s)
        return NULL;
    s->from = strdup(from);
    s->to = strdup(to);
    if (!s->from || !s->to) {
        store_free(s);
        return NULL;
    }
    s->model = m;
    s->ops = ops;
    s->dtype = dtype;
    s->refs = 1;
    return s;
}

/* Plans with bound inputs have weights of their own: constants may follow from what was bound. */
static struct store *store_get(const struct hapi_model *m, const struct hapi_backend_ops *ops,
                               const struct hapi_plan_spec *spec)
{
    const char *from = spec->from ? spec->from : "", *to = spec->to ? spec->to : "";
    struct store *s = NULL;

    if (spec->n_bind)
        return store_new(m, ops, from, to, spec->dtype);
    pthread_mutex_lock(&stores_lock);
    for (s = stores; s; s = s->next)
        if (s->model == m && s->ops == ops && s->dtype == spec->dtype && !strcmp(s->from, from) &&
            !strcmp(s->to, to))
            break;
    if (s) {
        s->refs++;
    } else if ((s = store_new(m, ops, from, to, spec->dtype))) {
        s->next = stores;
        stores = s;
    }
    pthread_mutex_unlock(&stores_lock);
    return s;
}

/* ------------------------------------------------------------------ the spec */

/* int8 needs the CPU, a back end and what `hapi calibrate` puts into the file. */
static int int8_check(const struct hapi_model *m, const struct hapi_backend_ops *ops, struct hapi_err *err)
{
    const struct hapi_range *ranges;

    if (ops == &hapi_backend_ref)
        return hapi_err_set(err, HAPI_EUNSUPPORTED, 0, "back end ref computes in f32 only");
    if (!hapi_cpu_has_int8())
        return hapi_err_set(err, HAPI_EUNSUPPORTED, 0,
                            "this CPU has no int8 arithmetic (%s has no VNNI): use f32",
                            ops->numeric_class());
    if (!hapi_model_ranges(m, &ranges))
        return hapi_err_set(err, HAPI_EUNSUPPORTED, 0,
                            "int8 needs the ranges of the model's activations, which it does not have: run "
                            "`hapi calibrate`");
    return HAPI_OK;
}

/* What a CPU or GPU computes in. */
static int dtype_check(const struct hapi_model *m, const struct hapi_plan_spec *spec,
                       const struct hapi_backend_ops *ops, struct hapi_err *err)
{
    bool gpu = ops->ready != NULL, amx;

    if (gpu && (spec->dtype == HAPI_F16 || spec->dtype == HAPI_BF16 || spec->dtype == HAPI_F32))
        return ops->ready(err);
    if (gpu)
        return hapi_err_set(err, HAPI_EUNSUPPORTED, 0, "back end %s computes in f16, bf16 or f32, not in %s",
                            ops->name, hapi_dtype_name(spec->dtype));
    if (spec->dtype == HAPI_I8)
        return int8_check(m, ops, err);
    if (spec->dtype == HAPI_F16)
        return hapi_err_set(err, HAPI_EUNSUPPORTED, 0, "back end %s does not compute in f16: a GPU does",
                            ops->name);
    if (spec->dtype != HAPI_F32 && spec->dtype != HAPI_BF16)
        return hapi_err_set(err, HAPI_EINVAL, 0, "compute dtype %s (f32, bf16 and i8 are possible)",
                            hapi_dtype_name(spec->dtype));
    if (spec->dtype == HAPI_BF16 && ops == &hapi_backend_ref)
        return hapi_err_set(err, HAPI_EUNSUPPORTED, 0, "back end ref computes in f32 only");
    if (spec->dtype == HAPI_BF16 && !hapi_cpu_has_bf16(&amx))
        return hapi_err_set(
            err, HAPI_EUNSUPPORTED, 0,
            "this CPU has no bf16 arithmetic (%s): use f32, which is faster than emulated bf16",
            ops->numeric_class());
    return HAPI_OK;
}

/* Whether the plan's edges are more than f32 values. */
static int edges_check(const struct hapi_plan_spec *spec, const struct hapi_backend_ops *ops,
                       struct hapi_err *err)
{
    bool wire = spec->wire == HAPI_DTYPE_NONE || spec->wire == HAPI_F32;

    if (!ops->ready && (spec->image || !wire))
        return hapi_err_set(err, HAPI_EUNSUPPORTED, 0, "back end %s takes f32 images and gives f32",
                            ops->name);
    if (!wire && spec->wire != HAPI_F16 && spec->wire != HAPI_BF16 && spec->wire != HAPI_I8)
        return hapi_err_set(err, HAPI_EINVAL, 0, "outputs in %s", hapi_dtype_name(spec->wire));
    return HAPI_OK;
}

static int spec_check(const struct hapi_model *m, const struct hapi_plan_spec *spec,
                      const struct hapi_backend_ops **ops, struct hapi_err *err)
{
    *ops = hapi_backend_find(spec->backend);
    if (!*ops)
        return hapi_backend_none(spec->backend, err);
    if (spec->batch < 0 || spec->batch > 1 << 20)
        return hapi_err_set(err, HAPI_EINVAL, 0, "micro-batch %lld is not in 0..%d", (long long)spec->batch,
                            1 << 20);
    int rc = edges_check(spec, *ops, err);
    return rc ? rc : dtype_check(m, spec, *ops, err);
}

/* ------------------------------------------------------------------ plans */

/* Describes n edges; those of a cut are in the order of their names, those of the model in graph order. */
static int edges_make(const struct hapi_plan *p, const struct hapi_plan_spec *spec, const int *values,
                      size_t n, bool sorted, struct hapi_tensor_desc **desc, size_t **at, size_t **bytes,
                      struct hapi_err *err)
{
    const struct hapi_value *all = p->g->values;

    *desc = calloc(n + 1, sizeof **desc);
    *at = calloc(n + 1, sizeof **at);
    *bytes = calloc(n + 1, sizeof **bytes);
    if (!*desc || !*at || !*bytes)
        return hapi_err_set(err, HAPI_ENOMEM, 0, "no memory for a plan's edges");
    for (size_t i = 0; i < n; i++) {
        size_t k = i;
        while (sorted && k > 0 && strcmp(all[values[(*at)[k - 1]]].name, all[values[i]].name) > 0) {
            (*at)[k] = (*at)[k - 1];
            k--;
        }
        (*at)[k] = i;
        if (hapi_edge_bytes(spec, &all[values[i]], desc == &p->in, &(*bytes)[i]))
            return hapi_err_set(err, HAPI_ETOOBIG, 0, "edge `%s` is too large", all[values[i]].name);
    }
    for (size_t i = 0; i < n; i++) {
        const struct hapi_value *v = &all[values[(*at)[i]]];
        (*desc)[i] = (struct hapi_tensor_desc){v->name, hapi_edge_dtype(spec, v, desc == &p->in),
                                               hapi_edge_layout(spec, &v->shape), v->shape};
        if (p->tiles.runs > 1 || p->tiles.tail)
            (*desc)[i].shape.dim[0] = spec->batch;
    }
    return HAPI_OK;
}

int hapi_plan_memory_query(struct hapi_model *m, const struct hapi_plan_spec *spec,
                           struct hapi_plan_memory *out, struct hapi_err *err)
{
    const struct hapi_backend_ops *ops;
    struct hapi_backend *b = NULL;
    struct hapi_graph *g = NULL;
    struct hapi_tiles tiles;
    size_t pad_at;
    int rc = spec_check(m, spec, &ops, err);

    if (!rc)
        rc = hapi_tiles_bind(&g, &tiles, m, spec, ops, err);
    if (!rc)
        rc = ops->compile(&b, g, spec, NULL, err);
    if (!rc)
        rc = hapi_tiles_memory(b, g, spec, &tiles, out, &pad_at, err);
    if (b)
        ops->free(b);
    hapi_graph_free(g);
    hapi_model_drop_source(m);
    return rc;
}

int hapi_plan_new(struct hapi_plan **out, struct hapi_model *m, const struct hapi_plan_spec *spec,
                  struct hapi_err *err)
{
    const struct hapi_backend_ops *ops;
    struct hapi_plan *p;
    int rc = spec_check(m, spec, &ops, err);

    if (rc)
        return rc;
    p = calloc(1, sizeof *p);
    if (!p)
        return hapi_err_set(err, HAPI_ENOMEM, 0, "no memory for a plan");
    rc = hapi_tiles_bind(&p->g, &p->tiles, m, spec, ops, err);
    if (rc)
        goto fail;
    rc = edges_make(p, spec, p->g->inputs, p->g->n_inputs, spec->from != NULL, &p->in, &p->in_at,
                    &p->in_bytes, err);
    if (!rc)
        rc = edges_make(p, spec, p->g->outputs, p->g->n_outputs, spec->to != NULL, &p->out, &p->out_at,
                        &p->out_bytes, err);
    if (rc)
        goto fail;
    p->in_ptr = calloc(p->g->n_inputs + 1, sizeof *p->in_ptr);
    p->out_ptr = calloc(p->g->n_outputs + 1, sizeof *p->out_ptr);
    p->store = store_get(m, ops, spec);
    if (!p->in_ptr || !p->out_ptr || !p->store) {
        rc = hapi_err_set(err, HAPI_ENOMEM, 0, "no memory for a plan");
        goto fail;
    }
    rc = ops->compile(&p->backend, p->g, spec, &p->store->weights, err);
    hapi_model_drop_source(m);
    rc = rc ? rc : hapi_tiles_memory(p->backend, p->g, spec, &p->tiles, &p->memory, &p->pad_at, err);
    if (rc)
        goto fail;
    *out = p;
    return HAPI_OK;
fail:
    hapi_plan_free(p);
    return rc;
}

void hapi_plan_free(struct hapi_plan *p)
{
    if (!p)
        return;
    if (p->backend)
        p->backend->ops->free(p->backend);
    store_put(p->store);
    free(p->out_ptr);
    free(p->in_ptr);
    free(p->out_bytes);
    free(p->in_bytes);
    free(p->out_at);
    free(p->in_at);
    free(p->out);
    free(p->in);
    hapi_graph_free(p->g);
    free(p);
}

struct hapi_plan_memory hapi_plan_memory_get(const struct hapi_plan *p)
{
    return p->memory;
}

size_t hapi_plan_inputs(const struct hapi_plan *p, const struct hapi_tensor_desc **out)
{
    *out = p->in;
    return p->g->n_inputs;
}

size_t hapi_plan_outputs(const struct hapi_plan *p, const struct hapi_tensor_desc **out)
{
    *out = p->out;
    return p->g->n_outputs;
}

static void edges_set(struct hapi_plan *p, const void *const *in, void *const *out)
{
    for (size_t i = 0; i < p->g->n_inputs; i++)
        p->in_ptr[p->in_at[i]] = in[i];
    for (size_t i = 0; i < p->g->n_outputs; i++)
        p->out_ptr[p->out_at[i]] = out[i];
}

/* The run at hand has only `tail` samples: from here on it reads and writes buffers in the arena. They are
 * filled up with its last sample: no NaN or denormal comes up that is not in the input, and calibration
 * sees no values that are nobody's. */
static void tail_begin(struct hapi_plan *p, void *arena, bool fill)
{
    unsigned char *at = (unsigned char *)arena + p->pad_at;

    for (size_t i = 0; i < p->g->n_inputs; i++) {
        size_t row = p->in_bytes[i] / (size_t)p->tiles.samples, have = row * (size_t)p->tiles.tail;
        if (fill)
            memcpy(at, p->in_ptr[i], have);
        for (size_t k = have; fill && k < p->in_bytes[i]; k += row)
            memcpy(at + k, at + have - row, row);
        p->in_ptr[i] = at;
        at += hapi_tiles_round(p->in_bytes[i]);
    }
    for (size_t i = 0; i < p->g->n_outputs; i++) {
        p->out_ptr[i] = at;
        at += hapi_tiles_round(p->out_bytes[i]);
    }
}

/* What the samples have become, without the copies, to the caller. */
static void tail_end(struct hapi_plan *p, void *const *out)
{
    for (size_t i = 0; i < p->g->n_outputs; i++) {
        size_t k = p->out_at[i], bytes = p->out_bytes[k];
        memcpy((unsigned char *)out[i] + bytes * (size_t)(p->tiles.runs - 1), p->out_ptr[k],
               bytes / (size_t)p->tiles.samples * (size_t)p->tiles.tail);
    }
}

int hapi_plan_run(struct hapi_plan *p, void *arena, const void *const *in, void *const *out,
                  struct hapi_err *err)
{
    int rc = HAPI_OK;

    edges_set(p, in, out);
    for (int64_t t = 0; t < p->tiles.runs && !rc; t++) {
        bool tail = p->tiles.tail && t + 1 == p->tiles.runs;
        if (tail)
            tail_begin(p, arena, true);
        rc = p->backend->ops->run(p->backend, arena, p->in_ptr, p->out_ptr, err);
        if (tail && !rc)
            tail_end(p, out);
        for (size_t i = 0; i < p->g->n_inputs; i++)
            p->in_ptr[i] = (const unsigned char *)p->in_ptr[i] + p->in_bytes[i];
        for (size_t i = 0; i < p->g->n_outputs; i++)
            p->out_ptr[i] = (unsigned char *)p->out_ptr[i] + p->out_bytes[i];
    }
    return rc;
}

bool hapi_plan_starts(const struct hapi_plan *p)
{
    return p->backend->ops->start && p->tiles.runs == 1 && !p->tiles.tail;
}

int hapi_plan_start(struct hapi_plan *p, const void *const *in, void *const *out, void (*done)(void *arg),
                    void *arg, struct hapi_err *err)
{
    if (!hapi_plan_starts(p))
        return hapi_err_set(err, HAPI_EUNSUPPORTED, 0, "this plan of back end %s does not run by itself",
                            p->backend->ops->name);
    edges_set(p, in, out);
    return p->backend->ops->start(p->backend, p->in_ptr, p->out_ptr, done, arg, err);
}

int hapi_plan_finish(struct hapi_plan *p, struct hapi_err *err)
{
    return p->backend->ops->finish(p->backend, err);
}

void *hapi_plan_input_memory(struct hapi_plan *p, size_t i)
{
    return hapi_plan_starts(p) ? p->backend->ops->input_memory(p->backend, p->in_at[i]) : NULL;
}

int hapi_plan_observe(struct hapi_plan *p, void (*seen)(void *arg, const struct hapi_seen *s), void *arg,
                      struct hapi_err *err)
{
    const struct hapi_backend_ops *ops = p->backend->ops;

    if (!ops->observe)
        return hapi_err_set(err, HAPI_EUNSUPPORTED, 0, "back end %s shows no values in between", ops->name);
    ops->observe(p->backend, seen, arg);
    return HAPI_OK;
}

size_t hapi_plan_kernels(const struct hapi_plan *p)
{
    return p->backend->ops->kernels ? p->backend->ops->kernels(p->backend) : 0;
}

int64_t hapi_plan_parts(const struct hapi_plan *p)
{
    return p->tiles.runs;
}

void hapi_plan_kernel_get(const struct hapi_plan *p, size_t i, struct hapi_plan_kernel *out)
{
    p->backend->ops->kernel_get(p->backend, i, out);
}

int hapi_plan_kernel_run(struct hapi_plan *p, void *arena, const void *const *in, void *const *out, size_t i,
                         struct hapi_err *err)
{
    edges_set(p, in, out);
    if (p->tiles.tail && p->tiles.runs == 1) /* the caller's buffers are too small for a whole run */
        tail_begin(p, arena, false);
    return p->backend->ops->kernel_run(p->backend, arena, p->in_ptr, p->out_ptr, i, err);
}
