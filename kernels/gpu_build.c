/* The compiler's bookkeeping: where everything lies, and in which order it is launched. */
#include <stdlib.h>
#include <string.h>

#include "convert.h"
#include "gpu_build.h"

int hapi_gpu_no_memory(struct hapi_gpu_build *b)
{
    return hapi_err_set(b->err, HAPI_ENOMEM, 0, "no memory for a GPU program");
}

/* Room for one more item. */
static bool grow(void **list, size_t n, size_t *room, size_t size)
{
    if (n < *room)
        return true;
    size_t more = *room ? 2 * *room : 64;
    void *bigger = realloc(*list, more * size);
    if (!bigger)
        return false;
    *list = bigger;
    *room = more;
    return true;
}

/* ------------------------------------------------------------------ memory */

int hapi_gpu_storage(struct hapi_gpu_build *b, enum hapi_gpu_place place, int index, uint64_t bytes)
{
    struct hapi_gpu_program *p = b->p;

    if (!grow((void **)&p->storages, p->n_storages, &b->room_storages, sizeof *p->storages))
        return hapi_gpu_no_memory(b);
    p->storages[p->n_storages] =
        (struct hapi_gpu_storage){.place = place, .index = index, .bytes = bytes, .first = -1, .last = -1};
    return (int)p->n_storages++;
}

static uint64_t elements(const struct hapi_gpu_view *v)
{
    uint64_t n = 1;

    for (int i = 0; i < v->n; i++)
        n *= (uint64_t)v->f[i].size;
    return n;
}

int hapi_gpu_place_new(struct hapi_gpu_build *b, struct hapi_gpu_view *view, enum hapi_dtype dtype)
{
    int s = hapi_gpu_storage(b, HAPI_GPU_ARENA, 0, elements(view) * hapi_dtype_size(dtype));

    if (s < 0)
        return s;
    view->storage = s;
    view->dtype = dtype;
    view->offset = 0;
    return HAPI_OK;
}

void hapi_gpu_made(struct hapi_gpu_build *b, int value, const struct hapi_gpu_view *view)
{
    b->values[value].made = true;
    b->values[value].lazy = HAPI_GPU_READY;
    b->values[value].view = *view;
}

void hapi_gpu_block_all(const struct hapi_gpu_build *b, int block, struct hapi_gpu_view *out)
{
    const struct hapi_gpu_block *k = &b->blocks[block];
    const struct hapi_shape *whole = &b->g->values[k->last->out[0]].shape;

    hapi_gpu_view_dense(out, whole, whole->rank == 4 && k->axis == 1 ? HAPI_LAYOUT_NHWC : HAPI_LAYOUT_PLAIN);
    out->storage = k->storage;
    out->dtype = b->dtype;
}

int hapi_gpu_block_part(struct hapi_gpu_build *b, int value, struct hapi_gpu_view *out)
{
    struct hapi_gpu_block *k = &b->blocks[b->values[value].block];
    struct hapi_gpu_view all;
    int rc;

    hapi_gpu_block_all(b, b->values[value].block, &all);
    if (k->storage < 0) {
        rc = hapi_gpu_place_new(b, &all, b->dtype);
        if (rc)
            return rc;
        k->storage = all.storage;
    }
    /* One factor a dim: always a view. */
    (void)hapi_gpu_view_slice(out, &all, k->axis, b->values[value].at, 1,
                              b->g->values[value].shape.dim[k->axis]);
    return HAPI_OK;
}

int hapi_gpu_result(struct hapi_gpu_build *b, int value, struct hapi_gpu_view *view, bool strided)
{
    struct hapi_gpu_view part;
    int rc;

    if (strided && b->values[value].block >= 0) {
        rc = hapi_gpu_block_part(b, value, &part);
        if (!rc)
            *view = part;
    } else {
        rc = hapi_gpu_place_new(b, view, b->dtype);
    }
    if (!rc)
        hapi_gpu_made(b, value, view);
    return rc;
}

bool hapi_gpu_aligned(const struct hapi_gpu_view *v)
{
    return (uint64_t)v->offset * hapi_dtype_size(v->dtype) % 16 == 0;
}

/* ------------------------------------------------------------------ weights */

int hapi_gpu_weight(struct hapi_gpu_build *b, const void *data, const struct hapi_gpu_view *from,
                    const struct hapi_gpu_view *to, enum hapi_dtype dtype, struct hapi_gpu_view *out)
{
    struct hapi_gpu_program *p = b->p;
    uint64_t bytes = elements(to) * hapi_dtype_size(dtype);
    int s = hapi_gpu_storage(b, HAPI_GPU_WEIGHT, 0, bytes);

    if (s < 0)
        return s;
    if (!grow((void **)&p->weights, p->n_weights, &b->room_weights, sizeof *p->weights))
        return hapi_gpu_no_memory(b);
    p->storages[s].offset = p->weight_bytes;
    p->weight_bytes += (bytes + HAPI_GPU_ALIGN - 1) / HAPI_GPU_ALIGN * HAPI_GPU_ALIGN;
    p->weights[p->n_weights++] = (struct hapi_gpu_weight){.data = data,
                                                          .from = *from,
                                                          .to = *to,
                                                          .dtype = dtype,
                                                          .elements = (int64_t)elements(to),
                                                          .storage = s};
    *out = *to;
    out->storage = s;
    out->dtype = dtype;
    return HAPI_OK;
}

int hapi_gpu_weight_vector(struct hapi_gpu_build *b, const float *data, int64_t n, struct hapi_gpu_view *out)
{
    struct hapi_gpu_view view;

    hapi_gpu_view_dense(&view, &(struct hapi_shape){1, {n}}, HAPI_LAYOUT_PLAIN);
    return hapi_gpu_weight(b, data, &view, &view, HAPI_F32, out);
}

void hapi_gpu_weight_write(const struct hapi_gpu_weight *w, void *dst)
{
    struct hapi_gpu_loop loop;
    const struct hapi_gpu_view *views[] = {&w->to, &w->from};
    int64_t at[HAPI_GPU_RANK] = {0};
    const unsigned char *src = w->data;

    if (!hapi_gpu_view_loop(views, 2, &loop))
        return; /* never: hapi_gpu_constant() has looked */
    for (int64_t done = 0; done < w->elements; done++) {
        int64_t from = w->from.offset, to = 0;
        float f;
        for (int d = 0; d < loop.rank; d++) {
            from += at[d] * loop.stride[1][d];
            to += at[d] * loop.stride[0][d];
        }
        memcpy(&f, src + (size_t)from * sizeof f, sizeof f);
        hapi_convert((unsigned char *)dst + (size_t)to * hapi_dtype_size(w->dtype), w->dtype, &f, HAPI_F32,
                     1);
        for (int d = loop.rank - 1; d >= 0 && ++at[d] == loop.size[d]; d--)
            at[d] = 0;
    }
}

int hapi_gpu_constant(struct hapi_gpu_build *b, int value, enum hapi_gpu_form form,
                      const struct hapi_gpu_view *from, const struct hapi_gpu_view *to,
                      struct hapi_gpu_view *out)
{
    const struct hapi_value *v = &b->g->values[value];
    enum hapi_dtype dtype = form == HAPI_GPU_WIDE ? HAPI_F32 : b->dtype;
    int *known = &b->values[value].weight[form];
    const struct hapi_gpu_view *views[] = {to, from};
    struct hapi_gpu_loop loop;
    int rc;

    if (!v->data || v->dtype != HAPI_F32)
        return hapi_gpu_refuse(b, "`%s` is no constant of f32", v->name);
    if (!hapi_gpu_view_loop(views, 2, &loop))
        return hapi_gpu_refuse(b, "constant `%s` has too many dims", v->name);
    if (*known < 0) {
        rc = hapi_gpu_weight(b, v->data, from, to, dtype, out);
        if (rc)
            return rc;
        *known = out->storage;
        b->p->weights[b->p->n_weights - 1].raw = v->raw;
        return HAPI_OK;
    }
    *out = *to;
    out->storage = *known;
    out->dtype = dtype;
    return HAPI_OK;
}

/* ------------------------------------------------------------------ operands */

int hapi_gpu_copy(struct hapi_gpu_build *b, struct hapi_gpu_view *view, const struct hapi_gpu_view *like)
{
    struct hapi_gpu_view to;
    int rc;

    hapi_gpu_view_like(&to, like);
    rc = hapi_gpu_place_new(b, &to, b->dtype);
    if (!rc)
        rc = hapi_gpu_pointwise(b, HAPI_GPU_COPY, NULL, &to, view, NULL, NULL);
    if (!rc)
        *view = to;
    return rc;
}

static int operand(struct hapi_gpu_build *b, int value, enum hapi_gpu_form constants,
                   struct hapi_gpu_view *out)
{
    struct hapi_gpu_value *v = &b->values[value];
    struct hapi_gpu_view dense;
    int rc = HAPI_OK;

    if (b->g->values[value].data) {
        hapi_gpu_view_dense(&dense, &b->g->values[value].shape, HAPI_LAYOUT_PLAIN);
        return hapi_gpu_constant(b, value, constants, &dense, &dense, out);
    }
    if (v->lazy == HAPI_GPU_AFFINE)
        rc = hapi_gpu_affine(b, value);
    else if (v->lazy == HAPI_GPU_SCALED)
        rc = hapi_gpu_scaled(b, value);
    if (rc)
        return rc;
    if (!v->made)
        return hapi_gpu_refuse(b, "tensor `%s` is not computed there", b->g->values[value].name);
    if (v->view.dtype != b->dtype) { /* an edge, in f32: once for all its readers */
        struct hapi_gpu_view x = v->view;
        rc = hapi_gpu_copy(b, &x, &x);
        if (!rc)
            hapi_gpu_made(b, value, &x);
    }
    *out = v->view;
    return rc;
}

int hapi_gpu_need(struct hapi_gpu_build *b, int value, struct hapi_gpu_view *out)
{
    return operand(b, value, HAPI_GPU_NARROW, out);
}

int hapi_gpu_need_wide(struct hapi_gpu_build *b, int value, struct hapi_gpu_view *out)
{
    return operand(b, value, HAPI_GPU_WIDE, out);
}

/* ------------------------------------------------------------------ launches */

static void touch(struct hapi_gpu_build *b, int storage)
{
    struct hapi_gpu_storage *s = &b->p->storages[storage];

    if (s->first < 0)
        s->first = (int)b->p->n_launches;
    s->last = (int)b->p->n_launches;
}

/* The next launch, not counted yet. */
static struct hapi_gpu_launch *launch_next(struct hapi_gpu_build *b)
{
    struct hapi_gpu_program *p = b->p;

    if (!grow((void **)&p->launches, p->n_launches, &b->room_launches, sizeof *p->launches))
        return NULL;
    struct hapi_gpu_launch *l = &p->launches[p->n_launches];
    *l = (struct hapi_gpu_launch){.node = b->step ? b->step->nodes[0] : NULL, .plan = -1};
    return l;
}

static void launch_operand(struct hapi_gpu_build *b, struct hapi_gpu_launch *l, const struct hapi_gpu_view *v,
                           int64_t uid)
{
    touch(b, v->storage);
    l->operands[l->n_operands++] =
        (struct hapi_gpu_operand){v->storage, (uint64_t)v->offset * hapi_dtype_size(v->dtype), uid};
}

struct hapi_cudnn_graph *hapi_gpu_graph(struct hapi_gpu_build *b)
{
    struct hapi_cudnn_graph *g = hapi_arena_alloc(b->p->mem, sizeof *g, 16);

    if (g)
        g->name = b->step->node->name;
    else
        (void)hapi_gpu_no_memory(b);
    return g;
}

int hapi_gpu_launch_graph(struct hapi_gpu_build *b, const struct hapi_cudnn_graph *g,
                          const struct hapi_gpu_view *const *views, uint64_t flops, bool *taken)
{
    struct hapi_gpu_launch *l;
    uint64_t workspace = 0;
    int plan = -1, rc;

    if (++b->asked > HAPI_GPU_GRAPHS_MAX)
        return hapi_err_set(b->err, HAPI_ETOOBIG, 0, "more than %d operation graphs for a GPU",
                            HAPI_GPU_GRAPHS_MAX);
    rc = b->maker->plan(b->maker->arg, g, &plan, &workspace, b->err);
    *taken = !rc;
    if (rc)
        return rc == HAPI_EUNSUPPORTED ? HAPI_OK : rc;
    l = launch_next(b);
    if (!l)
        return hapi_gpu_no_memory(b);
    l->graph = g;
    l->plan = plan;
    l->flops = flops;
    for (int i = 0; i < g->n_tensors; i++)
        if (views[i] && l->n_operands == HAPI_GPU_OPERANDS)
            return hapi_gpu_refuse(b, "more than %d tensors in one operation graph", HAPI_GPU_OPERANDS);
        else if (views[i])
            launch_operand(b, l, views[i], g->tensors[i].uid);
    b->p->n_launches++;
    if (workspace > b->p->scratch_bytes)
        b->p->scratch_bytes = workspace;
    return HAPI_OK;
}

static void kernel_operands(struct hapi_gpu_build *b, struct hapi_gpu_launch *l,
                            const struct hapi_gpu_view *const *views, int n)
{
    for (int k = 0; k < n; k++) {
        l->kernel.dtype[k] = (int32_t)views[k]->dtype;
        launch_operand(b, l, views[k], 0);
    }
    b->p->n_launches++;
}

int hapi_gpu_launch_kernel(struct hapi_gpu_build *b, const struct hapi_gpu_kernel *k,
                           const struct hapi_gpu_view *const *views, int n)
{
    struct hapi_gpu_launch *l = launch_next(b);

    if (!l)
        return hapi_gpu_no_memory(b);
    l->kernel = *k;
    kernel_operands(b, l, views, n);
    return HAPI_OK;
}

/* Elements for one thread: 16 bytes of f16, so that finding where they lie costs little. */
static int32_t neighbours(const struct hapi_gpu_loop *l)
{
    int32_t n = 8;

    while (n > 1 && (!l->rank || l->size[l->rank - 1] % n))
        n /= 2;
    return n;
}

int hapi_gpu_pointwise(struct hapi_gpu_build *b, enum hapi_gpu_math math, const struct hapi_act *act,
                       const struct hapi_gpu_view *y, const struct hapi_gpu_view *x,
                       const struct hapi_gpu_view *a, const struct hapi_gpu_view *b2)
{
    const struct hapi_gpu_view *views[1 + HAPI_GPU_READS] = {y, x, a, b2};
    int n = b2 ? 4 : a ? 3 : 2;
    struct hapi_gpu_launch *l = launch_next(b);

    if (!l)
        return hapi_gpu_no_memory(b);
    l->kernel = (struct hapi_gpu_kernel){.kind = HAPI_GPU_POINTWISE, .math = (int32_t)math};
    if (act) {
        l->kernel.act = (int32_t)act->kind;
        l->kernel.alpha = act->alpha;
        l->kernel.beta = act->beta;
    }
    if (!hapi_gpu_view_loop(views, n, &l->kernel.outer))
        return hapi_gpu_refuse(b, "its operands lie in more than %d dims", HAPI_GPU_RANK);
    l->kernel.vector = neighbours(&l->kernel.outer);
    kernel_operands(b, l, views, n);
    return HAPI_OK;
}

/* The dims of v for which inner[] is as asked, as one view. */
static void dims_of(struct hapi_gpu_view *out, const struct hapi_gpu_view *v, const bool *inner, bool which)
{
    *out = (struct hapi_gpu_view){.storage = v->storage, .dtype = v->dtype, .offset = v->offset, .rank = 1};
    for (int d = 0; d < v->rank; d++)
        for (int i = v->first[d]; i < v->first[d + 1] && inner[d] == which; i++)
            out->f[out->n++] = v->f[i];
    out->first[1] = out->n;
}

int hapi_gpu_over(struct hapi_gpu_build *b, enum hapi_gpu_kernel_kind kind, const struct hapi_gpu_view *y,
                  const struct hapi_gpu_view *x, const bool *inner)
{
    const struct hapi_gpu_view *views[] = {y, x}, *outer[2], *in[2];
    struct hapi_gpu_view part[4];
    struct hapi_gpu_launch *l = launch_next(b);

    if (!l)
        return hapi_gpu_no_memory(b);
    for (int k = 0; k < 2; k++) {
        dims_of(&part[k], views[k], inner, false);
        dims_of(&part[2 + k], views[kind == HAPI_GPU_MEAN ? 1 : k], inner, true);
        outer[k] = &part[k];
        in[k] = &part[2 + k];
    }
    l->kernel = (struct hapi_gpu_kernel){.kind = (int32_t)kind};
    if (!hapi_gpu_view_loop(outer, 2, &l->kernel.outer) || !hapi_gpu_view_loop(in, 2, &l->kernel.inner))
        return hapi_gpu_refuse(b, "its operand lies in more than %d dims", HAPI_GPU_RANK);
    kernel_operands(b, l, views, 2);
    return HAPI_OK;
}
