/*
 * What the planner and the simulator know of a job: a network's cuts with measured times on both tiers, the
 * links, memory, caches. docs/planner.md describes the JSON, key by key; the names here are its keys.
 *
 *     struct hapi_profile *p;
 *     int rc = hapi_profile_parse(&p, text, size, &err);   err.text: "cuts[3].storage_s is missing"
 *     ... p->cuts[i].storage_s ...
 *     hapi_profile_free(p);
 *
 * A profile can also be made: hapi_profile_new(), fill the fields, hapi_profile_write().
 * Units: seconds, bytes, bytes a second. Times are of one core (or device) of their tier, for one image.
 * Threads: plain data; any number of readers. No clock, and no I/O but hapi_profile_read().
 */
#ifndef HAPI_PLANNER_PROFILE_H
#define HAPI_PLANNER_PROFILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "err.h"
#include "tensor.h"

struct hapi_arena;

#define HAPI_PROFILE_BYTES_MAX ((size_t)64 << 20) /* of a profile's text */
enum { HAPI_PROFILE_CUTS_MAX = 16384, HAPI_PROFILE_NODES_MAX = 65536, HAPI_CURVE_POINTS_MAX = 64 };

/* X(NAME, dtype, key): how activations may travel. */
#define HAPI_WIRES(X)                                                                                        \
    X(HAPI_WIRE_F32, HAPI_F32, "f32")                                                                        \
    X(HAPI_WIRE_F16, HAPI_F16, "f16")                                                                        \
    X(HAPI_WIRE_BF16, HAPI_BF16, "bf16")                                                                     \
    X(HAPI_WIRE_I8, HAPI_I8, "int8")

enum hapi_wire {
#define X(name, dtype, key) name,
    HAPI_WIRES(X)
#undef X
        HAPI_WIRES_N,
    HAPI_WIRE_RAW = -1, /* the object as it is stored: no pushdown */
};

const char *hapi_wire_name(enum hapi_wire wire);                /* "f32"; "raw" for HAPI_WIRE_RAW */
enum hapi_dtype hapi_wire_dtype(enum hapi_wire wire);           /* HAPI_DTYPE_NONE for HAPI_WIRE_RAW */
int hapi_wire_from_name(enum hapi_wire *out, const char *name); /* HAPI_EINVAL: none of the above */

/* Seconds for an image: one number, or a table by micro-batch. */
struct hapi_curve_point {
    uint32_t batch; /* >= 1, ascending */
    double s;
};

struct hapi_curve {
    double s;   /* where points is NULL; negative: not said */
    uint32_t n; /* of points */
    const struct hapi_curve_point *points;
};

/* Seconds for an image at a micro-batch of `batch` >= 1. Between two points the time of the *batch* is
 * interpolated (a fixed cost and one for each image); below the first and above the last point the image
 * takes as long as there. 0 where nothing was said. */
double hapi_curve_at(const struct hapi_curve *c, double batch);

struct hapi_profile_memory { /* bytes at a micro-batch of b: fixed + b * per_image */
    double fixed, per_image;
};

struct hapi_profile_cut {
    uint32_t index;
    const char *name;
    double wire_bytes[HAPI_WIRES_N];                        /* of an image; 0: cannot travel so */
    struct hapi_curve storage_s;                            /* [0, index) on a node */
    struct hapi_curve compute_s;                            /* [index, freeze) on the compute tier */
    struct hapi_curve convert_s[HAPI_WIRES_N], serialise_s; /* instead of the profile's, where said */
    struct hapi_profile_memory storage_memory, compute_memory;
};

struct hapi_profile_tier {
    uint32_t cores;    /* >= 1 */
    double contention; /* 0..1: of k busy cores each runs at 1 / (1 + contention * (k - 1)) */
    uint32_t devices;  /* that run the network instead of the cores; 0: none */
    bool train_shares; /* compute tier: training takes one of the cores (or devices) and not one of its own */
};

struct hapi_profile_node {
    const char *name;
    double bandwidth_Bps;
    uint32_t cores;
    double speed; /* its times are the profile's divided by it */
};

struct hapi_profile {
    const char *model;
    const char *hash, *host, *dtype, *date; /* where it was measured; NULL: not said */
    uint64_t images;                        /* of an epoch */
    uint32_t train_batch, epochs, nodes;
    uint32_t freeze;                       /* index of the freeze layer's cut */
    double source_bytes;                   /* of an image without pushdown */
    double bandwidth_Bps, latency_s;       /* of each node's link; of each request */
    double client_bandwidth_Bps;           /* of the client's link; 0: it is no bound */
    double storage_cache, compute_cache;   /* bytes, of each node and of the client */
    double storage_memory, compute_memory; /* bytes */
    struct hapi_curve train_s, source_prepare_s, read_s, storage_prepare_s;
    struct hapi_curve
        source_compute_s; /* [0, freeze) on the compute tier; see hapi_profile_source_compute() */
    struct hapi_curve convert_s[HAPI_WIRES_N], serialise_s; /* on each tier, where an image crosses */
    double jitter;           /* 0..1: each service takes (1 - jitter) to (1 + jitter) of its time */
    uint32_t request_images; /* 0: not said */
    struct hapi_profile_tier storage, compute;
    uint32_t n_node_list; /* 0 or `nodes` */
    struct hapi_profile_node *node_list;
    uint32_t n_cuts;               /* >= 1 */
    struct hapi_profile_cut *cuts; /* by ascending index */
    struct hapi_arena *arena;
};

/* Reads and checks. *out is to be freed. Errors name the key: HAPI_EFORMAT (no JSON), HAPI_EINVAL (missing,
 * of a wrong type, out of range, said twice, memory that is too small for every cut), HAPI_ENOMEM,
 * HAPI_ETOOBIG (longer than HAPI_PROFILE_BYTES_MAX). Keys that are not known are let be. */
int hapi_profile_parse(struct hapi_profile **out, const char *text, size_t size, struct hapi_err *err);
/* The same of a file; also the errors of hapi_file_read(). All name the path. */
int hapi_profile_read(struct hapi_profile **out, const char *path, struct hapi_err *err);

/* An empty one of n_cuts cuts and n_nodes nodes in its list (0: none), in which nothing optional is said.
 * HAPI_EINVAL (over the limits above), HAPI_ENOMEM. */
int hapi_profile_new(struct hapi_profile **out, uint32_t n_cuts, uint32_t n_nodes, struct hapi_err *err);
void hapi_profile_free(struct hapi_profile *p);
/* Copies that live as long as the profile; NULL, HAPI_ENOMEM without memory. */
const char *hapi_profile_text(struct hapi_profile *p, const char *text);
int hapi_profile_curve(struct hapi_profile *p, struct hapi_curve *out, const struct hapi_curve_point *points,
                       uint32_t n);

/* Its JSON, to be given to free(): what is not said is left out, numbers come back bit for bit. Errors: those
 * of hapi_profile_parse(), which has read the text before it is given out; HAPI_ENOMEM. */
int hapi_profile_write(const struct hapi_profile *p, char **out, struct hapi_err *err);

/* The cut of that index, or NULL. */
const struct hapi_profile_cut *hapi_profile_cut_find(const struct hapi_profile *p, uint32_t index);

/* Seconds for an image to compute [0, freeze) on the compute tier, micro-batch `batch`: source_compute_s
 * where it is said. Else compute_s of the first cut, and what lies before that cut: its storage_s times what
 * [first, freeze) takes here for what it takes there (1 where that says nothing). */
double hapi_profile_source_compute(const struct hapi_profile *p, double batch);
/* Seconds for an image to be made one of that wire dtype at the cut, or to be made f32 again. */
double hapi_profile_convert(const struct hapi_profile *p, const struct hapi_profile_cut *cut,
                            enum hapi_wire wire, double batch);
double hapi_profile_serialise(const struct hapi_profile *p, const struct hapi_profile_cut *cut, double batch);

#endif
