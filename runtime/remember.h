/*
 * What the node need not compute again: rows of a cut that are in memory or on disk (store/kept.h). A sample
 * of a micro-batch is found there, or it is computed and, if there is room, kept. Rows belong to a tenant.
 *
 *     form:  found in memory ─────────────────────────────────────────> sent from there
 *            found on disk ── READ: into the send area ───────────────> sent from there
 *            not found ────── READ, COMPUTE ──┬───────────────────────> sent from the send area
 *                                             └─ copied to memory, or to the read area and written from there
 *
 * Threads: the loop's, except hapi_remember_copy().
 */
#ifndef HAPI_RUNTIME_REMEMBER_H
#define HAPI_RUNTIME_REMEMBER_H

#include <stdbool.h>

#include "config.h"
#include "kept.h"

struct hapi_rt;
struct hapi_batch;
struct hapi_service;

enum hapi_row_source { HAPI_ROW_COMPUTED, HAPI_ROW_MEMORY, HAPI_ROW_DISK };

/* A sample of a micro-batch. */
struct hapi_batch_row {
    struct hapi_batch *batch;
    enum hapi_row_source source;
    uint32_t nth;  /* of those that are computed */
    uint8_t *data; /* of one that was found: its tensors, each where hapi_prefix.row_at says */
    bool keeps;    /* computed, and `place` is reserved for it */
    struct hapi_feature place;
    struct hapi_feature_io io;
    uint32_t crc32c;
};

/* Bytes of the slab; with neither --cache-memory nor --cache-disk none, and nothing is kept. */
size_t hapi_remember_bytes(const struct hapi_config *c);
/* Samples of a micro-batch: more than are computed at once where some need not be. */
uint32_t hapi_remember_samples(const struct hapi_config *c);
/* Sets rt->features. Errors: HAPI_EINVAL (--cache-disk without --cache, --cache-memory too small), of
 * hapi_features_open(). */
int hapi_remember_open(struct hapi_rt *rt, struct hapi_err *err);

/* Its prefix is ready: from now on rows are looked for. */
void hapi_remember_serve(struct hapi_service *v);
/* Whether the next sample of the request is there. */
bool hapi_remember_next(const struct hapi_service *v);
/* Which of the next `left` samples go into this micro-batch, of which at most `bound` are computed or read
 * from disk: sets their rows and b->n_computed. Returns how many. */
uint32_t hapi_remember_form(struct hapi_batch *b, uint32_t left, uint32_t bound);
/* The micro-batch ends before sample `count`. */
void hapi_remember_trim(struct hapi_batch *b, uint32_t count);

/* READ of a row that is there: starts what has to be read, counted in b->reads_left. */
void hapi_remember_read(struct hapi_batch *b, uint32_t i);
/* All reads are over. true: rows could not be read, and their samples are to be computed after all. */
bool hapi_remember_redo(struct hapi_batch *b);

/* Before COMPUTE: places for rows that are not there. In it, on a compute thread: into these. After it. */
void hapi_remember_reserve(struct hapi_batch *b);
void hapi_remember_copy(struct hapi_batch *b);
void hapi_remember_commit(struct hapi_batch *b);
void hapi_remember_release(struct hapi_batch *b); /* FREE */

/* Between the loop's rounds: says once that the disk failed. */
void hapi_remember_errors(struct hapi_rt *rt);

#endif
