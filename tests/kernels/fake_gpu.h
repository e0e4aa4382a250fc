/* What tests over tests/fake_cuda share: the functions of the fake, found as the back end finds the driver, a
 * small model, one run. */
#ifndef HAPI_TESTS_KERNELS_FAKE_GPU_H
#define HAPI_TESTS_KERNELS_FAKE_GPU_H

#include <cuda.h>
#include <dlfcn.h>

#include "check.h"
#include "fake_cuda.h"
#include "kernels.h"
#include "networks.h"

static struct hapi_err err;
static struct fake_cuda_report (*report)(void);
static void (*fail_at)(long n, int error);
static void (*slow)(int ms), (*old)(int old), (*graphs_slow)(int slow);
static int (*making)(void);

/* A stem, a residual block, a head: convolutions, a pool, a product, kernels of ours. */
static inline struct hapi_model *model(void)
{
    struct hapi_model *m = net_resnet(32);

    REQUIRE(m);
    return m;
}

static inline size_t edge_bytes(const struct hapi_tensor_desc *d)
{
    size_t bytes = 0;

    REQUIRE(!hapi_tensor_bytes(&d->shape, d->dtype, &bytes));
    return bytes;
}

static inline int run_once(struct hapi_plan *p)
{
    const struct hapi_tensor_desc *in, *out;

    REQUIRE(hapi_plan_inputs(p, &in) == 1 && hapi_plan_outputs(p, &out) == 1);
    void *x = calloc(1, edge_bytes(in)), *y = calloc(1, edge_bytes(out));
    REQUIRE(x && y);
    int rc = hapi_plan_run(p, NULL, (const void *const[]){x}, (void *const[]){y}, &err);
    free(y);
    free(x);
    return rc;
}

static inline void rules_kept(long live)
{
    struct fake_cuda_report r = report();

    CHECKF(!r.wrong, "%ld rules broken, first: %s", r.wrong, r.what);
    CHECKF(r.live == live, "%ld things live, not %ld", r.live, live);
}

static const struct hapi_plan_spec half = {.batch = 4, .dtype = HAPI_F16, .backend = "cudnn"};

static inline bool fake_find(void *so, const char *name, void *to)
{
    void *f = so ? dlsym(so, name) : NULL;

    memcpy(to, &f, sizeof f);
    return f;
}

/* First. 1: libcuda.so.1 is another one; it has said so. */
static inline int fake_open(void)
{
    void *cuda = dlopen("libcuda.so.1", RTLD_NOW), *cudnn = dlopen("libcudnn.so.9", RTLD_NOW);

    if (fake_find(cuda, "fake_cuda_report", &report) && fake_find(cuda, "fake_cuda_fail_at", &fail_at) &&
        fake_find(cuda, "fake_cuda_graphs_slow", &graphs_slow) &&
        fake_find(cudnn, "fake_cudnn_slow", &slow) && fake_find(cudnn, "fake_cudnn_making", &making) &&
        fake_find(cudnn, "fake_cudnn_old", &old))
        return 0;
    fputs("libcuda.so.1 is not the fake one: set LD_LIBRARY_PATH to its folder\n", stderr);
    return 1;
}

#endif
