#include "order.h"

static uint64_t mix(uint64_t *state)
{
    /* splitmix64, Steele, Lea and Flood 2014 */
    uint64_t z = *state += 0x9e3779b97f4a7c15ULL;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ULL;
    z = (z ^ z >> 27) * 0x94d049bb133111ebULL;
    return z ^ z >> 31;
}

void hapi_order_shuffle(uint32_t *order, uint32_t n, uint64_t seed, uint32_t epoch)
{
    uint64_t key = seed, state = mix(&key) ^ (uint64_t)epoch << 32;

    state = mix(&state);
    for (uint32_t i = 0; i < n; i++)
        order[i] = i;
    for (uint32_t i = n; i > 1; i--) {
        uint32_t j = (uint32_t)(((unsigned __int128)mix(&state) * i) >> 64), t = order[j];
        order[j] = order[i - 1];
        order[i - 1] = t;
    }
}
