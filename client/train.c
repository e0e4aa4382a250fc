#include "train_job.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "clock.h"
#include "head.h"
#include "order.h"

static int loader_error(struct hapi_err *err, const struct hapi_error *e)
{
    return hapi_err_set(err, e->code, 0, "%s", e->text);
}

/* ------------------------------------------------------------------ progress */

static void progress(struct job *j, const char *what, uint64_t done, uint64_t all, int64_t since_ns)
{
    int64_t now = hapi_clock_ns();
    char bar[31] = "                              ";

    if (j->o->quiet || !isatty(STDERR_FILENO) || (done < all && now - j->shown_ns < 50 * HAPI_NS_PER_MS))
        return;
    j->shown_ns = now;
    memset(bar, '#', all ? 30 * done / all : 30);
    fprintf(stderr, "\r%-14s [%s] %llu/%llu  %.0f images/s ", what, bar, (unsigned long long)done,
            (unsigned long long)all, (double)done / (1e-9 * (double)(now - since_ns) + 1e-9));
    if (done == all)
        fputs("\r\033[K", stderr);
}

/* ------------------------------------------------------------------ kept features */

static int kept_open(struct kept *k, uint64_t n, size_t width, struct hapi_err *err)
{
    *k = (struct kept){.n = n, .width = width};
    k->features = calloc(n * width, sizeof(float));
    k->labels = calloc(n, sizeof *k->labels);
    k->present = calloc(n, 1);
    return k->features && k->labels && k->present
               ? 0
               : hapi_err_set(err, HAPI_ENOMEM, 0, "no memory to keep %llu features of %zu floats",
                              (unsigned long long)n, width);
}

static void kept_close(struct kept *k)
{
    free(k->features);
    free(k->labels);
    free(k->present);
}

static void kept_put(struct kept *k, const struct hapi_batch_view *b)
{
    for (uint32_t i = 0; i < b->n; i++) {
        uint64_t s = b->samples[i];
        memcpy(k->features + s * k->width, (const char *)b->features + i * b->stride,
               k->width * sizeof(float));
        k->labels[s] = b->labels[i];
        k->present[s] = 1;
    }
}

/* ------------------------------------------------------------------ epochs */

static int step(struct job *j, const float *const *rows, const uint32_t *labels, uint32_t n, struct result *r,
                struct hapi_err *err)
{
    double loss;

    if (!n)
        return 0;
    int64_t began = hapi_clock_ns();
    int rc = head_train(j->head, rows, labels, n, &loss, err);
    hapi_trace_span(j->o->loader.trace, "train", began, hapi_clock_ns());
    r->loss += rc ? 0 : loss * n;
    r->images += n;
    return rc;
}

static int order_write(struct job *j, uint32_t epoch, uint64_t sample, struct hapi_err *err)
{
    /* Line-buffered: whoever watches the file sees how far the job is. */
    if (j->order_file && fprintf(j->order_file, "%u %llu\n", epoch, (unsigned long long)sample) < 0)
        return hapi_err_errno(err, errno, "cannot write %s", j->o->dump_order);
    return 0;
}

/* The plan, once it is another one. */
static void replan_print(struct job *j)
{
    uint32_t n = hapi_loader_replans(j->train, NULL, 0);

    if (j->o->quiet || n == j->replans)
        return;
    j->replans = n;
    struct hapi_loader_replan list[TRAIN_REPLANS_MAX],
        *last = &list[(n < TRAIN_REPLANS_MAX ? n : TRAIN_REPLANS_MAX) - 1];
    hapi_loader_replans(j->train, list, TRAIN_REPLANS_MAX);
    printf("%s%.1f s: a new plan, at %.3g MB/s: %.3g s an epoch instead of %.3g s\n",
           isatty(STDERR_FILENO) ? "\r\033[K" : "", last->seconds, 1e-6 * last->bandwidth_Bps, last->epoch_s,
           last->before_s);
    for (uint32_t i = 0; i < last->n_parts; i++)
        printf("  %3.0f %% of the samples  split %s  wire %s\n", 100 * last->parts[i].share,
               last->parts[i].split, last->parts[i].wire);
}

static int epoch_fetch(struct job *j, uint32_t epoch, struct result *r, struct hapi_err *err)
{
    struct hapi_batch_view b;
    struct hapi_error e = {0};
    char what[32];
    struct hapi_loader_stats before = hapi_loader_stats_get(j->train);
    uint64_t taken = 0;
    int64_t since = hapi_clock_ns();
    int rc, more = hapi_loader_epoch(j->train, epoch, &e);

    snprintf(what, sizeof what, "epoch %u", epoch + 1);
    if (more)
        return loader_error(err, &e);
    while ((more = hapi_loader_next(j->train, &b, &e)) == 1) {
        for (uint32_t i = 0; i < b.n; i++) {
            j->rows[i] = (const float *)((const char *)b.features + i * b.stride);
            if ((rc = order_write(j, epoch, b.samples[i], err)))
                return rc;
        }
        if (epoch == 0)
            head_observe(j->head, j->rows, b.n);
        if ((rc = step(j, j->rows, b.labels, b.n, r, err)))
            return rc;
        if (j->kept.features)
            kept_put(&j->kept, &b);
        taken += b.n + b.n_bad;
        hapi_loader_release(j->train, &b);
        replan_print(j);
        progress(j, what, taken, hapi_loader_samples(j->train), since);
    }
    r->bytes = hapi_loader_stats_get(j->train).wire_bytes - before.wire_bytes;
    r->kept = hapi_loader_stats_get(j->train).kept - before.kept;
    return more < 0 ? loader_error(err, &e) : 0;
}

static int epoch_memory(struct job *j, uint32_t epoch, struct result *r, struct hapi_err *err)
{
    const struct kept *k = &j->kept;
    uint32_t n = 0;

    r->from_memory = 1;
    hapi_order_shuffle(j->order, (uint32_t)k->n, j->o->loader.seed, epoch);
    for (uint64_t i = 0; i < k->n; i++) {
        uint32_t s = j->order[i];
        int rc = k->present[s] ? order_write(j, epoch, s, err) : 0;
        if (k->present[s]) {
            j->labels[n] = k->labels[s];
            j->rows[n++] = k->features + s * k->width;
        }
        if (!rc && (n == j->o->loader.batch || i + 1 == k->n)) {
            rc = step(j, j->rows, j->labels, n, r, err);
            n = 0;
        }
        if (rc)
            return rc;
    }
    return 0;
}

/* Epoch 1 only: the test features are fetched once and kept. */
static int test_fetch(struct job *j, struct hapi_err *err)
{
    struct hapi_batch_view b;
    struct hapi_error e = {0};
    uint64_t taken = 0;
    int64_t since = hapi_clock_ns();
    int more = hapi_loader_epoch(j->test, 0, &e);

    if (more)
        return loader_error(err, &e);
    while ((more = hapi_loader_next(j->test, &b, &e)) == 1) {
        kept_put(&j->tested, &b);
        taken += b.n + b.n_bad;
        hapi_loader_release(j->test, &b);
        progress(j, "test", taken, hapi_loader_samples(j->test), since);
    }
    j->test_seconds = 1e-9 * (double)(hapi_clock_ns() - since);
    j->test_bytes = hapi_loader_stats_get(j->test).wire_bytes;
    return more < 0 ? loader_error(err, &e) : 0;
}

static int test_score(struct job *j, double *accuracy, struct hapi_err *err)
{
    const struct kept *t = &j->tested;
    uint64_t right = 0, all = 0;

    for (uint64_t at = 0; at < t->n; at += j->o->loader.batch) {
        uint32_t n = t->n - at < j->o->loader.batch ? (uint32_t)(t->n - at) : j->o->loader.batch, m = 0;
        for (uint32_t i = 0; i < n; i++)
            if (t->present[at + i])
                j->rows[m++] = t->features + (at + i) * t->width;
        int rc = m ? head_predict(j->head, j->rows, m, j->labels, err) : 0;
        if (rc)
            return rc;
        m = 0;
        for (uint32_t i = 0; i < n; i++) {
            j->predictions[at + i] = UINT32_MAX;
            if (!t->present[at + i])
                continue;
            j->predictions[at + i] = j->labels[m];
            right += j->labels[m++] == t->labels[at + i];
            all++;
        }
    }
    *accuracy = all ? (double)right / (double)all : 0;
    return 0;
}

static int epochs_run(struct job *j, struct hapi_err *err)
{
    for (uint32_t e = 0; e < j->o->epochs; e++) {
        struct result *r = &j->results[e];
        int64_t since = hapi_clock_ns();
        int rc = e && j->kept.features ? epoch_memory(j, e, r, err) : epoch_fetch(j, e, r, err);
        r->seconds = 1e-9 * (double)(hapi_clock_ns() - since);
        r->loss = r->images ? r->loss / (double)r->images : 0;
        if (!rc && !e)
            rc = test_fetch(j, err);
        if (!rc)
            rc = test_score(j, &r->accuracy, err);
        if (rc)
            return rc;
        if (!j->o->quiet)
            printf("epoch %2u  %6.2f s  %9.0f images/s  %8.2f MB %s  loss %.4f  test accuracy %.4f\n", e + 1,
                   r->seconds, (double)r->images / r->seconds, 1e-6 * (double)r->bytes,
                   r->from_memory ? "(memory)"
                   : r->kept      ? "(kept)  "
                                  : "        ",
                   r->loss, r->accuracy);
        fflush(stdout);
    }
    return 0;
}

/* ------------------------------------------------------------------ opening */

static int job_memory(struct job *j, struct hapi_err *err)
{
    const struct train_options *o = j->o;
    uint64_t n = hapi_loader_samples(j->train), m = hapi_loader_samples(j->test);
    size_t width = hapi_loader_width(j->train);
    bool fits = n * width * sizeof(float) <= o->keep,
         keep = fits && (!o->loader.keep_disk || o->dump_features);

    if (o->dump_features && !keep)
        return hapi_err_set(err, HAPI_EINVAL, 0, "--dump-features keeps all features: raise --keep");
    j->rows = calloc(o->loader.batch, sizeof *j->rows);
    j->labels = calloc(o->loader.batch, sizeof *j->labels);
    j->order = calloc(n, sizeof *j->order);
    j->predictions = calloc(m, sizeof *j->predictions);
    j->results = calloc(o->epochs, sizeof *j->results);
    if (!j->rows || !j->labels || !j->order || !j->predictions || !j->results)
        return hapi_err_set(err, HAPI_ENOMEM, 0, "no memory for the job");
    int rc = keep ? kept_open(&j->kept, n, width, err) : 0;
    return rc ? rc : kept_open(&j->tested, m, width, err);
}

static int same_classes(struct job *j, struct hapi_err *err)
{
    uint32_t n = hapi_loader_classes(j->train);
    bool same = n == hapi_loader_classes(j->test);

    for (uint32_t i = 0; same && i < n; i++)
        same = !strcmp(hapi_loader_class(j->train, i), hapi_loader_class(j->test, i));
    return same ? 0
                : hapi_err_set(err, HAPI_EINVAL, 0, "datasets %s and %s have different classes",
                               j->o->loader.dataset, j->o->test_dataset);
}

static int job_open(struct job *j, struct hapi_err *err)
{
    const struct train_options *o = j->o;
    struct hapi_loader_options test = o->loader;
    struct hapi_error e = {0};

    test.dataset = o->test_dataset;
    test.sequential = 1;
    test.fixed_plan = 1;
    test.keep_memory = test.keep_disk = 0; /* it is fetched once */
    test.keep_dir = NULL;
    if (hapi_loader_open(&j->train, &o->loader, &e) || hapi_loader_open(&j->test, &test, &e))
        return loader_error(err, &e);
    int rc = same_classes(j, err);
    if (!rc)
        rc = job_memory(j, err);
    if (!rc && o->dump_order && !(j->order_file = fopen(o->dump_order, "we")))
        rc = hapi_err_errno(err, errno, "cannot write %s", o->dump_order);
    if (j->order_file)
        setvbuf(j->order_file, NULL, _IOLBF, BUFSIZ);
    if (rc)
        return rc;
    struct head_options head = {
        .width = hapi_loader_width(j->train),
        .classes = hapi_loader_classes(j->train),
        .batch = o->loader.batch,
        .adam = o->adam,
        .lr = (float)o->lr,
        .momentum = (float)o->momentum,
        .weight_decay = (float)o->weight_decay,
    };
    return head_new(&j->head, &head, err);
}

static void job_close(struct job *j)
{
    head_free(j->head);
    hapi_loader_close(j->train);
    hapi_loader_close(j->test);
    kept_close(&j->kept);
    kept_close(&j->tested);
    free(j->rows);
    free(j->labels);
    free(j->order);
    free(j->predictions);
    free(j->results);
    if (j->order_file)
        fclose(j->order_file);
}

/* Where not all samples take the same way. */
static void parts_print(const struct job *j)
{
    struct hapi_loader_part parts[TRAIN_PARTS_MAX];
    uint32_t n = hapi_loader_parts(j->train, parts, TRAIN_PARTS_MAX);

    for (uint32_t i = 0; n > 1 && i < n && i < TRAIN_PARTS_MAX; i++)
        printf("%3.0f %% of the samples  split %s  wire %s  micro-batch %u\n", 100 * parts[i].share,
               parts[i].split, parts[i].wire, parts[i].micro_batch);
}

/* What is computed here in another dtype than was asked for. */
static void dtype_print(const struct job *j)
{
    const char *here = hapi_loader_dtype_here(j->train);

    if (strcmp(here, "none") && strcmp(here, j->o->loader.dtype))
        printf("this tier computes in %s: its back end has no %s\n", here, j->o->loader.dtype);
}

/* Once per node: how its features come, and why so. */
static void transports_print(const struct job *j)
{
    struct hapi_loader_transport t;

    for (uint32_t i = 0; hapi_loader_transport(j->train, i, &t) == 0; i++)
        printf("node %s  transport %s: %s\n", t.node, t.transport, t.why);
}

static int job_run(const struct train_options *o, struct hapi_err *err)
{
    struct job j = {.o = o};

    int rc = job_open(&j, err);
    if (!rc && !o->quiet)
        printf("policy %s  split %s  wire %s  classes %u  features %zu  train %llu  test %llu\n",
               train_policy(&o->loader), hapi_loader_split(j.train), train_wire(&j),
               hapi_loader_classes(j.train), hapi_loader_width(j.train),
               (unsigned long long)hapi_loader_samples(j.train),
               (unsigned long long)hapi_loader_samples(j.test));
    if (!rc && !o->quiet) {
        parts_print(&j);
        dtype_print(&j);
        transports_print(&j);
    }
    if (!rc)
        rc = epochs_run(&j, err);
    if (!rc && o->dump_features)
        rc = train_dump(&j, err);
    if (!rc && o->json)
        rc = train_json(&j, err);
    if (rc && !o->quiet && isatty(STDERR_FILENO))
        fputc('\n', stderr);
    job_close(&j);
    return rc;
}

int train_run(const struct train_options *o, struct hapi_err *err)
{
    struct train_options traced = *o;
    struct hapi_error e = {0};

    if (o->trace && hapi_trace_open(&traced.loader.trace, o->trace, &e))
        return loader_error(err, &e);
    int rc = job_run(&traced, err);
    return hapi_trace_close(traced.loader.trace, &e) && !rc ? loader_error(err, &e) : rc;
}
