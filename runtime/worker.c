#include "clock.h"
#include "convert.h"
#include "runtime.h"

/* Unless the CPU wants to see them, too. */
bool hapi_worker_direct(const struct hapi_batch *b)
{
    return b->service->prefix->starts && b->n_computed && b->device_area &&
           b->service->session->transport == HAPI_TRANSPORT_VERBS &&
           !(b->service->req.flags & HAPI_REQ_CHECKSUM);
}

/* Where each tensor's rows begin: the plan may write all its rows there, padding included. */
static void outputs_place(struct hapi_batch *b)
{
    const struct hapi_prefix *p = b->service->prefix;
    uint8_t *at = hapi_worker_direct(b) ? b->device_area : b->send_area;

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

/* Of what a device has computed, or was kept: window by window over the samples that are delivered. */
static uint32_t features_crc(const struct hapi_batch *b)
{
    const struct hapi_prefix *p = b->service->prefix;
    uint32_t crc = 0;

    for (uint32_t t = 0; t < p->n_tensors; t++)
        for (uint32_t i = 0; i < b->count; i++)
            if (!b->images[i].status)
                crc = hapi_crc32c(crc, hapi_batch_row(b, i, t), p->row_bytes[t]);
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

/* Those that are computed, one after the other. */
static struct hapi_image *images_pack(struct hapi_batch *b)
{
    if (b->n_computed == b->count)
        return b->images;
    for (uint32_t i = 0; i < b->count; i++)
        if (b->rows[i].source == HAPI_ROW_COMPUTED)
            b->packed[b->rows[i].nth] = b->images[i];
    return b->packed;
}

void hapi_worker_unpack(struct hapi_batch *b)
{
    for (uint32_t i = 0; b->n_computed != b->count && i < b->count; i++)
        if (b->rows[i].source == HAPI_ROW_COMPUTED)
            b->images[i].status = b->packed[b->rows[i].nth].status;
}

/* Decodes, and starts the plan: then the batch is the device's (false). true: it could not be started. */
static bool prefix_start(struct hapi_batch *b, int worker)
{
    struct hapi_prefix *p = b->service->prefix;
    struct hapi_stage_out out = stage_out(b);

    outputs_place(b);
    b->started_ns = hapi_clock_ns();
    int rc = hapi_stage_start(b->rt->stages[worker], b->plan, &p->transform, images_pack(b), b->n_computed,
                              &out, &b->ns[HAPI_NS_DECODE], device_done, b, NULL);
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
    b->status = hapi_stage_images(b->rt->stages[worker], p->plans[worker], &p->transform, images_pack(b),
                                  b->n_computed, &out, ns, NULL);
    hapi_worker_unpack(b);
    b->ns[HAPI_NS_DECODE] = ns[HAPI_STAGE_DECODE];
    b->ns[HAPI_NS_COMPUTE] = ns[HAPI_STAGE_COMPUTE];
    b->ns[HAPI_NS_CONVERT] = ns[HAPI_STAGE_CONVERT];
}

bool hapi_worker_run(struct hapi_job *job, int worker)
{
    struct hapi_batch *b = (struct hapi_batch *)((char *)job - offsetof(struct hapi_batch, job));
    bool check = b->service->req.flags & HAPI_REQ_CHECKSUM;
    bool in_passing = b->n_computed == b->count; /* the network's last step checks what it writes */

    if (!b->computed)
        b->wait_ns = hapi_clock_ns() - b->since_ns;
    if (b->plan)
        return prefix_start(b, worker);
    b->crc32c = 0; /* window by window over the samples that are delivered, in order */
    if (!b->service->prefix) {
        b->crc32c = check ? objects_crc(b) : 0;
        return true;
    }
    if (!b->computed)
        prefix_run(b, worker, check && in_passing ? &b->crc32c : NULL);
    if (check && (b->computed || !in_passing) && !b->status)
        b->crc32c = features_crc(b);
    if (b->n_keeps && !b->status)
        hapi_remember_copy(b);
    return true;
}
