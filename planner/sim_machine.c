#include "sim_machine.h"

#include <stddef.h>
#include <stdlib.h>

#include "err.h"

/* ------------------------------------------------------------------ sharing */

static bool before(const struct sim_job *a, const struct sim_job *b)
{
    return a->finish < b->finish || (a->finish == b->finish && a->order < b->order);
}

static void push(struct sim_share *s, struct sim_job *j)
{
    uint32_t i = s->n++;

    for (; i && before(j, s->heap[(i - 1) / 2]); i = (i - 1) / 2)
        s->heap[i] = s->heap[(i - 1) / 2];
    s->heap[i] = j;
}

static struct sim_job *pop(struct sim_share *s)
{
    struct sim_job *top = s->heap[0], *last = s->heap[--s->n];
    uint32_t i = 0;

    for (uint32_t k; (k = 2 * i + 1) < s->n; i = k) {
        if (k + 1 < s->n && before(s->heap[k + 1], s->heap[k]))
            k++;
        if (before(last, s->heap[k]))
            break;
        s->heap[i] = s->heap[k];
    }
    s->heap[i] = last;
    return top;
}

/* Brings the clock up to now, then goes on with the jobs that there are. */
static void share_go(struct sim_share *s)
{
    struct sim_events *q = s->machine->events;
    double busy = s->n < s->capacity ? s->n : s->capacity;

    s->since = q->now;
    s->rate = s->n ? busy / s->n / (1 + s->contention * (busy - 1)) : 0;
    if (s->n)
        sim_event_set(q, &s->event, q->now + (s->heap[0]->finish - s->clock) / s->rate);
    else
        sim_event_clear(q, &s->event);
    sim_gauge_set(&s->gauge, q->now, busy / s->capacity, s->gauge.is_blocked);
}

static void share_add(struct sim_share *s, struct sim_job *j, double work)
{
    struct sim_events *q = s->machine->events;

    if (s->n == s->room) {
        uint32_t room = s->room ? s->room * 2 : 4;
        struct sim_job **heap = realloc(s->heap, room * sizeof(struct sim_job *));
        if (!heap) {
            q->rc = HAPI_ENOMEM;
            return;
        }
        s->heap = heap;
        s->room = room;
    }
    s->clock = s->n ? s->clock + s->rate * (q->now - s->since) : 0;
    j->finish = s->clock + work;
    j->order = ++s->order;
    push(s, j);
    share_go(s);
}

static void phase_done(struct sim_machine *m, struct sim_job *j);

static void share_fire(struct sim_event *e)
{
    struct sim_share *s = (struct sim_share *)((char *)e - offsetof(struct sim_share, event));
    struct sim_job *j = pop(s);

    s->clock = j->finish;
    share_go(s);
    phase_done(s->machine, j);
}

/* ------------------------------------------------------------------ threads */

/* Where there are devices the network has a phase of its own, else all is one. A phase of nothing is left
 * out; a job of nothing is one of the cores, for an instant. */
static void phase_next(struct sim_machine *m, struct sim_job *j)
{
    while (j->phase + 1 < SIM_PHASES && !j->work[j->phase])
        j->phase++;
    share_add(j->phase == 1 && m->devices.capacity > 0 ? &m->devices : &m->cores, j, j->work[j->phase]);
}

static void job_start(struct sim_machine *m, struct sim_job *j)
{
    m->running += !j->threadless;
    j->phase = 0;
    if (m->devices.capacity <= 0) {
        j->work[0] += j->work[1] + j->work[2];
        j->work[1] = j->work[2] = 0;
    }
    phase_next(m, j);
}

static void phase_done(struct sim_machine *m, struct sim_job *j)
{
    while (++j->phase < SIM_PHASES)
        if (j->work[j->phase]) {
            phase_next(m, j);
            return;
        }
    m->running -= !j->threadless;
    struct sim_job *next = m->queue;
    if (next && m->running < m->threads) {
        m->queue = next->next;
        m->queue_end = m->queue ? m->queue_end : &m->queue;
        job_start(m, next);
    }
    j->done(j);
}

void sim_machine_submit(struct sim_machine *m, struct sim_job *j)
{
    if (j->threadless || m->running < m->threads) {
        job_start(m, j);
        return;
    }
    j->next = NULL;
    *m->queue_end = j;
    m->queue_end = &j->next;
}

static void share_init(struct sim_share *s, struct sim_machine *m, double capacity, double contention)
{
    *s = (struct sim_share){
        .machine = m, .capacity = capacity, .contention = contention, .event = {.fire = share_fire}};
}

void sim_machine_init(struct sim_machine *m, struct sim_events *events, uint32_t cores, double contention,
                      uint32_t devices, uint32_t jobs)
{
    *m = (struct sim_machine){.events = events, .threads = jobs, .queue_end = &m->queue};
    share_init(&m->cores, m, cores, contention);
    share_init(&m->devices, m, devices, 0);
}

void sim_machine_close(struct sim_machine *m)
{
    free(m->cores.heap);
    free(m->devices.heap);
}

void sim_machine_blocked(struct sim_machine *m, bool is_blocked)
{
    struct sim_share *const all[] = {&m->cores, &m->devices};

    for (int i = 0; i < 2; i++)
        if (all[i]->gauge.is_blocked != is_blocked)
            sim_gauge_set(&all[i]->gauge, m->events->now, all[i]->gauge.use, is_blocked);
}
