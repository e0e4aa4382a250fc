/* What a node asks of a GPU besides plans: whether it is there, and memory. */
#include <pthread.h>
#include <stdio.h>
#include <unistd.h>

#include "cudnn_backend.h"
#include "cudnn_tune.h"
#include "gpu_memory.h"

enum { DIRECT_ALIGN = 2 << 20 }; /* of device memory that is mapped: the driver's pages */

const char *hapi_cudnn_class(void)
{
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    static char text[96];
    struct hapi_cuda_device *d;

    if (hapi_cudnn_tuned_class())
        return hapi_cudnn_tuned_class();
    pthread_mutex_lock(&lock);
    if (!*text && !hapi_cuda_device_get(&d, NULL)) { /* opening takes long: once, unless it failed */
        size_t v = d->cudnn->GetVersion();
        snprintf(text, sizeof text, "cudnn/sm_%d/%zu.%zu.%zu", hapi_cudnn_device_version(d->described) / 10,
                 v / 10000, v / 100 % 100, v % 100);
        hapi_cuda_device_put(d);
    }
    pthread_mutex_unlock(&lock);
    return *text ? text : NULL;
}

int hapi_cudnn_ready(struct hapi_err *err)
{
    struct hapi_cuda_device *d;
    int rc = hapi_cuda_device_get(&d, err);

    if (!rc)
        hapi_cuda_device_put(d);
    return rc;
}

/* The device, with its context current: what is done with it holds it until held_close(). */
static int held_open(struct hapi_cuda_device **d, struct hapi_err *err)
{
    int rc = hapi_cuda_device_get(d, err);

    if (rc)
        return rc;
    rc = hapi_cuda_enter(*d, err);
    if (rc)
        hapi_cuda_device_put(*d);
    return rc;
}

/* After what held_open() began: the device is held on if it went well. */
static int held_keep(struct hapi_cuda_device *d, int rc)
{
    hapi_cuda_leave(d);
    if (rc)
        hapi_cuda_device_put(d);
    return rc;
}

/* The device is given up by whoever held it, and by this call. */
static void held_close(struct hapi_cuda_device *d)
{
    hapi_cuda_leave(d);
    hapi_cuda_device_put(d);
    hapi_cuda_device_put(d);
}

int hapi_cudnn_pin(void *p, size_t bytes, struct hapi_err *err)
{
    struct hapi_cuda_device *d;
    int rc = held_open(&d, err);

    if (rc)
        return rc;
    CUresult r = d->cu->MemHostRegister(p, bytes, CU_MEMHOSTREGISTER_PORTABLE);
    return held_keep(d, r ? hapi_cuda_fail(d->cu, r, "pinning memory for the GPU", err) : HAPI_OK);
}

void hapi_cudnn_unpin(void *p)
{
    struct hapi_cuda_device *d;

    if (held_open(&d, NULL))
        return;
    (void)d->cu->MemHostUnregister(p);
    held_close(d);
}

int hapi_cudnn_reserve(uint64_t bytes, struct hapi_err *err)
{
    struct hapi_cuda_device *d;
    int rc = held_open(&d, err);

    return rc ? rc : held_keep(d, hapi_gpu_memory_reserve(d, bytes, err));
}

/* The block goes with the device, when nobody has that any more. */
void hapi_cudnn_release(void)
{
    struct hapi_cuda_device *d;

    if (!held_open(&d, NULL))
        held_close(d);
}

bool hapi_cudnn_usage(struct hapi_device_usage *out)
{
    struct hapi_cuda_device *d;

    if (hapi_cuda_device_get(&d, NULL))
        return false;
    hapi_gpu_memory_usage(d, &out->reserved, &out->used);
    hapi_cuda_device_put(d);
    return true;
}

/* ------------------------------------------------------------------ for a NIC */

/* Its dma-buf, -1 where the driver has none to give: then a NIC's driver may ask for it by address. */
static int dmabuf_of(struct hapi_cuda_device *d, CUdeviceptr at, size_t bytes)
{
    int fd = -1, can = 0;

    if (d->cu->DeviceGetAttribute(&can, CU_DEVICE_ATTRIBUTE_DMA_BUF_SUPPORTED, d->device) || !can ||
        d->cu->MemGetHandleForAddressRange(&fd, at, bytes, CU_MEM_RANGE_HANDLE_TYPE_DMA_BUF_FD, 0))
        return -1;
    return fd;
}

static int direct_take(struct hapi_cuda_device *d, size_t bytes, struct hapi_device_memory *out,
                       struct hapi_err *err)
{
    CUdeviceptr at;

    if (d->direct)
        return hapi_err_set(err, HAPI_EBUSY, 0, "device memory for a NIC has been taken");
    bytes = (bytes + DIRECT_ALIGN - 1) / DIRECT_ALIGN * DIRECT_ALIGN;
    CUresult r = d->cu->MemAlloc(&at, bytes);
    if (r)
        return hapi_cuda_fail(d->cu, r, "device memory for a NIC", err);
    d->direct = at;
    d->direct_bytes = bytes;
    *out = (struct hapi_device_memory){
        .base = (void *)(uintptr_t)at, // NOLINT(performance-no-int-to-ptr)
        .bytes = bytes,
        .dmabuf = dmabuf_of(d, at, bytes),
    };
    return HAPI_OK;
}

int hapi_cudnn_device_memory(size_t bytes, struct hapi_device_memory *out, struct hapi_err *err)
{
    struct hapi_cuda_device *d;
    int rc = held_open(&d, err);

    return rc ? rc : held_keep(d, direct_take(d, bytes, out, err));
}

void hapi_cudnn_device_memory_free(struct hapi_device_memory *m)
{
    struct hapi_cuda_device *d;

    if (m->dmabuf >= 0)
        (void)close(m->dmabuf);
    if (held_open(&d, NULL))
        return;
    (void)d->cu->MemFree(d->direct);
    d->direct = 0;
    held_close(d);
}
