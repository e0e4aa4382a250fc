/* Links shared by flows, against filling all links at once, as the definition of max-min fairness has it. */
#include <math.h>
#include <stddef.h>

#include "check.h"
#include "sim_flow.h"

enum { SENDERS = 7, RECEIVERS = 6, LINKS = SENDERS + RECEIVERS, FLOWS = 60 };

static uint64_t state = 1;

static uint32_t below(uint32_t n)
{
    state = state * 6364136223846793005ULL + 1442695040888963407ULL;
    return (uint32_t)((state >> 33) % n);
}

struct world {
    struct sim_events events;
    struct sim_net net;
    struct sim_flow flows[FLOWS];
    bool on[FLOWS];
    uint32_t way[FLOWS][3]; /* sender, receiver or 0, the switch: LINKS + 1, or 0 */
    double capacity[LINKS + 2], want[FLOWS];
    int ended;
};

static struct world w;

static void done(struct sim_event *e)
{
    struct sim_flow *f = (struct sim_flow *)((char *)e - offsetof(struct sim_flow, done));

    w.ended++;
    w.on[f - w.flows] = false;
    sim_flow_stop(&w.net, f);
}

/* capacity: of links 1 to LINKS, then of the switch. */
static void open_world(const double *capacity)
{
    w = (struct world){0};
    memcpy(w.capacity, capacity, sizeof w.capacity);
    REQUIRE(!sim_net_open(&w.net, &w.events, LINKS, capacity[LINKS + 1]));
    for (uint32_t l = 1; l <= LINKS; l++)
        sim_link_init(&w.net, l, capacity[l], l <= SENDERS ? SIM_SENDER : SIM_RECEIVER);
    for (int i = 0; i < FLOWS; i++)
        w.flows[i].done.fire = done;
}

static void close_world(void)
{
    sim_net_close(&w.net);
    sim_events_close(&w.events);
}

static void start(int i, double bytes, uint32_t sender, uint32_t receiver)
{
    w.on[i] = true;
    w.way[i][0] = sender;
    w.way[i][1] = receiver;
    w.way[i][2] = w.capacity[LINKS + 1] > 0 ? LINKS + 1 : 0;
    sim_flow_start(&w.net, &w.flows[i], sender, receiver, bytes);
}

/* All rates rise together; who meets a full link stays there. */
static void fill(void)
{
    double rest[LINKS + 2];
    int alive[LINKS + 2] = {0};
    bool fixed[FLOWS];

    memcpy(rest, w.capacity, sizeof rest);
    for (int i = 0; i < FLOWS; i++) {
        fixed[i] = !w.on[i];
        w.want[i] = 0;
        for (int k = 0; w.on[i] && k < 3; k++)
            alive[w.way[i][k]]++;
    }
    for (;;) {
        double rise = INFINITY;
        for (int l = 1; l < LINKS + 2; l++)
            if (alive[l] && rest[l] / alive[l] < rise)
                rise = rest[l] / alive[l];
        if (isinf(rise))
            return;
        for (int i = 0; i < FLOWS; i++)
            w.want[i] += fixed[i] ? 0 : rise;
        for (int l = 1; l < LINKS + 2; l++)
            rest[l] -= rise * alive[l];
        for (int i = 0; i < FLOWS; i++) {
            bool full = false;
            for (int k = 0; !fixed[i] && k < 3; k++)
                full |= w.way[i][k] && rest[w.way[i][k]] <= 1e-9 * w.capacity[w.way[i][k]];
            if (!full)
                continue;
            fixed[i] = true;
            for (int k = 0; k < 3; k++)
                alive[w.way[i][k]]--;
        }
    }
}

static double rate_of(const struct sim_flow *f)
{
    return f->place ? w.net.limit : f->rate;
}

static void compare(void)
{
    double sums[LINKS + 2] = {0};

    sim_net_settle(&w.net);
    fill();
    for (int i = 0; i < FLOWS; i++) {
        double rate = w.on[i] ? rate_of(&w.flows[i]) : 0;
        CHECKF(fabs(rate - w.want[i]) <= 1e-6 * w.want[i], "flow %d has %.9g, not %.9g", i, rate, w.want[i]);
        for (int k = 0; k < 3; k++)
            sums[w.way[i][k]] += rate;
    }
    for (uint32_t l = 1; l <= LINKS; l++) {
        const struct sim_link *one = &w.net.links[l];
        double rate = one->rate + (one->held ? one->held * w.net.limit : 0);
        CHECKF(fabs(rate - sums[l]) <= 1e-6 * sums[l] && rate <= w.capacity[l] * (1 + 1e-6),
               "link %u: it says %.9g, its flows have %.9g", l, rate, sums[l]);
    }
}

static void rates__flows_that_come_and_go__max_min_fair(void)
{
    double capacity[LINKS + 2];

    for (int round = 0; round < 80; round++) {
        for (int l = 0; l < LINKS + 1; l++)
            capacity[l] = below(3) ? 1 + below(8) : 1e3 * (1 + below(50));
        capacity[LINKS + 1] = round % 4 < 2 ? 0 : 1 + below(60); /* the switch */
        open_world(capacity);
        for (int step = 0; step < 150; step++) {
            int i = (int)below(FLOWS);
            if (w.on[i]) {
                w.on[i] = false;
                sim_flow_stop(&w.net, &w.flows[i]);
            } else {
                start(i, 1e12, 1 + below(SENDERS), round % 2 ? 1 + SENDERS + below(RECEIVERS) : 0);
            }
            if (below(3))
                compare();
        }
        compare();
        close_world();
    }
}

static void run_until(int ended)
{
    while (w.ended < ended) {
        if (sim_event_next(&w.events) > w.events.now && sim_net_due(&w.net))
            sim_net_settle(&w.net);
        REQUIRE(w.events.n);
        sim_event_fire(&w.events);
    }
}

static void near(double is, double should)
{
    CHECKF(fabs(is - should) < 1e-6, "it is %.9g, not %.9g", is, should);
}

static void bytes__of_all_flows__through_in_the_time_they_take(void)
{
    double capacity[LINKS + 2];

    for (int l = 0; l < LINKS + 2; l++)
        capacity[l] = 100;
    capacity[1] = 30;
    capacity[8] = 4; /* holds its flow back */
    capacity[LINKS + 1] = 0;
    open_world(capacity);
    start(0, 40, 1, 8);   /* 4 a second: 10 s */
    start(1, 130, 1, 9);  /* 13 a second: 10 s */
    start(2, 260, 1, 10); /* 13 for 10 s, then all 30: 10 + 130 / 30 s */
    run_until(2);
    near(w.events.now, 10);
    run_until(3);
    near(w.events.now, 10 + 130.0 / 30);
    sim_link_account(&w.net, 1);
    sim_link_account(&w.net, 8);
    near(w.net.links[1].gauge.busy, w.events.now);
    near(w.net.links[8].gauge.busy, 10);
    near(w.net.links[8].gauge.starved, w.events.now - 10);
    close_world();
}

/* Two of three flows are held back by the switch; then the third ends, then one of the two. */
static void bytes__through_a_switch__by_its_clock(void)
{
    double capacity[LINKS + 2];

    for (int l = 0; l < LINKS + 2; l++)
        capacity[l] = 100;
    capacity[1] = 10;
    capacity[LINKS + 1] = 90;
    open_world(capacity);
    start(0, 100, 1, 0);  /* 10 a second: 10 s */
    start(1, 850, 2, 0);  /* 40 a second for 10 s, then 45: 20 s */
    start(2, 1350, 3, 8); /* the same, then 90 of its 500 a second more: 850 by 20 s, then 500 / 90 */
    run_until(1);
    near(w.events.now, 10);
    CHECK(w.net.n_held == 2);
    run_until(2);
    near(w.events.now, 20);
    run_until(3);
    near(w.events.now, 20 + 500.0 / 90);
    sim_link_account(&w.net, 3);
    sim_link_account(&w.net, 2);
    near(w.net.links[3].gauge.busy, 13.5);
    near(w.net.links[3].gauge.blocked, w.events.now - 13.5);
    near(w.net.links[2].gauge.busy, 8.5);
    sim_net_settle(&w.net);
    near(w.net.gauge.busy, w.events.now);
    close_world();
}

static int order[4], n_order;

static void note(struct sim_event *e);

static struct sim_event events[4] = {{0, note}, {0, note}, {0, note}, {0, note}};

static void note(struct sim_event *e)
{
    order[n_order++] = (int)(e - events);
}

static void events__set_moved_cleared__in_order_of_time_then_of_setting(void)
{
    struct sim_events q = {0};

    sim_event_set(&q, &events[0], 3);
    sim_event_set(&q, &events[1], 2);
    sim_event_set(&q, &events[2], 2);
    sim_event_set(&q, &events[3], 1);
    sim_event_clear(&q, &events[3]);
    sim_event_clear(&q, &events[3]);
    sim_event_set(&q, &events[1], 2); /* again: now after events[2] */
    CHECK(sim_event_next(&q) == 2);
    while (q.n)
        sim_event_fire(&q);
    CHECK(n_order == 3 && order[0] == 2 && order[1] == 1 && order[2] == 0 && q.now == 3 && q.fired == 3);
    CHECK(isinf(sim_event_next(&q)));
    sim_events_close(&q);
}

struct timed {
    struct sim_event event;
    double at;
};

static double last;

static void later(struct sim_event *e)
{
    double at = ((struct timed *)e)->at;

    CHECKF(at >= last, "%g after %g", at, last);
    last = at;
}

static void events__many__in_order(void)
{
    static struct timed many[5000];
    struct sim_events q = {0};
    uint32_t left = 0;

    for (int i = 0; i < 20000; i++) {
        struct timed *t = &many[below(5000)];
        t->event.fire = later;
        if (below(4)) {
            t->at = last + below(1000);
            sim_event_set(&q, &t->event, t->at);
        } else {
            sim_event_clear(&q, &t->event);
        }
        if (i % 7 == 0 && q.n)
            sim_event_fire(&q);
    }
    for (int i = 0; i < 5000; i++)
        left += many[i].event.place != 0;
    CHECK(left == q.n && left > 1000);
    while (q.n)
        sim_event_fire(&q);
    sim_events_close(&q);
}

int main(void)
{
    CASE(rates__flows_that_come_and_go__max_min_fair);
    CASE(bytes__of_all_flows__through_in_the_time_they_take);
    CASE(bytes__through_a_switch__by_its_clock);
    CASE(events__set_moved_cleared__in_order_of_time_then_of_setting);
    CASE(events__many__in_order);
    return check_done();
}
