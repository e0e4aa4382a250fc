/* What a job of `hapi train` did: JSON, and arrays of what it was given. */
#include <cjson/cJSON.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "npy.h"
#include "train_job.h"

static cJSON *result_json(const struct result *r)
{
    cJSON *o = cJSON_CreateObject();

    cJSON_AddNumberToObject(o, "seconds", r->seconds);
    cJSON_AddNumberToObject(o, "images", (double)r->images);
    cJSON_AddNumberToObject(o, "images_per_s", r->seconds > 0 ? (double)r->images / r->seconds : 0);
    cJSON_AddNumberToObject(o, "wire_bytes", (double)r->bytes);
    cJSON_AddNumberToObject(o, "train_loss", r->loss);
    cJSON_AddNumberToObject(o, "test_accuracy", r->accuracy);
    cJSON_AddNumberToObject(o, "kept", (double)r->kept);
    cJSON_AddStringToObject(o, "source",
                            r->from_memory                    ? "memory"
                            : r->kept && r->kept == r->images ? "kept"
                                                              : "nodes");
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

const char *train_policy(const struct hapi_loader_options *o)
{
    return o->policy ? o->policy : o->profile ? "pipeline" : o->split ? "split" : "freeze";
}

const char *train_wire(struct job *j)
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

    for (uint32_t i = 0; i < n && i < TRAIN_PARTS_MAX; i++) {
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
    struct hapi_loader_replan list[TRAIN_REPLANS_MAX];
    uint32_t n = hapi_loader_replans(j->train, list, TRAIN_REPLANS_MAX);
    cJSON *all = cJSON_AddArrayToObject(o, "replans");

    for (uint32_t i = 0; i < n && i < TRAIN_REPLANS_MAX; i++) {
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

int train_json(struct job *j, struct hapi_err *err)
{
    cJSON *o = cJSON_CreateObject(), *epochs, *test;
    struct hapi_loader_part parts[TRAIN_PARTS_MAX];
    struct hapi_loader_stats a = hapi_loader_stats_get(j->train), b = hapi_loader_stats_get(j->test);
    int rc = 0;

    cJSON_AddStringToObject(o, "policy", train_policy(&j->o->loader));
    cJSON_AddStringToObject(o, "split", hapi_loader_split(j->train));
    cJSON_AddStringToObject(o, "wire", train_wire(j));
    parts_add(o, parts, hapi_loader_parts(j->train, parts, TRAIN_PARTS_MAX));
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

int train_dump(struct job *j, struct hapi_err *err)
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
