/*
 * A scenario of the simulator as JSON: docs/planner.md describes it, key by key.
 *
 *     struct hapi_scenario *s;
 *     int rc = hapi_scenario_parse(&s, text, size, load, arg, &err);
 *     ... hapi_sim_run(&result, &s->sim, &err) ...
 *     hapi_scenario_free(s);
 */
#ifndef HAPI_PLANNER_SCENARIO_H
#define HAPI_PLANNER_SCENARIO_H

#include "sim.h"

enum { HAPI_SCENARIO_PROFILES_MAX = 256, HAPI_SCENARIO_EPOCHS_MAX = 4096 };

struct hapi_scenario {
    struct hapi_sim_scenario sim; /* nodes, clients, profiles and names are the scenario's */
    struct hapi_profile **profiles;
    uint32_t n_profiles;
    struct hapi_arena *arena;
};

/* Gives the text of a profile that the scenario names; *text is freed by the caller of it. An error's text is
 * taken over. NULL: profiles are in the scenario or nowhere. */
typedef int hapi_scenario_load(void *arg, const char *name, char **text, size_t *size, struct hapi_err *err);

/* Reads and checks; keys that are not known are refused. Errors name the key: HAPI_EFORMAT (no JSON),
 * HAPI_EINVAL, HAPI_ENOMEM, HAPI_ETOOBIG (longer than HAPI_PROFILE_BYTES_MAX), those of `load`. */
int hapi_scenario_parse(struct hapi_scenario **out, const char *text, size_t size, hapi_scenario_load *load,
                        void *arg, struct hapi_err *err);
void hapi_scenario_free(struct hapi_scenario *s);

#endif
