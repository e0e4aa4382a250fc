/*
 * What a cut is called. torch.onnx names nodes by module: "/layer2/layer2.0/relu_1/Relu". The module path is
 * "layer2.0.relu_1", and a tensor that is the last one made in a module is that module's output: here both of
 * "layer2.0.relu_1" and of "layer2.0", and the outermost such module says most.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model.h"

enum { DEPTH = 8, NODES_MAX = 20000, NAME_MAX_BYTES = 200 };

/* "/a/a.0/b/Op": parts a, a.0, b; op "Op". */
struct path {
    const char *part[DEPTH];
    size_t length[DEPTH];
    int depth; /* without the op */
    const char *op;
};

static struct path path_of(const char *name)
{
    struct path p = {.depth = 0, .op = name};

    for (const char *s = name; *s;) {
        size_t n = strcspn(s, "/");
        if (!s[n]) {
            p.op = s;
            break;
        }
        if (n && p.depth < DEPTH) {
            p.part[p.depth] = s;
            p.length[p.depth++] = n;
        }
        s += n + 1;
        p.op = s;
    }
    return p;
}

/* A module path as it begins a node's name, and the last node below it. */
struct scope {
    const char *s;
    size_t n;
    size_t last;
};

static int by_text(const void *a, const void *b)
{
    const struct scope *x = a, *y = b;
    int d = memcmp(x->s, y->s, x->n < y->n ? x->n : y->n);

    return d ? d : x->n < y->n ? -1 : x->n > y->n;
}

/* Sorted, each path once. */
static size_t collect(const struct hapi_graph *g, struct scope *scopes)
{
    size_t n = 0, kept = 0;

    for (size_t i = 0; i < g->n_nodes; i++) {
        struct path p = path_of(g->nodes[i].name);
        for (int k = 0; k < p.depth; k++) {
            const char *end = p.part[k] + p.length[k];
            scopes[n++] = (struct scope){g->nodes[i].name, (size_t)(end - g->nodes[i].name), i};
        }
    }
    if (n)
        qsort(scopes, n, sizeof *scopes, by_text);
    for (size_t i = 0; i < n; i++) {
        if (!kept || by_text(&scopes[kept - 1], &scopes[i]))
            scopes[kept++] = scopes[i];
        else if (scopes[i].last > scopes[kept - 1].last)
            scopes[kept - 1].last = scopes[i].last;
    }
    return kept;
}

static bool is_last(const struct scope *scopes, size_t n, const char *name, const struct path *p, int k,
                    size_t node)
{
    struct scope key = {name, (size_t)(p->part[k] + p->length[k] - name), 0};
    const struct scope *s = n ? bsearch(&key, scopes, n, sizeof *scopes, by_text) : NULL;

    return s && s->last == node;
}

/* Part k is an element of a Sequential that is part k - 1: "features" and "features.12". */
static bool is_element(const struct path *p, int k)
{
    size_t n = p->length[k - 1];

    if (p->length[k] < n + 2 || memcmp(p->part[k], p->part[k - 1], n) || p->part[k][n] != '.')
        return false;
    for (size_t i = n + 1; i < p->length[k]; i++)
        if (p->part[k][i] < '0' || p->part[k][i] > '9')
            return false;
    return true;
}

/* Joins the parts [0, depth) as torch names modules: "layer2", "layer2.0", "conv1" are "layer2.0.conv1". */
static size_t join(const struct path *p, int depth, char *out, size_t size)
{
    size_t at = 0, last = 0;

    for (int k = 0; k < depth; k++) {
        bool longer = k && p->length[k] > p->length[k - 1] + 1 && p->part[k][p->length[k - 1]] == '.' &&
                      !memcmp(p->part[k], p->part[k - 1], p->length[k - 1]);
        size_t n = p->length[k];
        if (longer)
            at = last;
        else if (k && at + 1 < size)
            out[at++] = '.';
        last = at;
        n = at + n < size ? n : size - 1 - at;
        memcpy(out + at, p->part[k], n);
        at += n;
    }
    out[at] = '\0';
    return at;
}

static void name_of(const struct hapi_graph *g, size_t node, const struct scope *scopes, size_t n_scopes,
                    char *out, size_t size)
{
    const struct hapi_node *n = &g->nodes[node];
    struct path p = path_of(n->name);
    int k = 0;

    if (!p.depth) {
        snprintf(out, size, "%s", *p.op ? p.op : g->values[n->out[0]].name);
        return;
    }
    while (k < p.depth && !is_last(scopes, n_scopes, n->name, &p, k, node))
        k++;
    if (k == p.depth) { /* inside of a module: the module, and the op */
        size_t at = join(&p, p.depth, out, size);
        snprintf(out + at, size - at, "/%s", p.op);
        return;
    }
    /* "features" as a whole is better known by its last element, which ends at the same place. */
    if (k == 0 && p.depth > 1 && is_element(&p, 1))
        k = 1;
    join(&p, k + 1, out, size);
}

struct named {
    const char *name;
    size_t index;
};

static int by_name(const void *a, const void *b)
{
    const struct named *x = a, *y = b;
    int d = strcmp(x->name, y->name);

    return d ? d : x->index < y->index ? -1 : x->index > y->index;
}

/* "name", "name#17": the cut's index tells apart what has the same name. */
static bool make_unique(struct named *sorted, size_t n, struct hapi_arena *arena, const char **names)
{
    char text[NAME_MAX_BYTES + 32];

    qsort(sorted, n, sizeof *sorted, by_name);
    for (size_t i = 1; i < n; i++) {
        if (strcmp(sorted[i].name, sorted[i - 1].name))
            continue;
        int len = snprintf(text, sizeof text, "%.*s#%zu", NAME_MAX_BYTES, sorted[i].name, sorted[i].index);
        names[sorted[i].index] = hapi_arena_strndup(arena, text, (size_t)len);
        if (!names[sorted[i].index])
            return false;
    }
    return true;
}

bool hapi_cut_names(const struct hapi_graph *g, const size_t *nodes, size_t n, struct hapi_arena *arena,
                    const char **names)
{
    bool paths = g->n_nodes <= NODES_MAX, ok = false;
    struct scope *scopes = malloc((paths ? g->n_nodes * DEPTH : 1) * sizeof *scopes + 1);
    struct named *sorted = malloc(n * sizeof *sorted + 1);
    char text[NAME_MAX_BYTES];
    size_t n_scopes;

    if (!scopes || !sorted)
        goto out;
    n_scopes = paths ? collect(g, scopes) : 0;
    for (size_t i = 0; i < n; i++) {
        name_of(g, nodes[i], scopes, n_scopes, text, sizeof text);
        names[i] = hapi_arena_strndup(arena, text, strlen(text));
        if (!names[i])
            goto out;
        sorted[i] = (struct named){names[i], i};
    }
    ok = !n || make_unique(sorted, n, arena, names);
out:
    free(scopes);
    free(sorted);
    return ok;
}
