#include "head.h"

#include <dnnl.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

struct product { /* c[m][n] = a[m][k] * b[k][n]; a may be given transposed */
    dnnl_primitive_t primitive;
    dnnl_memory_t a, b, c;
};

struct head {
    struct head_options o;
    double seen;
    double *mean, *m2;            /* Welford, per feature */
    float *shift, *scale;         /* from them */
    float *x, *logits, *w, *bias; /* (batch,width), (batch,classes), (width,classes), (classes) */
    float *gw, *gb, *m, *v;       /* gradients; moments of w then bias */
    uint64_t step;
    dnnl_engine_t engine;
    dnnl_stream_t stream;
    struct product forward, backward;
};

static int product_open(struct head *h, struct product *p, dnnl_dim_t m, dnnl_dim_t n, dnnl_dim_t k, float *a,
                        int a_transposed, float *b, float *c)
{
    dnnl_dims_t da = {m, k}, db = {k, n}, dc = {m, n};
    dnnl_dims_t sa = {a_transposed ? 1 : k, a_transposed ? m : 1}, sb = {n, 1}, sc = {n, 1};
    dnnl_memory_desc_t ma, mb, mc;
    dnnl_matmul_desc_t d;
    dnnl_primitive_desc_t pd;

    if (dnnl_memory_desc_init_by_strides(&ma, 2, da, dnnl_f32, sa) ||
        dnnl_memory_desc_init_by_strides(&mb, 2, db, dnnl_f32, sb) ||
        dnnl_memory_desc_init_by_strides(&mc, 2, dc, dnnl_f32, sc) ||
        dnnl_matmul_desc_init(&d, &ma, &mb, NULL, &mc) ||
        dnnl_primitive_desc_create(&pd, &d, NULL, h->engine, NULL))
        return HAPI_ESYS;
    int bad = dnnl_primitive_create(&p->primitive, pd) || dnnl_memory_create(&p->a, &ma, h->engine, a) ||
              dnnl_memory_create(&p->b, &mb, h->engine, b) || dnnl_memory_create(&p->c, &mc, h->engine, c);
    dnnl_primitive_desc_destroy(pd);
    return bad ? HAPI_ESYS : 0;
}

static void product_close(struct product *p)
{
    dnnl_memory_destroy(p->a);
    dnnl_memory_destroy(p->b);
    dnnl_memory_destroy(p->c);
    dnnl_primitive_destroy(p->primitive);
}

static int product_run(struct head *h, struct product *p, struct hapi_err *err)
{
    dnnl_exec_arg_t args[] = {{DNNL_ARG_SRC, p->a}, {DNNL_ARG_WEIGHTS, p->b}, {DNNL_ARG_DST, p->c}};
    dnnl_status_t s = dnnl_primitive_execute(p->primitive, h->stream, 3, args);

    if (!s)
        s = dnnl_stream_wait(h->stream);
    return s ? hapi_err_set(err, HAPI_ESYS, s, "oneDNN cannot multiply (status %d)", (int)s) : 0;
}

int head_new(struct head **out, const struct head_options *o, struct hapi_err *err)
{
    struct head *h = calloc(1, sizeof *h);
    size_t weights = o->width * o->classes;

    if (!h)
        return hapi_err_set(err, HAPI_ENOMEM, 0, "no memory for the head");
    h->o = *o;
    h->mean = calloc(o->width, sizeof *h->mean);
    h->m2 = calloc(o->width, sizeof *h->m2);
    h->shift = calloc(o->width, sizeof(float));
    h->scale = calloc(o->width, sizeof(float));
    h->x = calloc(o->batch * o->width, sizeof(float));
    h->logits = calloc((size_t)o->batch * o->classes, sizeof(float));
    h->w = calloc(weights + o->classes, sizeof(float));
    h->gw = calloc(weights + o->classes, sizeof(float));
    h->m = calloc(weights + o->classes, sizeof(float));
    h->v = calloc(weights + o->classes, sizeof(float));
    if (!h->mean || !h->m2 || !h->shift || !h->scale || !h->x || !h->logits || !h->w || !h->gw || !h->m ||
        !h->v) {
        head_free(h);
        return hapi_err_set(err, HAPI_ENOMEM, 0, "no memory for a head of %zu x %u", o->width, o->classes);
    }
    h->bias = h->w + weights;
    h->gb = h->gw + weights;
    if (dnnl_engine_create(&h->engine, dnnl_cpu, 0) ||
        dnnl_stream_create(&h->stream, h->engine, dnnl_stream_default_flags) ||
        product_open(h, &h->forward, o->batch, o->classes, (dnnl_dim_t)o->width, h->x, 0, h->w, h->logits) ||
        product_open(h, &h->backward, (dnnl_dim_t)o->width, o->classes, o->batch, h->x, 1, h->logits,
                     h->gw)) {
        head_free(h);
        return hapi_err_set(err, HAPI_ESYS, 0, "oneDNN cannot make the head's products");
    }
    *out = h;
    return 0;
}

void head_free(struct head *h)
{
    if (!h)
        return;
    product_close(&h->forward);
    product_close(&h->backward);
    dnnl_stream_destroy(h->stream);
    dnnl_engine_destroy(h->engine);
    void *all[] = {h->mean, h->m2, h->shift, h->scale, h->x, h->logits, h->w, h->gw, h->m, h->v, h};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        free(all[i]);
}

void head_observe(struct head *h, const float *const *rows, uint32_t n)
{
    for (uint32_t r = 0; r < n; r++) {
        h->seen += 1;
        for (size_t i = 0; i < h->o.width; i++) {
            double d = rows[r][i] - h->mean[i];
            h->mean[i] += d / h->seen;
            h->m2[i] += d * (rows[r][i] - h->mean[i]);
        }
    }
    for (size_t i = 0; i < h->o.width; i++) {
        double variance = h->m2[i] / h->seen;
        h->shift[i] = (float)h->mean[i];
        h->scale[i] = variance > 1e-12 ? (float)(1 / sqrt(variance)) : 0; /* a constant says nothing */
    }
}

static int logits(struct head *h, const float *const *rows, uint32_t n, struct hapi_err *err)
{
    for (uint32_t r = 0; r < h->o.batch; r++) {
        float *x = h->x + r * h->o.width;
        if (r >= n) {
            memset(x, 0, h->o.width * sizeof *x);
            continue;
        }
        for (size_t i = 0; i < h->o.width; i++)
            x[i] = (rows[r][i] - h->shift[i]) * h->scale[i];
    }
    int rc = product_run(h, &h->forward, err);
    for (uint32_t r = 0; !rc && r < n; r++)
        for (uint32_t c = 0; c < h->o.classes; c++)
            h->logits[r * h->o.classes + c] += h->bias[c];
    return rc;
}

/* logits become d(mean loss)/d(logits); returns the sum of the losses. */
static double softmax_gradient(struct head *h, const uint32_t *labels, uint32_t n)
{
    uint32_t k = h->o.classes;
    double loss = 0;

    memset(h->gb, 0, k * sizeof(float));
    memset(h->logits + (size_t)n * k, 0, (size_t)(h->o.batch - n) * k * sizeof(float));
    for (uint32_t r = 0; r < n; r++) {
        float *z = h->logits + (size_t)r * k, top = z[0];
        double sum = 0;
        for (uint32_t c = 1; c < k; c++)
            top = z[c] > top ? z[c] : top;
        for (uint32_t c = 0; c < k; c++)
            sum += exp((double)z[c] - top);
        loss += log(sum) - ((double)z[labels[r]] - top);
        for (uint32_t c = 0; c < k; c++) {
            double p = exp((double)z[c] - top) / sum;
            z[c] = (float)((p - (c == labels[r])) / n);
            h->gb[c] += z[c];
        }
    }
    return loss;
}

static void update(struct head *h)
{
    const struct head_options *o = &h->o;
    size_t weights = o->width * o->classes, all = weights + o->classes;
    double t = (double)++h->step, fix1 = 1 - pow(0.9, t), fix2 = 1 - pow(0.999, t);

    for (size_t i = 0; i < all; i++) {
        float g = h->gw[i], by;
        if (o->adam) {
            h->m[i] = 0.9f * h->m[i] + 0.1f * g;
            h->v[i] = 0.999f * h->v[i] + 0.001f * g * g;
            by = (float)(h->m[i] / fix1 / (sqrt(h->v[i] / fix2) + 1e-8));
        } else {
            by = h->m[i] = o->momentum * h->m[i] + g;
        }
        if (i < weights)
            by += o->weight_decay * h->w[i];
        h->w[i] -= o->lr * by;
    }
}

int head_train(struct head *h, const float *const *rows, const uint32_t *labels, uint32_t n, double *loss,
               struct hapi_err *err)
{
    int rc = logits(h, rows, n, err);

    if (rc)
        return rc;
    *loss = softmax_gradient(h, labels, n) / n;
    rc = product_run(h, &h->backward, err);
    if (!rc)
        update(h);
    return rc;
}

int head_predict(struct head *h, const float *const *rows, uint32_t n, uint32_t *predictions,
                 struct hapi_err *err)
{
    int rc = logits(h, rows, n, err);

    for (uint32_t r = 0; !rc && r < n; r++) {
        const float *z = h->logits + (size_t)r * h->o.classes;
        predictions[r] = 0;
        for (uint32_t c = 1; c < h->o.classes; c++)
            if (z[c] > z[predictions[r]])
                predictions[r] = c;
    }
    return rc;
}
