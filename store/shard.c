#include "shard.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

/* One .jpg or .cls on the way. */
struct half {
    const char *stem;
    const char *class_name; /* of a .cls */
    uint64_t offset;
    uint32_t bytes;
    uint32_t seq;
    bool used;
};

struct halves {
    struct half *v;
    size_t n, cap;
};

struct build {
    const char *name;
    const struct hapi_tar_source *src;
    struct hapi_arena *arena;
    struct hapi_err *err;
    struct hapi_shard *out;
    struct halves images, labels;
};

int hapi_problem_add(struct hapi_problems *p, struct hapi_arena *a, const char *fmt, ...)
{
    char text[1024];
    va_list ap;

    if (p->n == HAPI_PROBLEMS_MAX) {
        p->left_out++;
        return 0;
    }
    if (!p->text && !(p->text = malloc(HAPI_PROBLEMS_MAX * sizeof *p->text)))
        return HAPI_ENOMEM;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    for (char *c = text; *c; c++) /* texts are shown to people: names come from outside */
        if ((unsigned char)*c < 0x20 || *c == 0x7f)
            *c = '?';
    const char *copy = hapi_arena_strndup(a, text, strlen(text));
    if (!copy)
        return HAPI_ENOMEM;
    p->text[p->n++] = copy;
    return 0;
}

void hapi_problems_fini(struct hapi_problems *p)
{
    free(p->text);
    memset(p, 0, sizeof *p);
}

size_t hapi_image_stem(const char *name)
{
    size_t n = strlen(name);

    if (n > 4 && !strcasecmp(name + n - 4, ".jpg"))
        return n - 4;
    if (n > 5 && !strcasecmp(name + n - 5, ".jpeg"))
        return n - 5;
    return 0;
}

static size_t label_stem(const char *name)
{
    size_t n = strlen(name);
    return n > 4 && !strcasecmp(name + n - 4, ".cls") ? n - 4 : 0;
}

bool hapi_name_printable(const char *s)
{
    for (const char *c = s; *c; c++)
        if ((unsigned char)*c < 0x20 || *c == 0x7f)
            return false;
    return *s != '\0';
}

static int no_memory(struct build *b)
{
    return hapi_err_set(b->err, HAPI_ENOMEM, 0, "%s: no memory for its index", b->name);
}

static int problem(struct build *b, int rc)
{
    return rc ? no_memory(b) : 0;
}

static struct half *half_add(struct halves *h)
{
    if (h->n == h->cap) {
        size_t cap = h->cap ? 2 * h->cap : 256;
        struct half *v = cap > UINT32_MAX / 2 ? NULL : realloc(h->v, cap * sizeof *v);
        if (!v)
            return NULL;
        h->v = v;
        h->cap = cap;
    }
    struct half *x = &h->v[h->n];
    memset(x, 0, sizeof *x);
    x->seq = (uint32_t)h->n++;
    return x;
}

/* The text of a .cls without blanks around it; NULL with *rc 0: a problem has been noted. */
static const char *label_text(struct build *b, const struct hapi_tar_member *m, int *rc)
{
    char text[HAPI_CLASS_NAME_MAX + 1];
    size_t from = 0, to = (size_t)m->size;

    *rc = 0;
    if (m->size > HAPI_CLASS_NAME_MAX) {
        *rc = problem(b, hapi_problem_add(&b->out->problems, b->arena, "%s: %s is longer than %d bytes",
                                          b->name, m->name, HAPI_CLASS_NAME_MAX));
        return NULL;
    }
    if (to && (*rc = b->src->read_at(b->src->user, text, to, m->offset, b->err)))
        return NULL;
    while (from < to && strchr(" \t\r\n", text[from]) && text[from])
        from++;
    while (to > from && strchr(" \t\r\n", text[to - 1]) && text[to - 1])
        to--;
    text[to] = '\0';
    if (strlen(text + from) != to - from || !hapi_name_printable(text + from)) {
        *rc = problem(b, hapi_problem_add(&b->out->problems, b->arena, "%s: %s does not hold a class name",
                                          b->name, m->name));
        return NULL;
    }
    const char *copy = hapi_arena_strndup(b->arena, text + from, to - from);
    if (!copy)
        *rc = no_memory(b);
    return copy;
}

static int on_member(void *arg, const struct hapi_tar_member *m)
{
    struct build *b = arg;
    size_t image = hapi_image_stem(m->name), label = label_stem(m->name);
    const char *class_name = NULL;
    int rc;

    if (!image && !label)
        return 0; /* other members (.json, .txt, ...) are usual in WebDataset shards */
    if (!hapi_name_printable(m->name))
        return problem(b, hapi_problem_add(&b->out->problems, b->arena,
                                           "%s: name '%.200s' has control characters", b->name, m->name));
    if (image && m->size > HAPI_SAMPLE_BYTES_MAX)
        return problem(b, hapi_problem_add(&b->out->problems, b->arena, "%s: %s is larger than 1 GiB",
                                           b->name, m->name));
    if (label && !(class_name = label_text(b, m, &rc)))
        return rc;
    struct half *h = half_add(image ? &b->images : &b->labels);
    const char *stem = hapi_arena_strndup(b->arena, m->name, image ? image : label);
    if (!h || !stem)
        return no_memory(b);
    h->stem = stem;
    h->class_name = class_name;
    h->offset = m->offset;
    h->bytes = image ? (uint32_t)m->size : 0;
    return 0;
}

static int by_stem(const void *pa, const void *pb)
{
    const struct half *a = pa, *b = pb;
    int c = strcmp(a->stem, b->stem);
    return c ? c : a->seq < b->seq ? -1 : a->seq > b->seq;
}

static int by_seq(const void *pa, const void *pb)
{
    const struct half *a = pa, *b = pb;
    return a->seq < b->seq ? -1 : a->seq > b->seq;
}

/* Keeps the first of each stem; both arrays are sorted by stem. */
static int drop_doubles(struct build *b, struct halves *h, const char *ext)
{
    size_t kept = 0;
    int rc = 0;

    for (size_t i = 0; i < h->n && !rc; i++) {
        if (kept && !strcmp(h->v[kept - 1].stem, h->v[i].stem))
            rc = problem(b, hapi_problem_add(&b->out->problems, b->arena, "%s: a second %s%s is left out",
                                             b->name, h->v[i].stem, ext));
        else
            h->v[kept++] = h->v[i];
    }
    if (!rc)
        h->n = kept;
    return rc;
}

static int pair(struct build *b)
{
    struct halves *im = &b->images, *lb = &b->labels;
    size_t j = 0;
    int rc = 0;

    for (size_t i = 0; i < im->n; i++) {
        while (j < lb->n && strcmp(lb->v[j].stem, im->v[i].stem) < 0)
            j++;
        if (j < lb->n && !strcmp(lb->v[j].stem, im->v[i].stem)) {
            im->v[i].class_name = lb->v[j].class_name;
            lb->v[j].used = true;
        }
    }
    for (j = 0; j < lb->n && !rc; j++)
        if (!lb->v[j].used)
            rc = problem(b, hapi_problem_add(&b->out->problems, b->arena, "%s: %s.cls has no image", b->name,
                                             lb->v[j].stem));
    return rc;
}

static int samples_make(struct build *b)
{
    struct halves *im = &b->images, *lb = &b->labels;
    struct hapi_shard *out = b->out;
    int rc;

    if (im->n)
        qsort(im->v, im->n, sizeof *im->v, by_stem);
    if (lb->n)
        qsort(lb->v, lb->n, sizeof *lb->v, by_stem);
    if ((rc = drop_doubles(b, im, ".jpg")) || (rc = drop_doubles(b, lb, ".cls")) || (rc = pair(b)))
        return rc;
    if (!im->n)
        return 0;
    qsort(im->v, im->n, sizeof *im->v, by_seq);
    out->samples = malloc(im->n * sizeof *out->samples);
    if (!out->samples)
        return no_memory(b);
    for (size_t i = 0; i < im->n; i++) {
        const struct half *h = &im->v[i];
        if (h->class_name)
            out->samples[out->n_samples++] =
                (struct hapi_shard_sample){h->stem, h->class_name, h->offset, h->bytes};
        else if ((rc = problem(b, hapi_problem_add(&out->problems, b->arena, "%s: %s.jpg has no %s.cls",
                                                   b->name, h->stem, h->stem))))
            return rc;
    }
    return 0;
}

int hapi_shard_index(struct hapi_shard *out, const char *name, const struct hapi_tar_source *src,
                     struct hapi_arena *arena, struct hapi_err *err)
{
    struct hapi_err own = {0};
    struct build b = {.name = name, .src = src, .arena = arena, .err = &own, .out = out};
    int rc;

    memset(out, 0, sizeof *out);
    rc = hapi_tar_walk(src, on_member, &b, &own);
    if (rc == HAPI_EFORMAT)
        rc = problem(&b, hapi_problem_add(&out->problems, arena, "%s: %s", name, own.text));
    if (!rc)
        rc = samples_make(&b);
    free(b.images.v);
    free(b.labels.v);
    if (rc) {
        hapi_shard_fini(out);
        hapi_err_set(err, rc, own.sys, "%s", own.text);
    }
    return rc;
}

void hapi_shard_fini(struct hapi_shard *s)
{
    free(s->samples);
    hapi_problems_fini(&s->problems);
    memset(s, 0, sizeof *s);
}
