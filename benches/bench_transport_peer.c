/* The compute side of `hapi-bench transport`: exposes a window, asks, and takes the time. */
#include <stdlib.h>
#include <string.h>

#include "clock.h"
#include "convert.h"
#include "transport_bench.h"

#define PATIENCE_NS (10 * HAPI_NS_PER_S) /* without any progress */

enum { REQUESTS = 32, REQUEST_SIGNAL = 8 };

struct request {
    struct hapi_conn_op op; /* first */
    uint64_t upto;
    struct bench_request msg;
};

struct bench_peer {
    const struct bench_options *options;
    struct hapi_loop *loop;
    struct hapi_slab window;
    struct hapi_fabric *fabric;
    struct hapi_conn *conn;
    struct hapi_timer watchdog;
    struct hapi_err why;
    bool finished, failed;
    uint64_t key, base;
    struct request requests[REQUESTS];
    uint64_t requests_sent, requests_done;
    uint32_t granted; /* immediates that may still come */
    uint64_t arrived, seen;
    struct bench_request flood; /* count 0: a ping */
    uint32_t uncredited;
    int64_t at_ns;
    int64_t *ns;
    uint32_t n_pings;
};

static void fail(struct bench_peer *p, int code, const char *text)
{
    if (!p->failed)
        hapi_err_set(&p->why, code, 0, "%s", text);
    p->failed = true;
}

static void request_done(struct hapi_conn *c, struct hapi_conn_op *op, int status)
{
    struct bench_peer *p = hapi_conn_user(c);

    if (status == 0)
        p->requests_done = ((struct request *)op)->upto;
}

/* One in a few waits for its completion, which stands for those before it. False: no room now. */
static bool request(struct bench_peer *p, const struct bench_request *r)
{
    struct request *q = &p->requests[p->requests_sent % REQUESTS];
    bool signal = p->requests_sent % REQUEST_SIGNAL == 0;

    if (p->requests_sent - p->requests_done == REQUESTS)
        return false;
    q->msg = *r;
    q->msg.magic = BENCH_MAGIC;
    q->msg.base = p->base;
    q->msg.key = p->key;
    q->upto = p->requests_sent + 1;
    int rc = hapi_conn_send(p->conn, &q->msg, sizeof q->msg, signal ? &q->op : NULL);
    if (rc && rc != HAPI_EBUSY)
        fail(p, rc, "a request could not be sent");
    p->requests_sent += rc == 0;
    return rc == 0;
}

/* So that `n` immediates may come. */
static void grant(struct bench_peer *p, uint32_t n)
{
    if (p->granted >= n)
        return;
    int rc = hapi_conn_grant(p->conn, n - p->granted);
    if (rc)
        fail(p, rc, "immediates could not be granted");
    p->granted = n;
}

/* ---- floods ---- */

static const uint8_t *slot_of(const struct bench_peer *p, uint64_t i)
{
    return p->window.base + i % p->flood.slots * p->flood.size;
}

static bool intact(const struct bench_peer *p, uint64_t i, uint32_t imm)
{
    if (!p->flood.checksum)
        return imm == (uint32_t)i;
    return imm == hapi_crc32c(0, slot_of(p, i), p->flood.size) && !memcmp(slot_of(p, i), &i, sizeof i);
}

/* Places are given back by the half window: the node never waits for the other half. */
static void credit(struct bench_peer *p)
{
    uint32_t n = p->uncredited;

    if (n < (p->flood.slots + 1) / 2 || p->arrived == p->flood.count)
        return;
    grant(p, p->flood.slots + 1);
    if (request(p, &(struct bench_request){.op = BENCH_CREDIT, .credit = n}))
        p->uncredited = 0;
}

static void flood_imm(struct bench_peer *p, uint32_t imm)
{
    if (p->arrived == p->flood.count) {
        p->finished = true;
        return;
    }
    if (!intact(p, p->arrived, imm))
        fail(p, HAPI_ECORRUPT, "a write came out of order or with wrong data");
    p->arrived++;
    p->uncredited++;
    if (p->arrived == p->flood.count)
        p->at_ns = hapi_clock_ns();
    else
        credit(p);
}

/* ---- pings ---- */

static void ping(struct bench_peer *p)
{
    grant(p, 1);
    p->at_ns = hapi_clock_ns();
    if (!request(p, &(struct bench_request){.op = BENCH_PING}))
        fail(p, HAPI_EBUSY, "a ping could not be sent");
}

static void ping_imm(struct bench_peer *p)
{
    p->ns[p->arrived++] = hapi_clock_ns() - p->at_ns;
    if (p->arrived == p->n_pings)
        p->finished = true;
    else
        ping(p);
}

/* ---- connection ---- */

static void on_open(struct hapi_conn *c)
{
    struct bench_peer *p = hapi_conn_user(c);

    p->finished = true;
}

static void on_recv(struct hapi_conn *c, const void *msg, size_t n)
{
    (void)c, (void)msg, (void)n;
}

static void on_imm(struct hapi_conn *c, uint32_t imm)
{
    struct bench_peer *p = hapi_conn_user(c);

    p->granted--;
    if (p->finished)
        fail(p, HAPI_EPROTO, "the node wrote more than it was asked for");
    else if (p->n_pings)
        ping_imm(p);
    else
        flood_imm(p, imm);
}

static void on_close(struct hapi_conn *c, const struct hapi_err *why)
{
    struct bench_peer *p = hapi_conn_user(c);

    p->conn = NULL;
    if (!p->failed)
        p->why = *why;
    p->failed = true;
}

static void watchdog_fired(struct hapi_timer *t)
{
    struct bench_peer *p = (struct bench_peer *)((char *)t - offsetof(struct bench_peer, watchdog));

    if (p->seen == p->arrived)
        fail(p, HAPI_ETIMEDOUT, "nothing came from the node for 10 s");
    p->seen = p->arrived;
    hapi_loop_timer_set(p->loop, t, hapi_clock_ns() + PATIENCE_NS);
}

static int wait_finished(struct bench_peer *p, struct hapi_err *err)
{
    int rc = 0;

    p->seen = UINT64_MAX;
    hapi_loop_timer_set(p->loop, &p->watchdog, hapi_clock_ns() + PATIENCE_NS);
    while (!p->finished && !p->failed && rc == 0)
        rc = hapi_loop_run_once(p->loop, -1, err);
    hapi_loop_timer_clear(p->loop, &p->watchdog);
    if (rc == 0 && p->failed) {
        if (err)
            *err = p->why;
        rc = p->why.code;
    }
    return rc;
}

int bench_peer_flood(void *side, size_t size, uint64_t count, bool checksum, struct bench_round *out,
                     struct hapi_err *err)
{
    struct bench_peer *p = side;
    const struct bench_done *d = (const struct bench_done *)(p->window.base + BENCH_AREA);
    uint32_t slots = bench_slots(size);

    p->flood = (struct bench_request){.op = BENCH_FLOOD,
                                      .size = size,
                                      .count = count,
                                      .slots = slots,
                                      .depth = bench_depth(p->options, size),
                                      .credit = slots,
                                      .checksum = checksum};
    p->finished = false;
    p->arrived = p->n_pings = p->uncredited = 0;
    grant(p, slots + 1);
    int64_t cpu = bench_cpu_ns(), from = hapi_clock_ns();
    if (!request(p, &p->flood))
        fail(p, HAPI_EBUSY, "a request could not be sent");
    int rc = wait_finished(p, err);
    if (rc)
        return rc;
    *out = (struct bench_round){.writes = count,
                                .completions = d->completions,
                                .rnr = d->rnr,
                                .seconds = 1e-9 * (double)(p->at_ns - from),
                                .node_cpu = 1e-9 * (double)d->cpu_ns,
                                .peer_cpu = 1e-9 * (double)(bench_cpu_ns() - cpu)};
    if (d->magic != BENCH_MAGIC || d->writes != count ||
        memcmp(slot_of(p, count - 1), &(uint64_t){count - 1}, 8))
        return hapi_err_set(err, HAPI_ECORRUPT, 0, "the last write of %llu is not what the node sent",
                            (unsigned long long)count);
    return 0;
}

int bench_peer_ping(void *side, uint32_t n, int64_t *ns, struct hapi_err *err)
{
    struct bench_peer *p = side;

    p->finished = false;
    p->arrived = 0;
    p->n_pings = n;
    p->ns = ns;
    ping(p);
    return wait_finished(p, err);
}

int bench_peer_open(struct bench_peer **out, const struct bench_options *o, struct hapi_err *err)
{
    static const struct hapi_conn_handler handler = {on_open, on_recv, on_imm, on_close};
    struct hapi_fabric_options opt = bench_fabric_options(o);
    struct bench_peer *p = calloc(1, sizeof *p);
    int rc;

    if (!p)
        return hapi_err_set(err, HAPI_ENOMEM, 0, "no memory");
    p->options = o;
    p->watchdog.fire = watchdog_fired;
    for (int i = 0; i < REQUESTS; i++)
        p->requests[i].op.on_done = request_done;
    rc = hapi_loop_open(&p->loop, 256, err);
    if (rc == 0)
        rc = hapi_slab_init(&p->window, BENCH_AREA + BENCH_TAIL, err);
    if (rc == 0)
        memset(p->window.base, 0, p->window.size); /* page faults are none of the transport's */
    if (rc == 0)
        rc = hapi_fabric_open(&p->fabric, p->loop, o->transport, NULL, &opt, err);
    if (rc == 0)
        rc = hapi_conn_connect(&p->conn, p->fabric, o->host, o->port, bench_nonce, &handler, p, err);
    if (rc == 0)
        rc = wait_finished(p, err);
    if (rc == 0)
        rc = hapi_conn_expose(p->conn, p->window.base, p->window.size, &p->key, &p->base, err);
    if (rc) {
        hapi_err_context(err, "%s:%u", o->host, o->port);
        bench_peer_close(p);
        return rc;
    }
    *out = p;
    return 0;
}

void bench_peer_close(struct bench_peer *p)
{
    int64_t end = hapi_clock_ns() + HAPI_NS_PER_S;

    if (!p)
        return;
    hapi_conn_close(p->conn);
    while (p->conn && hapi_clock_ns() < end && hapi_loop_run_once(p->loop, HAPI_NS_PER_MS, NULL) == 0)
        continue;
    hapi_fabric_close(p->fabric);
    hapi_loop_close(p->loop);
    hapi_slab_fini(&p->window);
    free(p);
}
