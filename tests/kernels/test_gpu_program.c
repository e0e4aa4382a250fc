/*
 * The program that a GPU would run, evaluated on the CPU, gives what the network gives: operation graphs by
 * plain loops (opgraph_eval.h), our own CUDA kernels from their source (cuda_on_cpu.h). What this cannot
 * show: that cuDNN computes what an operation graph says, and how fast. ci/gpu-check does, where there is a
 * GPU.
 *
 *     kernels_test_gpu_program [--batch N] [MODEL.onnx...]         default: 2; small ones of torchvision's
 */
#include <math.h>

#include "check.h"
#include "convert.h"
#include "cuda_on_cpu.h"
#include "gpu.h"
#include "int8.h"
#include "kernels.h"
#include "networks.h"
#include "opgraph_eval.h"

static struct hapi_err err;
static int64_t batch = 2;

/* ------------------------------------------------------------------ whoever makes plans: none, but it looks
 */

struct maker {
    int plans;
    int ops_max; /* larger graphs have no engine: what is left must do as well */
};

static int plan(void *arg, const struct hapi_cudnn_graph *g, int *number, uint64_t *workspace,
                struct hapi_err *e)
{
    struct maker *m = arg;
    int rc = hapi_cudnn_graph_check(g, e);

    if (rc)
        return rc == HAPI_EUNSUPPORTED ? HAPI_EINVAL : rc;
    if (g->n_ops > m->ops_max)
        return hapi_err_set(e, HAPI_EUNSUPPORTED, 0, "too many ops");
    *number = m->plans++;
    *workspace = 0;
    return HAPI_OK;
}

/* ------------------------------------------------------------------ running a program */

struct machine {
    const struct hapi_gpu_program *p;
    unsigned char *arena, *weights;
    void *const *in, *const *out;
};

static void *memory_of(const struct machine *m, const struct hapi_gpu_operand *o)
{
    const struct hapi_gpu_storage *s = &m->p->storages[o->storage];

    switch (s->place) {
    case HAPI_GPU_ARENA:
        return m->arena + s->offset + o->offset;
    case HAPI_GPU_WEIGHT:
        return m->weights + s->offset + o->offset;
    case HAPI_GPU_IN:
        return (unsigned char *)m->in[s->index] + o->offset;
    default:
        return (unsigned char *)m->out[s->index] + o->offset;
    }
}

static void launch_run(const struct machine *m, const struct hapi_gpu_launch *l)
{
    void *memory[HAPI_CUDNN_TENSORS] = {NULL}, *buffers[HAPI_GPU_OPERANDS] = {NULL};

    if (!l->graph) {
        for (int i = 0; i < l->n_operands; i++)
            buffers[i] = memory_of(m, &l->operands[i]);
        cuda_on_cpu_run(&l->kernel, 2, 64, buffers);
        return;
    }
    for (int i = 0; i < l->n_operands; i++)
        for (int k = 0; k < l->graph->n_tensors; k++)
            if (l->graph->tensors[k].uid == l->operands[i].uid)
                memory[k] = memory_of(m, &l->operands[i]);
    for (int k = 0; k < l->graph->n_tensors; k++)
        REQUIRE(memory[k] || l->graph->tensors[k].is_virtual || l->graph->tensors[k].by_value);
    opgraph_eval(l->graph, memory);
}

/* What is in the arena before is garbage, as on a GPU. */
static void program_run(const struct hapi_gpu_program *p, void *const *in, void *const *out)
{
    struct machine m = {p, malloc(p->arena_bytes + 1), malloc(p->weight_bytes + 1), in, out};

    REQUIRE(m.arena && m.weights);
    memset(m.arena, 0xff, p->arena_bytes);
    for (size_t i = 0; i < p->n_weights; i++)
        hapi_gpu_weight_write(&p->weights[i], m.weights + p->storages[p->weights[i].storage].offset);
    for (size_t i = 0; i < p->n_launches; i++)
        launch_run(&m, &p->launches[i]);
    free(m.weights);
    free(m.arena);
}

/* ------------------------------------------------------------------ networks */

static size_t edge_bytes(const struct hapi_tensor_desc *d)
{
    size_t bytes = 0;

    REQUIRE(!hapi_tensor_bytes(&d->shape, d->dtype, &bytes));
    return bytes;
}

static double distance(const float *a, const float *b, size_t n)
{
    double d = 0, s = 0;

    for (size_t i = 0; i < n; i++) {
        d += ((double)a[i] - (double)b[i]) * ((double)a[i] - (double)b[i]);
        s += (double)b[i] * (double)b[i];
    }
    return sqrt(d / (s > 0 ? s : 1));
}

/* Slow waves, as wide as normalised images: noise is what random networks magnify most. */
static void fill(float *p, size_t n)
{
    for (size_t i = 0; i < n; i++)
        p[i] = sinf((float)i * 0.0131F) + sinf((float)i * 0.00037F);
}

static void expected(struct hapi_model *m, const struct hapi_plan_spec *spec, const float *in, float *out)
{
    struct hapi_plan *p;
    const void *ins[] = {in};
    void *outs[] = {out};

    REQUIRE(!hapi_plan_new(&p, m, spec, &err));
    struct hapi_plan_memory mem = hapi_plan_memory_get(p);
    void *arena = aligned_alloc(4096, (mem.arena + mem.scratch + 8191) & ~4095ULL);
    REQUIRE(arena && !hapi_plan_run(p, arena, ins, outs, &err));
    free(arena);
    hapi_plan_free(p);
}

static void network(const char *name, struct hapi_model *m)
{
    static const struct {
        enum hapi_dtype dtype;
        int ops_max;
        double most;
    } ways[] = {{HAPI_F32, HAPI_CUDNN_OPS, 1e-4},
                {HAPI_F32, 1, 1e-4},
                {HAPI_F16, HAPI_CUDNN_OPS, 2e-2},
                {HAPI_BF16, HAPI_CUDNN_OPS, 0.15}};
    struct hapi_plan_spec spec = {.batch = batch, .dtype = HAPI_F32, .backend = "onednn"};
    const struct hapi_tensor_desc *in, *out;
    struct hapi_graph *g;

    if (hapi_graph_bind(&g, m, &spec, &err)) {
        CHECKF(0, "%s: %s", name, err.text);
        return;
    }
    REQUIRE(hapi_model_inputs(m, &in) == 1 && hapi_model_outputs(m, &out) == 1);
    size_t n_in = edge_bytes(in) / sizeof(float) * (size_t)batch,
           n_out = edge_bytes(out) / sizeof(float) * (size_t)batch;
    float *x = calloc(n_in, sizeof *x), *want = calloc(n_out, sizeof *want),
          *got = calloc(n_out, sizeof *got);
    REQUIRE(x && want && got);
    fill(x, n_in);
    expected(m, &spec, x, want);
    for (size_t i = 0; i < sizeof ways / sizeof *ways; i++) {
        struct maker k = {.ops_max = ways[i].ops_max};
        const struct hapi_gpu_maker maker = {plan, &k};
        struct hapi_gpu_program *p;
        if (hapi_gpu_program_new(&p, g, ways[i].dtype, &(struct hapi_gpu_edges){.plain = false}, &maker,
                                 &err)) {
            CHECKF(0, "%s: %s", name, err.text);
            continue;
        }
        program_run(p, (void *const[]){x}, (void *const[]){got});
        double d = distance(got, want, n_out);
        CHECKF(d <= ways[i].most, "%s: %g away", name, d);
        printf("%s: %zu launches, graphs of %d ops at most, %s: %.1e away\n", name, p->n_launches,
               ways[i].ops_max, hapi_dtype_name(ways[i].dtype), d);
        hapi_gpu_program_free(p);
    }
    free(got);
    free(want);
    free(x);
    hapi_graph_free(g);
    hapi_model_close(m);
}

static void file(const char *path)
{
    struct hapi_model *m;

    if (hapi_model_open(&m, path, NULL, &err))
        CHECKF(0, "%s: %s", path, err.text);
    else
        network(strrchr(path, '/') ? strrchr(path, '/') + 1 : path, m);
}

static void program__of_small_networks__gives_what_the_network_gives(void)
{
    network("mobile", net_mobile(32, false));
    network("mobile with pads", net_mobile(32, true));
    network("resnet", net_resnet(32));
    network("excite", net_excite(32));
    network("dense", net_dense(32));
    network("transformer", net_transformer(32));
}

/* Bytes in, the wire's dtype out: both converted by kernels of ours. */
static void edges(enum hapi_dtype wire)
{
    static const struct hapi_gpu_image image = {
        .scale = 1.0F / 128, .mean = {1, 0.9F, 1.1F}, .std = {0.8F, 0.9F, 1}, .bgr = 1};
    const struct hapi_gpu_edges how = {.image = &image, .wire = wire};
    struct hapi_model *m = net_resnet(32);
    struct hapi_plan_spec spec = {.batch = batch, .dtype = HAPI_F32, .backend = "onednn", .to = NULL};
    struct maker k = {.ops_max = HAPI_CUDNN_OPS};
    const struct hapi_gpu_maker maker = {plan, &k};
    const struct hapi_tensor_desc *in, *out;
    struct hapi_gpu_program *p;
    struct hapi_graph *g;
    struct hapi_i8 form;
    struct hapi_shape s;

    REQUIRE(!hapi_graph_bind(&g, m, &spec, &err));
    REQUIRE(hapi_model_inputs(m, &in) == 1 && hapi_model_outputs(m, &out) == 1);
    size_t n_in = edge_bytes(in) / sizeof(float) * (size_t)batch,
           n_out = edge_bytes(out) / sizeof(float) * (size_t)batch;
    float *x = calloc(n_in, sizeof *x), *want = calloc(n_out, sizeof *want),
          *got = calloc(n_out, sizeof *got);
    uint8_t *bytes = calloc(n_in, 1), *rows = calloc(n_out, 8);
    REQUIRE(x && want && got && bytes && rows);
    for (size_t i = 0; i < n_in; i++)
        bytes[i] = (uint8_t)(128 + 100 * sin((double)i * 0.013));
    for (size_t i = 0; i < n_in; i++)
        x[i] = ((float)bytes[i / 3 * 3 + 2 - i % 3] * image.scale - image.mean[i % 3]) / image.std[i % 3];
    expected(m, &spec, x, want);
    REQUIRE(!hapi_gpu_program_new(&p, g, HAPI_F32, &how, &maker, &err));
    program_run(p, (void *const[]){bytes}, (void *const[]){rows});
    s = out->shape;
    s.dim[0] = batch;
    if (wire == HAPI_I8)
        CHECK(!hapi_i8_form(&form, &s) && !hapi_i8_unpack(got, rows, &form, (size_t)batch, NULL));
    else
        hapi_convert(got, HAPI_F32, rows, wire, n_out);
    double d = distance(got, want, n_out), most = wire == HAPI_F32    ? 1e-5
                                                  : wire == HAPI_F16  ? 1e-3
                                                  : wire == HAPI_BF16 ? 5e-3
                                                                      : 1.5e-2;
    CHECKF(d <= most && d > (wire == HAPI_F32 ? -1 : 1e-5), "%s: %g away", hapi_dtype_name(wire), d);
    hapi_gpu_program_free(p);
    free(rows);
    free(bytes);
    free(got);
    free(want);
    free(x);
    hapi_graph_free(g);
    hapi_model_close(m);
}

static void program__with_bytes_in_and_each_wire_out__gives_what_the_network_gives(void)
{
    edges(HAPI_F32);
    edges(HAPI_F16);
    edges(HAPI_BF16);
    edges(HAPI_I8);
}

/* Exported where no test has yet. */
static void program__of_torchvision__gives_what_the_network_gives(void)
{
    FILE *list = popen("/usr/bin/python3 '" HAPI_SOURCE_DIR
                       "/tests/tools/exports.py' resnet18 mobilenet_v2 densenet121 efficientnet_b0",
                       "r");
    char path[1024];

    REQUIRE(list);
    while (fgets(path, sizeof path, list)) {
        path[strcspn(path, "\n")] = 0;
        if (!strncmp(path, "skipped", 7))
            SKIP("python3 with torch, torchvision, onnx and photos is not installed");
        file(path);
    }
    CHECK(!pclose(list));
}

int main(int argc, char **argv)
{
    int i = 1;

    if (argc > 2 && !strcmp(argv[1], "--batch")) {
        batch = strtoll(argv[2], NULL, 10);
        i = 3;
    }
    if (i == argc) {
        CASE(program__of_small_networks__gives_what_the_network_gives);
        CASE(program__with_bytes_in_and_each_wire_out__gives_what_the_network_gives);
        if (!CHECK_SANITIZED) /* they run the same code as the small ones */
            CASE(program__of_torchvision__gives_what_the_network_gives);
    }
    for (; i < argc; i++)
        file(argv[i]);
    return check_done();
}
