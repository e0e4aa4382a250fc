/* Convolution, pooling, batch normalisation: channels-last, rank 3 as rank 4 with height 1, rank 5 with a
 * depth. */
#include <math.h>
#include <string.h>

#include "model.h"
#include "onednn.h"
#include "ref.h"

/* Above this a convolution or product is not left to plain loops: 2 GFLOP take them about two seconds. */
static const double plain_flops_max = 2e9;

void hapi_dnn_geometry_of(const struct hapi_window *w, int spatial, struct hapi_dnn_geometry *g)
{
    static const int three[] = {2, 0, 1}; /* a window begins with the height */

    memset(g, 0, sizeof *g);
    g->spatial = spatial;
    for (int i = 0; i < spatial; i++) {
        int d = spatial == 3 ? three[i] : i;
        g->kernel[i] = w->kernel[d];
        g->stride[i] = w->stride[d];
        g->dilation[i] = w->dilation[d] - 1;
        g->pad_begin[i] = w->pad_begin[d];
        g->pad_end[i] = w->pad_end[d];
    }
}

struct hapi_dnn_conv hapi_dnn_conv_of(const struct hapi_dnn *b, int x)
{
    const struct hapi_node *n = b->step->node;

    return (struct hapi_dnn_conv){.x = x,
                                  .weights = n->in[1],
                                  .bias = n->n_in > 2 ? n->in[2] : HAPI_NO_VALUE,
                                  .dtype = b->spec.dtype,
                                  .out_dtype = b->out_of[b->step->out] >= 0 ? HAPI_F32 : b->spec.dtype};
}

dnnl_status_t hapi_dnn_conv_edges(const struct hapi_dnn *b, struct hapi_dnn_conv *c)
{
    const struct hapi_shape *o = &b->g->values[b->step->out].shape;
    dnnl_dims_t bias = {o->dim[1]};
    dnnl_status_t st = hapi_dnn_md4(&b->g->values[c->x].shape, c->dtype, c->layout, &c->src);

    st = st ? st : hapi_dnn_md4(o, c->out_dtype, c->layout, &c->dst);
    return st ? st : dnnl_memory_desc_init_by_tag(&c->bia, 1, bias, dnnl_f32, dnnl_a);
}

int hapi_dnn_conv_args(struct hapi_dnn *b, const struct hapi_dnn_conv *c, const_dnnl_primitive_desc_t pd,
                       struct hapi_dnn_arg args[4], struct hapi_err *err)
{
    const dnnl_memory_desc_t *wei = dnnl_primitive_desc_query_md(pd, dnnl_query_weights_md, 0);
    int x = hapi_dnn_need(b, c->x, c->dtype, c->layout, err), weights, bias;

    weights = x < 0 ? x : hapi_dnn_weight_of(b, c->weights, &c->wei_plain, wei, err);
    if (weights < 0)
        return weights;
    args[0] = (struct hapi_dnn_arg){DNNL_ARG_SRC, &c->src, b->reps[x].storage};
    args[1] = (struct hapi_dnn_arg){DNNL_ARG_WEIGHTS, wei, weights};
    args[2] = (struct hapi_dnn_arg){DNNL_ARG_DST, &c->dst, -1};
    if (c->bias < 0)
        return 3;
    bias = hapi_dnn_need(b, c->bias, HAPI_F32, HAPI_LAYOUT_PLAIN, err);
    if (bias < 0)
        return bias;
    args[3] = (struct hapi_dnn_arg){DNNL_ARG_BIAS, &c->bia, b->reps[bias].storage};
    return 4;
}

/* Weights (M, C/group, [kD,] kH, kW), with groups as (G, M/G, C/group, ...), in the model's order. */
static dnnl_status_t weights_md(const struct hapi_dnn *b, struct hapi_dnn_conv *c,
                                const struct hapi_dnn_geometry *geo)
{
    static const dnnl_format_tag_t plain[] = {dnnl_abcd, dnnl_abcde, dnnl_abcdef};
    const struct hapi_shape *s = &b->g->values[c->weights].shape;
    int64_t m = s->dim[0], g = c->w.group;
    dnnl_dims_t dims = {g, m / g, s->dim[1]};
    int skip = g > 1 ? 0 : 1, n = geo->spatial + 3 - skip;

    memcpy(dims + 3, geo->kernel, (size_t)geo->spatial * sizeof *dims);
    dnnl_status_t st = dnnl_memory_desc_init_by_tag(&c->wei_plain, n, dims + skip, dnnl_f32, plain[n - 4]);
    return st ? st
              : dnnl_memory_desc_init_by_tag(&c->wei, n, dims + skip, hapi_dnn_type(c->dtype),
                                             dnnl_format_tag_any);
}

static int conv_pd(struct hapi_dnn *b, struct hapi_dnn_conv *c, enum hapi_dnn_join join,
                   const struct hapi_act *act, dnnl_primitive_desc_t *pd)
{
    struct hapi_dnn_geometry geo;
    dnnl_convolution_desc_t d;
    dnnl_primitive_attr_t attr = NULL;
    int rc = HAPI_DNN_NONE;

    hapi_dnn_geometry_of(&c->w, hapi_dnn_spatial(b, c->x), &geo);
    if (!hapi_dnn_conv_edges(b, c) && !weights_md(b, c, &geo) &&
        !hapi_dnn_attr_plus(join == HAPI_DNN_PLUS ? &c->dst : NULL, NULL, join == HAPI_DNN_SUM, act, &attr) &&
        !dnnl_dilated_convolution_forward_desc_init(&d, dnnl_forward_inference, dnnl_convolution_direct,
                                                    &c->src, &c->wei, c->bias >= 0 ? &c->bia : NULL, &c->dst,
                                                    geo.stride, geo.dilation, geo.pad_begin, geo.pad_end))
        rc = hapi_dnn_pd(b, &d, attr, pd);
    dnnl_primitive_attr_destroy(attr);
    return rc;
}

/* Emits the convolution of pd into dst; what pd did not take of residual and activation comes after it. */
static int conv_emit(struct hapi_dnn *b, struct hapi_dnn_conv *c, dnnl_primitive_desc_t pd,
                     enum hapi_dnn_join join, bool act, int residual, struct hapi_err *err)
{
    const struct hapi_step *s = b->step;
    struct hapi_dnn_arg args[5];
    int n = hapi_dnn_conv_args(b, c, pd, args, err), dst = n;

    if (n >= 0)
        dst = join == HAPI_DNN_SUM
                  ? hapi_dnn_make_in(b, s->out, c->out_dtype, c->layout, b->reps[residual].storage, err)
                  : hapi_dnn_make(b, s->out, c->out_dtype, c->layout, err);
    if (dst < 0) {
        dnnl_primitive_desc_destroy(pd);
        return dst;
    }
    args[2].storage = b->reps[dst].storage;
    if (join == HAPI_DNN_PLUS)
        args[n++] = (struct hapi_dnn_arg){HAPI_DNN_ARG_PLUS(0), &c->dst, b->reps[residual].storage};
    int rc = hapi_dnn_execute(b, pd, args, n, err);
    if (!rc && residual >= 0 && join == HAPI_DNN_APART)
        rc = hapi_dnn_add(b, dst, residual, dst, act ? NULL : &s->act, err);
    else if (!rc && !act && s->act.kind != HAPI_ACT_NONE)
        rc = hapi_dnn_activate(b, dst, dst, &s->act, err);
    return rc;
}

/* One formulation: layout, with sum and activation inside the kernel or after it. */
static int conv_try(struct hapi_dnn *b, struct hapi_dnn_conv *c, bool fused, struct hapi_err *err)
{
    const struct hapi_step *s = b->step;
    dnnl_primitive_desc_t pd;
    int residual = -1;
    bool act = fused && hapi_dnn_post_act(b, &s->act);
    enum hapi_dnn_join join = HAPI_DNN_APART;

    if (s->residual >= 0) {
        residual = hapi_dnn_need(b, s->residual, c->out_dtype, c->layout, err);
        if (residual < 0)
            return residual;
        int x = hapi_dnn_need(b, c->x, c->dtype, c->layout, err);
        if (x < 0)
            return x;
        join = fused ? hapi_dnn_join(b, residual, b->reps[x].storage) : HAPI_DNN_APART;
        act = act && join != HAPI_DNN_APART;
    }
    int rc = conv_pd(b, c, join, act ? &s->act : NULL, &pd);
    return rc ? rc : conv_emit(b, c, pd, join, act, residual, err);
}

int hapi_dnn_conv(struct hapi_dnn *b, struct hapi_err *err)
{
    const struct hapi_node *n = b->step->node;
    const struct hapi_shape *k = &b->g->values[n->in[1]].shape;
    struct hapi_dnn_conv c = hapi_dnn_conv_of(b, b->step->x);
    int rc = hapi_window_of(b->g, n, &c.w, err);

    if (rc)
        return rc;
    if (b->g->values[c.x].dtype != HAPI_F32 || k->rank > 5 ||
        k->dim[1] * c.w.group != b->g->values[c.x].shape.dim[1] || k->dim[0] % c.w.group)
        return HAPI_DNN_NONE;
    for (int d = 0; d < 2; d++) {
        const int64_t *pad = b->step->pad;
        c.w.in[d] -= pad[d] + pad[2 + d];
        c.w.pad_begin[d] += pad[d];
        c.w.pad_end[d] += pad[2 + d];
    }
    rc = b->quant ? hapi_dnn_int8_conv(b, &c.w, err) : HAPI_DNN_NONE;
    if (rc != HAPI_DNN_NONE)
        return rc;
    rc = hapi_dnn_direct_conv(b, &c, err);
    for (int i = 0; i < 4 && rc == HAPI_DNN_NONE; i++) {
        c.layout = i < 2 ? HAPI_LAYOUT_NHWC : HAPI_LAYOUT_PLAIN;
        rc = conv_try(b, &c, i % 2 == 0, err);
    }
    double flops = (double)hapi_node_flops(b->g, n);
    if (rc == HAPI_DNN_NONE && flops > plain_flops_max)
        return hapi_dnn_fail(b, dnnl_unimplemented, "oneDNN has no fast convolution of this shape", err);
    return rc;
}

struct pool {
    struct hapi_window w;
    dnnl_alg_kind_t alg;
    enum hapi_dtype dtype;
};

/* x pooled into out, both of dtype and channels-last; HAPI_DNN_NONE before anything is appended. */
static int pool_emit(struct hapi_dnn *b, struct pool *p, int value, int out, struct hapi_err *err)
{
    const struct hapi_shape *xs = &b->g->values[value].shape;
    enum hapi_dtype dtype = p->dtype;
    struct hapi_shape os = *xs;
    struct hapi_dnn_geometry geo;
    dnnl_memory_desc_t src, dst;
    dnnl_pooling_v2_desc_t d;
    dnnl_primitive_attr_t attr;
    dnnl_primitive_desc_t pd;
    int rc = HAPI_DNN_NONE;

    hapi_dnn_geometry_of(&p->w, hapi_dnn_spatial(b, value), &geo);
    for (int i = 0; i < os.rank - 2; i++)
        os.dim[2 + i] = hapi_window_out(&p->w, i, os.rank - 2);
    if (!hapi_dnn_attr(false, NULL, &attr) && !hapi_dnn_md4(xs, dtype, HAPI_LAYOUT_NHWC, &src) &&
        !hapi_dnn_md4(&os, dtype, HAPI_LAYOUT_NHWC, &dst) &&
        !dnnl_pooling_v2_forward_desc_init(&d, dnnl_forward_inference, p->alg, &src, &dst, geo.stride,
                                           geo.kernel, geo.dilation, geo.pad_begin, geo.pad_end))
        rc = hapi_dnn_pd(b, &d, attr, &pd);
    dnnl_primitive_attr_destroy(attr);
    if (rc)
        return rc;
    int x = hapi_dnn_need(b, value, dtype, HAPI_LAYOUT_NHWC, err);
    int y = x < 0 ? x : hapi_dnn_make(b, out, dtype, HAPI_LAYOUT_NHWC, err);
    if (y < 0) {
        dnnl_primitive_desc_destroy(pd);
        return y;
    }
    struct hapi_dnn_arg args[2] = {{DNNL_ARG_SRC, &src, b->reps[x].storage},
                                   {DNNL_ARG_DST, &dst, b->reps[y].storage}};
    return hapi_dnn_execute(b, pd, args, 2, err);
}

int hapi_dnn_pool(struct hapi_dnn *b, struct hapi_err *err)
{
    const struct hapi_node *n = b->step->node;
    struct pool p = {.alg = dnnl_pooling_avg_exclude_padding};
    bool max = n->op == HAPI_OP_MaxPool || n->op == HAPI_OP_GlobalMaxPool, past = false;
    int rc = hapi_window_of(b->g, n, &p.w, err);

    if (rc)
        return rc;
    if (b->g->values[n->in[0]].dtype != HAPI_F32 || b->g->values[n->in[0]].shape.rank > 5 ||
        (n->n_out > 1 && n->out[1] >= 0))
        return HAPI_DNN_NONE;
    for (int d = 0; d < HAPI_SPATIAL; d++) {
        int64_t reach = (p.w.kernel[d] - 1) * p.w.dilation[d] + 1;
        int64_t end = (p.w.out[d] - 1) * p.w.stride[d] + reach - p.w.in[d] - p.w.pad_begin[d];
        past |= end > p.w.pad_end[d];
        p.w.pad_end[d] = end; /* what the windows really cover: oneDNN wants it exact */
    }
    /* A window past the padding (ceil_mode) divides by what is inside it, which oneDNN does not. */
    if (!max && past && p.w.count_include_pad)
        return HAPI_DNN_NONE;
    if (max)
        p.alg = dnnl_pooling_max;
    else if (p.w.count_include_pad)
        p.alg = dnnl_pooling_avg_include_padding;
    p.dtype = max ? hapi_dnn_int8_pool(b, n->in[0], b->step->out) : hapi_dnn_dtype(b, n->in[0]);
    rc = pool_emit(b, &p, n->in[0], b->step->out, err);
    if (rc != HAPI_DNN_NONE || p.dtype == hapi_dnn_dtype(b, n->in[0]))
        return rc;
    p.dtype = hapi_dnn_dtype(b, n->in[0]);
    return pool_emit(b, &p, n->in[0], b->step->out, err);
}

/* Mean over all spatial dims of (N,C,H,W), which is a pool; HAPI_DNN_NONE for other reductions. */
static bool is_spatial_mean(const struct hapi_dnn *b, const struct hapi_node *n)
{
    const struct hapi_value *x = &b->g->values[n->in[0]];
    int64_t axes[HAPI_MAX_RANK] = {0};
    size_t count = hapi_node_ints(n, "axes", axes, HAPI_MAX_RANK);

    if (n->n_in > 1 && n->in[1] >= 0) {
        const struct hapi_value *v = &b->g->values[n->in[1]];
        if (!v->data || hapi_ref_count(&v->shape) > HAPI_MAX_RANK)
            return false;
        count = (size_t)hapi_ref_count(&v->shape);
        for (size_t i = 0; i < count; i++)
            axes[i] = hapi_ref_get_i(v->data, v->dtype, (int64_t)i);
    }
    if (n->op != HAPI_OP_ReduceMean || x->dtype != HAPI_F32 || x->shape.rank != 4 || count != 2)
        return false;
    int a = hapi_ref_axis(axes[0], 4), c = hapi_ref_axis(axes[1], 4);
    return (a == 2 && c == 3) || (a == 3 && c == 2);
}

int hapi_dnn_reduce(struct hapi_dnn *b, struct hapi_err *err)
{
    const struct hapi_node *n = b->step->node;
    const struct hapi_shape *s = &b->g->values[n->in[0]].shape;
    struct pool p = {.alg = dnnl_pooling_avg_exclude_padding, .dtype = hapi_dnn_dtype(b, n->in[0])};

    if (!is_spatial_mean(b, n) || b->g->values[b->step->out].shape.rank != 4)
        return HAPI_DNN_NONE;
    p.w = (struct hapi_window){.kernel = {s->dim[2], s->dim[3], 1},
                               .stride = {1, 1, 1},
                               .dilation = {1, 1, 1},
                               .in = {s->dim[2], s->dim[3], 1},
                               .out = {1, 1, 1},
                               .group = 1};
    return pool_emit(b, &p, n->in[0], b->step->out, err);
}

/* Inference form as y = scale * (x - mean) / sqrt(var + eps) + shift. */
int hapi_dnn_batch_norm(struct hapi_dnn *b, struct hapi_err *err)
{
    const struct hapi_node *n = b->step->node;
    const struct hapi_value *x = &b->g->values[n->in[0]];
    enum hapi_dtype dtype = hapi_dnn_dtype(b, n->in[0]);
    unsigned flags = dnnl_use_global_stats | dnnl_use_scale | dnnl_use_shift;
    static const int arg[5] = {DNNL_ARG_SRC, DNNL_ARG_SCALE, DNNL_ARG_SHIFT, DNNL_ARG_MEAN,
                               DNNL_ARG_VARIANCE};
    struct hapi_dnn_arg args[6];
    dnnl_memory_desc_t md, per;
    dnnl_batch_normalization_desc_t d;
    dnnl_primitive_attr_t attr;
    dnnl_primitive_desc_t pd;
    bool relu = b->step->act.kind == HAPI_ACT_RELU && b->step->act.alpha == 0;
    int rc = HAPI_DNN_NONE;

    if (x->dtype != HAPI_F32 || (x->shape.rank != 3 && x->shape.rank != 4) ||
        hapi_node_int(n, "training_mode", 0))
        return HAPI_DNN_NONE;
    dnnl_dims_t channels = {x->shape.dim[1]};
    if (!hapi_dnn_attr(false, NULL, &attr) && !hapi_dnn_md4(&x->shape, dtype, HAPI_LAYOUT_NHWC, &md) &&
        !dnnl_memory_desc_init_by_tag(&per, 1, channels, dnnl_f32, dnnl_a) &&
        !dnnl_batch_normalization_forward_desc_init(&d, dnnl_forward_inference, &md,
                                                    hapi_node_float(n, "epsilon", 1e-5F),
                                                    flags | (relu ? dnnl_fuse_norm_relu : 0)))
        rc = hapi_dnn_pd(b, &d, attr, &pd);
    dnnl_primitive_attr_destroy(attr);
    if (rc)
        return rc;
    for (int i = 0; i < 5; i++) {
        int r = i ? hapi_dnn_need(b, n->in[i], HAPI_F32, HAPI_LAYOUT_PLAIN, err)
                  : hapi_dnn_need(b, n->in[0], dtype, HAPI_LAYOUT_NHWC, err);
        if (r < 0) {
            dnnl_primitive_desc_destroy(pd);
            return r;
        }
        args[i] = (struct hapi_dnn_arg){arg[i], i ? &per : &md, b->reps[r].storage};
    }
    int y = hapi_dnn_make(b, b->step->out, dtype, HAPI_LAYOUT_NHWC, err);
    if (y < 0) {
        dnnl_primitive_desc_destroy(pd);
        return y;
    }
    args[5] = (struct hapi_dnn_arg){DNNL_ARG_DST, &md, b->reps[y].storage};
    rc = hapi_dnn_execute(b, pd, args, 6, err);
    if (!rc && !relu && b->step->act.kind != HAPI_ACT_NONE)
        rc = hapi_dnn_activate(b, y, y, &b->step->act, err);
    return rc;
}
