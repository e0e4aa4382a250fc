#include "wire_fields.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "records are little-endian structs in memory");
_Static_assert(sizeof(struct hapi_record_sample) == 24, "record sample has no padding");
_Static_assert(sizeof(struct hapi_record) == 96 && offsetof(struct hapi_record, generation) == 40,
               "record has no padding");

enum { RECORD_ALIGN = 64 };

#define BAD(err, ...) hapi_err_set(err, HAPI_EPROTO, 0, "record: " __VA_ARGS__)

size_t hapi_record_size(uint32_t count)
{
    size_t n = sizeof(struct hapi_record) + (size_t)count * sizeof(struct hapi_record_sample);

    return (n + RECORD_ALIGN - 1) & ~(size_t)(RECORD_ALIGN - 1);
}

static int check_head(const struct hapi_record *r, size_t avail, const struct hapi_request *req,
                      struct hapi_err *err)
{
    if (avail < sizeof *r)
        return BAD(err, "%zu bytes are no record", avail);
    if (r->magic != HAPI_RECORD_MAGIC)
        return BAD(err, "wrong magic number 0x%x", r->magic);
    if (r->major != HAPI_PROTO_MAJOR)
        return BAD(err, "version %u", r->major);
    if (r->request != req->index || r->generation != req->trace_id)
        return BAD(err, "of request %u, generation %llu: not ours", r->request,
                   (unsigned long long)r->generation);
    if (r->part >= req->max_parts)
        return BAD(err, "part %u of %u", r->part, req->max_parts);
    if (r->flags & ~(HAPI_RECORD_TERMINAL | HAPI_RECORD_CHECKSUM))
        return BAD(err, "unknown flags 0x%x", r->flags);
    if (!hapi_code_is_valid(r->status))
        return BAD(err, "status %d", r->status);
    if (r->label_encoding != HAPI_LABEL_CLASS_U32)
        return BAD(err, "label encoding %u", r->label_encoding);
    if (r->n_windows != req->n_windows)
        return BAD(err, "%u windows, the request has %u", r->n_windows, req->n_windows);
    return 0;
}

static int check_sizes(const struct hapi_record *r, size_t avail, const struct hapi_request *req,
                       struct hapi_err *err)
{
    if (r->first > req->n_samples || r->count > req->n_samples - r->first)
        return BAD(err, "samples %u+%u of %u", r->first, r->count, req->n_samples);
    if (r->count == 0 && r->status == 0 && !(r->flags & HAPI_RECORD_TERMINAL))
        return BAD(err, "part without samples");
    if (r->size != hapi_record_size(r->count) || r->size > avail)
        return BAD(err, "%u bytes for %u samples, %zu are there", r->size, r->count, avail);
    return 0;
}

static int check_sample(const struct hapi_record *r, uint32_t i, const struct hapi_request *req,
                        uint32_t n_labels, struct hapi_err *err)
{
    const struct hapi_record_sample *s = &r->samples[i];
    const struct hapi_window_ref *w = &req->windows[0];
    uint32_t at = r->first + i;

    if (!hapi_code_is_valid(s->status) || s->reserved)
        return BAD(err, "sample %u: status %d, reserved %u", at, s->status, s->reserved);
    if (s->status || r->status)
        return 0;
    if (s->label >= n_labels)
        return BAD(err, "sample %u: label %u of %u", at, s->label, n_labels);
    if (s->bytes == 0 || s->offset > w->capacity || s->bytes > w->capacity - s->offset)
        return BAD(err, "sample %u: %u bytes at %llu of a window of %llu", at, s->bytes,
                   (unsigned long long)s->offset, (unsigned long long)w->capacity);
    if (req->n_cut && (s->offset != at * w->stride || s->bytes > w->stride))
        return BAD(err, "sample %u: %u bytes at %llu, not in its place", at, s->bytes,
                   (unsigned long long)s->offset);
    return 0;
}

int hapi_record_check(const struct hapi_record *r, size_t avail, const struct hapi_request *req,
                      uint32_t n_labels, struct hapi_err *err)
{
    int rc = check_head(r, avail, req, err);

    if (rc == 0)
        rc = check_sizes(r, avail, req, err);
    for (uint32_t i = 0; rc == 0 && i < r->count; i++)
        rc = check_sample(r, i, req, n_labels, err);
    return rc;
}
