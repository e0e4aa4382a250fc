/*
 * Shape and dtype inference of one node whose inputs are concrete. Internal to kernels/.
 *
 *     graph.c ── hapi_shape_infer() ──> shape.c (arity, dispatch)
 *                                         shape_compute.c  elementwise, Conv and pools, products, reductions
 *                                         shape_move.c     reshaping, slicing, gathering, making
 *
 * The rules check all that hapi_ref_eval() and the back ends rely on: ranks, matching dims, sizes of weights,
 * ranges of axes. What a rule needs as numbers (shapes, axes, pads) must be a constant with data. Any thread.
 */
#ifndef HAPI_KERNELS_SHAPE_H
#define HAPI_KERNELS_SHAPE_H

#include "graph.h"

struct hapi_infer {
    struct hapi_graph *g;
    const struct hapi_node *n;
    struct hapi_err *err;
};

typedef int hapi_shape_fn(const struct hapi_infer *c);

/* Sets dtype and shape of every output value of n. HAPI_EFORMAT, HAPI_EUNSUPPORTED, HAPI_ETOOBIG. */
int hapi_shape_infer(struct hapi_graph *g, const struct hapi_node *n, struct hapi_err *err);

/* What the rules share. Input k, NULL when it is left out. */
const struct hapi_value *hapi_shape_in(const struct hapi_infer *c, int k);
int hapi_shape_set(const struct hapi_infer *c, int k, enum hapi_dtype dtype, const struct hapi_shape *s);
int hapi_shape_fail(const struct hapi_infer *c, int code, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
/* axis + rank when negative; HAPI_EFORMAT out of [-rank, rank). */
int hapi_shape_axis(const struct hapi_infer *c, int64_t axis, int rank, int *out);
/* A list of integers, from input k when it is there (a constant of rank <= 1), else from the attribute.
 * *n: how many, -1 when neither is there. HAPI_EUNSUPPORTED when the input is no constant. */
int hapi_shape_list(const struct hapi_infer *c, int k, const char *attr, int64_t *out, size_t max, int *n);
/* Numpy broadcasting of b into *a. */
int hapi_shape_broadcast(const struct hapi_infer *c, struct hapi_shape *a, const struct hapi_shape *b);
/* Whether s is one-dimensional of n elements. */
bool hapi_shape_vector(const struct hapi_value *v, int64_t n);

bool hapi_shape_float(enum hapi_dtype d);
/* HAPI_EFORMAT when the two differ in dtype. */
int hapi_shape_alike(const struct hapi_infer *c, const struct hapi_value *a, const struct hapi_value *b);

hapi_shape_fn hapi_shape_same, hapi_shape_unary, hapi_shape_gelu, hapi_shape_binary, hapi_shape_compare,
    hapi_shape_logic, hapi_shape_variadic, hapi_shape_where, hapi_shape_clip, hapi_shape_prelu,
    hapi_shape_axis_same, hapi_shape_not, hapi_shape_cast_like, hapi_shape_gemm, hapi_shape_matmul;
hapi_shape_fn hapi_shape_conv, hapi_shape_conv_transpose, hapi_shape_pool, hapi_shape_global_pool,
    hapi_shape_batch_norm, hapi_shape_layer_norm, hapi_shape_channel_norm, hapi_shape_lrn, hapi_shape_reduce,
    hapi_shape_arg;
hapi_shape_fn hapi_shape_cast, hapi_shape_constant, hapi_shape_constant_of_shape, hapi_shape_shape,
    hapi_shape_range, hapi_shape_expand, hapi_shape_reshape, hapi_shape_flatten, hapi_shape_squeeze,
    hapi_shape_unsqueeze, hapi_shape_transpose, hapi_shape_concat, hapi_shape_split, hapi_shape_slice,
    hapi_shape_gather, hapi_shape_scatter_nd, hapi_shape_pad, hapi_shape_dropout;
hapi_shape_fn hapi_shape_size, hapi_shape_tile, hapi_shape_depth_to_space, hapi_shape_space_to_depth,
    hapi_shape_gather_elements, hapi_shape_gather_nd, hapi_shape_scatter_elements, hapi_shape_trilu,
    hapi_shape_cum_sum, hapi_shape_resize;

#endif
