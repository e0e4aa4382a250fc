/*
 * What a model holds, and the stages of binding it. Internal to kernels/.
 *
 *    hapi_binding_new ─> _infer (shapes, constants) ─> hapi_fold_batchnorm ─> hapi_patterns ─> cut ─>
 * compaction
 *
 * Not thread-safe: one thread at a time uses a model (see kernels.h).
 */
#ifndef HAPI_KERNELS_MODEL_H
#define HAPI_KERNELS_MODEL_H

#include "onnx.h"

/* Weights of a Conv with the BatchNormalization after it multiplied in; made once, whatever the batch. */
struct hapi_folded {
    void *weight, *bias;
};

struct hapi_cuts; /* cuts.c */

/* What is computed on first use. Apart from the model, so that a const model can fill it. */
struct hapi_model_cache {
    struct hapi_model *m;
    bool hashed, described, flagged;
    uint8_t hash[32];
    struct hapi_tensor_desc *inputs, *outputs;
    /* Per ONNX value: dim 0 is the batch, and nothing else depends on it. flags_rc: why they are not known.
     */
    bool *batch_first;
    enum hapi_model_batch batch;
    int64_t fixed; /* what the file fixes dim 0 to, or 0 */
    int64_t group; /* the only batch that it binds at; 0: any */
    int flags_rc;
    struct hapi_err flags_err;
    struct hapi_folded *folded; /* per ONNX node */
    struct hapi_cuts *cuts;
};

struct hapi_model {
    struct hapi_view bytes;
    bool mapped; /* else malloc'd */
    struct hapi_model_limits limits;
    struct hapi_externals *externals;
    struct hapi_onnx onnx;
    struct hapi_model_cache *cache;
};

/* Gives the pages of mapped files back: what plans need often is in their weights. Who reads the files again
 * gets them again. Any thread. */
void hapi_model_drop_source(const struct hapi_model *m);

void hapi_cuts_free(struct hapi_cuts *cuts);
/* cut_names.c: display names of the nodes, unique, in `arena`: from the module paths that exporters put into
 * node names, else node or tensor names. False without memory. */
bool hapi_cut_names(const struct hapi_graph *g, const size_t *nodes, size_t n, struct hapi_arena *arena,
                    const char **names);

/* The value ids that a cut id names, sorted by name; *out is malloc'd. HAPI_ENOENT names the nearest one. */
int hapi_model_values(const struct hapi_model *m, const char *id, int **out, size_t *n, struct hapi_err *err);
/* batch.c. Fills cache->batch_first, batch, fixed and group by binding at 1 and at 3, or at what is fixed.
 * The error of the first call is that of all. */
int hapi_model_flags(struct hapi_model *m, struct hapi_err *err);

struct hapi_binding {
    struct hapi_model *m;
    const struct hapi_onnx *o;
    struct hapi_graph *g;
    struct hapi_arena *scratch; /* what the graph does not keep: the arrays below, values that are folded */
    const struct hapi_plan_spec *spec;
    struct hapi_err *err;
    bool shapes_only; /* large constants stay without data */
    bool raw;         /* large constants may be the file's own bytes */
    uint64_t work;    /* elements that constant folding may still touch */
    size_t capacity;  /* of g->values, and of the arrays below */
    int *tensor_of;   /* value -> ONNX tensor that holds its data, or -1 */
    int *alias;       /* value -> the value to read in its place */
    bool *kept;       /* value must not vanish: an output, or an edge asked for */
    bool *scratched;  /* value's data is in `scratch` */
    size_t *node_of;  /* graph node -> ONNX node */
};

/* *b is filled; the caller frees it in every case. */
int hapi_binding_new(struct hapi_binding *b, struct hapi_model *m, const struct hapi_plan_spec *spec,
                     bool shapes_only, struct hapi_err *err);
/* All but b->g, which is the caller's to keep or to free, and whose folded values are gone unless compacted.
 */
void hapi_binding_fini(struct hapi_binding *b);
/* Builds g->nodes, with constants folded and Identity and Dropout gone. */
int hapi_binding_infer(struct hapi_binding *b);
/* A new value; -1 when there is no memory for its name. */
int hapi_binding_value(struct hapi_binding *b, const char *name, const char *suffix);

/* fold.c */
bool hapi_fold_constant(const struct hapi_binding *b, int value); /* whether it has, or can have, data */
const void *hapi_fold_data(struct hapi_binding *b, int value);    /* loads it; NULL without memory */
/* What to do with node n, whose outputs have been inferred: 1 it is folded away, 0 it stays. */
int hapi_fold_node(struct hapi_binding *b, struct hapi_node *n);
int hapi_fold_batchnorm(struct hapi_binding *b);
/* Sets n_uses of every value. */
void hapi_fold_count(struct hapi_binding *b);
/* Drops the nodes whose op has become NONE. */
void hapi_fold_compact(struct hapi_binding *b);

/* patterns.c: LayerNormalization and Gelu in many nodes become one; tensors that are kept stay. */
int hapi_patterns(struct hapi_binding *b);

/* The whole graph at batch 1 (or the only one that it binds at: g->batch), large constants without data; for
 * cuts. `keep` (may be NULL): a cut id whose tensors no fold may remove. */
int hapi_graph_shapes(struct hapi_graph **out, struct hapi_model *m, const char *keep, struct hapi_err *err);

/* 2 x multiply-adds of a Conv, ConvTranspose, Gemm or MatMul; 0 for other ops; saturates. */
uint64_t hapi_node_flops(const struct hapi_graph *g, const struct hapi_node *n);

#endif
