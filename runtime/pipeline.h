/*
 * One noun: struct hapi_batch, a micro-batch from a fixed pool, with its slice of the slab. One table:
 *
 *     FREE ──> READ ──────────> COMPUTE ───────────> SEND ──────────> FREE
 *              io_uring, one     decode, prefix,      writes, then a
 *              read a sample     wire dtype; raw      record with an
 *                                objects skip it      immediate
 *
 * Any error moves the batch to SEND with a status. No free batch is the back-pressure: requests wait in their
 * session's queue. A batch is FREE again only when every completion that names its memory has been reaped.
 * Threads: the loop's, except that a compute thread, or the device that it has started, has the batch to
 * itself between COMPUTE and its job's end.
 */
#ifndef HAPI_RUNTIME_PIPELINE_H
#define HAPI_RUNTIME_PIPELINE_H

#include "pool.h"
#include "remember.h"
#include "stage.h"
#include "store.h"
#include "transport.h"
#include "wire.h"

struct hapi_rt;
struct hapi_service;

enum hapi_batch_stage { HAPI_BATCH_FREE, HAPI_BATCH_READ, HAPI_BATCH_COMPUTE, HAPI_BATCH_SEND };

/* Index into hapi_record.stage_ns. */
enum { HAPI_NS_QUEUE, HAPI_NS_READ, HAPI_NS_DECODE, HAPI_NS_COMPUTE, HAPI_NS_CONVERT, HAPI_NS_SEND };

struct hapi_batch {
    struct hapi_rt *rt;
    struct hapi_batch *next; /* free list, or list of those that wait for a plan */
    enum hapi_batch_stage stage;
    struct hapi_service *service;
    uint32_t first, count; /* samples of the request */
    uint32_t reads_left;
    int status;
    int64_t since_ns, ns[6];
    int64_t charged_ns; /* to its session: sched.c */
    bool ahead;         /* counted in rt->ahead */
    int64_t wait_ns;    /* in COMPUTE, for a thread or a plan */
    uint32_t crc32c;    /* of the payload, when the request asks for it */
    /* slices of the slab */
    uint8_t *read_area, *send_area;
    uint8_t *device_area; /* as large as send_area, in the GPU's memory; NULL: not there */
    struct hapi_record *record;
    /* SEND: how much has been posted; continues when the connection has room */
    uint32_t sent_tensors, sent_samples;
    bool posted; /* the record is on its way */
    uint8_t *out[HAPI_CUT_TENSORS];
    /* COMPUTE */
    struct hapi_plan *plan; /* taken, of a prefix whose plans start */
    bool computed;          /* by the plan; the checksum is still to come */
    int64_t started_ns;     /* when the plan was */
    struct hapi_job job;
    struct hapi_conn_op op;
    /* hapi_remember_samples() of each */
    struct hapi_read *reads;
    struct hapi_image *images, *packed; /* packed: those that are computed, when that is not all */
    struct hapi_batch_row *rows;
    uint32_t n_computed, n_keeps; /* rows that are computed; and of them kept */
    uint32_t writes;              /* to disk, under way */
    bool left;                    /* nothing else is: FREE when they are over */
    bool again;                   /* READ: for the second time */
};

/* Bytes of the slab that the pool needs. */
size_t hapi_batches_bytes(const struct hapi_config *c);
int hapi_batches_open(struct hapi_rt *rt, struct hapi_err *err);
void hapi_batches_close(struct hapi_rt *rt);

/* Takes the next samples of a request into a free batch and starts it; false when no batch is free. A request
 * with a status gets its error part. */
bool hapi_batch_start(struct hapi_rt *rt, struct hapi_service *v);
/* Posts what waited for room on a connection, and drops what waited for one that is gone. */
void hapi_batches_continue(struct hapi_rt *rt, struct hapi_conn *c);

/* Sample i of a request; NULL: it is not here. */
const struct hapi_sample_info *hapi_service_sample(const struct hapi_service *v, uint32_t i);
/* Tensor `t` of sample i of a micro-batch that is computed. */
const uint8_t *hapi_batch_row(const struct hapi_batch *b, uint32_t i, uint32_t t);
void hapi_batch_read_over(struct hapi_batch *b); /* one of its reads_left */
void hapi_batch_written(struct hapi_batch *b);   /* one of its writes */

/* worker.c: the COMPUTE stage, on a compute thread. */
bool hapi_worker_run(struct hapi_job *job, int worker);
/* Loop's thread, after a device: what became of the images. */
void hapi_worker_unpack(struct hapi_batch *b);
/* Whether a NIC takes features from where a GPU leaves them. */
bool hapi_worker_direct(const struct hapi_batch *b);

#endif
