/*
 * One operation graph compiled by cuDNN for a device: an execution plan. Internal to kernels/.
 *
 *     JSON or a real GPU ──> struct hapi_cudnn_device ──┐
 *     struct hapi_cudnn_graph ──> hapi_cudnn_graph_check ┴──> struct hapi_cudnn_plan: engine, workspace
 *
 * A device may be a description only: cuDNN then checks and compiles for it on a machine that has no GPU.
 * Threads: a device may be used by any number of threads once made; a plan by one at a time.
 */
#ifndef HAPI_KERNELS_CUDNN_PLAN_H
#define HAPI_KERNELS_CUDNN_PLAN_H

#include "opgraph.h"

struct hapi_cudnn_device;

/* From text as in kernels/devices/: what cuDNN wants to know of a device. size bytes, need not be terminated.
 * Errors: HAPI_EFORMAT naming the key that is missing, unknown or no number; HAPI_EUNSUPPORTED (no cuDNN);
 * HAPI_ENOMEM. */
int hapi_cudnn_device_parse(struct hapi_cudnn_device **out, const char *json, size_t size,
                            struct hapi_err *err);
/* The description of this name that is built in (kernels/devices/NAME.json); NULL: there is none. Static. */
const char *hapi_cudnn_device_text(const char *name);
/* That of CUDA device `id` of this machine, as cuDNN reads it; malloc'd, terminated, the caller frees.
 * HAPI_EUNSUPPORTED: no cuDNN, or no GPU that answers. */
int hapi_cudnn_device_capture(char **json, int id, struct hapi_err *err);
/* That device itself, whatever this cuDNN says of it: others may name more than the descriptions here, or in
 * other ways. Errors: likewise, and HAPI_ENOMEM. */
int hapi_cudnn_device_open(struct hapi_cudnn_device **out, int id, struct hapi_err *err);
/* From now on plans are made with a handle (cudnnHandle_t, borrowed) of the real device that d describes, as
 * cuDNN wants it of plans that are run; it is used by nobody else. */
void hapi_cudnn_device_use(struct hapi_cudnn_device *d, void *handle);
void hapi_cudnn_device_free(struct hapi_cudnn_device *d);
/* SHA-256 of the description and of cuDNN's version: what a plan is for. */
const uint8_t *hapi_cudnn_device_key(const struct hapi_cudnn_device *d);
const char *hapi_cudnn_device_name(const struct hapi_cudnn_device *d);
int hapi_cudnn_device_version(const struct hapi_cudnn_device *d); /* 900: sm_90 */

struct hapi_cudnn_plan;

struct hapi_cudnn_plan_info {
    const char *engine; /* cuDNN's name of engine and knobs, as "eng0_k2=3"; lives as long as the plan */
    uint64_t workspace; /* bytes */
    bool compiled;      /* by NVRTC, at run time; else a kernel of cuDNN's own */
    int tried;          /* engines refused before it */
};

/* Checks g, asks heuristics mode A, then the fallback list, and takes the first engine that is deterministic,
 * accumulates in f32 and finalizes. Errors: those of the check; HAPI_EUNSUPPORTED naming g, its ops and
 * cuDNN's reason when no engine takes it; HAPI_ENOMEM. */
int hapi_cudnn_plan_new(struct hapi_cudnn_plan **out, const struct hapi_cudnn_device *d,
                        const struct hapi_cudnn_graph *g, struct hapi_err *err);
/* What hapi_cudnn_plan_new() chooses from: plans by all engines that may be taken of the list that has one,
 * at most `most`, in the order of the list. list[0] is what that gives. *n: how many, 1 or more; the caller
 * frees each. Errors: likewise. */
int hapi_cudnn_plan_list(struct hapi_cudnn_plan **list, int most, int *n, const struct hapi_cudnn_device *d,
                         const struct hapi_cudnn_graph *g, struct hapi_err *err);
/* The plan as text (malloc'd, terminated, the caller frees), and a plan from such text in a millisecond. It
 * is for one version of cuDNN, driver and device: HAPI_ESTALE when they are not these, or when it is no such
 * text. */
int hapi_cudnn_plan_text(const struct hapi_cudnn_plan *p, char **text, struct hapi_err *err);
int hapi_cudnn_plan_from_text(struct hapi_cudnn_plan **out, const struct hapi_cudnn_device *d,
                              const char *text, struct hapi_err *err);
void hapi_cudnn_plan_free(struct hapi_cudnn_plan *p);
/* cudnnBackendDescriptor_t of the finalized plan; lives as long as p. */
void *hapi_cudnn_plan_descriptor(const struct hapi_cudnn_plan *p);
struct hapi_cudnn_plan_info hapi_cudnn_plan_info_get(const struct hapi_cudnn_plan *p);

#endif
