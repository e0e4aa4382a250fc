/* What trace.c and the loader share. Internal to client/; the handle is hapi.h's. */
#ifndef HAPI_CLIENT_TRACE_H
#define HAPI_CLIENT_TRACE_H

#include <stdint.h>

#include "hapi.h"
#include "wire.h"

/* Any thread; a NULL trace takes nothing. Times of nodes are by their clocks until the trace is written. */

/* The number of a node, the same whoever asks for that name. */
uint32_t trace_node(struct hapi_trace *t, const char *name);
/* That node's clock less ours, by a round trip that took so long: the quickest counts. */
void trace_clock(struct hapi_trace *t, uint32_t node, int64_t offset_ns, int64_t rtt_ns);
/* A request of n samples was sent at `began`, and its last part has come. */
void trace_request(struct hapi_trace *t, uint32_t node, uint64_t generation, uint32_t n, int64_t began);
/* A part has come, with this record. */
void trace_part(struct hapi_trace *t, uint32_t node, const struct hapi_record *r, uint64_t bytes);
/* Compute thread `worker` worked at n samples of a request from `began` on, for so long. */
void trace_job(struct hapi_trace *t, int worker, uint64_t generation, uint32_t n, int64_t began,
               int64_t ended);
/* The caller waited for a batch. */
void trace_wait(struct hapi_trace *t, int64_t began, int64_t ended);

#endif
