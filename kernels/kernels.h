/*
 * What turns bytes into features.
 *
 *     JPEG ── hapi_decode() ──> f32 (H,W,3) ── hapi_plan_run() ──> activations at a cut
 *              transform            ONNX file ─> hapi_model ─> bound graph ─> fused plan on a back end
 *
 * A model is read once (mmap or borrowed bytes), bounded in every way; a plan is a prefix, a suffix or the
 * whole of it, compiled for one micro-batch and one dtype with all its memory planned. Weights are
 * reordered once per (model, part, dtype, back end) and shared by the plans of all micro-batches.
 *
 * Threads: a model may be used from any one thread at a time; plans made from it are independent of each
 * other. One plan runs on one thread at a time, with one workspace.
 */
#ifndef HAPI_KERNELS_KERNELS_H
#define HAPI_KERNELS_KERNELS_H

#include <stdbool.h>
#include <stdint.h>

#include "err.h"
#include "tensor.h"

/* ------------------------------------------------------------------ transform and decode */

enum hapi_interpolation { HAPI_BILINEAR = 0, HAPI_BICUBIC = 1, HAPI_NEAREST = 2 };

/* Data, not flags: lies beside the ONNX file as MODEL.transform.json, travels in requests as canonical JSON.
 *
 *     {"resize": 256, "interpolation": "bicubic", "crop": 224, "mean": [127,127,127], "std": [128,128,128],
 *      "scale": 1, "channels": "rgb", "exif": false, "draft": false}
 *
 * pixel -> (pixel * scale - mean[c]) / std[c]; torchvision's convention is scale 1/255 with mean and std in
 * 0..1. resize: the shorter side (0: none), or [h,w]; antialiased like PIL. crop: centre crop to a square or
 * [h,w]; pads with zeros where the image is smaller, as torchvision does. draft: a JPEG is decoded at half
 * its size (libjpeg's scale 1/2, each side rounded up) where the shorter side of that is at least `resize`,
 * with [h,w] both sides; then all of the above is done to it. Without resize, and where it is false (the
 * default), all is decoded. docs/decode.md says what it changes. */
struct hapi_transform {
    int32_t resize_h, resize_w; /* resize_w 0: resize_h is the shorter side; both 0: no resize */
    int32_t crop_h, crop_w;     /* output size; > 0 */
    enum hapi_interpolation interpolation;
    float scale, mean[3], std[3];
    bool bgr, exif, draft;
};

/* Parses JSON text (size bytes, need not be terminated). Unknown keys are errors. HAPI_EFORMAT/EINVAL. */
int hapi_transform_parse(struct hapi_transform *out, const char *json, size_t size, struct hapi_err *err);
/* Reads `path`, or with path NULL the file beside model_path ("m.onnx" -> "m.transform.json"). */
int hapi_transform_load(struct hapi_transform *out, const char *path, const char *model_path,
                        struct hapi_err *err);
/* Canonical JSON (same transform, same bytes; a key that is newer than others only where it is not its
 * default) into buf, terminated. Returns its length, or HAPI_ETOOBIG. */
int hapi_transform_text(const struct hapi_transform *t, char *buf, size_t size);

struct hapi_decoder;

/* Scratch for images up to max_pixels (0: 64 Mpx; larger ones are HAPI_ETOOBIG); one per thread. All its
 * memory grows only when a larger image than any before arrives, never beyond the bound. */
int hapi_decoder_new(struct hapi_decoder **out, uint64_t max_pixels, struct hapi_err *err);
void hapi_decoder_free(struct hapi_decoder *d);
/* JPEG bytes -> dst[crop_h][crop_w][3] f32 (dense HWC). Gray and CMYK/YCCK become RGB as in PIL's
 * convert("RGB"). Errors: HAPI_EDECODE (not a JPEG, empty, truncated: libjpeg's warning counts as an error),
 * HAPI_ETOOBIG. dst is undefined after an error. */
int hapi_decode(struct hapi_decoder *d, const struct hapi_transform *t, const void *jpeg, size_t bytes,
                float *dst, struct hapi_err *err);

/* The same before scale, mean and std: dst[crop_h][crop_w][3] bytes, RGB whatever the transform's channels, 0
 * where it pads. What a GPU takes (struct hapi_plan_spec). */
int hapi_decode_bytes(struct hapi_decoder *d, const struct hapi_transform *t, const void *jpeg, size_t bytes,
                      uint8_t *dst, struct hapi_err *err);

/* ------------------------------------------------------------------ model */

struct hapi_model;

/* Bounds of what a model may cost, checked before anything is allocated by a size it names. */
struct hapi_model_limits {
    uint64_t file_bytes;   /* 0: 2 GiB */
    uint32_t nodes;        /* 0: 100,000 */
    uint64_t tensor_bytes; /* largest single tensor at batch 1; 0: 4 GiB */
    uint64_t arena_bytes;  /* parser's own memory; 0: 256 MiB */
};

/* Maps and parses an ONNX file. External data only beneath the file's folder, no absolute paths, no `..`.
 * Errors, in under a second whatever the file: HAPI_ENOENT/HAPI_ESYS; HAPI_EFORMAT (malformed, cyclic,
 * dangling input, duplicate name, subgraphs nested deeper than 8); HAPI_EUNSUPPORTED naming the node, its
 * op and opset; HAPI_ETOOBIG. limits may be NULL. */
int hapi_model_open(struct hapi_model **out, const char *path, const struct hapi_model_limits *limits,
                    struct hapi_err *err);
/* The same over bytes that the model owns from here on success (malloc'd; freed with it): for uploads.
 * No external data. On error the bytes stay the caller's. */
int hapi_model_from_bytes(struct hapi_model **out, void *bytes, size_t size,
                          const struct hapi_model_limits *limits, struct hapi_err *err);
void hapi_model_close(struct hapi_model *m); /* after every plan made from it */

/* SHA-256 of the model's bytes (external data files included, in order of their first use). */
const uint8_t *hapi_model_hash(const struct hapi_model *m);

/* The model's inputs (initializers excluded) and outputs; dims that depend on the batch are reported for
 * `batch` 1. Returns the count; *out is borrowed. */
size_t hapi_model_inputs(const struct hapi_model *m, const struct hapi_tensor_desc **out);
size_t hapi_model_outputs(const struct hapi_model *m, const struct hapi_tensor_desc **out);

/* Whether dim 0 of the inputs, the batch, is free in the file; or fixed, and re-bound to any micro-batch
 * because each sample is proven to be computed by itself. Where that cannot be shown, a plan runs its
 * micro-batch as many samples at a time as the file says: one, or a group, of which the last is padded with
 * copies of its last sample (where samples are not independent of each other, a result is that of its group).
 * *fixed (may be NULL): the file's number, or 0. */
enum hapi_model_batch {
    HAPI_MODEL_BATCH_FREE,
    HAPI_MODEL_BATCH_REBOUND,
    HAPI_MODEL_BATCH_ONE,
    HAPI_MODEL_BATCH_PADDED
};
enum hapi_model_batch hapi_model_batch(struct hapi_model *m, int64_t *fixed);

/* A cut: the tensors that cross from prefix to suffix. A valid cut separates the graph (every path from the
 * input to the output passes it), its tensors are batch-first (dim 0 scales with the batch, nothing else
 * does) and depend on the input. The default listing has the cuts of one tensor, in topological order,
 * without those that only rename or reshape (Identity, Dropout; a Flatten after a pool is kept). */
struct hapi_cut {
    const char *id;   /* tensor names sorted, joined by "," */
    const char *name; /* for display: "layer2.0", from node names/module paths */
    uint32_t index;   /* position in the listing, for display only */
    uint32_t n_tensors;
    const struct hapi_tensor_desc *tensors; /* at batch 1 */
    uint64_t bytes_f32;                     /* of all tensors, one sample, f32 */
    uint64_t flops;  /* 2 x multiply-adds of Conv, ConvTranspose, Gemm, MatMul before it, one sample */
    uint64_t params; /* elements of the initializers used before it */
};

/* Bounds of hapi_model_cuts_all(); the first also of the sets that hapi_model_cut_find() takes. */
enum { HAPI_CUT_TENSORS_MAX = 64, HAPI_CUTS_ALL_MAX = 16384 };

/* Borrowed list, computed on first use. Errors: as for binding (unsupported op, shapes). */
int hapi_model_cuts(struct hapi_model *m, const struct hapi_cut **out, size_t *n, struct hapi_err *err);
/* The same with the cuts of up to max_tensors (1..64) tensors: for each node, in the model's topological
 * order, what is alive after it, if all of it may be in a cut and the node does more than rename or reshape.
 * Inside of an activation that is written in several nodes (GELU, SiLU) nothing is listed: it runs as one
 * kernel, and its parts would give other bits; hapi_model_cut_find() takes such a set all the same. A cut of
 * several tensors is named after its node and the number of the others ("layer1.0.conv1+1"). The list is
 * borrowed until the next call with another max_tensors. Errors: HAPI_EINVAL, HAPI_ETOOBIG (more than 16,384
 * cuts), and as above. */
int hapi_model_cuts_all(struct hapi_model *m, uint32_t max_tensors, const struct hapi_cut **out, size_t *n,
                        struct hapi_err *err);
/* A cut by its id, or one made of the tensor names (in any order); HAPI_ENOENT names the nearest existing
 * name; HAPI_EINVAL when the set does not separate the graph. */
int hapi_model_cut_find(struct hapi_model *m, const char *id, const struct hapi_cut **out,
                        struct hapi_err *err);
/* Where transfer learning freezes by default: the input of the last Gemm/MatMul classifier, else the last
 * cut. */
int hapi_model_cut_default(struct hapi_model *m, const struct hapi_cut **out, struct hapi_err *err);

/* ONNX bytes (malloc'd, caller frees) of the part of the model up to the cut, weights after it left out:
 * what is offered to a node. The same model and cut always give the same bytes. */
int hapi_model_prefix_bytes(struct hapi_model *m, const char *cut_id, void **bytes, size_t *size,
                            struct hapi_err *err);

/* How far a value reaches on real samples: what int8 plans take its scale from. lo <= 0 <= hi. */
struct hapi_range {
    const char *name; /* ONNX tensor name */
    float lo, hi;
};

/* The ranges that the model's file has (as hapi_model_with_ranges() put them there), by name; borrowed. */
size_t hapi_model_ranges(const struct hapi_model *m, const struct hapi_range **out);
/* The file's bytes (malloc'd, caller frees) with these ranges in place of what it had: metadata that other
 * programs pass on, and that hapi_model_prefix_bytes() takes along. Names of no value have no effect. */
int hapi_model_with_ranges(const struct hapi_model *m, const struct hapi_range *list, size_t n, void **bytes,
                           size_t *size, struct hapi_err *err);

/* Reads a serialized TensorProto: *out's data is malloc'd (dense, plain layout), caller frees. */
int hapi_tensorproto_read(const void *bytes, size_t size, struct hapi_tensor_desc *desc, void **data,
                          struct hapi_err *err);

/* ------------------------------------------------------------------ plan */

struct hapi_plan;

struct hapi_plan_spec {
    const char *from; /* cut id the plan starts at; NULL: the model's inputs */
    const char *to;   /* cut id it ends at; NULL: the model's outputs */
    int64_t batch;    /* micro-batch: dim 0; >= 1. 0: the model's dims as they are (hapi run) */
    /* Of compute. HAPI_F32; HAPI_BF16, with f32 accumulate; HAPI_F16 likewise, on a GPU; HAPI_I8:
     * convolutions and products by constants in int8 where the model has ranges of their inputs, all else in
     * f32. */
    enum hapi_dtype dtype;
    const char *backend; /* "onednn", "cudnn" or "ref" */
    int threads;         /* of one run (intra-op: for latency); 0: one. Kernels of our own use one */
    bool stock;          /* oneDNN's kernels only, none of ours: what benchmarks compare with */
    bool plain_io;       /* edges in the model's own order; false: 4-D edges are NHWC */
    /* On a GPU only: the input is bytes (N,H,W,3) as hapi_decode_bytes() gives them, normalised there as the
     * transform says; outputs leave it in the wire's dtype: f32 (also 0), f16, bf16, or i8 in rows as
     * base/int8.h says. */
    const struct hapi_transform *image;
    enum hapi_dtype wire;
    /* hapi run only: values bound to graph inputs that shape inference needs as constants */
    const struct hapi_tensor_desc *bind;
    const void *const *bind_data;
    size_t n_bind;
};

/* Bytes; weights are shared by plans that differ in batch only. On a GPU all is the device's, taken when the
 * plan is made; the host gives an arena only to a padded model. */
struct hapi_plan_memory {
    uint64_t weights, arena, scratch;
    uint64_t device_weights, device_arena;
};

/* Known before anything large is allocated. Errors as hapi_plan_new. */
int hapi_plan_memory_query(struct hapi_model *m, const struct hapi_plan_spec *spec,
                           struct hapi_plan_memory *out, struct hapi_err *err);
/* Compiles. Errors: HAPI_EINVAL, HAPI_ENOENT (cut), HAPI_EUNSUPPORTED naming the node and why, HAPI_ENOMEM.
 */
int hapi_plan_new(struct hapi_plan **out, struct hapi_model *m, const struct hapi_plan_spec *spec,
                  struct hapi_err *err);
void hapi_plan_free(struct hapi_plan *p);

struct hapi_plan_memory hapi_plan_memory_get(const struct hapi_plan *p);
/* Edges, in the order of the cut's sorted names (model inputs/outputs: in graph order). f32 at the edges for
 * float tensors whatever the compute dtype; integers as they are. Borrowed. */
size_t hapi_plan_inputs(const struct hapi_plan *p, const struct hapi_tensor_desc **out);
size_t hapi_plan_outputs(const struct hapi_plan *p, const struct hapi_tensor_desc **out);

/* One run: in[i] and out[i] are dense buffers of the edges' sizes (64-byte aligned is fastest), read and
 * written in place. arena: hapi_plan_memory_get().arena + .scratch bytes, 4096-byte aligned, owned by the
 * calling thread and reusable by its other plans. No heap call of ours. Errors: HAPI_ESYS with the
 * library's status. */
int hapi_plan_run(struct hapi_plan *p, void *arena, const void *const *in, void *const *out,
                  struct hapi_err *err);

/* Runs of a device that return before they are over, so that their thread can decode the next images. Not for
 * every plan of a back end: one that runs its micro-batch in parts cannot. */
bool hapi_plan_starts(const struct hapi_plan *p);
/* As hapi_plan_run(), but returns when all is enqueued. done(arg) comes once, from a thread of the driver's,
 * where it must neither wait nor call anything declared here; until then plan, in[i] and out[i] are the
 * run's. Then hapi_plan_finish(), on any thread, says how it went. After an error there is no done(). */
int hapi_plan_start(struct hapi_plan *p, const void *const *in, void *const *out, void (*done)(void *arg),
                    void *arg, struct hapi_err *err);
int hapi_plan_finish(struct hapi_plan *p, struct hapi_err *err);
/* Memory of the plan's for input i, which its device reads without stopping; whoever fills it gives it as
 * in[i]. NULL: any memory is as good. */
void *hapi_plan_input_memory(struct hapi_plan *p, size_t i);

/* Where a plan's time goes: the kernels of one run (of one part, where a micro-batch runs in parts), in
 * order. 0 for a back end that cannot say. */
struct hapi_plan_kernel {
    const char *node; /* name of the first ONNX node that it computes; "" for conversions at the edges */
    const char *op;   /* its op, "" likewise */
    const char *name; /* of the implementation: oneDNN's, "hapi:..." for our own, "plain loops", "copy" */
    uint64_t flops;   /* 2 x multiply-adds of a Conv, Gemm or MatMul; 0 for others */
};
size_t hapi_plan_kernels(const struct hapi_plan *p);
int64_t hapi_plan_parts(const struct hapi_plan *p); /* runs of the kernels that make one micro-batch */
void hapi_plan_kernel_get(const struct hapi_plan *p, size_t i, struct hapi_plan_kernel *out);
/* Runs the i-th alone, on what the arena holds: its time is right, its numbers need not be. As hapi_plan_run.
 */
int hapi_plan_kernel_run(struct hapi_plan *p, void *arena, const void *const *in, void *const *out, size_t i,
                         struct hapi_err *err);

/* What a run computes, value by value: for calibration. Rows of `cols` elements, `stride` from row to row. */
struct hapi_seen {
    const char *name; /* ONNX tensor name */
    const float *data;
    int64_t rows, cols, stride;
};
/* From now on hapi_plan_run() calls seen() with the inputs and with what each kernel or group of fused ones
 * has made (f32 values only), before anything writes over it. seen NULL: no longer. HAPI_EUNSUPPORTED: a back
 * end that cannot. */
int hapi_plan_observe(struct hapi_plan *p, void (*seen)(void *arg, const struct hapi_seen *s), void *arg,
                      struct hapi_err *err);

/* Collects the ranges of a plan's values over its runs. */
struct hapi_calibration;
/* Observes the plan from now on, until _free. */
int hapi_calibration_new(struct hapi_calibration **out, struct hapi_plan *p, struct hapi_err *err);
void hapi_calibration_free(struct hapi_calibration *c); /* before the plan */
/* Ranges, by name, that hold `share` (0.5..1) of each value's elements, to 3 % above; the negative side is
 * as long as the positive, or 0 where nothing is negative. Values that were always 0 are left out. *out is
 * borrowed until the next call. HAPI_ENOMEM, also when a run before had none. */
int hapi_calibration_ranges(struct hapi_calibration *c, double share, const struct hapi_range **out,
                            size_t *n, struct hapi_err *err);

/* What the back end makes of this CPU: "onednn/avx512_core_bf16". Two nodes with the same class give the
 * same f32 bits. Static string; NULL for an unknown or unbuilt back end. */
const char *hapi_numeric_class(const char *backend);
/* Name of the back end for "auto": "cudnn" where a GPU answers, else "onednn", else "ref"; any other name as
 * it is. *why (may be NULL): why there is no GPU, where that was asked for. Static string. */
const char *hapi_backend_choose(const char *name, struct hapi_err *why);
/* Whether bf16 is hardware here (AMX, or AVX-512 BF16) and whether it is AMX. */
bool hapi_cpu_has_bf16(bool *amx);
/* Whether its plans take images as bytes and give the wire's dtypes (struct hapi_plan_spec: image, wire). */
bool hapi_backend_converts(const char *name);
/* Host memory that plans will read and write: a GPU copies from and to pinned memory while it computes, from
 * other memory it waits. Nothing to do for a CPU. The device stays open until _unpin, which comes before the
 * memory goes. Errors: HAPI_ENOMEM, HAPI_ESYS; plans run all the same. */
int hapi_backend_pin(const char *name, void *p, size_t bytes, struct hapi_err *err);
void hapi_backend_unpin(const char *name, void *p);
/* Takes `bytes` of the device's memory at once, for all plans and weights made after it: what fits is known,
 * and nobody else gets it; 0: nearly all that is free. Before any plan, and until _release. Nothing to do
 * for a CPU. Errors: HAPI_EBUSY (plans have been made), HAPI_ENOMEM with what is free, HAPI_ESYS. */
int hapi_backend_reserve(const char *name, uint64_t bytes, struct hapi_err *err);
void hapi_backend_release(const char *name);
/* Bytes of the device that plans share. false: it has no memory of its own. */
struct hapi_device_usage {
    uint64_t reserved, used; /* reserved 0: each plan takes its own */
};
bool hapi_backend_usage(const char *name, struct hapi_device_usage *out);
/* Device memory that a NIC may read without the host: what plans write to when their out[i] lies in it
 * (hapi_plan_start() and whole runs; not by plans that run in parts). One piece at a time. */
struct hapi_device_memory {
    void *base; /* the device's address: not for the host to read */
    size_t bytes;
    int dmabuf; /* descriptor, from offset 0; -1: the driver gives none */
};
/* At least `bytes`, held until freed. Errors: HAPI_EUNSUPPORTED (a CPU has none), HAPI_EBUSY, HAPI_ENOMEM,
 * HAPI_ESYS. */
int hapi_backend_device_memory(const char *name, size_t bytes, struct hapi_device_memory *out,
                               struct hapi_err *err);
/* After the NIC has forgotten it. */
void hapi_backend_device_memory_free(const char *name, struct hapi_device_memory *m);
/* From now on plans run with the engines that are the fastest of those that the device's library proposes,
 * tried out when a plan is made, which then takes several times as long; what was found is kept on disk.
 * Engines round differently: hapi_numeric_class() says from now on that they are tuned, and whose choice they
 * are. Not while plans are made. untuned(): comes at most once, from the thread that makes a plan, when there
 * is no memory to try engines with, and they are as if not tuned. untuned NULL: no longer; before the process
 * ends. Errors: HAPI_EINVAL (no such back end), HAPI_EUNSUPPORTED (nothing to choose from), those of _ready.
 */
int hapi_backend_tune(const char *name, void (*untuned)(const struct hapi_err *why), struct hapi_err *err);
/* Whether it can run here: HAPI_EINVAL (there is none of this name), HAPI_EUNSUPPORTED with the reason. */
int hapi_backend_ready(const char *name, struct hapi_err *err);
/* Whether the back end computes in dtype here, in hardware. */
bool hapi_backend_computes(const char *backend, enum hapi_dtype dtype);
/* What is wrong with this CPU's arithmetic, for an operator: AMX that its model has and oneDNN cannot use,
 * with the likely cause. Static string, or NULL when nothing is. */
const char *hapi_cpu_warning(void);
/* Whether back end onednn gives a sample the same f32 bits in any micro-batch, up to and from any cut, with
 * any number of threads. Without AVX2 it does not: oneDNN chooses by the shape in which order its products
 * sum, and the last places differ (relative L2 below 1e-6). */
bool hapi_cpu_same_bits(void);
/* Whether products of int8 are hardware here (AVX-512 VNNI); without it they are slow, and may saturate. */
bool hapi_cpu_has_int8(void);
/* L2 of one core and its share of L3, as the CPU (or its hypervisor) says it; 0: not said. */
size_t hapi_cpu_cache_bytes(void);

#endif
