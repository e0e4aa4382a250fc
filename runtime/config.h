/*
 * Configuration of hapi-rt: one table makes the flags, the config file's keys, --help and docs.
 *
 * A config file has lines `key = value` (`#` starts a comment); keys are the flags' names. Flags win over
 * the file. Strings live as long as the config.
 */
#ifndef HAPI_RUNTIME_CONFIG_H
#define HAPI_RUNTIME_CONFIG_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "err.h"

/* X(field, kind, default as text, argument, help) */
#define HAPI_CONFIG(X)                                                                                       \
    X(data, STRING, "", "DIR", "folder of datasets: class folders with JPEGs, or *.tar shards (required)")   \
    X(listen, STRING, "127.0.0.1:7471", "HOST:PORT", "control address; port 0 takes a free one")             \
    X(metrics, STRING, "", "HOST:PORT",                                                                      \
      "GET /metrics for Prometheus, and /healthz: no key is asked for there")                                \
    X(transport, STRING, "auto", "auto|ofi|verbs", "how activations may travel; auto: both that work here")  \
    X(backend, STRING, "auto", "auto|cudnn|onednn|ref",                                                      \
      "what runs the prefix; auto: a GPU that answers, else oneDNN")                                         \
    X(config, STRING, "", "FILE", "read these keys from a file first")                                       \
    X(key, STRING, "", "FILE", "pre-shared keys (identity:hex a line): TLS 1.3 on the control channel")      \
    X(tenants, STRING, "", "FILE", "what each identity of --key may see and take: docs/tenants.md")          \
    X(insecure, BOOL, "false", "", "serve an address off loopback without a key")                            \
    X(cache, STRING, "", "DIR", "where dataset indexes are kept between runs, and activations")              \
    X(cache_memory, SIZE, "0", "BYTES",                                                                      \
      "memory for activations that were computed: what is asked for again is not computed again")            \
    X(cache_disk, SIZE, "0", "BYTES", "the same in the folder of --cache, between runs, too")                \
    X(threads, UINT, "0", "N", "compute threads; 0: as many as the cores allow")                             \
    X(intra_op, UINT, "1", "N", "cores that each of them uses for one micro-batch: latency, not throughput") \
    X(micro_batch, UINT, "8", "N", "most images computed at once (the batch a client trains on is its own)") \
    X(batches, UINT, "8", "N", "micro-batches in flight")                                                    \
    X(read_area, SIZE, "4M", "BYTES", "encoded images of one micro-batch")                                   \
    X(send_area, SIZE, "8M", "BYTES", "activations of one micro-batch")                                      \
    X(memory, SIZE, "0", "BYTES",                                                                            \
      "for models, weights and plans on the CPU; 0: most of what is free at the start")                      \
    X(adapt, STRING, "on", "on|off",                                                                         \
      "smaller micro-batches so that more networks fit into --memory, and who does not fit waits; off: is "  \
      "refused")                                                                                             \
    X(gpu_memory, SIZE, "0", "BYTES", "of a GPU, for plans and weights, taken at the start; 0: nearly all")  \
    X(autotune, BOOL, "false", "",                                                                           \
      "tries out which of cuDNN's engines are the fastest here, once, and keeps that: docs/gpu.md")          \
    X(gpudirect, STRING, "auto", "auto|off",                                                                 \
      "activations go from a GPU's memory to the NIC (verbs), where both can")                               \
    X(max_model, SIZE, "1G", "BYTES", "largest model a client may upload")                                   \
    X(max_sessions, UINT, "64", "N", "clients served at once")                                               \
    X(max_requests, UINT, "64", "N", "requests of one client in service at once")                            \
    X(topology, BOOL, "false", "", "says where compute threads would be placed, and ends")                   \
    X(device, STRING, "", "NAME", "verbs: RDMA device; default: the one that routes to the client")          \
    X(gid_index, ROUTE, "", "N", "verbs: its source address, by index in the port's GID table")              \
    X(mtu, ROUTE, "", "BYTES", "verbs: path MTU: 256, 512, 1024, 2048 or 4096")                              \
    X(tos, ROUTE, "", "N", "verbs: traffic class, 0..255")                                                   \
    X(sl, ROUTE, "", "N", "verbs: service level, 0..15")                                                     \
    X(provider, STRING, "tcp", "tcp|verbs", "ofi: provider of libfabric")                                    \
    X(busy_poll_us, UINT, "0", "N", "look for completions so long before sleeping; 0: never")                \
    X(log_level, STRING, "info", "LEVEL", "debug, info, warn or error")

struct hapi_config {
#define HAPI_FIELD_STRING(f) char f[1024];
#define HAPI_FIELD_BOOL(f) bool f;
#define HAPI_FIELD_UINT(f) uint32_t f;
#define HAPI_FIELD_SIZE(f) uint64_t f;
#define HAPI_FIELD_ROUTE(f) int32_t f; /* -1: as the route says */
#define X(field, kind, value, arg, help) HAPI_FIELD_##kind(field)
    HAPI_CONFIG(X)
#undef X
};

/* 0: use *c. 1: --help or --version was asked and printed. HAPI_EINVAL: usage; HAPI_ENOENT/HAPI_EFORMAT:
 * the config file (named, with the line). */
int hapi_config_parse(struct hapi_config *c, int argc, char **argv, struct hapi_err *err);
void hapi_config_help(FILE *f);
/* A whole number, with `suffix` also with k, M, G or T for powers of 1024. HAPI_EINVAL: it is none, or above
 * max. */
int hapi_config_number(const char *text, bool suffix, uint64_t max, uint64_t *out);

#endif
