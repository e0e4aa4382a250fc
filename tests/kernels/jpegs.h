/* JPEGs for the tests, made by libjpeg's compressor from a smooth pattern. */
#ifndef HAPI_TESTS_KERNELS_JPEGS_H
#define HAPI_TESTS_KERNELS_JPEGS_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
/* after stdio.h */
#include <jpeglib.h>

enum jpeg_kind { JPEG_GRAY, JPEG_RGB, JPEG_CMYK, JPEG_PROGRESSIVE, JPEG_SCANS };

struct jpeg_bytes {
    unsigned char *p;
    unsigned long n;
};

/* Value at (x, y) of channel c; level >= 0: that everywhere. */
static inline uint8_t jpeg_value(int x, int y, int c, int level)
{
    return level >= 0 ? (uint8_t)level : (uint8_t)(x * (c + 1) * 3 + y * 2 + c * 40 + (x * y) / 7);
}

static inline struct jpeg_bytes jpeg_make(enum jpeg_kind kind, int w, int h, int level)
{
    static const jpeg_scan_info each[] = {
        {1, {0}, 0, 63, 0, 0}, {1, {1}, 0, 63, 0, 0}, {1, {2}, 0, 63, 0, 0}};
    struct jpeg_compress_struct c;
    struct jpeg_error_mgr e;
    struct jpeg_bytes out = {NULL, 0};
    int channels = kind == JPEG_GRAY ? 1 : kind == JPEG_CMYK ? 4 : 3;
    uint8_t *row = malloc((size_t)w * 4);

    if (!row)
        exit(1);
    c.err = jpeg_std_error(&e);
    jpeg_create_compress(&c);
    jpeg_mem_dest(&c, &out.p, &out.n);
    c.image_width = (JDIMENSION)w;
    c.image_height = (JDIMENSION)h;
    c.input_components = channels;
    c.in_color_space = channels == 1 ? JCS_GRAYSCALE : channels == 4 ? JCS_CMYK : JCS_RGB;
    jpeg_set_defaults(&c);
    jpeg_set_quality(&c, 90, TRUE);
    if (kind == JPEG_PROGRESSIVE)
        jpeg_simple_progression(&c);
    if (kind == JPEG_SCANS) {
        c.scan_info = each;
        c.num_scans = 3;
    }
    jpeg_start_compress(&c, TRUE);
    for (int y = 0; y < h; y++) {
        for (int x = 0; x < w; x++)
            for (int k = 0; k < channels; k++)
                row[x * channels + k] = jpeg_value(x, y, k, level);
        JSAMPROW rows[1] = {row};
        jpeg_write_scanlines(&c, rows, 1);
    }
    jpeg_finish_compress(&c);
    jpeg_destroy_compress(&c);
    free(row);
    return out;
}

#endif
