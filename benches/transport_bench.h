/* The two ends of `hapi-bench transport`. Each opens its own loop and fabric. */
#ifndef HAPI_BENCHES_TRANSPORT_BENCH_H
#define HAPI_BENCHES_TRANSPORT_BENCH_H

#include "bench.h"

/* The benchmark has no control channel: the data connection is its own, and what a node gives away is
 * nothing but the pattern in its slab. */
static const uint8_t bench_nonce[HAPI_NONCE_SIZE] = "hapi-bench transport";

struct hapi_fabric_options bench_fabric_options(const struct bench_options *o);

/* Serves one peer after the other until SIGTERM or SIGINT. */
int bench_node_serve(const struct bench_options *o, struct hapi_err *err);

struct bench_peer;
int bench_peer_open(struct bench_peer **out, const struct bench_options *o, struct hapi_err *err);
void bench_peer_close(struct bench_peer *p); /* NULL is allowed */
/* struct bench_ops: `side` is the struct bench_peer. */
int bench_peer_flood(void *side, size_t size, uint64_t count, bool checksum, struct bench_round *out,
                     struct hapi_err *err);
int bench_peer_ping(void *side, uint32_t n, int64_t *ns, struct hapi_err *err);

#endif
