/*
 * What this machine takes, timed: parts of a network, decoding, conversion, the training step. Each call is
 * one visit: it makes what it needs, runs once to warm up, runs a few times, and adds what each run took to a
 * series. Threads: the caller's; measure_contention() starts some of its own and waits for them.
 */
#ifndef HAPI_CLIENT_MEASURE_H
#define HAPI_CLIENT_MEASURE_H

#include "kernels.h"
#include "series.h"
#include "stage.h"
#include "topology.h"

struct measure { /* memory that visits share; all zero at first */
    void *arena, *in[HAPI_CUT_TENSORS_MAX], *out[HAPI_CUT_TENSORS_MAX];
    size_t arena_bytes, in_bytes[HAPI_CUT_TENSORS_MAX], out_bytes[HAPI_CUT_TENSORS_MAX];
};

void measure_close(struct measure *m);

/* Seconds for an image of the plan's part of the network. Errors: of the plan, HAPI_ENOMEM. */
int measure_plan(struct measure *m, struct hapi_model *model, const struct hapi_plan_spec *spec,
                 struct series *s, struct hapi_err *err);

/* How much longer a run takes when `cores` threads run, each on a core of its own: of k busy cores each runs
 * at 1 / (1 + it * (k - 1)). With one core 0. */
int measure_contention(struct hapi_model *model, const struct hapi_plan_spec *spec,
                       const struct hapi_topology *topology, int cores, struct series *s,
                       struct hapi_err *err);

/* Seconds for an image to decode and preprocess: one value for all n images in turn. Those that cannot be
 * decoded count as one. */
int measure_decode(const struct hapi_transform *t, const struct hapi_image *images, uint32_t n,
                   struct series *s, struct hapi_err *err);

/* Seconds for an image of a cut of one tensor to become `wire`, and to become f32 again. HAPI_EUNSUPPORTED:
 * it cannot travel so. */
int measure_convert(struct measure *m, const struct hapi_cut *cut, enum hapi_dtype wire, uint32_t batch,
                    struct series *pack, struct series *unpack, struct hapi_err *err);

/* Seconds for an image of the training step of `hapi train`, with batches of so many. */
int measure_train(size_t width, uint32_t classes, uint32_t batch, struct series *s, struct hapi_err *err);

#endif
