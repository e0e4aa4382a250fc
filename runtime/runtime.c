#include "runtime.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "clock.h"
#include "log.h"

enum { RING_ENTRIES = 1024, DRAIN_S = 10 };

static void woken(void *arg)
{
    struct hapi_rt *rt = arg;
    if (rt->pool)
        hapi_pool_reap(rt->pool);
    if (rt->models)
        hapi_models_reap(rt->models);
    if (rt->features)
        hapi_features_reap(rt->features);
    hapi_sched_pump(rt);
}

static int compute_open(struct hapi_rt *rt, struct hapi_err *err)
{
    int width = (int)rt->cfg.intra_op, room = hapi_topology_cores(rt->topology) / width;
    int threads = rt->cfg.threads ? (int)rt->cfg.threads : room ? room : 1;
    struct hapi_models_options opt = {
        .backend = rt->cfg.backend,
        .threads = threads,
        .intra_op = width,
        .micro_batch = rt->cfg.micro_batch,
        .send_area = rt->cfg.send_area,
        .memory = rt->cfg.memory,
        .adapts = !strcmp(rt->cfg.adapt, "on"),
        .changed = hapi_session_prefixes_changed,
        .arg = rt,
    };

    rt->cfg.threads = (uint32_t)threads;
    rt->stages = calloc((size_t)threads, sizeof *rt->stages);
    if (!rt->stages)
        return hapi_err_set(err, HAPI_ENOMEM, 0, "no memory for %d compute stages", threads);
    for (int i = 0; i < threads; i++) {
        int rc = hapi_stage_new(&rt->stages[i], err);
        if (rc)
            return rc;
    }
    int rc = hapi_backend_reserve(rt->cfg.backend, rt->cfg.gpu_memory, err);
    rt->reserved = !rc;
    if (!rc)
        rc = hapi_models_open(&rt->models, rt->loop, &opt, err);
    if (!rc)
        rc = hapi_pool_open(&rt->pool, rt->loop, threads, rt->cfg.batches, rt->topology, width, err);
    return rc;
}

/* Reads work without registered buffers, a little slower: an ordinary user's locked memory is often 8 MiB. */
static int slab_register(struct hapi_rt *rt, struct hapi_err *err)
{
    char quoted[HAPI_ERR_TEXT];
    int rc = hapi_loop_register_slab(rt->loop, &rt->slab, err);

    if (rc != HAPI_ENOMEM)
        return rc;
    hapi_log(HAPI_LOG_WARN, "reading without registered buffers", "why=%s",
             hapi_log_quote(quoted, sizeof quoted, err->text));
    return 0;
}

/* A GPU writes activations to where they are sent from. Without it they arrive all the same, later. */
static void slab_pin(struct hapi_rt *rt)
{
    struct hapi_err err = {0};
    char quoted[HAPI_ERR_TEXT];

    rt->pinned = !hapi_backend_pin(rt->cfg.backend, rt->slab.base, rt->slab.size, &err);
    if (!rt->pinned)
        hapi_log(HAPI_LOG_WARN, "slab not pinned", "why=%s", hapi_log_quote(quoted, sizeof quoted, err.text));
}

/* Send areas in the GPU's memory, by its dma-buf or else by address; without, activations cross the slab. */
static void direct_open(struct hapi_rt *rt)
{
    struct hapi_fabric *verbs = rt->offers[HAPI_TRANSPORT_VERBS].fabric;
    const struct hapi_config *c = &rt->cfg;
    struct hapi_device_memory m;
    struct hapi_err err = {0};
    char quoted[HAPI_ERR_TEXT];

    if (!verbs || strcmp(c->gpudirect, "auto") || !hapi_backend_converts(c->backend))
        return;
    int rc = hapi_backend_device_memory(c->backend, c->batches * c->send_area, &m, &err);
    if (!rc) {
        rc = m.dmabuf < 0 ? HAPI_EUNSUPPORTED
                          : hapi_fabric_add_device_memory(verbs, m.base, m.bytes, m.dmabuf, 0, &err);
        bool dmabuf = !rc;
        if (rc)
            rc = hapi_fabric_add_device_memory(verbs, m.base, m.bytes, -1, 0, &err);
        if (!rc) {
            rt->direct = m;
            hapi_log(HAPI_LOG_INFO, "activations go from the GPU to the NIC", "via=%s mib=%zu",
                     dmabuf ? "dma-buf" : "peermem", m.bytes >> 20);
            return;
        }
        hapi_backend_device_memory_free(c->backend, &m);
    }
    hapi_log(HAPI_LOG_INFO, "activations cross host memory", "why=%s",
             hapi_log_quote(quoted, sizeof quoted, err.text));
}

static int memory_open(struct hapi_rt *rt, struct hapi_err *err)
{
    const struct hapi_config *c = &rt->cfg;

    rt->frame = malloc(HAPI_FRAME_MAX);
    rt->scratch = malloc(HAPI_FRAME_MAX);
    if (!rt->frame || !rt->scratch)
        return hapi_err_set(err, HAPI_ENOMEM, 0, "no memory for control frames");
    int rc = hapi_slab_init(&rt->slab, hapi_batches_bytes(c) + hapi_remember_bytes(c), err);
    if (!rc) /* before the ring: of too little locked memory RDMA needs it more */
        rc = hapi_fabrics_open(rt, err);
    if (!rc) {
        slab_pin(rt);
        direct_open(rt);
    }
    if (!rc)
        rc = slab_register(rt, err);
    if (!rc)
        rc = hapi_batches_open(rt, err);
    if (!rc)
        rc = hapi_remember_open(rt, err);
    return rc;
}

static struct hapi_hello hello(const struct hapi_rt *rt)
{
    const char *class = hapi_numeric_class(rt->cfg.backend);

    return (struct hapi_hello){
        .major_min = HAPI_PROTO_MAJOR,
        .major_max = HAPI_PROTO_MAJOR,
        .minor = HAPI_PROTO_MINOR,
        .caps = hapi_fabrics_caps(rt) | HAPI_CAP_CHECKSUM | HAPI_CAP_UPLOAD | HAPI_CAP_INT8 |
                (hapi_backend_computes(rt->cfg.backend, HAPI_BF16) ? HAPI_CAP_BF16 : 0) |
                (hapi_backend_computes(rt->cfg.backend, HAPI_F16) ? HAPI_CAP_F16 : 0) |
                (hapi_backend_computes(rt->cfg.backend, HAPI_I8) ? HAPI_CAP_COMPUTE_I8 : 0),
        .role = {"node", 4},
        .version = {HAPI_VERSION, sizeof HAPI_VERSION - 1},
        .numeric_class = {class, class ? (uint32_t)strlen(class) : 0},
    };
}

static int listen_open(struct hapi_rt *rt, struct hapi_err *err)
{
    const struct hapi_config *c = &rt->cfg;
    uint16_t port;
    struct hapi_control_options opt = {.hello = hello(rt), .max_open = c->max_sessions + 16};

    int rc = hapi_backend_ready(c->backend, err);
    if (!rc)
        rc = hapi_address_parse(c->listen, rt->host, &port, err);
    if (rc)
        return rc;
    if (!*c->key && !c->insecure && !hapi_address_is_loopback(rt->host))
        return hapi_err_set(err, HAPI_EAUTH, 0,
                            "%s is not loopback: give --key FILE (made with `openssl rand -hex 32`, as lines "
                            "`name:hex`), or say --insecure on an isolated network",
                            c->listen);
    rc = hapi_access_open(rt, err);
    if (rc)
        return rc;
    opt.keys = rt->keys;
    return hapi_control_listen(&rt->control, rt->loop, rt->host, port, &opt, &hapi_session_control_handler,
                               rt, err);
}

static int store_open(struct hapi_rt *rt, struct hapi_err *err)
{
    const struct hapi_config *c = &rt->cfg;
    struct hapi_store_options opt = {
        .cache_dir = *c->cache ? c->cache : NULL,
        .max_reads = c->batches * hapi_remember_samples(c),
    };
    int rc = hapi_store_open(&rt->store, c->data, &opt, err);

    for (uint32_t i = 0; !rc && i < hapi_store_count(rt->store); i++) {
        const struct hapi_dataset *d = hapi_store_at(rt->store, i);
        hapi_log(HAPI_LOG_INFO, "dataset", "name=%s objects=%u samples=%llu classes=%u problems=%u", d->name,
                 d->n_objects, (unsigned long long)d->n_samples, d->n_classes, d->n_problems);
        for (uint32_t p = 0; p < d->n_problems && p < 10; p++) {
            char quoted[HAPI_ERR_TEXT];
            hapi_log(HAPI_LOG_WARN, "skipped while indexing", "dataset=%s why=%s", d->name,
                     hapi_log_quote(quoted, sizeof quoted, d->problems[p]));
        }
    }
    return rc ? rc : hapi_store_attach(rt->store, rt->loop, err);
}

static void untuned(const struct hapi_err *why)
{
    char quoted[HAPI_ERR_TEXT];

    hapi_log(HAPI_LOG_WARN, "engines not tuned: as heuristics choose them", "why=%s",
             hapi_log_quote(quoted, sizeof quoted, why->text));
}

/* Before the numeric class is said. On a machine where `auto` found no GPU there is nothing to tune. */
static int tune_open(struct hapi_rt *rt, struct hapi_err *err)
{
    if (!rt->cfg.autotune || rt->no_gpu.code)
        return 0;
    int rc = hapi_backend_tune(rt->cfg.backend, untuned, err);
    rt->tuned = !rc;
    return rc;
}

int hapi_rt_open(struct hapi_rt **out, const struct hapi_config *cfg, struct hapi_err *err)
{
    struct hapi_rt *rt = calloc(1, sizeof *rt);

    if (!rt)
        return hapi_err_set(err, HAPI_ENOMEM, 0, "no memory for the runtime");
    rt->cfg = *cfg;
    (void)snprintf(rt->cfg.backend, sizeof rt->cfg.backend, "%s",
                   hapi_backend_choose(cfg->backend, &rt->no_gpu));
    int rc = tune_open(rt, err);
    if (!rc)
        rc = hapi_topology_open(&rt->topology, err);
    if (!rc)
        rc = hapi_loop_open(&rt->loop, RING_ENTRIES, err);
    if (!rc) {
        hapi_loop_on_wake(rt->loop, woken, rt);
        rc = listen_open(
            rt, err); /* first: a port in use is known at once; nobody is served before the loop runs */
    }
    if (!rc)
        rc = store_open(rt, err);
    if (!rc)
        rc = memory_open(rt, err);
    if (!rc) {
        struct hapi_hello h = hello(rt); /* again, now that it is known which transports are offered */
        rc = hapi_control_listener_hello(rt->control, &h, err);
    }
    if (!rc)
        rc = compute_open(rt, err);
    if (!rc)
        rc = hapi_metrics_open(&rt->metrics, rt, rt->cfg.metrics, err);
    if (rc) {
        hapi_rt_close(rt);
        return rc;
    }
    *out = rt;
    return 0;
}

struct hapi_models_usage hapi_runtime_usage(const struct hapi_rt *rt)
{
    struct hapi_models_usage u = hapi_models_usage_get(rt->models);

    for (const struct hapi_session *s = rt->sessions; s; s = s->next)
        u.waiting += s->upload_waits;
    return u;
}

uint16_t hapi_rt_port(const struct hapi_rt *rt)
{
    return hapi_control_listener_port(rt->control);
}

void hapi_rt_drain(struct hapi_rt *rt)
{
    static const char why[] = "this node is shutting down";
    struct hapi_msg_text m = {.text = {why, sizeof why - 1}};
    uint8_t buf[128];

    if (rt->draining)
        return;
    rt->draining = true;
    rt->drain_deadline_ns = hapi_clock_ns() + DRAIN_S * HAPI_NS_PER_S;
    hapi_control_listener_close(rt->control);
    rt->control = NULL;
    int n = hapi_msg_text_encode(&m, buf, sizeof buf);
    for (struct hapi_session *s = rt->sessions; s; s = s->next)
        if (s->control && n > 0)
            hapi_control_send(s->control, HAPI_MSG_BYE, buf, (size_t)n);
}

/* Draining: a session whose requests are answered is closed; after the deadline every one is. */
static void drain_step(struct hapi_rt *rt)
{
    bool late = hapi_clock_ns() > rt->drain_deadline_ns;

    for (struct hapi_session *s = rt->sessions; s; s = s->next) {
        bool busy = s->in_service != 0;
        for (uint32_t i = 0; i < s->n_services; i++)
            busy |= s->services[i].refs != 0;
        if (busy && !late)
            continue;
        if (s->control)
            hapi_control_finish(s->control);
        hapi_conn_close(s->conn);
    }
}

int hapi_rt_run(struct hapi_rt *rt, struct hapi_err *err)
{
    /* A round now and then without any event: deadlines of waiting requests are looked at in the pump. */
    const int64_t tick = 100 * HAPI_NS_PER_MS;

    while (!rt->draining || rt->sessions) {
        int rc = hapi_loop_run_once(rt->loop, tick, err);
        if (rc)
            return rc;
        if (rt->draining)
            drain_step(rt);
        hapi_models_tick(rt->models, hapi_clock_ns());
        hapi_sched_pump(rt);
        hapi_sessions_stalled(rt);
        hapi_sessions_reap(rt);
        hapi_remember_errors(rt);
    }
    return 0;
}

void hapi_rt_close(struct hapi_rt *rt)
{
    if (!rt)
        return;
    hapi_metrics_close(rt->metrics);
    hapi_control_listener_close(rt->control);
    for (struct hapi_session *s = rt->sessions; s; s = s->next) /* only after a broken loop */
        hapi_listener_close(s->listener);
    hapi_pool_close(rt->pool);
    hapi_models_close(rt->models);
    for (uint32_t i = 0; rt->stages && i < rt->cfg.threads; i++)
        hapi_stage_free(rt->stages[i]);
    free(rt->stages);
    hapi_fabrics_close(rt);
    hapi_store_close(rt->store);
    hapi_features_close(rt->features);
    hapi_batches_close(rt);
    hapi_loop_close(rt->loop);
    if (rt->direct.base)
        hapi_backend_device_memory_free(rt->cfg.backend, &rt->direct);
    if (rt->reserved)
        hapi_backend_release(rt->cfg.backend);
    if (rt->tuned)
        (void)hapi_backend_tune(rt->cfg.backend, NULL, NULL);
    if (rt->pinned)
        hapi_backend_unpin(rt->cfg.backend, rt->slab.base);
    hapi_slab_fini(&rt->slab);
    hapi_topology_close(rt->topology);
    hapi_access_close(rt);
    free(rt->frame);
    free(rt->scratch);
    free(rt);
}
