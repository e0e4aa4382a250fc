/*
 * One piece of memory for a worker's whole data path: taken once, page-aligned, in huge pages (reserved ones
 * where there are enough, else transparent ones where the kernel gives them), registered once with the ring,
 * the NIC and (later) the device; batches slice it. A slab never grows. Slices are plain pointers into it.
 * Not thread-safe while it is carved up.
 */
#ifndef HAPI_BASE_SLAB_H
#define HAPI_BASE_SLAB_H

#include <stddef.h>

#include "err.h"

struct hapi_slab {
    unsigned char *base; /* page-aligned */
    size_t size;         /* bytes, a multiple of 4096 */
    size_t used;         /* bytes carved off */
};

/* Errors: HAPI_EINVAL for size 0, HAPI_ENOMEM when the kernel refuses. */
int hapi_slab_init(struct hapi_slab *s, size_t size, struct hapi_err *err);
void hapi_slab_fini(struct hapi_slab *s);
/* A slice aligned to `align` (a power of two); NULL when it does not fit. */
void *hapi_slab_take(struct hapi_slab *s, size_t bytes, size_t align);

/* No more slices are expected for now: gives back what lies behind the last one where a huge page brought it
 * into memory. Slices taken later are as good. */
void hapi_slab_trim(struct hapi_slab *s);

#endif
