/*
 * What the files of the reference evaluator share: one call, element access by dtype, broadcasting walks.
 * Internal to ref*.c. No heap, no state: any thread.
 */
#ifndef HAPI_KERNELS_REF_H
#define HAPI_KERNELS_REF_H

#include <stddef.h>
#include <stdint.h>

#include "graph.h"

/* One evaluation. in[i] may be NULL where n->in[i] is HAPI_NO_VALUE; all others are dense, plain order. */
struct hapi_ref_call {
    const struct hapi_graph *g;
    const struct hapi_node *n;
    const void *const *in;
    void *const *out;
    struct hapi_err *err;
};

typedef int hapi_ref_fn(const struct hapi_ref_call *c);

/* Families. Each returns HAPI_OK or an error that names the node. */
hapi_ref_fn hapi_ref_unary, hapi_ref_binary, hapi_ref_variadic, hapi_ref_compare, hapi_ref_not,
    hapi_ref_where, hapi_ref_clip, hapi_ref_prelu, hapi_ref_cast;
hapi_ref_fn hapi_ref_conv, hapi_ref_pool;
hapi_ref_fn hapi_ref_gemm, hapi_ref_matmul;
hapi_ref_fn hapi_ref_softmax, hapi_ref_layer_norm, hapi_ref_batch_norm, hapi_ref_channel_norm, hapi_ref_lrn,
    hapi_ref_reduce, hapi_ref_arg;
hapi_ref_fn hapi_ref_same, hapi_ref_dropout, hapi_ref_transpose, hapi_ref_slice, hapi_ref_expand,
    hapi_ref_concat, hapi_ref_split, hapi_ref_gather, hapi_ref_pad;
hapi_ref_fn hapi_ref_constant, hapi_ref_constant_of_shape, hapi_ref_shape, hapi_ref_range,
    hapi_ref_scatter_nd, hapi_ref_size;
hapi_ref_fn hapi_ref_tile, hapi_ref_depth_to_space, hapi_ref_gather_elements, hapi_ref_gather_nd,
    hapi_ref_scatter_elements, hapi_ref_trilu, hapi_ref_cum_sum, hapi_ref_resize;

int hapi_ref_fail(const struct hapi_ref_call *c, int code, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/* The i-th input's or output's value, NULL when it is left out. */
const struct hapi_value *hapi_ref_in(const struct hapi_ref_call *c, int i);
const struct hapi_value *hapi_ref_out(const struct hapi_ref_call *c, int i);

/* Elements of a bound shape: never overflows, binding checked it. */
int64_t hapi_ref_count(const struct hapi_shape *s);
/* axis of a rank-r tensor with negatives resolved; -1 when it is out of [-r, r). */
int hapi_ref_axis(int64_t axis, int rank);
/* Product of dims [from, to). */
int64_t hapi_ref_span(const struct hapi_shape *s, int from, int to);

bool hapi_ref_is_float(enum hapi_dtype d);
/* Element i as double / int64 (u64 as its bits; floats are cut off towards zero), and back (wrapping). */
double hapi_ref_get_f(const void *p, enum hapi_dtype d, int64_t i);
int64_t hapi_ref_get_i(const void *p, enum hapi_dtype d, int64_t i);
void hapi_ref_put_f(void *p, enum hapi_dtype d, int64_t i, double v);
void hapi_ref_put_i(void *p, enum hapi_dtype d, int64_t i, int64_t v);

enum { HAPI_REF_OPERANDS = 3 };

/* Walks an output shape row by row; off[k] is where operand k's row starts, stride[k][rank - 1] its step
 * within the row, in elements. A scalar is one row of one element. */
struct hapi_ref_walk {
    int rank;
    int64_t dim[HAPI_MAX_RANK], at[HAPI_MAX_RANK];
    int64_t stride[HAPI_REF_OPERANDS][HAPI_MAX_RANK];
    int64_t off[HAPI_REF_OPERANDS];
    int64_t rows, inner;
};

void hapi_ref_walk_init(struct hapi_ref_walk *w, const struct hapi_shape *out);
/* Broadcasts operand k of shape s, its dims aligned to the right of the output's, or to begin at `axis`
 * (opset < 7) when axis >= 0. */
void hapi_ref_walk_operand(struct hapi_ref_walk *w, int k, const struct hapi_shape *s, int axis);
void hapi_ref_walk_next(struct hapi_ref_walk *w);

/* dst (dense, shape s) from src[sum of index * stride], stride in elements of `size` bytes (1, 2, 4, 8). */
void hapi_ref_copy_strided(void *dst, const struct hapi_shape *s, const void *src, const int64_t *stride,
                           size_t size);

/* How a scatter joins an update with what is there, by the node's `reduction`; element `at` of c->out[0]
 * takes element `from` of c->in[2]. (ref_data.c) */
enum hapi_ref_reduction { HAPI_REF_REPLACE, HAPI_REF_ADD, HAPI_REF_MUL, HAPI_REF_MAX, HAPI_REF_MIN };
enum hapi_ref_reduction hapi_ref_reduction_of(const struct hapi_node *n);
void hapi_ref_update(const struct hapi_ref_call *c, enum hapi_dtype d, int64_t at, int64_t from,
                     enum hapi_ref_reduction how);

/* Axis at which opset < 7 broadcasting puts the second operand, or -1 for today's rule. */
int hapi_ref_legacy_axis(const struct hapi_ref_call *c, const struct hapi_shape *a,
                         const struct hapi_shape *b);

#endif
