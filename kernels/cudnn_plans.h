/*
 * The execution plans of a device: each operation graph is compiled once. Internal to kernels/.
 * Not thread-safe: one thread compiles; the plans may then be used from others.
 */
#ifndef HAPI_KERNELS_CUDNN_PLANS_H
#define HAPI_KERNELS_CUDNN_PLANS_H

#include "cudnn_plan.h"

struct hapi_cudnn_plans;

/* Chooses between plans of one graph by trying them (cudnn_tune.h). */
struct hapi_cudnn_tuner {
    /* *best: which of the n > 1 plans of g is the fastest. HAPI_ENOMEM: no memory to try them. Other errors
     * end the compilation. */
    int (*fastest)(void *arg, const struct hapi_cudnn_graph *g, struct hapi_cudnn_plan *const *plans, int n,
                   int *best, struct hapi_err *err);
    /* A graph keeps the first of its plans, for want of memory. */
    void (*untuned)(void *arg, const struct hapi_err *why);
    void *arg;
};

enum { HAPI_CUDNN_CANDIDATES = 8 }; /* plans that are tried for a graph, at most */

struct hapi_cudnn_made {
    const struct hapi_cudnn_plan *plan; /* NULL: no engine takes it */
    const struct hapi_cudnn_graph *graph;
    const char *refusal; /* plan NULL: why */
    int64_t build_ns;
    bool kept;  /* it came from the disk */
    bool tuned; /* it was asked for while there was a tuner */
    int uses;   /* how often it was asked for */
};

/* d is borrowed. folder: where plans are kept from run to run (cudnn_cache.h), copied; NULL: nowhere.
 * HAPI_ENOMEM. */
int hapi_cudnn_plans_new(struct hapi_cudnn_plans **out, const struct hapi_cudnn_device *d, const char *folder,
                         struct hapi_err *err);
void hapi_cudnn_plans_free(struct hapi_cudnn_plans *p);
/* From now on a graph's plan is the fastest of those that heuristics mode A proposes, as t (copied) says, or
 * what was the fastest before, of the folder; NULL: the first, as before. Plans that were made stay, and are
 * not taken for the other kind. */
void hapi_cudnn_plans_tune(struct hapi_cudnn_plans *p, const struct hapi_cudnn_tuner *t);
/* As struct hapi_gpu_maker says, with p as its arg. A refusal is remembered, too. Errors: as
 * hapi_cudnn_plan_new(). */
int hapi_cudnn_plans_make(void *p, const struct hapi_cudnn_graph *g, int *plan, uint64_t *workspace,
                          struct hapi_err *err);
size_t hapi_cudnn_plans_count(const struct hapi_cudnn_plans *p);
/* Number i, in the order in which they were first asked for. */
struct hapi_cudnn_made hapi_cudnn_plans_get(const struct hapi_cudnn_plans *p, size_t i);

#endif
