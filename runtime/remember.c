#include "remember.h"

#include <stdio.h>
#include <string.h>

#include "clock.h"
#include "convert.h"
#include "log.h"
#include "runtime.h"

enum { SAMPLES = 32 }; /* of a micro-batch, where not all of them are computed */
/* An object is looked at again when it was last seen to be unchanged so long ago. */
#define LOOK_NS (5 * HAPI_NS_PER_S)

static bool remembers(const struct hapi_config *c)
{
    return c->cache_memory || c->cache_disk;
}

size_t hapi_remember_bytes(const struct hapi_config *c)
{
    return (c->cache_memory + HAPI_FEATURE_ALIGN - 1) & ~(size_t)(HAPI_FEATURE_ALIGN - 1);
}

uint32_t hapi_remember_samples(const struct hapi_config *c)
{
    return remembers(c) && c->micro_batch < SAMPLES ? SAMPLES : c->micro_batch;
}

int hapi_remember_open(struct hapi_rt *rt, struct hapi_err *err)
{
    const struct hapi_config *c = &rt->cfg;
    char dir[sizeof c->cache + 16];
    struct hapi_features_options opt = {
        .memory_bytes = hapi_remember_bytes(c),
        .row_max = c->send_area & ~(uint64_t)(HAPI_FEATURE_ALIGN - 1),
        .dir = c->cache_disk ? dir : NULL,
        .disk_bytes = c->cache_disk,
    };

    if (!remembers(c))
        return 0;
    if (c->cache_memory && c->cache_memory < c->send_area)
        return hapi_err_set(err, HAPI_EINVAL, 0,
                            "--cache-memory: %llu bytes hold nothing: less than --send-area, %llu",
                            (unsigned long long)c->cache_memory, (unsigned long long)c->send_area);
    if (c->cache_disk && !*c->cache)
        return hapi_err_set(err, HAPI_EINVAL, 0, "--cache-disk needs a folder: give --cache DIR");
    if (opt.memory_bytes)
        opt.memory = hapi_slab_take(&rt->slab, opt.memory_bytes, HAPI_FEATURE_ALIGN);
    snprintf(dir, sizeof dir, "%s/features", c->cache);
    return hapi_features_open(&rt->features, rt->loop, &opt, err);
}

/* ------------------------------------------------------------------ looking */

void hapi_remember_serve(struct hapi_service *v)
{
    struct hapi_rt *rt = v->session->rt;
    uint8_t key[HAPI_HASH_SIZE];

    if (!rt->features || v->kept || !v->prefix || v->req.flags & HAPI_REQ_FRESH ||
        v->session->tenant == &rt->other_tenants || v->prefix->row_total > UINT32_MAX)
        return;
    hapi_prefix_key(v->prefix, hapi_numeric_class(rt->cfg.backend), v->session->tenant->name, key);
    v->kept = hapi_feature_set_get(rt->features, key, (uint32_t)v->prefix->row_total);
}

/* The digest by which sample i of a request is kept; NULL: it is not here, or not as the client knows it, and
 * reading it will say so. */
static const uint8_t *digest_of(const struct hapi_service *v, uint32_t i)
{
    const struct hapi_req_sample *s = &v->req.samples[i];
    const struct hapi_req_object *o = &v->req.objects[s->object];
    const struct hapi_sample_info *info = hapi_service_sample(v, i);

    if (!info || !info->bytes)
        return NULL;
    const struct hapi_object_info *here = &v->dataset->objects[v->object[s->object]];
    bool same = (!o->digest || !memcmp(o->digest, here->digest, HAPI_DIGEST_SIZE)) &&
                (!o->version.n || (o->version.n == here->version.size &&
                                   !memcmp(o->version.s, here->version.data, o->version.n)));
    return same ? here->digest : NULL;
}

bool hapi_remember_next(const struct hapi_service *v)
{
    const uint8_t *digest = v->kept && v->formed < v->req.n_samples ? digest_of(v, v->formed) : NULL;

    return digest && hapi_feature_has(v->kept, digest, v->req.samples[v->formed].index);
}

static bool row_find(struct hapi_batch *b, uint32_t i)
{
    struct hapi_service *v = b->service;
    const uint8_t *digest = v->kept ? digest_of(v, b->first + i) : NULL;

    return digest &&
           hapi_feature_find(v->kept, digest, v->req.samples[b->first + i].index, &b->rows[i].place);
}

/* The client's slots are for records of so many samples. */
static uint32_t record_samples(const struct hapi_service *v, uint32_t most)
{
    uint64_t slot = v->req.record_bytes / v->req.max_parts;

    while (most > 1 && hapi_record_size(most) > slot)
        most--;
    return most;
}

/* Row i, of a sample that was found, in a micro-batch that computes or reads `busy` ones so far. Rows from
 * disk lie at the end of the send area, those that are computed at its beginning. */
static bool row_place(struct hapi_batch *b, uint32_t i, bool may_read, size_t *top)
{
    struct hapi_batch_row *row = &b->rows[i];
    size_t stride = hapi_feature_stride(b->service->kept);
    size_t below = b->n_computed ? b->service->prefix->out_bytes : 0;

    if (row->place.memory) {
        row->source = HAPI_ROW_MEMORY;
        row->data = row->place.memory;
        return true;
    }
    if (!may_read || *top < below + stride || ((*top - stride) & ~(size_t)(HAPI_FEATURE_ALIGN - 1)) < below)
        return false;
    *top = (*top - stride) & ~(size_t)(HAPI_FEATURE_ALIGN - 1);
    row->source = HAPI_ROW_DISK;
    row->data = b->send_area + *top;
    return true;
}

uint32_t hapi_remember_form(struct hapi_batch *b, uint32_t left, uint32_t bound)
{
    struct hapi_service *v = b->service;
    uint32_t most = v->kept ? record_samples(v, hapi_remember_samples(&b->rt->cfg)) : bound, i, busy = 0;
    size_t top = b->rt->cfg.send_area;

    b->n_computed = 0;
    most = left < most ? left : most;
    for (i = 0; i < most; i++) {
        struct hapi_batch_row *row = &b->rows[i];
        row->source = HAPI_ROW_COMPUTED;
        row->keeps = false;
        if (row_find(b, i)) {
            if (!row_place(b, i, busy < bound, &top)) {
                hapi_feature_release(v->kept, &row->place);
                break;
            }
            busy += row->source == HAPI_ROW_DISK;
            continue;
        }
        if (busy == bound || (v->kept && !b->n_computed && v->prefix->out_bytes > top))
            break;
        row->nth = b->n_computed++;
        busy++;
    }
    return i;
}

void hapi_remember_trim(struct hapi_batch *b, uint32_t count)
{
    for (uint32_t i = count; i < b->count; i++)
        if (b->rows[i].source == HAPI_ROW_COMPUTED)
            b->n_computed--;
        else
            hapi_feature_release(b->service->kept, &b->rows[i].place);
}

/* ------------------------------------------------------------------ READ */

static void row_read(struct hapi_feature_io *io)
{
    struct hapi_batch_row *row = (struct hapi_batch_row *)((char *)io - offsetof(struct hapi_batch_row, io));

    hapi_batch_read_over(row->batch);
}

static void object_looked_at(struct hapi_read *r)
{
    struct hapi_batch *b = r->user;
    uint32_t i = (uint32_t)(r - b->reads);

    b->images[i].status = r->status;
    if (r->status)
        hapi_feature_drop(b->service->kept, &b->rows[i].place);
    else
        hapi_feature_looked(b->service->kept, &b->rows[i].place);
    hapi_batch_read_over(b);
}

void hapi_remember_read(struct hapi_batch *b, uint32_t i)
{
    struct hapi_service *v = b->service;
    struct hapi_batch_row *row = &b->rows[i];

    b->images[i] = (struct hapi_image){.status = 0};
    row->io.status = 0;
    if (row->source == HAPI_ROW_DISK) {
        row->io.done = row_read;
        b->reads_left++;
        hapi_feature_read(v->kept, &row->place, row->data, &row->io);
    }
    if (hapi_clock_ns() - row->place.looked_ns < LOOK_NS)
        return;
    b->reads[i] = (struct hapi_read){
        .dataset = v->dataset,
        .object = (uint32_t)v->object[v->req.samples[b->first + i].object],
        .buf = b->read_area, /* nothing is read: it is opened and looked at */
        .capacity = hapi_read_capacity(0),
        .done = object_looked_at,
        .user = b,
    };
    if (!hapi_store_read(b->rt->store, &b->reads[i]))
        b->reads_left++;
}

bool hapi_remember_redo(struct hapi_batch *b)
{
    struct hapi_feature_set *s = b->service->kept;
    bool failed = false;

    for (uint32_t i = 0; i < b->count; i++)
        failed |= b->rows[i].source == HAPI_ROW_DISK && b->rows[i].io.status;
    if (!failed)
        return false;
    b->n_computed = 0;
    for (uint32_t i = 0; i < b->count; i++) {
        struct hapi_batch_row *row = &b->rows[i];
        if (row->source == HAPI_ROW_DISK) {
            if (row->io.status)
                hapi_feature_drop(s, &row->place);
            hapi_feature_release(s, &row->place);
            row->source = HAPI_ROW_COMPUTED;
        }
        if (row->source == HAPI_ROW_COMPUTED)
            row->nth = b->n_computed++;
    }
    return true;
}

/* ------------------------------------------------------------------ around COMPUTE */

void hapi_remember_reserve(struct hapi_batch *b)
{
    struct hapi_service *v = b->service;
    const struct hapi_prefix *p = v->prefix;
    size_t stride = v->kept ? hapi_feature_stride(v->kept) : 0, staged = 0;

    b->n_keeps = 0;
    if (!v->kept || hapi_worker_direct(b)) /* the CPU does not see what a NIC takes from a GPU */
        return;
    double row_s = 1e-9 * (double)p->cost_ns * hapi_pool_threads(b->rt->pool) / (double)p->micro_batch;
    for (uint32_t i = 0; i < b->count; i++) {
        struct hapi_batch_row *row = &b->rows[i];
        const uint8_t *digest =
            row->source == HAPI_ROW_COMPUTED && !b->images[i].status ? digest_of(v, b->first + i) : NULL;
        row->keeps =
            digest && hapi_feature_reserve(v->kept, digest, v->req.samples[b->first + i].index, row_s,
                                           staged + stride <= b->rt->cfg.read_area, &row->place);
        if (!row->keeps)
            continue;
        row->data = row->place.memory ? row->place.memory : b->read_area + staged;
        staged += row->place.memory ? 0 : stride;
        b->n_keeps++;
    }
}

void hapi_remember_copy(struct hapi_batch *b)
{
    const struct hapi_prefix *p = b->service->prefix;

    for (uint32_t i = 0; i < b->count; i++) {
        struct hapi_batch_row *row = &b->rows[i];
        if (!row->keeps || b->images[i].status)
            continue;
        for (uint32_t t = 0; t < p->n_tensors; t++)
            memcpy(row->data + p->row_at[t], hapi_batch_row(b, i, t), p->row_bytes[t]);
        if (!row->place.memory)
            row->crc32c = hapi_crc32c(0, row->data, p->row_total);
    }
}

static void row_written(struct hapi_feature_io *io)
{
    struct hapi_batch_row *row = (struct hapi_batch_row *)((char *)io - offsetof(struct hapi_batch_row, io));

    hapi_batch_written(row->batch);
}

void hapi_remember_commit(struct hapi_batch *b)
{
    struct hapi_feature_set *s = b->service->kept;

    for (uint32_t i = 0; b->n_keeps && i < b->count; i++) {
        struct hapi_batch_row *row = &b->rows[i];
        if (!row->keeps)
            continue;
        row->keeps = false;
        if (b->status || b->images[i].status) {
            hapi_feature_abandon(s, &row->place);
        } else if (row->place.memory) {
            hapi_feature_keep(s, &row->place);
        } else {
            row->io.done = row_written;
            b->writes++;
            hapi_feature_write(s, &row->place, row->data, row->crc32c, &row->io);
        }
    }
    b->n_keeps = 0;
}

void hapi_remember_release(struct hapi_batch *b)
{
    for (uint32_t i = 0; i < b->count; i++)
        if (b->rows[i].source != HAPI_ROW_COMPUTED) {
            hapi_feature_release(b->service->kept, &b->rows[i].place);
            b->rt->counters.remembered += !b->images[i].status;
        }
}

void hapi_remember_errors(struct hapi_rt *rt)
{
    struct hapi_features_stats t =
        rt->features ? hapi_features_stats_get(rt->features) : (struct hapi_features_stats){0};
    char quoted[HAPI_ERR_TEXT];

    if (t.errors == rt->feature_errors)
        return;
    rt->feature_errors = t.errors;
    hapi_log(HAPI_LOG_ERROR, "features are not kept there any more", "errors=%llu why=%s",
             (unsigned long long)t.errors, hapi_log_quote(quoted, sizeof quoted, t.why.text));
}
