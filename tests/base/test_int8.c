/* int8 with scales: every way against the definition (int8.h), computed here in double. */
#include <float.h>
#include <math.h>
#include <string.h>

#include "check.h"
#include "convert_ways.h"

enum { MOST = 20 * 600 + 64 };

static float x[MOST + 2], back[MOST + 2];
static uint8_t want[5 * MOST], row[5 * MOST + 64];

static uint32_t random_next(void)
{
    static uint32_t s = 1;
    s ^= s << 13;
    s ^= s >> 17;
    return s ^= s << 5;
}

static void fill(size_t n)
{
    for (size_t i = 0; i < n; i++) {
        float f = (float)(int32_t)random_next() / 65536;
        x[i] = random_next() % 8 ? f : 0;
    }
}

/* Whose scale element i has. */
static size_t scale_of(const struct hapi_i8 *f, size_t i)
{
    return f->channels ? i % f->channels : i / HAPI_I8_RUN;
}

/* The definition, element by element. */
static void plain(uint8_t *to, const float *from, const struct hapi_i8 *f)
{
    for (size_t s = 0; s < f->scales; s++) {
        float max = 0, scale;
        bool odd = false;
        for (size_t i = 0; i < f->elements; i++)
            if (scale_of(f, i) == s) {
                odd |= !isfinite(from[i]);
                max = fabsf(from[i]) > max ? fabsf(from[i]) : max;
            }
        bool zero = !odd && max < 127 * ldexpf(1, -126);
        scale = odd ? NAN : zero ? 0 : max / 127;
        scale = isinf(scale * 127) ? nextafterf(scale, 0) : scale;
        uint32_t nan = 0x7fc00000;
        memcpy(to + 4 * s, odd ? (void *)&nan : (void *)&scale, 4);
        for (size_t i = 0; i < f->elements; i++)
            if (scale_of(f, i) == s) {
                float inverse = 127 / max, t = from[i] * inverse;
                to[4 * f->scales + i] = odd || zero ? 0 : (uint8_t)(int8_t)rint((double)t);
            }
    }
}

static struct hapi_i8 form(int64_t h, int64_t w, int64_t c)
{
    struct hapi_shape shape = {.rank = 4, .dim = {8, c, h, w}};
    struct hapi_i8 f;

    REQUIRE(!hapi_i8_form(&f, &shape));
    return f;
}

/* x as it stands, by every way, at a shift of the bytes: the same bytes, no byte beside them, and back. */
static void all_ways(const struct hapi_i8 *f, const float *from, size_t shift)
{
    size_t n = hapi_i8_row(f);

    plain(want, from, f);
    for (int w = 0; w < HAPI_WAY_COUNT; w++) {
        uint32_t crc = 7, again = 7;
        if (!hapi_way_usable(w))
            continue;
        memset(row, 0xee, n + 64);
        memset(back, 0xee, sizeof back);
        hapi_i8_pack_by(w, row + shift, from, f, 1, &crc);
        CHECKF(!memcmp(row + shift, want, n), "way %d, %zu elements, %zu channels", w, f->elements,
               f->channels);
        CHECK(row[shift + n] == 0xee && (!shift || row[shift - 1] == 0xee));
        CHECK(crc == hapi_crc32c_soft(7, want, n));
        CHECK(!hapi_i8_unpack_by(w, back + 1, row + shift, f, 1, &again) && again == crc);
        for (size_t i = 0; i < f->elements; i++) {
            float s, q = (float)(int8_t)want[4 * f->scales + i];
            memcpy(&s, want + 4 * scale_of(f, i), 4);
            float y = q * s;
            CHECKF(isnan(y) ? isnan(back[1 + i]) : y == back[1 + i], "way %d element %zu", w, i);
            CHECK(isnan(y) || fabsf(y - from[i]) <= s * 0.50001f || s == 0);
        }
        CHECK(!memcmp(back, "\xee\xee\xee\xee", 4) && !memcmp(back + 1 + f->elements, "\xee\xee\xee\xee", 4));
    }
}

static void form__by_shape__channels_where_they_pay(void)
{
    struct hapi_shape s = {.rank = 4, .dim = {32, 1280, 7, 7}};
    struct hapi_i8 f;
    uint64_t bytes;

    CHECK(!hapi_i8_form(&f, &s) && f.elements == 62720 && f.channels == 1280 && f.scales == 1280);
    CHECK(!hapi_wire_row(&s, HAPI_I8, &bytes) && bytes == 62720 + 5120 && bytes == hapi_i8_row(&f));
    CHECK(!hapi_wire_row(&s, HAPI_BF16, &bytes) && bytes == 2 * 62720);
    s = (struct hapi_shape){.rank = 3, .dim = {1, 197, 768}}; /* ViT's tokens */
    CHECK(!hapi_i8_form(&f, &s) && f.channels == 768 && f.scales == 768);
    s = (struct hapi_shape){.rank = 4, .dim = {1, 5, 3, 5}}; /* 15 positions */
    CHECK(!hapi_i8_form(&f, &s) && !f.channels && f.scales == 2);
    s = (struct hapi_shape){.rank = 2, .dim = {9, 1280}};
    CHECK(!hapi_i8_form(&f, &s) && !f.channels && f.scales == 20);
    CHECK(!hapi_wire_row(&s, HAPI_I8, &bytes) && bytes == 1360);
    CHECK(hapi_wire_row(&s, HAPI_DTYPE_NONE, &bytes) == HAPI_EINVAL);
    s = (struct hapi_shape){.rank = 1, .dim = {4}};
    CHECK(hapi_i8_form(&f, &s) == HAPI_EINVAL);
    s = (struct hapi_shape){.rank = 2, .dim = {1, 0}};
    CHECK(hapi_i8_form(&f, &s) == HAPI_EINVAL);
    s = (struct hapi_shape){.rank = 3, .dim = {1, INT64_MAX, 2}};
    CHECK(hapi_i8_form(&f, &s) == HAPI_ETOOBIG);
    s = (struct hapi_shape){.rank = 2, .dim = {1, INT64_MAX / 2}};
    CHECK(hapi_wire_row(&s, HAPI_F32, &bytes) == HAPI_ETOOBIG);
}

static void channels__every_count_and_alignment__as_defined(void)
{
    for (int64_t c = 1; c <= 80; c++)
        for (size_t shift = 0; shift < 8; shift++) {
            struct hapi_i8 f = form(4, 4 + (int64_t)shift % 3, c);
            CHECK(f.channels == (size_t)c);
            fill(f.elements);
            all_ways(&f, x, shift);
        }
    static const int64_t blocks[] = {255, 256, 257, 272, 511, 513, 600};
    for (size_t i = 0; i < sizeof blocks / sizeof *blocks; i++) {
        struct hapi_i8 f = form(4, 5, blocks[i]);
        fill(f.elements);
        all_ways(&f, x, i);
    }
}

static void runs__every_length_and_alignment__as_defined(void)
{
    for (int64_t n = 1; n <= 300; n++)
        for (size_t shift = 0; shift < 8; shift += 3) {
            struct hapi_i8 f = form(1, 1, n);
            CHECK(!f.channels);
            fill(f.elements);
            all_ways(&f, x + (size_t)n % 3, shift);
        }
}

/* Halves of a step, the ends of the range of f32, zeros of both signs: rounding and the limits. */
static void ties_and_extremes__nearest_even_and_finite(void)
{
    const float ends[] = {127, 1, FLT_MAX, 127 * FLT_MIN, 254 * FLT_MIN, 1e-30f, 3e38f};
    struct hapi_i8 f = form(16, 16, 17), v = form(1, 1, 256);

    for (size_t k = 0; k < sizeof ends / sizeof *ends; k++) {
        for (size_t i = 0; i < f.elements; i++)
            x[i] = ends[k] / 127 * ((float)(int)(i / 17) / 2 - 64) + (i % 17 == 16 ? -0.0f : 0);
        for (size_t i = 0; i < 17; i++)
            x[17 * 255 + i] = i % 2 ? ends[k] : -ends[k];
        all_ways(&f, x, 1);
        all_ways(&v, x, 2);
        for (size_t i = 0; i < v.elements; i++)
            CHECK(isfinite(back[1 + i]));
    }
}

static void zeros_and_too_small__scale_0(void)
{
    const float small[] = {0, -0.0f, 1e-45f, FLT_MIN, 126.9999f * FLT_MIN};
    struct hapi_i8 f = form(4, 4, 40), v = form(1, 1, 100);

    for (size_t k = 0; k < sizeof small / sizeof *small; k++) {
        for (size_t i = 0; i < f.elements; i++)
            x[i] = i % 3 ? small[k] : 0;
        all_ways(&f, x, 0);
        all_ways(&v, x, 0);
        for (size_t i = 0; i < hapi_i8_row(&v); i++)
            CHECK(want[i] == 0);
    }
}

/* Each place in turn: it takes what shares its scale with it, and nothing else. */
static void not_finite__its_scale_is_nan__the_others_are_untouched(void)
{
    const float odd[] = {INFINITY, -INFINITY, NAN, -NAN};

    for (int64_t c = 37, at = 0; at < 16 * c; at += 11) {
        struct hapi_i8 f = form(4, 4, c), v = form(1, 1, 16 * c);
        fill(f.elements);
        x[at] = odd[at % 4];
        all_ways(&f, x, 0);
        for (size_t i = 0; i < f.elements; i++)
            CHECK(isnan(back[1 + i]) == ((int64_t)i % c == at % c));
        all_ways(&v, x, 0);
        for (size_t i = 0; i < v.elements; i++)
            CHECK(isnan(back[1 + i]) == (i / HAPI_I8_RUN == (size_t)at / HAPI_I8_RUN));
    }
}

static void many_samples__none_knows_the_others(void)
{
    struct hapi_i8 forms[] = {form(4, 4, 24), form(1, 1, 130)};

    for (size_t k = 0; k < 2; k++) {
        const struct hapi_i8 *f = &forms[k];
        size_t n = hapi_i8_row(f);
        uint32_t crc = 0, again = 0;
        fill(5 * f->elements);
        hapi_i8_pack(row, x, f, 5, &crc);
        CHECK(crc == hapi_crc32c(0, row, 5 * n));
        for (size_t i = 0; i < 5; i++) {
            plain(want, x + i * f->elements, f);
            CHECK(!memcmp(row + i * n, want, n));
        }
        CHECK(!hapi_i8_unpack(back, row, f, 5, &again) && again == crc);
        CHECK(!hapi_i8_unpack(back, row, f, 5, NULL));
        for (size_t i = 0; i < 5 * f->elements; i++) {
            float s;
            memcpy(&s, row + i / f->elements * n + 4 * scale_of(f, i % f->elements), 4);
            CHECK(fabsf(back[i] - x[i]) <= s * 0.50001f);
        }
    }
}

/* Scales that no sender makes, in each place. */
static void lying_scales__refused(void)
{
    const uint32_t lies[] = {0x80000000, 1,          0x007fffff, 0x7f800000, 0x7f800001,
                             0xffc00000, 0x7fc00001, 0xbf800000, 0x7f7fffff, 0x7c010204};
    struct hapi_i8 forms[] = {form(4, 4, 33), form(1, 1, 130)};

    for (size_t k = 0; k < 2; k++) {
        const struct hapi_i8 *f = &forms[k];
        fill(f->elements);
        for (size_t s = 0; s < f->scales; s++)
            for (size_t i = 0; i < sizeof lies / sizeof *lies; i++)
                for (int w = 0; w < HAPI_WAY_COUNT; w++) {
                    hapi_i8_pack(row, x, f, 1, NULL);
                    memcpy(row + 4 * s, &lies[i], 4);
                    CHECKF(!hapi_way_usable(w) || hapi_i8_unpack_by(w, back, row, f, 1, NULL) == HAPI_EPROTO,
                           "scale %zu is %08x", s, lies[i]);
                }
    }
}

/* Any bytes with any scales that are allowed: no trap, the same in every way. -128 is not sent, and read. */
static void any_bytes__the_same_in_every_way(void)
{
    struct hapi_i8 forms[] = {form(4, 4, 43), form(1, 1, 210)};

    for (size_t k = 0; k < 2; k++)
        for (int round = 0; round < 50; round++) {
            const struct hapi_i8 *f = &forms[k];
            float scale = ldexpf(1 + (float)(random_next() % 1000) / 1000, round * 4 - 100);
            for (size_t i = 0; i < f->scales; i++)
                memcpy(row + 4 * i, &scale, 4);
            for (size_t i = 0; i < f->elements; i++)
                row[4 * f->scales + i] = (uint8_t)random_next();
            CHECK(!hapi_i8_unpack_by(HAPI_WAY_SCALAR, x, row, f, 1, NULL));
            for (int w = 1; w < HAPI_WAY_COUNT; w++)
                if (hapi_way_usable(w)) {
                    CHECK(!hapi_i8_unpack_by(w, back, row, f, 1, NULL));
                    CHECK(!memcmp(back, x, 4 * f->elements));
                }
        }
}

int main(void)
{
    CASE(form__by_shape__channels_where_they_pay);
    CASE(channels__every_count_and_alignment__as_defined);
    CASE(runs__every_length_and_alignment__as_defined);
    CASE(ties_and_extremes__nearest_even_and_finite);
    CASE(zeros_and_too_small__scale_0);
    CASE(not_finite__its_scale_is_nan__the_others_are_untouched);
    CASE(many_samples__none_knows_the_others);
    CASE(lying_scales__refused);
    CASE(any_bytes__the_same_in_every_way);
    return check_done();
}
