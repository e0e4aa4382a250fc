#include "gpu_device.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "cache.h"
#include "gpu_memory.h"

static pthread_once_t once = PTHREAD_ONCE_INIT;
static struct hapi_cuda driver;
static int loaded;
static struct hapi_err why;

static pthread_mutex_t device_lock = PTHREAD_MUTEX_INITIALIZER, calls_lock = PTHREAD_MUTEX_INITIALIZER,
                       plans_lock = PTHREAD_MUTEX_INITIALIZER;
static struct hapi_cuda_device *device;

int hapi_cuda_fail(const struct hapi_cuda *cu, CUresult r, const char *what, struct hapi_err *err)
{
    const char *name = NULL;
    int code = r == CUDA_ERROR_OUT_OF_MEMORY ? HAPI_ENOMEM : HAPI_ESYS;

    if (cu->GetErrorName(r, &name) || !name)
        name = "an error without a name";
    return hapi_err_set(err, code, (long)r, "%s: CUDA says %s", what, name);
}

static void driver_load(void)
{
    void *so = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    CUresult r;
    int n = 0;

    if (!so) {
        loaded = hapi_err_set(&why, HAPI_EUNSUPPORTED, 0, "no CUDA driver here (%s)", dlerror());
        return;
    }
#define X(name, symbol, parameters)                                                                          \
    {                                                                                                        \
        void *f = dlsym(so, symbol);                                                                         \
        if (!f) {                                                                                            \
            loaded = hapi_err_set(&why, HAPI_EUNSUPPORTED, 0, "the CUDA driver is too old: no " symbol);     \
            return;                                                                                          \
        }                                                                                                    \
        memcpy(&driver.name, &f, sizeof f);                                                                  \
    }
    HAPI_CUDA_CALLS(X)
#undef X
    r = driver.Init(0);
    if (!r)
        r = driver.DeviceGetCount(&n);
    if (r || !n)
        loaded = hapi_err_set(&why, HAPI_EUNSUPPORTED, (long)r, "no GPU answers (CUDA error %d, %d devices)",
                              (int)r, n);
}

/* ------------------------------------------------------------------ the device */

int hapi_cuda_enter(const struct hapi_cuda_device *d, struct hapi_err *err)
{
    CUresult r = d->cu->CtxPushCurrent(d->context);

    return r ? hapi_cuda_fail(d->cu, r, "taking the GPU's context", err) : HAPI_OK;
}

void hapi_cuda_leave(const struct hapi_cuda_device *d)
{
    CUcontext c;

    (void)d->cu->CtxPopCurrent(&c);
}

void hapi_cuda_lock(struct hapi_cuda_device *d)
{
    pthread_mutex_lock(d->lock);
}

void hapi_cuda_unlock(struct hapi_cuda_device *d)
{
    pthread_mutex_unlock(d->lock);
}

void hapi_cuda_plans_lock(struct hapi_cuda_device *d)
{
    pthread_mutex_lock(d->plans_lock);
}

void hapi_cuda_plans_unlock(struct hapi_cuda_device *d)
{
    pthread_mutex_unlock(d->plans_lock);
}

static int module_open(struct hapi_cuda_device *d, struct hapi_err *err)
{
    static const char *const names[HAPI_GPU_KERNELS] = {
        [HAPI_GPU_POINTWISE] = "hapi_gpu_pointwise", [HAPI_GPU_SOFTMAX] = "hapi_gpu_softmax",
        [HAPI_GPU_MEAN] = "hapi_gpu_mean",           [HAPI_GPU_IMAGE] = "hapi_gpu_image",
        [HAPI_GPU_ZERO] = "hapi_gpu_zero",           [HAPI_GPU_I8_MAX] = "hapi_gpu_i8_max",
        [HAPI_GPU_I8_PACK] = "hapi_gpu_i8_pack",
    };
    CUresult r;

    if (!hapi_cuda_image)
        return hapi_err_set(err, HAPI_EUNSUPPORTED, 0,
                            "this build has no CUDA kernels: build where nvcc is found");
    r = d->cu->ModuleLoadData(&d->module, hapi_cuda_image);
    if (r)
        return hapi_cuda_fail(d->cu, r, "loading our CUDA kernels", err);
    for (int i = 0; i < HAPI_GPU_KERNELS; i++) {
        r = d->cu->ModuleGetFunction(&d->kernels[i], d->module, names[i]);
        if (r)
            return hapi_cuda_fail(d->cu, r, names[i], err);
    }
    return HAPI_OK;
}

static int cudnn_open(struct hapi_cuda_device *d, struct hapi_err *err)
{
    char folder[4096];
    cudnnStatus_t s = d->cudnn->Create(&d->handle);
    int rc;

    if (s)
        return hapi_cudnn_fail(d->cudnn, s, "starting cuDNN", err);
    s = d->cudnn->Create(&d->maker);
    if (s)
        return hapi_cudnn_fail(d->cudnn, s, "starting cuDNN", err);
    rc = hapi_cudnn_device_open(&d->described, d->device, err);
    if (rc)
        return rc;
    hapi_cudnn_device_use(d->described, d->maker);
    bool keeps = hapi_cache_folder(folder, sizeof folder, "cudnn");
    return hapi_cudnn_plans_new(&d->plans, d->described, keeps ? folder : NULL, err);
}

static void device_close(struct hapi_cuda_device *d)
{
    bool current = d->context && !hapi_cuda_enter(d, NULL);

    hapi_cudnn_plans_free(d->plans);
    hapi_cudnn_device_free(d->described);
    if (d->maker)
        (void)d->cudnn->Destroy(d->maker);
    if (d->handle)
        (void)d->cudnn->Destroy(d->handle);
    if (d->module)
        (void)d->cu->ModuleUnload(d->module);
    hapi_gpu_memory_close(d);
    if (current)
        hapi_cuda_leave(d);
    if (d->context)
        (void)d->cu->DevicePrimaryCtxRelease(d->device);
    free(d);
}

static int device_open(struct hapi_cuda_device **out, struct hapi_err *err)
{
    struct hapi_cuda_device *d = calloc(1, sizeof *d);
    CUresult r;
    int rc;

    if (!d)
        return hapi_err_set(err, HAPI_ENOMEM, 0, "no memory for a GPU");
    d->cu = &driver;
    d->lock = &calls_lock;
    d->plans_lock = &plans_lock;
    d->refs = 1;
    rc = hapi_cudnn_lib_get(&d->cudnn, err);
    if (rc)
        goto fail;
    r = driver.DeviceGet(&d->device, 0);
    if (!r)
        r = driver.DevicePrimaryCtxRetain(&d->context, d->device);
    if (r) {
        rc = hapi_cuda_fail(&driver, r, "opening the GPU", err);
        goto fail;
    }
    rc = hapi_cuda_enter(d, err);
    if (rc)
        goto fail;
    rc = module_open(d, err);
    if (!rc)
        rc = cudnn_open(d, err);
    hapi_cuda_leave(d);
    if (rc)
        goto fail;
    *out = d;
    return HAPI_OK;
fail:
    device_close(d);
    return rc;
}

int hapi_cuda_device_get(struct hapi_cuda_device **out, struct hapi_err *err)
{
    int rc = HAPI_OK;

    pthread_once(&once, driver_load);
    if (loaded)
        return hapi_err_set(err, loaded, why.sys, "%s", why.text);
    pthread_mutex_lock(&device_lock);
    if (device)
        device->refs++;
    else
        rc = device_open(&device, err);
    if (!rc)
        *out = device;
    pthread_mutex_unlock(&device_lock);
    return rc;
}

void hapi_cuda_device_put(struct hapi_cuda_device *d)
{
    if (!d)
        return;
    pthread_mutex_lock(&device_lock);
    if (--d->refs == 0) {
        device_close(d);
        device = NULL;
    }
    pthread_mutex_unlock(&device_lock);
}
