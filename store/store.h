/*
 * Objects by name and version -> bytes in registered buffers.
 *
 *     DIR/flowers/rose/1.jpg   a dataset `flowers` of class folders: every JPEG is an object of one sample,
 *     DIR/flowers/lily/2.jpg   named "rose/1.jpg"; its class is its folder's name
 *     DIR/train/000.tar        a dataset `train` of WebDataset shards: every tar is an object of many samples
 *     DIR/train/001.tar        ("KEY.jpg" or ".jpeg" + "KEY.cls"; the class's name is the text of the .cls)
 *
 * The index of a dataset (objects, samples, classes, digests) is built once and cached (in
 * cache_dir when given, keyed by path, size, mtime and inode; else in memory only); a changed object is
 * indexed again. Order is canonical and the same on every replica: objects by name (bytewise), samples of
 * a shard in tar order, classes sorted by name (as numbers when all are integers).
 *
 * Lifetime: datasets are borrowed from the store and live as long as it does.
 * Threads: open and the queries on one thread; reads on the thread that owns the loop (it never blocks:
 * open, statx, read and close go through the ring).
 * Paths never leave DIR (openat2 RESOLVE_BENEATH); symbolic links inside it are followed only beneath it.
 */
#ifndef HAPI_STORE_STORE_H
#define HAPI_STORE_STORE_H

#include <stdint.h>

#include "err.h"
#include "loop.h"

#define HAPI_VERSION_MAX 64 /* bytes of an opaque version */
#define HAPI_DIGEST_SIZE 32 /* SHA-256 of the object's bytes */

struct hapi_store;

struct hapi_version {
    uint8_t size; /* 0: none given */
    uint8_t data[HAPI_VERSION_MAX];
};

struct hapi_sample_info {
    uint64_t offset;   /* of the image's bytes in the object */
    uint32_t bytes;    /* > 0 except for an empty image, which decodes to an error */
    uint32_t class_id; /* into the dataset's classes */
    const char *key;   /* "rose/1" or the tar member's stem; unique in the dataset where the data is sane */
};

struct hapi_object_info {
    const char *name; /* "rose/1.jpg", "000.tar" */
    struct hapi_version version;
    uint8_t digest[HAPI_DIGEST_SIZE];
    uint64_t bytes;
    uint64_t first_sample; /* into samples */
    uint32_t n_samples;
};

struct hapi_dataset {
    const char *name;
    uint32_t n_objects, n_classes;
    uint64_t n_samples, bytes; /* bytes: sum over the samples */
    uint32_t max_sample_bytes;
    const struct hapi_object_info *objects;
    const struct hapi_sample_info *samples;
    const char *const *classes;
    const char *const
        *problems; /* what indexing skipped, one text each (a truncated tar, a .jpg without .cls) */
    uint32_t n_problems;
};

struct hapi_store_options {
    const char *cache_dir; /* NULL: no cache on disk */
    uint32_t max_reads;    /* reads in flight; 0: 64 */
    int no_direct;         /* 1: never O_DIRECT */
};

/* Opens DIR and finds its datasets; each is indexed here. An unreadable dataset becomes a problem of that
 * dataset, not a failure. Errors: HAPI_ENOENT/HAPI_ESYS naming DIR. `opt` may be NULL. */
int hapi_store_open(struct hapi_store **out, const char *dir, const struct hapi_store_options *opt,
                    struct hapi_err *err);
void hapi_store_close(struct hapi_store *s); /* no read may be in flight */

uint32_t hapi_store_count(const struct hapi_store *s);
const struct hapi_dataset *hapi_store_at(const struct hapi_store *s, uint32_t i);
const struct hapi_dataset *hapi_store_find(const struct hapi_store *s, const char *name); /* or NULL */
/* Index of an object by name, or -1. O(log n). */
int64_t hapi_dataset_object(const struct hapi_dataset *d, const char *name);

/* ---- reading, on the loop's thread ---- */

/* One read: [offset, offset+bytes) of an object lands in buf. The caller fills the first part. */
struct hapi_read {
    const struct hapi_dataset *dataset;
    uint32_t object;
    uint64_t offset;
    uint32_t bytes;
    void *buf; /* capacity >= hapi_read_capacity(bytes); best inside the registered slab */
    size_t capacity;
    struct hapi_version expect;        /* size 0: any; else HAPI_ESTALE when the object differs */
    const uint8_t *expect_digest;      /* NULL: any; else HAPI_ESTALE when the indexed digest differs */
    void (*done)(struct hapi_read *r); /* exactly once, from the loop, never from inside submit */
    void *user;
    /* results */
    int status;    /* 0, HAPI_ENOENT, HAPI_ESTALE, HAPI_ESYS, HAPI_ETOOBIG */
    long sys;      /* errno */
    uint8_t *data; /* the first wanted byte: inside buf, after O_DIRECT's leading slack */
    /* private */
    void *priv;
};

/* Buffer bytes that a read of `bytes` needs at worst (O_DIRECT alignment on both sides). */
size_t hapi_read_capacity(uint32_t bytes);

/* Ties the store to the loop whose thread will submit. Once. */
int hapi_store_attach(struct hapi_store *s, struct hapi_loop *loop, struct hapi_err *err);
/* 0: exactly one done() later. HAPI_EBUSY: max_reads are in flight, nothing will be called (try again after
 * a completion). HAPI_EINVAL: range outside the object or capacity too small; nothing will be called.
 * The version is checked with fstat before and after the bytes are read. No heap call. */
int hapi_store_read(struct hapi_store *s, struct hapi_read *r);

#endif
