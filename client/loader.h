/*
 * libhapi's inside: what the parts of a loader share.
 *
 *     loader.c    the public calls: options, epochs, next, release                       (caller's thread)
 *     node.c      one node: control channel, index, model upload, data connection        (I/O thread)
 *     choice.c    which transport its data connection uses, and why                      (I/O thread)
 *     fetch.c     requests out, records in: which sample is asked where, what has arrived (I/O thread)
 *     window.c    registered memory: batch buffers, slots, record areas                  (once, I/O thread)
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
#include "kernels.h"
#include "loop.h"
#include "pool.h"
#include "slab.h"
#include "stage.h"
#include "topology.h"
#include "transport.h"

enum {
    REQUEST_SAMPLES = 32,     /* most of one request */
    NODE_REQUESTS = 16,       /* in flight to one node */
    CHUNK_SAMPLES = 8,        /* of one suffix job */
    SLOT_BYTES = 4 << 20,     /* of a slot for raw objects, unless one sample needs more */
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
    int8_t *done; /* 0: not yet, 1: there, -1: bad */
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
};

struct request {
    struct loader_node *node;
    bool active, terminal;
    bool lost;      /* its connection is gone, suffix jobs are under way: asked for anew when they are done */
    uint16_t index; /* on its connection */
    struct batch *batch;
    uint32_t at, n;       /* positions in the batch */
    uint32_t parts, jobs; /* arrived; suffix jobs under way */
    uint64_t generation;
    uint8_t *message;        /* local slab: the encoded request */
    uint8_t *slot, *records; /* exposed slab */
    bool seen[REQUEST_SAMPLES];
    struct hapi_request req;
    struct hapi_req_object objects[REQUEST_SAMPLES];
    struct hapi_req_sample samples[REQUEST_SAMPLES];
    struct chunk chunks[REQUEST_SAMPLES];
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
    uint64_t key, remote_base;
    uint32_t in_flight, max_requests, granted;
    int64_t progress_ns; /* when a part last came, or it was first asked after having nothing to do */
    uint64_t upload_at;
    uint64_t index_from, index_objects;  /* first object asked for; how many it said there are */
    uint64_t objects_left, samples_left; /* of what it said: not listed yet */
    struct hapi_err last;
    struct request requests[NODE_REQUESTS];
};

struct hapi_loader {
    /* what was asked, resolved on the caller's thread before the I/O thread starts */
    struct hapi_loader_options o;
    struct hapi_fabric_path path;
    char *strings[16];
    int n_strings;
    struct hapi_model *model;
    struct hapi_transform transform;
    char transform_text[HAPI_TRANSFORM_MAX];
    const struct hapi_cut *freeze;
    bool pushdown;                           /* else cut none */
    enum hapi_dtype wire, dtype, dtype_here; /* dtype_here: what this tier computes in */
    bool direct;                             /* the network assembles the batch: no suffix */
    size_t width, row_bytes;                 /* of a sample: features, f32 bytes */
    uint64_t wire_row;                       /* bytes on the wire */
    struct hapi_i8 form;                     /* of a row, with i8 on the wire */
    uint8_t upload[UPLOAD_BYTES + 512];      /* a model chunk on its way */
    void *offer;                             /* prefix bytes */
    size_t offer_size;
    uint8_t offer_hash[HAPI_HASH_SIZE];
    struct hapi_keys *keys;
    struct hapi_plan **plans; /* one a compute thread; NULL when nothing is left to compute */
    struct hapi_stage **stages;
    struct hapi_topology *topology;
    int threads;

    /* I/O thread */
    pthread_t thread;
    bool thread_started;
    struct hapi_loop *loop;
    struct loader_fabric fabrics[TRANSPORTS];
    struct hapi_pool *pool;
    struct hapi_slab local, exposed;
    size_t slot_bytes, record_slot;
    struct loader_node *nodes;
    uint32_t n_nodes, turn;
    struct hapi_catalog catalog;
    char numeric_class[64];
    uint32_t *order;
    struct batch *batches;
    struct batch *filling; /* the one that requests are made for */
    struct range *again;   /* to be asked for anew */
    uint32_t n_again, max_again;
    uint32_t next_position, epoch_asked;
    uint64_t next_sequence, generation;
    struct hapi_timer tick;
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
    _Atomic uint64_t wire_bytes, n_requests, n_parts, n_bad, n_reissued;
};

/* loader.c */
void loader_fail(struct hapi_loader *l, const struct hapi_err *err); /* any thread */
void loader_node_offered(struct hapi_loader *l); /* I/O thread: a node has told all it has */
void loader_node_up(struct hapi_loader *l);      /* I/O thread: the caller may go on once all are */

/* node.c */
void node_connect(struct loader_node *n);
void node_open_data(struct loader_node *n); /* once memory is there */
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
void fetch_lost(struct loader_node *n); /* the data connection is gone: issue its requests anew */
void fetch_epoch(struct hapi_loader *l);
void fetch_timeouts(struct hapi_loader *l);
/* Samples [first, first+count) of a request are where they belong, with these states (NULL: all well). */
void fetch_samples_done(struct request *r, uint32_t first, uint32_t count, const struct hapi_image *images);
void fetch_request_settle(struct request *r); /* terminal and no job left: frees it */

/* window.c */
int window_open(struct hapi_loader *l, struct hapi_err *err);
void window_close(struct hapi_loader *l);

/* suffix.c */
int suffix_open(struct hapi_loader *l, struct hapi_err *err); /* caller's thread: compiles */
void suffix_close(struct hapi_loader *l);
/* Whether the jobs check the payload, in the pass that converts it; else it is checked before them. */
bool suffix_checks(const struct hapi_loader *l);
/* The part in r->record, of samples [first, first+count). */
void suffix_submit(struct request *r, uint32_t first, uint32_t count);

#endif
