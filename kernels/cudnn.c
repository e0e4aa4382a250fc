/*
 * Back end `cudnn`: a program (gpu.h) on a GPU. All memory is taken when a plan is made: weights once for all
 * micro-batches, and for each plan one block of arena, workspace and edges, so that a run allocates nothing
 * and cannot fail for want of memory. A run is enqueued on the plan's own stream: copies and kernels of plans
 * that other threads run overlap with it.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cudnn_backend.h"
#include "cudnn_descriptor.h"
#include "cudnn_tune.h"
#include "gpu_memory.h"

static int fail(const struct hapi_cudnn *b, CUresult r, const char *what, struct hapi_err *err)
{
    return hapi_cuda_fail(b->device->cu, r, what, err);
}

/* ------------------------------------------------------------------ memory and launches of a plan */

/* Photos are decoded to where the GPU can fetch them while it computes. */
static int pinned_make(struct hapi_cudnn *b, struct hapi_err *err)
{
    const struct hapi_gpu_storage *s = b->program->storages;
    CUresult r;

    while (s->place != HAPI_GPU_IN) /* there is one */
        s++;
    r = b->device->cu->MemHostAlloc(&b->pinned, (size_t)s->bytes, CU_MEMHOSTALLOC_PORTABLE);
    return r ? fail(b, r, "pinned memory for images", err) : HAPI_OK;
}

/* Arena, workspace, and the edges as the host has them. */
static int memory_make(struct hapi_cudnn *b, struct hapi_err *err)
{
    const struct hapi_gpu_program *p = b->program;

    b->bytes = hapi_gpu_round_up(p->arena_bytes) + hapi_gpu_round_up(p->scratch_bytes);
    for (size_t i = 0; i < p->n_storages; i++)
        if (p->storages[i].place == HAPI_GPU_IN || p->storages[i].place == HAPI_GPU_OUT) {
            b->edge[i] = b->bytes;
            b->bytes += hapi_gpu_round_up(p->storages[i].bytes);
        }
    return hapi_gpu_memory_take(b->device, b->bytes, "a plan", &b->memory, err);
}

/* ------------------------------------------------------------------ the back end */

static void graphs_each(struct hapi_cudnn *b, void (*f)(struct hapi_cudnn_plans *plans, int plan))
{
    for (size_t i = 0; i < b->program->n_launches; i++)
        if (b->program->launches[i].graph)
            f(b->device->plans, b->program->launches[i].plan);
}

static void cudnn_free(struct hapi_backend *base)
{
    struct hapi_cudnn *b = (struct hapi_cudnn *)base;
    bool current = b->device && !hapi_cuda_enter(b->device, NULL);

    if (current && b->stream)
        (void)b->device->cu->StreamSynchronize(b->stream);
    if (current) {
        hapi_cudnn_launches_free(b);
        if (b->stream)
            (void)b->device->cu->StreamDestroy(b->stream);
        if (b->pinned)
            (void)b->device->cu->MemFreeHost(b->pinned);
        hapi_gpu_memory_give(b->device, b->memory);
        hapi_cuda_leave(b->device);
    }
    /* Whoever makes the next ones trims: this does not wait for a plan being made. */
    if (b->device && b->program)
        graphs_each(b, hapi_cudnn_plans_release);
    hapi_gpu_program_free(b->program);
    hapi_cuda_device_put(b->device);
    free(b->weight_of);
    free(b->edge);
    free(b->weights);
    free(b->launches);
    free(b);
}

static int tables_make(struct hapi_cudnn *b, struct hapi_err *err)
{
    const struct hapi_gpu_program *p = b->program;

    b->launches = calloc(p->n_launches + 1, sizeof *b->launches);
    b->weights = calloc(p->n_weights + 1, sizeof *b->weights);
    b->edge = calloc(p->n_storages + 1, sizeof *b->edge);
    b->weight_of = calloc(p->n_storages + 1, sizeof *b->weight_of);
    if (b->launches && b->weights && b->edge && b->weight_of)
        return HAPI_OK;
    return hapi_err_set(err, HAPI_ENOMEM, 0, "no memory for a plan");
}

static int program_make(struct hapi_cudnn *b, const struct hapi_graph *g, const struct hapi_plan_spec *spec,
                        struct hapi_err *err)
{
    const struct hapi_gpu_maker maker = {hapi_cudnn_plans_make, b->device->plans};
    struct hapi_gpu_edges edges = {.plain = spec->plain_io, .wire = spec->wire};
    struct hapi_gpu_image image;
    int rc;

    if (spec->image) {
        image = (struct hapi_gpu_image){.scale = spec->image->scale, .bgr = spec->image->bgr};
        memcpy(image.mean, spec->image->mean, sizeof image.mean);
        memcpy(image.std, spec->image->std, sizeof image.std);
        edges.image = &image;
    }

    hapi_cuda_plans_lock(b->device);
    rc = hapi_gpu_program_new(&b->program, g, spec->dtype, &edges, &maker, err);
    if (!rc)
        graphs_each(b, hapi_cudnn_plans_hold);
    hapi_cudnn_plans_trim(b->device->plans);
    hapi_cuda_plans_unlock(b->device);
    return rc;
}

/* What a plan that runs has: its stream, weights, memory and launches. */
static int plan_make(struct hapi_cudnn *b, const struct hapi_plan_spec *spec, void **weights,
                     struct hapi_err *err)
{
    CUresult r = b->device->cu->StreamCreate(&b->stream, CU_STREAM_NON_BLOCKING);
    int rc = r ? fail(b, r, "making a stream", err) : HAPI_OK;

    if (!rc && !*weights)
        rc = hapi_cudnn_weights_new(weights, err);
    if (!rc)
        rc = hapi_cudnn_weights_make(b, *weights, err);
    if (!rc)
        rc = memory_make(b, err);
    if (!rc && spec->image)
        rc = pinned_make(b, err);
    if (!rc)
        rc = hapi_cudnn_launches_make(b, err);
    return rc ? rc : hapi_cudnn_launches_try(b, err);
}

static int cudnn_compile(struct hapi_backend **out, const struct hapi_graph *g,
                         const struct hapi_plan_spec *spec, void **weights, struct hapi_err *err)
{
    struct hapi_cudnn *b = calloc(1, sizeof *b);
    int rc;

    if (!b)
        return hapi_err_set(err, HAPI_ENOMEM, 0, "no memory for a plan");
    b->base.ops = &hapi_backend_cudnn;
    rc = hapi_cuda_device_get(&b->device, err);
    if (!rc)
        rc = hapi_cuda_enter(b->device, err);
    if (rc) {
        cudnn_free(&b->base);
        return rc;
    }
    rc = program_make(b, g, spec, err);
    if (!rc)
        rc = tables_make(b, err);
    if (!rc && weights)
        rc = plan_make(b, spec, weights, err);
    hapi_cuda_leave(b->device);
    if (rc) {
        cudnn_free(&b->base);
        return rc;
    }
    *out = &b->base;
    return HAPI_OK;
}

static void cudnn_memory(const struct hapi_backend *base, struct hapi_plan_memory *out)
{
    const struct hapi_cudnn *b = (const struct hapi_cudnn *)base;
    const struct hapi_gpu_program *p = b->program;
    uint64_t edges = 0;

    for (size_t i = 0; i < p->n_storages; i++)
        if (p->storages[i].place == HAPI_GPU_IN || p->storages[i].place == HAPI_GPU_OUT)
            edges += hapi_gpu_round_up(p->storages[i].bytes);
    *out = (struct hapi_plan_memory){.device_weights = p->weight_bytes,
                                     .device_arena = hapi_gpu_round_up(p->arena_bytes) +
                                                     hapi_gpu_round_up(p->scratch_bytes) + edges};
}

static int edges_copy(struct hapi_cudnn *b, enum hapi_gpu_place place, const void *const *in,
                      void *const *out, struct hapi_err *err)
{
    const struct hapi_gpu_program *p = b->program;
    CUresult r = CUDA_SUCCESS;

    for (size_t i = 0; i < p->n_storages && !r; i++) {
        const struct hapi_gpu_storage *s = &p->storages[i];
        if (s->place != place)
            continue;
        if (place == HAPI_GPU_IN)
            r = b->device->cu->MemcpyHtoDAsync(b->memory + b->edge[i], in[s->index], (size_t)s->bytes,
                                               b->stream);
        else if (hapi_cuda_is_direct(b->device, out[s->index]))
            r = b->device->cu->MemcpyDtoDAsync((CUdeviceptr)(uintptr_t)out[s->index], b->memory + b->edge[i],
                                               (size_t)s->bytes, b->stream);
        else
            r = b->device->cu->MemcpyDtoHAsync(out[s->index], b->memory + b->edge[i], (size_t)s->bytes,
                                               b->stream);
    }
    return r ? fail(b, r, place == HAPI_GPU_IN ? "copying to the GPU" : "copying from the GPU", err)
             : HAPI_OK;
}

/* The context is current. */
static int enqueue(struct hapi_cudnn *b, const void *const *in, void *const *out, struct hapi_err *err)
{
    int rc = edges_copy(b, HAPI_GPU_IN, in, out, err);

    if (!rc)
        rc = hapi_cudnn_launches_enqueue(b, err);
    return rc ? rc : edges_copy(b, HAPI_GPU_OUT, in, out, err);
}

static int cudnn_run(struct hapi_backend *base, void *arena, const void *const *in, void *const *out,
                     struct hapi_err *err)
{
    struct hapi_cudnn *b = (struct hapi_cudnn *)base;
    CUresult r;
    int rc = hapi_cuda_enter(b->device, err);

    (void)arena;
    if (rc)
        return rc;
    rc = enqueue(b, in, out, err);
    /* After an error, too: what was enqueued reads the caller's memory. */
    r = b->device->cu->StreamSynchronize(b->stream);
    if (r && !rc)
        rc = fail(b, r, "waiting for the GPU", err);
    hapi_cuda_leave(b->device);
    return rc;
}

/* On a thread of the driver's, after all that was enqueued; `r` is what became of it. */
static void CUDA_CB run_over(CUstream stream, CUresult r, void *arg)
{
    struct hapi_cudnn *b = arg;

    (void)stream;
    b->started.result = r;
    b->started.done(b->started.arg);
}

/* A stream callback and not a host function: after an error of the device a host function is never called. */
static int cudnn_start(struct hapi_backend *base, const void *const *in, void *const *out,
                       void (*done)(void *arg), void *arg, struct hapi_err *err)
{
    struct hapi_cudnn *b = (struct hapi_cudnn *)base;
    int rc = hapi_cuda_enter(b->device, err);

    if (rc)
        return rc;
    b->started.done = done;
    b->started.arg = arg;
    rc = enqueue(b, in, out, err);
    if (!rc) {
        CUresult r = b->device->cu->StreamAddCallback(b->stream, run_over, b, 0);
        rc = r ? fail(b, r, "asking for the end of a run", err) : HAPI_OK;
    }
    if (rc) /* what was enqueued reads the caller's memory */
        (void)b->device->cu->StreamSynchronize(b->stream);
    hapi_cuda_leave(b->device);
    return rc;
}

static int cudnn_finish(struct hapi_backend *base, struct hapi_err *err)
{
    struct hapi_cudnn *b = (struct hapi_cudnn *)base;
    CUresult r = b->started.result;

    return r ? fail(b, r, "running on the GPU", err) : HAPI_OK;
}

static void *cudnn_input_memory(struct hapi_backend *base, size_t i)
{
    struct hapi_cudnn *b = (struct hapi_cudnn *)base;

    return i ? NULL : b->pinned;
}

const struct hapi_backend_ops hapi_backend_cudnn = {
    .name = "cudnn",
    .copies = true,
    .compile = cudnn_compile,
    .memory = cudnn_memory,
    .run = cudnn_run,
    .start = cudnn_start,
    .finish = cudnn_finish,
    .input_memory = cudnn_input_memory,
    .free = cudnn_free,
    .weights_free = hapi_cudnn_weights_free,
    .numeric_class = hapi_cudnn_class,
    .tune = hapi_cudnn_tune,
    .ready = hapi_cudnn_ready,
    .pin = hapi_cudnn_pin,
    .unpin = hapi_cudnn_unpin,
    .reserve = hapi_cudnn_reserve,
    .release = hapi_cudnn_release,
    .usage = hapi_cudnn_usage,
    .device_memory = hapi_cudnn_device_memory,
    .device_memory_free = hapi_cudnn_device_memory_free,
};
