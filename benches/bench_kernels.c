/*
 * `hapi-bench kernels`: images a second of one plan on one core, where its time goes, and the sum of its bare
 * oneDNN primitives, each alone on its own buffers, for comparison.
 */
#include <cjson/cJSON.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench.h"
#include "clock.h"
#include "kernels.h"
#include "slab.h"

enum { RUNS_MAX = 100000, RUNS_MIN = 3, EDGES_MAX = 64, LAYER_RUNS = 5 };

struct options {
    struct hapi_plan_spec spec;
    const char *model;
    double seconds;
    bool bare, layers, paced, json, autotune;
};

static const char help[] =
    "usage: hapi-bench kernels --model MODEL.onnx [OPTION...]\n\n"
    "Times a network, or a part of it, on random images, on one core unless told otherwise (pin it with "
    "taskset).\n\n"
    "  --micro-batch N   images of one run (default: 8)\n"
    "  --dtype D         f32, bf16, i8, or on a GPU f16 (default: f32)\n"
    "  --from ID, --to ID  cuts where the part begins and ends (default: the whole network)\n"
    "  --backend B       onednn, cudnn or ref (default: onednn)\n"
    "  --threads N       cores of one run (intra-op; default: 1)\n"
    "  --autotune        on a GPU: the fastest engines, tried out when the plan is made\n"
    "  --stock           oneDNN's kernels only, none of our own\n"
    "  --bare            also the sum of the bare oneDNN primitives: those of --stock, each timed alone\n"
    "  --layers          also each kernel of the plan, with its time within a run\n"
    "  --seconds S       how long to time (default: 2)\n"
    "  --paced           for drivers: one round of S seconds and its report for each line of standard input; "
    "a\n"
    "                    line that is a number changes the micro-batch first\n"
    "  --json            one line of JSON for each report\n"
    "  --help\n";

/* ------------------------------------------------------------------ one plan with its memory */

struct subject {
    struct hapi_plan *plan;
    struct hapi_slab memory;
    void *arena;
    const void *in[EDGES_MAX];
    void *out[EDGES_MAX];
    double plan_ms, first_ms; /* making the plan; that and its first run */
};

static void subject_fini(struct subject *s)
{
    hapi_plan_free(s->plan);
    hapi_slab_fini(&s->memory);
}

static size_t edge_bytes(const struct hapi_tensor_desc *d)
{
    size_t bytes = 0;

    (void)hapi_tensor_bytes(&d->shape, d->dtype, &bytes);
    return bytes;
}

/* Normalised images are about as wide. The same numbers in every run. */
static void fill(float *p, size_t n)
{
    uint32_t x = 1;

    for (size_t i = 0; i < n; i++) {
        x = x * 1664525u + 1013904223u;
        p[i] = (float)(x >> 8) / (float)(1 << 22) - 2;
    }
}

static int subject_init(struct subject *s, struct hapi_model *m, const struct hapi_plan_spec *spec,
                        struct hapi_err *err)
{
    const struct hapi_tensor_desc *in, *out;
    int64_t t0 = hapi_clock_ns();

    memset(s, 0, sizeof *s);
    int rc = hapi_plan_new(&s->plan, m, spec, err);
    if (rc)
        return rc;
    s->plan_ms = 1e-6 * (double)(hapi_clock_ns() - t0);
    size_t n_in = hapi_plan_inputs(s->plan, &in), n_out = hapi_plan_outputs(s->plan, &out);
    struct hapi_plan_memory mem = hapi_plan_memory_get(s->plan);
    size_t need = mem.arena + mem.scratch + 4096;
    if (n_in > EDGES_MAX || n_out > EDGES_MAX)
        return hapi_err_set(err, HAPI_ETOOBIG, 0, "a cut of more than %d tensors", EDGES_MAX);
    for (size_t i = 0; i < n_in; i++)
        need += edge_bytes(&in[i]) + 4096;
    for (size_t i = 0; i < n_out; i++)
        need += edge_bytes(&out[i]) + 4096;
    rc = hapi_slab_init(&s->memory, need, err);
    if (rc)
        return rc;
    s->arena = hapi_slab_take(&s->memory, mem.arena + mem.scratch, 4096);
    for (size_t i = 0; i < n_in; i++) {
        float *p = hapi_slab_take(&s->memory, edge_bytes(&in[i]), 4096);
        if (in[i].dtype != HAPI_F32)
            return hapi_err_set(err, HAPI_EUNSUPPORTED, 0, "input %s is no float tensor", in[i].name);
        fill(p, edge_bytes(&in[i]) / sizeof *p);
        s->in[i] = p;
    }
    for (size_t i = 0; i < n_out; i++)
        s->out[i] = hapi_slab_take(&s->memory, edge_bytes(&out[i]), 4096);
    rc = hapi_plan_run(s->plan, s->arena, s->in, s->out, err); /* warm-up */
    s->first_ms = 1e-6 * (double)(hapi_clock_ns() - t0);
    return rc;
}

/* ------------------------------------------------------------------ measuring */

struct layer {
    struct hapi_plan_kernel kernel;
    double ms, alone_ms; /* of one part: in a run, and over and over on the same buffers */
};

struct result {
    struct bench_times ms; /* of one run */
    double bare_ms;        /* 0: not asked for */
    struct layer *layers;
    size_t n_layers;
};

static int whole(struct subject *s, double seconds, double *ms, struct bench_times *out, struct hapi_err *err)
{
    int64_t end = hapi_clock_ns() + (int64_t)(seconds * 1e9), now = 0;
    size_t n = 0;

    while (n < RUNS_MAX && (n < RUNS_MIN || now < end)) {
        int64_t t0 = hapi_clock_ns();
        int rc = hapi_plan_run(s->plan, s->arena, s->in, s->out, err);
        if (rc)
            return rc;
        now = hapi_clock_ns();
        ms[n++] = 1e-6 * (double)(now - t0);
    }
    bench_times_of(ms, n, out);
    return 0;
}

/* The median of each kernel's times. alone: each over and over; else in turn, as a run does. */
static int kernels(struct subject *s, bool alone, int runs, double *ms, struct layer *out,
                   struct hapi_err *err)
{
    size_t n = hapi_plan_kernels(s->plan);
    double *all = malloc((n * (size_t)runs + 1) * sizeof *all);
    int rc = all ? 0 : hapi_err_set(err, HAPI_ENOMEM, 0, "no memory for %zu kernels", n);

    for (size_t k = 0; k < n * (size_t)runs && !rc; k++) {
        size_t i = alone ? k / (size_t)runs : k % n, run = alone ? k % (size_t)runs : k / n;
        int64_t t0 = hapi_clock_ns();
        rc = hapi_plan_kernel_run(s->plan, s->arena, s->in, s->out, i, err);
        all[i * (size_t)runs + run] = 1e-6 * (double)(hapi_clock_ns() - t0);
    }
    *ms = 0;
    for (size_t i = 0; i < n && !rc; i++) {
        struct bench_times t;
        bench_times_of(all + i * (size_t)runs, (size_t)runs, &t);
        *ms += t.median;
        if (out) {
            hapi_plan_kernel_get(s->plan, i, &out[i].kernel);
            *(alone ? &out[i].alone_ms : &out[i].ms) = t.median;
        }
    }
    free(all);
    return rc;
}

static int measure(struct subject *s, struct subject *bare, const struct options *o, struct result *r,
                   struct hapi_err *err)
{
    double *ms = malloc(RUNS_MAX * sizeof *ms), sum;
    int rc = ms ? whole(s, o->seconds, ms, &r->ms, err) : hapi_err_set(err, HAPI_ENOMEM, 0, "no memory");

    free(ms);
    if (!rc && o->bare) {
        rc = kernels(bare, true, LAYER_RUNS, &r->bare_ms, NULL, err);
        r->bare_ms *= (double)hapi_plan_parts(bare->plan);
    }
    if (!rc && o->layers) {
        r->n_layers = hapi_plan_kernels(s->plan);
        free(r->layers);
        r->layers = calloc(r->n_layers + 1, sizeof *r->layers);
        rc = r->layers ? kernels(s, true, LAYER_RUNS, &sum, r->layers, err)
                       : hapi_err_set(err, HAPI_ENOMEM, 0, "no memory for %zu kernels", r->n_layers);
        if (!rc)
            rc = kernels(s, false, LAYER_RUNS, &sum, r->layers, err);
    }
    return rc;
}

/* ------------------------------------------------------------------ reports */

static void print_text(const struct options *o, const struct subject *s, const struct result *r)
{
    double n = (double)o->spec.batch, parts = (double)hapi_plan_parts(s->plan);
    struct hapi_plan_memory mem = hapi_plan_memory_get(s->plan);

    printf("%s, %s, micro-batch %lld in %g parts, %s\n", o->model, hapi_dtype_name(o->spec.dtype),
           (long long)o->spec.batch, parts, hapi_numeric_class(o->spec.backend));
    printf("%.2f images/s; ms an image: median %.3f, min %.3f, p99 %.3f (%zu runs)\n", 1e3 * n / r->ms.median,
           r->ms.median / n, r->ms.min / n, r->ms.p99 / n, r->ms.n);
    printf("memory: weights %llu, arena %llu, scratch %llu bytes; plan made in %.0f ms, first result after "
           "%.0f\n",
           (unsigned long long)(mem.weights + mem.device_weights),
           (unsigned long long)(mem.arena + mem.device_arena), (unsigned long long)mem.scratch, s->plan_ms,
           s->first_ms);
    if (o->bare)
        printf("bare primitives: %.3f ms an image; whole / bare %.3f\n", r->bare_ms / n,
               r->ms.median / r->bare_ms);
    if (r->n_layers)
        printf("%9s  %9s  %8s  %-20s %-28s %s\n", "ms/image", "alone", "GFLOP/s", "op", "kernel", "node");
    for (size_t i = 0; i < r->n_layers; i++) {
        const struct layer *l = &r->layers[i];
        printf("%9.4f  %9.4f  %8.1f  %-20s %-28s %s\n", l->ms * parts / n, l->alone_ms * parts / n,
               1e-6 * (double)l->kernel.flops / l->ms, l->kernel.op, l->kernel.name, l->kernel.node);
    }
}

static cJSON *json_of(const struct options *o, const struct subject *s, const struct result *r)
{
    cJSON *all = cJSON_CreateObject();
    double n = (double)o->spec.batch, parts = (double)hapi_plan_parts(s->plan);
    struct hapi_plan_memory mem = hapi_plan_memory_get(s->plan);

    cJSON_AddStringToObject(all, "program", "hapi-bench kernels");
    cJSON_AddStringToObject(all, "version", HAPI_VERSION);
    cJSON_AddStringToObject(all, "model", o->model);
    cJSON_AddStringToObject(all, "dtype", hapi_dtype_name(o->spec.dtype));
    cJSON_AddStringToObject(all, "class", hapi_numeric_class(o->spec.backend));
    cJSON_AddBoolToObject(all, "stock", o->spec.stock);
    cJSON_AddNumberToObject(all, "micro_batch", n);
    cJSON_AddNumberToObject(all, "parts", parts);
    cJSON_AddNumberToObject(all, "threads", o->spec.threads > 1 ? o->spec.threads : 1);
    cJSON_AddNumberToObject(all, "runs", (double)r->ms.n);
    cJSON_AddNumberToObject(all, "images_per_s", 1e3 * n / r->ms.median);
    cJSON_AddNumberToObject(all, "ms_per_image", r->ms.median / n);
    cJSON_AddNumberToObject(all, "ms_per_image_min", r->ms.min / n);
    cJSON_AddNumberToObject(all, "ms_per_image_p99", r->ms.p99 / n);
    cJSON_AddNumberToObject(all, "plan_ms", s->plan_ms);
    cJSON_AddNumberToObject(all, "first_result_ms", s->first_ms);
    cJSON *memory = cJSON_AddObjectToObject(all, "memory");
    cJSON_AddNumberToObject(memory, "weights", (double)(mem.weights + mem.device_weights));
    cJSON_AddNumberToObject(memory, "arena", (double)(mem.arena + mem.device_arena));
    cJSON_AddNumberToObject(memory, "scratch", (double)mem.scratch);
    if (o->bare) {
        cJSON_AddNumberToObject(all, "bare_ms_per_image", r->bare_ms / n);
        cJSON_AddNumberToObject(all, "whole_to_bare", r->ms.median / r->bare_ms);
    }
    cJSON *list = o->layers ? cJSON_AddArrayToObject(all, "layers") : NULL;
    for (size_t i = 0; i < r->n_layers; i++) {
        cJSON *l = cJSON_CreateObject();
        cJSON_AddStringToObject(l, "node", r->layers[i].kernel.node);
        cJSON_AddStringToObject(l, "op", r->layers[i].kernel.op);
        cJSON_AddStringToObject(l, "kernel", r->layers[i].kernel.name);
        cJSON_AddNumberToObject(l, "ms_per_image", r->layers[i].ms * parts / n);
        cJSON_AddNumberToObject(l, "ms_per_image_alone", r->layers[i].alone_ms * parts / n);
        cJSON_AddNumberToObject(l, "flops", (double)r->layers[i].kernel.flops);
        cJSON_AddItemToArray(list, l);
    }
    return all;
}

static bool print(const struct options *o, const struct subject *s, const struct result *r)
{
    if (!o->json) {
        print_text(o, s, r);
    } else {
        cJSON *all = json_of(o, s, r);
        char *text = cJSON_PrintUnformatted(all);
        puts(text ? text : "");
        free(text);
        cJSON_Delete(all);
    }
    return fflush(stdout) == 0;
}

/* ------------------------------------------------------------------ the command */

static bool count_parse(const char *text, int64_t most, int64_t *n)
{
    char *end;

    *n = strtoll(text, &end, 10);
    return end > text && !*end && *n >= 1 && *n <= most;
}

static bool seconds_parse(struct options *o, const char *text)
{
    char *end;

    o->seconds = strtod(text, &end);
    return end > text && !*end && o->seconds >= 0 && o->seconds <= 3600;
}

/* One option; what is wrong with it, or NULL. */
static const char *option_take(struct options *o, int c, const char *value)
{
    int64_t n;

    switch (c) {
    case 'm':
        o->model = value;
        return NULL;
    case 'n':
        return count_parse(value, 1 << 20, &o->spec.batch) ? NULL : "--micro-batch is not a number from 1 on";
    case 'd':
        o->spec.dtype = hapi_dtype_from_name(value);
        return NULL;
    case 'f':
        o->spec.from = value;
        return NULL;
    case 't':
        o->spec.to = value;
        return NULL;
    case 'b':
        o->spec.backend = value;
        return NULL;
    case 'T':
        return count_parse(value, 1024, &n) ? (o->spec.threads = (int)n, NULL)
                                            : "--threads is not from 1 to 1024";
    case 's':
        return seconds_parse(o, value) ? NULL : "--seconds is not a number from 0 to 3600";
    default:
        *(c == 'S'   ? &o->spec.stock
          : c == 'B' ? &o->bare
          : c == 'l' ? &o->layers
          : c == 'p' ? &o->paced
          : c == 'a' ? &o->autotune
                     : &o->json) = true;
        return NULL;
    }
}

/* 0, or an exit code plus one. */
static int parse(struct options *o, int argc, char **argv)
{
    static const struct option options[] = {
        {"model", required_argument, NULL, 'm'},   {"micro-batch", required_argument, NULL, 'n'},
        {"dtype", required_argument, NULL, 'd'},   {"from", required_argument, NULL, 'f'},
        {"to", required_argument, NULL, 't'},      {"backend", required_argument, NULL, 'b'},
        {"seconds", required_argument, NULL, 's'}, {"autotune", no_argument, NULL, 'a'},
        {"stock", no_argument, NULL, 'S'},         {"threads", required_argument, NULL, 'T'},
        {"bare", no_argument, NULL, 'B'},          {"layers", no_argument, NULL, 'l'},
        {"paced", no_argument, NULL, 'p'},         {"json", no_argument, NULL, 'j'},
        {"help", no_argument, NULL, 'h'},          {NULL, 0, NULL, 0}};
    const char *wrong = NULL;
    int c;

    *o = (struct options){.spec = {.batch = 8, .dtype = HAPI_F32, .backend = "onednn"}, .seconds = 2};
    while (!wrong && (c = getopt_long(argc, argv, "", options, NULL)) != -1) {
        if (c == 'h') {
            fputs(help, stdout);
            return BENCH_OK + 1;
        }
        if (c == '?')
            return BENCH_USAGE + 1; /* getopt has said it */
        wrong = option_take(o, c, optarg);
    }
    if (!wrong && (optind != argc || !o->model))
        wrong = o->model ? "too many arguments" : "no --model given";
    if (wrong)
        fprintf(stderr, "hapi-bench kernels: %s (see hapi-bench kernels --help)\n", wrong);
    return wrong ? BENCH_USAGE + 1 : 0;
}

/* Ours and the bare one at the micro-batch of the options. */
static int subjects_make(struct subject *s, struct subject *bare, struct hapi_model *m,
                         const struct options *o, struct hapi_err *err)
{
    struct subject made[2] = {{.plan = NULL}, {.plan = NULL}};
    struct hapi_plan_spec stock = o->spec;
    int rc;

    stock.stock = true;
    rc = subject_init(&made[0], m, &o->spec, err);
    if (!rc && o->bare)
        rc = subject_init(&made[1], m, &stock, err);
    subject_fini(bare); /* after the new ones are there: they share its weights */
    subject_fini(s);
    *s = made[0];
    *bare = made[1];
    return rc;
}

/* Waits for the next line: false at the end of input. *changed: it names another micro-batch. */
static bool paced(struct options *o, bool *changed)
{
    char line[64], *end;

    if (!fgets(line, sizeof line, stdin))
        return false;
    long n = strtol(line, &end, 10);
    *changed = end > line && n >= 1 && n <= 1 << 20 && n != o->spec.batch;
    if (*changed)
        o->spec.batch = n;
    return true;
}

static void untuned(const struct hapi_err *why)
{
    fprintf(stderr, "hapi-bench kernels: engines as heuristics choose them: %s\n", why->text);
}

int bench_kernels(int argc, char **argv)
{
    struct subject s = {.plan = NULL}, bare = {.plan = NULL};
    struct result r = {.layers = NULL};
    struct hapi_err err = {0};
    struct hapi_model *m = NULL;
    struct options o;
    bool changed = false;
    int rc = parse(&o, argc, argv);

    if (rc)
        return rc - 1;
    if (o.autotune)
        rc = hapi_backend_tune(o.spec.backend, untuned, &err);
    if (!rc)
        rc = hapi_model_open(&m, o.model, NULL, &err);
    if (!rc)
        rc = subjects_make(&s, &bare, m, &o, &err);
    if (!rc && o.paced && (puts("ready") < 0 || fflush(stdout)))
        rc = hapi_err_set(&err, HAPI_ESYS, 0, "nobody reads");
    while (!rc && (!o.paced || paced(&o, &changed))) {
        rc = changed ? subjects_make(&s, &bare, m, &o, &err) : 0;
        if (!rc)
            rc = measure(&s, &bare, &o, &r, &err);
        if (!rc && !print(&o, &s, &r))
            rc = hapi_err_set(&err, HAPI_ESYS, 0, "cannot write the report");
        if (!o.paced)
            break;
    }
    free(r.layers);
    subject_fini(&bare);
    subject_fini(&s);
    hapi_model_close(m);
    if (o.autotune)
        (void)hapi_backend_tune(o.spec.backend, NULL, NULL);
    return rc ? bench_fail("hapi-bench kernels", &err) : BENCH_OK;
}
