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

enum { THREADS = 256, BLOCKS_MAX = 4096, WARP = 32 };

static int fail(const struct hapi_cudnn *b, CUresult r, const char *what, struct hapi_err *err)
{
    return hapi_cuda_fail(b->device->cu, r, what, err);
}

static CUdeviceptr address(const struct hapi_cudnn *b, const struct hapi_gpu_operand *o)
{
    const struct hapi_gpu_storage *s = &b->program->storages[o->storage];

    switch (s->place) {
    case HAPI_GPU_ARENA:
        return b->memory + s->offset + o->offset;
    case HAPI_GPU_WEIGHT:
        return b->weights[b->weight_of[o->storage]] + o->offset;
    default:
        return b->memory + b->edge[o->storage] + o->offset;
    }
}

/* ------------------------------------------------------------------ memory and launches of a plan */

/* Arena, workspace, and the edges as the host has them. */
static int memory_make(struct hapi_cudnn *b, struct hapi_err *err)
{
    const struct hapi_gpu_program *p = b->program;
    CUresult r;

    b->bytes = hapi_gpu_round_up(p->arena_bytes) + hapi_gpu_round_up(p->scratch_bytes);
    for (size_t i = 0; i < p->n_storages; i++)
        if (p->storages[i].place == HAPI_GPU_IN || p->storages[i].place == HAPI_GPU_OUT) {
            b->edge[i] = b->bytes;
            b->bytes += hapi_gpu_round_up(p->storages[i].bytes);
        }
    r = b->device->cu->MemAlloc(&b->memory, (size_t)b->bytes);
    return r ? fail(b, r, "memory for a plan on the GPU", err) : HAPI_OK;
}

static int graph_prepare(struct hapi_cudnn *b, const struct hapi_gpu_launch *l, struct hapi_cudnn_launch *out,
                         struct hapi_err *err)
{
    const struct hapi_cudnn_lib *lib = b->device->cudnn;
    int64_t uids[HAPI_CUDNN_TENSORS];
    void *pointers[HAPI_CUDNN_TENSORS];
    void *workspace =
        (void *)(uintptr_t)(b->memory +
                            hapi_gpu_round_up(b->program->arena_bytes)); // NOLINT(performance-no-int-to-ptr)
    int64_t n = 0;
    cudnnStatus_t s;

    for (int i = 0; i < l->n_operands; i++) {
        uids[n] = l->operands[i].uid;
        pointers[n++] = (void *)(uintptr_t)address(b, &l->operands[i]); // NOLINT(performance-no-int-to-ptr)
    }
    for (int i = 0; i < l->graph->n_tensors; i++)
        if (l->graph->tensors[i].by_value) {
            uids[n] = l->graph->tensors[i].uid;
            pointers[n++] =
                (void *)(uintptr_t)&l->graph->tensors[i].value; /* the host's; cuDNN reads it at once */
        }
    s = lib->BackendCreateDescriptor(CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR, &out->pack);
    if (!s)
        s = lib->BackendSetAttribute(out->pack, CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, CUDNN_TYPE_INT64, n,
                                     uids);
    if (!s)
        s = lib->BackendSetAttribute(out->pack, CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, CUDNN_TYPE_VOID_PTR, n,
                                     pointers);
    if (!s)
        s = lib->BackendSetAttribute(out->pack, CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR, 1,
                                     &workspace);
    if (!s)
        s = lib->BackendFinalize(out->pack);
    return s ? hapi_cudnn_fail(lib, s, l->graph->name, err) : HAPI_OK;
}

static int64_t elements(const struct hapi_gpu_loop *l)
{
    int64_t n = 1;

    for (int i = 0; i < l->rank; i++)
        n *= l->size[i];
    return n;
}

/* Threads that a kernel has work for. */
static int64_t threads_of(const struct hapi_gpu_kernel *k)
{
    const struct hapi_gpu_i8 *f = &k->i8;

    switch (k->kind) {
    case HAPI_GPU_POINTWISE:
        return elements(&k->outer) / k->vector;
    case HAPI_GPU_SOFTMAX:
    case HAPI_GPU_MEAN:
        return elements(&k->outer) * WARP;
    case HAPI_GPU_IMAGE:
        return k->image.pixels;
    case HAPI_GPU_I8_MAX:
        return f->samples * ((f->elements + HAPI_GPU_I8_CHUNK - 1) / HAPI_GPU_I8_CHUNK + f->scales);
    case HAPI_GPU_I8_PACK:
        return f->samples * f->elements;
    default:
        return elements(&k->outer);
    }
}

static void kernel_prepare(struct hapi_cudnn *b, const struct hapi_gpu_launch *l,
                           struct hapi_cudnn_launch *out)
{
    int64_t blocks = (threads_of(&l->kernel) + THREADS - 1) / THREADS;

    out->blocks = (unsigned)(blocks > BLOCKS_MAX ? BLOCKS_MAX : blocks);
    out->function = b->device->kernels[l->kernel.kind];
    for (int i = 0; i < l->n_operands; i++)
        out->pointers[i] = address(b, &l->operands[i]);
}

static int launches_make(struct hapi_cudnn *b, struct hapi_err *err)
{
    const struct hapi_gpu_program *p = b->program;
    int rc = HAPI_OK;

    hapi_cuda_plans_lock(b->device); /* the list may be growing */
    for (size_t i = 0; i < p->n_launches; i++)
        if (p->launches[i].graph)
            b->launches[i].plan = hapi_cudnn_plan_descriptor(
                hapi_cudnn_plans_get(b->device->plans, (size_t)p->launches[i].plan).plan);
    hapi_cuda_plans_unlock(b->device);
    for (size_t i = 0; i < p->n_launches && !rc; i++)
        if (p->launches[i].graph)
            rc = graph_prepare(b, &p->launches[i], &b->launches[i], err);
        else
            kernel_prepare(b, &p->launches[i], &b->launches[i]);
    return rc;
}

/* ------------------------------------------------------------------ the back end */

static void cudnn_free(struct hapi_backend *base)
{
    struct hapi_cudnn *b = (struct hapi_cudnn *)base;
    bool current = b->device && !hapi_cuda_enter(b->device, NULL);

    for (size_t i = 0; b->device && b->launches && i < b->program->n_launches; i++)
        if (b->launches[i].pack)
            (void)b->device->cudnn->BackendDestroyDescriptor(b->launches[i].pack);
    if (b->stream && current) {
        (void)b->device->cu->StreamSynchronize(b->stream);
        (void)b->device->cu->StreamDestroy(b->stream);
    }
    if (b->memory && current)
        (void)b->device->cu->MemFree(b->memory);
    if (current)
        hapi_cuda_leave(b->device);
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
    hapi_cuda_plans_unlock(b->device);
    return rc;
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
    if (!rc && weights) {
        CUresult r = b->device->cu->StreamCreate(&b->stream, CU_STREAM_NON_BLOCKING);
        rc = r ? fail(b, r, "making a stream", err) : HAPI_OK;
        if (!rc && !*weights)
            rc = hapi_cudnn_weights_new(weights, err);
        if (!rc)
            rc = hapi_cudnn_weights_make(b, *weights, err);
        if (!rc)
            rc = memory_make(b, err);
        if (!rc)
            rc = launches_make(b, err);
    }
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

static int launch_run(struct hapi_cudnn *b, size_t i, struct hapi_err *err)
{
    const struct hapi_gpu_launch *l = &b->program->launches[i];
    struct hapi_cudnn_launch *k = &b->launches[i];

    if (l->graph) {
        const struct hapi_cudnn_lib *lib = b->device->cudnn;
        cudnnStatus_t s = lib->BackendExecute(b->device->handle, k->plan, k->pack);
        return s ? hapi_cudnn_fail(lib, s, l->graph->name, err) : HAPI_OK;
    }
    void *parameters[] = {(void *)(uintptr_t)&l->kernel, &k->pointers[0], &k->pointers[1], &k->pointers[2],
                          &k->pointers[3]};
    CUresult r = b->device->cu->LaunchKernel(k->function, k->blocks, 1, 1, THREADS, 1, 1, 0, b->stream,
                                             parameters, NULL);
    return r ? fail(b, r, l->node ? l->node->name : "conversion at an edge", err) : HAPI_OK;
}

/* The handle is the device's: its stream is set and used in one go. Enqueuing takes microseconds a launch. */
static int enqueue(struct hapi_cudnn *b, struct hapi_err *err)
{
    cudnnStatus_t s;
    int rc;

    hapi_cuda_lock(b->device);
    s = b->device->cudnn->SetStream(b->device->handle, (cudaStream_t)b->stream);
    rc = s ? hapi_cudnn_fail(b->device->cudnn, s, "taking a stream", err) : HAPI_OK;
    for (size_t i = 0; i < b->program->n_launches && !rc; i++)
        rc = launch_run(b, i, err);
    hapi_cuda_unlock(b->device);
    return rc;
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
        else
            r = b->device->cu->MemcpyDtoHAsync(out[s->index], b->memory + b->edge[i], (size_t)s->bytes,
                                               b->stream);
    }
    return r ? fail(b, r, place == HAPI_GPU_IN ? "copying to the GPU" : "copying from the GPU", err)
             : HAPI_OK;
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
    rc = edges_copy(b, HAPI_GPU_IN, in, out, err);
    if (!rc)
        rc = enqueue(b, err);
    if (!rc)
        rc = edges_copy(b, HAPI_GPU_OUT, in, out, err);
    /* After an error, too: what was enqueued reads the caller's memory. */
    r = b->device->cu->StreamSynchronize(b->stream);
    if (r && !rc)
        rc = fail(b, r, "waiting for the GPU", err);
    hapi_cuda_leave(b->device);
    return rc;
}

static char class_text[96];

/* Opening the device takes long: once, unless it failed. */
static const char *cudnn_class(void)
{
    struct hapi_cuda_device *d;

    if (*class_text)
        return class_text;
    if (hapi_cuda_device_get(&d, NULL))
        return NULL;
    size_t v = d->cudnn->GetVersion();
    snprintf(class_text, sizeof class_text, "cudnn/sm_%d/%zu.%zu.%zu",
             hapi_cudnn_device_version(d->described) / 10, v / 10000, v / 100 % 100, v % 100);
    hapi_cuda_device_put(d);
    return class_text;
}

static int cudnn_ready(struct hapi_err *err)
{
    struct hapi_cuda_device *d;
    int rc = hapi_cuda_device_get(&d, err);

    if (!rc)
        hapi_cuda_device_put(d);
    return rc;
}

static int cudnn_pin(void *p, size_t bytes, struct hapi_err *err)
{
    struct hapi_cuda_device *d;
    CUresult r;
    int rc = hapi_cuda_device_get(&d, err);

    if (rc)
        return rc;
    rc = hapi_cuda_enter(d, err);
    if (!rc) {
        r = d->cu->MemHostRegister(p, bytes, CU_MEMHOSTREGISTER_PORTABLE);
        rc = r ? hapi_cuda_fail(d->cu, r, "pinning memory for the GPU", err) : HAPI_OK;
        hapi_cuda_leave(d);
    }
    if (rc)
        hapi_cuda_device_put(d);
    return rc; /* else the device is held */
}

static void cudnn_unpin(void *p)
{
    struct hapi_cuda_device *d;

    if (hapi_cuda_device_get(&d, NULL))
        return;
    if (!hapi_cuda_enter(d, NULL)) {
        (void)d->cu->MemHostUnregister(p);
        hapi_cuda_leave(d);
    }
    hapi_cuda_device_put(d);
    hapi_cuda_device_put(d); /* that of cudnn_pin() */
}

const struct hapi_backend_ops hapi_backend_cudnn = {
    .name = "cudnn",
    .copies = true,
    .compile = cudnn_compile,
    .memory = cudnn_memory,
    .run = cudnn_run,
    .free = cudnn_free,
    .weights_free = hapi_cudnn_weights_free,
    .numeric_class = cudnn_class,
    .ready = cudnn_ready,
    .pin = cudnn_pin,
    .unpin = cudnn_unpin,
};
