/* Weights in the formats that primitives asked for: reordered once, shared by plans, never moved. They lie
 * one after the other in huge pages: every image reads all of them, and 100 MB are 25,000 small pages. */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "convert.h"
#include "model.h"
#include "onednn.h"
#include "slab.h"

enum {
    WEIGHT_ALIGN = 64,
    CHUNK_BYTES = 16 << 20,
    CHUNK_MOST = 64 << 20,
    PIECE_BYTES = 4 << 20,
    FEW_BYTES = 4096,
    SOURCE_BYTES = 1 << 20
};

struct weight {
    struct weight *next;
    uint8_t key[32]; /* of what it was made from, and of the format; 0: nobody else's */
    void *data;
};

/* One list: a network has a few hundred weights, and it is searched at plan time only. */
struct hapi_dnn_weights {
    struct weight *list;
    struct chunk *chunks;
    size_t expected; /* bytes, more or less, that are still to come */
};

struct chunk {
    struct chunk *next;
    struct hapi_slab slab;
};

struct hapi_dnn_weights *hapi_dnn_weights_new(size_t expected)
{
    struct hapi_dnn_weights *w = calloc(1, sizeof *w);

    if (w)
        w->expected = expected;
    return w;
}

void hapi_dnn_weights_free(void *weights)
{
    struct hapi_dnn_weights *w = weights;

    for (struct weight *e = w->list, *next; e; e = next) {
        next = e->next;
        free(e);
    }
    for (struct chunk *c = w->chunks, *next; c; c = next) {
        next = c->next;
        hapi_slab_fini(&c->slab);
        free(c);
    }
    free(w);
}

static int reorder_now(struct hapi_dnn *b, const void *src, const dnnl_memory_desc_t *from, void *dst,
                       const dnnl_memory_desc_t *to, struct hapi_err *err)
{
    dnnl_primitive_desc_t pd = NULL;
    dnnl_primitive_t p = NULL;
    dnnl_memory_t m[2] = {NULL, NULL};
    dnnl_status_t s = dnnl_reorder_primitive_desc_create(&pd, from, b->engine, to, b->engine, NULL);

    if (!s)
        s = dnnl_primitive_create(&p, pd);
    if (!s)
        s = dnnl_memory_create(&m[0], from, b->engine, (void *)(uintptr_t)src);
    if (!s)
        s = dnnl_memory_create(&m[1], to, b->engine, dst);
    if (!s) {
        dnnl_exec_arg_t args[2] = {{DNNL_ARG_FROM, m[0]}, {DNNL_ARG_TO, m[1]}};
        s = dnnl_primitive_execute(p, b->stream, 2, args);
    }
    if (!s)
        s = dnnl_stream_wait(b->stream);
    dnnl_memory_destroy(m[1]);
    dnnl_memory_destroy(m[0]);
    dnnl_primitive_destroy(p);
    dnnl_primitive_desc_destroy(pd);
    return s ? hapi_dnn_fail(b, s, "cannot reorder weights", err) : HAPI_OK;
}

/* As large as what is expected, so that few end with a weight that does not fit; not all of a large network's
 * at once: reserved pages are given by the chunk, or not. */
static size_t chunk_bytes(struct hapi_dnn_weights *w, size_t bytes)
{
    size_t n = w->expected < CHUNK_MOST ? w->expected : CHUNK_MOST;

    w->expected -= n;
    n = n ? n : CHUNK_BYTES;
    return bytes > n ? bytes : n;
}

/* In the first chunk that has room: small weights fill what large ones have left at the ends, where a huge
 * page is in memory as a whole. */
static void *room(struct hapi_dnn_weights *w, size_t bytes)
{
    struct chunk *c = w->chunks;
    void *p = NULL;

    for (; c && !p; c = c->next)
        p = hapi_slab_take(&c->slab, bytes, WEIGHT_ALIGN);
    if (p)
        return p;
    c = calloc(1, sizeof *c);
    if (!c || hapi_slab_init(&c->slab, chunk_bytes(w, bytes), NULL)) {
        free(c);
        return NULL;
    }
    c->next = w->chunks;
    w->chunks = c;
    return hapi_slab_take(&c->slab, bytes, WEIGHT_ALIGN);
}

void hapi_dnn_weights_trim(struct hapi_dnn_weights *w)
{
    for (struct chunk *c = w->chunks; c; c = c->next)
        hapi_slab_trim(&c->slab);
}

static struct weight *weight_add(struct hapi_dnn *b, size_t bytes)
{
    struct weight *e = calloc(1, sizeof *e);

    if (!e)
        return NULL;
    e->data = room(b->weights, bytes);
    if (!e->data) {
        free(e);
        return NULL;
    }
    e->next = b->weights->list;
    b->weights->list = e;
    return e;
}

/* How a large weight is made from the file in pieces: pieces of `rows` along `dim`, the outermost in the
 * file, of `row` bytes each. */
struct pieces {
    int dim;
    dnnl_dim_t rows;
    size_t row;
};

/* One piece where the file's order or the format does not allow more: multiples of 64 suit every block size.
 */
static struct pieces pieces_of(const dnnl_memory_desc_t *from, const dnnl_memory_desc_t *to)
{
    struct pieces p = {.dim = 0};
    const dnnl_dim_t *stride = from->format_desc.blocking.strides;
    dnnl_dim_t elements = 1;
    bool whole = to->format_kind != dnnl_blocked || to->extra.flags || from->ndims != to->ndims;

    for (int i = 0; i < from->ndims; i++) {
        elements *= from->dims[i];
        whole |= !whole && to->padded_dims[i] != to->dims[i];
        if (from->dims[i] > 1 && (from->dims[p.dim] == 1 || stride[i] > stride[p.dim]))
            p.dim = i;
    }
    whole |= stride[p.dim] * from->dims[p.dim] != elements;
    p.row = (size_t)(elements / from->dims[p.dim]) * sizeof(float);
    p.rows = (dnnl_dim_t)(PIECE_BYTES / p.row) / 64 * 64;
    p.rows = p.rows < 64 ? 64 : p.rows;
    if (whole || p.rows > from->dims[p.dim])
        p.rows = from->dims[p.dim];
    return p;
}

/* The kernel maps up to AROUND bytes on either side of what is read, of the page cache: with many small
 * weights that comes to the whole file. */
void hapi_dnn_source_read(struct hapi_dnn *b, size_t bytes)
{
    enum { AROUND = 64 << 10 };

    b->mapped += bytes + AROUND;
    if (!b->g->mapped || b->mapped < SOURCE_BYTES)
        return;
    hapi_model_drop_source(b->g->mapped);
    b->mapped = 0;
}

/* A bias and the like. */
static int reorder_few(struct hapi_dnn *b, const unsigned char *src, const dnnl_memory_desc_t *from,
                       void *dst, const dnnl_memory_desc_t *to, struct hapi_err *err)
{
    _Alignas(WEIGHT_ALIGN) unsigned char stage[FEW_BYTES];

    memcpy(stage, src, dnnl_memory_desc_get_size(from));
    return reorder_now(b, stage, from, dst, to, err);
}

/* From the file: copied piece by piece to where it is aligned, and the file's pages given back behind. */
static int reorder_raw(struct hapi_dnn *b, const unsigned char *src, const dnnl_memory_desc_t *from,
                       void *dst, const dnnl_memory_desc_t *to, struct hapi_err *err)
{
    if (dnnl_memory_desc_get_size(from) <= FEW_BYTES)
        return reorder_few(b, src, from, dst, to, err);
    struct pieces p = pieces_of(from, to);
    struct hapi_slab stage; /* no malloc: what it frees it may keep */
    const unsigned char *kept = (const unsigned char *)(((uintptr_t)src + 4095) & ~(uintptr_t)4095);
    int rc = hapi_slab_init(&stage, (size_t)p.rows * p.row, err);

    if (rc)
        return rc;
    for (dnnl_dim_t at = 0, rows; at < from->dims[p.dim] && !rc; at += rows) {
        dnnl_memory_desc_t piece = *from, place = *to;
        dnnl_dims_t dims, offsets = {0};
        rows = from->dims[p.dim] - at < p.rows ? from->dims[p.dim] - at : p.rows;
        memcpy(stage.base, src + (size_t)at * p.row, (size_t)rows * p.row);
        memcpy(dims, from->dims, sizeof dims);
        piece.dims[p.dim] = piece.padded_dims[p.dim] = dims[p.dim] = rows;
        offsets[p.dim] = at;
        if (rows < from->dims[p.dim]) {
            dnnl_status_t s = dnnl_memory_desc_init_submemory(&place, to, dims, offsets);
            if (s)
                rc = hapi_dnn_fail(b, s, "cannot describe a part of weights", err);
        }
        rc = rc ? rc : reorder_now(b, stage.base, &piece, dst, &place, err);
        const unsigned char *end = src + (size_t)(at + rows) * p.row;
        if (b->g->mapped && end >= kept + 4096) {
            size_t n = (size_t)(end - kept) & ~(size_t)4095;
            madvise((void *)(uintptr_t)kept, n, MADV_DONTNEED);
            kept += n;
        }
    }
    hapi_slab_fini(&stage);
    return rc;
}

/* All that tells formats apart, as numbers; descriptors themselves are 700 bytes, most of them unused. */
static size_t md_numbers(const dnnl_memory_desc_t *md, int64_t *out)
{
    const dnnl_blocking_desc_t *k = &md->format_desc.blocking;
    size_t n = 0;

    out[n++] = md->ndims;
    out[n++] = md->data_type;
    out[n++] = md->offset0;
    out[n++] = k->inner_nblks;
    out[n++] = (int64_t)md->extra.flags;
    out[n++] = md->extra.compensation_mask;
    out[n++] = md->extra.asymm_compensation_mask;
    out[n++] = (int64_t)(md->extra.scale_adjust * 256);
    for (int i = 0; i < md->ndims; i++) {
        out[n++] = md->dims[i];
        out[n++] = md->padded_dims[i];
        out[n++] = md->padded_offsets[i];
        out[n++] = k->strides[i];
    }
    for (int i = 0; i < k->inner_nblks; i++) {
        out[n++] = k->inner_blks[i];
        out[n++] = k->inner_idxs[i];
    }
    return n;
}

/* By content, not by name: another batch may fold a constant of the same name to other numbers. The file's
 * own bytes never change: their place will do. */
static void key_of(uint8_t key[32], const void *data, bool raw, const dnnl_memory_desc_t *from,
                   const dnnl_memory_desc_t *to)
{
    int64_t numbers[4 + 2 * (8 + 6 * DNNL_MAX_NDIMS)] = {0};
    size_t n = 4;

    if (raw)
        numbers[0] = (int64_t)(uintptr_t)data;
    else
        hapi_sha256((uint8_t *)numbers, data, dnnl_memory_desc_get_size(from));
    n += md_numbers(from, numbers + n);
    n += md_numbers(to, numbers + n);
    hapi_sha256(key, numbers, n * sizeof *numbers);
}

static struct weight *find(const struct hapi_dnn *b, const uint8_t *key)
{
    struct weight *e = b->weights->list;

    while (e && memcmp(e->key, key, sizeof e->key))
        e = e->next;
    return e;
}

int hapi_dnn_weight(struct hapi_dnn *b, const void *data, bool raw, const dnnl_memory_desc_t *from,
                    const dnnl_memory_desc_t *to, struct hapi_err *err)
{
    size_t bytes = dnnl_memory_desc_get_size(to);
    int at = hapi_dnn_storage(b, HAPI_DNN_FIXED, bytes, err), rc;
    struct weight *e = NULL;
    uint8_t key[32] = {0};

    if (at < 0)
        return at;
    b->weight_bytes += bytes;
    if (!b->weights || !bytes)
        return at;
    if (from->format_kind == dnnl_blocked && to->format_kind == dnnl_blocked) { /* others are not shared */
        key_of(key, data, raw, from, to);
        e = find(b, key);
    }
    if (!e) {
        e = weight_add(b, bytes);
        if (!e)
            return hapi_err_set(err, HAPI_ENOMEM, 0, "no memory for %zu bytes of weights", bytes);
        rc =
            raw ? reorder_raw(b, data, from, e->data, to, err) : reorder_now(b, data, from, e->data, to, err);
        if (rc)
            return rc;
        if (raw)
            hapi_dnn_source_read(b, dnnl_memory_desc_get_size(from));
        memcpy(e->key, key, sizeof key);
    }
    b->storages[at].data = e->data;
    return at;
}

int hapi_dnn_weight_of(struct hapi_dnn *b, int value, const dnnl_memory_desc_t *from,
                       const dnnl_memory_desc_t *to, struct hapi_err *err)
{
    const struct hapi_value *v = &b->g->values[value];
    dnnl_primitive_desc_t pd;
    dnnl_primitive_attr_t attr;

    if (v->data)
        return hapi_dnn_weight(b, v->data, v->raw, from, to, err);
    int rep = hapi_dnn_need(b, value, HAPI_F32, HAPI_LAYOUT_PLAIN, err);
    int at = rep < 0 ? rep : hapi_dnn_storage(b, HAPI_DNN_ARENA, dnnl_memory_desc_get_size(to), err);
    if (at < 0)
        return at;
    dnnl_status_t s = hapi_dnn_attr(false, NULL, &attr);
    if (!s)
        s = dnnl_reorder_primitive_desc_create(&pd, from, b->engine, to, b->engine, attr);
    dnnl_primitive_attr_destroy(attr);
    if (s)
        return hapi_dnn_fail(b, s, "cannot reorder weights", err);
    struct hapi_dnn_arg args[2] = {{DNNL_ARG_FROM, from, b->reps[rep].storage}, {DNNL_ARG_TO, to, at}};
    int rc = hapi_dnn_execute(b, pd, args, 2, err);
    return rc ? rc : at;
}
