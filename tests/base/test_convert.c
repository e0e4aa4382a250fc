#include <math.h>
#include <time.h>

#include "check.h"
#include "clock.h"
#include "convert_ways.h"

/* What the standard says a half is worth; the code under test does it with shifts. */
static double half_value(uint16_t h)
{
    int e = h >> 10 & 31, m = h & 0x3ff;
    double v = e == 31 ? (m ? NAN : INFINITY) : e ? ldexp(1024 + m, e - 25) : ldexp(m, -24);
    return h & 0x8000 ? -v : v;
}

static uint32_t bits(float f)
{
    uint32_t u;
    memcpy(&u, &f, 4);
    return u;
}

static float value(uint32_t u)
{
    float f;
    memcpy(&f, &u, 4);
    return f;
}

enum { HALVES = 65536 };
static uint16_t all[HALVES], back[HALVES];
static float wide[HALVES];

static void halves__all_65536__exact_and_round_trip(void)
{
    for (int w = 0; w < HAPI_WAY_COUNT; w++) {
        if (!hapi_way_usable(w))
            continue;
        CHECK(!hapi_convert_by(w, wide, HAPI_F32, all, HAPI_F16, HALVES));
        CHECK(!hapi_convert_by(w, back, HAPI_F16, wide, HAPI_F32, HALVES));
        for (int i = 0; i < HALVES; i++) {
            double want = half_value(all[i]);
            if (isnan(want)) {
                CHECKF(isnan(wide[i]) && bits(wide[i]) & 0x400000, "way %d half %04x", w, i);
                CHECKF((back[i] & 0x7fff) > 0x7c00, "way %d half %04x came back as %04x", w, i, back[i]);
            } else {
                CHECKF((double)wide[i] == want && !signbit(wide[i]) == !signbit(want), "way %d half %04x", w,
                       i);
                CHECKF(back[i] == all[i], "way %d half %04x came back as %04x", w, i, back[i]);
            }
        }
    }
}

static void bf16__all_65536__exact_and_round_trip(void)
{
    for (int w = 0; w < HAPI_WAY_COUNT; w++) {
        if (!hapi_way_usable(w))
            continue;
        CHECK(!hapi_convert_by(w, wide, HAPI_F32, all, HAPI_BF16, HALVES));
        CHECK(!hapi_convert_by(w, back, HAPI_BF16, wide, HAPI_F32, HALVES));
        for (int i = 0; i < HALVES; i++) {
            int nan = (i & 0x7fff) > 0x7f80;
            CHECKF(bits(wide[i]) == (uint32_t)i << 16, "way %d bf16 %04x", w, i);
            CHECKF(back[i] == (nan ? i | 0x40 : i), "way %d bf16 %04x came back as %04x", w, i, back[i]);
        }
    }
}

/* Nearest-even in doubles, by comparing the two neighbours: independent of the code under test. */
static uint16_t nearest_half(float f)
{
    uint16_t sign = signbit(f) ? 0x8000 : 0;
    double a = fabs((double)f);
    int lo = 0, hi = 0x7c00; /* 0x7c00 stands for 65536 here, as if the exponent went on */

    if (a >= 65536)
        return sign | 0x7c00;
    while (hi - lo > 1) {
        int mid = (lo + hi) / 2;
        *(half_value((uint16_t)mid) <= a ? &lo : &hi) = mid;
    }
    double down = a - half_value((uint16_t)lo), up = (hi == 0x7c00 ? 65536.0 : half_value((uint16_t)hi)) - a;
    return sign | (uint16_t)(down < up || (down == up && !(lo & 1)) ? lo : hi);
}

static uint16_t nearest_bf16(float f)
{
    uint32_t u = bits(f), lo = u >> 16, hi = lo + 1;
    double down = fabs((double)f) - fabs((double)value(lo << 16));
    double up = ((hi & 0x7fff) == 0x7f80 ? 0x1p128 : fabs((double)value(hi << 16))) - fabs((double)f);
    if (isinf(f))
        return (uint16_t)lo;
    return (uint16_t)(down < up || (down == up && !(lo & 1)) ? lo : hi);
}

static int nan_is_kept(uint16_t h, uint16_t b, uint32_t u)
{
    return (h & 0x7fff) > 0x7c00 && (b & 0x7fff) > 0x7f80 && h >> 15 == u >> 31 && b >> 15 == u >> 31;
}

/* Around every half and every bf16: the value, the ties to both sides, and one ulp beside each. */
static size_t around(uint32_t *out, uint32_t i)
{
    static const int32_t near[] = {-1, 0, 1};
    uint32_t half = bits((float)half_value((uint16_t)i));
    uint32_t centre[] = {half, half + 0x1000, half - 0x1000, i << 16, (i << 16) + 0x8000, (i << 16) + 0x7f00};
    size_t n = 0;

    for (size_t c = 0; c < sizeof centre / sizeof *centre; c++)
        for (size_t k = 0; k < 3; k++)
            out[n++] = centre[c] + (uint32_t)near[k];
    return n;
}

static void one_block(const uint32_t *u, size_t n)
{
    uint16_t h[3][64], b[3][64];

    for (int w = 0; w < HAPI_WAY_COUNT; w++) {
        if (!hapi_way_usable(w))
            continue;
        CHECK(!hapi_convert_by(w, h[w], HAPI_F16, u, HAPI_F32, n));
        CHECK(!hapi_convert_by(w, b[w], HAPI_BF16, u, HAPI_F32, n));
        CHECKF(!memcmp(h[w], h[0], 2 * n) && !memcmp(b[w], b[0], 2 * n), "way %d differs at %08x", w, u[0]);
    }
    for (size_t i = 0; i < n; i++) {
        float f = value(u[i]);
        if (isnan(f)) {
            CHECKF(nan_is_kept(h[0][i], b[0][i], u[i]), "%08x -> %04x %04x", u[i], h[0][i], b[0][i]);
            continue;
        }
        CHECKF(h[0][i] == nearest_half(f), "%08x -> %04x, not %04x", u[i], h[0][i], nearest_half(f));
        CHECKF(b[0][i] == nearest_bf16(f), "%08x -> %04x, not %04x", u[i], b[0][i], nearest_bf16(f));
    }
}

static void f32__ties_and_neighbours_of_every_value__nearest_even_in_every_way(void)
{
    uint32_t u[64];

    for (uint32_t i = 0; i < HALVES; i++)
        one_block(u, around(u, i));
}

static void f32__a_step_through_all_bit_patterns__nearest_even_in_every_way(void)
{
    uint32_t u[64], at = 0, step = 20011; /* odd: low bits vary */

    for (uint64_t seen = 0; seen < UINT32_MAX; seen += 64ull * step) {
        for (int i = 0; i < 64; i++, at += step)
            u[i] = at;
        one_block(u, 64);
    }
}

static void between_halves__all_65536__same_in_every_way_and_by_f32(void)
{
    static uint16_t direct[HALVES];
    const enum hapi_dtype pair[2][2] = {{HAPI_F16, HAPI_BF16}, {HAPI_BF16, HAPI_F16}};

    for (int p = 0; p < 2; p++) {
        CHECK(!hapi_convert_by(HAPI_WAY_SCALAR, wide, HAPI_F32, all, pair[p][1], HALVES));
        CHECK(!hapi_convert_by(HAPI_WAY_SCALAR, back, pair[p][0], wide, HAPI_F32, HALVES));
        for (int w = 0; w < HAPI_WAY_COUNT; w++) {
            if (!hapi_way_usable(w))
                continue;
            memset(direct, 0xa5, sizeof direct);
            CHECK(!hapi_convert_by(w, direct, pair[p][0], all, pair[p][1], HALVES));
            CHECKF(!memcmp(direct, back, sizeof back), "way %d pair %d", w, p);
        }
    }
}

static void any_length__every_way__writes_exactly_n(void)
{
    const enum hapi_dtype types[] = {HAPI_F32, HAPI_F16, HAPI_BF16};
    unsigned char src[400], dst[400], want[400];

    for (size_t i = 0; i < sizeof src; i++)
        src[i] = (unsigned char)(i * 37 % 120); /* no NaN */
    for (int d = 0; d < 3; d++)
        for (int s = 0; s < 3; s++)
            for (size_t n = 0; n < 70; n++)
                for (int w = 0; w < HAPI_WAY_COUNT; w++) {
                    if (!hapi_way_usable(w))
                        continue;
                    memset(dst, 0xee, sizeof dst);
                    memset(want, 0xee, sizeof want);
                    CHECK(!hapi_convert_by(w, dst, types[d], src, types[s], n));
                    CHECK(!hapi_convert_by(HAPI_WAY_SCALAR, want, types[d], src, types[s], n));
                    CHECKF(!memcmp(dst, want, sizeof dst), "way %d n %zu", w, n);
                    CHECK(dst[n * hapi_dtype_size(types[d])] == 0xee);
                }
}

static void other_dtypes__unsupported(void)
{
    char a[8] = {0}, b[8] = {0};
    CHECK(hapi_convert(a, HAPI_F32, b, HAPI_I32, 1) == HAPI_EUNSUPPORTED);
    CHECK(hapi_convert(a, HAPI_I8, b, HAPI_I8, 1) == HAPI_EUNSUPPORTED);
    CHECK(hapi_convert(a, HAPI_F64, b, HAPI_F16, 1) == HAPI_EUNSUPPORTED);
    CHECK(hapi_convert(a, HAPI_F32, a, HAPI_F32, 2) == HAPI_OK);
}

static void crc32c__known_answers_lengths_and_chains__equal_in_both_ways(void)
{
    enum { N = 40000 };
    static uint8_t data[N];
    uint32_t x = 1;

    CHECK(hapi_crc32c(0, "123456789", 9) == 0xe3069283);
    CHECK(hapi_crc32c_soft(0, "123456789", 9) == 0xe3069283);
    memset(data, 0, 32);
    CHECK(hapi_crc32c(0, data, 32) == 0x8a9136aa); /* RFC 3720, B.4 */
    memset(data, 0xff, 32);
    CHECK(hapi_crc32c(0, data, 32) == 0x62a8ab43);
    CHECK(hapi_crc32c(7, data, 0) == 7);
    for (size_t i = 0; i < N; i++)
        data[i] = (uint8_t)((x = x * 1664525 + 1013904223) >> 24);
    for (size_t n = 0; n < N; n += n < 2000 ? 1 : 977) {
        uint32_t soft = hapi_crc32c_soft(n & 3 ? 0x12345678 : 0, data + n % 8, n - n % 8);
        uint32_t any = hapi_crc32c(n & 3 ? 0x12345678 : 0, data + n % 8, n - n % 8);
        CHECKF(soft == any, "n %zu", n);
        CHECKF(hapi_crc32c(hapi_crc32c(0, data, n / 3), data + n / 3, n - n / 3) == hapi_crc32c(0, data, n),
               "n %zu", n);
    }
}

/* Against the two of them one after the other, by the scalar way. */
static void fused_case(enum hapi_dtype to, enum hapi_dtype from, size_t n, size_t shift)
{
    static uint8_t src[4 * 3000 + 8], dst[sizeof src], want[sizeof src];

    for (size_t i = 0; i < sizeof src; i++)
        src[i] = (uint8_t)(i * i * 37 + i % 119);
    memset(want, 0xee, sizeof want);
    CHECK(!hapi_convert_by(HAPI_WAY_SCALAR, want + shift, to, src + shift, from, n));
    uint32_t of_src = hapi_crc32c_soft(0xabcdef, src + shift, n * hapi_dtype_size(from));
    uint32_t of_dst = hapi_crc32c_soft(0xabcdef, want + shift, n * hapi_dtype_size(to));
    for (int w = 0; w < HAPI_WAY_COUNT; w++) {
        if (!hapi_way_usable(w))
            continue;
        uint32_t a = 0xabcdef, b = 0xabcdef;
        memset(dst, 0xee, sizeof dst);
        CHECK(!hapi_convert_crc32c_by(w, dst + shift, to, src + shift, from, n, HAPI_CRC_SRC, &a));
        CHECKF(a == of_src && !memcmp(dst, want, sizeof dst), "way %d, %d from %d, n %zu", w, to, from, n);
        memset(dst, 0xee, sizeof dst);
        CHECK(!hapi_convert_crc32c_by(w, dst + shift, to, src + shift, from, n, HAPI_CRC_DST, &b));
        CHECKF(b == of_dst && !memcmp(dst, want, sizeof dst), "way %d, %d from %d, n %zu", w, to, from, n);
    }
}

static void convert_crc32c__all_pairs_lengths_and_ways__as_one_after_the_other(void)
{
    static const enum hapi_dtype types[] = {HAPI_F32, HAPI_F16, HAPI_BF16};
    static const size_t lengths[] = {0, 1, 7, 16, 383, 384, 385, 767, 768, 769, 1151, 1280, 2999};
    uint32_t crc = 5;
    float f = 1;

    for (int to = 0; to < 3; to++)
        for (int from = 0; from < 3; from++)
            for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++)
                for (size_t shift = 0; shift < 8; shift += 6)
                    fused_case(types[to], types[from], lengths[i], shift);
    CHECK(hapi_convert_crc32c(&f, HAPI_F32, &f, HAPI_I32, 1, HAPI_CRC_SRC, &crc) == HAPI_EUNSUPPORTED);
    CHECK(crc == 5);
    CHECK(!hapi_convert_crc32c(&f, HAPI_F32, &f, HAPI_F32, 1, HAPI_CRC_SRC, &crc));
    CHECK(crc == hapi_crc32c(5, &f, 4));
}

static void sha256__known_answer(void)
{
    static const uint8_t abc[4] = {0xba, 0x78, 0x16, 0xbf}, empty[4] = {0xe3, 0xb0, 0xc4, 0x42};
    uint8_t out[32];
    hapi_sha256(out, "abc", 3);
    CHECK(!memcmp(out, abc, 4) && out[31] == 0xad);
    hapi_sha256(out, "", 0);
    CHECK(!memcmp(out, empty, 4) && out[31] == 0x55);
}

static void speed(void)
{
    enum { N = 1 << 20 };
    static float f[N];
    static uint16_t h[N];

    for (int w = 0; w < HAPI_WAY_COUNT; w++) {
        if (!hapi_way_usable(w))
            continue;
        int64_t t0 = hapi_clock_ns();
        hapi_convert_by(w, h, HAPI_F16, f, HAPI_F32, N);
        int64_t t1 = hapi_clock_ns();
        hapi_convert_by(w, h, HAPI_BF16, f, HAPI_F32, N);
        printf("way %d: f32->f16 %.2f ns, f32->bf16 %.2f ns an element\n", w, (double)(t1 - t0) / N,
               (double)(hapi_clock_ns() - t1) / N);
    }
    uint32_t fused = 0;
    int64_t f0 = hapi_clock_ns();
    hapi_convert_crc32c(h, HAPI_F16, f, HAPI_F32, N, HAPI_CRC_DST, &fused);
    printf("f32->f16 with its crc32c %.2f ns an element\n", (double)(hapi_clock_ns() - f0) / N);
    CHECK(fused == hapi_crc32c(0, h, sizeof h));
    int64_t t0 = hapi_clock_ns();
    uint32_t a = hapi_crc32c(0, f, sizeof f);
    int64_t t1 = hapi_clock_ns();
    uint32_t b = hapi_crc32c_soft(0, f, sizeof f);
    int64_t t2 = hapi_clock_ns();
    printf("crc32c: %.1f GB/s, tables %.1f GB/s\n", sizeof f / (double)(t1 - t0),
           sizeof f / (double)(t2 - t1));
    CHECK(a == b);
}

/* ---- --speed: the tables of docs/benchmarks.md, by each way. CPU seconds per GB of what is on the wire ----
 */

enum { PART = 8 * 1280, ROUNDS = 15 }; /* elements of a micro-batch of EfficientNet's features */

static enum hapi_way part_way;
static float *part_f32;
static void *part_wire;
static volatile uint32_t sink;
static const struct hapi_i8 part_runs = {1280, 0, 20};        /* vectors */
static const struct hapi_i8 part_channels = {PART, 160, 160}; /* 8 x 8 positions */

static void to_f16(void)
{
    hapi_convert_by(part_way, part_wire, HAPI_F16, part_f32, HAPI_F32, PART);
}

static void to_f16_then_crc(void)
{
    to_f16();
    sink = hapi_crc32c(0, part_wire, PART * 2);
}

static void to_f16_with_crc(void)
{
    uint32_t crc = 0;
    hapi_convert_crc32c_by(part_way, part_wire, HAPI_F16, part_f32, HAPI_F32, PART, HAPI_CRC_DST, &crc);
    sink = crc;
}

static void from_f16(void)
{
    hapi_convert_by(part_way, part_f32, HAPI_F32, part_wire, HAPI_F16, PART);
}

static void crc_then_from_f16(void)
{
    sink = hapi_crc32c(0, part_wire, PART * 2);
    from_f16();
}

static void from_f16_with_crc(void)
{
    uint32_t crc = 0;
    hapi_convert_crc32c_by(part_way, part_f32, HAPI_F32, part_wire, HAPI_F16, PART, HAPI_CRC_SRC, &crc);
    sink = crc;
}

static void to_bf16(void)
{
    hapi_convert_by(part_way, part_wire, HAPI_BF16, part_f32, HAPI_F32, PART);
}

static void from_bf16(void)
{
    hapi_convert_by(part_way, part_f32, HAPI_F32, part_wire, HAPI_BF16, PART);
}

static void i8(const struct hapi_i8 *f, bool to, bool check)
{
    uint32_t crc = 0;

    if (to)
        hapi_i8_pack_by(part_way, part_wire, part_f32, f, PART / f->elements, check ? &crc : NULL);
    else
        hapi_i8_unpack_by(part_way, part_f32, part_wire, f, PART / f->elements, check ? &crc : NULL);
    sink = crc;
}

static void to_i8_runs(void)
{
    i8(&part_runs, true, false);
}

static void to_i8_channels(void)
{
    i8(&part_channels, true, false);
}

static void to_i8_runs_with_crc(void)
{
    i8(&part_runs, true, true);
}

static void to_i8_channels_with_crc(void)
{
    i8(&part_channels, true, true);
}

static void from_i8_runs(void)
{
    i8(&part_runs, false, false);
}

static void from_i8_channels(void)
{
    i8(&part_channels, false, false);
}

static void from_i8_runs_with_crc(void)
{
    i8(&part_runs, false, true);
}

static void from_i8_channels_with_crc(void)
{
    i8(&part_channels, false, true);
}

static void f32_crc(void)
{
    sink = hapi_crc32c(0, part_f32, PART * 4);
}

static const struct {
    const char *name;
    void (*run)(void);
    double bytes; /* on the wire, of an element */
} speeds[] = {
    {"f32 -> f16", to_f16, 2},
    {"f32 -> f16, then crc", to_f16_then_crc, 2},
    {"f32 -> f16 with crc", to_f16_with_crc, 2},
    {"f16 -> f32", from_f16, 2},
    {"crc, then f16 -> f32", crc_then_from_f16, 2},
    {"f16 -> f32 with crc", from_f16_with_crc, 2},
    {"f32 -> bf16", to_bf16, 2},
    {"bf16 -> f32", from_bf16, 2},
    {"f32 -> int8, runs", to_i8_runs, 1.0625},
    {"f32 -> int8, channels", to_i8_channels, 1.0625},
    {"f32 -> int8, runs, with crc", to_i8_runs_with_crc, 1.0625},
    {"f32 -> int8, channels, with crc", to_i8_channels_with_crc, 1.0625},
    {"int8 -> f32, runs", from_i8_runs, 1.0625},
    {"int8 -> f32, channels", from_i8_channels, 1.0625},
    {"int8 -> f32, runs, with crc", from_i8_runs_with_crc, 1.0625},
    {"int8 -> f32, channels, with crc", from_i8_channels_with_crc, 1.0625},
    {"crc of f32", f32_crc, 4},
};

static double cpu_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

/* Part after part through `pool` bytes of f32: how large it is says which cache they come from. */
static void speed_table(size_t pool)
{
    static const char *const ways[] = {"scalar", "avx2", "avx512"};
    enum { N = sizeof speeds / sizeof *speeds };
    static double took[N][ROUNDS];
    size_t parts = pool / (PART * 4) + 1, calls = ((size_t)1 << 26) / (PART * 4) * (part_way ? 4 : 1);
    float *f32 = aligned_alloc(4096, parts * PART * 4);
    uint8_t *wire = aligned_alloc(4096, parts * PART * 2);

    REQUIRE(f32 && wire);
    for (size_t i = 0; i < parts * PART; i++)
        f32[i] = (float)(i % 1000) / 100;
    memset(wire, 1, parts * PART * 2);
    for (int round = 0; round < ROUNDS; round++)
        for (int k = 0; k < N; k++) {
            double from = cpu_s();
            for (size_t i = 0; i < calls; i++) {
                part_f32 = f32 + i % parts * PART;
                part_wire = wire + i % parts * PART * 2;
                speeds[k].run();
            }
            took[k][round] = (cpu_s() - from) * 1e9 / (double)(calls * PART);
        }
    for (int k = 0; k < N; k++) {
        qsort(took[k], ROUNDS, sizeof(double), by_value);
        printf(
            "{\"way\": \"%s\", \"pool_kib\": %zu, \"what\": \"%s\", \"ns_per_element\": %.3f, \"min\": %.3f, "
            "\"max\": %.3f, \"n\": %d, \"cpu_s_per_gb\": %.4f}\n",
            ways[part_way], pool >> 10, speeds[k].name, took[k][ROUNDS / 2], took[k][0], took[k][ROUNDS - 1],
            ROUNDS, took[k][ROUNDS / 2] / speeds[k].bytes);
    }
    free(f32);
    free(wire);
}

int main(int argc, char **argv)
{
    if (argc == 2 && !strcmp(argv[1], "--speed")) {
        for (part_way = 0; part_way < HAPI_WAY_COUNT; part_way++)
            for (size_t pool = 32 << 10; hapi_way_usable(part_way) && pool <= 1 << 30; pool <<= 5)
                speed_table(pool);
        return 0;
    }
    for (int i = 0; i < HALVES; i++)
        all[i] = (uint16_t)i;
    CASE(halves__all_65536__exact_and_round_trip);
    CASE(bf16__all_65536__exact_and_round_trip);
    CASE(f32__ties_and_neighbours_of_every_value__nearest_even_in_every_way);
    CASE(f32__a_step_through_all_bit_patterns__nearest_even_in_every_way);
    CASE(between_halves__all_65536__same_in_every_way_and_by_f32);
    CASE(any_length__every_way__writes_exactly_n);
    CASE(other_dtypes__unsupported);
    CASE(crc32c__known_answers_lengths_and_chains__equal_in_both_ways);
    CASE(convert_crc32c__all_pairs_lengths_and_ways__as_one_after_the_other);
    CASE(sha256__known_answer);
    CASE(speed);
    return check_done();
}
