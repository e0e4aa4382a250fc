#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "clock.h"
#include "convert.h"
#include "int8.h"
#include "log.h"
#include "models_impl.h"

enum { SPARE_PLANS = 2 }; /* that a device has in hand while every compute thread decodes for another */

void hapi_prefix_plans_free(struct hapi_prefix_slot *p)
{
    while (p->prefix.n_plans)
        hapi_plan_free(p->prefix.plans[--p->prefix.n_plans]);
    p->n_free = 0;
    p->at = -1;
    p->phase = HAPI_PREFIX_WAITS;
    p->prefix.state = HAPI_PREFIX_BUILDING;
}

void hapi_prefix_free(struct hapi_prefix_slot *p)
{
    hapi_prefix_plans_free(p);
    free(p->prefix.plans);
    p->model->holders--;
    free(p);
}

/* ------------------------------------------------------------------ on the builder's thread */

static int prefix_shape(struct hapi_prefix_slot *p, const struct hapi_cut *cut)
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
    p->bound = p->key.bound < fit ? p->key.bound : (int64_t)fit;
    if (!p->bound)
        return hapi_err_set(
            &x->err, HAPI_ETOOBIG, 0,
            "one sample of the cut takes %llu bytes, this node's send area is %llu: raise --send-area",
            (unsigned long long)row, (unsigned long long)p->owner->opt.send_area);
    x->row_total = row;
    return 0;
}

static int plans_wanted(const struct hapi_prefix_slot *p)
{
    return p->owner->opt.threads + (p->prefix.starts ? SPARE_PLANS : 0);
}

static struct hapi_plan_spec spec_of(const struct hapi_prefix_slot *p, int64_t batch)
{
    bool converts = hapi_backend_converts(p->owner->opt.backend);

    return (struct hapi_plan_spec){
        .to = p->key.cut,
        .batch = batch,
        .dtype = p->key.compute,
        .backend = p->owner->opt.backend,
        .threads = p->owner->opt.intra_op,
        .image = converts ? &p->prefix.transform : NULL,
        .wire = converts ? p->key.wire : HAPI_F32,
    };
}

int64_t hapi_prefix_batch(const struct hapi_prefix_slot *p, int k)
{
    return k == (int)p->n_sizes - 1 ? p->bound : p->sizes[k];
}

/* Bytes at each micro-batch there may be. Only where a row does not depend on the others of its micro-batch,
 * bit by bit, there may be several. */
static int prefix_ask(struct hapi_prefix_slot *p)
{
    struct hapi_prefix *x = &p->prefix;
    bool alike = p->key.compute == HAPI_F32 && !p->group;
    uint64_t plans = (uint64_t)plans_wanted(p);

    p->n_sizes = 0;
    for (int64_t b = alike ? 1 : p->bound;; b = 2 * b < p->bound ? 2 * b : p->bound) {
        struct hapi_plan_spec spec = spec_of(p, b);
        struct hapi_plan_memory m;
        if (hapi_plan_memory_query(p->model->model, &spec, &m, &x->err))
            return x->err.code;
        if (p->n_sizes == HAPI_PREFIX_SIZES) /* the largest stays in any case */
            p->n_sizes--;
        p->weights = m.weights;
        p->own[p->n_sizes] = plans * (m.arena + m.scratch);
        p->sizes[p->n_sizes++] = (uint32_t)b;
        if (b == p->bound)
            break;
    }
    for (uint32_t k = 0; k < p->n_sizes; k++) /* larger ones cost no more: an arena is for parts of them */
        if (p->own[k] >= p->own[p->n_sizes - 1])
            p->n_sizes = k + 1;
    return 0;
}

static int prefix_plans(struct hapi_prefix_slot *p)
{
    struct hapi_prefix *x = &p->prefix;
    struct hapi_plan_spec spec = spec_of(p, hapi_prefix_batch(p, p->want));

    x->micro_batch = spec.batch;
    x->out_bytes = 0;
    for (uint32_t i = 0; i < x->n_tensors; i++)
        x->out_bytes += (x->row_bytes[i] * (uint64_t)x->micro_batch + 63) & ~63ULL;
    while (x->n_plans < plans_wanted(p)) { /* goes on where memory ran out, when there is some */
        if (hapi_plan_new(&x->plans[x->n_plans], p->model->model, &spec, &x->err))
            return x->err.code;
        x->starts = hapi_plan_starts(x->plans[x->n_plans++]);
    }
    return 0;
}

static bool prefix_run(struct hapi_job *job, int worker)
{
    struct hapi_prefix_slot *p =
        (struct hapi_prefix_slot *)((char *)job - offsetof(struct hapi_prefix_slot, job));
    struct hapi_prefix *x = &p->prefix;
    const struct hapi_cut *cut;

    (void)worker;
    if (p->phase == HAPI_PREFIX_BUILT) {
        (void)prefix_plans(p);
        return true;
    }
    if (hapi_model_batch(p->model->model, &p->group) < HAPI_MODEL_BATCH_ONE)
        p->group = 0;
    if (hapi_transform_parse(&x->transform, p->key.transform, strlen(p->key.transform), &x->err) ||
        hapi_model_cut_find(p->model->model, p->key.cut, &cut, &x->err) || prefix_shape(p, cut))
        return true;
    if (p->owner->counts) {
        (void)prefix_ask(p);
    } else {
        p->n_sizes = 1;
        p->sizes[0] = (uint32_t)p->bound;
    }
    return true;
}

/* ------------------------------------------------------------------ making them */

/* Frees the prefix that nobody has used for longest; false: all are in use. */
static bool prefix_drop_idle(struct hapi_models *m)
{
    struct hapi_prefix_slot **best = NULL;

    for (int i = 0; i < HAPI_PREFIXES_MAX; i++)
        if (m->prefix[i] && !m->prefix[i]->holders && (!best || m->prefix[i]->used < (*best)->used))
            best = &m->prefix[i];
    if (!best)
        return false;
    hapi_prefix_free(*best);
    *best = NULL;
    return true;
}

/* Memory ran out: what is kept for nobody goes first, then a device makes do with fewer plans. */
static bool prefix_build_on(struct hapi_prefix_slot *p)
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

void hapi_prefix_fail(struct hapi_prefix_slot *p)
{
    p->prefix.state = HAPI_PREFIX_FAILED;
    p->owner->opt.changed(p->owner->opt.arg);
}

static void built(struct hapi_prefix_slot *p)
{
    p->phase = HAPI_PREFIX_RUNS;
    p->n_free = p->prefix.n_plans;
    p->prefix.cost_ns = 0; /* of another micro-batch */
    p->prefix.state = HAPI_PREFIX_READY;
    if (p->group)
        hapi_log(HAPI_LOG_INFO, "samples run in groups of a fixed size, the last one padded",
                 "samples=%lld why=\"the model's batch is fixed and cannot be re-bound\"",
                 (long long)p->group);
    p->owner->opt.changed(p->owner->opt.arg);
}

static void prefix_done(struct hapi_job *job)
{
    struct hapi_prefix_slot *p =
        (struct hapi_prefix_slot *)((char *)job - offsetof(struct hapi_prefix_slot, job));

    if (p->phase == HAPI_PREFIX_BUILT && prefix_build_on(p))
        return;
    p->holders--; /* the builder's */
    p->left_ns = hapi_clock_ns();
    if (p->prefix.err.code) {
        hapi_prefix_plans_free(p); /* some may have been made */
        hapi_prefix_fail(p);
    } else if (p->phase == HAPI_PREFIX_BUILT)
        built(p);
    else
        p->phase = HAPI_PREFIX_WAITS;
    hapi_admit(p->owner);
}

int hapi_prefix_build(struct hapi_prefix_slot *p)
{
    p->phase = HAPI_PREFIX_BUILT;
    p->at = p->want;
    if (hapi_pool_submit(p->owner->builder, &p->job)) {
        p->phase = HAPI_PREFIX_WAITS;
        p->at = -1;
        return HAPI_ENOMEM;
    }
    p->holders++; /* the builder's */
    return 0;
}

static bool key_equal(const struct hapi_prefix_id *a, const struct hapi_prefix_id *b)
{
    return !memcmp(a->hash, b->hash, sizeof a->hash) && !strcmp(a->cut, b->cut) &&
           !strcmp(a->transform, b->transform) && a->compute == b->compute && a->wire == b->wire &&
           a->bound == b->bound;
}

static int key_make(struct hapi_prefix_id *k, const struct hapi_models *m, const struct hapi_request *r)
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

static struct hapi_prefix_slot **prefix_place(struct hapi_models *m)
{
    do
        for (int i = 0; i < HAPI_PREFIXES_MAX; i++)
            if (!m->prefix[i])
                return &m->prefix[i];
    while (prefix_drop_idle(m));
    return NULL;
}

static struct hapi_prefix_slot *prefix_new(struct hapi_models *m, struct hapi_model_slot *model,
                                           const struct hapi_prefix_id *key, int *why)
{
    struct hapi_prefix_slot **place = prefix_place(m);
    struct hapi_prefix_slot *p = place ? calloc(1, sizeof *p) : NULL;

    *why = HAPI_EBUSY;
    if (!p)
        return NULL;
    p->owner = m;
    p->model = model;
    p->key = *key;
    p->job = (struct hapi_job){.run = prefix_run, .done = prefix_done};
    p->prefix.wire_dtype = key->wire;
    p->prefix.plans = calloc((size_t)m->opt.threads + SPARE_PLANS, sizeof *p->prefix.plans);
    p->at = p->want = -1;
    p->id = ++m->tick;
    p->holders = 1; /* the builder's */
    model->holders++;
    if (!p->prefix.plans || hapi_pool_submit(m->builder, &p->job)) {
        hapi_prefix_free(p);
        return NULL;
    }
    *place = p;
    return p;
}

struct hapi_prefix *hapi_prefix_get(struct hapi_models *m, const struct hapi_request *r, struct hapi_owner o,
                                    int *why)
{
    struct hapi_model_slot *model = hapi_model_slot_find(m, o.id, r->model_hash);
    static struct hapi_prefix_id key; /* large; the loop's thread only */
    struct hapi_prefix_slot *p = NULL;

    *why = HAPI_ENOENT;
    if (!model || (*why = key_make(&key, m, r)))
        return NULL;
    model->used = ++m->tick;
    for (int i = 0; i < HAPI_PREFIXES_MAX && !p; i++)
        if (m->prefix[i] && m->prefix[i]->model == model && key_equal(&m->prefix[i]->key, &key))
            p = m->prefix[i];
    if (p && p->prefix.state == HAPI_PREFIX_FAILED && !p->holders) { /* memory may be there now: try again */
        for (int i = 0; i < HAPI_PREFIXES_MAX; i++)
            if (m->prefix[i] == p)
                m->prefix[i] = NULL;
        hapi_prefix_free(p);
        p = NULL;
    }
    if (!p)
        p = prefix_new(m, model, &key, why);
    if (!p)
        return NULL;
    p->whose = o;
    p->used = ++m->tick;
    if (!p->holders++ && p->phase == HAPI_PREFIX_WAITS)
        hapi_admit(m);
    return &p->prefix;
}

void hapi_prefix_put(struct hapi_prefix *x)
{
    struct hapi_prefix_slot *p = (struct hapi_prefix_slot *)x;

    if (p && !--p->holders)
        p->left_ns = hapi_clock_ns();
}

void hapi_prefix_enter(struct hapi_prefix *x)
{
    x->batches++;
}

void hapi_prefix_leave(struct hapi_prefix *x)
{
    struct hapi_prefix_slot *p = (struct hapi_prefix_slot *)x;

    if (--x->batches || p->phase != HAPI_PREFIX_RUNS || x->state == HAPI_PREFIX_READY)
        return;
    hapi_prefix_plans_free(p); /* for others, or for those of another micro-batch */
    hapi_admit(p->owner);
}

void hapi_prefix_key(const struct hapi_prefix *x, const char *numeric_class, const char *tenant,
                     uint8_t key[HAPI_HASH_SIZE])
{
    const struct hapi_prefix_id *k = &((const struct hapi_prefix_slot *)x)->key;
    static char
        text[2 * HAPI_HASH_SIZE + HAPI_CUT_ID_MAX + HAPI_TRANSFORM_MAX + 1024]; /* the loop's thread */
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
    struct hapi_prefix_slot *p = (struct hapi_prefix_slot *)x;

    return p->n_free ? x->plans[--p->n_free] : NULL;
}

/* The free ones come first, in any order. */
void hapi_prefix_plan_give(struct hapi_prefix *x, struct hapi_plan *plan)
{
    struct hapi_prefix_slot *p = (struct hapi_prefix_slot *)x;
    int i = p->n_free;

    while (x->plans[i] != plan)
        i++;
    x->plans[i] = x->plans[p->n_free];
    x->plans[p->n_free++] = plan;
}
