/* Any bytes as a profile: what is accepted is written and read back the same; what is not is said. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "profile.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(bool ok, const char *what)
{
    if (!ok) {
        fprintf(stderr, "%s\n", what);
        abort();
    }
}

static void curve_check(const struct hapi_curve *c)
{
    for (uint32_t b = 1; b < 5000; b = b * 3 + 1) {
        double s = hapi_curve_at(c, b);
        require(s >= 0 && isfinite(s), "a time that is none");
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct hapi_profile *p, *q;
    struct hapi_err err = {0};
    char *text, *again;
    int rc = hapi_profile_parse(&p, (const char *)data, size, &err);

    if (rc) {
        require((rc == HAPI_EFORMAT || rc == HAPI_EINVAL) && err.code == rc && err.text[0],
                "an unclear error");
        return 0;
    }
    require(p->n_cuts && p->cuts[p->n_cuts - 1].index == p->freeze, "the last cut is not the freeze layer");
    curve_check(&p->train_s);
    for (uint32_t i = 0; i < p->n_cuts; i++) {
        curve_check(&p->cuts[i].storage_s);
        curve_check(&p->cuts[i].compute_s);
        require(p->cuts[i].wire_bytes[HAPI_WIRE_F32] > 0, "no bytes");
    }
    require(hapi_profile_source_compute(p, 8) >= 0, "a time that is none");
    require(!hapi_profile_write(p, &text, &err), "it cannot be written");
    require(!hapi_profile_parse(&q, text, strlen(text), &err), "its text does not parse");
    require(!hapi_profile_write(q, &again, &err) && !strcmp(text, again), "its text changes");
    free(text);
    free(again);
    hapi_profile_free(p);
    hapi_profile_free(q);
    return 0;
}
