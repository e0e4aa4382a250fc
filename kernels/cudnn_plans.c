#include "cudnn_plans.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "clock.h"
#include "convert.h"
#include "cudnn_cache.h"

enum { NAME = 96 };

struct made {
    uint8_t key[HAPI_CUDNN_KEY];
    int number;
    int held; /* by so many launches; of a choice that nothing else knows, by the list, too */
    struct made *older, *newer; /* held 0: its neighbours in the order in which they were last used */
    char name[NAME];            /* the graph's own may go before */
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
    pthread_mutex_t lock;          /* of the rest, and of what is in the list: never while a plan is made */
    struct made **list;            /* by number; NULL: the number is free */
    size_t n, room;                /* numbers given out, and before the list grows */
    size_t kept, idle;
    struct made *oldest, *newest; /* of the idle ones */
};

/* ------------------------------------------------------------------ the order of those that nobody holds */

static void idle_add(struct hapi_cudnn_plans *p, struct made *m)
{
    m->older = p->newest;
    m->newer = NULL;
    *(p->newest ? &p->newest->newer : &p->oldest) = m;
    p->newest = m;
    p->idle++;
}

static void idle_remove(struct hapi_cudnn_plans *p, struct made *m)
{
    *(m->older ? &m->older->newer : &p->oldest) = m->newer;
    *(m->newer ? &m->newer->older : &p->newest) = m->older;
    p->idle--;
}

/* ------------------------------------------------------------------ the list */

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
    pthread_mutex_init(&p->lock, NULL);
    *out = p;
    return HAPI_OK;
}

static void made_free(struct made *m)
{
    if (!m)
        return;
    hapi_cudnn_plan_free(m->plan);
    free(m->refusal);
    free(m);
}

void hapi_cudnn_plans_free(struct hapi_cudnn_plans *p)
{
    if (!p)
        return;
    for (size_t i = 0; i < p->n; i++)
        made_free(p->list[i]);
    pthread_mutex_destroy(&p->lock);
    free(p->folder);
    free(p->list);
    free(p);
}

void hapi_cudnn_plans_tune(struct hapi_cudnn_plans *p, const struct hapi_cudnn_tuner *t)
{
    p->tuner = t ? *t : (struct hapi_cudnn_tuner){.fastest = NULL};
}

static struct made *made_find(const struct hapi_cudnn_plans *p, const uint8_t *key)
{
    bool tuned = p->tuner.fastest != NULL;

    for (size_t i = 0; i < p->n; i++)
        if (p->list[i] && p->list[i]->tuned == tuned && !memcmp(p->list[i]->key, key, HAPI_CUDNN_KEY))
            return p->list[i];
    return NULL;
}

/* The lowest number that is free, with room for it; HAPI_ENOMEM. */
static int number_find(struct hapi_cudnn_plans *p, size_t *at)
{
    for (*at = 0; p->kept < p->n && p->list[*at];)
        ++*at;
    if (p->kept < p->n)
        return HAPI_OK;
    *at = p->n;
    if (p->n == p->room) {
        size_t room = p->room ? 2 * p->room : 64;
        struct made **list = realloc(p->list, room * sizeof(struct made *));
        if (!list)
            return HAPI_ENOMEM;
        p->list = list;
        p->room = room;
    }
    p->list[p->n++] = NULL;
    return HAPI_OK;
}

/* Takes it up; HAPI_ENOMEM. */
static int made_add(struct hapi_cudnn_plans *p, struct made *m)
{
    size_t at;

    pthread_mutex_lock(&p->lock);
    int rc = number_find(p, &at);
    if (!rc) {
        m->number = (int)at;
        p->list[at] = m;
        p->kept++;
        if (!m->held)
            idle_add(p, m);
    }
    pthread_mutex_unlock(&p->lock);
    return rc;
}

/* Under the lock. Nobody holds it. */
static void made_remove(struct hapi_cudnn_plans *p, struct made *m)
{
    idle_remove(p, m);
    p->list[m->number] = NULL;
    p->kept--;
    while (p->n && !p->list[p->n - 1])
        p->n--;
}

/* ------------------------------------------------------------------ making */

/* What was chosen has to be what this folder's other users have, and will have. false: it is not there. */
static bool tuned_keep(const struct hapi_cudnn_plans *p, struct made *m)
{
    struct hapi_cudnn_plan *other;

    if (!p->folder)
        return false;
    if (hapi_cudnn_cache_put(p->folder, p->device, m->key, true, m->plan))
        return true;
    other = hapi_cudnn_cache_get(p->folder, p->device, m->key, true); /* another process was first */
    if (other) {
        hapi_cudnn_plan_free(m->plan);
        m->plan = other;
    } else {
        hapi_cudnn_cache_disown(p->folder);
    }
    return other;
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
    /* One class, one choice: tried again, another engine may be the fastest. */
    if (!rc && (untuned || !tuned_keep(p, m)))
        m->held = 1;
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

/* A plan of the graph, or the engines' refusal. Errors: others. */
static int made_new(struct made **out, struct hapi_cudnn_plans *p, const struct hapi_cudnn_graph *g,
                    const uint8_t *key, struct hapi_err *err)
{
    struct made *m = calloc(1, sizeof *m);
    struct hapi_err why = {0};

    if (!m)
        return hapi_err_set(err, HAPI_ENOMEM, 0, "no memory for execution plans");
    memcpy(m->key, key, HAPI_CUDNN_KEY);
    m->graph = *g;
    snprintf(m->name, sizeof m->name, "%s", g->name);
    m->graph.name = m->name;
    m->tuned = p->tuner.fastest != NULL;
    int rc = made_fill(p, m, &why);
    if (rc == HAPI_EUNSUPPORTED) {
        m->refusal = strdup(why.text);
        rc = HAPI_OK;
    }
    if (!rc && made_add(p, m))
        rc = hapi_err_set(&why, HAPI_ENOMEM, 0, "no memory for execution plans");
    if (rc) { /* no word on engines: asked again, it may be taken */
        made_free(m);
        return hapi_err_set(err, rc, why.sys, "%s", why.text);
    }
    *out = m;
    return HAPI_OK;
}

/* The longest unused is the first to go. */
static void made_used(struct hapi_cudnn_plans *p, struct made *m)
{
    m->uses++;
    pthread_mutex_lock(&p->lock);
    if (!m->held) {
        idle_remove(p, m);
        idle_add(p, m);
    }
    pthread_mutex_unlock(&p->lock);
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
    struct made *m = made_find(p, key);
    if (!m)
        rc = made_new(&m, p, g, key, err);
    if (rc)
        return rc;
    made_used(p, m);
    *plan = m->number;
    if (!m->plan)
        return hapi_err_set(err, HAPI_EUNSUPPORTED, 0, "%s", m->refusal ? m->refusal : "no engine");
    *workspace = hapi_cudnn_plan_info_get(m->plan).workspace;
    return HAPI_OK;
}

/* ------------------------------------------------------------------ holding */

void hapi_cudnn_plans_hold(struct hapi_cudnn_plans *p, int plan)
{
    pthread_mutex_lock(&p->lock);
    if (!p->list[plan]->held++)
        idle_remove(p, p->list[plan]);
    pthread_mutex_unlock(&p->lock);
}

void hapi_cudnn_plans_release(struct hapi_cudnn_plans *p, int plan)
{
    pthread_mutex_lock(&p->lock);
    if (!--p->list[plan]->held)
        idle_add(p, p->list[plan]);
    pthread_mutex_unlock(&p->lock);
}

void hapi_cudnn_plans_trim(struct hapi_cudnn_plans *p)
{
    struct made *gone;

    do {
        pthread_mutex_lock(&p->lock);
        gone = p->idle > HAPI_CUDNN_IDLE_MAX ? p->oldest : NULL;
        if (gone)
            made_remove(p, gone);
        pthread_mutex_unlock(&p->lock);
        made_free(gone); /* the driver unloads its code: releases do not wait for that */
    } while (gone);
}

size_t hapi_cudnn_plans_count(const struct hapi_cudnn_plans *p)
{
    return p->kept;
}

struct hapi_cudnn_made hapi_cudnn_plans_get(const struct hapi_cudnn_plans *p, size_t i)
{
    const struct made *m = p->list[i];

    return (struct hapi_cudnn_made){m->plan, &m->graph, m->refusal, m->build_ns, m->kept, m->tuned, m->uses};
}
