#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>

#include "clock.h"
#include "control_int.h"
#include "wire_fields.h"

/* Of one ready(): other connections want their turn. */
enum { READS_MAX = 32, READ_BYTES = 64 << 10, FRAMES_MAX = 64 };

/* ---- out ---- */

static void ring_put(struct control_ring *r, const void *p, size_t n)
{
    size_t at = (r->head + r->used) % r->size, first = r->size - at;

    if (n == 0)
        return;
    if (first > n)
        first = n;
    memcpy(r->p + at, p, first);
    memcpy(r->p, (const uint8_t *)p + first, n - first);
    r->used += n;
}

int hapi_control_queue(struct hapi_control *c, unsigned type, const void *body, size_t n)
{
    uint8_t head[FRAME_HEADER];

    if (n > HAPI_FRAME_MAX)
        return HAPI_ETOOBIG;
    if (c->tx.size - c->tx.used < FRAME_HEADER + n)
        return FRAME_HEADER + n > c->tx.size ? HAPI_ETOOBIG : HAPI_EBUSY;
    hapi_put32(head, (uint32_t)(n + 4));
    hapi_put16(head + 4, (uint16_t)type);
    hapi_put16(head + 6, 0);
    ring_put(&c->tx, head, sizeof head);
    ring_put(&c->tx, body, n);
    c->drain_due = true;
    return 0;
}

/* A peer that asks and does not read the answers is not asked for more: else it is answered for nothing. */
static bool stalls(const struct hapi_control *c)
{
    return c->server && c->opened && c->tx.used > c->tx.size / 2;
}

/* The rest of what there is to do, after the other connections. */
static void again_later(struct hapi_control *c)
{
    hapi_loop_timer_set(c->loop, &c->again, hapi_clock_ns());
}

static void sent(struct hapi_control *c)
{
    c->last_tx = hapi_clock_ns();
    if (!c->stalled)
        return;
    c->last_rx = c->last_tx; /* it reads: it lives */
    if (!stalls(c)) {
        c->stalled = false;
        again_later(c);
    }
}

void hapi_control_flush(struct hapi_control *c)
{
    while (c->tx.used) {
        size_t n = c->tx.size - c->tx.head, put;
        struct hapi_err err;
        int rc =
            hapi_stream_write(&c->stream, c->tx.p + c->tx.head, n < c->tx.used ? n : c->tx.used, &put, &err);
        if (rc == HAPI_STREAM_AGAIN)
            return;
        if (rc) {
            /* What the peer said before it went explains more than our EPIPE, and callbacks come from the
             * loop only: its timer reads what there is and closes. */
            c->tx.used = 0;
            c->tx_broken = true;
            if (!c->why.code)
                c->why = err;
            hapi_loop_timer_set(c->loop, &c->timer, hapi_clock_ns());
            return;
        }
        c->tx.head = (c->tx.head + put) % c->tx.size;
        c->tx.used -= put;
        sent(c);
    }
    c->tx.head = 0;
}

/* ---- in ---- */

static void remember_error(struct hapi_control *c, const uint8_t *body, size_t n)
{
    struct hapi_msg_error m;

    if (hapi_msg_error_decode(&m, body, n, NULL) || m.id != 0)
        return;
    size_t len = m.text.n < sizeof c->told_text - 1 ? m.text.n : sizeof c->told_text - 1;
    if (len)
        memcpy(c->told_text, m.text.s, len);
    c->told_text[len] = '\0';
    c->told = m;
}

static void frame_came(struct hapi_control *c, unsigned type, const uint8_t *body, size_t n)
{
    if (type == HAPI_MSG_ERROR)
        remember_error(c, body, n);
    if (c->state == CONTROL_OPEN) {
        if (type == HAPI_MSG_HELLO)
            hapi_control_refuse(c, HAPI_EPROTO, "a second hello");
        else
            c->handler.on_message(c, (enum hapi_message)type, body, n);
        return;
    }
    if (type == HAPI_MSG_HELLO) {
        hapi_control_hello_came(c, body, n);
    } else if (type == HAPI_MSG_ERROR && c->told.code) {
        struct hapi_err err;
        hapi_err_set(&err, c->told.code, 0, "%s: the peer refused: %s", c->peer, c->told_text);
        hapi_control_fail(c, &err);
    } else {
        hapi_control_refuse(c, HAPI_EPROTO, "the first message is not a hello");
    }
}

/* A frame's header that cannot be right: what the peer may be instead. */
static void bad_header(struct hapi_control *c, uint32_t length)
{
    const uint8_t *p = c->rx + c->rx_at;
    char text[96];

    if (!c->opened && (p[0] == 0x15 || p[0] == 0x16) && p[1] == 3) {
        struct hapi_err err;
        if (c->server) {
            hapi_control_refuse(c, HAPI_EAUTH, "this node speaks without TLS: no key is expected");
            return;
        }
        hapi_err_set(&err, HAPI_EAUTH, 0, "%s: the node asks for TLS: a key is needed", c->peer);
        hapi_control_fail(c, &err);
        return;
    }
    snprintf(text, sizeof text, "frame of %u bytes, flags 0x%x: not this protocol", length,
             hapi_get16(p + 6));
    hapi_control_refuse(c, HAPI_EPROTO, text);
}

/* Takes whole frames out of rx, *turn at most. False: some are left for later. */
static bool parse(struct hapi_control *c, int *turn)
{
    while (c->state == CONTROL_OPEN || c->state == CONTROL_HELLO) {
        size_t left = c->rx_used - c->rx_at, max = c->opened ? HAPI_FRAME_MAX : HELLO_MAX;
        const uint8_t *p = c->rx + c->rx_at;
        if (left < FRAME_HEADER)
            break;
        uint32_t length = hapi_get32(p);
        if (length < 4 || length - 4 > max || hapi_get16(p + 6)) {
            bad_header(c, length);
            return true;
        }
        size_t body = length - 4;
        if (left - FRAME_HEADER < body)
            break;
        c->stalled = stalls(c);
        if (c->stalled)
            return false;
        if (--*turn < 0) {
            again_later(c);
            return false;
        }
        c->rx_at += FRAME_HEADER + body;
        frame_came(c, hapi_get16(p + 4), p + FRAME_HEADER, body);
    }
    if (c->rx_at) {
        memmove(c->rx, c->rx + c->rx_at, c->rx_used - c->rx_at);
        c->rx_used -= c->rx_at;
        c->rx_at = 0;
    }
    return true;
}

static void read_ended(struct hapi_control *c, struct hapi_err *err)
{
    struct hapi_err why;

    if (c->told.code && c->told.id == 0)
        hapi_err_set(&why, c->told.code, 0, "%s: the peer closed the connection: %s", c->peer, c->told_text);
    else
        hapi_err_set(
            &why, err->code == HAPI_ESYS ? HAPI_ECLOSED : err->code, err->sys, "%s: %s%s", c->peer, err->text,
            !c->opened && !c->stream.ssl && !c->server ? " before it said hello (does it want a key?)" : "");
    hapi_control_fail(c, &why);
}

/* Nothing of it is wanted, but a socket closed with unread bytes resets the peer, and our last words with it.
 */
static void read_and_drop(struct hapi_control *c)
{
    for (int i = 0; i < READS_MAX; i++) {
        ssize_t n = recv(c->stream.fd, c->rx, c->rx_size, 0);
        if (n < 0 && (errno == EAGAIN || errno == EINTR))
            return;
        if (n <= 0) {
            hapi_control_fail(c, &c->why);
            return;
        }
    }
}

void hapi_control_read(struct hapi_control *c)
{
    int turn = FRAMES_MAX;

    for (int i = 0;; i++) {
        struct hapi_err err;
        size_t got, room;
        if (c->state == CONTROL_FLUSHING || c->state == CONTROL_LINGERING)
            read_and_drop(c);
        if ((c->state != CONTROL_HELLO && c->state != CONTROL_OPEN) || !parse(c, &turn))
            return;
        if (c->state != CONTROL_HELLO && c->state != CONTROL_OPEN)
            continue;
        if (i == READS_MAX) { /* some may lie in OpenSSL, where poll does not see it */
            again_later(c);
            return;
        }
        room = c->rx_size - c->rx_used;
        int rc = hapi_stream_read(&c->stream, c->rx + c->rx_used, room < READ_BYTES ? room : READ_BYTES, &got,
                                  &err);
        if (rc == HAPI_STREAM_AGAIN)
            return;
        if (rc) {
            read_ended(c, &err);
            return;
        }
        c->last_rx = hapi_clock_ns();
        c->rx_used += got;
    }
}

void hapi_control_events(struct hapi_control *c)
{
    bool out = c->tx.used || c->stream.want_write || c->state == CONTROL_CONNECTING ||
               (c->state == CONTROL_OPEN && c->drain_due && c->handler.on_drained);

    if (c->state == CONTROL_CLOSED || c->in_ready || c->state == CONTROL_RESOLVING)
        return;
    bool in = c->state != CONTROL_CONNECTING && !(c->state == CONTROL_OPEN && c->stalled);
    hapi_loop_watch_events(&c->watch, (in ? POLLIN : 0u) | (out ? POLLOUT : 0u));
}
