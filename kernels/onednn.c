/* Back end `onednn`: compiles a fused graph into a list of ops, and runs it. oneDNN 2.x's descriptors are
 * made in onednn_*.c only. */
#include <dlfcn.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xmmintrin.h>

#include "onednn.h"
#include "ref.h"

/* Denormal inputs and results count as zero (MXCSR's DAZ and FTZ): each costs over a hundred cycles, and x *
 * sigmoid(x) makes them by the thousand. EfficientNet-B0 ran 1.4 times as long with them. */
enum { INSTANCE_BYTES_MAX = 256 << 20, DENORMALS_ARE_ZERO = 0x8040 };

/* ------------------------------------------------------------------ threads of an instance */

/* oneDNN (Debian's build: libgomp) splits work over the threads of the calling thread's OpenMP settings, when
 * a primitive is made and when it runs. Each compute thread is a pipeline of its own: one thread, unless the
 * plan asks for more (intra-op), which libgomp then starts on the cores that the caller is pinned to. */
static int (*omp_get)(void);
static void (*omp_set)(int);
static pthread_once_t process_once = PTHREAD_ONCE_INIT;
static dnnl_engine_t engine; /* one for the process: primitives are cached per engine */

static char class_text[64];

/* ISA first: within it, and a version of the library, the same kernels run and give the same bits. */
static void class_init(void)
{
    static const struct {
        unsigned isa;
        const char *name;
    } known[] = {{dnnl_cpu_isa_avx512_core_amx, "avx512_core_amx"},
                 {dnnl_cpu_isa_avx512_core_bf16, "avx512_core_bf16"},
                 {dnnl_cpu_isa_avx512_core_vnni, "avx512_core_vnni"},
                 {dnnl_cpu_isa_avx512_core, "avx512_core"},
                 {dnnl_cpu_isa_avx2, "avx2"},
                 {dnnl_cpu_isa_avx, "avx"},
                 {dnnl_cpu_isa_sse41, "sse41"}};
    unsigned isa = (unsigned)dnnl_get_effective_cpu_isa();
    const dnnl_version_t *v = dnnl_version();
    const char *name = "generic";

    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if ((isa & known[i].isa) == known[i].isa) {
            name = known[i].name;
            break;
        }
    snprintf(class_text, sizeof class_text, "onednn/%s/%d.%d.%d", name, v->major, v->minor, v->patch);
}

static void process_init(void)
{
    void *set = dlsym(RTLD_DEFAULT, "omp_set_num_threads"), *get = dlsym(RTLD_DEFAULT, "omp_get_max_threads");

    memcpy(&omp_set, &set, sizeof set);
    memcpy(&omp_get, &get, sizeof get);
    class_init();
    if (dnnl_engine_create(&engine, dnnl_cpu, 0))
        engine = NULL;
}

/* Returns what it was; without OpenMP that is n. */
static int threads_set(int n)
{
    int before = omp_get && omp_set ? omp_get() : n;

    if (before != n)
        omp_set(n);
    return before;
}

/* ------------------------------------------------------------------ compile */

/* By a kernel of ours where there is one for the step, else by oneDNN's. */
static int first_of(struct hapi_dnn *b, int (*ours)(struct hapi_dnn *, struct hapi_err *),
                    int (*stock)(struct hapi_dnn *, struct hapi_err *), struct hapi_err *err)
{
    int rc = b->vector ? ours(b, err) : HAPI_DNN_NONE;

    return rc == HAPI_DNN_NONE ? stock(b, err) : rc;
}

static int product_compile(struct hapi_dnn *b, int (*otherwise)(struct hapi_dnn *, struct hapi_err *),
                           struct hapi_err *err)
{
    int rc = b->quant ? hapi_dnn_int8_product(b, err) : HAPI_DNN_NONE;

    return rc == HAPI_DNN_NONE ? otherwise(b, err) : rc;
}

static int step_compile(struct hapi_dnn *b, struct hapi_err *err)
{
    const struct hapi_step *s = b->step;

    if (s->act_only)
        return hapi_dnn_activation(b, err);
    switch (s->node->op) {
    case HAPI_OP_Conv:
        return hapi_dnn_conv(b, err);
    case HAPI_OP_ConvTranspose:
        return hapi_dnn_deconv(b, err);
    case HAPI_OP_MaxPool:
    case HAPI_OP_AveragePool:
    case HAPI_OP_GlobalAveragePool:
    case HAPI_OP_GlobalMaxPool:
        return hapi_dnn_pool(b, err);
    case HAPI_OP_BatchNormalization:
        return first_of(b, hapi_dnn_vector_batch_norm, hapi_dnn_batch_norm, err);
    case HAPI_OP_MatMul:
        return product_compile(b, hapi_dnn_matmul, err);
    case HAPI_OP_Gemm:
        return product_compile(b, hapi_dnn_gemm, err);
    case HAPI_OP_Softmax:
        return first_of(b, hapi_dnn_vector_softmax, hapi_dnn_softmax, err);
    case HAPI_OP_LayerNormalization:
        return first_of(b, hapi_dnn_vector_layer_norm, hapi_dnn_layer_norm, err);
    case HAPI_OP_InstanceNormalization:
    case HAPI_OP_GroupNormalization:
        return b->vector ? hapi_dnn_vector_channel_norm(b, err) : HAPI_DNN_NONE;
    case HAPI_OP_LRN:
        return hapi_dnn_lrn(b, err);
    case HAPI_OP_Resize:
    case HAPI_OP_Upsample:
        return hapi_dnn_resize(b, err);
    case HAPI_OP_ReduceMean:
        return hapi_dnn_reduce(b, err);
    case HAPI_OP_Abs:
    case HAPI_OP_Exp:
    case HAPI_OP_Sqrt:
        return hapi_dnn_activation(b, err);
    case HAPI_OP_Add:
    case HAPI_OP_Sub:
    case HAPI_OP_Mul:
    case HAPI_OP_Div:
    case HAPI_OP_Max:
    case HAPI_OP_Min:
        return first_of(b, hapi_dnn_vector_gate, hapi_dnn_binary, err);
    case HAPI_OP_Concat:
        return first_of(b, hapi_dnn_vector_concat, hapi_dnn_concat, err);
    case HAPI_OP_Reshape:
    case HAPI_OP_Flatten:
    case HAPI_OP_Squeeze:
    case HAPI_OP_Unsqueeze:
    case HAPI_OP_Identity:
        return hapi_dnn_reshape(b, err);
    case HAPI_OP_Transpose:
        return hapi_dnn_transpose(b, err);
    case HAPI_OP_Slice:
        return hapi_dnn_slice(b, err);
    case HAPI_OP_Split:
        return hapi_dnn_split(b, err);
    case HAPI_OP_Expand:
        return hapi_dnn_expand(b, err);
    case HAPI_OP_Gather:
        return hapi_dnn_gather(b, err);
    default:
        return HAPI_DNN_NONE;
    }
}

static int steps_compile(struct hapi_dnn *b, struct hapi_err *err)
{
    for (size_t i = 0; i < b->n_steps; i++) {
        b->step = &b->steps[i];
        int rc = step_compile(b, err);
        for (int k = 0; rc == HAPI_DNN_NONE && k < b->step->n_nodes; k++) {
            int one = hapi_dnn_eval(b, b->step->nodes[k], err);
            if (one || k == b->step->n_nodes - 1)
                rc = one;
        }
        if (rc)
            return rc;
        b->ends[i] = b->n_ops;
    }
    b->step = NULL;
    return HAPI_OK;
}

static int inputs_add(struct hapi_dnn *b, struct hapi_err *err)
{
    const struct hapi_graph *g = b->g;

    for (size_t i = 0; i < g->n_inputs; i++) {
        const struct hapi_value *v = &g->values[g->inputs[i]];
        int s = hapi_dnn_storage(b, HAPI_DNN_IN, hapi_dnn_bytes(b, g->inputs[i], v->dtype), err);
        if (s < 0)
            return s;
        b->storages[s].index = i;
        int r = hapi_dnn_make_in(b, g->inputs[i], v->dtype, hapi_edge_layout(&b->spec, &v->shape), s, err);
        if (r < 0)
            return r;
    }
    return HAPI_OK;
}

/* Outputs that no step wrote in place: converted, or copied where they are an input, a constant or a twin. */
static int outputs_add(struct hapi_dnn *b, struct hapi_err *err)
{
    const struct hapi_graph *g = b->g;
    int64_t stride[HAPI_MAX_RANK] = {0};

    for (size_t i = 0; i < g->n_outputs; i++) {
        const struct hapi_value *v = &g->values[g->outputs[i]];
        if (b->out_done[i])
            continue;
        int r = hapi_dnn_need(b, g->outputs[i], v->dtype, hapi_edge_layout(&b->spec, &v->shape), err);
        if (r < 0)
            return r;
        if (b->out_done[i])
            continue;
        int s = hapi_dnn_storage(b, HAPI_DNN_OUT, hapi_dnn_bytes(b, g->outputs[i], v->dtype), err);
        if (s < 0)
            return s;
        b->storages[s].index = i;
        b->out_done[i] = true;
        int to = hapi_dnn_make_in(b, g->outputs[i], v->dtype, hapi_edge_layout(&b->spec, &v->shape), s, err);
        if (to < 0)
            return to;
        hapi_dnn_strides(b, r, stride);
        int rc = hapi_dnn_view(b, r, 0, stride, to, err);
        if (rc)
            return rc;
    }
    return HAPI_OK;
}

static int arena_place(struct hapi_dnn *b, struct hapi_err *err)
{
    struct hapi_lifetime *lives = calloc(b->n_storages + 1, sizeof *lives);
    int rc;

    if (!lives)
        return hapi_err_set(err, HAPI_ENOMEM, 0, "no memory for a plan");
    for (size_t i = 0; i < b->n_storages; i++) {
        const struct hapi_dnn_storage *s = &b->storages[i];
        bool live = s->place == HAPI_DNN_ARENA && s->first >= 0;
        lives[i] = (struct hapi_lifetime){live ? s->bytes : 0, s->first, s->last, 0};
    }
    rc = hapi_memory_place(lives, b->n_storages, &b->arena_bytes, err);
    for (size_t i = 0; i < b->n_storages; i++)
        b->storages[i].offset = lives[i].offset;
    free(lives);
    b->arena_bytes = (b->arena_bytes + 4095) & ~(size_t)4095;
    return rc;
}

static int values_prepare(struct hapi_dnn *b, struct hapi_err *err)
{
    const struct hapi_graph *g = b->g;
    int *lists[3];

    for (int i = 0; i < 3; i++) {
        lists[i] = hapi_arena_array(b->mem, g->n_values + 1, sizeof *lists[i]);
        for (size_t k = 0; lists[i] && k < g->n_values; k++)
            lists[i][k] = -1;
    }
    b->out_done = hapi_arena_array(b->mem, g->n_outputs + 1, sizeof *b->out_done);
    b->ends = hapi_arena_array(b->mem, b->n_steps + 1, sizeof *b->ends);
    if (!lists[0] || !lists[1] || !lists[2] || !b->out_done || !b->ends)
        return hapi_err_set(err, HAPI_ENOMEM, 0, "no memory for a plan of %zu values", g->n_values);
    b->rep_of = lists[0];
    b->out_of = lists[1];
    b->last_use = lists[2];
    for (size_t i = 0; i < b->n_steps; i++)
        for (int k = 0; k < b->steps[i].n_nodes; k++)
            for (int j = 0; j < b->steps[i].nodes[k]->n_in; j++)
                if (b->steps[i].nodes[k]->in[j] >= 0)
                    b->last_use[b->steps[i].nodes[k]->in[j]] = (int)i;
    for (size_t i = g->n_outputs; i-- > 0;) {
        b->out_of[g->outputs[i]] = (int)i;
        b->last_use[g->outputs[i]] = INT_MAX;
    }
    return HAPI_OK;
}

static void dnn_free(struct hapi_backend *base)
{
    struct hapi_dnn *b = (struct hapi_dnn *)base;

    for (size_t i = 0; i < b->n_ops; i++) {
        for (int k = 0; k < b->ops[i].n_args; k++)
            dnnl_memory_destroy(b->ops[i].binds[k].memory);
        if (b->ops[i].primitive)
            dnnl_primitive_destroy(b->ops[i].primitive);
    }
    if (b->stream)
        dnnl_stream_destroy(b->stream);
    free(b->ops);
    free(b->reps);
    free(b->storages);
    hapi_arena_free(b->mem);
    free(b);
}

/* Bytes of the f32 constants in the dtype that they are computed with, and some for aligned and padded ones:
 * what is too much is never touched. */
static size_t weights_expected(const struct hapi_graph *g, enum hapi_dtype dtype)
{
    size_t sum = 0;

    for (size_t i = 0; i < g->n_values; i++)
        if (g->values[i].data && g->values[i].dtype == HAPI_F32)
            sum += (size_t)hapi_ref_count(&g->values[i].shape) * hapi_dtype_size(dtype) + 64;
    return sum + sum / 16;
}

static int dnn_compile(struct hapi_backend **out, const struct hapi_graph *g,
                       const struct hapi_plan_spec *spec, void **weights, struct hapi_err *err)
{
    struct hapi_dnn *b = calloc(1, sizeof *b);
    struct hapi_step *steps;
    int rc, threads;

    pthread_once(&process_once, process_init);
    if (!b)
        return hapi_err_set(err, HAPI_ENOMEM, 0, "no memory for a plan");
    threads = threads_set(spec->threads > 1 ? spec->threads : 1);
    b->base.ops = &hapi_backend_onednn;
    b->g = g;
    b->spec = *spec;
    b->engine = engine;
    if (spec->dtype == HAPI_I8) /* all that is not in b->quant */
        b->spec.dtype = HAPI_F32;
    b->avx2 = b->spec.dtype == HAPI_F32 && hapi_vector_of(HAPI_F32) == &hapi_vector_avx2;
    b->vector = spec->stock ? NULL : hapi_vector_of(b->spec.dtype);
    b->mem = hapi_arena_new(INSTANCE_BYTES_MAX);
    if (weights && !*weights)
        *weights = hapi_dnn_weights_new(weights_expected(g, spec->dtype));
    b->weights = weights ? *weights : NULL;
    if (!b->mem || (weights && !*weights) || !engine ||
        dnnl_stream_create(&b->stream, engine, dnnl_stream_in_order)) {
        rc = hapi_err_set(err, HAPI_ENOMEM, 0, "cannot start oneDNN");
        goto fail;
    }
    rc = hapi_fuse(g, b->mem, b->vector, &steps, &b->n_steps, err);
    if (rc)
        goto fail;
    b->steps = steps;
    if ((rc = values_prepare(b, err)) ||
        (rc = spec->dtype == HAPI_I8 ? hapi_dnn_int8_prepare(b, err) : HAPI_OK) ||
        (rc = inputs_add(b, err)) || (rc = steps_compile(b, err)) || (rc = outputs_add(b, err)) ||
        (rc = arena_place(b, err)))
        goto fail;
    threads_set(threads);
    if (b->weights)
        hapi_dnn_weights_trim(b->weights);
    *out = &b->base;
    return HAPI_OK;
fail:
    threads_set(threads);
    dnn_free(&b->base);
    return rc;
}

static void dnn_memory(const struct hapi_backend *base, struct hapi_plan_memory *out)
{
    const struct hapi_dnn *b = (const struct hapi_dnn *)base;
    *out = (struct hapi_plan_memory){
        .weights = b->weight_bytes, .arena = b->arena_bytes, .scratch = b->scratch_bytes};
}

/* ------------------------------------------------------------------ run */

struct run {
    unsigned char *arena;
    const void *const *in;
    void *const *out;
};

static void *storage_at(const struct hapi_dnn *b, const struct run *r, int storage)
{
    const struct hapi_dnn_storage *s = &b->storages[storage];

    switch (s->place) {
    case HAPI_DNN_IN: /* read only: oneDNN has one type of handle */
        return (void *)(uintptr_t)r->in[s->index];
    case HAPI_DNN_OUT:
        return r->out[s->index];
    case HAPI_DNN_FIXED:
        return (void *)(uintptr_t)s->data;
    case HAPI_DNN_SCRATCH:
        return r->arena + b->arena_bytes;
    default:
        return r->arena + s->offset;
    }
}

static int primitive_run(struct hapi_dnn *b, const struct run *r, struct hapi_dnn_op *op,
                         struct hapi_err *err)
{
    dnnl_status_t s = dnnl_success;

    for (int i = 0; i < op->n_args && !s; i++) {
        void *p = storage_at(b, r, op->binds[i].storage);
        if (p == op->binds[i].handle)
            continue;
        s = dnnl_memory_set_data_handle_v2(op->binds[i].memory, p, b->stream);
        op->binds[i].handle = p;
    }
    if (!s)
        s = dnnl_primitive_execute(op->primitive, b->stream, op->n_args, op->args);
    if (s)
        return hapi_err_set(err, HAPI_ESYS, (long)s, "node `%s`: oneDNN status %d", op->name, (int)s);
    return HAPI_OK;
}

static int eval_run(struct hapi_dnn *b, const struct run *r, struct hapi_dnn_op *op, struct hapi_err *err)
{
    for (int i = 0; i < op->node->n_in; i++)
        op->in_ptr[i] = op->in[i] < 0 ? NULL : storage_at(b, r, op->in[i]);
    for (int i = 0; i < op->node->n_out; i++)
        op->out_ptr[i] = op->out[i] < 0 ? NULL : storage_at(b, r, op->out[i]);
    return hapi_ref_eval(b->g, op->node, op->in_ptr, op->out_ptr, err);
}

static int op_run(struct hapi_dnn *b, const struct run *r, struct hapi_dnn_op *op, struct hapi_err *err)
{
    if (op->kind == HAPI_DNN_PRIMITIVE)
        return primitive_run(b, r, op, err);
    if (op->kind == HAPI_DNN_EVAL)
        return eval_run(b, r, op, err);
    if (op->kind != HAPI_DNN_COPY) {
        hapi_dnn_vector_run(b->vector, op, storage_at(b, r, op->dst), storage_at(b, r, op->src),
                            op->scale < 0 ? NULL : storage_at(b, r, op->scale),
                            op->shift < 0 ? NULL : storage_at(b, r, op->shift),
                            op->kind != HAPI_DNN_CONV || op->plus < 0 ? NULL : storage_at(b, r, op->plus));
        return HAPI_OK;
    }
    hapi_ref_copy_strided(storage_at(b, r, op->dst), &op->shape,
                          (unsigned char *)storage_at(b, r, op->src) + op->src_offset, op->stride, op->size);
    return HAPI_OK;
}

static int ops_run(struct hapi_dnn *b, const struct run *r, size_t first, size_t end, struct hapi_err *err)
{
    int threads = threads_set(b->spec.threads > 1 ? b->spec.threads : 1), rc = HAPI_OK;
    unsigned csr = _mm_getcsr();

    _mm_setcsr(csr | DENORMALS_ARE_ZERO);
    for (size_t i = first; i < end && !rc; i++)
        rc = op_run(b, r, &b->ops[i], err);
    dnnl_stream_wait(b->stream);
    _mm_setcsr(csr);
    threads_set(threads);
    return rc;
}

/* A view, by its last dim. */
static void view_show(const struct hapi_dnn *b, const struct hapi_value *v, const struct hapi_dnn_rep *rep,
                      const float *data)
{
    int last = v->shape.rank - 1;
    int64_t n = hapi_ref_count(&v->shape), inner = last < 0 ? 1 : v->shape.dim[last];

    for (int64_t k = 0; k < n; k += inner) {
        int64_t at = rep->offset, left = k / inner;
        for (int i = last - 1; i >= 0; i--) {
            at += left % v->shape.dim[i] * rep->stride[i];
            left /= v->shape.dim[i];
        }
        b->seen(b->seen_arg, &(struct hapi_seen){.name = v->name,
                                                 .data = data + at,
                                                 .rows = inner,
                                                 .cols = 1,
                                                 .stride = last < 0 ? 1 : rep->stride[last]});
    }
}

static void value_show(const struct hapi_dnn *b, const struct run *r, int value)
{
    const struct hapi_value *v = &b->g->values[value];
    int rep = b->rep_of[value];

    if (v->data || rep < 0 || b->reps[rep].dtype != HAPI_F32)
        return;
    if (b->reps[rep].stride) {
        view_show(b, v, &b->reps[rep], storage_at(b, r, b->reps[rep].storage));
        return;
    }
    int64_t n = hapi_ref_count(&v->shape), cols = b->reps[rep].row ? v->shape.dim[1] : n;
    b->seen(b->seen_arg, &(struct hapi_seen){.name = v->name,
                                             .data = storage_at(b, r, b->reps[rep].storage),
                                             .rows = n ? n / cols : 0,
                                             .cols = cols,
                                             .stride = b->reps[rep].row ? b->reps[rep].row : n});
}

static int observed_run(struct hapi_dnn *b, const struct run *r, struct hapi_err *err)
{
    size_t at = 0;
    int rc = HAPI_OK;

    for (size_t i = 0; i < b->g->n_inputs; i++)
        value_show(b, r, b->g->inputs[i]);
    for (size_t i = 0; i < b->n_steps && !rc; i++) {
        rc = ops_run(b, r, at, b->ends[i], err);
        at = b->ends[i];
        if (!rc)
            value_show(b, r, b->steps[i].out);
    }
    return rc ? rc : ops_run(b, r, at, b->n_ops, err);
}

static int dnn_run(struct hapi_backend *base, void *arena, const void *const *in, void *const *out,
                   struct hapi_err *err)
{
    struct hapi_dnn *b = (struct hapi_dnn *)base;
    const struct run r = {arena, in, out};

    return b->seen ? observed_run(b, &r, err) : ops_run(b, &r, 0, b->n_ops, err);
}

static void dnn_observe(struct hapi_backend *base, void (*seen)(void *arg, const struct hapi_seen *s),
                        void *arg)
{
    struct hapi_dnn *b = (struct hapi_dnn *)base;

    b->seen = seen;
    b->seen_arg = arg;
}

static size_t dnn_kernels(const struct hapi_backend *base)
{
    return ((const struct hapi_dnn *)base)->n_ops;
}

static void dnn_kernel_get(const struct hapi_backend *base, size_t i, struct hapi_plan_kernel *out)
{
    const struct hapi_dnn_op *op = &((const struct hapi_dnn *)base)->ops[i];

    *out = (struct hapi_plan_kernel){op->name, op->op ? hapi_op_name(op->op) : "", op->kernel, op->flops};
}

static int dnn_kernel_run(struct hapi_backend *base, void *arena, const void *const *in, void *const *out,
                          size_t i, struct hapi_err *err)
{
    const struct run r = {arena, in, out};

    return ops_run((struct hapi_dnn *)base, &r, i, i + 1, err);
}

static const char *dnn_class(void)
{
    pthread_once(&process_once, process_init);
    return class_text;
}

const struct hapi_backend_ops hapi_backend_onednn = {
    .name = "onednn",
    .copies = true,
    .tiled = true,
    .compile = dnn_compile,
    .memory = dnn_memory,
    .run = dnn_run,
    .kernels = dnn_kernels,
    .kernel_get = dnn_kernel_get,
    .kernel_run = dnn_kernel_run,
    .observe = dnn_observe,
    .free = dnn_free,
    .weights_free = hapi_dnn_weights_free,
    .numeric_class = dnn_class,
};
