/* The transports that this node offers, and the way in for the data connection of a session. */
#include <openssl/rand.h>
#include <string.h>

#include "clock.h"
#include "log.h"
#include "runtime.h"

const char *const hapi_transport_names[HAPI_TRANSPORTS] = {"ofi", "verbs"};

/* ------------------------------------------------------------------ what is offered */

/* What verbs may lack is known only when it listens: an address on a device, locked memory for the slab.
 * Better now than when a client waits. */
static int listen_try(struct hapi_rt *rt, struct hapi_offer *o)
{
    struct hapi_listener *l;
    char host[HAPI_NAME_MAX + 1];

    int rc = hapi_fabric_data_host(o->fabric, rt->host, host, &o->why);
    if (!rc)
        rc = hapi_listener_open(&l, o->fabric, host, 0, &hapi_session_data_handler, NULL, &o->why);
    if (!rc)
        hapi_listener_close(l);
    return rc;
}

/* Operations outstanding on a connection: a write a sample and a record, for all micro-batches. But all that
 * one of them posts must fit, a write a sample and tensor: only its record is waited for, so that nothing
 * would say when there is room for the rest. */
static uint32_t max_ops(const struct hapi_config *c)
{
    uint32_t samples = hapi_remember_samples(c);
    uint32_t all = c->batches * (samples + 1), one = samples * HAPI_CUT_TENSORS + 1;
    uint32_t n = all > one ? all : one;

    return n < HAPI_FABRIC_OPS_MAX ? n : HAPI_FABRIC_OPS_MAX;
}

static int fabric_open(struct hapi_rt *rt, enum hapi_transport t)
{
    const struct hapi_config *c = &rt->cfg;
    struct hapi_fabric_path path = {c->gid_index, c->tos, c->sl, c->mtu < 0 ? 0 : (uint32_t)c->mtu};
    struct hapi_fabric_options opt = {
        .device = *c->device ? c->device : NULL,
        .provider = c->provider,
        .path = &path,
        .topology = rt->topology,
        .max_recv = c->max_requests + 1,
        .max_ops = max_ops(c),
        .busy_poll_us = c->busy_poll_us,
    };
    struct hapi_offer *o = &rt->offers[t];

    int rc = hapi_fabric_open(&o->fabric, rt->loop, hapi_transport_names[t], &rt->slab, &opt, &o->why);
    if (!rc)
        rc = listen_try(rt, o);
    if (rc && o->fabric) {
        hapi_fabric_close(o->fabric);
        o->fabric = NULL;
    }
    return rc;
}

int hapi_fabrics_open(struct hapi_rt *rt, struct hapi_err *err)
{
    bool any = !strcmp(rt->cfg.transport, "auto");
    char quoted[HAPI_ERR_TEXT];

    /* verbs first: it needs locked memory, ofi needs none. */
    for (int t = HAPI_TRANSPORTS - 1; t >= 0; t--) {
        struct hapi_offer *o = &rt->offers[t];
        bool optional = any && t == HAPI_TRANSPORT_VERBS;
        if (!any && strcmp(rt->cfg.transport, hapi_transport_names[t])) {
            hapi_err_set(&o->why, HAPI_EUNSUPPORTED, 0, "it was started with --transport %s",
                         rt->cfg.transport);
            continue;
        }
        if (optional && hapi_fabric_probe(hapi_transport_names[t], &o->why)) {
            hapi_log(HAPI_LOG_INFO, "transport not offered", "transport=%s why=%s", hapi_transport_names[t],
                     hapi_log_quote(quoted, sizeof quoted, o->why.text));
            continue;
        }
        int rc = fabric_open(rt, (enum hapi_transport)t);
        if (rc && !optional) {
            *err = o->why;
            return rc;
        }
        if (rc)
            hapi_log(HAPI_LOG_WARN, "transport not offered", "transport=%s why=%s", hapi_transport_names[t],
                     hapi_log_quote(quoted, sizeof quoted, o->why.text));
    }
    return 0;
}

void hapi_fabrics_close(struct hapi_rt *rt)
{
    for (int t = 0; t < HAPI_TRANSPORTS; t++)
        if (rt->offers[t].fabric)
            hapi_fabric_close(rt->offers[t].fabric);
}

uint32_t hapi_fabrics_caps(const struct hapi_rt *rt)
{
    return (rt->offers[HAPI_TRANSPORT_OFI].fabric ? HAPI_CAP_TRANSPORT_OFI : 0) |
           (rt->offers[HAPI_TRANSPORT_VERBS].fabric ? HAPI_CAP_TRANSPORT_VERBS : 0);
}

const char *hapi_fabrics_text(const struct hapi_rt *rt, char text[16])
{
    bool ofi = rt->offers[HAPI_TRANSPORT_OFI].fabric, verbs = rt->offers[HAPI_TRANSPORT_VERBS].fabric;

    snprintf(text, 16, "%s%s%s", ofi ? "ofi" : "", ofi && verbs ? "," : "", verbs ? "verbs" : "");
    return text;
}

/* ------------------------------------------------------------------ the way in */

static int offer_find(struct hapi_rt *rt, const char *name, enum hapi_transport *out, struct hapi_err *err)
{
    char offered[16];
    int t = 0;

    while (t < HAPI_TRANSPORTS && strcmp(name, hapi_transport_names[t]))
        t++;
    if (t == HAPI_TRANSPORTS)
        return hapi_err_set(err, HAPI_EUNSUPPORTED, 0, "this node offers transport %s, it knows no `%s`",
                            hapi_fabrics_text(rt, offered), name);
    if (!rt->offers[t].fabric)
        return hapi_err_set(err, HAPI_EUNSUPPORTED, 0, "this node offers transport %s only, not %s: %.400s",
                            hapi_fabrics_text(rt, offered), name, rt->offers[t].why.text);
    *out = (enum hapi_transport)t;
    return 0;
}

static void listener_drop(struct hapi_session *s)
{
    hapi_listener_close(s->listener);
    s->listener = NULL;
    s->nonce_valid = false;
}

int hapi_session_listen(struct hapi_session *s, const char *transport, char host[HAPI_NAME_MAX + 1],
                        struct hapi_err *err)
{
    struct hapi_rt *rt = s->rt;
    enum hapi_transport t;

    int rc = offer_find(rt, transport, &t, err);
    if (rc)
        return rc;
    if (s->conn && s->conn_used)
        return hapi_err_set(err, HAPI_EBUSY, 0, "this session has a data connection");
    if (RAND_bytes(s->nonce, HAPI_NONCE_SIZE) != 1)
        return hapi_err_set(err, HAPI_ESYS, 0, "no randomness for a nonce");
    rc = hapi_fabric_data_host(rt->offers[t].fabric, hapi_control_local_host(s->control), host, err);
    if (rc)
        return rc;
    /* A client that changes its mind (verbs did not come up) has no use for what it asked for before. */
    listener_drop(s);
    hapi_conn_close(s->conn);
    s->conn = NULL;
    rc = hapi_listener_open(&s->listener, rt->offers[t].fabric, host, 0, &hapi_session_data_handler, s, err);
    if (rc)
        return rc;
    s->transport = t;
    s->nonce_deadline_ns = hapi_clock_ns() + HAPI_NONCE_NS;
    s->nonce_valid = true;
    return 0;
}

void hapi_session_listen_step(struct hapi_session *s)
{
    if (!s->listener)
        return;
    if (s->nonce_valid && hapi_clock_ns() > s->nonce_deadline_ns) {
        hapi_log(HAPI_LOG_INFO, "no data connection came", "peer=%s transport=%s", s->peer,
                 hapi_transport_names[s->transport]);
        s->nonce_valid = false;
    }
    if (!s->nonce_valid)
        listener_drop(s);
}
