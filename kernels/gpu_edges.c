/* Where a program meets the host: bytes of pixels in, the wire's dtype out, converted on the GPU. */
#include "gpu_build.h"
#include "int8.h"

static enum hapi_layout layout_of(const struct hapi_gpu_build *b, const struct hapi_shape *s)
{
    return s->rank == 4 && !b->edges->plain ? HAPI_LAYOUT_NHWC : HAPI_LAYOUT_PLAIN;
}

static enum hapi_dtype wire_of(const struct hapi_gpu_build *b)
{
    return b->edges->wire == HAPI_DTYPE_NONE ? HAPI_F32 : b->edges->wire;
}

/* An edge's memory: `view` in dtype, `bytes` of it. */
static int edge(struct hapi_gpu_build *b, int value, enum hapi_gpu_place place, size_t index,
                enum hapi_dtype dtype, uint64_t bytes, struct hapi_gpu_view *view)
{
    const struct hapi_value *v = &b->g->values[value];

    if (v->dtype != HAPI_F32 || !bytes)
        return hapi_err_set(b->err, HAPI_EUNSUPPORTED, 0, "tensor `%s` at an edge of a GPU's plan is %s",
                            v->name, bytes ? hapi_dtype_name(v->dtype) : "empty");
    hapi_gpu_view_dense(view, &v->shape, layout_of(b, &v->shape));
    view->dtype = dtype;
    view->storage = hapi_gpu_storage(b, place, (int)index, bytes);
    return view->storage < 0 ? view->storage : HAPI_OK;
}

static uint64_t bytes_of(const struct hapi_value *v, enum hapi_dtype dtype)
{
    size_t bytes = 0;

    return hapi_tensor_bytes(&v->shape, dtype, &bytes) ? 0 : bytes;
}

/* Bytes (N,H,W,3) become what the network takes. */
static int image_in(struct hapi_gpu_build *b, int value)
{
    const struct hapi_shape *s = &b->g->values[value].shape;
    struct hapi_gpu_kernel k = {.kind = HAPI_GPU_IMAGE, .image = *b->edges->image};
    struct hapi_gpu_view pixels, y;
    const struct hapi_gpu_view *views[] = {&y, &pixels};
    int rc;

    if (s->rank != 4 || s->dim[1] != 3 || b->edges->plain)
        return hapi_err_set(b->err, HAPI_EUNSUPPORTED, 0,
                            "tensor `%s` at an edge of a GPU's plan is no image", b->g->values[value].name);
    rc = edge(b, value, HAPI_GPU_IN, 0, HAPI_U8, bytes_of(&b->g->values[value], HAPI_U8), &pixels);
    if (rc)
        return rc;
    hapi_gpu_view_dense(&y, s, HAPI_LAYOUT_NHWC);
    rc = hapi_gpu_place_new(b, &y, b->dtype);
    if (rc)
        return rc;
    k.image.pixels = s->dim[0] * s->dim[2] * s->dim[3];
    rc = hapi_gpu_launch_kernel(b, &k, views, 2);
    hapi_gpu_made(b, value, &y);
    return rc;
}

int hapi_gpu_inputs(struct hapi_gpu_build *b)
{
    struct hapi_gpu_view view;
    int rc = HAPI_OK;

    if (b->edges->image && b->g->n_inputs != 1)
        return hapi_err_set(b->err, HAPI_EUNSUPPORTED, 0, "images for a plan of %zu inputs", b->g->n_inputs);
    for (size_t i = 0; i < b->g->n_inputs && !rc; i++) {
        int v = b->g->inputs[i];
        if (b->edges->image) {
            rc = image_in(b, v);
            continue;
        }
        rc = edge(b, v, HAPI_GPU_IN, i, HAPI_F32, bytes_of(&b->g->values[v], HAPI_F32), &view);
        if (!rc)
            hapi_gpu_made(b, v, &view);
    }
    return rc;
}

/* Rows of int8 with their scales: the largest magnitudes first, then all elements. */
static int i8_out(struct hapi_gpu_build *b, const struct hapi_shape *s, const struct hapi_gpu_view *to,
                  struct hapi_gpu_view *from)
{
    struct hapi_gpu_kernel k = {.kind = HAPI_GPU_ZERO};
    struct hapi_gpu_view dense, max;
    const struct hapi_gpu_view *views[] = {&max, &max, NULL};
    struct hapi_i8 f;
    int rc = HAPI_OK;

    if (hapi_i8_form(&f, s))
        return hapi_err_set(b->err, HAPI_EUNSUPPORTED, 0, "an output that is no batch, in int8");
    if (!hapi_gpu_view_is_dense(from, layout_of(b, s)) || from->offset) {
        hapi_gpu_view_dense(&dense, s, layout_of(b, s));
        rc = hapi_gpu_copy(b, from, &dense);
    }
    k.i8 = (struct hapi_gpu_i8){s->dim[0], (int64_t)f.elements, (int64_t)f.channels, (int64_t)f.scales};
    hapi_gpu_view_dense(&max, &(struct hapi_shape){1, {s->dim[0] * (int64_t)f.scales}}, HAPI_LAYOUT_PLAIN);
    if (!rc)
        rc = hapi_gpu_place_new(b, &max, HAPI_F32); /* as wide as what is in it */
    if (rc || !hapi_gpu_view_loop(views, 1, &k.outer))
        return rc ? rc : hapi_gpu_no_memory(b);
    rc = hapi_gpu_launch_kernel(b, &k, views, 2);
    k.kind = HAPI_GPU_I8_MAX;
    views[1] = from;
    if (!rc)
        rc = hapi_gpu_launch_kernel(b, &k, views, 2);
    k.kind = HAPI_GPU_I8_PACK;
    views[0] = to;
    views[2] = &max;
    return rc ? rc : hapi_gpu_launch_kernel(b, &k, views, 3);
}

int hapi_gpu_outputs(struct hapi_gpu_build *b)
{
    enum hapi_dtype wire = wire_of(b);
    struct hapi_gpu_view to, from;
    int rc = HAPI_OK;

    for (size_t i = 0; i < b->g->n_outputs && !rc; i++) {
        int v = b->g->outputs[i];
        const struct hapi_shape *s = &b->g->values[v].shape;
        uint64_t row = 0;
        bool input = b->values[v].made && b->p->storages[b->values[v].view.storage].place == HAPI_GPU_IN;
        if (hapi_wire_row(s, wire, &row) && wire == HAPI_I8)
            return hapi_err_set(b->err, HAPI_EUNSUPPORTED, 0, "output `%s` in int8 is no batch",
                                b->g->values[v].name);
        rc = edge(b, v, HAPI_GPU_OUT, i, wire,
                  wire == HAPI_I8 ? row * (uint64_t)s->dim[0] : bytes_of(&b->g->values[v], wire), &to);
        if (!rc && input && wire == HAPI_F32) /* an input that is an output: as it is */
            from = b->values[v].view;
        else if (!rc)
            rc = hapi_gpu_need_wide(b, v, &from);
        if (!rc)
            rc = wire == HAPI_I8 ? i8_out(b, s, &to, &from)
                                 : hapi_gpu_pointwise(b, HAPI_GPU_COPY, NULL, &to, &from, NULL, NULL);
    }
    return rc;
}
