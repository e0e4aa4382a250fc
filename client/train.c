#include "train.h"

#include <cjson/cJSON.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "clock.h"
#include "head.h"
#include "npy.h"
#include "order.h"

enum { PARTS_MAX = 8, REPLANS_MAX = 64 };

/* Features kept by sample number. */
struct kept {
    float *features;
    uint32_t *labels;
    uint8_t *present;
    uint64_t n;
    size_t width;
};

struct result {
    double seconds, loss, accuracy;
    uint64_t images, bytes;
    int from_memory;
};

struct job {
    const struct train_options *o;
    struct hapi_loader *train, *test;
    struct head *head;
    struct kept kept, tested; /* kept.features NULL: fetched anew every epoch */
    uint32_t *predictions;
    const float **rows;
    uint32_t *labels, *order;
    FILE *order_file;
    struct result *results;
    double test_seconds;
    uint64_t test_bytes;
    int64_t shown_ns;
    uint32_t replans; /* that were printed */
};

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
    struct hapi_loader_replan list[REPLANS_MAX], *last = &list[(n < REPLANS_MAX ? n : REPLANS_MAX) - 1];
    hapi_loader_replans(j->train, list, REPLANS_MAX);
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
    uint64_t taken = 0, bytes = hapi_loader_stats_get(j->train).wire_bytes;
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
    r->bytes = hapi_loader_stats_get(j->train).wire_bytes - bytes;
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
                   r->from_memory ? "(memory)" : "         ", r->loss, r->accuracy);
        fflush(stdout);
    }
    return 0;
}

/* ------------------------------------------------------------------ reports */

static cJSON *result_json(const struct result *r)
{
    cJSON *o = cJSON_CreateObject();

    cJSON_AddNumberToObject(o, "seconds", r->seconds);
    cJSON_AddNumberToObject(o, "images", (double)r->images);
    cJSON_AddNumberToObject(o, "images_per_s", r->seconds > 0 ? (double)r->images / r->seconds : 0);
    cJSON_AddNumberToObject(o, "wire_bytes", (double)r->bytes);
    cJSON_AddNumberToObject(o, "train_loss", r->loss);
    cJSON_AddNumberToObject(o, "test_accuracy", r->accuracy);
    cJSON_AddStringToObject(o, "source", r->from_memory ? "memory" : "nodes");
    return o;
}

/* `transport` is "mixed" where nodes differ; `nodes` has each. */
static void transports_json(struct job *j, cJSON *o)
{
    struct hapi_loader_transport first, t;
    cJSON *nodes = cJSON_CreateArray();
    int mixed = 0;

    hapi_loader_transport(j->train, 0, &first);
    for (uint32_t i = 0; hapi_loader_transport(j->train, i, &t) == 0; i++) {
        cJSON *n = cJSON_CreateObject();
        mixed |= strcmp(t.transport, first.transport) != 0;
        cJSON_AddStringToObject(n, "node", t.node);
        cJSON_AddStringToObject(n, "transport", t.transport);
        cJSON_AddStringToObject(n, "transport_why", t.why);
        cJSON_AddItemToArray(nodes, n);
    }
    cJSON_AddStringToObject(o, "transport", mixed ? "mixed" : first.transport);
    cJSON_AddStringToObject(o, "transport_why", mixed ? "nodes differ: see `nodes`" : first.why);
    cJSON_AddItemToObject(o, "nodes", nodes);
}

static const char *policy_name(const struct hapi_loader_options *o)
{
    return o->policy ? o->policy : o->profile ? "pipeline" : o->split ? "split" : "freeze";
}

/* Of what is pushed down: as it was asked for, or as it was chosen. */
static const char *wire_name(struct job *j)
{
    struct hapi_loader_part first = {.wire = "raw"};

    if (!j->o->loader.profile)
        return j->o->loader.wire ? j->o->loader.wire : "f32";
    hapi_loader_parts(j->train, &first, 1);
    return first.wire;
}

static void parts_add(cJSON *o, const struct hapi_loader_part *parts, uint32_t n)
{
    cJSON *list = cJSON_AddArrayToObject(o, "parts");

    for (uint32_t i = 0; i < n && i < PARTS_MAX; i++) {
        cJSON *part = cJSON_CreateObject();
        cJSON_AddStringToObject(part, "split", parts[i].split);
        cJSON_AddStringToObject(part, "wire", parts[i].wire);
        cJSON_AddNumberToObject(part, "share", parts[i].share);
        cJSON_AddNumberToObject(part, "micro_batch", parts[i].micro_batch);
        cJSON_AddItemToArray(list, part);
    }
}

/* Every change of plan, and what was known then. */
static void replans_json(struct job *j, cJSON *o)
{
    struct hapi_loader_replan list[REPLANS_MAX];
    uint32_t n = hapi_loader_replans(j->train, list, REPLANS_MAX);
    cJSON *all = cJSON_AddArrayToObject(o, "replans");

    for (uint32_t i = 0; i < n && i < REPLANS_MAX; i++) {
        cJSON *one = cJSON_CreateObject();
        cJSON_AddNumberToObject(one, "seconds", list[i].seconds);
        cJSON_AddNumberToObject(one, "samples", (double)list[i].samples);
        cJSON_AddNumberToObject(one, "bandwidth_Bps", list[i].bandwidth_Bps);
        cJSON_AddNumberToObject(one, "epoch_s", list[i].epoch_s);
        cJSON_AddNumberToObject(one, "before_s", list[i].before_s);
        parts_add(one, list[i].parts, list[i].n_parts);
        cJSON_AddItemToArray(all, one);
    }
}

static int json_write(struct job *j, struct hapi_err *err)
{
    cJSON *o = cJSON_CreateObject(), *epochs, *test;
    struct hapi_loader_part parts[PARTS_MAX];
    struct hapi_loader_stats a = hapi_loader_stats_get(j->train), b = hapi_loader_stats_get(j->test);
    int rc = 0;

    cJSON_AddStringToObject(o, "policy", policy_name(&j->o->loader));
    cJSON_AddStringToObject(o, "split", hapi_loader_split(j->train));
    cJSON_AddStringToObject(o, "wire", wire_name(j));
    parts_add(o, parts, hapi_loader_parts(j->train, parts, PARTS_MAX));
    replans_json(j, o);
    cJSON_AddStringToObject(o, "dtype", j->o->loader.dtype);
    cJSON_AddStringToObject(o, "dtype_here", hapi_loader_dtype_here(j->train));
    transports_json(j, o);
    cJSON_AddNumberToObject(o, "classes", hapi_loader_classes(j->train));
    cJSON_AddNumberToObject(o, "features", (double)hapi_loader_width(j->train));
    cJSON_AddNumberToObject(o, "bad_samples", (double)(a.bad + b.bad));
    cJSON_AddNumberToObject(o, "reissued_requests", (double)(a.reissued + b.reissued));
    test = cJSON_AddObjectToObject(o, "test");
    cJSON_AddNumberToObject(test, "images", (double)hapi_loader_samples(j->test));
    cJSON_AddNumberToObject(test, "seconds", j->test_seconds);
    cJSON_AddNumberToObject(test, "wire_bytes", (double)j->test_bytes);
    epochs = cJSON_AddArrayToObject(o, "epochs");
    for (uint32_t e = 0; e < j->o->epochs; e++)
        cJSON_AddItemToArray(epochs, result_json(&j->results[e]));
    char *text = cJSON_Print(o);
    FILE *f = fopen(j->o->json, "we");
    if (!text || !f || fprintf(f, "%s\n", text) < 0)
        rc = hapi_err_errno(err, errno, "cannot write %s", j->o->json);
    if (f && fclose(f) && !rc)
        rc = hapi_err_errno(err, errno, "cannot write %s", j->o->json);
    cJSON_free(text);
    cJSON_Delete(o);
    return rc;
}

static int dump(const char *prefix, const char *name, const struct hapi_shape *shape, enum hapi_dtype dtype,
                const void *data, struct hapi_err *err)
{
    char path[4096];

    if ((size_t)snprintf(path, sizeof path, "%s-%s.npy", prefix, name) >= sizeof path)
        return hapi_err_set(err, HAPI_EINVAL, 0, "--dump-features: the path is too long");
    return hapi_npy_write(path, shape, dtype, data, err);
}

static int features_dump(const char *prefix, const char *name, const struct kept *k, struct hapi_err *err)
{
    struct hapi_shape shape = {.rank = 2, .dim = {(int64_t)k->n, (int64_t)k->width}};
    return dump(prefix, name, &shape, HAPI_F32, k->features, err);
}

/* Class indices; -1 for a sample that was left out. */
static int labels_dump(const char *prefix, const char *name, const uint32_t *labels, const struct kept *k,
                       struct hapi_err *err)
{
    struct hapi_shape shape = {.rank = 1, .dim = {(int64_t)k->n}};
    int64_t *wide = calloc(k->n, sizeof *wide);

    if (!wide)
        return hapi_err_set(err, HAPI_ENOMEM, 0, "no memory to write labels");
    for (uint64_t i = 0; i < k->n; i++)
        wide[i] = k->present[i] ? (int64_t)labels[i] : -1;
    int rc = dump(prefix, name, &shape, HAPI_I64, wide, err);
    free(wide);
    return rc;
}

static int all_dump(struct job *j, struct hapi_err *err)
{
    const char *p = j->o->dump_features;

    int rc = features_dump(p, "train", &j->kept, err);
    if (!rc)
        rc = labels_dump(p, "train-labels", j->kept.labels, &j->kept, err);
    if (!rc)
        rc = features_dump(p, "test", &j->tested, err);
    if (!rc)
        rc = labels_dump(p, "test-labels", j->tested.labels, &j->tested, err);
    return rc ? rc : labels_dump(p, "test-predictions", j->predictions, &j->tested, err);
}

/* ------------------------------------------------------------------ opening */

static int job_memory(struct job *j, struct hapi_err *err)
{
    const struct train_options *o = j->o;
    uint64_t n = hapi_loader_samples(j->train), m = hapi_loader_samples(j->test);
    size_t width = hapi_loader_width(j->train);
    bool keep = n * width * sizeof(float) <= o->keep;

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
    struct hapi_loader_part parts[PARTS_MAX];
    uint32_t n = hapi_loader_parts(j->train, parts, PARTS_MAX);

    for (uint32_t i = 0; n > 1 && i < n && i < PARTS_MAX; i++)
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
               policy_name(&o->loader), hapi_loader_split(j.train), wire_name(&j),
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
        rc = all_dump(&j, err);
    if (!rc && o->json)
        rc = json_write(&j, err);
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
