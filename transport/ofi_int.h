/* Inside of the libfabric back end, shared by ofi*.c. */
#ifndef HAPI_TRANSPORT_OFI_INT_H
#define HAPI_TRANSPORT_OFI_INT_H

#include <rdma/fabric.h>
#include <rdma/fi_cm.h>
#include <rdma/fi_domain.h>
#include <rdma/fi_endpoint.h>
#include <rdma/fi_eq.h>
#include <rdma/fi_errno.h>
#include <rdma/fi_rma.h>

#include "address.h"
#include "transport_ops.h"

enum { CM_BYTES = sizeof(struct fi_eq_cm_entry) + 256 };

struct ofi_fabric {
    struct hapi_fabric base;
    struct fid_fabric *fid;
    struct fi_info *info;
    /* What the provider asks for; nothing of it with tcp. */
    bool local_keys;           /* memory of ours must be registered, too */
    bool addresses;            /* the peer names addresses, not offsets */
    bool provider_keys;        /* it chooses keys */
    bool imm_wants_recv;       /* an immediate consumes a receive */
    struct fid_domain *domain; /* with local keys, of all accepted connections: the slab is registered once */
    struct fid_mr *slab;
};

struct ofi_listener {
    struct hapi_listener base;
    struct hapi_watch watch; /* of eq */
    struct fid_eq *eq;
    struct fid_pep *pep;
    bool in_ready, closed;
    union hapi_sockaddr at;     /* where it listens */
    union hapi_sockaddr *peers; /* of the connections that it made */
    size_t n_peers;
};

struct ofi_conn {
    struct hapi_conn base;
    struct hapi_watch cq_watch, eq_watch;
    struct hapi_poller poller;
    int64_t stuck_ns; /* since when nothing came of what there is; 0: it is not so */
    bool may_sleep;   /* libfabric has agreed since the last event of its descriptors */
    struct fid_domain *domain;
    struct fid_eq *eq;
    struct fid_cq *cq;
    struct fid_ep *ep;
    struct fid_ep *srx; /* tcp: what receives are posted to; see open_srx() */
    bool own_domain;
    struct fid_mr *mr[HAPI_EXPOSE_MAX];
    struct fid_mr *slab, *recv_mr; /* with local keys */
    bool own_slab;
    size_t inject; /* bytes of a message that the provider copies */
    uint8_t *recv; /* max_recv buffers of HAPI_REQUEST_MAX; NULL on the connecting side */
};

/* ofi_fabric.c */
int hapi_ofi_error(struct hapi_err *err, int rc, const char *what);
/* fi_getinfo() for a provider ("": tcp); host NULL: whatever there is. The caller frees *out. */
int hapi_ofi_info(struct fi_info **out, const char *provider, const char *host, uint16_t port, uint64_t flags,
                  struct hapi_err *err);
/* Opens an event queue; w gets its descriptor. */
int hapi_ofi_eq(struct ofi_fabric *f, struct fid_eq **eq, struct hapi_watch *w, struct hapi_err *err);
void hapi_ofi_close(struct fid *fid); /* NULL is allowed */

/* ofi.c */
extern const struct hapi_conn_ops hapi_ofi_conn_ops;
/* Domain, queues and endpoint, and on the accepting side the receives. What it leaves behind on an error the
 * back end's conn_stop takes down. */
int hapi_ofi_endpoint(struct ofi_conn *c, struct fi_info *info, struct hapi_err *err);
int hapi_ofi_watch(struct ofi_conn *c, struct hapi_err *err);

/* ofi_listen.c */
int hapi_ofi_listener_open(struct hapi_listener **out, const struct hapi_listener *proto, const char *host,
                           uint16_t port, struct hapi_err *err);
void hapi_ofi_listener_close(struct hapi_listener *base);

#endif
