/* What is left to compute on this tier before a batch is whole. */
#include <stdlib.h>
#include <string.h>

#include "clock.h"
#include "convert.h"
#include "loader.h"

int suffix_open(struct hapi_loader *l, struct hapi_err *err)
{
    l->stages = calloc((size_t)l->threads, sizeof *l->stages);
    if (!l->stages)
        return hapi_err_set(err, HAPI_ENOMEM, 0, "no memory for %d compute threads", l->threads);
    for (int i = 0; i < l->threads; i++) {
        int rc = hapi_stage_new(&l->stages[i], err);
        if (rc)
            return rc;
    }
    return 0;
}

void suffix_close(struct hapi_loader *l)
{
    for (int i = 0; l->stages && i < l->threads; i++)
        hapi_stage_free(l->stages[i]);
    free(l->stages);
}

bool suffix_checks(const struct request *r)
{
    return r->node->l->o.checksum && r->route->cut && !r->route->plans && !r->route->direct;
}

/* n samples that were delivered, one after the other. */
static int rows_convert(const struct route *w, uint8_t *to, const uint8_t *from, uint32_t n, uint32_t *crc)
{
    if (w->wire == HAPI_I8)
        return hapi_i8_unpack((float *)to, from, &w->form, n, crc);
    return crc ? hapi_convert_crc32c(to, HAPI_F32, from, w->wire, n * w->elements, HAPI_CRC_SRC, crc)
               : hapi_convert(to, HAPI_F32, from, w->wire, n * w->elements);
}

/* The whole part: its checksum goes through all its samples. Those that were not delivered are left out of
 * that, and of the conversion: what lies in their place may be no rows. */
static int part_convert(const struct chunk *c, uint8_t *to)
{
    const struct request *r = c->request;
    const struct hapi_loader *l = r->node->l;
    const struct route *w = r->route;
    const uint8_t *from = r->slot + c->first * w->wire_row;
    uint32_t crc = 0;
    int rc = 0;

    for (uint32_t i = 0, n; i < c->count && !rc; i += n) {
        for (n = 1; i + n < c->count && !r->images[c->first + i + n].status; n++)
            continue;
        if (r->images[c->first + i].status)
            n = 1;
        else
            rc = rows_convert(w, to + i * l->row_bytes, from + i * w->wire_row, n,
                              l->o.checksum ? &crc : NULL);
    }
    return rc || !l->o.checksum ? rc : crc == c->crc32c ? 0 : HAPI_ECORRUPT;
}

static bool chunk_run(struct hapi_job *job, int worker)
{
    struct chunk *c = (struct chunk *)job;
    struct request *r = c->request;
    struct hapi_loader *l = r->node->l;
    uint8_t *to = r->batch->features + r->pos[c->first] * l->row_bytes; /* they are consecutive */
    void *const rows[1] = {to};
    struct hapi_stage_out out = {.out = rows, .rows = c->count, .dtype = HAPI_F32};
    struct hapi_image *images = r->images + c->first;
    const struct route *w = r->route;

    c->worker = worker;
    c->began_ns = hapi_clock_ns();
    if (!w->cut)
        c->status = hapi_stage_images(l->stages[worker], w->plans[worker], &l->transform, images, c->count,
                                      &out, c->ns, NULL);
    else if (w->plans)
        c->status = hapi_stage_rows(l->stages[worker], w->plans[worker], r->slot + c->first * w->wire_row,
                                    w->wire, images, c->count, &out, c->ns, NULL);
    else
        c->status = part_convert(c, to);
    c->ended_ns = hapi_clock_ns();
    return true;
}

/* What came is not what was sent: none of its samples counts, and the node is asked anew. */
static void chunk_refuse(struct request *r, int code)
{
    if (r->lost)
        return;
    r->lost = r->terminal; /* else the loss of the connection makes it so */
    node_break(r->node, code,
               code == HAPI_EPROTO ? "a scale of int8 features is out of its range"
                                   : "the checksum of a micro-batch differs");
}

static void chunk_done(struct hapi_job *job)
{
    struct chunk *c = (struct chunk *)job;
    struct request *r = c->request;
    struct hapi_loader *l = r->node->l;

    r->jobs--;
    if (r->route->cut && (c->status == HAPI_ECORRUPT || c->status == HAPI_EPROTO)) {
        chunk_refuse(r, c->status);
    } else if (c->status) {
        struct hapi_err err = {0};
        hapi_err_set(&err, c->status, 0, "this tier cannot compute the features: %s",
                     hapi_err_meaning(c->status));
        loader_fail(l, &err);
    } else {
        observe_chunk(c);
        fetch_samples_done(r, c->first, c->count, r->images + c->first);
    }
    fetch_request_settle(r);
}

static void chunk_submit(struct request *r, uint32_t first, uint32_t count)
{
    struct chunk *c = &r->chunks[first];

    *c = (struct chunk){
        .job = {.run = chunk_run, .done = chunk_done},
        .request = r,
        .first = first,
        .count = count,
        .crc32c = r->record->crc32c,
    };
    r->jobs++;
    int rc = hapi_pool_submit(r->node->l->pool, &c->job);
    if (rc) { /* cannot be: the queues are as deep as all requests have chunks */
        c->status = rc;
        chunk_done(&c->job);
    }
}

void suffix_flush(struct request *r)
{
    if (r->waiting)
        chunk_submit(r, r->waits_at, r->waiting);
    r->waiting = 0;
}

/* The rest of the network runs for a chunk of samples, or takes as long for fewer: they wait for their chunk
 * to be whole, or for the request's end. */
static void rest_submit(struct request *r, uint32_t first, uint32_t count)
{
    uint32_t chunk = r->route->chunk;

    if (first != r->waits_at + r->waiting) /* parts need not come in order */
        suffix_flush(r);
    if (!r->waiting)
        r->waits_at = first;
    for (r->waiting += count; r->waiting >= chunk; r->waits_at += chunk, r->waiting -= chunk)
        chunk_submit(r, r->waits_at, chunk);
}

void suffix_submit(struct request *r, uint32_t first, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        const struct hapi_record_sample *s = &r->record->samples[i];
        r->images[first + i] = (struct hapi_image){
            .data = r->slot + s->offset,
            .bytes = s->bytes,
            .status = s->status,
        };
    }
    if (r->route->plans)
        rest_submit(r, first, count);
    else if (suffix_checks(r))
        chunk_submit(r, first, count);
    else
        for (uint32_t at = 0, n; at < count; at += n) {
            n = count - at < r->route->chunk ? count - at : r->route->chunk;
            chunk_submit(r, first + at, n);
        }
}
