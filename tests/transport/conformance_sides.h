/* Both sides of a data connection on one loop: the harness of test_conformance.c. */
#ifndef HAPI_TESTS_CONFORMANCE_SIDES_H
#define HAPI_TESTS_CONFORMANCE_SIDES_H

#include <dirent.h>
#include <signal.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"
#include "clock.h"
#include "transport.h"

#define MS HAPI_NS_PER_MS
enum { WINDOW = 4 << 20, SLAB = 6 << 20, OPS = 64, RECEIVES = 4, PAGE = 4096 };

struct op {
    struct hapi_conn_op op; /* first */
    int done, status;
};

struct side {
    struct hapi_conn *c;
    int opened, closed, recvs, imms, done, done_after_close, bad;
    struct hapi_err why;
    uint32_t last_imm;
    size_t recv_bytes;
    bool close_on_imm, close_on_recv;
    void (*imm_check)(uint32_t imm);
    uint8_t last[HAPI_REQUEST_MAX];
    size_t last_n;
};

static const char *kind, *host;
static struct hapi_loop *loop;
static struct hapi_slab slab;
static struct hapi_fabric *node_fabric, *client_fabric;
static struct hapi_listener *listener;
static struct side node, client;
static struct side *accepting = &node; /* what the next connection accepted belongs to */
static uint8_t *window;                /* WINDOW bytes with a guard page's worth on both sides */
static uint64_t key, base;
static int admitted, accepted, unknown;
/* Good once, as a node's are: what is still on its way from an earlier connection is refused. */
static uint8_t nonce[HAPI_NONCE_SIZE] = {7, 7, 7, 1, 2, 3};
static const uint8_t child_nonce[HAPI_NONCE_SIZE] = {7, 7, 8};
static const uint8_t *awaited = nonce;
static struct op ops[OPS + 8];

static void run_until(const int *what, int want, int64_t ms)
{
    int64_t end = hapi_clock_ns() + ms * MS;

    while (*what < want && hapi_clock_ns() < end)
        REQUIRE(hapi_loop_run_once(loop, 5 * MS, NULL) == 0);
}

static void run_for(int64_t ms)
{
    static const int never;

    run_until(&never, 1, ms);
}

static void on_open(struct hapi_conn *c)
{
    struct side *s = hapi_conn_user(c);

    s->bad += s->closed || s->opened;
    s->opened++;
}

static void on_recv(struct hapi_conn *c, const void *msg, size_t n)
{
    struct side *s = hapi_conn_user(c);

    s->bad += s->closed || !s->opened;
    s->recvs++;
    s->recv_bytes += n;
    memcpy(s->last, msg, n);
    s->last_n = n;
    for (size_t i = 1; i < n; i++)
        s->bad += s->last[i] != (uint8_t)(s->last[0] + i);
    if (s->close_on_recv)
        hapi_conn_close(c);
}

static void on_imm(struct hapi_conn *c, uint32_t imm)
{
    struct side *s = hapi_conn_user(c);

    s->bad += s->closed || !s->opened;
    s->imms++;
    s->last_imm = imm;
    if (s->imm_check)
        s->imm_check(imm);
    if (s->close_on_imm)
        hapi_conn_close(c);
}

static void on_close(struct hapi_conn *c, const struct hapi_err *why)
{
    struct side *s = hapi_conn_user(c);

    s->closed++;
    s->why = *why;
    s->c = NULL;
}

static void on_done(struct hapi_conn *c, struct hapi_conn_op *o, int status)
{
    struct side *s = hapi_conn_user(c);
    struct op *op = (struct op *)o;

    s->done++;
    s->done_after_close += s->closed;
    op->done++;
    op->status = status;
}

static void *admit(void *user, const uint8_t n[HAPI_NONCE_SIZE])
{
    (void)user;
    if (memcmp(n, awaited, HAPI_NONCE_SIZE)) {
        unknown++;
        return NULL;
    }
    admitted++;
    return accepting;
}

static void on_accept(struct hapi_conn *c, void *user)
{
    CHECK(user == accepting);
    accepted++;
    accepting->c = c;
}

static const struct hapi_conn_handler handler = {on_open, on_recv, on_imm, on_close};
static const struct hapi_listener_handler listener_handler = {
    .admit = admit, .conn = {on_open, on_recv, on_imm, on_close}, .on_accept = on_accept};

static void fabrics_open(const struct hapi_fabric_options *opt)
{
    struct hapi_err err = {0};

    if (hapi_fabric_open(&node_fabric, loop, kind, &slab, opt, &err) ||
        hapi_fabric_open(&client_fabric, loop, kind, NULL, opt, &err) ||
        hapi_listener_open(&listener, node_fabric, host, 0, &listener_handler, NULL, &err)) {
        fprintf(stderr, "%s: %s\n", kind, err.text);
        exit(1);
    }
    CHECK(strcmp(hapi_fabric_kind(node_fabric), kind) == 0 && hapi_listener_port(listener) != 0);
}

static void fabrics_close(void)
{
    hapi_listener_close(listener);
    hapi_fabric_close(client_fabric);
    hapi_fabric_close(node_fabric);
    run_for(5);
}

static void connect_with(const uint8_t *n, uint16_t port)
{
    struct hapi_err err = {0};

    if (n == nonce && ++nonce[HAPI_NONCE_SIZE - 1] == 0)
        nonce[HAPI_NONCE_SIZE - 2]++;
    memset(&node, 0, sizeof node);
    memset(&client, 0, sizeof client);
    memset(ops, 0, sizeof ops);
    for (size_t i = 0; i < sizeof ops / sizeof *ops; i++)
        ops[i].op.on_done = on_done;
    admitted = accepted = unknown = 0;
    if (hapi_conn_connect(&client.c, client_fabric, host, port, n, &handler, &client, &err)) {
        fprintf(stderr, "%s: %s\n", kind, err.text);
        exit(1);
    }
}

/* The node may write once a message sent after hapi_conn_expose() has come. */
static void told(struct side *from, struct side *to)
{
    static const uint8_t hello = 1;

    REQUIRE(hapi_conn_send(from->c, &hello, 1, NULL) == 0);
    run_until(&to->recvs, 1, 3000);
    REQUIRE(to->recvs == 1);
    to->recvs = 0;
    to->recv_bytes = 0;
}

/* An open connection with the window exposed and `grant` immediates granted. */
static void connected(uint32_t grant)
{
    struct hapi_err err = {0};

    connect_with(nonce, hapi_listener_port(listener));
    run_until(&client.opened, 1, 3000);
    run_until(&node.opened, 1, 3000);
    if (client.opened != 1 || node.opened != 1) {
        fprintf(stderr, "%s: client %d, node %d: %s\n", kind, client.opened, node.opened, client.why.text);
        exit(1);
    }
    memset(window - PAGE, 0xee, WINDOW + 2 * PAGE);
    if (hapi_conn_expose(client.c, window, WINDOW, &key, &base, &err)) {
        fprintf(stderr, "%s: %s\n", kind, err.text);
        exit(1);
    }
    told(&client, &node);
    if (grant)
        REQUIRE(hapi_conn_grant(client.c, grant) == 0);
}

static bool all(const uint8_t *p, size_t n, uint8_t v)
{
    for (size_t i = 0; i < n; i++)
        if (p[i] != v)
            return false;
    return true;
}

/* Receivers were always ready. */
static void check_rnr(void)
{
    CHECK(!node.c || hapi_conn_stats_get(node.c).rnr == 0);
    CHECK(!client.c || hapi_conn_stats_get(client.c).rnr == 0);
}

static void disconnected(void)
{
    check_rnr();
    hapi_conn_close(client.c);
    run_until(&client.closed, 1, 3000);
    run_until(&node.closed, 1, 3000);
    if (!node.closed) {
        hapi_conn_close(node.c);
        run_until(&node.closed, 1, 1000);
    }
    CHECK(client.closed == 1 && node.closed == 1 && !client.bad && !node.bad);
    CHECK(!client.done_after_close && !node.done_after_close);
    CHECK(all(window - PAGE, PAGE, 0xee) && all(window + WINDOW, PAGE, 0xee));
    run_for(2);
}

#endif
