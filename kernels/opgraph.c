#include "opgraph.h"

#include <stdio.h>
#include <string.h>

#include "convert.h"

static const char *const mode_names[] = {
    [HAPI_CUDNN_ADD] = "add",
    [HAPI_CUDNN_MUL] = "mul",
    [HAPI_CUDNN_RELU] = "relu",
    [HAPI_CUDNN_SIGMOID] = "sigmoid",
    [HAPI_CUDNN_SWISH] = "swish",
    [HAPI_CUDNN_TANH] = "tanh",
    [HAPI_CUDNN_ELU] = "elu",
    [HAPI_CUDNN_GELU] = "gelu",
    [HAPI_CUDNN_GELU_TANH] = "gelu_tanh",
    [HAPI_CUDNN_IDENTITY] = "identity",
    [HAPI_CUDNN_MAX_POOL] = "max_pool",
    [HAPI_CUDNN_AVG_POOL] = "avg_pool",
    [HAPI_CUDNN_AVG_POOL_INCLUDING] = "avg_pool",
};

static const struct {
    const char *name; /* NULL: its mode's */
    int n_in;         /* 0: by the mode */
} kinds[] = {
    [HAPI_CUDNN_CONV] = {"conv", 2},
    [HAPI_CUDNN_MATMUL] = {"matmul", 2},
    [HAPI_CUDNN_POINTWISE] = {NULL, 0},
    [HAPI_CUDNN_RESAMPLE] = {NULL, 1},
    [HAPI_CUDNN_LAYER_NORM] = {"layer_norm", 4},
    [HAPI_CUDNN_SDPA] = {"sdpa", 4},
};

/* ------------------------------------------------------------------ making one */

int hapi_cudnn_tensor_add(struct hapi_cudnn_graph *g, enum hapi_dtype dtype, int rank, const int64_t *dim,
                          const int64_t *stride, bool is_virtual)
{
    if (g->n_tensors >= HAPI_CUDNN_TENSORS) {
        g->n_tensors = HAPI_CUDNN_TENSORS + 1;
        return -1;
    }
    struct hapi_cudnn_tensor *t = &g->tensors[g->n_tensors];
    *t = (struct hapi_cudnn_tensor){
        .uid = g->n_tensors + 1, .dtype = dtype, .rank = rank, .is_virtual = is_virtual};
    for (int i = 0; i < rank && i < HAPI_CUDNN_RANK; i++) {
        t->dim[i] = dim[i];
        t->stride[i] = stride[i];
    }
    return g->n_tensors++;
}

int hapi_cudnn_scalar_add(struct hapi_cudnn_graph *g, float value)
{
    static const int64_t one[] = {1, 1, 1, 1};
    int i = hapi_cudnn_tensor_add(g, HAPI_F32, 4, one, one, false);

    if (i >= 0) {
        g->tensors[i].by_value = true;
        g->tensors[i].value = value;
    }
    return i;
}

struct hapi_cudnn_op *hapi_cudnn_op_add(struct hapi_cudnn_graph *g, enum hapi_cudnn_op_kind kind, int out)
{
    static struct hapi_cudnn_op nowhere;

    if (g->n_ops >= HAPI_CUDNN_OPS) {
        g->n_ops = HAPI_CUDNN_OPS + 1;
        return &nowhere;
    }
    struct hapi_cudnn_op *op = &g->ops[g->n_ops++];
    *op = (struct hapi_cudnn_op){.kind = kind, .out = out};
    return op;
}

/* ------------------------------------------------------------------ names */

const char *hapi_cudnn_op_text(const struct hapi_cudnn_op *op)
{
    if ((size_t)op->kind < sizeof kinds / sizeof *kinds && kinds[op->kind].name)
        return kinds[op->kind].name;
    return (size_t)op->mode < sizeof mode_names / sizeof *mode_names ? mode_names[op->mode] : "?";
}

char *hapi_cudnn_graph_text(const struct hapi_cudnn_graph *g, char *buf, size_t size)
{
    size_t n = 0;

    buf[0] = 0;
    for (int i = 0; i < g->n_ops && i < HAPI_CUDNN_OPS && n < size; i++)
        n += (size_t)snprintf(buf + n, size - n, "%s%s", i ? "+" : "", hapi_cudnn_op_text(&g->ops[i]));
    return buf;
}

static char *dims_text(const struct hapi_cudnn_tensor *t, char *buf, size_t size)
{
    struct hapi_shape s = {.rank = t->rank};

    memcpy(s.dim, t->dim, sizeof t->dim);
    return hapi_shape_text(&s, buf, size);
}

/* ------------------------------------------------------------------ keys */

/* Numbers one after the other: structs have holes. */
struct numbers {
    int64_t list[HAPI_CUDNN_TENSORS * (6 + 2 * HAPI_CUDNN_RANK) +
                 HAPI_CUDNN_OPS * (10 + 6 * HAPI_CUDNN_SPATIAL + HAPI_CUDNN_INPUTS)];
    size_t n;
};

static void number_add(struct numbers *k, const int64_t *v, int n)
{
    for (int i = 0; i < n; i++)
        k->list[k->n++] = v[i];
}

static int64_t bits_of(float f)
{
    int32_t i;

    memcpy(&i, &f, sizeof i);
    return i;
}

void hapi_cudnn_graph_key(const struct hapi_cudnn_graph *g, uint8_t out[HAPI_CUDNN_KEY])
{
    struct numbers k = {.n = 0};

    for (int i = 0; i < g->n_tensors && i < HAPI_CUDNN_TENSORS; i++) {
        const struct hapi_cudnn_tensor *t = &g->tensors[i];
        number_add(
            &k, (const int64_t[]){t->uid, t->dtype, t->rank, t->is_virtual, t->by_value, bits_of(t->value)},
            6);
        number_add(&k, t->dim, HAPI_CUDNN_RANK);
        number_add(&k, t->stride, HAPI_CUDNN_RANK);
    }
    for (int i = 0; i < g->n_ops && i < HAPI_CUDNN_OPS; i++) {
        const struct hapi_cudnn_op *op = &g->ops[i];
        number_add(&k, (const int64_t[]){op->kind, op->mode, op->n_in, op->out, op->spatial}, 5);
        number_add(&k, (const int64_t[]){bits_of(op->lower), bits_of(op->upper), bits_of(op->slope)}, 3);
        for (int j = 0; j < HAPI_CUDNN_INPUTS; j++)
            number_add(&k, (const int64_t[]){op->in[j]}, 1);
        number_add(&k, op->kernel, HAPI_CUDNN_SPATIAL);
        number_add(&k, op->stride, HAPI_CUDNN_SPATIAL);
        number_add(&k, op->dilation, HAPI_CUDNN_SPATIAL);
        number_add(&k, op->pad_begin, HAPI_CUDNN_SPATIAL);
        number_add(&k, op->pad_end, HAPI_CUDNN_SPATIAL);
    }
    hapi_sha256(out, k.list, k.n * sizeof *k.list);
}

/* ------------------------------------------------------------------ checks */

struct check {
    const struct hapi_cudnn_graph *g;
    const struct hapi_cudnn_op *op;
    struct hapi_err *err;
};

static const struct hapi_cudnn_tensor *operand(const struct check *c, int i)
{
    return &c->g->tensors[c->op->in[i]];
}

static const struct hapi_cudnn_tensor *result(const struct check *c)
{
    return &c->g->tensors[c->op->out];
}

/* HAPI_EINVAL with the op and the shapes of its operands in front of what is wrong. */
static int wrong(const struct check *c, const char *what, int64_t is, int64_t should)
{
    char x[96], y[96], w[96] = "";

    if (c->op->n_in > 1)
        dims_text(operand(c, 1), w, sizeof w);
    return hapi_err_set(c->err, HAPI_EINVAL, 0, "%s: %s of %s%s%s to %s: %s is %lld and should be %lld",
                        c->g->name, hapi_cudnn_op_text(c->op), dims_text(operand(c, 0), x, sizeof x),
                        *w ? " and " : "", w, dims_text(result(c), y, sizeof y), what, (long long)is,
                        (long long)should);
}

static int tensor_check(const struct hapi_cudnn_graph *g, int i, struct hapi_err *err)
{
    const struct hapi_cudnn_tensor *t = &g->tensors[i];
    bool possible = t->dtype == HAPI_F32 || t->dtype == HAPI_F16 || t->dtype == HAPI_BF16 ||
                    t->dtype == HAPI_I8 || t->dtype == HAPI_U8;

    if (t->uid <= 0)
        return hapi_err_set(err, HAPI_EINVAL, 0, "%s: tensor %d has no id", g->name, i);
    for (int k = 0; k < i; k++)
        if (g->tensors[k].uid == t->uid)
            return hapi_err_set(err, HAPI_EINVAL, 0, "%s: tensors %d and %d have the same id %lld", g->name,
                                k, i, (long long)t->uid);
    if (!possible)
        return hapi_err_set(err, HAPI_EUNSUPPORTED, 0, "%s: tensor %lld is of dtype %s", g->name,
                            (long long)t->uid, hapi_dtype_name(t->dtype));
    if (t->rank < 3 || t->rank > HAPI_CUDNN_RANK)
        return hapi_err_set(err, HAPI_EUNSUPPORTED, 0, "%s: tensor %lld has %d dims; 3..%d are possible",
                            g->name, (long long)t->uid, t->rank, HAPI_CUDNN_RANK);
    for (int d = 0; d < t->rank; d++)
        if (t->dim[d] < 1 || t->stride[d] < 0)
            return hapi_err_set(err, HAPI_EINVAL, 0, "%s: dim %d of tensor %lld is %lld with stride %lld",
                                g->name, d, (long long)t->uid, (long long)t->dim[d], (long long)t->stride[d]);
    if (t->by_value && (t->is_virtual || t->dtype != HAPI_F32))
        return hapi_err_set(err, HAPI_EINVAL, 0, "%s: tensor %lld is given by value: it must be a real f32",
                            g->name, (long long)t->uid);
    return HAPI_OK;
}

/* Spatial dims of a window's result. */
static int window_check(const struct check *c)
{
    const struct hapi_cudnn_op *op = c->op;
    const struct hapi_cudnn_tensor *x = operand(c, 0), *y = result(c);

    if (op->spatial < 2 || op->spatial > HAPI_CUDNN_SPATIAL)
        return wrong(c, "the number of its spatial dims", op->spatial, 2);
    if (x->rank != op->spatial + 2)
        return wrong(c, "the input's rank", x->rank, op->spatial + 2);
    if (y->rank != x->rank)
        return wrong(c, "the result's rank", y->rank, x->rank);
    if (y->dim[0] != x->dim[0])
        return wrong(c, "the result's batch", y->dim[0], x->dim[0]);
    for (int i = 0; i < op->spatial; i++) {
        int64_t reach = op->dilation[i] * (op->kernel[i] - 1) + 1;
        if (op->kernel[i] < 1 || op->stride[i] < 1 || op->dilation[i] < 1)
            return wrong(c, "the least of kernel, stride and dilation", 0, 1);
        int64_t out = (x->dim[2 + i] + op->pad_begin[i] + op->pad_end[i] - reach) / op->stride[i] + 1;
        if (y->dim[2 + i] != out)
            return wrong(c, "a spatial dim of the result", y->dim[2 + i], out);
    }
    return HAPI_OK;
}

static int conv_check(const struct check *c)
{
    const struct hapi_cudnn_tensor *x = operand(c, 0), *w = operand(c, 1), *y = result(c);
    int rc = window_check(c);

    if (rc)
        return rc;
    if (w->rank != x->rank)
        return wrong(c, "the weights' rank", w->rank, x->rank);
    if (x->dim[1] % w->dim[1])
        return wrong(c, "the rest of input channels by the weights'", x->dim[1] % w->dim[1], 0);
    if (w->dim[0] % (x->dim[1] / w->dim[1]))
        return wrong(c, "the rest of output channels by groups", w->dim[0] % (x->dim[1] / w->dim[1]), 0);
    if (y->dim[1] != w->dim[0])
        return wrong(c, "the result's number of channels", y->dim[1], w->dim[0]);
    for (int i = 0; i < c->op->spatial; i++)
        if (w->dim[2 + i] != c->op->kernel[i])
            return wrong(c, "a spatial dim of the weights", w->dim[2 + i], c->op->kernel[i]);
    if (w->dtype != x->dtype)
        return wrong(c, "the weights' dtype (by its number)", w->dtype, x->dtype);
    return HAPI_OK;
}

static int pool_check(const struct check *c)
{
    int rc = window_check(c);

    if (rc)
        return rc;
    if (result(c)->dim[1] != operand(c, 0)->dim[1])
        return wrong(c, "the result's number of channels", result(c)->dim[1], operand(c, 0)->dim[1]);
    for (int i = 0; i < c->op->spatial; i++) {
        int64_t least = c->op->pad_begin[i] < c->op->pad_end[i] ? c->op->pad_begin[i] : c->op->pad_end[i];
        if (c->op->dilation[i] != 1)
            return wrong(c, "a dilation", c->op->dilation[i], 1);
        if (least < 0) /* cuDNN makes plans of them, and says nowhere what they compute */
            return wrong(c, "a padding", least, 0);
    }
    return HAPI_OK;
}

static int matmul_check(const struct check *c)
{
    const struct hapi_cudnn_tensor *a = operand(c, 0), *b = operand(c, 1), *y = result(c);
    int r = a->rank;

    if (b->rank != r)
        return wrong(c, "the second operand's rank", b->rank, r);
    if (y->rank != r)
        return wrong(c, "the result's rank", y->rank, r);
    if (b->dim[r - 2] != a->dim[r - 1])
        return wrong(c, "the second operand's number of rows", b->dim[r - 2], a->dim[r - 1]);
    if (y->dim[r - 2] != a->dim[r - 2])
        return wrong(c, "the result's number of rows", y->dim[r - 2], a->dim[r - 2]);
    if (y->dim[r - 1] != b->dim[r - 1])
        return wrong(c, "the result's number of columns", y->dim[r - 1], b->dim[r - 1]);
    for (int i = 0; i < r - 2; i++) {
        if (y->dim[i] != a->dim[i])
            return wrong(c, "a batch dim of the result", y->dim[i], a->dim[i]);
        if (b->dim[i] != 1 && b->dim[i] != a->dim[i])
            return wrong(c, "a batch dim of the second operand", b->dim[i], a->dim[i]);
    }
    if (b->dtype != a->dtype)
        return wrong(c, "the second operand's dtype (by its number)", b->dtype, a->dtype);
    return HAPI_OK;
}

/* Every operand has the result's dims, or ones. */
static int pointwise_check(const struct check *c)
{
    const struct hapi_cudnn_tensor *y = result(c);

    for (int k = 0; k < c->op->n_in; k++) {
        const struct hapi_cudnn_tensor *x = operand(c, k);
        if (x->by_value)
            continue;
        if (x->rank != y->rank)
            return wrong(c, "an operand's rank", x->rank, y->rank);
        for (int i = 0; i < y->rank; i++)
            if (x->dim[i] != y->dim[i] && (x->dim[i] != 1 || c->op->n_in == 1))
                return wrong(c, "a dim of an operand", x->dim[i], y->dim[i]);
    }
    return HAPI_OK;
}

static int norm_check(const struct check *c)
{
    const struct hapi_cudnn_tensor *x = operand(c, 0), *y = result(c);

    if (x->rank != 4 || y->rank != 4)
        return wrong(c, "the rank", x->rank == 4 ? y->rank : x->rank, 4);
    for (int i = 0; i < 4; i++)
        if (y->dim[i] != x->dim[i])
            return wrong(c, "a dim of the result", y->dim[i], x->dim[i]);
    for (int k = 1; k < 3; k++)
        for (int i = 0; i < 4; i++) {
            int64_t want = i ? x->dim[i] : 1;
            if (operand(c, k)->rank != 4 || operand(c, k)->dim[i] != want)
                return wrong(c, k == 1 ? "a dim of the scale" : "a dim of the shift", operand(c, k)->dim[i],
                             want);
        }
    if (!operand(c, 3)->by_value)
        return wrong(c, "epsilon's way of being given (1: by value)", 0, 1);
    return HAPI_OK;
}

static int sdpa_check(const struct check *c)
{
    const struct hapi_cudnn_tensor *q = operand(c, 0), *k = operand(c, 1), *v = operand(c, 2), *o = result(c);

    for (int i = 0; i < 3; i++)
        if (operand(c, i)->rank != 4 || operand(c, i)->dtype != q->dtype)
            return wrong(c, "an operand's rank or dtype", operand(c, i)->rank, 4);
    if (o->rank != 4)
        return wrong(c, "the result's rank", o->rank, 4);
    for (int i = 0; i < 2; i++) {
        if (k->dim[i] != q->dim[i] || v->dim[i] != q->dim[i])
            return wrong(c, "a batch dim of k or v", k->dim[i] != q->dim[i] ? k->dim[i] : v->dim[i],
                         q->dim[i]);
        if (o->dim[i] != q->dim[i])
            return wrong(c, "a batch dim of the result", o->dim[i], q->dim[i]);
    }
    if (k->dim[3] != q->dim[3])
        return wrong(c, "the keys' length", k->dim[3], q->dim[3]);
    if (v->dim[2] != k->dim[2])
        return wrong(c, "the number of values", v->dim[2], k->dim[2]);
    if (o->dim[2] != q->dim[2])
        return wrong(c, "the number of results", o->dim[2], q->dim[2]);
    if (o->dim[3] != v->dim[3])
        return wrong(c, "the results' length", o->dim[3], v->dim[3]);
    if (!operand(c, 3)->by_value)
        return wrong(c, "the scale's way of being given (1: by value)", 0, 1);
    return HAPI_OK;
}

/* Operands are there and ready, the result is nobody else's. made[]: whether an op before has written it. */
static int edges_check(const struct check *c, bool *made)
{
    const struct hapi_cudnn_op *op = c->op;
    const struct hapi_cudnn_graph *g = c->g;
    bool two = op->mode == HAPI_CUDNN_ADD || op->mode == HAPI_CUDNN_MUL;
    int want = kinds[op->kind].n_in ? kinds[op->kind].n_in : two ? 2 : 1;

    if (op->n_in != want)
        return hapi_err_set(c->err, HAPI_EINVAL, 0, "%s: %s has %d operands and takes %d", g->name,
                            hapi_cudnn_op_text(op), op->n_in, want);
    for (int i = 0; i < op->n_in; i++) {
        if (op->in[i] < 0 || op->in[i] >= g->n_tensors)
            return hapi_err_set(c->err, HAPI_EINVAL, 0, "%s: operand %d of %s is no tensor", g->name, i,
                                hapi_cudnn_op_text(op));
        if (g->tensors[op->in[i]].is_virtual && !made[op->in[i]])
            return hapi_err_set(c->err, HAPI_EINVAL, 0,
                                "%s: %s reads virtual tensor %lld, which nothing has made", g->name,
                                hapi_cudnn_op_text(op), (long long)g->tensors[op->in[i]].uid);
    }
    if (op->out < 0 || op->out >= g->n_tensors)
        return hapi_err_set(c->err, HAPI_EINVAL, 0, "%s: the result of %s is no tensor", g->name,
                            hapi_cudnn_op_text(op));
    if (made[op->out] || g->tensors[op->out].by_value)
        return hapi_err_set(c->err, HAPI_EINVAL, 0, "%s: %s writes tensor %lld, which is written already",
                            g->name, hapi_cudnn_op_text(op), (long long)g->tensors[op->out].uid);
    made[op->out] = true;
    return HAPI_OK;
}

static int op_check(const struct check *c, bool *made)
{
    static int (*const by_kind[])(const struct check *c) = {
        [HAPI_CUDNN_CONV] = conv_check,           [HAPI_CUDNN_MATMUL] = matmul_check,
        [HAPI_CUDNN_POINTWISE] = pointwise_check, [HAPI_CUDNN_RESAMPLE] = pool_check,
        [HAPI_CUDNN_LAYER_NORM] = norm_check,     [HAPI_CUDNN_SDPA] = sdpa_check,
    };
    const struct hapi_cudnn_op *op = c->op;
    bool pool = op->mode >= HAPI_CUDNN_MAX_POOL;

    if ((size_t)op->kind >= sizeof by_kind / sizeof *by_kind ||
        (size_t)op->mode >= sizeof mode_names / sizeof *mode_names ||
        ((op->kind == HAPI_CUDNN_POINTWISE || op->kind == HAPI_CUDNN_RESAMPLE) &&
         pool != (op->kind == HAPI_CUDNN_RESAMPLE)))
        return hapi_err_set(c->err, HAPI_EUNSUPPORTED, 0, "%s: no op of kind %d and mode %d", c->g->name,
                            (int)op->kind, (int)op->mode);
    int rc = edges_check(c, made);
    return rc ? rc : by_kind[op->kind](c);
}

/* Every virtual tensor is made and read; every real result is a result. */
static int virtual_check(const struct hapi_cudnn_graph *g, const bool *made, struct hapi_err *err)
{
    for (int i = 0; i < g->n_tensors; i++) {
        bool read = false;
        for (int k = 0; k < g->n_ops; k++)
            for (int j = 0; j < g->ops[k].n_in; j++)
                read = read || g->ops[k].in[j] == i;
        if (g->tensors[i].is_virtual && !read)
            return hapi_err_set(err, HAPI_EINVAL, 0,
                                "%s: tensor %lld is virtual and nothing reads it: a result must be real",
                                g->name, (long long)g->tensors[i].uid);
        if (!read && !made[i])
            return hapi_err_set(err, HAPI_EINVAL, 0, "%s: tensor %lld is neither read nor made", g->name,
                                (long long)g->tensors[i].uid);
    }
    return HAPI_OK;
}

int hapi_cudnn_graph_check(const struct hapi_cudnn_graph *g, struct hapi_err *err)
{
    bool made[HAPI_CUDNN_TENSORS] = {false};
    int rc = HAPI_OK;

    if (g->n_tensors > HAPI_CUDNN_TENSORS || g->n_ops > HAPI_CUDNN_OPS)
        return hapi_err_set(err, HAPI_ETOOBIG, 0, "%s: more than %d tensors or %d ops in one operation graph",
                            g->name, HAPI_CUDNN_TENSORS, HAPI_CUDNN_OPS);
    if (!g->n_ops)
        return hapi_err_set(err, HAPI_EINVAL, 0, "%s: an operation graph without ops", g->name);
    for (int i = 0; i < g->n_tensors && !rc; i++)
        rc = tensor_check(g, i, err);
    for (int i = 0; i < g->n_ops && !rc; i++)
        rc = op_check(&(struct check){g, &g->ops[i], err}, made);
    return rc ? rc : virtual_check(g, made, err);
}
