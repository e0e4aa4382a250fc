/*
 * dtype loops and checksums: what every tier does to a tensor between the last kernel and the wire.
 * AVX2/F16C/AVX-512 versions are chosen once at run time; results do not depend on the choice.
 * Any thread. Rounding is to nearest even; NaN stays NaN; f32 too large for f16 becomes infinity.
 */
#ifndef HAPI_BASE_CONVERT_H
#define HAPI_BASE_CONVERT_H

#include <stddef.h>
#include <stdint.h>

#include "tensor.h"

/* n elements, src and dst do not overlap (equal pointers are allowed for equal dtypes).
 * Between any two of f32, f16, bf16; HAPI_EUNSUPPORTED for others, HAPI_OK when done. */
int hapi_convert(void *dst, enum hapi_dtype dst_dtype, const void *src, enum hapi_dtype src_dtype, size_t n);

/* CRC-32C (Castagnoli, reflected, init and xorout ~0): hapi_crc32c(0, "123456789", 9) == 0xE3069283.
 * Chains: hapi_crc32c(hapi_crc32c(0, a, n), b, m) is the checksum of a and b together. SSE4.2 when there. */
uint32_t hapi_crc32c(uint32_t crc, const void *data, size_t n);

/* hapi_convert() that checks what it converts in the same pass: *crc goes on, as hapi_crc32c() does, over the
 * bytes of src (what came) or of dst (what is sent). One pass where that side has 16 bits; else the checksum
 * follows the conversion. Errors as hapi_convert(), *crc unchanged. */
enum hapi_crc_side { HAPI_CRC_SRC, HAPI_CRC_DST };
int hapi_convert_crc32c(void *dst, enum hapi_dtype dst_dtype, const void *src, enum hapi_dtype src_dtype,
                        size_t n, enum hapi_crc_side side, uint32_t *crc);

/* SHA-256 (OpenSSL) of n bytes into out[32]. */
void hapi_sha256(uint8_t out[32], const void *data, size_t n);
/* A digest as 64 digits, terminated. */
void hapi_sha256_text(char out[65], const uint8_t digest[32]);

#endif
