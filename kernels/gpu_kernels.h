/*
 * Parameters of our own CUDA kernels: what the host fills in, and what cuda_kernels.cu reads, bit for bit. C
 * and CUDA C. A loop visits sizes[0] x .. x sizes[rank - 1] elements, the last dim innermost, and operand k's
 * element lies at the sum of index x stride[k]. Units: elements.
 */
#ifndef HAPI_KERNELS_GPU_KERNELS_H
#define HAPI_KERNELS_GPU_KERNELS_H

#include <stdint.h>

#define HAPI_GPU_RANK 8
#define HAPI_GPU_I8_CHUNK 64 /* elements of one scale that one thread looks at; the length of a run */
#define HAPI_GPU_READS 3

struct hapi_gpu_loop {
    int64_t size[HAPI_GPU_RANK];
    int64_t stride[1 + HAPI_GPU_READS][HAPI_GPU_RANK]; /* [0]: what is written */
    int32_t rank, reserved;
};

enum hapi_gpu_kernel_kind {
    HAPI_GPU_POINTWISE, /* y = act((x + a) ...): see hapi_gpu_math */
    HAPI_GPU_SOFTMAX,
    /* of each of `outer`, over `inner` */ HAPI_GPU_MEAN, /* likewise; y has no inner dims */
    HAPI_GPU_IMAGE,   /* y (pixels,3) of x, bytes: see struct hapi_gpu_image */
    HAPI_GPU_ZERO,    /* y, 4 bytes each of the loop */
    HAPI_GPU_I8_MAX,  /* y: the largest magnitudes of x, as bits: see struct hapi_gpu_i8 */
    HAPI_GPU_I8_PACK, /* y: rows as base/int8.h says, of x and those magnitudes, a */
    HAPI_GPU_KERNELS
};

/* Pixel c of three to (v * scale - mean[c]) / std[c], the transform's (kernels.h). */
struct hapi_gpu_image {
    int64_t pixels;
    float scale, mean[3], std[3];
    int32_t bgr; /* bytes are RGB; y's first channel is then blue */
};

/* `samples` dense samples of `elements`, and how scales are shared (base/int8.h): channels, or 0 for runs. */
struct hapi_gpu_i8 {
    int64_t samples, elements, channels, scales;
};

/* What POINTWISE computes of x, a and b, in f32, before the activation. */
enum hapi_gpu_math {
    HAPI_GPU_COPY, /* x */
    HAPI_GPU_ADD,
    HAPI_GPU_SUB,
    HAPI_GPU_MUL,
    HAPI_GPU_DIV,
    HAPI_GPU_MAX,
    HAPI_GPU_MIN,
    HAPI_GPU_POW,
    HAPI_GPU_FMA,     /* x * a + b */
    HAPI_GPU_ADD_ADD, /* x + a + b */
    HAPI_GPU_SQRT,
    HAPI_GPU_EXP,
    HAPI_GPU_ERF,
    HAPI_GPU_NEG,
    HAPI_GPU_ABS,
    HAPI_GPU_RECIPROCAL
};

struct hapi_gpu_kernel {
    struct hapi_gpu_loop outer, inner; /* POINTWISE, ZERO: outer only; IMAGE, I8: none */
    struct hapi_gpu_image image;
    struct hapi_gpu_i8 i8;
    int32_t kind;
    int32_t math;
    int32_t act; /* enum hapi_act_kind */
    float alpha, beta;
    int32_t vector; /* POINTWISE: elements of the innermost dim that one thread computes; divides its size */
    int32_t dtype[1 + HAPI_GPU_READS]; /* enum hapi_dtype: f32, f16 or bf16 */
};

#endif
