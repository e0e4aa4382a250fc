/* A client: batches are begun as the ring has room, filled by what arrives, trained in order. */
#include <stddef.h>

#include "sim_inside.h"

static void epoch_begin(struct sim_client *c);

/* ------------------------------------------------------------------ training */

static void gauges(struct sim_client *c)
{
    bool blocked = c->opened < c->n_batches && !c->in_flight && !c->unasked;

    sim_gauge_set(&c->trainer, sim_now(c->sim), c->training ? 1 : 0, false);
    sim_machine_blocked(&c->machine, blocked);
}

static void train_next(struct sim_client *c)
{
    const struct hapi_profile *f = c->spec->profile;
    const struct sim_batch *b = &c->ring[c->trained % c->spec->depth];

    if (!c->training && c->trained < c->opened && !b->missing) {
        uint64_t key = (uint64_t)c->epoch << 40 ^ c->trained;
        double s = sim_jitter(c, b->n * hapi_curve_at(&f->train_s, b->n), key, SIM_DRAW_TRAIN);
        c->training = true;
        if (f->compute.train_shares) {
            c->train_job.work[0] = f->compute.devices ? 0 : s;
            c->train_job.work[1] = f->compute.devices ? s : 0;
            sim_machine_submit(&c->machine, &c->train_job);
        } else {
            sim_event_set(&c->sim->events, &c->train, sim_now(c->sim) + s);
        }
    }
    gauges(c);
}

static void train_done(struct sim_client *c)
{
    c->now.trained += c->ring[c->trained % c->spec->depth].n;
    c->training = false;
    c->trained++;
    if (c->trained == c->n_batches) {
        gauges(c);
        sim_epoch_end(c);
        if (++c->epoch < c->spec->epochs)
            epoch_begin(c);
        else
            c->sim->running--;
        return;
    }
    if (c->opened < c->n_batches) {
        sim_lanes_open(c);
        sim_lanes_pump(c);
    }
    train_next(c);
}

static void train_event(struct sim_event *e)
{
    train_done((struct sim_client *)((char *)e - offsetof(struct sim_client, train)));
}

static void train_shared(struct sim_job *j)
{
    train_done((struct sim_client *)((char *)j - offsetof(struct sim_client, train_job)));
}

static void epoch_begin(struct sim_client *c)
{
    sim_epoch_begin(c);
    sim_lanes_epoch(c);
    c->opened = c->trained = 0;
    while (c->opened < c->n_batches && c->opened < c->spec->depth)
        sim_lanes_open(c);
    c->now.from_client_cache = c->cached;
    sim_lanes_pump(c);
    train_next(c);
}

static void start_event(struct sim_event *e)
{
    epoch_begin((struct sim_client *)((char *)e - offsetof(struct sim_client, start)));
}

/* ------------------------------------------------------------------ what arrives */

static void images_done(struct sim_request *r, uint32_t n)
{
    struct sim_session *s = r->session;
    struct sim_client *c = s->client;

    c->ring[r->batch % c->spec->depth].missing -= n;
    r->done += n;
    if (r->done == r->n) {
        s->in_flight--;
        c->in_flight--;
        sim_request_give(c->sim, r);
        sim_lanes_pump(c);
    }
    train_next(c);
}

static void chunk_done(struct sim_job *j)
{
    struct sim_piece *p = (struct sim_piece *)((char *)j - offsetof(struct sim_piece, job));
    struct sim_request *r = p->request;
    uint32_t n = p->n;

    sim_piece_give(r->session->client->sim, p);
    images_done(r, n);
}

/* What the compute tier does with n images: made f32 again, or decoded; then the rest of the network. */
static bool chunk_work(const struct sim_request *r, double n, double *work)
{
    const struct sim_client *c = r->session->client;
    const struct hapi_profile *f = c->spec->profile;
    const struct hapi_profile_cut *cut = r->lane->cut;

    work[0] =
        n * (cut ? hapi_profile_convert(f, cut, r->lane->part->wire, n) + hapi_profile_serialise(f, cut, n)
                 : hapi_curve_at(&f->source_prepare_s, n));
    work[1] = n * (cut ? hapi_curve_at(&cut->compute_s, n) : hapi_profile_source_compute(f, n));
    work[2] = 0;
    return work[0] + work[1] > 0;
}

void sim_client_part(struct sim_request *r, uint32_t first, uint32_t n)
{
    struct sim_client *c = r->session->client;
    double work[SIM_PHASES];

    for (uint32_t at = 0, m; at < n; at += m) {
        m = n - at < c->spec->chunk ? n - at : c->spec->chunk;
        if (!chunk_work(r, m, work)) {
            images_done(r, n - at);
            return;
        }
        struct sim_piece *p = sim_piece_take(c->sim);
        if (!p)
            return;
        double luck = sim_jitter(c, 1, r->key + first + at, SIM_DRAW_SUFFIX);
        p->request = r;
        p->n = m;
        p->job = (struct sim_job){.work = {work[0] * luck, work[1] * luck}, .done = chunk_done};
        sim_machine_submit(&c->machine, &p->job);
    }
    gauges(c);
}

/* ------------------------------------------------------------------ set-up */

bool sim_client_init(struct sim_client *c, struct sim *s, uint32_t number)
{
    const struct hapi_sim_client *spec = &s->spec->clients[number];
    const struct hapi_profile *f = spec->profile;

    *c = (struct sim_client){
        .sim = s,
        .spec = spec,
        .number = number,
        .n_batches = (uint32_t)((f->images + f->train_batch - 1) / f->train_batch),
        .feature_bytes = f->cuts[f->n_cuts - 1].wire_bytes[HAPI_WIRE_F32],
        .start = {.fire = start_event},
        .train = {.fire = train_event},
        .train_job = {.threadless = true, .done = train_shared},
    };
    sim_machine_init(&c->machine, &s->events, f->compute.cores, f->compute.contention, f->compute.devices,
                     f->compute.cores);
    if (spec->bandwidth_Bps > 0) {
        c->link = s->spec->n_nodes + number + 1;
        sim_link_init(&s->net, c->link, spec->bandwidth_Bps, SIM_RECEIVER);
    }
    c->sessions = hapi_arena_array(s->arena, spec->n_nodes, sizeof *c->sessions);
    c->epochs = hapi_arena_array(s->arena, spec->epochs, sizeof *c->epochs);
    if (!c->sessions || !c->epochs || !sim_lanes_init(c))
        return false;
    for (uint32_t i = 0; i < spec->n_nodes; i++) {
        struct sim_session *e = &c->sessions[i];
        e->node = &s->nodes[spec->nodes[i]];
        e->client = c;
        for (int k = 0; k < SIM_KINDS; k++) {
            e->turns[k].session = e;
            e->turns[k].pending_end = &e->turns[k].pending;
        }
        e->sending_end = &e->sending;
    }
    sim_event_set(&s->events, &c->start, spec->start_s);
    return true;
}
