#include "pool.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

enum { CLOSE_POLL_NS = 1000000 };

/* Single producer, single consumer; capacity is a power of two. */
struct queue {
    struct hapi_job **slot;
    unsigned mask;
    _Atomic unsigned head, tail; /* consumer moves head, producer moves tail */
};

struct worker {
    struct hapi_pool *pool;
    pthread_t thread;
    int index, core, wake_fd;
    unsigned in_hand; /* submitted and not reaped; loop thread only */
    struct queue todo, finished;
};

struct hapi_pool {
    struct hapi_loop *loop;
    const struct hapi_topology *topology;
    int n, width;
    unsigned depth;
    _Atomic bool stop;
    struct hapi_job *_Atomic over; /* what devices have finished, the last one first */
    _Atomic unsigned telling;      /* threads of theirs that are in hapi_pool_over() */
    struct worker worker[];
};

static int queue_init(struct queue *q, unsigned depth)
{
    unsigned n = 1;

    while (n < depth)
        n *= 2;
    q->slot = calloc(n, sizeof *q->slot);
    q->mask = n - 1;
    return q->slot ? 0 : HAPI_ENOMEM;
}

static bool queue_push(struct queue *q, struct hapi_job *job)
{
    unsigned tail = atomic_load_explicit(&q->tail, memory_order_relaxed);

    if (tail - atomic_load_explicit(&q->head, memory_order_acquire) > q->mask)
        return false;
    q->slot[tail & q->mask] = job;
    atomic_store_explicit(&q->tail, tail + 1, memory_order_release);
    return true;
}

static struct hapi_job *queue_pop(struct queue *q)
{
    unsigned head = atomic_load_explicit(&q->head, memory_order_relaxed);

    if (head == atomic_load_explicit(&q->tail, memory_order_acquire))
        return NULL;
    struct hapi_job *job = q->slot[head & q->mask];
    atomic_store_explicit(&q->head, head + 1, memory_order_release);
    return job;
}

static void *work(void *arg)
{
    struct worker *w = arg;
    struct hapi_job *job;
    uint64_t n;

    if (w->pool->topology)
        (void)hapi_topology_pin(w->pool->topology, w->core, w->pool->width, NULL); /* cpusets may forbid it */
    for (;;) {
        while ((job = queue_pop(&w->todo))) {
            if (!job->run(job, w->index))
                continue; /* it may be over, and something else, by now */
            /* As deep as the todo queue and reaped before a slot is used again: there is room. */
            queue_push(&w->finished, job);
            hapi_loop_wake(w->pool->loop);
        }
        if (atomic_load(&w->pool->stop))
            return NULL;
        if (read(w->wake_fd, &n, sizeof n) < 0 && errno != EINTR)
            return NULL;
    }
}

static void worker_wake(struct worker *w)
{
    uint64_t one = 1;
    while (write(w->wake_fd, &one, sizeof one) < 0 && errno == EINTR)
        ;
}

static void worker_stop(struct worker *w)
{
    worker_wake(w);
    pthread_join(w->thread, NULL);
}

static void worker_fini(struct worker *w)
{
    if (w->wake_fd >= 0)
        close(w->wake_fd);
    free(w->todo.slot);
    free(w->finished.slot);
}

static int worker_init(struct worker *w, struct hapi_err *err)
{
    w->wake_fd = eventfd(0, EFD_CLOEXEC);
    if (w->wake_fd < 0)
        return hapi_err_errno(err, errno, "cannot open an eventfd");
    if (queue_init(&w->todo, w->pool->depth) || queue_init(&w->finished, w->pool->depth))
        return hapi_err_set(err, HAPI_ENOMEM, 0, "no memory for a compute thread's queues");
    int rc = pthread_create(&w->thread, NULL, work, w);
    return rc ? hapi_err_errno(err, rc, "cannot start a compute thread") : 0;
}

int hapi_pool_core(const struct hapi_topology *t, int width, int i)
{
    int places = hapi_topology_cores(t) / width;

    return i % (places ? places : 1) * width;
}

int hapi_pool_open(struct hapi_pool **out, struct hapi_loop *loop, int threads, unsigned depth,
                   const struct hapi_topology *topology, int width, struct hapi_err *err)
{
    if (threads < 1 || threads > 1024 || !depth || depth > 1u << 16 || width < 1)
        return hapi_err_set(err, HAPI_EINVAL, 0, "%d compute threads of depth %u and width %d", threads,
                            depth, width);
    struct hapi_pool *p = calloc(1, sizeof *p + (size_t)threads * sizeof p->worker[0]);
    if (!p)
        return hapi_err_set(err, HAPI_ENOMEM, 0, "no memory for %d compute threads", threads);
    p->loop = loop;
    p->topology = topology;
    p->depth = depth;
    p->width = width;
    for (int i = 0; i < threads; i++) {
        struct worker *w = &p->worker[i];
        *w = (struct worker){.pool = p, .index = i};
        w->core = topology ? hapi_pool_core(topology, width, i) : 0;
        int rc = worker_init(w, err);
        if (rc) {
            worker_fini(w);
            hapi_pool_close(p);
            return rc;
        }
        p->n++;
    }
    *out = p;
    return 0;
}

static unsigned in_hand(const struct hapi_pool *p)
{
    unsigned n = 0;

    for (int i = 0; i < p->n; i++)
        n += p->worker[i].in_hand;
    return n;
}

void hapi_pool_close(struct hapi_pool *p)
{
    if (!p)
        return;
    atomic_store(&p->stop, true);
    for (int i = 0; i < p->n; i++)
        worker_stop(&p->worker[i]);
    hapi_pool_reap(p);
    while (in_hand(p) || atomic_load(&p->telling)) { /* on a device */
        nanosleep(&(struct timespec){0, CLOSE_POLL_NS}, NULL);
        hapi_pool_reap(p);
    }
    for (int i = 0; i < p->n; i++)
        worker_fini(&p->worker[i]);
    free(p);
}

int hapi_pool_threads(const struct hapi_pool *p)
{
    return p->n;
}

int hapi_pool_submit(struct hapi_pool *p, struct hapi_job *job)
{
    struct worker *best = &p->worker[0];

    if (atomic_load(&p->stop))
        return HAPI_ECLOSED;
    for (int i = 1; i < p->n; i++)
        if (p->worker[i].in_hand < best->in_hand)
            best = &p->worker[i];
    job->worker = best->index;
    if (best->in_hand >= p->depth || !queue_push(&best->todo, job))
        return HAPI_EBUSY;
    best->in_hand++;
    worker_wake(best);
    return 0;
}

void hapi_pool_over(struct hapi_pool *p, struct hapi_job *job)
{
    atomic_fetch_add(&p->telling, 1); /* the pool and its loop stay until then */
    job->next = atomic_load_explicit(&p->over, memory_order_relaxed);
    while (!atomic_compare_exchange_weak_explicit(&p->over, &job->next, job, memory_order_release,
                                                  memory_order_relaxed))
        ;
    hapi_loop_wake(p->loop);
    atomic_fetch_sub(&p->telling, 1);
}

/* What devices have finished, in the order in which they did. */
static int over_reap(struct hapi_pool *p)
{
    struct hapi_job *last_first = atomic_exchange_explicit(&p->over, NULL, memory_order_acquire),
                    *list = NULL;
    int n = 0;

    while (last_first) {
        struct hapi_job *job = last_first;
        last_first = job->next;
        job->next = list;
        list = job;
    }
    for (struct hapi_job *job = list, *next; job; job = next, n++) {
        next = job->next;
        p->worker[job->worker].in_hand--;
        job->done(job);
    }
    return n;
}

int hapi_pool_reap(struct hapi_pool *p)
{
    struct hapi_job *job;
    int n = over_reap(p);

    for (int i = 0; i < p->n; i++)
        while ((job = queue_pop(&p->worker[i].finished))) {
            p->worker[i].in_hand--;
            n++;
            job->done(job);
        }
    return n;
}
