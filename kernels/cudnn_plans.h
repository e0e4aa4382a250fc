/*
 * The execution plans of a device: equal operation graphs share one. Internal to kernels/.
 *
 *     _make: its number ──> _hold ──> runs ... ──> _release ──> kept for the next who asks, or, of too many
 *                                                               that nobody holds, dropped by _trim
 *
 * A number is its plan's until _trim drops what nobody holds; then another plan may get it.
 * Threads: one at a time, which makes and trims; meanwhile others may release, which never waits for a plan
 * being made, and run plans that are held.
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
/* Plans kept although nobody holds them: as many as one model may ask for (HAPI_GPU_GRAPHS_MAX), so that
 * whatever comes twice in a row is compiled once; a node that serves strangers' models keeps no more. */
enum { HAPI_CUDNN_IDLE_MAX = 4096 };

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
/* Keeps a plan that _make gave; each hold has its release. The caller has not trimmed since. */
void hapi_cudnn_plans_hold(struct hapi_cudnn_plans *p, int plan);
/* Nothing of the caller's runs it any more. It stays until the next trim, at least. */
void hapi_cudnn_plans_release(struct hapi_cudnn_plans *p, int plan);
/* Destroys those that nobody holds, the longest unused first, until HAPI_CUDNN_IDLE_MAX are left. What a
 * tuner chose stays unless the folder has it: chosen anew, it might be another. */
void hapi_cudnn_plans_trim(struct hapi_cudnn_plans *p);
/* Plans (and refusals) that are there. Before any is dropped, their numbers are 0 to that, in the order in
 * which they were first asked for. */
size_t hapi_cudnn_plans_count(const struct hapi_cudnn_plans *p);
/* Number i, which there is. */
struct hapi_cudnn_made hapi_cudnn_plans_get(const struct hapi_cudnn_plans *p, size_t i);

#endif
