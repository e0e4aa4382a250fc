#include <string.h>

#include "onnx.h"

/* Field numbers of AttributeProto and of those parts of NodeProto and GraphProto that nest. */
enum {
    A_NAME = 1,
    A_F = 2,
    A_I = 3,
    A_S = 4,
    A_T = 5,
    A_G = 6,
    A_FLOATS = 7,
    A_INTS = 8,
    A_STRINGS = 9,
    A_TENSORS = 10,
    A_GRAPHS = 11,
    A_TYPE_PROTO = 14,
    A_TYPE = 20,
    A_REF = 21,
    A_SPARSE = 22,
    NODE_ATTRIBUTE = 5,
    GRAPH_NODE = 1
};

/* Values of AttributeProto.type that we take. */
enum { TYPE_FLOAT = 1, TYPE_INT = 2, TYPE_STRING = 3, TYPE_TENSOR = 4, TYPE_FLOATS = 6, TYPE_INTS = 7 };

enum { SUBGRAPH_DEPTH = 8 };

/* An attribute means the same in every op that has it, but for the two exceptions in wanted_type(). What is
 * not listed is not read by anyone, and may be of any type. */
static const struct {
    const char *name;
    enum hapi_attr_type type;
} known[] = {
    {"allowzero", HAPI_ATTR_INT},
    {"alpha", HAPI_ATTR_FLOAT},
    {"antialias", HAPI_ATTR_INT},
    {"approximate", HAPI_ATTR_STRING},
    {"auto_pad", HAPI_ATTR_STRING},
    {"axes", HAPI_ATTR_INTS},
    {"axis", HAPI_ATTR_INT},
    {"batch_dims", HAPI_ATTR_INT},
    {"beta", HAPI_ATTR_FLOAT},
    {"bias", HAPI_ATTR_FLOAT},
    {"blocksize", HAPI_ATTR_INT},
    {"broadcast", HAPI_ATTR_INT},
    {"ceil_mode", HAPI_ATTR_INT},
    {"coordinate_transformation_mode", HAPI_ATTR_STRING},
    {"count_include_pad", HAPI_ATTR_INT},
    {"cubic_coeff_a", HAPI_ATTR_FLOAT},
    {"dilations", HAPI_ATTR_INTS},
    {"end", HAPI_ATTR_INT},
    {"ends", HAPI_ATTR_INTS},
    {"epsilon", HAPI_ATTR_FLOAT},
    {"exclude_outside", HAPI_ATTR_INT},
    {"exclusive", HAPI_ATTR_INT},
    {"extrapolation_value", HAPI_ATTR_FLOAT},
    {"fmod", HAPI_ATTR_INT},
    {"gamma", HAPI_ATTR_FLOAT},
    {"group", HAPI_ATTR_INT},
    {"is_test", HAPI_ATTR_INT},
    {"keep_aspect_ratio_policy", HAPI_ATTR_STRING},
    {"keepdims", HAPI_ATTR_INT},
    {"kernel_shape", HAPI_ATTR_INTS},
    {"max", HAPI_ATTR_FLOAT},
    {"min", HAPI_ATTR_FLOAT},
    {"mode", HAPI_ATTR_STRING},
    {"momentum", HAPI_ATTR_FLOAT},
    {"nearest_mode", HAPI_ATTR_STRING},
    {"noop_with_empty_axes", HAPI_ATTR_INT},
    {"num_groups", HAPI_ATTR_INT},
    {"num_outputs", HAPI_ATTR_INT},
    {"output_padding", HAPI_ATTR_INTS},
    {"output_shape", HAPI_ATTR_INTS},
    {"paddings", HAPI_ATTR_INTS},
    {"pads", HAPI_ATTR_INTS},
    {"perm", HAPI_ATTR_INTS},
    {"ratio", HAPI_ATTR_FLOAT},
    {"reduction", HAPI_ATTR_STRING},
    {"reverse", HAPI_ATTR_INT},
    {"scales", HAPI_ATTR_FLOATS},
    {"select_last_index", HAPI_ATTR_INT},
    {"shape", HAPI_ATTR_INTS},
    {"size", HAPI_ATTR_INT},
    {"spatial", HAPI_ATTR_INT},
    {"split", HAPI_ATTR_INTS},
    {"start", HAPI_ATTR_INT},
    {"starts", HAPI_ATTR_INTS},
    {"storage_order", HAPI_ATTR_INT},
    {"strides", HAPI_ATTR_INTS},
    {"to", HAPI_ATTR_INT},
    {"training_mode", HAPI_ATTR_INT},
    {"transA", HAPI_ATTR_INT},
    {"transB", HAPI_ATTR_INT},
    {"upper", HAPI_ATTR_INT},
    {"value", HAPI_ATTR_TENSOR},
    {"value_float", HAPI_ATTR_FLOAT},
    {"value_floats", HAPI_ATTR_FLOATS},
    {"value_int", HAPI_ATTR_INT},
    {"value_ints", HAPI_ATTR_INTS},
};

static const char *const type_names[] = {
    [HAPI_ATTR_INT] = "an integer", [HAPI_ATTR_FLOAT] = "a float", [HAPI_ATTR_STRING] = "a string",
    [HAPI_ATTR_INTS] = "integers",  [HAPI_ATTR_FLOATS] = "floats", [HAPI_ATTR_TENSOR] = "a tensor",
};

static int wanted_type(const struct hapi_onnx_node *n, const char *name)
{
    if (n->op == HAPI_OP_Pad && !strcmp(name, "value"))
        return HAPI_ATTR_FLOAT;
    if (n->op == HAPI_OP_Cast && !strcmp(name, "to"))
        return 0; /* a string before opset 6: shape inference looks */
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (!strcmp(name, known[i].name))
            return known[i].type;
    return 0;
}

/* How deep subgraphs nest below the GraphProto `graph`, found without ever going deeper than the bound.
 * Each byte is looked at once a level: linear in the file's size. */
static int subgraph_depth(struct hapi_view graph, int level)
{
    struct hapi_pb_field node, attr, f;
    int deepest = level;

    if (level > SUBGRAPH_DEPTH)
        return level;
    while (hapi_pb_next(&graph, &node) > 0) {
        if (node.number != GRAPH_NODE || node.wire != HAPI_PB_LEN)
            continue;
        while (hapi_pb_next(&node.bytes, &attr) > 0) {
            if (attr.number != NODE_ATTRIBUTE || attr.wire != HAPI_PB_LEN)
                continue;
            while (deepest <= SUBGRAPH_DEPTH && hapi_pb_next(&attr.bytes, &f) > 0)
                if ((f.number == A_G || f.number == A_GRAPHS) && f.wire == HAPI_PB_LEN) {
                    int d = subgraph_depth(f.bytes, level + 1);
                    deepest = d > deepest ? d : deepest;
                }
        }
    }
    return deepest;
}

/* The raw parts of one AttributeProto. */
struct scan {
    struct hapi_view name, s, t;
    uint64_t type, i;
    float f;
    bool has_f, has_i, has_s, has_t, other;
    size_t n_ints, n_floats;
};

static bool count_ints(struct scan *s, const struct hapi_pb_field *f)
{
    int64_t n = f->wire == HAPI_PB_LEN ? hapi_pb_count(f->bytes) : 1;

    if (n < 0 || (f->wire != HAPI_PB_LEN && f->wire != HAPI_PB_VARINT))
        return false;
    s->n_ints += (size_t)n;
    return true;
}

static bool count_floats(struct scan *s, const struct hapi_pb_field *f)
{
    if (f->wire == HAPI_PB_LEN ? f->bytes.n % 4 != 0 : f->wire != HAPI_PB_I32)
        return false;
    s->n_floats += f->wire == HAPI_PB_LEN ? f->bytes.n / 4 : 1;
    return true;
}

/* HAPI_EFORMAT, or HAPI_EUNSUPPORTED for a subgraph. */
static int scan_field(struct scan *s, const struct hapi_pb_field *f)
{
    uint32_t bits = (uint32_t)f->value;
    bool len = f->wire == HAPI_PB_LEN, ok = true;

    switch (f->number) {
    case A_NAME:
        s->name = f->bytes;
        ok = len;
        break;
    case A_F:
        memcpy(&s->f, &bits, sizeof bits);
        s->has_f = true;
        ok = f->wire == HAPI_PB_I32;
        break;
    case A_I:
        s->i = f->value;
        s->has_i = true;
        ok = f->wire == HAPI_PB_VARINT;
        break;
    case A_S:
        s->s = f->bytes;
        s->has_s = true;
        ok = len;
        break;
    case A_T:
        ok = len && !s->has_t;
        s->t = f->bytes;
        s->has_t = true;
        break;
    case A_FLOATS:
        ok = count_floats(s, f);
        break;
    case A_INTS:
        ok = count_ints(s, f);
        break;
    case A_TYPE:
        s->type = f->value;
        ok = f->wire == HAPI_PB_VARINT;
        break;
    case A_G:
    case A_GRAPHS:
        return len && subgraph_depth(f->bytes, 1) > SUBGRAPH_DEPTH ? HAPI_EFORMAT : HAPI_EUNSUPPORTED;
    case A_STRINGS:
    case A_TENSORS:
    case A_TYPE_PROTO:
    case A_REF:
    case A_SPARSE:
        s->other = true;
        break;
    default:
        break;
    }
    return ok ? 0 : HAPI_EFORMAT;
}

/* The attribute's type: as said, or (before IR 3) by what is there. 0: none of ours. */
static int type_of(const struct scan *s)
{
    switch (s->type) {
    case 0:
        return s->n_ints     ? HAPI_ATTR_INTS
               : s->n_floats ? HAPI_ATTR_FLOATS
               : s->has_t    ? HAPI_ATTR_TENSOR
               : s->has_s    ? HAPI_ATTR_STRING
               : s->has_f    ? HAPI_ATTR_FLOAT
               : s->has_i    ? HAPI_ATTR_INT
               : s->other    ? 0
                             : HAPI_ATTR_INTS; /* an empty list */
    case TYPE_FLOAT:
        return HAPI_ATTR_FLOAT;
    case TYPE_INT:
        return HAPI_ATTR_INT;
    case TYPE_STRING:
        return HAPI_ATTR_STRING;
    case TYPE_TENSOR:
        return s->has_t ? HAPI_ATTR_TENSOR : 0;
    case TYPE_FLOATS:
        return HAPI_ATTR_FLOATS;
    case TYPE_INTS:
        return HAPI_ATTR_INTS;
    default:
        return 0;
    }
}

static int read_ints(struct hapi_onnx *o, struct hapi_attr *a, struct hapi_view proto)
{
    int64_t *ints = hapi_arena_array(o->arena, a->n, sizeof *ints);
    struct hapi_pb_field f;
    size_t at = 0;
    uint64_t v;

    if (a->n && !ints)
        return HAPI_ETOOBIG;
    while (hapi_pb_next(&proto, &f) > 0) {
        if (f.number != A_INTS)
            continue;
        if (f.wire == HAPI_PB_VARINT)
            ints[at++] = (int64_t)f.value;
        else
            while (hapi_pb_varint(&f.bytes, &v))
                ints[at++] = (int64_t)v;
    }
    a->ints = ints;
    return 0;
}

static int read_floats(struct hapi_onnx *o, struct hapi_attr *a, struct hapi_view proto)
{
    float *floats = hapi_arena_array(o->arena, a->n, sizeof *floats);
    struct hapi_pb_field f;
    size_t at = 0;

    if (a->n && !floats)
        return HAPI_ETOOBIG;
    while (hapi_pb_next(&proto, &f) > 0) {
        if (f.number != A_FLOATS)
            continue;
        uint32_t bits = (uint32_t)f.value;
        size_t n = f.wire == HAPI_PB_LEN ? f.bytes.n / 4 : 1;
        if (n)
            memcpy(floats + at, f.wire == HAPI_PB_LEN ? (const void *)f.bytes.p : &bits, 4 * n);
        at += n;
    }
    a->floats = floats;
    return 0;
}

static int read_value(struct hapi_onnx *o, struct hapi_attr *a, const struct scan *s, struct hapi_view proto,
                      struct hapi_err *err)
{
    struct hapi_view unused;
    int rc = 0;

    switch (a->type) {
    case HAPI_ATTR_INT:
        a->i = (int64_t)s->i;
        break;
    case HAPI_ATTR_FLOAT:
        a->f = s->f;
        break;
    case HAPI_ATTR_STRING:
        a->n = s->s.n;
        a->s = hapi_arena_strndup(o->arena, s->s.n ? (const char *)s->s.p : "", s->s.n);
        rc = a->s ? 0 : HAPI_ETOOBIG;
        break;
    case HAPI_ATTR_INTS:
        a->n = s->n_ints;
        rc = read_ints(o, a, proto);
        break;
    case HAPI_ATTR_FLOATS:
        a->n = s->n_floats;
        rc = read_floats(o, a, proto);
        break;
    case HAPI_ATTR_TENSOR:
        a->value = (int)o->n_tensors;
        rc = hapi_onnx_tensor_parse(&o->tensors[o->n_tensors], s->t, o->externals, &unused, err);
        if (rc)
            return hapi_err_context(err, "attribute \"%s\"", a->name);
        o->n_tensors++;
        break;
    }
    return rc ? hapi_err_set(err, rc, 0, "attribute \"%s\": over the limit of the parser's memory", a->name)
              : 0;
}

static int read_attr(struct hapi_onnx *o, const struct hapi_onnx_node *n, struct hapi_attr *a,
                     struct hapi_view proto, struct hapi_err *err)
{
    struct scan s = {.type = 0};
    struct hapi_view rest = proto;
    struct hapi_pb_field f;
    int more, type, wanted, rc = 0;

    while (!rc && (more = hapi_pb_next(&rest, &f)) != 0)
        rc = more < 0 ? HAPI_EFORMAT : scan_field(&s, &f);
    if (rc == HAPI_EUNSUPPORTED)
        return hapi_err_set(err, rc, 0, "an attribute holds a subgraph, which is not supported");
    if (rc)
        return hapi_err_set(err, rc, 0, "malformed attribute, or subgraphs nested deeper than %d",
                            SUBGRAPH_DEPTH);
    rc = hapi_onnx_name(o, s.name, &a->name, err);
    if (rc)
        return hapi_err_context(err, "attribute name");
    type = type_of(&s);
    wanted = wanted_type(n, a->name);
    if (!type)
        return hapi_err_set(err, wanted ? HAPI_EFORMAT : HAPI_EUNSUPPORTED, 0,
                            "attribute \"%s\" has a type that is not supported", a->name);
    /* An empty list does not say of what. */
    if (type == HAPI_ATTR_INTS && !s.n_ints && wanted == HAPI_ATTR_FLOATS && !s.type)
        type = wanted;
    if (wanted && wanted != type)
        return hapi_err_set(err, HAPI_EFORMAT, 0, "attribute \"%s\" is %s where %s is meant", a->name,
                            type_names[type], type_names[wanted]);
    a->type = (enum hapi_attr_type)type;
    return read_value(o, a, &s, proto, err);
}

int hapi_onnx_attrs(struct hapi_onnx *o, struct hapi_onnx_node *n, size_t count, struct hapi_err *err)
{
    struct hapi_attr *attrs = hapi_arena_array(o->arena, count, sizeof *attrs);
    struct hapi_view rest = n->proto;
    struct hapi_pb_field f;

    if (count && !attrs)
        return hapi_err_set(err, HAPI_ETOOBIG, 0, "over the limit of the parser's memory");
    n->attrs = attrs;
    while (hapi_pb_next(&rest, &f) > 0) {
        if (f.number != NODE_ATTRIBUTE)
            continue;
        int rc = read_attr(o, n, &attrs[n->n_attrs], f.bytes, err);
        if (rc)
            return rc;
        for (size_t i = 0; i < n->n_attrs; i++)
            if (!strcmp(attrs[i].name, attrs[n->n_attrs].name))
                return hapi_err_set(err, HAPI_EFORMAT, 0, "attribute \"%s\" twice", attrs[i].name);
        n->n_attrs++;
    }
    return 0;
}

int64_t hapi_onnx_attr_tensors(struct hapi_view node)
{
    struct hapi_pb_field attr, f;
    int64_t n = 0;
    int more;

    while ((more = hapi_pb_next(&node, &attr)) > 0) {
        if (attr.number != NODE_ATTRIBUTE || attr.wire != HAPI_PB_LEN)
            continue;
        while (hapi_pb_next(&attr.bytes, &f) > 0)
            n += f.number == A_T && f.wire == HAPI_PB_LEN;
    }
    return more < 0 ? -1 : n;
}
