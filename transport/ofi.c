/*
 * A connection by libfabric: its queues, endpoint and work. ofi_fabric.c has what is shared, and says what is
 * asked of a provider; ofi_listen.c takes connections in.
 *
 * The tcp provider moves bytes only inside our calls: the wait fd of the completion queue says when to call.
 */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "clock.h"
#include "ofi_int.h"

enum { CQ_BATCH = 16, CQ_BATCHES = 16, ARM_TRIES = 16 };
#define STUCK_NS (4 * HAPI_NS_PER_S)

/* The context of a work request: its number plus one, for NULL means an operation of the peer's. */
#define CONTEXT_OF(number) ((void *)(uintptr_t)((number) + 1))
#define NUMBER_OF(context) ((uint64_t)(uintptr_t)(context)-1)

#define CONN_OF(w, member) ((struct ofi_conn *)((char *)(w)-offsetof(struct ofi_conn, member)))

/* ---- completions ---- */

static int post_recv(struct ofi_conn *c, uint8_t *buf)
{
    void *key = c->recv_mr ? fi_mr_desc(c->recv_mr) : NULL;
    ssize_t rc = fi_recv(c->srx ? c->srx : c->ep, buf, HAPI_REQUEST_MAX, key, 0, buf);

    return rc ? (int)rc : 0;
}

/* Receives of immediates hold nothing. */
static int ofi_grant(struct hapi_conn *base, uint32_t n)
{
    struct ofi_conn *c = (struct ofi_conn *)base;
    const struct ofi_fabric *f = (const struct ofi_fabric *)base->fabric;

    for (uint32_t i = 0; f->imm_wants_recv && i < n; i++) {
        ssize_t rc = fi_recv(c->ep, NULL, 0, NULL, 0, NULL);
        if (rc)
            return HAPI_ETRANSPORT;
    }
    return 0;
}

static void completed(struct ofi_conn *c, const struct fi_cq_data_entry *e)
{
    struct hapi_conn *b = &c->base;

    if (e->flags & FI_REMOTE_CQ_DATA) {
        if (e->data > UINT32_MAX)
            hapi_conn_failf(b, HAPI_EPROTO, 0, "the peer sent an immediate of more than 32 bits");
        else
            hapi_conn_imm_came(b, (uint32_t)e->data);
    } else if (e->flags & FI_RECV) {
        uint8_t *buf = e->op_context;
        hapi_conn_recv_came(b, buf, e->len);
        if (b->state != HAPI_CONN_CLOSED && post_recv(c, buf))
            hapi_conn_failf(b, HAPI_ETRANSPORT, 0, "libfabric: cannot post a receive");
    } else if (e->op_context) {
        hapi_conn_done(b, NUMBER_OF(e->op_context), 0);
    }
}

static void cq_failed(struct ofi_conn *c)
{
    struct fi_cq_err_entry e = {0};
    struct hapi_conn *b = &c->base;
    char text[128];

    if (fi_cq_readerr(c->cq, &e, 0) != 1)
        return;
    snprintf(text, sizeof text, "%s", fi_strerror(e.err));
    /* A flushed operation is what the end of the connection looks like; its cause comes as an event. */
    if (!(e.flags & FI_RECV) && e.op_context)
        hapi_conn_done(b, NUMBER_OF(e.op_context), e.err == FI_ECANCELED ? HAPI_ECANCELED : HAPI_ETRANSPORT);
    if (b->state != HAPI_CONN_CLOSED)
        hapi_conn_failf(b, e.err == FI_ECANCELED ? HAPI_ECLOSED : HAPI_ETRANSPORT, e.err,
                        e.err == FI_ECANCELED ? "the peer closed the data connection" : "data connection: %s",
                        text);
}

/* Takes what there is, but not for ever: what completes can post more, and the rest of the loop waits.
 * Whether there was something, the end of the connection included. */
static bool take_completions(struct ofi_conn *c)
{
    struct fi_cq_data_entry e[CQ_BATCH];
    bool found = false;

    for (int b = 0; b < CQ_BATCHES && c->base.state != HAPI_CONN_CLOSED; b++) {
        ssize_t n = fi_cq_read(c->cq, e, CQ_BATCH);
        if (n == -FI_EAGAIN)
            return found;
        found = true;
        if (n == -FI_EAVAIL)
            cq_failed(c);
        else if (n < 0)
            hapi_conn_failf(&c->base, HAPI_ETRANSPORT, (long)-n, "libfabric: completion queue: %s",
                            fi_strerror((int)-n));
        for (ssize_t i = 0; i < n && c->base.state != HAPI_CONN_CLOSED; i++)
            completed(c, &e[i]);
    }
    return true;
}

static bool take_events(struct ofi_conn *c);

static struct ofi_conn *conn_of(struct hapi_poller *p)
{
    return CONN_OF(p, poller);
}

static bool conn_poll(struct hapi_poller *p)
{
    bool found = take_completions(conn_of(p));

    return take_events(conn_of(p)) || found;
}

/* Something is there that libfabric neither takes nor reports. A large write does that for a while; what
 * lasts is bytes that are none of its protocol, and each turn of the loop would look at them. */
static void check_stuck(struct ofi_conn *c)
{
    int64_t now = hapi_clock_ns();

    if (!c->stuck_ns)
        c->stuck_ns = now;
    else if (now - c->stuck_ns > STUCK_NS)
        hapi_conn_failf(&c->base, HAPI_EPROTO, 0, "the peer sends what libfabric cannot take");
}

/* libfabric is asked whether its descriptors may be slept on; if not, there is something to be read. Where it
 * does not come at once, the other connections have their turn first. */
static bool conn_arm(struct hapi_poller *p)
{
    struct ofi_conn *c = conn_of(p);
    struct ofi_fabric *f = (struct ofi_fabric *)c->base.fabric;

    for (int i = 0; i < ARM_TRIES && c->base.state != HAPI_CONN_CLOSED && !c->may_sleep; i++) {
        struct fid *fids[2] = {&c->cq->fid, &c->eq->fid};
        c->may_sleep = fi_trywait(f->fid, fids, 2) != -FI_EAGAIN;
        bool found = !c->may_sleep && conn_poll(p);
        if (c->may_sleep || found)
            c->stuck_ns = 0;
        if (found)
            return true;
    }
    if (c->base.state == HAPI_CONN_CLOSED || c->may_sleep)
        return false;
    check_stuck(c);
    return true;
}

static void cq_ready(struct hapi_watch *w, uint32_t revents)
{
    (void)revents;
    CONN_OF(w, cq_watch)->may_sleep = false;
    hapi_loop_poller_ready(&CONN_OF(w, cq_watch)->poller);
}

static void eq_ready(struct hapi_watch *w, uint32_t revents)
{
    (void)revents;
    CONN_OF(w, eq_watch)->may_sleep = false;
    hapi_loop_poller_ready(&CONN_OF(w, eq_watch)->poller);
}

/* ---- events of a connection ---- */

static void eq_failed(struct ofi_conn *c)
{
    struct fi_eq_err_entry e = {0};

    if (fi_eq_readerr(c->eq, &e, 0) < 0)
        e.err = FI_EIO;
    if (c->base.state == HAPI_CONN_CONNECTING)
        hapi_conn_failf(&c->base, e.err == FI_ECONNREFUSED ? HAPI_EAUTH : HAPI_ETRANSPORT, e.err,
                        "the data connection was refused: %s", fi_strerror(e.err));
    else
        hapi_conn_failf(&c->base, HAPI_ETRANSPORT, e.err, "data connection: %s", fi_strerror(e.err));
}

static bool take_events(struct ofi_conn *c)
{
    _Alignas(struct fi_eq_cm_entry) uint8_t buf[CM_BYTES];
    bool found = false;
    uint32_t event;

    while (c->base.state != HAPI_CONN_CLOSED) {
        ssize_t n = fi_eq_read(c->eq, &event, buf, sizeof buf, 0);
        if (n == -FI_EAGAIN)
            return found;
        found = true;
        if (n == -FI_EAVAIL) {
            eq_failed(c);
        } else if (n < 0) {
            hapi_conn_failf(&c->base, HAPI_ETRANSPORT, (long)-n, "libfabric: event queue: %s",
                            fi_strerror((int)-n));
        } else if (event == FI_CONNECTED) {
            hapi_conn_opened(&c->base);
        } else if (event == FI_SHUTDOWN) {
            /* What arrived before the end is still to be had. */
            while (c->base.state != HAPI_CONN_CLOSED && take_completions(c))
                continue;
            hapi_conn_failf(&c->base, HAPI_ECLOSED, 0, "the peer closed the data connection");
        }
    }
    return true;
}

/* ---- a connection's parts ---- */

static void ofi_conn_stop(struct hapi_conn *base)
{
    struct ofi_conn *c = (struct ofi_conn *)base;

    hapi_loop_poller_remove(&c->poller);
    hapi_loop_unwatch(&c->cq_watch);
    hapi_loop_unwatch(&c->eq_watch);
    if (c->ep) {
        fi_shutdown(c->ep, 0);
        /* The fence: the provider touches memory only for endpoints it progresses. */
        fi_close(&c->ep->fid);
        c->ep = NULL;
    }
    hapi_ofi_close(c->srx ? &c->srx->fid : NULL);
    c->srx = NULL;
    for (int i = 0; i < HAPI_EXPOSE_MAX; i++)
        hapi_ofi_close(c->mr[i] ? &c->mr[i]->fid : NULL);
    hapi_ofi_close(c->recv_mr ? &c->recv_mr->fid : NULL);
    hapi_ofi_close(c->own_slab && c->slab ? &c->slab->fid : NULL);
    hapi_ofi_close(c->cq ? &c->cq->fid : NULL);
    hapi_ofi_close(c->eq ? &c->eq->fid : NULL);
    hapi_ofi_close(c->own_domain && c->domain ? &c->domain->fid : NULL);
    c->recv_mr = c->slab = NULL;
    c->cq = NULL;
    c->eq = NULL;
    c->domain = NULL;
    memset(c->mr, 0, sizeof c->mr);
}

static void ofi_conn_free(struct hapi_conn *base)
{
    struct ofi_conn *c = (struct ofi_conn *)base;

    free(c->recv);
    free(c);
}

static int open_cq(struct ofi_conn *c, struct hapi_err *err)
{
    const struct hapi_fabric_options *o = &c->base.fabric->opt;
    struct fi_cq_attr attr = {.size = o->max_ops + o->max_recv + o->max_imm + 1,
                              .format = FI_CQ_FORMAT_DATA,
                              .wait_obj = FI_WAIT_FD};
    int rc = fi_cq_open(c->domain, &attr, &c->cq, NULL);

    if (rc)
        return hapi_ofi_error(err, rc, "fi_cq_open");
    rc = fi_control(&c->cq->fid, FI_GETWAIT, &c->cq_watch.fd);
    if (rc)
        return hapi_ofi_error(err, rc, "wait descriptor of a completion queue");
    c->cq_watch.events = POLLIN;
    return 0;
}

static int register_local(struct fid_mr **out, struct fid_domain *d, void *p, size_t n, uint64_t access,
                          struct hapi_err *err)
{
    int rc = fi_mr_reg(d, p, n, access, 0, 0, 0, out, NULL);

    return rc ? hapi_ofi_error(err, rc, "fi_mr_reg") : 0;
}

/* A domain of its own: what it exposes is gone with it. Those that expose nothing may share one. */
static int open_domain(struct ofi_conn *c, struct fi_info *info, struct hapi_err *err)
{
    struct ofi_fabric *f = (struct ofi_fabric *)c->base.fabric;
    const struct hapi_slab *s = f->base.slab;
    bool share = f->local_keys && c->base.server;
    int rc = 0;

    if (!share || !f->domain)
        rc = fi_domain(f->fid, info, share ? &f->domain : &c->domain, NULL);
    if (rc)
        return hapi_ofi_error(err, rc, "fi_domain");
    c->own_domain = !share;
    if (share)
        c->domain = f->domain;
    if (!f->local_keys || !s)
        return 0;
    if (share && !f->slab)
        rc = register_local(&f->slab, f->domain, s->base, s->size, FI_SEND | FI_WRITE, err);
    else if (!share)
        rc = register_local(&c->slab, c->domain, s->base, s->size, FI_SEND | FI_WRITE, err);
    c->own_slab = !share;
    if (share)
        c->slab = f->slab;
    return rc;
}

static int post_all_receives(struct ofi_conn *c, struct hapi_err *err)
{
    const struct ofi_fabric *f = (const struct ofi_fabric *)c->base.fabric;
    uint32_t n = f->base.opt.max_recv;
    size_t bytes = (size_t)n * HAPI_REQUEST_MAX;

    c->recv = malloc(bytes);
    if (!c->recv)
        return hapi_err_set(err, HAPI_ENOMEM, 0, "no memory for %u receives", n);
    int rc = f->local_keys ? register_local(&c->recv_mr, c->domain, c->recv, bytes, FI_RECV, err) : 0;
    for (uint32_t i = 0; i < n && !rc; i++) {
        rc = post_recv(c, c->recv + (size_t)i * HAPI_REQUEST_MAX);
        if (rc)
            hapi_ofi_error(err, rc, "fi_recv");
    }
    return rc ? HAPI_ETRANSPORT : 0;
}

/* The tcp provider (1.17) looks for the receive of an untagged or tagged message in the endpoint's shared
 * context and reads a null pointer where there is none and the peer says more than it was asked: every
 * endpoint has its own. */
static int open_srx(struct ofi_conn *c, struct fi_info *info)
{
    info->ep_attr->rx_ctx_cnt = FI_SHARED_CONTEXT;
    return fi_srx_context(c->domain, info->rx_attr, &c->srx, NULL);
}

/* Domain, queues and endpoint. What it leaves behind on an error, ofi_conn_stop() takes down. */
int hapi_ofi_endpoint(struct ofi_conn *c, struct fi_info *info, struct hapi_err *err)
{
    struct ofi_fabric *f = (struct ofi_fabric *)c->base.fabric;
    int rc;

    c->base.max_write = info->ep_attr->max_msg_size;
    c->inject = info->tx_attr->inject_size;
    if (f->imm_wants_recv) { /* its queues are as long as it is told */
        info->tx_attr->size = c->base.fabric->opt.max_ops;
        info->rx_attr->size = c->base.server ? c->base.fabric->opt.max_recv : c->base.fabric->opt.max_imm + 1;
    }
    rc = open_domain(c, info, err);
    if (rc)
        return rc;
    rc = hapi_ofi_eq(f, &c->eq, &c->eq_watch, err);
    if (rc == 0)
        rc = open_cq(c, err);
    if (rc)
        return rc;
    if (!f->imm_wants_recv)
        rc = open_srx(c, info);
    if (rc)
        return hapi_ofi_error(err, rc, "fi_srx_context");
    rc = fi_endpoint(c->domain, info, &c->ep, NULL);
    if (rc)
        return hapi_ofi_error(err, rc, "fi_endpoint");
    rc = fi_ep_bind(c->ep, &c->eq->fid, 0);
    if (rc == 0 && c->srx)
        rc = fi_ep_bind(c->ep, &c->srx->fid, 0);
    if (rc == 0)
        rc = fi_ep_bind(c->ep, &c->cq->fid, FI_TRANSMIT | FI_SELECTIVE_COMPLETION);
    if (rc == 0)
        rc = fi_ep_bind(c->ep, &c->cq->fid, FI_RECV);
    if (rc == 0)
        rc = fi_enable(c->ep);
    if (rc)
        return hapi_ofi_error(err, rc, "fi_enable");
    if (c->base.server)
        return post_all_receives(c, err);
    /* One beyond the grants: an immediate too many is seen and refused. */
    return ofi_grant(&c->base, 1) ? hapi_ofi_error(err, -FI_EIO, "fi_recv") : 0;
}

int hapi_ofi_watch(struct ofi_conn *c, struct hapi_err *err)
{
    struct hapi_loop *loop = c->base.fabric->loop;

    c->cq_watch.ready = cq_ready;
    c->eq_watch.ready = eq_ready;
    int rc = hapi_loop_watch(loop, &c->cq_watch);
    if (rc == 0)
        rc = hapi_loop_watch(loop, &c->eq_watch);
    if (rc == 0) {
        int64_t busy = c->base.fabric->opt.busy_poll_us * HAPI_NS_PER_US;
        c->poller = (struct hapi_poller){conn_poll, conn_arm, busy, NULL, NULL};
        hapi_loop_poller_add(loop, &c->poller);
    }
    return rc ? hapi_err_set(err, rc, 0, "cannot watch a data connection") : 0;
}

static int ofi_connect(struct hapi_conn **out, const struct hapi_conn *proto, const char *host, uint16_t port,
                       const uint8_t nonce[HAPI_NONCE_SIZE], struct hapi_err *err)
{
    struct ofi_conn *c = calloc(1, sizeof *c);
    struct fi_info *info = NULL;
    int rc;

    if (!c)
        return hapi_err_set(err, HAPI_ENOMEM, 0, "no memory for a connection");
    rc = hapi_conn_init(&c->base, proto);
    if (rc) {
        hapi_err_set(err, rc, 0, "no memory for a connection");
        goto fail_alloc;
    }
    rc = hapi_ofi_info(&info, proto->fabric->provider, host, port, FI_NUMERICHOST, err);
    if (rc || !info)
        goto fail_init;
    rc = hapi_ofi_endpoint(c, info, err);
    if (rc == 0)
        rc = hapi_ofi_watch(c, err);
    if (rc)
        goto fail_parts;
    rc = fi_connect(c->ep, info->dest_addr, nonce, HAPI_NONCE_SIZE);
    if (rc) {
        rc = hapi_ofi_error(err, rc, "fi_connect");
        goto fail_parts;
    }
    fi_freeinfo(info);
    *out = &c->base;
    return 0;
fail_parts:
    ofi_conn_stop(&c->base);
    fi_freeinfo(info);
fail_init:
    hapi_conn_fini(&c->base);
fail_alloc:
    ofi_conn_free(&c->base);
    return rc;
}

/* ---- operations ---- */

static int ofi_expose(struct hapi_conn *base, void *p, size_t n, uint64_t *key, uint64_t *remote_base,
                      struct hapi_err *err)
{
    struct ofi_conn *c = (struct ofi_conn *)base;
    const struct ofi_fabric *f = (const struct ofi_fabric *)base->fabric;
    uint64_t k = 0, access = FI_REMOTE_WRITE | (f->local_keys ? FI_SEND : 0);
    int rc;

    do { /* libfabric takes 0 when it is given 0: never ask for that */
        if (getrandom(&k, sizeof k, 0) != sizeof k)
            return hapi_err_errno(err, errno, "no random key for a memory region");
        k = f->provider_keys ? 0 : k;
        rc = k == 0 && !f->provider_keys
                 ? -FI_ENOKEY
                 : fi_mr_reg(c->domain, p, n, access, 0, k, 0, &c->mr[base->n_exposed], NULL);
    } while (rc == -FI_ENOKEY);
    if (rc)
        return hapi_ofi_error(err, rc, "fi_mr_reg");
    *key = fi_mr_key(c->mr[base->n_exposed]);
    *remote_base = f->addresses ? (uintptr_t)p : 0;
    return 0;
}

/* The local key of [p, p+n), NULL where none is needed or the provider copies it. */
static void *local_key(const struct ofi_conn *c, const void *p, size_t n)
{
    const struct ofi_fabric *f = (const struct ofi_fabric *)c->base.fabric;
    const struct hapi_slab *s = f->base.slab;

    if (!f->local_keys)
        return NULL;
    if (s && hapi_holds(s->base, s->size, p, n))
        return fi_mr_desc(c->slab);
    for (int i = 0; i < c->base.n_exposed; i++)
        if (hapi_holds(c->base.exposed[i].base, c->base.exposed[i].n, p, n))
            return fi_mr_desc(c->mr[i]);
    return NULL;
}

static int ofi_post(struct hapi_conn *base, const struct hapi_wr *wr)
{
    struct ofi_conn *c = (struct ofi_conn *)base;
    struct iovec local = {(void *)(uintptr_t)wr->local, wr->n};
    struct fi_rma_iov remote = {wr->remote, wr->n, wr->key};
    const struct ofi_fabric *f = (const struct ofi_fabric *)base->fabric;
    void *key = local_key(c, wr->local, wr->n);
    struct fi_msg_rma rma = {.msg_iov = &local,
                             .desc = key ? &key : NULL,
                             .iov_count = 1,
                             .rma_iov = &remote,
                             .rma_iov_count = 1,
                             .context = CONTEXT_OF(wr->number),
                             .data = wr->imm};
    struct fi_msg msg = {
        .msg_iov = &local, .desc = key ? &key : NULL, .iov_count = 1, .context = CONTEXT_OF(wr->number)};
    uint64_t flags = wr->signaled ? FI_COMPLETION : 0;
    ssize_t rc;

    if (f->local_keys && !key && wr->n) {
        if (wr->n > c->inject)
            return HAPI_EINVAL;
        flags |= FI_INJECT;
    }
    if (wr->kind == HAPI_WR_SEND)
        rc = fi_sendmsg(c->ep, &msg, flags);
    else
        rc = fi_writemsg(c->ep, &rma, flags | (wr->kind == HAPI_WR_WRITE_IMM ? FI_REMOTE_CQ_DATA : 0));
    return rc == 0 ? 0 : rc == -FI_EAGAIN ? HAPI_EBUSY : HAPI_ETRANSPORT;
}

const struct hapi_conn_ops hapi_ofi_conn_ops = {
    .connect = ofi_connect,
    .stop = ofi_conn_stop,
    .free = ofi_conn_free,
    .expose = ofi_expose,
    .post = ofi_post,
    .grant = ofi_grant,
};
