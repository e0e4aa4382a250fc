#include "wire.h"

#include <string.h>

#include "wire_fields.h"

/* One place for the size of a table and the type it belongs to. */
#define COUNT(a) (sizeof(a) / sizeof *(a))
#define U16(tag, flags, type, member)                                                                        \
    {                                                                                                        \
        tag, HAPI_FIELD_U16, flags, 0, offsetof(struct type, member), #member                                \
    }
#define U32(tag, flags, type, member)                                                                        \
    {                                                                                                        \
        tag, HAPI_FIELD_U32, flags, 0, offsetof(struct type, member), #member                                \
    }
#define U64(tag, flags, type, member)                                                                        \
    {                                                                                                        \
        tag, HAPI_FIELD_U64, flags, 0, offsetof(struct type, member), #member                                \
    }
#define HASH(tag, flags, type, member)                                                                       \
    {                                                                                                        \
        tag, HAPI_FIELD_HASH, flags, 0, offsetof(struct type, member), #member                               \
    }
#define STR(tag, flags, type, member, max)                                                                   \
    {                                                                                                        \
        tag, HAPI_FIELD_STR, flags, max, offsetof(struct type, member), #member                              \
    }
#define BLOB(tag, flags, type, member, max)                                                                  \
    {                                                                                                        \
        tag, HAPI_FIELD_BLOB, flags, max, offsetof(struct type, member), #member                             \
    }

enum { REQUIRED = HAPI_FIELD_REQUIRED };

/* Encode when `check` has nothing against it: nothing leaves that the peer's decoder would refuse. */
static int encode(const struct hapi_field *f, size_t n, const void *m, int checked, void *buf, size_t size)
{
    struct hapi_writer w;

    if (checked)
        return HAPI_EINVAL;
    hapi_writer_init(&w, buf, size);
    hapi_writer_fields(&w, f, n, m);
    return hapi_writer_result(&w);
}

/* ---- hello: this message and the frame header never change, whatever the major version ---- */

struct hello_wire {
    struct hapi_hello h;
    uint32_t magic;
};

static const struct hapi_field hello_fields[] = {
    U32(1, REQUIRED, hello_wire, magic),
    U16(2, REQUIRED, hello_wire, h.major_min),
    U16(3, REQUIRED, hello_wire, h.major_max),
    U16(4, 0, hello_wire, h.minor),
    U32(5, 0, hello_wire, h.caps),
    STR(6, REQUIRED, hello_wire, h.role, 32),
    STR(7, 0, hello_wire, h.version, HAPI_NAME_MAX),
    STR(8, 0, hello_wire, h.numeric_class, HAPI_NAME_MAX),
    U64(9, 0, hello_wire, h.heartbeat_ms),
};

static int hello_check(const struct hello_wire *m, struct hapi_err *err)
{
    if (m->magic != HAPI_PROTO_MAGIC)
        return hapi_err_set(err, HAPI_EPROTO, 0, "hello with a wrong magic number");
    if (m->h.major_min == 0 || m->h.major_min > m->h.major_max)
        return hapi_err_set(err, HAPI_EPROTO, 0, "hello with versions %u to %u", m->h.major_min,
                            m->h.major_max);
    if (m->h.role.n == 0)
        return hapi_err_set(err, HAPI_EPROTO, 0, "hello with an empty role");
    return 0;
}

int hapi_hello_encode(const struct hapi_hello *m, void *buf, size_t size)
{
    struct hello_wire w = {*m, HAPI_PROTO_MAGIC};

    return encode(hello_fields, COUNT(hello_fields), &w, hello_check(&w, NULL), buf, size);
}

int hapi_hello_decode(struct hapi_hello *m, const void *buf, size_t n, struct hapi_err *err)
{
    struct hello_wire w;
    int rc = hapi_fields_decode(hello_fields, COUNT(hello_fields), &w, buf, n, NULL, err);

    if (rc == 0)
        rc = hello_check(&w, err);
    if (rc == 0)
        *m = w.h;
    return rc;
}

/* ---- error ---- */

static const struct hapi_field error_fields[] = {
    U64(1, 0, hapi_msg_error, id),
    U32(2, REQUIRED, hapi_msg_error, code),
    STR(3, 0, hapi_msg_error, text, HAPI_ERR_TEXT),
};

static int error_check(const struct hapi_msg_error *m, struct hapi_err *err)
{
    if (m->code == 0 || !hapi_code_is_valid(m->code))
        return hapi_err_set(err, HAPI_EPROTO, 0, "error message with code %d", m->code);
    return 0;
}

int hapi_msg_error_encode(const struct hapi_msg_error *m, void *buf, size_t size)
{
    return encode(error_fields, COUNT(error_fields), m, error_check(m, NULL), buf, size);
}

int hapi_msg_error_decode(struct hapi_msg_error *m, const void *buf, size_t n, struct hapi_err *err)
{
    int rc = hapi_fields_decode(error_fields, COUNT(error_fields), m, buf, n, NULL, err);

    return rc ? rc : error_check(m, err);
}

/* ---- model ---- */

static const struct hapi_field model_fields[] = {
    U64(1, 0, hapi_msg_model, id),
    HASH(2, REQUIRED, hapi_msg_model, hash),
    U64(3, 0, hapi_msg_model, size),
    U64(4, 0, hapi_msg_model, offset),
    BLOB(5, 0, hapi_msg_model, bytes, HAPI_FRAME_MAX),
};

static int model_check(const struct hapi_msg_model *m, struct hapi_err *err)
{
    /* size 0: a message that does not say it (CHUNK and READY need not). */
    if (m->size && (m->offset > m->size || m->bytes.n > m->size - m->offset))
        return hapi_err_set(err, HAPI_EPROTO, 0, "model bytes %llu+%u lie outside its %llu bytes",
                            (unsigned long long)m->offset, m->bytes.n, (unsigned long long)m->size);
    if (m->offset > UINT64_MAX - m->bytes.n)
        return hapi_err_set(err, HAPI_EPROTO, 0, "model offset overflows");
    return 0;
}

int hapi_msg_model_encode(const struct hapi_msg_model *m, void *buf, size_t size)
{
    return encode(model_fields, COUNT(model_fields), m, model_check(m, NULL), buf, size);
}

int hapi_msg_model_decode(struct hapi_msg_model *m, const void *buf, size_t n, struct hapi_err *err)
{
    int rc = hapi_fields_decode(model_fields, COUNT(model_fields), m, buf, n, NULL, err);

    return rc ? rc : model_check(m, err);
}

/* ---- data connection ---- */

static const struct hapi_field data_fields[] = {
    U64(1, 0, hapi_msg_data, id),
    STR(2, REQUIRED, hapi_msg_data, transport, 32),
    STR(3, 0, hapi_msg_data, host, HAPI_NAME_MAX),
    U16(4, 0, hapi_msg_data, port),
    HASH(5, 0, hapi_msg_data, nonce),
    U32(6, 0, hapi_msg_data, max_requests),
    U32(7, 0, hapi_msg_data, max_parts),
};
_Static_assert(HAPI_NONCE_SIZE == HAPI_HASH_SIZE, "the nonce travels as a field of the hash kind");

static int data_check(const struct hapi_msg_data *m, struct hapi_err *err)
{
    if (m->transport.n == 0)
        return hapi_err_set(err, HAPI_EPROTO, 0, "no transport named");
    /* imm32 has 16 bits for each. */
    if (m->max_requests > 65536 || m->max_parts > 65536)
        return hapi_err_set(err, HAPI_EPROTO, 0, "%u requests, %u parts: at most 65536 each", m->max_requests,
                            m->max_parts);
    return 0;
}

int hapi_msg_data_encode(const struct hapi_msg_data *m, void *buf, size_t size)
{
    return encode(data_fields, COUNT(data_fields), m, data_check(m, NULL), buf, size);
}

int hapi_msg_data_decode(struct hapi_msg_data *m, const void *buf, size_t n, struct hapi_err *err)
{
    int rc = hapi_fields_decode(data_fields, COUNT(data_fields), m, buf, n, NULL, err);

    return rc ? rc : data_check(m, err);
}

/* ---- index ---- */

static const struct hapi_field index_fields[] = {
    U64(1, 0, hapi_msg_index, id),
    STR(2, REQUIRED, hapi_msg_index, dataset, HAPI_NAME_MAX),
    U64(3, 0, hapi_msg_index, first),
};

static int index_check(const struct hapi_msg_index *m, struct hapi_err *err)
{
    if (!hapi_name_is_safe(m->dataset))
        return hapi_err_set(err, HAPI_EPROTO, 0, "not a dataset's name");
    return 0;
}

int hapi_msg_index_encode(const struct hapi_msg_index *m, void *buf, size_t size)
{
    return encode(index_fields, COUNT(index_fields), m, index_check(m, NULL), buf, size);
}

int hapi_msg_index_decode(struct hapi_msg_index *m, const void *buf, size_t n, struct hapi_err *err)
{
    int rc = hapi_fields_decode(index_fields, COUNT(index_fields), m, buf, n, NULL, err);

    return rc ? rc : index_check(m, err);
}

/* ---- heartbeat, clock, text ---- */

static const struct hapi_field heartbeat_fields[] = {
    U64(1, 0, hapi_msg_heartbeat, now_ns),
    U64(2, 0, hapi_msg_heartbeat, queued),
    U64(3, 0, hapi_msg_heartbeat, running),
};

int hapi_msg_heartbeat_encode(const struct hapi_msg_heartbeat *m, void *buf, size_t size)
{
    return encode(heartbeat_fields, COUNT(heartbeat_fields), m, 0, buf, size);
}

int hapi_msg_heartbeat_decode(struct hapi_msg_heartbeat *m, const void *buf, size_t n, struct hapi_err *err)
{
    return hapi_fields_decode(heartbeat_fields, COUNT(heartbeat_fields), m, buf, n, NULL, err);
}

static const struct hapi_field clock_fields[] = {
    U64(1, REQUIRED, hapi_msg_clock, t0_ns),
    U64(2, 0, hapi_msg_clock, t1_ns),
};

int hapi_msg_clock_encode(const struct hapi_msg_clock *m, void *buf, size_t size)
{
    return encode(clock_fields, COUNT(clock_fields), m, 0, buf, size);
}

int hapi_msg_clock_decode(struct hapi_msg_clock *m, const void *buf, size_t n, struct hapi_err *err)
{
    return hapi_fields_decode(clock_fields, COUNT(clock_fields), m, buf, n, NULL, err);
}

static const struct hapi_field text_fields[] = {
    U64(1, 0, hapi_msg_text, id),
    STR(2, 0, hapi_msg_text, text, HAPI_FRAME_MAX),
};

int hapi_msg_text_encode(const struct hapi_msg_text *m, void *buf, size_t size)
{
    return encode(text_fields, COUNT(text_fields), m, 0, buf, size);
}

int hapi_msg_text_decode(struct hapi_msg_text *m, const void *buf, size_t n, struct hapi_err *err)
{
    return hapi_fields_decode(text_fields, COUNT(text_fields), m, buf, n, NULL, err);
}
