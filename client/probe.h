/*
 * A storage node, asked one thing at a time: what `hapi profile` measures with. Requests, payload and records
 * travel as those of a job; but each is waited for, and what the node says of its time is kept.
 *
 *     probe_connect() for each node ── what it has, into the catalog
 *     hapi_catalog_seal()
 *     probe_ready() ── model, limits, data connection, memory
 *     probe_start() once or more, probe_wait() ── answers
 *
 * Threads: all calls, and the loop, on one thread. Waiting for one node serves the others, too.
 */
#ifndef HAPI_CLIENT_PROBE_H
#define HAPI_CLIENT_PROBE_H

#include <stdbool.h>
#include <stdint.h>

#include "catalog.h"
#include "control.h"
#include "loop.h"
#include "slab.h"
#include "stage.h"
#include "transport.h"

enum { PROBE_SAMPLES = 128, PROBE_SLOTS = 16, PROBE_UPLOAD = 256 << 10 };

/* What all nodes are asked about; the caller's, outlives the probes. */
struct probe_job {
    struct hapi_loop *loop;
    const struct hapi_keys *keys;    /* NULL: none */
    const char *dataset, *transport; /* "auto", "ofi", "verbs" */
    const char *transform;           /* canonical JSON */
    const void *model;               /* [0, freeze) */
    size_t model_size;
    uint8_t model_hash[HAPI_HASH_SIZE];
    enum hapi_dtype dtype; /* of computing */
    struct hapi_catalog *catalog;
    uint32_t *order; /* of the catalog's samples: which are taken first. From probe_ready() on */
};

struct probe_limits { /* as the node says them */
    uint32_t threads, micro_batch;
    uint64_t read_area, send_area, memory;
    uint64_t cache; /* bytes that it keeps activations in */
};

struct probe_ask {
    const struct hapi_cut *cut; /* NULL: raw objects */
    enum hapi_dtype wire;
    uint32_t n; /* samples, at most PROBE_SAMPLES; with a cut they are one micro-batch of so many */
};

enum { PROBE_NS = 5 }; /* queue, read, decode, compute, convert: stage_ns of a record */

struct probe_part {
    uint32_t count;
    int64_t ns[PROBE_NS], arrived_ns;
    uint64_t bytes; /* payload and record */
};

struct probe_answer {
    int status;              /* 0, or why the node refused: then `why` says more */
    char why[HAPI_ERR_TEXT]; /* for a person */
    int64_t sent_ns;         /* of hapi_clock_ns() */
    uint32_t n, n_parts;
    struct probe_part parts[PROBE_SAMPLES];
    struct hapi_image images[PROBE_SAMPLES]; /* raw objects, until the next probe_start() */
};

struct probe;

struct probe_slot { /* a request, its memory and its answer */
    struct probe *probe;
    bool active, sending;
    uint8_t *message, *records, *payload; /* in the probe's slab */
    struct hapi_request req;
    struct hapi_req_object objects[PROBE_SAMPLES];
    struct hapi_req_sample samples[PROBE_SAMPLES];
    struct hapi_conn_op op;
    struct hapi_record *record; /* private copy */
    struct probe_answer *answer;
};

enum probe_state {
    PROBE_CONNECTING,
    PROBE_LISTING,
    PROBE_LISTED,
    PROBE_OFFERING,
    PROBE_ASKING, /* its limits */
    PROBE_OPENING,
    PROBE_UP
};

struct probe {
    struct probe_job *job;
    uint32_t number; /* of the node, in the catalog */
    char name[HAPI_NAME_MAX + 16];
    enum probe_state state;
    struct hapi_err err;  /* code not 0: it is over */
    struct hapi_err said; /* the node's last complaint of a request */
    struct hapi_control *control;
    struct hapi_fabric *fabric;
    struct hapi_conn *conn;
    uint32_t caps;
    char numeric_class[64];
    const char *transport;
    struct probe_limits limits;
    uint64_t objects_left, samples_left, index_objects, index_from; /* of what it said that it has */
    uint64_t uploaded;
    uint8_t *upload; /* a model chunk on its way */
    struct hapi_slab slab;
    uint64_t key, remote_base;
    size_t slot_bytes, record_slot;
    uint32_t n_slots, granted, cursor;
    uint64_t generation;
    struct probe_slot slots[PROBE_SLOTS];
};

/* Connects and lists; the dataset's objects are in the catalog then. Errors: of the address, the connection,
 * the protocol; HAPI_ENOENT (no such dataset), HAPI_EUNSUPPORTED. The text names the node. */
int probe_connect(struct probe **out, struct probe_job *job, const char *address, uint32_t number,
                  struct hapi_err *err);
int probe_ready(struct probe *p, struct hapi_err *err);
void probe_close(struct probe *p);

/* The most samples that the node makes one micro-batch of at that cut; 0: it cannot serve it. */
uint32_t probe_most(const struct probe *p, const struct hapi_cut *cut, enum hapi_dtype wire);

/* One request goes out; *answer is filled by the time probe_wait() has returned, and must be there until
 * then. Samples are those of the order in turn, such that they fit the node's read area together. Errors:
 * HAPI_EBUSY (n_slots are under way), HAPI_ETOOBIG (no such samples), of the connection. */
int probe_start(struct probe *p, const struct probe_ask *ask, struct probe_answer *answer,
                struct hapi_err *err);
/* Until all that was started has been answered, or refused, which is no error of this call. err may
 * be NULL. */
int probe_wait(struct probe *p, struct hapi_err *err);

/* ---- between probe.c and probe_open.c ---- */
void probe_fail(struct probe *p, int code, const char *why);
void probe_imm(struct probe *p, uint32_t imm);

#endif
