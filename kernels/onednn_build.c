/* Storages, reps and ops of an instance. */
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "model.h"
#include "onednn.h"
#include "ref.h"

int hapi_dnn_fail(struct hapi_dnn *b, dnnl_status_t status, const char *what, struct hapi_err *err)
{
    const struct hapi_node *n = b->step ? b->step->node : NULL;
    int code = status == dnnl_out_of_memory ? HAPI_ENOMEM : HAPI_EUNSUPPORTED;

    return hapi_err_set(err, code, (long)status, "node `%s` (%s): %s (oneDNN status %d)", n ? n->name : "",
                        n ? hapi_op_name(n->op) : "edge", what, (int)status);
}

static int no_memory(struct hapi_err *err)
{
    return hapi_err_set(err, HAPI_ENOMEM, 0, "no memory for a plan");
}

dnnl_data_type_t hapi_dnn_type(enum hapi_dtype d)
{
    return d == HAPI_F32    ? dnnl_f32
           : d == HAPI_BF16 ? dnnl_bf16
           : d == HAPI_I8   ? dnnl_s8
           : d == HAPI_U8   ? dnnl_u8
                            : dnnl_data_type_undef;
}

enum hapi_dtype hapi_dnn_dtype(const struct hapi_dnn *b, int value)
{
    return b->g->values[value].dtype == HAPI_F32 ? b->spec.dtype : b->g->values[value].dtype;
}

size_t hapi_dnn_bytes(const struct hapi_dnn *b, int value, enum hapi_dtype dtype)
{
    return (size_t)hapi_ref_count(&b->g->values[value].shape) * hapi_dtype_size(dtype);
}

/* Element strides of a dense tensor; channels-last for rank 3 and 4. */
void hapi_dnn_dense(const struct hapi_shape *s, enum hapi_layout layout, int64_t *stride)
{
    int64_t step = 1;

    if (layout == HAPI_LAYOUT_NHWC && s->rank >= 3) {
        stride[1] = 1;
        step = s->dim[1];
        for (int i = s->rank - 1; i >= 2; i--) {
            stride[i] = step;
            step *= s->dim[i];
        }
        stride[0] = step;
        return;
    }
    for (int i = s->rank - 1; i >= 0; i--) {
        stride[i] = step;
        step *= s->dim[i];
    }
}

dnnl_status_t hapi_dnn_md(const struct hapi_shape *s, enum hapi_dtype dtype, enum hapi_layout layout,
                          int ndims, dnnl_memory_desc_t *md)
{
    dnnl_dims_t dims, strides;
    int64_t dense[HAPI_MAX_RANK] = {0};
    int lead = (ndims > s->rank ? ndims : s->rank ? s->rank : 1) - s->rank;

    hapi_dnn_dense(s, layout, dense);
    for (int i = 0; i < lead + s->rank; i++) {
        dims[i] = i < lead ? 1 : s->dim[i - lead];
        strides[i] = i < lead ? (s->rank ? s->dim[0] * dense[0] : 1) : dense[i - lead];
    }
    return dnnl_memory_desc_init_by_strides(md, lead + s->rank, dims, hapi_dnn_type(dtype), strides);
}

dnnl_status_t hapi_dnn_md4(const struct hapi_shape *s, enum hapi_dtype dtype, enum hapi_layout layout,
                           dnnl_memory_desc_t *md)
{
    struct hapi_shape four = *s;

    if (s->rank == 3)
        four = (struct hapi_shape){4, {s->dim[0], s->dim[1], 1, s->dim[2]}};
    return hapi_dnn_md(&four, dtype, layout, 4, md);
}

/* Room for one more element of `size` bytes; arrays grow at plan time only. */
static bool grow(void **list, size_t n, size_t *max, size_t size)
{
    if (n < *max)
        return true;
    size_t more = *max ? 2 * *max : 64;
    void *p = realloc(*list, more * size);
    if (!p)
        return false;
    *list = p;
    *max = more;
    return true;
}

int hapi_dnn_storage(struct hapi_dnn *b, enum hapi_dnn_place place, size_t bytes, struct hapi_err *err)
{
    if (!grow((void **)&b->storages, b->n_storages, &b->max_storages, sizeof *b->storages))
        return no_memory(err);
    b->storages[b->n_storages] =
        (struct hapi_dnn_storage){.place = place, .bytes = bytes, .first = -1, .last = -1};
    return (int)b->n_storages++;
}

void hapi_dnn_touch(struct hapi_dnn *b, int storage)
{
    struct hapi_dnn_storage *s = &b->storages[storage];

    if (s->first < 0)
        s->first = (int)b->n_ops;
    s->last = (int)b->n_ops;
}

enum hapi_layout hapi_dnn_layout(const struct hapi_dnn *b, int value)
{
    return b->rep_of[value] >= 0 ? b->reps[b->rep_of[value]].layout : HAPI_LAYOUT_PLAIN;
}

int hapi_dnn_rep_add(struct hapi_dnn *b, int value, enum hapi_dtype dtype, enum hapi_layout layout,
                     int storage, struct hapi_err *err)
{
    int *at = &b->rep_of[value];

    if (!grow((void **)&b->reps, b->n_reps, &b->max_reps, sizeof *b->reps))
        return no_memory(err);
    while (*at >= 0)
        at = &b->reps[*at].next;
    b->reps[b->n_reps] = (struct hapi_dnn_rep){
        .value = value, .dtype = dtype, .layout = layout, .storage = storage, .next = -1};
    if (b->last_use[value] > b->storages[storage].until)
        b->storages[storage].until = b->last_use[value];
    *at = (int)b->n_reps;
    return (int)b->n_reps++;
}

/* Whether both layouts put every element at the same place. */
static bool same_order(const struct hapi_shape *s)
{
    return s->rank < 3 || s->dim[1] == 1 || hapi_ref_span(s, 2, s->rank) == 1;
}

/* Whether `dtype` in `layout` is what the caller wants at the value's output edge. */
static bool is_edge(const struct hapi_dnn *b, int value, enum hapi_dtype dtype, enum hapi_layout layout)
{
    const struct hapi_value *v = &b->g->values[value];

    return b->out_of[value] >= 0 && !b->out_done[b->out_of[value]] && dtype == v->dtype &&
           (layout == hapi_edge_layout(&b->spec, &v->shape) || same_order(&v->shape));
}

int hapi_dnn_make(struct hapi_dnn *b, int value, enum hapi_dtype dtype, enum hapi_layout layout,
                  struct hapi_err *err)
{
    bool edge = is_edge(b, value, dtype, layout);
    int s = hapi_dnn_storage(b, edge ? HAPI_DNN_OUT : HAPI_DNN_ARENA, hapi_dnn_bytes(b, value, dtype), err);

    if (s < 0)
        return s;
    if (edge) {
        b->storages[s].index = (size_t)b->out_of[value];
        b->out_done[b->out_of[value]] = true;
    }
    return hapi_dnn_rep_add(b, value, dtype, layout, s, err);
}

int hapi_dnn_make_in(struct hapi_dnn *b, int value, enum hapi_dtype dtype, enum hapi_layout layout,
                     int storage, struct hapi_err *err)
{
    struct hapi_dnn_storage *s = &b->storages[storage];

    /* Temporary memory that ends as an output was the caller's all along: what was in it before is dead, or
     * the same bytes. */
    if (s->place == HAPI_DNN_ARENA && is_edge(b, value, dtype, layout) &&
        s->bytes == hapi_dnn_bytes(b, value, dtype)) {
        s->place = HAPI_DNN_OUT;
        s->index = (size_t)b->out_of[value];
        b->out_done[b->out_of[value]] = true;
    }
    return hapi_dnn_rep_add(b, value, dtype, layout, storage, err);
}

bool hapi_dnn_dies(const struct hapi_dnn *b, int rep)
{
    int storage = b->reps[rep].storage, now = (int)(b->step - b->steps);

    return b->storages[storage].place == HAPI_DNN_ARENA && b->storages[storage].until <= now;
}

int hapi_dnn_make_over(struct hapi_dnn *b, int x, struct hapi_err *err)
{
    const struct hapi_dnn_rep r = b->reps[x];
    bool same =
        hapi_ref_count(&b->g->values[r.value].shape) == hapi_ref_count(&b->g->values[b->step->out].shape);

    return same && hapi_dnn_dies(b, x) ? hapi_dnn_make_in(b, b->step->out, r.dtype, r.layout, r.storage, err)
                                       : hapi_dnn_make(b, b->step->out, r.dtype, r.layout, err);
}

/* A constant in a dtype and layout; the graph's own bytes where they are that already and stay. */
static int need_constant(struct hapi_dnn *b, int value, enum hapi_dtype dtype, enum hapi_layout layout,
                         struct hapi_err *err)
{
    const struct hapi_value *v = &b->g->values[value];
    dnnl_memory_desc_t from, to;
    int s;

    if (!v->raw && dtype == v->dtype && (layout == HAPI_LAYOUT_PLAIN || same_order(&v->shape))) {
        s = hapi_dnn_storage(b, HAPI_DNN_FIXED, hapi_dnn_bytes(b, value, dtype), err);
        if (s >= 0) {
            b->storages[s].data = v->data;
            b->weight_bytes += b->storages[s].bytes;
        }
    } else {
        if (hapi_dnn_md(&v->shape, v->dtype, HAPI_LAYOUT_PLAIN, 0, &from) ||
            hapi_dnn_md(&v->shape, dtype, layout, 0, &to))
            return hapi_dnn_fail(b, dnnl_invalid_arguments, "cannot describe a constant", err);
        s = hapi_dnn_weight(b, v->data, v->raw, &from, &to, err);
    }
    return s < 0 ? s : hapi_dnn_rep_add(b, value, dtype, layout, s, err);
}

dnnl_status_t hapi_dnn_strided_md(const struct hapi_shape *s, enum hapi_dtype dtype, const int64_t *stride,
                                  dnnl_memory_desc_t *md)
{
    dnnl_dims_t dims = {1}, strides = {1};

    for (int i = 0; i < s->rank; i++) {
        dims[i] = s->dim[i];
        strides[i] = stride[i];
    }
    return dnnl_memory_desc_init_by_strides(md, s->rank ? s->rank : 1, dims, hapi_dnn_type(dtype), strides);
}

static int convert(struct hapi_dnn *b, int from, int to, struct hapi_err *err)
{
    const struct hapi_dnn_rep f = b->reps[from], t = b->reps[to];
    const struct hapi_shape *s = &b->g->values[f.value].shape;
    int64_t stride[HAPI_MAX_RANK] = {0};
    dnnl_memory_desc_t a, c;
    dnnl_primitive_desc_t pd;
    dnnl_primitive_attr_t attr;

    hapi_dnn_strides(b, from, stride);
    if (f.dtype == t.dtype)
        return hapi_dnn_view(b, from, f.offset, stride, to, err);
    if (hapi_dnn_strided_md(s, f.dtype, stride, &a) || hapi_dnn_md(s, t.dtype, t.layout, 0, &c))
        return hapi_dnn_fail(b, dnnl_invalid_arguments, "cannot describe a tensor", err);
    a.offset0 = f.offset;
    dnnl_status_t status = hapi_dnn_attr(false, NULL, &attr);
    if (!status && b->quant)
        status = hapi_dnn_int8_convert(b, f.value, t.dtype, attr);
    if (!status)
        status = dnnl_reorder_primitive_desc_create(&pd, &a, b->engine, &c, b->engine, attr);
    dnnl_primitive_attr_destroy(attr);
    if (status)
        return hapi_dnn_fail(b, status, "cannot convert a tensor", err);
    struct hapi_dnn_arg args[2] = {{DNNL_ARG_FROM, &a, f.storage}, {DNNL_ARG_TO, &c, t.storage}};
    return hapi_dnn_execute(b, pd, args, 2, err);
}

int hapi_dnn_need(struct hapi_dnn *b, int value, enum hapi_dtype dtype, enum hapi_layout layout,
                  struct hapi_err *err)
{
    const struct hapi_value *v = &b->g->values[value];
    int any = b->rep_of[value], best = any;

    if (v->shape.rank < 3)
        layout = HAPI_LAYOUT_PLAIN;
    for (int r = any; r >= 0; r = b->reps[r].next) {
        if (b->reps[r].dtype != dtype)
            continue;
        if (b->reps[r].row || b->reps[r].stride) {
            best = b->reps[best].dtype == dtype ? best : r;
            continue;
        }
        if (b->reps[r].layout == layout)
            return r;
        if (same_order(&v->shape))
            return hapi_dnn_rep_add(b, value, dtype, layout, b->reps[r].storage, err);
        best = r;
    }
    if (v->data)
        return need_constant(b, value, dtype, layout, err);
    if (any < 0)
        return hapi_err_set(err, HAPI_EFORMAT, 0, "nothing makes `%s`", v->name);
    int r = hapi_dnn_make(b, value, dtype, layout, err);
    int rc = r < 0 ? r : convert(b, best, r, err);
    return rc ? rc : r;
}

/* ------------------------------------------------------------------ primitives */

int hapi_dnn_pd_fast(dnnl_primitive_desc_t *pd)
{
    const char *name = "";

    if (!dnnl_primitive_desc_query(*pd, dnnl_query_impl_info_str, 0, (void *)&name) &&
        strncmp(name, "ref", 3))
        return HAPI_OK;
    dnnl_primitive_desc_destroy(*pd);
    *pd = NULL;
    return HAPI_DNN_NONE;
}

int hapi_dnn_pd(struct hapi_dnn *b, const void *op_desc, const_dnnl_primitive_attr_t attr,
                dnnl_primitive_desc_t *pd)
{
    if (dnnl_primitive_desc_create(pd, op_desc, attr, b->engine, NULL))
        return HAPI_DNN_NONE;
    return hapi_dnn_pd_fast(pd);
}

dnnl_status_t hapi_dnn_append_act(dnnl_post_ops_t ops, const struct hapi_act *a, float scale)
{
    dnnl_status_t s;

    switch (a->kind) {
    case HAPI_ACT_NONE:
        return dnnl_success;
    case HAPI_ACT_RELU:
        return dnnl_post_ops_append_eltwise(ops, scale, dnnl_eltwise_relu, a->alpha, 0);
    case HAPI_ACT_CLIP:
        return dnnl_post_ops_append_eltwise(ops, scale, dnnl_eltwise_clip, a->alpha, a->beta);
    case HAPI_ACT_SIGMOID:
        return dnnl_post_ops_append_eltwise(ops, scale, dnnl_eltwise_logistic, 0, 0);
    case HAPI_ACT_SWISH:
        return dnnl_post_ops_append_eltwise(ops, scale, dnnl_eltwise_swish, 1, 0);
    case HAPI_ACT_HARDSIGMOID:
        s = dnnl_post_ops_append_eltwise(ops, 1, dnnl_eltwise_linear, a->alpha, a->beta);
        return s ? s : dnnl_post_ops_append_eltwise(ops, scale, dnnl_eltwise_clip, 0, 1);
    case HAPI_ACT_HARDSWISH:
        return dnnl_post_ops_append_eltwise(ops, scale, dnnl_eltwise_hardswish, 0, 0);
    case HAPI_ACT_TANH:
        return dnnl_post_ops_append_eltwise(ops, scale, dnnl_eltwise_tanh, 0, 0);
    case HAPI_ACT_ELU:
        return dnnl_post_ops_append_eltwise(ops, scale, dnnl_eltwise_elu, a->alpha, 0);
    case HAPI_ACT_GELU:
        return dnnl_post_ops_append_eltwise(ops, scale, dnnl_eltwise_gelu_erf, 0, 0);
    case HAPI_ACT_GELU_TANH:
        return dnnl_post_ops_append_eltwise(ops, scale, dnnl_eltwise_gelu_tanh, 0, 0);
    }
    return dnnl_unimplemented;
}

dnnl_status_t hapi_dnn_attr(bool sum, const struct hapi_act *act, dnnl_primitive_attr_t *attr)
{
    return hapi_dnn_attr_plus(NULL, NULL, sum, act, attr);
}

dnnl_status_t hapi_dnn_attr_plus(const dnnl_memory_desc_t *first, const dnnl_memory_desc_t *then, bool sum,
                                 const struct hapi_act *act, dnnl_primitive_attr_t *attr)
{
    dnnl_post_ops_t ops = NULL;
    dnnl_status_t s;

    *attr = NULL;
    s = dnnl_primitive_attr_create(attr);
    if (!s)
        s = dnnl_primitive_attr_set_scratchpad_mode(*attr, dnnl_scratchpad_mode_user);
    if (!s)
        s = dnnl_post_ops_create(&ops);
    if (!s && first)
        s = dnnl_post_ops_append_binary(ops, dnnl_binary_add, first);
    if (!s && then)
        s = dnnl_post_ops_append_binary(ops, dnnl_binary_add, then);
    if (!s && sum)
        s = dnnl_post_ops_append_sum(ops, 1);
    if (!s && act)
        s = hapi_dnn_append_act(ops, act, 1);
    if (!s)
        s = dnnl_primitive_attr_set_post_ops(*attr, ops);
    dnnl_post_ops_destroy(ops);
    return s;
}

struct hapi_dnn_op *hapi_dnn_op_next(struct hapi_dnn *b, enum hapi_dnn_op_kind kind)
{
    if (!grow((void **)&b->ops, b->n_ops, &b->max_ops, sizeof *b->ops))
        return NULL;
    struct hapi_dnn_op *op = &b->ops[b->n_ops];
    memset(op, 0, sizeof *op);
    op->kind = kind;
    op->name = b->step ? b->step->node->name : "";
    op->op = b->step ? b->step->node->op : HAPI_OP_NONE;
    op->kernel = kind == HAPI_DNN_EVAL ? "plain loops" : "copy";
    return op;
}

/* From here on the op belongs to the instance, which frees what of it exists. */
static dnnl_status_t op_fill(struct hapi_dnn *b, struct hapi_dnn_op *op, dnnl_primitive_desc_t pd,
                             const struct hapi_dnn_arg *args, int n)
{
    dnnl_status_t s = dnnl_primitive_create(&op->primitive, pd);

    for (int i = 0; i < n && !s; i++) {
        s = dnnl_memory_create(&op->binds[i].memory, args[i].md, b->engine, DNNL_MEMORY_NONE);
        op->binds[i].storage = args[i].storage;
        op->args[i] = (dnnl_exec_arg_t){args[i].arg, op->binds[i].memory};
        op->n_args = i + 1;
    }
    return s;
}

static const char *kernel_name(struct hapi_dnn *b, const_dnnl_primitive_desc_t pd)
{
    const char *info = "", *copy;

    (void)dnnl_primitive_desc_query(pd, dnnl_query_impl_info_str, 0, (void *)&info);
    copy = hapi_arena_strndup(b->mem, info, strlen(info));
    return copy ? copy : "";
}

int hapi_dnn_execute(struct hapi_dnn *b, dnnl_primitive_desc_t pd, const struct hapi_dnn_arg *args, int n,
                     struct hapi_err *err)
{
    enum { ARGS_MAX = 40 };
    const dnnl_memory_desc_t *pad = dnnl_primitive_desc_query_md(pd, dnnl_query_scratchpad_md, 0);
    size_t pad_bytes = pad ? dnnl_memory_desc_get_size(pad) : 0;
    struct hapi_dnn_op *op = hapi_dnn_op_next(b, HAPI_DNN_PRIMITIVE);
    struct hapi_dnn_arg all[ARGS_MAX];
    dnnl_status_t s = dnnl_success;
    int rc = HAPI_OK;

    if (!op || n >= ARGS_MAX) {
        rc = op ? hapi_dnn_fail(b, dnnl_invalid_arguments, "too many operands", err) : no_memory(err);
        goto done;
    }
    memcpy(all, args, (size_t)n * sizeof *args);
    if (pad_bytes) {
        int at = hapi_dnn_storage(b, HAPI_DNN_SCRATCH, pad_bytes, err);
        if (at < 0) {
            rc = at;
            goto done;
        }
        all[n++] = (struct hapi_dnn_arg){DNNL_ARG_SCRATCHPAD, pad, at};
        b->scratch_bytes = pad_bytes > b->scratch_bytes ? pad_bytes : b->scratch_bytes;
    }
    op->args = hapi_arena_array(b->mem, (size_t)n, sizeof *op->args);
    op->binds = hapi_arena_array(b->mem, (size_t)n, sizeof *op->binds);
    if (!op->args || !op->binds) {
        rc = no_memory(err);
        goto done;
    }
    for (int i = 0; i < n; i++)
        hapi_dnn_touch(b, all[i].storage);
    b->n_ops++;
    op->kernel = kernel_name(b, pd);
    dnnl_primitive_kind_t kind = dnnl_undefined_primitive;
    if (b->step && !dnnl_primitive_desc_query(pd, dnnl_query_primitive_kind, 0, &kind) &&
        (kind == dnnl_convolution || kind == dnnl_matmul))
        op->flops = hapi_node_flops(b->g, b->step->node);
    if (b->weights)
        s = op_fill(b, op, pd, all, n);
    if (s)
        rc = hapi_dnn_fail(b, s, "cannot create the primitive", err);
done:
    dnnl_primitive_desc_destroy(pd);
    return rc;
}

/* ------------------------------------------------------------------ plain loops */

int hapi_dnn_eval(struct hapi_dnn *b, const struct hapi_node *n, struct hapi_err *err)
{
    size_t n_in = (size_t)n->n_in, n_out = (size_t)n->n_out;
    int *in = hapi_arena_array(b->mem, n_in + 1, sizeof *in),
        *out = hapi_arena_array(b->mem, n_out + 1, sizeof *out);
    const void **in_ptr = hapi_arena_array(b->mem, n_in + 1, sizeof *in_ptr);
    void **out_ptr = hapi_arena_array(b->mem, n_out + 1, sizeof *out_ptr);

    if (!in || !out || !in_ptr || !out_ptr)
        return no_memory(err);
    for (size_t i = 0; i < n_in; i++) {
        int v = n->in[i], r = v < 0 ? -1 : hapi_dnn_need(b, v, b->g->values[v].dtype, HAPI_LAYOUT_PLAIN, err);
        if (v >= 0 && r < 0)
            return r;
        in[i] = v < 0 ? -1 : b->reps[r].storage;
    }
    for (size_t i = 0; i < n_out; i++) {
        int v = n->out[i],
            r = v < 0 ? -1 : hapi_dnn_make(b, v, b->g->values[v].dtype, HAPI_LAYOUT_PLAIN, err);
        if (v >= 0 && r < 0)
            return r;
        out[i] = v < 0 ? -1 : b->reps[r].storage;
    }
    struct hapi_dnn_op *op = hapi_dnn_op_next(b, HAPI_DNN_EVAL);
    if (!op)
        return no_memory(err);
    op->node = n;
    op->in = in;
    op->out = out;
    op->in_ptr = in_ptr;
    op->out_ptr = out_ptr;
    for (size_t i = 0; i < n_in; i++)
        if (in[i] >= 0)
            hapi_dnn_touch(b, in[i]);
    for (size_t i = 0; i < n_out; i++)
        if (out[i] >= 0)
            hapi_dnn_touch(b, out[i]);
    b->n_ops++;
    return HAPI_OK;
}

void hapi_dnn_strides(const struct hapi_dnn *b, int rep, int64_t *stride)
{
    const struct hapi_shape *s = &b->g->values[b->reps[rep].value].shape;

    if (b->reps[rep].stride) {
        memcpy(stride, b->reps[rep].stride, (size_t)s->rank * sizeof *stride);
        return;
    }
    hapi_dnn_dense(s, b->reps[rep].layout, stride);
    for (int i = 0; b->reps[rep].row && i < s->rank; i++)
        if (i != 1)
            stride[i] = stride[i] / s->dim[1] * b->reps[rep].row;
}

/* A strided copy by oneDNN's reorder, which is vectorised for transposes; HAPI_DNN_NONE where it cannot. */
static int view_reorder(struct hapi_dnn *b, int src_rep, int64_t offset, const int64_t *stride, int dst_rep,
                        struct hapi_err *err)
{
    const struct hapi_dnn_rep *s = &b->reps[src_rep], *d = &b->reps[dst_rep];
    const struct hapi_shape *shape = &b->g->values[d->value].shape;
    int64_t to_stride[HAPI_MAX_RANK] = {0};
    dnnl_memory_desc_t from, to;
    dnnl_primitive_attr_t attr;
    dnnl_primitive_desc_t pd;

    hapi_dnn_strides(b, dst_rep, to_stride);
    if (hapi_dnn_type(d->dtype) == dnnl_data_type_undef || shape->rank < 1)
        return HAPI_DNN_NONE;
    for (int i = 0; i < shape->rank; i++)
        if (stride[i] < 1)
            return HAPI_DNN_NONE;
    if (hapi_dnn_strided_md(shape, s->dtype, stride, &from) ||
        hapi_dnn_strided_md(shape, d->dtype, to_stride, &to))
        return HAPI_DNN_NONE;
    from.offset0 = offset;
    dnnl_status_t status = hapi_dnn_attr(false, NULL, &attr);
    if (!status)
        status = dnnl_reorder_primitive_desc_create(&pd, &from, b->engine, &to, b->engine, attr);
    dnnl_primitive_attr_destroy(attr);
    if (status || hapi_dnn_pd_fast(&pd))
        return HAPI_DNN_NONE;
    struct hapi_dnn_arg args[2] = {{DNNL_ARG_FROM, &from, s->storage}, {DNNL_ARG_TO, &to, d->storage}};
    return hapi_dnn_execute(b, pd, args, 2, err);
}

/* Channels-last output: its dims and strides in the order of memory. */
static void memory_order(const struct hapi_dnn_rep *d, const struct hapi_shape *s, const int64_t *stride,
                         struct hapi_dnn_op *op)
{
    bool last = d->layout == HAPI_LAYOUT_NHWC && s->rank >= 3;

    op->shape = *s;
    for (int i = 0; i < s->rank; i++) {
        int from = !last || i == 0 ? i : i == s->rank - 1 ? 1 : i + 1;
        op->shape.dim[i] = s->dim[from];
        op->stride[i] = stride[from];
    }
}

int hapi_dnn_view(struct hapi_dnn *b, int src_rep, int64_t offset, const int64_t *stride, int dst_rep,
                  struct hapi_err *err)
{
    size_t size = hapi_dtype_size(b->reps[dst_rep].dtype);
    int rc = view_reorder(b, src_rep, offset, stride, dst_rep, err);

    if (rc != HAPI_DNN_NONE)
        return rc;
    if (b->reps[dst_rep].stride)
        return hapi_dnn_fail(b, dnnl_unimplemented, "no fast copy", err);
    const struct hapi_dnn_rep *s = &b->reps[src_rep], *d = &b->reps[dst_rep];
    struct hapi_dnn_op *op = hapi_dnn_op_next(b, HAPI_DNN_COPY);
    if (!op)
        return no_memory(err);
    memory_order(d, &b->g->values[d->value].shape, stride, op);
    op->size = size;
    op->src_offset = (size_t)offset * size;
    op->src = s->storage;
    op->dst = d->storage;
    hapi_dnn_touch(b, op->src);
    hapi_dnn_touch(b, op->dst);
    b->n_ops++;
    return HAPI_OK;
}
