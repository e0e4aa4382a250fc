/* cuDNN compiles for a device that is only described. Needs cuDNN, and neither a GPU nor a driver: plans that
 * cuDNN's own kernels serve. (Those that it compiles at run time: tests/kernels/test_cudnn_plans.py.) */
#include "check.h"

#if HAPI_HAVE_CUDNN

#include "cudnn_lib.h"
#include "cudnn_plans.h"

static struct hapi_err err;

/* cuDNN loads libraries with a C++ runtime of their own, whose memory for exceptions stays behind when they
 * are unloaded: 72,704 bytes of no module that a suppression could name. What we keep ourselves is checked
 * over the fake cuDNN (test_gpu_backend.c). */
#if CHECK_SANITIZED
int __lsan_is_turned_off(void);
int __lsan_is_turned_off(void)
{
    return 1;
}
#endif

static struct hapi_cudnn_device *device(const char *name)
{
    const char *text = hapi_cudnn_device_text(name);
    struct hapi_cudnn_device *d = NULL;

    REQUIRE(text);
    CHECKF(!hapi_cudnn_device_parse(&d, text, strlen(text), &err), "%s", err.text);
    REQUIRE(d);
    return d;
}

static void devices__built_in__are_known_to_cudnn(void)
{
    struct hapi_cudnn_device *h = device("h100"), *a = device("a100");

    CHECK(hapi_cudnn_device_version(h) == 900 && hapi_cudnn_device_version(a) == 800);
    CHECK(strstr(hapi_cudnn_device_name(h), "H100") && strstr(hapi_cudnn_device_name(a), "A100"));
    CHECK(!hapi_cudnn_device_text("h99"));
    hapi_cudnn_device_free(a);
    hapi_cudnn_device_free(h);
}

static void bad(const char *json, const char *word)
{
    struct hapi_cudnn_device *d = NULL;
    int rc = hapi_cudnn_device_parse(&d, json, strlen(json), &err);

    CHECKF(rc == HAPI_EFORMAT && strstr(err.text, word), "%d: %s", rc, rc ? err.text : "accepted");
    if (!rc)
        hapi_cudnn_device_free(d);
}

/* h100's description with `from` turned into `to`. */
static void bad_if(const char *from, const char *to, const char *word)
{
    const char *good = hapi_cudnn_device_text("h100"), *at = strstr(good, from);
    char text[4096];

    REQUIRE(at);
    REQUIRE(snprintf(text, sizeof text, "%.*s%s%s", (int)(at - good), good, to, at + strlen(from)) <
            (int)sizeof text);
    bad(text, word);
}

static void devices__badly_described__are_refused_by_the_key(void)
{
    bad("", "not a JSON object");
    bad("[1]", "not a JSON object");
    bad("{}", "cudaDeviceId");
    bad_if("\"warpSize\": 32,", "", "warpSize");
    bad_if("\"warpSize\": 32", "\"warpSize\": \"32\"", "warpSize");
    bad_if("\"warpSize\": 32", "\"warpSize\": -32", "warpSize");
    bad_if("\"warpSize\": 32", "\"warpSize\": 31.5", "warpSize");
    bad_if("[2147483647, 65535, 65535]", "[2147483647, 65535]", "maxGridSize");
    bad_if("\"warpSize\": 32", "\"warpSize\": 32, \"colour\": 1", "colour");
}

static int image(struct hapi_cudnn_graph *g, enum hapi_dtype dtype, int64_t n, int64_t c, int64_t h)
{
    const int64_t dim[4] = {n, c, h, h}, stride[4] = {c * h * h, 1, c * h, c};

    return hapi_cudnn_tensor_add(g, dtype, 4, dim, stride, false);
}

static struct hapi_cudnn_graph conv(enum hapi_dtype dtype, int64_t channels)
{
    struct hapi_cudnn_graph g = {.name = "/conv/Conv"};
    int x = image(&g, dtype, 8, 64, 56), w = image(&g, dtype, 64, channels, 3),
        y = image(&g, dtype, 8, 64, 56);
    struct hapi_cudnn_op *op = hapi_cudnn_op_add(&g, HAPI_CUDNN_CONV, y);

    op->n_in = 2;
    op->in[0] = x;
    op->in[1] = w;
    op->spatial = 2;
    for (int i = 0; i < 2; i++) {
        op->kernel[i] = 3;
        op->stride[i] = op->dilation[i] = op->pad_begin[i] = op->pad_end[i] = 1;
    }
    return g;
}

static void plans__of_one_graph__are_made_once(void)
{
    struct hapi_cudnn_device *d = device("h100");
    struct hapi_cudnn_graph g = conv(HAPI_F16, 64), again = conv(HAPI_F16, 64), other = conv(HAPI_BF16, 64);
    struct hapi_cudnn_plans *plans;
    uint64_t workspace = 0;
    int a = -1, b = -1, c = -1;

    again.name = "/another/Conv";
    REQUIRE(!hapi_cudnn_plans_new(&plans, d, NULL, &err));
    CHECKF(!hapi_cudnn_plans_make(plans, &g, &a, &workspace, &err), "%s", err.text);
    CHECKF(!hapi_cudnn_plans_make(plans, &again, &b, &workspace, &err), "%s", err.text);
    CHECKF(!hapi_cudnn_plans_make(plans, &other, &c, &workspace, &err), "%s", err.text);
    CHECK(a == b && a != c && hapi_cudnn_plans_count(plans) == 2);
    struct hapi_cudnn_made m = hapi_cudnn_plans_get(plans, (size_t)a);
    REQUIRE(m.plan);
    struct hapi_cudnn_plan_info info = hapi_cudnn_plan_info_get(m.plan);
    CHECK(m.uses == 2 && !strncmp(info.engine, "eng", 3) && m.build_ns > 0);
    hapi_cudnn_plans_free(plans);
    hapi_cudnn_device_free(d);
}

static void plans__of_a_wrong_graph__are_our_mistake_and_no_refusal(void)
{
    struct hapi_cudnn_device *d = device("h100");
    struct hapi_cudnn_graph g = conv(HAPI_F16, 48);
    struct hapi_cudnn_plans *plans;
    uint64_t workspace = 0;
    int plan = -1;

    REQUIRE(!hapi_cudnn_plans_new(&plans, d, NULL, &err));
    CHECK(hapi_cudnn_plans_make(plans, &g, &plan, &workspace, &err) == HAPI_EINVAL);
    CHECKF(strstr(err.text, "/conv/Conv") && strstr(err.text, "channels"), "%s", err.text);
    g = conv(HAPI_F64, 64);
    CHECK(hapi_cudnn_plans_make(plans, &g, &plan, &workspace, &err) == HAPI_EINVAL);
    CHECKF(strstr(err.text, "f64"), "%s", err.text);
    CHECK(hapi_cudnn_plans_count(plans) == 0);
    hapi_cudnn_plans_free(plans);
    hapi_cudnn_device_free(d);
}

/* f32 convolutions of bytes: our validator lets it pass, no engine takes it. */
static void plans__that_no_engine_takes__are_refused_and_remembered(void)
{
    struct hapi_cudnn_device *d = device("h100");
    struct hapi_cudnn_graph g = conv(HAPI_U8, 64);
    struct hapi_cudnn_plans *plans;
    uint64_t workspace = 0;
    int plan = -1;

    REQUIRE(!hapi_cudnn_plans_new(&plans, d, NULL, &err));
    for (int i = 0; i < 2; i++) {
        CHECK(hapi_cudnn_plans_make(plans, &g, &plan, &workspace, &err) == HAPI_EUNSUPPORTED);
        CHECKF(strstr(err.text, "/conv/Conv") && strstr(err.text, "H100"), "%s", err.text);
    }
    CHECK(hapi_cudnn_plans_count(plans) == 1 && !hapi_cudnn_plans_get(plans, 0).plan);
    hapi_cudnn_plans_free(plans);
    hapi_cudnn_device_free(d);
}

/* ------------------------------------------------------------------ on disk */

/* Makes the plan of g with that folder; returns whether it came from there. */
static bool made_with(const struct hapi_cudnn_device *d, const struct hapi_cudnn_graph *g, const char *folder)
{
    struct hapi_cudnn_plans *plans;
    uint64_t workspace = 0;
    int plan = -1;

    REQUIRE(!hapi_cudnn_plans_new(&plans, d, folder, &err));
    CHECKF(!hapi_cudnn_plans_make(plans, g, &plan, &workspace, &err), "%s", err.text);
    bool kept = hapi_cudnn_plans_get(plans, 0).kept;
    hapi_cudnn_plans_free(plans);
    return kept;
}

static void shell(const char *fmt, const char *folder)
{
    char command[256];

    snprintf(command, sizeof command, fmt, folder);
    CHECK(system(command) == 0);
}

static void cache__of_the_same_device__is_used(void)
{
    char top[] = "/tmp/hapi-test-XXXXXX", folder[64];
    struct hapi_cudnn_device *h = device("h100"), *a = device("a100");
    struct hapi_cudnn_graph g = conv(HAPI_F16, 64), other = conv(HAPI_BF16, 64);

    REQUIRE(mkdtemp(top));
    snprintf(folder, sizeof folder, "%s/new/cudnn", top);
    CHECK(!made_with(h, &g, folder));
    CHECK(made_with(h, &g, folder));
    CHECK(!made_with(h, &other, folder));
    CHECK(!made_with(a, &g, folder)); /* another device: another plan */
    shell("test $(ls %s | wc -l) = 3", folder);
    shell("test $(stat -c %%a %s) = 700", folder);
    /* Damaged, foreign or empty: made anew, and kept. */
    shell("for f in %s/*; do echo '{}' > $f; done", folder);
    CHECK(!made_with(h, &g, folder));
    CHECK(made_with(h, &g, folder));
    shell("for f in %s/*; do : > $f; done", folder);
    CHECK(!made_with(h, &g, folder));
    shell("for f in %s/*; do head -c 500 $f > $f.x; mv $f.x $f; done", folder);
    CHECK(!made_with(h, &g, folder));
    /* What a process of the same number left when it died in between. */
    shell("for f in %s/*; do mv $f $f.$PPID; done", folder);
    CHECK(!made_with(h, &g, folder));
    CHECK(made_with(h, &g, folder));
    shell("rm -r %s", top);
    hapi_cudnn_device_free(a);
    hapi_cudnn_device_free(h);
}

static void cache__that_cannot_be_written__costs_time_only(void)
{
    struct hapi_cudnn_device *h = device("h100");
    struct hapi_cudnn_graph g = conv(HAPI_F16, 64);

    CHECK(!made_with(h, &g, "/proc/nowhere"));
    CHECK(!made_with(h, &g, "/dev/null/x"));
    hapi_cudnn_device_free(h);
}

/* ------------------------------------------------------------------ tuned plans */

/* Takes the plan of that number for the fastest; runs `meanwhile` first. */
struct choice {
    int number, asked, candidates;
    void (*meanwhile)(const char *folder);
    const char *folder;
};

static int choose(void *arg, const struct hapi_cudnn_graph *g, struct hapi_cudnn_plan *const *plans, int n,
                  int *best, struct hapi_err *e)
{
    struct choice *c = arg;
    struct hapi_cudnn_plan_info first = hapi_cudnn_plan_info_get(plans[0]);

    (void)e;
    CHECK(n > 1 && n <= HAPI_CUDNN_CANDIDATES && !strcmp(g->name, "/conv/Conv"));
    for (int i = 1; i < n; i++)
        CHECK(strcmp(hapi_cudnn_plan_info_get(plans[i]).engine, first.engine) != 0);
    c->asked++;
    c->candidates = n;
    if (c->meanwhile)
        c->meanwhile(c->folder);
    *best = c->number < n ? c->number : n - 1;
    return HAPI_OK;
}

static void nobody(void *arg, const struct hapi_err *e)
{
    (void)arg;
    CHECKF(0, "untuned: %s", e->text);
}

/* The plan of g, tuned, as text (the caller frees). *kept: it came from the folder. */
static char *tuned_with(const struct hapi_cudnn_graph *g, const char *folder, struct choice *c, bool *kept)
{
    struct hapi_cudnn_device *d = device("h100");
    struct hapi_cudnn_plans *plans;
    uint64_t workspace = 0;
    char *text = NULL;
    int plan = -1;

    REQUIRE(!hapi_cudnn_plans_new(&plans, d, folder, &err));
    hapi_cudnn_plans_tune(plans, &(struct hapi_cudnn_tuner){choose, nobody, c});
    CHECKF(!hapi_cudnn_plans_make(plans, g, &plan, &workspace, &err), "%s", err.text);
    struct hapi_cudnn_made m = hapi_cudnn_plans_get(plans, (size_t)plan);
    *kept = m.kept;
    REQUIRE(m.plan && m.tuned && !hapi_cudnn_plan_text(m.plan, &text, &err));
    hapi_cudnn_plans_free(plans);
    hapi_cudnn_device_free(d);
    return text;
}

static void tuned__are_not_taken_for_others(void)
{
    char top[] = "/tmp/hapi-test-XXXXXX";
    struct hapi_cudnn_device *h = device("h100");
    struct hapi_cudnn_graph g = conv(HAPI_F16, 64);
    struct choice second = {.number = 1}, first = {.number = 0};
    struct hapi_cudnn_plan *p;
    bool kept;

    REQUIRE(mkdtemp(top));
    CHECK(!made_with(h, &g, top));
    char *a = tuned_with(&g, top, &second, &kept);
    CHECK(!kept && second.asked == 1 && second.candidates > 1);
    char *b = tuned_with(&g, top, &first, &kept);
    CHECK(kept && !first.asked && !strcmp(a, b));
    CHECK(made_with(h, &g, top));
    shell("test $(ls %s/*.json | wc -l) = 2", top);
    /* The heuristics' own choice is the first candidate, and was not what was kept. */
    char *c = NULL;
    REQUIRE(!hapi_cudnn_plan_new(&p, h, &g, &err) && !hapi_cudnn_plan_text(p, &c, &err));
    CHECK(strcmp(a, c) != 0);
    hapi_cudnn_plan_free(p);
    shell("rm %s/*.tuned.json", top);
    CHECK(made_with(h, &g, top));
    free(b);
    b = tuned_with(&g, top, &first, &kept);
    CHECK(!kept && first.asked == 1 && !strcmp(b, c));
    shell("rm -r %s", top);
    free(c);
    free(b);
    free(a);
    hapi_cudnn_device_free(h);
}

static char *of_the_other;

static void the_other_is_faster(const char *folder)
{
    struct hapi_cudnn_graph g = conv(HAPI_F16, 64);
    bool kept;

    of_the_other = tuned_with(&g, folder, &(struct choice){.number = 1}, &kept);
}

/* Two processes that tune at once, and say that they have the same engines. */
static void tuned__by_two_at_once__are_the_same(void)
{
    char top[] = "/tmp/hapi-test-XXXXXX";
    struct hapi_cudnn_graph g = conv(HAPI_F16, 64);
    struct choice first = {.number = 0, .meanwhile = the_other_is_faster, .folder = top};
    bool kept;

    REQUIRE(mkdtemp(top));
    char *mine = tuned_with(&g, top, &first, &kept);
    REQUIRE(of_the_other);
    CHECK(first.asked == 1 && !strcmp(mine, of_the_other));
    shell("rm -r %s", top);
    free(of_the_other);
    free(mine);
}

int main(void)
{
    const struct hapi_cudnn_lib *lib;

    if (hapi_cudnn_lib_get(&lib, &err)) {
        printf("skipped: %s\n", err.text);
        return 77;
    }
    CASE(devices__built_in__are_known_to_cudnn);
    CASE(devices__badly_described__are_refused_by_the_key);
    CASE(plans__of_one_graph__are_made_once);
    CASE(plans__of_a_wrong_graph__are_our_mistake_and_no_refusal);
    CASE(plans__that_no_engine_takes__are_refused_and_remembered);
    CASE(cache__of_the_same_device__is_used);
    CASE(cache__that_cannot_be_written__costs_time_only);
    CASE(tuned__are_not_taken_for_others);
    CASE(tuned__by_two_at_once__are_the_same);
    return check_done();
}

#else

int main(void)
{
    SKIP("this build has no cuDNN");
    return 77;
}

#endif
