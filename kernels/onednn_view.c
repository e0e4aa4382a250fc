/* What only moves elements. A step here looks at its input through strides and gives its output as strides;
 * elements move when a kernel needs them dense, once for a whole chain of such steps. */
#include <string.h>

#include "onednn.h"
#include "ref.h"

int hapi_dnn_look(struct hapi_dnn *b, int value, int64_t *stride, int64_t *offset, struct hapi_err *err)
{
    enum hapi_dtype dtype = hapi_dnn_dtype(b, value);
    int found = -1;

    for (int r = b->rep_of[value]; r >= 0; r = b->reps[r].next)
        if (b->reps[r].dtype == dtype && (found < 0 || !b->reps[r].stride))
            found = r;
    if (found < 0)
        found = hapi_dnn_need(b, value, dtype, hapi_dnn_layout(b, value), err);
    if (found < 0)
        return found;
    hapi_dnn_strides(b, found, stride);
    *offset = b->reps[found].offset;
    return found;
}

static bool is_dense(const struct hapi_shape *s, enum hapi_layout layout, const int64_t *stride)
{
    int64_t want[HAPI_MAX_RANK] = {0};

    hapi_dnn_dense(s, layout, want);
    for (int i = 0; i < s->rank; i++)
        if (s->dim[i] != 1 && stride[i] != want[i])
            return false;
    return true;
}

/* In `layout` when its strides are of no dense order. */
static int make_view(struct hapi_dnn *b, int value, int src, int64_t offset, const int64_t *stride,
                     enum hapi_layout layout, struct hapi_err *err)
{
    const struct hapi_shape *s = &b->g->values[value].shape;
    int64_t *kept = hapi_arena_array(b->mem, HAPI_MAX_RANK, sizeof *kept);
    struct hapi_dnn_rep x = b->reps[src];

    if (!kept)
        return hapi_err_set(err, HAPI_ENOMEM, 0, "no memory for a plan");
    for (int k = HAPI_LAYOUT_PLAIN; k <= HAPI_LAYOUT_NHWC && !offset; k++)
        if ((k == HAPI_LAYOUT_PLAIN || s->rank == 4) && is_dense(s, (enum hapi_layout)k, stride))
            return hapi_dnn_make_in(b, value, x.dtype, (enum hapi_layout)k, x.storage, err);
    int r = hapi_dnn_rep_add(b, value, x.dtype, layout, x.storage, err);
    if (r < 0)
        return r;
    for (int i = 0; i < s->rank; i++)
        kept[i] = s->dim[i] == 1 ? 1 : stride[i]; /* of a dim of one any stride is right: a valid one */
    b->reps[r].stride = kept;
    b->reps[r].offset = offset;
    return r;
}

bool hapi_dnn_swapped(const struct hapi_dnn *b, int value, int64_t *stride)
{
    const struct hapi_shape *s = &b->g->values[value].shape;
    struct hapi_shape swapped = *s;
    int n = s->rank;
    bool is = b->rep_of[value] >= 0 && n >= 2 && s->dim[n - 2] > 1;

    for (int r = b->rep_of[value]; r >= 0 && is; r = b->reps[r].next)
        is = b->reps[r].stride && b->reps[r].stride[n - 2] == 1 && b->reps[r].dtype == b->spec.dtype;
    if (!is)
        return false;
    swapped.dim[n - 2] = s->dim[n - 1];
    swapped.dim[n - 1] = s->dim[n - 2];
    hapi_dnn_dense(&swapped, HAPI_LAYOUT_PLAIN, stride);
    stride[n - 1] = stride[n - 2];
    stride[n - 2] = 1;
    return true;
}

int hapi_dnn_need_swapped(struct hapi_dnn *b, int value, struct hapi_err *err)
{
    int64_t *stride = hapi_arena_array(b->mem, HAPI_MAX_RANK, sizeof *stride);
    int from = b->rep_of[value];
    enum hapi_dtype dtype = b->spec.dtype;

    if (!stride || !hapi_dnn_swapped(b, value, stride))
        return hapi_err_set(err, HAPI_ENOMEM, 0, "no memory for a plan");
    int at = hapi_dnn_storage(b, HAPI_DNN_ARENA, hapi_dnn_bytes(b, value, dtype), err);
    int r = at < 0 ? at : hapi_dnn_rep_add(b, value, dtype, HAPI_LAYOUT_PLAIN, at, err);
    if (r < 0)
        return r;
    b->reps[r].stride = stride;
    int rc = hapi_dnn_view(b, from, b->reps[from].offset, b->reps[from].stride, r, err);
    return rc ? rc : r;
}

/* Strides of the same elements under another shape; false where there are none. */
static bool reshape_strides(const struct hapi_shape *from, const int64_t *stride, const struct hapi_shape *to,
                            int64_t *out)
{
    int64_t dim[HAPI_MAX_RANK] = {0}, step[HAPI_MAX_RANK] = {0};
    int n = 0, at = 0, made = 0;

    for (int i = 0; i < from->rank; i++)
        if (from->dim[i] != 1) {
            dim[n] = from->dim[i];
            step[n++] = stride[i];
        }
    for (int i = 0; i < to->rank; i++)
        out[i] = 1;
    /* The shortest run of old dims that has as many elements as a run of new ones must lie evenly. */
    while (made < to->rank && at < n) {
        int at_end = at + 1, made_end = made + 1;
        int64_t have = dim[at], want = to->dim[made];
        while (have != want)
            if (want < have)
                want *= to->dim[made_end++];
            else
                have *= dim[at_end++];
        for (int i = at; i + 1 < at_end; i++)
            if (step[i] != dim[i + 1] * step[i + 1])
                return false;
        out[made_end - 1] = step[at_end - 1];
        for (int i = made_end - 1; i > made; i--)
            out[i - 1] = out[i] * to->dim[i];
        at = at_end;
        made = made_end;
    }
    return true;
}

/* Reshape, Flatten, Squeeze, Unsqueeze, Identity. */
int hapi_dnn_reshape(struct hapi_dnn *b, struct hapi_err *err)
{
    const struct hapi_shape *to = &b->g->values[b->step->out].shape;
    int64_t stride[HAPI_MAX_RANK] = {0}, made[HAPI_MAX_RANK] = {0}, offset;
    int x = b->step->node->in[0], r;

    if (hapi_ref_count(to) > 0) {
        r = hapi_dnn_look(b, x, stride, &offset, err);
        if (r < 0)
            return r;
        if (reshape_strides(&b->g->values[x].shape, stride, to, made)) {
            int y = make_view(b, b->step->out, r, offset, made, HAPI_LAYOUT_PLAIN, err);
            return y < 0 ? y : HAPI_OK;
        }
    }
    r = hapi_dnn_need(b, x, hapi_dnn_dtype(b, x), HAPI_LAYOUT_PLAIN, err);
    if (r < 0)
        return r;
    int y = hapi_dnn_make_in(b, b->step->out, b->reps[r].dtype, HAPI_LAYOUT_PLAIN, b->reps[r].storage, err);
    return y < 0 ? y : HAPI_OK;
}

int hapi_dnn_transpose(struct hapi_dnn *b, struct hapi_err *err)
{
    const struct hapi_node *n = b->step->node;
    const struct hapi_shape *xs = &b->g->values[n->in[0]].shape;
    int64_t perm[HAPI_MAX_RANK], from[HAPI_MAX_RANK] = {0}, stride[HAPI_MAX_RANK] = {0}, offset;
    size_t given = hapi_node_ints(n, "perm", perm, HAPI_MAX_RANK);
    int x = hapi_dnn_look(b, n->in[0], from, &offset, err);

    if (x < 0)
        return x;
    if (given && given != (size_t)xs->rank)
        return HAPI_DNN_NONE;
    for (int i = 0; i < xs->rank; i++) {
        int64_t p = given ? perm[i] : xs->rank - 1 - i;
        if (p < 0 || p >= xs->rank)
            return HAPI_DNN_NONE;
        stride[i] = from[p];
    }
    int y = make_view(b, b->step->out, x, offset, stride, HAPI_LAYOUT_PLAIN, err);
    return y < 0 ? y : HAPI_OK;
}

/* k-th number of Slice's list, from the attribute (opset < 10) or a constant input. */
static bool slice_number(const struct hapi_dnn *b, const char *name, int index, int64_t k, int64_t *out)
{
    const struct hapi_node *n = b->step->node;
    const struct hapi_attr *a = hapi_node_attr(n, name);

    if (index < n->n_in && n->in[index] >= 0) {
        const struct hapi_value *v = &b->g->values[n->in[index]];
        if (!v->data || k >= hapi_ref_count(&v->shape))
            return false;
        *out = hapi_ref_get_i(v->data, v->dtype, k);
        return true;
    }
    if (!a || a->type != HAPI_ATTR_INTS || k >= (int64_t)a->n)
        return false;
    *out = a->ints[k];
    return true;
}

int hapi_dnn_slice(struct hapi_dnn *b, struct hapi_err *err)
{
    const struct hapi_node *n = b->step->node;
    const struct hapi_shape *xs = &b->g->values[n->in[0]].shape;
    int64_t stride[HAPI_MAX_RANK] = {0}, at = 0, start, axis, step;

    for (int i = 1; i < n->n_in; i++)
        if (n->in[i] >= 0 && !b->g->values[n->in[i]].data)
            return HAPI_DNN_NONE;
    if (!hapi_ref_count(&b->g->values[b->step->out].shape))
        return HAPI_DNN_NONE;
    int x = hapi_dnn_look(b, n->in[0], stride, &at, err);
    if (x < 0)
        return x;
    for (int64_t k = 0; k < HAPI_MAX_RANK && slice_number(b, "starts", 1, k, &start); k++) {
        if (!slice_number(b, "axes", 3, k, &axis))
            axis = k;
        if (!slice_number(b, "steps", 4, k, &step))
            step = 1;
        int d = hapi_ref_axis(axis, xs->rank);
        if (d < 0 || !step)
            return HAPI_DNN_NONE;
        int64_t top = step < 0 ? xs->dim[d] - 1 : xs->dim[d];
        start += start < 0 ? xs->dim[d] : 0;
        start = start < 0 ? 0 : start > top ? top : start;
        at += start * stride[d];
        stride[d] *= step;
    }
    int y = make_view(b, b->step->out, x, at, stride, b->reps[x].layout, err);
    return y < 0 ? y : HAPI_OK;
}

int hapi_dnn_split(struct hapi_dnn *b, struct hapi_err *err)
{
    const struct hapi_node *n = b->step->node;
    int64_t stride[HAPI_MAX_RANK] = {0}, at = 0;
    int axis = hapi_ref_axis(hapi_node_int(n, "axis", 0), b->g->values[n->in[0]].shape.rank);
    int x = axis < 0 ? HAPI_DNN_NONE : hapi_dnn_look(b, n->in[0], stride, &at, err);

    if (axis < 0 || x < 0)
        return x;
    for (int i = 0; i < n->n_out; i++) {
        if (n->out[i] < 0 || !hapi_ref_count(&b->g->values[n->out[i]].shape))
            return HAPI_DNN_NONE;
        int y = make_view(b, n->out[i], x, at, stride, b->reps[x].layout, err);
        if (y < 0)
            return y;
        at += b->g->values[n->out[i]].shape.dim[axis] * stride[axis];
    }
    return HAPI_OK;
}

int hapi_dnn_expand(struct hapi_dnn *b, struct hapi_err *err)
{
    const struct hapi_node *n = b->step->node;
    const struct hapi_shape *xs = &b->g->values[n->in[0]].shape, *os = &b->g->values[b->step->out].shape;
    int64_t from[HAPI_MAX_RANK] = {0}, stride[HAPI_MAX_RANK] = {0}, offset;
    int x = hapi_dnn_look(b, n->in[0], from, &offset, err);

    if (x < 0)
        return x;
    for (int i = 0; i < xs->rank; i++)
        if (xs->dim[i] != 1)
            stride[i + os->rank - xs->rank] = from[i];
    int y = make_view(b, b->step->out, x, offset, stride, HAPI_LAYOUT_PLAIN, err);
    return y < 0 ? y : HAPI_OK;
}

/* One constant index: a slice (the class token of a transformer). */
int hapi_dnn_gather(struct hapi_dnn *b, struct hapi_err *err)
{
    const struct hapi_node *n = b->step->node;
    const struct hapi_value *ids = &b->g->values[n->in[1]];
    const struct hapi_shape *xs = &b->g->values[n->in[0]].shape;
    int64_t from[HAPI_MAX_RANK] = {0}, stride[HAPI_MAX_RANK] = {0}, offset;
    int axis = hapi_ref_axis(hapi_node_int(n, "axis", 0), xs->rank), shift = ids->shape.rank - 1;

    if (axis < 0 || !ids->data || hapi_ref_count(&ids->shape) != 1)
        return HAPI_DNN_NONE;
    int64_t at = hapi_ref_get_i(ids->data, ids->dtype, 0);
    at += at < 0 ? xs->dim[axis] : 0;
    if (at < 0 || at >= xs->dim[axis])
        return HAPI_DNN_NONE;
    int x = hapi_dnn_look(b, n->in[0], from, &offset, err);
    if (x < 0)
        return x;
    for (int i = 0; i < xs->rank; i++)
        if (i != axis)
            stride[i < axis ? i : i + shift] = from[i];
    int y = make_view(b, b->step->out, x, offset + at * from[axis], stride, HAPI_LAYOUT_PLAIN, err);
    return y < 0 ? y : HAPI_OK;
}
