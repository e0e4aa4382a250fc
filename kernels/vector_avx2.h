/* Vectors of 8 f32 for vector.c: AVX2 and FMA. No bf16: dtypes are HAPI_F32. What the functions do, and to
 * which lanes: vector_avx512.h. */
#ifndef HAPI_KERNELS_VECTOR_AVX2_H
#define HAPI_KERNELS_VECTOR_AVX2_H

#include <immintrin.h>

#include "vector.h"

#define INLINE static inline __attribute__((always_inline))
#define LANES 8
#define VECTOR_BF16 0
#define VECTOR_OPS hapi_vector_avx2
#define VECTOR_CONV hapi_conv_avx2

/* vector_conv.c */
void hapi_conv_avx2(const struct hapi_conv *c, float *y, const float *x, const float *weights,
                    const float *bias, const float *plus);

typedef __m256 vec;
typedef int mask; /* how many of the first lanes */

#define WHOLE LANES

INLINE mask tail(int64_t n)
{
    return (mask)n;
}

INLINE bool whole(mask m)
{
    return __builtin_constant_p(m) && m == WHOLE;
}

INLINE __m256i lanes(mask m)
{
    static const int32_t ones[2 * LANES] = {-1, -1, -1, -1, -1, -1, -1, -1};
    return _mm256_loadu_si256((const void *)(ones + LANES - m));
}

INLINE vec load(const void *p, int64_t at, enum hapi_dtype dtype, mask m)
{
    const float *f = (const float *)p + at;

    (void)dtype;
    return whole(m) ? _mm256_loadu_ps(f) : _mm256_maskload_ps(f, lanes(m));
}

/* Tails in pieces of 4, 2 and 1: a masked store takes tens of cycles on AMD's. */
INLINE void store(void *p, int64_t at, enum hapi_dtype dtype, mask m, vec v)
{
    float *f = (float *)p + at;
    __m128 h = _mm256_castps256_ps128(v);

    (void)dtype;
    if (m == WHOLE) {
        _mm256_storeu_ps(f, v);
        return;
    }
    if (m & 4) {
        _mm_storeu_ps(f, h);
        h = _mm256_extractf128_ps(v, 1);
        f += 4;
    }
    if (m & 2) {
        _mm_storel_pi((void *)f, h);
        h = _mm_movehl_ps(h, h);
        f += 2;
    }
    if (m & 1)
        _mm_store_ss(f, h);
}

INLINE vec fetch(const float *p)
{
    return _mm256_load_ps(p);
}

INLINE void keep(float *p, vec v)
{
    _mm256_store_ps(p, v);
}

INLINE vec set(float v)
{
    return _mm256_set1_ps(v);
}

INLINE vec zero(void)
{
    return _mm256_setzero_ps();
}

INLINE vec add(vec a, vec b)
{
    return _mm256_add_ps(a, b);
}

INLINE vec sub(vec a, vec b)
{
    return _mm256_sub_ps(a, b);
}

INLINE vec mul(vec a, vec b)
{
    return _mm256_mul_ps(a, b);
}

INLINE vec quotient(vec a, vec b)
{
    return _mm256_div_ps(a, b);
}

INLINE vec fmadd(vec a, vec b, vec c)
{
    return _mm256_fmadd_ps(a, b, c);
}

INLINE vec fnmadd(vec a, vec b, vec c)
{
    return _mm256_fnmadd_ps(a, b, c);
}

INLINE vec least(vec a, vec b)
{
    return _mm256_min_ps(a, b);
}

INLINE vec most(vec a, vec b)
{
    return _mm256_max_ps(a, b);
}

INLINE vec magnitude(vec a)
{
    return _mm256_andnot_ps(set(-0.0F), a);
}

INLINE vec root(vec a)
{
    return _mm256_sqrt_ps(a);
}

INLINE vec nearest(vec a)
{
    return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

/* n: an integer for which 2^n is a normal number. */
INLINE vec scale_by(vec a, vec n)
{
    __m256i e = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    return mul(a, _mm256_castsi256_ps(_mm256_slli_epi32(e, 23)));
}

/* The CPU's estimate differs between makers, a quotient does not. */
INLINE vec reciprocal(vec d)
{
    return quotient(set(1.0F), d);
}

INLINE vec mask_most(vec a, mask m, vec b)
{
    return _mm256_blendv_ps(a, most(a, b), _mm256_castsi256_ps(lanes(m)));
}

INLINE vec mask_add(vec a, mask m, vec b)
{
    return _mm256_blendv_ps(a, add(a, b), _mm256_castsi256_ps(lanes(m)));
}

INLINE vec mask_sub_or_zero(mask m, vec a, vec b)
{
    vec d = sub(a, b);
    return whole(m) ? d : _mm256_and_ps(d, _mm256_castsi256_ps(lanes(m)));
}

INLINE float sum_of(vec v)
{
    __m128 h = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));

    h = _mm_add_ps(h, _mm_movehl_ps(h, h));
    return _mm_cvtss_f32(_mm_add_ss(h, _mm_movehdup_ps(h)));
}

INLINE float most_of(vec v)
{
    __m128 h = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));

    h = _mm_max_ps(h, _mm_movehl_ps(h, h));
    return _mm_cvtss_f32(_mm_max_ss(h, _mm_movehdup_ps(h)));
}

#endif
