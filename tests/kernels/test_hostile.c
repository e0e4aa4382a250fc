/* Models that ask for more than a machine has, or for sizes that are none: refused with the node's name and
 * the reason, in under a second and without the memory they name. What the reader itself refuses is in
 * test_onnx*.c. */
#include <math.h>
#include <stdio.h>
#include <sys/resource.h>
#include <time.h>

#include "build_model.h"
#include "check.h"

enum { KB_MAX = 400 << 10 };

/* Of the processor's time, so that what else the machine does is not counted. */
static double cpu_seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static long peak_kb(void)
{
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return u.ru_maxrss;
}

/* Opens, lists cuts and compiles on both back ends: the first error, 0 when all of it worked. */
static int try_all(struct build *b, int64_t opset, struct hapi_err *err)
{
    static const char *const backends[] = {"ref", "onednn"};
    const struct hapi_cut *cuts;
    struct hapi_model *m;
    size_t size, n;
    void *bytes = build_finish(b, 8, opset, &size);
    int rc = hapi_model_from_bytes(&m, bytes, size, NULL, err);

    if (rc) {
        free(bytes);
        return rc;
    }
    rc = hapi_model_cuts(m, &cuts, &n, err);
    for (int i = 0; i < 2 && !rc; i++) {
        struct hapi_plan_spec spec = {.batch = 1, .dtype = HAPI_F32, .backend = backends[i]};
        struct hapi_plan *p;
        rc = hapi_plan_new(&p, m, &spec, err);
        if (!rc)
            hapi_plan_free(p);
    }
    hapi_model_close(m);
    return rc;
}

/* One node "bad" over x (n,4,8,8), whose other operands and attributes the case has put into *b. */
static void refused(struct build *b, const char *what, const char *op, const char *in, int64_t opset)
{
    struct hapi_err err = {0};
    double t = cpu_seconds();

    INPUT(b, "x", -1, 4, 8, 8);
    OUTPUT(b, "y");
    build_node(b, op, "bad", in, "y");
    int rc = try_all(b, opset, &err);
    t = cpu_seconds() - t;
    CHECKF(rc == HAPI_EFORMAT || rc == HAPI_ETOOBIG || rc == HAPI_EUNSUPPORTED, "%s: %d %s", what, rc,
           err.text);
    CHECKF(strstr(err.text, "bad") || strstr(err.text, "\"y\"") || strstr(err.text, "memory"), "%s: %s", what,
           err.text);
    CHECKF(t < CHECK_SLOWDOWN, "%s: %.2f s", what, t);
    CHECKF(peak_kb() < KB_MAX, "%s: %ld kB", what, peak_kb());
}

static void floats(struct build *b, const char *name, float a0, float a1, float a2, float a3)
{
    float v[4] = {a0, a1, a2, a3};
    build_initializer(b, name, ONNX_F32, 1, (const int64_t[]){4}, v, sizeof v);
}

#define HUGE_DIM (1LL << 40)

static void resize__sizes_beyond_reason__are_refused(void)
{
    static const struct {
        const char *what;
        float h, w;
    } scales[] = {
        {"1 TB", 1e6F, 1e6F}, {"infinite", INFINITY, 1},  {"no number", NAN, 1}, {"negative", -2, 1},
        {"zero", 0, 1},       {"nothing left", 0.01F, 1}, {"1e30", 1e30F, 1}};
    struct build b = {.graph = {.p = NULL}};

    for (size_t i = 0; i < sizeof scales / sizeof *scales; i++) {
        floats(&b, "s", 1, 1, scales[i].h, scales[i].w);
        refused(&b, scales[i].what, "Resize", "x,,s", 13);
        floats(&b, "s", 1, 1, scales[i].h, scales[i].w);
        refused(&b, scales[i].what, "Upsample", "x,s", 9);
    }
    I64S(&b, "s", 1, 4, HUGE_DIM, HUGE_DIM);
    refused(&b, "sizes", "Resize", "x,,,s", 13);
    I64S(&b, "s", 1, 4, INT64_MAX, 8);
    refused(&b, "greatest size", "Resize", "x,,,s", 13);
    I64S(&b, "s", 1, 4, -8, 8);
    refused(&b, "negative size", "Resize", "x,,,s", 13);
    I64S(&b, "s", 1, 4, 8);
    refused(&b, "three sizes", "Resize", "x,,,s", 13);
    refused(&b, "neither", "Resize", "x", 13);
}

static void windows__that_blow_up__are_refused(void)
{
    struct build b = {.graph = {.p = NULL}};

    WEIGHTS(&b, "w", 4, 4, 3, 3);
    INTS(&b, "strides", 1 << 24, 1 << 24);
    refused(&b, "strides", "ConvTranspose", "x,w", 13);
    WEIGHTS(&b, "w", 4, 4, 3, 3);
    INTS(&b, "output_shape", 1 << 24, 1 << 24);
    refused(&b, "output_shape", "ConvTranspose", "x,w", 13);
    WEIGHTS(&b, "w", 4, 4, 3, 3);
    INTS(&b, "output_padding", INT64_MAX, 0);
    refused(&b, "output_padding", "ConvTranspose", "x,w", 13);
    WEIGHTS(&b, "w", 4, 4, 3, 3);
    build_int(&b, "group", 1 << 24);
    refused(&b, "groups", "ConvTranspose", "x,w", 13);
    WEIGHTS(&b, "w", 4, 4, 3, 3);
    INTS(&b, "pads", 1 << 24, 0, 0, 0);
    refused(&b, "pads", "ConvTranspose", "x,w", 13);
    WEIGHTS(&b, "w", 4, 4, 3, 3);
    INTS(&b, "pads", 1 << 24, 1 << 24, 1 << 24, 1 << 24);
    refused(&b, "padded", "Conv", "x,w", 13);
    INTS(&b, "kernel_shape", INT64_MAX, 1);
    refused(&b, "kernel", "MaxPool", "x", 13);
    build_int(&b, "size", INT64_MAX);
    refused(&b, "neighbours", "LRN", "x", 13);
}

static void movers__that_blow_up__are_refused(void)
{
    struct build b = {.graph = {.p = NULL}};

    I64S(&b, "l", 1, 1, 1 << 20, 1 << 20);
    refused(&b, "repeats", "Tile", "x,l", 13);
    I64S(&b, "l", 1, 1, INT64_MAX, INT64_MAX);
    refused(&b, "repeats overflow", "Tile", "x,l", 13);
    I64S(&b, "l", 1, 1, -1, 1);
    refused(&b, "negative repeats", "Tile", "x,l", 13);
    I64S(&b, "l", HUGE_DIM, 1, 1, 1, 1);
    refused(&b, "expanded", "Expand", "x,l", 13);
    I64S(&b, "l", -2, 1, 1, 1, 1);
    refused(&b, "expanded by less than nothing", "Expand", "x,l", 13);
    I64S(&b, "l", 0, 0, 0, 0, 0, 0, HUGE_DIM, 0);
    refused(&b, "padded", "Pad", "x,l", 13);
    I64S(&b, "l", 0, 0, INT64_MAX, 0, 0, 0, INT64_MAX, 0);
    refused(&b, "pads overflow", "Pad", "x,l", 13);
    I64S(&b, "l", 0, 0, -9, 0, 0, 0, 0, 0);
    refused(&b, "pads below nothing", "Pad", "x,l", 13);
    I64S(&b, "l", -1, -3);
    refused(&b, "negative dim", "Reshape", "x,l", 13);
    build_int(&b, "blocksize", 0);
    refused(&b, "no blocks", "DepthToSpace", "x", 13);
    build_int(&b, "blocksize", INT64_MAX);
    refused(&b, "blocks", "SpaceToDepth", "x", 13);
    I64S(&b, "l", 1 << 20, 1 << 20, 1 << 20);
    refused(&b, "constant", "ConstantOfShape", "l", 13);
}

static void range__without_end__is_refused(void)
{
    struct build b = {.graph = {.p = NULL}};
    int64_t zero = 0, far = INT64_MAX, one = 1;

    build_initializer(&b, "a", ONNX_I64, 0, NULL, &zero, 8);
    build_initializer(&b, "e", ONNX_I64, 0, NULL, &far, 8);
    build_initializer(&b, "d", ONNX_I64, 0, NULL, &one, 8);
    refused(&b, "far", "Range", "a,e,d", 13);
    build_initializer(&b, "a", ONNX_I64, 0, NULL, &zero, 8);
    build_initializer(&b, "e", ONNX_I64, 0, NULL, &far, 8);
    build_initializer(&b, "d", ONNX_I64, 0, NULL, &zero, 8);
    refused(&b, "never", "Range", "a,e,d", 13);
}

/* A small file whose constants would take hours to fold: 64 MB of zeros, resized and normalised over and
 * over. */
static void folding__hours_of_work__is_refused(void)
{
    struct build b = {.graph = {.p = NULL}};
    struct hapi_err err = {0};
    double t = cpu_seconds();

    INPUT(&b, "x", -1, 4, 8, 8);
    OUTPUT(&b, "y");
    I64S(&b, "dims", 1, 1, 1024, 1024);
    floats(&b, "s", 1, 1, 2, 2);
    build_node(&b, "ConstantOfShape", "zeros", "dims", "c");
    build_node(&b, "Resize", "bad", "c,,s", "c1");
    for (int i = 1; i < 400; i++) {
        char in[16], out[16];
        snprintf(in, sizeof in, "c%d", i);
        snprintf(out, sizeof out, "c%d", i + 1);
        build_int(&b, "size", 1000);
        build_node(&b, "LRN", "bad", in, out);
    }
    build_node(&b, "ReduceSum", "sum", "c400", "total");
    build_node(&b, "Add", "add", "x,total", "y");
    int rc = try_all(&b, 13, &err);
    t = cpu_seconds() - t;
    CHECKF(rc == HAPI_ETOOBIG && strstr(err.text, "too much work"), "%d %s", rc, err.text);
    CHECKF(t < CHECK_SLOWDOWN, "%.2f s", t);
}

/* 100,000 nodes are the limit, and are read, cut and compiled in bounded time; more are refused. */
static void nodes__a_hundred_thousand__take_bounded_time(void)
{
    static const char *const ops[] = {"Relu", "Sqrt", "Erf", "Tanh"};
    struct hapi_err err = {0};

    for (int more = 0; more < 2; more++) {
        struct build b = {.graph = {.p = NULL}};
        INPUT(&b, "x", -1, 1);
        OUTPUT(&b, "y");
        for (int i = 0; i < 100000 + more; i++) {
            char in[16], out[16];
            snprintf(in, sizeof in, i ? "t%d" : "x", i);
            snprintf(out, sizeof out, i == 99999 + more ? "y" : "t%d", i + 1);
            build_node(&b, ops[i % 4], "", in, out);
        }
        double t = cpu_seconds();
        int rc = try_all(&b, 13, &err);
        t = cpu_seconds() - t;
        CHECKF(more ? rc == HAPI_ETOOBIG : !rc, "%d %s", rc, err.text);
        /* Primitives of 25,000 kernels, also with sanitizers. */
        CHECKF(t < (more ? CHECK_SLOWDOWN : 30), "%.2f s", t);
    }
}

int main(void)
{
    CASE(resize__sizes_beyond_reason__are_refused);
    CASE(windows__that_blow_up__are_refused);
    CASE(movers__that_blow_up__are_refused);
    CASE(range__without_end__is_refused);
    CASE(folding__hours_of_work__is_refused);
    CASE(nodes__a_hundred_thousand__take_bounded_time);
    return check_done();
}
