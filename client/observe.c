/*
 * What a job shows while it runs: of each link the time in which something was on its way, and what came in
 * it; of nodes and of this tier how long images took; of the caller what it does between batches.
 *
 *     node:    ──── sending began ──┐            by its record, on its clock, which CLOCK compares with ours
 *     client:  ─ part before came ─────────── part came ──>
 *                                   |  busy  |
 */
#include <string.h>

#include "clock.h"
#include "loader.h"
#include "trace.h"

enum {
    CLOCK_MS = 1000,      /* between two looks at a node's clock */
    EVIDENCE = 256 << 10, /* bytes that say something of a link that was idle before: not of its latency */
    PROBE_MS = 3000,      /* without evidence: ask for some */
    PAUSE_MS = 1000,      /* of a caller that does something else than train between two batches */
};
static const double DRIFT = 1e-4; /* of two clocks, per second: more than there is */

static bool watched(const struct hapi_loader *l)
{
    return l->online || l->o.trace;
}

/* ------------------------------------------------------------------ clocks */

void observe_up(struct loader_node *n)
{
    if (!watched(n->l))
        return;
    n->link.traced = trace_node(n->l->o.trace, n->name);
    n->link.asked_ns = hapi_clock_ns();
    node_clock(n);
}

void observe_clock(struct loader_node *n, const void *body, size_t size)
{
    struct link_seen *s = &n->link;
    struct hapi_msg_clock m;
    int64_t now = hapi_clock_ns();

    if (!watched(n->l) || hapi_msg_clock_decode(&m, body, size, NULL) || (int64_t)m.t0_ns > now ||
        (int64_t)m.t0_ns < s->clock_ns || m.t1_ns > INT64_MAX)
        return;
    /* What comes back sooner says more; an old answer says less, the longer ago it was. */
    int64_t rtt = now - (int64_t)m.t0_ns + 1,
            aged = s->rtt_ns + (int64_t)(DRIFT * (double)(now - s->clock_ns));
    if (s->rtt_ns && rtt > aged)
        return;
    s->rtt_ns = rtt;
    s->clock_ns = now;
    s->offset_ns = (int64_t)m.t1_ns - (now - rtt / 2);
    trace_clock(n->l->o.trace, s->traced, s->offset_ns, rtt);
}

/* ------------------------------------------------------------------ parts */

static void link_part(struct link_seen *s, const struct hapi_record *r, double bytes, int64_t now)
{
    int64_t began = (int64_t)(r->stage_ns[5] & INT64_MAX) - s->offset_ns, since = s->arrived_ns;

    s->arrived_ns = now;
    if (!s->rtt_ns || r->stage_ns[5] > INT64_MAX || began > now)
        return;
    bool idle = began > since;
    since = idle ? began : since;
    if (!since || (idle && bytes < EVIDENCE))
        return;
    s->bytes += bytes;
    s->busy_s += 1e-9 * (double)(now - since);
    if (bytes >= EVIDENCE || !idle)
        s->evidence_ns = now;
}

void observe_part(struct request *r)
{
    struct hapi_loader *l = r->node->l;
    const struct hapi_record *record = r->record;
    struct route_seen *s = &r->route->seen;
    double bytes = record->size, ns = 0;

    if (!watched(l) || record->status || !record->count)
        return;
    for (uint32_t i = 0; i < record->count; i++)
        bytes += record->samples[i].bytes;
    trace_part(l->o.trace, r->node->link.traced, record, (uint64_t)bytes);
    if (!l->online)
        return;
    ns = (double)record->stage_ns[2] + (double)record->stage_ns[3]; /* decode, compute */
    pthread_mutex_lock(&l->lock);
    link_part(&r->node->link, record, bytes, hapi_clock_ns());
    if (r->route->cut && ns < 1e9 * 3600) {
        s->parts++;
        s->images += record->count;
        s->node_s += 1e-9 * ns;
    }
    pthread_mutex_unlock(&l->lock);
}

void observe_chunk(const struct chunk *c)
{
    struct hapi_loader *l = c->request->node->l;
    struct route_seen *s = &c->request->route->seen;

    trace_job(l->o.trace, c->worker, c->request->generation, c->count, c->began_ns, c->ended_ns);
    if (!l->online || !c->request->route->plans)
        return;
    pthread_mutex_lock(&l->lock);
    s->chunks++;
    s->chunk_images += c->count;
    s->here_s += 1e-9 * (double)(c->ns[HAPI_STAGE_DECODE] + c->ns[HAPI_STAGE_COMPUTE]);
    pthread_mutex_unlock(&l->lock);
}

void observe_request(const struct request *r)
{
    trace_request(r->node->l->o.trace, r->node->link.traced, r->generation, r->n, r->began_ns);
}

/* ------------------------------------------------------------------ the caller */

void observe_asked(struct hapi_loader *l)
{
    l->asked_ns = hapi_clock_ns();
    int64_t ns = l->asked_ns - l->given_ns;

    if (l->given_ns && ns < PAUSE_MS * HAPI_NS_PER_MS) {
        l->caller_s += 1e-9 * (double)ns;
        l->caller_images += l->given;
    }
    l->given_ns = 0;
}

void observe_given(struct hapi_loader *l, uint32_t n)
{
    l->delivered += n;
    l->given = n;
    l->given_ns = hapi_clock_ns();
    trace_wait(l->o.trace, l->asked_ns, l->given_ns);
}

/* ------------------------------------------------------------------ from time to time */

void observe_tick(struct hapi_loader *l)
{
    int64_t now = hapi_clock_ns();
    bool asked = false;

    if (!watched(l))
        return;
    for (uint32_t i = 0; i < l->n_nodes; i++) {
        struct loader_node *n = &l->nodes[i];
        struct link_seen *s = &n->link;
        if (n->state != NODE_UP)
            continue;
        if (!s->asked_ns || now - s->asked_ns > CLOCK_MS * HAPI_NS_PER_MS) {
            s->asked_ns = now;
            node_clock(n);
        }
        asked |= l->online && n->in_flight && now - s->evidence_ns > PROBE_MS * HAPI_NS_PER_MS;
    }
    l->probe |= asked;
}
