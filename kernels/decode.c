/*
 * JPEG -> RGB -> resize and crop -> f32, as torchvision does it on PIL images: libjpeg's accurate integer DCT
 * and smooth upsampling over the whole image, then the window of PIL's resize that the crop keeps. A draft
 * has the DCT make half of each side, where that is enough: docs/decode.md says what it changes and saves.
 */
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
/* after stdio.h */
#include <jpeglib.h>

#include "resize.h"

enum { SPARE = 64, SCANS_MAX = 200, FULL_SIDE_MAX = 1 << 22 };
#define MAX_PIXELS ((uint64_t)64 << 20)

struct hapi_decoder {
    struct jpeg_decompress_struct jpeg;
    struct jpeg_error_mgr errors;
    struct jpeg_source_mgr source;
    struct jpeg_progress_mgr progress;
    jmp_buf jump;
    int code; /* of the error that jumped */
    char text[JMSG_LENGTH_MAX];
    uint64_t max_pixels;
    uint8_t *pixels, *turned, *window;
    size_t capacity_pixels, capacity_turned, capacity_window;
    struct hapi_resize_scratch scratch;
    float table[3][256]; /* of the output's channels, by pixel value */
};

/* ---- libjpeg's callbacks */

static struct hapi_decoder *decoder_of(j_common_ptr c)
{
    return c->client_data;
}

static void fail(struct hapi_decoder *d, int code, const char *text)
{
    d->code = code;
    snprintf(d->text, sizeof d->text, "%s", text);
    longjmp(d->jump, 1);
}

static void on_error(j_common_ptr c)
{
    struct hapi_decoder *d = decoder_of(c);

    d->code = HAPI_EDECODE;
    c->err->format_message(c, d->text);
    longjmp(d->jump, 1);
}

/* Level -1 is a warning: what follows would be guessed pixels. Others are traces. */
static void on_message(j_common_ptr c, int level)
{
    if (level < 0)
        on_error(c);
}

static void on_progress(j_common_ptr c)
{
    /* A progressive file of a few KB can name thousands of scans, each over the whole image. */
    if (decoder_of(c)->jpeg.input_scan_number > SCANS_MAX)
        fail(decoder_of(c), HAPI_EDECODE, "more than 200 scans");
}

static void on_source(j_decompress_ptr c)
{
    (void)c;
}

static boolean on_source_empty(j_decompress_ptr c)
{
    fail(c->client_data, HAPI_EDECODE, "the data ends before the image does");
    return FALSE;
}

static void on_source_skip(j_decompress_ptr c, long n)
{
    if (n <= 0)
        return;
    if ((unsigned long)n > c->src->bytes_in_buffer)
        fail(c->client_data, HAPI_EDECODE, "the data ends inside a marker");
    c->src->next_input_byte += n;
    c->src->bytes_in_buffer -= (size_t)n;
}

/* ---- life */

static int create(struct hapi_decoder *d)
{
    if (setjmp(d->jump))
        return HAPI_ENOMEM; /* a library of another version, or no memory */
    jpeg_create_decompress(&d->jpeg);
    return 0;
}

int hapi_decoder_new(struct hapi_decoder **out, uint64_t max_pixels, struct hapi_err *err)
{
    struct hapi_decoder *d = calloc(1, sizeof *d);

    if (!d)
        return hapi_err_set(err, HAPI_ENOMEM, 0, "no memory for a decoder");
    d->max_pixels = max_pixels ? max_pixels : MAX_PIXELS;
    d->jpeg.err = jpeg_std_error(&d->errors);
    d->errors.error_exit = on_error;
    d->errors.emit_message = on_message;
    d->jpeg.client_data = d; /* kept by jpeg_create_decompress() */
    if (create(d)) {
        hapi_err_set(err, HAPI_ENOMEM, 0, "libjpeg cannot make a decoder: %s", d->text);
        jpeg_destroy_decompress(&d->jpeg);
        free(d);
        return HAPI_ENOMEM;
    }
    d->source = (struct jpeg_source_mgr){.init_source = on_source,
                                         .fill_input_buffer = on_source_empty,
                                         .skip_input_data = on_source_skip,
                                         .resync_to_restart = jpeg_resync_to_restart,
                                         .term_source = on_source};
    d->jpeg.src = &d->source;
    d->progress.progress_monitor = on_progress;
    d->jpeg.progress = &d->progress;
    *out = d;
    return 0;
}

void hapi_decoder_free(struct hapi_decoder *d)
{
    if (!d)
        return;
    jpeg_destroy_decompress(&d->jpeg);
    hapi_resize_scratch_fini(&d->scratch);
    free(d->pixels);
    free(d->turned);
    free(d->window);
    free(d);
}

/* ---- JPEG to pixels of 4 bytes */

/* PIL's way from CMYK: v = 255 - round(c * (255 - k) / 255) .. with the inverted values that Adobe writes. */
static void cmyk_to_rgb(uint8_t *p, size_t n)
{
    for (size_t i = 0; i < n; i++, p += 4) {
        int white = p[3]; /* 255 - k */
        for (int c = 0; c < 3; c++) {
            int t = (255 - p[c]) * white + 128, v = white - ((t + (t >> 8)) >> 8);
            p[c] = (uint8_t)(v < 0 ? 0 : v);
        }
    }
}

static void colour_choose(struct hapi_decoder *d)
{
    switch (d->jpeg.jpeg_color_space) {
    case JCS_CMYK:
    case JCS_YCCK:
        d->jpeg.out_color_space = JCS_CMYK;
        break;
    case JCS_GRAYSCALE:
    case JCS_RGB:
    case JCS_YCbCr:
        d->jpeg.out_color_space = JCS_EXT_RGBX;
        break;
    default:
        fail(d, HAPI_EDECODE, "colours that are neither gray, RGB, YCbCr, CMYK nor YCCK");
    }
}

/* Whether half the size, as libjpeg rounds it, is enough for the resize. `across`: the image will be turned
 * by 90 degrees. Only the half: of the other scales 1/4 and 1/8 blur more than the resize would, and the odd
 * eighths have slow loops. */
static bool half_is_enough(const struct hapi_transform *t, int64_t w, int64_t h, bool across)
{
    int64_t half_w = ((across ? h : w) + 1) / 2, half_h = ((across ? w : h) + 1) / 2;

    if (!t->draft || !t->resize_h)
        return false;
    return t->resize_w ? half_w >= t->resize_w && half_h >= t->resize_h
                       : (half_w < half_h ? half_w : half_h) >= t->resize_h;
}

/* Jumps on every error. */
static void pixels_read(struct hapi_decoder *d, const struct hapi_transform *t, bool across)
{
    struct jpeg_decompress_struct *j = &d->jpeg;

    jpeg_read_header(j, TRUE);
    if ((uint64_t)j->image_width * j->image_height > d->max_pixels)
        fail(d, HAPI_ETOOBIG, "more pixels than the limit");
    colour_choose(d);
    j->dct_method = JDCT_ISLOW;
    j->do_fancy_upsampling = TRUE;
    if (half_is_enough(t, j->image_width, j->image_height, across))
        j->scale_denom = 2;
    jpeg_calc_output_dimensions(j);
    size_t stride = (size_t)j->output_width * 4;
    if (hapi_grow((void **)&d->pixels, &d->capacity_pixels, stride * j->output_height + SPARE))
        fail(d, HAPI_ENOMEM, "no memory for its pixels");
    jpeg_start_decompress(j);
    while (j->output_scanline < j->output_height) {
        JSAMPROW rows[8];
        JDIMENSION n = j->output_height - j->output_scanline;
        n = n < 8 ? n : 8;
        for (JDIMENSION i = 0; i < n; i++)
            rows[i] = d->pixels + (j->output_scanline + i) * stride;
        jpeg_read_scanlines(j, rows, n);
    }
    if (j->out_color_space == JCS_CMYK)
        cmyk_to_rgb(d->pixels, (size_t)j->output_width * j->output_height);
    jpeg_finish_decompress(j);
}

static int pixels_decode(struct hapi_decoder *d, const struct hapi_transform *t, const void *jpeg,
                         size_t bytes, bool across, struct hapi_err *err)
{
    d->source.next_input_byte = jpeg;
    d->source.bytes_in_buffer = bytes;
    if (setjmp(d->jump)) {
        jpeg_abort_decompress(&d->jpeg);
        return hapi_err_set(err, d->code, 0, "JPEG: %s", d->text);
    }
    pixels_read(d, t, across);
    return 0;
}

/* ---- EXIF orientation */

struct tiff {
    const uint8_t *p;
    size_t n;
    bool big;
};

static uint32_t tiff_get(const struct tiff *t, size_t at, int bytes)
{
    uint32_t v = 0;

    if (at > t->n || (size_t)bytes > t->n - at)
        return 0;
    for (int i = 0; i < bytes; i++)
        v |= (uint32_t)t->p[at + (size_t)i] << 8 * (t->big ? bytes - 1 - i : i);
    return v;
}

/* Tag 0x112 of the first directory; 1 where there is none. */
static int tiff_orientation(const uint8_t *p, size_t n)
{
    struct tiff t = {p, n, n > 0 && p[0] == 'M'};

    if (n < 8 || (memcmp(p, "II*\0", 4) && memcmp(p, "MM\0*", 4)))
        return 1;
    size_t at = tiff_get(&t, 4, 4);
    uint32_t entries = tiff_get(&t, at, 2);
    for (uint32_t i = 0; i < entries && at + 14 <= n; i++, at += 12)
        if (tiff_get(&t, at + 2, 2) == 0x112 && tiff_get(&t, at + 4, 2) == 3 &&
            tiff_get(&t, at + 6, 4) == 1) {
            uint32_t v = tiff_get(&t, at + 10, 2);
            return v >= 1 && v <= 8 ? (int)v : 1;
        }
    return 1;
}

/* Walks the segments before the first scan. */
static int orientation(const uint8_t *p, size_t n)
{
    size_t at = 2;

    while (at + 4 <= n && p[at] == 0xff) {
        if (p[at + 1] == 0xff) { /* fill bytes */
            at++;
            continue;
        }
        size_t size = (size_t)p[at + 2] << 8 | p[at + 3];
        if (p[at + 1] == 0xda || size < 2 || size > n - at - 2)
            return 1;
        if (p[at + 1] == 0xe1 && size >= 8 && !memcmp(p + at + 4, "Exif\0\0", 6))
            return tiff_orientation(p + at + 10, size - 8);
        at += 2 + size;
    }
    return 1;
}

static uint32_t load(const uint8_t *p)
{
    uint32_t v;
    memcpy(&v, p, 4);
    return v;
}

/* Upright copy of *im in d->turned. */
static int turn(struct hapi_decoder *d, struct hapi_image *im, int how)
{
    int32_t w = how >= 5 ? im->h : im->w, h = how >= 5 ? im->w : im->h;
    bool from_right = how == 2 || how == 3 || how == 7 || how == 8;
    bool from_below = how == 3 || how == 4 || how == 6 || how == 7;
    uint8_t *out;

    if (hapi_grow((void **)&d->turned, &d->capacity_turned, (size_t)w * (size_t)h * 4 + SPARE))
        return HAPI_ENOMEM;
    out = d->turned;
    for (int32_t y = 0; y < h; y++)
        for (int32_t x = 0; x < w; x++, out += 4) {
            int32_t sx = how >= 5 ? y : x, sy = how >= 5 ? x : y;
            sx = from_right ? im->w - 1 - sx : sx;
            sy = from_below ? im->h - 1 - sy : sy;
            uint32_t v = load(im->pixels + (size_t)sy * im->stride + 4 * (size_t)sx);
            memcpy(out, &v, 4);
        }
    *im = (struct hapi_image){d->turned, w, h, (size_t)w * 4};
    return 0;
}

/* ---- geometry and numbers */

/* torchvision's Resize: the shorter side becomes resize_h, the longer one is truncated. */
static void full_size(const struct hapi_transform *t, const struct hapi_image *im, struct hapi_resize *job)
{
    int64_t longer = im->w > im->h ? im->w : im->h, shorter = im->w > im->h ? im->h : im->w;

    job->full_w = im->w;
    job->full_h = im->h;
    if (t->resize_w) {
        job->full_w = t->resize_w;
        job->full_h = t->resize_h;
    } else if (t->resize_h) {
        longer = (int64_t)((double)(t->resize_h * longer) / (double)shorter);
        job->full_w = im->w <= im->h ? t->resize_h : longer;
        job->full_h = im->w <= im->h ? longer : t->resize_h;
    }
}

/* torchvision's CenterCrop along one side: from (in the image) and pad (before it in the output). Halves go
 * to the even number, as Python rounds. */
static void centre(int64_t full, int32_t crop, int64_t *from, int32_t *n, int32_t *pad)
{
    int64_t half = (full - crop) / 2;

    *pad = full < crop ? (int32_t)((crop - full) / 2) : 0;
    *n = full < crop ? (int32_t)full : crop;
    *from = full <= crop ? 0 : (full - crop) % 2 ? half + (half & 1) : half;
}

static void table_fill(struct hapi_decoder *d, const struct hapi_transform *t)
{
    for (int c = 0; c < 3; c++)
        for (int v = 0; v < 256; v++)
            d->table[c][v] = ((float)v * t->scale - t->mean[c]) / t->std[c];
}

static void row_fill(const struct hapi_decoder *d, float *dst, int32_t n)
{
    for (int32_t i = 0; i < n; i++)
        for (int c = 0; c < 3; c++)
            *dst++ = d->table[c][0];
}

static void row_write(const struct hapi_decoder *d, float *dst, const uint8_t *p, int32_t n, bool bgr)
{
    int first = bgr ? 2 : 0, third = bgr ? 0 : 2;

    for (int32_t i = 0; i < n; i++, p += 4, dst += 3) {
        dst[0] = d->table[0][p[first]];
        dst[1] = d->table[1][p[1]];
        dst[2] = d->table[2][p[third]];
    }
}

static void write_all(struct hapi_decoder *d, const struct hapi_transform *t, const struct hapi_resize *job,
                      int32_t pad_x, int32_t pad_y, float *dst)
{
    size_t row = (size_t)t->crop_w * 3;

    table_fill(d, t);
    for (int32_t y = 0; y < t->crop_h; y++, dst += row) {
        if (y < pad_y || y >= pad_y + job->h) {
            row_fill(d, dst, t->crop_w);
            continue;
        }
        row_fill(d, dst, pad_x);
        row_write(d, dst + 3 * (size_t)pad_x, d->window + (size_t)(y - pad_y) * (size_t)job->w * 4, job->w,
                  t->bgr);
        row_fill(d, dst + 3 * (size_t)(pad_x + job->w), t->crop_w - pad_x - job->w);
    }
}

/* A crop's pixels in d->window, and where they lie in the result. */
struct placed {
    struct hapi_resize job;
    int32_t pad_x, pad_y;
};

static int window_make(struct hapi_decoder *d, const struct hapi_transform *t, const void *jpeg, size_t bytes,
                       struct placed *out, struct hapi_err *err)
{
    struct hapi_resize job = {.how = t->interpolation};
    int32_t pad_x, pad_y;
    int rc, how = t->exif && bytes ? orientation(jpeg, bytes) : 1;

    if (t->crop_h <= 0 || t->crop_w <= 0 || t->resize_h < 0 || t->resize_w < 0)
        return hapi_err_set(err, HAPI_EINVAL, 0, "the transform has no output size");
    if (!bytes)
        return hapi_err_set(err, HAPI_EDECODE, 0, "JPEG: empty");
    if ((rc = pixels_decode(d, t, jpeg, bytes, how >= 5, err)))
        return rc;
    struct hapi_image im = {d->pixels, (int32_t)d->jpeg.output_width, (int32_t)d->jpeg.output_height,
                            (size_t)d->jpeg.output_width * 4};
    if (how > 1 && turn(d, &im, how))
        return hapi_err_set(err, HAPI_ENOMEM, 0, "no memory to turn an image of %dx%d", im.w, im.h);
    full_size(t, &im, &job);
    if (job.full_w < 1 || job.full_h < 1 || job.full_w > FULL_SIDE_MAX || job.full_h > FULL_SIDE_MAX)
        return hapi_err_set(err, HAPI_ETOOBIG, 0, "an image of %dx%d would be resized to %lldx%lld", im.w,
                            im.h, (long long)job.full_w, (long long)job.full_h);
    centre(job.full_w, t->crop_w, &job.x, &job.w, &pad_x);
    centre(job.full_h, t->crop_h, &job.y, &job.h, &pad_y);
    if (hapi_grow((void **)&d->window, &d->capacity_window, (size_t)job.w * (size_t)job.h * 4 + SPARE) ||
        hapi_resize_run(&d->scratch, &im, &job, d->window, false))
        return hapi_err_set(err, HAPI_ENOMEM, 0, "no memory to resize an image of %dx%d", im.w, im.h);
    *out = (struct placed){job, pad_x, pad_y};
    return 0;
}

int hapi_decode(struct hapi_decoder *d, const struct hapi_transform *t, const void *jpeg, size_t bytes,
                float *dst, struct hapi_err *err)
{
    struct placed p;
    int rc = window_make(d, t, jpeg, bytes, &p, err);

    if (!rc)
        write_all(d, t, &p.job, p.pad_x, p.pad_y, dst);
    return rc;
}

int hapi_decode_bytes(struct hapi_decoder *d, const struct hapi_transform *t, const void *jpeg, size_t bytes,
                      uint8_t *dst, struct hapi_err *err)
{
    struct placed p;
    int rc = window_make(d, t, jpeg, bytes, &p, err);
    size_t row = (size_t)t->crop_w * 3;

    if (rc)
        return rc;
    memset(dst, 0, row * (size_t)t->crop_h);
    for (int32_t y = 0; y < p.job.h; y++) {
        const uint8_t *from = d->window + (size_t)y * (size_t)p.job.w * 4;
        uint8_t *to = dst + row * (size_t)(y + p.pad_y) + 3 * (size_t)p.pad_x;
        for (int32_t i = 0; i < p.job.w; i++, from += 4, to += 3)
            memcpy(to, from, 3);
    }
    return 0;
}
