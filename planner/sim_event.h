/* Simulated time: events in order, and in the order they were set where times are equal. */
#ifndef HAPI_PLANNER_SIM_EVENT_H
#define HAPI_PLANNER_SIM_EVENT_H

#include <stdbool.h>
#include <stdint.h>

/* Within what it belongs to. `place` is 0 while it is not set. */
struct sim_event {
    uint32_t place;
    void (*fire)(struct sim_event *e);
};

struct sim_events {
    struct sim_entry {
        double at;
        uint64_t order;
        struct sim_event *event;
    } * heap; /* from 1 on: the earliest, of four children each */
    uint32_t n, capacity;
    uint64_t order, fired;
    double now;
    int rc; /* HAPI_ENOMEM; events are lost then */
};

/* Sets it, or moves it, to `at` >= now. */
void sim_event_set(struct sim_events *q, struct sim_event *e, double at);
void sim_event_clear(struct sim_events *q, struct sim_event *e);
/* When the next one is; INFINITY: never. */
double sim_event_next(const struct sim_events *q);
/* Goes to the next one's time and fires it. */
void sim_event_fire(struct sim_events *q);
void sim_events_close(struct sim_events *q);

#endif
