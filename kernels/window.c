#include <string.h>

#include "graph.h"

enum { WINDOW_MAX = 1 << 24 }; /* bound of every attribute, so that sums and products below fit in int64 */

const char *hapi_op_name(enum hapi_op_kind op)
{
    static const char *const names[HAPI_OP_COUNT] = {
#define X(kind, name, since, until) [HAPI_OP_##kind] = (name),
        HAPI_ONNX_OPS(X)
#undef X
    };

    return op > HAPI_OP_NONE && op < HAPI_OP_COUNT && names[op] ? names[op] : "?";
}

const struct hapi_attr *hapi_node_attr(const struct hapi_node *n, const char *name)
{
    for (size_t i = 0; i < n->n_attrs; i++)
        if (!strcmp(n->attrs[i].name, name))
            return &n->attrs[i];
    return NULL;
}

int64_t hapi_node_int(const struct hapi_node *n, const char *name, int64_t otherwise)
{
    const struct hapi_attr *a = hapi_node_attr(n, name);
    return a && a->type == HAPI_ATTR_INT ? a->i : otherwise;
}

float hapi_node_float(const struct hapi_node *n, const char *name, float otherwise)
{
    const struct hapi_attr *a = hapi_node_attr(n, name);
    return a && a->type == HAPI_ATTR_FLOAT ? a->f : otherwise;
}

size_t hapi_node_ints(const struct hapi_node *n, const char *name, int64_t *out, size_t max)
{
    const struct hapi_attr *a = hapi_node_attr(n, name);

    if (!a || a->type != HAPI_ATTR_INTS)
        return 0;
    for (size_t i = 0; i < a->n && i < max; i++)
        out[i] = a->ints[i];
    return a->n;
}

static int bad(const struct hapi_node *n, struct hapi_err *err, const char *what)
{
    return hapi_err_set(err, HAPI_EFORMAT, 0, "node `%s` (%s): %s", n->name, hapi_op_name(n->op), what);
}

/* Reads one value per spatial dim into out[2 - spatial..1]; out keeps its defaults when it is absent. */
static int spatial_ints(const struct hapi_node *n, const char *name, int spatial, int64_t least, int64_t *out,
                        struct hapi_err *err)
{
    int64_t v[2];
    size_t have = hapi_node_ints(n, name, v, 2);

    if (!have)
        return HAPI_OK;
    if (have != (size_t)spatial)
        return bad(n, err, "an attribute does not have one value per spatial dimension");
    for (int i = 0; i < spatial; i++) {
        if (v[i] < least || v[i] > WINDOW_MAX)
            return bad(n, err, "kernel, stride or dilation out of range");
        out[2 - spatial + i] = v[i];
    }
    return HAPI_OK;
}

static int pads_read(const struct hapi_node *n, int spatial, struct hapi_window *w, struct hapi_err *err)
{
    int64_t v[4];
    size_t have = hapi_node_ints(n, "pads", v, 4);

    if (!have)
        return HAPI_OK;
    if (have != 2 * (size_t)spatial)
        return bad(n, err, "pads does not have two values per spatial dimension");
    for (int i = 0; i < spatial; i++) {
        if (v[i] < 0 || v[i] > WINDOW_MAX || v[spatial + i] < 0 || v[spatial + i] > WINDOW_MAX)
            return bad(n, err, "pads out of range");
        w->pad_begin[2 - spatial + i] = v[i];
        w->pad_end[2 - spatial + i] = v[spatial + i];
    }
    return HAPI_OK;
}

/* Output size of one spatial dim. With ceil_mode the last window must start inside the input or its left
 * padding (PyTorch's rule, which exports rely on). */
static int64_t out_size(const struct hapi_window *w, int d)
{
    int64_t reach = (w->kernel[d] - 1) * w->dilation[d] + 1;
    int64_t room = w->in[d] + w->pad_begin[d] + w->pad_end[d] - reach;
    int64_t out;

    if (room < 0)
        return 0;
    out = room / w->stride[d] + 1;
    if (w->ceil_mode && room % w->stride[d] && out * w->stride[d] < w->in[d] + w->pad_begin[d])
        out++;
    return out;
}

static void same_pads(struct hapi_window *w, int d, bool upper)
{
    int64_t reach = (w->kernel[d] - 1) * w->dilation[d] + 1;
    int64_t out = (w->in[d] + w->stride[d] - 1) / w->stride[d];
    int64_t total = (out - 1) * w->stride[d] + reach - w->in[d];

    if (total < 0)
        total = 0;
    w->pad_begin[d] = upper ? total / 2 : total - total / 2;
    w->pad_end[d] = total - w->pad_begin[d];
}

static int auto_pad(const struct hapi_node *n, int spatial, struct hapi_window *w, struct hapi_err *err)
{
    const struct hapi_attr *a = hapi_node_attr(n, "auto_pad");

    if (!a || a->type != HAPI_ATTR_STRING || !strcmp(a->s, "NOTSET") || !a->s[0])
        return pads_read(n, spatial, w, err);
    if (!strcmp(a->s, "VALID"))
        return HAPI_OK;
    if (strcmp(a->s, "SAME_UPPER") && strcmp(a->s, "SAME_LOWER"))
        return bad(n, err, "unknown auto_pad");
    for (int d = 2 - spatial; d < 2; d++)
        same_pads(w, d, !strcmp(a->s, "SAME_UPPER"));
    return HAPI_OK;
}

/* Pools take the kernel from the attribute, Conv from its weights (M, C/group, kH, kW). */
static int kernel_read(const struct hapi_graph *g, const struct hapi_node *n, int spatial,
                       struct hapi_window *w, struct hapi_err *err)
{
    bool conv = n->n_in >= 2;
    const struct hapi_shape *k = conv ? &g->values[n->in[1]].shape : NULL;
    int rc;

    if (!strncmp(hapi_op_name(n->op), "Global", 6)) {
        memcpy(w->kernel, w->in, sizeof w->kernel);
        return HAPI_OK;
    }
    if (!conv && !hapi_node_attr(n, "kernel_shape"))
        return bad(n, err, "kernel_shape is missing");
    rc = spatial_ints(n, "kernel_shape", spatial, 1, w->kernel, err);
    if (rc || !conv)
        return rc;
    if (k->rank != spatial + 2)
        return bad(n, err, "weights and input differ in rank");
    for (int i = 0; i < spatial; i++) {
        int64_t dim = k->dim[2 + i];
        if (dim < 1 || dim > WINDOW_MAX)
            return bad(n, err, "kernel size out of range");
        if (hapi_node_attr(n, "kernel_shape") && w->kernel[2 - spatial + i] != dim)
            return bad(n, err, "kernel_shape differs from the weights");
        w->kernel[2 - spatial + i] = dim;
    }
    return HAPI_OK;
}

int hapi_window_of(const struct hapi_graph *g, const struct hapi_node *n, struct hapi_window *out,
                   struct hapi_err *err)
{
    struct hapi_window w = {{1, 1}, {1, 1}, {1, 1}, {0, 0}, {0, 0}, {1, 1}, {1, 1}, 1, false, false};
    const struct hapi_shape *s = &g->values[n->in[0]].shape;
    int spatial = s->rank - 2, rc;

    if (spatial < 1 || spatial > 2)
        return hapi_err_set(err, HAPI_EUNSUPPORTED, 0,
                            "node `%s` (%s): %d spatial dimensions (1 or 2 are supported)", n->name,
                            hapi_op_name(n->op), spatial);
    for (int i = 0; i < spatial; i++) {
        if (s->dim[2 + i] < 1 || s->dim[2 + i] > WINDOW_MAX)
            return bad(n, err, "input size out of range");
        w.in[2 - spatial + i] = s->dim[2 + i];
    }
    w.group = hapi_node_int(n, "group", 1);
    w.ceil_mode = hapi_node_int(n, "ceil_mode", 0) != 0;
    w.count_include_pad = hapi_node_int(n, "count_include_pad", 0) != 0;
    if (w.group < 1 || w.group > WINDOW_MAX)
        return bad(n, err, "group out of range");
    if ((rc = kernel_read(g, n, spatial, &w, err)) ||
        (rc = spatial_ints(n, "strides", spatial, 1, w.stride, err)) ||
        (rc = spatial_ints(n, "dilations", spatial, 1, w.dilation, err)) ||
        (rc = auto_pad(n, spatial, &w, err)))
        return rc;
    for (int d = 0; d < 2; d++) {
        w.out[d] = out_size(&w, d);
        if (w.out[d] < 1)
            return bad(n, err, "the kernel is larger than the padded input");
    }
    *out = w;
    return HAPI_OK;
}
