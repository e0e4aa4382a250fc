/*
 * Features that are kept: rows of equal size, each what a network made of one sample, in memory and on disk.
 *
 *     set (what made them: its key) ── row of a sample (its object's digest, its index) ──┬─> memory
 *                                                                                        └─> DIR/KEY.rows
 *
 * A row goes to memory while there is room, then to disk. Where neither has room the set that saves the least
 * time for its bytes, and is not in use, goes as a whole; rows of one set do not drive each other out:
 * whoever reads all of a dataset in turn would find none. An object that changes has another digest, so that
 * what was kept of it is not found any more.
 *
 * On disk a set is two files: rows at multiples of the stride, written and read with O_DIRECT where they can
 * be, and a log of which row is whose, with checksums. Files of an earlier run are read through on a thread
 * of their own, and only rows whose checksum holds come back: what a crash tore is not one of them.
 *
 * Lifetime: sets live until they are dropped or the end; a row that was found stays where it is, whatever is
 * dropped, until it is released.
 * Threads: all calls on the loop's thread. It opens files and appends to logs; everything else goes through
 * the ring.
 */
#ifndef HAPI_STORE_KEPT_H
#define HAPI_STORE_KEPT_H

#include <stdbool.h>
#include <stdint.h>

#include "err.h"
#include "loop.h"
#include "store.h"

struct hapi_features;
struct hapi_feature_set;

enum {
    HAPI_FEATURE_ALIGN = 4096,    /* of buffers that disks read and write */
    HAPI_FEATURE_PIECE = 1 << 20, /* bytes of memory that a set is given at once, or one row */
};

struct hapi_features_options {
    void *memory; /* the caller's, aligned to 4096; best inside a registered slab; NULL: none */
    size_t memory_bytes;
    size_t row_max;  /* bytes of the largest row: memory is handed to sets in pieces of this, or
                        HAPI_FEATURE_PIECE */
    const char *dir; /* made if it is not there; one process at a time; NULL: none */
    uint64_t disk_bytes;
};

/* Counts since the start; bytes and rows as of now. */
struct hapi_features_stats {
    uint64_t memory_rows, memory_bytes, disk_rows, disk_bytes;
    uint64_t kept, dropped;
    uint64_t torn;   /* rows of an earlier run whose checksum did not hold */
    uint64_t errors; /* of the disk; the last one: */
    struct hapi_err why;
};

/* Errors: HAPI_EBUSY (another process has DIR), HAPI_ESYS, HAPI_ENOMEM. Files in DIR that are not sound are
 * removed. */
int hapi_features_open(struct hapi_features **out, struct hapi_loop *loop,
                       const struct hapi_features_options *opt, struct hapi_err *err);
/* No row is held, read or written any more. */
void hapi_features_close(struct hapi_features *f);
void hapi_features_reap(struct hapi_features *f); /* from the loop's on_wake */
struct hapi_features_stats hapi_features_stats_get(const struct hapi_features *f);

/* The set of rows of `row_bytes` that `key` (SHA-256) names, in use until it is put; made if there is none.
 * NULL: too many sets are in use, a row is larger than row_max, no memory. */
struct hapi_feature_set *hapi_feature_set_get(struct hapi_features *f, const uint8_t key[32],
                                              uint32_t row_bytes);
void hapi_feature_set_put(struct hapi_feature_set *s);

/* A row in hand. */
struct hapi_feature {
    uint32_t slot;
    uint8_t *memory;   /* where it is or is to be; NULL: on disk */
    int64_t looked_ns; /* when its object was last seen to be unchanged */
};

/* Whether a sample's row is there, and holds it. digest: of its object, HAPI_DIGEST_SIZE bytes. */
bool hapi_feature_find(struct hapi_feature_set *s, const uint8_t *digest, uint32_t index,
                       struct hapi_feature *out);
bool hapi_feature_has(const struct hapi_feature_set *s, const uint8_t *digest, uint32_t index);
void hapi_feature_looked(struct hapi_feature_set *s, const struct hapi_feature *r);
void hapi_feature_release(struct hapi_feature_set *s, const struct hapi_feature *r);
/* Is not found any more; its place is free once everybody has released it. */
void hapi_feature_drop(struct hapi_feature_set *s, const struct hapi_feature *r);

/* A place for a row that is not there yet. seconds: what computing it takes. false: it is there or on its
 * way, there is no room, or its set is still being read through. `disk`: a place on disk will do. Then either
 * hapi_feature_keep(), once the row is in memory, or hapi_feature_write(), or hapi_feature_abandon(). */
bool hapi_feature_reserve(struct hapi_feature_set *s, const uint8_t *digest, uint32_t index, double seconds,
                          bool disk, struct hapi_feature *out);
void hapi_feature_keep(struct hapi_feature_set *s, const struct hapi_feature *r);
void hapi_feature_abandon(struct hapi_feature_set *s, const struct hapi_feature *r);

/* Bytes of a row on disk: a multiple of 4096. Buffers have as many, aligned to 4096. */
size_t hapi_feature_stride(const struct hapi_feature_set *s);

struct hapi_feature_io {
    void (*done)(struct hapi_feature_io *io); /* exactly once, from the loop, never from inside a call */
    int status;                               /* 0 or HAPI_ESYS */
    /* private */
    struct hapi_op op;
    struct hapi_feature_set *set;
    uint8_t *buf;
    uint32_t slot, crc32c;
    size_t at;
    bool writes;
};

/* A row on disk that is held, into buf. */
void hapi_feature_read(struct hapi_feature_set *s, const struct hapi_feature *r, void *buf,
                       struct hapi_feature_io *io);
/* A row whose place on disk is reserved, from buf; the bytes beyond the row are zeroed here. crc32c: of the
 * row. It can be found from when it is written on; where it could not be it is as if it had been abandoned.
 */
void hapi_feature_write(struct hapi_feature_set *s, const struct hapi_feature *r, void *buf, uint32_t crc32c,
                        struct hapi_feature_io *io);

#endif
