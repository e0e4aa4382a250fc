#include "series.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

/* Between two neighbours in order, linearly. */
static double quantile(const double *sorted, uint32_t n, double q)
{
    double at = q * (n - 1);
    uint32_t i = (uint32_t)at;

    return i + 1 < n ? sorted[i] + (at - i) * (sorted[i + 1] - sorted[i]) : sorted[n - 1];
}

void series_add(struct series *s, double v)
{
    s->v[s->n++ % SERIES_MAX] = v;
    if (s->n == 2 * SERIES_MAX)
        s->n = SERIES_MAX;
}

static uint32_t sorted_copy(double *to, const struct series *s)
{
    uint32_t n = s->n < SERIES_MAX ? s->n : SERIES_MAX;

    memcpy(to, s->v, n * sizeof *to);
    qsort(to, n, sizeof *to, by_value);
    return n;
}

double series_median(const struct series *s)
{
    double v[SERIES_MAX];
    uint32_t n = sorted_copy(v, s);

    return n ? quantile(v, n, 0.5) : NAN;
}

double series_spread(const struct series *s)
{
    double v[SERIES_MAX];
    uint32_t n = sorted_copy(v, s);

    if (n < 2)
        return NAN;
    double middle = quantile(v, n, 0.5);
    return middle == 0 ? 0 : (quantile(v, n, 0.75) - quantile(v, n, 0.25)) / middle;
}

void points_add(struct points *p, double x, double y)
{
    p->at[p->n % SERIES_MAX].x = x;
    p->at[p->n % SERIES_MAX].y = y;
    if (++p->n == 2 * SERIES_MAX)
        p->n = SERIES_MAX;
}

static uint32_t points_n(const struct points *p)
{
    return p->n < SERIES_MAX ? p->n : SERIES_MAX;
}

double points_slope(const struct points *p, double apart)
{
    static _Thread_local double slopes[SERIES_MAX * (SERIES_MAX - 1) / 2];
    uint32_t n = points_n(p), m = 0;

    for (uint32_t i = 0; i < n; i++)
        for (uint32_t k = 0; k < i; k++) {
            double dx = p->at[i].x - p->at[k].x;
            if (fabs(dx) >= apart)
                slopes[m++] = (p->at[i].y - p->at[k].y) / dx;
        }
    qsort(slopes, m, sizeof *slopes, by_value);
    return m ? quantile(slopes, m, 0.5) : NAN;
}

double points_offset(const struct points *p, double slope)
{
    struct series rest = {0};

    for (uint32_t i = 0; i < points_n(p); i++)
        series_add(&rest, p->at[i].y - slope * p->at[i].x);
    return series_median(&rest);
}
