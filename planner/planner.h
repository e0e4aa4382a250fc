/*
 * Where to split the network, what travels, in which micro-batches. Pure arithmetic: no clock, no I/O, no
 * memory but the caller's, any thread; 1,000 cuts take about a millisecond.
 *
 *     struct hapi_choice c;
 *     hapi_choose(&c, profile, &(struct hapi_choose_options){.policy = HAPI_POLICY_PIPELINE}, &err);
 *     c.parts[0].cut, .wire, .micro_batch, .share ...
 *
 * Policy `hapi` is the formula that the HAPI paper publishes (arXiv 2210.08650v3), `hapi-v1` the heuristic of
 * its first versions: comparisons. `pipeline` minimises what predict.h predicts for all epochs.
 */
#ifndef HAPI_PLANNER_PLANNER_H
#define HAPI_PLANNER_PLANNER_H

#include <stdint.h>

#include "err.h"
#include "predict.h"

/* X(ENUM, name) */
#define HAPI_POLICIES(X)                                                                                     \
    X(HAPI_POLICY_NONE, "none")         /* no pushdown: what training without HAPI does */                   \
    X(HAPI_POLICY_FREEZE, "freeze")     /* everything frozen runs on the storage node */                     \
    X(HAPI_POLICY_HAPI, "hapi")         /* as published */                                                   \
    X(HAPI_POLICY_HAPI_V1, "hapi-v1")   /* as first published */                                             \
    X(HAPI_POLICY_PIPELINE, "pipeline") /* the default of `hapi plan` */

enum hapi_policy {
#define X(policy, name) policy,
    HAPI_POLICIES(X)
#undef X
};

/* HAPI_EINVAL lists the names there are. */
int hapi_policy_from_name(enum hapi_policy *out, const char *name, struct hapi_err *err);
const char *hapi_policy_name(enum hapi_policy policy);

/* The split for a network frozen at cut `freeze` of `n_cuts`, where nothing has been measured: policies none
 * and freeze. *out: a cut's number <= freeze, or HAPI_SPLIT_NONE. HAPI_EINVAL when freeze is not one of the
 * cuts, or the policy wants a profile. */
int hapi_split_choose(enum hapi_policy policy, int32_t n_cuts, int32_t freeze, int32_t *out,
                      struct hapi_err *err);

/* The wire dtypes, as bits 1 << enum hapi_wire, that bring no larger a relative L2 error to the features than
 * `text` says: a number, or the name of a dtype, with whose error (docs/benchmarks.md, "Wire dtypes") it
 * stands. false: it is neither. */
bool hapi_wires_within(uint32_t *wires, const char *text);

struct hapi_choose_options {
    enum hapi_policy policy;
    uint32_t wires;       /* bits 1 << enum hapi_wire that the accuracy allows; 0: f32 only */
    uint32_t micro_batch; /* 0: any of 1, 2, 4, 8, 16, 32 */
    bool whole;           /* no mixed plans: all images the same way */
};

/* What a cut and wire dtype are worth, at their best micro-batch, for all images. */
struct hapi_candidate {
    struct hapi_split_part part;
    struct hapi_prediction predicted;
    double paper_s; /* policy hapi: what its formula says of an epoch */
    bool fits;      /* else the rest says nothing */
};

enum { HAPI_CHOICE_PARTS = 2 };

struct hapi_choice {
    struct hapi_split_part parts[HAPI_CHOICE_PARTS]; /* what is pushed down furthest comes first */
    uint32_t n_parts;
    struct hapi_prediction predicted;
};

static inline struct hapi_split_plan hapi_choice_plan(const struct hapi_choice *c)
{
    return (struct hapi_split_plan){c->parts, c->n_parts};
}

/* candidates: room for hapi_candidates_max(), of which *n_candidates are filled: no pushdown first, then cut
 * by cut, wire dtype by wire dtype. Errors: HAPI_ENOMEM where nothing fits the memory of both tiers. */
int hapi_choose(struct hapi_choice *out, const struct hapi_profile *p, const struct hapi_choose_options *o,
                struct hapi_candidate *candidates, size_t *n_candidates, struct hapi_err *err);
size_t hapi_candidates_max(const struct hapi_profile *p);

/* As hapi_choose(); and where a tier has devices, whose threads meet in ways that no formula tells, policy
 * `pipeline` simulates (sim.h) what is predicted to be nearly as good, and takes what is better by 1.5 %
 * then. Takes a fraction of a second then, and memory of its own. */
int hapi_choose_tried(struct hapi_choice *out, const struct hapi_profile *p,
                      const struct hapi_choose_options *o, struct hapi_candidate *candidates,
                      size_t *n_candidates, struct hapi_err *err);

#endif
