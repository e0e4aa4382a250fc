/* What a client says on its control channel, and the answers. */
#include "control.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "clock.h"
#include "log.h"
#include "runtime.h"

static void bad_message(struct hapi_session *s, const char *what, const struct hapi_err *why)
{
    char quoted[HAPI_ERR_TEXT];

    s->rt->counters.rejected++;
    hapi_log(HAPI_LOG_WARN, "malformed control message", "peer=%s message=%s why=%s",
             hapi_control_peer(s->control), what, hapi_log_quote(quoted, sizeof quoted, why->text));
    hapi_control_error(s->control, 0, HAPI_EPROTO, why->text);
    hapi_control_finish(s->control);
}

static uint64_t text_id(const void *body, size_t n)
{
    struct hapi_msg_text t;
    return hapi_msg_text_decode(&t, body, n, NULL) ? 0 : t.id;
}

static struct hapi_str str_of(const char *s)
{
    return (struct hapi_str){s, (uint32_t)strlen(s)};
}

/* ------------------------------------------------------------------ ls, index */

static void on_ls(struct hapi_session *s, const void *body, size_t n)
{
    struct hapi_rt *rt = s->rt;
    struct hapi_list list;
    int rc = hapi_list_begin(&list, rt->frame, HAPI_FRAME_MAX, text_id(body, n));

    for (uint32_t i = 0; rc >= 0 && i < hapi_store_count(rt->store); i++) {
        const struct hapi_dataset *d = hapi_store_at(rt->store, i);
        int used = 0;
        if (!hapi_tenant_reads(s->tenant, d->name))
            continue;
        for (uint32_t c = 0; used >= 0 && c < d->n_classes; c++)
            used = hapi_classes_append(rt->scratch, HAPI_FRAME_MAX, (size_t)used, d->classes[c]);
        struct hapi_msg_dataset m = {
            .name = str_of(d->name),
            .objects = d->n_objects,
            .samples = d->n_samples,
            .bytes = d->bytes,
            .max_sample_bytes = d->max_sample_bytes,
            .problems = d->n_problems,
            .n_classes = d->n_classes,
            .classes_blob = {(const char *)rt->scratch, used < 0 ? 0 : (uint32_t)used},
        };
        rc = used < 0 ? used : hapi_list_dataset(&list, &m);
    }
    if (rc < 0)
        hapi_control_error(s->control, text_id(body, n), rc, "the list of datasets is longer than a frame");
    else
        hapi_control_send(s->control, HAPI_MSG_LS_REPLY, rt->frame, list.used);
}

static int list_object(struct hapi_rt *rt, struct hapi_list *list, const struct hapi_dataset *d, uint32_t i)
{
    const struct hapi_object_info *o = &d->objects[i];
    struct hapi_msg_object m = {
        .name = str_of(o->name),
        .version = {(const char *)o->version.data, o->version.size},
        .bytes = o->bytes,
        .samples = o->n_samples,
        .sample_bytes = {(const char *)rt->scratch, o->n_samples * 4},
    };

    if (o->n_samples > HAPI_FRAME_MAX / 4)
        return HAPI_ETOOBIG;
    memcpy(m.digest, o->digest, HAPI_HASH_SIZE);
    for (uint32_t k = 0; k < o->n_samples; k++) {
        uint32_t bytes = d->samples[o->first_sample + k].bytes;
        memcpy(rt->scratch + 4 * (size_t)k, &bytes, 4); /* little-endian hosts only: see CMakeLists.txt */
    }
    return hapi_list_object(list, &m);
}

static void on_index(struct hapi_session *s, const void *body, size_t n)
{
    struct hapi_rt *rt = s->rt;
    struct hapi_msg_index m;
    struct hapi_list list;
    struct hapi_err err = {0};
    char name[HAPI_NAME_MAX + 1];

    if (hapi_msg_index_decode(&m, body, n, &err)) {
        bad_message(s, "index", &err);
        return;
    }
    memcpy(name, m.dataset.s, m.dataset.n);
    name[m.dataset.n] = '\0';
    bool reads = hapi_tenant_reads(s->tenant, name); /* what it may not see is not there */
    const struct hapi_dataset *d = reads ? hapi_store_find(rt->store, name) : NULL;
    if (!d) {
        hapi_err_set(&err, HAPI_ENOENT, 0, "this node has no dataset `%s` (hapi ls lists them)", name);
        hapi_control_error(s->control, m.id, err.code, err.text);
        return;
    }
    uint64_t i = m.first, reserve = 64; /* room for `more` */
    int rc = hapi_list_begin(&list, rt->frame, HAPI_FRAME_MAX - reserve, m.id);
    for (; rc >= 0 && i < d->n_objects; i++)
        if ((rc = list_object(rt, &list, d, (uint32_t)i)) < 0)
            break;
    if (rc < 0 && (rc != HAPI_ETOOBIG || i == m.first)) {
        hapi_control_error(s->control, m.id, rc, "an object has more samples than an index frame can carry");
        return;
    }
    list.size += reserve;
    if (i < d->n_objects)
        hapi_list_more(&list, i);
    hapi_control_send(s->control, HAPI_MSG_INDEX_REPLY, rt->frame, list.used);
}

/* ------------------------------------------------------------------ models */

static void send_model(struct hapi_session *s, enum hapi_message type, uint64_t id)
{
    struct hapi_msg_model m = {.id = id, .size = s->upload_size, .offset = s->upload_at};
    uint8_t buf[256];

    memcpy(m.hash, s->upload_hash, HAPI_HASH_SIZE);
    int n = hapi_msg_model_encode(&m, buf, sizeof buf);
    if (n > 0 && s->control)
        hapi_control_send(s->control, type, buf, (size_t)n);
}

static void on_model_offer(struct hapi_session *s, const struct hapi_msg_model *m)
{
    char text[160];

    if (s->upload || s->uploading_busy || s->upload_waits) {
        hapi_control_error(s->control, m->id, HAPI_EBUSY, "an upload is under way on this connection");
        return;
    }
    if (!s->tenant->rules.upload) { /* before it is looked up: what is here may not be used either */
        snprintf(text, sizeof text, "tenant %.80s may not have models computed here (upload=no)",
                 s->tenant->name);
        hapi_control_error(s->control, m->id, HAPI_EAUTH, text);
        return;
    }
    s->upload_id = m->id;
    s->upload_size = m->size;
    s->upload_at = 0;
    memcpy(s->upload_hash, m->hash, HAPI_HASH_SIZE);
    if (s->holds_model)
        hapi_model_let_go(s->rt->models, hapi_session_owner(s), s->model);
    s->holds_model = hapi_model_hold(s->rt->models, hapi_session_owner(s), m->hash);
    memcpy(s->model, m->hash, HAPI_HASH_SIZE);
    if (s->holds_model) {
        send_model(s, HAPI_MSG_MODEL_READY, m->id);
        return;
    }
    if (!m->size || m->size > s->rt->cfg.max_model) {
        snprintf(text, sizeof text,
                 "a model of %" PRIu64 " bytes; this node takes up to %" PRIu64 " (--max-model)", m->size,
                 s->rt->cfg.max_model);
        hapi_control_error(s->control, m->id, HAPI_ETOOBIG, text);
        return;
    }
    hapi_upload_begin(s);
}

void hapi_upload_begin(struct hapi_session *s)
{
    struct hapi_err err = {0};

    s->upload_tried_ns = hapi_clock_ns();
    int rc = s->control ? hapi_models_reserve(s->rt->models, hapi_session_owner(s), s->upload_size, &err)
                        : HAPI_ECLOSED;
    bool waited = s->upload_waits;
    char quoted[HAPI_ERR_TEXT];

    s->upload_waits = rc == HAPI_EBUSY; /* the client hears of it when there is room */
    if (s->upload_waits) {
        if (!waited)
            hapi_log(HAPI_LOG_INFO, "waits for memory", "peer=%s for=%s", s->peer,
                     hapi_log_quote(quoted, sizeof quoted, err.text));
        return;
    }
    if (!rc && !(s->upload = malloc(s->upload_size))) {
        rc = hapi_err_set(&err, HAPI_ENOMEM, 0, "no memory for this model");
        hapi_models_release(s->rt->models, hapi_session_owner(s), s->upload_size);
    }
    if (!rc)
        send_model(s, HAPI_MSG_MODEL_WANT, s->upload_id);
    else if (s->control)
        hapi_control_error(s->control, s->upload_id, rc, err.text);
}

static void model_added(void *user, const struct hapi_err *result)
{
    struct hapi_session *s = user;
    char quoted[HAPI_ERR_TEXT];

    s->uploading_busy = false;
    if (!result->code) {
        s->holds_model = hapi_model_hold(s->rt->models, hapi_session_owner(s), s->model);
        hapi_log(HAPI_LOG_INFO, "model ready", "bytes=%" PRIu64, s->upload_size);
        send_model(s, HAPI_MSG_MODEL_READY, s->upload_id);
        return;
    }
    hapi_log(HAPI_LOG_WARN, "model refused", "why=%s", hapi_log_quote(quoted, sizeof quoted, result->text));
    if (s->control)
        hapi_control_error(s->control, s->upload_id, result->code, result->text);
}

static void on_model_chunk(struct hapi_session *s, const struct hapi_msg_model *m)
{
    if (!s->upload || m->offset != s->upload_at || memcmp(m->hash, s->upload_hash, HAPI_HASH_SIZE) ||
        m->bytes.n > s->upload_size - s->upload_at) {
        struct hapi_err err = {0};
        hapi_err_set(&err, HAPI_EPROTO, 0, "a model chunk that was not asked for");
        bad_message(s, "model chunk", &err);
        return;
    }
    if (m->bytes.n)
        memcpy(s->upload + s->upload_at, m->bytes.s, m->bytes.n);
    s->upload_at += m->bytes.n;
    if (s->upload_at < s->upload_size)
        return;
    s->uploading_busy = true;
    int rc = hapi_models_add(s->rt->models, hapi_session_owner(s), s->upload_hash, s->upload, s->upload_size,
                             model_added, s);
    if (rc) {
        s->uploading_busy = false;
        free(s->upload);
        hapi_models_release(s->rt->models, hapi_session_owner(s), s->upload_size);
        hapi_control_error(s->control, s->upload_id, rc, "this node is busy compiling other models");
    }
    s->upload = NULL; /* the table's now */
}

static void on_model(struct hapi_session *s, enum hapi_message type, const void *body, size_t n)
{
    struct hapi_msg_model m;
    struct hapi_err err = {0};

    if (hapi_msg_model_decode(&m, body, n, &err))
        bad_message(s, "model", &err);
    else if (type == HAPI_MSG_MODEL_OFFER)
        on_model_offer(s, &m);
    else
        on_model_chunk(s, &m);
}

/* ------------------------------------------------------------------ the data connection's address */

static int services_reserve(struct hapi_session *s, uint32_t wanted)
{
    uint32_t most = s->tenant->rules.requests, n;

    most = most && most < s->rt->cfg.max_requests ? most : s->rt->cfg.max_requests;
    n = wanted < most ? wanted : most;
    n = n ? n : 1;
    if (s->services)
        return 0;
    /* A terminal record may reach the client before we have seen our own completion: some are in between. */
    s->n_services = n + s->rt->cfg.batches;
    s->services = calloc(s->n_services, sizeof *s->services);
    if (!s->services)
        return HAPI_ENOMEM;
    for (uint32_t i = 0; i < s->n_services; i++) {
        s->services[i].session = s;
        s->services[i].next = s->free_services;
        s->free_services = &s->services[i];
    }
    s->max_requests = n;
    return 0;
}

static void on_data_open(struct hapi_session *s, const void *body, size_t n)
{
    struct hapi_msg_data m;
    struct hapi_err err = {0};
    uint8_t buf[512];
    char kind[33] = "", host[HAPI_NAME_MAX + 1];

    if (hapi_msg_data_decode(&m, body, n, &err)) {
        bad_message(s, "data open", &err);
        return;
    }
    memcpy(kind, m.transport.s, m.transport.n < sizeof kind ? m.transport.n : sizeof kind - 1);
    int rc = services_reserve(s, m.max_requests);
    if (rc)
        hapi_err_set(&err, rc, 0, "no memory for %u requests", m.max_requests);
    else
        rc = hapi_session_listen(s, kind, host, &err);
    if (rc) {
        hapi_control_error(s->control, m.id, rc, err.text);
        return;
    }
    m.transport = str_of(kind);
    m.host = str_of(host);
    m.port = hapi_listener_port(s->listener);
    m.max_requests = s->max_requests;
    m.max_parts = HAPI_REQUEST_SAMPLES;
    memcpy(m.nonce, s->nonce, HAPI_NONCE_SIZE);
    int used = hapi_msg_data_encode(&m, buf, sizeof buf);
    if (used > 0)
        hapi_control_send(s->control, HAPI_MSG_DATA_READY, buf, (size_t)used);
}

/* ------------------------------------------------------------------ clock, counters */

static void on_clock(struct hapi_session *s, const void *body, size_t n)
{
    struct hapi_msg_clock m;
    struct hapi_err err = {0};
    uint8_t buf[64];

    if (hapi_msg_clock_decode(&m, body, n, &err)) {
        bad_message(s, "clock", &err);
        return;
    }
    m.t1_ns = (uint64_t)hapi_clock_ns();
    int used = hapi_msg_clock_encode(&m, buf, sizeof buf);
    if (used > 0)
        hapi_control_send(s->control, HAPI_MSG_CLOCK_REPLY, buf, (size_t)used);
}

static void on_stat(struct hapi_session *s, const void *body, size_t n)
{
    char *json = hapi_stat_json(s->rt, s->tenant);

    if (!json) {
        hapi_control_error(s->control, text_id(body, n), HAPI_ENOMEM, "no memory for the counters");
        return;
    }
    struct hapi_msg_text m = {.id = text_id(body, n), .text = str_of(json)};
    int used = hapi_msg_text_encode(&m, s->rt->frame, HAPI_FRAME_MAX);
    if (used > 0)
        hapi_control_send(s->control, HAPI_MSG_STAT_REPLY, s->rt->frame, (size_t)used);
    free(json);
}

/* ------------------------------------------------------------------ the channel */

static void control_open(struct hapi_control *c, const struct hapi_hello *peer)
{
    struct hapi_rt *rt = hapi_control_listener_user(c);
    struct hapi_tenant *tenant = hapi_tenant_of(rt, hapi_control_identity(c));
    struct hapi_session *s = NULL;
    struct hapi_err err = {0};
    uint32_t n = 0;

    for (const struct hapi_session *x = rt->sessions; x; x = x->next)
        n += x->control && hapi_control_is_open(x->control); /* one that is told why it ends is none */
    int rc = hapi_tenant_admits(rt, tenant, &err);
    if (rc) {
        hapi_log(HAPI_LOG_WARN, "client refused", "peer=%s why=\"%s\"", hapi_control_peer(c), err.text);
        hapi_control_error(c, 0, rc, err.text);
        hapi_control_finish(c);
        return;
    }
    if (n < rt->cfg.max_sessions && !rt->draining)
        s = calloc(1, sizeof *s);
    if (!s) {
        hapi_control_error(c, 0, HAPI_EBUSY,
                           rt->draining ? "this node is shutting down"
                                        : "this node serves its most clients (--max-sessions)");
        hapi_control_finish(c);
        return;
    }
    s->rt = rt;
    s->control = c;
    s->queue_tail = &s->queue;
    s->next = rt->sessions;
    rt->sessions = s;
    rt->counters.sessions++;
    s->tenant = tenant;
    s->number = 2 * rt->counters.sessions + 1;
    s->tenant->sessions++;
    hapi_control_user_set(c, s);
    snprintf(s->peer, sizeof s->peer, "%s", hapi_control_peer(c));
    hapi_log(HAPI_LOG_INFO, "session open", "peer=%s identity=%s version=%.*s", hapi_control_peer(c),
             hapi_control_identity(c) ? hapi_control_identity(c) : "-", (int)peer->version.n,
             peer->version.s);
}

static void control_message(struct hapi_control *c, enum hapi_message type, const void *body, size_t n)
{
    struct hapi_session *s = hapi_control_user(c);

    if (!s)
        return; /* refused, and being told so */
    switch (type) {
    case HAPI_MSG_LS:
        on_ls(s, body, n);
        break;
    case HAPI_MSG_INDEX:
        on_index(s, body, n);
        break;
    case HAPI_MSG_MODEL_OFFER:
    case HAPI_MSG_MODEL_CHUNK:
        on_model(s, type, body, n);
        break;
    case HAPI_MSG_DATA_OPEN:
        on_data_open(s, body, n);
        break;
    case HAPI_MSG_CLOCK:
        on_clock(s, body, n);
        break;
    case HAPI_MSG_STAT:
        on_stat(s, body, n);
        break;
    case HAPI_MSG_HEARTBEAT:
    case HAPI_MSG_ERROR:
        break;
    case HAPI_MSG_BYE:
        hapi_control_finish(c);
        break;
    default:
        hapi_control_error(c, text_id(body, n), HAPI_EUNSUPPORTED, "this node does not know that message");
    }
}

static void control_close(struct hapi_control *c, const struct hapi_err *why)
{
    struct hapi_session *s = hapi_control_user(c);

    if (!s)
        return;
    s->control = NULL;
    s->nonce_valid = false;
    hapi_conn_close(s->conn);
    hapi_session_end(s, why); /* without a data connection; else its on_close says so */
}

const struct hapi_control_handler hapi_session_control_handler = {
    .on_open = control_open,
    .on_message = control_message,
    .on_close = control_close,
};
