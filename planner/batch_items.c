#include <math.h>

#include "batch_inside.h"

/* Bytes of the request at that micro-batch, without what it shares; UINT64_MAX: more than can be counted. */
static uint64_t own_bytes(const struct hapi_adapt_request *r, uint32_t batch)
{
    uint64_t images, all;

    if (__builtin_mul_overflow(r->image_bytes, (uint64_t)batch, &images) ||
        __builtin_add_overflow(images, r->fixed_bytes, &all))
        return UINT64_MAX;
    return all;
}

static bool fits(uint64_t own, uint64_t shared, uint64_t most)
{
    return own <= most && shared <= most - own;
}

static uint32_t size_add(uint32_t *sizes, uint32_t n, uint32_t size)
{
    if (n && sizes[n - 1] == size)
        return n;
    sizes[n] = size;
    return n + 1;
}

/* The micro-batches of a request, ascending. */
static uint32_t sizes_of(const struct hapi_adapt *a, const struct hapi_adapt_request *r,
                         uint32_t out[ADAPT_OPTIONS_MAX])
{
    uint32_t n = size_add(out, 0, r->b_min), ladder = a->sizes ? a->n_sizes : HAPI_ADAPT_SIZES_MAX;
    bool present = r->batch <= r->b_min || r->batch >= r->b_max;

    for (uint32_t i = 0; i < ladder; i++) {
        uint32_t size = a->sizes ? a->sizes[i] : 1U << i;
        if (size <= r->b_min || size >= r->b_max)
            continue;
        if (!present && r->batch <= size) {
            n = size_add(out, n, r->batch);
            present = true;
        }
        n = size_add(out, n, size);
    }
    if (!present)
        n = size_add(out, n, r->batch);
    return size_add(out, n, r->b_max);
}

/* Options that no smaller one is as good as, of those that can fit into `most` bytes with `shared`. */
static void options_make(struct adapt_solver *s, struct adapt_item *it, uint64_t shared, uint64_t most)
{
    const struct hapi_adapt_request *r = &s->ask->requests[it->request];
    uint32_t age = r->batch ? 0 : r->age < s->ask->age_due ? r->age : s->ask->age_due;
    int64_t worth = (int64_t)s->ask->tenants[r->tenant].weight * (s->ask->age_due + age);
    uint32_t sizes[ADAPT_OPTIONS_MAX], n = sizes_of(s->ask, r, sizes);
    double seconds[ADAPT_OPTIONS_MAX], best = INFINITY;
    struct adapt_option *out = &s->options[it->first];

    for (uint32_t i = 0; i < n; i++) {
        seconds[i] = hapi_curve_at(&r->seconds, sizes[i]);
        best = seconds[i] < best ? seconds[i] : best;
    }
    it->n = 0;
    if (!r->batch)
        out[it->n++] = (struct adapt_option){0};
    for (uint32_t i = 0; i < n; i++) {
        int64_t rate = (int64_t)((double)ADAPT_ONE * best / seconds[i] + 0.5);
        if (r->batch && sizes[i] != r->batch)
            rate -= (int64_t)((double)ADAPT_ONE * HAPI_ADAPT_CHANGE);
        else if (!rate)
            rate = 1; /* to be served is worth something */
        uint64_t own = own_bytes(r, sizes[i]);
        if (!fits(own, shared, most))
            break;
        struct adapt_option o = {own + (it->group == ADAPT_ALONE ? shared : 0), worth * rate, sizes[i]};
        struct adapt_option *last = it->n ? &out[it->n - 1] : NULL;
        if (last && last->batch && o.value <= last->value)
            continue;
        if (last && last->batch && o.bytes == last->bytes)
            *last = o;
        else
            out[it->n++] = o;
    }
    s->n_options += it->n;
    it->too_big = !r->batch && it->n == 1;
}

/* A group for each key that several requests share. */
static int groups_make(struct adapt_solver *s, struct hapi_err *err)
{
    const struct hapi_adapt_request *r = s->ask->requests;

    for (uint32_t i = 0; i < s->n_items; i++)
        s->ranks[i] = (struct adapt_rank){.key = r[s->items[i].request].key, .at = i};
    adapt_sort(s->ranks, s->spare, s->n_items);
    for (uint32_t from = 0, to; from < s->n_items; from = to) {
        uint32_t first = s->items[s->ranks[from].at].request;
        for (to = from + 1; to < s->n_items && s->ranks[to].key == s->ranks[from].key; to++) {
            uint32_t other = s->items[s->ranks[to].at].request;
            if (r[first].key && r[other].shared_bytes != r[first].shared_bytes)
                return hapi_err_set(err, HAPI_EINVAL, 0,
                                    "requests[%u].shared_bytes is not that of requests[%u], whose key it has",
                                    other, first);
        }
        if (to - from < 2 || !r[first].key || !r[first].shared_bytes)
            continue;
        s->group_bytes[s->n_groups] = r[first].shared_bytes;
        for (uint32_t i = from; i < to; i++)
            s->items[s->ranks[i].at].group = s->n_groups;
        s->n_groups++;
    }
    return 0;
}

int adapt_items_make(struct adapt_solver *s, struct hapi_err *err)
{
    const struct hapi_adapt *a = s->ask;
    uint32_t claims[HAPI_ADAPT_DEVICES_MAX];
    uint64_t largest = 0;

    for (uint32_t d = 0; d < s->n_devices; d++) {
        claims[d] = ADAPT_NOBODY;
        largest = a->free_bytes[d] > largest ? a->free_bytes[d] : largest;
    }
    for (uint32_t i = 0; i < s->n_items; i++)
        s->ranks[i] = (struct adapt_rank){.key = a->requests[i].id, .at = i};
    adapt_sort(s->ranks, s->spare, s->n_items);
    for (uint32_t i = 0; i < s->n_items; i++) {
        uint32_t at = s->ranks[i].at;
        const struct hapi_adapt_request *r = &a->requests[at];
        s->items[i] =
            (struct adapt_item){.request = at, .group = ADAPT_ALONE, .device = r->batch ? r->device : -1};
        if (i && s->ranks[i - 1].key == r->id)
            return hapi_err_set(err, HAPI_EINVAL, 0, "requests[%u].id is that of requests[%u]", at,
                                s->ranks[i - 1].at);
        if (r->batch || r->device < 0)
            continue;
        if (claims[r->device] != ADAPT_NOBODY)
            return hapi_err_set(err, HAPI_EINVAL, 0, "requests[%u].device is claimed by requests[%u], too",
                                at, claims[r->device]);
        claims[r->device] = at;
    }
    int rc = groups_make(s, err);
    for (uint32_t i = 0; !rc && i < s->n_items; i++) {
        struct adapt_item *it = &s->items[i];
        it->first = s->n_options;
        options_make(s, it, a->requests[it->request].shared_bytes,
                     it->device < 0 ? largest : a->free_bytes[it->device]);
    }
    return rc;
}
