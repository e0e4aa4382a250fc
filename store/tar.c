#include "tar.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

enum { BLOCK = 512, PAX_MAX = 64 << 10 };

/* Fields of a header block: offset and size. */
enum {
    AT_NAME = 0,
    NAME_SIZE = 100,
    AT_SIZE = 124,
    NUMBER_SIZE = 12,
    AT_CHECKSUM = 148,
    CHECKSUM_SIZE = 8,
    AT_TYPE = 156,
    AT_MAGIC = 257,
    AT_PREFIX = 345,
    PREFIX_SIZE = 155,
    AT_GNU_EXTENDED = 482, /* of an old GNU sparse header */
    AT_GNU_MORE = 504      /* of its continuation blocks */
};

struct walk {
    const struct hapi_tar_source *src;
    struct hapi_err *err;
    uint64_t at;                      /* of the next header */
    char name[HAPI_TAR_NAME_MAX + 1]; /* of the next member, from pax or GNU; "" when not given */
    bool has_size, sparse;
    uint64_t size; /* from pax */
    char extra[PAX_MAX];
    uint8_t block[BLOCK];
};

static int malformed(struct walk *w, const char *what)
{
    return hapi_err_set(w->err, HAPI_EFORMAT, 0, "%s at byte %llu", what, (unsigned long long)w->at);
}

static bool checksum_ok(const uint8_t *b)
{
    uint32_t want = 0, sum = 0;
    int32_t old = 0; /* some old programs summed signed bytes */
    int i = AT_CHECKSUM;

    while (i < AT_CHECKSUM + CHECKSUM_SIZE && b[i] == ' ')
        i++;
    for (; i < AT_CHECKSUM + CHECKSUM_SIZE && b[i] >= '0' && b[i] <= '7'; i++)
        want = want * 8 + (uint32_t)(b[i] - '0');
    for (i = 0; i < BLOCK; i++) {
        bool own = i >= AT_CHECKSUM && i < AT_CHECKSUM + CHECKSUM_SIZE;
        sum += own ? ' ' : b[i];
        old += own ? ' ' : (int8_t)b[i];
    }
    return want == sum || (int64_t)want == (int64_t)old;
}

/* Octal text, or base 256 when the top bit is set. False: malformed, negative or too large for int64. */
static bool number(const uint8_t *p, int n, uint64_t *out)
{
    uint64_t v = 0;
    int i = 0;

    if (p[0] & 0x80) {
        if (p[0] != 0x80) /* negative, or more than 88 bits */
            return false;
        for (i = 1; i < n; i++) {
            if (v >> 55)
                return false;
            v = v << 8 | p[i];
        }
        *out = v;
        return true;
    }
    while (i < n && p[i] == ' ')
        i++;
    for (; i < n && p[i] >= '0' && p[i] <= '7'; i++)
        v = v * 8 + (uint64_t)(p[i] - '0'); /* at most 36 bits */
    for (; i < n; i++)
        if (p[i] != ' ' && p[i] != '\0')
            return false;
    *out = v;
    return true;
}

/* The member's bytes plus padding must lie inside; the padding of the last one may be missing. */
static bool inside(const struct walk *w, uint64_t offset, uint64_t size)
{
    return offset <= w->src->size && size <= w->src->size - offset;
}

static uint64_t padded_end(const struct walk *w, uint64_t offset, uint64_t size)
{
    uint64_t pad = (BLOCK - size % BLOCK) % BLOCK, end = offset + size;
    return w->src->size - end < pad ? w->src->size : end + pad;
}

/* One pax record's number: decimal, the whole of the text. */
static bool decimal(const char *p, size_t n, uint64_t *out)
{
    uint64_t v = 0;

    if (!n || n > 18)
        return false;
    for (size_t i = 0; i < n; i++) {
        if (p[i] < '0' || p[i] > '9')
            return false;
        v = v * 10 + (uint64_t)(p[i] - '0');
    }
    *out = v;
    return true;
}

static bool take_name(struct walk *w, const char *p, size_t n)
{
    if (!n || n > HAPI_TAR_NAME_MAX || memchr(p, '\0', n))
        return false;
    memcpy(w->name, p, n);
    w->name[n] = '\0';
    return true;
}

static bool key_is(const char *key, size_t n, const char *name)
{
    return n == strlen(name) && !memcmp(key, name, n);
}

/* Records "LENGTH KEY=VALUE\n", LENGTH counting all of it. */
static int pax_parse(struct walk *w, size_t n)
{
    const char *p = w->extra;

    while (n) {
        const char *space = memchr(p, ' ', n < 20 ? n : 20);
        uint64_t size;
        if (!space || !decimal(p, (size_t)(space - p), &size) || !size || size > n || p[size - 1] != '\n')
            return malformed(w, "malformed pax record");
        size_t head = (size_t)(space - p) + 1;
        if (head + 1 >= size)
            return malformed(w, "malformed pax record");
        const char *key = space + 1, *eq = memchr(key, '=', (size_t)size - head - 1);
        if (!eq || eq == key)
            return malformed(w, "pax record without a key");
        size_t key_size = (size_t)(eq - key), value_size = (size_t)size - head - key_size - 2;
        if (key_is(key, key_size, "path") && value_size && !take_name(w, eq + 1, value_size))
            return malformed(w, "malformed pax path");
        if (key_is(key, key_size, "size") && value_size) {
            if (!decimal(eq + 1, value_size, &w->size))
                return malformed(w, "malformed pax size");
            w->has_size = true;
        }
        if (key_size > 11 && !memcmp(key, "GNU.sparse.", 11))
            w->sparse = true;
        p += size;
        n -= (size_t)size;
    }
    return 0;
}

static int extra_read(struct walk *w, uint64_t size)
{
    if (size > PAX_MAX)
        return malformed(w, "extended header larger than 64 KiB");
    return size ? w->src->read_at(w->src->user, w->extra, (size_t)size, w->at + BLOCK, w->err) : 0;
}

/* x, g, L and K: they speak of the next member. */
static int extension(struct walk *w, uint8_t type, uint64_t size)
{
    int rc;

    if (!inside(w, w->at + BLOCK, size))
        return malformed(w, "cut off: extended header");
    if (type == 'x' || type == 'L') {
        if ((rc = extra_read(w, size)))
            return rc;
        size_t n = (size_t)size;
        while (type == 'L' && n && !w->extra[n - 1]) /* GNU counts the terminator */
            n--;
        if (type == 'L' && !take_name(w, w->extra, n))
            return malformed(w, "malformed GNU long name");
        if (type == 'x' && (rc = pax_parse(w, n)))
            return rc;
    }
    w->at = padded_end(w, w->at + BLOCK, size);
    return 0;
}

/* prefix/name of a POSIX header, or name; GNU uses the prefix's place for other things. */
static void header_name(struct walk *w)
{
    const char *b = (const char *)w->block;
    size_t n = strnlen(b + AT_NAME, NAME_SIZE), k = 0;

    if (!memcmp(b + AT_MAGIC, "ustar", 6) && b[AT_PREFIX]) {
        k = strnlen(b + AT_PREFIX, PREFIX_SIZE);
        memcpy(w->name, b + AT_PREFIX, k);
        w->name[k++] = '/';
    }
    memcpy(w->name + k, b + AT_NAME, n);
    w->name[k + n] = '\0';
}

/* Old GNU sparse files have their map's continuation between header and data. */
static int skip_sparse(struct walk *w, uint64_t size)
{
    uint64_t at = w->at + BLOCK;
    bool more = w->block[AT_GNU_EXTENDED] != 0;
    int rc;

    while (more) {
        if (!inside(w, at, BLOCK))
            return malformed(w, "cut off: sparse map");
        if ((rc = w->src->read_at(w->src->user, w->block, BLOCK, at, w->err)))
            return rc;
        more = w->block[AT_GNU_MORE] != 0;
        at += BLOCK;
    }
    if (!inside(w, at, size))
        return malformed(w, "cut off: sparse file");
    w->at = padded_end(w, at, size);
    return 0;
}

static void forget(struct walk *w)
{
    w->name[0] = '\0';
    w->has_size = w->sparse = false;
}

/* A header that is no extension: delivers regular files, steps over the rest. */
static int entry(struct walk *w, uint8_t type, uint64_t size,
                 int (*member)(void *arg, const struct hapi_tar_member *m), void *arg)
{
    int rc = 0;

    if (!w->name[0])
        header_name(w);
    if (w->has_size)
        size = w->size;
    size_t n = strlen(w->name);
    bool directory = type == '5' || (type == '\0' && n && w->name[n - 1] == '/');
    if (directory || (type >= '1' && type <= '6')) {
        w->at += BLOCK; /* no data, whatever the size field says */
    } else if (type == 'S') {
        rc = skip_sparse(w, size);
    } else {
        struct hapi_tar_member m = {w->name, w->at + BLOCK, size};
        if (!inside(w, m.offset, size))
            return hapi_err_set(w->err, HAPI_EFORMAT, 0,
                                "cut off: member '%.200s' at byte %llu has %llu bytes, the file ends before",
                                w->name, (unsigned long long)w->at, (unsigned long long)size);
        while (!strncmp(m.name, "./", 2))
            m.name += 2;
        bool regular = type == '0' || type == '\0' || type == '7';
        if (regular && !w->sparse && *m.name)
            rc = member(arg, &m);
        w->at = padded_end(w, m.offset, size);
    }
    forget(w);
    return rc;
}

static bool is_zero(const uint8_t *b)
{
    for (int i = 0; i < BLOCK; i++)
        if (b[i])
            return false;
    return true;
}

static int walk_all(struct walk *w, int (*member)(void *arg, const struct hapi_tar_member *m), void *arg)
{
    int rc;

    for (;;) {
        if (w->at == w->src->size && w->at)
            return malformed(w, "no end-of-archive mark, perhaps cut off");
        if (!inside(w, w->at, BLOCK))
            return malformed(w, "cut off: header");
        if ((rc = w->src->read_at(w->src->user, w->block, BLOCK, w->at, w->err)))
            return rc;
        if (is_zero(w->block)) /* a lone zero block ends it too, as for GNU tar */
            return w->name[0] || w->has_size ? malformed(w, "extended header without a member") : 0;
        if (!checksum_ok(w->block))
            return malformed(w, "wrong header checksum");
        uint8_t type = w->block[AT_TYPE];
        uint64_t size;
        if (!number(w->block + AT_SIZE, NUMBER_SIZE, &size))
            return malformed(w, "malformed size");
        rc = type == 'x' || type == 'g' || type == 'L' || type == 'K' ? extension(w, type, size)
                                                                      : entry(w, type, size, member, arg);
        if (rc)
            return rc;
    }
}

int hapi_tar_walk(const struct hapi_tar_source *src,
                  int (*member)(void *arg, const struct hapi_tar_member *m), void *arg, struct hapi_err *err)
{
    struct walk *w = malloc(sizeof *w);
    int rc;

    if (!w)
        return hapi_err_set(err, HAPI_ENOMEM, 0, "no memory to read a tar file");
    w->src = src;
    w->err = err;
    w->at = 0;
    forget(w);
    rc = walk_all(w, member, arg);
    free(w);
    return rc;
}
