/* A temporary folder and files in it, removed at the end. */
#ifndef HAPI_TESTS_STORE_TREE_H
#define HAPI_TESTS_STORE_TREE_H

#include <fcntl.h>
#include <ftw.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "check.h"

static char root[256];

static inline void tree_new(void)
{
    const char *base = getenv("TMPDIR");
    snprintf(root, sizeof root, "%s/hapi-store-XXXXXX", base ? base : "/var/tmp");
    REQUIRE(mkdtemp(root));
}

static inline int tree_remove(const char *path, const struct stat *st, int flag, struct FTW *ftw)
{
    (void)st;
    (void)flag;
    (void)ftw;
    return remove(path);
}

static inline void tree_free(void)
{
    nftw(root, tree_remove, 16, FTW_DEPTH | FTW_PHYS);
}

/* root/name, in one of a few static buffers. */
static inline const char *at(const char *name)
{
    static char text[4][1024];
    static int next;
    next = (next + 1) % 4;
    snprintf(text[next], sizeof text[next], "%s/%s", root, name);
    return text[next];
}

static inline void folder(const char *name)
{
    REQUIRE(!mkdir(at(name), 0755));
}

/* Bytes that differ from file to file and from place to place. */
static inline void pattern(uint8_t *p, size_t n, uint32_t seed)
{
    uint32_t x = seed * 2654435761u + 1;
    for (size_t i = 0; i < n; i++)
        p[i] = (uint8_t)((x = x * 1664525 + 1013904223) >> 24);
}

static inline void file_bytes(const char *name, const void *data, size_t n)
{
    FILE *f = fopen(at(name), "wb");
    REQUIRE(f && fwrite(data, 1, n, f) == n && !fclose(f));
}

static inline void file_pattern(const char *name, size_t n, uint32_t seed)
{
    uint8_t *p = malloc(n + 1);
    REQUIRE(p);
    pattern(p, n, seed);
    file_bytes(name, p, n);
    free(p);
}

#endif
