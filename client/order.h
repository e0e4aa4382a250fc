/* The seeded order of an epoch: a permutation that depends on (seed, epoch, n) only. Any thread. */
#ifndef HAPI_CLIENT_ORDER_H
#define HAPI_CLIENT_ORDER_H

#include <stdint.h>

/* order[n] becomes a permutation of 0..n-1 (Fisher-Yates over splitmix64). */
void hapi_order_shuffle(uint32_t *order, uint32_t n, uint64_t seed, uint32_t epoch);

#endif
