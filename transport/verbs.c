/*
 * RC queue pairs: queues, work requests and completions. verbs_cm.c makes the connections.
 *
 * A WRITE WITH IMM consumes a receive of the client: hapi_conn_grant() posts them, one beyond the grants is
 * always there, so that an immediate too many is seen and refused instead of stalling the sender. Every
 * work request is signalled and the completion queue holds all of them: it cannot overrun.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "verbs_int.h"

enum { POLL_BATCH = 32, ACK_BATCH = 64, RNR_TIMER_640_US = 12 };

/* wr_id: a slot's address (aligned), or a receive's index times two plus one. */
#define WR_RECV(i) ((uint64_t)(i) << 1 | 1)

int hapi_verbs_error(struct hapi_err *err, int e, const char *fmt, ...)
{
    char what[256], why[96];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(what, sizeof what, fmt, ap);
    va_end(ap);
    return hapi_err_set(err, HAPI_ETRANSPORT, e, "verbs: %s: %s", what, strerror_r(e, why, sizeof why));
}

int hapi_verbs_register(struct ibv_mr **out, struct ibv_pd *pd, void *p, size_t n, int access,
                        struct hapi_err *err)
{
    struct ibv_mr *mr = ibv_reg_mr(pd, p, n, access);
    struct rlimit lim = {0};

    if (mr) {
        *out = mr;
        return 0;
    }
    if (errno != ENOMEM)
        return hapi_verbs_error(err, errno, "cannot register %zu bytes", n);
    getrlimit(RLIMIT_MEMLOCK, &lim);
    return hapi_err_set(
        err, HAPI_ENOMEM, ENOMEM,
        "cannot lock %zu KiB for RDMA, on top of what is locked already, with a limit of %llu "
        "KiB: raise `ulimit -l` (LimitMEMLOCK= in a systemd unit)",
        n >> 10, (unsigned long long)lim.rlim_cur >> 10);
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
    return ibv_post_recv(c->id->qp, &wr, &bad);
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
    bool recv = wc->wr_id & 1;

    if (wc->status == IBV_WC_SUCCESS) {
        if (recv)
            recv_completed(c, wc);
        else
            hapi_conn_done(b, (struct hapi_conn_slot *)(uintptr_t)wc->wr_id, 0);
        return;
    }
    bool flushed = wc->status == IBV_WC_WR_FLUSH_ERR;
    if (wc->status == IBV_WC_RNR_RETRY_EXC_ERR)
        b->stats.rnr++;
    if (!recv)
        hapi_conn_done(b, (struct hapi_conn_slot *)(uintptr_t)wc->wr_id,
                       flushed ? HAPI_ECANCELED : HAPI_ETRANSPORT);
    /* A flush is what follows from the cause, and the cause comes first: as a completion with another
     * status, or as an event of the connection. */
    if (!flushed)
        hapi_conn_failf(b, HAPI_ETRANSPORT, wc->status, "data connection: %s", ibv_wc_status_str(wc->status));
}

bool hapi_verbs_completions(struct verbs_conn *c)
{
    struct ibv_wc wc[POLL_BATCH];
    int n = 0;

    while (c->base.state != HAPI_CONN_CLOSED && (n = ibv_poll_cq(c->cq, POLL_BATCH, wc)) > 0)
        for (int i = 0; i < n && c->base.state != HAPI_CONN_CLOSED; i++)
            completed(c, &wc[i]);
    if (n < 0)
        hapi_conn_failf(&c->base, HAPI_ETRANSPORT, 0, "verbs: cannot poll the completion queue");
    return c->base.state != HAPI_CONN_CLOSED;
}

static void channel_ready(struct hapi_watch *w, uint32_t revents)
{
    struct verbs_conn *c = (struct verbs_conn *)((char *)w - offsetof(struct verbs_conn, watch));
    struct ibv_cq *cq;
    void *context;

    (void)revents;
    while (ibv_get_cq_event(c->channel, &cq, &context) == 0)
        c->unacked++;
    /* Each acknowledgement takes a lock: in batches. */
    if (c->unacked >= ACK_BATCH) {
        ibv_ack_cq_events(c->cq, c->unacked);
        c->unacked = 0;
    }
    /* Ask for the next event first, then poll: what comes in between is seen by one of the two. */
    int e = ibv_req_notify_cq(c->cq, 0);
    if (e)
        hapi_conn_failf(&c->base, HAPI_ETRANSPORT, e, "verbs: cannot arm the completion queue");
    else
        hapi_verbs_completions(c);
}

/* ---- queues ---- */

static int open_domain(struct verbs_conn *c, struct hapi_err *err)
{
    struct verbs_fabric *f = (struct verbs_fabric *)c->base.fabric;
    const struct hapi_slab *s = f->base.slab;

    if (c->base.server) {
        struct verbs_device *d = hapi_verbs_device(f, c->id->verbs, err);
        if (!d)
            return HAPI_ETRANSPORT;
        c->pd = d->pd;
        c->slab = d->slab;
        return 0;
    }
    /* A domain of its own: the keys of this connection open nothing for another peer. */
    c->pd = ibv_alloc_pd(c->id->verbs);
    if (!c->pd)
        return hapi_verbs_error(err, errno, "cannot allocate a protection domain");
    c->own_pd = true;
    return s ? hapi_verbs_register(&c->slab, c->pd, s->base, s->size, IBV_ACCESS_LOCAL_WRITE, err) : 0;
}

static int open_cq(struct verbs_conn *c, int entries, struct hapi_err *err)
{
    c->channel = ibv_create_comp_channel(c->id->verbs);
    if (!c->channel)
        return hapi_verbs_error(err, errno, "cannot create a completion channel");
    int flags = fcntl(c->channel->fd, F_GETFL);
    if (flags < 0 || fcntl(c->channel->fd, F_SETFL, flags | O_NONBLOCK))
        return hapi_verbs_error(err, errno, "cannot set up a completion channel");
    c->cq = ibv_create_cq(c->id->verbs, entries, NULL, c->channel, 0);
    if (!c->cq)
        return hapi_verbs_error(err, errno, "cannot create a completion queue of %d entries", entries);
    int e = ibv_req_notify_cq(c->cq, 0);
    return e ? hapi_verbs_error(err, e, "cannot arm a completion queue") : 0;
}

int hapi_verbs_queues(struct verbs_conn *c, struct hapi_err *err)
{
    const struct hapi_fabric_options *o = &c->base.fabric->opt;
    uint32_t receives = c->base.server ? o->max_recv : o->max_imm + 1;
    uint8_t timeout = (uint8_t)o->ack_timeout;
    struct ibv_port_attr port;
    int rc = open_domain(c, err);

    if (rc)
        return rc;
    if (ibv_query_port(c->id->verbs, c->id->port_num, &port))
        return hapi_verbs_error(err, errno, "cannot query port %u", c->id->port_num);
    c->max_msg = port.max_msg_sz ? port.max_msg_sz : 1 << 20;
    rc = open_cq(c, (int)(o->max_ops + receives), err);
    if (rc)
        return rc;
    struct ibv_qp_init_attr attr = {.send_cq = c->cq,
                                    .recv_cq = c->cq,
                                    .qp_type = IBV_QPT_RC,
                                    .sq_sig_all = 1,
                                    .cap = {.max_send_wr = o->max_ops,
                                            .max_recv_wr = receives,
                                            .max_send_sge = 1,
                                            .max_recv_sge = 1,
                                            .max_inline_data = HAPI_SEND_INLINE}};
    if (rdma_create_qp(c->id, c->pd, &attr))
        return hapi_verbs_error(err, errno, "cannot create a queue pair of %u sends and %u receives",
                                o->max_ops, receives);
    if (rdma_set_option(c->id, RDMA_OPTION_ID, RDMA_OPTION_ID_ACK_TIMEOUT, &timeout, sizeof timeout))
        return hapi_verbs_error(err, errno, "cannot set the acknowledgement time-out");
    rc = post_first_receives(c, err);
    if (rc)
        return rc;
    c->watch = (struct hapi_watch){.ready = channel_ready, .fd = c->channel->fd, .events = POLLIN};
    rc = hapi_loop_watch(c->base.fabric->loop, &c->watch);
    return rc ? hapi_err_set(err, rc, 0, "cannot watch a completion channel") : 0;
}

int hapi_verbs_rnr_timer(struct verbs_conn *c, struct hapi_err *err)
{
    struct ibv_qp_attr attr = {.min_rnr_timer = RNR_TIMER_640_US};
    int e = ibv_modify_qp(c->id->qp, &attr, IBV_QP_MIN_RNR_TIMER);

    return e ? hapi_verbs_error(err, e, "cannot set the RNR timer") : 0;
}

void hapi_verbs_conn_stop(struct hapi_conn *base)
{
    struct verbs_conn *c = (struct verbs_conn *)base;

    hapi_loop_unwatch(&c->watch);
    if (c->id && c->id->qp) {
        rdma_disconnect(c->id);
        /* The fence: a queue pair that is gone answers no one and reads and writes nothing. */
        rdma_destroy_qp(c->id);
    }
    for (int i = 0; i < HAPI_EXPOSE_MAX; i++)
        if (c->mr[i])
            ibv_dereg_mr(c->mr[i]);
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
    c->cq = NULL;
    c->channel = NULL;
    c->recv_mr = c->slab = NULL;
    c->own_pd = false;
    memset(c->mr, 0, sizeof c->mr);
}

void hapi_verbs_conn_free(struct hapi_conn *base)
{
    struct verbs_conn *c = (struct verbs_conn *)base;

    free(c->recv);
    free(c);
}

/* ---- operations ---- */

static int verbs_expose(struct hapi_conn *base, void *p, size_t n, uint64_t *key, uint64_t *remote_base,
                        struct hapi_err *err)
{
    struct verbs_conn *c = (struct verbs_conn *)base;
    struct ibv_mr **mr = &c->mr[base->n_exposed];
    /* verbs demands local write rights with remote ones */
    int rc = hapi_verbs_register(mr, c->pd, p, n, IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE, err);

    if (rc)
        return rc;
    *key = (*mr)->rkey;
    *remote_base = (uintptr_t)p;
    return 0;
}

/* The registration that holds [p, p+n), for sends too large to be copied into the work request. */
static uint32_t local_key(const struct verbs_conn *c, const void *p, size_t n)
{
    const struct hapi_slab *s = c->base.fabric->slab;
    uintptr_t at = (uintptr_t)p;

    if (s && at >= (uintptr_t)s->base && at + n <= (uintptr_t)s->base + s->size)
        return c->slab->lkey;
    for (int i = 0; i < c->base.n_exposed; i++) {
        uintptr_t from = (uintptr_t)c->base.exposed[i].base;
        if (at >= from && at + n <= from + c->base.exposed[i].n)
            return c->mr[i]->lkey;
    }
    return 0;
}

static int verbs_post(struct hapi_conn *base, const struct hapi_wr *w, struct hapi_conn_slot *slot)
{
    static const enum ibv_wr_opcode opcode[] = {[HAPI_WR_WRITE] = IBV_WR_RDMA_WRITE,
                                                [HAPI_WR_WRITE_IMM] = IBV_WR_RDMA_WRITE_WITH_IMM,
                                                [HAPI_WR_SEND] = IBV_WR_SEND};
    struct verbs_conn *c = (struct verbs_conn *)base;
    struct ibv_sge sge = {(uintptr_t)w->local, (uint32_t)w->n, 0};
    struct ibv_send_wr wr = {.wr_id = (uintptr_t)slot, .opcode = opcode[w->kind]}, *bad;

    if (w->key > UINT32_MAX)
        return HAPI_EINVAL;
    if (w->n) {
        wr.sg_list = &sge;
        wr.num_sge = 1;
    }
    if (w->n <= HAPI_SEND_INLINE)
        wr.send_flags = IBV_SEND_INLINE;
    else
        sge.lkey = local_key(c, w->local, w->n);
    wr.imm_data = htobe32(w->imm);
    if (w->kind != HAPI_WR_SEND) {
        wr.wr.rdma.remote_addr = w->remote;
        wr.wr.rdma.rkey = (uint32_t)w->key;
    }
    int e = ibv_post_send(c->id->qp, &wr, &bad);
    return e == 0 ? 0 : e == ENOMEM ? HAPI_EBUSY : HAPI_ETRANSPORT;
}

static size_t verbs_max_write(const struct hapi_conn *base)
{
    return ((const struct verbs_conn *)base)->max_msg;
}

const struct hapi_fabric_ops hapi_fabric_verbs = {
    .kind = "verbs",
    .probe = hapi_verbs_probe,
    .fabric_open = hapi_verbs_fabric_open,
    .fabric_close = hapi_verbs_fabric_close,
    .listener_open = hapi_verbs_listener_open,
    .listener_close = hapi_verbs_listener_close,
    .connect = hapi_verbs_connect,
    .conn_stop = hapi_verbs_conn_stop,
    .conn_free = hapi_verbs_conn_free,
    .expose = verbs_expose,
    .post = verbs_post,
    .grant = verbs_grant,
    .max_write = verbs_max_write,
};
