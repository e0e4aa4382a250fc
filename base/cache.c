#include "cache.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "convert.h"

enum { PATH_BYTES = 4096, TEXT_MAX = 4 << 20 };

bool hapi_cache_folder(char *buf, size_t size, const char *kind)
{
    static const struct {
        const char *variable, *rest;
    } places[] = {{"HAPI_CACHE", ""}, {"XDG_CACHE_HOME", "/hapi"}, {"HOME", "/.cache/hapi"}};

    for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
        const char *at = getenv(places[i].variable);
        if (at && *at == '/')
            return snprintf(buf, size, "%s%s/%s", at, places[i].rest, kind) < (int)size;
    }
    return false;
}

void hapi_cache_name(char out[HAPI_CACHE_NAME], const void *key, size_t n)
{
    uint8_t hash[32];

    hapi_sha256(hash, key, n);
    hapi_sha256_text(out, hash);
}

static bool path_of(char path[PATH_BYTES], const char *folder, const char *file)
{
    return snprintf(path, PATH_BYTES, "%s/%s", folder, file) < PATH_BYTES;
}

char *hapi_cache_read(const char *folder, const char *file)
{
    char path[PATH_BYTES], *text = NULL;
    int fd = path_of(path, folder, file) ? open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW) : -1;
    struct stat st;

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

/* Under another name first: readers may be other processes. A name of its own: in a container every process
 * may have the number of one that died here. */
bool hapi_cache_write(const char *folder, const char *file, const char *text, bool first)
{
    char path[PATH_BYTES], part[PATH_BYTES + 32];
    size_t n = strlen(text);

    if (!path_of(path, folder, file))
        return false;
    folders_make(folder);
    snprintf(part, sizeof part, "%s.XXXXXX", path);
    int fd = mkostemp(part, O_CLOEXEC);
    if (fd < 0)
        return false;
    bool good = write(fd, text, n) == (ssize_t)n;
    good = !close(fd) && good && !(first ? link(part, path) : rename(part, path));
    if (first || !good)
        (void)unlink(part);
    return good;
}

bool hapi_cache_drop(const char *folder, const char *file)
{
    char path[PATH_BYTES];

    return path_of(path, folder, file) && !unlink(path);
}
