/* LayerNormalization and Gelu in many nodes: found in each order of operands, right in numbers on both back
 * ends, and left alone where one of their tensors is read or asked for. */
#include <math.h>
#include <stdio.h>

#include "build_model.h"
#include "check.h"
#include "graph.h"

enum { ROWS = 3, WIDTH = 32, COUNT = ROWS * WIDTH };

struct form {
    const char *name, *nodes; /* "Op in,in out;..." */
    enum hapi_op_kind op;
    int64_t opset;
};

#define MEANS "ReduceMean x,- m;Sub x,m d;Pow d,two q;ReduceMean q,- v;Add v,eps e;Sqrt e r;"
#define ERF "Div x,root2 a;Erf a b;Add b,one c;"
#define CUBE "Pow x,three a;Mul a,k b;Add x,b c;Mul c,f d;Tanh d e;Add e,one g;"

static const struct form forms[] = {
    {"as torch has it", MEANS "Div d,r n;Mul n,scale s;Add s,bias y", HAPI_OP_LayerNormalization, 13},
    {"operands turned",
     "ReduceMean x,- m;Sub x,m d;Mul d,d q;ReduceMean q,- v;Add eps,v e;Sqrt e r;"
     "Div d,r n;Mul scale,n s;Add bias,s y",
     HAPI_OP_LayerNormalization, 13},
    {"two differences",
     "ReduceMean x,- m;Sub x,m d;Sub x,m d2;Pow d2,two q;ReduceMean q,- v;Add v,eps e;Sqrt e r;"
     "Div d,r n;Mul n,scale s;Add s,bias y",
     HAPI_OP_LayerNormalization, 15},
    {"by reciprocal", MEANS "Reciprocal r i;Mul d,i n;Mul n,scale s;Add s,bias y", HAPI_OP_LayerNormalization,
     16},
    {"no weights", MEANS "Div d,r y", HAPI_OP_LayerNormalization, 13},
    {"no bias", MEANS "Div d,r n;Mul n,wide y", HAPI_OP_LayerNormalization, 13},
    {"axes as input",
     "ReduceMean x,last m;Sub x,m d;Pow d,two q;ReduceMean q,last v;Add v,eps e;Sqrt e r;"
     "Div d,r n;Mul n,scale s;Add s,bias y",
     HAPI_OP_LayerNormalization, 18},
    {"half last", ERF "Mul x,c d;Mul d,half y", HAPI_OP_Gelu, 13},
    {"half first", ERF "Mul c,half d;Mul x,d y", HAPI_OP_Gelu, 13},
    {"half of x", ERF "Mul half,x d;Mul d,c y", HAPI_OP_Gelu, 17},
    {"product with the root", "Mul rsqrt2,x a;Erf a b;Add one,b c;Mul c,x d;Mul half,d y", HAPI_OP_Gelu, 14},
    {"tanh of a power", CUBE "Mul x,g h;Mul h,half y", HAPI_OP_Gelu, 13},
    {"tanh, half of x", CUBE "Mul x,half h;Mul h,g y", HAPI_OP_Gelu, 13},
    {"tanh of products",
     "Mul x,x a;Mul a,x b;Mul b,k c;Add c,x d;Mul d,f e;Tanh e g;Add g,one h;"
     "Mul x,half i;Mul i,h y",
     HAPI_OP_Gelu, 13},
    {"tanh, factored",
     "Mul x,f a;Mul k,x b;Mul b,x c;Add c,one d;Mul a,d e;Tanh e g;Add g,one h;"
     "Mul x,h i;Mul i,half y",
     HAPI_OP_Gelu, 13},
};

static void scalar(struct build *b, const char *name, float v)
{
    build_initializer(b, name, ONNX_F32, 0, NULL, &v, sizeof v);
}

/* The nodes, with `ReduceMean in,-` over the last axis by attribute. */
static struct hapi_model *model_of(const char *nodes, int64_t opset)
{
    struct build b = {.graph = {.p = NULL}};
    struct hapi_model *m = NULL;
    struct hapi_err err = {0};
    const char *at = nodes;
    char op[32], in[64], out[64];
    size_t size;
    int used;

    INPUT(&b, "x", -1, ROWS, WIDTH);
    OUTPUT(&b, "y");
    scalar(&b, "eps", 1e-5F);
    scalar(&b, "one", 1);
    scalar(&b, "two", 2);
    scalar(&b, "three", 3);
    scalar(&b, "half", 0.5F);
    scalar(&b, "root2", 1.41421354F);
    scalar(&b, "rsqrt2", 0.707106769F);
    scalar(&b, "k", 0.044715F);
    scalar(&b, "f", 0.797884583F);
    WEIGHTS(&b, "scale", WIDTH);
    WEIGHTS(&b, "wide", 1, 1, WIDTH);
    WEIGHTS(&b, "bias", WIDTH);
    WEIGHTS(&b, "wider", 1, 1, 1, WIDTH);
    I64S(&b, "last", -1);
    for (; sscanf(at, "%31s %63[^ ] %63[^;]%n", op, in, out, &used) == 3; at += used, at += *at == ';') {
        char *dash = strstr(in, ",-");
        if (dash) {
            *dash = '\0';
            INTS(&b, "axes", -1);
        }
        build_node(&b, op, out, in, out);
    }
    void *bytes = build_finish(&b, 8, opset, &size);
    int rc = hapi_model_from_bytes(&m, bytes, size, NULL, &err);
    CHECKF(rc == 0, "%s: %s", nodes, err.text);
    if (rc)
        free(bytes);
    return m;
}

/* Nodes of the graph bound with a cut named, or -1; *first: the op of the first. */
static int count(struct hapi_model *m, const char *to, enum hapi_op_kind *first)
{
    struct hapi_plan_spec spec = {.batch = 2, .to = to};
    struct hapi_graph *g;
    struct hapi_err err = {0};
    int rc = hapi_graph_bind(&g, m, &spec, &err), n;

    CHECKF(rc == 0, "%s", err.text);
    if (rc)
        return -1;
    n = (int)g->n_nodes;
    *first = g->nodes[0].op;
    hapi_graph_free(g);
    return n;
}

static void run_plan(struct hapi_model *m, const char *backend, const float *x, float *y)
{
    struct hapi_plan_spec spec = {.batch = 1, .dtype = HAPI_F32, .backend = backend};
    struct hapi_plan *plan;
    struct hapi_err err = {0};
    int rc = hapi_plan_new(&plan, m, &spec, &err);

    CHECKF(rc == 0, "%s: %s", backend, err.text);
    if (rc)
        return;
    struct hapi_plan_memory mem = hapi_plan_memory_get(plan);
    void *arena = aligned_alloc(4096, (mem.arena + mem.scratch + 8191) / 4096 * 4096);
    rc = hapi_plan_run(plan, arena, (const void *const[]){x}, (void *const[]){y}, &err);
    CHECKF(rc == 0, "%s: %s", backend, err.text);
    free(arena);
    hapi_plan_free(plan);
}

/* build_weights()' numbers, whose name matters by its first letter and its length. */
static float weight(const char *name, int i)
{
    uint32_t state = 12345 + (uint32_t)name[0] * 977 + (uint32_t)strlen(name);
    for (int k = 0; k <= i; k++)
        state = state * 1664525 + 1013904223;
    return (float)(state >> 8) / (float)(1 << 24) - 0.5F;
}

static double want_of(const struct form *f, const float *x, int at)
{
    bool by_tanh = strstr(f->nodes, "Tanh") != NULL;
    const float *row = x + at / WIDTH * WIDTH;
    double v = x[at], mean = 0, var = 0;

    if (f->op == HAPI_OP_Gelu)
        return by_tanh ? 0.5 * v * (1 + tanh(0.7978845608 * (v + 0.044715 * v * v * v)))
                       : 0.5 * v * (1 + erf(v * M_SQRT1_2));
    for (int i = 0; i < WIDTH; i++)
        mean += row[i] / (double)WIDTH;
    for (int i = 0; i < WIDTH; i++)
        var += (row[i] - mean) * (row[i] - mean) / (double)WIDTH;
    v = (v - mean) / sqrt(var + 1e-5);
    if (strstr(f->nodes, "wide"))
        return v * weight("wide", at % WIDTH);
    return strstr(f->nodes, "scale") ? v * weight("scale", at % WIDTH) + weight("bias", at % WIDTH) : v;
}

static void patterns__each_form__is_one_node_with_the_right_numbers(void)
{
    float x[COUNT], y[COUNT];

    for (int i = 0; i < COUNT; i++)
        x[i] = 8 * weight("x", i);
    for (size_t k = 0; k < sizeof forms / sizeof *forms; k++) {
        static const char *const backends[] = {"ref", "onednn"};
        struct hapi_model *m = model_of(forms[k].nodes, forms[k].opset);
        enum hapi_op_kind op = HAPI_OP_NONE;
        int n = m ? count(m, NULL, &op) : 0;
        CHECKF(n == 1 && op == forms[k].op, "%s: %d nodes, the first a %s", forms[k].name, n,
               hapi_op_name(op));
        for (int b = 0; m && b < 2; b++) {
            memset(y, 0, sizeof y);
            run_plan(m, backends[b], x, y);
            for (int i = 0; i < COUNT; i++) {
                double want = want_of(&forms[k], x, i);
                CHECKF(fabs(y[i] - want) < 1e-5, "%s, %s: element %d is %g, not %g", forms[k].name,
                       backends[b], i, (double)y[i], want);
            }
        }
        hapi_model_close(m);
    }
}

static void patterns__not_quite__are_left_alone(void)
{
    static const struct {
        const char *nodes;
        int n;
    } others[] = {
        {MEANS "Add r,x n;Mul n,scale y", 8}, /* no quotient */
        {MEANS "Div d,r n;Add n,m y", 8},     /* the mean is read */
        {"ReduceMean x,- m;Sub m,x d;Pow d,two q;ReduceMean q,- v;Add v,eps e;Sqrt e r;Div d,r y", 7},
        {"ReduceMean x,- m;Sub x,m d;Pow d,three q;ReduceMean q,- v;Add v,eps e;Sqrt e r;Div d,r y", 7},
        {MEANS "Div d,r n;Mul n,wider y", 2},        /* more dims */
        {ERF "Mul x,c d;Mul d,one y", 5},            /* not a half */
        {ERF "Mul c,c d;Mul d,half y", 5},           /* not of x */
        {ERF "Mul x,c d;Mul d,half e;Add e,b y", 6}, /* erf is read */
        {CUBE "Mul a,g h;Mul h,half y", 8},          /* not of x */
    };

    for (size_t k = 0; k < sizeof others / sizeof *others; k++) {
        struct hapi_model *m = model_of(others[k].nodes, 13);
        enum hapi_op_kind op;
        int n = m ? count(m, NULL, &op) : 0;
        CHECKF(n == others[k].n, "%s: %d nodes", others[k].nodes, n);
        hapi_model_close(m);
    }
}

/* A cut in the midst of a pattern keeps its tensor; the whole has it as one node all the same. */
static void patterns__cut_inside__keeps_the_tensor(void)
{
    static const struct {
        const char *nodes, *cut;
        int n;
    } cuts[] = {
        {MEANS "Div d,r n;Mul n,scale s;Add s,bias y", "n", 1}, /* normalised, before the weights */
        {MEANS "Div d,r n;Mul n,scale s;Add s,bias y", "s", 1},
        {MEANS "Div d,r n;Mul n,scale s;Add s,bias y", "d,r", 6},
        {ERF "Mul x,c d;Mul d,half y", "d", 4},
    };

    for (size_t k = 0; k < sizeof cuts / sizeof *cuts; k++) {
        struct hapi_model *m = model_of(cuts[k].nodes, 13);
        enum hapi_op_kind op;
        int n = m ? count(m, cuts[k].cut, &op) : 0;
        CHECKF(n == cuts[k].n, "cut at %s: %d nodes", cuts[k].cut, n);
        hapi_model_close(m);
    }
}

int main(void)
{
    CASE(patterns__each_form__is_one_node_with_the_right_numbers);
    CASE(patterns__not_quite__are_left_alone);
    CASE(patterns__cut_inside__keeps_the_tensor);
    return check_done();
}
