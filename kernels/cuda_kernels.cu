/*
 * Our own CUDA kernels: what cuDNN has no engine for. Arithmetic is f32 whatever lies in memory.
 *
 * Written in what C and CUDA C have in common, so that the tests compile this file for the CPU as well, thread by thread, and
 * check its numbers without a GPU (tests/kernels/cuda_on_cpu.h). Parameters: gpu_kernels.h.
 */
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <math.h>

#include "gpu_kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Of enum hapi_dtype (tensor.h) and enum hapi_act_kind (fuse.h), which this file cannot include. */
enum { F32 = 1, F16 = 2, BF16 = 3 };
enum { NONE, RELU, CLIP, SIGMOID, SWISH, HARDSIGMOID, HARDSWISH, TANH, ELU, GELU, GELU_TANH };

static __device__ float load(const void *p, int64_t i, int dtype)
{
    if (dtype == F16)
        return __half2float(((const __half *)p)[i]);
    if (dtype == BF16)
        return __bfloat162float(((const __nv_bfloat16 *)p)[i]);
    return ((const float *)p)[i];
}

static __device__ void store(void *p, int64_t i, int dtype, float v)
{
    if (dtype == F16)
        ((__half *)p)[i] = __float2half(v);
    else if (dtype == BF16)
        ((__nv_bfloat16 *)p)[i] = __float2bfloat16(v);
    else
        ((float *)p)[i] = v;
}

static __device__ float sigmoid(float x)
{
    return 1.0f / (1.0f + expf(-x));
}

static __device__ float activate(float x, int act, float alpha, float beta)
{
    switch (act) {
    case RELU:
        return x < 0 ? alpha * x : x;
    case CLIP:
        return fminf(fmaxf(x, alpha), beta);
    case SIGMOID:
        return sigmoid(x);
    case SWISH:
        return x * sigmoid(x);
    case HARDSIGMOID:
        return fminf(fmaxf(alpha * x + beta, 0.0f), 1.0f);
    case HARDSWISH:
        return x * fminf(fmaxf(x / 6.0f + 0.5f, 0.0f), 1.0f);
    case TANH:
        return tanhf(x);
    case ELU:
        return x < 0 ? alpha * expm1f(x) : x;
    case GELU:
        return 0.5f * x * (1.0f + erff(x * 0.70710678118654752f));
    case GELU_TANH:
        return 0.5f * x * (1.0f + tanhf(0.79788456080286536f * (x + 0.044715f * x * x * x)));
    default:
        return x;
    }
}

static __device__ float compute(float x, float a, float b, int math)
{
    switch (math) {
    case HAPI_GPU_ADD:
        return x + a;
    case HAPI_GPU_SUB:
        return x - a;
    case HAPI_GPU_MUL:
        return x * a;
    case HAPI_GPU_DIV:
        return x / a;
    case HAPI_GPU_MAX:
        return fmaxf(x, a);
    case HAPI_GPU_MIN:
        return fminf(x, a);
    case HAPI_GPU_POW:
        return powf(x, a);
    case HAPI_GPU_FMA:
        return x * a + b;
    case HAPI_GPU_ADD_ADD:
        return x + a + b;
    case HAPI_GPU_SQRT:
        return sqrtf(x);
    case HAPI_GPU_EXP:
        return expf(x);
    case HAPI_GPU_ERF:
        return erff(x);
    case HAPI_GPU_NEG:
        return -x;
    case HAPI_GPU_ABS:
        return fabsf(x);
    case HAPI_GPU_RECIPROCAL:
        return 1.0f / x;
    default:
        return x;
    }
}

static __device__ int64_t loop_size(const struct hapi_gpu_loop *l)
{
    int64_t n = 1;

    for (int d = 0; d < l->rank; d++)
        n *= l->size[d];
    return n;
}

/* Where element i of the loop lies in each of n operands. */
static __device__ void loop_at(const struct hapi_gpu_loop *l, int64_t i, int n, int64_t *at)
{
    for (int k = 0; k < n; k++)
        at[k] = 0;
    for (int d = l->rank - 1; d >= 0; d--) {
        int64_t rest = i / l->size[d], index = i - rest * l->size[d];
        for (int k = 0; k < n; k++)
            at[k] += index * l->stride[k][d];
        i = rest;
    }
}

/* One thread for as many neighbours as k.vector says (of the innermost dim, which it divides). */
__global__ void hapi_gpu_pointwise(struct hapi_gpu_kernel k, void *y, const void *x, const void *a, const void *b)
{
    int64_t n = loop_size(&k.outer) / k.vector, step = (int64_t)gridDim.x * blockDim.x;
    int last = k.outer.rank - 1;

    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += step) {
        int64_t at[1 + HAPI_GPU_READS];
        loop_at(&k.outer, i * k.vector, 1 + HAPI_GPU_READS, at);
        for (int j = 0; j < k.vector; j++) {
            float v = load(x, at[1], k.dtype[1]), va = a ? load(a, at[2], k.dtype[2]) : 0, vb = b ? load(b, at[3], k.dtype[3]) : 0;
            store(y, at[0], k.dtype[0], activate(compute(v, va, vb, k.math), k.act, k.alpha, k.beta));
            for (int o = 0; o < 1 + HAPI_GPU_READS && last >= 0; o++)
                at[o] += k.outer.stride[o][last];
        }
    }
}

/* What all 32 lanes of a warp have, together. */
static __device__ float warp_sum(float v)
{
    for (int m = 16; m; m >>= 1)
        v += __shfl_xor_sync(0xffffffffu, v, m, 32);
    return v;
}

static __device__ float warp_max(float v)
{
    for (int m = 16; m; m >>= 1)
        v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, m, 32));
    return v;
}

/* One warp for each row. */
__global__ void hapi_gpu_softmax(struct hapi_gpu_kernel k, void *y, const void *x)
{
    int64_t rows = loop_size(&k.outer), columns = loop_size(&k.inner), step = (int64_t)gridDim.x * (blockDim.x / 32);
    int lane = (int)(threadIdx.x % 32);

    for (int64_t r = (int64_t)blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32; r < rows; r += step) {
        int64_t row[2], at[2];
        float most = -INFINITY, sum = 0;
        loop_at(&k.outer, r, 2, row);
        for (int64_t i = lane; i < columns; i += 32) {
            loop_at(&k.inner, i, 2, at);
            most = fmaxf(most, load(x, row[1] + at[1], k.dtype[1]));
        }
        most = warp_max(most);
        for (int64_t i = lane; i < columns; i += 32) {
            loop_at(&k.inner, i, 2, at);
            sum += expf(load(x, row[1] + at[1], k.dtype[1]) - most);
        }
        sum = warp_sum(sum);
        for (int64_t i = lane; i < columns; i += 32) {
            loop_at(&k.inner, i, 2, at);
            store(y, row[0] + at[0], k.dtype[0], expf(load(x, row[1] + at[1], k.dtype[1]) - most) / sum);
        }
    }
}

/* One warp for each result. */
__global__ void hapi_gpu_mean(struct hapi_gpu_kernel k, void *y, const void *x)
{
    int64_t rows = loop_size(&k.outer), n = loop_size(&k.inner), step = (int64_t)gridDim.x * (blockDim.x / 32);
    int lane = (int)(threadIdx.x % 32);

    for (int64_t r = (int64_t)blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32; r < rows; r += step) {
        int64_t row[2], at[2];
        float sum = 0;
        loop_at(&k.outer, r, 2, row);
        for (int64_t i = lane; i < n; i += 32) {
            loop_at(&k.inner, i, 2, at);
            sum += load(x, row[1] + at[1], k.dtype[1]);
        }
        sum = warp_sum(sum);
        if (lane == 0)
            store(y, row[0], k.dtype[0], sum / (float)n);
    }
}

/* One thread for each pixel. */
__global__ void hapi_gpu_image(struct hapi_gpu_kernel k, void *y, const void *x)
{
    const unsigned char *bytes = (const unsigned char *)x;
    int64_t step = (int64_t)gridDim.x * blockDim.x;

    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < k.image.pixels; i += step)
        for (int c = 0; c < 3; c++) {
            float v = (float)bytes[3 * i + (k.image.bgr ? 2 - c : c)];
            store(y, 3 * i + c, k.dtype[0], (v * k.image.scale - k.image.mean[c]) / k.image.std[c]);
        }
}

__global__ void hapi_gpu_zero(struct hapi_gpu_kernel k, void *y)
{
    int64_t n = loop_size(&k.outer), step = (int64_t)gridDim.x * blockDim.x;

    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += step)
        ((unsigned *)y)[i] = 0;
}

static __device__ unsigned bits_of(float f)
{
    union {
        float f;
        unsigned u;
    } v;

    v.f = f;
    return v.u;
}

static __device__ float float_of(unsigned u)
{
    union {
        float f;
        unsigned u;
    } v;

    v.u = u;
    return v.f;
}

/* One thread for a chunk of elements that share a scale; neighbouring threads have neighbouring channels. Magnitudes are compared as
 * integers: NaN is above infinity. */
__global__ void hapi_gpu_i8_max(struct hapi_gpu_kernel k, void *y, const void *x)
{
    const struct hapi_gpu_i8 *f = &k.i8;
    int64_t positions = f->channels ? f->elements / f->channels : HAPI_GPU_I8_CHUNK;
    int64_t chunks = (positions + HAPI_GPU_I8_CHUNK - 1) / HAPI_GPU_I8_CHUNK, n = f->samples * chunks * f->scales;
    int64_t step = (int64_t)gridDim.x * blockDim.x, stride = f->channels ? f->channels : 1;

    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += step) {
        int64_t scale = i % f->scales, chunk = i / f->scales % chunks, sample = i / f->scales / chunks;
        int64_t first = f->channels ? scale + chunk * HAPI_GPU_I8_CHUNK * stride : scale * HAPI_GPU_I8_CHUNK;
        unsigned most = 0;
        for (int64_t j = 0; j < HAPI_GPU_I8_CHUNK && first + j * stride < f->elements; j++) {
            unsigned m = bits_of(load(x, sample * f->elements + first + j * stride, k.dtype[1])) & 0x7fffffffu;
            most = m > most ? m : most;
        }
        atomicMax((unsigned *)y + sample * f->scales + scale, most);
    }
}

/* The scale of a largest magnitude, and what elements are multiplied by: as in base/int8.c, bit for bit. */
static __device__ unsigned scale_of(unsigned most, float *inverse)
{
    float m = float_of(most), s = m / 127.0f;
    int small = m < 0x1.fcp-120f, finite = most < 0x7f800000u;

    *inverse = small || !finite ? 0.0f : 127.0f / m;
    if (small)
        return 0;
    if (!finite)
        return 0x7fc00000u;
    return bits_of(s) < 0x7c010203u ? bits_of(s) : 0x7c010203u;
}

/* One thread for each element; the first of those that share a scale writes it, byte by byte: rows need no alignment. */
__global__ void hapi_gpu_i8_pack(struct hapi_gpu_kernel k, void *y, const void *x, const void *max)
{
    const struct hapi_gpu_i8 *f = &k.i8;
    int64_t n = f->samples * f->elements, step = (int64_t)gridDim.x * blockDim.x, row = f->elements + 4 * f->scales;

    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += step) {
        int64_t sample = i / f->elements, e = i % f->elements;
        int64_t scale = f->channels ? e % f->channels : e / HAPI_GPU_I8_CHUNK;
        unsigned char *to = (unsigned char *)y + sample * row;
        float inverse;
        unsigned u = scale_of(((const unsigned *)max)[sample * f->scales + scale], &inverse);
        if (f->channels ? e < f->channels : e % HAPI_GPU_I8_CHUNK == 0)
            for (int b = 0; b < 4; b++)
                to[4 * scale + b] = (unsigned char)(u >> (8 * b));
        to[4 * f->scales + e] = (unsigned char)(inverse > 0 ? (int)rintf(load(x, i, k.dtype[1]) * inverse) : 0);
    }
}

#ifdef __cplusplus
}
#endif
