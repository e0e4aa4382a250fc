#include "loop.h"

#include <errno.h>
#include <liburing.h>
#include <poll.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <unistd.h>

#include "clock.h"

enum { PIECES_MAX = 64, DISPATCH_MAX = 256, LOOKS = 16 };
#define QUIET INT64_MIN
#define PIECE_BYTES ((size_t)1 << 30) /* io_uring refuses a larger registered buffer with EFAULT */

/* The low bits of user_data say what a completion belongs to. */
enum { TAG_OP = 0, TAG_WATCH = 1, TAG_WAKE = 2, TAG_NONE = 3, TAG_TIMER = 4, TAG_MASK = 7 };

/* What the kernel refers to by user_data; outlives its watch until the last completion is reaped. */
struct hapi_watch_slot {
    struct hapi_watch *watch; /* NULL: unwatched */
    bool armed, canceling;
    uint32_t armed_events;
    struct hapi_watch_slot *next_free;
};

struct hapi_loop {
    struct io_uring ring;
    const unsigned char *slab;
    size_t slab_size;
    int n_pieces;
    struct hapi_timer *timers;                 /* by deadline */
    struct __kernel_timespec alarm;            /* of the ring's one timeout */
    int64_t alarm_ns;                          /* the same; INT64_MAX: none is set */
    struct hapi_poller *pollers, *next_poller; /* next_poller: where a round over them goes on */
    int64_t active_ns; /* when one last had something; 0: just now; QUIET: too long ago */
    int64_t busy_ns;   /* the longest of theirs */
    struct hapi_watch_slot *free_slots;
    unsigned live_slots; /* slots the kernel still refers to */
    int wake_fd;
    uint64_t wake_value;
    bool wake_armed, closing;
    _Atomic bool wake_pending, stop;
    void (*on_wake)(void *arg);
    void *on_wake_arg;
};

static int ring_error(struct hapi_err *err, int rc)
{
    switch (-rc) {
    case ENOSYS:
        return hapi_err_set(err, HAPI_EUNSUPPORTED, -rc,
                            "this kernel has no io_uring (5.10 or newer is needed)");
    case EPERM:
        return hapi_err_set(err, HAPI_EUNSUPPORTED, -rc,
                            "io_uring is forbidden here: set sysctl kernel.io_uring_disabled=0, or allow "
                            "io_uring_setup in the seccomp profile of the container");
    case ENOMEM:
        return hapi_err_set(err, HAPI_ENOMEM, -rc, "no memory for the io_uring: raise `ulimit -l`");
    default:
        return hapi_err_errno(err, -rc, "cannot set up an io_uring");
    }
}

static void wake_arm(struct hapi_loop *l)
{
    struct io_uring_sqe *s = hapi_loop_sqe(l);
    io_uring_prep_read(s, l->wake_fd, &l->wake_value, sizeof l->wake_value, 0);
    io_uring_sqe_set_data64(s, TAG_WAKE);
    l->wake_armed = true;
}

int hapi_loop_open(struct hapi_loop **out, unsigned entries, struct hapi_err *err)
{
    struct hapi_loop *l = calloc(1, sizeof *l);
    /* The flags matter for speed only: kernels before 6.1 refuse them. */
    struct io_uring_params best = {
        .flags = IORING_SETUP_CQSIZE | IORING_SETUP_CLAMP | IORING_SETUP_SINGLE_ISSUER |
                 IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_TASKRUN_FLAG,
        .cq_entries = entries * 4,
    };
    struct io_uring_params plain = {.flags = IORING_SETUP_CQSIZE | IORING_SETUP_CLAMP,
                                    .cq_entries = entries * 4};

    if (!l)
        return hapi_err_set(err, HAPI_ENOMEM, 0, "no memory for an event loop");
    int rc = io_uring_queue_init_params(entries, &l->ring, &best);
    if (rc == -EINVAL)
        rc = io_uring_queue_init_params(entries, &l->ring, &plain);
    if (rc < 0) {
        rc = ring_error(err, rc);
        goto fail_alloc;
    }
    l->wake_fd = eventfd(0, EFD_CLOEXEC);
    if (l->wake_fd < 0) {
        rc = hapi_err_errno(err, errno, "cannot open an eventfd");
        goto fail_ring;
    }
    l->alarm_ns = INT64_MAX;
    l->active_ns = QUIET;
    wake_arm(l);
    *out = l;
    return 0;
fail_ring:
    io_uring_queue_exit(&l->ring);
fail_alloc:
    free(l);
    return rc;
}

void hapi_loop_close(struct hapi_loop *l)
{
    if (!l)
        return;
    /* Slots that were unwatched still wait for the completion of their cancelled polls. */
    l->closing = true;
    for (int i = 0; i < 100 && l->live_slots; i++)
        if (hapi_loop_run_once(l, HAPI_NS_PER_MS, NULL))
            break;
    io_uring_queue_exit(&l->ring);
    close(l->wake_fd);
    for (struct hapi_watch_slot *s = l->free_slots, *next; s; s = next) {
        next = s->next_free;
        free(s);
    }
    free(l);
}

struct io_uring_sqe *hapi_loop_sqe(struct hapi_loop *l)
{
    struct io_uring_sqe *s;

    while (!(s = io_uring_get_sqe(&l->ring)))
        io_uring_submit(&l->ring);
    return s;
}

void hapi_loop_prep_end(struct hapi_loop *l, struct io_uring_sqe *sqe, struct hapi_op *op)
{
    (void)l;
    io_uring_sqe_set_data(sqe, op);
}

int hapi_loop_register_slab(struct hapi_loop *l, const struct hapi_slab *slab, struct hapi_err *err)
{
    struct iovec v[PIECES_MAX];
    unsigned n = 0;

    if (slab->size > PIECES_MAX * PIECE_BYTES)
        return hapi_err_set(err, HAPI_ETOOBIG, 0, "a slab of %zu bytes is over %d GiB", slab->size,
                            PIECES_MAX);
    for (size_t at = 0; at < slab->size; at += PIECE_BYTES, n++) {
        v[n].iov_base = slab->base + at;
        v[n].iov_len = slab->size - at < PIECE_BYTES ? slab->size - at : PIECE_BYTES;
    }
    int rc = io_uring_register_buffers(&l->ring, v, n);
    if (rc == -ENOMEM) {
        struct rlimit lim = {0};
        getrlimit(RLIMIT_MEMLOCK, &lim);
        return hapi_err_set(err, HAPI_ENOMEM, ENOMEM,
                            "cannot lock %zu KiB for io_uring with a limit of %llu KiB: raise `ulimit -l` "
                            "(LimitMEMLOCK= in a systemd unit), or make the slab smaller",
                            slab->size >> 10, (unsigned long long)lim.rlim_cur >> 10);
    }
    if (rc < 0)
        return hapi_err_errno(err, -rc, "cannot register %zu bytes with io_uring", slab->size);
    l->slab = slab->base;
    l->slab_size = slab->size;
    l->n_pieces = (int)n;
    return 0;
}

int hapi_loop_buffer_index(const struct hapi_loop *l, const void *p, size_t n)
{
    size_t at = (size_t)((const unsigned char *)p - l->slab);

    if (!l->slab || (const unsigned char *)p < l->slab || at > l->slab_size || n > l->slab_size - at)
        return -1;
    size_t first = at / PIECE_BYTES, last = n ? (at + n - 1) / PIECE_BYTES : first;
    return first == last ? (int)first : -1;
}

/* ------------------------------------------------------------------ watches */

static void slot_arm(struct hapi_loop *l, struct hapi_watch_slot *slot)
{
    struct io_uring_sqe *s = hapi_loop_sqe(l);
    slot->armed_events = slot->watch->events;
    io_uring_prep_poll_add(s, slot->watch->fd, slot->armed_events);
    io_uring_sqe_set_data64(s, (uint64_t)(uintptr_t)slot | TAG_WATCH);
    slot->armed = true;
}

static void slot_cancel(struct hapi_loop *l, struct hapi_watch_slot *slot)
{
    if (!slot->armed || slot->canceling)
        return;
    struct io_uring_sqe *s = hapi_loop_sqe(l);
    /* Not poll_remove: it answers -EALREADY when the poll is about to be retried, and the poll stays armed.
     */
    io_uring_prep_cancel64(s, (uint64_t)(uintptr_t)slot | TAG_WATCH, 0);
    io_uring_sqe_set_data64(s, TAG_NONE);
    slot->canceling = true;
}

static void slot_release(struct hapi_loop *l, struct hapi_watch_slot *slot)
{
    slot->next_free = l->free_slots;
    l->free_slots = slot;
    l->live_slots--;
}

int hapi_loop_watch(struct hapi_loop *l, struct hapi_watch *w)
{
    struct hapi_watch_slot *slot = l->free_slots;

    if (slot)
        l->free_slots = slot->next_free;
    else if (!(slot = malloc(sizeof *slot)))
        return HAPI_ENOMEM;
    *slot = (struct hapi_watch_slot){.watch = w};
    l->live_slots++;
    w->loop = l;
    w->slot = slot;
    slot_arm(l, slot);
    return 0;
}

void hapi_loop_watch_events(struct hapi_watch *w, uint32_t events)
{
    if (!w->slot || w->events == events)
        return;
    w->events = events;
    if (w->slot->armed && w->slot->armed_events != events)
        slot_cancel(w->loop, w->slot); /* its completion arms the new set */
}

void hapi_loop_unwatch(struct hapi_watch *w)
{
    struct hapi_watch_slot *slot = w->slot;

    if (!slot)
        return;
    w->slot = NULL;
    slot->watch = NULL;
    if (!slot->armed) { /* unwatched from its own ready(): slot_ready() releases it */
        return;
    }
    slot_cancel(w->loop, slot);
    /* The caller may close the fd as soon as we return: the kernel must have the cancellation first. */
    io_uring_submit(&w->loop->ring);
}

static void slot_ready(struct hapi_loop *l, struct hapi_watch_slot *slot, int res)
{
    bool canceled = slot->canceling && res < 0;

    slot->armed = slot->canceling = false;
    if (slot->watch && !canceled && res)
        slot->watch->ready(slot->watch, res < 0 ? POLLERR : (uint32_t)res);
    if (slot->watch)
        slot_arm(l, slot);
    else
        slot_release(l, slot);
}

/* ------------------------------------------------------------------ timers, wake-ups */

void hapi_loop_timer_clear(struct hapi_loop *l, struct hapi_timer *t)
{
    if (!t->set)
        return;
    for (struct hapi_timer **p = &l->timers; *p; p = &(*p)->next)
        if (*p == t) {
            *p = t->next;
            break;
        }
    t->set = false;
}

void hapi_loop_timer_set(struct hapi_loop *l, struct hapi_timer *t, int64_t deadline_ns)
{
    struct hapi_timer **p = &l->timers;

    hapi_loop_timer_clear(l, t);
    t->deadline_ns = deadline_ns;
    t->set = true;
    while (*p && (*p)->deadline_ns <= deadline_ns)
        p = &(*p)->next;
    t->next = *p;
    *p = t;
}

/*
 * One timeout in the ring for the earliest deadline. It is moved only when a deadline gets earlier: one that
 * is cleared or put off (as heartbeats are, all the time) costs a wake-up too many once, and a turn of the
 * loop that has nothing to do with timers reads no clock and sets no timer of the kernel's. It is relative:
 * the kernel takes an absolute one by the machine's clock, which is not the one of a time namespace.
 */
static void alarm_set(struct hapi_loop *l)
{
    if (!l->timers || l->timers->deadline_ns >= l->alarm_ns)
        return;
    int64_t now = hapi_clock_ns(), in = l->timers->deadline_ns > now ? l->timers->deadline_ns - now : 1;
    struct io_uring_sqe *s = hapi_loop_sqe(l);
    l->alarm = (struct __kernel_timespec){.tv_sec = in / HAPI_NS_PER_S, .tv_nsec = in % HAPI_NS_PER_S};
    if (l->alarm_ns == INT64_MAX) {
        io_uring_prep_timeout(s, &l->alarm, 0, 0);
        io_uring_sqe_set_data64(s, TAG_TIMER);
    } else { /* -ENOENT: it has just fired, and its completion sets it anew */
        io_uring_prep_timeout_update(s, &l->alarm, TAG_TIMER, 0);
        io_uring_sqe_set_data64(s, TAG_NONE);
    }
    l->alarm_ns = l->timers->deadline_ns;
}

static void timers_fire(struct hapi_loop *l)
{
    if (l->alarm_ns != INT64_MAX)
        return;
    int64_t now = l->timers ? hapi_clock_ns() : 0;

    while (l->timers && l->timers->deadline_ns <= now) {
        struct hapi_timer *t = l->timers;
        l->timers = t->next;
        t->set = false;
        t->fire(t);
    }
}

void hapi_loop_on_wake(struct hapi_loop *l, void (*fn)(void *arg), void *arg)
{
    l->on_wake = fn;
    l->on_wake_arg = arg;
}

void hapi_loop_wake(struct hapi_loop *l)
{
    uint64_t one = 1;

    if (!atomic_exchange(&l->wake_pending, true) && write(l->wake_fd, &one, sizeof one) < 0)
        atomic_store(&l->wake_pending, false);
}

void hapi_loop_stop(struct hapi_loop *l)
{
    atomic_store(&l->stop, true);
    hapi_loop_wake(l);
}

/* ------------------------------------------------------------------ pollers */

void hapi_loop_poller_add(struct hapi_loop *l, struct hapi_poller *p)
{
    p->loop = l;
    p->next = l->pollers;
    l->pollers = p;
    l->busy_ns = p->busy_ns > l->busy_ns ? p->busy_ns : l->busy_ns;
}

void hapi_loop_poller_remove(struct hapi_poller *p)
{
    struct hapi_loop *l = p->loop;

    if (!l)
        return;
    if (l->next_poller == p)
        l->next_poller = p->next;
    for (struct hapi_poller **at = &l->pollers; *at; at = &(*at)->next)
        if (*at == p) {
            *at = p->next;
            break;
        }
    p->loop = NULL;
    l->busy_ns = 0;
    for (struct hapi_poller *q = l->pollers; q; q = q->next)
        l->busy_ns = q->busy_ns > l->busy_ns ? q->busy_ns : l->busy_ns;
}

void hapi_loop_poller_ready(struct hapi_poller *p)
{
    struct hapi_loop *l = p->loop;

    if (p->poll(p))
        l->active_ns = 0;
}

/* One round over all of them; each may remove itself and others. */
static bool pollers_round(struct hapi_loop *l, bool arm)
{
    bool found = false;

    l->next_poller = l->pollers;
    while (l->next_poller) {
        struct hapi_poller *p = l->next_poller;
        l->next_poller = p->next;
        found |= arm ? p->arm(p) : p->poll(p);
    }
    if (found)
        l->active_ns = 0;
    return found;
}

static bool ring_has_something(struct hapi_loop *l)
{
    return io_uring_cq_ready(&l->ring) ||
           IO_URING_READ_ONCE(*l->ring.sq.kflags) & (IORING_SQ_TASKRUN | IORING_SQ_CQ_OVERFLOW);
}

/*
 * Whether something was done: then there is no sleeping. Other threads have the processor in between. The
 * clock is read at every LOOKS-th look: a busy queue has something sooner, and where reading it is a system
 * call it costs as much as a look.
 */
static bool pollers_busy(struct hapi_loop *l, int64_t timeout_ns)
{
    int64_t now = 0, until = INT64_MAX;

    if (l->active_ns == QUIET)
        return false;
    alarm_set(l);
    if (io_uring_sq_ready(&l->ring))
        io_uring_submit(&l->ring);
    for (unsigned looks = 1; now < until; looks++) {
        if (pollers_round(l, false) || ring_has_something(l))
            return true;
        if (looks % LOOKS == 0) {
            now = hapi_clock_ns();
            l->active_ns = l->active_ns ? l->active_ns : now;
            if (until == INT64_MAX && timeout_ns > 0)
                until = now + timeout_ns;
            if (l->active_ns + l->busy_ns < until)
                until = l->active_ns + l->busy_ns;
        }
        sched_yield();
    }
    if (now >= l->active_ns + l->busy_ns)
        l->active_ns = QUIET;
    return false;
}

/* ------------------------------------------------------------------ running */

static void dispatch(struct hapi_loop *l, uint64_t data, int res, uint32_t flags)
{
    void *p = (void *)(uintptr_t)(data & ~(uint64_t)TAG_MASK);

    switch (data & TAG_MASK) {
    case TAG_OP:
        if (p) {
            struct hapi_op *op = p;
            op->done(op, res, flags);
        }
        break;
    case TAG_WATCH:
        slot_ready(l, p, res);
        break;
    case TAG_WAKE:
        l->wake_armed = false;
        atomic_store(&l->wake_pending, false); /* before the call: a wake from now on makes another one */
        if (!l->closing)
            wake_arm(l);
        if (l->on_wake)
            l->on_wake(l->on_wake_arg);
        break;
    case TAG_TIMER:
        l->alarm_ns = INT64_MAX;
        break;
    default:
        break;
    }
}

static int wait_for(struct hapi_loop *l, int64_t timeout_ns)
{
    struct io_uring_cqe *cqe;
    int rc;

    alarm_set(l);
    if (timeout_ns == 0) {
        rc = io_uring_submit_and_get_events(&l->ring);
    } else if (timeout_ns < 0) {
        rc = io_uring_submit_and_wait(&l->ring, 1);
    } else {
        struct __kernel_timespec t = {.tv_sec = timeout_ns / HAPI_NS_PER_S,
                                      .tv_nsec = timeout_ns % HAPI_NS_PER_S};
        rc = io_uring_submit_and_wait_timeout(&l->ring, &cqe, 1, &t, NULL);
    }
    return rc == -ETIME || rc == -EINTR || rc == -EAGAIN || rc == -EBUSY ? 0 : rc;
}

int hapi_loop_run_once(struct hapi_loop *l, int64_t timeout_ns, struct hapi_err *err)
{
    struct io_uring_cqe *cqe;

    if (timeout_ns && l->pollers && ((l->busy_ns && pollers_busy(l, timeout_ns)) || pollers_round(l, true))) {
        alarm_set(l);
        if (!io_uring_sq_ready(&l->ring) && !ring_has_something(l))
            return 0; /* nothing for the kernel, nothing from it */
        timeout_ns = 0;
    } else if (!timeout_ns) {
        pollers_round(l, false);
    }
    int rc = wait_for(l, timeout_ns);
    if (rc < 0)
        return hapi_err_errno(err, -rc, "io_uring_enter failed");
    for (int n = 0; n < DISPATCH_MAX && io_uring_peek_cqe(&l->ring, &cqe) == 0 && cqe; n++) {
        uint64_t data = io_uring_cqe_get_data64(cqe);
        int res = cqe->res;
        uint32_t flags = cqe->flags;
        io_uring_cqe_seen(&l->ring, cqe);
        dispatch(l, data, res, flags);
    }
    timers_fire(l);
    return 0;
}

int hapi_loop_run(struct hapi_loop *l, struct hapi_err *err)
{
    int rc = 0;

    while (!rc && !atomic_load(&l->stop))
        rc = hapi_loop_run_once(l, -1, err);
    return rc;
}
