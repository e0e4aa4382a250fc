/* hapi plan: where to split, from a profile; why, and what would move it. */
#include <cjson/cJSON.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cmd.h"
#include "plan_plot.h"
#include "planner.h"
#include "quantity.h"
#include "scale.h"

struct options {
    const char *profile, *plot;
    double bandwidth; /* bytes a second; 0: the profile's */
    struct hapi_choose_options choose;
    bool json, explain;
};

static void help(void)
{
    fputs("usage: hapi plan --profile FILE [OPTION...]\n\n"
          "Where to split a network, as what its activations travel, and in which micro-batches, for the job "
          "and\n"
          "machines of a profile (`hapi profile` measures one; docs/planner.md describes it).\n\n"
          "  --profile FILE    JSON\n"
          "  --policy P        pipeline (default), hapi, hapi-v1, freeze or none\n"
          "  --bandwidth RATE  of each node's link instead of the profile's: 100Mbit, 10Gbit, 12500000 "
          "(bytes/s)\n"
          "  --accuracy E      what the wire may add to the features: a relative L2 error (0, the default: "
          "f32;\n"
          "                    5e-4: f16; 4e-3: bf16; 1.2e-2: int8), or the name of the narrowest dtype\n"
          "  --micro-batch B   this one; default: the best of 1, 2, 4, 8, 16, 32\n"
          "  --whole           all images the same way: no part of them raw, or cut elsewhere\n"
          "  --explain         each cut's stages, and what would move the choice\n"
          "  --plot FILE.svg   stage times by cut\n"
          "  --json            {\"policy\", \"split\": index or -1, \"name\", \"wire\", \"micro_batch\", "
          "\"share\", "
          "\"epoch_s\",\n"
          "                    \"stages\": {...}, \"bottleneck\", \"parts\": [...], \"candidates\": "
          "[{\"split\", "
          "\"wire\", \"epoch_s\",\n"
          "                    ...}]}\n"
          "  --help\n",
          stdout);
}

/* ------------------------------------------------------------------ output */

static const char *cut_name(const struct hapi_profile *p, int32_t cut)
{
    return cut < 0 ? "none" : hapi_profile_cut_find(p, (uint32_t)cut)->name;
}

static void number(cJSON *o, const char *key, double v)
{
    cJSON_AddNumberToObject(o, key, v);
}

static void part_json(cJSON *o, const struct hapi_profile *p, const struct hapi_split_part *part)
{
    number(o, "split", part->cut);
    cJSON_AddStringToObject(o, "name", cut_name(p, part->cut));
    cJSON_AddStringToObject(o, "wire", hapi_wire_name(part->wire));
    number(o, "micro_batch", part->micro_batch);
    number(o, "share", part->share);
}

static void predicted_json(cJSON *o, const struct hapi_prediction *x)
{
    cJSON *stages;

    number(o, "epoch_s", x->epoch_s);
    number(o, "first_epoch_s", x->first_s);
    number(o, "later_epoch_s", x->later_s);
    number(o, "fill_s", x->fill_s);
    number(o, "storage_work_s", x->storage_work_s);
    cJSON_AddStringToObject(o, "bottleneck", hapi_load_name(x->bottleneck));
    stages = cJSON_AddObjectToObject(o, "stages");
    for (int i = 0; i < HAPI_LOADS_N; i++)
        number(stages, hapi_load_name((enum hapi_load)i), x->load_s[i]);
}

static int print_json(const struct hapi_profile *p, const struct options *o, const struct hapi_choice *choice,
                      const struct hapi_candidate *c, size_t n)
{
    cJSON *root = cJSON_CreateObject(), *list;

    cJSON_AddStringToObject(root, "policy", hapi_policy_name(o->choose.policy));
    part_json(root, p, &choice->parts[0]);
    predicted_json(root, &choice->predicted);
    list = cJSON_AddArrayToObject(root, "parts");
    for (uint32_t i = 0; i < choice->n_parts; i++) {
        cJSON *part = cJSON_CreateObject();
        part_json(part, p, &choice->parts[i]);
        cJSON_AddItemToArray(list, part);
    }
    list = cJSON_AddArrayToObject(root, "candidates");
    for (size_t i = 0; i < n; i++) {
        cJSON *one = cJSON_CreateObject();
        if (!c[i].fits) {
            cJSON_Delete(one);
            continue;
        }
        part_json(one, p, &c[i].part);
        predicted_json(one, &c[i].predicted);
        if (o->choose.policy == HAPI_POLICY_HAPI && c[i].paper_s > 0)
            number(one, "paper_s", c[i].paper_s);
        cJSON_AddItemToArray(list, one);
    }
    char *text = cJSON_PrintUnformatted(root);
    cJSON_Delete(root);
    if (!text) {
        fputs("hapi plan: out of memory\n", stderr);
        return CMD_FAILURE;
    }
    puts(text);
    cJSON_free(text);
    return ferror(stdout) ? CMD_FAILURE : CMD_OK;
}

static void print_choice(const struct hapi_profile *p, const struct options *o,
                         const struct hapi_choice *choice)
{
    const struct hapi_prediction *x = &choice->predicted;

    printf("policy %s: ", hapi_policy_name(o->choose.policy));
    for (uint32_t i = 0; i < choice->n_parts; i++) {
        const struct hapi_split_part *part = &choice->parts[i];
        printf("%s%.0f %% ", i ? ", " : "", 100 * part->share);
        if (part->cut < 0)
            printf("without pushdown");
        else
            printf("cut %d (%s), wire %s, micro-batch %u", part->cut, cut_name(p, part->cut),
                   hapi_wire_name(part->wire), part->micro_batch);
    }
    printf("\nan epoch of %llu images: %.4g s, bottleneck %s", (unsigned long long)p->images, x->epoch_s,
           hapi_load_name(x->bottleneck));
    if (p->epochs > 1)
        printf(" (the first %.4g s, later ones %.4g s)", x->first_s, x->later_s);
    putchar('\n');
}

static void print_table(const struct hapi_profile *p, const struct hapi_candidate *c, size_t n)
{
    printf("\n%5s  %-28s %-5s %5s  %10s", "cut", "name", "wire", "micro", "epoch s");
    for (int i = 0; i < HAPI_LOADS_N; i++)
        printf("  %14s", hapi_load_name((enum hapi_load)i));
    putchar('\n');
    for (int64_t i = -1; i < (int64_t)p->n_cuts; i++) {
        const struct hapi_candidate *x =
            plan_best_of(c, n, i < 0 ? HAPI_SPLIT_NONE : (int32_t)p->cuts[i].index);
        if (!x) {
            printf("%5lld  %-28.28s does not fit the memory\n", i < 0 ? -1LL : (long long)p->cuts[i].index,
                   i < 0 ? "none" : p->cuts[i].name);
            continue;
        }
        printf("%5d  %-28.28s %-5s %5u  %10.4g", x->part.cut, cut_name(p, x->part.cut),
               hapi_wire_name(x->part.wire), x->part.micro_batch, x->predicted.epoch_s);
        for (int k = 0; k < HAPI_LOADS_N; k++)
            printf("  %13.4g%s", x->predicted.load_s[k], k == (int)x->predicted.bottleneck ? "*" : " ");
        putchar('\n');
    }
}

/* The least change of one thing, up or down, with which another cut is predicted to be the best. */
static void print_move(struct hapi_profile *p, const struct options *o, const struct hapi_choice *now,
                       enum hapi_scale what, bool faster, struct hapi_candidate *c)
{
    static const double steps[] = {1.1, 1.25, 1.5, 2, 3, 5, 10, 30, 100};
    struct hapi_choice then;
    size_t n;

    for (size_t i = 0; i < sizeof steps / sizeof *steps; i++) {
        double by = faster ? steps[i] : 1 / steps[i];
        hapi_profile_scale(p, what, by);
        int rc = hapi_choose(&then, p, &o->choose, c, &n, NULL);
        hapi_profile_scale(p, what, 1 / by);
        if (rc || (then.parts[0].cut == now->parts[0].cut && then.n_parts == now->n_parts))
            continue;
        printf("  %s x %.3g: %s%s\n", hapi_scale_name(what), by, cut_name(p, then.parts[0].cut),
               then.n_parts > 1 ? ", mixed" : "");
        return;
    }
}

static int explain(struct hapi_profile *p, const struct options *o, struct hapi_candidate *c, size_t n)
{
    struct hapi_choice choice; /* by the predictions: simulating each would take seconds */

    print_table(p, c, n);
    if (hapi_choose(&choice, p, &o->choose, c, &n, NULL))
        return CMD_FAILURE;
    fputs("\nwhat would move the choice:\n", stdout);
    for (int i = 0; i < HAPI_SCALES_N; i++) {
        print_move(p, o, &choice, (enum hapi_scale)i, true, c);
        print_move(p, o, &choice, (enum hapi_scale)i, false, c);
    }
    return ferror(stdout) ? CMD_FAILURE : CMD_OK;
}

/* ------------------------------------------------------------------ the command */

static int profile_read(struct hapi_profile **out, const struct options *o, struct hapi_err *err)
{
    int rc = hapi_profile_read(out, o->profile, err);

    if (rc)
        return rc;
    if (o->bandwidth > 0) {
        (*out)->bandwidth_Bps = o->bandwidth;
        for (uint32_t i = 0; i < (*out)->n_node_list; i++)
            (*out)->node_list[i].bandwidth_Bps = o->bandwidth;
    }
    return HAPI_OK;
}

static int show(struct hapi_profile *p, const struct options *o, struct hapi_candidate *c,
                struct hapi_err *err)
{
    struct hapi_choice choice;
    size_t n;
    int rc = hapi_choose_tried(&choice, p, &o->choose, c, &n, err);

    if (!rc && o->plot)
        rc = plan_plot(o->plot, p, &choice, c, n, err);
    if (rc)
        return cmd_fail("plan", err);
    if (o->json)
        return print_json(p, o, &choice, c, n);
    print_choice(p, o, &choice);
    return o->explain ? explain(p, o, c, n) : ferror(stdout) ? CMD_FAILURE : CMD_OK;
}

static int run(const struct options *o)
{
    struct hapi_err err = {0};
    struct hapi_profile *p = NULL;

    if (profile_read(&p, o, &err))
        return cmd_fail("plan", &err);
    struct hapi_candidate *c = calloc(hapi_candidates_max(p), sizeof *c);
    int code = CMD_FAILURE;
    if (c)
        code = show(p, o, c, &err);
    else
        fputs("hapi plan: out of memory\n", stderr);
    free(c);
    hapi_profile_free(p);
    return code;
}

/* What is wrong with the value, or NULL. */
static const char *option_take(struct options *o, int c, const char *value, struct hapi_err *err)
{
    char *end;
    unsigned long v;

    switch (c) {
    case 'f':
        o->profile = value;
        return NULL;
    case 'p':
        return hapi_policy_from_name(&o->choose.policy, value, err) ? err->text : NULL;
    case 'b':
        return quantity_rate(value, &o->bandwidth) ? NULL : "--bandwidth takes a rate such as 100Mbit";
    case 'a':
        return hapi_wires_within(&o->choose.wires, value)
                   ? NULL
                   : "--accuracy takes an error such as 5e-4, or f32, f16, bf16 or int8";
    case 'm':
        v = strtoul(value, &end, 10);
        if (end == value || *end || v < 1 || v > HAPI_MICRO_BATCH_MAX)
            return "--micro-batch takes a number of images";
        o->choose.micro_batch = (uint32_t)v;
        return NULL;
    case 's':
        o->plot = value;
        return NULL;
    default:
        *(c == 'w' ? &o->choose.whole : c == 'e' ? &o->explain : &o->json) = true;
        return NULL;
    }
}

int cmd_plan(int argc, char **argv)
{
    static const struct option options[] = {{"profile", required_argument, NULL, 'f'},
                                            {"policy", required_argument, NULL, 'p'},
                                            {"bandwidth", required_argument, NULL, 'b'},
                                            {"accuracy", required_argument, NULL, 'a'},
                                            {"micro-batch", required_argument, NULL, 'm'},
                                            {"plot", required_argument, NULL, 's'},
                                            {"whole", no_argument, NULL, 'w'},
                                            {"explain", no_argument, NULL, 'e'},
                                            {"json", no_argument, NULL, 'j'},
                                            {"help", no_argument, NULL, 'h'},
                                            {NULL, 0, NULL, 0}};
    struct options o = {.choose = {.policy = HAPI_POLICY_PIPELINE}};
    struct hapi_err err = {0};
    int c;

    while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
        if (c == 'h') {
            help();
            return CMD_OK;
        }
        if (c == '?')
            return CMD_USAGE;
        const char *wrong = option_take(&o, c, optarg, &err);
        if (wrong)
            return cmd_usage("plan", "%s", wrong);
    }
    if (optind < argc)
        return cmd_usage("plan", "what is `%s`?", argv[optind]);
    if (!o.profile)
        return cmd_usage("plan", "no --profile FILE");
    return run(&o);
}
