/*
 * `hapi-bench cudnn-plans`: every operation graph of a network compiled by cuDNN for a device that need not
 * be here: which engine takes it, with which workspace, in what time. What a GPU would refuse is refused now.
 */
#include <cjson/cJSON.h>
#include <dlfcn.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bench.h"
#include "clock.h"
#include "kernels.h"

#if HAPI_HAVE_CUDNN

#include "cudnn_plans.h"
#include "gpu.h"
#include "model.h"

enum { DESCRIPTION_MAX = 1 << 16, PATH = 4096 };

struct options {
    struct hapi_plan_spec spec;
    const char *model, *device, *capture, *cache;
    int id;
    bool json;
};

static const char help[] =
    "usage: hapi-bench cudnn-plans --model MODEL.onnx --device DEVICE [OPTION...]\n"
    "       hapi-bench cudnn-plans --capture-device FILE.json [--id N]\n\n"
    "Compiles a network, or a part of it, with cuDNN for a GPU that need not be there. Exit code 1 when an "
    "operation graph "
    "has\nno engine.\n\n"
    "  --device D        h100, a100, or a description as --capture-device writes it\n"
    "  --micro-batch N   images of one run (default: 8)\n"
    "  --dtype D         f16, bf16 or f32 (default: f16)\n"
    "  --from ID, --to ID  cuts where the part begins and ends (default: the whole network)\n"
    "  --cache FOLDER    takes plans from there, and keeps new ones there (default: none)\n"
    "  --json            one line of JSON\n"
    "  --capture-device FILE  writes the description of a GPU of this machine, number N (default: 0)\n"
    "  --help\n";

/* ------------------------------------------------------------------ what cuDNN asks for a driver */

/* cuDNN finds it by its name once it is loaded. Beside the program, or where it is installed. */
static void driver_load(void)
{
    static const char *const places[] = {"libhapi-no-driver.so", "../lib/hapi/libhapi-no-driver.so"};
    char path[PATH];
    ssize_t n;

    if (dlopen("libcuda.so.1", RTLD_NOW | RTLD_GLOBAL))
        return;
    n = readlink("/proc/self/exe", path, sizeof path - 64);
    while (n > 0 && path[n - 1] != '/')
        n--;
    for (size_t i = 0; i < sizeof places / sizeof *places && n > 0; i++) {
        snprintf(path + n, sizeof path - (size_t)n, "%s", places[i]);
        if (dlopen(path, RTLD_NOW | RTLD_GLOBAL))
            return;
    }
    fputs("hapi-bench cudnn-plans: neither a CUDA driver nor libhapi-no-driver.so: kernels that cuDNN "
          "compiles itself will be "
          "refused\n",
          stderr);
}

static int device_open(struct hapi_cudnn_device **out, const char *name, struct hapi_err *err)
{
    const char *text = hapi_cudnn_device_text(name);
    char *bytes;
    FILE *f;

    if (text)
        return hapi_cudnn_device_parse(out, text, strlen(text), err);
    f = fopen(name, "re");
    bytes = f ? malloc(DESCRIPTION_MAX) : NULL;
    if (!bytes) {
        int rc = f ? hapi_err_set(err, HAPI_ENOMEM, 0, "no memory for the description of a device")
                   : hapi_err_set(err, HAPI_ENOENT, 0,
                                  "no device `%s` (h100 and a100 are built in), and no such file", name);
        if (f)
            (void)fclose(f);
        return rc;
    }
    size_t n = fread(bytes, 1, DESCRIPTION_MAX, f);
    (void)fclose(f);
    int rc = hapi_cudnn_device_parse(out, bytes, n, err);
    free(bytes);
    return rc;
}

static int capture(const struct options *o, struct hapi_err *err)
{
    char *json = NULL;
    int rc = hapi_cudnn_device_capture(&json, o->id, err);
    FILE *f = rc ? NULL : fopen(o->capture, "we");

    if (!rc && !f)
        rc = hapi_err_set(err, HAPI_ESYS, 0, "cannot write %s", o->capture);
    if (f && (fputs(json, f) < 0 || fclose(f)))
        rc = hapi_err_set(err, HAPI_ESYS, 0, "cannot write %s", o->capture);
    free(json);
    return rc;
}

/* ------------------------------------------------------------------ reports */

struct sums {
    int graphs, without, kernels;
    int64_t build_ns;
};

static struct sums sums_of(const struct hapi_cudnn_plans *plans, const struct hapi_gpu_program *p)
{
    struct sums s = {.graphs = 0};

    for (size_t i = 0; i < hapi_cudnn_plans_count(plans); i++) {
        struct hapi_cudnn_made m = hapi_cudnn_plans_get(plans, i);
        s.graphs += m.plan != NULL;
        s.without += m.plan == NULL;
        s.build_ns += m.build_ns;
    }
    for (size_t i = 0; p && i < p->n_launches; i++)
        s.kernels += p->launches[i].graph == NULL;
    return s;
}

static void print_text(const struct hapi_cudnn_plans *plans, const struct hapi_gpu_program *p)
{
    char ops[160];
    struct sums s = sums_of(plans, p);

    printf("%-32s %-36s %5s %12s %9s  %s\n", "first node", "operations", "uses", "workspace", "ms", "engine");
    for (size_t i = 0; i < hapi_cudnn_plans_count(plans); i++) {
        struct hapi_cudnn_made m = hapi_cudnn_plans_get(plans, i);
        struct hapi_cudnn_plan_info info = {.engine = NULL};
        if (m.plan)
            info = hapi_cudnn_plan_info_get(m.plan);
        printf("%-32.32s %-36s %5d %12llu %9.1f  %s%s\n", m.graph->name,
               hapi_cudnn_graph_text(m.graph, ops, sizeof ops), m.uses, (unsigned long long)info.workspace,
               1e-6 * (double)m.build_ns, m.plan ? info.engine : "none: in smaller graphs",
               info.compiled ? ", compiled" : "");
    }
    printf("%d operation graphs in %.1f s", s.graphs, 1e-9 * (double)s.build_ns);
    if (p)
        printf("; a run is %zu launches, %d of them our own kernels; weights %.1f MB, arena %.1f MB, "
               "workspace %.1f MB",
               p->n_launches, s.kernels, 1e-6 * (double)p->weight_bytes, 1e-6 * (double)p->arena_bytes,
               1e-6 * (double)p->scratch_bytes);
    putchar('\n');
}

static void plan_json(cJSON *list, const struct hapi_cudnn_made *m)
{
    cJSON *o = cJSON_CreateObject();
    char ops[160];

    cJSON_AddStringToObject(o, "node", m->graph->name);
    cJSON_AddStringToObject(o, "operations", hapi_cudnn_graph_text(m->graph, ops, sizeof ops));
    cJSON_AddNumberToObject(o, "uses", m->uses);
    cJSON_AddNumberToObject(o, "build_ms", 1e-6 * (double)m->build_ns);
    if (m->plan) {
        struct hapi_cudnn_plan_info info = hapi_cudnn_plan_info_get(m->plan);
        cJSON_AddStringToObject(o, "engine", info.engine);
        cJSON_AddBoolToObject(o, "kept", m->kept);
        cJSON_AddNumberToObject(o, "workspace", (double)info.workspace);
        cJSON_AddBoolToObject(o, "compiled", info.compiled);
        cJSON_AddNumberToObject(o, "engines_refused", info.tried);
    } else {
        cJSON_AddNullToObject(o, "engine");
        cJSON_AddStringToObject(o, "refusal", m->refusal ? m->refusal : "");
    }
    cJSON_AddItemToArray(list, o);
}

static void print_json(const struct options *o, const struct hapi_cudnn_device *d,
                       const struct hapi_cudnn_plans *plans, const struct hapi_gpu_program *p,
                       const struct hapi_err *err)
{
    struct sums s = sums_of(plans, p);
    cJSON *all = cJSON_CreateObject(), *list = cJSON_AddArrayToObject(all, "plans");
    char *text;

    cJSON_AddStringToObject(all, "version", HAPI_VERSION);
    cJSON_AddStringToObject(all, "model", o->model);
    cJSON_AddStringToObject(all, "device", hapi_cudnn_device_name(d));
    cJSON_AddNumberToObject(all, "device_version", hapi_cudnn_device_version(d));
    cJSON_AddNumberToObject(all, "micro_batch", (double)o->spec.batch);
    cJSON_AddStringToObject(all, "dtype", hapi_dtype_name(o->spec.dtype));
    cJSON_AddNumberToObject(all, "graphs", s.graphs);
    cJSON_AddNumberToObject(all, "graphs_split", s.without);
    cJSON_AddNumberToObject(all, "build_s", 1e-9 * (double)s.build_ns);
    cJSON_AddBoolToObject(all, "ok", p != NULL);
    if (p) {
        cJSON_AddNumberToObject(all, "launches", (double)p->n_launches);
        cJSON_AddNumberToObject(all, "own_kernels", s.kernels);
        cJSON_AddNumberToObject(all, "weight_bytes", (double)p->weight_bytes);
        cJSON_AddNumberToObject(all, "arena_bytes", (double)p->arena_bytes);
        cJSON_AddNumberToObject(all, "workspace_bytes", (double)p->scratch_bytes);
    } else {
        cJSON_AddStringToObject(all, "error", err->text);
    }
    for (size_t i = 0; i < hapi_cudnn_plans_count(plans); i++) {
        struct hapi_cudnn_made m = hapi_cudnn_plans_get(plans, i);
        plan_json(list, &m);
    }
    text = cJSON_PrintUnformatted(all);
    puts(text ? text : "{}");
    cJSON_free(text);
    cJSON_Delete(all);
}

/* ------------------------------------------------------------------ the command */

static int compile(const struct options *o, struct hapi_err *err)
{
    struct hapi_plan_spec spec = o->spec;
    struct hapi_cudnn_device *d = NULL;
    struct hapi_cudnn_plans *plans = NULL;
    struct hapi_gpu_program *p = NULL;
    struct hapi_model *m = NULL;
    struct hapi_graph *g = NULL;
    int rc = device_open(&d, o->device, err);

    if (!rc)
        rc = hapi_cudnn_plans_new(&plans, d, o->cache, err);
    if (!rc)
        rc = hapi_model_open(&m, o->model, NULL, err);
    if (!rc)
        rc = hapi_graph_bind_raw(&g, m, &spec, true, err);
    if (!rc) {
        const struct hapi_gpu_maker maker = {hapi_cudnn_plans_make, plans};
        rc =
            hapi_gpu_program_new(&p, g, o->spec.dtype, &(struct hapi_gpu_edges){.plain = false}, &maker, err);
        if (o->json)
            print_json(o, d, plans, p, err);
        else
            print_text(plans, p);
    }
    hapi_gpu_program_free(p);
    hapi_graph_free(g);
    hapi_model_close(m);
    hapi_cudnn_plans_free(plans);
    hapi_cudnn_device_free(d);
    return rc;
}

static bool number_parse(const char *text, long least, long most, long *out)
{
    char *end;

    *out = strtol(text, &end, 10);
    return end > text && !*end && *out >= least && *out <= most;
}

/* One option; what is wrong with it, or NULL. */
static const char *option_take(struct options *o, int c, const char *value)
{
    long n = 0;

    switch (c) {
    case 'm':
        o->model = value;
        return NULL;
    case 'D':
        o->device = value;
        return NULL;
    case 'c':
        o->capture = value;
        return NULL;
    case 'C':
        o->cache = value;
        return NULL;
    case 'f':
        o->spec.from = value;
        return NULL;
    case 't':
        o->spec.to = value;
        return NULL;
    case 'd':
        o->spec.dtype = hapi_dtype_from_name(value);
        return o->spec.dtype == HAPI_F16 || o->spec.dtype == HAPI_BF16 || o->spec.dtype == HAPI_F32
                   ? NULL
                   : "--dtype is not f16, bf16 or f32";
    case 'n':
        if (!number_parse(value, 1, 1 << 20, &n))
            return "--micro-batch is not a number from 1 on";
        o->spec.batch = n;
        return NULL;
    case 'i':
        if (!number_parse(value, 0, 1023, &n))
            return "--id is not a number from 0 to 1023";
        o->id = (int)n;
        return NULL;
    default:
        o->json = true;
        return NULL;
    }
}

/* 0, or an exit code plus one. */
static int parse(struct options *o, int argc, char **argv)
{
    static const struct option options[] = {{"model", required_argument, NULL, 'm'},
                                            {"device", required_argument, NULL, 'D'},
                                            {"micro-batch", required_argument, NULL, 'n'},
                                            {"dtype", required_argument, NULL, 'd'},
                                            {"from", required_argument, NULL, 'f'},
                                            {"to", required_argument, NULL, 't'},
                                            {"capture-device", required_argument, NULL, 'c'},
                                            {"cache", required_argument, NULL, 'C'},
                                            {"id", required_argument, NULL, 'i'},
                                            {"json", no_argument, NULL, 'j'},
                                            {"help", no_argument, NULL, 'h'},
                                            {NULL, 0, NULL, 0}};
    const char *wrong = NULL;
    int c;

    *o = (struct options){.spec = {.batch = 8, .dtype = HAPI_F16}};
    while (!wrong && (c = getopt_long(argc, argv, "", options, NULL)) != -1) {
        if (c == 'h') {
            fputs(help, stdout);
            return BENCH_OK + 1;
        }
        if (c == '?')
            return BENCH_USAGE + 1; /* getopt has said it */
        wrong = option_take(o, c, optarg);
    }
    if (!wrong && optind != argc)
        wrong = "too many arguments";
    else if (!wrong && !o->capture && (!o->model || !o->device))
        wrong = o->model ? "no --device given" : "no --model given";
    if (wrong)
        fprintf(stderr, "hapi-bench cudnn-plans: %s (see hapi-bench cudnn-plans --help)\n", wrong);
    return wrong ? BENCH_USAGE + 1 : 0;
}

int bench_cudnn_plans(int argc, char **argv)
{
    struct hapi_err err = {0};
    struct options o;
    int rc = parse(&o, argc, argv);

    if (rc)
        return rc - 1;
    if (!o.capture)
        driver_load();
    rc = o.capture ? capture(&o, &err) : compile(&o, &err);
    if (rc)
        fprintf(stderr, "hapi-bench cudnn-plans: %s\n", err.text);
    return rc ? BENCH_FAILURE : BENCH_OK;
}

#else

int bench_cudnn_plans(int argc, char **argv)
{
    (void)argc;
    (void)argv;
    fputs("hapi-bench cudnn-plans: this build has no cuDNN: build where cudnn_graph.h is found\n", stderr);
    return BENCH_FAILURE;
}

#endif
