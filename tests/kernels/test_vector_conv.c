/* Our own convolution against the sum that it is, in double precision, and whether an output's bits depend on
 * anything but its window. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "vector.h"

static const struct hapi_vector *vector; /* under test */
static unsigned state = 7;

static float draw(void)
{
    state = state * 1664525u + 1013904223u;
    return (float)(state >> 8) / (float)(1 << 23) - 1;
}

struct problem {
    struct hapi_conv c;
    float *x, *weights, *plain, *bias, *plus, *y;
};

static float *numbers(int64_t n)
{
    float *p = malloc((size_t)n * sizeof *p);

    REQUIRE(p);
    for (int64_t i = 0; i < n; i++)
        p[i] = draw();
    return p;
}

/* Weights in the order of the kernel: blocks of 16 maps, zeros where there are none. */
static void problem_open(struct problem *p, const struct hapi_conv *c)
{
    int64_t taps = c->kernel[0] * c->kernel[1], pixels = c->images * c->out[0] * c->out[1];
    int64_t blocks = (c->maps + HAPI_CONV_MAPS - 1) / HAPI_CONV_MAPS,
            block = taps * c->channels * HAPI_CONV_MAPS;

    p->c = *c;
    p->x = numbers(c->images * c->in[0] * c->in[1] * c->channels);
    p->plain = numbers(c->maps * taps * c->channels);
    p->weights = calloc((size_t)(blocks * block), sizeof(float));
    p->bias = numbers(c->maps);
    p->plus = numbers(pixels * c->maps);
    p->y = numbers(pixels * c->maps + 8);
    REQUIRE(p->weights);
    for (int64_t m = 0; m < c->maps; m++)
        for (int64_t t = 0; t < taps * c->channels; t++)
            p->weights[m / HAPI_CONV_MAPS * block + t * HAPI_CONV_MAPS + m % HAPI_CONV_MAPS] =
                p->plain[m * taps * c->channels + t];
}

static void problem_close(struct problem *p)
{
    free(p->x);
    free(p->plain);
    free(p->weights);
    free(p->bias);
    free(p->plus);
    free(p->y);
}

static double exact(const struct problem *p, int64_t image, int64_t oh, int64_t ow, int64_t m, double *size)
{
    const struct hapi_conv *c = &p->c;
    double sum = 0;

    *size = 1;
    for (int64_t i = 0; i < c->kernel[0]; i++)
        for (int64_t j = 0; j < c->kernel[1]; j++) {
            int64_t h = oh * c->stride[0] - c->pad[0] + i * c->dilation,
                    w = ow * c->stride[1] - c->pad[1] + j;
            if (h < 0 || h >= c->in[0] || w < 0 || w >= c->in[1])
                continue;
            for (int64_t k = 0; k < c->channels; k++) {
                double a = (double)p->x[((image * c->in[0] + h) * c->in[1] + w) * c->channels + k];
                double b = (double)p->plain[((m * c->kernel[0] + i) * c->kernel[1] + j) * c->channels + k];
                sum += a * b;
                *size += fabs(a * b);
            }
        }
    return sum;
}

static double activated(const struct hapi_act *a, double v)
{
    if (a->kind == HAPI_ACT_RELU)
        return v < 0 ? (double)a->alpha * v : v;
    return a->kind == HAPI_ACT_CLIP ? fmin(fmax(v, (double)a->alpha), (double)a->beta) : v;
}

static void compare(const struct hapi_conv *c, bool bias, bool plus)
{
    struct problem p;
    int64_t per = c->out[0] * c->out[1], n = c->images * per * c->maps;
    int bad = 0;

    problem_open(&p, c);
    for (int i = 0; i < 8; i++)
        p.y[n + i] = 12345;
    vector->conv(c, p.y, p.x, p.weights, bias ? p.bias : NULL, plus ? p.plus : NULL);
    for (int64_t i = 0; i < n; i++) {
        int64_t m = i % c->maps, q = i / c->maps;
        double size, want = exact(&p, q / per, q % per / c->out[1], q % c->out[1], m, &size);
        want += (bias ? (double)p.bias[m] : 0) + (plus ? (double)p.plus[i] : 0);
        bad += !(fabs((double)p.y[i] - activated(&c->act, want)) <= 1e-6 * size);
    }
    for (int i = 0; i < 8; i++)
        bad += p.y[n + i] != 12345;
    CHECKF(!bad, "%d of %lld outputs are off: %lldx%lld channels %lld maps %lld kernel %lldx%lld", bad,
           (long long)n, (long long)c->in[0], (long long)c->in[1], (long long)c->channels, (long long)c->maps,
           (long long)c->kernel[0], (long long)c->kernel[1]);
    problem_close(&p);
}

/* Output sizes of a window with as much padding at the end as at the start. */
static struct hapi_conv made(int64_t images, int64_t h, int64_t w, int64_t channels, int64_t maps, int64_t kh,
                             int64_t kw, int64_t stride, int64_t pad, int64_t dilation)
{
    return (struct hapi_conv){
        .images = images,
        .in = {h, w},
        .channels = channels,
        .out = {(h + 2 * pad - (kh - 1) * dilation - 1) / stride + 1, (w + 2 * pad - kw) / stride + 1},
        .maps = maps,
        .kernel = {kh, kw},
        .stride = {stride, stride},
        .pad = {pad, pad},
        .dilation = dilation,
    };
}

static void conv__every_shape__is_the_sum(void)
{
    static const struct hapi_act acts[] = {
        {HAPI_ACT_NONE, 0, 0}, {HAPI_ACT_RELU, 0, 0}, {HAPI_ACT_RELU, 0.1F, 0}, {HAPI_ACT_CLIP, -0.5F, 0.5F}};
    const struct hapi_conv shapes[] = {
        made(1, 7, 7, 16, 16, 3, 3, 1, 1, 1),   made(3, 5, 4, 17, 24, 3, 3, 1, 1, 1),
        made(2, 9, 11, 3, 64, 11, 11, 4, 2, 1), made(1, 1, 1, 40, 16, 3, 3, 1, 1, 1),
        made(2, 8, 8, 8, 40, 3, 3, 2, 0, 1),    made(1, 12, 10, 5, 32, 5, 3, 1, 2, 2),
        made(1, 3, 3, 20, 16, 3, 7, 1, 3, 1),   made(2, 6, 6, 256, 16, 1, 8, 1, 4, 1),
        made(1, 20, 1, 30, 48, 7, 1, 3, 0, 1),  made(2, 2, 2, 16, 16, 5, 5, 1, 4, 1),
        made(1, 41, 39, 64, 16, 3, 3, 1, 1, 1), made(2, 22, 20, 512, 24, 3, 3, 2, 1, 1), /* in several lots */
    };

    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (size_t a = 0; a < sizeof acts / sizeof *acts; a++) {
            struct hapi_conv c = shapes[i];
            c.act = acts[a];
            compare(&c, a & 1, a & 2);
        }
}

/* Of an image alone, and of the same one behind others, where its pixels meet others in registers. */
static void conv__alone_or_among_others__same_bits(void)
{
    struct hapi_conv many = made(4, 5, 7, 19, 24, 3, 3, 1, 1, 1), one = many;
    int64_t x = many.in[0] * many.in[1] * many.channels, y = many.out[0] * many.out[1] * many.maps;
    struct problem p;

    problem_open(&p, &many);
    one.images = 1;
    float *alone = numbers(y);
    vector->conv(&many, p.y, p.x, p.weights, p.bias, NULL);
    for (int64_t i = 0; i < many.images; i++) {
        vector->conv(&one, alone, p.x + i * x, p.weights, p.bias, NULL);
        CHECK(!memcmp(alone, p.y + i * y, (size_t)y * sizeof *alone));
    }
    free(alone);
    problem_close(&p);
}

int main(void)
{
    static const struct hapi_vector *const builds[] = {&hapi_vector_avx512, &hapi_vector_avx2};
    int tried = 0;

    for (size_t i = 0; i < sizeof builds / sizeof *builds; i++) {
        vector = builds[i];
        if (!vector->conv || !hapi_vector_runs(vector, HAPI_F32))
            continue;
        tried++;
        CASE(conv__every_shape__is_the_sum);
        CASE(conv__alone_or_among_others__same_bits);
    }
    if (!tried)
        SKIP("this CPU has no AVX2");
    return check_done();
}
