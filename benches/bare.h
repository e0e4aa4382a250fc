/*
 * The bare loops that `hapi-bench transport` is compared with: one connection, one thread, writes with
 * immediate, and nothing of ours in between (no event loop, no callbacks, no ledger, no credits: a receiver
 * that is late makes the sender's device try again). bare.c has the two loops, bare_verbs.c and bare_ofi.c
 * what their library asks for.
 */
#ifndef HAPI_BENCHES_BARE_H
#define HAPI_BENCHES_BARE_H

#include "bench.h"

enum {
    BARE_SEND_MAX = 128, /* work requests posted; twice what the loops have outstanding */
    BARE_RECV_MAX = 1024,
    BARE_EVENTS = 32,
};

enum bare_kind { BARE_SENT, BARE_RECV, BARE_IMM };

struct bare_event {
    enum bare_kind kind;
    uint32_t imm;
    uint64_t id;     /* SENT: what was posted */
    const void *msg; /* RECV: a struct bench_request, valid until the next poll */
};

struct bare;

struct bare_ops {
    const char *transport;
    /* Waits for a peer, or connects; then the memory is registered. */
    int (*open)(struct bare *b, const struct bench_options *o, struct hapi_err *err);
    int (*accept)(struct bare *b, struct hapi_err *err);
    void (*hangup)(struct bare *b); /* ends the connection, keeps the listener */
    int (*write)(struct bare *b, const void *from, size_t n, uint64_t to, uint64_t key, uint32_t imm,
                 bool signal, uint64_t id);
    int (*send)(struct bare *b, const struct bench_request *r);
    int (*receive)(struct bare *b, uint32_t n); /* gives n receives back */
    /* 0 to BARE_EVENTS events, or HAPI_E*: HAPI_ECLOSED when the peer is gone. */
    int (*poll)(struct bare *b, struct bare_event *e);
    /* After a poll that gave nothing: sleeps until there may be something, or yields. */
    int (*wait)(struct bare *b);
};

/* The back end's struct begins with it. */
struct bare {
    const struct bare_ops *ops;
    const struct bench_options *options;
    uint8_t *area;      /* BENCH_AREA + BENCH_TAIL */
    uint64_t key, base; /* of it, for the other side */
    uint8_t *small;     /* a page of requests, then receives; registered too */
    uint64_t rnr;
};
#define BARE_SMALL_BYTES (4096 + BARE_RECV_MAX * sizeof(struct bench_request))

int bare_main(int argc, char **argv, struct bare *b, const char *program, const char *help);
int bare_error(struct hapi_err *err, int sys, const char *what);

#endif
