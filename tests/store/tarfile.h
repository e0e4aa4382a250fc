/* Writes tar archives for the tests, header by header, so that wrong ones can be made too. */
#ifndef HAPI_TESTS_STORE_TARFILE_H
#define HAPI_TESTS_STORE_TARFILE_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct tarfile {
    uint8_t *p;
    size_t n;
};

static inline uint8_t *tar_grow(struct tarfile *t, size_t n)
{
    t->p = realloc(t->p, t->n + n);
    if (!t->p)
        exit(1);
    memset(t->p + t->n, 0, n);
    t->n += n;
    return t->p + t->n - n;
}

static inline void tar_seal(uint8_t *h)
{
    unsigned sum = 0;
    memset(h + 148, ' ', 8);
    for (int i = 0; i < 512; i++)
        sum += h[i];
    snprintf((char *)h + 148, 8, "%06o", sum);
}

/* Only the header; name longer than 100 is cut. */
static inline void tar_header(struct tarfile *t, const char *name, char type, uint64_t size)
{
    uint8_t *h = tar_grow(t, 512);
    memcpy(h, name, strlen(name) < 100 ? strlen(name) : 100);
    memcpy(h + 100, "0000644", 8);
    snprintf((char *)h + 124, 12, "%011llo", (unsigned long long)size & 077777777777);
    memcpy(h + 136, "00000000000", 12);
    h[156] = (uint8_t)type;
    memcpy(h + 257, "ustar\00000", 8);
    tar_seal(h);
}

static inline void tar_data(struct tarfile *t, const void *data, size_t n)
{
    if (n)
        memcpy(tar_grow(t, (n + 511) / 512 * 512), data, n);
}

static inline void tar_add(struct tarfile *t, const char *name, const void *data, size_t n)
{
    tar_header(t, name, '0', n);
    tar_data(t, data, n);
}

static inline void tar_text(struct tarfile *t, const char *name, const char *text)
{
    tar_add(t, name, text, strlen(text));
}

static inline void tar_end(struct tarfile *t)
{
    tar_grow(t, 1024);
}

static inline void tar_save(struct tarfile *t, const char *path, size_t n)
{
    FILE *f = fopen(path, "wb");
    if (!f || fwrite(t->p, 1, n, f) != n || fclose(f))
        exit(1);
}

static inline void tar_free(struct tarfile *t)
{
    free(t->p);
    t->p = NULL;
    t->n = 0;
}

#endif
