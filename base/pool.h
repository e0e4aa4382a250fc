/*
 * Compute threads behind an I/O loop. Each is pinned to a core, takes jobs from its own bounded
 * single-producer queue and answers through the loop's eventfd; it owns nothing but the job in hand.
 *
 *     loop thread ── hapi_pool_submit() ──> queue ──> job->run(job, worker)   on a compute thread
 *     loop thread <── hapi_pool_reap() ──── queue <──┘   job->done(job) is called by the reaper
 *                                            list  <──── hapi_pool_over(): a device has finished it
 *
 * Lifetime: a job's memory belongs to the pool from submit until done(). done() comes exactly once, on the
 * loop's thread, from hapi_pool_reap(), never from inside submit.
 * Threads: submit, reap and close on the loop's thread. The loop's on_wake handler must call reap.
 */
#ifndef HAPI_BASE_POOL_H
#define HAPI_BASE_POOL_H

#include <stdbool.h>

#include "err.h"
#include "loop.h"
#include "topology.h"

struct hapi_pool;

struct hapi_job {
    /* true: it is over. false: a device goes on with it; hapi_pool_over() comes, perhaps before run() has
     * returned. */
    bool (*run)(struct hapi_job *job, int worker);
    void (*done)(struct hapi_job *job);
    struct hapi_job *next; /* private, with the rest */
    int worker;
};

/* First core of worker i: one after the other, and from the first again where there are no more. */
int hapi_pool_core(const struct hapi_topology *t, int width, int i);
/* `threads` >= 1 workers, each pinned to `width` >= 1 cores of `topology` (NULL: not pinned), the first from
 * its first core on; each holds up to `depth` jobs. Errors: HAPI_EINVAL, HAPI_ENOMEM, HAPI_ESYS. */
int hapi_pool_open(struct hapi_pool **out, struct hapi_loop *loop, int threads, unsigned depth,
                   const struct hapi_topology *topology, int width, struct hapi_err *err);
/* Waits for the jobs that run, on a thread or a device; those still queued are run too, and reaped. */
void hapi_pool_close(struct hapi_pool *p);
int hapi_pool_threads(const struct hapi_pool *p);
/* Gives the job to the worker with the fewest. No done() after HAPI_EBUSY (every queue is full) and
 * HAPI_ECLOSED (the pool is being closed). */
int hapi_pool_submit(struct hapi_pool *p, struct hapi_job *job);
/* Once for a job whose run() said false, from any thread. */
void hapi_pool_over(struct hapi_pool *p, struct hapi_job *job);
/* Calls done() of every finished job; returns how many. */
int hapi_pool_reap(struct hapi_pool *p);

#endif
