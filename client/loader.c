/* The public calls of libhapi, and the I/O thread that they talk to. */
#include "loader.h"
#include "public_error.h"

#include <stdlib.h>
#include <string.h>

#include "clock.h"
#include "convert.h"
#include "planner.h"

enum { RING_ENTRIES = 512, TICK_MS = 100 };

/* ------------------------------------------------------------------ between the threads */

void loader_fail(struct hapi_loader *l, const struct hapi_err *err)
{
    pthread_mutex_lock(&l->lock);
    if (!l->failure.set) {
        l->failure.err = *err;
        l->failure.set = true;
    }
    pthread_cond_broadcast(&l->changed);
    pthread_mutex_unlock(&l->lock);
}

void loader_node_offered(struct hapi_loader *l)
{
    struct hapi_err err = {0};

    for (uint32_t i = 0; i < l->n_nodes; i++)
        if (l->nodes[i].state != NODE_OFFERED)
            return;
    int rc = hapi_catalog_seal(&l->catalog, &err);
    if (!rc)
        rc = window_open(l, &err);
    if (!rc)
        rc = keep_open(l, &err);
    if (!rc && l->slot_bytes)
        rc = hapi_pool_open(&l->pool, l->loop, l->threads, l->n_nodes * NODE_REQUESTS * REQUEST_SAMPLES,
                            l->topology, 1, &err);
    if (rc) {
        hapi_err_context(&err, "dataset %s", l->o.dataset);
        loader_fail(l, &err);
        return;
    }
    for (uint32_t i = 0; i < l->n_nodes; i++)
        node_open_data(&l->nodes[i]);
}

void loader_node_up(struct hapi_loader *l)
{
    for (uint32_t i = 0; !l->ready && i < l->n_nodes; i++)
        if (l->nodes[i].state != NODE_UP)
            return;
    routes_advance(l);
    l->ready = true;
    pthread_mutex_lock(&l->lock);
    l->opened = true;
    pthread_cond_broadcast(&l->changed);
    pthread_mutex_unlock(&l->lock);
}

static void woken(void *arg)
{
    struct hapi_loader *l = arg;
    bool start;

    if (l->pool)
        hapi_pool_reap(l->pool);
    keep_reap(l);
    pthread_mutex_lock(&l->lock);
    start = l->epoch_pending;
    l->epoch_pending = false;
    pthread_mutex_unlock(&l->lock);
    if (start)
        fetch_epoch(l);
    routes_advance(l);
    fetch_pump(l);
}

static void tick_fire(struct hapi_timer *t)
{
    struct hapi_loader *l = (struct hapi_loader *)((char *)t - offsetof(struct hapi_loader, tick));

    fetch_timeouts(l);
    observe_tick(l);
    fetch_pump(l);
    hapi_loop_timer_set(l->loop, t, hapi_clock_ns() + TICK_MS * HAPI_NS_PER_MS);
}

static bool closing(struct hapi_loader *l)
{
    pthread_mutex_lock(&l->lock);
    bool c = l->closing;
    pthread_mutex_unlock(&l->lock);
    return c;
}

static void wait_closing(struct hapi_loader *l)
{
    pthread_mutex_lock(&l->lock);
    while (!l->closing)
        pthread_cond_wait(&l->changed, &l->lock);
    pthread_mutex_unlock(&l->lock);
}

static bool anything_open(const struct hapi_loader *l)
{
    for (uint32_t i = 0; i < l->n_nodes; i++)
        if (l->nodes[i].control || l->nodes[i].conn)
            return true;
    return false;
}

static void *io_thread(void *arg)
{
    struct hapi_loader *l = arg;
    struct hapi_err err = {0};

    struct hapi_loop *loop;

    if (hapi_loop_open(&loop, RING_ENTRIES, &err)) {
        loader_fail(l, &err);
        return NULL;
    }
    hapi_loop_on_wake(loop, woken, l);
    pthread_mutex_lock(&l->lock);
    l->loop = loop; /* it can be woken from now on */
    pthread_cond_broadcast(&l->changed);
    pthread_mutex_unlock(&l->lock);
    l->tick.fire = tick_fire;
    hapi_loop_timer_set(loop, &l->tick, hapi_clock_ns() + TICK_MS * HAPI_NS_PER_MS);
    for (uint32_t i = 0; i < l->n_nodes; i++)
        node_connect(&l->nodes[i]);
    while (!closing(l))
        if (hapi_loop_run_once(l->loop, -1, &err)) {
            loader_fail(l, &err);
            wait_closing(l); /* the caller may still wake the loop */
            break;
        }
    l->ready = true; /* failures from here on are nobody's business */
    err.code = HAPI_ECANCELED;
    loader_fail(l, &err);
    for (uint32_t i = 0; i < l->n_nodes; i++)
        node_close(&l->nodes[i]);
    int64_t until = hapi_clock_ns() + 3 * HAPI_NS_PER_S;
    while ((anything_open(l) || keep_busy(l)) && hapi_clock_ns() < until)
        if (hapi_loop_run_once(l->loop, 50 * HAPI_NS_PER_MS, &err))
            break;
    hapi_loop_timer_clear(l->loop, &l->tick);
    hapi_pool_close(l->pool);
    choice_close(l);
    keep_close(l);
    hapi_loop_close(l->loop);
    return NULL;
}

/* ------------------------------------------------------------------ opening */

static int keep(struct hapi_loader *l, const char **s, const char *otherwise)
{
    if (!*s && !otherwise)
        return 0;
    char *copy = strdup(*s ? *s : otherwise);
    if (!copy)
        return HAPI_ENOMEM;
    l->strings[l->n_strings++] = copy;
    *s = copy;
    return 0;
}

static int options_keep(struct hapi_loader *l, const struct hapi_loader_options *o, struct hapi_err *err)
{
    l->o = *o;
    l->o.backend = hapi_backend_choose(o->backend ? o->backend : "onednn", NULL);
    int rc = keep(l, &l->o.model, NULL) | keep(l, &l->o.transform, NULL) | keep(l, &l->o.nodes, NULL) |
             keep(l, &l->o.dataset, NULL) | keep(l, &l->o.freeze, NULL) | keep(l, &l->o.policy, NULL) |
             keep(l, &l->o.split, NULL) | keep(l, &l->o.profile, NULL) | keep(l, &l->o.accuracy, NULL) |
             keep(l, &l->o.wire, NULL) | keep(l, &l->o.dtype, "f32") | keep(l, &l->o.backend, NULL) |
             keep(l, &l->o.transport, "auto") | keep(l, &l->o.key, NULL) | keep(l, &l->o.device, NULL) |
             keep(l, &l->o.provider, NULL) | keep(l, &l->o.keep_dir, NULL);
    if (rc)
        return hapi_err_set(err, HAPI_ENOMEM, 0, "no memory for the options");
    if (!l->o.model || !l->o.nodes || !l->o.dataset)
        return hapi_err_set(err, HAPI_EINVAL, 0, "model, nodes and dataset must be given");
    if (strlen(l->o.dataset) > HAPI_NAME_MAX)
        return hapi_err_set(err, HAPI_EINVAL, 0, "a dataset's name has at most %d bytes", HAPI_NAME_MAX);
    l->o.batch = l->o.batch ? l->o.batch : 256;
    l->o.depth = l->o.depth ? l->o.depth : 4;
    l->o.request_timeout_ms = l->o.request_timeout_ms ? l->o.request_timeout_ms : 30000;
    if (l->o.batch > 1 << 20 || l->o.depth < 2 || l->o.depth > 64)
        return hapi_err_set(err, HAPI_EINVAL, 0, "batch is 1..1048576 and depth 2..64");
    l->dtype = hapi_dtype_from_name(l->o.dtype);
    if (l->dtype != HAPI_F32 && l->dtype != HAPI_F16 && l->dtype != HAPI_BF16 && l->dtype != HAPI_I8)
        return hapi_err_set(err, HAPI_EINVAL, 0, "compute dtype is f32, f16, bf16 or i8, not `%s`",
                            l->o.dtype);
    /* Only GPUs compute in f16. What is computed here is no less exact without one. */
    bool wider = l->dtype == HAPI_F16 && !hapi_backend_computes(l->o.backend, HAPI_F16);
    l->dtype_here = wider ? HAPI_F32 : l->dtype;
    rc = hapi_backend_ready(l->o.backend, err);
    return rc ? rc : choice_options(l, err);
}

static int nodes_parse(struct hapi_loader *l, struct hapi_err *err)
{
    char item[HAPI_NAME_MAX + 16];

    l->nodes = calloc(HAPI_NODES_MAX, sizeof *l->nodes);
    if (!l->nodes)
        return hapi_err_set(err, HAPI_ENOMEM, 0, "no memory for the nodes");
    for (const char *s = l->o.nodes; *s;) {
        size_t n = strcspn(s, ",");
        struct loader_node *node = &l->nodes[l->n_nodes];
        if (l->n_nodes == HAPI_NODES_MAX || n >= sizeof item)
            return hapi_err_set(err, HAPI_EINVAL, 0, "at most %d nodes, HOST:PORT each", HAPI_NODES_MAX);
        memcpy(item, s, n);
        item[n] = '\0';
        node->l = l;
        node->number = l->n_nodes;
        memcpy(node->name, item, n + 1);
        memcpy(node->told.node, item, n + 1);
        int rc = hapi_address_parse(item, node->host, &node->port, err);
        if (rc)
            return rc;
        l->n_nodes++;
        s += n + (s[n] == ',');
    }
    l->catalog.n_nodes = l->n_nodes;
    return l->n_nodes ? 0 : hapi_err_set(err, HAPI_EINVAL, 0, "no node was given");
}

static int model_open(struct hapi_loader *l, struct hapi_err *err)
{
    int64_t n;

    int rc = hapi_model_open(&l->model, l->o.model, NULL, err);
    if (!rc)
        rc = hapi_transform_load(&l->transform, l->o.transform, l->o.model, err);
    if (rc)
        return rc;
    if (hapi_transform_text(&l->transform, l->transform_text, sizeof l->transform_text) < 0)
        return hapi_err_set(err, HAPI_ETOOBIG, 0, "the transform of %s is too long", l->o.model);
    rc = l->o.freeze ? hapi_model_cut_find(l->model, l->o.freeze, &l->freeze, err)
                     : hapi_model_cut_default(l->model, &l->freeze, err);
    if (rc)
        return rc;
    if (l->freeze->n_tensors != 1 || hapi_shape_elements(&l->freeze->tensors[0].shape, &n))
        return hapi_err_set(err, HAPI_EUNSUPPORTED, 0, "freeze layer %s has %u tensors; features are one",
                            l->freeze->id, l->freeze->n_tensors);
    l->width = (size_t)n;
    l->row_bytes = l->width * 4;
    rc = keep_options(l, err);
    return rc ? rc : policy_open(l, err);
}

static int open_all(struct hapi_loader *l, const struct hapi_loader_options *o, struct hapi_err *err)
{
    int rc = options_keep(l, o, err);
    if (!rc)
        rc = nodes_parse(l, err);
    if (!rc && l->o.key)
        rc = hapi_keys_load(&l->keys, l->o.key, err);
    if (!rc)
        rc = hapi_topology_open(&l->topology, err);
    if (rc)
        return rc;
    l->threads = l->o.threads ? (int)l->o.threads : hapi_topology_cores(l->topology);
    rc = model_open(l, err);
    if (!rc)
        rc = suffix_open(l, err);
    if (rc)
        return rc;
    rc = pthread_create(&l->thread, NULL, io_thread, l);
    if (rc)
        return hapi_err_errno(err, rc, "cannot start the I/O thread");
    l->thread_started = true;
    pthread_mutex_lock(&l->lock);
    while (!l->opened && !l->failure.set)
        pthread_cond_wait(&l->changed, &l->lock);
    if (l->failure.set) {
        *err = l->failure.err;
        rc = err->code;
    }
    pthread_mutex_unlock(&l->lock);
    return rc ? rc : replan_start(l, err);
}

int hapi_loader_open(struct hapi_loader **out, const struct hapi_loader_options *options,
                     struct hapi_error *error)
{
    struct hapi_loader *l = calloc(1, sizeof *l);
    struct hapi_err err = {0};

    if (!l) {
        hapi_err_set(&err, HAPI_ENOMEM, 0, "no memory for a loader");
        return public_error(error, &err);
    }
    l->generation = FIRST_GENERATION;
    pthread_mutex_init(&l->lock, NULL);
    pthread_cond_init(&l->changed, NULL);
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&l->replan, &monotonic);
    pthread_condattr_destroy(&monotonic);
    if (open_all(l, options, &err)) {
        hapi_loader_close(l);
        return public_error(error, &err);
    }
    *out = l;
    return 0;
}

void hapi_loader_close(struct hapi_loader *l)
{
    if (!l)
        return;
    replan_stop(l);
    if (l->thread_started) {
        pthread_mutex_lock(&l->lock);
        while (!l->loop && !l->failure.set)
            pthread_cond_wait(&l->changed, &l->lock);
        l->closing = true;
        pthread_cond_broadcast(&l->changed);
        if (l->loop)
            hapi_loop_wake(
                l->loop); /* under the lock: the thread closes the loop once it has seen `closing` */
        pthread_mutex_unlock(&l->lock);
        pthread_join(l->thread, NULL);
    }
    window_close(l);
    suffix_close(l);
    policy_close(l);
    hapi_catalog_fini(&l->catalog);
    free(l->nodes);
    hapi_model_close(l->model);
    hapi_keys_free(l->keys);
    hapi_topology_close(l->topology);
    for (int i = 0; i < l->n_strings; i++)
        free(l->strings[i]);
    pthread_cond_destroy(&l->changed);
    pthread_cond_destroy(&l->replan);
    pthread_mutex_destroy(&l->lock);
    free(l);
}

/* ------------------------------------------------------------------ epochs and batches */

int hapi_loader_epoch(struct hapi_loader *l, uint32_t epoch, struct hapi_error *error)
{
    struct hapi_err err = {0};

    pthread_mutex_lock(&l->lock);
    if (l->failure.set) {
        err = l->failure.err;
    } else if (l->held || l->deliver != l->last_sequence) {
        hapi_err_set(&err, HAPI_EBUSY, 0, "%u batches of the last epoch are held, %llu were not taken",
                     l->held, (unsigned long long)(l->last_sequence - l->deliver));
    } else {
        l->epoch = epoch;
        l->epoch_pending = true;
        l->last_sequence = l->deliver + (l->catalog.n_samples + l->o.batch - 1) / l->o.batch;
    }
    pthread_mutex_unlock(&l->lock);
    if (err.code)
        return public_error(error, &err);
    hapi_loop_wake(l->loop);
    return 0;
}

/* The next batch in order if it is ready; lock held. */
static struct batch *batch_next(struct hapi_loader *l)
{
    for (uint32_t i = 0; i < l->o.depth; i++)
        if (l->batches[i].state == BATCH_READY && l->batches[i].sequence == l->deliver)
            return &l->batches[i];
    return NULL;
}

int hapi_loader_next(struct hapi_loader *l, struct hapi_batch_view *view, struct hapi_error *error)
{
    struct hapi_err err = {0};
    struct batch *b = NULL;
    bool over = false;

    pthread_mutex_lock(&l->lock);
    observe_asked(l);
    for (;;) {
        over = l->deliver == l->last_sequence;
        b = over || l->failure.set ? NULL : batch_next(l);
        if (b || over || l->failure.set || l->held == l->o.depth)
            break;
        pthread_cond_wait(&l->changed, &l->lock);
    }
    if (b) {
        b->state = BATCH_HELD;
        l->held++;
        l->deliver++;
        observe_given(l, b->delivered);
        *view = (struct hapi_batch_view){
            .features = (const float *)b->features,
            .width = l->width,
            .stride = l->row_bytes,
            .labels = b->labels,
            .samples = b->samples,
            .n = b->delivered,
            .n_bad = b->bad,
            .private_id = (uint64_t)(b - l->batches),
        };
    } else if (!over) {
        if (l->failure.set)
            err = l->failure.err;
        else
            hapi_err_set(&err, HAPI_EBUSY, 0, "all %u batches are still held: release one first", l->held);
    }
    pthread_mutex_unlock(&l->lock);
    return err.code ? public_error(error, &err) : b ? 1 : 0;
}

void hapi_loader_release(struct hapi_loader *l, const struct hapi_batch_view *view)
{
    pthread_mutex_lock(&l->lock);
    l->batches[view->private_id].state = BATCH_FREE;
    l->held--;
    pthread_mutex_unlock(&l->lock);
    hapi_loop_wake(l->loop);
}

uint32_t hapi_loader_replans(struct hapi_loader *l, struct hapi_loader_replan *out, uint32_t max)
{
    pthread_mutex_lock(&l->lock);
    uint32_t n = l->n_replans, kept = n < REPLANS_MAX ? n : REPLANS_MAX;
    if (max)
        memcpy(out, l->replans, (kept < max ? kept : max) * sizeof *out);
    pthread_mutex_unlock(&l->lock);
    return n;
}

uint64_t hapi_loader_samples(const struct hapi_loader *l)
{
    return l->catalog.n_samples;
}

size_t hapi_loader_width(const struct hapi_loader *l)
{
    return l->width;
}

uint32_t hapi_loader_classes(const struct hapi_loader *l)
{
    return l->catalog.n_classes;
}

const char *hapi_loader_class(const struct hapi_loader *l, uint32_t i)
{
    return i < l->catalog.n_classes ? l->catalog.classes[i] : NULL;
}

uint32_t hapi_loader_parts(struct hapi_loader *l, struct hapi_loader_part *out, uint32_t max)
{
    pthread_mutex_lock(&l->lock);
    uint32_t n = l->n_parts;
    for (uint32_t i = 0; i < n && i < max; i++)
        out[i] = l->parts[i];
    pthread_mutex_unlock(&l->lock);
    return n;
}

const char *hapi_loader_split(struct hapi_loader *l)
{
    struct hapi_loader_part first = {.split = "none"};

    hapi_loader_parts(l, &first, 1);
    return first.split;
}

const char *hapi_loader_dtype_here(struct hapi_loader *l)
{
    bool computes = false;

    pthread_mutex_lock(&l->lock);
    for (uint32_t i = 0; i < l->n_parts; i++)
        computes |= strcmp(l->parts[i].split, l->freeze->id) != 0;
    pthread_mutex_unlock(&l->lock);
    return computes ? hapi_dtype_name(l->dtype_here) : "none";
}

uint32_t hapi_loader_nodes(const struct hapi_loader *l)
{
    return l->n_nodes;
}

int hapi_loader_transport(struct hapi_loader *l, uint32_t i, struct hapi_loader_transport *out)
{
    if (i >= l->n_nodes)
        return HAPI_EINVAL;
    pthread_mutex_lock(&l->lock);
    *out = l->nodes[i].told;
    pthread_mutex_unlock(&l->lock);
    return 0;
}

struct hapi_loader_stats hapi_loader_stats_get(struct hapi_loader *l)
{
    return (struct hapi_loader_stats){
        .wire_bytes = atomic_load(&l->wire_bytes),
        .requests = atomic_load(&l->n_requests),
        .parts = atomic_load(&l->n_arrived),
        .bad = atomic_load(&l->n_bad),
        .reissued = atomic_load(&l->n_reissued),
        .kept = atomic_load(&l->n_kept),
    };
}
