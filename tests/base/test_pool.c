/* Compute threads on a real loop: every job is run once, on some worker, and answered once. */
#include <pthread.h>
#include <time.h>

#include "check.h"
#include "clock.h"
#include "pool.h"

struct counted {
    struct hapi_job job;
    int run, done, worker;
};

static bool run(struct hapi_job *job, int worker)
{
    struct counted *c = (struct counted *)job;
    c->run++;
    c->worker = worker;
    return true;
}

static void done(struct hapi_job *job)
{
    ((struct counted *)job)->done++;
}

static void reap(void *pool)
{
    hapi_pool_reap(*(struct hapi_pool **)pool);
}

static void submit__more_than_the_queues_hold__busy_then_all_done(void)
{
    enum { JOBS = 5000, DEPTH = 16, THREADS = 3 };
    static struct counted jobs[JOBS];
    struct hapi_loop *loop;
    struct hapi_pool *pool;
    struct hapi_err err = {0};
    int busy = 0, finished = 0, bad = 0;

    if (hapi_loop_open(&loop, 64, &err))
        SKIP(err.text);
    REQUIRE(hapi_pool_open(&pool, loop, THREADS, DEPTH, NULL, 1, &err) == 0);
    hapi_loop_on_wake(loop, reap, &pool);
    for (int i = 0; i < JOBS;) {
        jobs[i].job = (struct hapi_job){.run = run, .done = done};
        if (hapi_pool_submit(pool, &jobs[i].job) == 0) {
            i++;
            continue;
        }
        busy++;
        REQUIRE(hapi_loop_run_once(loop, 100 * HAPI_NS_PER_MS, &err) == 0);
    }
    int64_t until = hapi_clock_ns() + 5 * HAPI_NS_PER_S;
    while (finished < JOBS && hapi_clock_ns() < until) {
        hapi_loop_run_once(loop, 10 * HAPI_NS_PER_MS, &err);
        finished = 0;
        for (int i = 0; i < JOBS; i++)
            finished += jobs[i].done;
    }
    for (int i = 0; i < JOBS; i++)
        bad += jobs[i].run != 1 || jobs[i].done != 1 || jobs[i].worker < 0 || jobs[i].worker >= THREADS;
    CHECK(bad == 0);
    CHECK(busy > 0);
    hapi_pool_close(pool);
    hapi_loop_close(loop);
}

static void close__jobs_still_queued__run_and_answered(void)
{
    static struct counted jobs[8];
    struct hapi_loop *loop;
    struct hapi_pool *pool;
    int answered = 0;

    REQUIRE(hapi_loop_open(&loop, 64, NULL) == 0);
    REQUIRE(hapi_pool_open(&pool, loop, 2, 8, NULL, 1, NULL) == 0);
    for (int i = 0; i < 8; i++) {
        jobs[i].job = (struct hapi_job){.run = run, .done = done};
        REQUIRE(hapi_pool_submit(pool, &jobs[i].job) == 0);
    }
    hapi_pool_close(pool);
    for (int i = 0; i < 8; i++)
        answered += jobs[i].run == 1 && jobs[i].done == 1;
    CHECK(answered == 8);
    CHECK(hapi_pool_open(&pool, loop, 0, 8, NULL, 1, NULL) == HAPI_EINVAL);
    hapi_loop_close(loop);
}

/* ------------------------------------------------------------------ jobs that a device goes on with */

struct device_job {
    struct hapi_job job;
    struct hapi_pool *pool;
    pthread_t thread;
    int at_once, runs, done;
};

static void *device(void *arg)
{
    struct device_job *j = arg;

    if (!j->at_once)
        nanosleep(&(struct timespec){0, 1000000}, NULL);
    hapi_pool_over(j->pool, &j->job);
    return NULL;
}

static bool run_on_device(struct hapi_job *job, int worker)
{
    struct device_job *j = (struct device_job *)job;

    (void)worker;
    j->runs++;
    if (pthread_create(&j->thread, NULL, device, j))
        abort();
    return false;
}

static void device_done(struct hapi_job *job)
{
    ((struct device_job *)job)->done++;
}

static void run__that_a_device_finishes__is_answered_once_and_keeps_no_thread(void)
{
    enum { JOBS = 200 };
    static struct device_job jobs[JOBS];
    struct hapi_loop *loop;
    struct hapi_pool *pool;
    int finished = 0, bad = 0;

    REQUIRE(hapi_loop_open(&loop, 64, NULL) == 0);
    REQUIRE(hapi_pool_open(&pool, loop, 2, JOBS, NULL, 1, NULL) == 0);
    hapi_loop_on_wake(loop, reap, &pool);
    for (int i = 0; i < JOBS; i++) {
        jobs[i] = (struct device_job){.job = {.run = run_on_device, .done = device_done}, .pool = pool};
        jobs[i].at_once = i % 3 == 0;
        REQUIRE(hapi_pool_submit(pool, &jobs[i].job) == 0);
    }
    int64_t until = hapi_clock_ns() + 10 * HAPI_NS_PER_S;
    while (finished < JOBS / 2 && hapi_clock_ns() < until) { /* the rest is for close */
        hapi_loop_run_once(loop, 10 * HAPI_NS_PER_MS, NULL);
        finished = 0;
        for (int i = 0; i < JOBS; i++)
            finished += jobs[i].done;
    }
    hapi_pool_close(pool);
    for (int i = 0; i < JOBS; i++) {
        bad += jobs[i].runs != 1 || jobs[i].done != 1;
        pthread_join(jobs[i].thread, NULL);
    }
    CHECK(bad == 0);
    hapi_loop_close(loop);
}

int main(void)
{
    CASE(submit__more_than_the_queues_hold__busy_then_all_done);
    CASE(close__jobs_still_queued__run_and_answered);
    CASE(run__that_a_device_finishes__is_answered_once_and_keeps_no_thread);
    return check_done();
}
