/* The node of `hapi-bench transport`: writes out of its slab what the peer asks for. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "clock.h"
#include "control.h"
#include "convert.h"
#include "transport_bench.h"

enum { MARKS = BENCH_DEPTH_MAX, ANSWERS = BENCH_TAIL / BENCH_PING_BYTES, ANSWER_SIGNAL = 16 };

/* A signalled write: every one up to `upto` is complete with it. */
struct mark {
    struct hapi_conn_op op; /* first */
    uint64_t upto;
};

struct node {
    struct hapi_loop *loop;
    struct hapi_slab slab;
    struct hapi_fabric *fabric;
    struct hapi_listener *listener;
    struct hapi_conn *conn;
    struct hapi_timer retry;
    struct bench_request flood; /* count 0: none is under way */
    uint64_t sent, done, credit, n_marks, n_answers;
    uint32_t every;
    int64_t cpu_ns;
    struct hapi_conn_stats before;
    struct mark marks[MARKS];
    struct hapi_conn_op answered;
};

static struct hapi_loop *stop_loop;

static void on_signal(int sig)
{
    (void)sig;
    hapi_loop_stop(stop_loop);
}

static void drop(struct node *n, const char *why)
{
    fprintf(stderr, "hapi-bench transport: peer dropped: %s\n", why);
    hapi_conn_close(n->conn);
}

static void answered(struct hapi_conn *c, struct hapi_conn_op *op, int status)
{
    (void)c, (void)op, (void)status;
}

/* A small write into the peer's last page; each has its own place in the slab while it is under way. */
static void answer(struct node *n, const struct bench_request *to, const void *what, uint32_t imm)
{
    uint64_t i = n->n_answers++ % ANSWERS;
    uint8_t *at = n->slab.base + BENCH_AREA + i * BENCH_PING_BYTES;
    bool signal = n->n_answers % ANSWER_SIGNAL == 0;

    memcpy(at, what, BENCH_PING_BYTES);
    if (hapi_conn_write_imm(n->conn, at, BENCH_PING_BYTES, to->base + BENCH_AREA, to->key, imm,
                            signal ? &n->answered : NULL))
        drop(n, "an answer could not be written");
}

static void report(struct node *n)
{
    struct hapi_conn_stats now = hapi_conn_stats_get(n->conn);
    struct bench_done d = {.magic = BENCH_MAGIC,
                           .cpu_ns = (uint64_t)(bench_cpu_ns() - n->cpu_ns),
                           .writes = now.writes - n->before.writes,
                           .completions = now.completions - n->before.completions,
                           .rnr = now.rnr - n->before.rnr};

    answer(n, &n->flood, &d, 0);
    n->flood.count = 0;
}

/* One write; every so many of them, and the last one, are signalled. */
static int write_next(struct node *n)
{
    const struct bench_request *f = &n->flood;
    uint64_t i = n->sent;
    uint8_t *from = n->slab.base + i % f->depth * f->size;
    bool signal = (i + 1) % n->every == 0 || i + 1 == f->count;
    struct mark *m = &n->marks[n->n_marks % MARKS];

    memcpy(from, &i, sizeof i);
    uint32_t imm = f->checksum ? hapi_crc32c(0, from, f->size) : (uint32_t)i;
    m->upto = i + 1;
    int rc = hapi_conn_write_imm(n->conn, from, f->size, f->base + i % f->slots * f->size, f->key, imm,
                                 signal ? &m->op : NULL);
    if (rc)
        return rc;
    n->n_marks += signal;
    n->sent++;
    n->credit--;
    return 0;
}

static void pump(struct node *n)
{
    int rc = 0;

    while (n->sent < n->flood.count && n->sent - n->done < n->flood.depth && n->credit && rc == 0)
        rc = write_next(n);
    if (rc == HAPI_EBUSY) /* the provider's own queue is full */
        hapi_loop_timer_set(n->loop, &n->retry, hapi_clock_ns() + 100 * 1000);
    else if (rc)
        drop(n, hapi_err_meaning(rc));
}

static void retry_fired(struct hapi_timer *t)
{
    struct node *n = (struct node *)((char *)t - offsetof(struct node, retry));

    if (n->conn)
        pump(n);
}

static void mark_done(struct hapi_conn *c, struct hapi_conn_op *op, int status)
{
    struct node *n = hapi_conn_user(c);

    if (status || !n->flood.count)
        return;
    n->done = ((struct mark *)op)->upto;
    if (n->done == n->flood.count)
        report(n);
    else
        pump(n);
}

static void flood_start(struct node *n, const struct bench_request *r)
{
    n->flood = *r;
    n->sent = n->done = 0;
    n->credit = r->credit;
    n->every = bench_signal_every(r->depth);
    n->before = hapi_conn_stats_get(n->conn);
    n->cpu_ns = bench_cpu_ns();
    pump(n);
}

static void on_recv(struct hapi_conn *c, const void *msg, size_t size)
{
    struct node *n = hapi_conn_user(c);
    const struct bench_request *r = msg;

    if (!bench_request_valid(msg, size) || (r->op == BENCH_FLOOD && n->flood.count)) {
        drop(n, "not a request of hapi-bench");
    } else if (r->op == BENCH_PING) {
        answer(n, r, r, 0);
    } else if (r->op == BENCH_FLOOD) {
        flood_start(n, r);
    } else if (r->op == BENCH_CREDIT) {
        n->credit += r->credit;
        pump(n);
    }
}

static void on_open(struct hapi_conn *c)
{
    (void)c;
}

static void on_imm(struct hapi_conn *c, uint32_t imm)
{
    (void)imm;
    hapi_conn_close(c);
}

static void on_close(struct hapi_conn *c, const struct hapi_err *why)
{
    struct node *n = hapi_conn_user(c);

    if (why->code != HAPI_ECLOSED && why->code != HAPI_ECANCELED)
        fprintf(stderr, "hapi-bench transport: peer lost: %s\n", why->text);
    hapi_loop_timer_clear(n->loop, &n->retry);
    n->conn = NULL;
    n->flood.count = 0;
}

/* One peer at a time: two would measure each other. */
static void *admit(void *user, const uint8_t nonce[HAPI_NONCE_SIZE])
{
    struct node *n = user;

    return !n->conn && !memcmp(nonce, bench_nonce, HAPI_NONCE_SIZE) ? n : NULL;
}

static void on_accept(struct hapi_conn *c, void *user)
{
    struct node *n = user;

    n->conn = c;
}

static int node_open(struct node *n, const struct bench_options *o, struct hapi_err *err)
{
    static const struct hapi_listener_handler handler = {
        .admit = admit, .conn = {on_open, on_recv, on_imm, on_close}, .on_accept = on_accept};
    struct hapi_fabric_options opt = bench_fabric_options(o);
    int rc = hapi_loop_open(&n->loop, 256, err);

    if (rc == 0)
        rc = hapi_slab_init(&n->slab, BENCH_AREA + BENCH_TAIL, err);
    for (size_t i = 0; rc == 0 && i < n->slab.size; i++)
        n->slab.base[i] = (uint8_t)(i * 31 + (i >> 12));
    if (rc == 0)
        rc = hapi_fabric_open(&n->fabric, n->loop, o->transport, &n->slab, &opt, err);
    if (rc == 0)
        rc = hapi_listener_open(&n->listener, n->fabric, o->host, o->port, &handler, n, err);
    return rc;
}

static void node_close(struct node *n)
{
    int64_t end = hapi_clock_ns() + HAPI_NS_PER_S;

    hapi_conn_close(n->conn);
    while (n->conn && hapi_clock_ns() < end && hapi_loop_run_once(n->loop, HAPI_NS_PER_MS, NULL) == 0)
        continue;
    hapi_listener_close(n->listener);
    hapi_fabric_close(n->fabric);
    hapi_loop_close(n->loop);
    hapi_slab_fini(&n->slab);
    free(n);
}

int bench_node_serve(const struct bench_options *o, struct hapi_err *err)
{
    struct sigaction sa = {.sa_handler = on_signal};
    struct node *n = calloc(1, sizeof *n);
    int rc = n ? node_open(n, o, err) : hapi_err_set(err, HAPI_ENOMEM, 0, "no memory");

    if (rc == 0) {
        n->retry.fire = retry_fired;
        n->answered.on_done = answered;
        for (int i = 0; i < MARKS; i++)
            n->marks[i].op.on_done = mark_done;
        stop_loop = n->loop;
        sigaction(SIGTERM, &sa, NULL);
        sigaction(SIGINT, &sa, NULL);
        printf(strchr(o->host, ':') ? "ready [%s]:%u\n" : "ready %s:%u\n", o->host,
               hapi_listener_port(n->listener));
        fflush(stdout);
        rc = hapi_loop_run(n->loop, err);
    }
    if (n)
        node_close(n);
    return rc;
}
