/*
 * cuDNN, found at run time: one binary runs on machines with and without it. Internal to kernels/.
 * The functions are those of cudnn_graph.h by the same names without their prefix.
 */
#ifndef HAPI_KERNELS_CUDNN_LIB_H
#define HAPI_KERNELS_CUDNN_LIB_H

#include <stdbool.h> /* before cudnn's, which want it and do not say so */

#include <cudnn_graph.h>

#include "err.h"

/* X(result, name, parameters) */
#define HAPI_CUDNN_CALLS(X)                                                                                  \
    X(size_t, GetVersion, (void))                                                                            \
    X(size_t, GetCudartVersion, (void))                                                                      \
    X(void, GetLastErrorString, (char *text, size_t size))                                                   \
    X(cudnnStatus_t, Create, (cudnnHandle_t * handle))                                                       \
    X(cudnnStatus_t, Destroy, (cudnnHandle_t handle))                                                        \
    X(cudnnStatus_t, SetStream, (cudnnHandle_t handle, cudaStream_t stream))                                 \
    X(cudnnStatus_t, BackendCreateDescriptor,                                                                \
      (cudnnBackendDescriptorType_t type, cudnnBackendDescriptor_t * d))                                     \
    X(cudnnStatus_t, BackendDestroyDescriptor, (cudnnBackendDescriptor_t d))                                 \
    X(cudnnStatus_t, BackendFinalize, (cudnnBackendDescriptor_t d))                                          \
    X(cudnnStatus_t, BackendSetAttribute,                                                                    \
      (cudnnBackendDescriptor_t d, cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type,       \
       int64_t n, const void *values))                                                                       \
    X(cudnnStatus_t, BackendGetAttribute,                                                                    \
      (cudnnBackendDescriptor_t d, cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type,       \
       int64_t room, int64_t * n, void *values))                                                             \
    X(cudnnStatus_t, BackendExecute,                                                                         \
      (cudnnHandle_t handle, cudnnBackendDescriptor_t plan, cudnnBackendDescriptor_t pack))

struct hapi_cudnn_lib {
#define X(result, name, parameters) result(*name) parameters;
    HAPI_CUDNN_CALLS(X)
#undef X
};

/* libcudnn.so.9, loaded once for the process and kept. Needs no GPU and no driver. HAPI_EUNSUPPORTED: not
 * there, or too old; the text says what to install. */
int hapi_cudnn_lib_get(const struct hapi_cudnn_lib **out, struct hapi_err *err);

/* HAPI_EUNSUPPORTED or HAPI_ESYS with cuDNN's status and its own words, read right now: they accumulate. */
int hapi_cudnn_fail(const struct hapi_cudnn_lib *lib, cudnnStatus_t status, const char *what,
                    struct hapi_err *err);

#endif
