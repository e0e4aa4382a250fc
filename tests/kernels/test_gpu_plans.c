/* Execution plans that a device's users share, over tests/fake_cuda: those in use stay, of the others a node
 * that serves models without end keeps so many. */
#include "check.h"

#if HAPI_HAVE_CUDNN

#include <pthread.h>
#include <time.h>

#include "cudnn_plans.h"
#include "fake_gpu.h"
#include "gpu_device.h"

/* A pointwise graph of n numbers: for each n another. */
static int ask(struct hapi_cudnn_plans *p, int64_t n, int *plan)
{
    struct hapi_cudnn_graph g = {.name = "/relu/Relu"};
    const int64_t dim[4] = {n, 8, 1, 1}, stride[4] = {8, 1, 8, 8};
    int x = hapi_cudnn_tensor_add(&g, HAPI_F32, 4, dim, stride, false),
        y = hapi_cudnn_tensor_add(&g, HAPI_F32, 4, dim, stride, false);
    struct hapi_cudnn_op *op = hapi_cudnn_op_add(&g, HAPI_CUDNN_POINTWISE, y);
    uint64_t workspace = 0;

    op->mode = HAPI_CUDNN_SIGMOID;
    op->n_in = 1;
    op->in[0] = x;
    return hapi_cudnn_plans_make(p, &g, plan, &workspace, &err);
}

/* How often the plan of n numbers has been asked for, since it was made. */
static int uses(struct hapi_cudnn_plans *p, int64_t n)
{
    int plan = -1;

    REQUIRE(!ask(p, n, &plan));
    return hapi_cudnn_plans_get(p, (size_t)plan).uses;
}

static struct hapi_cuda_device *device(void)
{
    struct hapi_cuda_device *d = NULL;

    CHECKF(!hapi_cuda_device_get(&d, &err), "%s", err.text);
    REQUIRE(d && !hapi_cuda_enter(d, &err));
    return d;
}

static void put(struct hapi_cuda_device *d)
{
    hapi_cuda_leave(d);
    hapi_cuda_device_put(d);
    rules_kept(0);
}

static void plans__that_nobody_holds__are_bounded_and_the_longest_unused_go(void)
{
    struct hapi_cuda_device *d = device();
    struct hapi_cudnn_plans *p = d->plans;
    int plan = -1;

    for (int64_t n = 1; n <= HAPI_CUDNN_IDLE_MAX; n++)
        REQUIRE(!ask(p, n, &plan));
    hapi_cudnn_plans_trim(p);
    CHECK(hapi_cudnn_plans_count(p) == HAPI_CUDNN_IDLE_MAX);
    long live = report().live;
    CHECK(uses(p, 1) == 2); /* it is no longer the longest unused */
    for (int64_t n = 1; n <= 100; n++) {
        REQUIRE(!ask(p, 100000 + n, &plan));
        hapi_cudnn_plans_trim(p);
    }
    CHECKF(hapi_cudnn_plans_count(p) == HAPI_CUDNN_IDLE_MAX && report().live == live,
           "%zu plans, %ld things live, not %ld", hapi_cudnn_plans_count(p), report().live, live);
    CHECK(uses(p, 1) == 3);
    CHECK(uses(p, 102) == 2); /* the longest unused of those that are left */
    CHECK(uses(p, 101) == 1); /* it had gone: made anew */
    CHECK(uses(p, 100001) == 2);
    put(d);
}

static void plans__that_somebody_holds__stay_with_their_numbers(void)
{
    struct hapi_cuda_device *d = device();
    struct hapi_cudnn_plans *p = d->plans;
    int held = -1, other = -1;

    REQUIRE(!ask(p, 1, &held));
    hapi_cudnn_plans_hold(p, held);
    hapi_cudnn_plans_hold(p, held);
    const void *plan = hapi_cudnn_plans_get(p, (size_t)held).plan;
    for (int64_t n = 2; n <= 2 * HAPI_CUDNN_IDLE_MAX; n++) {
        REQUIRE(!ask(p, n, &other));
        CHECK(other != held);
        hapi_cudnn_plans_trim(p);
        CHECK(hapi_cudnn_plans_count(p) <= HAPI_CUDNN_IDLE_MAX + 1);
    }
    CHECK(hapi_cudnn_plans_get(p, (size_t)held).plan == plan && uses(p, 1) == 2);
    hapi_cudnn_plans_release(p, held);
    hapi_cudnn_plans_trim(p);
    CHECK(hapi_cudnn_plans_count(p) == HAPI_CUDNN_IDLE_MAX + 1);
    hapi_cudnn_plans_release(p, held); /* the newest of those that nobody holds */
    hapi_cudnn_plans_trim(p);
    CHECK(hapi_cudnn_plans_count(p) == HAPI_CUDNN_IDLE_MAX && uses(p, 1) == 3);
    put(d);
}

static int last_is_fastest(void *arg, const struct hapi_cudnn_graph *g, struct hapi_cudnn_plan *const *plans,
                           int n, int *best, struct hapi_err *e)
{
    (void)arg, (void)g, (void)plans, (void)e;
    *best = n - 1;
    return HAPI_OK;
}

/* A class of engines is one choice for each graph, as long as the process lives. */
static void plans__tuned_without_a_folder__stay(void)
{
    static const struct hapi_cudnn_tuner tuner = {.fastest = last_is_fastest};
    struct hapi_cuda_device *d = device();
    struct hapi_cudnn_plans *p;
    int plan = -1;

    REQUIRE(!hapi_cudnn_plans_new(&p, d->described, NULL, &err));
    hapi_cudnn_plans_tune(p, &tuner);
    for (int64_t n = 1; n <= HAPI_CUDNN_IDLE_MAX + 10; n++)
        REQUIRE(!ask(p, n, &plan));
    hapi_cudnn_plans_tune(p, NULL);
    for (int64_t n = 1; n <= HAPI_CUDNN_IDLE_MAX + 10; n++)
        REQUIRE(!ask(p, n, &plan));
    hapi_cudnn_plans_trim(p);
    CHECK(hapi_cudnn_plans_count(p) == 2 * HAPI_CUDNN_IDLE_MAX + 10);
    CHECK(uses(p, 1) == 1 && uses(p, HAPI_CUDNN_IDLE_MAX) == 2);
    hapi_cudnn_plans_tune(p, &tuner);
    CHECK(uses(p, 1) == 2);
    hapi_cudnn_plans_free(p);
    put(d);
}

/* A client's network in ever new micro-batches, while another one's plan is at work. */
static void node__serving_models_without_end__keeps_so_many(void)
{
    struct hapi_cuda_device *d = device();
    struct hapi_plan_spec spec = half;
    struct hapi_model *m = model();
    struct hapi_plan_memory said;
    struct hapi_plan *p;
    size_t most = 0;

    REQUIRE(!hapi_plan_new(&p, m, &half, &err));
    size_t in_use = hapi_cudnn_plans_count(d->plans), asked = in_use;
    REQUIRE(in_use > 2);
    while (asked < 2 * HAPI_CUDNN_IDLE_MAX) {
        spec.batch++;
        REQUIRE(!hapi_plan_memory_query(m, &spec, &said, &err));
        asked += in_use;
        size_t now = hapi_cudnn_plans_count(d->plans);
        most = now > most ? now : most;
    }
    printf("%zu plans made, at most %zu kept, %zu in use\n", asked, most, in_use);
    CHECKF(most <= HAPI_CUDNN_IDLE_MAX + 2 * in_use, "%zu plans kept", most);
    CHECKF(!run_once(p), "%s", err.text);
    hapi_plan_free(p);
    REQUIRE(!hapi_plan_memory_query(m, &spec, &said, &err)); /* who makes plans drops others */
    CHECK(hapi_cudnn_plans_count(d->plans) <= HAPI_CUDNN_IDLE_MAX + in_use);
    hapi_model_close(m);
    put(d);
}

/* Each call of making a model's plans fails once, when every plan made makes another one go. */
static void plans__dropped_while_calls_fail__leave_nothing(void)
{
    struct hapi_cuda_device *d = device();
    struct hapi_plan_spec spec = half;
    struct hapi_model *m = model();
    bool failed = true;
    int plan = -1;

    for (int64_t n = 1; n <= HAPI_CUDNN_IDLE_MAX; n++)
        REQUIRE(!ask(d->plans, n, &plan));
    long n = 1, live = report().live;
    for (; failed && n < 5000; n += CHECK_SANITIZED ? 23 : 1) {
        struct hapi_plan *p = NULL;
        spec.batch = 4 + n;
        fail_at(n, n % 2 ? CUDA_ERROR_OUT_OF_MEMORY : CUDA_ERROR_ILLEGAL_ADDRESS);
        long calls = report().calls;
        int rc = hapi_plan_new(&p, m, &spec, &err);
        if (!rc)
            rc = run_once(p);
        hapi_plan_free(p);
        failed = report().calls >= calls + n;
        fail_at(0, 0);
        CHECKF(!rc || *err.text, "an error without a word at call %ld", n);
        hapi_cudnn_plans_trim(d->plans);
        CHECK(hapi_cudnn_plans_count(d->plans) == HAPI_CUDNN_IDLE_MAX);
        struct fake_cuda_report r = report();
        CHECKF(!r.wrong && r.live == live, "call %ld: %ld rules broken (%s), %ld things live, not %ld", n,
               r.wrong, r.what, r.live, live);
        if (r.wrong || r.live != live)
            break;
    }
    printf("%ld calls, each failed once\n", n);
    CHECK(!failed && n > 100);
    hapi_model_close(m);
    put(d);
}

static void *making_one(void *arg)
{
    struct hapi_cuda_device *d = device();
    int plan = -1;

    (void)arg;
    hapi_cuda_plans_lock(d);
    CHECK(!ask(d->plans, 7, &plan));
    hapi_cudnn_plans_trim(d->plans);
    hapi_cuda_plans_unlock(d);
    hapi_cuda_leave(d);
    hapi_cuda_device_put(d);
    return NULL;
}

/* The thread that frees a plan may be the one that answers everybody. */
static void plan__freed_while_another_is_made__does_not_wait(void)
{
    struct hapi_cuda_device *d = device();
    struct hapi_model *m = model();
    struct hapi_plan *p;
    pthread_t thread;

    REQUIRE(!hapi_plan_new(&p, m, &half, &err));
    slow(10000);
    REQUIRE(!pthread_create(&thread, NULL, making_one, NULL));
    for (int i = 0; i < 5000 && !making(); i++)
        nanosleep(&(struct timespec){0, 1000000}, NULL);
    REQUIRE(making());
    hapi_plan_free(p);
    bool during = making();
    slow(0);
    CHECK(during);
    pthread_join(thread, NULL);
    hapi_model_close(m);
    put(d);
}

int main(void)
{
    if (fake_open())
        return 1;
    CASE(plans__that_nobody_holds__are_bounded_and_the_longest_unused_go);
    CASE(plans__that_somebody_holds__stay_with_their_numbers);
    CASE(plans__tuned_without_a_folder__stay);
    CASE(node__serving_models_without_end__keeps_so_many);
    CASE(plans__dropped_while_calls_fail__leave_nothing);
    CASE(plan__freed_while_another_is_made__does_not_wait);
    return check_done();
}

#else

int main(void)
{
    SKIP("this build has no cuDNN");
}

#endif
