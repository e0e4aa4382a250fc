/* A profile out of what was measured, and what is said besides: how far it spread, what was filled in. */
#include <cjson/cJSON.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "convert.h"
#include "int8.h"
#include "profile_run.h"

/* Nodes together reach less than that of their sum, and each alone at least that of its link: then the
 * client's link is the bound. */
#define CLIENT_BOUND 0.9
#define STREAM_FULL 0.7

struct out { /* while it is made */
    const struct profile_run *r;
    struct hapi_profile *p;
    struct grid storage, compute;
    uint32_t *kept; /* cuts of the profile: indices into r->cuts */
};

/* ------------------------------------------------------------------ grids */

/* What was measured of it, and what follows. `none_left`: nothing is to be computed at the last cut. */
static int grid_make(struct grid *g, const struct profile_run *r, struct series *of, bool none_left,
                     struct hapi_err *err)
{
    size_t cells = (size_t)r->n_cuts * r->o->n_batches;

    g->measured = calloc(cells, sizeof *g->measured);
    g->s = calloc(cells, sizeof *g->s);
    if (!g->measured || !g->s)
        return hapi_err_set(err, HAPI_ENOMEM, 0, "no memory for %u cuts", r->n_cuts);
    for (size_t i = 0; i < cells; i++) {
        bool last = none_left && i / r->o->n_batches + 1 == r->n_cuts;
        g->measured[i] = last || (of[i].n && (!g->limit || !r->refused[i / r->o->n_batches]));
        g->s[i] = last ? 0 : series_median(&of[i]);
    }
    if (grid_straighten(g, !none_left))
        return hapi_err_set(err, HAPI_ENOMEM, 0, "no memory for %u cuts", r->n_cuts);
    grid_fill(g);
    return 0;
}

static int curve_of(struct out *o, struct hapi_curve *to, const struct grid *g, uint32_t cut)
{
    struct hapi_curve_point points[PROFILE_BATCHES_MAX];
    uint32_t n = 0;

    for (uint32_t b = 0; b < g->n_batches; b++) {
        double s = g->s[cut * g->n_batches + b];
        if (!isnan(s))
            points[n++] = (struct hapi_curve_point){g->batches[b], s};
    }
    if (n == 1 || (n && points[0].s == 0)) {
        to->s = points[0].s;
        return 0;
    }
    return hapi_profile_curve(o->p, to, points, n);
}

static int whole_curve(struct out *o)
{
    const struct profile_run *r = o->r;
    struct hapi_curve_point points[PROFILE_BATCHES_MAX];
    uint32_t n = 0;

    for (uint32_t b = 0; b < r->o->n_batches; b++)
        if (r->whole[b].n)
            points[n++] = (struct hapi_curve_point){r->o->batches[b], series_median(&r->whole[b])};
    return hapi_profile_curve(o->p, &o->p->source_compute_s, points, n);
}

/* ------------------------------------------------------------------ cuts */

/* Seconds for a byte of f32, over the cuts that were measured: for those that were not. */
static double convert_rate(const struct profile_run *r, const struct series *of, int wire)
{
    struct series rates = {0};

    for (uint32_t i = 0; i < r->n_cuts; i++)
        if (of[i * HAPI_WIRES_N + (uint32_t)wire].n)
            series_add(&rates,
                       series_median(&of[i * HAPI_WIRES_N + (uint32_t)wire]) / (double)r->cuts[i].bytes_f32);
    return series_median(&rates);
}

static double convert_of(const struct profile_run *r, const struct series *of, uint32_t cut, int wire)
{
    const struct series *s = &of[cut * HAPI_WIRES_N + (uint32_t)wire];
    return s->n ? series_median(s) : convert_rate(r, of, wire) * (double)r->cuts[cut].bytes_f32;
}

/* The slower of the two tiers: what is sent is made by the one and undone by the other. */
static void wires_fill(const struct profile_run *r, struct hapi_profile_cut *c, uint32_t cut)
{
    for (int w = 0; w < HAPI_WIRES_N; w++) {
        uint64_t row;
        double ratio = r->pack_ratio[w].n ? series_median(&r->pack_ratio[w]) : 1;
        if (hapi_wire_row(&r->cuts[cut].tensors[0].shape, hapi_wire_dtype((enum hapi_wire)w), &row))
            continue;
        c->wire_bytes[w] = (double)row;
        double there = convert_of(r, r->pack, cut, w) * ratio, here = convert_of(r, r->unpack, cut, w);
        if (w != HAPI_WIRE_F32 && !isnan(here) && !isnan(there))
            c->convert_s[w].s = here > there ? here : there;
    }
}

static double total(const struct hapi_plan_memory *m)
{
    return (double)(m->weights + m->device_weights + m->arena + m->device_arena + m->scratch);
}

static int memory_of(const struct profile_run *r, struct hapi_profile_memory *to, const char *backend,
                     const char *from, const char *id, struct hapi_err *err)
{
    uint32_t most = r->o->batches[r->o->n_batches - 1];
    struct hapi_plan_spec spec = {
        .from = from, .to = id, .batch = 1, .dtype = r->o->dtype, .backend = backend};
    struct hapi_plan_memory one, many;
    int rc = hapi_plan_memory_query(r->model, &spec, &one, err);

    spec.batch = most;
    rc = rc || most == 1 ? rc : hapi_plan_memory_query(r->model, &spec, &many, err);
    if (rc)
        return rc;
    double per_image = most == 1 ? (double)(one.arena + one.device_arena + one.scratch)
                                 : (total(&many) - total(&one)) / (most - 1);
    to->per_image = per_image > 0 ? ceil(per_image) : 0;
    to->fixed = total(&one) > to->per_image ? total(&one) - to->per_image : 0;
    return 0;
}

/* The back end that a node's numeric class names, if it is one of ours. */
static const char *storage_backend(const struct profile_run *r)
{
    static const char *const names[] = {"onednn", "cudnn", "ref"};

    for (size_t i = 0; r->n_nodes && i < sizeof names / sizeof *names; i++)
        if (!strncmp(r->probes[0]->numeric_class, names[i], strlen(names[i])) && hapi_numeric_class(names[i]))
            return names[i];
    return r->o->backend;
}

static int cut_fill(struct out *o, struct hapi_profile_cut *c, uint32_t cut, struct hapi_err *err)
{
    const struct profile_run *r = o->r;
    const char *id = r->cuts[cut].id, *freeze = r->cuts[r->n_cuts - 1].id;

    c->index = r->cuts[cut].index;
    c->name = hapi_profile_text(o->p, id);
    if (!c->name || curve_of(o, &c->storage_s, &o->storage, cut) ||
        curve_of(o, &c->compute_s, &o->compute, cut))
        return hapi_err_set(err, HAPI_ENOMEM, 0, "no memory for a profile");
    wires_fill(r, c, cut);
    int rc = memory_of(r, &c->storage_memory, storage_backend(r), NULL, id, err);
    if (rc == HAPI_EUNSUPPORTED) /* a GPU's, where there is none: as this tier's */
        rc = memory_of(r, &c->storage_memory, r->o->backend, NULL, id, err);
    if (!rc && cut + 1 < r->n_cuts)
        rc = memory_of(r, &c->compute_memory, r->o->backend, id, freeze, err);
    return rc;
}

/* ------------------------------------------------------------------ the rest */

static double given_or(const struct profile_run *r, enum profile_given g, double measured)
{
    return isnan(r->o->given[g]) ? measured : r->o->given[g];
}

static void nodes_fill(struct out *o)
{
    const struct profile_run *r = o->r;
    struct hapi_profile *p = o->p;
    double sum = 0, both = series_median(&r->both_streams);

    bool full = true;
    for (uint32_t i = 0; i < r->n_nodes; i++) {
        sum += series_median(&r->links[i].streams);
        full &= series_median(&r->links[i].streams) >= STREAM_FULL * profile_bandwidth(&r->links[i]);
    }
    if (full && both > 0 && both < CLIENT_BOUND * sum)
        p->client_bandwidth_Bps = both;
    for (uint32_t i = 0; i < p->n_node_list; i++) {
        struct hapi_profile_node *n = &p->node_list[i];
        n->name = hapi_profile_text(p, r->probes[i]->name);
        n->bandwidth_Bps = given_or(r, PROFILE_BANDWIDTH, profile_bandwidth(&r->links[i]));
        n->cores = r->probes[i]->limits.threads;
        n->speed = r->links[i].speed.n ? series_median(&r->links[i].speed) : 1;
    }
}

static double share(const struct series *s)
{
    double v = series_median(s);
    return v > 1 ? 1 : v > 0 ? v : 0;
}

static void tiers_fill(struct out *o)
{
    const struct profile_run *r = o->r;
    struct hapi_profile *p = o->p;
    bool gpu = r->n_nodes && !strncmp(r->probes[0]->numeric_class, "cudnn", 5);

    p->compute.cores = (uint32_t)hapi_topology_cores(r->topology);
    p->compute.contention = share(&r->contention[1]);
    p->compute.devices = hapi_backend_converts(r->o->backend);
    p->compute.train_shares = isnan(r->o->given[PROFILE_TRAIN]);
    p->storage = p->compute;
    p->storage.train_shares = false;
    if (!r->n_nodes)
        return;
    p->storage.cores = r->probes[0]->limits.threads;
    p->storage.contention = share(&r->contention[0]);
    p->storage.devices = gpu;
}

static void numbers_fill(struct out *o)
{
    const struct profile_run *r = o->r;
    struct hapi_profile *p = o->p;
    const struct profile_link *link = r->n_nodes ? r->links : NULL;
    double here = (double)hapi_memory_available();

    p->images = r->n_samples;
    p->train_batch = r->o->train_batch;
    p->epochs = (uint32_t)r->o->given[PROFILE_EPOCHS];
    p->nodes = r->n_nodes ? r->n_nodes : r->o->storage_nodes;
    p->freeze = r->cuts[r->n_cuts - 1].index;
    p->source_bytes = r->mean_bytes;
    p->train_s.s = given_or(r, PROFILE_TRAIN, series_median(&r->train));
    p->source_prepare_s.s = series_median(&r->source_prepare);
    p->storage_prepare_s.s = series_median(r->n_nodes ? &r->storage_prepare : &r->source_prepare);
    p->read_s.s = series_median(&r->read);
    p->bandwidth_Bps = given_or(r, PROFILE_BANDWIDTH, link ? profile_bandwidth(link) : NAN);
    p->latency_s = given_or(r, PROFILE_LATENCY, link ? profile_latency(link) : NAN);
    p->storage_cache =
        given_or(r, PROFILE_STORAGE_CACHE, r->n_nodes ? (double)r->probes[0]->limits.cache : 0);
    p->compute_cache = r->o->given[PROFILE_COMPUTE_CACHE];
    p->storage_memory =
        given_or(r, PROFILE_STORAGE_MEMORY, r->n_nodes ? (double)r->probes[0]->limits.memory : here);
    p->compute_memory = given_or(r, PROFILE_COMPUTE_MEMORY, here);
}

static void texts_fill(struct out *o)
{
    struct hapi_profile *p = o->p;
    char host[256] = "", date[32], hash[65];
    time_t now = time(NULL);
    struct tm utc;

    gethostname(host, sizeof host - 1);
    strftime(date, sizeof date, "%Y-%m-%dT%H:%M:%SZ", gmtime_r(&now, &utc));
    hapi_sha256_text(hash, hapi_model_hash(o->r->model));
    p->model = hapi_profile_text(p, o->r->o->model);
    p->hash = hapi_profile_text(p, hash);
    p->host = hapi_profile_text(p, *host ? host : "?");
    p->dtype = hapi_profile_text(p, hapi_dtype_name(o->r->o->dtype));
    p->date = hapi_profile_text(p, date);
}

static int profile_fill(struct out *o, struct hapi_err *err)
{
    int rc = 0;

    numbers_fill(o);
    tiers_fill(o);
    texts_fill(o);
    nodes_fill(o);
    if (!o->p->model || !o->p->date || whole_curve(o))
        return hapi_err_set(err, HAPI_ENOMEM, 0, "no memory for a profile");
    for (uint32_t i = 0; i < o->p->n_cuts && !rc; i++)
        rc = cut_fill(o, &o->p->cuts[i], o->kept[i], err);
    return rc;
}

/* ------------------------------------------------------------------ what is said besides */

static double worst_spread(const struct series *of, size_t n)
{
    double worst = NAN;

    for (size_t i = 0; i < n; i++)
        worst = fmax(worst, series_spread(&of[i])); /* of a number and NaN, the number */
    return worst;
}

static bool number(cJSON *o, const char *key, double v)
{
    return isnan(v) || cJSON_AddNumberToObject(o, key, v);
}

static bool spread_add(cJSON *top, const struct profile_run *r)
{
    cJSON *o = cJSON_AddObjectToObject(top, "spread");
    size_t cells = (size_t)r->n_cuts * r->o->n_batches;
    bool ok = o && number(o, "storage_s", worst_spread(r->storage, cells)) &&
              number(o, "compute_s", worst_spread(r->compute, cells)) &&
              number(o, "source_compute_s", worst_spread(r->whole, r->o->n_batches)) &&
              number(o, "source_prepare_s", series_spread(&r->source_prepare)) &&
              number(o, "read_s", series_spread(&r->read)) && number(o, "train_s", series_spread(&r->train));

    if (ok && r->n_nodes)
        ok = number(o, "storage_prepare_s", series_spread(&r->storage_prepare)) &&
             number(o, "bandwidth_Bps", series_spread(&r->links[0].streams)) &&
             number(o, "latency_s", series_spread(&r->links[0].small));
    return ok;
}

static bool how_add(cJSON *top, const struct profile_run *r)
{
    cJSON *o = cJSON_AddObjectToObject(top, "measured");
    bool ok = o && number(o, "seconds", r->took_s) && number(o, "rounds", r->rounds) &&
              number(o, "micro_batch", r->o->batches[r->main]) &&
              cJSON_AddStringToObject(o, "compute_class", hapi_numeric_class(r->o->backend));

    if (!ok || !r->n_nodes)
        return ok;
    double slope = points_slope(&r->links[0].transfers, 65536);
    return cJSON_AddStringToObject(o, "storage_class", r->probes[0]->numeric_class) &&
           cJSON_AddStringToObject(o, "transport", r->probes[0]->transport) &&
           number(o, "stream_Bps", series_median(&r->links[0].streams)) &&
           number(o, "write_Bps", slope > 0 ? 1 / slope : NAN);
}

static bool batches_add(cJSON *o, const char *key, const struct profile_run *r, const struct grid *g,
                        uint32_t cut)
{
    cJSON *list = cJSON_AddArrayToObject(o, key);
    bool ok = list != NULL;

    for (uint32_t b = 0; b < r->o->n_batches && ok; b++)
        if (g->measured[cut * g->n_batches + b])
            ok = cJSON_AddItemToArray(list, cJSON_CreateNumber(r->o->batches[b]));
    return ok;
}

static bool cuts_add(cJSON *top, const struct out *o)
{
    const struct profile_run *r = o->r;
    cJSON *item = cJSON_GetObjectItemCaseSensitive(top, "cuts")->child;
    bool ok = true;

    for (uint32_t i = 0; i < o->p->n_cuts && ok; i++, item = item->next) {
        cJSON *measured = cJSON_AddObjectToObject(item, "measured");
        cJSON *spread = cJSON_AddObjectToObject(item, "spread");
        uint32_t cut = o->kept[i], n = r->o->n_batches;
        ok = measured && spread && batches_add(measured, "storage_s", r, &o->storage, cut) &&
             batches_add(measured, "compute_s", r, &o->compute, cut) &&
             number(spread, "storage_s", worst_spread(profile_cell(r, r->storage, cut, 0), n)) &&
             number(spread, "compute_s", worst_spread(profile_cell(r, r->compute, cut, 0), n));
    }
    return ok;
}

static bool refused_add(cJSON *top, const struct profile_run *r)
{
    cJSON *list = cJSON_AddArrayToObject(top, "left_out");
    bool ok = list != NULL;

    for (uint32_t i = 0; i < r->n_cuts && ok; i++) {
        cJSON *o = r->refused[i] ? cJSON_CreateObject() : NULL;
        if (r->refused[i])
            ok = o && cJSON_AddItemToArray(list, o) && number(o, "index", r->cuts[i].index) &&
                 cJSON_AddStringToObject(o, "name", r->cuts[i].id) &&
                 cJSON_AddStringToObject(o, "why", r->refused[i]);
    }
    return ok;
}

/* ------------------------------------------------------------------ all of it */

static int text_make(const struct out *o, char **out, struct hapi_err *err)
{
    char *text;
    int rc = hapi_profile_write(o->p, &text, err);

    if (rc)
        return rc;
    cJSON *top = cJSON_Parse(text);
    free(text);
    bool ok =
        top && spread_add(top, o->r) && how_add(top, o->r) && cuts_add(top, o) && refused_add(top, o->r);
    *out = ok ? cJSON_Print(top) : NULL;
    cJSON_Delete(top);
    return *out ? 0 : hapi_err_set(err, HAPI_ENOMEM, 0, "no memory for a profile");
}

static int kept_make(struct out *o, uint32_t *n, struct hapi_err *err)
{
    const struct profile_run *r = o->r;
    const char *why = NULL;

    o->kept = calloc(r->n_cuts, sizeof *o->kept);
    if (!o->kept)
        return hapi_err_set(err, HAPI_ENOMEM, 0, "no memory for %u cuts", r->n_cuts);
    for (uint32_t i = 0; i < r->n_cuts; i++) {
        if (!r->refused[i])
            o->kept[(*n)++] = i;
        else
            why = r->refused[i];
    }
    if (*n && !r->refused[r->n_cuts - 1])
        return 0;
    return hapi_err_set(err, HAPI_EUNSUPPORTED, 0, "cuts: the node serves %s: %.300s",
                        *n ? "the freeze layer not" : "none", *n ? r->refused[r->n_cuts - 1] : why);
}

int profile_text(const struct profile_run *r, char **out, struct hapi_err *err)
{
    struct out o = {.r = r, .storage = profile_grid(r, r->limit), .compute = profile_grid(r, NULL)};
    uint32_t n = 0;
    int rc = kept_make(&o, &n, err);

    rc = rc ? rc : grid_make(&o.storage, r, r->storage, false, err);
    rc = rc ? rc : grid_make(&o.compute, r, r->compute, true, err);
    rc = rc ? rc : hapi_profile_new(&o.p, n, r->n_nodes > 1 ? r->n_nodes : 0, err);
    rc = rc ? rc : profile_fill(&o, err);
    rc = rc ? rc : text_make(&o, out, err);
    hapi_profile_free(o.p);
    free(o.storage.measured);
    free(o.storage.s);
    free(o.compute.measured);
    free(o.compute.s);
    free(o.kept);
    return rc;
}
