#include "arena.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { CHUNK = 64 << 10, ALIGN_MAX = 64 };

struct chunk {
    struct chunk *next;
    size_t size, used;
    unsigned char *data;
};

struct hapi_arena {
    struct chunk *head;
    size_t limit, used;
};

struct hapi_arena *hapi_arena_new(size_t limit)
{
    struct hapi_arena *a = calloc(1, sizeof *a);
    if (a)
        a->limit = limit;
    return a;
}

void hapi_arena_free(struct hapi_arena *a)
{
    if (!a)
        return;
    for (struct chunk *c = a->head, *next; c; c = next) {
        next = c->next;
        free(c->data);
        free(c);
    }
    free(a);
}

static struct chunk *chunk_add(struct hapi_arena *a, size_t bytes)
{
    struct chunk *c = malloc(sizeof *c);
    size_t size = bytes > CHUNK / 4 ? (bytes + ALIGN_MAX - 1) & ~(size_t)(ALIGN_MAX - 1) : CHUNK;

    if (!c)
        return NULL;
    c->data = aligned_alloc(ALIGN_MAX, size);
    if (!c->data) {
        free(c);
        return NULL;
    }
    c->size = size;
    c->used = 0;
    /* A large one goes behind the head, which keeps its free tail in use. */
    if (a->head && size != CHUNK) {
        c->next = a->head->next;
        a->head->next = c;
    } else {
        c->next = a->head;
        a->head = c;
    }
    return c;
}

void *hapi_arena_alloc(struct hapi_arena *a, size_t bytes, size_t align)
{
    struct chunk *c = a->head;
    size_t at = c ? (c->used + align - 1) & ~(align - 1) : 0;

    if (bytes > a->limit || a->used > a->limit - bytes)
        return NULL;
    if (!c || at > c->size || bytes > c->size - at) {
        c = chunk_add(a, bytes ? bytes : 1);
        if (!c)
            return NULL;
        at = 0;
    }
    void *p = c->data + at;
    c->used = at + bytes;
    a->used += bytes;
    memset(p, 0, bytes);
    return p;
}

void *hapi_arena_array(struct hapi_arena *a, size_t count, size_t size)
{
    size_t bytes;
    return __builtin_mul_overflow(count, size, &bytes) ? NULL : hapi_arena_alloc(a, bytes, 16);
}

char *hapi_arena_strndup(struct hapi_arena *a, const char *s, size_t n)
{
    char *p = n < SIZE_MAX ? hapi_arena_alloc(a, n + 1, 1) : NULL;
    if (p)
        memcpy(p, s, n);
    return p;
}

size_t hapi_arena_used(const struct hapi_arena *a)
{
    return a->used;
}
