/* hapi cuts: where a network can be split, with bytes and FLOPs. */
#include <cjson/cJSON.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cmd.h"
#include "kernels.h"

static void help(void)
{
    fputs(
        "usage: hapi cuts MODEL.onnx [--all [--max-tensors N]] [--json]\n\n"
        "Lists where a network can be split: the tensors that would travel, their bytes for one image,\n"
        "and the work and the parameters before them. FLOPs are two for each multiply-add of Conv, Gemm\n"
        "and MatMul. Without --all, those where a single tensor travels.\n\n"
        "  --all    also where several do (inside of residual and dense blocks): for each node, what is "
        "alive\n"
        "           after it; at most 16384 cuts\n"
        "  --max-tensors N   of --all: cuts of at most N tensors (1..64, default 64)\n"
        "  --json   {\"model\", \"batch\": free|rebound|one|padded, \"cuts\": [{\"index\", \"name\", \"id\", "
        "\"tensors\": [{\"name\", "
        "\"dtype\", \"shape\",\n"
        "           \"bytes\"}], \"bytes_f32\", \"flops\", \"params\"}]}\n"
        "  --help\n",
        stdout);
}

/* JSON numbers are doubles: exact to 2^53, which no count here comes near. */
static bool add_number(cJSON *o, const char *key, uint64_t v)
{
    return cJSON_AddNumberToObject(o, key, (double)v) != NULL;
}

static cJSON *tensor_json(const struct hapi_tensor_desc *d)
{
    cJSON *o = cJSON_CreateObject(), *shape;
    size_t bytes = 0;

    if (!o)
        return NULL;
    hapi_tensor_bytes(&d->shape, d->dtype, &bytes);
    if (!cJSON_AddStringToObject(o, "name", d->name) ||
        !cJSON_AddStringToObject(o, "dtype", hapi_dtype_name(d->dtype)) ||
        !(shape = cJSON_AddArrayToObject(o, "shape")))
        goto fail;
    for (int i = 0; i < d->shape.rank; i++)
        if (!cJSON_AddItemToArray(shape, cJSON_CreateNumber((double)d->shape.dim[i])))
            goto fail;
    if (add_number(o, "bytes", bytes))
        return o;
fail:
    cJSON_Delete(o);
    return NULL;
}

static cJSON *cut_json(const struct hapi_cut *c)
{
    cJSON *o = cJSON_CreateObject(), *tensors;

    if (!o)
        return NULL;
    if (!add_number(o, "index", c->index) || !cJSON_AddStringToObject(o, "name", c->name) ||
        !cJSON_AddStringToObject(o, "id", c->id) || !(tensors = cJSON_AddArrayToObject(o, "tensors")))
        goto fail;
    for (uint32_t i = 0; i < c->n_tensors; i++)
        if (!cJSON_AddItemToArray(tensors, tensor_json(&c->tensors[i])))
            goto fail;
    if (add_number(o, "bytes_f32", c->bytes_f32) && add_number(o, "flops", c->flops) &&
        add_number(o, "params", c->params))
        return o;
fail:
    cJSON_Delete(o);
    return NULL;
}

static int print_json(const char *model, struct hapi_model *m, const struct hapi_cut *cuts, size_t n)
{
    static const char *const batch[] = {[HAPI_MODEL_BATCH_FREE] = "free",
                                        [HAPI_MODEL_BATCH_REBOUND] = "rebound",
                                        [HAPI_MODEL_BATCH_ONE] = "one",
                                        [HAPI_MODEL_BATCH_PADDED] = "padded"};
    cJSON *root = cJSON_CreateObject(), *list = root ? cJSON_AddArrayToObject(root, "cuts") : NULL;
    bool ok = list && cJSON_AddStringToObject(root, "model", model) &&
              cJSON_AddStringToObject(root, "batch", batch[hapi_model_batch(m, NULL)]);
    char *text;

    for (size_t i = 0; i < n && ok; i++)
        ok = cJSON_AddItemToArray(list, cut_json(&cuts[i]));
    text = ok ? cJSON_PrintUnformatted(root) : NULL;
    if (text)
        puts(text);
    else
        fputs("hapi cuts: out of memory\n", stderr);
    cJSON_free(text);
    cJSON_Delete(root);
    return text && !ferror(stdout) ? CMD_OK : CMD_FAILURE;
}

static void print_table(const struct hapi_cut *cuts, size_t n)
{
    int width = 4;

    for (size_t i = 0; i < n; i++)
        if ((int)strlen(cuts[i].name) > width)
            width = (int)strlen(cuts[i].name);
    width = width > 48 ? 48 : width;
    printf("%5s  %-*s  %-16s  %12s  %10s  %12s  %s\n", "index", width, "name", "shape", "bytes f32", "MFLOP",
           "parameters", "tensors");
    for (size_t i = 0; i < n; i++) {
        char shape[96], more[16] = "";
        if (cuts[i].n_tensors > 1)
            snprintf(more, sizeof more, " +%" PRIu32, cuts[i].n_tensors - 1);
        hapi_shape_text(&cuts[i].tensors[0].shape, shape, sizeof shape - sizeof more);
        strcat(shape, more);
        printf("%5" PRIu32 "  %-*s  %-16s  %12" PRIu64 "  %10.1f  %12" PRIu64 "  %s\n", cuts[i].index, width,
               cuts[i].name, shape, cuts[i].bytes_f32, (double)cuts[i].flops / 1e6, cuts[i].params,
               cuts[i].id);
    }
}

/* max_tensors 0: the cuts of one tensor. */
static int run(const char *path, uint32_t max_tensors, bool json)
{
    struct hapi_err err = {0};
    const struct hapi_cut *cuts;
    struct hapi_model *m;
    size_t n;
    int rc;

    if (hapi_model_open(&m, path, NULL, &err))
        return cmd_fail("cuts", &err);
    if (max_tensors ? hapi_model_cuts_all(m, max_tensors, &cuts, &n, &err)
                    : hapi_model_cuts(m, &cuts, &n, &err)) {
        hapi_err_context(&err, "%s", path);
        rc = cmd_fail("cuts", &err);
    } else if (json) {
        rc = print_json(path, m, cuts, n);
    } else {
        cmd_batch_note("cuts", m);
        print_table(cuts, n);
        rc = ferror(stdout) ? CMD_FAILURE : CMD_OK;
    }
    hapi_model_close(m);
    return rc;
}

int cmd_cuts(int argc, char **argv)
{
    static const struct option options[] = {{"all", no_argument, NULL, 'a'},
                                            {"max-tensors", required_argument, NULL, 'm'},
                                            {"json", no_argument, NULL, 'j'},
                                            {"help", no_argument, NULL, 'h'},
                                            {NULL, 0, NULL, 0}};
    bool json = false, all = false;
    long most = 0;
    char *end;
    int c;

    optind = 1;
    opterr = 0;
    while ((c = getopt_long(argc, argv, ":jh", options, NULL)) != -1)
        switch (c) {
        case 'h':
            help();
            return CMD_OK;
        case 'j':
            json = true;
            break;
        case 'a':
            all = true;
            break;
        case 'm':
            most = strtol(optarg, &end, 10);
            if (*end || most < 1 || most > HAPI_CUT_TENSORS_MAX)
                return cmd_usage("cuts", "--max-tensors is 1 to %d", HAPI_CUT_TENSORS_MAX);
            break;
        default:
            return cmd_usage("cuts", c == ':' ? "%s needs a value" : "unknown option %s", argv[optind - 1]);
        }
    if (optind + 1 != argc)
        return cmd_usage("cuts", "%s", optind == argc ? "no model given" : "more than one model given");
    if (most && !all)
        return cmd_usage("cuts", "--max-tensors is of --all");
    return run(argv[optind], !all ? 0 : most ? (uint32_t)most : HAPI_CUT_TENSORS_MAX, json);
}
