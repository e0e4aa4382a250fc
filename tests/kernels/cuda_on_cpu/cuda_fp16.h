/* Stands in for CUDA's header where kernels/cuda_kernels.cu is compiled for the CPU. */
#ifndef HAPI_TESTS_CUDA_FP16_H
#define HAPI_TESTS_CUDA_FP16_H

#include "convert.h"

typedef struct {
    uint16_t bits;
} __half;

static inline float __half2float(__half v)
{
    float f = 0;

    (void)hapi_convert(&f, HAPI_F32, &v, HAPI_F16, 1);
    return f;
}

/* To the nearest, ties to even. */
static inline __half __float2half(float f)
{
    __half v = {0};

    (void)hapi_convert(&v, HAPI_F16, &f, HAPI_F32, 1);
    return v;
}

#endif
