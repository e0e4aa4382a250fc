/*
 * What the benchmarks of the transport share: `hapi-bench transport` and the bare loops that it is compared
 * with (bare_verbs, bare_ofi) take the same options, exchange the same messages and are timed and reported by
 * the same code; they differ in how bytes move.
 *
 *     node (--serve)                                   peer (--peer)
 *       slab: `depth` payloads                           window: `slots` payloads, then one page of answers
 *       <──────────────── struct bench_request ────────  (a send)
 *       write with immediate: payload ────────────────>  slot i % slots; immediate: i, or its crc32c
 *       write with immediate: struct bench_done ──────>  after the last one
 *
 * A request of BENCH_FLOOD is `count` writes of `size` bytes; BENCH_CREDIT allows more of them; BENCH_PING is
 * answered by a write of BENCH_PING_BYTES. Units: bytes, seconds, MB = 1e6, GB = 1e9 bytes.
 */
#ifndef HAPI_BENCHES_BENCH_H
#define HAPI_BENCHES_BENCH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "err.h"
#include "transport.h"

enum {
    BENCH_OK = 0,
    BENCH_FAILURE = 1,
    BENCH_USAGE = 2,
    BENCH_SIZES_MAX = 32,
    BENCH_ROUNDS_MAX = 99,
    BENCH_DEPTH_MAX = 64,
    BENCH_SIZE_MAX = 16 << 20,
    BENCH_AREA = 32 << 20, /* payload bytes of a slab, and of a window */
    BENCH_TAIL = 4096,     /* after them: answers, each of BENCH_PING_BYTES */
    BENCH_SLOTS_MAX = 512,
    BENCH_PING_BYTES = 64,
    BENCH_PINGS_MAX = 200000,
};

/* ---- options ---- */

enum bench_what { BENCH_ALL, BENCH_GOODPUT, BENCH_LATENCY };

struct bench_options {
    const char *program;
    bool serve;
    char host[HAPI_NAME_MAX + 1];
    uint16_t port;
    const char *transport; /* "ofi" or "verbs" */
    const char *device;    /* verbs; NULL: the one that routes to the peer */
    struct hapi_fabric_path path;
    size_t sizes[BENCH_SIZES_MAX];
    int n_sizes;
    double seconds; /* for each size, all rounds together */
    int rounds;
    uint64_t count; /* writes of a round; 0: as many as fit `seconds` */
    uint32_t depth; /* writes outstanding */
    uint32_t busy_poll_us;
    bool checksum; /* measure with one as well */
    enum bench_what what;
    bool json;
    const char *json_path; /* NULL: stdout */
};

/* Fills *o from argv. 0, or an exit code plus one when the program is to end at once (help, usage).
 * `transport` NULL: the program takes --transport; else that is the one it has, and no options of the path.
 */
int bench_options_parse(struct bench_options *o, int argc, char **argv, const char *program,
                        const char *transport, const char *help);

/* ---- messages ---- */

#define BENCH_MAGIC 0x48424e31u

enum bench_op { BENCH_FLOOD = 1, BENCH_CREDIT, BENCH_PING, BENCH_BYE };

struct bench_request {
    uint32_t magic, op;
    uint64_t size, count;
    uint64_t base, key; /* of the window */
    uint32_t slots;     /* payloads that the window holds */
    uint32_t depth;     /* at most so many writes outstanding */
    uint32_t credit;    /* writes that may be sent now (FLOOD), or more than before (CREDIT) */
    uint32_t checksum;  /* 1: the immediate is the payload's crc32c */
    uint64_t zero;
};
_Static_assert(sizeof(struct bench_request) == BENCH_PING_BYTES, "a ping is a request");

struct bench_done {
    uint64_t magic;
    uint64_t cpu_ns; /* of the node's process, user and system, since the request */
    uint64_t writes, completions, rnr;
    uint64_t zero[3];
};
_Static_assert(sizeof(struct bench_done) == BENCH_PING_BYTES, "answers have one size");

/* Whether a node may do what a request says with a slab of BENCH_AREA bytes. */
bool bench_request_valid(const void *msg, size_t n);
/* Payloads outstanding, and places in the window, for writes of `size` bytes. */
uint32_t bench_depth(const struct bench_options *o, size_t size);
uint32_t bench_slots(size_t size);
/* Every so many writes one is signalled: the first quarter of the queue is free while the rest is busy. */
uint32_t bench_signal_every(uint32_t depth);

/* ---- measuring, on the peer ---- */

struct bench_round {
    uint64_t writes, completions, rnr;
    double seconds, node_cpu, peer_cpu;
};

struct bench_ops {
    bool can_checksum;
    /* Asks for `count` writes of `size` bytes, waits for them, checks that all came in order and intact. */
    int (*flood)(void *side, size_t size, uint64_t count, bool checksum, struct bench_round *out,
                 struct hapi_err *err);
    /* `n` round trips one after the other; their times into ns[]. */
    int (*ping)(void *side, uint32_t n, int64_t *ns, struct hapi_err *err);
};

struct bench_row {
    size_t size;
    bool checksum;
    uint32_t depth;
    int rounds;
    uint64_t writes, completions, rnr;
    double seconds, node_cpu, peer_cpu; /* of all rounds */
    double mbps, mbps_min, mbps_max;    /* median, extremes of the rounds */
};

struct bench_latency {
    uint32_t n; /* 0: not measured */
    double min_us, median_us, p99_us;
};

struct bench_report {
    struct bench_row rows[2 * BENCH_SIZES_MAX];
    int n_rows;
    struct bench_latency latency;
};

int bench_measure(struct bench_report *out, const struct bench_options *o, const struct bench_ops *ops,
                  void *side, struct hapi_err *err);
/* Table or JSON, where the options say. Exit code. */
int bench_report_print(const struct bench_report *r, const struct bench_options *o);

struct bench_times {
    size_t n;
    double min, median, p99;
};
/* Sorts v[0..n), n >= 1. */
void bench_times_of(double *v, size_t n, struct bench_times *out);

/* CPU time of this process, user and system, in nanoseconds. */
int64_t bench_cpu_ns(void);
/* "PROGRAM: text" on stderr; BENCH_FAILURE. */
int bench_fail(const char *program, const struct hapi_err *err);

/* ---- subcommands of hapi-bench ---- */

int bench_transport(int argc, char **argv);
int bench_cudnn_plans(int argc, char **argv);
int bench_kernels(int argc, char **argv);
int bench_overlap(int argc, char **argv);
int bench_planner(int argc, char **argv);

#endif
