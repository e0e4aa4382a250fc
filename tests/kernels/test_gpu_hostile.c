/*
 * Models that nobody exports, for a GPU: empty tensors, dims cut into more pieces than a view has, windows
 * that leave a rest. Each becomes a program or is refused by the node's name; none ends the process.
 */
#include "build_model.h"
#include "check.h"
#include "gpu.h"

static struct hapi_err err;

/* Takes graphs of at most *arg ops. */
static int plan(void *arg, const struct hapi_cudnn_graph *g, int *number, uint64_t *workspace,
                struct hapi_err *e)
{
    int rc = hapi_cudnn_graph_check(g, e);

    if (rc)
        return rc == HAPI_EUNSUPPORTED ? HAPI_EINVAL : rc;
    if (g->n_ops > *(int *)arg)
        return hapi_err_set(e, HAPI_EUNSUPPORTED, 0, "too many ops");
    *number = 0;
    *workspace = 0;
    return HAPI_OK;
}

/* Compiles *b at that batch (0: as it is), whose output is y, with engines for all graphs, for graphs of one
 * op, and without any. Returns what the first one gives. */
static int compile(struct build *b, int64_t batch)
{
    struct hapi_plan_spec spec = {.batch = batch, .dtype = HAPI_F32};
    const struct hapi_gpu_edges edges = {.plain = false};
    struct hapi_model *m;
    struct hapi_graph *g;
    size_t size;
    int first = 0;

    OUTPUT(b, "y");
    void *bytes = build_finish(b, 8, 18, &size);
    if (hapi_model_from_bytes(&m, bytes, size, NULL, &err)) {
        CHECKF(0, "no model: %s", err.text);
        return err.code;
    }
    if (hapi_graph_bind(&g, m, &spec, &err)) {
        CHECKF(0, "no graph: %s", err.text);
        hapi_model_close(m);
        return err.code;
    }
    for (int i = 0; i < 3; i++) {
        int ops = (const int[]){HAPI_CUDNN_OPS, 1, 0}[i];
        const struct hapi_gpu_maker maker = {plan, &ops};
        struct hapi_gpu_program *p = NULL;
        int rc = hapi_gpu_program_new(&p, g, i == 1 ? HAPI_F16 : HAPI_F32, &edges, &maker, &err);
        if (rc)
            printf("  %d: %s\n", i, err.text);
        if (!i)
            first = rc;
        hapi_gpu_program_free(p);
    }
    hapi_graph_free(g);
    hapi_model_close(m);
    return first;
}

/* x (2,4,8,8) without any of its channels: (2,0,8,8). */
static void empty(struct build *b)
{
    INPUT(b, "x", 2, 4, 8, 8);
    I64S(b, "zero", 0);
    I64S(b, "one", 1);
    build_node(b, "Slice", "/cut", "x,zero,zero,one", "none");
}

static void program__of_empty_tensors__is_refused(void)
{
    struct build b = {.attrs = {.p = NULL}};

    empty(&b);
    build_int(&b, "axis", 1);
    build_node(&b, "Concat", "/join", "none,x", "y");
    CHECK(compile(&b, 0) == HAPI_EUNSUPPORTED);
    empty(&b);
    build_node(&b, "Relu", "/act", "none", "r");
    build_int(&b, "axis", 1);
    build_node(&b, "Concat", "/join", "r,x", "y");
    CHECK(compile(&b, 0) == HAPI_EUNSUPPORTED);
    empty(&b);
    I64S(&b, "two", 2);
    build_node(&b, "Slice", "/cut2", "none,zero,two,one", "r");
    build_int(&b, "axis", 1);
    build_node(&b, "Concat", "/join", "r,x", "y");
    CHECK(compile(&b, 0) == HAPI_EUNSUPPORTED);
}

/* r (4,4,4,4,4,4,16,1): of 65536 elements whose places are shuffled until no two of the sixteen factors of
 * two can be one. */
static void pieces(struct build *b)
{
    static const int64_t perms[][8] = {{4, 1, 5, 2, 0, 3, 7, 6}, {6, 0, 5, 1, 7, 2, 3, 4},
                                       {6, 5, 3, 2, 7, 0, 1, 4}, {7, 6, 4, 3, 2, 0, 5, 1},
                                       {0, 6, 7, 1, 4, 2, 3, 5}, {3, 1, 2, 5, 6, 7, 0, 4}};
    char name[24], in[48], cut[24], from[24] = "x";

    INPUT(b, "x", 65536, 1);
    I64S(b, "cut0", 4, 4, 4, 4, 4, 4, 4, 4);
    I64S(b, "cut1", 2, 4, 4, 4, 4, 4, 4, 8);
    I64S(b, "cut2", 4, 4, 4, 4, 4, 4, 16, 1);
    for (int i = 0; i < 6; i++) {
        snprintf(in, sizeof in, "%s,cut%d", from, i % 2);
        snprintf(cut, sizeof cut, "c%d", i);
        snprintf(name, sizeof name, "/cut%d", i);
        build_node(b, "Reshape", name, in, cut);
        build_ints(b, "perm", 8, perms[i]);
        snprintf(from, sizeof from, "t%d", i);
        snprintf(name, sizeof name, "/turn%d", i);
        build_node(b, "Transpose", name, cut, from);
    }
    build_node(b, "Reshape", "/r", "t5,cut2", "r");
}

static void program__of_a_view_in_sixteen_pieces__is_refused(void)
{
    struct build b = {.attrs = {.p = NULL}};

    pieces(&b);
    WEIGHTS(&b, "w", 1, 6);
    WEIGHTS(&b, "c", 6);
    build_node(&b, "MatMul", "/product", "r,w", "p");
    build_node(&b, "Add", "/bias", "p,c", "y");
    CHECK(compile(&b, 0) == HAPI_EUNSUPPORTED);
    pieces(&b);
    WEIGHTS(&b, "g", 1);
    WEIGHTS(&b, "h", 1);
    build_node(&b, "LayerNormalization", "/norm", "r,g,h", "y");
    CHECK(compile(&b, 0) == HAPI_EUNSUPPORTED);
}

static void program__of_a_mean_over_one_axis_eight_times__is_made(void)
{
    struct build b = {.attrs = {.p = NULL}};

    INPUT(&b, "x", -1, 4, 8, 8);
    I64S(&b, "axes", 1, 1, 1, 1, 1, 1, 1, 1);
    build_node(&b, "ReduceMean", "/mean", "x,axes", "y");
    CHECK(!compile(&b, 2));
}

/* 7 in windows of 2: the last row and column are in none. cuDNN is not asked for a padding below zero. */
static void program__of_a_pool_that_leaves_a_rest__is_made(void)
{
    static const char *const ops[] = {"MaxPool", "AveragePool"};

    for (int i = 0; i < 2; i++) {
        struct build b = {.attrs = {.p = NULL}};
        INPUT(&b, "x", -1, 4, 7, 7);
        INTS(&b, "kernel_shape", 2, 2);
        INTS(&b, "strides", 2, 2);
        build_node(&b, ops[i], "/pool", "x", "y");
        CHECKF(!compile(&b, 2), "%s: %s", ops[i], err.text);
    }
}

/* Each may keep the node that makes the plan for a second. */
static void program__of_thousands_of_convolutions__is_refused(void)
{
    struct build b = {.attrs = {.p = NULL}};
    char in[16], out[16];

    INPUT(&b, "x", 1, 4, 8, 8);
    WEIGHTS(&b, "w", 4, 4, 1, 1);
    for (int i = 0; i <= HAPI_GPU_GRAPHS_MAX; i++) {
        snprintf(in, sizeof in, i ? "c%d,w" : "x,w", i - 1);
        snprintf(out, sizeof out, i < HAPI_GPU_GRAPHS_MAX ? "c%d" : "y", i);
        build_node(&b, "Conv", out, in, out);
    }
    CHECK(compile(&b, 0) == HAPI_ETOOBIG);
}

int main(void)
{
    CASE(program__of_empty_tensors__is_refused);
    CASE(program__of_a_view_in_sixteen_pieces__is_refused);
    CASE(program__of_a_mean_over_one_axis_eight_times__is_made);
    CASE(program__of_a_pool_that_leaves_a_rest__is_made);
    CASE(program__of_thousands_of_convolutions__is_refused);
    return check_done();
}
