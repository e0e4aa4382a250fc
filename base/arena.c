#include "arena.h"

#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

/* Large chunks are mapped: what is freed goes back at once, which malloc, once it has seen large blocks come
 * and go, does no more; and what is not used is never in memory. */
enum { CHUNK = 64 << 10, MAPPED_CHUNK = 1 << 20, ALIGN_MAX = 64, PAGE = 4096 };

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
        if (c->size > CHUNK)
            munmap(c->data, c->size);
        else
            free(c->data);
        free(c);
    }
    free(a);
}

static unsigned char *pages(size_t size)
{
    void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    return p == MAP_FAILED ? NULL : p;
}

static struct chunk *chunk_add(struct hapi_arena *a, size_t bytes)
{
    struct chunk *c = malloc(sizeof *c);
    /* An arena that has grown goes on in larger ones; what does not fit well has one of its own. */
    size_t usual = a->used < MAPPED_CHUNK / 4 ? CHUNK : MAPPED_CHUNK;
    bool own = bytes > usual / 4;
    size_t size = own ? bytes : usual, unit = size > CHUNK ? PAGE : ALIGN_MAX;

    size = (size + unit - 1) / unit * unit;
    if (!c)
        return NULL;
    c->data = size > CHUNK ? pages(size) : aligned_alloc(ALIGN_MAX, size);
    if (!c->data) {
        free(c);
        return NULL;
    }
    c->size = size;
    c->used = 0;
    /* A large one goes behind the head, which keeps its free tail in use. */
    if (a->head && own) {
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
