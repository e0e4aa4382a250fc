/* The plain loops against numbers worked out by hand, and the errors that inputs can cause. Breadth comes
 * from ONNX's own test data (tests/conformance). */
#include <math.h>
#include <string.h>

#include "check.h"
#include "graph.h"

enum { VALUES = 8 };

/* A graph of one node over values that the test fills in. */
struct one {
    struct hapi_graph g;
    struct hapi_node n;
    struct hapi_value v[VALUES];
    struct hapi_attr attrs[6];
    int in[4], out[3];
    const void *in_ptr[4];
    void *out_ptr[3];
};

static void one_init(struct one *o, enum hapi_op_kind op, int64_t opset)
{
    memset(o, 0, sizeof *o);
    o->g.opset = opset;
    o->g.values = o->v;
    o->g.n_values = VALUES;
    o->g.nodes = &o->n;
    o->g.n_nodes = 1;
    o->n = (struct hapi_node){.op = op, .name = "node", .in = o->in, .out = o->out, .attrs = o->attrs};
}

static struct hapi_shape shape_of(int rank, int64_t a, int64_t b, int64_t c, int64_t d)
{
    return (struct hapi_shape){rank, {a, rank > 1 ? b : 0, rank > 2 ? c : 0, rank > 3 ? d : 0}};
}

static void add_in(struct one *o, enum hapi_dtype dtype, struct hapi_shape s, const void *data)
{
    int at = o->n.n_in++;
    o->v[at] = (struct hapi_value){.name = "in", .dtype = dtype, .shape = s, .producer = -1};
    o->in[at] = at;
    o->in_ptr[at] = data;
}

static void add_out(struct one *o, enum hapi_dtype dtype, struct hapi_shape s, void *data)
{
    int at = o->n.n_out++;
    o->v[4 + at] = (struct hapi_value){.name = "out", .dtype = dtype, .shape = s, .producer = 0};
    o->out[at] = 4 + at;
    o->out_ptr[at] = data;
}

static void attr_int(struct one *o, const char *name, int64_t v)
{
    o->attrs[o->n.n_attrs++] = (struct hapi_attr){.name = name, .type = HAPI_ATTR_INT, .i = v};
}

static void attr_ints(struct one *o, const char *name, const int64_t *v, size_t n)
{
    o->attrs[o->n.n_attrs++] = (struct hapi_attr){.name = name, .type = HAPI_ATTR_INTS, .ints = v, .n = n};
}

static int one_eval(struct one *o, struct hapi_err *err)
{
    memset(err, 0, sizeof *err);
    return hapi_ref_eval(&o->g, &o->n, o->in_ptr, o->out_ptr, err);
}

static void expect_f32(struct one *o, const float *got, const float *want, size_t n, float tolerance)
{
    struct hapi_err err;
    int rc = one_eval(o, &err);

    CHECKF(rc == 0, "rc %d: %s", rc, err.text);
    for (size_t i = 0; i < n && !rc; i++)
        CHECKF(fabsf(got[i] - want[i]) <= tolerance, "element %zu is %g, not %g", i, (double)got[i],
               (double)want[i]);
}

/* 3x3 input 1..9, 2x2 kernel, stride 2, one row and column of padding on each side: four corners of it. */
static void conv__padding_and_stride__by_hand(void)
{
    static const int64_t pads[4] = {1, 1, 1, 1}, strides[2] = {2, 2};
    float x[9], k[4] = {1, 10, 100, 1000}, bias[1] = {0.5F}, y[4] = {0};
    static const float want[4] = {1000 * 1 + 0.5F, 1000 * 3 + 100 * 2 + 0.5F, 1000 * 7 + 10 * 4 + 0.5F,
                                  1 * 5 + 10 * 6 + 100 * 8 + 1000 * 9 + 0.5F};
    struct one o;

    for (int i = 0; i < 9; i++)
        x[i] = (float)(i + 1);
    one_init(&o, HAPI_OP_Conv, 11);
    add_in(&o, HAPI_F32, shape_of(4, 1, 1, 3, 3), x);
    add_in(&o, HAPI_F32, shape_of(4, 1, 1, 2, 2), k);
    add_in(&o, HAPI_F32, shape_of(1, 1, 0, 0, 0), bias);
    add_out(&o, HAPI_F32, shape_of(4, 1, 1, 2, 2), y);
    attr_ints(&o, "pads", pads, 4);
    attr_ints(&o, "strides", strides, 2);
    expect_f32(&o, y, want, 4, 0);
}

/* Two groups with dilation 2: each output channel sees its own input channel's corners. */
static void conv__groups_and_dilation__by_hand(void)
{
    static const int64_t dilations[2] = {2, 2};
    float x[18], k[8] = {1, 1, 1, 1, 1, 0, 0, -1}, y[2] = {0};
    static const float want[2] = {1 + 3 + 7 + 9, 10 - 18};
    struct one o;

    for (int i = 0; i < 18; i++)
        x[i] = (float)(i + 1);
    one_init(&o, HAPI_OP_Conv, 11);
    add_in(&o, HAPI_F32, shape_of(4, 1, 2, 3, 3), x);
    add_in(&o, HAPI_F32, shape_of(4, 2, 1, 2, 2), k);
    add_out(&o, HAPI_F32, shape_of(4, 1, 2, 1, 1), y);
    attr_ints(&o, "dilations", dilations, 2);
    attr_int(&o, "group", 2);
    expect_f32(&o, y, want, 2, 0);
}

/* PyTorch's AvgPool1d(2, 2, ceil_mode=True) of 1..5: the last window has one element and divides by it. */
static void average_pool__ceil_mode__last_window_divides_by_what_it_covers(void)
{
    static const int64_t kernel[1] = {2}, strides[1] = {2};
    float x[5] = {1, 2, 3, 4, 5}, y[3] = {0};
    static const float want[3] = {1.5F, 3.5F, 5};
    struct one o;

    one_init(&o, HAPI_OP_AveragePool, 11);
    add_in(&o, HAPI_F32, shape_of(3, 1, 1, 5, 0), x);
    add_out(&o, HAPI_F32, shape_of(3, 1, 1, 3, 0), y);
    attr_ints(&o, "kernel_shape", kernel, 1);
    attr_ints(&o, "strides", strides, 1);
    attr_int(&o, "ceil_mode", 1);
    expect_f32(&o, y, want, 3, 0);
}

static void window__kernel_larger_than_input__is_an_error(void)
{
    static const int64_t kernel[2] = {5, 5}, strides[2] = {0, 1};
    float x[9] = {0}, y[1] = {0};
    struct hapi_window w;
    struct hapi_err err = {0};
    struct one o;

    one_init(&o, HAPI_OP_MaxPool, 11);
    add_in(&o, HAPI_F32, shape_of(4, 1, 1, 3, 3), x);
    add_out(&o, HAPI_F32, shape_of(4, 1, 1, 1, 1), y);
    CHECK(hapi_window_of(&o.g, &o.n, &w, &err) == HAPI_EFORMAT);
    attr_ints(&o, "kernel_shape", kernel, 2);
    CHECK(hapi_window_of(&o.g, &o.n, &w, &err) == HAPI_EFORMAT);
    CHECK(strstr(err.text, "node") != NULL);
    o.attrs[0].ints = (const int64_t[]){2, 2};
    CHECK(hapi_window_of(&o.g, &o.n, &w, &err) == HAPI_OK && w.out[0] == 2 && w.out[1] == 2);
    attr_ints(&o, "strides", strides, 2);
    CHECK(hapi_window_of(&o.g, &o.n, &w, &err) == HAPI_EFORMAT);
    o.v[0].shape = shape_of(2, 3, 3, 0, 0);
    CHECK(hapi_window_of(&o.g, &o.n, &w, &err) == HAPI_EUNSUPPORTED);
}

static void gemm__transposed_with_bias_row__by_hand(void)
{
    float a[6] = {1, 2, 3, 4, 5, 6}, b[6] = {1, 0, 1, 0, 1, 0}, c[2] = {10, 20}, y[4] = {0};
    static const float want[4] = {1 + 3 + 10, 2 + 20, 4 + 6 + 10, 5 + 20};
    struct one o;

    one_init(&o, HAPI_OP_Gemm, 13);
    add_in(&o, HAPI_F32, shape_of(2, 2, 3, 0, 0), a);
    add_in(&o, HAPI_F32, shape_of(2, 2, 3, 0, 0), b);
    add_in(&o, HAPI_F32, shape_of(1, 2, 0, 0, 0), c);
    add_out(&o, HAPI_F32, shape_of(2, 2, 2, 0, 0), y);
    attr_int(&o, "transB", 1);
    expect_f32(&o, y, want, 4, 0);
}

/* Sums that f32 alone would lose: 1e8 + 1 - 1e8. */
static void matmul__cancelling_terms__accumulates_in_f64(void)
{
    float a[3] = {1e8F, 1, -1e8F}, b[3] = {1, 1, 1}, y[1] = {0};
    static const float want[1] = {1};
    struct one o;

    one_init(&o, HAPI_OP_MatMul, 13);
    add_in(&o, HAPI_F32, shape_of(1, 3, 0, 0, 0), a);
    add_in(&o, HAPI_F32, shape_of(1, 3, 0, 0, 0), b);
    add_out(&o, HAPI_F32, shape_of(0, 0, 0, 0, 0), y);
    expect_f32(&o, y, want, 1, 0);
}

/* Before opset 7 `axis` says where the second operand's dims begin. */
static void add__legacy_axis__broadcasts_along_channels(void)
{
    float a[8] = {0}, b[2] = {1, 2}, y[8] = {0};
    static const float want[8] = {1, 1, 2, 2, 1, 1, 2, 2};
    struct one o;

    one_init(&o, HAPI_OP_Add, 6);
    add_in(&o, HAPI_F32, shape_of(3, 2, 2, 2, 0), a);
    add_in(&o, HAPI_F32, shape_of(1, 2, 0, 0, 0), b);
    add_out(&o, HAPI_F32, shape_of(3, 2, 2, 2, 0), y);
    attr_int(&o, "broadcast", 1);
    attr_int(&o, "axis", 1);
    expect_f32(&o, y, want, 8, 0);
}

/* Before opset 13 all dims from the axis on are one distribution. */
static void softmax__opset_11_and_13__differ_in_what_sums_to_one(void)
{
    float x[4] = {0, 0, 0, 0}, y[4] = {0};
    static const float all[4] = {0.25F, 0.25F, 0.25F, 0.25F}, last[4] = {0.5F, 0.5F, 0.5F, 0.5F};
    struct one o;

    for (int opset = 11; opset <= 13; opset += 2) {
        one_init(&o, HAPI_OP_Softmax, opset);
        add_in(&o, HAPI_F32, shape_of(3, 1, 2, 2, 0), x);
        add_out(&o, HAPI_F32, shape_of(3, 1, 2, 2, 0), y);
        expect_f32(&o, y, opset == 11 ? all : last, 4, 1e-7F);
    }
}

static void slice__negative_step__reverses(void)
{
    float x[5] = {0, 1, 2, 3, 4}, y[3] = {0};
    int64_t starts[1] = {-1}, ends[1] = {-100}, axes[1] = {0}, steps[1] = {-2};
    static const float want[3] = {4, 2, 0};
    struct one o;

    one_init(&o, HAPI_OP_Slice, 13);
    add_in(&o, HAPI_F32, shape_of(1, 5, 0, 0, 0), x);
    add_in(&o, HAPI_I64, shape_of(1, 1, 0, 0, 0), starts);
    add_in(&o, HAPI_I64, shape_of(1, 1, 0, 0, 0), ends);
    add_in(&o, HAPI_I64, shape_of(1, 1, 0, 0, 0), axes);
    add_out(&o, HAPI_F32, shape_of(1, 3, 0, 0, 0), y);
    /* A fifth input, past what add_in() has room for. */
    int in[5] = {0, 1, 2, 3, 7};
    const void *ptr[5] = {x, starts, ends, axes, steps};
    o.v[7] = (struct hapi_value){.name = "steps", .dtype = HAPI_I64, .shape = shape_of(1, 1, 0, 0, 0)};
    o.n.in = in;
    o.n.n_in = 5;
    struct hapi_err err = {0};
    CHECK(hapi_ref_eval(&o.g, &o.n, ptr, o.out_ptr, &err) == HAPI_OK);
    CHECK(y[0] == want[0] && y[1] == want[1] && y[2] == want[2]);
    steps[0] = 0;
    CHECK(hapi_ref_eval(&o.g, &o.n, ptr, o.out_ptr, &err) == HAPI_EFORMAT);
}

static void gather__index_out_of_range__is_an_error_and_reads_nothing(void)
{
    float x[3] = {1, 2, 3}, y[2] = {0};
    int64_t ids[2] = {-3, 2};
    static const float want[2] = {1, 3};
    struct hapi_err err;
    struct one o;

    one_init(&o, HAPI_OP_Gather, 13);
    add_in(&o, HAPI_F32, shape_of(1, 3, 0, 0, 0), x);
    add_in(&o, HAPI_I64, shape_of(1, 2, 0, 0, 0), ids);
    add_out(&o, HAPI_F32, shape_of(1, 2, 0, 0, 0), y);
    expect_f32(&o, y, want, 2, 0);
    ids[1] = 3;
    CHECK(one_eval(&o, &err) == HAPI_EINVAL);
    CHECK(strstr(err.text, "node") != NULL);
    ids[1] = INT64_MIN;
    CHECK(one_eval(&o, &err) == HAPI_EINVAL);
}

static void scatter_nd__index_out_of_range__is_an_error(void)
{
    float x[4] = {1, 2, 3, 4}, updates[1] = {9}, y[4] = {0};
    int64_t ids[1] = {-1};
    static const float want[4] = {1, 2, 3, 9};
    struct hapi_err err;
    struct one o;

    one_init(&o, HAPI_OP_ScatterND, 16);
    add_in(&o, HAPI_F32, shape_of(1, 4, 0, 0, 0), x);
    add_in(&o, HAPI_I64, shape_of(2, 1, 1, 0, 0), ids);
    add_in(&o, HAPI_F32, shape_of(1, 1, 0, 0, 0), updates);
    add_out(&o, HAPI_F32, shape_of(1, 4, 0, 0, 0), y);
    expect_f32(&o, y, want, 4, 0);
    ids[0] = 4;
    CHECK(one_eval(&o, &err) == HAPI_EINVAL);
}

/* Integer arithmetic never traps: x / 0 and INT64_MIN / -1 have a result. Mod takes the divisor's sign. */
static void integers__division_by_zero_and_overflow__do_not_trap(void)
{
    int64_t a[3] = {7, INT64_MIN, -7}, b[3] = {0, -1, 3}, y[3] = {0};
    struct hapi_err err;
    struct one o;

    one_init(&o, HAPI_OP_Div, 14);
    add_in(&o, HAPI_I64, shape_of(1, 3, 0, 0, 0), a);
    add_in(&o, HAPI_I64, shape_of(1, 3, 0, 0, 0), b);
    add_out(&o, HAPI_I64, shape_of(1, 3, 0, 0, 0), y);
    CHECK(one_eval(&o, &err) == HAPI_OK && y[0] == 0 && y[1] == INT64_MIN && y[2] == -2);
    o.n.op = HAPI_OP_Mod;
    CHECK(one_eval(&o, &err) == HAPI_OK && y[0] == 0 && y[1] == 0 && y[2] == 2);
}

static void reduce_mean__inner_and_outer_axes__by_hand(void)
{
    static const int64_t axes[2] = {0, -1};
    float x[8] = {0, 1, 2, 3, 4, 5, 6, 7}, y[2] = {0};
    static const float want[2] = {2.5F, 4.5F};
    struct one o;

    one_init(&o, HAPI_OP_ReduceMean, 13);
    add_in(&o, HAPI_F32, shape_of(3, 2, 2, 2, 0), x);
    add_out(&o, HAPI_F32, shape_of(3, 1, 2, 1, 0), y);
    attr_ints(&o, "axes", axes, 2);
    expect_f32(&o, y, want, 2, 0);
}

static void cast__float_to_integer__truncates_and_clamps(void)
{
    float x[4] = {-1.9F, 1e30F, NAN, 255};
    int64_t y[4] = {0};
    struct hapi_err err;
    struct one o;

    one_init(&o, HAPI_OP_Cast, 13);
    add_in(&o, HAPI_F32, shape_of(1, 4, 0, 0, 0), x);
    add_out(&o, HAPI_I64, shape_of(1, 4, 0, 0, 0), y);
    CHECK(one_eval(&o, &err) == HAPI_OK);
    CHECK(y[0] == -1 && y[1] == INT64_MAX && y[2] == 0 && y[3] == 255);
}

static void op_table__every_row__has_a_name(void)
{
    for (int op = HAPI_OP_NONE + 1; op < HAPI_OP_COUNT; op++)
        CHECKF(strcmp(hapi_op_name((enum hapi_op_kind)op), "?") != 0, "op %d", op);
    CHECK(!strcmp(hapi_op_name(HAPI_OP_NONE), "?"));
    CHECK(!strcmp(hapi_op_name(HAPI_OP_COUNT), "?"));
}

int main(void)
{
    CASE(conv__padding_and_stride__by_hand);
    CASE(conv__groups_and_dilation__by_hand);
    CASE(average_pool__ceil_mode__last_window_divides_by_what_it_covers);
    CASE(window__kernel_larger_than_input__is_an_error);
    CASE(gemm__transposed_with_bias_row__by_hand);
    CASE(matmul__cancelling_terms__accumulates_in_f64);
    CASE(add__legacy_axis__broadcasts_along_channels);
    CASE(softmax__opset_11_and_13__differ_in_what_sums_to_one);
    CASE(slice__negative_step__reverses);
    CASE(gather__index_out_of_range__is_an_error_and_reads_nothing);
    CASE(scatter_nd__index_out_of_range__is_an_error);
    CASE(integers__division_by_zero_and_overflow__do_not_trap);
    CASE(reduce_mean__inner_and_outer_axes__by_hand);
    CASE(cast__float_to_integer__truncates_and_clamps);
    CASE(op_table__every_row__has_a_name);
    return check_done();
}
