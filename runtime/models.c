#include "models.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "convert.h"
#include "int8.h"
#include "log.h"
#include "pool.h"

enum { MODELS_MAX = 32, PREFIXES_MAX = 64, CUT_ID_MAX = 8192 };
enum { SPARE_PLANS = 2 }; /* that a device has in hand while every compute thread decodes for another */

struct model_slot {
    struct hapi_model *model;
    uint8_t hash[HAPI_HASH_SIZE];
    uint64_t used; /* tick of the last use */
    int holders;   /* prefixes made from it */
};

/* What makes two prefixes the same. */
struct prefix_key {
    uint8_t hash[HAPI_HASH_SIZE];
    char cut[CUT_ID_MAX], transform[HAPI_TRANSFORM_MAX + 1];
    enum hapi_dtype compute, wire;
    uint32_t bound; /* of the micro-batch */
};

struct prefix_slot {
    struct hapi_prefix prefix; /* first: callers hold a pointer to it */
    struct hapi_job job;
    struct hapi_models *owner;
    struct model_slot *model;
    struct prefix_key key;
    uint64_t used;
    int64_t group; /* samples at a time that the model is fixed to; 0: any number */
    int n_free;    /* plans that nobody runs: prefix.plans[0..n_free) */
    int holders;
    bool live;
};

struct add_job {
    struct hapi_job job;
    struct hapi_models *owner;
    uint8_t hash[HAPI_HASH_SIZE];
    void *bytes;
    size_t size;
    struct hapi_model *model;
    struct hapi_err err;
    void (*done)(void *user, const struct hapi_err *result);
    void *user;
};

struct hapi_models {
    struct hapi_models_options opt;
    struct hapi_pool *builder;
    uint64_t tick;
    struct model_slot model[MODELS_MAX];
    struct prefix_slot *prefix[PREFIXES_MAX];
};

int hapi_models_open(struct hapi_models **out, struct hapi_loop *loop, const struct hapi_models_options *opt,
                     struct hapi_err *err)
{
    struct hapi_models *m = calloc(1, sizeof *m);

    if (!m)
        return hapi_err_set(err, HAPI_ENOMEM, 0, "no memory for the model table");
    m->opt = *opt;
    int rc = hapi_pool_open(&m->builder, loop, 1, PREFIXES_MAX * 2, NULL, 1, err);
    if (rc) {
        free(m);
        return rc;
    }
    *out = m;
    return 0;
}

static void prefix_free(struct prefix_slot *p)
{
    for (int i = 0; i < p->prefix.n_plans; i++)
        hapi_plan_free(p->prefix.plans[i]);
    free(p->prefix.plans);
    p->model->holders--;
    free(p);
}

void hapi_models_close(struct hapi_models *m)
{
    if (!m)
        return;
    hapi_pool_close(m->builder);
    for (int i = 0; i < PREFIXES_MAX; i++)
        if (m->prefix[i])
            prefix_free(m->prefix[i]);
    for (int i = 0; i < MODELS_MAX; i++)
        hapi_model_close(m->model[i].model);
    free(m);
}

void hapi_models_reap(struct hapi_models *m)
{
    hapi_pool_reap(m->builder);
}

/* ------------------------------------------------------------------ models */

static struct model_slot *model_find(const struct hapi_models *m, const uint8_t hash[HAPI_HASH_SIZE])
{
    for (int i = 0; i < MODELS_MAX; i++)
        if (m->model[i].model && !memcmp(m->model[i].hash, hash, HAPI_HASH_SIZE))
            return (struct model_slot *)&m->model[i];
    return NULL;
}

bool hapi_models_has(const struct hapi_models *m, const uint8_t hash[HAPI_HASH_SIZE])
{
    return model_find(m, hash) != NULL;
}

/* A free slot, or the one longest unused with its prefixes dropped; NULL when all are in use. */
static struct model_slot *model_slot_take(struct hapi_models *m)
{
    struct model_slot *best = NULL;

    for (int i = 0; i < MODELS_MAX; i++) {
        struct model_slot *s = &m->model[i];
        bool busy = false;
        if (!s->model)
            return s;
        for (int p = 0; p < PREFIXES_MAX; p++)
            busy |= m->prefix[p] && m->prefix[p]->model == s && m->prefix[p]->holders;
        if (!busy && (!best || s->used < best->used))
            best = s;
    }
    for (int p = 0; best && p < PREFIXES_MAX; p++)
        if (m->prefix[p] && m->prefix[p]->model == best) {
            prefix_free(m->prefix[p]);
            m->prefix[p] = NULL;
        }
    if (best) {
        hapi_model_close(best->model);
        memset(best, 0, sizeof *best);
    }
    return best;
}

static bool add_run(struct hapi_job *job, int worker)
{
    struct add_job *a = (struct add_job *)job;

    (void)worker;
    if (hapi_model_from_bytes(&a->model, a->bytes, a->size, NULL, &a->err)) {
        free(a->bytes);
    } else if (memcmp(hapi_model_hash(a->model), a->hash, HAPI_HASH_SIZE)) {
        hapi_err_set(&a->err, HAPI_ECORRUPT, 0, "the uploaded model does not have the hash that was offered");
        hapi_model_close(a->model);
        a->model = NULL;
    }
    return true;
}

static void add_done(struct hapi_job *job)
{
    struct add_job *a = (struct add_job *)job;
    struct hapi_models *m = a->owner;
    struct model_slot *s = a->model && !model_find(m, a->hash) ? model_slot_take(m) : NULL;

    if (s) {
        *s = (struct model_slot){.model = a->model, .used = ++m->tick};
        memcpy(s->hash, a->hash, HAPI_HASH_SIZE);
    } else if (a->model) { /* someone else was faster, or there is no room */
        hapi_model_close(a->model);
        if (!model_find(m, a->hash))
            hapi_err_set(&a->err, HAPI_EBUSY, 0, "all %d models that this node keeps are in use", MODELS_MAX);
    }
    a->done(a->user, &a->err);
    free(a);
}

int hapi_models_add(struct hapi_models *m, const uint8_t hash[HAPI_HASH_SIZE], void *bytes, size_t size,
                    void (*done)(void *user, const struct hapi_err *result), void *user)
{
    struct add_job *a = calloc(1, sizeof *a);

    if (!a)
        return HAPI_ENOMEM;
    *a = (struct add_job){.job = {.run = add_run, .done = add_done},
                          .owner = m,
                          .bytes = bytes,
                          .size = size,
                          .done = done,
                          .user = user};
    memcpy(a->hash, hash, HAPI_HASH_SIZE);
    int rc = hapi_pool_submit(m->builder, &a->job);
    if (rc)
        free(a);
    return rc;
}

/* ------------------------------------------------------------------ prefixes */

static int prefix_shape(struct prefix_slot *p, const struct hapi_cut *cut)
{
    struct hapi_prefix *x = &p->prefix;
    uint64_t row = 0;

    if (cut->n_tensors > HAPI_CUT_TENSORS)
        return hapi_err_set(&x->err, HAPI_ETOOBIG, 0, "a cut of %u tensors", cut->n_tensors);
    x->n_tensors = cut->n_tensors;
    for (uint32_t i = 0; i < cut->n_tensors; i++) {
        if (cut->tensors[i].dtype != HAPI_F32 ||
            hapi_wire_row(&cut->tensors[i].shape, p->key.wire, &x->row_bytes[i]))
            return hapi_err_set(&x->err, HAPI_EUNSUPPORTED, 0, "tensor %s of the cut is no batch of f32",
                                cut->tensors[i].name);
        x->row_at[i] = row;
        row += (x->row_bytes[i] + 63) & ~63ULL;
    }
    /* The area must hold all rows of a plan: a plan may write its padding rows too. */
    uint64_t fit = row ? p->owner->opt.send_area / row : 0;
    x->micro_batch = p->key.bound < fit ? p->key.bound : (int64_t)fit;
    if (!x->micro_batch)
        return hapi_err_set(
            &x->err, HAPI_ETOOBIG, 0,
            "one sample of the cut takes %llu bytes, this node's send area is %llu: raise --send-area",
            (unsigned long long)row, (unsigned long long)p->owner->opt.send_area);
    x->row_total = row;
    for (uint32_t i = 0; i < cut->n_tensors; i++)
        x->out_bytes += (x->row_bytes[i] * (uint64_t)x->micro_batch + 63) & ~63ULL;
    return 0;
}

static int plans_wanted(const struct prefix_slot *p)
{
    return p->owner->opt.threads + (p->prefix.starts ? SPARE_PLANS : 0);
}

static bool prefix_run(struct hapi_job *job, int worker)
{
    struct prefix_slot *p = (struct prefix_slot *)((char *)job - offsetof(struct prefix_slot, job));
    struct hapi_prefix *x = &p->prefix;
    const struct hapi_cut *cut;
    bool converts = hapi_backend_converts(p->owner->opt.backend);

    (void)worker;
    if (hapi_model_batch(p->model->model, &p->group) < HAPI_MODEL_BATCH_ONE)
        p->group = 0;
    if (hapi_transform_parse(&x->transform, p->key.transform, strlen(p->key.transform), &x->err) ||
        hapi_model_cut_find(p->model->model, p->key.cut, &cut, &x->err) || prefix_shape(p, cut))
        return true;
    while (x->n_plans < plans_wanted(p)) { /* goes on where memory ran out, when there is some */
        struct hapi_plan_spec spec = {
            .to = p->key.cut,
            .batch = x->micro_batch,
            .dtype = p->key.compute,
            .backend = p->owner->opt.backend,
            .threads = p->owner->opt.intra_op,
            .image = converts ? &x->transform : NULL,
            .wire = converts ? p->key.wire : HAPI_F32,
        };
        if (hapi_plan_new(&x->plans[x->n_plans], p->model->model, &spec, &x->err))
            return true;
        x->starts = hapi_plan_starts(x->plans[x->n_plans++]);
    }
    return true;
}

/* Frees the prefix that nobody has used for longest; false: all are in use. */
static bool prefix_drop_idle(struct hapi_models *m)
{
    struct prefix_slot **best = NULL;

    for (int i = 0; i < PREFIXES_MAX; i++)
        if (m->prefix[i] && !m->prefix[i]->holders && (!best || m->prefix[i]->used < (*best)->used))
            best = &m->prefix[i];
    if (!best)
        return false;
    prefix_free(*best);
    *best = NULL;
    return true;
}

/* Memory ran out: what is kept for nobody goes first, then a device makes do with fewer plans. */
static bool prefix_build_on(struct prefix_slot *p)
{
    struct hapi_prefix *x = &p->prefix;
    struct hapi_err why = x->err;
    char quoted[HAPI_ERR_TEXT];

    if (why.code != HAPI_ENOMEM)
        return false;
    if (prefix_drop_idle(p->owner)) {
        x->err = (struct hapi_err){0};
        if (!hapi_pool_submit(p->owner->builder, &p->job))
            return true;
        x->err = why;
    }
    if (x->starts && x->n_plans) {
        x->err = (struct hapi_err){0};
        hapi_log(HAPI_LOG_INFO, "fewer micro-batches at once than threads could decode", "plans=%d why=%s",
                 x->n_plans, hapi_log_quote(quoted, sizeof quoted, why.text));
    }
    return false;
}

static void prefix_done(struct hapi_job *job)
{
    struct prefix_slot *p = (struct prefix_slot *)((char *)job - offsetof(struct prefix_slot, job));

    if (prefix_build_on(p))
        return;
    p->prefix.state = p->prefix.err.code ? HAPI_PREFIX_FAILED : HAPI_PREFIX_READY;
    p->n_free = p->prefix.n_plans;
    p->holders--; /* the builder's */
    if (p->group && p->prefix.state == HAPI_PREFIX_READY)
        hapi_log(HAPI_LOG_INFO, "samples run in groups of a fixed size, the last one padded",
                 "samples=%lld why=\"the model's batch is fixed and cannot be re-bound\"",
                 (long long)p->group);
    p->owner->opt.changed(p->owner->opt.arg);
}

static bool key_equal(const struct prefix_key *a, const struct prefix_key *b)
{
    return !memcmp(a->hash, b->hash, sizeof a->hash) && !strcmp(a->cut, b->cut) &&
           !strcmp(a->transform, b->transform) && a->compute == b->compute && a->wire == b->wire &&
           a->bound == b->bound;
}

static int key_make(struct prefix_key *k, const struct hapi_models *m, const struct hapi_request *r)
{
    size_t n = 0;

    memset(k, 0, sizeof *k);
    memcpy(k->hash, r->model_hash, HAPI_HASH_SIZE);
    for (uint32_t i = 0; i < r->n_cut; i++) {
        if (n + r->cut[i].n + 2 > sizeof k->cut)
            return HAPI_ETOOBIG;
        if (i)
            k->cut[n++] = ',';
        memcpy(k->cut + n, r->cut[i].s, r->cut[i].n);
        n += r->cut[i].n;
    }
    if (r->transform.n > HAPI_TRANSFORM_MAX)
        return HAPI_ETOOBIG;
    memcpy(k->transform, r->transform.s, r->transform.n);
    k->compute = r->compute_dtype;
    k->wire = r->wire_dtype;
    k->bound = r->micro_batch && r->micro_batch < m->opt.micro_batch ? r->micro_batch : m->opt.micro_batch;
    return 0;
}

static struct prefix_slot **prefix_place(struct hapi_models *m)
{
    do
        for (int i = 0; i < PREFIXES_MAX; i++)
            if (!m->prefix[i])
                return &m->prefix[i];
    while (prefix_drop_idle(m));
    return NULL;
}

static struct prefix_slot *prefix_build(struct hapi_models *m, struct model_slot *model,
                                        const struct prefix_key *key, int *why)
{
    struct prefix_slot **place = prefix_place(m);
    struct prefix_slot *p = place ? calloc(1, sizeof *p) : NULL;

    *why = HAPI_EBUSY;
    if (!p)
        return NULL;
    p->owner = m;
    p->model = model;
    p->key = *key;
    p->job = (struct hapi_job){.run = prefix_run, .done = prefix_done};
    p->prefix.wire_dtype = key->wire;
    p->prefix.plans = calloc((size_t)m->opt.threads + SPARE_PLANS, sizeof *p->prefix.plans);
    p->holders = 1; /* the builder's */
    model->holders++;
    if (!p->prefix.plans || hapi_pool_submit(m->builder, &p->job)) {
        prefix_free(p);
        return NULL;
    }
    *place = p;
    return p;
}

struct hapi_prefix *hapi_prefix_get(struct hapi_models *m, const struct hapi_request *r, int *why)
{
    struct model_slot *model = model_find(m, r->model_hash);
    static struct prefix_key key; /* large; the loop's thread only */
    struct prefix_slot *p = NULL;

    *why = HAPI_ENOENT;
    if (!model || (*why = key_make(&key, m, r)))
        return NULL;
    model->used = ++m->tick;
    for (int i = 0; i < PREFIXES_MAX && !p; i++)
        if (m->prefix[i] && key_equal(&m->prefix[i]->key, &key))
            p = m->prefix[i];
    if (p && p->prefix.state == HAPI_PREFIX_FAILED && !p->holders) { /* memory may be there now: try again */
        for (int i = 0; i < PREFIXES_MAX; i++)
            if (m->prefix[i] == p)
                m->prefix[i] = NULL;
        prefix_free(p);
        p = NULL;
    }
    if (!p)
        p = prefix_build(m, model, &key, why);
    if (!p)
        return NULL;
    p->holders++;
    p->used = ++m->tick;
    return &p->prefix;
}

void hapi_prefix_put(struct hapi_prefix *x)
{
    if (x)
        ((struct prefix_slot *)x)->holders--;
}

void hapi_prefix_key(const struct hapi_prefix *x, const char *numeric_class, const char *tenant,
                     uint8_t key[HAPI_HASH_SIZE])
{
    const struct prefix_key *k = &((const struct prefix_slot *)x)->key;
    static char text[2 * HAPI_HASH_SIZE + CUT_ID_MAX + HAPI_TRANSFORM_MAX + 1024]; /* the loop's thread */
    char model[2 * HAPI_HASH_SIZE + 1];
    /* In f32 a row does not depend on the others of its micro-batch; else on how many there are. */
    int64_t bound = k->compute == HAPI_F32 ? 0 : x->micro_batch;

    hapi_sha256_text(model, k->hash);
    int n =
        snprintf(text, sizeof text, "%s\n%s\n%s\n%s\n%s %s %lld\n%s", tenant, numeric_class, model, k->cut,
                 hapi_dtype_name(k->compute), hapi_dtype_name(k->wire), (long long)bound, k->transform);
    hapi_sha256(key, text, (size_t)n);
}

struct hapi_plan *hapi_prefix_plan_take(struct hapi_prefix *x)
{
    struct prefix_slot *p = (struct prefix_slot *)x;

    return p->n_free ? x->plans[--p->n_free] : NULL;
}

/* The free ones come first, in any order. */
void hapi_prefix_plan_give(struct hapi_prefix *x, struct hapi_plan *plan)
{
    struct prefix_slot *p = (struct prefix_slot *)x;
    int i = p->n_free;

    while (x->plans[i] != plan)
        i++;
    x->plans[i] = x->plans[p->n_free];
    x->plans[p->n_free++] = plan;
}
