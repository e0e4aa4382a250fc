/* fi_writedata on FI_EP_MSG of libfabric's tcp provider, and waiting on the completion queue's descriptor. */
#include <errno.h>
#include <poll.h>
#include <rdma/fabric.h>
#include <rdma/fi_cm.h>
#include <rdma/fi_domain.h>
#include <rdma/fi_endpoint.h>
#include <rdma/fi_eq.h>
#include <rdma/fi_errno.h>
#include <rdma/fi_rma.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "address.h"
#include "bare.h"

enum { KEY = 4711, RECEIVES = 16 };

struct ofi {
    struct bare base; /* first */
    struct fi_info *info;
    struct fid_fabric *fabric;
    struct fid_eq *eq;
    struct fid_pep *pep;
    struct fid_domain *domain;
    struct fid_cq *cq;
    struct fid_ep *ep;
    struct fid_mr *mr;
    struct pollfd fds[2];     /* of cq, eq */
    uint32_t sends, received; /* receives complete in the order in which they were posted */
};

static int failed(struct hapi_err *err, long rc, const char *what)
{
    return hapi_err_set(err, HAPI_ETRANSPORT, -rc, "%s: %s", what, fi_strerror((int)-rc));
}

static int get_info(struct ofi *f, const struct bench_options *o, struct hapi_err *err)
{
    struct fi_info *hints = fi_allocinfo();
    char service[8];

    if (!hints)
        return hapi_err_set(err, HAPI_ENOMEM, 0, "no memory");
    snprintf(service, sizeof service, "%u", o->port);
    hints->caps = FI_MSG | FI_RMA;
    hints->ep_attr->type = FI_EP_MSG;
    hints->fabric_attr->prov_name = strdup("tcp");
    hints->domain_attr->threading = FI_THREAD_DOMAIN;
    hints->domain_attr->cq_data_size = 4;
    hints->tx_attr->msg_order = hints->rx_attr->msg_order = FI_ORDER_WAW | FI_ORDER_SAW;
    int rc = fi_getinfo(FI_VERSION(1, 15), o->host, service, o->serve ? FI_SOURCE : 0, hints, &f->info);
    fi_freeinfo(hints);
    return rc ? failed(err, rc, "fi_getinfo") : 0;
}

static int ofi_receive(struct bare *b, uint32_t n)
{
    struct ofi *f = (struct ofi *)b;
    ssize_t rc = 0;

    /* An immediate takes no receive here: only the node's requests do. */
    for (; b->options->serve && n && rc == 0; n--) {
        uint8_t *at = b->small + 4096 + f->received++ % RECEIVES * sizeof(struct bench_request);
        rc = fi_recv(f->ep, at, sizeof(struct bench_request), NULL, 0, at);
    }
    return rc ? HAPI_ETRANSPORT : 0;
}

static int endpoint_open(struct ofi *f, struct fi_info *info, struct hapi_err *err)
{
    struct fi_cq_attr attr = {
        .size = BARE_SEND_MAX + BARE_RECV_MAX, .format = FI_CQ_FORMAT_DATA, .wait_obj = FI_WAIT_FD};
    int rc = fi_domain(f->fabric, info, &f->domain, NULL);

    if (rc == 0)
        rc = fi_cq_open(f->domain, &attr, &f->cq, NULL);
    if (rc == 0)
        rc = fi_control(&f->cq->fid, FI_GETWAIT, &f->fds[0].fd);
    if (rc == 0)
        rc = fi_control(&f->eq->fid, FI_GETWAIT, &f->fds[1].fd);
    if (rc == 0)
        rc = fi_endpoint(f->domain, info, &f->ep, NULL);
    if (rc == 0)
        rc = fi_ep_bind(f->ep, &f->eq->fid, 0);
    if (rc == 0) /* only those writes that ask for it make an entry */
        rc = fi_ep_bind(f->ep, &f->cq->fid, FI_TRANSMIT | FI_SELECTIVE_COMPLETION);
    if (rc == 0)
        rc = fi_ep_bind(f->ep, &f->cq->fid, FI_RECV);
    if (rc == 0)
        rc = fi_enable(f->ep);
    if (rc == 0)
        rc = fi_mr_reg(f->domain, f->base.area, BENCH_AREA + BENCH_TAIL, FI_REMOTE_WRITE, 0, KEY, 0, &f->mr,
                       NULL);
    f->fds[0].events = f->fds[1].events = POLLIN;
    f->base.key = KEY;
    f->base.base = 0;
    f->received = 0;
    if (rc == 0)
        rc = ofi_receive(&f->base, RECEIVES);
    return rc ? failed(err, rc, "endpoint") : 0;
}

static int expect(struct ofi *f, uint32_t wanted, struct fi_info **info, struct hapi_err *err)
{
    _Alignas(struct fi_eq_cm_entry) uint8_t buf[sizeof(struct fi_eq_cm_entry) + 256];
    struct fi_eq_cm_entry *e = (struct fi_eq_cm_entry *)buf;
    struct fi_eq_err_entry why = {0};
    uint32_t event = 0;
    ssize_t n;

    do { /* what is left of the last connection */
        n = fi_eq_sread(f->eq, &event, buf, sizeof buf, -1, 0);
        if (n == -FI_EAVAIL && fi_eq_readerr(f->eq, &why, 0) > 0 && !f->pep)
            return failed(err, -(long)why.err, "connect");
    } while (n == -FI_EAGAIN || n == -FI_EINTR || n == -FI_EAVAIL || (n > 0 && event != wanted));
    if (n < 0)
        return failed(err, n, "fi_eq_sread");
    if (info)
        *info = e->info;
    return 0;
}

static int ofi_open(struct bare *b, const struct bench_options *o, struct hapi_err *err)
{
    struct ofi *f = (struct ofi *)b;
    struct fi_eq_attr attr = {.size = 64, .wait_obj = FI_WAIT_FD};
    union hapi_sockaddr a;
    size_t n = sizeof a;
    int rc = get_info(f, o, err);

    if (rc)
        return rc;
    rc = fi_fabric(f->info->fabric_attr, &f->fabric, NULL);
    if (rc == 0)
        rc = fi_eq_open(f->fabric, &attr, &f->eq, NULL);
    if (rc)
        return failed(err, rc, "fi_fabric");
    if (!o->serve) {
        rc = endpoint_open(f, f->info, err);
        if (rc)
            return rc;
        rc = fi_connect(f->ep, f->info->dest_addr, NULL, 0);
        return rc ? failed(err, rc, "fi_connect") : expect(f, FI_CONNECTED, NULL, err);
    }
    rc = fi_passive_ep(f->fabric, f->info, &f->pep, NULL);
    if (rc == 0)
        rc = fi_pep_bind(f->pep, &f->eq->fid, 0);
    if (rc == 0)
        rc = fi_listen(f->pep);
    if (rc == 0)
        rc = fi_getname(&f->pep->fid, &a, &n);
    if (rc)
        return failed(err, rc, "fi_listen");
    printf("ready %s:%u\n", o->host, hapi_sockaddr_port(&a));
    fflush(stdout);
    return 0;
}

static int ofi_accept(struct bare *b, struct hapi_err *err)
{
    struct ofi *f = (struct ofi *)b;
    struct fi_info *info = NULL;
    int rc = expect(f, FI_CONNREQ, &info, err);

    if (rc)
        return rc;
    rc = endpoint_open(f, info, err);
    fi_freeinfo(info);
    if (rc)
        return rc;
    rc = fi_accept(f->ep, NULL, 0);
    return rc ? failed(err, rc, "fi_accept") : expect(f, FI_CONNECTED, NULL, err);
}

static void ofi_hangup(struct bare *b)
{
    struct ofi *f = (struct ofi *)b;

    if (f->ep)
        fi_close(&f->ep->fid);
    if (f->mr)
        fi_close(&f->mr->fid);
    if (f->cq)
        fi_close(&f->cq->fid);
    if (f->domain)
        fi_close(&f->domain->fid);
    f->ep = NULL;
    f->mr = NULL;
    f->cq = NULL;
    f->domain = NULL;
}

static int ofi_write(struct bare *b, const void *from, size_t n, uint64_t to, uint64_t key, uint32_t imm,
                     bool signal, uint64_t id)
{
    struct ofi *f = (struct ofi *)b;
    struct iovec v = {(void *)from, n};
    struct fi_rma_iov rma = {to, n, key};
    struct fi_msg_rma m = {.msg_iov = &v,
                           .iov_count = 1,
                           .rma_iov = &rma,
                           .rma_iov_count = 1,
                           .context = (void *)(uintptr_t)id,
                           .data = imm};
    ssize_t rc = signal ? fi_writemsg(f->ep, &m, FI_REMOTE_CQ_DATA | FI_COMPLETION)
                        : fi_writedata(f->ep, from, n, NULL, imm, 0, to, key, NULL);

    return rc == 0 ? 0 : rc == -FI_EAGAIN ? HAPI_EBUSY : HAPI_ETRANSPORT;
}

static int ofi_send(struct bare *b, const struct bench_request *r)
{
    struct ofi *f = (struct ofi *)b;
    uint8_t *at = b->small + f->sends++ % RECEIVES * sizeof *r;

    memcpy(at, r, sizeof *r);
    return fi_send(f->ep, at, sizeof *r, NULL, 0, NULL) ? HAPI_ETRANSPORT : 0;
}

static int ofi_poll(struct bare *b, struct bare_event *e)
{
    struct ofi *f = (struct ofi *)b;
    struct fi_cq_data_entry c[BARE_EVENTS];
    ssize_t n = fi_cq_read(f->cq, c, BARE_EVENTS);

    if (n == -FI_EAGAIN)
        return 0;
    if (n < 0)
        return HAPI_ECLOSED;
    for (ssize_t i = 0; i < n; i++) {
        e[i] = (struct bare_event){.kind = BARE_SENT, .id = (uintptr_t)c[i].op_context};
        if (c[i].flags & FI_REMOTE_CQ_DATA) {
            e[i].kind = BARE_IMM;
            e[i].imm = (uint32_t)c[i].data;
        } else if (c[i].flags & FI_RECV) {
            e[i].kind = BARE_RECV;
            e[i].msg = c[i].op_context;
        }
    }
    return (int)n;
}

/* Whether the connection has ended; the queue's descriptor is readable for less than that, too. */
static bool ended(struct ofi *f)
{
    _Alignas(struct fi_eq_cm_entry) uint8_t buf[sizeof(struct fi_eq_cm_entry) + 256];
    uint32_t event;
    ssize_t n = fi_eq_read(f->eq, &event, buf, sizeof buf, 0);

    return n == -FI_EAVAIL || (n > 0 && event == FI_SHUTDOWN);
}

static int ofi_wait(struct bare *b)
{
    struct ofi *f = (struct ofi *)b;
    struct fid *fids[2] = {&f->cq->fid, &f->eq->fid};

    if (b->options->busy_poll_us) {
        sched_yield();
        return 0;
    }
    if (fi_trywait(f->fabric, fids, 2))
        return ended(f) ? HAPI_ECLOSED : 0;
    if (poll(f->fds, 2, -1) < 0 && errno != EINTR)
        return HAPI_ESYS;
    return f->fds[1].revents & POLLIN && ended(f) ? HAPI_ECLOSED : 0;
}

static const char help[] = "usage: bare_ofi --serve HOST[:PORT] | --peer HOST:PORT [OPTION...]\n\n"
                           "A loop of fi_writedata on libfabric's tcp provider: what `hapi-bench transport "
                           "--transport ofi` is compared\n"
                           "with. Options and output are those of hapi-bench transport (see its --help), "
                           "less --transport, --checksum\n"
                           "and those of verbs; --busy-poll-us N: not 0, it polls all the time, yielding.\n";

int main(int argc, char **argv)
{
    static const struct bare_ops ops = {.transport = "ofi",
                                        .open = ofi_open,
                                        .accept = ofi_accept,
                                        .hangup = ofi_hangup,
                                        .write = ofi_write,
                                        .send = ofi_send,
                                        .receive = ofi_receive,
                                        .poll = ofi_poll,
                                        .wait = ofi_wait};
    static struct ofi f = {.base.ops = &ops};

    return bare_main(argc, argv, &f.base, "bare_ofi", help);
}
