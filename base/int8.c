#include "int8.h"

#include <float.h>
#include <math.h>
#include <stdbool.h>
#include <string.h>

#include "convert_ways.h"

#if defined(__x86_64__)
#include <immintrin.h>
#define AVX2_FN __attribute__((target("avx2")))
#define AVX512_FN __attribute__((target("avx512f,avx2")))
#endif
#define INLINE inline __attribute__((always_inline))

#define MAGNITUDE 0x7fffffffu
#define INFINITE 0x7f800000u
#define QUIET_NAN 0x7fc00000u
#define SCALE_MIN 0x00800000u /* 2^-126 */
#define SCALE_MAX 0x7c010203u /* the largest whose 127 fold is finite: one step below FLT_MAX / 127 */
#define SMALLEST 0x1.fcp-120f /* 127 * 2^-126 */
enum { RUN = HAPI_I8_RUN, BLOCK = 256 /* channels whose maxima are kept at once */ };

/* ------------------------------------------------------------------ form */

int hapi_i8_form(struct hapi_i8 *out, const struct hapi_shape *shape)
{
    struct hapi_shape one = *shape;
    int64_t n;

    if (shape->rank < 2)
        return HAPI_EINVAL;
    one.dim[0] = 1;
    int rc = hapi_shape_elements(&one, &n);
    if (rc)
        return rc;
    if (n < 1)
        return HAPI_EINVAL;
    if (n > INT64_MAX / 8)
        return HAPI_ETOOBIG;
    size_t elements = (size_t)n, channels = (size_t)one.dim[one.rank == 4 ? 1 : one.rank - 1];
    bool each = elements / channels >= HAPI_I8_POSITIONS;
    *out = (struct hapi_i8){elements, each ? channels : 0, each ? channels : (elements + RUN - 1) / RUN};
    return 0;
}

size_t hapi_i8_row(const struct hapi_i8 *f)
{
    return f->elements + 4 * f->scales;
}

int hapi_wire_row(const struct hapi_shape *shape, enum hapi_dtype wire, uint64_t *out)
{
    struct hapi_shape one = *shape;
    struct hapi_i8 f;
    size_t bytes;
    int rc;

    if (one.rank < 1)
        return HAPI_EINVAL;
    one.dim[0] = 1;
    rc = wire == HAPI_I8 ? hapi_i8_form(&f, &one) : hapi_tensor_bytes(&one, wire, &bytes);
    if (!rc)
        *out = wire == HAPI_I8 ? hapi_i8_row(&f) : bytes;
    return rc;
}

/* ------------------------------------------------------------------ the plain loops: what all ways give */

static INLINE uint32_t bits_of(float f)
{
    uint32_t u;
    memcpy(&u, &f, 4);
    return u;
}

static INLINE uint32_t load32(const uint8_t *p)
{
    uint32_t u;
    memcpy(&u, p, 4);
    return u;
}

static INLINE float float_of(uint32_t u)
{
    float f;
    memcpy(&f, &u, 4);
    return f;
}

/* lrintf() is a call: it sets errno. */
static INLINE int nearest(float f)
{
#if defined(__x86_64__)
    return _mm_cvtss_si32(_mm_set_ss(f));
#else
    return (int)lrintf(f);
#endif
}

/* Magnitudes are compared as integers: NaN is above infinity, and MXCSR has no say. */
static INLINE void max_scalar(uint32_t *max, const float *x, size_t i, size_t n)
{
    for (; i < n; i++) {
        uint32_t m = bits_of(x[i]) & MAGNITUDE;
        max[i] = m > max[i] ? m : max[i];
    }
}

static INLINE void quantize_scalar(int8_t *q, const float *x, const float *inverse, size_t i, size_t n)
{
    for (; i < n; i++)
        q[i] = (int8_t)(inverse[i] > 0 ? nearest(x[i] * inverse[i]) : 0);
}

static INLINE void widen_scalar(float *x, const int8_t *q, const uint8_t *scales, size_t i, size_t n)
{
    for (; i < n; i++) {
        float s;
        memcpy(&s, scales + 4 * i, 4);
        x[i] = (float)q[i] * s;
    }
}

/* Branches would keep the compiler from doing many at once: a channel in 50 elements is a division in 25. */
static INLINE bool scales_finish(uint8_t *scales, float *inverse, const uint32_t *max, size_t n)
{
    uint32_t beyond = 0;

    for (size_t i = 0; i < n; i++) {
        float m = float_of(max[i]), s = m / 127, inv = 127 / m;
        bool small = m < SMALLEST, finite = max[i] < INFINITE;
        uint32_t u = bits_of(s) < SCALE_MAX ? bits_of(s) : SCALE_MAX;
        u = small ? 0 : finite ? u : QUIET_NAN;
        inverse[i] = small || !finite ? 0 : inv;
        beyond |= max[i] >= INFINITE;
        memcpy(scales + 4 * i, &u, 4);
    }
    return !beyond;
}

static void run_scalar(uint8_t *scale, int8_t *q, const float *x, size_t n)
{
    uint32_t max = 0;
    float inverse;

    for (size_t i = 0; i < n; i++) {
        uint32_t m = bits_of(x[i]) & MAGNITUDE;
        max = m > max ? m : max;
    }
    scales_finish(scale, &inverse, &max, 1);
    for (size_t i = 0; i < n; i++)
        q[i] = (int8_t)(inverse > 0 ? nearest(x[i] * inverse) : 0);
}

static void widen_run_scalar(float *x, const int8_t *q, const uint8_t *scale, size_t n)
{
    float s;

    memcpy(&s, scale, 4);
    for (size_t i = 0; i < n; i++)
        x[i] = (float)q[i] * s;
}

/* ------------------------------------------------------------------ a row, written once for all ways */

/* Channels: a block of them through all positions for the maxima, then again for the bytes: the second time
 * it comes from a cache. */
#define PACK(max_of, quantize, run_of)                                                                       \
    uint8_t *scales = row;                                                                                   \
    int8_t *q = (int8_t *)(row + 4 * f->scales);                                                             \
    for (size_t i = 0; !f->channels && i < f->elements; i += RUN, scales += 4)                               \
        if (f->elements - i >= RUN)                                                                          \
            run_of(scales, q + i, x + i);                                                                    \
        else                                                                                                 \
            run_scalar(scales, q + i, x + i, f->elements - i);                                               \
    for (size_t c = 0, n; c < f->channels; c += n) {                                                         \
        uint32_t max[BLOCK] = {0};                                                                           \
        float inverse[BLOCK];                                                                                \
        n = f->channels - c < BLOCK ? f->channels - c : BLOCK;                                               \
        for (size_t i = c; i < f->elements; i += f->channels)                                                \
            max_of(max, x + i, n);                                                                           \
        bool finite = scales_finish(scales + 4 * c, inverse, max, n);                                        \
        for (size_t i = c; i < f->elements; i += f->channels)                                                \
            if (finite)                                                                                      \
                quantize(q + i, x + i, inverse, n);                                                          \
            else                                                                                             \
                quantize_scalar(q + i, x + i, inverse, 0, n);                                                \
    }

#define UNPACK(widen, widen_run)                                                                             \
    const uint8_t *scales = row;                                                                             \
    const int8_t *q = (const int8_t *)(row + 4 * f->scales);                                                 \
    for (size_t i = 0; !f->channels && i < f->elements; i += RUN, scales += 4)                               \
        if (f->elements - i >= RUN)                                                                          \
            widen_run(x + i, q + i, scales);                                                                 \
        else                                                                                                 \
            widen_run_scalar(x + i, q + i, scales, f->elements - i);                                         \
    for (size_t i = 0; f->channels && i < f->elements; i += f->channels)                                     \
        widen(x + i, q + i, scales, f->channels);

#define ALL_SCALAR(q, x, inverse, n) quantize_scalar(q, x, inverse, 0, n)
#define ALL_MAX(max, x, n) max_scalar(max, x, 0, n)
#define ALL_WIDEN(x, q, scales, n) widen_scalar(x, q, scales, 0, n)
#define ALL_RUN(scale, q, x) run_scalar(scale, q, x, RUN)
#define ALL_WIDEN_RUN(x, q, scale) widen_run_scalar(x, q, scale, RUN)

static void pack_scalar(uint8_t *row, const float *x, const struct hapi_i8 *f)
{
    PACK(ALL_MAX, ALL_SCALAR, ALL_RUN)
}

static void unpack_scalar(float *x, const uint8_t *row, const struct hapi_i8 *f)
{
    UNPACK(ALL_WIDEN, ALL_WIDEN_RUN)
}

#if defined(__x86_64__)

/* ------------------------------------------------------------------ AVX2 */

AVX2_FN static INLINE __m256i magnitude_avx2(const float *x)
{
    return _mm256_and_si256(_mm256_loadu_si256((const void *)x), _mm256_set1_epi32((int)MAGNITUDE));
}

AVX2_FN static INLINE void max_avx2(uint32_t *max, const float *x, size_t n)
{
    size_t i = 0;

    for (; i + 8 <= n; i += 8) {
        __m256i m = _mm256_max_epi32(_mm256_loadu_si256((const void *)(max + i)), magnitude_avx2(x + i));
        _mm256_storeu_si256((void *)(max + i), m);
    }
    max_scalar(max, x, i, n);
}

/* 8 elements: -127..127, so that the saturating packs change nothing. */
AVX2_FN static INLINE void eight_avx2(int8_t *q, const float *x, __m256 inverse)
{
    __m256i v = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x), inverse));
    __m128i h = _mm_packs_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    _mm_storel_epi64((void *)q, _mm_packs_epi16(h, h));
}

AVX2_FN static INLINE void quantize_avx2(int8_t *q, const float *x, const float *inverse, size_t n)
{
    size_t i = 0;

    for (; i + 8 <= n; i += 8)
        eight_avx2(q + i, x + i, _mm256_loadu_ps(inverse + i));
    quantize_scalar(q, x, inverse, i, n);
}

AVX2_FN static INLINE void run_avx2(uint8_t *scale, int8_t *q, const float *x)
{
    __m256i m = magnitude_avx2(x);
    float inverse;
    uint32_t max;

    for (size_t i = 8; i < RUN; i += 8)
        m = _mm256_max_epi32(m, magnitude_avx2(x + i));
    __m128i h = _mm_max_epi32(_mm256_castsi256_si128(m), _mm256_extracti128_si256(m, 1));
    h = _mm_max_epi32(h, _mm_shuffle_epi32(h, 0x4e));
    h = _mm_max_epi32(h, _mm_shuffle_epi32(h, 0xb1));
    max = (uint32_t)_mm_cvtsi128_si32(h);
    if (!scales_finish(scale, &inverse, &max, 1)) {
        memset(q, 0, RUN);
        return;
    }
    for (size_t i = 0; i < RUN; i += 8)
        eight_avx2(q + i, x + i, _mm256_set1_ps(inverse));
}

AVX2_FN static INLINE __m256 widened_avx2(const int8_t *q)
{
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const void *)q)));
}

AVX2_FN static INLINE void widen_avx2(float *x, const int8_t *q, const uint8_t *scales, size_t n)
{
    size_t i = 0;

    for (; i + 8 <= n; i += 8)
        _mm256_storeu_ps(
            x + i, _mm256_mul_ps(widened_avx2(q + i), _mm256_loadu_ps((const float *)(scales + 4 * i))));
    widen_scalar(x, q, scales, i, n);
}

AVX2_FN static INLINE void widen_run_avx2(float *x, const int8_t *q, const uint8_t *scale)
{
    __m256 s = _mm256_castsi256_ps(_mm256_set1_epi32((int)load32(scale)));

    for (size_t i = 0; i < RUN; i += 8)
        _mm256_storeu_ps(x + i, _mm256_mul_ps(widened_avx2(q + i), s));
}

AVX2_FN static void pack_avx2(uint8_t *row, const float *x,
                              const struct hapi_i8 *f){PACK(max_avx2, quantize_avx2, run_avx2)}

AVX2_FN static void unpack_avx2(float *x, const uint8_t *row,
                                const struct hapi_i8 *f){UNPACK(widen_avx2, widen_run_avx2)}

/* ------------------------------------------------------------------ AVX-512: masks instead of tails */

AVX512_FN static INLINE __mmask16 first(size_t n)
{
    return (__mmask16)(n < 16 ? (1u << n) - 1 : 0xffff);
}

AVX512_FN static INLINE __m512i magnitude_avx512(__mmask16 k, const float *x)
{
    return _mm512_and_epi32(_mm512_maskz_loadu_epi32(k, x), _mm512_set1_epi32((int)MAGNITUDE));
}

AVX512_FN static INLINE void max_avx512(uint32_t *max, const float *x, size_t n)
{
    for (size_t i = 0; i < n; i += 16) {
        __mmask16 k = first(n - i);
        __m512i m = _mm512_max_epi32(_mm512_maskz_loadu_epi32(k, max + i), magnitude_avx512(k, x + i));
        _mm512_mask_storeu_epi32(max + i, k, m);
    }
}

AVX512_FN static INLINE __m128i sixteen_avx512(__m512 x, __m512 inverse)
{
    __m512i v =
        _mm512_cvt_roundps_epi32(_mm512_mul_ps(x, inverse), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    return _mm512_cvtsepi32_epi8(v);
}

AVX512_FN static INLINE void quantize_avx512(int8_t *q, const float *x, const float *inverse, size_t n)
{
    size_t i = 0;

    for (; i + 16 <= n; i += 16)
        _mm_storeu_si128((void *)(q + i),
                         sixteen_avx512(_mm512_loadu_ps(x + i), _mm512_loadu_ps(inverse + i)));
    if (i < n) {
        __mmask16 k = first(n - i);
        __m512 v = _mm512_mul_ps(_mm512_maskz_loadu_ps(k, x + i), _mm512_maskz_loadu_ps(k, inverse + i));
        _mm512_mask_cvtsepi32_storeu_epi8(q + i, k, _mm512_cvtps_epi32(v));
    }
}

AVX512_FN static INLINE void run_avx512(uint8_t *scale, int8_t *q, const float *x)
{
    __m512 v[RUN / 16];
    __m512i m = _mm512_setzero_si512();
    float inverse;
    uint32_t max;

    for (size_t i = 0; i < RUN / 16; i++) {
        v[i] = _mm512_loadu_ps(x + 16 * i);
        m = _mm512_max_epi32(m,
                             _mm512_and_epi32(_mm512_castps_si512(v[i]), _mm512_set1_epi32((int)MAGNITUDE)));
    }
    max = (uint32_t)_mm512_reduce_max_epi32(m);
    if (!scales_finish(scale, &inverse, &max, 1)) {
        memset(q, 0, RUN);
        return;
    }
    for (size_t i = 0; i < RUN / 16; i++)
        _mm_storeu_si128((void *)(q + 16 * i), sixteen_avx512(v[i], _mm512_set1_ps(inverse)));
}

AVX512_FN static INLINE __m512 widened_avx512(const int8_t *q)
{
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const void *)q)));
}

AVX512_FN static INLINE void widen_avx512(float *x, const int8_t *q, const uint8_t *scales, size_t n)
{
    size_t i = 0;

    for (; i + 16 <= n; i += 16)
        _mm512_storeu_ps(x + i, _mm512_mul_ps(widened_avx512(q + i), _mm512_loadu_ps(scales + 4 * i)));
    widen_scalar(x, q, scales, i, n);
}

AVX512_FN static INLINE void widen_run_avx512(float *x, const int8_t *q, const uint8_t *scale)
{
    __m512 s = _mm512_castsi512_ps(_mm512_set1_epi32((int)load32(scale)));

    for (size_t i = 0; i < RUN; i += 16)
        _mm512_storeu_ps(x + i, _mm512_mul_ps(widened_avx512(q + i), s));
}

AVX512_FN static void pack_avx512(uint8_t *row, const float *x,
                                  const struct hapi_i8 *f){PACK(max_avx512, quantize_avx512, run_avx512)}

AVX512_FN static void unpack_avx512(float *x, const uint8_t *row, const struct hapi_i8 *f)
{
    UNPACK(widen_avx512, widen_run_avx512)
}
#endif

/* ------------------------------------------------------------------ which of them */

/* Rows that are checked at once: a first cache keeps them from one pass to the other, and the checksum of a
 * short row is mostly its tail. A loop of both at once, as for f16, would save 0.03 ns an element. */
static size_t rows_at_once(size_t bytes)
{
    enum { CHECKED = 16 << 10 };
    return bytes < CHECKED ? CHECKED / bytes : 1;
}

static void pack_row(enum hapi_way way, uint8_t *row, const float *x, const struct hapi_i8 *f)
{
#if defined(__x86_64__)
    if (way == HAPI_WAY_AVX512) {
        pack_avx512(row, x, f);
        return;
    }
    if (way == HAPI_WAY_AVX2) {
        pack_avx2(row, x, f);
        return;
    }
#endif
    (void)way;
    pack_scalar(row, x, f);
}

void hapi_i8_pack_by(enum hapi_way way, void *rows, const float *x, const struct hapi_i8 *f, size_t n,
                     uint32_t *crc)
{
    size_t bytes = hapi_i8_row(f), most = rows_at_once(bytes);
    uint8_t *row = rows;

    for (size_t i = 0, k; i < n; i += k, row += k * bytes) {
        k = n - i < most ? n - i : most;
        for (size_t r = 0; r < k; r++, x += f->elements)
            pack_row(way, row + r * bytes, x, f);
        if (crc)
            *crc = hapi_crc32c(*crc, row, k * bytes);
    }
}

static bool scales_good(const uint8_t *scales, size_t n)
{
    uint32_t bad = 0;

    for (size_t i = 0; i < n; i++) {
        uint32_t u = load32(scales + 4 * i);
        bad |= (u - SCALE_MIN > SCALE_MAX - SCALE_MIN) & (u != 0) & (u != QUIET_NAN);
    }
    return !bad;
}

static int unpack_row(enum hapi_way way, float *x, const uint8_t *row, const struct hapi_i8 *f)
{
    if (!scales_good(row, f->scales))
        return HAPI_EPROTO;
#if defined(__x86_64__)
    if (way == HAPI_WAY_AVX512) {
        unpack_avx512(x, row, f);
        return HAPI_OK;
    }
    if (way == HAPI_WAY_AVX2) {
        unpack_avx2(x, row, f);
        return HAPI_OK;
    }
#endif
    (void)way;
    unpack_scalar(x, row, f);
    return HAPI_OK;
}

int hapi_i8_unpack_by(enum hapi_way way, float *x, const void *rows, const struct hapi_i8 *f, size_t n,
                      uint32_t *crc)
{
    size_t bytes = hapi_i8_row(f), most = rows_at_once(bytes);
    const uint8_t *row = rows;
    int rc = HAPI_OK;

    for (size_t i = 0, k; i < n && !rc; i += k, row += k * bytes) {
        k = n - i < most ? n - i : most;
        if (crc)
            *crc = hapi_crc32c(*crc, row, k * bytes);
        for (size_t r = 0; r < k && !rc; r++, x += f->elements)
            rc = unpack_row(way, x, row + r * bytes, f);
    }
    return rc;
}

void hapi_i8_pack(void *rows, const float *x, const struct hapi_i8 *f, size_t n, uint32_t *crc)
{
    hapi_i8_pack_by(hapi_way_best(), rows, x, f, n, crc);
}

int hapi_i8_unpack(float *x, const void *rows, const struct hapi_i8 *f, size_t n, uint32_t *crc)
{
    return hapi_i8_unpack_by(hapi_way_best(), x, rows, f, n, crc);
}
