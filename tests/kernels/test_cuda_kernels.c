/* Our own CUDA kernels, from the source that nvcc compiles, on the CPU (cuda_on_cpu.h): what they write is
 * what the rest of the product means by it. */
#include <math.h>

#include "check.h"
#include "convert.h"
#include "cuda_on_cpu.h"
#include "int8.h"
#include "tensor.h"

enum { ELEMENTS_MAX = 1 << 16 };

static float x[ELEMENTS_MAX];
static unsigned char narrow[4 * ELEMENTS_MAX], got[4 * ELEMENTS_MAX], want[4 * ELEMENTS_MAX];
static uint32_t maxima[ELEMENTS_MAX];

static uint32_t state = 1;

static float random_value(void)
{
    state = state * 1664525 + 1013904223;
    return (float)(state >> 8) / (float)(1 << 23) - 1;
}

/* ------------------------------------------------------------------ int8 on the wire */

static void pack(const struct hapi_shape *s, enum hapi_dtype dtype)
{
    struct hapi_i8 form;
    size_t n = (size_t)s->dim[0];

    REQUIRE(!hapi_i8_form(&form, s) && n * form.elements <= ELEMENTS_MAX);
    /* What the kernel reads, and the very same numbers in f32. */
    hapi_convert(narrow, dtype, x, HAPI_F32, n * form.elements);
    static float same[ELEMENTS_MAX];
    hapi_convert(same, HAPI_F32, narrow, dtype, n * form.elements);
    hapi_i8_pack(want, same, &form, n, NULL);
    memset(got, 0xaa, sizeof got);
    memset(maxima, 0xff, sizeof maxima);
    struct hapi_gpu_kernel k = {
        .kind = HAPI_GPU_ZERO,
        .outer = {.rank = 1, .size = {(int64_t)(n * form.scales)}, .stride = {{1}}},
        .i8 = {(int64_t)n, (int64_t)form.elements, (int64_t)form.channels, (int64_t)form.scales},
        .dtype = {HAPI_F32, (int32_t)dtype},
    };
    cuda_on_cpu_run(&k, 1, 32, (void *const[]){maxima, NULL, NULL, NULL});
    k.kind = HAPI_GPU_I8_MAX;
    cuda_on_cpu_run(&k, 3, 64, (void *const[]){maxima, narrow, NULL, NULL});
    k.kind = HAPI_GPU_I8_PACK;
    cuda_on_cpu_run(&k, 2, 96, (void *const[]){got, narrow, maxima, NULL});
    size_t bytes = n * hapi_i8_row(&form), bad = 0;
    while (bad < bytes && got[bad] == want[bad])
        bad++;
    char text[64];
    CHECKF(bad == bytes, "%s of %s: byte %zu is %d and should be %d", hapi_shape_text(s, text, sizeof text),
           hapi_dtype_name(dtype), bad, got[bad], want[bad]);
    CHECK(got[bytes] == 0xaa);
}

static void i8__of_the_gpu__is_that_of_the_cpu_bit_for_bit(void)
{
    static const struct hapi_shape shapes[] = {
        {4, {2, 24, 7, 9}}, {4, {3, 5, 16, 16}}, {4, {1, 3, 13, 11}}, {2, {4, 1000}},
        {2, {3, 64}},       {3, {2, 49, 96}},    {4, {2, 64, 1, 1}},  {2, {1, 65}},
    };
    static const enum hapi_dtype dtypes[] = {HAPI_F32, HAPI_F16, HAPI_BF16};

    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (size_t d = 0; d < sizeof dtypes / sizeof *dtypes; d++) {
            for (size_t e = 0; e < ELEMENTS_MAX; e++)
                x[e] = random_value() * (float)(1 + e % 7);
            pack(&shapes[i], dtypes[d]);
            /* Zeros, tiny and huge numbers, infinities, NaN. */
            for (size_t e = 0; e < ELEMENTS_MAX; e += 97)
                x[e] = e % 5 == 0   ? NAN
                       : e % 5 == 1 ? INFINITY
                       : e % 5 == 2 ? 1e-40F
                       : e % 5 == 3 ? 3e38F
                                    : 0;
            pack(&shapes[i], dtypes[d]);
            memset(x, 0, sizeof x);
            pack(&shapes[i], dtypes[d]);
        }
}

/* ------------------------------------------------------------------ pixels */

static void image__of_bytes__is_what_the_transform_says(void)
{
    enum { PIXELS = 1000 };
    static unsigned char bytes[3 * PIXELS];
    static float out[3 * PIXELS];
    struct hapi_gpu_kernel k = {
        .kind = HAPI_GPU_IMAGE,
        .image = {PIXELS, 1.0F / 255, {0.485F, 0.456F, 0.406F}, {0.229F, 0.224F, 0.225F}, 0},
        .dtype = {HAPI_F32, HAPI_U8}};

    for (int i = 0; i < 3 * PIXELS; i++)
        bytes[i] = (unsigned char)(i * 7);
    for (k.image.bgr = 0; k.image.bgr < 2; k.image.bgr++) {
        cuda_on_cpu_run(&k, 2, 32, (void *const[]){out, bytes, NULL, NULL});
        for (int i = 0; i < PIXELS; i++)
            for (int c = 0; c < 3; c++) {
                float v = (float)bytes[3 * i + (k.image.bgr ? 2 - c : c)];
                CHECK(out[3 * i + c] == (v * k.image.scale - k.image.mean[c]) / k.image.std[c]);
            }
    }
}

int main(void)
{
    CASE(i8__of_the_gpu__is_that_of_the_cpu_bit_for_bit);
    CASE(image__of_bytes__is_what_the_transform_says);
    return check_done();
}
