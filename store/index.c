#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "store_impl.h"

enum { CHUNK = 1 << 20, TRIES = 3 };
#define STRINGS_MAX ((size_t)4 << 30) /* of one dataset's names and texts */

struct list {
    const char **v;
    size_t n, cap;
};

struct indexer {
    const struct hapi_store *store;
    struct hapi_dataset_impl *d;
    struct hapi_err *err;
    struct hapi_entries cached, entries;
    struct list names; /* "DATASET/OBJECT" */
    uint32_t reused;
    EVP_MD_CTX *md;
    unsigned char *chunk;
};

static int no_memory(struct indexer *x)
{
    return hapi_err_set(x->err, HAPI_ENOMEM, 0, "no memory for the index of dataset %s", x->d->pub.name);
}

#define PROBLEM(x, ...) (hapi_problem_add(&(x)->d->problems, (x)->d->arena, __VA_ARGS__) ? no_memory(x) : 0)

static int list_add(struct list *l, const char *s)
{
    if (l->n == l->cap) {
        size_t cap = l->cap ? 2 * l->cap : 256;
        const char **v = cap > UINT32_MAX / 2 ? NULL : realloc(l->v, cap * sizeof *v);
        if (!v)
            return HAPI_ENOMEM;
        l->v = v;
        l->cap = cap;
    }
    l->v[l->n++] = s;
    return 0;
}

static int by_text(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

void hapi_entries_fini(struct hapi_entries *e)
{
    for (uint32_t i = 0; i < e->n; i++)
        hapi_shard_fini(&e->v[i].shard);
    free(e->v);
    memset(e, 0, sizeof *e);
}

struct hapi_entry *hapi_entries_add(struct hapi_entries *e)
{
    if (e->n == e->cap) {
        uint32_t cap = e->cap ? 2 * e->cap : 64;
        struct hapi_entry *v = cap > UINT32_MAX / 2 ? NULL : realloc(e->v, cap * sizeof *v);
        if (!v)
            return NULL;
        e->v = v;
        e->cap = cap;
    }
    return memset(&e->v[e->n++], 0, sizeof *e->v);
}

/* ---- listing */

enum what { WHAT_OTHER, WHAT_FILE, WHAT_FOLDER };

static enum what what_is(const struct hapi_store *s, const char *path)
{
    struct hapi_file_info info;
    int fd = hapi_file_open(s->root, path, O_PATH), rc;

    if (fd < 0)
        return WHAT_OTHER;
    rc = hapi_file_info(fd, &info);
    close(fd);
    return rc ? WHAT_OTHER : info.regular ? WHAT_FILE : info.folder ? WHAT_FOLDER : WHAT_OTHER;
}

/* "path/entry" for each entry that is not hidden, sorted. HAPI_ESYS has been noted as a problem. */
static int folder_list(struct indexer *x, const char *path, struct list *out)
{
    int fd = hapi_file_open(x->store->root, path, O_RDONLY | O_DIRECTORY), rc = 0;
    DIR *dir = fd >= 0 ? fdopendir(fd) : NULL;
    struct dirent *e;

    if (!dir) {
        int why = fd < 0 ? -fd : errno;
        if (fd >= 0)
            close(fd);
        return PROBLEM(x, "%s: cannot be listed: %s", path, strerror(why)) ? HAPI_ENOMEM : HAPI_ESYS;
    }
    while (!rc && (errno = 0, e = readdir(dir))) {
        char full[8192];
        if (e->d_name[0] == '.')
            continue;
        if (!hapi_name_printable(e->d_name)) {
            rc = PROBLEM(x, "%s: a name with control characters is left out: '%s'", path, e->d_name);
            continue;
        }
        int n = snprintf(full, sizeof full, "%s/%s", path, e->d_name);
        const char *copy = n < (int)sizeof full ? hapi_arena_strndup(x->d->arena, full, (size_t)n) : NULL;
        if (!copy || list_add(out, copy))
            rc = no_memory(x);
    }
    if (!rc && errno)
        rc = PROBLEM(x, "%s: cannot be listed to its end: %s", path, strerror(errno));
    closedir(dir);
    if (!rc && out->n)
        qsort(out->v, out->n, sizeof *out->v, by_text);
    return rc;
}

static bool is_tar_name(const char *s)
{
    size_t n = strlen(s);
    return n > 4 && !strcmp(s + n - 4, ".tar");
}

static int class_folder_list(struct indexer *x, const char *path)
{
    struct list files = {0};
    size_t before = x->names.n;
    int rc = folder_list(x, path, &files);

    for (size_t i = 0; i < files.n && !rc; i++) {
        if (!hapi_image_stem(files.v[i]))
            rc = PROBLEM(x, "%s is not a .jpg or .jpeg", files.v[i]);
        else if (list_add(&x->names, files.v[i]))
            rc = no_memory(x);
    }
    if (!rc && x->names.n == before)
        rc = PROBLEM(x, "%s: no image in this folder", path);
    free(files.v);
    return rc == HAPI_ESYS ? 0 : rc;
}

static int names_list(struct indexer *x)
{
    struct list top = {0}, folders = {0};
    int rc = folder_list(x, x->d->pub.name, &top);

    for (size_t i = 0; i < top.n && !rc; i++) {
        enum what what = what_is(x->store, top.v[i]);
        if (is_tar_name(top.v[i]) && what != WHAT_FOLDER)
            rc = list_add(&x->names, top.v[i]) ? no_memory(x)
                                               : 0; /* unreadable ones are said by object_index */
        else if (what == WHAT_FOLDER)
            rc = list_add(&folders, top.v[i]) ? no_memory(x) : 0;
        else if (what == WHAT_OTHER)
            rc = PROBLEM(x, "%s: neither a file nor a folder beneath the data folder", top.v[i]);
    }
    x->d->tar = x->names.n > 0;
    if (!rc && x->d->tar && folders.n)
        rc = PROBLEM(x, "%s holds tar shards and folders: the %zu folders are left out", x->d->pub.name,
                     folders.n);
    else if (!rc && !x->d->tar && !folders.n)
        rc = PROBLEM(x, "%s holds neither class folders nor tar shards", x->d->pub.name);
    for (size_t i = 0; i < folders.n && !rc && !x->d->tar; i++)
        rc = class_folder_list(x, folders.v[i]);
    if (!rc && x->names.n)
        qsort(x->names.v, x->names.n, sizeof *x->names.v, by_text);
    free(top.v);
    free(folders.v);
    return rc == HAPI_ESYS ? 0 : rc;
}

/* ---- one object */

struct open_file {
    int fd;
    const char *name;
};

static int read_at(void *user, void *buf, size_t n, uint64_t off, struct hapi_err *err)
{
    const struct open_file *f = user;

    for (size_t got = 0; got < n;) {
        ssize_t k = pread(f->fd, (char *)buf + got, n - got, (off_t)(off + got));
        if (k < 0 && errno == EINTR)
            continue;
        if (k < 0)
            return hapi_err_errno(err, errno, "cannot read");
        if (!k)
            return hapi_err_set(err, HAPI_ESYS, 0, "became shorter while it was read");
        got += (size_t)k;
    }
    return 0;
}

static int digest_of(struct indexer *x, struct open_file *f, uint64_t bytes, uint8_t *out,
                     struct hapi_err *err)
{
    unsigned size = 0;
    int rc;

    if (!EVP_DigestInit_ex(x->md, EVP_sha256(), NULL))
        return hapi_err_set(err, HAPI_ENOMEM, 0, "OpenSSL cannot start SHA-256");
    for (uint64_t at = 0; at < bytes;) {
        size_t n = bytes - at < CHUNK ? (size_t)(bytes - at) : CHUNK;
        if ((rc = read_at(f, x->chunk, n, at, err)))
            return rc;
        if (!EVP_DigestUpdate(x->md, x->chunk, n))
            return hapi_err_set(err, HAPI_ENOMEM, 0, "OpenSSL cannot go on with SHA-256");
        at += n;
    }
    if (!EVP_DigestFinal_ex(x->md, out, &size) || size != HAPI_DIGEST_SIZE)
        return hapi_err_set(err, HAPI_ENOMEM, 0, "OpenSSL cannot end SHA-256");
    return 0;
}

/* Reads the whole file once; *info is of before, and the caller compares it with after. */
static int file_read(struct indexer *x, struct open_file *f, const struct hapi_file_info *info,
                     struct hapi_entry *e, struct hapi_err *err)
{
    int rc = digest_of(x, f, info->bytes, e->digest, err);

    if (!rc && x->d->tar) {
        struct hapi_tar_source src = {read_at, f, info->bytes};
        rc = hapi_shard_index(&e->shard, f->name, &src, x->d->arena, err);
    }
    e->version = info->version;
    e->bytes = info->bytes;
    return rc;
}

static struct hapi_entry *cached_find(struct indexer *x, const char *name)
{
    uint32_t lo = 0, hi = x->cached.n;

    while (lo < hi) {
        uint32_t mid = lo + (hi - lo) / 2;
        int c = strcmp(x->cached.v[mid].name, name);
        if (!c)
            return &x->cached.v[mid];
        *(c < 0 ? &lo : &hi) = c < 0 ? mid + 1 : mid;
    }
    return NULL;
}

/* HAPI_ESYS: *err says why the object is left out. */
static int fd_index(struct indexer *x, struct open_file *f, struct hapi_entry *e, struct hapi_err *err)
{
    struct hapi_file_info before, after;
    struct hapi_entry *old = cached_find(x, f->name);
    int rc, sys;

    for (int i = 0; i < TRIES; i++) {
        if ((sys = hapi_file_info(f->fd, &before)))
            return hapi_err_errno(err, -sys, "cannot stat");
        if (!before.regular)
            return hapi_err_set(err, HAPI_ESYS, 0, "not a regular file");
        if (!x->d->tar && before.bytes > HAPI_SAMPLE_BYTES_MAX)
            return hapi_err_set(err, HAPI_ESYS, 0, "larger than 1 GiB");
        if (old && hapi_version_equal(&old->version, &before.version)) {
            const char *name = e->name;
            *e = *old;
            e->name = name;
            memset(&old->shard, 0, sizeof old->shard); /* moved */
            x->reused++;
            return 0;
        }
        if ((rc = file_read(x, f, &before, e, err)))
            return rc;
        if ((sys = hapi_file_info(f->fd, &after)))
            return hapi_err_errno(err, -sys, "cannot stat");
        if (hapi_version_equal(&before.version, &after.version))
            return 0;
        hapi_shard_fini(&e->shard);
    }
    return hapi_err_set(err, HAPI_ESYS, 0, "changes while it is read");
}

static int object_index(struct indexer *x, const char *path)
{
    struct open_file f = {hapi_file_open(x->store->root, path, O_RDONLY), path + strlen(x->d->pub.name) + 1};
    struct hapi_entry *e;
    struct hapi_err why = {0};
    int rc;

    if (f.fd < 0) {
        const char *hint = f.fd == -EXDEV ? " (a link that leads out of the data folder)" : "";
        return PROBLEM(x, "%s: cannot be opened: %s%s", f.name, strerror(-f.fd), hint);
    }
    if (!(e = hapi_entries_add(&x->entries))) {
        close(f.fd);
        return no_memory(x);
    }
    e->name = f.name;
    rc = fd_index(x, &f, e, &why);
    close(f.fd);
    if (rc) {
        hapi_shard_fini(&e->shard);
        x->entries.n--;
        return rc == HAPI_ENOMEM ? no_memory(x) : PROBLEM(x, "%s: %s", f.name, why.text);
    }
    for (uint32_t i = 0; i < e->shard.problems.n; i++)
        if ((rc = PROBLEM(x, "%s", e->shard.problems.text[i])))
            return rc;
    x->d->problems.left_out += e->shard.problems.left_out;
    return 0;
}

static int all_index(struct indexer *x)
{
    struct hapi_err why = {0};
    int rc;

    if ((rc = names_list(x)))
        return rc;
    if (hapi_cache_load(&x->cached, x->store, x->d) == HAPI_ENOMEM)
        return no_memory(x);
    for (size_t i = 0; i < x->names.n; i++)
        if ((rc = object_index(x, x->names.v[i])))
            return rc;
    bool same = x->reused == x->entries.n && x->entries.n == x->cached.n;
    if (x->store->opt.cache_dir && !same && hapi_cache_save(&x->entries, x->store, x->d, &why) &&
        (rc = PROBLEM(x, "the index is not cached: %s", why.text)))
        return rc;
    return hapi_dataset_arrange(x->d, &x->entries, x->err);
}

int hapi_dataset_index(struct hapi_dataset_impl **out, const struct hapi_store *s, const char *name,
                       struct hapi_err *err)
{
    struct hapi_dataset_impl *d = calloc(1, sizeof *d);
    struct indexer x = {.store = s, .d = d, .err = err};
    int rc = HAPI_ENOMEM;

    if (!d || !(d->arena = hapi_arena_new(STRINGS_MAX)) ||
        !(d->pub.name = hapi_arena_strndup(d->arena, name, strlen(name)))) {
        hapi_dataset_free(d);
        return hapi_err_set(err, rc, 0, "no memory for dataset %s", name);
    }
    x.md = EVP_MD_CTX_new();
    x.chunk = malloc(CHUNK);
    rc = x.md && x.chunk ? all_index(&x) : no_memory(&x);
    EVP_MD_CTX_free(x.md);
    free(x.chunk);
    free(x.names.v);
    hapi_entries_fini(&x.cached);
    hapi_entries_fini(&x.entries);
    if (rc)
        hapi_dataset_free(d);
    else
        *out = d;
    return rc;
}
