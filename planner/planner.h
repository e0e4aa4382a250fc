/*
 * Where to split the network. Pure arithmetic: no clock, no I/O, any thread.
 *
 * Cuts are numbered as hapi_model_cuts() lists them; the freeze layer is one of them. A split of
 * HAPI_SPLIT_NONE means no pushdown: raw objects travel and the compute tier runs everything.
 */
#ifndef HAPI_PLANNER_PLANNER_H
#define HAPI_PLANNER_PLANNER_H

#include <stdint.h>

#include "err.h"

#define HAPI_SPLIT_NONE (-1)

/* X(ENUM, name) */
#define HAPI_POLICIES(X)                                                                                     \
    X(HAPI_POLICY_NONE, "none")     /* no pushdown: what training without HAPI does */                       \
    X(HAPI_POLICY_FREEZE, "freeze") /* everything frozen runs on the storage node */

enum hapi_policy {
#define X(policy, name) policy,
    HAPI_POLICIES(X)
#undef X
};

/* HAPI_EINVAL lists the names there are. */
int hapi_policy_from_name(enum hapi_policy *out, const char *name, struct hapi_err *err);
const char *hapi_policy_name(enum hapi_policy policy);

/* The split for a network frozen at cut `freeze` of `n_cuts`. *out: a cut's number <= freeze, or
 * HAPI_SPLIT_NONE. HAPI_EINVAL when freeze is not one of the cuts. */
int hapi_split_choose(enum hapi_policy policy, int32_t n_cuts, int32_t freeze, int32_t *out,
                      struct hapi_err *err);

#endif
