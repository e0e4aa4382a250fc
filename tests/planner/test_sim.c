/* The simulation against times that are calculated by hand. */
#include "made.h"

static double seconds(const struct hapi_profile *p, int32_t cut, uint32_t micro_batch)
{
    struct made m;

    return made_seconds(made_one(&m, p, cut, micro_batch));
}

/* ------------------------------------------------------------------ one resource */

static void disk__alone__its_work(void)
{
    struct hapi_profile *p = made_profile(64, 16);

    p->read_s.s = 0.01;
    CHECK_NEAR(seconds(p, 9, 4), 0.64);
    CHECK_NEAR(seconds(p, HAPI_SPLIT_NONE, 5), 0.64);
    hapi_profile_free(p);
}

static void storage_cores__alone__their_work(void)
{
    struct hapi_profile *p = made_profile(64, 16);

    p->cuts[1].storage_s.s = 0.02;
    CHECK_NEAR(seconds(p, 9, 4), 1.28);
    p->storage_prepare_s.s = 0.01; /* decode shares the cores */
    CHECK_NEAR(seconds(p, 9, 4), 1.92);
    p->storage.cores = 2;
    CHECK_NEAR(seconds(p, 9, 4), 0.96);
    p->storage.contention = 0.5; /* two busy cores at 2/3 each */
    CHECK_NEAR(seconds(p, 9, 4), 1.44);
    CHECK_NEAR(seconds(p, 3, 4), 0.48); /* decode alone */
    hapi_profile_free(p);
}

static void storage_node__of_another_speed__slower_in_compute_not_in_reading(void)
{
    struct hapi_profile *p = made_profile(64, 16);
    struct made m;

    p->cuts[1].storage_s.s = 0.02;
    made_one(&m, p, 9, 4)->nodes[0].speed = 0.5;
    CHECK_NEAR(made_seconds(&m), 2.56);
    p->cuts[1].storage_s.s = 0;
    p->read_s.s = 0.02;
    CHECK_NEAR(made_seconds(&m), 1.28);
    hapi_profile_free(p);
}

static void storage_times__by_micro_batch__those_of_the_plans(void)
{
    static const struct hapi_curve_point points[] = {{1, 0.04}, {8, 0.01}, {16, 0.02}};
    struct hapi_profile *p = made_profile(64, 16);

    REQUIRE(!hapi_profile_curve(p, &p->cuts[1].storage_s, points, 3));
    CHECK_NEAR(seconds(p, 9, 1), 64 * 0.04);
    CHECK_NEAR(seconds(p, 9, 8), 64 * 0.01);
    CHECK_NEAR(seconds(p, 9, 16), 64 * 0.02);
    hapi_profile_free(p);
}

static void link__alone__its_bytes(void)
{
    struct hapi_profile *p = made_profile(64, 16);

    p->bandwidth_Bps = 1e8;
    CHECK_NEAR(seconds(p, HAPI_SPLIT_NONE, 4), 0.64);
    CHECK_NEAR(seconds(p, 3, 4), 0.064);
    CHECK_NEAR(seconds(p, 9, 4), 0.0064);
    hapi_profile_free(p);
}

static void wire__narrower__fewer_bytes_and_conversion_on_both_tiers(void)
{
    struct hapi_profile *p = made_profile(64, 64);
    struct made m;

    p->bandwidth_Bps = 1e7;
    made_one(&m, p, 3, 64)->parts[0].wire = HAPI_WIRE_F16;
    m.client.request_images = 64;
    CHECK_NEAR(made_seconds(&m), 64 * 5e4 / 1e7);
    p->convert_s[HAPI_WIRE_F16].s = 0.001;
    CHECK_NEAR(made_seconds(&m), 64 * 0.001 + 64 * 5e4 / 1e7 + 64 * 0.001); /* one micro-batch: one by one */
    p->cuts[0].convert_s[HAPI_WIRE_F16].s = 0.002;
    p->serialise_s.s = 0.001;
    CHECK_NEAR(made_seconds(&m), 64 * 0.003 + 64 * 5e4 / 1e7 + 64 * 0.003);
    hapi_profile_free(p);
}

static void compute_cores__alone__their_work(void)
{
    struct hapi_profile *p = made_profile(64, 16);

    p->cuts[0].compute_s.s = 0.01;
    CHECK_NEAR(seconds(p, 3, 8), 0.64);
    p->source_prepare_s.s = 0.03;
    p->source_compute_s.s = 0.02;
    CHECK_NEAR(seconds(p, HAPI_SPLIT_NONE, 8), 3.2);
    CHECK_NEAR(seconds(p, 3, 8), 0.64); /* what comes computed is not decoded */
    p->compute.cores = 2;
    CHECK_NEAR(seconds(p, HAPI_SPLIT_NONE, 8), 1.6);
    hapi_profile_free(p);
}

static void training__alone__its_work(void)
{
    struct hapi_profile *p = made_profile(64, 16);

    p->train_s.s = 0.01;
    CHECK_NEAR(seconds(p, 9, 8), 0.64);
    p->cuts[0].compute_s.s = 0.01;
    CHECK_NEAR(seconds(p, 3, 8), 0.16 + 0.64); /* the first batch must be there */
    p->compute.train_shares = true;
    CHECK_NEAR(seconds(p, 3, 8), 1.28); /* one core does both */
    hapi_profile_free(p);
}

/* ------------------------------------------------------------------ several */

static void stages__overlapped__slowest_and_fill(void)
{
    struct hapi_profile *p = made_profile(64, 16);

    p->read_s.s = 0.01;
    p->cuts[1].storage_s.s = 0.03;
    CHECK_NEAR(seconds(p, 9, 4), 4 * 0.01 + 64 * 0.03);
    p->read_s.s = 0.03;
    p->cuts[1].storage_s.s = 0.01;
    CHECK_NEAR(seconds(p, 9, 4), 64 * 0.03 + 4 * 0.01);
    p->bandwidth_Bps = 1e6; /* an image takes 0.01 s */
    p->train_s.s = 0.005;
    /* The last micro-batch is read, computed and sent, then its batch is trained. */
    CHECK_NEAR(seconds(p, 9, 4), 64 * 0.03 + 4 * 0.01 + 4 * 0.01 + 16 * 0.005);
    p->train_s.s = 0.1; /* the first batch is there after 16 reads */
    CHECK_NEAR(seconds(p, 9, 4), 16 * 0.03 + 4 * 0.01 + 4 * 0.01 + 64 * 0.1);
    hapi_profile_free(p);
}

static void device__and_core_of_one_thread__one_after_the_other(void)
{
    struct hapi_profile *p = made_profile(64, 16);

    p->storage_prepare_s.s = 0.01;
    p->cuts[1].storage_s.s = 0.02;
    p->storage.devices = 1;
    CHECK_NEAR(seconds(p, 9, 4), 16 * (0.04 + 0.08));
    p->storage.cores = 2; /* both decode, then share the device */
    CHECK_NEAR(seconds(p, 9, 4), 8 * (0.04 + 0.16));
    p->storage.devices = 2;
    CHECK_NEAR(seconds(p, 9, 4), 8 * (0.04 + 0.08));
    hapi_profile_free(p);
}

/* A GPU's plan gives the wire's dtype; a client's cores make it f32 again, whatever computes the rest. */
static void wire__of_a_node_with_devices__is_not_converted_on_its_cores(void)
{
    struct hapi_profile *p = made_profile(64, 64);
    struct made m;

    p->bandwidth_Bps = 1e7;
    p->convert_s[HAPI_WIRE_F16].s = 0.002;
    p->serialise_s.s = 0.001;
    p->storage.devices = 1;
    p->compute.devices = 1;
    p->cuts[0].storage_s.s = 0.01;
    made_one(&m, p, 3, 64)->parts[0].wire = HAPI_WIRE_F16;
    m.client.request_images = 64;
    CHECK_NEAR(made_seconds(&m), 64 * (0.01 + 0.001) + 64 * 5e4 / 1e7 + 64 * 0.003);
    hapi_profile_free(p);
}

static void training__on_the_device_that_computes__their_sum(void)
{
    struct hapi_profile *p = made_profile(64, 16);

    p->compute.devices = 1;
    p->compute.train_shares = true;
    p->train_s.s = 0.01;
    p->cuts[0].compute_s.s = 0.02;
    CHECK_NEAR(seconds(p, 3, 8), 64 * 0.03);
    hapi_profile_free(p);
}

/* ------------------------------------------------------------------ what is in flight */

static void latency__one_slot__paid_by_each_request(void)
{
    struct hapi_profile *p = made_profile(64, 16);
    struct made m;

    p->latency_s = 0.1;
    p->read_s.s = 0.01;
    made_one(&m, p, 9, 8);
    m.client.slots = 1;
    m.client.request_images = 8;
    CHECK_NEAR(made_seconds(&m), 8 * (0.1 + 0.08));
    m.client.slots =
        2; /* the next is on its way while one is read: 0.08 s of reading in 0.18 s for each slot */
    CHECK_NEAR(made_seconds(&m), 0.1 + 0.08 + 3 * 0.18 + 0.08);
    m.client.slots = 8;
    CHECK_NEAR(made_seconds(&m), 0.1 + 0.64);
    hapi_profile_free(p);
}

/* Of two micro-batches a session may have one: nothing overlaps. */
static void credits__one__stages_one_after_the_other(void)
{
    struct hapi_profile *p = made_profile(64, 16);
    struct made m;

    p->read_s.s = 0.01;
    p->cuts[1].storage_s.s = 0.02;
    p->bandwidth_Bps = 2e6; /* 0.005 s */
    made_one(&m, p, 9, 4)->nodes[0].batches = 2;
    CHECK_NEAR(made_seconds(&m), 64 * 0.035);
    m.nodes[0].batches = 3;
    CHECK_NEAR(made_seconds(&m), 4 * 0.01 + 64 * 0.02 + 4 * 0.005);
    hapi_profile_free(p);
}

/* A batch's memory is free again when it is trained: with two of them one is fetched while one is trained. */
static void depth__two__next_batch_arrives_while_one_trains(void)
{
    struct hapi_profile *p = made_profile(64, 16);
    struct made m;

    p->read_s.s = 0.01;
    p->train_s.s = 0.02;
    made_one(&m, p, 9, 16)->client.depth = 2;
    CHECK_NEAR(made_seconds(&m), 0.16 + 4 * 0.32);
    p->read_s.s = 0.02;
    p->train_s.s = 0.01;
    CHECK_NEAR(made_seconds(&m), 4 * 0.32 + 0.16);
    hapi_profile_free(p);
}

static void slots__held_by_the_suffix__nothing_new_is_asked(void)
{
    struct hapi_profile *p = made_profile(16, 16);
    struct made m;

    p->read_s.s = 0.01;
    p->cuts[0].compute_s.s = 0.02;
    made_one(&m, p, 3, 4);
    m.client.slots = 1;
    m.client.request_images = 4;
    CHECK_NEAR(made_seconds(&m), 16 * 0.03);
    hapi_profile_free(p);
}

/* ------------------------------------------------------------------ links */

static void client_link__shared_by_two_nodes__is_the_bound(void)
{
    struct hapi_profile *p = made_profile(64, 64);

    p->nodes = 2;
    p->bandwidth_Bps = 1e8;
    CHECK_NEAR(seconds(p, HAPI_SPLIT_NONE, 4), 0.32);
    p->client_bandwidth_Bps = 1.25e8;
    CHECK_NEAR(seconds(p, HAPI_SPLIT_NONE, 4), 64e6 / 1.25e8);
    hapi_profile_free(p);
}

static void node_links__unequal__what_one_leaves_the_other_takes(void)
{
    struct hapi_profile *p = made_profile(100, 100);
    struct made m;

    p->nodes = 2;
    p->client_bandwidth_Bps = 1e8;
    made_one(&m, p, HAPI_SPLIT_NONE, 10);
    m.nodes[0].bandwidth_Bps = 1e8;
    m.nodes[1].bandwidth_Bps = 2e7;
    m.parts[1] = m.parts[0];
    m.parts[0].node = 0;
    m.parts[0].share = 0.8;
    m.parts[1].node = 1;
    m.parts[1].share = 0.2;
    m.client.plan.n_parts = 2;
    CHECK_NEAR(made_seconds(&m), 1.0); /* 20 images at 2e7, 80 at 8e7 */
    hapi_profile_free(p);
}

/* Two clients, a node each, over one switch; then both on one node. */
static void clients__on_one_switch_or_node__share_it(void)
{
    struct hapi_profile *p = made_profile(64, 64);
    struct hapi_sim_client clients[2];
    struct hapi_sim_result *r;
    struct made m;

    p->nodes = 2;
    p->bandwidth_Bps = 1e8;
    made_one(&m, p, HAPI_SPLIT_NONE, 4);
    clients[0] = clients[1] = m.client;
    clients[0].n_nodes = clients[1].n_nodes = 1;
    clients[1].nodes = m.numbers + 1;
    m.scenario.clients = clients;
    m.scenario.n_clients = 2;
    m.scenario.switch_Bps = 1.5e8;
    r = made_run(&m.scenario);
    CHECK_NEAR(r->clients[0].epochs[0].seconds, 128e6 / 1.5e8);
    CHECK_NEAR(r->clients[1].epochs[0].seconds, 128e6 / 1.5e8);
    CHECK_NEAR(r->switch_use.busy, 1);
    CHECK(r->clients[0].epochs[0].bottleneck == HAPI_SIM_SWITCH);
    hapi_sim_result_free(r);
    clients[1].nodes = m.numbers;
    r = made_run(&m.scenario);
    CHECK_NEAR(r->clients[0].epochs[0].seconds, 1.28);
    CHECK_NEAR(r->clients[1].epochs[0].seconds, 1.28);
    CHECK(r->nodes[0].images == 128 && r->nodes[1].images == 0);
    CHECK(r->clients[0].epochs[0].bottleneck == HAPI_SIM_NODE_LINK);
    hapi_sim_result_free(r);
    hapi_profile_free(p);
}

/* With so many links changes are gathered: near the exact times, and never more than the links carry. */
static void links__more_than_are_computed_at_each_change__as_exact_within_a_part_in_200(void)
{
    enum { N = 200 };
    static struct hapi_sim_node nodes[N];
    static struct hapi_sim_client clients[N];
    static uint32_t numbers[2 * N];
    struct hapi_profile *p = made_profile(256, 64);
    struct hapi_split_part part = made_part(HAPI_SPLIT_NONE, 4);
    struct hapi_sim_scenario o = {.nodes = nodes, .clients = clients, .n_nodes = N, .n_clients = N};

    p->read_s.s = 1e-4; /* so that micro-batches do not all end at once */
    for (uint32_t i = 0; i < N; i++) {
        nodes[i] = hapi_sim_profile_node(p, 0);
        nodes[i].bandwidth_Bps = 1e8;
        numbers[i] = numbers[i + N] = i;
        clients[i] = hapi_sim_profile_client(p);
        clients[i].plan = (struct hapi_split_plan){&part, 1};
        clients[i].bandwidth_Bps = 5e7;
        clients[i].nodes = numbers + i; /* each node has two clients */
        clients[i].n_nodes = 2;
    }
    for (int with_switch = 0; with_switch < 2; with_switch++) {
        o.switch_Bps = with_switch ? 2e9 : 0; /* 1e7 for each client */
        double want = 256e6 / (with_switch ? 1e7 : 5e7);
        struct hapi_sim_result *r = made_run(&o);
        for (uint32_t i = 0; i < N; i++) {
            double s = r->clients[i].epochs[0].seconds;
            CHECKF(s > want * 0.99 && s < want * 1.01, "%g s, not %g", s, want);
        }
        CHECKF(r->end_s >= want * (1 - 1e-9), "%g s, not %g", r->end_s, want);
        hapi_sim_result_free(r);
    }
    hapi_profile_free(p);
}

/* ------------------------------------------------------------------ plans of several parts */

static void shares__of_both_tiers__each_does_its_own(void)
{
    struct hapi_profile *p = made_profile(100, 100);
    struct hapi_sim_result *r;
    struct made m;

    p->cuts[1].storage_s.s = 0.03;
    p->source_compute_s.s = 0.02;
    made_one(&m, p, 9, 4);
    m.parts[1] = made_part(HAPI_SPLIT_NONE, 4);
    m.parts[0].share = 0.4;
    m.parts[1].share = 0.6;
    m.client.plan.n_parts = 2;
    r = made_run(&m.scenario);
    CHECK_NEAR(r->clients[0].epochs[0].seconds, 1.2); /* 40 at 0.03 s there, 60 at 0.02 s here */
    CHECK(r->clients[0].epochs[0].pushed == 40 && r->clients[0].epochs[0].raw == 60);
    CHECK_NEAR(r->clients[0].epochs[0].wire_bytes, 40 * 1e4 + 60 * 1e6);
    CHECK_NEAR(r->clients[0].epochs[0].use[HAPI_SIM_STORAGE].busy, 1);
    CHECK_NEAR(r->clients[0].epochs[0].use[HAPI_SIM_COMPUTE].busy, 1);
    hapi_sim_result_free(r);
    hapi_profile_free(p);
}

static void shares__that_are_no_whole_images__come_to_all_of_them(void)
{
    struct hapi_profile *p = made_profile(101, 7);
    struct hapi_sim_result *r;
    struct made m;

    made_one(&m, p, 9, 4);
    m.parts[1] = m.parts[2] = made_part(HAPI_SPLIT_NONE, 4);
    m.parts[0].share = m.parts[1].share = m.parts[2].share = 1.0 / 3;
    m.client.plan.n_parts = 3;
    r = made_run(&m.scenario);
    const struct hapi_sim_epoch *e = &r->clients[0].epochs[0];
    CHECK(e->trained == 101 && e->raw + e->pushed == 101 && (e->pushed == 33 || e->pushed == 34));
    hapi_sim_result_free(r);
    hapi_profile_free(p);
}

/* ------------------------------------------------------------------ caches */

static void client_cache__half__half_is_fetched(void)
{
    struct hapi_profile *p = made_profile(64, 16);
    struct hapi_sim_result *r;
    struct made m;

    p->epochs = 3;
    p->bandwidth_Bps = 1e6; /* a feature takes 0.01 s */
    p->compute_cache = 32 * 1e4 + 5e3;
    r = made_run(&made_one(&m, p, 9, 4)->scenario);
    const struct hapi_sim_epoch *e = r->clients[0].epochs;
    CHECK_NEAR(e[0].seconds, 0.64);
    CHECK_NEAR(e[1].seconds, 0.32);
    CHECK_NEAR(e[2].seconds, 0.32);
    CHECK_NEAR(e[1].start_s, 0.64);
    CHECK(e[0].from_client_cache == 0 && e[1].from_client_cache == 32 && e[1].pushed == 32);
    CHECK(e[1].trained == 64 && r->clients[0].n_epochs == 3);
    hapi_sim_result_free(r);
    p->compute_cache = 1e9;
    p->train_s.s = 0.001;
    r = made_run(&made_one(&m, p, 9, 4)->scenario);
    CHECK_NEAR(r->clients[0].epochs[1].seconds, 0.064); /* training alone */
    CHECK(r->clients[0].epochs[1].requests == 0 && r->clients[0].epochs[1].trained == 64);
    hapi_sim_result_free(r);
    hapi_profile_free(p);
}

static void node_cache__of_what_the_client_does_not_keep__neither_read_nor_computed(void)
{
    struct hapi_profile *p = made_profile(64, 16);
    struct hapi_sim_result *r;
    struct made m;

    p->epochs = 2;
    p->read_s.s = 0.01;
    p->storage_cache = 16 * 1e5;
    r = made_run(&made_one(&m, p, 3, 4)->scenario);
    CHECK_NEAR(r->clients[0].epochs[0].seconds, 0.64);
    CHECK_NEAR(r->clients[0].epochs[1].seconds, 0.48);
    CHECK(r->clients[0].epochs[1].from_node_cache == 16 && r->clients[0].epochs[1].pushed == 64);
    hapi_sim_result_free(r);
    p->compute_cache = 16 * 1e4;
    p->nodes = 2; /* 48 are left, 16 on each node */
    r = made_run(&made_one(&m, p, 3, 4)->scenario);
    CHECK(r->clients[0].epochs[1].from_client_cache == 16);
    CHECK(r->clients[0].epochs[1].from_node_cache == 32 && r->clients[0].epochs[1].pushed == 48);
    hapi_sim_result_free(r);
    r = made_run(&made_one(&m, p, HAPI_SPLIT_NONE, 4)->scenario); /* objects are no activations */
    CHECK(r->clients[0].epochs[1].from_node_cache == 0 && r->clients[0].epochs[1].raw == 48);
    hapi_sim_result_free(r);
    hapi_profile_free(p);
}

/* ------------------------------------------------------------------ accounts */

static void accounts__of_a_slow_disk__who_is_busy_starved_blocked(void)
{
    struct hapi_profile *p = made_profile(64, 16);
    struct hapi_sim_result *r;
    struct made m;

    p->read_s.s = 0.01;
    p->cuts[1].storage_s.s = 0.005;
    r = made_run(&made_one(&m, p, 9, 4)->scenario);
    const struct hapi_sim_epoch *e = &r->clients[0].epochs[0];
    CHECK_NEAR(e->seconds, 0.66);
    CHECK(e->bottleneck == HAPI_SIM_DISK);
    CHECK_NEAR(e->use[HAPI_SIM_DISK].busy, 0.64 / 0.66);
    CHECK_NEAR(e->use[HAPI_SIM_STORAGE].busy, 0.32 / 0.66);
    CHECK_NEAR(e->use[HAPI_SIM_STORAGE].starved, 0.34 / 0.66);
    CHECK(e->use[HAPI_SIM_STORAGE_DEVICE].busy == 0 && e->use[HAPI_SIM_STORAGE_DEVICE].starved == 0);
    CHECK_NEAR(e->use[HAPI_SIM_TRAIN].starved, 1);
    hapi_sim_result_free(r);
    hapi_profile_free(p);
}

/* The link holds all micro-batches of the node: the disk could read and may not. */
static void accounts__of_a_slow_link__disk_is_blocked(void)
{
    struct hapi_profile *p = made_profile(640, 640);
    struct hapi_sim_result *r;
    struct made m;

    p->read_s.s = 0.001;
    p->bandwidth_Bps = 1e6; /* 0.01 s */
    made_one(&m, p, 9, 4);
    r = made_run(&m.scenario);
    const struct hapi_sim_epoch *e = &r->clients[0].epochs[0];
    CHECK(e->bottleneck == HAPI_SIM_NODE_LINK && e->use[HAPI_SIM_NODE_LINK].busy > 0.99);
    CHECK_NEAR(e->use[HAPI_SIM_DISK].busy, 0.64 / e->seconds);
    CHECK(e->use[HAPI_SIM_DISK].blocked > 0.8);
    hapi_sim_result_free(r);
    /* Training holds all batches: the compute tier is blocked, the node has nothing to do. */
    m.nodes[0].bandwidth_Bps = FAST;
    p->train_batch = 16;
    p->train_s.s = 0.1;
    p->cuts[1].compute_s.s = 0.001;
    r = made_run(&m.scenario);
    e = &r->clients[0].epochs[0];
    CHECK(e->bottleneck == HAPI_SIM_TRAIN && e->use[HAPI_SIM_COMPUTE].blocked > 0.8);
    CHECK(e->use[HAPI_SIM_DISK].starved > 0.8);
    hapi_sim_result_free(r);
    hapi_profile_free(p);
}

/* ------------------------------------------------------------------ what is refused */

static void refused(const struct made *m, const char *says)
{
    struct hapi_sim_result *r = NULL;
    struct hapi_err err = {0};

    CHECKF(hapi_sim_run(&r, &m->scenario, &err) == HAPI_EINVAL && !r && strstr(err.text, says), "%s: %s",
           says, err.text);
}

static void scenarios__that_cannot_be__named(void)
{
    struct hapi_profile *p = made_profile(64, 16);
    struct made m;

#define REFUSED(change, says)                                                                                \
    do {                                                                                                     \
        made_one(&m, p, 9, 4);                                                                               \
        change;                                                                                              \
        refused(&m, says);                                                                                   \
    } while (0)
    REFUSED(m.nodes[0].bandwidth_Bps = 0, "nodes[0].bandwidth_Bps");
    REFUSED(m.nodes[0].cores = 0, "nodes[0].cores");
    REFUSED(m.nodes[0].contention = 2, "nodes[0].contention");
    REFUSED(m.nodes[0].speed = 0, "nodes[0].speed");
    REFUSED(m.nodes[0].batches = 1, "nodes[0].batches");
    REFUSED(m.client.slots = 0, "clients[0].slots");
    REFUSED(m.client.depth = 1, "clients[0].slots must be 1 to 65536, depth");
    REFUSED(m.client.chunk = 0, "clients[0].epochs, chunk_images");
    REFUSED(m.client.epochs = 0, "clients[0].epochs");
    REFUSED(m.client.n_nodes = 0, "clients[0].nodes");
    REFUSED(m.numbers[0] = 1, "clients[0].nodes");
    REFUSED(m.client.bandwidth_Bps = -1, "clients[0].bandwidth_Bps");
    REFUSED(m.client.start_s = -1, "clients[0].start_s");
    REFUSED(m.scenario.switch_Bps = 0.5, "switch_Bps");
    REFUSED(m.scenario.n_clients = 0, "clients");
    REFUSED(m.parts[0].cut = 4, "clients[0].plan[0].cut");
    REFUSED(m.parts[0].wire = HAPI_WIRE_RAW, "clients[0].plan[0].wire");
    REFUSED(m.parts[0].cut = HAPI_SPLIT_NONE, "clients[0].plan[0].wire");
    REFUSED(m.parts[0].micro_batch = 0, "clients[0].plan[0].micro_batch");
    REFUSED(m.parts[0].node = 1, "clients[0].plan[0].node");
    REFUSED(m.parts[0].share = 0, "clients[0].plan[0].share");
    REFUSED(m.parts[0].share = 0.5, "clients[0].plan: the shares");
    REFUSED(m.client.plan.n_parts = 0, "clients[0].plan: a plan has");
    p->cuts[1].wire_bytes[HAPI_WIRE_I8] = 0;
    REFUSED(m.parts[0].wire = HAPI_WIRE_I8, "clients[0].plan[0].wire");
#undef REFUSED
    hapi_profile_free(p);
}

static void profile__alone_with_its_nodes__as_in_a_scenario(void)
{
    struct hapi_profile *p = made_profile(64, 16);
    struct hapi_split_part part = made_part(9, 4);
    struct hapi_split_plan plan = {&part, 1};
    struct hapi_sim_result *r;
    struct hapi_err err = {0};

    p->nodes = 2;
    p->read_s.s = 0.01;
    REQUIRE(!hapi_sim_profile_run(&r, p, &plan, 1, &err));
    CHECK_NEAR(r->clients[0].epochs[0].seconds, 0.32);
    CHECK(r->nodes[0].images == 32 && r->nodes[1].images == 32);
    hapi_sim_result_free(r);
    part.cut = 5;
    CHECK(hapi_sim_profile_run(&r, p, &plan, 1, &err) == HAPI_EINVAL);
    hapi_profile_free(p);
}

int main(void)
{
    CASE(disk__alone__its_work);
    CASE(storage_cores__alone__their_work);
    CASE(storage_node__of_another_speed__slower_in_compute_not_in_reading);
    CASE(storage_times__by_micro_batch__those_of_the_plans);
    CASE(link__alone__its_bytes);
    CASE(wire__narrower__fewer_bytes_and_conversion_on_both_tiers);
    CASE(compute_cores__alone__their_work);
    CASE(training__alone__its_work);
    CASE(stages__overlapped__slowest_and_fill);
    CASE(device__and_core_of_one_thread__one_after_the_other);
    CASE(wire__of_a_node_with_devices__is_not_converted_on_its_cores);
    CASE(training__on_the_device_that_computes__their_sum);
    CASE(latency__one_slot__paid_by_each_request);
    CASE(credits__one__stages_one_after_the_other);
    CASE(depth__two__next_batch_arrives_while_one_trains);
    CASE(slots__held_by_the_suffix__nothing_new_is_asked);
    CASE(client_link__shared_by_two_nodes__is_the_bound);
    CASE(node_links__unequal__what_one_leaves_the_other_takes);
    CASE(clients__on_one_switch_or_node__share_it);
    CASE(links__more_than_are_computed_at_each_change__as_exact_within_a_part_in_200);
    CASE(shares__of_both_tiers__each_does_its_own);
    CASE(shares__that_are_no_whole_images__come_to_all_of_them);
    CASE(client_cache__half__half_is_fetched);
    CASE(node_cache__of_what_the_client_does_not_keep__neither_read_nor_computed);
    CASE(accounts__of_a_slow_disk__who_is_busy_starved_blocked);
    CASE(accounts__of_a_slow_link__disk_is_blocked);
    CASE(scenarios__that_cannot_be__named);
    CASE(profile__alone_with_its_nodes__as_in_a_scenario);
    return check_done();
}
