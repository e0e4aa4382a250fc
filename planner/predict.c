#include "predict.h"

#include <math.h>
#include <string.h>

/* What libhapi and hapi-rt do unless they are told otherwise: requests in flight to a node, batches begun and
 * not trained, images of one job of the compute tier and of a request, micro-batches of a node and those of
 * them out of one client's reach (one in so many), micro-batches of a device beyond one for each core. */
enum { SLOTS = 16, DEPTH = 4, CHUNK = 8, REQUEST_IMAGES = 32, BATCHES = 8, BATCHES_KEPT = 8, PLANS_MORE = 2 };

/* Two stages of the same length take 1.017 times as long as one of them. */
static const double NEAR = 40, FAR = 0.6; /* below that part of it, nothing is added */

static const char *const names[] = {
#define X(load, name) [load] = name,
    HAPI_LOADS(X)
#undef X
};

const char *hapi_load_name(enum hapi_load load)
{
    return names[load];
}

bool hapi_part_fits(const struct hapi_profile *p, const struct hapi_split_part *part)
{
    const struct hapi_profile_cut *c =
        part->cut < 0 ? &p->cuts[0] : hapi_profile_cut_find(p, (uint32_t)part->cut);
    double b = part->micro_batch;

    return c->compute_memory.fixed + b * c->compute_memory.per_image <= p->compute_memory &&
           (part->cut < 0 || c->storage_memory.fixed + b * c->storage_memory.per_image <= p->storage_memory);
}

/* ------------------------------------------------------------------ what an image of a part loads */

/* Seconds of one server, of a node of speed 1; bytes. */
struct cost {
    double read, core, device, bytes; /* of a node */
    double ccore, cdevice;            /* of the client */
    double piece;                     /* images that a node reads, computes and sends at once */
    double request;                   /* images of a request: parts take turns, small ones with small ones */
};

static double most_share(const struct hapi_split_plan *plan)
{
    double most = 0;

    for (uint32_t i = 0; i < plan->n_parts; i++)
        most = plan->parts[i].share > most ? plan->parts[i].share : most;
    return most;
}

static double request_images(const struct hapi_profile *p)
{
    double r = p->request_images ? p->request_images : REQUEST_IMAGES;

    return r < p->train_batch ? r : p->train_batch;
}

static double smaller(double a, double b)
{
    return a < b ? a : b;
}

static double larger(double a, double b)
{
    return a > b ? a : b;
}

/* The time of two stages side by side: that of the longer one, and a little more the nearer they are to each
 * other, since each then waits for the other now and then. */
static double beside(double a, double b)
{
    double most = larger(a, b), least = smaller(a, b);

    return least <= FAR * most ? most : most * pow(1 + pow(least / most, NEAR), 1 / NEAR);
}

static struct cost cost_of(const struct hapi_profile *p, const struct hapi_split_plan *plan,
                           const struct hapi_split_part *part)
{
    const struct hapi_profile_cut *c = part->cut < 0 ? NULL : hapi_profile_cut_find(p, (uint32_t)part->cut);
    double request = larger(1, ceil(request_images(p) * part->share / most_share(plan)));
    double piece = smaller(part->micro_batch, request), chunk = smaller(piece, CHUNK);
    struct cost k = {.read = hapi_curve_at(&p->read_s, piece), .piece = piece, .request = request};
    double network, other;

    if (!c) {
        k.bytes = p->source_bytes;
        other = hapi_curve_at(&p->source_prepare_s, chunk);
        network = hapi_profile_source_compute(p, chunk);
    } else {
        double storage = hapi_curve_at(&c->storage_s, piece);
        double convert = hapi_profile_convert(p, c, part->wire, piece);
        k.bytes = c->wire_bytes[part->wire];
        k.core = hapi_curve_at(&p->storage_prepare_s, piece) + hapi_profile_serialise(p, c, piece);
        if (p->storage.devices) /* their plans give the wire's dtype */
            k.device = storage;
        else
            k.core += storage + convert;
        other = hapi_profile_convert(p, c, part->wire, chunk) + hapi_profile_serialise(p, c, chunk);
        network = hapi_curve_at(&c->compute_s, chunk);
    }
    k.ccore = other;
    *(p->compute.devices ? &k.cdevice : &k.ccore) += network;
    return k;
}

/* Seconds between two of `jobs` jobs that go round, each `cores` seconds of one of as many cores and then
 * `service` seconds of what they share. They meet there at random: Schweitzer's approximation of the queue.
 */
static double held(double jobs, double cores, double service)
{
    double queue = 0, wait = service;

    for (int i = 0; i < 12; i++) {
        wait = service * (1 + queue * (jobs - 1) / jobs);
        queue = jobs * wait / (cores + wait);
    }
    return larger(service, (cores + wait) / jobs);
}

/* Images that `servers` shared ones can do at once, in units of one alone. */
static double servers_of(double n, double contention)
{
    return n > 0 ? n / (1 + contention * (n - 1)) : 0;
}

/* ------------------------------------------------------------------ an epoch */

struct node {
    double bandwidth, cores, speed;
};

static struct node node_of(const struct hapi_profile *p, uint32_t i)
{
    if (i < p->n_node_list)
        return (struct node){p->node_list[i].bandwidth_Bps, p->node_list[i].cores, p->node_list[i].speed};
    return (struct node){p->bandwidth_Bps, p->storage.cores, 1};
}

/* Of an epoch: how much of each part comes over the network, and of that from the nodes' caches. */
struct epoch {
    const struct hapi_profile *p;
    const struct hapi_split_plan *plan;
    double fetched; /* part of all images that the client has not kept */
    double any;     /* part of the activations that the nodes have kept, mean of all nodes */
    bool later;
};

/* Part of what `node` (or each of all, mean) would keep that it has room for. */
static double kept_by(const struct epoch *e, int32_t node)
{
    const struct hapi_profile *p = e->p;
    double want = 0;

    if (!e->later || p->storage_cache <= 0)
        return 0;
    for (uint32_t i = 0; i < e->plan->n_parts; i++) {
        const struct hapi_split_part *part = &e->plan->parts[i];
        if (part->cut < 0 || (part->node >= 0 && part->node != node))
            continue;
        double bytes = hapi_profile_cut_find(p, (uint32_t)part->cut)->wire_bytes[part->wire];
        want += bytes * part->share * e->fetched * (double)p->images / (part->node < 0 ? p->nodes : 1);
    }
    return want > p->storage_cache ? p->storage_cache / want : 1;
}

/* Of a request alone in the system: seconds until its last image is there. */
static double request_time(const struct epoch *e, const struct node *n, const struct cost *k, double kept)
{
    const struct hapi_profile *p = e->p;
    double pieces = ceil(k->request / k->piece), waves = ceil(pieces / n->cores);
    double chunks = ceil(k->piece / CHUNK), suffix = smaller(k->piece, CHUNK) * (k->ccore + k->cdevice);
    double link = p->client_bandwidth_Bps > 0 ? smaller(n->bandwidth, p->client_bandwidth_Bps) : n->bandwidth;

    return p->latency_s +
           (1 - kept) * (k->request * k->read + waves * k->piece * (k->core + k->device) / n->speed) +
           k->request * k->bytes / link + ceil(chunks / p->compute.cores) * suffix;
}

/* Seconds of each of a node's servers for an image of the epoch that comes from it, mean of the parts. */
struct node_load {
    double disk, core, device, link; /* of all its servers of a kind */
    double share;    /* of the epoch's images that only it may serve, and its part of others */
    double turn;     /* seconds that a request of each part takes, alone, together */
    double pieces;   /* micro-batches of such requests that it computes, each times as long as it takes */
    double request;  /* images of such requests */
    double burst;    /* the longest that one of them has the link, of parts that others wait behind */
    double own;      /* micro-batches at work of such requests: pieces less what passes elsewhere */
    double piece;    /* images of a micro-batch that it computes, times those of the request */
    double computed; /* images of such requests that it computes */
};

static void node_add(struct node_load *l, const struct epoch *e, const struct node *n,
                     const struct hapi_split_part *part, double weight, double kept)
{
    struct cost k = cost_of(e->p, e->plan, part);
    double computed = 1 - kept, turn = request_time(e, n, &k, kept);
    double passes = (k.core + k.device) / n->speed;

    l->disk += weight * computed * k.read;
    l->core += weight * computed * k.core / n->speed;
    l->device += weight * computed * k.device / n->speed;
    l->link += weight * k.bytes / n->bandwidth;
    l->share += weight;
    l->turn += turn;
    l->pieces += computed * (k.core + k.device) > 0 ? turn * ceil(k.request / k.piece) : 0;
    l->request += k.request;
    l->own += computed * passes > 0 ? ceil(k.request / k.piece) * k.piece * passes : 0;
    l->piece += computed * (k.core + k.device) > 0 ? k.piece * k.request : 0;
    l->computed += computed * (k.core + k.device) > 0 ? k.request : 0;
    if (computed * passes <= 0) /* else it comes as it is computed */
        l->burst = larger(l->burst, k.request * k.bytes / n->bandwidth);
}

/* Of node `i`; weights are parts of all images of the epoch that are fetched. */
static struct node_load node_load_of(const struct epoch *e, uint32_t i)
{
    struct node n = node_of(e->p, i);
    struct node_load l = {0};

    for (uint32_t k = 0; k < e->plan->n_parts; k++) {
        const struct hapi_split_part *part = &e->plan->parts[k];
        bool any = part->node < 0;
        if (!any && part->node != (int32_t)i)
            continue;
        double kept = part->cut < 0 ? 0 : any ? e->any : kept_by(e, part->node);
        node_add(&l, e, &n, part, part->share / (any ? e->p->nodes : 1), kept);
    }
    return l;
}

/* Micro-batches that a node lets a client have in hand. */
static double pieces_allowed(const struct node *n)
{
    double batches = larger(BATCHES, 2 * n->cores);

    return batches - (batches > BATCHES_KEPT ? floor(batches / BATCHES_KEPT) : 1);
}

/* Requests of each part that go round at a node, all together. */
static double slots_of(const struct hapi_profile *p, const struct node_load *l)
{
    return smaller(SLOTS, (DEPTH - 0.5) * p->train_batch / p->nodes / l->request);
}

/* Seconds of the node's slowest server for all it serves, with what keeps its cores from being busy: too few
 * micro-batches in hand, or all of them behind a large request on the link; and no sooner than a request of
 * each part takes comes back what is in flight. */
static double node_time(const struct epoch *e, const struct node *n, struct node_load *l)
{
    const struct hapi_profile *p = e->p;
    double allowed = pieces_allowed(n), slots = slots_of(p, l);
    double hand = l->pieces > 0 ? smaller(allowed, larger(1, slots * l->pieces / l->turn)) : n->cores;
    double cores = smaller(n->cores, hand), threads = 0, stall = 0;
    double slow = n->cores / servers_of(n->cores, p->storage.contention);
    double devices = p->storage.devices ? p->storage.devices : 1;

    if (l->device > 0) {
        /* Few enough for a thread each: the micro-batches of a request come and go together. */
        double most = n->cores + PLANS_MORE, at_work = larger(1, smaller(hand, slots * l->own / l->turn));
        double together = hand <= most ? larger(1, l->pieces / l->turn) : 1;
        threads = held(larger(1, smaller(most, at_work) / together), l->core * slow / together,
                       l->device / devices);
    }
    l->core /= servers_of(cores, p->storage.contention);
    l->device /= devices;
    double cpu = larger(l->core, larger(l->device, threads));
    if (e->plan->n_parts > 1 && l->computed > 0) {
        double room = larger(0, smaller(allowed, hand) - n->cores / 2) * l->piece / l->computed;
        double image = cpu * l->request / l->computed / l->share; /* that it computes */
        stall = larger(0, l->burst - room * image) * l->share / l->request;
    }
    cpu = larger(cpu + stall, l->share * l->turn / (slots * l->request));
    return beside(l->disk, beside(l->link, cpu));
}

/* Adds up what the nodes need for an image of the epoch: images that any may serve go where there is room,
 * so that the nodes are done together. */
static double nodes_time(const struct epoch *e, struct hapi_prediction *out, double images, double weight)
{
    const struct hapi_profile *p = e->p;
    double rate = 0, longest = 0, s[HAPI_LOADS_N] = {0};
    bool fixed = false;

    for (uint32_t i = 0; i < e->plan->n_parts; i++)
        fixed |= e->plan->parts[i].node >= 0;
    for (uint32_t i = 0; i < p->nodes; i++) {
        struct node n = node_of(p, i);
        struct node_load l = node_load_of(e, i);
        if (l.share <= 0)
            continue;
        out->storage_work_s += weight * images * (l.core + l.device);
        double t = node_time(e, &n, &l);
        longest = larger(longest, t);
        rate += t > 0 ? l.share / t : INFINITY;
        s[HAPI_LOAD_DISK] = larger(s[HAPI_LOAD_DISK], l.disk);
        s[HAPI_LOAD_STORAGE] = larger(s[HAPI_LOAD_STORAGE], l.core);
        s[HAPI_LOAD_STORAGE_DEVICE] = larger(s[HAPI_LOAD_STORAGE_DEVICE], l.device);
        s[HAPI_LOAD_LINK] = larger(s[HAPI_LOAD_LINK], l.link);
        if (!p->n_node_list && !fixed) { /* the others are like it */
            rate *= p->nodes;
            out->storage_work_s *= p->nodes;
            break;
        }
    }
    for (int i = 0; i < HAPI_LOADS_N; i++)
        out->load_s[i] += weight * images * s[i];
    return fixed ? longest : rate > 0 ? 1 / rate : 0;
}

/* What goes through by itself: a micro-batch from the request on, and its first chunks. */
struct fill {
    double alone, piece, chunk; /* seconds; images that are past the nodes then, and past the client */
};

/* The client's part for an image of the epoch that is fetched, mean of the parts. */
static double client_time(const struct epoch *e, struct hapi_prediction *out, double images, double weight,
                          struct fill *fill)
{
    const struct hapi_profile *p = e->p;
    double core = 0, device = 0, bytes = 0, cores = servers_of(p->compute.cores, p->compute.contention);

    *fill = (struct fill){.alone = p->latency_s};
    for (uint32_t i = 0; i < e->plan->n_parts; i++) {
        const struct hapi_split_part *part = &e->plan->parts[i];
        struct node n = node_of(p, part->node < 0 ? 0 : (uint32_t)part->node);
        struct cost k = cost_of(p, e->plan, part);
        double link =
            p->client_bandwidth_Bps > 0 ? smaller(n.bandwidth, p->client_bandwidth_Bps) : n.bandwidth;
        double kept = part->cut < 0 ? 0 : kept_by(e, part->node < 0 ? 0 : part->node);
        core += part->share * k.ccore;
        device += part->share * k.cdevice;
        bytes += part->share * k.bytes;
        fill->piece += part->share * k.piece;
        fill->chunk += part->share * smaller(CHUNK * p->compute.cores, k.piece);
        fill->alone +=
            part->share * ((1 - kept) * k.piece * (k.read + (k.core + k.device) / n.speed) +
                           k.piece * k.bytes / link + smaller(CHUNK, k.piece) * (k.ccore + k.cdevice));
    }
    double threads = 0, devices = p->compute.devices ? p->compute.devices : 1;
    if (device > 0)
        threads = held(p->compute.cores, core * p->compute.cores / cores, device / devices);
    core /= cores;
    device /= devices;
    double wire = p->client_bandwidth_Bps > 0 ? bytes / p->client_bandwidth_Bps : 0;
    out->load_s[HAPI_LOAD_COMPUTE_TIER] += weight * images * core;
    out->load_s[HAPI_LOAD_COMPUTE_DEVICE] += weight * images * device;
    out->load_s[HAPI_LOAD_CLIENT_LINK] += weight * images * wire;
    return beside(wire, larger(core, larger(device, threads)));
}

/* Training steps of an epoch, and the last one's. */
static double train_time(const struct hapi_profile *p, double *last)
{
    double full = floor((double)p->images / p->train_batch), rest = (double)p->images - full * p->train_batch;
    double step = p->train_batch * hapi_curve_at(&p->train_s, p->train_batch);

    *last = rest > 0 ? rest * hapi_curve_at(&p->train_s, rest) : step;
    return full * step + (rest > 0 ? *last : 0);
}

/* Seconds for so many images, of which what the fill counts is through after `alone`. */
static double fetch_time(const struct fill *fill, double images, double node, double client)
{
    return fill->alone +
           beside(larger(0, images - fill->piece) * node, larger(0, images - fill->chunk) * client);
}

static double epoch_time(const struct epoch *e, struct hapi_prediction *out, double weight)
{
    const struct hapi_profile *p = e->p;
    double images = e->fetched * (double)p->images, last;
    struct fill fill;
    double train = train_time(p, &last), batch = smaller((double)p->train_batch, (double)p->images);

    out->load_s[HAPI_LOAD_TRAIN] += weight * train;
    if (images <= 0)
        return train;
    double client = client_time(e, out, images, weight, &fill);
    if (p->compute.train_shares)
        client +=
            train / images /
            (p->compute.devices ? p->compute.devices : servers_of(p->compute.cores, p->compute.contention));
    double node = nodes_time(e, out, images, weight);
    out->fill_s += weight * fill.alone;
    return larger(fetch_time(&fill, images, node, client) + last,
                  fetch_time(&fill, batch * e->fetched, node, client) + train);
}

struct hapi_prediction hapi_predict(const struct hapi_profile *p, const struct hapi_split_plan *plan)
{
    struct hapi_prediction out = {0};
    struct epoch first = {.p = p, .plan = plan, .fetched = 1}, later = {.p = p, .plan = plan, .later = true};
    double epochs = p->epochs, weight = 1 / epochs;
    double feature = p->cuts[p->n_cuts - 1].wire_bytes[HAPI_WIRE_F32];

    later.fetched = 1 - smaller(1, floor(p->compute_cache / feature) / (double)p->images);
    later.any = kept_by(&later, 0);
    out.first_s = epoch_time(&first, &out, weight);
    out.later_s = epochs > 1 ? epoch_time(&later, &out, 1 - weight) : out.first_s;
    out.epoch_s = weight * out.first_s + (1 - weight) * out.later_s;
    for (int i = 1; i < HAPI_LOADS_N; i++)
        if (out.load_s[i] > out.load_s[out.bottleneck])
            out.bottleneck = (enum hapi_load)i;
    return out;
}
