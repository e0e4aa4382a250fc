#include "cudnn_cache.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "cache.h"

enum { FILE_BYTES = HAPI_CACHE_NAME + 16 };

static const char owner_file[] = "tuned-by";

static void file_of(char file[FILE_BYTES], const struct hapi_cudnn_device *d, const uint8_t *graph_key,
                    bool tuned)
{
    uint8_t both[64];
    char name[HAPI_CACHE_NAME];

    memcpy(both, hapi_cudnn_device_key(d), 32);
    memcpy(both + 32, graph_key, 32);
    hapi_cache_name(name, both, sizeof both);
    snprintf(file, FILE_BYTES, "%s%s.json", name, tuned ? ".tuned" : "");
}

struct hapi_cudnn_plan *hapi_cudnn_cache_get(const char *folder, const struct hapi_cudnn_device *d,
                                             const uint8_t *graph_key, bool tuned)
{
    struct hapi_cudnn_plan *p = NULL;
    char file[FILE_BYTES], *text;

    file_of(file, d, graph_key, tuned);
    text = hapi_cache_read(folder, file);
    if (text && hapi_cudnn_plan_from_text(&p, d, text, NULL))
        p = NULL; /* of another driver, or damaged: it is made anew and kept in its place */
    free(text);
    if (!p && tuned && hapi_cache_drop(folder, file)) /* the choice is lost, and the next may be another */
        hapi_cudnn_cache_disown(folder);
    return p;
}

bool hapi_cudnn_cache_put(const char *folder, const struct hapi_cudnn_device *d, const uint8_t *graph_key,
                          bool tuned, const struct hapi_cudnn_plan *p)
{
    char file[FILE_BYTES], *text = NULL;

    if (hapi_cudnn_plan_text(p, &text, NULL))
        return false;
    file_of(file, d, graph_key, tuned);
    bool kept = hapi_cache_write(folder, file, text, tuned);
    free(text);
    return kept;
}

/* ------------------------------------------------------------------ whose choices tuned plans are */

static bool owner_read(const char *folder, uint8_t *owner)
{
    char *text = hapi_cache_read(folder, owner_file);
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
    char text[2 * HAPI_CUDNN_OWNER + 1];

    if (folder && owner_read(folder, owner))
        return;
    while (getrandom(owner, HAPI_CUDNN_OWNER, 0) != HAPI_CUDNN_OWNER) /* a signal */
        continue;
    if (!folder)
        return;
    for (int i = 0; i < HAPI_CUDNN_OWNER; i++)
        snprintf(text + (ptrdiff_t)2 * i, 3, "%02x", owner[i]);
    if (!hapi_cache_write(folder, owner_file, text, true) && !owner_read(folder, owner))
        (void)hapi_cache_write(folder, owner_file, text, false); /* no other process was first: damaged */
}

void hapi_cudnn_cache_disown(const char *folder)
{
    (void)hapi_cache_drop(folder, owner_file);
}
