/* What works on images by kernels and not by plain loops: windows over three dims, Resize, LRN, normalisation
 * by channels. Against the plain loops, in bits over micro-batches, and that it is so. */
#include "check.h"
#include "networks.h"
#include "vector.h"

enum { SAMPLES = 6 };

struct op {
    const char *op, *name; /* ONNX's; what is special */
    int dims;              /* of the input's: 2 or 3 behind the channels */
    int64_t a, b;          /* as make() has it */
    bool loops;            /* not for a kernel */
};

static const struct op ops[] = {{"Conv", "3x3x3", 3, 3, 1, false},
                                {"Conv", "3x3x3, grouped", 3, 3, 4, false},
                                {"Conv", "3x3x3, depthwise", 3, 3, 12, false},
                                {"ConvTranspose", "2x2x2", 3, 2, 1, false},
                                {"ConvTranspose", "3x3x3, grouped", 3, 3, 3, false},
                                {"MaxPool", "3x3x3", 3, 3, 0, false},
                                {"AveragePool", "2x3x3", 3, 2, 0, false},
                                {"GlobalAveragePool", "of three dims", 3, 0, 0, false},
                                {"Resize", "nearest", 2, 2, 0, false},
                                {"Resize", "linear", 2, 2, 0, false},
                                {"Resize", "linear", 3, 2, 0, false},
                                {"Resize", "nearest", 3, 3, 0, false},
                                {"Resize", "cubic", 2, 2, 0, true},
                                {"Resize", "linear, corners", 2, 2, 0, true},
                                {"LRN", "5", 2, 5, 0, false},
                                {"LRN", "4", 2, 4, 0, true},
                                {"InstanceNormalization", "", 2, 0, 0, false},
                                {"InstanceNormalization", "", 3, 0, 0, false},
                                {"GroupNormalization", "a number a channel", 2, 4, 21, false},
                                {"GroupNormalization", "a number a group", 2, 4, 18, false}};

static void text_attr(struct build *b, const char *name, const char *text, size_t n)
{
    struct hapi_pb_out a = {.p = NULL};

    hapi_pb_put_string(&a, 1, name);
    hapi_pb_put_bytes(&a, 4, text, n);
    hapi_pb_put_int(&a, 20, 3);
    build_attr(b, &a);
}

static void make_window(struct build *b, const struct op *o)
{
    bool conv = !strncmp(o->op, "Conv", 4), back = !strcmp(o->op, "ConvTranspose");

    if (conv)
        net_weights(b, "w", 5, (const int64_t[]){12, 12 / o->b, o->a, o->a, o->a},
                    (double)(12 / o->b * o->a * o->a * o->a));
    if (conv)
        net_vector(b, "c", 12, -1, 1);
    if (conv)
        build_int(b, "group", o->b);
    else if (o->a)
        INTS(b, "kernel_shape", o->a, 3, 3);
    if (o->a) {
        INTS(b, "strides", back ? 2 : 1, 2, back ? 2 : 1);
        INTS(b, "pads", 1, 0, 1, 1, 1, 0);
    }
    build_node(b, o->op, "n", conv ? "r,w,c" : "r", "y");
}

static void make_resize(struct build *b, const struct op *o)
{
    float scales[5] = {1, 1, (float)o->a, (float)o->a, (float)o->a};
    size_t mode = strcspn(o->name, ",");

    build_initializer(b, "s", ONNX_F32, 1, (const int64_t[]){o->dims + 2}, scales, (size_t)(o->dims + 2) * 4);
    text_attr(b, "mode", o->name, mode);
    if (o->name[mode])
        text_attr(b, "coordinate_transformation_mode", "align_corners", 13);
    build_node(b, "Resize", "n", "r,,s", "y");
}

static void make_norm(struct build *b, const struct op *o)
{
    int64_t n = o->b == 18 ? o->a : 12;

    net_vector(b, "g", n, 0.5F, 1.5F);
    net_vector(b, "h", n, -1, 1);
    if (o->a)
        build_int(b, "num_groups", o->a);
    build_node(b, o->op, "n", "r,g,h", "y");
}

/* Of an odd number of elements in each dim; a Relu before, so that the layout is the back end's choice. */
static struct hapi_model *make(const struct op *o)
{
    struct build b = {0};
    struct hapi_err err = {0};
    struct hapi_model *m;
    size_t size;

    net_state = 77;
    if (o->dims == 3)
        INPUT(&b, "x", -1, 12, 5, 9, 7);
    else
        INPUT(&b, "x", -1, 12, 11, 7);
    OUTPUT(&b, "y");
    build_node(&b, "Relu", "r", "x", "r");
    if (!strcmp(o->op, "Resize")) {
        make_resize(&b, o);
    } else if (!strcmp(o->op, "LRN")) {
        build_int(&b, "size", o->a);
        build_float(&b, "alpha", 0.5F);
        build_node(&b, "LRN", "n", "r", "y");
    } else if (strstr(o->op, "Normalization")) {
        make_norm(&b, o);
    } else {
        make_window(&b, o);
    }
    void *bytes = build_finish(&b, 8, o->b > 17 ? o->b : 17, &size);
    if (hapi_model_from_bytes(&m, bytes, size, NULL, &err)) {
        fprintf(stderr, "%s: %s\n", o->op, err.text);
        exit(1);
    }
    return m;
}

/* All samples in micro-batches; *n: elements of one. *loops: whether the plan has plain loops. */
static float *run(struct hapi_model *m, const char *backend, enum hapi_dtype dtype, int64_t batch,
                  const float *x, size_t *n, bool *loops)
{
    struct hapi_plan_spec spec = {.batch = batch, .dtype = dtype, .backend = backend};
    struct hapi_err err = {0};
    struct net_plan p;

    if (net_plan_open(&p, m, &spec, &err)) {
        fprintf(stderr, "%s\n", err.text);
        exit(1);
    }
    size_t in = net_elements(p.in) / (size_t)batch;
    *n = net_elements(p.out) / (size_t)batch;
    float *y = net_aligned(SAMPLES * *n * sizeof *y);
    for (size_t at = 0; at < SAMPLES; at += (size_t)batch) {
        const void *from[1] = {x + at * in};
        void *to[1] = {y + at * *n};
        CHECK(!hapi_plan_run(p.plan, p.arena, from, to, &err));
    }
    *loops = false;
    for (size_t i = 0; i < hapi_plan_kernels(p.plan); i++) {
        struct hapi_plan_kernel k;
        hapi_plan_kernel_get(p.plan, i, &k);
        *loops |= !strcmp(k.name, "plain loops");
    }
    net_plan_close(&p);
    return y;
}

static void ops__against_plain_loops__agree_and_have_a_kernel(void)
{
    float *x = net_input((size_t)SAMPLES * 12 * 5 * 9 * 7, 6);

    for (size_t i = 0; i < sizeof ops / sizeof *ops; i++) {
        const struct op *o = &ops[i];
        struct hapi_model *m = make(o);
        bool loops, ignored;
        size_t n;
        float *truth = run(m, "ref", HAPI_F32, SAMPLES, x, &n, &ignored),
              *whole = run(m, "onednn", HAPI_F32, SAMPLES, x, &n, &loops);
        double nmse = net_nmse(whole, truth, SAMPLES * n);
        CHECKF(nmse < 1e-11, "%s %s: NMSE %g", o->op, o->name, nmse);
        /* Without vector kernels more of them are left to the loops. */
        CHECKF(loops == o->loops || !hapi_vector_of(HAPI_F32), "%s %s: loops %d", o->op, o->name, loops);
        for (int64_t batch = 1; batch <= 3; batch++) {
            float *part = run(m, "onednn", HAPI_F32, batch, x, &n, &loops);
            CHECKF(net_same(part, whole, SAMPLES * n * sizeof *part), "%s %s: micro-batch %d", o->op, o->name,
                   (int)batch);
            free(part);
        }
        if (hapi_backend_computes("onednn", HAPI_BF16)) {
            float *half = run(m, "onednn", HAPI_BF16, SAMPLES, x, &n, &loops);
            nmse = net_nmse(half, truth, SAMPLES * n);
            CHECKF(nmse < 1e-4, "%s %s in bf16: NMSE %g", o->op, o->name, nmse);
            free(half);
        }
        free(whole);
        free(truth);
        hapi_model_close(m);
    }
    free(x);
}

int main(void)
{
    if (!hapi_numeric_class("onednn"))
        SKIP("built without oneDNN");
    CASE(ops__against_plain_loops__agree_and_have_a_kernel);
    return check_done();
}
