/* hapi profile: what a network takes on either tier and between them, measured. */
#include <cjson/cJSON.h>
#include <errno.h>
#include <getopt.h>
#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cache.h"
#include "cmd.h"
#include "profile_run.h"
#include "quantity.h"

enum { BATCH_MAX = 1 << 16, KEY_BYTES = 16384, PATH_BYTES = 4096, FILE_BYTES = HAPI_CACHE_NAME + 8 };

static const char help[] =
    "usage: hapi profile MODEL.onnx --nodes HOST:PORT[,...] --dataset NAME [OPTION...]\n"
    "       hapi profile MODEL.onnx --data DIR --bandwidth RATE --latency S [OPTION...]\n\n"
    "Measures what planning needs to know: the network's halves at each cut, on the nodes and here, "
    "decoding,\n"
    "reading, wire dtypes, training, and the goodput to each node. Without --nodes this machine stands for\n"
    "them, too. docs/planner.md describes the JSON and how it is measured.\n\n"
    "  --nodes HOST:PORT[,...]  storage nodes; the first is measured at every cut\n"
    "  --dataset NAME           theirs, or that of DIR [the only one of DIR]\n"
    "  --data DIR               datasets as of hapi-rt --data\n"
    "  --freeze CUT             cut id: where the frozen part ends [input of the last Gemm]; see hapi cuts\n"
    "  --dtype f32|bf16|f16|i8  of computing, on both tiers [f32]\n"
    "  --backend onednn|cudnn|auto|ref   of this tier [onednn]\n"
    "  --micro-batch B[,B...]   measured at some cuts; 1 is always among them [1,2,4,8]\n"
    "  --batch N                of a training step [128]\n"
    "  --seconds S              to measure for, about [60]\n"
    "  --transform FILE         [MODEL.transform.json beside the model]\n"
    "  --transport auto|ofi|verbs   [auto]\n"
    "  --key FILE               pre-shared key (identity:hex)\n"
    "  --json FILE              the profile; `-`: to stdout [a table]\n"
    "  --fresh                  measure, even if a profile of this is kept\n"
    "  --quiet                  no progress\n"
    "  --help\n\n"
    "Given instead of being measured, or nothing to measure:\n"
    "  --epochs N               [20]\n"
    "  --bandwidth RATE         of a node's link: 100Mbit, 1Gbit, or bytes a second\n"
    "  --latency S              of a request, in seconds\n"
    "  --train-s S              seconds for an image of the training step [that of hapi train]\n"
    "  --storage-nodes N        without --nodes: how many there are [1]\n"
    "  --storage-cache BYTES    that a node keeps activations in [what it says]\n"
    "  --compute-cache BYTES    that features are kept in here, as hapi train --keep [4G]\n"
    "  --storage-memory BYTES   of a node [what it says is free]\n"
    "  --compute-memory BYTES   of this machine [what is free]\n\n"
    "exit codes: 0 ok, 1 failure, 2 usage\n";

struct job {
    struct profile_options o;
    const char *json;
    bool fresh;
};

/* ------------------------------------------------------------------ options */

enum kind { TEXT, COUNT, SECONDS, DTYPE, BATCHES, GIVEN_COUNT, GIVEN_RATE, GIVEN_SECONDS, GIVEN_BYTES };
struct row {
    const char *name;
    enum kind kind;
    size_t offset; /* in struct job */
};
#define AT(field) offsetof(struct job, field)
#define GIVEN(which) (offsetof(struct job, o.given) + (which) * sizeof(double))
static const struct row rows[] = {
    {"nodes", TEXT, AT(o.nodes)},
    {"dataset", TEXT, AT(o.dataset)},
    {"data", TEXT, AT(o.data)},
    {"freeze", TEXT, AT(o.freeze)},
    {"backend", TEXT, AT(o.backend)},
    {"transform", TEXT, AT(o.transform)},
    {"transport", TEXT, AT(o.transport)},
    {"key", TEXT, AT(o.key)},
    {"json", TEXT, AT(json)},
    {"dtype", DTYPE, AT(o.dtype)},
    {"micro-batch", BATCHES, AT(o.batches)},
    {"batch", COUNT, AT(o.train_batch)},
    {"storage-nodes", COUNT, AT(o.storage_nodes)},
    {"seconds", SECONDS, AT(o.seconds)},
    {"epochs", GIVEN_COUNT, GIVEN(PROFILE_EPOCHS)},
    {"bandwidth", GIVEN_RATE, GIVEN(PROFILE_BANDWIDTH)},
    {"latency", GIVEN_SECONDS, GIVEN(PROFILE_LATENCY)},
    {"train-s", GIVEN_SECONDS, GIVEN(PROFILE_TRAIN)},
    {"storage-cache", GIVEN_BYTES, GIVEN(PROFILE_STORAGE_CACHE)},
    {"compute-cache", GIVEN_BYTES, GIVEN(PROFILE_COMPUTE_CACHE)},
    {"storage-memory", GIVEN_BYTES, GIVEN(PROFILE_STORAGE_MEMORY)},
    {"compute-memory", GIVEN_BYTES, GIVEN(PROFILE_COMPUTE_MEMORY)},
};
enum { ROWS = sizeof rows / sizeof *rows, OPT_HELP = 256, OPT_FRESH, OPT_QUIET };

/* "8,1,32": ascending, each once, with 1. */
static bool batches_parse(struct profile_options *o, const char *text)
{
    o->n_batches = 1;
    o->batches[0] = 1;
    for (;;) {
        char *end;
        long b = strtol(text, &end, 10);
        uint32_t at = o->n_batches;
        if (end == text || b < 1 || b > BATCH_MAX || (*end && *end != ','))
            return false;
        while (at && o->batches[at - 1] >= (uint32_t)b)
            at--;
        if (at == o->n_batches || o->batches[at] != (uint32_t)b) {
            if (o->n_batches == PROFILE_BATCHES_MAX)
                return false;
            memmove(&o->batches[at + 1], &o->batches[at], (o->n_batches - at) * sizeof *o->batches);
            o->batches[at] = (uint32_t)b;
            o->n_batches++;
        }
        if (!*end)
            return true;
        text = end + 1;
    }
}

static bool count_parse(const char *text, double *out)
{
    return quantity_number(text, 1, 1 << 24, out) && *out == floor(*out);
}

static bool option_set(struct job *j, const struct row *r, const char *text)
{
    char *at = (char *)j + r->offset;
    double v = 0;

    switch (r->kind) {
    case TEXT:
        *(const char **)at = text;
        return true;
    case COUNT:
        if (!count_parse(text, &v))
            return false;
        *(uint32_t *)at = (uint32_t)v;
        return true;
    case SECONDS:
        return quantity_number(text, 0.1, 86400, (double *)at);
    case DTYPE:
        j->o.dtype = hapi_dtype_from_name(text);
        return j->o.dtype == HAPI_F32 || j->o.dtype == HAPI_BF16 || j->o.dtype == HAPI_F16 ||
               j->o.dtype == HAPI_I8;
    case BATCHES:
        return batches_parse(&j->o, text);
    case GIVEN_COUNT:
        return count_parse(text, (double *)at);
    case GIVEN_RATE:
        return quantity_rate(text, (double *)at);
    case GIVEN_SECONDS:
        return quantity_number(text, 0, 1e9, (double *)at);
    case GIVEN_BYTES:
        return quantity_bytes(text, (double *)at);
    }
    return false;
}

/* What neither is given nor can be measured is said by its key. */
static int required_check(const struct job *j)
{
    static const enum profile_given needed[] = {PROFILE_BANDWIDTH, PROFILE_LATENCY};
    const struct profile_options *o = &j->o;

    if (o->nodes && o->data)
        return cmd_usage("profile", "--nodes or --data, not both");
    if (!o->nodes && !o->data)
        return cmd_usage("profile",
                         "--nodes or --data must be given: source_bytes and read_s are the data's");
    if (o->nodes && !o->dataset)
        return cmd_usage("profile", "--dataset must be given: source_bytes and images are its");
    if (o->nodes && o->storage_nodes > 1)
        return cmd_usage("profile", "--storage-nodes is without --nodes");
    for (size_t i = 0; i < sizeof needed / sizeof *needed && !o->nodes; i++)
        if (isnan(o->given[needed[i]]))
            return cmd_usage("profile", "%s cannot be measured without --nodes: give --%s",
                             profile_given_keys[needed[i]],
                             needed[i] == PROFILE_BANDWIDTH ? "bandwidth" : "latency");
    if (strcmp(o->transport, "auto") != 0 && strcmp(o->transport, "ofi") != 0 &&
        strcmp(o->transport, "verbs") != 0)
        return cmd_usage("profile", "--transport is auto, ofi or verbs");
    return CMD_OK;
}

/* -1: help was asked for. */
static int parse(struct job *j, int argc, char **argv)
{
    struct option options[ROWS + 4] = {{0}};
    int c;

    for (int i = 0; i < ROWS; i++)
        options[i] = (struct option){rows[i].name, required_argument, NULL, i};
    options[ROWS] = (struct option){"help", no_argument, NULL, OPT_HELP};
    options[ROWS + 1] = (struct option){"fresh", no_argument, NULL, OPT_FRESH};
    options[ROWS + 2] = (struct option){"quiet", no_argument, NULL, OPT_QUIET};
    opterr = 0;
    optind = 1;
    while ((c = getopt_long(argc, argv, ":h", options, NULL)) != -1) {
        if (c == OPT_HELP || c == 'h') {
            fputs(help, stdout);
            return -1;
        }
        if (c == OPT_FRESH)
            j->fresh = true;
        else if (c == OPT_QUIET)
            j->o.quiet = true;
        else if (c == ':')
            return cmd_usage("profile", "%s needs a value", argv[optind - 1]);
        else if (c < 0 || c >= ROWS)
            return cmd_usage("profile", "no option `%s`", argv[optind - 1]);
        else if (!option_set(j, &rows[c], optarg))
            return cmd_usage("profile", "--%s: `%s` will not do", rows[c].name, optarg);
    }
    if (optind != argc - 1)
        return cmd_usage("profile", optind == argc ? "MODEL.onnx is missing" : "one MODEL.onnx, not several");
    j->o.model = argv[optind];
    return required_check(j);
}

/* ------------------------------------------------------------------ kept profiles */

/* All that what was measured depends on; what is given is put in anew each time. */
static bool file_make(const struct job *j, const struct profile_run *r, char file[FILE_BYTES])
{
    const struct profile_options *o = &j->o;
    char host[256] = "", *key = calloc(1, KEY_BYTES);
    int n = 0;

    if (!key || gethostname(host, sizeof host - 1))
        host[0] = '\0';
    for (int i = 0; key && i < 32; i++)
        n += snprintf(key + n, (size_t)(KEY_BYTES - n), "%02x", hapi_model_hash(r->model)[i]);
    for (uint32_t i = 0; key && i < o->n_batches; i++)
        n += snprintf(key + n, (size_t)(KEY_BYTES - n), " %u", o->batches[i]);
    if (key)
        n += snprintf(key + n, (size_t)(KEY_BYTES - n),
                      "\n%s\n%s\n%s\n%s\n%s\n%s\n%s\n%s\n%s\n%u %u %d %.17g %.17g", host,
                      hapi_dtype_name(o->dtype), hapi_numeric_class(o->backend), r->transform_text,
                      r->cuts[r->n_cuts - 1].id, o->nodes ? o->nodes : "", o->dataset ? o->dataset : "",
                      o->data ? o->data : "", o->transport, o->train_batch, o->storage_nodes,
                      isnan(o->given[PROFILE_TRAIN]), o->nodes ? 0 : o->given[PROFILE_BANDWIDTH],
                      o->nodes ? 0 : o->given[PROFILE_LATENCY]);
    bool whole = key && n < KEY_BYTES && *host;
    char hash[HAPI_CACHE_NAME];
    if (whole) {
        hapi_cache_name(hash, key, (size_t)n);
        snprintf(file, FILE_BYTES, "%s.json", hash);
    }
    free(key);
    return whole;
}

static int measure(const struct job *j, struct profile_run *r, char **out, struct hapi_err *err)
{
    char folder[PATH_BYTES], file[FILE_BYTES];
    bool keeps = hapi_cache_folder(folder, sizeof folder, "profiles") && file_make(j, r, file);
    struct hapi_profile *p;
    char *kept = keeps && !j->fresh ? hapi_cache_read(folder, file) : NULL;

    if (kept && !hapi_profile_parse(&p, kept, strlen(kept), NULL)) {
        if (!j->o.quiet)
            fprintf(stderr, "hapi profile: measured at %s (--fresh measures anew)\n", p->date);
        hapi_profile_free(p);
        *out = kept;
        return 0;
    }
    free(kept); /* damaged, or of an older program */
    int rc = profile_measure(r, out, err);
    if (!rc && keeps)
        (void)hapi_cache_write(folder, file, *out, false);
    return rc;
}

/* ------------------------------------------------------------------ what is given */

static bool set(cJSON *o, const char *key, double v)
{
    cJSON *n = cJSON_CreateNumber(v);
    if (n && cJSON_ReplaceItemInObjectCaseSensitive(o, key, n))
        return true;
    cJSON_Delete(n);
    return false;
}

/* Puts it in place of what was measured, or was given when the profile was kept, and checks the whole. */
static int given_apply(const struct job *j, char **text, struct hapi_profile **p, struct hapi_err *err)
{
    cJSON *top = cJSON_Parse(*text), *node;
    const double *given = j->o.given;
    bool ok = top != NULL;

    for (int i = 0; i < PROFILE_GIVEN_N && ok; i++)
        ok = isnan(given[i]) || set(top, profile_given_keys[i], given[i]);
    cJSON_ArrayForEach(node, cJSON_GetObjectItemCaseSensitive(top, "node_list"))
    {
        ok = ok && (isnan(given[PROFILE_BANDWIDTH]) || set(node, "bandwidth_Bps", given[PROFILE_BANDWIDTH]));
    }
    if (ok && !isnan(given[PROFILE_BANDWIDTH])) /* it was measured over another link */
        cJSON_DeleteItemFromObjectCaseSensitive(top, "client_bandwidth_Bps");
    free(*text);
    *text = ok ? cJSON_Print(top) : NULL;
    cJSON_Delete(top);
    if (!*text)
        return hapi_err_set(err, HAPI_ENOMEM, 0, "no memory for a profile");
    return hapi_profile_parse(p, *text, strlen(*text), err);
}

/* ------------------------------------------------------------------ printing */

static void print_table(const struct hapi_profile *p, const struct profile_run *r)
{
    uint32_t b = PROFILE_MICRO_BATCH;

    printf("%s  %s  %llu images of %.0f bytes, %u nodes, measured at %s\n", p->model, p->dtype,
           (unsigned long long)p->images, p->source_bytes, p->nodes, p->date);
    printf("decode %.3f ms here, %.3f ms on a node  read %.3f ms  train %.4f ms  goodput %.1f MB/s  "
           "request %.2f ms\n",
           1e3 * hapi_curve_at(&p->source_prepare_s, b), 1e3 * hapi_curve_at(&p->storage_prepare_s, b),
           1e3 * hapi_curve_at(&p->read_s, b), 1e3 * hapi_curve_at(&p->train_s, p->train_batch),
           1e-6 * p->bandwidth_Bps, 1e3 * p->latency_s);
    printf("%5s  %-32s  %10s  %12s  %12s   an image, %u at a time; the whole here: %.3f ms\n", "index", "cut",
           "bytes f32", "node ms", "here ms", b, 1e3 * hapi_curve_at(&p->source_compute_s, b));
    for (uint32_t i = 0; i < p->n_cuts; i++)
        printf("%5u  %-32.32s  %10.0f  %12.3f  %12.3f\n", p->cuts[i].index, r->cuts[p->cuts[i].index].name,
               p->cuts[i].wire_bytes[HAPI_WIRE_F32], 1e3 * hapi_curve_at(&p->cuts[i].storage_s, b),
               1e3 * hapi_curve_at(&p->cuts[i].compute_s, b));
}

static int json_write(const char *path, const char *text, struct hapi_err *err)
{
    FILE *f = strcmp(path, "-") != 0 ? fopen(path, "we") : stdout;
    bool ok = f && fprintf(f, "%s\n", text) >= 0 && !fflush(f);

    if (f && f != stdout && fclose(f))
        ok = false;
    return ok ? 0 : hapi_err_errno(err, errno, "cannot write %s", path);
}

static int run(const struct job *j, struct hapi_err *err)
{
    struct profile_run r;
    struct hapi_profile *p = NULL;
    char *text = NULL;
    int rc = profile_open(&r, &j->o, err);

    rc = rc ? rc : measure(j, &r, &text, err);
    rc = rc ? rc : given_apply(j, &text, &p, err);
    if (!rc && j->json)
        rc = json_write(j->json, text, err);
    else if (!rc)
        print_table(p, &r);
    hapi_profile_free(p);
    free(text);
    profile_close(&r);
    return rc;
}

int cmd_profile(int argc, char **argv)
{
    struct job j = {.o = {.dtype = HAPI_F32,
                          .backend = "onednn",
                          .transport = "auto",
                          .batches = {1, 2, 4, 8},
                          .n_batches = 4,
                          .train_batch = 128,
                          .storage_nodes = 1,
                          .seconds = 60,
#define X(name, key, otherwise) .given[name] = (otherwise),
                          PROFILE_GIVEN(X)
#undef X
                    }};
    struct hapi_err err = {0};
    int rc = parse(&j, argc, argv);

    if (rc)
        return rc < 0 ? CMD_OK : rc;
    j.o.backend = hapi_backend_choose(j.o.backend, NULL);
    rc = run(&j, &err);
    if (!rc)
        return CMD_OK;
    cmd_fail("profile", &err);
    return rc == HAPI_EINVAL ? CMD_USAGE : CMD_FAILURE;
}
