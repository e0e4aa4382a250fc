/* What holds of any scenario: nothing is lost or made, nothing is faster than its resources, and the same is
 * the same. */
#include <math.h>

#include "made.h"

static uint64_t state;

static uint32_t below(uint32_t n)
{
    state = state * 6364136223846793005ULL + 1442695040888963407ULL;
    return (uint32_t)((state >> 33) % n);
}

/* 0 in one case of four, else between least and 100 times that. */
static double seconds(double least)
{
    return below(4) ? least * pow(100, below(1000) / 1000.0) : 0;
}

enum { CLIENTS = 5, NODES = 4, PARTS = 4 };

struct world {
    struct hapi_profile *profiles[CLIENTS];
    struct hapi_sim_node nodes[NODES];
    struct hapi_sim_client clients[CLIENTS];
    struct hapi_split_part parts[CLIENTS][PARTS];
    uint32_t numbers[CLIENTS][NODES];
    struct hapi_sim_scenario scenario;
};

static void profile_make(struct world *w, uint32_t i)
{
    struct hapi_profile *p = made_profile(1 + below(700), 1 + below(120));

    p->epochs = 1 + below(3);
    p->read_s.s = seconds(1e-4);
    p->storage_prepare_s.s = seconds(1e-4);
    p->source_prepare_s.s = seconds(1e-4);
    p->source_compute_s.s = seconds(1e-4);
    p->train_s.s = seconds(1e-5);
    p->latency_s = seconds(1e-3);
    p->cuts[0].storage_s.s = seconds(1e-4);
    p->cuts[1].storage_s.s = p->cuts[0].storage_s.s + seconds(1e-4);
    p->cuts[0].compute_s.s = seconds(1e-4);
    p->convert_s[HAPI_WIRE_F16].s = seconds(1e-5);
    p->serialise_s.s = seconds(1e-5);
    p->compute.cores = 1 + below(4);
    p->compute.devices = below(3);
    p->compute.contention = below(3) * 0.2;
    p->compute.train_shares = below(2);
    p->storage_cache = below(2) ? below(100) * 2e5 : 0;
    p->compute_cache = below(2) ? below(700) * 1e4 : 0;
    w->profiles[i] = p;
}

static void client_make(struct world *w, uint32_t i)
{
    struct hapi_sim_client *c = &w->clients[i];
    uint32_t n_parts = 1 + below(PARTS);
    double left = 1;

    *c = hapi_sim_profile_client(w->profiles[i]);
    c->n_nodes = 1 + below(w->scenario.n_nodes);
    for (uint32_t k = 0, first = below(NODES); k < c->n_nodes; k++)
        w->numbers[i][k] = (first + k) % w->scenario.n_nodes;
    for (uint32_t k = 0; k < n_parts; k++) {
        struct hapi_split_part *part = &w->parts[i][k];
        *part = made_part((int32_t[]){HAPI_SPLIT_NONE, 3, 9}[below(3)], 1 + below(40));
        part->wire = part->cut < 0 ? HAPI_WIRE_RAW : (enum hapi_wire)below(2);
        part->node = below(2) ? HAPI_PLAN_ANY_NODE : (int32_t)below(c->n_nodes);
        part->share = k + 1 < n_parts ? left * (1 + below(9)) / 10 : left;
        left -= part->share;
    }
    c->plan = (struct hapi_split_plan){w->parts[i], n_parts};
    c->nodes = w->numbers[i];
    c->slots = 1 + below(8);
    c->depth = 2 + below(4);
    c->chunk = 1 + below(12);
    c->request_images = 1 + below(64);
    c->bandwidth_Bps = below(2) ? 1e7 * (1 + below(100)) : 0;
    c->start_s = below(2) ? seconds(1e-2) : 0;
}

static void world_make(struct world *w, uint64_t seed)
{
    *w = (struct world){0};
    state = seed * 7919 + 1;
    w->scenario = (struct hapi_sim_scenario){
        .nodes = w->nodes,
        .clients = w->clients,
        .n_nodes = 1 + below(NODES),
        .n_clients = 1 + below(CLIENTS),
        .switch_Bps = below(3) ? 0 : 1e7 * (1 + below(200)),
        .seed = seed,
    };
    for (uint32_t i = 0; i < w->scenario.n_nodes; i++)
        w->nodes[i] = (struct hapi_sim_node){
            .bandwidth_Bps = 1e7 * (1 + below(100)),
            .cores = 1 + below(4),
            .devices = below(3),
            .contention = below(3) * 0.3,
            .speed = below(2) ? 1 : 0.5 + below(10) * 0.2,
            .batches = 2 + below(20),
        };
    for (uint32_t i = 0; i < w->scenario.n_clients; i++) {
        profile_make(w, i);
        client_make(w, i);
    }
}

static void world_free(struct world *w)
{
    for (uint32_t i = 0; i < w->scenario.n_clients; i++)
        hapi_profile_free(w->profiles[i]);
}

/* ------------------------------------------------------------------ nothing is lost */

static bool whole(const struct hapi_sim_use *u)
{
    double all = u->busy + u->blocked + u->starved;

    return u->busy >= 0 && u->blocked >= 0 && u->starved >= 0 && (all == 0 || fabs(all - 1) < 1e-9);
}

static void epoch_check(const struct hapi_sim_epoch *e, const struct hapi_profile *p, double start)
{
    CHECK(e->trained == p->images);
    CHECK(e->raw + e->pushed + e->from_client_cache == e->trained && e->from_node_cache <= e->pushed);
    CHECK(e->seconds >= 0 && fabs(e->start_s - start) <= 1e-9 * (1 + start));
    for (int r = 0; r < HAPI_SIM_RESOURCES_N; r++)
        CHECKF(whole(&e->use[r]) && e->use[r].busy <= 1 && e->use[r].busy <= e->use[e->bottleneck].busy,
               "%s: %g %g %g", hapi_sim_resource_name((enum hapi_sim_resource)r), e->use[r].busy,
               e->use[r].blocked, e->use[r].starved);
}

static void images__of_any_scenario__each_trained_once_an_epoch(void)
{
    struct world w;

    for (uint64_t seed = 0; seed < 300; seed++) {
        world_make(&w, seed);
        struct hapi_sim_result *r = made_run(&w.scenario);
        uint64_t sent = 0, arrived = 0;
        for (uint32_t i = 0; i < w.scenario.n_clients; i++) {
            double at = w.clients[i].start_s;
            for (uint32_t e = 0; e < r->clients[i].n_epochs; e++) {
                const struct hapi_sim_epoch *one = &r->clients[i].epochs[e];
                epoch_check(one, w.profiles[i], at);
                at += one->seconds;
                arrived += one->raw + one->pushed;
            }
            CHECK(fabs(r->clients[i].end_s - at) <= 1e-9 * (1 + at) && r->clients[i].end_s <= r->end_s);
        }
        for (uint32_t i = 0; i < w.scenario.n_nodes; i++) {
            sent += r->nodes[i].images;
            for (int k = HAPI_SIM_NODE_LINK; k < HAPI_SIM_RESOURCES_N; k++)
                CHECK(whole(&r->nodes[i].use[k]));
        }
        CHECK(sent == arrived && whole(&r->switch_use));
        hapi_sim_result_free(r);
        world_free(&w);
    }
}

/* ------------------------------------------------------------------ nothing is faster than its resources */

/* The work of a first epoch of client 0, by the profile's plain numbers, for each resource as if it did
 * nothing else: none can be faster. Parts for any node are counted only where there is one node. */
static double lower_bound(const struct world *w, const struct hapi_sim_epoch *e)
{
    const struct hapi_profile *p = w->profiles[0];
    const struct hapi_sim_client *c = &w->clients[0];
    double n = (double)p->images, most = p->train_s.s * n, compute = 0, device = 0, bytes = 0;
    double nodes[NODES] = {0};

    for (uint32_t i = 0; i < c->plan.n_parts; i++) {
        const struct hapi_split_part *part = &w->parts[0][i];
        const struct hapi_profile_cut *cut =
            part->cut < 0 ? NULL : hapi_profile_cut_find(p, (uint32_t)part->cut);
        double images = floor(n * part->share) > 1 ? floor(n * part->share) - 1 : 0;
        double convert = cut ? p->convert_s[part->wire].s > 0 ? p->convert_s[part->wire].s : 0 : 0;
        int32_t node = part->node < 0 && c->n_nodes == 1 ? 0 : part->node;
        bytes += images * (cut ? cut->wire_bytes[part->wire] : p->source_bytes);
        compute += images * (cut ? convert + p->serialise_s.s : p->source_prepare_s.s);
        device += images * (cut ? cut->compute_s.s : p->source_compute_s.s);
        if (node < 0)
            continue;
        const struct hapi_sim_node *k = &w->nodes[w->numbers[0][node]];
        double link = images * (cut ? cut->wire_bytes[part->wire] : p->source_bytes) / k->bandwidth_Bps;
        double pack = k->devices ? 0 : convert;
        double cpu = !cut ? 0 : images * (p->storage_prepare_s.s + pack + p->serialise_s.s) / k->speed;
        double gpu = !cut ? 0 : images * cut->storage_s.s / k->speed;
        cpu = k->devices ? cpu : cpu + gpu;
        nodes[node] = fmax(nodes[node], fmax(link, fmax(images * p->read_s.s, cpu / k->cores)));
        if (k->devices)
            nodes[node] = fmax(nodes[node], gpu / k->devices);
    }
    if (p->compute.train_shares)
        device += p->train_s.s * n;
    if (p->compute.devices)
        most = fmax(most, fmax(compute / p->compute.cores, device / p->compute.devices));
    else
        most = fmax(most, (compute + device) / p->compute.cores);
    most = c->bandwidth_Bps > 0 ? fmax(most, bytes / c->bandwidth_Bps) : most;
    most = w->scenario.switch_Bps > 0 ? fmax(most, bytes / w->scenario.switch_Bps) : most;
    for (uint32_t i = 0; i < NODES; i++)
        most = fmax(most, nodes[i]);
    CHECK(e->wire_bytes >= bytes);
    return most + p->latency_s; /* all work comes after the first request */
}

static void epochs__of_any_scenario__no_faster_than_the_slowest_resource(void)
{
    struct world w;
    double tightest = 0;

    for (uint64_t seed = 1000; seed < 1300; seed++) {
        world_make(&w, seed);
        struct hapi_sim_result *r = made_run(&w.scenario);
        const struct hapi_sim_epoch *e = &r->clients[0].epochs[0];
        double bound = lower_bound(&w, e);
        CHECKF(e->seconds >= bound * (1 - 1e-9), "seed %d: %.12g s, bound %.12g", (int)seed, e->seconds,
               bound);
        tightest = e->seconds > 0 ? fmax(tightest, bound / e->seconds) : tightest;
        hapi_sim_result_free(r);
        world_free(&w);
    }
    CHECKF(tightest > 0.95, "the bounds say little: %g at best", tightest);
}

/* ------------------------------------------------------------------ more is not worse */

/* Times of a lone client with one part on one node: a line of queues, where nothing overtakes. */
static double lone_seconds(uint64_t seed, double faster, double slower)
{
    struct world w;
    double all = 0;

    world_make(&w, seed);
    struct hapi_profile *p = w.profiles[0];
    w.scenario.n_clients = w.clients[0].n_nodes = w.clients[0].plan.n_parts = 1;
    w.parts[0][0].share = 1;
    w.parts[0][0].node = HAPI_PLAN_ANY_NODE;
    w.nodes[w.numbers[0][0]].bandwidth_Bps *= faster;
    w.clients[0].bandwidth_Bps *= faster;
    w.scenario.switch_Bps *= faster;
    w.nodes[w.numbers[0][0]].cores = p->compute.cores = 1;
    w.nodes[w.numbers[0][0]].devices = p->compute.devices = 0;
    p->compute.train_shares = false;
    p->read_s.s *= slower;
    p->train_s.s *= slower;
    struct hapi_sim_result *r = made_run(&w.scenario);
    for (uint32_t e = 0; e < r->clients[0].n_epochs; e++)
        all += r->clients[0].epochs[e].seconds;
    hapi_sim_result_free(r);
    for (uint32_t i = 1; i < CLIENTS; i++)
        hapi_profile_free(w.profiles[i]);
    hapi_profile_free(p);
    return all;
}

static void epochs__with_faster_links__no_longer(void)
{
    int shorter = 0;

    for (uint64_t seed = 2000; seed < 2200; seed++) {
        double slow = lone_seconds(seed, 1, 1), fast = lone_seconds(seed, 1.5, 1),
               late = lone_seconds(seed, 1, 1.5);
        CHECKF(fast <= slow * (1 + 1e-9), "seed %d: %.12g s, then %.12g", (int)seed, slow, fast);
        CHECKF(late >= slow * (1 - 1e-9), "seed %d: %.12g s, then %.12g", (int)seed, slow, late);
        shorter += fast < slow * 0.99;
    }
    CHECKF(shorter > 20, "only %d of 200 had to do with links", shorter);
}

/* ------------------------------------------------------------------ the same is the same */

static bool equal(const struct hapi_sim_result *a, const struct hapi_sim_result *b)
{
    bool same = a->end_s == b->end_s && a->events == b->events;

    for (uint32_t i = 0; i < a->n_clients; i++)
        for (uint32_t e = 0; e < a->clients[i].n_epochs; e++)
            same &= a->clients[i].epochs[e].seconds == b->clients[i].epochs[e].seconds &&
                    a->clients[i].epochs[e].use[HAPI_SIM_DISK].busy ==
                        b->clients[i].epochs[e].use[HAPI_SIM_DISK].busy;
    return same;
}

static void runs__with_jitter__follow_the_seed(void)
{
    int differ = 0;
    struct world w;

    for (uint64_t seed = 3000; seed < 3040; seed++) {
        world_make(&w, seed);
        for (uint32_t i = 0; i < w.scenario.n_clients; i++) {
            w.profiles[i]->jitter = 0.5;
            w.profiles[i]->read_s.s = 1e-3;
            w.profiles[i]->train_s.s = 1e-3;
        }
        struct hapi_sim_result *a = made_run(&w.scenario), *b = made_run(&w.scenario), *c;
        w.scenario.seed++;
        c = made_run(&w.scenario);
        CHECK(equal(a, b));
        differ += !equal(a, c);
        hapi_sim_result_free(a);
        hapi_sim_result_free(b);
        hapi_sim_result_free(c);
        world_free(&w);
    }
    CHECKF(differ == 40, "%d of 40 differ", differ);
}

/* Of many draws the mean is the time itself. */
static void jitter__of_many_reads__is_fair_and_bounded(void)
{
    struct hapi_profile *p = made_profile(10000, 100);
    struct made m;

    p->read_s.s = 1e-3;
    p->jitter = 0.8;
    double s = made_seconds(made_one(&m, p, 9, 1));
    CHECKF(s > 9.8 && s < 10.2 && s != 10, "%g s", s);
    p->jitter = 1;
    s = made_seconds(made_one(&m, p, 9, 100));
    CHECKF(s > 5 && s < 15, "%g s", s);
    hapi_profile_free(p);
}

int main(void)
{
    CASE(images__of_any_scenario__each_trained_once_an_epoch);
    CASE(epochs__of_any_scenario__no_faster_than_the_slowest_resource);
    CASE(epochs__with_faster_links__no_longer);
    CASE(runs__with_jitter__follow_the_seed);
    CASE(jitter__of_many_reads__is_fair_and_bounded);
    return check_done();
}
