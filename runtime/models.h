/*
 * Uploaded models and the prefixes compiled from them, within the memory there is. Everything slow (hashing,
 * parsing, compiling) runs on one helper thread; callers are told through a callback on the loop's thread.
 *
 * A prefix has one plan for each compute thread; their weights are shared. Where plans run on a device by
 * themselves (hapi_plan_starts()) it has a few more, which micro-batches take and give back, so that threads
 * decode while the device computes. Unused models and prefixes are kept for the next client and dropped,
 * least recently used first, when the tables or the memory are full.
 *
 * What plans take is known before they are made (hapi_plan_memory_query()); batch adaptation (admit.c,
 * planner/batch.h) says who has plans, and of which micro-batch, so that all together never take more than
 * there is. Results do not depend on it.
 * Threads: every call on the loop's thread.
 */
#ifndef HAPI_RUNTIME_MODELS_H
#define HAPI_RUNTIME_MODELS_H

#include "kernels.h"
#include "loop.h"
#include "wire.h"

struct hapi_models;
struct hapi_prefix;

struct hapi_models_options {
    const char *backend;
    int threads;                /* compute threads: plans of each prefix */
    int intra_op;               /* threads of each plan */
    uint32_t micro_batch;       /* upper bound */
    uint64_t send_area;         /* bytes the activations of one micro-batch may take */
    uint64_t memory;            /* bytes of models, weights and plans together; 0: most of what is free */
    bool adapts;                /* micro-batches shrink so that more fit, and who does not fit waits */
    void (*changed)(void *arg); /* a prefix became ready or failed */
    void *arg;
};

/* Whose a model is: nobody else finds it, whatever is known of it. */
struct hapi_owner {
    uint64_t id;
    uint32_t weight; /* of its share of the memory, >= 1 */
    uint64_t memory; /* bytes of its models and plans; 0: as there are */
};

int hapi_models_open(struct hapi_models **out, struct hapi_loop *loop, const struct hapi_models_options *opt,
                     struct hapi_err *err);
void hapi_models_close(struct hapi_models *m); /* no prefix may be held */
void hapi_models_reap(struct hapi_models *m);  /* from the loop's on_wake */

/* Keeps a model that is there, for as long as a session may ask for it; false: it is not there. */
bool hapi_model_hold(struct hapi_models *m, struct hapi_owner o, const uint8_t hash[HAPI_HASH_SIZE]);
void hapi_model_let_go(struct hapi_models *m, struct hapi_owner o, const uint8_t hash[HAPI_HASH_SIZE]);
/* Room for a model that is to come, taken until it is released or added. Errors: HAPI_EBUSY (not now: who has
 * it may leave), HAPI_ENOMEM (not here). */
int hapi_models_reserve(struct hapi_models *m, struct hapi_owner o, uint64_t bytes, struct hapi_err *err);
void hapi_models_release(struct hapi_models *m, struct hapi_owner o, uint64_t bytes);
/* Takes malloc'd bytes for which room is reserved; done() says 0 or why not (hash differs, not a model, table
 * full). Exactly one done(), later, unless an error is returned, and then the bytes stay the caller's. */
int hapi_models_add(struct hapi_models *m, struct hapi_owner o, const uint8_t hash[HAPI_HASH_SIZE],
                    void *bytes, size_t size, void (*done)(void *user, const struct hapi_err *result),
                    void *user);

/* Once a second at least: who waits for memory grows older. */
void hapi_models_tick(struct hapi_models *m, int64_t now_ns);

struct hapi_models_usage {
    uint64_t memory, taken;    /* bytes: what there is, and what models, weights and plans have of it */
    uint32_t running, waiting; /* prefixes that have plans; those and models that somebody waits for */
    uint64_t refused;          /* since the start, for lack of memory */
};
struct hapi_models_usage hapi_models_usage_get(const struct hapi_models *m);

/* The prefix for what the request asks; compiled if it is new: look at its state. NULL: its owner has no such
 * model (HAPI_ENOENT), or a table is full of things in use (HAPI_EBUSY). Held until put. */
struct hapi_prefix *hapi_prefix_get(struct hapi_models *m, const struct hapi_request *r, struct hapi_owner o,
                                    int *why);
void hapi_prefix_put(struct hapi_prefix *p);
/* What names rows of a ready prefix that are kept for a tenant: all that they depend on. */
void hapi_prefix_key(const struct hapi_prefix *p, const char *numeric_class, const char *tenant,
                     uint8_t key[HAPI_HASH_SIZE]);

/* A micro-batch of it begins; it is over, and its service still holds the prefix. */
void hapi_prefix_enter(struct hapi_prefix *p);
void hapi_prefix_leave(struct hapi_prefix *p);

/* Of a prefix whose plans start: one that nobody runs, until given back. NULL: all are in use. */
struct hapi_plan *hapi_prefix_plan_take(struct hapi_prefix *p);
void hapi_prefix_plan_give(struct hapi_prefix *p, struct hapi_plan *plan);

enum hapi_prefix_state { HAPI_PREFIX_BUILDING, HAPI_PREFIX_READY, HAPI_PREFIX_FAILED };

struct hapi_prefix {
    enum hapi_prefix_state state;
    struct hapi_err err;      /* FAILED: why */
    struct hapi_plan **plans; /* one a compute thread; or, if they start, n_plans of them to take */
    int n_plans;
    bool starts;
    struct hapi_transform transform;
    int64_t micro_batch; /* the plans' batch; another one after each time that it is not READY */
    uint32_t batches;    /* micro-batches in flight */
    int64_t cost_ns;     /* of the node's time, that a micro-batch takes: sched.c */
    uint32_t n_tensors;
    uint64_t row_bytes[HAPI_CUT_TENSORS]; /* bytes of one sample on the wire */
    uint64_t row_at[HAPI_CUT_TENSORS];    /* where each lies in a row that is kept, of: */
    uint64_t row_total;
    uint64_t out_bytes;   /* of the send area, that a micro-batch takes */
    int64_t kept_cost_ns; /* as cost_ns, of a micro-batch of rows that were kept */
    enum hapi_dtype wire_dtype;
};

#endif
