/* Kernels of our own against the formulas in double precision: every tail, strides, dtypes, in place; each
 * build of them that this CPU runs. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "convert.h"
#include "vector.h"

enum { WIDEST = 1200, ROWS = 5 };

static unsigned state = 1;

static float draw(float low, float high)
{
    state = state * 1664525u + 1013904223u;
    return low + (high - low) * (float)(state >> 8) / (float)(1 << 24);
}

/* n numbers in `dtype`, and the f32 values that they stand for. */
static void fill(void *p, float *value, int64_t n, enum hapi_dtype dtype, float low, float high)
{
    for (int64_t i = 0; i < n; i++)
        value[i] = draw(low, high);
    hapi_convert(p, dtype, value, HAPI_F32, (size_t)n);
    hapi_convert(value, HAPI_F32, p, dtype, (size_t)n);
}

static double act_exact(const struct hapi_act *a, double x)
{
    double low = (double)a->alpha, high = (double)a->beta;

    switch (a->kind) {
    case HAPI_ACT_RELU:
        return x < 0 ? low * x : x;
    case HAPI_ACT_CLIP:
        return fmin(fmax(x, low), high);
    case HAPI_ACT_SIGMOID:
        return 1 / (1 + exp(-x));
    case HAPI_ACT_SWISH:
        return x / (1 + exp(-x));
    case HAPI_ACT_GELU:
        return 0.5 * x * erfc(-x / sqrt(2));
    default:
        return x;
    }
}

static const struct hapi_act acts[] = {
    {HAPI_ACT_NONE, 0, 0},    {HAPI_ACT_RELU, 0, 0},  {HAPI_ACT_RELU, 0.1F, 0}, {HAPI_ACT_CLIP, 0, 6},
    {HAPI_ACT_SIGMOID, 0, 0}, {HAPI_ACT_SWISH, 1, 0}, {HAPI_ACT_GELU, 0, 0},
};

static bool close_to(double got, double want, enum hapi_dtype dtype, double bound)
{
    return fabs(got - want) <= (dtype == HAPI_BF16 ? 1.0 / 256 : bound) * fmax(1, fabs(want));
}

static const struct {
    enum hapi_dtype src, dst;
} pairs[] = {{HAPI_F32, HAPI_F32}, {HAPI_BF16, HAPI_BF16}, {HAPI_F32, HAPI_BF16}, {HAPI_BF16, HAPI_F32}};

static const struct hapi_vector *vector; /* under test */

static bool usable(int pair)
{
    return hapi_vector_runs(vector, pairs[pair].src) && hapi_vector_runs(vector, pairs[pair].dst);
}

static const int64_t widths[] = {1, 2, 15, 16, 17, 31, 32, 33, 49, 64, 100, 197, 768, 1025, 1199};
enum { WIDTHS = sizeof widths / sizeof *widths };

static float value[ROWS * 2 * WIDEST], out_value[ROWS * 2 * WIDEST], scale_value[ROWS * WIDEST],
    shift[WIDEST];
static float x[ROWS * 2 * WIDEST], y[ROWS * 2 * WIDEST], scale[ROWS * WIDEST];

/* One case; with `group` each of the rows has a scale of its own. Canaries lie between the rows. */
static void affine_case(const struct hapi_act *act, int pair, int64_t cols, bool scaled, int64_t group)
{
    enum hapi_dtype src = pairs[pair].src, dst = pairs[pair].dst;
    int64_t from = cols + 3, to = cols + 5;
    struct hapi_affine a = {.rows = {ROWS, cols, from, to, src, dst}, .group = group, .act = *act};
    int bad = 0, outside = 0;

    fill(x, value, ROWS * from, src, -9, 9);
    fill(scale, scale_value, ROWS * cols, group ? src : HAPI_F32, -2, 2);
    for (int64_t c = 0; c < cols; c++)
        shift[c] = draw(-1, 1);
    if (scaled) {
        a.scale = scale;
        a.shift = group ? NULL : shift;
        a.scale_dtype = group ? src : HAPI_F32;
    }
    memset(y, 0x41, sizeof y);
    vector->affine(&a, y, x);
    hapi_convert(out_value, HAPI_F32, y, dst, (size_t)(ROWS * to));
    float canary;
    hapi_convert(&canary, HAPI_F32, (const unsigned char *)y + sizeof y - 4, dst, 1);
    for (int64_t r = 0; r < ROWS; r++)
        for (int64_t c = 0; c < to; c++) {
            if (c >= cols) {
                outside += memcmp(&out_value[r * to + c], &canary, sizeof canary) != 0;
                continue;
            }
            double k = scaled ? (double)scale_value[(group ? r / group : 0) * cols + c] : 1;
            double v = (double)value[r * from + c] * k + (scaled && !group ? (double)shift[c] : 0);
            bad += !close_to((double)out_value[r * to + c], act_exact(act, v), dst, 2e-6);
        }
    CHECKF(!bad && !outside, "activation %d, %s to %s, %lld columns: %d wrong, %d outside", (int)act->kind,
           hapi_dtype_name(src), hapi_dtype_name(dst), (long long)cols, bad, outside);
}

static void affine__every_shape__is_the_formula(void)
{
    for (size_t k = 0; k < sizeof acts / sizeof *acts; k++)
        for (int pair = 0; pair < 4; pair++)
            for (int w = 0; w < WIDTHS && usable(pair); w++) {
                affine_case(&acts[k], pair, widths[w], false, 0);
                affine_case(&acts[k], pair, widths[w], true, 0);
                affine_case(&acts[k], pair, widths[w], true, 2);
            }
}

static void activation__the_whole_line__is_exact_and_finite(void)
{
    static const struct {
        enum hapi_act_kind kind;
        double relative; /* bound */
    } kinds[] = {{HAPI_ACT_SIGMOID, 3e-7}, {HAPI_ACT_SWISH, 4e-7}, {HAPI_ACT_GELU, 0}};
    enum { N = 16384 };
    static float in[N], out[N];

    for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++) {
        struct hapi_affine a = {.rows = {1, N, N, N, HAPI_F32, HAPI_F32}, .act = {.kind = kinds[k].kind}};
        double worst = 0;
        for (int i = 0; i < N; i++)
            in[i] = (float)(i - N / 2) / (N / 2) * 80;
        vector->affine(&a, out, in);
        for (int i = 0; i < N; i++) {
            double want = act_exact(&a.act, (double)in[i]), d = fabs((double)out[i] - want);
            d /= kinds[k].relative > 0 ? fabs(want) + 1e-37 : fmax(1, fabs(want));
            worst = d > worst || isnan(d) ? d : worst;
        }
        CHECKF(worst <= (kinds[k].relative > 0 ? kinds[k].relative : 3e-7), "activation %d: off by %g",
               (int)kinds[k].kind, worst);
        float ends[4] = {-1e30F, 1e30F, -200, 200}, made[4];
        a.rows = (struct hapi_rows){1, 4, 4, 4, HAPI_F32, HAPI_F32};
        vector->affine(&a, made, ends);
        for (int i = 0; i < 4; i++)
            CHECKF(isfinite(made[i]), "activation %d of %g is %g", (int)kinds[k].kind, (double)ends[i],
                   (double)made[i]);
    }
}

/* What is made for bf16 lies within a bf16's rounding, and little more, of the formula, relative. */
static void activation__to_bf16__is_as_exact_as_bf16(void)
{
    static const struct {
        enum hapi_act_kind kind;
        double from, relative, absolute;
    } kinds[] = {{HAPI_ACT_SIGMOID, -80, 2e-4, 0},
                 {HAPI_ACT_SWISH, -80, 2e-4, 0},
                 {HAPI_ACT_GELU, -3, 1e-3, 0},
                 {HAPI_ACT_GELU, -80, 1e-3, 1.1e-4}};
    enum { N = 16384 };
    static float in[N], out[N];
    static uint16_t rounded[N];

    for (size_t k = 0; k < sizeof kinds / sizeof *kinds && hapi_vector_runs(vector, HAPI_BF16); k++) {
        struct hapi_affine a = {.rows = {1, N, N, N, HAPI_F32, HAPI_BF16}, .act = {.kind = kinds[k].kind}};
        double worst = 0, at = 0;
        for (int i = 0; i < N; i++)
            in[i] = (float)(kinds[k].from + (80 - kinds[k].from) * i / (N - 1));
        vector->affine(&a, rounded, in);
        hapi_convert(out, HAPI_F32, rounded, HAPI_BF16, N);
        for (int i = 0; i < N; i++) {
            double want = act_exact(&a.act, (double)in[i]);
            double d = fmax(0, fabs((double)out[i] - want) - kinds[k].absolute) / (fabs(want) + 1e-37);
            at = d > worst || isnan(d) ? (double)in[i] : at;
            worst = d > worst || isnan(d) ? d : worst;
        }
        CHECKF(worst <= 1.0 / 256 + kinds[k].relative, "activation %d of %g: off by %g", (int)kinds[k].kind,
               at, worst);
    }
}

static void relu__of_negatives__is_plus_zero(void)
{
    float in[3] = {-1, -0.0F, -1e30F}, out[3];
    struct hapi_affine a = {.rows = {1, 3, 3, 3, HAPI_F32, HAPI_F32}, .act = {.kind = HAPI_ACT_RELU}};

    vector->affine(&a, out, in);
    for (int i = 0; i < 3; i++)
        CHECKF(out[i] == 0 && !signbit(out[i]), "element %d is %g", i, (double)out[i]);
}

/* masks: bit k for mask k. */
static void softmax_case(int pair, int64_t cols, int masks)
{
    static const struct hapi_mask where[HAPI_MASKS] = {{0, 2, 2, 1}, {0, 1, 2, 2}};
    enum hapi_dtype src = pairs[pair].src, dst = pairs[pair].dst;
    struct hapi_softmax s = {.rows = {ROWS, cols, cols + 1, cols, src, dst}};
    const float *mask[HAPI_MASKS] = {masks & 1 ? scale_value : NULL,
                                     masks & 2 ? scale_value + 2 * cols : NULL};
    int bad = 0;

    memcpy(s.mask, where, sizeof where);
    fill(x, value, ROWS * (cols + 1), src, -20, 20);
    fill(scale, scale_value, 4 * cols, HAPI_F32, -3, 3);
    vector->softmax(&s, y, x, mask);
    hapi_convert(out_value, HAPI_F32, y, dst, (size_t)(ROWS * cols));
    for (int64_t r = 0; r < ROWS; r++) {
        double top = -1e300, sum = 0;
        for (int pass = 0; pass < 3; pass++)
            for (int64_t c = 0; c < cols; c++) {
                double v = (double)value[r * (cols + 1) + c];
                v += mask[0] ? (double)mask[0][r % 2 * cols + c] : 0;
                v += mask[1] ? (double)mask[1][r / 2 % 2 * cols + c] : 0;
                if (pass == 0)
                    top = fmax(top, v);
                else if (pass == 1)
                    sum += exp(v - top);
                else
                    bad += !close_to((double)out_value[r * cols + c], exp(v - top) / sum, dst, 1e-6);
            }
    }
    CHECKF(!bad, "softmax, %s to %s, %lld columns, masks %d: %d wrong", hapi_dtype_name(src),
           hapi_dtype_name(dst), (long long)cols, masks, bad);
}

static void softmax__every_shape__is_the_formula(void)
{
    for (int pair = 0; pair < 4; pair++)
        for (int w = 0; w < WIDTHS && usable(pair); w++)
            for (int masks = 0; masks < 4; masks++)
                softmax_case(pair, widths[w], masks);
}

static void softmax__masked_by_infinity__gives_zero_there(void)
{
    float in[20], made[20];
    struct hapi_softmax s = {.rows = {1, 20, 20, 20, HAPI_F32, HAPI_F32}};

    for (int i = 0; i < 20; i++)
        in[i] = i % 2 ? -INFINITY : 1;
    vector->softmax(&s, made, in, NULL);
    for (int i = 0; i < 20; i++)
        CHECKF(fabs((double)made[i] - (i % 2 ? 0 : 0.1)) < 1e-6, "element %d is %g", i, (double)made[i]);
}

static void layer_norm_case(int pair, int64_t cols, bool lines)
{
    enum hapi_dtype dtype = pairs[pair].src;
    struct hapi_layer_norm l = {.rows = {ROWS, cols, cols + 2, cols, dtype, dtype}, .epsilon = 1e-5F};
    int bad = 0;

    fill(x, value, ROWS * (cols + 2), dtype, 3, 9);
    for (int64_t c = 0; c < cols; c++) {
        scale[c] = draw(-2, 2);
        shift[c] = draw(-1, 1);
    }
    l.scale = lines ? scale : NULL;
    l.shift = lines ? shift : NULL;
    vector->layer_norm(&l, y, x);
    hapi_convert(out_value, HAPI_F32, y, dtype, (size_t)(ROWS * cols));
    for (int64_t r = 0; r < ROWS; r++) {
        double mean = 0, var = 0;
        for (int64_t c = 0; c < cols; c++)
            mean += (double)value[r * (cols + 2) + c] / (double)cols;
        for (int64_t c = 0; c < cols; c++)
            var += pow((double)value[r * (cols + 2) + c] - mean, 2) / (double)cols;
        for (int64_t c = 0; c < cols; c++) {
            double v = ((double)value[r * (cols + 2) + c] - mean) / sqrt(var + 1e-5);
            v = lines ? v * (double)scale[c] + (double)shift[c] : v;
            /* two near values: their difference has few digits, and so has what is made of it */
            bad += !close_to((double)out_value[r * cols + c], v, dtype,
                             2e-6 * (3 + fabs(mean) / sqrt(var + 1e-5)));
        }
    }
    CHECKF(!bad, "layer norm, %s, %lld columns: %d wrong", hapi_dtype_name(dtype), (long long)cols, bad);
}

static void layer_norm__every_shape__is_the_formula(void)
{
    for (int pair = 0; pair < 2; pair++)
        for (int w = 0; w < WIDTHS && usable(pair); w++) {
            layer_norm_case(pair, widths[w], false);
            layer_norm_case(pair, widths[w], true);
        }
}

/* A row alone, and among others, over its own memory. */
static void rows__alone_or_among_others__same_bits(void)
{
    enum { COLS = 197 };
    static float many[ROWS * COLS], one[COLS], scaled[COLS];

    for (int f = 0; f < 3; f++) {
        for (int i = 0; i < ROWS * COLS; i++)
            many[i] = draw(-5, 5);
        for (int i = 0; i < COLS; i++)
            scaled[i] = draw(-1, 1);
        memcpy(one, many + 3 * COLS, sizeof one);
        struct hapi_rows rows = {ROWS, COLS, COLS, COLS, HAPI_F32, HAPI_F32};
        for (int k = 0; k < 2; k++) {
            float *p = k ? one : many;
            rows.rows = k ? 1 : ROWS;
            if (f == 0)
                vector->softmax(&(struct hapi_softmax){.rows = rows}, p, p, NULL);
            else if (f == 1)
                vector->layer_norm(&(struct hapi_layer_norm){.rows = rows, .epsilon = 1e-5F}, p, p);
            else
                vector->affine(
                    &(struct hapi_affine){.rows = rows, .scale = scaled, .act = {.kind = HAPI_ACT_GELU}}, p,
                    p);
        }
        CHECKF(!memcmp(one, many + 3 * COLS, sizeof one), "function %d", f);
    }
}

static void hapi_vector_of__each_dtype__runs_here(void)
{
    for (int pair = 0; pair < 2; pair++) {
        const struct hapi_vector *v = hapi_vector_of(pairs[pair].src);
        CHECKF(!v || hapi_vector_runs(v, pairs[pair].src), "%s", hapi_dtype_name(pairs[pair].src));
    }
    CHECK(!hapi_vector_of(HAPI_I8));
}

int main(void)
{
    static const struct hapi_vector *const builds[] = {&hapi_vector_avx512, &hapi_vector_avx2};
    int run = 0;

    for (size_t i = 0; i < sizeof builds / sizeof *builds; i++) {
        vector = builds[i];
        if (!hapi_vector_runs(vector, HAPI_F32))
            continue;
        run++;
        printf("# %s\n", i ? "AVX2" : "AVX-512");
        CASE(affine__every_shape__is_the_formula);
        CASE(activation__the_whole_line__is_exact_and_finite);
        CASE(activation__to_bf16__is_as_exact_as_bf16);
        CASE(relu__of_negatives__is_plus_zero);
        CASE(softmax__every_shape__is_the_formula);
        CASE(softmax__masked_by_infinity__gives_zero_there);
        CASE(layer_norm__every_shape__is_the_formula);
        CASE(rows__alone_or_among_others__same_bits);
    }
    if (!run)
        SKIP("this CPU has neither AVX-512 nor AVX2");
    CASE(hapi_vector_of__each_dtype__runs_here);
    return check_done();
}
