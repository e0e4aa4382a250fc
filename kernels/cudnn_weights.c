/* Weights on the device: converted once, shared by the plans of all micro-batches. */
#include <stdlib.h>
#include <string.h>

#include "convert.h"
#include "cudnn_backend.h"
#include "gpu_memory.h"

enum { BUCKETS = 4096 }; /* a model may have hundreds of thousands of small constants */

struct weight {
    struct weight *next; /* of its bucket */
    struct hapi_gpu_view from, to;
    enum hapi_dtype dtype;
    const void *raw;    /* the file's bytes that it was made from; NULL: not from there */
    uint8_t source[32]; /* else SHA-256 of what it was made from */
    CUdeviceptr at;
};

/* Blocks of weights, one for each plan that brought new ones. */
struct block {
    struct block *next;
    CUdeviceptr memory;
};

struct weights {
    struct hapi_cuda_device *device;
    struct weight *buckets[BUCKETS];
    struct block *blocks;
};

void hapi_cudnn_weights_free(void *weights)
{
    struct weights *w = weights;
    bool current = !hapi_cuda_enter(w->device, NULL);

    for (struct block *b = w->blocks, *next; b; b = next) {
        next = b->next;
        if (current)
            hapi_gpu_memory_give(w->device, b->memory);
        free(b);
    }
    for (int i = 0; i < BUCKETS; i++)
        for (struct weight *e = w->buckets[i], *next; e; e = next) {
            next = e->next;
            free(e);
        }
    if (current)
        hapi_cuda_leave(w->device);
    hapi_cuda_device_put(w->device);
    free(w);
}

int hapi_cudnn_weights_new(void **weights, struct hapi_err *err)
{
    struct weights *w;
    int rc;

    w = calloc(1, sizeof *w);
    if (!w)
        return hapi_err_set(err, HAPI_ENOMEM, 0, "no memory for weights");
    rc = hapi_cuda_device_get(&w->device, err);
    if (rc)
        free(w);
    else
        *weights = w;
    return rc;
}

/* ------------------------------------------------------------------ weights of a plan */

static bool same_view(const struct hapi_gpu_view *a, const struct hapi_gpu_view *b)
{
    return a->n == b->n && a->rank == b->rank && !memcmp(a->f, b->f, (size_t)a->n * sizeof *a->f) &&
           !memcmp(a->first, b->first, (size_t)(a->rank + 1) * sizeof *a->first);
}

static size_t bucket_of(const struct weight *w)
{
    return (w->raw ? (uintptr_t)w->raw / 64 : (size_t)w->source[0] << 8 | w->source[1]) % BUCKETS;
}

/* What is there already; else a new entry without memory yet, *fresh. NULL: no memory. */
static struct weight *weight_find(struct weights *all, const struct hapi_gpu_weight *w, bool *fresh)
{
    struct weight key = {.from = w->from, .to = w->to, .dtype = w->dtype, .raw = w->raw ? w->data : NULL},
                  **bucket;

    if (!key.raw)
        hapi_sha256(key.source, w->data, (size_t)w->elements * sizeof(float));
    *fresh = false;
    bucket = &all->buckets[bucket_of(&key)];
    for (struct weight *e = *bucket; e; e = e->next)
        if (e->dtype == key.dtype && e->raw == key.raw && !memcmp(e->source, key.source, sizeof key.source) &&
            same_view(&e->from, &key.from) && same_view(&e->to, &key.to))
            return e;
    struct weight *e = malloc(sizeof *e);
    if (!e)
        return NULL;
    *e = key;
    e->next = *bucket;
    *bucket = e;
    *fresh = true;
    return e;
}

static int upload(struct hapi_cudnn *b, CUdeviceptr to, const struct hapi_gpu_weight *w, void *buffer,
                  struct hapi_err *err)
{
    CUresult r;

    hapi_gpu_weight_write(w, buffer);
    r = b->device->cu->MemcpyHtoDAsync(to, buffer, (size_t)w->elements * hapi_dtype_size(w->dtype),
                                       b->stream);
    if (!r)
        r = b->device->cu->StreamSynchronize(b->stream); /* the buffer is used again */
    return r ? hapi_cuda_fail(b->device->cu, r, "copying weights to the GPU", err) : HAPI_OK;
}

/* Forgets entries of a plan that did not get its memory. */
static void weights_forget(struct weights *all)
{
    for (int i = 0; i < BUCKETS; i++)
        for (struct weight **e = &all->buckets[i]; *e;) {
            struct weight *gone = (*e)->at ? NULL : *e;
            if (gone) {
                *e = gone->next;
                free(gone);
            } else {
                e = &(*e)->next;
            }
        }
}

/* The new ones of the plan in one block. */
static int weights_upload(struct hapi_cudnn *b, struct weights *all, struct weight **found, const bool *fresh,
                          struct hapi_err *err)
{
    const struct hapi_gpu_program *p = b->program;
    uint64_t total = 0, most = 0;
    struct block *k;
    void *buffer;
    int rc = HAPI_OK;

    for (size_t i = 0; i < p->n_weights; i++)
        if (fresh[i]) {
            uint64_t bytes = (uint64_t)p->weights[i].elements * hapi_dtype_size(p->weights[i].dtype);
            total += hapi_gpu_round_up(bytes);
            most = bytes > most ? bytes : most;
        }
    if (!total)
        return HAPI_OK;
    k = calloc(1, sizeof *k);
    buffer = malloc((size_t)most);
    rc = k && buffer ? hapi_gpu_memory_take(b->device, total, "weights", &k->memory, err)
                     : hapi_err_set(err, HAPI_ENOMEM, 0, "no memory for weights");
    if (rc) {
        free(buffer);
        free(k);
        return rc;
    }
    k->next = all->blocks;
    all->blocks = k;
    total = 0;
    for (size_t i = 0; i < p->n_weights && !rc; i++)
        if (fresh[i]) {
            rc = upload(b, k->memory + total, &p->weights[i], buffer, err);
            if (!rc)
                found[i]->at = k->memory + total;
            total +=
                hapi_gpu_round_up((uint64_t)p->weights[i].elements * hapi_dtype_size(p->weights[i].dtype));
        }
    free(buffer);
    return rc;
}

int hapi_cudnn_weights_make(struct hapi_cudnn *b, void *weights, struct hapi_err *err)
{
    struct weights *all = weights;
    const struct hapi_gpu_program *p = b->program;
    struct weight **found = calloc(p->n_weights + 1, sizeof(struct weight *));
    bool *fresh = calloc(p->n_weights + 1, sizeof *fresh);
    int rc = found && fresh ? HAPI_OK : HAPI_ENOMEM;

    for (size_t i = 0; i < p->n_weights && !rc; i++) {
        found[i] = weight_find(all, &p->weights[i], &fresh[i]);
        rc = found[i] ? HAPI_OK : HAPI_ENOMEM;
    }
    if (rc)
        rc = hapi_err_set(err, HAPI_ENOMEM, 0, "no memory for weights");
    else
        rc = weights_upload(b, all, found, fresh, err);
    for (size_t i = 0; i < p->n_weights && !rc; i++) {
        b->weights[i] = found[i]->at;
        b->weight_of[p->weights[i].storage] = (int)i;
    }
    weights_forget(all);
    free(fresh);
    free(found);
    return rc;
}
