/* The dataset of a profile: from the nodes, or from a folder here. */
#include <stdlib.h>
#include <string.h>

#include "clock.h"
#include "order.h"
#include "profile_run.h"

/* ------------------------------------------------------------------ a folder here */

struct reading {
    struct hapi_read read;
    uint32_t *left;
};

static void read_done(struct hapi_read *r)
{
    --*((struct reading *)r->user)->left;
}

static const struct hapi_object_info *object_of(const struct hapi_dataset *d, uint64_t sample)
{
    uint32_t lo = 0, hi = d->n_objects;

    while (hi - lo > 1) {
        uint32_t mid = lo + (hi - lo) / 2;
        *(d->objects[mid].first_sample <= sample ? &lo : &hi) = mid;
    }
    return &d->objects[lo];
}

/* n images at once, as a node reads a micro-batch; into image_bytes, one after the other. */
static int images_read(struct profile_run *r, uint32_t n, int64_t *ns, struct hapi_err *err)
{
    struct reading reads[PROFILE_IMAGES];
    size_t room = hapi_read_capacity(r->set->max_sample_bytes);
    uint32_t left = 0;
    int64_t since = hapi_clock_ns();
    int rc = 0;

    for (uint32_t i = 0; i < n && !rc; i++) {
        uint64_t sample = r->order[(i + r->rounds * n) % r->n_samples];
        const struct hapi_object_info *o = object_of(r->set, sample);
        reads[i].left = &left;
        reads[i].read = (struct hapi_read){.dataset = r->set,
                                           .object = (uint32_t)(o - r->set->objects),
                                           .offset = r->set->samples[sample].offset,
                                           .bytes = r->set->samples[sample].bytes,
                                           .buf = r->image_bytes + i * ((room + 4095) & ~(size_t)4095),
                                           .capacity = room,
                                           .done = read_done,
                                           .user = &reads[i]};
        rc = hapi_store_read(r->store, &reads[i].read);
        left += !rc;
    }
    while (left && !hapi_loop_run_once(r->loop, HAPI_NS_PER_S, err))
        continue;
    *ns = hapi_clock_ns() - since;
    for (uint32_t i = 0; i < n && !rc; i++) {
        rc = reads[i].read.status;
        r->images[i] = (struct hapi_image){.data = reads[i].read.data, .bytes = reads[i].read.bytes};
    }
    return rc ? hapi_err_set(err, rc, 0, "cannot read samples of %s: %s", r->set->name, hapi_err_meaning(rc))
              : 0;
}

int profile_read(struct profile_run *r, struct hapi_err *err)
{
    int64_t ns;
    int rc = images_read(r, r->n_images, &ns, err);

    if (!rc)
        series_add(&r->read, 1e-9 * (double)ns / r->n_images);
    return rc;
}

static int folder_open(struct profile_run *r, struct hapi_err *err)
{
    const struct profile_options *o = r->o;
    int rc = hapi_store_open(&r->store, o->data, NULL, err);

    rc = rc ? rc : hapi_store_attach(r->store, r->loop, err);
    if (rc)
        return rc;
    if (!o->dataset && hapi_store_count(r->store) != 1)
        return hapi_err_set(err, HAPI_EINVAL, 0, "%s has %u datasets: give --dataset", o->data,
                            hapi_store_count(r->store));
    r->set = o->dataset ? hapi_store_find(r->store, o->dataset) : hapi_store_at(r->store, 0);
    if (!r->set || !r->set->n_samples || r->set->n_samples > UINT32_MAX)
        return hapi_err_set(err, HAPI_ENOENT, 0, "%s has no dataset `%.200s` with samples", o->data,
                            r->set ? r->set->name : o->dataset);
    r->n_samples = r->set->n_samples;
    r->mean_bytes = (double)r->set->bytes / (double)r->n_samples;
    r->n_classes = r->set->n_classes;
    return 0;
}

/* ------------------------------------------------------------------ of the nodes */

static void catalog_sums(struct profile_run *r)
{
    const struct hapi_catalog *c = &r->catalog;
    double bytes = 0;

    for (uint32_t i = 0; i < c->n_objects; i++)
        for (uint32_t k = 0; k < c->objects[i].n_samples; k++)
            bytes += c->objects[i].sample_bytes[k];
    r->n_samples = c->n_samples;
    r->mean_bytes = bytes / c->n_samples;
    r->n_classes = c->n_classes;
}

/* Copies of raw objects: what travels without pushdown. */
static int images_fetch(struct profile_run *r, struct hapi_err *err)
{
    struct probe_ask ask = {.n = r->n_images};
    struct probe_answer *a = r->answers;
    size_t room = (r->catalog.max_sample_bytes + 63) & ~(size_t)63;
    int rc = probe_start(r->probes[0], &ask, a, err);

    rc = rc ? rc : probe_wait(r->probes[0], err);
    if (!rc && a->status)
        rc = hapi_err_set(err, a->status, 0, "node %s: %.300s", r->probes[0]->name, a->why);
    uint32_t n = 0;
    for (uint32_t i = 0; i < r->n_images && !rc; i++) {
        if (a->images[i].status)
            continue;
        memcpy(r->image_bytes + n * room, a->images[i].data, a->images[i].bytes);
        r->images[n] = (struct hapi_image){.data = r->image_bytes + n * room, .bytes = a->images[i].bytes};
        n++;
    }
    r->n_images = n;
    return rc || n ? rc : hapi_err_set(err, HAPI_ENOENT, 0, "no sample of %s can be read", r->o->dataset);
}

int profile_data_open(struct profile_run *r, struct hapi_err *err)
{
    int64_t ns;
    int rc = hapi_loop_open(&r->loop, 256, err);

    rc = rc ? rc : r->o->nodes ? profile_nodes_open(r, err) : folder_open(r, err);
    if (rc)
        return rc;
    if (r->o->nodes)
        catalog_sums(r);
    size_t most = r->o->nodes ? r->catalog.max_sample_bytes : hapi_read_capacity(r->set->max_sample_bytes);
    r->order = malloc(r->n_samples * sizeof *r->order);
    r->n_images = r->n_samples < PROFILE_IMAGES ? (uint32_t)r->n_samples : PROFILE_IMAGES;
    if (r->o->nodes && r->n_images > (4u << 20) / (most + 16384)) /* in one request's memory */
        r->n_images = most < 4u << 20 ? (uint32_t)((4u << 20) / (most + 16384)) : 1;
    r->image_bytes = aligned_alloc(4096, PROFILE_IMAGES * ((most + 4096) & ~(size_t)4095));
    if (!r->order || !r->image_bytes)
        return hapi_err_set(err, HAPI_ENOMEM, 0, "no memory for the dataset's order");
    hapi_order_shuffle(r->order, (uint32_t)r->n_samples, 0, 0);
    if (r->store)
        return images_read(r, r->n_images, &ns, err);
    r->job.order = r->order;
    for (uint32_t i = 0; i < r->n_nodes && !rc; i++) {
        rc = probe_ready(r->probes[i], err);
        rc = rc ? profile_nodes_again(r, rc, err) : 0;
    }
    return rc ? rc : images_fetch(r, err);
}

void profile_data_close(struct profile_run *r)
{
    profile_nodes_close(r);
    hapi_store_close(r->store);
    hapi_loop_close(r->loop);
    free(r->order);
    free(r->image_bytes);
}
