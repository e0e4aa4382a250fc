/* Any bytes as a scenario: what is refused is said; what is small enough is run, and all images are trained.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "scenario.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(bool ok, const char *what)
{
    if (!ok) {
        fprintf(stderr, "%s\n", what);
        abort();
    }
}

/* Few enough events for a fuzzer. */
static bool small(const struct hapi_sim_scenario *o)
{
    uint64_t images = 0;

    for (uint32_t i = 0; i < o->n_clients; i++)
        images += o->clients[i].profile->images * o->clients[i].epochs + o->clients[i].n_nodes;
    return images < 2000 && o->n_nodes < 100;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct hapi_sim_result *r;
    struct hapi_scenario *s;
    struct hapi_err err = {0};
    int rc = hapi_scenario_parse(&s, (const char *)data, size, NULL, NULL, &err);

    if (rc) {
        require((rc == HAPI_EFORMAT || rc == HAPI_EINVAL) && err.code == rc && err.text[0],
                "an unclear error");
        return 0;
    }
    if (small(&s->sim)) {
        require(!hapi_sim_run(&r, &s->sim, &err), err.text);
        for (uint32_t i = 0; i < r->n_clients; i++)
            for (uint32_t e = 0; e < r->clients[i].n_epochs; e++) {
                const struct hapi_sim_epoch *one = &r->clients[i].epochs[e];
                require(one->trained == s->sim.clients[i].profile->images, "images are lost");
                require(one->seconds >= 0 && isfinite(one->seconds), "a time that is none");
            }
        hapi_sim_result_free(r);
    }
    hapi_scenario_free(s);
    return 0;
}
