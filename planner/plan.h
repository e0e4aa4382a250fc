/*
 * What the planner gives and the simulator takes: which part of the images is computed how far, by which
 * node, and travels as what. Plain data; the parts are the caller's.
 */
#ifndef HAPI_PLANNER_PLAN_H
#define HAPI_PLANNER_PLAN_H

#include "profile.h"

#define HAPI_SPLIT_NONE (-1)

#define HAPI_PLAN_ANY_NODE (-1)
enum { HAPI_PLAN_PARTS_MAX = 65536, HAPI_MICRO_BATCH_MAX = 1 << 20 };

struct hapi_split_part {
    int32_t cut;          /* index of the profile's cut, or HAPI_SPLIT_NONE: raw objects travel */
    enum hapi_wire wire;  /* HAPI_WIRE_RAW with HAPI_SPLIT_NONE, and only then */
    uint32_t micro_batch; /* images that a node reads, computes and sends at once */
    int32_t node; /* number of the job's node, or HAPI_PLAN_ANY_NODE: all in turn, as they have room */
    double share; /* of the images; all shares are 1 together */
};

struct hapi_split_plan {
    const struct hapi_split_part *parts;
    uint32_t n_parts;
};

/* Whether the plan can be carried out with the profile's cuts and `n_nodes` nodes. HAPI_EINVAL names what is
 * wrong: `[2].wire ...`. It says nothing of memory. */
int hapi_split_plan_check(const struct hapi_split_plan *plan, const struct hapi_profile *profile,
                          uint32_t n_nodes, struct hapi_err *err);

#endif
