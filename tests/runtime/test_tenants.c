/* The file of tenants: what it may hold, and what is said of what it may not. Rates. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "check.h"
#include "clock.h"
#include "tenants.h"

static char path[] = "/tmp/test_tenants-XXXXXX";

static int read_text(struct hapi_tenant_table *t, const char *text, struct hapi_err *err)
{
    FILE *f = fopen(path, "w");

    if (!f || fputs(text, f) < 0 || fclose(f))
        exit(1);
    *err = (struct hapi_err){0};
    return hapi_tenants_read(t, path, err);
}

static void file__with_all_options__is_read(void)
{
    struct hapi_tenant_table t;
    struct hapi_err err;

    CHECK(
        !read_text(&t,
                   "# who may come\n"
                   "ann  datasets=train,test upload=yes sessions=8 requests=16 memory=4G rate=500M weight=2\n"
                   "\n"
                   "bob\tdatasets=* # reads all\n"
                   "*    upload=no datasets=public\n",
                   &err));
    CHECK(t.n == 3);
    const struct hapi_tenant_rules *r = hapi_tenant_rules_find(&t, "ann");
    CHECK(!strcmp(r->datasets, "train,test") && r->upload && r->sessions == 8 && r->requests == 16);
    CHECK(r->memory == 4ULL << 30 && r->rate == 500ULL << 20 && r->weight == 2);
    r = hapi_tenant_rules_find(&t, "bob");
    CHECK(!strcmp(r->datasets, "*") && !r->upload && !r->sessions && !r->memory && r->weight == 1);
    CHECK(!strcmp(hapi_tenant_rules_find(&t, "carol")->datasets, "public"));
    hapi_tenant_table_free(&t);
}

static void table__without_a_star__has_no_rules_for_others(void)
{
    struct hapi_tenant_table t;
    struct hapi_err err;

    CHECK(!read_text(&t, "ann datasets=*\n", &err));
    CHECK(!hapi_tenant_rules_find(&t, "an") && !hapi_tenant_rules_find(&t, "anna"));
    hapi_tenant_table_free(&t);
    CHECK(!read_text(&t, "", &err) && t.n == 0);
    CHECK(!hapi_tenant_rules_find(&t, "ann"));
    hapi_tenant_table_free(&t);
}

static void file__that_is_wrong__is_refused_by_its_line(void)
{
    static const struct {
        const char *text, *line, *why;
    } all[] = {
        {"ann datasets=a\nann datasets=b\n", ":2", "there already"},
        {"ann datasets\n", ":1", "no key=value"},
        {"ann datasets=\n", ":1", "datasets are names"},
        {"\n\nann upload=maybe\n", ":3", "upload is yes or no"},
        {"ann colour=red\n", ":1", "no option `colour`"},
        {"ann weight=0\n", ":1", "weight takes a number, 1 to 1024"},
        {"ann weight=1025\n", ":1", "weight takes a number, 1 to 1024"},
        {"ann sessions=-1\n", ":1", "sessions takes a number"},
        {"ann sessions=99999999999\n", ":1", "sessions takes a number"},
        {"ann requests=4k\n", ":1", "requests takes a number"},
        {"ann memory=lots\n", ":1", "memory takes bytes"},
        {"ann rate=1Q\n", ":1", "rate takes bytes a second"},
    };
    struct hapi_tenant_table t;
    struct hapi_err err;

    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        CHECKF(read_text(&t, all[i].text, &err) == HAPI_EFORMAT, "%s", all[i].text);
        CHECKF(strstr(err.text, all[i].line) && strstr(err.text, all[i].why), "%s: %s", all[i].text,
               err.text);
        CHECK(!t.rules && !t.n);
    }
    char *text = malloc(6000);
    memset(text, 'a', 5998);
    memcpy(text + 5998, "\n", 2);
    CHECK(read_text(&t, text, &err) == HAPI_EFORMAT && strstr(err.text, "longer than"));
    free(text);
    CHECK(hapi_tenants_read(&t, "/nowhere/tenants", &err) < 0 && strstr(err.text, "/nowhere/tenants"));
}

static void datasets__are_whole_names(void)
{
    struct hapi_tenant t = {.rules = {.datasets = "train,test"}};

    CHECK(hapi_tenant_reads(&t, "train") && hapi_tenant_reads(&t, "test"));
    CHECK(!hapi_tenant_reads(&t, "tra") && !hapi_tenant_reads(&t, "train,test") &&
          !hapi_tenant_reads(&t, ""));
    CHECK(!hapi_tenant_reads(&t, "training"));
    memcpy(t.rules.datasets, "a,*", 4);
    CHECK(hapi_tenant_reads(&t, "whatever"));
    t.rules.datasets[0] = '\0';
    CHECK(!hapi_tenant_reads(&t, "train"));
}

static void rate__over_time__is_kept(void)
{
    struct hapi_tenant t = {.rules = {.rate = 1000000}};
    int64_t now = 50 * HAPI_NS_PER_S, end = now + 10 * HAPI_NS_PER_S;
    uint64_t sent = 0;

    for (; now < end; now += HAPI_NS_PER_MS)
        if (hapi_tenant_may_send(&t, now)) {
            hapi_tenant_sends(&t, 30000, now);
            sent += 30000;
        }
    CHECKF(sent > 9900000 && sent < 10300000, "%llu", (unsigned long long)sent);
    t.rules.rate = 0;
    CHECK(hapi_tenant_may_send(&t, now));
}

int main(void)
{
    int fd = mkstemp(path);

    if (fd < 0)
        return 1;
    close(fd);
    CASE(file__with_all_options__is_read);
    CASE(table__without_a_star__has_no_rules_for_others);
    CASE(file__that_is_wrong__is_refused_by_its_line);
    CASE(datasets__are_whole_names);
    CASE(rate__over_time__is_kept);
    unlink(path);
    return check_done();
}
