#include "models_impl.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "topology.h"

struct add_job {
    struct hapi_job job;
    struct hapi_models *owner;
    struct hapi_owner whose;
    uint8_t hash[HAPI_HASH_SIZE];
    void *bytes;
    size_t size;
    struct hapi_model *model;
    struct hapi_err err;
    void (*done)(void *user, const struct hapi_err *result);
    void *user;
};

int hapi_models_open(struct hapi_models **out, struct hapi_loop *loop, const struct hapi_models_options *opt,
                     struct hapi_err *err)
{
    struct hapi_models *m = calloc(1, sizeof *m);

    if (!m)
        return hapi_err_set(err, HAPI_ENOMEM, 0, "no memory for the model table");
    m->opt = *opt;
    int rc = hapi_pool_open(&m->builder, loop, 1, HAPI_PREFIXES_MAX * 2, NULL, 1, err);
    if (rc) {
        free(m);
        return rc;
    }
    m->counts = !hapi_backend_converts(opt->backend);
    m->scratch_size = hapi_adapt_scratch(HAPI_PREFIXES_MAX, 1);
    m->scratch = malloc(m->scratch_size);
    if (!m->scratch) {
        hapi_models_close(m);
        return hapi_err_set(err, HAPI_ENOMEM, 0, "no memory for the model table");
    }
    if (!m->opt.memory)
        m->opt.memory = hapi_memory_available() / 10 * 8;
    if (!m->opt.memory ||
        m->opt.memory > HAPI_ADAPT_BYTES_MAX) /* nobody says what is free; or more than there can be */
        m->opt.memory = HAPI_ADAPT_BYTES_MAX;
    *out = m;
    return 0;
}

void hapi_models_close(struct hapi_models *m)
{
    if (!m)
        return;
    hapi_pool_close(m->builder);
    for (int i = 0; i < HAPI_PREFIXES_MAX; i++)
        if (m->prefix[i])
            hapi_prefix_free(m->prefix[i]);
    for (int i = 0; i < HAPI_MODELS_MAX; i++)
        hapi_model_close(m->model[i].model);
    free(m->scratch);
    free(m->coming);
    free(m);
}

void hapi_models_reap(struct hapi_models *m)
{
    hapi_pool_reap(m->builder);
}

/* ------------------------------------------------------------------ models */

struct hapi_model_slot *hapi_model_slot_find(struct hapi_models *m, uint64_t owner,
                                             const uint8_t hash[HAPI_HASH_SIZE])
{
    for (int i = 0; i < HAPI_MODELS_MAX; i++)
        if (m->model[i].model && m->model[i].owner == owner &&
            !memcmp(m->model[i].hash, hash, HAPI_HASH_SIZE))
            return &m->model[i];
    return NULL;
}

bool hapi_model_hold(struct hapi_models *m, struct hapi_owner o, const uint8_t hash[HAPI_HASH_SIZE])
{
    struct hapi_model_slot *s = hapi_model_slot_find(m, o.id, hash);

    if (s) {
        s->used = ++m->tick;
        s->sessions++;
    }
    return s != NULL;
}

void hapi_model_let_go(struct hapi_models *m, struct hapi_owner o, const uint8_t hash[HAPI_HASH_SIZE])
{
    hapi_model_slot_find(m, o.id, hash)->sessions--;
}

bool hapi_model_drop_idle(struct hapi_models *m)
{
    struct hapi_model_slot *best = NULL;

    for (int i = 0; i < HAPI_MODELS_MAX; i++) {
        struct hapi_model_slot *s = &m->model[i];
        bool busy = !s->model || s->sessions;
        for (int p = 0; p < HAPI_PREFIXES_MAX; p++)
            busy |= m->prefix[p] && m->prefix[p]->model == s && m->prefix[p]->holders;
        if (!busy && (!best || s->used < best->used))
            best = s;
    }
    for (int p = 0; best && p < HAPI_PREFIXES_MAX; p++)
        if (m->prefix[p] && m->prefix[p]->model == best) {
            hapi_prefix_free(m->prefix[p]);
            m->prefix[p] = NULL;
        }
    if (best) {
        hapi_model_close(best->model);
        memset(best, 0, sizeof *best);
    }
    return best != NULL;
}

/* A free slot, if need be of the one longest unused; NULL when all are in use. */
static struct hapi_model_slot *model_slot_take(struct hapi_models *m)
{
    do
        for (int i = 0; i < HAPI_MODELS_MAX; i++)
            if (!m->model[i].model)
                return &m->model[i];
    while (hapi_model_drop_idle(m));
    return NULL;
}

static bool add_run(struct hapi_job *job, int worker)
{
    struct add_job *a = (struct add_job *)job;

    (void)worker;
    if (hapi_model_from_bytes(&a->model, a->bytes, a->size, NULL, &a->err)) {
        free(a->bytes);
    } else if (memcmp(hapi_model_hash(a->model), a->hash, HAPI_HASH_SIZE)) {
        hapi_err_set(&a->err, HAPI_ECORRUPT, 0, "the uploaded model does not have the hash that was offered");
        hapi_model_close(a->model);
        a->model = NULL;
    }
    return true;
}

static void add_done(struct hapi_job *job)
{
    struct add_job *a = (struct add_job *)job;
    struct hapi_models *m = a->owner;
    struct hapi_model_slot *s =
        a->model && !hapi_model_slot_find(m, a->whose.id, a->hash) ? model_slot_take(m) : NULL;

    if (s) {
        *s = (struct hapi_model_slot){
            .model = a->model, .owner = a->whose.id, .used = ++m->tick, .bytes = a->size};
        memcpy(s->hash, a->hash, HAPI_HASH_SIZE);
    } else if (a->model) { /* someone else was faster, or there is no room */
        hapi_model_close(a->model);
        if (!hapi_model_slot_find(m, a->whose.id, a->hash))
            hapi_err_set(&a->err, HAPI_EBUSY, 0, "all %d models that this node keeps are in use",
                         HAPI_MODELS_MAX);
    }
    hapi_models_release(m, a->whose, a->size); /* its slot counts it now */
    a->done(a->user, &a->err);
    free(a);
}

int hapi_models_add(struct hapi_models *m, struct hapi_owner o, const uint8_t hash[HAPI_HASH_SIZE],
                    void *bytes, size_t size, void (*done)(void *user, const struct hapi_err *result),
                    void *user)
{
    struct add_job *a = calloc(1, sizeof *a);

    if (!a)
        return HAPI_ENOMEM;
    *a = (struct add_job){.job = {.run = add_run, .done = add_done},
                          .owner = m,
                          .whose = o,
                          .bytes = bytes,
                          .size = size,
                          .done = done,
                          .user = user};
    memcpy(a->hash, hash, HAPI_HASH_SIZE);
    int rc = hapi_pool_submit(m->builder, &a->job);
    if (rc)
        free(a);
    return rc;
}
