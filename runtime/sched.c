/*
 * Whose request is served next. The node's time is shared by weight, whatever the networks are: of the
 * tenants that have something to do, and whose rate lets them, the one whose micro-batches have taken least
 * by its weight, of its sessions the one whose have, and within a session first come first served.
 *
 * Start-time fair queueing: a micro-batch is charged to both when it starts, by what those before it took,
 * and put right when it is over. Who was idle has no claim to what the others had meanwhile.
 */
#include "clock.h"
#include "runtime.h"

/* A client that takes nothing for so long is given up: at once when others wait for the memory that holds it.
 */
#define STALL_NS (30 * HAPI_NS_PER_S)
#define STALL_WANTED_NS HAPI_SILENCE_NS
/* That somebody may be behind who could have been served: corrections, not idleness. */
#define LAG_NS (200 * HAPI_NS_PER_MS)

/* ------------------------------------------------------------------ what it costs */

/* Nanoseconds of the whole node: of all compute threads, or of all micro-batches' memory while neither a
 * thread nor a plan is waited for, whichever is the larger part of what there is. */
static int64_t cost_of(const struct hapi_batch *b)
{
    int64_t threads = hapi_pool_threads(b->rt->pool);
    int64_t computing = b->ns[HAPI_NS_DECODE] + b->ns[HAPI_NS_COMPUTE] + b->ns[HAPI_NS_CONVERT];
    int64_t holding = b->ns[HAPI_NS_READ] + b->ns[HAPI_NS_SEND];

    computing /= threads;
    holding /= b->rt->cfg.batches;
    return computing > holding ? computing : holding;
}

static int64_t *estimate_of(struct hapi_batch *b)
{
    struct hapi_prefix *p = b->service->prefix;

    return !p ? &b->rt->raw_cost_ns : b->n_computed ? &p->cost_ns : &p->kept_cost_ns;
}

static void charge(struct hapi_batch *b, int64_t ns)
{
    b->service->session->virtual_ns += ns;
    b->service->session->tenant->virtual_ns += ns / b->service->session->tenant->rules.weight;
}

void hapi_sched_charge(struct hapi_batch *b)
{
    b->charged_ns = *estimate_of(b) ? *estimate_of(b) : HAPI_NS_PER_US; /* equals take turns from the start */
    charge(b, b->charged_ns);
    b->ahead = b->service->prefix && b->n_computed;
    b->rt->ahead += b->ahead;
}

void hapi_sched_computed(struct hapi_batch *b)
{
    b->rt->ahead -= b->ahead;
    b->ahead = false;
}

void hapi_sched_settle(struct hapi_batch *b)
{
    int64_t cost = cost_of(b), *mean = estimate_of(b);

    charge(b, cost - b->charged_ns);
    *mean = *mean ? *mean + (cost - *mean) / 8 : cost;
}

/* ------------------------------------------------------------------ whose turn it is */

/* The first request of the session that has samples left and can go on now. */
static struct hapi_service *runnable(struct hapi_session *s)
{
    for (struct hapi_service *v = s->queue; v; v = v->next) {
        if (v->finished || v->formed == v->req.n_samples)
            continue;
        if (!v->status && v->deadline_ns && hapi_clock_ns() > v->deadline_ns)
            v->status = HAPI_ETIMEDOUT;
        if (v->status || !v->prefix || v->prefix->state == HAPI_PREFIX_READY)
            return v;
    }
    return NULL;
}

/* One micro-batch in eight is out of any session's reach, so that one that takes nothing does not hold them
 * all. */
static bool may_have_more(const struct hapi_session *s)
{
    uint32_t n = s->rt->cfg.batches;

    return s->batches < n - (n > 8 ? n / 8 : 1);
}

/* Enough for every compute thread to have one in hand and one to come. More would stand in the way of
 * whoever comes next: threads take what is read in order. */
static bool may_compute_more(const struct hapi_rt *rt)
{
    return rt->ahead < 2 * (uint32_t)hapi_pool_threads(rt->pool) + 1;
}

static void catch_up(int64_t *virtual_ns, int64_t now)
{
    if (*virtual_ns < now - LAG_NS)
        *virtual_ns = now - LAG_NS;
}

/* Of two sessions that can go on. */
static bool is_before(const struct hapi_session *a, const struct hapi_session *b)
{
    if (a->tenant != b->tenant && a->tenant->virtual_ns != b->tenant->virtual_ns)
        return a->tenant->virtual_ns < b->tenant->virtual_ns;
    return a->virtual_ns < b->virtual_ns;
}

static struct hapi_service *next_service(struct hapi_rt *rt)
{
    struct hapi_service *best = NULL;
    int64_t now = hapi_clock_ns();

    for (struct hapi_session *s = rt->sessions; s; s = s->next) {
        bool may = s->conn && may_have_more(s) && hapi_tenant_may_send(s->tenant, now);
        struct hapi_service *v = may ? runnable(s) : NULL;
        if (!v || (v->prefix && !v->status && !may_compute_more(rt) && !hapi_remember_next(v)))
            continue;
        catch_up(&s->tenant->virtual_ns, rt->virtual_ns);
        catch_up(&s->virtual_ns, s->tenant->session_ns);
        if (!best || is_before(s, best->session))
            best = v;
    }
    return best;
}

static void advance(int64_t *now, int64_t served)
{
    *now = served > *now ? served : *now;
}

void hapi_sched_pump(struct hapi_rt *rt)
{
    struct hapi_service *v;

    while (rt->free_batches && (v = next_service(rt))) {
        advance(&rt->virtual_ns, v->session->tenant->virtual_ns);
        advance(&v->session->tenant->session_ns, v->session->virtual_ns);
        hapi_batch_start(rt, v);
    }
}

void hapi_sessions_stalled(struct hapi_rt *rt)
{
    int64_t now = hapi_clock_ns();
    bool wanted = false;

    for (struct hapi_session *s = rt->sessions; s && !rt->free_batches; s = s->next)
        wanted |= s->conn && !s->batches && runnable(s);
    for (struct hapi_session *s = rt->sessions; s; s = s->next) {
        struct hapi_err why;
        if (!s->conn || !s->sending || now - s->sent_ns < (wanted ? STALL_WANTED_NS : STALL_NS))
            continue;
        hapi_err_set(&why, HAPI_ETIMEDOUT, 0, "nothing that was sent has been taken for %.1f s",
                     (double)(now - s->sent_ns) * 1e-9);
        s->sent_ns = now; /* once */
        hapi_session_fail(s, "client takes no data", &why);
    }
}
