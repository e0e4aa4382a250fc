#include <errno.h>
#include <malloc.h>
#include <sys/resource.h>
#include <sys/syscall.h>

#include "clock.h"
#include "loop.h"
#include "slab.h"
#include "store.h"
#include "store_impl.h"
#include "tarfile.h"
#include "tree.h"

enum { SHARDS = 12, PER_SHARD = 8, FILES = 40, MAX_READS = 16 };

static struct hapi_loop *loop;
static struct hapi_slab slab;
static struct hapi_store *store;
static int done_calls;

static void on_done(struct hapi_read *r)
{
    done_calls++;
    *(int *)r->user += 1;
}

static void wait_for(const int *calls, int n)
{
    struct hapi_err err = {0};
    int64_t end = hapi_clock_ns() + 10 * HAPI_NS_PER_S;
    while (*calls < n && hapi_clock_ns() < end)
        REQUIRE(!hapi_loop_run_once(loop, HAPI_NS_PER_S, &err));
    CHECKF(*calls == n, "%d of %d done", *calls, n);
}

/* One read from begin to end. */
static int read_one(struct hapi_read *r)
{
    int calls = 0;
    r->done = on_done;
    r->user = &calls;
    int rc = hapi_store_read(store, r);
    CHECKF(!rc && !calls, "submit %d, %d calls from inside", rc, calls);
    if (!rc)
        wait_for(&calls, 1);
    return r->status;
}

static size_t size_of(uint32_t k)
{
    return 1 + (k * 7919u) % 70000;
}

static void shard_write(const char *name, uint32_t first)
{
    struct tarfile t = {0};
    uint8_t *p = malloc(80000);
    REQUIRE(p);
    for (uint32_t i = 0; i < PER_SHARD; i++) {
        char member[64];
        snprintf(member, sizeof member, "%05u.jpg", first + i);
        pattern(p, size_of(first + i), first + i);
        tar_add(&t, member, p, size_of(first + i));
        snprintf(member, sizeof member, "%05u.cls", first + i);
        tar_text(&t, member, "c");
    }
    tar_end(&t);
    tar_save(&t, at(name), t.n);
    tar_free(&t);
    free(p);
}

static void tree_fill(void)
{
    char name[64];
    folder("data");
    folder("data/shards");
    folder("data/files");
    folder("data/files/c");
    for (uint32_t i = 0; i < SHARDS; i++) {
        snprintf(name, sizeof name, "data/shards/%03u.tar", i);
        shard_write(name, i * PER_SHARD);
    }
    for (uint32_t i = 0; i < FILES; i++) {
        snprintf(name, sizeof name, "data/files/c/%03u.jpg", i);
        file_pattern(name, size_of(i), i);
    }
    file_bytes("data/files/c/empty.jpg", "", 0);
}

static void open_all(int no_direct)
{
    struct hapi_store_options opt = {.max_reads = MAX_READS, .no_direct = no_direct};
    struct hapi_err err = {0};
    int rc = hapi_store_open(&store, at("data"), &opt, &err);
    CHECKF(!rc, "%s", err.text);
    REQUIRE(!rc);
    REQUIRE(!hapi_store_attach(store, loop, &err));
    CHECK(hapi_store_attach(store, loop, &err) == HAPI_EINVAL);
}

static int bytes_match(const uint8_t *data, uint32_t bytes, uint32_t k)
{
    static uint8_t want[80000];
    pattern(want, size_of(k), k);
    return bytes == size_of(k) && !memcmp(data, want, bytes);
}

/* ---- many at once */

struct job {
    struct hapi_read r; /* first */
    uint32_t k;
};

static const struct hapi_dataset *many_set;
static uint32_t many_next, many_total;
static int many_left, many_bad, many_on_slab;
static uint8_t *many_buf[MAX_READS];

static void many_submit(struct job *j);

static void many_done(struct hapi_read *r)
{
    struct job *j = (struct job *)r;
    many_left--;
    if (r->status || !bytes_match(r->data, r->bytes, j->k))
        many_bad++;
    memset(r->buf, 0xdd, r->capacity);
    if (many_next < many_total)
        many_submit(j); /* from inside done(): its flight is free again */
}

static void many_submit(struct job *j)
{
    uint32_t i = many_next++ % (uint32_t)many_set->n_samples, object = 0;
    const struct hapi_sample_info *s = &many_set->samples[i];
    while (many_set->objects[object].first_sample + many_set->objects[object].n_samples <= i)
        object++;
    j->k = i;
    j->r.dataset = many_set;
    j->r.object = object;
    j->r.offset = s->offset;
    j->r.bytes = s->bytes;
    j->r.expect = many_set->objects[object].version;
    j->r.expect_digest = many_set->objects[object].digest;
    j->r.done = many_done;
    many_left++;
    REQUIRE(!hapi_store_read(store, &j->r));
}

static int fds_open(void)
{
    int n = 0;
    for (int fd = 0; fd < 512; fd++)
        n += fcntl(fd, F_GETFD) >= 0;
    return n;
}

static void many_reads(const char *name, uint32_t total)
{
    struct job jobs[MAX_READS];
    struct hapi_err err = {0};
    size_t capacity = hapi_read_capacity(80000);

    many_set = hapi_store_find(store, name);
    many_next = 0;
    many_total = total;
    many_bad = 0;
    for (int i = 0; i < MAX_READS; i++) {
        memset(&jobs[i], 0, sizeof jobs[i]);
        jobs[i].r.buf = many_buf[i];
        jobs[i].r.capacity = capacity;
        many_submit(&jobs[i]);
    }
    int64_t end = hapi_clock_ns() + 60 * HAPI_NS_PER_S;
    while (many_left && hapi_clock_ns() < end)
        REQUIRE(!hapi_loop_run_once(loop, HAPI_NS_PER_S, &err));
    CHECK(!many_left);
    CHECKF(!many_bad, "%d of %u reads are wrong (slab %d)", many_bad, total, many_on_slab);
}

static void buffers_take(int on_slab)
{
    many_on_slab = on_slab;
    slab.used = 0;
    for (int i = 0; i < MAX_READS; i++) {
        size_t n = hapi_read_capacity(80000);
        if (!on_slab)
            free(many_buf[i]);
        /* Odd addresses: the alignment is the store's to find. */
        many_buf[i] = on_slab ? hapi_slab_take(&slab, n, 1) : malloc(n);
        REQUIRE(many_buf[i]);
    }
}

static void many_reads__shards_and_files__bytes_as_written(void)
{
    for (int direct = 0; direct < 2; direct++) {
        open_all(!direct);
        buffers_take(0);
        many_reads("shards", 500);
        many_reads("files", 40);
        for (int i = 0; i < MAX_READS; i++) {
            free(many_buf[i]);
            many_buf[i] = NULL;
        }
        buffers_take(1);
        many_reads("shards", 500);
        many_reads("files", 40);
        memset(many_buf, 0, sizeof many_buf);
        hapi_store_close(store);
    }
}

static void many_reads__fewer_fds_than_shards__cache_makes_room(void)
{
    struct rlimit old, few;
    int before = fds_open();
    REQUIRE(!getrlimit(RLIMIT_NOFILE, &old));
    few = old;
    few.rlim_cur = 64; /* a quarter: 16 at first, then 4 */
    buffers_take(1);
    for (int round = 0; round < 2; round++, few.rlim_cur = 40) {
        REQUIRE(!setrlimit(RLIMIT_NOFILE, &few));
        open_all(0);
        many_reads("shards", 600);
        CHECKF(fds_open() <= before + 1 + (round ? 10 : 16), "%d open, %d before", fds_open(), before);
        hapi_store_close(store);
        for (int i = 0; i < 50; i++)
            hapi_loop_run_once(loop, 1000000, NULL);
        CHECKF(fds_open() == before, "%d open, %d before", fds_open(), before);
    }
    memset(many_buf, 0, sizeof many_buf);
    REQUIRE(!setrlimit(RLIMIT_NOFILE, &old));
}

/* ---- one at a time */

static struct hapi_read object_read(const char *set, uint32_t object, uint64_t offset, uint32_t bytes)
{
    static uint8_t buf[400000];
    struct hapi_read r = {.dataset = hapi_store_find(store, set),
                          .object = object,
                          .offset = offset,
                          .bytes = bytes,
                          .buf = buf,
                          .capacity = hapi_read_capacity(bytes)};
    REQUIRE(r.capacity <= sizeof buf);
    memset(buf, 0x77, sizeof buf);
    return r;
}

static void any_offset_and_length__exact_bytes(void)
{
    static uint8_t want[80000];
    open_all(0);
    const struct hapi_dataset *d = hapi_store_find(store, "files");
    uint32_t k = 8;
    size_t n = size_of(k);
    REQUIRE(d->objects[k].bytes == n && n > 20000);
    pattern(want, n, k);
    for (uint32_t off = 0; off < 9000; off += 509)
        for (uint32_t len = 0; len < 9000; len += len < 2 ? 1 : 1021) {
            struct hapi_read r = object_read("files", k, off, len);
            r.buf = (uint8_t *)r.buf + off % 7;
            CHECK(!read_one(&r));
            CHECKF(!memcmp(r.data, want + off, len), "offset %u length %u", off, len);
            CHECK(r.data >= (uint8_t *)r.buf && r.data + len <= (uint8_t *)r.buf + r.capacity);
            CHECK(((uint8_t *)r.buf)[r.capacity] == 0x77); /* nothing beyond the capacity */
        }
    struct hapi_read r = object_read("files", k, n, 0);
    CHECK(!read_one(&r));
    r = object_read("files", k, n - 1, 1);
    CHECK(!read_one(&r) && *r.data == want[n - 1]);
    r = object_read("files", FILES, 0, 0); /* the empty file */
    CHECK(!read_one(&r));
    hapi_store_close(store);
}

static void range_outside_or_small_buffer__einval_and_no_call(void)
{
    open_all(0);
    uint64_t n = hapi_store_find(store, "files")->objects[0].bytes;
    int calls = 0;
    struct hapi_read r = object_read("files", 0, n, 1);
    r.done = on_done;
    r.user = &calls;
    CHECK(hapi_store_read(store, &r) == HAPI_EINVAL);
    r.offset = UINT64_MAX;
    CHECK(hapi_store_read(store, &r) == HAPI_EINVAL);
    r.offset = 0;
    r.bytes = 1;
    r.capacity = hapi_read_capacity(1) - 1;
    CHECK(hapi_store_read(store, &r) == HAPI_EINVAL);
    r.capacity++;
    r.object = 1000;
    CHECK(hapi_store_read(store, &r) == HAPI_EINVAL);
    for (int i = 0; i < 3; i++)
        hapi_loop_run_once(loop, 1000000, NULL);
    CHECK(!calls);
    r.object = 0;
    CHECK(!read_one(&r));
    hapi_store_close(store);
}

static void max_reads_in_flight__ebusy_then_again(void)
{
    static uint8_t buf[MAX_READS + 1][20000];
    struct hapi_read r[MAX_READS + 1];
    int calls = 0;

    open_all(0);
    for (int i = 0; i <= MAX_READS; i++) {
        r[i] = object_read("files", 1, 0, 100);
        r[i].buf = buf[i];
        r[i].done = on_done;
        r[i].user = &calls;
        CHECK(hapi_store_read(store, &r[i]) == (i < MAX_READS ? 0 : HAPI_EBUSY));
    }
    wait_for(&calls, MAX_READS);
    CHECK(!read_one(&r[MAX_READS]));
    hapi_store_close(store);
}

static void expectations__version_and_digest__estale_when_they_differ(void)
{
    uint8_t digest[32];
    open_all(0);
    struct hapi_read r = object_read("files", 2, 0, 50);
    memcpy(digest, r.dataset->objects[2].digest, 32);
    r.expect = r.dataset->objects[2].version;
    r.expect_digest = digest;
    CHECK(!read_one(&r));
    digest[31] ^= 1;
    CHECK(read_one(&r) == HAPI_ESTALE);
    digest[31] ^= 1;
    r.expect.data[3] ^= 1;
    CHECK(read_one(&r) == HAPI_ESTALE);
    r.expect.size = 0;
    CHECK(!read_one(&r));
    hapi_store_close(store);
}

static void file_changed_after_index__estale__removed__enoent(void)
{
    file_pattern("data/files/c/zchange.jpg", 3000, 1);
    file_pattern("data/files/c/zgone.jpg", 3000, 2);
    file_pattern("data/files/c/zlink.jpg", 3000, 2);
    file_pattern("data/files/c/zpipe.jpg", 3000, 2);
    file_pattern("data/files/c/zshort.jpg", 30000, 2);
    open_all(0);
    const struct hapi_dataset *d = hapi_store_find(store, "files");
    uint32_t change = (uint32_t)hapi_dataset_object(d, "c/zchange.jpg");
    struct hapi_read r = object_read("files", change, 0, 3000);
    CHECK(!read_one(&r));
    file_pattern("new.jpg", 3000, 5);
    REQUIRE(!rename(at("new.jpg"), at("data/files/c/zchange.jpg")));
    CHECK(read_one(&r) == HAPI_ESTALE);
    r.object = change + 1;
    REQUIRE(!unlink(at("data/files/c/zgone.jpg")));
    CHECK(read_one(&r) == HAPI_ENOENT && r.sys == ENOENT);
    r.object = change + 2;
    REQUIRE(!unlink(at("data/files/c/zlink.jpg")) && !symlink("/etc/passwd", at("data/files/c/zlink.jpg")));
    CHECK(read_one(&r) == HAPI_ESYS && r.sys == EXDEV);
    r.object = change + 3;
    REQUIRE(!unlink(at("data/files/c/zpipe.jpg")) && !mkfifo(at("data/files/c/zpipe.jpg"), 0600));
    CHECK(read_one(&r) == HAPI_ESTALE);
    r.object = change + 4;
    REQUIRE(!truncate(at("data/files/c/zshort.jpg"), 100));
    CHECK(read_one(&r) == HAPI_ESTALE);
    hapi_store_close(store);
}

static void shard_replaced_or_rewritten_while_open__estale(void)
{
    open_all(0);
    struct hapi_read r = object_read("shards", 3, 512, 600);
    CHECK(!read_one(&r) && !read_one(&r)); /* now its fd is kept */
    shard_write("new.tar", 900);
    REQUIRE(!rename(at("new.tar"), at("data/shards/003.tar")));
    CHECK(read_one(&r) == HAPI_ESTALE);
    CHECK(read_one(&r) == HAPI_ESTALE);
    r.object = 4;
    CHECK(!read_one(&r));
    shard_write("data/shards/004.tar", 32); /* in place: same inode, same size, newer mtime */
    CHECK(read_one(&r) == HAPI_ESTALE);
    r.object = 5;
    CHECK(!read_one(&r));
    REQUIRE(!unlink(at("data/shards/005.tar")));
    CHECK(read_one(&r) == HAPI_ENOENT);
    shard_write("data/shards/003.tar", 24);
    shard_write("data/shards/005.tar", 40);
    hapi_store_close(store);
}

static void several_reads_of_an_unopened_shard__one_open_serves_all(void)
{
    static uint8_t buf[8][100000];
    struct hapi_read r[8];
    int calls = 0, before = fds_open();

    open_all(0);
    const struct hapi_dataset *d = hapi_store_find(store, "shards");
    for (uint32_t i = 0; i < 8; i++) {
        const struct hapi_sample_info *s = &d->samples[d->objects[7].first_sample + i];
        r[i] = object_read("shards", 7, s->offset, s->bytes);
        r[i].buf = buf[i];
        r[i].done = on_done;
        r[i].user = &calls;
        REQUIRE(!hapi_store_read(store, &r[i]));
    }
    wait_for(&calls, 8);
    for (uint32_t i = 0; i < 8; i++)
        CHECK(!r[i].status && bytes_match(r[i].data, r[i].bytes, 7 * PER_SHARD + i));
    CHECKF(fds_open() == before + 2, "%d open, %d before", fds_open(), before); /* root and one shard */
    CHECK(!unlink(at("data/shards/008.tar")));
    calls = 0;
    for (uint32_t i = 0; i < 4; i++) { /* all that wait for a failed open hear of it */
        r[i].object = 8;
        r[i].offset = 0;
        r[i].bytes = 1;
        REQUIRE(!hapi_store_read(store, &r[i]));
    }
    wait_for(&calls, 4);
    for (uint32_t i = 0; i < 4; i++)
        CHECK(r[i].status == HAPI_ENOENT);
    shard_write("data/shards/008.tar", 64);
    hapi_store_close(store);
}

/* The heap in use may not change by reading. */
static void read_path__a_thousand_reads__no_heap_growth(void)
{
    open_all(0);
    buffers_take(1);
    many_reads("shards", 200);
    struct mallinfo2 a = mallinfo2();
    many_reads("shards", 1000);
    many_reads("files", 40);
    struct mallinfo2 b = mallinfo2();
    CHECKF(a.uordblks == b.uordblks, "%zu bytes before, %zu after", a.uordblks, b.uordblks);
    memset(many_buf, 0, sizeof many_buf);
    hapi_store_close(store);
}

static void direct__where_the_filesystem_has_it__is_used(void)
{
    open_all(0);
    struct hapi_read r = object_read("shards", 2, 777, 1000);
    CHECK(!read_one(&r));
    int found = 0;
    for (int fd = 3; fd < 256; fd++) {
        char link[64], path[1024];
        snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
        ssize_t n = readlink(link, path, sizeof path - 1);
        if (n > 0 && (path[n] = '\0', strstr(path, "002.tar"))) {
            struct hapi_file_info info;
            REQUIRE(!hapi_file_info(fd, &info));
            int flags = fcntl(fd, F_GETFL);
            printf("O_DIRECT %s, alignment %u\n", flags & O_DIRECT ? "on" : "off", info.direct_at);
            CHECK(!(flags & O_NONBLOCK));
            int again = open(at("data/shards/002.tar"), O_RDONLY | O_DIRECT);
            CHECK(!!(flags & O_DIRECT) == (again >= 0 && info.direct_at > 1));
            if (again >= 0)
                close(again);
            found++;
        }
    }
    CHECK(found == 1);
    hapi_store_close(store);
}

int main(void)
{
    struct hapi_err err = {0};
    int rc = hapi_loop_open(&loop, 64, &err);

    if (rc == HAPI_EUNSUPPORTED)
        SKIP(err.text);
    REQUIRE(!rc);
    REQUIRE(!hapi_slab_init(&slab, 4 << 20, &err));
    if (hapi_loop_register_slab(loop, &slab, &err))
        printf("not registered: %s\n", err.text);
    tree_new();
    tree_fill();
    CASE(many_reads__shards_and_files__bytes_as_written);
    CASE(many_reads__fewer_fds_than_shards__cache_makes_room);
    CASE(any_offset_and_length__exact_bytes);
    CASE(range_outside_or_small_buffer__einval_and_no_call);
    CASE(max_reads_in_flight__ebusy_then_again);
    CASE(expectations__version_and_digest__estale_when_they_differ);
    CASE(several_reads_of_an_unopened_shard__one_open_serves_all);
    CASE(read_path__a_thousand_reads__no_heap_growth);
    CASE(direct__where_the_filesystem_has_it__is_used);
    CASE(shard_replaced_or_rewritten_while_open__estale);
    CASE(file_changed_after_index__estale__removed__enoent);
    tree_free();
    hapi_loop_close(loop);
    hapi_slab_fini(&slab);
    return check_done();
}
