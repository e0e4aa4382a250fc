/*
 * What a GPU computes against what the CPU does: networks whole, in f32, f16 and bf16. ci/gpu-check runs it,
 * also under compute-sanitizer.
 *
 *     kernels_tool_gpu [--autotune] [--batch N] [MODEL.onnx...]      default: 4; five small networks made
 * here
 *
 * Exits with 77 where no GPU answers.
 */
#include <math.h>

#include "check.h"
#include "kernels.h"
#include "networks.h"

static struct hapi_err err;
static int64_t batch = 4;

struct values {
    float *p;
    size_t n;
};

static struct values values_new(const struct hapi_tensor_desc *d)
{
    size_t bytes = 0;

    REQUIRE(!hapi_tensor_bytes(&d->shape, d->dtype, &bytes));
    struct values v = {calloc(1, bytes + 1), bytes / sizeof(float)};
    REQUIRE(v.p);
    return v;
}

/* Slow waves, as wide as normalised images. */
static void fill(const struct values *v)
{
    for (size_t i = 0; i < v->n; i++)
        v->p[i] = sinf((float)i * 0.0131F) + sinf((float)i * 0.00037F);
}

/* The network's output; NULL when it is refused, which is said. */
static struct values output_of(struct hapi_model *m, const char *backend, enum hapi_dtype dtype)
{
    struct hapi_plan_spec spec = {.batch = batch, .dtype = dtype, .backend = backend};
    const struct hapi_tensor_desc *in, *out;
    struct hapi_plan *p;

    if (hapi_plan_new(&p, m, &spec, &err)) {
        CHECKF(0, "%s, %s: %s", backend, hapi_dtype_name(dtype), err.text);
        return (struct values){NULL, 0};
    }
    REQUIRE(hapi_plan_inputs(p, &in) == 1 && hapi_plan_outputs(p, &out) == 1);
    struct hapi_plan_memory mem = hapi_plan_memory_get(p);
    struct values x = values_new(in), y = values_new(out);
    void *arena = aligned_alloc(4096, (mem.arena + mem.scratch + 8191) & ~4095ULL);
    REQUIRE(arena);
    fill(&x);
    for (int i = 0; i < 2; i++) { /* again, over what the first run left */
        memset(y.p, 0xff, y.n * sizeof(float));
        CHECKF(!hapi_plan_run(p, arena, (const void *const[]){x.p}, (void *const[]){y.p}, &err), "%s",
               err.text);
    }
    free(arena);
    free(x.p);
    hapi_plan_free(p);
    return y;
}

static double distance(const struct values *a, const struct values *b)
{
    double d = 0, s = 0;

    for (size_t i = 0; i < b->n; i++) {
        double e = (double)a->p[i] - (double)b->p[i];
        d += e * e;
        s += (double)b->p[i] * (double)b->p[i];
    }
    return sqrt(d / (s > 0 ? s : 1));
}

/* f32 on a GPU may use TF32 nowhere: engines that convert their inputs are not taken. Random networks magnify
 * rounding. */
static void network(const char *name, struct hapi_model *m)
{
    static const struct {
        enum hapi_dtype dtype;
        double most;
    } ways[] = {{HAPI_F32, 1e-3}, {HAPI_F16, 3e-2}, {HAPI_BF16, 0.2}};
    struct values want = output_of(m, "onednn", HAPI_F32);

    for (size_t i = 0; want.p && i < sizeof ways / sizeof *ways; i++) {
        struct values got = output_of(m, "cudnn", ways[i].dtype);
        if (!got.p)
            continue;
        double d = distance(&got, &want);
        printf("%-24s %-5s %.2e from the CPU in f32\n", name, hapi_dtype_name(ways[i].dtype), d);
        CHECKF(d <= ways[i].most, "%s in %s: %g away, %g allowed", name, hapi_dtype_name(ways[i].dtype), d,
               ways[i].most);
        free(got.p);
    }
    free(want.p);
    hapi_model_close(m);
}

/* What is not tuned is compared all the same, and here it should have been. */
static void untuned(const struct hapi_err *why)
{
    CHECKF(0, "not tuned: %s", why->text);
}

int main(int argc, char **argv)
{
    struct hapi_model *m;
    int i = 1;

    if (hapi_backend_ready("cudnn", &err))
        SKIP(err.text);
    bool tuned = i < argc && !strcmp(argv[i], "--autotune");
    if (tuned)
        REQUIRE(++i && !hapi_backend_tune("cudnn", untuned, &err));
    if (i + 1 < argc && !strcmp(argv[i], "--batch")) {
        batch = strtoll(argv[i + 1], NULL, 10);
        i += 2;
    }
    printf("%s\n", hapi_numeric_class("cudnn"));
    if (i == argc) {
        network("mobile", net_mobile(32, false));
        network("resnet", net_resnet(32));
        network("excite", net_excite(32));
        network("dense", net_dense(32));
        network("transformer", net_transformer(32));
    }
    for (; i < argc; i++) {
        if (hapi_model_open(&m, argv[i], NULL, &err))
            CHECKF(0, "%s: %s", argv[i], err.text);
        else
            network(strrchr(argv[i], '/') ? strrchr(argv[i], '/') + 1 : argv[i], m);
    }
    if (tuned)
        CHECK(!hapi_backend_tune("cudnn", NULL, &err));
    return check_done();
}
