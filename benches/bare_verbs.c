/*
 * RC through librdmacm, RDMA WRITE WITH IMM, nothing else. Receives for immediates are posted once, a queue
 * full of them, and given back 64 at a time as one list; the device's receiver-not-ready retries are the flow
 * control. One write in four is signalled; small ones go inline. Waiting is poll() on the completion channel,
 * or ibv_poll_cq() with sched_yield().
 */
#include <errno.h>
#include <fcntl.h>
#include <infiniband/verbs.h>
#include <poll.h>
#include <rdma/rdma_cma.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "address.h"
#include "bare.h"

enum { RESOLVE_MS = 2000, REQUESTS = 16, INLINE = 64, ACK_BATCH = 64, RNR_10_US = 1, LOOK_EVERY = 1 << 14 };

struct verbs {
    struct bare base; /* first */
    struct rdma_event_channel *events;
    struct rdma_cm_id *listener, *id;
    struct ibv_pd *pd;
    struct ibv_comp_channel *channel;
    struct ibv_cq *cq;
    struct ibv_mr *area, *small;
    unsigned unacked, idle;
    uint32_t sends, received; /* receives complete in the order in which they were posted */
};

static int queues_open(struct verbs *v, struct hapi_err *err)
{
    struct ibv_qp_init_attr attr = {.qp_type = IBV_QPT_RC,
                                    .cap = {.max_send_wr = BARE_SEND_MAX,
                                            .max_recv_wr = BARE_RECV_MAX,
                                            .max_send_sge = 1,
                                            .max_recv_sge = 1,
                                            .max_inline_data = INLINE}};
    int access = IBV_ACCESS_LOCAL_WRITE | (v->base.options->serve ? 0 : IBV_ACCESS_REMOTE_WRITE);

    v->pd = ibv_alloc_pd(v->id->verbs);
    v->channel = ibv_create_comp_channel(v->id->verbs);
    if (!v->pd || !v->channel || fcntl(v->channel->fd, F_SETFL, O_NONBLOCK))
        return bare_error(err, errno, "protection domain and completion channel");
    v->cq = ibv_create_cq(v->id->verbs, BARE_SEND_MAX + BARE_RECV_MAX, NULL, v->channel, 0);
    if (!v->cq)
        return bare_error(err, errno, "completion queue");
    attr.send_cq = attr.recv_cq = v->cq;
    if (rdma_create_qp(v->id, v->pd, &attr))
        return bare_error(err, errno, "queue pair");
    v->area = ibv_reg_mr(v->pd, v->base.area, BENCH_AREA + BENCH_TAIL, access);
    v->small = ibv_reg_mr(v->pd, v->base.small, BARE_SMALL_BYTES, IBV_ACCESS_LOCAL_WRITE);
    if (!v->area || !v->small)
        return bare_error(err, errno, "memory registration (`ulimit -l`?)");
    v->base.key = v->area->rkey;
    v->base.base = (uintptr_t)v->base.area;
    v->sends = v->received = v->unacked = 0;
    if (v->base.ops->receive(&v->base, v->base.options->serve ? REQUESTS : BARE_RECV_MAX))
        return bare_error(err, errno, "receives");
    return 0;
}

/* librdmacm leaves the RNR timer at 655 ms. */
static int connected(struct verbs *v, struct hapi_err *err)
{
    struct ibv_qp_attr attr = {.min_rnr_timer = RNR_10_US};
    int e = ibv_modify_qp(v->id->qp, &attr, IBV_QP_MIN_RNR_TIMER);

    if (e == 0 && !v->base.options->busy_poll_us)
        e = ibv_req_notify_cq(v->cq, 0);
    return e ? bare_error(err, e, "RNR timer, notification") : 0;
}

/* Waits for an event of one kind; what is left of the last connection is skipped on the node. */
static int expect(struct verbs *v, enum rdma_cm_event_type wanted, struct rdma_cm_id **id,
                  struct hapi_err *err)
{
    struct rdma_cm_event *e;

    for (;;) {
        if (rdma_get_cm_event(v->events, &e))
            return bare_error(err, errno, "rdma_get_cm_event");
        enum rdma_cm_event_type type = e->event;
        int status = e->status;
        if (id)
            *id = e->id;
        rdma_ack_cm_event(e);
        if (type == wanted)
            return 0;
        if (!v->listener)
            return hapi_err_set(err, HAPI_ETRANSPORT, status, "connection: %s", rdma_event_str(type));
    }
}

static int verbs_connect(struct verbs *v, struct sockaddr *to, struct hapi_err *err)
{
    struct rdma_conn_param param = {.retry_count = 6, .rnr_retry_count = 7};
    int rc = 0;

    if (rdma_create_id(v->events, &v->id, NULL, RDMA_PS_TCP) ||
        rdma_resolve_addr(v->id, NULL, to, RESOLVE_MS))
        return bare_error(err, errno, "rdma_resolve_addr");
    rc = expect(v, RDMA_CM_EVENT_ADDR_RESOLVED, NULL, err);
    if (rc == 0 && rdma_resolve_route(v->id, RESOLVE_MS))
        rc = bare_error(err, errno, "rdma_resolve_route");
    if (rc == 0)
        rc = expect(v, RDMA_CM_EVENT_ROUTE_RESOLVED, NULL, err);
    if (rc == 0)
        rc = queues_open(v, err);
    if (rc == 0 && rdma_connect(v->id, &param))
        rc = bare_error(err, errno, "rdma_connect");
    if (rc == 0)
        rc = expect(v, RDMA_CM_EVENT_ESTABLISHED, NULL, err);
    return rc ? rc : connected(v, err);
}

static int verbs_open(struct bare *b, const struct bench_options *o, struct hapi_err *err)
{
    struct verbs *v = (struct verbs *)b;
    struct hapi_addresses list;
    int rc = hapi_addresses_resolve(&list, o->host, o->port, o->serve, !o->serve, err);

    if (rc)
        return rc;
    v->events = rdma_create_event_channel();
    if (!v->events)
        return bare_error(err, errno, "rdma_create_event_channel");
    if (!o->serve)
        return verbs_connect(v, &list.a[0].sa, err);
    if (rdma_create_id(v->events, &v->listener, NULL, RDMA_PS_TCP) ||
        rdma_bind_addr(v->listener, &list.a[0].sa) || rdma_listen(v->listener, 4))
        return bare_error(err, errno, "listen (an address of an RDMA device?)");
    printf("ready %s:%u\n", o->host, ntohs(rdma_get_src_port(v->listener)));
    fflush(stdout);
    return 0;
}

static int verbs_accept(struct bare *b, struct hapi_err *err)
{
    struct rdma_conn_param param = {.retry_count = 6, .rnr_retry_count = 7};
    struct verbs *v = (struct verbs *)b;
    int rc = expect(v, RDMA_CM_EVENT_CONNECT_REQUEST, &v->id, err);

    if (rc == 0)
        rc = queues_open(v, err);
    if (rc == 0 && rdma_accept(v->id, &param))
        rc = bare_error(err, errno, "rdma_accept");
    if (rc == 0)
        rc = expect(v, RDMA_CM_EVENT_ESTABLISHED, NULL, err);
    return rc ? rc : connected(v, err);
}

static void verbs_hangup(struct bare *b)
{
    struct verbs *v = (struct verbs *)b;

    rdma_disconnect(v->id);
    rdma_destroy_qp(v->id);
    ibv_dereg_mr(v->area);
    ibv_dereg_mr(v->small);
    ibv_ack_cq_events(v->cq, v->unacked);
    ibv_destroy_cq(v->cq);
    ibv_destroy_comp_channel(v->channel);
    ibv_dealloc_pd(v->pd);
    rdma_destroy_id(v->id);
}

static int verbs_write(struct bare *b, const void *from, size_t n, uint64_t to, uint64_t key, uint32_t imm,
                       bool signal, uint64_t id)
{
    struct verbs *v = (struct verbs *)b;
    struct ibv_sge sge = {(uintptr_t)from, (uint32_t)n, v->area->lkey};
    struct ibv_send_wr wr = {.wr_id = id, .sg_list = &sge, .num_sge = 1}, *bad;

    wr.opcode = IBV_WR_RDMA_WRITE_WITH_IMM;
    wr.send_flags = (signal ? IBV_SEND_SIGNALED : 0u) | (n <= INLINE ? IBV_SEND_INLINE : 0u);
    wr.imm_data = htobe32(imm);
    wr.wr.rdma.remote_addr = to;
    wr.wr.rdma.rkey = (uint32_t)key;
    int e = ibv_post_send(v->id->qp, &wr, &bad);
    return e == 0 ? 0 : e == ENOMEM ? HAPI_EBUSY : HAPI_ETRANSPORT;
}

static int verbs_send(struct bare *b, const struct bench_request *r)
{
    struct verbs *v = (struct verbs *)b;
    struct ibv_sge sge = {(uintptr_t)r, sizeof *r, 0};
    struct ibv_send_wr wr = {.sg_list = &sge, .num_sge = 1, .opcode = IBV_WR_SEND}, *bad;

    wr.send_flags = IBV_SEND_INLINE | (++v->sends % REQUESTS == 0 ? IBV_SEND_SIGNALED : 0u);
    return ibv_post_send(v->id->qp, &wr, &bad) ? HAPI_ETRANSPORT : 0;
}

static int verbs_receive(struct bare *b, uint32_t n)
{
    struct verbs *v = (struct verbs *)b;
    struct ibv_recv_wr wr[64], *bad;
    struct ibv_sge sge[64];
    int rc = 0;

    while (n && rc == 0) {
        uint32_t k = n < 64 ? n : 64;
        for (uint32_t i = 0; i < k; i++) {
            uint64_t at = v->received++ % REQUESTS;
            sge[i] = (struct ibv_sge){(uintptr_t)b->small + 4096 + at * sizeof(struct bench_request),
                                      sizeof(struct bench_request), v->small->lkey};
            wr[i] = (struct ibv_recv_wr){.wr_id = at, .next = i + 1 < k ? &wr[i + 1] : NULL};
            if (b->options->serve) { /* an immediate has no bytes of its own */
                wr[i].sg_list = &sge[i];
                wr[i].num_sge = 1;
            }
        }
        rc = ibv_post_recv(v->id->qp, wr, &bad);
        n -= k;
    }
    return rc ? HAPI_ETRANSPORT : 0;
}

static int verbs_poll(struct bare *b, struct bare_event *e)
{
    struct verbs *v = (struct verbs *)b;
    struct ibv_wc wc[BARE_EVENTS];
    int n = ibv_poll_cq(v->cq, BARE_EVENTS, wc);

    for (int i = 0; i < n; i++) {
        if (wc[i].status != IBV_WC_SUCCESS) {
            b->rnr += wc[i].status == IBV_WC_RNR_RETRY_EXC_ERR;
            return wc[i].status == IBV_WC_WR_FLUSH_ERR ? HAPI_ECLOSED : HAPI_ETRANSPORT;
        }
        e[i] = (struct bare_event){.kind = BARE_SENT, .id = wc[i].wr_id};
        if (wc[i].opcode == IBV_WC_RECV_RDMA_WITH_IMM) {
            e[i].kind = BARE_IMM;
            e[i].imm = be32toh(wc[i].imm_data);
        } else if (wc[i].opcode == IBV_WC_RECV) {
            e[i].kind = BARE_RECV;
            e[i].msg = b->small + 4096 + wc[i].wr_id * sizeof(struct bench_request);
        }
    }
    return n < 0 ? HAPI_ETRANSPORT : n;
}

static int verbs_wait(struct bare *b)
{
    struct verbs *v = (struct verbs *)b;
    struct pollfd fds[2] = {{v->channel->fd, POLLIN, 0}, {v->events->fd, POLLIN, 0}};
    bool polling = b->options->busy_poll_us;
    struct ibv_cq *cq;
    void *context;

    if (polling) {
        sched_yield();
        if (++v->idle % LOOK_EVERY)
            return 0;
    }
    if (poll(fds, 2, polling ? 0 : -1) < 0 && errno != EINTR)
        return HAPI_ESYS;
    if (fds[1].revents & POLLIN) /* only the end of the connection makes one */
        return HAPI_ECLOSED;
    if (polling)
        return 0;
    if (ibv_get_cq_event(v->channel, &cq, &context) == 0 && ++v->unacked == ACK_BATCH) {
        ibv_ack_cq_events(v->cq, v->unacked);
        v->unacked = 0;
    }
    return ibv_req_notify_cq(v->cq, 0) ? HAPI_ETRANSPORT : 0;
}

static const char help[] =
    "usage: bare_verbs --serve HOST[:PORT] | --peer HOST:PORT [OPTION...]\n\n"
    "A loop of RDMA WRITE WITH IMM on one RC queue pair: what `hapi-bench transport --transport verbs` is\n"
    "compared with. Options and output are those of hapi-bench transport (see its --help), less "
    "--transport,\n"
    "--checksum and those of the path; --busy-poll-us N: not 0, it polls all the time, yielding.\n";

int main(int argc, char **argv)
{
    static const struct bare_ops ops = {.transport = "verbs",
                                        .open = verbs_open,
                                        .accept = verbs_accept,
                                        .hangup = verbs_hangup,
                                        .write = verbs_write,
                                        .send = verbs_send,
                                        .receive = verbs_receive,
                                        .poll = verbs_poll,
                                        .wait = verbs_wait};
    static struct verbs v = {.base.ops = &ops};

    return bare_main(argc, argv, &v.base, "bare_verbs", help);
}
