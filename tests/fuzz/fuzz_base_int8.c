/*
 * Rows of int8 as they come over the wire, the first two bytes say of which shape: every way refuses the same
 * ones and makes the same values of the others, none of them infinite but by -128, which is never sent.
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "convert_ways.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct hapi_shape shape = {.rank = 4, .dim = {1, 1, 1, 1}};
    struct hapi_i8 f;
    uint32_t crc = 0;

    if (size < 2)
        return 0;
    shape.dim[1] = 1 + data[0]; /* 1 to 4 or 16 to 19 positions of up to 256 channels */
    shape.dim[3] = 1 + data[1] % 4 + (data[1] & 4 ? 15 : 0);
    if (hapi_i8_form(&f, &shape) || size - 2 < hapi_i8_row(&f))
        return 0;
    uint8_t *row = malloc(hapi_i8_row(&f));
    float *want = malloc(4 * f.elements), *got = malloc(4 * f.elements);
    if (!row || !want || !got)
        abort();
    memcpy(row, data + 2, hapi_i8_row(&f));
    int rc = hapi_i8_unpack_by(HAPI_WAY_SCALAR, want, row, &f, 1, NULL);
    if (rc && rc != HAPI_EPROTO)
        abort();
    for (int w = 1; w < HAPI_WAY_COUNT; w++)
        if (hapi_way_usable(w) &&
            (hapi_i8_unpack_by(w, got, row, &f, 1, &crc) != rc || (!rc && memcmp(got, want, 4 * f.elements))))
            abort();
    for (size_t i = 0; !rc && i < f.elements; i++)
        if (isinf(want[i]) && row[4 * f.scales + i] != 0x80)
            abort();
    free(row);
    free(want);
    free(got);
    return 0;
}
