/*
 * Inside of the verbs back end: verbs.c (queue pairs and work), verbs_cm.c (connections), verbs_device.c
 * (devices, what is registered with them), verbs_select.c (addresses: which device it shall be).
 */
#ifndef HAPI_TRANSPORT_VERBS_INT_H
#define HAPI_TRANSPORT_VERBS_INT_H

#include <infiniband/verbs.h>
#include <rdma/rdma_cma.h>

#include "address.h"
#include "transport_ops.h"

enum { VERBS_NAME_MAX = 64 };

/* Memory that connections expose, registered once for all of them: local rights and the right to bind windows
 * to it. Gone with the last window. */
struct verbs_memory {
    struct verbs_memory *next;
    void *base;
    size_t n;
    struct ibv_mr *mr;
    unsigned windows;
};

/*
 * A device in use. The context is our own, not librdmacm's, so that its life is ours: the device is closed
 * when it was removed and the last connection has gone.
 */
struct verbs_device {
    struct verbs_device *next;
    struct verbs_fabric *fabric;
    char name[VERBS_NAME_MAX];
    struct ibv_context *context;
    struct hapi_watch events; /* asynchronous ones */
    struct ibv_pd *pd;        /* of all connections; on the client, where windows are bound to queue pairs */
    struct ibv_mr *slab;      /* local rights; NULL: no slab */
    struct ibv_mr *device_memory[HAPI_DEVICE_PIECES];
    bool windows; /* type 2B: bound to one queue pair */
    struct verbs_memory *exposed;
    unsigned conns;
    bool removed;
};

struct verbs_fabric {
    struct hapi_fabric base;
    struct rdma_event_channel *channel; /* of all listeners and connections */
    struct hapi_watch watch;
    struct hapi_timer check;       /* whether the devices are still there */
    struct timespec nodes_changed; /* of the folder of their nodes */
    struct verbs_device *devices;
    struct verbs_conn *conns;
    struct verbs_listener *listeners;
};

/* What the context of an rdma_cm_id points to: the first member of both says which it is. */
enum verbs_owner { VERBS_LISTENER, VERBS_CONN };

struct verbs_listener {
    enum verbs_owner owner;
    struct hapi_listener base;
    struct verbs_listener *next;
    struct rdma_cm_id *id; /* NULL: its device was removed */
};

struct verbs_conn {
    struct hapi_conn base; /* first */
    enum verbs_owner owner;
    struct verbs_conn *next; /* of the fabric, from its queue pair to conn_stop */
    struct hapi_watch watch; /* of the completion channel */
    struct hapi_poller poller;
    struct rdma_cm_id *id;
    struct verbs_device *device;
    struct ibv_pd *pd; /* the device's, or its own */
    struct ibv_qp *qp;
    struct ibv_comp_channel *channel;
    struct ibv_cq *cq;
    struct ibv_mr *slab; /* in pd */
    bool own_pd, armed, flushed;
    bool more;        /* the last look at the completion queue did not empty it */
    unsigned unacked; /* completion events */
    struct {
        struct ibv_mr *mr; /* its own, or of `memory` */
        struct verbs_memory *memory;
        struct ibv_mw *window;
    } exposed[HAPI_EXPOSE_MAX];
    uint8_t *recv; /* accepting side: max_recv buffers of HAPI_REQUEST_MAX */
    struct ibv_mr *recv_mr;
    uint8_t nonce[HAPI_NONCE_SIZE];
    enum ibv_mtu mtu; /* agreed on; 0: the path's */
    uint64_t rnr_before;
};

/* ---- verbs.c ---- */
int hapi_verbs_error(struct hapi_err *err, int e, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
/* Protection domain, completion queue and queue pair of c->id, ready to receive. What it leaves behind on an
 * error hapi_verbs_conn_stop() takes down. */
int hapi_verbs_queues(struct verbs_conn *c, struct hapi_err *err);
/* The path MTU that this side can do: at most `asked` (0: no wish). Once the peer's address is known. */
int hapi_verbs_mtu(struct verbs_conn *c, enum ibv_mtu asked, enum ibv_mtu *out, struct hapi_err *err);
/* Ready to send; c->mtu is agreed on. */
int hapi_verbs_ready(struct verbs_conn *c, struct hapi_err *err);
/* Takes the completions there are, or many of them (c->more), and says how many. The connection may have
 * ended by one of them. */
int hapi_verbs_completions(struct verbs_conn *c);
void hapi_verbs_conn_stop(struct hapi_conn *base);
extern const struct hapi_conn_ops hapi_verbs_conn_ops;

/* ---- verbs_cm.c ---- */
int hapi_verbs_channel_open(struct verbs_fabric *f, struct hapi_err *err);
int hapi_verbs_listener_open(struct hapi_listener **out, const struct hapi_listener *proto, const char *host,
                             uint16_t port, struct hapi_err *err);
void hapi_verbs_listener_close(struct hapi_listener *base);
int hapi_verbs_connect(struct hapi_conn **out, const struct hapi_conn *proto, const char *host, uint16_t port,
                       const uint8_t nonce[HAPI_NONCE_SIZE], struct hapi_err *err);
/* Its device was removed. */
void hapi_verbs_listener_stop(struct verbs_listener *l);

/* ---- verbs_device.c ---- */
/* The device of that name, opened at its first use: the slab and device memory are registered then. */
struct verbs_device *hapi_verbs_device(struct verbs_fabric *f, const char *name, struct hapi_err *err);
void hapi_verbs_device_put(struct verbs_device *d); /* a connection less */
/* Registers memory; HAPI_ENOMEM says how much locked memory is needed. */
int hapi_verbs_register(struct ibv_mr **out, struct ibv_pd *pd, void *p, size_t n, int access,
                        struct hapi_err *err);
/* Registered once and shared by windows; NULL with the reason. */
struct verbs_memory *hapi_verbs_memory_get(struct verbs_device *d, void *base, size_t n,
                                           struct hapi_err *err);
void hapi_verbs_memory_put(struct verbs_device *d, struct verbs_memory *m);
/* Receiver-not-ready events that a port has counted since it exists; 0 where the device does not count. */
uint64_t hapi_verbs_rnr(const char *device, int port);

/* ---- verbs_select.c ---- */
/* An address of this machine through which an RDMA device is reached. */
struct verbs_address {
    char device[VERBS_NAME_MAX];
    int port;
    union hapi_sockaddr a;
    int numa;        /* nearest NUMA node; -1: unknown */
    bool gid_wanted; /* it is the address of the GID that was asked for */
};
/* Whether `wanted` ("", "NAME", "NAME:PORT") means that port of a device; port 0: any. */
bool hapi_verbs_wanted(const char *wanted, const char *device, int port);
/* Of n addresses the one to use: `want` itself if it is among them; else of the same family as `want`, or any
 * family where want has none (AF_UNSPEC), the first on NUMA node `numa`, or the first. Only those that
 * `device` means, and with need_gid only those whose GID was asked for. -1: none. */
int hapi_verbs_choose(const struct verbs_address *list, int n, const union hapi_sockaddr *want,
                      const char *device, bool need_gid, int numa);
/* The address of this side for a connection to (client) or from (node) `want`; *found false: leave it to the
 * routing. An error: a device or GID was asked for and there is none. */
int hapi_verbs_local_address(const struct verbs_fabric *f, const union hapi_sockaddr *want,
                             union hapi_sockaddr *out, bool *found, struct hapi_err *err);
int hapi_verbs_data_host(const struct hapi_fabric *f, const char *host, char out[HAPI_NAME_MAX + 1],
                         struct hapi_err *err);

#endif
