/* From a graph to a program: its steps in order, its edges, and where everything lies. */
#include <stdlib.h>

#include "gpu_build.h"
#include "memory.h"

enum { PROGRAM_BYTES_MAX = 256 << 20 };

/* ------------------------------------------------------------------ steps */

/* Views divide by the sizes of dims: an empty tensor has none. */
static int empty_check(struct hapi_gpu_build *b)
{
    for (int k = 0; k < b->step->n_nodes; k++) {
        const struct hapi_node *n = b->step->nodes[k];
        for (int i = 0; i < n->n_in + n->n_out; i++) {
            int at = i < n->n_in ? n->in[i] : n->out[i - n->n_in];
            const struct hapi_value *v = at < 0 ? NULL : &b->g->values[at];
            for (int d = 0; v && v->dtype == HAPI_F32 && d < v->shape.rank; d++)
                if (!v->shape.dim[d])
                    return hapi_gpu_refuse(b, "tensor `%s` is empty", v->name);
        }
    }
    return HAPI_OK;
}

static int step_compile(struct hapi_gpu_build *b)
{
    int rc = empty_check(b);

    if (rc)
        return rc;
    if (b->step->act_only)
        return hapi_gpu_activation(b);
    switch (b->step->node->op) {
    case HAPI_OP_Conv:
        return hapi_gpu_conv(b);
    case HAPI_OP_MaxPool:
    case HAPI_OP_AveragePool:
    case HAPI_OP_GlobalAveragePool:
    case HAPI_OP_GlobalMaxPool:
        return hapi_gpu_pool(b);
    case HAPI_OP_BatchNormalization:
        return hapi_gpu_batch_norm(b);
    case HAPI_OP_Gemm:
    case HAPI_OP_MatMul:
        return hapi_gpu_product(b);
    case HAPI_OP_Softmax:
        return hapi_gpu_softmax(b);
    case HAPI_OP_LayerNormalization:
        return hapi_gpu_layer_norm(b);
    case HAPI_OP_Add:
    case HAPI_OP_Sub:
    case HAPI_OP_Mul:
    case HAPI_OP_Div:
    case HAPI_OP_Max:
    case HAPI_OP_Min:
    case HAPI_OP_Pow:
        return hapi_gpu_binary(b);
    case HAPI_OP_Sqrt:
    case HAPI_OP_Exp:
    case HAPI_OP_Erf:
    case HAPI_OP_Neg:
    case HAPI_OP_Abs:
    case HAPI_OP_Reciprocal:
        return hapi_gpu_unary(b);
    case HAPI_OP_ReduceMean:
        return hapi_gpu_mean(b);
    case HAPI_OP_Concat:
        return hapi_gpu_concat(b);
    case HAPI_OP_Reshape:
    case HAPI_OP_Flatten:
    case HAPI_OP_Squeeze:
    case HAPI_OP_Unsqueeze:
    case HAPI_OP_Identity:
    case HAPI_OP_Dropout:
        return hapi_gpu_reshape(b);
    case HAPI_OP_Transpose:
        return hapi_gpu_transpose(b);
    case HAPI_OP_Slice:
        return hapi_gpu_slice(b);
    case HAPI_OP_Split:
        return hapi_gpu_split(b);
    case HAPI_OP_Expand:
        return hapi_gpu_expand(b);
    case HAPI_OP_Gather:
        return hapi_gpu_gather(b);
    default:
        return hapi_gpu_refuse(b, "there is no kernel for this op");
    }
}

static int values_prepare(struct hapi_gpu_build *b)
{
    const struct hapi_graph *g = b->g;

    b->values = calloc(g->n_values + 1, sizeof *b->values);
    if (!b->values)
        return hapi_gpu_no_memory(b);
    for (size_t i = 0; i < g->n_values; i++)
        b->values[i] = (struct hapi_gpu_value){.reader = -1, .block = -1, .weight = {-1, -1, -1}};
    for (size_t i = 0; i < b->n_steps; i++)
        for (int k = 0; k < b->steps[i].n_nodes; k++)
            for (int j = 0; j < b->steps[i].nodes[k]->n_in; j++) {
                int v = b->steps[i].nodes[k]->in[j];
                if (v >= 0)
                    b->values[v].reader =
                        b->values[v].reader == -1 || b->values[v].reader == (int)i ? (int)i : -2;
            }
    for (size_t i = 0; i < g->n_outputs; i++)
        b->values[g->outputs[i]].reader = -2;
    return HAPI_OK;
}

static int memory_place(struct hapi_gpu_build *b)
{
    struct hapi_gpu_program *p = b->p;
    struct hapi_lifetime *items = calloc(p->n_storages + 1, sizeof *items);
    size_t total = 0;
    int rc;

    if (!items)
        return hapi_gpu_no_memory(b);
    for (size_t i = 0; i < p->n_storages; i++) {
        const struct hapi_gpu_storage *s = &p->storages[i];
        if (s->place == HAPI_GPU_ARENA && s->first >= 0)
            items[i] = (struct hapi_lifetime){
                .bytes = (size_t)((s->bytes + HAPI_GPU_ALIGN - 1) / HAPI_GPU_ALIGN * HAPI_GPU_ALIGN),
                .first = s->first,
                .last = s->last};
    }
    rc = hapi_memory_place(items, p->n_storages, &total, b->err);
    for (size_t i = 0; i < p->n_storages && !rc; i++)
        if (p->storages[i].place == HAPI_GPU_ARENA)
            p->storages[i].offset = items[i].offset;
    p->arena_bytes = total;
    free(items);
    return rc;
}

static int compile(struct hapi_gpu_build *b)
{
    struct hapi_step *steps;
    int rc = hapi_fuse(b->g, b->p->mem, false, &steps, &b->n_steps, b->err);

    b->steps = steps;
    if (!rc)
        rc = values_prepare(b);
    if (!rc)
        rc = hapi_gpu_blocks_find(b);
    if (!rc)
        rc = hapi_gpu_inputs(b);
    for (size_t i = 0; i < b->n_steps && !rc; i++) {
        b->step = &b->steps[i];
        rc = step_compile(b);
    }
    if (!rc)
        rc = hapi_gpu_outputs(b);
    return rc ? rc : memory_place(b);
}

int hapi_gpu_program_new(struct hapi_gpu_program **out, const struct hapi_graph *g, enum hapi_dtype dtype,
                         const struct hapi_gpu_edges *edges, const struct hapi_gpu_maker *maker,
                         struct hapi_err *err)
{
    struct hapi_gpu_program *p = calloc(1, sizeof *p);
    struct hapi_gpu_build b = {.p = p, .g = g, .maker = maker, .dtype = dtype, .edges = edges, .err = err};
    int rc;

    if (!p)
        return hapi_err_set(err, HAPI_ENOMEM, 0, "no memory for a GPU program");
    p->g = g;
    p->dtype = dtype;
    p->mem = hapi_arena_new(PROGRAM_BYTES_MAX);
    rc = p->mem ? compile(&b) : hapi_gpu_no_memory(&b);
    free(b.blocks);
    free(b.values);
    if (rc) {
        hapi_gpu_program_free(p);
        return rc;
    }
    *out = p;
    return HAPI_OK;
}

void hapi_gpu_program_free(struct hapi_gpu_program *p)
{
    if (!p)
        return;
    free(p->launches);
    free(p->weights);
    free(p->storages);
    if (p->mem)
        hapi_arena_free(p->mem);
    free(p);
}
