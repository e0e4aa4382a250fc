/*
 * What an epoch takes, by arithmetic: each image loads each resource for so long; the pipeline goes at the
 * speed of the slowest, once it is filled. Pure functions, no clock, no memory of their own, any thread.
 *
 *     epoch = fill + images x slowest resource + the last training step      (or all training steps, if those
 *                                                                             are slower)
 *
 * Several nodes add up; they share the client's link. Decoding shares the cores with the network, unless
 * devices run that. What is in a cache from the second epoch on loads nothing before it.
 */
#ifndef HAPI_PLANNER_PREDICT_H
#define HAPI_PLANNER_PREDICT_H

#include "plan.h"

/* X(NAME, name): what an image passes, in order. */
#define HAPI_LOADS(X)                                                                                        \
    X(HAPI_LOAD_DISK, "disk")                                                                                \
    X(HAPI_LOAD_STORAGE, "storage")                                                                          \
    X(HAPI_LOAD_STORAGE_DEVICE, "storage_device")                                                            \
    X(HAPI_LOAD_LINK, "link")                                                                                \
    X(HAPI_LOAD_CLIENT_LINK, "client_link")                                                                  \
    X(HAPI_LOAD_COMPUTE_TIER, "compute")                                                                     \
    X(HAPI_LOAD_COMPUTE_DEVICE, "compute_device")                                                            \
    X(HAPI_LOAD_TRAIN, "train")

enum hapi_load {
#define X(load, name) load,
    HAPI_LOADS(X)
#undef X
        HAPI_LOADS_N
};

const char *hapi_load_name(enum hapi_load load);

struct hapi_prediction {
    double epoch_s; /* mean of all epochs */
    double first_s, later_s;
    double load_s[HAPI_LOADS_N]; /* that each needs for an epoch's images, working alone; mean of all */
    double fill_s;               /* until the first micro-batch is through */
    double storage_work_s;       /* of cores and devices of all nodes, an epoch: what operators pay for */
    enum hapi_load bottleneck;   /* the longest of load_s */
};

/* The plan has been checked (hapi_split_plan_check()) against this profile and its `nodes`. */
struct hapi_prediction hapi_predict(const struct hapi_profile *p, const struct hapi_split_plan *plan);

/* Whether a part fits the memory of both tiers with its micro-batch; raw objects need what the whole frozen
 * network needs on the compute tier (the first cut's compute_memory). */
bool hapi_part_fits(const struct hapi_profile *p, const struct hapi_split_part *part);

#endif
