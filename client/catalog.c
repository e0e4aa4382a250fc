#include "catalog.h"

#include <stdlib.h>
#include <string.h>

static int out_of_memory(struct hapi_err *err)
{
    return hapi_err_set(err, HAPI_ENOMEM, 0, "no memory for the dataset's index");
}

int hapi_catalog_classes(struct hapi_catalog *c, uint32_t node, const struct hapi_msg_dataset *d,
                         struct hapi_err *err)
{
    struct hapi_str blob = d->classes_blob, name;
    uint32_t n = 0;

    if (c->node_classes[node]) /* a reconnect: the order must be the one that labels were mapped by */
        return c->n_node_classes[node] == d->n_classes
                   ? 0
                   : hapi_err_set(err, HAPI_ESTALE, 0, "its classes changed while the job ran");
    c->node_classes[node] = calloc((size_t)d->n_classes + 1, sizeof(char *));
    if (!c->node_classes[node])
        return out_of_memory(err);
    while (n < d->n_classes && hapi_classes_next(&blob, &name))
        if (!(c->node_classes[node][n++] = strndup(name.s, name.n)))
            return out_of_memory(err);
    c->n_node_classes[node] = n;
    return 0;
}

static struct hapi_catalog_object *find(struct hapi_catalog *c, struct hapi_str name)
{
    uint32_t lo = 0, hi = c->n_objects;

    /* Nodes list by name, so a search in what is sorted so far finds it; new ones go to the end. */
    while (lo < hi) {
        uint32_t mid = (lo + hi) / 2;
        struct hapi_catalog_object *o = &c->objects[mid];
        int order = strncmp(o->name, name.s, name.n);
        if (!order && o->name[name.n])
            order = 1;
        if (!order)
            return o;
        if (order < 0)
            lo = mid + 1;
        else
            hi = mid;
    }
    return NULL;
}

static int object_new(struct hapi_catalog *c, const struct hapi_msg_object *m,
                      struct hapi_catalog_object **out, struct hapi_err *err)
{
    if (c->n_objects == c->capacity) {
        uint32_t n = c->capacity ? c->capacity * 2 : 64;
        struct hapi_catalog_object *grown = realloc(c->objects, n * sizeof *grown);
        if (!grown)
            return out_of_memory(err);
        c->objects = grown;
        c->capacity = n;
    }
    struct hapi_catalog_object o = {.n_samples = m->samples};
    o.name = strndup(m->name.s, m->name.n);
    o.sample_bytes = malloc((size_t)m->samples * 4 + 1);
    if (!o.name || !o.sample_bytes) {
        free(o.name);
        free(o.sample_bytes);
        return out_of_memory(err);
    }
    memcpy(o.digest, m->digest, HAPI_HASH_SIZE);
    if (m->samples)
        memcpy(o.sample_bytes, m->sample_bytes.s, (size_t)m->samples * 4);
    /* Insert in name order: nodes send sorted lists, so this is nearly always at the end. */
    uint32_t at = c->n_objects;
    while (at && strcmp(c->objects[at - 1].name, o.name) > 0)
        at--;
    memmove(&c->objects[at + 1], &c->objects[at], (c->n_objects - at) * sizeof o);
    c->objects[at] = o;
    c->n_objects++;
    *out = &c->objects[at];
    return 0;
}

int hapi_catalog_add(struct hapi_catalog *c, uint32_t node, const struct hapi_msg_object *m,
                     struct hapi_err *err)
{
    struct hapi_catalog_object *o = find(c, m->name);

    if (!o && c->sample_object)
        return 0; /* appeared after the job began: not part of it */
    if (!o) {
        int rc = object_new(c, m, &o, err);
        if (rc)
            return rc;
    }
    if (memcmp(o->digest, m->digest, HAPI_HASH_SIZE) || o->n_samples != m->samples)
        return hapi_err_set(err, HAPI_ESTALE, 0, "object %s differs from the one on another node, or changed",
                            o->name);
    o->nodes |= 1ULL << node;
    return 0;
}

static bool is_integer(const char *s)
{
    size_t n = strspn(s, "0123456789");
    return n && n < 10 && !s[n];
}

static int by_number(const void *a, const void *b)
{
    long x = atol(*(char *const *)a), y = atol(*(char *const *)b);
    return x < y ? -1 : x > y;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static int classes_unite(struct hapi_catalog *c, struct hapi_err *err)
{
    uint32_t total = 0, n = 0;
    bool numbers = true;

    for (uint32_t i = 0; i < c->n_nodes; i++)
        total += c->n_node_classes[i];
    c->classes = calloc((size_t)total + 1, sizeof(char *));
    if (!c->classes)
        return out_of_memory(err);
    for (uint32_t i = 0; i < c->n_nodes; i++)
        for (uint32_t k = 0; k < c->n_node_classes[i]; k++) {
            c->classes[n++] = c->node_classes[i][k];
            numbers &= is_integer(c->node_classes[i][k]);
        }
    qsort(c->classes, n, sizeof(char *), by_name);
    for (uint32_t i = 0; i < n; i++)
        if (!c->n_classes || strcmp(c->classes[c->n_classes - 1], c->classes[i]))
            c->classes[c->n_classes++] = c->classes[i];
    if (numbers)
        qsort(c->classes, c->n_classes, sizeof(char *), by_number);
    for (uint32_t i = 0; i < c->n_nodes; i++) {
        c->node_class_map[i] = calloc((size_t)c->n_node_classes[i] + 1, sizeof(uint32_t));
        if (!c->node_class_map[i])
            return out_of_memory(err);
        for (uint32_t k = 0; k < c->n_node_classes[i]; k++)
            while (strcmp(c->classes[c->node_class_map[i][k]], c->node_classes[i][k]))
                c->node_class_map[i][k]++;
    }
    return 0;
}

int hapi_catalog_seal(struct hapi_catalog *c, struct hapi_err *err)
{
    uint64_t n = 0;

    for (uint32_t i = 0; i < c->n_objects; i++)
        n += c->objects[i].n_samples;
    if (!n || n > UINT32_MAX - 1)
        return hapi_err_set(err, n ? HAPI_ETOOBIG : HAPI_ENOENT, 0, "the dataset has %llu samples",
                            (unsigned long long)n);
    c->sample_object = malloc(n * sizeof *c->sample_object);
    if (!c->sample_object)
        return out_of_memory(err);
    for (uint32_t i = 0; i < c->n_objects; i++) {
        struct hapi_catalog_object *o = &c->objects[i];
        o->first_sample = c->n_samples;
        for (uint32_t k = 0; k < o->n_samples; k++) {
            c->sample_object[c->n_samples++] = i;
            if (o->sample_bytes[k] > c->max_sample_bytes)
                c->max_sample_bytes = o->sample_bytes[k];
        }
    }
    return classes_unite(c, err);
}

void hapi_catalog_fini(struct hapi_catalog *c)
{
    for (uint32_t i = 0; i < c->n_objects; i++) {
        free(c->objects[i].name);
        free(c->objects[i].sample_bytes);
    }
    free(c->objects);
    free(c->sample_object);
    free(c->classes);
    for (uint32_t i = 0; i < HAPI_NODES_MAX; i++) {
        for (uint32_t k = 0; k < c->n_node_classes[i]; k++)
            free(c->node_classes[i][k]);
        free(c->node_classes[i]);
        free(c->node_class_map[i]);
    }
}
