#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "onnx.h"

enum { FILES_MAX = 1024, LOCATION_MAX = 1024 };

struct external {
    char *location;
    struct hapi_view map;
};

struct hapi_externals {
    int dir;
    uint64_t file_bytes;
    struct external *files;
    size_t n, capacity;
};

int hapi_externals_open(struct hapi_externals **out, const char *model_path, uint64_t file_bytes,
                        struct hapi_err *err)
{
    const char *slash = strrchr(model_path, '/');
    struct hapi_externals *e = calloc(1, sizeof *e);
    char *dir = slash ? strndup(model_path, (size_t)(slash - model_path) + 1) : strdup(".");
    int rc = 0;

    if (!e || !dir) {
        rc = hapi_err_set(err, HAPI_ENOMEM, 0, "out of memory");
        goto fail;
    }
    e->file_bytes = file_bytes;
    e->dir = open(dir, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (e->dir < 0) {
        rc = hapi_err_errno(err, errno, "cannot open %s", dir);
        goto fail;
    }
    free(dir);
    *out = e;
    return 0;
fail:
    free(dir);
    free(e);
    return rc;
}

void hapi_externals_close(struct hapi_externals *e)
{
    if (!e)
        return;
    for (size_t i = 0; i < e->n; i++) {
        if (e->files[i].map.n)
            munmap((void *)(uintptr_t)e->files[i].map.p, e->files[i].map.n);
        free(e->files[i].location);
    }
    free(e->files);
    close(e->dir);
    free(e);
}

/* Without openat2 every component is opened by hand, and symbolic links are refused altogether. */
static int open_walking(int dir, const char *path)
{
    char part[LOCATION_MAX + 1];
    int at = dir, fd;

    for (;;) {
        size_t n = strcspn(path, "/");
        bool last = !path[n + strspn(path + n, "/")];
        memcpy(part, path, n);
        part[n] = '\0';
        fd = openat(at, part, O_CLOEXEC | O_NOFOLLOW | (last ? O_RDONLY | O_NONBLOCK : O_PATH | O_DIRECTORY));
        int saved = errno;
        if (at != dir)
            close(at);
        errno = saved;
        if (fd < 0 || last)
            return fd;
        at = fd;
        path += n + strspn(path + n, "/");
    }
}

static int open_beneath(int dir, const char *path)
{
    struct open_how how = {
        .flags = O_RDONLY | O_CLOEXEC | O_NONBLOCK,
        .resolve = RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS,
    };
    long fd = syscall(SYS_openat2, dir, path, &how, sizeof how);

    if (fd < 0 && (errno == ENOSYS || errno == EPERM))
        return open_walking(dir, path);
    return (int)fd;
}

static int check_location(const char *s, struct hapi_err *err)
{
    if (s[0] == '/')
        return hapi_err_set(err, HAPI_EFORMAT, 0, "external data in \"%s\": absolute paths are refused", s);
    for (const char *p = s; *p;) {
        size_t n = strcspn(p, "/");
        if (n == 2 && p[0] == '.' && p[1] == '.')
            return hapi_err_set(err, HAPI_EFORMAT, 0,
                                "external data in \"%s\": outside of the model's folder", s);
        p += n + strspn(p + n, "/");
    }
    return 0;
}

static int map_file(struct hapi_externals *e, const char *location, struct hapi_view *out,
                    struct hapi_err *err)
{
    struct stat st;
    void *p = NULL;
    int rc = 0, fd = open_beneath(e->dir, location);

    if (fd < 0)
        return hapi_err_errno(err, errno, "cannot open external data \"%s\" beneath the model's folder",
                              location);
    if (fstat(fd, &st))
        rc = hapi_err_errno(err, errno, "cannot stat external data \"%s\"", location);
    else if (!S_ISREG(st.st_mode))
        rc = hapi_err_set(err, HAPI_EFORMAT, 0, "external data \"%s\" is not a regular file", location);
    else if ((uint64_t)st.st_size > e->file_bytes)
        rc = hapi_err_set(err, HAPI_ETOOBIG, 0, "external data \"%s\" has %lld bytes, the limit is %llu",
                          location, (long long)st.st_size, (unsigned long long)e->file_bytes);
    else if (st.st_size && (p = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0)) == MAP_FAILED)
        rc = hapi_err_errno(err, errno, "cannot map external data \"%s\"", location);
    close(fd);
    if (!rc)
        *out = (struct hapi_view){p, (size_t)st.st_size};
    return rc;
}

static int add_file(struct hapi_externals *e, const char *location, struct hapi_err *err)
{
    struct external *file;
    int rc;

    if (e->n == FILES_MAX)
        return hapi_err_set(err, HAPI_ETOOBIG, 0, "more than %d external data files", FILES_MAX);
    if (e->n == e->capacity) {
        size_t want = e->capacity ? 2 * e->capacity : 8;
        struct external *files = realloc(e->files, want * sizeof *files);
        if (!files)
            return hapi_err_set(err, HAPI_ENOMEM, 0, "out of memory");
        e->files = files;
        e->capacity = want;
    }
    file = &e->files[e->n];
    rc = map_file(e, location, &file->map, err);
    if (rc)
        return rc;
    file->location = strdup(location);
    e->n++; /* so that the map is released, with or without a name */
    return file->location ? 0 : hapi_err_set(err, HAPI_ENOMEM, 0, "out of memory");
}

int hapi_externals_get(struct hapi_externals *e, struct hapi_view location, uint64_t offset, uint64_t length,
                       struct hapi_view *out, struct hapi_err *err)
{
    char path[LOCATION_MAX + 1];
    size_t i;
    int rc;

    if (!location.n || location.n > LOCATION_MAX || memchr(location.p, 0, location.n))
        return hapi_err_set(err, HAPI_EFORMAT, 0, "malformed location of external data");
    memcpy(path, location.p, location.n);
    path[location.n] = '\0';
    rc = check_location(path, err);
    if (rc)
        return rc;
    /* The last file first: tensors of one file follow each other, and most models have one. */
    for (i = e->n; i > 0; i--)
        if (e->files[i - 1].location && !strcmp(e->files[i - 1].location, path))
            break;
    if (!i) {
        rc = add_file(e, path, err);
        if (rc)
            return rc;
        i = e->n;
    }
    struct hapi_view map = e->files[i - 1].map;
    if (offset > map.n || (length != UINT64_MAX && length > map.n - offset))
        return hapi_err_set(err, HAPI_EFORMAT, 0,
                            "external data \"%s\" has %zu bytes: the range is beyond it", path, map.n);
    *out = (struct hapi_view){map.p ? map.p + offset : NULL,
                              length == UINT64_MAX ? map.n - (size_t)offset : (size_t)length};
    return 0;
}

size_t hapi_externals_files(const struct hapi_externals *e)
{
    return e ? e->n : 0;
}

struct hapi_view hapi_externals_file(const struct hapi_externals *e, size_t i)
{
    return e->files[i].map;
}
