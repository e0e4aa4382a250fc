/*
 * What one compute thread does to one micro-batch, on either tier: decode images into a plan's input, run
 * the plan, bring the result to the wire's dtype and check it. It owns the thread's decoder and buffers.
 *
 * Lifetime: made before its thread starts, used by that thread only. Buffers grow when a larger plan than
 * any before arrives, never in the steady state.
 */
#ifndef HAPI_KERNELS_STAGE_H
#define HAPI_KERNELS_STAGE_H

#include "kernels.h"

struct hapi_stage;

struct hapi_image {
    const void *data; /* encoded bytes, or NULL when `status` is already an error */
    size_t bytes;
    int status; /* in: not 0: leave it out. out: 0 or HAPI_E* of its decoding */
};

enum { HAPI_STAGE_DECODE, HAPI_STAGE_COMPUTE, HAPI_STAGE_CONVERT, HAPI_STAGE_TIMES };

int hapi_stage_new(struct hapi_stage **out, struct hapi_err *err);
void hapi_stage_free(struct hapi_stage *s);

/* Where the outputs of a run go: out[i] receives n dense samples of output i in `dtype`: f32, f16, bf16,
 * or i8, whose rows hold their scales (int8.h). * Where that is the dtype of the plan's outputs (f32; on a
 * GPU the wire's) and there is room for at least the plan's batch of `rows` the plan writes there itself,
 * else it writes to a buffer of the stage, from where the samples are brought to out[i] in one pass. */
struct hapi_stage_out {
    void *const *out;
    int64_t rows;
    enum hapi_dtype dtype;
    uint32_t *crc32c; /* NULL, or goes on over the samples with status 0, output by output, as out[] holds
                         them: in the pass that converts them where there is one */
};

/* n <= the plan's batch. A sample that cannot be decoded gets its status and undefined features; the others
 * are not affected. ns receives the time of each step (the checksum's is part of the conversion's). Errors:
 * of the plan, HAPI_EINVAL when the plan's input is not one (N,3,H,W) tensor of the transform's size,
 * HAPI_ENOMEM. */
int hapi_stage_images(struct hapi_stage *s, struct hapi_plan *plan, const struct hapi_transform *t,
                      struct hapi_image *images, int64_t n, const struct hapi_stage_out *o,
                      int64_t ns[HAPI_STAGE_TIMES], struct hapi_err *err);

/* The rest of a network: n samples of its cut, of one tensor, which lie one after the other at `rows` as they
 * travelled, in dtype `wire` (i8: with their scales). images[i].status not 0: sample i was not delivered, and
 * gets undefined features. ns: there is nothing to decode; HAPI_STAGE_CONVERT is what comes before the plan
 * and after it. o->crc32c is NULL. Errors: of the plan, HAPI_EINVAL when it does not take one batch of f32 or
 * n is more than that, HAPI_EPROTO (a scale of i8 rows is out of its range), HAPI_ENOMEM. */
int hapi_stage_rows(struct hapi_stage *s, struct hapi_plan *plan, const void *rows, enum hapi_dtype wire,
                    const struct hapi_image *images, int64_t n, const struct hapi_stage_out *o,
                    int64_t ns[HAPI_STAGE_TIMES], struct hapi_err *err);

/* hapi_stage_images() for a plan that starts (hapi_plan_starts()) and takes images from memory of its own,
 * without what comes after the plan: it decodes there, starts the plan and returns; done(arg) comes as
 * hapi_plan_start() says, perhaps before this has returned. The plan must write to out[] itself, and the
 * checksum is the caller's: o->crc32c is NULL. Errors: as above, and HAPI_EINVAL for what such a plan cannot.
 */
int hapi_stage_start(struct hapi_stage *s, struct hapi_plan *plan, const struct hapi_transform *t,
                     struct hapi_image *images, int64_t n, const struct hapi_stage_out *o, int64_t *decode_ns,
                     void (*done)(void *arg), void *arg, struct hapi_err *err);

#endif
