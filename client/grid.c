#include "grid.h"

#include <math.h>
#include <stdlib.h>

#include "err.h"

static bool is_measured(const struct grid *g, uint32_t cut, uint32_t batch)
{
    return g->measured[cut * g->n_batches + batch];
}

static double *cell(const struct grid *g, uint32_t cut, uint32_t batch)
{
    return &g->s[cut * g->n_batches + batch];
}

uint32_t grid_main(const struct grid *g, uint32_t cut)
{
    return g->limit && g->limit[cut] <= g->main ? g->limit[cut] - 1 : g->main;
}

/* A pool of neighbours that violate the order between them (Ayer and others 1955). */
struct neighbours {
    double sum;
    uint32_t n;
};

static void straighten(struct grid *g, uint32_t batch, bool rises, struct neighbours *pools)
{
    double sign = rises ? 1 : -1;
    uint32_t n = 0, in = 0, at = 0;

    for (uint32_t i = 0; i < g->n_cuts; i++) {
        if (!is_measured(g, i, batch))
            continue;
        struct neighbours p = {*cell(g, i, batch), 1};
        for (; n && sign * pools[n - 1].sum / pools[n - 1].n > sign * p.sum / p.n; n--) {
            p.sum += pools[n - 1].sum;
            p.n += pools[n - 1].n;
        }
        pools[n++] = p;
    }
    for (uint32_t i = 0; i < g->n_cuts; i++) {
        if (!is_measured(g, i, batch))
            continue;
        *cell(g, i, batch) = pools[at].sum / pools[at].n;
        if (++in == pools[at].n) {
            in = 0;
            at++;
        }
    }
}

int grid_straighten(struct grid *g, bool rises)
{
    struct neighbours *pools = calloc(g->n_cuts + 1, sizeof *pools);

    if (!pools)
        return HAPI_ENOMEM;
    for (uint32_t b = 0; b < g->n_batches; b++)
        straighten(g, b, rises, pools);
    free(pools);
    return 0;
}

/* What a measured cut says of the value at another one's main micro-batch: its own, at that or its main. */
static double says(const struct grid *g, uint32_t cut, uint32_t batch)
{
    return is_measured(g, cut, batch) ? *cell(g, cut, batch) : *cell(g, cut, grid_main(g, cut));
}

/* How much more `batch` takes than `base` at a measured cut; NaN where that is not known. */
static double ratio(const struct grid *g, uint32_t cut, uint32_t batch, uint32_t base)
{
    bool known = is_measured(g, cut, batch) && is_measured(g, cut, base) && *cell(g, cut, base) > 0;
    return known ? *cell(g, cut, batch) / *cell(g, cut, base) : NAN;
}

/* The neighbours' values, a at x0 and b at x1, brought to x; one of them NaN: the other. */
static double between(double x, double x0, double a, double x1, double b)
{
    if (isnan(a) || isnan(b))
        return isnan(a) ? b : a;
    return x1 > x0 ? a + (b - a) * (x - x0) / (x1 - x0) : (a + b) / 2;
}

static void main_fill(struct grid *g, uint32_t cut)
{
    uint32_t m = grid_main(g, cut), lo = cut, hi = cut;
    double a = NAN, b = NAN;

    while (isnan(a) && lo--)
        if (is_measured(g, lo, grid_main(g, lo)))
            a = says(g, lo, m);
    while (isnan(b) && ++hi < g->n_cuts)
        if (is_measured(g, hi, grid_main(g, hi)))
            b = says(g, hi, m);
    *cell(g, cut, m) = between(g->x[cut], isnan(a) ? 0 : g->x[lo], a, isnan(b) ? 0 : g->x[hi], b);
}

static void other_fill(struct grid *g, uint32_t cut, uint32_t batch)
{
    uint32_t m = grid_main(g, cut), lo = cut + 1, hi = cut;
    double a = NAN, b = NAN;

    while (isnan(a) && lo--)
        a = ratio(g, lo, batch, m);
    while (isnan(b) && ++hi < g->n_cuts)
        b = ratio(g, hi, batch, m);
    double r = between(g->x[cut], isnan(a) ? 0 : g->x[lo], a, isnan(b) ? 0 : g->x[hi], b);
    *cell(g, cut, batch) = *cell(g, cut, m) == 0 ? 0 : r * *cell(g, cut, m);
}

void grid_fill(struct grid *g)
{
    for (uint32_t i = 0; i < g->n_cuts; i++)
        for (uint32_t b = 0; b < g->n_batches; b++)
            if (!is_measured(g, i, b))
                *cell(g, i, b) = NAN;
    for (uint32_t i = 0; i < g->n_cuts; i++)
        if (!is_measured(g, i, grid_main(g, i)))
            main_fill(g, i);
    for (uint32_t i = 0; i < g->n_cuts; i++)
        for (uint32_t b = 0; b < g->n_batches; b++)
            if (!is_measured(g, i, b) && b != grid_main(g, i) && (!g->limit || b < g->limit[i]))
                other_fill(g, i, b);
}

void grid_order(uint32_t *order, uint32_t n)
{
    uint32_t taken = 0;

    if (!n)
        return;
    order[taken++] = 0;
    if (n > 1)
        order[taken++] = n - 1;
    for (uint32_t step = n; step > 1;) { /* middles of gaps of this width, from left to right */
        step = (step + 1) / 2;
        for (uint32_t at = step; at < n - 1; at += step) {
            bool known = false;
            for (uint32_t i = 0; i < taken && !known; i++)
                known = order[i] == at;
            if (!known)
                order[taken++] = at;
        }
    }
}
