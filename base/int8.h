/*
 * int8 on the wire: a sample as bytes with f32 scales. Symmetric: x is q * scale, q in -127..127.
 *
 *     row of a sample:  scales (f32, little-endian) | elements (int8), dense, in the order of the tensor
 *
 * A scale is that of one channel of one sample where the sample has at least HAPI_I8_POSITIONS positions of
 * each channel, else that of HAPI_I8_RUN elements in a row (the last run may be shorter): a scale for each
 * channel of a vector would be larger than the vector. No scale knows another sample, so that what a sample
 * becomes does not depend on the micro-batch. docs/protocol.md says what the choice costs and gives.
 *
 * scale = max|x| / 127 (but one step less where 127 * scale would overflow), q = x * (127 / max|x|) rounded
 * to nearest even. Where max|x| is below 127 * 2^-126 (zero, or so small that the scale would be subnormal)
 * the scale is 0. Where a value is infinite or NaN, the scale is NaN and q is 0: all that share it come back
 * as NaN, since int8 cannot say which it was.
 *
 * Any thread. AVX2 and AVX-512 are chosen once at run time; results do not depend on the choice.
 */
#ifndef HAPI_BASE_INT8_H
#define HAPI_BASE_INT8_H

#include <stddef.h>
#include <stdint.h>

#include "tensor.h"

enum { HAPI_I8_POSITIONS = 16, HAPI_I8_RUN = 64 };

/* How a sample is laid out: made by hapi_i8_form(). */
struct hapi_i8 {
    size_t elements; /* of a sample */
    size_t channels; /* innermost; 0: scales of runs */
    size_t scales;   /* of a sample */
};

/* For (N,...) of any N, channels innermost: dimension 1 of (N,C,H,W), which travels as NHWC, else the last
 * one. HAPI_EINVAL without a dimension besides N or with an empty one, HAPI_ETOOBIG beyond int64. */
int hapi_i8_form(struct hapi_i8 *out, const struct hapi_shape *shape);
size_t hapi_i8_row(const struct hapi_i8 *f); /* bytes of a sample's row */

/* Bytes of one sample of (N,...) on the wire, scales included. Errors: HAPI_EINVAL for an unknown
 * dtype or a shape without N, HAPI_ETOOBIG; with i8 those of hapi_i8_form(). */
int hapi_wire_row(const struct hapi_shape *shape, enum hapi_dtype wire, uint64_t *out);

/* n samples, dense on both sides; rows need no alignment. *crc, where it is not NULL, goes on over the rows
 * as hapi_crc32c() does. Rows come from outside: HAPI_EPROTO where a scale is none that hapi_i8_pack() makes,
 * with x and *crc undefined. */
void hapi_i8_pack(void *rows, const float *x, const struct hapi_i8 *f, size_t n, uint32_t *crc);
int hapi_i8_unpack(float *x, const void *rows, const struct hapi_i8 *f, size_t n, uint32_t *crc);

#endif
