/*
 * Writes the seeds of the fuzz targets: one well-formed message of every kind.
 *
 *     cc -Itransport -Ibase -Itests/transport tests/transport/make_corpus.c transport/wire*.c base/err.c \
 *         -o build/make_corpus && build/make_corpus tests/fuzz/corpus
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "wire_samples.h"

static const char *root;
static uint8_t buf[HAPI_REQUEST_MAX];
static struct hapi_req_object objects[HAPI_REQUEST_SAMPLES];
static struct hapi_req_sample samples[HAPI_REQUEST_SAMPLES];

/* first >= 0: a byte that says which decoder */
static void put(const char *target, const char *name, int first, const void *data, int n)
{
    char path[512];

    snprintf(path, sizeof path, "%s/transport_%s", root, target);
    mkdir(path, 0777);
    snprintf(path, sizeof path, "%s/transport_%s/%s", root, target, name);
    FILE *f = n < 0 ? NULL : fopen(path, "wb");
    if (!f) {
        fprintf(stderr, "cannot write %s (%d)\n", path, n);
        exit(1);
    }
    if (first >= 0)
        fputc(first, f);
    fwrite(data, 1, (size_t)n, f);
    fclose(f);
}

static void control(void)
{
    struct hapi_hello h = sample_hello();
    struct hapi_msg_error e = {77, HAPI_ENOENT, S("no such dataset")};
    struct hapi_msg_model m = sample_model();
    struct hapi_msg_data d = sample_data();
    struct hapi_msg_index x = {3, S("train"), 12};
    struct hapi_msg_heartbeat b = {1, 2, 3};
    struct hapi_msg_clock k = {98, 99};
    struct hapi_msg_text t = {4, S("text")};

    put("control", "hello", 0, buf, hapi_hello_encode(&h, buf, sizeof buf));
    put("control", "error", 1, buf, hapi_msg_error_encode(&e, buf, sizeof buf));
    put("control", "model", 2, buf, hapi_msg_model_encode(&m, buf, sizeof buf));
    put("control", "data", 3, buf, hapi_msg_data_encode(&d, buf, sizeof buf));
    put("control", "index", 4, buf, hapi_msg_index_encode(&x, buf, sizeof buf));
    put("control", "heartbeat", 5, buf, hapi_msg_heartbeat_encode(&b, buf, sizeof buf));
    put("control", "clock", 6, buf, hapi_msg_clock_encode(&k, buf, sizeof buf));
    put("control", "text", 7, buf, hapi_msg_text_encode(&t, buf, sizeof buf));
}

static void lists(void)
{
    uint8_t classes[64], sizes[8] = {10, 0, 0, 0, 20, 0, 0, 0};
    int n = hapi_classes_append(classes, sizeof classes, 0, "cat");
    struct hapi_list l;

    n = hapi_classes_append(classes, sizeof classes, (size_t)n, "dog");
    struct hapi_msg_dataset d = {S("train"), 8, 2000, 1 << 20, 4000, 1, 2, {(char *)classes, (uint32_t)n}};
    struct hapi_msg_object o = {S("shard-0.tar"), S("v1"), {1}, 100, 2, {(char *)sizes, 8}};
    hapi_list_begin(&l, buf, sizeof buf, 42);
    hapi_list_dataset(&l, &d);
    hapi_list_dataset(&l, &d);
    put("control", "datasets", 8, buf, (int)l.used);
    hapi_list_begin(&l, buf, sizeof buf, 42);
    hapi_list_object(&l, &o);
    hapi_list_more(&l, 1);
    put("control", "objects", 9, buf, (int)l.used);
}

int main(int argc, char **argv)
{
    static _Alignas(8) uint8_t memory[512];

    if (argc != 2)
        return fprintf(stderr, "usage: make_corpus tests/fuzz/corpus\n"), 2;
    root = argv[1];
    control();
    lists();
    struct hapi_request r = sample_request(objects, samples);
    put("request", "cut", -1, buf, hapi_request_encode(&r, buf, sizeof buf));
    r.wire_dtype = HAPI_I8;
    put("request", "int8", -1, buf, hapi_request_encode(&r, buf, sizeof buf));
    r.wire_dtype = HAPI_F16;
    struct hapi_record *rec = sample_record(memory, &r);
    put("record", "part", 0, rec, (int)rec->size);
    rec->flags = HAPI_RECORD_TERMINAL;
    rec->status = HAPI_ETIMEDOUT;
    rec->count = 0;
    rec->size = (uint32_t)hapi_record_size(0);
    put("record", "failed", 0, rec, (int)rec->size);
    r = sample_request_raw(objects, samples);
    put("request", "raw", -1, buf, hapi_request_encode(&r, buf, sizeof buf));
    rec = sample_record(memory, &r);
    rec->samples[0].offset = 5000;
    put("record", "raw", 1, rec, (int)rec->size);
    return 0;
}
