#include "cudnn_plan.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cudnn_descriptor.h"

enum { ENGINES_MAX = 64, KNOBS_MAX = 32, NOTES_MAX = 16, ENGINE_TEXT = 160 };

struct hapi_cudnn_plan {
    const struct hapi_cudnn_lib *lib;
    cudnnBackendDescriptor_t plan;
    struct hapi_cudnn_plan_info info;
    char engine[ENGINE_TEXT];
};

/* Engine configurations, best first, and the descriptor that they are looked at through. */
struct engines {
    cudnnBackendDescriptor_t list[ENGINES_MAX];
    int64_t n;
};

static void engines_fini(const struct hapi_cudnn_lib *lib, struct engines *e)
{
    for (int i = 0; i < ENGINES_MAX; i++)
        if (e->list[i])
            (void)lib->BackendDestroyDescriptor(e->list[i]);
}

/* What a mode of the heuristics proposes for the graph. */
static cudnnStatus_t engines_ask(const struct hapi_cudnn_device *d, cudnnBackendDescriptor_t graph,
                                 cudnnBackendHeurMode_t mode, struct engines *e)
{
    struct hapi_cudnn_builder b = {.lib = d->lib};
    cudnnBackendDescriptor_t h = hapi_cudnn_make(&b, CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR);

    hapi_cudnn_put(&b, h, CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &graph);
    hapi_cudnn_put(&b, h, CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, 1, &mode);
    if (!d->handle) /* else the graph's handle says */
        hapi_cudnn_put(&b, h, CUDNN_ATTR_ENGINEHEUR_DEVICEPROP, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1,
                       &d->properties);
    hapi_cudnn_done(&b, h);
    for (int i = 0; i < ENGINES_MAX && !b.status; i++)
        b.status = d->lib->BackendCreateDescriptor(CUDNN_BACKEND_ENGINECFG_DESCRIPTOR, &e->list[i]);
    if (!b.status)
        b.status = d->lib->BackendGetAttribute(h, CUDNN_ATTR_ENGINEHEUR_RESULTS,
                                               CUDNN_TYPE_BACKEND_DESCRIPTOR, ENGINES_MAX, &e->n, e->list);
    hapi_cudnn_builder_fini(&b);
    return b.status;
}

/* An engine's index, knobs and notes. */
struct engine {
    char text[ENGINE_TEXT];
    bool compiled, deterministic, wide; /* wide: accumulates in f32 */
};

static void knobs_text(const struct hapi_cudnn_lib *lib, cudnnBackendDescriptor_t config, char *buf,
                       size_t size)
{
    cudnnBackendDescriptor_t knobs[KNOBS_MAX] = {NULL};
    cudnnBackendKnobType_t type;
    int64_t n = 0, value, one;
    size_t at = 0;

    for (int i = 0; i < KNOBS_MAX; i++)
        if (lib->BackendCreateDescriptor(CUDNN_BACKEND_KNOB_CHOICE_DESCRIPTOR, &knobs[i]))
            knobs[i] = NULL;
    if (!lib->BackendGetAttribute(config, CUDNN_ATTR_ENGINECFG_KNOB_CHOICES, CUDNN_TYPE_BACKEND_DESCRIPTOR,
                                  KNOBS_MAX, &n, knobs))
        for (int64_t i = 0; i < n && i < KNOBS_MAX && at < size; i++)
            if (!lib->BackendGetAttribute(knobs[i], CUDNN_ATTR_KNOB_CHOICE_KNOB_TYPE, CUDNN_TYPE_KNOB_TYPE, 1,
                                          &one, &type) &&
                !lib->BackendGetAttribute(knobs[i], CUDNN_ATTR_KNOB_CHOICE_KNOB_VALUE, CUDNN_TYPE_INT64, 1,
                                          &one, &value))
                at += (size_t)snprintf(buf + at, size - at, "_k%d=%lld", (int)type, (long long)value);
    for (int i = 0; i < KNOBS_MAX; i++)
        if (knobs[i])
            (void)lib->BackendDestroyDescriptor(knobs[i]);
}

static cudnnStatus_t engine_read(const struct hapi_cudnn_lib *lib, cudnnBackendDescriptor_t config,
                                 struct engine *out)
{
    struct hapi_cudnn_builder b = {.lib = lib};
    cudnnBackendDescriptor_t e = hapi_cudnn_make(&b, CUDNN_BACKEND_ENGINE_DESCRIPTOR);
    cudnnBackendNumericalNote_t notes[NOTES_MAX];
    cudnnBackendBehaviorNote_t ways[NOTES_MAX];
    int64_t n = 0, index = -1, one;

    *out = (struct engine){.deterministic = true, .wide = true};
    if (!b.status)
        b.status = lib->BackendGetAttribute(config, CUDNN_ATTR_ENGINECFG_ENGINE,
                                            CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &one, &e);
    if (!b.status)
        b.status =
            lib->BackendGetAttribute(e, CUDNN_ATTR_ENGINE_GLOBAL_INDEX, CUDNN_TYPE_INT64, 1, &one, &index);
    if (!b.status)
        b.status = lib->BackendGetAttribute(e, CUDNN_ATTR_ENGINE_NUMERICAL_NOTE, CUDNN_TYPE_NUMERICAL_NOTE,
                                            NOTES_MAX, &n, notes);
    for (int64_t i = 0; i < n && i < NOTES_MAX && !b.status; i++) {
        out->deterministic = out->deterministic && notes[i] != CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC;
        out->wide = out->wide && notes[i] != CUDNN_NUMERICAL_NOTE_REDUCED_PRECISION_REDUCTION &&
                    notes[i] != CUDNN_NUMERICAL_NOTE_DOWN_CONVERT_INPUTS;
    }
    n = 0;
    if (!b.status)
        b.status = lib->BackendGetAttribute(e, CUDNN_ATTR_ENGINE_BEHAVIOR_NOTE, CUDNN_TYPE_BEHAVIOR_NOTE,
                                            NOTES_MAX, &n, ways);
    for (int64_t i = 0; i < n && i < NOTES_MAX && !b.status; i++)
        out->compiled = out->compiled || ways[i] == CUDNN_BEHAVIOR_NOTE_RUNTIME_COMPILATION;
    int at = snprintf(out->text, sizeof out->text, "eng%lld", (long long)index);
    knobs_text(lib, config, out->text + at, sizeof out->text - (size_t)at);
    hapi_cudnn_builder_fini(&b);
    return b.status;
}

/* Says for which device a plan is: by its handle where it is there. */
static cudnnStatus_t plan_for(const struct hapi_cudnn_device *d, cudnnBackendDescriptor_t plan)
{
    if (d->handle)
        return d->lib->BackendSetAttribute(plan, CUDNN_ATTR_EXECUTION_PLAN_HANDLE, CUDNN_TYPE_HANDLE, 1,
                                           &d->handle);
    return d->lib->BackendSetAttribute(plan, CUDNN_ATTR_EXECUTION_PLAN_DEVICEPROP,
                                       CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &d->properties);
}

static cudnnStatus_t plan_finalize(struct hapi_cudnn_plan *p, const struct hapi_cudnn_device *d,
                                   cudnnBackendDescriptor_t config)
{
    const struct hapi_cudnn_lib *lib = d->lib;
    int64_t workspace = 0, one;
    cudnnStatus_t s = lib->BackendCreateDescriptor(CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR, &p->plan);

    if (!s)
        s = lib->BackendSetAttribute(p->plan, CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG,
                                     CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &config);
    if (!s)
        s = plan_for(d, p->plan);
    if (!s)
        s = lib->BackendFinalize(p->plan);
    if (!s)
        s = lib->BackendGetAttribute(p->plan, CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE, CUDNN_TYPE_INT64, 1,
                                     &one, &workspace);
    p->info.workspace = (uint64_t)workspace;
    return s;
}

int hapi_cudnn_plan_text(const struct hapi_cudnn_plan *p, char **text, struct hapi_err *err)
{
    int64_t n = 0, most = 0;
    char *buf;
    cudnnStatus_t s = p->lib->BackendGetAttribute(p->plan, CUDNN_ATTR_EXECUTION_PLAN_JSON_REPRESENTATION,
                                                  CUDNN_TYPE_CHAR, 0, &most, NULL);

    if (s)
        return hapi_cudnn_fail(p->lib, s, "the size of a plan's text", err);
    buf = calloc(1, (size_t)most + 1);
    if (!buf)
        return hapi_err_set(err, HAPI_ENOMEM, 0, "no memory for a plan's text");
    s = p->lib->BackendGetAttribute(p->plan, CUDNN_ATTR_EXECUTION_PLAN_JSON_REPRESENTATION, CUDNN_TYPE_CHAR,
                                    most, &n, buf);
    if (s) {
        free(buf);
        return hapi_cudnn_fail(p->lib, s, "a plan's text", err);
    }
    *text = buf;
    return HAPI_OK;
}

int hapi_cudnn_plan_from_text(struct hapi_cudnn_plan **out, const struct hapi_cudnn_device *d,
                              const char *text, struct hapi_err *err)
{
    const struct hapi_cudnn_lib *lib = d->lib;
    struct hapi_cudnn_plan *p = calloc(1, sizeof *p);
    int64_t workspace = 0, one;
    cudnnStatus_t s;

    if (!p)
        return hapi_err_set(err, HAPI_ENOMEM, 0, "no memory for an execution plan");
    p->lib = lib;
    s = lib->BackendCreateDescriptor(CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR, &p->plan);
    if (!s)
        s = plan_for(d, p->plan);
    if (!s)
        s = lib->BackendSetAttribute(p->plan, CUDNN_ATTR_EXECUTION_PLAN_JSON_REPRESENTATION, CUDNN_TYPE_CHAR,
                                     (int64_t)strlen(text) + 1, text);
    if (!s)
        s = lib->BackendFinalize(p->plan);
    if (!s)
        s = lib->BackendGetAttribute(p->plan, CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE, CUDNN_TYPE_INT64, 1,
                                     &one, &workspace);
    if (s) {
        (void)hapi_cudnn_fail(lib, s, "a plan that was kept", err);
        hapi_cudnn_plan_free(p);
        return err ? (err->code = HAPI_ESTALE) : HAPI_ESTALE;
    }
    p->info.workspace = (uint64_t)workspace;
    snprintf(p->engine, sizeof p->engine, "kept");
    *out = p;
    return HAPI_OK;
}

/* An engine that cannot be compiled is one that does not serve; what the device or memory refuses is another
 * matter. */
static cudnnStatus_t refusal_of(cudnnStatus_t s)
{
    bool engine = s == CUDNN_STATUS_INTERNAL_ERROR_COMPILATION_FAILED ||
                  s == CUDNN_STATUS_INTERNAL_ERROR_UNEXPECTED_VALUE;

    return engine ? CUDNN_STATUS_NOT_SUPPORTED : s;
}

/* Plans, the first first. */
struct found {
    struct hapi_cudnn_plan **list;
    int n, most, tried; /* tried: engines refused so far */
    bool no_memory;
};

/* A plan by this engine, appended; otherwise what refused it. */
static cudnnStatus_t engine_try(struct found *f, const struct hapi_cudnn_device *d,
                                cudnnBackendDescriptor_t config, const struct engine *engine)
{
    struct hapi_cudnn_plan *p = calloc(1, sizeof *p);
    cudnnStatus_t s;

    if (!p) {
        f->no_memory = true;
        return CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED;
    }
    p->lib = d->lib;
    s = refusal_of(plan_finalize(p, d, config));
    if (s) {
        hapi_cudnn_plan_free(p);
        return s;
    }
    memcpy(p->engine, engine->text, sizeof p->engine);
    p->info.compiled = engine->compiled;
    p->info.tried = f->tried;
    f->list[f->n++] = p;
    return CUDNN_STATUS_SUCCESS;
}

/* The first engines of the list that may be taken and finalize. Returns what refused when there is none: of
 * several the gravest. */
static cudnnStatus_t engines_try(struct found *f, const struct hapi_cudnn_device *d, const struct engines *e)
{
    cudnnStatus_t worst = CUDNN_STATUS_NOT_SUPPORTED;

    for (int64_t i = 0; i < e->n && f->n < f->most; i++) {
        struct engine engine;
        cudnnStatus_t s = engine_read(d->lib, e->list[i], &engine);
        if (s)
            return s;
        if (engine.deterministic && engine.wide) {
            s = engine_try(f, d, e->list[i], &engine);
            if (!s)
                continue;
        }
        f->tried++;
        worst = s > worst ? s : worst;
    }
    return f->n ? CUDNN_STATUS_SUCCESS : worst;
}

static int refused(const struct hapi_cudnn_device *d, const struct hapi_cudnn_graph *g, cudnnStatus_t s,
                   int tried, struct hapi_err *err)
{
    char ops[128], what[320];

    snprintf(what, sizeof what, "%s: no engine of %s for %s (%d tried)", g->name, d->name,
             hapi_cudnn_graph_text(g, ops, sizeof ops), tried);
    return hapi_cudnn_fail(d->lib, s, what, err);
}

/* What this cuDNN has no descriptor for: asked for one, it says that it has no memory. */
static int version_check(const struct hapi_cudnn_device *d, const struct hapi_cudnn_graph *g,
                         struct hapi_err *err)
{
    enum { SDPA_SINCE = 91301 };
    size_t v = d->lib->GetVersion();

    for (int i = 0; i < g->n_ops; i++)
        if (g->ops[i].kind == HAPI_CUDNN_SDPA && v < SDPA_SINCE)
            return hapi_err_set(err, HAPI_EUNSUPPORTED, 0,
                                "%s: cuDNN %zu has no attention in one op: 9.13.1 has", g->name, v);
    return HAPI_OK;
}

int hapi_cudnn_plan_list(struct hapi_cudnn_plan **list, int most, int *n, const struct hapi_cudnn_device *d,
                         const struct hapi_cudnn_graph *g, struct hapi_err *err)
{
    static const cudnnBackendHeurMode_t modes[] = {CUDNN_HEUR_MODE_A, CUDNN_HEUR_MODE_FALLBACK};
    struct hapi_cudnn_builder b = {.lib = d->lib, .handle = d->handle};
    struct found f = {.list = list, .most = most};
    cudnnBackendDescriptor_t graph;
    cudnnStatus_t s;
    int rc = hapi_cudnn_graph_check(g, err);

    if (!rc)
        rc = version_check(d, g, err);
    if (rc)
        return rc;
    graph = hapi_cudnn_describe(&b, g);
    s = b.status;
    for (size_t i = 0; i < sizeof modes / sizeof *modes && graph && !f.n; i++) {
        struct engines e = {.n = 0};
        s = engines_ask(d, graph, modes[i], &e);
        if (!s)
            s = engines_try(&f, d, &e);
        engines_fini(d->lib, &e);
    }
    if (!f.n)
        rc = f.no_memory ? hapi_err_set(err, HAPI_ENOMEM, 0, "no memory for an execution plan")
                         : refused(d, g, s, f.tried, err);
    hapi_cudnn_builder_fini(&b);
    *n = f.n;
    return rc;
}

int hapi_cudnn_plan_new(struct hapi_cudnn_plan **out, const struct hapi_cudnn_device *d,
                        const struct hapi_cudnn_graph *g, struct hapi_err *err)
{
    int n;

    return hapi_cudnn_plan_list(out, 1, &n, d, g, err);
}

void hapi_cudnn_plan_free(struct hapi_cudnn_plan *p)
{
    if (!p)
        return;
    if (p->plan)
        (void)p->lib->BackendDestroyDescriptor(p->plan);
    free(p);
}

void *hapi_cudnn_plan_descriptor(const struct hapi_cudnn_plan *p)
{
    return p->plan;
}

struct hapi_cudnn_plan_info hapi_cudnn_plan_info_get(const struct hapi_cudnn_plan *p)
{
    struct hapi_cudnn_plan_info info = p->info;

    info.engine = p->engine;
    return info;
}
