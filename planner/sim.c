/* Sets up, goes from event to event, hands out the result. */
#include "sim.h"

#include <math.h>
#include <stdlib.h>

#include "sim_inside.h"

/* ------------------------------------------------------------------ luck */

/* Finaliser of SplitMix64 (Steele, Lea, Flood 2014): any bit of x moves all bits. */
static uint64_t mix(uint64_t x)
{
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9;
    x = (x ^ x >> 27) * 0x94d049bb133111eb;
    return x ^ x >> 31;
}

double sim_jitter(const struct sim_client *c, double seconds, uint64_t key, enum sim_draw draw)
{
    double jitter = c->spec->profile->jitter;

    if (jitter <= 0)
        return seconds;
    uint64_t x = mix(c->sim->spec->seed + 0x9e3779b97f4a7c15 * (c->number * 8ULL + draw + 1));
    double u = (double)(mix(x ^ mix(key)) >> 11) * 0x1p-53; /* [0, 1) */
    return seconds * (1 + jitter * (2 * u - 1));
}

/* ------------------------------------------------------------------ what comes and goes */

static void *from_arena(struct sim *s, size_t bytes)
{
    void *p = hapi_arena_alloc(s->arena, bytes, 16);

    s->events.rc = p ? s->events.rc : HAPI_ENOMEM;
    return p;
}

struct sim_request *sim_request_take(struct sim *s)
{
    struct sim_request *r = s->free_requests;

    if (!r)
        return from_arena(s, sizeof *r);
    s->free_requests = r->next;
    return r;
}

void sim_request_give(struct sim *s, struct sim_request *r)
{
    r->next = s->free_requests;
    s->free_requests = r;
}

struct sim_piece *sim_piece_take(struct sim *s)
{
    struct sim_piece *p = s->free_pieces;

    if (!p)
        return from_arena(s, sizeof *p);
    s->free_pieces = p->next;
    return p;
}

void sim_piece_give(struct sim *s, struct sim_piece *p)
{
    p->next = s->free_pieces;
    s->free_pieces = p;
}

struct sim_line *sim_line_take(struct sim *s, void (*done)(struct sim_event *e))
{
    struct sim_line *l = s->free_lines;

    if (l)
        s->free_lines = l->next;
    else if (!(l = from_arena(s, sizeof *l)))
        return NULL;
    l->flow.done = (struct sim_event){.fire = done};
    return l;
}

void sim_line_give(struct sim *s, struct sim_line *l)
{
    l->next = s->free_lines;
    s->free_lines = l;
}

/* ------------------------------------------------------------------ the scenario */

/* `>=` and `<=` refuse NaN, too. */
static bool within(double v, double min, double max)
{
    return v >= min && v <= max;
}

static const char *node_wrong(const struct hapi_sim_node *n)
{
    if (!within(n->bandwidth_Bps, 1, 1e18))
        return "bandwidth_Bps must be 1 or more";
    if (!within(n->cores, 1, 65536) || !within(n->devices, 0, 65536))
        return "cores and devices must be 1 to 65536, or 0 devices";
    if (!within(n->contention, 0, 1))
        return "contention must be 0 to 1";
    if (!within(n->speed, 1e-6, 1e6))
        return "speed must be above 0";
    return within(n->batches, 2, 65536) ? NULL : "batches must be 2 to 65536";
}

static const char *client_wrong(const struct hapi_sim_client *c, uint32_t n_nodes)
{
    uint64_t batch = c->profile->train_batch;

    if (!c->n_nodes || c->n_nodes > HAPI_SIM_NODES_MAX)
        return "nodes: none, or too many";
    for (uint32_t i = 0; i < c->n_nodes; i++)
        if (c->nodes[i] >= n_nodes)
            return "nodes: there is no such node";
    if (!c->epochs || !c->chunk || !c->request_images)
        return "epochs, chunk_images and request_images must be 1 or more";
    if (!c->slots || c->slots > 65536 || c->depth < 2 || c->depth > 65536)
        return "slots must be 1 to 65536, depth 2 to 65536";
    if (c->bandwidth_Bps != 0 && !within(c->bandwidth_Bps, 1, 1e18))
        return "bandwidth_Bps must be 1 or more, or 0 for no bound";
    if ((c->profile->images + batch - 1) / batch >= UINT32_MAX / 2)
        return "profile: more than 2^31 iterations an epoch";
    return within(c->start_s, 0, 1e9) ? NULL : "start_s must be 0 or more";
}

static int check(const struct hapi_sim_scenario *o, struct hapi_err *err)
{
    struct hapi_err why = {0};
    const char *wrong;

    if (!o->n_nodes || o->n_nodes > HAPI_SIM_NODES_MAX || !o->n_clients ||
        o->n_clients > HAPI_SIM_CLIENTS_MAX)
        return hapi_err_set(err, HAPI_EINVAL, 0, "nodes, clients: there must be 1 to %d of each",
                            HAPI_SIM_NODES_MAX);
    if (o->switch_Bps != 0 && !within(o->switch_Bps, 1, 1e18))
        return hapi_err_set(err, HAPI_EINVAL, 0, "switch_Bps must be 1 or more, or 0 for no bound");
    for (uint32_t i = 0; i < o->n_nodes; i++)
        if ((wrong = node_wrong(&o->nodes[i])))
            return hapi_err_set(err, HAPI_EINVAL, 0, "nodes[%u].%s", i, wrong);
    for (uint32_t i = 0; i < o->n_clients; i++) {
        const struct hapi_sim_client *c = &o->clients[i];
        if ((wrong = client_wrong(c, o->n_nodes)))
            return hapi_err_set(err, HAPI_EINVAL, 0, "clients[%u].%s", i, wrong);
        if (hapi_split_plan_check(&c->plan, c->profile, c->n_nodes, &why))
            return hapi_err_set(err, HAPI_EINVAL, 0, "clients[%u].plan%s%s", i,
                                why.text[0] == '[' ? "" : ": ", why.text);
    }
    return 0;
}

static bool set_up(struct sim *s)
{
    const struct hapi_sim_scenario *o = s->spec;

    s->nodes = hapi_arena_array(s->arena, o->n_nodes, sizeof *s->nodes);
    s->clients = hapi_arena_array(s->arena, o->n_clients, sizeof *s->clients);
    if (!s->nodes || !s->clients ||
        sim_net_open(&s->net, &s->events, o->n_nodes + o->n_clients, o->switch_Bps))
        return false;
    for (uint32_t i = 0; i < o->n_nodes; i++)
        sim_node_init(&s->nodes[i], s, i);
    s->running = o->n_clients;
    for (uint32_t i = 0; i < o->n_clients; i++)
        if (!sim_client_init(&s->clients[i], s, i))
            return false;
    return true;
}

static void tear_down(struct sim *s)
{
    for (uint32_t i = 0; s->nodes && i < s->spec->n_nodes; i++) {
        sim_machine_close(&s->nodes[i].machine);
    }
    for (uint32_t i = 0; s->clients && i < s->spec->n_clients; i++) {
        sim_machine_close(&s->clients[i].machine);
    }
    sim_net_close(&s->net);
    sim_events_close(&s->events);
    hapi_arena_free(s->arena);
}

/* ------------------------------------------------------------------ the run */

/* Whoever waits in a simulation waits for an event: without one before the end, the simulation is wrong. */
static int go(struct sim *s, struct hapi_err *err)
{
    while (s->running && !s->events.rc) {
        if (sim_event_next(&s->events) > s->events.now && sim_net_due(&s->net))
            sim_net_settle(&s->net);
        else if (s->events.n)
            sim_event_fire(&s->events);
        else
            return hapi_err_set(err, HAPI_EINVAL, 0,
                                "the simulation stands still at %g s with %u clients left", s->events.now,
                                s->running);
    }
    return s->events.rc ? hapi_err_set(err, HAPI_ENOMEM, 0,
                                       "a simulation of %u nodes and %u clients takes more "
                                       "memory than there is, or than %zu bytes",
                                       s->spec->n_nodes, s->spec->n_clients, HAPI_SIM_MEMORY)
                        : 0;
}

/* One block: the result, clients, nodes, epochs. */
static struct hapi_sim_result *result(struct sim *s)
{
    const struct hapi_sim_scenario *o = s->spec;
    size_t epochs = 0, at = 0;

    for (uint32_t i = 0; i < o->n_clients; i++)
        epochs += o->clients[i].epochs;
    struct hapi_sim_result *r =
        malloc(sizeof *r + o->n_clients * sizeof *r->clients + o->n_nodes * sizeof *r->nodes +
               epochs * sizeof(struct hapi_sim_epoch));
    if (!r)
        return NULL;
    *r = (struct hapi_sim_result){
        .clients = (struct hapi_sim_client_result *)(r + 1),
        .n_clients = o->n_clients,
        .n_nodes = o->n_nodes,
        .end_s = sim_now(s),
        .events = s->events.fired,
    };
    r->nodes = (struct hapi_sim_node_result *)(r->clients + o->n_clients);
    struct hapi_sim_epoch *all = (struct hapi_sim_epoch *)(r->nodes + o->n_nodes);
    for (uint32_t i = 0; i < o->n_clients; at += o->clients[i++].epochs) {
        const struct hapi_sim_epoch *last = &s->clients[i].epochs[o->clients[i].epochs - 1];
        r->clients[i] =
            (struct hapi_sim_client_result){all + at, o->clients[i].epochs, last->start_s + last->seconds};
        for (uint32_t e = 0; e < o->clients[i].epochs; e++)
            all[at + e] = s->clients[i].epochs[e];
    }
    for (uint32_t i = 0; i < o->n_nodes; i++) {
        r->nodes[i] = (struct hapi_sim_node_result){.images = s->nodes[i].images};
        for (int k = HAPI_SIM_NODE_LINK; k < HAPI_SIM_RESOURCES_N; k++)
            r->nodes[i].use[k] =
                sim_use(sim_node_gauge_of(&s->nodes[i], (enum hapi_sim_resource)k), sim_now(s));
    }
    if (o->switch_Bps > 0)
        sim_gauge_set(&s->net.gauge, sim_now(s), s->net.gauge.use, false);
    r->switch_use = sim_use(o->switch_Bps > 0 ? &s->net.gauge : NULL, sim_now(s));
    return r;
}

int hapi_sim_run(struct hapi_sim_result **out, const struct hapi_sim_scenario *scenario, struct hapi_err *err)
{
    struct sim s = {.spec = scenario};
    int rc = check(scenario, err);

    if (rc)
        return rc;
    s.arena = hapi_arena_new(HAPI_SIM_MEMORY);
    if (!s.arena || !set_up(&s))
        s.events.rc = HAPI_ENOMEM;
    rc = go(&s, err);
    struct hapi_sim_result *r = rc ? NULL : result(&s);
    if (!rc && !r)
        rc = hapi_err_set(err, HAPI_ENOMEM, 0, "no memory for the result");
    if (!rc)
        *out = r;
    tear_down(&s);
    return rc;
}

void hapi_sim_result_free(struct hapi_sim_result *r)
{
    free(r);
}

/* ------------------------------------------------------------------ from a profile */

uint32_t hapi_sim_batches(uint32_t cores)
{
    uint32_t n = 2 * cores < 65536 ? 2 * cores : 65536;

    return n > HAPI_SIM_BATCHES ? n : HAPI_SIM_BATCHES;
}

struct hapi_sim_node hapi_sim_profile_node(const struct hapi_profile *p, uint32_t i)
{
    const struct hapi_profile_node *listed = p->n_node_list ? &p->node_list[i] : NULL;
    uint32_t cores = listed ? listed->cores : p->storage.cores;

    return (struct hapi_sim_node){
        .name = listed ? listed->name : NULL,
        .bandwidth_Bps = listed ? listed->bandwidth_Bps : p->bandwidth_Bps,
        .cores = cores,
        .devices = p->storage.devices,
        .contention = p->storage.contention,
        .speed = listed ? listed->speed : 1,
        .batches = hapi_sim_batches(cores),
    };
}

struct hapi_sim_client hapi_sim_profile_client(const struct hapi_profile *p)
{
    return (struct hapi_sim_client){
        .profile = p,
        .epochs = p->epochs,
        .slots = HAPI_SIM_SLOTS,
        .depth = HAPI_SIM_DEPTH,
        .chunk = HAPI_SIM_CHUNK,
        .request_images = p->request_images ? p->request_images : HAPI_SIM_REQUEST_IMAGES,
        .bandwidth_Bps = p->client_bandwidth_Bps,
    };
}

int hapi_sim_profile_run(struct hapi_sim_result **out, const struct hapi_profile *p,
                         const struct hapi_split_plan *plan, uint64_t seed, struct hapi_err *err)
{
    struct hapi_sim_node *nodes = calloc(p->nodes, sizeof *nodes);
    uint32_t *numbers = calloc(p->nodes, sizeof *numbers);
    struct hapi_sim_client client = hapi_sim_profile_client(p);
    int rc = HAPI_ENOMEM;

    for (uint32_t i = 0; nodes && numbers && i < p->nodes; i++) {
        nodes[i] = hapi_sim_profile_node(p, i);
        numbers[i] = i;
    }
    client.plan = *plan;
    client.nodes = numbers;
    client.n_nodes = p->nodes;
    struct hapi_sim_scenario o = {
        .nodes = nodes, .clients = &client, .n_nodes = p->nodes, .n_clients = 1, .seed = seed};
    if (nodes && numbers)
        rc = hapi_sim_run(out, &o, err);
    else
        hapi_err_set(err, rc, 0, "no memory for %u nodes", p->nodes);
    free(nodes);
    free(numbers);
    return rc;
}
