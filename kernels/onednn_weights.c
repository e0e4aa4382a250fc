/* Weights in the formats that primitives asked for: reordered once, shared by plans, never moved. They lie
 * one after the other in huge pages: every image reads all of them, and 100 MB are 25,000 small pages. */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "convert.h"
#include "onednn.h"
#include "slab.h"

enum { WEIGHT_ALIGN = 64, CHUNK_BYTES = 16 << 20, PIECE_BYTES = 4 << 20 };

struct weight {
    struct weight *next;
    dnnl_memory_desc_t from, md;
    const void *raw;    /* the file's bytes that it was made from; NULL: not from there */
    uint8_t source[32]; /* else SHA-256 of what it was made from */
    void *data;
};

/* One list: a network has a few hundred weights, and it is searched at plan time only. */
struct hapi_dnn_weights {
    struct weight *list;
    struct chunk *chunks; /* the first has room */
};

struct chunk {
    struct chunk *next;
    struct hapi_slab slab;
};

struct hapi_dnn_weights *hapi_dnn_weights_new(void)
{
    return calloc(1, sizeof(struct hapi_dnn_weights));
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

static void *room(struct hapi_dnn_weights *w, size_t bytes)
{
    void *p = w->chunks ? hapi_slab_take(&w->chunks->slab, bytes, WEIGHT_ALIGN) : NULL;
    struct chunk *c;

    if (p)
        return p;
    c = calloc(1, sizeof *c);
    if (!c || hapi_slab_init(&c->slab, bytes > CHUNK_BYTES ? bytes : CHUNK_BYTES, NULL)) {
        free(c);
        return NULL;
    }
    /* A weight that fills one of its own leaves the one with room in front. */
    bool full = w->chunks && bytes >= CHUNK_BYTES;
    c->next = full ? w->chunks->next : w->chunks;
    *(full ? &w->chunks->next : &w->chunks) = c;
    return hapi_slab_take(&c->slab, bytes, WEIGHT_ALIGN);
}

static struct weight *weight_add(struct hapi_dnn *b, const dnnl_memory_desc_t *to, size_t bytes)
{
    struct weight *e = calloc(1, sizeof *e);

    if (!e)
        return NULL;
    e->data = room(b->weights, bytes);
    if (!e->data) {
        free(e);
        return NULL;
    }
    e->md = *to;
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

/* From the file: copied piece by piece to where it is aligned, and the file's pages given back behind. */
static int reorder_raw(struct hapi_dnn *b, const unsigned char *src, const dnnl_memory_desc_t *from,
                       void *dst, const dnnl_memory_desc_t *to, struct hapi_err *err)
{
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

/* The one that has been made from the same bytes. By content, not by name: another batch may fold a constant
 * of the same name to other numbers. The file's own bytes never change: their place will do. */
static struct weight *find(const struct hapi_dnn *b, const void *raw, const uint8_t *sha,
                           const dnnl_memory_desc_t *from, const dnnl_memory_desc_t *to)
{
    struct weight *e = b->weights->list;

    while (e && (e->raw != raw || (!raw && memcmp(e->source, sha, sizeof e->source)) ||
                 !dnnl_memory_desc_equal(&e->md, to) || !dnnl_memory_desc_equal(&e->from, from)))
        e = e->next;
    return e;
}

int hapi_dnn_weight(struct hapi_dnn *b, const void *data, bool raw, const dnnl_memory_desc_t *from,
                    const dnnl_memory_desc_t *to, struct hapi_err *err)
{
    size_t bytes = dnnl_memory_desc_get_size(to), source = dnnl_memory_desc_get_size(from);
    int at = hapi_dnn_storage(b, HAPI_DNN_FIXED, bytes, err), rc;
    uint8_t sha[32] = {0};
    struct weight *e;

    if (at < 0)
        return at;
    b->weight_bytes += bytes;
    if (!b->weights || !bytes)
        return at;
    if (!raw)
        hapi_sha256(sha, data, source);
    e = find(b, raw ? data : NULL, sha, from, to);
    if (!e) {
        e = weight_add(b, to, bytes);
        if (!e)
            return hapi_err_set(err, HAPI_ENOMEM, 0, "no memory for %zu bytes of weights", bytes);
        rc =
            raw ? reorder_raw(b, data, from, e->data, to, err) : reorder_now(b, data, from, e->data, to, err);
        if (rc)
            return rc;
        e->raw = raw ? data : NULL;
        memcpy(e->source, sha, sizeof sha);
        e->from = *from;
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
