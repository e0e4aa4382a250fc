#include "batch.h"

#include <math.h>
#include <string.h>

#include "batch_inside.h"

/* ------------------------------------------------------------------ what is asked */

static int curve_check(const struct hapi_curve *c, uint32_t at, struct hapi_err *err)
{
    const double least = 1e-12, most = 1e9;

    if (!c->points)
        return c->s >= least && c->s <= most
                   ? 0
                   : hapi_err_set(err, HAPI_EINVAL, 0, "requests[%u].seconds is %g", at, c->s);
    if (!c->n || c->n > HAPI_CURVE_POINTS_MAX)
        return hapi_err_set(err, HAPI_EINVAL, 0, "requests[%u].seconds has %u points", at, c->n);
    for (uint32_t i = 0; i < c->n; i++) {
        if (!(c->points[i].s >= least && c->points[i].s <= most))
            return hapi_err_set(err, HAPI_EINVAL, 0, "requests[%u].seconds[%u] is %g", at, i, c->points[i].s);
        if (c->points[i].batch <= (i ? c->points[i - 1].batch : 0))
            return hapi_err_set(err, HAPI_EINVAL, 0, "requests[%u].seconds[%u] is for a micro-batch of %u",
                                at, i, c->points[i].batch);
    }
    return 0;
}

static int request_check(const struct hapi_adapt *a, uint32_t at, struct hapi_err *err)
{
    const struct hapi_adapt_request *r = &a->requests[at];

    if (!r->b_min)
        return hapi_err_set(err, HAPI_EINVAL, 0, "requests[%u].b_min is 0", at);
    if (r->b_max < r->b_min || r->b_max > HAPI_ADAPT_BATCH_MAX)
        return hapi_err_set(err, HAPI_EINVAL, 0, "requests[%u].b_max is %u, b_min %u", at, r->b_max,
                            r->b_min);
    if (r->tenant >= a->n_tenants)
        return hapi_err_set(err, HAPI_EINVAL, 0, "requests[%u].tenant is %u of %u", at, r->tenant,
                            a->n_tenants);
    if (r->device < -1 || r->device >= (int32_t)a->n_devices || (r->batch && r->device < 0))
        return hapi_err_set(err, HAPI_EINVAL, 0, "requests[%u].device is %d of %u", at, r->device,
                            a->n_devices);
    if (r->batch && (r->batch < r->b_min || r->batch > r->b_max))
        return hapi_err_set(err, HAPI_EINVAL, 0, "requests[%u].batch is %u, not %u to %u", at, r->batch,
                            r->b_min, r->b_max);
    return curve_check(&r->seconds, at, err);
}

static int counts_check(const struct hapi_adapt *a, struct hapi_err *err)
{
    if (a->n_requests > HAPI_ADAPT_REQUESTS_MAX)
        return hapi_err_set(err, HAPI_EINVAL, 0, "n_requests is %u, at most %d", a->n_requests,
                            HAPI_ADAPT_REQUESTS_MAX);
    if (a->n_tenants > HAPI_ADAPT_TENANTS_MAX)
        return hapi_err_set(err, HAPI_EINVAL, 0, "n_tenants is %u, at most %d", a->n_tenants,
                            HAPI_ADAPT_TENANTS_MAX);
    if (!a->n_devices || a->n_devices > HAPI_ADAPT_DEVICES_MAX)
        return hapi_err_set(err, HAPI_EINVAL, 0, "n_devices is %u, not 1 to %d", a->n_devices,
                            HAPI_ADAPT_DEVICES_MAX);
    if (a->sizes && (!a->n_sizes || a->n_sizes > HAPI_ADAPT_SIZES_MAX))
        return hapi_err_set(err, HAPI_EINVAL, 0, "n_sizes is %u, not 1 to %d", a->n_sizes,
                            HAPI_ADAPT_SIZES_MAX);
    if (!a->age_due || a->age_due > HAPI_ADAPT_AGE_MAX)
        return hapi_err_set(err, HAPI_EINVAL, 0, "age_due is %u, not 1 to %d", a->age_due,
                            HAPI_ADAPT_AGE_MAX);
    return 0;
}

static int ask_check(const struct hapi_adapt *a, struct hapi_err *err)
{
    int rc = counts_check(a, err);

    for (uint32_t i = 0; !rc && i < a->n_devices; i++)
        if (a->free_bytes[i] > HAPI_ADAPT_BYTES_MAX)
            rc = hapi_err_set(err, HAPI_EINVAL, 0, "free_bytes[%u] is %llu", i,
                              (unsigned long long)a->free_bytes[i]);
    for (uint32_t i = 0; !rc && a->sizes && i < a->n_sizes; i++)
        if (a->sizes[i] <= (i ? a->sizes[i - 1] : 0) || a->sizes[i] > HAPI_ADAPT_BATCH_MAX)
            rc = hapi_err_set(err, HAPI_EINVAL, 0, "sizes[%u] is %u", i, a->sizes[i]);
    for (uint32_t i = 0; !rc && i < a->n_tenants; i++)
        if (!a->tenants[i].weight || a->tenants[i].weight > HAPI_ADAPT_WEIGHT_MAX)
            rc = hapi_err_set(err, HAPI_EINVAL, 0, "tenants[%u].weight is %u, not 1 to %d", i,
                              a->tenants[i].weight, HAPI_ADAPT_WEIGHT_MAX);
    for (uint32_t i = 0; !rc && i < a->n_requests; i++)
        rc = request_check(a, i, err);
    return rc;
}

/* ------------------------------------------------------------------ memory to work in */

/* The next n elements of it; with base NULL only counts. */
static void *take(char *base, size_t *at, size_t n, size_t size)
{
    size_t from = *at;

    *at = from + (n * size + 15) / 16 * 16;
    return base ? base + from : NULL;
}

static size_t lay_out(struct adapt_solver *s, char *base, uint32_t n, uint32_t devices)
{
    size_t at = 0, all = (size_t)n * ADAPT_OPTIONS_MAX;

    s->items = take(base, &at, n, sizeof *s->items);
    s->options = take(base, &at, all, sizeof *s->options);
    s->group_bytes = take(base, &at, n, sizeof *s->group_bytes);
    s->queues = take(base, &at, n, sizeof *s->queues);
    s->ranks = take(base, &at, all, sizeof *s->ranks);
    s->spare = take(base, &at, all, sizeof *s->spare);
    s->picks = take(base, &at, n, sizeof *s->picks);
    s->sharers = take(base, &at, (size_t)n * devices, sizeof *s->sharers);
    s->best = take(base, &at, n, sizeof *s->best);
    s->atoms = take(base, &at, all, sizeof *s->atoms);
    s->sorted = take(base, &at, all, sizeof *s->sorted);
    s->group_gain = take(base, &at, n, sizeof *s->group_gain);
    s->group_sum = take(base, &at, n, sizeof *s->group_sum);
    s->order = take(base, &at, n, sizeof *s->order);
    s->seen = take(base, &at, n, sizeof *s->seen);
    return at;
}

size_t hapi_adapt_scratch(uint32_t n_requests, uint32_t n_devices)
{
    struct adapt_solver s;

    if (n_requests > HAPI_ADAPT_REQUESTS_MAX || n_devices > HAPI_ADAPT_DEVICES_MAX)
        return 0;
    return lay_out(&s, NULL, n_requests, n_devices) + 16; /* of which what aligns it */
}

/* Merges runs of 1, 2, 4 ... */
void adapt_sort(struct adapt_rank *ranks, struct adapt_rank *spare, uint32_t n)
{
    struct adapt_rank *from = ranks, *to = spare;

    for (uint32_t run = 1; run < n; run *= 2) {
        for (uint32_t start = 0; start < n; start += 2 * run) {
            uint32_t mid = n - start > run ? start + run : n, end = n - mid > run ? mid + run : n;
            uint32_t i = start, j = mid, out = start;
            while (i < mid && j < end) {
                bool right = from[j].key < from[i].key ||
                             (from[j].key == from[i].key && from[j].minor < from[i].minor);
                to[out++] = from[right ? j++ : i++];
            }
            while (i < mid)
                to[out++] = from[i++];
            while (j < end)
                to[out++] = from[j++];
        }
        struct adapt_rank *other = from;
        from = to;
        to = other;
    }
    if (from != ranks)
        memcpy(ranks, from, n * sizeof *ranks);
}

/* ------------------------------------------------------------------ a choice */

void adapt_put(struct adapt_solver *s, uint32_t item, uint32_t option, int32_t device)
{
    struct adapt_pick *p = &s->picks[item];
    const struct adapt_option *was = adapt_option(s, item, p->option), *is = adapt_option(s, item, option);
    uint32_t g = s->items[item].group;

    s->value += is->value - was->value;
    if (p->device >= 0)
        s->free[p->device] += was->bytes;
    if (device >= 0)
        s->free[device] -= is->bytes;
    if (p->device != device) {
        if (p->device >= 0) {
            s->used[p->device]--;
            if (g != ADAPT_ALONE && !--s->sharers[(size_t)p->device * s->n_items + g])
                s->free[p->device] += s->group_bytes[g];
        }
        if (device >= 0) {
            s->used[device]++;
            if (g != ADAPT_ALONE && !s->sharers[(size_t)device * s->n_items + g]++)
                s->free[device] -= s->group_bytes[g];
        }
    }
    *p = (struct adapt_pick){.option = option, .device = device};
}

void adapt_put_first(struct adapt_solver *s, uint32_t item, int32_t device)
{
    s->items[item].device = device;
    adapt_put(s, item, 0, device);
    s->value += adapt_option(s, item, 0)->value;
}

int32_t adapt_roomiest(const struct adapt_solver *s, uint32_t item, uint32_t option)
{
    int32_t best = -1;
    uint64_t best_left = 0;

    for (int32_t d = 0; d < (int32_t)s->n_devices; d++) {
        uint64_t need = adapt_need(s, item, option, d);
        if (s->claimant[d] != ADAPT_NOBODY || need > s->free[d])
            continue;
        uint64_t left = s->free[d] - need;
        if (best < 0 || left > best_left || (left == best_left && s->used[d] < s->used[best])) {
            best = d;
            best_left = left;
        }
    }
    return best;
}

/* Nothing waiting is served; what runs has its least. */
static int start(struct adapt_solver *s, struct hapi_err *err)
{
    for (uint32_t d = 0; d < s->n_devices; d++)
        s->claimant[d] = ADAPT_NOBODY;
    memcpy(s->free, s->ask->free_bytes, s->n_devices * sizeof *s->free);
    memset(s->used, 0, sizeof s->used);
    memset(s->sharers, 0, (size_t)s->n_items * s->n_devices * sizeof *s->sharers);
    s->value = 0;
    for (uint32_t i = 0; i < s->n_items; i++) {
        const struct adapt_item *it = &s->items[i];
        s->picks[i] = (struct adapt_pick){.device = -1};
        if (it->device < 0)
            continue;
        if (!it->n || adapt_need(s, i, 0, it->device) > s->free[it->device])
            return hapi_err_set(err, HAPI_ENOMEM, 0,
                                "free_bytes[%d] is %llu: what runs there does not fit at its b_min (request "
                                "%llu is one too many)",
                                it->device, (unsigned long long)s->ask->free_bytes[it->device],
                                (unsigned long long)s->ask->requests[it->request].id);
        adapt_put_first(s, i, it->device);
    }
    return 0;
}

static void answer(const struct adapt_solver *s, struct hapi_adapt_choice *choices,
                   struct hapi_adapt_result *result)
{
    for (uint32_t i = 0; i < s->n_items; i++) {
        const struct adapt_item *it = &s->items[i];
        const struct adapt_pick *p = &s->picks[i];
        struct hapi_adapt_choice *c = &choices[it->request];
        *c = (struct hapi_adapt_choice){.state = it->too_big ? HAPI_ADAPT_TOO_BIG : HAPI_ADAPT_WAITS,
                                        .device = -1};
        if (p->device < 0)
            continue;
        const struct adapt_option *o = adapt_option(s, i, p->option);
        *c = (struct hapi_adapt_choice){HAPI_ADAPT_RUNS, o->batch, p->device, o->bytes};
        if (it->group != ADAPT_ALONE)
            c->charge += s->group_bytes[it->group] / s->sharers[(size_t)p->device * s->n_items + it->group];
        result->runs++;
    }
    for (uint32_t d = 0; d < s->n_devices; d++)
        if (s->claimant[d] != ADAPT_NOBODY)
            choices[s->items[s->claimant[d]].request].device = (int32_t)d;
}

int hapi_adapt_solve(const struct hapi_adapt *a, void *scratch, size_t scratch_size,
                     struct hapi_adapt_choice *choices, struct hapi_adapt_result *result,
                     struct hapi_err *err)
{
    struct adapt_solver s = {.ask = a, .n_items = a->n_requests, .n_devices = a->n_devices};
    char *base = scratch;
    int rc = ask_check(a, err);

    if (rc)
        return rc;
    if (!scratch || scratch_size < hapi_adapt_scratch(a->n_requests, a->n_devices))
        return hapi_err_set(err, HAPI_EINVAL, 0, "scratch_size is %zu, not %zu", scratch_size,
                            hapi_adapt_scratch(a->n_requests, a->n_devices));
    lay_out(&s, base + (16 - (uintptr_t)base % 16) % 16, a->n_requests, a->n_devices);
    if ((rc = adapt_items_make(&s, err)) || (rc = start(&s, err)))
        return rc;
    adapt_due_place(&s);

    double unit = (double)ADAPT_ONE * a->age_due;
    bool exact = adapt_choose(&s);
    for (uint32_t i = 0; i < s.n_items; i++) /* all away first: devices may change */
        if (s.items[i].n)
            adapt_put(&s, i, 0, s.items[i].device);
    for (uint32_t i = 0; i < s.n_items; i++)
        if (s.items[i].n)
            adapt_put(&s, i, s.best[i].option, s.best[i].device);
    *result = (struct hapi_adapt_result){
        .value = (double)s.best_value / unit,
        .bound = exact ? (double)s.best_value / unit : s.bound / unit,
        .exact = exact,
    };
    answer(&s, choices, result);
    return 0;
}

/* ------------------------------------------------------------------ between rounds */

void hapi_adapt_account(const struct hapi_adapt *a, const struct hapi_adapt_choice *choices,
                        struct hapi_adapt_tenant *tenants)
{
    uint64_t least = UINT64_MAX;

    for (uint32_t i = 0; i < a->n_requests; i++) {
        struct hapi_adapt_tenant *t = &tenants[a->requests[i].tenant];
        t->ahead = adapt_ahead(t->ahead, choices[i].charge, t->weight);
    }
    for (uint32_t i = 0; i < a->n_requests; i++)
        if (choices[i].state == HAPI_ADAPT_WAITS && tenants[a->requests[i].tenant].ahead < least)
            least = tenants[a->requests[i].tenant].ahead;
    for (uint32_t t = 0; t < a->n_tenants; t++)
        tenants[t].ahead = tenants[t].ahead > least ? tenants[t].ahead - least : 0;
}
