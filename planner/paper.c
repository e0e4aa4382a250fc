/*
 * How HAPI's paper chooses (Petrescu et al., SoCC 2024, arXiv 2210.08650). Version 3, for split k, N images
 * an epoch, training batch B:
 *
 *     S(k)     = waves x (read + prepare + forward [0,k) + serialise + send)        not overlapped
 *     T(k)     = forward [k,freeze) + training step
 *     NP(k)    = deserialise                                                       never overlapped
 *     total(k) = S + (max(S, T) + NP) x (N/B - 1) + NP + T
 *
 * in order of increasing total; what does not fit the compute tier's memory is passed over; if nothing fits,
 * the freeze layer; no pushdown if that is faster. A wave is up to 4 requests of 128 images.
 */
#include <math.h>

#include "choose.h"

enum { WAVE = 4 * 128 };

static double nodes_of(const struct hapi_profile *p)
{
    return p->nodes;
}

/* Bytes a second from all nodes together: the paper has one store behind one link. */
static double bandwidth(const struct hapi_profile *p)
{
    double all = 0;

    for (uint32_t i = 0; i < p->n_node_list; i++)
        all += p->node_list[i].bandwidth_Bps;
    if (!p->n_node_list)
        all = nodes_of(p) * p->bandwidth_Bps;
    return p->client_bandwidth_Bps > 0 && p->client_bandwidth_Bps < all ? p->client_bandwidth_Bps : all;
}

static double servers(const struct hapi_profile_tier *t, bool network)
{
    if (network && t->devices)
        return t->devices;
    return t->cores / (1 + t->contention * (t->cores - 1.0));
}

/* Seconds of an epoch. c NULL: without pushdown, which has no serialising and is prepared on the compute
 * tier. */
static double total(const struct hapi_profile *p, const struct hapi_profile_cut *c, double micro_batch)
{
    double b = p->train_batch < p->images ? p->train_batch : (double)p->images, n = (double)p->images;
    double wave = b < WAVE ? b : WAVE, images = ceil(b / WAVE) * wave, s, t, np = 0;
    double train = b * hapi_curve_at(&p->train_s, b);

    if (c) {
        double serialise = hapi_profile_serialise(p, c, micro_batch);
        double node =
            (hapi_curve_at(&p->storage_prepare_s, micro_batch) + serialise) / servers(&p->storage, false) +
            hapi_curve_at(&c->storage_s, micro_batch) / servers(&p->storage, true);
        s = images * ((hapi_curve_at(&p->read_s, micro_batch) + node) / nodes_of(p) +
                      c->wire_bytes[HAPI_WIRE_F32] / bandwidth(p));
        t = b * hapi_curve_at(&c->compute_s, micro_batch) / servers(&p->compute, true) + train;
        np = b * serialise / servers(&p->compute, false);
    } else {
        s = images * (hapi_curve_at(&p->read_s, micro_batch) / nodes_of(p) + p->source_bytes / bandwidth(p));
        t = b * (hapi_curve_at(&p->source_prepare_s, micro_batch) / servers(&p->compute, false) +
                 hapi_profile_source_compute(p, micro_batch) / servers(&p->compute, true)) +
            train;
    }
    return s + ((s > t ? s : t) + np) * (n / b - 1) + np + t;
}

const struct hapi_candidate *hapi_paper_choose(const struct hapi_profile *p, struct hapi_candidate *c,
                                               size_t n)
{
    const struct hapi_candidate *best = NULL, *freeze = NULL, *none = NULL;

    for (size_t i = 0; i < n; i++) {
        const struct hapi_profile_cut *cut =
            c[i].part.cut < 0 ? NULL : hapi_profile_cut_find(p, (uint32_t)c[i].part.cut);
        if (!c[i].fits || (cut && c[i].part.wire != HAPI_WIRE_F32))
            continue;
        c[i].paper_s = total(p, cut, c[i].part.micro_batch);
        if (!cut) {
            none = &c[i];
            continue;
        }
        freeze = cut->index == p->freeze ? &c[i] : freeze;
        if (cut->compute_memory.fixed + p->train_batch * cut->compute_memory.per_image > p->compute_memory)
            continue;
        if (!best || c[i].paper_s < best->paper_s)
            best = &c[i];
    }
    best = best ? best : freeze;
    return !best || (none && none->paper_s < best->paper_s) ? none : best;
}

static double memory(const struct hapi_profile_memory *m, double images)
{
    return m->fixed + images * m->per_image;
}

/* The first layer whose output is smaller than the input, and than what the link carries in a second, and
 * with which either tier needs less memory than for all of it. */
int32_t hapi_paper_v1_cut(const struct hapi_profile *p)
{
    const struct hapi_profile_cut *first = &p->cuts[0], *freeze = &p->cuts[p->n_cuts - 1];
    double b = p->train_batch, bound = fmin(p->source_bytes * b, bandwidth(p));

    for (uint32_t i = 0; i + 1 < p->n_cuts; i++) {
        const struct hapi_profile_cut *c = &p->cuts[i];
        if (c->wire_bytes[HAPI_WIRE_F32] * b < bound &&
            memory(&c->storage_memory, b) < memory(&freeze->storage_memory, b) &&
            memory(&c->compute_memory, b) < memory(&first->compute_memory, b))
            return (int32_t)c->index;
    }
    return (int32_t)p->freeze;
}
