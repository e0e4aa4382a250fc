/* Element by element. f32 is computed in double and rounded once: for + - * / and sqrt that gives the very
 * f32 result (double has more than twice the bits and two), for the rest the correctly rounded one. */
#include <math.h>
#include <string.h>

#include "ref.h"

/* log(1 + exp(x)) without overflow. */
static double softplus(double x)
{
    return fmax(x, 0) + log1p(exp(-fabs(x)));
}

/* What is rarer. gelu: by erf, or with beta 1 as approximate="tanh" has it. */
static double unary_more(enum hapi_op_kind op, double x, double alpha, double beta)
{
    switch (op) {
    case HAPI_OP_Ceil:
        return ceil(x);
    case HAPI_OP_Celu:
        return fmax(0, x) + fmin(0, alpha * expm1(x / alpha));
    case HAPI_OP_Cos:
        return cos(x);
    case HAPI_OP_Gelu:
        return beta == 0 ? 0.5 * x * (1 + erf(x * M_SQRT1_2))
                         : 0.5 * x * (1 + tanh(M_SQRT2 * M_2_SQRTPI / 2 * (x + 0.044715 * x * x * x)));
    case HAPI_OP_Log:
        return log(x);
    case HAPI_OP_Mish:
        return x * tanh(softplus(x));
    case HAPI_OP_Round:
        return nearbyint(x); /* halves to the even number: the mode that the process starts in */
    case HAPI_OP_Selu:
        return x > 0 ? beta * x : beta * alpha * expm1(x);
    case HAPI_OP_Sign:
        return x > 0 ? 1 : x < 0 ? -1 : x;
    case HAPI_OP_Sin:
        return sin(x);
    case HAPI_OP_Softplus:
        return softplus(x);
    case HAPI_OP_Softsign:
        return x / (1 + fabs(x));
    case HAPI_OP_ThresholdedRelu:
        return x > alpha ? x : 0;
    default:
        return NAN;
    }
}

static double unary_f(enum hapi_op_kind op, double x, double alpha, double beta)
{
    switch (op) {
    case HAPI_OP_Abs:
        return fabs(x);
    case HAPI_OP_Neg:
        return -x;
    case HAPI_OP_Relu:
        return x < 0 ? 0 : x;
    case HAPI_OP_LeakyRelu:
        return x < 0 ? alpha * x : x;
    case HAPI_OP_Elu:
        return x < 0 ? alpha * expm1(x) : x;
    case HAPI_OP_Erf:
        return erf(x);
    case HAPI_OP_Exp:
        return exp(x);
    case HAPI_OP_Floor:
        return floor(x);
    case HAPI_OP_HardSigmoid:
        return fmax(0, fmin(1, alpha * x + beta));
    case HAPI_OP_HardSwish:
        return x * fmax(0, fmin(1, x / 6 + 0.5));
    case HAPI_OP_Reciprocal:
        return 1 / x;
    case HAPI_OP_Sigmoid:
        return 1 / (1 + exp(-x));
    case HAPI_OP_Sqrt:
        return sqrt(x);
    case HAPI_OP_Tanh:
        return tanh(x);
    default:
        return unary_more(op, x, alpha, beta);
    }
}

static int unary_i(const struct hapi_ref_call *c, enum hapi_dtype d, int64_t count)
{
    enum hapi_op_kind op = c->n->op;

    if (op != HAPI_OP_Abs && op != HAPI_OP_Neg && op != HAPI_OP_Relu && op != HAPI_OP_Sign)
        return hapi_ref_fail(c, HAPI_EUNSUPPORTED, "not defined for %s", hapi_dtype_name(d));
    for (int64_t i = 0; i < count; i++) {
        int64_t x = hapi_ref_get_i(c->in[0], d, i);
        if (op == HAPI_OP_Sign) {
            hapi_ref_put_i(c->out[0], d, i, d == HAPI_U64 ? x != 0 : (x > 0) - (x < 0));
            continue;
        }
        bool keep = op == HAPI_OP_Relu || d == HAPI_U64 ? true : op == HAPI_OP_Abs && x >= 0;
        if (op == HAPI_OP_Relu && x < 0 && d != HAPI_U64)
            x = 0;
        hapi_ref_put_i(c->out[0], d, i, keep ? x : (int64_t)(0 - (uint64_t)x));
    }
    return HAPI_OK;
}

/* What the attributes say, or their defaults; Gelu's kind as beta. */
static void unary_numbers(const struct hapi_node *n, double *alpha, double *beta)
{
    const struct hapi_attr *kind = hapi_node_attr(n, "approximate");
    float a = n->op == HAPI_OP_LeakyRelu     ? 0.01F
              : n->op == HAPI_OP_HardSigmoid ? 0.2F
              : n->op == HAPI_OP_Selu        ? 1.67326319F
                                             : 1;

    *alpha = hapi_node_float(n, "alpha", a);
    *beta = n->op == HAPI_OP_Selu   ? hapi_node_float(n, "gamma", 1.05070102F)
            : n->op == HAPI_OP_Gelu ? kind && !strcmp(kind->s, "tanh")
                                    : hapi_node_float(n, "beta", 0.5F);
}

int hapi_ref_unary(const struct hapi_ref_call *c)
{
    const struct hapi_value *x = hapi_ref_in(c, 0);
    enum hapi_op_kind op = c->n->op;
    int64_t count = hapi_ref_count(&x->shape);
    double alpha, beta;

    if (!hapi_ref_is_float(x->dtype))
        return unary_i(c, x->dtype, count);
    unary_numbers(c->n, &alpha, &beta);
    if (x->dtype == HAPI_F32 && op == HAPI_OP_Relu) {
        const float *s = c->in[0];
        float *d = c->out[0];
        for (int64_t i = 0; i < count; i++)
            d[i] = s[i] < 0 ? 0 : s[i];
        return HAPI_OK;
    }
    for (int64_t i = 0; i < count; i++)
        hapi_ref_put_f(c->out[0], x->dtype, i,
                       unary_f(op, hapi_ref_get_f(c->in[0], x->dtype, i), alpha, beta));
    return HAPI_OK;
}

/* ONNX Mod: the sign of the divisor (Python's %), or of the dividend with fmod = 1. */
static double mod_f(double x, double y, bool c_like)
{
    double r = fmod(x, y);
    return !c_like && r != 0 && (r < 0) != (y < 0) ? r + y : r;
}

static double binary_f(enum hapi_op_kind op, double x, double y, bool c_like)
{
    switch (op) {
    case HAPI_OP_Add:
    case HAPI_OP_Mean:
    case HAPI_OP_Sum:
        return x + y;
    case HAPI_OP_Sub:
        return x - y;
    case HAPI_OP_Mul:
        return x * y;
    case HAPI_OP_Div:
        return x / y;
    case HAPI_OP_Pow:
        return pow(x, y);
    case HAPI_OP_Mod:
        return mod_f(x, y, c_like);
    case HAPI_OP_Max:
        return x != x || x > y ? x : y;
    case HAPI_OP_Min:
        return x != x || x < y ? x : y;
    default:
        return NAN;
    }
}

static uint64_t pow_i(uint64_t x, int64_t y)
{
    uint64_t r = 1;

    if (y < 0)
        return x == 1 ? 1 : x == UINT64_MAX ? (y & 1 ? UINT64_MAX : 1) : 0;
    for (; y; y >>= 1, x *= x)
        if (y & 1)
            r *= x;
    return r;
}

/* Division by zero yields 0 and INT64_MIN / -1 wraps: integer ops never trap. */
static int64_t div_i(int64_t x, int64_t y, bool is_unsigned)
{
    if (!y)
        return 0;
    if (is_unsigned)
        return (int64_t)((uint64_t)x / (uint64_t)y);
    return y == -1 ? (int64_t)(0 - (uint64_t)x) : x / y;
}

static int64_t mod_i(int64_t x, int64_t y, bool is_unsigned, bool c_like)
{
    if (!y || y == -1)
        return is_unsigned && y ? (int64_t)((uint64_t)x % (uint64_t)y) : 0;
    if (is_unsigned)
        return (int64_t)((uint64_t)x % (uint64_t)y);
    int64_t r = x % y;
    return !c_like && r && (r < 0) != (y < 0) ? r + y : r;
}

static int64_t binary_i(enum hapi_op_kind op, int64_t x, int64_t y, bool is_unsigned, bool c_like)
{
    bool greater = is_unsigned ? (uint64_t)x > (uint64_t)y : x > y;

    switch (op) {
    case HAPI_OP_Add:
    case HAPI_OP_Mean:
    case HAPI_OP_Sum:
        return (int64_t)((uint64_t)x + (uint64_t)y);
    case HAPI_OP_Sub:
        return (int64_t)((uint64_t)x - (uint64_t)y);
    case HAPI_OP_Mul:
        return (int64_t)((uint64_t)x * (uint64_t)y);
    case HAPI_OP_Div:
        return div_i(x, y, is_unsigned);
    case HAPI_OP_Pow:
        return (int64_t)pow_i((uint64_t)x, y);
    case HAPI_OP_Mod:
        return mod_i(x, y, is_unsigned, c_like);
    case HAPI_OP_Max:
        return greater ? x : y;
    case HAPI_OP_Min:
        return greater ? y : x;
    default:
        return 0;
    }
}

/* Rows of + - * / in f32, where nearly all elements of real networks are. */
static bool row_f32(enum hapi_op_kind op, float *d, const float *a, int64_t as, const float *b, int64_t bs,
                    int64_t n)
{
#define ROW(sign)                                                                                            \
    for (int64_t i = 0; i < n; i++)                                                                          \
    d[i] = a[i * as] sign b[i * bs]
    switch (op) {
    case HAPI_OP_Add:
    case HAPI_OP_Sum:
        ROW(+);
        return true;
    case HAPI_OP_Sub:
        ROW(-);
        return true;
    case HAPI_OP_Mul:
        ROW(*);
        return true;
    case HAPI_OP_Div:
        ROW(/);
        return true;
    default:
        return false;
    }
#undef ROW
}

static void binary_rows(const struct hapi_ref_call *c, struct hapi_ref_walk *w, const struct hapi_value *a,
                        const struct hapi_value *b, const void *pa, const void *pb, void *po)
{
    enum hapi_op_kind op = c->n->op;
    enum hapi_dtype d = a->dtype;
    bool c_like = hapi_node_int(c->n, "fmod", 0) != 0, fl = hapi_ref_is_float(d);
    int64_t sa = w->stride[0][w->rank - 1], sb = w->stride[1][w->rank - 1];

    for (int64_t r = 0; r < w->rows; r++, hapi_ref_walk_next(w)) {
        int64_t ia = w->off[0], ib = w->off[1], io = r * w->inner;
        if (d == HAPI_F32 && b->dtype == HAPI_F32 &&
            row_f32(op, (float *)po + io, (const float *)pa + ia, sa, (const float *)pb + ib, sb, w->inner))
            continue;
        for (int64_t i = 0; i < w->inner; i++, ia += sa, ib += sb) {
            if (fl || (op == HAPI_OP_Pow && hapi_ref_is_float(b->dtype)))
                hapi_ref_put_f(
                    po, d, io + i,
                    binary_f(op, hapi_ref_get_f(pa, d, ia), hapi_ref_get_f(pb, b->dtype, ib), c_like));
            else
                hapi_ref_put_i(po, d, io + i,
                               binary_i(op, hapi_ref_get_i(pa, d, ia), hapi_ref_get_i(pb, b->dtype, ib),
                                        d == HAPI_U64, c_like));
        }
    }
}

int hapi_ref_binary(const struct hapi_ref_call *c)
{
    const struct hapi_value *a = hapi_ref_in(c, 0), *b = hapi_ref_in(c, 1), *o = hapi_ref_out(c, 0);
    struct hapi_ref_walk w;

    hapi_ref_walk_init(&w, &o->shape);
    hapi_ref_walk_operand(&w, 0, &a->shape, -1);
    hapi_ref_walk_operand(&w, 1, &b->shape, hapi_ref_legacy_axis(c, &a->shape, &b->shape));
    binary_rows(c, &w, a, b, c->in[0], c->in[1], c->out[0]);
    return HAPI_OK;
}

/* Max, Min, Sum, Mean of any number of inputs: the first is broadcast into the output, the rest folded in. */
int hapi_ref_variadic(const struct hapi_ref_call *c)
{
    const struct hapi_value *o = hapi_ref_out(c, 0);
    struct hapi_ref_walk w;

    for (int k = 0; k < c->n->n_in; k++) {
        const struct hapi_value *x = hapi_ref_in(c, k);
        hapi_ref_walk_init(&w, &o->shape);
        hapi_ref_walk_operand(&w, 1, &x->shape, -1);
        if (k == 0) {
            hapi_ref_copy_strided(c->out[0], &o->shape, c->in[0], w.stride[1], hapi_dtype_size(o->dtype));
            continue;
        }
        hapi_ref_walk_operand(&w, 0, &o->shape, -1);
        binary_rows(c, &w, o, x, c->out[0], c->in[k], c->out[0]);
    }
    for (int64_t i = 0, n = hapi_ref_count(&o->shape); c->n->op == HAPI_OP_Mean && i < n; i++)
        if (hapi_ref_is_float(o->dtype))
            hapi_ref_put_f(c->out[0], o->dtype, i, hapi_ref_get_f(c->out[0], o->dtype, i) / c->n->n_in);
        else
            hapi_ref_put_i(c->out[0], o->dtype, i, hapi_ref_get_i(c->out[0], o->dtype, i) / c->n->n_in);
    return HAPI_OK;
}

static bool ordered(enum hapi_op_kind op, bool less, bool equal, bool greater)
{
    switch (op) {
    case HAPI_OP_Equal:
        return equal;
    case HAPI_OP_Less:
        return less;
    case HAPI_OP_LessOrEqual:
        return less || equal;
    case HAPI_OP_Greater:
        return greater;
    case HAPI_OP_GreaterOrEqual:
        return greater || equal;
    default:
        return false;
    }
}

static bool compare(enum hapi_op_kind op, const void *pa, int64_t ia, const void *pb, int64_t ib,
                    enum hapi_dtype d)
{
    if (hapi_ref_is_float(d)) {
        double x = hapi_ref_get_f(pa, d, ia), y = hapi_ref_get_f(pb, d, ib);
        return ordered(op, x<y, x == y, x> y);
    }
    int64_t x = hapi_ref_get_i(pa, d, ia), y = hapi_ref_get_i(pb, d, ib);
    if (op == HAPI_OP_And)
        return x && y;
    if (op == HAPI_OP_Or)
        return x || y;
    if (op == HAPI_OP_Xor)
        return x != y;
    bool less = d == HAPI_U64 ? (uint64_t)x < (uint64_t)y : x < y;
    return ordered(op, less, x == y, !less && x != y);
}

/* Comparisons, and And, Or, Xor of booleans. */
int hapi_ref_compare(const struct hapi_ref_call *c)
{
    const struct hapi_value *a = hapi_ref_in(c, 0), *b = hapi_ref_in(c, 1), *o = hapi_ref_out(c, 0);
    uint8_t *d = c->out[0];
    struct hapi_ref_walk w;

    hapi_ref_walk_init(&w, &o->shape);
    hapi_ref_walk_operand(&w, 0, &a->shape, -1);
    hapi_ref_walk_operand(&w, 1, &b->shape, hapi_ref_legacy_axis(c, &a->shape, &b->shape));
    for (int64_t r = 0; r < w.rows; r++, hapi_ref_walk_next(&w))
        for (int64_t i = 0; i < w.inner; i++)
            *d++ = compare(c->n->op, c->in[0], w.off[0] + i * w.stride[0][w.rank - 1], c->in[1],
                           w.off[1] + i * w.stride[1][w.rank - 1], a->dtype);
    return HAPI_OK;
}

int hapi_ref_not(const struct hapi_ref_call *c)
{
    int64_t count = hapi_ref_count(&hapi_ref_in(c, 0)->shape);

    for (int64_t i = 0; i < count; i++)
        ((uint8_t *)c->out[0])[i] = !((const uint8_t *)c->in[0])[i];
    return HAPI_OK;
}

int hapi_ref_where(const struct hapi_ref_call *c)
{
    const struct hapi_value *o = hapi_ref_out(c, 0);
    size_t size = hapi_dtype_size(o->dtype);
    const uint8_t *cond = c->in[0];
    uint8_t *d = c->out[0];
    struct hapi_ref_walk w;

    hapi_ref_walk_init(&w, &o->shape);
    for (int k = 0; k < 3; k++)
        hapi_ref_walk_operand(&w, k, &hapi_ref_in(c, k)->shape, -1);
    for (int64_t r = 0; r < w.rows; r++, hapi_ref_walk_next(&w))
        for (int64_t i = 0; i < w.inner; i++, d += size) {
            int k = cond[w.off[0] + i * w.stride[0][w.rank - 1]] ? 1 : 2;
            const uint8_t *s = c->in[k];
            memcpy(d, s + (size_t)(w.off[k] + i * w.stride[k][w.rank - 1]) * size, size);
        }
    return HAPI_OK;
}

/* min and max are attributes before opset 11, optional inputs since. */
int hapi_ref_clip(const struct hapi_ref_call *c)
{
    const struct hapi_value *x = hapi_ref_in(c, 0);
    const void *lo = hapi_ref_in(c, 1) ? c->in[1] : NULL, *hi = hapi_ref_in(c, 2) ? c->in[2] : NULL;
    int64_t count = hapi_ref_count(&x->shape);

    if (hapi_ref_is_float(x->dtype)) {
        double a = lo ? hapi_ref_get_f(lo, x->dtype, 0) : hapi_node_float(c->n, "min", -INFINITY);
        double b = hi ? hapi_ref_get_f(hi, x->dtype, 0) : hapi_node_float(c->n, "max", INFINITY);
        for (int64_t i = 0; i < count; i++) {
            double v = hapi_ref_get_f(c->in[0], x->dtype, i);
            v = v < a ? a : v;
            hapi_ref_put_f(c->out[0], x->dtype, i, v > b ? b : v);
        }
        return HAPI_OK;
    }
    for (int64_t i = 0; i < count; i++) {
        int64_t v = hapi_ref_get_i(c->in[0], x->dtype, i);
        if (lo)
            v = binary_i(HAPI_OP_Max, v, hapi_ref_get_i(lo, x->dtype, 0), x->dtype == HAPI_U64, false);
        if (hi)
            v = binary_i(HAPI_OP_Min, v, hapi_ref_get_i(hi, x->dtype, 0), x->dtype == HAPI_U64, false);
        hapi_ref_put_i(c->out[0], x->dtype, i, v);
    }
    return HAPI_OK;
}

int hapi_ref_prelu(const struct hapi_ref_call *c)
{
    const struct hapi_value *x = hapi_ref_in(c, 0), *s = hapi_ref_in(c, 1);
    bool by_channel = c->g->opset < 7 && s->shape.rank == 1 && x->shape.rank > 2;
    struct hapi_ref_walk w;

    hapi_ref_walk_init(&w, &x->shape);
    hapi_ref_walk_operand(&w, 0, &x->shape, -1);
    hapi_ref_walk_operand(&w, 1, &s->shape, by_channel ? 1 : -1);
    for (int64_t r = 0; r < w.rows; r++, hapi_ref_walk_next(&w))
        for (int64_t i = 0; i < w.inner; i++) {
            double v = hapi_ref_get_f(c->in[0], x->dtype, w.off[0] + i);
            double a = hapi_ref_get_f(c->in[1], s->dtype, w.off[1] + i * w.stride[1][w.rank - 1]);
            hapi_ref_put_f(c->out[0], x->dtype, w.off[0] + i, v < 0 ? a * v : v);
        }
    return HAPI_OK;
}

int hapi_ref_cast(const struct hapi_ref_call *c)
{
    const struct hapi_value *x = hapi_ref_in(c, 0), *o = hapi_ref_out(c, 0);
    int64_t count = hapi_ref_count(&x->shape);

    for (int64_t i = 0; i < count; i++) {
        if (hapi_ref_is_float(x->dtype) || (hapi_ref_is_float(o->dtype) && x->dtype == HAPI_U64))
            hapi_ref_put_f(c->out[0], o->dtype, i, hapi_ref_get_f(c->in[0], x->dtype, i));
        else
            hapi_ref_put_i(c->out[0], o->dtype, i, hapi_ref_get_i(c->in[0], x->dtype, i));
    }
    return HAPI_OK;
}
