/*
 * What `hapi profile` does: opens the network and the nodes (or a folder of data), measures for as long as it
 * may, and makes a profile of it.
 *
 *     profile_run.c    in which order, for how long; this machine's part
 *     profile_data.c   the dataset: from the nodes, or from a folder here; images to decode
 *     profile_node.c   what is asked of the nodes, and what their answers say
 *     profile_out.c    the profile, as JSON
 *
 * Threads: one at a time; measuring starts some and waits for them.
 */
#ifndef HAPI_CLIENT_PROFILE_RUN_H
#define HAPI_CLIENT_PROFILE_RUN_H

#include "grid.h"
#include "measure.h"
#include "probe.h"
#include "profile.h"
#include "store.h"

enum { PROFILE_BATCHES_MAX = 16, PROFILE_IMAGES = 16, PROFILE_MICRO_BATCH = 8 };

/* What may be given instead of being measured, or is nothing to measure. X(ENUM, key, default).
 * A default of NAN: measured, or required. */
#define PROFILE_GIVEN(X)                                                                                     \
    X(PROFILE_EPOCHS, "epochs", 20)                                                                          \
    X(PROFILE_BANDWIDTH, "bandwidth_Bps", NAN)                                                               \
    X(PROFILE_LATENCY, "latency_s", NAN)                                                                     \
    X(PROFILE_TRAIN, "train_s", NAN)                                                                         \
    X(PROFILE_STORAGE_CACHE, "storage_cache", NAN)                                                           \
    X(PROFILE_COMPUTE_CACHE, "compute_cache", 4294967296.0)                                                  \
    X(PROFILE_STORAGE_MEMORY, "storage_memory", NAN)                                                         \
    X(PROFILE_COMPUTE_MEMORY, "compute_memory", NAN)

enum profile_given {
#define X(name, key, otherwise) name,
    PROFILE_GIVEN(X)
#undef X
        PROFILE_GIVEN_N
};
extern const char *const profile_given_keys[PROFILE_GIVEN_N];

struct profile_options {
    const char *model, *nodes, *dataset, *data, *freeze, *transform, *backend, *transport, *key;
    enum hapi_dtype dtype;
    uint32_t batches[PROFILE_BATCHES_MAX], n_batches; /* ascending, 1 first */
    uint32_t train_batch, storage_nodes;              /* the latter without `nodes` */
    double seconds, given[PROFILE_GIVEN_N];           /* NAN: not given */
    bool quiet;
};

struct profile_link {        /* to a node */
    double guess;            /* bytes a second, of a first stream: how much to ask for; 0: none yet */
    struct points transfers; /* large ones: bytes, and the seconds between request and record that the node
                                does not explain */
    struct series streams;   /* bytes a second of many requests at once */
    struct series small;     /* such seconds of the smallest payloads, about small_bytes each */
    double small_bytes;
    struct series speed; /* of the node by the first one's */
};

struct profile_run {
    const struct profile_options *o;
    struct hapi_model *model;
    struct hapi_transform transform;
    char transform_text[HAPI_TRANSFORM_MAX];
    const struct hapi_cut *cuts; /* 0..freeze of hapi_model_cuts() */
    uint32_t n_cuts;
    struct hapi_topology *topology;
    struct measure memory;
    /* the dataset */
    struct hapi_loop *loop;
    struct hapi_keys *keys;
    struct hapi_store *store; /* NULL: it is the nodes' */
    const struct hapi_dataset *set;
    struct hapi_catalog catalog;
    struct probe_job job;
    struct probe **probes;
    void *offer;
    uint32_t n_nodes;
    uint64_t n_samples;
    double mean_bytes;
    uint32_t n_classes;
    struct hapi_image images[PROFILE_IMAGES];
    uint32_t n_images;
    uint8_t *image_bytes;
    /* measured */
    uint32_t main;                    /* index into batches */
    double *x;                        /* n_cuts: share of the FLOPs before the cut */
    uint32_t *limit;                  /* n_cuts: so many of the micro-batches fit what a node sends at once */
    uint32_t *order;                  /* of the samples */
    uint32_t n_order;                 /* cuts that may be served */
    struct series *storage, *compute; /* n_cuts * n_batches */
    struct series whole[PROFILE_BATCHES_MAX];
    struct series source_prepare, storage_prepare, read, train, contention[2]; /* storage, compute */
    struct series *pack, *unpack;           /* n_cuts * HAPI_WIRES_N: on this machine */
    struct series pack_ratio[HAPI_WIRES_N]; /* the node's time by this machine's */
    struct series both_streams;             /* from all nodes at once */
    struct profile_link *links;
    char **refused;               /* n_cuts: why the node does not serve that cut; NULL: it does */
    struct probe_answer *answers; /* PROBE_SLOTS for each node */
    uint32_t rounds, losses;      /* losses: of connections to nodes */
    int64_t began_ns;
    double took_s;
};

/* What waits for nobody: model, transform, cuts. *r is to be closed whatever comes of it. Errors: of the
 * model, the transform and the backend; HAPI_EINVAL (freeze). */
int profile_open(struct profile_run *r, const struct profile_options *o, struct hapi_err *err);
/* Opens the data or the nodes, measures, and makes the profile and what is said besides: JSON to be freed.
 * Errors name the dataset, the node or the key. */
int profile_measure(struct profile_run *r, char **text, struct hapi_err *err);
void profile_close(struct profile_run *r);

/* ---- between the files ---- */
int profile_data_open(struct profile_run *r, struct hapi_err *err);
void profile_data_close(struct profile_run *r);
int profile_read(struct profile_run *r, struct hapi_err *err); /* one visit to the store here */

int profile_nodes_open(struct profile_run *r, struct hapi_err *err);
void profile_nodes_close(struct profile_run *r);
/* One visit each; a cut that the node refuses is put down as refused and no error. */
int profile_node_cut(struct profile_run *r, uint32_t cut, uint32_t batch, struct hapi_err *err);
int profile_node_links(struct profile_run *r, uint32_t cut, uint32_t batch, struct hapi_err *err);
int profile_node_contention(struct profile_run *r, uint32_t cut, uint32_t batch, struct hapi_err *err);
int profile_node_wires(struct profile_run *r, uint32_t cut, uint32_t batch, struct hapi_err *err);
int profile_node_speeds(struct profile_run *r, uint32_t cut, uint32_t batch, struct hapi_err *err);
/* After an error of a visit: nodes whose connection was lost (a machine that is busy is silent for too long)
 * are connected anew. 0: they are there again; else the error. */
int profile_nodes_again(struct profile_run *r, int why, struct hapi_err *err);
double profile_bandwidth(const struct profile_link *l);
double profile_latency(const struct profile_link *l);

int profile_text(const struct profile_run *r, char **out, struct hapi_err *err);

struct series *profile_cell(const struct profile_run *r, struct series *of, uint32_t cut, uint32_t batch);
struct grid profile_grid(const struct profile_run *r, const uint32_t *limit);

#endif
