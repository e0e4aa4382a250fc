/* Memory of a worker, and the pages that it lies in. */
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include "check.h"
#include "slab.h"

static struct hapi_slab slab;

static void take__until_full__aligned_and_apart(void)
{
    REQUIRE(hapi_slab_init(&slab, 3 << 20, NULL) == 0);
    CHECK(slab.size >= 3 << 20 && (uintptr_t)slab.base % 4096 == 0);
    uint8_t *a = hapi_slab_take(&slab, 100, 64), *b = hapi_slab_take(&slab, 1 << 20, 4096);
    REQUIRE(a && b);
    CHECK((uintptr_t)b % 4096 == 0 && b >= a + 100);
    memset(slab.base, 7, slab.size);
    CHECK(hapi_slab_take(&slab, slab.size, 64) == NULL);
    CHECK(hapi_slab_take(&slab, slab.size - slab.used, 1) != NULL && !hapi_slab_take(&slab, 1, 1));
    hapi_slab_fini(&slab);
    hapi_slab_fini(&slab);
}

static void init__no_size_or_more_than_there_is__refused(void)
{
    struct hapi_err err = {0};

    CHECK(hapi_slab_init(&slab, 0, &err) == HAPI_EINVAL);
    CHECK(hapi_slab_init(&slab, SIZE_MAX, &err) == HAPI_EINVAL);
    CHECK(hapi_slab_init(&slab, (size_t)1 << 60, &err) == HAPI_ENOMEM && err.text[0]);
}

static long field(const char *file, const char *name)
{
    char line[256];
    long v = -1;
    FILE *f = fopen(file, "re");

    while (f && fgets(line, sizeof line, f))
        if (strncmp(line, name, strlen(name)) == 0)
            sscanf(line + strlen(name), "%ld", &v);
    if (f)
        fclose(f);
    return v;
}

/* Of the mapping that holds p, in KiB. */
static long page_size(const void *p)
{
    unsigned long from, to;
    char line[256];
    bool in = false;
    long kib = -1;
    FILE *f = fopen("/proc/self/smaps", "re");

    while (f && fgets(line, sizeof line, f)) {
        if (sscanf(line, "%lx-%lx ", &from, &to) == 2)
            in = (uintptr_t)p >= from && (uintptr_t)p < to;
        else if (in && kib < 0)
            sscanf(line, "KernelPageSize: %ld", &kib);
    }
    if (f)
        fclose(f);
    return kib;
}

static void init__huge_pages_reserved_or_not__used_and_given_back(void)
{
    long before = field("/proc/meminfo", "HugePages_Free:"), kib = field("/proc/meminfo", "Hugepagesize:");
    bool enough = before >= 2 && kib == 2048;

    REQUIRE(hapi_slab_init(&slab, (2 << 20) + 5, NULL) == 0);
    memset(slab.base, 1, slab.size);
    CHECK(page_size(slab.base) == (enough ? 2048 : 4));
    CHECK(slab.size == (enough ? 4u << 20 : (2 << 20) + 4096));
    hapi_slab_fini(&slab);
    CHECK(field("/proc/meminfo", "HugePages_Free:") == before);
}

/* Pages of [p, p + n) that are in memory. */
static size_t pages_resident(void *p, size_t n)
{
    unsigned char in[1024];
    size_t count = 0;

    REQUIRE(n / 4096 <= sizeof in && !mincore(p, n, in));
    for (size_t i = 0; i < n / 4096; i++)
        count += in[i] & 1;
    return count;
}

/* Ordinary pages: reserved ones stay. */
static void trim__a_huge_page_in_part_used__gives_the_rest_back(void)
{
    enum { SIZE = 4 << 20, USED = 100 << 10 };
    unsigned char *a, *b;

    REQUIRE(hapi_slab_init(&slab, SIZE, NULL) == 0);
    a = hapi_slab_take(&slab, USED, 64);
    memset(a, 5, USED);
    if (page_size(a) == 4) {
        hapi_slab_trim(&slab);
        CHECKF(pages_resident(slab.base, SIZE) == USED / 4096, "%zu pages", pages_resident(slab.base, SIZE));
    }
    b = hapi_slab_take(&slab, SIZE - USED, 1);
    REQUIRE(b == a + USED);
    for (size_t i = 0; i < SIZE - USED; i += 512)
        CHECK(!b[i]);
    memset(b, 6, SIZE - USED);
    hapi_slab_trim(&slab); /* full: nothing to give */
    CHECK(a[0] == 5 && a[USED - 1] == 5 && b[0] == 6 && b[SIZE - USED - 1] == 6);
    hapi_slab_fini(&slab);
}

int main(void)
{
    CASE(take__until_full__aligned_and_apart);
    CASE(init__no_size_or_more_than_there_is__refused);
    CASE(init__huge_pages_reserved_or_not__used_and_given_back);
    CASE(trim__a_huge_page_in_part_used__gives_the_rest_back);
    return check_done();
}
