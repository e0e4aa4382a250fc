/*
 * A micro-batch in runs of its graph. Internal to plan.c and tiles.c.
 *
 *     | run 0: samples | run 1: samples | last run: samples, or `tail` and copies of the last one |
 *
 * Not thread-safe: binds the model.
 */
#ifndef HAPI_KERNELS_TILES_H
#define HAPI_KERNELS_TILES_H

#include "kernels_ops.h"
#include "memory.h"

/* `runs` runs of the graph, each of `samples`. A model that binds at one batch only may have fewer for the
 * last: `tail` (0: as many). */
struct hapi_tiles {
    int64_t runs, samples, tail;
};

/* The graph of one run. Errors: as hapi_plan_new(); HAPI_EUNSUPPORTED where a group of the model's fixed
 * batch cannot be taken apart at an edge. */
int hapi_tiles_bind(struct hapi_graph **g, struct hapi_tiles *t, struct hapi_model *m,
                    const struct hapi_plan_spec *spec, const struct hapi_backend_ops *ops,
                    struct hapi_err *err);
/* What the back end needs; and room behind it, from *pad_at on, for the edges of a run that is filled up,
 * each of hapi_tiles_round() bytes. HAPI_ETOOBIG. */
int hapi_tiles_memory(struct hapi_backend *b, const struct hapi_graph *g, const struct hapi_plan_spec *spec,
                      const struct hapi_tiles *t, struct hapi_plan_memory *out, size_t *pad_at,
                      struct hapi_err *err);

/* Dtype and bytes of an edge as the caller has it; int8 in rows with their scales. HAPI_EINVAL, HAPI_ETOOBIG.
 */
enum hapi_dtype hapi_edge_dtype(const struct hapi_plan_spec *spec, const struct hapi_value *v, bool input);
int hapi_edge_bytes(const struct hapi_plan_spec *spec, const struct hapi_value *v, bool input, size_t *bytes);

static inline size_t hapi_tiles_round(size_t n)
{
    return (n + HAPI_MEMORY_ALIGN - 1) / HAPI_MEMORY_ALIGN * HAPI_MEMORY_ALIGN;
}

#endif
