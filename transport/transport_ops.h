/*
 * The back-end side of transport.h. A back end embeds struct hapi_fabric, hapi_listener and hapi_conn first
 * in its own structs, fills a const table, and is listed in transport.c. It moves bytes and reports what
 * happened; states, credits, outstanding operations and the order of callbacks are kept in transport.c.
 * The loop's thread.
 */
#ifndef HAPI_TRANSPORT_OPS_H
#define HAPI_TRANSPORT_OPS_H

#include "transport.h"

enum {
    HAPI_SEND_INLINE = 256, /* bytes of a send from memory that nobody registered */
    HAPI_EXPOSE_MAX = 8,
};

struct hapi_fabric {
    const struct hapi_fabric_ops *ops;
    struct hapi_loop *loop;
    const struct hapi_slab *slab;   /* NULL: none */
    struct hapi_fabric_options opt; /* no zero in it but device */
    char device[64];
};

struct hapi_listener {
    struct hapi_fabric *fabric;
    struct hapi_listener_handler handler;
    void *user;
    uint16_t port;
};

/* An outstanding work request; the back end hands its address to the hardware and back. */
struct hapi_conn_slot {
    struct hapi_conn_op *op; /* NULL: nobody waits for it */
    uint32_t next;           /* free list */
    bool used;
};

enum hapi_conn_state { HAPI_CONN_CONNECTING, HAPI_CONN_OPEN, HAPI_CONN_CLOSED };

struct hapi_conn {
    struct hapi_fabric *fabric;
    struct hapi_conn_handler handler;
    void *user;
    enum hapi_conn_state state;
    bool server;
    struct hapi_timer timer; /* CONNECTING: the deadline; CLOSED: on_close */
    struct hapi_conn_stats stats;
    struct hapi_conn_slot *slots; /* max_ops of them */
    uint32_t free_slot, slots_used;
    uint32_t granted; /* immediates that may still come */
    struct {
        const uint8_t *base;
        size_t n;
    } exposed[HAPI_EXPOSE_MAX];
    int n_exposed;
    struct hapi_err why;
};

enum hapi_wr_kind { HAPI_WR_WRITE, HAPI_WR_WRITE_IMM, HAPI_WR_SEND };

struct hapi_wr {
    enum hapi_wr_kind kind;
    const void *local;
    size_t n;
    uint64_t remote, key;
    uint32_t imm;
};

struct hapi_fabric_ops {
    const char *kind;
    /* 0, or HAPI_EUNSUPPORTED with the reason. */
    int (*probe)(struct hapi_err *err);
    /* *proto is filled; the back end allocates its own struct and copies it. */
    int (*fabric_open)(struct hapi_fabric **out, const struct hapi_fabric *proto, struct hapi_err *err);
    void (*fabric_close)(struct hapi_fabric *f);
    int (*listener_open)(struct hapi_listener **out, const struct hapi_listener *proto, const char *host,
                         uint16_t port, struct hapi_err *err);
    void (*listener_close)(struct hapi_listener *l);
    /* Allocates, calls hapi_conn_init(), starts to connect. An error: nothing is left of it. */
    int (*connect)(struct hapi_conn **out, const struct hapi_conn *proto, const char *host, uint16_t port,
                   const uint8_t nonce[HAPI_NONCE_SIZE], struct hapi_err *err);
    /* The fence: when it returns, no work request of either side touches memory any more. Once. */
    void (*conn_stop)(struct hapi_conn *c);
    /* Frees the struct; after conn_stop and on_close. */
    void (*conn_free)(struct hapi_conn *c);
    int (*expose)(struct hapi_conn *c, void *base, size_t n, uint64_t *key, uint64_t *remote_base,
                  struct hapi_err *err);
    /* 0 and later one hapi_conn_done(slot); or HAPI_EBUSY, HAPI_ETRANSPORT. At most max_write() bytes. */
    int (*post)(struct hapi_conn *c, const struct hapi_wr *wr, struct hapi_conn_slot *slot);
    /* Receives for n more immediates; NULL: immediates need none. */
    int (*grant)(struct hapi_conn *c, uint32_t n);
    size_t (*max_write)(const struct hapi_conn *c);
};

/* ---- for back ends ---- */

/* Copies proto, takes the slots, sets the deadline for connecting. HAPI_ENOMEM. */
int hapi_conn_init(struct hapi_conn *c, const struct hapi_conn *proto);
/* Frees what init took, when the connection never came to be. */
void hapi_conn_fini(struct hapi_conn *c);
/* Asks the listener's user. A connection to copy from, or false: refuse the peer. */
bool hapi_conn_admit(struct hapi_conn *proto, struct hapi_listener *l, const uint8_t *nonce, size_t n);
void hapi_conn_opened(struct hapi_conn *c);
void hapi_conn_recv_came(struct hapi_conn *c, const void *msg, size_t n);
void hapi_conn_imm_came(struct hapi_conn *c, uint32_t imm);
void hapi_conn_done(struct hapi_conn *c, struct hapi_conn_slot *slot, int status);
/* Stops the back end and lets on_close come; later calls change nothing. */
void hapi_conn_fail(struct hapi_conn *c, const struct hapi_err *why);
/* The same with a text of its own. */
void hapi_conn_failf(struct hapi_conn *c, int code, long sys, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));

extern const struct hapi_fabric_ops hapi_fabric_ofi;
extern const struct hapi_fabric_ops hapi_fabric_verbs;

#endif
