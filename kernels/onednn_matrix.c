/* Products, softmax, layer normalisation: in the model's order. */
#include <string.h>

#include "onednn.h"
#include "ref.h"

static const double plain_flops_max = 2e9; /* as for convolutions */

/* dst = src . weights + bias, then what the step fuses; descriptors are made by the callers. */
struct product {
    int src, weights; /* values */
    int bias;         /* value or HAPI_NO_VALUE; N f32 elements */
    int out;          /* value that the product writes */
    enum hapi_dtype dtype, out_dtype;
    dnnl_memory_desc_t src_md, wei_md, wei_plain, bias_md, dst_md;
    bool pixels;  /* a 1x1 convolution: rows are pixels */
    bool swapped; /* weights: as hapi_dnn_need_swapped() gives them, with these strides */
    int64_t wei_stride[HAPI_MAX_RANK];
    float alpha, beta; /* factors of constant weights and bias */
    double flops;
};

/* A f32 constant (its callers have looked) times factor, kept in the instance's arena until the weights have
 * been reordered. */
static const void *scaled(struct hapi_dnn *b, int value, float factor)
{
    const struct hapi_value *v = &b->g->values[value];
    int64_t n = hapi_ref_count(&v->shape);
    float *p = v->data ? hapi_arena_array(b->mem, (size_t)n + 1, sizeof *p) : NULL;

    if (p)
        memcpy(p, v->data, (size_t)n * sizeof *p);
    for (int64_t i = 0; p && i < n; i++)
        p[i] *= factor;
    return p;
}

static int operand(struct hapi_dnn *b, int value, float factor, const dnnl_memory_desc_t *from,
                   const dnnl_memory_desc_t *to, struct hapi_err *err)
{
    if (factor == 1)
        return hapi_dnn_weight_of(b, value, from, to, err);
    const void *p = scaled(b, value, factor);
    return p ? hapi_dnn_weight(b, p, false, from, to, err)
             : hapi_err_set(err, HAPI_ENOMEM, 0, "no memory for weights");
}

static int product_pd(struct hapi_dnn *b, const struct product *p, enum hapi_dnn_join join,
                      const struct hapi_act *act, dnnl_primitive_desc_t *pd)
{
    static const dnnl_dims_t one = {1, 1}, none = {0, 0};
    const dnnl_memory_desc_t *bias = p->bias >= 0 ? &p->bias_md : NULL;
    const dnnl_memory_desc_t *plus = join == HAPI_DNN_PLUS ? &p->dst_md : NULL;
    dnnl_convolution_desc_t c;
    dnnl_matmul_desc_t m;
    dnnl_primitive_attr_t attr;
    int rc = HAPI_DNN_NONE;

    if (p->pixels) {
        if (!hapi_dnn_attr_plus(bias ? bias : plus, bias ? plus : NULL, false, act, &attr) &&
            !dnnl_convolution_forward_desc_init(&c, dnnl_forward_inference, dnnl_convolution_direct,
                                                &p->src_md, &p->wei_md, NULL, &p->dst_md, one, none, none))
            rc = hapi_dnn_pd(b, &c, attr, pd);
    } else if (!hapi_dnn_attr_plus(plus, NULL, join == HAPI_DNN_SUM, act, &attr) &&
               !dnnl_matmul_desc_init(&m, &p->src_md, &p->wei_md, bias, &p->dst_md)) {
        rc = hapi_dnn_pd(b, &m, attr, pd);
    }
    dnnl_primitive_attr_destroy(attr);
    return rc;
}

static int product_args(struct hapi_dnn *b, const struct product *p, const dnnl_memory_desc_t *wei,
                        struct hapi_dnn_arg *args, struct hapi_err *err)
{
    int n = 0, r = hapi_dnn_need(b, p->src, p->dtype, HAPI_LAYOUT_PLAIN, err);

    if (r < 0)
        return r;
    args[n++] = (struct hapi_dnn_arg){DNNL_ARG_SRC, &p->src_md, b->reps[r].storage};
    r = p->swapped ? hapi_dnn_need_swapped(b, p->weights, err)
        : b->g->values[p->weights].data || p->wei_md.format_kind == dnnl_format_kind_any
            ? operand(b, p->weights, p->alpha, &p->wei_plain, wei, err)
            : hapi_dnn_need(b, p->weights, p->dtype, HAPI_LAYOUT_PLAIN, err);
    if (r < 0)
        return r;
    if (!b->g->values[p->weights].data && p->wei_md.format_kind != dnnl_format_kind_any)
        r = b->reps[r].storage;
    args[n++] = (struct hapi_dnn_arg){DNNL_ARG_WEIGHTS, wei, r};
    if (p->bias >= 0) {
        r = operand(b, p->bias, p->beta, &p->bias_md, &p->bias_md, err);
        if (r < 0)
            return r;
        args[n++] = (struct hapi_dnn_arg){p->pixels ? HAPI_DNN_ARG_PLUS(0) : DNNL_ARG_BIAS, &p->bias_md, r};
    }
    return n;
}

static int product_emit(struct hapi_dnn *b, const struct product *p, bool fused, struct hapi_err *err)
{
    const struct hapi_step *s = b->step;
    bool act = fused && hapi_dnn_post_act(b, &s->act);
    enum hapi_dnn_join join = HAPI_DNN_APART;
    struct hapi_dnn_arg args[5];
    dnnl_primitive_desc_t pd;
    int residual = -1, rc, n, x, y;

    if (s->residual >= 0) {
        residual = hapi_dnn_need(b, s->residual, p->out_dtype, HAPI_LAYOUT_PLAIN, err);
        x = residual < 0 ? residual : hapi_dnn_need(b, p->src, p->dtype, HAPI_LAYOUT_PLAIN, err);
        if (x < 0)
            return x;
        join = fused ? hapi_dnn_join(b, residual, b->reps[x].storage) : HAPI_DNN_APART;
        act = act && join != HAPI_DNN_APART;
    }
    rc = product_pd(b, p, join, act ? &s->act : NULL, &pd);
    if (rc)
        return rc;
    n = product_args(b, p, dnnl_primitive_desc_query_md(pd, dnnl_query_weights_md, 0), args, err);
    y = n < 0 ? n
        : join == HAPI_DNN_SUM
            ? hapi_dnn_make_in(b, s->out, p->out_dtype, HAPI_LAYOUT_PLAIN, b->reps[residual].storage, err)
            : hapi_dnn_make(b, s->out, p->out_dtype, HAPI_LAYOUT_PLAIN, err);
    if (y < 0) {
        dnnl_primitive_desc_destroy(pd);
        return y;
    }
    args[n++] = (struct hapi_dnn_arg){DNNL_ARG_DST, &p->dst_md, b->reps[y].storage};
    if (join == HAPI_DNN_PLUS)
        args[n++] = (struct hapi_dnn_arg){HAPI_DNN_ARG_PLUS(p->pixels && p->bias >= 0), &p->dst_md,
                                          b->reps[residual].storage};
    rc = hapi_dnn_execute(b, pd, args, n, err);
    if (!rc && residual >= 0 && join == HAPI_DNN_APART)
        rc = hapi_dnn_add(b, y, residual, y, &s->act, err);
    else if (!rc && !act && s->act.kind != HAPI_ACT_NONE)
        rc = hapi_dnn_activate(b, y, y, &s->act, err);
    return rc;
}

/* The product of dense rows and a constant matrix as a convolution; false where it is none. The bias is added
 * behind it: as its own, the sums would begin with it, and a cut between the two would change bits. */
static bool as_pixels(const struct hapi_dnn *b, const struct product *p, struct product *c)
{
    const dnnl_memory_desc_t *x = &p->src_md, *w = &p->wei_plain;
    const dnnl_dim_t *stride = w->format_desc.blocking.strides;
    dnnl_dim_t m = x->dims[0], k = x->dims[1], n = w->dims[1];
    dnnl_dims_t src = {1, k, 1, m}, wei = {n, k, 1, 1}, dst = {1, n, 1, m}, bias = {1, n, 1, 1};
    dnnl_dims_t wei_stride = {stride[1], stride[0], k * n, k * n};

    *c = *p;
    c->pixels = true;
    return x->ndims == 2 && x->format_desc.blocking.strides[0] == k && b->g->values[p->weights].data &&
           !dnnl_memory_desc_init_by_tag(&c->src_md, 4, src, dnnl_f32, dnnl_nhwc) &&
           !dnnl_memory_desc_init_by_strides(&c->wei_plain, 4, wei, dnnl_f32, wei_stride) &&
           !dnnl_memory_desc_init_by_tag(&c->wei_md, 4, wei, dnnl_f32, dnnl_format_tag_any) &&
           !dnnl_memory_desc_init_by_tag(&c->dst_md, 4, dst, dnnl_f32, dnnl_nhwc) &&
           !dnnl_memory_desc_init_by_tag(&c->bias_md, 4, bias, dnnl_f32, dnnl_nhwc);
}

static int product_compile(struct hapi_dnn *b, struct product *p, struct hapi_err *err)
{
    struct product c;
    int rc = HAPI_DNN_NONE;

    p->dtype = b->spec.dtype;
    if (b->avx2 && as_pixels(b, p, &c))
        rc = product_emit(b, &c, true, err);
    if (rc == HAPI_DNN_NONE)
        rc = product_emit(b, p, true, err);
    if (rc == HAPI_DNN_NONE)
        rc = product_emit(b, p, false, err);
    if (rc == HAPI_DNN_NONE && p->flops > plain_flops_max)
        return hapi_dnn_fail(b, dnnl_unimplemented, "oneDNN has no fast product of this shape", err);
    return rc;
}

/* Bias that matmul can add: N f32 elements along the last dim. */
static bool row_bias(const struct hapi_dnn *b, int value, int64_t columns, int ndims, dnnl_memory_desc_t *md)
{
    const struct hapi_value *v = &b->g->values[value];
    dnnl_dims_t dims, strides;

    if (v->dtype != HAPI_F32 || v->shape.rank < 1 || v->shape.dim[v->shape.rank - 1] != columns ||
        hapi_ref_count(&v->shape) != columns)
        return false;
    for (int i = 0; i < ndims; i++) {
        dims[i] = i == ndims - 1 ? columns : 1;
        strides[i] = i == ndims - 1 ? 1 : columns;
    }
    return !dnnl_memory_desc_init_by_strides(md, ndims, dims, dnnl_f32, strides);
}

static enum hapi_dtype out_dtype(const struct hapi_dnn *b)
{
    return b->out_of[b->step->out] >= 0 ? HAPI_F32 : b->spec.dtype;
}

int hapi_dnn_gemm(struct hapi_dnn *b, struct hapi_err *err)
{
    const struct hapi_node *n = b->step->node;
    const struct hapi_value *a = &b->g->values[n->in[0]], *w = &b->g->values[n->in[1]];
    bool ta = hapi_node_int(n, "transA", 0) != 0, tb = hapi_node_int(n, "transB", 0) != 0;
    struct product p = {.src = n->in[0],
                        .weights = n->in[1],
                        .bias = n->n_in > 2 ? n->in[2] : HAPI_NO_VALUE,
                        .out_dtype = out_dtype(b)};

    p.alpha = hapi_node_float(n, "alpha", 1);
    p.beta = hapi_node_float(n, "beta", 1);
    if (a->dtype != HAPI_F32 || a->shape.rank != 2 || w->shape.rank != 2 || (p.alpha != 1 && !w->data))
        return HAPI_DNN_NONE;
    int64_t m = a->shape.dim[ta], k = a->shape.dim[!ta], c = w->shape.dim[!tb];
    dnnl_dims_t src = {m, k}, wei = {k, c}, dst = {m, c};
    dnnl_dims_t src_s = {ta ? 1 : k, ta ? m : 1}, wei_s = {tb ? 1 : c, tb ? k : 1}, dst_s = {c, 1};
    if (p.bias >= 0 &&
        (!row_bias(b, p.bias, c, 2, &p.bias_md) || (p.beta != 1 && !b->g->values[p.bias].data)))
        return HAPI_DNN_NONE;
    dnnl_data_type_t t = hapi_dnn_type(b->spec.dtype);
    if (dnnl_memory_desc_init_by_strides(&p.src_md, 2, src, t, src_s) ||
        dnnl_memory_desc_init_by_strides(&p.wei_plain, 2, wei, dnnl_f32, wei_s) ||
        dnnl_memory_desc_init_by_tag(&p.wei_md, 2, wei, t, dnnl_format_tag_any) ||
        dnnl_memory_desc_init_by_strides(&p.dst_md, 2, dst, hapi_dnn_type(p.out_dtype), dst_s))
        return HAPI_DNN_NONE;
    p.flops = 2.0 * (double)m * (double)k * (double)c;
    return product_compile(b, &p, err);
}

/* Shape of a matmul operand with numpy's rule for vectors applied. */
static struct hapi_shape as_matrix(const struct hapi_shape *s, bool left)
{
    struct hapi_shape m = *s;

    if (s->rank != 1)
        return m;
    m.rank = 2;
    m.dim[left ? 1 : 0] = s->dim[0];
    m.dim[left ? 0 : 1] = 1;
    return m;
}

/* A (..., M, K) . constant (K, N): all rows of A as one matrix. */
static dnnl_status_t flat_mds(const struct hapi_dnn *b, struct product *p, const struct hapi_shape *a,
                              const struct hapi_shape *w)
{
    int64_t k = w->dim[0], n = w->dim[1], m = k ? hapi_ref_count(a) / k : 0;
    struct hapi_shape src = {2, {m, k}}, dst = {2, {m, n}};
    dnnl_dims_t wei = {k, n};
    dnnl_status_t s = hapi_dnn_md(&src, b->spec.dtype, HAPI_LAYOUT_PLAIN, 2, &p->src_md);

    if (!s)
        s = hapi_dnn_md(w, HAPI_F32, HAPI_LAYOUT_PLAIN, 2, &p->wei_plain);
    if (!s)
        s = dnnl_memory_desc_init_by_tag(&p->wei_md, 2, wei, hapi_dnn_type(b->spec.dtype),
                                         dnnl_format_tag_any);
    return s ? s : hapi_dnn_md(&dst, p->out_dtype, HAPI_LAYOUT_PLAIN, 2, &p->dst_md);
}

static dnnl_status_t batch_mds(const struct hapi_dnn *b, struct product *p, const struct hapi_shape *a,
                               const struct hapi_shape *w, int ndims)
{
    struct hapi_shape dst = {.rank = ndims};
    dnnl_status_t s = hapi_dnn_md(a, b->spec.dtype, HAPI_LAYOUT_PLAIN, ndims, &p->src_md);

    if (!s)
        s = p->swapped ? hapi_dnn_strided_md(w, b->spec.dtype, p->wei_stride, &p->wei_md)
                       : hapi_dnn_md(w, b->spec.dtype, HAPI_LAYOUT_PLAIN, ndims, &p->wei_md);
    if (!s)
        s = hapi_dnn_md(w, HAPI_F32, HAPI_LAYOUT_PLAIN, ndims, &p->wei_plain);
    if (s)
        return s;
    for (int i = 0; i < ndims; i++)
        dst.dim[i] = i == ndims - 2                          ? p->src_md.dims[i]
                     : i == ndims - 1                        ? p->wei_md.dims[i]
                     : p->src_md.dims[i] > p->wei_md.dims[i] ? p->src_md.dims[i]
                                                             : p->wei_md.dims[i];
    return hapi_dnn_md(&dst, p->out_dtype, HAPI_LAYOUT_PLAIN, ndims, &p->dst_md);
}

int hapi_dnn_matmul(struct hapi_dnn *b, struct hapi_err *err)
{
    const struct hapi_node *n = b->step->node;
    const struct hapi_value *x = &b->g->values[n->in[0]], *y = &b->g->values[n->in[1]];
    struct product p = {.src = n->in[0],
                        .weights = n->in[1],
                        .bias = b->step->bias,
                        .alpha = 1,
                        .beta = 1,
                        .out_dtype = out_dtype(b)};

    if (x->dtype != HAPI_F32 || x->shape.rank < 1 || y->shape.rank < 1 || !hapi_ref_count(&x->shape) ||
        !hapi_ref_count(&y->shape))
        return HAPI_DNN_NONE;
    struct hapi_shape a = as_matrix(&x->shape, true), w = as_matrix(&y->shape, false);
    int ndims = y->data && w.rank == 2 ? 2 : a.rank > w.rank ? a.rank : w.rank;
    p.flops = 2.0 * (double)hapi_ref_count(&b->g->values[b->step->out].shape) * (double)a.dim[a.rank - 1];
    if (p.bias >= 0 && !row_bias(b, p.bias, w.dim[w.rank - 1], ndims, &p.bias_md))
        return HAPI_DNN_NONE;
    p.dtype = b->spec.dtype;
    p.swapped = ndims > 2 && w.rank == ndims && hapi_dnn_swapped(b, p.weights, p.wei_stride);
    if (p.swapped && !batch_mds(b, &p, &a, &w, ndims)) {
        int rc = product_emit(b, &p, true, err);
        if (rc != HAPI_DNN_NONE)
            return rc;
    }
    p.swapped = false;
    if (ndims == 2 ? flat_mds(b, &p, &a, &w) : batch_mds(b, &p, &a, &w, ndims))
        return HAPI_DNN_NONE;
    return product_compile(b, &p, err);
}

/* args[0], args[1]: the step's input in the model's order and its output, both described by md. pd is
 * destroyed after an error. */
static int row_args(struct hapi_dnn *b, dnnl_primitive_desc_t pd, const dnnl_memory_desc_t *md,
                    struct hapi_dnn_arg *args, struct hapi_err *err)
{
    int value = b->step->node->in[0], x, y;

    x = hapi_dnn_need(b, value, hapi_dnn_dtype(b, value), HAPI_LAYOUT_PLAIN, err);
    y = x < 0 ? x : hapi_dnn_make_over(b, x, err);
    if (y < 0) {
        dnnl_primitive_desc_destroy(pd);
        return y;
    }
    args[0] = (struct hapi_dnn_arg){DNNL_ARG_SRC, md, b->reps[x].storage};
    args[1] = (struct hapi_dnn_arg){DNNL_ARG_DST, md, b->reps[y].storage};
    return HAPI_OK;
}

int hapi_dnn_softmax(struct hapi_dnn *b, struct hapi_err *err)
{
    const struct hapi_node *n = b->step->node;
    const struct hapi_value *x = &b->g->values[n->in[0]];
    enum hapi_dtype dtype = hapi_dnn_dtype(b, n->in[0]);
    bool one = b->g->opset >= 13;
    int axis = hapi_ref_axis(hapi_node_int(n, "axis", one ? -1 : 1), x->shape.rank);
    struct hapi_shape s = x->shape;
    dnnl_memory_desc_t md;
    dnnl_softmax_v2_desc_t d;
    dnnl_primitive_attr_t attr;
    dnnl_primitive_desc_t pd;
    struct hapi_dnn_arg args[2];
    int rc = HAPI_DNN_NONE;

    if (x->dtype != HAPI_F32 || axis < 0 || !hapi_ref_count(&s))
        return HAPI_DNN_NONE;
    /* (outer, axis, inner); before opset 13 the axis takes in all that follows it. */
    s = (struct hapi_shape){3,
                            {hapi_ref_span(&x->shape, 0, axis),
                             one ? x->shape.dim[axis] : hapi_ref_span(&x->shape, axis, x->shape.rank),
                             one ? hapi_ref_span(&x->shape, axis + 1, x->shape.rank) : 1}};
    if (!hapi_dnn_attr(false, NULL, &attr) && !hapi_dnn_md(&s, dtype, HAPI_LAYOUT_PLAIN, 3, &md) &&
        !dnnl_softmax_v2_forward_desc_init(&d, dnnl_forward_inference, dnnl_softmax_accurate, &md, &md, 1))
        rc = hapi_dnn_pd(b, &d, attr, &pd);
    dnnl_primitive_attr_destroy(attr);
    rc = rc ? rc : row_args(b, pd, &md, args, err);
    return rc ? rc : hapi_dnn_execute(b, pd, args, 2, err);
}

/* Over the last dims from `axis` on, when scale and bias cover just them. */
int hapi_dnn_layer_norm(struct hapi_dnn *b, struct hapi_err *err)
{
    const struct hapi_node *n = b->step->node;
    const struct hapi_value *x = &b->g->values[n->in[0]];
    enum hapi_dtype dtype = hapi_dnn_dtype(b, n->in[0]);
    int axis = hapi_ref_axis(hapi_node_int(n, "axis", -1), x->shape.rank), count = 2;
    bool bias = n->n_in > 2 && n->in[2] >= 0;
    dnnl_memory_desc_t md, per;
    dnnl_layer_normalization_desc_t d;
    dnnl_primitive_attr_t attr;
    dnnl_primitive_desc_t pd;
    struct hapi_dnn_arg args[4];
    int rc = HAPI_DNN_NONE;

    if (x->dtype != HAPI_F32 || axis < 0 || (n->n_out > 1 && n->out[1] >= 0) ||
        (n->n_out > 2 && n->out[2] >= 0))
        return HAPI_DNN_NONE;
    struct hapi_shape s = {
        2, {hapi_ref_span(&x->shape, 0, axis), hapi_ref_span(&x->shape, axis, x->shape.rank)}};
    for (int i = 1; i < (bias ? 3 : 2); i++)
        if (hapi_ref_count(&b->g->values[n->in[i]].shape) != s.dim[1])
            return HAPI_DNN_NONE;
    dnnl_dims_t dims = {s.dim[1]};
    if (!hapi_dnn_attr(false, NULL, &attr) && !hapi_dnn_md(&s, dtype, HAPI_LAYOUT_PLAIN, 2, &md) &&
        !dnnl_memory_desc_init_by_tag(&per, 1, dims, dnnl_f32, dnnl_a) &&
        !dnnl_layer_normalization_forward_desc_init(&d, dnnl_forward_inference, &md, NULL,
                                                    hapi_node_float(n, "epsilon", 1e-5F),
                                                    dnnl_use_scale | (bias ? dnnl_use_shift : 0)))
        rc = hapi_dnn_pd(b, &d, attr, &pd);
    dnnl_primitive_attr_destroy(attr);
    rc = rc ? rc : row_args(b, pd, &md, args, err);
    if (rc)
        return rc;
    for (int i = 1; i < (bias ? 3 : 2); i++) {
        int v = hapi_dnn_need(b, n->in[i], HAPI_F32, HAPI_LAYOUT_PLAIN, err);
        if (v < 0) {
            dnnl_primitive_desc_destroy(pd);
            return v;
        }
        args[count++] =
            (struct hapi_dnn_arg){i == 1 ? DNNL_ARG_SCALE : DNNL_ARG_SHIFT, &per, b->reps[v].storage};
    }
    return hapi_dnn_execute(b, pd, args, count, err);
}
