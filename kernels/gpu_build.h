/*
 * What the files of the program's compiler share: gpu_build.c keeps storages, views, weights and launches;
 * one function a step says what it becomes. Internal to gpu_*.c.
 */
#ifndef HAPI_KERNELS_GPU_BUILD_H
#define HAPI_KERNELS_GPU_BUILD_H

#include "arena.h"
#include "gpu.h"

/* What a value is before anything has computed it: its reader may take over the work. */
enum hapi_gpu_lazy {
    HAPI_GPU_READY,
    HAPI_GPU_AFFINE, /* batch norm and activation, for the convolution that reads it */
    HAPI_GPU_SCALED, /* a product by one number, for the attention that reads it */
    HAPI_GPU_INSIDE  /* of an attention: it exists nowhere */
};

/* In which a constant is on the device: as it is, in f32 or the program's dtype; or as a convolution's
 * weights. */
enum hapi_gpu_form { HAPI_GPU_WIDE, HAPI_GPU_NARROW, HAPI_GPU_FILTER, HAPI_GPU_FORMS };

struct hapi_gpu_value {
    bool made;
    struct hapi_gpu_view view; /* once made */
    enum hapi_gpu_lazy lazy;
    const struct hapi_step *step; /* lazy: the one that would make it */
    int reader;                 /* the only step that reads it, -1: none, -2: several, or the plan's output */
    int block;                  /* concatenation whose part it is, -1: none */
    int64_t at;                 /* where in it, along its axis */
    int weight[HAPI_GPU_FORMS]; /* constants: storage of the weight in each form, -1: none */
};

/* Concatenations that each go on from the one before share memory: the widest one's. */
struct hapi_gpu_block {
    const struct hapi_node *last;
    int axis;
    int storage; /* -1 until something is written */
};

struct hapi_gpu_build {
    struct hapi_gpu_program *p;
    const struct hapi_graph *g;
    const struct hapi_gpu_maker *maker;
    const struct hapi_step *steps, *step; /* all; the one being compiled */
    size_t n_steps;
    enum hapi_dtype dtype;
    const struct hapi_gpu_edges *edges;
    struct hapi_gpu_value *values;
    struct hapi_gpu_block *blocks;
    size_t n_blocks, room_storages, room_weights, room_launches;
    int asked; /* operation graphs, of the maker */
    struct hapi_err *err;
};

/* HAPI_EUNSUPPORTED naming the present step's node. */
#define hapi_gpu_refuse(b, ...)                                                                              \
    (hapi_err_fill((b)->err, HAPI_EUNSUPPORTED, 0, __VA_ARGS__),                                             \
     (void)hapi_err_context((b)->err, "node `%s` (%s) on a GPU", (b)->step->node->name,                      \
                            hapi_op_name((b)->step->node->op)),                                              \
     hapi_err_pass(HAPI_EUNSUPPORTED))

int hapi_gpu_no_memory(struct hapi_gpu_build *b);

/* ---- memory. Negative: an error. */
int hapi_gpu_storage(struct hapi_gpu_build *b, enum hapi_gpu_place place, int index, uint64_t bytes);
/* Gives `view`, which says how, new memory for its elements in `dtype`. */
int hapi_gpu_place_new(struct hapi_gpu_build *b, struct hapi_gpu_view *view, enum hapi_dtype dtype);
/* Where the step's result goes: into the concatenation whose part it is, if strided, else into memory of its
 * own as `view` says. The value is made. */
int hapi_gpu_result(struct hapi_gpu_build *b, int value, struct hapi_gpu_view *view, bool strided);
/* The value is `view` from now on. */
void hapi_gpu_made(struct hapi_gpu_build *b, int value, const struct hapi_gpu_view *view);

/* A concatenation's memory, and a value's part of it; the first part asked for places it. */
void hapi_gpu_block_all(const struct hapi_gpu_build *b, int block, struct hapi_gpu_view *out);
int hapi_gpu_block_part(struct hapi_gpu_build *b, int value, struct hapi_gpu_view *out);

/* ---- operands */
/* The value in the program's dtype, wherever it lies; constants as weights. */
int hapi_gpu_need(struct hapi_gpu_build *b, int value, struct hapi_gpu_view *out);
/* The same, constants in f32: for kernels of our own. */
int hapi_gpu_need_wide(struct hapi_gpu_build *b, int value, struct hapi_gpu_view *out);
/* A copy of `view` that is dense in the order of `like` (a view of the same shape, whose storage is not
 * used). */
int hapi_gpu_copy(struct hapi_gpu_build *b, struct hapi_gpu_view *view, const struct hapi_gpu_view *like);
/* A weight: f32 elements at `data` that lie as `from` says (storage unused), on the device as `to`, which is
 * dense. */
int hapi_gpu_weight(struct hapi_gpu_build *b, const void *data, const struct hapi_gpu_view *from,
                    const struct hapi_gpu_view *to, enum hapi_dtype dtype, struct hapi_gpu_view *out);
/* The graph's constant in `form`, once; from and to as above. */
int hapi_gpu_constant(struct hapi_gpu_build *b, int value, enum hapi_gpu_form form,
                      const struct hapi_gpu_view *from, const struct hapi_gpu_view *to,
                      struct hapi_gpu_view *out);
/* A vector of f32 that the program owns (arena memory). */
int hapi_gpu_weight_vector(struct hapi_gpu_build *b, const float *data, int64_t n, struct hapi_gpu_view *out);
/* Whether v starts on the 16 bytes that cuDNN's tensors are declared with. */
bool hapi_gpu_aligned(const struct hapi_gpu_view *v);

/* ---- launches */
struct hapi_cudnn_graph *
hapi_gpu_graph(struct hapi_gpu_build *b); /* empty, named after the step; NULL: no memory */
/* Operands by the graph's tensors, NULL for virtual ones and scalars. *taken false: no engine, nothing
 * launched. */
int hapi_gpu_launch_graph(struct hapi_gpu_build *b, const struct hapi_cudnn_graph *g,
                          const struct hapi_gpu_view *const *views, uint64_t flops, bool *taken);
/* y = act(math(x, a, b)); operands in y's shape; a and b may be NULL. */
int hapi_gpu_pointwise(struct hapi_gpu_build *b, enum hapi_gpu_math math, const struct hapi_act *act,
                       const struct hapi_gpu_view *y, const struct hapi_gpu_view *x,
                       const struct hapi_gpu_view *a, const struct hapi_gpu_view *b2);
/* SOFTMAX or MEAN over dim (or dims [dim, to)) of x; y has no such dims for MEAN. */
int hapi_gpu_over(struct hapi_gpu_build *b, enum hapi_gpu_kernel_kind kind, const struct hapi_gpu_view *y,
                  const struct hapi_gpu_view *x, const bool *inner);

/* A kernel with parameters of its own over these operands: what it writes, then what it reads. */
int hapi_gpu_launch_kernel(struct hapi_gpu_build *b, const struct hapi_gpu_kernel *k,
                           const struct hapi_gpu_view *const *views, int n);

/* ---- the plan's edges (gpu_edges.c) */
int hapi_gpu_inputs(struct hapi_gpu_build *b);
int hapi_gpu_outputs(struct hapi_gpu_build *b);

/* ---- one step each */
int hapi_gpu_conv(struct hapi_gpu_build *b);
int hapi_gpu_pool(struct hapi_gpu_build *b);
int hapi_gpu_batch_norm(struct hapi_gpu_build *b);
/* Makes a lazy value real. */
int hapi_gpu_affine(struct hapi_gpu_build *b, int value);
int hapi_gpu_product(struct hapi_gpu_build *b); /* Gemm, MatMul */
/* Of two activations: one launch with the softmax between two of them, or one product. */
int hapi_gpu_product_batched(struct hapi_gpu_build *b);
int hapi_gpu_softmax(struct hapi_gpu_build *b);
int hapi_gpu_layer_norm(struct hapi_gpu_build *b);
int hapi_gpu_binary(struct hapi_gpu_build *b);
int hapi_gpu_scaled(struct hapi_gpu_build *b, int value);
int hapi_gpu_unary(struct hapi_gpu_build *b);
int hapi_gpu_activation(struct hapi_gpu_build *b);
int hapi_gpu_mean(struct hapi_gpu_build *b);
int hapi_gpu_concat(struct hapi_gpu_build *b);
int hapi_gpu_reshape(struct hapi_gpu_build *b);
int hapi_gpu_transpose(struct hapi_gpu_build *b);
int hapi_gpu_slice(struct hapi_gpu_build *b);
int hapi_gpu_split(struct hapi_gpu_build *b);
int hapi_gpu_expand(struct hapi_gpu_build *b);
int hapi_gpu_gather(struct hapi_gpu_build *b);
/* Finds which values are parts of which concatenation. */
int hapi_gpu_blocks_find(struct hapi_gpu_build *b);

#endif
