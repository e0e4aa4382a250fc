/*
 * Devices and what is registered with them.
 *
 * A device can go while it is used: a driver that supports it says so by an event; one that does not (rxe)
 * waits, and all that is seen is that its node has left sysfs. So both are looked at. Then its connections
 * end, and its context is closed, for which the driver waits.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "clock.h"
#include "verbs_int.h"

#define CHECK_NS (1 * HAPI_NS_PER_S)

/* ---- registering ---- */

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

static int register_device_memory(struct verbs_device *d, int i, const struct hapi_device_piece *m,
                                  struct hapi_err *err)
{
    d->device_memory[i] = m->fd < 0 ? ibv_reg_mr(d->pd, m->base, m->n, IBV_ACCESS_LOCAL_WRITE)
                                    : ibv_reg_dmabuf_mr(d->pd, m->offset, m->n, (uintptr_t)m->base, m->fd,
                                                        IBV_ACCESS_LOCAL_WRITE);
    if (d->device_memory[i])
        return 0;
    if (m->fd < 0 && errno == EFAULT)
        return hapi_err_set(
            err, HAPI_EUNSUPPORTED, errno,
            "verbs: %s cannot send from device memory: the kernel does not know its addresses "
            "(load nvidia-peermem)",
            d->name);
    if (errno == EOPNOTSUPP || errno == ENOSYS || errno == EPROTONOSUPPORT)
        return hapi_err_set(err, HAPI_EUNSUPPORTED, errno,
                            "verbs: %s cannot send from device memory (its driver takes no dma-buf): use "
                            "host memory, or a NIC and driver with GPUDirect",
                            d->name);
    return hapi_verbs_error(err, errno, "%s cannot register %zu bytes of device memory", d->name, m->n);
}

struct verbs_memory *hapi_verbs_memory_get(struct verbs_device *d, void *base, size_t n, struct hapi_err *err)
{
    struct verbs_memory *m = d->exposed;

    while (m && (m->base != base || m->n != n))
        m = m->next;
    if (!m) {
        m = calloc(1, sizeof *m);
        if (!m) {
            hapi_err_set(err, HAPI_ENOMEM, 0, "no memory for a registration");
            return NULL;
        }
        m->base = base;
        m->n = n;
        if (hapi_verbs_register(&m->mr, d->pd, base, n, IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_MW_BIND, err)) {
            free(m);
            return NULL;
        }
        m->next = d->exposed;
        d->exposed = m;
    }
    m->windows++;
    return m;
}

void hapi_verbs_memory_put(struct verbs_device *d, struct verbs_memory *m)
{
    struct verbs_memory **at = &d->exposed;

    if (--m->windows)
        return;
    while (*at != m)
        at = &(*at)->next;
    *at = m->next;
    ibv_dereg_mr(m->mr);
    free(m);
}

/* ---- counters ---- */

static uint64_t counter_read(int dir, const char *name)
{
    char text[32] = "";
    int fd = openat(dir, name, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof text - 1);

    if (fd >= 0)
        close(fd);
    return n > 0 ? strtoull(text, NULL, 10) : 0;
}

uint64_t hapi_verbs_rnr(const char *device, int port)
{
    char path[160];
    struct dirent *e;
    uint64_t sum = 0;

    snprintf(path, sizeof path, "/sys/class/infiniband/%s/ports/%d/hw_counters", device, port);
    DIR *dir = opendir(path);
    while (dir && (e = readdir(dir)))
        if (strstr(e->d_name, "rnr")) /* rxe: rcvd_rnr_err, send_rnr_err; mlx5: rnr_nak_retry_err */
            sum += counter_read(dirfd(dir), e->d_name);
    if (dir)
        closedir(dir);
    return sum;
}

/* ---- a device's end ---- */

static void device_close(struct verbs_device *d)
{
    struct verbs_device **at = &d->fabric->devices;

    while (*at && *at != d)
        at = &(*at)->next;
    if (*at)
        *at = d->next;
    hapi_loop_unwatch(&d->events);
    for (int i = 0; i < HAPI_DEVICE_PIECES; i++)
        if (d->device_memory[i])
            ibv_dereg_mr(d->device_memory[i]);
    if (d->slab)
        ibv_dereg_mr(d->slab);
    if (d->pd)
        ibv_dealloc_pd(d->pd);
    ibv_close_device(d->context);
    free(d);
}

/* librdmacm opens every device and closes one that has left when it looks at the list again. */
static void librdmacm_forget(void)
{
    int n;
    struct ibv_context **list = rdma_get_devices(&n);

    if (list)
        rdma_free_devices(list);
}

static void device_removed(struct verbs_device *d)
{
    struct verbs_fabric *f = d->fabric;
    bool again = true;

    d->removed = true;
    d->conns++; /* ours, for the loop */
    for (struct verbs_listener *l = f->listeners; l; l = l->next)
        if (l->id && l->id->verbs && strcmp(ibv_get_device_name(l->id->verbs->device), d->name) == 0)
            hapi_verbs_listener_stop(l);
    while (again) { /* each failure takes one from the list, and perhaps others */
        again = false;
        for (struct verbs_conn *c = f->conns; c && !again; c = c->next)
            if (c->device == d) {
                hapi_conn_failf(&c->base, HAPI_ETRANSPORT, ENODEV, "RDMA device %s was removed", d->name);
                again = true;
            }
    }
    hapi_verbs_device_put(d);
    librdmacm_forget();
}

void hapi_verbs_device_put(struct verbs_device *d)
{
    if (--d->conns == 0 && d->removed)
        device_close(d);
}

/* The node that programs open; it leaves before the driver waits for them. */
static bool device_is_there(const struct verbs_device *d)
{
    return access(d->context->device->dev_path, F_OK) == 0;
}

/* Whether nodes have come or gone since it was last asked. */
static bool nodes_changed(struct verbs_fabric *f)
{
    struct stat s;
    bool changed = stat("/dev/infiniband", &s) == 0 && (s.st_mtim.tv_sec != f->nodes_changed.tv_sec ||
                                                        s.st_mtim.tv_nsec != f->nodes_changed.tv_nsec);

    if (changed)
        f->nodes_changed = s.st_mtim;
    return changed;
}

static void check_fire(struct hapi_timer *t)
{
    struct verbs_fabric *f = (struct verbs_fabric *)((char *)t - offsetof(struct verbs_fabric, check));

    for (struct verbs_device *d = f->devices, *next; d; d = next) {
        next = d->next;
        if (!d->removed && !device_is_there(d))
            device_removed(d);
    }
    if (nodes_changed(f)) /* one that we do not use, perhaps */
        librdmacm_forget();
    hapi_loop_timer_set(f->base.loop, t, hapi_clock_ns() + CHECK_NS);
}

/* ---- asynchronous events ---- */

static struct verbs_conn *conn_of(const struct verbs_device *d, const struct ibv_qp *qp,
                                  const struct ibv_cq *cq)
{
    for (struct verbs_conn *c = d->fabric->conns; c; c = c->next)
        if (c->device == d && ((qp && c->qp == qp) || (cq && c->cq == cq)))
            return c;
    return NULL;
}

static void async_event(struct verbs_device *d, const struct ibv_async_event *e)
{
    struct verbs_conn *c = NULL;

    switch (e->event_type) {
    case IBV_EVENT_DEVICE_FATAL:
        device_removed(d);
        break;
    case IBV_EVENT_COMM_EST: /* its first message overtook the handshake's last one */
        c = conn_of(d, e->element.qp, NULL);
        if (c && c->id)
            rdma_notify(c->id, IBV_EVENT_COMM_EST);
        break;
    case IBV_EVENT_QP_FATAL:
    case IBV_EVENT_QP_REQ_ERR:
    case IBV_EVENT_QP_ACCESS_ERR:
        c = conn_of(d, e->element.qp, NULL);
        if (c)
            hapi_conn_failf(&c->base, HAPI_ETRANSPORT, e->event_type, "data connection: %s",
                            ibv_event_type_str(e->event_type));
        break;
    case IBV_EVENT_CQ_ERR:
        c = conn_of(d, NULL, e->element.cq);
        if (c)
            hapi_conn_failf(&c->base, HAPI_ETRANSPORT, e->event_type, "data connection: %s",
                            ibv_event_type_str(e->event_type));
        break;
    default: /* ports go up and down: the retries and the control channel's heartbeats judge that */
        break;
    }
}

static void events_ready(struct hapi_watch *w, uint32_t revents)
{
    struct verbs_device *d = (struct verbs_device *)((char *)w - offsetof(struct verbs_device, events));
    struct verbs_fabric *f = d->fabric;
    struct ibv_async_event e;

    (void)revents;
    while (ibv_get_async_event(d->context, &e) == 0) {
        /* First: destroying what it names waits for that. The pointers are only compared afterwards. */
        ibv_ack_async_event(&e);
        async_event(d, &e);
        struct verbs_device *still = f->devices;
        while (still && still != d)
            still = still->next;
        if (!still)
            return;
    }
}

/* ---- opening ---- */

static struct ibv_context *context_open(const char *name)
{
    struct ibv_device **list = ibv_get_device_list(NULL);
    struct ibv_context *context = NULL;

    for (int i = 0; list && list[i] && !context; i++)
        if (strcmp(ibv_get_device_name(list[i]), name) == 0)
            context = ibv_open_device(list[i]);
    if (list)
        ibv_free_device_list(list);
    return context;
}

static int device_memory(struct verbs_device *d, struct hapi_err *err)
{
    const struct hapi_fabric *f = &d->fabric->base;
    struct ibv_device_attr attr;
    int rc = 0;

    if (ibv_query_device(d->context, &attr))
        return hapi_verbs_error(err, errno, "cannot query %s", d->name);
    d->windows =
        attr.device_cap_flags & IBV_DEVICE_MEM_WINDOW_TYPE_2B && attr.max_mw > 0 && !f->opt.no_memory_windows;
    d->pd = ibv_alloc_pd(d->context);
    if (!d->pd)
        return hapi_verbs_error(err, errno, "cannot allocate a protection domain on %s", d->name);
    if (f->slab)
        rc = hapi_verbs_register(&d->slab, d->pd, f->slab->base, f->slab->size, IBV_ACCESS_LOCAL_WRITE, err);
    for (int i = 0; !rc && i < f->n_device_memory; i++)
        rc = register_device_memory(d, i, &f->device_memory[i], err);
    return rc;
}

struct verbs_device *hapi_verbs_device(struct verbs_fabric *f, const char *name, struct hapi_err *err)
{
    struct verbs_device *d = f->devices, *gone;

    while (d && (d->removed || strcmp(d->name, name) != 0))
        d = d->next;
    if (d && device_is_there(d))
        return d;
    gone = d; /* removed, and perhaps added again under the same name */
    d = calloc(1, sizeof *d);
    if (!d) {
        hapi_err_set(err, HAPI_ENOMEM, 0, "no memory for a device");
        return NULL;
    }
    d->fabric = f;
    snprintf(d->name, sizeof d->name, "%s", name);
    if (gone) /* `name` may go with it */
        device_removed(gone);
    d->context = context_open(d->name);
    if (!d->context) {
        hapi_err_set(err, HAPI_EUNSUPPORTED, errno, "verbs: RDMA device %s cannot be opened", d->name);
        free(d);
        return NULL;
    }
    int flags = fcntl(d->context->async_fd, F_GETFL);
    bool bad = flags < 0 || fcntl(d->context->async_fd, F_SETFL, flags | O_NONBLOCK);
    if (bad)
        hapi_verbs_error(err, errno, "cannot set up the events of %s", d->name);
    d->events = (struct hapi_watch){.ready = events_ready, .fd = d->context->async_fd, .events = POLLIN};
    bad = bad || device_memory(d, err);
    int rc = bad ? 0 : hapi_loop_watch(f->base.loop, &d->events);
    if (rc)
        hapi_err_set(err, rc, 0, "cannot watch the events of %s", d->name);
    if (bad || rc) {
        device_close(d);
        return NULL;
    }
    d->next = f->devices;
    f->devices = d;
    return d;
}

/* ---- the fabric ---- */

static const char *const no_device =
    "no RDMA device here (rdma link show; ci/softroce runs a command with software ones)";

static int verbs_probe(struct hapi_err *err)
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

/* Where it is known which device will be used, its memory is taken now rather than when a peer waits. */
static int open_known_device(struct verbs_fabric *f, struct hapi_err *err)
{
    const char *wanted = f->base.device, *known = NULL;
    int n = 0;
    struct ibv_device **list = ibv_get_device_list(&n);
    int rc = 0;

    for (int i = 0; list && i < n; i++)
        if (hapi_verbs_wanted(wanted, ibv_get_device_name(list[i]), 0) && (*wanted || n == 1))
            known = ibv_get_device_name(list[i]);
    if (*wanted && !known)
        rc = hapi_err_set(err, HAPI_EUNSUPPORTED, 0, "verbs: no device named %s", wanted);
    else if (known && !hapi_verbs_device(f, known, err))
        rc = err && err->code ? err->code : HAPI_ETRANSPORT;
    if (list)
        ibv_free_device_list(list);
    return rc;
}

static void verbs_fabric_close(struct hapi_fabric *base)
{
    struct verbs_fabric *f = (struct verbs_fabric *)base;

    hapi_loop_timer_clear(base->loop, &f->check);
    hapi_loop_unwatch(&f->watch);
    if (f->channel)
        rdma_destroy_event_channel(f->channel);
    while (f->devices)
        device_close(f->devices);
    free(f);
}

static int verbs_fabric_open(struct hapi_fabric **out, const struct hapi_fabric *proto, struct hapi_err *err)
{
    struct verbs_fabric *f = calloc(1, sizeof *f);
    int rc;

    if (!f)
        return hapi_err_set(err, HAPI_ENOMEM, 0, "no memory for a fabric");
    f->base = *proto;
    rc = open_known_device(f, err);
    if (!rc)
        rc = hapi_verbs_channel_open(f, err);
    if (rc) {
        verbs_fabric_close(&f->base);
        return rc;
    }
    nodes_changed(f);
    f->check.fire = check_fire;
    hapi_loop_timer_set(f->base.loop, &f->check, hapi_clock_ns() + CHECK_NS);
    *out = &f->base;
    return 0;
}

static int verbs_add_device_memory(struct hapi_fabric *base, const struct hapi_device_piece *m,
                                   struct hapi_err *err)
{
    struct verbs_fabric *f = (struct verbs_fabric *)base;
    int rc = 0;

    for (struct verbs_device *d = f->devices; d && !rc; d = d->next)
        rc = register_device_memory(d, base->n_device_memory, m, err);
    for (struct verbs_device *d = f->devices; d && rc; d = d->next)
        if (d->device_memory[base->n_device_memory]) {
            ibv_dereg_mr(d->device_memory[base->n_device_memory]);
            d->device_memory[base->n_device_memory] = NULL;
        }
    return rc;
}

const struct hapi_fabric_ops hapi_fabric_verbs = {
    .kind = "verbs",
    .conn = &hapi_verbs_conn_ops,
    .probe = verbs_probe,
    .open = verbs_fabric_open,
    .close = verbs_fabric_close,
    .listener_open = hapi_verbs_listener_open,
    .listener_close = hapi_verbs_listener_close,
    .data_host = hapi_verbs_data_host,
    .add_device_memory = verbs_add_device_memory,
};
