/* Data sessions: spoilt requests over a data connection that the node opened for us, each burst closed by a
 * good request whose terminal record shows that the others were read. */
#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "hostile_client.h"

enum {
    REQUESTS = 8,
    FENCE = 0xfff0, /* index of the good request */
    IMMEDIATES = 1000,
    MESSAGE_BYTES = 8 << 10,
    WINDOW_AT = (REQUESTS + 4) * MESSAGE_BYTES,
    WINDOW_BYTES = 1 << 20,
    RECORDS_AT = WINDOW_AT + WINDOW_BYTES,
    RECORDS_BYTES = 256 << 10,
    FENCE_AT = RECORDS_AT + RECORDS_BYTES,
    FENCE_BYTES = 4096,
    MEMORY = FENCE_AT + FENCE_BYTES,
};
#define PAUSE_NS (20 * HAPI_NS_PER_MS)

enum state { FETCH_OFF, FETCH_HELLO, FETCH_OPENING, FETCH_CONNECTING, FETCH_BURST, FETCH_CLOSING };

struct fetcher {
    struct raw raw; /* first */
    struct war *w;
    struct rng rng;
    enum state state;
    struct hapi_conn *conn;
    uint8_t *memory;
    uint64_t key, base;
    uint16_t port; /* where the node waits for it */
    int strangers[STRANGERS_MAX];
    unsigned n_strangers;
    uint32_t n, n_spoilt, granted, sending;
    int64_t since_ns, not_before_ns;
    struct hapi_conn_op ops[REQUESTS + 4];
    bool busy[REQUESTS + 4];
    struct hapi_req_object objects[HAPI_REQUEST_SAMPLES];
    struct hapi_req_sample samples[HAPI_REQUEST_SAMPLES];
    struct body body;
};

/* They know the port and nothing else; every other one says something. */
static void strangers_come(struct fetcher *f, uint16_t port)
{
    struct sockaddr_in a = f->w->node;
    uint8_t junk[200];

    a.sin_port = htons(port);
    for (unsigned i = 0; i < f->w->strangers; i++) {
        int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        REQUIRE(fd >= 0);
        if (connect(fd, (struct sockaddr *)&a, sizeof a) && errno != EINPROGRESS)
            REQUIRE(errno == ECONNREFUSED || errno == EAGAIN);
        rng_bytes(&f->rng, junk, sizeof junk);
        if (i % 2)
            send(fd, junk, sizeof junk, MSG_NOSIGNAL | MSG_DONTWAIT);
        f->strangers[f->n_strangers++] = fd;
    }
}

static void strangers_go(struct fetcher *f)
{
    while (f->n_strangers)
        close(f->strangers[--f->n_strangers]);
}

static void close_all(struct fetcher *f)
{
    raw_close(&f->raw, rng_one_in(&f->rng, 2));
    if (f->conn) {
        f->state = FETCH_CLOSING; /* its on_close goes on */
        hapi_conn_close(f->conn);
    } else {
        strangers_go(f);
        f->state = FETCH_OFF;
    }
}

static void counted(struct fetcher *f)
{
    f->w->tally.data += f->n;
    f->w->tally.spoilt += f->n_spoilt;
    f->n = f->n_spoilt = 0;
}

/* ---- requests ---- */

static struct hapi_request request_make(struct fetcher *f, bool good)
{
    struct rng *r = &f->rng;
    const struct known *k = &f->w->known;
    struct hapi_request q = {
        .index = (uint16_t)(good ? FENCE : rng_below(r, 16)),
        .trace_id = rng_next(r),
        .dataset = k->dataset,
        .n_windows = 1,
        .windows = {{f->key, f->base + WINDOW_AT, 0, WINDOW_BYTES}},
        .record_key = f->key,
        .record_base = f->base + (good ? FENCE_AT : RECORDS_AT),
        .record_bytes = good ? FENCE_BYTES : RECORDS_BYTES,
        .n_objects = 1,
        .n_samples = good ? 1 : 1 + rng_below(r, 12),
        .max_parts = good ? 1 : 1 + rng_below(r, 16),
        .objects = f->objects,
        .samples = f->samples,
    };

    f->objects[0] = (struct hapi_req_object){k->object, {0}, NULL};
    for (uint32_t i = 0; i < q.n_samples; i++)
        f->samples[i] = (struct hapi_req_sample){0, good ? 0 : rng_below(r, 60)};
    if (good)
        return q;
    q.flags = rng_below(r, 4);
    q.deadline_ms = rng_one_in(r, 8) ? 1 : 0;
    q.micro_batch = rng_below(r, 4) * 3;
    q.record_bytes -= q.record_bytes % (8 * q.max_parts);
    return q;
}

/* Wrong, but well-formed: only what it names is not there. */
static void request_misname(struct fetcher *f, struct hapi_request *q)
{
    static const uint8_t digest[HAPI_HASH_SIZE] = {1};
    struct rng *r = &f->rng;

    switch (rng_below(r, 7)) {
    case 0:
        f->objects[0].name = S("no/such.jpg");
        break;
    case 1:
        f->objects[0].version = S("of yesterday");
        break;
    case 2:
        f->objects[0].digest = digest;
        break;
    case 3: /* samples that the object does not have */
        for (uint32_t i = 0; i < q->n_samples; i++)
            f->samples[i].index = (uint32_t)rng_next(r);
        break;
    case 4: /* the same object under 300 numbers */
        q->n_objects = 300;
        for (uint32_t i = 1; i < q->n_objects; i++)
            f->objects[i] = f->objects[0];
        break;
    case 5: /* a model that nobody uploaded */
        q->n_cut = 1;
        q->cut[0] = S("relu");
        q->transform = S("{}");
        q->model_hash[3] = 3;
        q->compute_dtype = q->wire_dtype = HAPI_F32;
        q->windows[0].stride = 4096;
        break;
    default: /* a window that holds nothing of it */
        q->windows[0].capacity = 1 + rng_below(r, 64);
    }
}

static bool send_bytes(struct fetcher *f, const void *p, size_t n)
{
    for (uint32_t i = 0; i < REQUESTS + 4; i++) {
        uint8_t *at = f->memory + (size_t)i * MESSAGE_BYTES;
        if (f->busy[i])
            continue;
        n = n < MESSAGE_BYTES ? n : MESSAGE_BYTES;
        memcpy(at, p, n);
        if (n == 0 || hapi_conn_send(f->conn, at, n, &f->ops[i]))
            return false;
        f->busy[i] = true;
        return true;
    }
    return false;
}

static void say_request(struct fetcher *f, bool good)
{
    struct hapi_request q = request_make(f, good);
    bool named = !good && rng_one_in(&f->rng, 2);

    if (named)
        request_misname(f, &q);
    int n = hapi_request_encode(&q, f->body.b, sizeof f->body.b);
    REQUIRE(n > 0);
    f->body.n = (size_t)n;
    if (!good && (!named || rng_one_in(&f->rng, 8)))
        message_spoil(&f->body, &f->rng);
    if (!good && rng_one_in(&f->rng, 100)) /* bytes */
        rng_bytes(&f->rng, f->body.b, f->body.n = 1 + rng_below(&f->rng, 500));
    if (send_bytes(f, f->body.b, f->body.n) && !good) {
        f->n++;
        f->n_spoilt++;
    }
}

/* Much more than the sockets' buffers hold: every micro-batch of the node waits for us. */
static void hog(struct fetcher *f)
{
    for (uint32_t i = 0; i < REQUESTS; i++) {
        struct hapi_request q = request_make(f, false);
        q.index = (uint16_t)i;
        q.n_samples = HAPI_REQUEST_SAMPLES / 2;
        q.max_parts = HAPI_REQUEST_SAMPLES;
        q.flags = q.deadline_ms = q.micro_batch = 0;
        q.windows[0].capacity = 1ULL << 30;
        q.record_bytes = (uint64_t)q.max_parts * 8192;
        for (uint32_t k = 0; k < q.n_samples; k++)
            f->samples[k] = (struct hapi_req_sample){0, 0};
        int n = hapi_request_encode(&q, f->body.b, sizeof f->body.b);
        REQUIRE(n > 0 && send_bytes(f, f->body.b, (size_t)n));
    }
    f->state = FETCH_BURST;
    f->since_ns = hapi_clock_ns();
    f->w->hogging++;
}

/* Behind libfabric's back: bytes that are none of its protocol, on the connection that it was let in by. */
static void vandalise(struct fetcher *f)
{
    uint8_t junk[300];
    struct sockaddr_in a = {0};
    size_t bytes = 1 + rng_below(&f->rng, sizeof junk);

    for (int fd = 3; fd < 1024; fd++) {
        socklen_t n = sizeof a;
        if (getpeername(fd, (struct sockaddr *)&a, &n) || a.sin_family != AF_INET ||
            a.sin_port != htons(f->port))
            continue;
        rng_bytes(&f->rng, junk, sizeof junk);
        if (rng_one_in(&f->rng, 2)) /* what a header could begin with: an operation, a version, flags */
            memset(junk, (int)rng_below(&f->rng, 8), 4 + rng_below(&f->rng, 12));
        if (rng_one_in(&f->rng, 2)) {
            /* One: version, operation, flags (2), data of the operation, id, size of the header, of the
             * whole. */
            const uint8_t head[16] = {[0] = 3,
                                      [1] = (uint8_t)rng_below(&f->rng, 10),
                                      [2] = (uint8_t)rng_next(&f->rng),
                                      [4] = (uint8_t)rng_below(&f->rng, 4),
                                      [6] = (uint8_t)(16 + 8 * rng_below(&f->rng, 8)),
                                      [8] = (uint8_t)rng_next(&f->rng)};
            memcpy(junk, head, sizeof head);
        }
        send(fd, junk, bytes, MSG_NOSIGNAL | MSG_DONTWAIT);
        f->n++;
        f->n_spoilt++;
    }
}

static void burst(struct fetcher *f)
{
    uint32_t n = 1 + rng_below(&f->rng, REQUESTS - 1);

    if (!f->w->hog && rng_one_in(&f->rng, 30))
        n = REQUESTS + 3; /* more than were granted */
    f->state = FETCH_BURST;
    f->since_ns = hapi_clock_ns();
    while (f->granted < IMMEDIATES && hapi_conn_grant(f->conn, IMMEDIATES - f->granted) == 0)
        f->granted = IMMEDIATES;
    for (uint32_t i = 0; i < n; i++)
        say_request(f, false);
    say_request(f, true);
    if (f->w->vandals && rng_one_in(&f->rng, 60))
        vandalise(f);
}

/* ---- the data connection ---- */

static void data_open(struct hapi_conn *c)
{
    struct fetcher *f = hapi_conn_user(c);
    struct hapi_err err;

    if (hapi_conn_expose(c, f->memory, MEMORY, &f->key, &f->base, &err)) {
        fprintf(stderr, "%s\n", err.text);
        exit(1);
    }
    f->w->tally.connections++;
    int64_t took = hapi_clock_ns() - f->since_ns;
    f->w->tally.slowest_ns = took > f->w->tally.slowest_ns ? took : f->w->tally.slowest_ns;
    f->granted = 0;
    if (f->w->hog)
        hog(f);
    else
        burst(f);
}

static void data_imm(struct hapi_conn *c, uint32_t imm)
{
    struct fetcher *f = hapi_conn_user(c);

    f->granted--;
    if (imm >> 16 != FENCE || f->state != FETCH_BURST)
        return;
    counted(f);
    if (rng_one_in(&f->rng, 20))
        close_all(f);
    else
        burst(f);
}

static void data_recv(struct hapi_conn *c, const void *p, size_t n)
{
    (void)c;
    (void)p;
    (void)n;
}

static void data_close(struct hapi_conn *c, const struct hapi_err *why)
{
    struct fetcher *f = hapi_conn_user(c);

    (void)why;
    f->conn = NULL;
    if (f->state == FETCH_BURST) {
        counted(f);
        f->w->tally.ended++;
    }
    raw_close(&f->raw, false);
    strangers_go(f);
    f->state = FETCH_OFF;
}

static void sent(struct hapi_conn *c, struct hapi_conn_op *op, int status)
{
    struct fetcher *f = hapi_conn_user(c);

    (void)status;
    f->busy[op - f->ops] = false;
}

static const struct hapi_conn_handler data_handler = {data_open, data_recv, data_imm, data_close};

/* ---- its control channel ---- */

static void on_ready(struct raw *r)
{
    struct fetcher *f = (struct fetcher *)r;
    uint8_t hello[256];

    raw_frame(r, HAPI_MSG_HELLO, hello, hello_make(hello, sizeof hello, "client"));
    f->state = FETCH_HELLO;
}

static void on_data_ready(struct fetcher *f, const uint8_t *body, size_t n)
{
    struct hapi_msg_data m;
    struct hapi_err err = {0};
    char host[HAPI_NAME_MAX + 1];

    REQUIRE(hapi_msg_data_decode(&m, body, n, NULL) == 0 && m.port);
    memcpy(host, m.host.s, m.host.n);
    host[m.host.n] = '\0';
    if (!f->w->hog && rng_one_in(&f->rng, 30))
        m.nonce[rng_below(&f->rng, HAPI_NONCE_SIZE)] ^= 1; /* a stranger */
    f->port = m.port;
    strangers_come(f, m.port);
    f->since_ns = hapi_clock_ns();
    if (hapi_conn_connect(&f->conn, f->w->fabric, host, m.port, m.nonce, &data_handler, f, &err)) {
        fprintf(stderr, "%s\n", err.text);
        exit(1);
    }
    f->state = FETCH_CONNECTING;
}

static void on_frame(struct raw *r, unsigned type, const uint8_t *body, size_t n)
{
    struct fetcher *f = (struct fetcher *)r;
    struct hapi_msg_data m = {.id = 1, .transport = S("ofi"), .max_requests = REQUESTS};
    uint8_t buf[256];

    if (f->state == FETCH_HELLO && type == HAPI_MSG_HELLO) {
        int used = hapi_msg_data_encode(&m, buf, sizeof buf);
        REQUIRE(used > 0);
        raw_frame(r, HAPI_MSG_DATA_OPEN, buf, (size_t)used);
        f->w->tally.sessions++;
        f->state = FETCH_OPENING;
    } else if (f->state == FETCH_OPENING && type == HAPI_MSG_DATA_READY) {
        on_data_ready(f, body, n);
    }
}

static void on_end(struct raw *r, const struct hapi_err *why)
{
    struct fetcher *f = (struct fetcher *)r;

    (void)why;
    if (f->state == FETCH_BURST) {
        counted(f);
        f->w->tally.ended++;
    } else if (f->state != FETCH_OFF && f->state != FETCH_CLOSING) {
        f->w->tally.refused++;
        f->not_before_ns = hapi_clock_ns() + PAUSE_NS;
    }
    close_all(f);
}

static const struct raw_handler handler = {on_ready, on_frame, on_end};

/* ---- its life ---- */

struct fetcher *fetcher_new(struct war *w, uint64_t seed)
{
    struct fetcher *f = calloc(1, sizeof *f);

    REQUIRE(f);
    raw_init(&f->raw, w->loop, &handler);
    f->w = w;
    f->rng.s = seed;
    f->memory = aligned_alloc(4096, MEMORY);
    REQUIRE(f->memory);
    for (size_t i = 0; i < sizeof f->ops / sizeof *f->ops; i++)
        f->ops[i].on_done = sent;
    return f;
}

void fetcher_free(struct fetcher *f)
{
    close_all(f);
    for (int i = 0; i < 1000 && f->conn; i++)
        REQUIRE(hapi_loop_run_once(f->w->loop, HAPI_NS_PER_MS, NULL) == 0);
    raw_fini(&f->raw);
    free(f->memory);
    free(f);
}

void fetcher_step(struct fetcher *f)
{
    int64_t now = hapi_clock_ns();

    if (f->state == FETCH_OFF && !f->conn && !f->raw.open && now >= f->not_before_ns) {
        f->n = f->n_spoilt = 0;
        f->since_ns = now;
        if (war_connect(f->w, &f->raw))
            f->not_before_ns = now + PAUSE_NS;
        else
            f->state = FETCH_HELLO;
    } else if (f->state != FETCH_OFF && f->state != FETCH_CLOSING && now - f->since_ns > f->w->patience_ns) {
        f->w->tally.stuck++;
        close_all(f);
    }
}

void fetcher_beat(struct fetcher *f)
{
    static const uint8_t frame[FRAME_HEAD] = {4, 0, 0, 0, HAPI_MSG_HEARTBEAT};
    struct hapi_err err;
    size_t put;

    if (f->raw.open)
        hapi_stream_write(&f->raw.stream, frame, sizeof frame, &put, &err);
}
