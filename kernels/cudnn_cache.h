/*
 * Execution plans kept on disk: half a second of compiling becomes a millisecond. One file a plan, named by
 * what it is for: graph, device, driver, cuDNN. What does not fit is made anew; a folder that cannot be used
 * costs time and is no error. Internal to kernels/.
 */
#ifndef HAPI_KERNELS_CUDNN_CACHE_H
#define HAPI_KERNELS_CUDNN_CACHE_H

#include "cudnn_plan.h"

/* Where plans are kept: $HAPI_CACHE, else $XDG_CACHE_HOME/hapi, else ~/.cache/hapi; with /cudnn. false:
 * nowhere. */
bool hapi_cudnn_cache_folder(char *buf, size_t size);
/* The plan of that graph for that device, if one is kept and can be used; NULL else. */
struct hapi_cudnn_plan *hapi_cudnn_cache_get(const char *folder, const struct hapi_cudnn_device *d,
                                             const uint8_t *graph_key);
/* Keeps it; the folder is made (0700) with the first. */
void hapi_cudnn_cache_put(const char *folder, const struct hapi_cudnn_device *d, const uint8_t *graph_key,
                          const struct hapi_cudnn_plan *p);

#endif
