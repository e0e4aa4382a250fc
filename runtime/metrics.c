#include "metrics.h"

#include <errno.h>
#include <microhttpd.h>
#include <netdb.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "clock.h"
#include "log.h"
#include "runtime.h"

enum { CONNECTIONS = 16, TIMEOUT_S = 5, ROUNDS = 16 };

const char *const hapi_metric_stage_names[] = {
#define X(stage, name) [stage] = name,
    HAPI_METRIC_STAGES(X)
#undef X
};

struct hapi_metrics {
    struct hapi_watch watch;
    struct hapi_timer tick; /* connections that say nothing are closed in time */
    struct hapi_rt *rt;
    struct MHD_Daemon *daemon;
    int listener;
};

/* ------------------------------------------------------------------ what is counted */

void hapi_histogram_add(struct hapi_histogram *h, int64_t ns)
{
    int64_t most = 100 * HAPI_NS_PER_US;

    h->n++;
    h->ns += ns > 0 ? (uint64_t)ns : 0;
    for (int i = 0; i < HAPI_HISTOGRAM_BUCKETS; i++, most *= 2)
        if (ns <= most) {
            h->within[i]++;
            return;
        }
}

/* ------------------------------------------------------------------ the text */

static void head(FILE *f, const char *name, const char *type, const char *help)
{
    fprintf(f, "# HELP hapi_%s %s\n# TYPE hapi_%s %s\n", name, help, name, type);
}

static void one(FILE *f, const char *name, const char *type, const char *help, double v)
{
    head(f, name, type, help);
    fprintf(f, "hapi_%s %.17g\n", name, v);
}

/* A label's value: what a key file names may hold anything. */
static void label(FILE *f, const char *s)
{
    for (; *s; s++)
        if (*s == '\n')
            fputs("\\n", f);
        else
            fprintf(f, *s == '"' || *s == '\\' ? "\\%c" : "%c", *s);
}

static void counters_text(FILE *f, const struct hapi_rt *rt)
{
    const struct hapi_counters *c = &rt->counters;
    uint64_t busy = 0;

    for (int i = HAPI_METRIC_DECODE; i <= HAPI_METRIC_CONVERT; i++)
        busy += c->stage[i].ns;
    one(f, "sessions_total", "counter", "Clients that came.", (double)c->sessions);
    one(f, "requests_total", "counter", "Requests taken into service.", (double)c->requests);
    one(f, "parts_total", "counter", "Micro-batches sent.", (double)c->parts);
    one(f, "samples_total", "counter", "Samples served.", (double)c->samples);
    one(f, "bad_samples_total", "counter", "Samples that could not be served.", (double)c->bad_samples);
    one(f, "read_bytes_total", "counter", "Bytes read from the store.", (double)c->read_bytes);
    one(f, "wire_bytes_total", "counter", "Bytes written to clients.", (double)c->wire_bytes);
    one(f, "rejected_total", "counter", "Clients that broke the protocol.", (double)c->rejected);
    one(f, "device_errors_total", "counter", "Runs that failed on the GPU.", (double)c->device_errors);
    one(f, "compute_threads", "gauge", "Compute threads.", hapi_pool_threads(rt->pool));
    one(f, "compute_busy_seconds_total", "counter",
        "Decoding, network and conversion, of all threads together.", 1e-9 * (double)busy);
}

static void stages_text(FILE *f, const struct hapi_rt *rt)
{
    head(f, "stage_seconds", "histogram",
         "Time of a micro-batch: in the queue, read, waiting for a thread, decoded, computed, converted, "
         "sent.");
    for (int s = 0; s < HAPI_METRIC_STAGES_N; s++) {
        const struct hapi_histogram *h = &rt->counters.stage[s];
        const char *name = hapi_metric_stage_names[s];
        uint64_t sum = 0;
        double most = 1e-4;
        for (int i = 0; i < HAPI_HISTOGRAM_BUCKETS; i++, most *= 2) {
            sum += h->within[i];
            fprintf(f, "hapi_stage_seconds_bucket{stage=\"%s\",le=\"%g\"} %llu\n", name, most,
                    (unsigned long long)sum);
        }
        fprintf(f, "hapi_stage_seconds_bucket{stage=\"%s\",le=\"+Inf\"} %llu\n", name,
                (unsigned long long)h->n);
        fprintf(f, "hapi_stage_seconds_sum{stage=\"%s\"} %.9f\n", name, 1e-9 * (double)h->ns);
        fprintf(f, "hapi_stage_seconds_count{stage=\"%s\"} %llu\n", name, (unsigned long long)h->n);
    }
}

/* Bytes that the process has in memory; 0: nobody knows. */
static double resident(void)
{
    unsigned long long all, pages = 0;
    FILE *f = fopen("/proc/self/statm", "re");

    if (f && fscanf(f, "%llu %llu", &all, &pages) != 2)
        pages = 0;
    if (f)
        fclose(f);
    return (double)pages * (double)sysconf(_SC_PAGESIZE);
}

static void state_text(FILE *f, const struct hapi_rt *rt)
{
    static const char *const stages[] = {"free", "read", "compute", "send"};
    uint32_t batches[4] = {0}, sessions = 0, requests = 0;
    struct hapi_device_usage gpu;

    for (const struct hapi_session *s = rt->sessions; s; s = s->next) {
        sessions += s->control != NULL;
        requests += s->in_service;
    }
    for (uint32_t i = 0; i < rt->cfg.batches; i++)
        batches[rt->batches[i].stage]++;
    one(f, "sessions", "gauge", "Clients that are connected.", sessions);
    one(f, "requests", "gauge", "Requests in service.", requests);
    head(f, "micro_batches", "gauge",
         "Micro-batches by where they are; `compute` counts those that wait for a thread.");
    for (int i = 0; i < 4; i++)
        fprintf(f, "hapi_micro_batches{stage=\"%s\"} %u\n", stages[i], batches[i]);
    head(f, "memory_bytes", "gauge",
         "Memory: of the process; registered buffers; models, weights and plans, and what there is for them; "
         "of "
         "a GPU, for plans and weights.");
    fprintf(f, "hapi_memory_bytes{kind=\"resident\"} %.0f\nhapi_memory_bytes{kind=\"slab\"} %zu\n",
            resident(), rt->slab.size);
    struct hapi_models_usage u = hapi_runtime_usage(rt);
    fprintf(f, "hapi_memory_bytes{kind=\"plans_limit\"} %llu\nhapi_memory_bytes{kind=\"plans\"} %llu\n",
            (unsigned long long)u.memory, (unsigned long long)u.taken);
    if (hapi_backend_usage(rt->cfg.backend, &gpu))
        fprintf(f,
                "hapi_memory_bytes{kind=\"gpu_reserved\"} %llu\nhapi_memory_bytes{kind=\"gpu_used\"} %llu\n",
                (unsigned long long)gpu.reserved, (unsigned long long)gpu.used);
    head(f, "prefixes", "gauge", "Parts of networks: that can run, that wait for memory.");
    fprintf(f, "hapi_prefixes{state=\"running\"} %u\nhapi_prefixes{state=\"waiting\"} %u\n", u.running,
            u.waiting);
    one(f, "prefixes_refused_total", "counter", "For lack of memory.", (double)u.refused);
    one(f, "draining", "gauge", "1: it takes no new clients, and ends.", rt->draining);
}

static void features_text(FILE *f, const struct hapi_rt *rt)
{
    struct hapi_features_stats t = hapi_features_stats_get(rt->features);

    head(f, "feature_rows", "gauge", "Samples whose features are kept, by where.");
    fprintf(f, "hapi_feature_rows{where=\"memory\"} %llu\nhapi_feature_rows{where=\"disk\"} %llu\n",
            (unsigned long long)t.memory_rows, (unsigned long long)t.disk_rows);
    head(f, "feature_bytes", "gauge", "Bytes that features take, by where.");
    fprintf(f, "hapi_feature_bytes{where=\"memory\"} %llu\nhapi_feature_bytes{where=\"disk\"} %llu\n",
            (unsigned long long)t.memory_bytes, (unsigned long long)t.disk_bytes);
    one(f, "feature_hits_total", "counter", "Samples that were not computed: they were kept.",
        (double)rt->counters.remembered);
    one(f, "features_kept_total", "counter", "Samples whose features were kept.", (double)t.kept);
    one(f, "features_dropped_total", "counter", "Kept ones that made room or whose object changed.",
        (double)t.dropped);
    one(f, "features_torn_total", "counter", "Kept ones on disk whose checksum did not hold.",
        (double)t.torn);
    one(f, "feature_errors_total", "counter", "Errors of the disk that keeps features.", (double)t.errors);
}

static void tenants_text(FILE *f, const struct hapi_rt *rt)
{
    static const struct {
        const char *name, *help;
        size_t offset;
        double unit;
    } all[] = {
        {"tenant_sessions_total", "Clients that came, by identity.", offsetof(struct hapi_tenant, sessions),
         1},
        {"tenant_requests_total", "Requests taken, by identity.", offsetof(struct hapi_tenant, requests), 1},
        {"tenant_samples_total", "Samples served, by identity.", offsetof(struct hapi_tenant, samples), 1},
        {"tenant_bad_samples_total", "Samples that could not be.", offsetof(struct hapi_tenant, bad_samples),
         1},
        {"tenant_wire_bytes_total", "Bytes written to its clients.", offsetof(struct hapi_tenant, wire_bytes),
         1},
        {"tenant_compute_seconds_total", "Of compute threads.", offsetof(struct hapi_tenant, thread_ns),
         1e-9},
    };

    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        head(f, all[i].name, "counter", all[i].help);
        for (const struct hapi_tenant *t = rt->tenants; t; t = t->next) {
            fprintf(f, "hapi_%s{tenant=\"", all[i].name);
            label(f, t->name);
            fprintf(f, "\"} %.17g\n",
                    all[i].unit * (double)*(const uint64_t *)((const char *)t + all[i].offset));
        }
        fprintf(f, "hapi_%s{tenant=\"(others)\"} %.17g\n", all[i].name,
                all[i].unit * (double)*(const uint64_t *)((const char *)&rt->other_tenants + all[i].offset));
    }
}

/* NULL: no memory. */
static char *metrics_text(const struct hapi_rt *rt, size_t *n)
{
    char *text = NULL;
    FILE *f = open_memstream(&text, n);

    if (!f)
        return NULL;
    head(f, "build_info", "gauge", "Version, and what features depend on bit by bit.");
    fprintf(f, "hapi_build_info{version=\"%s\",class=\"%s\"} 1\n", HAPI_VERSION,
            hapi_numeric_class(rt->cfg.backend));
    counters_text(f, rt);
    stages_text(f, rt);
    state_text(f, rt);
    if (rt->features)
        features_text(f, rt);
    tenants_text(f, rt);
    bool bad = ferror(f);
    if (fclose(f) || bad) {
        free(text);
        return NULL;
    }
    return text;
}

/* ------------------------------------------------------------------ HTTP */

static enum MHD_Result answer(struct MHD_Connection *c, unsigned status, char *text, size_t n)
{
    struct MHD_Response *r = MHD_create_response_from_buffer(n, text, MHD_RESPMEM_MUST_FREE);
    enum MHD_Result rc = MHD_NO;

    if (!r) {
        free(text);
        return MHD_NO;
    }
    if (MHD_add_response_header(r, MHD_HTTP_HEADER_CONTENT_TYPE,
                                "text/plain; version=0.0.4; charset=utf-8") == MHD_YES)
        rc = MHD_queue_response(c, status, r);
    MHD_destroy_response(r);
    return rc;
}

static enum MHD_Result say(struct MHD_Connection *c, unsigned status, const char *text)
{
    char *copy = strdup(text);

    return copy ? answer(c, status, copy, strlen(copy)) : MHD_NO;
}

static enum MHD_Result on_request(void *arg, struct MHD_Connection *c, const char *url, const char *method,
                                  const char *version, const char *upload, size_t *upload_size, void **user)
{
    const struct hapi_rt *rt = arg;
    size_t n = 0;

    (void)version;
    (void)upload;
    (void)upload_size;
    (void)user;
    if (strcmp(method, MHD_HTTP_METHOD_GET) && strcmp(method, MHD_HTTP_METHOD_HEAD))
        return say(c, MHD_HTTP_METHOD_NOT_ALLOWED, "GET or HEAD\n");
    if (!strcmp(url, "/healthz"))
        return rt->draining ? say(c, MHD_HTTP_SERVICE_UNAVAILABLE, "draining\n")
                            : say(c, MHD_HTTP_OK, "ok\n");
    if (strcmp(url, "/metrics"))
        return say(c, MHD_HTTP_NOT_FOUND, "/metrics or /healthz\n");
    char *text = metrics_text(rt, &n);
    return text ? answer(c, MHD_HTTP_OK, text, n) : MHD_NO;
}

static void http_run(struct hapi_metrics *m)
{
    MHD_UNSIGNED_LONG_LONG ms;

    MHD_run(m->daemon);
    for (int i = 0; i < ROUNDS && MHD_get_timeout(m->daemon, &ms) == MHD_YES && ms == 0; i++)
        MHD_run(m->daemon);
    hapi_loop_timer_set(m->rt->loop, &m->tick, hapi_clock_ns() + HAPI_NS_PER_S);
}

static void watch_ready(struct hapi_watch *w, uint32_t revents)
{
    (void)revents;
    http_run((struct hapi_metrics *)w);
}

static void tick_fire(struct hapi_timer *t)
{
    http_run((struct hapi_metrics *)((char *)t - offsetof(struct hapi_metrics, tick)));
}

/* ------------------------------------------------------------------ opening */

static int listen_at(const char *host, uint16_t port, struct hapi_err *err)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE | AI_NUMERICSERV}, *found;
    char service[8];
    int on = 1, fd;

    snprintf(service, sizeof service, "%u", port);
    int rc = getaddrinfo(*host ? host : NULL, service, &hints, &found);
    if (rc)
        return hapi_err_set(err, HAPI_EINVAL, 0, "--metrics: %s: %s", host, gai_strerror(rc));
    fd = socket(found->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) ||
        bind(fd, found->ai_addr, found->ai_addrlen) || listen(fd, CONNECTIONS)) {
        hapi_err_errno(err, errno, "--metrics: cannot listen on %s:%u", host, port);
        if (fd >= 0)
            close(fd);
        fd = err->code;
    }
    freeaddrinfo(found);
    return fd;
}

static int daemon_start(struct hapi_metrics *m, const char *address, struct hapi_err *err)
{
    char host[HAPI_NAME_MAX + 1];
    uint16_t port;

    int rc = hapi_address_parse(address, host, &port, err);
    if (rc)
        return hapi_err_context(err, "--metrics"), rc;
    m->listener = listen_at(host, port, err);
    if (m->listener < 0)
        return err->code;
    m->daemon = MHD_start_daemon(MHD_USE_EPOLL, 0, NULL, NULL, on_request, m->rt, MHD_OPTION_LISTEN_SOCKET,
                                 m->listener, MHD_OPTION_CONNECTION_LIMIT, (unsigned)CONNECTIONS,
                                 MHD_OPTION_CONNECTION_TIMEOUT, (unsigned)TIMEOUT_S, MHD_OPTION_END);
    if (!m->daemon) {
        close(m->listener);
        return hapi_err_set(err, HAPI_ESYS, 0, "--metrics: libmicrohttpd does not start");
    }
    const union MHD_DaemonInfo *i = MHD_get_daemon_info(m->daemon, MHD_DAEMON_INFO_EPOLL_FD);
    m->watch = (struct hapi_watch){.ready = watch_ready, .fd = i->epoll_fd, .events = POLLIN};
    rc = hapi_loop_watch(m->rt->loop, &m->watch);
    if (rc) {
        MHD_stop_daemon(m->daemon);
        return hapi_err_set(err, rc, 0, "--metrics: cannot watch its connections");
    }
    return 0;
}

static void say_where(int listener)
{
    struct sockaddr_storage a;
    socklen_t n = sizeof a;
    char host[128], port[16];

    if (!getsockname(listener, (struct sockaddr *)&a, &n) &&
        !getnameinfo((struct sockaddr *)&a, n, host, sizeof host, port, sizeof port,
                     NI_NUMERICHOST | NI_NUMERICSERV))
        hapi_log(HAPI_LOG_INFO, "metrics", "url=http://%s%s%s:%s/metrics", strchr(host, ':') ? "[" : "", host,
                 strchr(host, ':') ? "]" : "", port);
}

int hapi_metrics_open(struct hapi_metrics **out, struct hapi_rt *rt, const char *address,
                      struct hapi_err *err)
{
    struct hapi_metrics *m;

    *out = NULL;
    if (!*address)
        return 0;
    m = calloc(1, sizeof *m);
    if (!m)
        return hapi_err_set(err, HAPI_ENOMEM, 0, "no memory for metrics");
    m->rt = rt;
    m->tick.fire = tick_fire;
    int rc = daemon_start(m, address, err);
    if (rc) {
        free(m);
        return rc;
    }
    say_where(m->listener);
    hapi_loop_timer_set(rt->loop, &m->tick, hapi_clock_ns() + HAPI_NS_PER_S);
    *out = m;
    return 0;
}

void hapi_metrics_close(struct hapi_metrics *m)
{
    if (!m)
        return;
    hapi_loop_unwatch(&m->watch);
    hapi_loop_timer_clear(m->rt->loop, &m->tick);
    MHD_stop_daemon(m->daemon); /* closes the listener */
    free(m);
}
