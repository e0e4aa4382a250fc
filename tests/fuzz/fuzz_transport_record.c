/*
 * Records as a node could leave them in a client's memory, against a request of pushed-down samples and one
 * of raw objects (the first byte says which): what is accepted points nowhere outside the request's windows.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "../transport/wire_samples.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { LABELS = 10 };

static struct hapi_req_object objects[HAPI_REQUEST_SAMPLES];
static struct hapi_req_sample samples[HAPI_REQUEST_SAMPLES];

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct hapi_err err = {0};

    if (size == 0)
        return 0;
    struct hapi_request req =
        data[0] & 1 ? sample_request_raw(objects, samples) : sample_request(objects, samples);
    size_t n = size - 1;
    /* A copy of the exact size at the alignment that records have. */
    struct hapi_record *r = aligned_alloc(8, (n + 7) & ~(size_t)7 ? (n + 7) & ~(size_t)7 : 8);
    if (!r)
        return 0;
    memcpy(r, data + 1, n);
    int rc = hapi_record_check(r, n, &req, LABELS, &err);
    if (rc) {
        if (rc != HAPI_EPROTO || err.code != rc || !err.text[0])
            abort();
    } else {
        if (r->size > n || r->part >= req.max_parts || r->first + r->count > req.n_samples)
            abort();
        for (uint32_t i = 0; i < r->count; i++) {
            const struct hapi_record_sample *s = &r->samples[i];
            if (r->status == 0 && s->status == 0 &&
                (s->label >= LABELS || s->offset + s->bytes > req.windows[0].capacity))
                abort();
        }
    }
    free(r);
    return 0;
}
