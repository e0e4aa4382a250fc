#include <cjson/cJSON.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "convert.h"
#include "cudnn_descriptor.h"

enum { DESCRIPTION_MAX = 1 << 16, NAME_MAX_BYTES = 128 };

/* What cuDNN's heuristics and compiler read of a device: in its own words, all of them. */
static const struct {
    const char *key;
    int n; /* numbers: 1, or 3 in an array; 0: text */
} keys[] = {
    {"cudaDeviceId", 1},
    {"deviceVer", 1},
    {"driverVer", 1},
    {"deviceName", 0},
    {"pciDeviceId", 1},
    {"multiProcessorCount", 1},
    {"warpSize", 1},
    {"maxGridSize", 3},
    {"maxBlockSize", 3},
    {"regsPerBlock", 1},
    {"maxRegistersPerSM", 1},
    {"maxSharedMemoryPerBlock", 1},
    {"maxSharedMemoryPerBlockOptin", 1},
    {"reservedSharedMemoryPerBlock", 1},
    {"maxCtasPerSM", 1},
    {"maxThreadsPerBlock", 1},
    {"maxThreadsPerSM", 1},
    {"isTccDriver", 1},
    {"supportCoopLaunch", 1},
    {"totalGlobalMem", 1},
    {"smClockRateKHz", 1},
    {"memClockRateKHz", 1},
    {"l2CacheSize", 1},
};

static bool whole(const cJSON *v)
{
    return cJSON_IsNumber(v) && v->valuedouble >= 0 && v->valuedouble < 0x1p53 &&
           v->valuedouble == floor(v->valuedouble);
}

static int key_check(const cJSON *all, size_t i, struct hapi_err *err)
{
    const cJSON *v = cJSON_GetObjectItemCaseSensitive(all, keys[i].key), *e;
    bool good = keys[i].n == 1 ? whole(v)
                : keys[i].n    ? cJSON_GetArraySize(v) == keys[i].n
                               : cJSON_IsString(v);

    if (!v)
        return hapi_err_set(err, HAPI_EFORMAT, 0, "the description of a device has no `%s`", keys[i].key);
    if (keys[i].n > 1)
        cJSON_ArrayForEach(e, v) good = good && whole(e);
    if (!good || (!keys[i].n && strlen(v->valuestring) >= NAME_MAX_BYTES))
        return hapi_err_set(err, HAPI_EFORMAT, 0, "`%s` in the description of a device is not %s",
                            keys[i].key,
                            keys[i].n == 1 ? "a whole number"
                            : keys[i].n    ? "three whole numbers"
                                           : "a short text");
    return HAPI_OK;
}

static int description_check(const cJSON *all, struct hapi_err *err)
{
    const cJSON *v;
    int rc = HAPI_OK;

    if (!cJSON_IsObject(all))
        return hapi_err_set(err, HAPI_EFORMAT, 0, "the description of a device is not a JSON object");
    for (size_t i = 0; i < sizeof keys / sizeof *keys && !rc; i++)
        rc = key_check(all, i, err);
    cJSON_ArrayForEach(v, all)
    {
        bool known = false;
        for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
            known = known || !strcmp(keys[i].key, v->string);
        if (!known && !rc)
            rc = hapi_err_set(err, HAPI_EFORMAT, 0, "the description of a device has an unknown key `%s`",
                              v->string);
    }
    return rc;
}

static int describe(struct hapi_cudnn_device *d, const char *text, struct hapi_err *err)
{
    cudnnStatus_t s = d->lib->BackendCreateDescriptor(CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR, &d->properties);

    if (!s)
        s = d->lib->BackendSetAttribute(d->properties, CUDNN_ATTR_DEVICEPROP_JSON_REPRESENTATION,
                                        CUDNN_TYPE_CHAR, (int64_t)strlen(text) + 1, text);
    if (!s)
        s = d->lib->BackendFinalize(d->properties);
    return s ? hapi_cudnn_fail(d->lib, s, "the description of a device", err) : HAPI_OK;
}

static void key_make(struct hapi_cudnn_device *d, const char *text)
{
    uint8_t both[32 + sizeof(uint64_t)];
    const uint64_t version = d->lib->GetVersion();

    hapi_sha256(both, text, strlen(text));
    memcpy(both + 32, &version, sizeof version);
    hapi_sha256(d->key, both, sizeof both);
}

int hapi_cudnn_device_parse(struct hapi_cudnn_device **out, const char *json, size_t size,
                            struct hapi_err *err)
{
    struct hapi_cudnn_device *d = NULL;
    cJSON *all = NULL;
    char *text = NULL;
    int rc;

    if (size > DESCRIPTION_MAX)
        return hapi_err_set(err, HAPI_EFORMAT, 0, "the description of a device is longer than %d bytes",
                            DESCRIPTION_MAX);
    all = cJSON_ParseWithLength(json, size);
    rc = description_check(all, err);
    if (rc)
        goto fail;
    d = calloc(1, sizeof *d);
    text = cJSON_PrintUnformatted(all);
    if (d)
        d->name = strdup(cJSON_GetObjectItemCaseSensitive(all, "deviceName")->valuestring);
    if (!d || !d->name || !text) {
        rc = hapi_err_set(err, HAPI_ENOMEM, 0, "no memory for a device");
        goto fail;
    }
    d->version = (int)cJSON_GetObjectItemCaseSensitive(all, "deviceVer")->valuedouble;
    rc = hapi_cudnn_lib_get(&d->lib, err);
    if (!rc)
        rc = describe(d, text, err);
    if (!rc)
        key_make(d, text);
    if (rc)
        goto fail;
    *out = d;
    d = NULL;
fail:
    hapi_cudnn_device_free(d);
    cJSON_free(text);
    cJSON_Delete(all);
    return rc;
}

void hapi_cudnn_device_use(struct hapi_cudnn_device *d, void *handle)
{
    d->handle = handle;
}

void hapi_cudnn_device_free(struct hapi_cudnn_device *d)
{
    if (!d)
        return;
    if (d->properties)
        (void)d->lib->BackendDestroyDescriptor(d->properties);
    free(d->name);
    free(d);
}

/* CUDA device `id` as cuDNN describes it: the finalized descriptor, and its text (malloc'd). */
static int captured(const struct hapi_cudnn_lib *lib, int id, cudnnBackendDescriptor_t *out, char **json,
                    struct hapi_err *err)
{
    cudnnBackendDescriptor_t d = NULL;
    const int32_t device = id;
    char *text = calloc(1, DESCRIPTION_MAX + 1);
    int64_t n = 0;
    cudnnStatus_t s;

    if (!text)
        return hapi_err_set(err, HAPI_ENOMEM, 0, "no memory for the description of a device");
    s = lib->BackendCreateDescriptor(CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR, &d);
    if (!s)
        s = lib->BackendSetAttribute(d, CUDNN_ATTR_DEVICEPROP_DEVICE_ID, CUDNN_TYPE_INT32, 1, &device);
    if (!s)
        s = lib->BackendFinalize(d);
    if (!s)
        s = lib->BackendGetAttribute(d, CUDNN_ATTR_DEVICEPROP_JSON_REPRESENTATION, CUDNN_TYPE_CHAR,
                                     DESCRIPTION_MAX, &n, text);
    if (s) {
        (void)hapi_cudnn_fail(lib, s, "reading what CUDA device this is", err);
        if (err)
            err->code = HAPI_EUNSUPPORTED;
        if (d)
            (void)lib->BackendDestroyDescriptor(d);
        free(text);
        return HAPI_EUNSUPPORTED;
    }
    *out = d;
    *json = text;
    return HAPI_OK;
}

int hapi_cudnn_device_capture(char **json, int id, struct hapi_err *err)
{
    const struct hapi_cudnn_lib *lib = NULL;
    cudnnBackendDescriptor_t d = NULL;
    int rc = hapi_cudnn_lib_get(&lib, err);

    if (!rc)
        rc = captured(lib, id, &d, json, err);
    if (!rc)
        (void)lib->BackendDestroyDescriptor(d);
    return rc;
}

int hapi_cudnn_device_open(struct hapi_cudnn_device **out, int id, struct hapi_err *err)
{
    struct hapi_cudnn_device *d = calloc(1, sizeof *d);
    char *text = NULL;
    int rc = d ? hapi_cudnn_lib_get(&d->lib, err) : HAPI_ENOMEM;

    if (!rc)
        rc = captured(d->lib, id, &d->properties, &text, err);
    if (!rc) {
        cJSON *all = cJSON_Parse(text);
        const cJSON *name = cJSON_GetObjectItemCaseSensitive(all, "deviceName"),
                    *version = cJSON_GetObjectItemCaseSensitive(all, "deviceVer");
        d->name = strdup(cJSON_IsString(name) ? name->valuestring : "CUDA device");
        d->version = whole(version) && version->valuedouble < 10000 ? (int)version->valuedouble : 0;
        key_make(d, text);
        cJSON_Delete(all);
        rc = d->name ? HAPI_OK : HAPI_ENOMEM;
    }
    free(text);
    if (rc) {
        hapi_cudnn_device_free(d);
        return rc == HAPI_ENOMEM ? hapi_err_set(err, rc, 0, "no memory for a device") : rc;
    }
    *out = d;
    return HAPI_OK;
}

const char *hapi_cudnn_device_name(const struct hapi_cudnn_device *d)
{
    return d->name;
}

const uint8_t *hapi_cudnn_device_key(const struct hapi_cudnn_device *d)
{
    return d->key;
}

int hapi_cudnn_device_version(const struct hapi_cudnn_device *d)
{
    return d->version;
}
