/*
 * libhapi: features at the freeze layer, computed near the data, in a seeded order.
 *
 * Simple:
 *
 *     struct hapi_loader_options o = {.model = "lite0.onnx", .nodes = "storage1:7471", .dataset = "train"};
 *     struct hapi_loader *l;
 *     struct hapi_batch_view b;
 *     struct hapi_error e;
 *     if (hapi_loader_open(&l, &o, &e)) die(e.text);
 *     for (unsigned epoch = 0; epoch < 10; epoch++) {
 *         if (hapi_loader_epoch(l, epoch, &e)) die(e.text);
 *         while ((rc = hapi_loader_next(l, &b, &e)) == 1) {
 *             train(b.features, b.labels, b.n);
 *             hapi_loader_release(l, &b);
 *         }
 *         if (rc < 0) die(e.text);
 *     }
 *     hapi_loader_close(l);
 *
 * Where the network is split, which node served a sample and how large its micro-batch was do not change the
 * features, as long as they travel as f32: the frozen prefix runs in inference mode.
 *
 * Threads: one thread makes all calls of a loader; the library has its own I/O and compute threads.
 */
#ifndef HAPI_H
#define HAPI_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

struct hapi_loader;

struct hapi_error {
    int code;       /* 0, or a negative HAPI_E* (docs/protocol.md lists them) */
    char text[512]; /* for a person: which file, node or sample, why, what to do */
};

enum { HAPI_SKIP_BAD = 0, HAPI_FAIL_ON_BAD = 1 };

/* How packets of verbs travel. -1, and mtu 0: as the route says. */
struct hapi_rdma_path {
    int gid_index; /* of the port's GID table: its address is the source */
    int tos;       /* traffic class, 0..255 */
    int sl;        /* service level, 0..15 */
    uint32_t mtu;  /* path MTU: 256, 512, 1024, 2048 or 4096 bytes */
};
#define HAPI_RDMA_PATH_ANY                                                                                   \
    {                                                                                                        \
        -1, -1, -1, 0                                                                                        \
    }

/* What storage nodes, links, compute threads and the caller do, each when, by this machine's monotonic clock:
 * a file of Chrome's trace events (ui.perfetto.dev opens it), written when it is closed. One for any number
 * of loaders, and any thread. Of nodes: what was done for these loaders. */
struct hapi_trace;

/* Errors: HAPI_ESYS and the like (the file), HAPI_ENOMEM. */
int hapi_trace_open(struct hapi_trace **out, const char *path, struct hapi_error *err);
/* Adds what the caller did between two moments of CLOCK_MONOTONIC. `name` must live as long as the trace. */
void hapi_trace_span(struct hapi_trace *t, const char *name, int64_t begin_ns, int64_t end_ns);
/* After the loaders' hapi_loader_close(). Whatever it returns, t is gone. */
int hapi_trace_close(struct hapi_trace *t, struct hapi_error *err);

/* Zero or NULL means the default, given in []. Strings and the path are copied. */
struct hapi_loader_options {
    const char *model;     /* ONNX file (required) */
    const char *transform; /* JSON file [MODEL.transform.json beside the model] */
    const char *nodes;     /* "HOST:PORT[,HOST:PORT...]" (required) */
    const char *dataset;   /* its name on the nodes (required) */
    const char *freeze;    /* cut id: tensor name, or names joined by "," [input of the last Gemm] */
    const char *policy;   /* where to split: "freeze", "none"; by a profile also "pipeline", "hapi", "hapi-v1"
                             ["pipeline" with a profile, else "freeze"] */
    const char *split;    /* cut id or "none": where to split, instead of by a policy [none] */
    const char *profile;  /* JSON file of `hapi profile` of this model, freeze layer and nodes [none] */
    int fixed_plan;       /* 1: what was chosen from the profile stays, whatever the job then shows */
    const char *accuracy; /* what wire dtypes a policy with a profile may choose: a relative L2 error of the
                             features, or the narrowest dtype ["f32"] */
    const char *wire;     /* "f32", "f16", "bf16", "int8"; without a profile ["f32"] */
    const char *dtype;    /* compute on both tiers: "f32", "bf16", "f16", "i8" ["f32"] */
    const char *backend;  /* of the compute tier: "onednn", "cudnn", "auto", "ref" ["onednn"] */
    const char *transport;             /* "auto", "ofi", "verbs" ["auto"]: see hapi_loader_transport() */
    const char *key;                   /* key file for TLS 1.3 [none] */
    const char *device;                /* verbs: RDMA device [the one that routes to the node] */
    const struct hapi_rdma_path *path; /* verbs [as the route says] */
    const char *provider;              /* ofi: libfabric's provider, "tcp", "verbs" ["tcp"] */
    uint32_t busy_poll_us;             /* look for completions so long before sleeping [0: never] */
    uint32_t batch;                    /* samples of a delivered batch [256] */
    uint32_t depth;                    /* batch buffers, those the caller holds included [4] */
    uint32_t threads;                  /* compute threads of this tier [one per core] */
    uint64_t seed;                     /* of the order */
    int sequential;                    /* 1: canonical order, no shuffle */
    int on_bad;                        /* HAPI_SKIP_BAD, HAPI_FAIL_ON_BAD */
    int checksum;                      /* 1: CRC-32C of each micro-batch, checked before use */
    uint64_t keep_memory;              /* bytes of memory that features are kept in, for later epochs [0] */
    uint64_t keep_disk;                /* and on disk, for later jobs, too [0], in files beneath: */
    const char *keep_dir;              /* a folder, made if it is not there; one job at a time [none] */
    struct hapi_trace *trace;          /* what happens is written there; it outlives the loader [none] */
    uint32_t request_timeout_ms; /* no part of any request for so long: the node's requests are issued anew
                                    [30000] */
};

/* Samples that take one way from the store to a batch. */
struct hapi_loader_part {
    const char *split;    /* cut id, or "none": raw objects travel, and this tier computes. The loader's */
    const char *wire;     /* "f32", "f16", "bf16", "int8"; "raw". Static */
    double share;         /* of the samples */
    uint32_t micro_batch; /* that nodes compute; 0: as they like */
};

/* With policy "pipeline" a job is planned anew while it runs, from its profile and what it has shown since:
 * once a plan is predicted to be faster by a tenth, twice in a row. No sample is lost, repeated or delivered
 * in another place. */
struct hapi_loader_replan {
    double seconds;       /* since the loader was opened */
    uint64_t samples;     /* delivered till then */
    double bandwidth_Bps; /* to the first node, as it was seen */
    double epoch_s;       /* predicted, of an epoch with this plan */
    double before_s;      /* and with the one before */
    uint32_t n_parts;
    struct hapi_loader_part parts[4];
};

/* One batch. The memory is the loader's until hapi_loader_release(). */
struct hapi_batch_view {
    const float *features; /* (n, width), rows `stride` bytes apart */
    size_t width, stride;
    const uint32_t *labels;  /* (n): index into hapi_loader_class() */
    const uint64_t *samples; /* (n): sample numbers in the dataset's canonical order */
    uint32_t n;              /* samples delivered; bad ones are left out */
    uint32_t n_bad;
    uint64_t private_id;
};

struct hapi_loader_stats {
    uint64_t wire_bytes; /* payload and records that arrived */
    uint64_t requests, parts, bad, reissued;
    uint64_t kept; /* samples that were not asked for: this tier had kept them */
};

/* Connects, reads the dataset's index, offers the prefix. Errors: HAPI_EINVAL (an option), HAPI_ENOENT (file,
 * dataset, tensor), HAPI_EFORMAT and HAPI_EUNSUPPORTED (model), HAPI_ECLOSED and HAPI_ETIMEDOUT (node),
 * HAPI_EVERSION, HAPI_EAUTH, HAPI_ENOMEM. */
int hapi_loader_open(struct hapi_loader **out, const struct hapi_loader_options *options,
                     struct hapi_error *err);
void hapi_loader_close(struct hapi_loader *l);

/* Starts an epoch; its order depends on (seed, epoch) only. HAPI_EBUSY while batches of the last one are held
 * or not yet taken. */
int hapi_loader_epoch(struct hapi_loader *l, uint32_t epoch, struct hapi_error *err);
/* 1: *view filled. 0: the epoch is over. HAPI_EBUSY: every buffer is held by the caller (the text says how
 * many). Other errors end the epoch: a bad sample with HAPI_FAIL_ON_BAD, no node left. */
int hapi_loader_next(struct hapi_loader *l, struct hapi_batch_view *view, struct hapi_error *err);
void hapi_loader_release(struct hapi_loader *l, const struct hapi_batch_view *view);

/* The first `max` changes of plan; returns how many there were (64 are kept). */
uint32_t hapi_loader_replans(struct hapi_loader *l, struct hapi_loader_replan *out, uint32_t max);

uint64_t hapi_loader_samples(const struct hapi_loader *l);
size_t hapi_loader_width(const struct hapi_loader *l); /* features of a sample */
uint32_t hapi_loader_classes(const struct hapi_loader *l);
const char *hapi_loader_class(const struct hapi_loader *l, uint32_t i);
const char *hapi_loader_split(struct hapi_loader *l); /* of most samples: cut id, or "none" */
/* What is done now, the largest part first; at most `max` are filled. Returns how many there are. */
uint32_t hapi_loader_parts(struct hapi_loader *l, struct hapi_loader_part *out, uint32_t max);
/* What this tier computes in: the dtype of the options, f32 where that is f16 and its back end has none;
 * "none": it computes nothing, or only converts. Static. */
const char *hapi_loader_dtype_here(struct hapi_loader *l);

/* How features come from a node. "auto" takes verbs when the node offers it in its hello, it works here and
 * its connection comes up; else ofi. A node that verbs never reached goes on over ofi; "verbs" does not. */
struct hapi_loader_transport {
    char node[272];    /* "HOST:PORT" as it was given */
    char transport[8]; /* "ofi", "verbs"; of its last data connection */
    char why[512];     /* that one, for a person */
};
uint32_t hapi_loader_nodes(const struct hapi_loader *l);
/* Node i of hapi_loader_nodes(), in the order of `nodes`. HAPI_EINVAL: there is no such node. */
int hapi_loader_transport(struct hapi_loader *l, uint32_t i, struct hapi_loader_transport *out);
struct hapi_loader_stats hapi_loader_stats_get(struct hapi_loader *l);

#ifdef __cplusplus
}
#endif

#endif
