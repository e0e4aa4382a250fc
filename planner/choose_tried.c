/* What a formula cannot tell is simulated: threads that meet at a device wait for each other in step, or do
 * not. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "choose.h"
#include "sim.h"

enum {
    WHOLE_TRIED = 12,
    AROUND_TRIED = 6,
    SHARES = 9,
    CLIMBS = 3,
    TRAININGS = 8,
    IMAGES = 2048,
    SEEDS = 2,
    SEED = 47
};

static const double NEAR = 1.25;  /* what is predicted to take more times the best is not tried */
static const double GAIN = 0.015; /* less is no reason to take another than the formula's */
static const double TIE = 0.01;   /* as in choose.c: then the nodes need not work */

struct tried {
    const struct hapi_profile *p; /* of as many images as are simulated */
    uint64_t epochs;              /* of the job */
    struct hapi_choice best;
    double seconds;
};

/* As many images as show what a plan is worth, with a part of the caches; a second epoch where one differs.
 */
static struct hapi_profile sample(const struct hapi_profile *p)
{
    struct hapi_profile s = *p;
    uint64_t images = (uint64_t)p->train_batch * TRAININGS;

    images = images > IMAGES ? images : IMAGES;
    if (images < p->images) {
        s.images = images;
        s.storage_cache *= (double)images / (double)p->images;
        s.compute_cache *= (double)images / (double)p->images;
    }
    s.epochs = p->epochs > 1 && p->storage_cache + p->compute_cache > 0 ? 2 : 1;
    return s;
}

/* Seconds of all the job's epochs, as if each had the sample's images; infinite where it cannot be said. By
 * luck alone the same plan takes up to 10 % more or less where threads meet. */
static double simulated(const struct hapi_profile *p, uint64_t epochs, const struct hapi_choice *c)
{
    struct hapi_split_plan plan = hapi_choice_plan(c);
    double sum = 0;

    for (uint64_t i = 0; i < SEEDS; i++) {
        struct hapi_sim_result *r;
        if (hapi_sim_profile_run(&r, p, &plan, SEED + i, NULL))
            return INFINITY;
        const struct hapi_sim_client_result *x = &r->clients[0];
        sum += x->epochs[0].seconds + (double)(epochs - 1) * x->epochs[x->n_epochs - 1].seconds;
        hapi_sim_result_free(r);
    }
    return sum / SEEDS;
}

static void try_choice(struct tried *t, const struct hapi_choice *c, double gain)
{
    double s;

    for (uint32_t i = 0; i < c->n_parts; i++)
        if (!hapi_part_fits(t->p, &c->parts[i]))
            return;
    s = simulated(t->p, t->epochs, c);
    if (s >= t->seconds * (1 - gain))
        return;
    t->best = *c;
    t->seconds = s;
}

/* With other micro-batches, and mixed with images that are not pushed down. */
static void try_around(struct tried *t, const struct hapi_choose_options *o, const struct hapi_candidate *c,
                       const struct hapi_candidate *none)
{
    struct hapi_choice x;

    for (uint32_t b = c->part.micro_batch / 2; !o->micro_batch && b && b <= 2 * c->part.micro_batch; b *= 4) {
        hapi_choice_whole(&x, c);
        x.parts[0].micro_batch = b;
        try_choice(t, &x, GAIN);
    }
    for (int i = 1; i <= SHARES && !o->whole && none->fits && c->part.cut >= 0; i++) {
        x = (struct hapi_choice){.parts = {c->part, none->part}, .n_parts = 2};
        x.parts[0].share = (double)i / (SHARES + 1);
        x.parts[1].share = 1 - x.parts[0].share;
        try_choice(t, &x, GAIN);
    }
}

/* The best again with its first part cut a little earlier or later, with more or less of the images. */
static void try_beside(struct tried *t)
{
    const struct hapi_split_part first = t->best.parts[0];
    bool mixed = t->best.n_parts > 1;

    for (uint32_t i = 0; i < t->p->n_cuts; i++) {
        if ((int32_t)t->p->cuts[i].index != first.cut)
            continue;
        for (uint32_t k = i < 2 ? 0 : i - 2; k <= i + 2 && k < t->p->n_cuts; k++)
            for (int more = mixed ? -1 : 0; more <= (mixed ? 1 : 0); more++) {
                struct hapi_choice x = t->best;
                x.parts[0] = first;
                x.parts[0].cut = (int32_t)t->p->cuts[k].index;
                x.parts[0].share = first.share + 0.1 * more;
                x.parts[1].share = 1 - x.parts[0].share;
                if (t->p->cuts[k].wire_bytes[first.wire] > 0 && (x.n_parts == 1 || x.parts[1].share > 0.01) &&
                    x.parts[0].share > 0.01 && (k != i || more))
                    try_choice(t, &x, GAIN);
            }
    }
}

/* The n best of the candidates as predicted, in order; none of more than NEAR times the best's time. */
static int nearest(const struct hapi_candidate *c, size_t n, const struct hapi_candidate *out[WHOLE_TRIED])
{
    int kept = 0;

    for (size_t i = 0; i < n; i++) {
        int k = kept;
        if (!c[i].fits)
            continue;
        for (; k && out[k - 1]->predicted.epoch_s > c[i].predicted.epoch_s; k--)
            if (k < WHOLE_TRIED)
                out[k] = out[k - 1];
        if (k < WHOLE_TRIED)
            out[k] = &c[i];
        kept += kept < WHOLE_TRIED;
    }
    while (kept && out[kept - 1]->predicted.epoch_s > NEAR * out[0]->predicted.epoch_s)
        kept--;
    return kept;
}

int hapi_choose_tried(struct hapi_choice *out, const struct hapi_profile *p,
                      const struct hapi_choose_options *o, struct hapi_candidate *candidates,
                      size_t *n_candidates, struct hapi_err *err)
{
    const struct hapi_candidate *near[WHOLE_TRIED];
    int rc = hapi_choose(out, p, o, candidates, n_candidates, err);

    if (rc || o->policy != HAPI_POLICY_PIPELINE || !(p->storage.devices || p->compute.devices))
        return rc;
    struct hapi_profile s = sample(p);
    struct tried t = {.p = &s, .epochs = p->epochs, .best = *out, .seconds = simulated(&s, p->epochs, out)};
    int n = nearest(candidates, *n_candidates, near);
    for (int i = 0; i < n; i++) {
        struct hapi_choice x;
        hapi_choice_whole(&x, near[i]);
        try_choice(&t, &x, GAIN);
    }
    for (int i = 0; i < n && i < AROUND_TRIED; i++)
        try_around(&t, o, near[i], &candidates[0]);
    double before = INFINITY;
    for (int i = 0; i < CLIMBS && t.seconds < before; i++) {
        before = t.seconds;
        try_beside(&t);
    }
    if (candidates[0].fits) { /* what is no slower without pushdown is not pushed down */
        struct hapi_choice none;
        hapi_choice_whole(&none, &candidates[0]);
        try_choice(&t, &none, -TIE);
    }
    *out = t.best;
    struct hapi_split_plan plan = hapi_choice_plan(out);
    out->predicted = hapi_predict(p, &plan);
    return HAPI_OK;
}
