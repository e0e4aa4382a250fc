/*
 * Which engine is the fastest for an operation graph: tried out on the device. On request only: it takes as
 * long as compiling all candidates, and another engine may round otherwise, so that a node that tunes has a
 * numeric class of its own.
 *
 *     heuristics mode A ──> at most 8 plans ──> each timed on memory of the graph's size ──> the fastest,
 *                           that may be taken                                                kept on disk
 *
 * Internal to kernels/. Not while plans are made or run.
 */
#ifndef HAPI_KERNELS_CUDNN_TUNE_H
#define HAPI_KERNELS_CUDNN_TUNE_H

#include "err.h"

/* As hapi_backend_tune(). */
int hapi_cudnn_tune(void (*untuned)(const struct hapi_err *why), struct hapi_err *err);
/* While it is on: the numeric class, "cudnn/sm_90/9.19.0/tuned-1234abcd", the end of which says by whose
 * choice the engines are: that of the folder of plans, for the device, its driver and cuDNN. NULL: it is off.
 */
const char *hapi_cudnn_tuned_class(void);

#endif
