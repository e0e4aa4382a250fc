/* The ONNX reader against well-formed and hostile bytes. Each file, refused or not, may take a second of CPU
 * time (not of the clock: the machine may be busy with other tests). */
#include <time.h>

#include "build_model.h"
#include "check.h"

static struct hapi_err err;
static double slowest;

static double cpu_seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* Parses a copy of the exact size, binds it when it parses; the code of what failed, or 0. */
static int load(const void *bytes, size_t size, const struct hapi_model_limits *limits)
{
    struct hapi_model *m;
    const struct hapi_cut *cuts;
    size_t n;
    double start = cpu_seconds();
    void *copy = malloc(size ? size : 1);

    REQUIRE(copy);
    memcpy(copy, bytes, size);
    memset(&err, 0, sizeof err);
    int rc = hapi_model_from_bytes(&m, copy, size, limits, &err);
    if (rc) {
        free(copy);
    } else {
        rc = hapi_model_cuts(m, &cuts, &n, &err);
        hapi_model_close(m);
    }
    double seconds = cpu_seconds() - start;
    slowest = seconds > slowest ? seconds : slowest;
    CHECKF(seconds < 1.0 * CHECK_SLOWDOWN, "%.3f s", seconds);
    CHECKF(!rc || (err.code == rc && err.text[0]), "code %d, text code %d: %s", rc, err.code, err.text);
    return rc;
}

static int load_built(struct build *b)
{
    size_t size;
    void *bytes = build_finish(b, 8, 17, &size);
    int rc = load(bytes, size, NULL);
    free(bytes);
    return rc;
}

#define REFUSED(b, code, word)                                                                               \
    do {                                                                                                     \
        int got = load_built(b);                                                                             \
        CHECKF(got == (code), "%s: %s", hapi_err_name(got), err.text);                                       \
        CHECKF(strstr(err.text, word) != NULL, "no \"%s\" in: %s", word, err.text);                          \
    } while (0)

static void model__residual__is_read(void)
{
    struct build b = {0};
    build_residual(&b);
    CHECKF(load_built(&b) == 0, "%s", err.text);
}

static void model__cut_at_any_byte__is_refused(void)
{
    struct build b = {0};
    size_t size;
    build_residual(&b);
    uint8_t *bytes = build_finish(&b, 8, 17, &size);
    /* The opset_import comes last: without it no prefix is a model. */
    for (size_t n = 0; n < size; n++) {
        int rc = load(bytes, n, NULL);
        CHECKF(rc == HAPI_EFORMAT, "%zu of %zu bytes: %s", n, size, hapi_err_name(rc));
    }
    CHECK(load(bytes, size, NULL) == 0);
    free(bytes);
}

static void model__any_byte_changed__does_no_harm(void)
{
    struct build b = {0};
    size_t size, refused = 0;
    build_residual(&b);
    uint8_t *bytes = build_finish(&b, 8, 17, &size);
    for (size_t i = 0; i < size; i++) {
        uint8_t old = bytes[i];
        bytes[i] = (uint8_t)(old ^ (1u << (i % 8)));
        refused += load(bytes, size, NULL) != 0;
        bytes[i] = 0xff;
        refused += load(bytes, size, NULL) != 0;
        bytes[i] = old;
    }
    CHECK(refused > size / 10); /* most bytes are weights, where anything goes */
    free(bytes);
}

static void model__empty__is_refused(void)
{
    CHECK(load("", 0, NULL) == HAPI_EFORMAT);
    CHECK(strstr(err.text, "empty") != NULL);
}

static void op__unsupported__is_named_with_node_and_opset(void)
{
    struct build b = {0};
    INPUT(&b, "x", -1, 4);
    OUTPUT(&b, "y");
    build_node(&b, "NonMaxSuppression", "/nms", "x", "y");
    REFUSED(&b, HAPI_EUNSUPPORTED, "NonMaxSuppression");
    CHECK(strstr(err.text, "/nms") && strstr(err.text, "17"));
}

static void graph__cyclic__is_refused(void)
{
    struct build b = {0};
    INPUT(&b, "x", -1, 4);
    OUTPUT(&b, "y");
    build_node(&b, "Add", "one", "x,b", "a");
    build_node(&b, "Relu", "two", "a", "b");
    build_node(&b, "Relu", "three", "b", "y");
    REFUSED(&b, HAPI_EFORMAT, "cycle");
}

static void graph__out_of_order__is_sorted(void)
{
    struct build b = {0};
    INPUT(&b, "x", -1, 4);
    OUTPUT(&b, "y");
    build_node(&b, "Relu", "three", "b", "y");
    build_node(&b, "Relu", "two", "a", "b");
    build_node(&b, "Tanh", "one", "x", "a");
    CHECKF(load_built(&b) == 0, "%s", err.text);
}

static void dims__overflow__are_refused(void)
{
    struct build b = {0};
    INPUT(&b, "x", -1, INT64_MAX, 2);
    OUTPUT(&b, "y");
    build_node(&b, "Relu", "r", "x", "y");
    REFUSED(&b, HAPI_ETOOBIG, "\"x\"");

    INPUT(&b, "x", -1, 4);
    OUTPUT(&b, "y");
    I64S(&b, "s", 1LL << 40, 1LL << 40);
    build_node(&b, "ConstantOfShape", "c", "s", "big");
    build_node(&b, "Add", "a", "x,big", "y");
    REFUSED(&b, HAPI_ETOOBIG, "big");
}

static void tensor__claims_a_terabyte__is_refused(void)
{
    struct build b = {0};
    float little[2] = {1, 2};
    INPUT(&b, "x", -1, 4);
    OUTPUT(&b, "y");
    build_initializer(&b, "w", ONNX_F32, 2, (const int64_t[]){1 << 19, 1 << 19}, little, sizeof little);
    build_node(&b, "MatMul", "m", "x,w", "y");
    REFUSED(&b, HAPI_EFORMAT, "\"w\"");

    INPUT(&b, "x", -1, 4);
    OUTPUT(&b, "y");
    build_initializer(&b, "w", ONNX_F32, 2, (const int64_t[]){INT64_MAX, INT64_MAX}, little, sizeof little);
    build_node(&b, "MatMul", "m", "x,w", "y");
    REFUSED(&b, HAPI_ETOOBIG, "\"w\"");
}

static void tensor__expanded_without_end__is_refused(void)
{
    struct build b = {0};
    float one = 1;
    /* 200 MB each, a thousand times: over the work bound, long before it is over the clock. */
    INPUT(&b, "x", -1, 4);
    OUTPUT(&b, "y");
    build_initializer(&b, "one", ONNX_F32, 0, NULL, &one, sizeof one);
    I64S(&b, "s", 50 << 20);
    build_node(&b, "Expand", "e", "one,s", "c0");
    for (int i = 0; i < 1000; i++) {
        char in[32], out[32];
        snprintf(in, sizeof in, "c%d", i);
        snprintf(out, sizeof out, "c%d", i + 1);
        build_node(&b, "Neg", "n", in, out);
    }
    build_node(&b, "ReduceSum", "r", "c1000", "sum");
    build_node(&b, "Add", "a", "x,sum", "y");
    int rc = load_built(&b);
    CHECKF(rc == HAPI_ETOOBIG, "%s: %s", hapi_err_name(rc), err.text);
}

/* 40 products of 64 x 64 x 4096 in f64, of the same two constants: folding may not take for ever. */
static void constants__that_take_long__are_refused(void)
{
    struct build b = {0};
    int64_t rows = 4096, columns = 64;
    INPUT(&b, "x", -1, 64);
    OUTPUT(&b, "y");
    I64S(&b, "s1", columns, rows);
    I64S(&b, "s2", rows, columns);
    build_node(&b, "ConstantOfShape", "c1", "s1", "f1");
    build_node(&b, "ConstantOfShape", "c2", "s2", "f2");
    build_int(&b, "to", 11);
    build_node(&b, "Cast", "d1", "f1", "a");
    build_int(&b, "to", 11);
    build_node(&b, "Cast", "d2", "f2", "b");
    for (int i = 0; i < 40; i++) {
        char out[16], sum[16], last[16];
        snprintf(out, sizeof out, "p%d", i);
        snprintf(sum, sizeof sum, "sum%d", i);
        snprintf(last, sizeof last, i ? "sum%d,p%d" : "p0,p0", i - 1, i);
        build_node(&b, "MatMul", out, "a,b", out);
        build_node(&b, "Add", sum, last, sum);
    }
    build_int(&b, "to", ONNX_F32);
    build_node(&b, "Cast", "back", "sum39", "w");
    build_node(&b, "MatMul", "m", "x,w", "y");
    REFUSED(&b, HAPI_ETOOBIG, "folding");
}

/* If { then_branch: graph { node If { .. } } }, 20,000 deep: 20 bytes a level. */
static void subgraphs__nested_20000__are_refused(void)
{
    struct hapi_pb_out inner = {.p = NULL};
    struct build b = {0};

    for (int i = 0; i < 20000; i++) {
        struct hapi_pb_out attr = {.p = NULL}, node = {.p = NULL}, graph = {.p = NULL};
        hapi_pb_put_string(&attr, 1, "g");
        hapi_pb_put_bytes(&attr, 6, inner.p, inner.n);
        hapi_pb_put_int(&attr, 20, 5);
        hapi_pb_put_string(&node, 4, "If");
        hapi_pb_put_bytes(&node, 5, attr.p, attr.n);
        hapi_pb_put_bytes(&graph, 1, node.p, node.n);
        free(inner.p);
        free(attr.p);
        free(node.p);
        inner = graph;
    }
    hapi_pb_put(&b.graph, inner.p, inner.n);
    free(inner.p);
    INPUT(&b, "x", -1, 4);
    OUTPUT(&b, "x");
    REFUSED(&b, HAPI_EFORMAT, "nested");
}

static void subgraph__in_a_known_op__is_refused(void)
{
    struct hapi_pb_out attr = {.p = NULL};
    struct build b = {0};
    INPUT(&b, "x", -1, 4);
    OUTPUT(&b, "y");
    hapi_pb_put_string(&attr, 1, "body");
    hapi_pb_put_bytes(&attr, 6, "", 0);
    hapi_pb_put_int(&attr, 20, 5);
    build_attr(&b, &attr);
    build_node(&b, "Relu", "r", "x", "y");
    REFUSED(&b, HAPI_EUNSUPPORTED, "subgraph");
}

static void names__twice__are_refused(void)
{
    struct build b = {0};
    INPUT(&b, "x", -1, 4);
    OUTPUT(&b, "y");
    build_node(&b, "Relu", "r", "x", "y");
    build_node(&b, "Tanh", "t", "x", "y");
    REFUSED(&b, HAPI_EFORMAT, "twice");

    INPUT(&b, "x", -1, 4);
    OUTPUT(&b, "y");
    WEIGHTS(&b, "w", 4);
    WEIGHTS(&b, "w", 4);
    build_node(&b, "Add", "a", "x,w", "y");
    REFUSED(&b, HAPI_EFORMAT, "twice");

    INPUT(&b, "x", -1, 4);
    INPUT(&b, "x", -1, 4);
    OUTPUT(&b, "y");
    build_node(&b, "Relu", "r", "x", "y");
    REFUSED(&b, HAPI_EFORMAT, "twice");

    INPUT(&b, "x", -1, 4);
    OUTPUT(&b, "y");
    OUTPUT(&b, "y");
    build_node(&b, "Relu", "r", "x", "y");
    REFUSED(&b, HAPI_EFORMAT, "twice");
}

static void inputs__dangling__are_refused(void)
{
    struct build b = {0};
    INPUT(&b, "x", -1, 4);
    OUTPUT(&b, "y");
    build_node(&b, "Add", "sum", "x,nowhere", "y");
    REFUSED(&b, HAPI_EFORMAT, "nowhere");
    CHECK(strstr(err.text, "sum") != NULL);

    INPUT(&b, "x", -1, 4);
    OUTPUT(&b, "z");
    build_node(&b, "Relu", "r", "x", "y");
    REFUSED(&b, HAPI_EFORMAT, "\"z\"");
}

static void nodes__100000__are_read_and_one_more_is_not(void)
{
    for (int more = 0; more < 2; more++) {
        struct build b = {0};
        char in[16] = "x", out[16];
        INPUT(&b, "x", -1, 4);
        for (int i = 0; i < 100000 + more; i++) {
            snprintf(out, sizeof out, "v%d", i);
            build_node(&b, "Relu", out, in, out);
            memcpy(in, out, sizeof in);
        }
        OUTPUT(&b, out);
        int rc = load_built(&b);
        CHECKF(rc == (more ? HAPI_ETOOBIG : 0), "%s: %s", hapi_err_name(rc), err.text);
    }
}

static void attribute__of_wrong_type__is_refused(void)
{
    struct build b = {0};
    INPUT(&b, "x", -1, 3, 8, 8);
    OUTPUT(&b, "y");
    WEIGHTS(&b, "w", 4, 3, 3, 3);
    build_float(&b, "strides", 2);
    build_node(&b, "Conv", "c", "x,w", "y");
    REFUSED(&b, HAPI_EFORMAT, "strides");

    INPUT(&b, "x", -1, 3, 8, 8);
    OUTPUT(&b, "y");
    INTS(&b, "alpha", 1);
    build_node(&b, "LeakyRelu", "l", "x", "y");
    REFUSED(&b, HAPI_EFORMAT, "alpha");

    INPUT(&b, "x", -1, 3, 8, 8);
    OUTPUT(&b, "y");
    build_int(&b, "axis", 1);
    build_int(&b, "axis", 1);
    build_node(&b, "Softmax", "s", "x", "y");
    REFUSED(&b, HAPI_EFORMAT, "twice");
}

static void shapes__that_do_not_fit__are_refused(void)
{
    struct build b = {0};
    INPUT(&b, "x", -1, 3, 8, 8);
    OUTPUT(&b, "y");
    WEIGHTS(&b, "w", 4, 5, 3, 3);
    build_node(&b, "Conv", "c", "x,w", "y");
    REFUSED(&b, HAPI_EFORMAT, "channels");

    INPUT(&b, "x", -1, 3, 8, 8);
    OUTPUT(&b, "y");
    WEIGHTS(&b, "w", 4, 3, 9, 9);
    build_node(&b, "Conv", "c", "x,w", "y");
    REFUSED(&b, HAPI_EFORMAT, "larger");

    INPUT(&b, "x", -1, 6);
    OUTPUT(&b, "y");
    I64S(&b, "i", 6);
    build_int(&b, "axis", 1);
    build_node(&b, "Gather", "g", "x,i", "y");
    REFUSED(&b, HAPI_EFORMAT, "index 6");

    INPUT(&b, "x", -1, 6);
    OUTPUT(&b, "y");
    WEIGHTS(&b, "w", 6);
    build_node(&b, "BatchNormalization", "bn", "x,w,w,w", "y");
    REFUSED(&b, HAPI_EFORMAT, "4 inputs");

    INPUT(&b, "x", -1, 6);
    OUTPUT(&b, "y");
    I64S(&b, "s", 2, 3);
    build_node(&b, "Reshape", "re", "x,s", "y");
    REFUSED(&b, HAPI_EFORMAT, "dynamic batch");
}

static void dim__symbolic_other_than_batch__is_named(void)
{
    struct build b = {0};
    INPUT(&b, "x", -1, 3, -1, 8);
    OUTPUT(&b, "y");
    build_node(&b, "Relu", "r", "x", "y");
    REFUSED(&b, HAPI_EUNSUPPORTED, "dim 2");
}

static void opset__missing_or_odd__is_refused(void)
{
    static const struct {
        int64_t opset;
        int code;
    } cases[] = {{0, HAPI_EFORMAT}, {-3, HAPI_EFORMAT}, {1000, HAPI_EUNSUPPORTED}};
    for (size_t i = 0; i < 3; i++) {
        struct build b = {0};
        size_t size;
        build_residual(&b);
        void *bytes = build_finish(&b, 8, cases[i].opset, &size);
        int rc = load(bytes, size, NULL);
        CHECKF(rc == cases[i].code && strstr(err.text, "opset"), "%s: %s", hapi_err_name(rc), err.text);
        free(bytes);
    }
}

static void initializers__listed_as_inputs__are_no_inputs(void)
{
    const struct hapi_tensor_desc *in;
    struct hapi_model *m;
    struct build b = {0};
    size_t size;
    INPUT(&b, "x", -1, 4);
    INPUT(&b, "w", 4);
    OUTPUT(&b, "y");
    WEIGHTS(&b, "w", 4);
    build_node(&b, "Add", "a", "x,w", "y");
    void *bytes = build_finish(&b, 3, 8, &size);
    REQUIRE(!hapi_model_from_bytes(&m, bytes, size, NULL, &err));
    CHECK(hapi_model_inputs(m, &in) == 1);
    CHECK(!strcmp(in[0].name, "x") && in[0].shape.rank == 2 && in[0].shape.dim[0] == 1);
    CHECK(hapi_model_outputs(m, &in) == 1 && in[0].shape.dim[1] == 4);
    hapi_model_close(m);
}

static void limits__of_file_arena_and_tensors__hold(void)
{
    struct build b = {0};
    size_t size;
    build_residual(&b);
    void *bytes = build_finish(&b, 8, 17, &size);
    CHECK(load(bytes, size, &(struct hapi_model_limits){.file_bytes = size - 1}) == HAPI_ETOOBIG);
    CHECK(load(bytes, size, &(struct hapi_model_limits){.file_bytes = size}) == 0);
    CHECK(load(bytes, size, &(struct hapi_model_limits){.nodes = 9}) == HAPI_ETOOBIG);
    CHECK(load(bytes, size, &(struct hapi_model_limits){.nodes = 10}) == 0);
    CHECK(load(bytes, size, &(struct hapi_model_limits){.arena_bytes = 1000}) == HAPI_ETOOBIG);
    CHECK(load(bytes, size, &(struct hapi_model_limits){.tensor_bytes = 1023}) == HAPI_ETOOBIG);
    CHECK(load(bytes, size, &(struct hapi_model_limits){.tensor_bytes = 1024 * 3}) == 0);
    free(bytes);
}

int main(void)
{
    CASE(model__residual__is_read);
    CASE(model__cut_at_any_byte__is_refused);
    CASE(model__any_byte_changed__does_no_harm);
    CASE(model__empty__is_refused);
    CASE(op__unsupported__is_named_with_node_and_opset);
    CASE(graph__cyclic__is_refused);
    CASE(graph__out_of_order__is_sorted);
    CASE(dims__overflow__are_refused);
    CASE(tensor__claims_a_terabyte__is_refused);
    CASE(tensor__expanded_without_end__is_refused);
    CASE(constants__that_take_long__are_refused);
    CASE(subgraphs__nested_20000__are_refused);
    CASE(subgraph__in_a_known_op__is_refused);
    CASE(names__twice__are_refused);
    CASE(inputs__dangling__are_refused);
    CASE(nodes__100000__are_read_and_one_more_is_not);
    CASE(attribute__of_wrong_type__is_refused);
    CASE(shapes__that_do_not_fit__are_refused);
    CASE(dim__symbolic_other_than_batch__is_named);
    CASE(opset__missing_or_odd__is_refused);
    CASE(initializers__listed_as_inputs__are_no_inputs);
    CASE(limits__of_file_arena_and_tensors__hold);
    printf("slowest file: %.3f s\n", slowest);
    return check_done();
}
