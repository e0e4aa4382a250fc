/*
 * The part of a model up to a cut, as an ONNX file of its own. Nodes, initializers and inputs are copied as
 * the bytes that they are, in the order that they have, so that the same model and cut always give the same
 * bytes; the outputs are new. Field numbers as in onnx.c.
 */
#include <stdlib.h>
#include <string.h>

#include "model.h"

enum { M_IR = 1, M_PRODUCER = 2, M_GRAPH = 7, M_OPSET = 8 };
enum { G_NODE = 1, G_NAME = 2, G_INITIALIZER = 5, G_INPUT = 11, G_OUTPUT = 12 };
enum { T_DIMS = 1, T_TYPE = 2, T_NAME = 8, T_RAW = 9 };

struct parts {
    bool *value; /* needed */
    bool *node;
};

static bool mark(const struct hapi_onnx *o, const struct hapi_cut *cut, struct parts *p)
{
    p->value = calloc(o->n_values + 1, sizeof *p->value);
    p->node = calloc(o->n_nodes + 1, sizeof *p->node);
    if (!p->value || !p->node)
        return false;
    for (uint32_t i = 0; i < cut->n_tensors; i++)
        p->value[hapi_onnx_find(o, cut->tensors[i].name, strlen(cut->tensors[i].name))] = true;
    for (size_t i = o->n_nodes; i-- > 0;) {
        const struct hapi_onnx_node *n = &o->nodes[i];
        for (int k = 0; k < n->n_out; k++)
            p->node[i] |= n->out[k] >= 0 && p->value[n->out[k]];
        for (int k = 0; p->node[i] && k < n->n_in; k++)
            if (n->in[k] >= 0)
                p->value[n->in[k]] = true;
    }
    return true;
}

/* Data in another file comes into this one. */
static void put_embedded(struct hapi_pb_out *out, uint32_t number, const struct hapi_onnx_tensor *t,
                         const char *name)
{
    size_t size = hapi_pb_size(T_NAME, strlen(name)) + hapi_pb_size(T_RAW, t->bytes) + 2;
    struct hapi_pb_out dims = {.p = NULL};

    for (int i = 0; i < t->shape.rank; i++)
        hapi_pb_put_int(&dims, T_DIMS, (uint64_t)t->shape.dim[i]);
    out->failed |= dims.failed;
    hapi_pb_put_header(out, number, size + dims.n);
    hapi_pb_put(out, dims.p, dims.n);
    hapi_pb_put_int(out, T_TYPE, hapi_onnx_elem_type(t->dtype));
    hapi_pb_put_string(out, T_NAME, name);
    hapi_pb_put_bytes(out, T_RAW, t->raw, t->bytes);
    free(dims.p);
}

/* ValueInfoProto { name, type { tensor_type { elem_type, shape { dim { dim_param | dim_value } } } } }. */
static void put_output(struct hapi_pb_out *out, const struct hapi_tensor_desc *d)
{
    struct hapi_pb_out shape = {.p = NULL}, dim = {.p = NULL}, tensor = {.p = NULL}, type = {.p = NULL},
                       info = {.p = NULL};

    for (int i = 0; i < d->shape.rank; i++) {
        dim.n = 0;
        if (i == 0)
            hapi_pb_put_string(&dim, 2, "batch");
        else
            hapi_pb_put_int(&dim, 1, (uint64_t)d->shape.dim[i]);
        hapi_pb_put_bytes(&shape, 1, dim.p, dim.n);
    }
    hapi_pb_put_int(&tensor, 1, hapi_onnx_elem_type(d->dtype));
    hapi_pb_put_bytes(&tensor, 2, shape.p, shape.n);
    hapi_pb_put_bytes(&type, 1, tensor.p, tensor.n);
    hapi_pb_put_string(&info, 1, d->name);
    hapi_pb_put_bytes(&info, 2, type.p, type.n);
    hapi_pb_put_bytes(out, G_OUTPUT, info.p, info.n);
    out->failed |= shape.failed || dim.failed || tensor.failed || type.failed || info.failed;
    free(shape.p);
    free(dim.p);
    free(tensor.p);
    free(type.p);
    free(info.p);
}

/* A node whose attribute holds external data cannot be copied as it is. */
static bool attribute_external(const struct hapi_onnx *o, const struct hapi_onnx_node *n)
{
    for (size_t i = 0; i < n->n_attrs; i++)
        if (n->attrs[i].type == HAPI_ATTR_TENSOR && o->tensors[n->attrs[i].value].external)
            return true;
    return false;
}

static int put_graph(struct hapi_pb_out *g, const struct hapi_onnx *o, const struct hapi_cut *cut,
                     const struct parts *p, struct hapi_err *err)
{
    hapi_pb_put_string(g, G_NAME, "prefix");
    for (size_t i = 0; i < o->n_inputs; i++)
        hapi_pb_put_bytes(g, G_INPUT, o->inputs[i].proto.p, o->inputs[i].proto.n);
    for (size_t i = 0; i < o->n_nodes; i++) {
        if (p->node[i] && attribute_external(o, &o->nodes[i]))
            return hapi_err_set(err, HAPI_EUNSUPPORTED, 0, "node \"%.150s\": external data in an attribute",
                                o->nodes[i].name);
        if (p->node[i])
            hapi_pb_put_bytes(g, G_NODE, o->nodes[i].proto.p, o->nodes[i].proto.n);
    }
    for (uint32_t i = 0; i < cut->n_tensors; i++)
        put_output(g, &cut->tensors[i]);
    for (size_t i = 0; i < o->n_values; i++) {
        const struct hapi_onnx_tensor *t =
            p->value[i] && o->values[i].tensor >= 0 ? &o->tensors[o->values[i].tensor] : NULL;
        if (t && t->external)
            put_embedded(g, G_INITIALIZER, t, t->name);
        else if (t)
            hapi_pb_put_bytes(g, G_INITIALIZER, t->proto.p, t->proto.n);
    }
    return 0;
}

/* Ranges of what is in the prefix; without any, no byte more. */
static void put_ranges(struct hapi_pb_out *model, const struct hapi_onnx *o, const struct parts *p)
{
    const struct hapi_ranges *r = &o->ranges;
    bool *keep = calloc(r->n + 1, sizeof *keep);

    for (size_t i = 0; keep && i < r->n; i++) {
        int v = hapi_onnx_find(o, r->list[i].name, strlen(r->list[i].name));
        keep[i] = v >= 0 && p->value[v];
    }
    if (keep)
        hapi_ranges_put(model, r->list, keep, r->n);
    model->failed |= !keep;
    free(keep);
}

int hapi_model_prefix_bytes(struct hapi_model *m, const char *cut_id, void **bytes, size_t *size,
                            struct hapi_err *err)
{
    struct hapi_pb_out graph = {.p = NULL}, model = {.p = NULL}, opset = {.p = NULL};
    const struct hapi_onnx *o = &m->onnx;
    struct parts p = {.value = NULL};
    const struct hapi_cut *cut;
    int rc;

    if (!cut_id)
        return hapi_err_set(err, HAPI_EINVAL, 0, "no cut given");
    rc = hapi_model_cut_find(m, cut_id, &cut, err);
    if (rc)
        return rc;
    rc = mark(o, cut, &p) ? put_graph(&graph, o, cut, &p, err) : HAPI_ENOMEM;
    if (rc)
        goto out;
    /* From IR 4 on initializers need not be inputs, which here they are not. */
    hapi_pb_put_int(&model, M_IR, (uint64_t)(o->ir < 4 ? 4 : o->ir));
    hapi_pb_put_string(&model, M_PRODUCER, "hapi");
    hapi_pb_put_bytes(&model, M_GRAPH, graph.p, graph.n);
    hapi_pb_put_int(&opset, 2, (uint64_t)o->opset);
    hapi_pb_put_bytes(&model, M_OPSET, opset.p, opset.n);
    put_ranges(&model, o, &p);
    if (graph.failed || model.failed || opset.failed)
        rc = HAPI_ENOMEM;
out:
    if (rc == HAPI_ENOMEM)
        hapi_err_set(err, rc, 0, "no memory for the prefix up to \"%.200s\"", cut_id);
    free(p.value);
    free(p.node);
    free(opset.p);
    free(graph.p);
    if (rc) {
        free(model.p);
        return rc;
    }
    *bytes = model.p;
    *size = model.n;
    return 0;
}
