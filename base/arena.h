/*
 * A bump allocator with a hard bound: many small objects of one lifetime, freed at once. What input from
 * outside may cost is bounded by `limit`. Not thread-safe.
 *
 *     struct hapi_arena *a = hapi_arena_new(64 << 20);
 *     struct node *n = hapi_arena_alloc(a, sizeof *n, _Alignof(struct node));   NULL: over the limit
 *     hapi_arena_free(a);
 */
#ifndef HAPI_BASE_ARENA_H
#define HAPI_BASE_ARENA_H

#include <stddef.h>

struct hapi_arena;

/* NULL when out of memory. Nothing beyond a small header is taken until the first allocation. */
struct hapi_arena *hapi_arena_new(size_t limit);
void hapi_arena_free(struct hapi_arena *a);
/* Zeroed memory, aligned to `align` (a power of two <= 64); NULL over the limit or out of memory. */
void *hapi_arena_alloc(struct hapi_arena *a, size_t bytes, size_t align);
/* count * size with overflow checked, aligned to 16. */
void *hapi_arena_array(struct hapi_arena *a, size_t count, size_t size);
/* Copies n bytes of s and terminates them. */
char *hapi_arena_strndup(struct hapi_arena *a, const char *s, size_t n);
size_t hapi_arena_used(const struct hapi_arena *a);

#endif
