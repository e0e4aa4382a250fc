/* Convolutions, pools, normalisations, reductions. */
#include "shape.h"

/* ------------------------------------------------------------------ windows */

static int window_output(const struct hapi_infer *c, const struct hapi_window *w, int64_t channels)
{
    const struct hapi_value *x = hapi_shape_in(c, 0);
    struct hapi_shape s = {.rank = x->shape.rank, .dim = {x->shape.dim[0], channels}};

    for (int i = 2; i < s.rank; i++)
        s.dim[i] = hapi_window_out(w, i - 2, s.rank - 2);
    return hapi_shape_set(c, 0, x->dtype, &s);
}

int hapi_shape_conv(const struct hapi_infer *c)
{
    const struct hapi_value *x = hapi_shape_in(c, 0), *w = hapi_shape_in(c, 1), *b = hapi_shape_in(c, 2);
    struct hapi_window win;
    int rc = hapi_shape_alike(c, x, w);

    rc = rc || !b ? rc : hapi_shape_alike(c, x, b);
    rc = rc ? rc : hapi_window_of(c->g, c->n, &win, c->err);
    if (rc)
        return rc;
    if (!hapi_shape_float(x->dtype))
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

/* Weights (C, M/group, ..): the channels of the input come first. */
int hapi_shape_conv_transpose(const struct hapi_infer *c)
{
    const struct hapi_value *x = hapi_shape_in(c, 0), *w = hapi_shape_in(c, 1), *b = hapi_shape_in(c, 2);
    struct hapi_window win;
    int64_t channels;
    int rc = hapi_shape_alike(c, x, w);

    rc = rc || !b ? rc : hapi_shape_alike(c, x, b);
    rc = rc ? rc : hapi_window_of(c->g, c->n, &win, c->err);
    if (rc)
        return rc;
    if (!hapi_shape_float(x->dtype))
        return hapi_shape_fail(c, HAPI_EUNSUPPORTED, "of dtype %s", hapi_dtype_name(x->dtype));
    if (w->shape.dim[0] < 1 || w->shape.dim[1] < 1 || w->shape.dim[0] != x->shape.dim[1] ||
        x->shape.dim[1] % win.group || __builtin_mul_overflow(w->shape.dim[1], win.group, &channels))
        return hapi_shape_fail(c, HAPI_EFORMAT, "%lld channels, weights of %lld x %lld in %lld groups",
                               (long long)x->shape.dim[1], (long long)w->shape.dim[0],
                               (long long)w->shape.dim[1], (long long)win.group);
    if (b && !hapi_shape_vector(b, channels))
        return hapi_shape_fail(c, HAPI_EFORMAT, "the bias is not one number per output channel");
    return window_output(c, &win, channels);
}

int hapi_shape_pool(const struct hapi_infer *c)
{
    const struct hapi_value *x = hapi_shape_in(c, 0);
    struct hapi_window w;
    int rc = hapi_window_of(c->g, c->n, &w, c->err);

    if (rc)
        return rc;
    /* A window that lies wholly in the padding has no maximum and no mean. */
    for (int d = 0; d < HAPI_SPATIAL; d++)
        if (w.pad_begin[d] >= (w.kernel[d] - 1) * w.dilation[d] + 1 ||
            w.pad_end[d] >= (w.kernel[d] - 1) * w.dilation[d] + 1)
            return hapi_shape_fail(c, HAPI_EFORMAT, "pads as large as the window");
    rc = window_output(c, &w, x->shape.dim[1]);
    if (!rc && c->n->n_out > 1 && c->n->out[1] >= 0) /* where the maxima were */
        rc = hapi_shape_set(c, 1, HAPI_I64, &c->g->values[c->n->out[0]].shape);
    return rc;
}

int hapi_shape_global_pool(const struct hapi_infer *c)
{
    const struct hapi_value *x = hapi_shape_in(c, 0);
    struct hapi_shape s = x->shape;

    if (s.rank < 3 || s.rank > 2 + HAPI_SPATIAL)
        return hapi_shape_fail(c, HAPI_EUNSUPPORTED, "an input of rank %d", s.rank);
    for (int i = 2; i < s.rank; i++) {
        if (!s.dim[i])
            return hapi_shape_fail(c, HAPI_EFORMAT, "an empty input");
        s.dim[i] = 1;
    }
    return hapi_shape_set(c, 0, x->dtype, &s);
}

/* ------------------------------------------------------------------ norms, reductions */

int hapi_shape_batch_norm(const struct hapi_infer *c)
{
    const struct hapi_value *x = hapi_shape_in(c, 0);
    int64_t channels = x->shape.dim[1];

    if (x->shape.rank < 2 || !hapi_shape_float(x->dtype))
        return hapi_shape_fail(c, HAPI_EFORMAT, "an input of rank %d, dtype %s", x->shape.rank,
                               hapi_dtype_name(x->dtype));
    if (hapi_node_int(c->n, "training_mode", 0))
        return hapi_shape_fail(c, HAPI_EUNSUPPORTED, "training mode: export the model in eval mode");
    if (!hapi_node_int(c->n, "spatial", 1))
        return hapi_shape_fail(c, HAPI_EUNSUPPORTED, "spatial=0");
    for (int k = 1; k < 5; k++)
        if (!hapi_shape_vector(hapi_shape_in(c, k), channels) || hapi_shape_alike(c, x, hapi_shape_in(c, k)))
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
        rc = hapi_shape_alike(c, x, v);
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

/* Scale and bias: one number per channel; before opset 21 GroupNormalization has one per group. */
int hapi_shape_channel_norm(const struct hapi_infer *c)
{
    const struct hapi_value *x = hapi_shape_in(c, 0);
    int64_t n = x->shape.rank > 2 ? x->shape.dim[1] : 0, groups = hapi_node_int(c->n, "num_groups", 0);
    int64_t elements;

    if (x->shape.rank < 3 || !hapi_shape_float(x->dtype))
        return hapi_shape_fail(c, HAPI_EFORMAT, "an input of rank %d, dtype %s", x->shape.rank,
                               hapi_dtype_name(x->dtype));
    if (c->n->op == HAPI_OP_GroupNormalization) {
        if (groups < 1 || n % groups)
            return hapi_shape_fail(c, HAPI_EFORMAT, "%lld channels in %lld groups", (long long)n,
                                   (long long)groups);
        n = c->g->opset < 21 ? groups : n;
    }
    if (hapi_shape_elements(&x->shape, &elements) || !elements)
        return hapi_shape_fail(c, HAPI_EFORMAT, "an empty input");
    for (int k = 1; k < 3; k++)
        if (!hapi_shape_vector(hapi_shape_in(c, k), n) || hapi_shape_alike(c, x, hapi_shape_in(c, k)))
            return hapi_shape_fail(c, HAPI_EFORMAT, "input %d does not have %lld numbers", k, (long long)n);
    return hapi_shape_set(c, 0, x->dtype, &x->shape);
}

int hapi_shape_lrn(const struct hapi_infer *c)
{
    const struct hapi_value *x = hapi_shape_in(c, 0);
    int64_t size = hapi_node_int(c->n, "size", 0);

    if (x->shape.rank < 2 || !hapi_shape_float(x->dtype))
        return hapi_shape_fail(c, HAPI_EFORMAT, "an input of rank %d, dtype %s", x->shape.rank,
                               hapi_dtype_name(x->dtype));
    if (size < 1 || size > 1 << 16)
        return hapi_shape_fail(c, HAPI_EFORMAT, "a size of %lld", (long long)size);
    return hapi_shape_set(c, 0, x->dtype, &x->shape);
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

/* The index of the largest or least along one axis. */
int hapi_shape_arg(const struct hapi_infer *c)
{
    const struct hapi_value *x = hapi_shape_in(c, 0);
    bool keep = hapi_node_int(c->n, "keepdims", 1);
    struct hapi_shape s = {.rank = 0};
    int axis, rc = hapi_shape_axis(c, hapi_node_int(c->n, "axis", 0), x->shape.rank, &axis);

    if (!rc && !x->shape.dim[axis])
        rc = hapi_shape_fail(c, HAPI_EFORMAT, "an empty dim is reduced");
    for (int i = 0; !rc && i < x->shape.rank; i++)
        if (i != axis || keep)
            s.dim[s.rank++] = i == axis ? 1 : x->shape.dim[i];
    return rc ? rc : hapi_shape_set(c, 0, HAPI_I64, &s);
}
