/*
 * Static memory: gives every temporary of a plan an offset such that two which live at the same time never
 * overlap. Plain data, called at plan time only. Any thread.
 */
#ifndef HAPI_KERNELS_MEMORY_H
#define HAPI_KERNELS_MEMORY_H

#include <stddef.h>

#include "err.h"

#define HAPI_MEMORY_ALIGN 64

struct hapi_lifetime {
    size_t bytes;    /* 0: needs nothing (offset 0) */
    int first, last; /* steps that write and last read it, first <= last; both inclusive */
    size_t offset;   /* result, a multiple of HAPI_MEMORY_ALIGN */
};

/* Places all n items, largest first, each at the tightest gap between those already placed whose lifetimes
 * meet its own; beyond 8192 of them (no network has that many), in order of time, which takes time in
 * proportion to what lives at once. *total: bytes of the whole. Errors: HAPI_ENOMEM; HAPI_ETOOBIG when the
 * sum overflows, or when of so many more than 4096 live at once. */
int hapi_memory_place(struct hapi_lifetime *items, size_t n, size_t *total, struct hapi_err *err);

#endif
