/*
 * The control channel: framed messages over TCP, TLS 1.3 with a pre-shared key when there is one.
 *
 *     listener ── accept (bounded, deadlines) ──> control ── TLS ──> hello both ways ──> on_open
 *                                                  on_close <── messages ──┘
 *
 * Everything runs on the loop's thread and never blocks. Hello is exchanged inside: a peer that speaks
 * something else, another major version, or nothing within the deadline is told why (HAPI_MSG_ERROR where it
 * can read one) and dropped before on_open; at most max_pending such peers are held at once, oldest dropped.
 *
 * Lifetime: callbacks come from the loop, never from inside a call. on_close comes exactly once for every
 * connection that was opened or connecting, and is the last callback; the connection is freed after it
 * returns. hapi_control_close() makes on_close come (status HAPI_ECANCELED).
 */
#ifndef HAPI_TRANSPORT_CONTROL_H
#define HAPI_TRANSPORT_CONTROL_H

#include "clock.h"
#include "err.h"
#include "loop.h"
#include "wire.h"

/* The one liveness deadline: a peer of which nothing was heard for so long is gone, and with it its data
 * connection. An RC queue pair has no keepalive, and TCP's takes hours: heartbeats on this channel, at a
 * third of it, are what says that a cable was pulled. Room for what follows is left: all is over within 5 s.
 */
#define HAPI_SILENCE_NS (4 * HAPI_NS_PER_S)

struct hapi_control;
struct hapi_control_listener;

/* A key file: lines "identity:hex" (>= 16 bytes of key; # starts a comment). The client uses the first line,
 * a node accepts any. Readable by its owner only, or it is refused. */
struct hapi_keys; /* must outlive the listeners and connections that were given it */
int hapi_keys_load(struct hapi_keys **out, const char *path, struct hapi_err *err);
bool hapi_keys_have(const struct hapi_keys *k, const char *identity);
void hapi_keys_free(struct hapi_keys *k);

struct hapi_control_handler {
    void (*on_open)(struct hapi_control *c, const struct hapi_hello *peer);
    /* body is valid during the call. */
    void (*on_message)(struct hapi_control *c, enum hapi_message type, const void *body, size_t n);
    void (*on_close)(struct hapi_control *c, const struct hapi_err *why);
    /* may be NULL: all queued bytes have left, send more (model upload). */
    void (*on_drained)(struct hapi_control *c);
};

struct hapi_control_options {
    struct hapi_hello hello;      /* what we say; copied. versions 0: ours; heartbeat_ms is filled in */
    const struct hapi_keys *keys; /* NULL: plain TCP */
    int64_t handshake_ns;         /* deadline for TCP + TLS + hello; 0: 5 s */
    int64_t silence_ns;   /* nothing from the peer for so long: HAPI_ETIMEDOUT; 0: HAPI_SILENCE_NS. Heartbeats
                             are sent inside, at a third of it; on_message sees the peer's */
    size_t send_max;      /* queued bytes per connection; 0: 4 MiB; at least one frame of HAPI_FRAME_MAX */
    uint32_t max_pending; /* peers before on_open; 0: 64 */
    uint32_t max_open;    /* open connections of a listener; 0: 256 */
};

/* Resolves host and binds. port 0: a free one. Errors: HAPI_EINVAL, HAPI_EBUSY naming the address in use. */
int hapi_control_listen(struct hapi_control_listener **out, struct hapi_loop *loop, const char *host,
                        uint16_t port, const struct hapi_control_options *opt,
                        const struct hapi_control_handler *handler, void *user, struct hapi_err *err);
/* What peers accepted from now on are told; its heartbeat_ms is filled in as above. HAPI_EINVAL. */
int hapi_control_listener_hello(struct hapi_control_listener *l, const struct hapi_hello *hello,
                                struct hapi_err *err);
/* Of peers whose handshake begins from now on; the keys before must outlive their connections. */
void hapi_control_listener_keys(struct hapi_control_listener *l, const struct hapi_keys *keys);
uint16_t hapi_control_listener_port(const struct hapi_control_listener *l);
void hapi_control_listener_close(struct hapi_control_listener *l); /* its open connections live on */
void *hapi_control_listener_user(const struct hapi_control *c);    /* `user` of the listener it came from */

/* Numeric or name; the result comes by on_open or on_close. */
int hapi_control_connect(struct hapi_control **out, struct hapi_loop *loop, const char *host, uint16_t port,
                         const struct hapi_control_options *opt, const struct hapi_control_handler *handler,
                         void *user, struct hapi_err *err);
void hapi_control_close(struct hapi_control *c); /* NULL is allowed */
/* Sends what is queued (at most 1 s), then closes. */
void hapi_control_finish(struct hapi_control *c);

/* Messages go both ways: not before on_open, and no more once it has begun to end. */
bool hapi_control_is_open(const struct hapi_control *c);

void *hapi_control_user(const struct hapi_control *c); /* of connect; for accepted ones set by: */
void hapi_control_user_set(struct hapi_control *c, void *user);
const char *hapi_control_peer(const struct hapi_control *c);     /* "127.0.0.1:40112" */
const char *hapi_control_identity(const struct hapi_control *c); /* PSK identity, or NULL without TLS */
/* The numeric address at which the peer reached us. */
const char *hapi_control_local_host(const struct hapi_control *c);

/* Queues one frame. 0; HAPI_EBUSY: over send_max (wait for on_drained); HAPI_ECLOSED; HAPI_ETOOBIG. */
int hapi_control_send(struct hapi_control *c, enum hapi_message type, const void *body, size_t n);
/* What heartbeats say of this side's queue from now on. */
void hapi_control_load_set(struct hapi_control *c, uint64_t queued, uint64_t running);
/* hapi_msg_error_encode + send. */
int hapi_control_error(struct hapi_control *c, uint64_t id, int code, const char *text);

/* "host:port", "[v6]:port", ":port" (host ""), into host[HAPI_NAME_MAX+1] and port. HAPI_EINVAL. */
int hapi_address_parse(const char *s, char *host, uint16_t *port, struct hapi_err *err);
bool hapi_address_is_loopback(const char *host); /* every address it resolves to */

#endif
