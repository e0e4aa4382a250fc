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

/* Where spatial dim i of `spatial` is kept: height, width, depth, so that of two the first is the height. */
static int slot(int i, int spatial)
{
    return spatial == 3 ? (i + 2) % 3 : 2 - spatial + i;
}

/* Reads one value per spatial dim; out keeps its defaults when it is absent. *have: whether it is there. */
static int spatial_ints(const struct hapi_node *n, const char *name, int spatial, int64_t least, int64_t *out,
                        bool *have, struct hapi_err *err)
{
    int64_t v[HAPI_SPATIAL];
    size_t count = hapi_node_ints(n, name, v, HAPI_SPATIAL);

    *have = count > 0;
    if (!count)
        return HAPI_OK;
    if (count != (size_t)spatial)
        return bad(n, err, "an attribute does not have one value per spatial dimension");
    for (int i = 0; i < spatial; i++) {
        if (v[i] < least || v[i] > WINDOW_MAX)
            return bad(n, err, "kernel, stride or dilation out of range");
        out[slot(i, spatial)] = v[i];
    }
    return HAPI_OK;
}

static int pads_read(const struct hapi_node *n, int spatial, struct hapi_window *w, struct hapi_err *err)
{
    int64_t v[2 * HAPI_SPATIAL];
    size_t have = hapi_node_ints(n, "pads", v, 2 * HAPI_SPATIAL);

    if (!have)
        return HAPI_OK;
    if (have != 2 * (size_t)spatial)
        return bad(n, err, "pads does not have two values per spatial dimension");
    for (int i = 0; i < spatial; i++) {
        if (v[i] < 0 || v[i] > WINDOW_MAX || v[spatial + i] < 0 || v[spatial + i] > WINDOW_MAX)
            return bad(n, err, "pads out of range");
        w->pad_begin[slot(i, spatial)] = v[i];
        w->pad_end[slot(i, spatial)] = v[spatial + i];
    }
    return HAPI_OK;
}

static int64_t reach_of(const struct hapi_window *w, int d)
{
    return (w->kernel[d] - 1) * w->dilation[d] + 1;
}

/* Output size of one spatial dim. With ceil_mode the last window must start inside the input or its left
 * padding (PyTorch's rule, which exports rely on). */
static int64_t out_size(const struct hapi_window *w, int d)
{
    int64_t room = w->in[d] + w->pad_begin[d] + w->pad_end[d] - reach_of(w, d);
    int64_t out;

    if (room < 0)
        return 0;
    out = room / w->stride[d] + 1;
    if (w->ceil_mode && room % w->stride[d] && out * w->stride[d] < w->in[d] + w->pad_begin[d])
        out++;
    return out;
}

static void pads_share(struct hapi_window *w, int d, int64_t total, bool upper)
{
    w->pad_begin[d] = upper ? total / 2 : total - total / 2;
    w->pad_end[d] = total - w->pad_begin[d];
}

static void same_pads(struct hapi_window *w, int d, bool upper)
{
    int64_t out = (w->in[d] + w->stride[d] - 1) / w->stride[d];
    int64_t total = (out - 1) * w->stride[d] + reach_of(w, d) - w->in[d];

    pads_share(w, d, total < 0 ? 0 : total, upper);
}

enum auto_pad { PAD_GIVEN, PAD_VALID, PAD_SAME_UPPER, PAD_SAME_LOWER };

static int auto_pad_read(const struct hapi_node *n, enum auto_pad *out, struct hapi_err *err)
{
    static const char *const names[] = {"NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"};
    const struct hapi_attr *a = hapi_node_attr(n, "auto_pad");

    *out = PAD_GIVEN;
    if (!a || a->type != HAPI_ATTR_STRING || !a->s[0])
        return HAPI_OK;
    for (int i = 0; i < 4; i++)
        if (!strcmp(a->s, names[i])) {
            *out = (enum auto_pad)i;
            return HAPI_OK;
        }
    return bad(n, err, "unknown auto_pad");
}

static int pads_resolve(const struct hapi_node *n, int spatial, struct hapi_window *w, struct hapi_err *err)
{
    enum auto_pad how;
    int rc = auto_pad_read(n, &how, err);

    if (!rc && how == PAD_GIVEN)
        rc = pads_read(n, spatial, w, err);
    for (int i = 0; !rc && i < spatial && how > PAD_VALID; i++)
        same_pads(w, slot(i, spatial), how == PAD_SAME_UPPER);
    for (int i = 0; !rc && i < spatial; i++) {
        int d = slot(i, spatial);
        w->out[d] = out_size(w, d);
        if (w->out[d] < 1)
            rc = bad(n, err, "the kernel is larger than the padded input");
    }
    return rc;
}

/* ConvTranspose spreads its input: out = stride * (in - 1) + reach + output_padding - pads. output_shape, or
 * a SAME_* that asks for in * stride, says the output and leaves the pads to be found; an output that is
 * larger than what there is goes on at its end. */
static int transpose_resolve(const struct hapi_node *n, int spatial, struct hapi_window *w,
                             struct hapi_err *err)
{
    int64_t extra[HAPI_SPATIAL] = {0}, asked[HAPI_SPATIAL] = {0};
    bool has_extra, has_asked;
    enum auto_pad how;
    int rc = auto_pad_read(n, &how, err);

    rc = rc ? rc : spatial_ints(n, "output_padding", spatial, 0, extra, &has_extra, err);
    rc = rc ? rc : spatial_ints(n, "output_shape", spatial, 1, asked, &has_asked, err);
    if (!rc && how == PAD_GIVEN && !has_asked)
        rc = pads_read(n, spatial, w, err);
    for (int i = 0; !rc && i < spatial; i++) {
        int d = slot(i, spatial);
        int64_t full = w->stride[d] * (w->in[d] - 1) + reach_of(w, d) + extra[d];
        w->out[d] = has_asked ? asked[d] : w->in[d] * w->stride[d];
        if (!has_asked && how <= PAD_VALID)
            w->out[d] = full - w->pad_begin[d] - w->pad_end[d];
        else
            pads_share(w, d, full > w->out[d] ? full - w->out[d] : 0, how == PAD_SAME_UPPER);
        w->pad_end[d] = full - w->out[d] - w->pad_begin[d];
        if (w->out[d] < 1)
            rc = bad(n, err, "the pads are larger than the output");
    }
    return rc;
}

/* Pools take the kernel from the attribute, convolutions from their weights (M, C/group, kH, kW). */
static int kernel_read(const struct hapi_graph *g, const struct hapi_node *n, int spatial,
                       struct hapi_window *w, struct hapi_err *err)
{
    bool conv = n->n_in >= 2, have;
    const struct hapi_shape *k = conv ? &g->values[n->in[1]].shape : NULL;
    int rc;

    if (!strncmp(hapi_op_name(n->op), "Global", 6)) {
        memcpy(w->kernel, w->in, sizeof w->kernel);
        return HAPI_OK;
    }
    rc = spatial_ints(n, "kernel_shape", spatial, 1, w->kernel, &have, err);
    if (!rc && !conv && !have)
        return bad(n, err, "kernel_shape is missing");
    if (rc || !conv)
        return rc;
    if (k->rank != spatial + 2)
        return bad(n, err, "weights and input differ in rank");
    for (int i = 0; i < spatial; i++) {
        int64_t dim = k->dim[2 + i];
        if (dim < 1 || dim > WINDOW_MAX)
            return bad(n, err, "kernel size out of range");
        if (have && w->kernel[slot(i, spatial)] != dim)
            return bad(n, err, "kernel_shape differs from the weights");
        w->kernel[slot(i, spatial)] = dim;
    }
    return HAPI_OK;
}

int64_t hapi_window_out(const struct hapi_window *w, int i, int spatial)
{
    return w->out[slot(i, spatial)];
}

int hapi_window_of(const struct hapi_graph *g, const struct hapi_node *n, struct hapi_window *out,
                   struct hapi_err *err)
{
    struct hapi_window w = {.kernel = {1, 1, 1}, .stride = {1, 1, 1}, .dilation = {1, 1, 1}};
    const struct hapi_shape *s = &g->values[n->in[0]].shape;
    int spatial = s->rank - 2, rc;
    bool have;

    if (spatial < 1 || spatial > HAPI_SPATIAL)
        return hapi_err_set(err, HAPI_EUNSUPPORTED, 0,
                            "node `%s` (%s): %d spatial dimensions (1 to %d are supported)", n->name,
                            hapi_op_name(n->op), spatial, HAPI_SPATIAL);
    for (int d = 0; d < HAPI_SPATIAL; d++)
        w.in[d] = w.out[d] = 1;
    for (int i = 0; i < spatial; i++) {
        if (s->dim[2 + i] < 1 || s->dim[2 + i] > WINDOW_MAX)
            return bad(n, err, "input size out of range");
        w.in[slot(i, spatial)] = s->dim[2 + i];
    }
    w.group = hapi_node_int(n, "group", 1);
    w.ceil_mode = hapi_node_int(n, "ceil_mode", 0) != 0;
    w.count_include_pad = hapi_node_int(n, "count_include_pad", 0) != 0;
    if (w.group < 1 || w.group > WINDOW_MAX)
        return bad(n, err, "group out of range");
    if ((rc = kernel_read(g, n, spatial, &w, err)) ||
        (rc = spatial_ints(n, "strides", spatial, 1, w.stride, &have, err)) ||
        (rc = spatial_ints(n, "dilations", spatial, 1, w.dilation, &have, err)))
        return rc;
    rc = n->op == HAPI_OP_ConvTranspose ? transpose_resolve(n, spatial, &w, err)
                                        : pads_resolve(n, spatial, &w, err);
    if (!rc)
        *out = w;
    return rc;
}
