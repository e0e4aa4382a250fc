#include "control.h"

#include <errno.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "clock.h"
#include "control_int.h"

#define FINISH_NS (1 * HAPI_NS_PER_S)
#define LINGER_REFUSED_NS (200 * HAPI_NS_PER_MS)

static void timer_fired(struct hapi_timer *t);
static void again_fired(struct hapi_timer *t);

int hapi_control_hello_set(struct hapi_control_limits *lim, const struct hapi_hello *hello,
                           struct hapi_err *err)
{
    struct hapi_hello h = *hello;

    if (h.major_min == 0 && h.major_max == 0) {
        h.major_min = h.major_max = HAPI_PROTO_MAJOR;
        h.minor = HAPI_PROTO_MINOR;
    }
    h.heartbeat_ms = lim->heartbeat_ms;
    lim->major_min = h.major_min;
    lim->major_max = h.major_max;
    int n = hapi_hello_encode(&h, lim->hello, sizeof lim->hello);
    if (n < 0)
        return hapi_err_set(err, HAPI_EINVAL, n, "the hello to send is malformed (role, versions, lengths)");
    lim->hello_n = (size_t)n;
    return 0;
}

int hapi_control_limits_set(struct hapi_control_limits *lim, const struct hapi_control_options *opt,
                            struct hapi_err *err)
{
    lim->handshake_ns = opt->handshake_ns ? opt->handshake_ns : 5 * HAPI_NS_PER_S;
    lim->silence_ns = opt->silence_ns ? opt->silence_ns : HAPI_SILENCE_NS;
    lim->send_max = opt->send_max ? opt->send_max : (size_t)4 << 20;
    lim->max_pending = opt->max_pending ? opt->max_pending : 64;
    lim->max_open = opt->max_open ? opt->max_open : 256;
    lim->heartbeat_ms = (uint64_t)(lim->silence_ns / 3 / HAPI_NS_PER_MS);
    if (lim->heartbeat_ms == 0)
        lim->heartbeat_ms = 1;
    /* Room for the largest frame, or a message that the protocol allows could never be queued. */
    if (lim->send_max < FRAME_HEADER + HAPI_FRAME_MAX)
        lim->send_max = FRAME_HEADER + HAPI_FRAME_MAX;
    return hapi_control_hello_set(lim, &opt->hello, err);
}

struct hapi_control *hapi_control_new(struct hapi_loop *loop, const struct hapi_control_handler *handler,
                                      const struct hapi_control_limits *lim)
{
    struct hapi_control *c = calloc(1, sizeof *c);

    if (!c)
        return NULL;
    c->loop = loop;
    c->handler = *handler;
    c->lim = *lim;
    c->stream.fd = -1;
    c->watch.ready = hapi_control_ready;
    c->timer.fire = timer_fired;
    c->again.fire = again_fired;
    c->rx = c->small_rx;
    c->rx_size = sizeof c->small_rx;
    c->tx = (struct control_ring){.p = c->small_tx, .size = sizeof c->small_tx};
    return c;
}

/* ---- the end ---- */

static void release(struct hapi_control *c)
{
    hapi_lookup_cancel(c->lookup);
    c->lookup = NULL;
    hapi_loop_unwatch(&c->watch);
    hapi_loop_timer_clear(c->loop, &c->again);
    hapi_stream_close(&c->stream);
    hapi_tls_fini(&c->tls);
}

void hapi_control_fail(struct hapi_control *c, const struct hapi_err *why)
{
    if (c->state == CONTROL_CLOSED)
        return;
    c->state = CONTROL_CLOSED;
    if (why != &c->why)
        c->why = *why;
    release(c);
    hapi_control_listener_gone(c);
    hapi_loop_timer_set(c->loop, &c->timer, hapi_clock_ns());
}

/* Nothing more from the peer is wanted: send what is queued, then wait for its end, until the deadline. */
static void begin_end(struct hapi_control *c, int64_t within_ns)
{
    c->state = CONTROL_FLUSHING;
    c->deadline = hapi_clock_ns() + within_ns;
    hapi_loop_timer_set(c->loop, &c->timer, c->deadline);
    hapi_control_flush(c);
    if (c->state == CONTROL_FLUSHING && c->tx.used == 0) {
        c->state = CONTROL_LINGERING;
        hapi_stream_shutdown(&c->stream);
    }
    hapi_control_events(c);
}

void hapi_control_refuse(struct hapi_control *c, int code, const char *text)
{
    if (c->state != CONTROL_OPEN && c->state != CONTROL_HELLO)
        return;
    hapi_err_set(&c->why, code, 0, "%s: %s", c->peer, text);
    hapi_control_error(c, 0, code, text);
    begin_end(c, LINGER_REFUSED_NS);
}

void hapi_control_close(struct hapi_control *c)
{
    struct hapi_err why;

    if (!c)
        return;
    hapi_err_set(&why, HAPI_ECANCELED, 0, "closed by this side");
    hapi_control_fail(c, &why);
}

void hapi_control_finish(struct hapi_control *c)
{
    if (c->state != CONTROL_OPEN) {
        if (c->state < CONTROL_OPEN)
            hapi_control_close(c);
        return;
    }
    hapi_err_set(&c->why, HAPI_ECANCELED, 0, "closed by this side");
    begin_end(c, FINISH_NS);
}

static void closed_fire(struct hapi_control *c)
{
    /* A peer that was refused before on_open was never shown to the listener's user. */
    if (c->opened || !c->server)
        c->handler.on_close(c, &c->why);
    free(c->large);
    free(c);
}

/* ---- time ---- */

static void open_tick(struct hapi_control *c)
{
    int64_t now = hapi_clock_ns();

    if (c->tx_broken) {
        hapi_control_read(c);
        if (c->state != CONTROL_CLOSED)
            hapi_err_context(&c->why, "%s", c->peer);
        hapi_control_fail(c, &c->why);
        return;
    }
    if (now - c->last_rx >= c->lim.silence_ns) {
        /* The loop may have been late, not the peer. */
        hapi_control_read(c);
        if (c->state != CONTROL_OPEN)
            return;
        if (now - c->last_rx >= c->lim.silence_ns) {
            struct hapi_err why;
            hapi_err_set(&why, HAPI_ETIMEDOUT, 0, "%s: %s for %.1f s", c->peer,
                         c->stalled ? "it has not read our answers" : "nothing was heard",
                         (double)(now - c->last_rx) * 1e-9);
            hapi_control_fail(c, &why);
            return;
        }
    }
    /* Bytes still on their way out are a sign of life themselves. */
    if (now - c->last_tx >= c->heartbeat_ns && c->tx.used == 0) {
        struct hapi_msg_heartbeat m = {(uint64_t)now, c->queued, c->running};
        uint8_t body[64];
        int n = hapi_msg_heartbeat_encode(&m, body, sizeof body);
        c->last_tx = now;
        if (n >= 0 && hapi_control_queue(c, HAPI_MSG_HEARTBEAT, body, (size_t)n) == 0)
            hapi_control_flush(c);
        if (c->state != CONTROL_OPEN)
            return;
    }
    int64_t next = c->last_rx + c->lim.silence_ns, beat = c->last_tx + c->heartbeat_ns;
    if (beat <= now)
        beat = now + c->heartbeat_ns;
    hapi_loop_timer_set(c->loop, &c->timer, next < beat ? next : beat);
    hapi_control_events(c);
}

static void timer_fired(struct hapi_timer *t)
{
    struct hapi_control *c = (struct hapi_control *)((char *)t - offsetof(struct hapi_control, timer));
    static const char *const doing[] = {"looking up the name", "connecting", "the TLS handshake", "hello"};
    struct hapi_err why;

    switch (c->state) {
    case CONTROL_CLOSED:
        closed_fire(c);
        return;
    case CONTROL_OPEN:
        open_tick(c);
        return;
    case CONTROL_FLUSHING:
    case CONTROL_LINGERING:
        hapi_control_fail(c, &c->why);
        return;
    default:
        if (c->tx_broken) {
            hapi_control_read(c);
            hapi_control_fail(c, &c->why);
            return;
        }
        hapi_err_set(&why, HAPI_ETIMEDOUT, 0, "no answer for %.1f s while %s",
                     (double)c->lim.handshake_ns * 1e-9, doing[c->state]);
        if (c->state == CONTROL_HELLO) {
            hapi_control_refuse(c, HAPI_ETIMEDOUT, why.text);
        } else {
            hapi_err_context(&why, "%s", c->peer);
            hapi_control_fail(c, &why);
        }
    }
}

/* ---- opening ---- */

static void say_hello(struct hapi_control *c)
{
    hapi_control_queue(c, HAPI_MSG_HELLO, c->lim.hello, c->lim.hello_n);
    hapi_control_flush(c);
}

static void handshake(struct hapi_control *c)
{
    struct hapi_err err;
    int rc = hapi_stream_handshake(&c->stream, &err);

    if (rc == HAPI_STREAM_AGAIN)
        return;
    if (rc) {
        hapi_err_context(&err, "%s", c->peer);
        if (c->server) {
            /* OpenSSL has sent its alert: let the peer read it. */
            c->why = err;
            begin_end(c, LINGER_REFUSED_NS);
        } else {
            hapi_control_fail(c, &err);
        }
        return;
    }
    c->state = CONTROL_HELLO;
    if (!c->server)
        say_hello(c); /* a node answers a good hello with its own, a bad one with an error */
}

/* An IPv4 peer of a dual-stack listener came to an IPv4 address: it is told that one for its data. */
static void local_name(struct hapi_control *c, union hapi_sockaddr *a)
{
    if (a->sa.sa_family == AF_INET6 && IN6_IS_ADDR_V4MAPPED(&a->in6.sin6_addr)) {
        union hapi_sockaddr v4 = {.in = {.sin_family = AF_INET}};
        memcpy(&v4.in.sin_addr, &a->in6.sin6_addr.s6_addr[12], sizeof v4.in.sin_addr);
        *a = v4;
    }
    hapi_sockaddr_host(a, c->local);
}

int hapi_control_started(struct hapi_control *c, const struct hapi_tls *tls, struct hapi_err *err)
{
    union hapi_sockaddr a = {0};
    socklen_t n = sizeof a;
    int one = 1;

    setsockopt(c->stream.fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (getpeername(c->stream.fd, &a.sa, &n) == 0)
        hapi_sockaddr_text(&a, c->peer);
    n = sizeof a;
    if (getsockname(c->stream.fd, &a.sa, &n) == 0)
        local_name(c, &a);
    int rc = hapi_stream_start(&c->stream, tls, c->server, err);
    if (rc)
        return rc;
    c->state = CONTROL_TLS;
    handshake(c);
    hapi_control_events(c);
    return 0;
}

/* The large buffers, once per connection. */
static int grow(struct hapi_control *c)
{
    size_t rx = FRAME_HEADER + HAPI_FRAME_MAX;

    c->large = malloc(rx + c->lim.send_max);
    if (!c->large)
        return HAPI_ENOMEM;
    memcpy(c->large, c->rx, c->rx_used);
    c->rx = c->large;
    c->rx_size = rx;
    struct control_ring tx = {.p = c->large + rx, .size = c->lim.send_max};
    for (size_t i = 0; i < c->tx.used; i++)
        tx.p[i] = c->tx.p[(c->tx.head + i) % c->tx.size];
    tx.used = c->tx.used;
    c->tx = tx;
    return 0;
}

int hapi_control_hello_came(struct hapi_control *c, const uint8_t *body, size_t n)
{
    struct hapi_hello h;
    struct hapi_err err;
    char text[128];

    if (hapi_hello_decode(&h, body, n, &err)) {
        hapi_control_refuse(c, HAPI_EPROTO, err.text);
        return HAPI_EPROTO;
    }
    if (h.major_min > c->lim.major_max || h.major_max < c->lim.major_min) {
        snprintf(text, sizeof text, "no protocol version in common: here %u to %u, there %u to %u",
                 c->lim.major_min, c->lim.major_max, h.major_min, h.major_max);
        hapi_control_refuse(c, HAPI_EVERSION, text);
        return HAPI_EVERSION;
    }
    if (c->listener && hapi_control_listener_full(c->listener)) {
        hapi_control_refuse(c, HAPI_EBUSY, "too many connections");
        return HAPI_EBUSY;
    }
    if (grow(c)) {
        hapi_control_refuse(c, HAPI_ENOMEM, "no memory for another connection");
        return HAPI_ENOMEM;
    }
    c->state = CONTROL_OPEN;
    c->opened = true;
    c->last_rx = c->last_tx = hapi_clock_ns();
    c->heartbeat_ns = (int64_t)c->lim.heartbeat_ms * HAPI_NS_PER_MS;
    if (h.heartbeat_ms && h.heartbeat_ms < c->lim.heartbeat_ms)
        c->heartbeat_ns = (int64_t)h.heartbeat_ms * HAPI_NS_PER_MS;
    hapi_loop_timer_set(c->loop, &c->timer, c->last_rx + c->heartbeat_ns);
    hapi_control_listener_opened(c);
    if (c->server)
        say_hello(c);
    /* `body` lies in small_rx, which stays as it was: the strings of h are valid in the callback. */
    if (c->state == CONTROL_OPEN)
        c->handler.on_open(c, &h);
    return 0;
}

/* ---- connecting ---- */

static void try_next(struct hapi_control *c, const struct hapi_err *last);

static void connected(struct hapi_control *c)
{
    struct hapi_err err;
    int e = 0;
    socklen_t n = sizeof e;

    if (getsockopt(c->stream.fd, SOL_SOCKET, SO_ERROR, &e, &n))
        e = errno;
    if (e) {
        hapi_err_errno(&err, e, "cannot connect to %s", c->peer);
        try_next(c, &err);
        return;
    }
    if (hapi_control_started(c, &c->tls, &err))
        hapi_control_fail(c, &err);
}

static int try_one(struct hapi_control *c, const union hapi_sockaddr *a, struct hapi_err *err)
{
    hapi_sockaddr_text(a, c->peer);
    c->stream.fd = socket(a->sa.sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (c->stream.fd < 0)
        return hapi_err_errno(err, errno, "cannot open a socket for %s", c->peer);
    if (connect(c->stream.fd, &a->sa, hapi_sockaddr_size(a)) && errno != EINPROGRESS)
        return hapi_err_errno(err, errno, "cannot connect to %s", c->peer);
    c->state = CONTROL_CONNECTING;
    c->watch.fd = c->stream.fd;
    c->watch.events = POLLOUT;
    return hapi_loop_watch(c->loop, &c->watch);
}

static void try_next(struct hapi_control *c, const struct hapi_err *last)
{
    struct hapi_err err = *last;

    while (c->next_address < c->addresses.n) {
        hapi_loop_unwatch(&c->watch);
        hapi_stream_close(&c->stream);
        if (try_one(c, &c->addresses.a[c->next_address++], &err) == 0)
            return;
    }
    hapi_control_fail(c, &err);
}

static void looked_up(void *arg, const struct hapi_addresses *a, const struct hapi_err *err)
{
    struct hapi_control *c = arg;

    c->lookup = NULL;
    if (a->n == 0) {
        hapi_control_fail(c, err);
        return;
    }
    c->addresses = *a;
    try_next(c, err);
}

int hapi_control_connect(struct hapi_control **out, struct hapi_loop *loop, const char *host, uint16_t port,
                         const struct hapi_control_options *opt, const struct hapi_control_handler *handler,
                         void *user, struct hapi_err *err)
{
    struct hapi_control_limits lim;
    int rc = hapi_control_limits_set(&lim, opt, err);

    if (rc)
        return rc;
    if (!*host || strlen(host) > HAPI_NAME_MAX || port == 0)
        return hapi_err_set(err, HAPI_EINVAL, 0, "cannot connect to \"%.64s\" port %u", host, port);
    struct hapi_control *c = hapi_control_new(loop, handler, &lim);
    if (!c)
        return hapi_err_set(err, HAPI_ENOMEM, 0, "no memory for a connection to %s", host);
    c->user = user;
    snprintf(c->host, sizeof c->host, "%s", host);
    snprintf(c->peer, sizeof c->peer, "%.40s:%u", host, port);
    rc = hapi_tls_init(&c->tls, opt->keys, false, err);
    if (rc)
        goto fail;
    if (hapi_addresses_resolve(&c->addresses, host, port, false, true, NULL) == 0) {
        struct hapi_err none = {0};
        try_next(c, &none);
    } else {
        rc = hapi_lookup_start(&c->lookup, loop, host, port, looked_up, c, err);
        if (rc)
            goto fail;
    }
    if (c->state != CONTROL_CLOSED)
        hapi_loop_timer_set(loop, &c->timer, hapi_clock_ns() + lim.handshake_ns);
    *out = c;
    return 0;
fail:
    hapi_tls_fini(&c->tls);
    free(c);
    return rc;
}

/* ---- running ---- */

void hapi_control_ready(struct hapi_watch *w, uint32_t revents)
{
    struct hapi_control *c = (struct hapi_control *)w;

    (void)revents;
    c->in_ready = true;
    if (c->state == CONTROL_CONNECTING)
        connected(c);
    else if (c->state == CONTROL_TLS)
        handshake(c);
    /* What came with the end of the handshake lies in OpenSSL, where poll does not see it. */
    if (c->state >= CONTROL_HELLO && c->state < CONTROL_CLOSED)
        hapi_control_read(c);
    if (c->state >= CONTROL_HELLO && c->state < CONTROL_LINGERING)
        hapi_control_flush(c);
    if (c->state == CONTROL_FLUSHING && c->tx.used == 0) {
        c->state = CONTROL_LINGERING;
        hapi_stream_shutdown(&c->stream);
    }
    if (c->state == CONTROL_OPEN && c->tx.used == 0 && c->drain_due) {
        c->drain_due = false;
        if (c->handler.on_drained)
            c->handler.on_drained(c);
    }
    c->in_ready = false;
    hapi_control_events(c);
}

static void again_fired(struct hapi_timer *t)
{
    hapi_control_ready(&((struct hapi_control *)((char *)t - offsetof(struct hapi_control, again)))->watch,
                       0);
}

int hapi_control_send(struct hapi_control *c, enum hapi_message type, const void *body, size_t n)
{
    if (c->state != CONTROL_OPEN)
        return HAPI_ECLOSED;
    int rc = hapi_control_queue(c, type, body, n);
    if (rc == 0) {
        hapi_control_flush(c);
        hapi_control_events(c);
    }
    return rc;
}

int hapi_control_error(struct hapi_control *c, uint64_t id, int code, const char *text)
{
    struct hapi_msg_error m = {id, code, {text, (uint32_t)strnlen(text, HAPI_ERR_TEXT)}};
    uint8_t body[HAPI_ERR_TEXT + 64];
    int n = hapi_msg_error_encode(&m, body, sizeof body);

    if (n < 0)
        return n;
    if (c->state != CONTROL_OPEN && c->state != CONTROL_HELLO)
        return HAPI_ECLOSED;
    int rc = hapi_control_queue(c, HAPI_MSG_ERROR, body, (size_t)n);
    if (rc == 0) {
        hapi_control_flush(c);
        hapi_control_events(c);
    }
    return rc;
}

bool hapi_control_is_open(const struct hapi_control *c)
{
    return c->state == CONTROL_OPEN;
}

void *hapi_control_user(const struct hapi_control *c)
{
    return c->user;
}

void hapi_control_user_set(struct hapi_control *c, void *user)
{
    c->user = user;
}

void hapi_control_load_set(struct hapi_control *c, uint64_t queued, uint64_t running)
{
    c->queued = queued;
    c->running = running;
}

void *hapi_control_listener_user(const struct hapi_control *c)
{
    return c->listener_user;
}

const char *hapi_control_peer(const struct hapi_control *c)
{
    return c->peer;
}

const char *hapi_control_identity(const struct hapi_control *c)
{
    return c->stream.key ? c->stream.key->identity : NULL;
}

const char *hapi_control_local_host(const struct hapi_control *c)
{
    return c->local;
}
