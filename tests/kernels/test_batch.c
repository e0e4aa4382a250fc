/* Models with a fixed batch: re-bound where that is proven, else run as many samples at a time as the file
 * says, the last ones padded. */
#include "check.h"
#include "networks.h"

static const char *const backends[] = {"ref", "onednn"};
static const char *backend; /* of the case at hand */
static struct hapi_err err;

/* y of n samples of x (6 floats each), malloc'd. Exactly as long as it must be, for sanitizers. */
static float *run(struct hapi_model *m, const char *with, const char *from, const char *to, int64_t n,
                  const float *x)
{
    struct hapi_plan_spec spec = {.from = from, .to = to, .batch = n, .dtype = HAPI_F32, .backend = with};
    struct hapi_plan_memory before;
    struct net_plan p;

    if (hapi_plan_memory_query(m, &spec, &before, &err) || net_plan_open(&p, m, &spec, &err)) {
        fprintf(stderr, "%s\n", err.text);
        exit(1);
    }
    struct hapi_plan_memory after = hapi_plan_memory_get(p.plan);
    CHECK(!memcmp(&before, &after, sizeof before));
    REQUIRE(p.n_in == 1 && p.n_out == 1 && p.in->shape.dim[0] == n && p.out->shape.dim[0] == n);
    size_t bytes = net_elements(p.out) * 4;
    float *y = malloc(bytes), *own = malloc(net_elements(p.in) * 4);
    REQUIRE(y && own);
    memcpy(own, x, net_elements(p.in) * 4);
    CHECKF(!hapi_plan_run(p.plan, p.arena, (const void *[]){own}, (void *[]){y}, &err), "%s", err.text);
    CHECK(!memcmp(own, x, net_elements(p.in) * 4));
    net_plan_close(&p);
    free(own);
    return y;
}

static bool near(const float *a, const float *b, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (!(fabsf(a[i] - b[i]) <= 1e-6F))
            return false;
    return true;
}

/* (n,2,3) for the file's batch of n, whose Reshape constant holds it. */
static struct hapi_model *fixed_model(int64_t n)
{
    struct build b = {0};

    INPUT(&b, "x", n, 6);
    OUTPUT(&b, "y");
    I64S(&b, "s", n, 2, 3);
    build_node(&b, "Reshape", "re", "x,s", "r");
    build_node(&b, "Softmax", "", "r", "y");
    return net_finish(&b);
}

static void batch__fixed_to_one_in_a_reshape__runs_samples_one_at_a_time(void)
{
    struct hapi_model *m = fixed_model(1);
    const struct hapi_cut *cuts;
    int64_t fixed;
    size_t n;
    float x[18];

    for (int i = 0; i < 18; i++)
        x[i] = (float)(i * i % 7);
    CHECK(hapi_model_batch(m, &fixed) == HAPI_MODEL_BATCH_ONE && fixed == 1);
    CHECK(!hapi_model_cuts(m, &cuts, &n, &err) && n == 1 && !strcmp(cuts[0].id, "y"));
    float *y = run(m, backend, NULL, NULL, 3, x);
    for (int k = 0; k < 3; k++) {
        float *z = run(m, backend, NULL, NULL, 1, x + 6 * k);
        CHECK(!memcmp(z, y + 6 * k, 6 * sizeof *z));
        free(z);
    }
    free(y);
    hapi_model_close(m);
}

enum { GROUP = 4, SAMPLES = 2 * GROUP + 1 };

/* Whatever the micro-batch, each sample's result is what the same network for any batch makes of it alone. */
static void batch__fixed_to_a_group__each_sample_as_alone(void)
{
    static const int64_t batches[] = {1, GROUP - 1, GROUP, GROUP + 1, 2 * GROUP, SAMPLES};
    struct hapi_model *m = net_grouped(GROUP), *any = net_grouped(-1);
    float *x = net_input(SAMPLES * 6, 3);
    struct hapi_plan_spec group = {.batch = GROUP, .dtype = HAPI_F32, .backend = backend};
    struct hapi_plan_memory memory, whole;
    int64_t fixed;

    REQUIRE(!hapi_plan_memory_query(m, &group, &whole, &err));
    CHECK(hapi_model_batch(m, &fixed) == HAPI_MODEL_BATCH_PADDED && fixed == GROUP);
    CHECK(hapi_model_batch(any, NULL) == HAPI_MODEL_BATCH_FREE);
    for (size_t i = 0; i < sizeof batches / sizeof *batches; i++) {
        struct hapi_plan_spec spec = {.batch = batches[i], .dtype = HAPI_F32, .backend = backend};
        REQUIRE(!hapi_plan_memory_query(m, &spec, &memory, &err));
        bool padded = batches[i] % GROUP;
        CHECK(memory.arena + memory.scratch >= whole.arena + whole.scratch + padded * GROUP * (6 + 5) * 4);
        float *y = run(m, backend, NULL, NULL, batches[i], x);
        float *p = run(m, backend, NULL, "p", batches[i], x), *z = run(m, backend, "p", NULL, batches[i], p);
        for (int64_t k = 0; k < batches[i]; k++) {
            float *alone = run(any, "ref", NULL, NULL, 1, x + 6 * k);
            CHECKF(near(alone, y + 5 * k, 5), "sample %d of %d", (int)k, (int)batches[i]);
            CHECKF(near(alone, z + 5 * k, 5), "sample %d of %d in two parts", (int)k, (int)batches[i]);
            free(alone);
        }
        free(y);
        free(p);
        free(z);
    }
    free(x);
    hapi_model_close(any);
    hapi_model_close(m);
}

/* Where samples are not independent, a sample that is alone in its group meets copies of itself. */
static void batch__fixed_to_a_group_that_mixes__padded_with_the_last_sample(void)
{
    struct build b = {0};
    float *x = net_input(SAMPLES * 6, 4);

    INPUT(&b, "x", GROUP, 6);
    OUTPUT(&b, "y");
    I64S(&b, "first", 0);
    build_node(&b, "ReduceSum", "", "x,first", "s");
    build_node(&b, "Add", "", "x,s", "y");
    struct hapi_model *m = net_finish(&b);
    CHECK(hapi_model_batch(m, NULL) == HAPI_MODEL_BATCH_PADDED);
    for (int64_t n = 1; n <= SAMPLES; n++) {
        float *y = run(m, backend, NULL, NULL, n, x);
        for (int64_t i = 0; i < n * 6; i++) {
            int64_t group = i / 6 / GROUP * GROUP, last = n - 1;
            float sum = 0;
            for (int64_t k = group; k < group + GROUP; k++)
                sum += x[(k < last ? k : last) * 6 + i % 6];
            CHECKF(near(&y[i], &(float){x[i] + sum}, 1), "%d of %d", (int)i, (int)n);
        }
        free(y);
    }
    free(x);
    hapi_model_close(m);
}

/* Cuts and edges are of one sample, and none is where dim 0 is something else. */
static void batch__fixed_to_a_group__cuts_are_of_one_sample(void)
{
    static const char *const ids[] = {"h", "sum", "p", "y"};
    struct hapi_model *m = net_grouped(GROUP), *any = net_grouped(-1), *square = net_grouped(3);
    const struct hapi_tensor_desc *in, *out;
    const struct hapi_cut *a, *b;
    size_t n;

    REQUIRE(hapi_model_inputs(m, &in) == 1 && hapi_model_outputs(m, &out) == 1);
    CHECK(in->shape.dim[0] == 1 && out->shape.dim[0] == 1 && out->shape.dim[1] == 5);
    for (size_t i = 0; i < sizeof ids / sizeof *ids; i++) {
        CHECKF(!hapi_model_cut_find(m, ids[i], &a, &err), "%s", err.text);
        CHECK(!hapi_model_cut_find(any, ids[i], &b, &err));
        CHECK(a->bytes_f32 == b->bytes_f32 && a->flops == b->flops && a->params == b->params);
        CHECK(hapi_shape_equal(&a->tensors[0].shape, &b->tensors[0].shape));
    }
    REQUIRE(!hapi_model_cuts(m, &a, &n, &err));
    CHECKF(n == sizeof ids / sizeof *ids, "%zu cuts", n);
    for (size_t i = 0; i < n && i < sizeof ids / sizeof *ids; i++)
        CHECKF(!strcmp(a[i].id, ids[i]), "%s", a[i].id);
    /* Three samples: now (3,3,2) looks like a batch, and is none. */
    CHECK(hapi_model_batch(square, NULL) == HAPI_MODEL_BATCH_PADDED);
    CHECK(hapi_model_cut_find(square, "moved,h", &a, &err) == HAPI_EINVAL);
    CHECKF(strstr(err.text, "\"moved\" cannot be in a cut"), "%s", err.text);
    CHECK(!hapi_model_cut_find(square, "h,r", &a, &err));
    hapi_model_close(square);
    hapi_model_close(any);
    hapi_model_close(m);
}

/* What cannot run in groups says why. */
static void batch__fixed_to_what_cannot_be__is_refused(void)
{
    struct hapi_model *m = fixed_model(5000);
    const struct hapi_cut *cuts;
    struct build b = {0};
    size_t n;

    CHECK(hapi_model_cuts(m, &cuts, &n, &err) == HAPI_ETOOBIG && strstr(err.text, "5000 samples"));
    hapi_model_close(m);
    INPUT(&b, "x", 4, 6);
    INPUT(&b, "z", 2, 6);
    OUTPUT(&b, "y");
    I64S(&b, "s", 8, 3);
    I64S(&b, "t", 4, 3);
    build_node(&b, "Reshape", "", "x,s", "a");
    build_node(&b, "Reshape", "", "z,t", "b");
    build_int(&b, "axis", 0);
    build_node(&b, "Concat", "", "a,b", "y");
    m = net_finish(&b);
    CHECK(hapi_model_cuts(m, &cuts, &n, &err) == HAPI_EUNSUPPORTED);
    CHECKF(strstr(err.text, "of 4 and of 2 samples"), "%s", err.text);
    hapi_model_close(m);
}

static void batch__fixed__is_rebound_only_where_that_is_proven(void)
{
    static const struct {
        const char *op, *in;
        int64_t axis;
        enum hapi_model_batch batch;
    } ops[] = {{"Relu", "x", 9, HAPI_MODEL_BATCH_REBOUND},
               {"Softmax", "x", 1, HAPI_MODEL_BATCH_REBOUND},
               {"Softmax", "x", 0, HAPI_MODEL_BATCH_ONE},
               {"CumSum", "x,zero", 9, HAPI_MODEL_BATCH_ONE},
               {"ReduceSum", "x,one", 9, HAPI_MODEL_BATCH_REBOUND},
               {"ReduceSum", "x,none", 9, HAPI_MODEL_BATCH_ONE}};

    for (size_t i = 0; i < 2 * (sizeof ops / sizeof *ops); i++) {
        struct build b = {0};
        bool two = i >= sizeof ops / sizeof *ops;
        const size_t k = two ? i - sizeof ops / sizeof *ops : i;
        INPUT(&b, "x", two ? 2 : 1, 6);
        OUTPUT(&b, "y");
        I64S(&b, "zero", 0);
        I64S(&b, "none", 0);
        I64S(&b, "one", 1);
        if (ops[k].axis < 9)
            build_int(&b, "axis", ops[k].axis);
        build_node(&b, ops[k].op, "", ops[k].in, "y");
        struct hapi_model *m = net_finish(&b);
        enum hapi_model_batch want =
            two && ops[k].batch == HAPI_MODEL_BATCH_ONE ? HAPI_MODEL_BATCH_PADDED : ops[k].batch;
        CHECKF(hapi_model_batch(m, NULL) == want, "%s %s of %d", ops[k].op, ops[k].in, 1 + two);
        hapi_model_close(m);
    }
}

int main(void)
{
    for (size_t i = 0; i < sizeof backends / sizeof *backends; i++)
        if (hapi_numeric_class(backend = backends[i])) {
            CASE(batch__fixed_to_one_in_a_reshape__runs_samples_one_at_a_time);
            CASE(batch__fixed_to_a_group__each_sample_as_alone);
            CASE(batch__fixed_to_a_group_that_mixes__padded_with_the_last_sample);
        }
    CASE(batch__fixed_to_a_group__cuts_are_of_one_sample);
    CASE(batch__fixed_to_what_cannot_be__is_refused);
    CASE(batch__fixed__is_rebound_only_where_that_is_proven);
    return check_done();
}
