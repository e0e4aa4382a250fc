#include "convert.h"

#include <string.h>

#include "convert_ways.h"

#if defined(__x86_64__)
#include <cpuid.h>

#include "crc32c_x86.h"
#define AVX2_FN __attribute__((target("avx2,f16c")))
#define AVX512_FN __attribute__((target("avx512f,avx2,f16c")))
#define AVX2_CRC_FN __attribute__((target("avx2,f16c,sse4.2,pclmul")))
#define AVX512_CRC_FN __attribute__((target("avx512f,avx2,f16c,sse4.2,pclmul")))
#define INLINE inline __attribute__((always_inline))
#endif

/* The scalar loops are integer arithmetic only: what the vector instructions do does not depend on MXCSR for
 * these values, and neither may this. VCVTNEPS2BF16 is not used because it flushes subnormals. */

static uint16_t bf16_of(uint32_t u)
{
    if ((u & 0x7fffffff) > 0x7f800000)
        return (uint16_t)(u >> 16 | 0x40); /* quiet, or a payload in the low half would make infinity */
    return (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

static uint16_t f16_of(uint32_t u)
{
    uint32_t sign = u >> 16 & 0x8000, m = u & 0x7fffffff;

    if (m > 0x7f800000)
        return (uint16_t)(sign | 0x7e00 | (m >> 13 & 0x3ff));
    if (m >= 0x47800000) /* 65536 and above; 65520..65536 overflow by rounding below */
        return (uint16_t)(sign | 0x7c00);
    if (m >= 0x38800000) /* normal: move the exponent's bias from 127 to 15, round at bit 13 */
        return (uint16_t)(sign | (m - 0x38000000 + 0xfff + (m >> 13 & 1)) >> 13);
    if (m < 0x33000000) /* below half of the smallest subnormal */
        return (uint16_t)sign;
    uint32_t shift = 126 - (m >> 23), full = (m & 0x7fffff) | 0x800000;
    uint32_t half = 1u << (shift - 1), rest = full & ((half << 1) - 1), q = full >> shift;
    return (uint16_t)(sign | (q + (rest > half || (rest == half && (q & 1)))));
}

static uint32_t f32_of(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, exp = h >> 10 & 31, man = h & 0x3ff;

    if (exp == 31)
        return sign | 0x7f800000 | man << 13 | (man ? 0x400000 : 0);
    if (exp)
        return sign | (exp + 112) << 23 | man << 13;
    if (!man)
        return sign;
    uint32_t up = (uint32_t)__builtin_clz(man) - 21; /* how far the leading one is below bit 10 */
    return sign | (113 - up) << 23 | (man << up & 0x3ff) << 13;
}

static uint32_t load32(const void *p, size_t i)
{
    uint32_t v;
    memcpy(&v, (const char *)p + 4 * i, 4);
    return v;
}

static uint16_t load16(const void *p, size_t i)
{
    uint16_t v;
    memcpy(&v, (const char *)p + 2 * i, 2);
    return v;
}

static void store32(void *p, size_t i, uint32_t v)
{
    memcpy((char *)p + 4 * i, &v, 4);
}

static void store16(void *p, size_t i, uint16_t v)
{
    memcpy((char *)p + 2 * i, &v, 2);
}

enum pair { F32_F16, F32_BF16, F16_F32, F16_BF16, BF16_F32, BF16_F16, NO_PAIR };

static void scalar(enum pair pair, void *dst, const void *src, size_t i, size_t n)
{
    switch (pair) {
    case F32_F16:
        for (; i < n; i++)
            store16(dst, i, f16_of(load32(src, i)));
        break;
    case F32_BF16:
        for (; i < n; i++)
            store16(dst, i, bf16_of(load32(src, i)));
        break;
    case F16_F32:
        for (; i < n; i++)
            store32(dst, i, f32_of(load16(src, i)));
        break;
    case F16_BF16:
        for (; i < n; i++)
            store16(dst, i, bf16_of(f32_of(load16(src, i))));
        break;
    case BF16_F32:
        for (; i < n; i++)
            store32(dst, i, (uint32_t)load16(src, i) << 16);
        break;
    case BF16_F16:
        for (; i < n; i++)
            store16(dst, i, f16_of((uint32_t)load16(src, i) << 16));
        break;
    case NO_PAIR:
        break;
    }
}

#if defined(__x86_64__)

/* A loop for each pair: the choice must not be made in it. */
#define BY_PAIR(loop, ...)                                                                                   \
    switch (pair) {                                                                                          \
    case F32_F16:                                                                                            \
        return loop(F32_F16, __VA_ARGS__);                                                                   \
    case F32_BF16:                                                                                           \
        return loop(F32_BF16, __VA_ARGS__);                                                                  \
    case F16_F32:                                                                                            \
        return loop(F16_F32, __VA_ARGS__);                                                                   \
    case BF16_F32:                                                                                           \
        return loop(BF16_F32, __VA_ARGS__);                                                                  \
    default:                                                                                                 \
        return loop(pair, __VA_ARGS__);                                                                      \
    }

AVX2_FN static inline __m128i bf16_avx2(__m256i u)
{
    __m256i mag = _mm256_and_si256(u, _mm256_set1_epi32(0x7fffffff));
    __m256i nan = _mm256_cmpgt_epi32(mag, _mm256_set1_epi32(0x7f800000));
    __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
    __m256i rounded = _mm256_add_epi32(_mm256_add_epi32(u, _mm256_set1_epi32(0x7fff)), odd);
    __m256i quiet = _mm256_or_si256(u, _mm256_set1_epi32(0x400000));
    __m256i top = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
    __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(top, top), 0xd8);
    return _mm256_castsi256_si128(packed);
}

AVX2_FN static inline __m256i widen_avx2(const uint16_t *s)
{
    return _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const void *)s)), 16);
}

AVX2_FN static inline __m128i f16_avx2(__m256 v)
{
    return _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT);
}

/* 8 elements from element i on. */
AVX2_FN static INLINE void one_avx2(enum pair pair, void *dst, const void *src, size_t i)
{
    const float *sf = src;
    const uint16_t *sh = src;
    uint16_t *dh = dst;

    switch (pair) {
    case F32_F16:
        _mm_storeu_si128((void *)(dh + i), f16_avx2(_mm256_loadu_ps(sf + i)));
        break;
    case F32_BF16:
        _mm_storeu_si128((void *)(dh + i), bf16_avx2(_mm256_loadu_si256((const void *)(sf + i))));
        break;
    case F16_F32:
        _mm256_storeu_ps((float *)dst + i, _mm256_cvtph_ps(_mm_loadu_si128((const void *)(sh + i))));
        break;
    case F16_BF16: {
        __m256 v = _mm256_cvtph_ps(_mm_loadu_si128((const void *)(sh + i)));
        _mm_storeu_si128((void *)(dh + i), bf16_avx2(_mm256_castps_si256(v)));
        break;
    }
    case BF16_F32:
        _mm256_storeu_si256((void *)((float *)dst + i), widen_avx2(sh + i));
        break;
    case BF16_F16:
        _mm_storeu_si128((void *)(dh + i), f16_avx2(_mm256_castsi256_ps(widen_avx2(sh + i))));
        break;
    case NO_PAIR:
        break;
    }
}

AVX2_FN static INLINE size_t loop_avx2(enum pair pair, void *dst, const void *src, size_t n)
{
    size_t i = 0;

    for (; i + 8 <= n; i += 8)
        one_avx2(pair, dst, src, i);
    return i;
}

AVX2_FN static size_t pairs_avx2(enum pair pair, void *dst, const void *src,
                                 size_t n){BY_PAIR(loop_avx2, dst, src, n)}

AVX2_FN static void convert_avx2(enum pair pair, void *dst, const void *src, size_t n)
{
    scalar(pair, dst, src, pairs_avx2(pair, dst, src, n), n);
}

AVX512_FN static inline __m256i bf16_avx512(__m512i u)
{
    __m512i mag = _mm512_and_si512(u, _mm512_set1_epi32(0x7fffffff));
    __mmask16 nan = _mm512_cmpgt_epi32_mask(mag, _mm512_set1_epi32(0x7f800000));
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
    __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(u, _mm512_set1_epi32(0x7fff)), odd);
    __m512i v = _mm512_mask_or_epi32(rounded, nan, u, _mm512_set1_epi32(0x400000));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(v, 16));
}

AVX512_FN static inline __m512i widen_avx512(const uint16_t *s)
{
    return _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)s)), 16);
}

AVX512_FN static inline __m256i f16_avx512(__m512 v)
{
    return _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT);
}

/* 16 elements from element i on. */
AVX512_FN static INLINE void one_avx512(enum pair pair, void *dst, const void *src, size_t i)
{
    const float *sf = src;
    const uint16_t *sh = src;
    uint16_t *dh = dst;

    switch (pair) {
    case F32_F16:
        _mm256_storeu_si256((void *)(dh + i), f16_avx512(_mm512_loadu_ps(sf + i)));
        break;
    case F32_BF16:
        _mm256_storeu_si256((void *)(dh + i), bf16_avx512(_mm512_loadu_si512(sf + i)));
        break;
    case F16_F32:
        _mm512_storeu_ps((float *)dst + i, _mm512_cvtph_ps(_mm256_loadu_si256((const void *)(sh + i))));
        break;
    case F16_BF16: {
        __m512 v = _mm512_cvtph_ps(_mm256_loadu_si256((const void *)(sh + i)));
        _mm256_storeu_si256((void *)(dh + i), bf16_avx512(_mm512_castps_si512(v)));
        break;
    }
    case BF16_F32:
        _mm512_storeu_si512((float *)dst + i, widen_avx512(sh + i));
        break;
    case BF16_F16:
        _mm256_storeu_si256((void *)(dh + i), f16_avx512(_mm512_castsi512_ps(widen_avx512(sh + i))));
        break;
    case NO_PAIR:
        break;
    }
}

AVX512_FN static INLINE size_t loop_avx512(enum pair pair, void *dst, const void *src, size_t n)
{
    size_t i = 0;

    for (; i + 16 <= n; i += 16)
        one_avx512(pair, dst, src, i);
    return i;
}

AVX512_FN static size_t pairs_avx512(enum pair pair, void *dst, const void *src,
                                     size_t n){BY_PAIR(loop_avx512, dst, src, n)}

AVX512_FN static void convert_avx512(enum pair pair, void *dst, const void *src, size_t n)
{
    scalar(pair, dst, src, pairs_avx512(pair, dst, src, n), n);
}

#endif

#if defined(__x86_64__)
/* clang 14 has no name for it in __builtin_cpu_supports(). That AVX2 is there says that the OS saves YMM. */
static bool has_f16c(void)
{
    unsigned a, b, c, d;
    return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}
#endif

bool hapi_way_usable(enum hapi_way way)
{
#if defined(__x86_64__)
    if (way == HAPI_WAY_AVX2)
        return __builtin_cpu_supports("avx2") && has_f16c();
    if (way == HAPI_WAY_AVX512)
        return hapi_way_usable(HAPI_WAY_AVX2) && __builtin_cpu_supports("avx512f");
#endif
    return way == HAPI_WAY_SCALAR;
}

static enum pair pair_of(enum hapi_dtype dst, enum hapi_dtype src)
{
    if (src == HAPI_F32)
        return dst == HAPI_F16 ? F32_F16 : dst == HAPI_BF16 ? F32_BF16 : NO_PAIR;
    if (src == HAPI_F16)
        return dst == HAPI_F32 ? F16_F32 : dst == HAPI_BF16 ? F16_BF16 : NO_PAIR;
    if (src == HAPI_BF16)
        return dst == HAPI_F32 ? BF16_F32 : dst == HAPI_F16 ? BF16_F16 : NO_PAIR;
    return NO_PAIR;
}

int hapi_convert_by(enum hapi_way way, void *dst, enum hapi_dtype dst_dtype, const void *src,
                    enum hapi_dtype src_dtype, size_t n)
{
    enum pair pair = pair_of(dst_dtype, src_dtype);

    if (dst_dtype == src_dtype &&
        (src_dtype == HAPI_F32 || src_dtype == HAPI_F16 || src_dtype == HAPI_BF16)) {
        if (dst != src && n)
            memcpy(dst, src, n * hapi_dtype_size(src_dtype));
        return HAPI_OK;
    }
    if (pair == NO_PAIR)
        return HAPI_EUNSUPPORTED;
#if defined(__x86_64__)
    if (way == HAPI_WAY_AVX512) {
        convert_avx512(pair, dst, src, n);
        return HAPI_OK;
    }
    if (way == HAPI_WAY_AVX2) {
        convert_avx2(pair, dst, src, n);
        return HAPI_OK;
    }
#endif
    scalar(pair, dst, src, 0, n);
    return HAPI_OK;
}

enum hapi_way hapi_way_best(void)
{
    static _Atomic int chosen = -1; /* cpuid is slow in virtual machines; all threads choose the same */
    int way = chosen;

    if (way < 0) {
        way = hapi_way_usable(HAPI_WAY_AVX512) ? HAPI_WAY_AVX512
              : hapi_way_usable(HAPI_WAY_AVX2) ? HAPI_WAY_AVX2
                                               : HAPI_WAY_SCALAR;
        chosen = way;
    }
    return (enum hapi_way)way;
}

int hapi_convert(void *dst, enum hapi_dtype dst_dtype, const void *src, enum hapi_dtype src_dtype, size_t n)
{
    return hapi_convert_by(hapi_way_best(), dst, dst_dtype, src, src_dtype, n);
}

/* ------------------------------------------------------------------ with a checksum */

/* Elements of 16 bits that the checksum takes at once: three streams of 256 bytes. */
enum { GROUP = 384, STREAM = 256 };

#if defined(__x86_64__)
/* Conversion waits for memory and the checksum for its one instruction: side by side they cost little more
 * than the slower of the two, which block after block of each does not give (docs/benchmarks.md). A step
 * converts `width` elements in each of three streams and then checks those bytes, `at` on the 16-bit side:
 * 2 * width a stream. */
#define GROUPS(one, width)                                                                                   \
    uint32_t c = crc;                                                                                        \
    for (size_t g = 0; g < groups; g++, at += 3 * STREAM) {                                                  \
        uint64_t sum[3] = {c, 0, 0};                                                                         \
        for (size_t i = 0; i < STREAM / 2; i += (width)) {                                                   \
            for (size_t k = 0; k < 3; k++)                                                                   \
                one(pair, dst, src, g *GROUP + k * (STREAM / 2) + i);                                        \
            for (size_t k = 0; k < 2 * (width); k += 8)                                                      \
                crc32c_step3(sum, at + 2 * i + k, STREAM);                                                   \
        }                                                                                                    \
        c = crc32c_join3(sum, CRC32C_BY_512, CRC32C_BY_256);                                                 \
    }                                                                                                        \
    return c

AVX2_CRC_FN static INLINE uint32_t groups_avx2(enum pair pair, void *dst, const void *src, size_t groups,
                                               const uint8_t *at, uint32_t crc)
{
    GROUPS(one_avx2, 8);
}

AVX512_CRC_FN static INLINE uint32_t groups_avx512(enum pair pair, void *dst, const void *src, size_t groups,
                                                   const uint8_t *at, uint32_t crc)
{
    GROUPS(one_avx512, 16);
}

AVX2_CRC_FN static uint32_t both_avx2(enum pair pair, void *dst, const void *src, size_t groups,
                                      const uint8_t *at,
                                      uint32_t crc){BY_PAIR(groups_avx2, dst, src, groups, at, crc)}

AVX512_CRC_FN static uint32_t
    both_avx512(enum pair pair, void *dst, const void *src, size_t groups, const uint8_t *at, uint32_t crc)
{
    BY_PAIR(groups_avx512, dst, src, groups, at, crc)
}

/* How many elements it did; 0 where it cannot. */
static size_t both(enum hapi_way way, enum pair pair, void *dst, const void *src, size_t n,
                   const uint8_t *checked, uint32_t *crc)
{
    size_t groups = n / GROUP;

    if (way == HAPI_WAY_SCALAR || pair == NO_PAIR || !groups || !hapi_crc32c_hard_usable())
        return 0;
    *crc = ~(way == HAPI_WAY_AVX512 ? both_avx512 : both_avx2)(pair, dst, src, groups, checked, ~*crc);
    return groups * GROUP;
}
#else
static size_t both(enum hapi_way way, enum pair pair, void *dst, const void *src, size_t n,
                   const uint8_t *checked, uint32_t *crc)
{
    (void)way, (void)pair, (void)dst, (void)src, (void)n, (void)checked, (void)crc;
    return 0;
}
#endif

int hapi_convert_crc32c_by(enum hapi_way way, void *dst, enum hapi_dtype dst_dtype, const void *src,
                           enum hapi_dtype src_dtype, size_t n, enum hapi_crc_side side, uint32_t *crc)
{
    size_t to = hapi_dtype_size(dst_dtype), from = hapi_dtype_size(src_dtype), done = 0;
    const unsigned char *s = src;
    unsigned char *d = dst;
    uint32_t c = *crc;

    if ((side == HAPI_CRC_SRC ? from : to) == 2)
        done = both(way, pair_of(dst_dtype, src_dtype), dst, src, n, side == HAPI_CRC_SRC ? s : d, &c);
    int rc = hapi_convert_by(way, d + done * to, dst_dtype, s + done * from, src_dtype, n - done);
    if (rc)
        return rc;
    *crc = side == HAPI_CRC_SRC ? hapi_crc32c(c, s + done * from, (n - done) * from)
                                : hapi_crc32c(c, d + done * to, (n - done) * to);
    return HAPI_OK;
}

int hapi_convert_crc32c(void *dst, enum hapi_dtype dst_dtype, const void *src, enum hapi_dtype src_dtype,
                        size_t n, enum hapi_crc_side side, uint32_t *crc)
{
    return hapi_convert_crc32c_by(hapi_way_best(), dst, dst_dtype, src, src_dtype, n, side, crc);
}
