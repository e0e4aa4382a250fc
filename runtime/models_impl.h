/*
 * How models and prefixes look inside: models.c has what was uploaded, prefixes.c compiles, admit.c says
 * which prefixes have plans. Private to these three.
 *
 * A prefix that memory is counted for:
 *
 *     ASKS ── builder: what would plans take? ──> WAITS ── admit.c: there is room ──> BUILT ── builder ──>
 * RUNS ^                                                       │ └──── no plans: another micro-batch, or
 * others need it ─┘
 */
#ifndef HAPI_RUNTIME_MODELS_IMPL_H
#define HAPI_RUNTIME_MODELS_IMPL_H

#include "batch.h"
#include "models.h"
#include "pool.h"

enum { HAPI_MODELS_MAX = 32, HAPI_PREFIXES_MAX = 64, HAPI_CUT_ID_MAX = 8192, HAPI_PREFIX_SIZES = 8 };

struct hapi_model_slot {
    struct hapi_model *model;
    uint8_t hash[HAPI_HASH_SIZE];
    uint64_t owner;
    uint64_t used; /* tick of the last use */
    uint64_t bytes;
    int holders;  /* prefixes made from it */
    int sessions; /* that may ask for it */
};

/* What makes two prefixes the same. */
struct hapi_prefix_id {
    uint8_t hash[HAPI_HASH_SIZE];
    char cut[HAPI_CUT_ID_MAX], transform[HAPI_TRANSFORM_MAX + 1];
    enum hapi_dtype compute, wire;
    uint32_t bound; /* of the micro-batch */
};

enum hapi_prefix_phase { HAPI_PREFIX_ASKS, HAPI_PREFIX_WAITS, HAPI_PREFIX_BUILT, HAPI_PREFIX_RUNS };

struct hapi_prefix_slot {
    struct hapi_prefix prefix; /* first: callers hold a pointer to it */
    struct hapi_job job;
    struct hapi_models *owner;
    struct hapi_model_slot *model;
    struct hapi_prefix_id key;
    uint64_t used, id; /* ticks: of the last use, of the first */
    int64_t group;     /* samples at a time that the model is fixed to; 0: any number */
    int n_free;        /* plans that nobody runs: prefix.plans[0..n_free) */
    int holders;
    int64_t left_ns; /* when the last holder left */
    enum hapi_prefix_phase phase;
    struct hapi_owner whose;
    uint32_t age;
    bool claims; /* the memory that it lacks is not given to others */

    /* Micro-batches that differ in memory, ascending; the last stands for `bound`. */
    uint32_t n_sizes, sizes[HAPI_PREFIX_SIZES];
    uint64_t own[HAPI_PREFIX_SIZES], weights; /* bytes of all its plans but their weights; of these */
    int64_t bound;                            /* what the send area has room for */
    int at,
        want; /* index into sizes: of the plans there are, or are built; of those there are to be; -1: none */
};

struct hapi_models {
    struct hapi_models_options opt;
    struct hapi_pool *builder;
    uint64_t tick;
    bool admits, again; /* a round is being made; something changed meanwhile */
    bool counts;        /* memory of plans is counted here; a device does that by itself */
    int64_t round_ns;
    uint64_t refused;
    struct hapi_model_coming {
        uint64_t owner, bytes;
    } * coming; /* memory for models on their way, by owner */
    uint32_t n_coming;
    struct hapi_model_slot model[HAPI_MODELS_MAX];
    struct hapi_prefix_slot *prefix[HAPI_PREFIXES_MAX];
    struct {
        uint64_t who;
        struct hapi_adapt_tenant tenant;
    } tenants[HAPI_PREFIXES_MAX];
    uint32_t n_tenants;
    void *scratch;
    size_t scratch_size;
};

/* models.c */
struct hapi_model_slot *hapi_model_slot_find(struct hapi_models *m, uint64_t owner,
                                             const uint8_t hash[HAPI_HASH_SIZE]);
/* Of those that no session may ask for, the one that was used least recently; false: there is none. */
bool hapi_model_drop_idle(struct hapi_models *m);

/* prefixes.c */
void hapi_prefix_free(struct hapi_prefix_slot *p);
/* Starts to make plans of micro-batch sizes[want]. HAPI_ENOMEM. */
int hapi_prefix_build(struct hapi_prefix_slot *p);
/* Its plans go; nobody runs them. */
void hapi_prefix_plans_free(struct hapi_prefix_slot *p);
void hapi_prefix_fail(struct hapi_prefix_slot *p);
/* The micro-batch that sizes[k] stands for. */
int64_t hapi_prefix_batch(const struct hapi_prefix_slot *p, int k);

/* admit.c */
/* Something came, left or was built: gives out memory. */
void hapi_admit(struct hapi_models *m);
/* Bytes of models, weights and plans, those that are being built included. */
uint64_t hapi_admit_taken(const struct hapi_models *m);
/* Whether `bytes` more fit, once what nobody uses is dropped; drops it. */
bool hapi_admit_room(struct hapi_models *m, uint64_t bytes);

#endif
