/* Whose request is served next: one micro-batch in turn from each session, first come first served within
 * one. */
#include "clock.h"
#include "runtime.h"

/* A client that takes nothing for so long is given up: at once when others wait for the memory that holds it.
 */
#define STALL_NS (30 * HAPI_NS_PER_S)
#define STALL_WANTED_NS HAPI_SILENCE_NS

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

void hapi_sched_pump(struct hapi_rt *rt)
{
    uint32_t idle = 0, sessions = 0;

    for (struct hapi_session *s = rt->sessions; s; s = s->next)
        sessions++;
    while (rt->free_batches && idle < sessions) {
        struct hapi_session *s = rt->turn ? rt->turn : rt->sessions;
        struct hapi_service *v = s->conn && may_have_more(s) ? runnable(s) : NULL;
        rt->turn = s->next;
        idle = v ? 0 : idle + 1;
        if (v)
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
