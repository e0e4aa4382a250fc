/*
 * Rounds and figures. Before a size is timed, writes with checksums show that the data is right; then the
 * number of writes of a round is found by trying, which is the warm-up as well.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "bench.h"
#include "clock.h"

enum { PINGS_FIRST = 64, PINGS_MIN = 200, SIGNALS = 4 };

int64_t bench_cpu_ns(void)
{
    struct rusage u;

    getrusage(RUSAGE_SELF, &u);
    return (u.ru_utime.tv_sec + u.ru_stime.tv_sec) * HAPI_NS_PER_S +
           (u.ru_utime.tv_usec + u.ru_stime.tv_usec) * 1000;
}

int bench_fail(const char *program, const struct hapi_err *err)
{
    fprintf(stderr, "%s: %s\n", program, err->text);
    return BENCH_FAILURE;
}

uint32_t bench_depth(const struct bench_options *o, size_t size)
{
    size_t fit = BENCH_AREA / size;

    return fit < o->depth ? (uint32_t)fit : o->depth;
}

uint32_t bench_slots(size_t size)
{
    size_t fit = BENCH_AREA / size;

    return fit < BENCH_SLOTS_MAX ? (uint32_t)fit : BENCH_SLOTS_MAX;
}

uint32_t bench_signal_every(uint32_t depth)
{
    return depth < SIGNALS ? 1 : depth / SIGNALS;
}

bool bench_request_valid(const void *msg, size_t n)
{
    const struct bench_request *r = msg;

    if (n != sizeof *r || r->magic != BENCH_MAGIC || r->op < BENCH_FLOOD || r->op > BENCH_BYE)
        return false;
    if (r->op != BENCH_FLOOD)
        return true;
    return r->size >= sizeof(uint64_t) && r->size <= BENCH_SIZE_MAX && r->count > 0 && r->depth > 0 &&
           r->depth <= BENCH_DEPTH_MAX && r->depth * r->size <= BENCH_AREA && r->slots > 0 &&
           r->slots <= BENCH_SLOTS_MAX && r->slots * r->size <= BENCH_AREA;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

static double median(const double *sorted, size_t n)
{
    return n % 2 ? sorted[n / 2] : (sorted[n / 2 - 1] + sorted[n / 2]) / 2;
}

void bench_times_of(double *v, size_t n, struct bench_times *out)
{
    qsort(v, n, sizeof *v, by_value);
    *out = (struct bench_times){n, v[0], median(v, n), v[n - 1 - n / 100]};
}

/* How many writes take so long; each try is four times as many. */
static int calibrate(const struct bench_options *o, const struct bench_ops *ops, void *side,
                     struct bench_row *row, uint64_t *count, struct hapi_err *err)
{
    uint64_t n = row->depth;
    struct bench_round r;

    if (ops->can_checksum) {
        int rc = ops->flood(side, row->size, bench_slots(row->size) + 1, true, &r, err);
        if (rc)
            return rc;
    }
    for (;; n *= 4) {
        int rc = ops->flood(side, row->size, n, row->checksum, &r, err);
        if (rc)
            return rc;
        if (r.seconds >= o->seconds / 10 || n > UINT32_MAX)
            break;
    }
    *count = (uint64_t)((double)n / r.seconds * o->seconds / o->rounds);
    *count = *count < row->depth ? row->depth : *count;
    return 0;
}

static int measure_row(struct bench_row *row, const struct bench_options *o, const struct bench_ops *ops,
                       void *side, struct hapi_err *err)
{
    double mbps[BENCH_ROUNDS_MAX];
    uint64_t count = o->count;
    int rc = 0;

    row->depth = bench_depth(o, row->size);
    row->rounds = o->rounds;
    if (!count)
        rc = calibrate(o, ops, side, row, &count, err);
    for (int i = 0; rc == 0 && i < o->rounds; i++) {
        struct bench_round r;
        rc = ops->flood(side, row->size, count, row->checksum, &r, err);
        if (rc)
            return rc;
        row->writes += r.writes;
        row->completions += r.completions;
        row->rnr += r.rnr;
        row->seconds += r.seconds;
        row->node_cpu += r.node_cpu;
        row->peer_cpu += r.peer_cpu;
        mbps[i] = 1e-6 * (double)r.writes * (double)row->size / r.seconds;
    }
    if (rc)
        return rc;
    qsort(mbps, (size_t)o->rounds, sizeof *mbps, by_value);
    row->mbps = median(mbps, (size_t)o->rounds);
    row->mbps_min = mbps[0];
    row->mbps_max = mbps[o->rounds - 1];
    return 0;
}

static int measure_latency(struct bench_latency *l, const struct bench_options *o,
                           const struct bench_ops *ops, void *side, struct hapi_err *err)
{
    int64_t *ns = malloc(BENCH_PINGS_MAX * sizeof *ns), all = 0;
    double *us = malloc(BENCH_PINGS_MAX * sizeof *us);
    int rc = ns && us ? 0 : hapi_err_set(err, HAPI_ENOMEM, 0, "no memory for %d times", BENCH_PINGS_MAX);

    if (rc == 0)
        rc = ops->ping(side, PINGS_FIRST, ns, err);
    if (rc == 0)
        rc = ops->ping(side, PINGS_FIRST, ns, err);
    if (rc)
        goto end;
    for (int i = 0; i < PINGS_FIRST; i++)
        all += ns[i];
    double n = o->seconds * 1e9 / ((double)(all > 0 ? all : 1) / PINGS_FIRST);
    l->n = n < PINGS_MIN ? PINGS_MIN : n > BENCH_PINGS_MAX ? BENCH_PINGS_MAX : (uint32_t)n;
    rc = ops->ping(side, l->n, ns, err);
    if (rc)
        goto end;
    for (uint32_t i = 0; i < l->n; i++)
        us[i] = 1e-3 * (double)ns[i] / 2;
    struct bench_times t;
    bench_times_of(us, l->n, &t);
    l->min_us = t.min;
    l->median_us = t.median;
    l->p99_us = t.p99;
end:
    free(ns);
    free(us);
    return rc;
}

int bench_measure(struct bench_report *out, const struct bench_options *o, const struct bench_ops *ops,
                  void *side, struct hapi_err *err)
{
    int rc = 0;

    memset(out, 0, sizeof *out);
    for (int i = 0; rc == 0 && o->what != BENCH_LATENCY && i < o->n_sizes; i++)
        for (int sum = 0; rc == 0 && sum <= (o->checksum && ops->can_checksum); sum++) {
            struct bench_row *row = &out->rows[out->n_rows++];
            row->size = o->sizes[i];
            row->checksum = sum;
            rc = measure_row(row, o, ops, side, err);
        }
    if (rc == 0 && o->what != BENCH_GOODPUT)
        rc = measure_latency(&out->latency, o, ops, side, err);
    return rc;
}
