/* Inside of the verbs back end, shared by verbs*.c. */
#ifndef HAPI_TRANSPORT_VERBS_INT_H
#define HAPI_TRANSPORT_VERBS_INT_H

#include <infiniband/verbs.h>
#include <rdma/rdma_cma.h>

#include "address.h"
#include "transport_ops.h"

enum { VERBS_DEVICES_MAX = 8 };

/* A device that the node uses: one protection domain, the slab registered in it with local rights. */
struct verbs_device {
    struct ibv_context *context;
    struct ibv_pd *pd;
    struct ibv_mr *slab;
};

struct verbs_fabric {
    struct hapi_fabric base;
    struct rdma_event_channel *channel; /* of all listeners and connections */
    struct hapi_watch watch;
    struct verbs_device device[VERBS_DEVICES_MAX];
    int n_devices;
};

/* What the context of an rdma_cm_id points to: the first member of both says which it is. */
enum verbs_owner { VERBS_LISTENER, VERBS_CONN };

struct verbs_listener {
    enum verbs_owner owner;
    struct hapi_listener base;
    struct rdma_cm_id *id;
};

struct verbs_conn {
    struct hapi_conn base; /* first */
    enum verbs_owner owner;
    struct hapi_watch watch; /* of the completion channel */
    struct rdma_cm_id *id;
    struct ibv_pd *pd;   /* its own (connecting side), or the device's */
    struct ibv_mr *slab; /* local rights, in pd */
    bool own_pd;
    struct ibv_comp_channel *channel;
    struct ibv_cq *cq;
    unsigned unacked; /* completion events */
    struct ibv_mr *mr[HAPI_EXPOSE_MAX];
    uint8_t *recv; /* accepting side: max_recv buffers of HAPI_REQUEST_MAX */
    struct ibv_mr *recv_mr;
    size_t max_msg;
    uint8_t nonce[HAPI_NONCE_SIZE];
};

/* verbs.c: queues and work */
int hapi_verbs_error(struct hapi_err *err, int e, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
/* Registers memory; HAPI_ENOMEM says how much locked memory is needed. */
int hapi_verbs_register(struct ibv_mr **out, struct ibv_pd *pd, void *p, size_t n, int access,
                        struct hapi_err *err);
/* Protection domain, completion queue and queue pair of c->id. What it leaves behind on an error
 * hapi_verbs_conn_stop() takes down. */
int hapi_verbs_queues(struct verbs_conn *c, struct hapi_err *err);
/* librdmacm leaves the RNR timer at its longest, 655 ms. After the queue pair is ready to receive. */
int hapi_verbs_rnr_timer(struct verbs_conn *c, struct hapi_err *err);
/* Takes the completions there are; false when the connection has ended meanwhile. */
bool hapi_verbs_completions(struct verbs_conn *c);
void hapi_verbs_conn_stop(struct hapi_conn *base);
void hapi_verbs_conn_free(struct hapi_conn *base);

/* verbs_cm.c: fabric, addresses, events */
struct verbs_device *hapi_verbs_device(struct verbs_fabric *f, struct ibv_context *context,
                                       struct hapi_err *err);
int hapi_verbs_probe(struct hapi_err *err);
int hapi_verbs_fabric_open(struct hapi_fabric **out, const struct hapi_fabric *proto, struct hapi_err *err);
void hapi_verbs_fabric_close(struct hapi_fabric *base);
int hapi_verbs_listener_open(struct hapi_listener **out, const struct hapi_listener *proto, const char *host,
                             uint16_t port, struct hapi_err *err);
void hapi_verbs_listener_close(struct hapi_listener *base);
int hapi_verbs_connect(struct hapi_conn **out, const struct hapi_conn *proto, const char *host, uint16_t port,
                       const uint8_t nonce[HAPI_NONCE_SIZE], struct hapi_err *err);

#endif
