#include <dirent.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "ofi_int.h"

static void refuse(struct ofi_listener *l, struct fi_info *info)
{
    fi_reject(l->pep, info->handle, NULL, 0);
}

static int peer_add(struct ofi_listener *l, struct fid_ep *ep, struct hapi_err *err)
{
    union hapi_sockaddr *more = realloc(l->peers, (l->n_peers + 1) * sizeof *more);
    size_t n = sizeof *more;

    if (!more)
        return hapi_err_set(err, HAPI_ENOMEM, 0, "no memory for a connection");
    l->peers = more;
    memset(&more[l->n_peers], 0, sizeof *more);
    int rc = fi_getpeer(ep, &more[l->n_peers], &n);
    if (rc)
        return hapi_ofi_error(err, rc, "fi_getpeer");
    l->n_peers++;
    return 0;
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
        else
            rc = peer_add(l, c->ep, &err);
    }
    if (rc)
        hapi_conn_fail(&c->base, &err);
}

/* ---- the end ---- */

static bool is_peer(const struct ofi_listener *l, const union hapi_sockaddr *a)
{
    char want[HAPI_ADDRESS_TEXT], is[HAPI_ADDRESS_TEXT];

    hapi_sockaddr_text(a, is);
    for (size_t i = 0; i < l->n_peers; i++) {
        hapi_sockaddr_text(&l->peers[i], want);
        if (strcmp(is, want) == 0)
            return true;
    }
    return false;
}

/* Another listener of this process may have the same port at another address. */
static bool comes_here(const struct ofi_listener *l, const union hapi_sockaddr *a)
{
    char here[HAPI_ADDRESS_TEXT], is[HAPI_ADDRESS_TEXT];
    bool any = l->at.sa.sa_family == AF_INET ? l->at.in.sin_addr.s_addr == htonl(INADDR_ANY)
                                             : IN6_IS_ADDR_UNSPECIFIED(&l->at.in6.sin6_addr);

    hapi_sockaddr_text(&l->at, here);
    hapi_sockaddr_text(a, is);
    return any ? hapi_sockaddr_port(a) == l->base.port : strcmp(here, is) == 0;
}

/* A connection that came to us and never became one of ours. */
static bool is_stranger(const struct ofi_listener *l, int fd)
{
    union hapi_sockaddr a = {0};
    socklen_t n = sizeof a;

    if (getsockname(fd, &a.sa, &n) || (a.sa.sa_family != AF_INET && a.sa.sa_family != AF_INET6) ||
        !comes_here(l, &a))
        return false;
    n = sizeof a;
    return getpeername(fd, &a.sa, &n) == 0 && !is_peer(l, &a);
}

/* libfabric 1.17's tcp listener keeps who says nothing for ever, longer than itself: the descriptors would be
 * left until the process ends. They are ended beneath it, and then it is asked to look. */
static void strangers_end(struct ofi_listener *l)
{
    _Alignas(struct fi_eq_cm_entry) uint8_t buf[CM_BYTES];
    struct fi_eq_cm_entry *entry = (struct fi_eq_cm_entry *)buf;
    struct fi_eq_err_entry e = {0};
    DIR *dir = opendir("/proc/self/fd");
    const struct dirent *d;
    uint32_t event;
    bool any = false;

    while (dir && (d = readdir(dir))) {
        int fd = atoi(d->d_name);
        if (d->d_name[0] == '.' || !is_stranger(l, fd))
            continue;
        shutdown(fd, SHUT_RDWR);
        any = true;
    }
    if (dir)
        closedir(dir);
    for (int again = 0; any && again < 64; again++) {
        ssize_t n = fi_eq_read(l->eq, &event, buf, sizeof buf, 0);
        if (n == -FI_EAVAIL)
            fi_eq_readerr(l->eq, &e, 0);
        if (n >= (ssize_t)sizeof *entry && event == FI_CONNREQ) {
            refuse(l, entry->info);
            fi_freeinfo(entry->info);
        }
    }
}

static void listener_free(struct ofi_listener *l)
{
    const struct ofi_fabric *f = (const struct ofi_fabric *)l->base.fabric;

    if (l->pep && l->eq && !f->local_keys) /* with RDMA the port is none of TCP's */
        strangers_end(l);
    free(l->peers);
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
    size_t n = sizeof l->at;
    int rc = fi_passive_ep(f->fid, info, &l->pep, NULL);

    if (rc)
        return hapi_ofi_error(err, rc, "fi_passive_ep");
    rc = fi_pep_bind(l->pep, &l->eq->fid, 0);
    if (rc == 0)
        rc = fi_listen(l->pep);
    if (rc)
        return hapi_ofi_error(err, rc, "fi_listen");
    rc = fi_getname(&l->pep->fid, &l->at, &n);
    if (rc)
        return hapi_ofi_error(err, rc, "fi_getname");
    l->base.port = hapi_sockaddr_port(&l->at);
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
