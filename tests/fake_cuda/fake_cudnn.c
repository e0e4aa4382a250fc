/* See fake_cuda.h. Descriptors keep what a user may ask for again, engines take everything. */
#include <dlfcn.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cudnn_graph.h>

#include "fake_cuda.h"

enum { MAGIC = 0x64656e6e, WORKSPACE = 4096, POINTERS = 64, ENGINES = 8 };

static const cudnnStatus_t FAILED = CUDNN_STATUS_EXECUTION_FAILED;

struct descriptor {
    int magic;
    cudnnBackendDescriptorType_t type;
    bool finalized;
    int engine; /* of a plan, a configuration, an engine */
    int n_pointers;
    void *pointers[POINTERS], *workspace;
};

struct cudnnContext {
    cudaStream_t stream;
};

/* As no description of ours is: with a key more, and a truth value for a number. */
static const char device[] =
    "{\"cudaDeviceId\":0,\"deviceVer\":900,\"driverVer\":13000,\"deviceName\":\"fake\",\"pciDeviceId\":0,"
    "\"multiProcessorCount\":1,\"warpSize\":32,\"maxGridSize\":[1,1,1],\"maxBlockSize\":[1,1,1],"
    "\"regsPerBlock\":1,"
    "\"maxRegistersPerSM\":1,\"maxSharedMemoryPerBlock\":1,\"maxSharedMemoryPerBlockOptin\":1,"
    "\"reservedSharedMemoryPerBlock\":1,\"maxCtasPerSM\":1,\"maxThreadsPerBlock\":1024,\"maxThreadsPerSM\":"
    "2048,"
    "\"isTccDriver\":false,\"ofALaterVersion\":1,\"supportCoopLaunch\":1,\"totalGlobalMem\":1073741824,"
    "\"smClockRateKHz\":1,"
    "\"memClockRateKHz\":1,"
    "\"l2CacheSize\":1}";

static _Atomic int slow, making, old;
static int n_engines = 1;
static double times[ENGINES]; /* microseconds */
static _Atomic long ran[ENGINES];

void fake_cudnn_engines(int n, const double *us)
{
    n_engines = n ? n : 1;
    memset(times, 0, sizeof times);
    if (n)
        memcpy(times, us, (size_t)n * sizeof *us);
}

/* For programs that no test can call into. */
static void engines_of_environment(void)
{
    const char *at = getenv("FAKE_CUDNN_US");
    double us[ENGINES];
    char *end;
    int n = 0;

    for (; at && n < ENGINES; at = *end ? end + 1 : NULL)
        us[n++] = strtod(at, &end);
    if (n)
        fake_cudnn_engines(n, us);
}

long fake_cudnn_ran(int engine)
{
    return ran[engine];
}

void fake_cudnn_old(int is)
{
    old = is;
}

void fake_cudnn_slow(int ms)
{
    slow = ms;
}

int fake_cudnn_making(void)
{
    return making;
}

/* Until it is told that it need not, at most. */
static void take_time(void)
{
    making++;
    for (int i = 0; i < slow; i++)
        nanosleep(&(struct timespec){0, 1000000}, NULL);
    making--;
}

size_t cudnnGetVersion(void)
{
    return old ? 91000 : 91900;
}

size_t cudnnGetCudartVersion(void)
{
    return 13000;
}

void cudnnGetLastErrorString(char *text, size_t size)
{
    snprintf(text, size, "the fake was told to fail");
}

cudnnStatus_t cudnnCreate(cudnnHandle_t *handle)
{
    if (fake_cuda_call())
        return FAILED;
    if (!fake_cuda_current())
        fake_cuda_wrong("cuDNN without a context");
    engines_of_environment();
    *handle = calloc(1, sizeof **handle);
    fake_cuda_made(1);
    return *handle ? CUDNN_STATUS_SUCCESS : FAILED;
}

cudnnStatus_t cudnnDestroy(cudnnHandle_t handle)
{
    fake_cuda_made(-1);
    free(handle);
    return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnSetStream(cudnnHandle_t handle, cudaStream_t stream)
{
    if (fake_cuda_call())
        return FAILED;
    handle->stream = stream;
    return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnBackendCreateDescriptor(cudnnBackendDescriptorType_t type, cudnnBackendDescriptor_t *d)
{
    struct descriptor *it;

    if (fake_cuda_call())
        return FAILED;
    if (old &&
        type == CUDNN_BACKEND_OPERATION_SDPA_FWD_DESCRIPTOR) /* what cuDNN says of types unknown to it */
        return CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED;
    it = calloc(1, sizeof *it);
    if (!it)
        return FAILED;
    it->magic = MAGIC;
    it->type = type;
    *d = it;
    fake_cuda_made(1);
    return CUDNN_STATUS_SUCCESS;
}

static struct descriptor *valid(cudnnBackendDescriptor_t d)
{
    struct descriptor *it = d;

    if (!it || it->magic != MAGIC) {
        fake_cuda_wrong("a descriptor that is none");
        return NULL;
    }
    return it;
}

cudnnStatus_t cudnnBackendDestroyDescriptor(cudnnBackendDescriptor_t d)
{
    struct descriptor *it = valid(d);

    if (it) {
        it->magic = 0;
        free(it);
        fake_cuda_made(-1);
    }
    return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnBackendFinalize(cudnnBackendDescriptor_t d)
{
    struct descriptor *it = valid(d);

    if (it && it->finalized)
        fake_cuda_wrong("a descriptor finalized twice");
    if (fake_cuda_call())
        return FAILED;
    if (it && it->type == CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR)
        take_time();
    if (it)
        it->finalized = true;
    return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnBackendSetAttribute(cudnnBackendDescriptor_t d, cudnnBackendAttributeName_t name,
                                       cudnnBackendAttributeType_t type, int64_t n, const void *values)
{
    struct descriptor *it = valid(d);

    if (it && it->finalized)
        fake_cuda_wrong("a finalized descriptor is changed");
    if (fake_cuda_call())
        return FAILED;
    if (type == CUDNN_TYPE_BACKEND_DESCRIPTOR)
        for (int64_t i = 0; i < n; i++) {
            const struct descriptor *used = valid(((const cudnnBackendDescriptor_t *)values)[i]);
            if (used && !used->finalized && used->type != CUDNN_BACKEND_ENGINECFG_DESCRIPTOR)
                fake_cuda_wrong("a descriptor is used before it is finalized");
            if (used && it && name == CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG)
                it->engine = used->engine;
        }
    if (it && name == CUDNN_ATTR_EXECUTION_PLAN_JSON_REPRESENTATION &&
        (sscanf(values, "{\"engine\": %d}", &it->engine) != 1 || it->engine < 0 || it->engine >= ENGINES))
        return CUDNN_STATUS_BAD_PARAM;
    if (it && name == CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS) {
        it->n_pointers = n < POINTERS ? (int)n : POINTERS;
        memcpy(it->pointers, values, (size_t)it->n_pointers * sizeof(void *));
    }
    if (it && name == CUDNN_ATTR_VARIANT_PACK_WORKSPACE)
        memcpy(&it->workspace, values, sizeof(void *));
    return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnBackendGetAttribute(cudnnBackendDescriptor_t d, cudnnBackendAttributeName_t name,
                                       cudnnBackendAttributeType_t type, int64_t room, int64_t *n,
                                       void *values)
{
    const struct descriptor *it = valid(d);
    char text[32];

    (void)type;
    if (!it || fake_cuda_call())
        return FAILED;
    *n = 1;
    switch (name) {
    case CUDNN_ATTR_ENGINEHEUR_RESULTS:
        *n = n_engines;
        for (int i = 0; i < n_engines; i++)
            ((struct descriptor **)values)[i]->engine = i;
        break;
    case CUDNN_ATTR_ENGINECFG_ENGINE:
        (*(struct descriptor **)values)->engine = it->engine;
        break;
    case CUDNN_ATTR_DEVICEPROP_JSON_REPRESENTATION:
        *n = (int64_t)sizeof device;
        if (room >= *n)
            memcpy(values, device, sizeof device);
        break;
    case CUDNN_ATTR_EXECUTION_PLAN_JSON_REPRESENTATION:
        *n = snprintf(text, sizeof text, "{\"engine\": %d}", it->engine) + 1;
        if (room >= *n)
            memcpy(values, text, (size_t)*n);
        break;
    case CUDNN_ATTR_ENGINE_GLOBAL_INDEX:
        *(int64_t *)values = it->engine;
        break;
    case CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE:
        *(int64_t *)values = WORKSPACE;
        break;
    default: /* notes, knobs: none */
        *n = 0;
    }
    return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnBackendExecute(cudnnHandle_t handle, cudnnBackendDescriptor_t plan,
                                  cudnnBackendDescriptor_t pack)
{
    const struct descriptor *p = valid(plan), *v = valid(pack);
    int on_device = 0;

    if (!p || !v || !p->finalized || !v->finalized || p->type != CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR ||
        v->type != CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR) {
        fake_cuda_wrong("executing what is no plan");
        return FAILED;
    }
    if (!fake_cuda_current())
        fake_cuda_wrong("cuDNN without a context");
    for (int i = 0; i < v->n_pointers; i++)
        on_device += fake_cuda_is_device(v->pointers[i], 1);
    if (on_device < 2) /* others are the host's: scalars by value */
        fake_cuda_wrong("a plan on memory that is not the device's");
    if (!fake_cuda_is_device(v->workspace, WORKSPACE))
        fake_cuda_wrong("a plan without its workspace");
    if (fake_cuda_call() || times[p->engine] < 0)
        return FAILED;
    fake_cuda_enqueued(handle->stream);
    fake_cuda_takes(handle->stream, times[p->engine]);
    ran[p->engine]++;
    return CUDNN_STATUS_SUCCESS;
}
