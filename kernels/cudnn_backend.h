/* What the files of the GPU back end share: an instance, its launches, its weights on the device. Internal to
 * cudnn*.c. */
#ifndef HAPI_KERNELS_CUDNN_BACKEND_H
#define HAPI_KERNELS_CUDNN_BACKEND_H

#include "gpu.h"
#include "gpu_device.h"
#include "kernels_ops.h"

struct hapi_cudnn_launch {
    cudnnBackendDescriptor_t plan; /* of an operation graph: the device's, held */
    cudnnBackendDescriptor_t pack; /* where its tensors are */
    CUfunction function;           /* of a kernel */
    CUdeviceptr pointers[1 + HAPI_GPU_READS];
    unsigned blocks;
};

struct hapi_cudnn {
    struct hapi_backend base;
    struct hapi_cuda_device *device;
    struct hapi_gpu_program *program;
    struct hapi_cudnn_launch *launches;
    CUdeviceptr *weights; /* by the program's weight */
    CUdeviceptr memory;   /* arena | workspace | edges */
    uint64_t *edge;       /* by storage: offset in memory of what is an edge */
    uint64_t bytes;
    CUstream stream;
    CUgraphExec graph; /* all launches as one; NULL: one by one */
    int *weight_of;    /* by storage */
    void *pinned;      /* host memory for the input of a plan that takes images; NULL: none */
    struct {           /* of the run that hapi_plan_start() began */
        void (*done)(void *arg);
        void *arg;
        CUresult result;
    } started;
};

static inline uint64_t hapi_gpu_round_up(uint64_t n)
{
    return (n + HAPI_GPU_ALIGN - 1) / HAPI_GPU_ALIGN * HAPI_GPU_ALIGN;
}

static inline void *hapi_gpu_pointer(CUdeviceptr p)
{
    return (void *)(uintptr_t)p; // NOLINT(performance-no-int-to-ptr)
}

/* ---- cudnn_launch.c. The device's context is current. */

/* Where the tensors of an operation graph are, and its workspace. */
struct hapi_cudnn_places {
    int64_t uids[HAPI_CUDNN_TENSORS];
    void *pointers[HAPI_CUDNN_TENSORS];
    int64_t n;
    void *workspace;
};
/* What a plan of g is run with. `at` has the tensors in the device's memory; those by value are added. After
 * an error *out may be there. */
int hapi_cudnn_pack_new(cudnnBackendDescriptor_t *out, const struct hapi_cudnn_lib *lib,
                        const struct hapi_cudnn_graph *g, struct hapi_cudnn_places *at, struct hapi_err *err);

/* Fills b->launches, once memory and weights are there. */
int hapi_cudnn_launches_make(struct hapi_cudnn *b, struct hapi_err *err);
/* Runs them for the first time, on whatever the memory holds, and keeps them as one graph where that is
 * faster (HAPI_CUDA_GRAPHS in the environment: 0 never, 1 wherever it can be). Errors: of running them. */
int hapi_cudnn_launches_try(struct hapi_cudnn *b, struct hapi_err *err);
/* On b->stream. After an error some of them may be on their way all the same. */
int hapi_cudnn_launches_enqueue(struct hapi_cudnn *b, struct hapi_err *err);
void hapi_cudnn_launches_free(struct hapi_cudnn *b); /* nothing runs */

/* ---- cudnn_node.c: of struct hapi_backend_ops. */
const char *hapi_cudnn_class(void);
int hapi_cudnn_ready(struct hapi_err *err);
int hapi_cudnn_pin(void *p, size_t bytes, struct hapi_err *err);
void hapi_cudnn_unpin(void *p);
int hapi_cudnn_reserve(uint64_t bytes, struct hapi_err *err);
void hapi_cudnn_release(void);
bool hapi_cudnn_usage(struct hapi_device_usage *out);
int hapi_cudnn_device_memory(size_t bytes, struct hapi_device_memory *out, struct hapi_err *err);
void hapi_cudnn_device_memory_free(struct hapi_device_memory *m);

/* ---- cudnn_weights.c. The store is shared by the plans of one part of a model in one dtype (struct
 * hapi_backend_ops). */
int hapi_cudnn_weights_new(void **weights, struct hapi_err *err);
void hapi_cudnn_weights_free(void *weights);
/* Fills b->weights and b->weight_of: what the store has not yet goes to the device, in one block. */
int hapi_cudnn_weights_make(struct hapi_cudnn *b, void *weights, struct hapi_err *err);

#endif
