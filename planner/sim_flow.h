/*
 * Links that flows share: fluid, and max-min fair. Of the flows over a full link all those get the same that
 * are not held back by another link; what those that are leave over is theirs. That is what many connections
 * with the same round trip come to, and what a fair queue gives exactly.
 *
 *     a node's link ──> [switch] ──> [a client's link]
 *
 * A link has a *level*: the share that it grants each flow, INFINITY while it is not full. Without a switch a
 * flow's rate is the lesser level of its two links; the rates are max-min fair exactly when each link's level
 * follows from the levels at the other ends of its flows. So a change is carried from link to link until
 * levels stand still, and reaches only those that it concerns.
 *
 * All flows cross the switch. So when all rates rise together, as the definition of max-min fairness has it,
 * nothing is different with a switch until it is full, and then all that still rise stop: a rate is the
 * lesser of what it is without the switch and the switch's level. Flows that the switch holds back all go by
 * one clock, that of the bytes each of them has sent, so that a new level is no event for each of them.
 */
#ifndef HAPI_PLANNER_SIM_FLOW_H
#define HAPI_PLANNER_SIM_FLOW_H

#include "sim_event.h"

/* How a resource spent its time. `use` 0..1 of it is busy; the rest is idle: blocked when what comes after it
 * has no room, else starved. */
struct sim_gauge {
    double since, use;
    bool is_blocked;
    double busy, blocked, starved; /* seconds */
};

/* Accounts for the time up to now, and goes on so. */
void sim_gauge_set(struct sim_gauge *g, double now, double use, bool is_blocked);

enum { SIM_SENDER, SIM_RECEIVER, SIM_ENDS, SIM_EXACT_LINKS = 256 };

struct sim_link {
    double capacity; /* bytes a second */
    double rate;     /* of its flows that the switch does not hold back */
    uint32_t held;   /* how many it does */
    double clock;    /* of the switch at gauge.since */
    bool queued, changed;
    uint32_t end;             /* a node's: SIM_SENDER; a client's: SIM_RECEIVER */
    uint32_t n, room, *flows; /* numbers */
    struct sim_gauge gauge;   /* right after sim_link_account(); a sender that others hold back is blocked */
};

struct sim_flow {
    uint32_t number; /* of those there are; changes when others stop */
    uint32_t place;  /* where the switch holds it back: in net->held, from 1 on */
    double begun;
    double left, rate, since; /* else: bytes to go at `since` */
    double finish;            /* held back: on the switch's clock */
    struct sim_event done;
};

struct sim_net {
    struct sim_events *events;
    /* Links from 1 on. Number 0 is what a flow without a receiver's link has there: never full. */
    struct sim_link *links;
    uint32_t n_links;
    double *level;
    uint32_t *queue, *changed; /* links whose level is to be computed; was */
    uint32_t n_queue, first, n_changed;
    /* Flows by number: what the computing of levels reads, close together. */
    struct sim_way {
        uint32_t link[SIM_ENDS], place[SIM_ENDS]; /* among the link's flows */
    } * way;
    double *free; /* rate without the switch */
    struct sim_flow **flow;
    double *scratch;
    uint32_t n, room;
    /* The switch */
    double capacity; /* 0: none */
    double limit, clock, since;
    struct sim_flow **held; /* heap by finish */
    uint32_t n_held;
    struct sim_event first_held;
    struct sim_gauge gauge;
    /* When all is computed anew */
    struct sim_event settle;
    double settled, lasts; /* when it was; how long what is sent takes, on average */
};

/* Room for n_links links; capacity 0: no switch. HAPI_ENOMEM. */
int sim_net_open(struct sim_net *net, struct sim_events *events, uint32_t n_links, double capacity);
void sim_net_close(struct sim_net *net);
/* Link `number` >= 1. */
void sim_link_init(struct sim_net *net, uint32_t number, double capacity, uint32_t end);
/* Brings its gauge up to now. */
void sim_link_account(struct sim_net *net, uint32_t number);

/* Begins to send `bytes` from a node's link to a client's (0: to no link); f->done fires when they are
 * through. Rates are right after sim_net_settle(). Memory that is not there: events->rc. */
void sim_flow_start(struct sim_net *net, struct sim_flow *f, uint32_t sender, uint32_t receiver,
                    double bytes);
/* More to send when all is through, without a pause. */
void sim_flow_more(struct sim_net *net, struct sim_flow *f, double bytes);
/* Leaves the links. */
void sim_flow_stop(struct sim_net *net, struct sim_flow *f);
/* Whether something has changed and is to be computed before time goes on. Where there are many links that is
 * put off for a little while, so that several changes are computed at once: it comes by itself then. */
bool sim_net_due(struct sim_net *net);
void sim_net_settle(struct sim_net *net);

#endif
