/* Whose request is served next: one micro-batch in turn from each session, first come first served within
 * one. */
#include "clock.h"
#include "runtime.h"

/* The first request of the session that has samples left and can go on now. */
static struct hapi_service *runnable(struct hapi_session *s)
{
    for (struct hapi_service *v = s->queue; v; v = v->next) {
        if (v->finished || v->formed == v->req.n_samples)
            continue;
        if (!v->status && v->deadline_ns && hapi_clock_ns() > v->deadline_ns)
            v->status = HAPI_ETIMEDOUT;
        if (!v->status && v->prefix && v->prefix->state == HAPI_PREFIX_FAILED)
            v->status = v->prefix->err.code;
        if (v->status || !v->prefix || v->prefix->state == HAPI_PREFIX_READY)
            return v;
    }
    return NULL;
}

void hapi_sched_pump(struct hapi_rt *rt)
{
    uint32_t idle = 0, sessions = 0;

    for (struct hapi_session *s = rt->sessions; s; s = s->next)
        sessions++;
    while (rt->free_batches && idle < sessions) {
        struct hapi_session *s = rt->turn ? rt->turn : rt->sessions;
        struct hapi_service *v = s->conn ? runnable(s) : NULL;
        rt->turn = s->next;
        idle = v ? 0 : idle + 1;
        if (v)
            hapi_batch_start(rt, v);
    }
}
