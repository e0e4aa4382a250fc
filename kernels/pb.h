/*
 * Protocol-buffer wire format: a zero-copy reader over bytes and a small writer. Internal to kernels/.
 *
 * The reader never recurses, never allocates and looks at each byte of the level it is on once; a nested
 * message is a view that its owner may open with a reader of its own. Plain data, any thread.
 */
#ifndef HAPI_KERNELS_PB_H
#define HAPI_KERNELS_PB_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct hapi_view {
    const uint8_t *p;
    size_t n;
};

enum hapi_pb_wire { HAPI_PB_VARINT = 0, HAPI_PB_I64 = 1, HAPI_PB_LEN = 2, HAPI_PB_I32 = 5 };

struct hapi_pb_field {
    uint32_t number;
    enum hapi_pb_wire wire;
    uint64_t value;         /* VARINT, I64, I32 (zero-extended) */
    struct hapi_view bytes; /* LEN: the content */
};

/* Takes one field off the front of *in. 1: a field; 0: the end; -1: malformed (groups count as such). */
int hapi_pb_next(struct hapi_view *in, struct hapi_pb_field *f);
/* Takes one varint off the front of *in; false when cut off or longer than ten bytes. */
bool hapi_pb_varint(struct hapi_view *in, uint64_t *out);
/* How many varints a packed field holds; -1 when the last one is cut off or one is too long. */
int64_t hapi_pb_count(struct hapi_view in);

/* A growing buffer; after an allocation failure `failed` is set and writes do nothing. The owner frees p. */
struct hapi_pb_out {
    uint8_t *p;
    size_t n, capacity;
    bool failed;
};

void hapi_pb_put(struct hapi_pb_out *o, const void *bytes, size_t n);
void hapi_pb_put_varint(struct hapi_pb_out *o, uint64_t v);
void hapi_pb_put_int(struct hapi_pb_out *o, uint32_t number, uint64_t v);
/* Tag and length of a LEN field whose n bytes follow. */
void hapi_pb_put_header(struct hapi_pb_out *o, uint32_t number, uint64_t n);
void hapi_pb_put_bytes(struct hapi_pb_out *o, uint32_t number, const void *bytes, size_t n);
void hapi_pb_put_string(struct hapi_pb_out *o, uint32_t number, const char *s);
/* Bytes that tag and length of a LEN field with n bytes take, content included. */
size_t hapi_pb_size(uint32_t number, uint64_t n);

#endif
