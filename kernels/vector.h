/*
 * Kernels of ours for what oneDNN 2.6 leaves slow on AVX-512: activations with an exponential, batch
 * normalisation, softmax, layer normalisation, rows that are not dense. Plain functions of pointers and
 * sizes, used by the oneDNN back end at run time where hapi_vector_usable(); elsewhere oneDNN's own do.
 *
 * Elements are f32 or bf16 (rounded to nearest even), arithmetic is f32. Every function takes rows one by
 * one: the result of a row does not depend on the others, nor on how many there are. Sources and destination
 * may be the same memory where their strides and dtypes are equal, else must not overlap. No heap, any
 * thread.
 */
#ifndef HAPI_KERNELS_VECTOR_H
#define HAPI_KERNELS_VECTOR_H

#include "fuse.h"

/* Rows of `cols` adjacent elements; strides in elements from row to row. */
struct hapi_rows {
    int64_t rows, cols;
    int64_t from, to; /* strides of source and destination */
    enum hapi_dtype src, dst;
};

/* AVX-512 F, BW, DQ, VL, and for bf16 AVX-512 BF16. */
bool hapi_vector_usable(enum hapi_dtype dtype);
/* Whether the back end computes the activation by hapi_vector_affine(). It then does so everywhere, behind a
 * convolution as well as alone, so that a cut in between changes no bit; those that both compute without
 * rounding may be either's. */
bool hapi_vector_act(const struct hapi_act *act);

/* y[r][c] = act(x[r][c] * scale[g][c] + shift[c]), g = r / group (group 0: one scale for all rows). scale and
 * shift may be NULL (1 and 0), act may be NULL. scale is f32, or of dtype `scale_dtype` where that is not
 * HAPI_DTYPE_NONE. swish and sigmoid: within 4e-7 of the exact value, relative; gelu: within 3e-7 of max(1,
 * |x|), absolute. To bf16, before that rounds (2^-8): swish and sigmoid within 2e-4, gelu within 1.1e-4
 * absolute and, from -3 on, 1e-3 relative. */
struct hapi_affine {
    struct hapi_rows rows;
    const void *scale;
    const float *shift;
    enum hapi_dtype scale_dtype;
    int64_t group;
    struct hapi_act act;
};
void hapi_vector_affine(const struct hapi_affine *a, void *y, const void *x);

/* y[r] = softmax(x[r] + masks[0][m(r, 0)] + masks[1][m(r, 1)]), added in this order in f32;
 * m(r, k) = r / mask[k].group % mask[k].count * mask[k].block + r % mask[k].block. masks: dense f32 rows of
 * cols, or NULL. To bf16: the exponential is within 8e-5, relative. */
struct hapi_softmax {
    struct hapi_rows rows;
    struct hapi_mask mask[HAPI_MASKS];
};
void hapi_vector_softmax(const struct hapi_softmax *s, void *y, const void *x, const float *const *masks);

/* y[r][c] = (x[r][c] - mean(x[r])) / sqrt(var(x[r]) + epsilon) * scale[k] + shift[k]; scale and shift may be
 * NULL. k = c; or, with plane > 0, a number for each `plane` columns: k = r % period * (cols / plane) + c /
 * plane, as the channels of a group have it. */
struct hapi_layer_norm {
    struct hapi_rows rows;
    int64_t plane, period;
    float epsilon;
    const float *scale, *shift;
};
void hapi_vector_layer_norm(const struct hapi_layer_norm *l, void *y, const void *x);

#endif
