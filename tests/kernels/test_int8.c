/* Computing in int8: against integers by plain loops, the promise about bits, and the ranges in the file. */
#include "check.h"
#include "networks.h"
#include "ranges.h"

enum { SIZE = 64, IN = 24, OUT = 20, ROWS = 7 };

/* The model anew with these ranges; closes m. */
static struct hapi_model *with_ranges(struct hapi_model *m, const struct hapi_range *list, size_t n)
{
    struct hapi_err err = {0};
    struct hapi_model *out;
    void *bytes;
    size_t size;

    REQUIRE(!hapi_model_with_ranges(m, list, n, &bytes, &size, &err));
    REQUIRE(!hapi_model_from_bytes(&out, bytes, size, NULL, &err));
    hapi_model_close(m);
    return out;
}

/* n samples through the model. */
static void run(struct hapi_model *m, enum hapi_dtype dtype, int64_t batch, const float *x, size_t width,
                float *y, size_t out, size_t n)
{
    struct hapi_plan_spec spec = {.batch = batch, .dtype = dtype, .backend = "onednn"};
    struct hapi_err err = {0};
    struct net_plan p;
    int rc = net_plan_open(&p, m, &spec, &err);

    CHECKF(!rc, "%s", err.text);
    REQUIRE(!rc);
    for (size_t at = 0; at + (size_t)batch <= n; at += (size_t)batch) {
        const void *in[1] = {x + at * width};
        void *to[1] = {y + at * out};
        REQUIRE(!hapi_plan_run(p.plan, p.arena, in, to, &err));
    }
    net_plan_close(&p);
}

/* The model anew, with the ranges of n samples; closes m. */
static struct hapi_model *calibrated(struct hapi_model *m, const float *x, size_t n)
{
    struct hapi_plan_spec spec = {.batch = (int64_t)n, .dtype = HAPI_F32, .backend = "onednn"};
    struct hapi_calibration *c;
    const struct hapi_range *list;
    struct hapi_err err = {0};
    struct net_plan p;
    float *y = net_aligned(n * 10 * sizeof *y);
    const void *in[1] = {x};
    void *out[1] = {y}, *bytes;
    struct hapi_model *made;
    size_t n_list, size;

    REQUIRE(!net_plan_open(&p, m, &spec, &err) && !hapi_calibration_new(&c, p.plan, &err));
    REQUIRE(!hapi_plan_run(p.plan, p.arena, in, out, &err));
    REQUIRE(!hapi_calibration_ranges(c, 1, &list, &n_list, &err));
    CHECK(n_list > 5 && hapi_calibration_ranges(c, 0.4, &list, &n_list, &err) == HAPI_EINVAL);
    REQUIRE(!hapi_calibration_ranges(c, 1, &list, &n_list, &err));
    REQUIRE(!hapi_model_with_ranges(m, list, n_list, &bytes, &size, &err));
    hapi_calibration_free(c);
    net_plan_close(&p);
    free(y);
    hapi_model_close(m);
    REQUIRE(!hapi_model_from_bytes(&made, bytes, size, NULL, &err));
    return made;
}

/* ------------------------------------------------------------------ integers */

static float weights[IN * OUT], bias[OUT];

/* A product by (IN, OUT), by its transpose, or a 1x1 convolution: the same numbers. */
static struct hapi_model *product(const char *op, bool relu)
{
    struct build b = {0};
    float turned[IN * OUT];
    bool conv = !strcmp(op, "Conv");

    for (int i = 0; i < IN; i++)
        for (int o = 0; o < OUT; o++)
            turned[o * IN + i] = weights[i * OUT + o];
    if (conv)
        INPUT(&b, "x", -1, IN, 1, 1);
    else
        INPUT(&b, "x", -1, IN);
    OUTPUT(&b, "y");
    build_initializer(&b, "b", ONNX_F32, 1, (const int64_t[]){OUT}, bias, sizeof bias);
    if (conv)
        build_initializer(&b, "w", ONNX_F32, 4, (const int64_t[]){OUT, IN, 1, 1}, turned, sizeof turned);
    else if (!strcmp(op, "Gemm"))
        build_initializer(&b, "w", ONNX_F32, 2, (const int64_t[]){OUT, IN}, turned, sizeof turned);
    else
        build_initializer(&b, "w", ONNX_F32, 2, (const int64_t[]){IN, OUT}, weights, sizeof weights);
    if (!strcmp(op, "Gemm"))
        build_int(&b, "transB", 1);
    bool add = !strcmp(op, "MatMul");
    build_node(&b, op, "p", add ? "x,w" : "x,w,b", add ? "m" : relu ? "s" : "y");
    if (add)
        build_node(&b, "Add", "a", "m,b", relu ? "s" : "y");
    if (relu)
        build_node(&b, "Relu", "r", "s", "y");
    return net_finish(&b);
}

static void expect(const float *x, float lo, float hi, bool relu, float *y)
{
    float s = lo < 0 ? fmaxf(-lo, hi) / 127 : hi / 255, low = lo < 0 ? -128 : 0, high = lo < 0 ? 127 : 255;

    for (int o = 0; o < OUT; o++) {
        float max = 0;
        for (int i = 0; i < IN; i++)
            max = fmaxf(max, fabsf(weights[i * OUT + o]));
        for (int r = 0; r < ROWS; r++) {
            long sum = 0;
            for (int i = 0; i < IN; i++)
                sum += lrintf(fmaxf(low, fminf(high, x[r * IN + i] * (1 / s)))) *
                       lrintf(weights[i * OUT + o] / (max / 127));
            float v = (float)sum * s * (max / 127) + bias[o];
            y[r * OUT + o] = relu && v < 0 ? 0 : v;
        }
    }
}

static void products__against_integers_by_plain_loops__agree(void)
{
    static const char *const ops[] = {"Conv", "Gemm", "MatMul"};
    static const struct hapi_range ranges[] = {{"x", -0.9F, 0.5F}, {"x", 0, 0.75F}};
    float *x = net_input((size_t)ROWS * IN, 3), y[ROWS * OUT], want[ROWS * OUT];

    for (int i = 0; i < IN * OUT; i++)
        weights[i] = net_random();
    for (int o = 0; o < OUT; o++)
        bias[o] = net_random();
    for (size_t k = 0; k < 12; k++) {
        const struct hapi_range *r = &ranges[k / 3 % 2];
        bool relu = k >= 6;
        struct hapi_model *m = with_ranges(product(ops[k % 3], relu), r, 1);
        run(m, HAPI_I8, ROWS, x, IN, y, OUT, ROWS);
        expect(x, r->lo, r->hi, relu, want);
        double worst = 0;
        for (int i = 0; i < ROWS * OUT; i++)
            worst = fmax(worst, fabs((double)(y[i] - want[i])));
        CHECKF(worst < 1e-5, "%s, from %g, relu %d: %g", ops[k % 3], (double)r->lo, relu, worst);
        hapi_model_close(m);
    }
    free(x);
}

/* Convolutions over (H,W), channels-last as plans take them. */
struct conv {
    int64_t in, out, group, kernel, stride, pad, dilation;
};
enum { H = 9, W = 7, CONV_SAMPLES = 3 };

static struct hapi_model *conv_model(const struct conv *c, const float *w, const float *b, bool relu)
{
    struct build m = {0};
    const int64_t dims[] = {c->out, c->in / c->group, c->kernel, c->kernel};

    INPUT(&m, "x", -1, c->in, H, W);
    OUTPUT(&m, "y");
    build_initializer(&m, "w", ONNX_F32, 4, dims, w,
                      (size_t)(dims[0] * dims[1] * dims[2] * dims[3]) * sizeof *w);
    build_initializer(&m, "b", ONNX_F32, 1, dims, b, (size_t)c->out * sizeof *b);
    INTS(&m, "pads", c->pad, c->pad, c->pad, c->pad);
    INTS(&m, "strides", c->stride, c->stride);
    INTS(&m, "dilations", c->dilation, c->dilation);
    build_int(&m, "group", c->group);
    build_node(&m, "Conv", "p", "x,w,b", relu ? "s" : "y");
    if (relu)
        build_node(&m, "Relu", "r", "s", "y");
    return net_finish(&m);
}

/* One output: the sum over a window of channel `o`, at (i,j) of the image x. */
static float conv_at(const struct conv *c, const float *x, const float *w, float s, float low, float high,
                     int64_t o, int64_t i, int64_t j)
{
    int64_t per = c->in / c->group, first = o / (c->out / c->group) * per, n = per * c->kernel * c->kernel;
    float max = 0;
    long sum = 0;

    for (int64_t k = 0; k < n; k++)
        max = fmaxf(max, fabsf(w[o * n + k]));
    for (int64_t k = 0; k < n; k++) {
        int64_t h = i * c->stride - c->pad + k / c->kernel % c->kernel * c->dilation,
                v = j * c->stride - c->pad + k % c->kernel * c->dilation;
        if (h < 0 || h >= H || v < 0 || v >= W)
            continue;
        float at = x[(h * W + v) * c->in + first + k / (c->kernel * c->kernel)];
        sum += lrintf(fmaxf(low, fminf(high, at * (1 / s)))) * lrintf(w[o * n + k] / (max / 127));
    }
    return (float)sum * s * (max / 127);
}

static double conv_error(const struct conv *c, const struct hapi_range *r, bool relu)
{
    int64_t span = (c->kernel - 1) * c->dilation + 1, oh = (H + 2 * c->pad - span) / c->stride + 1,
            ow = (W + 2 * c->pad - span) / c->stride + 1, image = c->in * H * W, made = c->out * oh * ow;
    float s = r->lo < 0 ? fmaxf(-r->lo, r->hi) / 127 : r->hi / 255, low = r->lo < 0 ? -128 : 0,
          high = r->lo < 0 ? 127 : 255;
    size_t n_w = (size_t)(c->out * (c->in / c->group) * c->kernel * c->kernel);
    float *w = net_input(n_w, 11), *b = net_input((size_t)c->out, 12);
    float *x = net_input((size_t)(CONV_SAMPLES * image), 13),
          *y = net_aligned((size_t)(CONV_SAMPLES * made) * 4);
    struct hapi_model *m = with_ranges(conv_model(c, w, b, relu), r, 1);
    double worst = 0;

    run(m, HAPI_I8, CONV_SAMPLES, x, (size_t)image, y, (size_t)made, CONV_SAMPLES);
    for (int64_t k = 0; k < CONV_SAMPLES * made; k++) {
        int64_t at = k % made / c->out, o = k % c->out;
        float v = conv_at(c, x + k / made * image, w, s, low, high, o, at / ow, at % ow) + b[o];
        worst = fmax(worst, fabs((double)y[k] - (double)(relu && v < 0 ? 0 : v)));
    }
    hapi_model_close(m);
    free(y);
    free(x);
    free(b);
    free(w);
    return worst;
}

static void convolutions__against_integers_by_plain_loops__agree(void)
{
    static const struct conv convs[] = {
        {24, 20, 1, 3, 1, 1, 1},  {3, 32, 1, 3, 2, 1, 1},   {24, 20, 1, 3, 1, 2, 2}, /* dense */
        {64, 64, 4, 3, 1, 1, 1},  {24, 12, 3, 3, 2, 1, 1},  {32, 64, 2, 1, 1, 0, 1}, /* in groups */
        {32, 32, 32, 3, 1, 1, 1}, {24, 24, 24, 3, 2, 1, 1}, {20, 20, 20, 5, 1, 2, 1} /* depthwise */
    };
    static const struct hapi_range ranges[] = {{"x", -0.9F, 0.5F}, {"x", 0, 0.75F}};

    for (size_t i = 0; i < 4 * (sizeof convs / sizeof *convs); i++) {
        const struct conv *c = &convs[i / 4];
        double worst = conv_error(c, &ranges[i % 2], i / 2 % 2);
        CHECKF(worst < 2e-5, "%d -> %d, %d groups, %dx%d / %d, case %d: %g", (int)c->in, (int)c->out,
               (int)c->group, (int)c->kernel, (int)c->kernel, (int)c->stride, (int)(i % 4), worst);
    }
}

/* ------------------------------------------------------------------ networks */

static struct hapi_model *net(int k)
{
    switch (k) {
    case 0:
        return net_mobile(SIZE, false);
    case 1:
        return net_mobile(SIZE, true);
    case 2:
        return net_resnet(SIZE);
    case 3:
        return net_excite(SIZE);
    case 4:
        return net_dense(SIZE);
    default:
        return net_transformer(SIZE);
    }
}

static void networks__micro_batches_1_3_8__close_to_f32_and_same_bits(void)
{
    enum { N = 24, WIDTH = 3 * SIZE * SIZE, NETS = 6 };
    float *x = net_input((size_t)N * WIDTH, 8), f32[N * 10], whole[N * 10], part[N * 10];

    for (int k = 0; k < NETS; k++) {
        struct hapi_model *m = calibrated(net(k), x, 4);
        run(m, HAPI_F32, N, x, WIDTH, f32, 10, N);
        run(m, HAPI_I8, N, x, WIDTH, whole, 10, N);
        double nmse = net_nmse(whole, f32, sizeof f32 / sizeof *f32);
        CHECKF(nmse > 1e-9 && nmse < 5e-3, "network %d: NMSE %g", k, nmse);
        for (int64_t batch = 1; batch <= 8; batch = batch == 1 ? 3 : batch + 5) {
            run(m, HAPI_I8, batch, x, WIDTH, part, 10, N);
            CHECKF(!memcmp(part, whole, sizeof part), "network %d: batch %d differs", k, (int)batch);
        }
        hapi_model_close(m);
    }
    free(x);
}

/* ------------------------------------------------------------------ the file */

static int parse(const char *text, size_t n)
{
    struct hapi_arena *a = hapi_arena_new(1 << 16);
    struct hapi_pb_out e = {.p = NULL};
    struct hapi_ranges r = {NULL, 0};
    struct hapi_err err = {0};

    REQUIRE(a);
    hapi_pb_put_string(&e, 1, "hapi.ranges");
    hapi_pb_put_bytes(&e, 2, text, n);
    int rc = hapi_ranges_read(&r, (struct hapi_view){e.p, e.n}, a, &err);
    CHECK(!rc || strstr(err.text, "hapi.ranges"));
    free(e.p);
    hapi_arena_free(a);
    return rc;
}

static void ranges__hostile_texts__refused(void)
{
    static const char *const bad[] = {"0 1 x",
                                      "0 1 \n",
                                      "0 1\n",
                                      "1 2 x\n",
                                      "-2 -1 x\n",
                                      "0 0 x\n",
                                      "nan 1 x\n",
                                      "0 nan x\n",
                                      "0 inf x\n",
                                      "0 1e16 x\n",
                                      "0 1e99 x\n",
                                      "0 0x10 x\n",
                                      "0 1e-20 x\n",
                                      "0 1 x\n0 1 x\n",
                                      "\n",
                                      "  1 x\n",
                                      "0 1e x\n",
                                      "0 1 a\tb\n",
                                      "-1e300 1 x\n",
                                      "0 -1 x\n",
                                      "0 1 x\n0 2 y\nz",
                                      "0 --1 x\n",
                                      "0 1 x\n\n",
                                      "- 1 x\n",
                                      "0 1.2.3 x\n",
                                      "0,0 1 x\n",
                                      "1",
                                      "0 00000000000000000000000000000000001 x\n"};
    char *big = malloc(1 << 20);

    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        CHECKF(parse(bad[i], strlen(bad[i])) == HAPI_EFORMAT, "`%s`", bad[i]);
    CHECK(parse("0 \0001 x\n", 8) == HAPI_EFORMAT);
    CHECK(parse("", 0) == 0 && parse("-1.5 2e-3 a name, with blanks\n0 1 x\n", 36) == 0);
    REQUIRE(big);
    memset(big, '\n', 1 << 20);
    CHECK(parse(big, 1 << 20) == HAPI_ETOOBIG);
    free(big);
}

static void ranges__written_twice_and_cut__the_last_ones_of_what_is_left(void)
{
    static const struct hapi_range first[] = {{"x", -1, 1}},
                                   list[] = {{"x", -2, 2}, {"y", 0, 3}, {"zz", 0, 1}};
    struct hapi_model *m = with_ranges(with_ranges(product("Conv", true), first, 1), list, 3), *prefix;
    const struct hapi_range *got;
    struct hapi_err err = {0};
    void *bytes;
    size_t size;

    CHECK(hapi_model_ranges(m, &got) == 3 && !strcmp(got[0].name, "x") && got[0].lo == -2 && got[1].hi == 3);
    REQUIRE(!hapi_model_prefix_bytes(m, "s", &bytes, &size, &err));
    REQUIRE(!hapi_model_from_bytes(&prefix, bytes, size, NULL, &err));
    CHECK(hapi_model_ranges(prefix, &got) == 1 && !strcmp(got[0].name, "x") && got[0].hi == 2);
    hapi_model_close(prefix);
    hapi_model_close(m);
}

static void plan__without_ranges__says_what_to_run(void)
{
    struct hapi_model *m = product("Gemm", false);
    struct hapi_plan_spec spec = {.batch = 1, .dtype = HAPI_I8, .backend = "onednn"};
    struct hapi_plan_memory mem;
    struct hapi_err err = {0};
    struct hapi_plan *p;

    CHECK(hapi_plan_new(&p, m, &spec, &err) == HAPI_EUNSUPPORTED);
    CHECK(strstr(err.text, hapi_cpu_has_int8() ? "hapi calibrate" : "VNNI"));
    CHECK(hapi_plan_memory_query(m, &spec, &mem, &err) == HAPI_EUNSUPPORTED);
    spec.backend = "ref";
    CHECK(hapi_plan_new(&p, m, &spec, &err) == HAPI_EUNSUPPORTED && strstr(err.text, "ref"));
    hapi_model_close(m);
}

int main(void)
{
    CASE(ranges__hostile_texts__refused);
    CASE(ranges__written_twice_and_cut__the_last_ones_of_what_is_left);
    CASE(plan__without_ranges__says_what_to_run);
    if (!hapi_cpu_has_int8())
        return check_done();
    CASE(products__against_integers_by_plain_loops__agree);
    CASE(convolutions__against_integers_by_plain_loops__agree);
    CASE(networks__micro_batches_1_3_8__close_to_f32_and_same_bits);
    return check_done();
}
