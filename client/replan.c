/*
 * A job planned anew while it runs. Twice a second, beside all else: what the job has shown goes into its
 * profile, and the planner chooses again. A plan that is faster by a tenth, twice in a row, is compiled and
 * handed to the I/O thread, which uses it from its next request on.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "clock.h"
#include "loader.h"
#include "scale.h"

enum { LOOK_MS = 500, BYTES_MIN = 256 << 10, IMAGES_MIN = 16 };

/* GAIN: what a new plan must save. TOLERANCE: by how much what is seen may differ from what the profile says,
 * and mean nothing. FOLLOW: how far towards what is seen the profile goes, at a time. */
static const double GAIN = 0.1, TOLERANCE = 1.3, FOLLOW = 0.7;

/* What has been seen since the last look. */
struct seen {
    double bytes[HAPI_NODES_MAX], busy_s[HAPI_NODES_MAX];
    struct route_seen route[ROUTES_MAX];
    double caller_s;
    uint64_t caller_images;
};

/* ------------------------------------------------------------------ what was seen, into the profile */

/* Lock held. */
static void seen_take(struct hapi_loader *l, const struct routes *now, struct seen *s)
{
    for (uint32_t i = 0; i < l->n_nodes; i++) {
        struct link_seen *k = &l->nodes[i].link;
        s->bytes[i] += k->bytes;
        s->busy_s[i] += k->busy_s;
        k->bytes = k->busy_s = 0;
    }
    for (uint32_t i = 0; i < now->n; i++) {
        struct route_seen *from = &((struct routes *)now)->route[i].seen, *to = &s->route[i];
        to->parts += from->parts;
        to->images += from->images;
        to->node_s += from->node_s;
        to->chunks += from->chunks;
        to->chunk_images += from->chunk_images;
        to->here_s += from->here_s;
        *from = (struct route_seen){.parts = 0};
    }
    s->caller_s += l->caller_s;
    s->caller_images += l->caller_images;
    l->caller_s = 0;
    l->caller_images = 0;
}

static void link_learn(struct hapi_profile *p, struct seen *s)
{
    for (uint32_t i = 0; i < p->nodes; i++) {
        double *rate = p->n_node_list ? &p->node_list[i].bandwidth_Bps : &p->bandwidth_Bps;
        if (s->bytes[i] < BYTES_MIN || s->busy_s[i] <= 0)
            continue;
        *rate *= pow(s->bytes[i] / s->busy_s[i] / *rate, FOLLOW);
        s->bytes[i] = s->busy_s[i] = 0;
    }
}

/* What takes `seen` seconds and was expected to take `expected`, or up to `slack` times as long. */
static void speed_learn(struct hapi_profile *p, enum hapi_scale what, double seen, double expected,
                        double slack)
{
    double ratio = seen / expected;

    if (!(expected > 0) || !(seen > 0) || (ratio < TOLERANCE * slack && ratio * TOLERANCE > 1))
        return;
    ratio = ratio > 1 ? ratio / slack : ratio;
    hapi_profile_scale(p, what, pow(1 / ratio, FOLLOW));
}

/* Of k busy cores each is slower: how much, when all are. */
static double slack(const struct hapi_profile_tier *t)
{
    return t->devices ? 1 : 1 + t->contention * (t->cores - 1);
}

static void tiers_learn(struct hapi_profile *p, const struct routes *now, struct seen *s)
{
    double node = 0, node_expected = 0, here = 0, here_expected = 0;

    for (uint32_t i = 0; i < now->n; i++) {
        const struct route *w = &now->route[i];
        struct route_seen *r = &s->route[i];
        const struct hapi_profile_cut *cut =
            w->profiled < 0 ? NULL : hapi_profile_cut_find(p, (uint32_t)w->profiled);
        if (r->images >= IMAGES_MIN) {
            double b = (double)r->images / (double)r->parts;
            node += r->node_s;
            node_expected += (double)r->images *
                             (hapi_curve_at(&cut->storage_s, b) + hapi_curve_at(&p->storage_prepare_s, b));
            r->images = r->parts = 0;
            r->node_s = 0;
        }
        if (r->chunk_images >= IMAGES_MIN) {
            double b = (double)r->chunk_images / (double)r->chunks;
            here += r->here_s;
            here_expected += (double)r->chunk_images * (cut ? hapi_curve_at(&cut->compute_s, b)
                                                            : hapi_profile_source_compute(p, b) +
                                                                  hapi_curve_at(&p->source_prepare_s, b));
            r->chunk_images = r->chunks = 0;
            r->here_s = 0;
        }
    }
    speed_learn(p, HAPI_SCALE_STORAGE, node, node_expected, slack(&p->storage));
    speed_learn(p, HAPI_SCALE_COMPUTE, here, here_expected, slack(&p->compute));
    if (s->caller_images >= IMAGES_MIN) {
        double batch = (double)p->train_batch;
        speed_learn(p, HAPI_SCALE_TRAIN, s->caller_s,
                    (double)s->caller_images * hapi_curve_at(&p->train_s, batch), 1);
        s->caller_images = 0;
        s->caller_s = 0;
    }
}

/* ------------------------------------------------------------------ the next plan */

static void profiled(struct routes *r, const struct hapi_choice *c)
{
    for (uint32_t i = 0; i < r->n; i++)
        r->route[i].profiled = i < c->n_parts ? c->parts[i].cut : HAPI_SPLIT_NONE;
}

static bool same(const struct hapi_choice *a, const struct hapi_choice *b)
{
    bool same = a->n_parts == b->n_parts;

    for (uint32_t i = 0; same && i < a->n_parts; i++)
        same = a->parts[i].cut == b->parts[i].cut && a->parts[i].wire == b->parts[i].wire;
    return same;
}

/* NULL: it cannot be carried out, for want of memory, say. */
static struct routes *compile(struct hapi_loader *l, const struct routes *now, const struct hapi_choice *c)
{
    struct hapi_loader_part parts[HAPI_CHOICE_PARTS + 1];
    struct routes *r;
    uint32_t n = policy_with_probe(l, parts, policy_parts(l->profile, c, parts));

    if (routes_new(&r, l, parts, n, now, NULL))
        return NULL;
    profiled(r, c);
    for (uint32_t i = 0; i < r->n; i++)
        if (!r->route[i].direct && r->route[i].wire_row > l->slot_bytes) {
            routes_free(l, r);
            return NULL;
        }
    return r;
}

/* Lock held: what becomes of the job is kept, for whoever asks. */
static void record(struct hapi_loader *l, const struct hapi_choice *c, double before_s, double seconds)
{
    const struct hapi_profile *p = l->profile;
    uint32_t at = l->n_replans++;

    if (at >= REPLANS_MAX)
        return;
    struct hapi_loader_replan *x = &l->replans[at];
    *x = (struct hapi_loader_replan){
        .seconds = seconds,
        .samples = l->delivered,
        .bandwidth_Bps = p->n_node_list ? p->node_list[0].bandwidth_Bps : p->bandwidth_Bps,
        .epoch_s = c->predicted.epoch_s,
        .before_s = before_s,
    };
    x->n_parts = policy_parts(p, c, x->parts);
}

static void free_retired(struct hapi_loader *l)
{
    pthread_mutex_lock(&l->lock);
    struct routes *r = l->retired, *next;
    l->retired = NULL;
    pthread_mutex_unlock(&l->lock);
    for (; r; r = next) {
        next = r->next;
        routes_free(l, r);
    }
}

/* Until the next look; false: no more. *idle: nobody waits for a plan that was handed over before. */
static bool wait(struct hapi_loader *l, const struct routes *now, struct seen *s, bool *idle)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    t.tv_nsec += LOOK_MS * HAPI_NS_PER_MS;
    t.tv_sec += t.tv_nsec / HAPI_NS_PER_S;
    t.tv_nsec %= HAPI_NS_PER_S;
    pthread_mutex_lock(&l->lock);
    while (!l->replanner_ends && !l->failure.set && pthread_cond_timedwait(&l->replan, &l->lock, &t) == 0)
        continue;
    bool more = !l->replanner_ends && !l->failure.set;
    *idle = !l->handed;
    seen_take(l, now, s);
    pthread_mutex_unlock(&l->lock);
    return more;
}

/* What is better by enough than what takes now_s, and was not refused. Predicted first: it costs nothing. */
static bool better_plan(struct hapi_loader *l, double now_s, const struct hapi_choice *refused,
                        struct hapi_choice *best)
{
    typedef int choose(struct hapi_choice *, const struct hapi_profile *, const struct hapi_choose_options *,
                       struct hapi_candidate *, size_t *, struct hapi_err *);
    choose *const ways[] = {hapi_choose, hapi_choose_tried};
    size_t n;

    for (size_t i = 0; i < sizeof ways / sizeof *ways; i++)
        if (ways[i](best, l->profile, &l->choose, l->candidates, &n, NULL) ||
            best->predicted.epoch_s >= (1 - GAIN) * now_s || same(best, refused))
            return false;
    return true;
}

static void *replan_thread(void *arg)
{
    struct hapi_loader *l = arg;
    struct routes *now = l->routes;
    struct seen seen = {.caller_s = 0};
    struct hapi_choice refused = {.n_parts = 0};
    int64_t started = hapi_clock_ns();
    bool idle, before = false;

    profiled(now, &l->chosen);
    while (wait(l, now, &seen, &idle)) {
        struct hapi_choice best;
        free_retired(l);
        link_learn(l->profile, &seen);
        tiers_learn(l->profile, now, &seen);
        if (!idle)
            continue;
        const struct hapi_split_plan plan = hapi_choice_plan(&l->chosen);
        double now_s = hapi_predict(l->profile, &plan).epoch_s;
        bool better = better_plan(l, now_s, &refused, &best);
        struct routes *next = better && before ? compile(l, now, &best) : NULL;
        if (better && before && !next)
            refused = best;
        before = better && !next;
        if (!next)
            continue;
        pthread_mutex_lock(&l->lock);
        record(l, &best, now_s, 1e-9 * (double)(hapi_clock_ns() - started));
        l->handed = now = next;
        memset(seen.route, 0, sizeof seen.route);
        pthread_mutex_unlock(&l->lock);
        l->chosen = best;
        hapi_loop_wake(l->loop);
    }
    return NULL;
}

int replan_start(struct hapi_loader *l, struct hapi_err *err)
{
    if (!l->online)
        return 0;
    int rc = pthread_create(&l->replanner, NULL, replan_thread, l);
    if (rc)
        return hapi_err_errno(err, rc, "cannot start the planning thread");
    l->replanner_started = true;
    return 0;
}

void replan_stop(struct hapi_loader *l)
{
    if (!l->replanner_started)
        return;
    pthread_mutex_lock(&l->lock);
    l->replanner_ends = true;
    pthread_cond_signal(&l->replan);
    pthread_mutex_unlock(&l->lock);
    pthread_join(l->replanner, NULL);
    l->replanner_started = false;
}

void replan_close(struct hapi_loader *l)
{
    free_retired(l);
    routes_free(l, l->handed);
    routes_free(l, l->next_routes);
}
