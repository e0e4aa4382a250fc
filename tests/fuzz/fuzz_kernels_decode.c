/* Any bytes as a JPEG: the first two choose a small transform. What decodes gives finite values in range, the
 * same twice; what does not says why. */
#include <math.h>
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
    static struct hapi_decoder *d;
    static float a[32 * 24 * 3], b[32 * 24 * 3];
    struct hapi_transform t = {.scale = 1, .std = {1, 1, 1}};
    struct hapi_err err = {0};

    if (!d)
        require(!hapi_decoder_new(&d, 1 << 16, NULL), "no decoder");
    if (size < 2)
        return 0;
    t.interpolation = (enum hapi_interpolation)(data[0] % 3);
    t.exif = data[0] & 16;
    t.draft = data[0] & 8;
    t.bgr = data[0] & 32;
    t.resize_w = data[0] & 64 ? 1 + data[1] % 40 : 0;
    t.resize_h = data[0] & 128 ? 1 + data[1] / 4 : 0;
    t.resize_w = t.resize_h ? t.resize_w : 0;
    t.crop_h = 1 + data[1] % 32;
    t.crop_w = 1 + data[1] % 24;
    size_t n = (size_t)t.crop_h * (size_t)t.crop_w * 3;
    int rc = hapi_decode(d, &t, data + 2, size - 2, a, &err);
    require(rc == 0 || ((rc == HAPI_EDECODE || rc == HAPI_ETOOBIG) && err.code == rc && err.text[0]),
            "an error of another kind");
    if (rc)
        return 0;
    require(!hapi_decode(d, &t, data + 2, size - 2, b, NULL), "not twice");
    require(!memcmp(a, b, n * sizeof *a), "not the same twice");
    for (size_t i = 0; i < n; i++)
        require(a[i] >= 0 && a[i] <= 255 && a[i] == floorf(a[i]), "not a pixel value");
    return 0;
}
