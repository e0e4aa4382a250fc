/*
 * The ways that convert.c, int8.c and crc32c.c choose from, one by one: tests compare them bit for bit.
 * Private to base/ and its tests. Any thread.
 */
#ifndef HAPI_BASE_CONVERT_WAYS_H
#define HAPI_BASE_CONVERT_WAYS_H

#include <stdbool.h>

#include "convert.h"
#include "err.h"
#include "int8.h"

enum hapi_way { HAPI_WAY_SCALAR, HAPI_WAY_AVX2, HAPI_WAY_AVX512, HAPI_WAY_COUNT };

/* Whether this CPU has it (AVX2 with F16C; AVX-512 F). */
bool hapi_way_usable(enum hapi_way way);
/* The best of the usable ones. */
enum hapi_way hapi_way_best(void);
/* hapi_convert() by a usable way. */
int hapi_convert_by(enum hapi_way way, void *dst, enum hapi_dtype dst_dtype, const void *src,
                    enum hapi_dtype src_dtype, size_t n);

/* hapi_convert_crc32c() by a usable way. */
int hapi_convert_crc32c_by(enum hapi_way way, void *dst, enum hapi_dtype dst_dtype, const void *src,
                           enum hapi_dtype src_dtype, size_t n, enum hapi_crc_side side, uint32_t *crc);

/* hapi_i8_pack() and hapi_i8_unpack() by a usable way. */
void hapi_i8_pack_by(enum hapi_way way, void *rows, const float *x, const struct hapi_i8 *f, size_t n,
                     uint32_t *crc);
int hapi_i8_unpack_by(enum hapi_way way, float *x, const void *rows, const struct hapi_i8 *f, size_t n,
                      uint32_t *crc);

/* hapi_crc32c() without the CPU's help, and with SSE4.2 and PCLMULQDQ where hapi_crc32c_hard_usable(). */
uint32_t hapi_crc32c_soft(uint32_t crc, const void *data, size_t n);
bool hapi_crc32c_hard_usable(void);
uint32_t hapi_crc32c_hard(uint32_t crc, const void *data, size_t n);

#endif
