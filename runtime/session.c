/* The data side of a session: its connection and the requests that come over it. control.c has the rest. */
#include <stdlib.h>
#include <string.h>

#include "clock.h"
#include "log.h"
#include "runtime.h"

#define UPLOAD_RETRY_NS (100 * HAPI_NS_PER_MS)

/* ------------------------------------------------------------------ requests in service */

static void queue_remove(struct hapi_session *s, struct hapi_service *v)
{
    for (struct hapi_service **p = &s->queue; *p; p = &(*p)->next)
        if (*p == v) {
            *p = v->next;
            if (!v->next)
                s->queue_tail = p;
            return;
        }
}

void hapi_service_finish(struct hapi_service *v)
{
    struct hapi_session *s = v->session;

    if (!v->finished) {
        v->finished = true;
        queue_remove(s, v);
        s->in_service--;
    }
    if (v->refs || !v->dataset)
        return;
    hapi_feature_set_put(v->kept);
    v->kept = NULL;
    hapi_prefix_put(v->prefix);
    v->prefix = NULL;
    v->dataset = NULL;
    v->next = s->free_services;
    s->free_services = v;
}

struct hapi_owner hapi_session_owner(const struct hapi_session *s)
{
    bool shares = s->tenant == &s->rt->other_tenants; /* with tenants that it does not know */

    return (struct hapi_owner){.id = shares ? s->number : (uint64_t)(uintptr_t)s->tenant,
                               .weight = s->tenant->rules.weight,
                               .memory = s->tenant->rules.memory};
}

/* Everything that can be wrong with it becomes its status: the client is told by its terminal record. */
static int service_resolve(struct hapi_service *v)
{
    struct hapi_rt *rt = v->session->rt;
    struct hapi_request *r = &v->req;
    int why = 0;

    for (uint32_t i = 0; i < r->n_objects; i++) {
        char name[HAPI_NAME_MAX + 1];
        memcpy(name, r->objects[i].name.s, r->objects[i].name.n);
        name[r->objects[i].name.n] = '\0';
        v->object[i] = hapi_dataset_object(v->dataset, name);
    }
    if (rt->draining)
        return HAPI_ECLOSED;
    if (!r->n_cut) {
        uint64_t at = 0;
        for (uint32_t i = 0; i < r->n_samples; i++) {
            int64_t o = v->object[r->samples[i].object];
            bool known = o >= 0 && r->samples[i].index < v->dataset->objects[o].n_samples;
            v->raw_offset[i] = at;
            at += known ? v->dataset->samples[v->dataset->objects[o].first_sample + r->samples[i].index].bytes
                        : 0;
        }
        return at > r->windows[0].capacity ? HAPI_ETOOBIG : 0;
    }
    if (r->augment_seed)
        return HAPI_EUNSUPPORTED;
    if (!v->session->tenant->rules.upload) /* it may have had that right when it came */
        return HAPI_EAUTH;
    v->prefix = hapi_prefix_get(rt->models, r, hapi_session_owner(v->session), &why);
    return v->prefix ? 0 : why;
}

static const char *dataset_resolve(struct hapi_service *v)
{
    char name[HAPI_NAME_MAX + 1];

    memcpy(name, v->req.dataset.s, v->req.dataset.n);
    name[v->req.dataset.n] = '\0';
    bool reads = hapi_tenant_reads(v->session->tenant, name);
    v->dataset = reads ? hapi_store_find(v->session->rt->store, name) : NULL;
    return v->dataset ? NULL : "no such dataset";
}

/* What the prefix turned out to be must fit what the client offered; only known once it is compiled. When it
 * could not be, the client is told why. */
static void service_fit(struct hapi_service *v)
{
    struct hapi_prefix *p = v->prefix;

    if (!p || p->state == HAPI_PREFIX_BUILDING || v->status)
        return;
    if (p->state == HAPI_PREFIX_FAILED) {
        v->status = p->err.code;
        if (v->session->control)
            hapi_control_error(v->session->control, v->req.trace_id, p->err.code, p->err.text);
        return;
    }
    if (v->formed) /* it had other plans before */
        return;
    if (p->n_tensors != v->req.n_windows)
        v->status = HAPI_EINVAL;
    for (uint32_t i = 0; !v->status && i < p->n_tensors; i++)
        if (v->req.windows[i].stride < p->row_bytes[i])
            v->status = HAPI_ETOOBIG;
    if (!v->status)
        hapi_remember_serve(v);
}

void hapi_conn_stats_add(struct hapi_conn_stats *sum, const struct hapi_conn_stats *s)
{
    sum->writes += s->writes;
    sum->bytes += s->bytes;
    sum->sends += s->sends;
    sum->recvs += s->recvs;
    sum->imms += s->imms;
    sum->completions += s->completions;
    sum->rnr += s->rnr;
}

void hapi_session_end(struct hapi_session *s, const struct hapi_err *why)
{
    struct hapi_rt *rt = s->rt;
    char quoted[HAPI_ERR_TEXT];

    if (!s->why.code)
        s->why = *why;
    if (s->control || s->conns || s->ended)
        return;
    s->ended = true;
    hapi_log(HAPI_LOG_INFO, "session closed",
             "peer=%s transport=%s requests=%llu bytes=%llu completions=%llu rnr=%llu why=%s", s->peer,
             s->connected ? hapi_transport_names[s->transport] : "-", (unsigned long long)s->stats.recvs,
             (unsigned long long)s->stats.bytes, (unsigned long long)s->stats.completions,
             (unsigned long long)s->stats.rnr, hapi_log_quote(quoted, sizeof quoted, s->why.text));
    if (!s->connected) /* it only asked something */
        return;
    rt->last_end.tenant = s->tenant;
    memcpy(rt->last_end.peer, s->peer, sizeof s->peer);
    rt->last_end.transport = s->transport;
    rt->last_end.stats = s->stats;
    rt->last_end.why = s->why;
}

void hapi_session_fail(struct hapi_session *s, const char *what, const struct hapi_err *why)
{
    char quoted[HAPI_ERR_TEXT];

    s->rt->counters.rejected++;
    hapi_log(HAPI_LOG_WARN, what, "peer=%s why=%s", s->peer,
             hapi_log_quote(quoted, sizeof quoted, why->text));
    s->why = *why;
    if (s->control) {
        hapi_control_error(s->control, 0, why->code, why->text);
        hapi_control_finish(s->control);
    }
    hapi_conn_close(s->conn);
}

static void data_recv(struct hapi_conn *c, const void *message, size_t n)
{
    struct hapi_session *s = hapi_conn_user(c);
    struct hapi_service *v = s->free_services;
    struct hapi_err err = {0};
    const char *bad = NULL;

    s->conn_used = true;
    if (n > HAPI_REQUEST_MAX || !v || s->in_service >= s->max_requests) {
        hapi_err_set(&err, HAPI_EPROTO, 0, "more than the %u requests that were granted", s->max_requests);
        hapi_session_fail(s, "client breaks the protocol", &err);
        return;
    }
    memcpy(v->message, message, n);
    v->req.objects = v->objects;
    v->req.samples = v->samples;
    if (hapi_request_decode(&v->req, v->message, n, &err)) {
        hapi_session_fail(s, "malformed request", &err);
        return;
    }
    if ((bad = dataset_resolve(v))) {
        hapi_err_set(&err, HAPI_ENOENT, 0, "%s: %.*s", bad, (int)v->req.dataset.n, v->req.dataset.s);
        hapi_session_fail(s, "request refused", &err);
        return;
    }
    s->free_services = v->next;
    v->session = s;
    v->prefix = NULL;
    v->kept = NULL;
    v->finished = false;
    v->formed = v->unsent = v->refs = v->parts = 0;
    v->arrived_ns = hapi_clock_ns();
    v->deadline_ns = v->req.deadline_ms ? v->arrived_ns + v->req.deadline_ms * HAPI_NS_PER_MS : 0;
    v->status = service_resolve(v);
    v->next = NULL;
    *s->queue_tail = v;
    s->queue_tail = &v->next;
    s->in_service++;
    s->rt->counters.requests++;
    s->tenant->requests++;
    service_fit(v);
    hapi_sched_pump(s->rt);
}

void hapi_session_prefixes_changed(void *arg)
{
    struct hapi_rt *rt = arg;

    for (struct hapi_session *s = rt->sessions; s; s = s->next)
        for (struct hapi_service *v = s->queue; v; v = v->next)
            service_fit(v);
    hapi_sched_pump(rt);
}

/* ------------------------------------------------------------------ the data connection */

static void *data_admit(void *listener_user, const uint8_t nonce[HAPI_NONCE_SIZE])
{
    struct hapi_session *s = listener_user;
    unsigned differs = 0;

    for (int i = 0; i < HAPI_NONCE_SIZE; i++) /* in constant time: it is a secret */
        differs |= (unsigned)(s->nonce[i] ^ nonce[i]);
    if (differs || !s->nonce_valid || !s->control)
        return NULL;
    s->nonce_valid = false; /* the listener is closed when this round is over */
    return s;
}

static void data_accept(struct hapi_conn *c, void *user)
{
    struct hapi_session *s = user;

    s->conn = c;
    s->conn_used = false;
    s->connected = true;
    s->conns++;
    s->rt->offers[s->transport].connections++;
}

static void data_open(struct hapi_conn *c)
{
    struct hapi_session *s = hapi_conn_user(c);

    hapi_log(HAPI_LOG_DEBUG, "data connection open", "peer=%s transport=%s", s->peer,
             hapi_transport_names[s->transport]);
}

static void data_close(struct hapi_conn *c, const struct hapi_err *why)
{
    struct hapi_session *s = hapi_conn_user(c);
    struct hapi_conn_stats stats = hapi_conn_stats_get(c);
    char quoted[HAPI_ERR_TEXT];
    bool replaced = s->conn != c;

    hapi_log(HAPI_LOG_DEBUG, "data connection closed", "peer=%s why=%s", s->peer,
             hapi_log_quote(quoted, sizeof quoted, why->text));
    s->conns--;
    if (!replaced) {
        s->conn = NULL;
        hapi_conn_stats_add(&s->stats, &stats);
        hapi_conn_stats_add(&s->rt->offers[s->transport].ended, &stats);
        while (s->queue)
            hapi_service_finish(s->queue);
        hapi_batches_continue(s->rt, c); /* frees what was waiting to be sent */
        if (s->control && s->conn_used) {
            /* The client may not know: what receives on RC sees no difference between broken and idle. */
            if (!s->why.code)
                s->why = *why;
            hapi_control_error(s->control, 0, why->code, why->text);
            hapi_control_finish(s->control);
        }
    }
    if (!s->control)
        hapi_session_end(s, why);
    hapi_sched_pump(s->rt);
}

const struct hapi_listener_handler hapi_session_data_handler = {
    .admit = data_admit,
    .conn = {.on_open = data_open, .on_recv = data_recv, .on_close = data_close},
    .on_accept = data_accept,
};

void hapi_sessions_reap(struct hapi_rt *rt)
{
    for (struct hapi_session **p = &rt->sessions, *s; (s = *p);) {
        bool busy = s->control || s->conns || s->uploading_busy;
        if (s->upload_waits && hapi_clock_ns() - s->upload_tried_ns > UPLOAD_RETRY_NS)
            hapi_upload_begin(s);
        hapi_session_listen_step(s);
        for (uint32_t i = 0; !busy && i < s->n_services; i++)
            busy = s->services[i].refs != 0;
        if (busy) {
            p = &s->next;
            continue;
        }
        *p = s->next;
        free(s->services);
        if (s->holds_model)
            hapi_model_let_go(rt->models, hapi_session_owner(s), s->model);
        if (s->upload)
            hapi_models_release(rt->models, hapi_session_owner(s), s->upload_size);
        free(s->upload);
        free(s);
    }
}
