/*
 * `hapi-bench planner`: what each policy chooses for a profile, and what the simulator says of it, beside the
 * best that the simulator knows. With --perturb each policy sees a profile whose numbers are all off by up to
 * so much, and its choice is simulated with the right ones.
 */
#include <cjson/cJSON.h>
#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench.h"
#include "planner.h"
#include "scale.h"
#include "sim.h"

enum { POLICIES = HAPI_POLICY_PIPELINE + 1, MICROS = 6, SHARES = 9, FRONT = 6 };

static const char help[] =
    "usage: hapi-bench planner [OPTION...] PROFILE.json...\n\n"
    "What each policy chooses, simulated, and the best of the simulator's, as one line of JSON for each "
    "profile.\n\n"
    "  --wires LIST    dtypes that may travel (default f32): f32,f16,bf16,int8\n"
    "  --within X      simulates what is predicted to take at most X times the best (default 1.6)\n"
    "  --perturb X     policies see every number off by up to X of it (default 0)\n"
    "  --seed N        of the jitter and of --perturb (default 1)\n"
    "  --seeds N       a plan's time is the mean of so many runs, of seeds from that on (default 3)\n";

struct options {
    uint32_t wires;
    double within, perturb;
    uint64_t seed, seeds;
};

struct found {
    struct hapi_split_part parts[HAPI_CHOICE_PARTS];
    uint32_t n_parts;
    double epoch_s;
};

/* ------------------------------------------------------------------ profiles */

/* splitmix64 */
static double luck(uint64_t *state, double most)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15ULL;

    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
    return 1 + most * ((double)((z ^ (z >> 31)) >> 11) * 0x1p-52 - 1);
}

static void perturb(struct hapi_profile *p, uint64_t seed, double most)
{
    struct hapi_curve *all[] = {&p->train_s, &p->source_prepare_s, &p->read_s, &p->storage_prepare_s};
    uint64_t state = seed;

    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        hapi_curve_scale(all[i], luck(&state, most));
    p->bandwidth_Bps *= luck(&state, most);
    p->latency_s *= luck(&state, most);
    for (uint32_t i = 0; i < p->n_cuts; i++) {
        hapi_curve_scale(&p->cuts[i].storage_s, luck(&state, most));
        hapi_curve_scale(&p->cuts[i].compute_s, luck(&state, most));
    }
}

/* ------------------------------------------------------------------ the simulator's opinion */

static int simulate(const struct hapi_profile *p, const struct hapi_split_plan *plan, const struct options *o,
                    double *out, struct hapi_err *err)
{
    struct hapi_sim_result *r;

    *out = 0;
    for (uint64_t i = 0; i < o->seeds; i++) {
        int rc = hapi_sim_profile_run(&r, p, plan, o->seed + i, err);
        if (rc)
            return rc;
        *out += r->clients[0].end_s / p->epochs / (double)o->seeds;
        hapi_sim_result_free(r);
    }
    return HAPI_OK;
}

/* Simulates the plan; keeps it in *best if it is better. */
static int try_plan(struct found *best, const struct hapi_profile *p, const struct hapi_split_part *parts,
                    uint32_t n, const struct options *o, struct hapi_err *err)
{
    struct hapi_split_plan plan = {parts, n};
    double s;
    int rc = simulate(p, &plan, o, &s, err);

    if (rc || (best->n_parts && s >= best->epoch_s))
        return rc;
    memcpy(best->parts, parts, n * sizeof *parts);
    best->n_parts = n;
    best->epoch_s = s;
    return HAPI_OK;
}

static int by_predicted(const void *a, const void *b)
{
    const struct hapi_candidate *x = a, *y = b;
    double s = x->fits ? x->predicted.epoch_s : 1e300, t = y->fits ? y->predicted.epoch_s : 1e300;

    return s < t ? -1 : s > t;
}

/* The best few again with other micro-batches, and mixed with raw images. */
static int try_around(struct found *best, const struct hapi_profile *p, const struct hapi_candidate *c,
                      const struct hapi_candidate *none, const struct options *o, struct hapi_err *err)
{
    int rc = HAPI_OK;

    for (uint32_t i = 0, b = 1; i < MICROS && !rc; i++, b *= 2) {
        struct hapi_split_part part = c->part;
        part.micro_batch = b;
        if (hapi_part_fits(p, &part))
            rc = try_plan(best, p, &part, 1, o, err);
    }
    for (int i = 1; i <= SHARES && !rc && none->fits && c->part.cut >= 0; i++) {
        struct hapi_split_part parts[2] = {c->part, none->part};
        parts[0].share = (double)i / (SHARES + 1);
        parts[1].share = 1 - parts[0].share;
        rc = try_plan(best, p, parts, 2, o, err);
    }
    return rc;
}

static int best_find(struct found *best, const struct hapi_profile *p, struct hapi_candidate *c, size_t n,
                     const struct options *o, struct hapi_err *err)
{
    struct hapi_candidate none = c[0];
    int rc = HAPI_OK;

    qsort(c, n, sizeof *c, by_predicted);
    for (size_t i = 0; i < n && !rc && c[i].fits; i++) {
        if (c[i].predicted.epoch_s > o->within * c[0].predicted.epoch_s)
            break;
        rc = i < FRONT ? try_around(best, p, &c[i], &none, o, err) : try_plan(best, p, &c[i].part, 1, o, err);
    }
    return rc;
}

/* ------------------------------------------------------------------ one profile */

static cJSON *parts_json(const struct hapi_split_part *parts, uint32_t n)
{
    cJSON *list = cJSON_CreateArray();

    for (uint32_t i = 0; i < n; i++) {
        cJSON *o = cJSON_CreateObject();
        cJSON_AddNumberToObject(o, "split", parts[i].cut);
        cJSON_AddStringToObject(o, "wire", hapi_wire_name(parts[i].wire));
        cJSON_AddNumberToObject(o, "micro_batch", parts[i].micro_batch);
        cJSON_AddNumberToObject(o, "share", parts[i].share);
        cJSON_AddItemToArray(list, o);
    }
    return list;
}

/* What the paper's own formula says of its choice. */
static double paper_of(const struct hapi_candidate *c, size_t n, const struct hapi_split_part *part)
{
    for (size_t i = 0; i < n; i++)
        if (c[i].part.cut == part->cut && c[i].part.wire == part->wire)
            return c[i].paper_s;
    return 0;
}

static int policy_json(cJSON *to, struct found *best, const struct hapi_profile *truth,
                       const struct hapi_profile *seen, enum hapi_policy policy, const struct options *o,
                       struct hapi_candidate *c, size_t *n, struct hapi_err *err)
{
    struct hapi_choose_options choose = {.policy = policy, .wires = o->wires};
    struct hapi_choice choice;
    double s = 0;

    int rc = hapi_choose_tried(&choice, seen, &choose, c, n, err);
    if (rc)
        return rc;
    struct hapi_split_plan plan = hapi_choice_plan(&choice);
    rc = simulate(truth, &plan, o, &s, err);
    if (!rc)
        rc = try_plan(best, truth, choice.parts, choice.n_parts, o, err);
    if (rc)
        return rc;
    cJSON *j = cJSON_AddObjectToObject(to, hapi_policy_name(policy));
    cJSON_AddItemToObject(j, "parts", parts_json(choice.parts, choice.n_parts));
    cJSON_AddNumberToObject(j, "epoch_s", s);
    cJSON_AddNumberToObject(j, "predicted_s", choice.predicted.epoch_s);
    if (policy == HAPI_POLICY_HAPI)
        cJSON_AddNumberToObject(j, "paper_s", paper_of(c, *n, &choice.parts[0]));
    cJSON_AddStringToObject(j, "bottleneck", hapi_load_name(choice.predicted.bottleneck));
    return HAPI_OK;
}

static int judge(const char *path, const struct hapi_profile *truth, const struct hapi_profile *seen,
                 const struct options *o, struct hapi_err *err)
{
    struct hapi_candidate *c = calloc(hapi_candidates_max(truth), sizeof *c);
    struct found best = {.n_parts = 0};
    cJSON *line = cJSON_CreateObject(), *policies = cJSON_CreateObject();
    size_t n = 0;
    int rc = c ? HAPI_OK : hapi_err_set(err, HAPI_ENOMEM, 0, "no memory for candidates");

    cJSON_AddStringToObject(line, "profile", path);
    cJSON_AddItemToObject(line, "policies", policies);
    for (int i = 0; i < POLICIES && !rc; i++)
        rc = policy_json(policies, &best, truth, seen, (enum hapi_policy)i, o, c, &n, err);
    if (!rc) {
        struct hapi_choice unused; /* for the candidates of the true profile */
        struct hapi_choose_options choose = {.policy = HAPI_POLICY_PIPELINE, .wires = o->wires};
        rc = hapi_choose(&unused, truth, &choose, c, &n, err);
        if (!rc)
            rc = best_find(&best, truth, c, n, o, err);
    }
    if (!rc) {
        cJSON *b = cJSON_AddObjectToObject(line, "best");
        cJSON_AddItemToObject(b, "parts", parts_json(best.parts, best.n_parts));
        cJSON_AddNumberToObject(b, "epoch_s", best.epoch_s);
        char *text = cJSON_PrintUnformatted(line);
        puts(text ? text : "{}");
        free(text);
    }
    cJSON_Delete(line);
    free(c);
    return rc;
}

static int profile_judge(const char *path, const struct options *o, struct hapi_err *err)
{
    struct hapi_profile *truth = NULL, *seen = NULL;
    int rc = hapi_profile_read(&truth, path, err);

    if (!rc)
        rc = hapi_profile_read(&seen, path, err);
    if (!rc) {
        perturb(seen, o->seed, o->perturb);
        rc = judge(path, truth, seen, o, err);
    }
    hapi_profile_free(seen);
    hapi_profile_free(truth);
    return rc;
}

/* ------------------------------------------------------------------ options */

static bool wires_parse(uint32_t *out, const char *list)
{
    char copy[64], *save = NULL;

    if (snprintf(copy, sizeof copy, "%s", list) >= (int)sizeof copy)
        return false;
    *out = 0;
    for (char *t = strtok_r(copy, ",", &save); t; t = strtok_r(NULL, ",", &save)) {
        enum hapi_wire w;
        if (hapi_wire_from_name(&w, t))
            return false;
        *out |= 1u << w;
    }
    return *out != 0;
}

static bool option_take(struct options *o, int c, const char *value)
{
    char *end = NULL;

    switch (c) {
    case 'w':
        return wires_parse(&o->wires, value);
    case 'x':
        o->within = strtod(value, &end);
        return end != value && !*end && o->within >= 1;
    case 'p':
        o->perturb = strtod(value, &end);
        return end != value && !*end && o->perturb >= 0 && o->perturb < 1;
    case 'n':
        o->seeds = strtoull(value, &end, 10);
        return end != value && !*end && o->seeds >= 1 && o->seeds <= 1000;
    default:
        o->seed = strtoull(value, &end, 10);
        return end != value && !*end;
    }
}

int bench_planner(int argc, char **argv)
{
    static const struct option options[] = {{"wires", required_argument, NULL, 'w'},
                                            {"within", required_argument, NULL, 'x'},
                                            {"perturb", required_argument, NULL, 'p'},
                                            {"seed", required_argument, NULL, 's'},
                                            {"seeds", required_argument, NULL, 'n'},
                                            {"help", no_argument, NULL, 'h'},
                                            {NULL, 0, NULL, 0}};
    struct options o = {.wires = 1u << HAPI_WIRE_F32, .within = 1.6, .seed = 1, .seeds = 3};
    struct hapi_err err = {0};
    int c;

    while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
        if (c == 'h') {
            fputs(help, stdout);
            return BENCH_OK;
        }
        if (c == '?')
            return BENCH_USAGE;
        if (!option_take(&o, c, optarg)) {
            fprintf(stderr, "hapi-bench planner: `%s` is no value for that option\n", optarg);
            return BENCH_USAGE;
        }
    }
    if (optind == argc) {
        fputs("hapi-bench planner: no profile given (see --help)\n", stderr);
        return BENCH_USAGE;
    }
    for (int i = optind; i < argc; i++)
        if (profile_judge(argv[i], &o, &err))
            return bench_fail("hapi-bench planner", &err);
    return BENCH_OK;
}
