/* Batch adaptation between its files: batch.c makes items of requests and places what must be served;
 * batch_solve.c chooses the rest. */
#ifndef HAPI_PLANNER_BATCH_INSIDE_H
#define HAPI_PLANNER_BATCH_INSIDE_H

#include "batch.h"

enum { ADAPT_OPTIONS_MAX = HAPI_ADAPT_SIZES_MAX + 4 }; /* b_min, b_max, the present one, none */
#define ADAPT_ALONE UINT32_MAX                         /* group of a request that shares nothing */
#define ADAPT_NOBODY UINT32_MAX
#define ADAPT_ONE (1LL << 20) /* a relative throughput of 1 */

/* One way to serve a request; not to serve it is one, too: all 0. */
struct adapt_option {
    uint64_t bytes; /* its own */
    int64_t value;
    uint32_t batch;
};

/* A request. Its options ascend in bytes and in value; the first is what it has at the least. */
struct adapt_item {
    uint32_t request;
    uint32_t first, n; /* of options; n 0: it waits for the device that it claims */
    uint32_t group;
    int32_t device; /* where it must be served; -1: it may be, anywhere */
    bool too_big;
};

struct adapt_pick {
    uint32_t option; /* from the item's first */
    int32_t device;  /* -1: it waits */
};

/* A tenant's requests, [next, end) of a list. */
struct adapt_queue {
    uint64_t ahead;
    uint32_t weight, next, end;
};

/* For sorting, by key and then minor. */
struct adapt_rank {
    uint64_t key;
    uint32_t minor, at;
};

/* A step up the concave hull of an item's options. */
struct adapt_atom {
    uint32_t item, to;
    double gain;
    double rate; /* gain a byte; of a group that is nowhere yet, at most that of its best part as a whole */
};

struct adapt_solver {
    const struct hapi_adapt *ask;
    uint32_t n_items, n_groups, n_devices, n_options, n_atoms, n_order;
    struct adapt_item *items; /* by id */
    struct adapt_option *options;
    uint64_t *group_bytes;
    struct adapt_queue *queues;                /* n_items of them */
    struct adapt_rank *ranks, *spare;          /* n_items * ADAPT_OPTIONS_MAX each */
    uint32_t claimant[HAPI_ADAPT_DEVICES_MAX]; /* item, or ADAPT_NOBODY */

    /* A choice in the making: adapt_put() keeps it consistent. */
    struct adapt_pick *picks;
    uint64_t free[HAPI_ADAPT_DEVICES_MAX];
    uint32_t used[HAPI_ADAPT_DEVICES_MAX]; /* requests there */
    uint32_t *sharers;                     /* [device * n_items + group] */
    int64_t value;

    struct adapt_pick *best;
    int64_t best_value;
    double bound, price; /* price: the rate at which memory runs out */

    struct adapt_atom *atoms, *sorted;
    double *group_gain, *group_sum; /* of a group's best part: its value, its bytes with what it shares */
    uint32_t *order;                /* items with a choice, the best rate first */
    bool *seen;                     /* by item */
};

/* What a tenant of that weight is ahead once it has had `bytes` more for a round. */
static inline uint64_t adapt_ahead(uint64_t ahead, uint64_t bytes, uint32_t weight)
{
    uint64_t more = bytes * 1024 / weight; /* bytes <= HAPI_ADAPT_BYTES_MAX */

    return more > UINT64_MAX - ahead ? UINT64_MAX : ahead + more;
}

/* Stable. */
void adapt_sort(struct adapt_rank *ranks, struct adapt_rank *spare, uint32_t n);

/* Items with their groups and options from requests that have been checked. Errors: HAPI_EINVAL, for what two
 * requests say together. */
int adapt_items_make(struct adapt_solver *s, struct hapi_err *err);
/* Places what is claimed and due; what it places must be served from then on. */
void adapt_due_place(struct adapt_solver *s);

static inline const struct adapt_option *adapt_option(const struct adapt_solver *s, uint32_t item,
                                                      uint32_t option)
{
    return &s->options[s->items[item].first + option];
}

/* What the item takes there with what it shares, if it was not served before. */
static inline uint64_t adapt_need(const struct adapt_solver *s, uint32_t item, uint32_t option,
                                  int32_t device)
{
    uint32_t g = s->items[item].group;
    bool opens = g != ADAPT_ALONE && !s->sharers[(size_t)device * s->n_items + g];

    return adapt_option(s, item, option)->bytes + (opens ? s->group_bytes[g] : 0);
}

/* The item has this option on this device from now on; device -1: it waits. It must fit. */
void adapt_put(struct adapt_solver *s, uint32_t item, uint32_t option, int32_t device);

/* From now on it must be served there, with its first option at the least. It must fit. */
void adapt_put_first(struct adapt_solver *s, uint32_t item, int32_t device);

/* Where most memory is left with it, of the devices that nobody claims; -1: it fits nowhere. */
int32_t adapt_roomiest(const struct adapt_solver *s, uint32_t item, uint32_t option);

/* From where each item has its first option: the best that is found, into best, best_value and bound. true:
 * there is no better one. */
bool adapt_choose(struct adapt_solver *s);

#endif
