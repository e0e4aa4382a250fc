#include "sim_event.h"

#include <math.h>
#include <stdlib.h>

#include "err.h"

enum { CHILDREN = 4, FIRST = 1 };

static bool before(const struct sim_entry *a, const struct sim_entry *b)
{
    return a->at < b->at || (a->at == b->at && a->order < b->order);
}

static void put(struct sim_events *q, uint32_t i, struct sim_entry e)
{
    q->heap[i] = e;
    e.event->place = i;
}

static uint32_t parent(uint32_t i)
{
    return (i - FIRST - 1) / CHILDREN + FIRST;
}

static void up(struct sim_events *q, uint32_t i, struct sim_entry e)
{
    for (; i > FIRST && before(&e, &q->heap[parent(i)]); i = parent(i))
        put(q, i, q->heap[parent(i)]);
    put(q, i, e);
}

static void down(struct sim_events *q, uint32_t i, struct sim_entry e)
{
    for (;;) {
        uint32_t first = (i - FIRST) * CHILDREN + FIRST + 1, least = first;
        if (first >= q->n + FIRST)
            break;
        for (uint32_t k = first + 1; k < first + CHILDREN && k < q->n + FIRST; k++)
            if (before(&q->heap[k], &q->heap[least]))
                least = k;
        if (before(&e, &q->heap[least]))
            break;
        put(q, i, q->heap[least]);
        i = least;
    }
    put(q, i, e);
}

static bool grow(struct sim_events *q)
{
    uint32_t capacity = q->capacity ? q->capacity * 2 : 1024;
    struct sim_entry *heap = realloc(q->heap, (capacity + FIRST) * sizeof *heap);

    if (!heap) {
        q->rc = HAPI_ENOMEM;
        return false;
    }
    q->heap = heap;
    q->capacity = capacity;
    return true;
}

void sim_event_set(struct sim_events *q, struct sim_event *e, double at)
{
    struct sim_entry entry = {at > q->now ? at : q->now, ++q->order, e};

    if (!e->place) {
        if (q->n == q->capacity && !grow(q))
            return;
        up(q, q->n++ + FIRST, entry);
    } else if (before(&entry, &q->heap[e->place])) {
        up(q, e->place, entry);
    } else {
        down(q, e->place, entry);
    }
}

void sim_event_clear(struct sim_events *q, struct sim_event *e)
{
    uint32_t i = e->place;

    if (!i)
        return;
    e->place = 0;
    struct sim_entry last = q->heap[--q->n + FIRST];
    if (last.event == e)
        return;
    if (i > FIRST && before(&last, &q->heap[parent(i)]))
        up(q, i, last);
    else
        down(q, i, last);
}

double sim_event_next(const struct sim_events *q)
{
    return q->n ? q->heap[FIRST].at : INFINITY;
}

void sim_event_fire(struct sim_events *q)
{
    struct sim_entry e = q->heap[FIRST];

    q->now = e.at;
    q->fired++;
    sim_event_clear(q, e.event);
    e.event->fire(e.event);
}

void sim_events_close(struct sim_events *q)
{
    free(q->heap);
}
