#include <dirent.h>

#include "convert.h"
#include "store.h"
#include "tarfile.h"
#include "tree.h"

static struct hapi_store *store_open(const char *cache)
{
    struct hapi_store_options opt = {.cache_dir = cache};
    struct hapi_store *s = NULL;
    struct hapi_err err = {0};
    int rc = hapi_store_open(&s, at("data"), &opt, &err);
    CHECKF(!rc, "%s", err.text);
    REQUIRE(!rc);
    return s;
}

static int has_problem(const struct hapi_dataset *d, const char *part)
{
    for (uint32_t i = 0; i < d->n_problems; i++)
        if (strstr(d->problems[i], part))
            return 1;
    for (uint32_t i = 0; i < d->n_problems; i++)
        fprintf(stderr, "  there is: %s\n", d->problems[i]);
    return 0;
}

static void missing_folder__enoent(void)
{
    struct hapi_store *s;
    struct hapi_err err = {0};
    CHECK(hapi_store_open(&s, at("nowhere"), NULL, &err) == HAPI_ENOENT);
    CHECK(strstr(err.text, "nowhere") && err.code == HAPI_ENOENT);
    hapi_store_close(NULL);
}

static void class_folders__images_in_canonical_order(void)
{
    uint8_t bytes[5000], digest[32];
    folder("data/flowers");
    folder("data/flowers/rose");
    folder("data/flowers/lily");
    folder("data/flowers/empty");
    folder("data/flowers/rose/deeper");
    file_pattern("data/flowers/rose/2.jpg", 5000, 1);
    file_pattern("data/flowers/rose/10.JPEG", 10, 2);
    file_bytes("data/flowers/lily/0.jpg", "", 0);
    file_bytes("data/flowers/lily/notes.txt", "x", 1);
    file_bytes("data/flowers/.hidden.jpg", "x", 1);

    struct hapi_store *s = store_open(NULL);
    const struct hapi_dataset *d = hapi_store_find(s, "flowers");
    REQUIRE(d && d->n_objects == 3 && d->n_samples == 3 && d->n_classes == 2);
    CHECK(!strcmp(d->objects[0].name, "lily/0.jpg") && !strcmp(d->objects[1].name, "rose/10.JPEG"));
    CHECK(!strcmp(d->classes[0], "lily") && !strcmp(d->classes[1], "rose"));
    CHECK(!strcmp(d->samples[2].key, "rose/2") && d->samples[2].class_id == 1);
    CHECK(d->samples[2].bytes == 5000 && d->samples[2].offset == 0 && d->samples[0].bytes == 0);
    CHECK(d->bytes == 5010 && d->max_sample_bytes == 5000 && d->objects[2].bytes == 5000);
    CHECK(d->objects[2].first_sample == 2 && d->objects[2].n_samples == 1);
    CHECK(hapi_dataset_object(d, "rose/2.jpg") == 2 && hapi_dataset_object(d, "rose/3.jpg") == -1);
    pattern(bytes, 5000, 1);
    hapi_sha256(digest, bytes, 5000);
    CHECK(!memcmp(d->objects[2].digest, digest, 32));
    CHECK(d->objects[2].version.size == 24 && d->objects[2].version.data[0] == (5000 & 255));
    CHECK(has_problem(d, "notes.txt") && has_problem(d, "empty"));
    hapi_store_close(s);
}

static void links__inside_followed__outside_refused(void)
{
    file_pattern("outside.jpg", 9, 9);
    folder("data/links");
    folder("data/links/c");
    file_pattern("data/links/c/real.jpg", 100, 3);
    REQUIRE(!symlink("real.jpg", at("data/links/c/beside.jpg")));
    REQUIRE(!symlink("../../../outside.jpg", at("data/links/c/escape.jpg")));
    REQUIRE(!symlink("/etc/passwd", at("data/links/c/absolute.jpg")));
    REQUIRE(!symlink("nothing", at("data/links/c/dangling.jpg")));
    REQUIRE(!mkfifo(at("data/links/c/pipe.jpg"), 0644));
    struct hapi_store *s = store_open(NULL);
    const struct hapi_dataset *d = hapi_store_find(s, "links");
    REQUIRE(d && d->n_objects == 2);
    CHECK(!strcmp(d->objects[0].name, "c/beside.jpg") && d->objects[0].bytes == 100);
    CHECK(has_problem(d, "escape.jpg") && has_problem(d, "absolute.jpg") && has_problem(d, "dangling.jpg"));
    CHECK(has_problem(d, "pipe.jpg: not a regular file"));
    hapi_store_close(s);
}

static void pax(struct tarfile *t, const char *key, const char *value)
{
    char record[5000], text[5100];
    int n = snprintf(record, sizeof record, " %s=%s\n", key, value), len = n + 1;
    while (snprintf(text, sizeof text, "%d%s", len, record) != len)
        len++;
    tar_header(t, "PaxHeaders/x", 'x', (uint64_t)len);
    tar_data(t, text, (size_t)len);
}

static void tar__pairs_in_any_order__classes_by_number(void)
{
    struct tarfile t = {0};
    uint8_t a[700], b[513];
    pattern(a, sizeof a, 1);
    pattern(b, sizeof b, 2);
    tar_header(&t, "dir/", '5', 0);
    tar_add(&t, "dir/b.jpg", a, sizeof a);
    tar_text(&t, "dir/b.cls", "10\n");
    tar_text(&t, "./a.cls", " 9 ");
    tar_text(&t, "a.json", "{}");
    tar_add(&t, "a.JPEG", b, sizeof b);
    tar_text(&t, "lonely.jpg", "x");
    tar_text(&t, "lost.cls", "1");
    tar_text(&t, "dir/b.jpeg", "again");
    tar_add(&t, "none.jpg", "", 0);
    tar_text(&t, "none.cls", "10");
    tar_text(&t, "bad.jpg", "x");
    tar_text(&t, "bad.cls", "a\nb");
    tar_header(&t, "link.jpg", '2', 0);
    tar_end(&t);
    folder("data/train");
    tar_save(&t, at("data/train/000.tar"), t.n);
    folder("data/train/folder");
    file_pattern("data/train/folder/x.jpg", 3, 3);

    struct hapi_store *s = store_open(NULL);
    const struct hapi_dataset *d = hapi_store_find(s, "train");
    REQUIRE(d && d->n_objects == 1 && d->n_samples == 3 && d->n_classes == 2);
    CHECK(!strcmp(d->classes[0], "9") && !strcmp(d->classes[1], "10"));
    CHECK(!strcmp(d->samples[0].key, "dir/b") && d->samples[0].class_id == 1);
    CHECK(!strcmp(d->samples[1].key, "a") && d->samples[1].class_id == 0);
    CHECK(!strcmp(d->samples[2].key, "none") && d->samples[2].bytes == 0);
    CHECK(!memcmp(t.p + d->samples[0].offset, a, sizeof a) && d->samples[0].bytes == sizeof a);
    CHECK(!memcmp(t.p + d->samples[1].offset, b, sizeof b) && d->samples[1].bytes == sizeof b);
    CHECK(has_problem(d, "lonely.jpg has no lonely.cls") && has_problem(d, "lost.cls has no image"));
    CHECK(has_problem(d, "second dir/b.jpg") && has_problem(d, "bad.cls does not hold a class name"));
    CHECK(has_problem(d, "tar shards and folders"));
    hapi_store_close(s);
    tar_free(&t);
}

static void tar__pax_gnu_and_base256__long_names_and_sizes(void)
{
    struct tarfile t = {0};
    char name[301], gnu[301];
    memset(name, 'n', 296);
    strcpy(name + 296, ".jpg");
    pax(&t, "path", name);
    tar_text(&t, "short", "pax image");
    strcpy(name + 296, ".cls");
    pax(&t, "path", name);
    tar_text(&t, "short", "k");
    memset(gnu, 'g', 296);
    strcpy(gnu + 296, ".jpg");
    tar_header(&t, "././@LongLink", 'L', 301);
    tar_data(&t, gnu, 301);
    tar_text(&t, "cut", "gnu image");
    strcpy(gnu + 296, ".cls");
    tar_header(&t, "././@LongLink", 'L', 301);
    tar_data(&t, gnu, 301);
    tar_text(&t, "cut", "k");
    pax(&t, "size", "8"); /* the header says 0 */
    tar_header(&t, "sized.jpg", '0', 0);
    tar_data(&t, "by a pax", 8);
    tar_text(&t, "sized.cls", "k");
    tar_header(&t, "base.jpg", '0', 0);
    uint8_t *h = t.p + t.n - 512;
    memset(h + 124, 0, 12);
    h[124] = 0x80;
    h[134] = 1; /* 256 bytes */
    tar_seal(h);
    tar_grow(&t, 512);
    tar_text(&t, "base.cls", "k");
    tar_header(&t, "prefixed.jpg", '0', 0);
    memcpy(t.p + t.n - 512 + 345, "some/prefix", 11);
    tar_seal(t.p + t.n - 512);
    tar_text(&t, "some/prefix/prefixed.cls", "k");
    tar_end(&t);
    folder("data/names");
    tar_save(&t, at("data/names/n.tar"), t.n);

    struct hapi_store *s = store_open(NULL);
    const struct hapi_dataset *d = hapi_store_find(s, "names");
    for (uint32_t i = 0; i < d->n_problems; i++)
        fprintf(stderr, "%s\n", d->problems[i]);
    REQUIRE(d && d->n_samples == 5 && d->n_problems == 0);
    CHECK(strlen(d->samples[0].key) == 296 && d->samples[0].key[295] == 'n');
    CHECK(!memcmp(t.p + d->samples[0].offset, "pax image", 9) && d->samples[0].bytes == 9);
    CHECK(strlen(d->samples[1].key) == 296 && d->samples[1].key[0] == 'g');
    CHECK(!memcmp(t.p + d->samples[1].offset, "gnu image", 9));
    CHECK(d->samples[2].bytes == 8 && !memcmp(t.p + d->samples[2].offset, "by a pax", 8));
    CHECK(d->samples[3].bytes == 256 && !strcmp(d->samples[4].key, "some/prefix/prefixed"));
    hapi_store_close(s);
    tar_free(&t);
}

/* Any cut: no crash, no sample beyond the end, and each whole pair is served. */
static void tar__cut_at_any_byte__whole_samples_served_and_cut_reported(void)
{
    struct tarfile t = {0};
    uint8_t a[600];
    pattern(a, sizeof a, 4);
    for (int i = 0; i < 3; i++) {
        char name[32];
        snprintf(name, sizeof name, "%d.cls", i);
        tar_text(&t, name, "c");
        snprintf(name, sizeof name, "%d.jpg", i);
        tar_add(&t, name, a, sizeof a);
    }
    size_t members = t.n;
    tar_end(&t);
    folder("data/cut");
    for (size_t n = 0; n <= t.n; n += n % 512 == 0 || n % 512 == 511 ? 1 : 93) {
        tar_save(&t, at("data/cut/c.tar"), n);
        struct hapi_store *s = store_open(NULL);
        const struct hapi_dataset *d = hapi_store_find(s, "cut");
        uint64_t whole = 0;
        for (int i = 0; i < 3; i++) /* .cls: 1024 bytes, .jpg: header, 600 bytes, padding */
            whole += n >= (size_t)(i * 2560 + 1024 + 512 + 600);
        CHECKF(d->n_samples == whole, "cut at %zu: %llu samples", n, (unsigned long long)d->n_samples);
        for (uint64_t i = 0; i < d->n_samples; i++)
            CHECK(!memcmp(t.p + d->samples[i].offset, a, sizeof a));
        if (n < members + 512)
            CHECKF(has_problem(d, "cut off"), "cut at %zu", n);
        else
            CHECKF(!d->n_problems, "cut at %zu", n);
        hapi_store_close(s);
    }
    tar_free(&t);
}

static void tar__hostile_headers__refused_as_problem(void)
{
    static const struct {
        const char *what;
        uint8_t size[12];
    } sizes[] = {
        {"negative", {0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}},
        {"2^63", {0x80, 0, 0, 0, 0x80, 0, 0, 0, 0, 0, 0, 0}},
        {"2^63-1", {0x80, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}},
        {"2^64", {0x80, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0}},
        {"8 GiB", {'7', '7', '7', '7', '7', '7', '7', '7', '7', '7', '7', 0}},
        {"text", {'1', '2', 'x', 0, 0, 0, 0, 0, 0, 0, 0, 0}},
    };
    folder("data/hostile");
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes + 1; i++) {
        struct tarfile t = {0};
        tar_text(&t, "good.jpg", "x");
        tar_text(&t, "good.cls", "c");
        tar_header(&t, "bad.jpg", '0', 0);
        if (i < sizeof sizes / sizeof *sizes) {
            memcpy(t.p + t.n - 512 + 124, sizes[i].size, 12);
            tar_seal(t.p + t.n - 512);
        } else {
            t.p[t.n - 512 + 3]++; /* wrong checksum */
        }
        tar_end(&t);
        tar_save(&t, at("data/hostile/h.tar"), t.n);
        struct hapi_store *s = store_open(NULL);
        const struct hapi_dataset *d = hapi_store_find(s, "hostile");
        CHECK(d->n_samples == 1 && d->n_problems == 1);
        CHECK(has_problem(d, "at byte 2048"));
        hapi_store_close(s);
        tar_free(&t);
    }
}

static void tar__hostile_pax_records__refused_as_problem(void)
{
    static const char *const records[] = {"0 a=b\n",
                                          "6 a=b",
                                          "99 a=b\n",
                                          "7 a=bc",
                                          "x a=b\n",
                                          "5 a=b\n",
                                          "3 \n",
                                          "4 =\n",
                                          "6 ab\n\n",
                                          "5 =b\n",
                                          "12 size=-1\n ",
                                          "11 size=x\n",
                                          "28 size=99999999999999999999\n",
                                          "99999999999999999999 a=b\n"};
    folder("data/pax");
    for (size_t i = 0; i < sizeof records / sizeof *records; i++) {
        struct tarfile t = {0};
        tar_text(&t, "good.jpg", "x");
        tar_text(&t, "good.cls", "c");
        tar_header(&t, "pax", 'x', strlen(records[i]));
        tar_data(&t, records[i], strlen(records[i]));
        tar_text(&t, "next.jpg", "y");
        tar_end(&t);
        tar_save(&t, at("data/pax/p.tar"), t.n);
        struct hapi_store *s = store_open(NULL);
        const struct hapi_dataset *d = hapi_store_find(s, "pax");
        CHECK(d->n_samples == 1 && d->n_problems == 1);
        CHECKF(has_problem(d, "pax"), "record %zu", i);
        hapi_store_close(s);
        tar_free(&t);
    }
}

/* In place, same size, mtime put back: only a cache that is used can make the old digest come again. */
static void rewrite_unseen(const char *name, size_t n, uint32_t seed)
{
    struct stat st;
    uint8_t bytes[256];
    int fd = open(at(name), O_WRONLY);
    REQUIRE(fd >= 0 && n <= sizeof bytes && !fstat(fd, &st));
    pattern(bytes, n, seed);
    REQUIRE(pwrite(fd, bytes, n, 0) == (ssize_t)n);
    struct timespec times[2] = {st.st_atim, st.st_mtim};
    REQUIRE(!futimens(fd, times));
    close(fd);
}

static int digest_is(const struct hapi_dataset *d, int64_t object, size_t n, uint32_t seed)
{
    uint8_t bytes[256], digest[32];
    pattern(bytes, n, seed);
    hapi_sha256(digest, bytes, n);
    return !memcmp(d->objects[object].digest, digest, 32);
}

static void flip_cache_byte(void)
{
    DIR *dir = opendir(at("cache"));
    struct dirent *e;
    REQUIRE(dir);
    while ((e = readdir(dir))) {
        char path[1024];
        uint8_t b;
        if (e->d_name[0] == '.')
            continue;
        snprintf(path, sizeof path, "%s/cache/%s", root, e->d_name);
        int fd = open(path, O_RDWR);
        REQUIRE(fd >= 0 && pread(fd, &b, 1, 40) == 1);
        b ^= 1;
        REQUIRE(pwrite(fd, &b, 1, 40) == 1);
        close(fd);
    }
    closedir(dir);
}

static void cache__reused__rebuilt_when_changed_or_corrupt(void)
{
    folder("data/kept");
    folder("data/kept/c");
    file_pattern("data/kept/c/0.jpg", 200, 1);
    file_pattern("data/kept/c/1.jpg", 200, 2);
    struct hapi_store *s = store_open(at("cache"));
    CHECK(digest_is(hapi_store_find(s, "kept"), 0, 200, 1));
    hapi_store_close(s);

    rewrite_unseen("data/kept/c/0.jpg", 200, 11);
    s = store_open(at("cache"));
    CHECK(digest_is(hapi_store_find(s, "kept"), 0, 200, 1)); /* from the cache */
    hapi_store_close(s);

    file_pattern("data/kept/c/1.jpg", 100, 12); /* seen: size and mtime */
    s = store_open(at("cache"));
    CHECK(digest_is(hapi_store_find(s, "kept"), 0, 200, 1));
    CHECK(digest_is(hapi_store_find(s, "kept"), 1, 100, 12));
    hapi_store_close(s);

    rewrite_unseen("data/kept/c/1.jpg", 100, 13);
    s = store_open(at("cache")); /* the new entry was saved */
    CHECK(digest_is(hapi_store_find(s, "kept"), 1, 100, 12));
    hapi_store_close(s);

    flip_cache_byte();
    s = store_open(at("cache"));
    CHECK(digest_is(hapi_store_find(s, "kept"), 0, 200, 11));
    CHECK(digest_is(hapi_store_find(s, "kept"), 1, 100, 13));
    hapi_store_close(s);

    rewrite_unseen("data/kept/c/0.jpg", 200, 14);
    s = store_open(at("cache")); /* the corrupt one was replaced by a sound one */
    CHECK(digest_is(hapi_store_find(s, "kept"), 0, 200, 11));
    CHECK(!hapi_store_find(s, "kept")->n_problems);
    hapi_store_close(s);
}

/* All that open() says must come out of the cache as it went in. */
static void cache__every_dataset__same_index_as_without(void)
{
    struct hapi_store *plain = store_open(NULL), *first = store_open(at("cache")),
                      *again = store_open(at("cache"));

    CHECK(hapi_store_count(plain) == hapi_store_count(again) && hapi_store_count(plain) > 4);
    for (uint32_t k = 0; k < hapi_store_count(plain); k++) {
        const struct hapi_dataset *a = hapi_store_at(plain, k), *b = hapi_store_find(again, a->name);
        if (!strcmp(a->name, "kept"))
            continue;
        REQUIRE(b && a->n_objects == b->n_objects && a->n_samples == b->n_samples);
        REQUIRE(a->n_classes == b->n_classes && a->n_problems == b->n_problems);
        for (uint32_t i = 0; i < a->n_objects; i++)
            CHECK(!strcmp(a->objects[i].name, b->objects[i].name) &&
                  !memcmp(a->objects[i].digest, b->objects[i].digest, 32) &&
                  !memcmp(&a->objects[i].version, &b->objects[i].version, sizeof a->objects[i].version));
        for (uint64_t i = 0; i < a->n_samples; i++)
            CHECK(!strcmp(a->samples[i].key, b->samples[i].key) &&
                  a->samples[i].offset == b->samples[i].offset &&
                  a->samples[i].bytes == b->samples[i].bytes &&
                  a->samples[i].class_id == b->samples[i].class_id);
        for (uint32_t i = 0; i < a->n_problems; i++)
            CHECK(!strcmp(a->problems[i], b->problems[i]));
    }
    hapi_store_close(plain);
    hapi_store_close(first);
    hapi_store_close(again);
}

static void cache__cannot_be_written__problem_not_failure(void)
{
    file_bytes("not-a-folder", "x", 1);
    struct hapi_store *s = store_open(at("not-a-folder/cache"));
    CHECK(has_problem(hapi_store_find(s, "kept"), "not cached"));
    hapi_store_close(s);
}

/* A replica written in another order, elsewhere, has the same order and digests. */
static void replica__same_bytes__same_order_and_digests(void)
{
    struct hapi_store_options none = {0};
    struct hapi_store *a = NULL, *b = NULL;
    const char *names[] = {"x/3.jpg", "y/1.jpg", "x/1.jpg", "x/2.jpeg"};
    char path[256];

    for (int side = 0; side < 2; side++) {
        const char *base = side ? "replica2" : "replica1";
        folder(base);
        snprintf(path, sizeof path, "%s/set", base);
        folder(path);
        for (int c = 0; c < 2; c++) {
            snprintf(path, sizeof path, "%s/set/%s", base, (c ^ side) ? "x" : "y");
            folder(path);
        }
        for (int i = 0; i < 4; i++) {
            int k = side ? 3 - i : i;
            snprintf(path, sizeof path, "%s/set/%s", base, names[k]);
            file_pattern(path, 1000 + (size_t)k, (uint32_t)k);
        }
    }
    REQUIRE(!hapi_store_open(&a, at("replica1"), &none, NULL));
    REQUIRE(!hapi_store_open(&b, at("replica2"), &none, NULL));
    const struct hapi_dataset *p = hapi_store_at(a, 0), *q = hapi_store_at(b, 0);
    REQUIRE(p->n_objects == 4 && q->n_objects == 4);
    for (int i = 0; i < 4; i++) {
        CHECK(!strcmp(p->objects[i].name, q->objects[i].name));
        CHECK(!memcmp(p->objects[i].digest, q->objects[i].digest, 32));
        CHECK(memcmp(&p->objects[i].version, &q->objects[i].version, sizeof p->objects[i].version));
    }
    hapi_store_close(a);
    hapi_store_close(b);
}

static void empty_dataset__problem(void)
{
    folder("data/void");
    struct hapi_store *s = store_open(NULL);
    const struct hapi_dataset *d = hapi_store_find(s, "void");
    REQUIRE(d && !d->n_objects && !d->n_samples && !d->n_classes);
    CHECK(has_problem(d, "neither class folders nor tar shards"));
    hapi_store_close(s);
}

int main(void)
{
    tree_new();
    folder("data");
    CASE(missing_folder__enoent);
    CASE(class_folders__images_in_canonical_order);
    CASE(links__inside_followed__outside_refused);
    CASE(tar__pairs_in_any_order__classes_by_number);
    CASE(tar__pax_gnu_and_base256__long_names_and_sizes);
    CASE(tar__cut_at_any_byte__whole_samples_served_and_cut_reported);
    CASE(tar__hostile_headers__refused_as_problem);
    CASE(tar__hostile_pax_records__refused_as_problem);
    CASE(cache__reused__rebuilt_when_changed_or_corrupt);
    CASE(cache__every_dataset__same_index_as_without);
    CASE(cache__cannot_be_written__problem_not_failure);
    CASE(replica__same_bytes__same_order_and_digests);
    CASE(empty_dataset__problem);
    tree_free();
    return check_done();
}
