/*
 * The data connection: registered memory, remote writes, writes with immediate, small sends. Back ends:
 * `ofi` (libfabric FI_EP_MSG, tcp provider) and `verbs` (RC through librdmacm).
 *
 *     node                                            client
 *     fabric (one domain, slab registered locally)    fabric
 *     listener ── accept(nonce) ── conn <══════════>  conn (own domain; windows registered remote-write only)
 *        write(payload) ... write_imm(record) ──────>  on_imm(request << 16 | part)
 *        on_recv(request)  <───────────────────────   send(request)
 *
 * Order: a write_imm is seen by the peer after every earlier write of the same connection is in its memory.
 * Lifetime: the memory of a write or send belongs to the connection until its on_done; hapi_conn_close()
 * gives every outstanding operation its on_done with HAPI_ECANCELED (before on_close) and is the fence: when
 * on_close has been called, nothing of the peer reaches our windows any more, and ours reach no one.
 * Callbacks come from the loop, never from inside a call; exactly one on_close per connection, last.
 * Threads: everything on the loop's thread; opening a fabric, which may block, also on another one as long as
 * the loop does not run yet.
 */
#ifndef HAPI_TRANSPORT_TRANSPORT_H
#define HAPI_TRANSPORT_TRANSPORT_H

#include "err.h"
#include "loop.h"
#include "slab.h"
#include "wire.h"

struct hapi_fabric;
struct hapi_listener;
struct hapi_conn;
struct hapi_topology;

/* How packets of verbs travel, as perftest's flags say it. -1, and mtu 0: as the route says. */
struct hapi_fabric_path {
    int gid_index; /* of the port's GID table: its address is the source */
    int tos;       /* traffic class, 0..255 */
    int sl;        /* service level, 0..15 */
    uint32_t mtu;  /* path MTU: 256, 512, 1024, 2048 or 4096 bytes */
};
#define HAPI_FABRIC_PATH_ANY ((struct hapi_fabric_path){-1, -1, -1, 0})

enum { HAPI_FABRIC_OPS_MAX = 16384 };

struct hapi_fabric_options {
    const char *device;                   /* verbs: "NAME" or "NAME:PORT"; NULL: what routes to the peer */
    const char *provider;                 /* ofi: "tcp" or "verbs"; NULL: tcp */
    const struct hapi_fabric_path *path;  /* verbs; NULL: any. Copied */
    const struct hapi_topology *topology; /* verbs: of several devices the nearest is taken; may be NULL */
    uint32_t max_recv; /* receives posted per connection, each HAPI_REQUEST_MAX bytes; 0: 16 (node side) */
    uint32_t max_ops;  /* writes and sends outstanding per connection, at most HAPI_FABRIC_OPS_MAX; 0: 256 */
    uint32_t max_imm;  /* immediates the peer may have outstanding (client side); 0: 1024 */
    int ack_timeout;   /* verbs: local ACK time-out, 4.096 us * 2^n; 0: 14 */
    bool no_memory_windows; /* verbs: a domain and registration per connection even where the device has
                               type-2 memory windows */
    uint32_t busy_poll_us;  /* look for completions so long after the last one, yielding, before the loop
                               sleeps; 0: never */
};

/* An operation. The caller keeps it until on_done. status 0 or HAPI_E*; local completion: the memory may be
 * reused (it does not mean delivered). */
struct hapi_conn_op {
    void (*on_done)(struct hapi_conn *c, struct hapi_conn_op *op, int status);
    struct hapi_conn_op *next; /* private */
    uint64_t priv[2];          /* private */
};

struct hapi_conn_handler {
    void (*on_open)(struct hapi_conn *c);
    void (*on_recv)(struct hapi_conn *c, const void *msg, size_t n); /* msg valid during the call */
    void (*on_imm)(struct hapi_conn *c, uint32_t imm);
    void (*on_close)(struct hapi_conn *c, const struct hapi_err *why);
};

/* kind "ofi" or "verbs". `slab` (may be NULL on a client) is registered once with local rights and must
 * outlive the fabric. Errors: HAPI_EUNSUPPORTED (not built, no device: says which), HAPI_ENOMEM (memlock: how
 * much is needed and how to raise it), HAPI_ETRANSPORT. */
int hapi_fabric_open(struct hapi_fabric **out, struct hapi_loop *loop, const char *kind,
                     const struct hapi_slab *slab, const struct hapi_fabric_options *opt,
                     struct hapi_err *err);
void hapi_fabric_close(struct hapi_fabric *f); /* no listener or connection left */
const char *hapi_fabric_kind(const struct hapi_fabric *f);
/* Where peers that reach this node at `host` (numeric, "" for any) find this fabric: `host` itself, or, with
 * verbs where no usable device has that address, an address of the nearest device of the same family.
 * HAPI_EUNSUPPORTED: no device has one. */
int hapi_fabric_data_host(const struct hapi_fabric *f, const char *host, char out[HAPI_NAME_MAX + 1],
                          struct hapi_err *err);
/* Device memory [base, base+n) as a source of writes, local rights only: by its dma-buf (fd, offset), or with
 * fd -1 by its address, which only a kernel that asks the device's driver can translate (nvidia-peermem). fd
 * stays the caller's and open until the fabric is closed: a device that is used later takes it then. Before
 * connections are opened. HAPI_EUNSUPPORTED where the transport, the kernel or the device cannot. */
int hapi_fabric_add_device_memory(struct hapi_fabric *f, void *base, size_t n, int fd, uint64_t offset,
                                  struct hapi_err *err);
/* Whether `kind` can work here, and why not. */
int hapi_fabric_probe(const char *kind, struct hapi_err *err);

/* Accepts a connection only when `admit` knows its nonce: it returns the handler's user pointer, or NULL to
 * refuse. The port is told to authenticated peers only. */
struct hapi_listener_handler {
    void *(*admit)(void *listener_user, const uint8_t nonce[HAPI_NONCE_SIZE]);
    struct hapi_conn_handler conn;
    void (*on_accept)(struct hapi_conn *c, void *user); /* before on_open: remember c */
};
int hapi_listener_open(struct hapi_listener **out, struct hapi_fabric *f, const char *host, uint16_t port,
                       const struct hapi_listener_handler *handler, void *user, struct hapi_err *err);
uint16_t hapi_listener_port(const struct hapi_listener *l);
void hapi_listener_close(struct hapi_listener *l);

/* Client side. The result comes by on_open or on_close. */
int hapi_conn_connect(struct hapi_conn **out, struct hapi_fabric *f, const char *host, uint16_t port,
                      const uint8_t nonce[HAPI_NONCE_SIZE], const struct hapi_conn_handler *handler,
                      void *user, struct hapi_err *err);
void hapi_conn_close(struct hapi_conn *c);
void *hapi_conn_user(const struct hapi_conn *c);

/* Registers [base, base+n) for remote writes by this connection's peer only, under a random key; gone with
 * the connection. Client side, before requests name it; at most 8 per connection. `*remote_base` is what the
 * peer must use as the address of `base`. The key is good for what the peer does on account of messages sent
 * on this connection after the call: a memory window is bound in the order of its work requests. */
int hapi_conn_expose(struct hapi_conn *c, void *base, size_t n, uint64_t *key, uint64_t *remote_base,
                     struct hapi_err *err);

/* Each: 0, and exactly one on_done later; or an error and none. HAPI_EBUSY: max_ops are outstanding.
 * Local memory of writes must lie in the fabric's slab. send copies nothing either; n <= HAPI_REQUEST_MAX,
 * and its memory lies in the slab or in memory given to hapi_conn_expose(), or n <= 256. op NULL: no
 * on_done of its own; it is complete when a later op of the same connection is. */
int hapi_conn_write(struct hapi_conn *c, const void *local, size_t n, uint64_t remote, uint64_t key,
                    struct hapi_conn_op *op);
int hapi_conn_write_imm(struct hapi_conn *c, const void *local, size_t n, uint64_t remote, uint64_t key,
                        uint32_t imm, struct hapi_conn_op *op);
int hapi_conn_send(struct hapi_conn *c, const void *msg, size_t n, struct hapi_conn_op *op);

/* Client: the number of immediates the peer may still send (max_parts of requests in flight). An immediate
 * beyond it closes the connection with HAPI_EPROTO (verbs posts that many receives; ofi keeps a ledger). */
int hapi_conn_grant(struct hapi_conn *c, uint32_t parts);

struct hapi_conn_stats {
    uint64_t writes, bytes, sends, recvs, imms;
    uint64_t completions; /* of writes and sends; one may stand for many */
    uint64_t rnr;         /* verbs: receiver-not-ready events of the device since this connection was made */
};
struct hapi_conn_stats hapi_conn_stats_get(const struct hapi_conn *c);

#endif
