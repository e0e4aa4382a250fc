/* Kernels and events of the driver that computes nothing: its clock is what the fake cuDNN says that plans
 * take. */
#include <pthread.h>
#include <string.h>

#include <cuda.h>

#include "fake_cuda.h"

#undef cuEventElapsedTime /* cuda.h of CUDA 12.8 and later names its second version so */
CUresult cuEventElapsedTime(float *ms, CUevent from, CUevent to);

enum { EVENTS = 64, STREAMS = 64 };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct {
    const void *stream;
    double us;
} clocks[STREAMS];
static struct event {
    int used;
    const void *stream; /* NULL: not recorded */
    double us;
} events[EVENTS];

/* Under the lock. A stream that comes to the place of another goes on with its clock. */
static double *clock_of(const void *stream)
{
    int i = 0;

    while (i + 1 < STREAMS && clocks[i].stream && clocks[i].stream != stream)
        i++;
    clocks[i].stream = stream;
    return &clocks[i].us;
}

void fake_cuda_takes(void *stream, double us)
{
    pthread_mutex_lock(&lock);
    *clock_of(stream) += us;
    pthread_mutex_unlock(&lock);
}

static CUresult begin(void)
{
    if (!fake_cuda_current())
        fake_cuda_wrong("a call without a context");
    return (CUresult)fake_cuda_call();
}

CUresult cuEventCreate(CUevent *e, unsigned flags)
{
    CUresult r = begin();
    int i = 0;

    if (flags & CU_EVENT_DISABLE_TIMING)
        fake_cuda_wrong("an event that tells no time");
    if (r)
        return r;
    pthread_mutex_lock(&lock);
    while (i < EVENTS && events[i].used)
        i++;
    if (i < EVENTS) {
        events[i] = (struct event){.used = 1};
        *e = (CUevent)&events[i];
        fake_cuda_made(1);
    }
    pthread_mutex_unlock(&lock);
    return i < EVENTS ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

CUresult cuEventRecord(CUevent e, CUstream s)
{
    struct event *it = (struct event *)e;
    CUresult r = begin();

    if (!it->used)
        fake_cuda_wrong("an event recorded that is none");
    if (r)
        return r;
    pthread_mutex_lock(&lock);
    it->stream = s;
    it->us = *clock_of(s);
    pthread_mutex_unlock(&lock);
    return CUDA_SUCCESS;
}

CUresult cuEventElapsedTime(float *ms, CUevent from, CUevent to)
{
    const struct event *a = (struct event *)from, *b = (struct event *)to;
    CUresult r = begin();

    if (!a->used || !b->used || !a->stream || !b->stream)
        fake_cuda_wrong("the time between events that were not recorded");
    else if (fake_cuda_busy(a->stream) || fake_cuda_busy(b->stream))
        fake_cuda_wrong("the time between events that nobody waited for");
    if (!r)
        *ms = (float)((b->us - a->us) / 1000);
    return r;
}

CUresult cuEventDestroy(CUevent e)
{
    struct event *it = (struct event *)e;

    if (!fake_cuda_current() || !it->used)
        fake_cuda_wrong("an event destroyed that is none, or without a context");
    it->used = 0;
    fake_cuda_made(-1);
    return CUDA_SUCCESS;
}

/* Takes time and, as nobody looks at what is in device memory, writes nothing. */
CUresult cuMemsetD8Async(CUdeviceptr p, unsigned char value, size_t bytes, CUstream s)
{
    CUresult r = begin();

    (void)value;
    if (!fake_cuda_is_device((void *)(uintptr_t)p, bytes))
        fake_cuda_wrong("memory filled that is not the device's");
    if (!r) {
        fake_cuda_enqueued(s);
        fake_cuda_takes(s, 100);
    }
    return r;
}

/* ------------------------------------------------------------------ kernels */

CUresult cuModuleLoadData(CUmodule *m, const void *image)
{
    CUresult r = begin();
    static const unsigned char fatbin[4] = {0x50, 0xed, 0x55, 0xba};

    if (memcmp(image, fatbin, sizeof fatbin))
        fake_cuda_wrong("a module that is no fat binary");
    if (!r) {
        *m = (CUmodule)&events;
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
    *f = (CUfunction)&events;
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
