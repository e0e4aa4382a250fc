/* Real networks: prefix [0, k) on the bytes that are offered to a node, then suffix [k, freeze), give the
 * same f32 bits as the whole, whatever the micro-batch of the prefix. Exports as in tests/tools/exports.py.
 *
 *     kernels_test_split_bits [--all] [--sample N] [--batch N] [MODEL.onnx...]
 *
 * --all: cuts of several tensors, too. --sample N: N of a network's cuts, evenly spread, the first and the
 * last among them; 0, the default where models are named, all. --batch N: of the whole, an even number;
 * prefixes run with half of it. Without models: three of torchvision's, five cuts each. */
#include <math.h>
#include <stdbool.h>

#include "exports.h"
#include "kernels.h"

enum { EDGES = HAPI_CUT_TENSORS_MAX };

static struct hapi_err err;
static bool all_cuts;
static size_t sample = 5;
static int64_t batch = 4;

struct side {
    struct hapi_plan *p;
    void *arena;
    size_t n_out, out_bytes[EDGES];
};

static struct side plan(struct hapi_model *m, const char *from, const char *to, int64_t micro)
{
    struct hapi_plan_spec spec = {
        .from = from, .to = to, .batch = micro, .dtype = HAPI_F32, .backend = "onednn"};
    const struct hapi_tensor_desc *d;
    struct side s = {.p = NULL};

    if (hapi_plan_new(&s.p, m, &spec, &err)) {
        fprintf(stderr, "%s to %s: %s\n", from ? from : "input", to ? to : "output", err.text);
        exit(1);
    }
    s.n_out = hapi_plan_outputs(s.p, &d);
    REQUIRE(s.n_out >= 1 && s.n_out <= EDGES);
    for (size_t i = 0; i < s.n_out; i++)
        REQUIRE(!hapi_tensor_bytes(&d[i].shape, HAPI_F32, &s.out_bytes[i]));
    struct hapi_plan_memory mem = hapi_plan_memory_get(s.p);
    s.arena = aligned_alloc(4096, (mem.arena + mem.scratch + 8191) & ~4095ULL);
    REQUIRE(s.arena);
    return s;
}

static void side_free(struct side *s)
{
    hapi_plan_free(s->p);
    free(s->arena);
}

static void run(struct side *s, const void *const *in, void *const *out)
{
    int rc = hapi_plan_run(s->p, s->arena, in, out, &err);
    CHECKF(!rc, "%s", err.text);
}

static char *buffer(size_t n)
{
    char *p = aligned_alloc(64, (n + 63) & ~(size_t)63);
    REQUIRE(p);
    return p;
}

static float *image_batch(size_t elements)
{
    float *x = (float *)(void *)buffer(elements * sizeof(float));
    uint32_t state = 1;
    for (size_t i = 0; i < elements; i++) {
        state = state * 1664525 + 1013904223;
        x[i] = (float)(state >> 8) / (float)(1 << 23) - 1.0F;
    }
    return x;
}

/* Relative L2 distance. */
static double distance(const char *a, const char *b, size_t bytes)
{
    double d = 0, norm = 0;
    for (size_t i = 0; i < bytes; i += 4) {
        float x, y;
        memcpy(&x, a + i, 4);
        memcpy(&y, b + i, 4);
        d += ((double)x - y) * ((double)x - y);
        norm += (double)y * y;
    }
    return sqrt(d / norm);
}

static void check_cut(struct hapi_model *m, const struct hapi_cut *cut, const char *freeze, const float *x,
                      size_t x_bytes, const char *whole, size_t whole_bytes)
{
    struct hapi_model *offered;
    void *bytes, *part[EDGES], *mid[EDGES];
    size_t size;

    REQUIRE(!hapi_model_prefix_bytes(m, cut->id, &bytes, &size, &err));
    if (hapi_model_from_bytes(&offered, bytes, size, NULL, &err)) {
        fprintf(stderr, "%s: %s\n", cut->id, err.text);
        exit(1);
    }
    struct side prefix = plan(offered, NULL, cut->id, batch / 2), suffix = plan(m, cut->id, freeze, batch);
    char *out = buffer(whole_bytes);
    CHECK(prefix.n_out == cut->n_tensors && suffix.n_out == 1 && suffix.out_bytes[0] == whole_bytes);
    for (size_t k = 0; k < prefix.n_out; k++)
        mid[k] = buffer(prefix.out_bytes[k] * 2);
    for (size_t i = 0; i < 2; i++) {
        for (size_t k = 0; k < prefix.n_out; k++)
            part[k] = (char *)mid[k] + i * prefix.out_bytes[k];
        run(&prefix, (const void *const[]){(const char *)x + i * (x_bytes / 2)}, part);
    }
    run(&suffix, (const void *const *)mid, (void *const[]){out});
    bool same = !memcmp(out, whole, whole_bytes);
    if (!hapi_cpu_same_bits())
        same = distance(out, whole, whole_bytes) < 1e-6;
    CHECKF(same, "%s (%.200s): relative L2 %.3g", cut->name, cut->id, distance(out, whole, whole_bytes));
    side_free(&prefix);
    side_free(&suffix);
    hapi_model_close(offered);
    for (size_t k = 0; k < cut->n_tensors; k++)
        free(mid[k]);
    free(out);
}

/* The cuts before `freeze`. */
static size_t cuts_before(struct hapi_model *m, const char *freeze, const struct hapi_cut **cuts)
{
    size_t n, at = 0;
    int rc = all_cuts ? hapi_model_cuts_all(m, EDGES, cuts, &n, &err) : hapi_model_cuts(m, cuts, &n, &err);

    REQUIRE(!rc);
    while (at < n && strcmp((*cuts)[at].id, freeze))
        at++;
    REQUIRE(at > 1 && at < n);
    return at;
}

static void check_model(const char *path)
{
    const struct hapi_tensor_desc *in;
    const struct hapi_cut *cuts, *freeze;
    struct hapi_model *m;
    size_t x_bytes, zeros = 0;

    if (hapi_model_open(&m, path, NULL, &err) || hapi_model_cut_default(m, &freeze, &err)) {
        fprintf(stderr, "%s\n", err.text);
        exit(1);
    }
    size_t n = cuts_before(m, freeze->id, &cuts), take = sample && sample < n ? sample : n;
    struct side all = plan(m, NULL, freeze->id, batch);
    REQUIRE(hapi_plan_inputs(all.p, &in) == 1 && !hapi_tensor_bytes(&in->shape, HAPI_F32, &x_bytes));
    float *x = image_batch(x_bytes / 4);
    char *whole = buffer(all.out_bytes[0]);
    run(&all, (const void *const[]){x}, (void *const[]){whole});
    for (size_t i = 0; i < all.out_bytes[0]; i += 4)
        zeros += !memcmp(whole + i, (const float[]){0}, 4);
    CHECKF(zeros * 4 < all.out_bytes[0] * 9 / 10, "%zu zeros prove nothing", zeros);
    for (size_t i = 0; i < take; i++)
        check_cut(m, &cuts[take > 1 ? i * (n - 1) / (take - 1) : 0], freeze->id, x, x_bytes, whole,
                  all.out_bytes[0]);
    printf("%s: %zu of %zu cuts\n", path, take, n);
    fflush(stdout);
    side_free(&all);
    free(whole);
    free(x);
    hapi_model_close(m);
}

static void split__of_torchvision__gives_the_bits_of_the_whole(void)
{
    exports_each("resnet18 mobilenet_v2 densenet121", check_model);
}

int main(int argc, char **argv)
{
    const char *samples = NULL, *micro = NULL;
    const struct export_option options[] = {
        {"--all", NULL, &all_cuts}, {"--sample", &samples, NULL}, {"--batch", &micro, NULL}};
    int at = exports_options(argc, argv, options, sizeof options / sizeof *options);

    if (!hapi_numeric_class("onednn"))
        SKIP("built without oneDNN");
    if (samples)
        sample = (size_t)exports_number(samples);
    if (micro)
        batch = exports_number(micro) / 2 * 2;
    if (at == argc)
        CASE(split__of_torchvision__gives_the_bits_of_the_whole);
    for (; at < argc; at++)
        check_model(argv[at]);
    return check_done();
}
