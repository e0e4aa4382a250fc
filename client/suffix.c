/* What is left to compute on this tier before a batch is whole. */
#include <stdlib.h>
#include <string.h>

#include "convert.h"
#include "loader.h"

int suffix_open(struct hapi_loader *l, struct hapi_err *err)
{
    struct hapi_plan_spec spec = {
        .to = l->freeze->id,
        .batch = CHUNK_SAMPLES,
        .dtype = l->dtype,
        .backend = l->o.backend,
    };

    if (l->direct)
        return 0;
    l->stages = calloc((size_t)l->threads, sizeof *l->stages);
    l->plans = calloc((size_t)l->threads, sizeof *l->plans);
    if (!l->stages || !l->plans)
        return hapi_err_set(err, HAPI_ENOMEM, 0, "no memory for %d compute threads", l->threads);
    for (int i = 0; i < l->threads; i++) {
        int rc = hapi_stage_new(&l->stages[i], err);
        if (!rc && !l->pushdown)
            rc = hapi_plan_new(&l->plans[i], l->model, &spec, err);
        if (rc)
            return rc;
    }
    return 0;
}

void suffix_close(struct hapi_loader *l)
{
    for (int i = 0; l->stages && i < l->threads; i++)
        hapi_stage_free(l->stages[i]);
    for (int i = 0; l->plans && i < l->threads; i++)
        hapi_plan_free(l->plans[i]);
    free(l->stages);
    free(l->plans);
}

static void chunk_run(struct hapi_job *job, int worker)
{
    struct chunk *c = (struct chunk *)job;
    struct request *r = c->request;
    struct hapi_loader *l = r->node->l;
    uint8_t *to = r->batch->features + (r->at + c->first) * l->row_bytes;
    void *const out[1] = {to};
    int64_t ns[HAPI_STAGE_TIMES];

    if (!l->pushdown)
        c->status = hapi_stage_images(l->stages[worker], l->plans[worker], &l->transform, c->images, c->count,
                                      out, c->count, HAPI_F32, ns, NULL);
    else
        c->status =
            hapi_convert(to, HAPI_F32, r->slot + c->first * l->wire_row, l->wire, c->count * l->width);
}

static void chunk_done(struct hapi_job *job)
{
    struct chunk *c = (struct chunk *)job;
    struct request *r = c->request;
    struct hapi_loader *l = r->node->l;

    r->jobs--;
    if (c->status) {
        struct hapi_err err = {0};
        hapi_err_set(&err, c->status, 0, "this tier cannot compute the features: %s",
                     hapi_err_meaning(c->status));
        loader_fail(l, &err);
    } else {
        fetch_samples_done(r, c->first, c->count, c->images);
    }
    fetch_request_settle(r);
}

void suffix_submit(struct request *r, uint32_t first, uint32_t count)
{
    struct hapi_loader *l = r->node->l;

    for (uint32_t at = 0, n; at < count; at += n) {
        struct chunk *c = &r->chunks[first + at];
        n = count - at < CHUNK_SAMPLES ? count - at : CHUNK_SAMPLES;
        c->job = (struct hapi_job){chunk_run, chunk_done};
        c->request = r;
        c->first = first + at;
        c->count = n;
        c->status = 0;
        for (uint32_t i = 0; i < n; i++) {
            const struct hapi_record_sample *s = &r->record->samples[at + i];
            c->images[i] = (struct hapi_image){
                .data = r->slot + s->offset,
                .bytes = s->bytes,
                .status = s->status,
            };
        }
        r->jobs++;
        int rc = hapi_pool_submit(l->pool, &c->job);
        if (rc) { /* cannot be: the queues are as deep as all requests have chunks */
            c->status = rc;
            chunk_done(&c->job);
        }
    }
}
