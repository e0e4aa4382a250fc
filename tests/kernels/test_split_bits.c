/* Real networks: prefix [0, k) on the bytes that are offered to a node, then suffix [k, end), give the same
 * f32 bits as the whole, whatever the micro-batch of the prefix. Exports as in test_onnx_reader.c.
 *
 *     kernels_test_split_bits [MODEL.onnx...]   those models, every cut; without any: three, five cuts each
 */
#include <sys/wait.h>

#include "check.h"
#include "kernels.h"

enum { BATCH = 4, SHARE = 2 }; /* the prefix runs in micro-batches of SHARE */

static struct hapi_err err;

struct side {
    struct hapi_plan *p;
    void *arena;
    size_t out_bytes;
};

static struct side plan(struct hapi_model *m, const char *from, const char *to, int64_t batch)
{
    struct hapi_plan_spec spec = {
        .from = from, .to = to, .batch = batch, .dtype = HAPI_F32, .backend = "onednn"};
    const struct hapi_tensor_desc *d;
    struct side s = {.p = NULL};

    if (hapi_plan_new(&s.p, m, &spec, &err)) {
        fprintf(stderr, "%s to %s: %s\n", from ? from : "input", to ? to : "output", err.text);
        exit(1);
    }
    REQUIRE(hapi_plan_outputs(s.p, &d) == 1 && !hapi_tensor_bytes(&d->shape, HAPI_F32, &s.out_bytes));
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

static char *run(struct side *s, const void *in, char *out)
{
    int rc = hapi_plan_run(s->p, s->arena, (const void *const[]){in}, (void *const[]){out}, &err);
    CHECKF(!rc, "%s", err.text);
    return out;
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

static void check_cut(struct hapi_model *m, const struct hapi_cut *cut, const char *freeze, const float *x,
                      size_t x_bytes, const char *whole, size_t whole_bytes)
{
    struct hapi_model *offered;
    void *bytes;
    size_t size;

    REQUIRE(!hapi_model_prefix_bytes(m, cut->id, &bytes, &size, &err));
    if (hapi_model_from_bytes(&offered, bytes, size, NULL, &err)) {
        fprintf(stderr, "%s: %s\n", cut->id, err.text);
        exit(1);
    }
    struct side prefix = plan(offered, NULL, cut->id, SHARE), suffix = plan(m, cut->id, freeze, BATCH);
    char *mid = buffer(prefix.out_bytes * (BATCH / SHARE)), *out = buffer(whole_bytes);
    CHECK(prefix.out_bytes == cut->bytes_f32 * SHARE && suffix.out_bytes == whole_bytes);
    for (size_t i = 0; i < BATCH / SHARE; i++)
        run(&prefix, (const char *)x + i * (x_bytes / (BATCH / SHARE)), mid + i * prefix.out_bytes);
    run(&suffix, mid, out);
    CHECKF(!memcmp(out, whole, whole_bytes), "%s (%s)", cut->name, cut->id);
    side_free(&prefix);
    side_free(&suffix);
    hapi_model_close(offered);
    free(mid);
    free(out);
}

static void check_model(const char *path, bool every)
{
    const struct hapi_tensor_desc *in;
    const struct hapi_cut *cuts, *freeze;
    struct hapi_model *m;
    size_t n, x_bytes, done = 0, zeros = 0;

    if (hapi_model_open(&m, path, NULL, &err) || hapi_model_cuts(m, &cuts, &n, &err) ||
        hapi_model_cut_default(m, &freeze, &err)) {
        fprintf(stderr, "%s\n", err.text);
        exit(1);
    }
    struct side all = plan(m, NULL, freeze->id, BATCH);
    REQUIRE(hapi_plan_inputs(all.p, &in) == 1 && !hapi_tensor_bytes(&in->shape, HAPI_F32, &x_bytes));
    float *x = image_batch(x_bytes / 4);
    char *whole = run(&all, x, buffer(all.out_bytes));
    for (size_t i = 0; i < all.out_bytes; i += 4)
        zeros += !memcmp(whole + i, (const float[]){0}, 4);
    CHECKF(zeros * 4 < all.out_bytes * 9 / 10, "%zu zeros prove nothing", zeros);
    for (size_t i = 0; i < freeze->index; i += every ? 1 : n / 5, done++)
        check_cut(m, &cuts[i], freeze->id, x, x_bytes, whole, all.out_bytes);
    printf("%s: %zu of %zu cuts\n", path, done, n);
    side_free(&all);
    free(whole);
    free(x);
    hapi_model_close(m);
}

static const char *const networks[] = {"resnet18", "mobilenet_v2", "densenet121"};

static void split__of_torchvision__gives_the_bits_of_the_whole(void)
{
    for (size_t i = 0; i < sizeof networks / sizeof *networks; i++) {
        char path[1024];
        snprintf(path, sizeof path, "%s/onnx-models/%s.onnx", HAPI_BINARY_DIR, networks[i]);
        check_model(path, false);
    }
}

int main(int argc, char **argv)
{
    char command[2048];

    if (!hapi_numeric_class("onednn"))
        SKIP("built without oneDNN");
    for (int i = 1; i < argc; i++)
        check_model(argv[i], true);
    if (argc > 1)
        return check_done();
    snprintf(command, sizeof command,
             "/usr/bin/python3 '%s/tests/tools/onnx_expect.py' '%s/onnx-models' %s %s %s", HAPI_SOURCE_DIR,
             HAPI_BINARY_DIR, networks[0], networks[1], networks[2]);
    int rc = system(command);
    if (rc != -1 && WIFEXITED(rc) && (WEXITSTATUS(rc) == 77 || WEXITSTATUS(rc) == 127))
        SKIP("python3 with torch, torchvision and onnx is not installed");
    REQUIRE(rc == 0);
    CASE(split__of_torchvision__gives_the_bits_of_the_whole);
    return check_done();
}
