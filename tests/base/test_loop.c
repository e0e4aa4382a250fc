/* The event loop on the real kernel: reads, polls, timers, wake-ups from another thread. */
#include <fcntl.h>
#include <liburing.h>
#include <poll.h>
#include <pthread.h>
#include <unistd.h>

#include "check.h"
#include "clock.h"
#include "loop.h"

static struct hapi_loop *loop;

struct read_op {
    struct hapi_op op;
    int res, calls;
};

static void read_done(struct hapi_op *op, int res, uint32_t flags)
{
    struct read_op *r = (struct read_op *)op;
    (void)flags;
    r->res = res;
    r->calls++;
}

static void read__registered_buffer__bytes_arrive(void)
{
    struct hapi_slab slab;
    struct read_op r = {.op.done = read_done};
    struct hapi_err err = {0};
    char path[] = "/tmp/hapi-loop-XXXXXX";
    int fd = mkstemp(path);

    REQUIRE(fd >= 0 && write(fd, "near the data", 13) == 13);
    REQUIRE(hapi_slab_init(&slab, 1 << 20, &err) == 0);
    CHECKF(hapi_loop_register_slab(loop, &slab, &err) == 0, "%s", err.text);
    unsigned char *buf = hapi_slab_take(&slab, 4096, 4096);
    CHECK(hapi_loop_buffer_index(loop, buf, 4096) == 0);
    CHECK(hapi_loop_buffer_index(loop, slab.base + slab.size - 1, 2) == -1);
    CHECK(hapi_loop_buffer_index(loop, &slab, 1) == -1);
    struct io_uring_sqe *s = hapi_loop_sqe(loop);
    io_uring_prep_read_fixed(s, fd, buf, 13, 0, 0);
    hapi_loop_prep_end(loop, s, &r.op);
    CHECK(r.calls == 0);
    for (int i = 0; i < 100 && !r.calls; i++)
        REQUIRE(hapi_loop_run_once(loop, 10 * HAPI_NS_PER_MS, &err) == 0);
    CHECK(r.calls == 1 && r.res == 13 && !memcmp(buf, "near the data", 13));
    close(fd);
    unlink(path);
    hapi_slab_fini(&slab);
}

struct pipe_watch {
    struct hapi_watch w;
    int reads, unwatch_after;
    char last;
};

static void pipe_ready(struct hapi_watch *w, uint32_t revents)
{
    struct pipe_watch *p = (struct pipe_watch *)w;
    (void)revents;
    if (read(w->fd, &p->last, 1) == 1)
        p->reads++;
    if (p->reads == p->unwatch_after)
        hapi_loop_unwatch(w);
}

static void spin(int times)
{
    for (int i = 0; i < times; i++)
        REQUIRE(hapi_loop_run_once(loop, HAPI_NS_PER_MS, NULL) == 0);
}

static void watch__readable_again_and_again__ready_each_time(void)
{
    int fd[2];
    struct pipe_watch p = {.w.ready = pipe_ready, .w.events = POLLIN, .unwatch_after = 3};

    REQUIRE(pipe(fd) == 0);
    p.w.fd = fd[0];
    REQUIRE(hapi_loop_watch(loop, &p.w) == 0);
    spin(3);
    CHECK(p.reads == 0);
    REQUIRE(write(fd[1], "abcd", 4) == 4);
    spin(10);
    CHECK(p.reads == 3 && p.last == 'c'); /* unwatched from its own ready(): the fourth byte stays */
    REQUIRE(hapi_loop_watch(loop, &p.w) == 0);
    hapi_loop_unwatch(&p.w); /* never fires after this */
    spin(5);
    CHECK(p.reads == 3);
    p.w.events = POLLOUT; /* a read end is never writable; then ask for POLLIN while armed */
    REQUIRE(hapi_loop_watch(loop, &p.w) == 0);
    spin(2);
    CHECK(p.reads == 3);
    hapi_loop_watch_events(&p.w, POLLIN);
    spin(5);
    CHECK(p.reads == 4);
    hapi_loop_unwatch(&p.w);
    close(fd[0]);
    close(fd[1]);
}

struct tick {
    struct hapi_timer t;
    int fired, order, again;
};
static int fire_order;

static void tick_fire(struct hapi_timer *t)
{
    struct tick *k = (struct tick *)t;
    k->fired++;
    k->order = ++fire_order;
    if (k->again-- > 0)
        hapi_loop_timer_set(loop, t, hapi_clock_ns() + HAPI_NS_PER_MS);
}

static void timer__several__fire_in_order_and_can_be_moved(void)
{
    struct tick a = {.t.fire = tick_fire}, b = {.t.fire = tick_fire, .again = 2}, c = {.t.fire = tick_fire};
    int64_t now = hapi_clock_ns();

    hapi_loop_timer_set(loop, &a.t, now + 20 * HAPI_NS_PER_MS);
    hapi_loop_timer_set(loop, &b.t, now + 5 * HAPI_NS_PER_MS);
    hapi_loop_timer_set(loop, &c.t, now + HAPI_NS_PER_MS);
    hapi_loop_timer_clear(loop, &c.t);
    hapi_loop_timer_set(loop, &a.t, now + 10 * HAPI_NS_PER_MS);
    while (hapi_clock_ns() < now + 60 * HAPI_NS_PER_MS)
        REQUIRE(hapi_loop_run_once(loop, 5 * HAPI_NS_PER_MS, NULL) == 0);
    CHECK(a.fired == 1 && b.fired == 3 && c.fired == 0);
    CHECK(b.order < 99 && hapi_clock_ns() < now + 500 * HAPI_NS_PER_MS);
}

static _Atomic int woken;

static void on_wake(void *arg)
{
    woken += *(int *)arg;
}

static void *waker(void *arg)
{
    for (int i = 0; i < 1000; i++)
        hapi_loop_wake(arg);
    hapi_loop_stop(arg);
    return NULL;
}

static void wake__from_another_thread__loop_runs_and_stops(void)
{
    pthread_t t;
    int one = 1;

    hapi_loop_on_wake(loop, on_wake, &one);
    REQUIRE(pthread_create(&t, NULL, waker, loop) == 0);
    CHECK(hapi_loop_run(loop, NULL) == 0);
    pthread_join(t, NULL);
    CHECK(hapi_loop_run_once(loop, 0, NULL) == 0); /* it may have been stopped before its first round */
    CHECK(woken >= 1 && woken <= 1001);
}

/* ---- pollers ---- */

struct queue {
    struct hapi_poller p; /* first */
    int left, polled, armed, taken;
    struct queue *remove; /* when something is taken */
};

static bool queue_take(struct queue *q)
{
    bool found = q->left > 0;

    q->left -= found;
    q->taken += found;
    if (found && q->remove)
        hapi_loop_poller_remove(&q->remove->p);
    return found;
}

static bool queue_poll(struct hapi_poller *p)
{
    ((struct queue *)p)->polled++;
    return queue_take((struct queue *)p);
}

static bool queue_arm(struct hapi_poller *p)
{
    ((struct queue *)p)->armed++;
    return queue_take((struct queue *)p);
}

static void poller__before_sleep__armed_and_what_came_is_taken(void)
{
    struct queue q = {.p = {.poll = queue_poll, .arm = queue_arm}, .left = 2};

    hapi_loop_poller_add(loop, &q.p);
    int64_t from = hapi_clock_ns();
    for (int i = 0; i < 2; i++) /* it does not sleep */
        REQUIRE(hapi_loop_run_once(loop, 10 * HAPI_NS_PER_S, NULL) == 0);
    CHECK(q.taken == 2 && q.armed == 2 && hapi_clock_ns() - from < HAPI_NS_PER_S);
    REQUIRE(hapi_loop_run_once(loop, HAPI_NS_PER_MS, NULL) == 0);
    CHECK(q.armed == 3 && q.polled == 0); /* no busy time: nothing is looked at twice */
    q.left = 1;
    REQUIRE(hapi_loop_run_once(loop, 0, NULL) == 0);
    CHECK(q.armed == 3 && q.taken == 3); /* what there is without waiting: looked at, not armed */
    hapi_loop_poller_remove(&q.p);
    hapi_loop_poller_remove(&q.p);
    REQUIRE(hapi_loop_run_once(loop, HAPI_NS_PER_MS, NULL) == 0);
    CHECK(q.armed == 3);
}

static void poller__busy__looks_until_quiet_for_so_long_and_other_events_come_through(void)
{
    struct queue q = {.p = {.poll = queue_poll, .arm = queue_arm, .busy_ns = 5 * HAPI_NS_PER_MS}, .left = 1};
    struct tick t = {.t.fire = tick_fire};

    hapi_loop_poller_add(loop, &q.p);
    hapi_loop_poller_ready(&q.p);
    CHECK(q.taken == 1 && q.polled == 1);
    int64_t from = hapi_clock_ns();
    hapi_loop_timer_set(loop, &t.t, from + 2 * HAPI_NS_PER_MS);
    REQUIRE(hapi_loop_run_once(loop, HAPI_NS_PER_S, NULL) == 0);
    CHECK(t.fired == 1 && hapi_clock_ns() - from < 100 * HAPI_NS_PER_MS); /* timers are not held up */
    REQUIRE(hapi_loop_run_once(loop, 50 * HAPI_NS_PER_MS, NULL) == 0);
    int polled = q.polled, armed = q.armed;
    CHECK(polled > 3 && armed >= 1);
    REQUIRE(hapi_loop_run_once(loop, 10 * HAPI_NS_PER_MS, NULL) == 0);
    CHECK(q.polled == polled && q.armed == armed + 1); /* quiet for longer: it sleeps at once */
    hapi_loop_poller_ready(&q.p);
    hapi_loop_wake(loop);
    from = hapi_clock_ns();
    REQUIRE(hapi_loop_run_once(loop, HAPI_NS_PER_S, NULL) == 0);
    CHECK(hapi_clock_ns() - from < 500 * HAPI_NS_PER_MS);
    hapi_loop_poller_remove(&q.p);
}

static void poller__removed_in_a_round__not_called_any_more(void)
{
    struct queue a = {.p = {.poll = queue_poll, .arm = queue_arm}}, b = a, c = a;

    hapi_loop_poller_add(loop, &a.p);
    hapi_loop_poller_add(loop, &b.p);
    hapi_loop_poller_add(loop, &c.p); /* the order of a round: c, b, a */
    c.left = 1;
    c.remove = &b;
    REQUIRE(hapi_loop_run_once(loop, HAPI_NS_PER_MS, NULL) == 0);
    CHECK(c.armed == 1 && b.armed == 0 && a.armed == 1);
    c.left = 1;
    c.remove = &c;
    REQUIRE(hapi_loop_run_once(loop, HAPI_NS_PER_MS, NULL) == 0);
    REQUIRE(hapi_loop_run_once(loop, HAPI_NS_PER_MS, NULL) == 0);
    CHECK(c.armed == 2 && b.armed == 0 && a.armed == 3);
    hapi_loop_poller_remove(&a.p);
}

int main(void)
{
    struct hapi_err err = {0};
    if (hapi_loop_open(&loop, 64, &err)) {
        if (err.code == HAPI_EUNSUPPORTED)
            SKIP(err.text);
        fprintf(stderr, "%s\n", err.text);
        return 1;
    }
    CASE(read__registered_buffer__bytes_arrive);
    CASE(watch__readable_again_and_again__ready_each_time);
    CASE(timer__several__fire_in_order_and_can_be_moved);
    CASE(poller__before_sleep__armed_and_what_came_is_taken);
    CASE(poller__busy__looks_until_quiet_for_so_long_and_other_events_come_through);
    CASE(poller__removed_in_a_round__not_called_any_more);
    CASE(wake__from_another_thread__loop_runs_and_stops);
    hapi_loop_close(loop);
    return check_done();
}
