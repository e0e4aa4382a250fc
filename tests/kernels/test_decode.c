#include <malloc.h>
#include <math.h>

#include "check.h"
#include "clock.h"
#include "jpegs.h"
#include "kernels.h"
#include "resize.h"

static struct hapi_decoder *decoder;
static float out[300 * 300 * 3], out2[300 * 300 * 3];

static struct hapi_transform transform(const char *json)
{
    struct hapi_transform t;
    struct hapi_err err = {0};
    int rc = hapi_transform_parse(&t, json, strlen(json), &err);
    CHECKF(!rc, "%s", err.text);
    REQUIRE(!rc);
    return t;
}

/* A copy of the exact size, so that a sanitizer sees one byte too far. */
static int decode_exact(const struct hapi_transform *t, const void *p, size_t n, struct hapi_err *err)
{
    uint8_t *exact = malloc(n ? n : 1);
    REQUIRE(exact);
    if (n)
        memcpy(exact, p, n);
    int rc = hapi_decode(decoder, t, exact, n, out, err);
    free(exact);
    return rc;
}

static void not_a_jpeg__edecode(void)
{
    static const char *const bad[] = {"",
                                      "x",
                                      "\xff\xd8",
                                      "\xff\xd8\xff\xd9",
                                      "\x89PNG\r\n\x1a\n",
                                      "GIF89a",
                                      "\xff\xd8\xff\xe0\x00\x01",
                                      "\xff\xd8\xff\xe0\xff\xff"};
    struct hapi_transform t = transform("{\"crop\": 8}");
    struct hapi_err err;

    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        memset(&err, 0, sizeof err);
        CHECK(decode_exact(&t, bad[i], strlen(bad[i]), &err) == HAPI_EDECODE);
        CHECKF(err.code == HAPI_EDECODE && !strncmp(err.text, "JPEG: ", 6), "%s", err.text);
    }
    CHECK(hapi_decode(decoder, &t, "x", 1, out, NULL) == HAPI_EDECODE);
}

static void cut_at_any_byte__edecode__whole__same_as_fresh(void)
{
    const enum jpeg_kind kinds[] = {JPEG_GRAY, JPEG_RGB, JPEG_CMYK, JPEG_PROGRESSIVE, JPEG_SCANS};
    struct hapi_transform t = transform("{\"resize\": 20, \"crop\": 16, \"interpolation\": \"bicubic\"}");

    for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++) {
        struct jpeg_bytes j = jpeg_make(kinds[k], 45, 33, -1);
        struct hapi_decoder *fresh;
        for (size_t n = 0; n < j.n; n++)
            CHECKF(decode_exact(&t, j.p, n, NULL) == HAPI_EDECODE, "kind %zu cut at %zu of %lu", k, n, j.n);
        CHECK(!decode_exact(&t, j.p, j.n, NULL));
        REQUIRE(!hapi_decoder_new(&fresh, 0, NULL));
        CHECK(!hapi_decode(fresh, &t, j.p, j.n, out2, NULL));
        CHECK(!memcmp(out, out2, 16 * 16 * 3 * sizeof *out)); /* the errors have left nothing behind */
        hapi_decoder_free(fresh);
        free(j.p);
    }
}

static void corrupt_scan__edecode(void)
{
    struct hapi_transform t = transform("{\"crop\": 16}");
    struct jpeg_bytes j = jpeg_make(JPEG_RGB, 64, 64, -1);
    size_t at = j.n / 2;
    j.p[at] = 0xff;
    j.p[at + 1] = 0xd9; /* EOI in the middle: libjpeg warns and would fill with gray */
    CHECK(decode_exact(&t, j.p, j.n, NULL) == HAPI_EDECODE);
    free(j.p);
}

/* A header that names 65500x65500 pixels costs neither time nor memory. */
static void named_size_over_the_limit__etoobig_at_once(void)
{
    struct hapi_transform t = transform("{\"crop\": 16}");
    struct jpeg_bytes j = jpeg_make(JPEG_PROGRESSIVE, 64, 64, -1);
    struct hapi_decoder *small;
    struct hapi_err err = {0};

    for (unsigned long i = 0; i + 9 < j.n; i++)
        if (j.p[i] == 0xff && j.p[i + 1] == 0xc2) {
            memcpy(j.p + i + 5, "\xff\xdc\xff\xdc", 4);
            break;
        }
    int64_t t0 = hapi_clock_ns();
    CHECK(decode_exact(&t, j.p, j.n, &err) == HAPI_ETOOBIG);
    CHECK(err.code == HAPI_ETOOBIG && hapi_clock_ns() - t0 < HAPI_NS_PER_S / 10);
    free(j.p);
    j = jpeg_make(JPEG_RGB, 64, 64, -1);
    REQUIRE(!hapi_decoder_new(&small, 64 * 64 - 1, NULL));
    CHECK(hapi_decode(small, &t, j.p, j.n, out, NULL) == HAPI_ETOOBIG);
    hapi_decoder_free(small);
    REQUIRE(!hapi_decoder_new(&small, 64 * 64, NULL));
    CHECK(!hapi_decode(small, &t, j.p, j.n, out, NULL));
    hapi_decoder_free(small);
    free(j.p);
}

/* A thin image whose longer side would become hundreds of millions of pixels. */
static void resize_beyond_reason__etoobig(void)
{
    struct hapi_transform t = transform("{\"resize\": 16384, \"crop\": 16, \"interpolation\": \"nearest\"}");
    struct jpeg_bytes j = jpeg_make(JPEG_GRAY, 2000, 1, 7);
    CHECK(decode_exact(&t, j.p, j.n, NULL) == HAPI_ETOOBIG);
    t.resize_h = 2000;
    CHECK(!decode_exact(&t, j.p, j.n, NULL));
    free(j.p);
}

static void thousands_of_scans__edecode_at_once(void)
{
    struct hapi_transform t = transform("{\"crop\": 16}");
    struct jpeg_bytes j = jpeg_make(JPEG_SCANS, 400, 400, 0);
    unsigned long first = 0, second = 0;

    for (unsigned long i = 0; i + 1 < j.n; i++)
        if (j.p[i] == 0xff && j.p[i + 1] == 0xda) {
            second = first && !second ? i : second;
            first = first ? first : i;
        }
    /* The tables of the next scan may stand between them: from marker to marker is a whole scan. */
    REQUIRE(first && second);
    size_t scan = second - first, n = first;
    uint8_t *bomb = malloc(first + 3000 * scan + j.n);
    REQUIRE(bomb);
    memcpy(bomb, j.p, first);
    for (int i = 0; i < 3000; i++, n += scan)
        memcpy(bomb + n, j.p + first, scan);
    memcpy(bomb + n, j.p + first, j.n - first);
    n += j.n - first;
    struct hapi_err err = {0};
    int64_t t0 = hapi_clock_ns();
    CHECK(hapi_decode(decoder, &t, bomb, n, out, &err) == HAPI_EDECODE);
    CHECKF(strstr(err.text, "scans"), "%s", err.text);
    CHECKF(hapi_clock_ns() - t0 < HAPI_NS_PER_S, "%.3f s", (double)(hapi_clock_ns() - t0) * 1e-9);
    CHECK(!decode_exact(&t, j.p, j.n, NULL));
    free(bomb);
    free(j.p);
}

/* A flat image stays flat; padding is pixel 0 before the arithmetic. */
static void flat_image__known_numbers_and_padding(void)
{
    struct hapi_transform t = transform(
        "{\"resize\": 20, \"crop\": [30, 24], \"mean\": [1, 2, 3], \"std\": [2, 4, 8], \"scale\": 0.5}");
    struct jpeg_bytes j = jpeg_make(JPEG_GRAY, 40, 40, 100);
    const float inside[3] = {(50.f - 1) / 2, (50.f - 2) / 4, (50.f - 3) / 8}, pad[3] = {-.5f, -.5f, -.375f};

    CHECK(!decode_exact(&t, j.p, j.n, NULL));
    for (int y = 0; y < 30; y++)
        for (int x = 0; x < 24; x++)
            for (int c = 0; c < 3; c++) {
                int in = y >= 5 && y < 25 && x >= 2 && x < 22;
                float want = in ? inside[c] : pad[c];
                CHECKF(out[(y * 24 + x) * 3 + c] == want, "(%d,%d,%d) is %g", y, x, c,
                       (double)out[(y * 24 + x) * 3 + c]);
            }
    free(j.p);
}

static void bgr__channels_swapped_before_mean(void)
{
    struct hapi_transform rgb = transform("{\"crop\": 16}"), bgr = rgb;
    struct jpeg_bytes j = jpeg_make(JPEG_RGB, 16, 16, -1);
    bgr.bgr = true;
    bgr.mean[0] = 1;
    CHECK(!decode_exact(&bgr, j.p, j.n, NULL));
    memcpy(out2, out, sizeof out);
    CHECK(!decode_exact(&rgb, j.p, j.n, NULL));
    for (int i = 0; i < 16 * 16; i++)
        CHECK(out2[3 * i] == out[3 * i + 2] - 1 && out2[3 * i + 1] == out[3 * i + 1] &&
              out2[3 * i + 2] == out[3 * i]);
    free(j.p);
}

static int32_t below(int32_t n)
{
    static uint32_t x = 12345;
    x = x * 1664525 + 1013904223;
    return (int32_t)(x >> 8) % n;
}

/* The vector loops against the plain ones, on random windows of random resizes. */
/* Bytes, scaled and shifted, are what hapi_decode() gives: a GPU does so. */
static void bytes__normalised__are_the_floats(void)
{
    static const char *const json[] = {
        "{\"resize\": 20, \"crop\": 16, \"mean\": [127,120,110], \"std\": [128,127,126], \"scale\": 1}",
        "{\"crop\": 40, \"mean\": [0.4,0.5,0.6], \"std\": [0.2,0.3,0.25], \"channels\": \"bgr\"}",
    };
    static uint8_t bytes[40 * 40 * 3];
    struct jpeg_bytes j = jpeg_make(JPEG_RGB, 33, 25, -1);

    for (size_t k = 0; k < sizeof json / sizeof *json; k++) {
        struct hapi_transform t = transform(json[k]);
        CHECK(!hapi_decode(decoder, &t, j.p, j.n, out, NULL));
        memset(bytes, 0xaa, sizeof bytes);
        CHECK(!hapi_decode_bytes(decoder, &t, j.p, j.n, bytes, NULL));
        size_t n = (size_t)t.crop_h * (size_t)t.crop_w, bad = 0;
        for (size_t i = 0; i < 3 * n; i++) {
            size_t c = i % 3;
            float v = (float)bytes[i - c + (t.bgr ? 2 - c : c)];
            bad += out[i] != (v * t.scale - t.mean[c]) / t.std[c];
        }
        CHECKF(!bad, "%zu of %zu", bad, 3 * n);
        CHECK(hapi_decode_bytes(decoder, &t, j.p, j.n / 2, bytes, NULL) == HAPI_EDECODE);
    }
    free(j.p);
}

static void resize__every_way__bit_identical(void)
{
    struct hapi_resize_scratch a = {0}, b = {0};
    for (int i = 0; i < 400; i++) {
        struct hapi_image im = {.w = 1 + below(90), .h = 1 + below(90)};
        im.stride = (size_t)im.w * 4;
        struct hapi_resize job = {.full_w = 1 + below(150), .full_h = 1 + below(150)};
        job.full_w = below(8) ? job.full_w : im.w;
        job.full_h = below(8) ? job.full_h : im.h;
        job.w = 1 + below((int32_t)job.full_w);
        job.h = 1 + below((int32_t)job.full_h);
        job.x = below((int32_t)job.full_w - job.w + 1);
        job.y = below((int32_t)job.full_h - job.h + 1);
        job.how = (enum hapi_interpolation)below(3);
        size_t n = im.stride * (size_t)im.h + 32, m = (size_t)job.w * (size_t)job.h * 4;
        uint8_t *in = malloc(n), *p = malloc(m + 32), *q = malloc(m + 32);
        REQUIRE(in && p && q);
        for (size_t k = 0; k < n; k++)
            in[k] = below(4) ? (uint8_t)below(256) : below(2) ? 255 : 0; /* extremes make cubic overshoot */
        im.pixels = in;
        CHECK(!hapi_resize_run(&a, &im, &job, p, false) && !hapi_resize_run(&b, &im, &job, q, true));
        for (size_t k = 0; k < m; k++)
            if (k % 4 != 3 && p[k] != q[k]) {
                CHECKF(0, "round %d byte %zu: %d, %d", i, k, p[k], q[k]);
                break;
            }
        free(in);
        free(p);
        free(q);
    }
    hapi_resize_scratch_fini(&a);
    hapi_resize_scratch_fini(&b);
}

static void many_images__scratch_grows_only_for_larger_ones(void)
{
    struct hapi_transform t = transform("{\"resize\": 64, \"crop\": 56}");
    struct jpeg_bytes big = jpeg_make(JPEG_RGB, 300, 200, -1), small = jpeg_make(JPEG_CMYK, 100, 120, -1);

    CHECK(!hapi_decode(decoder, &t, big.p, big.n, out, NULL));
    CHECK(!hapi_decode(decoder, &t, small.p, small.n, out, NULL));
    CHECK(!hapi_decode(decoder, &t, big.p, big.n, out, NULL));
    size_t before = mallinfo2().uordblks + mallinfo2().hblkhd;
    for (int i = 0; i < 50; i++) {
        CHECK(!hapi_decode(decoder, &t, small.p, small.n, out, NULL));
        CHECK(hapi_decode(decoder, &t, big.p, big.n / 2, out, NULL) == HAPI_EDECODE);
        CHECK(!hapi_decode(decoder, &t, big.p, big.n, out, NULL));
    }
    size_t after = mallinfo2().uordblks + mallinfo2().hblkhd;
    CHECKF(after == before, "%zu bytes before, %zu after", before, after);
    free(big.p);
    free(small.p);
}

int main(void)
{
    struct hapi_err err = {0};
    REQUIRE(!hapi_decoder_new(&decoder, 0, &err));
    CASE(not_a_jpeg__edecode);
    CASE(cut_at_any_byte__edecode__whole__same_as_fresh);
    CASE(corrupt_scan__edecode);
    CASE(named_size_over_the_limit__etoobig_at_once);
    CASE(resize_beyond_reason__etoobig);
    CASE(thousands_of_scans__edecode_at_once);
    CASE(flat_image__known_numbers_and_padding);
    CASE(bgr__channels_swapped_before_mean);
    CASE(bytes__normalised__are_the_floats);
    CASE(resize__every_way__bit_identical);
    CASE(many_images__scratch_grows_only_for_larger_ones);
    hapi_decoder_free(decoder);
    hapi_decoder_free(NULL);
    return check_done();
}
