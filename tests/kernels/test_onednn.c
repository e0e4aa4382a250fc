/* Back end `onednn` against the plain loops, and the promises about bits: a sample's f32 features are the
 * same whatever the micro-batch, and a prefix and a suffix make the whole. */
#include <unistd.h>

#include "check.h"
#include "networks.h"

#if HAPI_HAVE_ONEDNN

enum { SAMPLES = 32, SIZE = 64 };

static struct hapi_model *mobile(void)
{
    return net_mobile(SIZE, false);
}

static struct hapi_model *lite(void)
{
    return net_mobile(SIZE, true);
}

static struct hapi_model *resnet(void)
{
    return net_resnet(SIZE);
}

static struct hapi_model *excite(void)
{
    return net_excite(SIZE);
}

static struct hapi_model *dense(void)
{
    return net_dense(SIZE);
}

static struct hapi_model *transformer(void)
{
    return net_transformer(SIZE);
}

static const struct {
    const char *name;
    struct hapi_model *(*make)(void);
    double nmse_f32, nmse_bf16;
} nets[] = {
    {"mobile", mobile, 1e-11, 1e-3}, {"lite", lite, 1e-11, 1e-3},   {"resnet", resnet, 1e-11, 1e-3},
    {"excite", excite, 1e-10, 1e-3}, {"dense", dense, 1e-11, 1e-3}, {"transformer", transformer, 1e-10, 1e-3},
};
enum { NETS = sizeof nets / sizeof *nets };

/* Runs all of x (n samples) through the model in micro-batches, the last one filled up with other samples. */
static float *features(struct hapi_model *m, const struct hapi_plan_spec *spec, const float *x, size_t n)
{
    struct hapi_err err = {0};
    struct net_plan p;
    int rc = net_plan_open(&p, m, spec, &err);

    if (rc)
        fprintf(stderr, "plan: %s\n", err.text);
    REQUIRE(rc == 0);
    size_t batch = (size_t)spec->batch, in = net_elements(p.in) / batch, out = net_elements(p.out) / batch;
    float *y = net_aligned(n * out * sizeof *y), *in_buf = net_aligned(batch * in * sizeof *in_buf);
    float *out_buf = net_aligned(batch * out * sizeof *out_buf);
    for (size_t at = 0; at < n; at += batch) {
        size_t count = n - at < batch ? n - at : batch;
        for (size_t i = 0; i < batch * in; i++)
            in_buf[i] = i < count * in ? x[at * in + i] : 3;
        const void *ip[1] = {in_buf};
        void *op[1] = {out_buf};
        rc = hapi_plan_run(p.plan, p.arena, ip, op, &err);
        CHECKF(rc == 0, "%s", err.text);
        memcpy(y + at * out, out_buf, count * out * sizeof *y);
    }
    free(out_buf);
    free(in_buf);
    net_plan_close(&p);
    return y;
}

static void all_networks__against_ref__agree(void)
{
    for (size_t k = 0; k < NETS; k++) {
        struct hapi_model *m = nets[k].make();
        float *x = net_input((size_t)2 * 3 * SIZE * SIZE, 7);
        struct hapi_plan_spec spec = {.batch = 2, .dtype = HAPI_F32, .backend = "ref"};
        float *truth = features(m, &spec, x, 2);
        spec.backend = "onednn";
        float *got = features(m, &spec, x, 2);
        double nmse = net_nmse(got, truth, 20);
        CHECKF(nmse <= nets[k].nmse_f32, "%s: NMSE %g", nets[k].name, nmse);
        free(got);
        free(truth);
        free(x);
        hapi_model_close(m);
    }
}

/* whole_batch: the batch runs in one go, as with plain_io; else plan.c may cut it into parts. */
static void micro_batches(enum hapi_dtype dtype, bool whole_batch)
{
    static const int64_t batches[] = {1, 3, 8, 5};

    for (size_t k = 0; k < NETS; k++) {
        struct hapi_model *m = nets[k].make();
        float *x = net_input((size_t)SAMPLES * 3 * SIZE * SIZE, 8);
        struct hapi_plan_spec spec = {
            .batch = SAMPLES, .dtype = dtype, .backend = "onednn", .plain_io = whole_batch};
        float *whole = features(m, &spec, x, SAMPLES);
        for (size_t i = 0; i < sizeof batches / sizeof *batches; i++) {
            spec.batch = batches[i];
            float *got = features(m, &spec, x, SAMPLES);
            CHECKF(net_same_sample(got, whole, (size_t)SAMPLES * 10), "%s: micro-batches 32 and %d differ",
                   nets[k].name, (int)batches[i]);
            free(got);
        }
        free(whole);
        free(x);
        hapi_model_close(m);
    }
}

static void f32__micro_batches_1_3_5_8_32__same_bits(void)
{
    micro_batches(HAPI_F32, true);
    micro_batches(HAPI_F32, false);
}

static void f32__one_thread_or_two__same_bits(void)
{
    for (size_t k = 0; k < NETS; k++) {
        struct hapi_model *m = nets[k].make();
        float *x = net_input((size_t)SAMPLES * 3 * SIZE * SIZE, 8);
        struct hapi_plan_spec spec = {.batch = SAMPLES, .dtype = HAPI_F32, .backend = "onednn"};
        float *one = features(m, &spec, x, SAMPLES);
        spec.threads = 2;
        float *two = features(m, &spec, x, SAMPLES);
        CHECKF(net_same_sample(one, two, (size_t)SAMPLES * 10), "%s: NMSE %g", nets[k].name,
               net_nmse(two, one, (size_t)SAMPLES * 10));
        free(two);
        free(one);
        free(x);
        hapi_model_close(m);
    }
}

static void f32__prefix_then_suffix_at_every_cut__same_bits_as_the_whole(void)
{
    for (size_t k = 0; k < NETS; k++) {
        struct hapi_model *m = nets[k].make();
        const struct hapi_cut *cuts;
        struct hapi_err err = {0};
        size_t n;
        float *x = net_input((size_t)3 * 3 * SIZE * SIZE, 9);
        struct hapi_plan_spec spec = {.batch = 3, .dtype = HAPI_F32, .backend = "onednn"};
        float *whole = features(m, &spec, x, 3);
        int rc = hapi_model_cuts(m, &cuts, &n, &err);
        CHECKF(rc == 0 && n > 3, "%s: %zu cuts: %s", nets[k].name, n, err.text);
        for (size_t i = 0; i < n && !rc; i++) {
            struct hapi_plan_spec a = spec, c = spec;
            if (!strcmp(cuts[i].id, "y"))
                continue; /* the output: nothing is left for a suffix */
            a.to = c.from = cuts[i].id;
            float *middle = features(m, &a, x, 3), *got = features(m, &c, middle, 3);
            CHECKF(net_same_sample(got, whole, 30), "%s: cut %s: NMSE %g", nets[k].name, cuts[i].id,
                   net_nmse(got, whole, 30));
            free(got);
            free(middle);
        }
        free(whole);
        free(x);
        hapi_model_close(m);
    }
}

/* Convolutions in bf16 are exact in this sense too; of matrix products oneDNN changes the K blocks with M on
 * AMX, so that only agreement within the dtype's error is promised there. */
static void bf16__against_f32__agrees_to_its_precision(void)
{
    bool amx;

    if (!hapi_cpu_has_bf16(&amx)) {
        struct hapi_model *m = mobile();
        struct hapi_plan_spec spec = {.batch = 1, .dtype = HAPI_BF16, .backend = "onednn"};
        struct hapi_err err = {0};
        struct hapi_plan *p;
        CHECK(hapi_plan_new(&p, m, &spec, &err) == HAPI_EUNSUPPORTED);
        CHECK(strstr(err.text, hapi_numeric_class("onednn")) != NULL);
        hapi_model_close(m);
        return;
    }
    for (size_t k = 0; k < NETS; k++) {
        struct hapi_model *m = nets[k].make();
        float *x = net_input((size_t)8 * 3 * SIZE * SIZE, 10);
        struct hapi_plan_spec spec = {.batch = 8, .dtype = HAPI_F32, .backend = "onednn"};
        float *truth = features(m, &spec, x, 8);
        spec.dtype = HAPI_BF16;
        float *got = features(m, &spec, x, 8);
        double nmse = net_nmse(got, truth, 80);
        CHECKF(nmse > 0 && nmse <= nets[k].nmse_bf16, "%s: NMSE %g", nets[k].name, nmse);
        free(got);
        free(truth);
        free(x);
        hapi_model_close(m);
    }
    if (!amx)
        micro_batches(HAPI_BF16, true);
}

static void numeric_class__names_isa_and_library(void)
{
    const char *c = hapi_numeric_class("onednn");
    CHECK(c && !strncmp(c, "onednn/", 7) && strlen(c) > 10);
    CHECK(!strcmp(hapi_numeric_class("ref"), "ref"));
    CHECK(hapi_numeric_class("nonesuch") == NULL);
}

static void plan__outputs_that_are_inputs_or_read_on__are_right(void)
{
    struct build b = {0};
    struct hapi_err err = {0};
    struct net_plan p;

    INPUT(&b, "x", -1, 4, 5, 6);
    build_node(&b, "Relu", "r", "x", "r");
    build_node(&b, "Identity", "i", "x", "i");
    OUTPUT(&b, "r");
    OUTPUT(&b, "i");
    OUTPUT(&b, "r2");
    build_node(&b, "Relu", "again", "r", "r2");
    struct hapi_model *m = net_finish(&b);
    struct hapi_plan_spec spec = {.batch = 2, .dtype = HAPI_F32, .backend = "onednn"};
    int rc = net_plan_open(&p, m, &spec, &err);
    CHECKF(rc == 0, "%s", err.text);
    float *x = net_input(240, 4), *y[3];
    for (int i = 0; i < 3; i++)
        y[i] = net_aligned(240 * sizeof(float));
    const void *in[1] = {x};
    void *out[3] = {y[0], y[1], y[2]};
    CHECK(hapi_plan_run(p.plan, p.arena, in, out, &err) == 0);
    for (int i = 0; i < 240; i++) {
        float relu = x[i] > 0 ? x[i] : 0;
        CHECK(y[0][i] == relu && y[1][i] == x[i] && y[2][i] == relu);
    }
    for (int i = 0; i < 3; i++)
        free(y[i]);
    free(x);
    net_plan_close(&p);
    hapi_model_close(m);
}

/* Weights that go from the file in pieces, wherever they begin in it: in both orders of a product, of a
 * convolution, with rows that make no whole number of pieces, and as an operand that no kernel reorders. */
static struct hapi_model *large_weights(const char *path, size_t shift)
{
    char name[16] = "wA______";
    struct hapi_err err = {0};
    struct build b = {0};
    struct hapi_model *m;
    size_t size;

    name[2 + shift] = '\0'; /* a longer name moves what follows */
    INPUT(&b, "x", -1, 32, 8, 8);
    OUTPUT(&b, "y");
    WEIGHTS(&b, "conv", 1500, 32, 8, 8);
    WEIGHTS(&b, name, 1003, 1500);
    WEIGHTS(&b, "wBB", 1003, 300);
    WEIGHTS(&b, "added", 1, 17000);
    WEIGHTS(&b, "wide", 300, 17000);
    build_node(&b, "Conv", "", "x,conv", "c");
    build_node(&b, "Flatten", "", "c", "f");
    build_int(&b, "transB", 1);
    char in[32];
    snprintf(in, sizeof in, "f,%s", name);
    build_node(&b, "Gemm", "", in, "g");
    build_node(&b, "MatMul", "", "g,wBB", "h");
    build_node(&b, "MatMul", "", "h,wide", "i");
    build_node(&b, "Mul", "", "i,added", "y");
    void *bytes = build_finish(&b, 8, 17, &size);
    if (!path) {
        REQUIRE(!hapi_model_from_bytes(&m, bytes, size, NULL, &err));
        return m;
    }
    FILE *f = fopen(path, "wb");
    REQUIRE(f && fwrite(bytes, size, 1, f) == 1 && !fclose(f));
    free(bytes);
    REQUIRE(!hapi_model_open(&m, path, NULL, &err));
    return m;
}

static void weights__from_the_file_in_pieces__are_the_same(void)
{
    char path[] = "/tmp/hapi-weights-XXXXXX";
    int fd = mkstemp(path);
    float *x = net_input(3 * 32 * 64, 5);

    REQUIRE(fd >= 0 && !close(fd));
    for (size_t shift = 0; shift < 5; shift++) {
        struct hapi_model *m = large_weights(shift < 4 ? path : NULL, shift);
        struct hapi_plan_spec spec = {.batch = 3, .dtype = HAPI_F32, .backend = "onednn"};
        float *first = features(m, &spec, x, 3);
        spec.batch = 1;
        float *one = features(m, &spec, x, 3);
        spec.backend = "ref"; /* its constants are aligned copies of the same bytes */
        float *want = features(m, &spec, x, 3);
        CHECKF(net_nmse(first, want, 3 * 17000) < 1e-11, "shift %zu: %g", shift,
               net_nmse(first, want, 3 * 17000));
        CHECKF(net_nmse(one, want, 3 * 17000) < 1e-11, "shift %zu", shift);
        free(first);
        free(one);
        free(want);
        hapi_model_close(m);
    }
    free(x);
    unlink(path);
}

int main(void)
{
    CASE(weights__from_the_file_in_pieces__are_the_same);
    CASE(numeric_class__names_isa_and_library);
    CASE(all_networks__against_ref__agree);
    CASE(f32__micro_batches_1_3_5_8_32__same_bits);
    CASE(f32__one_thread_or_two__same_bits);
    CASE(f32__prefix_then_suffix_at_every_cut__same_bits_as_the_whole);
    CASE(bf16__against_f32__agrees_to_its_precision);
    CASE(plan__outputs_that_are_inputs_or_read_on__are_right);
    return check_done();
}

#else

int main(void)
{
    SKIP("built without oneDNN");
}

#endif
