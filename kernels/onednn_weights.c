/* Weights in the formats that primitives asked for: reordered once, shared by plans, never moved. They lie
 * one after the other in huge pages: every image reads all of them, and 100 MB are 25,000 small pages. */
#include <stdlib.h>
#include <string.h>

#include "convert.h"
#include "onednn.h"
#include "slab.h"

enum { WEIGHT_ALIGN = 64, CHUNK_BYTES = 16 << 20 };

struct weight {
    struct weight *next;
    dnnl_memory_desc_t from, md;
    uint8_t source[32]; /* SHA-256 */
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

int hapi_dnn_weight(struct hapi_dnn *b, const void *data, const dnnl_memory_desc_t *from,
                    const dnnl_memory_desc_t *to, struct hapi_err *err)
{
    size_t bytes = dnnl_memory_desc_get_size(to), source = dnnl_memory_desc_get_size(from);
    int at = hapi_dnn_storage(b, HAPI_DNN_FIXED, bytes, err);
    uint8_t sha[32];
    struct weight *e;

    if (at < 0)
        return at;
    b->weight_bytes += bytes;
    if (!b->weights || !bytes)
        return at;
    /* By content, not by name: another batch may fold a constant of the same name to other numbers. */
    hapi_sha256(sha, data, source);
    for (e = b->weights->list; e; e = e->next)
        if (!memcmp(e->source, sha, sizeof sha) && dnnl_memory_desc_equal(&e->md, to) &&
            dnnl_memory_desc_equal(&e->from, from))
            break;
    if (!e) {
        e = weight_add(b, to, bytes);
        if (!e)
            return hapi_err_set(err, HAPI_ENOMEM, 0, "no memory for %zu bytes of weights", bytes);
        int rc = reorder_now(b, data, from, e->data, to, err);
        if (rc)
            return rc;
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
        return hapi_dnn_weight(b, v->data, from, to, err);
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
