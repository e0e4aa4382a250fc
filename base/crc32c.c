#include <pthread.h>
#include <string.h>

#include "convert_ways.h"

#define POLY 0x82f63b78u /* Castagnoli, reflected */

/* Slicing by eight: table[k][b] is the effect of byte b followed by k zero bytes. */
static uint32_t table[8][256];
static pthread_once_t table_once = PTHREAD_ONCE_INIT;

static void table_fill(void)
{
    for (uint32_t b = 0; b < 256; b++) {
        uint32_t c = b;
        for (int i = 0; i < 8; i++)
            c = c >> 1 ^ (c & 1 ? POLY : 0);
        table[0][b] = c;
    }
    for (int k = 1; k < 8; k++)
        for (int b = 0; b < 256; b++)
            table[k][b] = table[k - 1][b] >> 8 ^ table[0][table[k - 1][b] & 255];
}

uint32_t hapi_crc32c_soft(uint32_t crc, const void *data, size_t n)
{
    const uint8_t *p = data;
    uint32_t c = ~crc;

    pthread_once(&table_once, table_fill);
    for (; n >= 8; n -= 8, p += 8) {
        uint32_t lo =
            c ^ ((uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24);
        c = table[7][lo & 255] ^ table[6][lo >> 8 & 255] ^ table[5][lo >> 16 & 255] ^ table[4][lo >> 24] ^
            table[3][p[4]] ^ table[2][p[5]] ^ table[1][p[6]] ^ table[0][p[7]];
    }
    while (n--)
        c = c >> 8 ^ table[0][(c ^ *p++) & 255];
    return ~c;
}

#if defined(__x86_64__)
#include <immintrin.h>
#define CRC_FN __attribute__((target("sse4.2,pclmul")))

CRC_FN static inline uint64_t step(uint64_t c, const uint8_t *p)
{
    uint64_t v;
    memcpy(&v, p, 8);
    return _mm_crc32_u64(c, v);
}

/* The instruction has a latency of 3 and a throughput of 1: three streams of n bytes side by side. The first
 * two are then moved on by 2n and n zero bytes: crc32(0, clmul(c, x^(8m-33) mod P)) appends m zero bytes. */
CRC_FN static inline uint32_t three(uint32_t c, const uint8_t *p, size_t n, uint32_t by_2n, uint32_t by_n)
{
    uint64_t a = c, b = 0, d = 0;

    for (size_t i = 0; i < n; i += 8) {
        a = step(a, p + i);
        b = step(b, p + n + i);
        d = step(d, p + 2 * n + i);
    }
    __m128i keys = _mm_set_epi64x((long long)by_n, (long long)by_2n);
    __m128i both = _mm_set_epi64x((long long)b, (long long)a);
    uint64_t x = (uint64_t)_mm_cvtsi128_si64(_mm_clmulepi64_si128(both, keys, 0x00));
    uint64_t y = (uint64_t)_mm_cvtsi128_si64(_mm_clmulepi64_si128(both, keys, 0x11));
    return (uint32_t)(_mm_crc32_u64(0, x ^ y) ^ d);
}

CRC_FN uint32_t hapi_crc32c_hard(uint32_t crc, const void *data, size_t n)
{
    const uint8_t *p = data;
    uint32_t c = ~crc;

    for (; n >= 3 * 4096; n -= 3 * 4096, p += 3 * 4096)
        c = three(c, p, 4096, 0x54a86326, 0x82f89c77);
    for (; n >= 3 * 256; n -= 3 * 256, p += 3 * 256)
        c = three(c, p, 256, 0xdd7e3b0c, 0xb9e02b86);
    for (; n >= 8; n -= 8, p += 8)
        c = (uint32_t)step(c, p);
    while (n--)
        c = _mm_crc32_u8(c, *p++);
    return ~c;
}

bool hapi_crc32c_hard_usable(void)
{
    return __builtin_cpu_supports("sse4.2") && __builtin_cpu_supports("pclmul");
}
#else
uint32_t hapi_crc32c_hard(uint32_t crc, const void *data, size_t n)
{
    return hapi_crc32c_soft(crc, data, n);
}

bool hapi_crc32c_hard_usable(void)
{
    return false;
}
#endif

uint32_t hapi_crc32c(uint32_t crc, const void *data, size_t n)
{
    return hapi_crc32c_hard_usable() ? hapi_crc32c_hard(crc, data, n) : hapi_crc32c_soft(crc, data, n);
}
