/* What is asked of the nodes of a profile, and what their answers say. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "clock.h"
#include "convert.h"
#include "profile_run.h"

enum { QUEUE, READ, DECODE, COMPUTE, CONVERT }; /* of stage_ns */
enum { ASKS = 3, STREAM_SAMPLES = 32, FIRST_SAMPLES = 8, LOSSES_MAX = 5 };
#define SLOW_S 0.2    /* a payload that takes longer to arrive is narrowed */
#define STREAM_S 0.25 /* of one stream, about */
#define STREAM_SURE 0.8
#define APART 65536.0  /* bytes by which two transfers must differ to say something of the rate */
#define BURST 262144.0 /* bytes that a shaped link may let through at once */
#define LONG_NS (200 * HAPI_NS_PER_MS) /* a request that takes so long is not repeated within a visit */

/* ------------------------------------------------------------------ opening */

static int names_split(struct profile_run *r, char *names, char **list, struct hapi_err *err)
{
    char *save = NULL;

    for (char *s = strtok_r(names, ",", &save); s; s = strtok_r(NULL, ",", &save)) {
        if (r->n_nodes == HAPI_NODES_MAX)
            return hapi_err_set(err, HAPI_EINVAL, 0, "at most %d nodes", HAPI_NODES_MAX);
        if (strlen(s) > HAPI_NAME_MAX)
            return hapi_err_set(err, HAPI_EINVAL, 0, "a node is HOST:PORT");
        list[r->n_nodes++] = s;
    }
    return r->n_nodes ? 0 : hapi_err_set(err, HAPI_EINVAL, 0, "no node was given");
}

static int job_fill(struct profile_run *r, struct hapi_err *err)
{
    const struct profile_options *o = r->o;
    size_t size = 0;
    int rc = o->key ? hapi_keys_load(&r->keys, o->key, err) : 0;

    rc = rc ? rc : hapi_model_prefix_bytes(r->model, r->cuts[r->n_cuts - 1].id, &r->offer, &size, err);
    if (rc)
        return rc;
    r->job = (struct probe_job){.loop = r->loop,
                                .keys = r->keys,
                                .dataset = o->dataset,
                                .transport = o->transport,
                                .transform = r->transform_text,
                                .model = r->offer,
                                .model_size = size,
                                .dtype = o->dtype,
                                .catalog = &r->catalog};
    hapi_sha256(r->job.model_hash, r->offer, size);
    return 0;
}

int profile_nodes_open(struct profile_run *r, struct hapi_err *err)
{
    char *names = strdup(r->o->nodes), *list[HAPI_NODES_MAX] = {0};
    int rc = names ? names_split(r, names, list, err) : hapi_err_set(err, HAPI_ENOMEM, 0, "no memory");

    r->catalog.n_nodes = r->n_nodes;
    r->probes = calloc(r->n_nodes + 1, sizeof(struct probe *));
    r->links = calloc(r->n_nodes + 1, sizeof *r->links);
    r->answers = calloc((size_t)r->n_nodes * PROBE_SLOTS + 1, sizeof *r->answers);
    if (!rc && (!r->probes || !r->links || !r->answers))
        rc = hapi_err_set(err, HAPI_ENOMEM, 0, "no memory for %u nodes", r->n_nodes);
    rc = rc ? rc : job_fill(r, err);
    for (uint32_t i = 0; i < r->n_nodes && !rc; i++)
        rc = probe_connect(&r->probes[i], &r->job, list[i], i, err);
    free(names);
    rc = rc ? rc : hapi_catalog_seal(&r->catalog, err);
    for (uint32_t i = 1; i < r->n_nodes && !rc; i++)
        if (strcmp(r->probes[i]->numeric_class, r->probes[0]->numeric_class) != 0)
            rc = hapi_err_set(err, HAPI_EINVAL, 0, "node %s computes as %s, node %s as %s: no job takes both",
                              r->probes[0]->name, r->probes[0]->numeric_class, r->probes[i]->name,
                              r->probes[i]->numeric_class);
    return rc;
}

static bool is_lost(const struct probe *p)
{
    return p && (p->err.code == HAPI_ECLOSED || p->err.code == HAPI_ETIMEDOUT ||
                 p->err.code == HAPI_ETRANSPORT || p->err.code == HAPI_ECANCELED);
}

int profile_nodes_again(struct profile_run *r, int why, struct hapi_err *err)
{
    uint32_t lost = 0;
    int rc = 0;

    for (uint32_t i = 0; i < r->n_nodes; i++)
        lost += is_lost(r->probes[i]);
    if (!lost || r->losses == LOSSES_MAX)
        return why;
    r->losses++;
    for (uint32_t i = 0; i < r->n_nodes && !rc; i++) {
        char name[sizeof r->probes[i]->name];
        if (!is_lost(r->probes[i]))
            continue;
        memcpy(name, r->probes[i]->name, sizeof name);
        probe_close(r->probes[i]);
        r->probes[i] = NULL;
        rc = probe_connect(&r->probes[i], &r->job, name, i, err);
        rc = rc ? rc : probe_ready(r->probes[i], err);
    }
    return rc;
}

void profile_nodes_close(struct profile_run *r)
{
    for (uint32_t i = 0; r->probes && i < r->n_nodes; i++)
        probe_close(r->probes[i]);
    free(r->probes);
    free(r->links);
    free(r->answers);
    free(r->offer);
    hapi_catalog_fini(&r->catalog);
    hapi_keys_free(r->keys);
}

/* ------------------------------------------------------------------ one request */

/* What is left of the time between request and record when all is taken off that the node did: its way, and
 * the payload's. */
static double rest_s(const struct probe_answer *a)
{
    int64_t ns = a->parts[0].arrived_ns - a->sent_ns;

    for (int i = 0; i <= CONVERT; i++)
        ns -= a->parts[0].ns[i];
    return ns > 0 ? 1e-9 * (double)ns : 0;
}

static double per_image(const struct probe_answer *a, int stage)
{
    return 1e-9 * (double)a->parts[0].ns[stage] / a->parts[0].count;
}

/* Whether it was one micro-batch as it was asked for: then its times say something. */
static bool is_whole(const struct probe_answer *a)
{
    return !a->status && a->n_parts == 1 && a->parts[0].count == a->n;
}

static void transfer_add(struct profile_link *l, double bytes, double seconds)
{
    if (bytes >= BURST) /* next to what passes in a burst, others would seem to be fast */
        points_add(&l->transfers, bytes, seconds);
    if (!l->small.n || 2 * bytes < l->small_bytes) { /* much smaller than any before */
        l->small.n = 0;
        l->small_bytes = bytes;
    }
    if (bytes < 2 * l->small_bytes)
        series_add(&l->small, seconds);
}

static int ask_one(struct profile_run *r, uint32_t node, const struct probe_ask *ask, struct hapi_err *err)
{
    struct probe_answer *a = &r->answers[node * PROBE_SLOTS];
    int rc = probe_start(r->probes[node], ask, a, err);

    rc = rc ? rc : probe_wait(r->probes[node], err);
    if (!rc && is_whole(a))
        transfer_add(&r->links[node], (double)a->parts[0].bytes, rest_s(a));
    return rc;
}

/* The same n times after one to warm up, or once if that took long. each() takes what the answers say. */
static int ask_some(struct profile_run *r, uint32_t node, const struct probe_ask *ask,
                    void (*each)(struct profile_run *r, const struct probe_answer *a, void *arg), void *arg,
                    struct hapi_err *err)
{
    const struct probe_answer *a = &r->answers[node * PROBE_SLOTS];
    int rc = probe_start(r->probes[node], ask, &r->answers[node * PROBE_SLOTS], err);

    rc = rc ? rc : probe_wait(r->probes[node], err);
    if (rc || a->status)
        return rc;
    int64_t first = a->parts[0].arrived_ns - a->sent_ns - a->parts[0].ns[QUEUE]; /* without compiling */
    for (int i = 0; i < ASKS && !rc && (!i || first < LONG_NS); i++) {
        rc = ask_one(r, node, ask, err);
        if (!rc && is_whole(a))
            each(r, a, arg);
    }
    return rc;
}

static void refuse(struct profile_run *r, uint32_t cut, const char *why)
{
    if (!r->refused[cut])
        r->refused[cut] = strdup(why);
}

/* Computing takes as long whatever is sent: over a slow link the narrowest wire of what f32 would fit. */
static enum hapi_dtype wire_for(const struct profile_run *r, uint32_t node, uint32_t cut, uint32_t n)
{
    double rate = profile_bandwidth(&r->links[node]);
    bool slow = rate > 0 && (double)r->cuts[cut].bytes_f32 * n > SLOW_S * rate;

    return slow && r->probes[node]->caps & HAPI_CAP_INT8 ? HAPI_I8 : HAPI_F32;
}

/* ------------------------------------------------------------------ cuts */

struct cut_visit {
    struct series *compute;
};

static void cut_answer(struct profile_run *r, const struct probe_answer *a, void *arg)
{
    series_add(((struct cut_visit *)arg)->compute, per_image(a, COMPUTE));
    series_add(&r->storage_prepare, per_image(a, DECODE));
    series_add(&r->read, per_image(a, READ));
}

int profile_node_cut(struct profile_run *r, uint32_t cut, uint32_t batch, struct hapi_err *err)
{
    uint32_t n = r->o->batches[batch];
    struct cut_visit v = {profile_cell(r, r->storage, cut, batch)};
    struct probe_ask ask = {.cut = &r->cuts[cut], .wire = wire_for(r, 0, cut, n), .n = n};
    int rc = ask_some(r, 0, &ask, cut_answer, &v, err);

    if (!rc && r->answers[0].status)
        refuse(r, cut, r->answers[0].why);
    else if (!rc && !v.compute->n)
        refuse(r, cut, "the node makes several micro-batches of what should be one");
    return rc;
}

static void add_compute(struct profile_run *r, const struct probe_answer *a, void *arg)
{
    (void)r;
    series_add(arg, per_image(a, COMPUTE));
}

int profile_node_speeds(struct profile_run *r, uint32_t cut, uint32_t batch, struct hapi_err *err)
{
    double first = series_median(profile_cell(r, r->storage, cut, batch));
    uint32_t n = r->o->batches[batch];
    int rc = 0;

    for (uint32_t i = 1; i < r->n_nodes && !rc; i++) {
        struct series here = {0};
        struct probe_ask ask = {.cut = &r->cuts[cut], .wire = wire_for(r, i, cut, n), .n = n};
        rc = ask_some(r, i, &ask, add_compute, &here, err);
        if (here.n && first > 0)
            series_add(&r->links[i].speed, first / series_median(&here));
    }
    return rc;
}

int profile_node_contention(struct profile_run *r, uint32_t cut, uint32_t batch, struct hapi_err *err)
{
    struct probe *p = r->probes[0];
    uint32_t n = r->o->batches[batch], k = p->limits.threads < p->n_slots ? p->limits.threads : p->n_slots;
    struct probe_ask ask = {.cut = &r->cuts[cut], .wire = wire_for(r, 0, cut, n), .n = n};
    struct series alone = {0}, together = {0};
    int rc = ask_some(r, 0, &ask, add_compute, &alone, err);

    for (int round = 0; round < 2 && k > 1 && !rc; round++) {
        for (uint32_t i = 0; i < k && !rc; i++)
            rc = probe_start(p, &ask, &r->answers[i], err);
        int waited = probe_wait(p, rc ? NULL : err);
        rc = rc ? rc : waited;
        for (uint32_t i = 0; i < k && !rc && round; i++) /* the first warms all threads up */
            if (is_whole(&r->answers[i]))
                series_add(&together, per_image(&r->answers[i], COMPUTE));
    }
    if (!rc && alone.n && together.n)
        series_add(&r->contention[0], (series_median(&together) / series_median(&alone) - 1) / (k - 1));
    return rc;
}

static void add_convert(struct profile_run *r, const struct probe_answer *a, void *arg)
{
    (void)r;
    series_add(arg, per_image(a, CONVERT));
}

int profile_node_wires(struct profile_run *r, uint32_t cut, uint32_t batch, struct hapi_err *err)
{
    int rc = 0;

    for (int w = HAPI_WIRE_F16; w < HAPI_WIRES_N && !rc; w++) {
        struct series there = {0};
        double here = series_median(&r->pack[cut * HAPI_WIRES_N + (uint32_t)w]);
        struct probe_ask ask = {
            .cut = &r->cuts[cut], .wire = hapi_wire_dtype((enum hapi_wire)w), .n = r->o->batches[batch]};
        if (!(here > 0) || (ask.wire == HAPI_I8 && !(r->probes[0]->caps & HAPI_CAP_INT8)))
            continue;
        rc = ask_some(r, 0, &ask, add_convert, &there, err);
        if (there.n)
            series_add(&r->pack_ratio[w], series_median(&there) / here);
    }
    return rc;
}

/* ------------------------------------------------------------------ links */

/* A stream can only be too slow, since it may wait for the disk; what single transfers say is off by a tenth
 * either way where the machines have other work. They count where the stream is much slower. */
double profile_bandwidth(const struct profile_link *l)
{
    double stream = series_median(&l->streams), slope = points_slope(&l->transfers, APART);
    double one = slope > 0 ? 1 / slope : NAN;

    return isnan(one) || stream > STREAM_SURE * one ? stream : one;
}

/* A payload that would have taken longer than all of it passed in a burst that the link lets through. */
double profile_latency(const struct profile_link *l)
{
    double s = series_median(&l->small), payload = l->small_bytes / profile_bandwidth(l);
    return payload < s ? s - payload : s > 0 ? s : 0;
}

/* Requests with next to no payload: the features of one image. */
static int latency_visit(struct profile_run *r, uint32_t node, struct hapi_err *err)
{
    bool narrow = r->probes[node]->caps & HAPI_CAP_INT8;
    struct probe_ask ask = {.cut = &r->cuts[r->n_cuts - 1], .wire = narrow ? HAPI_I8 : HAPI_F32, .n = 1};
    int rc = 0;

    for (int i = 0; i <= 2 * ASKS && !rc; i++)
        rc = ask_one(r, node, &ask, err);
    return rc;
}

/* Raw objects: as many at a time as take a fair while by what is known of the link; at first, a few. A link
 * that lets a burst pass must be asked for many times that. */
static int stream_start(struct profile_run *r, uint32_t node, uint32_t *asked, struct hapi_err *err)
{
    struct probe *p = r->probes[node];
    double rate = profile_bandwidth(&r->links[node]),
           bytes = STREAM_S * (rate > 0 ? rate : r->links[node].guess);
    double fit = (double)p->slot_bytes / (r->catalog.max_sample_bytes + 4096.0);
    double most = bytes > 0 ? STREAM_SAMPLES : FIRST_SAMPLES;
    struct probe_ask ask = {.n = fit < 1 ? 1 : fit < most ? (uint32_t)fit : (uint32_t)most};
    double asks = bytes / (ask.n * r->mean_bytes);
    int rc = 0;

    while (bytes > 0 && asks < 2 && ask.n > 1) {
        ask.n = (ask.n + 1) / 2;
        asks = bytes / (ask.n * r->mean_bytes);
    }
    *asked = asks < 2 ? 2 : asks < p->n_slots ? (uint32_t)asks : p->n_slots;
    *asked = *asked < p->n_slots ? *asked : p->n_slots;
    for (uint32_t i = 0; i < *asked && !rc; i++)
        rc = probe_start(p, &ask, &r->answers[node * PROBE_SLOTS + i], err);
    return rc;
}

/* All bytes by the time from the first request to the last part: what is no link's can only make it lower. */
static double stream_rate(const struct profile_run *r, uint32_t first, uint32_t last, const uint32_t *asked)
{
    int64_t begin = INT64_MAX, end = 0;
    double bytes = 0;

    for (uint32_t node = first; node < last; node++)
        for (uint32_t i = 0; i < asked[node]; i++) {
            const struct probe_answer *a = &r->answers[node * PROBE_SLOTS + i];
            begin = a->sent_ns < begin ? a->sent_ns : begin;
            for (uint32_t k = 0; k < a->n_parts; k++) {
                bytes += (double)a->parts[k].bytes;
                end = a->parts[k].arrived_ns > end ? a->parts[k].arrived_ns : end;
            }
        }
    return end > begin ? bytes / (1e-9 * (double)(end - begin)) : 0;
}

static int stream_visit(struct profile_run *r, uint32_t first, uint32_t last, struct series *s,
                        struct hapi_err *err)
{
    uint32_t asked[HAPI_NODES_MAX] = {0};
    int rc = 0;

    for (uint32_t i = first; i < last && !rc; i++)
        rc = stream_start(r, i, &asked[i], err);
    for (uint32_t i = first; i < last; i++) {
        int waited = probe_wait(r->probes[i], rc ? NULL : err);
        rc = rc ? rc : waited;
    }
    double rate = rc ? 0 : stream_rate(r, first, last, asked);
    if (rate > 0)
        series_add(s, rate);
    return rc;
}

int profile_node_links(struct profile_run *r, uint32_t cut, uint32_t batch, struct hapi_err *err)
{
    int rc = 0;

    (void)cut; /* raw objects have neither */
    (void)batch;
    for (uint32_t i = 0; i < r->n_nodes && !rc; i++) {
        struct series first = {0};
        if (!(r->links[i].guess > 0)) {
            rc = stream_visit(r, i, i + 1, &first, err);
            r->links[i].guess = first.n ? series_median(&first) : 0;
        }
        rc = rc ? rc : stream_visit(r, i, i + 1, &r->links[i].streams, err);
        rc = rc ? rc : latency_visit(r, i, err);
    }
    return rc || r->n_nodes < 2 ? rc : stream_visit(r, 0, r->n_nodes, &r->both_streams, err);
}
