/* The wire format: round trips, every truncation, every flipped byte, every range. */
#include "check.h"
#include "wire.h"
#include "wire_samples.h"

static uint8_t buf[HAPI_REQUEST_MAX], again[HAPI_REQUEST_MAX];
static struct hapi_req_object objects[HAPI_REQUEST_SAMPLES], objects2[HAPI_REQUEST_SAMPLES];
static struct hapi_req_sample samples[HAPI_REQUEST_SAMPLES], samples2[HAPI_REQUEST_SAMPLES];

static bool str_is(struct hapi_str a, struct hapi_str b)
{
    return a.n == b.n && (a.n == 0 || memcmp(a.s, b.s, a.n) == 0);
}

/* A codec by type-erased functions, so that one loop attacks all of them. */
struct codec {
    const char *name;
    int (*decode)(const uint8_t *p, size_t n, struct hapi_err *err);
    int (*reencode)(uint8_t *out, size_t size); /* what decode() has filled */
};

#define CODEC(thing, type)                                                                                   \
    static struct type thing##_value;                                                                        \
    static int thing##_dec(const uint8_t *p, size_t n, struct hapi_err *err)                                 \
    {                                                                                                        \
        return hapi_##thing##_decode(&thing##_value, p, n, err);                                             \
    }                                                                                                        \
    static int thing##_enc(uint8_t *out, size_t size)                                                        \
    {                                                                                                        \
        return hapi_##thing##_encode(&thing##_value, out, size);                                             \
    }
CODEC(hello, hapi_hello)
CODEC(msg_error, hapi_msg_error)
CODEC(msg_model, hapi_msg_model)
CODEC(msg_data, hapi_msg_data)
CODEC(msg_index, hapi_msg_index)
CODEC(msg_heartbeat, hapi_msg_heartbeat)
CODEC(msg_clock, hapi_msg_clock)
CODEC(msg_text, hapi_msg_text)

static struct hapi_request request_value;

static int request_dec(const uint8_t *p, size_t n, struct hapi_err *err)
{
    request_value.objects = objects2;
    request_value.samples = samples2;
    return hapi_request_decode(&request_value, p, n, err);
}

static int request_enc(uint8_t *out, size_t size)
{
    return hapi_request_encode(&request_value, out, size);
}

/* Decodes a copy of the exact size, so that a sanitizer sees one byte too far; an accepted message must
 * encode to something no longer that decodes and encodes to the same bytes. */
static int attack(const struct codec *c, const uint8_t *p, size_t n)
{
    struct hapi_err err = {0};
    uint8_t *exact = malloc(n ? n : 1);
    static uint8_t one[HAPI_REQUEST_MAX], two[HAPI_REQUEST_MAX];

    REQUIRE(exact);
    memcpy(exact, p, n);
    int rc = c->decode(exact, n, &err);
    if (rc == 0) {
        int a = c->reencode(one, sizeof one);
        CHECKF(a >= 0 && (size_t)a <= n, "%s: %zu bytes became %d", c->name, n, a);
        CHECK(c->decode(one, (size_t)a, NULL) == 0);
        int b = c->reencode(two, sizeof two);
        CHECK(a == b && memcmp(one, two, (size_t)a) == 0);
    } else {
        CHECKF(rc == HAPI_EPROTO && err.code == rc && err.text[0], "%s: rc %d", c->name, rc);
    }
    free(exact);
    return rc;
}

static void attack_all(const struct codec *c, uint8_t *p, int n)
{
    REQUIRE(n >= 0);
    CHECKF(attack(c, p, (size_t)n) == 0, "%s", c->name);
    for (int cut = 0; cut < n; cut++)
        attack(c, p, (size_t)cut);
    for (int i = 0; i < n; i++) {
        static const uint8_t flips[] = {0x01, 0x02, 0x04, 0x08, 0x10, 0x20, 0x40, 0x80, 0xff};
        for (size_t f = 0; f < sizeof flips; f++) {
            p[i] ^= flips[f];
            attack(c, p, (size_t)n);
            p[i] ^= flips[f];
        }
    }
}

static void control__round_trip__keeps_everything(void)
{
    struct hapi_hello h = sample_hello(), h2;
    int n = hapi_hello_encode(&h, buf, sizeof buf);
    REQUIRE(n > 0 && hapi_hello_decode(&h2, buf, (size_t)n, NULL) == 0);
    CHECK(h2.major_min == 1 && h2.major_max == 1 && h2.minor == 3 && h2.caps == h.caps);
    CHECK(str_is(h2.role, h.role) && str_is(h2.version, h.version) &&
          str_is(h2.numeric_class, h.numeric_class) && h2.heartbeat_ms == 3000);

    struct hapi_msg_error e = {77, HAPI_ENOENT, S("no such dataset")}, e2;
    n = hapi_msg_error_encode(&e, buf, sizeof buf);
    REQUIRE(n > 0 && hapi_msg_error_decode(&e2, buf, (size_t)n, NULL) == 0);
    CHECK(e2.id == 77 && e2.code == HAPI_ENOENT && str_is(e2.text, e.text));

    struct hapi_msg_model m = sample_model(), m2;
    n = hapi_msg_model_encode(&m, buf, sizeof buf);
    REQUIRE(n > 0 && hapi_msg_model_decode(&m2, buf, (size_t)n, NULL) == 0);
    CHECK(m2.id == 5 && m2.size == 1000 && m2.offset == 100 && str_is(m2.bytes, m.bytes) &&
          memcmp(m.hash, m2.hash, sizeof m.hash) == 0);

    struct hapi_msg_data d = sample_data(), d2;
    n = hapi_msg_data_encode(&d, buf, sizeof buf);
    REQUIRE(n > 0 && hapi_msg_data_decode(&d2, buf, (size_t)n, NULL) == 0);
    CHECK(d2.id == 9 && d2.port == 40112 && d2.max_requests == 8 && d2.max_parts == 16 &&
          str_is(d2.transport, d.transport) && str_is(d2.host, d.host) &&
          memcmp(d.nonce, d2.nonce, sizeof d.nonce) == 0);

    struct hapi_msg_index x = {3, S("train"), 12}, x2;
    n = hapi_msg_index_encode(&x, buf, sizeof buf);
    REQUIRE(n > 0 && hapi_msg_index_decode(&x2, buf, (size_t)n, NULL) == 0);
    CHECK(x2.id == 3 && x2.first == 12 && str_is(x2.dataset, x.dataset));

    struct hapi_msg_heartbeat b = {1, 2, 3}, b2;
    n = hapi_msg_heartbeat_encode(&b, buf, sizeof buf);
    REQUIRE(n > 0 && hapi_msg_heartbeat_decode(&b2, buf, (size_t)n, NULL) == 0);
    CHECK(b2.now_ns == 1 && b2.queued == 2 && b2.running == 3);

    struct hapi_msg_clock k = {0, 99}, k2;
    n = hapi_msg_clock_encode(&k, buf, sizeof buf);
    REQUIRE(n > 0 && hapi_msg_clock_decode(&k2, buf, (size_t)n, NULL) == 0);
    CHECK(k2.t0_ns == 0 && k2.t1_ns == 99);

    struct hapi_msg_text t = {4, S("{\"requests\":1}")}, t2;
    n = hapi_msg_text_encode(&t, buf, sizeof buf);
    REQUIRE(n > 0 && hapi_msg_text_decode(&t2, buf, (size_t)n, NULL) == 0);
    CHECK(t2.id == 4 && str_is(t2.text, t.text));
}

static void control__damaged__is_refused_or_whole(void)
{
#define ATTACK(thing, value)                                                                                 \
    do {                                                                                                     \
        struct codec c = {#thing, thing##_dec, thing##_enc};                                                 \
        attack_all(&c, buf, hapi_##thing##_encode(&value, buf, sizeof buf));                                 \
    } while (0)
    struct hapi_hello h = sample_hello();
    struct hapi_msg_error e = {77, HAPI_ENOENT, S("no such dataset")};
    struct hapi_msg_model m = sample_model();
    struct hapi_msg_data d = sample_data();
    struct hapi_msg_index x = {3, S("train"), 12};
    struct hapi_msg_heartbeat b = {1, 2, 3};
    struct hapi_msg_clock k = {98, 99};
    struct hapi_msg_text t = {4, S("text")};
    ATTACK(hello, h);
    ATTACK(msg_error, e);
    ATTACK(msg_model, m);
    ATTACK(msg_data, d);
    ATTACK(msg_index, x);
    ATTACK(msg_heartbeat, b);
    ATTACK(msg_clock, k);
    ATTACK(msg_text, t);
}

static void fields__unknown_twice_missing__by_the_rules(void)
{
    struct hapi_msg_clock k = {5, 6}, k2;
    int n = hapi_msg_clock_encode(&k, buf, sizeof buf);
    static const uint8_t unknown[] = {0xe7, 0x03, 0, 0, 3, 0, 0, 0, 'a', 'b', 'c'};

    memcpy(buf + n, unknown, sizeof unknown);
    CHECK(hapi_msg_clock_decode(&k2, buf, (size_t)n + sizeof unknown, NULL) == 0);
    CHECK(k2.t0_ns == 5 && k2.t1_ns == 6);
    memcpy(buf + n, buf, 16);
    CHECK(hapi_msg_clock_decode(&k2, buf, (size_t)n + 16, NULL) == HAPI_EPROTO);
    CHECK(hapi_msg_clock_decode(&k2, buf + 16, 16, NULL) == HAPI_EPROTO);
    CHECK(hapi_msg_clock_decode(&k2, NULL, 0, NULL) == HAPI_EPROTO);
    for (int size = 0; size < n; size++)
        CHECK(hapi_msg_clock_encode(&k, again, (size_t)size) == HAPI_ETOOBIG);
}

static void encode__what_a_peer_would_refuse__is_einval(void)
{
    struct hapi_hello h = sample_hello();
    h.major_min = 3;
    CHECK(hapi_hello_encode(&h, buf, sizeof buf) == HAPI_EINVAL);
    struct hapi_msg_error e = {0, 0, S("x")};
    CHECK(hapi_msg_error_encode(&e, buf, sizeof buf) == HAPI_EINVAL);
    struct hapi_msg_text t = {1, S("a\0b")};
    CHECK(hapi_msg_text_encode(&t, buf, sizeof buf) == HAPI_EINVAL);
    struct hapi_msg_index x = {3, S("../etc"), 0};
    CHECK(hapi_msg_index_encode(&x, buf, sizeof buf) == HAPI_EINVAL);
    struct hapi_msg_model m = sample_model();
    m.offset = 995;
    CHECK(hapi_msg_model_encode(&m, buf, sizeof buf) == HAPI_EINVAL);
}

static void list__datasets__walk_as_written(void)
{
    struct hapi_list l;
    struct hapi_list_cursor c;
    struct hapi_msg_dataset d = {0}, got;
    struct hapi_str blob, name;
    uint8_t classes[256];
    int n = hapi_classes_append(classes, sizeof classes, 0, "cat");
    n = hapi_classes_append(classes, sizeof classes, (size_t)n, "dog");
    REQUIRE(n == 10);
    CHECK(hapi_classes_append(classes, 12, (size_t)n, "x") == HAPI_ETOOBIG);
    CHECK(hapi_classes_append(classes, sizeof classes, (size_t)n, "") == HAPI_EINVAL);
    d = (struct hapi_msg_dataset){S("train"), 8, 2000, 1 << 20, 4000, 1, 2, {(char *)classes, (uint32_t)n}};
    REQUIRE(hapi_list_begin(&l, buf, sizeof buf, 42) == 0);
    REQUIRE(hapi_list_dataset(&l, &d) == 0);
    d.name = S("test");
    d.n_classes = 3;
    CHECK(hapi_list_dataset(&l, &d) == HAPI_EINVAL);
    d.n_classes = 2;
    REQUIRE(hapi_list_dataset(&l, &d) == 0);
    REQUIRE(hapi_list_open(&c, l.buf, l.used, NULL) == 0 && c.id == 42 && c.next == 0);
    REQUIRE(hapi_list_next_dataset(&c, &got, NULL) == 1);
    CHECK(str_is(got.name, S("train")) && got.objects == 8 && got.samples == 2000 && got.bytes == 1 << 20 &&
          got.max_sample_bytes == 4000 && got.problems == 1 && got.n_classes == 2);
    blob = got.classes_blob;
    CHECK(hapi_classes_next(&blob, &name) == 1 && str_is(name, S("cat")));
    CHECK(hapi_classes_next(&blob, &name) == 1 && str_is(name, S("dog")));
    CHECK(hapi_classes_next(&blob, &name) == 0 && blob.n == 0);
    CHECK(hapi_list_next_dataset(&c, &got, NULL) == 1 && str_is(got.name, S("test")));
    CHECK(hapi_list_next_dataset(&c, &got, NULL) == 0);
}

static void list__full__still_has_room_for_more(void)
{
    static uint8_t small[512];
    struct hapi_list l;
    struct hapi_list_cursor c;
    uint8_t sizes[8] = {1, 0, 0, 0, 2};
    struct hapi_msg_object o = {S("o"), S("v"), {1}, 100, 2, {(char *)sizes, 8}}, got;
    uint64_t put = 0, seen = 0;
    int rc;

    REQUIRE(hapi_list_begin(&l, small, sizeof small, 1) == 0);
    while ((rc = hapi_list_object(&l, &o)) == 0)
        put++;
    CHECK(rc == HAPI_ETOOBIG && put > 2);
    REQUIRE(hapi_list_more(&l, put) == 0 && l.used <= sizeof small);
    REQUIRE(hapi_list_open(&c, small, l.used, NULL) == 0);
    CHECK(c.next == put);
    while ((rc = hapi_list_next_object(&c, &got, NULL)) == 1) {
        CHECK(got.samples == 2 && got.bytes == 100 && got.digest[0] == 1 && str_is(got.version, S("v")) &&
              got.sample_bytes.n == 8 && got.sample_bytes.s[4] == 2);
        seen++;
    }
    CHECK(rc == 0 && seen == put);
    o.samples = 3;
    CHECK(hapi_list_object(&l, &o) == HAPI_EINVAL);
}

static void list__damaged__never_beyond_its_end(void)
{
    struct hapi_list l;
    uint8_t sizes[8] = {0};
    struct hapi_msg_object o = {S("o"), S("v"), {1}, 100, 2, {(char *)sizes, 8}}, got;
    int accepted = 0;

    REQUIRE(hapi_list_begin(&l, buf, sizeof buf, 1) == 0);
    REQUIRE(hapi_list_object(&l, &o) == 0 && hapi_list_object(&l, &o) == 0 && hapi_list_more(&l, 2) == 0);
    for (size_t i = 0; i < l.used * 9; i++) {
        struct hapi_list_cursor c;
        size_t n = i % 9 == 8 ? i / 9 : l.used;
        uint8_t *exact = malloc(n ? n : 1);
        REQUIRE(exact);
        memcpy(exact, buf, n);
        if (i % 9 < 8)
            exact[i / 9] ^= (uint8_t)(1 << i % 9);
        if (hapi_list_open(&c, exact, n, NULL) == 0)
            while (hapi_list_next_object(&c, &got, NULL) == 1) {
                CHECK((uint8_t *)got.name.s + got.name.n <= exact + n &&
                      got.sample_bytes.n == 4 * got.samples);
                accepted++;
            }
        free(exact);
    }
    CHECK(accepted > 0);
}

static void request__round_trip__keeps_everything(void)
{
    struct hapi_request r = sample_request(objects, samples), *g = &request_value;
    int n = hapi_request_encode(&r, buf, sizeof buf);

    REQUIRE(n > 0);
    REQUIRE(request_dec(buf, (size_t)n, NULL) == 0);
    CHECK(g->index == r.index && g->trace_id == r.trace_id && str_is(g->dataset, r.dataset) && g->n_cut == 2);
    CHECK(str_is(g->cut[0], r.cut[0]) && str_is(g->cut[1], r.cut[1]) && str_is(g->transform, r.transform));
    CHECK(g->augment_seed == 3 && g->epoch == 4 && g->compute_dtype == HAPI_F32 && g->wire_dtype == HAPI_F16);
    CHECK(g->layout == HAPI_LAYOUT_NHWC && g->micro_batch == 2 && g->max_parts == 4 && g->flags == r.flags);
    CHECK(g->deadline_ms == 2000 && memcmp(g->windows, r.windows, 2 * sizeof *r.windows) == 0);
    CHECK(g->record_key == r.record_key && g->record_base == r.record_base &&
          g->record_bytes == r.record_bytes && memcmp(g->model_hash, r.model_hash, HAPI_HASH_SIZE) == 0);
    REQUIRE(g->n_objects == 3 && g->n_samples == 6);
    for (int i = 0; i < 3; i++) {
        CHECK(str_is(g->objects[i].name, objects[i].name));
        CHECK(str_is(g->objects[i].version, objects[i].version));
        CHECK(!g->objects[i].digest == !objects[i].digest);
    }
    CHECK(memcmp(g->objects[0].digest, objects[0].digest, HAPI_HASH_SIZE) == 0);
    for (int i = 0; i < 6; i++)
        CHECK(g->samples[i].object == samples[i].object && g->samples[i].index == samples[i].index);
}

static void request__damaged__is_refused_or_whole(void)
{
    struct codec c = {"request", request_dec, request_enc};
    struct hapi_request r = sample_request(objects, samples);

    attack_all(&c, buf, hapi_request_encode(&r, buf, sizeof buf));
    r = sample_request_raw(objects, samples);
    attack_all(&c, buf, hapi_request_encode(&r, buf, sizeof buf));
}

/* One change each that makes a request unacceptable; `raw` starts from raw objects. */
#define REFUSED(raw, change)                                                                                 \
    do {                                                                                                     \
        struct hapi_request r =                                                                              \
            raw ? sample_request_raw(objects, samples) : sample_request(objects, samples);                   \
        CHECK(hapi_request_encode(&r, buf, sizeof buf) > 0);                                                 \
        change;                                                                                              \
        CHECKF(hapi_request_encode(&r, buf, sizeof buf) == HAPI_EINVAL, "after %s", #change);                \
    } while (0)

static void request__out_of_range__is_refused(void)
{
    REFUSED(0, r.n_samples = 0);
    REFUSED(0, r.n_samples = HAPI_REQUEST_SAMPLES + 1);
    REFUSED(0, r.n_objects = 0);
    REFUSED(0, samples[5].object = 3);
    REFUSED(0, objects[1].name = S("/abs"));
    REFUSED(0, objects[1].name = S("a/../b"));
    REFUSED(0, objects[1].name = S("a//b"));
    REFUSED(0, objects[1].name = S("a\0b"));
    REFUSED(0, objects[1].name = S(""));
    REFUSED(0, r.dataset = S(".."));
    REFUSED(0, r.cut[1] = r.cut[0]);
    REFUSED(0, r.n_cut = HAPI_CUT_TENSORS + 1);
    REFUSED(0, r.n_windows = 1);
    REFUSED(0, r.compute_dtype = HAPI_I64);
    REFUSED(0, r.wire_dtype = (enum hapi_dtype)99);
    REFUSED(0, r.layout = (enum hapi_layout)2);
    REFUSED(0, r.flags = 1u << 31);
    REFUSED(0, r.micro_batch = 65536);
    REFUSED(0, r.max_parts = 0);
    REFUSED(0, r.max_parts = 514);
    REFUSED(0, r.transform.n = 0);
    REFUSED(0, memset(r.model_hash, 0, HAPI_HASH_SIZE));
    REFUSED(0, r.windows[0].capacity = 5999);
    REFUSED(0, r.windows[0].stride = UINT64_MAX / 2);
    REFUSED(0, r.windows[0].base = UINT64_MAX - 100);
    REFUSED(0, r.windows[1].stride = 0);
    REFUSED(0, r.record_bytes -= 4 * 8);
    REFUSED(0, r.record_base = UINT64_MAX - 7);
    REFUSED(0, r.record_base += 4);
    REFUSED(0, r.micro_batch = 0);
    REFUSED(1, r.transform = S("{}"));
    REFUSED(1, r.windows[0].stride = 8);
    REFUSED(1, r.model_hash[31] = 1);
    REFUSED(1, r.windows[0].capacity = 0);
}

static void request__largest__fits_or_says_so(void)
{
    static char names[HAPI_REQUEST_SAMPLES][HAPI_NAME_MAX];
    struct hapi_request r = sample_request(objects, samples);

    r.n_objects = r.n_samples = HAPI_REQUEST_SAMPLES;
    r.max_parts = HAPI_REQUEST_SAMPLES + 1;
    r.record_bytes = r.max_parts * hapi_record_size(2);
    r.windows[0].capacity = r.windows[1].capacity = HAPI_REQUEST_SAMPLES * 1000;
    for (uint16_t i = 0; i < HAPI_REQUEST_SAMPLES; i++) {
        int n = snprintf(names[i], sizeof names[i], "class-%05u/image-%08u.jpg", i, i);
        objects[i] = (struct hapi_req_object){{names[i], (uint32_t)n}, S("0123456789abcdef"), NULL};
        samples[i] = (struct hapi_req_sample){i, 0};
    }
    int n = hapi_request_encode(&r, buf, sizeof buf);
    REQUIRE(n > 0 && request_dec(buf, (size_t)n, NULL) == 0);
    CHECK(request_value.n_objects == HAPI_REQUEST_SAMPLES && request_value.samples[511].object == 511);
    for (uint16_t i = 0; i < HAPI_REQUEST_SAMPLES; i++) {
        memset(names[i], 'x', sizeof names[i]);
        objects[i].name.n = HAPI_NAME_MAX;
    }
    CHECK(hapi_request_encode(&r, buf, sizeof buf) == HAPI_ETOOBIG);
}

static void record__good_and_each_lie__is_told_apart(void)
{
    static _Alignas(8) uint8_t memory[512];
    struct hapi_request req = sample_request(objects, samples);
    struct hapi_record *r = sample_record(memory, &req);
    struct hapi_err err = {0};

    CHECKF(hapi_record_check(r, r->size, &req, 10, &err) == 0, "%s", err.text);
    CHECK(hapi_record_check(r, r->size - 1u, &req, 10, NULL) == HAPI_EPROTO);
    CHECK(hapi_record_check(r, 0, &req, 10, NULL) == HAPI_EPROTO);
    CHECK(hapi_record_check(r, r->size, &req, 9, NULL) == HAPI_EPROTO);
#define LIE(change)                                                                                          \
    do {                                                                                                     \
        r = sample_record(memory, &req);                                                                     \
        change;                                                                                              \
        CHECKF(hapi_record_check(r, sizeof memory, &req, 10, &err) == HAPI_EPROTO, "after %s", #change);     \
    } while (0)
    LIE(r->magic++);
    LIE(r->size += 64);
    LIE(r->request++);
    LIE(r->part = 4);
    LIE(r->major = 2);
    LIE(r->flags = 4);
    LIE(r->first = 5);
    LIE(r->first = 3);
    LIE(r->count = 7);
    LIE(r->count = 0; r->size = (uint32_t)hapi_record_size(0));
    LIE(r->status = 1);
    LIE(r->label_encoding = 0);
    LIE(r->n_windows = 1);
    LIE(r->generation ^= 1);
    LIE(r->samples[0].status = 5);
    LIE(r->samples[0].label = 10);
    LIE(r->samples[0].offset = 0);
    LIE(r->samples[0].offset = UINT64_MAX);
    LIE(r->samples[0].bytes = 1001);
    LIE(r->samples[0].bytes = 0);
    LIE(r->samples[1].reserved = 1);
    r = sample_record(memory, &req);
    r->status = HAPI_EBUSY;
    r->count = 0;
    r->size = (uint32_t)hapi_record_size(0);
    r->flags = HAPI_RECORD_TERMINAL;
    CHECK(hapi_record_check(r, sizeof memory, &req, 10, &err) == 0);
}

int main(void)
{
    CASE(control__round_trip__keeps_everything);
    CASE(control__damaged__is_refused_or_whole);
    CASE(fields__unknown_twice_missing__by_the_rules);
    CASE(encode__what_a_peer_would_refuse__is_einval);
    CASE(list__datasets__walk_as_written);
    CASE(list__full__still_has_room_for_more);
    CASE(list__damaged__never_beyond_its_end);
    CASE(request__round_trip__keeps_everything);
    CASE(request__damaged__is_refused_or_whole);
    CASE(request__out_of_range__is_refused);
    CASE(request__largest__fits_or_says_so);
    CASE(record__good_and_each_lie__is_told_apart);
    return check_done();
}
