#include <stdio.h>
#include <string.h>

#include "planner.h"

static const char *const names[] = {
#define X(policy, name) [policy] = name,
    HAPI_POLICIES(X)
#undef X
};

int hapi_policy_from_name(enum hapi_policy *out, const char *name, struct hapi_err *err)
{
    char all[128] = "";

    for (size_t i = 0, n = 0; i < sizeof names / sizeof *names; i++) {
        if (!strcmp(name, names[i])) {
            *out = (enum hapi_policy)i;
            return 0;
        }
        n += (size_t)snprintf(all + n, sizeof all - n, "%s%s", i ? ", " : "", names[i]);
    }
    return hapi_err_set(err, HAPI_EINVAL, 0, "no policy `%s`: it is one of %s", name, all);
}

const char *hapi_policy_name(enum hapi_policy policy)
{
    return names[policy];
}

int hapi_split_choose(enum hapi_policy policy, int32_t n_cuts, int32_t freeze, int32_t *out,
                      struct hapi_err *err)
{
    if (freeze < 0 || freeze >= n_cuts)
        return hapi_err_set(err, HAPI_EINVAL, 0, "freeze layer %d of %d cuts", freeze, n_cuts);
    if (policy != HAPI_POLICY_FREEZE && policy != HAPI_POLICY_NONE)
        return hapi_err_set(err, HAPI_EINVAL, 0, "policy %s needs a profile: `hapi plan` takes one",
                            names[policy]);
    *out = policy == HAPI_POLICY_FREEZE ? freeze : HAPI_SPLIT_NONE;
    return 0;
}
