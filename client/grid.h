/*
 * What was measured of a network at its cuts, by micro-batch, and what follows from it for the rest.
 *
 *                 batch 1   2   4   8        s: seconds for an image of [0, cut), or of [cut, freeze)
 *     cut 0             s   s   s   s        the main micro-batch at every cut that there was time for,
 *     cut 1             .   .   .   s        the others at a few; `.` is filled in
 *     cut 2             .   .   .   .
 *
 * Cuts that were not measured lie between their measured neighbours as their FLOPs do. The other
 * micro-batches take as much more or less than the main one as they do at the measured cuts on both sides.
 * Plain arithmetic; any thread.
 */
#ifndef HAPI_CLIENT_GRID_H
#define HAPI_CLIENT_GRID_H

#include <stdbool.h>
#include <stdint.h>

struct grid {
    uint32_t n_cuts, n_batches;
    const uint32_t *batches; /* n_batches, ascending */
    uint32_t main;           /* index of the main one */
    const double *x;         /* n_cuts, ascending: how much of the work lies before the cut */
    const uint32_t *limit; /* n_cuts, >= 1: only so many of the micro-batches are possible there; NULL: all */
    bool *measured;        /* n_cuts * n_batches */
    double *s;             /* likewise: seconds, >= 0. Those not measured are filled in, or NaN */
};

/* Index of the micro-batch that stands for a cut: the main one, or the largest possible. */
uint32_t grid_main(const struct grid *g, uint32_t cut);
/* More of a network takes no less time: where measured cuts of a micro-batch say otherwise, from one to the
 * next, they were measured at better and worse moments, and all take their mean. rises: with the cut, else
 * against it. Before grid_fill(). HAPI_ENOMEM. */
int grid_straighten(struct grid *g, bool rises);
void grid_fill(struct grid *g);

/* order[n] becomes 0..n-1, both ends first, then what halves the widest gap: wherever it is broken off, what
 * was measured is spread evenly. */
void grid_order(uint32_t *order, uint32_t n);

#endif
