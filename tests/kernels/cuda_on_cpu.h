/*
 * CUDA kernels on the CPU: the very source that nvcc compiles, run thread by thread, for what can be known
 * without a GPU: that the numbers are right. Threads of a block are fibers that go on in turn, so that a
 * warp's lanes can exchange values. One at a time in a process.
 */
#ifndef HAPI_TESTS_CUDA_ON_CPU_H
#define HAPI_TESTS_CUDA_ON_CPU_H

#include "gpu_kernels.h"

/* Runs one of our kernels over `blocks` blocks of `threads` threads (a multiple of 32, 256 at most). buffers:
 * what it writes, then what it reads; NULL for what it does not. */
void cuda_on_cpu_run(const struct hapi_gpu_kernel *k, int blocks, int threads, void *const *buffers);

#endif
