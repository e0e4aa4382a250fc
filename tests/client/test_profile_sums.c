/* What a profile is made of once all is measured: medians, lines, what is filled in, numbers with units. */
#include <math.h>

#include "check.h"
#include "grid.h"
#include "quantity.h"
#include "series.h"

static bool near(double a, double b)
{
    return fabs(a - b) <= 1e-9 * fabs(b) + 1e-15;
}

static void series__some_far_off__median_and_quartiles(void)
{
    struct series s = {0};

    CHECK(isnan(series_median(&s)) && isnan(series_spread(&s)));
    series_add(&s, 5);
    CHECK(series_median(&s) == 5 && isnan(series_spread(&s)));
    for (int i = 1; i <= 4; i++)
        series_add(&s, i == 4 ? 1000 : i);
    CHECK(series_median(&s) == 3); /* 1 2 3 5 1000 */
    CHECK(near(series_spread(&s), (5.0 - 2) / 3));
}

static void series__more_than_it_holds__the_last_ones(void)
{
    struct series s = {0};

    for (int i = 0; i < 10 * SERIES_MAX; i++)
        series_add(&s, i < 9 * SERIES_MAX ? 7 : 9);
    CHECK(series_median(&s) == 9);
}

static void points__a_quarter_far_off__the_line(void)
{
    struct points p = {0};

    CHECK(isnan(points_slope(&p, 1)) && isnan(points_offset(&p, 1)));
    for (int i = 0; i < 40; i++)
        points_add(&p, 1000 * i, 0.25 + 3e-6 * 1000 * i + (i % 4 ? 0 : 0.7 + i));
    CHECK(near(points_slope(&p, 1000), 3e-6));
    CHECK(near(points_offset(&p, 3e-6), 0.25));
    CHECK(isnan(points_slope(&p, 1e6))); /* no two are so far apart */
}

static void order__broken_off_anywhere__even(void)
{
    for (uint32_t n = 1; n < 70; n++) {
        uint32_t order[70];
        bool seen[70] = {false};
        grid_order(order, n);
        for (uint32_t i = 0; i < n; i++) {
            CHECK(order[i] < n && !seen[order[i]]);
            seen[order[i]] = true;
        }
        CHECK(order[0] == 0 && (n == 1 || order[1] == n - 1));
        if (n < 20)
            continue;
        memset(seen, 0, sizeof seen);
        for (uint32_t i = 0; i < n / 2; i++)
            seen[order[i]] = true;
        for (uint32_t i = 0, gap = 0; i < n; i++) {
            gap = seen[i] ? 0 : gap + 1;
            CHECKF(gap <= 4, "%u of %u", i, n);
        }
    }
}

/* Time is a + f(b) of a cut: linear in the work, with the same shape in the batch. */
static double truth(double x, uint32_t batch)
{
    return (0.1 + x) * (1 + 1.0 / batch);
}

enum { CUTS = 9, BATCHES = 3 };
static const uint32_t batches[BATCHES] = {1, 4, 8};
static double x[CUTS], s[CUTS * BATCHES];
static bool measured[CUTS * BATCHES];

static struct grid grid_of(const uint32_t *limit)
{
    memset(measured, 0, sizeof measured);
    for (int i = 0; i < CUTS; i++)
        x[i] = i / 8.0;
    return (struct grid){CUTS, BATCHES, batches, 2, x, limit, measured, s};
}

static void measure(uint32_t cut, uint32_t batch)
{
    measured[cut * BATCHES + batch] = true;
    s[cut * BATCHES + batch] = truth(x[cut], batches[batch]);
}

static void fill__a_few_measured__all_as_they_are(void)
{
    struct grid g = grid_of(NULL);

    measure(0, 2), measure(3, 2), measure(8, 2);
    measure(3, 0), measure(3, 1);
    grid_fill(&g);
    for (uint32_t i = 0; i < CUTS; i++)
        for (uint32_t b = 0; b < BATCHES; b++)
            CHECK(near(s[i * BATCHES + b], truth(x[i], batches[b])));
}

static void fill__only_the_main_batch__the_others_unknown(void)
{
    struct grid g = grid_of(NULL);

    measure(0, 2), measure(8, 2);
    grid_fill(&g);
    CHECK(near(s[4 * BATCHES + 2], truth(0.5, 8)));
    CHECK(isnan(s[4 * BATCHES]) && isnan(s[4 * BATCHES + 1]));
}

static void fill__limits__beyond_them_unknown(void)
{
    static const uint32_t limit[CUTS] = {1, 1, 2, 3, 3, 3, 3, 3, 3};
    struct grid g = grid_of(limit);

    CHECK(grid_main(&g, 0) == 0 && grid_main(&g, 2) == 1 && grid_main(&g, 5) == 2);
    measure(0, 0), measure(4, 2), measure(8, 2);
    measure(4, 0), measure(4, 1);
    grid_fill(&g);
    CHECK(near(s[1 * BATCHES], truth(x[1], 1)));
    CHECK(isnan(s[1 * BATCHES + 1]) && isnan(s[1 * BATCHES + 2]) && isnan(s[2 * BATCHES + 2]));
    CHECK(near(s[6 * BATCHES + 1], truth(x[6], 4)));
    CHECK(s[2 * BATCHES + 1] > 0);
}

static void fill__nothing_left_at_the_end__zero(void)
{
    struct grid g = grid_of(NULL);

    for (uint32_t b = 0; b < BATCHES; b++) {
        measured[8 * BATCHES + b] = true;
        s[8 * BATCHES + b] = 0;
    }
    measure(0, 2), measure(0, 0);
    grid_fill(&g);
    CHECK(s[8 * BATCHES] == 0);
    CHECK(near(s[4 * BATCHES + 2], truth(0, 8) / 2));
    CHECK(near(s[4 * BATCHES], truth(0, 1) / 2));
}

static void straighten__noise__neighbours_take_their_mean(void)
{
    static const double rising[] = {1, 3, 2, 4, 8, 6, 5, 9},
                        straight[] = {1, 2.5, 2.5, 4, 19 / 3.0, 19 / 3.0, 19 / 3.0, 9};
    struct grid g = grid_of(NULL);

    for (int rises = 0; rises < 2; rises++) {
        for (uint32_t i = 0; i < 8; i++) { /* cut 3 was not measured */
            uint32_t k = rises ? i : 7 - i, cut = i + (i >= 3);
            measured[cut * BATCHES + 1] = true;
            s[cut * BATCHES + 1] = rising[k];
        }
        s[3 * BATCHES + 1] = -1;
        CHECK(grid_straighten(&g, rises) == 0);
        for (uint32_t i = 0; i < 8; i++)
            CHECK(near(s[(i + (i >= 3)) * BATCHES + 1], straight[rises ? i : 7 - i]));
        CHECK(s[3 * BATCHES + 1] == -1);
    }
}

static void quantities__with_units__read(void)
{
    double v;

    CHECK(quantity_rate("100Mbit", &v) && near(v, 12.5e6));
    CHECK(quantity_rate("1.5Gbit", &v) && near(v, 187.5e6));
    CHECK(quantity_rate("125000", &v) && v == 125000);
    CHECK(quantity_rate("12.5MB", &v) && near(v, 12.5e6));
    CHECK(!quantity_rate("0", &v) && !quantity_rate("-1", &v) && !quantity_rate("nan", &v));
    CHECK(!quantity_rate("10 Mbit", &v) && !quantity_rate("10Mb", &v) && !quantity_rate("", &v));
    CHECK(quantity_rate("10Gbit", &v) && near(v, 1.25e9));
    CHECK(quantity_rate("12500000", &v) && v == 12500000);
    CHECK(quantity_rate("8bit", &v) && near(v, 1));
    v = 7;
    CHECK(!quantity_rate("1e999", &v) && !quantity_rate("1e15", &v) && !quantity_rate("8001Tbit", &v));
    CHECK(!quantity_rate("fast", &v) && !quantity_rate("0x10", &v) && v == 7);
    CHECK(quantity_bytes("4G", &v) && v == 4294967296.0);
    CHECK(quantity_bytes("0", &v) && v == 0);
    CHECK(!quantity_bytes("4Gb", &v) && !quantity_bytes("G", &v) && !quantity_bytes("-1", &v));
    CHECK(quantity_number("1e-3", 0, 1, &v) && v == 1e-3);
    CHECK(!quantity_number("2", 0, 1, &v) && !quantity_number("0.5x", 0, 1, &v));
    CHECK(!quantity_number("inf", 0, 1e9, &v));
}

int main(void)
{
    CASE(series__some_far_off__median_and_quartiles);
    CASE(series__more_than_it_holds__the_last_ones);
    CASE(points__a_quarter_far_off__the_line);
    CASE(order__broken_off_anywhere__even);
    CASE(fill__a_few_measured__all_as_they_are);
    CASE(fill__only_the_main_batch__the_others_unknown);
    CASE(fill__limits__beyond_them_unknown);
    CASE(fill__nothing_left_at_the_end__zero);
    CASE(straighten__noise__neighbours_take_their_mean);
    CASE(quantities__with_units__read);
    return check_done();
}
