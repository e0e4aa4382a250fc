/*
 * The wire format: every message of both connections, encoded and checked. docs/protocol.md is its prose.
 *
 * Control frames (TCP/TLS):  u32 length of what follows | u16 type | u16 flags | body
 * Bodies and requests are type-length-value fields: u16 tag | u16 zero | u32 length | value, little-endian;
 * unknown tags are skipped, a tag seen twice where one is allowed is an error. Records are fixed-layout
 * structs in memory that RDMA writes; they carry their own version and sizes.
 *
 * Decoding never allocates and never trusts a length, count or offset: it fills caller's arrays of stated
 * capacity and keeps pointers into the message ("borrowed"). Every decoder is a fuzz target.
 * Any thread.
 */
#ifndef HAPI_TRANSPORT_WIRE_H
#define HAPI_TRANSPORT_WIRE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "err.h"
#include "tensor.h"

#define HAPI_PROTO_MAJOR 1
#define HAPI_PROTO_MINOR 0
#define HAPI_PROTO_MAGIC 0x49504148u /* "HAPI" */

enum {
    HAPI_FRAME_MAX = 1 << 20,    /* bytes of a control frame's body */
    HAPI_REQUEST_MAX = 64 << 10, /* bytes of an encoded request */
    HAPI_REQUEST_SAMPLES = 512,  /* samples, and objects, of one request */
    HAPI_CUT_TENSORS = 32,       /* crossing tensors of a cut */
    HAPI_NAME_MAX = 255,         /* bytes of a dataset, object, tensor or class name */
    HAPI_TRANSFORM_MAX = 1024,   /* bytes of a transform's canonical JSON */
    HAPI_WIRE_VERSION_MAX = 64,  /* bytes of an opaque object version */
    HAPI_NONCE_SIZE = 32,
    HAPI_HASH_SIZE = 32,
};

/* A borrowed string: not terminated, no NUL inside (checked by the decoders). */
struct hapi_str {
    const char *s;
    uint32_t n;
};

/* ---- control messages. X(ENUM, value) ---- */
#define HAPI_MESSAGES(X)                                                                                     \
    X(HAPI_MSG_HELLO, 1)        /* both ways, first: version window, capabilities, numeric class, role */    \
    X(HAPI_MSG_ERROR, 2)        /* code, text; answers any request; id 0: the connection closes */           \
    X(HAPI_MSG_LS, 3)           /* client: datasets? */                                                      \
    X(HAPI_MSG_LS_REPLY, 4)     /* one DATASET field each */                                                 \
    X(HAPI_MSG_INDEX, 5)        /* client: objects of a dataset from object `first` on */                    \
    X(HAPI_MSG_INDEX_REPLY, 6)  /* as many OBJECT fields as fit a frame; `more` */                           \
    X(HAPI_MSG_MODEL_OFFER, 7)  /* client: hash, size */                                                     \
    X(HAPI_MSG_MODEL_WANT, 8)   /* node: send it (offset) */                                                 \
    X(HAPI_MSG_MODEL_CHUNK, 9)  /* client: hash, offset, bytes */                                            \
    X(HAPI_MSG_MODEL_READY, 10) /* node: hash is here and hash matches */                                    \
    X(HAPI_MSG_DATA_OPEN, 11)   /* client: transport wanted, requests in flight */                           \
    X(HAPI_MSG_DATA_READY, 12)  /* node: transport, address, one-time nonce, limits */                       \
    X(HAPI_MSG_HEARTBEAT, 13)   /* both ways: time stamps, queued and running requests */                    \
    X(HAPI_MSG_CLOCK, 14)       /* client: t0 */                                                             \
    X(HAPI_MSG_CLOCK_REPLY, 15) /* node: t0, t1 */                                                           \
    X(HAPI_MSG_STAT, 16)        /* client: counters? */                                                      \
    X(HAPI_MSG_STAT_REPLY, 17)  /* node: JSON text of its counters */                                        \
    X(HAPI_MSG_LOCATE, 18)      /* client: where are these objects? */                                       \
    X(HAPI_MSG_LOCATE_REPLY, 19)                                                                             \
    X(HAPI_MSG_CREDENTIAL, 20) /* client: store credential for later requests (control channel only) */      \
    X(HAPI_MSG_BYE, 21)        /* either side: draining, why */

enum hapi_message {
#define X(name, value) name = (value),
    HAPI_MESSAGES(X)
#undef X
};

/* Capability bits of hello. */
enum {
    HAPI_CAP_TRANSPORT_OFI = 1 << 0,
    HAPI_CAP_TRANSPORT_VERBS = 1 << 1,
    HAPI_CAP_BF16 = 1 << 2, /* computes in bf16 */
    HAPI_CAP_CHECKSUM = 1 << 3,
    HAPI_CAP_UPLOAD = 1 << 4,
    HAPI_CAP_INT8 = 1 << 5, /* wire dtype i8: rows of base/int8.h */
    HAPI_CAP_COMPUTE_I8 = 1 << 6,
    HAPI_CAP_F16 = 1 << 7, /* computes in f16: on a GPU */
};

struct hapi_hello {
    uint16_t major_min, major_max, minor; /* versions this side speaks; minor of major_max */
    uint32_t caps;
    struct hapi_str role;          /* "node", "client" */
    struct hapi_str version;       /* program version, for logs */
    struct hapi_str numeric_class; /* "onednn/avx512_core"; empty from clients */
    uint64_t heartbeat_ms;         /* this side sends one at least so often */
};

struct hapi_msg_error {
    uint64_t id;  /* of the message it answers; 0: of the connection */
    int32_t code; /* HAPI_E* */
    struct hapi_str text;
};

struct hapi_msg_dataset {
    struct hapi_str name;
    uint64_t objects, samples, bytes;
    uint32_t max_sample_bytes;
    uint64_t problems; /* skipped while indexing */
    uint32_t n_classes;
    struct hapi_str
        classes_blob; /* u16 length | bytes, n_classes times (checked); hapi_classes_next() walks */
};

struct hapi_msg_index {
    uint64_t id;
    struct hapi_str dataset;
    uint64_t first;
};

struct hapi_msg_object {
    struct hapi_str name;
    struct hapi_str version; /* opaque bytes, <= 64 */
    uint8_t digest[HAPI_HASH_SIZE];
    uint64_t bytes;
    uint32_t samples;
    struct hapi_str sample_bytes; /* u32 little-endian per sample: encoded size of each image */
};

struct hapi_msg_model { /* OFFER, WANT, CHUNK, READY */
    uint64_t id;
    uint8_t hash[HAPI_HASH_SIZE];
    uint64_t size, offset;
    struct hapi_str bytes; /* CHUNK */
};

struct hapi_msg_data { /* DATA_OPEN, DATA_READY */
    uint64_t id;
    struct hapi_str transport; /* "ofi", "verbs" */
    struct hapi_str host;      /* READY: numeric address */
    uint16_t port;
    uint8_t nonce[HAPI_NONCE_SIZE];
    uint32_t max_requests; /* OPEN: wanted in flight; READY: granted */
    uint32_t max_parts;    /* READY: greatest max_parts of one request */
};

struct hapi_msg_heartbeat {
    uint64_t now_ns, queued, running;
};

struct hapi_msg_clock {
    uint64_t t0_ns, t1_ns;
};

struct hapi_msg_text { /* STAT, STAT_REPLY, LS, BYE, CREDENTIAL, LOCATE(_REPLY) */
    uint64_t id;
    struct hapi_str text;
};

/* ---- the request (data connection) ---- */

struct hapi_window_ref { /* where one crossing tensor goes in the client's memory */
    uint64_t key, base;  /* remote key, remote address of sample 0 */
    uint64_t stride;     /* bytes between samples; 0: packed (cut none) */
    uint64_t capacity;   /* bytes of the whole window */
};

struct hapi_req_object {
    struct hapi_str name;
    struct hapi_str version; /* empty: any */
    const uint8_t *digest;   /* 32 borrowed bytes, or NULL: any */
};

struct hapi_req_sample {
    uint16_t object; /* into objects */
    uint32_t index;  /* of the sample in the object */
};

enum {
    HAPI_REQ_CHECKSUM = 1 << 0,
    HAPI_REQ_FAIL_FAST =
        1 << 1,              /* a bad sample ends the request (else it is reported and the rest goes on) */
    HAPI_REQ_FRESH = 1 << 2, /* nothing that was kept is sent, nothing of it is kept: to see what it takes */
};

enum { HAPI_LABEL_CLASS_U32 = 1 }; /* label is the node's class index of the dataset */

struct hapi_request {
    uint16_t index; /* of the request on this connection: high half of imm32 */
    uint64_t trace_id;
    struct hapi_str dataset;
    uint8_t model_hash[HAPI_HASH_SIZE];    /* all zero with cut none */
    uint32_t n_cut;                        /* 0: cut none, raw objects */
    struct hapi_str cut[HAPI_CUT_TENSORS]; /* sorted tensor names */
    struct hapi_str transform;             /* canonical JSON; empty with cut none */
    uint64_t augment_seed, epoch;          /* seed 0: no augmentation */
    enum hapi_dtype compute_dtype, wire_dtype;
    enum hapi_layout layout;
    uint32_t micro_batch; /* bound; 0: the node chooses */
    uint32_t max_parts;   /* receives the client has posted for it */
    uint32_t deadline_ms; /* from arrival; 0: none */
    uint32_t flags;       /* HAPI_REQ_* */
    uint32_t n_windows;   /* n_cut, or 1 with cut none */
    struct hapi_window_ref windows[HAPI_CUT_TENSORS];
    uint64_t record_key, record_base,
        record_bytes; /* part p's record lies at base + p * (bytes / max_parts) */
    uint32_t n_objects, n_samples;
    struct hapi_req_object *objects; /* caller's array of HAPI_REQUEST_SAMPLES */
    struct hapi_req_sample *samples; /* caller's array of HAPI_REQUEST_SAMPLES */
};

/* ---- the record (written by RDMA at the end of each part; little-endian, naturally aligned) ---- */

#define HAPI_RECORD_MAGIC 0x52504148u /* "HAPR" */

enum { HAPI_RECORD_TERMINAL = 1 << 0, HAPI_RECORD_CHECKSUM = 1 << 1 };

struct hapi_record_sample {
    int32_t status;  /* 0 or HAPI_E* */
    uint32_t label;  /* by label_encoding */
    uint64_t offset; /* from the window's base, of this sample in window 0 (cut none: in the packed bytes) */
    uint32_t bytes;  /* cut none: of the raw object; else bytes of the sample in window 0 */
    uint32_t reserved; /* 0 */
};

struct hapi_record {
    uint32_t magic, size; /* size: bytes of the whole record */
    uint16_t request, part;
    uint16_t major, flags;
    uint32_t first, count; /* samples [first, first+count) of the request */
    int32_t status;        /* 0, or why the whole part failed */
    uint16_t label_encoding, n_windows;
    uint32_t crc32c;      /* of the payload, window by window, when CHECKSUM */
    uint32_t wait_us;     /* between reading and computing: no thread, or no plan, was free */
    uint64_t generation;  /* trace_id of the request: a stale record is recognised */
    uint64_t stage_ns[6]; /* queue, read, decode, compute, convert; then when its sending began: by the clock
                             of CLOCK */
    struct hapi_record_sample samples[]; /* count of them */
};

/* Bytes of a record with `count` samples (its `size`), a multiple of 64; a record area needs max_parts times
 * that. */
size_t hapi_record_size(uint32_t count);
/* Checks a record found in memory (avail bytes) against the request it answers: magic, sizes, ranges of
 * first/count, labels < n_labels when status is 0, offset/bytes inside window 0 (with a cut: sample i of the
 * request lies at i * stride). HAPI_EPROTO with the reason. Copy the record out of exposed memory first: what
 * a peer can still write is checked in vain. r is aligned to 8. */
int hapi_record_check(const struct hapi_record *r, size_t avail, const struct hapi_request *req,
                      uint32_t n_labels, struct hapi_err *err);

static inline uint32_t hapi_imm(uint16_t request, uint16_t part)
{
    return (uint32_t)request << 16 | part;
}

/* ---- encode / decode ----
 * Encoders write into buf[size] and return the bytes used, HAPI_ETOOBIG, or HAPI_EINVAL for a message that
 * the peer's decoder would refuse. Decoders return 0 or HAPI_EPROTO with what was wrong; *out borrows from
 * the message. */
int hapi_hello_encode(const struct hapi_hello *m, void *buf, size_t size);
int hapi_hello_decode(struct hapi_hello *m, const void *buf, size_t n, struct hapi_err *err);
int hapi_msg_error_encode(const struct hapi_msg_error *m, void *buf, size_t size);
int hapi_msg_error_decode(struct hapi_msg_error *m, const void *buf, size_t n, struct hapi_err *err);
int hapi_msg_model_encode(const struct hapi_msg_model *m, void *buf, size_t size);
int hapi_msg_model_decode(struct hapi_msg_model *m, const void *buf, size_t n, struct hapi_err *err);
int hapi_msg_data_encode(const struct hapi_msg_data *m, void *buf, size_t size);
int hapi_msg_data_decode(struct hapi_msg_data *m, const void *buf, size_t n, struct hapi_err *err);
int hapi_msg_index_encode(const struct hapi_msg_index *m, void *buf, size_t size);
int hapi_msg_index_decode(struct hapi_msg_index *m, const void *buf, size_t n, struct hapi_err *err);
int hapi_msg_heartbeat_encode(const struct hapi_msg_heartbeat *m, void *buf, size_t size);
int hapi_msg_heartbeat_decode(struct hapi_msg_heartbeat *m, const void *buf, size_t n, struct hapi_err *err);
int hapi_msg_clock_encode(const struct hapi_msg_clock *m, void *buf, size_t size);
int hapi_msg_clock_decode(struct hapi_msg_clock *m, const void *buf, size_t n, struct hapi_err *err);
int hapi_msg_text_encode(const struct hapi_msg_text *m, void *buf, size_t size);
int hapi_msg_text_decode(struct hapi_msg_text *m, const void *buf, size_t n, struct hapi_err *err);

/* LS_REPLY and INDEX_REPLY are lists: append items until HAPI_ETOOBIG (then send and start anew), walk them
 * with a cursor. A list body starts with the id and, for INDEX_REPLY, `more` (1: ask again from `next`). */
struct hapi_list {
    uint8_t *buf;
    size_t size, used;
};
int hapi_list_begin(struct hapi_list *l, void *buf, size_t size, uint64_t id);
int hapi_list_dataset(struct hapi_list *l, const struct hapi_msg_dataset *d);
int hapi_list_object(struct hapi_list *l, const struct hapi_msg_object *o);
int hapi_list_more(struct hapi_list *l, uint64_t next); /* last, when there is more */

struct hapi_list_cursor {
    const uint8_t *at, *end;
    uint64_t id, next; /* next 0: nothing more */
};
int hapi_list_open(struct hapi_list_cursor *c, const void *buf, size_t n, struct hapi_err *err);
/* 1: *out filled; 0: end; HAPI_EPROTO. */
int hapi_list_next_dataset(struct hapi_list_cursor *c, struct hapi_msg_dataset *out, struct hapi_err *err);
int hapi_list_next_object(struct hapi_list_cursor *c, struct hapi_msg_object *out, struct hapi_err *err);
/* Walks classes_blob: 1 and *out, or 0 at the end. */
int hapi_classes_next(struct hapi_str *blob, struct hapi_str *out);
/* Appends one class name to a blob being built; returns the new length or HAPI_ETOOBIG. */
int hapi_classes_append(void *blob, size_t size, size_t used, const char *name);

int hapi_request_encode(const struct hapi_request *r, void *buf, size_t size);
/* r->objects and r->samples are set by the caller to arrays of HAPI_REQUEST_SAMPLES. Checked: every range,
 * count, dtype, that samples name objects in range, that windows hold n_samples * stride, that the record
 * area is aligned to 8 and holds max_parts (1 .. HAPI_REQUEST_SAMPLES + 1) records of the largest part
 * (min(micro_batch, n_samples) samples), that names have no NUL, no `..` part, no leading '/'. With a cut:
 * model hash, transform and strides are there, dtypes are f32, f16, bf16 or i8. Cut none: neither
 * hash nor transform nor stride, dtypes may be HAPI_DTYPE_NONE. */
int hapi_request_decode(struct hapi_request *r, const void *buf, size_t n, struct hapi_err *err);

#endif
