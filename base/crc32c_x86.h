/*
 * The CRC-32C instruction, for crc32c.c and for convert.c, which checks what it converts. x86-64 only;
 * callers have SSE4.2 and PCLMULQDQ. State here is the plain register: callers invert before and after.
 *
 * The instruction has a latency of 3 and a throughput of 1: three streams of n bytes side by side. The first
 * two are then moved on by 2n and n zero bytes: crc32(0, clmul(c, x^(8m-33) mod P)) appends m zero bytes.
 */
#ifndef HAPI_BASE_CRC32C_X86_H
#define HAPI_BASE_CRC32C_X86_H

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#define CRC_FN __attribute__((target("sse4.2,pclmul")))

/* x^(8m-33) mod P for m zero bytes. */
#define CRC32C_BY_256 0xb9e02b86u
#define CRC32C_BY_512 0xdd7e3b0cu
#define CRC32C_BY_4096 0x82f89c77u
#define CRC32C_BY_8192 0x54a86326u

CRC_FN static inline uint64_t crc32c_step(uint64_t c, const uint8_t *p)
{
    uint64_t v;
    memcpy(&v, p, 8);
    return _mm_crc32_u64(c, v);
}

/* 8 bytes at p, p + n and p + 2n. */
CRC_FN static inline void crc32c_step3(uint64_t c[3], const uint8_t *p, size_t n)
{
    c[0] = crc32c_step(c[0], p);
    c[1] = crc32c_step(c[1], p + n);
    c[2] = crc32c_step(c[2], p + 2 * n);
}

CRC_FN static inline uint32_t crc32c_join3(const uint64_t c[3], uint32_t by_2n, uint32_t by_n)
{
    __m128i keys = _mm_set_epi64x((long long)by_n, (long long)by_2n);
    __m128i both = _mm_set_epi64x((long long)c[1], (long long)c[0]);
    uint64_t x = (uint64_t)_mm_cvtsi128_si64(_mm_clmulepi64_si128(both, keys, 0x00));
    uint64_t y = (uint64_t)_mm_cvtsi128_si64(_mm_clmulepi64_si128(both, keys, 0x11));
    return (uint32_t)(_mm_crc32_u64(0, x ^ y) ^ c[2]);
}

#endif
