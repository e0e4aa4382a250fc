#include "check.h"
#include "planner.h"

static void names__known_and_unknown__resolved_or_listed(void)
{
    enum hapi_policy p;
    struct hapi_err err = {0};

    CHECK(hapi_policy_from_name(&p, "none", &err) == 0 && p == HAPI_POLICY_NONE);
    CHECK(hapi_policy_from_name(&p, "freeze", &err) == 0 && p == HAPI_POLICY_FREEZE);
    CHECK(!strcmp(hapi_policy_name(HAPI_POLICY_FREEZE), "freeze"));
    CHECK(hapi_policy_from_name(&p, "best", &err) == HAPI_EINVAL);
    CHECK(strstr(err.text, "best") && strstr(err.text, "none") && strstr(err.text, "freeze"));
}

static void split__each_policy__the_cut_it_stands_for(void)
{
    int32_t split = 7;

    CHECK(hapi_split_choose(HAPI_POLICY_NONE, 10, 4, &split, NULL) == 0 && split == HAPI_SPLIT_NONE);
    CHECK(hapi_split_choose(HAPI_POLICY_FREEZE, 10, 4, &split, NULL) == 0 && split == 4);
    split = 7;
    CHECK(hapi_split_choose(HAPI_POLICY_FREEZE, 10, 10, &split, NULL) == HAPI_EINVAL && split == 7);
    CHECK(hapi_split_choose(HAPI_POLICY_NONE, 10, -1, &split, NULL) == HAPI_EINVAL);
    CHECK(hapi_split_choose(HAPI_POLICY_PIPELINE, 10, 4, &split, NULL) ==
          HAPI_EINVAL); /* it wants a profile */
}

int main(void)
{
    CASE(names__known_and_unknown__resolved_or_listed);
    CASE(split__each_policy__the_cut_it_stands_for);
    return check_done();
}
