/*
 * The host's side of the GPU back end, over a driver and a cuDNN that compute nothing (tests/fake_cuda): what
 * is taken is given back, work is waited for, memory is what was said, and any call may fail. What a GPU
 * computes is not tested here.
 */
#include "check.h"

#if HAPI_HAVE_CUDNN

#include <pthread.h>
#include <time.h>

#include "fake_gpu.h"
#include "int8.h"

static void backend__with_a_gpu__is_chosen_by_auto(void)
{
    CHECK(!strcmp(hapi_backend_choose("auto", &err), "cudnn"));
    CHECK(!strcmp(hapi_backend_choose("onednn", &err), "onednn"));
    CHECK(hapi_numeric_class("cudnn") && !strncmp(hapi_numeric_class("cudnn"), "cudnn/sm_90/9.19", 16));
    rules_kept(0);
}

static void plan__made_run_and_freed__leaves_nothing(void)
{
    struct hapi_model *m = model();
    struct hapi_plan *p, *q;
    struct hapi_plan_spec other = half;

    REQUIRE(!hapi_plan_new(&p, m, &half, &err));
    long copies = report().copies;
    for (int i = 0; i < 3; i++)
        CHECKF(!run_once(p), "%s", err.text);
    CHECK(report().copies == copies + 6); /* one in, one out */
    /* Another micro-batch brings an arena and no weights. */
    size_t before = report().bytes;
    other.batch = 1;
    REQUIRE(!hapi_plan_new(&q, m, &other, &err));
    struct hapi_plan_memory mem = hapi_plan_memory_get(q);
    CHECKF(report().bytes - before == mem.device_arena, "%zu more, arena %llu", report().bytes - before,
           (unsigned long long)mem.device_arena);
    CHECK(!mem.weights && !mem.arena && !mem.scratch);
    hapi_plan_free(p);
    CHECKF(!run_once(q), "%s", err.text);
    hapi_plan_free(q);
    hapi_model_close(m);
    rules_kept(0);
}

static void plan__memory__is_known_before(void)
{
    struct hapi_model *m = model();
    struct hapi_plan_memory said;
    struct hapi_plan *p;

    size_t before = report().bytes;
    REQUIRE(!hapi_plan_memory_query(m, &half, &said, &err));
    CHECK(report().bytes == before); /* a query takes none */
    REQUIRE(!hapi_plan_new(&p, m, &half, &err));
    CHECKF(report().bytes - before == said.device_weights + said.device_arena, "%zu taken, %llu said",
           report().bytes - before, (unsigned long long)(said.device_weights + said.device_arena));
    hapi_plan_free(p);
    hapi_model_close(m);
    rules_kept(0);
}

/* The n-th call fails, n = 1, 2, ... until none does; with a sanitizer one in 23, which takes as long. */
static void plan__any_call_fails__is_an_error_and_leaves_nothing(void)
{
    struct hapi_model *m = model();
    long n = 0;
    bool failed = true;

    for (; failed && n < 20000; n += CHECK_SANITIZED ? 23 : 1) {
        struct hapi_plan *p = NULL;
        fail_at(n + 1, n % 2 ? CUDA_ERROR_OUT_OF_MEMORY : CUDA_ERROR_ILLEGAL_ADDRESS);
        long calls = report().calls;
        int rc = hapi_plan_new(&p, m, &half, &err);
        if (!rc)
            rc = run_once(p);
        hapi_plan_free(p);
        failed = report().calls > calls + n;
        fail_at(0, 0);
        /* What fails while an engine is looked at costs that engine, and what fails in giving back is
         * nobody's error. */
        CHECKF(!rc || *err.text, "an error without a word at call %ld", n + 1);
        struct fake_cuda_report r = report();
        CHECKF(!r.wrong && !r.live, "call %ld: %ld rules broken (%s), %ld things live", n + 1, r.wrong,
               r.what, r.live);
        if (r.wrong || r.live)
            break;
    }
    printf("%ld calls, each failed once\n", n);
    CHECK(!failed && n > 100);
    hapi_model_close(m);
}

/* While another plan keeps the device open. */
static void plan__after_a_failure__is_as_if_nothing_had_been(void)
{
    struct hapi_model *m = model();
    struct hapi_plan_spec spec = half;
    struct hapi_plan *keeps, *p;
    bool failed = true;

    REQUIRE(!hapi_plan_new(&keeps, m, &half, &err));
    long before = report().launches;
    REQUIRE(!run_once(keeps));
    long launches = report().launches - before;
    for (long n = 1; failed && n < 5000; n++) {
        spec.batch = 4 + n;
        fail_at(n, CUDA_ERROR_OUT_OF_MEMORY);
        long calls = report().calls;
        int rc = hapi_plan_new(&p, m, &spec, &err);
        failed = report().calls >= calls + n;
        fail_at(0, 0);
        if (!rc) { /* another engine did, or nothing failed */
            hapi_plan_free(p);
            continue;
        }
        rc = hapi_plan_new(&p, m, &spec, &err);
        CHECKF(!rc, "after failing at call %ld: %s", n, err.text);
        if (rc)
            break;
        before = report().launches;
        CHECKF(!run_once(p), "%s", err.text);
        CHECKF(report().launches - before == launches, "%ld launches after failing at call %ld, not %ld",
               report().launches - before, n, launches);
        hapi_plan_free(p);
    }
    CHECK(!failed);
    hapi_plan_free(keeps);
    hapi_model_close(m);
    rules_kept(0);
}

/* A constant that is added, and a convolution's weights: the device has it in both orders. */
static void plan__of_a_constant_used_in_two_orders__has_both(void)
{
    struct build b = {.attrs = {.p = NULL}};
    struct hapi_plan_spec spec = {.dtype = HAPI_F32, .backend = "cudnn"};
    struct hapi_plan_memory said;
    struct hapi_model *m;
    struct hapi_plan *p;
    size_t size;

    INPUT(&b, "x", 3, 3, 3, 3);
    OUTPUT(&b, "y");
    WEIGHTS(&b, "w", 3, 3, 3, 3);
    build_node(&b, "Add", "/add", "x,w", "a");
    build_node(&b, "Conv", "/conv", "a,w", "y");
    void *bytes = build_finish(&b, 8, 13, &size);
    REQUIRE(!hapi_model_from_bytes(&m, bytes, size, NULL, &err));
    size_t before = report().bytes;
    REQUIRE(!hapi_plan_new(&p, m, &spec, &err));
    said = hapi_plan_memory_get(p);
    CHECKF(report().bytes - before == said.device_weights + said.device_arena, "%zu taken, %llu said",
           report().bytes - before, (unsigned long long)(said.device_weights + said.device_arena));
    hapi_plan_free(p);
    hapi_model_close(m);
    rules_kept(0);
}

/* softmax(x x^T) x. */
static long attention_launches(void)
{
    struct build b = {.attrs = {.p = NULL}};
    struct hapi_model *m;
    struct hapi_plan *p;
    size_t size;
    long before;

    INPUT(&b, "x", -1, 16, 8);
    OUTPUT(&b, "y");
    INTS(&b, "perm", 0, 2, 1);
    build_node(&b, "Transpose", "/turn", "x", "k");
    build_node(&b, "MatMul", "/scores", "x,k", "s");
    build_int(&b, "axis", -1);
    build_node(&b, "Softmax", "/softmax", "s", "p");
    build_node(&b, "MatMul", "/values", "p,x", "y");
    void *bytes = build_finish(&b, 8, 13, &size);
    REQUIRE(!hapi_model_from_bytes(&m, bytes, size, NULL, &err));
    if (hapi_plan_new(&p, m, &half, &err)) {
        CHECKF(0, "%s", err.text);
        return 0;
    }
    before = report().launches;
    CHECKF(!run_once(p), "%s", err.text);
    hapi_plan_free(p);
    hapi_model_close(m);
    return report().launches - before;
}

static void plan__of_an_older_cudnn__has_attention_in_parts(void)
{
    long whole = attention_launches(), parts;

    old(1);
    parts = attention_launches();
    old(0);
    CHECKF(whole && parts > whole, "%ld launches, %ld with an older one", whole, parts);
    rules_kept(0);
}

/* A stranger's file of two megabytes must not keep a node from making plans. */
static void plan__of_many_constants__is_made_soon(void)
{
    enum { ADDS = 40000, SECONDS = 3 };
    struct build b = {.attrs = {.p = NULL}};
    struct hapi_plan_spec spec = {.batch = 2, .dtype = HAPI_F32, .backend = "cudnn"};
    struct hapi_model *m;
    struct hapi_plan *p;
    size_t size;

    INPUT(&b, "x", -1, 8);
    OUTPUT(&b, "y");
    for (int i = 0; i < ADDS; i++) {
        char c[16], in[32], out[16];
        float v = (float)i + 0.5F;
        net_text(c, sizeof c, "c%d", i);
        net_text(in, sizeof in, i ? "a%d,c%d" : "x,c%d", i ? i - 1 : i, i);
        net_text(out, sizeof out, i + 1 < ADDS ? "a%d" : "y", i);
        build_initializer(&b, c, ONNX_F32, 1, (const int64_t[]){1}, &v, sizeof v);
        build_node(&b, "Add", out, in, out);
    }
    void *bytes = build_finish(&b, 8, 13, &size);
    REQUIRE(!hapi_model_from_bytes(&m, bytes, size, NULL, &err));
    clock_t start = clock();
    CHECKF(!hapi_plan_new(&p, m, &spec, &err), "%s", err.text);
    double took = (double)(clock() - start) / CLOCKS_PER_SEC;
    CHECKF(took < SECONDS * CHECK_SLOWDOWN, "%.1f s", took);
    printf("%d constants: %.1f s\n", ADDS, took);
    hapi_plan_free(p);
    hapi_model_close(m);
    rules_kept(0);
}

static void *other_plan(void *arg)
{
    struct hapi_err e;
    struct hapi_model *m = model();
    struct hapi_plan_spec spec = half;
    struct hapi_plan *p = NULL;

    spec.batch = 3;
    CHECKF(!hapi_plan_new(&p, m, &spec, &e), "%s", e.text);
    hapi_plan_free(p);
    hapi_model_close(m);
    return arg;
}

/* Making a plan takes seconds: nobody's images wait for somebody's model. */
static void plan__while_another_is_made__runs(void)
{
    struct hapi_model *m = model();
    struct hapi_plan *p;
    pthread_t thread;
    bool during;

    REQUIRE(!hapi_plan_new(&p, m, &half, &err));
    slow(10000);
    REQUIRE(!pthread_create(&thread, NULL, other_plan, NULL));
    for (int i = 0; i < 5000 && !making(); i++)
        nanosleep(&(struct timespec){0, 1000000}, NULL);
    REQUIRE(making());
    CHECKF(!run_once(p), "%s", err.text);
    during = making();
    slow(0);
    CHECK(during);
    pthread_join(thread, NULL);
    hapi_plan_free(p);
    hapi_model_close(m);
    rules_kept(0);
}

/* What a node makes of photos: bytes in, rows of int8 out. */
static void plan__of_bytes_to_the_wire__has_such_edges(void)
{
    static const struct hapi_transform transform = {.crop_h = 32, .crop_w = 32, .scale = 1, .std = {1, 1, 1}};
    struct hapi_model *m = model();
    struct hapi_plan_spec spec = half;
    const struct hapi_tensor_desc *in, *out;
    struct hapi_plan *p;

    spec.image = &transform;
    spec.wire = HAPI_I8;
    REQUIRE(!hapi_plan_new(&p, m, &spec, &err));
    REQUIRE(hapi_plan_inputs(p, &in) == 1 && hapi_plan_outputs(p, &out) == 1);
    CHECK(in->dtype == HAPI_U8 && in->shape.dim[0] == 4 && in->layout == HAPI_LAYOUT_NHWC);
    CHECK(out->dtype == HAPI_I8);
    void *x = calloc(1, edge_bytes(in)), *y = calloc(1, edge_bytes(out) * 5);
    REQUIRE(x && y);
    CHECKF(!hapi_plan_run(p, NULL, (const void *const[]){x}, (void *const[]){y}, &err), "%s", err.text);
    free(y);
    free(x);
    hapi_plan_free(p);
    CHECK(hapi_backend_converts("cudnn") && !hapi_backend_converts("onednn"));
    spec.backend = "onednn";
    spec.dtype = HAPI_F32;
    CHECK(hapi_plan_new(&p, m, &spec, &err) == HAPI_EUNSUPPORTED);
    hapi_model_close(m);
    rules_kept(0);
}

static void memory__pinned_and_unpinned__holds_the_device_meanwhile(void)
{
    static char slab[4096];

    REQUIRE(!hapi_backend_pin("cudnn", slab, sizeof slab, &err));
    CHECK(report().live > 1); /* the memory, and the device */
    hapi_backend_unpin("cudnn", slab);
    rules_kept(0);
    fail_at(10, CUDA_ERROR_OUT_OF_MEMORY);
    for (int i = 0; i < 12; i++) /* somewhere on the way in; then none fails */
        if (!hapi_backend_pin("cudnn", slab, sizeof slab, &err))
            hapi_backend_unpin("cudnn", slab);
    fail_at(0, 0);
    rules_kept(0);
    CHECK(!hapi_backend_pin("onednn", slab, sizeof slab, &err)); /* nothing to do */
    hapi_backend_unpin("onednn", slab);
}

/* A model for one sample runs once a sample: each run has its part of the bytes and its row, and no more. */
static void plan__of_a_model_for_one_sample__keeps_to_its_edges(void)
{
    static const struct hapi_transform transform = {.crop_h = 8, .crop_w = 8, .scale = 1, .std = {1, 1, 1}};
    static const enum hapi_dtype wires[] = {HAPI_F32, HAPI_F16, HAPI_I8};
    struct build b = {.attrs = {.p = NULL}};
    struct hapi_plan_spec spec = half;
    const struct hapi_tensor_desc *out;
    struct hapi_model *m;
    struct hapi_plan *p;
    size_t size;

    INPUT(&b, "x", 1, 3, 8, 8);
    OUTPUT(&b, "y");
    WEIGHTS(&b, "w", 5, 3, 3, 3);
    I64S(&b, "flat", 1, 180);
    build_node(&b, "Conv", "/conv", "x,w", "c");
    build_node(&b, "Reshape", "/flat", "c,flat", "y");
    void *model = build_finish(&b, 8, 13, &size);
    REQUIRE(!hapi_model_from_bytes(&m, model, size, NULL, &err));
    spec.image = &transform;
    for (size_t i = 0; i < sizeof wires / sizeof *wires; i++) {
        uint64_t row = 0;
        spec.wire = wires[i];
        REQUIRE(!hapi_plan_new(&p, m, &spec, &err));
        REQUIRE(hapi_plan_parts(p) == 4 && hapi_plan_outputs(p, &out) == 1);
        REQUIRE(!hapi_wire_row(&out->shape, wires[i], &row));
        size_t room = 16 * 1024;
        unsigned char *x = calloc(1, room), *y = malloc(room);
        REQUIRE(x && y && row * 4 < room);
        memset(y, 0xaa, room);
        /* What comes back is what the device has: its memory is not 0xaa. */
        CHECKF(!hapi_plan_run(p, NULL, (const void *const[]){x}, (void *const[]){y}, &err), "%s", err.text);
        size_t end = room;
        while (end && y[end - 1] == 0xaa)
            end--;
        CHECKF(end <= row * 4 && end > row * 3, "%s: bytes up to %zu written, rows end at %zu",
               hapi_dtype_name(wires[i]), end, (size_t)row * 4);
        free(y);
        free(x);
        hapi_plan_free(p);
    }
    hapi_model_close(m);
    rules_kept(0);
}

static void plan__in_int8__is_refused(void)
{
    struct hapi_model *m = model();
    struct hapi_plan_spec spec = half;
    struct hapi_plan *p;

    spec.dtype = HAPI_I8;
    CHECK(hapi_plan_new(&p, m, &spec, &err) == HAPI_EUNSUPPORTED && strstr(err.text, "i8"));
    hapi_model_close(m);
    rules_kept(0);
}

int main(void)
{
    if (fake_open())
        return 1;
    CASE(backend__with_a_gpu__is_chosen_by_auto);
    CASE(plan__made_run_and_freed__leaves_nothing);
    CASE(plan__memory__is_known_before);
    CASE(plan__any_call_fails__is_an_error_and_leaves_nothing);
    CASE(plan__after_a_failure__is_as_if_nothing_had_been);
    CASE(plan__of_a_constant_used_in_two_orders__has_both);
    CASE(plan__of_an_older_cudnn__has_attention_in_parts);
    CASE(plan__of_many_constants__is_made_soon);
    CASE(plan__while_another_is_made__runs);
    CASE(plan__of_bytes_to_the_wire__has_such_edges);
    CASE(memory__pinned_and_unpinned__holds_the_device_meanwhile);
    CASE(plan__of_a_model_for_one_sample__keeps_to_its_edges);
    CASE(plan__in_int8__is_refused);
    return check_done();
}

#else

int main(void)
{
    SKIP("this build has no cuDNN");
}

#endif
