/* What policies choose: by hand where a case is simple, by properties and by the simulator where it is not.
 */
#include <math.h>
#include <time.h>

#include "check.h"
#include "planner.h"
#include "scale.h"
#include "sim.h"

static struct hapi_err err;
static struct hapi_candidate candidates[1 + 1000 * HAPI_WIRES_N];
static size_t n_candidates;

/* splitmix64, to [0, 1) */
static double luck(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15ULL;

    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
    return (double)((z ^ (z >> 31)) >> 11) * 0x1p-53;
}

/* One core a tier; cut i of n has done i / (n - 1) of a network of `network_s` and is as wide as wide[i]. */
static struct hapi_profile *made(uint32_t n, const double *wide, double network_s, double bandwidth)
{
    struct hapi_profile *p;

    REQUIRE(!hapi_profile_new(&p, n, 0, &err));
    p->model = "made";
    p->images = 4096;
    p->train_batch = 256;
    p->epochs = p->nodes = 1;
    p->source_bytes = 100e3;
    p->bandwidth_Bps = bandwidth;
    p->latency_s = 1e-4;
    p->storage_memory = p->compute_memory = 1e10;
    p->train_s.s = 1e-6;
    p->source_prepare_s.s = p->storage_prepare_s.s = 1e-3;
    p->read_s.s = 1e-5;
    for (uint32_t i = 0; i < n; i++) {
        struct hapi_profile_cut *c = &p->cuts[i];
        double part = n > 1 ? (double)i / (n - 1) : 1;
        c->index = i;
        c->name = "cut";
        for (int w = 0; w < HAPI_WIRES_N; w++)
            c->wire_bytes[w] = wide[i] / (w == HAPI_WIRE_F32 ? 1 : w == HAPI_WIRE_I8 ? 4 : 2);
        c->storage_s.s = network_s * part;
        c->compute_s.s = network_s * (1 - part);
        c->storage_memory = c->compute_memory = (struct hapi_profile_memory){1e6, 1e6};
    }
    p->freeze = n - 1;
    return p;
}

static struct hapi_choice choose(const struct hapi_profile *p, struct hapi_choose_options o)
{
    struct hapi_choice c = {.n_parts = 0};
    int rc = hapi_choose(&c, p, &o, candidates, &n_candidates, &err);

    CHECKF(!rc, "%s", err.text);
    return c;
}

static struct hapi_choice pipeline(const struct hapi_profile *p, bool whole)
{
    return choose(p, (struct hapi_choose_options){.policy = HAPI_POLICY_PIPELINE, .whole = whole});
}

static const double narrowing[] = {800e3, 400e3, 100e3, 10e3, 4e3};

/* ------------------------------------------------------------------ pipeline, by hand */

static void pipeline__fast_link__balances_the_tiers(void)
{
    struct hapi_profile *p = made(5, narrowing, 10e-3, 10e9);
    struct hapi_choice c = pipeline(p, true);

    /* 1 + 5 ms there, 5 ms here */
    CHECKF(c.parts[0].cut == 2, "cut %d", c.parts[0].cut);
    CHECKF(fabs(c.predicted.epoch_s / 4096 - 6e-3) < 0.1e-3, "%g s an image", c.predicted.epoch_s / 4096);
    CHECK(c.predicted.bottleneck == HAPI_LOAD_STORAGE);
    hapi_profile_free(p);
}

static void pipeline__slow_link__sends_least(void)
{
    struct hapi_profile *p = made(5, narrowing, 10e-3, 0.5e6);
    struct hapi_choice c = pipeline(p, true);

    /* 11 ms of the node; cut 3 takes 20 of the link. */
    CHECKF(c.parts[0].cut == 4, "cut %d", c.parts[0].cut);
    c = choose(p, (struct hapi_choose_options){
                      .policy = HAPI_POLICY_PIPELINE, .whole = true, .wires = 1 << HAPI_WIRE_F16});
    CHECK(c.parts[0].cut == 3 && c.parts[0].wire == HAPI_WIRE_F16); /* 10 ms */
    hapi_profile_free(p);
}

static void pipeline__weak_nodes__leaves_them_alone(void)
{
    struct hapi_profile *p = made(5, narrowing, 10e-3, 10e9);

    hapi_profile_scale(p, HAPI_SCALE_STORAGE, 0.01);
    struct hapi_choice c = pipeline(p, true);
    CHECK(c.parts[0].cut == HAPI_SPLIT_NONE && c.parts[0].wire == HAPI_WIRE_RAW &&
          c.predicted.storage_work_s == 0);
    hapi_profile_free(p);
}

/* Training takes longer than anything else: nothing is gained by pushing down, so nothing is. */
static void pipeline__tie__works_the_nodes_least(void)
{
    struct hapi_profile *p = made(5, narrowing, 1e-3, 10e9);

    p->train_s.s = 50e-3;
    struct hapi_choice c = pipeline(p, false);
    CHECK(c.n_parts == 1 && c.parts[0].cut == HAPI_SPLIT_NONE);
    CHECK(c.predicted.bottleneck == HAPI_LOAD_TRAIN);
    hapi_profile_free(p);
}

/* One core a tier, all of the network or nothing: half the images each way take half the time. */
static void pipeline__two_tiers_alike__share_the_images(void)
{
    static const double one[] = {4e3};
    struct hapi_profile *p = made(1, one, 10e-3, 10e9);

    p->source_compute_s.s = 10e-3;
    p->cuts[0].storage_s.s = 10e-3;
    struct hapi_choice whole = pipeline(p, true), c = pipeline(p, false);
    CHECK(c.n_parts == 2 && c.parts[0].cut == 0 && c.parts[1].cut == HAPI_SPLIT_NONE);
    CHECKF(fabs(c.parts[0].share - 0.5) < 0.05, "share %g", c.parts[0].share);
    CHECKF(c.predicted.epoch_s < 0.56 * whole.predicted.epoch_s, "%g of %g", c.predicted.epoch_s,
           whole.predicted.epoch_s);
    hapi_profile_free(p);
}

static void pipeline__memory__bounds_cut_and_micro_batch(void)
{
    struct hapi_profile *p = made(5, narrowing, 10e-3, 10e9);

    p->cuts[2].storage_memory.fixed = 2e10;
    CHECK(pipeline(p, true).parts[0].cut != 2);
    p->storage_memory = p->compute_memory = 1e6 + 4.5e6; /* 4 images */
    struct hapi_choice c = choose(p, (struct hapi_choose_options){.policy = HAPI_POLICY_FREEZE});
    CHECK(c.parts[0].micro_batch <= 4);
    p->compute_memory = 1e5;
    CHECK(hapi_choose(&c, p, &(struct hapi_choose_options){.policy = HAPI_POLICY_PIPELINE}, candidates,
                      &n_candidates, &err) == HAPI_ENOMEM &&
          strstr(err.text, "compute_memory"));
    hapi_profile_free(p);
}

/* The first epoch would rather compute here; ten epochs from the nodes' cache are worth computing there. */
static void pipeline__caches__count_for_all_epochs(void)
{
    struct hapi_profile *p = made(5, narrowing, 10e-3, 20e6);

    hapi_profile_scale(p, HAPI_SCALE_STORAGE, 0.8);
    int32_t once = pipeline(p, true).parts[0].cut;
    p->epochs = 50;
    p->storage_cache = 1e12;
    struct hapi_choice c = pipeline(p, true);
    CHECKF(c.parts[0].cut == 4 && once < 4, "cut %d for 50 epochs, %d for one", c.parts[0].cut, once);
    CHECK(c.predicted.later_s < 0.1 * c.predicted.first_s);
    p->compute_cache = 1e12; /* features here: later epochs only train */
    c = pipeline(p, true);
    CHECK(fabs(c.predicted.later_s - 4096 * 1e-6) < 1e-9);
    hapi_profile_free(p);
}

/* ------------------------------------------------------------------ the paper */

/* The formula as published, written again for one core a tier and batches that are whole waves. */
static double paper(const struct hapi_profile *p, uint32_t i)
{
    double b = p->train_batch, n = (double)p->images;
    double s = b * (p->read_s.s + p->storage_prepare_s.s + p->cuts[i].storage_s.s +
                    p->cuts[i].wire_bytes[HAPI_WIRE_F32] / p->bandwidth_Bps);
    double t = b * (p->cuts[i].compute_s.s + p->train_s.s);

    return s + fmax(s, t) * (n / b - 1) + t;
}

static void hapi__random_profiles__is_the_published_minimum(void)
{
    uint64_t state = 7;

    for (int round = 0; round < 200; round++) {
        double wide[12];
        uint32_t best = 0;
        for (int i = 0; i < 12; i++)
            wide[i] = exp(5 + 9 * luck(&state));
        struct hapi_profile *p = made(12, wide, 20e-3 * luck(&state), exp(13 + 8 * luck(&state)));
        p->source_prepare_s.s = 10; /* no pushdown is out of the question */
        for (uint32_t i = 1; i < 12; i++)
            if (paper(p, i) < paper(p, best))
                best = i;
        struct hapi_choice c = choose(p, (struct hapi_choose_options){.policy = HAPI_POLICY_HAPI});
        CHECKF(c.parts[0].cut == (int32_t)best && c.parts[0].wire == HAPI_WIRE_F32,
               "round %d: cut %d, not %u", round, c.parts[0].cut, best);
        hapi_profile_free(p);
    }
}

static void hapi__client_memory__passes_over_then_freezes(void)
{
    struct hapi_profile *p = made(5, narrowing, 10e-3, 100e6);
    struct hapi_choose_options o = {.policy = HAPI_POLICY_HAPI};
    int32_t cut = choose(p, o).parts[0].cut;

    p->source_prepare_s.s = 10;
    p->cuts[cut].compute_memory.per_image = 1e9; /* a micro-batch fits, a training batch does not */
    CHECK(choose(p, o).parts[0].cut != cut);
    for (int i = 0; i < 5; i++)
        p->cuts[i].compute_memory.per_image = 1e9;
    CHECK(choose(p, o).parts[0].cut == 4);
    hapi_profile_free(p);
}

static void hapi_v1__first_narrow_cut_with_less_memory__or_freeze(void)
{
    struct hapi_profile *p = made(5, narrowing, 10e-3, 1e9);
    struct hapi_choose_options o = {.policy = HAPI_POLICY_HAPI_V1};

    CHECK(choose(p, o).parts[0].cut == 4); /* no cut needs less memory than another: the freeze layer */
    for (int i = 0; i < 5; i++) {
        p->cuts[i].storage_memory.per_image = 1e5 * (i + 1);
        p->cuts[i].compute_memory.per_image = 1e5 * (5 - i);
    }
    CHECK(choose(p, o).parts[0].cut == 3); /* 100 kB are no less than the source's */
    p->bandwidth_Bps = 1e6;                /* 256 of 10 kB are more than a second */
    CHECK(choose(p, o).parts[0].cut == 4);
    hapi_profile_free(p);
}

/* ------------------------------------------------------------------ properties */

static struct hapi_profile *random_profile(uint64_t *state, uint32_t n)
{
    static double wide[1000];
    struct hapi_profile *p;

    for (uint32_t i = 0; i < n; i++)
        wide[i] = exp(6 + 8 * luck(state));
    p = made(n, wide, exp(-8 + 5 * luck(state)), exp(13 + 9 * luck(state)));
    p->storage.cores = 1 + (uint32_t)(15 * luck(state));
    p->compute.cores = 1 + (uint32_t)(15 * luck(state));
    p->nodes = 1 + (uint32_t)(3 * luck(state));
    p->train_batch = 64u << (uint32_t)(4 * luck(state));
    p->client_bandwidth_Bps = luck(state) < 0.5 ? 0 : p->bandwidth_Bps * (0.5 + 2 * luck(state));
    p->train_s.s = exp(-12 + 6 * luck(state));
    hapi_profile_scale(p, HAPI_SCALE_STORAGE, exp(2 * luck(state) - 1));
    return p;
}

static void pipeline__random_profiles__no_whole_plan_is_better(void)
{
    uint64_t state = 3;

    for (int round = 0; round < 200; round++) {
        struct hapi_profile *p = random_profile(&state, 2 + (uint32_t)(30 * luck(&state)));
        struct hapi_choice c =
            choose(p, (struct hapi_choose_options){.policy = HAPI_POLICY_PIPELINE, .wires = 3});
        struct hapi_split_plan plan = hapi_choice_plan(&c);
        CHECKF(!hapi_split_plan_check(&plan, p, p->nodes, &err), "%s", err.text);
        for (size_t i = 0; i < n_candidates; i++)
            CHECKF(!candidates[i].fits || c.predicted.epoch_s <= candidates[i].predicted.epoch_s * 1.0101,
                   "round %d: %g, candidate %zu %g", round, c.predicted.epoch_s, i,
                   candidates[i].predicted.epoch_s);
        double again = hapi_predict(p, &plan).epoch_s;
        CHECK(again == c.predicted.epoch_s);
        hapi_profile_free(p);
    }
}

static int ascending(const void *a, const void *b)
{
    const double *x = a, *y = b;

    return (*x > *y) - (*x < *y);
}

/* The simulator shares no formula with the prediction. */
static void prediction__random_plans__is_what_the_simulator_finds(void)
{
    enum { ROUNDS = CHECK_SANITIZED ? 60 : 300 };
    static double off[ROUNDS];
    uint64_t state = 11;

    for (int round = 0; round < ROUNDS; round++) {
        struct hapi_profile *p = random_profile(&state, 2 + (uint32_t)(12 * luck(&state)));
        struct hapi_split_part part = {HAPI_SPLIT_NONE, HAPI_WIRE_RAW, 1u << (uint32_t)(6 * luck(&state)),
                                       HAPI_PLAN_ANY_NODE, 1};
        struct hapi_split_plan plan = {&part, 1};
        struct hapi_sim_result *r;
        if (luck(&state) < 0.8) {
            part.cut = (int32_t)(p->n_cuts * luck(&state));
            part.wire = luck(&state) < 0.5 ? HAPI_WIRE_F32 : HAPI_WIRE_F16;
        }
        REQUIRE(!hapi_sim_profile_run(&r, p, &plan, 1, &err));
        off[round] = fabs(hapi_predict(p, &plan).epoch_s / r->clients[0].end_s - 1);
        hapi_sim_result_free(r);
        hapi_profile_free(p);
    }
    qsort(off, ROUNDS, sizeof *off, ascending);
    printf("off by %.2f %% (median), %.2f %% (95 of 100), %.2f %% (most)\n", 100 * off[ROUNDS / 2],
           100 * off[ROUNDS * 95 / 100], 100 * off[ROUNDS - 1]);
    CHECK(off[ROUNDS / 2] < 0.02 && off[ROUNDS * 95 / 100] < 0.15);
}

/* Filling the pipeline is a large part of them: with 32 images at once half of the epoch. */
static void prediction__two_micro_batches__is_what_the_simulator_finds(void)
{
    static const double wide[] = {1e6, 2e5, 2e3};
    struct hapi_profile *p = made(3, wide, 0.05, 1e8);

    p->images = 64;
    p->train_batch = 32;
    for (int32_t cut = HAPI_SPLIT_NONE; cut < 3; cut++)
        for (uint32_t b = 1; b <= 32; b *= 2) {
            struct hapi_split_part part = {cut, cut < 0 ? HAPI_WIRE_RAW : HAPI_WIRE_F32, b,
                                           HAPI_PLAN_ANY_NODE, 1};
            struct hapi_split_plan plan = {&part, 1};
            struct hapi_sim_result *r;
            REQUIRE(!hapi_sim_profile_run(&r, p, &plan, 1, &err));
            double off = hapi_predict(p, &plan).epoch_s / r->clients[0].end_s - 1;
            CHECKF(fabs(off) < 0.03, "cut %d, %u at once: off by %.1f %%", cut, b, 100 * off);
            hapi_sim_result_free(r);
        }
    hapi_profile_free(p);
}

/* A GPU's plan gives the wire's dtype: with and without one, as the simulator counts it. */
static void prediction__of_a_node_with_a_device__has_no_conversion_there(void)
{
    struct hapi_profile *p = made(2, (const double[]){1e5, 1e4}, 1e-4, 1e9);
    struct hapi_split_part part = {
        .cut = 1, .wire = HAPI_WIRE_F16, .micro_batch = 8, .node = HAPI_PLAN_ANY_NODE, .share = 1};
    struct hapi_split_plan plan = {&part, 1};
    double core_s[2] = {2e-3 + 1e-4 + 3e-3, 2e-3}; /* decode; network and conversion, too, without a device */

    p->storage_prepare_s.s = 2e-3;
    p->convert_s[HAPI_WIRE_F16].s = 3e-3;
    p->compute.cores = 8; /* which convert at leisure */
    for (uint32_t devices = 0; devices < 2; devices++) {
        struct hapi_sim_result *r;
        p->storage.devices = devices;
        struct hapi_prediction x = hapi_predict(p, &plan);
        double load = x.load_s[HAPI_LOAD_STORAGE], want = 4096 * core_s[devices];
        CHECKF(fabs(load / want - 1) < 0.01, "%u devices: %g s of the node's core, not %g", devices, load,
               want);
        REQUIRE(!hapi_sim_profile_run(&r, p, &plan, 1, &err));
        double off = x.epoch_s / r->clients[0].end_s - 1;
        CHECKF(fabs(off) < 0.06, "%u devices: predicted %g s, simulated %g s", devices, x.epoch_s,
               r->clients[0].end_s);
        hapi_sim_result_free(r);
    }
    hapi_profile_free(p);
}

/* ------------------------------------------------------------------ simulated before it is taken */

static double simulated(const struct hapi_profile *p, const struct hapi_choice *c)
{
    struct hapi_split_plan plan = hapi_choice_plan(c);
    struct hapi_sim_result *r;

    REQUIRE(!hapi_sim_profile_run(&r, p, &plan, 3, &err));
    double s = r->clients[0].end_s;
    hapi_sim_result_free(r);
    return s;
}

static struct hapi_choice tried(const struct hapi_profile *p)
{
    struct hapi_choose_options o = {.policy = HAPI_POLICY_PIPELINE};
    struct hapi_choice c = {.n_parts = 0};

    CHECKF(!hapi_choose_tried(&c, p, &o, candidates, &n_candidates, &err), "%s", err.text);
    return c;
}

static void tried__no_devices__is_what_was_predicted(void)
{
    uint64_t state = 13;

    for (int round = 0; round < 20; round++) {
        struct hapi_profile *p = random_profile(&state, 6);
        struct hapi_choice a = pipeline(p, false), b = tried(p);
        CHECK(a.n_parts == b.n_parts && !memcmp(a.parts, b.parts, a.n_parts * sizeof *a.parts));
        hapi_profile_free(p);
    }
}

/* Where threads meet at devices: better than the prediction's choice at times, and never a bad one. */
static void tried__devices__is_no_worse_than_what_was_predicted(void)
{
    enum { ROUNDS = CHECK_SANITIZED ? 4 : 24 };
    uint64_t state = 17;
    double most = 0;

    for (int round = 0; round < ROUNDS; round++) {
        struct hapi_profile *p = random_profile(&state, 12);
        p->storage.cores = p->compute.cores = 16;
        p->storage.devices = 1;
        p->compute.devices = round % 2;
        p->bandwidth_Bps *= 10;
        struct hapi_choice formula = pipeline(p, false), c = tried(p), none;
        none = choose(p, (struct hapi_choose_options){.policy = HAPI_POLICY_NONE});
        double s = simulated(p, &c), was = simulated(p, &formula);
        CHECKF(s <= 1.02 * was && s <= 1.02 * simulated(p, &none), "round %d: %g s, predicted %g, none %g",
               round, s, was, simulated(p, &none));
        struct hapi_split_plan plan = hapi_choice_plan(&c);
        CHECK(c.predicted.epoch_s == hapi_predict(p, &plan).epoch_s);
        most = fmax(most, was / s - 1);
        hapi_profile_free(p);
    }
    printf("simulated first: up to %.1f %% better\n", 100 * most);
    CHECK(CHECK_SANITIZED || most > 0.03);
}

static void pipeline__a_thousand_cuts__is_chosen_at_once(void)
{
    uint64_t state = 5;
    struct hapi_profile *p = random_profile(&state, 1000);
    double best = INFINITY;

    for (int i = 0; i < 5; i++) {
        struct timespec a, b;
        clock_gettime(CLOCK_THREAD_CPUTIME_ID, &a);
        (void)pipeline(p, false);
        clock_gettime(CLOCK_THREAD_CPUTIME_ID, &b);
        best = fmin(best, (double)(b.tv_sec - a.tv_sec) + 1e-9 * (double)(b.tv_nsec - a.tv_nsec));
    }
    printf("1,000 cuts: %.2f ms\n", 1e3 * best);
    CHECK(best < 0.05 * CHECK_SLOWDOWN * (CHECK_SANITIZED ? 4 : 1));
    hapi_profile_free(p);
}

int main(void)
{
    CASE(pipeline__fast_link__balances_the_tiers);
    CASE(pipeline__slow_link__sends_least);
    CASE(pipeline__weak_nodes__leaves_them_alone);
    CASE(pipeline__tie__works_the_nodes_least);
    CASE(pipeline__two_tiers_alike__share_the_images);
    CASE(pipeline__memory__bounds_cut_and_micro_batch);
    CASE(pipeline__caches__count_for_all_epochs);
    CASE(hapi__random_profiles__is_the_published_minimum);
    CASE(hapi__client_memory__passes_over_then_freezes);
    CASE(hapi_v1__first_narrow_cut_with_less_memory__or_freeze);
    CASE(pipeline__random_profiles__no_whole_plan_is_better);
    CASE(prediction__random_plans__is_what_the_simulator_finds);
    CASE(prediction__two_micro_batches__is_what_the_simulator_finds);
    CASE(prediction__of_a_node_with_a_device__has_no_conversion_there);
    CASE(tried__no_devices__is_what_was_predicted);
    CASE(tried__devices__is_no_worse_than_what_was_predicted);
    CASE(pipeline__a_thousand_cuts__is_chosen_at_once);
    return check_done();
}
