/* See fake_cuda.h. */
#include "fake_cuda.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cuda.h>

enum { BLOCKS = 1024, STREAMS = 64, DEPTH = 8, LAUNCH_NS = 2000, SLOW_NS = 1000000, CALLBACK_NS = 200000 };

enum { FILLED_MIB = 4 };
static const size_t TOTAL = 1UL << 30;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t called_back = PTHREAD_COND_INITIALIZER;
static struct fake_cuda_report report;
static long fail_at;
static int fail_with, devices = 1, graphs_slow;
static struct {
    unsigned char *p;
    size_t bytes;
} blocks[BLOCKS];
static struct stream {
    int used, busy; /* busy: something was enqueued and not waited for */
    int callbacks;  /* that are to come */
    long captured;  /* launches; -1: nothing is captured */
} streams[STREAMS];
static __thread int current, in_callback;

struct CUgraph_st {
    long launches;
};

struct CUgraphExec_st {
    long launches;
};

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

void fake_cuda_graphs_slow(int is)
{
    graphs_slow = is;
}

void fake_cuda_devices(int n)
{
    devices = n;
}

/* ------------------------------------------------------------------ for both fakes */

int fake_cuda_call(void)
{
    pthread_mutex_lock(&lock);
    if (in_callback && !report.wrong++)
        snprintf(report.what, sizeof report.what, "a call from a callback");
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

/* What the CPU is busy for. */
static void spin(long ns)
{
    struct timespec a, b;

    clock_gettime(CLOCK_MONOTONIC, &a);
    do
        clock_gettime(CLOCK_MONOTONIC, &b);
    while ((b.tv_sec - a.tv_sec) * 1000000000L + b.tv_nsec - a.tv_nsec < ns);
}

/* Launches that a graph holds, or is getting. */
static void enqueued(struct stream *s, long launches)
{
    pthread_mutex_lock(&lock);
    if (!s || !s->used) {
        wrong_locked("work on a stream that is not there");
    } else if (s->captured >= 0) {
        s->captured += launches;
    } else {
        report.launches += launches;
        s->busy = 1;
    }
    pthread_mutex_unlock(&lock);
}

void fake_cuda_enqueued(void *stream)
{
    spin(LAUNCH_NS);
    enqueued(stream, 1);
}

int fake_cuda_busy(const void *stream)
{
    pthread_mutex_lock(&lock);
    int busy = ((const struct stream *)stream)->busy;
    pthread_mutex_unlock(&lock);
    return busy;
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

/* No dma-buf: there is no driver to make one. */
CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute a, CUdevice d)
{
    (void)a;
    (void)d;
    *value = 0;
    return (CUresult)fake_cuda_call();
}

CUresult cuMemGetHandleForAddressRange(void *handle, CUdeviceptr p, size_t bytes, CUmemRangeHandleType type,
                                       unsigned long long flags)
{
    (void)handle;
    (void)p;
    (void)bytes;
    (void)type;
    (void)flags;
    fake_cuda_wrong("a dma-buf from a device that has none");
    return CUDA_ERROR_NOT_SUPPORTED;
}

CUresult cuDeviceTotalMem(size_t *bytes, CUdevice d)
{
    (void)d;
    *bytes = TOTAL;
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

CUresult cuMemGetInfo(size_t *unused, size_t *total)
{
    CUresult r = begin();

    pthread_mutex_lock(&lock);
    *total = TOTAL;
    *unused = TOTAL - report.bytes;
    pthread_mutex_unlock(&lock);
    return r;
}

/* How much of a new block is not 0. */
static size_t filled(size_t bytes)
{
    const char *mib = getenv("FAKE_CUDA_FILL_MIB");
    size_t most = (mib ? strtoul(mib, NULL, 10) : FILLED_MIB) << 20;

    return bytes < most ? bytes : most;
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
    if (bytes > TOTAL - report.bytes)
        i = BLOCKS;
    while (i < BLOCKS && blocks[i].p)
        i++;
    if (i < BLOCKS) {
        blocks[i].p = aligned_alloc(512, (bytes + 511) / 512 * 512);
        blocks[i].bytes = bytes;
        memset(blocks[i].p, FAKE_CUDA_FILL, filled(bytes));
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

CUresult cuMemHostAlloc(void **p, size_t bytes, unsigned flags)
{
    CUresult r = begin();

    (void)flags;
    *p = r ? NULL : aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
    if (*p)
        fake_cuda_made(1);
    return r;
}

CUresult cuMemFreeHost(void *p)
{
    if (!current)
        fake_cuda_wrong("pinned memory freed without a context");
    pthread_mutex_lock(&lock);
    for (int k = 0; k < STREAMS; k++)
        if (streams[k].used && streams[k].busy)
            wrong_locked("pinned memory freed while a stream may use it");
    report.live--;
    pthread_mutex_unlock(&lock);
    free(p);
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
    if (((struct stream *)s)->captured >= 0)
        fake_cuda_wrong("a copy in a graph: its addresses change from run to run");
    enqueued((struct stream *)s, 0);
    pthread_mutex_lock(&lock);
    report.copies++;
    pthread_mutex_unlock(&lock);
    return r;
}

CUresult cuMemcpyHtoDAsync(CUdeviceptr to, const void *from, size_t bytes, CUstream s)
{
    return copy((void *)(uintptr_t)to, from, bytes, (void *)(uintptr_t)to, s);
}

CUresult cuMemcpyDtoDAsync(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream s)
{
    if (!fake_cuda_is_device((void *)(uintptr_t)from, bytes))
        fake_cuda_wrong("a copy beyond the device's memory");
    return copy((void *)(uintptr_t)to, (void *)(uintptr_t)from, bytes, (void *)(uintptr_t)to, s);
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
        streams[i] = (struct stream){.used = 1, .captured = -1};
        report.live++;
        *s = (CUstream)&streams[i];
    }
    pthread_mutex_unlock(&lock);
    return i < STREAMS ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

CUresult cuStreamSynchronize(CUstream s)
{
    struct stream *it = (struct stream *)s;
    CUresult r = begin();

    pthread_mutex_lock(&lock);
    if (it->captured >= 0)
        wrong_locked("waiting for a stream that is being captured");
    while (it->callbacks)
        pthread_cond_wait(&called_back, &lock);
    it->busy = 0; /* with an error, too: nothing runs any more */
    pthread_mutex_unlock(&lock);
    return r;
}

struct callback {
    CUstream stream;
    CUstreamCallback f;
    void *arg;
};

static void *call_back(void *arg)
{
    struct callback c = *(struct callback *)arg;
    struct stream *s = (struct stream *)c.stream;

    free(arg);
    nanosleep(&(struct timespec){0, CALLBACK_NS}, NULL);
    CUresult r = (CUresult)fake_cuda_call();
    in_callback = 1;
    pthread_mutex_lock(&lock);
    s->busy = 0; /* all before it is over */
    pthread_mutex_unlock(&lock);
    c.f(c.stream, r, c.arg);
    pthread_mutex_lock(&lock);
    s->callbacks--;
    pthread_cond_broadcast(&called_back);
    pthread_mutex_unlock(&lock);
    return NULL;
}

CUresult cuStreamAddCallback(CUstream s, CUstreamCallback f, void *arg, unsigned flags)
{
    struct callback *c;
    CUresult r = begin();
    pthread_t thread;

    (void)flags;
    if (r)
        return r;
    c = malloc(sizeof *c);
    if (!c)
        return CUDA_ERROR_OUT_OF_MEMORY;
    *c = (struct callback){s, f, arg};
    pthread_mutex_lock(&lock);
    ((struct stream *)s)->callbacks++;
    pthread_mutex_unlock(&lock);
    if (pthread_create(&thread, NULL, call_back, c))
        abort();
    pthread_detach(thread);
    return CUDA_SUCCESS;
}

CUresult cuStreamBeginCapture(CUstream s, CUstreamCaptureMode mode)
{
    struct stream *it = (struct stream *)s;
    CUresult r = begin();

    if (mode != CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
        fake_cuda_wrong("a capture that stops other threads");
    if (!r)
        it->captured = 0;
    return r;
}

CUresult cuStreamEndCapture(CUstream s, CUgraph *g)
{
    struct stream *it = (struct stream *)s;
    CUresult r = begin();

    *g = r ? NULL : malloc(sizeof **g);
    if (*g) {
        (*g)->launches = it->captured;
        fake_cuda_made(1);
    }
    it->captured = -1;
    return r;
}

CUresult cuGraphInstantiateWithFlags(CUgraphExec *out, CUgraph g, unsigned long long flags)
{
    CUresult r = begin();

    (void)flags;
    *out = r ? NULL : malloc(sizeof **out);
    if (*out) {
        (*out)->launches = g->launches;
        fake_cuda_made(1);
    }
    return r;
}

CUresult cuGraphLaunch(CUgraphExec g, CUstream s)
{
    CUresult r = begin();

    if (r)
        return r;
    spin(graphs_slow ? SLOW_NS : LAUNCH_NS);
    enqueued((struct stream *)s, g->launches);
    pthread_mutex_lock(&lock);
    report.graphs++;
    pthread_mutex_unlock(&lock);
    return r;
}

CUresult cuGraphDestroy(CUgraph g)
{
    fake_cuda_made(-1);
    free(g);
    return CUDA_SUCCESS;
}

CUresult cuGraphExecDestroy(CUgraphExec g)
{
    if (!current)
        fake_cuda_wrong("a graph destroyed without a context");
    fake_cuda_made(-1);
    free(g);
    return CUDA_SUCCESS;
}

CUresult cuStreamDestroy(CUstream s)
{
    struct stream *it = (struct stream *)s;

    pthread_mutex_lock(&lock);
    if (!it->used)
        wrong_locked("a stream destroyed that is none");
    if (it->busy || it->callbacks)
        wrong_locked("a stream destroyed with work on it");
    it->used = 0;
    report.live--;
    pthread_mutex_unlock(&lock);
    return CUDA_SUCCESS;
}
