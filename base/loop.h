/*
 * The event loop of an I/O thread: one io_uring that carries storage reads, polls of transport and control
 * fds, timers and wake-ups from other threads. Nothing else in the thread waits.
 *
 *     other threads ── hapi_loop_wake() ──> eventfd ─┐
 *     sockets, CM fds, CQ fds ── poll ───────────────┼─> io_uring ─> op->done() / watch->ready() /
 * timer->fire() files ── read_fixed, openat2, statx ───────────┘
 *
 * Lifetime: an op's memory belongs to the ring from hapi_loop_sqe() until done() has been called.
 * Threads: one thread (the one that opened it) makes every call, except hapi_loop_wake() and
 * hapi_loop_stop(), which any thread or signal handler may call.
 */
#ifndef HAPI_BASE_LOOP_H
#define HAPI_BASE_LOOP_H

#include <stdbool.h>
#include <stdint.h>

#include "err.h"
#include "slab.h"

struct io_uring_sqe;
struct hapi_loop;

/* One submission. done() is called exactly once, from hapi_loop_run(), never from inside hapi_loop_sqe(). */
struct hapi_op {
    void (*done)(struct hapi_op *op, int res, uint32_t cqe_flags);
};

/* An fd in the poll set. ready() first takes everything there is (notify, poll again), then returns: the
 * loop arms the poll anew. `events` are POLLIN | POLLOUT; hapi_loop_watch_events() changes them. */
struct hapi_watch {
    void (*ready)(struct hapi_watch *w, uint32_t revents);
    int fd;
    uint32_t events;
    /* private to the loop */
    struct hapi_loop *loop;
    struct hapi_watch_slot *slot;
};

/* A one-shot timer; fire() may set it again. */
struct hapi_timer {
    void (*fire)(struct hapi_timer *t);
    int64_t deadline_ns; /* of hapi_clock_ns() */
    /* private to the loop */
    struct hapi_timer *next;
    bool set;
};

/* A queue that can be looked at without a system call, such as a completion queue. While something came of
 * any poller within the last busy_ns, the loop does not sleep but looks at all of them, yielding the
 * processor in between; before it sleeps it arms them. */
struct hapi_poller {
    bool (*poll)(struct hapi_poller *p); /* takes what there is: whether there was something */
    bool (*arm)(struct hapi_poller *p);  /* asks for an event of its fd, then polls once more, as poll() */
    int64_t busy_ns;                     /* 0: sleep as soon as nothing is left */
    /* private to the loop */
    struct hapi_loop *loop;
    struct hapi_poller *next;
};

/* `entries`: submission slots (a power of two, 64..4096). Errors: HAPI_EUNSUPPORTED when io_uring is
 * forbidden or too old (the text says which sysctl or kernel), HAPI_ENOMEM, HAPI_ESYS. */
int hapi_loop_open(struct hapi_loop **out, unsigned entries, struct hapi_err *err);
/* Cancels nothing: the owner closes its users first, then runs the loop until they are done. */
void hapi_loop_close(struct hapi_loop *loop);

/* A prepared-for-use submission slot whose completion calls op->done(); never NULL (submits when full).
 * The caller fills it with an io_uring_prep_*() call *through* hapi_loop_prep_end(), which sets user_data:
 *
 *     struct io_uring_sqe *s = hapi_loop_sqe(loop);
 *     io_uring_prep_read_fixed(s, fd, buf, n, off, index);
 *     hapi_loop_prep_end(loop, s, op);
 */
struct io_uring_sqe *hapi_loop_sqe(struct hapi_loop *loop);
void hapi_loop_prep_end(struct hapi_loop *loop, struct io_uring_sqe *sqe, struct hapi_op *op);

/* Registers the slab as fixed buffers, in pieces of at most 1 GiB. Without locked memory to spare it
 * returns HAPI_ENOMEM with the bytes needed and how to raise the limit. Once per loop. */
int hapi_loop_register_slab(struct hapi_loop *loop, const struct hapi_slab *slab, struct hapi_err *err);
/* Index of the fixed buffer that holds [p, p+n), or -1 when it is not (wholly) in one: use plain reads. */
int hapi_loop_buffer_index(const struct hapi_loop *loop, const void *p, size_t n);

/* w->ready, w->fd and w->events are set by the caller. After hapi_loop_unwatch() ready() is not called
 * any more and *w may be freed at once (the loop keeps what the kernel still refers to). */
int hapi_loop_watch(struct hapi_loop *loop, struct hapi_watch *w);
void hapi_loop_watch_events(struct hapi_watch *w, uint32_t events);
void hapi_loop_unwatch(struct hapi_watch *w);

/* p->poll, p->arm and p->busy_ns are set by the caller. Removing one that is not there does nothing; neither
 * function is called after it. */
void hapi_loop_poller_add(struct hapi_loop *loop, struct hapi_poller *p);
void hapi_loop_poller_remove(struct hapi_poller *p);
/* Its fd has an event: polls it now. */
void hapi_loop_poller_ready(struct hapi_poller *p);

/* t->fire is set by the caller. Setting a set timer moves it. */
void hapi_loop_timer_set(struct hapi_loop *loop, struct hapi_timer *t, int64_t deadline_ns);
void hapi_loop_timer_clear(struct hapi_loop *loop, struct hapi_timer *t);

/* Called on the loop's thread after a hapi_loop_wake() (several wakes may make one call). One per loop. */
void hapi_loop_on_wake(struct hapi_loop *loop, void (*fn)(void *arg), void *arg);
void hapi_loop_wake(struct hapi_loop *loop); /* any thread; async-signal-safe */

/* Waits up to timeout_ns (-1: for ever) for something, and dispatches all there is. 0 or HAPI_ESYS. */
int hapi_loop_run_once(struct hapi_loop *loop, int64_t timeout_ns, struct hapi_err *err);
/* Runs until hapi_loop_stop(). */
int hapi_loop_run(struct hapi_loop *loop, struct hapi_err *err);
void hapi_loop_stop(struct hapi_loop *loop); /* any thread; async-signal-safe */

#endif
