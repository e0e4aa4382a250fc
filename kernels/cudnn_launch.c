/*
 * The launches of a plan: operation graphs and kernels of our own, with the addresses they work on. They are
 * enqueued one by one, a few microseconds of the CPU each; or, where that is faster, as one CUDA graph that
 * was captured from them when the plan was made.
 */
#include <stdlib.h>
#include <string.h>

#include "clock.h"
#include "cudnn_backend.h"
#include "cudnn_descriptor.h"

enum { THREADS = 256, BLOCKS_MAX = 4096, WARP = 32, TRIALS = 3 };

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

int hapi_cudnn_pack_new(cudnnBackendDescriptor_t *out, const struct hapi_cudnn_lib *lib,
                        const struct hapi_cudnn_graph *g, struct hapi_cudnn_places *at, struct hapi_err *err)
{
    cudnnStatus_t s;

    for (int i = 0; i < g->n_tensors; i++)
        if (g->tensors[i].by_value) {
            at->uids[at->n] = g->tensors[i].uid;
            at->pointers[at->n++] =
                (void *)(uintptr_t)&g->tensors[i].value; /* the host's; cuDNN reads it at once */
        }
    s = lib->BackendCreateDescriptor(CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR, out);
    if (!s)
        s = lib->BackendSetAttribute(*out, CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, CUDNN_TYPE_INT64, at->n,
                                     at->uids);
    if (!s)
        s = lib->BackendSetAttribute(*out, CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, CUDNN_TYPE_VOID_PTR, at->n,
                                     at->pointers);
    if (!s)
        s = lib->BackendSetAttribute(*out, CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR, 1,
                                     &at->workspace);
    if (!s)
        s = lib->BackendFinalize(*out);
    return s ? hapi_cudnn_fail(lib, s, g->name, err) : HAPI_OK;
}

static int graph_prepare(struct hapi_cudnn *b, const struct hapi_gpu_launch *l, struct hapi_cudnn_launch *out,
                         struct hapi_err *err)
{
    struct hapi_cudnn_places at = {
        .workspace = hapi_gpu_pointer(b->memory + hapi_gpu_round_up(b->program->arena_bytes))};

    for (int i = 0; i < l->n_operands; i++) {
        at.uids[at.n] = l->operands[i].uid;
        at.pointers[at.n++] = hapi_gpu_pointer(address(b, &l->operands[i]));
    }
    return hapi_cudnn_pack_new(&out->pack, b->device->cudnn, l->graph, &at, err);
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

int hapi_cudnn_launches_make(struct hapi_cudnn *b, struct hapi_err *err)
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
    return r ? hapi_cuda_fail(b->device->cu, r, l->node ? l->node->name : "conversion at an edge", err)
             : HAPI_OK;
}

/* The handle is the device's: its stream is set and used in one go. */
static int launch_each(struct hapi_cudnn *b, struct hapi_err *err)
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

int hapi_cudnn_launches_enqueue(struct hapi_cudnn *b, struct hapi_err *err)
{
    CUresult r;

    if (!b->graph)
        return launch_each(b, err);
    r = b->device->cu->GraphLaunch(b->graph, b->stream);
    return r ? hapi_cuda_fail(b->device->cu, r, "launching a CUDA graph", err) : HAPI_OK;
}

/* ------------------------------------------------------------------ as one graph */

/* The shortest of some runs on whatever the memory holds; < 0: an error. */
static int64_t time_runs(struct hapi_cudnn *b, struct hapi_err *err)
{
    int64_t best = INT64_MAX;

    for (int i = 0; i < TRIALS; i++) {
        int64_t start = hapi_clock_ns();
        int rc = hapi_cudnn_launches_enqueue(b, err);
        CUresult r = b->device->cu->StreamSynchronize(b->stream); /* after an error, too */
        if (r && !rc)
            rc = hapi_cuda_fail(b->device->cu, r, "running a plan for the first time", err);
        if (rc)
            return rc;
        int64_t took = hapi_clock_ns() - start;
        best = took < best ? took : best;
    }
    return best;
}

/* NULL: a launch that cannot be captured, or no memory for the graph. */
static CUgraphExec capture(struct hapi_cudnn *b)
{
    const struct hapi_cuda *cu = b->device->cu;
    CUgraphExec out = NULL;
    CUgraph graph = NULL;

    if (cu->StreamBeginCapture(b->stream, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL))
        return NULL;
    int rc = launch_each(b, NULL);
    CUresult r = cu->StreamEndCapture(b->stream, &graph); /* always: the stream is of no use before */
    if (!rc && !r && cu->GraphInstantiate(&out, graph, 0))
        out = NULL;
    if (graph)
        (void)cu->GraphDestroy(graph);
    return out;
}

static void graph_free(struct hapi_cudnn *b)
{
    if (b->graph)
        (void)b->device->cu->GraphExecDestroy(b->graph);
    b->graph = NULL;
}

int hapi_cudnn_launches_try(struct hapi_cudnn *b, struct hapi_err *err)
{
    const char *wish = getenv("HAPI_CUDA_GRAPHS");
    bool never = wish && !strcmp(wish, "0"), always = wish && !strcmp(wish, "1");
    int64_t each, whole;

    each = time_runs(b, err); /* the first of them loads the kernels */
    if (each < 0)
        return (int)each;
    b->graph = never ? NULL : capture(b);
    if (!b->graph)
        return HAPI_OK;
    whole = time_runs(b, NULL);
    if (whole >= 0 && (always || whole < each))
        return HAPI_OK;
    graph_free(b);
    return HAPI_OK;
}

void hapi_cudnn_launches_free(struct hapi_cudnn *b)
{
    graph_free(b);
    for (size_t i = 0; b->launches && i < b->program->n_launches; i++)
        if (b->launches[i].pack)
            (void)b->device->cudnn->BackendDestroyDescriptor(b->launches[i].pack);
}
