/* Policy `pipeline` and the table of candidates that every policy chooses from. */
#include "choose.h"

#include <math.h>
#include <string.h>

enum { FIRST_TRIED = 8, MICRO_GAIN = 8, MIX_CUTS = 24, MIX_TRIED = 6, MIX_STEPS = 24, MIX_MICRO = 8 };

/* What is predicted to be better by less is a tie: then the storage tier works less, the plan is simpler, the
 * micro-batch smaller. */
static const double TIE = 0.01, MIX_GAIN = 0.015, CUTS_GAIN = 0.05, MICRO_TIE = 0.02, MIX_TIE = 0.02;

static const uint32_t micro_batches[] = {1, 2, 4, 8, 16, 32};
enum { MICRO_BATCHES = sizeof micro_batches / sizeof *micro_batches };

size_t hapi_candidates_max(const struct hapi_profile *p)
{
    return 1 + (size_t)p->n_cuts * HAPI_WIRES_N;
}

/* ------------------------------------------------------------------ all images the same way */

static struct hapi_prediction whole(const struct hapi_profile *p, const struct hapi_split_part *part)
{
    return hapi_predict(p, &(struct hapi_split_plan){part, 1});
}

/* With this micro-batch; or, where it does not fit, the largest of ours that does. */
static struct hapi_candidate candidate(const struct hapi_profile *p, int32_t cut, enum hapi_wire wire,
                                       uint32_t micro_batch)
{
    struct hapi_candidate c = {
        .part = {cut, wire, micro_batch ? micro_batch : FIRST_TRIED, HAPI_PLAN_ANY_NODE, 1}};

    c.fits = hapi_part_fits(p, &c.part);
    for (int i = MICRO_BATCHES; !micro_batch && !c.fits && i--;) {
        c.part.micro_batch = micro_batches[i];
        c.fits = hapi_part_fits(p, &c.part);
    }
    if (c.fits)
        c.predicted = whole(p, &c.part);
    return c;
}

/* At its best micro-batch: the smallest of those that are about as good. */
static void candidate_improve(const struct hapi_profile *p, struct hapi_candidate *c)
{
    struct hapi_candidate best = *c;
    bool first = true;

    for (int i = 0; i < MICRO_BATCHES; i++) {
        struct hapi_candidate x = *c;
        x.part.micro_batch = micro_batches[i];
        if (!hapi_part_fits(p, &x.part))
            break; /* nor does a larger one */
        x.predicted = whole(p, &x.part);
        if (first || x.predicted.epoch_s < best.predicted.epoch_s * (1 - MICRO_TIE))
            best = x;
        first = false;
    }
    *c = best;
}

/* What is far from the best is left at the first micro-batch: another one does not make it so much better. */
static void candidates_improve(const struct hapi_profile *p, struct hapi_candidate *c, size_t n)
{
    double best = INFINITY;

    for (size_t i = 0; i < n; i++)
        if (c[i].fits && c[i].predicted.epoch_s < best)
            best = c[i].predicted.epoch_s;
    for (size_t i = 0; i < n; i++)
        if (c[i].fits && c[i].predicted.epoch_s <= MICRO_GAIN * best)
            candidate_improve(p, &c[i]);
}

size_t hapi_candidates(const struct hapi_profile *p, const struct hapi_choose_options *o,
                       struct hapi_candidate *out)
{
    uint32_t wires = o->wires ? o->wires : 1u << HAPI_WIRE_F32;
    size_t n = 0;

    out[n++] = candidate(p, HAPI_SPLIT_NONE, HAPI_WIRE_RAW, o->micro_batch);
    for (uint32_t i = 0; i < p->n_cuts; i++)
        for (int w = 0; w < HAPI_WIRES_N; w++)
            if (wires >> w & 1 && p->cuts[i].wire_bytes[w] > 0)
                out[n++] = candidate(p, (int32_t)p->cuts[i].index, (enum hapi_wire)w, o->micro_batch);
    if (!o->micro_batch)
        candidates_improve(p, out, n);
    return n;
}

/* The fastest; of those about as fast the one for which the nodes work least. NULL: none fits. */
static const struct hapi_candidate *best_whole(const struct hapi_candidate *c, size_t n)
{
    const struct hapi_candidate *best = NULL;
    double least = INFINITY;

    for (size_t i = 0; i < n; i++)
        if (c[i].fits && c[i].predicted.epoch_s < least)
            least = c[i].predicted.epoch_s;
    for (size_t i = 0; i < n; i++) {
        if (!c[i].fits || c[i].predicted.epoch_s > least * (1 + TIE))
            continue;
        if (!best || c[i].predicted.storage_work_s < best->predicted.storage_work_s ||
            (c[i].predicted.storage_work_s <= best->predicted.storage_work_s &&
             c[i].predicted.epoch_s < best->predicted.epoch_s))
            best = &c[i];
    }
    return best;
}

/* ------------------------------------------------------------------ some images one way, some another */

/* The longest load with part r of the images as a says and the rest as b says. */
static double mixed_load(const struct hapi_candidate *a, const struct hapi_candidate *b, double r)
{
    double longest = 0;

    for (int i = 0; i < HAPI_LOADS_N; i++) {
        double s = r * a->predicted.load_s[i] + (1 - r) * b->predicted.load_s[i];
        longest = s > longest ? s : longest;
    }
    return longest;
}

static double mixed_epoch(const struct hapi_profile *p, const struct hapi_candidate *a,
                          const struct hapi_candidate *b, double r, struct hapi_choice *out)
{
    *out = (struct hapi_choice){.parts = {a->part, b->part}, .n_parts = 2};
    out->parts[0].share = r;
    out->parts[1].share = 1 - r;
    struct hapi_split_plan plan = hapi_choice_plan(out);
    out->predicted = hapi_predict(p, &plan);
    return out->predicted.epoch_s;
}

/* The lowest point of what first falls and then rises. */
static double lowest(double (*f)(const void *arg, double r), const void *arg)
{
    double lo = 0, hi = 1;

    for (int i = 0; i < MIX_STEPS; i++) {
        double a = lo + (hi - lo) / 3, b = hi - (hi - lo) / 3;
        if (f(arg, a) <= f(arg, b))
            hi = b;
        else
            lo = a;
    }
    return (lo + hi) / 2;
}

struct pair {
    const struct hapi_profile *p;
    const struct hapi_candidate *a, *b;
    double bound; /* no mix of them is predicted to take less */
};

static double pair_load(const void *arg, double r)
{
    const struct pair *x = arg;

    return mixed_load(x->a, x->b, r);
}

static double pair_epoch(const void *arg, double r)
{
    const struct pair *x = arg;
    struct hapi_choice c;

    return mixed_epoch(x->p, x->a, x->b, r, &c);
}

/* Keeps the MIX_TRIED pairs with the lowest bounds, in order. */
static void pair_keep(struct pair *best, int *n, struct pair x)
{
    int i = *n < MIX_TRIED ? (*n)++ : MIX_TRIED - 1;

    if (i == MIX_TRIED - 1 && *n == MIX_TRIED && best[i].a && best[i].bound <= x.bound)
        return;
    for (; i && best[i - 1].bound > x.bound; i--)
        best[i] = best[i - 1];
    best[i] = x;
}

/* The most promising ones that are pushed down, by whole plans: mixing two bad ones is rarely good. */
static int promising(const struct hapi_candidate *c, size_t n, const struct hapi_candidate **out)
{
    int kept = 0;

    for (size_t i = 1; i < n; i++) {
        if (!c[i].fits)
            continue;
        int k = kept < MIX_CUTS ? kept++ : MIX_CUTS - 1;
        if (k == MIX_CUTS - 1 && out[k] && out[k]->predicted.epoch_s <= c[i].predicted.epoch_s)
            continue;
        for (; k && out[k - 1]->predicted.epoch_s > c[i].predicted.epoch_s; k--)
            out[k] = out[k - 1];
        out[k] = &c[i];
    }
    return kept;
}

static void micro_batch_grow(struct hapi_split_part *part, uint32_t by)
{
    uint32_t most = micro_batches[MICRO_BATCHES - 1], b = part->micro_batch * by;

    if (part->micro_batch < most)
        part->micro_batch = b < most ? b : most;
}

/* The best mixes of the pairs, where one is better than *out by enough. */
static void pairs_try(const struct hapi_profile *p, const struct pair *tried, int n, double gain,
                      struct hapi_choice *out)
{
    for (int i = 0; i < n; i++)
        for (uint32_t more = MIX_MICRO; more; more /= 2) {
            /* Larger ones first: what is computed ahead fills the time in which the other part has the link.
             */
            struct hapi_candidate a = *tried[i].a, b = *tried[i].b;
            struct pair x = {p, &a, &b, 0};
            struct hapi_choice y;
            micro_batch_grow(&a.part, more);
            micro_batch_grow(&b.part, b.part.cut < 0 ? 1 : more);
            if (hapi_part_fits(p, &a.part) && hapi_part_fits(p, &b.part) &&
                mixed_epoch(p, &a, &b, lowest(pair_epoch, &x), &y) < out->predicted.epoch_s * (1 - gain)) {
                *out = y;
                gain = MIX_TIE;
            }
        }
}

static void best_mixed(const struct hapi_profile *p, const struct hapi_candidate *c, size_t n,
                       struct hapi_choice *out)
{
    const struct hapi_candidate *cuts[MIX_CUTS] = {NULL};
    struct pair raw[MIX_TRIED] = {{.a = NULL}}, two[MIX_TRIED] = {{.a = NULL}};
    int n_cuts = promising(c, n, cuts), n_raw = 0, n_two = 0;

    for (int i = 0; i < n_cuts; i++)
        for (int k = c[0].fits ? -1 : 0; k < i; k++) {
            bool later = k < 0 || cuts[i]->part.cut >= cuts[k]->part.cut;
            struct pair x = {p, later ? cuts[i] : cuts[k], k < 0 ? &c[0] : later ? cuts[k] : cuts[i], 0};
            x.bound = mixed_load(x.a, x.b, lowest(pair_load, &x));
            pair_keep(k < 0 ? raw : two, k < 0 ? &n_raw : &n_two, x);
        }
    pairs_try(p, raw, n_raw, MIX_GAIN, out);
    pairs_try(p, two, n_two, CUTS_GAIN, out);
}

void hapi_choice_whole(struct hapi_choice *out, const struct hapi_candidate *c)
{
    *out = (struct hapi_choice){.parts = {c->part}, .n_parts = 1, .predicted = c->predicted};
}

static bool pipeline(struct hapi_choice *out, const struct hapi_profile *p,
                     const struct hapi_choose_options *o, const struct hapi_candidate *c, size_t n)
{
    const struct hapi_candidate *best = best_whole(c, n);

    if (!best)
        return false;
    hapi_choice_whole(out, best);
    if (!o->whole)
        best_mixed(p, c, n, out);
    return true;
}

/* ------------------------------------------------------------------ by policy */

static const struct hapi_candidate *at_cut(const struct hapi_candidate *c, size_t n, int32_t cut)
{
    for (size_t i = 0; i < n; i++)
        if (c[i].part.cut == cut && c[i].fits)
            return &c[i]; /* the widest dtype */
    return NULL;
}

int hapi_choose(struct hapi_choice *out, const struct hapi_profile *p, const struct hapi_choose_options *o,
                struct hapi_candidate *candidates, size_t *n_candidates, struct hapi_err *err)
{
    size_t n = hapi_candidates(p, o, candidates);
    const struct hapi_candidate *one = NULL;
    bool found = false;

    *n_candidates = n;
    switch (o->policy) {
    case HAPI_POLICY_NONE:
        one = at_cut(candidates, n, HAPI_SPLIT_NONE);
        break;
    case HAPI_POLICY_FREEZE:
        one = at_cut(candidates, n, (int32_t)p->freeze);
        break;
    case HAPI_POLICY_HAPI:
        one = hapi_paper_choose(p, candidates, n);
        break;
    case HAPI_POLICY_HAPI_V1:
        one = at_cut(candidates, n, hapi_paper_v1_cut(p));
        break;
    case HAPI_POLICY_PIPELINE:
        found = pipeline(out, p, o, candidates, n);
        break;
    }
    if (one)
        hapi_choice_whole(out, one);
    if (one || found)
        return HAPI_OK;
    return hapi_err_set(err, HAPI_ENOMEM, 0,
                        "%s: storage_memory and compute_memory are too small for what policy %s may choose",
                        p->model, hapi_policy_name(o->policy));
}
