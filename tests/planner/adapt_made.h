/* Requests made up for batch adaptation, and what every choice must keep to. */
#ifndef HAPI_TESTS_ADAPT_MADE_H
#define HAPI_TESTS_ADAPT_MADE_H

#include "batch.h"
#include "check.h"

enum { MADE_POINTS = 6 };

struct made {
    struct hapi_adapt ask;
    struct hapi_adapt_request requests[HAPI_ADAPT_REQUESTS_MAX];
    struct hapi_curve_point points[HAPI_ADAPT_REQUESTS_MAX][MADE_POINTS];
    struct hapi_adapt_tenant tenants[HAPI_ADAPT_TENANTS_MAX];
    uint64_t free_bytes[HAPI_ADAPT_DEVICES_MAX];
    struct hapi_adapt_choice choices[HAPI_ADAPT_REQUESTS_MAX];
    struct hapi_adapt_result result;
};

static uint64_t made_seed = 1;

/* 0 <= it < n */
static inline uint64_t made_below(uint64_t n)
{
    made_seed ^= made_seed << 13;
    made_seed ^= made_seed >> 7;
    made_seed ^= made_seed << 17;
    return made_seed * 0x2545F4914F6CDD1DULL % n;
}

static inline uint64_t made_between(uint64_t least, uint64_t most)
{
    return least + made_below(most - least + 1);
}

static inline void *made_scratch(const struct made *m, size_t *size)
{
    *size = hapi_adapt_scratch(m->ask.n_requests, m->ask.n_devices);
    void *p = malloc(*size);

    REQUIRE(p);
    memset(p, 0xa5, *size);
    return p;
}

static inline int made_solve_err(struct made *m, struct hapi_err *err)
{
    size_t size;
    void *scratch = made_scratch(m, &size);
    int rc = hapi_adapt_solve(&m->ask, scratch, size, m->choices, &m->result, err);

    free(scratch);
    return rc;
}

static inline void made_solve(struct made *m)
{
    struct hapi_err err = {0};
    int rc = made_solve_err(m, &err);

    CHECKF(!rc, "%s", err.text);
    REQUIRE(!rc);
}

/* Bytes that requests take on a device; 0 for weights that several share is counted by the key. */
static inline uint64_t made_taken(const struct made *m, const uint32_t *batch, const int32_t *device,
                                  int32_t d)
{
    uint64_t sum = 0;

    for (uint32_t i = 0; i < m->ask.n_requests; i++) {
        const struct hapi_adapt_request *r = &m->requests[i];
        bool first = true;
        if (!batch[i] || device[i] != d)
            continue;
        for (uint32_t j = 0; j < i && r->key; j++)
            first &= !batch[j] || device[j] != d || m->requests[j].key != r->key;
        sum += r->fixed_bytes + r->image_bytes * batch[i] + (first ? r->shared_bytes : 0);
    }
    return sum;
}

/* Memory, ranges, what runs goes on where it is, one claim a device, a charge for all that is held. */
static inline void made_check(const struct made *m)
{
    static uint32_t batch[HAPI_ADAPT_REQUESTS_MAX];
    static int32_t device[HAPI_ADAPT_REQUESTS_MAX];
    uint32_t runs = 0, claims[HAPI_ADAPT_DEVICES_MAX] = {0};

    for (uint32_t i = 0; i < m->ask.n_requests; i++) {
        const struct hapi_adapt_request *r = &m->requests[i];
        const struct hapi_adapt_choice *c = &m->choices[i];
        batch[i] = c->batch;
        device[i] = c->device;
        CHECK((c->state == HAPI_ADAPT_RUNS) == (c->batch > 0));
        CHECK(c->device >= -1 && c->device < (int32_t)m->ask.n_devices);
        if (c->batch) {
            runs++;
            CHECKF(c->batch >= r->b_min && c->batch <= r->b_max, "%u", c->batch);
            CHECK(c->device >= 0);
        } else {
            CHECK(!r->batch && !c->charge);
            if (c->device >= 0)
                CHECK(c->state == HAPI_ADAPT_WAITS && !claims[c->device]++);
        }
        CHECK(!r->batch || c->device == r->device);
    }
    CHECK(m->result.runs == runs);
    CHECKF(m->result.value <= m->result.bound, "%.9g of %.9g", m->result.value, m->result.bound);
    for (int32_t d = 0; d < (int32_t)m->ask.n_devices; d++) {
        uint64_t taken = made_taken(m, batch, device, d), charged = 0;
        CHECKF(taken <= m->free_bytes[d], "device %d: %llu of %llu", d, (unsigned long long)taken,
               (unsigned long long)m->free_bytes[d]);
        for (uint32_t i = 0; i < m->ask.n_requests; i++)
            charged += device[i] == d ? m->choices[i].charge : 0;
        CHECK(charged <= taken && taken - charged <= runs); /* parts of bytes are lost */
    }
}

/* Requests that share weights by key, some that run; each device of `memory` bytes. */
static inline void made_random(struct made *m, uint32_t n, uint32_t devices, uint32_t keys, uint32_t tenants,
                               uint64_t memory)
{
    static const uint32_t batches[MADE_POINTS] = {1, 2, 4, 8, 16, 32};
    uint64_t shared[8];

    memset(m, 0, sizeof *m);
    m->ask = (struct hapi_adapt){.requests = m->requests,
                                 .tenants = m->tenants,
                                 .free_bytes = m->free_bytes,
                                 .n_requests = n,
                                 .n_tenants = tenants,
                                 .n_devices = devices,
                                 .age_due = 8};
    for (uint32_t t = 0; t < tenants; t++)
        m->tenants[t].weight = (uint32_t)made_between(1, 4);
    for (uint32_t d = 0; d < devices; d++)
        m->free_bytes[d] = made_between(memory / 2, memory);
    for (uint32_t k = 0; k < 8; k++)
        shared[k] = made_below(60);
    for (uint32_t i = 0; i < n; i++) {
        struct hapi_adapt_request *r = &m->requests[i];
        double s = 1e-3 * (double)made_between(1, 50);
        for (uint32_t p = 0; p < MADE_POINTS; p++) {
            m->points[i][p] = (struct hapi_curve_point){batches[p], s};
            s *= 0.4 + 0.01 * (double)made_below(75); /* sometimes larger is slower */
        }
        /* One statement each: in which order an initialiser calls is the compiler's. */
        r->id = i * 7919 % 1024 + 1;
        r->key = made_below(keys + 1);
        r->shared_bytes = r->key ? shared[r->key - 1] : made_below(30);
        r->fixed_bytes = made_below(20);
        r->image_bytes = made_between(1, 12);
        r->b_min = 1U << made_below(3);
        r->tenant = (uint32_t)made_below(tenants);
        r->age = (uint32_t)made_below(8);
        r->device = -1;
        r->seconds = (struct hapi_curve){.n = MADE_POINTS, .points = m->points[i]};
        r->b_max = r->b_min << made_below(4);
    }
}

/* Lets the first `n` run, where they fit at b_min. */
static inline void made_run(struct made *m, uint32_t n)
{
    static uint32_t batch[HAPI_ADAPT_REQUESTS_MAX];
    static int32_t device[HAPI_ADAPT_REQUESTS_MAX];

    memset(batch, 0, sizeof batch);
    for (uint32_t i = 0; i < n && i < m->ask.n_requests; i++) {
        struct hapi_adapt_request *r = &m->requests[i];
        device[i] = (int32_t)made_below(m->ask.n_devices);
        batch[i] = r->b_min;
        if (made_taken(m, batch, device, device[i]) > m->free_bytes[device[i]]) {
            batch[i] = 0;
            continue;
        }
        r->batch = (uint32_t)made_between(r->b_min, r->b_max);
        r->device = device[i];
        r->age = 0;
    }
}

#endif
