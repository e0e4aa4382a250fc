#include "sim_flow.h"

#include <math.h>
#include <stddef.h>
#include <stdlib.h>

#include "err.h"

/* Levels closer to one another are the same: less than what rounding of sums of many rates comes to would
 * never stand still. */
#define SAME 1e-9

/* Of how long what is sent takes: how long changes are gathered where there are many links. */
#define GRAIN 0.005

void sim_gauge_set(struct sim_gauge *g, double now, double use, bool is_blocked)
{
    double s = now - g->since, idle = (1 - g->use) * s;

    g->busy += g->use * s;
    *(g->is_blocked ? &g->blocked : &g->starved) += idle > 0 ? idle : 0;
    g->since = now;
    g->use = use;
    g->is_blocked = is_blocked;
}

/* ------------------------------------------------------------------ the switch's clock and its heap */

static double clock_now(const struct sim_net *net)
{
    double s = net->events->now - net->since;

    return net->n_held && s > 0 ? net->clock + net->limit * s : net->clock;
}

static void held_put(struct sim_net *net, uint32_t i, struct sim_flow *f)
{
    net->held[i - 1] = f;
    f->place = i;
}

static void held_up(struct sim_net *net, uint32_t i, struct sim_flow *f)
{
    for (; i > 1 && f->finish < net->held[i / 2 - 1]->finish; i /= 2)
        held_put(net, i, net->held[i / 2 - 1]);
    held_put(net, i, f);
}

static void held_down(struct sim_net *net, uint32_t i, struct sim_flow *f)
{
    for (uint32_t k; (k = 2 * i) <= net->n_held; i = k) {
        if (k < net->n_held && net->held[k]->finish < net->held[k - 1]->finish)
            k++;
        if (f->finish <= net->held[k - 1]->finish)
            break;
        held_put(net, i, net->held[k - 1]);
    }
    held_put(net, i, f);
}

static void held_add(struct sim_net *net, struct sim_flow *f, double clock, double bytes)
{
    f->finish = clock + bytes;
    held_up(net, ++net->n_held, f);
}

static void held_remove(struct sim_net *net, struct sim_flow *f)
{
    uint32_t i = f->place;
    struct sim_flow *last = net->held[--net->n_held];

    f->place = 0;
    if (last == f)
        return;
    if (last->finish < f->finish)
        held_up(net, i, last);
    else
        held_down(net, i, last);
}

/* Goes on from now by `limit`, with those that it holds back. */
static void clock_go(struct sim_net *net, double clock, double limit)
{
    struct sim_events *q = net->events;

    net->clock = net->n_held ? clock : 0;
    net->since = q->now;
    net->limit = limit;
    if (net->n_held)
        sim_event_set(q, &net->first_held, q->now + (net->held[0]->finish - clock) / limit);
    else
        sim_event_clear(q, &net->first_held);
}

static void held_fire(struct sim_event *e)
{
    struct sim_net *net = (struct sim_net *)((char *)e - offsetof(struct sim_net, first_held));
    struct sim_flow *f = net->held[0];

    net->clock = f->finish;
    net->since = net->events->now;
    f->done.fire(&f->done);
    clock_go(net, clock_now(net), net->limit);
}

/* ------------------------------------------------------------------ accounts */

void sim_link_account(struct sim_net *net, uint32_t number)
{
    struct sim_link *l = &net->links[number];
    struct sim_gauge *g = &l->gauge;
    double now = net->events->now, clock = clock_now(net), s = now - g->since;
    /* No flow, no bytes: the clock may have begun anew meanwhile. */
    double bytes = l->rate * s + (l->held ? l->held * (clock - l->clock) : 0);
    double idle = s - bytes / l->capacity;

    g->busy += s - (idle > 0 ? idle : 0);
    *(l->end == SIM_SENDER && l->n ? &g->blocked : &g->starved) += idle > 0 ? idle : 0;
    g->since = now;
    l->clock = clock;
}

/* On both links of the flow. */
static void rate_add(struct sim_net *net, const struct sim_flow *f, double rate, int held)
{
    for (int end = 0; end < SIM_ENDS; end++) {
        uint32_t number = net->way[f->number].link[end];
        struct sim_link *l = &net->links[number];
        if (!number)
            continue;
        sim_link_account(net, number);
        l->rate += rate;
        l->held += (uint32_t)held;
    }
}

/* ------------------------------------------------------------------ levels */

static void queue(struct sim_net *net, uint32_t number)
{
    struct sim_link *l = &net->links[number];

    if (!number || l->queued)
        return;
    l->queued = true;
    net->queue[(net->first + net->n_queue++) % net->n_links] = number;
}

/* The level at which the link is full: those held back elsewhere keep what they have, the others share the
 * rest. Each round finds more that stay below it. */
static double level(struct sim_net *net, const struct sim_link *l)
{
    double all = 0, share, was, *limits = net->scratch;
    uint32_t other = 1 - l->end;

    for (uint32_t i = 0; i < l->n; i++)
        all += limits[i] = net->level[net->way[l->flows[i]].link[other]];
    if (all <= l->capacity)
        return INFINITY;
    share = l->capacity / l->n;
    do {
        double rest = l->capacity;
        uint32_t n = 0;
        was = share;
        for (uint32_t i = 0; i < l->n; i++) {
            rest -= limits[i] < share ? limits[i] : 0;
            n += limits[i] >= share;
        }
        share = n ? rest / n : INFINITY;
    } while (share > was * (1 + SAME));
    return share;
}

static bool same(double a, double b)
{
    return a == b || fabs(a - b) <= SAME * fmin(a, b);
}

/* The links that l's new level concerns: not one at which the flow was and is held back by the link itself,
 * nor one that is not full and gets less. */
static void spread(struct sim_net *net, const struct sim_link *l, double old, double now)
{
    for (uint32_t i = 0; i < l->n; i++) {
        uint32_t m = net->way[l->flows[i]].link[1 - l->end];
        double at = net->level[m];
        if (isinf(at) ? now > old : fmin(old, now) < at)
            queue(net, m);
    }
}

static void levels_settle(struct sim_net *net)
{
    while (net->n_queue) {
        uint32_t number = net->queue[net->first];
        struct sim_link *l = &net->links[number];
        double old = net->level[number], now;
        net->first = (net->first + 1) % net->n_links;
        net->n_queue--;
        l->queued = false;
        if (!l->changed) { /* its flows may be new */
            l->changed = true;
            net->changed[net->n_changed++] = number;
        }
        now = level(net, l);
        if (same(now, old))
            continue;
        net->level[number] = now;
        spread(net, l, old, now);
    }
}

/* ------------------------------------------------------------------ rates */

static void flow_left(struct sim_net *net, struct sim_flow *f)
{
    double now = net->events->now;

    f->left -= f->rate * (now - f->since);
    f->left = f->left > 0 ? f->left : 0;
    f->since = now;
}

static void flow_rate(struct sim_net *net, struct sim_flow *f, double rate)
{
    flow_left(net, f);
    rate_add(net, f, rate - f->rate, 0);
    f->rate = rate;
    sim_event_set(net->events, &f->done, f->since + f->left / rate);
}

static void flow_hold(struct sim_net *net, struct sim_flow *f, double clock)
{
    flow_left(net, f);
    sim_event_clear(net->events, &f->done);
    rate_add(net, f, -f->rate, 1);
    f->rate = 0;
    held_add(net, f, clock, f->left);
}

static void flow_release(struct sim_net *net, struct sim_flow *f, double clock, double rate)
{
    f->left = f->finish > clock ? f->finish - clock : 0;
    f->since = net->events->now;
    rate_add(net, f, rate, -1);
    held_remove(net, f);
    f->rate = rate;
    sim_event_set(net->events, &f->done, f->since + f->left / rate);
}

/* The switch's level, as a link's. */
static double switch_level(const struct sim_net *net)
{
    double all = 0, share = net->capacity / net->n, was;

    for (uint32_t i = 0; i < net->n; i++)
        all += net->free[i];
    if (all <= net->capacity)
        return INFINITY;
    do {
        double rest = net->capacity;
        uint32_t n = 0;
        was = share;
        for (uint32_t i = 0; i < net->n; i++) {
            rest -= net->free[i] < share ? net->free[i] : 0;
            n += net->free[i] >= share;
        }
        share = n ? rest / n : INFINITY;
    } while (share > was * (1 + SAME));
    return share;
}

static void switch_settle(struct sim_net *net)
{
    double clock = clock_now(net), limit = net->n ? switch_level(net) : INFINITY, all = 0;
    net->clock = clock;
    net->since = net->events->now;
    net->limit = limit;
    for (uint32_t i = 0; i < net->n; i++) {
        struct sim_flow *f = net->flow[i];
        bool hold = net->free[i] > limit;
        all += hold ? limit : net->free[i];
        if (hold && !f->place)
            flow_hold(net, f, clock);
        else if (!hold && f->place)
            flow_release(net, f, clock, net->free[i]);
    }
    clock_go(net, clock, limit);
    sim_gauge_set(&net->gauge, net->events->now, all < net->capacity ? all / net->capacity : 1, false);
}

void sim_net_settle(struct sim_net *net)
{
    sim_event_clear(net->events, &net->settle);
    net->settled = net->events->now;
    levels_settle(net);
    for (uint32_t k = 0; k < net->n_changed; k++) {
        struct sim_link *l = &net->links[net->changed[k]];
        l->changed = false;
        for (uint32_t i = 0; i < l->n; i++) {
            uint32_t number = l->flows[i];
            const struct sim_way *w = &net->way[number];
            double rate = fmin(net->level[w->link[SIM_SENDER]], net->level[w->link[SIM_RECEIVER]]);
            struct sim_flow *f = net->flow[number];
            if (rate == net->free[number])
                continue;
            net->free[number] = rate;
            if (!f->place)
                flow_rate(net, f, rate);
        }
    }
    net->n_changed = 0;
    if (net->capacity > 0)
        switch_settle(net);
}

static void settle_fire(struct sim_event *e)
{
    sim_net_settle((struct sim_net *)((char *)e - offsetof(struct sim_net, settle)));
}

bool sim_net_due(struct sim_net *net)
{
    double at = net->n_links > SIM_EXACT_LINKS + 1 ? net->settled + GRAIN * net->lasts : 0;

    if (!net->n_queue || net->settle.place)
        return false;
    if (at <= net->events->now)
        return true;
    sim_event_set(net->events, &net->settle, at);
    return false;
}

/* ------------------------------------------------------------------ flows */

static bool grow(void **p, size_t bytes)
{
    void *more = realloc(*p, bytes);

    *p = more ? more : *p;
    return more;
}

static bool net_grow(struct sim_net *net)
{
    uint32_t room = net->room ? net->room * 2 : 64;

    if (!grow((void **)&net->way, room * sizeof *net->way) ||
        !grow((void **)&net->free, room * sizeof *net->free) ||
        !grow((void **)&net->flow, room * sizeof(struct sim_flow *)) ||
        !grow((void **)&net->held, room * sizeof(struct sim_flow *)) ||
        !grow((void **)&net->scratch, room * sizeof *net->scratch))
        return false;
    net->room = room;
    return true;
}

static bool link_add(struct sim_net *net, uint32_t number, uint32_t flow, uint32_t end)
{
    struct sim_link *l = &net->links[number];
    uint32_t room = l->room ? l->room * 2 : 4;

    if (l->n == l->room) {
        if (!grow((void **)&l->flows, room * sizeof *l->flows))
            return false;
        l->room = room;
    }
    sim_link_account(net, number); /* up to here it had nothing, or less, to send */
    net->way[flow].place[end] = l->n;
    l->flows[l->n++] = flow;
    return true;
}

static void link_remove(struct sim_net *net, const struct sim_way *w, uint32_t end)
{
    struct sim_link *l = &net->links[w->link[end]];
    uint32_t last = l->flows[--l->n];

    l->flows[w->place[end]] = last;
    net->way[last].place[end] = w->place[end];
    if (l->n == l->held)
        l->rate = 0; /* and not what rounding left */
}

void sim_flow_start(struct sim_net *net, struct sim_flow *f, uint32_t sender, uint32_t receiver, double bytes)
{
    if (net->n == net->room && !net_grow(net)) {
        net->events->rc = HAPI_ENOMEM;
        return;
    }
    f->number = net->n++;
    f->place = 0;
    f->left = bytes;
    f->rate = 0;
    f->since = f->begun = net->events->now;
    net->flow[f->number] = f;
    net->free[f->number] = 0;
    net->way[f->number] = (struct sim_way){.link = {sender, receiver}};
    for (uint32_t end = 0; end < SIM_ENDS; end++) {
        uint32_t link = net->way[f->number].link[end];
        if (link && !link_add(net, link, f->number, end))
            net->events->rc = HAPI_ENOMEM;
        queue(net, link);
    }
}

/* The average forgets: of what lies 64 transfers back a third counts. */
static void flow_through(struct sim_net *net, struct sim_flow *f)
{
    net->lasts += (net->events->now - f->begun - net->lasts) / 64;
    f->begun = net->events->now;
}

void sim_flow_more(struct sim_net *net, struct sim_flow *f, double bytes)
{
    flow_through(net, f);
    f->left = bytes;
    f->since = net->events->now;
    if (f->place) { /* held_fire() sets the clock's event */
        f->finish = clock_now(net) + bytes;
        held_down(net, f->place, f);
    } else { /* while rates are being found out, what is set here is set again by sim_net_settle() */
        sim_event_set(net->events, &f->done, f->since + bytes / f->rate);
    }
}

void sim_flow_stop(struct sim_net *net, struct sim_flow *f)
{
    uint32_t number = f->number, last = net->n - 1;
    struct sim_way *w = &net->way[number];

    flow_through(net, f);
    sim_event_clear(net->events, &f->done);
    rate_add(net, f, -f->rate, f->place ? -1 : 0);
    if (f->place)
        held_remove(net, f);
    for (uint32_t end = 0; end < SIM_ENDS; end++)
        if (w->link[end]) {
            link_remove(net, w, end);
            queue(net, w->link[end]);
        }
    net->n = last;
    if (number == last)
        return;
    *w = net->way[last];
    net->free[number] = net->free[last];
    net->flow[number] = net->flow[last];
    net->flow[number]->number = number;
    for (uint32_t end = 0; end < SIM_ENDS; end++)
        if (w->link[end])
            net->links[w->link[end]].flows[w->place[end]] = number;
}

/* ------------------------------------------------------------------ the net */

int sim_net_open(struct sim_net *net, struct sim_events *events, uint32_t n_links, double capacity)
{
    *net =
        (struct sim_net){.events = events, .n_links = n_links + 1, .capacity = capacity, .limit = INFINITY};
    net->first_held.fire = held_fire;
    net->settle.fire = settle_fire;
    net->links = calloc(net->n_links, sizeof *net->links);
    net->level = calloc(net->n_links, sizeof *net->level);
    net->queue = calloc(net->n_links, sizeof *net->queue);
    net->changed = calloc(net->n_links, sizeof *net->changed);
    if (!net->links || !net->level || !net->queue || !net->changed)
        return HAPI_ENOMEM;
    for (uint32_t i = 0; i < net->n_links; i++)
        net->level[i] = INFINITY;
    return 0;
}

void sim_net_close(struct sim_net *net)
{
    for (uint32_t i = 0; net->links && i < net->n_links; i++)
        free(net->links[i].flows);
    free(net->links);
    free(net->level);
    free(net->queue);
    free(net->changed);
    free(net->way);
    free(net->free);
    free(net->flow);
    free(net->held);
    free(net->scratch);
}

void sim_link_init(struct sim_net *net, uint32_t number, double capacity, uint32_t end)
{
    net->links[number] = (struct sim_link){.capacity = capacity, .end = end};
}
