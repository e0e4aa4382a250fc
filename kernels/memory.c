#include "memory.h"

#include <stdint.h>
#include <stdlib.h>

enum { BY_SIZE_MAX = 8192, LIVE_MAX = 4096 };

struct by_size {
    size_t bytes;
    size_t index;
};

/* Largest first; equal sizes in order of index, so that the same graph always gets the same plan. */
static int by_size_compare(const void *a, const void *b)
{
    const struct by_size *x = a, *y = b;

    if (x->bytes != y->bytes)
        return x->bytes < y->bytes ? 1 : -1;
    return x->index < y->index ? -1 : x->index > y->index;
}

static size_t round_up(size_t n)
{
    return (n + HAPI_MEMORY_ALIGN - 1) / HAPI_MEMORY_ALIGN * HAPI_MEMORY_ALIGN;
}

/* `placed` holds the indices of the items with an offset, in order of offset. */
static size_t gap_find(const struct hapi_lifetime *items, const size_t *placed, size_t n_placed,
                       const struct hapi_lifetime *it)
{
    size_t end = 0, best = SIZE_MAX, best_gap = SIZE_MAX, need = round_up(it->bytes);

    for (size_t i = 0; i < n_placed; i++) {
        const struct hapi_lifetime *p = &items[placed[i]];
        if (p->last < it->first || it->last < p->first)
            continue;
        if (p->offset > end && p->offset - end >= need && p->offset - end < best_gap) {
            best = end;
            best_gap = p->offset - end;
        }
        if (p->offset + round_up(p->bytes) > end)
            end = p->offset + round_up(p->bytes);
    }
    return best != SIZE_MAX ? best : end;
}

static void placed_insert(const struct hapi_lifetime *items, size_t *placed, size_t n_placed, size_t index)
{
    size_t at = n_placed;

    while (at > 0 && items[placed[at - 1]].offset > items[index].offset) {
        placed[at] = placed[at - 1];
        at--;
    }
    placed[at] = index;
}

static int by_size_place(struct hapi_lifetime *items, size_t n, const struct by_size *order, size_t *placed)
{
    size_t n_placed = 0;

    for (size_t i = 0; i < n; i++) {
        struct hapi_lifetime *it = &items[order[i].index];
        if (!it->bytes)
            continue;
        it->offset = gap_find(items, placed, n_placed, it);
        placed_insert(items, placed, n_placed++, order[i].index);
    }
    return HAPI_OK;
}

static int by_time_compare(const void *a, const void *b)
{
    const struct by_size *x = a, *y = b;

    if (x->bytes != y->bytes)
        return x->bytes < y->bytes ? -1 : 1;
    return x->index < y->index ? -1 : x->index > y->index;
}

/* `placed` holds what lives at the time of the item at hand. */
static int by_time_place(struct hapi_lifetime *items, size_t n, struct by_size *order, size_t *placed)
{
    size_t live = 0;

    for (size_t i = 0; i < n; i++)
        order[i] = (struct by_size){(size_t)(items[i].first < 0 ? 0 : items[i].first), i};
    qsort(order, n, sizeof *order, by_time_compare);
    for (size_t i = 0; i < n; i++) {
        struct hapi_lifetime *it = &items[order[i].index];
        size_t kept = 0;
        if (!it->bytes)
            continue;
        for (size_t k = 0; k < live; k++)
            if (items[placed[k]].last >= it->first)
                placed[kept++] = placed[k];
        live = kept;
        if (live == LIVE_MAX)
            return HAPI_ETOOBIG;
        it->offset = gap_find(items, placed, live, it);
        placed_insert(items, placed, live++, order[i].index);
    }
    return HAPI_OK;
}

int hapi_memory_place(struct hapi_lifetime *items, size_t n, size_t *total, struct hapi_err *err)
{
    struct by_size *order = calloc(n ? n : 1, sizeof *order);
    size_t *placed = calloc(n ? n : 1, sizeof *placed), sum = 0, top = 0;
    int rc = HAPI_OK;

    if (!order || !placed) {
        rc = hapi_err_set(err, HAPI_ENOMEM, 0, "no memory to plan %zu buffers", n);
        goto fail;
    }
    for (size_t i = 0; i < n; i++) {
        order[i] = (struct by_size){items[i].bytes, i};
        if (items[i].bytes > SIZE_MAX / 4 || sum > SIZE_MAX / 4) {
            rc = hapi_err_set(err, HAPI_ETOOBIG, 0, "activations do not fit in the address space");
            goto fail;
        }
        sum += round_up(items[i].bytes);
        items[i].offset = 0;
    }
    qsort(order, n, sizeof *order, by_size_compare);
    rc = n > BY_SIZE_MAX ? by_time_place(items, n, order, placed) : by_size_place(items, n, order, placed);
    if (rc)
        hapi_err_set(err, rc, 0, "more than %d tensors of %zu are needed at once", LIVE_MAX, n);
    for (size_t i = 0; i < n; i++)
        if (items[i].bytes && items[i].offset + round_up(items[i].bytes) > top)
            top = items[i].offset + round_up(items[i].bytes);
    *total = top;
fail:
    free(placed);
    free(order);
    return rc;
}
