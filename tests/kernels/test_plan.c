/* Plans on every back end: edges, memory, weights shared between batches, the heap, errors. */
#include <malloc.h>
#include <pthread.h>

#include "check.h"
#include "memory.h"
#include "networks.h"

static const char *const backends[] = {"ref", "onednn"};
enum { BACKENDS = sizeof backends / sizeof *backends };

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define COUNT_HEAP 0
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define COUNT_HEAP 0
#endif
#endif
#ifndef COUNT_HEAP
#define COUNT_HEAP 1
#endif

#if COUNT_HEAP
/* Heap calls, told apart by where they come from: this program (HAPI is linked into it) or a library. */
extern char __executable_start, etext;
extern void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void *, size_t),
    *__libc_memalign(size_t, size_t);
static _Thread_local long heap_ours, heap_library;

static void heap_count(const void *caller)
{
    if ((const char *)caller >= &__executable_start && (const char *)caller < &etext)
        heap_ours++;
    else
        heap_library++;
}

void *malloc(size_t n)
{
    heap_count(__builtin_return_address(0));
    return __libc_malloc(n);
}

void *calloc(size_t n, size_t size)
{
    heap_count(__builtin_return_address(0));
    return __libc_calloc(n, size);
}

void *realloc(void *p, size_t n)
{
    heap_count(__builtin_return_address(0));
    return __libc_realloc(p, n);
}

void *aligned_alloc(size_t align, size_t n)
{
    heap_count(__builtin_return_address(0));
    return __libc_memalign(align, n);
}

int posix_memalign(void **out, size_t align, size_t n)
{
    heap_count(__builtin_return_address(0));
    *out = __libc_memalign(align, n);
    return *out ? 0 : 12;
}
#endif

static struct hapi_plan_spec spec_of(const char *backend, int64_t batch)
{
    return (struct hapi_plan_spec){.batch = batch, .dtype = HAPI_F32, .backend = backend};
}

static bool built(const char *backend)
{
    return hapi_numeric_class(backend) != NULL;
}

/* Lifetimes that meet never share a byte; the total is the largest end. */
static void memory_place__random_lifetimes__never_overlap(void)
{
    enum { N = 200 };
    struct hapi_lifetime it[N];
    size_t total, sum = 0, top = 0;
    struct hapi_err err;

    net_state = 99;
    for (int i = 0; i < N; i++) {
        int first = (int)((net_random() + 1) * 50), length = (int)((net_random() + 1) * 6);
        it[i] = (struct hapi_lifetime){(size_t)((net_random() + 1) * 5000), first, first + length, 1};
        sum += (it[i].bytes + 63) / 64 * 64;
    }
    REQUIRE(hapi_memory_place(it, N, &total, &err) == HAPI_OK);
    for (int i = 0; i < N; i++) {
        CHECK(it[i].offset % HAPI_MEMORY_ALIGN == 0);
        top = it[i].offset + it[i].bytes > top ? it[i].offset + it[i].bytes : top;
        for (int k = 0; k < i; k++) {
            bool meet = it[i].first <= it[k].last && it[k].first <= it[i].last && it[i].bytes && it[k].bytes;
            CHECK(!meet || it[i].offset + it[i].bytes <= it[k].offset ||
                  it[k].offset + it[k].bytes <= it[i].offset);
        }
    }
    CHECK(top <= total && total < top + 64 && total < sum / 3);
}

static void memory_place__absurd_sizes__are_an_error(void)
{
    struct hapi_lifetime it[2] = {{SIZE_MAX / 2, 0, 1, 0}, {SIZE_MAX / 2, 0, 1, 0}};
    struct hapi_err err;
    size_t total;
    CHECK(hapi_memory_place(it, 2, &total, &err) == HAPI_ETOOBIG);
}

static void edges__nhwc_unless_plain_io__same_numbers(const char *backend)
{
    struct hapi_model *m = net_mobile(32, false);
    struct hapi_plan_spec spec = spec_of(backend, 2);
    struct hapi_err err = {0};
    struct net_plan nhwc, plain;

    spec.to = "b2";
    REQUIRE(net_plan_open(&nhwc, m, &spec, &err) == 0);
    spec.plain_io = true;
    REQUIRE(net_plan_open(&plain, m, &spec, &err) == 0);
    CHECK(nhwc.in->layout == HAPI_LAYOUT_NHWC && plain.in->layout == HAPI_LAYOUT_PLAIN);
    CHECK(nhwc.out->layout == HAPI_LAYOUT_NHWC && plain.out->layout == HAPI_LAYOUT_PLAIN);
    CHECK(hapi_shape_equal(&nhwc.out->shape, &plain.out->shape) && nhwc.out->shape.dim[1] == 24);
    size_t n = net_elements(nhwc.in), out = net_elements(nhwc.out);
    float *x = net_input(n, 5), *last = net_aligned(n * 4),
          *y[2] = {net_aligned(out * 4), net_aligned(out * 4)};
    for (int i = 0; i < 2; i++)
        for (int c = 0; c < 3; c++)
            for (int p = 0; p < 32 * 32; p++)
                last[(i * 32 * 32 + p) * 3 + c] = x[(i * 3 + c) * 32 * 32 + p];
    const void *in[2] = {last, x};
    void *to[2] = {y[0], y[1]};
    CHECK(hapi_plan_run(nhwc.plan, nhwc.arena, &in[0], &to[0], &err) == 0);
    CHECK(hapi_plan_run(plain.plan, plain.arena, &in[1], &to[1], &err) == 0);
    size_t area = (size_t)(nhwc.out->shape.dim[2] * nhwc.out->shape.dim[3]);
    for (size_t i = 0; i < 2; i++)
        for (size_t c = 0; c < 24; c++)
            for (size_t p = 0; p < area; p++)
                CHECK(y[0][(i * area + p) * 24 + c] == y[1][(i * 24 + c) * area + p]);
    free(y[1]);
    free(y[0]);
    free(last);
    free(x);
    net_plan_close(&plain);
    net_plan_close(&nhwc);
    hapi_model_close(m);
}

/* A cut of two tensors: edges come in the order of their names, whatever the graph's order. */
static void edges__cut_of_two_tensors__in_order_of_names(const char *backend)
{
    struct build b = {0};
    struct hapi_err err = {0};
    struct net_plan a, c, whole;

    net_state = 3;
    INPUT(&b, "x", -1, 8);
    build_node(&b, "Relu", "zz", "x", "zz");
    build_node(&b, "Sigmoid", "aa", "x", "aa");
    build_node(&b, "Sub", "y", "zz,aa", "y");
    OUTPUT(&b, "y");
    struct hapi_model *m = net_finish(&b);
    struct hapi_plan_spec spec = spec_of(backend, 4);
    REQUIRE(net_plan_open(&whole, m, &spec, &err) == 0);
    spec.to = "aa,zz";
    int rc = net_plan_open(&a, m, &spec, &err);
    CHECKF(rc == 0, "%s", err.text);
    spec.from = "zz,aa"; /* any order names the same cut */
    spec.to = NULL;
    rc = net_plan_open(&c, m, &spec, &err);
    CHECKF(rc == 0, "%s", err.text);
    REQUIRE(a.n_out == 2 && c.n_in == 2);
    CHECK(!strcmp(a.out[0].name, "aa") && !strcmp(a.out[1].name, "zz"));
    CHECK(!strcmp(c.in[0].name, "aa") && !strcmp(c.in[1].name, "zz"));
    float *x = net_input(32, 6), t[2][32], y[2][32];
    const void *in[1] = {x}, *mid[2] = {t[0], t[1]};
    void *mid_out[2] = {t[0], t[1]}, *out[2] = {y[0], y[1]};
    CHECK(!hapi_plan_run(whole.plan, whole.arena, in, &out[0], &err));
    CHECK(!hapi_plan_run(a.plan, a.arena, in, mid_out, &err));
    CHECK(!hapi_plan_run(c.plan, c.arena, mid, &out[1], &err));
    CHECK(net_same(y[0], y[1], sizeof y[0]));
    for (int i = 0; i < 32; i++)
        CHECK(t[1][i] == (x[i] > 0 ? x[i] : 0));
    free(x);
    net_plan_close(&c);
    net_plan_close(&a);
    net_plan_close(&whole);
    hapi_model_close(m);
}

static void memory_query__before_compiling__says_what_the_plan_takes(const char *backend)
{
    struct hapi_model *m = net_resnet(64);
    struct hapi_err err = {0};

    for (int64_t batch = 1; batch <= 8; batch *= 2) {
        struct hapi_plan_spec spec = spec_of(backend, batch);
        struct hapi_plan_memory q, got;
        struct net_plan p;
        REQUIRE(hapi_plan_memory_query(m, &spec, &q, &err) == 0);
        REQUIRE(net_plan_open(&p, m, &spec, &err) == 0);
        got = hapi_plan_memory_get(p.plan);
        CHECK(q.weights == got.weights && q.arena == got.arena && q.scratch == got.scratch);
        /* At least the largest activation, 64 channels of 32x32; at most what ref takes for the whole batch
         * (onednn works in place, and on a part of the batch at a time). */
        CHECK(q.arena >= 64 * 32 * 32 * 4 && q.arena < (uint64_t)batch * 3 * 64 * 32 * 32 * 4);
        CHECK(q.weights > 1000000 && q.weights < 1500000);
        net_plan_close(&p);
    }
    hapi_model_close(m);
}

/* Activations that outgrow the cache make the plan run in parts: the arena stops growing with the batch.
 * Edges are those of the whole micro-batch all the same. */
static void tiles__large_activations__arena_of_a_part(void)
{
    struct hapi_model *m = net_mobile(224, true);
    struct hapi_plan_spec spec = spec_of("onednn", 1);
    struct hapi_plan_memory one, many, plain;
    struct hapi_err err = {0};
    struct net_plan p;

    REQUIRE(hapi_plan_memory_query(m, &spec, &one, &err) == 0);
    spec.batch = 12;
    REQUIRE(net_plan_open(&p, m, &spec, &err) == 0);
    many = hapi_plan_memory_get(p.plan);
    CHECK(p.in->shape.dim[0] == 12 && p.out->shape.dim[0] == 12);
    CHECKF(many.arena < 4 * one.arena, "%zu bytes, %zu for one", (size_t)many.arena, (size_t)one.arena);
    spec.plain_io = true;
    REQUIRE(hapi_plan_memory_query(m, &spec, &plain, &err) == 0);
    CHECK(plain.arena > 10 * one.arena && plain.weights == many.weights);
    net_plan_close(&p);
    hapi_model_close(m);
}

/* Only rows of the samples that are there matter: what else is in the batch changes nothing. */
static void run__stale_rows__do_not_touch_the_others(const char *backend)
{
    struct hapi_model *m = net_transformer(32);
    struct hapi_plan_spec spec = spec_of(backend, 4);
    struct hapi_err err = {0};
    struct net_plan p;

    REQUIRE(net_plan_open(&p, m, &spec, &err) == 0);
    size_t n = net_elements(p.in);
    float *x = net_input(n, 12), y[2][40];
    const void *in[1] = {x};
    void *out[2] = {y[0], y[1]};
    CHECK(!hapi_plan_run(p.plan, p.arena, in, &out[0], &err));
    for (size_t i = n / 2; i < n; i++)
        x[i] = 1000 * (float)(i % 7);
    CHECK(!hapi_plan_run(p.plan, p.arena, in, &out[1], &err));
    CHECK(net_same(y[0], y[1], 20 * sizeof(float)));
    CHECK(!net_same(y[0] + 20, y[1] + 20, 20 * sizeof(float)));
    free(x);
    net_plan_close(&p);
    hapi_model_close(m);
}

#if COUNT_HEAP
static void no_heap_call(struct hapi_model *m, const char *backend, int64_t batch)
{
    struct hapi_plan_spec spec = spec_of(backend, batch);
    struct hapi_err err = {0};
    struct net_plan p;
    long library[2];

    REQUIRE(net_plan_open(&p, m, &spec, &err) == 0);
    float *x[2] = {net_input(net_elements(p.in), 1), net_input(net_elements(p.in), 2)};
    float *y = net_aligned(net_elements(p.out) * sizeof *y);
    void *out[1] = {y};
    for (int i = 0; i < 2; i++)
        CHECK(!hapi_plan_run(p.plan, p.arena, (const void *[]){x[i % 2]}, out, &err));
    long ours = heap_ours;
    for (int k = 0; k < 2; k++) {
        long before = heap_library;
        for (int i = 0; i < 50; i++)
            CHECK(!hapi_plan_run(p.plan, p.arena, (const void *[]){x[i % 2]}, out, &err));
        library[k] = heap_library - before;
    }
    CHECKF(heap_ours == ours, "%ld heap calls in 100 runs", heap_ours - ours);
    CHECKF(library[1] <= library[0], "library's heap calls grow: %ld, then %ld", library[0], library[1]);
    void *volatile probe = malloc(10);
    free(probe);
    CHECK(heap_ours == ours + 1); /* the counter works */
    free(y);
    free(x[0]);
    free(x[1]);
    net_plan_close(&p);
    hapi_model_close(m);
}

static void run__many_times__no_heap_call_of_ours(const char *backend)
{
    no_heap_call(net_transformer(32), backend, 2);
    no_heap_call(net_grouped(4), backend, 5); /* padded */
}

/* Bytes of anonymous memory that the process holds: the heap, and what is mapped beside it. */
static size_t resident(void)
{
    FILE *f = fopen("/proc/self/status", "r");
    char line[128];
    size_t kb = 0;

    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "RssAnon: %zu", &kb) == 1)
            break;
    if (f)
        fclose(f);
    return kb << 10;
}

/* Weights are reordered once: the plan of a second batch takes next to nothing, and it all comes back. */
static void weights__second_batch__shares_them(void)
{
    struct build b = {0};
    struct hapi_err err = {0};
    struct hapi_plan *p[3];
    size_t used[4];

    net_state = 4;
    INPUT(&b, "x", -1, 2048);
    net_gemm(&b, "x", "y", 2048, 2048);
    OUTPUT(&b, "y");
    struct hapi_model *m = net_finish(&b);
    struct hapi_plan_spec first = spec_of("ref", 1); /* what the model itself keeps once it is bound */
    REQUIRE(hapi_plan_new(&p[0], m, &first, &err) == 0);
    hapi_plan_free(p[0]);
    for (int i = 0; i < 3; i++) {
        struct hapi_plan_spec spec = spec_of("onednn", 1 + 7 * i);
        used[i] = resident();
        REQUIRE(hapi_plan_new(&p[i], m, &spec, &err) == 0);
    }
    used[3] = resident();
    CHECKF(used[1] - used[0] > 16 << 20, "first plan took %zu bytes", used[1] - used[0]);
    CHECKF(used[3] - used[1] < 8 << 20, "two more plans took %zu bytes", used[3] - used[1]);
    hapi_plan_free(p[0]);
    hapi_plan_free(p[2]);
    CHECK(resident() > used[0] + (16 << 20)); /* p[1] still has them */
    float *x = net_input((size_t)8 * 2048, 3), *y = net_aligned((size_t)8 * 2048 * 4);
    struct hapi_plan_memory mem = hapi_plan_memory_get(p[1]);
    void *arena = net_aligned(mem.arena + mem.scratch);
    CHECK(!hapi_plan_run(p[1], arena, (const void *[]){x}, (void *[]){y}, &err));
    free(arena);
    free(y);
    free(x);
    hapi_plan_free(p[1]);
    CHECKF(resident() < used[0] + (8 << 20), "%zu bytes before, %zu after", used[0], resident());
    hapi_model_close(m);
}
#endif

struct worker {
    struct hapi_plan *plan;
    void *arena;
    const float *x;
    float y[20];
    int rc;
};

static void *worker_run(void *arg)
{
    struct worker *w = arg;
    struct hapi_err err;

    for (int i = 0; i < 50 && !w->rc; i++)
        w->rc = hapi_plan_run(w->plan, w->arena, (const void *[]){w->x}, (void *[]){w->y}, &err);
    return NULL;
}

/* Each compute thread has its own plan; they share weights and nothing else. */
static void run__two_threads_with_plans_of_their_own__same_numbers(const char *backend)
{
    struct hapi_model *m = net_excite(32);
    struct hapi_plan_spec spec = spec_of(backend, 2);
    struct hapi_err err = {0};
    struct worker w[2] = {0};
    struct net_plan p[2];
    pthread_t thread[2];

    for (int i = 0; i < 2; i++)
        REQUIRE(net_plan_open(&p[i], m, &spec, &err) == 0);
    float *x = net_input(net_elements(p[0].in), 31);
    for (int i = 0; i < 2; i++) {
        w[i].plan = p[i].plan;
        w[i].arena = p[i].arena;
        w[i].x = x;
        REQUIRE(!pthread_create(&thread[i], NULL, worker_run, &w[i]));
    }
    for (int i = 0; i < 2; i++)
        pthread_join(thread[i], NULL);
    CHECK(!w[0].rc && !w[1].rc && net_same(w[0].y, w[1].y, sizeof w[0].y));
    free(x);
    for (int i = 0; i < 2; i++)
        net_plan_close(&p[i]);
    hapi_model_close(m);
}

static void plan_new__bad_spec__says_why(void)
{
    struct hapi_model *m = net_dense(32);
    struct hapi_plan *p = NULL;
    struct hapi_err err = {0};
    struct hapi_plan_spec spec = spec_of("cray", 1);

    CHECK(hapi_plan_new(&p, m, &spec, &err) == HAPI_EINVAL && strstr(err.text, "cray"));
    spec = spec_of(NULL, 1);
    CHECK(hapi_plan_new(&p, m, &spec, &err) == HAPI_EINVAL);
    spec = spec_of("ref", -1);
    CHECK(hapi_plan_new(&p, m, &spec, &err) == HAPI_EINVAL);
    spec = spec_of("ref", 1);
    spec.dtype = HAPI_I16;
    CHECK(hapi_plan_new(&p, m, &spec, &err) == HAPI_EINVAL && strstr(err.text, "i16"));
    spec.dtype = HAPI_BF16;
    CHECK(hapi_plan_new(&p, m, &spec, &err) == HAPI_EUNSUPPORTED);
    spec = spec_of("ref", 1);
    spec.to = "no_such_tensor";
    CHECK(hapi_plan_new(&p, m, &spec, &err) == HAPI_ENOENT && strstr(err.text, "no_such_tensor"));
    struct hapi_plan_memory memory;
    CHECK(hapi_plan_memory_query(m, &spec, &memory, &err) == HAPI_ENOENT);
    CHECK(p == NULL);
    hapi_model_close(m);
}

static const char *backend_now;

#define ON_BACKEND(fn)                                                                                       \
    do {                                                                                                     \
        int before_fn = check_failed;                                                                        \
        check_case = #fn;                                                                                    \
        check_cases++;                                                                                       \
        fn(backend_now);                                                                                     \
        printf("%s %s %s\n", before_fn == check_failed ? "ok  " : "FAIL", backend_now, #fn);                 \
    } while (0)

int main(void)
{
    CASE(memory_place__random_lifetimes__never_overlap);
    CASE(memory_place__absurd_sizes__are_an_error);
    CASE(plan_new__bad_spec__says_why);
    for (int i = 0; i < BACKENDS; i++) {
        backend_now = backends[i];
        if (!built(backend_now))
            continue;
        ON_BACKEND(edges__nhwc_unless_plain_io__same_numbers);
        ON_BACKEND(edges__cut_of_two_tensors__in_order_of_names);
        ON_BACKEND(memory_query__before_compiling__says_what_the_plan_takes);
        ON_BACKEND(run__stale_rows__do_not_touch_the_others);
        ON_BACKEND(run__two_threads_with_plans_of_their_own__same_numbers);
#if COUNT_HEAP
        ON_BACKEND(run__many_times__no_heap_call_of_ours);
#endif
    }
    if (built("onednn"))
        CASE(tiles__large_activations__arena_of_a_part);
#if COUNT_HEAP
    if (built("onednn"))
        CASE(weights__second_batch__shares_them);
#endif
    return check_done();
}
