/* Ways that samples take: what each needs of the nodes, and what it leaves to this tier, compiled. */
#include <stdlib.h>
#include <string.h>

#include "convert.h"
#include "loader.h"

/* ------------------------------------------------------------------ offers */

static void offer_drop(struct offer *o)
{
    if (!o || --o->users)
        return;
    free(o->bytes);
    free(o);
}

static int offer_new(struct offer **out, struct hapi_loader *l, const struct hapi_cut *cut,
                     struct hapi_err *err)
{
    struct offer *o = calloc(1, sizeof *o);

    if (!o)
        return hapi_err_set(err, HAPI_ENOMEM, 0, "no memory to offer the model");
    o->users = 1;
    o->cut = cut;
    int rc = hapi_model_prefix_bytes(l->model, cut->id, &o->bytes, &o->size, err);
    if (rc) {
        offer_drop(o);
        return rc;
    }
    hapi_sha256(o->hash, o->bytes, o->size);
    *out = o;
    return 0;
}

/* Up to the deepest cut. What has been offered before and holds that will do. */
static int offer_open(struct hapi_loader *l, struct routes *r, const struct routes *before,
                      struct hapi_err *err)
{
    const struct hapi_cut *deepest = NULL;

    for (uint32_t i = 0; i < r->n; i++)
        if (r->route[i].cut && (!deepest || r->route[i].cut->index > deepest->index))
            deepest = r->route[i].cut;
    if (!deepest)
        return 0;
    if (!before || !before->offer || before->offer->cut->index < deepest->index)
        return offer_new(&r->offer, l, deepest, err);
    r->offer = before->offer;
    r->offer->users++;
    return 0;
}

/* ------------------------------------------------------------------ routes */

static int route_wire(struct hapi_loader *l, struct route *w, const char *name, struct hapi_err *err)
{
    const struct hapi_shape *shape = &w->cut->tensors[0].shape;
    enum hapi_wire wire;
    int64_t n;

    int rc = hapi_wire_from_name(&wire, name);
    w->wire = rc ? HAPI_F32 : hapi_wire_dtype(wire);
    if (!rc)
        rc = hapi_shape_elements(shape, &n);
    if (!rc)
        rc = hapi_wire_row(shape, w->wire, &w->wire_row);
    if (!rc && w->wire == HAPI_I8)
        rc = hapi_i8_form(&w->form, shape);
    if (rc)
        return hapi_err_set(err, rc, 0, "cut %s cannot travel as %s", w->cut->id, name);
    w->elements = (size_t)n;
    w->direct = w->cut == l->freeze && w->wire == HAPI_F32;
    return 0;
}

/* Where it is cut. The freeze layer is one place, however it was found. */
static int route_cut(struct hapi_loader *l, struct route *w, const char *split, struct hapi_err *err)
{
    int rc = hapi_model_cut_find(l->model, split, &w->cut, err);

    if (rc)
        return rc;
    if (!strcmp(w->cut->id, l->freeze->id))
        w->cut = l->freeze;
    if (w->cut->n_tensors != 1)
        return hapi_err_set(err, HAPI_EUNSUPPORTED, 0, "cut %s has %u tensors; a split has one", w->cut->id,
                            w->cut->n_tensors);
    if (w->cut->index > l->freeze->index)
        return hapi_err_set(err, HAPI_EINVAL, 0, "cut %s comes after the freeze layer %s", w->cut->id,
                            l->freeze->id);
    return 0;
}

static int route_plans(struct hapi_loader *l, struct route *w, struct hapi_err *err)
{
    struct hapi_plan_spec spec = {
        .from = w->cut ? w->cut->id : NULL,
        .to = l->freeze->id,
        .batch = w->chunk,
        .dtype = l->dtype_here,
        .backend = l->o.backend,
    };
    int rc = 0;

    if (w->cut == l->freeze)
        return 0;
    w->plans = calloc((size_t)l->threads, sizeof(struct hapi_plan *));
    if (!w->plans)
        return hapi_err_set(err, HAPI_ENOMEM, 0, "no memory for %d compute threads", l->threads);
    for (int i = 0; i < l->threads && !rc; i++)
        rc = hapi_plan_new(&w->plans[i], l->model, &spec, err);
    if (rc && w->cut)
        hapi_err_context(err, "from cut %s to the freeze layer %s", w->cut->id, l->freeze->id);
    return rc;
}

static int route_open(struct hapi_loader *l, struct route *w, const struct hapi_loader_part *p,
                      struct hapi_err *err)
{
    bool raw = !strcmp(p->split, "none");

    w->share = p->share;
    w->micro_batch = p->micro_batch;
    w->chunk = p->micro_batch && p->micro_batch < CHUNK_SAMPLES ? p->micro_batch : CHUNK_SAMPLES;
    w->wire = HAPI_F32;
    int rc = raw ? 0 : route_cut(l, w, p->split, err);
    if (!rc && !raw)
        rc = route_wire(l, w, p->wire, err);
    return rc ? rc : route_plans(l, w, err);
}

int routes_new(struct routes **out, struct hapi_loader *l, const struct hapi_loader_part *parts, uint32_t n,
               const struct routes *before, struct hapi_err *err)
{
    struct routes *r = calloc(1, sizeof *r);
    int rc = 0;

    if (!r)
        return hapi_err_set(err, HAPI_ENOMEM, 0, "no memory for a plan");
    for (uint32_t i = 0; i < n && !rc; i++)
        rc = route_open(l, &r->route[r->n++], &parts[i], err);
    if (!rc)
        rc = offer_open(l, r, before, err);
    if (rc) {
        routes_free(l, r);
        return rc;
    }
    *out = r;
    return 0;
}

void routes_free(struct hapi_loader *l, struct routes *r)
{
    if (!r)
        return;
    for (uint32_t i = 0; i < r->n; i++) {
        struct hapi_plan **plans = r->route[i].plans;
        for (int k = 0; plans && k < l->threads; k++)
            hapi_plan_free(plans[k]);
        free(plans);
    }
    offer_drop(r->offer);
    free(r);
}

/* ------------------------------------------------------------------ in use */

static int by_share(const void *a, const void *b)
{
    double x = ((const struct hapi_loader_part *)a)->share, y = ((const struct hapi_loader_part *)b)->share;
    return x < y ? 1 : x > y ? -1 : 0;
}

struct routes *routes_use(struct hapi_loader *l, struct routes *r)
{
    struct routes *before = l->routes;

    pthread_mutex_lock(&l->lock);
    l->n_parts = 0;
    for (uint32_t i = 0; i < r->n; i++) {
        const struct route *w = &r->route[i];
        if (w->share <= 0)
            continue;
        l->parts[l->n_parts++] = (struct hapi_loader_part){
            .split = w->cut ? w->cut->id : "none",
            .wire = w->cut ? (w->wire == HAPI_I8 ? "int8" : hapi_dtype_name(w->wire)) : "raw",
            .share = w->share,
            .micro_batch = w->micro_batch,
        };
    }
    qsort(l->parts, l->n_parts, sizeof *l->parts, by_share);
    pthread_mutex_unlock(&l->lock);
    l->routes = r;
    return before;
}

struct route *routes_next(struct hapi_loader *l)
{
    struct routes *r = l->routes;
    struct route *best = NULL;
    uint64_t all = 0;
    double most = 0;

    for (uint32_t i = 0; i < r->n; i++) {
        all += r->route[i].asked;
        if (l->probe && !r->route[i].cut)
            best = &r->route[i];
    }
    for (uint32_t i = 0; i < r->n && !l->probe; i++) {
        struct route *w = &r->route[i];
        double behind = w->share * (double)(all + REQUEST_SAMPLES) - (double)w->asked;
        if (w->share > 0 && (!best || behind > most)) {
            most = behind;
            best = w;
        }
    }
    l->probe = false;
    return best ? best : &r->route[0];
}

/* ------------------------------------------------------------------ from one plan to the next */

static void retire(struct hapi_loader *l, struct routes *r)
{
    pthread_mutex_lock(&l->lock);
    r->next = l->retired;
    l->retired = r;
    pthread_cond_signal(&l->replan);
    pthread_mutex_unlock(&l->lock);
}

void routes_over(struct routes *r, struct hapi_loader *l)
{
    if (!--r->users && r != l->routes)
        retire(l, r);
}

/* Whether every node that may serve has what the next plan asks of it; those that do not are offered it. */
static bool all_have(struct hapi_loader *l, const struct offer *o)
{
    bool all = true;

    for (uint32_t i = 0; i < l->n_nodes; i++) {
        struct loader_node *n = &l->nodes[i];
        if (n->state == NODE_DEAD || (n->state == NODE_UP && !memcmp(n->has, o->hash, HAPI_HASH_SIZE)))
            continue;
        all = false;
        if (n->state == NODE_UP && !n->offering)
            node_offer(n, o);
    }
    return all;
}

void routes_advance(struct hapi_loader *l)
{
    if (!l->online)
        return;
    pthread_mutex_lock(&l->lock);
    if (!l->next_routes) {
        l->next_routes = l->handed;
        l->handed = NULL;
    }
    pthread_mutex_unlock(&l->lock);
    if (!l->next_routes || (l->next_routes->offer && !all_have(l, l->next_routes->offer)))
        return;
    struct routes *before = routes_use(l, l->next_routes);
    l->next_routes = NULL;
    if (!before->users)
        retire(l, before);
}

/* For requests of as many samples as there may be, within bounds; of `least`, whatever that takes. */
static size_t slot_of(size_t one, size_t least)
{
    size_t all = one * REQUEST_SAMPLES, few = one * least;
    return all <= SLOT_BYTES ? all : few > SLOT_BYTES ? few : SLOT_BYTES;
}

size_t routes_slot_bytes(const struct hapi_loader *l)
{
    size_t slot = 0;

    for (uint32_t i = 0; i < l->routes->n; i++) {
        const struct route *w = &l->routes->route[i];
        size_t bytes = w->direct ? 0
                       : w->cut  ? slot_of(w->wire_row, w->chunk)
                                 : slot_of(l->catalog.max_sample_bytes, 1);
        slot = bytes > slot ? bytes : slot;
    }
    if (l->online) { /* what later plans may want */
        size_t most = slot_of(l->most_row, 1), raw = slot_of(l->catalog.max_sample_bytes, 1);
        slot = most > slot ? most : slot;
        slot = raw > slot ? raw : slot;
    }
    if (l->o.keep_memory || l->o.keep_disk) { /* rows between which others are kept */
        size_t rows = REQUEST_SAMPLES * l->row_bytes;
        rows = rows < SLOT_BYTES ? rows : slot_of(l->row_bytes, 1);
        slot = rows > slot ? rows : slot;
    }
    return slot + (!slot && !l->routes->route[0].direct); /* objects may all be empty */
}
