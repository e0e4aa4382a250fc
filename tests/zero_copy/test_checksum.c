/*
 * The payload's checksum between a node and a loader: a bit that turns over between the node's checksum and
 * the work request is found wherever the client checks (on arrival, or in the pass that converts), nothing of
 * that part is delivered, and the features are right in the end. A node that offers no checksums is refused
 * by name.
 */
#include <string.h>

#include "check.h"
#include "pair.h"
#include "seams.h"
#include "wire.h"

enum { WIDTH_MAX = 16 * 32 * 32 };

static struct pair *pair;
static float whole[PAIR_SAMPLES][WIDTH_MAX], again[PAIR_SAMPLES][WIDTH_MAX];

/* An epoch into rows[sample]; how often requests were issued anew. */
static uint64_t epoch(const struct hapi_loader_options *o, float rows[PAIR_SAMPLES][WIDTH_MAX], bool corrupt)
{
    struct hapi_batch_view b;
    struct hapi_error e = {0};
    struct hapi_loader *l;
    uint32_t samples = 0;

    int rc = hapi_loader_open(&l, o, &e);
    CHECKF(!rc, "%s", e.text);
    if (rc)
        exit(1);
    REQUIRE(hapi_loader_width(l) <= WIDTH_MAX);
    if (corrupt)
        seams_corrupt_next();
    REQUIRE(!hapi_loader_epoch(l, 0, &e));
    while ((rc = hapi_loader_next(l, &b, &e)) == 1) {
        for (uint32_t i = 0; i < b.n; i++)
            memcpy(rows[b.samples[i]], (const char *)b.features + i * b.stride, b.width * sizeof(float));
        samples += b.n;
        hapi_loader_release(l, &b);
    }
    CHECKF(!rc && samples == PAIR_SAMPLES, "%u samples, %s", samples, e.text);
    uint64_t reissued = hapi_loader_stats_get(l).reissued;
    hapi_loader_close(l);
    return reissued;
}

static void corrupt_once(const char *freeze, const char *policy, const char *wire)
{
    struct hapi_loader_options o = pair_options(pair);

    o.freeze = freeze;
    o.policy = policy;
    o.wire = wire;
    o.checksum = 1;
    memset(whole, 0, sizeof whole);
    memset(again, 0, sizeof again);
    CHECK(!epoch(&o, whole, false));
    uint64_t reissued = epoch(&o, again, true);
    CHECKF(seams_corrupted() && reissued, "%s %s %s: not found", freeze, policy, wire);
    CHECKF(!memcmp(whole, again, sizeof whole), "%s %s %s: delivered", freeze, policy, wire);
}

static void a_bit_turns_over__f32__found_on_arrival(void)
{
    corrupt_once(PAIR_POOL, "freeze", "f32");
}

static void a_bit_turns_over__narrow_wire__found_while_converting(void)
{
    corrupt_once(PAIR_POOL, "freeze", "f16");
    corrupt_once(PAIR_CONV, "freeze", "bf16");
    corrupt_once(PAIR_POOL, "freeze", "int8");
    corrupt_once(PAIR_CONV, "freeze", "int8");
}

static void a_bit_turns_over__raw_objects__found_before_decoding(void)
{
    corrupt_once(PAIR_POOL, "none", "f32");
}

static void no_checksum_asked__a_bit_turns_over__is_delivered(void)
{
    struct hapi_loader_options o = pair_options(pair);

    o.freeze = PAIR_POOL;
    memset(whole, 0, sizeof whole);
    memset(again, 0, sizeof again);
    CHECK(!epoch(&o, whole, false) && !epoch(&o, again, true));
    CHECK(seams_corrupted() && memcmp(whole, again, sizeof whole)); /* or the cases above say nothing */
}

static void the_node_offers_none__asked_for__unsupported_by_name(void)
{
    struct hapi_loader_options o = pair_options(pair);
    struct hapi_error e = {0};
    struct hapi_loader *l;

    o.freeze = PAIR_POOL;
    o.checksum = 1;
    seams_hide_caps(HAPI_CAP_CHECKSUM);
    int rc = hapi_loader_open(&l, &o, &e);
    CHECKF(rc == HAPI_EUNSUPPORTED && strstr(e.text, o.nodes) && strstr(e.text, "checksum"), "%d %s", rc,
           e.text);
    if (!rc)
        hapi_loader_close(l);
    o.checksum = 0; /* and is served otherwise */
    CHECK(!epoch(&o, again, false));
    seams_hide_caps(0);
}

static void the_node_cannot_int8__asked_for__unsupported_by_name(void)
{
    struct hapi_loader_options o = pair_options(pair);
    struct hapi_error e = {0};
    struct hapi_loader *l;

    o.freeze = PAIR_POOL;
    o.wire = "int8";
    seams_hide_caps(HAPI_CAP_INT8);
    int rc = hapi_loader_open(&l, &o, &e);
    CHECKF(rc == HAPI_EUNSUPPORTED && strstr(e.text, o.nodes) && strstr(e.text, "int8"), "%d %s", rc, e.text);
    if (!rc)
        hapi_loader_close(l);
    o.wire = "bf16";
    CHECK(!epoch(&o, again, false));
    o.wire = "int8"; /* raw objects have no dtype */
    o.policy = "none";
    CHECK(!epoch(&o, again, false));
    seams_hide_caps(0);
}

/* The node here has no GPU. */
static void the_node_cannot_f16__asked_for__unsupported_by_name(void)
{
    struct hapi_loader_options o = pair_options(pair);
    struct hapi_error e = {0};
    struct hapi_loader *l;

    o.freeze = PAIR_POOL;
    o.dtype = "f16";
    int rc = hapi_loader_open(&l, &o, &e);
    CHECKF(rc == HAPI_EUNSUPPORTED && strstr(e.text, o.nodes) && strstr(e.text, "f16") &&
               strstr(e.text, "--dtype"),
           "%d %s", rc, e.text);
    if (!rc)
        hapi_loader_close(l);
    o.dtype = "bf16";
    seams_hide_caps(HAPI_CAP_BF16);
    rc = hapi_loader_open(&l, &o, &e);
    CHECKF(rc == HAPI_EUNSUPPORTED && strstr(e.text, "bf16"), "%d %s", rc, e.text);
    if (!rc)
        hapi_loader_close(l);
    seams_hide_caps(0);
}

/* A client that asks all the same has the node's own word, which is on its way for so long. */
static void refused_with_a_word(int late_ms)
{
    struct hapi_loader_options o = pair_options(pair);
    struct hapi_batch_view v;
    struct hapi_error e = {0};
    struct hapi_loader *l;
    int rc;

    o.freeze = PAIR_POOL;
    o.dtype = "f16";
    o.on_bad = HAPI_FAIL_ON_BAD;
    o.batch = PAIR_SAMPLES; /* one request */
    seams_claim_caps(HAPI_CAP_F16);
    REQUIRE(!hapi_loader_open(&l, &o, &e));
    CHECK(!strcmp(hapi_loader_dtype_here(l), "none"));
    seams_late_word(late_ms);
    REQUIRE(!hapi_loader_epoch(l, 0, &e));
    rc = hapi_loader_next(l, &v, &e);
    CHECKF(rc == HAPI_EUNSUPPORTED && strstr(e.text, "does not compute in f16"), "%d %s", rc, e.text);
    hapi_loader_close(l);
    seams_claim_caps(0);
}

static void the_node_cannot_f16__asked_all_the_same__refuses(void)
{
    refused_with_a_word(0);
}

static void the_node_refuses__its_word_comes_late__is_told(void)
{
    refused_with_a_word(300);
}

static void f16_of_raw_objects__is_f32_here(void)
{
    struct hapi_loader_options o = pair_options(pair);
    struct hapi_error e = {0};
    struct hapi_loader *l;

    o.freeze = PAIR_POOL;
    o.policy = "none";
    memset(whole, 0, sizeof whole);
    memset(again, 0, sizeof again);
    CHECK(!epoch(&o, whole, false));
    o.dtype = "f16";
    CHECK(!epoch(&o, again, false) && !memcmp(whole, again, sizeof whole));
    REQUIRE(!hapi_loader_open(&l, &o, &e));
    CHECK(!strcmp(hapi_loader_dtype_here(l), "f32"));
    hapi_loader_close(l);
}

int main(void)
{
    pair = pair_open("onednn");
    CASE(no_checksum_asked__a_bit_turns_over__is_delivered);
    CASE(a_bit_turns_over__f32__found_on_arrival);
    CASE(a_bit_turns_over__narrow_wire__found_while_converting);
    CASE(a_bit_turns_over__raw_objects__found_before_decoding);
    CASE(the_node_offers_none__asked_for__unsupported_by_name);
    CASE(the_node_cannot_int8__asked_for__unsupported_by_name);
    CASE(the_node_cannot_f16__asked_for__unsupported_by_name);
    CASE(the_node_cannot_f16__asked_all_the_same__refuses);
    CASE(the_node_refuses__its_word_comes_late__is_told);
    CASE(f16_of_raw_objects__is_f32_here);
    pair_close(pair);
    return check_done();
}
