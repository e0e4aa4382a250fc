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

/* Raw objects are checked as they were read: nothing here touches them else. */
static uint32_t objects_crc(const struct hapi_batch *b)
{
    uint32_t crc = 0;

    for (uint32_t i = 0; i < b->count; i++)
        if (!b->images[i].status)
            crc = hapi_crc32c(crc, b->images[i].data, b->images[i].bytes);
    return crc;
}

static int prefix_run(struct hapi_batch *b, int worker, uint32_t *crc)
{
    struct hapi_prefix *p = b->service->prefix;
    int64_t ns[HAPI_STAGE_TIMES] = {0};
    struct hapi_stage_out out = {
        .out = (void *const *)b->out,
        .rows = p->micro_batch,
        .dtype = p->wire_dtype,
        .crc32c = crc,
    };

    outputs_place(b);
    int rc = hapi_stage_images(b->rt->stages[worker], p->plans[worker], &p->transform, b->images, b->count,
                               &out, ns, NULL);
    b->ns[HAPI_NS_DECODE] = ns[HAPI_STAGE_DECODE];
    b->ns[HAPI_NS_COMPUTE] = ns[HAPI_STAGE_COMPUTE];
    b->ns[HAPI_NS_CONVERT] = ns[HAPI_STAGE_CONVERT];
    return rc;
}

void hapi_worker_run(struct hapi_job *job, int worker)
{
    struct hapi_batch *b = (struct hapi_batch *)((char *)job - offsetof(struct hapi_batch, job));
    bool check = b->service->req.flags & HAPI_REQ_CHECKSUM;

    b->crc32c = 0; /* window by window over the samples that are delivered, in order */
    if (b->service->prefix)
        b->status = prefix_run(b, worker, check ? &b->crc32c : NULL);
    else if (check)
        b->crc32c = objects_crc(b);
}
