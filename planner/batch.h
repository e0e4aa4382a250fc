/*
 * Batch adaptation: which requests a storage node serves now, on which device, in which micro-batches.
 *
 *     round:  requests, free memory ── hapi_adapt_solve() ──> choices ── hapi_adapt_account() ──> tenants
 *             ^ what runs stays where it is                     │                                   │
 *             └──── running: batch, device; waiting: device, age + 1  <──┘ next round  <────────────┘
 *
 * Memory of a request on a device: fixed_bytes + micro-batch x image_bytes, and once for all requests there
 * with the same key shared_bytes (weights). What is chosen never takes more than a device's free_bytes.
 *
 * 1. What runs goes on, on its device, at b_min at the least.
 * 2. Requests that are *due* come next, at b_min at the least: those that have waited age_due rounds, and
 *    those of a tenant that is behind another by more than one round of all the memory, until that is made
 *    good; the tenant that had least first, its oldest request first. Each goes to the device on which most
 *    is left after it. One that fits nowhere *claims* the device that lacks least: nothing new starts there
 *    until it does.
 * 3. The others, and every micro-batch, are such that
 *
 *        sum over what is served of   weight x (1 + min(age, age_due) / age_due) x (R - C)
 *
 *    is as large as can be. R: images a second at the micro-batch over those at the best of its
 * micro-batches; C: HAPI_ADAPT_CHANGE for a running request whose micro-batch is another than before, else 0.
 * The age of what runs counts as 0.
 *
 * Micro-batches of a request: b_min, b_max, those of `sizes` in between and, while it runs, the present one.
 * Choices depend on ids and not on the order of requests or tenants. Threads: any; no clock, no I/O.
 */
#ifndef HAPI_PLANNER_BATCH_H
#define HAPI_PLANNER_BATCH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "err.h"
#include "profile.h"

enum {
    HAPI_ADAPT_REQUESTS_MAX = 1024,
    HAPI_ADAPT_TENANTS_MAX = 1024,
    HAPI_ADAPT_DEVICES_MAX = 16,
    HAPI_ADAPT_SIZES_MAX = 16,
    HAPI_ADAPT_BATCH_MAX = 65536,
    HAPI_ADAPT_WEIGHT_MAX = 1024,
    HAPI_ADAPT_AGE_MAX = 1024,
};
#define HAPI_ADAPT_BYTES_MAX (1ULL << 46) /* of a device */
#define HAPI_ADAPT_CHANGE 0.05

struct hapi_adapt_request {
    uint64_t id;           /* none twice */
    uint64_t key;          /* of what it shares; 0: with nobody */
    uint64_t shared_bytes; /* the same for every request of the key */
    uint64_t fixed_bytes, image_bytes;
    uint32_t b_min, b_max;     /* 1 <= b_min <= b_max <= HAPI_ADAPT_BATCH_MAX */
    uint32_t tenant;           /* index */
    uint32_t age;              /* rounds that it has waited */
    uint32_t batch;            /* its micro-batch; 0: it waits */
    int32_t device;            /* where it runs, or what it claimed in the round before; -1: none */
    struct hapi_curve seconds; /* for an image, by micro-batch: each 1e-12 to 1e9; a number: alike at all */
};

struct hapi_adapt_tenant {
    uint32_t weight; /* 1 to HAPI_ADAPT_WEIGHT_MAX */
    uint64_t ahead;  /* 1024ths of byte-rounds per weight, that it had more than who had least; at first 0 */
};

struct hapi_adapt {
    const struct hapi_adapt_request *requests;
    const struct hapi_adapt_tenant *tenants;
    const uint64_t *free_bytes; /* of each device, with what running requests hold */
    const uint32_t *sizes;      /* ascending; NULL: 1, 2, 4 ... 32768 */
    uint32_t n_requests, n_tenants, n_devices, n_sizes;
    uint32_t age_due; /* 1 to HAPI_ADAPT_AGE_MAX */
};

enum hapi_adapt_state {
    HAPI_ADAPT_RUNS,
    HAPI_ADAPT_WAITS,
    HAPI_ADAPT_TOO_BIG, /* it waits, and would not fit at b_min if it were alone */
};

struct hapi_adapt_choice {
    enum hapi_adapt_state state;
    uint32_t batch;  /* 0: it waits */
    int32_t device;  /* where it runs or what it claims; -1: none */
    uint64_t charge; /* bytes that it holds: its own and an equal part of what it shares */
};

struct hapi_adapt_result {
    double value; /* the sum of 3. */
    double bound; /* no choice has a larger one */
    bool exact;   /* this is the largest */
    uint32_t runs;
};

/* Bytes that hapi_adapt_solve() works in; nothing of them is kept. 0: over the limits above. */
size_t hapi_adapt_scratch(uint32_t n_requests, uint32_t n_devices);

/* choices: n_requests of them. Errors, with nothing written to choices or result: HAPI_EINVAL naming what is
 * wrong ("requests[3].b_min is 0"), also for scratch that is too small; HAPI_ENOMEM: running requests do not
 * fit into a device at their b_min.
 *
 * exact is always set where at most 4 requests have at most 4 micro-batches on at most 2 devices; beyond,
 * where few enough are tried to be sure. On one device, with nothing shared, value is at least bound - what
 * one request is worth, and the gain over serving what must be served at b_min is at least half of the
 * largest. */
int hapi_adapt_solve(const struct hapi_adapt *a, void *scratch, size_t scratch_size,
                     struct hapi_adapt_choice *choices, struct hapi_adapt_result *result,
                     struct hapi_err *err);

/* After a round that was as chosen: what each of tenants[a->n_tenants] had. A tenant of whom nothing waits
 * gains no claim by that: it is level with the one who had least among those who wait. */
void hapi_adapt_account(const struct hapi_adapt *a, const struct hapi_adapt_choice *choices,
                        struct hapi_adapt_tenant *tenants);

#endif
