#include <stdlib.h>
#include <string.h>

#include "store_impl.h"

static int no_memory(struct hapi_dataset_impl *d, struct hapi_err *err)
{
    return hapi_err_set(err, HAPI_ENOMEM, 0, "no memory for dataset %s", d->pub.name);
}

/* ---- classes */

static int by_text(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static bool is_integer(const char *s)
{
    size_t n = strspn(s + (*s == '-'), "0123456789");
    return n && n <= 18 && !s[(*s == '-') + n];
}

static int by_number(const void *pa, const void *pb)
{
    long long a = strtoll(*(const char *const *)pa, NULL, 10),
              b = strtoll(*(const char *const *)pb, NULL, 10);
    return a < b ? -1 : a > b ? 1 : by_text(pa, pb); /* "1" and "01" are two classes */
}

/* Sorts, keeps one of each; by number when all are integers. */
static uint32_t classes_sort(const char **v, size_t n, bool *integers)
{
    size_t kept = 0;

    *integers = true;
    if (!n)
        return 0;
    qsort(v, n, sizeof *v, by_text);
    for (size_t i = 0; i < n; i++)
        if (!kept || strcmp(v[kept - 1], v[i])) {
            *integers = *integers && is_integer(v[i]);
            v[kept++] = v[i];
        }
    if (*integers)
        qsort(v, kept, sizeof *v, by_number);
    return (uint32_t)kept;
}

static uint32_t class_id(const struct hapi_dataset_impl *d, bool integers, const char *name)
{
    const char **at =
        bsearch(&name, d->classes, d->pub.n_classes, sizeof *d->classes, integers ? by_number : by_text);
    return (uint32_t)(at - d->classes); /* each name was collected from the samples: it is there */
}

/* ---- objects and samples */

/* "rose" of "rose/1.jpg" */
static const char *folder_of(struct hapi_dataset_impl *d, const char *name, const char *before)
{
    size_t n = (size_t)(strchr(name, '/') - name);

    if (before && strlen(before) == n && !memcmp(before, name, n))
        return before;
    return hapi_arena_strndup(d->arena, name, n);
}

struct pass {
    const char **names; /* class names seen, neighbours equal only once */
    size_t n_names, cap;
    const char **of_sample; /* class name of each sample */
};

static int name_seen(struct pass *p, const char *name)
{
    if (p->n_names && !strcmp(p->names[p->n_names - 1], name))
        return 0;
    if (p->n_names == p->cap) {
        size_t cap = p->cap ? 2 * p->cap : 1024;
        const char **v = realloc(p->names, cap * sizeof *v);
        if (!v)
            return HAPI_ENOMEM;
        p->names = v;
        p->cap = cap;
    }
    p->names[p->n_names++] = name;
    return 0;
}

static int sample_add(struct hapi_dataset_impl *d, struct pass *p, const struct hapi_shard_sample *s)
{
    uint64_t i = d->pub.n_samples++;

    d->samples[i] = (struct hapi_sample_info){.offset = s->offset, .bytes = s->bytes, .key = s->key};
    p->of_sample[i] = s->class_name;
    d->pub.bytes += s->bytes;
    if (s->bytes > d->pub.max_sample_bytes)
        d->pub.max_sample_bytes = s->bytes;
    return s->key && s->class_name ? name_seen(p, s->class_name) : HAPI_ENOMEM;
}

static int object_add(struct hapi_dataset_impl *d, struct pass *p, const struct hapi_entry *e)
{
    struct hapi_object_info *o = &d->objects[d->pub.n_objects++];
    const char *before = d->pub.n_samples ? p->of_sample[d->pub.n_samples - 1] : NULL;
    int rc = 0;

    o->name = e->name;
    o->version = e->version;
    memcpy(o->digest, e->digest, sizeof o->digest);
    o->bytes = e->bytes;
    o->first_sample = d->pub.n_samples;
    o->n_samples = d->tar ? e->shard.n_samples : 1;
    if (!d->tar) {
        struct hapi_shard_sample s = {
            .key = hapi_arena_strndup(d->arena, e->name, hapi_image_stem(e->name)),
            .class_name = folder_of(d, e->name, before),
            .bytes = (uint32_t)e->bytes,
        };
        return sample_add(d, p, &s);
    }
    for (uint32_t i = 0; i < e->shard.n_samples && !rc; i++)
        rc = sample_add(d, p, &e->shard.samples[i]);
    return rc;
}

static int classes_number(struct hapi_dataset_impl *d, struct pass *p)
{
    uint32_t id = 0;
    bool integers;

    d->pub.n_classes = classes_sort(p->names, p->n_names, &integers);
    d->classes = hapi_arena_array(d->arena, d->pub.n_classes + 1, sizeof *d->classes);
    if (!d->classes)
        return HAPI_ENOMEM;
    if (d->pub.n_classes)
        memcpy(d->classes, p->names, d->pub.n_classes * sizeof *d->classes);
    for (uint64_t i = 0; i < d->pub.n_samples; i++) {
        if (!i || strcmp(p->of_sample[i - 1], p->of_sample[i]))
            id = class_id(d, integers, p->of_sample[i]);
        d->samples[i].class_id = id;
    }
    return 0;
}

static int problems_publish(struct hapi_dataset_impl *d)
{
    struct hapi_problems *p = &d->problems;
    const char **text = hapi_arena_array(d->arena, p->n + 1, sizeof *text);

    if (!text)
        return HAPI_ENOMEM;
    if (p->n)
        memcpy(text, p->text, p->n * sizeof *text);
    d->pub.n_problems = p->n;
    if (p->left_out) {
        struct hapi_problems more = {0};
        if (hapi_problem_add(&more, d->arena, "and %u more problems", p->left_out))
            return HAPI_ENOMEM;
        text[d->pub.n_problems++] = more.text[0];
        hapi_problems_fini(&more);
    }
    d->pub.problems = text;
    return 0;
}

int hapi_dataset_arrange(struct hapi_dataset_impl *d, const struct hapi_entries *e, struct hapi_err *err)
{
    struct pass p = {0};
    uint64_t n = 0;
    int rc = HAPI_ENOMEM;

    for (uint32_t i = 0; i < e->n; i++)
        n += d->tar ? e->v[i].shard.n_samples : 1;
    d->objects = hapi_arena_array(d->arena, (size_t)e->n + 1, sizeof *d->objects);
    d->samples = hapi_arena_array(d->arena, (size_t)n + 1, sizeof *d->samples);
    d->fds = d->tar ? hapi_arena_array(d->arena, (size_t)e->n + 1, sizeof(void *)) : NULL;
    p.of_sample = calloc((size_t)n + 1, sizeof *p.of_sample);
    if (!d->objects || !d->samples || !p.of_sample || (d->tar && !d->fds))
        goto done;
    rc = 0;
    for (uint32_t i = 0; i < e->n && !rc; i++)
        rc = object_add(d, &p, &e->v[i]);
    if (!rc)
        rc = classes_number(d, &p);
    if (!rc)
        rc = problems_publish(d);
    d->pub.objects = d->objects;
    d->pub.samples = d->samples;
    d->pub.classes = d->classes;
done:
    free(p.names);
    free(p.of_sample);
    return rc ? no_memory(d, err) : 0;
}

void hapi_dataset_free(struct hapi_dataset_impl *d)
{
    if (!d)
        return;
    hapi_problems_fini(&d->problems);
    hapi_arena_free(d->arena);
    free(d);
}
