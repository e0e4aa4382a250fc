/* A node: requests wait, their clients take turns, a micro-batch is read, computed and sent. What a client
 * wants computed and what it only wants sent take turns, too: else objects would wait behind activations. */
#include <stddef.h>

#include "sim_inside.h"

static void node_pump(struct sim_node *n);
static void send_done(struct sim_event *e);

/* ------------------------------------------------------------------ accounts */

/* Disk and cores are blocked while requests wait and nothing is read: all micro-batches are taken, and those
 * that are not computed wait for a link. */
void sim_node_gauge(struct sim_node *n)
{
    bool blocked = n->pending && !n->reading;

    sim_gauge_set(&n->disk, sim_now(n->sim), n->reading ? 1 : 0, blocked);
    sim_machine_blocked(&n->machine, blocked);
}

/* ------------------------------------------------------------------ turns */

static void ring_add(struct sim_turn *t)
{
    struct sim_turn **ring = &t->session->node->ring;

    if (t->in_ring)
        return;
    t->in_ring = true;
    if (!*ring) {
        *ring = t->next = t->prev = t;
        return;
    }
    t->next = *ring;
    t->prev = (*ring)->prev;
    t->prev->next = t->next->prev = t;
}

static void ring_remove(struct sim_turn *t)
{
    struct sim_node *n = t->session->node;

    t->in_ring = false;
    t->next->prev = t->prev;
    t->prev->next = t->next;
    if (n->ring == t)
        n->ring = t->next == t ? NULL : t->next;
}

/* One micro-batch in eight is out of anyone's reach (runtime/sched.c). */
static bool may_have_more(const struct sim_turn *t)
{
    uint32_t n = t->session->node->spec->batches;

    return t->batches < n - (n > 8 ? n / 8 : 1);
}

static void turn_ready(struct sim_turn *t)
{
    if (t->pending && may_have_more(t))
        ring_add(t);
}

static struct sim_turn *turn_of(const struct sim_request *r)
{
    return &r->session->turns[r->lane->cut && !r->lane->kept ? SIM_COMPUTED : SIM_PASSED];
}

/* ------------------------------------------------------------------ send */

static void piece_send(struct sim_piece *p)
{
    struct sim_session *s = p->request->session;
    struct sim *sim = s->node->sim;

    p->next = NULL;
    *s->sending_end = p;
    s->sending_end = &p->next;
    if (s->line)
        return;
    s->line = sim_line_take(sim, send_done);
    if (!s->line)
        return;
    s->line->session = s;
    sim_flow_start(&sim->net, &s->line->flow, s->node->link, s->client->link, p->n * p->request->lane->bytes);
}

static void send_done(struct sim_event *e)
{
    struct sim_line *line = (struct sim_line *)((char *)e - offsetof(struct sim_line, flow.done));
    struct sim_session *s = line->session;
    struct sim_node *n = s->node;
    struct sim_piece *p = s->sending;

    s->sending = p->next;
    if (s->sending) {
        sim_flow_more(&n->sim->net, &line->flow, s->sending->n * s->sending->request->lane->bytes);
    } else {
        s->sending_end = &s->sending;
        s->line = NULL;
        sim_flow_stop(&n->sim->net, &line->flow);
        sim_line_give(n->sim, line);
    }
    n->free_batches++;
    n->images += p->n;
    turn_of(p->request)->batches--;
    turn_ready(turn_of(p->request));
    sim_client_part(p->request, p->first, p->n);
    sim_piece_give(n->sim, p);
    node_pump(n);
}

/* ------------------------------------------------------------------ read, compute */

static void compute_done(struct sim_job *j)
{
    struct sim_piece *p = (struct sim_piece *)((char *)j - offsetof(struct sim_piece, job));

    piece_send(p);
    sim_node_gauge(p->request->session->node);
}

static void piece_compute(struct sim_piece *p)
{
    const struct sim_request *r = p->request;
    const struct sim_client *c = r->session->client;
    const struct hapi_profile *f = c->spec->profile;
    const struct hapi_profile_cut *cut = r->lane->cut;
    struct sim_node *node = r->session->node;
    double n = p->n, luck = sim_jitter(c, 1, r->key + p->first, SIM_DRAW_COMPUTE) / node->spec->speed;

    p->job = (struct sim_job){.done = compute_done};
    p->job.work[0] = n * luck * hapi_curve_at(&f->storage_prepare_s, n);
    p->job.work[1] = n * luck * hapi_curve_at(&cut->storage_s, n);
    p->job.work[2] = n * luck * hapi_profile_serialise(f, cut, n);
    if (!node->spec->devices) /* a device's plan gives the wire's dtype */
        p->job.work[2] += n * luck * hapi_profile_convert(f, cut, r->lane->part->wire, n);
    sim_machine_submit(&node->machine, &p->job);
}

static void read_next(struct sim_node *n)
{
    struct sim_piece *p = n->read_queue;

    n->reading = p;
    if (!p)
        return;
    n->read_queue = p->next;
    n->read_end = n->read_queue ? n->read_end : &n->read_queue;
    const struct sim_client *c = p->request->session->client;
    double s = p->n * hapi_curve_at(&c->spec->profile->read_s, p->n);
    sim_event_set(&n->sim->events, &n->read,
                  sim_now(n->sim) + sim_jitter(c, s, p->request->key + p->first, SIM_DRAW_READ));
}

static void read_done(struct sim_event *e)
{
    struct sim_node *n = (struct sim_node *)((char *)e - offsetof(struct sim_node, read));
    struct sim_piece *p = n->reading;

    read_next(n);
    if (p->request->lane->cut)
        piece_compute(p);
    else
        piece_send(p);
    sim_node_gauge(n);
}

static void piece_begin(struct sim_piece *p)
{
    struct sim_node *n = p->request->session->node;

    if (p->request->lane->kept) {
        piece_send(p);
        return;
    }
    p->next = NULL;
    *n->read_end = p;
    n->read_end = &p->next;
    if (!n->reading)
        read_next(n);
}

/* ------------------------------------------------------------------ micro-batches */

/* The next images of the first request, in a free micro-batch. */
static struct sim_piece *piece_form(struct sim_node *n, struct sim_turn *t)
{
    struct sim_request *r = t->pending;
    struct sim_piece *p = sim_piece_take(n->sim);
    uint32_t left = r->n - r->formed, most = r->lane->part->micro_batch;

    if (!p)
        return NULL;
    p->request = r;
    p->first = r->formed;
    p->n = left < most ? left : most;
    r->formed += p->n;
    t->batches++;
    n->free_batches--;
    if (r->formed == r->n) {
        t->pending = r->next;
        t->pending_end = t->pending ? t->pending_end : &t->pending;
        n->pending--;
    }
    return p;
}

static void node_pump(struct sim_node *n)
{
    while (n->free_batches && n->ring) {
        struct sim_turn *t = n->ring;
        struct sim_piece *p = piece_form(n, t);
        if (!p)
            return;
        n->ring = t->next;
        if (!t->pending || !may_have_more(t))
            ring_remove(t);
        piece_begin(p);
    }
    sim_node_gauge(n);
}

void sim_node_request(struct sim_request *r)
{
    struct sim_turn *t = turn_of(r);

    r->next = NULL;
    *t->pending_end = r;
    t->pending_end = &r->next;
    r->session->node->pending++;
    turn_ready(t);
    node_pump(r->session->node);
}

void sim_node_init(struct sim_node *n, struct sim *s, uint32_t number)
{
    const struct hapi_sim_node *spec = &s->spec->nodes[number];

    *n = (struct sim_node){
        .sim = s,
        .spec = spec,
        .number = number,
        .free_batches = spec->batches,
        .read_end = &n->read_queue,
        .read = {.fire = read_done},
    };
    sim_machine_init(&n->machine, &s->events, spec->cores, spec->contention, spec->devices,
                     spec->cores + (spec->devices ? HAPI_SIM_SPARE_PLANS : 0));
    n->link = number + 1;
    sim_link_init(&s->net, n->link, spec->bandwidth_Bps, SIM_SENDER);
}
