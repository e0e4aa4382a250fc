#include <string.h>

#include "wire_fields.h"

/* Tags of the repeated and packed fields; the others are in the table. */
enum { REQ_CUT = 64, REQ_WINDOW = 65, REQ_OBJECT = 66, REQ_SAMPLES = 67 };
enum { OBJ_NAME = 1, OBJ_VERSION = 2, OBJ_DIGEST = 3 };
enum { WINDOW_BYTES = 32, SAMPLE_BYTES = 8, MICRO_BATCH_MAX = 65535 };

#define COUNT(a) (sizeof(a) / sizeof *(a))
#define ROW(tag, kind, flags, max, member)                                                                   \
    {                                                                                                        \
        tag, HAPI_FIELD_##kind, flags, max, offsetof(struct hapi_request, member), #member                   \
    }

enum { REQUIRED = HAPI_FIELD_REQUIRED };

static const struct hapi_field request_fields[] = {
    ROW(1, U16, REQUIRED, 0, index),
    ROW(2, U64, 0, 0, trace_id),
    ROW(3, STR, REQUIRED, HAPI_NAME_MAX, dataset),
    ROW(4, HASH, 0, 0, model_hash),
    ROW(5, STR, 0, HAPI_TRANSFORM_MAX, transform),
    ROW(6, U64, 0, 0, augment_seed),
    ROW(7, U64, 0, 0, epoch),
    ROW(8, U32, 0, 0, compute_dtype),
    ROW(9, U32, 0, 0, wire_dtype),
    ROW(10, U32, 0, 0, layout),
    ROW(11, U32, 0, 0, micro_batch),
    ROW(12, U32, REQUIRED, 0, max_parts),
    ROW(13, U32, 0, 0, deadline_ms),
    ROW(14, U32, 0, 0, flags),
    ROW(15, U64, 0, 0, record_key),
    ROW(16, U64, 0, 0, record_base),
    ROW(17, U64, REQUIRED, 0, record_bytes),
};
_Static_assert(sizeof(enum hapi_dtype) == 4 && sizeof(enum hapi_layout) == 4, "enums travel as 4 bytes");

#define BAD(err, ...) hapi_err_set(err, HAPI_EPROTO, 0, "request: " __VA_ARGS__)

/* ---- checks, shared by both directions ---- */

static bool all_zero(const uint8_t *p, size_t n)
{
    uint8_t any = 0;

    for (size_t i = 0; i < n; i++)
        any |= p[i];
    return any == 0;
}

static int str_order(struct hapi_str a, struct hapi_str b)
{
    int c = memcmp(a.s, b.s, a.n < b.n ? a.n : b.n);

    return c ? c : (a.n > b.n) - (a.n < b.n);
}

static int check_cut(const struct hapi_request *r, struct hapi_err *err)
{
    if (r->n_cut > HAPI_CUT_TENSORS)
        return BAD(err, "%u tensors in the cut, at most %d", r->n_cut, HAPI_CUT_TENSORS);
    for (uint32_t i = 0; i < r->n_cut; i++) {
        struct hapi_str s = r->cut[i];
        if (s.n == 0 || s.n > HAPI_NAME_MAX || memchr(s.s, '\0', s.n))
            return BAD(err, "tensor %u of the cut has no proper name", i);
        if (i && str_order(r->cut[i - 1], s) >= 0)
            return BAD(err, "the tensors of the cut are not sorted");
    }
    bool hash = !all_zero(r->model_hash, HAPI_HASH_SIZE);
    if (r->n_cut == 0 && (hash || r->transform.n))
        return BAD(err, "raw objects need no model and no transform");
    if (r->n_cut && (!hash || r->transform.n == 0))
        return BAD(err, "a cut needs a model and a transform");
    return 0;
}

static int check_types(const struct hapi_request *r, struct hapi_err *err)
{
    enum hapi_dtype c = r->compute_dtype, w = r->wire_dtype;
    bool none = r->n_cut == 0;
    bool c_ok =
        c == HAPI_F32 || c == HAPI_F16 || c == HAPI_BF16 || c == HAPI_I8 || (none && c == HAPI_DTYPE_NONE);
    bool w_ok = w == HAPI_F32 || w == HAPI_F16 || w == HAPI_BF16 || w == HAPI_I8 ||
                (none && (w == HAPI_DTYPE_NONE || w == HAPI_U8));

    if (!c_ok)
        return BAD(err, "compute dtype %u", (unsigned)c);
    if (!w_ok)
        return BAD(err, "wire dtype %u", (unsigned)w);
    if (r->layout != HAPI_LAYOUT_PLAIN && r->layout != HAPI_LAYOUT_NHWC)
        return BAD(err, "layout %u", (unsigned)r->layout);
    if (r->flags & ~(uint32_t)(HAPI_REQ_CHECKSUM | HAPI_REQ_FAIL_FAST | HAPI_REQ_FRESH))
        return BAD(err, "unknown flags 0x%x", r->flags);
    if (r->micro_batch > MICRO_BATCH_MAX)
        return BAD(err, "micro-batch %u, at most %d", r->micro_batch, MICRO_BATCH_MAX);
    return 0;
}

static int check_windows(const struct hapi_request *r, struct hapi_err *err)
{
    uint32_t want = r->n_cut ? r->n_cut : 1;

    if (r->n_windows != want)
        return BAD(err, "%u windows for %u tensors", r->n_windows, want);
    for (uint32_t i = 0; i < want; i++) {
        const struct hapi_window_ref *w = &r->windows[i];
        uint64_t need;
        if (w->capacity == 0 || w->base > UINT64_MAX - w->capacity)
            return BAD(err, "window %u is empty or wraps around", i);
        if (r->n_cut == 0 && w->stride)
            return BAD(err, "raw objects are packed: the stride is 0");
        if (r->n_cut && w->stride == 0)
            return BAD(err, "window %u has no stride", i);
        if (__builtin_mul_overflow(w->stride, (uint64_t)r->n_samples, &need) || need > w->capacity)
            return BAD(err, "window %u does not hold %u samples", i, r->n_samples);
    }
    return 0;
}

/* The greatest record a part of this request can need. */
static size_t largest_record(const struct hapi_request *r)
{
    uint32_t count = r->n_samples;

    if (r->micro_batch && r->micro_batch < count)
        count = r->micro_batch;
    return hapi_record_size(count);
}

static int check_records(const struct hapi_request *r, struct hapi_err *err)
{
    if (r->max_parts == 0 || r->max_parts > HAPI_REQUEST_SAMPLES + 1)
        return BAD(err, "max_parts %u, 1 to %d", r->max_parts, HAPI_REQUEST_SAMPLES + 1);
    if (r->record_base > UINT64_MAX - r->record_bytes)
        return BAD(err, "the record area wraps around");
    uint64_t slot = r->record_bytes / r->max_parts;
    if (slot % 8 || r->record_base % 8)
        return BAD(err, "records would not be aligned");
    if (slot < largest_record(r))
        return BAD(err, "the record area has %llu bytes a part, %zu are needed", (unsigned long long)slot,
                   largest_record(r));
    return 0;
}

static int check_samples(const struct hapi_request *r, struct hapi_err *err)
{
    if (r->n_objects == 0 || r->n_objects > HAPI_REQUEST_SAMPLES)
        return BAD(err, "%u objects, 1 to %d", r->n_objects, HAPI_REQUEST_SAMPLES);
    if (r->n_samples == 0 || r->n_samples > HAPI_REQUEST_SAMPLES)
        return BAD(err, "%u samples, 1 to %d", r->n_samples, HAPI_REQUEST_SAMPLES);
    for (uint32_t i = 0; i < r->n_objects; i++) {
        if (!hapi_name_is_safe(r->objects[i].name))
            return BAD(err, "object %u has no proper name", i);
        if (r->objects[i].version.n > HAPI_WIRE_VERSION_MAX)
            return BAD(err, "object %u: version of %u bytes", i, r->objects[i].version.n);
    }
    for (uint32_t i = 0; i < r->n_samples; i++)
        if (r->samples[i].object >= r->n_objects)
            return BAD(err, "sample %u names object %u of %u", i, r->samples[i].object, r->n_objects);
    return 0;
}

static int request_check(const struct hapi_request *r, struct hapi_err *err)
{
    int rc = check_samples(r, err);

    if (rc == 0 && !hapi_name_is_safe(r->dataset))
        rc = BAD(err, "not a dataset's name");
    if (rc == 0)
        rc = check_cut(r, err);
    if (rc == 0)
        rc = check_types(r, err);
    if (rc == 0)
        rc = check_windows(r, err);
    if (rc == 0)
        rc = check_records(r, err);
    return rc;
}

/* ---- encode ---- */

static void write_bytes(struct hapi_writer *w, uint16_t tag, const void *p, size_t n)
{
    uint8_t *v = hapi_writer_field(w, tag, n);

    if (v && n)
        memcpy(v, p, n);
}

static void write_window(struct hapi_writer *w, const struct hapi_window_ref *win)
{
    uint8_t *v = hapi_writer_field(w, REQ_WINDOW, WINDOW_BYTES);

    if (!v)
        return;
    hapi_put64(v, win->key);
    hapi_put64(v + 8, win->base);
    hapi_put64(v + 16, win->stride);
    hapi_put64(v + 24, win->capacity);
}

static void write_object(struct hapi_writer *w, const struct hapi_req_object *o)
{
    size_t place = hapi_writer_begin(w, REQ_OBJECT);

    write_bytes(w, OBJ_NAME, o->name.s, o->name.n);
    if (o->version.n)
        write_bytes(w, OBJ_VERSION, o->version.s, o->version.n);
    if (o->digest)
        write_bytes(w, OBJ_DIGEST, o->digest, HAPI_HASH_SIZE);
    hapi_writer_end(w, place);
}

static void write_samples(struct hapi_writer *w, const struct hapi_request *r)
{
    uint8_t *v = hapi_writer_field(w, REQ_SAMPLES, (size_t)r->n_samples * SAMPLE_BYTES);

    for (uint32_t i = 0; v && i < r->n_samples; i++, v += SAMPLE_BYTES) {
        hapi_put32(v, r->samples[i].index);
        hapi_put16(v + 4, r->samples[i].object);
        hapi_put16(v + 6, 0);
    }
}

int hapi_request_encode(const struct hapi_request *r, void *buf, size_t size)
{
    struct hapi_writer w;

    if (request_check(r, NULL))
        return HAPI_EINVAL;
    hapi_writer_init(&w, buf, size < HAPI_REQUEST_MAX ? size : HAPI_REQUEST_MAX);
    hapi_writer_fields(&w, request_fields, COUNT(request_fields), r);
    for (uint32_t i = 0; i < r->n_cut; i++)
        write_bytes(&w, REQ_CUT, r->cut[i].s, r->cut[i].n);
    for (uint32_t i = 0; i < r->n_windows; i++)
        write_window(&w, &r->windows[i]);
    for (uint32_t i = 0; i < r->n_objects; i++)
        write_object(&w, &r->objects[i]);
    write_samples(&w, r);
    return hapi_writer_result(&w);
}

/* ---- decode ---- */

static int read_cut(struct hapi_request *r, const uint8_t *v, uint32_t n, struct hapi_err *err)
{
    if (r->n_cut == HAPI_CUT_TENSORS)
        return BAD(err, "more than %d tensors in the cut", HAPI_CUT_TENSORS);
    r->cut[r->n_cut++] = (struct hapi_str){(const char *)v, n};
    return 0;
}

static int read_window(struct hapi_request *r, const uint8_t *v, uint32_t n, struct hapi_err *err)
{
    if (r->n_windows == HAPI_CUT_TENSORS || n != WINDOW_BYTES)
        return BAD(err, "window of %u bytes, or more than %d windows", n, HAPI_CUT_TENSORS);
    r->windows[r->n_windows++] =
        (struct hapi_window_ref){hapi_get64(v), hapi_get64(v + 8), hapi_get64(v + 16), hapi_get64(v + 24)};
    return 0;
}

struct object_wire {
    struct hapi_str name, version, digest;
};

static const struct hapi_field object_fields[] = {
    {OBJ_NAME, HAPI_FIELD_STR, REQUIRED, HAPI_NAME_MAX, offsetof(struct object_wire, name), "object name"},
    {OBJ_VERSION, HAPI_FIELD_BLOB, 0, HAPI_WIRE_VERSION_MAX, offsetof(struct object_wire, version),
     "object version"},
    {OBJ_DIGEST, HAPI_FIELD_BLOB, 0, HAPI_HASH_SIZE, offsetof(struct object_wire, digest), "object digest"},
};

static int read_object(struct hapi_request *r, const uint8_t *v, uint32_t n, struct hapi_err *err)
{
    struct object_wire o;

    if (r->n_objects == HAPI_REQUEST_SAMPLES)
        return BAD(err, "more than %d objects", HAPI_REQUEST_SAMPLES);
    int rc = hapi_fields_decode(object_fields, COUNT(object_fields), &o, v, n, NULL, err);
    if (rc)
        return rc;
    if (o.digest.n && o.digest.n != HAPI_HASH_SIZE)
        return BAD(err, "object %u: digest of %u bytes", r->n_objects, o.digest.n);
    r->objects[r->n_objects++] =
        (struct hapi_req_object){o.name, o.version, o.digest.n ? (const uint8_t *)o.digest.s : NULL};
    return 0;
}

static int read_samples(struct hapi_request *r, const uint8_t *v, uint32_t n, struct hapi_err *err)
{
    if (r->n_samples)
        return BAD(err, "two lists of samples");
    if (n == 0 || n % SAMPLE_BYTES || n / SAMPLE_BYTES > HAPI_REQUEST_SAMPLES)
        return BAD(err, "a list of samples of %u bytes", n);
    r->n_samples = n / SAMPLE_BYTES;
    for (uint32_t i = 0; i < r->n_samples; i++, v += SAMPLE_BYTES) {
        if (hapi_get16(v + 6))
            return BAD(err, "sample %u: reserved bits are set", i);
        r->samples[i] = (struct hapi_req_sample){hapi_get16(v + 4), hapi_get32(v)};
    }
    return 0;
}

static int read_other(void *m, uint16_t tag, const uint8_t *v, uint32_t n, struct hapi_err *err)
{
    switch (tag) {
    case REQ_CUT:
        return read_cut(m, v, n, err);
    case REQ_WINDOW:
        return read_window(m, v, n, err);
    case REQ_OBJECT:
        return read_object(m, v, n, err);
    case REQ_SAMPLES:
        return read_samples(m, v, n, err);
    default:
        return 0;
    }
}

int hapi_request_decode(struct hapi_request *r, const void *buf, size_t n, struct hapi_err *err)
{
    if (n > HAPI_REQUEST_MAX)
        return BAD(err, "%zu bytes, at most %d", n, HAPI_REQUEST_MAX);
    r->n_cut = r->n_windows = r->n_objects = r->n_samples = 0;
    int rc = hapi_fields_decode(request_fields, COUNT(request_fields), r, buf, n, read_other, err);
    return rc ? rc : request_check(r, err);
}
