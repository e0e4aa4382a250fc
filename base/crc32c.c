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
#include "crc32c_x86.h"

CRC_FN static inline uint32_t three(uint32_t c, const uint8_t *p, size_t n, uint32_t by_2n, uint32_t by_n)
{
    uint64_t crc[3] = {c, 0, 0};

    for (size_t i = 0; i < n; i += 8)
        crc32c_step3(crc, p + i, n);
    return crc32c_join3(crc, by_2n, by_n);
}

CRC_FN uint32_t hapi_crc32c_hard(uint32_t crc, const void *data, size_t n)
{
    const uint8_t *p = data;
    uint32_t c = ~crc;

    for (; n >= 3 * 4096; n -= 3 * 4096, p += 3 * 4096)
        c = three(c, p, 4096, CRC32C_BY_8192, CRC32C_BY_4096);
    for (; n >= 3 * 256; n -= 3 * 256, p += 3 * 256)
        c = three(c, p, 256, CRC32C_BY_512, CRC32C_BY_256);
    for (; n >= 8; n -= 8, p += 8)
        c = (uint32_t)crc32c_step(c, p);
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
