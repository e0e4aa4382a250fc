/* A client with the right key and no manners. Prints what it did as one JSON object; exits 1 when the node
 * left a session without an answer. */
#include <getopt.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

#include "hostile_client.h"

static const char usage[] =
    "usage: hostile_client HOST:PORT --dataset NAME --object NAME [--key FILE] [--seed N]\n"
    "           [--control N] [--data N] [--sessions N] [--fetchers N] [--deaf N]\n\n"
    "Sends that many messages over that many sessions at once. --deaf: sessions that read no answer.\n"
    "--strangers: so many idle on each data port before its own client comes.\n"
    "--vandals: bytes under libfabric's protocol, too. No test does it: the answers may end this process.\n"
    "--hog: each fetcher asks for much and takes nothing of it, but lives; prints `hogging`, until it is "
    "killed.\n";

enum { SESSIONS_MAX = 64 };

struct options {
    const char *node, *key, *dataset, *object;
    uint64_t seed, control, data;
    unsigned sessions, fetchers, deaf;
    unsigned strangers;
    bool hog, vandals;
};

static struct options parse(int argc, char **argv)
{
    static const struct option names[] = {{"key", 1, 0, 'k'},
                                          {"dataset", 1, 0, 'd'},
                                          {"object", 1, 0, 'o'},
                                          {"seed", 1, 0, 's'},
                                          {"control", 1, 0, 'c'},
                                          {"data", 1, 0, 'D'},
                                          {"sessions", 1, 0, 'n'},
                                          {"fetchers", 1, 0, 'f'},
                                          {"deaf", 1, 0, 'q'},
                                          {"hog", 0, 0, 'h'},
                                          {"vandals", 0, 0, 'v'},
                                          {"strangers", 1, 0, 'S'},
                                          {0}};
    struct options o = {.seed = 1, .control = 10000, .data = 1000, .sessions = 8, .fetchers = 4};
    int c;

    while ((c = getopt_long(argc, argv, "", names, NULL)) != -1)
        switch (c) {
        case 'k':
            o.key = optarg;
            break;
        case 'd':
            o.dataset = optarg;
            break;
        case 'o':
            o.object = optarg;
            break;
        case 's':
            o.seed = strtoull(optarg, NULL, 10);
            break;
        case 'c':
            o.control = strtoull(optarg, NULL, 10);
            break;
        case 'D':
            o.data = strtoull(optarg, NULL, 10);
            break;
        case 'n':
            o.sessions = (unsigned)atoi(optarg);
            break;
        case 'f':
            o.fetchers = (unsigned)atoi(optarg);
            break;
        case 'q':
            o.deaf = (unsigned)atoi(optarg);
            break;
        case 'v':
            o.vandals = true;
            break;
        case 'S':
            o.strangers = (unsigned)atoi(optarg);
            break;
        case 'h':
            o.hog = true;
            break;
        default:
            fputs(usage, stderr);
            exit(2);
        }
    if (optind + 1 != argc || !o.dataset || !o.object || o.sessions + o.deaf > SESSIONS_MAX ||
        o.fetchers > SESSIONS_MAX || o.strangers > STRANGERS_MAX) {
        fputs(usage, stderr);
        exit(2);
    }
    o.node = argv[optind];
    return o;
}

static void war_open(struct war *w, const struct options *o)
{
    struct hapi_fabric_options opt = {.max_recv = 1, .max_ops = 64, .max_imm = 1024};
    struct hapi_err err = {0};

    if (hapi_loop_open(&w->loop, 1024, &err) ||
        hapi_fabric_open(&w->fabric, w->loop, "ofi", NULL, &opt, &err)) {
        fprintf(stderr, "%s\n", err.text);
        exit(1);
    }
    w->node = address_parse(o->node);
    tls_open(&w->tls, o->key, false);
    w->known.dataset = (struct hapi_str){o->dataset, (uint32_t)strlen(o->dataset)};
    w->known.object = (struct hapi_str){o->object, (uint32_t)strlen(o->object)};
    w->strangers = o->strangers;
    w->vandals = o->vandals;
    w->patience_ns = 20 * HAPI_NS_PER_S;
}

int war_connect(struct war *w, struct raw *r)
{
    int64_t now = hapi_clock_ns();
    int rc = raw_connect(r, &w->node, &w->tls);

    if (rc == 0 || w->reached_ns == 0) {
        w->reached_ns = now;
    } else if (now - w->reached_ns > 3 * HAPI_NS_PER_S) {
        fprintf(stderr, "the node is gone: %s\n", strerror(-rc));
        exit(1);
    }
    return rc;
}

static void fight(struct war *w, const struct options *o)
{
    struct talker *talkers[SESSIONS_MAX];
    struct fetcher *fetchers[SESSIONS_MAX];
    unsigned n = o->control ? o->sessions + o->deaf : 0, m = o->data ? o->fetchers : 0;

    for (unsigned i = 0; i < n; i++)
        talkers[i] = talker_new(w, o->seed * 1000003 + i, i >= o->sessions);
    for (unsigned i = 0; i < m; i++)
        fetchers[i] = fetcher_new(w, o->seed * 1000033 + i);
    while (w->tally.control < o->control || w->tally.data < o->data) {
        REQUIRE(hapi_loop_run_once(w->loop, HAPI_NS_PER_MS, NULL) == 0);
        for (unsigned i = 0; w->tally.control < o->control && i < n; i++)
            talker_step(talkers[i]);
        for (unsigned i = 0; w->tally.data < o->data && i < m; i++)
            fetcher_step(fetchers[i]);
    }
    for (unsigned i = 0; i < n; i++)
        talker_free(talkers[i]);
    for (unsigned i = 0; i < m; i++)
        fetcher_free(fetchers[i]);
}

/* Control channels that beat, data connections that nobody reads. */
static void hog(struct war *w, const struct options *o)
{
    struct fetcher *f[SESSIONS_MAX];

    w->hog = true;
    for (unsigned i = 0; i < o->fetchers; i++)
        f[i] = fetcher_new(w, o->seed + i);
    while (w->hogging < o->fetchers) {
        for (unsigned i = 0; i < o->fetchers; i++)
            fetcher_step(f[i]);
        REQUIRE(hapi_loop_run_once(w->loop, HAPI_NS_PER_MS, NULL) == 0);
    }
    printf("hogging\n");
    fflush(stdout);
    for (;;) {
        for (unsigned i = 0; i < o->fetchers; i++)
            fetcher_beat(f[i]);
        usleep(200000);
    }
}

int main(int argc, char **argv)
{
    struct options o = parse(argc, argv);
    struct war w = {0};
    const struct tally *t = &w.tally;

    signal(SIGPIPE, SIG_IGN);
    fprintf(stderr, "seed %llu\n", (unsigned long long)o.seed);
    war_open(&w, &o);
    if (o.hog)
        hog(&w, &o);
    int64_t since = hapi_clock_ns();
    fight(&w, &o);
    printf("{\"seed\":%llu,\"seconds\":%.2f,\"control\":%llu,\"data\":%llu,\"spoilt\":%llu,\"sessions\":%llu,"
           "\"connections\":%llu,\"ended\":%llu,\"refused\":%llu,\"lost\":%llu,\"stuck\":%llu,\"deaf\":%llu,"
           "\"slowest_open_ms\":%.1f}\n",
           (unsigned long long)o.seed, 1e-9 * (double)(hapi_clock_ns() - since),
           (unsigned long long)t->control, (unsigned long long)t->data, (unsigned long long)t->spoilt,
           (unsigned long long)t->sessions, (unsigned long long)t->connections, (unsigned long long)t->ended,
           (unsigned long long)t->refused, (unsigned long long)t->lost, (unsigned long long)t->stuck,
           (unsigned long long)t->deaf, 1e-6 * (double)t->slowest_ns);
    tls_close(&w.tls);
    hapi_fabric_close(w.fabric);
    hapi_loop_close(w.loop);
    return t->stuck != 0;
}
