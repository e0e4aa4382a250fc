/*
 * libhapi's inside: what the parts of a loader share.
 *
 *     loader.c    the public calls: options, epochs, next, release                       (caller's thread)
 *     node.c      one node: control channel, index, model upload, data connection        (I/O thread)
 *     choice.c    which transport its data connection uses, and why                      (I/O thread)
 *     policy.c    what is to be done: split, wire dtype and shares, from options or a profile (caller's
 * thread) routes.c    how that is carried out: each way that samples take, with its plans (caller's thread)
 *     fetch.c     requests out, records in: which sample is asked where, what has arrived (I/O thread)
 *     request.c   what a request says                                                    (I/O thread)
 *     replicas.c  which node is asked for a sample                                       (I/O thread)
 *     keep.c      features that this tier keeps between epochs                           (I/O thread)
 *     window.c    registered memory: batch buffers, slots, record areas                  (once, I/O thread)
 *     observe.c   what the job shows of links, nodes and this tier                       (I/O thread)
 *     replan.c    from that and the profile, a better plan, if there is one               (its own thread)
 *     suffix.c    what is left to compute on this tier: decode and prefix of raw objects,
 *                 wire dtype to f32                                                      (compute threads)
 *
 * The I/O thread owns everything but the states of the batch buffers, which `lock` guards. It never computes.
 */
#ifndef HAPI_CLIENT_LOADER_H
#define HAPI_CLIENT_LOADER_H

#include <pthread.h>
#include <stdatomic.h>

#include "catalog.h"
#include "control.h"
#include "hapi.h"
#include "int8.h"
#include "kept.h"
#include "kernels.h"
#include "loop.h"
#include "planner.h"
#include "pool.h"
#include "slab.h"
#include "stage.h"
#include "topology.h"
#include "transport.h"

enum {
    ROUTES_MAX = 4,
    REPLANS_MAX = 64,
    REQUEST_SAMPLES = 32,     /* most of one request */
    NODE_REQUESTS = 16,       /* in flight to one node */
    CHUNK_SAMPLES = 8,        /* of one suffix job */
    SLOT_BYTES = 8 << 20,     /* of a slot, unless one sample needs more */
    UPLOAD_BYTES = 256 << 10, /* of a model chunk */
    NODE_ATTEMPTS = 5,        /* reconnects without progress before a node is given up */
};

/* Generations of requests; smaller ids on the control channel are message types. */
#define FIRST_GENERATION (1ULL << 32)

/* Any failure on the way: first one wins, told to the caller by next(). */
struct failure {
    struct hapi_err err;
    bool set;
};

/* The part of the network that nodes need: up to the deepest cut of the routes. Shared by routes that come
 * one after the other. */
struct offer {
    uint32_t users;
    const struct hapi_cut *cut;
    void *bytes;
    size_t size;
    uint8_t hash[HAPI_HASH_SIZE];
};

/* What a route has shown since it was last looked at. Guarded by the loader's lock. */
struct route_seen {
    uint64_t parts, images;        /* that a node computed, in */
    uint64_t chunks, chunk_images; /* that this tier computed, in */
    double node_s, here_s;         /* decoding and network */
};

/* A way that samples take from the store to a batch. */
struct route {
    const struct hapi_cut *cut; /* NULL: raw objects travel */
    enum hapi_dtype wire;
    uint32_t micro_batch;     /* of a node; 0: as it likes */
    double share;             /* of the samples */
    uint64_t asked;           /* samples, so far */
    bool direct;              /* the network assembles the batch: nothing is left to do */
    size_t elements;          /* of a sample at the cut */
    uint64_t wire_row;        /* bytes of a sample */
    struct hapi_i8 form;      /* of a row, with i8 on the wire */
    uint32_t chunk;           /* samples of a suffix job, at most */
    struct hapi_plan **plans; /* what is left, one a compute thread; NULL: no more than a conversion */
    int32_t profiled;         /* replan.c's: the profile's cut, or -1 */
    struct route_seen seen;
};

/* What is done now. It is replaced as a whole, when the last of its requests is over. */
struct routes {
    uint32_t n, users;   /* routes; requests under way */
    struct offer *offer; /* NULL: nothing is pushed down */
    struct routes *next; /* of those that are over */
    struct route route[ROUTES_MAX];
};

enum batch_state { BATCH_FREE, BATCH_FILLING, BATCH_READY, BATCH_HELD };

struct batch {
    enum batch_state state; /* guarded by lock */
    uint64_t sequence;      /* of the epoch: batches are delivered in order */
    uint32_t first, n;      /* positions in the epoch's order */
    uint32_t asked, left;   /* next position to ask for; samples not accounted for */
    uint32_t delivered, bad;
    uint8_t *features; /* in the exposed slab: n rows of f32 */
    uint32_t *labels;
    uint64_t *samples;
    int8_t *done;    /* 0: not yet, 1: there, -1: bad, 2: being read from what is kept */
    uint64_t *tried; /* bit i: node i has failed at it; then, with what status: */
    int *failed;
};

/* A range of a batch that must be asked for again. */
struct range {
    struct batch *batch;
    uint32_t at, n;
};

struct request;

struct chunk { /* a suffix job */
    struct hapi_job job;
    struct request *request;
    uint32_t first, count; /* samples of the request: at most CHUNK_SAMPLES where they are computed */
    uint32_t crc32c;       /* what the part's payload must have, where the job checks it */
    int status;
    int64_t ns[HAPI_STAGE_TIMES];
    int worker; /* which compute thread, from when to when */
    int64_t began_ns, ended_ns;
};

struct request {
    struct loader_node *node;
    struct routes *routes;
    struct route *route; /* of those */
    bool active, terminal;
    bool lost;      /* its connection is gone, suffix jobs are under way: asked for anew when they are done */
    uint16_t index; /* on its connection */
    struct batch *batch;
    uint32_t n, pos[REQUEST_SAMPLES]; /* samples, and where each is in the batch */
    bool gathers;                     /* these are not consecutive: rows come into the slot, and are copied */
    uint32_t parts, jobs;             /* arrived; suffix jobs under way */
    uint32_t waits_at, waiting;       /* samples that are here, but not yet as many as a suffix job takes */
    uint64_t generation;
    int64_t began_ns;
    uint8_t *message;        /* local slab: the encoded request */
    uint8_t *slot, *records; /* exposed slab */
    bool seen[REQUEST_SAMPLES];
    struct hapi_request req;
    struct hapi_req_object objects[REQUEST_SAMPLES];
    struct hapi_req_sample samples[REQUEST_SAMPLES];
    struct chunk chunks[REQUEST_SAMPLES];      /* a job at its first sample */
    struct hapi_image images[REQUEST_SAMPLES]; /* the chunks' */
    struct hapi_conn_op op;
    bool sending;
    struct hapi_record *record; /* private copy of the part in hand */
};

enum node_state {
    NODE_DOWN,
    NODE_CONNECTING,
    NODE_LISTING,
    NODE_INDEXING,
    NODE_OFFERING,
    NODE_OFFERED, /* waits for the other nodes: memory is sized by all of them */
    NODE_OPENING,
    NODE_UP,
    NODE_DEAD
};

/* A node's link, as it shows while parts come. */
struct link_seen {
    uint32_t traced; /* the node's number there */
    int64_t offset_ns, rtt_ns,
        clock_ns;         /* node's clock minus ours, as of that round trip, then; rtt_ns 0: not known */
    int64_t asked_ns;     /* when its clock was asked for */
    int64_t arrived_ns;   /* the last part */
    int64_t evidence_ns;  /* the last that says something of the link's rate */
    double bytes, busy_s; /* guarded by lock: since they were last taken */
};

enum transport { TRANSPORT_OFI, TRANSPORT_VERBS, TRANSPORTS };
extern const char *const transport_names[TRANSPORTS];

/* One fabric a transport, opened when a node first needs it; `why` not, once that has failed. */
struct loader_fabric {
    struct hapi_fabric *fabric;
    struct hapi_err why;
};

struct loader_node {
    struct hapi_loader *l;
    uint32_t number;
    char host[HAPI_NAME_MAX + 1], name[HAPI_NAME_MAX + 16];
    uint16_t port;
    enum node_state state;
    struct hapi_control *control;
    struct hapi_conn *conn;
    struct hapi_timer retry;
    int attempts;
    uint32_t caps;                     /* of its hello */
    enum transport transport;          /* of conn, or asked for */
    bool falls_back;                   /* conn is being closed, and another one asked for then */
    bool verbs_was_up;                 /* then it does not fall back any more */
    struct hapi_err no_verbs;          /* code not 0: verbs failed before it was ever up, and why */
    struct hapi_err why_ofi;           /* with auto: why it is not verbs */
    struct hapi_loader_transport told; /* guarded by lock: for the caller */
    struct link_seen link;
    const struct offer *offering; /* on its way */
    uint8_t has[HAPI_HASH_SIZE];  /* what it was last offered, and has; zero: nothing */
    uint64_t key, remote_base;
    uint32_t in_flight, max_requests, granted;
    uint32_t asked;        /* samples, of requests under way */
    double shown, shown_s; /* samples that it answered of late, and the seconds for that */
    int64_t shown_ns;      /* since when these are counted on */
    int64_t progress_ns;   /* when a part last came, or it was first asked after having nothing to do */
    uint64_t upload_at;
    uint64_t index_from, index_objects;  /* first object asked for; how many it said there are */
    uint64_t objects_left, samples_left; /* of what it said: not listed yet */
    struct hapi_err last;
    int refused; /* status of a request that failed as a whole; 0: none has */
    int64_t refused_ns;
    struct request requests[NODE_REQUESTS];
};

/* Features that this tier keeps: keep.c. */
struct keep_io {
    struct hapi_loader *l;
    struct hapi_feature_io io;
    struct hapi_feature place;
    struct batch *batch;
    uint32_t at;
    uint8_t *buf;
    struct keep_io *next;
};

struct keep {
    struct hapi_features *features;
    struct hapi_feature_set *set;
    struct hapi_slab memory;
    uint8_t *buffers;
    struct keep_io *ios, *free;
    uint32_t busy;
};

struct hapi_loader {
    /* what was asked, resolved on the caller's thread before the I/O thread starts */
    struct hapi_loader_options o;
    struct hapi_fabric_path path;
    char *strings[20];
    int n_strings;
    struct hapi_model *model;
    struct hapi_transform transform;
    char transform_text[HAPI_TRANSFORM_MAX];
    const struct hapi_cut *freeze;
    bool pushes, int8_wire;            /* samples may be pushed down; and travel as int8 */
    bool online;                       /* the job is planned anew while it runs */
    size_t most_row;                   /* of any plan that may be made */
    enum hapi_dtype dtype, dtype_here; /* dtype_here: what this tier computes in */
    size_t width, row_bytes;           /* of a sample: features, f32 bytes */
    struct routes *routes;             /* the I/O thread's, once that runs */
    struct hapi_profile *profile;      /* NULL: nothing is known of the job */
    struct hapi_choose_options choose;
    struct hapi_choice chosen;          /* what `routes` carries out */
    struct hapi_candidate *candidates;  /* room for choosing by the profile */
    uint8_t upload[UPLOAD_BYTES + 512]; /* a model chunk on its way */
    struct hapi_keys *keys;
    struct hapi_stage **stages; /* one a compute thread */
    struct hapi_topology *topology;
    int threads;

    /* I/O thread */
    pthread_t thread;
    bool thread_started;
    struct hapi_loop *loop;
    struct loader_fabric fabrics[TRANSPORTS];
    struct hapi_pool *pool;
    struct hapi_slab local, exposed;
    size_t slot_bytes, record_slot; /* slot_bytes 0: all routes are direct */
    struct loader_node *nodes;
    uint32_t n_nodes, turn;
    struct hapi_catalog catalog;
    char numeric_class[64];
    uint32_t *order;
    struct batch *batches;
    struct keep *keep;     /* NULL: nothing is kept */
    struct batch *filling; /* the one that requests are made for */
    struct range *again;   /* to be asked for anew */
    uint32_t n_again;
    uint32_t next_position, epoch_asked;
    uint64_t next_sequence, generation;
    struct routes *next_routes; /* to be used once all nodes have their offer */
    struct hapi_timer tick;
    bool probe; /* the next request is to show how fast its link is */
    bool ready; /* every node answered, memory is there */

    /* both threads */
    pthread_mutex_t lock;
    pthread_cond_t changed;
    struct failure failure;
    bool opened, closing;
    bool epoch_pending;
    uint32_t epoch;
    uint64_t deliver;       /* sequence of the next batch to hand out */
    uint64_t last_sequence; /* one past the epoch's last batch */
    uint32_t held;
    struct hapi_loader_part parts[ROUTES_MAX]; /* of l->routes, for the caller */
    uint32_t n_parts;
    struct routes *handed, *retired; /* by replan.c, to be used; to it, to be freed */
    double caller_s;                 /* between a batch and the next one asked for */
    uint64_t caller_images, delivered;
    int64_t asked_ns; /* for the next batch */
    int64_t given_ns; /* the last batch; 0: none, or it was followed by a pause */
    uint32_t given;
    struct hapi_loader_replan replans[REPLANS_MAX];
    uint32_t n_replans;
    pthread_t replanner;
    pthread_cond_t replan;
    bool replanner_started, replanner_ends;
    _Atomic uint64_t wire_bytes, n_requests, n_arrived, n_bad, n_reissued, n_kept;
};

/* loader.c */
void loader_fail(struct hapi_loader *l, const struct hapi_err *err); /* any thread */
void loader_node_offered(struct hapi_loader *l); /* I/O thread: a node has told all it has */
void loader_node_up(struct hapi_loader *l);      /* I/O thread: the caller may go on once all are */

/* node.c */
void node_connect(struct loader_node *n);
void node_open_data(struct loader_node *n);                    /* once memory is there */
void node_offer(struct loader_node *n, const struct offer *o); /* it says when it has it: routes_advance() */
void node_clock(struct loader_node *n);                        /* asks for its time: observe_clock() */
/* Destroys the data connection: when fetch_lost() is called nothing reaches our memory any more. */
void node_break(struct loader_node *n, int code, const char *why);
void node_close(struct loader_node *n);

/* choice.c */
int choice_options(struct hapi_loader *l, struct hapi_err *err); /* caller's thread: HAPI_EINVAL */
/* Sets n->transport; its fabric is open. Errors: of the fabric, HAPI_EUNSUPPORTED. */
int choice_make(struct loader_node *n, struct hapi_err *err);
/* The data connection that was asked for did not come up: whether another transport is tried now. */
bool choice_fall_back(struct loader_node *n, const struct hapi_err *why);
void choice_tell(struct loader_node *n); /* it is up */
void choice_close(struct hapi_loader *l);

/* fetch.c */
void fetch_pump(struct hapi_loader *l); /* ask for what can be asked for */
void fetch_imm(struct loader_node *n, uint32_t imm);
void fetch_refused(
    struct loader_node *n);             /* fails the job where the node has refused a request, and says why */
void fetch_lost(struct loader_node *n); /* the data connection is gone: issue its requests anew */
void fetch_epoch(struct hapi_loader *l);
void fetch_timeouts(struct hapi_loader *l);
/* Samples [first, first+count) of a request are where they belong, with these states (NULL: all well). */
void fetch_samples_done(struct request *r, uint32_t first, uint32_t count, const struct hapi_image *images);
void fetch_request_settle(struct request *r); /* terminal and no job left: frees it */

/* request.c */
/* Which samples from position `at` on, of `most`, go into one request: on that node, within the slot,
 * consecutive unless this tier has some of them. Sets r->pos and r->n; returns how many positions are taken
 * care of. */
uint32_t request_take(struct hapi_loader *l, struct request *r, struct batch *b, uint32_t at, uint32_t most);
/* Sends it, for the samples at r->pos. */
int request_issue(struct request *r, struct batch *b, struct hapi_err *err);
uint8_t *request_payload(const struct request *r); /* where nodes write what it asks for */

/* replicas.c: which node is asked for a sample */
/* Whether it has the sample at that position, lives, and has not failed at it. */
bool replica_may(const struct loader_node *n, const struct batch *b, uint32_t at);
/* A free request of the node that is likely to answer first; NULL: wait. *anywhere: whether any may. */
struct request *replica_request(struct hapi_loader *l, const struct batch *b, uint32_t at, bool *anywhere);
/* One of several that has answered nothing yet. */
bool replica_is_new(const struct loader_node *n);
void replica_asked(struct request *r);
void replica_answered(struct request *r);
/* A node has failed at a sample; true: another one will be asked for it. */
bool replica_another(struct request *r, uint32_t at, int status);

/* A sample is asked for anew, by the next fetch_pump(). */
void fetch_again(struct hapi_loader *l, struct batch *b, uint32_t at);
/* A sample that was kept is in its place, or, bad, could not be read and is to be asked for. */
void fetch_kept(struct hapi_loader *l, struct batch *b, uint32_t at, bool good);

/* keep.c */
int keep_options(const struct hapi_loader *l, struct hapi_err *err); /* caller's thread: HAPI_EINVAL */
int keep_open(struct hapi_loader *l, struct hapi_err *err);          /* errors: of store/kept.h */
void keep_close(struct hapi_loader *l);                              /* not while it is busy */
void keep_reap(struct hapi_loader *l);                               /* from the loop's on_wake */
bool keep_busy(const struct hapi_loader *l);
bool keep_has(const struct hapi_loader *l, const struct batch *b, uint32_t at);
/* LATER: it is there, and too many are being read: fetch_kept() comes before it can be tried again. */
enum keep_state { KEEP_NOT, KEEP_TAKEN, KEEP_LATER };
enum keep_state keep_take(struct hapi_loader *l, struct batch *b, uint32_t at);
/* A sample of a request has come. */
void keep_put(struct request *r, uint32_t at);

/* window.c */
int window_open(struct hapi_loader *l, struct hapi_err *err);
void window_close(struct hapi_loader *l);

/* policy.c */
/* Caller's thread; model and freeze layer are known. Sets l->routes. */
int policy_open(struct hapi_loader *l, struct hapi_err *err);
/* A way for raw objects with no share, where there is none and it may be needed to see how fast links are.
 * parts has room for one more. */
uint32_t policy_with_probe(const struct hapi_loader *l, struct hapi_loader_part *parts, uint32_t n);
void policy_close(struct hapi_loader *l); /* no request is under way any more */
uint32_t policy_parts(const struct hapi_profile *p, const struct hapi_choice *c,
                      struct hapi_loader_part parts[HAPI_CHOICE_PARTS]);

/* routes.c */
/* Of the parts of a plan: cut by cut what to compute here, compiled. before: whose offer may do, or NULL.
 * Errors: HAPI_EINVAL, HAPI_EUNSUPPORTED (a cut, or a wire dtype for it), of plans, HAPI_ENOMEM. */
int routes_new(struct routes **out, struct hapi_loader *l, const struct hapi_loader_part *parts, uint32_t n,
               const struct routes *before, struct hapi_err *err);
void routes_free(struct hapi_loader *l, struct routes *r);
/* Makes them the loader's; those before it, if any, are given back. */
struct routes *routes_use(struct hapi_loader *l, struct routes *r);
/* The one that is furthest behind its share. */
struct route *routes_next(struct hapi_loader *l);
/* Bytes that a request of n samples takes of its slot. */
size_t routes_slot_bytes(const struct hapi_loader *l);

/* What is handed over is used once every node has what it needs; requests under way end as they began. */
void routes_advance(struct hapi_loader *l);
void routes_over(struct routes *r, struct hapi_loader *l); /* one of its requests is */

/* observe.c: nothing, unless the loader plans anew or is traced. I/O thread */
void observe_up(struct loader_node *n); /* it has a data connection */
void observe_tick(struct hapi_loader *l);
void observe_clock(struct loader_node *n, const void *body, size_t size);
void observe_part(struct request *r); /* its record is in r->record, checked */
void observe_chunk(const struct chunk *c);
void observe_request(const struct request *r); /* its last part has come */
/* Lock held; caller's thread: a batch is asked for, one of n samples given. */
void observe_asked(struct hapi_loader *l);
void observe_given(struct hapi_loader *l, uint32_t n);

/* replan.c */
int replan_start(struct hapi_loader *l, struct hapi_err *err); /* caller's thread; the loader is open */
void replan_stop(struct hapi_loader *l);
void replan_close(struct hapi_loader *l); /* no thread runs any more: what never came to be used */

/* suffix.c */
int suffix_open(struct hapi_loader *l, struct hapi_err *err); /* caller's thread */
void suffix_close(struct hapi_loader *l);
/* Whether the jobs check the payload, in the pass that converts it; else it is checked before them. */
bool suffix_checks(const struct request *r);
/* The part in r->record, of samples [first, first+count). */
void suffix_submit(struct request *r, uint32_t first, uint32_t count);
void suffix_flush(struct request *r); /* no part is to come: what waits for one */

#endif
