/*
 * How the store looks inside: what index.c finds, cache.c keeps, dataset.c arranges and read.c reads.
 * Private to store/.
 *
 *     folder ── index.c (cache.c) ──> struct hapi_entry per object ── dataset.c ──> struct hapi_dataset
 *                                                                                 read.c: ring -> buffer
 */
#ifndef HAPI_STORE_IMPL_H
#define HAPI_STORE_IMPL_H

#include "files.h"
#include "shard.h"
#include "store.h"

#define HAPI_DIRECT_ALIGN_MAX 4096 /* larger O_DIRECT alignments fall back to buffered reads */

/* One object as indexed. `name` lies behind "DATASET/" in the same string (hapi_entry_path). */
struct hapi_entry {
    const char *name;
    struct hapi_version version;
    uint8_t digest[HAPI_DIGEST_SIZE];
    uint64_t bytes;
    struct hapi_shard shard; /* tar shards only; images have one sample, made from the name */
};

struct hapi_entries {
    struct hapi_entry *v;
    uint32_t n, cap;
};

struct hapi_fd; /* of read.c's cache */

/* What a struct hapi_dataset is inside. */
struct hapi_dataset_impl {
    struct hapi_dataset pub; /* first */
    struct hapi_arena *arena;
    bool tar;
    bool no_direct; /* the filesystem has refused O_DIRECT */
    struct hapi_problems problems;
    struct hapi_object_info *objects;
    struct hapi_sample_info *samples;
    const char **classes;
    struct hapi_fd **fds; /* [n_objects]: the open shard, or NULL; NULL for image folders */
};

struct hapi_reader;

struct hapi_store {
    int root; /* O_PATH of DIR */
    char *dir;
    struct hapi_store_options opt;
    struct hapi_dataset_impl **datasets; /* by name */
    uint32_t n_datasets;
    struct hapi_reader *reader; /* after attach */
};

/* index.c: lists and indexes DIR/name. What cannot be read becomes a problem. Errors: HAPI_ENOMEM. */
int hapi_dataset_index(struct hapi_dataset_impl **out, const struct hapi_store *s, const char *name,
                       struct hapi_err *err);
void hapi_dataset_free(struct hapi_dataset_impl *d);
void hapi_entries_fini(struct hapi_entries *e);
struct hapi_entry *hapi_entries_add(struct hapi_entries *e); /* zeroed; NULL: no memory */

/* dataset.c: arranges sorted entries into d->pub. Errors: HAPI_ENOMEM. */
int hapi_dataset_arrange(struct hapi_dataset_impl *d, const struct hapi_entries *e, struct hapi_err *err);

/* cache.c. load: entries by name (names without "DATASET/"), 0 of them when there is no sound cache.
 * save: replaces the file as a whole; HAPI_ESYS, HAPI_ENOMEM. */
int hapi_cache_load(struct hapi_entries *out, const struct hapi_store *s, const struct hapi_dataset_impl *d);
int hapi_cache_save(const struct hapi_entries *e, const struct hapi_store *s,
                    const struct hapi_dataset_impl *d, struct hapi_err *err);

/* read.c */
void hapi_reader_free(struct hapi_reader *r);

#endif
