#include "plan.h"

#include <math.h>

/* What is wrong with a part: a text, or NULL. */
static const char *part_wrong(const struct hapi_split_part *p, const struct hapi_profile *profile,
                              uint32_t n_nodes)
{
    const struct hapi_profile_cut *cut =
        p->cut >= 0 ? hapi_profile_cut_find(profile, (uint32_t)p->cut) : NULL;

    if (p->cut != HAPI_SPLIT_NONE && !cut)
        return "cut is none of the profile's";
    if (p->wire < HAPI_WIRE_RAW || p->wire >= HAPI_WIRES_N || (p->wire == HAPI_WIRE_RAW) != !cut)
        return "wire is a dtype where there is a cut, and only there";
    if (cut && !cut->wire_bytes[p->wire])
        return "wire is a dtype in which the profile's cut cannot travel";
    if (!p->micro_batch || p->micro_batch > HAPI_MICRO_BATCH_MAX)
        return "micro_batch is out of range";
    if (p->node != HAPI_PLAN_ANY_NODE && (p->node < 0 || (uint32_t)p->node >= n_nodes))
        return "node is none of the job's";
    return p->share > 0 && p->share <= 1 ? NULL : "share must be above 0 and at most 1";
}

int hapi_split_plan_check(const struct hapi_split_plan *plan, const struct hapi_profile *profile,
                          uint32_t n_nodes, struct hapi_err *err)
{
    double shares = 0;

    if (!plan->n_parts || plan->n_parts > HAPI_PLAN_PARTS_MAX)
        return hapi_err_set(err, HAPI_EINVAL, 0, "a plan has 1 to %d parts, not %u", HAPI_PLAN_PARTS_MAX,
                            plan->n_parts);
    for (uint32_t i = 0; i < plan->n_parts; i++) {
        const char *wrong = part_wrong(&plan->parts[i], profile, n_nodes);
        if (wrong)
            return hapi_err_set(err, HAPI_EINVAL, 0, "[%u].%s", i, wrong);
        shares += plan->parts[i].share;
    }
    if (fabs(shares - 1) > 1e-6)
        return hapi_err_set(err, HAPI_EINVAL, 0, "the shares are %.9g together, not 1", shares);
    return 0;
}
