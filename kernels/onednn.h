/*
 * What the files of the oneDNN back end share. Internal to onednn*.c.
 *
 * A *storage* is a piece of memory (arena, an edge of the plan, a weight); a *rep* is a value in it with a
 * dtype and a layout. A value has one rep from the step that makes it, and more where readers want another
 * dtype or layout. An *op* is one thing to run. All are built at plan time; a run only sets data handles.
 *
 * Activations of rank 4 and 5 (and 3, as height 1) are channels-last where convolutions and pools make or
 * read them, everything else is in the model's order. What oneDNN has no fast kernel for runs through
 * hapi_ref_eval's plain loops, on f32 or the value's own dtype in the model's order: Cast, comparisons, Not,
 * Where, Floor, Erf and Reciprocal on their own, Pow, Mod, PRelu, Neg, Gather by a list, Pad, Range,
 * ScatterND, Shape, ConstantOfShape, all integer and f64 arithmetic, and pools with indices
 * (docs/operators.md has the whole list). Slice, Split, Transpose, Expand, Reshape and Gather of one index
 * are views: they move nothing until a kernel needs them dense.
 */
#ifndef HAPI_KERNELS_ONEDNN_H
#define HAPI_KERNELS_ONEDNN_H

#include <dnnl.h>

#include "fuse.h"
#include "kernels_ops.h"
#include "memory.h"
#include "vector.h"

enum hapi_dnn_place {
    HAPI_DNN_ARENA,
    HAPI_DNN_IN,    /* caller's input `index` */
    HAPI_DNN_OUT,   /* caller's output `index` */
    HAPI_DNN_FIXED, /* data: a constant of the graph or a weight of the store */
    HAPI_DNN_SCRATCH
};

struct hapi_dnn_storage {
    enum hapi_dnn_place place;
    size_t bytes, index, offset;
    const void *data;
    int first, last; /* ops that touch it; -1: none yet */
    int until;       /* last step that reads a value which has been in it */
};

struct hapi_dnn_rep {
    int value;
    enum hapi_dtype dtype;
    enum hapi_layout layout;
    int storage;
    int64_t row; /* channels-last: elements from pixel to pixel where it is part of wider rows; 0: dense */
    /* Not NULL: a view. Element strides by logical dim, from element `offset` of the storage on: Transpose,
     * Slice, Split, Expand, Reshape and the like move nothing until somebody needs the value dense, and then
     * all at once. */
    const int64_t *stride;
    int64_t offset;
    int next; /* another rep of the value, or -1 */
};

/* A primitive's argument. */
struct hapi_dnn_arg {
    int arg; /* DNNL_ARG_* */
    const dnnl_memory_desc_t *md;
    int storage;
};

struct hapi_dnn_bind {
    dnnl_memory_t memory;
    int storage;
    void *handle; /* what memory is set to */
};

enum hapi_dnn_op_kind {
    HAPI_DNN_PRIMITIVE,
    HAPI_DNN_EVAL,
    HAPI_DNN_COPY,
    HAPI_DNN_AFFINE,
    HAPI_DNN_SOFTMAX,
    HAPI_DNN_LAYER_NORM,
    HAPI_DNN_CONV
};

struct hapi_dnn_op {
    enum hapi_dnn_op_kind kind;
    const char *name; /* of the node, for errors */
    const char *kernel;
    enum hapi_op_kind op;
    uint64_t flops;
    /* PRIMITIVE */
    dnnl_primitive_t primitive;
    dnnl_exec_arg_t *args;
    struct hapi_dnn_bind *binds;
    int n_args;
    /* EVAL: storages of the node's operands, -1 for none */
    const struct hapi_node *node;
    int *in, *out;
    const void **in_ptr;
    void **out_ptr;
    /* COPY: dst (dense) from strided src */
    struct hapi_shape shape;
    int64_t stride[HAPI_MAX_RANK];
    size_t size, src_offset; /* bytes of an element; bytes into src */
    int src, dst;
    /* AFFINE, SOFTMAX, LAYER_NORM, CONV: src and dst too; storages of what else is read, -1 for none */
    size_t dst_offset; /* bytes into dst */
    int scale, shift;  /* SOFTMAX: the masks; CONV: weights and bias */
    int plus;          /* CONV: what is added */
    union {
        struct hapi_affine affine;
        struct hapi_softmax softmax;
        struct hapi_layer_norm layer_norm;
        struct hapi_conv conv;
    } vector;
};

/* Concatenations that each go on from the one before (DenseNet's blocks): all are views of one buffer, wide
 * enough for the last. */
struct hapi_dnn_block {
    struct hapi_dnn_block *next;
    const struct hapi_node *concat; /* the one that it holds now */
    int storage;
    int64_t row, used; /* channels of a pixel: of the buffer, and filled */
};

/* How a value is in int8 (onednn_int8.c). */
struct hapi_dnn_quant {
    enum hapi_dtype dtype; /* HAPI_U8, HAPI_I8, NONE: never */
    float scale;           /* of one step */
    bool wanted;           /* all its readers take it so */
};

/* A window in oneDNN's terms: arrays of the length it declares, dilation counted from 0. */
struct hapi_dnn_geometry {
    int spatial;
    dnnl_dims_t kernel, stride, dilation, pad_begin, pad_end;
};

struct hapi_dnn_weights;

struct hapi_dnn {
    struct hapi_backend base;
    const struct hapi_graph *g;
    struct hapi_plan_spec spec;
    struct hapi_arena *mem;           /* everything that lives as long as the instance */
    struct hapi_dnn_weights *weights; /* NULL: measure only */
    size_t mapped;                    /* bytes of the model's file that may be in memory, at most */
    dnnl_engine_t engine;
    dnnl_stream_t stream;
    const struct hapi_step *steps;
    size_t n_steps;
    const struct hapi_step *step; /* being compiled */
    int *last_use;                /* per value: the last step that reads it; INT_MAX for graph outputs */
    int *rep_of;                  /* per value: its first rep, or -1 */
    int *out_of;                  /* per value: first output edge it is, or -1 */
    bool *out_done;               /* per output edge: some step writes it in place */
    struct hapi_dnn_storage *storages;
    struct hapi_dnn_rep *reps;
    struct hapi_dnn_op *ops;
    size_t n_storages, max_storages, n_reps, max_reps, n_ops, max_ops;
    size_t weight_bytes, arena_bytes, scratch_bytes;
    const struct hapi_vector *vector; /* kernels of ours; NULL: none may be used */
    /* oneDNN's kernels are those for AVX2. Its products there are slow, and sum in an order that depends on
     * how many rows there are: a 1x1 convolution is neither. What a convolution adds by itself (bias, sum) is
     * what its sums begin with, which rounds differently from an addition behind it: where a cut may be in
     * between, additions are behind it. */
    bool avx2;
    struct hapi_dnn_quant
        *quant;   /* per value, where the plan is of HAPI_I8 (spec.dtype is then F32); else NULL */
    size_t *ends; /* per step: ops up to its end */
    void (*seen)(void *arg, const struct hapi_seen *s);
    void *seen_arg;
    struct hapi_dnn_block *blocks;
};

/* Local results beside HAPI_E*: no fast implementation; the caller tries another formulation. */
enum { HAPI_DNN_NONE = 1 };

/* ---- onednn_build.c */
int hapi_dnn_fail(struct hapi_dnn *b, dnnl_status_t status, const char *what, struct hapi_err *err);
dnnl_data_type_t hapi_dnn_type(enum hapi_dtype d); /* undef for what oneDNN does not take */
/* dtype in which float values of the graph are computed; others keep theirs. */
enum hapi_dtype hapi_dnn_dtype(const struct hapi_dnn *b, int value);
size_t hapi_dnn_bytes(const struct hapi_dnn *b, int value, enum hapi_dtype dtype);
/* Descriptor of a dense value. ndims >= rank: ones are put in front. as4: rank 3 becomes (N,C,1,W). */
dnnl_status_t hapi_dnn_md(const struct hapi_shape *s, enum hapi_dtype dtype, enum hapi_layout layout,
                          int ndims, dnnl_memory_desc_t *md);
dnnl_status_t hapi_dnn_md4(const struct hapi_shape *s, enum hapi_dtype dtype, enum hapi_layout layout,
                           dnnl_memory_desc_t *md);
int hapi_dnn_storage(struct hapi_dnn *b, enum hapi_dnn_place place, size_t bytes, struct hapi_err *err);
/* The layout of the value's first rep; constants and rank < 3: plain. */
enum hapi_layout hapi_dnn_layout(const struct hapi_dnn *b, int value);
/* A rep of the value in dtype and layout, converted by a new op where it has none. Returns its index. */
int hapi_dnn_need(struct hapi_dnn *b, int value, enum hapi_dtype dtype, enum hapi_layout layout,
                  struct hapi_err *err);
/* New rep for a value that the present step makes: in memory of its own (or the caller's), or in `storage`.
 */
int hapi_dnn_make(struct hapi_dnn *b, int value, enum hapi_dtype dtype, enum hapi_layout layout,
                  struct hapi_err *err);
int hapi_dnn_make_in(struct hapi_dnn *b, int value, enum hapi_dtype dtype, enum hapi_layout layout,
                     int storage, struct hapi_err *err);
/* A rep to look at the value through, dense or not, in its dtype of computing, with its strides. Returns its
 * index. */
int hapi_dnn_look(struct hapi_dnn *b, int value, int64_t *stride, int64_t *offset, struct hapi_err *err);
/* A product's second operand whose last two dims a view has swapped, and that nothing holds dense: it may be
 * made dense as it is. Whether the value is one, with the strides that it would have; and a rep with them
 * (only for such a value). */
bool hapi_dnn_swapped(const struct hapi_dnn *b, int value, int64_t *stride);
int hapi_dnn_need_swapped(struct hapi_dnn *b, int value, struct hapi_err *err);
/* Element strides by logical dim as a descriptor. */
dnnl_status_t hapi_dnn_strided_md(const struct hapi_shape *s, enum hapi_dtype dtype, const int64_t *stride,
                                  dnnl_memory_desc_t *md);
/* Whether the present step may write over the rep: temporary memory, and nothing in it is read later. */
bool hapi_dnn_dies(const struct hapi_dnn *b, int rep);
/* A rep for the step's output in x's dtype and layout: over x where that dies and is as large, else in memory
 * of its own. */
int hapi_dnn_make_over(struct hapi_dnn *b, int x, struct hapi_err *err);
/* How a residual joins the result of a kernel that reads storage x. */
enum hapi_dnn_join {
    HAPI_DNN_APART, /* by an addition behind it */
    HAPI_DNN_SUM,   /* the kernel adds to what is in its output's memory */
    HAPI_DNN_PLUS   /* the kernel reads it as one more tensor */
};
enum hapi_dnn_join hapi_dnn_join(const struct hapi_dnn *b, int residual, int x);
/* Descriptor from an operation descriptor; HAPI_DNN_NONE when there is none or only a `ref` one. */
int hapi_dnn_pd(struct hapi_dnn *b, const void *op_desc, const_dnnl_primitive_attr_t attr,
                dnnl_primitive_desc_t *pd);
/* HAPI_DNN_NONE and *pd destroyed when its implementation is oneDNN's reference. */
int hapi_dnn_pd_fast(dnnl_primitive_desc_t *pd);
/* Appends an op that executes pd (destroyed in any case). Scratchpad is added. */
int hapi_dnn_execute(struct hapi_dnn *b, dnnl_primitive_desc_t pd, const struct hapi_dnn_arg *args, int n,
                     struct hapi_err *err);
/* An attribute with user scratchpad and the post-ops: sum (where asked for), then the activation. */
dnnl_status_t hapi_dnn_attr(bool sum, const struct hapi_act *act, dnnl_primitive_attr_t *attr);
/* The same behind additions of tensors, which are arguments HAPI_DNN_ARG_PLUS(0) and (1); NULL: none. */
dnnl_status_t hapi_dnn_attr_plus(const dnnl_memory_desc_t *first, const dnnl_memory_desc_t *then, bool sum,
                                 const struct hapi_act *act, dnnl_primitive_attr_t *attr);
#define HAPI_DNN_ARG_PLUS(i) (DNNL_ARG_ATTR_MULTIPLE_POST_OP(i) | DNNL_ARG_SRC_1)
/* Appends the activation; its result is multiplied by scale. */
dnnl_status_t hapi_dnn_append_act(dnnl_post_ops_t ops, const struct hapi_act *a, float scale);
/* The step's nodes, unfused, by plain loops. */
int hapi_dnn_eval(struct hapi_dnn *b, const struct hapi_node *n, struct hapi_err *err);
/* dst (all of rep `dst`) = src storage from `offset` elements on, stride in elements by dst's logical dims.
 */
int hapi_dnn_view(struct hapi_dnn *b, int src_rep, int64_t offset, const int64_t *stride, int dst_rep,
                  struct hapi_err *err);
/* Element strides by logical dim, of a dense tensor (channels-last from rank 3 on) and of a rep. */
void hapi_dnn_dense(const struct hapi_shape *s, enum hapi_layout layout, int64_t *stride);
void hapi_dnn_strides(const struct hapi_dnn *b, int rep, int64_t *stride);

/* A new op of the step; NULL without memory. It counts once its storages have been touched and n_ops is moved
 * on. */
struct hapi_dnn_op *hapi_dnn_op_next(struct hapi_dnn *b, enum hapi_dnn_op_kind kind);
void hapi_dnn_touch(struct hapi_dnn *b, int storage);
/* A rep in `storage`, whatever that is; it stays what it is (hapi_dnn_make_in may make it the caller's). */
int hapi_dnn_rep_add(struct hapi_dnn *b, int value, enum hapi_dtype dtype, enum hapi_layout layout,
                     int storage, struct hapi_err *err);

/* ---- onednn_vector.c: kernels of ours in place of oneDNN's, where b->vector. HAPI_DNN_NONE: not this one.
 */
int hapi_dnn_vector_batch_norm(struct hapi_dnn *b, struct hapi_err *err);
int hapi_dnn_vector_gate(struct hapi_dnn *b, struct hapi_err *err);
int hapi_dnn_vector_softmax(struct hapi_dnn *b, struct hapi_err *err);
int hapi_dnn_vector_layer_norm(struct hapi_dnn *b, struct hapi_err *err);
int hapi_dnn_vector_channel_norm(struct hapi_dnn *b, struct hapi_err *err);
int hapi_dnn_vector_concat(struct hapi_dnn *b, struct hapi_err *err);
/* Appends an op that reads storage src (and scale, shift where >= 0) and writes dst. NULL without memory. */
struct hapi_dnn_op *hapi_dnn_vector_op(struct hapi_dnn *b, enum hapi_dnn_op_kind kind, const char *name,
                                       int src, int dst, int scale, int shift);
/* Whether a convolution or product may take the activation as a post-op. */
bool hapi_dnn_post_act(const struct hapi_dnn *b, const struct hapi_act *act);
/* y = act(x), both dense and of one dtype. */
int hapi_dnn_vector_act(struct hapi_dnn *b, int x_rep, int y_rep, const struct hapi_act *act,
                        struct hapi_err *err);
void hapi_dnn_vector_run(const struct hapi_vector *v, const struct hapi_dnn_op *op, void *dst,
                         const void *src, const void *scale, const void *shift, const void *plus);

/* ---- onednn_int8.c */
/* Fills b->quant from the graph's ranges. */
int hapi_dnn_int8_prepare(struct hapi_dnn *b, struct hapi_err *err);
/* Scale of a conversion of the value between f32 and its int8. */
dnnl_status_t hapi_dnn_int8_convert(const struct hapi_dnn *b, int value, enum hapi_dtype to,
                                    dnnl_primitive_attr_t attr);
/* dtype in which a maximum over windows of x is taken. */
enum hapi_dtype hapi_dnn_int8_pool(const struct hapi_dnn *b, int x, int out);
/* As the steps below. The window has the step's pads in it. */
int hapi_dnn_int8_conv(struct hapi_dnn *b, const struct hapi_window *w, struct hapi_err *err);
int hapi_dnn_int8_product(struct hapi_dnn *b, struct hapi_err *err); /* MatMul and Gemm */

/* ---- onednn_conv.c */
/* A Conv or ConvTranspose as one formulation of it has it. */
struct hapi_dnn_conv {
    struct hapi_window w;
    int x, weights, bias; /* values; bias may be HAPI_NO_VALUE */
    enum hapi_layout layout;
    enum hapi_dtype dtype, out_dtype;
    dnnl_memory_desc_t src, wei, wei_plain, bia, dst;
};
/* spatial: 2, or 3, then with the depth first. */
void hapi_dnn_geometry_of(const struct hapi_window *w, int spatial, struct hapi_dnn_geometry *g);
static inline int hapi_dnn_spatial(const struct hapi_dnn *b, int value)
{
    return b->g->values[value].shape.rank == 5 ? 3 : 2;
}
/* Values and dtypes for the step; window and layout are the caller's. */
struct hapi_dnn_conv hapi_dnn_conv_of(const struct hapi_dnn *b, int x);
/* onednn_direct.c: the step's convolution on our own kernel. HAPI_DNN_NONE: oneDNN's is as good, or it does
 * not take it. */
int hapi_dnn_direct_conv(struct hapi_dnn *b, const struct hapi_dnn_conv *c, struct hapi_err *err);
/* Descriptors of input, output and bias. */
dnnl_status_t hapi_dnn_conv_edges(const struct hapi_dnn *b, struct hapi_dnn_conv *c);
/* Fills args for pd: input, weights, the output's place at [2], bias. Returns their number. */
int hapi_dnn_conv_args(struct hapi_dnn *b, const struct hapi_dnn_conv *c, const_dnnl_primitive_desc_t pd,
                       struct hapi_dnn_arg args[4], struct hapi_err *err);

/* ---- onednn_weights.c */
/* After `raw` bytes of the graph have been read: the file's pages are given back now and then. */
void hapi_dnn_source_read(struct hapi_dnn *b, size_t bytes);
/* expected: about how many bytes there will be. */
struct hapi_dnn_weights *hapi_dnn_weights_new(size_t expected);
void hapi_dnn_weights_free(void *weights);
/* After a plan has been compiled: memory that was meant for more goes back. */
void hapi_dnn_weights_trim(struct hapi_dnn_weights *w);
/* Storage with `data` (described by from) in the descriptor `to`. Counted, and filled unless measuring. raw:
 * as of a value, the data is the file's own. */
int hapi_dnn_weight(struct hapi_dnn *b, const void *data, bool raw, const dnnl_memory_desc_t *from,
                    const dnnl_memory_desc_t *to, struct hapi_err *err);
/* The same for a value that may be no constant: then an op reorders it in each run. */
int hapi_dnn_weight_of(struct hapi_dnn *b, int value, const dnnl_memory_desc_t *from,
                       const dnnl_memory_desc_t *to, struct hapi_err *err);

/* ---- one step each: HAPI_OK, HAPI_DNN_NONE (nothing appended: not for oneDNN), or an error */
int hapi_dnn_conv(struct hapi_dnn *b, struct hapi_err *err);
int hapi_dnn_deconv(struct hapi_dnn *b, struct hapi_err *err);
int hapi_dnn_pool(struct hapi_dnn *b, struct hapi_err *err);
int hapi_dnn_batch_norm(struct hapi_dnn *b, struct hapi_err *err);
int hapi_dnn_matmul(struct hapi_dnn *b, struct hapi_err *err);
int hapi_dnn_gemm(struct hapi_dnn *b, struct hapi_err *err);
int hapi_dnn_softmax(struct hapi_dnn *b, struct hapi_err *err);
int hapi_dnn_layer_norm(struct hapi_dnn *b, struct hapi_err *err);
int hapi_dnn_reduce(struct hapi_dnn *b, struct hapi_err *err);
int hapi_dnn_resize(struct hapi_dnn *b, struct hapi_err *err);
int hapi_dnn_lrn(struct hapi_dnn *b, struct hapi_err *err);
int hapi_dnn_activation(struct hapi_dnn *b, struct hapi_err *err);
int hapi_dnn_binary(struct hapi_dnn *b, struct hapi_err *err);
int hapi_dnn_concat(struct hapi_dnn *b, struct hapi_err *err);
int hapi_dnn_reshape(struct hapi_dnn *b, struct hapi_err *err);
int hapi_dnn_transpose(struct hapi_dnn *b, struct hapi_err *err);
int hapi_dnn_slice(struct hapi_dnn *b, struct hapi_err *err);
int hapi_dnn_split(struct hapi_dnn *b, struct hapi_err *err);
int hapi_dnn_expand(struct hapi_dnn *b, struct hapi_err *err);
int hapi_dnn_gather(struct hapi_dnn *b, struct hapi_err *err);
/* out = a + residual, then the activation; used where `sum` is not possible. */
int hapi_dnn_add(struct hapi_dnn *b, int a_rep, int b_rep, int out_rep, const struct hapi_act *act,
                 struct hapi_err *err);
int hapi_dnn_activate(struct hapi_dnn *b, int x_rep, int out_rep, const struct hapi_act *act,
                      struct hapi_err *err);

#endif
