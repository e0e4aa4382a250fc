/*
 * Connections by librdmacm: one event channel of the fabric, polled by the loop. An event is copied and
 * acknowledged before anything is done about it, because destroying an id waits for its acknowledgements.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>

#include "verbs_int.h"

enum { RESOLVE_MS = 2000, BACKLOG = 64, PRIVATE_MAX = 256, REJECTED_BY_CONSUMER = 28 };

/* Private data of a connect request: the nonce, and one byte, the largest path MTU that the client can do (a
 * `enum ibv_mtu`); of the answer: one byte, the MTU that both use. */
enum { ASK_MTU = HAPI_NONCE_SIZE, ASK_BYTES, ANSWER_BYTES = 1 };

struct event {
    enum rdma_cm_event_type type;
    int status;
    struct rdma_cm_id *id;
    struct verbs_listener *listener; /* CONNECT_REQUEST */
    uint8_t data[PRIVATE_MAX];
    size_t n;
};

/* ---- events ---- */

static int wrong_device(const struct verbs_conn *c, struct hapi_err *err)
{
    const char *wanted = c->base.fabric->device, *has = ibv_get_device_name(c->id->verbs->device);

    if (hapi_verbs_wanted(wanted, has, c->id->port_num))
        return 0;
    return hapi_err_set(err, HAPI_EINVAL, 0, "verbs: that address is reached by %s:%u, not by %s", has,
                        c->id->port_num, wanted);
}

/* As much of a queue pair as can be had before the peer is told. */
static int accept_queues(struct verbs_conn *c, const struct event *e, struct hapi_err *err)
{
    uint8_t asked = e->n > ASK_MTU ? e->data[ASK_MTU] : 0;
    int rc = wrong_device(c, err);

    if (!rc)
        rc = hapi_verbs_queues(c, err);
    if (!rc)
        rc = hapi_verbs_mtu(c, asked <= IBV_MTU_4096 ? asked : 0, &c->mtu, err);
    if (!rc)
        rc = hapi_verbs_ready(c, err);
    return rc;
}

static void accept_one(struct verbs_listener *l, const struct event *e)
{
    struct hapi_conn proto;
    struct hapi_err err = {.code = HAPI_ETRANSPORT};

    struct verbs_conn *c = hapi_conn_admit(&proto, &l->base, e->data, e->n) ? calloc(1, sizeof *c) : NULL;
    if (!c || hapi_conn_init(&c->base, &proto)) {
        free(c);
        rdma_reject(e->id, NULL, 0);
        rdma_destroy_id(e->id);
        return;
    }
    c->owner = VERBS_CONN;
    c->id = e->id;
    c->id->context = &c->owner;
    l->base.handler.on_accept(&c->base, proto.user);
    if (c->base.state == HAPI_CONN_CLOSED)
        return;
    int rc = accept_queues(c, e, &err);
    if (rc) {
        rdma_reject(c->id, NULL, 0);
    } else {
        uint8_t answer[ANSWER_BYTES] = {(uint8_t)c->mtu};
        struct rdma_conn_param param = {
            .private_data = answer, .private_data_len = sizeof answer, .qp_num = c->qp->qp_num};
        if (rdma_accept(c->id, &param))
            rc = hapi_verbs_error(&err, errno, "rdma_accept");
    }
    if (rc)
        hapi_conn_fail(&c->base, &err);
}

static int route_resolved(struct verbs_conn *c, struct hapi_err *err)
{
    uint8_t ask[ASK_BYTES];
    enum ibv_mtu mtu;
    int rc = wrong_device(c, err);

    if (!rc)
        rc = hapi_verbs_queues(c, err);
    if (rc)
        return rc;
    memcpy(ask, c->nonce, HAPI_NONCE_SIZE);
    for (mtu = IBV_MTU_256; mtu < IBV_MTU_4096 && 128u << (mtu + 1) <= c->base.fabric->path.mtu; mtu++)
        ;
    ask[ASK_MTU] = c->base.fabric->path.mtu ? (uint8_t)mtu : 0;
    struct rdma_conn_param param = {
        .private_data = ask, .private_data_len = sizeof ask, .qp_num = c->qp->qp_num};
    return rdma_connect(c->id, &param) ? hapi_verbs_error(err, errno, "rdma_connect") : 0;
}

/* The node has agreed: both queue pairs know each other now. */
static int connect_response(struct verbs_conn *c, const struct event *e, struct hapi_err *err)
{
    enum ibv_mtu most;
    int rc = hapi_verbs_mtu(c, 0, &most, err);

    if (rc)
        return rc;
    c->mtu = e->n && e->data[0] ? e->data[0] : most; /* the field is as long as it can be, and zero */
    if (c->mtu < IBV_MTU_256 || c->mtu > most)
        return hapi_err_set(err, HAPI_EPROTO, 0, "the node answers with path MTU %u of at most %u", c->mtu,
                            most);
    rc = hapi_verbs_ready(c, err);
    if (rc)
        return rc;
    return rdma_establish(c->id) ? hapi_verbs_error(err, errno, "rdma_establish") : 0;
}

static void conn_event(struct verbs_conn *c, const struct event *e)
{
    struct hapi_err err = {0};
    int rc = 0;

    switch (e->type) {
    case RDMA_CM_EVENT_ADDR_RESOLVED:
        if (rdma_resolve_route(c->id, RESOLVE_MS))
            rc = hapi_verbs_error(&err, errno, "rdma_resolve_route");
        break;
    case RDMA_CM_EVENT_ROUTE_RESOLVED:
        rc = route_resolved(c, &err);
        break;
    case RDMA_CM_EVENT_CONNECT_RESPONSE:
        rc = connect_response(c, e, &err);
        if (rc == 0)
            hapi_conn_opened(&c->base);
        break;
    case RDMA_CM_EVENT_ESTABLISHED:
        hapi_conn_opened(&c->base);
        break;
    case RDMA_CM_EVENT_REJECTED:
        /* 28: by the peer's program; the others: nobody listens, or the peer is short of something */
        rc = hapi_err_set(&err, e->status == REJECTED_BY_CONSUMER ? HAPI_EAUTH : HAPI_ETRANSPORT, e->status,
                          "the data connection was refused (reason %d)", e->status);
        break;
    case RDMA_CM_EVENT_DISCONNECTED:
        /* What arrived before the end is still to be had. */
        if (c->qp)
            do
                hapi_verbs_completions(c);
            while (c->more && c->base.state != HAPI_CONN_CLOSED);
        if (c->base.state != HAPI_CONN_CLOSED)
            rc = hapi_err_set(&err, HAPI_ECLOSED, 0, "the peer closed the data connection");
        break;
    case RDMA_CM_EVENT_TIMEWAIT_EXIT:
    case RDMA_CM_EVENT_ADDR_CHANGE: /* of a bond: the queue pair goes on or its retries end it */
        break;
    case RDMA_CM_EVENT_DEVICE_REMOVAL:
        rc = hapi_err_set(&err, HAPI_ETRANSPORT, ENODEV, "RDMA device %s was removed",
                          c->device ? c->device->name : "of this connection");
        break;
    default:
        rc = hapi_err_set(&err, HAPI_ETRANSPORT, e->status, "data connection: %s", rdma_event_str(e->type));
    }
    if (rc)
        hapi_conn_fail(&c->base, &err);
}

static void take_event(struct rdma_cm_event *from)
{
    struct event e = {.type = from->event, .status = from->status, .id = from->id};

    if (e.type == RDMA_CM_EVENT_CONNECT_REQUEST || e.type == RDMA_CM_EVENT_CONNECT_RESPONSE) {
        e.n = from->param.conn.private_data ? from->param.conn.private_data_len : 0;
        e.n = e.n < PRIVATE_MAX ? e.n : PRIVATE_MAX;
        memcpy(e.data, e.n ? from->param.conn.private_data : e.data, e.n);
    }
    if (e.type == RDMA_CM_EVENT_CONNECT_REQUEST) {
        enum verbs_owner *o = from->listen_id->context;
        e.listener = (struct verbs_listener *)((char *)o - offsetof(struct verbs_listener, owner));
    }
    rdma_ack_cm_event(from);
    if (e.listener) {
        accept_one(e.listener, &e);
        return;
    }
    enum verbs_owner *o = e.id->context;
    if (*o == VERBS_CONN)
        conn_event((struct verbs_conn *)((char *)o - offsetof(struct verbs_conn, owner)), &e);
    else if (e.type == RDMA_CM_EVENT_DEVICE_REMOVAL)
        hapi_verbs_listener_stop(
            (struct verbs_listener *)((char *)o - offsetof(struct verbs_listener, owner)));
}

static void cm_ready(struct hapi_watch *w, uint32_t revents)
{
    struct verbs_fabric *f = (struct verbs_fabric *)((char *)w - offsetof(struct verbs_fabric, watch));
    struct rdma_cm_event *e;

    (void)revents;
    while (rdma_get_cm_event(f->channel, &e) == 0)
        take_event(e);
}

int hapi_verbs_channel_open(struct verbs_fabric *f, struct hapi_err *err)
{
    f->channel = rdma_create_event_channel();
    if (!f->channel)
        return hapi_verbs_error(err, errno, "cannot create an event channel");
    int flags = fcntl(f->channel->fd, F_GETFL);
    if (flags < 0 || fcntl(f->channel->fd, F_SETFL, flags | O_NONBLOCK))
        return hapi_verbs_error(err, errno, "cannot set up an event channel");
    f->watch = (struct hapi_watch){.ready = cm_ready, .fd = f->channel->fd, .events = POLLIN};
    int rc = hapi_loop_watch(f->base.loop, &f->watch);
    return rc ? hapi_err_set(err, rc, 0, "cannot watch an event channel") : 0;
}

/* ---- listening and connecting ---- */

static int listener_bind(struct verbs_listener *l, const char *host, uint16_t port, struct hapi_err *err)
{
    struct verbs_fabric *f = (struct verbs_fabric *)l->base.fabric;
    struct hapi_addresses list;
    union hapi_sockaddr a;
    bool found;

    int rc = hapi_addresses_resolve(&list, host, port, true, false, err);
    if (!rc)
        rc = hapi_verbs_local_address(f, &list.a[0], &a, &found, err);
    if (rc)
        return rc;
    if (!found || *host)
        a = list.a[0];
    else
        a.in.sin_port = htons(port); /* the same place in both families */
    if (rdma_create_id(f->channel, &l->id, &l->owner, RDMA_PS_TCP))
        return hapi_verbs_error(err, errno, "rdma_create_id");
    if (rdma_bind_addr(l->id, &a.sa) || rdma_listen(l->id, BACKLOG))
        return hapi_verbs_error(err, errno, "cannot listen on %s port %u (an address of an RDMA device?)",
                                host, port);
    /* Bound to one address, the device is known: take its memory now, not when a peer waits. */
    if (l->id->verbs && !hapi_verbs_device(f, ibv_get_device_name(l->id->verbs->device), err))
        return err && err->code ? err->code : HAPI_ETRANSPORT;
    if (!l->id) /* it was found out just now */
        return hapi_err_set(err, HAPI_ETRANSPORT, ENODEV, "the RDMA device of %s was removed: try again",
                            host);
    l->base.port = ntohs(rdma_get_src_port(l->id));
    return 0;
}

int hapi_verbs_listener_open(struct hapi_listener **out, const struct hapi_listener *proto, const char *host,
                             uint16_t port, struct hapi_err *err)
{
    struct verbs_fabric *f = (struct verbs_fabric *)proto->fabric;
    struct verbs_listener *l = calloc(1, sizeof *l);

    if (!l)
        return hapi_err_set(err, HAPI_ENOMEM, 0, "no memory for a listener");
    l->base = *proto;
    l->owner = VERBS_LISTENER;
    l->next = f->listeners;
    f->listeners = l;
    int rc = listener_bind(l, host, port, err);
    if (rc)
        hapi_verbs_listener_close(&l->base);
    else
        *out = &l->base;
    return rc;
}

void hapi_verbs_listener_stop(struct verbs_listener *l)
{
    if (l->id)
        rdma_destroy_id(l->id);
    l->id = NULL;
}

void hapi_verbs_listener_close(struct hapi_listener *base)
{
    struct verbs_listener *l =
        (struct verbs_listener *)((char *)base - offsetof(struct verbs_listener, base));
    struct verbs_listener **at = &((struct verbs_fabric *)base->fabric)->listeners;

    while (*at != l)
        at = &(*at)->next;
    *at = l->next;
    hapi_verbs_listener_stop(l);
    free(l);
}

int hapi_verbs_connect(struct hapi_conn **out, const struct hapi_conn *proto, const char *host, uint16_t port,
                       const uint8_t nonce[HAPI_NONCE_SIZE], struct hapi_err *err)
{
    struct verbs_fabric *f = (struct verbs_fabric *)proto->fabric;
    struct verbs_conn *c = calloc(1, sizeof *c);
    struct hapi_addresses list;
    union hapi_sockaddr from;
    bool found;
    int rc;

    if (!c)
        return hapi_err_set(err, HAPI_ENOMEM, 0, "no memory for a connection");
    rc = hapi_addresses_resolve(&list, host, port, false, true, err);
    if (!rc)
        rc = hapi_verbs_local_address(f, &list.a[0], &from, &found, err);
    if (rc)
        goto fail_alloc;
    rc = hapi_conn_init(&c->base, proto);
    if (rc) {
        hapi_err_set(err, rc, 0, "no memory for a connection");
        goto fail_alloc;
    }
    c->owner = VERBS_CONN;
    memcpy(c->nonce, nonce, sizeof c->nonce);
    if (rdma_create_id(f->channel, &c->id, &c->owner, RDMA_PS_TCP)) {
        rc = hapi_verbs_error(err, errno, "rdma_create_id");
        goto fail_init;
    }
    if (rdma_resolve_addr(c->id, found ? &from.sa : NULL, &list.a[0].sa, RESOLVE_MS)) {
        rc = hapi_verbs_error(err, errno, "no RDMA route to %s", host);
        goto fail_id;
    }
    *out = &c->base;
    return 0;
fail_id:
    rdma_destroy_id(c->id);
fail_init:
    hapi_conn_fini(&c->base);
fail_alloc:
    free(c);
    return rc;
}
