/* See fake_cuda.h. */
#include "fake_cuda.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cuda.h>

enum { BLOCKS = 1024, STREAMS = 64, DEPTH = 8 };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct fake_cuda_report report;
static long fail_at;
static int fail_with, devices = 1;
static struct {
    unsigned char *p;
    size_t bytes;
} blocks[BLOCKS];
static struct stream {
    int used, busy; /* busy: something was enqueued and not waited for */
} streams[STREAMS];
static __thread int current;

/* ------------------------------------------------------------------ for tests */

void fake_cuda_fail_at(long n, int error)
{
    pthread_mutex_lock(&lock);
    fail_at = n ? report.calls + n : 0;
    fail_with = error;
    pthread_mutex_unlock(&lock);
}

struct fake_cuda_report fake_cuda_report(void)
{
    pthread_mutex_lock(&lock);
    struct fake_cuda_report r = report;
    pthread_mutex_unlock(&lock);
    return r;
}

void fake_cuda_devices(int n)
{
    devices = n;
}

/* ------------------------------------------------------------------ for both fakes */

int fake_cuda_call(void)
{
    pthread_mutex_lock(&lock);
    report.calls++;
    int r = fail_at && report.calls == fail_at ? fail_with : 0;
    pthread_mutex_unlock(&lock);
    return r;
}

static void wrong_locked(const char *what)
{
    if (!report.wrong++)
        snprintf(report.what, sizeof report.what, "%s", what);
}

void fake_cuda_wrong(const char *what)
{
    pthread_mutex_lock(&lock);
    wrong_locked(what);
    pthread_mutex_unlock(&lock);
}

void fake_cuda_made(int change)
{
    pthread_mutex_lock(&lock);
    report.live += change;
    pthread_mutex_unlock(&lock);
}

static int find(const unsigned char *p, size_t bytes)
{
    for (int i = 0; i < BLOCKS; i++)
        if (blocks[i].p && p >= blocks[i].p && p + bytes <= blocks[i].p + blocks[i].bytes)
            return i;
    return -1;
}

int fake_cuda_is_device(const void *p, size_t bytes)
{
    pthread_mutex_lock(&lock);
    int i = find(p, bytes);
    pthread_mutex_unlock(&lock);
    return i >= 0;
}

void fake_cuda_enqueued(void *stream)
{
    struct stream *s = stream;

    pthread_mutex_lock(&lock);
    report.launches++;
    if (!s || !s->used)
        wrong_locked("work on a stream that is not there");
    else
        s->busy = 1;
    pthread_mutex_unlock(&lock);
}

int fake_cuda_current(void)
{
    return current;
}

/* A call that needs a context: fails where it is told to, and says when there is none. */
static CUresult begin(void)
{
    if (!current)
        fake_cuda_wrong("a call without a context");
    return (CUresult)fake_cuda_call();
}

/* ------------------------------------------------------------------ the driver */

CUresult cuInit(unsigned flags)
{
    (void)flags;
    return devices ? CUDA_SUCCESS : CUDA_ERROR_NO_DEVICE;
}

CUresult cuDriverGetVersion(int *version)
{
    *version = 13000;
    return CUDA_SUCCESS;
}

CUresult cuGetErrorName(CUresult r, const char **name)
{
    *name = r == CUDA_ERROR_OUT_OF_MEMORY ? "CUDA_ERROR_OUT_OF_MEMORY" : "CUDA_ERROR_OF_THE_FAKE";
    return CUDA_SUCCESS;
}

CUresult cuDeviceGetCount(int *n)
{
    *n = devices;
    return CUDA_SUCCESS;
}

CUresult cuDeviceGet(CUdevice *d, int i)
{
    *d = i;
    return (CUresult)fake_cuda_call();
}

CUresult cuDeviceGetName(char *name, int size, CUdevice d)
{
    (void)d;
    snprintf(name, (size_t)size, "fake");
    return (CUresult)fake_cuda_call();
}

CUresult cuDeviceTotalMem(size_t *bytes, CUdevice d)
{
    (void)d;
    *bytes = 1ULL << 30;
    return (CUresult)fake_cuda_call();
}

CUresult cuDevicePrimaryCtxRetain(CUcontext *c, CUdevice d)
{
    CUresult r = (CUresult)fake_cuda_call();

    (void)d;
    if (!r) {
        *c = (CUcontext)&devices;
        fake_cuda_made(1);
    }
    return r;
}

CUresult cuDevicePrimaryCtxRelease(CUdevice d)
{
    (void)d;
    fake_cuda_made(-1);
    return CUDA_SUCCESS;
}

/* Does not fail: where it does in truth, the context is gone with all that was in it. */
CUresult cuCtxPushCurrent(CUcontext c)
{
    if (c != (CUcontext)&devices)
        fake_cuda_wrong("a context that is none");
    if (++current > DEPTH)
        fake_cuda_wrong("contexts pile up");
    return CUDA_SUCCESS;
}

CUresult cuCtxPopCurrent(CUcontext *c)
{
    if (current < 1)
        fake_cuda_wrong("no context to pop");
    current -= current > 0;
    *c = (CUcontext)&devices;
    return CUDA_SUCCESS;
}

CUresult cuMemAlloc(CUdeviceptr *p, size_t bytes)
{
    CUresult r = begin();
    int i = 0;

    if (r)
        return r;
    if (!bytes)
        return CUDA_ERROR_INVALID_VALUE;
    pthread_mutex_lock(&lock);
    while (i < BLOCKS && blocks[i].p)
        i++;
    if (i < BLOCKS) {
        blocks[i].p = aligned_alloc(512, (bytes + 511) / 512 * 512);
        blocks[i].bytes = bytes;
        report.live++;
        report.bytes += bytes;
        report.peak = report.bytes > report.peak ? report.bytes : report.peak;
        *p = (CUdeviceptr)(uintptr_t)blocks[i].p;
    }
    pthread_mutex_unlock(&lock);
    return i < BLOCKS ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

CUresult cuMemFree(CUdeviceptr p)
{
    if (!current)
        fake_cuda_wrong("memory freed without a context");
    pthread_mutex_lock(&lock);
    int i = find((const unsigned char *)(uintptr_t)p, 1);
    if (i < 0 || blocks[i].p != (unsigned char *)(uintptr_t)p) {
        wrong_locked("memory freed that is none");
    } else {
        for (int k = 0; k < STREAMS; k++)
            if (streams[k].used && streams[k].busy)
                wrong_locked("memory freed while a stream may use it");
        report.bytes -= blocks[i].bytes;
        report.live--;
        free(blocks[i].p);
        blocks[i].p = NULL;
    }
    pthread_mutex_unlock(&lock);
    return CUDA_SUCCESS;
}

CUresult cuMemHostRegister(void *p, size_t bytes, unsigned flags)
{
    CUresult r = begin();

    (void)flags;
    if (!p || !bytes)
        return CUDA_ERROR_INVALID_VALUE;
    if (!r)
        fake_cuda_made(1);
    return r;
}

CUresult cuMemHostUnregister(void *p)
{
    if (!p || !current)
        fake_cuda_wrong("memory unpinned that is none, or without a context");
    fake_cuda_made(-1);
    return CUDA_SUCCESS;
}

static CUresult copy(void *to, const void *from, size_t bytes, const void *on_device, CUstream s)
{
    CUresult r = begin();

    if (!fake_cuda_is_device(on_device, bytes))
        fake_cuda_wrong("a copy beyond the device's memory");
    else if (!r)
        memcpy(to, from, bytes);
    fake_cuda_enqueued(s);
    pthread_mutex_lock(&lock);
    report.launches--;
    report.copies++;
    pthread_mutex_unlock(&lock);
    return r;
}

CUresult cuMemcpyHtoDAsync(CUdeviceptr to, const void *from, size_t bytes, CUstream s)
{
    return copy((void *)(uintptr_t)to, from, bytes, (void *)(uintptr_t)to, s);
}

CUresult cuMemcpyDtoHAsync(void *to, CUdeviceptr from, size_t bytes, CUstream s)
{
    return copy(to, (void *)(uintptr_t)from, bytes, (void *)(uintptr_t)from, s);
}

CUresult cuStreamCreate(CUstream *s, unsigned flags)
{
    CUresult r = begin();
    int i = 0;

    (void)flags;
    if (r)
        return r;
    pthread_mutex_lock(&lock);
    while (i < STREAMS && streams[i].used)
        i++;
    if (i < STREAMS) {
        streams[i] = (struct stream){1, 0};
        report.live++;
        *s = (CUstream)&streams[i];
    }
    pthread_mutex_unlock(&lock);
    return i < STREAMS ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

CUresult cuStreamSynchronize(CUstream s)
{
    CUresult r = begin();

    pthread_mutex_lock(&lock);
    ((struct stream *)s)->busy = 0; /* with an error, too: nothing runs any more */
    pthread_mutex_unlock(&lock);
    return r;
}

CUresult cuStreamDestroy(CUstream s)
{
    struct stream *it = (struct stream *)s;

    pthread_mutex_lock(&lock);
    if (!it->used)
        wrong_locked("a stream destroyed that is none");
    if (it->busy)
        wrong_locked("a stream destroyed with work on it");
    it->used = 0;
    report.live--;
    pthread_mutex_unlock(&lock);
    return CUDA_SUCCESS;
}

CUresult cuModuleLoadData(CUmodule *m, const void *image)
{
    CUresult r = begin();
    static const unsigned char fatbin[4] = {0x50, 0xed, 0x55, 0xba};

    if (memcmp(image, fatbin, sizeof fatbin))
        fake_cuda_wrong("a module that is no fat binary");
    if (!r) {
        *m = (CUmodule)&report;
        fake_cuda_made(1);
    }
    return r;
}

CUresult cuModuleUnload(CUmodule m)
{
    (void)m;
    fake_cuda_made(-1);
    return CUDA_SUCCESS;
}

CUresult cuModuleGetFunction(CUfunction *f, CUmodule m, const char *name)
{
    (void)m;
    if (strncmp(name, "hapi_gpu_", 9))
        fake_cuda_wrong("a kernel by another's name");
    *f = (CUfunction)&report;
    return begin();
}

CUresult cuLaunchKernel(CUfunction f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                        unsigned bz, unsigned shared, CUstream s, void **parameters, void **extra)
{
    CUresult r = begin();

    (void)f;
    (void)shared;
    (void)extra;
    if (!gx || gy != 1 || gz != 1 || bx % 32 || bx > 1024 || by != 1 || bz != 1)
        fake_cuda_wrong("a launch of an impossible size");
    for (int i = 1; i < 3; i++)
        if (!fake_cuda_is_device(*(void **)parameters[i], 1))
            fake_cuda_wrong("a kernel on memory that is not the device's");
    if (!r)
        fake_cuda_enqueued(s);
    return r;
}
