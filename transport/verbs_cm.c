/*
 * Connections by librdmacm: one event channel of the fabric, polled by the loop. An event is copied and
 * acknowledged before anything is done about it, because destroying an id waits for its acknowledgements.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "verbs_int.h"

enum {
    RESOLVE_MS = 2000,
    RETRIES = 6 /* 7 would mean for ever */,
    BACKLOG = 64,
    PRIVATE_MAX = 256,
    REJECTED_BY_CONSUMER = 28
};

struct event {
    enum rdma_cm_event_type type;
    int status;
    struct rdma_cm_id *id;
    struct verbs_listener *listener; /* CONNECT_REQUEST */
    uint8_t data[PRIVATE_MAX];
    size_t n;
};

static const char *const no_device =
    "no RDMA device here (rdma link show; ci/softroce runs a command with software ones)";

int hapi_verbs_probe(struct hapi_err *err)
{
    int n = 0;
    struct ibv_device **list = ibv_get_device_list(&n);

    if (list)
        ibv_free_device_list(list);
    if (!list || n == 0)
        return hapi_err_set(err, HAPI_EUNSUPPORTED, errno, "verbs: %s", no_device);
    if (access("/dev/infiniband/rdma_cm", R_OK | W_OK))
        return hapi_err_set(err, HAPI_EUNSUPPORTED, errno,
                            "verbs: /dev/infiniband/rdma_cm cannot be opened (modprobe rdma_ucm, or rights)");
    return 0;
}

/* ---- devices ---- */

struct verbs_device *hapi_verbs_device(struct verbs_fabric *f, struct ibv_context *context,
                                       struct hapi_err *err)
{
    const struct hapi_slab *s = f->base.slab;
    struct verbs_device d = {.context = context};

    for (int i = 0; i < f->n_devices; i++)
        if (f->device[i].context == context)
            return &f->device[i];
    if (f->n_devices == VERBS_DEVICES_MAX) {
        hapi_err_set(err, HAPI_ETRANSPORT, 0, "verbs: more than %d devices", VERBS_DEVICES_MAX);
        return NULL;
    }
    d.pd = ibv_alloc_pd(context);
    if (!d.pd) {
        hapi_verbs_error(err, errno, "cannot allocate a protection domain");
        return NULL;
    }
    if (s && hapi_verbs_register(&d.slab, d.pd, s->base, s->size, IBV_ACCESS_LOCAL_WRITE, err)) {
        ibv_dealloc_pd(d.pd);
        return NULL;
    }
    f->device[f->n_devices] = d;
    return &f->device[f->n_devices++];
}

static bool wanted(const struct verbs_fabric *f, struct ibv_context *context)
{
    return !f->base.device[0] || strcmp(f->base.device, ibv_get_device_name(context->device)) == 0;
}

static int wrong_device(const struct verbs_fabric *f, struct ibv_context *context, struct hapi_err *err)
{
    return hapi_err_set(err, HAPI_EINVAL, 0, "verbs: that address is reached by %s, not by %s",
                        ibv_get_device_name(context->device), f->base.device);
}

/* Registers the slab now, where it is known which device will need it. */
static int open_known_device(struct verbs_fabric *f, struct hapi_err *err)
{
    int n = 0, rc = 0;
    struct ibv_context **list = rdma_get_devices(&n);

    if (!list || n == 0)
        rc = hapi_err_set(err, HAPI_EUNSUPPORTED, errno, "verbs: %s", no_device);
    bool found = false;
    for (int i = 0; list && rc == 0 && i < n; i++) {
        if (!wanted(f, list[i]))
            continue;
        found = true;
        if ((f->base.device[0] || n == 1) && f->base.slab && !hapi_verbs_device(f, list[i], err))
            rc = err && err->code ? err->code : HAPI_ETRANSPORT;
    }
    if (rc == 0 && !found)
        rc = hapi_err_set(err, HAPI_EUNSUPPORTED, 0, "verbs: no device named %s", f->base.device);
    if (list)
        rdma_free_devices(list);
    return rc;
}

/* ---- events ---- */

static void accept_one(struct verbs_listener *l, const struct event *e)
{
    struct rdma_conn_param param = {.retry_count = RETRIES, .rnr_retry_count = RETRIES};
    struct verbs_fabric *f = (struct verbs_fabric *)l->base.fabric;
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
    int rc = wanted(f, c->id->verbs) ? hapi_verbs_queues(c, &err) : wrong_device(f, c->id->verbs, &err);
    if (rc) {
        rdma_reject(c->id, NULL, 0);
    } else if (rdma_accept(c->id, &param)) {
        rc = hapi_verbs_error(&err, errno, "rdma_accept");
    } else {
        rc = hapi_verbs_rnr_timer(c, &err);
    }
    if (rc)
        hapi_conn_fail(&c->base, &err);
}

static int route_resolved(struct verbs_conn *c, struct hapi_err *err)
{
    struct rdma_conn_param param = {.private_data = c->nonce,
                                    .private_data_len = HAPI_NONCE_SIZE,
                                    .retry_count = RETRIES,
                                    .rnr_retry_count = RETRIES};
    struct verbs_fabric *f = (struct verbs_fabric *)c->base.fabric;

    if (!wanted(f, c->id->verbs))
        return wrong_device(f, c->id->verbs, err);
    int rc = hapi_verbs_queues(c, err);
    if (rc)
        return rc;
    return rdma_connect(c->id, &param) ? hapi_verbs_error(err, errno, "rdma_connect") : 0;
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
    case RDMA_CM_EVENT_ESTABLISHED:
        rc = hapi_verbs_rnr_timer(c, &err);
        if (rc == 0)
            hapi_conn_opened(&c->base);
        break;
    case RDMA_CM_EVENT_REJECTED:
        /* 28: by the peer's program; the others: nobody listens, or the peer is short of something */
        rc = hapi_err_set(&err, e->status == REJECTED_BY_CONSUMER ? HAPI_EAUTH : HAPI_ETRANSPORT, e->status,
                          "the data connection was refused (reason %d)", e->status);
        break;
    case RDMA_CM_EVENT_DISCONNECTED:
        /* What arrived before the end is still to be had. */
        if (hapi_verbs_completions(c))
            rc = hapi_err_set(&err, HAPI_ECLOSED, 0, "the peer closed the data connection");
        break;
    case RDMA_CM_EVENT_TIMEWAIT_EXIT:
    case RDMA_CM_EVENT_CONNECT_RESPONSE:
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

    e.n = from->param.conn.private_data ? from->param.conn.private_data_len : 0;
    if (e.type == RDMA_CM_EVENT_CONNECT_REQUEST) {
        enum verbs_owner *o = from->listen_id->context;
        e.listener = (struct verbs_listener *)((char *)o - offsetof(struct verbs_listener, owner));
        if (e.n)
            memcpy(e.data, from->param.conn.private_data, e.n < PRIVATE_MAX ? e.n : PRIVATE_MAX);
    }
    rdma_ack_cm_event(from);
    if (e.listener) {
        accept_one(e.listener, &e);
        return;
    }
    enum verbs_owner *o = e.id->context;
    if (*o == VERBS_CONN)
        conn_event((struct verbs_conn *)((char *)o - offsetof(struct verbs_conn, owner)), &e);
    /* A listener's own events (its device went away) change nothing for the connections it made. */
}

static void cm_ready(struct hapi_watch *w, uint32_t revents)
{
    struct verbs_fabric *f = (struct verbs_fabric *)((char *)w - offsetof(struct verbs_fabric, watch));
    struct rdma_cm_event *e;

    (void)revents;
    while (rdma_get_cm_event(f->channel, &e) == 0)
        take_event(e);
}

/* ---- fabric ---- */

int hapi_verbs_fabric_open(struct hapi_fabric **out, const struct hapi_fabric *proto, struct hapi_err *err)
{
    struct verbs_fabric *f = calloc(1, sizeof *f);
    int rc;

    if (!f)
        return hapi_err_set(err, HAPI_ENOMEM, 0, "no memory for a fabric");
    f->base = *proto;
    rc = open_known_device(f, err);
    if (rc)
        goto fail;
    f->channel = rdma_create_event_channel();
    if (!f->channel) {
        rc = hapi_verbs_error(err, errno, "cannot create an event channel");
        goto fail;
    }
    int flags = fcntl(f->channel->fd, F_GETFL);
    if (flags < 0 || fcntl(f->channel->fd, F_SETFL, flags | O_NONBLOCK)) {
        rc = hapi_verbs_error(err, errno, "cannot set up an event channel");
        goto fail;
    }
    f->watch = (struct hapi_watch){.ready = cm_ready, .fd = f->channel->fd, .events = POLLIN};
    rc = hapi_loop_watch(proto->loop, &f->watch);
    if (rc) {
        hapi_err_set(err, rc, 0, "cannot watch an event channel");
        goto fail;
    }
    *out = &f->base;
    return 0;
fail:
    hapi_verbs_fabric_close(&f->base);
    return rc;
}

void hapi_verbs_fabric_close(struct hapi_fabric *base)
{
    struct verbs_fabric *f = (struct verbs_fabric *)base;

    hapi_loop_unwatch(&f->watch);
    if (f->channel)
        rdma_destroy_event_channel(f->channel);
    for (int i = 0; i < f->n_devices; i++) {
        if (f->device[i].slab)
            ibv_dereg_mr(f->device[i].slab);
        ibv_dealloc_pd(f->device[i].pd);
    }
    free(f);
}

/* ---- listening and connecting ---- */

int hapi_verbs_listener_open(struct hapi_listener **out, const struct hapi_listener *proto, const char *host,
                             uint16_t port, struct hapi_err *err)
{
    struct verbs_fabric *f = (struct verbs_fabric *)proto->fabric;
    struct verbs_listener *l = calloc(1, sizeof *l);
    struct hapi_addresses list;
    int rc;

    if (!l)
        return hapi_err_set(err, HAPI_ENOMEM, 0, "no memory for a listener");
    l->base = *proto;
    l->owner = VERBS_LISTENER;
    rc = hapi_addresses_resolve(&list, host, port, true, false, err);
    if (rc)
        goto fail;
    if (rdma_create_id(f->channel, &l->id, &l->owner, RDMA_PS_TCP)) {
        rc = hapi_verbs_error(err, errno, "rdma_create_id");
        goto fail;
    }
    if (rdma_bind_addr(l->id, &list.a[0].sa) || rdma_listen(l->id, BACKLOG)) {
        rc = hapi_verbs_error(err, errno, "cannot listen on %s port %u (an address of an RDMA device?)", host,
                              port);
        goto fail;
    }
    /* Bound to one address, the device is known: take its memory now, not when a peer waits. */
    if (l->id->verbs && f->base.slab && !hapi_verbs_device(f, l->id->verbs, err)) {
        rc = err && err->code ? err->code : HAPI_ETRANSPORT;
        goto fail;
    }
    l->base.port = ntohs(rdma_get_src_port(l->id));
    *out = &l->base;
    return 0;
fail:
    hapi_verbs_listener_close(&l->base);
    return rc;
}

void hapi_verbs_listener_close(struct hapi_listener *base)
{
    struct verbs_listener *l =
        (struct verbs_listener *)((char *)base - offsetof(struct verbs_listener, base));

    if (l->id)
        rdma_destroy_id(l->id);
    free(l);
}

int hapi_verbs_connect(struct hapi_conn **out, const struct hapi_conn *proto, const char *host, uint16_t port,
                       const uint8_t nonce[HAPI_NONCE_SIZE], struct hapi_err *err)
{
    struct verbs_fabric *f = (struct verbs_fabric *)proto->fabric;
    struct verbs_conn *c = calloc(1, sizeof *c);
    struct hapi_addresses list;
    int rc;

    if (!c)
        return hapi_err_set(err, HAPI_ENOMEM, 0, "no memory for a connection");
    rc = hapi_addresses_resolve(&list, host, port, false, true, err);
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
    if (rdma_resolve_addr(c->id, NULL, &list.a[0].sa, RESOLVE_MS)) {
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
