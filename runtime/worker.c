#include <string.h>

#include "convert.h"
#include "runtime.h"

/* Where each tensor's rows begin: the plan may write all its rows there, padding included. */
static void outputs_place(struct hapi_batch *b)
{
    const struct hapi_prefix *p = b->service->prefix;
    uint8_t *at = b->send_area;

    for (uint32_t i = 0; i < p->n_tensors; i++) {
        b->out[i] = at;
        at += (p->row_bytes[i] * (uint64_t)p->micro_batch + 63) & ~63ULL;
    }
}

/* Window by window over the samples that were delivered, in order. */
static uint32_t payload_crc(const struct hapi_batch *b)
{
    const struct hapi_prefix *p = b->service->prefix;
    uint32_t crc = 0;

    for (uint32_t t = 0; t < (p ? p->n_tensors : 1); t++)
        for (uint32_t i = 0; i < b->count; i++)
            if (!b->images[i].status)
                crc = p ? hapi_crc32c(crc, b->out[t] + i * p->row_bytes[t], p->row_bytes[t])
                        : hapi_crc32c(crc, b->images[i].data, b->images[i].bytes);
    return crc;
}

void hapi_worker_run(struct hapi_job *job, int worker)
{
    struct hapi_batch *b = (struct hapi_batch *)((char *)job - offsetof(struct hapi_batch, job));
    struct hapi_prefix *p = b->service->prefix;

    if (p) {
        int64_t ns[HAPI_STAGE_TIMES] = {0};
        outputs_place(b);
        b->status =
            hapi_stage_images(b->rt->stages[worker], p->plans[worker], &p->transform, b->images, b->count,
                              (void *const *)b->out, p->micro_batch, p->wire_dtype, ns, NULL);
        b->ns[HAPI_NS_DECODE] = ns[HAPI_STAGE_DECODE];
        b->ns[HAPI_NS_COMPUTE] = ns[HAPI_STAGE_COMPUTE];
        b->ns[HAPI_NS_CONVERT] = ns[HAPI_STAGE_CONVERT];
    }
    if (b->service->req.flags & HAPI_REQ_CHECKSUM && !b->status)
        b->crc32c = payload_crc(b);
}
