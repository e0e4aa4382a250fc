/* Both sides of control connections on one loop, raw peers, key files: the harness of test_control.c. */
#ifndef HAPI_TESTS_CONTROL_SIDES_H
#define HAPI_TESTS_CONTROL_SIDES_H

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "check.h"
#include "clock.h"
#include "control.h"

#define MS HAPI_NS_PER_MS
#define S(text) ((struct hapi_str){text, sizeof(text) - 1})

struct side {
    struct hapi_control *c;
    int opened, closed, messages, drained, beats;
    struct hapi_err why;
    size_t bytes;
    uint32_t sum;
    uint64_t beat_queued;
    char role[16];
    uint64_t heartbeat_ms;
    uint32_t caps;
    bool echo, finish_on_message;
};

static struct hapi_loop *loop;
static struct side node, client;

static struct side *side_of(struct hapi_control *c)
{
    return hapi_control_user(c);
}

static void node_open(struct hapi_control *c, const struct hapi_hello *peer)
{
    struct side *s = hapi_control_listener_user(c);

    hapi_control_user_set(c, s);
    s->c = c;
    s->opened++;
    snprintf(s->role, sizeof s->role, "%.*s", (int)peer->role.n, peer->role.s);
}

static void client_open(struct hapi_control *c, const struct hapi_hello *peer)
{
    struct side *s = side_of(c);

    s->opened++;
    s->heartbeat_ms = peer->heartbeat_ms;
    s->caps = peer->caps;
    snprintf(s->role, sizeof s->role, "%.*s", (int)peer->role.n, peer->role.s);
}

static void on_message(struct hapi_control *c, enum hapi_message type, const void *body, size_t n)
{
    struct side *s = side_of(c);

    if (type == HAPI_MSG_HEARTBEAT) {
        struct hapi_msg_heartbeat m;
        s->beats++;
        CHECK(hapi_msg_heartbeat_decode(&m, body, n, NULL) == 0);
        s->beat_queued = m.queued;
        return;
    }
    s->messages++;
    s->bytes += n;
    for (size_t i = 0; i < n; i++)
        s->sum = s->sum * 31 + ((const uint8_t *)body)[i];
    if (s->echo)
        CHECK(hapi_control_send(c, type, body, n) == 0);
    if (s->finish_on_message)
        hapi_control_finish(c);
}

static void on_close(struct hapi_control *c, const struct hapi_err *why)
{
    struct side *s = side_of(c);

    s->closed++;
    s->why = *why;
    s->c = NULL;
}

static void on_drained(struct hapi_control *c)
{
    side_of(c)->drained++;
}

static const struct hapi_control_handler node_handler = {node_open, on_message, on_close, on_drained};
static const struct hapi_control_handler client_handler = {client_open, on_message, on_close, on_drained};

static struct hapi_control_options node_opt(void)
{
    return (struct hapi_control_options){.hello = {.role = S("node"), .numeric_class = S("ref")}};
}

static struct hapi_control_options client_opt(void)
{
    return (struct hapi_control_options){.hello = {.role = S("client")}};
}

static struct hapi_control_listener *listen_on(const struct hapi_control_options *opt)
{
    struct hapi_control_listener *l;
    struct hapi_err err = {0};

    node = (struct side){0};
    client = (struct side){0};
    if (hapi_control_listen(&l, loop, "127.0.0.1", 0, opt, &node_handler, &node, &err)) {
        fprintf(stderr, "%s\n", err.text);
        exit(1);
    }
    return l;
}

static void connect_to(struct hapi_control_listener *l, const struct hapi_control_options *opt)
{
    REQUIRE(hapi_control_connect(&client.c, loop, "127.0.0.1", hapi_control_listener_port(l), opt,
                                 &client_handler, &client, NULL) == 0);
}

/* Runs the loop until *what >= want, at most `ms`; the time it took in ms. */
static int64_t run_until(const int *what, int want, int64_t ms)
{
    int64_t from = hapi_clock_ns(), end = from + ms * MS;

    while (*what < want && hapi_clock_ns() < end)
        REQUIRE(hapi_loop_run_once(loop, 5 * MS, NULL) == 0);
    return (hapi_clock_ns() - from) / MS;
}

static void run_for(int64_t ms)
{
    static const int never;

    run_until(&never, 1, ms);
}

static void end(struct hapi_control_listener *l)
{
    bool node_up = node.c != NULL, client_up = client.c != NULL;

    hapi_control_close(client.c);
    hapi_control_close(node.c);
    if (client_up)
        run_until(&client.closed, 1, 1000);
    if (node_up)
        run_until(&node.closed, 1, 1000);
    CHECK(client.closed <= 1 && node.closed <= 1 && !node.c && !client.c);
    hapi_control_listener_close(l);
    run_for(5);
}

static int raw(struct hapi_control_listener *l)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(hapi_control_listener_port(l))};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    REQUIRE(fd >= 0 && connect(fd, (struct sockaddr *)&a, sizeof a) == 0);
    fcntl(fd, F_SETFL, O_NONBLOCK);
    return fd;
}

/* What a raw peer was told until its connection ended; the code of the HAPI_MSG_ERROR in it, or 0. */
static int raw_error(int fd, int64_t ms, bool *ended)
{
    static uint8_t buf[1 << 16];
    int64_t until = hapi_clock_ns() + ms * MS;
    size_t n = 0;

    *ended = false;
    while (hapi_clock_ns() < until && !*ended) {
        run_for(1);
        ssize_t got = recv(fd, buf + n, sizeof buf - n, 0);
        if (got > 0)
            n += (size_t)got;
        else if (got == 0 || errno != EAGAIN)
            *ended = true;
    }
    for (size_t at = 0; at + 8 <= n;) {
        size_t len = buf[at] | (size_t)buf[at + 1] << 8;
        struct hapi_msg_error m;
        if (buf[at + 4] == HAPI_MSG_ERROR && at + 4 + len <= n &&
            hapi_msg_error_decode(&m, buf + at + 8, len - 4, NULL) == 0)
            return m.code;
        at += 4 + len;
    }
    return 0;
}

static char key_path[3][64];
static struct hapi_keys *keys_of(const char *text)
{
    static int n;
    struct hapi_keys *k = NULL;
    char *path = key_path[n++ % 3];

    snprintf(path, sizeof key_path[0], "/tmp/hapi-test-key-%d-%d", (int)getpid(), n);
    int fd = open(path, O_CREAT | O_WRONLY | O_TRUNC, 0600);
    REQUIRE(fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text));
    close(fd);
    struct hapi_err err = {0};
    if (hapi_keys_load(&k, path, &err))
        fprintf(stderr, "%s\n", err.text);
    unlink(path);
    return k;
}

#define KEY_A "alice:00112233445566778899aabbccddeeff\n"
#define KEY_B "# comment\n\nbob:ffeeddccbbaa99887766554433221100ff\nalice:00112233445566778899aabbccddeeff\n"
#define KEY_WRONG "alice:000102030405060708090a0b0c0d0e0f\n"

#endif
