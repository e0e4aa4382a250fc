/*
 * What exporters write in many nodes where ONNX has, or later got, one op: LayerNormalization (before opset
 * 17) and Gelu (before 20), by erf and by tanh. The bound graph gets the one op in their place, so that back
 * ends know one form of each.
 *
 * A pattern is a set of nodes found by walking from its rarest one, up to what it is applied to and down to
 * its result. It is replaced when nothing else reads what its nodes make but the last, and no name of theirs
 * is asked for.
 */
#include <math.h>
#include <string.h>

#include "model.h"

enum { NODES_MAX = 16 };

struct match {
    struct hapi_binding *b;
    const int *reader; /* value: a node that reads it, or -1 */
    int nodes[NODES_MAX];
    int n;
    int x, out; /* what the pattern is applied to, and its result */
    bool failed;
};

/* ------------------------------------------------------------------ walking */

static const struct hapi_node *node_at(const struct match *m, int i)
{
    return &m->b->g->nodes[i];
}

static void add(struct match *m, int node)
{
    for (int i = 0; i < m->n; i++)
        if (m->nodes[i] == node)
            return;
    if (m->n == NODES_MAX)
        m->failed = true;
    else
        m->nodes[m->n++] = node;
}

/* The node that makes v when it is an `op`, added to the match; else NULL. */
static const struct hapi_node *made_by(struct match *m, int v, enum hapi_op_kind op)
{
    int p = v < 0 ? -1 : m->b->g->values[v].producer;

    if (p < 0 || node_at(m, p)->op != op)
        return NULL;
    add(m, p);
    return node_at(m, p);
}

/* The one reader of v when it is an `op`, added to the match; else NULL. */
static const struct hapi_node *read_by(struct match *m, int v, enum hapi_op_kind op)
{
    int r = v < 0 || m->b->g->values[v].n_uses != 1 ? -1 : m->reader[v];

    if (r < 0 || node_at(m, r)->op != op)
        return NULL;
    add(m, r);
    return node_at(m, r);
}

static bool number_of(const struct match *m, int v, double *out)
{
    const struct hapi_value *c = v < 0 ? NULL : &m->b->g->values[v];
    const void *data;
    int64_t n;

    if (!c || !hapi_fold_constant(m->b, v) || hapi_shape_elements(&c->shape, &n) || n != 1 ||
        !(data = hapi_fold_data(m->b, v)))
        return false;
    switch (c->dtype) {
    case HAPI_F32:
        *out = (double)*(const float *)data;
        return true;
    case HAPI_F64:
        *out = *(const double *)data;
        return true;
    case HAPI_I64:
        *out = (double)*(const int64_t *)data;
        return true;
    case HAPI_I32:
        *out = *(const int32_t *)data;
        return true;
    default:
        return false;
    }
}

static bool is_number(const struct match *m, int v, double want)
{
    double have;
    return number_of(m, v, &have) && fabs(have - want) < 1e-5 * fabs(want);
}

/* The operand of a two-input node that is not v; -1 when v is none of them. */
static int beside(const struct hapi_node *n, int v)
{
    return !n || n->n_in != 2 ? -1 : n->in[0] == v ? n->in[1] : n->in[1] == v ? n->in[0] : -1;
}

/* The operand beside a constant that is `c`, in either order; -1 when there is none. */
static int beside_number(const struct match *m, const struct hapi_node *n, double c)
{
    if (!n || n->n_in != 2)
        return -1;
    return is_number(m, n->in[1], c) ? n->in[0] : is_number(m, n->in[0], c) ? n->in[1] : -1;
}

/* v as `n times c`, c a constant: what is multiplied. */
static int scaled(struct match *m, int v, double c)
{
    int at = m->n, x = beside_number(m, made_by(m, v, HAPI_OP_Mul), c);

    if (x < 0)
        m->n = at;
    return x;
}

/* Whether v is x * x (or Pow(x, 2)). */
static bool is_square(struct match *m, int v, int x)
{
    int at = m->n;
    const struct hapi_node *n = made_by(m, v, HAPI_OP_Pow);

    if (n && n->in[0] == x && is_number(m, n->in[1], 2))
        return true;
    m->n = at;
    n = made_by(m, v, HAPI_OP_Mul);
    if (n && n->in[0] == x && n->in[1] == x)
        return true;
    m->n = at;
    return false;
}

/* Whether the nodes can go: the last one makes m->out, and nobody else sees what the others make. */
static bool closed(const struct match *m)
{
    const struct hapi_graph *g = m->b->g;

    for (int i = 0; i < m->n; i++) {
        const struct hapi_node *n = node_at(m, m->nodes[i]);
        int reads = 0;
        if (n->n_out != 1)
            return false;
        if (n->out[0] == m->out)
            continue;
        for (int k = 0; k < m->n; k++)
            for (int j = 0; j < node_at(m, m->nodes[k])->n_in; j++)
                reads += node_at(m, m->nodes[k])->in[j] == n->out[0];
        if (m->b->kept[n->out[0]] || reads != g->values[n->out[0]].n_uses)
            return false;
    }
    return !m->failed;
}

static bool same_f32(const struct match *m)
{
    const struct hapi_value *x = &m->b->g->values[m->x], *y = &m->b->g->values[m->out];
    return x->dtype == HAPI_F32 && y->dtype == HAPI_F32 && hapi_shape_equal(&x->shape, &y->shape);
}

/* ------------------------------------------------------------------ replacing */

static int no_memory(struct hapi_binding *b)
{
    return hapi_err_set(b->err, HAPI_ETOOBIG, 0, "the bound graph needs more memory than the model's limit");
}

/* The node that made m->out becomes `op`; the others go. */
static int replace(const struct match *m, enum hapi_op_kind op, const int *in, int n_in,
                   const struct hapi_attr *attrs, size_t n_attrs)
{
    struct hapi_graph *g = m->b->g;
    int *list = hapi_arena_array(g->arena, (size_t)n_in, sizeof *list);
    struct hapi_attr *own = hapi_arena_array(g->arena, n_attrs, sizeof *own);

    if (!list || (n_attrs && !own))
        return no_memory(m->b);
    memcpy(list, in, (size_t)n_in * sizeof *list);
    if (n_attrs)
        memcpy(own, attrs, n_attrs * sizeof *own);
    for (int i = 0; i < m->n; i++)
        if (node_at(m, m->nodes[i])->out[0] != m->out)
            g->nodes[m->nodes[i]].op = HAPI_OP_NONE;
    struct hapi_node *n = &g->nodes[g->values[m->out].producer];
    n->op = op;
    n->in = list;
    n->n_in = n_in;
    n->attrs = own;
    n->n_attrs = n_attrs;
    return 0;
}

/* ------------------------------------------------------------------ Gelu */

/* From `a`, which is 1 + erf or 1 + tanh, to x * 0.5 * a in any order: into m->out. */
static bool gelu_tail(struct match *m, int a)
{
    const struct hapi_node *n = read_by(m, a, HAPI_OP_Mul), *last = n;
    int other;

    if (!n)
        return false;
    if (beside(n, a) == m->x || is_number(m, beside(n, a), 0.5)) { /* then the one of the two that is left */
        bool half = beside(n, a) != m->x;
        last = read_by(m, n->out[0], HAPI_OP_Mul);
        other = beside(last, n->out[0]);
        if (other < 0 || (half ? other != m->x : !is_number(m, other, 0.5)))
            return false;
    } else if (scaled(m, beside(n, a), 0.5) != m->x) {
        return false;
    }
    m->out = last->out[0];
    return true;
}

/* erf(x / sqrt(2)) */
static bool gelu_erf(struct match *m, const struct hapi_node *erf_node)
{
    const struct hapi_node *div = made_by(m, erf_node->in[0], HAPI_OP_Div);

    m->x =
        div ? (is_number(m, div->in[1], M_SQRT2) ? div->in[0] : -1) : scaled(m, erf_node->in[0], M_SQRT1_2);
    return m->x >= 0;
}

/* Whether v is x * x * x, in any order of the two products, or Pow(x, 3). */
static bool is_cube(struct match *m, int v, int x)
{
    int at = m->n;
    const struct hapi_node *n = made_by(m, v, HAPI_OP_Pow);

    if (n && n->in[0] == x && is_number(m, n->in[1], 3))
        return true;
    m->n = at;
    n = made_by(m, v, HAPI_OP_Mul);
    if (n && beside(n, x) >= 0 && is_square(m, beside(n, x), x))
        return true;
    m->n = at;
    return false;
}

/* v = x + 0.044715 * x^3 */
static bool cubic_sum(struct match *m, int v)
{
    const struct hapi_node *n = made_by(m, v, HAPI_OP_Add);

    for (int k = 0; n && k < 2; k++) {
        int at = m->n, cube = scaled(m, n->in[1 - k], 0.044715);
        m->x = n->in[k];
        if (cube >= 0 && is_cube(m, cube, m->x))
            return true;
        m->n = at;
    }
    return false;
}

/* v = 1 + 0.044715 * x * x, in any order of the products. */
static bool quadratic(struct match *m, int v, int x)
{
    int k = beside_number(m, made_by(m, v, HAPI_OP_Add), 1), at = m->n, s = scaled(m, k, 0.044715);

    if (s >= 0 && is_square(m, s, x))
        return true;
    m->n = at;
    const struct hapi_node *n = k < 0 ? NULL : made_by(m, k, HAPI_OP_Mul);
    return n && beside(n, x) >= 0 && scaled(m, beside(n, x), 0.044715) == x;
}

/* tanh(sqrt(2 / pi) * (x + 0.044715 * x^3)), also as tanh(sqrt(2 / pi) * x * (1 + 0.044715 * x * x)) */
static bool gelu_tanh(struct match *m, const struct hapi_node *tanh_node)
{
    static const double factor = M_SQRT2 * M_2_SQRTPI / 2;
    int at = m->n, sum = scaled(m, tanh_node->in[0], factor);

    if (sum >= 0 && cubic_sum(m, sum))
        return true;
    m->n = at;
    const struct hapi_node *n = made_by(m, tanh_node->in[0], HAPI_OP_Mul);
    for (int k = 0; n && k < 2; k++) {
        int mark = m->n;
        m->x = scaled(m, n->in[k], factor);
        if (m->x >= 0 && quadratic(m, n->in[1 - k], m->x))
            return true;
        m->n = mark;
    }
    return false;
}

static int try_gelu(struct match *m, const struct hapi_node *n)
{
    static const struct hapi_attr by_tanh = {
        .name = "approximate", .type = HAPI_ATTR_STRING, .s = "tanh", .n = 4};
    bool is_erf = n->op == HAPI_OP_Erf;

    if (!(is_erf ? gelu_erf(m, n) : gelu_tanh(m, n)))
        return 0;
    const struct hapi_node *one = read_by(m, n->out[0], HAPI_OP_Add);
    if (beside_number(m, one, 1) != n->out[0] || !gelu_tail(m, one->out[0]) || !closed(m) || !same_f32(m))
        return 0;
    return replace(m, HAPI_OP_Gelu, &m->x, 1, &by_tanh, is_erf ? 0 : 1);
}

/* ------------------------------------------------------------------ LayerNormalization */

/* First of the axes over which the node takes the mean, when they are the last ones and stay as 1; else -1.
 */
static int mean_axis(const struct match *m, const struct hapi_node *n)
{
    const struct hapi_value *values = m->b->g->values, *v;
    const int64_t *given = NULL;
    int64_t axes[HAPI_MAX_RANK];
    size_t count = hapi_node_ints(n, "axes", axes, HAPI_MAX_RANK);
    unsigned seen = 0;
    int rank = values[n->in[0]].shape.rank;

    if (n->n_in > 1 && n->in[1] >= 0) {
        v = &values[n->in[1]];
        given = v->dtype == HAPI_I64 ? v->data : NULL;
        count = !given ? 0 : v->shape.rank ? (size_t)v->shape.dim[0] : 1;
    }
    if (count < 1 || count > (size_t)rank || !hapi_node_int(n, "keepdims", 1))
        return -1;
    for (size_t i = 0; i < count; i++) {
        int64_t a = given ? given[i] : axes[i];
        seen |= 1U << (a < 0 ? a + rank : a); /* in range: shape inference has seen them */
    }
    int first = rank - (int)count;
    return seen == ((1U << rank) - (1U << first)) ? first : -1;
}

/* d = x - mean(x): sets m->x. Returns the mean's axis, or -1. */
static int centred(struct match *m, int d)
{
    const struct hapi_node *sub = made_by(m, d, HAPI_OP_Sub);
    const struct hapi_node *mean = sub ? made_by(m, sub->in[1], HAPI_OP_ReduceMean) : NULL;

    if (!mean || mean->in[0] != sub->in[0] || (m->x >= 0 && m->x != sub->in[0]))
        return -1;
    m->x = sub->in[0];
    return mean_axis(m, mean);
}

/* A value of the last dims' own shape that has v's numbers; -1 when v does not fit, -2 without memory. */
static int parameter(struct match *m, int v, int axis)
{
    struct hapi_binding *b = m->b;
    const struct hapi_shape *x = &b->g->values[m->x].shape;
    struct hapi_shape s = {.rank = x->rank - axis}, have;
    int at;

    if (v < 0 || !hapi_fold_constant(b, v) || b->g->values[v].dtype != HAPI_F32)
        return -1;
    memcpy(s.dim, x->dim + axis, (size_t)s.rank * sizeof *s.dim);
    have = b->g->values[v].shape;
    while (have.rank > s.rank && have.dim[0] == 1)
        memmove(have.dim, have.dim + 1, (size_t)--have.rank * sizeof *have.dim);
    if (!hapi_shape_equal(&have, &s))
        return -1;
    if (b->g->values[v].shape.rank == s.rank)
        return v;
    at = hapi_binding_value(b, b->g->values[v].name, ":flat");
    if (at < 0)
        return -2;
    b->g->values[at].dtype = HAPI_F32;
    b->g->values[at].shape = s;
    b->g->values[at].data = b->g->values[v].data;
    b->tensor_of[at] = b->tensor_of[v];
    b->scratched[at] = b->scratched[v];
    return at;
}

/* Ones, where the module has no weights of its own. */
static int ones(struct match *m, int axis)
{
    struct hapi_graph *g = m->b->g;
    struct hapi_shape s = {.rank = g->values[m->x].shape.rank - axis};
    int64_t n;

    memcpy(s.dim, g->values[m->x].shape.dim + axis, (size_t)s.rank * sizeof *s.dim);
    int at = hapi_binding_value(m->b, g->values[m->out].name, ":ones");
    float *data =
        at < 0 || hapi_shape_elements(&s, &n) ? NULL : hapi_arena_array(g->arena, (size_t)n, sizeof *data);
    if (!data)
        return -2;
    for (int64_t i = 0; i < n; i++)
        data[i] = 1;
    g->values[at].dtype = HAPI_F32;
    g->values[at].shape = s;
    g->values[at].data = data;
    return at;
}

/* The result so far times (plus) a constant of the last dims' shape: that constant, and m->out goes on. */
static int affine(struct match *m, enum hapi_op_kind op, int axis)
{
    int at = m->n, v = m->b->kept[m->out] ? -1 : beside(read_by(m, m->out, op), m->out);

    int out = v < 0 ? -1 : node_at(m, m->nodes[m->n - 1])->out[0];

    /* A constant of more dims than x has would give the result more dims, too. */
    if (v >= 0 && !hapi_shape_equal(&m->b->g->values[out].shape, &m->b->g->values[m->x].shape))
        v = -1;
    v = parameter(m, v, axis);
    if (v >= 0)
        m->out = out;
    else
        m->n = at;
    return v;
}

/* d / root, or d * (1 / root): d, with m->out set; -1 when it is neither. */
static int divided(struct match *m, int root)
{
    int at = m->n;
    const struct hapi_node *n = read_by(m, root, HAPI_OP_Div);

    if (n && n->in[1] == root) {
        m->out = n->out[0];
        return n->in[0];
    }
    m->n = at;
    n = read_by(m, root, HAPI_OP_Reciprocal);
    root = n ? n->out[0] : -1;
    n = n ? read_by(m, root, HAPI_OP_Mul) : NULL;
    m->out = n ? n->out[0] : -1;
    return beside(n, root);
}

/* From the square root: down to the difference that it divides, up to the mean of that difference's square.
 */
static int try_layer_norm(struct match *m, const struct hapi_node *root)
{
    const struct hapi_node *sum = made_by(m, root->in[0], HAPI_OP_Add), *mean = NULL, *square = NULL;
    struct hapi_attr attrs[2] = {{.name = "axis", .type = HAPI_ATTR_INT},
                                 {.name = "epsilon", .type = HAPI_ATTR_FLOAT}};
    int d = divided(m, root->out[0]), in[3] = {-1, -1, -1}, axis;
    double epsilon = 0;

    for (int k = 0; sum && k < 2 && !mean; k++)
        if (number_of(m, sum->in[1 - k], &epsilon))
            mean = made_by(m, sum->in[k], HAPI_OP_ReduceMean);
    axis = mean && d >= 0 ? centred(m, d) : -1;
    if (axis < 0 || mean_axis(m, mean) != axis || !(epsilon > 0))
        return 0;
    /* The square may be of the same difference, or of a twin of it. */
    int p = m->b->g->values[mean->in[0]].producer;
    square = p < 0 ? NULL : node_at(m, p);
    if (!square || square->n_in != 2 || !is_square(m, mean->in[0], square->in[0]) ||
        centred(m, square->in[0]) != axis || !same_f32(m) || !closed(m))
        return 0;
    attrs[0].i = axis;
    attrs[1].f = (float)epsilon;
    in[0] = m->x;
    in[1] = affine(m, HAPI_OP_Mul, axis);
    if (in[1] >= 0)
        in[2] = affine(m, HAPI_OP_Add, axis);
    else if (in[1] == -1)
        in[1] = ones(m, axis);
    if (in[1] == -2 || in[2] == -2)
        return no_memory(m->b);
    return replace(m, HAPI_OP_LayerNormalization, in, in[2] >= 0 ? 3 : 2, attrs, 2);
}

/* ------------------------------------------------------------------ */

int hapi_patterns(struct hapi_binding *b)
{
    struct hapi_graph *g = b->g;
    int *reader = hapi_arena_array(b->scratch, b->capacity, sizeof *reader), rc = 0;

    if (g->opset < 7) /* broadcasting had other rules, and no exporter of today writes it */
        return 0;
    if (!reader)
        return no_memory(b);
    hapi_fold_count(b);
    for (size_t i = 0; i < b->capacity; i++)
        reader[i] = -1;
    for (size_t i = 0; i < g->n_nodes; i++)
        for (int k = 0; k < g->nodes[i].n_in; k++)
            if (g->nodes[i].in[k] >= 0)
                reader[g->nodes[i].in[k]] = (int)i;
    for (size_t i = 0; i < g->n_nodes && !rc; i++) {
        struct match m = {.b = b, .reader = reader, .x = -1, .out = -1};
        const struct hapi_node *n = &g->nodes[i];
        add(&m, (int)i);
        if (n->op == HAPI_OP_Erf || n->op == HAPI_OP_Tanh)
            rc = try_gelu(&m, n);
        else if (n->op == HAPI_OP_Sqrt)
            rc = try_layer_norm(&m, n);
    }
    if (!rc)
        hapi_fold_compact(b);
    return rc;
}
