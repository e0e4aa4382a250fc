/* Compiled for each kind of CPU that has kernels of ours (see CMakeLists.txt), by the vectors that it has; a
 * build's functions are called only where hapi_vector_runs() says so. */
#ifdef __AVX512F__
#include "vector_avx512.h"
#else
#include "vector_avx2.h"
#endif

/* A row is whole vectors, then one that is cut short: loops name both, so that masks are constants in the
 * first (a mask made in each turn costs as much as the arithmetic). */

/* ------------------------------------------------------------------ functions */

/* e^x: 2^n e^f with |f| <= ln 2 / 2. The polynomial is the Taylor series of e^f, degree 6: its rest is below
 * 2^-23 there. x is cut to where the result is a normal number. */
INLINE vec exp_of(vec x)
{
    x = most(least(x, set(88.0F)), set(-87.0F));
    vec n = nearest(mul(x, set(1.44269504F)));
    vec f = fnmadd(n, set(0.693359375F), x);
    f = fnmadd(n, set(-2.12194440e-4F), f);
    vec p = fmadd(set(1.0F / 720), f, set(1.0F / 120));
    p = fmadd(p, f, set(1.0F / 24));
    p = fmadd(p, f, set(1.0F / 6));
    p = fmadd(p, f, set(0.5F));
    p = fmadd(p, f, set(1.0F));
    p = fmadd(p, f, set(1.0F));
    return scale_by(p, n);
}

INLINE vec sigmoid(vec x)
{
    return reciprocal(add(exp_of(sub(zero(), x)), set(1.0F)));
}

/* x Phi(x) = max(x, 0) - |x| Q / 2, Q = erfc(|x| / sqrt 2) by Abramowitz and Stegun, 7.1.26: error
 * below 1.5e-7. */
INLINE vec gelu(vec x)
{
    vec a = magnitude(x), z = mul(a, set(0.70710678F));
    vec t = reciprocal(fmadd(z, set(0.3275911F), set(1.0F)));
    vec p = fmadd(set(1.061405429F), t, set(-1.453152027F));
    p = fmadd(p, t, set(1.421413741F));
    p = fmadd(p, t, set(-0.284496736F));
    p = fmadd(p, t, set(0.254829592F));
    p = mul(p, t);
    vec q = mul(p, exp_of(fnmadd(z, z, zero())));
    vec half = mul(mul(a, set(0.5F)), q);
    return sub(most(x, zero()), half);
}

#if VECTOR_BF16
/* For results that are rounded to bf16, whose last place is 2^-8: half of the arithmetic. */

/* 2^t within 8e-5, relative, by a polynomial in t - floor(t); 0 and infinity beyond what f32 holds. */
INLINE vec exp2_coarse(vec t)
{
    vec f = fraction(t);
    vec p = fmadd(set(0.07802411F), f, set(0.22606790F));
    p = fmadd(p, f, set(0.69583315F));
    p = fmadd(p, f, set(0.99992526F));
    return scale_by(p, t); /* by 2^floor(t) */
}

/* 1 / (1 + 2^t) */
INLINE vec sigmoid_coarse(vec t)
{
    return reciprocal_coarse(add(exp2_coarse(t), set(1.0F)));
}

/* Phi(x) as a sigmoid of an odd polynomial, fitted to ln(Phi / (1 - Phi)) on [0, 5]: x Phi(x) is off by at
 * most 1.1e-4, and by 1e-3 of itself for x > -3. */
INLINE vec gelu_coarse(vec x)
{
    vec s = mul(x, x);
    vec p = fmadd(set(-8.729654e-06F), s, set(0.0013025838F));
    p = fmadd(p, s, set(-0.10854431F));
    p = fmadd(p, s, set(-2.2989644F));
    return mul(x, sigmoid_coarse(mul(x, p)));
}

INLINE vec act_coarse(enum hapi_act_kind kind, vec x)
{
    if (kind == HAPI_ACT_GELU)
        return gelu_coarse(x);
    vec y = sigmoid_coarse(mul(x, set(-1.44269504F)));
    return kind == HAPI_ACT_SWISH ? mul(x, y) : y;
}

INLINE bool has_exp(enum hapi_act_kind kind)
{
    return kind == HAPI_ACT_SIGMOID || kind == HAPI_ACT_SWISH || kind == HAPI_ACT_GELU;
}
#endif

INLINE vec clip(vec x, vec low, vec high)
{
    return least(most(x, low), high);
}

/* As exactly as dtype `dst` holds. */
INLINE vec act_of(enum hapi_act_kind kind, vec x, vec alpha, vec beta, enum hapi_dtype dst)
{
#if VECTOR_BF16
    if (dst == HAPI_BF16 && has_exp(kind))
        return act_coarse(kind, x);
#else
    (void)dst;
#endif
    switch (kind) {
    case HAPI_ACT_RELU: /* +0 for what is negative when alpha is 0, as oneDNN's post-op */
        return fmadd(least(x, zero()), alpha, most(x, zero()));
    case HAPI_ACT_CLIP:
        return clip(x, alpha, beta);
    case HAPI_ACT_SIGMOID:
        return sigmoid(x);
    case HAPI_ACT_SWISH:
        return mul(x, sigmoid(x));
    case HAPI_ACT_GELU:
        return gelu(x);
    default:
        return x;
    }
}

/* ------------------------------------------------------------------ rows */

INLINE void affine_one(const struct hapi_affine *a, void *y, const void *x, int64_t line, int64_t c, mask m,
                       enum hapi_act_kind kind, bool scaled, enum hapi_dtype src, enum hapi_dtype dst)
{
    vec v = load(x, c, src, m);

    if (scaled) {
        vec k = load(a->scale, line + c, a->scale_dtype == HAPI_BF16 ? HAPI_BF16 : HAPI_F32, m);
        v = a->shift ? fmadd(v, k, load(a->shift, c, HAPI_F32, m)) : mul(v, k);
    }
    store(y, c, dst, m, act_of(kind, v, set(a->act.alpha), set(a->act.beta), dst));
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
        for (c = 0; c + LANES <= rows->cols; c += LANES)
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

static void rows_affine(const struct hapi_affine *given, void *y, const void *x)
{
    struct hapi_affine dense = *given;
    const struct hapi_affine *a = &dense;
    struct hapi_rows *r = &dense.rows;
    bool bf16 = VECTOR_BF16 && r->src == HAPI_BF16;

    /* Without anything per column all is one row: no tails in between. */
    if (!dense.scale && r->from == r->cols && r->to == r->cols)
        *r = (struct hapi_rows){1, r->rows * r->cols, 0, 0, r->src, r->dst};
    if (VECTOR_BF16 && r->src != r->dst) {
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

INLINE vec logit(const struct logits *l, int64_t c, mask m)
{
    vec v = load(l->x, c, l->dtype, m);

    for (int k = 0; k < HAPI_MASKS; k++)
        if (l->mask[k])
            v = add(v, load(l->mask[k], c, HAPI_F32, m));
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
enum { SHORT = 4 * LANES, KEEP = 1024 };

/* e^(v - top), for bf16 as coarsely as that holds. */
INLINE vec softmax_exp(vec v, vec top, enum hapi_dtype dst)
{
    v = sub(v, top);
#if VECTOR_BF16
    if (dst == HAPI_BF16)
        return exp2_coarse(mul(v, set(1.44269504F)));
#else
    (void)dst;
#endif
    return exp_of(v);
}

/* A row of n vectors stays in registers; n is constant, and m the mask of the last of them. */
INLINE void softmax_short(void *y, const struct logits *l, int n, mask m, enum hapi_dtype dst)
{
    vec v[SHORT / LANES], top = set(-3e38F), sum = zero();

    for (int k = 0; k < n; k++) {
        v[k] = logit(l, LANES * k, k < n - 1 ? WHOLE : m);
        top = k < n - 1 ? most(top, v[k]) : mask_most(top, m, v[k]);
    }
    top = set(most_of(top));
    for (int k = 0; k < n; k++) {
        v[k] = softmax_exp(v[k], top, dst);
        sum = k < n - 1 ? add(sum, v[k]) : mask_add(sum, m, v[k]);
    }
    vec by = set(1 / sum_of(sum));
    for (int k = 0; k < n; k++)
        store(y, LANES * k, dst, k < n - 1 ? WHOLE : m, mul(v[k], by));
}

INLINE float softmax_top(const struct logits *l, int64_t n, float *kept)
{
    vec top = set(-3e38F), v;
    int64_t c;

    for (c = 0; c + LANES <= n; c += LANES) {
        v = logit(l, c, WHOLE);
        if (n <= KEEP)
            keep(kept + c, v);
        top = most(top, v);
    }
    if (c < n) {
        v = logit(l, c, tail(n - c));
        if (n <= KEEP)
            keep(kept + c, v);
        top = mask_most(top, tail(n - c), v);
    }
    return most_of(top);
}

INLINE vec softmax_next(const struct logits *l, int64_t n, float *kept, int64_t c, vec top, mask m,
                        enum hapi_dtype dst)
{
    vec v = softmax_exp(n <= KEEP ? fetch(kept + c) : logit(l, c, m), top, dst);

    if (n <= KEEP)
        keep(kept + c, v);
    return v;
}

INLINE void softmax_long(void *y, const struct logits *l, int64_t n, enum hapi_dtype dst)
{
    _Alignas(64) float kept[KEEP];
    vec top = set(softmax_top(l, n, kept)), sum = zero();
    int64_t c;

    for (c = 0; c + LANES <= n; c += LANES)
        sum = add(sum, softmax_next(l, n, kept, c, top, WHOLE, dst));
    if (c < n)
        sum = mask_add(sum, tail(n - c), softmax_next(l, n, kept, c, top, tail(n - c), dst));
    vec by = set(1 / sum_of(sum)), v;
    for (c = 0; c + LANES <= n; c += LANES) {
        v = n <= KEEP ? fetch(kept + c) : softmax_next(l, n, kept, c, top, WHOLE, dst);
        store(y, c, dst, WHOLE, mul(v, by));
    }
    if (c < n) {
        v = n <= KEEP ? fetch(kept + c) : softmax_next(l, n, kept, c, top, tail(n - c), dst);
        store(y, c, dst, tail(n - c), mul(v, by));
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
            softmax_short(row(y, r, rows->to, dst), &l, n, tail(rows->cols - LANES * (n - 1)), dst);
        else
            softmax_long(row(y, r, rows->to, dst), &l, rows->cols, dst);
    }
}

INLINE void softmax(const struct hapi_softmax *s, void *y, const void *x, const float *const *masks,
                    enum hapi_dtype src, enum hapi_dtype dst)
{
    switch (s->rows.cols <= SHORT ? (s->rows.cols + LANES - 1) / LANES : 0) {
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

static void rows_softmax(const struct hapi_softmax *s, void *y, const void *x, const float *const *masks)
{
    if (!VECTOR_BF16 || (s->rows.src == HAPI_F32 && s->rows.dst == HAPI_F32))
        softmax(s, y, x, masks, HAPI_F32, HAPI_F32);
    else if (s->rows.src == HAPI_F32)
        softmax(s, y, x, masks, HAPI_F32, HAPI_BF16);
    else if (s->rows.dst == HAPI_F32)
        softmax(s, y, x, masks, HAPI_BF16, HAPI_F32);
    else
        softmax(s, y, x, masks, HAPI_BF16, HAPI_BF16);
}

/* ------------------------------------------------------------------ layer normalisation */

INLINE vec deviation(const void *x, int64_t c, enum hapi_dtype src, vec mean, mask m)
{
    return mask_sub_or_zero(m, load(x, c, src, m), mean);
}

INLINE vec sum_add(vec sum, vec v, bool squares)
{
    return squares ? fmadd(v, v, sum) : add(sum, v);
}

/* Of x - mean, or of its squares. Four sums at a time: one alone waits for the adder. */
INLINE float row_sum(const void *x, int64_t n, enum hapi_dtype src, vec mean, bool squares)
{
    vec sum[4] = {zero(), zero(), zero(), zero()};
    int64_t c;

    for (c = 0; c + 4 * LANES <= n; c += 4 * LANES)
        for (int k = 0; k < 4; k++)
            sum[k] = sum_add(sum[k], deviation(x, c + LANES * k, src, mean, WHOLE), squares);
    for (; c + LANES <= n; c += LANES)
        sum[0] = sum_add(sum[0], deviation(x, c, src, mean, WHOLE), squares);
    if (c < n)
        sum[1] = sum_add(sum[1], deviation(x, c, src, mean, tail(n - c)), squares);
    return sum_of(add(add(sum[0], sum[1]), add(sum[2], sum[3])));
}

/* scale and shift: lines, or one number for all columns. */
INLINE void layer_norm_one(const float *scale, const float *shift, bool line, void *y, const void *x,
                           int64_t c, vec mean, vec by, enum hapi_dtype dtype, mask m)
{
    vec v = mul(deviation(x, c, dtype, mean, m), by);

    if (scale)
        v = mul(v, line ? load(scale, c, HAPI_F32, m) : set(*scale));
    if (shift)
        v = add(v, line ? load(shift, c, HAPI_F32, m) : set(*shift));
    store(y, c, dtype, m, v);
}

/* Columns [c, end). */
INLINE void layer_norm_span(const float *scale, const float *shift, bool line, void *y, const void *x,
                            int64_t c, int64_t end, vec mean, vec by, enum hapi_dtype dtype)
{
    for (; c + LANES <= end; c += LANES)
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
        vec mean = set(row_sum(x, n, dtype, zero(), false) / (float)n);
        float var = row_sum(x, n, dtype, mean, true) / (float)n;
        vec by = quotient(set(1.0F), root(set(var + l->epsilon)));
        if (!planes)
            layer_norm_span(l->scale, l->shift, true, y, x, 0, n, mean, by, dtype);
        for (int64_t i = 0; i < planes; i++) {
            int64_t k = r % l->period * planes + i;
            layer_norm_span(l->scale ? l->scale + k : NULL, l->shift ? l->shift + k : NULL, false, y, x,
                            i * l->plane, (i + 1) * l->plane, mean, by, dtype);
        }
    }
}

static void rows_layer_norm(const struct hapi_layer_norm *l, void *y, const void *x)
{
    if (VECTOR_BF16 && l->rows.src == HAPI_BF16)
        layer_norm(l, y, x, HAPI_BF16);
    else
        layer_norm(l, y, x, HAPI_F32);
}

const struct hapi_vector VECTOR_OPS = {.bf16 = VECTOR_BF16,
                                       .affine = rows_affine,
                                       .softmax = rows_softmax,
                                       .layer_norm = rows_layer_norm,
                                       .conv = VECTOR_CONV};
