/*
 * The bound graph: what the ONNX reader hands to cuts, fusion and the back ends. Internal to kernels/.
 *
 *     onnx.c (bytes -> struct hapi_onnx)  ->  graph.c (bind a batch, infer every shape, fold constants)
 *       ->  fold.c (BatchNorm into Conv, Identity/Dropout away)  ->  patterns.c (one op for many)  ->  cuts.c
 * | fuse.c -> plan.c -> ref.c, onednn.c
 *
 * After binding every shape is concrete and every value that does not depend on the graph's inputs is a
 * constant with data. Nodes are in topological order. Everything lives in the graph's arena, except
 * constants' bytes that are borrowed from the model's file (aligned, copied, or `raw`).
 * Not thread-safe; immutable once bound, and then readable from any thread.
 */
#ifndef HAPI_KERNELS_GRAPH_H
#define HAPI_KERNELS_GRAPH_H

#include "arena.h"
#include "kernels.h"

/* Ops that execute. X(ENUM, "OnnxName", min opset, max opset (99: any)). One row per op: the reader accepts
 * exactly these (default domain), docs/operators.md is generated from it. */
#include "ops.def.h"

enum hapi_op_kind {
    HAPI_OP_NONE = 0,
#define X(kind, name, since, until) HAPI_OP_##kind,
    HAPI_ONNX_OPS(X)
#undef X
        HAPI_OP_COUNT
};

enum hapi_attr_type {
    HAPI_ATTR_INT = 1,
    HAPI_ATTR_FLOAT,
    HAPI_ATTR_STRING,
    HAPI_ATTR_INTS,
    HAPI_ATTR_FLOATS,
    HAPI_ATTR_TENSOR
};

struct hapi_attr {
    const char *name;
    enum hapi_attr_type type;
    int64_t i;
    float f;
    const char *s; /* terminated copy */
    const int64_t *ints;
    const float *floats;
    size_t n;  /* of ints, floats; length of s */
    int value; /* TENSOR: index of a constant value in the graph */
};

struct hapi_value {
    const char *name; /* ONNX tensor name, unique in the graph */
    enum hapi_dtype dtype;
    struct hapi_shape shape; /* concrete */
    const void *data; /* constants: dense, plain order, aligned for the dtype unless `raw`; else NULL */
    bool raw;         /* data is the file's own bytes: perhaps unaligned; they outlive the graph */
    int producer;     /* node index; -1: graph input or constant */
    int n_uses;       /* by nodes and graph outputs */
    bool batch_first; /* depends on the input, and dim 0, and only it, scales with the batch */
};

#define HAPI_NO_VALUE (-1) /* an optional input left out */

struct hapi_node {
    enum hapi_op_kind op;
    const char *name; /* ONNX node name, or "" */
    int n_in, n_out;
    const int *in; /* value indices or HAPI_NO_VALUE */
    const int *out;
    size_t n_attrs;
    const struct hapi_attr *attrs;
};

struct hapi_ranges; /* ranges.h */

struct hapi_graph {
    struct hapi_arena *arena;
    int64_t batch;
    int64_t opset;
    struct hapi_value *values;
    size_t n_values;
    struct hapi_node *nodes;
    size_t n_nodes;
    int *inputs, *outputs; /* value indices, graph order, initializers excluded */
    size_t n_inputs, n_outputs;
    const struct hapi_ranges *ranges; /* the model's, by the names of values */
    const struct hapi_model *mapped;  /* raw bytes lie in its mapped files, whose pages may be given back at
                                         any time: hapi_model_drop_source(). NULL: they do not */
};

/* Binds the model at a batch (0: dims as they are; symbolic ones become 1), from/to cuts as in the spec (only
 * nodes between them are kept; `from` tensors become the graph's inputs). Inputs that the spec binds to
 * values become constants and are no inputs of the graph. BatchNorm folded into a preceding Conv, Identity,
 * Dropout and empty Pads removed, constants folded, decomposed LayerNormalization and Gelu made one op; a
 * tensor that the spec names survives every fold. */
int hapi_graph_bind(struct hapi_graph **out, struct hapi_model *m, const struct hapi_plan_spec *spec,
                    struct hapi_err *err);
/* The same; with raw, for a back end that copies constants itself: those of f32 that need no folding, all but
 * the smallest, are `raw`, so that they are in memory twice for no longer than it takes. */
int hapi_graph_bind_raw(struct hapi_graph **out, struct hapi_model *m, const struct hapi_plan_spec *spec,
                        bool raw, struct hapi_err *err);
void hapi_graph_free(struct hapi_graph *g);

const struct hapi_attr *hapi_node_attr(const struct hapi_node *n, const char *name); /* or NULL */
int64_t hapi_node_int(const struct hapi_node *n, const char *name, int64_t otherwise);
float hapi_node_float(const struct hapi_node *n, const char *name, float otherwise);
/* Copies up to max ints of the attribute; returns how many it has (0: absent). */
size_t hapi_node_ints(const struct hapi_node *n, const char *name, int64_t *out, size_t max);
const char *hapi_op_name(enum hapi_op_kind op);

/* Geometry of Conv, ConvTranspose and the pools, with auto_pad, ceil_mode and defaults resolved. [0] is the
 * height, [1] the width, [2] the depth (which comes first in (N,C,D,H,W)); 1-D is handled as 2-D with height
 * 1, 2-D as 3-D with depth 1. Used by shape inference, ref and onednn alike, so that they cannot disagree.
 * Pads of ConvTranspose may be negative: more output at that side. */
enum { HAPI_SPATIAL = 3 };
struct hapi_window {
    int64_t kernel[HAPI_SPATIAL], stride[HAPI_SPATIAL], dilation[HAPI_SPATIAL], pad_begin[HAPI_SPATIAL],
        pad_end[HAPI_SPATIAL];
    int64_t in[HAPI_SPATIAL], out[HAPI_SPATIAL];
    int64_t group;
    bool ceil_mode, count_include_pad;
};
int hapi_window_of(const struct hapi_graph *g, const struct hapi_node *n, struct hapi_window *out,
                   struct hapi_err *err);
/* Output size of spatial dim i, in the order of the tensor's dims, of `spatial`. */
int64_t hapi_window_out(const struct hapi_window *w, int i, int spatial);

/* Evaluates one node on plain dense buffers: the truth (ref.c). Used by constant folding and by back end
 * `ref`. in[i] may be NULL for an input left out. */
int hapi_ref_eval(const struct hapi_graph *g, const struct hapi_node *n, const void *const *in,
                  void *const *out, struct hapi_err *err);

#endif
