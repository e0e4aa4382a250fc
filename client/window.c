/* Registered memory: what nodes may write to, and the requests we send from. */
#include <stdlib.h>
#include <string.h>

#include "loader.h"

static size_t page(size_t n)
{
    return (n + 4095) & ~(size_t)4095;
}

static int batches_take(struct hapi_loader *l)
{
    l->batches = calloc(l->o.depth, sizeof *l->batches);
    if (!l->batches)
        return HAPI_ENOMEM;
    for (uint32_t i = 0; i < l->o.depth; i++) {
        struct batch *b = &l->batches[i];
        b->features = hapi_slab_take(&l->exposed, l->o.batch * l->row_bytes, 4096);
        b->labels = calloc(l->o.batch, sizeof *b->labels);
        b->samples = calloc(l->o.batch, sizeof *b->samples);
        b->done = calloc(l->o.batch, 1);
        b->tried = calloc(l->o.batch, sizeof *b->tried);
        b->failed = calloc(l->o.batch, sizeof *b->failed);
        if (!b->features || !b->labels || !b->samples || !b->done || !b->tried || !b->failed)
            return HAPI_ENOMEM;
    }
    return 0;
}

static int requests_take(struct hapi_loader *l)
{
    for (uint32_t i = 0; i < l->n_nodes; i++)
        for (uint32_t k = 0; k < NODE_REQUESTS; k++) {
            struct request *r = &l->nodes[i].requests[k];
            r->node = &l->nodes[i];
            r->index = (uint16_t)k;
            r->message = hapi_slab_take(&l->local, HAPI_REQUEST_MAX, 4096);
            r->records = hapi_slab_take(&l->exposed, REQUEST_SAMPLES * l->record_slot, 4096);
            r->slot = !l->slot_bytes ? NULL : hapi_slab_take(&l->exposed, l->slot_bytes, 4096);
            r->record = aligned_alloc(64, l->record_slot);
            if (!r->message || !r->records || !r->record || (l->slot_bytes && !r->slot))
                return HAPI_ENOMEM;
        }
    return 0;
}

int window_open(struct hapi_loader *l, struct hapi_err *err)
{
    size_t requests = (size_t)l->n_nodes * NODE_REQUESTS, batch = page(l->o.batch * l->row_bytes);

    l->record_slot = (hapi_record_size(REQUEST_SAMPLES) + 63) & ~(size_t)63;
    l->slot_bytes = routes_slot_bytes(l);
    size_t exposed =
        l->o.depth * batch + requests * (page(REQUEST_SAMPLES * l->record_slot) + page(l->slot_bytes));
    int rc = hapi_slab_init(&l->exposed, exposed, err);
    if (!rc)
        rc = hapi_slab_init(&l->local, requests * HAPI_REQUEST_MAX, err);
    if (rc)
        return rc;
    if (batches_take(l) || requests_take(l))
        return hapi_err_set(err, HAPI_ENOMEM, 0, "no memory for %u batches of %u samples", l->o.depth,
                            l->o.batch);
    l->next_position = l->catalog.n_samples; /* nothing to ask for before an epoch is begun */
    /* No sample is in it twice, and each is of a batch. */
    l->again = calloc((size_t)l->o.depth * l->o.batch, sizeof *l->again);
    l->order = malloc(l->catalog.n_samples * sizeof *l->order);
    return l->again && l->order ? 0
                                : hapi_err_set(err, HAPI_ENOMEM, 0, "no memory for the order of an epoch");
}

void window_close(struct hapi_loader *l)
{
    for (uint32_t i = 0; l->batches && i < l->o.depth; i++) {
        free(l->batches[i].labels);
        free(l->batches[i].samples);
        free(l->batches[i].done);
        free(l->batches[i].tried);
        free(l->batches[i].failed);
    }
    for (uint32_t i = 0; l->nodes && i < l->n_nodes; i++)
        for (uint32_t k = 0; k < NODE_REQUESTS; k++)
            free(l->nodes[i].requests[k].record);
    free(l->batches);
    free(l->again);
    free(l->order);
    hapi_slab_fini(&l->exposed);
    hapi_slab_fini(&l->local);
}
