/*
 * RC queue pairs: queues, work requests and completions. verbs_cm.c makes the connections.
 *
 * A WRITE WITH IMM consumes a receive of the client: hapi_conn_grant() posts them, one beyond the grants is
 * always there, so that an immediate too many is seen and refused instead of stalling the sender. Receives
 * are the queue pair's own on both sides: those of a client hold no memory, and from a shared queue one node
 * could take what another was granted. The completion queue holds every work request there can be: it cannot
 * overrun.
 *
 * The states of the queue pair are driven here rather than by librdmacm, which leaves the RNR timer at 655 ms
 * and has no say in path MTU, service level or GID.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "clock.h"
#include "verbs_int.h"

enum { POLL_BATCH = 32, POLL_BATCHES = 8, ACK_BATCH = 64 };
enum { RNR_TIMER_640_US = 12, RETRIES = 6 /* 7 would mean for ever */ };

/* wr_id: a work request's number, or a receive's index, times two; a receive plus one. */
#define WR_SEND(number) ((uint64_t)(number) << 1)
#define WR_RECV(i) ((uint64_t)(i) << 1 | 1)
#define WR_BIND (UINT64_MAX - 1)

int hapi_verbs_error(struct hapi_err *err, int e, const char *fmt, ...)
{
    char what[256], why[96];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(what, sizeof what, fmt, ap);
    va_end(ap);
    return hapi_err_set(err, HAPI_ETRANSPORT, e, "verbs: %s: %s", what, strerror_r(e, why, sizeof why));
}

/* ---- receives ---- */

static int post_recv(struct verbs_conn *c, uint32_t i)
{
    struct ibv_sge sge = {0};
    struct ibv_recv_wr wr = {.wr_id = WR_RECV(i)}, *bad;

    if (c->recv) {
        sge = (struct ibv_sge){(uintptr_t)(c->recv + (size_t)i * HAPI_REQUEST_MAX), HAPI_REQUEST_MAX,
                               c->recv_mr->lkey};
        wr.sg_list = &sge;
        wr.num_sge = 1;
    }
    return ibv_post_recv(c->qp, &wr, &bad);
}

/* The accepting side's requests, or the connecting side's one receive beyond the grants. */
static int post_first_receives(struct verbs_conn *c, struct hapi_err *err)
{
    uint32_t n = c->base.server ? c->base.fabric->opt.max_recv : 1;
    size_t bytes = (size_t)n * HAPI_REQUEST_MAX;

    if (c->base.server) {
        c->recv = aligned_alloc(4096, bytes);
        if (!c->recv)
            return hapi_err_set(err, HAPI_ENOMEM, 0, "no memory for %u receives", n);
        int rc = hapi_verbs_register(&c->recv_mr, c->pd, c->recv, bytes, IBV_ACCESS_LOCAL_WRITE, err);
        if (rc)
            return rc;
    }
    for (uint32_t i = 0; i < n; i++) {
        int e = post_recv(c, i);
        if (e)
            return hapi_verbs_error(err, e, "cannot post a receive");
    }
    return 0;
}

static int verbs_grant(struct hapi_conn *base, uint32_t n)
{
    struct verbs_conn *c = (struct verbs_conn *)base;

    for (uint32_t i = 0; i < n; i++)
        if (post_recv(c, 0)) {
            hapi_conn_failf(base, HAPI_ETRANSPORT, 0, "verbs: cannot post a receive");
            return HAPI_ETRANSPORT;
        }
    return 0;
}

/* ---- completions ---- */

static void recv_completed(struct verbs_conn *c, const struct ibv_wc *wc)
{
    struct hapi_conn *b = &c->base;
    uint32_t i = (uint32_t)(wc->wr_id >> 1);

    if (wc->opcode == IBV_WC_RECV_RDMA_WITH_IMM) {
        /* The accepting side grants nothing: there any immediate ends the connection. */
        hapi_conn_imm_came(b, be32toh(wc->imm_data));
        return;
    }
    if (!c->recv) {
        hapi_conn_failf(b, HAPI_EPROTO, 0, "the node sent a message: only requests are sent");
        return;
    }
    hapi_conn_recv_came(b, c->recv + (size_t)i * HAPI_REQUEST_MAX, wc->byte_len);
    if (b->state != HAPI_CONN_CLOSED && post_recv(c, i))
        hapi_conn_failf(b, HAPI_ETRANSPORT, 0, "verbs: cannot post a receive");
}

static void completed(struct verbs_conn *c, const struct ibv_wc *wc)
{
    struct hapi_conn *b = &c->base;
    bool recv = wc->wr_id & 1, flushed = wc->status == IBV_WC_WR_FLUSH_ERR;

    if (wc->status == IBV_WC_SUCCESS) {
        if (recv)
            recv_completed(c, wc);
        else if (wc->wr_id != WR_BIND)
            hapi_conn_done(b, wc->wr_id >> 1, 0);
        return;
    }
    if (!recv && wc->wr_id != WR_BIND)
        hapi_conn_done(b, wc->wr_id >> 1, flushed ? HAPI_ECANCELED : HAPI_ETRANSPORT);
    /* A flush is what follows from a cause, which as a rule has come before it, as a completion with another
     * status or as an event of the connection; but not always: see hapi_verbs_completions(). */
    if (!flushed)
        hapi_conn_failf(b, HAPI_ETRANSPORT, wc->status, "data connection: %s", ibv_wc_status_str(wc->status));
    else
        c->flushed = true;
}

int hapi_verbs_completions(struct verbs_conn *c)
{
    struct ibv_wc wc[POLL_BATCH];
    int n = POLL_BATCH, sum = 0;

    /* Not for ever: what completes can post more, and the rest of the loop waits. */
    for (int b = 0; b < POLL_BATCHES && n == POLL_BATCH && c->base.state != HAPI_CONN_CLOSED; b++) {
        n = ibv_poll_cq(c->cq, POLL_BATCH, wc);
        for (int i = 0; i < n && c->base.state != HAPI_CONN_CLOSED; i++)
            completed(c, &wc[i]);
        sum += n > 0 ? n : 0;
    }
    c->more = n == POLL_BATCH;
    if (n < 0)
        hapi_conn_failf(&c->base, HAPI_ETRANSPORT, 0, "verbs: cannot poll the completion queue");
    else if (c->flushed && !c->more) /* rxe without a route flushes everything and names no cause */
        hapi_conn_failf(&c->base, HAPI_ETRANSPORT, IBV_WC_WR_FLUSH_ERR,
                        "data connection: the queue pair is in its error state (is the link down?)");
    return sum;
}

static struct verbs_conn *conn_of(struct hapi_poller *p)
{
    return (struct verbs_conn *)((char *)p - offsetof(struct verbs_conn, poller));
}

static bool cq_poll(struct hapi_poller *p)
{
    return hapi_verbs_completions(conn_of(p)) > 0;
}

/* Ask for the next event first, then poll until nothing is left: what comes in between is seen by one of the
 * two. */
static bool cq_arm(struct hapi_poller *p)
{
    struct verbs_conn *c = conn_of(p);

    if (c->armed && !c->more)
        return false;
    int e = c->armed ? 0 : ibv_req_notify_cq(c->cq, 0);
    if (e) {
        hapi_conn_failf(&c->base, HAPI_ETRANSPORT, e, "verbs: cannot arm the completion queue");
        return true;
    }
    c->armed = true;
    return hapi_verbs_completions(c) > 0;
}

static void channel_ready(struct hapi_watch *w, uint32_t revents)
{
    struct verbs_conn *c = (struct verbs_conn *)((char *)w - offsetof(struct verbs_conn, watch));
    struct ibv_cq *cq;
    void *context;

    (void)revents;
    if (ibv_get_cq_event(c->channel, &cq, &context))
        return;
    c->armed = false;
    /* Each acknowledgement takes a lock: in batches. */
    if (++c->unacked >= ACK_BATCH) {
        ibv_ack_cq_events(c->cq, c->unacked);
        c->unacked = 0;
    }
    hapi_loop_poller_ready(&c->poller);
}

/* ---- queues ---- */

/* On the node, and where windows are bound to one queue pair, the device's domain; else one of its own: then
 * the keys of this connection open nothing for another peer. */
static int open_domain(struct verbs_conn *c, struct hapi_err *err)
{
    const struct hapi_slab *s = c->base.fabric->slab;

    if (c->base.server || c->device->windows) {
        c->pd = c->device->pd;
        c->slab = c->device->slab;
        return 0;
    }
    c->pd = ibv_alloc_pd(c->device->context);
    if (!c->pd)
        return hapi_verbs_error(err, errno, "cannot allocate a protection domain");
    c->own_pd = true;
    return s ? hapi_verbs_register(&c->slab, c->pd, s->base, s->size, IBV_ACCESS_LOCAL_WRITE, err) : 0;
}

static int open_cq(struct verbs_conn *c, int entries, struct hapi_err *err)
{
    c->channel = ibv_create_comp_channel(c->device->context);
    if (!c->channel)
        return hapi_verbs_error(err, errno, "cannot create a completion channel");
    int flags = fcntl(c->channel->fd, F_GETFL);
    if (flags < 0 || fcntl(c->channel->fd, F_SETFL, flags | O_NONBLOCK))
        return hapi_verbs_error(err, errno, "cannot set up a completion channel");
    c->cq = ibv_create_cq(c->device->context, entries, NULL, c->channel, 0);
    return c->cq ? 0
                 : hapi_verbs_error(err, errno, "cannot create a completion queue of %d entries", entries);
}

/* Moves the queue pair on, with what the connection manager says, and what we know better. */
static int to_state(struct verbs_conn *c, enum ibv_qp_state state, struct hapi_err *err)
{
    const struct hapi_fabric *f = c->base.fabric;
    const struct hapi_fabric_path *p = &f->path;
    struct ibv_qp_attr attr = {.qp_state = state};
    int mask = 0;

    if (rdma_init_qp_attr(c->id, &attr, &mask))
        return hapi_verbs_error(err, errno, "no attributes for a queue pair's state %d", state);
    if (state == IBV_QPS_INIT) /* nobody may write to the node */
        attr.qp_access_flags = c->base.server ? 0 : IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE;
    if (state == IBV_QPS_RTR) {
        attr.min_rnr_timer = RNR_TIMER_640_US;
        mask |= IBV_QP_MIN_RNR_TIMER;
        attr.path_mtu = c->mtu ? c->mtu : attr.path_mtu;
        if (p->sl >= 0)
            attr.ah_attr.sl = (uint8_t)p->sl;
        if (p->tos >= 0)
            attr.ah_attr.grh.traffic_class = (uint8_t)p->tos;
        if (p->gid_index >= 0) /* the same address can have several: RoCE v1 and v2 */
            attr.ah_attr.grh.sgid_index = (uint8_t)p->gid_index;
    }
    if (state == IBV_QPS_RTS) {
        attr.timeout = (uint8_t)f->opt.ack_timeout;
        attr.retry_cnt = attr.rnr_retry = RETRIES;
    }
    int e = ibv_modify_qp(c->qp, &attr, mask);
    return e ? hapi_verbs_error(err, e, "cannot move a queue pair to state %d", state) : 0;
}

int hapi_verbs_mtu(struct verbs_conn *c, enum ibv_mtu asked, enum ibv_mtu *out, struct hapi_err *err)
{
    struct ibv_qp_attr attr = {.qp_state = IBV_QPS_RTR};
    uint32_t own = c->base.fabric->path.mtu;
    int mask;

    if (rdma_init_qp_attr(c->id, &attr, &mask))
        return hapi_verbs_error(err, errno, "no path to the peer");
    *out = attr.path_mtu;
    while (own && *out > IBV_MTU_256 && 128u << *out > own)
        (*out)--;
    if (asked && asked < *out)
        *out = asked;
    return 0;
}

int hapi_verbs_ready(struct verbs_conn *c, struct hapi_err *err)
{
    int rc = to_state(c, IBV_QPS_RTR, err);

    return rc ? rc : to_state(c, IBV_QPS_RTS, err);
}

static int open_qp(struct verbs_conn *c, uint32_t receives, struct hapi_err *err)
{
    const struct hapi_fabric_options *o = &c->base.fabric->opt;
    struct ibv_qp_init_attr attr = {.send_cq = c->cq,
                                    .recv_cq = c->cq,
                                    .qp_type = IBV_QPT_RC,
                                    .cap = {.max_send_wr = o->max_ops + HAPI_EXPOSE_MAX,
                                            .max_recv_wr = receives,
                                            .max_send_sge = 1,
                                            .max_recv_sge = 1,
                                            .max_inline_data = HAPI_SEND_INLINE}};

    c->qp = ibv_create_qp(c->pd, &attr);
    if (!c->qp)
        return hapi_verbs_error(err, errno, "cannot create a queue pair of %u sends and %u receives",
                                o->max_ops, receives);
    return to_state(c, IBV_QPS_INIT, err);
}

int hapi_verbs_queues(struct verbs_conn *c, struct hapi_err *err)
{
    struct verbs_fabric *f = (struct verbs_fabric *)c->base.fabric;
    const struct hapi_fabric_options *o = &f->base.opt;
    uint32_t receives = c->base.server ? o->max_recv : o->max_imm + 1;
    const char *name = ibv_get_device_name(c->id->verbs->device);
    struct ibv_port_attr port;

    c->device = hapi_verbs_device(f, name, err);
    if (!c->device)
        return err && err->code ? err->code : HAPI_ETRANSPORT;
    c->device->conns++;
    c->next = f->conns;
    f->conns = c;
    c->rnr_before = hapi_verbs_rnr(name, c->id->port_num);
    int rc = open_domain(c, err);
    if (rc)
        return rc;
    if (ibv_query_port(c->device->context, c->id->port_num, &port))
        return hapi_verbs_error(err, errno, "cannot query port %u", c->id->port_num);
    c->base.max_write = port.max_msg_sz ? port.max_msg_sz : 1 << 20;
    rc = open_cq(c, (int)(o->max_ops + HAPI_EXPOSE_MAX + receives), err);
    if (!rc)
        rc = open_qp(c, receives, err);
    if (!rc)
        rc = post_first_receives(c, err);
    if (rc)
        return rc;
    c->watch = (struct hapi_watch){.ready = channel_ready, .fd = c->channel->fd, .events = POLLIN};
    rc = hapi_loop_watch(f->base.loop, &c->watch);
    if (rc)
        return hapi_err_set(err, rc, 0, "cannot watch a completion channel");
    c->poller = (struct hapi_poller){cq_poll, cq_arm, o->busy_poll_us * HAPI_NS_PER_US, NULL, NULL};
    hapi_loop_poller_add(f->base.loop, &c->poller);
    return 0;
}

/* Windows go before their queue pair: rxe's hold a reference to it, and its end would wait for theirs. */
static void close_windows(struct verbs_conn *c)
{
    for (int i = 0; i < HAPI_EXPOSE_MAX; i++) {
        if (c->exposed[i].window)
            ibv_dealloc_mw(c->exposed[i].window);
        c->exposed[i].window = NULL;
    }
}

static void unexpose(struct verbs_conn *c)
{
    for (int i = 0; i < HAPI_EXPOSE_MAX; i++)
        if (c->exposed[i].memory)
            hapi_verbs_memory_put(c->device, c->exposed[i].memory);
        else if (c->exposed[i].mr)
            ibv_dereg_mr(c->exposed[i].mr);
    memset(c->exposed, 0, sizeof c->exposed);
}

static void leave_device(struct verbs_conn *c)
{
    struct verbs_conn **at = &((struct verbs_fabric *)c->base.fabric)->conns;

    while (*at && *at != c)
        at = &(*at)->next;
    if (*at)
        *at = c->next;
    if (c->device)
        hapi_verbs_device_put(c->device);
    c->device = NULL;
}

/* A device that was removed, or came back, counts less than before. */
static uint64_t rnr_since(const struct verbs_conn *c)
{
    uint64_t now = c->device ? hapi_verbs_rnr(c->device->name, c->id->port_num) : 0;

    return now > c->rnr_before ? now - c->rnr_before : 0;
}

void hapi_verbs_conn_stop(struct hapi_conn *base)
{
    struct verbs_conn *c = (struct verbs_conn *)base;

    hapi_loop_poller_remove(&c->poller);
    hapi_loop_unwatch(&c->watch);
    base->stats.rnr = rnr_since(c);
    close_windows(c);
    if (c->qp) {
        rdma_disconnect(c->id);
        /* The fence: a queue pair that is gone answers no one and reads and writes nothing. */
        ibv_destroy_qp(c->qp);
    }
    unexpose(c);
    if (c->recv_mr)
        ibv_dereg_mr(c->recv_mr);
    if (c->cq) {
        if (c->unacked)
            ibv_ack_cq_events(c->cq, c->unacked);
        ibv_destroy_cq(c->cq);
    }
    if (c->channel)
        ibv_destroy_comp_channel(c->channel);
    if (c->own_pd) {
        if (c->slab)
            ibv_dereg_mr(c->slab);
        ibv_dealloc_pd(c->pd);
    }
    /* Events of it that were not taken yet are dropped by this; those taken have been acknowledged. */
    if (c->id)
        rdma_destroy_id(c->id);
    c->id = NULL;
    c->qp = NULL;
    c->cq = NULL;
    c->channel = NULL;
    c->recv_mr = c->slab = NULL;
    c->own_pd = false;
    leave_device(c);
}

static void conn_free(struct hapi_conn *base)
{
    struct verbs_conn *c = (struct verbs_conn *)base;

    free(c->recv);
    free(c);
}

static uint64_t conn_rnr(const struct hapi_conn *base)
{
    const struct verbs_conn *c = (const struct verbs_conn *)base;

    return c->device ? rnr_since(c) : base->stats.rnr;
}

/* ---- operations ---- */

/* Binds a window to this queue pair: the requests sent after it may name its key. */
static int window_bind(struct verbs_conn *c, int i, void *p, size_t n, uint64_t *key, struct hapi_err *err)
{
    struct ibv_mw *w = ibv_alloc_mw(c->pd, IBV_MW_TYPE_2);
    struct ibv_send_wr wr = {.wr_id = WR_BIND, .opcode = IBV_WR_BIND_MW}, *bad;
    uint8_t tag;

    if (!w)
        return hapi_verbs_error(err, errno, "cannot allocate a memory window");
    c->exposed[i].window = w;
    if (getrandom(&tag, 1, 0) != 1)
        return hapi_err_errno(err, errno, "no random key for a memory window");
    /* The upper bits of the key are the device's, the lower eight ours; the old ones will not do. */
    tag = tag == (uint8_t)w->rkey ? (uint8_t)(tag + 1) : tag;
    wr.bind_mw.mw = w;
    wr.bind_mw.rkey = (w->rkey & ~0xffu) | tag;
    wr.bind_mw.bind_info = (struct ibv_mw_bind_info){.mr = c->exposed[i].memory->mr,
                                                     .addr = (uintptr_t)p,
                                                     .length = n,
                                                     .mw_access_flags = IBV_ACCESS_REMOTE_WRITE};
    int e = ibv_post_send(c->qp, &wr, &bad);
    if (e)
        return hapi_verbs_error(err, e, "cannot bind a memory window");
    *key = wr.bind_mw.rkey;
    return 0;
}

static int verbs_expose(struct hapi_conn *base, void *p, size_t n, uint64_t *key, uint64_t *remote_base,
                        struct hapi_err *err)
{
    struct verbs_conn *c = (struct verbs_conn *)base;
    int i = base->n_exposed, rc;

    *remote_base = (uintptr_t)p;
    if (c->device->windows) {
        c->exposed[i].memory = hapi_verbs_memory_get(c->device, p, n, err);
        if (!c->exposed[i].memory)
            return err && err->code ? err->code : HAPI_ETRANSPORT;
        c->exposed[i].mr = c->exposed[i].memory->mr;
        rc = window_bind(c, i, p, n, key, err);
    } else {
        /* verbs demands local write rights with remote ones */
        rc = hapi_verbs_register(&c->exposed[i].mr, c->pd, p, n,
                                 IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE, err);
        *key = rc ? 0 : c->exposed[i].mr->rkey;
    }
    if (rc && c->exposed[i].window) {
        ibv_dealloc_mw(c->exposed[i].window);
        c->exposed[i].window = NULL;
    }
    if (rc && c->exposed[i].memory) {
        hapi_verbs_memory_put(c->device, c->exposed[i].memory);
        c->exposed[i].memory = NULL;
        c->exposed[i].mr = NULL;
    }
    return rc;
}

/* The registration that holds [p, p+n), for what is too large to be copied into the work request. */
static uint32_t local_key(const struct verbs_conn *c, const void *p, size_t n)
{
    const struct hapi_fabric *f = c->base.fabric;

    if (f->slab && hapi_holds(f->slab->base, f->slab->size, p, n))
        return c->slab->lkey;
    for (int i = 0; i < c->base.n_exposed; i++)
        if (hapi_holds(c->base.exposed[i].base, c->base.exposed[i].n, p, n))
            return c->exposed[i].mr->lkey;
    for (int i = 0; i < f->n_device_memory && !c->own_pd; i++)
        if (hapi_holds(f->device_memory[i].base, f->device_memory[i].n, p, n))
            return c->device->device_memory[i]->lkey;
    return 0;
}

static bool in_device_memory(const struct hapi_fabric *f, const void *p)
{
    for (int i = 0; i < f->n_device_memory; i++)
        if (hapi_holds(f->device_memory[i].base, f->device_memory[i].n, p, 1))
            return true;
    return false;
}

static int verbs_post(struct hapi_conn *base, const struct hapi_wr *w)
{
    static const enum ibv_wr_opcode opcode[] = {[HAPI_WR_WRITE] = IBV_WR_RDMA_WRITE,
                                                [HAPI_WR_WRITE_IMM] = IBV_WR_RDMA_WRITE_WITH_IMM,
                                                [HAPI_WR_SEND] = IBV_WR_SEND};
    struct verbs_conn *c = (struct verbs_conn *)base;
    struct ibv_sge sge = {(uintptr_t)w->local, (uint32_t)w->n, 0};
    struct ibv_send_wr wr = {.wr_id = WR_SEND(w->number), .opcode = opcode[w->kind]}, *bad;

    if (w->key > UINT32_MAX)
        return HAPI_EINVAL;
    if (w->n) {
        wr.sg_list = &sge;
        wr.num_sge = 1;
    }
    wr.send_flags = w->signaled ? IBV_SEND_SIGNALED : 0;
    if (w->n <= HAPI_SEND_INLINE && !in_device_memory(base->fabric, w->local))
        wr.send_flags |= IBV_SEND_INLINE;
    else
        sge.lkey = local_key(c, w->local, w->n);
    wr.imm_data = htobe32(w->imm);
    if (w->kind != HAPI_WR_SEND) {
        wr.wr.rdma.remote_addr = w->remote;
        wr.wr.rdma.rkey = (uint32_t)w->key;
    }
    int e = ibv_post_send(c->qp, &wr, &bad);
    return e == 0 ? 0 : e == ENOMEM ? HAPI_EBUSY : HAPI_ETRANSPORT;
}

const struct hapi_conn_ops hapi_verbs_conn_ops = {
    .connect = hapi_verbs_connect,
    .stop = hapi_verbs_conn_stop,
    .free = conn_free,
    .expose = verbs_expose,
    .post = verbs_post,
    .grant = verbs_grant,
    .rnr = conn_rnr,
};
