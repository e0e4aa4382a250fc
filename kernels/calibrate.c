/* Ranges from histograms of |x| whose bins are the leading bits of the number: 32 to a factor of two. Exact
 * about zeros, the least and the greatest; memory is 64 KB a value, however many samples there are. */
#include <stdlib.h>
#include <string.h>

#include "kernels.h"

enum { MANTISSA_BITS = 5, BINS = 256 << MANTISSA_BITS };

struct track {
    const char *name; /* the plan's graph has it */
    float max;        /* |x| */
    bool negative;
    uint64_t n, bins[BINS];
};

struct hapi_calibration {
    struct hapi_plan *plan;
    struct track **list; /* by name */
    size_t n, max;
    struct hapi_range *ranges;
    bool failed; /* no memory for a value */
};

static struct track *track_of(struct hapi_calibration *c, const char *name)
{
    size_t lo = 0, hi = c->n;

    while (lo < hi) {
        size_t mid = (lo + hi) / 2;
        int order = strcmp(c->list[mid]->name, name);
        if (!order)
            return c->list[mid];
        *(order < 0 ? &lo : &hi) = order < 0 ? mid + 1 : mid;
    }
    if (c->n == c->max) {
        size_t max = c->max ? 2 * c->max : 64;
        struct track **list = realloc(c->list, max * sizeof *list);
        if (!list)
            return NULL;
        c->list = list;
        c->max = max;
    }
    struct track *t = calloc(1, sizeof *t);
    if (!t)
        return NULL;
    t->name = name;
    memmove(c->list + lo + 1, c->list + lo, (c->n - lo) * sizeof *c->list);
    c->list[lo] = t;
    c->n++;
    return t;
}

static void row_count(struct track *t, const float *x, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, &x[i], sizeof bits);
        t->negative |= x[i] < 0;
        bits &= 0x7fffffff;
        t->bins[bits >> (23 - MANTISSA_BITS)]++;
        float abs;
        memcpy(&abs, &bits, sizeof abs);
        t->max = abs > t->max ? abs : t->max;
    }
    t->n += (uint64_t)n;
}

static void seen(void *arg, const struct hapi_seen *s)
{
    struct hapi_calibration *c = arg;
    struct track *t = track_of(c, s->name);

    c->failed |= !t;
    for (int64_t r = 0; t && r < s->rows; r++)
        row_count(t, s->data + r * s->stride, s->cols);
}

int hapi_calibration_new(struct hapi_calibration **out, struct hapi_plan *p, struct hapi_err *err)
{
    struct hapi_calibration *c = calloc(1, sizeof *c);
    int rc;

    if (!c)
        return hapi_err_set(err, HAPI_ENOMEM, 0, "no memory for a calibration");
    rc = hapi_plan_observe(p, seen, c, err);
    if (rc) {
        free(c);
        return rc;
    }
    c->plan = p;
    *out = c;
    return HAPI_OK;
}

void hapi_calibration_free(struct hapi_calibration *c)
{
    if (!c)
        return;
    (void)hapi_plan_observe(c->plan, NULL, NULL, NULL);
    for (size_t i = 0; i < c->n; i++)
        free(c->list[i]);
    free(c->list);
    free(c->ranges);
    free(c);
}

/* The upper end of the bin that the share ends in, which the greatest element may be below. */
static float reach(const struct track *t, double share)
{
    uint64_t want = (uint64_t)(share * (double)t->n), sum = 0;
    uint32_t i = 0, bits;
    float end;

    while (i < BINS - 1 && (sum += t->bins[i]) < want)
        i++;
    bits = (i + 1) << (23 - MANTISSA_BITS);
    memcpy(&end, &bits, sizeof end);
    return end < t->max ? end : t->max;
}

int hapi_calibration_ranges(struct hapi_calibration *c, double share, const struct hapi_range **out,
                            size_t *n, struct hapi_err *err)
{
    struct hapi_range *list = realloc(c->ranges, (c->n + 1) * sizeof *list);

    if (list)
        c->ranges = list;
    if (!list || c->failed)
        return hapi_err_set(err, HAPI_ENOMEM, 0, "no memory for the ranges of all values");
    if (!(share >= 0.5 && share <= 1))
        return hapi_err_set(err, HAPI_EINVAL, 0, "a share of %g is not in 0.5..1", share);
    *n = 0;
    for (size_t i = 0; i < c->n; i++) {
        float hi = reach(c->list[i], share);
        if (!(hi >= 1e-15F && hi <= 1e15F)) /* nothing but zeros, or no numbers: stays in f32 */
            continue;
        list[(*n)++] = (struct hapi_range){c->list[i]->name, c->list[i]->negative ? -hi : 0, hi};
    }
    *out = list;
    return HAPI_OK;
}
