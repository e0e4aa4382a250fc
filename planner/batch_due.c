/* Who must be served: claims of the round before, then due requests. */
#include "batch_inside.h"

static const struct hapi_adapt_request *request_of(const struct adapt_solver *s, uint32_t item)
{
    return &s->ask->requests[s->items[item].request];
}

/* Its b_min, which is what follows "not at all". */
static void serve(struct adapt_solver *s, uint32_t item, int32_t device)
{
    s->items[item].first++;
    s->items[item].n--;
    adapt_put_first(s, item, device);
}

static void claim(struct adapt_solver *s, uint32_t item, int32_t device)
{
    s->claimant[device] = item;
    s->items[item].n = 0;
}

/* Bytes at b_min when nothing else is there. */
static uint64_t alone(const struct adapt_solver *s, uint32_t item)
{
    uint32_t g = s->items[item].group;

    return adapt_option(s, item, 1)->bytes + (g == ADAPT_ALONE ? 0 : s->group_bytes[g]);
}

/* The device that lacks least; -1: all that could hold it are claimed. */
static int32_t nearest(const struct adapt_solver *s, uint32_t item)
{
    uint64_t least = 0;
    int32_t best = -1;

    for (int32_t d = 0; d < (int32_t)s->n_devices; d++) {
        if (s->claimant[d] != ADAPT_NOBODY || alone(s, item) > s->ask->free_bytes[d])
            continue;
        uint64_t lacks = adapt_need(s, item, 1, d) - s->free[d]; /* it fits nowhere */
        if (best < 0 || lacks < least) {
            best = d;
            least = lacks;
        }
    }
    return best;
}

/* A queue for each tenant of whom there is a request, oldest first; ranks: the requests. Returns how many. */
static uint32_t queues_make(struct adapt_solver *s)
{
    uint32_t n = 0;

    for (uint32_t i = 0; i < s->n_items; i++)
        s->ranks[i] = (struct adapt_rank){
            .key = request_of(s, i)->tenant, .minor = UINT32_MAX - request_of(s, i)->age, .at = i};
    adapt_sort(s->ranks, s->spare, s->n_items);
    for (uint32_t i = 0; i < s->n_items; i++) {
        const struct hapi_adapt_tenant *t = &s->ask->tenants[s->ranks[i].key];
        if (!i || s->ranks[i].key != s->ranks[i - 1].key)
            s->queues[n++] = (struct adapt_queue){.ahead = t->ahead, .weight = t->weight, .next = i};
        s->queues[n - 1].end = i + 1;
    }
    return n;
}

/* Claims that were made stand, so that a device that empties for somebody is not given to another. Returns
 * how many there are still. */
static uint32_t claims_keep(struct adapt_solver *s, uint32_t n_queues)
{
    uint32_t kept = 0;

    for (uint32_t i = 0; i < s->n_items; i++) {
        const struct hapi_adapt_request *r = request_of(s, i);
        if (!r->batch && r->device >= 0 && s->items[i].n > 1 && alone(s, i) <= s->ask->free_bytes[r->device])
            s->claimant[r->device] = i;
    }
    for (int32_t d = 0; d < (int32_t)s->n_devices; d++) {
        uint32_t i = s->claimant[d], q = 0;
        if (i == ADAPT_NOBODY)
            continue;
        while (q + 1 < n_queues && s->ranks[s->queues[q].end].key <= request_of(s, i)->tenant)
            q++;
        s->queues[q].ahead = adapt_ahead(s->queues[q].ahead, alone(s, i), s->queues[q].weight);
        int32_t to = adapt_need(s, i, 1, d) <= s->free[d] ? d : adapt_roomiest(s, i, 1);
        if (to >= 0) {
            s->claimant[d] = ADAPT_NOBODY;
            serve(s, i, to);
        } else {
            claim(s, i, d);
            kept++;
        }
    }
    return kept;
}

/* The queue's next request that waits and is not placed; false: none. */
static bool queue_next(const struct adapt_solver *s, struct adapt_queue *q, uint32_t *item)
{
    for (; q->next < q->end; q->next++) {
        *item = s->ranks[q->next].at;
        if (s->items[*item].device < 0 && s->items[*item].n > 1)
            return true;
    }
    return false;
}

/* The due request that comes first: of the tenant that had least, then the oldest; more than `fair` behind
 * `most` makes any due. NULL: none is. */
static struct adapt_queue *first_due(const struct adapt_solver *s, uint32_t n, uint64_t most, uint64_t fair,
                                     uint32_t *item)
{
    struct adapt_queue *first = NULL;
    uint32_t i;

    for (struct adapt_queue *q = s->queues; q < s->queues + n; q++) {
        if (!queue_next(s, q, &i))
            continue;
        const struct hapi_adapt_request *r = request_of(s, i);
        bool behind = q->ahead < most && most - q->ahead > fair;
        if (r->age < s->ask->age_due && !behind)
            continue;
        const struct hapi_adapt_request *b = first ? request_of(s, *item) : NULL;
        if (!b || q->ahead < first->ahead ||
            (q->ahead == first->ahead && (r->age > b->age || (r->age == b->age && r->id < b->id)))) {
            first = q;
            *item = i;
        }
    }
    return first;
}

void adapt_due_place(struct adapt_solver *s)
{
    uint32_t n = queues_make(s), item;
    uint64_t memory = 0, weights = 0, most = 0;
    struct adapt_queue *q;

    for (uint32_t d = 0; d < s->n_devices; d++)
        memory += s->ask->free_bytes[d];
    for (uint32_t i = 0; i < n; i++) {
        weights += s->queues[i].weight;
        most = s->queues[i].ahead > most ? s->queues[i].ahead : most;
    }
    if (!weights) /* no requests */
        return;
    uint64_t fair = memory * 1024 / weights;
    uint32_t claimed = claims_keep(s, n);
    while (claimed < s->n_devices && (q = first_due(s, n, most, fair, &item))) {
        int32_t to = adapt_roomiest(s, item, 1);
        uint64_t bytes = to < 0 ? alone(s, item) : adapt_need(s, item, 1, to);
        q->next++;
        if (to >= 0) {
            serve(s, item, to);
        } else if ((to = nearest(s, item)) >= 0) {
            claim(s, item, to);
            claimed++;
        } else {
            continue;
        }
        q->ahead = adapt_ahead(q->ahead, bytes, q->weight);
    }
}
