/* Binding: shapes, constant folding, BatchNormalization into Conv, batches, bound inputs, from and to. */
#include <math.h>

#include "build_model.h"
#include "check.h"
#include "graph.h"
#include "model.h"

static struct hapi_err err;
static const float ones[32] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1,
                               1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};

static struct hapi_model *finish(struct build *b, int64_t opset)
{
    struct hapi_model *m;
    size_t size;
    void *bytes = build_finish(b, 8, opset, &size);
    if (hapi_model_from_bytes(&m, bytes, size, NULL, &err)) {
        fprintf(stderr, "%s\n", err.text);
        exit(1);
    }
    return m;
}

static struct hapi_graph *bind_spec(struct hapi_model *m, const struct hapi_plan_spec *spec)
{
    struct hapi_graph *g = NULL;
    memset(&err, 0, sizeof err);
    if (hapi_graph_bind(&g, m, spec, &err))
        fprintf(stderr, "bind: %s\n", err.text);
    return g;
}

static struct hapi_graph *bind(struct hapi_model *m, int64_t batch)
{
    return bind_spec(m, &(struct hapi_plan_spec){.batch = batch});
}

static int value(const struct hapi_graph *g, const char *name)
{
    for (size_t i = 0; i < g->n_values; i++)
        if (!strcmp(g->values[i].name, name))
            return (int)i;
    return -1;
}

static const char *shape(const struct hapi_graph *g, const char *name)
{
    static char text[8][64];
    static int at;
    int v = value(g, name);
    at = (at + 1) % 8;
    return v < 0 ? "none" : hapi_shape_text(&g->values[v].shape, text[at], sizeof text[at]);
}

static size_t count_op(const struct hapi_graph *g, enum hapi_op_kind op)
{
    size_t n = 0;
    for (size_t i = 0; i < g->n_nodes; i++)
        n += g->nodes[i].op == op;
    return n;
}

/* What the header of graph.h promises of any bound graph. */
static void check_graph(const struct hapi_graph *g)
{
    bool *known = calloc(g->n_values, 1);
    int *uses = calloc(g->n_values, sizeof *uses);
    REQUIRE(known && uses);
    for (size_t i = 0; i < g->n_inputs; i++)
        known[g->inputs[i]] = true;
    for (size_t i = 0; i < g->n_values; i++) {
        const struct hapi_value *v = &g->values[i];
        known[i] |= v->data != NULL;
        CHECK(!v->data || (uintptr_t)v->data % hapi_dtype_size(v->dtype) == 0);
        CHECK(!v->data || !v->batch_first);
    }
    for (size_t i = 0; i < g->n_nodes; i++) {
        const struct hapi_node *n = &g->nodes[i];
        bool constant = true;
        for (int k = 0; k < n->n_in; k++) {
            if (n->in[k] < 0)
                continue;
            CHECKF(known[n->in[k]], "node %s reads %s too early", n->name, g->values[n->in[k]].name);
            constant &= g->values[n->in[k]].data != NULL;
            uses[n->in[k]]++;
        }
        CHECKF(!constant, "node %s could have been folded", n->name);
        for (int k = 0; k < n->n_out; k++)
            if (n->out[k] >= 0) {
                CHECK(g->values[n->out[k]].producer == (int)i);
                known[n->out[k]] = true;
            }
    }
    for (size_t i = 0; i < g->n_outputs; i++) {
        CHECK(known[g->outputs[i]]);
        uses[g->outputs[i]]++;
    }
    for (size_t i = 0; i < g->n_values; i++)
        CHECKF(uses[i] == g->values[i].n_uses, "%s: %d uses, %d said", g->values[i].name, uses[i],
               g->values[i].n_uses);
    free(known);
    free(uses);
}

static void residual__batch_3__has_concrete_shapes(void)
{
    struct build b = {0};
    build_residual(&b);
    struct hapi_model *m = finish(&b, 17);
    struct hapi_graph *g = bind(m, 3);
    REQUIRE(g);
    check_graph(g);
    CHECK(g->batch == 3 && g->opset == 17);
    CHECK(!strcmp(shape(g, "x"), "3x3x8x8"));
    CHECK(!strcmp(shape(g, "block_add"), "3x4x8x8"));
    CHECK(!strcmp(shape(g, "flat"), "3x4"));
    CHECK(!strcmp(shape(g, "y"), "3x10"));
    CHECK(g->values[value(g, "block_relu")].batch_first && g->values[value(g, "y")].batch_first);
    CHECK(value(g, "dropped") < 0 && count_op(g, HAPI_OP_Identity) == 0);
    hapi_graph_free(g);
    hapi_model_close(m);
}

static void batch__fixed_in_the_file__is_replaced(void)
{
    struct build b = {0};
    INPUT(&b, "x", 1, 3, 4, 4);
    OUTPUT(&b, "y");
    build_node(&b, "Flatten", "f", "x", "y");
    struct hapi_model *m = finish(&b, 17);
    struct hapi_graph *g = bind(m, 5);
    REQUIRE(g);
    CHECK(!strcmp(shape(g, "y"), "5x48"));
    hapi_graph_free(g);
    g = bind(m, 0);
    REQUIRE(g);
    CHECK(!strcmp(shape(g, "y"), "1x48"));
    hapi_graph_free(g);
    hapi_model_close(m);
}

static void batch_0__leaves_dims_and_makes_symbols_1(void)
{
    struct build b = {0};
    INPUT(&b, "x", 7, -1, 4);
    OUTPUT(&b, "y");
    build_node(&b, "Relu", "r", "x", "y");
    struct hapi_model *m = finish(&b, 17);
    struct hapi_graph *g = bind(m, 0);
    REQUIRE(g);
    CHECK(!strcmp(shape(g, "y"), "7x1x4"));
    hapi_graph_free(g);
    CHECK(hapi_graph_bind(&g, m, &(struct hapi_plan_spec){.batch = 2}, &err) == HAPI_EUNSUPPORTED);
    CHECK(strstr(err.text, "dim 1") && strstr(err.text, "\"n\""));
    CHECK(hapi_graph_bind(&g, m, &(struct hapi_plan_spec){.batch = -2}, &err) == HAPI_EINVAL);
    hapi_model_close(m);
}

/* Shape -> Gather -> Unsqueeze -> Concat -> Reshape, as ViT's exports have it. */
static void shape_chain__folds_to_a_reshape(void)
{
    struct build b = {0};
    int64_t zero = 0;
    INPUT(&b, "x", -1, 6, 4);
    OUTPUT(&b, "y");
    build_initializer(&b, "zero", ONNX_I64, 0, NULL, &zero, 8);
    I64S(&b, "axis", 0);
    I64S(&b, "two", 2);
    I64S(&b, "rest", 3, 8);
    build_node(&b, "Shape", "s", "x", "dims");
    build_node(&b, "Gather", "g", "dims,zero", "n");
    build_node(&b, "Unsqueeze", "u", "n,axis", "n1");
    build_node(&b, "Mul", "mul", "n1,two", "n2");
    build_node(&b, "Div", "div", "n2,two", "n3");
    build_int(&b, "axis", 0);
    build_node(&b, "Concat", "c", "n3,rest", "shape");
    build_node(&b, "Reshape", "r", "x,shape", "y");
    struct hapi_model *m = finish(&b, 17);
    for (int64_t batch = 1; batch <= 4; batch += 3) {
        struct hapi_graph *g = bind(m, batch);
        REQUIRE(g);
        check_graph(g);
        CHECK(g->n_nodes == 1 && g->nodes[0].op == HAPI_OP_Reshape);
        CHECK(!strcmp(shape(g, "y"), batch == 1 ? "1x3x8" : "4x3x8"));
        CHECK(g->values[value(g, "y")].batch_first);
        hapi_graph_free(g);
    }
    hapi_model_close(m);
}

static void batch_first__needs_dim_0_alone(void)
{
    struct build b = {0};
    INPUT(&b, "x", -1, 3, 4);
    OUTPUT(&b, "y");
    I64S(&b, "merge", -1, 4);
    I64S(&b, "split", -1, 3, 4);
    INTS(&b, "perm", 1, 0, 2);
    build_node(&b, "Transpose", "t", "x", "swapped");
    INTS(&b, "perm", 1, 0, 2);
    build_node(&b, "Transpose", "u", "swapped", "back");
    build_node(&b, "Reshape", "m", "back,merge", "merged");
    build_node(&b, "Relu", "r", "merged", "relu");
    build_node(&b, "Reshape", "s", "relu,split", "y");
    struct hapi_model *m = finish(&b, 17);
    struct hapi_graph *g = bind(m, 2);
    REQUIRE(g);
    CHECK(g->values[value(g, "x")].batch_first && g->values[value(g, "back")].batch_first);
    CHECK(!g->values[value(g, "swapped")].batch_first);
    CHECK(!g->values[value(g, "merged")].batch_first); /* three rows a sample */
    CHECK(g->values[value(g, "y")].batch_first);
    hapi_graph_free(g);
    hapi_model_close(m);
}

static void batchnorm__after_conv__is_multiplied_in(void)
{
    struct build b = {0};
    build_residual(&b);
    struct hapi_model *m = finish(&b, 17);
    struct hapi_graph *g = bind(m, 2), *raw, *again;
    REQUIRE(g);
    CHECK(count_op(g, HAPI_OP_BatchNormalization) == 0 && value(g, "block_conv") < 0);
    const struct hapi_node *conv = &g->nodes[g->values[value(g, "block_bn")].producer];
    CHECK(conv->op == HAPI_OP_Conv && conv->n_in == 3);
    const float *w = g->values[conv->in[1]].data, *bias = g->values[conv->in[2]].data;
    /* Asking for the tensor in between keeps the two apart, and shows the weights as they were. */
    raw = bind_spec(m, &(struct hapi_plan_spec){.batch = 2, .to = "block_conv,stem_relu"});
    REQUIRE(raw);
    check_graph(raw);
    CHECK(value(raw, "block_conv") >= 0 && count_op(raw, HAPI_OP_Conv) == 2);
    const float *w2 = raw->values[value(raw, "w2")].data;
    const float *p[4];
    static const char *const names[] = {"gamma", "beta", "mean", "var"};
    struct hapi_graph *suffix =
        bind_spec(m, &(struct hapi_plan_spec){.batch = 2, .from = "block_conv,stem_relu"});
    REQUIRE(suffix);
    check_graph(suffix);
    CHECK(count_op(suffix, HAPI_OP_BatchNormalization) == 1 && suffix->n_inputs == 2);
    for (int k = 0; k < 4; k++)
        p[k] = suffix->values[value(suffix, names[k])].data;
    for (int c = 0; c < 4; c++) {
        double scale = (double)p[0][c] / sqrt((double)p[3][c] + (double)1e-5F);
        for (int i = 0; i < 36; i++)
            CHECK(w[c * 36 + i] == (float)((double)w2[c * 36 + i] * scale));
        CHECK(bias[c] == (float)(-(double)p[2][c] * scale + (double)p[1][c]));
    }
    /* Made once: plans of other batches share it. */
    again = bind(m, 7);
    REQUIRE(again);
    CHECK(again->values[again->nodes[again->values[value(again, "block_bn")].producer].in[1]].data ==
          (void *)w);
    hapi_graph_free(again);
    hapi_graph_free(suffix);
    hapi_graph_free(raw);
    hapi_graph_free(g);
    hapi_model_close(m);
}

static void batchnorm__with_another_reader__stays(void)
{
    struct build b = {0};
    INPUT(&b, "x", -1, 3, 4, 4);
    OUTPUT(&b, "y");
    WEIGHTS(&b, "w", 3, 3, 1, 1);
    WEIGHTS(&b, "p", 3);
    build_node(&b, "Conv", "c", "x,w", "conv");
    build_node(&b, "BatchNormalization", "bn", "conv,p,p,p,p", "norm");
    build_node(&b, "Add", "a", "conv,norm", "y");
    struct hapi_model *m = finish(&b, 17);
    struct hapi_graph *g = bind(m, 1);
    REQUIRE(g);
    check_graph(g);
    CHECK(count_op(g, HAPI_OP_BatchNormalization) == 1);
    hapi_graph_free(g);
    hapi_model_close(m);
}

/* For a back end that copies them: their bytes, aligned or not. What shapes may come from is there at once.
 */
static void bind_raw__constants__stay_in_the_file(void)
{
    static const char *const in_file[] = {"w", "gamma", "beta", "mean", "var"};
    const struct hapi_plan_spec spec = {.batch = 2};
    struct build b = {.attrs = {.p = NULL}};
    struct hapi_graph *g = NULL;

    INPUT(&b, "x", -1, 32, 8, 8);
    OUTPUT(&b, "y");
    WEIGHTS(&b, "gamma", 32);
    WEIGHTS(&b, "beta", 32);
    WEIGHTS(&b, "mean", 32);
    build_initializer(&b, "var", ONNX_F32, 1, (const int64_t[]){32}, ones, sizeof ones);
    WEIGHTS(&b, "w", 8, 32, 3, 3); /* 9 KB */
    build_initializer(&b, "low", ONNX_F32, 0, NULL, ones, sizeof *ones);
    build_node(&b, "BatchNormalization", "/bn", "x,gamma,beta,mean,var", "n");
    build_node(&b, "Clip", "/clip", "n,low", "c");
    build_node(&b, "Conv", "/conv", "c,w", "y");
    struct hapi_model *m = finish(&b, 13);
    CHECKF(!hapi_graph_bind_raw(&g, m, &spec, true, &err), "%s", err.text);
    REQUIRE(g);
    for (size_t i = 0; i < sizeof in_file / sizeof *in_file; i++) {
        const struct hapi_value *v = &g->values[value(g, in_file[i])];
        const unsigned char *at = v->data;
        CHECKF(v->raw && at >= m->bytes.p && at < m->bytes.p + m->bytes.n, "%s was copied", in_file[i]);
    }
    CHECK(!g->values[value(g, "low")].raw);
    for (size_t i = 0; i < m->onnx.n_tensors; i++)
        CHECKF(!m->onnx.tensors[i].copy || m->onnx.tensors[i].bytes <= 64, "tensor %zu was copied", i);
    hapi_graph_free(g);
    hapi_model_close(m);
}

static void identity__on_initializer_and_output__is_resolved(void)
{
    struct build b = {0};
    INPUT(&b, "x", -1, 4);
    OUTPUT(&b, "y");
    WEIGHTS(&b, "w", 4);
    build_node(&b, "Identity", "i", "w", "w_too");
    build_node(&b, "Add", "a", "x,w_too", "sum");
    build_node(&b, "Dropout", "d", "sum", "dropped");
    build_node(&b, "Relu", "r", "dropped", "relu");
    build_node(&b, "Identity", "o", "relu", "y");
    struct hapi_model *m = finish(&b, 17);
    struct hapi_graph *g = bind(m, 1);
    REQUIRE(g);
    check_graph(g);
    CHECK(g->n_nodes == 3 && g->nodes[2].op == HAPI_OP_Identity); /* "y" must stay a name */
    CHECK(!strcmp(g->values[g->outputs[0]].name, "y"));
    hapi_graph_free(g);
    hapi_model_close(m);
}

static void dropout__in_training__is_refused_unless_its_ratio_is_0(void)
{
    for (int zero = 0; zero < 2; zero++) {
        struct build b = {0};
        float ratio = zero ? 0 : 0.5F;
        uint8_t yes = 1;
        struct hapi_graph *g;
        INPUT(&b, "x", -1, 4);
        OUTPUT(&b, "y");
        build_initializer(&b, "ratio", ONNX_F32, 0, NULL, &ratio, 4);
        build_initializer(&b, "yes", ONNX_BOOL, 0, NULL, &yes, 1);
        build_node(&b, "Dropout", "d", "x,ratio,yes", "dropped");
        build_node(&b, "Relu", "r", "dropped", "y");
        struct hapi_model *m = finish(&b, 17);
        int rc = hapi_graph_bind(&g, m, &(struct hapi_plan_spec){.batch = 1}, &err);
        CHECK(rc == (zero ? 0 : HAPI_EUNSUPPORTED));
        if (!rc)
            hapi_graph_free(g);
        hapi_model_close(m);
    }
}

static void bound_input__becomes_a_constant(void)
{
    struct build b = {0};
    int64_t dims[2] = {2, 6};
    struct hapi_tensor_desc d = {.name = "shape", .dtype = HAPI_I64, .shape = {1, {2}}};
    const void *data = dims;
    struct hapi_graph *g;
    INPUT(&b, "x", 3, 4);
    build_io(&b, 11, "shape", ONNX_I64, 1, (const int64_t[]){2});
    OUTPUT(&b, "y");
    build_node(&b, "Reshape", "r", "x,shape", "y");
    struct hapi_model *m = finish(&b, 17);
    CHECK(hapi_graph_bind(&g, m, &(struct hapi_plan_spec){.batch = 0}, &err) == HAPI_EUNSUPPORTED);
    CHECK(strstr(err.text, "shape") != NULL);
    g = bind_spec(m, &(struct hapi_plan_spec){.bind = &d, .bind_data = &data, .n_bind = 1});
    REQUIRE(g);
    check_graph(g);
    CHECK(g->n_inputs == 1 && !strcmp(shape(g, "y"), "2x6"));
    hapi_graph_free(g);
    d.name = "none";
    CHECK(hapi_graph_bind(&g, m, &(struct hapi_plan_spec){.bind = &d, .bind_data = &data, .n_bind = 1},
                          &err) == HAPI_ENOENT);
    d.name = "shape";
    d.dtype = HAPI_I32;
    CHECK(hapi_graph_bind(&g, m, &(struct hapi_plan_spec){.bind = &d, .bind_data = &data, .n_bind = 1},
                          &err) == HAPI_EINVAL);
    hapi_model_close(m);
}

static void from_to__keeps_what_lies_between(void)
{
    struct build b = {0};
    struct hapi_graph *g;
    build_residual(&b);
    struct hapi_model *m = finish(&b, 17);
    g = bind_spec(m, &(struct hapi_plan_spec){.batch = 4, .from = "stem_relu", .to = "block_relu"});
    REQUIRE(g);
    check_graph(g);
    CHECK(g->n_nodes == 3 && g->n_inputs == 1 && g->n_outputs == 1);
    CHECK(!strcmp(g->values[g->inputs[0]].name, "stem_relu") && !strcmp(shape(g, "stem_relu"), "4x4x8x8"));
    CHECK(value(g, "w1") < 0 && value(g, "w3") < 0);
    hapi_graph_free(g);
    /* Edges come in the order of their names. */
    g = bind_spec(m, &(struct hapi_plan_spec){.batch = 1, .to = "stem_relu,block_bn"});
    REQUIRE(g);
    CHECK(g->n_outputs == 2 && !strcmp(g->values[g->outputs[0]].name, "block_bn"));
    hapi_graph_free(g);
    static const struct {
        const char *from, *to;
        int code;
    } bad[] = {{"block_bn", NULL, HAPI_EINVAL},   {"w1", NULL, HAPI_EINVAL},
               {NULL, "gamma", HAPI_EINVAL},      {"stem_relu", "stem_conv", HAPI_EINVAL},
               {"flat", "flat", HAPI_EINVAL},     {"nowhere", NULL, HAPI_ENOENT},
               {NULL, "stem_relu,", HAPI_ENOENT}, {"y", NULL, HAPI_EINVAL},
               {"flat,flat", NULL, HAPI_EINVAL}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        int rc = hapi_graph_bind(
            &g, m, &(struct hapi_plan_spec){.batch = 1, .from = bad[i].from, .to = bad[i].to}, &err);
        CHECKF(rc == bad[i].code, "%zu: %s: %s", i, hapi_err_name(rc), rc ? err.text : "");
        if (!rc)
            hapi_graph_free(g);
    }
    hapi_model_close(m);
}

/* ------------------------------------------------------------------ one rule after the other */

struct rule {
    int64_t opset;
    const char *op, *in, *expected;
    void (*more)(struct build *b);
};

static void with_axis_1(struct build *b)
{
    build_int(b, "axis", 1);
}
static void with_keepdims_0(struct build *b)
{
    build_int(b, "keepdims", 0);
    INTS(b, "axes", -1, 1);
}
static void with_perm(struct build *b)
{
    INTS(b, "perm", 0, 2, 3, 1);
}
static void with_pool_ceil(struct build *b)
{
    INTS(b, "kernel_shape", 3, 3);
    INTS(b, "strides", 2, 2);
    build_int(b, "ceil_mode", 1);
}
static void with_pool_floor(struct build *b)
{
    INTS(b, "kernel_shape", 3, 3);
    INTS(b, "strides", 2, 2);
}
static void with_dilation(struct build *b)
{
    INTS(b, "dilations", 2, 2);
    INTS(b, "pads", 1, 2, 3, 4);
    INTS(b, "strides", 1, 2);
}
static void with_group(struct build *b)
{
    build_int(b, "group", 2);
}
static void with_slices(struct build *b)
{
    INTS(b, "starts", 1, -3);
    INTS(b, "ends", 1000, -1);
    INTS(b, "axes", 1, -1);
}
static void with_pads(struct build *b)
{
    INTS(b, "pads", 0, 0, 1, 2, 0, 0, -1, 3);
}
static void with_to_i64(struct build *b)
{
    build_int(b, "to", ONNX_I64);
}

/* x is (n, 4, 6, 8). */
static const struct rule rules[] = {
    {17, "Flatten", "x", "2x192", with_axis_1},
    {12, "Softmax", "x", "2x4x6x8", with_axis_1},
    {13, "ReduceMean", "x", "2x6", with_keepdims_0},
    {17, "Transpose", "x", "2x6x8x4", with_perm},
    {17, "Transpose", "x", "8x6x4x2", NULL},
    {17, "MaxPool", "x", "2x4x3x4", with_pool_ceil},
    {17, "MaxPool", "x", "2x4x2x3", with_pool_floor},
    {17, "AveragePool", "x", "2x4x3x4", with_pool_ceil},
    {17, "GlobalMaxPool", "x", "2x4x1x1", NULL},
    {17, "Conv", "x,w44", "2x4x6x5", with_dilation},
    {17, "Conv", "x,w42", "2x4x4x6", with_group},
    {17, "Concat", "x,x,x", "2x12x6x8", with_axis_1},
    {9, "Slice", "x", "2x3x6x2", with_slices},
    {10, "Pad", "x", "2x4x6x13", with_pads},
    {17, "Gather", "x,ids", "2x2x3x6x8", with_axis_1},
    {17, "MatMul", "x,m85", "2x4x6x5", NULL},
    {17, "MatMul", "x,v8", "2x4x6", NULL},
    {17, "Add", "x,v8", "2x4x6x8", NULL},
    {17, "Mul", "big,v8", "3x2x4x6x8", NULL},
    {6, "Add", "x,v4", "2x4x6x8", with_axis_1},
    {17, "Expand", "x,dims", "3x2x4x6x8", NULL},
    {17, "Reshape", "x,re", "2x24x8", NULL},
    {17, "Unsqueeze", "x,ax", "2x1x4x6x8x1", NULL},
    {17, "Cast", "x", "2x4x6x8", with_to_i64},
    {17, "Where", "c,x,v8", "2x4x6x8", NULL},
    {17, "Equal", "x,v8", "2x4x6x8", NULL},
    {17, "PRelu", "x,v8", "2x4x6x8", NULL},
    {17, "ReduceSum", "x,ax2", "2x1x6x8", NULL},
};

static void check_rule(const struct rule *r)
{
    struct build b = {0};
    uint8_t yes = 1;
    INPUT(&b, "x", -1, 4, 6, 8);
    OUTPUT(&b, "y");
    WEIGHTS(&b, "w44", 4, 4, 3, 3);
    WEIGHTS(&b, "w42", 4, 2, 3, 3);
    WEIGHTS(&b, "m85", 8, 5);
    WEIGHTS(&b, "v8", 8);
    WEIGHTS(&b, "v4", 4);
    I64S(&b, "dims", 3, 1, 4, 1, 8);
    I64S(&b, "re", 0, -1, 8);
    I64S(&b, "ax", 1, -1);
    I64S(&b, "ax2", 1);
    build_initializer(&b, "ids", ONNX_I64, 2, (const int64_t[]){2, 3}, (const int64_t[]){0, 1, 2, 3, -1, -4},
                      48);
    build_initializer(&b, "c", ONNX_BOOL, 0, NULL, &yes, 1);
    if (strstr(r->in, "big"))
        build_node(&b, "Expand", "e", "x,dims", "big");
    if (r->more)
        r->more(&b);
    build_node(&b, r->op, "n", r->in, "y");
    struct hapi_model *m = finish(&b, r->opset);
    struct hapi_graph *g = bind(m, 2);
    CHECKF(g && !strcmp(shape(g, "y"), r->expected), "%s: %s, not %s", r->op, g ? shape(g, "y") : err.text,
           r->expected);
    if (g) {
        enum hapi_dtype d = g->values[value(g, "y")].dtype;
        CHECK(d == (!strcmp(r->op, "Cast") ? HAPI_I64 : !strcmp(r->op, "Equal") ? HAPI_BOOL : HAPI_F32));
        check_graph(g);
    }
    hapi_graph_free(g);
    hapi_model_close(m);
}

static void rules__each_op__infer_what_onnx_says(void)
{
    for (size_t i = 0; i < sizeof rules / sizeof *rules; i++)
        check_rule(&rules[i]);
}

static void split__sizes_and_halves__add_up(void)
{
    for (int sizes = 0; sizes < 2; sizes++) {
        struct build b = {0};
        INPUT(&b, "x", -1, 7);
        OUTPUT(&b, "y");
        I64S(&b, "parts", 2, 5);
        build_int(&b, "axis", 1);
        if (!sizes)
            build_int(&b, "num_outputs", 2);
        build_node(&b, "Split", "s", sizes ? "x,parts" : "x", "a,b");
        build_int(&b, "axis", 1);
        build_node(&b, "Concat", "c", "b,a", "y");
        struct hapi_model *m = finish(&b, 18);
        struct hapi_graph *g = bind(m, 2);
        REQUIRE(g);
        CHECK(!strcmp(shape(g, "a"), sizes ? "2x2" : "2x4") && !strcmp(shape(g, "b"), sizes ? "2x5" : "2x3"));
        hapi_graph_free(g);
        hapi_model_close(m);
    }
}

int main(void)
{
    CASE(residual__batch_3__has_concrete_shapes);
    CASE(batch__fixed_in_the_file__is_replaced);
    CASE(batch_0__leaves_dims_and_makes_symbols_1);
    CASE(shape_chain__folds_to_a_reshape);
    CASE(batch_first__needs_dim_0_alone);
    CASE(batchnorm__after_conv__is_multiplied_in);
    CASE(batchnorm__with_another_reader__stays);
    CASE(bind_raw__constants__stay_in_the_file);
    CASE(identity__on_initializer_and_output__is_resolved);
    CASE(dropout__in_training__is_refused_unless_its_ratio_is_0);
    CASE(bound_input__becomes_a_constant);
    CASE(from_to__keeps_what_lies_between);
    CASE(rules__each_op__infer_what_onnx_says);
    CASE(split__sizes_and_halves__add_up);
    return check_done();
}
