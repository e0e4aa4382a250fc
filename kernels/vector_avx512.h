/* Vectors of 16 f32 for vector.c: AVX-512 F, BW, DQ, VL and, for bf16, AVX-512 BF16. */
#ifndef HAPI_KERNELS_VECTOR_AVX512_H
#define HAPI_KERNELS_VECTOR_AVX512_H

#include <immintrin.h>

#include "vector.h"

#define INLINE static inline __attribute__((always_inline))
#define LANES 16
#define VECTOR_BF16 1
#define VECTOR_OPS hapi_vector_avx512
#define VECTOR_CONV NULL

typedef __m512 vec;
typedef __mmask16 mask;

#define WHOLE ((mask)0xffff)

/* The first n lanes, 0 < n <= LANES. */
INLINE mask tail(int64_t n)
{
    return (mask)((1u << n) - 1);
}

INLINE bool whole(mask m)
{
    return __builtin_constant_p(m) && m == WHOLE;
}

/* Element `at` and those that follow it; lanes out of the mask: 0. */
INLINE vec load(const void *p, int64_t at, enum hapi_dtype dtype, mask m)
{
    if (dtype == HAPI_F32)
        return whole(m) ? _mm512_loadu_ps((const float *)p + at)
                        : _mm512_maskz_loadu_ps(m, (const float *)p + at);
    const uint16_t *q = (const uint16_t *)p + at;
    __m256i h = whole(m) ? _mm256_loadu_si256((const void *)q) : _mm256_maskz_loadu_epi16(m, q);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
}

INLINE void store(void *p, int64_t at, enum hapi_dtype dtype, mask m, vec v)
{
    float *f = (float *)p + at;
    uint16_t *h = (uint16_t *)p + at;

    if (dtype == HAPI_F32 && whole(m))
        _mm512_storeu_ps(f, v);
    else if (dtype == HAPI_F32)
        _mm512_mask_storeu_ps(f, m, v);
    else if (whole(m))
        _mm256_storeu_si256((void *)h, (__m256i)_mm512_cvtneps_pbh(v));
    else
        _mm256_mask_storeu_epi16(h, m, (__m256i)_mm512_cvtneps_pbh(v));
}

/* Of aligned memory. */
INLINE vec fetch(const float *p)
{
    return _mm512_load_ps(p);
}

INLINE void keep(float *p, vec v)
{
    _mm512_store_ps(p, v);
}

INLINE vec set(float v)
{
    return _mm512_set1_ps(v);
}

INLINE vec zero(void)
{
    return _mm512_setzero_ps();
}

INLINE vec add(vec a, vec b)
{
    return _mm512_add_ps(a, b);
}

INLINE vec sub(vec a, vec b)
{
    return _mm512_sub_ps(a, b);
}

INLINE vec mul(vec a, vec b)
{
    return _mm512_mul_ps(a, b);
}

INLINE vec quotient(vec a, vec b)
{
    return _mm512_div_ps(a, b);
}

/* a b + c */
INLINE vec fmadd(vec a, vec b, vec c)
{
    return _mm512_fmadd_ps(a, b, c);
}

/* c - a b */
INLINE vec fnmadd(vec a, vec b, vec c)
{
    return _mm512_fnmadd_ps(a, b, c);
}

INLINE vec least(vec a, vec b)
{
    return _mm512_min_ps(a, b);
}

INLINE vec most(vec a, vec b)
{
    return _mm512_max_ps(a, b);
}

INLINE vec magnitude(vec a)
{
    return _mm512_abs_ps(a);
}

INLINE vec root(vec a)
{
    return _mm512_sqrt_ps(a);
}

/* To the nearest integer, ties to even. */
INLINE vec nearest(vec a)
{
    return _mm512_roundscale_ps(a, 0);
}

/* a 2^floor(n) */
INLINE vec scale_by(vec a, vec n)
{
    return _mm512_scalef_ps(a, n);
}

/* t - floor(t) */
INLINE vec fraction(vec t)
{
    return _mm512_reduce_ps(t, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
}

/* 1 / d within 2^-14 */
INLINE vec reciprocal_coarse(vec d)
{
    return _mm512_rcp14_ps(d);
}

/* 1 / d for normal d: the CPU's 14 bits and one step of Newton. */
INLINE vec reciprocal(vec d)
{
    vec r = reciprocal_coarse(d);
    return mul(r, fnmadd(d, r, set(2.0F)));
}

/* In the mask's lanes; elsewhere a, or 0. */
INLINE vec mask_most(vec a, mask m, vec b)
{
    return _mm512_mask_max_ps(a, m, a, b);
}

INLINE vec mask_add(vec a, mask m, vec b)
{
    return _mm512_mask_add_ps(a, m, a, b);
}

INLINE vec mask_sub_or_zero(mask m, vec a, vec b)
{
    return _mm512_maskz_sub_ps(m, a, b);
}

/* Over all lanes. */
INLINE float sum_of(vec v)
{
    return _mm512_reduce_add_ps(v);
}

INLINE float most_of(vec v)
{
    return _mm512_reduce_max_ps(v);
}

#endif
