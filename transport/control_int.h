/*
 * Inside of a control connection, shared by control*.c.
 *
 *     RESOLVING -> CONNECTING ─┐
 *                   (accepted) ┴> TLS -> HELLO -> OPEN -> FLUSHING -> LINGERING -> CLOSED -> on_close, freed
 *
 * Until OPEN a peer costs the struct with its small buffers and a socket; the large buffers are taken when
 * its hello was good. CLOSED has released the socket and waits for its timer, which calls back and frees.
 */
#ifndef HAPI_TRANSPORT_CONTROL_INT_H
#define HAPI_TRANSPORT_CONTROL_INT_H

#include "address.h"
#include "control.h"
#include "tls.h"

enum {
    FRAME_HEADER = 8, /* u32 length of what follows | u16 type | u16 flags */
    HELLO_MAX = 4096, /* bytes of the first frame's body */
    SMALL_RX = FRAME_HEADER + HELLO_MAX,
    SMALL_TX = 2048,
};

enum control_state {
    CONTROL_RESOLVING,
    CONTROL_CONNECTING,
    CONTROL_TLS,
    CONTROL_HELLO,
    CONTROL_OPEN,
    CONTROL_FLUSHING,  /* sends what is queued, reads and drops what comes */
    CONTROL_LINGERING, /* has shut down its side, waits for the peer's end so that no reset eats our bytes */
    CONTROL_CLOSED,
};

struct hapi_control_limits {
    int64_t handshake_ns, silence_ns;
    size_t send_max;
    uint32_t max_pending, max_open;
    uint16_t major_min, major_max;
    uint64_t heartbeat_ms;
    uint8_t hello[HELLO_MAX];
    size_t hello_n;
};

/* A byte ring: the queue of what goes out. */
struct control_ring {
    uint8_t *p;
    size_t size, head, used;
};

struct hapi_control {
    struct hapi_watch watch; /* first: a watch is its connection */
    struct hapi_timer timer;
    struct hapi_timer again; /* more than one turn's messages are there */
    struct hapi_loop *loop;
    struct hapi_control_listener *listener; /* NULL: outgoing, or the listener is gone */
    struct hapi_control *prev, *next;       /* in the listener's list of pending or open ones */
    struct hapi_control_handler handler;
    void *user, *listener_user;
    enum control_state state;
    bool server, opened, in_ready, drain_due, tx_broken;
    bool stalled; /* what we sent is not read: nothing more is taken until it is */
    struct hapi_stream stream;
    struct hapi_tls tls; /* outgoing: our own context */
    struct hapi_lookup *lookup;
    struct hapi_addresses addresses;
    int next_address;
    struct hapi_control_limits lim;
    int64_t accepted_ns, deadline, last_rx, last_tx, heartbeat_ns;
    uint64_t queued, running; /* told in heartbeats */
    uint8_t *rx;
    size_t rx_size, rx_used, rx_at;
    struct control_ring tx;
    uint8_t *large; /* one allocation: rx and tx after on_open */
    struct hapi_err why;
    struct hapi_msg_error told; /* the peer's HAPI_MSG_ERROR of id 0; text in told_text */
    char told_text[HAPI_ERR_TEXT];
    char host[HAPI_NAME_MAX + 1];
    uint16_t port;
    char peer[HAPI_ADDRESS_TEXT], local[HAPI_ADDRESS_TEXT];
    uint8_t small_rx[SMALL_RX], small_tx[SMALL_TX];
};

struct hapi_control_listener {
    struct hapi_watch watch; /* first */
    struct hapi_timer retry; /* after accept() ran out of descriptors */
    struct hapi_loop *loop;
    struct hapi_control_limits lim;
    struct hapi_control_handler handler;
    void *user;
    struct hapi_tls tls;
    struct hapi_control *pending, *pending_last; /* newest first */
    struct hapi_control *open;
    uint32_t n_pending, n_open;
    uint16_t port;
};

/* control.c */
/* Encodes what we say, with our heartbeat interval in it. */
int hapi_control_hello_set(struct hapi_control_limits *lim, const struct hapi_hello *hello,
                           struct hapi_err *err);
int hapi_control_limits_set(struct hapi_control_limits *lim, const struct hapi_control_options *opt,
                            struct hapi_err *err);
struct hapi_control *hapi_control_new(struct hapi_loop *loop, const struct hapi_control_handler *handler,
                                      const struct hapi_control_limits *lim);
/* The socket is connected (or accepted): names both ends, starts TLS or hello. */
int hapi_control_started(struct hapi_control *c, const struct hapi_tls *tls, struct hapi_err *err);
/* CLOSED now, on_close (where it is due) from the loop. */
void hapi_control_fail(struct hapi_control *c, const struct hapi_err *why);
/* Tells the peer, then as fail. */
void hapi_control_refuse(struct hapi_control *c, int code, const char *text);
void hapi_control_ready(struct hapi_watch *w, uint32_t revents);
int hapi_control_hello_came(struct hapi_control *c, const uint8_t *body, size_t n);

/* control_io.c */
int hapi_control_queue(struct hapi_control *c, unsigned type, const void *body, size_t n);
void hapi_control_flush(struct hapi_control *c);
void hapi_control_read(struct hapi_control *c);
void hapi_control_events(struct hapi_control *c);

/* control_listen.c: list keeping */
void hapi_control_listener_opened(struct hapi_control *c);
void hapi_control_listener_gone(struct hapi_control *c);
/* max_open are open, and none of them only waits for its end: that one would have been dropped. */
bool hapi_control_listener_full(struct hapi_control_listener *l);

#endif
