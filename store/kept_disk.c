/*
 * Sets of features on disk, little-endian:
 *
 * KEY.log begins with a head of 64 bytes:
 *     magic[8] | key[32] | row_bytes u32 | stride u32 | seconds f64 | zero u32 | CRC-32C of all before
 * and goes on with entries of 32 bytes:
 *     digest[16] | index u32 | slot u32 | CRC-32C of the row | CRC-32C of all before
 *
 * KEY.rows has the row of slot n at n * stride.
 *
 * KEY: the first 16 bytes of the key as digits. A row is written first, its entry after that: of what a crash
 * leaves, an entry may be there without its row, or hold nothing, which its checksums tell. The last entry of
 * a slot is the one that counts.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "convert.h"
#include "kept_impl.h"

static const char magic[8] = {'H', 'A', 'P', 'I', 'F', 'T', 'R', '1'};

enum { NAME_BYTES = 16, NAME_MAX_SIZE = 2 * NAME_BYTES + 8, READ_STEP = 8 << 20 };

struct head {
    char magic[8];
    uint8_t key[32];
    uint32_t row_bytes, stride;
    double seconds;
    uint32_t zero, crc32c;
};

struct entry {
    uint8_t digest[HAPI_ROW_DIGEST];
    uint32_t index, slot, row_crc32c, crc32c;
};

_Static_assert(sizeof(struct head) == 64 && sizeof(struct entry) == 32, "as they lie in the files");

static void name_of(char name[NAME_MAX_SIZE], const uint8_t key[32], const char *suffix)
{
    for (int i = 0; i < NAME_BYTES; i++)
        snprintf(name + 2 * i, 3, "%02x", key[i]);
    memcpy(name + 2 * NAME_BYTES, suffix, strlen(suffix) + 1);
}

void hapi_disk_error(struct hapi_feature_set *s, int sys, const char *what)
{
    struct hapi_features_stats *t = &s->f->stats;

    t->errors++;
    hapi_err_errno(&t->why, sys, "kept features: %s in %s", what, s->f->opt.dir);
}

/* ------------------------------------------------------------------ the files of a set */

/* O_DIRECT where it can be: rows do not push what others need out of the page cache. */
static int rows_open(int dir, const char *name, int flags)
{
    int fd = openat(dir, name, flags | O_DIRECT | O_CLOEXEC | O_NOFOLLOW, 0600);

    return fd >= 0 || errno != EINVAL ? fd : openat(dir, name, flags | O_CLOEXEC | O_NOFOLLOW, 0600);
}

static bool files_open(struct hapi_feature_set *s, int flags)
{
    char name[NAME_MAX_SIZE];

    name_of(name, s->key, ".rows");
    s->rows_fd = rows_open(s->f->dir, name, O_RDWR | flags);
    name_of(name, s->key, ".log");
    s->log_fd = s->rows_fd < 0 ? -1 : openat(s->f->dir, name, O_RDWR | O_CLOEXEC | O_NOFOLLOW | flags, 0600);
    return s->log_fd >= 0;
}

static bool head_write(const struct hapi_feature_set *s)
{
    struct head h = {.row_bytes = s->row_bytes, .stride = s->stride, .seconds = s->seconds};

    memcpy(h.magic, magic, sizeof magic);
    memcpy(h.key, s->key, sizeof h.key);
    h.crc32c = hapi_crc32c(0, &h, offsetof(struct head, crc32c));
    return pwrite(s->log_fd, &h, sizeof h, 0) == sizeof h;
}

void hapi_set_files_close(struct hapi_feature_set *s, bool remove)
{
    char name[NAME_MAX_SIZE];

    if (!remove && s->on_disk == HAPI_DISK_OPEN && !head_write(s)) /* a row's seconds are known by now */
        hapi_disk_error(s, errno, "cannot write");
    if (s->rows_fd >= 0)
        close(s->rows_fd);
    if (s->log_fd >= 0)
        close(s->log_fd);
    s->rows_fd = s->log_fd = -1;
    if (!remove || s->on_disk == HAPI_DISK_NONE)
        return;
    name_of(name, s->key, ".log"); /* first: rows without a log are nothing */
    unlinkat(s->f->dir, name, 0);
    name_of(name, s->key, ".rows");
    unlinkat(s->f->dir, name, 0);
    s->f->disk_used -= (uint64_t)s->disk.n * s->stride;
    s->on_disk = HAPI_DISK_NONE;
}

void hapi_set_files_make(struct hapi_feature_set *s)
{
    if (files_open(s, O_CREAT | O_TRUNC) && head_write(s)) {
        s->on_disk = HAPI_DISK_OPEN;
        return;
    }
    hapi_disk_error(s, errno, "cannot make a file");
    s->on_disk = HAPI_DISK_BROKEN;
}

/* ------------------------------------------------------------------ rows through the ring */

static void io_queue(struct hapi_feature_io *io)
{
    struct hapi_feature_set *s = io->set;
    uint8_t *p = io->buf + io->at;
    unsigned n = s->stride - (unsigned)io->at;
    uint64_t offset = (uint64_t)(io->slot & ~HAPI_SLOT_DISK) * s->stride + io->at;
    int index = hapi_loop_buffer_index(s->f->loop, p, n);
    struct io_uring_sqe *q = hapi_loop_sqe(s->f->loop);

    if (io->writes && index >= 0)
        io_uring_prep_write_fixed(q, s->rows_fd, p, n, offset, index);
    else if (io->writes)
        io_uring_prep_write(q, s->rows_fd, p, n, offset);
    else if (index >= 0)
        io_uring_prep_read_fixed(q, s->rows_fd, p, n, offset, index);
    else
        io_uring_prep_read(q, s->rows_fd, p, n, offset);
    hapi_loop_prep_end(s->f->loop, q, &io->op);
}

static void io_end(struct hapi_feature_io *io, int sys)
{
    struct hapi_feature_set *s = io->set;
    struct hapi_feature r = {.slot = io->slot};

    if (sys) {
        hapi_disk_error(s, sys, io->writes ? "cannot write" : "cannot read");
        s->on_disk = io->writes ? HAPI_DISK_BROKEN : s->on_disk;
        io->status = HAPI_ESYS;
    }
    if (io->writes && sys)
        hapi_feature_abandon(s, &r);
    else if (io->writes)
        hapi_feature_keep(s, &r);
    else
        s->holds--;
    io->done(io);
}

/* The log's entry is small: a page of the cache takes it. */
static void entry_write(struct hapi_feature_io *io)
{
    struct hapi_feature_set *s = io->set;
    const struct hapi_row *r = hapi_row_at(s, io->slot);
    struct entry e = {.index = r->index, .slot = io->slot & ~HAPI_SLOT_DISK, .row_crc32c = io->crc32c};
    off_t at = (off_t)(sizeof(struct head) + (uint64_t)s->n_log++ * sizeof e);

    memcpy(e.digest, r->digest, sizeof e.digest);
    e.crc32c = hapi_crc32c(0, &e, offsetof(struct entry, crc32c));
    ssize_t n = pwrite(s->log_fd, &e, sizeof e, at);
    io_end(io, n == sizeof e ? 0 : n < 0 ? errno : ENOSPC);
}

static void io_done(struct hapi_op *op, int res, uint32_t flags)
{
    struct hapi_feature_io *io =
        (struct hapi_feature_io *)((char *)op - offsetof(struct hapi_feature_io, op));

    (void)flags;
    if (res == -EAGAIN || res == -EINTR) {
        io_queue(io);
        return;
    }
    if (res <= 0) {
        io_end(io, res ? -res : io->writes ? ENOSPC : EIO);
        return;
    }
    io->at += (size_t)res;
    bool whole = io->at >= (io->writes ? io->set->stride : io->set->row_bytes);
    if (!whole &&
        io->at % HAPI_FEATURE_ALIGN) /* the rest does not begin where O_DIRECT can: all of it again */
        io->at = 0;
    if (!whole)
        io_queue(io);
    else if (io->writes)
        entry_write(io);
    else
        io_end(io, 0);
}

static void io_begin(struct hapi_feature_set *s, const struct hapi_feature *r, void *buf,
                     struct hapi_feature_io *io)
{
    io->op.done = io_done;
    io->status = 0;
    io->set = s;
    io->buf = buf;
    io->slot = r->slot;
    io->at = 0;
    io_queue(io);
}

void hapi_feature_read(struct hapi_feature_set *s, const struct hapi_feature *r, void *buf,
                       struct hapi_feature_io *io)
{
    s->holds++;
    io->writes = false;
    io_begin(s, r, buf, io);
}

void hapi_feature_write(struct hapi_feature_set *s, const struct hapi_feature *r, void *buf, uint32_t crc32c,
                        struct hapi_feature_io *io)
{
    memset((uint8_t *)buf + s->row_bytes, 0, s->stride - s->row_bytes);
    io->writes = true;
    io->crc32c = crc32c;
    io_begin(s, r, buf, io);
}

/* ------------------------------------------------------------------ what an earlier run left */

/* A set that is read through, step by step, on the reader's thread. */
struct load {
    struct hapi_job job;
    struct hapi_feature_set *set;
    struct entry *entries; /* in order of slots: one a slot at most */
    bool *sound;
    uint32_t n, at, to;
    uint8_t *buf;
    bool begun;
};

static int by_slot(const void *a, const void *b)
{
    uint32_t x = ((const struct entry *)a)->slot, y = ((const struct entry *)b)->slot;
    return x < y ? -1 : x > y;
}

/* The entries whose checksum holds; of a slot's only the last. */
static int log_read(struct load *l)
{
    const struct hapi_feature_set *s = l->set;
    uint32_t n = s->n_log, *last = malloc(((size_t)s->disk.n + 1) * sizeof *last);
    size_t bytes = (size_t)n * sizeof(struct entry), got = 0;
    struct entry *e = malloc(bytes + 1);

    while (e && last && got < bytes) {
        ssize_t k = pread(s->log_fd, (char *)e + got, bytes - got, (off_t)(sizeof(struct head) + got));
        if (k <= 0)
            break;
        got += (size_t)k;
    }
    l->entries = e;
    l->sound = calloc((size_t)n + 1, sizeof *l->sound);
    if (!e || !last || !l->sound) {
        free(last);
        return HAPI_ENOMEM;
    }
    memset(last, 0xff, ((size_t)s->disk.n + 1) * sizeof *last);
    n = (uint32_t)(got / sizeof *e);
    for (uint32_t i = 0; i < n; i++)
        if (hapi_crc32c(0, &e[i], offsetof(struct entry, crc32c)) == e[i].crc32c && e[i].slot < s->disk.n)
            last[e[i].slot] = i;
    for (uint32_t i = 0; i < n; i++)
        if (e[i].slot < s->disk.n && last[e[i].slot] == i)
            e[l->n++] = e[i];
    free(last);
    qsort(e, l->n, sizeof *e, by_slot);
    return 0;
}

static bool row_is_sound(const struct load *l, uint32_t i)
{
    const struct hapi_feature_set *s = l->set;
    const struct entry *e = &l->entries[i];
    size_t got = 0;

    while (got < s->row_bytes) {
        ssize_t k =
            pread(s->rows_fd, l->buf + got, s->stride - got, (off_t)((uint64_t)e->slot * s->stride + got));
        if (k <= 0)
            return false;
        got += (size_t)k;
        if (got % HAPI_FEATURE_ALIGN && got < s->row_bytes)
            return false;
    }
    return hapi_crc32c(0, l->buf, s->row_bytes) == e->row_crc32c;
}

static bool load_run(struct hapi_job *job, int worker)
{
    struct load *l = (struct load *)job;
    uint32_t step = READ_STEP / l->set->stride;

    (void)worker;
    if (!l->begun) {
        l->begun = true;
        l->buf = aligned_alloc(HAPI_FEATURE_ALIGN, l->set->stride);
        if (!l->buf || log_read(l))
            l->n = 0;
    }
    step = step ? step : 1;
    for (l->to = l->at; l->to < l->n && l->to < l->at + step; l->to++)
        l->sound[l->to] = row_is_sound(l, l->to);
    return true;
}

static void load_free(struct load *l)
{
    free(l->entries);
    free(l->sound);
    free(l->buf);
    free(l);
}

/* A row may have been kept in memory meanwhile. */
static void load_take(struct load *l, uint32_t i)
{
    struct hapi_feature_set *s = l->set;
    const struct entry *e = &l->entries[i];
    struct hapi_row *r = &s->disk.rows[e->slot];

    if (!l->sound[i])
        s->f->stats.torn++;
    if (!l->sound[i] || hapi_table_has(s, e->digest, e->index))
        return;
    *r = (struct hapi_row){.index = e->index, .state = HAPI_ROW_RESERVED};
    memcpy(r->digest, e->digest, sizeof r->digest);
    if (!hapi_table_add(s, e->slot | HAPI_SLOT_DISK))
        hapi_row_kept(s, e->slot | HAPI_SLOT_DISK);
    else
        r->state = HAPI_ROW_FREE;
}

static void load_done(struct hapi_job *job)
{
    struct load *l = (struct load *)job;
    struct hapi_feature_set *s = l->set;

    for (; l->at < l->to; l->at++)
        load_take(l, l->at);
    if (l->at < l->n && !hapi_pool_submit(s->f->reader, &l->job))
        return;
    for (uint32_t i = s->disk.n; i--;) /* no slot was given away meanwhile */
        if (s->disk.rows[i].state == HAPI_ROW_FREE)
            hapi_row_free(s, i | HAPI_SLOT_DISK);
    s->on_disk = HAPI_DISK_OPEN;
    load_free(l);
}

void hapi_set_files_load(struct hapi_feature_set *s)
{
    struct load *l = calloc(1, sizeof *l);

    if (!l || hapi_shelf_reserve(&s->disk, s->disk.n) || !files_open(s, 0)) {
        hapi_disk_error(s, l ? errno : ENOMEM, "cannot read a set");
        s->on_disk = HAPI_DISK_BROKEN;
        free(l);
        return;
    }
    *l = (struct load){.job = {.run = load_run, .done = load_done}, .set = s};
    s->on_disk = HAPI_DISK_LOADING;
    if (hapi_pool_submit(s->f->reader, &l->job)) {
        s->on_disk = HAPI_DISK_BROKEN;
        free(l);
    }
}

/* ------------------------------------------------------------------ the folder */

/* false: no sound set of files. */
static bool set_found(struct hapi_features *f, const char *log)
{
    struct head h;
    struct stat rows, entries;
    char name[NAME_MAX_SIZE];
    int fd = openat(f->dir, log, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    bool read_it = fd >= 0 && pread(fd, &h, sizeof h, 0) == sizeof h && !fstat(fd, &entries);

    if (fd >= 0)
        close(fd);
    if (!read_it || memcmp(h.magic, magic, sizeof magic) || !h.row_bytes || h.row_bytes > f->opt.row_max ||
        h.crc32c != hapi_crc32c(0, &h, offsetof(struct head, crc32c)))
        return false;
    name_of(name, h.key, ".log");
    if (strcmp(name, log))
        return false;
    name_of(name, h.key, ".rows");
    struct hapi_feature_set *s = fstatat(f->dir, name, &rows, AT_SYMLINK_NOFOLLOW) || !S_ISREG(rows.st_mode)
                                     ? NULL
                                     : hapi_feature_set_new(f, h.key, h.row_bytes);
    if (!s)
        return false;
    s->seconds = h.seconds > 0 && h.seconds < 1e6 ? h.seconds : 0;
    uint64_t slots = (uint64_t)rows.st_size / s->stride,
             n = ((uint64_t)entries.st_size - sizeof h) / sizeof(struct entry);
    s->disk.n = slots < HAPI_SLOTS_MAX ? (uint32_t)slots : HAPI_SLOTS_MAX;
    s->n_log = n < UINT32_MAX ? (uint32_t)n : UINT32_MAX;
    s->on_disk = HAPI_DISK_FOUND;
    f->disk_used += (uint64_t)s->disk.n * s->stride;
    return true;
}

static bool ends_with(const char *s, const char *end)
{
    size_t n = strlen(s), m = strlen(end);
    return n > m && !strcmp(s + n - m, end);
}

static bool is_ours(const struct hapi_features *f, const char *name)
{
    char rows[NAME_MAX_SIZE];

    for (const struct hapi_feature_set *s = f->sets; s; s = s->next) {
        name_of(rows, s->key, ".rows");
        if (!strcmp(rows, name))
            return true;
    }
    return false;
}

/* Twice over the folder: sets first, then what belongs to none of them goes. */
static int folder_list(struct hapi_features *f, struct hapi_err *err)
{
    int fd = openat(f->dir, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *d = fd < 0 ? NULL : fdopendir(fd);

    if (!d) {
        int sys = errno;
        if (fd >= 0)
            close(fd);
        return hapi_err_errno(err, sys, "cannot list %s", f->opt.dir);
    }
    for (const struct dirent *e; (e = readdir(d));)
        if (ends_with(e->d_name, ".log") && !set_found(f, e->d_name))
            unlinkat(f->dir, e->d_name, 0);
    rewinddir(d);
    for (const struct dirent *e; (e = readdir(d));)
        if (ends_with(e->d_name, ".rows") && !is_ours(f, e->d_name))
            unlinkat(f->dir, e->d_name, 0);
    closedir(d);
    return 0;
}

int hapi_features_disk_open(struct hapi_features *f, struct hapi_err *err)
{
    const char *path = f->opt.dir;

    if (mkdir(path, 0700) && errno != EEXIST)
        return hapi_err_errno(err, errno, "cannot make the folder %s", path);
    f->dir = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (f->dir < 0)
        return hapi_err_errno(err, errno, "cannot open the folder %s", path);
    if (flock(f->dir, LOCK_EX | LOCK_NB))
        return hapi_err_set(err, HAPI_EBUSY, errno, "another process keeps its features in %s", path);
    int rc = hapi_pool_open(&f->reader, f->loop, 1, 256, NULL, 1, err);
    if (!rc)
        rc = folder_list(f, err);
    if (!rc)
        (void)hapi_disk_room(f, NULL, 0); /* the budget may have been larger */
    return rc;
}

void hapi_features_disk_close(struct hapi_features *f)
{
    if (f->dir >= 0)
        close(f->dir);
}
