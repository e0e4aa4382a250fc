/*
 * How kept features look inside: kept.c has sets and their tables, kept_disk.c the files.
 * Private to store/.
 */
#ifndef HAPI_STORE_KEPT_IMPL_H
#define HAPI_STORE_KEPT_IMPL_H

#include "kept.h"
#include "pool.h"

/* FREE: `index` is the next free slot + 1. RESERVED: its bytes are on their way. DEAD: not found any more,
 * and held. */
enum hapi_row_state { HAPI_ROW_FREE, HAPI_ROW_RESERVED, HAPI_ROW_KEPT, HAPI_ROW_DEAD };

enum { HAPI_ROW_DIGEST = 16 }; /* bytes of the object's SHA-256 */

struct hapi_row {
    uint8_t digest[HAPI_ROW_DIGEST];
    uint32_t index;
    uint32_t looked_s; /* since the start of hapi_features */
    uint32_t holds;
    enum hapi_row_state state;
};

/* Slots of one kind. Those on disk have this bit in a slot's number: */
#define HAPI_SLOT_DISK 0x80000000u
#define HAPI_SLOTS_MAX 0x7ffffff0u

struct hapi_shelf {
    struct hapi_row *rows;
    uint32_t n, capacity; /* slots that were ever used; room in rows */
    uint32_t free;        /* first free slot + 1 */
    uint32_t kept;
};

/* NONE: no files. FOUND: of an earlier run, not read through yet. LOADING: being read. OPEN: in use.
 * BROKEN: something failed, nothing more is written. */
enum hapi_set_disk { HAPI_DISK_NONE, HAPI_DISK_FOUND, HAPI_DISK_LOADING, HAPI_DISK_OPEN, HAPI_DISK_BROKEN };

struct hapi_feature_set {
    struct hapi_features *f;
    struct hapi_feature_set *next;
    uint8_t key[32];
    uint32_t row_bytes, stride, pitch; /* stride: on disk; pitch: in memory */
    uint32_t users, holds;             /* rows held, reserved, read and written */
    int64_t used_ns;
    double seconds; /* that a row takes to compute */
    struct hapi_shelf memory, disk;
    uint32_t *table; /* of slots + 1, by sample: open addressing */
    uint32_t table_size, table_used;
    uint32_t *pieces, n_pieces; /* of the memory */
    enum hapi_set_disk on_disk;
    int rows_fd, log_fd;
    uint32_t n_log; /* entries, those on their way included */
};

struct hapi_features {
    struct hapi_features_options opt;
    struct hapi_loop *loop;
    int64_t began_ns;
    struct hapi_feature_set *sets;
    uint32_t n_sets;
    size_t piece;
    uint32_t n_pieces, *free_pieces, n_free_pieces;
    uint64_t disk_used;
    int dir; /* -1: none */
    struct hapi_pool *reader;
    struct hapi_features_stats stats;
};

/* kept.c */
struct hapi_row *hapi_row_at(struct hapi_feature_set *s, uint32_t slot);
/* A new set in the list; NULL: no memory, or too many that are in use. */
struct hapi_feature_set *hapi_feature_set_new(struct hapi_features *f, const uint8_t key[32],
                                              uint32_t row_bytes);
void hapi_feature_set_drop(struct hapi_feature_set *s);
/* Room for `slots` of a shelf. HAPI_ENOMEM. */
int hapi_shelf_reserve(struct hapi_shelf *h, uint32_t slots);
/* Makes sample (digest, index) found in `slot`. HAPI_ENOMEM. */
int hapi_table_add(struct hapi_feature_set *s, uint32_t slot);
/* Drops sets that save less for their bytes than `s` (NULL: any) until `bytes` more fit on disk. */
bool hapi_disk_room(struct hapi_features *f, const struct hapi_feature_set *s, uint64_t bytes);
void hapi_row_kept(struct hapi_feature_set *s, uint32_t slot);
void hapi_row_free(struct hapi_feature_set *s, uint32_t slot);
bool hapi_table_has(const struct hapi_feature_set *s, const uint8_t *digest, uint32_t index);

/* kept_disk.c */
/* Locks DIR and lists the sets in it. */
int hapi_features_disk_open(struct hapi_features *f, struct hapi_err *err);
void hapi_features_disk_close(struct hapi_features *f);
/* Makes the files of a set that has none. */
void hapi_set_files_make(struct hapi_feature_set *s);
/* Begins to read through what an earlier run left. */
void hapi_set_files_load(struct hapi_feature_set *s);
void hapi_set_files_close(struct hapi_feature_set *s, bool remove);
void hapi_disk_error(struct hapi_feature_set *s, int sys, const char *what);

#endif
