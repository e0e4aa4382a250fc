/*
 * In which order a profile is measured, for how long, and this machine's part of it.
 *
 * Within the time there is: first what is quick, then every cut at the main micro-batch, spread evenly from
 * both ends; then the other micro-batches at a few cuts, what several cores do to each other, the wire
 * dtypes; then all of it again and again, there and back, so that what disturbs the machine for a while
 * disturbs a few samples of everything and not all of one thing.
 */
#include "profile_run.h"

#include <math.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "clock.h"

enum { ANCHORS = 4, ROUNDS_MAX = 8 };
/* Shares of the time: until then new cuts, until then new micro-batches. */
#define CUTS_UNTIL 0.5
#define CURVES_UNTIL 0.85
/* The main micro-batch: the largest of which a run of the whole takes no more than this share of the time. */
#define MAIN_SHARE 0.025

const char *const profile_given_keys[PROFILE_GIVEN_N] = {
#define X(name, key, otherwise) key,
    PROFILE_GIVEN(X)
#undef X
};

/* ------------------------------------------------------------------ opening */

static int cuts_open(struct profile_run *r, struct hapi_err *err)
{
    const struct hapi_cut *freeze;
    size_t n = 0;
    int rc = r->o->freeze ? hapi_model_cut_find(r->model, r->o->freeze, &freeze, err)
                          : hapi_model_cut_default(r->model, &freeze, err);

    if (rc)
        return rc;
    char *id = strdup(freeze->id); /* the list may be made anew */
    rc = id ? hapi_model_cuts(r->model, &r->cuts, &n, err) : hapi_err_set(err, HAPI_ENOMEM, 0, "no memory");
    for (size_t i = 0; i < n && !rc && !r->n_cuts; i++)
        if (!strcmp(r->cuts[i].id, id))
            r->n_cuts = (uint32_t)i + 1;
    if (!rc && !r->n_cuts)
        rc = hapi_err_set(err, HAPI_EINVAL, 0, "freeze: %.200s is none of the cuts that hapi cuts lists", id);
    free(id);
    return rc;
}

static int memory_open(struct profile_run *r, struct hapi_err *err)
{
    size_t n = r->n_cuts, cells = n * r->o->n_batches;

    r->x = calloc(n, sizeof *r->x);
    r->limit = calloc(n, sizeof *r->limit);
    r->storage = calloc(cells, sizeof *r->storage);
    r->compute = calloc(cells, sizeof *r->compute);
    r->pack = calloc(n * HAPI_WIRES_N, sizeof *r->pack);
    r->unpack = calloc(n * HAPI_WIRES_N, sizeof *r->unpack);
    r->refused = calloc(n, sizeof *r->refused);
    if (!r->x || !r->limit || !r->storage || !r->compute || !r->pack || !r->unpack || !r->refused)
        return hapi_err_set(err, HAPI_ENOMEM, 0, "no memory for %u cuts", r->n_cuts);
    double all = (double)r->cuts[n - 1].flops;
    for (size_t i = 0; i < n;
         i++) /* cuts with nothing but cheap operators between them differ a little, too */
        r->x[i] = (all > 0 ? (double)r->cuts[i].flops / all : 0) + 1e-9 * (double)i;
    return 0;
}

int profile_open(struct profile_run *r, const struct profile_options *o, struct hapi_err *err)
{
    *r = (struct profile_run){.o = o};
    int rc = hapi_backend_ready(o->backend, err);

    rc = rc ? rc : hapi_topology_open(&r->topology, err);
    rc = rc ? rc : hapi_model_open(&r->model, o->model, NULL, err);
    rc = rc ? rc : hapi_transform_load(&r->transform, o->transform, o->model, err);
    if (!rc && hapi_transform_text(&r->transform, r->transform_text, sizeof r->transform_text) < 0)
        rc = hapi_err_set(err, HAPI_ETOOBIG, 0, "the transform of %s is too long", o->model);
    rc = rc ? rc : cuts_open(r, err);
    return rc ? rc : memory_open(r, err);
}

void profile_close(struct profile_run *r)
{
    profile_data_close(r);
    measure_close(&r->memory);
    for (uint32_t i = 0; r->refused && i < r->n_cuts; i++)
        free(r->refused[i]);
    free(r->refused);
    free(r->unpack);
    free(r->pack);
    free(r->compute);
    free(r->storage);
    free(r->limit);
    free(r->x);
    hapi_model_close(r->model);
    hapi_topology_close(r->topology);
}

/* ------------------------------------------------------------------ what visits share */

struct series *profile_cell(const struct profile_run *r, struct series *of, uint32_t cut, uint32_t batch)
{
    return &of[cut * r->o->n_batches + batch];
}

struct grid profile_grid(const struct profile_run *r, const uint32_t *limit)
{
    return (struct grid){.n_cuts = r->n_cuts,
                         .n_batches = r->o->n_batches,
                         .batches = r->o->batches,
                         .main = r->main,
                         .x = r->x,
                         .limit = limit};
}

static double elapsed(const struct profile_run *r)
{
    return 1e-9 * (double)(hapi_clock_ns() - r->began_ns);
}

static void say(const struct profile_run *r, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void say(const struct profile_run *r, const char *fmt, ...)
{
    va_list ap;

    if (r->o->quiet)
        return;
    va_start(ap, fmt);
    fprintf(stderr, "%s%5.0f s  ", isatty(STDERR_FILENO) ? "\r\033[K" : "", elapsed(r));
    vfprintf(stderr, fmt, ap);
    fputs(isatty(STDERR_FILENO) ? "" : "\n", stderr);
    va_end(ap);
}

static struct hapi_plan_spec spec_of(const struct profile_run *r, const char *from, const char *to,
                                     uint32_t batch)
{
    return (struct hapi_plan_spec){.from = from,
                                   .to = to,
                                   .batch = r->o->batches[batch],
                                   .dtype = r->o->dtype,
                                   .backend = r->o->backend};
}

static const char *freeze_id(const struct profile_run *r)
{
    return r->cuts[r->n_cuts - 1].id;
}

/* ------------------------------------------------------------------ this machine's part */

/* What is measured here runs on a thread of its own, while this one answers the nodes' heartbeats: a run may
 * take longer than they wait for a sign of life. */
struct aside {
    struct profile_run *r;
    int (*run)(struct aside *a, struct hapi_err *err);
    struct hapi_plan_spec spec;
    struct series *s;
    uint32_t cut;
    char **text;
    int rc;
    struct hapi_err err;
    atomic_bool over;
};

static void *aside_run(void *arg)
{
    struct aside *a = arg;

    a->rc = a->run(a, &a->err);
    atomic_store(&a->over, true);
    hapi_loop_wake(a->r->loop);
    return NULL;
}

static int aside(struct aside *a, struct hapi_err *err)
{
    pthread_t thread;
    int rc = pthread_create(&thread, NULL, aside_run, a);

    if (rc)
        return hapi_err_errno(err, rc, "cannot start a thread");
    while (!rc && !atomic_load(&a->over))
        rc = hapi_loop_run_once(a->r->loop, HAPI_NS_PER_S, err);
    pthread_join(thread, NULL);
    if (a->rc)
        *err = a->err;
    return a->rc ? a->rc : rc;
}

static int plan_aside(struct aside *a, struct hapi_err *err)
{
    return measure_plan(&a->r->memory, a->r->model, &a->spec, a->s, err);
}

static int contention_aside(struct aside *a, struct hapi_err *err)
{
    return measure_contention(a->r->model, &a->spec, a->r->topology, hapi_topology_cores(a->r->topology),
                              a->s, err);
}

static int quick_aside(struct aside *a, struct hapi_err *err)
{
    struct profile_run *r = a->r;
    const struct profile_options *o = r->o;
    int64_t width = 0;
    int rc = measure_decode(&r->transform, r->images, r->n_images, &r->source_prepare, err);

    if (rc || !isnan(o->given[PROFILE_TRAIN]))
        return rc;
    if (hapi_shape_elements(&r->cuts[r->n_cuts - 1].tensors[0].shape, &width))
        return hapi_err_set(err, HAPI_EINVAL, 0, "freeze: its features are none of a fixed number");
    return measure_train((size_t)width, r->n_classes, o->train_batch, &r->train, err);
}

static int convert_aside(struct aside *a, struct hapi_err *err)
{
    struct profile_run *r = a->r;
    int rc = 0;

    for (int w = HAPI_WIRE_F16; w < HAPI_WIRES_N && !rc; w++) {
        size_t at = a->cut * HAPI_WIRES_N + (size_t)w;
        rc = measure_convert(&r->memory, &r->cuts[a->cut], hapi_wire_dtype((enum hapi_wire)w),
                             r->o->batches[r->main], &r->pack[at], &r->unpack[at], err);
        rc = rc == HAPI_EUNSUPPORTED ? 0 : rc;
    }
    return rc;
}

static int text_aside(struct aside *a, struct hapi_err *err)
{
    return profile_text(a->r, a->text, err);
}

/* ------------------------------------------------------------------ visits */

static int plan_visit(struct profile_run *r, const char *from, const char *to, uint32_t batch,
                      struct series *s, struct hapi_err *err)
{
    struct aside a = {.r = r, .run = plan_aside, .spec = spec_of(r, from, to, batch), .s = s};
    return aside(&a, err);
}

enum asked { ASKED_LINKS, ASKED_CUT, ASKED_CONTENTION, ASKED_SPEEDS, ASKED_WIRES };

/* Again where a connection was lost meanwhile. */
static int nodes_visit(struct profile_run *r, enum asked what, uint32_t cut, uint32_t batch,
                       struct hapi_err *err)
{
    static int (*const ask[])(struct profile_run * r, uint32_t cut, uint32_t batch, struct hapi_err * err) = {
        [ASKED_LINKS] = profile_node_links,           [ASKED_CUT] = profile_node_cut,
        [ASKED_CONTENTION] = profile_node_contention, [ASKED_SPEEDS] = profile_node_speeds,
        [ASKED_WIRES] = profile_node_wires,
    };

    for (;;) {
        int rc = ask[what](r, cut, batch, err);
        if (!rc)
            return 0;
        say(r, "%.300s", err->text);
        rc = profile_nodes_again(r, rc, err);
        if (rc)
            return rc;
    }
}

static int compute_visit(struct profile_run *r, uint32_t cut, uint32_t batch, struct hapi_err *err)
{
    if (cut + 1 == r->n_cuts) /* nothing is left */
        return 0;
    return plan_visit(r, r->cuts[cut].id, freeze_id(r), batch, profile_cell(r, r->compute, cut, batch), err);
}

static int storage_visit(struct profile_run *r, uint32_t cut, uint32_t batch, struct hapi_err *err)
{
    if (r->refused[cut] || batch >= r->limit[cut])
        return 0;
    if (r->n_nodes)
        return nodes_visit(r, ASKED_CUT, cut, batch, err);
    return plan_visit(r, NULL, r->cuts[cut].id, batch, profile_cell(r, r->storage, cut, batch), err);
}

static int whole_visit(struct profile_run *r, uint32_t batch, struct hapi_err *err)
{
    return plan_visit(r, NULL, freeze_id(r), batch, &r->whole[batch], err);
}

static int quick_visit(struct profile_run *r, struct hapi_err *err)
{
    struct aside a = {.r = r, .run = quick_aside};
    int rc = r->n_nodes ? nodes_visit(r, ASKED_LINKS, 0, 0, err) : profile_read(r, err);

    return rc ? rc : aside(&a, err);
}

/* ------------------------------------------------------------------ the main micro-batch and limits */

static int main_choose(struct profile_run *r, struct hapi_err *err)
{
    const struct profile_options *o = r->o;
    int rc = whole_visit(r, 0, err);

    if (rc)
        return rc;
    double one = series_median(&r->whole[0]);
    for (uint32_t b = 1; b < o->n_batches; b++)
        if (o->batches[b] <= PROFILE_MICRO_BATCH && one * o->batches[b] <= MAIN_SHARE * o->seconds)
            r->main = b;
    for (uint32_t i = 0; i < r->n_cuts; i++) {
        uint32_t most = r->n_nodes ? probe_most(r->probes[0], &r->cuts[i], HAPI_F32) : UINT32_MAX;
        for (uint32_t n = 1; r->n_nodes > n; n++) {
            uint32_t other = probe_most(r->probes[n], &r->cuts[i], HAPI_F32);
            most = other < most ? other : most;
        }
        while (r->limit[i] < o->n_batches && o->batches[r->limit[i]] <= most)
            r->limit[i]++;
        if (r->limit[i])
            continue;
        char why[160];
        snprintf(why, sizeof why, "an image of it takes %llu bytes: more than the node's --send-area",
                 (unsigned long long)r->cuts[i].bytes_f32);
        r->refused[i] = strdup(why);
        r->limit[i] = 1;
    }
    return 0;
}

/* ------------------------------------------------------------------ the order of it all */

static bool is_measured(const struct profile_run *r, uint32_t cut)
{
    struct grid g = profile_grid(r, r->limit);
    bool here = cut + 1 == r->n_cuts || profile_cell(r, r->compute, cut, r->main)->n;
    return here && profile_cell(r, r->storage, cut, grid_main(&g, cut))->n;
}

static int cut_visit(struct profile_run *r, uint32_t cut, struct hapi_err *err)
{
    struct aside convert = {.r = r, .run = convert_aside, .cut = cut};
    struct grid g = profile_grid(r, r->limit);
    int rc = storage_visit(r, cut, grid_main(&g, cut), err);

    rc = rc ? rc : compute_visit(r, cut, r->main, err);
    return rc ? rc : aside(&convert, err);
}

static int cuts_visit(struct profile_run *r, const uint32_t *order, struct hapi_err *err)
{
    uint32_t done = 0;
    int rc = whole_visit(r, r->main, err);

    for (uint32_t i = 0; i < r->n_order && !rc; i++) {
        if (i > 1 && elapsed(r) > CUTS_UNTIL * r->o->seconds)
            break;
        rc = cut_visit(r, order[i], err);
        say(r, "%u of %u cuts, %u images at a time", ++done, r->n_order, r->o->batches[r->main]);
    }
    return rc;
}

/* Where the other micro-batches are measured: a cut in the middle, both ends, another one. */
static uint32_t anchors_of(const struct profile_run *r, const uint32_t *order, uint32_t anchors[ANCHORS])
{
    static const uint32_t first[ANCHORS] = {2, 0, 1, 3};
    uint32_t n = 0;

    for (int i = 0; i < ANCHORS; i++)
        if (first[i] < r->n_order && !r->refused[order[first[i]]] && is_measured(r, order[first[i]]))
            anchors[n++] = order[first[i]];
    return n;
}

/* What cores do to each other, and how the nodes differ. */
static int cores_visit(struct profile_run *r, uint32_t cut, struct hapi_err *err)
{
    struct grid g = profile_grid(r, r->limit);
    const char *from = cut + 1 == r->n_cuts ? NULL : r->cuts[cut].id;
    struct aside here = {.r = r,
                         .run = contention_aside,
                         .spec = spec_of(r, from, freeze_id(r), r->main),
                         .s = &r->contention[1]};
    int rc = r->n_nodes ? nodes_visit(r, ASKED_CONTENTION, cut, grid_main(&g, cut), err) : 0;

    rc = rc ? rc : aside(&here, err);
    return rc || !r->n_nodes ? rc : nodes_visit(r, ASKED_SPEEDS, cut, grid_main(&g, cut), err);
}

static int curves_visit(struct profile_run *r, const uint32_t *order, struct hapi_err *err)
{
    uint32_t anchors[ANCHORS], n = anchors_of(r, order, anchors);
    double until = CURVES_UNTIL * r->o->seconds;
    int rc = 0;

    for (uint32_t a = 0; a < n && !rc; a++) {
        say(r, "other micro-batches, wire dtypes at %s", r->cuts[anchors[a]].name);
        for (uint32_t b = 0; b < r->o->n_batches && !rc && elapsed(r) < until; b++) {
            if (b == r->main)
                continue;
            rc = storage_visit(r, anchors[a], b, err);
            rc = rc ? rc : compute_visit(r, anchors[a], b, err);
            if (!rc && !r->whole[b].n)
                rc = whole_visit(r, b, err);
        }
        if (!rc && !a)
            rc = cores_visit(r, anchors[0], err);
        struct grid g = profile_grid(r, r->limit);
        if (!rc && r->n_nodes && elapsed(r) < until)
            rc = nodes_visit(r, ASKED_WIRES, anchors[a], grid_main(&g, anchors[a]), err);
    }
    return rc;
}

/* All that was measured once more. */
static int round_visit(struct profile_run *r, const uint32_t *order, struct hapi_err *err)
{
    uint32_t anchors[ANCHORS], n = anchors_of(r, order, anchors);
    int rc = quick_visit(r, err);

    for (uint32_t b = 0; b < r->o->n_batches && !rc; b++)
        if (r->whole[b].n && elapsed(r) < r->o->seconds)
            rc = whole_visit(r, b, err);
    for (uint32_t k = 0; k < r->n_cuts && !rc; k++) {
        uint32_t cut = r->rounds % 2 ? k : r->n_cuts - 1 - k;
        for (uint32_t b = 0; b < r->o->n_batches && !rc && elapsed(r) < r->o->seconds; b++) {
            if (profile_cell(r, r->storage, cut, b)->n)
                rc = storage_visit(r, cut, b, err);
            if (!rc && profile_cell(r, r->compute, cut, b)->n)
                rc = compute_visit(r, cut, b, err);
        }
    }
    if (!rc && n && elapsed(r) < r->o->seconds)
        rc = cores_visit(r, anchors[0], err);
    return rc;
}

/* The cuts that may be served, ends first; r->n_order of them. */
static void order_make(struct profile_run *r, uint32_t *order, uint32_t *served)
{
    for (uint32_t i = 0; i < r->n_cuts; i++)
        if (!r->refused[i])
            served[r->n_order++] = i;
    grid_order(order, r->n_order);
    for (uint32_t i = 0; i < r->n_order; i++)
        order[i] = served[order[i]];
}

static int all_visit(struct profile_run *r, uint32_t *order, uint32_t *served, struct hapi_err *err)
{
    say(r, "reading, decoding, training%s", r->n_nodes ? ", goodput" : "");
    int rc = quick_visit(r, err);

    rc = rc ? rc : main_choose(r, err);
    order_make(r, order, served);
    rc = rc ? rc : cuts_visit(r, order, err);
    rc = rc ? rc : curves_visit(r, order, err);
    for (r->rounds = 1; !rc && r->rounds < ROUNDS_MAX && elapsed(r) < r->o->seconds; r->rounds++) {
        say(r, "all of it once more (%u)", r->rounds);
        rc = round_visit(r, order, err);
    }
    r->took_s = elapsed(r);
    say(r, "measured, %u rounds", r->rounds);
    if (!r->o->quiet && isatty(STDERR_FILENO))
        fputc('\n', stderr);
    return rc;
}

int profile_measure(struct profile_run *r, char **text, struct hapi_err *err)
{
    struct aside out = {.r = r, .run = text_aside, .text = text};
    uint32_t *order = calloc(2 * (size_t)r->n_cuts, sizeof *order);

    if (!order)
        return hapi_err_set(err, HAPI_ENOMEM, 0, "no memory for %u cuts", r->n_cuts);
    int rc = profile_data_open(r, err);
    r->began_ns = hapi_clock_ns(); /* how long nodes take to be ready is not in our hands */
    rc = rc ? rc : all_visit(r, order, order + r->n_cuts, err);
    free(order);
    return rc ? rc : aside(&out, err);
}
