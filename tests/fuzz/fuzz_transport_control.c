/*
 * Bodies of control messages: the first byte says which decoder. What is accepted encodes to something no
 * longer that decodes and encodes to the same bytes; lists stay inside their message.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "wire.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static uint8_t one[HAPI_FRAME_MAX], two[HAPI_FRAME_MAX];

/* TRIP(hello, hapi_hello): decode, encode, decode, encode. */
#define TRIP(thing, type)                                                                                    \
    static void trip_##thing(const uint8_t *p, size_t size)                                                  \
    {                                                                                                        \
        struct type m;                                                                                       \
        struct hapi_err err = {0};                                                                           \
        int rc = hapi_##thing##_decode(&m, p, size, &err);                                                   \
        if (rc) {                                                                                            \
            if (rc != HAPI_EPROTO || err.code != rc)                                                         \
                abort();                                                                                     \
            return;                                                                                          \
        }                                                                                                    \
        int n = hapi_##thing##_encode(&m, one, sizeof one);                                                  \
        if (n < 0 || (size_t)n > size || hapi_##thing##_decode(&m, one, (size_t)n, NULL))                    \
            abort();                                                                                         \
        if (hapi_##thing##_encode(&m, two, sizeof two) != n || memcmp(one, two, (size_t)n))                  \
            abort();                                                                                         \
    }
TRIP(hello, hapi_hello)
TRIP(msg_error, hapi_msg_error)
TRIP(msg_model, hapi_msg_model)
TRIP(msg_data, hapi_msg_data)
TRIP(msg_index, hapi_msg_index)
TRIP(msg_heartbeat, hapi_msg_heartbeat)
TRIP(msg_clock, hapi_msg_clock)
TRIP(msg_text, hapi_msg_text)

static void inside(struct hapi_str s, const uint8_t *p, size_t size)
{
    if (s.n && ((const uint8_t *)s.s < p || (const uint8_t *)s.s + s.n > p + size))
        abort();
}

static void datasets(const uint8_t *p, size_t size)
{
    struct hapi_list_cursor c;
    struct hapi_msg_dataset d;
    struct hapi_list l;

    if (hapi_list_open(&c, p, size, NULL) || hapi_list_begin(&l, one, sizeof one, c.id))
        return;
    while (hapi_list_next_dataset(&c, &d, NULL) == 1) {
        struct hapi_str blob = d.classes_blob, name;
        uint32_t classes = 0;
        inside(d.name, p, size);
        inside(blob, p, size);
        for (; hapi_classes_next(&blob, &name); classes++)
            inside(name, p, size);
        if (classes != d.n_classes || blob.n)
            abort();
        /* A list is re-encoded shorter or equal, so that only its own reserve can be missing. */
        if (hapi_list_dataset(&l, &d) == HAPI_EINVAL)
            abort();
    }
}

static void objects(const uint8_t *p, size_t size)
{
    struct hapi_list_cursor c;
    struct hapi_msg_object o;
    struct hapi_list l;

    if (hapi_list_open(&c, p, size, NULL) || hapi_list_begin(&l, one, sizeof one, c.id))
        return;
    while (hapi_list_next_object(&c, &o, NULL) == 1) {
        inside(o.name, p, size);
        inside(o.version, p, size);
        inside(o.sample_bytes, p, size);
        if (o.sample_bytes.n != 4 * (uint64_t)o.samples || o.version.n > HAPI_WIRE_VERSION_MAX)
            abort();
        if (hapi_list_object(&l, &o) == HAPI_EINVAL)
            abort();
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static void (*const decoders[])(const uint8_t *, size_t) = {
        trip_hello,         trip_msg_error, trip_msg_model, trip_msg_data, trip_msg_index,
        trip_msg_heartbeat, trip_msg_clock, trip_msg_text,  datasets,      objects};

    if (size == 0 || data[0] >= sizeof decoders / sizeof *decoders || size - 1 > HAPI_FRAME_MAX)
        return 0;
    decoders[data[0]](data + 1, size - 1);
    return 0;
}
