/*
 * The back-end side of kernels/: what a back end implements to execute a bound graph. Internal to kernels/.
 * One static table per back end, listed in plan.c under #if HAPI_HAVE_X.
 *
 *     hapi_plan_new ── hapi_graph_bind ──> graph ── ops->compile ──> instance ── ops->run (any number of
 * times)
 *
 * An instance runs on one thread at a time; instances are independent of each other.
 */
#ifndef HAPI_KERNELS_KERNELS_OPS_H
#define HAPI_KERNELS_KERNELS_OPS_H

#include "graph.h"

struct hapi_backend;

struct hapi_backend_ops {
    const char *name; /* "ref", "onednn", "cudnn" */
    bool copies;      /* large constants of the graph may be `raw`: it copies what it runs with */
    bool tiled;       /* a sample's result does not depend on the batch: plan.c may run a batch in parts */
    /* Compiles g (owned by the plan, outlives the instance) for spec->dtype. *weights is the weight store
     * shared by all plans of (model, from, to, dtype); the first compile makes it (back end's own type,
     * refcounted by plan.c), later ones add what they lack; what is in it never moves. weights NULL: measure
     * only; nothing large is allocated and the instance is never run. Errors: as hapi_plan_new. */
    int (*compile)(struct hapi_backend **out, const struct hapi_graph *g, const struct hapi_plan_spec *spec,
                   void **weights, struct hapi_err *err);
    void (*memory)(const struct hapi_backend *b, struct hapi_plan_memory *out);
    /* in[i], out[i]: in the order of g->inputs, g->outputs, in the edges' layout. No heap call of ours. */
    int (*run)(struct hapi_backend *b, void *arena, const void *const *in, void *const *out,
               struct hapi_err *err);
    /* Optional: as hapi_plan_start(), _finish() and _input_memory(). */
    int (*start)(struct hapi_backend *b, const void *const *in, void *const *out, void (*done)(void *arg),
                 void *arg, struct hapi_err *err);
    int (*finish)(struct hapi_backend *b, struct hapi_err *err);
    void *(*input_memory)(struct hapi_backend *b, size_t i);
    /* Optional, for benchmarks: the kernels that a run runs, in order, and one of them alone. */
    size_t (*kernels)(const struct hapi_backend *b);
    void (*kernel_get)(const struct hapi_backend *b, size_t i, struct hapi_plan_kernel *out);
    int (*kernel_run)(struct hapi_backend *b, void *arena, const void *const *in, void *const *out, size_t i,
                      struct hapi_err *err);
    /* Optional: as hapi_plan_observe. */
    void (*observe)(struct hapi_backend *b, void (*seen)(void *arg, const struct hapi_seen *s), void *arg);
    void (*free)(struct hapi_backend *b);
    void (*weights_free)(void *weights);
    const char *(*numeric_class)(void); /* NULL: not ready */
    /* Optional: whether it can run here. HAPI_EUNSUPPORTED with the reason. */
    int (*ready)(struct hapi_err *err);
    /* Optional: as hapi_backend_tune(). */
    int (*tune)(void (*untuned)(const struct hapi_err *why), struct hapi_err *err);
    /* Optional: as hapi_backend_pin(), _unpin(), _reserve(), _release() and _usage(). */
    int (*pin)(void *p, size_t bytes, struct hapi_err *err);
    void (*unpin)(void *p);
    int (*reserve)(uint64_t bytes, struct hapi_err *err);
    void (*release)(void);
    bool (*usage)(struct hapi_device_usage *out);
    int (*device_memory)(size_t bytes, struct hapi_device_memory *out, struct hapi_err *err);
    void (*device_memory_free)(struct hapi_device_memory *m);
};

/* First member of every instance. */
struct hapi_backend {
    const struct hapi_backend_ops *ops;
};

extern const struct hapi_backend_ops hapi_backend_ref;
#if HAPI_HAVE_ONEDNN
extern const struct hapi_backend_ops hapi_backend_onednn;
#endif
#if HAPI_HAVE_CUDNN
extern const struct hapi_backend_ops hapi_backend_cudnn;
#endif

/* NULL: there is none of this name; hapi_backend_none() says so, and which there are (HAPI_EINVAL). */
const struct hapi_backend_ops *hapi_backend_find(const char *name);
int hapi_backend_none(const char *name, struct hapi_err *err);

/* Layout of an edge: 4-D tensors are channels-last unless the caller asked for the model's own order. */
static inline enum hapi_layout hapi_edge_layout(const struct hapi_plan_spec *spec, const struct hapi_shape *s)
{
    return s->rank == 4 && !spec->plain_io ? HAPI_LAYOUT_NHWC : HAPI_LAYOUT_PLAIN;
}

/* Copies a dense tensor of logical shape s between the model's order and channels-last (rank 3 and 4; others
 * are copied as they are). size: bytes of an element (1, 2, 4, 8). No heap. */
void hapi_layout_to_nhwc(void *dst, const void *src, const struct hapi_shape *s, size_t size);
void hapi_layout_to_plain(void *dst, const void *src, const struct hapi_shape *s, size_t size);

#endif
