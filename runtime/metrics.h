/*
 * What the node does, for Prometheus: `GET /metrics`, and `/healthz` (200 while it serves, 503 while it
 * drains). On the loop's thread, without a thread or a lock of its own: libmicrohttpd's descriptor is one of
 * the loop's.
 */
#ifndef HAPI_RUNTIME_METRICS_H
#define HAPI_RUNTIME_METRICS_H

#include <stddef.h>
#include <stdint.h>

#include "err.h"

struct hapi_rt;
struct hapi_session;

/* Of a micro-batch, in order; HAPI_STAGE_* of stage.h are those of the network alone. */
#define HAPI_METRIC_STAGES(X)                                                                                \
    X(HAPI_METRIC_QUEUE, "queue")                                                                            \
    X(HAPI_METRIC_READ, "read")                                                                              \
    X(HAPI_METRIC_WAIT, "wait")                                                                              \
    X(HAPI_METRIC_DECODE, "decode")                                                                          \
    X(HAPI_METRIC_COMPUTE, "compute")                                                                        \
    X(HAPI_METRIC_CONVERT, "convert")                                                                        \
    X(HAPI_METRIC_SEND, "send")

enum hapi_metric_stage {
#define X(stage, name) stage,
    HAPI_METRIC_STAGES(X)
#undef X
        HAPI_METRIC_STAGES_N
};
extern const char *const hapi_metric_stage_names[HAPI_METRIC_STAGES_N];

enum { HAPI_HISTOGRAM_BUCKETS = 16 }; /* 100 us, twice that, ... 3.3 s */

struct hapi_histogram {
    uint64_t ns, n;
    uint64_t within[HAPI_HISTOGRAM_BUCKETS]; /* each for itself; what is longer is in n only */
};
void hapi_histogram_add(struct hapi_histogram *h, int64_t ns);

struct hapi_metrics;
/* address "": there is none, *out is NULL. Errors: HAPI_EINVAL (the address), HAPI_ESYS. */
int hapi_metrics_open(struct hapi_metrics **out, struct hapi_rt *rt, const char *address,
                      struct hapi_err *err);
void hapi_metrics_close(struct hapi_metrics *m);

#endif
