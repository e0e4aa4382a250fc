/* Cuts: the listing, sets of tensors, the default, prefixes as files, and prefix + suffix = whole, bit by
 * bit. */
#include <time.h>

#include "build_model.h"
#include "check.h"

static struct hapi_err err;

static struct hapi_model *from_build(struct build *b)
{
    struct hapi_model *m;
    size_t size;
    void *bytes = build_finish(b, 8, 17, &size);
    if (hapi_model_from_bytes(&m, bytes, size, NULL, &err)) {
        fprintf(stderr, "%s\n", err.text);
        exit(1);
    }
    return m;
}

static struct hapi_model *residual(void)
{
    struct build b = {0};
    build_residual(&b);
    return from_build(&b);
}

static void listing__residual__has_each_cut_once_in_order(void)
{
    /* Inside of the block two tensors are alive; what lies under "block_bn" is folded into the Conv. */
    static const struct {
        const char *id, *name;
        uint64_t bytes, flops, params;
    } expected[] = {
        {"stem_conv", "stem.conv", 1024, 2 * 256 * 27, 108},
        {"stem_relu", "stem", 1024, 2 * 256 * 27, 108},
        {"block_add", "block.0/Add", 1024, 2 * 256 * (27 + 36), 108 + 144 + 4},
        {"block_relu", "block.0", 1024, 2 * 256 * (27 + 36), 108 + 144 + 4},
        {"pooled", "pool", 16, 2 * 256 * (27 + 36), 108 + 144 + 4},
        {"flat", "Flatten", 16, 2 * 256 * (27 + 36), 108 + 144 + 4},
        {"y", "fc", 40, 2 * (256 * (27 + 36) + 40), 108 + 144 + 4 + 50},
    };
    struct hapi_model *m = residual();
    const struct hapi_cut *cuts;
    size_t n = 0;

    REQUIRE(!hapi_model_cuts(m, &cuts, &n, &err));
    CHECK(n == sizeof expected / sizeof *expected);
    for (size_t i = 0; i < n && i < sizeof expected / sizeof *expected; i++) {
        CHECKF(!strcmp(cuts[i].id, expected[i].id), "%s", cuts[i].id);
        CHECKF(!strcmp(cuts[i].name, expected[i].name), "%s", cuts[i].name);
        CHECK(cuts[i].index == i && cuts[i].n_tensors == 1 && !strcmp(cuts[i].tensors[0].name, cuts[i].id));
        CHECKF(cuts[i].bytes_f32 == expected[i].bytes, "%llu", (unsigned long long)cuts[i].bytes_f32);
        CHECKF(cuts[i].flops == expected[i].flops, "%s: %llu", cuts[i].id, (unsigned long long)cuts[i].flops);
        CHECKF(cuts[i].params == expected[i].params, "%s: %llu", cuts[i].id,
               (unsigned long long)cuts[i].params);
    }
    hapi_model_close(m);
}

static void listing__two_inputs_and_outputs__need_all_paths(void)
{
    struct build b = {0};
    const struct hapi_cut *cuts;
    size_t n;

    INPUT(&b, "x", -1, 4);
    INPUT(&b, "z", -1, 4);
    OUTPUT(&b, "y1");
    OUTPUT(&b, "y2");
    build_node(&b, "Relu", "", "x", "a");
    build_node(&b, "Add", "", "a,z", "sum");
    build_node(&b, "Relu", "", "sum", "both");
    build_node(&b, "Tanh", "", "both", "y1");
    build_node(&b, "Neg", "", "both", "y2");
    struct hapi_model *m = from_build(&b);
    REQUIRE(!hapi_model_cuts(m, &cuts, &n, &err));
    CHECK(n == 2 && !strcmp(cuts[0].id, "sum") && !strcmp(cuts[1].id, "both"));
    CHECK(!strcmp(cuts[0].name, "sum")); /* nodes without names: the tensor's */
    hapi_model_close(m);
}

static void listing__names_that_repeat__are_told_apart(void)
{
    struct build b = {0};
    const struct hapi_cut *cuts;
    size_t n;

    INPUT(&b, "x", -1, 4);
    OUTPUT(&b, "c");
    build_node(&b, "Relu", "act", "x", "a");
    build_node(&b, "Relu", "act", "a", "b");
    build_node(&b, "Relu", "act", "b", "c");
    struct hapi_model *m = from_build(&b);
    REQUIRE(!hapi_model_cuts(m, &cuts, &n, &err));
    CHECK(n == 3 && !strcmp(cuts[0].name, "act") && !strcmp(cuts[1].name, "act#1") &&
          !strcmp(cuts[2].name, "act#2"));
    hapi_model_close(m);
}

static void all__residual__has_what_is_alive_after_each_node(void)
{
    static const struct {
        const char *id, *name;
    } expected[] = {
        {"stem_conv", "stem.conv"},
        {"stem_relu", "stem"},
        {"block_bn,stem_relu", "block.0.conv+1"},
        {"block_add", "block.0/Add"},
        {"block_relu", "block.0"},
        {"pooled", "pool"},
        {"flat", "Flatten"},
        {"y", "fc"},
    };
    struct hapi_model *m = residual();
    const struct hapi_cut *cuts, *one, *found, *again;
    size_t n = 0, n_one = 0;

    REQUIRE(!hapi_model_cuts_all(m, HAPI_CUT_TENSORS_MAX, &cuts, &n, &err));
    REQUIRE(n == sizeof expected / sizeof *expected);
    for (size_t i = 0; i < n; i++) {
        CHECKF(!strcmp(cuts[i].id, expected[i].id), "%s", cuts[i].id);
        CHECKF(!strcmp(cuts[i].name, expected[i].name), "%s", cuts[i].name);
        CHECK(cuts[i].n_tensors == (i == 2 ? 2 : 1));
        REQUIRE(!hapi_model_cut_find(m, cuts[i].id, &found, &err));
        CHECKF(found->flops == cuts[i].flops && found->bytes_f32 == cuts[i].bytes_f32, "%s", cuts[i].id);
        CHECKF(found->params == cuts[i].params && cuts[i].index == i, "%s", cuts[i].id);
    }
    REQUIRE(!hapi_model_cuts_all(m, HAPI_CUT_TENSORS_MAX, &again, &n, &err));
    CHECK(again == cuts);
    REQUIRE(!hapi_model_cuts(m, &one, &n_one, &err));
    REQUIRE(!hapi_model_cuts_all(m, 1, &cuts, &n, &err) && n == n_one);
    for (size_t i = 0; i < n; i++)
        CHECKF(!strcmp(cuts[i].id, one[i].id) && !strcmp(cuts[i].name, one[i].name), "%s", cuts[i].id);
    CHECK(hapi_model_cuts_all(m, 0, &cuts, &n, &err) == HAPI_EINVAL);
    CHECK(hapi_model_cuts_all(m, HAPI_CUT_TENSORS_MAX + 1, &cuts, &n, &err) == HAPI_EINVAL);
    hapi_model_close(m);
}

static void scalar(struct build *b, const char *name, float v)
{
    build_initializer(b, name, ONNX_F32, 0, NULL, &v, sizeof v);
}

static void all__inside_of_a_gelu_or_silu__has_nothing(void)
{
    static const char *const expected[] = {"a", "gelu", "silu", "y"};
    struct build b = {0};
    const struct hapi_cut *cuts, *found;
    size_t n = 0;

    INPUT(&b, "x", -1, 4);
    OUTPUT(&b, "y");
    scalar(&b, "root", 1.41421356F);
    scalar(&b, "one", 1);
    scalar(&b, "half", 0.5F);
    build_node(&b, "Neg", "", "x", "a");
    build_node(&b, "Div", "", "a,root", "g1");
    build_node(&b, "Erf", "", "g1", "g2");
    build_node(&b, "Add", "", "g2,one", "g3");
    build_node(&b, "Mul", "", "a,g3", "g4");
    build_node(&b, "Mul", "", "g4,half", "gelu");
    build_node(&b, "Sigmoid", "", "gelu", "s1");
    build_node(&b, "Mul", "", "gelu,s1", "silu");
    build_node(&b, "Neg", "", "silu", "y");
    struct hapi_model *m = from_build(&b);
    REQUIRE(!hapi_model_cuts_all(m, HAPI_CUT_TENSORS_MAX, &cuts, &n, &err));
    CHECK(n == sizeof expected / sizeof *expected);
    for (size_t i = 0; i < n && i < sizeof expected / sizeof *expected; i++)
        CHECKF(!strcmp(cuts[i].id, expected[i]), "%s", cuts[i].id);
    CHECK(!hapi_model_cut_find(m, "a,g3", &found, &err) && found->n_tensors == 2);
    hapi_model_close(m);
}

/* Residual blocks of two nodes: a cut after each of 2 * n. */
static struct hapi_model *long_chain(int n)
{
    struct build b = {0};
    char in[32] = "x", relu[32], both[80], out[32];

    INPUT(&b, "x", -1, 4);
    OUTPUT(&b, "end");
    for (int i = 0; i < n; i++) {
        snprintf(relu, sizeof relu, "r%d", i);
        snprintf(both, sizeof both, "%s,%s", relu, in);
        snprintf(out, sizeof out, "a%d", i);
        build_node(&b, "Relu", "", in, relu);
        build_node(&b, "Add", "", both, i + 1 < n ? out : "end");
        memcpy(in, out, sizeof in);
    }
    return from_build(&b);
}

/* n branches from one value, summed up at the end: up to n values are alive. */
static struct hapi_model *wide_fan(int n)
{
    struct build b = {0};
    char sum[32] = "r0", name[32], both[80];

    INPUT(&b, "x", -1, 4);
    OUTPUT(&b, "end");
    build_node(&b, "Relu", "", "x", "stem");
    for (int i = 0; i < n; i++) {
        snprintf(name, sizeof name, "r%d", i);
        build_node(&b, "Relu", "", "stem", name);
    }
    for (int i = 1; i < n; i++) {
        snprintf(both, sizeof both, "%s,r%d", sum, i);
        snprintf(sum, sizeof sum, "s%d", i);
        build_node(&b, "Add", "", both, i + 1 < n ? sum : "end");
    }
    return from_build(&b);
}

static void all__of_100000_nodes__is_bounded(void)
{
    const struct hapi_cut *cuts;
    struct timespec a, b;
    size_t n;

    clock_gettime(CLOCK_MONOTONIC, &a);
    struct hapi_model *m = long_chain(49999);
    err.text[0] = '\0';
    CHECK(hapi_model_cuts_all(m, 2, &cuts, &n, &err) == HAPI_ETOOBIG);
    CHECKF(strstr(err.text, "16384"), "%s", err.text);
    CHECK(!hapi_model_cuts(m, &cuts, &n, &err) && n == 49999); /* the sums */
    hapi_model_close(m);

    m = wide_fan(49999);
    CHECK(!hapi_model_cuts_all(m, HAPI_CUT_TENSORS_MAX, &cuts, &n, &err));
    CHECK(n == 1 + 63 + 64); /* stem, "stem" with 1..63 branches, 64..1 left to be summed up */
    CHECK(n > 70 && cuts[63].n_tensors == 64 && cuts[n - 1].n_tensors == 1);
    hapi_model_close(m);
    clock_gettime(CLOCK_MONOTONIC, &b);
    CHECKF(b.tv_sec - a.tv_sec < 20 * CHECK_SLOWDOWN, "%ld s", (long)(b.tv_sec - a.tv_sec));
}

/* n nodes that make a value each, then n that read one each, twice; or 2 n nodes that all read one value. */
static struct hapi_model *far_readers(int n, bool one)
{
    struct build b = {0};
    char name[3][16];

    INPUT(&b, "x", -1, 4);
    build_node(&b, "Relu", "", "x", "h0");
    for (int i = 1; i <= 2 * n; i++) {
        snprintf(name[0], sizeof name[0], "%s,%s", i <= n || one ? "h0" : "", i <= n || one ? "h0" : "");
        if (i > n && !one)
            snprintf(name[0], sizeof name[0], "h%d,h%d", i - n, i - n);
        snprintf(name[1], sizeof name[1], "h%d", i);
        build_node(&b, i <= n ? "Add" : "Mul", "", name[0], name[1]);
        if (i > n || one)
            OUTPUT(&b, name[1]);
    }
    return from_build(&b);
}

static void all__of_100000_nodes_that_read_from_afar__takes_linear_time(void)
{
    for (int one = 0; one < 2; one++) {
        struct hapi_model *m = far_readers(49999, one);
        const struct hapi_cut *cuts;
        struct timespec a, b;
        size_t n;

        clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &a);
        CHECK(!hapi_model_cuts(m, &cuts, &n, &err) && n == 1);
        clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &b);
        double s = (double)(b.tv_sec - a.tv_sec) + 1e-9 * (double)(b.tv_nsec - a.tv_nsec);
        CHECKF(s < 1 * CHECK_SLOWDOWN, "%.2f s", s);
        printf("     %s: %.2f s\n", one ? "one value" : "a value each", s);
        hapi_model_close(m);
    }
}

static void find__sets_of_tensors__must_separate(void)
{
    static const struct {
        const char *id;
        int code;
        const char *word;
    } cases[] = {
        {"stem_relu,block_conv", 0, ""},
        {"block_conv,stem_relu", 0, ""},
        {"block_bn,stem_relu", 0, ""},
        {"block_bn", HAPI_EINVAL, "around"},
        {"block_conv", HAPI_EINVAL, "around"},
        {"stem_conv,stem_relu", HAPI_EINVAL, "not needed"},
        {"x", HAPI_EINVAL, "input"},
        {"w1", HAPI_EINVAL, "constant"},
        {"stem_rleu", HAPI_ENOENT, "\"stem_relu\""},
        {"", HAPI_ENOENT, ""},
        {"stem_relu,", HAPI_ENOENT, ""},
        {"flat,flat", HAPI_EINVAL, "twice"},
        {"dropped", 0, ""},
    };
    struct hapi_model *m = residual();
    const struct hapi_cut *cut, *again;

    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        err.text[0] = '\0';
        int rc = hapi_model_cut_find(m, cases[i].id, &cut, &err);
        CHECKF(rc == cases[i].code, "%s: %s %s", cases[i].id, hapi_err_name(rc), err.text);
        CHECKF(!rc || strstr(err.text, cases[i].word), "%s: %s", cases[i].id, err.text);
    }
    REQUIRE(!hapi_model_cut_find(m, "stem_relu,block_conv", &cut, &err));
    REQUIRE(!hapi_model_cut_find(m, "block_conv,stem_relu", &again, &err));
    CHECK(cut == again && !strcmp(cut->id, "block_conv,stem_relu"));
    CHECK(cut->n_tensors == 2 && cut->bytes_f32 == 2048 && cut->flops == 2 * 256 * (27 + 36));
    REQUIRE(!hapi_model_cut_find(m, "stem_relu", &cut, &err));
    CHECK(cut->index == 1); /* the listed one */
    hapi_model_close(m);
}

static void find__any_id__costs_bounded_memory(void)
{
    struct hapi_model *m = residual();
    const struct hapi_cut *cut;
    size_t size = 1 << 20;
    char *id = malloc(size + 1);

    REQUIRE(id);
    memset(id, ',', size);
    id[size] = '\0';
    CHECK(hapi_model_cut_find(m, id, &cut, &err) < 0);
    memset(id, 'a', size);
    CHECK(hapi_model_cut_find(m, id, &cut, &err) == HAPI_ENOENT);
    for (size_t i = 0; i + 10 < size; i += 10)
        memcpy(id + i, "stem_relu,", 10);
    CHECK(hapi_model_cut_find(m, id, &cut, &err) == HAPI_EINVAL);
    free(id);
    hapi_model_close(m);
}

static void standard__is_the_classifiers_input_or_the_last_cut(void)
{
    struct hapi_model *m = residual();
    const struct hapi_cut *cut;
    struct build b = {0};

    REQUIRE(!hapi_model_cut_default(m, &cut, &err));
    CHECKF(!strcmp(cut->id, "flat"), "%s", cut->id);
    hapi_model_close(m);

    /* MatMul, bias and softmax. */
    INPUT(&b, "x", -1, 4);
    OUTPUT(&b, "y");
    WEIGHTS(&b, "w", 4, 3);
    WEIGHTS(&b, "c", 3);
    build_node(&b, "Relu", "", "x", "features");
    build_node(&b, "MatMul", "", "features,w", "p");
    build_node(&b, "Add", "", "c,p", "biased");
    build_node(&b, "Softmax", "", "biased", "y");
    m = from_build(&b);
    REQUIRE(!hapi_model_cut_default(m, &cut, &err));
    CHECKF(!strcmp(cut->id, "features"), "%s", cut->id);
    hapi_model_close(m);

    /* No classifier: all of it. */
    INPUT(&b, "x", -1, 3, 4, 4);
    OUTPUT(&b, "y");
    build_node(&b, "Relu", "", "x", "a");
    build_node(&b, "GlobalAveragePool", "", "a", "y");
    m = from_build(&b);
    REQUIRE(!hapi_model_cut_default(m, &cut, &err));
    CHECKF(!strcmp(cut->id, "y"), "%s", cut->id);
    hapi_model_close(m);
}

static void batch__held_by_a_reshape__is_said(void)
{
    struct build b = {0};
    const struct hapi_cut *cuts;
    size_t n;

    INPUT(&b, "x", -1, 6);
    OUTPUT(&b, "y");
    I64S(&b, "s", 1, 2, 3);
    build_node(&b, "Reshape", "re", "x,s", "r");
    build_node(&b, "Relu", "", "r", "y");
    struct hapi_model *m = from_build(&b);
    CHECK(hapi_model_cuts(m, &cuts, &n, &err) == HAPI_EFORMAT);
    CHECKF(strstr(err.text, "batch 3") && strstr(err.text, "\"re\""), "%s", err.text);
    CHECK(hapi_model_cuts(m, &cuts, &n, &err) == HAPI_EFORMAT); /* and said again */
    hapi_model_close(m);
}

/* ------------------------------------------------------------------ running */

static float *run(struct hapi_model *m, const char *backend, const char *from, const char *to, int64_t batch,
                  const float *const *in, size_t n_in, size_t *elements, float **second)
{
    struct hapi_plan_spec spec = {
        .from = from, .to = to, .batch = batch, .dtype = HAPI_F32, .backend = backend, .plain_io = false};
    const struct hapi_tensor_desc *d;
    void *out[2] = {NULL, NULL}, *arena = NULL;
    struct hapi_plan *p;

    if (hapi_plan_new(&p, m, &spec, &err)) {
        fprintf(stderr, "%s..%s: %s\n", from ? from : "", to ? to : "", err.text);
        exit(1);
    }
    CHECK(hapi_plan_inputs(p, &d) == n_in);
    size_t n = hapi_plan_outputs(p, &d);
    REQUIRE(n >= 1 && n <= 2 && n == (second ? 2u : 1u));
    for (size_t i = 0; i < n; i++) {
        size_t bytes;
        REQUIRE(!hapi_tensor_bytes(&d[i].shape, HAPI_F32, &bytes));
        out[i] = aligned_alloc(64, (bytes + 63) & ~(size_t)63);
        REQUIRE(out[i]);
        *elements = bytes / 4;
    }
    struct hapi_plan_memory mem = hapi_plan_memory_get(p);
    arena = aligned_alloc(4096, (mem.arena + mem.scratch + 4096) & ~4095ULL);
    REQUIRE(arena);
    int rc = hapi_plan_run(p, arena, (const void *const *)in, out, &err);
    CHECKF(!rc, "%s", err.text);
    free(arena);
    hapi_plan_free(p);
    if (second)
        *second = out[1];
    return out[0];
}

static float *input(size_t n)
{
    float *x = malloc(n * sizeof *x);
    REQUIRE(x);
    for (size_t i = 0; i < n; i++)
        x[i] = (float)((i * 7919) % 1009) / 505.0F - 1.0F;
    return x;
}

static const char *const backends[] = {"ref", "onednn"};

static void prefix_and_suffix__every_cut__give_the_bits_of_the_whole(void)
{
    float *x = input(3 * 3 * 64);
    for (size_t k = 0; k < 2; k++) {
        struct hapi_model *m = residual();
        const struct hapi_cut *cuts;
        size_t n, whole_n = 0, mid_n = 0, out_n = 0;
        if (!hapi_numeric_class(backends[k]))
            continue;
        float *whole = run(m, backends[k], NULL, NULL, 3, (const float *const[]){x}, 1, &whole_n, NULL);
        REQUIRE(!hapi_model_cuts(m, &cuts, &n, &err));
        for (size_t i = 0; i + 1 < n; i++) {
            float *mid = run(m, backends[k], NULL, cuts[i].id, 3, (const float *const[]){x}, 1, &mid_n, NULL);
            float *out =
                run(m, backends[k], cuts[i].id, NULL, 3, (const float *const[]){mid}, 1, &out_n, NULL);
            CHECK(mid_n * 4 == cuts[i].bytes_f32 * 3);
            CHECKF(out_n == whole_n && !memcmp(out, whole, out_n * 4), "%s, cut at %s", backends[k],
                   cuts[i].id);
            free(mid);
            free(out);
        }
        float *two, *one = run(m, backends[k], NULL, "block_bn,stem_relu", 3, (const float *const[]){x}, 1,
                               &mid_n, &two);
        float *out = run(m, backends[k], "block_bn,stem_relu", NULL, 3, (const float *const[]){one, two}, 2,
                         &out_n, NULL);
        CHECKF(out_n == whole_n && !memcmp(out, whole, out_n * 4), "%s, cut of two", backends[k]);
        free(one);
        free(two);
        free(out);
        free(whole);
        hapi_model_close(m);
    }
    free(x);
}

static void prefix_bytes__every_cut__load_again_and_give_the_same_bits(void)
{
    static const char *const ids[] = {"stem_conv", "block_relu",          "flat", "y", "dropped",
                                      "pooled",    "block_conv,stem_relu"};
    float *x = input(2 * 3 * 64);
    struct hapi_model *m = residual(), *p;

    for (size_t i = 0; i < sizeof ids / sizeof *ids; i++) {
        const struct hapi_tensor_desc *in;
        const struct hapi_cut *a, *b;
        void *bytes, *again;
        size_t size, size2, n1, n2;
        REQUIRE(!hapi_model_prefix_bytes(m, ids[i], &bytes, &size, &err));
        REQUIRE(!hapi_model_prefix_bytes(m, ids[i], &again, &size2, &err));
        CHECK(size == size2 && !memcmp(bytes, again, size));
        free(again);
        CHECKF(!hapi_model_from_bytes(&p, bytes, size, NULL, &err), "%s: %s", ids[i], err.text);
        CHECK(hapi_model_inputs(p, &in) == 1 && !strcmp(in[0].name, "x"));
        REQUIRE(!hapi_model_cut_find(m, ids[i], &a, &err) && !hapi_model_cut_find(p, ids[i], &b, &err));
        CHECK(a->flops == b->flops && a->bytes_f32 == b->bytes_f32 && a->params == b->params);
        for (size_t k = 0; k < 2; k++) {
            float *s1 = NULL, *s2 = NULL;
            bool two = a->n_tensors == 2;
            float *r1 =
                run(m, backends[k], NULL, ids[i], 2, (const float *const[]){x}, 1, &n1, two ? &s1 : NULL);
            float *r2 =
                run(p, backends[k], NULL, NULL, 2, (const float *const[]){x}, 1, &n2, two ? &s2 : NULL);
            CHECKF(n1 == n2 && !memcmp(r1, r2, n1 * 4), "%s: %s", backends[k], ids[i]);
            CHECK(!two || !memcmp(s1, s2, n1 * 4));
            free(r1);
            free(r2);
            free(s1);
            free(s2);
        }
        /* What comes later has been left out. */
        void *full;
        size_t full_size;
        REQUIRE(!hapi_model_prefix_bytes(m, "y", &full, &full_size, &err));
        CHECK(size < full_size || !strcmp(ids[i], "y"));
        free(full);
        hapi_model_close(p);
    }
    void *bytes;
    size_t size;
    CHECK(hapi_model_prefix_bytes(m, "block_bn", &bytes, &size, &err) == HAPI_EINVAL);
    CHECK(hapi_model_prefix_bytes(m, NULL, &bytes, &size, &err) == HAPI_EINVAL);
    hapi_model_close(m);
    free(x);
}

int main(void)
{
    CASE(listing__residual__has_each_cut_once_in_order);
    CASE(listing__two_inputs_and_outputs__need_all_paths);
    CASE(listing__names_that_repeat__are_told_apart);
    CASE(all__residual__has_what_is_alive_after_each_node);
    CASE(all__inside_of_a_gelu_or_silu__has_nothing);
    CASE(all__of_100000_nodes__is_bounded);
    CASE(all__of_100000_nodes_that_read_from_afar__takes_linear_time);
    CASE(find__sets_of_tensors__must_separate);
    CASE(find__any_id__costs_bounded_memory);
    CASE(standard__is_the_classifiers_input_or_the_last_cut);
    CASE(batch__held_by_a_reshape__is_said);
    CASE(prefix_and_suffix__every_cut__give_the_bits_of_the_whole);
    CASE(prefix_bytes__every_cut__load_again_and_give_the_same_bits);
    return check_done();
}
