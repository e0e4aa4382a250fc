/*
 * Antialiased resize of 8-bit images as PIL does it, bit for bit: two separable passes, horizontal first,
 * rounded to 8 bits between them, weights in fixed point with 22 fractional bits. Only the window of the
 * result that is asked for is computed. Pixels are 4 bytes (R, G, B, unused). Private to kernels/.
 *
 * The scratch grows for larger jobs than before and is one per thread.
 */
#ifndef HAPI_KERNELS_RESIZE_H
#define HAPI_KERNELS_RESIZE_H

#include "kernels.h"

struct hapi_image {
    const uint8_t *pixels; /* 4 bytes each; 32 bytes may be read (not used) past the last one */
    int32_t w, h;
    size_t stride; /* bytes from row to row */
};

/* The window [x, x+w) x [y, y+h) of the image resized to full_w x full_h; it lies inside. */
struct hapi_resize {
    int64_t full_w, full_h;
    int64_t x, y;
    int32_t w, h;
    enum hapi_interpolation how;
};

struct hapi_axis {
    int32_t *first, *count; /* [n] source pixels of each output pixel */
    int32_t *weights;       /* [n][taps], padded with zeros */
    int32_t taps;           /* even */
    size_t capacity_n, capacity_weights;
};

struct hapi_resize_scratch {
    struct hapi_axis axis;
    double *real; /* weights of one output pixel before rounding */
    size_t capacity_real;
    uint8_t *rows; /* after the horizontal pass */
    size_t capacity_rows;
};

void hapi_resize_scratch_fini(struct hapi_resize_scratch *s);
/* Writes the window densely (4 bytes a pixel) to out, which has 32 bytes to spare at its end. HAPI_ENOMEM.
 * scalar: without vector instructions (tests compare). */
int hapi_resize_run(struct hapi_resize_scratch *s, const struct hapi_image *in, const struct hapi_resize *job,
                    uint8_t *out, bool scalar);

/* Grows *p to at least `bytes` (contents are lost); HAPI_ENOMEM leaves it as it was. */
int hapi_grow(void **p, size_t *capacity, size_t bytes);

#endif
