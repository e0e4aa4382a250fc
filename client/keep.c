/*
 * Features that this tier keeps, so that later epochs and jobs ask for nothing (store/kept.h).
 *
 *     a sample is needed ──┬─ in memory: copied into the batch
 *                          ├─ on disk: read while requests are under way, then copied into the batch
 *                          └─ neither: asked for, and what comes is kept: copied to memory, or written
 *
 * A row is the features of a sample, then its class as u32.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "clock.h"
#include "convert.h"
#include "loader.h"

enum { IOS = 64 };   /* rows read and written at once */
#define GUESS_S 1e-3 /* that fetching a sample takes, while no node has shown anything */

/* Names all that a row depends on. Bits differ between numeric classes and, unless it is f32, between wires.
 */
static void key_make(const struct hapi_loader *l, uint8_t key[HAPI_HASH_SIZE])
{
    char model[2 * HAPI_HASH_SIZE + 1];
    const char *wire = l->o.profile ? l->o.accuracy ? l->o.accuracy : "f32" : l->o.wire ? l->o.wire : "f32";
    const char *here = hapi_numeric_class(l->o.backend);
    const char *text[] = {model,           l->freeze->id, l->transform_text,
                          l->o.dtype,      wire,          l->pushes ? l->numeric_class : "",
                          here ? here : ""};
    uint8_t sums[sizeof text / sizeof *text][HAPI_HASH_SIZE];

    hapi_sha256_text(model, hapi_model_hash(l->model));
    for (size_t i = 0; i < sizeof text / sizeof *text; i++)
        hapi_sha256(sums[i], text[i], strlen(text[i]));
    hapi_sha256(key, sums, sizeof sums);
}

/* A dataset has a folder of its own: the loaders of a job would else lock each other out. */
static int folder_of(const struct hapi_loader *l, char *path, size_t size, struct hapi_err *err)
{
    uint8_t sum[HAPI_HASH_SIZE];
    char name[2 * HAPI_HASH_SIZE + 1];

    if (mkdir(l->o.keep_dir, 0700) && errno != EEXIST)
        return hapi_err_errno(err, errno, "cannot make the folder %s", l->o.keep_dir);
    hapi_sha256(sum, l->o.dataset, strlen(l->o.dataset));
    hapi_sha256_text(name, sum);
    if ((size_t)snprintf(path, size, "%s/%.16s", l->o.keep_dir, name) >= size)
        return hapi_err_set(err, HAPI_EINVAL, 0, "keep_dir: the path is too long");
    return 0;
}

int keep_options(const struct hapi_loader *l, struct hapi_err *err)
{
    if (l->o.keep_disk && (!l->o.keep_dir || !*l->o.keep_dir))
        return hapi_err_set(err, HAPI_EINVAL, 0,
                            "features are kept on disk in a folder: give one (keep_dir)");
    if (l->row_bytes + sizeof(uint32_t) > UINT32_MAX / 2)
        return hapi_err_set(err, HAPI_ETOOBIG, 0, "features of %zu bytes cannot be kept", l->row_bytes);
    return 0;
}

/* Bytes that so many rows take: more is never needed. */
static uint64_t memory_for(uint64_t rows, uint64_t bytes)
{
    uint64_t pitch = (bytes + HAPI_FEATURE_ALIGN - 1) & ~(uint64_t)(HAPI_FEATURE_ALIGN - 1);
    uint64_t piece = pitch > HAPI_FEATURE_PIECE ? pitch : HAPI_FEATURE_PIECE;

    return (rows / (piece / pitch) + 1) * piece;
}

int keep_open(struct hapi_loader *l, struct hapi_err *err)
{
    char folder[4096] = "";
    uint8_t key[HAPI_HASH_SIZE];
    uint32_t row = (uint32_t)(l->row_bytes + sizeof(uint32_t));
    struct hapi_features_options opt = {
        .row_max = row, .dir = l->o.keep_disk ? folder : NULL, .disk_bytes = l->o.keep_disk};
    struct keep *k;

    if (!l->o.keep_memory && !l->o.keep_disk)
        return 0;
    k = l->keep = calloc(1, sizeof *k);
    if (!k)
        return hapi_err_set(err, HAPI_ENOMEM, 0, "no memory to keep features");
    int rc = opt.dir ? folder_of(l, folder, sizeof folder, err) : 0;
    if (!rc && l->o.keep_memory) {
        uint64_t all = memory_for(l->catalog.n_samples, row);
        opt.memory_bytes =
            (all < l->o.keep_memory ? all : l->o.keep_memory) & ~(uint64_t)(HAPI_FEATURE_ALIGN - 1);
        rc = hapi_slab_init(&k->memory, opt.memory_bytes, err);
        opt.memory = rc ? NULL : hapi_slab_take(&k->memory, opt.memory_bytes, HAPI_FEATURE_ALIGN);
    }
    if (!rc)
        rc = hapi_features_open(&k->features, l->loop, &opt, err);
    if (rc)
        return rc;
    key_make(l, key);
    k->set = hapi_feature_set_get(k->features, key, row);
    size_t stride = k->set ? hapi_feature_stride(k->set) : 0;
    k->buffers = k->set ? aligned_alloc(HAPI_FEATURE_ALIGN, IOS * stride) : NULL;
    k->ios = calloc(IOS, sizeof *k->ios);
    if (!k->set || !k->buffers || !k->ios)
        return hapi_err_set(err, HAPI_ENOMEM, 0, "no memory to keep features");
    for (int i = 0; i < IOS; i++) {
        k->ios[i] = (struct keep_io){.l = l, .buf = k->buffers + (size_t)i * stride, .next = k->free};
        k->free = &k->ios[i];
    }
    return 0;
}

bool keep_busy(const struct hapi_loader *l)
{
    return l->keep && l->keep->busy;
}

void keep_reap(struct hapi_loader *l)
{
    if (l->keep && l->keep->features)
        hapi_features_reap(l->keep->features);
}

void keep_close(struct hapi_loader *l)
{
    struct keep *k = l->keep;

    if (!k)
        return;
    if (k->set)
        hapi_feature_set_put(k->set);
    hapi_features_close(k->features);
    hapi_slab_fini(&k->memory);
    free(k->buffers);
    free(k->ios);
    free(k);
    l->keep = NULL;
}

/* ------------------------------------------------------------------ what is there */

static const struct hapi_catalog_object *object_of(const struct hapi_loader *l, const struct batch *b,
                                                   uint32_t at, uint32_t *index)
{
    uint32_t sample = (uint32_t)b->samples[at];
    const struct hapi_catalog_object *o = &l->catalog.objects[l->catalog.sample_object[sample]];

    *index = sample - o->first_sample;
    return o;
}

bool keep_has(const struct hapi_loader *l, const struct batch *b, uint32_t at)
{
    uint32_t index;

    if (!l->keep || !l->keep->set)
        return false;
    const struct hapi_catalog_object *o = object_of(l, b, at, &index);
    return hapi_feature_has(l->keep->set, o->digest, index);
}

/* Its class is one of this job's: the row was written when the dataset may have had others. */
static bool row_copy(struct hapi_loader *l, struct batch *b, uint32_t at, const uint8_t *row)
{
    uint32_t label;

    memcpy(&label, row + l->row_bytes, sizeof label);
    if (label >= l->catalog.n_classes)
        return false;
    memcpy(b->features + at * l->row_bytes, row, l->row_bytes);
    b->labels[at] = label;
    return true;
}

static struct keep_io *io_take(struct keep *k)
{
    struct keep_io *io = k->free;

    if (io) {
        k->free = io->next;
        k->busy++;
    }
    return io;
}

static void io_give(struct keep *k, struct keep_io *io)
{
    io->next = k->free;
    k->free = io;
    k->busy--;
}

static void read_done(struct hapi_feature_io *f)
{
    struct keep_io *io = (struct keep_io *)((char *)f - offsetof(struct keep_io, io));
    struct hapi_loader *l = io->l;
    struct batch *b = io->batch;
    uint32_t at = io->at;
    bool good = !f->status && row_copy(l, b, at, io->buf);

    if (!good)
        hapi_feature_drop(l->keep->set, &io->place);
    hapi_feature_release(l->keep->set, &io->place);
    io_give(l->keep, io);
    fetch_kept(l, b, at, good);
    fetch_pump(l);
}

enum keep_state keep_take(struct hapi_loader *l, struct batch *b, uint32_t at)
{
    struct keep *k = l->keep;
    struct hapi_feature place;
    uint32_t index;

    if (!k || !k->set)
        return KEEP_NOT;
    const struct hapi_catalog_object *o = object_of(l, b, at, &index);
    if (!k->free && hapi_feature_has(k->set, o->digest, index))
        return KEEP_LATER; /* it may be in memory: what is read now is soon over */
    if (!hapi_feature_find(k->set, o->digest, index, &place))
        return KEEP_NOT;
    if (!place.memory) {
        struct keep_io *io = io_take(k);
        io->io.done = read_done;
        io->batch = b;
        io->at = at;
        io->place = place;
        b->done[at] = 2;
        hapi_feature_read(k->set, &place, io->buf, &io->io);
        return KEEP_TAKEN;
    }
    bool good = row_copy(l, b, at, place.memory);
    if (!good)
        hapi_feature_drop(k->set, &place);
    hapi_feature_release(k->set, &place);
    if (!good)
        return KEEP_NOT;
    fetch_kept(l, b, at, true);
    return KEEP_TAKEN;
}

/* ------------------------------------------------------------------ what comes */

static void write_done(struct hapi_feature_io *f)
{
    struct keep_io *io = (struct keep_io *)((char *)f - offsetof(struct keep_io, io));

    io_give(io->l->keep, io);
    fetch_pump(io->l);
}

static void row_make(const struct hapi_loader *l, const struct batch *b, uint32_t at, uint8_t *row)
{
    memcpy(row, b->features + at * l->row_bytes, l->row_bytes);
    memcpy(row + l->row_bytes, &b->labels[at], sizeof b->labels[at]);
}

void keep_put(struct request *r, uint32_t at)
{
    struct hapi_loader *l = r->node->l;
    struct keep *k = l->keep;
    struct batch *b = r->batch;
    struct hapi_feature place;
    uint32_t index;

    if (!k || !k->set)
        return;
    const struct hapi_catalog_object *o = object_of(l, b, at, &index);
    double s = r->node->shown > 0 ? r->node->shown_s / r->node->shown : GUESS_S;
    if (!hapi_feature_reserve(k->set, o->digest, index, s, k->free != NULL, &place))
        return;
    if (place.memory) {
        row_make(l, b, at, place.memory);
        hapi_feature_keep(k->set, &place);
        return;
    }
    struct keep_io *io = io_take(k);
    row_make(l, b, at, io->buf);
    io->io.done = write_done;
    hapi_feature_write(k->set, &place, io->buf, hapi_crc32c(0, io->buf, l->row_bytes + sizeof(uint32_t)),
                       &io->io);
}
