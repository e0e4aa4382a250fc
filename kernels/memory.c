#include "memory.h"

#include <stdint.h>
#include <stdlib.h>

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

int hapi_memory_place(struct hapi_lifetime *items, size_t n, size_t *total, struct hapi_err *err)
{
    struct by_size *order = calloc(n ? n : 1, sizeof *order);
    size_t *placed = calloc(n ? n : 1, sizeof *placed), n_placed = 0, sum = 0, top = 0;
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
    }
    qsort(order, n, sizeof *order, by_size_compare);
    for (size_t i = 0; i < n; i++) {
        struct hapi_lifetime *it = &items[order[i].index];
        it->offset = 0;
        if (!it->bytes)
            continue;
        it->offset = gap_find(items, placed, n_placed, it);
        placed_insert(items, placed, n_placed++, order[i].index);
        if (it->offset + round_up(it->bytes) > top)
            top = it->offset + round_up(it->bytes);
    }
    *total = top;
fail:
    free(placed);
    free(order);
    return rc;
}
