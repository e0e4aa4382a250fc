/* Kept features: real files and a real ring; what a crash may leave is made by hand. */
#include <dirent.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "check.h"
#include "clock.h"
#include "convert.h"
#include "kept.h"

enum { ROW = 5000, STRIDE = 8192, PIECE = 1 << 20, LOG_HEAD = 64, LOG_ENTRY = 32 };

static struct hapi_loop *loop;
static struct hapi_features *features;
static char folder[] = "/tmp/hapi-kept-XXXXXX";
static uint8_t *memory;

static void woken(void *arg)
{
    (void)arg;
    if (features)
        hapi_features_reap(features);
}

static int reopen(size_t memory_bytes, const char *dir, uint64_t disk_bytes)
{
    struct hapi_features_options o = {.memory = memory_bytes ? memory : NULL,
                                      .memory_bytes = memory_bytes,
                                      .row_max = PIECE,
                                      .dir = dir,
                                      .disk_bytes = disk_bytes};
    struct hapi_err err = {0};

    hapi_features_close(features);
    features = NULL;
    return hapi_features_open(&features, loop, &o, &err);
}

static struct hapi_feature_set *set_of(uint8_t key, uint32_t row_bytes)
{
    uint8_t k[32] = {key};
    return hapi_feature_set_get(features, k, row_bytes);
}

static const uint8_t *digest_of(uint32_t object)
{
    static uint8_t d[HAPI_DIGEST_SIZE];
    memset(d, 0, sizeof d);
    memcpy(d, &object, sizeof object);
    return d;
}

static void fill(uint8_t *row, uint32_t object, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        row[i] = (uint8_t)(object * 31 + i * 7 + (i >> 8));
}

static int calls;

static void io_done(struct hapi_feature_io *io)
{
    (void)io;
    calls++;
}

static void wait_for(int n)
{
    struct hapi_err err = {0};
    int64_t end = hapi_clock_ns() + 10 * HAPI_NS_PER_S;
    while (calls < n && hapi_clock_ns() < end)
        REQUIRE(!hapi_loop_run_once(loop, HAPI_NS_PER_S, &err));
    CHECKF(calls == n, "%d of %d", calls, n);
}

/* Computes a row and keeps it. */
static bool keep(struct hapi_feature_set *s, uint32_t object, uint32_t n, double seconds)
{
    static uint8_t buf[PIECE] __attribute__((aligned(4096)));
    struct hapi_feature_io io = {.done = io_done};
    struct hapi_feature f;

    if (!hapi_feature_reserve(s, digest_of(object), 3, seconds, true, &f))
        return false;
    CHECK(!hapi_feature_has(s, digest_of(object), 3));
    if (f.memory) {
        fill(f.memory, object, n);
        hapi_feature_keep(s, &f);
        return true;
    }
    fill(buf, object, n);
    calls = 0;
    hapi_feature_write(s, &f, buf, hapi_crc32c(0, buf, n), &io);
    CHECK(!calls);
    wait_for(1);
    return !io.status;
}

/* Whether the row is there, and is what was computed. */
static bool found(struct hapi_feature_set *s, uint32_t object, uint32_t n)
{
    static uint8_t buf[PIECE] __attribute__((aligned(4096))), want[PIECE];
    struct hapi_feature_io io = {.done = io_done};
    struct hapi_feature f;

    if (!hapi_feature_find(s, digest_of(object), 3, &f))
        return false;
    fill(want, object, n);
    if (!f.memory) {
        calls = 0;
        hapi_feature_read(s, &f, buf, &io);
        wait_for(1);
        CHECK(!io.status);
    }
    CHECK(!memcmp(f.memory ? f.memory : buf, want, n));
    hapi_feature_release(s, &f);
    return true;
}

static uint32_t count_found(struct hapi_feature_set *s, uint32_t n, uint32_t row_bytes)
{
    uint32_t there = 0;
    for (uint32_t i = 0; i < n; i++)
        there += found(s, i, row_bytes);
    return there;
}

/* Until what an earlier run left has been read through. */
static void settle(struct hapi_feature_set *s)
{
    struct hapi_feature f;
    struct hapi_err err = {0};
    int64_t end = hapi_clock_ns() + 10 * HAPI_NS_PER_S;

    while (!hapi_feature_reserve(s, digest_of(1u << 30), 0, 1, true, &f) && hapi_clock_ns() < end)
        REQUIRE(!hapi_loop_run_once(loop, 10 * HAPI_NS_PER_MS, &err));
    hapi_feature_abandon(s, &f);
}

static void path_of(char *out, size_t size, const char *suffix)
{
    DIR *d = opendir(folder);
    *out = '\0';
    for (struct dirent *e; d && (e = readdir(d));)
        if (strstr(e->d_name, suffix))
            snprintf(out, size, "%s/%.200s", folder, e->d_name);
    closedir(d);
}

static void empty_folder(void)
{
    char path[300];
    for (const char *suffix = ".log"; suffix; suffix = strcmp(suffix, ".log") ? NULL : ".rows")
        for (path_of(path, sizeof path, suffix); *path; path_of(path, sizeof path, suffix))
            unlink(path);
}

/* ------------------------------------------------------------------ cases */

static void memory__full__rows_stay_and_no_more_come(void)
{
    enum { N = PIECE / 5056 };
    CHECK(!reopen(PIECE, NULL, 0));
    struct hapi_feature_set *s = set_of(1, ROW);
    for (uint32_t i = 0; i < N; i++)
        CHECKF(keep(s, i, ROW, 1), "row %u", i);
    CHECK(!keep(s, N, ROW, 1));
    CHECK(!keep(s, 0, ROW, 1)); /* is there */
    CHECK(count_found(s, N + 1, ROW) == N);
    struct hapi_features_stats t = hapi_features_stats_get(features);
    CHECKF(t.memory_rows == N && t.kept == N && t.memory_bytes == PIECE, "%llu %llu",
           (unsigned long long)t.memory_rows, (unsigned long long)t.kept);
    hapi_feature_set_put(s);
}

static void row__held_when_dropped__stays_until_released(void)
{
    CHECK(!reopen(PIECE, NULL, 0));
    struct hapi_feature_set *s = set_of(1, ROW);
    struct hapi_feature a, b, c;
    CHECK(keep(s, 1, ROW, 1) && hapi_feature_find(s, digest_of(1), 3, &a) &&
          hapi_feature_find(s, digest_of(1), 3, &b));
    CHECK(!hapi_feature_find(s, digest_of(1), 4, &c)); /* another sample of that object */
    hapi_feature_drop(s, &a);
    CHECK(!hapi_feature_find(s, digest_of(1), 3, &c));
    hapi_feature_release(s, &a);
    CHECK(hapi_feature_reserve(s, digest_of(1), 3, 1, false, &c) && c.slot != b.slot);
    hapi_feature_abandon(s, &c);
    hapi_feature_release(s, &b);
    CHECK(hapi_feature_reserve(s, digest_of(2), 3, 1, false, &c) && c.slot == b.slot);
    hapi_feature_abandon(s, &c);
    CHECK(!hapi_feature_has(s, digest_of(2), 3));
    hapi_feature_set_put(s);
}

static void memory__wanted_by_a_set_worth_more__the_idle_one_goes(void)
{
    CHECK(!reopen(PIECE, NULL, 0));
    struct hapi_feature_set *cheap = set_of(1, ROW), *dear = set_of(2, ROW);
    CHECK(keep(cheap, 1, ROW, 1e-3));
    CHECK(!keep(dear, 1, ROW, 1)); /* the other one is in use */
    hapi_feature_set_put(cheap);
    CHECK(keep(dear, 1, ROW, 1));
    cheap = set_of(1, ROW);
    CHECK(!found(cheap, 1, ROW));
    hapi_feature_set_put(dear);
    CHECK(!keep(cheap, 1, ROW, 1e-3)); /* not the other way round */
    hapi_feature_set_put(cheap);
}

static void disk__opened_again__rows_are_there(void)
{
    CHECK(!reopen(PIECE, folder, 1 << 30));
    struct hapi_feature_set *s = set_of(1, ROW);
    enum { N = 300, IN_MEMORY = PIECE / 5056 };
    for (uint32_t i = 0; i < N; i++)
        CHECKF(keep(s, i, ROW, 1), "row %u", i);
    CHECK(count_found(s, N, ROW) == N);
    CHECK(hapi_features_stats_get(features).disk_rows == N - IN_MEMORY);
    hapi_feature_set_put(s);
    CHECK(!reopen(0, folder, 1 << 30));
    s = set_of(1, ROW);
    settle(s);
    CHECK(count_found(s, N, ROW) == N - IN_MEMORY);
    CHECK(keep(s, 0, ROW, 1) && found(s, 0, ROW));
    hapi_feature_set_put(s);
    CHECK(!hapi_features_stats_get(features).torn && !hapi_features_stats_get(features).errors);
}

static void disk__torn__only_whole_rows_come_back(void)
{
    char rows[300], log[300];
    empty_folder();
    CHECK(!reopen(0, folder, 1 << 30));
    struct hapi_feature_set *s = set_of(1, ROW);
    for (uint32_t i = 0; i < 10; i++)
        CHECK(keep(s, i, ROW, 1));
    hapi_feature_set_put(s);
    CHECK(!reopen(0, NULL, 0));
    path_of(rows, sizeof rows, ".rows");
    path_of(log, sizeof log, ".log");
    int r = open(rows, O_RDWR), l = open(log, O_RDWR);
    REQUIRE(r >= 0 && l >= 0);
    CHECK(pwrite(r, "x", 1, 2 * STRIDE + 4999) == 1);                /* row 2 */
    CHECK(pwrite(l, "\xff", 1, LOG_HEAD + 4 * LOG_ENTRY + 20) == 1); /* row 4's entry */
    CHECK(!ftruncate(r, 9 * STRIDE - 4096));                         /* rows 8 and 9 */
    CHECK(!ftruncate(l, LOG_HEAD + 9 * LOG_ENTRY + 5));
    close(r);
    close(l);
    CHECK(!reopen(0, folder, 1 << 30));
    s = set_of(1, ROW);
    settle(s);
    CHECK(count_found(s, 10, ROW) == 6);
    CHECK(!found(s, 2, ROW) && !found(s, 4, ROW) && !found(s, 8, ROW) && !found(s, 9, ROW));
    CHECK(hapi_features_stats_get(features).torn == 1);
    for (uint32_t i = 0; i < 10; i++) /* and those that are missing can be kept anew */
        CHECK(found(s, i, ROW) || keep(s, i, ROW, 1));
    hapi_feature_set_put(s);
    CHECK(!reopen(0, folder, 1 << 30));
    s = set_of(1, ROW);
    settle(s);
    CHECK(count_found(s, 10, ROW) == 10);
    hapi_feature_set_put(s);
}

static void disk__foreign_or_broken_files__are_removed(void)
{
    char path[300], log[300];
    empty_folder();
    CHECK(!reopen(0, folder, 1 << 30));
    struct hapi_feature_set *s = set_of(1, ROW);
    CHECK(keep(s, 1, ROW, 1));
    hapi_feature_set_put(s);
    CHECK(!reopen(0, NULL, 0));
    snprintf(path, sizeof path, "%s/00.rows", folder);
    close(open(path, O_CREAT | O_RDWR, 0600));
    path_of(log, sizeof log, ".log");
    int l = open(log, O_RDWR);
    CHECK(pwrite(l, "x", 1, 41) == 1); /* the row's size */
    close(l);
    CHECK(!reopen(0, folder, 1 << 30));
    s = set_of(1, ROW);
    CHECK(!found(s, 1, ROW) && keep(s, 1, ROW, 1) && found(s, 1, ROW));
    hapi_feature_set_put(s);
    CHECK(access(path, F_OK));
}

static void disk__budget__is_kept(void)
{
    empty_folder();
    CHECK(!reopen(0, folder, 4 * STRIDE));
    struct hapi_feature_set *s = set_of(1, ROW);
    for (uint32_t i = 0; i < 4; i++)
        CHECK(keep(s, i, ROW, 1e-3));
    CHECK(!keep(s, 4, ROW, 1e-3));
    CHECK(hapi_features_stats_get(features).disk_bytes == 4 * STRIDE);
    hapi_feature_set_put(s);
    s = set_of(2, ROW);
    CHECK(keep(s, 0, ROW, 1)); /* worth more */
    CHECK(hapi_features_stats_get(features).disk_bytes == STRIDE);
    hapi_feature_set_put(s);
    CHECK(!reopen(0, folder, STRIDE - 1)); /* smaller than what is there */
    CHECK(hapi_features_stats_get(features).disk_bytes == 0);
}

static void folder__in_use_by_another__is_refused(void)
{
    struct hapi_features_options o = {.row_max = PIECE, .dir = folder, .disk_bytes = 1 << 20};
    struct hapi_features *other;
    struct hapi_err err = {0};
    CHECK(!reopen(0, folder, 1 << 20));
    CHECK(hapi_features_open(&other, loop, &o, &err) == HAPI_EBUSY);
    CHECKF(strstr(err.text, folder), "%s", err.text);
}

int main(void)
{
    struct hapi_err err = {0};

    REQUIRE(mkdtemp(folder) && (memory = aligned_alloc(4096, 4 * PIECE)));
    REQUIRE(!hapi_loop_open(&loop, 64, &err));
    hapi_loop_on_wake(loop, woken, NULL);
    CASE(memory__full__rows_stay_and_no_more_come);
    CASE(row__held_when_dropped__stays_until_released);
    CASE(memory__wanted_by_a_set_worth_more__the_idle_one_goes);
    CASE(disk__opened_again__rows_are_there);
    CASE(disk__torn__only_whole_rows_come_back);
    CASE(disk__foreign_or_broken_files__are_removed);
    CASE(disk__budget__is_kept);
    CASE(folder__in_use_by_another__is_refused);
    hapi_features_close(features);
    empty_folder();
    rmdir(folder);
    hapi_loop_close(loop);
    free(memory);
    return check_done();
}
