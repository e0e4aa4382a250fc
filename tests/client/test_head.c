/* The linear head learns what is linear, and its first step is the gradient that pencil and paper give. */
#include <math.h>

#include "check.h"
#include "head.h"

enum { N = 300, D = 20, K = 3 };
static float x[N][D];
static uint32_t y[N];
static const float *rows[N];

static float noise(uint32_t *s)
{
    *s = *s * 1664525u + 1013904223u;
    return (float)(*s >> 8) / (float)(1 << 23) - 1;
}

static void make(void)
{
    uint32_t s = 1;
    for (int i = 0; i < N; i++) {
        y[i] = (uint32_t)i % K;
        rows[i] = x[i];
        for (int d = 0; d < D; d++)
            x[i][d] = 100 + 5 * noise(&s) + (d % K == (int)y[i] ? 4 : 0); /* far from standardised */
        x[i][D - 1] = 7;                                                  /* a constant feature */
    }
}

static double train(int adam, double lr)
{
    struct head *h;
    struct head_options o = {
        .width = D, .classes = K, .batch = 64, .adam = adam, .lr = (float)lr, .momentum = 0.9f};
    uint32_t p[64], right = 0;
    double loss = 0;

    REQUIRE(head_new(&h, &o, NULL) == 0);
    for (int e = 0; e < 60; e++)
        for (int at = 0; at < N; at += 64) {
            uint32_t n = N - at < 64 ? N - at : 64;
            if (!e)
                head_observe(h, rows + at, n);
            REQUIRE(head_train(h, rows + at, y + at, n, &loss, NULL) == 0);
            if (!e && !at)
                CHECKF(fabs(loss - log(K)) < 1e-5, "first loss %f", loss);
        }
    for (int at = 0; at < N; at += 64) {
        uint32_t n = N - at < 64 ? N - at : 64;
        REQUIRE(head_predict(h, rows + at, n, p, NULL) == 0);
        for (uint32_t i = 0; i < n; i++)
            right += p[i] == y[at + i];
    }
    head_free(h);
    return (double)right / N;
}

static void adam__separable__learnt(void)
{
    double a = train(1, 0.01);
    CHECKF(a > 0.97, "accuracy %.3f", a);
}

static void sgd__separable__learnt(void)
{
    double a = train(0, 0.1);
    CHECKF(a > 0.97, "accuracy %.3f", a);
}

/* One feature, two samples, two classes: z = +1 and -1; p = 1/2; the step is lr * 1/2 on each weight. */
static void sgd__one_step__by_hand(void)
{
    struct head *h;
    struct head_options o = {.width = 1, .classes = 2, .batch = 2, .lr = 0.5f};
    const float a = 3, b = 1;
    const float *two[] = {&a, &b};
    uint32_t labels[] = {0, 1};
    double first, second;

    REQUIRE(head_new(&h, &o, NULL) == 0);
    head_observe(h, two, 2);
    REQUIRE(head_train(h, two, labels, 2, &first, NULL) == 0);
    REQUIRE(head_train(h, two, labels, 2, &second, NULL) == 0);
    /* w = (+1/4, -1/4) after the first step: the loss is log(1 + exp(-1/2)). */
    CHECKF(fabs(first - log(2)) < 1e-6 && fabs(second - log1p(exp(-0.5))) < 1e-6, "%f %f", first, second);
    head_free(h);
}

int main(void)
{
    make();
    CASE(sgd__one_step__by_hand);
    CASE(adam__separable__learnt);
    CASE(sgd__separable__learnt);
    return check_done();
}
