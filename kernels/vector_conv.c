/*
 * Convolution for CPUs with AVX2 and FMA: six pixels times 16 maps in registers, over all that the pixels'
 * windows see. A row of a window is one run of adjacent numbers, and is read where it lies; from a copy where
 * it reaches over the image's edge; from zeros where it lies above or below.
 *
 *     maps of 16 ─> pixels of 6, whatever image or row they are in ─> rows of the window ─> run
 */
#include <string.h>

#include "vector_avx2.h"

enum {
    PIXELS = 6,
    MAPS = HAPI_CONV_MAPS,
    RUN_MAX = HAPI_CONV_RUN_MAX,
    LOT_MIN = 192 << 10,
    LOT_MAX = 4 << 20
};

static const float zeros[RUN_MAX];

/* Where a pixel's window begins, which may be outside of its image. */
struct place {
    const float *image;
    int64_t h, w;
};

/* The pixels of the output, one after the other. */
struct walk {
    int64_t h, w;
    const float *image;
};

static struct place step(const struct hapi_conv *c, struct walk *at)
{
    struct place p = {at->image, at->h * c->stride[0] - c->pad[0], at->w * c->stride[1] - c->pad[1]};

    if (++at->w == c->out[1]) {
        at->w = 0;
        if (++at->h == c->out[0]) {
            at->h = 0;
            at->image += c->in[0] * c->in[1] * c->channels;
        }
    }
    return p;
}

/* acc[p] += x[p][k] * w[k], for all k in turn. */
INLINE void run(vec acc[PIXELS][2], const float *const x[PIXELS], const float *w, int64_t n)
{
    vec a[PIXELS][2];

    memcpy(a, acc, sizeof a);
    for (int64_t k = 0; k < n; k++, w += MAPS) {
        vec w0 = load(w, 0, HAPI_F32, WHOLE), w1 = load(w, LANES, HAPI_F32, WHOLE);
#define PIXEL(i)                                                                                             \
    {                                                                                                        \
        vec v = set(x[i][k]);                                                                                \
        a[i][0] = fmadd(v, w0, a[i][0]);                                                                     \
        a[i][1] = fmadd(v, w1, a[i][1]);                                                                     \
    }
        PIXEL(0)
        PIXEL(1)
        PIXEL(2)
        PIXEL(3)
        PIXEL(4)
        PIXEL(5)
#undef PIXEL
    }
    memcpy(acc, a, sizeof a);
}

/* The row of a window that begins at (h, w): n = kernel[1] * channels numbers. */
INLINE const float *row_of(const struct hapi_conv *c, const float *image, int64_t h, int64_t w, float *edge)
{
    const float *row = image + h * c->in[1] * c->channels;
    int64_t first = w < 0 ? -w : 0, end = c->in[1] - w < c->kernel[1] ? c->in[1] - w : c->kernel[1];

    if (h < 0 || h >= c->in[0] || end <= first)
        return zeros;
    if (!first && end == c->kernel[1])
        return row + w * c->channels;
    memset(edge, 0, (size_t)(c->kernel[1] * c->channels) * sizeof *edge);
    memcpy(edge + first * c->channels, row + (w + first) * c->channels,
           (size_t)((end - first) * c->channels) * sizeof *edge);
    return edge;
}

INLINE vec finish(const struct hapi_conv *c, vec v, const float *plus)
{
    if (plus)
        v = add(v, load(plus, 0, HAPI_F32, WHOLE));
    /* As the activation alone does it (vector.c). */
    if (c->act.kind == HAPI_ACT_RELU)
        return fmadd(least(v, zero()), set(c->act.alpha), most(v, zero()));
    return c->act.kind == HAPI_ACT_CLIP ? least(most(v, set(c->act.alpha)), set(c->act.beta)) : v;
}

/* 16 maps of the pixels [first, end); of the last maps only 8, where `half`. */
static void maps(const struct hapi_conv *c, int64_t first, int64_t end, float *y, const float *x,
                 const float *weights, const float *bias, const float *plus, bool half)
{
    int64_t per = c->out[0] * c->out[1], n = c->kernel[1] * c->channels;
    vec b[2] = {bias ? load(bias, 0, HAPI_F32, WHOLE) : zero(),
                bias && !half ? load(bias, LANES, HAPI_F32, WHOLE) : zero()};
    struct walk at = {.h = first % per / c->out[1],
                      .w = first % c->out[1],
                      .image = x + first / per * c->in[0] * c->in[1] * c->channels};
    float edge[PIXELS][RUN_MAX];

    for (int64_t p = first; p < end; p += PIXELS) {
        int few = end - p < PIXELS ? (int)(end - p) : PIXELS;
        struct place place[PIXELS];
        vec acc[PIXELS][2];
        const float *w = weights;
        for (int i = 0; i < PIXELS; i++) {
            place[i] = i < few ? step(c, &at) : place[0];
            acc[i][0] = b[0];
            acc[i][1] = b[1];
        }
        for (int64_t k = 0; k < c->kernel[0]; k++, w += n * MAPS) {
            const float *from[PIXELS];
            int none = 0;
            for (int i = 0; i < PIXELS; i++) {
                from[i] = row_of(c, place[i].image, place[i].h + k * c->dilation, place[i].w, edge[i]);
                none += from[i] == zeros;
            }
            if (none < PIXELS)
                run(acc, from, w, n);
        }
        for (int i = 0; i < few; i++) {
            int64_t to = (p + i) * c->maps;
            store(y, to, HAPI_F32, WHOLE, finish(c, acc[i][0], plus ? plus + to : NULL));
            if (!half)
                store(y, to + LANES, HAPI_F32, WHOLE, finish(c, acc[i][1], plus ? plus + to + LANES : NULL));
        }
    }
}

/* Pixels whose inputs stay in a core's cache while all maps are made of them; more, where the weights, which
 * are read again for each such lot, would not. */
static int64_t lot_of(const struct hapi_conv *c)
{
    int64_t weights = c->kernel[0] * c->kernel[1] * c->channels * c->maps * (int64_t)sizeof(float) / 8;
    int64_t bytes = weights < LOT_MIN ? LOT_MIN : weights > LOT_MAX ? LOT_MAX : weights;
    int64_t pixel = c->stride[0] * c->stride[1] * c->channels * (int64_t)sizeof(float);
    int64_t n = bytes / pixel / PIXELS * PIXELS;

    return n < 8 * PIXELS ? 8 * PIXELS : n;
}

void hapi_conv_avx2(const struct hapi_conv *c, float *y, const float *x, const float *weights,
                    const float *bias, const float *plus)
{
    int64_t block = c->kernel[0] * c->kernel[1] * c->channels, lot = lot_of(c);
    int64_t all = c->images * c->out[0] * c->out[1];

    for (int64_t p = 0; p < all; p += lot)
        for (int64_t m = 0; m < c->maps; m += MAPS)
            maps(c, p, all - p < lot ? all : p + lot, y + m, x, weights + m * block, bias ? bias + m : NULL,
                 plus ? plus + m : NULL, c->maps - m < MAPS);
}
