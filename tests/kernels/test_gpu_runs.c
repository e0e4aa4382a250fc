/*
 * How plans run on a GPU and what memory they share, over a driver and a cuDNN that compute nothing
 * (tests/fake_cuda): one graph or launch by launch, runs that return before they are over, one block of
 * memory for all.
 */
#include "check.h"

#if HAPI_HAVE_CUDNN

#include <pthread.h>

#include "fake_gpu.h"

static const struct hapi_transform photo = {.crop_h = 32, .crop_w = 32, .scale = 1, .std = {1, 1, 1}};

/* ------------------------------------------------------------------ one graph, or launch by launch */

/* Graphs that a run of a new plan launches. */
static long graphs_of_a_run(struct hapi_model *m, long *launches)
{
    struct hapi_plan *p;

    REQUIRE(!hapi_plan_new(&p, m, &half, &err));
    struct fake_cuda_report before = report();
    CHECKF(!run_once(p), "%s", err.text);
    struct fake_cuda_report after = report();
    hapi_plan_free(p);
    *launches = after.launches - before.launches;
    return after.graphs - before.graphs;
}

static void plan__runs__as_a_graph_where_that_is_faster(void)
{
    struct hapi_model *m = model();
    long launches, alone;

    CHECK(graphs_of_a_run(m, &launches) == 1);
    graphs_slow(1);
    CHECK(graphs_of_a_run(m, &alone) == 0);
    CHECKF(launches > 2 && launches == alone, "%ld launches in a graph, %ld without", launches, alone);
    setenv("HAPI_CUDA_GRAPHS", "1", 1);
    CHECK(graphs_of_a_run(m, &alone) == 1);
    graphs_slow(0);
    setenv("HAPI_CUDA_GRAPHS", "0", 1);
    CHECK(graphs_of_a_run(m, &alone) == 0 && launches == alone);
    unsetenv("HAPI_CUDA_GRAPHS");
    hapi_model_close(m);
    rules_kept(0);
}

/* ------------------------------------------------------------------ runs that return before they are over */

struct run {
    pthread_mutex_t lock;
    pthread_cond_t over;
    int done;
    unsigned char *x, *y;
};

static void run_done(void *arg)
{
    struct run *r = arg;

    pthread_mutex_lock(&r->lock);
    r->done++;
    pthread_cond_signal(&r->over);
    pthread_mutex_unlock(&r->lock);
}

static void run_wait(struct run *r)
{
    pthread_mutex_lock(&r->lock);
    while (!r->done)
        pthread_cond_wait(&r->over, &r->lock);
    r->done--;
    pthread_mutex_unlock(&r->lock);
}

static struct run run_of(const struct hapi_plan *p)
{
    const struct hapi_tensor_desc *in, *out;
    struct run r = {.lock = PTHREAD_MUTEX_INITIALIZER, .over = PTHREAD_COND_INITIALIZER};

    REQUIRE(hapi_plan_inputs(p, &in) == 1 && hapi_plan_outputs(p, &out) == 1);
    r.x = calloc(1, edge_bytes(in));
    r.y = calloc(1, edge_bytes(out));
    REQUIRE(r.x && r.y);
    return r;
}

static void run_free(struct run *r)
{
    free(r->x);
    free(r->y);
}

static int run_start(struct hapi_plan *p, struct run *r)
{
    return hapi_plan_start(p, (const void *const[]){r->x}, (void *const[]){r->y}, run_done, r, &err);
}

static void plan__started__says_when_it_is_over(void)
{
    struct hapi_model *m = model();
    struct hapi_plan *p;

    REQUIRE(!hapi_plan_new(&p, m, &half, &err));
    CHECK(hapi_plan_starts(p));
    struct run r = run_of(p);
    for (int i = 0; i < 3; i++) {
        CHECKF(!run_start(p, &r), "%s", err.text);
        run_wait(&r);
        CHECKF(!hapi_plan_finish(p, &err), "%s", err.text);
    }
    CHECKF(!run_start(p, &r), "%s", err.text); /* freed while it runs: waited for */
    hapi_plan_free(p);
    run_wait(&r);
    run_free(&r);
    hapi_model_close(m);
    rules_kept(0);
}

/* Each call of starting and of the run itself fails: either start says so, or finish, after done(). */
static void plan__started__fails_in_start_or_in_finish(void)
{
    struct hapi_model *m = model();
    struct hapi_plan *p;
    long in_start = 0, in_finish = 0;

    REQUIRE(!hapi_plan_new(&p, m, &half, &err));
    struct run r = run_of(p);
    for (long n = 1;; n++) {
        fail_at(n, CUDA_ERROR_ILLEGAL_ADDRESS);
        long calls = report().calls;
        int rc = run_start(p, &r);
        in_start += rc != 0;
        if (!rc) {
            run_wait(&r);
            rc = hapi_plan_finish(p, &err);
            in_finish += rc != 0;
        }
        bool failed = report().calls >= calls + n;
        fail_at(0, 0);
        if (!failed)
            break;
        CHECKF(rc == HAPI_ESYS && strstr(err.text, "CUDA_ERROR"), "call %ld: %d %s", n, rc, err.text);
        CHECK(!r.done);
    }
    CHECKF(in_start >= 3 && in_finish == 1, "%ld in start, %ld in finish", in_start, in_finish);
    CHECKF(!run_once(p), "%s", err.text);
    hapi_plan_free(p);
    run_free(&r);
    hapi_model_close(m);
    rules_kept(0);
}

static void plan__of_photos__has_pinned_memory_for_them(void)
{
    struct hapi_plan_spec spec = half;
    struct hapi_model *m = model();
    struct hapi_plan *p;

    REQUIRE(!hapi_plan_new(&p, m, &spec, &err));
    CHECK(!hapi_plan_input_memory(p, 0));
    hapi_plan_free(p);
    spec.image = &photo;
    REQUIRE(!hapi_plan_new(&p, m, &spec, &err));
    void *pinned = hapi_plan_input_memory(p, 0);
    REQUIRE(pinned);
    memset(pinned, 1, (size_t)4 * 32 * 32 * 3); /* a sanitizer knows how long it is */
    struct run r = run_of(p);
    CHECKF(!hapi_plan_start(p, (const void *const[]){pinned}, (void *const[]){r.y}, run_done, &r, &err), "%s",
           err.text);
    run_wait(&r);
    CHECK(!hapi_plan_finish(p, &err));
    hapi_plan_free(p);
    run_free(&r);
    hapi_model_close(m);
    rules_kept(0);
}

static void plan__of_a_cpu__does_not_start(void)
{
    struct hapi_plan_spec spec = {.batch = 2, .dtype = HAPI_F32, .backend = "ref"};
    struct hapi_model *m = model();
    struct hapi_plan *p;

    REQUIRE(!hapi_plan_new(&p, m, &spec, &err));
    struct run r = run_of(p);
    CHECK(!hapi_plan_starts(p) && !hapi_plan_input_memory(p, 0));
    CHECK(run_start(p, &r) == HAPI_EUNSUPPORTED);
    hapi_plan_free(p);
    run_free(&r);
    hapi_model_close(m);
}

/* ------------------------------------------------------------------ one block of memory for all */

enum { MIB = 1 << 20 };

static void memory__reserved__is_taken_once_and_shared(void)
{
    struct hapi_plan_spec spec = half;
    struct hapi_device_usage u;
    struct hapi_model *m = model();
    struct hapi_plan *p[8];

    REQUIRE(!hapi_backend_reserve("cudnn", 64 * MIB, &err));
    size_t taken = report().bytes;
    CHECK(taken == 64 * MIB);
    REQUIRE(hapi_backend_usage("cudnn", &u) && u.reserved == 64 * MIB && u.used == 0);
    CHECK(hapi_backend_reserve("cudnn", 0, &err) == HAPI_EBUSY);
    uint64_t said = 0;
    for (int i = 0; i < 8; i++) {
        spec.batch = i + 1;
        REQUIRE(!hapi_plan_new(&p[i], m, &spec, &err));
        CHECKF(!run_once(p[i]), "%s", err.text);
        struct hapi_plan_memory mem = hapi_plan_memory_get(p[i]);
        said += mem.device_arena + (i ? 0 : mem.device_weights);
    }
    REQUIRE(hapi_backend_usage("cudnn", &u));
    CHECKF(u.used == said, "%llu used, %llu said", (unsigned long long)u.used, (unsigned long long)said);
    CHECK(report().bytes == taken);
    static const int order[8] = {3, 1, 2, 7, 0, 6, 4, 5}; /* neighbours on either side, free or not */
    for (int i = 0; i < 8; i++)
        hapi_plan_free(p[order[i]]);
    REQUIRE(hapi_backend_usage("cudnn", &u) && u.used == 0);
    hapi_model_close(m);
    hapi_backend_release("cudnn");
    rules_kept(0);
    CHECK(!hapi_backend_reserve("onednn", 1, &err) && !hapi_backend_usage("onednn", &u)); /* nothing to do */
    hapi_backend_release("onednn");
}

/* What is given back comes together again: a plan of all that there is fits afterwards. */
static void memory__given_back__is_one_piece_again(void)
{
    struct hapi_plan_spec spec = half;
    struct hapi_plan_memory mem;
    struct hapi_model *m = model();
    struct hapi_plan *p[4], *q;

    spec.batch = 64;
    REQUIRE(!hapi_plan_memory_query(m, &spec, &mem, &err));
    REQUIRE(!hapi_backend_reserve("cudnn", mem.device_weights + mem.device_arena, &err));
    REQUIRE(!hapi_plan_new(&q, m, &spec, &err)); /* to the last byte */
    hapi_plan_free(q);
    spec.batch = 8;
    for (int i = 0; i < 4; i++)
        REQUIRE(!hapi_plan_new(&p[i], m, &spec, &err));
    for (int i = 0; i < 4; i += 2)
        hapi_plan_free(p[i]);
    spec.batch = 64;
    CHECK(hapi_plan_new(&q, m, &spec, &err) == HAPI_ENOMEM);
    CHECKF(strstr(err.text, "a plan: ") && strstr(err.text, "in one piece"), "%s", err.text);
    for (int i = 1; i < 4; i += 2)
        hapi_plan_free(p[i]);
    CHECKF(!hapi_plan_new(&q, m, &spec, &err), "%s", err.text);
    hapi_plan_free(q);
    hapi_model_close(m);
    hapi_backend_release("cudnn");
    rules_kept(0);
}

static void memory__too_much_of_it__is_refused_with_what_there_is(void)
{
    struct hapi_device_usage u;

    CHECK(hapi_backend_reserve("cudnn", 1ULL << 40, &err) == HAPI_ENOMEM);
    CHECKF(strstr(err.text, "1024 of 1024 MiB are free"), "%s", err.text);
    rules_kept(0);
    REQUIRE(!hapi_backend_reserve("cudnn", 0, &err)); /* all but a sixteenth and 512 MiB */
    REQUIRE(hapi_backend_usage("cudnn", &u) && u.reserved == (1024 - 64 - 512) * (uint64_t)MIB);
    hapi_backend_release("cudnn");
    rules_kept(0);
    for (long n = 1, failed = 1; failed && n < 1000; n++) {
        fail_at(n, CUDA_ERROR_OUT_OF_MEMORY);
        failed = hapi_backend_reserve("cudnn", MIB, &err);
        fail_at(0, 0);
        if (!failed)
            hapi_backend_release("cudnn");
        rules_kept(0);
    }
}

/* ------------------------------------------------------------------ for a NIC */

/* Rows are written to where a NIC reads them, and not beside. */
static void memory__of_a_nic__takes_the_rows(void)
{
    enum { BYTES = 1 << 20 };
    struct hapi_device_memory d, more;
    struct hapi_model *m = model();
    const struct hapi_tensor_desc *out;
    struct hapi_plan *p;

    REQUIRE(!hapi_backend_device_memory("cudnn", BYTES, &d, &err));
    CHECK(d.bytes >= BYTES && d.dmabuf == -1);
    CHECK(hapi_backend_device_memory("cudnn", 1, &more, &err) == HAPI_EBUSY);
    REQUIRE(!hapi_plan_new(&p, m, &half, &err));
    REQUIRE(hapi_plan_outputs(p, &out) == 1);
    size_t row = edge_bytes(out), beside = 0;
    unsigned char *at = d.base; /* the fake's is the host's */
    memset(at, 0xaa, d.bytes);
    struct run r = run_of(p);
    CHECKF(!hapi_plan_start(p, (const void *const[]){r.x}, (void *const[]){at + 4096}, run_done, &r, &err),
           "%s", err.text);
    run_wait(&r);
    CHECK(!hapi_plan_finish(p, &err));
    for (size_t i = 0; i < d.bytes; i++)
        beside += at[i] != 0xaa && (i < 4096 || i >= 4096 + row);
    CHECK(!beside && at[4096] == FAKE_CUDA_FILL && at[4096 + row - 1] == FAKE_CUDA_FILL);
    hapi_plan_free(p);
    run_free(&r);
    hapi_model_close(m);
    hapi_backend_device_memory_free("cudnn", &d);
    rules_kept(0);
    CHECK(hapi_backend_device_memory("onednn", 1, &d, &err) == HAPI_EUNSUPPORTED);
    for (long n = 1, failed = 1; failed && n < 1000; n++) {
        fail_at(n, CUDA_ERROR_OUT_OF_MEMORY);
        failed = hapi_backend_device_memory("cudnn", BYTES, &d, &err);
        fail_at(0, 0);
        if (!failed)
            hapi_backend_device_memory_free("cudnn", &d);
        rules_kept(0);
    }
}

int main(void)
{
    if (fake_open())
        return 1;
    CASE(plan__runs__as_a_graph_where_that_is_faster);
    CASE(plan__started__says_when_it_is_over);
    CASE(plan__started__fails_in_start_or_in_finish);
    CASE(plan__of_photos__has_pinned_memory_for_them);
    CASE(plan__of_a_cpu__does_not_start);
    CASE(memory__reserved__is_taken_once_and_shared);
    CASE(memory__given_back__is_one_piece_again);
    CASE(memory__too_much_of_it__is_refused_with_what_there_is);
    CASE(memory__of_a_nic__takes_the_rows);
    return check_done();
}

#else

int main(void)
{
    SKIP("this build has no cuDNN");
}

#endif
