#include "cudnn_cache.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "convert.h"

enum { PATH_BYTES = 4096, TEXT_MAX = 4 << 20 };

bool hapi_cudnn_cache_folder(char *buf, size_t size)
{
    static const struct {
        const char *variable, *rest;
    } places[] = {
        {"HAPI_CACHE", "/cudnn"}, {"XDG_CACHE_HOME", "/hapi/cudnn"}, {"HOME", "/.cache/hapi/cudnn"}};

    for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
        const char *at = getenv(places[i].variable);
        if (at && *at == '/')
            return snprintf(buf, size, "%s%s", at, places[i].rest) < (int)size;
    }
    return false;
}

static bool path_of(char *buf, const char *folder, const struct hapi_cudnn_device *d,
                    const uint8_t *graph_key, bool tuned)
{
    uint8_t both[64], key[32];
    char name[65];

    memcpy(both, hapi_cudnn_device_key(d), 32);
    memcpy(both + 32, graph_key, 32);
    hapi_sha256(key, both, sizeof both);
    for (int i = 0; i < 32; i++)
        snprintf(name + (ptrdiff_t)2 * i, 3, "%02x", key[i]);
    return snprintf(buf, PATH_BYTES, "%s/%s%s.json", folder, name, tuned ? ".tuned" : "") < PATH_BYTES;
}

/* The file's text, terminated; NULL when it is not a small file of our own. */
static char *text_read(const char *path)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    struct stat st;
    char *text = NULL;

    if (fd < 0)
        return NULL;
    if (!fstat(fd, &st) && S_ISREG(st.st_mode) && st.st_uid == geteuid() && st.st_size > 0 &&
        st.st_size < TEXT_MAX)
        text = calloc(1, (size_t)st.st_size + 1);
    if (text && read(fd, text, (size_t)st.st_size) != st.st_size) {
        free(text);
        text = NULL;
    }
    close(fd);
    return text;
}

struct hapi_cudnn_plan *hapi_cudnn_cache_get(const char *folder, const struct hapi_cudnn_device *d,
                                             const uint8_t *graph_key, bool tuned)
{
    struct hapi_cudnn_plan *p = NULL;
    char path[PATH_BYTES], *text;

    if (!path_of(path, folder, d, graph_key, tuned))
        return NULL;
    text = text_read(path);
    if (text && hapi_cudnn_plan_from_text(&p, d, text, NULL))
        p = NULL; /* of another driver, or damaged: it is made anew and kept in its place */
    free(text);
    if (!p && tuned && !unlink(path)) /* the choice is lost, and the next may be another */
        hapi_cudnn_cache_disown(folder);
    return p;
}

static void folders_make(const char *folder)
{
    char path[PATH_BYTES];
    size_t n = strlen(folder);

    if (n >= sizeof path)
        return;
    memcpy(path, folder, n + 1);
    for (char *at = strchr(path + 1, '/'); at; at = strchr(at + 1, '/')) {
        *at = 0;
        (void)mkdir(path, 0700);
        *at = '/';
    }
    (void)mkdir(path, 0700);
}

/* Whole or not at all: readers may be other processes. A name of its own: in a container every process may
 * have the number of one that died here. first: not where there is one. */
static bool text_write(const char *path, const char *text, bool first)
{
    char part[PATH_BYTES + 32];
    size_t n = strlen(text);
    int fd;

    snprintf(part, sizeof part, "%s.XXXXXX", path);
    fd = mkostemp(part, O_CLOEXEC);
    if (fd < 0)
        return false;
    bool good = write(fd, text, n) == (ssize_t)n;
    good = !close(fd) && good && !(first ? link(part, path) : rename(part, path));
    if (first || !good)
        (void)unlink(part);
    return good;
}

bool hapi_cudnn_cache_put(const char *folder, const struct hapi_cudnn_device *d, const uint8_t *graph_key,
                          bool tuned, const struct hapi_cudnn_plan *p)
{
    char path[PATH_BYTES], *text = NULL;

    if (!path_of(path, folder, d, graph_key, tuned) || hapi_cudnn_plan_text(p, &text, NULL))
        return false;
    folders_make(folder);
    bool kept = text_write(path, text, tuned);
    free(text);
    return kept;
}

/* ------------------------------------------------------------------ whose choices tuned plans are */

static bool owner_path(char *buf, const char *folder)
{
    return snprintf(buf, PATH_BYTES, "%s/tuned-by", folder) < PATH_BYTES;
}

static bool owner_read(const char *path, uint8_t *owner)
{
    char *text = text_read(path);
    bool good = text && strlen(text) == 2 * HAPI_CUDNN_OWNER;
    uint8_t bytes[HAPI_CUDNN_OWNER];

    for (size_t i = 0; good && i < sizeof bytes; i++)
        good = sscanf(text + 2 * i, "%2hhx", &bytes[i]) == 1; // NOLINT(cert-err34-c)
    if (good)
        memcpy(owner, bytes, sizeof bytes);
    free(text);
    return good;
}

void hapi_cudnn_cache_owner(const char *folder, uint8_t owner[HAPI_CUDNN_OWNER])
{
    char path[PATH_BYTES], text[2 * HAPI_CUDNN_OWNER + 1];
    bool place = folder && owner_path(path, folder);

    if (place && owner_read(path, owner))
        return;
    while (getrandom(owner, HAPI_CUDNN_OWNER, 0) != HAPI_CUDNN_OWNER) /* a signal */
        continue;
    if (!place)
        return;
    for (int i = 0; i < HAPI_CUDNN_OWNER; i++)
        snprintf(text + (ptrdiff_t)2 * i, 3, "%02x", owner[i]);
    folders_make(folder);
    if (!text_write(path, text, true) && !owner_read(path, owner)) /* another process was first */
        (void)text_write(path, text, false);                       /* or it was damaged */
}

void hapi_cudnn_cache_disown(const char *folder)
{
    char path[PATH_BYTES];

    if (owner_path(path, folder))
        (void)unlink(path);
}
