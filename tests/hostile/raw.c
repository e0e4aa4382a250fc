#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "hostile.h"
#include "wire_fields.h"

enum { RX_SIZE = FRAME_HEAD + HAPI_FRAME_MAX, READS = 16 };

struct sockaddr_in address_parse(const char *text)
{
    struct sockaddr_in a = {.sin_family = AF_INET};
    char host[64];
    unsigned port;

    REQUIRE(sscanf(text, "%63[0-9.]:%u", host, &port) == 2 && inet_pton(AF_INET, host, &a.sin_addr) == 1);
    a.sin_port = htons((uint16_t)port);
    return a;
}

bool tls_open(struct hapi_tls *t, const char *path, bool server)
{
    struct hapi_keys *keys;
    struct hapi_err err = {0};

    *t = (struct hapi_tls){0};
    if (!path)
        return false;
    if (hapi_keys_load(&keys, path, &err) || hapi_tls_init(t, keys, server, &err)) {
        fprintf(stderr, "%s\n", err.text);
        exit(1);
    }
    return true;
}

void tls_close(struct hapi_tls *t)
{
    struct hapi_keys *keys = (struct hapi_keys *)t->keys;

    if (t->ctx)
        hapi_tls_fini(t);
    hapi_keys_free(keys);
}

void raw_init(struct raw *r, struct hapi_loop *loop, const struct raw_handler *handler)
{
    memset(r, 0, sizeof *r);
    r->loop = loop;
    r->handler = handler;
    r->stream.fd = -1;
    r->rx = malloc(RX_SIZE);
    REQUIRE(r->rx);
}

void raw_fini(struct raw *r)
{
    raw_close(r, false);
    free(r->rx);
    free(r->tx);
}

void raw_close(struct raw *r, bool reset)
{
    struct linger now = {1, 0};

    if (!r->open)
        return;
    r->open = false;
    hapi_loop_unwatch(&r->watch);
    if (reset) {
        setsockopt(r->stream.fd, SOL_SOCKET, SO_LINGER, &now, sizeof now);
    }
    hapi_stream_close(&r->stream);
    r->stream.fd = -1;
}

static void ended(struct raw *r, const struct hapi_err *why)
{
    raw_close(r, false);
    r->handler->on_end(r, why);
}

static void arm(struct raw *r)
{
    bool out = r->stream.want_write || (r->shaken && r->tx_n > r->tx_at);

    if (r->open)
        hapi_loop_watch_events(&r->watch, (r->deaf ? 0u : POLLIN) | (out ? POLLOUT : 0u));
}

static void flush(struct raw *r)
{
    struct hapi_err err;
    size_t put;

    while (r->open && r->shaken && r->tx_at < r->tx_n) {
        int rc = hapi_stream_write(&r->stream, r->tx + r->tx_at, r->tx_n - r->tx_at, &put, &err);
        if (rc == HAPI_STREAM_AGAIN)
            return;
        if (rc) { /* reading says why, if the peer did */
            r->tx_at = r->tx_n;
            return;
        }
        r->tx_at += put;
    }
    r->tx_at = r->tx_n = 0;
}

static void parse(struct raw *r)
{
    size_t at = 0;

    while (r->open && r->rx_n - at >= FRAME_HEAD) {
        uint32_t length = hapi_get32(r->rx + at);
        if (length < 4 || length - 4 > HAPI_FRAME_MAX) {
            struct hapi_err why;
            hapi_err_set(&why, HAPI_EPROTO, 0, "the peer sends a frame of %u bytes", length);
            ended(r, &why);
            return;
        }
        if (r->rx_n - at < (size_t)length + 4)
            break;
        r->handler->on_frame(r, hapi_get16(r->rx + at + 4), r->rx + at + FRAME_HEAD, length - 4);
        at += (size_t)length + 4;
    }
    if (!r->open)
        return;
    memmove(r->rx, r->rx + at, r->rx_n - at);
    r->rx_n -= at;
}

static void take(struct raw *r)
{
    struct hapi_err err;
    size_t got;

    for (int i = 0; r->open && !r->deaf && (i < READS || hapi_stream_pending(&r->stream)); i++) {
        int rc = hapi_stream_read(&r->stream, r->rx + r->rx_n, RX_SIZE - r->rx_n, &got, &err);
        if (rc == HAPI_STREAM_AGAIN)
            return;
        if (rc) {
            ended(r, &err);
            return;
        }
        r->rx_n += got;
        parse(r);
    }
}

static void ready(struct hapi_watch *w, uint32_t revents)
{
    struct raw *r = (struct raw *)w;
    struct hapi_err err;

    (void)revents;
    if (!r->shaken) {
        int rc = hapi_stream_handshake(&r->stream, &err);
        if (rc == HAPI_STREAM_AGAIN) {
            arm(r);
            return;
        }
        if (rc) {
            ended(r, &err);
            return;
        }
        r->shaken = true;
        r->handler->on_ready(r);
    }
    take(r);
    flush(r);
    arm(r);
}

static int start(struct raw *r, int fd, const struct hapi_tls *tls, bool server)
{
    struct hapi_err err;
    int one = 1;

    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    REQUIRE(fcntl(fd, F_SETFL, O_NONBLOCK) == 0);
    r->stream = (struct hapi_stream){.fd = fd};
    r->open = true;
    r->shaken = r->deaf = false;
    r->tx_n = r->tx_at = r->rx_n = 0;
    if (hapi_stream_start(&r->stream, tls && tls->ctx ? tls : NULL, server, &err)) {
        fprintf(stderr, "%s\n", err.text);
        exit(1);
    }
    r->watch = (struct hapi_watch){.ready = ready, .fd = fd, .events = POLLIN | POLLOUT};
    REQUIRE(hapi_loop_watch(r->loop, &r->watch) == 0);
    return 0;
}

int raw_connect(struct raw *r, const struct sockaddr_in *to, const struct hapi_tls *tls)
{
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    REQUIRE(fd >= 0);
    if (connect(fd, (const struct sockaddr *)to, sizeof *to)) {
        int rc = -errno;
        close(fd);
        return rc;
    }
    return start(r, fd, tls, false);
}

int raw_accept(struct raw *r, int fd, const struct hapi_tls *tls)
{
    return start(r, fd, tls, true);
}

void raw_put(struct raw *r, const void *p, size_t n)
{
    if (!r->open)
        return;
    if (r->tx_size - r->tx_n < n) {
        if (r->tx_at)
            memmove(r->tx, r->tx + r->tx_at, r->tx_n - r->tx_at);
        r->tx_n -= r->tx_at;
        r->tx_at = 0;
        while (r->tx_size - r->tx_n < n)
            r->tx_size = r->tx_size ? 2 * r->tx_size : 1 << 16;
        r->tx = realloc(r->tx, r->tx_size);
        REQUIRE(r->tx);
    }
    memcpy(r->tx + r->tx_n, p, n);
    r->tx_n += n;
    arm(r);
}

void raw_frame(struct raw *r, unsigned type, const void *body, size_t n)
{
    uint8_t head[FRAME_HEAD];

    hapi_put32(head, (uint32_t)(n + 4));
    hapi_put16(head + 4, (uint16_t)type);
    hapi_put16(head + 6, 0);
    raw_put(r, head, sizeof head);
    if (n)
        raw_put(r, body, n);
}

size_t raw_queued(const struct raw *r)
{
    return r->tx_n - r->tx_at;
}

void raw_deaf(struct raw *r, bool deaf)
{
    r->deaf = deaf;
    arm(r);
}
