/* Compiled for AVX-512 (see CMakeLists.txt); nothing here is called before hapi_vector_usable() has said yes.
 */
#include "vector.h"

#include <immintrin.h>

#define INLINE static inline __attribute__((always_inline))

/* ------------------------------------------------------------------ elements */

/* A row is whole vectors, then one that is cut short: loops name both, so that masks are constants in the
 * first (a mask made in each turn costs as much as the arithmetic). */
#define WHOLE ((__mmask16)0xffff)

INLINE __mmask16 tail(int64_t n)
{
    return (__mmask16)((1u << n) - 1);
}

INLINE bool whole(__mmask16 m)
{
    return __builtin_constant_p(m) && m == WHOLE;
}

INLINE __m512 load(const void *p, int64_t at, enum hapi_dtype dtype, __mmask16 m)
{
    if (dtype == HAPI_F32)
        return whole(m) ? _mm512_loadu_ps((const float *)p + at)
                        : _mm512_maskz_loadu_ps(m, (const float *)p + at);
    const uint16_t *q = (const uint16_t *)p + at;
    __m256i h = whole(m) ? _mm256_loadu_si256((const void *)q) : _mm256_maskz_loadu_epi16(m, q);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
}

INLINE void store(void *p, int64_t at, enum hapi_dtype dtype, __mmask16 m, __m512 v)
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

/* ------------------------------------------------------------------ functions */

INLINE __m512 set(float v)
{
    return _mm512_set1_ps(v);
}

/* e^x: 2^n e^f with |f| <= ln 2 / 2. The polynomial is the Taylor series of e^f, degree 6: its rest is below
 * 2^-23 there. x is cut to where the result is a normal number. */
INLINE __m512 exp_of(__m512 x)
{
    x = _mm512_max_ps(_mm512_min_ps(x, set(88.0F)), set(-87.0F));
    __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, set(1.44269504F)), 0);
    __m512 f = _mm512_fnmadd_ps(n, set(0.693359375F), x);
    f = _mm512_fnmadd_ps(n, set(-2.12194440e-4F), f);
    __m512 p = _mm512_fmadd_ps(set(1.0F / 720), f, set(1.0F / 120));
    p = _mm512_fmadd_ps(p, f, set(1.0F / 24));
    p = _mm512_fmadd_ps(p, f, set(1.0F / 6));
    p = _mm512_fmadd_ps(p, f, set(0.5F));
    p = _mm512_fmadd_ps(p, f, set(1.0F));
    p = _mm512_fmadd_ps(p, f, set(1.0F));
    return _mm512_scalef_ps(p, n);
}

/* 1 / d for normal d: the CPU's 14 bits and one step of Newton. */
INLINE __m512 reciprocal(__m512 d)
{
    __m512 r = _mm512_rcp14_ps(d);
    return _mm512_mul_ps(r, _mm512_fnmadd_ps(d, r, set(2.0F)));
}

INLINE __m512 sigmoid(__m512 x)
{
    return reciprocal(_mm512_add_ps(exp_of(_mm512_sub_ps(_mm512_setzero_ps(), x)), set(1.0F)));
}

/* x Phi(x) = max(x, 0) - |x| Q / 2, Q = erfc(|x| / sqrt 2) by Abramowitz and Stegun, 7.1.26: error
 * below 1.5e-7. */
INLINE __m512 gelu(__m512 x)
{
    __m512 a = _mm512_abs_ps(x), z = _mm512_mul_ps(a, set(0.70710678F));
    __m512 t = reciprocal(_mm512_fmadd_ps(z, set(0.3275911F), set(1.0F)));
    __m512 p = _mm512_fmadd_ps(set(1.061405429F), t, set(-1.453152027F));
    p = _mm512_fmadd_ps(p, t, set(1.421413741F));
    p = _mm512_fmadd_ps(p, t, set(-0.284496736F));
    p = _mm512_fmadd_ps(p, t, set(0.254829592F));
    p = _mm512_mul_ps(p, t);
    __m512 q = _mm512_mul_ps(p, exp_of(_mm512_fnmadd_ps(z, z, _mm512_setzero_ps())));
    __m512 half = _mm512_mul_ps(_mm512_mul_ps(a, set(0.5F)), q);
    return _mm512_sub_ps(_mm512_max_ps(x, _mm512_setzero_ps()), half);
}

/* For results that are rounded to bf16, whose last place is 2^-8: half of the arithmetic. */

/* 2^t within 8e-5, relative, by a polynomial in t - floor(t); 0 and infinity beyond what f32 holds. */
INLINE __m512 exp2_coarse(__m512 t)
{
    __m512 f = _mm512_reduce_ps(t, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
    __m512 p = _mm512_fmadd_ps(set(0.07802411F), f, set(0.22606790F));
    p = _mm512_fmadd_ps(p, f, set(0.69583315F));
    p = _mm512_fmadd_ps(p, f, set(0.99992526F));
    return _mm512_scalef_ps(p, t); /* by 2^floor(t) */
}

/* 1 / (1 + 2^t) */
INLINE __m512 sigmoid_coarse(__m512 t)
{
    return _mm512_rcp14_ps(_mm512_add_ps(exp2_coarse(t), set(1.0F)));
}

/* Phi(x) as a sigmoid of an odd polynomial, fitted to ln(Phi / (1 - Phi)) on [0, 5]: x Phi(x) is off by at
 * most 1.1e-4, and by 1e-3 of itself for x > -3. */
INLINE __m512 gelu_coarse(__m512 x)
{
    __m512 s = _mm512_mul_ps(x, x);
    __m512 p = _mm512_fmadd_ps(set(-8.729654e-06F), s, set(0.0013025838F));
    p = _mm512_fmadd_ps(p, s, set(-0.10854431F));
    p = _mm512_fmadd_ps(p, s, set(-2.2989644F));
    return _mm512_mul_ps(x, sigmoid_coarse(_mm512_mul_ps(x, p)));
}

INLINE __m512 act_coarse(enum hapi_act_kind kind, __m512 x)
{
    if (kind == HAPI_ACT_GELU)
        return gelu_coarse(x);
    __m512 y = sigmoid_coarse(_mm512_mul_ps(x, set(-1.44269504F)));
    return kind == HAPI_ACT_SWISH ? _mm512_mul_ps(x, y) : y;
}

INLINE bool has_exp(enum hapi_act_kind kind)
{
    return kind == HAPI_ACT_SIGMOID || kind == HAPI_ACT_SWISH || kind == HAPI_ACT_GELU;
}

INLINE __m512 clip(__m512 x, __m512 low, __m512 high)
{
    return _mm512_min_ps(_mm512_max_ps(x, low), high);
}

INLINE __m512 act_of(enum hapi_act_kind kind, __m512 x, __m512 alpha, __m512 beta)
{
    switch (kind) {
    case HAPI_ACT_RELU: /* +0 for what is negative when alpha is 0, as oneDNN's post-op */
        return _mm512_fmadd_ps(_mm512_min_ps(x, _mm512_setzero_ps()), alpha,
                               _mm512_max_ps(x, _mm512_setzero_ps()));
    case HAPI_ACT_CLIP:
        return clip(x, alpha, beta);
    case HAPI_ACT_SIGMOID:
        return sigmoid(x);
    case HAPI_ACT_SWISH:
        return _mm512_mul_ps(x, sigmoid(x));
    case HAPI_ACT_GELU:
        return gelu(x);
    default:
        return x;
    }
}

/* ------------------------------------------------------------------ rows */

INLINE void affine_one(const struct hapi_affine *a, void *y, const void *x, int64_t line, int64_t c,
                       __mmask16 m, enum hapi_act_kind kind, bool scaled, enum hapi_dtype src,
                       enum hapi_dtype dst)
{
    __m512 v = load(x, c, src, m);

    if (scaled) {
        __m512 k = load(a->scale, line + c, a->scale_dtype == HAPI_BF16 ? HAPI_BF16 : HAPI_F32, m);
        v = a->shift ? _mm512_fmadd_ps(v, k, load(a->shift, c, HAPI_F32, m)) : _mm512_mul_ps(v, k);
    }
    store(y, c, dst, m,
          dst == HAPI_BF16 && has_exp(kind) ? act_coarse(kind, v)
                                            : act_of(kind, v, set(a->act.alpha), set(a->act.beta)));
}

INLINE void *row(const void *p, int64_t r, int64_t stride, enum hapi_dtype dtype)
{
    return (unsigned char *)(uintptr_t)p + (size_t)(r * stride) * (dtype == HAPI_F32 ? 4 : 2);
}

/* One loop for each combination of what is constant in it: the compiler leaves out the rest. */
INLINE void affine(const struct hapi_affine *a, void *y, const void *x, enum hapi_act_kind kind, bool scaled,
                   enum hapi_dtype src, enum hapi_dtype dst)
{
    const struct hapi_rows *rows = &a->rows;
    int64_t c;

    for (int64_t r = 0; r < rows->rows; r++) {
        int64_t line = a->group ? r / a->group * rows->cols : 0;
        const void *from = row(x, r, rows->from, src);
        void *to = row(y, r, rows->to, dst);
        for (c = 0; c + 16 <= rows->cols; c += 16)
            affine_one(a, to, from, line, c, WHOLE, kind, scaled, src, dst);
        if (c < rows->cols)
            affine_one(a, to, from, line, c, tail(rows->cols - c), kind, scaled, src, dst);
    }
}

INLINE void affine_act(const struct hapi_affine *a, void *y, const void *x, bool scaled, enum hapi_dtype src,
                       enum hapi_dtype dst)
{
    switch (a->act.kind) {
    case HAPI_ACT_RELU:
        affine(a, y, x, HAPI_ACT_RELU, scaled, src, dst);
        break;
    case HAPI_ACT_CLIP:
        affine(a, y, x, HAPI_ACT_CLIP, scaled, src, dst);
        break;
    case HAPI_ACT_SIGMOID:
        affine(a, y, x, HAPI_ACT_SIGMOID, scaled, src, dst);
        break;
    case HAPI_ACT_SWISH:
        affine(a, y, x, HAPI_ACT_SWISH, scaled, src, dst);
        break;
    case HAPI_ACT_GELU:
        affine(a, y, x, HAPI_ACT_GELU, scaled, src, dst);
        break;
    default:
        affine(a, y, x, HAPI_ACT_NONE, scaled, src, dst);
    }
}

void hapi_vector_affine(const struct hapi_affine *given, void *y, const void *x)
{
    struct hapi_affine dense = *given;
    const struct hapi_affine *a = &dense;
    struct hapi_rows *r = &dense.rows;
    bool bf16 = r->src == HAPI_BF16;

    /* Without anything per column all is one row: no tails in between. */
    if (!dense.scale && r->from == r->cols && r->to == r->cols)
        *r = (struct hapi_rows){1, r->rows * r->cols, 0, 0, r->src, r->dst};
    if (r->src != r->dst) {
        if (bf16)
            affine_act(a, y, x, dense.scale, HAPI_BF16, HAPI_F32);
        else
            affine_act(a, y, x, dense.scale, HAPI_F32, HAPI_BF16);
    } else if (dense.scale) {
        if (bf16)
            affine_act(a, y, x, true, HAPI_BF16, HAPI_BF16);
        else
            affine_act(a, y, x, true, HAPI_F32, HAPI_F32);
    } else {
        if (bf16)
            affine_act(a, y, x, false, HAPI_BF16, HAPI_BF16);
        else
            affine_act(a, y, x, false, HAPI_F32, HAPI_F32);
    }
}

/* ------------------------------------------------------------------ softmax */

/* One row with what is added to it. */
struct logits {
    const void *x;
    const float *mask[HAPI_MASKS];
    enum hapi_dtype dtype;
};

INLINE __m512 logit(const struct logits *l, int64_t c, __mmask16 m)
{
    __m512 v = load(l->x, c, l->dtype, m);

    for (int k = 0; k < HAPI_MASKS; k++)
        if (l->mask[k])
            v = _mm512_add_ps(v, load(l->mask[k], c, HAPI_F32, m));
    return v;
}

INLINE struct logits logits_of(const struct hapi_softmax *s, const void *x, const float *const *masks,
                               int64_t r, enum hapi_dtype src)
{
    struct logits l = {row(x, r, s->rows.from, src), {NULL}, src};

    for (int k = 0; k < HAPI_MASKS && masks; k++) {
        const struct hapi_mask *m = &s->mask[k];
        if (masks[k])
            l.mask[k] = masks[k] + (r / m->group % m->count * m->block + r % m->block) * s->rows.cols;
    }
    return l;
}

/* Rows of up to SHORT columns stay in registers between the passes, of up to KEEP in the stack's cache lines,
 * others are made again. */
enum { SHORT = 64, KEEP = 1024 };

/* e^(v - top), for bf16 as coarsely as that holds. */
INLINE __m512 softmax_exp(__m512 v, __m512 top, enum hapi_dtype dst)
{
    v = _mm512_sub_ps(v, top);
    return dst == HAPI_BF16 ? exp2_coarse(_mm512_mul_ps(v, set(1.44269504F))) : exp_of(v);
}

/* A row of 16 (n - 1) + 1 to 16 n columns stays in registers; n is constant, and m the mask of the last 16.
 */
INLINE void softmax_short(void *y, const struct logits *l, int n, __mmask16 m, enum hapi_dtype dst)
{
    __m512 v[SHORT / 16], top = set(-3e38F), sum = _mm512_setzero_ps();

    for (int k = 0; k < n; k++) {
        v[k] = logit(l, 16 * k, k < n - 1 ? WHOLE : m);
        top = k < n - 1 ? _mm512_max_ps(top, v[k]) : _mm512_mask_max_ps(top, m, top, v[k]);
    }
    top = set(_mm512_reduce_max_ps(top));
    for (int k = 0; k < n; k++) {
        v[k] = softmax_exp(v[k], top, dst);
        sum = k < n - 1 ? _mm512_add_ps(sum, v[k]) : _mm512_mask_add_ps(sum, m, sum, v[k]);
    }
    __m512 by = set(1 / _mm512_reduce_add_ps(sum));
    for (int k = 0; k < n; k++)
        store(y, 16 * k, dst, k < n - 1 ? WHOLE : m, _mm512_mul_ps(v[k], by));
}

INLINE float softmax_top(const struct logits *l, int64_t n, float *kept)
{
    __m512 top = set(-3e38F), v;
    int64_t c;

    for (c = 0; c + 16 <= n; c += 16) {
        v = logit(l, c, WHOLE);
        if (n <= KEEP)
            _mm512_store_ps(kept + c, v);
        top = _mm512_max_ps(top, v);
    }
    if (c < n) {
        v = logit(l, c, tail(n - c));
        if (n <= KEEP)
            _mm512_store_ps(kept + c, v);
        top = _mm512_mask_max_ps(top, tail(n - c), top, v);
    }
    return _mm512_reduce_max_ps(top);
}

INLINE __m512 softmax_next(const struct logits *l, int64_t n, float *kept, int64_t c, __m512 top, __mmask16 m,
                           enum hapi_dtype dst)
{
    __m512 v = softmax_exp(n <= KEEP ? _mm512_load_ps(kept + c) : logit(l, c, m), top, dst);

    if (n <= KEEP)
        _mm512_store_ps(kept + c, v);
    return v;
}

INLINE void softmax_long(void *y, const struct logits *l, int64_t n, enum hapi_dtype dst)
{
    _Alignas(64) float kept[KEEP];
    __m512 top = set(softmax_top(l, n, kept)), sum = _mm512_setzero_ps();
    int64_t c;

    for (c = 0; c + 16 <= n; c += 16)
        sum = _mm512_add_ps(sum, softmax_next(l, n, kept, c, top, WHOLE, dst));
    if (c < n)
        sum = _mm512_mask_add_ps(sum, tail(n - c), sum, softmax_next(l, n, kept, c, top, tail(n - c), dst));
    __m512 by = set(1 / _mm512_reduce_add_ps(sum)), v;
    for (c = 0; c + 16 <= n; c += 16) {
        v = n <= KEEP ? _mm512_load_ps(kept + c) : softmax_next(l, n, kept, c, top, WHOLE, dst);
        store(y, c, dst, WHOLE, _mm512_mul_ps(v, by));
    }
    if (c < n) {
        v = n <= KEEP ? _mm512_load_ps(kept + c) : softmax_next(l, n, kept, c, top, tail(n - c), dst);
        store(y, c, dst, tail(n - c), _mm512_mul_ps(v, by));
    }
}

/* n: as of softmax_short(); 0: any width. */
INLINE void softmax_rows(const struct hapi_softmax *s, void *y, const void *x, const float *const *masks,
                         int n, enum hapi_dtype src, enum hapi_dtype dst)
{
    const struct hapi_rows *rows = &s->rows;

    for (int64_t r = 0; r < rows->rows; r++) {
        const struct logits l = logits_of(s, x, masks, r, src);
        if (n)
            softmax_short(row(y, r, rows->to, dst), &l, n, tail(rows->cols - 16 * (n - 1)), dst);
        else
            softmax_long(row(y, r, rows->to, dst), &l, rows->cols, dst);
    }
}

INLINE void softmax(const struct hapi_softmax *s, void *y, const void *x, const float *const *masks,
                    enum hapi_dtype src, enum hapi_dtype dst)
{
    switch (s->rows.cols <= SHORT ? (s->rows.cols + 15) / 16 : 0) {
    case 1:
        softmax_rows(s, y, x, masks, 1, src, dst);
        break;
    case 2:
        softmax_rows(s, y, x, masks, 2, src, dst);
        break;
    case 3:
        softmax_rows(s, y, x, masks, 3, src, dst);
        break;
    case 4:
        softmax_rows(s, y, x, masks, 4, src, dst);
        break;
    default:
        softmax_rows(s, y, x, masks, 0, src, dst);
    }
}

void hapi_vector_softmax(const struct hapi_softmax *s, void *y, const void *x, const float *const *masks)
{
    if (s->rows.src == HAPI_F32 && s->rows.dst == HAPI_F32)
        softmax(s, y, x, masks, HAPI_F32, HAPI_F32);
    else if (s->rows.src == HAPI_F32)
        softmax(s, y, x, masks, HAPI_F32, HAPI_BF16);
    else if (s->rows.dst == HAPI_F32)
        softmax(s, y, x, masks, HAPI_BF16, HAPI_F32);
    else
        softmax(s, y, x, masks, HAPI_BF16, HAPI_BF16);
}

/* ------------------------------------------------------------------ layer normalisation */

INLINE __m512 deviation(const void *x, int64_t c, enum hapi_dtype src, __m512 mean, __mmask16 m)
{
    return _mm512_maskz_sub_ps(m, load(x, c, src, m), mean);
}

INLINE __m512 sum_add(__m512 sum, __m512 v, bool squares)
{
    return squares ? _mm512_fmadd_ps(v, v, sum) : _mm512_add_ps(sum, v);
}

/* Of x - mean, or of its squares. Four sums at a time: one alone waits for the adder. */
INLINE float row_sum(const void *x, int64_t n, enum hapi_dtype src, __m512 mean, bool squares)
{
    __m512 sum[4] = {_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps()};
    int64_t c;

    for (c = 0; c + 64 <= n; c += 64)
        for (int k = 0; k < 4; k++)
            sum[k] = sum_add(sum[k], deviation(x, c + 16 * k, src, mean, WHOLE), squares);
    for (; c + 16 <= n; c += 16)
        sum[0] = sum_add(sum[0], deviation(x, c, src, mean, WHOLE), squares);
    if (c < n)
        sum[1] = sum_add(sum[1], deviation(x, c, src, mean, tail(n - c)), squares);
    return _mm512_reduce_add_ps(_mm512_add_ps(_mm512_add_ps(sum[0], sum[1]), _mm512_add_ps(sum[2], sum[3])));
}

/* scale and shift: lines, or one number for all columns. */
INLINE void layer_norm_one(const float *scale, const float *shift, bool line, void *y, const void *x,
                           int64_t c, __m512 mean, __m512 by, enum hapi_dtype dtype, __mmask16 m)
{
    __m512 v = _mm512_mul_ps(deviation(x, c, dtype, mean, m), by);

    if (scale)
        v = _mm512_mul_ps(v, line ? load(scale, c, HAPI_F32, m) : set(*scale));
    if (shift)
        v = _mm512_add_ps(v, line ? load(shift, c, HAPI_F32, m) : set(*shift));
    store(y, c, dtype, m, v);
}

/* Columns [c, end). */
INLINE void layer_norm_span(const float *scale, const float *shift, bool line, void *y, const void *x,
                            int64_t c, int64_t end, __m512 mean, __m512 by, enum hapi_dtype dtype)
{
    for (; c + 16 <= end; c += 16)
        layer_norm_one(scale, shift, line, y, x, c, mean, by, dtype, WHOLE);
    if (c < end)
        layer_norm_one(scale, shift, line, y, x, c, mean, by, dtype, tail(end - c));
}

INLINE void layer_norm(const struct hapi_layer_norm *l, void *out, const void *in, enum hapi_dtype dtype)
{
    const struct hapi_rows *rows = &l->rows;
    int64_t n = rows->cols, planes = l->plane ? n / l->plane : 0;

    for (int64_t r = 0; r < rows->rows; r++) {
        const void *x = row(in, r, rows->from, dtype);
        void *y = row(out, r, rows->to, dtype);
        __m512 mean = set(row_sum(x, n, dtype, _mm512_setzero_ps(), false) / (float)n);
        float var = row_sum(x, n, dtype, mean, true) / (float)n;
        __m512 by = _mm512_div_ps(set(1.0F), _mm512_sqrt_ps(set(var + l->epsilon)));
        if (!planes)
            layer_norm_span(l->scale, l->shift, true, y, x, 0, n, mean, by, dtype);
        for (int64_t i = 0; i < planes; i++) {
            int64_t k = r % l->period * planes + i;
            layer_norm_span(l->scale ? l->scale + k : NULL, l->shift ? l->shift + k : NULL, false, y, x,
                            i * l->plane, (i + 1) * l->plane, mean, by, dtype);
        }
    }
}

void hapi_vector_layer_norm(const struct hapi_layer_norm *l, void *y, const void *x)
{
    if (l->rows.src == HAPI_BF16)
        layer_norm(l, y, x, HAPI_BF16);
    else
        layer_norm(l, y, x, HAPI_F32);
}
