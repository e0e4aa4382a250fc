/*
 * Which images of a batch come how. Images keep their part of the plan, and their place in a cache, from
 * epoch to epoch, and every batch has its share of each kind, as near as whole images go.
 *
 * The client keeps the first images that fit, as many of each part as its share; a node keeps activations of
 * those that the client does not keep, and is asked for what it has.
 */
#include <math.h>
#include <stdlib.h>

#include "sim_inside.h"

/* ------------------------------------------------------------------ whole images */

static int by_rest(const void *a, const void *b)
{
    const struct sim_due *x = a, *y = b;

    return x->rest != y->rest ? (x->rest > y->rest ? -1 : 1) : x->number < y->number ? -1 : 1;
}

static int by_number(const void *a, const void *b)
{
    const struct sim_due *x = a, *y = b;

    return x->number < y->number ? -1 : x->number > y->number;
}

/* got[i]: whole numbers near want[i], at most most[i], `total` together (most are at least that together):
 * who is cut by most gets the next one. */
static void apportion(struct sim_due *due, uint32_t n, uint64_t total)
{
    uint64_t given = 0;

    for (uint32_t i = 0; i < n; i++) {
        double want = due[i].want > 0 ? floor(due[i].want) : 0;
        due[i].number = i;
        due[i].got = want < (double)due[i].most ? (uint64_t)want : due[i].most;
        due[i].rest = due[i].want - (double)due[i].got;
        given += due[i].got;
    }
    if (given == total)
        return;
    qsort(due, n, sizeof *due, by_rest);
    while (given < total)
        for (uint32_t i = 0; i < n && given < total; i++)
            if (due[i].got < due[i].most) {
                due[i].got++;
                given++;
            }
    while (given > total)
        for (uint32_t i = n; i-- && given > total;)
            if (due[i].got) {
                due[i].got--;
                given--;
            }
    qsort(due, n, sizeof *due, by_number);
}

/* ------------------------------------------------------------------ the epoch */

/* Parts of a plan take turns: requests of a small part are small, too, or all else would wait for each. */
static uint32_t request_images_of(const struct sim_client *c, const struct hapi_split_part *part)
{
    const struct hapi_split_plan *plan = &c->spec->plan;
    double most = 0;

    for (uint32_t i = 0; i < plan->n_parts; i++)
        most = plan->parts[i].share > most ? plan->parts[i].share : most;
    double n = ceil(c->spec->request_images * part->share / most);
    return n > 1 ? (uint32_t)n : 1;
}

bool sim_lanes_init(struct sim_client *c)
{
    const struct hapi_split_plan *plan = &c->spec->plan;
    const struct hapi_profile *f = c->spec->profile;
    struct hapi_arena *a = c->sim->arena;

    c->n_lanes = plan->n_parts * 2;
    c->lanes = hapi_arena_array(a, c->n_lanes, sizeof *c->lanes);
    c->due = hapi_arena_array(a, c->n_lanes + 1, sizeof *c->due);
    c->part_images = hapi_arena_array(a, plan->n_parts, sizeof *c->part_images);
    c->ring = hapi_arena_array(a, c->spec->depth, sizeof *c->ring);
    if (!c->lanes || !c->due || !c->part_images || !c->ring)
        return false;
    for (uint32_t i = 0; i < c->spec->depth; i++) {
        c->ring[i].left = hapi_arena_array(a, c->n_lanes, sizeof *c->ring[i].left);
        c->ring[i].total = hapi_arena_array(a, c->n_lanes, sizeof *c->ring[i].total);
        if (!c->ring[i].left || !c->ring[i].total)
            return false;
    }
    for (uint32_t i = 0; i < c->n_lanes; i++) {
        struct sim_lane *l = &c->lanes[i];
        l->part = &plan->parts[i / 2];
        l->kept = i % 2;
        l->cut = l->part->cut < 0 ? NULL : hapi_profile_cut_find(f, (uint32_t)l->part->cut);
        l->request_images = request_images_of(c, l->part);
        l->bytes = l->cut ? l->cut->wire_bytes[l->part->wire] : f->source_bytes;
    }
    for (uint32_t i = 0; i < plan->n_parts; i++) {
        c->due[i].want = (double)f->images * plan->parts[i].share;
        c->due[i].most = f->images;
    }
    apportion(c->due, plan->n_parts, f->images);
    for (uint32_t i = 0; i < plan->n_parts; i++)
        c->part_images[i] = c->due[i].got;
    return true;
}

/* Images of each part in the client's cache: due[].got. */
static void cache_client(struct sim_client *c)
{
    const struct hapi_profile *f = c->spec->profile;
    double fit = floor(f->compute_cache / c->feature_bytes);
    uint32_t n = c->spec->plan.n_parts;

    c->cached = !c->epoch ? 0 : fit < (double)f->images ? (uint64_t)fit : f->images;
    for (uint32_t i = 0; i < n; i++) {
        c->due[i].want = (double)c->cached * (double)c->part_images[i] / (double)f->images;
        c->due[i].most = c->part_images[i];
    }
    apportion(c->due, n, c->cached);
}

/* Bytes that each node would have to keep for all that is not in the client's cache. */
static void cache_demand(struct sim_client *c)
{
    double any = 0;

    for (uint32_t i = 0; i < c->spec->n_nodes; i++)
        c->sessions[i].cache = 0;
    for (uint32_t i = 0; i < c->n_lanes; i += 2) {
        const struct sim_lane *l = &c->lanes[i];
        double bytes = l->cut ? (double)l->total * l->bytes : 0;
        if (l->part->node < 0)
            any += bytes / c->spec->n_nodes;
        else
            c->sessions[l->part->node].cache += bytes;
    }
    for (uint32_t i = 0; i < c->spec->n_nodes; i++)
        c->sessions[i].cache += any;
}

/* The part of it that fits: of one node's, or of all that serve the part. */
static double cache_fits(const struct sim_client *c, int32_t node)
{
    double room = c->spec->profile->storage_cache, all = 0;

    for (uint32_t i = 0; i < c->spec->n_nodes; i++) {
        double want = c->sessions[i].cache, fits = want > room ? room / want : 1;
        if (node >= 0 && (uint32_t)node == i)
            return fits;
        all += fits;
    }
    return all / c->spec->n_nodes;
}

void sim_lanes_epoch(struct sim_client *c)
{
    double any;

    cache_client(c);
    for (uint32_t i = 0; i < c->n_lanes; i++) {
        struct sim_lane *l = &c->lanes[i];
        l->total = l->kept ? 0 : c->part_images[i / 2] - c->due[i / 2].got;
        l->given = 0;
        l->cursor = 0;
    }
    c->cached_given = 0;
    if (!c->epoch || c->spec->profile->storage_cache <= 0)
        return;
    cache_demand(c);
    any = cache_fits(c, HAPI_PLAN_ANY_NODE);
    for (uint32_t i = 0; i < c->n_lanes; i += 2) {
        struct sim_lane *l = &c->lanes[i];
        double fits = l->part->node < 0 ? any : cache_fits(c, l->part->node);
        l[1].total = l->cut ? (uint64_t)floor((double)l->total * fits) : 0;
        l->total -= l[1].total;
    }
}

void sim_lanes_open(struct sim_client *c)
{
    const struct hapi_profile *f = c->spec->profile;
    struct sim_batch *b = &c->ring[c->opened % c->spec->depth];
    uint64_t from = (uint64_t)c->opened * f->train_batch, rest = f->images - from;
    double to;

    b->n = rest < f->train_batch ? (uint32_t)rest : f->train_batch;
    to = (double)(from + b->n) / (double)f->images;
    for (uint32_t i = 0; i <= c->n_lanes; i++) {
        uint64_t total = i < c->n_lanes ? c->lanes[i].total : c->cached;
        uint64_t given = i < c->n_lanes ? c->lanes[i].given : c->cached_given;
        c->due[i].want = (double)total * to - (double)given;
        c->due[i].most = total - given;
    }
    apportion(c->due, c->n_lanes + 1, b->n);
    for (uint32_t i = 0; i < c->n_lanes; i++) {
        b->left[i] = b->total[i] = (uint32_t)c->due[i].got;
        c->lanes[i].given += c->due[i].got;
    }
    c->cached_given += c->due[c->n_lanes].got;
    b->missing = b->n - (uint32_t)c->due[c->n_lanes].got;
    c->unasked += b->missing;
    c->opened++;
}

/* ------------------------------------------------------------------ requests */

/* What l could ask for now is in batch l->cursor; false: all open batches have their share of it. */
static bool lane_wants(struct sim_client *c, struct sim_lane *l)
{
    uint32_t i = (uint32_t)(l - c->lanes);

    while (l->cursor < c->opened && !c->ring[l->cursor % c->spec->depth].left[i])
        l->cursor++;
    return l->cursor < c->opened;
}

static bool lane_has_room(const struct sim_client *c, const struct sim_lane *l)
{
    uint32_t slots = c->spec->slots;

    return l->part->node < 0 ? c->in_flight < (uint64_t)slots * c->spec->n_nodes
                             : c->sessions[l->part->node].in_flight < slots;
}

/* The lane that is furthest behind: earliest batch, least part of it asked for. */
static struct sim_lane *lane_next(struct sim_client *c)
{
    struct sim_lane *best = NULL;
    double least = 0;

    for (uint32_t i = 0; i < c->n_lanes; i++) {
        struct sim_lane *l = &c->lanes[i];
        if (!lane_wants(c, l) || !lane_has_room(c, l))
            continue;
        const struct sim_batch *b = &c->ring[l->cursor % c->spec->depth];
        double asked = 1 - (double)b->left[i] / b->total[i];
        if (!best || l->cursor < best->cursor || (l->cursor == best->cursor && asked < least)) {
            best = l;
            least = asked;
        }
    }
    return best;
}

static struct sim_session *lane_session(struct sim_client *c, const struct sim_lane *l)
{
    struct sim_session *s;

    if (l->part->node >= 0)
        return &c->sessions[l->part->node];
    do {
        s = &c->sessions[c->turn];
        c->turn = c->turn + 1 == c->spec->n_nodes ? 0 : c->turn + 1;
    } while (s->in_flight == c->spec->slots);
    return s;
}

static void request_arrive(struct sim_event *e)
{
    sim_node_request((struct sim_request *)((char *)e - offsetof(struct sim_request, arrive)));
}

static bool request_send(struct sim_client *c, struct sim_lane *l)
{
    struct sim_request *r = sim_request_take(c->sim);
    struct sim_batch *b = &c->ring[l->cursor % c->spec->depth];
    uint32_t i = (uint32_t)(l - c->lanes);

    if (!r)
        return false;
    *r = (struct sim_request){
        .session = lane_session(c, l),
        .lane = l,
        .batch = l->cursor,
        .n = b->left[i] < l->request_images ? b->left[i] : l->request_images,
        .key = ((uint64_t)c->epoch << 40 ^ (uint64_t)i << 52) +
               (uint64_t)l->cursor * c->spec->profile->train_batch + b->total[i] - b->left[i],
        .arrive = {.fire = request_arrive},
    };
    b->left[i] -= r->n;
    c->unasked -= r->n;
    c->in_flight++;
    r->session->in_flight++;
    c->now.requests++;
    c->now.wire_bytes += r->n * l->bytes;
    *(l->cut ? &c->now.pushed : &c->now.raw) += r->n;
    c->now.from_node_cache += l->kept ? r->n : 0;
    sim_event_set(&c->sim->events, &r->arrive,
                  sim_now(c->sim) + sim_jitter(c, c->spec->profile->latency_s, r->key, SIM_DRAW_LATENCY));
    return true;
}

void sim_lanes_pump(struct sim_client *c)
{
    struct sim_lane *l;

    while (c->unasked && (l = lane_next(c)) && request_send(c, l))
        continue;
}
