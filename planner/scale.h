/*
 * What if: a profile with faster links or slower cores. The profile is changed in place; scale by 1/x to come
 * back (to the last bit or two).
 */
#ifndef HAPI_PLANNER_SCALE_H
#define HAPI_PLANNER_SCALE_H

#include "profile.h"

/* X(NAME, name): what can be scaled. */
#define HAPI_SCALES(X)                                                                                       \
    X(HAPI_SCALE_BANDWIDTH, "bandwidth")          /* of all links */                                         \
    X(HAPI_SCALE_STORAGE, "storage speed")        /* decode and network on the nodes */                      \
    X(HAPI_SCALE_COMPUTE, "compute tier's speed") /* decode and network on the compute tier, not training */ \
    X(HAPI_SCALE_DISK, "disk speed")                                                                         \
    X(HAPI_SCALE_TRAIN, "training speed")

enum hapi_scale {
#define X(scale, name) scale,
    HAPI_SCALES(X)
#undef X
        HAPI_SCALES_N
};

const char *hapi_scale_name(enum hapi_scale what);
/* Makes it `by` > 0 times as fast. */
void hapi_profile_scale(struct hapi_profile *p, enum hapi_scale what, double by);
/* All times of one curve, `by` times as long. The curve is the profile's own. */
void hapi_curve_scale(struct hapi_curve *c, double by);

#endif
