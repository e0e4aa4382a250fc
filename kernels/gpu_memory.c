#include "gpu_memory.h"

#include <pthread.h>
#include <stdlib.h>

#include "gpu.h"

enum { KEPT_SHARE = 16, KEPT_BYTES = 512 << 20 };

/* A stretch of the block, or, without one, a block of its own. */
struct part {
    struct part *next;
    CUdeviceptr at;
    uint64_t bytes;
    bool taken;
};

struct hapi_gpu_memory {
    CUdeviceptr block; /* 0: none */
    uint64_t bytes, used;
    struct part *parts; /* of the block: by address, without gaps */
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

/* Under the lock: the device's, made by its first use. NULL: no memory. */
static struct hapi_gpu_memory *memory_of(struct hapi_cuda_device *d)
{
    if (!d->memory)
        d->memory = calloc(1, sizeof *d->memory);
    return d->memory;
}

static int no_room(struct hapi_err *err)
{
    return hapi_err_set(err, HAPI_ENOMEM, 0, "no memory for the table of a GPU's memory");
}

static int block_take(struct hapi_cuda_device *d, struct hapi_gpu_memory *m, uint64_t bytes,
                      struct hapi_err *err)
{
    size_t unused, total;
    CUresult r = d->cu->MemGetInfo(&unused, &total);

    if (r)
        return hapi_cuda_fail(d->cu, r, "asking for the GPU's memory", err);
    uint64_t kept = total / KEPT_SHARE + KEPT_BYTES;
    if (!bytes)
        bytes = unused > kept ? unused - kept : unused / 2;
    bytes = bytes / HAPI_GPU_ALIGN * HAPI_GPU_ALIGN;
    struct part *all = bytes ? calloc(1, sizeof *all) : NULL;
    if (!all)
        return no_room(err);
    r = d->cu->MemAlloc(&m->block, (size_t)bytes);
    if (r) {
        int rc = hapi_cuda_fail(d->cu, r, "taking the GPU's memory", err);
        free(all);
        m->block = 0;
        return hapi_err_set(
            err, rc, (long)r,
            "the GPU does not give %llu MiB of memory (%zu of %zu MiB are free): ask for less",
            (unsigned long long)bytes >> 20, unused >> 20, total >> 20);
    }
    *all = (struct part){.at = m->block, .bytes = bytes};
    m->bytes = bytes;
    m->parts = all;
    return HAPI_OK;
}

int hapi_gpu_memory_reserve(struct hapi_cuda_device *d, uint64_t bytes, struct hapi_err *err)
{
    int rc;

    pthread_mutex_lock(&lock);
    struct hapi_gpu_memory *m = memory_of(d);
    if (!m)
        rc = no_room(err);
    else if (m->block || m->used)
        rc = hapi_err_set(err, HAPI_EBUSY, 0, "the GPU's memory is in use already");
    else
        rc = block_take(d, m, bytes, err);
    pthread_mutex_unlock(&lock);
    return rc;
}

/* The smallest that is large enough; of equals the first. */
static struct part *part_find(struct hapi_gpu_memory *m, uint64_t bytes, uint64_t *largest)
{
    struct part *best = NULL;

    *largest = 0;
    for (struct part *p = m->parts; p; p = p->next) {
        if (p->taken)
            continue;
        *largest = p->bytes > *largest ? p->bytes : *largest;
        if (p->bytes >= bytes && (!best || p->bytes < best->bytes))
            best = p;
    }
    return best;
}

static int part_take(struct hapi_gpu_memory *m, uint64_t bytes, const char *what, CUdeviceptr *out,
                     struct hapi_err *err)
{
    uint64_t largest;
    struct part *p = part_find(m, bytes, &largest), *rest;

    if (!p)
        return hapi_err_set(
            err, HAPI_ENOMEM, 0,
            "%s: %llu MiB of the GPU's memory, of whose %llu MiB for plans %llu are free, %llu "
            "in one piece",
            what, (unsigned long long)(bytes + (1 << 20) - 1) >> 20, (unsigned long long)m->bytes >> 20,
            (unsigned long long)(m->bytes - m->used) >> 20, (unsigned long long)largest >> 20);
    if (p->bytes > bytes) {
        rest = calloc(1, sizeof *rest);
        if (!rest)
            return no_room(err);
        *rest = (struct part){.next = p->next, .at = p->at + bytes, .bytes = p->bytes - bytes};
        p->next = rest;
        p->bytes = bytes;
    }
    p->taken = true;
    *out = p->at;
    return HAPI_OK;
}

/* Without a block: the driver's own. */
static int alone_take(struct hapi_cuda_device *d, struct hapi_gpu_memory *m, uint64_t bytes, const char *what,
                      CUdeviceptr *out, struct hapi_err *err)
{
    struct part *p = calloc(1, sizeof *p);
    CUresult r;

    if (!p)
        return no_room(err);
    r = d->cu->MemAlloc(&p->at, (size_t)bytes);
    if (r) {
        free(p);
        return hapi_cuda_fail(d->cu, r, what, err);
    }
    *p = (struct part){.next = m->parts, .at = p->at, .bytes = bytes, .taken = true};
    m->parts = p;
    *out = p->at;
    return HAPI_OK;
}

int hapi_gpu_memory_take(struct hapi_cuda_device *d, uint64_t bytes, const char *what, CUdeviceptr *out,
                         struct hapi_err *err)
{
    int rc;

    bytes = (bytes + HAPI_GPU_ALIGN - 1) / HAPI_GPU_ALIGN * HAPI_GPU_ALIGN;
    pthread_mutex_lock(&lock);
    struct hapi_gpu_memory *m = memory_of(d);
    if (!m)
        rc = no_room(err);
    else
        rc = m->block ? part_take(m, bytes, what, out, err) : alone_take(d, m, bytes, what, out, err);
    if (!rc)
        m->used += bytes;
    pthread_mutex_unlock(&lock);
    return rc;
}

/* p and what follows it become one, if both are free. */
static void part_join(struct part *p)
{
    struct part *next = p ? p->next : NULL;

    if (!next || p->taken || next->taken)
        return;
    p->bytes += next->bytes;
    p->next = next->next;
    free(next);
}

void hapi_gpu_memory_give(struct hapi_cuda_device *d, CUdeviceptr at)
{
    struct hapi_gpu_memory *m = d->memory;
    struct part *before = NULL, *p;

    if (!at)
        return;
    pthread_mutex_lock(&lock);
    for (p = m->parts; p->at != at; p = p->next)
        before = p;
    m->used -= p->bytes;
    p->taken = false;
    if (m->block) {
        part_join(p);
        part_join(before);
    } else {
        *(before ? &before->next : &m->parts) = p->next;
        (void)d->cu->MemFree(at);
        free(p);
    }
    pthread_mutex_unlock(&lock);
}

void hapi_gpu_memory_usage(const struct hapi_cuda_device *d, uint64_t *reserved, uint64_t *used)
{
    pthread_mutex_lock(&lock);
    *reserved = d->memory ? d->memory->bytes : 0;
    *used = d->memory ? d->memory->used : 0;
    pthread_mutex_unlock(&lock);
}

void hapi_gpu_memory_close(struct hapi_cuda_device *d)
{
    if (!d->memory)
        return;
    if (d->memory->block) {
        (void)d->cu->MemFree(d->memory->block);
        free(d->memory->parts); /* one, free */
    }
    free(d->memory);
    d->memory = NULL;
}
