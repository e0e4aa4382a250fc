#include <string.h>

#include "wire_fields.h"

/* Tags of a list body. */
enum { LIST_ID = 1, LIST_NEXT = 2, LIST_DATASET = 3, LIST_OBJECT = 4 };

/* Kept free by hapi_list_begin() so that `more` always fits. */
enum { NEXT_BYTES = HAPI_FIELD_HEADER + 8 };

#define COUNT(a) (sizeof(a) / sizeof *(a))
#define ROW(tag, kind, flags, max, type, member)                                                             \
    {                                                                                                        \
        tag, HAPI_FIELD_##kind, flags, max, offsetof(struct type, member), #member                           \
    }

enum { REQUIRED = HAPI_FIELD_REQUIRED };

static const struct hapi_field dataset_fields[] = {
    ROW(1, STR, REQUIRED, HAPI_NAME_MAX, hapi_msg_dataset, name),
    ROW(2, U64, 0, 0, hapi_msg_dataset, objects),
    ROW(3, U64, 0, 0, hapi_msg_dataset, samples),
    ROW(4, U64, 0, 0, hapi_msg_dataset, bytes),
    ROW(5, U32, 0, 0, hapi_msg_dataset, max_sample_bytes),
    ROW(6, U64, 0, 0, hapi_msg_dataset, problems),
    ROW(7, U32, 0, 0, hapi_msg_dataset, n_classes),
    ROW(8, BLOB, 0, HAPI_FRAME_MAX, hapi_msg_dataset, classes_blob),
};

static const struct hapi_field object_fields[] = {
    ROW(1, STR, REQUIRED, HAPI_NAME_MAX, hapi_msg_object, name),
    ROW(2, BLOB, 0, HAPI_WIRE_VERSION_MAX, hapi_msg_object, version),
    ROW(3, HASH, 0, 0, hapi_msg_object, digest),
    ROW(4, U64, 0, 0, hapi_msg_object, bytes),
    ROW(5, U32, 0, 0, hapi_msg_object, samples),
    ROW(6, BLOB, 0, HAPI_FRAME_MAX, hapi_msg_object, sample_bytes),
};

static int dataset_check(const struct hapi_msg_dataset *d, struct hapi_err *err)
{
    struct hapi_str blob = d->classes_blob, name;
    uint32_t n = 0;

    if (!hapi_name_is_safe(d->name))
        return hapi_err_set(err, HAPI_EPROTO, 0, "not a dataset's name");
    while (hapi_classes_next(&blob, &name))
        n++;
    if (blob.n || n != d->n_classes)
        return hapi_err_set(err, HAPI_EPROTO, 0, "dataset %.*s: %u classes announced, %u found",
                            (int)d->name.n, d->name.s, d->n_classes, n);
    return 0;
}

static int object_check(const struct hapi_msg_object *o, struct hapi_err *err)
{
    if (!hapi_name_is_safe(o->name))
        return hapi_err_set(err, HAPI_EPROTO, 0, "not an object's name");
    if (o->sample_bytes.n % 4 || o->sample_bytes.n / 4 != o->samples)
        return hapi_err_set(err, HAPI_EPROTO, 0, "object %.*s: %u samples, but sizes of %u bytes",
                            (int)o->name.n, o->name.s, o->samples, o->sample_bytes.n);
    return 0;
}

int hapi_list_begin(struct hapi_list *l, void *buf, size_t size, uint64_t id)
{
    struct hapi_writer w;

    hapi_writer_init(&w, buf, size);
    uint8_t *v = hapi_writer_field(&w, LIST_ID, 8);
    if (!v || size - w.used < NEXT_BYTES)
        return HAPI_ETOOBIG;
    hapi_put64(v, id);
    *l = (struct hapi_list){buf, size, w.used};
    return 0;
}

static int list_add(struct hapi_list *l, uint16_t tag, const struct hapi_field *f, size_t n, const void *m)
{
    struct hapi_writer w;

    hapi_writer_init(&w, l->buf, l->size - NEXT_BYTES);
    w.used = l->used;
    size_t place = hapi_writer_begin(&w, tag);
    hapi_writer_fields(&w, f, n, m);
    hapi_writer_end(&w, place);
    if (w.code)
        return w.code;
    l->used = w.used;
    return 0;
}

int hapi_list_dataset(struct hapi_list *l, const struct hapi_msg_dataset *d)
{
    if (dataset_check(d, NULL))
        return HAPI_EINVAL;
    return list_add(l, LIST_DATASET, dataset_fields, COUNT(dataset_fields), d);
}

int hapi_list_object(struct hapi_list *l, const struct hapi_msg_object *o)
{
    if (object_check(o, NULL))
        return HAPI_EINVAL;
    return list_add(l, LIST_OBJECT, object_fields, COUNT(object_fields), o);
}

int hapi_list_more(struct hapi_list *l, uint64_t next)
{
    struct hapi_writer w;

    if (next == 0)
        return HAPI_EINVAL;
    hapi_writer_init(&w, l->buf, l->size);
    w.used = l->used;
    uint8_t *v = hapi_writer_field(&w, LIST_NEXT, 8);
    if (!v)
        return HAPI_ETOOBIG;
    hapi_put64(v, next);
    l->used = w.used;
    return 0;
}

int hapi_list_open(struct hapi_list_cursor *c, const void *buf, size_t n, struct hapi_err *err)
{
    struct hapi_reader r = {buf, buf ? (const uint8_t *)buf + n : NULL};
    bool id = false;
    const uint8_t *v;
    uint16_t tag;
    uint32_t len;
    int rc;

    *c = (struct hapi_list_cursor){r.at, r.end, 0, 0};
    while ((rc = hapi_reader_next(&r, &tag, &v, &len, err)) > 0) {
        if (tag != LIST_ID && tag != LIST_NEXT)
            continue;
        if (len != 8 || (tag == LIST_ID ? id : c->next != 0))
            return hapi_err_set(err, HAPI_EPROTO, 0, "list: field %u is malformed or there twice", tag);
        if (tag == LIST_ID) {
            id = true;
            c->id = hapi_get64(v);
        } else if ((c->next = hapi_get64(v)) == 0) {
            return hapi_err_set(err, HAPI_EPROTO, 0, "list: goes on from item 0");
        }
    }
    if (rc == 0 && !id)
        rc = hapi_err_set(err, HAPI_EPROTO, 0, "list without an id");
    return rc;
}

static int list_next(struct hapi_list_cursor *c, uint16_t want, const struct hapi_field *f, size_t n_fields,
                     void *out, struct hapi_err *err)
{
    struct hapi_reader r = {c->at, c->end};
    const uint8_t *v;
    uint16_t tag;
    uint32_t len;
    int rc;

    while ((rc = hapi_reader_next(&r, &tag, &v, &len, err)) > 0) {
        c->at = r.at;
        if (tag != want)
            continue;
        rc = hapi_fields_decode(f, n_fields, out, v, len, NULL, err);
        return rc ? rc : 1;
    }
    return rc;
}

int hapi_list_next_dataset(struct hapi_list_cursor *c, struct hapi_msg_dataset *out, struct hapi_err *err)
{
    int rc = list_next(c, LIST_DATASET, dataset_fields, COUNT(dataset_fields), out, err);

    return rc == 1 && dataset_check(out, err) ? HAPI_EPROTO : rc;
}

int hapi_list_next_object(struct hapi_list_cursor *c, struct hapi_msg_object *out, struct hapi_err *err)
{
    int rc = list_next(c, LIST_OBJECT, object_fields, COUNT(object_fields), out, err);

    return rc == 1 && object_check(out, err) ? HAPI_EPROTO : rc;
}

int hapi_classes_next(struct hapi_str *blob, struct hapi_str *out)
{
    if (blob->n < 2)
        return 0;
    uint32_t n = hapi_get16((const uint8_t *)blob->s);
    /* A malformed rest stays in the blob: a walk that ends with bytes left was not whole. */
    if (n == 0 || n > HAPI_NAME_MAX || n > blob->n - 2 || memchr(blob->s + 2, '\0', n))
        return 0;
    *out = (struct hapi_str){blob->s + 2, n};
    blob->s += 2 + n;
    blob->n -= 2 + n;
    return 1;
}

int hapi_classes_append(void *blob, size_t size, size_t used, const char *name)
{
    size_t n = strnlen(name, HAPI_NAME_MAX + 1);

    if (n == 0 || n > HAPI_NAME_MAX)
        return HAPI_EINVAL;
    if (size > INT32_MAX || used > size || size - used < 2 + n)
        return HAPI_ETOOBIG;
    hapi_put16((uint8_t *)blob + used, (uint16_t)n);
    memcpy((uint8_t *)blob + used + 2, name, n);
    return (int)(used + 2 + n);
}
