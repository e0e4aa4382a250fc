/*
 * Memory of a GPU. A node takes nearly all of it once, and gives plans and weights parts of that: what it has
 * is known, nobody else's program can take it away, and a plan that does not fit is refused when it is made,
 * not when it runs. Programs that make a plan or two take what these need, each from the driver.
 *
 *     | taken | free          | taken      | free        |     one block of the driver's, parts in order of
 *                                                            address; freed neighbours become one
 *
 * Internal to kernels/. Thread-safe. The device's context is current in every call.
 */
#ifndef HAPI_KERNELS_GPU_MEMORY_H
#define HAPI_KERNELS_GPU_MEMORY_H

#include "gpu_device.h"

/* From now on all parts come from one block of `bytes`; 0: of what is free now all but a sixteenth and 512
 * MiB, which the driver, cuDNN and their code take. Once for each opening of the device, before anything is
 * taken. Errors: HAPI_EBUSY (it has been, or something is taken), HAPI_ENOMEM with what there is, HAPI_ESYS.
 */
int hapi_gpu_memory_reserve(struct hapi_cuda_device *d, uint64_t bytes, struct hapi_err *err);
/* Memory aligned to HAPI_GPU_ALIGN; bytes > 0. HAPI_ENOMEM says `what` it was for and what is free. */
int hapi_gpu_memory_take(struct hapi_cuda_device *d, uint64_t bytes, const char *what, CUdeviceptr *out,
                         struct hapi_err *err);
/* Nothing enqueued uses it any more. p: 0 for none. */
void hapi_gpu_memory_give(struct hapi_cuda_device *d, CUdeviceptr p);
/* *reserved: 0 where each part is the driver's. */
void hapi_gpu_memory_usage(const struct hapi_cuda_device *d, uint64_t *reserved, uint64_t *used);
/* With the device: everything has been given back. */
void hapi_gpu_memory_close(struct hapi_cuda_device *d);

#endif
