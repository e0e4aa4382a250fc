/* One round of batch adaptation: against brute force, its promises, its speed, what it refuses. */
#include <math.h>
#include <time.h>

#include "adapt_made.h"

static struct made made, other;

/* ------------------------------------------------------------------ brute force */

struct brute {
    const struct made *m;
    uint32_t batch[16], n_sizes[16], sizes[16][24];
    int32_t device[16];
    double best;
};

/* As the header says it, in floating point. */
static double worth(const struct brute *b, uint32_t i, uint32_t size)
{
    const struct hapi_adapt_request *r = &b->m->requests[i];
    double least = INFINITY, age = r->batch ? 0 : fmin(r->age, b->m->ask.age_due);

    for (uint32_t k = 0; k < b->n_sizes[i]; k++)
        least = fmin(least, hapi_curve_at(&r->seconds, b->sizes[i][k]));
    double rate = least / hapi_curve_at(&r->seconds, size);
    if (r->batch && r->batch != size)
        rate -= HAPI_ADAPT_CHANGE;
    return b->m->tenants[r->tenant].weight * (1 + age / b->m->ask.age_due) * rate;
}

/* Whether the rules let it be served there: what must be served is taken from the choice, which other cases
 * look at. */
static bool brute_may(const struct made *m, uint32_t i, int32_t d, bool must)
{
    if (must)
        return m->choices[i].device == d;
    if (!m->choices[i].batch && m->choices[i].device >= 0)
        return false;
    for (uint32_t j = 0; j < m->ask.n_requests; j++)
        if (!m->choices[j].batch && m->choices[j].device == d)
            return false;
    return true;
}

static void brute_try(struct brute *b, uint32_t i, double value)
{
    const struct made *m = b->m;

    if (i == m->ask.n_requests) {
        for (int32_t d = 0; d < (int32_t)m->ask.n_devices; d++)
            if (made_taken(m, b->batch, b->device, d) > m->free_bytes[d])
                return;
        b->best = fmax(b->best, value);
        return;
    }
    bool must = m->requests[i].batch || (m->choices[i].batch && m->requests[i].age >= m->ask.age_due);
    b->batch[i] = 0;
    if (!must)
        brute_try(b, i + 1, value);
    for (int32_t d = 0; d < (int32_t)m->ask.n_devices; d++) {
        for (uint32_t k = 0; k < b->n_sizes[i] && brute_may(m, i, d, must); k++) {
            b->batch[i] = b->sizes[i][k];
            b->device[i] = d;
            brute_try(b, i + 1, value + worth(b, i, b->sizes[i][k]));
        }
        b->batch[i] = 0;
    }
}

static double brute(const struct made *m)
{
    struct brute b = {.m = m, .best = -INFINITY};

    for (uint32_t i = 0; i < m->ask.n_requests; i++) {
        const struct hapi_adapt_request *r = &m->requests[i];
        for (uint32_t size = r->b_min; size <= r->b_max; size++)
            if (size == r->b_min || size == r->b_max || size == r->batch || !(size & (size - 1)))
                b.sizes[i][b.n_sizes[i]++] = size;
    }
    brute_try(&b, 0, 0);
    return b.best;
}

static void small__random__as_good_as_brute_force(void)
{
    uint32_t exact = 0, n = 600, served = 0, waits = 0, claims = 0;

    for (uint32_t k = 0; k < n; k++) {
        made_seed = k + 1;
        uint32_t requests = 1 + (uint32_t)made_below(5), devices = 1 + (uint32_t)made_below(2);
        made_random(&made, requests, devices, 2, 2, 30 + made_below(180));
        made_run(&made, (uint32_t)made_below(4));
        for (uint32_t i = 0; i < made.ask.n_requests && k % 3 == 0; i++)
            if (!made.requests[i].batch && made_below(3) == 0)
                made.requests[i].age = 8 + (uint32_t)made_below(3);
        made_solve(&made);
        made_check(&made);
        double best = brute(&made), tiny = 1e-5 * made.ask.n_requests;
        exact += made.result.exact;
        CHECKF(made.result.bound >= best - tiny, "seed %u: %g, bound %g", k + 1, best, made.result.bound);
        CHECKF(made.result.value <= best + tiny, "seed %u: %g, best %g", k + 1, made.result.value, best);
        if (made.result.exact)
            CHECKF(made.result.value >= best - tiny, "seed %u: %g of %g", k + 1, made.result.value, best);
        for (uint32_t i = 0; i < made.ask.n_requests; i++) {
            served += made.choices[i].batch > 0;
            waits += made.choices[i].state == HAPI_ADAPT_WAITS;
            claims += !made.choices[i].batch && made.choices[i].device >= 0;
        }
    }
    printf("     %u served, %u wait, of them %u claim; %u of %u proved the best\n", served, waits, claims,
           exact, n);
    CHECK(exact == n && served > 500 && waits > 200 && claims > 10);
}

/* ------------------------------------------------------------------ promises */

static void any_size__random__within_memory_and_ranges(void)
{
    double least = 1, sum = 0;
    uint32_t n_sum = 0;

    for (uint32_t k = 0; k < 300; k++) {
        made_seed = k + 1;
        uint32_t n = (uint32_t)made_below(257), devices = 1 + (uint32_t)made_below(4);
        uint32_t keys = (uint32_t)made_below(9), tenants = 1 + (uint32_t)made_below(8);
        made_random(&made, n, devices, keys, tenants, 20 + made_below(40) * n);
        made_run(&made, (uint32_t)made_below(n / 2 + 1));
        for (uint32_t t = 0; t < made.ask.n_tenants && k % 2; t++)
            made.tenants[t].ahead = made_below(1 << 24);
        made_solve(&made);
        made_check(&made);
        if (k % 2 || made.result.bound <= 0)
            continue;
        double part = made.result.value / made.result.bound;
        least = fmin(least, part);
        sum += part;
        n_sum++;
    }
    printf("     %.4f of the bound in the mean of %u, %.3f at the least\n", sum / n_sum, n_sum, least);
    CHECK(sum / n_sum > 0.96);
}

/* What the header promises of one device on which nothing is shared. */
static void one_device__nothing_shared__one_request_short_of_the_bound_at_most(void)
{
    for (uint32_t k = 0; k < 300; k++) {
        made_seed = k + 1;
        uint32_t n = 1 + (uint32_t)made_below(200);
        made_random(&made, n, 1, 0, 3, 20 + made_below(60) * n);
        made_run(&made, (uint32_t)made_below(n / 4 + 1));
        double most = 0;
        for (uint32_t i = 0; i < n; i++)
            most =
                fmax(most, made.tenants[made.requests[i].tenant].weight * (1 + made.requests[i].age / 8.0));
        made_solve(&made);
        CHECKF(made.result.value >= made.result.bound - most * (1 + HAPI_ADAPT_CHANGE) - 1e-6,
               "seed %u: %g, bound %g, one %g", k + 1, made.result.value, made.result.bound, most);
    }
}

/* One that is worth more than all that fit with it, among too many for a search. */
static void large_one__many_small__the_better_half(void)
{
    made_random(&made, 41, 1, 0, 2, 100);
    made.free_bytes[0] = 100;
    made.tenants[0].weight = 1;
    made.tenants[1].weight = 90; /* 0.9 a byte; the small ones 1 */
    for (uint32_t i = 0; i < 41; i++)
        made.requests[i] = (struct hapi_adapt_request){.id = i,
                                                       .image_bytes = i ? 1 : 100,
                                                       .b_min = 1,
                                                       .b_max = 1,
                                                       .tenant = !i,
                                                       .device = -1,
                                                       .seconds = {.s = 1}};
    made_solve(&made);
    made_check(&made);
    CHECKF(made.choices[0].batch == 1 && made.result.value == 90, "%g", made.result.value);
}

static bool same_choice(const struct hapi_adapt_choice *a, const struct hapi_adapt_choice *b)
{
    return a->state == b->state && a->batch == b->batch && a->device == b->device && a->charge == b->charge;
}

static bool same_result(const struct hapi_adapt_result *a, const struct hapi_adapt_result *b)
{
    return a->value == b->value && a->bound == b->bound && a->exact == b->exact && a->runs == b->runs;
}

static void order__permuted__the_same_choices(void)
{
    for (uint32_t k = 0; k < 60; k++) {
        uint32_t to[256], tenant_to[8];
        made_seed = k + 1;
        uint32_t n = 1 + (uint32_t)made_below(k % 2 ? 12 : 256), tenants = 1 + (uint32_t)made_below(8);
        made_random(&made, n, 1 + k % 3, 5, tenants, 30 + 20 * n);
        made_run(&made, n / 3);
        for (uint32_t t = 0; t < tenants; t++)
            made.tenants[t].ahead = made_below(3000);
        made_solve(&made);
        other = made;
        other.ask.requests = other.requests;
        other.ask.tenants = other.tenants;
        other.ask.free_bytes = other.free_bytes;
        memset(other.choices, 0, sizeof other.choices);
        made_solve(&other);
        for (uint32_t i = 0; i < n; i++)
            CHECK(same_choice(&made.choices[i], &other.choices[i]));
        CHECK(same_result(&made.result, &other.result));

        for (uint32_t i = 0; i < n; i++)
            to[i] = i;
        for (uint32_t t = 0; t < tenants; t++)
            tenant_to[t] = (t + 1) % tenants;
        for (uint32_t i = n - 1; i > 0; i--) {
            uint32_t j = (uint32_t)made_below(i + 1), was = to[i];
            to[i] = to[j];
            to[j] = was;
        }
        for (uint32_t t = 0; t < tenants; t++)
            other.tenants[tenant_to[t]] = made.tenants[t];
        for (uint32_t i = 0; i < n; i++) {
            other.requests[to[i]] = made.requests[i];
            other.requests[to[i]].tenant = tenant_to[made.requests[i].tenant];
        }
        made_solve(&other);
        for (uint32_t i = 0; i < n; i++)
            CHECKF(same_choice(&made.choices[i], &other.choices[to[i]]), "seed %u, request %u", k + 1, i);
    }
}

/* ------------------------------------------------------------------ single cases */

/* n requests of one tenant, an image a byte each and as fast in any micro-batch. */
static void plain(uint32_t n, uint32_t devices, uint64_t memory)
{
    made_random(&made, n, devices, 0, 1, memory);
    made.tenants[0].weight = 1;
    for (uint32_t d = 0; d < devices; d++)
        made.free_bytes[d] = memory;
    for (uint32_t i = 0; i < n; i++) {
        made.requests[i] =
            (struct hapi_adapt_request){.id = i + 1, .image_bytes = 1, .b_min = 1, .b_max = 1, .device = -1};
        made.requests[i].seconds = (struct hapi_curve){.s = 1};
    }
}

static void curve__slower_when_larger__the_fastest_and_not_the_largest(void)
{
    static const struct hapi_curve_point points[] = {{1, 1}, {8, 0.2}, {32, 0.3}};

    plain(1, 1, 1000);
    made.requests[0].b_max = 32;
    made.requests[0].seconds = (struct hapi_curve){.n = 3, .points = points};
    made_solve(&made);
    CHECK(made.choices[0].batch == 8 && made.choices[0].device == 0 && made.choices[0].charge == 8);
    CHECK(made.result.exact && made.result.value == 1 && made.result.bound == 1 && made.result.runs == 1);
    uint32_t sizes[] = {3, 12};
    made.ask.sizes = sizes;
    made.ask.n_sizes = 2;
    made_solve(&made);
    CHECKF(made.choices[0].batch == 12, "%u", made.choices[0].batch);
}

static void weights__shared_by_key__counted_once_on_a_device(void)
{
    plain(2, 1, 12);
    for (uint32_t i = 0; i < 2; i++) {
        made.requests[i].key = 5;
        made.requests[i].shared_bytes = 10;
    }
    made_solve(&made);
    made_check(&made);
    CHECK(made.result.runs == 2 && made.choices[0].charge == 6 && made.choices[1].charge == 6);
    made.requests[1].key = 6;
    made_solve(&made);
    CHECK(made.result.runs == 1);
}

static void devices__room_on_each__spread(void)
{
    plain(4, 4, 100);
    made_solve(&made);
    uint32_t seen = 0;
    for (uint32_t i = 0; i < 4; i++)
        seen |= 1U << made.choices[i].device;
    CHECK(seen == 15);
}

static void running__a_small_gain__not_changed(void)
{
    static const struct hapi_curve_point near[] = {{8, 0.100}, {16, 0.096}}, far[] = {{8, 0.1}, {16, 0.09}};

    plain(1, 1, 100);
    made.requests[0].b_max = 16;
    made.requests[0].batch = 8;
    made.requests[0].device = 0;
    made.requests[0].seconds = (struct hapi_curve){.n = 2, .points = near};
    made_solve(&made);
    CHECK(made.choices[0].batch == 8);
    made.requests[0].seconds.points = far;
    made_solve(&made);
    CHECK(made.choices[0].batch == 16);
}

/* Two run and fill the device. The best gain a byte first takes requests[2], the largest first requests[3]:
 * neither leaves room for both; and there are too many for a search. */
static void running__worth_more_as_it_is__stays(void)
{
    static const struct hapi_curve_point points[] = {{1, 100}, {5, 0.2}};

    plain(40, 1, 10);
    made.ask.n_tenants = 3;
    for (uint32_t t = 0; t < 3; t++)
        made.tenants[t].weight = t + 1;
    for (uint32_t i = 0; i < 40; i++) {
        made.requests[i].image_bytes = i < 3 ? 1 : 8;
        made.requests[i].tenant = i < 2 ? 1 : i == 3 ? 2 : 0;
    }
    for (uint32_t i = 0; i < 2; i++) {
        made.requests[i].b_max = made.requests[i].batch = 5;
        made.requests[i].device = 0;
        made.requests[i].seconds = (struct hapi_curve){.n = 2, .points = points};
    }
    made_solve(&made);
    made_check(&made);
    CHECKF(made.choices[0].batch == 5 && made.choices[1].batch == 5 && made.result.value == 4, "%g",
           made.result.value);
}

static void running__somebody_is_due__down_to_b_min_and_no_further(void)
{
    static const struct hapi_curve_point points[] = {{4, 0.4}, {16, 0.1}};

    plain(2, 1, 17);
    made.requests[0].b_min = 4;
    made.requests[0].b_max = made.requests[0].batch = 16;
    made.requests[0].device = 0;
    made.requests[0].seconds = (struct hapi_curve){.n = 2, .points = points};
    made.requests[1].fixed_bytes = 11;
    made.requests[1].age = 8;
    made_solve(&made);
    made_check(&made);
    CHECKF(made.choices[0].batch == 4 && made.choices[1].batch == 1, "%u", made.choices[0].batch);
    made.requests[1].fixed_bytes = 13; /* it would need one byte of b_min's */
    made_solve(&made);
    made_check(&made);
    CHECKF(made.choices[0].batch == 16 && !made.choices[1].batch && made.choices[1].device == 0, "%u",
           made.choices[0].batch);
}

/* Older ones that would fit do not get what a device empties for. */
static void claim__made_before__stands_while_a_device_can_hold_it(void)
{
    static const uint64_t needs[] = {5, 8, 5};

    for (uint32_t large = 0; large < 2; large++) {
        plain(3, 2, 10);
        made.free_bytes[1] = 4;
        for (uint32_t i = 0; i < 3; i++) {
            made.requests[i].image_bytes = needs[i] + (i == 1 && large ? 3 : 0);
            made.requests[i].age = i ? 7 + i : 0;
        }
        made.requests[0].batch = 1;
        made.requests[0].device = made.requests[1].device = 0;
        made_solve(&made);
        made_check(&made);
        CHECK(made.choices[1].state == (large ? HAPI_ADAPT_TOO_BIG : HAPI_ADAPT_WAITS));
        CHECK(made.choices[1].device == (large ? -1 : 0) && !made.choices[1].batch);
        CHECK(made.choices[2].batch == large);
    }
    made.requests[0].batch = 0;
    made.requests[0].device = -1;
    made.requests[1].image_bytes = 8;
    made_solve(&made); /* and then it is served first */
    CHECK(made.choices[1].batch == 1 && made.choices[1].device == 0 && !made.choices[2].batch);
}

static void too_big__for_every_device__said_and_claims_nothing(void)
{
    plain(2, 2, 10);
    made.requests[0].fixed_bytes = 10;
    made.requests[0].age = 1000;
    made.requests[1].image_bytes = UINT64_MAX;
    made.requests[1].b_min = made.requests[1].b_max = 60000;
    made_solve(&made);
    for (uint32_t i = 0; i < 2; i++)
        CHECK(made.choices[i].state == HAPI_ADAPT_TOO_BIG && made.choices[i].device == -1);
    plain(0, 1, 10);
    made_solve(&made);
    CHECK(made.result.exact && made.result.value == 0 && made.result.runs == 0);
}

/* ------------------------------------------------------------------ refused */

static void refused(const char *why, int code)
{
    struct hapi_err err = {0};
    struct hapi_adapt_choice before = made.choices[0];
    struct hapi_adapt_result result = made.result;

    CHECKF(made_solve_err(&made, &err) == code, "%s: %d", why, err.code);
    CHECKF(strstr(err.text, why), "`%s` is not in `%s`", why, err.text);
    CHECK(same_choice(&before, &made.choices[0]) && same_result(&result, &made.result));
    plain(3, 2, 100);
}

#define REFUSED(change, why)                                                                                 \
    do {                                                                                                     \
        change;                                                                                              \
        refused(why, HAPI_EINVAL);                                                                           \
    } while (0)

static void requests__hostile__refused_by_name(void)
{
    struct hapi_adapt_request *r = made.requests;
    struct hapi_curve_point points[] = {{1, 1}, {1, 1}};

    plain(3, 2, 100);
    REFUSED(r[2].b_min = 0, "requests[2].b_min");
    REFUSED(r[1].b_min = 2, "requests[1].b_max");
    REFUSED(r[1].b_max = 65537, "requests[1].b_max");
    REFUSED(r[0].tenant = 1, "requests[0].tenant");
    REFUSED(r[0].device = 2, "requests[0].device");
    REFUSED(r[0].device = -2, "requests[0].device");
    REFUSED(r[0].batch = 1, "requests[0].device");
    REFUSED((r[0].batch = 2, r[0].device = 0), "requests[0].batch");
    REFUSED(r[2].id = 1, "requests[2].id is that of requests[0]");
    REFUSED(r[1].device = r[2].device = 1, "requests[2].device is claimed by requests[1]");
    REFUSED((r[0].key = r[2].key = 3, r[0].shared_bytes = 1), "requests[2].shared_bytes");
    REFUSED(r[0].seconds.s = 0, "requests[0].seconds");
    REFUSED(r[0].seconds.s = NAN, "requests[0].seconds");
    REFUSED(r[0].seconds.s = INFINITY, "requests[0].seconds");
    REFUSED(r[0].seconds = ((struct hapi_curve){.n = 0, .points = points}), "requests[0].seconds");
    REFUSED(r[0].seconds = ((struct hapi_curve){.n = 65, .points = points}), "requests[0].seconds");
    REFUSED(r[0].seconds = ((struct hapi_curve){.n = 2, .points = points}), "requests[0].seconds[1]");
    points[1] = (struct hapi_curve_point){2, -1};
    REFUSED(r[0].seconds = ((struct hapi_curve){.n = 2, .points = points}), "requests[0].seconds[1]");
}

static void limits__hostile__refused_by_name(void)
{
    uint32_t sizes[] = {2, 2};
    char scratch[64];
    struct hapi_err err = {0};

    plain(3, 2, 100);
    REFUSED(made.ask.n_requests = 1025, "n_requests");
    REFUSED(made.ask.n_tenants = 1025, "n_tenants");
    REFUSED(made.ask.n_devices = 0, "n_devices");
    REFUSED(made.ask.n_devices = 17, "n_devices");
    REFUSED(made.ask.age_due = 0, "age_due");
    REFUSED(made.ask.age_due = 1025, "age_due");
    REFUSED(made.ask.sizes = sizes, "n_sizes");
    REFUSED((made.ask.sizes = sizes, made.ask.n_sizes = 2), "sizes[1]");
    REFUSED(made.tenants[0].weight = 0, "tenants[0].weight");
    REFUSED(made.tenants[0].weight = 1025, "tenants[0].weight");
    REFUSED(made.free_bytes[1] = HAPI_ADAPT_BYTES_MAX + 1, "free_bytes[1]");
    CHECK(hapi_adapt_solve(&made.ask, scratch, sizeof scratch, made.choices, &made.result, &err) ==
          HAPI_EINVAL);
    CHECK(strstr(err.text, "scratch_size"));
    CHECK(hapi_adapt_scratch(1025, 1) == 0 && hapi_adapt_scratch(1, 17) == 0);

    for (uint32_t i = 0; i < 2; i++) {
        made.requests[i].batch = 1;
        made.requests[i].device = 1;
        made.requests[i].fixed_bytes = 60;
    }
    refused("free_bytes[1]", HAPI_ENOMEM);
    made.requests[0].fixed_bytes = UINT64_MAX;
    made.requests[0].batch = 1;
    made.requests[0].device = 0;
    refused("free_bytes[0]", HAPI_ENOMEM);
}

/* Bytes near the end of what can be counted, one after the other. */
static void bytes__near_overflow__no_memory_is_exceeded(void)
{
    static const uint64_t edge[] = {0, 1, 1ULL << 32, HAPI_ADAPT_BYTES_MAX, UINT64_MAX / 2, UINT64_MAX};

    for (uint32_t k = 0; k < 400; k++) {
        made_seed = k + 1;
        made_random(&made, 12, 2, 2, 2, 100);
        for (uint32_t d = 0; d < 2; d++)
            made.free_bytes[d] = edge[made_below(4)];
        uint64_t shared[3] = {0, edge[made_below(6)], edge[made_below(6)]};
        for (uint32_t t = 0; t < 2; t++)
            made.tenants[t].ahead = edge[made_below(6)];
        for (uint32_t i = 0; i < 12; i++) {
            struct hapi_adapt_request *r = &made.requests[i];
            r->shared_bytes = r->key ? shared[r->key] : edge[made_below(6)];
            r->fixed_bytes = edge[made_below(6)];
            r->image_bytes = edge[made_below(6)];
            r->image_bytes /= 1 + made_below(100);
            r->b_max = made_below(2) ? HAPI_ADAPT_BATCH_MAX : r->b_max;
            r->age = (uint32_t)edge[made_below(6)];
        }
        made_solve(&made);
        made_check(&made);
        hapi_adapt_account(&made.ask, made.choices, made.tenants);
    }
}

/* ------------------------------------------------------------------ time */

static int by_time(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

/* 256 requests, some that run, as many tenants as `tenants`. Median seconds of a round. */
static double median_time(uint32_t devices, uint32_t keys, uint32_t tenants, uint32_t age)
{
    double took[101];
    size_t size;

    made_seed = 5;
    made_random(&made, 256, devices, keys, tenants, 20 * 256 / devices);
    made_run(&made, 40);
    for (uint32_t i = 0; i < 256; i++) {
        made.requests[i].b_max = made.requests[i].b_min * 32;
        made.requests[i].age += made.requests[i].batch ? 0 : age;
    }
    void *scratch = made_scratch(&made, &size);
    for (uint32_t k = 0; k < 101; k++) {
        struct timespec from, to;
        clock_gettime(CLOCK_MONOTONIC, &from);
        CHECK(!hapi_adapt_solve(&made.ask, scratch, size, made.choices, &made.result, NULL));
        clock_gettime(CLOCK_MONOTONIC, &to);
        took[k] = (double)(to.tv_sec - from.tv_sec) + 1e-9 * (double)(to.tv_nsec - from.tv_nsec);
    }
    free(scratch);
    qsort(took, 101, sizeof *took, by_time);
    printf("     256 requests, %2u devices, %u keys, %3u tenants, age +%u: %4.0f us (%u served, %.3f of the "
           "bound)\n",
           devices, keys, tenants, age, took[50] * 1e6, made.result.runs,
           made.result.value / made.result.bound);
    return took[50];
}

static void many__256_requests__in_a_millisecond(void)
{
    static const struct {
        uint32_t devices, keys, tenants, age;
    } runs[] = {{1, 0, 1, 0}, {1, 4, 4, 0}, {4, 4, 8, 0}, {16, 8, 8, 0}, {4, 4, 256, 8}};

    for (uint32_t i = 0; i < sizeof runs / sizeof *runs; i++) {
        double s = median_time(runs[i].devices, runs[i].keys, runs[i].tenants, runs[i].age);
        /* 1 ms is what it may take; other programs on the machine may take as much again, and more. */
        CHECKF(CHECK_SANITIZED || s < 5e-3, "%g s", s);
    }
}

int main(void)
{
    CASE(small__random__as_good_as_brute_force);
    CASE(any_size__random__within_memory_and_ranges);
    CASE(one_device__nothing_shared__one_request_short_of_the_bound_at_most);
    CASE(large_one__many_small__the_better_half);
    CASE(order__permuted__the_same_choices);
    CASE(curve__slower_when_larger__the_fastest_and_not_the_largest);
    CASE(weights__shared_by_key__counted_once_on_a_device);
    CASE(devices__room_on_each__spread);
    CASE(running__a_small_gain__not_changed);
    CASE(running__worth_more_as_it_is__stays);
    CASE(running__somebody_is_due__down_to_b_min_and_no_further);
    CASE(claim__made_before__stands_while_a_device_can_hold_it);
    CASE(too_big__for_every_device__said_and_claims_nothing);
    CASE(requests__hostile__refused_by_name);
    CASE(limits__hostile__refused_by_name);
    CASE(bytes__near_overflow__no_memory_is_exceeded);
    CASE(many__256_requests__in_a_millisecond);
    return check_done();
}
