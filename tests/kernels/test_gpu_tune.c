/*
 * Engines tried out on a GPU, over a driver and a cuDNN that compute nothing (tests/fake_cuda) and whose
 * engines take as long as a test says: the fastest is chosen, kept, and found again by those who ask for it.
 */
#include "check.h"

#if HAPI_HAVE_CUDNN

#include <dirent.h>
#include <unistd.h>

#include "build_model.h"
#include "fake_gpu.h"

enum { FIRST, SECOND, THIRD, ENGINES };

static void (*engines)(int n, const double *us);
static long (*ran)(int engine);
static char folder[] = "/tmp/hapi-test-XXXXXX", plain[128];

static const double second_is_fastest[ENGINES] = {30, 10, 20}, third_is_fastest[ENGINES] = {30, 20, 10};

static int said;
static char why_said[HAPI_ERR_TEXT];

static void untuned(const struct hapi_err *why)
{
    said++;
    snprintf(why_said, sizeof why_said, "%s", why->text);
}

static void tune_on(const double *us)
{
    engines(ENGINES, us);
    said = 0;
    CHECKF(!hapi_backend_tune("cudnn", untuned, &err), "%s", err.text);
}

static void tune_off(void)
{
    CHECK(!hapi_backend_tune("cudnn", NULL, &err));
    engines(0, NULL);
}

/* One convolution and one product: two operation graphs. */
static struct hapi_model *small(void)
{
    struct build b = {.attrs = {.p = NULL}};
    struct hapi_model *m;
    size_t size;

    INPUT(&b, "x", -1, 8, 4, 4);
    OUTPUT(&b, "y");
    WEIGHTS(&b, "w", 8, 8, 3, 3);
    WEIGHTS(&b, "p", 32, 16);
    build_node(&b, "Conv", "/conv", "x,w", "c");
    build_int(&b, "axis", 1);
    build_node(&b, "Flatten", "/flat", "c", "f");
    build_node(&b, "MatMul", "/product", "f,p", "y");
    void *bytes = build_finish(&b, 8, 13, &size);
    REQUIRE(!hapi_model_from_bytes(&m, bytes, size, NULL, &err));
    return m;
}

/* The engine that every operation graph of a new plan of m runs with; -1: several do. *tried: plans of
 * engines that were run to find it. */
static int engine_of(struct hapi_model *m, long *tried)
{
    long before[ENGINES], made[ENGINES];
    struct hapi_plan *p;
    int found = -1, n = 0;

    *tried = 0;
    for (int i = 0; i < ENGINES; i++)
        before[i] = ran(i);
    REQUIRE(!hapi_plan_new(&p, m, &half, &err));
    for (int i = 0; i < ENGINES; i++)
        made[i] = ran(i);
    CHECKF(!run_once(p), "%s", err.text);
    for (int i = 0; i < ENGINES; i++) {
        *tried += made[i] - before[i];
        if (ran(i) > made[i]) {
            found = i;
            n++;
        }
    }
    hapi_plan_free(p);
    return n == 1 ? found : -1;
}

static void class_of(char *buf, size_t size)
{
    snprintf(buf, size, "%s", hapi_numeric_class("cudnn"));
}

/* How many files are kept whose names end so. */
static int kept(const char *suffix)
{
    char path[256];
    struct dirent *e;
    int n = 0;

    snprintf(path, sizeof path, "%s/cudnn", folder);
    DIR *d = opendir(path);
    while (d && (e = readdir(d)))
        n += strlen(e->d_name) > strlen(suffix) &&
             !strcmp(e->d_name + strlen(e->d_name) - strlen(suffix), suffix);
    if (d)
        closedir(d);
    return n;
}

static void shell(const char *fmt)
{
    char command[256];

    snprintf(command, sizeof command, fmt, folder);
    CHECK(system(command) == 0);
}

/* Each case begins with an empty folder. */
static void fresh(void)
{
    shell("rm -rf %s/cudnn");
}

static void tune__of_three_engines__takes_the_fastest(void)
{
    struct hapi_model *m = model();
    struct hapi_plan *keeps; /* the device, and with it its plans of either kind */
    long tried;
    char class[128];

    fresh();
    engines(ENGINES, second_is_fastest);
    REQUIRE(!hapi_plan_new(&keeps, m, &half, &err));
    CHECK(engine_of(m, &tried) == FIRST);
    tune_on(second_is_fastest);
    class_of(class, sizeof class);
    CHECKF(!strncmp(class, plain, strlen(plain)) && !strncmp(class + strlen(plain), "/tuned-", 7) &&
               strspn(class + strlen(plain) + 7, "0123456789abcdef") == 8 &&
               strlen(class) == strlen(plain) + 15,
           "%s", class);
    CHECK(engine_of(m, &tried) == SECOND && tried > 0 && !said);
    tune_off();
    CHECK(!strcmp(hapi_numeric_class("cudnn"), plain));
    CHECK(engine_of(m, &tried) == FIRST);
    hapi_plan_free(keeps);
    hapi_model_close(m);
    rules_kept(0);
}

/* Kept by those who asked for it, for those who ask for it; plans of heuristics are another matter. */
static void tune__of_a_folder__is_found_again(void)
{
    struct hapi_model *m = small();
    char class[128];
    long tried;

    fresh();
    engines(ENGINES, second_is_fastest);
    CHECK(engine_of(m, &tried) == FIRST);
    int heuristics = kept(".json");
    tune_on(second_is_fastest);
    class_of(class, sizeof class);
    CHECK(engine_of(m, &tried) == SECOND && tried >= ENGINES * heuristics);
    long first = tried;
    tune_off();
    CHECKF(heuristics == 2 && kept(".tuned.json") == 2 && kept(".json") == 4, "%d and %d of %d plans kept",
           heuristics, kept(".tuned.json"), kept(".json"));
    tune_on(third_is_fastest); /* what is kept was faster once: it is not tried again */
    CHECK(!strcmp(hapi_numeric_class("cudnn"), class));
    CHECK(engine_of(m, &tried) == SECOND && tried < first);
    tune_off();
    engines(ENGINES, third_is_fastest);
    CHECK(engine_of(m, &tried) == FIRST);
    engines(0, NULL);
    hapi_model_close(m);
    rules_kept(0);
}

static void tune__of_a_damaged_folder__is_done_again_under_another_name(void)
{
    struct hapi_model *m = small();
    char class[128];
    long tried;

    fresh();
    tune_on(second_is_fastest);
    class_of(class, sizeof class);
    CHECK(engine_of(m, &tried) == SECOND);
    tune_off();
    shell("for f in %s/cudnn/*.tuned.json; do echo '{}' > $f; done");
    tune_on(third_is_fastest);
    CHECK(engine_of(m, &tried) == THIRD);
    tune_off();
    tune_on(second_is_fastest);
    CHECK(strcmp(hapi_numeric_class("cudnn"), class) != 0);
    CHECK(engine_of(m, &tried) == THIRD && kept(".tuned.json") == 2);
    class_of(class, sizeof class);
    tune_off();
    shell("echo damaged > %s/cudnn/tuned-by"); /* the name itself */
    tune_on(second_is_fastest);
    CHECK(strcmp(hapi_numeric_class("cudnn"), class) != 0);
    class_of(class, sizeof class);
    tune_off();
    tune_on(second_is_fastest);
    CHECK(!strcmp(hapi_numeric_class("cudnn"), class));
    tune_off();
    hapi_model_close(m);
    rules_kept(0);
}

/* Nobody finds these choices again, and nobody may take others' for them. */
static void tune__without_a_folder__has_a_new_name_each_time(void)
{
    char class[128];

    setenv("HAPI_CACHE", "/dev/null/nowhere", 1);
    tune_on(second_is_fastest);
    class_of(class, sizeof class);
    tune_off();
    tune_on(second_is_fastest);
    CHECK(strcmp(hapi_numeric_class("cudnn"), class) != 0);
    tune_off();
    setenv("HAPI_CACHE", folder, 1);
    rules_kept(0);
}

static void tune__without_memory__keeps_the_first_and_says_so_once(void)
{
    struct hapi_model *m = small();
    char class[128];
    long tried;

    fresh();
    REQUIRE(!hapi_backend_reserve("cudnn", 8 << 20, &err));
    tune_on(second_is_fastest);
    class_of(class, sizeof class);
    CHECK(engine_of(m, &tried) == FIRST);
    CHECKF(said == 1 && strstr(why_said, "trying out engines"), "said %d times: %s", said, why_said);
    CHECK(!kept(".tuned.json")); /* it was not found out which is the fastest */
    tune_off();
    hapi_backend_release("cudnn");
    rules_kept(0);
    tune_on(second_is_fastest); /* and when it is, these are other choices */
    CHECK(engine_of(m, &tried) == SECOND && !said);
    CHECK(strcmp(hapi_numeric_class("cudnn"), class) != 0);
    tune_off();
    hapi_model_close(m);
    rules_kept(0);
}

static void tune__of_an_engine_that_does_not_run__takes_another(void)
{
    struct hapi_model *m = small();
    struct hapi_plan *p;
    long tried;

    fresh();
    tune_on((const double[ENGINES]){-1, 20, 10});
    CHECK(engine_of(m, &tried) == THIRD);
    tune_off();
    fresh();
    tune_on((const double[ENGINES]){-1, -1, -1});
    CHECK(hapi_plan_new(&p, m, &half, &err) == HAPI_ESYS && strstr(err.text, "/conv"));
    CHECK(!kept(".tuned.json"));
    tune_off();
    hapi_model_close(m);
    rules_kept(0);
}

/* As test_gpu_backend.c does it, with tuning in each plan. */
static void tune__any_call_fails__leaves_nothing(void)
{
    struct hapi_model *m = small();
    bool failed = true;
    long n = 0;

    setenv("HAPI_CACHE", "/dev/null/nowhere", 1); /* or the first would be the last that tunes */
    for (; failed && n < 20000; n += CHECK_SANITIZED ? 23 : 1) {
        struct hapi_plan *p = NULL;
        long calls = report().calls;
        engines(ENGINES, second_is_fastest);
        fail_at(n + 1, n % 2 ? CUDA_ERROR_OUT_OF_MEMORY : CUDA_ERROR_ILLEGAL_ADDRESS);
        int rc = hapi_backend_tune("cudnn", untuned, &err);
        if (!rc)
            rc = hapi_plan_new(&p, m, &half, &err);
        if (!rc)
            rc = run_once(p);
        hapi_plan_free(p);
        tune_off();
        failed = report().calls > calls + n;
        fail_at(0, 0);
        CHECKF(!rc || *err.text, "an error without a word at call %ld", n + 1);
        struct fake_cuda_report r = report();
        CHECKF(!r.wrong && !r.live, "call %ld: %ld rules broken (%s), %ld things live", n + 1, r.wrong,
               r.what, r.live);
        if (r.wrong || r.live)
            break;
    }
    printf("%ld calls, each failed once\n", n);
    CHECK(!failed && n > 300);
    setenv("HAPI_CACHE", folder, 1);
    hapi_model_close(m);
}

static void tune__of_a_cpu__is_refused(void)
{
    CHECK(hapi_backend_tune("onednn", untuned, &err) == HAPI_EUNSUPPORTED && strstr(err.text, "onednn"));
    CHECK(hapi_backend_tune("nonesuch", untuned, &err) == HAPI_EINVAL);
}

int main(void)
{
    if (fake_open())
        return 1;
    void *cudnn = dlopen("libcudnn.so.9", RTLD_NOW);
    REQUIRE(fake_find(cudnn, "fake_cudnn_engines", &engines) && fake_find(cudnn, "fake_cudnn_ran", &ran));
    REQUIRE(mkdtemp(folder));
    setenv("HAPI_CACHE", folder, 1);
    setenv("HAPI_CUDA_GRAPHS", "0", 1); /* which engine runs is seen where it is launched */
    class_of(plain, sizeof plain);
    CASE(tune__of_three_engines__takes_the_fastest);
    CASE(tune__of_a_folder__is_found_again);
    CASE(tune__of_a_damaged_folder__is_done_again_under_another_name);
    CASE(tune__without_a_folder__has_a_new_name_each_time);
    CASE(tune__without_memory__keeps_the_first_and_says_so_once);
    CASE(tune__of_an_engine_that_does_not_run__takes_another);
    CASE(tune__any_call_fails__leaves_nothing);
    CASE(tune__of_a_cpu__is_refused);
    shell("rm -r %s");
    return check_done();
}

#else

int main(void)
{
    SKIP("this build has no cuDNN");
}

#endif
