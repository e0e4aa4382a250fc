#include "resize.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { BITS = 22, SPARE = 64 };

#if defined(__x86_64__)
#include <immintrin.h>
#define AVX2_FN __attribute__((target("avx2")))
#endif

int hapi_grow(void **p, size_t *capacity, size_t bytes)
{
    if (bytes <= *capacity)
        return 0;
    /* Page-aligned and not copied: what it held is of no use to the next image. */
    size_t n = (bytes + 4095) & ~(size_t)4095;
    void *q = n < bytes ? NULL : aligned_alloc(4096, n);
    if (!q)
        return HAPI_ENOMEM;
    free(*p);
    *p = q;
    *capacity = n;
    return 0;
}

/* ---- weights */

static double triangle(double x)
{
    x = fabs(x);
    return x < 1 ? 1 - x : 0;
}

/* Keys' cubic convolution, a = -0.5. */
static double cubic(double x)
{
    const double a = -0.5;
    x = fabs(x);
    if (x < 1)
        return ((a + 2) * x - (a + 3)) * x * x + 1;
    if (x < 2)
        return (((x - 5) * x + 8) * x - 4) * a;
    return 0;
}

/* One output pixel: the filter is stretched by the scale when shrinking, so that all the source under it
 * counts; at the borders it is cut and the rest made to sum to one. */
static void weights_of(struct hapi_resize_scratch *s, int32_t i, int64_t at, int32_t in, double scale,
                       enum hapi_interpolation how)
{
    double stretch = scale < 1 ? 1 : scale, support = (how == HAPI_BICUBIC ? 2 : 1) * stretch;
    double centre = ((double)at + 0.5) * scale, inverse = 1 / stretch, sum = 0;
    int32_t first = (int32_t)fmax(centre - support + 0.5, 0);
    int32_t end = (int32_t)fmin(centre + support + 0.5, in), n = end - first;
    int32_t *w = s->axis.weights + (size_t)i * (size_t)s->axis.taps;

    for (int32_t k = 0; k < n; k++) {
        double x = ((double)(k + first) - centre + 0.5) * inverse;
        s->real[k] = how == HAPI_BICUBIC ? cubic(x) : triangle(x);
        sum += s->real[k];
    }
    for (int32_t k = 0; k < n; k++) {
        double v = (sum != 0 ? s->real[k] / sum : s->real[k]) * (1 << BITS);
        w[k] = (int32_t)(v < 0 ? v - 0.5 : v + 0.5);
    }
    memset(w + n, 0, (size_t)(s->axis.taps - n) * sizeof *w);
    s->axis.first[i] = first;
    s->axis.count[i] = n;
}

static int axis_make(struct hapi_resize_scratch *s, int32_t in, int64_t out, int64_t from, int32_t n,
                     enum hapi_interpolation how)
{
    double scale = (double)in / (double)out, stretch = scale < 1 ? 1 : scale;
    int32_t taps = (int32_t)ceil((how == HAPI_BICUBIC ? 2 : 1) * stretch) * 2 + 2;
    size_t ints = (size_t)n * 2 * sizeof(int32_t);

    taps &= ~1; /* pairs of taps are taken at once */
    if (hapi_grow((void **)&s->axis.first, &s->axis.capacity_n, ints) ||
        hapi_grow((void **)&s->axis.weights, &s->axis.capacity_weights, (size_t)n * (size_t)taps * 4) ||
        hapi_grow((void **)&s->real, &s->capacity_real, (size_t)taps * sizeof(double)))
        return HAPI_ENOMEM;
    s->axis.count = s->axis.first + n;
    s->axis.taps = taps;
    for (int32_t i = 0; i < n; i++)
        weights_of(s, i, from + i, in, scale, how);
    return 0;
}

/* ---- the passes */

static inline uint8_t clip(int32_t v)
{
    v >>= BITS;
    return (uint8_t)(v < 0 ? 0 : v > 255 ? 255 : v);
}

/* Arguments of a pass over `rows` rows: horizontal, or vertical where rows are of the output. */
struct pass {
    const struct hapi_axis *axis;
    const uint8_t *in;
    size_t in_stride;
    uint8_t *out;
    size_t out_stride;
    int32_t n, rows; /* pixels in an output row */
};

static void horizontal_scalar(const struct pass *p)
{
    for (int32_t y = 0; y < p->rows; y++)
        for (int32_t x = 0; x < p->n; x++) {
            const uint8_t *in = p->in + (size_t)y * p->in_stride + 4 * (size_t)p->axis->first[x];
            const int32_t *w = p->axis->weights + (size_t)x * (size_t)p->axis->taps;
            for (int c = 0; c < 4; c++) {
                int32_t sum = 1 << (BITS - 1);
                for (int32_t k = 0; k < p->axis->count[x]; k++)
                    sum += in[4 * k + c] * w[k];
                p->out[(size_t)y * p->out_stride + 4 * (size_t)x + (size_t)c] = clip(sum);
            }
        }
}

static void vertical_scalar(const struct pass *p)
{
    for (int32_t y = 0; y < p->rows; y++) {
        const uint8_t *in = p->in + (size_t)p->axis->first[y] * p->in_stride;
        const int32_t *w = p->axis->weights + (size_t)y * (size_t)p->axis->taps;
        for (int32_t x = 0; x < 4 * p->n; x++) {
            int32_t sum = 1 << (BITS - 1);
            for (int32_t k = 0; k < p->axis->count[y]; k++)
                sum += in[(size_t)k * p->in_stride + (size_t)x] * w[k];
            p->out[(size_t)y * p->out_stride + (size_t)x] = clip(sum);
        }
    }
}

#if defined(__x86_64__)

/* Rounds, clips and narrows eight sums to eight bytes; saturation clips. */
AVX2_FN static inline __m128i narrow(__m128i lo, __m128i hi)
{
    __m128i v = _mm_packus_epi32(_mm_srai_epi32(lo, BITS), _mm_srai_epi32(hi, BITS));
    return _mm_packus_epi16(v, v);
}

/* Two taps of four channels at once. The second tap of an odd count has weight 0 and may lie past the row:
 * the image has bytes to spare. */
AVX2_FN static void horizontal_avx2(const struct pass *p)
{
    const __m256i spread = _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1);
    const __m128i half = _mm_set1_epi32(1 << (BITS - 1));

    for (int32_t y = 0; y < p->rows; y++) {
        uint8_t *out = p->out + (size_t)y * p->out_stride;
        for (int32_t x = 0; x < p->n; x++) {
            const uint8_t *in = p->in + (size_t)y * p->in_stride + 4 * (size_t)p->axis->first[x];
            const int32_t *w = p->axis->weights + (size_t)x * (size_t)p->axis->taps;
            __m256i sum = _mm256_setzero_si256();
            for (int32_t k = 0; k < p->axis->count[x]; k += 2) {
                __m256i pixels = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const void *)(in + 4 * k)));
                __m256i weights = _mm256_castsi128_si256(_mm_loadl_epi64((const void *)(w + k)));
                weights = _mm256_permutevar8x32_epi32(weights, spread);
                sum = _mm256_add_epi32(sum, _mm256_mullo_epi32(pixels, weights));
            }
            __m128i v = _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
            v = _mm_add_epi32(v, half);
            int32_t four = _mm_cvtsi128_si32(narrow(v, v));
            memcpy(out + 4 * (size_t)x, &four, 4);
        }
    }
}

/* Sixteen bytes of a row at once; the last ones may run into the bytes to spare. */
AVX2_FN static void vertical_avx2(const struct pass *p)
{
    const __m256i half = _mm256_set1_epi32(1 << (BITS - 1));

    for (int32_t y = 0; y < p->rows; y++) {
        const uint8_t *in = p->in + (size_t)p->axis->first[y] * p->in_stride;
        const int32_t *w = p->axis->weights + (size_t)y * (size_t)p->axis->taps;
        for (int32_t x = 0; x < 4 * p->n; x += 16) {
            __m256i a = half, b = half;
            for (int32_t k = 0; k < p->axis->count[y]; k++) {
                __m128i v = _mm_loadu_si128((const void *)(in + (size_t)k * p->in_stride + x));
                __m256i weight = _mm256_set1_epi32(w[k]);
                a = _mm256_add_epi32(a, _mm256_mullo_epi32(_mm256_cvtepu8_epi32(v), weight));
                v = _mm_srli_si128(v, 8);
                b = _mm256_add_epi32(b, _mm256_mullo_epi32(_mm256_cvtepu8_epi32(v), weight));
            }
            __m128i lo = narrow(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
            __m128i hi = narrow(_mm256_castsi256_si128(b), _mm256_extracti128_si256(b, 1));
            _mm_storeu_si128((void *)(p->out + (size_t)y * p->out_stride + x), _mm_unpacklo_epi64(lo, hi));
        }
    }
}
#endif

static void horizontal(const struct pass *p, bool scalar)
{
#if defined(__x86_64__)
    if (!scalar) {
        horizontal_avx2(p);
        return;
    }
#endif
    (void)scalar;
    horizontal_scalar(p);
}

static void vertical(const struct pass *p, bool scalar)
{
#if defined(__x86_64__)
    if (!scalar) {
        vertical_avx2(p);
        return;
    }
#endif
    (void)scalar;
    vertical_scalar(p);
}

/* ---- nearest: PIL steps through the source by adding, so the sums' rounding belongs to the result */

static int nearest(struct hapi_resize_scratch *s, const struct hapi_image *in, const struct hapi_resize *job,
                   uint8_t *out)
{
    double sx = (double)in->w / (double)job->full_w, sy = (double)in->h / (double)job->full_h;
    double at = sx * 0.5;
    size_t ints = (size_t)job->w * 2 * sizeof(int32_t);

    if (hapi_grow((void **)&s->axis.first, &s->axis.capacity_n, ints))
        return HAPI_ENOMEM;
    for (int64_t x = 0; x < job->x + job->w; x++, at += sx)
        if (x >= job->x)
            s->axis.first[x - job->x] = at < in->w ? (int32_t)at : in->w - 1;
    at = sy * 0.5;
    for (int64_t y = 0; y < job->y + job->h; y++, at += sy) {
        if (y < job->y)
            continue;
        const uint8_t *row = in->pixels + (size_t)(at < in->h ? (int32_t)at : in->h - 1) * in->stride;
        for (int32_t x = 0; x < job->w; x++, out += 4)
            memcpy(out, row + 4 * (size_t)s->axis.first[x], 4);
    }
    return 0;
}

static void copy(const struct hapi_image *in, const struct hapi_resize *job, uint8_t *out)
{
    for (int32_t y = 0; y < job->h; y++)
        memcpy(out + (size_t)y * (size_t)job->w * 4,
               in->pixels + (size_t)(job->y + y) * in->stride + (size_t)job->x * 4, (size_t)job->w * 4);
}

/* Source rows that the window needs: [*from, *end). */
static void rows_needed(const struct hapi_image *in, const struct hapi_resize *job, int32_t *from,
                        int32_t *end)
{
    double scale = (double)in->h / (double)job->full_h;
    double support = (job->how == HAPI_BICUBIC ? 2 : 1) * (scale < 1 ? 1 : scale);

    *from = (int32_t)fmax(((double)job->y + 0.5) * scale - support + 0.5, 0);
    *end = (int32_t)fmin(((double)(job->y + job->h - 1) + 0.5) * scale + support + 0.5, in->h);
}

int hapi_resize_run(struct hapi_resize_scratch *s, const struct hapi_image *in, const struct hapi_resize *job,
                    uint8_t *out, bool scalar)
{
    struct hapi_image mid = *in; /* what the vertical pass reads: columns of the window only */
    size_t width = (size_t)job->w * 4;
    int32_t from = (int32_t)job->y, end = (int32_t)job->y + job->h;
    bool across = job->full_w != in->w, down = job->full_h != in->h;

#if defined(__x86_64__)
    scalar = scalar || !__builtin_cpu_supports("avx2");
#endif
    if (!across && !down) {
        copy(in, job, out);
        return 0;
    }
    if (job->how == HAPI_NEAREST)
        return nearest(s, in, job, out);
    if (down)
        rows_needed(in, job, &from, &end);
    mid.pixels += (size_t)from * in->stride;
    if (across) {
        uint8_t *to = out;
        if (down && hapi_grow((void **)&s->rows, &s->capacity_rows, width * (size_t)(end - from) + SPARE))
            return HAPI_ENOMEM;
        if (axis_make(s, in->w, job->full_w, job->x, job->w, job->how))
            return HAPI_ENOMEM;
        if (down)
            to = s->rows;
        horizontal(&(struct pass){&s->axis, mid.pixels, in->stride, to, width, job->w, end - from}, scalar);
        mid.pixels = to;
        mid.stride = width;
    } else {
        mid.pixels += (size_t)job->x * 4;
    }
    if (!down)
        return 0;
    if (axis_make(s, in->h, job->full_h, job->y, job->h, job->how))
        return HAPI_ENOMEM;
    for (int32_t i = 0; i < job->h; i++)
        s->axis.first[i] -= from;
    vertical(&(struct pass){&s->axis, mid.pixels, mid.stride, out, width, job->w, job->h}, scalar);
    return 0;
}

void hapi_resize_scratch_fini(struct hapi_resize_scratch *s)
{
    free(s->axis.first);
    free(s->axis.weights);
    free(s->real);
    free(s->rows);
    memset(s, 0, sizeof *s);
}
