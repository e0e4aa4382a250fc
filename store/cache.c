/*
 * The index of one dataset on disk, little-endian:
 *
 *     magic[8] | tar u32 | path str | n_entries u32 | entries | SHA-256 of all before
 *     entry: name str | version {u8, bytes} | digest[32] | bytes u64 | n_samples u32 | samples
 *            | left_out u32 | n_problems u32 | texts str
 *     sample: key str | class str | offset u64 | bytes u32          str: u16 length, bytes
 *
 * The file is an opinion, not a truth: whatever does not hold together is ignored and the objects are read
 * again. It is replaced by rename, so that a reader sees the old one or the new one.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "convert.h"
#include "store_impl.h"

static const char magic[8] = {'H', 'A', 'P', 'I', 'I', 'D', 'X', '1'};

enum { SAMPLE_MIN = 16, ENTRY_MIN = 2 + 1 + HAPI_DIGEST_SIZE + 8 + 12 };
#define CACHE_MAX ((uint64_t)4 << 30)

static int cache_path(char *out, size_t size, const struct hapi_store *s, const char *dataset)
{
    char text[8192];
    uint8_t digest[HAPI_DIGEST_SIZE];
    int n = snprintf(text, sizeof text, "%s/%s", s->dir, dataset);

    if (n >= (int)sizeof text)
        return HAPI_ETOOBIG;
    hapi_sha256(digest, text, (size_t)n);
    n = snprintf(out, size, "%s/", s->opt.cache_dir);
    for (int i = 0; i < 16 && n + 3 < (int)size; i++)
        n += snprintf(out + n, size - (size_t)n, "%02x", digest[i]);
    n += n < (int)size ? snprintf(out + n, size - (size_t)n, ".index") : 0;
    return n < (int)size ? 0 : HAPI_ETOOBIG;
}

/* ---- reading */

struct cursor {
    const uint8_t *p;
    size_t n;
    bool bad;
    struct hapi_arena *arena;
};

static const uint8_t *take(struct cursor *c, size_t n)
{
    if (c->bad || n > c->n) {
        c->bad = true;
        return NULL;
    }
    c->p += n;
    c->n -= n;
    return c->p - n;
}

static uint64_t get(struct cursor *c, int bytes)
{
    const uint8_t *p = take(c, (size_t)bytes);
    uint64_t v = 0;

    for (int i = 0; p && i < bytes; i++)
        v |= (uint64_t)p[i] << (8 * i);
    return v;
}

static const char *get_text(struct cursor *c)
{
    size_t n = (size_t)get(c, 2);
    const uint8_t *p = take(c, n);

    if (!p || memchr(p, '\0', n)) {
        c->bad = true;
        return "";
    }
    const char *s = hapi_arena_strndup(c->arena, (const char *)p, n);
    if (!s)
        c->bad = true;
    return s ? s : "";
}

static void get_samples(struct cursor *c, struct hapi_entry *e)
{
    uint64_t n = get(c, 4);

    if (c->bad || n > c->n / SAMPLE_MIN || (n && !(e->shard.samples = calloc(n, sizeof *e->shard.samples)))) {
        c->bad = true;
        return;
    }
    for (e->shard.n_samples = 0; e->shard.n_samples < n && !c->bad; e->shard.n_samples++) {
        struct hapi_shard_sample *s = &e->shard.samples[e->shard.n_samples];
        s->key = get_text(c);
        s->class_name = get_text(c);
        s->offset = get(c, 8);
        s->bytes = (uint32_t)get(c, 4);
        if (s->offset > e->bytes || s->bytes > e->bytes - s->offset || !*s->key || !*s->class_name)
            c->bad = true;
    }
}

static void get_entry(struct cursor *c, struct hapi_entry *e)
{
    e->name = get_text(c);
    e->version.size = (uint8_t)get(c, 1);
    const uint8_t *v = e->version.size <= HAPI_VERSION_MAX ? take(c, e->version.size) : NULL;
    const uint8_t *d = v ? take(c, HAPI_DIGEST_SIZE) : NULL;
    if (!d) {
        c->bad = true;
        return;
    }
    memcpy(e->version.data, v, e->version.size);
    memcpy(e->digest, d, HAPI_DIGEST_SIZE);
    e->bytes = get(c, 8);
    get_samples(c, e);
    uint32_t left_out = (uint32_t)get(c, 4), n = (uint32_t)get(c, 4);
    if (n > HAPI_PROBLEMS_MAX)
        c->bad = true;
    for (uint32_t i = 0; i < n && !c->bad; i++)
        if (hapi_problem_add(&e->shard.problems, c->arena, "%s", get_text(c)))
            c->bad = true;
    e->shard.problems.left_out = left_out;
}

static void get_all(struct cursor *c, struct hapi_entries *out, const struct hapi_store *s,
                    const struct hapi_dataset_impl *d)
{
    char path[8192];
    const uint8_t *head = take(c, sizeof magic);

    snprintf(path, sizeof path, "%s/%s", s->dir, d->pub.name);
    if (!head || memcmp(head, magic, sizeof magic) || get(c, 4) != d->tar || strcmp(get_text(c), path)) {
        c->bad = true;
        return;
    }
    uint64_t n = get(c, 4);
    if (n > c->n / ENTRY_MIN)
        c->bad = true;
    for (uint64_t i = 0; i < n && !c->bad; i++) {
        struct hapi_entry *e = hapi_entries_add(out);
        if (!e) {
            c->bad = true;
            return;
        }
        get_entry(c, e);
        if (i && strcmp(out->v[i - 1].name, out->v[i].name) >= 0) /* it is searched by bisection */
            c->bad = true;
    }
    if (c->n)
        c->bad = true;
}

/* NULL: none, unreadable or implausibly large. */
static uint8_t *file_load(const char *path, size_t *size)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    struct stat st;
    uint8_t *p = NULL;

    if (fd < 0)
        return NULL;
    if (!fstat(fd, &st) && S_ISREG(st.st_mode) && st.st_size > HAPI_DIGEST_SIZE &&
        (uint64_t)st.st_size < CACHE_MAX && (p = malloc((size_t)st.st_size))) {
        *size = 0;
        while (*size < (size_t)st.st_size) {
            ssize_t k = read(fd, p + *size, (size_t)st.st_size - *size);
            if (k <= 0)
                break;
            *size += (size_t)k;
        }
    }
    close(fd);
    if (p && *size <= HAPI_DIGEST_SIZE) {
        free(p);
        return NULL;
    }
    return p;
}

int hapi_cache_load(struct hapi_entries *out, const struct hapi_store *s, const struct hapi_dataset_impl *d)
{
    char path[8192];
    uint8_t digest[HAPI_DIGEST_SIZE], *file;
    size_t size;

    memset(out, 0, sizeof *out);
    if (!s->opt.cache_dir || cache_path(path, sizeof path, s, d->pub.name) ||
        !(file = file_load(path, &size)))
        return 0;
    struct cursor c = {.p = file, .n = size - HAPI_DIGEST_SIZE, .arena = d->arena};
    hapi_sha256(digest, file, c.n);
    if (memcmp(digest, file + c.n, sizeof digest))
        c.bad = true;
    else
        get_all(&c, out, s, d);
    free(file);
    if (c.bad)
        hapi_entries_fini(out);
    return 0;
}

/* ---- writing */

struct writer {
    uint8_t *p;
    size_t n, cap;
    bool bad;
};

static void put(struct writer *w, const void *data, size_t n)
{
    if (!w->bad && n > w->cap - w->n) {
        size_t cap = 2 * w->cap + n + 4096;
        uint8_t *p = realloc(w->p, cap);
        if (!p)
            w->bad = true;
        else {
            w->p = p;
            w->cap = cap;
        }
    }
    if (w->bad || !n)
        return;
    memcpy(w->p + w->n, data, n);
    w->n += n;
}

static void put_number(struct writer *w, uint64_t v, int bytes)
{
    uint8_t b[8];
    for (int i = 0; i < bytes; i++)
        b[i] = (uint8_t)(v >> (8 * i));
    put(w, b, (size_t)bytes);
}

static void put_text(struct writer *w, const char *s)
{
    size_t n = strlen(s);
    if (n > UINT16_MAX)
        w->bad = true;
    put_number(w, n, 2);
    put(w, s, n);
}

static void put_entry(struct writer *w, const struct hapi_entry *e)
{
    put_text(w, e->name);
    put_number(w, e->version.size, 1);
    put(w, e->version.data, e->version.size);
    put(w, e->digest, HAPI_DIGEST_SIZE);
    put_number(w, e->bytes, 8);
    put_number(w, e->shard.n_samples, 4);
    for (uint32_t i = 0; i < e->shard.n_samples; i++) {
        const struct hapi_shard_sample *s = &e->shard.samples[i];
        put_text(w, s->key);
        put_text(w, s->class_name);
        put_number(w, s->offset, 8);
        put_number(w, s->bytes, 4);
    }
    put_number(w, e->shard.problems.left_out, 4);
    put_number(w, e->shard.problems.n, 4);
    for (uint32_t i = 0; i < e->shard.problems.n; i++)
        put_text(w, e->shard.problems.text[i]);
}

static int file_write(const char *temp, int fd, const struct writer *w, struct hapi_err *err)
{
    for (size_t at = 0; at < w->n;) {
        ssize_t k = write(fd, w->p + at, w->n - at);
        if (k < 0 && errno != EINTR)
            return hapi_err_errno(err, errno, "cannot write %s", temp);
        at += k > 0 ? (size_t)k : 0;
    }
    return fsync(fd) ? hapi_err_errno(err, errno, "cannot write %s", temp) : 0;
}

static int file_replace(const char *path, const struct writer *w, struct hapi_err *err)
{
    char temp[8300];
    int fd, rc;

    snprintf(temp, sizeof temp, "%s.XXXXXX", path);
    fd = mkostemp(temp, O_CLOEXEC);
    if (fd < 0)
        return hapi_err_errno(err, errno, "cannot create %s", temp);
    rc = file_write(temp, fd, w, err);
    close(fd);
    if (!rc && rename(temp, path))
        rc = hapi_err_errno(err, errno, "cannot rename %s", temp);
    if (rc)
        unlink(temp);
    return rc;
}

int hapi_cache_save(const struct hapi_entries *e, const struct hapi_store *s,
                    const struct hapi_dataset_impl *d, struct hapi_err *err)
{
    char path[8192];
    uint8_t digest[HAPI_DIGEST_SIZE];
    struct writer w = {0};
    int rc;

    if (cache_path(path, sizeof path, s, d->pub.name))
        return hapi_err_set(err, HAPI_ETOOBIG, 0, "the name of the cache file is too long");
    if (mkdir(s->opt.cache_dir, 0777) && errno != EEXIST)
        return hapi_err_errno(err, errno, "cannot make the folder %s", s->opt.cache_dir);
    put(&w, magic, sizeof magic);
    put_number(&w, d->tar, 4);
    put_number(&w, strlen(s->dir) + 1 + strlen(d->pub.name), 2);
    put(&w, s->dir, strlen(s->dir));
    put(&w, "/", 1);
    put(&w, d->pub.name, strlen(d->pub.name));
    put_number(&w, e->n, 4);
    for (uint32_t i = 0; i < e->n; i++)
        put_entry(&w, &e->v[i]);
    if (!w.bad) {
        hapi_sha256(digest, w.p, w.n);
        put(&w, digest, sizeof digest);
    }
    rc = w.bad ? hapi_err_set(err, HAPI_ENOMEM, 0, "no memory to write the index")
               : file_replace(path, &w, err);
    free(w.p);
    return rc;
}
