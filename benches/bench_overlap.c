/*
 * `hapi-bench overlap`: a client that only takes features, epoch after epoch, and how long an epoch takes
 * against the slowest of the stages that it goes through, each measured alone by whoever calls this
 * (benches/overlap): if stages overlap as they should, no longer than that one.
 */
#include <cjson/cJSON.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench.h"
#include "clock.h"
#include "hapi.h"

enum { EPOCHS_MAX = 1000, STAGES_MAX = 8 };

static const char help[] =
    "usage: hapi-bench overlap --model M --nodes HOST:PORT[,...] --dataset NAME [OPTION...]\n\n"
    "Takes all features of a dataset, epoch after epoch, and does nothing with them: seconds of an epoch, "
    "and\n"
    "their ratio to the slowest stage measured alone.\n\n"
    "  --freeze CUT        where the frozen part ends [input of the last Gemm]\n"
    "  --policy P          freeze or none [freeze]; --split CUT, --wire DTYPE, --key FILE as for hapi train\n"
    "  --batch N           [256]\n"
    "  --threads N         compute threads here [one per core]\n"
    "  --epochs N          that are measured [5]\n"
    "  --warm-up N         epochs before them [1]\n"
    "  --stage NAME=S      an image takes so many seconds in that stage alone; may be given several times\n"
    "  --most R            exit 1 when the median epoch takes more than R times its slowest stage\n"
    "  --json              one JSON object: images, epochs (seconds and wire_bytes of each), median_s, "
    "images_per_s,\n"
    "                      stages (seconds of an epoch in each), slowest, ratio\n"
    "  --help\n\n"
    "exit codes: 0 ok, 1 failure or --most, 2 usage\n";

struct stage {
    char name[32];
    double image_s;
};

struct options {
    struct hapi_loader_options loader;
    struct stage stages[STAGES_MAX];
    uint32_t n_stages, epochs, warm_up;
    double most;
    bool json;
};

struct epoch {
    double seconds;
    uint64_t bytes;
};

/* ------------------------------------------------------------------ options */

static bool count_parse(const char *text, uint32_t least, uint32_t most, uint32_t *out)
{
    char *end;
    unsigned long v = strtoul(text, &end, 10);

    *out = (uint32_t)v;
    return *text >= '0' && *text <= '9' && !*end && v >= least && v <= most;
}

static bool stage_parse(struct options *o, const char *text)
{
    const char *eq = strchr(text, '=');
    struct stage *s = &o->stages[o->n_stages];
    char *end;

    if (!eq || eq == text || (size_t)(eq - text) >= sizeof s->name || o->n_stages == STAGES_MAX)
        return false;
    snprintf(s->name, sizeof s->name, "%.*s", (int)(eq - text), text);
    s->image_s = strtod(eq + 1, &end);
    o->n_stages++;
    return end != eq + 1 && !*end && s->image_s >= 0 && s->image_s < 1e6;
}

static int wrong(const char *what, const char *value)
{
    fprintf(stderr, "hapi-bench overlap: %s `%s` (see --help)\n", what, value);
    return BENCH_USAGE;
}

enum {
    FREEZE = 1,
    POLICY,
    SPLIT,
    WIRE,
    KEY,
    MODEL,
    NODES,
    DATASET,
    BATCH,
    THREADS,
    EPOCHS,
    WARM_UP,
    STAGE,
    MOST,
    JSON
};

/* BENCH_OK, or the exit code; help ends with -1. */
static int option_take(struct options *o, int c, char *value)
{
    char *end;

    switch (c) {
    case FREEZE:
        o->loader.freeze = value;
        break;
    case POLICY:
        o->loader.policy = value;
        break;
    case SPLIT:
        o->loader.split = value;
        break;
    case WIRE:
        o->loader.wire = value;
        break;
    case KEY:
        o->loader.key = value;
        break;
    case MODEL:
        o->loader.model = value;
        break;
    case NODES:
        o->loader.nodes = value;
        break;
    case DATASET:
        o->loader.dataset = value;
        break;
    case JSON:
        o->json = true;
        break;
    case BATCH:
        return count_parse(value, 1, 1 << 20, &o->loader.batch) ? BENCH_OK : wrong("--batch", value);
    case THREADS:
        return count_parse(value, 1, 1024, &o->loader.threads) ? BENCH_OK : wrong("--threads", value);
    case EPOCHS:
        return count_parse(value, 1, EPOCHS_MAX, &o->epochs) ? BENCH_OK : wrong("--epochs", value);
    case WARM_UP:
        return count_parse(value, 0, EPOCHS_MAX, &o->warm_up) ? BENCH_OK : wrong("--warm-up", value);
    case STAGE:
        return stage_parse(o, value) ? BENCH_OK : wrong("--stage takes NAME=SECONDS, not", value);
    case MOST:
        o->most = strtod(value, &end);
        return end != value && !*end && o->most > 0 ? BENCH_OK : wrong("--most", value);
    case 'h':
        fputs(help, stdout);
        return -1;
    default:
        return wrong("no such option, or its value is missing:", value);
    }
    return BENCH_OK;
}

static int options_parse(struct options *o, int argc, char **argv)
{
    static const struct option all[] = {{"freeze", 1, NULL, FREEZE},
                                        {"policy", 1, NULL, POLICY},
                                        {"split", 1, NULL, SPLIT},
                                        {"wire", 1, NULL, WIRE},
                                        {"key", 1, NULL, KEY},
                                        {"model", 1, NULL, MODEL},
                                        {"nodes", 1, NULL, NODES},
                                        {"dataset", 1, NULL, DATASET},
                                        {"batch", 1, NULL, BATCH},
                                        {"threads", 1, NULL, THREADS},
                                        {"epochs", 1, NULL, EPOCHS},
                                        {"warm-up", 1, NULL, WARM_UP},
                                        {"stage", 1, NULL, STAGE},
                                        {"most", 1, NULL, MOST},
                                        {"json", 0, NULL, JSON},
                                        {"help", 0, NULL, 'h'},
                                        {0}};
    int c, rc = BENCH_OK;

    *o = (struct options){.epochs = 5, .warm_up = 1};
    opterr = 0;
    while (rc == BENCH_OK && (c = getopt_long(argc, argv, ":h", all, NULL)) != -1)
        rc = option_take(o, c, c == ':' || c == '?' ? argv[optind - 1] : optarg);
    if (rc == BENCH_OK && optind < argc)
        rc = wrong("unexpected", argv[optind]);
    if (rc == BENCH_OK && (!o->loader.model || !o->loader.nodes || !o->loader.dataset))
        rc = wrong("--model, --nodes and --dataset must be given, not", argc > 1 ? argv[1] : "");
    if (rc == BENCH_OK && o->most > 0 && !o->n_stages)
        rc = wrong("--most needs a --stage to compare with, not", "none");
    return rc;
}

/* ------------------------------------------------------------------ measuring */

static int epoch_take(struct hapi_loader *l, uint32_t number, struct epoch *out, struct hapi_error *e)
{
    struct hapi_batch_view b;
    uint64_t bytes = hapi_loader_stats_get(l).wire_bytes, bad = 0;
    int64_t began = hapi_clock_ns();
    int more = hapi_loader_epoch(l, number, e);

    if (more)
        return more;
    while ((more = hapi_loader_next(l, &b, e)) == 1) {
        bad += b.n_bad;
        hapi_loader_release(l, &b);
    }
    out->seconds = 1e-9 * (double)(hapi_clock_ns() - began);
    out->bytes = hapi_loader_stats_get(l).wire_bytes - bytes;
    if (!more && bad) {
        snprintf(e->text, sizeof e->text, "%llu samples could not be served", (unsigned long long)bad);
        return e->code = HAPI_ECORRUPT;
    }
    return more;
}

static double median(const struct epoch *epochs, uint32_t n)
{
    static double s[EPOCHS_MAX];
    struct bench_times t;

    for (uint32_t i = 0; i < n; i++)
        s[i] = epochs[i].seconds;
    bench_times_of(s, n, &t);
    return t.median;
}

static const struct stage *slowest_of(const struct options *o)
{
    const struct stage *slowest = NULL;

    for (uint32_t i = 0; i < o->n_stages; i++)
        if (!slowest || o->stages[i].image_s > slowest->image_s)
            slowest = &o->stages[i];
    return slowest;
}

static void json_print(const struct options *o, const struct epoch *epochs, uint64_t images)
{
    cJSON *all = cJSON_CreateObject(), *list, *stages;
    double s = median(epochs, o->epochs);
    const struct stage *slowest = slowest_of(o);

    cJSON_AddStringToObject(all, "program", "hapi-bench overlap");
    cJSON_AddStringToObject(all, "version", HAPI_VERSION);
    cJSON_AddNumberToObject(all, "images", (double)images);
    list = cJSON_AddArrayToObject(all, "epochs");
    for (uint32_t i = 0; i < o->epochs; i++) {
        cJSON *one = cJSON_CreateObject();
        cJSON_AddNumberToObject(one, "seconds", epochs[i].seconds);
        cJSON_AddNumberToObject(one, "wire_bytes", (double)epochs[i].bytes);
        cJSON_AddItemToArray(list, one);
    }
    cJSON_AddNumberToObject(all, "median_s", s);
    cJSON_AddNumberToObject(all, "images_per_s", (double)images / s);
    stages = cJSON_AddObjectToObject(all, "stages");
    for (uint32_t i = 0; i < o->n_stages; i++)
        cJSON_AddNumberToObject(stages, o->stages[i].name, o->stages[i].image_s * (double)images);
    if (slowest) {
        cJSON_AddStringToObject(all, "slowest", slowest->name);
        cJSON_AddNumberToObject(all, "ratio", s / (slowest->image_s * (double)images));
    }
    char *text = cJSON_PrintUnformatted(all);
    puts(text ? text : "{}");
    cJSON_free(text);
    cJSON_Delete(all);
}

static void table_print(const struct options *o, const struct epoch *epochs, uint64_t images)
{
    double s = median(epochs, o->epochs);

    for (uint32_t i = 0; i < o->epochs; i++)
        printf("epoch %3u  %8.3f s  %9.1f images/s  %9.2f MB/s\n", o->warm_up + i + 1, epochs[i].seconds,
               (double)images / epochs[i].seconds, 1e-6 * (double)epochs[i].bytes / epochs[i].seconds);
    printf("median     %8.3f s  %9.1f images/s\n", s, (double)images / s);
    for (uint32_t i = 0; i < o->n_stages; i++)
        printf("%-10s %8.3f s alone: an epoch takes %.3f times as long\n", o->stages[i].name,
               o->stages[i].image_s * (double)images, s / (o->stages[i].image_s * (double)images));
}

static int run(const struct options *o)
{
    static struct epoch epochs[EPOCHS_MAX];
    struct hapi_error e = {0};
    struct hapi_loader *l = NULL;
    int rc = hapi_loader_open(&l, &o->loader, &e);

    for (uint32_t i = 0; !rc && i < o->warm_up + o->epochs; i++)
        rc = epoch_take(l, i, &epochs[i < o->warm_up ? 0 : i - o->warm_up], &e);
    if (rc) {
        fprintf(stderr, "hapi-bench overlap: %s\n", e.text);
        hapi_loader_close(l);
        return BENCH_FAILURE;
    }
    uint64_t images = hapi_loader_samples(l);
    hapi_loader_close(l);
    if (o->json)
        json_print(o, epochs, images);
    else
        table_print(o, epochs, images);
    const struct stage *slowest = slowest_of(o);
    return o->most > 0 && median(epochs, o->epochs) > o->most * slowest->image_s * (double)images
               ? BENCH_FAILURE
               : BENCH_OK;
}

int bench_overlap(int argc, char **argv)
{
    struct options o;
    int rc = options_parse(&o, argc, argv);

    return rc == -1 ? BENCH_OK : rc ? rc : run(&o);
}
