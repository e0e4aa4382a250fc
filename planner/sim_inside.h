/*
 * What the parts of the simulation share.
 *
 *     sim.c         sets up, goes from event to event, hands out the result
 *     sim_node.c    a node: whose request is next, disk, threads, connections     (runtime/sched.c,
 * pipeline.c) sim_client.c  a client: epochs, batches, training, what arrives             (client/fetch.c,
 * suffix.c) sim_lane.c    which images of a batch are asked for where, and as what sim_result.c  what an
 * epoch was like sim_event.c, sim_flow.c, sim_machine.c   time, links, cores and threads
 */
#ifndef HAPI_PLANNER_SIM_INSIDE_H
#define HAPI_PLANNER_SIM_INSIDE_H

#include <stddef.h>

#include "arena.h"
#include "sim.h"
#include "sim_flow.h"
#include "sim_machine.h"

struct sim;
struct sim_client;
struct sim_node;
struct sim_session;

/* What a draw of the jitter applies to. */
enum sim_draw { SIM_DRAW_LATENCY, SIM_DRAW_READ, SIM_DRAW_COMPUTE, SIM_DRAW_SUFFIX, SIM_DRAW_TRAIN };

/* A stream of images that are alike: of a part of the plan, in the node's cache or not. */
struct sim_lane {
    const struct hapi_split_part *part;
    const struct hapi_profile_cut *cut; /* NULL: raw */
    bool kept;                          /* activations are in the node's cache: neither read nor computed */
    uint32_t request_images;            /* most of a request */
    double bytes;                       /* of an image on the wire */
    uint64_t total, given;              /* images of the epoch; of batches that are open */
    uint32_t cursor;                    /* the batch it asks for next */
};

struct sim_batch {
    uint32_t n, missing;    /* images; those that are not here yet */
    uint32_t *left, *total; /* of each lane: to be asked for; all */
};

struct sim_request {
    struct sim_request *next;
    struct sim_session *session;
    const struct sim_lane *lane;
    uint32_t batch; /* its number in the epoch */
    uint32_t n, formed, done;
    uint64_t key; /* of its luck */
    struct sim_event arrive;
};

/* A micro-batch of a node; and what the compute tier does at once. */
struct sim_piece {
    struct sim_piece *next;
    struct sim_request *request;
    uint32_t first, n;
    struct sim_job job;
};

/* What a client wants computed by a node, or what is only to be sent (objects, activations in the cache). */
enum sim_kind { SIM_COMPUTED, SIM_PASSED, SIM_KINDS };

/* Requests of one kind of one client: micro-batches are begun by turns. */
struct sim_turn {
    struct sim_turn *next, *prev; /* in the node's ring of those that have something to begin */
    struct sim_session *session;
    bool in_ring;
    uint32_t batches; /* micro-batches in hand */
    struct sim_request *pending, **pending_end;
};

/* A client's connection to a node. */
struct sim_session {
    struct sim_node *node;
    struct sim_client *client;
    uint32_t in_flight;
    struct sim_turn turns[SIM_KINDS];
    struct sim_piece *sending, **sending_end;
    struct sim_line *line; /* while it sends */
    double cache;          /* bytes that the epoch would have in the node's cache */
    double spent[HAPI_SIM_RESOURCES_N - HAPI_SIM_NODE_LINK][2]; /* when the epoch began: busy, blocked */
};

/* A flow, and whose it is: as many as send at once. */
struct sim_line {
    struct sim_line *next;
    struct sim_session *session;
    struct sim_flow flow;
};

struct sim_node {
    struct sim *sim;
    const struct hapi_sim_node *spec;
    uint32_t number, free_batches;
    struct sim_turn *ring; /* whose turn it is */
    uint32_t pending;      /* requests with images that no micro-batch has */
    struct sim_piece *reading, *read_queue, **read_end;
    struct sim_event read;
    struct sim_gauge disk;
    struct sim_machine machine;
    uint32_t link; /* its number */
    uint64_t images;
};

struct sim_client {
    struct sim *sim;
    const struct hapi_sim_client *spec;
    uint32_t number;
    struct sim_session *sessions; /* one for each of its nodes */
    uint32_t turn;                /* of the nodes, for images that any may serve */
    uint64_t in_flight;
    struct sim_lane *lanes; /* two for each part: not in the node's cache, in it */
    uint32_t n_lanes;
    struct sim_batch *ring; /* spec->depth of them: batch b is in b % depth */
    uint32_t n_batches, opened, trained;
    uint64_t unasked; /* images of open batches */
    bool training;
    uint32_t epoch;
    double feature_bytes;
    struct sim_event start;
    struct sim_event train;   /* where training has a processor of its own */
    struct sim_job train_job; /* where it shares */
    struct sim_gauge trainer;
    struct sim_machine machine;
    uint32_t link; /* its number; 0: no bound */
    struct hapi_sim_epoch *epochs, now;
    double spent[HAPI_SIM_NODE_LINK][2]; /* when the epoch began: busy, blocked */
    uint64_t *part_images;               /* of each part of the plan */
    struct sim_due {                     /* scratch: of each lane, and of the client's cache at the end */
        double want, rest;
        uint64_t most, got;
        uint32_t number;
    } * due;
    uint64_t cached, cached_given; /* images of the epoch in the client's cache; those in open batches */
};

struct sim {
    const struct hapi_sim_scenario *spec;
    struct hapi_arena *arena;
    struct sim_events events;
    struct sim_net net;
    struct sim_node *nodes;
    struct sim_client *clients;
    uint32_t running; /* clients that are not done */
    struct sim_request *free_requests;
    struct sim_piece *free_pieces;
    struct sim_line *free_lines;
};

static inline double sim_now(const struct sim *s)
{
    return s->events.now;
}

/* sim.c: seconds with the client's jitter. `key` and `draw` make the luck. */
double sim_jitter(const struct sim_client *c, double seconds, uint64_t key, enum sim_draw draw);
/* From the free ones, else new; NULL when there is no memory: s->rc says so and the run ends. */
struct sim_request *sim_request_take(struct sim *s);
struct sim_piece *sim_piece_take(struct sim *s);
struct sim_line *sim_line_take(struct sim *s, void (*done)(struct sim_event *e));
void sim_request_give(struct sim *s, struct sim_request *r);
void sim_piece_give(struct sim *s, struct sim_piece *p);
void sim_line_give(struct sim *s, struct sim_line *l);

/* sim_node.c */
void sim_node_init(struct sim_node *n, struct sim *s, uint32_t number);
/* A request has come. */
void sim_node_request(struct sim_request *r);
/* Accounts for its time up to now. */
void sim_node_gauge(struct sim_node *n);

/* sim_client.c */
/* false without memory. */
bool sim_client_init(struct sim_client *c, struct sim *s, uint32_t number);
/* Images [first, first + n) of the request are here. */
void sim_client_part(struct sim_request *r, uint32_t first, uint32_t n);

/* sim_lane.c: false without memory. */
bool sim_lanes_init(struct sim_client *c);
/* Shares the epoch's images out to the lanes and the client's own cache. */
void sim_lanes_epoch(struct sim_client *c);
/* The next batch gets its images of each lane. */
void sim_lanes_open(struct sim_client *c);
/* Asks for what there is room for. */
void sim_lanes_pump(struct sim_client *c);

/* sim_result.c */
void sim_epoch_begin(struct sim_client *c);
void sim_epoch_end(struct sim_client *c);
/* Brought up to now; NULL: there is no such thing. */
struct sim_gauge *sim_node_gauge_of(struct sim_node *n, enum hapi_sim_resource r);
/* What it did in the seconds from the beginning up to now; all 0 for NULL. */
struct hapi_sim_use sim_use(const struct sim_gauge *g, double seconds);

#endif
