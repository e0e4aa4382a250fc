#include "bare.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "clock.h"

enum { GIVE_BACK = 64, ANSWERS = BENCH_TAIL / BENCH_PING_BYTES, ANSWER_SIGNAL = 16 };

int bare_error(struct hapi_err *err, int sys, const char *what)
{
    return hapi_err_set(err, HAPI_ETRANSPORT, sys, "%s: %s", what, strerror(sys));
}

/* ---- node ---- */

struct node {
    struct bare *b;
    struct bench_request flood; /* count 0: none */
    uint64_t sent, done, completions, n_answers;
    uint32_t every;
    int64_t cpu_ns;
    bool bye;
};

static int answer(struct node *n, const struct bench_request *to, const void *what)
{
    uint64_t i = n->n_answers++;
    uint8_t *at = n->b->area + BENCH_AREA + i % ANSWERS * BENCH_PING_BYTES;

    memcpy(at, what, BENCH_PING_BYTES);
    return n->b->ops->write(n->b, at, BENCH_PING_BYTES, to->base + BENCH_AREA, to->key, 0,
                            n->n_answers % ANSWER_SIGNAL == 0, 0);
}

static int flood_end(struct node *n)
{
    struct bench_done d = {.magic = BENCH_MAGIC,
                           .cpu_ns = (uint64_t)(bench_cpu_ns() - n->cpu_ns),
                           .writes = n->sent,
                           .completions = n->completions,
                           .rnr = n->b->rnr};

    n->b->rnr = 0;
    n->flood.count = 0;
    return answer(n, &n->flood, &d);
}

static int flood_pump(struct node *n)
{
    const struct bench_request *f = &n->flood;
    int rc = 0;

    while (n->sent < f->count && n->sent - n->done < f->depth && rc == 0) {
        uint64_t i = n->sent;
        uint8_t *from = n->b->area + i % f->depth * f->size;
        bool signal = (i + 1) % n->every == 0 || i + 1 == f->count;
        memcpy(from, &i, sizeof i);
        rc = n->b->ops->write(n->b, from, f->size, f->base + i % f->slots * f->size, f->key, (uint32_t)i,
                              signal, i + 1);
        n->sent += rc == 0;
    }
    return rc == HAPI_EBUSY ? 0 : rc;
}

static int node_request(struct node *n, const struct bench_request *r)
{
    if (!bench_request_valid(r, sizeof *r) || (r->op == BENCH_FLOOD && n->flood.count))
        return HAPI_EPROTO;
    if (r->op == BENCH_PING)
        return answer(n, r, r);
    n->bye = r->op == BENCH_BYE;
    if (r->op != BENCH_FLOOD)
        return 0;
    n->flood = *r;
    n->sent = n->done = n->completions = 0;
    n->every = bench_signal_every(r->depth);
    n->cpu_ns = bench_cpu_ns();
    return flood_pump(n);
}

static int node_event(struct node *n, const struct bare_event *e)
{
    int rc;

    if (e->kind == BARE_RECV) {
        rc = node_request(n, e->msg);
        return rc ? rc : n->b->ops->receive(n->b, 1);
    }
    if (e->kind != BARE_SENT || !e->id || !n->flood.count)
        return 0;
    n->completions++;
    n->done = e->id;
    return n->done == n->flood.count ? flood_end(n) : flood_pump(n);
}

static void node_connection(struct bare *b)
{
    struct bare_event e[BARE_EVENTS];
    struct node n = {.b = b};
    int rc = 0;

    while (!n.bye && rc >= 0) {
        rc = b->ops->poll(b, e);
        for (int i = 0, got = rc; i < got && rc >= 0; i++)
            rc = node_event(&n, &e[i]);
        if (rc == 0 && n.flood.count) /* what a full queue refused */
            rc = flood_pump(&n);
        if (rc == 0)
            rc = b->ops->wait(b);
    }
    if (rc < 0 && rc != HAPI_ECLOSED)
        fprintf(stderr, "%s: peer lost: %s\n", b->options->program, hapi_err_meaning(rc));
}

static int serve(struct bare *b, struct hapi_err *err)
{
    int rc = 0;

    for (size_t i = 0; i < BENCH_AREA; i++)
        b->area[i] = (uint8_t)(i * 31 + (i >> 12));
    while (rc == 0) {
        rc = b->ops->accept(b, err);
        if (rc)
            break;
        node_connection(b);
        b->ops->hangup(b);
    }
    return rc;
}

/* ---- peer ---- */

static int request(struct bare *b, struct bench_request r, struct hapi_err *err)
{
    r.magic = BENCH_MAGIC;
    r.base = b->base;
    r.key = b->key;
    int rc = b->ops->send(b, &r);
    return rc ? hapi_err_set(err, rc, 0, "a request could not be sent") : 0;
}

/* Waits for events; 0 to BARE_EVENTS of them. */
static int next_events(struct bare *b, struct bare_event *e, struct hapi_err *err)
{
    int rc = b->ops->poll(b, e);

    if (rc == 0)
        rc = b->ops->wait(b);
    return rc < 0 ? hapi_err_set(err, rc, 0, "the node is gone: %s", hapi_err_meaning(rc)) : rc;
}

static int take_flood(struct bare *b, uint64_t count, int64_t *end, struct hapi_err *err)
{
    struct bare_event e[BARE_EVENTS];
    uint64_t arrived = 0;
    uint32_t used = 0;
    int rc = 0;

    while (arrived <= count && rc >= 0) {
        rc = next_events(b, e, err);
        for (int i = 0; i < rc; i++) {
            if (e[i].kind != BARE_IMM)
                continue;
            if (arrived < count && e[i].imm != (uint32_t)arrived)
                return hapi_err_set(err, HAPI_ECORRUPT, 0, "a write came out of order");
            if (++arrived == count)
                *end = hapi_clock_ns();
            used++;
        }
        if (rc >= 0 && (used >= GIVE_BACK || arrived > count)) {
            int given = b->ops->receive(b, used);
            rc = given ? hapi_err_set(err, given, 0, "receives could not be posted") : rc;
            used = 0;
        }
    }
    return rc < 0 ? rc : 0;
}

static int flood(void *side, size_t size, uint64_t count, bool checksum, struct bench_round *out,
                 struct hapi_err *err)
{
    struct bare *b = side;
    const struct bench_done *d = (const struct bench_done *)(b->area + BENCH_AREA);
    struct bench_request r = {.op = BENCH_FLOOD, .size = size, .count = count, .slots = bench_slots(size)};
    int64_t cpu = bench_cpu_ns(), from = hapi_clock_ns(), to = from;
    uint64_t last = count - 1;

    (void)checksum;
    r.depth = bench_depth(b->options, size);
    int rc = request(b, r, err);
    if (rc == 0)
        rc = take_flood(b, count, &to, err);
    if (rc)
        return rc;
    *out = (struct bench_round){.writes = count,
                                .completions = d->completions,
                                .rnr = d->rnr,
                                .seconds = 1e-9 * (double)(to - from),
                                .node_cpu = 1e-9 * (double)d->cpu_ns,
                                .peer_cpu = 1e-9 * (double)(bench_cpu_ns() - cpu)};
    if (d->magic != BENCH_MAGIC || d->writes != count ||
        memcmp(b->area + last % r.slots * size, &last, sizeof last))
        return hapi_err_set(err, HAPI_ECORRUPT, 0, "the last write of %llu is not what the node sent",
                            (unsigned long long)count);
    return 0;
}

static int ping(void *side, uint32_t n, int64_t *ns, struct hapi_err *err)
{
    struct bare *b = side;
    struct bare_event e[BARE_EVENTS];
    int rc = 0;

    for (uint32_t i = 0; i < n; i++) {
        bool came = false;
        int64_t from = hapi_clock_ns();
        rc = request(b, (struct bench_request){.op = BENCH_PING}, err);
        while (rc >= 0 && !came) {
            rc = next_events(b, e, err);
            for (int k = 0; k < rc; k++)
                came |= e[k].kind == BARE_IMM;
        }
        if (rc < 0)
            return rc;
        ns[i] = hapi_clock_ns() - from;
        if (b->ops->receive(b, 1))
            return hapi_err_set(err, HAPI_ETRANSPORT, 0, "a receive could not be posted");
    }
    return 0;
}

static int measure(struct bare *b, const struct bench_options *o, struct hapi_err *err)
{
    const struct bench_ops ops = {.flood = flood, .ping = ping};
    struct bench_report report;
    int rc = bench_measure(&report, o, &ops, b, err);

    if (rc == 0)
        rc = request(b, (struct bench_request){.op = BENCH_BYE}, err);
    b->ops->hangup(b);
    return rc ? rc : bench_report_print(&report, o) == BENCH_OK ? 0 : HAPI_ESYS;
}

int bare_main(int argc, char **argv, struct bare *b, const char *program, const char *help)
{
    struct bench_options o;
    struct hapi_err err = {0};
    int rc = bench_options_parse(&o, argc, argv, program, b->ops->transport, help);

    if (rc)
        return rc - 1;
    b->options = &o;
    b->area = aligned_alloc(2 << 20, (BENCH_AREA + BENCH_TAIL + (2 << 20) - 1) & ~((2 << 20) - 1));
    b->small = aligned_alloc(4096, BARE_SMALL_BYTES);
    if (!b->area || !b->small) {
        rc = hapi_err_set(&err, HAPI_ENOMEM, 0, "no memory");
    } else {
        memset(b->area, 0, BENCH_AREA + BENCH_TAIL);
        memset(b->small, 0, BARE_SMALL_BYTES);
        rc = b->ops->open(b, &o, &err);
        if (rc == 0)
            rc = o.serve ? serve(b, &err) : measure(b, &o, &err);
    }
    free(b->area);
    free(b->small);
    return rc ? bench_fail(program, &err) : BENCH_OK;
}
