/* Requests: what is accepted encodes to something no longer that decodes and encodes to the same bytes. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "wire.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct hapi_req_object objects[HAPI_REQUEST_SAMPLES];
static struct hapi_req_sample samples[HAPI_REQUEST_SAMPLES];
static uint8_t one[HAPI_REQUEST_MAX], two[HAPI_REQUEST_MAX];

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct hapi_request r;
    struct hapi_err err = {0};

    r.objects = objects;
    r.samples = samples;
    int rc = hapi_request_decode(&r, data, size, &err);
    if (rc) {
        if (rc != HAPI_EPROTO || err.code != rc || !err.text[0])
            abort();
        return 0;
    }
    /* What the node relies on without looking again. */
    for (uint32_t i = 0; i < r.n_samples; i++)
        if (r.samples[i].object >= r.n_objects)
            abort();
    for (uint32_t i = 0; i < r.n_windows; i++)
        if (r.windows[i].stride > r.windows[i].capacity / r.n_samples)
            abort();
    if (r.max_parts == 0 || r.record_bytes / r.max_parts < sizeof(struct hapi_record))
        abort();
    int n = hapi_request_encode(&r, one, sizeof one);
    if (n < 0 || (size_t)n > size || hapi_request_decode(&r, one, (size_t)n, NULL))
        abort();
    if (hapi_request_encode(&r, two, sizeof two) != n || memcmp(one, two, (size_t)n))
        abort();
    return 0;
}
