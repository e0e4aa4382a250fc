/* Control sessions: bursts of spoilt messages, each burst closed by a question whose answer shows that the
 * whole burst was read, or by a message that ends the session. */
#include <string.h>

#include "hostile_client.h"

enum { BURST_MAX = 48, FLOOD_BYTES = 1 << 20 };
#define FLOOD_NS (2 * HAPI_NS_PER_S)
#define PAUSE_NS (20 * HAPI_NS_PER_MS) /* after a refusal */

enum state { TALK_OFF, TALK_HELLO, TALK_BURST, TALK_FLOOD };

struct talker {
    struct raw raw; /* first */
    struct war *w;
    struct rng rng;
    enum state state;
    int kind;
    uint32_t n, n_spoilt; /* of the burst */
    bool fatal;           /* it ends the session */
    bool told;            /* ERROR of id 0 came */
    uint64_t fence;
    int64_t since_ns, not_before_ns;
    struct body body;
};

/* Any body will do for these: the node ignores what it cannot read, or answers with an error. */
static const uint16_t harmless[] = {
    HAPI_MSG_LS,          HAPI_MSG_LS,         HAPI_MSG_LS,          HAPI_MSG_LS_REPLY,
    HAPI_MSG_INDEX_REPLY, HAPI_MSG_MODEL_WANT, HAPI_MSG_MODEL_READY, HAPI_MSG_DATA_READY,
    HAPI_MSG_HEARTBEAT,   HAPI_MSG_ERROR,      HAPI_MSG_STAT,        HAPI_MSG_STAT_REPLY,
    HAPI_MSG_CLOCK_REPLY, HAPI_MSG_CREDENTIAL, HAPI_MSG_LOCATE,      HAPI_MSG_LOCATE_REPLY};
static const uint16_t judged[] = {HAPI_MSG_INDEX, HAPI_MSG_MODEL_OFFER, HAPI_MSG_DATA_OPEN, HAPI_MSG_CLOCK};
static const uint16_t deadly[] = {HAPI_MSG_HELLO, HAPI_MSG_BYE, HAPI_MSG_MODEL_CHUNK};

static unsigned type_any(struct rng *r)
{
    uint32_t x = rng_below(r, 100);

    if (x < 5)
        return rng_below(r, 65536); /* most are no message at all */
    if (x < 92)
        return harmless[rng_below(r, sizeof harmless / sizeof *harmless)];
    if (x < 99)
        return judged[rng_below(r, sizeof judged / sizeof *judged)];
    return deadly[rng_below(r, sizeof deadly / sizeof *deadly)];
}

static void say_spoilt(struct talker *t)
{
    unsigned type = type_any(&t->rng);

    message_make(&t->body, type, &t->w->known, &t->rng);
    if (!rng_one_in(&t->rng, 10)) {
        message_spoil(&t->body, &t->rng);
        t->n_spoilt++;
    }
    raw_frame(&t->raw, type, t->body.b, t->body.n);
    t->n++;
    t->fatal = message_is_fatal(type, t->body.b, t->body.n);
}

static void say_garbage(struct talker *t)
{
    uint8_t b[512];

    raw_put(&t->raw, b, frame_garbage(b, sizeof b, &t->rng));
    t->n++;
    t->n_spoilt++;
    t->fatal = true;
}

static void say_model(struct talker *t, unsigned type, struct hapi_msg_model *m)
{
    int n = hapi_msg_model_encode(m, t->body.b, sizeof t->body.b);

    REQUIRE(n >= 0);
    raw_frame(&t->raw, type, t->body.b, (size_t)n);
    t->n++;
}

/* A model of random bytes, whole or in a wrong order. */
static void say_upload(struct talker *t)
{
    static uint8_t bytes[4096];
    struct hapi_msg_model m = {.id = 1 + rng_below(&t->rng, 1000), .size = 64 + rng_below(&t->rng, 4000)};
    uint32_t step = 600 + rng_below(&t->rng, 2000), wrong = rng_below(&t->rng, 6);

    rng_bytes(&t->rng, bytes, sizeof bytes);
    rng_bytes(&t->rng, m.hash, sizeof m.hash);
    say_model(t, HAPI_MSG_MODEL_OFFER, &m);
    for (m.offset = 0; m.offset < m.size && !t->fatal; m.offset += step) {
        uint64_t left = m.size - m.offset;
        struct hapi_msg_model c = m;
        c.size = 0;
        c.bytes = (struct hapi_str){(const char *)bytes, (uint32_t)(left < step ? left : step)};
        if (wrong == 0 && m.offset) { /* what was sent already, what does not come yet, another model's */
            c.offset = rng_one_in(&t->rng, 2) ? 0 : m.offset + 1;
            t->fatal = true;
        } else if (wrong == 1 && m.offset) {
            c.hash[0] ^= 1;
            t->fatal = true;
        } else if (wrong == 2 && left < step) {
            c.bytes.n = (uint32_t)left + 1; /* more than there are */
            t->fatal = true;
        } else if (wrong == 3) {
            say_model(t, HAPI_MSG_MODEL_OFFER, &m); /* again, and an empty chunk */
            c.bytes.n = 0;
            say_model(t, HAPI_MSG_MODEL_CHUNK, &c);
            c.bytes.n = (uint32_t)(left < step ? left : step);
        }
        t->n_spoilt += t->fatal;
        say_model(t, HAPI_MSG_MODEL_CHUNK, &c);
    }
}

static void fence(struct talker *t)
{
    struct hapi_msg_clock m = {.t0_ns = ++t->fence};
    int n = hapi_msg_clock_encode(&m, t->body.b, sizeof t->body.b);

    REQUIRE(n > 0);
    raw_frame(&t->raw, HAPI_MSG_CLOCK, t->body.b, (size_t)n);
}

static void burst(struct talker *t)
{
    uint32_t n = 1 + rng_below(&t->rng, BURST_MAX);

    t->state = TALK_BURST;
    t->n = t->n_spoilt = 0;
    t->fatal = false;
    t->since_ns = hapi_clock_ns();
    /* An upload first thing in a session only: what another one left behind decides what comes of it. */
    if (t->fence == 0 && rng_one_in(&t->rng, 8))
        say_upload(t);
    for (uint32_t i = 0; i < n && !t->fatal; i++)
        if (rng_one_in(&t->rng, 400))
            say_garbage(t);
        else
            say_spoilt(t);
    if (!t->fatal)
        fence(t);
}

/* As much as the node takes, and no answer is ever read. */
static void flood(struct talker *t)
{
    while (raw_queued(&t->raw) < FLOOD_BYTES) {
        message_make(&t->body, HAPI_MSG_LS, &t->w->known, &t->rng);
        raw_frame(&t->raw, HAPI_MSG_LS, t->body.b, t->body.n);
        t->n++;
    }
}

static void burst_counted(struct talker *t)
{
    t->w->tally.control += t->n;
    t->w->tally.spoilt += t->n_spoilt;
    t->n = t->n_spoilt = 0;
}

static void off(struct talker *t)
{
    t->state = TALK_OFF;
    t->not_before_ns = 0;
}

/* ---- what the node says ---- */

static void on_ready(struct raw *r)
{
    struct talker *t = (struct talker *)r;
    uint8_t hello[256];

    raw_frame(r, HAPI_MSG_HELLO, hello, hello_make(hello, sizeof hello, "client"));
    t->state = TALK_HELLO;
}

static void on_frame(struct raw *r, unsigned type, const uint8_t *body, size_t n)
{
    struct talker *t = (struct talker *)r;
    struct hapi_msg_clock m;
    struct hapi_msg_error e;

    if (type == HAPI_MSG_ERROR && hapi_msg_error_decode(&e, body, n, NULL) == 0 && e.id == 0)
        t->told = true;
    if (t->state == TALK_HELLO && type == HAPI_MSG_HELLO) {
        t->w->tally.sessions++;
        t->since_ns = hapi_clock_ns();
        if (t->kind == 0) {
            burst(t);
            return;
        }
        t->state = TALK_FLOOD;
        raw_deaf(r, true);
        flood(t);
    } else if (t->state == TALK_BURST && type == HAPI_MSG_CLOCK_REPLY &&
               hapi_msg_clock_decode(&m, body, n, NULL) == 0 && m.t0_ns == t->fence && !t->fatal) {
        burst_counted(t);
        if (rng_one_in(&t->rng, 40)) {
            raw_close(r, rng_one_in(&t->rng, 2));
            off(t);
        } else {
            burst(t);
        }
    }
}

static void on_end(struct raw *r, const struct hapi_err *why)
{
    struct talker *t = (struct talker *)r;

    (void)why;
    if (t->state == TALK_BURST && (t->fatal || t->told)) {
        burst_counted(t);
        t->w->tally.ended++;
    } else if (t->state == TALK_BURST) {
        t->w->tally.lost += t->n;
    } else if (t->state != TALK_OFF) {
        t->w->tally.refused++;
    }
    bool pause = t->state != TALK_BURST;
    off(t);
    if (pause)
        t->not_before_ns = hapi_clock_ns() + PAUSE_NS;
}

static const struct raw_handler handler = {on_ready, on_frame, on_end};

/* ---- its life ---- */

struct talker *talker_new(struct war *w, uint64_t seed, int kind)
{
    struct talker *t = calloc(1, sizeof *t);

    REQUIRE(t);
    raw_init(&t->raw, w->loop, &handler);
    t->w = w;
    t->rng.s = seed;
    t->kind = kind;
    return t;
}

void talker_free(struct talker *t)
{
    raw_fini(&t->raw);
    free(t);
}

void talker_step(struct talker *t)
{
    int64_t now = hapi_clock_ns();

    if (t->state == TALK_OFF && !t->raw.open && now >= t->not_before_ns) {
        t->told = t->fatal = false;
        t->fence = 0;
        t->n = t->n_spoilt = 0;
        t->since_ns = now;
        if (war_connect(t->w, &t->raw))
            t->not_before_ns = now + PAUSE_NS;
        else
            t->state = TALK_HELLO;
    } else if (t->state == TALK_FLOOD) {
        flood(t);
        if (now - t->since_ns < FLOOD_NS)
            return;
        t->w->tally.deaf += t->n;
        raw_close(&t->raw, true);
        off(t);
    } else if (t->state != TALK_OFF && now - t->since_ns > t->w->patience_ns) {
        t->w->tally.stuck++;
        raw_close(&t->raw, true);
        off(t);
    }
}
