/*
 * The read path. One flight per hapi_read, from a fixed pool:
 *
 *     open (ring) ── check (statx on the fd) ── read.. (ring) ── check ── close (ring) ── done()
 *
 * Image files are opened for each read; shards stay open in a small cache, where flights wait for an open
 * that is under way and the fd that has been idle longest makes room. Nothing here allocates or blocks.
 */
#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <linux/openat2.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "store_impl.h"

enum { FDS_MAX = 256, FDS_MIN = 4, READS_MAX = 4096 };

enum step { STEP_NOP, STEP_OPEN, STEP_READ, STEP_CLOSE };

struct flight {
    struct hapi_op op; /* first */
    struct hapi_reader *reader;
    struct hapi_read *r;
    struct flight *next; /* in the free list, or waiting for a shard's open */
    enum step step;
    int fd;
    struct hapi_fd *shared;    /* NULL: the fd is the flight's own */
    uint32_t align;            /* of the range that is read; 1: buffered */
    bool direct;               /* EINVAL may still mean: not with O_DIRECT */
    uint64_t start, got, want; /* file range from start; want covers the wanted bytes and the slack */
    uint8_t *base;
    int status;
    long sys;
    struct open_how how;
};

enum fd_state { FD_FREE, FD_OPENING, FD_OPEN };

struct hapi_fd {
    enum fd_state state;
    int fd;
    bool prepared, direct; /* flags and alignment have been settled */
    bool dead;             /* closed when the last flight leaves */
    uint32_t refs, align;
    uint64_t stamp; /* of the last use */
    struct hapi_dataset_impl *d;
    uint32_t object;
    struct flight *waiting;
};

struct hapi_reader {
    struct hapi_op closed; /* of evicted fds; many at once */
    struct hapi_store *store;
    struct hapi_loop *loop;
    struct flight *flights, *free_flights;
    struct hapi_fd fds[FDS_MAX];
    uint32_t n_fds;
    uint64_t stamp;
    uint32_t closing;
    bool orphan; /* the store is gone; the last close frees this */
};

static struct hapi_dataset_impl *dataset_of(const struct hapi_read *r)
{
    return (struct hapi_dataset_impl *)r->dataset; /* pub is its first member */
}

static const struct hapi_object_info *object_of(const struct hapi_read *r)
{
    return &r->dataset->objects[r->object];
}

static void begin(struct flight *f);
static void checked_read(struct flight *f);

/* ---- the ring */

static struct io_uring_sqe *sqe_take(struct flight *f, enum step step)
{
    f->step = step;
    return hapi_loop_sqe(f->reader->loop);
}

static void nop_queue(struct flight *f)
{
    struct io_uring_sqe *s = sqe_take(f, STEP_NOP);
    io_uring_prep_nop(s);
    hapi_loop_prep_end(f->reader->loop, s, &f->op);
}

static void open_queue(struct flight *f)
{
    const struct hapi_dataset_impl *d = dataset_of(f->r);
    /* index.c keeps each name behind "DATASET/". */
    const char *path = object_of(f->r)->name - strlen(d->pub.name) - 1;
    struct io_uring_sqe *s = sqe_take(f, STEP_OPEN);

    hapi_file_how(&f->how, O_RDONLY);
    io_uring_prep_openat2(s, f->reader->store->root, path, &f->how);
    hapi_loop_prep_end(f->reader->loop, s, &f->op);
}

static void read_queue(struct flight *f)
{
    uint8_t *p = f->base + f->got;
    unsigned n = (unsigned)(f->want - f->got);
    int index = hapi_loop_buffer_index(f->reader->loop, p, n);
    struct io_uring_sqe *s = sqe_take(f, STEP_READ);

    if (index >= 0)
        io_uring_prep_read_fixed(s, f->fd, p, n, f->start + f->got, index);
    else
        io_uring_prep_read(s, f->fd, p, n, f->start + f->got);
    hapi_loop_prep_end(f->reader->loop, s, &f->op);
}

static void fd_close_queue(struct hapi_reader *rd, int fd)
{
    struct io_uring_sqe *s = hapi_loop_sqe(rd->loop);
    io_uring_prep_close(s, fd);
    hapi_loop_prep_end(rd->loop, s, &rd->closed);
    rd->closing++;
}

static void fd_closed(struct hapi_op *op, int res, uint32_t flags)
{
    struct hapi_reader *rd = (struct hapi_reader *)op;

    (void)res;
    (void)flags;
    if (!--rd->closing && rd->orphan)
        free(rd);
}

/* ---- shards that stay open */

static void shard_free(struct hapi_reader *rd, struct hapi_fd *e)
{
    if (e->state == FD_OPEN)
        fd_close_queue(rd, e->fd);
    memset(e, 0, sizeof *e);
}

/* No new flight finds it; it goes when those that use it have gone. */
static void shard_retire(struct hapi_reader *rd, struct hapi_fd *e)
{
    if (e->dead)
        return;
    e->dead = true;
    e->d->fds[e->object] = NULL;
    if (!e->refs)
        shard_free(rd, e);
}

static void shard_leave(struct flight *f)
{
    struct hapi_fd *e = f->shared;

    f->shared = NULL;
    if (f->status == HAPI_ESTALE)
        shard_retire(f->reader, e);
    if (!--e->refs && e->dead)
        shard_free(f->reader, e);
}

static struct hapi_fd *shard_slot(struct hapi_reader *rd)
{
    struct hapi_fd *oldest = NULL;

    for (uint32_t i = 0; i < rd->n_fds; i++) {
        struct hapi_fd *e = &rd->fds[i];
        if (e->state == FD_FREE)
            return e;
        if (e->state == FD_OPEN && !e->refs && (!oldest || e->stamp < oldest->stamp))
            oldest = e;
    }
    if (oldest)
        shard_retire(rd, oldest);
    return oldest;
}

/* ---- the end of a flight */

static void deliver(struct flight *f)
{
    struct hapi_read *r = f->r;

    r->status = f->status;
    r->sys = f->sys;
    r->priv = NULL;
    f->next = f->reader->free_flights;
    f->reader->free_flights = f;
    r->done(r); /* last: it may submit again */
}

static void finish(struct flight *f, int status, long sys)
{
    f->status = status;
    f->sys = sys;
    if (f->shared) {
        shard_leave(f);
    } else if (f->fd >= 0) {
        struct io_uring_sqe *s = sqe_take(f, STEP_CLOSE);
        io_uring_prep_close(s, f->fd);
        hapi_loop_prep_end(f->reader->loop, s, &f->op);
        return;
    }
    deliver(f);
}

/* ---- before, while and after */

/* 0, or the status that the flight ends with. The fd must still be what was indexed. */
static int version_check(struct flight *f, struct hapi_file_info *info)
{
    int rc = hapi_file_info(f->fd, info);

    if (rc) {
        f->sys = -rc;
        return HAPI_ESYS;
    }
    return info->regular && hapi_version_equal(&info->version, &object_of(f->r)->version) ? 0 : HAPI_ESTALE;
}

/* O_NONBLOCK (against FIFOs) goes: with it older kernels answer EAGAIN for what is not in the page cache.
 * O_DIRECT comes where the kernel and the options allow it. Returns the alignment of reads, 1: buffered. */
static uint32_t fd_prepare(struct flight *f, uint32_t direct_at)
{
    struct hapi_dataset_impl *d = dataset_of(f->r);

    if (direct_at > 1 && !d->no_direct && !f->reader->store->opt.no_direct) {
        if (!fcntl(f->fd, F_SETFL, O_DIRECT))
            return direct_at;
        d->no_direct = true;
    }
    (void)fcntl(f->fd, F_SETFL, 0);
    return 1;
}

static void direct_off(struct flight *f)
{
    (void)fcntl(f->fd, F_SETFL, 0);
    f->direct = false;
    if (f->shared)
        f->shared->direct = false;
}

static void checked_read(struct flight *f)
{
    struct hapi_read *r = f->r;
    struct hapi_file_info info;
    int rc = version_check(f, &info);

    if (rc) {
        finish(f, rc, f->sys);
        return;
    }
    if (f->shared && f->shared->prepared) {
        f->align = f->shared->direct ? f->shared->align : 1;
    } else {
        f->align = fd_prepare(f, info.direct_at);
        if (f->shared) {
            f->shared->prepared = true;
            f->shared->align = f->align;
            f->shared->direct = f->align > 1;
        }
    }
    uint64_t mask = f->align - 1;
    f->direct = f->align > 1;
    f->start = r->offset & ~mask;
    f->want = ((r->offset + r->bytes + mask) & ~mask) - f->start;
    f->got = 0;
    f->base = (uint8_t *)(((uintptr_t)r->buf + mask) & ~(uintptr_t)mask);
    r->data = f->base + (r->offset - f->start);
    if (r->bytes)
        read_queue(f);
    else
        nop_queue(f);
}

static void read_end(struct flight *f)
{
    struct hapi_file_info info;
    int rc = version_check(f, &info);
    finish(f, rc, f->sys);
}

static void on_read(struct flight *f, int res)
{
    uint64_t needed = f->r->offset - f->start + f->r->bytes;

    if (res == -EAGAIN || res == -EINTR) {
        read_queue(f);
    } else if (res == -EINVAL && f->direct) {
        dataset_of(f->r)->no_direct = true; /* some filesystems (hostfs) only say so here */
        direct_off(f);
        read_queue(f);
    } else if (res < 0) {
        finish(f, HAPI_ESYS, -res);
    } else if (!res) {
        finish(f, HAPI_ESTALE, 0); /* shorter than it was */
    } else {
        f->got += (uint64_t)res;
        if (f->got >= needed) {
            read_end(f);
            return;
        }
        if (f->direct && f->got % f->align) /* the rest does not begin where O_DIRECT can */
            direct_off(f);
        read_queue(f);
    }
}

static void on_open_failed(struct flight *f, int why)
{
    int status = why == ENOENT || why == ENOTDIR ? HAPI_ENOENT : HAPI_ESYS;
    struct hapi_fd *e = f->shared;
    struct flight *waiting = e ? e->waiting : NULL;

    if (e) {
        e->d->fds[e->object] = NULL;
        memset(e, 0, sizeof *e);
    }
    f->next = waiting;
    for (struct flight *next; f; f = next) {
        next = f->next;
        f->shared = NULL;
        finish(f, status, why);
    }
}

static void on_open(struct flight *f, int res)
{
    struct hapi_fd *e = f->shared;

    if (res == -EAGAIN || res == -EINTR) {
        open_queue(f);
        return;
    }
    if (res < 0) {
        on_open_failed(f, -res);
        return;
    }
    f->fd = res;
    f->next = NULL;
    if (e) {
        e->fd = res;
        e->state = FD_OPEN;
        f->next = e->waiting;
        e->waiting = NULL;
    }
    for (struct flight *next; f; f = next) { /* refs of all are counted: *e stays */
        next = f->next;
        f->fd = res;
        checked_read(f);
    }
}

static void on_done(struct hapi_op *op, int res, uint32_t flags)
{
    struct flight *f = (struct flight *)op;

    (void)flags;
    switch (f->step) {
    case STEP_NOP:
        if (f->status)
            finish(f, f->status, 0);
        else
            read_end(f); /* nothing to read */
        break;
    case STEP_OPEN:
        on_open(f, res);
        break;
    case STEP_READ:
        on_read(f, res);
        break;
    case STEP_CLOSE:
        deliver(f);
        break;
    }
}

/* ---- the start of a flight */

/* True: an open shard serves it. A replaced one (no name leads to it any more) is opened again. */
static bool shard_join(struct flight *f)
{
    struct hapi_dataset_impl *d = dataset_of(f->r);
    struct hapi_fd *e = d->fds[f->r->object];
    struct hapi_file_info info;

    if (!e)
        return false;
    if (e->state == FD_OPEN) {
        f->fd = e->fd;
        if (version_check(f, &info) || !info.links) {
            f->fd = -1;
            f->sys = 0;
            shard_retire(f->reader, e);
            return false;
        }
    }
    e->refs++;
    e->stamp = ++f->reader->stamp;
    f->shared = e;
    if (e->state == FD_OPENING) {
        f->next = e->waiting;
        e->waiting = f;
    } else {
        checked_read(f);
    }
    return true;
}

static void begin(struct flight *f)
{
    struct hapi_dataset_impl *d = dataset_of(f->r);
    struct hapi_fd *e;

    if (d->tar) {
        if (shard_join(f))
            return;
        if ((e = shard_slot(f->reader))) {
            *e = (struct hapi_fd){.state = FD_OPENING,
                                  .fd = -1,
                                  .refs = 1,
                                  .stamp = ++f->reader->stamp,
                                  .d = d,
                                  .object = f->r->object};
            d->fds[f->r->object] = e;
            f->shared = e;
        }
    }
    open_queue(f);
}

size_t hapi_read_capacity(uint32_t bytes)
{
    /* Slack: the buffer's own alignment, the range's start and its end, each below one alignment. */
    return (size_t)bytes + 3 * (HAPI_DIRECT_ALIGN_MAX - 1);
}

int hapi_store_read(struct hapi_store *s, struct hapi_read *r)
{
    struct hapi_reader *rd = s->reader;
    const struct hapi_object_info *o;
    struct flight *f;

    if (!rd || !r->dataset || r->object >= r->dataset->n_objects || !r->done || !r->buf)
        return HAPI_EINVAL;
    o = object_of(r);
    if (r->offset > o->bytes || r->bytes > o->bytes - r->offset || r->bytes > HAPI_SAMPLE_BYTES_MAX ||
        r->capacity < hapi_read_capacity(r->bytes))
        return HAPI_EINVAL;
    if (!(f = rd->free_flights))
        return HAPI_EBUSY;
    rd->free_flights = f->next;
    *f = (struct flight){.op = f->op, .reader = rd, .r = r, .fd = -1};
    r->priv = f;
    r->data = r->buf;
    if ((r->expect.size && !hapi_version_equal(&r->expect, &o->version)) ||
        (r->expect_digest && memcmp(r->expect_digest, o->digest, HAPI_DIGEST_SIZE))) {
        f->status = HAPI_ESTALE;
        nop_queue(f); /* done() may not come from here */
    } else {
        begin(f);
    }
    return 0;
}

int hapi_store_attach(struct hapi_store *s, struct hapi_loop *loop, struct hapi_err *err)
{
    struct hapi_reader *rd;
    struct rlimit files;
    uint32_t n = s->opt.max_reads;

    if (s->reader)
        return hapi_err_set(err, HAPI_EINVAL, 0, "the store already has a loop");
    if (n > READS_MAX)
        return hapi_err_set(err, HAPI_EINVAL, 0, "max_reads %u is over %d", n, READS_MAX);
    rd = calloc(1, sizeof *rd);
    if (!rd || !(rd->flights = calloc(n, sizeof *rd->flights))) {
        free(rd);
        return hapi_err_set(err, HAPI_ENOMEM, 0, "no memory for %u reads", n);
    }
    rd->store = s;
    rd->loop = loop;
    rd->closed.done = fd_closed;
    rd->n_fds = FDS_MAX;
    /* A quarter of the descriptors: the rest is for sockets and the reads in flight. */
    if (!getrlimit(RLIMIT_NOFILE, &files) && files.rlim_cur / 4 < FDS_MAX)
        rd->n_fds = files.rlim_cur / 4 < FDS_MIN ? FDS_MIN : (uint32_t)(files.rlim_cur / 4);
    for (uint32_t i = n; i--;) {
        rd->flights[i].op.done = on_done;
        rd->flights[i].next = rd->free_flights;
        rd->free_flights = &rd->flights[i];
    }
    s->reader = rd;
    return 0;
}

void hapi_reader_free(struct hapi_reader *rd)
{
    if (!rd)
        return;
    for (uint32_t i = 0; i < rd->n_fds; i++)
        if (rd->fds[i].state == FD_OPEN)
            close(rd->fds[i].fd);
    free(rd->flights);
    rd->flights = NULL;
    if (rd->closing)
        rd->orphan = true;
    else
        free(rd);
}
