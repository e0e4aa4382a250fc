/* hapi stat: what storage nodes are doing, once a second. */
#include <cjson/cJSON.h>
#include <getopt.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "ask.h"
#include "clock.h"
#include "cmd.h"

static const char help[] =
    "usage: hapi stat NODE... [--key FILE] [--interval S] [--once] [--json]\n\n"
    "What storage nodes (HOST:PORT) are doing: rates over the last interval.\n\n"
    "  --key FILE     pre-shared key (identity:hex)\n"
    "  --interval S   seconds between two looks [1]\n"
    "  --once         one look at the rates, then ends\n"
    "  --json         one line of JSON an interval: each node's counters, and rates\n"
    "  --help, --version\n\n"
    "clients: connected; requests: in service; kept: part of the images whose features the node had kept;\n"
    "busy: part of the time that compute threads work; wait: of a micro-batch, for a compute thread;\n"
    "bad: samples that could not be served, rejected: clients that broke the protocol, since the node\n"
    "started.\n\nexit codes: 0 ok, 1 failure (a node does not answer), 2 usage\n";

enum { NODES_MAX = 64, ANSWER_S = 5 };

struct looked {
    struct ask ask; /* first: its take() is given it */
    cJSON *now, *before;
    int64_t now_ns, before_ns;
};

/* ------------------------------------------------------------------ looking */

static int stat_take(struct ask *a, const void *body, size_t n, struct hapi_err *err)
{
    struct looked *l = (struct looked *)a;
    struct hapi_msg_text m;
    int rc = hapi_msg_text_decode(&m, body, n, err);

    if (rc)
        return rc;
    cJSON_Delete(l->before);
    l->before = l->now;
    l->before_ns = l->now_ns;
    l->now = cJSON_ParseWithLength(m.text.s, m.text.n);
    l->now_ns = hapi_clock_ns();
    return cJSON_IsObject(l->now) ? 0 : hapi_err_set(err, HAPI_EPROTO, 0, "its counters are no JSON");
}

/* A number of the counters, as "stage_s.wait"; 0 where the node does not say. */
static double number(const cJSON *o, const char *path)
{
    char key[64];

    for (size_t n; *path && o; path += n + (path[n] == '.')) {
        n = strcspn(path, ".");
        snprintf(key, sizeof key, "%.*s", (int)n, path);
        o = cJSON_GetObjectItemCaseSensitive(o, key);
    }
    return o && cJSON_IsNumber(o) ? o->valuedouble : 0;
}

static double change(const struct looked *l, const char *path)
{
    return number(l->now, path) - number(l->before, path);
}

struct rates {
    double images, kept, read_Bps, wire_Bps, busy, wait_s;
};

static struct rates rates_of(const struct looked *l)
{
    double s = 1e-9 * (double)(l->now_ns - l->before_ns), parts = change(l, "parts");
    double busy = change(l, "stage_s.decode") + change(l, "stage_s.compute") + change(l, "stage_s.convert");
    double threads = number(l->now, "limits.threads"), samples = change(l, "samples");

    return (struct rates){
        .images = change(l, "samples") / s,
        .kept = samples > 0 ? change(l, "features.hits") / samples : 0,
        .read_Bps = change(l, "read_bytes") / s,
        .wire_Bps = change(l, "wire_bytes") / s,
        .busy = threads > 0 ? fmin(1, busy / s / threads) : 0,
        .wait_s = parts > 0 ? change(l, "stage_s.wait") / parts : 0,
    };
}

/* ------------------------------------------------------------------ showing */

static void print_table(const struct looked *all, int n)
{
    if (isatty(STDOUT_FILENO))
        fputs("\033[H\033[J", stdout);
    printf("%-24s %8s %8s %9s %6s %10s %10s %6s %8s %6s %8s\n", "node", "clients", "requests", "images/s",
           "kept", "read MB/s", "wire MB/s", "busy", "wait ms", "bad", "rejected");
    for (int i = 0; i < n; i++) {
        const struct looked *l = &all[i];
        if (l->ask.over) {
            printf("%-24s %s\n", l->ask.node, l->ask.err.text);
            continue;
        }
        struct rates r = rates_of(l);
        printf("%-24s %8.0f %8.0f %9.1f %5.0f%% %10.2f %10.2f %5.0f%% %8.1f %6.0f %8.0f\n", l->ask.node,
               number(l->now, "clients"), number(l->now, "in_service"), r.images, 100 * r.kept,
               1e-6 * r.read_Bps, 1e-6 * r.wire_Bps, 100 * r.busy, 1e3 * r.wait_s,
               number(l->now, "bad_samples"), number(l->now, "rejected"));
    }
}

static void print_json(const struct looked *all, int n)
{
    cJSON *o = cJSON_CreateObject(), *list = cJSON_AddArrayToObject(o, "nodes");

    for (int i = 0; i < n; i++) {
        const struct looked *l = &all[i];
        cJSON *one = cJSON_CreateObject();
        cJSON_AddStringToObject(one, "node", l->ask.node);
        cJSON_AddItemToArray(list, one);
        if (l->ask.over) {
            cJSON_AddStringToObject(one, "error", l->ask.err.text);
            continue;
        }
        struct rates r = rates_of(l);
        cJSON *rates = cJSON_AddObjectToObject(one, "rates");
        cJSON_AddNumberToObject(rates, "images_per_s", r.images);
        cJSON_AddNumberToObject(rates, "kept", r.kept);
        cJSON_AddNumberToObject(rates, "read_Bps", r.read_Bps);
        cJSON_AddNumberToObject(rates, "wire_Bps", r.wire_Bps);
        cJSON_AddNumberToObject(rates, "busy", r.busy);
        cJSON_AddNumberToObject(rates, "wait_s", r.wait_s);
        cJSON_AddItemToObject(one, "counters", cJSON_Duplicate(l->now, 1));
    }
    char *text = cJSON_PrintUnformatted(o);
    puts(text ? text : "{}");
    cJSON_free(text);
    cJSON_Delete(o);
}

/* ------------------------------------------------------------------ the command */

struct options {
    const char *key;
    double interval_s;
    bool once, json;
};

/* Of all nodes at once. A node that is over stays in the table, with the reason. Returns how many answer. */
static int look(struct looked *all, int n)
{
    int64_t until = hapi_clock_ns() + ANSWER_S * HAPI_NS_PER_S;
    int answers = 0;

    for (int i = 0; i < n; i++) {
        struct hapi_err err = {0};
        int rc = ask_wait(&all[i].ask, until, &err);
        if (rc == HAPI_ETIMEDOUT && !all[i].ask.over) { /* it may answer later, but nobody waits for that */
            ask_close(&all[i].ask);
            all[i].ask.err = err;
        }
        answers += rc == 0;
    }
    return answers;
}

/* The connections need the loop meanwhile: heartbeats. */
static void pause_for(struct hapi_loop *loop, double seconds)
{
    int64_t until = hapi_clock_ns() + (int64_t)(seconds * 1e9), left;
    struct hapi_err err;

    while ((left = until - hapi_clock_ns()) > 0)
        if (hapi_loop_run_once(loop, left, &err))
            return;
}

static int watch(struct hapi_loop *loop, struct looked *all, int n, const struct options *o)
{
    int answers = look(all, n);

    while (answers) {
        pause_for(loop, o->interval_s);
        for (int i = 0; i < n; i++)
            ask_again(&all[i].ask);
        answers = look(all, n);
        if (o->json)
            print_json(all, n);
        else
            print_table(all, n);
        if (fflush(stdout) || o->once)
            break;
    }
    for (int i = 0; i < n; i++)
        if (all[i].ask.err.code) {
            struct hapi_err err = all[i].ask.err;
            cmd_fail("stat", &err);
        }
    return answers == n ? CMD_OK : CMD_FAILURE;
}

static int run(int n, char **nodes, const struct options *o)
{
    struct looked all[NODES_MAX] = {{.now = NULL}};
    struct hapi_keys *keys = NULL;
    struct hapi_loop *loop;
    struct hapi_err err = {0};

    if (o->key && hapi_keys_load(&keys, o->key, &err))
        return cmd_fail("stat", &err);
    if (hapi_loop_open(&loop, 256, &err)) {
        hapi_keys_free(keys);
        return cmd_fail("stat", &err);
    }
    for (int i = 0; i < n; i++) {
        all[i].ask = (struct ask){
            .node = nodes[i], .question = HAPI_MSG_STAT, .answer = HAPI_MSG_STAT_REPLY, .take = stat_take};
        ask_connect(&all[i].ask, loop, keys, &err);
    }
    int code = watch(loop, all, n, o);
    for (int i = 0; i < n; i++) {
        ask_close(&all[i].ask);
        cJSON_Delete(all[i].now);
        cJSON_Delete(all[i].before);
    }
    hapi_loop_close(loop);
    hapi_keys_free(keys);
    return code;
}

int cmd_stat(int argc, char **argv)
{
    static const struct option options[] = {
        {"key", required_argument, NULL, 'k'}, {"interval", required_argument, NULL, 'i'},
        {"once", no_argument, NULL, 'o'},      {"json", no_argument, NULL, 'j'},
        {"help", no_argument, NULL, 'h'},      {0}};
    struct options o = {.interval_s = 1};
    char *end;
    int c;

    opterr = 0;
    optind = 1;
    while ((c = getopt_long(argc, argv, ":h", options, NULL)) != -1) {
        switch (c) {
        case 'k':
            o.key = optarg;
            break;
        case 'i':
            o.interval_s = strtod(optarg, &end);
            if (end == optarg || *end || !(o.interval_s >= 0.05 && o.interval_s <= 3600))
                return cmd_usage("stat", "--interval takes seconds, 0.05 to 3600, not `%s`", optarg);
            break;
        case 'o':
            o.once = true;
            break;
        case 'j':
            o.json = true;
            break;
        case 'h':
            fputs(help, stdout);
            return CMD_OK;
        case ':':
            return cmd_usage("stat", "%s needs a value", argv[optind - 1]);
        default:
            return cmd_usage("stat", "no option `%s`", argv[optind - 1]);
        }
    }
    if (optind == argc)
        return cmd_usage("stat", "no node was given");
    if (argc - optind > NODES_MAX)
        return cmd_usage("stat", "at most %d nodes", NODES_MAX);
    return run(argc - optind, argv + optind, &o);
}
