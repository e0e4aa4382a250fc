/* Monotonic time in nanoseconds. The one place that reads a clock, so that a simulation can own time. */
#ifndef HAPI_BASE_CLOCK_H
#define HAPI_BASE_CLOCK_H

#include <stdint.h>
#include <time.h>

#define HAPI_NS_PER_S 1000000000LL
#define HAPI_NS_PER_MS 1000000LL
#define HAPI_NS_PER_US 1000LL

static inline int64_t hapi_clock_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * HAPI_NS_PER_S + t.tv_nsec;
}

static inline double hapi_clock_s(void)
{
    return (double)hapi_clock_ns() * 1e-9;
}

#endif
