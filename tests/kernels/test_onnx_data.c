/* Tensor data: external files and the folder that they may lie in, the model's hash, TensorProto's fields. */
#include <sys/stat.h>
#include <unistd.h>

#include "build_model.h"
#include "check.h"
#include "convert.h"

static struct hapi_err err;

/* ------------------------------------------------------------------ external data */

static char folder[256];

static void put_file(const char *name, const void *p, size_t n)
{
    char path[512];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *f = fopen(path, "wb");
    REQUIRE(f && fwrite(p, 1, n, f) == n && !fclose(f));
}

/* x + w, w (4 floats) in another file. */
static int load_external(const char *location, const char *offset, const char *length)
{
    struct hapi_pb_out t = {.p = NULL};
    struct build b = {0};
    struct hapi_model *m;
    const char *entries[3][2] = {{"location", location}, {"offset", offset}, {"length", length}};
    char path[512];
    size_t size;

    INPUT(&b, "x", -1, 4);
    OUTPUT(&b, "y");
    build_node(&b, "Add", "a", "x,w", "y");
    build_tensor(&t, "w", ONNX_F32, 1, (const int64_t[]){4}, NULL, 0);
    for (int i = 0; i < 3; i++) {
        struct hapi_pb_out e = {.p = NULL};
        if (!entries[i][1])
            continue;
        hapi_pb_put_string(&e, 1, entries[i][0]);
        hapi_pb_put_string(&e, 2, entries[i][1]);
        hapi_pb_put_bytes(&t, 13, e.p, e.n);
        free(e.p);
    }
    hapi_pb_put_int(&t, 14, 1);
    hapi_pb_put_bytes(&b.graph, 5, t.p, t.n);
    free(t.p);
    void *bytes = build_finish(&b, 8, 17, &size);
    put_file("sub/m.onnx", bytes, size);
    memset(&err, 0, sizeof err);
    CHECK(hapi_model_from_bytes(&m, bytes, size, NULL, &err) < 0);
    CHECK(err.code == HAPI_EUNSUPPORTED || (offset && !strcmp(offset, "-1")));
    free(bytes);
    snprintf(path, sizeof path, "%s/sub/m.onnx", folder);
    memset(&err, 0, sizeof err);
    int rc = hapi_model_open(&m, path, NULL, &err);
    if (!rc)
        hapi_model_close(m);
    return rc;
}

static void external__beneath_the_folder__is_read_and_nothing_else(void)
{
    float w[8] = {1, 2, 3, 4, 5, 6, 7, 8};
    char path[512], target[512];

    snprintf(path, sizeof path, "%s/sub", folder);
    REQUIRE(!mkdir(path, 0700));
    snprintf(path, sizeof path, "%s/sub/deep", folder);
    REQUIRE(!mkdir(path, 0700));
    put_file("outside.bin", w, sizeof w);
    put_file("sub/w.bin", w, sizeof w);
    put_file("sub/deep/w.bin", w, sizeof w);
    CHECKF(load_external("w.bin", "16", "16") == 0, "%s", err.text);
    CHECKF(load_external("deep/w.bin", NULL, "16") == 0, "%s", err.text);
    CHECK(load_external("w.bin", "16", NULL) == 0);
    CHECK(load_external("w.bin", "17", "16") == HAPI_EFORMAT);
    CHECK(load_external("w.bin", "18446744073709551615", "16") == HAPI_EFORMAT);
    CHECK(load_external("w.bin", "-1", "16") == HAPI_EFORMAT);
    CHECK(load_external("w.bin", NULL, NULL) == HAPI_EFORMAT); /* 32 bytes for 4 floats */
    CHECK(load_external("../outside.bin", NULL, "16") == HAPI_EFORMAT);
    CHECK(load_external("deep/../../outside.bin", NULL, "16") == HAPI_EFORMAT);
    snprintf(target, sizeof target, "%s/outside.bin", folder);
    CHECK(load_external(target, NULL, "16") == HAPI_EFORMAT);
    CHECK(strstr(err.text, "absolute") != NULL);
    CHECK(load_external("missing.bin", NULL, "16") == HAPI_ESYS);
    CHECK(load_external("deep", NULL, "16") == HAPI_EFORMAT);
    snprintf(path, sizeof path, "%s/sub/link.bin", folder);
    REQUIRE(!symlink("../outside.bin", path));
    CHECK(load_external("link.bin", NULL, "16") == HAPI_ESYS);
    snprintf(path, sizeof path, "%s/sub/pipe", folder);
    REQUIRE(!mkfifo(path, 0600));
    CHECK(load_external("pipe", NULL, "16") == HAPI_EFORMAT);
}

static void hash__covers_external_files(void)
{
    float w[8] = {1, 2, 3, 4, 5, 6, 7, 8};
    struct hapi_model *m;
    uint8_t first[32];
    char path[512];

    put_file("sub/w.bin", w, sizeof w);
    REQUIRE(load_external("w.bin", "0", "16") == 0);
    snprintf(path, sizeof path, "%s/sub/m.onnx", folder);
    REQUIRE(!hapi_model_open(&m, path, NULL, &err));
    memcpy(first, hapi_model_hash(m), 32);
    CHECK(!memcmp(first, hapi_model_hash(m), 32));
    hapi_model_close(m);
    w[7] = 9;
    put_file("sub/w.bin", w, sizeof w);
    REQUIRE(!hapi_model_open(&m, path, NULL, &err));
    CHECK(memcmp(first, hapi_model_hash(m), 32) != 0);
    hapi_model_close(m);
}

static void hash__of_bytes__is_sha256(void)
{
    struct build b = {0};
    struct hapi_model *m;
    uint8_t expected[32];
    size_t size;
    build_residual(&b);
    void *bytes = build_finish(&b, 8, 17, &size);
    hapi_sha256(expected, bytes, size);
    REQUIRE(!hapi_model_from_bytes(&m, bytes, size, NULL, &err));
    CHECK(!memcmp(hapi_model_hash(m), expected, 32));
    hapi_model_close(m);
}

static void file__missing_or_no_file__is_said(void)
{
    struct hapi_model *m;
    char path[512];
    snprintf(path, sizeof path, "%s/none.onnx", folder);
    CHECK(hapi_model_open(&m, path, NULL, &err) == HAPI_ENOENT && strstr(err.text, "none.onnx"));
    CHECK(hapi_model_open(&m, folder, NULL, &err) == HAPI_EFORMAT);
    put_file("empty.onnx", "", 0);
    snprintf(path, sizeof path, "%s/empty.onnx", folder);
    CHECK(hapi_model_open(&m, path, NULL, &err) == HAPI_EFORMAT);
}

/* ------------------------------------------------------------------ TensorProto */

static void tensorproto__typed_fields__are_decoded(void)
{
    struct hapi_tensor_desc d;
    struct hapi_pb_out t = {.p = NULL}, packed = {.p = NULL};
    void *data;

    hapi_pb_put_int(&t, 1, 2);
    hapi_pb_put_int(&t, 1, 2);
    hapi_pb_put_int(&t, 2, 3); /* int8 in int32_data, one packed chunk and one element by itself */
    hapi_pb_put_varint(&packed, 1);
    hapi_pb_put_varint(&packed, (uint64_t)(int64_t)-2);
    hapi_pb_put_varint(&packed, 127);
    hapi_pb_put_bytes(&t, 5, packed.p, packed.n);
    hapi_pb_put_int(&t, 5, (uint64_t)(int64_t)-128);
    REQUIRE(!hapi_tensorproto_read(t.p, t.n, &d, &data, &err));
    CHECK(d.dtype == HAPI_I8 && d.shape.rank == 2 && d.shape.dim[1] == 2);
    CHECK(!memcmp(data, (const int8_t[]){1, -2, 127, -128}, 4));
    free(data);
    for (size_t n = 0; n < t.n; n++) {
        uint8_t *exact = malloc(n ? n : 1);
        REQUIRE(exact);
        memcpy(exact, t.p, n);
        CHECK(hapi_tensorproto_read(exact, n, &d, &data, &err) < 0);
        free(exact);
    }
    free(t.p);
    free(packed.p);
}

static void tensorproto__raw_bool_and_scalar__are_decoded(void)
{
    struct hapi_tensor_desc d;
    struct hapi_pb_out t = {.p = NULL};
    double v = 2.5;
    void *data;

    build_tensor(&t, "b", ONNX_BOOL, 1, (const int64_t[]){3}, (const uint8_t[]){0, 7, 1}, 3);
    REQUIRE(!hapi_tensorproto_read(t.p, t.n, &d, &data, &err));
    CHECK(d.dtype == HAPI_BOOL && !memcmp(data, (const uint8_t[]){0, 1, 1}, 3));
    free(data);
    t.n = 0;
    build_tensor(&t, "s", 11, 0, NULL, &v, 8);
    REQUIRE(!hapi_tensorproto_read(t.p, t.n, &d, &data, &err));
    CHECK(d.dtype == HAPI_F64 && d.shape.rank == 0 && !memcmp(data, &v, 8));
    free(data);
    free(t.p);
}

int main(void)
{
    const char *tmp = getenv("TMPDIR");
    char command[300];

    snprintf(folder, sizeof folder, "%s/hapi-onnx-XXXXXX", tmp ? tmp : "/tmp");
    REQUIRE(mkdtemp(folder));
    CASE(external__beneath_the_folder__is_read_and_nothing_else);
    CASE(hash__covers_external_files);
    CASE(hash__of_bytes__is_sha256);
    CASE(file__missing_or_no_file__is_said);
    CASE(tensorproto__typed_fields__are_decoded);
    CASE(tensorproto__raw_bool_and_scalar__are_decoded);
    snprintf(command, sizeof command, "rm -rf '%s'", folder);
    REQUIRE(!system(command));
    return check_done();
}
