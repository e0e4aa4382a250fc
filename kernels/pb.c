#include "pb.h"

#include <stdlib.h>
#include <string.h>

bool hapi_pb_varint(struct hapi_view *in, uint64_t *out)
{
    uint64_t v = 0;

    for (unsigned i = 0; i < 10 && i < in->n; i++) {
        uint8_t b = in->p[i];
        if (i == 9 && b > 1)
            return false;
        v |= (uint64_t)(b & 0x7f) << (7 * i);
        if (!(b & 0x80)) {
            in->p += i + 1;
            in->n -= i + 1;
            *out = v;
            return true;
        }
    }
    return false;
}

int64_t hapi_pb_count(struct hapi_view in)
{
    int64_t n = 0;
    uint64_t v;

    for (; in.n; n++)
        if (!hapi_pb_varint(&in, &v))
            return -1;
    return n;
}

static uint64_t little_endian(const uint8_t *p, unsigned n)
{
    uint64_t v = 0;
    for (unsigned i = 0; i < n; i++)
        v |= (uint64_t)p[i] << (8 * i);
    return v;
}

int hapi_pb_next(struct hapi_view *in, struct hapi_pb_field *f)
{
    uint64_t tag;
    unsigned fixed;

    if (!in->n)
        return 0;
    if (!hapi_pb_varint(in, &tag) || tag >> 3 == 0 || tag >> 3 > (1u << 29) - 1)
        return -1;
    f->number = (uint32_t)(tag >> 3);
    f->bytes = (struct hapi_view){NULL, 0};
    f->value = 0;
    switch (tag & 7) {
    case HAPI_PB_VARINT:
        f->wire = HAPI_PB_VARINT;
        return hapi_pb_varint(in, &f->value) ? 1 : -1;
    case HAPI_PB_LEN:
        f->wire = HAPI_PB_LEN;
        if (!hapi_pb_varint(in, &f->value) || f->value > in->n)
            return -1;
        f->bytes = (struct hapi_view){in->p, (size_t)f->value};
        in->p += f->value;
        in->n -= f->value;
        return 1;
    case HAPI_PB_I64:
    case HAPI_PB_I32:
        f->wire = (tag & 7) == HAPI_PB_I64 ? HAPI_PB_I64 : HAPI_PB_I32;
        fixed = f->wire == HAPI_PB_I64 ? 8 : 4;
        if (in->n < fixed)
            return -1;
        f->value = little_endian(in->p, fixed);
        in->p += fixed;
        in->n -= fixed;
        return 1;
    default:
        return -1;
    }
}

void hapi_pb_put(struct hapi_pb_out *o, const void *bytes, size_t n)
{
    if (o->failed || !n)
        return;
    if (n > o->capacity - o->n) {
        size_t want = o->capacity ? o->capacity : 4096;
        while (want - o->n < n)
            if (__builtin_mul_overflow(want, (size_t)2, &want)) {
                o->failed = true;
                return;
            }
        uint8_t *p = realloc(o->p, want);
        if (!p) {
            o->failed = true;
            return;
        }
        o->p = p;
        o->capacity = want;
    }
    memcpy(o->p + o->n, bytes, n);
    o->n += n;
}

void hapi_pb_put_varint(struct hapi_pb_out *o, uint64_t v)
{
    uint8_t b[10];
    size_t n = 0;

    for (; v >= 0x80; v >>= 7)
        b[n++] = (uint8_t)(v | 0x80);
    b[n++] = (uint8_t)v;
    hapi_pb_put(o, b, n);
}

void hapi_pb_put_int(struct hapi_pb_out *o, uint32_t number, uint64_t v)
{
    hapi_pb_put_varint(o, (uint64_t)number << 3 | HAPI_PB_VARINT);
    hapi_pb_put_varint(o, v);
}

void hapi_pb_put_header(struct hapi_pb_out *o, uint32_t number, uint64_t n)
{
    hapi_pb_put_varint(o, (uint64_t)number << 3 | HAPI_PB_LEN);
    hapi_pb_put_varint(o, n);
}

void hapi_pb_put_bytes(struct hapi_pb_out *o, uint32_t number, const void *bytes, size_t n)
{
    hapi_pb_put_header(o, number, n);
    hapi_pb_put(o, bytes, n);
}

void hapi_pb_put_string(struct hapi_pb_out *o, uint32_t number, const char *s)
{
    hapi_pb_put_bytes(o, number, s, strlen(s));
}

static size_t varint_size(uint64_t v)
{
    size_t n = 1;
    while (v >>= 7)
        n++;
    return n;
}

size_t hapi_pb_size(uint32_t number, uint64_t n)
{
    return varint_size((uint64_t)number << 3) + varint_size(n) + n;
}
