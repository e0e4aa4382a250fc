/*
 * A knapsack on each device: of each item one option, with what a group shares paid once where it is.
 *
 * Without whole numbers it is solved by taking steps up the items' concave hulls, the best gain a byte first,
 * what a group shares being spread over its best part. That gives the bound, and the order for greedy ways to
 * whole numbers. Few items are then searched.
 */
#include <math.h>
#include <string.h>

#include "batch_inside.h"

enum { SEARCH_ITEMS = 32, SEARCH_TRIES = 10000, PRICES = 8 };

/* Positive numbers, the largest first. */
static uint64_t descending(double x)
{
    uint64_t bits;

    memcpy(&bits, &x, sizeof bits);
    return ~bits;
}

/* ------------------------------------------------------------------ the bound */

static double slope(const struct adapt_option *from, const struct adapt_option *to)
{
    return (double)(to->value - from->value) / (double)(to->bytes - from->bytes);
}

static void item_atoms(struct adapt_solver *s, uint32_t item)
{
    const struct adapt_option *o = adapt_option(s, item, 0);
    uint32_t hull[ADAPT_OPTIONS_MAX] = {0}, n = 1;

    for (uint32_t i = 1; i < s->items[item].n; i++) {
        while (n > 1 && slope(&o[hull[n - 2]], &o[hull[n - 1]]) <= slope(&o[hull[n - 1]], &o[i]))
            n--;
        hull[n++] = i;
    }
    for (uint32_t i = 1; i < n; i++)
        s->atoms[s->n_atoms++] =
            (struct adapt_atom){.item = item,
                                .to = hull[i],
                                .gain = (double)(o[hull[i]].value - o[hull[i - 1]].value),
                                .rate = slope(&o[hull[i - 1]], &o[hull[i]])};
}

static bool anywhere(const struct adapt_solver *s, uint32_t group)
{
    for (uint32_t d = 0; d < s->n_devices; d++)
        if (s->sharers[(size_t)d * s->n_items + group])
            return true;
    return false;
}

/* Sorted by rate; a group's atoms that are better than the group as a whole are as good as it. */
static void atoms_make(struct adapt_solver *s)
{
    s->n_atoms = 0;
    for (uint32_t i = 0; i < s->n_items; i++)
        if (s->items[i].n > 1)
            item_atoms(s, i);
    for (uint32_t i = 0; i < s->n_atoms; i++)
        s->ranks[i] = (struct adapt_rank){.key = descending(s->atoms[i].rate), .at = i};
    adapt_sort(s->ranks, s->spare, s->n_atoms);

    for (uint32_t g = 0; g < s->n_groups; g++) {
        s->group_gain[g] = anywhere(s, g) ? INFINITY : 0;
        s->group_sum[g] = (double)s->group_bytes[g];
    }
    for (uint32_t i = 0; i < s->n_atoms; i++) {
        const struct adapt_atom *a = &s->atoms[s->ranks[i].at];
        uint32_t g = s->items[a->item].group;
        if (g == ADAPT_ALONE || a->rate * s->group_sum[g] <= s->group_gain[g])
            continue;
        s->group_gain[g] += a->gain;
        s->group_sum[g] += a->gain / a->rate;
    }
    for (uint32_t i = 0; i < s->n_atoms; i++) {
        struct adapt_atom *a = &s->atoms[s->ranks[i].at];
        uint32_t g = s->items[a->item].group;
        if (g != ADAPT_ALONE)
            a->rate = fmin(a->rate, s->group_gain[g] / s->group_sum[g]);
        s->ranks[i].key = descending(a->rate);
        s->ranks[i].minor = g;
    }
    adapt_sort(s->ranks, s->spare, s->n_atoms);
    for (uint32_t i = 0; i < s->n_atoms; i++)
        s->sorted[i] = s->atoms[s->ranks[i].at];
}

/* What all atoms are worth that the memory of all devices together holds, the last one in part. */
static void bound_make(struct adapt_solver *s)
{
    double left = 0, sum = (double)s->value;

    for (uint32_t d = 0; d < s->n_devices; d++)
        left += (double)s->free[d];
    s->price = 0;
    for (uint32_t i = 0; i < s->n_atoms && !(s->price > 0); i++) {
        const struct adapt_atom *a = &s->sorted[i];
        double bytes = a->gain / a->rate;
        if (bytes > left) {
            s->price = a->rate;
            sum += left * a->rate;
        } else {
            left -= bytes;
            sum += a->gain;
        }
    }
    s->bound = sum + fabs(sum) * 1e-12; /* which rounding may have taken away */
}

/* Items with a choice, each where its first atom is. */
static void order_make(struct adapt_solver *s)
{
    memset(s->seen, 0, s->n_items * sizeof *s->seen);
    s->n_order = 0;
    for (uint32_t i = 0; i < s->n_atoms; i++) {
        uint32_t item = s->sorted[i].item;
        if (!s->seen[item])
            s->order[s->n_order++] = item;
        s->seen[item] = true;
    }
}

/* ------------------------------------------------------------------ greedy ways */

static void keep_if_better(struct adapt_solver *s)
{
    if (s->value <= s->best_value)
        return;
    s->best_value = s->value;
    memcpy(s->best, s->picks, s->n_items * sizeof *s->best);
}

static void restart(struct adapt_solver *s)
{
    for (uint32_t i = 0; i < s->n_order; i++)
        adapt_put(s, s->order[i], 0, s->items[s->order[i]].device);
}

/* The device with least room that holds it, with what it shares there if such a one is. */
static int32_t tightest(const struct adapt_solver *s, uint32_t item, uint32_t option)
{
    int32_t best = -1;
    uint64_t least = 0;

    for (int32_t d = 0; d < (int32_t)s->n_devices; d++) {
        uint64_t need = adapt_need(s, item, option, d);
        if (s->claimant[d] != ADAPT_NOBODY || need > s->free[d])
            continue;
        if (best < 0 || need < least || (need == least && s->free[d] < s->free[best])) {
            best = d;
            least = need;
        }
    }
    return best;
}

/* Where the item can have an option that is larger than its present one; -1: nowhere. */
static int32_t place(const struct adapt_solver *s, uint32_t item, uint32_t option, bool compact)
{
    const struct adapt_pick *p = &s->picks[item];

    if (p->device < 0)
        return compact ? tightest(s, item, option) : adapt_roomiest(s, item, option);
    uint64_t more = adapt_option(s, item, option)->bytes - adapt_option(s, item, p->option)->bytes;
    return more <= s->free[p->device] ? p->device : -1;
}

/* The largest option that fits. */
static void raise(struct adapt_solver *s, uint32_t item, bool compact)
{
    for (uint32_t o = s->items[item].n - 1; o > s->picks[item].option; o--) {
        int32_t d = place(s, item, o, compact);
        if (d < 0)
            continue;
        adapt_put(s, item, o, d);
        return;
    }
}

/* Atom after atom, of each item until one does not fit; then what fits into the rest. */
static void climb(struct adapt_solver *s, bool compact)
{
    memset(s->seen, 0, s->n_items * sizeof *s->seen);
    for (uint32_t i = 0; i < s->n_atoms; i++) {
        const struct adapt_atom *a = &s->sorted[i];
        if (s->seen[a->item] || a->to <= s->picks[a->item].option)
            continue;
        int32_t d = place(s, a->item, a->to, compact);
        if (d < 0)
            s->seen[a->item] = true;
        else
            adapt_put(s, a->item, a->to, d);
    }
    for (uint32_t i = 0; i < s->n_order; i++)
        raise(s, s->order[i], compact);
    keep_if_better(s);
}

/* Running requests as they are, where that fits. */
static void stay(struct adapt_solver *s)
{
    for (uint32_t i = 0; i < s->n_order; i++) {
        uint32_t item = s->order[i], batch = s->ask->requests[s->items[item].request].batch;
        for (uint32_t o = 1; batch && o < s->items[item].n; o++)
            if (adapt_option(s, item, o)->batch == batch && place(s, item, o, false) >= 0)
                adapt_put(s, item, o, s->picks[item].device);
    }
}

/* The largest gain first: one that does not fit beside many small ones may be worth more than all of them. */
static void largest_first(struct adapt_solver *s)
{
    for (uint32_t i = 0; i < s->n_order; i++) {
        uint32_t item = s->order[i];
        int64_t had = s->value;
        raise(s, item, true);
        s->ranks[i] = (struct adapt_rank){.key = UINT64_MAX - (uint64_t)(s->value - had), .at = item};
        adapt_put(s, item, 0, s->items[item].device);
    }
    adapt_sort(s->ranks, s->spare, s->n_order);
    for (uint32_t i = 0; i < s->n_order; i++)
        raise(s, s->ranks[i].at, true);
    keep_if_better(s);
}

/* ------------------------------------------------------------------ search */

struct search {
    struct adapt_solver *s;
    uint32_t tries;
    double price[PRICES];
    double rest[SEARCH_ITEMS + 1][PRICES]; /* what items from there on gain when memory has that price */
};

/* Whatever the price: memory sold at it, and what items gain that buy at it, is no less than what they gain
 * within the memory. */
static bool hopeless(const struct search *x, uint32_t from)
{
    double least = INFINITY, left = 0;

    for (uint32_t d = 0; d < x->s->n_devices; d++)
        left += (double)x->s->free[d];
    for (uint32_t p = 0; p < PRICES; p++)
        least = fmin(least, x->price[p] * left + x->rest[from][p]);
    return (double)x->s->value + least * (1 + 1e-9) < (double)x->s->best_value + 1;
}

/* Empty devices of one size are one device. */
static bool twin(const struct adapt_solver *s, int32_t device)
{
    for (int32_t d = 0; d < device; d++)
        if (!s->used[d] && !s->used[device] && s->free[d] == s->free[device] &&
            s->claimant[d] == ADAPT_NOBODY)
            return true;
    return false;
}

static void search(struct search *x, uint32_t from)
{
    struct adapt_solver *s = x->s;

    keep_if_better(s);
    if (from == s->n_order || hopeless(x, from))
        return;
    uint32_t item = s->order[from];
    int32_t at = s->items[item].device;
    for (uint32_t o = s->items[item].n - 1; o > 0; o--)
        for (int32_t d = at < 0 ? 0 : at; d < (at < 0 ? (int32_t)s->n_devices : at + 1); d++) {
            if (at < 0 &&
                (s->claimant[d] != ADAPT_NOBODY || adapt_need(s, item, o, d) > s->free[d] || twin(s, d)))
                continue;
            if (at >= 0 && place(s, item, o, false) < 0)
                continue;
            if (!x->tries)
                return;
            x->tries--;
            adapt_put(s, item, o, d);
            search(x, from + 1);
            adapt_put(s, item, 0, at);
        }
    search(x, from + 1);
}

/* true: nothing was left out. */
static bool search_all(struct adapt_solver *s)
{
    static const double parts[PRICES] = {0, 0.25, 0.5, 0.75, 1, 1.5, 2.5, 5};
    struct search x = {.s = s, .tries = SEARCH_TRIES};

    for (uint32_t p = 0; p < PRICES; p++) {
        x.price[p] = s->price < INFINITY ? parts[p] * s->price : 0;
        for (uint32_t i = s->n_order; i > 0; i--) {
            const struct adapt_option *o = adapt_option(s, s->order[i - 1], 0);
            double best = 0;
            for (uint32_t k = 1; k < s->items[s->order[i - 1]].n; k++)
                best = fmax(best,
                            (double)(o[k].value - o->value) - x.price[p] * (double)(o[k].bytes - o->bytes));
            x.rest[i - 1][p] = x.rest[i][p] + best;
        }
    }
    restart(s);
    search(&x, 0);
    return x.tries > 0;
}

/* Options that do not fit beside what must be served are none. */
static void trim(struct adapt_solver *s)
{
    for (uint32_t i = 0; i < s->n_items; i++)
        while (s->items[i].n > 1 && place(s, i, s->items[i].n - 1, false) < 0)
            s->items[i].n--;
}

bool adapt_choose(struct adapt_solver *s)
{
    trim(s);
    atoms_make(s);
    bound_make(s);
    order_make(s);
    s->best_value = s->value;
    memcpy(s->best, s->picks, s->n_items * sizeof *s->best);

    stay(s);
    climb(s, false);
    restart(s);
    climb(s, false);
    restart(s);
    climb(s, true);
    restart(s);
    largest_first(s);
    if ((double)s->best_value + 1 > s->bound)
        return true;
    return s->n_order <= SEARCH_ITEMS && search_all(s);
}
