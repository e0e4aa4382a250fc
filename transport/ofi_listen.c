#include <stdlib.h>

#include "ofi_int.h"

static void refuse(struct ofi_listener *l, struct fi_info *info)
{
    fi_reject(l->pep, info->handle, NULL, 0);
}

static void accept_one(struct ofi_listener *l, struct fi_info *info, const uint8_t *data, size_t n)
{
    struct hapi_conn proto;
    struct hapi_err err;

    if (!hapi_conn_admit(&proto, &l->base, data, n)) {
        refuse(l, info);
        return;
    }
    struct ofi_conn *c = calloc(1, sizeof *c);
    if (!c || hapi_conn_init(&c->base, &proto)) {
        free(c);
        refuse(l, info);
        return;
    }
    l->base.handler.on_accept(&c->base, proto.user);
    if (c->base.state == HAPI_CONN_CLOSED) {
        refuse(l, info);
        return;
    }
    int rc = hapi_ofi_endpoint(c, info, &err);
    if (rc)
        refuse(l, info);
    else
        rc = hapi_ofi_watch(c, &err);
    if (rc == 0) {
        rc = fi_accept(c->ep, NULL, 0);
        if (rc)
            hapi_ofi_error(&err, rc, "fi_accept");
    }
    if (rc)
        hapi_conn_fail(&c->base, &err);
}

static void listener_free(struct ofi_listener *l)
{
    hapi_ofi_close(l->pep ? &l->pep->fid : NULL);
    hapi_ofi_close(l->eq ? &l->eq->fid : NULL);
    free(l);
}

/* Takes the events there are; false when the queue is broken or a callback has closed the listener. */
static bool take_requests(struct ofi_listener *l)
{
    _Alignas(struct fi_eq_cm_entry) uint8_t buf[CM_BYTES];
    struct fi_eq_cm_entry *entry = (struct fi_eq_cm_entry *)buf;
    uint32_t event;

    while (!l->closed) {
        struct fi_eq_err_entry e = {0};
        ssize_t n = fi_eq_read(l->eq, &event, buf, sizeof buf, 0);
        if (n == -FI_EAGAIN)
            return true;
        if (n == -FI_EAVAIL) {
            fi_eq_readerr(l->eq, &e, 0); /* of a peer that gave up: nothing of ours */
            continue;
        }
        if (n < 0)
            return false;
        if (event != FI_CONNREQ)
            continue;
        accept_one(l, entry->info, entry->data, (size_t)n - sizeof *entry);
        fi_freeinfo(entry->info);
    }
    return false;
}

static void listener_ready(struct hapi_watch *w, uint32_t revents)
{
    struct ofi_listener *l = (struct ofi_listener *)((char *)w - offsetof(struct ofi_listener, watch));
    struct ofi_fabric *f = (struct ofi_fabric *)l->base.fabric;
    struct fid *fids[1] = {&l->eq->fid};

    (void)revents;
    l->in_ready = true;
    while (take_requests(l) && fi_trywait(f->fid, fids, 1) == -FI_EAGAIN)
        continue;
    l->in_ready = false;
    if (l->closed)
        listener_free(l);
}

static int listener_bind(struct ofi_listener *l, struct fi_info *info, struct hapi_err *err)
{
    struct ofi_fabric *f = (struct ofi_fabric *)l->base.fabric;
    union hapi_sockaddr a;
    size_t n = sizeof a;
    int rc = fi_passive_ep(f->fid, info, &l->pep, NULL);

    if (rc)
        return hapi_ofi_error(err, rc, "fi_passive_ep");
    rc = fi_pep_bind(l->pep, &l->eq->fid, 0);
    if (rc == 0)
        rc = fi_listen(l->pep);
    if (rc)
        return hapi_ofi_error(err, rc, "fi_listen");
    rc = fi_getname(&l->pep->fid, &a, &n);
    if (rc)
        return hapi_ofi_error(err, rc, "fi_getname");
    l->base.port = hapi_sockaddr_port(&a);
    return 0;
}

int hapi_ofi_listener_open(struct hapi_listener **out, const struct hapi_listener *proto, const char *host,
                           uint16_t port, struct hapi_err *err)
{
    struct ofi_listener *l = calloc(1, sizeof *l);
    struct fi_info *info = NULL;
    int rc;

    if (!l)
        return hapi_err_set(err, HAPI_ENOMEM, 0, "no memory for a listener");
    l->base = *proto;
    rc = hapi_ofi_info(&info, proto->fabric->provider, *host ? host : "0.0.0.0", port, FI_SOURCE, err);
    if (rc)
        goto fail;
    rc = hapi_ofi_eq((struct ofi_fabric *)proto->fabric, &l->eq, &l->watch, err);
    if (rc == 0)
        rc = listener_bind(l, info, err);
    fi_freeinfo(info);
    if (rc)
        goto fail;
    l->watch.ready = listener_ready;
    rc = hapi_loop_watch(proto->fabric->loop, &l->watch);
    if (rc) {
        hapi_err_set(err, rc, 0, "cannot watch a listener");
        goto fail;
    }
    *out = &l->base;
    return 0;
fail:
    listener_free(l);
    return rc;
}

void hapi_ofi_listener_close(struct hapi_listener *base)
{
    struct ofi_listener *l = (struct ofi_listener *)base;

    hapi_loop_unwatch(&l->watch);
    l->closed = true;
    if (!l->in_ready)
        listener_free(l);
}
