/*
 * hapi-rt, the storage node: what its parts share. Internal to runtime/.
 *
 *     fabrics.c   the transports that are offered, the way in for data connections      (loop's thread)
 *     control.c   a client: what it says on its control channel                         (loop's thread)
 *     stat.c      the counters as JSON                                                  (loop's thread)
 *     metrics.c   the counters for Prometheus                                           (loop's thread)
 *     session.c   its data connection, its requests                                     (loop's thread)
 *     sched.c     whose request is served next                                          (loop's thread)
 *     pipeline.c  a micro-batch on its way: read -> compute -> send                     (loop's thread)
 *     worker.c    decode, prefix, wire dtype                                            (compute threads)
 *     remember.c  what need not be computed again                                       (loop's thread)
 *     models.c    uploaded models                                                       (helper thread)
 *     prefixes.c  what is compiled of them                                              (helper thread)
 *     admit.c     which prefixes have plans, within the memory there is                 (loop's thread)
 *     access.c    who may come in                                                       (loop's thread)
 *     tenants.c   what each may see and take                                            (loop's thread)
 *     runtime.c   owns it all: open, run, drain, close
 *
 * The loop's thread never computes and never waits for anything but its ring.
 */
#ifndef HAPI_RUNTIME_RUNTIME_H
#define HAPI_RUNTIME_RUNTIME_H

#include <stdatomic.h>

#include "config.h"
#include "control.h"
#include "loop.h"
#include "metrics.h"
#include "models.h"
#include "pipeline.h"
#include "pool.h"
#include "remember.h"
#include "store.h"
#include "tenants.h"
#include "topology.h"
#include "transport.h"

/* Counters for STAT and for metrics; loop's thread only. */
struct hapi_counters {
    uint64_t sessions, requests, parts, samples, bad_samples, wire_bytes, read_bytes, rejected, device_errors;
    uint64_t remembered; /* samples that were sent from what is kept */
    struct hapi_histogram stage[HAPI_METRIC_STAGES_N];
};

/* A request in service: the decoded message and how far it has come. */
struct hapi_service {
    struct hapi_session *session;
    struct hapi_service *next; /* in the session's queue, or its free list */
    struct hapi_request req;   /* borrows from message */
    const struct hapi_dataset *dataset;
    struct hapi_prefix *prefix;    /* NULL with cut none, or after a failure */
    struct hapi_feature_set *kept; /* rows of it; NULL: none are kept */
    int64_t arrived_ns, deadline_ns;
    int status;      /* not 0: ends with an error part */
    uint32_t formed; /* samples given to micro-batches */
    uint32_t unsent; /* micro-batches whose record is not on its way yet */
    uint32_t refs;   /* micro-batches that point here */
    uint32_t parts;
    bool finished; /* its terminal record is on its way, or nobody waits for it any more */
    int64_t object[HAPI_REQUEST_SAMPLES];          /* in the dataset; -1: not here */
    uint64_t raw_offset[HAPI_REQUEST_SAMPLES + 1]; /* cut none: where each sample goes in the window */
    struct hapi_req_object objects[HAPI_REQUEST_SAMPLES];
    struct hapi_req_sample samples[HAPI_REQUEST_SAMPLES];
    uint8_t message[HAPI_REQUEST_MAX];
};

enum hapi_transport { HAPI_TRANSPORT_OFI, HAPI_TRANSPORT_VERBS, HAPI_TRANSPORTS };
extern const char *const hapi_transport_names[HAPI_TRANSPORTS];

/* A transport that this node offers, or why it does not. The slab is registered with each. */
struct hapi_offer {
    struct hapi_fabric *fabric; /* NULL: not offered */
    struct hapi_err why;
    uint64_t connections;         /* that were made, those under way included */
    struct hapi_conn_stats ended; /* sums over those that are over */
};

struct hapi_session {
    struct hapi_rt *rt;
    struct hapi_session *next;
    struct hapi_tenant *tenant;
    uint64_t number;              /* odd, and of no other session */
    struct hapi_control *control; /* NULL once closed */
    struct hapi_conn *conn;       /* NULL before and after */
    uint32_t conns;               /* whose on_close is to come: conn, and unused ones that it replaced */
    bool conn_used;               /* a request came over it: it is not replaced any more */
    bool connected;               /* it had a data connection, over: */
    enum hapi_transport transport;
    struct hapi_listener *listener; /* while its data connection is waited for */
    uint8_t nonce[HAPI_NONCE_SIZE];
    int64_t nonce_deadline_ns;
    bool nonce_valid, uploading_busy, ended;
    bool upload_waits; /* for memory: the client was not asked for its model yet */
    int64_t upload_tried_ns;
    bool holds_model; /* `model`: the last that it offered */
    uint8_t model[HAPI_HASH_SIZE];
    char peer[80];
    struct hapi_conn_stats stats; /* of its data connections that are over */
    struct hapi_err why;          /* the first reason for which it ended */
    uint64_t upload_id, upload_size, upload_at;
    uint8_t upload_hash[HAPI_HASH_SIZE], *upload;
    struct hapi_service *services, *free_services, *queue, **queue_tail;
    uint32_t n_services, max_requests, in_service;
    uint32_t batches, sending; /* micro-batches it holds; of them computed and on their way out */
    int64_t virtual_ns;        /* of the node's time, that it has had: sched.c */
    int64_t sent_ns;           /* when one of these last was out, or the first came to be */
};

struct hapi_rt {
    struct hapi_config cfg;
    struct hapi_err no_gpu; /* why back end auto found none */
    struct hapi_loop *loop;
    struct hapi_topology *topology;
    struct hapi_store *store;
    struct hapi_slab slab;
    bool pinned;                      /* the slab, for the back end's device */
    bool reserved;                    /* the device's memory */
    bool tuned;                       /* engines are tried out */
    struct hapi_device_memory direct; /* send areas that the NIC reads by itself; base NULL: none */
    struct hapi_offer offers[HAPI_TRANSPORTS];
    struct hapi_keys *keys, **old_keys; /* old: connections made with them may be open */
    uint32_t n_old_keys;
    struct hapi_control_listener *control;
    struct hapi_models *models;
    struct hapi_features *features; /* NULL: nothing is kept */
    uint64_t feature_errors;        /* that were said */
    struct hapi_pool *pool;
    struct hapi_stage **stages; /* one a compute thread */
    struct hapi_session *sessions;
    int64_t virtual_ns;  /* what the tenant that was served last had had by then: sched.c */
    uint32_t ahead;      /* micro-batches for compute threads that are read or wait, or are computed */
    int64_t raw_cost_ns; /* of the node's time, that a micro-batch of raw objects takes */
    struct hapi_batch *batches, *free_batches;
    struct hapi_batch *want_plan; /* in COMPUTE, the longest first: all plans of their prefix are in use */
    uint8_t *frame, *scratch;     /* HAPI_FRAME_MAX each: control replies are built here */
    struct hapi_counters counters;
    struct hapi_tenant *tenants, other_tenants;
    struct hapi_tenant_table tenant_table;
    struct hapi_metrics *metrics; /* NULL: not asked for */
    struct {                      /* of the session that ended last, of those that had a data connection */
        char peer[80];
        enum hapi_transport transport;
        struct hapi_conn_stats stats;
        struct hapi_err why;
        const struct hapi_tenant *tenant;
    } last_end;
    char host[HAPI_NAME_MAX + 1];
    bool draining;
    int64_t drain_deadline_ns;
};

/* runtime.c */
int hapi_rt_open(struct hapi_rt **out, const struct hapi_config *cfg, struct hapi_err *err);
uint16_t hapi_rt_port(const struct hapi_rt *rt);
/* Until hapi_rt_drain() and the last request is answered. */
int hapi_rt_run(struct hapi_rt *rt, struct hapi_err *err);
void hapi_rt_drain(struct hapi_rt *rt); /* loop's thread: no new clients or requests, then stop */
void hapi_rt_close(struct hapi_rt *rt);

/* fabrics.c */
#define HAPI_NONCE_NS (10 * HAPI_NS_PER_S) /* that a nonce is good for */
/* Opens what --transport names. With auto, ofi always, and verbs where it works: else `why` of its offer says
 * why not. Errors: of hapi_fabric_open(). */
int hapi_fabrics_open(struct hapi_rt *rt, struct hapi_err *err);
void hapi_fabrics_close(struct hapi_rt *rt);
uint32_t hapi_fabrics_caps(const struct hapi_rt *rt); /* HAPI_CAP_TRANSPORT_* of what is offered */
/* "ofi" or "ofi,verbs" into text[16]; returns it. */
const char *hapi_fabrics_text(const struct hapi_rt *rt, char text[16]);
/* A listener of the session's own, on a port of its own, for one connection with its new nonce: peers that
 * were not told have nothing to connect to. *host is the address to tell. Errors: HAPI_EUNSUPPORTED (not
 * offered, no address on a device: says why), HAPI_EBUSY (it has a data connection), and the listener's. */
int hapi_session_listen(struct hapi_session *s, const char *transport, char host[HAPI_NAME_MAX + 1],
                        struct hapi_err *err);
/* Between the loop's rounds: closes the listeners whose nonce is used or HAPI_NONCE_NS old. */
void hapi_session_listen_step(struct hapi_session *s);

/* stat.c: JSON text, free() it. NULL: no memory. */
char *hapi_stat_json(const struct hapi_rt *rt, const struct hapi_tenant *asks);

/* control.c: what a client says on its control channel */
extern const struct hapi_control_handler hapi_session_control_handler;

/* access.c: rt->keys and the rules of tenants. Errors name the file and the line. */
int hapi_access_open(struct hapi_rt *rt, struct hapi_err *err);
void hapi_access_close(struct hapi_rt *rt);
/* Reads --key and --tenants again; what is wrong with them is logged, and they stay as they were. */
void hapi_rt_reload(struct hapi_rt *rt);

/* session.c: its data connection and its requests. The user of the listener is the session. */
/* Notes why (the first reason counts), and says so in the log once neither connection is left. */
void hapi_session_end(struct hapi_session *s, const struct hapi_err *why);
/* Logs `what`, tells the client and closes both connections. */
void hapi_session_fail(struct hapi_session *s, const char *what, const struct hapi_err *why);
void hapi_conn_stats_add(struct hapi_conn_stats *sum, const struct hapi_conn_stats *s);
extern const struct hapi_listener_handler hapi_session_data_handler;
/* A prefix became ready or failed: requests that waited for it go on. arg: the struct hapi_rt. */
void hapi_session_prefixes_changed(void *arg);
/* Frees the sessions that neither connection, upload nor micro-batch refers to any more; called between the
 * loop's rounds, when nobody holds a pointer to one. */
void hapi_sessions_reap(struct hapi_rt *rt);
void hapi_service_finish(struct hapi_service *v); /* out of the queue; reused once refs is 0 */

/* Of models and plans; clients whose model has no room yet wait, too. */
struct hapi_models_usage hapi_runtime_usage(const struct hapi_rt *rt);

struct hapi_owner hapi_session_owner(const struct hapi_session *s); /* of its models */

/* control.c: asks the client for the model that it offered, as soon as there is memory for it. */
void hapi_upload_begin(struct hapi_session *s);

/* sched.c */
/* Between the loop's rounds: ends the sessions that take nothing of what was computed for them. */
void hapi_sessions_stalled(struct hapi_rt *rt);
/* Gives free micro-batches to requests, evenly between tenants and their sessions, until one of both runs
 * out. */
void hapi_sched_pump(struct hapi_rt *rt);
/* A micro-batch starts; is computed; is over, and its times are known. */
void hapi_sched_charge(struct hapi_batch *b);
void hapi_sched_computed(struct hapi_batch *b);
void hapi_sched_settle(struct hapi_batch *b);

#endif
