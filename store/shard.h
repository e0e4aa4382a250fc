/*
 * What indexing finds in one object: samples and problems. A tar shard pairs KEY.jpg (or .jpeg, any case)
 * with KEY.cls, in either order and however far apart; an image file is one sample. Private to store/.
 * Not thread-safe.
 */
#ifndef HAPI_STORE_SHARD_H
#define HAPI_STORE_SHARD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "arena.h"
#include "err.h"
#include "tar.h"

#define HAPI_SAMPLE_BYTES_MAX (1u << 30) /* larger images are refused */
#define HAPI_CLASS_NAME_MAX 256          /* bytes, of the text in a .cls */
#define HAPI_PROBLEMS_MAX 1000           /* texts kept of one dataset; one more says how many were left out */

struct hapi_shard_sample {
    const char *key, *class_name;
    uint64_t offset;
    uint32_t bytes;
};

/* Texts in an arena. */
struct hapi_problems {
    const char **text;
    uint32_t n, left_out;
};

/* Adds a text; past HAPI_PROBLEMS_MAX it only counts. HAPI_ENOMEM. */
int hapi_problem_add(struct hapi_problems *p, struct hapi_arena *a, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
void hapi_problems_fini(struct hapi_problems *p);

struct hapi_shard {
    struct hapi_shard_sample *samples; /* malloc'd; tar order of the images */
    uint32_t n_samples;
    struct hapi_problems problems;
};

/* "rose/1.JPG" -> length of "rose/1"; 0 when the name does not end in .jpg or .jpeg. */
size_t hapi_image_stem(const char *name);
/* No control characters, not empty: such names can be printed and sent. */
bool hapi_name_printable(const char *s);

/* Fills *out (hapi_shard_fini() frees its arrays; strings live in the arena). What is malformed becomes a
 * problem text starting with `name`; samples before it are kept. Errors: HAPI_ENOMEM, HAPI_ESYS. */
int hapi_shard_index(struct hapi_shard *out, const char *name, const struct hapi_tar_source *src,
                     struct hapi_arena *arena, struct hapi_err *err);
void hapi_shard_fini(struct hapi_shard *s);

#endif
