/*
 * Repeated measurements of one thing: their median, how far they spread, and a line through pairs of them.
 * Medians, since a machine that others use makes some of them too long and none too short. Any thread.
 */
#ifndef HAPI_CLIENT_SERIES_H
#define HAPI_CLIENT_SERIES_H

#include <stdint.h>

enum { SERIES_MAX = 96 };

struct series { /* all zero: empty */
    uint32_t n;
    double v[SERIES_MAX]; /* the last ones */
};

void series_add(struct series *s, double v);
double series_median(const struct series *s); /* NaN when empty */
/* (upper quartile - lower quartile) / median; NaN with fewer than two, 0 with a median of 0. */
double series_spread(const struct series *s);

/* y of x: seconds of a transfer by its bytes. */
struct points {
    uint32_t n;
    struct {
        double x, y;
    } at[SERIES_MAX];
};

void points_add(struct points *p, double x, double y);
/* The median slope between any two whose x differ by at least `apart` (Theil and Sen): up to three in ten may
 * be far off. NaN when no two do. */
double points_slope(const struct points *p, double apart);
/* The median of y - slope * x. NaN when empty. */
double points_offset(const struct points *p, double slope);

#endif
