#include "store.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "store_impl.h"

static int by_text(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static void names_free(char **v, size_t n)
{
    for (size_t i = 0; i < n; i++)
        free(v[i]);
    free(v);
}

/* A folder beneath DIR that is not the index cache. */
static bool is_dataset(const struct hapi_store *s, const char *name)
{
    struct stat st, cache;
    int fd = hapi_file_open(s->root, name, O_PATH);
    bool yes;

    if (fd < 0)
        return false;
    yes = !fstat(fd, &st) && S_ISDIR(st.st_mode);
    if (yes && s->opt.cache_dir && !stat(s->opt.cache_dir, &cache))
        yes = st.st_dev != cache.st_dev || st.st_ino != cache.st_ino;
    close(fd);
    return yes;
}

static int names_list(const struct hapi_store *s, char ***out, size_t *n, struct hapi_err *err)
{
    DIR *dir = opendir(s->dir);
    struct dirent *e;
    size_t cap = 0;
    int rc = 0;

    if (!dir)
        return hapi_err_errno(err, errno, "cannot list %s", s->dir);
    while (!rc && (errno = 0, e = readdir(dir))) {
        if (e->d_name[0] == '.' || !hapi_name_printable(e->d_name) || !is_dataset(s, e->d_name))
            continue;
        if (*n == cap) {
            char **v = realloc(*out, (cap = 2 * cap + 16) * sizeof *v);
            if (v)
                *out = v;
            else
                rc = HAPI_ENOMEM;
        }
        if (!rc && !((*out)[*n] = strdup(e->d_name)))
            rc = HAPI_ENOMEM;
        *n += !rc;
    }
    if (rc)
        hapi_err_set(err, rc, 0, "no memory to list %s", s->dir);
    else if (errno)
        rc = hapi_err_errno(err, errno, "cannot list %s", s->dir);
    closedir(dir);
    if (!rc && *n)
        qsort(*out, *n, sizeof **out, by_text);
    return rc;
}

static int datasets_index(struct hapi_store *s, struct hapi_err *err)
{
    char **names = NULL;
    size_t n = 0;
    int rc = names_list(s, &names, &n, err);

    if (!rc && !(s->datasets = calloc(n + 1, sizeof *s->datasets)))
        rc = hapi_err_set(err, HAPI_ENOMEM, 0, "no memory for %zu datasets", n);
    for (size_t i = 0; i < n && !rc; i++) {
        rc = hapi_dataset_index(&s->datasets[s->n_datasets], s, names[i], err);
        s->n_datasets += !rc;
    }
    names_free(names, n);
    return rc;
}

static int root_open(struct hapi_store *s, const char *dir, struct hapi_err *err)
{
    s->root = open(dir, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (s->root < 0 || !(s->dir = realpath(dir, NULL))) {
        int why = errno;
        hapi_err_errno(err, why, "cannot open the data folder %s", dir);
        if (why == ENOENT && err)
            err->code = HAPI_ENOENT;
        return why == ENOENT ? HAPI_ENOENT : HAPI_ESYS;
    }
    return 0;
}

int hapi_store_open(struct hapi_store **out, const char *dir, const struct hapi_store_options *opt,
                    struct hapi_err *err)
{
    struct hapi_store *s = calloc(1, sizeof *s);
    int rc;

    if (!s)
        return hapi_err_set(err, HAPI_ENOMEM, 0, "no memory for a store");
    s->root = -1;
    if (opt)
        s->opt = *opt;
    if (!s->opt.max_reads)
        s->opt.max_reads = 64;
    if (s->opt.cache_dir && !(s->opt.cache_dir = strdup(s->opt.cache_dir))) {
        free(s);
        return hapi_err_set(err, HAPI_ENOMEM, 0, "no memory for a store");
    }
    if ((rc = root_open(s, dir, err)) || (rc = datasets_index(s, err))) {
        hapi_store_close(s);
        return rc;
    }
    *out = s;
    return 0;
}

void hapi_store_close(struct hapi_store *s)
{
    if (!s)
        return;
    hapi_reader_free(s->reader);
    for (uint32_t i = 0; i < s->n_datasets; i++)
        hapi_dataset_free(s->datasets[i]);
    free(s->datasets);
    free((char *)s->opt.cache_dir);
    free(s->dir);
    if (s->root >= 0)
        close(s->root);
    free(s);
}

uint32_t hapi_store_count(const struct hapi_store *s)
{
    return s->n_datasets;
}

const struct hapi_dataset *hapi_store_at(const struct hapi_store *s, uint32_t i)
{
    return i < s->n_datasets ? &s->datasets[i]->pub : NULL;
}

const struct hapi_dataset *hapi_store_find(const struct hapi_store *s, const char *name)
{
    for (uint32_t i = 0; i < s->n_datasets; i++)
        if (!strcmp(s->datasets[i]->pub.name, name))
            return &s->datasets[i]->pub;
    return NULL;
}

int64_t hapi_dataset_object(const struct hapi_dataset *d, const char *name)
{
    uint32_t lo = 0, hi = d->n_objects;

    while (lo < hi) {
        uint32_t mid = lo + (hi - lo) / 2;
        int c = strcmp(d->objects[mid].name, name);
        if (!c)
            return mid;
        if (c < 0)
            lo = mid + 1;
        else
            hi = mid;
    }
    return -1;
}
