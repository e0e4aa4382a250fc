#include <errno.h>
#include <getopt.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench.h"
#include "control.h"

enum { END_WITH = 1 }; /* what is added to an exit code */

static int usage(const char *program, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static int usage(const char *program, const char *fmt, ...)
{
    va_list ap;

    fprintf(stderr, "%s: ", program);
    va_start(ap, fmt);
    vfprintf(stderr, fmt, ap);
    va_end(ap);
    fprintf(stderr, " (see %s --help)\n", program);
    return BENCH_USAGE + END_WITH;
}

/* "65536", "64K", "16M"; false: not a number from min to max. */
static bool number(const char *s, double min, double max, double *out)
{
    char *end;

    errno = 0;
    double v = strtod(s, &end);
    if (end == s || errno)
        return false;
    if (*end == 'K' || *end == 'k') {
        v *= 1024;
        end++;
    } else if (*end == 'M' || *end == 'm') {
        v *= 1 << 20;
        end++;
    }
    if (*end || !(v >= min && v <= max))
        return false;
    *out = v;
    return true;
}

static bool sizes_parse(struct bench_options *o, const char *list)
{
    char copy[512], *save = NULL;

    if (snprintf(copy, sizeof copy, "%s", list) >= (int)sizeof copy)
        return false;
    o->n_sizes = 0;
    for (char *t = strtok_r(copy, ",", &save); t; t = strtok_r(NULL, ",", &save)) {
        double v;
        if (o->n_sizes == BENCH_SIZES_MAX || !number(t, 8, BENCH_SIZE_MAX, &v))
            return false;
        o->sizes[o->n_sizes++] = (size_t)v;
    }
    return o->n_sizes > 0;
}

enum {
    O_SERVE = 256,
    O_PEER,
    O_TRANSPORT,
    O_DEVICE,
    O_GID,
    O_MTU,
    O_TOS,
    O_SL,
    O_SIZES,
    O_SECONDS,
    O_ROUNDS,
    O_COUNT,
    O_DEPTH,
    O_BUSY,
    O_CHECKSUM,
    O_ONLY,
    O_JSON,
    O_HELP,
};

static const struct option options[] = {{"serve", required_argument, NULL, O_SERVE},
                                        {"peer", required_argument, NULL, O_PEER},
                                        {"sizes", required_argument, NULL, O_SIZES},
                                        {"seconds", required_argument, NULL, O_SECONDS},
                                        {"rounds", required_argument, NULL, O_ROUNDS},
                                        {"count", required_argument, NULL, O_COUNT},
                                        {"depth", required_argument, NULL, O_DEPTH},
                                        {"busy-poll-us", required_argument, NULL, O_BUSY},
                                        {"only", required_argument, NULL, O_ONLY},
                                        {"json", optional_argument, NULL, O_JSON},
                                        {"help", no_argument, NULL, O_HELP},
                                        /* from here on not for the bare loops */
                                        {"transport", required_argument, NULL, O_TRANSPORT},
                                        {"device", required_argument, NULL, O_DEVICE},
                                        {"gid-index", required_argument, NULL, O_GID},
                                        {"mtu", required_argument, NULL, O_MTU},
                                        {"tos", required_argument, NULL, O_TOS},
                                        {"sl", required_argument, NULL, O_SL},
                                        {"checksum", no_argument, NULL, O_CHECKSUM},
                                        {0}};
enum { COMMON_OPTIONS = 11 };

static const char *const takes_size = "sizes in bytes from 8 to 16M, with K or M, separated by commas";

/* An option that is a number: NULL, or what it must be. */
static const char *number_option(struct bench_options *o, int c)
{
    double v;

#define TAKE(min, max, lvalue, type, what)                                                                   \
    if (!number(optarg, min, max, &v))                                                                       \
        return what;                                                                                         \
    (lvalue) = (type)v;                                                                                      \
    return NULL

    switch (c) {
    case O_SECONDS:
        TAKE(0.01, 600, o->seconds, double, "seconds, 0.01 to 600");
    case O_ROUNDS:
        TAKE(1, BENCH_ROUNDS_MAX, o->rounds, int, "a number of rounds, 1 to 99");
    case O_COUNT:
        TAKE(1, 1e12, o->count, uint64_t, "a number of writes, at least 1");
    case O_DEPTH:
        TAKE(1, BENCH_DEPTH_MAX, o->depth, uint32_t, "a number of outstanding writes, 1 to 64");
    case O_BUSY:
        TAKE(0, 1e6, o->busy_poll_us, uint32_t, "microseconds, 0 to 1000000");
    case O_GID:
        TAKE(0, 255, o->path.gid_index, int, "an index of the GID table, 0 to 255");
    case O_MTU:
        TAKE(256, 4096, o->path.mtu, uint32_t, "256, 512, 1024, 2048 or 4096 bytes");
    case O_TOS:
        TAKE(0, 255, o->path.tos, int, "a traffic class, 0 to 255");
    default:
        TAKE(0, 15, o->path.sl, int, "a service level, 0 to 15");
    }
#undef TAKE
}

static const char *text_option(struct bench_options *o, int c)
{
    switch (c) {
    case O_SERVE:
    case O_PEER:
        o->serve = c == O_SERVE;
        if (strchr(optarg, ':') || c == O_PEER)
            return hapi_address_parse(optarg, o->host, &o->port, NULL) || (c == O_PEER && !o->port)
                       ? "HOST:PORT"
                       : NULL;
        return snprintf(o->host, sizeof o->host, "%s", optarg) < (int)sizeof o->host ? NULL : "HOST[:PORT]";
    case O_TRANSPORT:
        o->transport = optarg;
        return !strcmp(optarg, "ofi") || !strcmp(optarg, "verbs") ? NULL : "ofi or verbs";
    case O_DEVICE:
        o->device = optarg;
        return NULL;
    case O_SIZES:
        return sizes_parse(o, optarg) ? NULL : takes_size;
    case O_ONLY:
        o->what = !strcmp(optarg, "latency") ? BENCH_LATENCY : BENCH_GOODPUT;
        return o->what == BENCH_LATENCY || !strcmp(optarg, "goodput") ? NULL : "goodput or latency";
    case O_CHECKSUM:
        o->checksum = true;
        return NULL;
    case O_JSON:
        o->json = true;
        o->json_path = optarg;
        return NULL;
    default:
        return number_option(o, c);
    }
}

static int finish(struct bench_options *o, int argc, char **argv)
{
    struct hapi_err why = {0};

    if (o->json && !o->json_path && optind < argc)
        o->json_path = argv[optind++]; /* --json FILE */
    if (optind < argc)
        return usage(o->program, "`%s` is not understood", argv[optind]);
    if (!*o->host)
        return usage(o->program, "--serve HOST[:PORT] or --peer HOST:PORT is needed");
    if (!o->transport)
        o->transport = hapi_fabric_probe("verbs", &why) == 0 ? "verbs" : "ofi";
    return 0;
}

int bench_options_parse(struct bench_options *o, int argc, char **argv, const char *program,
                        const char *transport, const char *help)
{
    struct option mine[sizeof options / sizeof *options];
    int c;

    *o = (struct bench_options){.program = program,
                                .transport = transport,
                                .path = HAPI_FABRIC_PATH_ANY,
                                .seconds = 1,
                                .rounds = 5,
                                .depth = 16};
    for (size_t s = 4096; s <= BENCH_SIZE_MAX; s *= 4)
        o->sizes[o->n_sizes++] = s;
    memcpy(mine, options, sizeof options);
    if (transport)
        mine[COMMON_OPTIONS] = (struct option){0};
    opterr = 0;
    optind = 1;
    while ((c = getopt_long(argc, argv, ":h", mine, NULL)) != -1) {
        if (c == O_HELP || c == 'h') {
            fputs(help, stdout);
            return BENCH_OK + END_WITH;
        }
        if (c == ':')
            return usage(program, "%s needs a value", argv[optind - 1]);
        if (c == '?')
            return usage(program, "no option `%s`", argv[optind - 1]);
        const char *takes = text_option(o, c);
        if (takes)
            return usage(program, "%s is not understood: it takes %s", argv[optind - 1], takes);
    }
    return finish(o, argc, argv);
}
