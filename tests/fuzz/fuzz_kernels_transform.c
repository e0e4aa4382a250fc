/* Any bytes as a transform: what is accepted has a canonical text that parses back to the same. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(bool ok, const char *what)
{
    if (!ok) {
        fprintf(stderr, "%s\n", what);
        abort();
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct hapi_transform t, u;
    struct hapi_err err = {0};
    char text[1024], again[1024];
    int rc = hapi_transform_parse(&t, (const char *)data, size, &err);

    if (rc) {
        require((rc == HAPI_EFORMAT || rc == HAPI_EINVAL) && err.code == rc && err.text[0],
                "an unclear error");
        return 0;
    }
    require(t.crop_h > 0 && t.crop_w > 0 && t.resize_h >= 0 && t.resize_w >= 0, "no size");
    int n = hapi_transform_text(&t, text, sizeof text);
    require(n > 0, "no text");
    require(!hapi_transform_parse(&u, text, (size_t)n, &err), "its text does not parse");
    require(hapi_transform_text(&u, again, sizeof again) == n && !memcmp(text, again, (size_t)n),
            "its text changes");
    require(!memcmp(t.mean, u.mean, sizeof t.mean) && !memcmp(t.std, u.std, sizeof t.std) &&
                !memcmp(&t.scale, &u.scale, sizeof t.scale),
            "its numbers change");
    return 0;
}
