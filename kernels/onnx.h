/*
 * What an ONNX file says, before anything is bound: nodes, names and tensors, checked but without shapes.
 * Internal to kernels/.
 *
 *     bytes ── hapi_onnx_read() ──> struct hapi_onnx ── graph.c ──> struct hapi_graph
 *
 * Strings and arrays live in `arena`; views and raw tensor data point into the bytes, which must outlive it.
 * After reading, nodes are in topological order, every name is defined exactly once, and every op is one
 * that ops.def.h lists. Not thread-safe (tensors are decoded on first use).
 */
#ifndef HAPI_KERNELS_ONNX_H
#define HAPI_KERNELS_ONNX_H

#include "graph.h"
#include "pb.h"
#include "ranges.h"

#define HAPI_ONNX_NAME_MAX 4096 /* bytes of one name */
#define HAPI_ONNX_OPSET_MAX 21

/* A TensorProto. Its element count has been checked against the bytes that are there. */
struct hapi_onnx_tensor {
    const char *name; /* "" for one in an attribute */
    enum hapi_dtype dtype;
    struct hapi_shape shape;
    size_t bytes;           /* dense size */
    struct hapi_view proto; /* the whole message */
    const uint8_t *raw; /* dense little-endian bytes, perhaps unaligned; NULL: in typed fields, or empty */
    bool external;      /* raw comes from another file */
    void *copy;         /* malloc'd by hapi_onnx_tensor_data(); freed by hapi_onnx_fini() */
};

struct hapi_onnx_value {
    const char *name;
    int producer; /* node, or -1 */
    int tensor;   /* initializer, or -1 */
    int input;    /* graph input, or -1 */
    bool output;  /* graph output */
    int next;     /* hash chain */
};

struct hapi_onnx_node {
    enum hapi_op_kind op;
    const char *name;
    int n_in, n_out;
    const int *in, *out; /* values or HAPI_NO_VALUE */
    size_t n_attrs;
    const struct hapi_attr *attrs; /* of a TENSOR, `value` is an index into tensors[] */
    struct hapi_view proto;
};

/* Graph input or output. dim[i] -1: not known, or a symbol (param[i], may be ""). */
struct hapi_onnx_io {
    int value;
    enum hapi_dtype dtype; /* NONE: not said */
    int rank;              /* -1: not said */
    int64_t dim[HAPI_MAX_RANK];
    const char *param[HAPI_MAX_RANK];
    struct hapi_view proto;
};

struct hapi_externals; /* external.c */

struct hapi_onnx {
    struct hapi_arena *arena;
    struct hapi_externals *externals; /* where external data is looked for; NULL: refused */
    int64_t ir, opset;
    struct hapi_onnx_node *nodes;
    size_t n_nodes;
    struct hapi_onnx_value *values;
    size_t n_values;
    struct hapi_onnx_tensor *tensors; /* initializers, then those in attributes */
    size_t n_tensors, n_initializers;
    struct hapi_onnx_io *inputs, *outputs; /* initializers excluded */
    size_t n_inputs, n_outputs;
    struct hapi_ranges ranges; /* of activations, as the file has them */
    /* private to onnx.c */
    int *buckets;
    size_t n_buckets;
    uint64_t seed[2];
};

/* Reads a ModelProto into *o, which is zeroed but for `arena` and `externals`. Errors as hapi_model_open().
 * hapi_onnx_fini() is due after errors too. */
int hapi_onnx_read(struct hapi_onnx *o, struct hapi_view model, const struct hapi_model_limits *limits,
                   struct hapi_err *err);
void hapi_onnx_fini(struct hapi_onnx *o);
/* Index of a value by name, or -1. */
int hapi_onnx_find(const struct hapi_onnx *o, const char *name, size_t n);
/* Kahn's algorithm; leaves an order that is already right as it is. HAPI_EFORMAT for a cycle. (order.c) */
int hapi_onnx_sort(struct hapi_onnx *o, struct hapi_err *err);

/* A terminated copy of a name. HAPI_ETOOBIG, HAPI_EFORMAT (control characters). */
int hapi_onnx_name(struct hapi_onnx *o, struct hapi_view v, const char **out, struct hapi_err *err);

/* onnx_attr.c: the attributes of a NodeProto, their types checked against what the op wants. */
int hapi_onnx_attrs(struct hapi_onnx *o, struct hapi_onnx_node *n, size_t count, struct hapi_err *err);
/* Tensors that the node's attributes hold; -1 when malformed. */
int64_t hapi_onnx_attr_tensors(struct hapi_view node);

/* tensorproto.c. Fills *t; `externals` may be NULL. HAPI_EFORMAT, HAPI_EUNSUPPORTED, HAPI_ETOOBIG. */
int hapi_onnx_tensor_parse(struct hapi_onnx_tensor *t, struct hapi_view proto,
                           struct hapi_externals *externals, struct hapi_view *name, struct hapi_err *err);
/* Decodes into dst[t->bytes]. */
void hapi_onnx_tensor_decode(const struct hapi_onnx_tensor *t, void *dst);
/* Dense, aligned bytes of the tensor, valid as long as the model; NULL when out of memory. */
const void *hapi_onnx_tensor_data(struct hapi_onnx_tensor *t);
enum hapi_dtype hapi_onnx_dtype(uint64_t elem_type); /* NONE: not one of ours */
unsigned hapi_onnx_elem_type(enum hapi_dtype dtype);

/* external.c: files beneath one folder, mapped once each, unmapped by _close(). */
int hapi_externals_open(struct hapi_externals **out, const char *model_path, uint64_t file_bytes,
                        struct hapi_err *err);
void hapi_externals_close(struct hapi_externals *e);
/* [offset, offset+length) of the file `location` (relative; neither absolute nor with `..`). length
 * UINT64_MAX: to the end of the file. */
int hapi_externals_get(struct hapi_externals *e, struct hapi_view location, uint64_t offset, uint64_t length,
                       struct hapi_view *out, struct hapi_err *err);
/* The files in the order of their first use. */
size_t hapi_externals_files(const struct hapi_externals *e);
struct hapi_view hapi_externals_file(const struct hapi_externals *e, size_t i);

#endif
