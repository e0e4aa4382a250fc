#include <string.h>

#include "hostile.h"
#include "wire_fields.h"

/* ---- numbers: splitmix64 ---- */

uint64_t rng_next(struct rng *r)
{
    uint64_t z = r->s += UINT64_C(0x9e3779b97f4a7c15);

    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return z ^ z >> 31;
}

uint32_t rng_below(struct rng *r, uint32_t n)
{
    return (uint32_t)(rng_next(r) >> 32) % n;
}

void rng_bytes(struct rng *r, void *p, size_t n)
{
    uint8_t *b = p;

    for (; n >= 8; n -= 8, b += 8) {
        uint64_t v = rng_next(r);
        memcpy(b, &v, 8);
    }
    for (; n; n--)
        *b++ = (uint8_t)rng_next(r);
}

/* A number that somebody may have forgotten to check. */
static uint64_t edge(struct rng *r)
{
    static const uint64_t edges[] = {0,          1,          2,          7,
                                     255,        65535,      65536,      1 << 20,
                                     0x7fffffff, 0x80000000, 0xffffffff, UINT64_C(1) << 32,
                                     INT64_MAX,  INT64_MIN,  UINT64_MAX, UINT64_MAX - 63};

    return rng_one_in(r, 4) ? rng_next(r) : edges[rng_below(r, sizeof edges / sizeof *edges)];
}

/* ---- well-formed messages ---- */

size_t hello_make(uint8_t *out, size_t size, const char *role)
{
    struct hapi_hello h = {.major_min = HAPI_PROTO_MAJOR,
                           .major_max = HAPI_PROTO_MAJOR,
                           .minor = HAPI_PROTO_MINOR,
                           .caps =
                               HAPI_CAP_TRANSPORT_OFI | HAPI_CAP_CHECKSUM | HAPI_CAP_UPLOAD | HAPI_CAP_INT8,
                           .role = {role, (uint32_t)strlen(role)},
                           .version = S("hostile")};
    int n = hapi_hello_encode(&h, out, size);

    REQUIRE(n > 0);
    return (size_t)n;
}

static int model_make(struct body *m, bool chunk, struct rng *r)
{
    static const uint8_t bytes[512] = {8, 7, 'x'};
    struct hapi_msg_model x = {.id = rng_next(r), .size = 1 + rng_below(r, 4096)};

    rng_bytes(r, x.hash, sizeof x.hash);
    if (chunk) {
        x.size = 0;
        x.offset = rng_one_in(r, 2) ? 0 : rng_below(r, 4096);
        x.bytes = (struct hapi_str){(const char *)bytes, rng_below(r, sizeof bytes)};
    }
    return hapi_msg_model_encode(&x, m->b, sizeof m->b);
}

static int data_make(struct body *m, bool ready, struct rng *r)
{
    struct hapi_msg_data d = {.id = rng_next(r),
                              .transport = rng_one_in(r, 4) ? S("verbs") : S("ofi"),
                              .max_requests = rng_one_in(r, 2) ? 8 : rng_below(r, 65537)};

    if (ready) {
        d.host = S("127.0.0.1");
        d.port = (uint16_t)rng_next(r);
        d.max_parts = 512;
        rng_bytes(r, d.nonce, sizeof d.nonce);
    }
    return hapi_msg_data_encode(&d, m->b, sizeof m->b);
}

static int list_make(struct body *m, bool objects, struct rng *r)
{
    uint8_t classes[64], sizes[8] = {10, 0, 0, 0, 20, 0, 0, 0};
    int n = hapi_classes_append(classes, sizeof classes, 0, "cat");
    struct hapi_msg_dataset d = {S("train"), 8, 2000, 1 << 20, 4000, 1, 1, {(char *)classes, (uint32_t)n}};
    struct hapi_msg_object o = {S("shard-0.tar"), S("v1"), {1}, 100, 2, {(char *)sizes, 8}};
    struct hapi_list l;

    REQUIRE(hapi_list_begin(&l, m->b, sizeof m->b, rng_next(r)) == 0);
    for (uint32_t i = 1 + rng_below(r, 3); i; i--)
        REQUIRE((objects ? hapi_list_object(&l, &o) : hapi_list_dataset(&l, &d)) == 0);
    if (rng_one_in(r, 2))
        hapi_list_more(&l, 1 + rng_below(r, 9));
    return (int)l.used;
}

static int small_make(struct body *m, unsigned type, const struct known *k, struct rng *r)
{
    struct hapi_msg_error e = {rng_one_in(r, 2) ? 0 : rng_next(r), -1 - (int)rng_below(r, 30), S("no")};
    struct hapi_msg_index x = {rng_next(r), rng_one_in(r, 3) ? k->dataset : S("nonsense"), 0};
    struct hapi_msg_heartbeat b = {edge(r), edge(r), edge(r)};
    struct hapi_msg_clock c = {edge(r), edge(r)};
    struct hapi_msg_text t = {rng_next(r), S("text")};

    x.first = rng_one_in(r, 2) ? 0 : edge(r);
    switch (type) {
    case HAPI_MSG_ERROR:
        return hapi_msg_error_encode(&e, m->b, sizeof m->b);
    case HAPI_MSG_INDEX:
        return hapi_msg_index_encode(&x, m->b, sizeof m->b);
    case HAPI_MSG_HEARTBEAT:
        return hapi_msg_heartbeat_encode(&b, m->b, sizeof m->b);
    case HAPI_MSG_CLOCK:
    case HAPI_MSG_CLOCK_REPLY:
        return hapi_msg_clock_encode(&c, m->b, sizeof m->b);
    default:
        return hapi_msg_text_encode(&t, m->b, sizeof m->b);
    }
}

void message_make(struct body *m, unsigned type, const struct known *k, struct rng *r)
{
    int n;

    switch (type) {
    case HAPI_MSG_HELLO:
        n = (int)hello_make(m->b, sizeof m->b, "client");
        break;
    case HAPI_MSG_LS_REPLY:
    case HAPI_MSG_INDEX_REPLY:
        n = list_make(m, type == HAPI_MSG_INDEX_REPLY, r);
        break;
    case HAPI_MSG_MODEL_OFFER:
    case HAPI_MSG_MODEL_WANT:
    case HAPI_MSG_MODEL_CHUNK:
    case HAPI_MSG_MODEL_READY:
        n = model_make(m, type == HAPI_MSG_MODEL_CHUNK, r);
        break;
    case HAPI_MSG_DATA_OPEN:
    case HAPI_MSG_DATA_READY:
        n = data_make(m, type == HAPI_MSG_DATA_READY, r);
        break;
    default:
        n = small_make(m, type, k, r);
    }
    REQUIRE(n >= 0);
    m->n = (size_t)n;
}

/* ---- spoiling ---- */

/* Where a field begins, chosen at random among those that the body has; false: it has none. */
static bool field_any(const struct body *m, size_t *at, size_t *size, struct rng *r)
{
    size_t found = 0;

    for (size_t p = 0; p + HAPI_FIELD_HEADER <= m->n;) {
        size_t n = HAPI_FIELD_HEADER + (size_t)hapi_get32(m->b + p + 4);
        if (n > m->n - p)
            break;
        if (rng_one_in(r, (uint32_t)++found)) {
            *at = p;
            *size = n;
        }
        p += n;
    }
    return found != 0;
}

static void insert(struct body *m, size_t at, const void *p, size_t n)
{
    if (n > sizeof m->b - m->n)
        return;
    memmove(m->b + at + n, m->b + at, m->n - at);
    memcpy(m->b + at, p, n);
    m->n += n;
}

static void cut_out(struct body *m, size_t at, size_t n)
{
    memmove(m->b + at, m->b + at + n, m->n - at - n);
    m->n -= n;
}

/* To the end or the beginning of the message: order must not matter, and a second one must. */
static void field_move(struct body *m, size_t at, size_t n, bool twice)
{
    uint8_t copy[4096];

    if (n > sizeof copy)
        return;
    memcpy(copy, m->b + at, n);
    if (!twice)
        cut_out(m, at, n);
    insert(m, at % 2 ? 0 : m->n, copy, n);
}

static void field_spoil(struct body *m, struct rng *r)
{
    size_t at, n;

    if (!field_any(m, &at, &n, r))
        return;
    uint8_t *v = m->b + at + HAPI_FIELD_HEADER;
    size_t len = n - HAPI_FIELD_HEADER;
    switch (rng_below(r, 7)) {
    case 0:
        cut_out(m, at, n);
        break;
    case 1:
        field_move(m, at, n, true);
        break;
    case 2:
        field_move(m, at, n, false);
        break;
    case 3: /* a length that is not the value's */
        hapi_put32(m->b + at + 4, rng_one_in(r, 2) ? (uint32_t)edge(r) : (uint32_t)len + rng_below(r, 9) - 4);
        break;
    case 4: /* another tag, reserved bits */
        hapi_put16(m->b + at + (rng_one_in(r, 4) ? 2 : 0), (uint16_t)rng_below(r, 80));
        break;
    case 5: /* a number that somebody forgot to check */
        for (size_t i = 0; i + 4 <= len && i < 32; i += 8) {
            uint64_t e = edge(r);
            memcpy(v + i, &e, len - i < 8 ? len - i : 8);
        }
        break;
    default:
        rng_bytes(r, v, len < 64 ? len : 64);
    }
}

void message_spoil(struct body *m, struct rng *r)
{
    uint8_t junk[64];

    do {
        switch (rng_below(r, 8)) {
        case 0: /* bits */
            for (uint32_t i = 1 + rng_below(r, 8); m->n && i; i--)
                m->b[rng_below(r, (uint32_t)m->n)] ^= (uint8_t)(1 << rng_below(r, 8));
            break;
        case 1:
            m->n = m->n ? rng_below(r, (uint32_t)m->n) : 0;
            break;
        case 2:
            rng_bytes(r, junk, sizeof junk);
            insert(m, rng_below(r, (uint32_t)m->n + 1), junk, 1 + rng_below(r, sizeof junk));
            break;
        case 3:
            if (rng_one_in(r, 8)) {
                m->n = rng_below(r, 512);
                rng_bytes(r, m->b, m->n);
            }
            break;
        default:
            field_spoil(m, r);
        }
    } while (rng_one_in(r, 3));
}

bool message_is_fatal(unsigned type, const uint8_t *body, size_t n)
{
    struct hapi_msg_index x;
    struct hapi_msg_model m;
    struct hapi_msg_data d;
    struct hapi_msg_clock c;

    switch (type) {
    case HAPI_MSG_HELLO:
    case HAPI_MSG_BYE:
    case HAPI_MSG_MODEL_CHUNK: /* of an upload that is not under way */
        return true;
    case HAPI_MSG_INDEX:
        return hapi_msg_index_decode(&x, body, n, NULL) != 0;
    case HAPI_MSG_MODEL_OFFER:
        return hapi_msg_model_decode(&m, body, n, NULL) != 0;
    case HAPI_MSG_DATA_OPEN:
        return hapi_msg_data_decode(&d, body, n, NULL) != 0;
    case HAPI_MSG_CLOCK:
        return hapi_msg_clock_decode(&c, body, n, NULL) != 0;
    default:
        return false;
    }
}

size_t frame_garbage(uint8_t *out, size_t size, struct rng *r)
{
    size_t n = FRAME_HEAD + rng_below(r, 200);

    REQUIRE(n <= size);
    rng_bytes(r, out, n);
    switch (rng_below(r, 4)) {
    case 0: /* over the limit */
        hapi_put32(out, (uint32_t)HAPI_FRAME_MAX + 5 + rng_below(r, 1 << 30));
        break;
    case 1: /* shorter than its own header */
        hapi_put32(out, rng_below(r, 4));
        break;
    case 2: /* flags that do not exist */
        hapi_put32(out, 4);
        hapi_put16(out + 6, (uint16_t)(1 + rng_below(r, 65535)));
        break;
    default: /* a greeting in another protocol */
        memcpy(out, "GET / HTTP/1.1\r\n", 16 < n ? 16 : n);
    }
    return n;
}
