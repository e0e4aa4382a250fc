/*
 * Kernels of ours for what oneDNN 2.6 leaves slow: activations with an exponential, batch normalisation,
 * softmax, layer normalisation, rows that are not dense. Plain functions of pointers and sizes. One source,
 * vector.c, is built for AVX-512 and for AVX2; the oneDNN back end takes at run time the one that
 * hapi_vector_of() gives, and oneDNN's own kernels where that is none.
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

/* Whether the back end computes the activation by `affine` below. It then does so everywhere, behind a
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

/* y[r] = softmax(x[r] + masks[0][m(r, 0)] + masks[1][m(r, 1)]), added in this order in f32;
 * m(r, k) = r / mask[k].group % mask[k].count * mask[k].block + r % mask[k].block. masks: dense f32 rows of
 * cols, or NULL. To bf16: the exponential is within 8e-5, relative. */
struct hapi_softmax {
    struct hapi_rows rows;
    struct hapi_mask mask[HAPI_MASKS];
};

/* y[r][c] = (x[r][c] - mean(x[r])) / sqrt(var(x[r]) + epsilon) * scale[k] + shift[k]; scale and shift may be
 * NULL. k = c; or, with plane > 0, a number for each `plane` columns: k = r % period * (cols / plane) + c /
 * plane, as the channels of a group have it. */
struct hapi_layer_norm {
    struct hapi_rows rows;
    int64_t plane, period;
    float epsilon;
    const float *scale, *shift;
};

/* y = act(x * weights + bias + plus), channels-last and dense; bias, of `maps`, and plus, of y's shape, may
 * be NULL. Weights in blocks of 16 maps: (maps / 16, kernel height, kernel width, channels, 16), the last
 * block filled up with zeros. The sum goes over the window row by row, from the bias on: an output's bits
 * depend on what its window sees only. */
enum { HAPI_CONV_MAPS = 16, HAPI_CONV_RUN_MAX = 2048 };
struct hapi_conv {
    int64_t images, in[2], channels, out[2], maps; /* heights and widths; maps: a multiple of 8 */
    int64_t kernel[2], stride[2], pad[2];          /* kernel[1] * channels <= HAPI_CONV_RUN_MAX */
    int64_t dilation;                              /* of rows; 1 within a row */
    struct hapi_act act;                           /* NONE, RELU or CLIP */
};

/* One build of them. */
struct hapi_vector {
    bool bf16; /* takes it; else all dtypes must be HAPI_F32 */
    void (*affine)(const struct hapi_affine *a, void *y, const void *x);
    void (*softmax)(const struct hapi_softmax *s, void *y, const void *x, const float *const *masks);
    void (*layer_norm)(const struct hapi_layer_norm *l, void *y, const void *x);
    /* NULL where oneDNN's are as good. */
    void (*conv)(const struct hapi_conv *c, float *y, const float *x, const float *weights, const float *bias,
                 const float *plus);
};
extern const struct hapi_vector hapi_vector_avx512; /* F, BW, DQ, VL, and for bf16 AVX-512 BF16 */
extern const struct hapi_vector hapi_vector_avx2;   /* and FMA */

/* Whether this CPU has what v takes for elements of dtype. */
bool hapi_vector_runs(const struct hapi_vector *v, enum hapi_dtype dtype);
/* The build for plans that compute in dtype: of the instructions that oneDNN uses as well, as the numeric
 * class has it. NULL: none. */
const struct hapi_vector *hapi_vector_of(enum hapi_dtype dtype);

#endif
