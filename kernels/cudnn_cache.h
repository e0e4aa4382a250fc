/*
 * Execution plans kept on disk: half a second of compiling becomes a millisecond. One file a plan, named by
 * what it is for: graph, device, driver, cuDNN (base/cache.h). Internal to kernels/.
 */
#ifndef HAPI_KERNELS_CUDNN_CACHE_H
#define HAPI_KERNELS_CUDNN_CACHE_H

#include "cudnn_plan.h"

/* The plan of that graph for that device, if one is kept and can be used; NULL else. tuned: the one that was
 * fastest when several were tried; what heuristics chose is another, and never taken for it. */
struct hapi_cudnn_plan *hapi_cudnn_cache_get(const char *folder, const struct hapi_cudnn_device *d,
                                             const uint8_t *graph_key, bool tuned);
/* Keeps it; the folder is made (0700) with the first. Whether it is there now. Of tuned ones the first is
 * kept: false where another process was faster, or where nothing can be kept. */
bool hapi_cudnn_cache_put(const char *folder, const struct hapi_cudnn_device *d, const uint8_t *graph_key,
                          bool tuned, const struct hapi_cudnn_plan *p);

/* Who made the tuned choices that are kept there: all processes that have this name have the same engines.
 * Made with the first call (file `tuned-by`), and again once a choice was made that is not there, or was lost
 * (_disown, and a tuned plan that turns out to be damaged). folder NULL, or one that cannot be written: a
 * name for this process. */
enum { HAPI_CUDNN_OWNER = 16 };
void hapi_cudnn_cache_owner(const char *folder, uint8_t owner[HAPI_CUDNN_OWNER]);
void hapi_cudnn_cache_disown(const char *folder);

#endif
