/* By index, by blocks, Resize. */
#include "resample.h"
#include "shape.h"

int hapi_shape_size(const struct hapi_infer *c)
{
    struct hapi_shape scalar = {.rank = 0};
    return hapi_shape_set(c, 0, HAPI_I64, &scalar);
}

int hapi_shape_tile(const struct hapi_infer *c)
{
    const struct hapi_value *x = hapi_shape_in(c, 0);
    struct hapi_shape s = x->shape;
    int64_t times[HAPI_MAX_RANK];
    int n, rc = hapi_shape_list(c, 1, "repeats", times, HAPI_MAX_RANK, &n);

    if (rc)
        return rc;
    if (n != s.rank)
        return hapi_shape_fail(c, HAPI_EFORMAT, "%d repeats for %d dims", n, s.rank);
    for (int i = 0; i < n; i++) {
        if (times[i] < 0)
            return hapi_shape_fail(c, HAPI_EFORMAT, "dim %d is repeated %lld times", i, (long long)times[i]);
        if (__builtin_mul_overflow(s.dim[i], times[i], &s.dim[i]))
            return hapi_shape_fail(c, HAPI_ETOOBIG, "its dims overflow");
    }
    return hapi_shape_set(c, 0, x->dtype, &s);
}

/* ------------------------------------------------------------------ blocks */

static int block_of(const struct hapi_infer *c, int64_t *b)
{
    const struct hapi_shape *s = &hapi_shape_in(c, 0)->shape;

    *b = hapi_node_int(c->n, "blocksize", 0);
    if (s->rank != 4)
        return hapi_shape_fail(c, HAPI_EFORMAT, "an input of rank %d", s->rank);
    if (*b < 1 || *b > 1 << 15)
        return hapi_shape_fail(c, HAPI_EFORMAT, "blocks of %lld", (long long)*b);
    return 0;
}

int hapi_shape_depth_to_space(const struct hapi_infer *c)
{
    const struct hapi_value *x = hapi_shape_in(c, 0);
    struct hapi_shape s = x->shape;
    int64_t b;
    int rc = block_of(c, &b);

    if (rc)
        return rc;
    if (s.dim[1] % (b * b))
        return hapi_shape_fail(c, HAPI_EFORMAT, "%lld channels are no blocks of %lld x %lld",
                               (long long)s.dim[1], (long long)b, (long long)b);
    s.dim[1] /= b * b;
    if (__builtin_mul_overflow(s.dim[2], b, &s.dim[2]) || __builtin_mul_overflow(s.dim[3], b, &s.dim[3]))
        return hapi_shape_fail(c, HAPI_ETOOBIG, "its dims overflow");
    return hapi_shape_set(c, 0, x->dtype, &s);
}

int hapi_shape_space_to_depth(const struct hapi_infer *c)
{
    const struct hapi_value *x = hapi_shape_in(c, 0);
    struct hapi_shape s = x->shape;
    int64_t b;
    int rc = block_of(c, &b);

    if (rc)
        return rc;
    if (s.dim[2] % b || s.dim[3] % b)
        return hapi_shape_fail(c, HAPI_EFORMAT, "%lld x %lld are no blocks of %lld", (long long)s.dim[2],
                               (long long)s.dim[3], (long long)b);
    if (__builtin_mul_overflow(s.dim[1], b * b, &s.dim[1]))
        return hapi_shape_fail(c, HAPI_ETOOBIG, "its dims overflow");
    s.dim[2] /= b;
    s.dim[3] /= b;
    return hapi_shape_set(c, 0, x->dtype, &s);
}

/* ------------------------------------------------------------------ by index */

static int indices_check(const struct hapi_infer *c)
{
    enum hapi_dtype d = hapi_shape_in(c, 1)->dtype;
    return d == HAPI_I64 || d == HAPI_I32 ? 0
                                          : hapi_shape_fail(c, HAPI_EFORMAT, "indices that are not integers");
}

/* The indices have the input's rank, and along all dims but the axis no more than its size. */
static int along_axis(const struct hapi_infer *c)
{
    const struct hapi_shape *x = &hapi_shape_in(c, 0)->shape, *ids = &hapi_shape_in(c, 1)->shape;
    int axis, rc = hapi_shape_axis(c, hapi_node_int(c->n, "axis", 0), x->rank, &axis);

    rc = rc ? rc : indices_check(c);
    if (!rc && ids->rank != x->rank)
        rc = hapi_shape_fail(c, HAPI_EFORMAT, "indices of rank %d, an input of rank %d", ids->rank, x->rank);
    for (int i = 0; !rc && i < x->rank; i++)
        if (i != axis && ids->dim[i] > x->dim[i])
            rc = hapi_shape_fail(c, HAPI_EFORMAT, "dim %d of the indices is larger than the input's", i);
    return rc;
}

int hapi_shape_gather_elements(const struct hapi_infer *c)
{
    int rc = along_axis(c);
    return rc ? rc : hapi_shape_set(c, 0, hapi_shape_in(c, 0)->dtype, &hapi_shape_in(c, 1)->shape);
}

int hapi_shape_scatter_elements(const struct hapi_infer *c)
{
    const struct hapi_value *x = hapi_shape_in(c, 0), *up = hapi_shape_in(c, 2);
    int rc = along_axis(c);

    rc = rc ? rc : hapi_shape_alike(c, x, up);
    if (!rc && !hapi_shape_equal(&up->shape, &hapi_shape_in(c, 1)->shape))
        rc = hapi_shape_fail(c, HAPI_EFORMAT, "the updates do not fit the indices");
    return rc ? rc : hapi_shape_set(c, 0, x->dtype, &x->shape);
}

/* data (b.., d..), indices (b.., i.., k): b.., i.., and the dims of data from batch_dims + k on. */
int hapi_shape_gather_nd(const struct hapi_infer *c)
{
    const struct hapi_value *x = hapi_shape_in(c, 0), *ids = hapi_shape_in(c, 1);
    int64_t batch = hapi_node_int(c->n, "batch_dims", 0);
    int64_t k = ids->shape.rank ? ids->shape.dim[ids->shape.rank - 1] : 0;
    struct hapi_shape s = {.rank = 0};
    int rc = indices_check(c);

    if (rc)
        return rc;
    if (batch < 0 || batch >= ids->shape.rank || batch >= x->shape.rank || k < 1 || k > x->shape.rank - batch)
        return hapi_shape_fail(c, HAPI_EFORMAT, "the indices do not fit the data's rank");
    if (ids->shape.rank - 1 + x->shape.rank - batch - k > HAPI_MAX_RANK)
        return hapi_shape_fail(c, HAPI_EUNSUPPORTED, "more than %d dims", HAPI_MAX_RANK);
    for (int i = 0; i < batch; i++)
        if (x->shape.dim[i] != ids->shape.dim[i])
            return hapi_shape_fail(c, HAPI_EFORMAT, "dim %d of data and indices differ", i);
    for (int i = 0; i + 1 < ids->shape.rank; i++)
        s.dim[s.rank++] = ids->shape.dim[i];
    for (int i = (int)(batch + k); i < x->shape.rank; i++)
        s.dim[s.rank++] = x->shape.dim[i];
    return hapi_shape_set(c, 0, x->dtype, &s);
}

static int one_integer(const struct hapi_infer *c, int k)
{
    const struct hapi_value *v = hapi_shape_in(c, k);
    int64_t n;

    if ((v->dtype != HAPI_I64 && v->dtype != HAPI_I32) || hapi_shape_elements(&v->shape, &n) || n != 1)
        return hapi_shape_fail(c, HAPI_EFORMAT, "input %d is not one integer", k);
    return 0;
}

int hapi_shape_trilu(const struct hapi_infer *c)
{
    const struct hapi_value *x = hapi_shape_in(c, 0);
    int rc = hapi_shape_in(c, 1) ? one_integer(c, 1) : 0;

    if (!rc && x->shape.rank < 2)
        rc = hapi_shape_fail(c, HAPI_EFORMAT, "an input of rank %d", x->shape.rank);
    return rc ? rc : hapi_shape_set(c, 0, x->dtype, &x->shape);
}

int hapi_shape_cum_sum(const struct hapi_infer *c)
{
    const struct hapi_value *x = hapi_shape_in(c, 0);
    int rc = one_integer(c, 1);

    if (!rc && (x->shape.rank < 1 || x->dtype == HAPI_BOOL))
        rc = hapi_shape_fail(c, HAPI_EFORMAT, "an input of rank %d, dtype %s", x->shape.rank,
                             hapi_dtype_name(x->dtype));
    return rc ? rc : hapi_shape_set(c, 0, x->dtype, &x->shape);
}

/* ------------------------------------------------------------------ Resize */

int hapi_shape_resize(const struct hapi_infer *c)
{
    const struct hapi_value *x = hapi_shape_in(c, 0);
    struct hapi_shape s = x->shape;
    struct hapi_resample r;
    int rc = hapi_resample_of(c->g, c->n, &r, c->err);

    if (rc)
        return rc;
    for (int i = 0; i < s.rank; i++)
        s.dim[i] = r.axis[i].out;
    return hapi_shape_set(c, 0, x->dtype, &s);
}
