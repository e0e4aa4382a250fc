/* Stands in for CUDA's header where kernels/cuda_kernels.cu is compiled for the CPU. */
#ifndef HAPI_TESTS_CUDA_BF16_H
#define HAPI_TESTS_CUDA_BF16_H

#include <stdint.h>
#include <string.h>

typedef struct {
    uint16_t bits;
} __nv_bfloat16;

static inline float __bfloat162float(__nv_bfloat16 v)
{
    uint32_t u = (uint32_t)v.bits << 16;
    float f;

    memcpy(&f, &u, sizeof f);
    return f;
}

/* To the nearest, ties to even. */
static inline __nv_bfloat16 __float2bfloat16(float f)
{
    uint32_t u;

    memcpy(&u, &f, sizeof u);
    if (f != f)
        return (__nv_bfloat16){0x7fff};
    return (__nv_bfloat16){(uint16_t)((u + 0x7fff + ((u >> 16) & 1)) >> 16)};
}

#endif
