#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "shape.h"

/* Makes a shape of n numbers; HAPI_EFORMAT for a negative one. */
static int shape_of(const struct hapi_infer *c, const int64_t *dims, int n, struct hapi_shape *s)
{
    *s = (struct hapi_shape){.rank = n};
    for (int i = 0; i < n; i++) {
        if (dims[i] < 0)
            return hapi_shape_fail(c, HAPI_EFORMAT, "dim %lld", (long long)dims[i]);
        s->dim[i] = dims[i];
    }
    return 0;
}

/* The numbers that say a shape must be there. */
static int need_list(const struct hapi_infer *c, int k, const char *attr, int64_t *out, size_t max, int *n)
{
    int rc = hapi_shape_list(c, k, attr, out, max, n);
    return !rc && *n < 0 ? hapi_shape_fail(c, HAPI_EFORMAT, "%s is missing", attr) : rc;
}

/* ------------------------------------------------------------------ making */

int hapi_shape_cast(const struct hapi_infer *c)
{
    /* Names of opset < 6, in the order of TensorProto's element types. */
    static const struct {
        const char *name;
        enum hapi_dtype dtype;
    } types[] = {
        {"FLOAT", HAPI_F32},  {"UINT8", HAPI_U8},    {"INT8", HAPI_I8},     {"UINT16", HAPI_U16},
        {"INT16", HAPI_I16},  {"INT32", HAPI_I32},   {"INT64", HAPI_I64},   {"STRING", HAPI_DTYPE_NONE},
        {"BOOL", HAPI_BOOL},  {"FLOAT16", HAPI_F16}, {"DOUBLE", HAPI_F64},  {"UINT32", HAPI_U32},
        {"UINT64", HAPI_U64}, {"", HAPI_DTYPE_NONE}, {"", HAPI_DTYPE_NONE}, {"BFLOAT16", HAPI_BF16}};
    const struct hapi_attr *to = hapi_node_attr(c->n, "to");
    enum hapi_dtype dtype = HAPI_DTYPE_NONE;

    for (size_t i = 0; to && i < sizeof types / sizeof *types; i++)
        if (to->type == HAPI_ATTR_INT ? to->i == (int64_t)i + 1
                                      : to->type == HAPI_ATTR_STRING && !strcmp(to->s, types[i].name))
            dtype = types[i].dtype;
    if (!dtype)
        return hapi_shape_fail(c, to ? HAPI_EUNSUPPORTED : HAPI_EFORMAT, "no such dtype to cast to");
    return hapi_shape_set(c, 0, dtype, &hapi_shape_in(c, 0)->shape);
}

int hapi_shape_constant(const struct hapi_infer *c)
{
    struct hapi_shape s = {.rank = 0};
    const struct hapi_attr *a = c->n->n_attrs == 1 ? &c->n->attrs[0] : NULL;

    if (!a || strncmp(a->name, "value", 5))
        return hapi_shape_fail(c, HAPI_EFORMAT, "it must have one value");
    switch (a->type) {
    case HAPI_ATTR_TENSOR:
        return hapi_shape_set(c, 0, c->g->values[a->value].dtype, &c->g->values[a->value].shape);
    case HAPI_ATTR_INTS:
    case HAPI_ATTR_FLOATS:
        s = (struct hapi_shape){.rank = 1, .dim = {(int64_t)a->n}};
        break;
    case HAPI_ATTR_INT:
    case HAPI_ATTR_FLOAT:
        break;
    default:
        return hapi_shape_fail(c, HAPI_EUNSUPPORTED, "a value of strings");
    }
    return hapi_shape_set(c, 0, a->type == HAPI_ATTR_INT || a->type == HAPI_ATTR_INTS ? HAPI_I64 : HAPI_F32,
                          &s);
}

int hapi_shape_constant_of_shape(const struct hapi_infer *c)
{
    const struct hapi_attr *a = hapi_node_attr(c->n, "value");
    enum hapi_dtype dtype = HAPI_F32;
    int64_t dims[HAPI_MAX_RANK], elements;
    struct hapi_shape s;
    int n, rc = need_list(c, 0, "shape", dims, HAPI_MAX_RANK, &n);

    rc = rc ? rc : shape_of(c, dims, n, &s);
    if (rc)
        return rc;
    if (a) {
        const struct hapi_value *v = &c->g->values[a->value];
        if (hapi_shape_elements(&v->shape, &elements) || elements != 1)
            return hapi_shape_fail(c, HAPI_EFORMAT, "its value is not one number");
        dtype = v->dtype;
    }
    return hapi_shape_set(c, 0, dtype, &s);
}

/* Clamped as Python's slices are. */
static int64_t clamp(int64_t i, int64_t low, int64_t high)
{
    return i < low ? low : i > high ? high : i;
}

int hapi_shape_shape(const struct hapi_infer *c)
{
    int64_t rank = hapi_shape_in(c, 0)->shape.rank;
    int64_t start = clamp(hapi_node_int(c->n, "start", 0), -rank, rank);
    int64_t end = clamp(hapi_node_int(c->n, "end", rank), -rank, rank);

    start += start < 0 ? rank : 0;
    end += end < 0 ? rank : 0;
    struct hapi_shape s = {.rank = 1, .dim = {end > start ? end - start : 0}};
    return hapi_shape_set(c, 0, HAPI_I64, &s);
}

static double number(const struct hapi_value *v)
{
    switch (v->dtype) {
    case HAPI_F32:
        return *(const float *)v->data;
    case HAPI_F64:
        return *(const double *)v->data;
    case HAPI_I32:
        return *(const int32_t *)v->data;
    case HAPI_I16:
        return *(const int16_t *)v->data;
    default:
        return (double)*(const int64_t *)v->data;
    }
}

int hapi_shape_range(const struct hapi_infer *c)
{
    enum hapi_dtype d = hapi_shape_in(c, 0)->dtype;
    int64_t elements;
    double v[3];

    if (d != HAPI_F32 && d != HAPI_F64 && d != HAPI_I64 && d != HAPI_I32 && d != HAPI_I16)
        return hapi_shape_fail(c, HAPI_EUNSUPPORTED, "of dtype %s", hapi_dtype_name(d));
    for (int k = 0; k < 3; k++) {
        const struct hapi_value *x = hapi_shape_in(c, k);
        if (x->dtype != d || hapi_shape_elements(&x->shape, &elements) || elements != 1)
            return hapi_shape_fail(c, HAPI_EFORMAT, "input %d is not one number of the same dtype", k);
        if (!x->data)
            return hapi_shape_fail(c, HAPI_EUNSUPPORTED, "input %d is not a constant", k);
        v[k] = number(x);
    }
    double n = v[2] != 0 ? ceil((v[1] - v[0]) / v[2]) : HUGE_VAL;
    if (!(n < 9e15))
        return hapi_shape_fail(c, HAPI_EFORMAT, "it has no end");
    struct hapi_shape s = {.rank = 1, .dim = {n > 0 ? (int64_t)n : 0}};
    return hapi_shape_set(c, 0, d, &s);
}

int hapi_shape_expand(const struct hapi_infer *c)
{
    const struct hapi_value *x = hapi_shape_in(c, 0);
    struct hapi_shape s, wanted;
    int64_t dims[HAPI_MAX_RANK];
    int n, rc = need_list(c, 1, "shape", dims, HAPI_MAX_RANK, &n);

    rc = rc ? rc : shape_of(c, dims, n, &wanted);
    if (rc)
        return rc;
    s = x->shape;
    rc = hapi_shape_broadcast(c, &s, &wanted);
    return rc ? rc : hapi_shape_set(c, 0, x->dtype, &s);
}

/* ------------------------------------------------------------------ the same elements, in another shape */

/* 0 copies the input's dim (unless allowzero), one -1 takes what is left. */
static int resolve_reshape(const struct hapi_infer *c, int64_t *dims, int n)
{
    const struct hapi_value *x = hapi_shape_in(c, 0);
    int64_t all, rest = 1;
    int open = -1;

    if (hapi_shape_elements(&x->shape, &all))
        return hapi_shape_fail(c, HAPI_ETOOBIG, "its dims overflow");
    for (int i = 0; i < n; i++) {
        if (dims[i] == 0 && !hapi_node_int(c->n, "allowzero", 0)) {
            if (i >= x->shape.rank)
                return hapi_shape_fail(c, HAPI_EFORMAT, "dim %d is to be copied, the input has rank %d", i,
                                       x->shape.rank);
            dims[i] = x->shape.dim[i];
        }
        if (dims[i] == -1 && open < 0)
            open = i;
        else if (dims[i] < 0)
            return hapi_shape_fail(c, HAPI_EFORMAT, "dim %d is %lld", i, (long long)dims[i]);
        else if (__builtin_mul_overflow(rest, dims[i], &rest))
            return hapi_shape_fail(c, HAPI_ETOOBIG, "its dims overflow");
    }
    if (open >= 0 && rest)
        dims[open] = all / rest;
    else if (open >= 0)
        dims[open] = 0;
    if ((open >= 0 ? rest * dims[open] : rest) != all)
        return hapi_shape_fail(c, HAPI_EFORMAT,
                               "%lld elements do not fit the shape asked for; when that holds a batch size, "
                               "export the model with a dynamic batch",
                               (long long)all);
    return 0;
}

int hapi_shape_reshape(const struct hapi_infer *c)
{
    int64_t dims[HAPI_MAX_RANK];
    struct hapi_shape s;
    int n, rc = need_list(c, 1, "shape", dims, HAPI_MAX_RANK, &n);

    rc = rc ? rc : resolve_reshape(c, dims, n);
    rc = rc ? rc : shape_of(c, dims, n, &s);
    return rc ? rc : hapi_shape_set(c, 0, hapi_shape_in(c, 0)->dtype, &s);
}

int hapi_shape_flatten(const struct hapi_infer *c)
{
    const struct hapi_value *x = hapi_shape_in(c, 0);
    int64_t axis = hapi_node_int(c->n, "axis", 1);
    struct hapi_shape s = {.rank = 2, .dim = {1, 1}};

    if (axis < -x->shape.rank || axis > x->shape.rank)
        return hapi_shape_fail(c, HAPI_EFORMAT, "axis %lld of a tensor of rank %d", (long long)axis,
                               x->shape.rank);
    axis += axis < 0 ? x->shape.rank : 0;
    for (int i = 0; i < x->shape.rank; i++)
        if (__builtin_mul_overflow(s.dim[i >= axis], x->shape.dim[i], &s.dim[i >= axis]))
            return hapi_shape_fail(c, HAPI_ETOOBIG, "its dims overflow");
    return hapi_shape_set(c, 0, x->dtype, &s);
}

/* Marks the listed axes of a tensor of that rank; twice the same is an error. */
static int mark_axes(const struct hapi_infer *c, const int64_t *axes, int n, int rank, bool *marked)
{
    memset(marked, 0, HAPI_MAX_RANK * sizeof *marked);
    for (int i = 0; i < n; i++) {
        int axis, rc = hapi_shape_axis(c, axes[i], rank, &axis);
        if (rc)
            return rc;
        if (marked[axis])
            return hapi_shape_fail(c, HAPI_EFORMAT, "axis %d twice", axis);
        marked[axis] = true;
    }
    return 0;
}

int hapi_shape_squeeze(const struct hapi_infer *c)
{
    const struct hapi_value *x = hapi_shape_in(c, 0);
    struct hapi_shape s = {.rank = 0};
    int64_t axes[HAPI_MAX_RANK];
    bool drop[HAPI_MAX_RANK];
    int n, rc = hapi_shape_list(c, 1, "axes", axes, HAPI_MAX_RANK, &n);

    rc = rc ? rc : mark_axes(c, axes, n, x->shape.rank, drop);
    if (rc)
        return rc;
    for (int i = 0; i < x->shape.rank; i++) {
        if (drop[i] && x->shape.dim[i] != 1)
            return hapi_shape_fail(c, HAPI_EFORMAT, "dim %d is %lld", i, (long long)x->shape.dim[i]);
        if (n < 0 ? x->shape.dim[i] != 1 : !drop[i])
            s.dim[s.rank++] = x->shape.dim[i];
    }
    return hapi_shape_set(c, 0, x->dtype, &s);
}

int hapi_shape_unsqueeze(const struct hapi_infer *c)
{
    const struct hapi_value *x = hapi_shape_in(c, 0);
    struct hapi_shape s = {.rank = 0};
    int64_t axes[HAPI_MAX_RANK];
    bool add[HAPI_MAX_RANK];
    int n, from = 0, rc = need_list(c, 1, "axes", axes, HAPI_MAX_RANK, &n);

    if (!rc && x->shape.rank + n > HAPI_MAX_RANK)
        rc = hapi_shape_fail(c, HAPI_EUNSUPPORTED, "more than %d dims", HAPI_MAX_RANK);
    rc = rc ? rc : mark_axes(c, axes, n, x->shape.rank + n, add);
    if (rc)
        return rc;
    for (s.rank = 0; s.rank < x->shape.rank + n; s.rank++)
        s.dim[s.rank] = add[s.rank] ? 1 : x->shape.dim[from++];
    return hapi_shape_set(c, 0, x->dtype, &s);
}

int hapi_shape_dropout(const struct hapi_infer *c)
{
    const struct hapi_value *x = hapi_shape_in(c, 0);

    hapi_shape_set(c, 1, c->g->opset < 10 ? x->dtype : HAPI_BOOL, &x->shape);
    return hapi_shape_set(c, 0, x->dtype, &x->shape);
}

/* ------------------------------------------------------------------ moving */

int hapi_shape_transpose(const struct hapi_infer *c)
{
    const struct hapi_value *x = hapi_shape_in(c, 0);
    struct hapi_shape s = {.rank = x->shape.rank};
    int64_t perm[HAPI_MAX_RANK];
    bool seen[HAPI_MAX_RANK];
    int n, rc = hapi_shape_list(c, -1, "perm", perm, HAPI_MAX_RANK, &n);

    if (!rc && n >= 0 && n != s.rank)
        rc = hapi_shape_fail(c, HAPI_EFORMAT, "perm has %d values, the input rank %d", n, s.rank);
    for (int i = 0; !rc && i < n; i++)
        if (perm[i] < 0)
            rc = hapi_shape_fail(c, HAPI_EFORMAT, "perm has %lld", (long long)perm[i]);
    rc = rc || n < 0 ? rc : mark_axes(c, perm, n, s.rank, seen);
    if (rc)
        return rc;
    for (int i = 0; i < s.rank; i++)
        s.dim[i] = x->shape.dim[n < 0 ? s.rank - 1 - i : perm[i]];
    return hapi_shape_set(c, 0, x->dtype, &s);
}

int hapi_shape_concat(const struct hapi_infer *c)
{
    const struct hapi_value *first = hapi_shape_in(c, 0);
    struct hapi_shape s = first->shape;
    int axis, rc;

    if (c->g->opset >= 4 && !hapi_node_attr(c->n, "axis"))
        return hapi_shape_fail(c, HAPI_EFORMAT, "axis is missing");
    rc = hapi_shape_axis(c, hapi_node_int(c->n, "axis", 1), s.rank, &axis);
    if (rc)
        return rc;
    for (int k = 1; k < c->n->n_in; k++) {
        const struct hapi_value *x = hapi_shape_in(c, k);
        struct hapi_shape other = x->shape;
        if (other.rank == s.rank)
            other.dim[axis] = s.dim[axis];
        if (x->dtype != first->dtype || !hapi_shape_equal(&other, &s))
            return hapi_shape_fail(c, HAPI_EFORMAT, "input %d does not fit the first", k);
        if (__builtin_add_overflow(s.dim[axis], x->shape.dim[axis], &s.dim[axis]))
            return hapi_shape_fail(c, HAPI_ETOOBIG, "its dims overflow");
    }
    return hapi_shape_set(c, 0, first->dtype, &s);
}

/* Sizes as given, else equal ones; since opset 18 the last may be smaller. */
static int split_even(const struct hapi_infer *c, int64_t dim, int64_t *part)
{
    int64_t n = c->n->n_out, said = hapi_node_int(c->n, "num_outputs", n);

    if (said != n)
        return hapi_shape_fail(c, HAPI_EFORMAT, "num_outputs is %lld, it has %lld", (long long)said,
                               (long long)n);
    *part = dim / n + (dim % n != 0);
    if (dim % n && (c->g->opset < 18 || *part * (n - 1) > dim))
        return hapi_shape_fail(c, HAPI_EFORMAT, "dim %lld does not split in %lld", (long long)dim,
                               (long long)n);
    return 0;
}

int hapi_shape_split(const struct hapi_infer *c)
{
    enum { PARTS = 1024 };
    const struct hapi_value *x = hapi_shape_in(c, 0);
    struct hapi_shape s = x->shape;
    int64_t sizes[PARTS], part = 0, left;
    int axis, n, rc = hapi_shape_axis(c, hapi_node_int(c->n, "axis", 0), s.rank, &axis);

    rc = rc ? rc : hapi_shape_list(c, 1, "split", sizes, PARTS, &n);
    if (rc)
        return rc;
    left = s.dim[axis];
    if (n >= 0 && n != c->n->n_out)
        return hapi_shape_fail(c, HAPI_EFORMAT, "split has %d values for %d outputs", n, c->n->n_out);
    rc = n < 0 ? split_even(c, left, &part) : 0;
    for (int k = 0; !rc && k < c->n->n_out; k++) {
        s.dim[axis] = n >= 0 ? sizes[k] : part < left ? part : left;
        if (s.dim[axis] < 0 || s.dim[axis] > left || c->n->out[k] < 0)
            return hapi_shape_fail(c, HAPI_EFORMAT, "part %d of its input does not fit, or has no name", k);
        left -= s.dim[axis];
        rc = hapi_shape_set(c, k, x->dtype, &s);
    }
    return !rc && left ? hapi_shape_fail(c, HAPI_EFORMAT, "%lld are left over", (long long)left) : rc;
}

/* How many indices start, start+step, .. lie before end, in a dim of n. */
static int64_t slice_count(int64_t n, int64_t start, int64_t end, int64_t step)
{
    /* Saturated first, so that adding n cannot overflow; [-n-1, n] holds all that can matter. */
    start = clamp(start, -n - 1, n);
    end = clamp(end, -n - 1, n);
    start += start < 0 ? n : 0;
    end += end < 0 ? n : 0;
    if (step > 0) {
        start = clamp(start, 0, n);
        end = clamp(end, 0, n);
        return end > start ? (end - start - 1) / step + 1 : 0;
    }
    start = clamp(start, -1, n - 1);
    end = clamp(end, -1, n - 1);
    /* -(step + 1) + 1 avoids negating the least number. */
    return start > end ? (int64_t)((uint64_t)(start - end - 1) / ((uint64_t)(-(step + 1)) + 1)) + 1 : 0;
}

int hapi_shape_slice(const struct hapi_infer *c)
{
    const struct hapi_value *x = hapi_shape_in(c, 0);
    int64_t starts[HAPI_MAX_RANK], ends[HAPI_MAX_RANK], axes[HAPI_MAX_RANK], steps[HAPI_MAX_RANK];
    struct hapi_shape s = x->shape;
    bool marked[HAPI_MAX_RANK];
    int n, n_ends, n_axes, n_steps, axis, rc;

    rc = need_list(c, 1, "starts", starts, HAPI_MAX_RANK, &n);
    rc = rc ? rc : need_list(c, 2, "ends", ends, HAPI_MAX_RANK, &n_ends);
    rc = rc ? rc : hapi_shape_list(c, 3, "axes", axes, HAPI_MAX_RANK, &n_axes);
    rc = rc ? rc : hapi_shape_list(c, 4, "steps", steps, HAPI_MAX_RANK, &n_steps);
    if (rc)
        return rc;
    if (n_ends != n || (n_axes >= 0 && n_axes != n) || (n_steps >= 0 && n_steps != n))
        return hapi_shape_fail(c, HAPI_EFORMAT, "starts, ends, axes and steps differ in length");
    for (int i = 0; i < n && n_axes < 0; i++)
        axes[i] = i;
    rc = mark_axes(c, axes, n, s.rank, marked);
    for (int i = 0; !rc && i < n; i++) {
        int64_t step = n_steps < 0 ? 1 : steps[i];
        if (!step || step == INT64_MIN)
            return hapi_shape_fail(c, HAPI_EFORMAT, "a step of %lld", (long long)step);
        rc = hapi_shape_axis(c, axes[i], s.rank, &axis);
        if (!rc)
            s.dim[axis] = slice_count(x->shape.dim[axis], starts[i], ends[i], step);
    }
    return rc ? rc : hapi_shape_set(c, 0, x->dtype, &s);
}

int hapi_shape_gather(const struct hapi_infer *c)
{
    const struct hapi_value *x = hapi_shape_in(c, 0), *ids = hapi_shape_in(c, 1);
    struct hapi_shape s = {.rank = 0};
    int64_t n, i;
    int axis, rc = hapi_shape_axis(c, hapi_node_int(c->n, "axis", 0), x->shape.rank, &axis);

    if (rc)
        return rc;
    if (ids->dtype != HAPI_I64 && ids->dtype != HAPI_I32)
        return hapi_shape_fail(c, HAPI_EFORMAT, "indices that are not integers");
    if (x->shape.rank - 1 + ids->shape.rank > HAPI_MAX_RANK)
        return hapi_shape_fail(c, HAPI_EUNSUPPORTED, "more than %d dims", HAPI_MAX_RANK);
    if (ids->data && !hapi_shape_elements(&ids->shape, &n))
        for (int64_t k = 0; k < n; k++) {
            i = ids->dtype == HAPI_I64 ? ((const int64_t *)ids->data)[k] : ((const int32_t *)ids->data)[k];
            if (i < -x->shape.dim[axis] || i >= x->shape.dim[axis])
                return hapi_shape_fail(c, HAPI_EFORMAT, "index %lld of a dim of %lld", (long long)i,
                                       (long long)x->shape.dim[axis]);
        }
    for (int k = 0; k < axis; k++)
        s.dim[s.rank++] = x->shape.dim[k];
    for (int k = 0; k < ids->shape.rank; k++)
        s.dim[s.rank++] = ids->shape.dim[k];
    for (int k = axis + 1; k < x->shape.rank; k++)
        s.dim[s.rank++] = x->shape.dim[k];
    return hapi_shape_set(c, 0, x->dtype, &s);
}

/* data (d0..), indices (.., k), updates: the leading dims of the indices, then the dims of data from k on. */
int hapi_shape_scatter_nd(const struct hapi_infer *c)
{
    const struct hapi_value *x = hapi_shape_in(c, 0), *ids = hapi_shape_in(c, 1), *up = hapi_shape_in(c, 2);
    struct hapi_shape s = {.rank = 0};
    int64_t k = ids->shape.rank ? ids->shape.dim[ids->shape.rank - 1] : 0;

    if (ids->dtype != HAPI_I64 || up->dtype != x->dtype)
        return hapi_shape_fail(c, HAPI_EFORMAT, "its dtypes do not fit");
    if (k < 1 || k > x->shape.rank || ids->shape.rank - 1 + x->shape.rank - k > HAPI_MAX_RANK)
        return hapi_shape_fail(c, HAPI_EFORMAT, "the indices do not fit the data's rank");
    for (int i = 0; i + 1 < ids->shape.rank; i++)
        s.dim[s.rank++] = ids->shape.dim[i];
    for (int i = (int)k; i < x->shape.rank; i++)
        s.dim[s.rank++] = x->shape.dim[i];
    if (!hapi_shape_equal(&s, &up->shape))
        return hapi_shape_fail(c, HAPI_EFORMAT, "the updates do not fit the indices");
    return hapi_shape_set(c, 0, x->dtype, &x->shape);
}

static int pad_mode_check(const struct hapi_infer *c, bool *reflect)
{
    const struct hapi_attr *mode = hapi_node_attr(c->n, "mode");
    const char *s = mode ? mode->s : "constant";

    *reflect = !strcmp(s, "reflect");
    if (strcmp(s, "constant") && !*reflect && strcmp(s, "edge"))
        return hapi_shape_fail(c, HAPI_EUNSUPPORTED, "mode %.40s", s);
    return 0;
}

int hapi_shape_pad(const struct hapi_infer *c)
{
    const struct hapi_value *x = hapi_shape_in(c, 0), *fill = hapi_shape_in(c, 2);
    int64_t pads[2 * HAPI_MAX_RANK], axes[HAPI_MAX_RANK], one;
    struct hapi_shape s = x->shape;
    bool marked[HAPI_MAX_RANK], reflect;
    int n, n_axes, rc = pad_mode_check(c, &reflect);

    rc = rc ? rc : need_list(c, 1, "pads", pads, 2 * HAPI_MAX_RANK, &n);
    rc = rc ? rc : hapi_shape_list(c, 3, "axes", axes, HAPI_MAX_RANK, &n_axes);
    if (rc)
        return rc;
    if (fill && (fill->dtype != x->dtype || hapi_shape_elements(&fill->shape, &one) || one != 1))
        return hapi_shape_fail(c, HAPI_EFORMAT, "what it pads with is not one number of the input's dtype");
    if (n_axes < 0)
        for (n_axes = 0; n_axes < s.rank; n_axes++)
            axes[n_axes] = n_axes;
    if (n != 2 * n_axes)
        return hapi_shape_fail(c, HAPI_EFORMAT, "%d pads for %d dims", n, n_axes);
    rc = mark_axes(c, axes, n_axes, s.rank, marked);
    for (int i = 0; !rc && i < n_axes; i++) {
        int64_t before = pads[i], after = pads[i + n_axes];
        int axis;
        rc = hapi_shape_axis(c, axes[i], s.rank, &axis);
        if (rc)
            return rc;
        if (reflect && (before >= s.dim[axis] || after >= s.dim[axis]))
            return hapi_shape_fail(c, HAPI_EFORMAT, "a dim of %lld is reflected by more",
                                   (long long)s.dim[axis]);
        if (__builtin_add_overflow(s.dim[axis], before, &s.dim[axis]) ||
            __builtin_add_overflow(s.dim[axis], after, &s.dim[axis]) || s.dim[axis] < 0)
            return hapi_shape_fail(c, HAPI_EFORMAT, "its pads make dim %d negative or overflow", axis);
    }
    return rc ? rc : hapi_shape_set(c, 0, x->dtype, &s);
}
