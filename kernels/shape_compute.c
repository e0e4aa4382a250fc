#include <string.h>

#include "shape.h"

int hapi_shape_same(const struct hapi_infer *c)
{
    const struct hapi_value *x = hapi_shape_in(c, 0);
    return hapi_shape_set(c, 0, x->dtype, &x->shape);
}

/* Functions of one number, of floats but for the few that whole numbers have, too. */
int hapi_shape_unary(const struct hapi_infer *c)
{
    const struct hapi_value *x = hapi_shape_in(c, 0);
    enum hapi_op_kind op = c->n->op;
    bool whole = op == HAPI_OP_Abs || op == HAPI_OP_Neg || op == HAPI_OP_Relu || op == HAPI_OP_Sign;

    if (!hapi_shape_float(x->dtype) && (!whole || x->dtype == HAPI_BOOL))
        return hapi_shape_fail(c, HAPI_EUNSUPPORTED, "of dtype %s", hapi_dtype_name(x->dtype));
    return hapi_shape_set(c, 0, x->dtype, &x->shape);
}

int hapi_shape_gelu(const struct hapi_infer *c)
{
    const struct hapi_attr *a = hapi_node_attr(c->n, "approximate");

    if (a && strcmp(a->s, "none") && strcmp(a->s, "tanh"))
        return hapi_shape_fail(c, HAPI_EUNSUPPORTED, "approximate=%.40s", a->s);
    return hapi_shape_unary(c);
}

int hapi_shape_not(const struct hapi_infer *c)
{
    const struct hapi_value *x = hapi_shape_in(c, 0);
    if (x->dtype != HAPI_BOOL)
        return hapi_shape_fail(c, HAPI_EFORMAT, "its input is not of booleans");
    return hapi_shape_set(c, 0, HAPI_BOOL, &x->shape);
}

/* Nothing of the second input but its dtype. */
int hapi_shape_cast_like(const struct hapi_infer *c)
{
    return hapi_shape_set(c, 0, hapi_shape_in(c, 1)->dtype, &hapi_shape_in(c, 0)->shape);
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
    int rc = c->n->op == HAPI_OP_Pow ? 0 : hapi_shape_alike(c, a, b); /* an exponent may be of another type */

    rc = rc ? rc : broadcast_two(c, &s);
    return rc ? rc : hapi_shape_set(c, 0, a->dtype, &s);
}

int hapi_shape_compare(const struct hapi_infer *c)
{
    struct hapi_shape s;
    int rc = hapi_shape_alike(c, hapi_shape_in(c, 0), hapi_shape_in(c, 1));

    rc = rc ? rc : broadcast_two(c, &s);
    return rc ? rc : hapi_shape_set(c, 0, HAPI_BOOL, &s);
}

int hapi_shape_logic(const struct hapi_infer *c)
{
    if (hapi_shape_in(c, 0)->dtype != HAPI_BOOL)
        return hapi_shape_fail(c, HAPI_EFORMAT, "its inputs are not of booleans");
    return hapi_shape_compare(c);
}

int hapi_shape_variadic(const struct hapi_infer *c)
{
    const struct hapi_value *a = hapi_shape_in(c, 0);
    struct hapi_shape s = a->shape;

    for (int i = 1; i < c->n->n_in; i++) {
        int rc = hapi_shape_alike(c, a, hapi_shape_in(c, i));
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
    int rc = hapi_shape_alike(c, a, b);

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
        if (bound && hapi_shape_alike(c, x, bound))
            return HAPI_EFORMAT;
    }
    return hapi_shape_set(c, 0, x->dtype, &x->shape);
}

/* The slope broadcasts into the input, never the other way; before opset 7 it may be one per channel. */
int hapi_shape_prelu(const struct hapi_infer *c)
{
    const struct hapi_value *x = hapi_shape_in(c, 0), *slope = hapi_shape_in(c, 1);
    struct hapi_shape s = x->shape;
    int rc = hapi_shape_alike(c, x, slope);

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

/* ------------------------------------------------------------------ products */

int hapi_shape_gemm(const struct hapi_infer *c)
{
    const struct hapi_value *a = hapi_shape_in(c, 0), *b = hapi_shape_in(c, 1), *bias = hapi_shape_in(c, 2);
    bool ta = hapi_node_int(c->n, "transA", 0), tb = hapi_node_int(c->n, "transB", 0);
    struct hapi_shape s = {.rank = 2}, all;
    int rc = hapi_shape_alike(c, a, b);

    rc = rc || !bias ? rc : hapi_shape_alike(c, a, bias);
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
    int rc = hapi_shape_alike(c, a, b);
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
