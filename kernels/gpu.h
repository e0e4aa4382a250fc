/*
 * What a GPU runs for a graph, as data: a list of launches over planned memory. Internal to kernels/.
 *
 *     hapi_graph ── fuse.c ──> steps ── gpu_*.c ──> struct hapi_gpu_program ──> cudnn.c: device memory,
 * streams │ may this operation graph be one plan? └──> struct hapi_gpu_maker: cuDNN for a device, real or
 * described
 *
 * A launch is an operation graph that cuDNN runs, or one of our own CUDA kernels (gpu_kernels.h) where cuDNN
 * has no engine. Nothing here touches a GPU: the program is the same whether there is one or not, and can be
 * read, checked and evaluated by plain loops.
 *
 * A value is a *view*: each of its dims is a list of factors with strides, so that Transpose, Reshape, Slice,
 * Split, Squeeze, Expand and Gather of one index move nothing. Activations are f16 or bf16, 4-D ones that
 * convolutions make channels-last; a product's rows stay in the order in which they lie.
 */
#ifndef HAPI_KERNELS_GPU_H
#define HAPI_KERNELS_GPU_H

#include "fuse.h"
#include "gpu_kernels.h"
#include "opgraph.h"

/* Operation graphs: each takes half a second to compile, and is kept; the ten networks have 282 launches at
 * most. */
enum { HAPI_GPU_FACTORS = 16, HAPI_GPU_GRAPHS_MAX = 4096 };

struct hapi_gpu_factor {
    int64_t size, stride; /* size > 1; stride in elements, 0 where all are the same one */
};

struct hapi_gpu_view {
    int storage;
    enum hapi_dtype dtype;
    int64_t offset;               /* elements */
    int rank, n;                  /* dims; factors */
    int first[HAPI_MAX_RANK + 1]; /* dim d: factors first[d] .. first[d + 1] - 1, outermost first; none: 1 */
    struct hapi_gpu_factor f[HAPI_GPU_FACTORS];
};

/* ---- views (gpu_view.c). bool: false where the result would be no view, *out undefined. out may be the
 * operand. */
int64_t hapi_gpu_dim(const struct hapi_gpu_view *v, int d);
void hapi_gpu_view_dense(struct hapi_gpu_view *out, const struct hapi_shape *s, enum hapi_layout layout);
/* Dense, in the order in which v's factors lie: broadcast ones last. */
void hapi_gpu_view_like(struct hapi_gpu_view *out, const struct hapi_gpu_view *v);
bool hapi_gpu_view_is_dense(const struct hapi_gpu_view *v, enum hapi_layout layout);
bool hapi_gpu_view_transpose(struct hapi_gpu_view *out, const struct hapi_gpu_view *v, const int64_t *perm);
bool hapi_gpu_view_reshape(struct hapi_gpu_view *out, const struct hapi_gpu_view *v,
                           const struct hapi_shape *s);
bool hapi_gpu_view_slice(struct hapi_gpu_view *out, const struct hapi_gpu_view *v, int dim, int64_t start,
                         int64_t step, int64_t n);
/* Numpy broadcasting of v to s. */
bool hapi_gpu_view_expand(struct hapi_gpu_view *out, const struct hapi_gpu_view *v,
                          const struct hapi_shape *s);
/* Dims [from, to) as one: its factors, merged where they lie evenly. */
int hapi_gpu_view_span(const struct hapi_gpu_view *v, int from, int to, struct hapi_gpu_factor *out);
/* Cuts n lists of factors over the same elements at the same places. Returns how many each has then; -1: not
 * possible. */
int hapi_gpu_factors_zip(struct hapi_gpu_factor (*lists)[HAPI_GPU_FACTORS], int *counts, int n);
/* The loop over all of views[0], which the others match in shape; false: more than the kernels take. */
bool hapi_gpu_view_loop(const struct hapi_gpu_view *const *views, int n, struct hapi_gpu_loop *out);

/* ---- programs */

enum hapi_gpu_place {
    HAPI_GPU_ARENA,  /* at storage.offset of the instance's memory */
    HAPI_GPU_IN,     /* the plan's input storage.index */
    HAPI_GPU_OUT,    /* the plan's output */
    HAPI_GPU_WEIGHT, /* at storage.offset of the weights */
};

struct hapi_gpu_storage {
    enum hapi_gpu_place place;
    int index;
    uint64_t bytes, offset;
    int first, last; /* launches that touch it; -1: none */
};

/* A weight as the device wants it: f32 elements in host memory as `from`, written as `to`, which is dense, in
 * `dtype`. */
struct hapi_gpu_weight {
    const void *data; /* the graph's constant, or the program's own; perhaps unaligned */
    struct hapi_gpu_view from, to;
    enum hapi_dtype dtype;
    int64_t elements;
    int storage;
    bool raw; /* data is the file's own bytes, as in struct hapi_value */
};

enum { HAPI_GPU_OPERANDS = 8 };

struct hapi_gpu_operand {
    int storage;
    uint64_t offset; /* bytes into it */
    int64_t uid;     /* of the operation graph's tensor */
};

struct hapi_gpu_launch {
    const struct hapi_node *node;         /* the first that it computes; NULL: at the edges */
    const struct hapi_cudnn_graph *graph; /* NULL: kernel */
    int plan;                             /* what the maker said */
    struct hapi_gpu_kernel kernel;
    /* Graph: the real tensors. Kernel: what it writes, then what it reads. */
    struct hapi_gpu_operand operands[HAPI_GPU_OPERANDS];
    int n_operands;
    uint64_t flops; /* 2 x multiply-adds */
};

/* Whoever turns operation graphs into execution plans. */
struct hapi_gpu_maker {
    /* *plan: the number of g's plan, the same for equal graphs, and its workspace in bytes.
     * HAPI_EUNSUPPORTED: it has no engine; the program then asks for smaller graphs. Other errors end the
     * compilation. */
    int (*plan)(void *arg, const struct hapi_cudnn_graph *g, int *plan, uint64_t *workspace,
                struct hapi_err *err);
    void *arg;
};

struct hapi_gpu_program {
    struct hapi_arena *mem; /* everything here */
    const struct hapi_graph *g;
    enum hapi_dtype dtype; /* of activations: HAPI_F16, HAPI_BF16, or HAPI_F32 */
    struct hapi_gpu_storage *storages;
    struct hapi_gpu_weight *weights;
    struct hapi_gpu_launch *launches;
    size_t n_storages, n_weights, n_launches;
    uint64_t weight_bytes, arena_bytes, scratch_bytes; /* of the device; scratch: the largest workspace */
};

/* Bytes on which the device's memory is aligned. */
enum { HAPI_GPU_ALIGN = 256 };

/* How the plan's edges are on the host. */
struct hapi_gpu_edges {
    bool plain;                         /* in the model's own order; else images are channels-last */
    const struct hapi_gpu_image *image; /* the input is bytes (N,H,W,3); NULL: f32. `pixels` is not used */
    enum hapi_dtype wire; /* of outputs: f32 (also 0), f16, bf16, or i8 in rows as base/int8.h says */
};

/* Compiles g, which outlives the program. Errors: HAPI_EUNSUPPORTED naming the node and why (an op that
 * neither cuDNN nor a kernel of ours does; integers that are computed), HAPI_ETOOBIG, HAPI_ENOMEM; the
 * maker's. */
int hapi_gpu_program_new(struct hapi_gpu_program **out, const struct hapi_graph *g, enum hapi_dtype dtype,
                         const struct hapi_gpu_edges *edges, const struct hapi_gpu_maker *maker,
                         struct hapi_err *err);
void hapi_gpu_program_free(struct hapi_gpu_program *p);
/* Writes a weight (elements of its dtype, dense) to dst. */
void hapi_gpu_weight_write(const struct hapi_gpu_weight *w, void *dst);

#endif
