/* What a process takes at most from opening a network to its result, against what it must: the largest sum of
 * live activations, the weights as they are stored for computing, scratch, and the caller's own edges.
 *
 *     kernels_test_peak_memory [--dtype f32|bf16] [--micro-batch B] [MODEL.onnx...]
 *
 * Without models: two of torchvision's. Each in a process of its own, which has loaded oneDNN and run
 * something small before it is measured. */
#include <sys/wait.h>
#include <unistd.h>

#include "build_model.h"
#include "exports.h"
#include "onednn.h"

#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define SANITIZED 1
#endif
#endif
#ifndef SANITIZED
#define SANITIZED 0
#endif

/* The rest: code of the library that is touched, its primitives and generated kernels, the graph. */
static const double ratio_max = 1.15;

static struct hapi_err err;
static enum hapi_dtype dtype = HAPI_F32;
static int64_t batch = 8;

/* Bytes of a line of /proc/self/status. */
static size_t status_bytes(const char *key)
{
    FILE *f = fopen("/proc/self/status", "r");
    size_t kib = 0, n = strlen(key);
    char line[256];

    REQUIRE(f);
    while (fgets(line, sizeof line, f))
        if (!strncmp(line, key, n))
            kib = strtoull(line + n + 1, NULL, 10);
    fclose(f);
    REQUIRE(kib);
    return kib << 10;
}

static void *pages(size_t n)
{
    void *p = aligned_alloc(4096, (n + 8191) & ~(size_t)4095);
    REQUIRE(p);
    return p;
}

/* Runs once; returns bytes of the edges. */
static size_t run_once(struct hapi_plan *p)
{
    const struct hapi_tensor_desc *in, *out;
    size_t in_bytes, out_bytes;

    REQUIRE(hapi_plan_inputs(p, &in) == 1 && hapi_plan_outputs(p, &out) == 1);
    REQUIRE(!hapi_tensor_bytes(&in->shape, HAPI_F32, &in_bytes));
    REQUIRE(!hapi_tensor_bytes(&out->shape, HAPI_F32, &out_bytes));
    struct hapi_plan_memory mem = hapi_plan_memory_get(p);
    void *arena = pages(mem.arena + mem.scratch), *x = pages(in_bytes), *y = pages(out_bytes);
    memset(x, 1, in_bytes);
    int rc = hapi_plan_run(p, arena, (const void *const[]){x}, (void *const[]){y}, &err);
    CHECKF(!rc, "%s", err.text);
    free(arena);
    free(x);
    free(y);
    return in_bytes + out_bytes;
}

static struct hapi_plan *plan(struct hapi_model *m, const char *to, int64_t micro)
{
    struct hapi_plan_spec spec = {.to = to, .batch = micro, .dtype = dtype, .backend = "onednn"};
    struct hapi_plan *p;

    if (hapi_plan_new(&p, m, &spec, &err)) {
        fprintf(stderr, "%s\n", err.text);
        exit(1);
    }
    return p;
}

/* So that what is there anyway is there: the library, its first kernels. */
static void warm_up(void)
{
    struct build b = {0};
    struct hapi_model *m;
    size_t size;

    build_residual(&b);
    void *bytes = build_finish(&b, 8, 17, &size);
    REQUIRE(!hapi_model_from_bytes(&m, bytes, size, NULL, &err));
    struct hapi_plan *p = plan(m, NULL, 8);
    run_once(p);
    hapi_plan_free(p);
    hapi_model_close(m);
}

/* The largest sum of storages in the arena that live at one op, of the tile that the plan runs. */
static size_t live_most(struct hapi_model *m, const char *to, int64_t micro, size_t arena)
{
    size_t best = SIZE_MAX;

    for (int64_t tile = micro; tile >= 1; tile--) {
        struct hapi_plan_spec spec = {.to = to, .batch = tile, .dtype = dtype, .backend = "onednn"};
        struct hapi_backend *b = NULL;
        struct hapi_graph *g;
        if (micro % tile)
            continue;
        REQUIRE(!hapi_graph_bind(&g, m, &spec, &err) &&
                !hapi_backend_onednn.compile(&b, g, &spec, NULL, &err));
        const struct hapi_dnn *d = (const struct hapi_dnn *)(const void *)b;
        size_t most = 0;
        for (int op = 0; op < (int)d->n_ops; op++) {
            size_t sum = 0;
            for (size_t i = 0; i < d->n_storages; i++)
                if (d->storages[i].place == HAPI_DNN_ARENA && d->storages[i].first >= 0 &&
                    d->storages[i].first <= op && op <= d->storages[i].last)
                    sum += d->storages[i].bytes;
            most = sum > most ? sum : most;
        }
        if (d->arena_bytes == arena)
            best = most;
        hapi_backend_onednn.free(b);
        hapi_graph_free(g);
    }
    REQUIRE(best != SIZE_MAX);
    return best;
}

static void measure(const char *path)
{
    const struct hapi_cut *freeze;
    struct hapi_model *m;

    warm_up();
    size_t before = status_bytes("VmRSS:");
    if (hapi_model_open(&m, path, NULL, &err) || hapi_model_cut_default(m, &freeze, &err)) {
        fprintf(stderr, "%s\n", err.text);
        exit(1);
    }
    struct hapi_plan *p = plan(m, freeze->id, batch);
    size_t built = status_bytes("VmHWM:") - before, edges = run_once(p);
    size_t peak = status_bytes("VmHWM:") - before, after = status_bytes("VmRSS:") - before;
    struct hapi_plan_memory mem = hapi_plan_memory_get(p);
    size_t live = live_most(m, freeze->id, batch, mem.arena), must = live + mem.weights + mem.scratch + edges;
    printf("%s: peak %.1f MB (building %.1f, kept %.1f) of %.1f: %.2f; weights %.1f, live %.1f, arena %.1f\n",
           path, (double)peak / 1e6, (double)built / 1e6, (double)after / 1e6, (double)must / 1e6,
           (double)peak / (double)must, (double)mem.weights / 1e6, (double)live / 1e6,
           (double)mem.arena / 1e6);
    CHECKF((double)peak <= ratio_max * (double)must, "%s", path);
    hapi_plan_free(p);
    hapi_model_close(m);
}

static void check_model(const char *path)
{
    int status;

    fflush(stdout);
    pid_t child = fork();
    if (!child) {
        measure(path);
        fflush(stdout);
        _exit(check_failed != 0);
    }
    CHECKF(waitpid(child, &status, 0) == child && WIFEXITED(status) && !WEXITSTATUS(status), "%s", path);
}

static void peak__of_torchvision__is_little_more_than_what_must_be(void)
{
    exports_each("resnet18 mobilenet_v2", check_model);
}

int main(int argc, char **argv)
{
    const char *name = NULL, *micro = NULL;
    const struct export_option options[] = {{"--dtype", &name, NULL}, {"--micro-batch", &micro, NULL}};
    int at = exports_options(argc, argv, options, sizeof options / sizeof *options);

    if (SANITIZED)
        SKIP("a sanitizer takes memory of its own");
    if (!hapi_numeric_class("onednn"))
        SKIP("built without oneDNN");
    if (name)
        dtype = hapi_dtype_from_name(name);
    if (micro)
        batch = exports_number(micro);
    if (at == argc)
        CASE(peak__of_torchvision__is_little_more_than_what_must_be);
    for (; at < argc; at++)
        check_model(argv[at]);
    return check_done();
}
