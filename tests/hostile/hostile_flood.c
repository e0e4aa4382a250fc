/* Fresh connections to the public port that never get as far as a session: silent, slow, half-open, garbage,
 * TLS that stops half-way or has the wrong key. Several hundred at a time. Prints what became of them. */
#include <getopt.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>

#include "hostile.h"
#include "wire_fields.h"

static const char usage[] = "usage: hostile_flood HOST:PORT [--key FILE --wrong-key FILE] [--seed N] "
                            "[--connections N] [--at-once N]\n\n"
                            "With keys, TLS that is never finished or has the wrong key is part of it.\n";

#define KINDS(X)                                                                                             \
    X(SILENT, silent)                                                                                        \
    X(SLOW, slow)     /* a byte of a good hello now and then */                                              \
    X(RESET, reset)   /* gone before it is accepted */                                                       \
    X(UNREAD, unread) /* sends and sends, reads nothing */                                                   \
    X(SHUT, shut)     /* the end of the stream first thing */                                                \
    X(GARBAGE, garbage)                                                                                      \
    X(HALF, half)              /* a frame that is announced and does not come */                             \
    X(HELLOS, hellos)          /* one hello after the other */                                               \
    X(TLS_GARBAGE, tlsgarbage) /* records that only look like TLS */                                         \
    X(TLS_HALF, tlshalf)       /* a good ClientHello, then silence */                                        \
    X(TLS_WRONG, tlswrong)     /* a whole handshake with the wrong key */                                    \
    X(TLS_SILENT, tlssilent)   /* a whole handshake with the right key, then no hello */

enum kind {
#define X(name, text) name,
    KINDS(X)
#undef X
        KIND_COUNT
};
static const char *const kind_names[] = {
#define X(name, text) #text,
    KINDS(X)
#undef X
};

enum { AT_ONCE_MAX = 1000 };

struct guest {
    struct raw raw; /* first */
    struct flood *f;
    enum kind kind;
    int64_t until_ns, byte_ns;
    size_t said;
};

struct flood {
    struct hapi_loop *loop;
    struct sockaddr_in node;
    struct hapi_tls right, wrong;
    bool tls;
    struct rng rng;
    unsigned at_once, total, begun, ended, by_node, failed, now, most;
    unsigned of_kind[KIND_COUNT];
    struct guest *guests;
    uint8_t hello[FRAME_HEAD + 256];
    size_t hello_n;
};

static void gone(struct guest *g)
{
    g->f->ended++;
    g->f->now--;
}

static void on_ready(struct raw *r)
{
    (void)r;
}

static void on_frame(struct raw *r, unsigned type, const uint8_t *body, size_t n)
{
    (void)r;
    (void)type;
    (void)body;
    (void)n;
}

static void on_end(struct raw *r, const struct hapi_err *why)
{
    struct guest *g = (struct guest *)r;

    (void)why;
    g->f->by_node++;
    gone(g);
}

static const struct raw_handler handler = {on_ready, on_frame, on_end};

/* ---- what each kind says first ---- */

static void say_hellos(struct guest *g)
{
    for (int i = 0; i < 50; i++)
        raw_put(&g->raw, g->f->hello, g->f->hello_n);
}

static void say_junk(struct guest *g, bool tls)
{
    uint8_t b[600];
    size_t n = 1 + rng_below(&g->f->rng, sizeof b - 1);

    rng_bytes(&g->f->rng, b, sizeof b);
    if (tls) {
        const uint8_t head[] = {22, 3, 1, (uint8_t)(n >> 8), (uint8_t)n, 1, 0};
        memcpy(b, head, sizeof head);
        n = n < sizeof head ? sizeof head : n;
    }
    raw_put(&g->raw, b, n);
}

static void say_half(struct guest *g)
{
    uint8_t b[FRAME_HEAD + 16] = {0};

    hapi_put32(b, 4 + 4096);
    hapi_put16(b + 4, HAPI_MSG_HELLO);
    raw_put(&g->raw, b, sizeof b);
}

static void begin(struct guest *g)
{
    struct hapi_err err;

    switch (g->kind) {
    case RESET:
        raw_close(&g->raw, true);
        gone(g);
        break;
    case SHUT:
        shutdown(g->raw.stream.fd, SHUT_WR);
        break;
    case UNREAD:
        raw_deaf(&g->raw, true);
        say_hellos(g);
        break;
    case HELLOS:
        say_hellos(g);
        break;
    case GARBAGE:
    case TLS_GARBAGE:
        say_junk(g, g->kind == TLS_GARBAGE);
        break;
    case HALF:
        say_half(g);
        break;
    case TLS_HALF: /* the first step sends the ClientHello; nobody takes a second one */
        hapi_stream_handshake(&g->raw.stream, &err);
        hapi_loop_watch_events(&g->raw.watch, 0);
        break;
    default:
        break;
    }
}

static const struct hapi_tls *tls_of(const struct flood *f, enum kind k)
{
    return k == TLS_WRONG ? &f->wrong : k == TLS_HALF || k == TLS_SILENT ? &f->right : NULL;
}

static void arrive(struct flood *f, struct guest *g)
{
    int64_t now = hapi_clock_ns();

    do
        g->kind = (enum kind)rng_below(&f->rng, KIND_COUNT);
    while (!f->tls && tls_of(f, g->kind));
    g->said = 0;
    g->byte_ns = now;
    /* Most do not stay; some would for longer than any deadline. */
    g->until_ns = now + (rng_one_in(&f->rng, 50) ? 7000 : rng_below(&f->rng, 600)) * HAPI_NS_PER_MS;
    f->begun++;
    f->of_kind[g->kind]++;
    if (raw_connect(&g->raw, &f->node, tls_of(f, g->kind))) {
        f->failed++;
        f->ended++;
        return;
    }
    f->most = ++f->now > f->most ? f->now : f->most;
    begin(g);
}

static void live(struct flood *f, struct guest *g)
{
    int64_t now = hapi_clock_ns();

    if (!g->raw.open) {
        if (f->begun < f->total)
            arrive(f, g);
        return;
    }
    if (g->kind == SLOW && now >= g->byte_ns && g->said < f->hello_n) {
        raw_put(&g->raw, f->hello + g->said++, 1);
        g->byte_ns = now + HAPI_NS_PER_S;
    }
    if (now < g->until_ns && f->begun < f->total)
        return;
    raw_close(&g->raw, rng_one_in(&f->rng, 2));
    gone(g);
}

static void options(struct flood *f, int argc, char **argv)
{
    static const struct option names[] = {{"key", 1, 0, 'k'},     {"wrong-key", 1, 0, 'w'},
                                          {"seed", 1, 0, 's'},    {"connections", 1, 0, 'n'},
                                          {"at-once", 1, 0, 'a'}, {0}};
    const char *key = NULL, *wrong = NULL;
    int c;

    *f = (struct flood){.rng = {1}, .total = 1000, .at_once = 300};
    while ((c = getopt_long(argc, argv, "", names, NULL)) != -1) {
        if (c == 'k')
            key = optarg;
        else if (c == 'w')
            wrong = optarg;
        else if (c == 's')
            f->rng.s = strtoull(optarg, NULL, 10);
        else if (c == 'n')
            f->total = (unsigned)atoi(optarg);
        else if (c == 'a')
            f->at_once = (unsigned)atoi(optarg);
        else
            optind = argc;
    }
    if (optind + 1 != argc || f->at_once == 0 || f->at_once > AT_ONCE_MAX || !key != !wrong) {
        fputs(usage, stderr);
        exit(2);
    }
    f->node = address_parse(argv[optind]);
    f->tls = tls_open(&f->right, key, false) && tls_open(&f->wrong, wrong, false);
}

static void report(const struct flood *f, double seconds)
{
    printf(
        "{\"seconds\":%.2f,\"connections\":%u,\"by_node\":%u,\"failed\":%u,\"most_at_once\":%u,\"kinds\":{",
        seconds, f->ended, f->by_node, f->failed, f->most);
    for (int k = 0; k < KIND_COUNT; k++)
        printf("%s\"%s\":%u", k ? "," : "", kind_names[k], f->of_kind[k]);
    printf("}}\n");
}

int main(int argc, char **argv)
{
    static struct flood f;
    struct hapi_err err = {0};

    signal(SIGPIPE, SIG_IGN);
    options(&f, argc, argv);
    fprintf(stderr, "seed %llu\n", (unsigned long long)f.rng.s);
    hapi_put32(f.hello, (uint32_t)(f.hello_n = hello_make(f.hello + FRAME_HEAD, 256, "client")) + 4);
    hapi_put16(f.hello + 4, HAPI_MSG_HELLO);
    f.hello_n += FRAME_HEAD;
    if (hapi_loop_open(&f.loop, 1024, &err)) {
        fprintf(stderr, "%s\n", err.text);
        return 1;
    }
    f.guests = calloc(f.at_once, sizeof *f.guests);
    REQUIRE(f.guests);
    for (unsigned i = 0; i < f.at_once; i++) {
        raw_init(&f.guests[i].raw, f.loop, &handler);
        f.guests[i].f = &f;
    }
    int64_t since = hapi_clock_ns();
    while (f.ended < f.total) {
        REQUIRE(hapi_loop_run_once(f.loop, HAPI_NS_PER_MS, NULL) == 0);
        for (unsigned i = 0; i < f.at_once; i++)
            live(&f, &f.guests[i]);
    }
    report(&f, 1e-9 * (double)(hapi_clock_ns() - since));
    for (unsigned i = 0; i < f.at_once; i++)
        raw_fini(&f.guests[i].raw);
    free(f.guests);
    tls_close(&f.right);
    tls_close(&f.wrong);
    hapi_loop_close(f.loop);
    return 0;
}
