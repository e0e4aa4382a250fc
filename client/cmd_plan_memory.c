/* hapi plan-memory: what a network takes for each micro-batch, known before anything large is allocated. */
#include <cjson/cJSON.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cmd.h"
#include "kernels.h"

enum { BATCHES_MAX = 64, BATCH_MAX = 1 << 20 };

struct row {
    int64_t batch;
    struct hapi_plan_memory query, actual;
};

struct job {
    const char *model, *from, *cut, *backend;
    enum hapi_dtype dtype;
    bool json, check;
    struct row rows[BATCHES_MAX];
    size_t n;
};

static void help(void)
{
    fputs("usage: hapi plan-memory MODEL.onnx [--micro-batch B[,B...]] [--cut CUT] [--from CUT]\n"
          "                        [--dtype f32|bf16|f16|i8] [--backend ref|onednn|cudnn] [--check] "
          "[--json]\n\n"
          "Bytes of weights (shared by all micro-batches), arena and scratch that a plan takes, without "
          "making\n"
          "it. Inputs and outputs are the caller's and not in them.\n\n"
          "  --micro-batch B[,B...]   default 1,2,4,8,16,32,64\n"
          "  --cut CUT          where the plan ends (an id of hapi cuts --all) [input of the last Gemm]\n"
          "  --from CUT         where it begins [the model's inputs]\n"
          "  --dtype f32|bf16|f16|i8  of computing (default f32); f16: on a GPU; i8: of a model from hapi "
          "calibrate\n"
          "  --backend NAME     ref, cudnn or onednn (default)\n"
          "  --check            make the plans, too, and fail when one takes something else\n"
          "  --json             {\"model\", \"cut\", \"dtype\", \"plans\": [{\"micro_batch\", \"weights\", "
          "\"arena\",\n"
          "                     \"scratch\", \"total\"}]}; with --check also \"actual\" of each plan\n"
          "  --help\n",
          stdout);
}

/* A plan's memory is the host's or a GPU's. */
static uint64_t weights(const struct hapi_plan_memory *m)
{
    return m->weights + m->device_weights;
}

static uint64_t arena(const struct hapi_plan_memory *m)
{
    return m->arena + m->device_arena;
}

static uint64_t total(const struct hapi_plan_memory *m)
{
    return weights(m) + arena(m) + m->scratch;
}

/* JSON numbers are doubles: exact to 2^53. */
static bool add_memory(cJSON *o, const struct hapi_plan_memory *m)
{
    return cJSON_AddNumberToObject(o, "weights", (double)weights(m)) &&
           cJSON_AddNumberToObject(o, "arena", (double)arena(m)) &&
           cJSON_AddNumberToObject(o, "scratch", (double)m->scratch);
}

static bool add_row(cJSON *list, const struct row *r, bool checked)
{
    cJSON *o = cJSON_CreateObject(), *actual;

    if (!o || !cJSON_AddItemToArray(list, o))
        return false;
    if (!cJSON_AddNumberToObject(o, "micro_batch", (double)r->batch) || !add_memory(o, &r->query) ||
        !cJSON_AddNumberToObject(o, "total", (double)total(&r->query)))
        return false;
    if (!checked)
        return true;
    actual = cJSON_AddObjectToObject(o, "actual");
    return actual && add_memory(actual, &r->actual);
}

static int print_json(const struct job *j, const char *cut)
{
    cJSON *root = cJSON_CreateObject(), *list = NULL;
    bool ok = root && cJSON_AddStringToObject(root, "model", j->model) &&
              cJSON_AddStringToObject(root, "cut", cut) &&
              cJSON_AddStringToObject(root, "dtype", hapi_dtype_name(j->dtype)) &&
              (list = cJSON_AddArrayToObject(root, "plans"));

    for (size_t i = 0; i < j->n && ok; i++)
        ok = add_row(list, &j->rows[i], j->check);
    char *text = ok ? cJSON_PrintUnformatted(root) : NULL;
    if (text)
        puts(text);
    else
        fputs("hapi plan-memory: out of memory\n", stderr);
    cJSON_free(text);
    cJSON_Delete(root);
    return text && !ferror(stdout) ? CMD_OK : CMD_FAILURE;
}

static int print_table(const struct job *j, const char *cut)
{
    printf("%s, %s, up to %s\n%11s  %13s  %13s  %13s  %13s\n", j->model, hapi_dtype_name(j->dtype), cut,
           "micro-batch", "weights", "arena", "scratch", "total bytes");
    for (size_t i = 0; i < j->n; i++) {
        const struct hapi_plan_memory *m = &j->rows[i].query;
        printf("%11" PRId64 "  %13" PRIu64 "  %13" PRIu64 "  %13" PRIu64 "  %13" PRIu64 "\n",
               j->rows[i].batch, weights(m), arena(m), m->scratch, total(m));
    }
    return ferror(stdout) ? CMD_FAILURE : CMD_OK;
}

static int row_fill(const struct job *j, struct hapi_model *m, const char *cut, struct row *r,
                    struct hapi_err *err)
{
    struct hapi_plan_spec spec = {
        .from = j->from, .to = cut, .batch = r->batch, .dtype = j->dtype, .backend = j->backend};
    struct hapi_plan *p;
    int rc = hapi_plan_memory_query(m, &spec, &r->query, err);

    if (rc || !j->check)
        return rc;
    rc = hapi_plan_new(&p, m, &spec, err);
    if (rc)
        return rc;
    r->actual = hapi_plan_memory_get(p);
    hapi_plan_free(p);
    if (memcmp(&r->actual, &r->query, sizeof r->query))
        return hapi_err_set(err, HAPI_EINVAL, 0,
                            "a plan of micro-batch %" PRId64 " takes %" PRIu64 " bytes, said were %" PRIu64,
                            r->batch, total(&r->actual), total(&r->query));
    return HAPI_OK;
}

static int run(struct job *j)
{
    struct hapi_err err = {0};
    const struct hapi_cut *cut = NULL, *from;
    struct hapi_model *m;
    int rc;

    if (hapi_model_open(&m, j->model, NULL, &err))
        return cmd_fail("plan-memory", &err);
    rc = j->cut ? hapi_model_cut_find(m, j->cut, &cut, &err) : hapi_model_cut_default(m, &cut, &err);
    if (!rc && j->from)
        rc = hapi_model_cut_find(m, j->from, &from, &err);
    for (size_t i = 0; i < j->n && !rc; i++)
        rc = row_fill(j, m, cut->id, &j->rows[i], &err);
    if (rc) {
        hapi_err_context(&err, "%s", j->model);
        rc = cmd_fail("plan-memory", &err);
    } else {
        if (!j->json)
            cmd_batch_note("plan-memory", m);
        rc = j->json ? print_json(j, cut->id) : print_table(j, cut->id);
    }
    hapi_model_close(m);
    return rc;
}

/* "1,8,32"; false when it is none. */
static bool batches_parse(struct job *j, const char *text)
{
    for (j->n = 0; j->n < BATCHES_MAX;) {
        char *end;
        long b = strtol(text, &end, 10);
        if (end == text || b < 1 || b > BATCH_MAX || (*end && *end != ','))
            return false;
        j->rows[j->n++].batch = b;
        if (!*end)
            return true;
        text = end + 1;
    }
    return false;
}

static int parse(struct job *j, int argc, char **argv)
{
    static const struct option options[] = {{"micro-batch", required_argument, NULL, 'b'},
                                            {"cut", required_argument, NULL, 'c'},
                                            {"from", required_argument, NULL, 'f'},
                                            {"dtype", required_argument, NULL, 'd'},
                                            {"backend", required_argument, NULL, 'k'},
                                            {"check", no_argument, NULL, 'C'},
                                            {"json", no_argument, NULL, 'j'},
                                            {NULL, 0, NULL, 0}};
    int c;

    optind = 1;
    opterr = 0;
    while ((c = getopt_long(argc, argv, ":", options, NULL)) != -1)
        switch (c) {
        case 'b':
            if (!batches_parse(j, optarg))
                return cmd_usage("plan-memory", "--micro-batch is up to %d numbers from 1 to %d", BATCHES_MAX,
                                 BATCH_MAX);
            break;
        case 'c':
            j->cut = optarg;
            break;
        case 'f':
            j->from = optarg;
            break;
        case 'd':
            j->dtype = hapi_dtype_from_name(optarg);
            if (j->dtype != HAPI_F32 && j->dtype != HAPI_BF16 && j->dtype != HAPI_F16 && j->dtype != HAPI_I8)
                return cmd_usage("plan-memory", "--dtype is f32, bf16, f16 or i8");
            break;
        case 'k':
            j->backend = optarg;
            break;
        case 'C':
            j->check = true;
            break;
        case 'j':
            j->json = true;
            break;
        default:
            return cmd_usage("plan-memory", c == ':' ? "%s needs a value" : "unknown option %s",
                             argv[optind - 1]);
        }
    if (optind + 1 != argc)
        return cmd_usage("plan-memory", "%s",
                         optind == argc ? "no model given" : "more than one model given");
    j->model = argv[optind];
    return CMD_OK;
}

int cmd_plan_memory(int argc, char **argv)
{
    struct job j = {.dtype = HAPI_F32, .backend = hapi_numeric_class("onednn") ? "onednn" : "ref"};
    int rc;

    for (int i = 1; i < argc; i++)
        if (!strcmp(argv[i], "--help") || !strcmp(argv[i], "-h")) {
            help();
            return CMD_OK;
        }
    batches_parse(&j, "1,2,4,8,16,32,64");
    rc = parse(&j, argc, argv);
    return rc == CMD_OK ? run(&j) : rc;
}
