/*
 * A storage node that speaks the protocol up to a point, and then as its play says. Prints `ready HOST:PORT`
 * and serves until it is killed. The play `honest` must satisfy a job: what the others break, breaks by their
 * doing.
 */
#include <arpa/inet.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "hostile.h"
#include "transport.h"
#include "wire_fields.h"

/* X(play, what it does) */
#define PLAYS(X)                                                                                             \
    X(honest, "all is well")                                                                                 \
    X(compute_i8, "all is well, and it says that it computes in int8")                                       \
    X(hello_silent, "never says hello")                                                                      \
    X(hello_garbage, "random bytes for a hello")                                                             \
    X(hello_spoilt, "a spoilt hello")                                                                        \
    X(ls_spoilt, "a spoilt list of datasets")                                                                \
    X(ls_early, "an index before anybody asked")                                                             \
    X(index_spoilt, "a spoilt index")                                                                        \
    X(index_huge, "an object of four thousand million samples")                                              \
    X(index_endless, "an index that goes on for ever")                                                       \
    X(index_more, "an index of more than was announced")                                                     \
    X(index_twice, "the same object in every part of the index")                                             \
    X(model_spoilt, "spoilt answers to the model")                                                           \
    X(ready_spoilt, "a spoilt address for data")                                                             \
    X(ready_nobody, "an address where nobody listens")                                                       \
    X(ready_twice, "two addresses")                                                                          \
    X(data_closes, "the data connection ends as soon as it is there")                                        \
    X(record_bits, "bits of the record flip")                                                                \
    X(record_garbage, "random bytes for a record")                                                           \
    X(record_count, "more samples than were asked for")                                                      \
    X(record_stale, "the record of another generation")                                                      \
    X(record_label, "a class that does not exist")                                                           \
    X(record_place, "samples at other places than agreed")                                                   \
    X(record_code, "a status that is no error code")                                                         \
    X(record_row, "rows of another length than their dtype has")                                             \
    X(record_none, "an immediate without a record")                                                          \
    X(part_missing, "the end before all samples came")                                                       \
    X(part_twice, "every part twice")                                                                        \
    X(part_order, "the second part first")                                                                   \
    X(imm_unknown, "an immediate for a request that was never made")                                         \
    X(imm_ungranted, "more immediates than were granted")                                                    \
    X(write_outside, "a write past the end of what was exposed")                                             \
    X(write_key, "a write under another key")                                                                \
    X(payload_garbage, "random bytes for rows")                                                              \
    X(error_codes, "errors with codes and ids of every kind")                                                \
    X(chatter, "between all messages, spoilt ones")                                                          \
    X(frames, "a frame that cannot be, in mid-epoch")                                                        \
    X(dies, "the connections end in mid-epoch")

enum play {
#define X(name, text) PLAY_##name,
    PLAYS(X)
#undef X
        PLAY_COUNT
};
static const char *const play_names[] = {
#define X(name, text) #name,
    PLAYS(X)
#undef X
};

enum {
    GUESTS = 16,
    SAMPLES = 200,
    SAMPLE_BYTES = 3000,
    ZEROS = 4 << 20,
    RECORDS = 64,
    RECORD_BYTES = 32 << 10,
};

struct node {
    struct hapi_loop *loop;
    struct hapi_watch accept; /* of the control port */
    struct hapi_fabric *fabric;
    struct hapi_listener *listener;
    struct hapi_slab slab;
    uint8_t *zeros, *records;
    unsigned next_record;
    struct rng rng;
    enum play play;
    struct guest *guests;
};

struct guest {
    struct raw raw; /* first */
    struct node *node;
    struct hapi_conn *conn;
    uint8_t nonce[HAPI_NONCE_SIZE];
    uint64_t parts; /* so far */
    struct body body;
    struct hapi_req_object objects[HAPI_REQUEST_SAMPLES];
    struct hapi_req_sample samples[HAPI_REQUEST_SAMPLES];
};

static struct hapi_conn_op no_op;

/* ---- control ---- */

static void say(struct guest *g, unsigned type, int n, enum play spoilt_in)
{
    struct node *node = g->node;
    static struct body extra;
    static const struct known known = {.dataset = {"set", 3}};

    REQUIRE(n >= 0);
    g->body.n = (size_t)n;
    for (int i = 0; node->play == spoilt_in && i < 3; i++)
        message_spoil(&g->body, &node->rng);
    raw_frame(&g->raw, type, g->body.b, g->body.n);
    for (uint32_t i = node->play == PLAY_chatter ? 1 + rng_below(&node->rng, 5) : 0; i; i--) {
        /* Of what a client only notes: the others have plays of their own. */
        static const uint16_t idle[] = {
            HAPI_MSG_HEARTBEAT, HAPI_MSG_CLOCK_REPLY, HAPI_MSG_STAT_REPLY, HAPI_MSG_LOCATE_REPLY, 77, 65535};
        unsigned t = idle[rng_below(&node->rng, sizeof idle / sizeof *idle)];
        message_make(&extra, t, &known, &node->rng);
        message_spoil(&extra, &node->rng);
        raw_frame(&g->raw, t, extra.b, extra.n);
    }
}

static void on_ready(struct raw *r)
{
    (void)r; /* a node waits for the client's hello */
}

static void say_hello(struct guest *g)
{
    struct node *node = g->node;
    struct hapi_hello h = {.major_min = HAPI_PROTO_MAJOR,
                           .major_max = HAPI_PROTO_MAJOR,
                           .caps =
                               HAPI_CAP_TRANSPORT_OFI | HAPI_CAP_CHECKSUM | HAPI_CAP_UPLOAD | HAPI_CAP_INT8,
                           .role = S("node"),
                           .version = S("hostile"),
                           .numeric_class = S("onednn/any")};

    if (node->play == PLAY_compute_i8)
        h.caps |= HAPI_CAP_COMPUTE_I8;
    if (node->play == PLAY_hello_silent)
        return;
    if (node->play == PLAY_hello_garbage) {
        uint8_t junk[500];
        rng_bytes(&node->rng, junk, sizeof junk);
        raw_put(&g->raw, junk, sizeof junk);
        return;
    }
    say(g, HAPI_MSG_HELLO, hapi_hello_encode(&h, g->body.b, sizeof g->body.b), PLAY_hello_spoilt);
}

static void say_datasets(struct guest *g, uint64_t id)
{
    uint8_t classes[64];
    int n = hapi_classes_append(classes, sizeof classes, 0, "cat");
    struct hapi_list l;

    n = hapi_classes_append(classes, sizeof classes, (size_t)n, "dog");
    struct hapi_msg_dataset d = {.name = S("set"),
                                 .objects = 4,
                                 .samples = 4 * SAMPLES,
                                 .bytes = (uint64_t)4 * SAMPLES * SAMPLE_BYTES,
                                 .max_sample_bytes = SAMPLE_BYTES,
                                 .n_classes = 2,
                                 .classes_blob = {(char *)classes, (uint32_t)n}};
    if (g->node->play == PLAY_index_endless)
        d.objects = UINT64_MAX;
    if (g->node->play == PLAY_index_more)
        d.samples--;
    REQUIRE(hapi_list_begin(&l, g->body.b, sizeof g->body.b, id) == 0 && hapi_list_dataset(&l, &d) == 0);
    say(g, HAPI_MSG_LS_REPLY, (int)l.used, PLAY_ls_spoilt);
}

static void say_index(struct guest *g, uint64_t id, uint64_t first)
{
    enum play play = g->node->play;
    uint8_t sizes[SAMPLES * 4];
    char name[32];
    struct hapi_list l;

    for (int i = 0; i < SAMPLES; i++)
        hapi_put32(sizes + i * 4, SAMPLE_BYTES);
    REQUIRE(hapi_list_begin(&l, g->body.b, sizeof g->body.b, id) == 0);
    snprintf(name, sizeof name, "shard-%llu.tar", (unsigned long long)(play == PLAY_index_twice ? 0 : first));
    struct hapi_msg_object o = {.name = {name, (uint32_t)strlen(name)},
                                .version = S("1"),
                                .digest = {(uint8_t)(1 + first)},
                                .bytes = (uint64_t)SAMPLES * SAMPLE_BYTES,
                                .samples = SAMPLES,
                                .sample_bytes = {(char *)sizes, sizeof sizes}};
    REQUIRE(hapi_list_object(&l, &o) == 0);
    if (play == PLAY_index_huge) /* the number of samples is the fifth field of the object */
        for (size_t i = 0; i + 12 < l.used; i++)
            if (hapi_get16(l.buf + i) == 5 && hapi_get32(l.buf + i + 4) == 4 &&
                hapi_get32(l.buf + i + 8) == SAMPLES)
                hapi_put32(l.buf + i + 8, UINT32_MAX);
    if (first < 3 || play == PLAY_index_endless)
        hapi_list_more(&l, first + 1);
    say(g, HAPI_MSG_INDEX_REPLY, (int)l.used, PLAY_index_spoilt);
}

static void say_data_ready(struct guest *g, const struct hapi_msg_data *asked)
{
    struct node *node = g->node;
    struct hapi_msg_data m = *asked;

    rng_bytes(&node->rng, g->nonce, sizeof g->nonce);
    memcpy(m.nonce, g->nonce, sizeof m.nonce);
    m.host = S("127.0.0.1");
    m.port = node->play == PLAY_ready_nobody ? 1 : hapi_listener_port(node->listener);
    m.max_parts = HAPI_REQUEST_SAMPLES;
    for (int i = node->play == PLAY_ready_twice ? 2 : 1; i; i--)
        say(g, HAPI_MSG_DATA_READY, hapi_msg_data_encode(&m, g->body.b, sizeof g->body.b), PLAY_ready_spoilt);
}

static void say_errors(struct guest *g)
{
    struct rng *r = &g->node->rng;
    struct hapi_msg_error e = {.text = S("as it pleases")};

    for (int i = 0; i < 4; i++) {
        e.id =
            (1ULL << 32) + rng_below(r, 1000); /* of requests: those of messages end the session, rightly */
        e.code = -1 - (int32_t)rng_below(r, 65535);
        say(g, HAPI_MSG_ERROR, hapi_msg_error_encode(&e, g->body.b, sizeof g->body.b), PLAY_COUNT);
    }
}

static void on_frame(struct raw *r, unsigned type, const uint8_t *body, size_t n)
{
    struct guest *g = (struct guest *)r;
    struct hapi_msg_text t;
    struct hapi_msg_index x;
    struct hapi_msg_model m;
    struct hapi_msg_data d;

    switch (type) {
    case HAPI_MSG_HELLO:
        say_hello(g);
        if (g->node->play == PLAY_ls_early)
            say_index(g, 1, 0);
        break;
    case HAPI_MSG_LS:
        REQUIRE(hapi_msg_text_decode(&t, body, n, NULL) == 0);
        say_datasets(g, t.id);
        break;
    case HAPI_MSG_INDEX:
        REQUIRE(hapi_msg_index_decode(&x, body, n, NULL) == 0);
        say_index(g, x.id, x.first);
        break;
    case HAPI_MSG_MODEL_OFFER:
        REQUIRE(hapi_msg_model_decode(&m, body, n, NULL) == 0);
        if (g->node->play == PLAY_model_spoilt)
            say(g, HAPI_MSG_MODEL_WANT, hapi_msg_model_encode(&m, g->body.b, sizeof g->body.b),
                PLAY_model_spoilt);
        say(g, HAPI_MSG_MODEL_READY, hapi_msg_model_encode(&m, g->body.b, sizeof g->body.b),
            PLAY_model_spoilt);
        break;
    case HAPI_MSG_DATA_OPEN:
        REQUIRE(hapi_msg_data_decode(&d, body, n, NULL) == 0);
        say_data_ready(g, &d);
        break;
    default:
        break;
    }
}

static void on_end(struct raw *r, const struct hapi_err *why)
{
    struct guest *g = (struct guest *)r;

    (void)why;
    hapi_conn_close(g->conn);
}

static const struct raw_handler handler = {on_ready, on_frame, on_end};

/* ---- data ---- */

static struct hapi_record *record_make(struct guest *g, const struct hapi_request *q)
{
    struct node *node = g->node;
    struct hapi_record *r =
        (struct hapi_record *)(node->records + (size_t)(node->next_record++ % RECORDS) * RECORD_BYTES);

    memset(r, 0, RECORD_BYTES);
    r->magic = HAPI_RECORD_MAGIC;
    r->size = (uint32_t)hapi_record_size(q->n_samples);
    r->request = q->index;
    r->major = HAPI_PROTO_MAJOR;
    r->flags = HAPI_RECORD_TERMINAL;
    r->count = q->n_samples;
    r->label_encoding = HAPI_LABEL_CLASS_U32;
    r->n_windows = (uint16_t)q->n_windows;
    r->generation = q->trace_id;
    for (uint32_t i = 0; i < q->n_samples; i++) {
        struct hapi_record_sample *s = &r->samples[i];
        s->label = i % 2;
        s->bytes = q->n_cut ? (uint32_t)q->windows[0].stride : SAMPLE_BYTES;
        s->offset = (uint64_t)i * s->bytes;
    }
    return r;
}

static void record_spoil(struct node *node, struct hapi_record *r, const struct hapi_request *q)
{
    struct rng *n = &node->rng;
    uint8_t *bytes = (uint8_t *)r;
    uint32_t size = r->size; /* a bit of it may be among those that change */

    switch (node->play) {
    case PLAY_record_bits:
        for (uint32_t i = 1 + rng_below(n, 4); i; i--)
            bytes[rng_below(n, size)] ^= (uint8_t)(1 << rng_below(n, 8));
        break;
    case PLAY_record_garbage:
        rng_bytes(n, bytes, size);
        break;
    case PLAY_record_count:
        r->count = rng_one_in(n, 2) ? UINT32_MAX : r->count + 1;
        break;
    case PLAY_record_stale:
        r->generation--;
        break;
    case PLAY_record_label:
        r->samples[rng_below(n, r->count)].label = rng_one_in(n, 2) ? 2 : UINT32_MAX;
        break;
    case PLAY_record_place:
        r->samples[rng_below(n, r->count)].offset = rng_one_in(n, 2) ? rng_next(n) : q->windows[0].capacity;
        break;
    case PLAY_record_code:
        r->samples[rng_below(n, r->count)].status = rng_one_in(n, 2) ? 5 : INT32_MIN;
        break;
    case PLAY_record_row:
        r->samples[rng_below(n, r->count)].bytes -= 1 + rng_below(n, 4);
        break;
    case PLAY_part_missing:
        r->count--;
        r->size = (uint32_t)hapi_record_size(r->count);
        break;
    case PLAY_part_order:
        r->part = 1;
        break;
    default:
        break;
    }
}

/* A request's samples, all zero, and its record; how often, and under which number, as the play says. */
static void answer(struct guest *g, const struct hapi_request *q)
{
    struct node *node = g->node;
    const struct hapi_window_ref *w = &q->windows[0];
    struct hapi_record *r = record_make(g, q);
    size_t bytes = q->n_cut ? (size_t)w->stride * q->n_samples : (size_t)SAMPLE_BYTES * q->n_samples;
    uint64_t key = w->key, base = w->base;
    uint16_t index = q->index;
    int times = node->play == PLAY_part_twice ? 2 : node->play == PLAY_imm_ungranted ? 600 : 1;

    record_spoil(node, r, q);
    if (node->play == PLAY_write_key)
        key ^= 1;
    if (node->play == PLAY_write_outside)
        base += (uint64_t)1 << (20 + rng_below(&node->rng, 40));
    if (node->play == PLAY_imm_unknown)
        index = (uint16_t)(1000 + rng_below(&node->rng, 60000));
    bytes = bytes < ZEROS ? bytes : ZEROS;
    if (node->play == PLAY_payload_garbage)
        rng_bytes(&node->rng, node->zeros, bytes);
    hapi_conn_write(g->conn, node->zeros, bytes, base, key, NULL);
    for (int i = 0; i < times; i++)
        hapi_conn_write_imm(g->conn, r,
                            node->play == PLAY_record_none ? 8
                            : r->size < RECORD_BYTES       ? r->size
                                                           : 96,
                            q->record_base, q->record_key, hapi_imm(index, r->part), &no_op);
    g->parts++;
}

static void data_open(struct hapi_conn *c)
{
    struct guest *g = hapi_conn_user(c);

    if (g->node->play == PLAY_data_closes)
        hapi_conn_close(c);
}

static void data_recv(struct hapi_conn *c, const void *message, size_t n)
{
    struct guest *g = hapi_conn_user(c);
    struct hapi_request q = {.objects = g->objects, .samples = g->samples};
    uint8_t b[512];

    REQUIRE(hapi_request_decode(&q, message, n, NULL) == 0);
    answer(g, &q);
    if (g->node->play == PLAY_error_codes)
        say_errors(g);
    if (g->node->play == PLAY_frames && g->parts % 3 == 0)
        raw_put(&g->raw, b, frame_garbage(b, sizeof b, &g->node->rng));
    if (g->node->play == PLAY_dies && g->parts % 3 == 0) {
        raw_close(&g->raw, true);
        hapi_conn_close(c);
    }
}

static void data_imm(struct hapi_conn *c, uint32_t imm)
{
    (void)c;
    (void)imm;
}

static void data_close(struct hapi_conn *c, const struct hapi_err *why)
{
    struct guest *g = hapi_conn_user(c);

    (void)why;
    g->conn = NULL;
    raw_close(&g->raw, false);
}

static void *admit(void *user, const uint8_t nonce[HAPI_NONCE_SIZE])
{
    struct node *node = user;

    for (int i = 0; i < GUESTS; i++)
        if (node->guests[i].raw.open && !memcmp(node->guests[i].nonce, nonce, HAPI_NONCE_SIZE))
            return &node->guests[i];
    return NULL;
}

static void on_accept(struct hapi_conn *c, void *user)
{
    ((struct guest *)user)->conn = c;
}

static void op_done(struct hapi_conn *c, struct hapi_conn_op *op, int status)
{
    (void)c;
    (void)op;
    (void)status;
}

static const struct hapi_listener_handler data_handler = {
    .admit = admit, .conn = {data_open, data_recv, data_imm, data_close}, .on_accept = on_accept};

/* ---- its life ---- */

static void accept_ready(struct hapi_watch *w, uint32_t revents)
{
    struct node *node = (struct node *)((char *)w - offsetof(struct node, accept));
    int fd = accept(w->fd, NULL, NULL);

    (void)revents;
    for (int i = 0; fd >= 0 && i < GUESTS; i++) {
        struct guest *g = &node->guests[i];
        if (g->raw.open || g->conn)
            continue;
        g->parts = 0;
        raw_accept(&g->raw, fd, NULL);
        return;
    }
    if (fd >= 0)
        close(fd);
}

static void node_open(struct node *node)
{
    struct hapi_fabric_options opt = {.max_recv = 64, .max_ops = 4096};
    struct hapi_err err = {0};
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t n = sizeof a;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

    no_op.on_done = op_done;
    if (hapi_loop_open(&node->loop, 256, &err) ||
        hapi_slab_init(&node->slab, ZEROS + RECORDS * RECORD_BYTES, &err) ||
        hapi_fabric_open(&node->fabric, node->loop, "ofi", &node->slab, &opt, &err) ||
        hapi_listener_open(&node->listener, node->fabric, "127.0.0.1", 0, &data_handler, node, &err)) {
        fprintf(stderr, "%s\n", err.text);
        exit(1);
    }
    node->zeros = hapi_slab_take(&node->slab, ZEROS, 4096);
    node->records = hapi_slab_take(&node->slab, RECORDS * RECORD_BYTES, 4096);
    node->guests = calloc(GUESTS, sizeof *node->guests);
    REQUIRE(node->guests);
    for (int i = 0; i < GUESTS; i++) {
        raw_init(&node->guests[i].raw, node->loop, &handler);
        node->guests[i].node = node;
    }
    REQUIRE(fd >= 0 && bind(fd, (struct sockaddr *)&a, n) == 0 && listen(fd, 64) == 0);
    REQUIRE(getsockname(fd, (struct sockaddr *)&a, &n) == 0);
    node->accept = (struct hapi_watch){.ready = accept_ready, .fd = fd, .events = POLLIN};
    REQUIRE(hapi_loop_watch(node->loop, &node->accept) == 0);
    printf("ready 127.0.0.1:%u\n", ntohs(a.sin_port));
    fflush(stdout);
}

int main(int argc, char **argv)
{
    static struct node node;
    int i = 0;

    if (argc == 2 && !strcmp(argv[1], "--plays")) {
#define X(name, text) printf("%s\t%s\n", #name, text);
        PLAYS(X)
#undef X
        return 0;
    }
    while (argc == 3 && i < PLAY_COUNT && strcmp(argv[1], play_names[i]))
        i++;
    if (argc != 3 || i == PLAY_COUNT) {
        fprintf(stderr, "usage: hostile_node PLAY SEED, or --plays for a list of them\n");
        return 2;
    }
    signal(SIGPIPE, SIG_IGN);
    node.play = (enum play)i;
    node.rng.s = strtoull(argv[2], NULL, 10);
    node_open(&node);
    for (;;)
        REQUIRE(hapi_loop_run_once(node.loop, -1, NULL) == 0);
}
