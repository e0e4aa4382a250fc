/* One well-formed message of every kind, shared by test_wire.c and the corpus generator. */
#ifndef HAPI_TESTS_WIRE_SAMPLES_H
#define HAPI_TESTS_WIRE_SAMPLES_H

#include <stdint.h>
#include <string.h>

#include "wire.h"

#define S(text) ((struct hapi_str){text, sizeof(text) - 1})

static inline struct hapi_hello sample_hello(void)
{
    return (struct hapi_hello){.major_min = 1,
                               .major_max = 1,
                               .minor = 3,
                               .caps = HAPI_CAP_TRANSPORT_OFI | HAPI_CAP_CHECKSUM,
                               .role = S("node"),
                               .version = S("0.1.0"),
                               .numeric_class = S("onednn/avx512_core"),
                               .heartbeat_ms = 3000};
}

static inline struct hapi_msg_data sample_data(void)
{
    struct hapi_msg_data m = {.id = 9,
                              .transport = S("ofi"),
                              .host = S("127.0.0.1"),
                              .port = 40112,
                              .max_requests = 8,
                              .max_parts = 16};
    memset(m.nonce, 0xa5, sizeof m.nonce);
    return m;
}

static inline struct hapi_msg_model sample_model(void)
{
    struct hapi_msg_model m = {.id = 5, .size = 1000, .offset = 100, .bytes = S("\0onnx bytes\0")};
    memset(m.hash, 0x11, sizeof m.hash);
    return m;
}

/* Two tensors, three objects, six samples. */
static inline struct hapi_request sample_request(struct hapi_req_object *objects,
                                                 struct hapi_req_sample *samples)
{
    static const uint8_t digest[HAPI_HASH_SIZE] = {1, 2, 3};
    struct hapi_request r = {.index = 7,
                             .trace_id = 0x1122334455667788,
                             .dataset = S("train"),
                             .n_cut = 2,
                             .cut = {S("/features/conv/out"), S("/features/skip")},
                             .transform = S("{\"resize\":224}"),
                             .augment_seed = 3,
                             .epoch = 4,
                             .compute_dtype = HAPI_F32,
                             .wire_dtype = HAPI_F16,
                             .layout = HAPI_LAYOUT_NHWC,
                             .micro_batch = 2,
                             .max_parts = 4,
                             .deadline_ms = 2000,
                             .flags = HAPI_REQ_CHECKSUM,
                             .n_windows = 2,
                             .windows = {{0xfeed, 0x10000, 1000, 6000}, {0xbeef, 0x90000, 512, 4096}},
                             .record_key = 0xcafe,
                             .record_base = 0x70000,
                             .n_objects = 3,
                             .n_samples = 6,
                             .objects = objects,
                             .samples = samples};
    memset(r.model_hash, 0x22, sizeof r.model_hash);
    r.record_bytes = 4 * hapi_record_size(2);
    objects[0] = (struct hapi_req_object){S("shard-0.tar"), S("v\0one"), digest};
    objects[1] = (struct hapi_req_object){S("a/b/c.jpg"), S(""), NULL};
    objects[2] = (struct hapi_req_object){S("..ok"), S("x"), NULL};
    for (uint16_t i = 0; i < 6; i++)
        samples[i] = (struct hapi_req_sample){i % 3, i * 1000u};
    return r;
}

/* The same as raw objects. */
static inline struct hapi_request sample_request_raw(struct hapi_req_object *objects,
                                                     struct hapi_req_sample *samples)
{
    struct hapi_request r = sample_request(objects, samples);

    r.n_cut = 0;
    r.n_windows = 1;
    r.windows[0] = (struct hapi_window_ref){1, 0, 0, 1 << 20};
    r.transform = (struct hapi_str){0};
    memset(r.model_hash, 0, sizeof r.model_hash);
    r.compute_dtype = r.wire_dtype = HAPI_DTYPE_NONE;
    return r;
}

/* Part 1 (samples 2, 3) of sample_request(), the second one bad; into memory of 512 bytes aligned to 8. */
static inline struct hapi_record *sample_record(void *memory, const struct hapi_request *req)
{
    struct hapi_record *r = memory;

    memset(memory, 0, 512);
    r->magic = HAPI_RECORD_MAGIC;
    r->size = (uint32_t)hapi_record_size(2);
    r->request = req->index;
    r->part = 1;
    r->major = HAPI_PROTO_MAJOR;
    r->first = 2;
    r->count = 2;
    r->label_encoding = HAPI_LABEL_CLASS_U32;
    r->n_windows = (uint16_t)req->n_windows;
    r->generation = req->trace_id;
    r->samples[0] = (struct hapi_record_sample){0, 9, 2 * req->windows[0].stride, 1000, 0};
    r->samples[1] = (struct hapi_record_sample){HAPI_EDECODE, 0, 0, 0, 0};
    return r;
}

#endif
