/*
 * A control channel's bytes, as they come off a socket: framing, hello, and what is made of each frame. The
 * first byte says which side reads, whether a good hello comes first, how the stream ends and into what
 * pieces it falls. Whatever comes, on_message sees frames within their limit, between on_open and on_close,
 * and there is one end.
 */
#include <poll.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "../transport/wire_samples.h"
#include "clock.h"
#include "control_int.h"
#include "wire_fields.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { AS_CLIENT = 1, HELLO_FIRST = 2, HALF_CLOSED = 4, ROUNDS = 4 };

static struct hapi_loop *loop;
static struct hapi_control_listener listener; /* of the peer that is a node's: it knows when that is gone */
static int opened, closed;
static uint32_t sum;

static void on_open(struct hapi_control *c, const struct hapi_hello *peer)
{
    (void)c;
    if (opened++ || closed || peer->role.n == 0)
        abort();
}

static void on_message(struct hapi_control *c, enum hapi_message type, const void *body, size_t n)
{
    if (opened != 1 || closed || n > HAPI_FRAME_MAX || type == HAPI_MSG_HELLO)
        abort();
    for (size_t i = 0; i < n; i++)
        sum = sum * 31 + ((const uint8_t *)body)[i];
    if (type == HAPI_MSG_LS) /* an answer, which nobody reads */
        hapi_control_send(c, HAPI_MSG_LS_REPLY, body, n);
    if (type == HAPI_MSG_BYE)
        hapi_control_finish(c);
}

static void on_close(struct hapi_control *c, const struct hapi_err *why)
{
    (void)c;
    if (closed++ || why->code == 0)
        abort();
}

static const struct hapi_control_handler handler = {on_open, on_message, on_close, NULL};

static void run(void)
{
    for (int i = 0; i < ROUNDS; i++)
        if (hapi_loop_run_once(loop, 0, NULL))
            abort();
}

static struct hapi_control *start(int fd, bool server)
{
    struct hapi_control_options opt = {.hello = sample_hello()};
    struct hapi_control_limits lim;
    struct hapi_control *c;

    if (hapi_control_limits_set(&lim, &opt, NULL) || !(c = hapi_control_new(loop, &handler, &lim)))
        abort();
    c->stream.fd = c->watch.fd = fd;
    c->watch.events = POLLIN;
    c->server = server;
    listener = (struct hapi_control_listener){.loop = loop, .lim = lim};
    if (server) {
        c->listener = &listener;
        listener.pending = listener.pending_last = c;
        listener.n_pending = 1;
    }
    hapi_loop_timer_set(loop, &c->timer, hapi_clock_ns() + lim.handshake_ns);
    if (hapi_loop_watch(loop, &c->watch) || hapi_control_started(c, NULL, NULL))
        abort();
    return c;
}

static void say(int fd, const uint8_t *p, size_t n, size_t piece)
{
    while (n) {
        ssize_t put = send(fd, p, n < piece ? n : piece, MSG_NOSIGNAL | MSG_DONTWAIT);
        run();
        if (put <= 0)
            return; /* it has ended, or waits for its answers to be read */
        p += put;
        n -= (size_t)put;
    }
}

static void say_hello(int fd)
{
    uint8_t b[FRAME_HEADER + 256];
    struct hapi_hello h = sample_hello();
    int n = hapi_hello_encode(&h, b + FRAME_HEADER, sizeof b - FRAME_HEADER);

    if (n < 0)
        abort();
    hapi_put32(b, (uint32_t)n + 4);
    hapi_put16(b + 4, HAPI_MSG_HELLO);
    hapi_put16(b + 6, 0);
    say(fd, b, FRAME_HEADER + (size_t)n, sizeof b);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    int fd[2];

    if (size == 0)
        return 0;
    if ((!loop && hapi_loop_open(&loop, 64, NULL)) ||
        socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fd))
        abort();
    bool server = !(data[0] & AS_CLIENT);
    opened = closed = 0;
    struct hapi_control *c = start(fd[0], server);
    if (data[0] & HELLO_FIRST)
        say_hello(fd[1]);
    /* In at most a hundred pieces: each costs a few system calls. */
    size_t piece = 1 + (size_t)(data[0] >> 3) * 37;
    say(fd[1], data + 1, size - 1, piece < size / 100 ? size / 100 : piece);
    if (data[0] & HALF_CLOSED)
        shutdown(fd[1], SHUT_WR);
    else
        close(fd[1]);
    run();
    bool gone = server ? listener.n_pending + listener.n_open == 0 : closed != 0;
    if (!gone)
        hapi_control_close(c);
    run();
    if (data[0] & HALF_CLOSED)
        close(fd[1]);
    if (closed != (server ? opened : 1))
        abort();
    return 0;
}
