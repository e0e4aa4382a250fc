/* What is to be done with the samples: from options alone, or by what a profile says of the job. */
#include <stdlib.h>
#include <string.h>

#include "convert.h"
#include "loader.h"
#include "planner.h"

enum { ROW_MAX = 16 << 20 }; /* what a plan made later may send of an image: slots are as large */

/* ------------------------------------------------------------------ profiles */

static int profile_matches(struct hapi_loader *l, const struct hapi_profile *p, struct hapi_err *err)
{
    const struct hapi_profile_cut *freeze = hapi_profile_cut_find(p, p->freeze);
    char hash[2 * HAPI_HASH_SIZE + 1];

    hapi_sha256_text(hash, hapi_model_hash(l->model));
    if (p->hash && strcmp(p->hash, hash))
        return hapi_err_set(err, HAPI_EINVAL, 0, "it was measured with another model than %s: measure again",
                            l->o.model);
    if (strcmp(freeze->name, l->freeze->id))
        return hapi_err_set(err, HAPI_EINVAL, 0, "it is of a network frozen at %s, the job's at %s",
                            freeze->name, l->freeze->id);
    if (p->n_node_list && p->n_node_list != l->n_nodes)
        return hapi_err_set(err, HAPI_EINVAL, 0, "it names %u nodes, the job has %u: measure again",
                            p->n_node_list, l->n_nodes);
    return 0;
}

static int profile_open(struct hapi_loader *l, struct hapi_err *err)
{
    int rc = hapi_profile_read(&l->profile, l->o.profile, err);

    if (rc)
        return rc;
    rc = profile_matches(l, l->profile, err);
    if (rc) {
        hapi_err_context(err, "profile %s", l->o.profile);
        return rc;
    }
    l->profile->nodes = l->n_nodes;
    l->profile->train_batch = l->o.batch;
    if (l->n_nodes == 1) /* its link is measured from end to end */
        l->profile->client_bandwidth_Bps = 0;
    return 0;
}

uint32_t policy_parts(const struct hapi_profile *p, const struct hapi_choice *c,
                      struct hapi_loader_part parts[HAPI_CHOICE_PARTS])
{
    for (uint32_t i = 0; i < c->n_parts; i++) {
        const struct hapi_split_part *s = &c->parts[i];
        parts[i] = (struct hapi_loader_part){
            .split = s->cut < 0 ? "none" : hapi_profile_cut_find(p, (uint32_t)s->cut)->name,
            .wire = hapi_wire_name(s->wire),
            .share = s->share,
            .micro_batch = s->micro_batch,
        };
    }
    return c->n_parts;
}

uint32_t policy_with_probe(const struct hapi_loader *l, struct hapi_loader_part *parts, uint32_t n)
{
    const struct hapi_split_part raw = {HAPI_SPLIT_NONE, HAPI_WIRE_RAW, CHUNK_SAMPLES, HAPI_PLAN_ANY_NODE, 1};
    bool has = false;

    for (uint32_t i = 0; i < n; i++)
        has |= !strcmp(parts[i].split, "none");
    if (has || !l->online || !hapi_part_fits(l->profile, &raw))
        return n;
    parts[n] = (struct hapi_loader_part){.split = "none", .wire = "raw", .micro_batch = CHUNK_SAMPLES};
    return n + 1;
}

/* ------------------------------------------------------------------ choosing */

/* Bytes of an image in the widest plan that could be made. */
static size_t most_row(const struct hapi_profile *p, uint32_t wires)
{
    double most = 0;

    for (uint32_t i = 0; i < p->n_cuts; i++)
        for (int w = 0; w < HAPI_WIRES_N; w++)
            if (wires >> w & 1 && p->cuts[i].wire_bytes[w] > most)
                most = p->cuts[i].wire_bytes[w];
    return most < ROW_MAX ? (size_t)most : ROW_MAX;
}

/* The job's frozen part ends at l->freeze: of later cuts nothing is asked. */
static int by_profile(struct hapi_loader *l, struct hapi_loader_part parts[HAPI_CHOICE_PARTS], uint32_t *n,
                      struct hapi_err *err)
{
    size_t all = 0;

    if (!hapi_wires_within(&l->choose.wires, l->o.accuracy ? l->o.accuracy : "f32"))
        return hapi_err_set(err, HAPI_EINVAL, 0,
                            "accuracy is an error such as 5e-4, or f32, f16, bf16 or int8, not `%s`",
                            l->o.accuracy);
    int rc = profile_open(l, err);
    if (rc)
        return rc;
    l->candidates = calloc(hapi_candidates_max(l->profile), sizeof *l->candidates);
    if (!l->candidates)
        return hapi_err_set(err, HAPI_ENOMEM, 0, "no memory to plan");
    rc = hapi_choose_tried(&l->chosen, l->profile, &l->choose, l->candidates, &all, err);
    if (rc)
        return rc;
    l->int8_wire = l->choose.wires >> HAPI_WIRE_I8 & 1;
    *n = policy_parts(l->profile, &l->chosen, parts);
    l->online = l->choose.policy == HAPI_POLICY_PIPELINE && !l->o.fixed_plan;
    l->most_row = most_row(l->profile, l->choose.wires);
    return 0;
}

static int by_name(struct hapi_loader *l, struct hapi_loader_part *part, struct hapi_err *err)
{
    enum hapi_wire wire;
    int32_t split = 0;

    if (hapi_wire_from_name(&wire, l->o.wire))
        return hapi_err_set(err, HAPI_EINVAL, 0, "wire dtype is f32, f16, bf16 or int8, not `%s`", l->o.wire);
    int rc = l->o.split ? 0 /* the freeze layer is the last of the cuts that a policy may choose from */
                        : hapi_split_choose(l->choose.policy, (int32_t)l->freeze->index + 1,
                                            (int32_t)l->freeze->index, &split, err);

    *part = (struct hapi_loader_part){
        .split = l->o.split                 ? l->o.split
                 : split == HAPI_SPLIT_NONE ? "none"
                                            : l->freeze->id,
        .wire = l->o.wire,
        .share = 1,
    };
    l->int8_wire = strcmp(part->split, "none") && wire == HAPI_WIRE_I8;
    return rc;
}

static int options_agree(const struct hapi_loader *l, struct hapi_err *err)
{
    if (l->o.split && (l->o.profile || l->o.policy))
        return hapi_err_set(err, HAPI_EINVAL, 0, "a split is given, or a policy or profile that finds one");
    if (l->o.profile && l->o.wire)
        return hapi_err_set(err, HAPI_EINVAL, 0,
                            "with a profile the wire dtype is chosen: bound it by accuracy");
    if (!l->o.profile && l->o.accuracy)
        return hapi_err_set(err, HAPI_EINVAL, 0, "accuracy bounds a choice by profile: there is no profile");
    return 0;
}

int policy_open(struct hapi_loader *l, struct hapi_err *err)
{
    struct hapi_loader_part parts[HAPI_CHOICE_PARTS + 1];
    const char *policy = l->o.policy ? l->o.policy : l->o.profile ? "pipeline" : "freeze";
    struct routes *routes = NULL;
    uint32_t n = 1;

    int rc = options_agree(l, err);
    if (!rc)
        rc = hapi_policy_from_name(&l->choose.policy, policy, err);
    if (rc)
        return rc;
    l->o.wire = l->o.wire ? l->o.wire : "f32";
    rc = l->o.profile ? by_profile(l, parts, &n, err) : by_name(l, &parts[0], err);
    if (!rc)
        n = policy_with_probe(l, parts, n);
    if (!rc)
        rc = routes_new(&routes, l, parts, n, NULL, err);
    if (rc)
        return rc;
    routes_use(l, routes);
    l->pushes = routes->offer || l->online;
    return 0;
}

void policy_close(struct hapi_loader *l)
{
    replan_close(l);
    routes_free(l, l->routes);
    free(l->candidates);
    hapi_profile_free(l->profile);
}
