/*
 * A tier's machine: threads that take jobs in order, cores that they run on, and devices that run the network
 * where there are any. A job keeps its thread from its begin to its end, as a compute thread of hapi-rt and
 * libhapi does:
 *
 *     queue ──> a free thread ──> cores: before ──> devices: network ──> cores: after ──> done
 *                                 └────────── cores: all in one, where there are no devices ──┘
 *
 * Cores, and devices, are shared evenly by those who want one (processor sharing). With k of them busy each
 * runs at 1 / (1 + contention * (k - 1)) of its speed.
 */
#ifndef HAPI_PLANNER_SIM_MACHINE_H
#define HAPI_PLANNER_SIM_MACHINE_H

#include "sim_event.h"
#include "sim_flow.h"

enum { SIM_PHASES = 3 };

struct sim_job {
    struct sim_job *next;
    double work[SIM_PHASES]; /* seconds of a core, a device, a core */
    double finish;           /* on the clock of what it runs on */
    uint64_t order;
    uint32_t phase;
    bool threadless; /* training: it has a thread of its own */
    void (*done)(struct sim_job *j);
};

/* Some servers that are shared evenly. Its clock goes as fast as each job does. */
struct sim_share {
    struct sim_machine *machine;
    double capacity, contention;
    double clock, rate, since;
    uint64_t order;
    struct sim_job **heap; /* by finish */
    uint32_t n, room;
    struct sim_event event;
    struct sim_gauge gauge;
};

struct sim_machine {
    struct sim_events *events;
    struct sim_share cores, devices;
    uint32_t threads, running;
    struct sim_job *queue, **queue_end;
};

/* jobs: at most so many at once; more than cores where a device goes on without its thread. */
void sim_machine_init(struct sim_machine *m, struct sim_events *events, uint32_t cores, double contention,
                      uint32_t devices, uint32_t jobs);
void sim_machine_close(struct sim_machine *m);
/* j->work and j->done are set; done comes later, never from here. With `threadless`, it starts at once. */
void sim_machine_submit(struct sim_machine *m, struct sim_job *j);
/* Whether what idles is so because of what comes after it. */
void sim_machine_blocked(struct sim_machine *m, bool is_blocked);

#endif
