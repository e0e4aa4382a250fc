/*
 * Type-length-value fields by table: one row per field serves the encoder and the decoder, so that they
 * cannot disagree. Private to transport/.
 *
 *     static const struct hapi_field clock_fields[] = {
 *         {1, HAPI_FIELD_U64, HAPI_FIELD_REQUIRED, 0, offsetof(struct hapi_msg_clock, t0_ns), "t0"},
 *     };
 *
 * An optional field whose value is zero or empty is not written, and is zero or empty when it is absent: the
 * encoding of a decoded message is never longer than the message was. Any thread.
 */
#ifndef HAPI_TRANSPORT_WIRE_FIELDS_H
#define HAPI_TRANSPORT_WIRE_FIELDS_H

#include <stddef.h>
#include <stdint.h>

#include "wire.h"

enum { HAPI_FIELD_HEADER = 8 }; /* u16 tag | u16 zero | u32 length */

enum hapi_field_kind {
    HAPI_FIELD_U16,
    HAPI_FIELD_U32, /* uint32_t, int32_t or an enum: 4 bytes */
    HAPI_FIELD_U64,
    HAPI_FIELD_HASH, /* HAPI_HASH_SIZE bytes in the struct */
    HAPI_FIELD_STR,  /* struct hapi_str, no NUL inside */
    HAPI_FIELD_BLOB, /* struct hapi_str, any bytes */
};

enum { HAPI_FIELD_REQUIRED = 1 };

struct hapi_field {
    uint16_t tag;
    uint8_t kind, flags;
    uint32_t max; /* STR and BLOB: greatest length in bytes */
    size_t offset;
    const char *name;
};

/* Writes fields into buf[size]; `used` counts what was written, `code` is the first error (sticky). */
struct hapi_writer {
    uint8_t *buf;
    size_t size, used;
    int code;
};

void hapi_writer_init(struct hapi_writer *w, void *buf, size_t size);
/* bytes used, or the first error */
int hapi_writer_result(const struct hapi_writer *w);
/* The room for a value of n bytes, or NULL (HAPI_ETOOBIG kept). */
uint8_t *hapi_writer_field(struct hapi_writer *w, uint16_t tag, size_t n);
/* A nested field: begin returns its place, end fills its length. */
size_t hapi_writer_begin(struct hapi_writer *w, uint16_t tag);
void hapi_writer_end(struct hapi_writer *w, size_t place);
/* All the fields of `m`; HAPI_EINVAL for a string that is too long or has a NUL in it. */
void hapi_writer_fields(struct hapi_writer *w, const struct hapi_field *f, size_t n, const void *m);

/* Takes fields one by one: 1, 0 at the end, HAPI_EPROTO. *v and *n are the value. */
struct hapi_reader {
    const uint8_t *at, *end;
};
int hapi_reader_next(struct hapi_reader *r, uint16_t *tag, const uint8_t **v, uint32_t *n,
                     struct hapi_err *err);

/* Sets every field of m from the message (members that no row names are left alone). A tag that no row names
 * goes to `other` (may be NULL: skipped), which returns 0 or HAPI_EPROTO. n_fields <= 64. */
int hapi_fields_decode(const struct hapi_field *f, size_t n_fields, void *m, const void *buf, size_t n,
                       int (*other)(void *m, uint16_t tag, const uint8_t *v, uint32_t n,
                                    struct hapi_err *err),
                       struct hapi_err *err);

/* Little-endian loads and stores at any alignment. */
uint16_t hapi_get16(const uint8_t *p);
uint32_t hapi_get32(const uint8_t *p);
uint64_t hapi_get64(const uint8_t *p);
void hapi_put16(uint8_t *p, uint16_t v);
void hapi_put32(uint8_t *p, uint32_t v);
void hapi_put64(uint8_t *p, uint64_t v);

/* 1..HAPI_NAME_MAX bytes, no NUL, no leading '/', no empty, "." or ".." part: safe below a folder. */
bool hapi_name_is_safe(struct hapi_str s);
/* 0, or an error code that can be on the wire: -65535..-1. */
bool hapi_code_is_valid(int32_t code);

#endif
