/*
 * Which prefixes have plans, and of which micro-batch: batch adaptation within the memory that there is.
 *
 *     round:  prefixes that are held, their bytes by micro-batch ── hapi_adapt_solve() ──> want
 *     then:   those that run with another micro-batch lose their plans once nothing is in flight;
 *             those without plans are built as soon as there is room, idle ones going first
 *
 * A round is made when something changed, and once a second while somebody waits: that is when they age.
 */
#include <stdlib.h>
#include <string.h>

#include "clock.h"
#include "log.h"
#include "models_impl.h"

#define ROUND_NS HAPI_NS_PER_S
enum { AGE_DUE = 5 }; /* rounds */
/* A job's prefix between two of its requests is as good as held for so long. */
#define IDLE_NS (2 * HAPI_NS_PER_S)
/* An image alone takes so much longer than one of many: weights are read for it alone. */
#define ALONE 0.25

/* ------------------------------------------------------------------ what is taken */

static bool has_plans(const struct hapi_prefix_slot *p)
{
    return p->phase == HAPI_PREFIX_BUILT || p->phase == HAPI_PREFIX_RUNS;
}

static bool is_idle(const struct hapi_prefix_slot *p)
{
    return !p->holders && hapi_clock_ns() - p->left_ns > IDLE_NS;
}

static bool same_weights(const struct hapi_prefix_slot *a, const struct hapi_prefix_slot *b)
{
    return a->model == b->model && a->key.compute == b->key.compute && !strcmp(a->key.cut, b->key.cut);
}

/* The first of those with plans that have the same weights; -1: none has. */
static int weights_at(const struct hapi_models *m, const struct hapi_prefix_slot *p)
{
    for (int i = 0; i < HAPI_PREFIXES_MAX; i++)
        if (m->prefix[i] && has_plans(m->prefix[i]) && same_weights(m->prefix[i], p))
            return i;
    return -1;
}

static uint64_t models_bytes(const struct hapi_models *m)
{
    uint64_t sum = 0;

    for (uint32_t i = 0; i < m->n_coming; i++)
        sum += m->coming[i].bytes;
    for (int i = 0; i < HAPI_MODELS_MAX; i++)
        sum += m->model[i].model ? m->model[i].bytes : 0;
    return sum;
}

/* Of one owner, or of all (NULL). */
static uint64_t plans_bytes(const struct hapi_models *m, const uint64_t *owner)
{
    uint64_t sum = 0;

    for (int i = 0; i < HAPI_PREFIXES_MAX; i++) {
        const struct hapi_prefix_slot *p = m->prefix[i];
        if (p && has_plans(p) && p->at >= 0 && (!owner || p->model->owner == *owner))
            sum += p->own[p->at] + (weights_at(m, p) == i ? p->weights : 0);
    }
    return sum;
}

uint64_t hapi_admit_taken(const struct hapi_models *m)
{
    return models_bytes(m) + plans_bytes(m, NULL);
}

static uint64_t taken_by(const struct hapi_models *m, uint64_t owner)
{
    uint64_t sum = plans_bytes(m, &owner);

    for (uint32_t i = 0; i < m->n_coming; i++)
        sum += m->coming[i].owner == owner ? m->coming[i].bytes : 0;
    for (int i = 0; i < HAPI_MODELS_MAX; i++)
        sum += m->model[i].model && m->model[i].owner == owner ? m->model[i].bytes : 0;
    return sum;
}

struct hapi_models_usage hapi_models_usage_get(const struct hapi_models *m)
{
    struct hapi_models_usage u = {
        .memory = m->opt.memory, .taken = hapi_admit_taken(m), .refused = m->refused};

    for (int i = 0; i < HAPI_PREFIXES_MAX; i++) {
        const struct hapi_prefix_slot *p = m->prefix[i];
        u.running += p && p->phase == HAPI_PREFIX_RUNS;
        u.waiting += p && p->phase == HAPI_PREFIX_WAITS && p->holders;
    }
    return u;
}

/* Of plans that nobody uses, those that were used least recently. */
static bool plans_drop_idle(struct hapi_models *m)
{
    struct hapi_prefix_slot *best = NULL;

    for (int i = 0; i < HAPI_PREFIXES_MAX; i++) {
        struct hapi_prefix_slot *p = m->prefix[i];
        if (p && p->phase == HAPI_PREFIX_RUNS && is_idle(p) && (!best || p->used < best->used))
            best = p;
    }
    if (best)
        hapi_prefix_plans_free(best);
    return best != NULL;
}

bool hapi_admit_room(struct hapi_models *m, uint64_t bytes)
{
    if (!m->counts)
        return true;
    while (bytes > m->opt.memory || hapi_admit_taken(m) > m->opt.memory - bytes)
        if (bytes > m->opt.memory || (!plans_drop_idle(m) && !hapi_model_drop_idle(m)))
            return false;
    return true;
}

/* NULL: no memory. */
static struct hapi_model_coming *coming_of(struct hapi_models *m, uint64_t owner)
{
    for (uint32_t i = 0; i < m->n_coming; i++)
        if (m->coming[i].owner == owner)
            return &m->coming[i];
    struct hapi_model_coming *more = realloc(m->coming, (m->n_coming + 1) * sizeof *more);
    if (!more)
        return NULL;
    m->coming = more;
    more[m->n_coming] = (struct hapi_model_coming){.owner = owner};
    return &more[m->n_coming++];
}

int hapi_models_reserve(struct hapi_models *m, struct hapi_owner o, uint64_t bytes, struct hapi_err *err)
{
    uint64_t has = o.memory ? taken_by(m, o.id) : 0;

    if (o.memory && has + 2 * bytes > o.memory) {
        bool never = 2 * bytes > o.memory || !m->opt.adapts;
        m->refused += never;
        return hapi_err_set(
            err, never ? HAPI_ENOMEM : HAPI_EBUSY, 0,
            "a model of %.0f MiB, and as much for its weights: this tenant has %.0f of %.0f MiB "
            "(memory=)",
            0x1p-20 * (double)bytes, 0x1p-20 * (double)has, 0x1p-20 * (double)o.memory);
    }
    if (!hapi_admit_room(m, 2 * bytes)) { /* its weights in the order that kernels take come beside it */
        bool never = 2 * bytes > m->opt.memory || !m->opt.adapts;
        m->refused += never;
        return hapi_err_set(err, never ? HAPI_ENOMEM : HAPI_EBUSY, 0,
                            "a model of %.0f MiB; models and plans have %.0f of %.0f MiB here: %s",
                            0x1p-20 * (double)bytes, 0x1p-20 * (double)hapi_admit_taken(m),
                            0x1p-20 * (double)m->opt.memory,
                            never && m->opt.adapts ? "give it more --memory"
                            : never                ? "refused, because --adapt is off"
                                                   : "not now");
    }
    struct hapi_model_coming *c = coming_of(m, o.id);
    if (!c)
        return hapi_err_set(err, HAPI_ENOMEM, 0, "no memory for the table of models");
    c->bytes += bytes;
    return 0;
}

void hapi_models_release(struct hapi_models *m, struct hapi_owner o, uint64_t bytes)
{
    struct hapi_model_coming *c = coming_of(m, o.id); /* it is there */

    c->bytes -= bytes;
    if (!c->bytes)
        *c = m->coming[--m->n_coming];
}

/* ------------------------------------------------------------------ a round */

struct round {
    struct hapi_prefix_slot *slot[HAPI_PREFIXES_MAX];
    struct hapi_adapt_request request[HAPI_PREFIXES_MAX];
    struct hapi_curve_point point[HAPI_PREFIXES_MAX][HAPI_PREFIX_SIZES];
    struct hapi_adapt_tenant tenant[HAPI_PREFIXES_MAX];
    struct hapi_adapt_choice choice[HAPI_PREFIXES_MAX];
    uint32_t n;
};

/* Whoever has no prefix here is forgotten: there is room for all others. */
static void tenants_forget(struct hapi_models *m)
{
    uint32_t n = 0;

    for (uint32_t i = 0; i < m->n_tenants; i++) {
        bool here = false;
        for (int k = 0; k < HAPI_PREFIXES_MAX; k++)
            here |= m->prefix[k] && m->prefix[k]->whose.id == m->tenants[i].who;
        if (here)
            m->tenants[n++] = m->tenants[i];
    }
    m->n_tenants = n;
}

static uint32_t tenant_of(struct hapi_models *m, const struct hapi_prefix_slot *p)
{
    uint32_t i = 0;

    while (i < m->n_tenants && m->tenants[i].who != p->whose.id)
        i++;
    if (i == m->n_tenants) {
        m->tenants[i].tenant = (struct hapi_adapt_tenant){0};
        m->tenants[m->n_tenants++].who = p->whose.id;
    }
    m->tenants[i].tenant.weight = p->whose.weight;
    return i;
}

/* Its bytes as fixed + micro-batch x image: at none of its sizes less than it takes. */
static void bytes_line(const struct hapi_prefix_slot *p, struct hapi_adapt_request *r)
{
    for (uint32_t k = 1; k < p->n_sizes; k++) {
        uint64_t run = p->sizes[k] - p->sizes[0], rise = p->own[k] > p->own[0] ? p->own[k] - p->own[0] : 0;
        uint64_t slope = (rise + run - 1) / run;
        r->image_bytes = slope > r->image_bytes ? slope : r->image_bytes;
    }
    uint64_t first = r->image_bytes * p->sizes[0];
    r->fixed_bytes = p->own[0] > first ? p->own[0] - first : 0;
}

/* How many of its sizes its owner's memory has room for, as it is now; those it runs with in any case. */
static uint32_t sizes_allowed(const struct hapi_models *m, const struct hapi_prefix_slot *p)
{
    uint64_t has = p->whose.memory ? taken_by(m, p->model->owner) : 0;
    uint32_t n = p->n_sizes;

    if (!p->whose.memory)
        return n;
    if (p->at >= 0)
        has -= p->own[p->at];
    else if (weights_at(m, p) < 0)
        has += p->weights;
    while (n && has + p->own[n - 1] > p->whose.memory && (int)n - 1 > p->at)
        n--;
    return n;
}

static void request_add(struct hapi_models *m, struct round *r, struct hapi_prefix_slot *p, uint32_t n_sizes)
{
    struct hapi_adapt_request *q = &r->request[r->n];
    struct hapi_curve_point *point = r->point[r->n];

    *q = (struct hapi_adapt_request){
        .id = p->id,
        .key = r->n + 1,
        .shared_bytes = p->weights,
        .b_min = p->sizes[0],
        .b_max = p->sizes[n_sizes - 1],
        .tenant = tenant_of(m, p),
        .age = p->age,
        .batch = p->at >= 0 ? p->sizes[p->at] : 0,
        .device = p->at >= 0 || p->claims ? 0 : -1,
        .seconds = {.n = n_sizes, .points = point},
    };
    for (uint32_t i = 0; i < r->n; i++)
        if (same_weights(r->slot[i], p)) {
            q->key = r->request[i].key;
            break;
        }
    for (uint32_t k = 0; k < p->n_sizes; k++)
        point[k] = (struct hapi_curve_point){.batch = p->sizes[k], .s = 1 + ALONE / p->sizes[k]};
    bytes_line(p, q);
    r->slot[r->n++] = p;
}

static void refuse(struct hapi_prefix_slot *p, uint64_t bytes, const char *why)
{
    const struct hapi_models *m = p->owner;
    p->owner->refused++;
    hapi_err_set(&p->prefix.err, HAPI_ENOMEM, 0,
                 "plans of micro-batch %lld take %.0f MiB; models and plans have %.0f of %.0f MiB here: %s",
                 (long long)hapi_prefix_batch(p, p->want), 0x1p-20 * (double)bytes,
                 0x1p-20 * (double)hapi_admit_taken(m), 0x1p-20 * (double)m->opt.memory, why);
    hapi_prefix_fail(p);
}

/* Its owner has no memory left for it: it waits for what else the owner runs, if anything. */
static void owner_full(struct hapi_prefix_slot *p)
{
    uint64_t alone = p->model->bytes + p->own[0] + p->weights;

    p->want = -1;
    if (alone <= p->whose.memory)
        return;
    p->owner->refused++;
    hapi_err_set(&p->prefix.err, HAPI_ENOMEM, 0,
                 "model and plans of micro-batch %lld take %.0f MiB; this tenant may have %.0f (memory=)",
                 (long long)hapi_prefix_batch(p, 0), 0x1p-20 * (double)alone,
                 0x1p-20 * (double)p->whose.memory);
    hapi_prefix_fail(p);
}

/* Who runs with another micro-batch than is wanted. Nothing new of it starts from here on. */
static void change(struct hapi_prefix_slot *p)
{
    hapi_log(HAPI_LOG_INFO, "another micro-batch", "cut=%.200s from=%lld to=%lld", p->key.cut,
             (long long)hapi_prefix_batch(p, p->at), (long long)hapi_prefix_batch(p, p->want));
    p->prefix.state = HAPI_PREFIX_BUILDING;
    if (!p->prefix.batches)
        hapi_prefix_plans_free(p);
}

static void choice_take(struct hapi_prefix_slot *p, const struct hapi_adapt_choice *c)
{
    bool runs = p->at >= 0;

    p->claims = !runs && c->state == HAPI_ADAPT_WAITS && c->device >= 0;
    if (!runs)
        p->want = -1;
    if (c->state == HAPI_ADAPT_TOO_BIG && !runs) {
        p->want = 0;
        refuse(p, p->own[0] + p->weights, "give it more --memory");
        return;
    }
    for (uint32_t k = 0; c->batch && k < p->n_sizes; k++)
        if (p->sizes[k] == c->batch)
            p->want = (int)k;
    if (runs && p->want != p->at && p->phase == HAPI_PREFIX_RUNS && p->prefix.state == HAPI_PREFIX_READY)
        change(p);
}

/* once: a second has passed. */
static void round_make(struct hapi_models *m, bool once)
{
    static struct round r; /* large; the loop's thread */
    uint64_t models = models_bytes(m), left = m->opt.memory > models ? m->opt.memory - models : 0;
    struct hapi_adapt a = {
        .requests = r.request, .tenants = r.tenant, .free_bytes = &left, .n_devices = 1, .age_due = AGE_DUE};
    struct hapi_adapt_result result;
    struct hapi_err err;

    r.n = 0;
    tenants_forget(m);
    for (int i = 0; i < HAPI_PREFIXES_MAX; i++) {
        struct hapi_prefix_slot *p = m->prefix[i];
        bool ready = p && p->phase != HAPI_PREFIX_ASKS && p->prefix.state != HAPI_PREFIX_FAILED;
        if (!ready || (p->phase == HAPI_PREFIX_WAITS ? !p->holders : is_idle(p)))
            continue;
        if (once && p->phase == HAPI_PREFIX_WAITS && p->age < HAPI_ADAPT_AGE_MAX)
            p->age++;
        if (has_plans(p))
            p->age = 0;
        uint32_t sizes = sizes_allowed(m, p);
        if (sizes)
            request_add(m, &r, p, sizes);
        else
            owner_full(p);
    }
    a.n_requests = r.n;
    a.n_tenants = m->n_tenants;
    for (uint32_t i = 0; i < m->n_tenants; i++)
        r.tenant[i] = m->tenants[i].tenant;
    /* HAPI_ENOMEM: models took the room that running ones would grow into; all stays as it is. */
    if (!r.n || hapi_adapt_solve(&a, m->scratch, m->scratch_size, r.choice, &result, &err))
        return;
    if (once)
        hapi_adapt_account(&a, r.choice, r.tenant);
    for (uint32_t i = 0; i < m->n_tenants; i++)
        m->tenants[i].tenant = r.tenant[i];
    for (uint32_t i = 0; i < r.n; i++)
        choice_take(r.slot[i], &r.choice[i]);
}

/* Without adaptation: as many as fit, and the others are refused. */
static void all_want_most(struct hapi_models *m)
{
    for (int i = 0; i < HAPI_PREFIXES_MAX; i++)
        if (m->prefix[i] && m->prefix[i]->phase == HAPI_PREFIX_WAITS)
            m->prefix[i]->want = (int)m->prefix[i]->n_sizes - 1;
}

static void builds_start(struct hapi_models *m)
{
    for (int i = 0; i < HAPI_PREFIXES_MAX; i++) {
        struct hapi_prefix_slot *p = m->prefix[i];
        if (!p || p->phase != HAPI_PREFIX_WAITS || p->want < 0 || !p->holders ||
            p->prefix.state == HAPI_PREFIX_FAILED)
            continue;
        uint64_t bytes = p->own[p->want] + (weights_at(m, p) < 0 ? p->weights : 0);
        if (p->whose.memory && taken_by(m, p->model->owner) + bytes > p->whose.memory)
            continue; /* with a round to come, smaller, or when its owner has room */
        if (hapi_admit_room(m, bytes))
            (void)hapi_prefix_build(p); /* else: with the next round */
        else if (!m->opt.adapts)
            refuse(p, bytes, "refused, because --adapt is off");
    }
}

/* What is told to those who wait may end micro-batches, and with them free memory: not from inside a round.
 */
static void admit(struct hapi_models *m, bool once)
{
    m->again = true;
    if (m->admits)
        return;
    m->admits = true;
    while (m->again) {
        m->again = false;
        if (m->counts && m->opt.adapts)
            round_make(m, once);
        else
            all_want_most(m);
        builds_start(m);
        once = false;
    }
    m->admits = false;
}

void hapi_admit(struct hapi_models *m)
{
    admit(m, false);
}

void hapi_models_tick(struct hapi_models *m, int64_t now_ns)
{
    if (now_ns - m->round_ns < ROUND_NS)
        return;
    m->round_ns = now_ns;
    admit(m, true);
}
