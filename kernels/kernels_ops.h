/*
 * The back-end side of kernels/: what a back end implements to execute a bound, fused graph.
 * Internal to kernels/. One static table per back end, listed in plan.c under #if HAPI_HAVE_X.
 */
#ifndef HAPI_KERNELS_KERNELS_OPS_H
#define HAPI_KERNELS_KERNELS_OPS_H

#include "graph.h"

struct hapi_backend;

struct hapi_backend_ops {
    const char *name; /* "ref", "onednn" */
    /* Compiles g (owned by the plan, outlives the instance) for dtype; *weights is the shared weight store of
     * (model, from, to, dtype) which the first plan fills (back end's own type, refcounted by plan.c). */
    int (*compile)(struct hapi_backend **out, const struct hapi_graph *g, const struct hapi_plan_spec *spec,
                   void **weights, struct hapi_err *err);
    void (*memory)(const struct hapi_backend *b, struct hapi_plan_memory *out);
    int (*run)(struct hapi_backend *b, void *arena, const void *const *in, void *const *out,
               struct hapi_err *err);
    void (*free)(struct hapi_backend *b);
    void (*weights_free)(void *weights);
    const char *(*numeric_class)(void);
};

struct hapi_backend {
    const struct hapi_backend_ops *ops;
};

extern const struct hapi_backend_ops hapi_backend_ref;
#if HAPI_HAVE_ONEDNN
extern const struct hapi_backend_ops hapi_backend_onednn;
#endif

#endif
