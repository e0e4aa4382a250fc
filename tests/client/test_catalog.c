#include "catalog.h"
#include "check.h"

static struct hapi_str str(const char *s)
{
    return (struct hapi_str){s, (uint32_t)strlen(s)};
}

static int classes(struct hapi_catalog *c, uint32_t node, int n, const char *const *names)
{
    uint8_t blob[256];
    int used = 0;

    for (int i = 0; i < n; i++)
        used = hapi_classes_append(blob, sizeof blob, (size_t)used, names[i]);
    struct hapi_msg_dataset d = {
        .name = str("d"), .n_classes = (uint32_t)n, .classes_blob = {(char *)blob, (uint32_t)used}};
    return hapi_catalog_classes(c, node, &d, NULL);
}

static int object(struct hapi_catalog *c, uint32_t node, const char *name, uint8_t digest, uint32_t samples)
{
    uint32_t bytes[8] = {10, 20, 30, 40, 50, 60, 70, 80};
    struct hapi_msg_object o = {
        .name = str(name), .samples = samples, .sample_bytes = {(char *)bytes, samples * 4}, .bytes = 1000};
    memset(o.digest, digest, sizeof o.digest);
    return hapi_catalog_add(c, node, &o, NULL);
}

static void two_nodes__listed_in_any_order__one_canonical_order(void)
{
    static const char *const a[] = {"10", "9"}, *const b[] = {"9", "2"};
    struct hapi_catalog c = {.n_nodes = 2};

    CHECK(classes(&c, 1, 2, b) == 0 && object(&c, 1, "b.tar", 2, 3) == 0 &&
          object(&c, 1, "c.tar", 3, 1) == 0);
    CHECK(classes(&c, 0, 2, a) == 0 && object(&c, 0, "a.tar", 1, 2) == 0 &&
          object(&c, 0, "b.tar", 2, 3) == 0);
    REQUIRE(hapi_catalog_seal(&c, NULL) == 0);
    CHECK(c.n_objects == 3 && c.n_samples == 6 && c.max_sample_bytes == 30);
    CHECK(!strcmp(c.objects[0].name, "a.tar") && !strcmp(c.objects[2].name, "c.tar"));
    CHECK(c.objects[0].nodes == 1 && c.objects[1].nodes == 3 && c.objects[2].nodes == 2);
    CHECK(c.sample_object[2] == 1 && c.objects[1].first_sample == 2);
    /* Integers are sorted as numbers, and each node's own index finds its place among all. */
    CHECK(c.n_classes == 3 && !strcmp(c.classes[0], "2") && !strcmp(c.classes[2], "10"));
    CHECK(c.node_class_map[0][0] == 2 && c.node_class_map[0][1] == 1 && c.node_class_map[1][1] == 0);
    hapi_catalog_fini(&c);
}

static void replica__other_digest_or_count__refused(void)
{
    struct hapi_catalog c = {.n_nodes = 2};

    CHECK(object(&c, 0, "a.tar", 1, 2) == 0);
    CHECK(object(&c, 1, "a.tar", 2, 2) == HAPI_ESTALE);
    CHECK(object(&c, 1, "a.tar", 1, 3) == HAPI_ESTALE);
    CHECK(object(&c, 1, "a.tar", 1, 2) == 0);
    hapi_catalog_fini(&c);
}

static void empty__sealed__says_so(void)
{
    struct hapi_catalog c = {.n_nodes = 1};
    CHECK(hapi_catalog_seal(&c, NULL) == HAPI_ENOENT);
    hapi_catalog_fini(&c);
}

int main(void)
{
    CASE(two_nodes__listed_in_any_order__one_canonical_order);
    CASE(replica__other_digest_or_count__refused);
    CASE(empty__sealed__says_so);
    return check_done();
}
