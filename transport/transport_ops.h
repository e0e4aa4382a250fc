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
    HAPI_DEVICE_PIECES = 8,
};

/* Device memory that writes may come from. */
struct hapi_device_piece {
    void *base;
    size_t n;
    int fd; /* of its dma-buf; -1: by address */
    uint64_t offset;
};

struct hapi_fabric {
    const struct hapi_fabric_ops *ops;
    struct hapi_loop *loop;
    const struct hapi_slab *slab;   /* NULL: none */
    struct hapi_fabric_options opt; /* numbers are not zero, strings are NULL: */
    char device[64], provider[32];  /* "": any */
    struct hapi_fabric_path path;
    struct hapi_device_piece device_memory[HAPI_DEVICE_PIECES];
    int n_device_memory;
};

struct hapi_listener {
    struct hapi_fabric *fabric;
    struct hapi_listener_handler handler;
    void *user;
    uint16_t port;
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
    /* Work requests complete in the order in which they were posted. Number i is at ops[i % max_ops]; NULL
     * there: nobody waits for it. */
    struct hapi_conn_op **ops;
    uint64_t posted, completed;
    uint32_t unsignaled; /* posted since the last one that asks for a completion */
    uint32_t granted;    /* immediates that may still come */
    size_t max_write;    /* bytes of one work request; set by the back end before it is open */
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
    uint64_t number; /* what hapi_conn_done() is told */
    bool signaled;   /* asks for a completion; without one it completes with a later one that does */
};

/* Of one connection. */
struct hapi_conn_ops {
    /* Allocates, calls hapi_conn_init(), starts to connect. An error: nothing is left of it. */
    int (*connect)(struct hapi_conn **out, const struct hapi_conn *proto, const char *host, uint16_t port,
                   const uint8_t nonce[HAPI_NONCE_SIZE], struct hapi_err *err);
    /* The fence: when it returns, no work request of either side touches memory any more. Once. */
    void (*stop)(struct hapi_conn *c);
    /* Frees the struct; after stop and on_close. */
    void (*free)(struct hapi_conn *c);
    int (*expose)(struct hapi_conn *c, void *base, size_t n, uint64_t *key, uint64_t *remote_base,
                  struct hapi_err *err);
    /* 0, and later hapi_conn_done() of it or, where it is not signaled, of a later one; or HAPI_EBUSY,
     * HAPI_ETRANSPORT. At most c->max_write bytes. */
    int (*post)(struct hapi_conn *c, const struct hapi_wr *wr);
    /* Receives for n more immediates; NULL: immediates need none. */
    int (*grant)(struct hapi_conn *c, uint32_t n);
    /* Receiver-not-ready events since the connection was made; NULL: there are none. */
    uint64_t (*rnr)(const struct hapi_conn *c);
};

struct hapi_fabric_ops {
    const char *kind;
    const struct hapi_conn_ops *conn;
    /* 0, or HAPI_EUNSUPPORTED with the reason. */
    int (*probe)(struct hapi_err *err);
    /* *proto is filled; the back end allocates its own struct and copies it. */
    int (*open)(struct hapi_fabric **out, const struct hapi_fabric *proto, struct hapi_err *err);
    void (*close)(struct hapi_fabric *f);
    int (*listener_open)(struct hapi_listener **out, const struct hapi_listener *proto, const char *host,
                         uint16_t port, struct hapi_err *err);
    void (*listener_close)(struct hapi_listener *l);
    /* As hapi_fabric_data_host(); NULL: host as it is. */
    int (*data_host)(const struct hapi_fabric *f, const char *host, char out[HAPI_NAME_MAX + 1],
                     struct hapi_err *err);
    int (*add_device_memory)(struct hapi_fabric *f, const struct hapi_device_piece *d,
                             struct hapi_err *err); /* or NULL */
};

/* ---- for back ends ---- */

/* Whether [p, p+n) lies in [base, base+size). */
static inline bool hapi_holds(const void *base, size_t size, const void *p, size_t n)
{
    uintptr_t at = (uintptr_t)p - (uintptr_t)base;

    return at <= size && n <= size - at;
}

/* Copies proto, takes memory for operations, sets the deadline for connecting. HAPI_ENOMEM. */
int hapi_conn_init(struct hapi_conn *c, const struct hapi_conn *proto);
/* Frees what init took, when the connection never came to be. */
void hapi_conn_fini(struct hapi_conn *c);
/* Asks the listener's user. A connection to copy from, or false: refuse the peer. */
bool hapi_conn_admit(struct hapi_conn *proto, struct hapi_listener *l, const uint8_t *nonce, size_t n);
void hapi_conn_opened(struct hapi_conn *c);
void hapi_conn_recv_came(struct hapi_conn *c, const void *msg, size_t n);
void hapi_conn_imm_came(struct hapi_conn *c, uint32_t imm);
/* Work request `number` has ended with `status`, all before it well. */
void hapi_conn_done(struct hapi_conn *c, uint64_t number, int status);
/* Stops the back end and lets on_close come; later calls change nothing. */
void hapi_conn_fail(struct hapi_conn *c, const struct hapi_err *why);
/* The same with a text of its own. */
void hapi_conn_failf(struct hapi_conn *c, int code, long sys, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));

extern const struct hapi_fabric_ops hapi_fabric_ofi;
extern const struct hapi_fabric_ops hapi_fabric_verbs;

#endif
