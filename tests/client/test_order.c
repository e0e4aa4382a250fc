#include "check.h"
#include "order.h"

enum { N = 1000 };

static void shuffle__any_seed_and_epoch__a_permutation(void)
{
    for (uint32_t epoch = 0; epoch < 5; epoch++) {
        uint32_t order[N], seen[N] = {0}, fixed = 0, twice = 0;
        hapi_order_shuffle(order, N, 42, epoch);
        for (uint32_t i = 0; i < N; i++) {
            REQUIRE(order[i] < N);
            twice += seen[order[i]]++ > 0;
            fixed += order[i] == i;
        }
        CHECK(twice == 0);
        CHECKF(fixed < 10, "%u fixed points", fixed);
    }
}

static void shuffle__same_seed_and_epoch__same_order__others_differ(void)
{
    uint32_t a[N], b[N], c[N], d[N], same_epoch = 0, same_seed = 0;

    hapi_order_shuffle(a, N, 7, 3);
    hapi_order_shuffle(b, N, 7, 3);
    hapi_order_shuffle(c, N, 7, 4);
    hapi_order_shuffle(d, N, 8, 3);
    CHECK(!memcmp(a, b, sizeof a));
    for (int i = 0; i < N; i++) {
        same_epoch += a[i] == c[i];
        same_seed += a[i] == d[i];
    }
    CHECK(same_epoch < 10 && same_seed < 10);
}

/* Uniform: each position of a short order takes each value equally often (chi-square, 16 x 15 degrees). */
static void shuffle__many_epochs__uniform(void)
{
    enum { SHORT = 16, TIMES = 16000 };
    static unsigned count[SHORT][SHORT];
    double chi = 0, expected = (double)TIMES / SHORT;

    for (uint32_t e = 0; e < TIMES; e++) {
        uint32_t order[SHORT];
        hapi_order_shuffle(order, SHORT, 1, e);
        for (int i = 0; i < SHORT; i++)
            count[i][order[i]]++;
    }
    for (int i = 0; i < SHORT; i++)
        for (int k = 0; k < SHORT; k++)
            chi += (count[i][k] - expected) * (count[i][k] - expected) / expected;
    CHECKF(chi > 150 && chi < 320, "chi-square %.1f", chi); /* 225 expected, sigma 21 */
}

int main(void)
{
    CASE(shuffle__any_seed_and_epoch__a_permutation);
    CASE(shuffle__same_seed_and_epoch__same_order__others_differ);
    CASE(shuffle__many_epochs__uniform);
    return check_done();
}
