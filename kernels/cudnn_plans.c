#include "cudnn_plans.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "clock.h"
#include "convert.h"
#include "cudnn_cache.h"
enum { NAME = 96 };

struct made {
    uint8_t key[HAPI_CUDNN_KEY];
    char name[NAME]; /* the graph's own may go before */
    struct hapi_cudnn_graph graph;
    struct hapi_cudnn_plan *plan;
    char *refusal;
    int64_t build_ns;
    int uses;
    bool kept, tuned;
};

struct hapi_cudnn_plans {
    const struct hapi_cudnn_device *device;
    char *folder;
    struct hapi_cudnn_tuner tuner; /* fastest NULL: none */
    struct made **list;
    size_t n, room;
};

int hapi_cudnn_plans_new(struct hapi_cudnn_plans **out, const struct hapi_cudnn_device *d, const char *folder,
                         struct hapi_err *err)
{
    struct hapi_cudnn_plans *p = calloc(1, sizeof *p);

    if (!p)
        return hapi_err_set(err, HAPI_ENOMEM, 0, "no memory for execution plans");
    p->device = d;
    p->folder = folder ? strdup(folder) : NULL;
    if (folder && !p->folder) {
        free(p);
        return hapi_err_set(err, HAPI_ENOMEM, 0, "no memory for execution plans");
    }
    *out = p;
    return HAPI_OK;
}

void hapi_cudnn_plans_free(struct hapi_cudnn_plans *p)
{
    if (!p)
        return;
    for (size_t i = 0; i < p->n; i++) {
        hapi_cudnn_plan_free(p->list[i]->plan);
        free(p->list[i]->refusal);
        free(p->list[i]);
    }
    free(p->folder);
    free(p->list);
    free(p);
}

void hapi_cudnn_plans_tune(struct hapi_cudnn_plans *p, const struct hapi_cudnn_tuner *t)
{
    p->tuner = t ? *t : (struct hapi_cudnn_tuner){.fastest = NULL};
}

static struct made *made_find(const struct hapi_cudnn_plans *p, const uint8_t *key, int *at)
{
    bool tuned = p->tuner.fastest != NULL;

    for (size_t i = 0; i < p->n; i++)
        if (p->list[i]->tuned == tuned && !memcmp(p->list[i]->key, key, HAPI_CUDNN_KEY)) {
            *at = (int)i;
            return p->list[i];
        }
    return NULL;
}

/* A new entry for the graph; NULL without memory. */
static struct made *made_add(struct hapi_cudnn_plans *p, const struct hapi_cudnn_graph *g, const uint8_t *key,
                             int *at)
{
    struct made *m;

    if (p->n == p->room) {
        size_t room = p->room ? 2 * p->room : 64;
        struct made **list = realloc(p->list, room * sizeof(struct made *));
        if (!list)
            return NULL;
        p->list = list;
        p->room = room;
    }
    m = calloc(1, sizeof *m);
    if (!m)
        return NULL;
    memcpy(m->key, key, HAPI_CUDNN_KEY);
    m->graph = *g;
    snprintf(m->name, sizeof m->name, "%s", g->name);
    m->graph.name = m->name;
    m->tuned = p->tuner.fastest != NULL;
    *at = (int)p->n;
    p->list[p->n++] = m;
    return m;
}

/* What was chosen has to be what this folder's other users have, and will have. */
static void tuned_keep(const struct hapi_cudnn_plans *p, struct made *m)
{
    struct hapi_cudnn_plan *other;

    if (!p->folder || hapi_cudnn_cache_put(p->folder, p->device, m->key, true, m->plan))
        return;
    other = hapi_cudnn_cache_get(p->folder, p->device, m->key, true); /* another process was first */
    if (other) {
        hapi_cudnn_plan_free(m->plan);
        m->plan = other;
    } else {
        hapi_cudnn_cache_disown(p->folder);
    }
}

static int tuned_new(const struct hapi_cudnn_plans *p, struct made *m, struct hapi_err *err)
{
    struct hapi_cudnn_plan *list[HAPI_CUDNN_CANDIDATES];
    int n = 0, best = 0;
    int rc = hapi_cudnn_plan_list(list, HAPI_CUDNN_CANDIDATES, &n, p->device, &m->graph, err);

    if (!rc && n > 1)
        rc = p->tuner.fastest(p->tuner.arg, &m->graph, list, n, &best, err);
    bool untuned = n && rc == HAPI_ENOMEM;
    if (untuned) {
        p->tuner.untuned(p->tuner.arg, err);
        if (p->folder)
            hapi_cudnn_cache_disown(p->folder);
        best = 0;
        rc = HAPI_OK;
    }
    if (!rc)
        m->plan = list[best];
    for (int i = 0; i < n; i++)
        if (list[i] != m->plan)
            hapi_cudnn_plan_free(list[i]);
    if (!rc && !untuned)
        tuned_keep(p, m);
    return rc;
}

/* m's plan, from the folder or new. Errors: as hapi_cudnn_plan_new(). */
static int made_fill(const struct hapi_cudnn_plans *p, struct made *m, struct hapi_err *err)
{
    int64_t start = hapi_clock_ns();
    int rc = HAPI_OK;

    m->plan = p->folder ? hapi_cudnn_cache_get(p->folder, p->device, m->key, m->tuned) : NULL;
    m->kept = m->plan != NULL;
    if (!m->plan)
        rc = m->tuned ? tuned_new(p, m, err) : hapi_cudnn_plan_new(&m->plan, p->device, &m->graph, err);
    m->build_ns = hapi_clock_ns() - start;
    if (m->plan && !m->kept && !m->tuned && p->folder)
        (void)hapi_cudnn_cache_put(p->folder, p->device, m->key, false, m->plan);
    return rc;
}

int hapi_cudnn_plans_make(void *plans, const struct hapi_cudnn_graph *g, int *plan, uint64_t *workspace,
                          struct hapi_err *err)
{
    struct hapi_cudnn_plans *p = plans;
    uint8_t key[HAPI_CUDNN_KEY];
    int rc = hapi_cudnn_graph_check(g, err);

    if (rc) /* ours is the mistake: not an engine's refusal */
        return rc == HAPI_EUNSUPPORTED ? HAPI_EINVAL : rc;
    hapi_cudnn_graph_key(g, key);
    struct made *m = made_find(p, key, plan);
    if (!m) {
        struct hapi_err why = {0};
        m = made_add(p, g, key, plan);
        if (!m)
            return hapi_err_set(err, HAPI_ENOMEM, 0, "no memory for execution plans");
        rc = made_fill(p, m, &why);
        if (rc && rc != HAPI_EUNSUPPORTED) { /* no word on engines: asked again, it may be taken */
            p->n--;
            free(m);
            return hapi_err_set(err, rc, why.sys, "%s", why.text);
        }
        if (rc)
            m->refusal = strdup(why.text);
    }
    m->uses++;
    if (!m->plan)
        return hapi_err_set(err, HAPI_EUNSUPPORTED, 0, "%s", m->refusal ? m->refusal : "no engine");
    *workspace = hapi_cudnn_plan_info_get(m->plan).workspace;
    return HAPI_OK;
}

size_t hapi_cudnn_plans_count(const struct hapi_cudnn_plans *p)
{
    return p->n;
}

struct hapi_cudnn_made hapi_cudnn_plans_get(const struct hapi_cudnn_plans *p, size_t i)
{
    const struct made *m = p->list[i];

    return (struct hapi_cudnn_made){m->plan, &m->graph, m->refusal, m->build_ns, m->kept, m->tuned, m->uses};
}
