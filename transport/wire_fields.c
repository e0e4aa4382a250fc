#include "wire_fields.h"

#include <string.h>

uint16_t hapi_get16(const uint8_t *p)
{
    return (uint16_t)(p[0] | p[1] << 8);
}

uint32_t hapi_get32(const uint8_t *p)
{
    return (uint32_t)hapi_get16(p) | (uint32_t)hapi_get16(p + 2) << 16;
}

uint64_t hapi_get64(const uint8_t *p)
{
    return (uint64_t)hapi_get32(p) | (uint64_t)hapi_get32(p + 4) << 32;
}

void hapi_put16(uint8_t *p, uint16_t v)
{
    p[0] = (uint8_t)v;
    p[1] = (uint8_t)(v >> 8);
}

void hapi_put32(uint8_t *p, uint32_t v)
{
    hapi_put16(p, (uint16_t)v);
    hapi_put16(p + 2, (uint16_t)(v >> 16));
}

void hapi_put64(uint8_t *p, uint64_t v)
{
    hapi_put32(p, (uint32_t)v);
    hapi_put32(p + 4, (uint32_t)(v >> 32));
}

bool hapi_name_is_safe(struct hapi_str s)
{
    uint32_t part = 0; /* where the current part begins */

    if (s.n == 0 || s.n > HAPI_NAME_MAX || memchr(s.s, '\0', s.n))
        return false;
    for (uint32_t i = 0; i <= s.n; i++) {
        if (i < s.n && s.s[i] != '/')
            continue;
        uint32_t len = i - part;
        if (len == 0 || (len == 1 && s.s[part] == '.') ||
            (len == 2 && s.s[part] == '.' && s.s[part + 1] == '.'))
            return false;
        part = i + 1;
    }
    return true;
}

bool hapi_code_is_valid(int32_t code)
{
    return code <= 0 && code >= -65535;
}

/* ---- writing ---- */

void hapi_writer_init(struct hapi_writer *w, void *buf, size_t size)
{
    *w = (struct hapi_writer){.buf = buf, .size = size > INT32_MAX ? INT32_MAX : size};
}

int hapi_writer_result(const struct hapi_writer *w)
{
    return w->code ? w->code : (int)w->used;
}

uint8_t *hapi_writer_field(struct hapi_writer *w, uint16_t tag, size_t n)
{
    size_t left = w->size - w->used;

    if (w->code)
        return NULL;
    if (left < HAPI_FIELD_HEADER || n > left - HAPI_FIELD_HEADER) {
        w->code = HAPI_ETOOBIG;
        return NULL;
    }
    uint8_t *p = w->buf + w->used;
    hapi_put16(p, tag);
    hapi_put16(p + 2, 0);
    hapi_put32(p + 4, (uint32_t)n);
    w->used += HAPI_FIELD_HEADER + n;
    return p + HAPI_FIELD_HEADER;
}

size_t hapi_writer_begin(struct hapi_writer *w, uint16_t tag)
{
    size_t place = w->used;

    hapi_writer_field(w, tag, 0);
    return place;
}

void hapi_writer_end(struct hapi_writer *w, size_t place)
{
    if (!w->code)
        hapi_put32(w->buf + place + 4, (uint32_t)(w->used - place - HAPI_FIELD_HEADER));
}

static void write_str(struct hapi_writer *w, const struct hapi_field *f, const uint8_t *member)
{
    struct hapi_str s;

    memcpy(&s, member, sizeof s);
    if (s.n == 0 && !(f->flags & HAPI_FIELD_REQUIRED))
        return;
    if (s.n > f->max || (s.n && f->kind == HAPI_FIELD_STR && memchr(s.s, '\0', s.n))) {
        if (!w->code)
            w->code = HAPI_EINVAL;
        return;
    }
    uint8_t *v = hapi_writer_field(w, f->tag, s.n);
    if (v && s.n)
        memcpy(v, s.s, s.n);
}

/* Bytes of a fixed-size kind, 0 for strings. */
static uint32_t kind_bytes(unsigned kind)
{
    switch (kind) {
    case HAPI_FIELD_U16:
        return 2;
    case HAPI_FIELD_U32:
        return 4;
    case HAPI_FIELD_U64:
        return 8;
    case HAPI_FIELD_HASH:
        return HAPI_HASH_SIZE;
    default:
        return 0;
    }
}

static bool all_zero(const uint8_t *p, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (p[i])
            return false;
    return true;
}

void hapi_writer_fields(struct hapi_writer *w, const struct hapi_field *f, size_t n, const void *m)
{
    for (size_t i = 0; i < n; i++, f++) {
        const uint8_t *member = (const uint8_t *)m + f->offset;
        uint32_t bytes = kind_bytes(f->kind);
        uint16_t u16;
        uint32_t u32;
        uint64_t u64;

        if (bytes == 0) {
            write_str(w, f, member);
            continue;
        }
        if (!(f->flags & HAPI_FIELD_REQUIRED) && all_zero(member, bytes))
            continue;
        uint8_t *v = hapi_writer_field(w, f->tag, bytes);
        if (!v)
            return;
        if (f->kind == HAPI_FIELD_U16) {
            memcpy(&u16, member, sizeof u16);
            hapi_put16(v, u16);
        } else if (f->kind == HAPI_FIELD_U32) {
            memcpy(&u32, member, sizeof u32);
            hapi_put32(v, u32);
        } else if (f->kind == HAPI_FIELD_U64) {
            memcpy(&u64, member, sizeof u64);
            hapi_put64(v, u64);
        } else {
            memcpy(v, member, bytes);
        }
    }
}

/* ---- reading ---- */

int hapi_reader_next(struct hapi_reader *r, uint16_t *tag, const uint8_t **v, uint32_t *n,
                     struct hapi_err *err)
{
    size_t left = (size_t)(r->end - r->at);

    if (left == 0)
        return 0;
    if (left < HAPI_FIELD_HEADER)
        return hapi_err_set(err, HAPI_EPROTO, 0, "%zu bytes where a field's header should be", left);
    uint32_t len = hapi_get32(r->at + 4);
    if (hapi_get16(r->at + 2) != 0)
        return hapi_err_set(err, HAPI_EPROTO, 0, "field %u: reserved bits are set", hapi_get16(r->at));
    if (len > left - HAPI_FIELD_HEADER)
        return hapi_err_set(err, HAPI_EPROTO, 0, "field %u says %u bytes, %zu are left", hapi_get16(r->at),
                            len, left - HAPI_FIELD_HEADER);
    *tag = hapi_get16(r->at);
    *v = r->at + HAPI_FIELD_HEADER;
    *n = len;
    r->at += HAPI_FIELD_HEADER + len;
    return 1;
}

static int read_field(const struct hapi_field *f, uint8_t *member, const uint8_t *v, uint32_t n,
                      struct hapi_err *err)
{
    uint32_t bytes = kind_bytes(f->kind);
    struct hapi_str s = {(const char *)v, n};
    uint16_t u16;
    uint32_t u32;
    uint64_t u64;

    if (bytes && n != bytes)
        return hapi_err_set(err, HAPI_EPROTO, 0, "field %s has %u bytes, not %u", f->name, n, bytes);
    switch (f->kind) {
    case HAPI_FIELD_U16:
        u16 = hapi_get16(v);
        memcpy(member, &u16, sizeof u16);
        return 0;
    case HAPI_FIELD_U32:
        u32 = hapi_get32(v);
        memcpy(member, &u32, sizeof u32);
        return 0;
    case HAPI_FIELD_U64:
        u64 = hapi_get64(v);
        memcpy(member, &u64, sizeof u64);
        return 0;
    case HAPI_FIELD_HASH:
        memcpy(member, v, HAPI_HASH_SIZE);
        return 0;
    default:
        if (n > f->max)
            return hapi_err_set(err, HAPI_EPROTO, 0, "field %s has %u bytes, at most %u", f->name, n, f->max);
        if (n && f->kind == HAPI_FIELD_STR && memchr(v, '\0', n))
            return hapi_err_set(err, HAPI_EPROTO, 0, "field %s has a NUL in it", f->name);
        memcpy(member, &s, sizeof s);
        return 0;
    }
}

static void clear_fields(const struct hapi_field *f, size_t n, uint8_t *m)
{
    for (size_t i = 0; i < n; i++) {
        size_t bytes = kind_bytes(f[i].kind);
        memset(m + f[i].offset, 0, bytes ? bytes : sizeof(struct hapi_str));
    }
}

int hapi_fields_decode(const struct hapi_field *f, size_t n_fields, void *m, const void *buf, size_t n,
                       int (*other)(void *m, uint16_t tag, const uint8_t *v, uint32_t n,
                                    struct hapi_err *err),
                       struct hapi_err *err)
{
    struct hapi_reader r = {buf, buf ? (const uint8_t *)buf + n : NULL};
    uint64_t seen = 0;
    const uint8_t *v = NULL;
    uint16_t tag = 0;
    uint32_t len = 0;
    int rc;

    clear_fields(f, n_fields, m);
    while ((rc = hapi_reader_next(&r, &tag, &v, &len, err)) > 0) {
        size_t i = 0;
        while (i < n_fields && f[i].tag != tag)
            i++;
        if (i == n_fields) {
            rc = other ? other(m, tag, v, len, err) : 0;
        } else if (seen >> i & 1) {
            rc = hapi_err_set(err, HAPI_EPROTO, 0, "field %s is there twice", f[i].name);
        } else {
            seen |= UINT64_C(1) << i;
            rc = read_field(&f[i], (uint8_t *)m + f[i].offset, v, len, err);
        }
        if (rc)
            return rc;
    }
    for (size_t i = 0; rc == 0 && i < n_fields; i++)
        if ((f[i].flags & HAPI_FIELD_REQUIRED) && !(seen >> i & 1))
            rc = hapi_err_set(err, HAPI_EPROTO, 0, "field %s is missing", f[i].name);
    return rc;
}
