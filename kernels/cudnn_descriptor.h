/* What the files that talk to cuDNN share: devices, and descriptors that free themselves in one go. Internal
 * to cudnn_*.c. */
#ifndef HAPI_KERNELS_CUDNN_DESCRIPTOR_H
#define HAPI_KERNELS_CUDNN_DESCRIPTOR_H

#include "cudnn_lib.h"
#include "cudnn_plan.h"

struct hapi_cudnn_device {
    const struct hapi_cudnn_lib *lib;
    cudnnHandle_t handle; /* of a real device, for making plans; NULL: only described. Borrowed */
    cudnnBackendDescriptor_t properties;
    char *name;
    int version;
    uint8_t key[32];
};

enum { HAPI_CUDNN_DESCRIPTORS = 96 };

/* The descriptors of one operation graph while a plan is made of it. The first failure stays: later calls do
 * nothing, so that a whole graph is written down without a branch, and looked at once. */
struct hapi_cudnn_builder {
    const struct hapi_cudnn_lib *lib;
    cudnnHandle_t handle; /* as the device's */
    cudnnStatus_t status;
    cudnnBackendDescriptor_t made[HAPI_CUDNN_DESCRIPTORS];
    int n;
};

cudnnBackendDescriptor_t hapi_cudnn_make(struct hapi_cudnn_builder *b, cudnnBackendDescriptorType_t type);
void hapi_cudnn_put(struct hapi_cudnn_builder *b, cudnnBackendDescriptor_t d,
                    cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type, int64_t n,
                    const void *values);
void hapi_cudnn_done(struct hapi_cudnn_builder *b, cudnnBackendDescriptor_t d);
void hapi_cudnn_builder_fini(struct hapi_cudnn_builder *b);

/* The operation graph's descriptor, finalized; what it is made of belongs to b. NULL, and b->status says why.
 */
cudnnBackendDescriptor_t hapi_cudnn_describe(struct hapi_cudnn_builder *b, const struct hapi_cudnn_graph *g);

#endif
