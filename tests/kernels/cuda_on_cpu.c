#include "cuda_on_cpu.h"

#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <ucontext.h>

/* ------------------------------------------------------------------ what CUDA C has beyond C */

#define __global__ static
#define __device__

struct index3 {
    unsigned x, y, z;
};

enum { THREADS_MAX = 256, STACK = 64 << 10, WARP = 32 };

static struct index3 gridDim, blockDim, blockIdx, threadIdx;

static struct {
    ucontext_t at;
    bool done;
    float lane; /* what it shows to its warp */
} threads[THREADS_MAX];
static ucontext_t scheduler;
static unsigned running;
static unsigned char (*stacks)[STACK];

/* Lets all other threads of the block come this far. */
static void turn(void)
{
    unsigned me = running;

    swapcontext(&threads[me].at, &scheduler);
    threadIdx.x = me;
}

static float __shfl_xor_sync(unsigned mask, float v, int lane_mask, int width)
{
    unsigned me = running;

    (void)mask;
    (void)width;
    threads[me].lane = v;
    turn();
    v = threads[me / WARP * WARP + ((me % WARP) ^ (unsigned)lane_mask)].lane;
    turn();
    return v;
}

/* One thread runs at a time. */
static void atomicMax(unsigned *p, unsigned v)
{
    *p = v > *p ? v : *p;
}

#include "cuda_kernels.cu"

/* ------------------------------------------------------------------ a launch */

static const struct hapi_gpu_kernel *kernel;
static void *const *operands;

static void thread_main(void)
{
    switch (kernel->kind) {
    case HAPI_GPU_POINTWISE:
        hapi_gpu_pointwise(*kernel, operands[0], operands[1], operands[2], operands[3]);
        break;
    case HAPI_GPU_SOFTMAX:
        hapi_gpu_softmax(*kernel, operands[0], operands[1]);
        break;
    case HAPI_GPU_MEAN:
        hapi_gpu_mean(*kernel, operands[0], operands[1]);
        break;
    case HAPI_GPU_IMAGE:
        hapi_gpu_image(*kernel, operands[0], operands[1]);
        break;
    case HAPI_GPU_ZERO:
        hapi_gpu_zero(*kernel, operands[0]);
        break;
    case HAPI_GPU_I8_MAX:
        hapi_gpu_i8_max(*kernel, operands[0], operands[1]);
        break;
    case HAPI_GPU_I8_PACK:
        hapi_gpu_i8_pack(*kernel, operands[0], operands[1], operands[2]);
        break;
    default:
        abort();
    }
    threads[running].done = true;
    swapcontext(&threads[running].at, &scheduler);
}

static void block_run(unsigned n)
{
    unsigned left = n;

    for (unsigned t = 0; t < n; t++) {
        threads[t].done = false;
        getcontext(&threads[t].at);
        threads[t].at.uc_stack.ss_sp = stacks[t];
        threads[t].at.uc_stack.ss_size = STACK;
        threads[t].at.uc_link = NULL;
        makecontext(&threads[t].at, thread_main, 0);
    }
    while (left) {
        left = 0;
        for (unsigned t = 0; t < n; t++) {
            if (threads[t].done)
                continue;
            running = t;
            threadIdx.x = t;
            swapcontext(&scheduler, &threads[t].at);
            left += !threads[t].done;
        }
    }
}

void cuda_on_cpu_run(const struct hapi_gpu_kernel *k, int blocks, int n, void *const *buffers)
{
    stacks = stacks ? stacks : malloc(THREADS_MAX * sizeof *stacks);
    if (!stacks)
        abort();
    kernel = k;
    operands = buffers;
    gridDim = (struct index3){(unsigned)blocks, 1, 1};
    blockDim = (struct index3){(unsigned)n, 1, 1};
    for (unsigned i = 0; i < gridDim.x; i++) {
        blockIdx = (struct index3){i, 0, 0};
        block_run((unsigned)n);
    }
}
