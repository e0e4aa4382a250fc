/*
 * Who did what when, on both tiers, for a viewer of Chrome's trace events (ui.perfetto.dev). What nodes do is
 * read from the records of their parts:
 *
 *     node:     read | wait | decode | compute | convert | on the link ──> here
 *
 * Events are kept until the end: what happened side by side is laid in lanes then, and the nodes' clocks are
 * known as well as they ever will be.
 */
#include "trace.h"

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "catalog.h"
#include "clock.h"
#include "public_error.h"

enum { EVENTS_MAX = 8 << 20, LANES_MAX = 512 };

/* X(NAME, process: of a node, lanes' name, event's name). Lanes of a process are in this order. */
#define KINDS(X)                                                                                             \
    X(CALLER, false, "caller", NULL)                                                                         \
    X(WAIT, false, "caller", "wait for a batch")                                                             \
    X(JOB, false, "compute thread", "rest of the network")                                                   \
    X(REQUEST, false, "request", "request")                                                                  \
    X(PART, true, "micro-batch", NULL)                                                                       \
    X(LINK, true, "link", "on the link")

enum kind {
#define X(kind, node, lanes, name) kind,
    KINDS(X)
#undef X
        KINDS_N
};

static const struct {
    bool node;
    const char *lanes, *name;
} kinds[] = {
#define X(kind, node, lanes, name) [kind] = {node, lanes, name},
    KINDS(X)
#undef X
};

/* Of a micro-batch, one after the other, and that the record says how long they took. */
enum { STAGES = 5 };
static const char *const stages[STAGES] = {"read", "wait for a thread", "decode", "compute", "convert"};

struct event {
    int64_t begin, end; /* of a PART by the node's clock; a LINK's end by ours */
    uint64_t generation;
    int64_t stage_ns[STAGES]; /* PART */
    uint64_t bytes;
    const char *name; /* CALLER */
    uint32_t samples;
    uint8_t kind, node;
    uint16_t lane;
};

struct clock {
    char name[HAPI_NAME_MAX + 16];
    int64_t offset_ns, rtt_ns; /* rtt_ns 0: not known */
};

struct hapi_trace {
    pthread_mutex_t lock;
    FILE *file;
    char *path;
    struct event *events;
    size_t n, room;
    uint64_t lost; /* for want of memory */
    struct clock nodes[HAPI_NODES_MAX];
    uint32_t n_nodes;
    int64_t started_ns;
};

int hapi_trace_open(struct hapi_trace **out, const char *path, struct hapi_error *error)
{
    struct hapi_trace *t = calloc(1, sizeof *t);
    struct hapi_err err = {0};

    if (!t) {
        hapi_err_set(&err, HAPI_ENOMEM, 0, "no memory for a trace");
        return public_error(error, &err);
    }
    t->path = strdup(path);
    t->file = fopen(path, "we");
    if (!t->file || !t->path) {
        hapi_err_errno(&err, errno, "cannot write %s", path);
        if (t->file)
            fclose(t->file);
        free(t->path);
        free(t);
        return public_error(error, &err);
    }
    pthread_mutex_init(&t->lock, NULL);
    t->started_ns = hapi_clock_ns();
    *out = t;
    return 0;
}

/* ------------------------------------------------------------------ events */

static void add(struct hapi_trace *t, struct event e)
{
    if (!t)
        return;
    pthread_mutex_lock(&t->lock);
    if (t->n == t->room && t->room < EVENTS_MAX) {
        size_t room = t->room ? 2 * t->room : 4096;
        struct event *more = realloc(t->events, room * sizeof *more);
        t->events = more ? more : t->events;
        t->room = more ? room : t->room;
    }
    if (t->n < t->room)
        t->events[t->n++] = e;
    else
        t->lost++;
    pthread_mutex_unlock(&t->lock);
}

void hapi_trace_span(struct hapi_trace *t, const char *name, int64_t begin_ns, int64_t end_ns)
{
    add(t, (struct event){.kind = CALLER, .name = name, .begin = begin_ns, .end = end_ns});
}

void trace_wait(struct hapi_trace *t, int64_t began, int64_t ended)
{
    add(t, (struct event){.kind = WAIT, .begin = began, .end = ended});
}

void trace_job(struct hapi_trace *t, int worker, uint64_t generation, uint32_t n, int64_t began,
               int64_t ended)
{
    add(t, (struct event){.kind = JOB,
                          .lane = (uint16_t)(worker < LANES_MAX ? worker : LANES_MAX - 1),
                          .generation = generation,
                          .samples = n,
                          .begin = began,
                          .end = ended});
}

void trace_request(struct hapi_trace *t, uint32_t node, uint64_t generation, uint32_t n, int64_t began)
{
    add(t, (struct event){.kind = REQUEST,
                          .node = (uint8_t)node,
                          .generation = generation,
                          .samples = n,
                          .begin = began,
                          .end = hapi_clock_ns()});
}

void trace_part(struct hapi_trace *t, uint32_t node, const struct hapi_record *r, uint64_t bytes)
{
    const int64_t hour = 3600 * HAPI_NS_PER_S; /* a node can say anything */
    struct event e = {.kind = PART, .node = (uint8_t)node, .generation = r->generation, .samples = r->count};
    const uint64_t ns[STAGES] = {r->stage_ns[1], r->wait_us * (uint64_t)HAPI_NS_PER_US, r->stage_ns[2],
                                 r->stage_ns[3], r->stage_ns[4]};

    if (!t || r->stage_ns[5] > INT64_MAX)
        return;
    e.begin = e.end = (int64_t)r->stage_ns[5];
    for (int i = 0; i < STAGES; i++) {
        e.stage_ns[i] = ns[i] < (uint64_t)hour ? (int64_t)ns[i] : hour;
        e.begin -= e.stage_ns[i];
    }
    add(t, e);
    e.kind = LINK;
    e.begin = e.end;
    e.end = hapi_clock_ns();
    e.bytes = bytes;
    add(t, e);
}

uint32_t trace_node(struct hapi_trace *t, const char *name)
{
    uint32_t i = 0;

    if (!t)
        return 0;
    pthread_mutex_lock(&t->lock);
    while (i < t->n_nodes && strcmp(t->nodes[i].name, name))
        i++;
    if (i == t->n_nodes && i < HAPI_NODES_MAX)
        snprintf(t->nodes[t->n_nodes++].name, sizeof t->nodes[i].name, "%s", name);
    pthread_mutex_unlock(&t->lock);
    return i < HAPI_NODES_MAX ? i : HAPI_NODES_MAX - 1;
}

void trace_clock(struct hapi_trace *t, uint32_t node, int64_t offset_ns, int64_t rtt_ns)
{
    if (!t)
        return;
    pthread_mutex_lock(&t->lock);
    struct clock *c = &t->nodes[node];
    if (!c->rtt_ns || rtt_ns <= c->rtt_ns) {
        c->rtt_ns = rtt_ns;
        c->offset_ns = offset_ns;
    }
    pthread_mutex_unlock(&t->lock);
}

/* ------------------------------------------------------------------ lanes */

static int by_begin(const void *a, const void *b)
{
    const struct event *x = a, *y = b;

    if (x->begin != y->begin)
        return x->begin < y->begin ? -1 : 1;
    return (x->end < y->end) - (x->end > y->end);
}

/* All by our clock, in order; without those of a node whose clock nobody knows. */
static void events_align(struct hapi_trace *t)
{
    size_t kept = 0;

    for (size_t i = 0; i < t->n; i++) {
        struct event e = t->events[i];
        const struct clock *c = &t->nodes[e.node];
        if (kinds[e.kind].node) {
            if (!c->rtt_ns)
                continue;
            e.begin -= c->offset_ns;
            e.end -= e.kind == PART ? c->offset_ns : 0;
        }
        e.end = e.end > e.begin ? e.end : e.begin;
        t->events[kept++] = e;
    }
    t->n = kept;
    if (kept)
        qsort(t->events, kept, sizeof *t->events, by_begin);
}

/* The first lane that is free when it begins; a compute thread is a lane. */
static void lanes_give(struct hapi_trace *t, int64_t *free_at)
{
    for (size_t i = 0; i < t->n; i++) {
        struct event *e = &t->events[i];
        uint32_t process = kinds[e->kind].node ? 1 + e->node : 0;
        int64_t *at = free_at + ((size_t)process * KINDS_N + e->kind) * LANES_MAX;
        if (e->kind == JOB || e->kind == CALLER || e->kind == WAIT)
            continue;
        while (e->lane < LANES_MAX - 1 && at[e->lane] > e->begin)
            e->lane++;
        at[e->lane] = e->end;
    }
}

/* ------------------------------------------------------------------ writing */

static uint32_t thread_id(const struct event *e)
{
    uint32_t group = e->kind == WAIT ? CALLER : e->kind;

    return 1 + group * LANES_MAX + e->lane;
}

/* What comes from elsewhere, in a JSON string. */
static void text_write(FILE *f, const char *s)
{
    for (; *s; s++)
        if (*s == '"' || *s == '\\' || (unsigned char)*s < ' ')
            fprintf(f, "\\u%04x", (unsigned)*s);
        else
            fputc(*s, f);
}

static void slice_write(const struct hapi_trace *t, const struct event *e, const char *name, int64_t begin,
                        int64_t ns)
{
    fprintf(t->file, ",\n{\"ph\":\"X\",\"pid\":%d,\"tid\":%u,\"ts\":%.3f,\"dur\":%.3f,\"name\":\"",
            kinds[e->kind].node ? 2 + e->node : 1, thread_id(e), 1e-3 * (double)(begin - t->started_ns),
            1e-3 * (double)ns);
    text_write(t->file, name);
    fputs("\",\"args\":{", t->file);
    if (e->generation)
        fprintf(t->file, "\"request\":%llu,\"samples\":%u", (unsigned long long)(e->generation & UINT32_MAX),
                e->samples);
    if (e->kind == LINK)
        fprintf(t->file, ",\"bytes\":%llu", (unsigned long long)e->bytes);
    fputs("}}", t->file);
}

static void event_write(const struct hapi_trace *t, const struct event *e)
{
    char name[64];
    int64_t at = e->begin;

    if (e->kind != PART) {
        slice_write(t, e, e->kind == CALLER ? e->name : kinds[e->kind].name, e->begin, e->end - e->begin);
        return;
    }
    snprintf(name, sizeof name, "%u samples", e->samples);
    slice_write(t, e, name, e->begin, e->end - e->begin);
    for (int i = 0; i < STAGES; at += e->stage_ns[i++])
        if (e->stage_ns[i])
            slice_write(t, e, stages[i], at, e->stage_ns[i]);
}

static void name_write(const struct hapi_trace *t, const char *what, int pid, uint32_t tid, const char *name)
{
    fprintf(t->file, "%s\n{\"ph\":\"M\",\"pid\":%d,\"tid\":%u,\"name\":\"%s\",\"args\":{\"name\":\"",
            pid == 1 && tid == 0 ? "" : ",", pid, tid, what);
    text_write(t->file, name);
    fputs("\"}}", t->file);
}

/* Each lane once. */
static void names_write(const struct hapi_trace *t, uint8_t *named)
{
    char name[64];

    name_write(t, "process_name", 1, 0, "compute node");
    for (uint32_t i = 0; i < t->n_nodes; i++) {
        char process[sizeof t->nodes[i].name + 16];
        snprintf(process, sizeof process, "storage node %s", t->nodes[i].name);
        name_write(t, "process_name", (int)(2 + i), 0, process);
    }
    for (size_t i = 0; i < t->n; i++) {
        const struct event *e = &t->events[i];
        int pid = kinds[e->kind].node ? 2 + e->node : 1;
        uint8_t *done = &named[(size_t)pid * (1 + KINDS_N * LANES_MAX) + thread_id(e)];
        if (*done)
            continue;
        *done = 1;
        if (e->kind == CALLER || e->kind == WAIT)
            snprintf(name, sizeof name, "caller");
        else
            snprintf(name, sizeof name, "%s %u", kinds[e->kind].lanes, e->lane);
        name_write(t, "thread_name", pid, thread_id(e), name);
    }
}

static int trace_write(struct hapi_trace *t, struct hapi_err *err)
{
    size_t processes = 2 + t->n_nodes;
    int64_t *free_at = calloc(processes * KINDS_N * LANES_MAX, sizeof *free_at);
    uint8_t *named = calloc(processes, 1 + KINDS_N * LANES_MAX);
    int rc = 0;

    if (!free_at || !named) {
        rc = hapi_err_set(err, HAPI_ENOMEM, 0, "no memory to write %s", t->path);
    } else {
        events_align(t);
        lanes_give(t, free_at);
        fprintf(t->file, "{\"displayTimeUnit\":\"ms\",\"otherData\":{\"lost\":%llu},\"traceEvents\":[",
                (unsigned long long)t->lost);
        names_write(t, named);
        for (size_t i = 0; i < t->n; i++)
            event_write(t, &t->events[i]);
        if (fputs("\n]}\n", t->file) < 0 || ferror(t->file))
            rc = hapi_err_errno(err, errno, "cannot write %s", t->path);
    }
    free(free_at);
    free(named);
    return rc;
}

int hapi_trace_close(struct hapi_trace *t, struct hapi_error *error)
{
    struct hapi_err err = {0};

    if (!t)
        return 0;
    trace_write(t, &err);
    if (fclose(t->file) && !err.code)
        hapi_err_errno(&err, errno, "cannot write %s", t->path);
    pthread_mutex_destroy(&t->lock);
    free(t->events);
    free(t->path);
    free(t);
    return err.code ? public_error(error, &err) : 0;
}
