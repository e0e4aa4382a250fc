#include "onnx.h"

#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

/* Field numbers of ModelProto, GraphProto, NodeProto, ValueInfoProto and what hangs below. */
enum { M_IR = 1, M_GRAPH = 7, M_OPSET = 8, M_METADATA = 14, M_FUNCTIONS = 25 };
enum { G_NODE = 1, G_INITIALIZER = 5, G_INPUT = 11, G_OUTPUT = 12, G_SPARSE = 15 };
enum { N_INPUT = 1, N_OUTPUT = 2, N_NAME = 3, N_OP = 4, N_ATTRIBUTE = 5, N_DOMAIN = 7 };

/* Attributes of one node beyond this are no use and make the search for duplicates slow. */
enum { ATTRS_MAX = 64 };

/* Arguments of "%.*s" for a view. */
#define CLIPPED(v) (int)((v).n < 100 ? (v).n : 100), (v).n ? (const char *)(v).p : ""

static int too_big(struct hapi_err *err)
{
    return hapi_err_set(err, HAPI_ETOOBIG, 0, "the model needs more than the limit of the parser's memory");
}

int hapi_onnx_name(struct hapi_onnx *o, struct hapi_view v, const char **out, struct hapi_err *err)
{
    if (v.n > HAPI_ONNX_NAME_MAX)
        return hapi_err_set(err, HAPI_ETOOBIG, 0, "a name of %zu bytes (limit %d)", v.n, HAPI_ONNX_NAME_MAX);
    for (size_t i = 0; i < v.n; i++)
        if (v.p[i] < 0x20 || v.p[i] == 0x7f)
            return hapi_err_set(err, HAPI_EFORMAT, 0, "control character in a name");
    *out = hapi_arena_strndup(o->arena, v.n ? (const char *)v.p : "", v.n);
    return *out ? 0 : too_big(err);
}

/* ------------------------------------------------------------------ names */

/* Keyed, so that a file cannot be made whose names all fall into one bucket. */
static uint64_t hash(const uint64_t seed[2], const char *s, size_t n)
{
    uint64_t h = seed[0] ^ n, w = 0;

    for (size_t i = 0; i < n; i += 8) {
        size_t k = n - i < 8 ? n - i : 8;
        w = 0;
        memcpy(&w, s + i, k);
        unsigned __int128 m = (unsigned __int128)(h ^ w) * (seed[1] | 1);
        h = (uint64_t)m ^ (uint64_t)(m >> 64) ^ seed[0];
    }
    return h ^ h >> 29;
}

int hapi_onnx_find(const struct hapi_onnx *o, const char *name, size_t n)
{
    if (!o->n_buckets)
        return -1;
    for (int i = o->buckets[hash(o->seed, name, n) & (o->n_buckets - 1)]; i >= 0; i = o->values[i].next)
        if (strlen(o->values[i].name) == n && !memcmp(o->values[i].name, name, n))
            return i;
    return -1;
}

/* The value of that name, made when there is none. values[] was sized by counting all names. */
static int intern(struct hapi_onnx *o, struct hapi_view v, int *out, struct hapi_err *err)
{
    int i = hapi_onnx_find(o, v.n ? (const char *)v.p : "", v.n), rc;
    struct hapi_onnx_value *value;
    int *bucket;

    if (i < 0) {
        i = (int)o->n_values;
        value = &o->values[i];
        rc = hapi_onnx_name(o, v, &value->name, err);
        if (rc)
            return rc;
        bucket = &o->buckets[hash(o->seed, value->name, v.n) & (o->n_buckets - 1)];
        value->producer = value->tensor = value->input = -1;
        value->next = *bucket;
        *bucket = i;
        o->n_values++;
    }
    *out = i;
    return 0;
}

static int define(struct hapi_onnx *o, struct hapi_view name, const char *what, int *out,
                  struct hapi_err *err)
{
    int rc;

    if (!name.n)
        return hapi_err_set(err, HAPI_EFORMAT, 0, "%s without a name", what);
    rc = intern(o, name, out, err);
    if (rc)
        return rc;
    struct hapi_onnx_value *v = &o->values[*out];
    if (v->producer >= 0 || v->tensor >= 0 || v->input >= 0)
        return hapi_err_set(err, HAPI_EFORMAT, 0, "%s \"%.200s\": the name is defined twice", what, v->name);
    return 0;
}

/* ------------------------------------------------------------------ nodes */

static enum hapi_op_kind op_find(struct hapi_view name, int64_t opset)
{
    static const struct {
        const char *name;
        int64_t since, until;
    } ops[] = {
#define X(kind, text, since, until) [HAPI_OP_##kind] = {text, since, until},
        HAPI_ONNX_OPS(X)
#undef X
    };
    for (size_t i = 1; i < sizeof ops / sizeof *ops; i++)
        if (strlen(ops[i].name) == name.n && !memcmp(ops[i].name, name.p, name.n))
            return opset >= ops[i].since && opset <= ops[i].until ? (enum hapi_op_kind)i : HAPI_OP_NONE;
    return HAPI_OP_NONE;
}

struct node_scan {
    struct hapi_view name, op, domain;
    size_t n_in, n_out, n_attrs;
};

static bool scan_node(struct node_scan *s, struct hapi_view proto)
{
    struct hapi_pb_field f;
    int more;

    memset(s, 0, sizeof *s);
    while ((more = hapi_pb_next(&proto, &f)) > 0) {
        if (f.number <= N_DOMAIN && f.wire != HAPI_PB_LEN)
            return false;
        s->n_in += f.number == N_INPUT;
        s->n_out += f.number == N_OUTPUT;
        s->n_attrs += f.number == N_ATTRIBUTE;
        if (f.number == N_NAME)
            s->name = f.bytes;
        else if (f.number == N_OP)
            s->op = f.bytes;
        else if (f.number == N_DOMAIN)
            s->domain = f.bytes;
    }
    return more == 0;
}

static bool default_domain(struct hapi_view v)
{
    return !v.n || (v.n == 7 && !memcmp(v.p, "ai.onnx", 7));
}

static int read_edges(struct hapi_onnx *o, struct hapi_onnx_node *n, const struct node_scan *s,
                      struct hapi_err *err)
{
    int *in = hapi_arena_array(o->arena, s->n_in, sizeof *in);
    int *out = hapi_arena_array(o->arena, s->n_out, sizeof *out);
    struct hapi_view rest = n->proto;
    struct hapi_pb_field f;
    int rc = 0, v;

    if ((s->n_in && !in) || (s->n_out && !out))
        return too_big(err);
    while (!rc && hapi_pb_next(&rest, &f) > 0) {
        v = HAPI_NO_VALUE;
        if (f.number == N_INPUT) {
            rc = f.bytes.n ? intern(o, f.bytes, &v, err) : 0;
            in[n->n_in++] = v;
        } else if (f.number == N_OUTPUT) {
            rc = f.bytes.n ? define(o, f.bytes, "node output", &v, err) : 0;
            if (!rc && v >= 0)
                o->values[v].producer = (int)(n - o->nodes);
            out[n->n_out++] = v;
        }
    }
    n->in = in;
    n->out = out;
    /* Optional ones left out at the end are as if they were not there. */
    while (n->n_in && in[n->n_in - 1] == HAPI_NO_VALUE)
        n->n_in--;
    while (n->n_out && out[n->n_out - 1] == HAPI_NO_VALUE)
        n->n_out--;
    return rc;
}

static int read_node(struct hapi_onnx *o, struct hapi_view proto, struct hapi_err *err)
{
    struct hapi_onnx_node *n = &o->nodes[o->n_nodes];
    struct node_scan s;
    int rc;

    if (!scan_node(&s, proto))
        return hapi_err_set(err, HAPI_EFORMAT, 0, "node %zu is malformed", o->n_nodes);
    n->proto = proto;
    rc = hapi_onnx_name(o, s.name, &n->name, err);
    if (rc)
        return rc;
    n->op = default_domain(s.domain) ? op_find(s.op, o->opset) : HAPI_OP_NONE;
    if (n->op == HAPI_OP_NONE && s.n_attrs <= ATTRS_MAX) {
        /* Attributes first: a file that nests subgraphs without end is malformed, not just unsupported. */
        rc = hapi_onnx_attrs(o, n, s.n_attrs, err);
        if (rc == HAPI_EFORMAT)
            goto fail;
        return hapi_err_set(err, HAPI_EUNSUPPORTED, 0,
                            "node %zu \"%.150s\": op %.*s%s%.*s is not supported (opset %lld)", o->n_nodes,
                            n->name, CLIPPED(s.domain), default_domain(s.domain) ? "" : ".", CLIPPED(s.op),
                            (long long)o->opset);
    }
    if (s.n_attrs > ATTRS_MAX) {
        rc = hapi_err_set(err, HAPI_ETOOBIG, 0, "%zu attributes (limit %d)", s.n_attrs, ATTRS_MAX);
        goto fail;
    }
    rc = hapi_onnx_attrs(o, n, s.n_attrs, err);
    if (!rc)
        rc = read_edges(o, n, &s, err);
    if (!rc && !n->n_out)
        rc = hapi_err_set(err, HAPI_EFORMAT, 0, "no output");
    if (rc)
        goto fail;
    o->n_nodes++;
    return 0;
fail:
    hapi_err_context(err, "node %zu \"%.100s\" (%.*s)", o->n_nodes, n->name, CLIPPED(s.op));
    return rc;
}

/* ------------------------------------------------------------------ inputs and outputs */

/* TensorShapeProto.Dimension: 1 dim_value, 2 dim_param. */
static int read_dim(struct hapi_onnx *o, struct hapi_onnx_io *io, struct hapi_view dim, struct hapi_err *err)
{
    struct hapi_pb_field f;
    int more, rc;

    if (io->rank == HAPI_MAX_RANK)
        return hapi_err_set(err, HAPI_EUNSUPPORTED, 0, "more than %d dims", HAPI_MAX_RANK);
    io->dim[io->rank] = -1;
    io->param[io->rank] = "";
    while ((more = hapi_pb_next(&dim, &f)) > 0) {
        if (f.number == 1 && f.wire == HAPI_PB_VARINT && f.value <= INT64_MAX) {
            io->dim[io->rank] = (int64_t)f.value;
        } else if (f.number == 2 && f.wire == HAPI_PB_LEN) {
            rc = hapi_onnx_name(o, f.bytes, &io->param[io->rank], err);
            if (rc)
                return rc;
        } else if (f.number == 1 && f.wire == HAPI_PB_VARINT && (int64_t)f.value != -1) {
            return hapi_err_set(err, HAPI_EFORMAT, 0, "negative dim");
        }
    }
    io->rank++;
    return more < 0 ? hapi_err_set(err, HAPI_EFORMAT, 0, "malformed shape") : 0;
}

/* TypeProto.Tensor: 1 elem_type, 2 shape { repeated 1 dim }. */
static int read_tensor_type(struct hapi_onnx *o, struct hapi_onnx_io *io, struct hapi_view type,
                            struct hapi_err *err)
{
    struct hapi_pb_field f, dim;
    int more, rc;

    while ((more = hapi_pb_next(&type, &f)) > 0) {
        if (f.number == 1 && f.wire == HAPI_PB_VARINT) {
            io->dtype = hapi_onnx_dtype(f.value);
            if (f.value && !io->dtype)
                return hapi_err_set(err, HAPI_EUNSUPPORTED, 0, "element type %llu",
                                    (unsigned long long)f.value);
        } else if (f.number == 2 && f.wire == HAPI_PB_LEN) {
            io->rank = 0;
            while ((more = hapi_pb_next(&f.bytes, &dim)) > 0) {
                rc = dim.number == 1 && dim.wire == HAPI_PB_LEN ? read_dim(o, io, dim.bytes, err) : 0;
                if (rc)
                    return rc;
            }
            if (more < 0)
                break;
        }
    }
    return more < 0 ? hapi_err_set(err, HAPI_EFORMAT, 0, "malformed type") : 0;
}

/* ValueInfoProto: 1 name, 2 type { 1 tensor_type }. */
static int read_io(struct hapi_onnx *o, struct hapi_onnx_io *io, struct hapi_view proto,
                   struct hapi_view *name, struct hapi_err *err)
{
    struct hapi_view type = {NULL, 0};
    struct hapi_pb_field f;
    int more, rc;

    *name = type;
    *io = (struct hapi_onnx_io){.rank = -1, .proto = proto}; /* what an initializer's listing left is gone */
    while ((more = hapi_pb_next(&proto, &f)) > 0) {
        if (f.number == 1 && f.wire == HAPI_PB_LEN)
            *name = f.bytes;
        else if (f.number == 2 && f.wire == HAPI_PB_LEN)
            type = f.bytes;
    }
    if (more < 0)
        return hapi_err_set(err, HAPI_EFORMAT, 0, "malformed graph input or output");
    while ((more = hapi_pb_next(&type, &f)) > 0) {
        if (f.number == 1 && f.wire == HAPI_PB_LEN) {
            rc = read_tensor_type(o, io, f.bytes, err);
            if (rc)
                return rc;
        } else if (f.number <= 9) {
            return hapi_err_set(err, HAPI_EUNSUPPORTED, 0, "a graph input or output that is no dense tensor");
        }
    }
    return more < 0 ? hapi_err_set(err, HAPI_EFORMAT, 0, "malformed type") : 0;
}

static int read_input(struct hapi_onnx *o, struct hapi_view proto, struct hapi_err *err)
{
    struct hapi_onnx_io *io = &o->inputs[o->n_inputs];
    struct hapi_view name;
    int rc = read_io(o, io, proto, &name, err), i;

    if (!rc)
        i = hapi_onnx_find(o, name.n ? (const char *)name.p : "", name.n);
    /* Before IR 4 every initializer is listed as an input as well. */
    if (!rc && i >= 0 && o->values[i].tensor >= 0)
        return 0;
    if (!rc)
        rc = define(o, name, "graph input", &io->value, err);
    if (rc)
        return hapi_err_context(err, "graph input \"%.*s\"", CLIPPED(name));
    o->values[io->value].input = (int)o->n_inputs++;
    return 0;
}

static int read_output(struct hapi_onnx *o, struct hapi_view proto, struct hapi_err *err)
{
    struct hapi_onnx_io *io = &o->outputs[o->n_outputs];
    struct hapi_view name;
    int rc = read_io(o, io, proto, &name, err);

    if (!rc) {
        io->value = hapi_onnx_find(o, name.n ? (const char *)name.p : "", name.n);
        if (io->value < 0)
            rc = hapi_err_set(err, HAPI_EFORMAT, 0, "nothing produces it");
        else if (o->values[io->value].output)
            rc = hapi_err_set(err, HAPI_EFORMAT, 0, "listed twice");
        else
            o->values[io->value].output = true;
    }
    if (rc)
        return hapi_err_context(err, "graph output \"%.*s\"", CLIPPED(name));
    o->n_outputs++;
    return 0;
}

static int read_initializer(struct hapi_onnx *o, struct hapi_view proto, struct hapi_err *err)
{
    struct hapi_onnx_tensor *t = &o->tensors[o->n_tensors];
    struct hapi_view name = {NULL, 0};
    int v, rc = hapi_onnx_tensor_parse(t, proto, o->externals, &name, err);

    if (!rc)
        rc = define(o, name, "initializer", &v, err);
    if (rc)
        return hapi_err_context(err, "initializer %zu \"%.*s\"", o->n_tensors, CLIPPED(name));
    t->name = o->values[v].name;
    o->values[v].tensor = (int)o->n_tensors++;
    return 0;
}

/* ------------------------------------------------------------------ graph */

struct counts {
    size_t nodes, initializers, tensors, inputs, outputs, names;
};

static int count_graph(struct counts *c, struct hapi_view graph, const struct hapi_model_limits *limits,
                       struct hapi_err *err)
{
    struct hapi_pb_field f;
    struct node_scan s;
    int more;

    while ((more = hapi_pb_next(&graph, &f)) > 0) {
        if (f.number == G_SPARSE)
            return hapi_err_set(err, HAPI_EUNSUPPORTED, 0, "sparse initializers are not supported");
        if (f.wire != HAPI_PB_LEN)
            continue;
        c->initializers += f.number == G_INITIALIZER;
        c->inputs += f.number == G_INPUT;
        c->outputs += f.number == G_OUTPUT;
        if (f.number != G_NODE)
            continue;
        int64_t tensors = hapi_onnx_attr_tensors(f.bytes);
        if (tensors < 0 || !scan_node(&s, f.bytes))
            return hapi_err_set(err, HAPI_EFORMAT, 0, "node %zu is malformed", c->nodes);
        if (++c->nodes > limits->nodes)
            return hapi_err_set(err, HAPI_ETOOBIG, 0, "more than %u nodes", limits->nodes);
        c->tensors += (size_t)tensors;
        c->names += s.n_in + s.n_out;
    }
    if (more < 0)
        return hapi_err_set(err, HAPI_EFORMAT, 0, "malformed graph");
    if (!c->outputs)
        return hapi_err_set(err, HAPI_EFORMAT, 0, "the graph has no output");
    c->names += c->initializers + c->inputs;
    return 0;
}

static int allocate(struct hapi_onnx *o, const struct counts *c, struct hapi_err *err)
{
    size_t tensors = c->initializers + c->tensors;

    if (c->names > INT32_MAX / 2 || tensors > INT32_MAX / 2)
        return too_big(err);
    for (o->n_buckets = 16; o->n_buckets < c->names; o->n_buckets *= 2)
        ;
    o->nodes = hapi_arena_array(o->arena, c->nodes, sizeof *o->nodes);
    o->values = hapi_arena_array(o->arena, c->names, sizeof *o->values);
    o->tensors = hapi_arena_array(o->arena, tensors, sizeof *o->tensors);
    o->inputs = hapi_arena_array(o->arena, c->inputs, sizeof *o->inputs);
    o->outputs = hapi_arena_array(o->arena, c->outputs, sizeof *o->outputs);
    o->buckets = hapi_arena_array(o->arena, o->n_buckets, sizeof *o->buckets);
    if (!o->nodes || !o->values || !o->tensors || !o->inputs || !o->outputs || !o->buckets) {
        o->n_buckets = 0;
        return too_big(err);
    }
    memset(o->buckets, 0xff, o->n_buckets * sizeof *o->buckets);
    if (getrandom(o->seed, sizeof o->seed, 0) != sizeof o->seed)
        return hapi_err_set(err, HAPI_ESYS, 0, "no random numbers");
    return 0;
}

/* Every field `number` of the graph through one of the readers above. */
static int each(struct hapi_onnx *o, struct hapi_view graph, uint32_t number,
                int (*read)(struct hapi_onnx *, struct hapi_view, struct hapi_err *), struct hapi_err *err)
{
    struct hapi_pb_field f;
    int rc = 0;

    while (!rc && hapi_pb_next(&graph, &f) > 0)
        if (f.number == number && f.wire == HAPI_PB_LEN)
            rc = read(o, f.bytes, err);
    return rc;
}

static int check_edges(const struct hapi_onnx *o, struct hapi_err *err)
{
    for (size_t i = 0; i < o->n_nodes; i++)
        for (int k = 0; k < o->nodes[i].n_in; k++) {
            int v = o->nodes[i].in[k];
            if (v < 0)
                continue;
            const struct hapi_onnx_value *value = &o->values[v];
            if (value->producer < 0 && value->tensor < 0 && value->input < 0)
                return hapi_err_set(err, HAPI_EFORMAT, 0,
                                    "node %zu \"%.150s\" (%s): nothing produces its input \"%.150s\"", i,
                                    o->nodes[i].name, hapi_op_name(o->nodes[i].op), value->name);
        }
    return 0;
}

static int read_graph(struct hapi_onnx *o, struct hapi_view graph, const struct hapi_model_limits *limits,
                      struct hapi_err *err)
{
    struct counts c = {0};
    int rc = count_graph(&c, graph, limits, err);

    rc = rc ? rc : allocate(o, &c, err);
    rc = rc ? rc : each(o, graph, G_INITIALIZER, read_initializer, err);
    o->n_initializers = o->n_tensors;
    rc = rc ? rc : each(o, graph, G_INPUT, read_input, err);
    rc = rc ? rc : each(o, graph, G_NODE, read_node, err);
    rc = rc ? rc : each(o, graph, G_OUTPUT, read_output, err);
    rc = rc ? rc : check_edges(o, err);
    for (size_t i = 0; !rc && i < o->n_outputs; i++) {
        const struct hapi_onnx_value *v = &o->values[o->outputs[i].value];
        if (v->producer < 0 && v->tensor < 0 && v->input < 0)
            rc = hapi_err_set(err, HAPI_EFORMAT, 0, "graph output \"%.200s\": nothing produces it", v->name);
    }
    return rc ? rc : hapi_onnx_sort(o, err);
}

/* OperatorSetIdProto: 1 domain, 2 version. */
static int read_opset(struct hapi_onnx *o, struct hapi_view proto, struct hapi_err *err)
{
    struct hapi_view domain = {NULL, 0};
    struct hapi_pb_field f;
    int64_t version = 0;
    int more;

    while ((more = hapi_pb_next(&proto, &f)) > 0) {
        if (f.number == 1 && f.wire == HAPI_PB_LEN)
            domain = f.bytes;
        else if (f.number == 2 && f.wire == HAPI_PB_VARINT)
            version = (int64_t)f.value;
    }
    if (more < 0)
        return hapi_err_set(err, HAPI_EFORMAT, 0, "malformed opset_import");
    if (!default_domain(domain))
        return 0; /* harmless unless a node is of it */
    if (o->opset && o->opset != version)
        return hapi_err_set(err, HAPI_EFORMAT, 0, "two opsets for the default domain");
    if (version < 1 || version > HAPI_ONNX_OPSET_MAX)
        return hapi_err_set(err, version < 1 ? HAPI_EFORMAT : HAPI_EUNSUPPORTED, 0,
                            "opset %lld (1 to %d are supported)", (long long)version, HAPI_ONNX_OPSET_MAX);
    o->opset = version;
    return 0;
}

int hapi_onnx_read(struct hapi_onnx *o, struct hapi_view model, const struct hapi_model_limits *limits,
                   struct hapi_err *err)
{
    struct hapi_view graph = {NULL, 0};
    struct hapi_pb_field f;
    int more, rc;

    if (!model.n)
        return hapi_err_set(err, HAPI_EFORMAT, 0, "empty, not an ONNX model");
    while ((more = hapi_pb_next(&model, &f)) > 0) {
        if (f.number == M_IR && f.wire == HAPI_PB_VARINT)
            o->ir = (int64_t)f.value;
        if (f.number == M_FUNCTIONS)
            return hapi_err_set(err, HAPI_EUNSUPPORTED, 0, "model-local functions are not supported");
        if (f.wire != HAPI_PB_LEN)
            continue;
        if (f.number == M_OPSET && (rc = read_opset(o, f.bytes, err)))
            return rc;
        if (f.number == M_METADATA && (rc = hapi_ranges_read(&o->ranges, f.bytes, o->arena, err)))
            return rc;
        if (f.number == M_GRAPH && graph.p)
            return hapi_err_set(err, HAPI_EFORMAT, 0, "two graphs");
        if (f.number == M_GRAPH)
            graph = f.bytes;
    }
    if (more < 0)
        return hapi_err_set(err, HAPI_EFORMAT, 0, "not an ONNX model, or cut off (malformed protobuf)");
    if (o->ir < 1 || !graph.p)
        return hapi_err_set(err, HAPI_EFORMAT, 0, "not an ONNX model, or cut off (no %s)",
                            graph.p ? "ir_version" : "graph");
    if (!o->opset)
        return hapi_err_set(err, HAPI_EFORMAT, 0,
                            "no opset_import for the default domain: not an ONNX model, or cut off");
    return read_graph(o, graph, limits, err);
}

void hapi_onnx_fini(struct hapi_onnx *o)
{
    for (size_t i = 0; i < o->n_tensors; i++)
        free(o->tensors[i].copy);
}
