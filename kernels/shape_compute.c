#include <string.h>

#include "shape.h"

static bool is_float(enum hapi_dtype d)
{
    return d == HAPI_F32 || d == HAPI_F16 || d == HAPI_BF16 || d == HAPI_F64;
}

static int same_dtype(const struct hapi_infer *c, const struct hapi_value *a, const struct hapi_value *b)
{
    if (a->dtype == b->dtype)
        return 0;
    return hapi_shape_fail(c, HAPI_EFORMAT, "inputs of dtype %s and %s", hapi_dtype_name(a->dtype),
                           hapi_dtype_name(b->dtype));
}

int hapi_shape_same(const struct hapi_infer *c)
{
    const struct hapi_value *x = hapi_shape_in(c, 0);
    return hapi_shape_set(c, 0, x->dtype, &x->shape);
}

int hapi_shape_not(const struct hapi_infer *c)
{
    const struct hapi_value *x = hapi_shape_in(c, 0);
    if (x->dtype != HAPI_BOOL)
        return hapi_shape_fail(c, HAPI_EFORMAT, "its input is not of booleans");
    return hapi_shape_set(c, 0, HAPI_BOOL, &x->shape);
}

/* Softmax. Before opset 13 the input becomes a matrix at the axis, which may be its end. */
int hapi_shape_axis_same(const struct hapi_infer *c)
{
    const struct hapi_value *x = hapi_shape_in(c, 0);
    int64_t at = hapi_node_int(c->n, "axis", c->g->opset < 13 ? 1 : -1);
    int axis, rc = 0;

    if (c->g->opset >= 13 || at != x->shape.rank)
        rc = hapi_shape_axis(c, at, x->shape.rank, &axis);
    return rc ? rc : hapi_shape_set(c, 0, x->dtype, &x->shape);
}

/* Before opset 7: `broadcast` puts the second operand's dims at `axis`, or at the end. */
static int legacy_broadcast(const struct hapi_infer *c, struct hapi_shape *a, const struct hapi_shape *b,
                            bool *done)
{
    const struct hapi_attr *at = hapi_node_attr(c->n, "axis");
    int axis;

    *done = c->g->opset < 7 && at && at->type == HAPI_ATTR_INT;
    if (!*done)
        return 0;
    int rc = hapi_shape_axis(c, at->i, a->rank, &axis);
    if (rc)
        return rc;
    for (int i = 0; i < b->rank; i++)
        if (axis + b->rank > a->rank || (b->dim[i] != a->dim[axis + i] && b->dim[i] != 1))
            return hapi_shape_fail(c, HAPI_EFORMAT, "shapes do not broadcast at axis %d", axis);
    return 0;
}

static int broadcast_two(const struct hapi_infer *c, struct hapi_shape *out)
{
    const struct hapi_value *a = hapi_shape_in(c, 0), *b = hapi_shape_in(c, 1);
    bool done;

    *out = a->shape;
    int rc = legacy_broadcast(c, out, &b->shape, &done);
    return rc || done ? rc : hapi_shape_broadcast(c, out, &b->shape);
}

int hapi_shape_binary(const struct hapi_infer *c)
{
    const struct hapi_value *a = hapi_shape_in(c, 0), *b = hapi_shape_in(c, 1);
    struct hapi_shape s;
    int rc = c->n->op == HAPI_OP_Pow ? 0 : same_dtype(c, a, b); /* an exponent may be of another type */

    rc = rc ? rc : broadcast_two(c, &s);
    return rc ? rc : hapi_shape_set(c, 0, a->dtype, &s);
}

int hapi_shape_compare(const struct hapi_infer *c)
{
    struct hapi_shape s;
    int rc = same_dtype(c, hapi_shape_in(c, 0), hapi_shape_in(c, 1));

    rc = rc ? rc : broadcast_two(c, &s);
    return rc ? rc : hapi_shape_set(c, 0, HAPI_BOOL, &s);
}

int hapi_shape_variadic(const struct hapi_infer *c)
{
    const struct hapi_value *a = hapi_shape_in(c, 0);
    struct hapi_shape s = a->shape;

    for (int i = 1; i < c->n->n_in; i++) {
        int rc = same_dtype(c, a, hapi_shape_in(c, i));
        rc = rc ? rc : hapi_shape_broadcast(c, &s, &hapi_shape_in(c, i)->shape);
        if (rc)
            return rc;
    }
    return hapi_shape_set(c, 0, a->dtype, &s);
}

int hapi_shape_where(const struct hapi_infer *c)
{
    const struct hapi_value *cond = hapi_shape_in(c, 0), *a = hapi_shape_in(c, 1), *b = hapi_shape_in(c, 2);
    struct hapi_shape s = cond->shape;
    int rc = same_dtype(c, a, b);

    if (cond->dtype != HAPI_BOOL)
        return hapi_shape_fail(c, HAPI_EFORMAT, "its condition is not of booleans");
    rc = rc ? rc : hapi_shape_broadcast(c, &s, &a->shape);
    rc = rc ? rc : hapi_shape_broadcast(c, &s, &b->shape);
    return rc ? rc : hapi_shape_set(c, 0, a->dtype, &s);
}

int hapi_shape_clip(const struct hapi_infer *c)
{
    const struct hapi_value *x = hapi_shape_in(c, 0);

    for (int k = 1; k < 3; k++) {
        const struct hapi_value *bound = hapi_shape_in(c, k);
        int64_t n = 1;
        if (bound && (hapi_shape_elements(&bound->shape, &n) || n != 1))
            return hapi_shape_fail(c, HAPI_EFORMAT, "a bound that is not one number");
        if (bound && same_dtype(c, x, bound))
            return HAPI_EFORMAT;
    }
    return hapi_shape_set(c, 0, x->dtype, &x->shape);
}

/* The slope broadcasts into the input, never the other way; before opset 7 it may be one per channel. */
int hapi_shape_prelu(const struct hapi_infer *c)
{
    const struct hapi_value *x = hapi_shape_in(c, 0), *slope = hapi_shape_in(c, 1);
    struct hapi_shape s = x->shape;
    int rc = same_dtype(c, x, slope);

    if (!rc && c->g->opset < 7 && s.rank > 2 && slope->shape.rank == 1) {
        if (slope->shape.dim[0] != s.dim[1] && slope->shape.dim[0] != 1)
            return hapi_shape_fail(c, HAPI_EFORMAT, "the slope is not one number per channel");
        return hapi_shape_set(c, 0, x->dtype, &x->shape);
    }
    rc = rc ? rc : hapi_shape_broadcast(c, &s, &slope->shape);
    if (!rc && !hapi_shape_equal(&s, &x->shape))
        rc = hapi_shape_fail(c, HAPI_EFORMAT, "the slope is larger than the input");
    return rc ? rc : hapi_shape_set(c, 0, x->dtype, &x->shape);
}

/* ------------------------------------------------------------------ windows */

static int window_output(const struct hapi_infer *c, const struct hapi_window *w, int64_t channels)
{
    const struct hapi_value *x = hapi_shape_in(c, 0);
    struct hapi_shape s = {.rank = x->shape.rank, .dim = {x->shape.dim[0], channels}};

    for (int i = 2; i < s.rank; i++)
        s.dim[i] = w->out[4 - s.rank + i - 2];
    return hapi_shape_set(c, 0, x->dtype, &s);
}

int hapi_shape_conv(const struct hapi_infer *c)
{
    const struct hapi_value *x = hapi_shape_in(c, 0), *w = hapi_shape_in(c, 1), *b = hapi_shape_in(c, 2);
    struct hapi_window win;
    int rc = same_dtype(c, x, w);

    rc = rc || !b ? rc : same_dtype(c, x, b);
    rc = rc ? rc : hapi_window_of(c->g, c->n, &win, c->err);
    if (rc)
        return rc;
    if (!is_float(x->dtype))
        return hapi_shape_fail(c, HAPI_EUNSUPPORTED, "of dtype %s", hapi_dtype_name(x->dtype));
    if (w->shape.dim[0] < 1 || w->shape.dim[1] < 1 || w->shape.dim[0] % win.group ||
        x->shape.dim[1] % win.group || x->shape.dim[1] / win.group != w->shape.dim[1])
        return hapi_shape_fail(c, HAPI_EFORMAT, "%lld channels, weights of %lld x %lld in %lld groups",
                               (long long)x->shape.dim[1], (long long)w->shape.dim[0],
                               (long long)w->shape.dim[1], (long long)win.group);
    if (b && !hapi_shape_vector(b, w->shape.dim[0]))
        return hapi_shape_fail(c, HAPI_EFORMAT, "the bias is not one number per output channel");
    return window_output(c, &win, w->shape.dim[0]);
}

int hapi_shape_pool(const struct hapi_infer *c)
{
    const struct hapi_value *x = hapi_shape_in(c, 0);
    struct hapi_window w;
    int rc = hapi_window_of(c->g, c->n, &w, c->err);

    if (rc)
        return rc;
    /* A window that lies wholly in the padding has no maximum and no mean. */
    for (int d = 0; d < 2; d++)
        if (w.pad_begin[d] >= (w.kernel[d] - 1) * w.dilation[d] + 1 ||
            w.pad_end[d] >= (w.kernel[d] - 1) * w.dilation[d] + 1)
            return hapi_shape_fail(c, HAPI_EFORMAT, "pads as large as the window");
    return window_output(c, &w, x->shape.dim[1]);
}

int hapi_shape_global_pool(const struct hapi_infer *c)
{
    const struct hapi_value *x = hapi_shape_in(c, 0);
    struct hapi_shape s = x->shape;

    if (s.rank < 3 || s.rank > 4)
        return hapi_shape_fail(c, HAPI_EUNSUPPORTED, "an input of rank %d", s.rank);
    for (int i = 2; i < s.rank; i++) {
        if (!s.dim[i])
            return hapi_shape_fail(c, HAPI_EFORMAT, "an empty input");
        s.dim[i] = 1;
    }
    return hapi_shape_set(c, 0, x->dtype, &s);
}

int hapi_shape_batch_norm(const struct hapi_infer *c)
{
    const struct hapi_value *x = hapi_shape_in(c, 0);
    int64_t channels = x->shape.dim[1];

    if (x->shape.rank < 2 || !is_float(x->dtype))
        return hapi_shape_fail(c, HAPI_EFORMAT, "an input of rank %d, dtype %s", x->shape.rank,
                               hapi_dtype_name(x->dtype));
    if (hapi_node_int(c->n, "training_mode", 0))
        return hapi_shape_fail(c, HAPI_EUNSUPPORTED, "training mode: export the model in eval mode");
    if (!hapi_node_int(c->n, "spatial", 1))
        return hapi_shape_fail(c, HAPI_EUNSUPPORTED, "spatial=0");
    for (int k = 1; k < 5; k++)
        if (!hapi_shape_vector(hapi_shape_in(c, k), channels) || same_dtype(c, x, hapi_shape_in(c, k)))
            return hapi_shape_fail(c, HAPI_EFORMAT, "input %d is not one number per channel", k);
    return hapi_shape_set(c, 0, x->dtype, &x->shape);
}

/* scale and bias: exactly the dims from axis on (or broadcast into them from the right). */
int hapi_shape_layer_norm(const struct hapi_infer *c)
{
    const struct hapi_value *x = hapi_shape_in(c, 0);
    int axis, rc = hapi_shape_axis(c, hapi_node_int(c->n, "axis", -1), x->shape.rank, &axis);

    for (int k = 1; !rc && k < c->n->n_in; k++) {
        const struct hapi_value *v = hapi_shape_in(c, k);
        if (!v)
            continue;
        rc = same_dtype(c, x, v);
        if (!rc && v->shape.rank != x->shape.rank - axis)
            rc = HAPI_EFORMAT;
        for (int i = axis; !rc && i < x->shape.rank; i++)
            rc = v->shape.dim[i - axis] == x->shape.dim[i] ? 0 : HAPI_EFORMAT;
        if (rc)
            return hapi_shape_fail(c, rc, "input %d does not have the shape that is normalised", k);
    }
    struct hapi_shape s = x->shape;
    for (int i = axis; !rc && i < s.rank; i++)
        s.dim[i] = 1;
    for (int k = 1; !rc && k < 3; k++) /* mean and inverse deviation, computed in f32 */
        rc = hapi_shape_set(c, k, HAPI_F32, &s);
    return rc ? rc : hapi_shape_set(c, 0, x->dtype, &x->shape);
}

/* ------------------------------------------------------------------ products */

int hapi_shape_gemm(const struct hapi_infer *c)
{
    const struct hapi_value *a = hapi_shape_in(c, 0), *b = hapi_shape_in(c, 1), *bias = hapi_shape_in(c, 2);
    bool ta = hapi_node_int(c->n, "transA", 0), tb = hapi_node_int(c->n, "transB", 0);
    struct hapi_shape s = {.rank = 2}, all;
    int rc = same_dtype(c, a, b);

    rc = rc || !bias ? rc : same_dtype(c, a, bias);
    if (rc)
        return rc;
    if (a->shape.rank != 2 || b->shape.rank != 2 || a->shape.dim[ta ? 0 : 1] != b->shape.dim[tb ? 1 : 0])
        return hapi_shape_fail(c, HAPI_EFORMAT, "its factors do not fit");
    s.dim[0] = a->shape.dim[ta ? 1 : 0];
    s.dim[1] = b->shape.dim[tb ? 0 : 1];
    all = s;
    if (bias && (hapi_shape_broadcast(c, &all, &bias->shape) || !hapi_shape_equal(&all, &s)))
        return hapi_shape_fail(c, HAPI_EFORMAT, "the bias does not broadcast into the product");
    return hapi_shape_set(c, 0, a->dtype, &s);
}

int hapi_shape_matmul(const struct hapi_infer *c)
{
    const struct hapi_value *a = hapi_shape_in(c, 0), *b = hapi_shape_in(c, 1);
    struct hapi_shape s, sa = a->shape, sb = b->shape;
    int rc = same_dtype(c, a, b);
    bool va = sa.rank == 1, vb = sb.rank == 1;

    if (rc)
        return rc;
    if (!sa.rank || !sb.rank)
        return hapi_shape_fail(c, HAPI_EFORMAT, "a factor that is a scalar");
    int64_t ka = sa.dim[sa.rank - 1], kb = sb.dim[vb ? 0 : sb.rank - 2];
    if (ka != kb)
        return hapi_shape_fail(c, HAPI_EFORMAT, "its factors do not fit (%lld and %lld)", (long long)ka,
                               (long long)kb);
    int64_t rows = va ? 0 : sa.dim[sa.rank - 2], columns = vb ? 0 : sb.dim[sb.rank - 1];
    sa.rank -= va ? 1 : 2;
    sb.rank -= vb ? 1 : 2;
    s = sa;
    rc = hapi_shape_broadcast(c, &s, &sb);
    if (rc)
        return rc;
    if (!va)
        s.dim[s.rank++] = rows;
    if (!vb)
        s.dim[s.rank++] = columns;
    return hapi_shape_set(c, 0, a->dtype, &s);
}

/* axes: an input since opset 13 (ReduceSum) or 18 (the others). */
int hapi_shape_reduce(const struct hapi_infer *c)
{
    const struct hapi_value *x = hapi_shape_in(c, 0);
    bool keep = hapi_node_int(c->n, "keepdims", 1), drop[HAPI_MAX_RANK] = {false};
    struct hapi_shape s = {.rank = 0};
    int64_t axes[HAPI_MAX_RANK];
    int n, axis, rc = hapi_shape_list(c, 1, "axes", axes, HAPI_MAX_RANK, &n);

    for (int i = 0; !rc && i < n; i++) {
        rc = hapi_shape_axis(c, axes[i], x->shape.rank, &axis);
        if (!rc)
            drop[axis] = true;
    }
    if (rc)
        return rc;
    bool all = n <= 0 && !hapi_node_int(c->n, "noop_with_empty_axes", 0);
    for (int i = 0; i < x->shape.rank; i++) {
        bool reduced = all || drop[i];
        if (reduced && !x->shape.dim[i])
            return hapi_shape_fail(c, HAPI_EFORMAT, "an empty dim is reduced");
        if (!reduced || keep)
            s.dim[s.rank++] = reduced ? 1 : x->shape.dim[i];
    }
    return hapi_shape_set(c, 0, x->dtype, &s);
}
