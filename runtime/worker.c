#include "clock.h"
#include "convert.h"
#include "runtime.h"

/* A NIC takes features from where a GPU leaves them, unless the CPU wants to see them, too. */
static bool is_direct(const struct hapi_batch *b)
{
    return b->plan && b->device_area && b->service->session->transport == HAPI_TRANSPORT_VERBS &&
           !(b->service->req.flags & HAPI_REQ_CHECKSUM);
}

/* Where each tensor's rows begin: the plan may write all its rows there, padding included. */
static void outputs_place(struct hapi_batch *b)
{
    const struct hapi_prefix *p = b->service->prefix;
    uint8_t *at = is_direct(b) ? b->device_area : b->send_area;

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

/* Of what a device has computed: window by window over the samples that are delivered. */
static uint32_t features_crc(const struct hapi_batch *b)
{
    const struct hapi_prefix *p = b->service->prefix;
    uint32_t crc = 0;

    for (uint32_t t = 0; t < p->n_tensors; t++)
        for (uint32_t i = 0; i < b->count; i++)
            if (!b->images[i].status)
                crc = hapi_crc32c(crc, b->out[t] + i * p->row_bytes[t], p->row_bytes[t]);
    return crc;
}

/* On a thread of the device's driver. */
static void device_done(void *arg)
{
    struct hapi_batch *b = arg;

    b->ns[HAPI_NS_COMPUTE] = hapi_clock_ns() - b->started_ns - b->ns[HAPI_NS_DECODE];
    b->computed = true;
    hapi_pool_over(b->rt->pool, &b->job);
}

static struct hapi_stage_out stage_out(const struct hapi_batch *b)
{
    const struct hapi_prefix *p = b->service->prefix;

    return (struct hapi_stage_out){
        .out = (void *const *)b->out, .rows = p->micro_batch, .dtype = p->wire_dtype};
}

/* Decodes, and starts the plan: then the batch is the device's (false). true: it could not be started. */
static bool prefix_start(struct hapi_batch *b, int worker)
{
    struct hapi_prefix *p = b->service->prefix;
    struct hapi_stage_out out = stage_out(b);

    outputs_place(b);
    b->started_ns = hapi_clock_ns();
    int rc = hapi_stage_start(b->rt->stages[worker], b->plan, &p->transform, b->images, b->count, &out,
                              &b->ns[HAPI_NS_DECODE], device_done, b, NULL);
    if (!rc)
        return false;
    b->status = rc;
    return true;
}

static void prefix_run(struct hapi_batch *b, int worker, uint32_t *crc)
{
    struct hapi_prefix *p = b->service->prefix;
    int64_t ns[HAPI_STAGE_TIMES] = {0};
    struct hapi_stage_out out = stage_out(b);

    out.crc32c = crc;
    outputs_place(b);
    b->status = hapi_stage_images(b->rt->stages[worker], p->plans[worker], &p->transform, b->images, b->count,
                                  &out, ns, NULL);
    b->ns[HAPI_NS_DECODE] = ns[HAPI_STAGE_DECODE];
    b->ns[HAPI_NS_COMPUTE] = ns[HAPI_STAGE_COMPUTE];
    b->ns[HAPI_NS_CONVERT] = ns[HAPI_STAGE_CONVERT];
}

bool hapi_worker_run(struct hapi_job *job, int worker)
{
    struct hapi_batch *b = (struct hapi_batch *)((char *)job - offsetof(struct hapi_batch, job));
    bool check = b->service->req.flags & HAPI_REQ_CHECKSUM;

    if (!b->computed)
        b->wait_ns = hapi_clock_ns() - b->since_ns;
    if (b->plan)
        return prefix_start(b, worker);
    b->crc32c = 0; /* window by window over the samples that are delivered, in order */
    if (b->computed)
        b->crc32c = features_crc(b);
    else if (b->service->prefix)
        prefix_run(b, worker, check ? &b->crc32c : NULL);
    else if (check)
        b->crc32c = objects_crc(b);
    return true;
}
