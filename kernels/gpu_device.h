/*
 * The CUDA driver, found at run time: one binary runs on machines with and without it. Internal to kernels/.
 *
 * The driver's own API and not the runtime's: libcuda.so.1 is there with each driver, in the driver's
 * version, and nothing else has to be installed or matched. cuDNN works in the same (primary) context.
 */
#ifndef HAPI_KERNELS_GPU_DEVICE_H
#define HAPI_KERNELS_GPU_DEVICE_H

#include <stdbool.h>

#include <cuda.h>

#include "cudnn_lib.h"
#include "cudnn_plans.h"
#include "err.h"
#include "gpu_kernels.h"

/* X(name, symbol, parameters): each returns CUresult. */
#define HAPI_CUDA_CALLS(X)                                                                                   \
    X(Init, "cuInit", (unsigned flags))                                                                      \
    X(DriverGetVersion, "cuDriverGetVersion", (int *version))                                                \
    X(GetErrorName, "cuGetErrorName", (CUresult r, const char **name))                                       \
    X(DeviceGetCount, "cuDeviceGetCount", (int *n))                                                          \
    X(DeviceGet, "cuDeviceGet", (CUdevice * d, int i))                                                       \
    X(DeviceGetName, "cuDeviceGetName", (char *name, int size, CUdevice d))                                  \
    X(DeviceGetAttribute, "cuDeviceGetAttribute", (int *value, CUdevice_attribute a, CUdevice d))            \
    X(DeviceTotalMem, "cuDeviceTotalMem_v2", (size_t * bytes, CUdevice d))                                   \
    X(DevicePrimaryCtxRetain, "cuDevicePrimaryCtxRetain", (CUcontext * c, CUdevice d))                       \
    X(DevicePrimaryCtxRelease, "cuDevicePrimaryCtxRelease_v2", (CUdevice d))                                 \
    X(CtxPushCurrent, "cuCtxPushCurrent_v2", (CUcontext c))                                                  \
    X(CtxPopCurrent, "cuCtxPopCurrent_v2", (CUcontext * c))                                                  \
    X(MemGetInfo, "cuMemGetInfo_v2", (size_t * unused, size_t * total))                                      \
    X(MemAlloc, "cuMemAlloc_v2", (CUdeviceptr * p, size_t bytes))                                            \
    X(MemFree, "cuMemFree_v2", (CUdeviceptr p))                                                              \
    X(MemGetHandleForAddressRange, "cuMemGetHandleForAddressRange",                                          \
      (void *handle, CUdeviceptr p, size_t bytes, CUmemRangeHandleType type, unsigned long long flags))      \
    X(MemHostRegister, "cuMemHostRegister_v2", (void *p, size_t bytes, unsigned flags))                      \
    X(MemHostUnregister, "cuMemHostUnregister", (void *p))                                                   \
    X(MemcpyHtoDAsync, "cuMemcpyHtoDAsync_v2", (CUdeviceptr to, const void *from, size_t bytes, CUstream s)) \
    X(MemcpyDtoHAsync, "cuMemcpyDtoHAsync_v2", (void *to, CUdeviceptr from, size_t bytes, CUstream s))       \
    X(MemcpyDtoDAsync, "cuMemcpyDtoDAsync_v2", (CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream s)) \
    X(MemHostAlloc, "cuMemHostAlloc", (void **p, size_t bytes, unsigned flags))                              \
    X(MemFreeHost, "cuMemFreeHost", (void *p))                                                               \
    X(StreamCreate, "cuStreamCreate", (CUstream * s, unsigned flags))                                        \
    X(StreamDestroy, "cuStreamDestroy_v2", (CUstream s))                                                     \
    X(StreamSynchronize, "cuStreamSynchronize", (CUstream s))                                                \
    X(EventCreate, "cuEventCreate", (CUevent * e, unsigned flags))                                           \
    X(EventRecord, "cuEventRecord", (CUevent e, CUstream s))                                                 \
    X(EventElapsedTime, "cuEventElapsedTime", (float *ms, CUevent from, CUevent to))                         \
    X(EventDestroy, "cuEventDestroy_v2", (CUevent e))                                                        \
    X(MemsetD8Async, "cuMemsetD8Async", (CUdeviceptr p, unsigned char value, size_t bytes, CUstream s))      \
    X(StreamAddCallback, "cuStreamAddCallback", (CUstream s, CUstreamCallback f, void *arg, unsigned flags)) \
    X(StreamBeginCapture, "cuStreamBeginCapture_v2", (CUstream s, CUstreamCaptureMode mode))                 \
    X(StreamEndCapture, "cuStreamEndCapture", (CUstream s, CUgraph * g))                                     \
    X(GraphInstantiate, "cuGraphInstantiateWithFlags",                                                       \
      (CUgraphExec * out, CUgraph g, unsigned long long flags))                                              \
    X(GraphLaunch, "cuGraphLaunch", (CUgraphExec g, CUstream s))                                             \
    X(GraphDestroy, "cuGraphDestroy", (CUgraph g))                                                           \
    X(GraphExecDestroy, "cuGraphExecDestroy", (CUgraphExec g))                                               \
    X(ModuleLoadData, "cuModuleLoadData", (CUmodule * m, const void *image))                                 \
    X(ModuleUnload, "cuModuleUnload", (CUmodule m))                                                          \
    X(ModuleGetFunction, "cuModuleGetFunction", (CUfunction * f, CUmodule m, const char *name))              \
    X(LaunchKernel, "cuLaunchKernel",                                                                        \
      (CUfunction f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,           \
       unsigned shared, CUstream s, void **parameters, void **extra))

struct hapi_cuda {
#define X(name, symbol, parameters) CUresult(*name) parameters;
    HAPI_CUDA_CALLS(X)
#undef X
};

/* A GPU that answers, with all that plans on it share. Borrowed by everyone who got it; the last one that
 * puts it closes it. */
struct hapi_cuda_device {
    const struct hapi_cuda *cu;
    const struct hapi_cudnn_lib *cudnn;
    CUdevice device;
    CUcontext context;
    CUmodule module;
    CUfunction kernels[HAPI_GPU_KERNELS];
    cudnnHandle_t handle; /* for running: under lock */
    cudnnHandle_t maker;  /* for making plans */
    struct hapi_cudnn_device *described;
    struct hapi_gpu_memory *memory; /* gpu_memory.h; NULL: none taken yet */
    CUdeviceptr direct;             /* what a NIC reads; 0: none */
    size_t direct_bytes;
    struct hapi_cudnn_plans *plans; /* under plans_lock: making one takes seconds, in which others run */
    void *lock, *plans_lock;        /* pthread_mutex_t: of what is not thread-safe; never both */
    int refs;
};

/* CUDA device 0 (CUDA_VISIBLE_DEVICES says which that is), opened by the first. Errors: HAPI_EUNSUPPORTED (no
 * driver, no device, no cuDNN: the text says which), HAPI_ESYS, HAPI_ENOMEM. */
int hapi_cuda_device_get(struct hapi_cuda_device **out, struct hapi_err *err);
void hapi_cuda_device_put(struct hapi_cuda_device *d);
/* Makes the device's context current, and no longer: around every group of calls. */
int hapi_cuda_enter(const struct hapi_cuda_device *d, struct hapi_err *err);
void hapi_cuda_leave(const struct hapi_cuda_device *d);
void hapi_cuda_lock(struct hapi_cuda_device *d);
void hapi_cuda_unlock(struct hapi_cuda_device *d);
void hapi_cuda_plans_lock(struct hapi_cuda_device *d);
void hapi_cuda_plans_unlock(struct hapi_cuda_device *d);

/* Whether p is in what a NIC reads. */
static inline bool hapi_cuda_is_direct(const struct hapi_cuda_device *d, const void *p)
{
    CUdeviceptr at = (CUdeviceptr)(uintptr_t)p;

    return d->direct && at >= d->direct && at < d->direct + d->direct_bytes;
}

/* HAPI_ENOMEM for memory, else HAPI_ESYS, with the driver's name for it. */
int hapi_cuda_fail(const struct hapi_cuda *cu, CUresult r, const char *what, struct hapi_err *err);

/* Our kernels as nvcc made them: a fat binary of sm_80, sm_90 and PTX. NULL: built without nvcc. */
extern const unsigned char *const hapi_cuda_image;

#endif
