#include "resample.h"

#include <math.h>
#include <string.h>

static const double antialias_least = 1.0 / 16; /* what HAPI_RESAMPLE_TAPS is for */

static int bad(const struct hapi_node *n, int code, struct hapi_err *err, const char *what)
{
    return hapi_err_set(err, code, 0, "node `%s` (%s): %s", n->name, hapi_op_name(n->op), what);
}

/* ------------------------------------------------------------------ what the node says */

/* Index of the attribute's text in names; `otherwise` when it is absent, -1 when it is none of them. */
static int choice(const struct hapi_node *n, const char *attr, const char *const *names, int count,
                  int otherwise)
{
    const struct hapi_attr *a = hapi_node_attr(n, attr);

    if (!a || a->type != HAPI_ATTR_STRING)
        return otherwise;
    for (int i = 0; i < count; i++)
        if (!strcmp(a->s, names[i]))
            return i;
    return -1;
}

static int modes_read(const struct hapi_graph *g, const struct hapi_node *n, struct hapi_resample *r,
                      struct hapi_err *err)
{
    static const char *const modes[] = {"nearest", "linear", "cubic", "bilinear"};
    static const char *const places[] = {"half_pixel",        "half_pixel_symmetric", "pytorch_half_pixel",
                                         "align_corners",     "asymmetric",           "tf_half_pixel_for_nn",
                                         "tf_crop_and_resize"};
    static const char *const nearest[] = {"round_prefer_floor", "round_prefer_ceil", "floor", "ceil"};
    bool old = g->opset < 11; /* Upsample, and Resize that took after it */
    int mode = choice(n, "mode", modes, 4, HAPI_RESAMPLE_NEAREST);
    int place = old ? HAPI_PLACE_ASYMMETRIC
                    : choice(n, "coordinate_transformation_mode", places, 7, HAPI_PLACE_HALF_PIXEL);
    int near = old ? HAPI_NEAREST_FLOOR : choice(n, "nearest_mode", nearest, 4, 0);

    if (mode < 0 || place < 0 || near < 0)
        return bad(n, HAPI_EUNSUPPORTED, err, "a mode that is not known");
    r->mode = mode == 3 ? HAPI_RESAMPLE_LINEAR : (enum hapi_resample_mode)mode;
    r->place = (enum hapi_resample_place)place;
    r->nearest = (enum hapi_resample_nearest)near;
    r->exclude_outside = hapi_node_int(n, "exclude_outside", 0) != 0;
    r->antialias = hapi_node_int(n, "antialias", 0) != 0 && r->mode != HAPI_RESAMPLE_NEAREST;
    r->cubic_a = hapi_node_float(n, "cubic_coeff_a", -0.75F);
    r->extrapolation = hapi_node_float(n, "extrapolation_value", 0);
    return HAPI_OK;
}

/* Input k when it is there and holds something. */
static const struct hapi_value *input(const struct hapi_graph *g, const struct hapi_node *n, int k)
{
    const struct hapi_value *v = k < n->n_in && n->in[k] >= 0 ? &g->values[n->in[k]] : NULL;
    return v && v->shape.rank == 1 && v->shape.dim[0] == 0 ? NULL : v;
}

/* `count` numbers of a constant list into out. */
static int numbers(const struct hapi_node *n, const struct hapi_value *v, int64_t count, double *out,
                   struct hapi_err *err)
{
    if (v->shape.rank != 1 || v->shape.dim[0] != count)
        return bad(n, HAPI_EFORMAT, err, "scales, sizes or roi do not have one number per axis");
    if (v->dtype != HAPI_F32 && v->dtype != HAPI_F64 && v->dtype != HAPI_I64)
        return bad(n, HAPI_EUNSUPPORTED, err, "scales, sizes or roi of another dtype than f32, f64, i64");
    if (!v->data)
        return bad(n, HAPI_EUNSUPPORTED, err, "scales, sizes or roi that are no constants");
    for (int64_t i = 0; i < count; i++)
        out[i] = v->dtype == HAPI_F32   ? (double)((const float *)v->data)[i]
                 : v->dtype == HAPI_F64 ? ((const double *)v->data)[i]
                                        : (double)((const int64_t *)v->data)[i];
    return HAPI_OK;
}

/* The axes that scales, sizes and roi are about, all of them before opset 18. Returns how many, or HAPI_E*.
 */
static int axes_read(const struct hapi_node *n, int rank, int *axes, struct hapi_err *err)
{
    int64_t list[HAPI_MAX_RANK];
    size_t count = hapi_node_ints(n, "axes", list, HAPI_MAX_RANK);
    unsigned seen = 0;

    for (int i = 0; !count && i < rank; i++)
        axes[i] = i;
    if (!count)
        return rank;
    if (count > (size_t)rank)
        return bad(n, HAPI_EFORMAT, err, "more axes than dims");
    for (size_t i = 0; i < count; i++) {
        int64_t a = list[i] < 0 ? list[i] + rank : list[i];
        if (a < 0 || a >= rank || seen >> a & 1)
            return bad(n, HAPI_EFORMAT, err, "axes out of range, or twice");
        seen |= 1U << a;
        axes[i] = (int)a;
    }
    return (int)count;
}

/* Sizes as they are, or as large as they may be (must be) with one scale for all. */
static int sizes_apply(const struct hapi_node *n, struct hapi_resample *r, const int *axes, int count,
                       const double *sizes, struct hapi_err *err)
{
    static const char *const policies[] = {"stretch", "not_larger", "not_smaller"};
    int policy = choice(n, "keep_aspect_ratio_policy", policies, 3, 0);
    double one = 0;

    if (policy < 0)
        return bad(n, HAPI_EUNSUPPORTED, err, "a keep_aspect_ratio_policy that is not known");
    for (int i = 0; i < count; i++) {
        double scale = sizes[i] / (double)r->axis[axes[i]].in;
        one = i == 0 || (policy == 1 ? scale < one : scale > one) ? scale : one;
    }
    for (int i = 0; i < count; i++) {
        struct hapi_resample_axis *a = &r->axis[axes[i]];
        double out = policy ? floor(one * (double)a->in + 0.5) : sizes[i];
        if (!(out >= 1 && out <= 1e12))
            return bad(n, HAPI_EFORMAT, err, "a size that is not in 1..1e12");
        a->out = (int64_t)out;
        a->scale = policy ? one : (double)a->out / (double)a->in;
    }
    return HAPI_OK;
}

static int scales_apply(const struct hapi_node *n, struct hapi_resample *r, const int *axes, int count,
                        const double *scales, struct hapi_err *err)
{
    for (int i = 0; i < count; i++) {
        struct hapi_resample_axis *a = &r->axis[axes[i]];
        /* In f32, as the standard's shape inference has it: 10 * 0.7 is 7. */
        float out = floorf((float)a->in * (float)scales[i]);
        if (!(scales[i] > 0 && out <= 1e12F))
            return bad(n, HAPI_EFORMAT, err, "a scale that is not positive, or too large");
        if (out < 1)
            return bad(n, HAPI_EFORMAT, err, "a scale that leaves nothing");
        a->out = (int64_t)out;
        a->scale = scales[i];
    }
    return HAPI_OK;
}

static int geometry_read(const struct hapi_graph *g, const struct hapi_node *n, struct hapi_resample *r,
                         struct hapi_err *err)
{
    bool old = g->opset < 11;
    const struct hapi_value *scales = input(g, n, old ? 1 : 2), *sizes = old ? NULL : input(g, n, 3);
    const struct hapi_value *roi = old ? NULL : input(g, n, 1);
    const struct hapi_attr *attr = hapi_node_attr(n, "scales");
    double list[2 * HAPI_MAX_RANK];
    int axes[HAPI_MAX_RANK], count = axes_read(n, r->rank, axes, err), rc = HAPI_OK;

    if (count < 0)
        return count;
    if (!scales && !sizes && attr && attr->type == HAPI_ATTR_FLOATS) { /* Upsample 7 */
        if (attr->n != (size_t)count)
            return bad(n, HAPI_EFORMAT, err, "scales do not have one number per axis");
        for (int i = 0; i < count; i++)
            list[i] = (double)attr->floats[i];
        rc = scales_apply(n, r, axes, count, list, err);
    } else if (!scales == !sizes) {
        return bad(n, HAPI_EFORMAT, err, "either scales or sizes must be given");
    } else {
        rc = numbers(n, scales ? scales : sizes, count, list, err);
        rc = rc ? rc : (scales ? scales_apply : sizes_apply)(n, r, axes, count, list, err);
    }
    if (rc || r->place != HAPI_PLACE_TF_CROP_AND_RESIZE)
        return rc;
    if (!roi)
        return bad(n, HAPI_EFORMAT, err, "tf_crop_and_resize without a roi");
    rc = numbers(n, roi, 2 * count, list, err);
    for (int i = 0; !rc && i < count; i++) {
        r->axis[axes[i]].roi_start = list[i];
        r->axis[axes[i]].roi_end = list[count + i];
        if (!(fabs(list[i]) < 1e6 && fabs(list[count + i]) < 1e6))
            rc = bad(n, HAPI_EFORMAT, err, "a roi that is out of range");
    }
    return rc;
}

int hapi_resample_of(const struct hapi_graph *g, const struct hapi_node *n, struct hapi_resample *out,
                     struct hapi_err *err)
{
    const struct hapi_shape *s = &g->values[n->in[0]].shape;
    struct hapi_resample r = {.rank = s->rank};
    int rc = modes_read(g, n, &r, err);

    if (rc)
        return rc;
    for (int i = 0; i < s->rank; i++) {
        if (s->dim[i] < 1 || s->dim[i] > 1LL << 40)
            return bad(n, HAPI_EFORMAT, err, "an empty input, or a dim that is too large");
        r.axis[i] = (struct hapi_resample_axis){s->dim[i], s->dim[i], 1, 0, 1};
    }
    rc = geometry_read(g, n, &r, err);
    for (int i = 0; !rc && i < s->rank; i++)
        if (r.antialias && r.axis[i].scale < antialias_least)
            rc = bad(n, HAPI_EUNSUPPORTED, err, "antialias at a scale below 1/16");
    if (!rc)
        *out = r;
    return rc;
}

/* ------------------------------------------------------------------ coordinates */

/* Where output coordinate x lies in the input; *outside: beyond what tf_crop_and_resize takes. */
static double coordinate(const struct hapi_resample *r, const struct hapi_resample_axis *a, double x,
                         bool *outside)
{
    double length = a->scale * (double)a->in, last = (double)(a->in - 1), at;

    switch (r->place) {
    case HAPI_PLACE_ALIGN_CORNERS:
        return length == 1 || a->out == 1 ? 0 : x * last / (length - 1);
    case HAPI_PLACE_ASYMMETRIC:
        return x / a->scale;
    case HAPI_PLACE_TF_HALF_PIXEL_FOR_NN:
        return (x + 0.5) / a->scale;
    case HAPI_PLACE_PYTORCH_HALF_PIXEL:
        return a->out == 1 ? 0 : (x + 0.5) / a->scale - 0.5;
    case HAPI_PLACE_HALF_PIXEL_SYMMETRIC:
        return (double)a->in / 2 * (1 - (double)a->out / length) + (x + 0.5) / a->scale - 0.5;
    case HAPI_PLACE_TF_CROP_AND_RESIZE:
        at = a->out == 1 || length == 1 ? (a->roi_end - a->roi_start) * last / 2
                                        : x * (a->roi_end - a->roi_start) * last / (length - 1);
        at += a->roi_start * last;
        *outside = !(at >= 0 && at <= last);
        return at;
    default:
        return (x + 0.5) / a->scale - 0.5;
    }
}

static int64_t inside(int64_t i, int64_t n)
{
    return i < 0 ? 0 : i >= n ? n - 1 : i;
}

static int64_t nearest_index(enum hapi_resample_nearest how, double x)
{
    switch (how) {
    case HAPI_NEAREST_FLOOR:
        return (int64_t)floor(x);
    case HAPI_NEAREST_CEIL:
        return (int64_t)ceil(x);
    case HAPI_NEAREST_ROUND_PREFER_CEIL:
        return (int64_t)floor(x + 0.5);
    default:
        return (int64_t)ceil(x - 0.5);
    }
}

/* Weight of an element d away, in elements. */
static double weight(const struct hapi_resample *r, double d)
{
    double a = r->cubic_a;

    d = fabs(d);
    if (r->mode == HAPI_RESAMPLE_LINEAR)
        return d < 1 ? 1 - d : 0;
    if (d <= 1)
        return ((a + 2) * d - (a + 3)) * d * d + 1;
    return d < 2 ? ((a * d - 5 * a) * d + 8 * a) * d - 4 * a : 0;
}

void hapi_resample_taps(const struct hapi_resample *r, int axis, int64_t out, struct hapi_resample_taps *t)
{
    const struct hapi_resample_axis *a = &r->axis[axis];
    double x, shrink = 1, sum = 0;

    t->n = 1;
    t->outside = false;
    t->index[0] = out;
    t->weight[0] = 1;
    if (a->scale == 1 && a->in == a->out && r->place != HAPI_PLACE_TF_CROP_AND_RESIZE &&
        r->place != HAPI_PLACE_TF_HALF_PIXEL_FOR_NN)
        return;
    x = coordinate(r, a, (double)out, &t->outside);
    if (t->outside)
        return;
    if (r->mode == HAPI_RESAMPLE_NEAREST) {
        t->index[0] = inside(nearest_index(r->nearest, x), a->in);
        return;
    }
    if (r->antialias && a->scale < 1)
        shrink = a->scale;
    double support = (r->mode == HAPI_RESAMPLE_LINEAR ? 1 : 2) / shrink;
    int64_t first = (int64_t)ceil(x - support), last = (int64_t)floor(x + support);
    t->n = 0;
    for (int64_t i = first; i <= last && t->n < HAPI_RESAMPLE_TAPS; i++) {
        double w = weight(r, ((double)i - x) * shrink);
        if (w == 0 || (r->exclude_outside && (i < 0 || i >= a->in)))
            continue;
        t->index[t->n] = inside(i, a->in);
        t->weight[t->n++] = w;
        sum += w;
    }
    /* Without antialiasing and exclusion the weights sum to 1 as they are. */
    for (int i = 0; i < t->n && (r->exclude_outside || shrink != 1) && sum != 0; i++)
        t->weight[i] /= sum;
}

uint64_t hapi_resize_work(const struct hapi_graph *g, const struct hapi_node *n)
{
    struct hapi_resample r;
    uint64_t work = 1;

    if (hapi_resample_of(g, n, &r, NULL))
        return 1;
    for (int i = 0; i < r.rank && r.mode != HAPI_RESAMPLE_NEAREST; i++)
        if (r.axis[i].scale != 1) {
            double wide = r.antialias && r.axis[i].scale < 1 ? 4 / r.axis[i].scale : 4;
            if (__builtin_mul_overflow(work, (uint64_t)wide, &work))
                return UINT64_MAX;
        }
    return work;
}
