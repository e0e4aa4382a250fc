/*
 * Which node is asked for a sample: of those that have it, and have not failed at it, the one that is likely
 * to answer first.
 *
 *     seconds until it answers = (samples it was asked for + one request more) / samples a second of late
 *
 * A node that is slow or far away holds few requests, because a batch waits for all of its own. One of
 * several that has answered nothing yet is taken to be as fast as the fastest, and gets FIRST small requests.
 */
#include "clock.h"
#include "loader.h"

enum { FIRST = 2 };
#define FORGET 0.9 /* of what a node has shown, at each request that it answers */

bool replica_may(const struct loader_node *n, const struct batch *b, uint32_t at)
{
    const struct hapi_catalog *c = &n->l->catalog;
    uint64_t has = c->objects[c->sample_object[b->samples[at]]].nodes & ~b->tried[at];

    return n->state != NODE_DEAD && has >> n->number & 1;
}

static struct request *request_free(struct loader_node *n)
{
    for (int i = 0; i < NODE_REQUESTS && n->in_flight < n->max_requests; i++)
        if (!n->requests[i].active && !n->requests[i].sending)
            return &n->requests[i];
    return NULL;
}

/* Samples a second; 0: it has shown nothing. */
static double rate_of(const struct loader_node *n)
{
    return n->shown_s > 0 ? n->shown / n->shown_s : 0;
}

bool replica_is_new(const struct loader_node *n)
{
    return n->l->n_nodes > 1 && n->shown_s <= 0;
}

struct request *replica_request(struct hapi_loader *l, const struct batch *b, uint32_t at, bool *anywhere)
{
    struct loader_node *best = NULL;
    double fastest = 0, least = 0;

    *anywhere = false;
    for (uint32_t i = 0; i < l->n_nodes; i++)
        fastest = rate_of(&l->nodes[i]) > fastest ? rate_of(&l->nodes[i]) : fastest;
    for (uint32_t i = 0; i < l->n_nodes; i++) { /* of equals, in turn */
        struct loader_node *n = &l->nodes[(l->turn + i) % l->n_nodes];
        if (!replica_may(n, b, at))
            continue;
        *anywhere = true;
        if (n->state != NODE_UP || (replica_is_new(n) && n->in_flight >= FIRST))
            continue;
        double rate = rate_of(n) > 0 ? rate_of(n) : fastest > 0 ? fastest : 1;
        double s = ((double)n->asked + REQUEST_SAMPLES) / rate;
        if (!best || s < least) {
            best = n;
            least = s;
        }
    }
    struct request *r = best ? request_free(best) : NULL; /* none: waiting for it is better than another */
    if (r)
        l->turn = best->number + 1;
    return r;
}

void replica_asked(struct request *r)
{
    struct loader_node *n = r->node;

    if (!n->asked)
        n->shown_ns = r->began_ns;
    n->asked += r->n;
}

void replica_answered(struct request *r)
{
    struct loader_node *n = r->node;
    int64_t now = hapi_clock_ns();

    n->asked -= r->n;
    if (r->lost)
        return;
    n->shown = FORGET * n->shown + r->n;
    n->shown_s = FORGET * n->shown_s + 1e-9 * (double)(now - n->shown_ns);
    n->shown_ns = now;
}

/* What another copy of the object may not have: it is the object, or what it lies on, and not the sample. */
static bool is_of_the_copy(int status)
{
    return status == HAPI_ESTALE || status == HAPI_ESYS || status == HAPI_ENOENT || status == HAPI_ECORRUPT;
}

bool replica_another(struct request *r, uint32_t at, int status)
{
    struct hapi_loader *l = r->node->l;
    struct batch *b = r->batch;

    if (!is_of_the_copy(status))
        return false;
    b->tried[at] |= 1ULL << r->node->number;
    b->failed[at] = status;
    bool anywhere = false;
    for (uint32_t i = 0; i < l->n_nodes && !anywhere; i++)
        anywhere = replica_may(&l->nodes[i], b, at);
    if (!anywhere)
        return false;
    fetch_again(l, b, at);
    atomic_fetch_add(&l->n_reissued, 1);
    return true;
}
