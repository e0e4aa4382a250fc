/* A profile in which nothing takes time, and a plan of one part: a test says what does. */
#ifndef HAPI_TESTS_PLANNER_MADE_H
#define HAPI_TESTS_PLANNER_MADE_H

#include "check.h"
#include "sim.h"

#define FAST 1e18 /* bytes a second: no time */

/* Two cuts, 3 and the freeze layer 9; an image is 1e6 bytes raw, 1e5 as f32 at cut 3 and 1e4 at cut 9. */
static inline struct hapi_profile *made_profile(uint64_t images, uint32_t train_batch)
{
    struct hapi_profile *p;

    REQUIRE(!hapi_profile_new(&p, 2, 0, NULL));
    p->model = "made";
    p->images = images;
    p->train_batch = train_batch;
    p->epochs = p->nodes = 1;
    p->freeze = 9;
    p->source_bytes = 1e6;
    p->bandwidth_Bps = FAST;
    p->storage_memory = p->compute_memory = 1e9;
    p->cuts[0].index = 3;
    p->cuts[0].name = "three";
    p->cuts[1].index = 9;
    p->cuts[1].name = "nine";
    for (int w = 0; w < HAPI_WIRES_N; w++) {
        p->cuts[0].wire_bytes[w] = w ? 5e4 : 1e5;
        p->cuts[1].wire_bytes[w] = w ? 5e3 : 1e4;
    }
    return p;
}

static inline struct hapi_split_part made_part(int32_t cut, uint32_t micro_batch)
{
    return (struct hapi_split_part){
        .cut = cut,
        .wire = cut < 0 ? HAPI_WIRE_RAW : HAPI_WIRE_F32,
        .micro_batch = micro_batch,
        .node = HAPI_PLAN_ANY_NODE,
        .share = 1,
    };
}

static inline struct hapi_sim_result *made_run(const struct hapi_sim_scenario *o)
{
    struct hapi_sim_result *r = NULL;
    struct hapi_err err = {0};
    int rc = hapi_sim_run(&r, o, &err);

    CHECKF(!rc, "%s", err.text);
    REQUIRE(r);
    return r;
}

/* A client alone with the profile's nodes, to be changed before made_run(). */
struct made {
    struct hapi_sim_node nodes[8];
    uint32_t numbers[8];
    struct hapi_split_part parts[8];
    struct hapi_sim_client client;
    struct hapi_sim_scenario scenario;
};

static inline struct made *made_one(struct made *m, const struct hapi_profile *p, int32_t cut,
                                    uint32_t micro_batch)
{
    *m = (struct made){.client = hapi_sim_profile_client(p)};
    REQUIRE(p->nodes <= 8);
    for (uint32_t i = 0; i < p->nodes; i++) {
        m->nodes[i] = hapi_sim_profile_node(p, i);
        m->numbers[i] = i;
    }
    m->parts[0] = made_part(cut, micro_batch);
    m->client.plan = (struct hapi_split_plan){m->parts, 1};
    m->client.nodes = m->numbers;
    m->client.n_nodes = p->nodes;
    m->scenario = (struct hapi_sim_scenario){
        .nodes = m->nodes, .clients = &m->client, .n_nodes = p->nodes, .n_clients = 1, .seed = 1};
    return m;
}

/* Seconds of its only epoch. */
static inline double made_seconds(const struct made *m)
{
    struct hapi_sim_result *r = made_run(&m->scenario);
    double s = r->clients[0].epochs[0].seconds;

    hapi_sim_result_free(r);
    return s;
}

#define CHECK_NEAR(value, want)                                                                              \
    do {                                                                                                     \
        double is = (value), should = (want);                                                                \
        CHECKF(is >= should * (1 - 1e-9) && is <= should * (1 + 1e-9), "it is %.12g, not %.12g", is,         \
               should);                                                                                      \
    } while (0)

#endif
