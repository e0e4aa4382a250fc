/*
 * A simulation of whole jobs: what a plan takes, found out event by event and by no formula of the planner's.
 *
 *     client                        node                                       client
 *     ring of `depth` batches  ──>  disk ─> threads: decode, prefix, wire ─┐   threads: wire, decode, suffix
 *     requests of a part,           one by  on shared cores, devices       │   on shared cores, devices
 *     `slots` to a node, latency    one     `batches` of the node in hand  │   then: is the batch whole?
 *                                                                          └─> links, max-min fair: node's,
 *     an iteration trains when its batch is whole and the one before is done   switch, client's
 *
 * docs/planner.md says what is modelled and what is not. Nothing is random but the jitter, which is a
 * function of the seed and of what it applies to: the same scenario gives the same times, bit for bit, and
 * two plans meet the same luck. No clock, no I/O, no global state; a run belongs to one thread.
 */
#ifndef HAPI_PLANNER_SIM_H
#define HAPI_PLANNER_SIM_H

#include "plan.h"
#include "profile.h"

enum {
    HAPI_SIM_SLOTS = 16, /* what libhapi and hapi-rt do unless they are told otherwise */
    HAPI_SIM_DEPTH = 4,
    HAPI_SIM_CHUNK = 8,
    HAPI_SIM_REQUEST_IMAGES = 32,
    HAPI_SIM_BATCHES = 8,
    HAPI_SIM_SPARE_PLANS = 2, /* micro-batches that a node's device has in hand beyond one for each core */
    HAPI_SIM_NODES_MAX = 65536,
    HAPI_SIM_CLIENTS_MAX = 65536,
};

struct hapi_sim_node {
    const char *name;
    double bandwidth_Bps;
    uint32_t cores, devices; /* cores >= 1; devices may be 0 */
    double contention;       /* 0..1, as in a profile's tier */
    double speed;            /* decode, prefix and conversion take the profile's times divided by it */
    uint32_t batches;        /* micro-batches in hand at once, of all clients: >= 2 */
};

struct hapi_sim_client {
    const char *name;
    const struct hapi_profile *profile;
    struct hapi_split_plan plan; /* its nodes are numbers in `nodes` */
    const uint32_t *nodes;       /* of the scenario's */
    uint32_t n_nodes;
    uint32_t epochs;
    uint32_t slots;          /* requests in flight to a node */
    uint32_t depth;          /* batches begun and not trained: >= 2 */
    uint32_t chunk;          /* images of one job of the compute tier */
    uint32_t request_images; /* most of a request */
    double bandwidth_Bps;    /* of its link; 0: no bound */
    double start_s;
};

struct hapi_sim_scenario {
    const struct hapi_sim_node *nodes;
    const struct hapi_sim_client *clients;
    uint32_t n_nodes, n_clients;
    double switch_Bps; /* that all traffic crosses; 0: no bound */
    uint64_t seed;
};

/* X(NAME, name): what can be the slowest. */
#define HAPI_SIM_RESOURCES(X)                                                                                \
    X(HAPI_SIM_TRAIN, "training")                                                                            \
    X(HAPI_SIM_COMPUTE, "compute cores")                                                                     \
    X(HAPI_SIM_COMPUTE_DEVICE, "compute device")                                                             \
    X(HAPI_SIM_CLIENT_LINK, "client link")                                                                   \
    X(HAPI_SIM_SWITCH, "switch")                                                                             \
    X(HAPI_SIM_NODE_LINK, "node link")                                                                       \
    X(HAPI_SIM_STORAGE, "storage cores")                                                                     \
    X(HAPI_SIM_STORAGE_DEVICE, "storage device")                                                             \
    X(HAPI_SIM_DISK, "disk")

enum hapi_sim_resource {
#define X(resource, name) resource,
    HAPI_SIM_RESOURCES(X)
#undef X
        HAPI_SIM_RESOURCES_N
};

const char *hapi_sim_resource_name(enum hapi_sim_resource r);

/* Parts of the time, 1 together: doing its work (of all its cores, of its bandwidth), idle because what comes
 * after it has no room, idle because nothing comes. All 0 where there is no such thing. */
struct hapi_sim_use {
    double busy, blocked, starved;
};

struct hapi_sim_epoch {
    double start_s, seconds;
    uint64_t trained, raw, pushed; /* images: trained; of these, fetched as objects, as activations */
    uint64_t from_node_cache;      /* of the pushed */
    uint64_t from_client_cache;    /* trained and not fetched */
    uint64_t requests;
    double wire_bytes;
    struct hapi_sim_use use[HAPI_SIM_RESOURCES_N]; /* a node's: of the busiest such resource of its nodes */
    uint32_t node[HAPI_SIM_RESOURCES_N];           /* the number of that node in the scenario; else 0 */
    enum hapi_sim_resource bottleneck;             /* the busiest */
};

struct hapi_sim_client_result {
    const struct hapi_sim_epoch *epochs; /* as many as the client has */
    uint32_t n_epochs;
    double end_s;
};

struct hapi_sim_node_result { /* of the whole run, HAPI_SIM_NODE_LINK to HAPI_SIM_DISK */
    struct hapi_sim_use use[HAPI_SIM_RESOURCES_N];
    uint64_t images; /* sent */
};

struct hapi_sim_result {
    struct hapi_sim_client_result *clients;
    struct hapi_sim_node_result *nodes;
    uint32_t n_clients, n_nodes;
    struct hapi_sim_use switch_use;
    double end_s; /* when the last client is done */
    uint64_t events;
};

/* Runs it. *out is to be freed; it refers to nothing of the scenario. HAPI_EINVAL names what is wrong
 * (`clients[2].plan[0].cut ...`); HAPI_ENOMEM: over HAPI_SIM_MEMORY bytes, or out of memory. */
#define HAPI_SIM_MEMORY ((size_t)4 << 30)
int hapi_sim_run(struct hapi_sim_result **out, const struct hapi_sim_scenario *scenario,
                 struct hapi_err *err);
void hapi_sim_result_free(struct hapi_sim_result *r);

/* Node i < p->nodes of the profile, and a client of it without nodes and plan; names are the profile's. */
struct hapi_sim_node hapi_sim_profile_node(const struct hapi_profile *p, uint32_t i);
struct hapi_sim_client hapi_sim_profile_client(const struct hapi_profile *p);

/* Micro-batches of a node that nobody said: HAPI_SIM_BATCHES, and two for each core, so that one is read
 * while another is computed. */
uint32_t hapi_sim_batches(uint32_t cores);

/* One client of the profile, alone with all the profile's nodes. Errors: those of hapi_sim_run(). */
int hapi_sim_profile_run(struct hapi_sim_result **out, const struct hapi_profile *p,
                         const struct hapi_split_plan *plan, uint64_t seed, struct hapi_err *err);

#endif
