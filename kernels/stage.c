#include "stage.h"

#include <stdlib.h>
#include <string.h>

#include "clock.h"
#include "convert.h"
#include "int8.h"
#include "slab.h"

enum { OUTPUTS_MAX = 32 };

struct hapi_stage {
    struct hapi_decoder *decoder;
    struct hapi_slab memory; /* arena | input | f32 outputs */
};

int hapi_stage_new(struct hapi_stage **out, struct hapi_err *err)
{
    struct hapi_stage *s = calloc(1, sizeof *s);

    if (!s)
        return hapi_err_set(err, HAPI_ENOMEM, 0, "no memory for a compute stage");
    int rc = hapi_decoder_new(&s->decoder, 0, err);
    if (rc) {
        free(s);
        return rc;
    }
    *out = s;
    return 0;
}

void hapi_stage_free(struct hapi_stage *s)
{
    if (!s)
        return;
    hapi_decoder_free(s->decoder);
    hapi_slab_fini(&s->memory);
    free(s);
}

/* The buffers of one run, carved from the stage's memory. A GPU's plan takes bytes and gives the wire's
 * dtype. */
struct buffers {
    void *arena;
    uint8_t *input;
    void *out[OUTPUTS_MAX];
    size_t row[OUTPUTS_MAX];   /* elements of one sample */
    size_t bytes[OUTPUTS_MAX]; /* of a sample as the plan makes it */
    struct hapi_i8 form[OUTPUTS_MAX];
    enum hapi_dtype made; /* dtype of the plan's outputs */
    size_t n_out;
};

static int buffers_take(struct hapi_stage *s, const struct hapi_plan *plan, size_t input_bytes,
                        enum hapi_dtype wire, struct buffers *b, struct hapi_err *err)
{
    const struct hapi_tensor_desc *d;
    struct hapi_plan_memory m = hapi_plan_memory_get(plan);
    size_t need = m.arena + m.scratch + input_bytes + 3 * 4096;

    b->n_out = hapi_plan_outputs(plan, &d);
    if (b->n_out > OUTPUTS_MAX)
        return hapi_err_set(err, HAPI_ETOOBIG, 0, "a cut of %zu tensors (at most %d)", b->n_out, OUTPUTS_MAX);
    b->made = b->n_out ? d[0].dtype : HAPI_F32;
    for (size_t i = 0; i < b->n_out; i++) {
        size_t bytes;
        uint64_t row;
        if ((d[i].dtype != HAPI_F32 && d[i].dtype != wire) || d[i].shape.rank < 1 ||
            hapi_tensor_bytes(&d[i].shape, HAPI_F32, &bytes) ||
            hapi_wire_row(&d[i].shape, d[i].dtype, &row) ||
            (wire == HAPI_I8 && hapi_i8_form(&b->form[i], &d[i].shape)))
            return hapi_err_set(err, HAPI_EUNSUPPORTED, 0, "tensor %s of the cut is not a batch of f32",
                                d[i].name);
        b->row[i] = bytes / 4 / (size_t)d[i].shape.dim[0];
        b->bytes[i] = (size_t)row;
        need += b->bytes[i] * (size_t)d[i].shape.dim[0] + 4096;
    }
    if (need > s->memory.size) {
        hapi_slab_fini(&s->memory);
        int rc = hapi_slab_init(&s->memory, need, err);
        if (rc)
            return rc;
    }
    s->memory.used = 0;
    b->arena = hapi_slab_take(&s->memory, m.arena + m.scratch, 4096);
    b->input = hapi_slab_take(&s->memory, input_bytes, 4096);
    for (size_t i = 0; i < b->n_out; i++)
        b->out[i] = hapi_slab_take(&s->memory, b->bytes[i] * (size_t)d[i].shape.dim[0], 4096);
    return 0;
}

static int input_check(const struct hapi_plan *plan, const struct hapi_transform *t, int64_t n,
                       size_t *image_bytes, int64_t *batch, struct hapi_err *err)
{
    const struct hapi_tensor_desc *in;
    char shape[96];

    if (hapi_plan_inputs(plan, &in) != 1 || (in->dtype != HAPI_F32 && in->dtype != HAPI_U8) ||
        in->shape.rank != 4)
        return hapi_err_set(err, HAPI_EINVAL, 0, "the model does not take one batch of f32 images");
    *batch = in->shape.dim[0];
    if (in->shape.dim[1] != 3 || in->shape.dim[2] != t->crop_h || in->shape.dim[3] != t->crop_w)
        return hapi_err_set(err, HAPI_EINVAL, 0,
                            "the transform makes 3x%dx%d images, the model's input %s is %s", t->crop_h,
                            t->crop_w, in->name, hapi_shape_text(&in->shape, shape, sizeof shape));
    if (n < 1 || n > *batch)
        return hapi_err_set(err, HAPI_EINVAL, 0, "%lld images for a plan of %lld", (long long)n,
                            (long long)*batch);
    *image_bytes = (size_t)t->crop_h * (size_t)t->crop_w * 3 * hapi_dtype_size(in->dtype);
    return 0;
}

/* Samples from i on that were decoded, or were not, like sample i. */
static int64_t run_of(const struct hapi_image *images, int64_t i, int64_t n)
{
    int64_t k = i + 1;

    while (k < n && !images[k].status == !images[i].status)
        k++;
    return k - i;
}

static int rows_convert(const struct hapi_stage_out *o, void *to, const float *from, size_t rows, size_t row,
                        const struct hapi_i8 *form)
{
    if (o->dtype == HAPI_I8) {
        hapi_i8_pack(to, from, form, rows, o->crc32c);
        return 0;
    }
    return o->crc32c ? hapi_convert_crc32c(to, o->dtype, from, HAPI_F32, rows * row, HAPI_CRC_DST, o->crc32c)
                     : hapi_convert(to, o->dtype, from, HAPI_F32, rows * row);
}

/* One output to the caller's dtype and place, and its checksum; a sample that is not delivered has none. */
static int output_finish(const struct hapi_stage_out *o, size_t output, const void *from,
                         const struct buffers *b, const struct hapi_image *images, int64_t n)
{
    const struct hapi_i8 *form = &b->form[output];
    size_t row = b->row[output];
    size_t bytes = o->dtype == HAPI_I8 ? hapi_i8_row(form) : row * hapi_dtype_size(o->dtype);
    uint8_t *to = o->out[output];
    int rc = 0;

    if (from != to && b->made == o->dtype &&
        b->made != HAPI_F32) { /* as the wire wants it: it had no room for the whole batch */
        memcpy(to, from, bytes * (size_t)n);
        from = to;
    }
    if (!o->crc32c)
        return from == to ? 0 : rows_convert(o, to, from, (size_t)n, row, form);
    for (int64_t i = 0, k; i < n && !rc; i += k) {
        uint8_t *at = to + bytes * (size_t)i;
        k = run_of(images, i, n);
        if (images[i].status)
            continue;
        if (from == to)
            *o->crc32c = hapi_crc32c(*o->crc32c, at, bytes * (size_t)k);
        else
            rc = rows_convert(o, at, (const float *)from + row * (size_t)i, (size_t)k, row, form);
    }
    return rc;
}

/* Each to its place in `to`; one that fails leaves nothing but its status. */
static void images_decode(struct hapi_stage *s, const struct hapi_plan *plan, const struct hapi_transform *t,
                          struct hapi_image *images, int64_t n, uint8_t *to, size_t bytes)
{
    const struct hapi_tensor_desc *takes;
    bool wide = hapi_plan_inputs(plan, &takes) && takes->dtype == HAPI_F32;

    for (int64_t i = 0; i < n; i++, to += bytes) {
        if (!images[i].status && wide)
            images[i].status = hapi_decode(s->decoder, t, images[i].data, images[i].bytes, (float *)to, NULL);
        else if (!images[i].status)
            images[i].status = hapi_decode_bytes(s->decoder, t, images[i].data, images[i].bytes, to, NULL);
        if (images[i].status) /* rows never mix, but a denormal or NaN would be slow */
            memset(to, 0, bytes);
    }
}

int hapi_stage_images(struct hapi_stage *s, struct hapi_plan *plan, const struct hapi_transform *t,
                      struct hapi_image *images, int64_t n, const struct hapi_stage_out *o,
                      int64_t ns[HAPI_STAGE_TIMES], struct hapi_err *err)
{
    struct buffers b;
    size_t image = 0;
    int64_t batch = 0, t0 = hapi_clock_ns();

    int rc = input_check(plan, t, n, &image, &batch, err);
    if (!rc)
        rc = buffers_take(s, plan, image * (size_t)batch, o->dtype, &b, err);
    if (rc)
        return rc;
    images_decode(s, plan, t, images, n, b.input, image);
    int64_t t1 = hapi_clock_ns();
    bool direct = o->dtype == b.made && o->rows >= batch;
    void *const *made = direct ? o->out : b.out;
    const void *in = b.input;
    rc = hapi_plan_run(plan, b.arena, &in, made, err);
    int64_t t2 = hapi_clock_ns();
    for (size_t i = 0; !rc && i < b.n_out; i++)
        rc = output_finish(o, i, made[i], &b, images, n);
    ns[HAPI_STAGE_DECODE] = t1 - t0;
    ns[HAPI_STAGE_COMPUTE] = t2 - t1;
    ns[HAPI_STAGE_CONVERT] = hapi_clock_ns() - t2;
    return rc;
}

/* What one sample is of the plan's only input. */
struct cut_row {
    size_t elements;
    uint64_t bytes; /* as it travels */
    struct hapi_i8 form;
    int64_t batch;
};

static int row_check(const struct hapi_plan *plan, enum hapi_dtype wire, int64_t n, struct cut_row *r,
                     struct hapi_err *err)
{
    const struct hapi_tensor_desc *in;
    size_t bytes;

    if (hapi_plan_inputs(plan, &in) != 1 || in->dtype != HAPI_F32 || in->shape.rank < 1 ||
        hapi_wire_row(&in->shape, wire, &r->bytes) || hapi_tensor_bytes(&in->shape, HAPI_F32, &bytes) ||
        (wire == HAPI_I8 && hapi_i8_form(&r->form, &in->shape)))
        return hapi_err_set(err, HAPI_EINVAL, 0, "the plan does not take one batch of f32");
    r->batch = in->shape.dim[0];
    r->elements = bytes / sizeof(float) / (size_t)r->batch;
    if (n < 1 || n > r->batch)
        return hapi_err_set(err, HAPI_EINVAL, 0, "%lld samples for a plan of %lld", (long long)n,
                            (long long)r->batch);
    return 0;
}

/* As f32; zeros for those that were not delivered, and up to the plan's batch: rows never mix, but a denormal
 * or NaN would be slow. */
static int rows_take(float *to, const uint8_t *rows, enum hapi_dtype wire, const struct hapi_image *images,
                     int64_t n, const struct cut_row *r)
{
    int rc = 0;

    memset(to + (size_t)n * r->elements, 0, (size_t)(r->batch - n) * r->elements * sizeof(float));
    for (int64_t i = 0, k; i < n && !rc; i += k) {
        float *at = to + (size_t)i * r->elements;
        const uint8_t *from = rows + (size_t)i * r->bytes;
        k = run_of(images, i, n);
        if (images[i].status)
            memset(at, 0, (size_t)k * r->elements * sizeof(float));
        else if (wire == HAPI_I8)
            rc = hapi_i8_unpack(at, from, &r->form, (size_t)k, NULL);
        else
            rc = hapi_convert(at, HAPI_F32, from, wire, (size_t)k * r->elements);
    }
    return rc;
}

int hapi_stage_rows(struct hapi_stage *s, struct hapi_plan *plan, const void *rows, enum hapi_dtype wire,
                    const struct hapi_image *images, int64_t n, const struct hapi_stage_out *o,
                    int64_t ns[HAPI_STAGE_TIMES], struct hapi_err *err)
{
    struct cut_row r = {.batch = 0};
    struct buffers b;
    int64_t t0 = hapi_clock_ns();

    int rc = row_check(plan, wire, n, &r, err);
    bool as_is = !rc && wire == HAPI_F32 && n == r.batch && run_of(images, 0, n) == n && !images[0].status;
    if (!rc && o->crc32c)
        rc = hapi_err_set(err, HAPI_EINVAL, 0, "no checksum of what stays on this tier");
    if (!rc)
        rc = buffers_take(s, plan, as_is ? 0 : r.elements * sizeof(float) * (size_t)r.batch, o->dtype, &b,
                          err);
    if (rc)
        return rc;
    rc = as_is ? 0 : rows_take((float *)(void *)b.input, rows, wire, images, n, &r);
    if (rc)
        return hapi_err_set(err, rc, 0, "rows that are no %s", hapi_dtype_name(wire));
    int64_t t1 = hapi_clock_ns();
    bool direct = o->dtype == b.made && o->rows >= r.batch;
    void *const *made = direct ? o->out : b.out;
    const void *in = as_is ? rows : b.input;
    rc = hapi_plan_run(plan, b.arena, &in, made, err);
    int64_t t2 = hapi_clock_ns();
    for (size_t i = 0; !rc && i < b.n_out; i++)
        rc = output_finish(o, i, made[i], &b, images, n);
    ns[HAPI_STAGE_DECODE] = 0;
    ns[HAPI_STAGE_COMPUTE] = t2 - t1;
    ns[HAPI_STAGE_CONVERT] = t1 - t0 + hapi_clock_ns() - t2;
    return rc;
}

int hapi_stage_start(struct hapi_stage *s, struct hapi_plan *plan, const struct hapi_transform *t,
                     struct hapi_image *images, int64_t n, const struct hapi_stage_out *o, int64_t *decode_ns,
                     void (*done)(void *arg), void *arg, struct hapi_err *err)
{
    const struct hapi_tensor_desc *gives;
    size_t image = 0, n_out = hapi_plan_outputs(plan, &gives);
    int64_t batch = 0, start = hapi_clock_ns();
    uint8_t *input;

    int rc = input_check(plan, t, n, &image, &batch, err);
    if (rc)
        return rc;
    input = hapi_plan_input_memory(plan, 0);
    if (!input || o->crc32c || o->rows < batch)
        return hapi_err_set(err, HAPI_EINVAL, 0, "this plan cannot be started: run it");
    for (size_t i = 0; i < n_out; i++)
        if (gives[i].dtype != o->dtype)
            return hapi_err_set(err, HAPI_EINVAL, 0, "the plan gives %s, not %s",
                                hapi_dtype_name(gives[i].dtype), hapi_dtype_name(o->dtype));
    images_decode(s, plan, t, images, n, input, image);
    *decode_ns = hapi_clock_ns() - start;
    return hapi_plan_start(plan, (const void *const[]){input}, o->out, done, arg, err);
}
