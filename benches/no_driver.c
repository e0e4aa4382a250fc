/*
 * A CUDA driver without devices, for machines that have none: cuDNN compiles some of its kernels at run time
 * and asks a driver before it does, even for a device that is only described. It computes nothing, and says
 * so: every call but those that tell its version fails with CUDA_ERROR_NO_DEVICE. `hapi-bench cudnn-plans`
 * loads it where there is no libcuda.so.1.
 */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum { SUCCESS = 0, NO_DEVICE = 100, VERSION = 13000 };

int cuInit(unsigned flags);
int cuDriverGetVersion(int *version);
int cuDeviceGetCount(int *n);
int cuGetProcAddress_v2(const char *name, void **out, int version, uint64_t flags, int *status);

int cuInit(unsigned flags)
{
    (void)flags;
    return NO_DEVICE;
}

int cuDriverGetVersion(int *version)
{
    *version = VERSION;
    return SUCCESS;
}

int cuDeviceGetCount(int *n)
{
    *n = 0;
    return NO_DEVICE;
}

#define NOT_HERE(name)                                                                                       \
    int name(void);                                                                                          \
    int name(void)                                                                                           \
    {                                                                                                        \
        return NO_DEVICE;                                                                                    \
    }

/* What cuDNN 9 looks for before it starts its compiler; their parameters are never looked at. */
NOT_HERE(cuCtxGetCurrent)
NOT_HERE(cuCtxGetLimit)
NOT_HERE(cuCtxPopCurrent)
NOT_HERE(cuCtxPushCurrent)
NOT_HERE(cuDeviceGet)
NOT_HERE(cuGetErrorName)
NOT_HERE(cuGetErrorString)
NOT_HERE(cuKernelGetAttribute)
NOT_HERE(cuKernelSetAttribute)
NOT_HERE(cuLaunchCooperativeKernel)
NOT_HERE(cuLaunchKernel)
NOT_HERE(cuLaunchKernelEx)
NOT_HERE(cuLibraryGetKernel)
NOT_HERE(cuLibraryLoadData)
NOT_HERE(cuLibraryLoadFromFile)
NOT_HERE(cuLibraryUnload)
NOT_HERE(cuLinkAddData)
NOT_HERE(cuLinkComplete)
NOT_HERE(cuLinkCreate)
NOT_HERE(cuLinkDestroy)
NOT_HERE(cuOccupancyMaxPotentialClusterSize)
NOT_HERE(cuStreamGetCtx)

int cuGetProcAddress_v2(const char *name, void **out, int version, uint64_t flags, int *status)
{
    static const struct {
        const char *name;
        void (*function)(void);
    } known[] = {{"cuInit", (void (*)(void))cuInit},
                 {"cuDriverGetVersion", (void (*)(void))cuDriverGetVersion},
                 {"cuDeviceGetCount", (void (*)(void))cuDeviceGetCount},
                 {"cuGetProcAddress", (void (*)(void))cuGetProcAddress_v2},
                 {"cuGetProcAddress_v2", (void (*)(void))cuGetProcAddress_v2}};
    void (*function)(void) = (void (*)(void))cuCtxGetCurrent; /* any that fails */

    (void)version;
    (void)flags;
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (!strcmp(known[i].name, name))
            function = known[i].function;
    memcpy(out, &function, sizeof *out);
    if (status)
        *status = SUCCESS;
    return SUCCESS;
}
