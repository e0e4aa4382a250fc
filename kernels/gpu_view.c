/* How a value lies in memory, dim by dim, and what can be said of it without moving anything. */
#include <string.h>

#include "gpu.h"

int64_t hapi_gpu_dim(const struct hapi_gpu_view *v, int d)
{
    int64_t size = 1;

    for (int i = v->first[d]; i < v->first[d + 1]; i++)
        size *= v->f[i].size;
    return size;
}

/* Starts dim out->rank with `n` factors, merged where the outer goes on where the inner ends. */
static bool dim_add(struct hapi_gpu_view *out, const struct hapi_gpu_factor *f, int n)
{
    int begin = out->n;

    out->first[out->rank++] = begin;
    for (int i = 0; i < n; i++) {
        struct hapi_gpu_factor *last = out->n > begin ? &out->f[out->n - 1] : NULL;
        if (f[i].size == 1)
            continue;
        if (last && last->stride == f[i].stride * f[i].size) {
            last->size *= f[i].size;
            last->stride = f[i].stride;
        } else if (out->n == HAPI_GPU_FACTORS) {
            return false;
        } else {
            out->f[out->n++] = f[i];
        }
    }
    out->first[out->rank] = out->n;
    return true;
}

static struct hapi_gpu_view beginning(const struct hapi_gpu_view *v)
{
    return (struct hapi_gpu_view){.storage = v->storage, .dtype = v->dtype, .offset = v->offset};
}

void hapi_gpu_view_dense(struct hapi_gpu_view *out, const struct hapi_shape *s, enum hapi_layout layout)
{
    int64_t stride[HAPI_MAX_RANK], at = 1;

    for (int k = s->rank - 1; k >= 0; k--) {
        /* Channels-last: N, then the spatial dims, then C. */
        int d = layout == HAPI_LAYOUT_PLAIN || s->rank < 3 ? k : k == s->rank - 1 ? 1 : k ? k + 1 : 0;
        stride[d] = at;
        at *= s->dim[d];
    }
    *out = (struct hapi_gpu_view){.dtype = HAPI_F32};
    for (int d = 0; d < s->rank; d++)
        (void)dim_add(out, &(struct hapi_gpu_factor){s->dim[d], stride[d]}, 1);
}

void hapi_gpu_view_like(struct hapi_gpu_view *out, const struct hapi_gpu_view *v)
{
    int order[HAPI_GPU_FACTORS] = {0};
    int64_t at = 1;

    *out = *v;
    out->offset = 0;
    for (int i = 0; i < v->n; i++) {
        int k = i;
        for (; k > 0 && v->f[order[k - 1]].stride < v->f[i].stride; k--)
            order[k] = order[k - 1];
        order[k] = i;
    }
    for (int i = v->n - 1; i >= 0; i--) {
        out->f[order[i]].stride = at;
        at *= v->f[order[i]].size;
    }
}

bool hapi_gpu_view_is_dense(const struct hapi_gpu_view *v, enum hapi_layout layout)
{
    struct hapi_shape s = {.rank = v->rank};
    struct hapi_gpu_view want;

    for (int d = 0; d < v->rank; d++)
        s.dim[d] = hapi_gpu_dim(v, d);
    hapi_gpu_view_dense(&want, &s, layout);
    return want.n == v->n && !memcmp(want.f, v->f, (size_t)v->n * sizeof *v->f) &&
           !memcmp(want.first, v->first, (size_t)(v->rank + 1) * sizeof *v->first);
}

bool hapi_gpu_view_transpose(struct hapi_gpu_view *out, const struct hapi_gpu_view *from, const int64_t *perm)
{
    const struct hapi_gpu_view copy = *from, *v = &copy;
    *out = beginning(v);
    for (int d = 0; d < v->rank; d++)
        if (!dim_add(out, &v->f[v->first[perm[d]]], v->first[perm[d] + 1] - v->first[perm[d]]))
            return false;
    return true;
}

/* Takes `want` elements off the front of the list at *at: whole factors, and the outer part of one more. */
static int factors_take(struct hapi_gpu_factor *list, int n, int *at, int64_t want,
                        struct hapi_gpu_factor *out)
{
    int made = 0;

    while (want > 1) {
        if (*at == n || made == HAPI_GPU_FACTORS)
            return -1;
        struct hapi_gpu_factor *f = &list[*at];
        if (want % f->size == 0) {
            out[made++] = *f;
            want /= f->size;
            ++*at;
        } else if (f->size % want == 0) {
            int64_t rest = f->size / want;
            out[made++] = (struct hapi_gpu_factor){want, f->stride * rest};
            f->size = rest;
            want = 1;
        } else {
            return -1;
        }
    }
    return made;
}

bool hapi_gpu_view_reshape(struct hapi_gpu_view *out, const struct hapi_gpu_view *from,
                           const struct hapi_shape *s)
{
    const struct hapi_gpu_view copy = *from, *v = &copy;
    struct hapi_gpu_factor list[HAPI_GPU_FACTORS], taken[HAPI_GPU_FACTORS];
    int at = 0;

    memcpy(list, v->f, sizeof list);
    *out = beginning(v);
    for (int d = 0; d < s->rank; d++) {
        int n = factors_take(list, v->n, &at, s->dim[d], taken);
        if (n < 0 || !dim_add(out, taken, n))
            return false;
    }
    return at == v->n;
}

bool hapi_gpu_view_slice(struct hapi_gpu_view *out, const struct hapi_gpu_view *from, int dim, int64_t start,
                         int64_t step, int64_t n)
{
    const struct hapi_gpu_view copy = *from, *v = &copy;
    *out = beginning(v);
    for (int d = 0; d < v->rank; d++) {
        struct hapi_gpu_factor f[HAPI_GPU_FACTORS];
        int count = v->first[d + 1] - v->first[d];
        memcpy(f, &v->f[v->first[d]], (size_t)count * sizeof *f);
        if (d == dim) {
            int64_t size = hapi_gpu_dim(v, d), inner = count ? size / f[0].size : 1;
            bool all = start == 0 && step == 1 && n == size;
            if (!all && n == 1 && count) { /* one index: any factors will do */
                for (int64_t i = 0, rest = size, at = start; i < count; i++) {
                    rest /= f[i].size;
                    out->offset += at / rest * f[i].stride;
                    at %= rest;
                    f[i].size = 1;
                }
            } else if (!all && count > 1 && (step != 1 || start % inner || n % inner)) {
                return false;
            } else if (!all && count) {
                out->offset += start / inner * f[0].stride;
                f[0].size = n / inner;
                f[0].stride *= step;
            }
        }
        if (!dim_add(out, f, count))
            return false;
    }
    return true;
}

bool hapi_gpu_view_expand(struct hapi_gpu_view *out, const struct hapi_gpu_view *from,
                          const struct hapi_shape *s)
{
    const struct hapi_gpu_view copy = *from, *v = &copy;
    *out = beginning(v);
    for (int d = 0; d < s->rank; d++) {
        int k = d - (s->rank - v->rank);
        bool good;
        if (k < 0 || hapi_gpu_dim(v, k) == 1)
            good = dim_add(out, &(struct hapi_gpu_factor){s->dim[d], 0}, 1);
        else
            good = dim_add(out, &v->f[v->first[k]], v->first[k + 1] - v->first[k]);
        if (!good)
            return false;
    }
    return true;
}

int hapi_gpu_view_span(const struct hapi_gpu_view *v, int from, int to, struct hapi_gpu_factor *out)
{
    struct hapi_gpu_view one = {.rank = 0};

    (void)dim_add(&one, &v->f[v->first[from]],
                  v->first[to] - v->first[from]); /* no more factors than v has */
    memcpy(out, one.f, (size_t)one.n * sizeof *out);
    return one.n;
}

/* The largest piece at the end of every list, innermost first; what is left of a longer one stays in it. */
int hapi_gpu_factors_zip(struct hapi_gpu_factor (*lists)[HAPI_GPU_FACTORS], int *counts, int n)
{
    struct hapi_gpu_factor done[4][HAPI_GPU_FACTORS];
    int made = 0;

    while (n > 0 && counts[0] > 0) {
        int64_t least = lists[0][counts[0] - 1].size;
        for (int k = 0; k < n; k++) {
            if (!counts[k])
                return -1;
            if (lists[k][counts[k] - 1].size < least)
                least = lists[k][counts[k] - 1].size;
        }
        if (made == HAPI_GPU_FACTORS)
            return -1;
        for (int k = 0; k < n; k++) {
            struct hapi_gpu_factor *f = &lists[k][counts[k] - 1];
            if (f->size % least)
                return -1;
            done[k][made] = (struct hapi_gpu_factor){least, f->stride};
            f->size /= least;
            f->stride *= least;
            if (f->size == 1)
                counts[k]--;
        }
        made++;
    }
    for (int k = 0; k < n; k++) {
        if (counts[k])
            return -1;
        for (int i = 0; i < made; i++)
            lists[k][i] = done[k][made - 1 - i];
        counts[k] = made;
    }
    return made;
}

/* Neighbours that lie evenly in all lists become one. */
static int zipped_merge(struct hapi_gpu_factor (*lists)[HAPI_GPU_FACTORS], int made, int n)
{
    int out = 0;

    for (int i = 0; i < made; i++) {
        bool even = out > 0;
        for (int k = 0; k < n && even; k++)
            even = lists[k][out - 1].stride == lists[k][i].stride * lists[k][i].size;
        for (int k = 0; k < n; k++) {
            if (even) {
                lists[k][out - 1].size *= lists[k][i].size;
                lists[k][out - 1].stride = lists[k][i].stride;
            } else {
                lists[k][out] = lists[k][i];
            }
        }
        out += !even;
    }
    return out;
}

bool hapi_gpu_view_loop(const struct hapi_gpu_view *const *views, int n, struct hapi_gpu_loop *out)
{
    struct hapi_gpu_factor lists[4][HAPI_GPU_FACTORS];
    int counts[4] = {0}, made = 0, order[HAPI_GPU_FACTORS] = {0};

    for (int k = 0; k < n; k++) {
        counts[k] = views[k]->n;
        memcpy(lists[k], views[k]->f, sizeof lists[k]);
    }
    if (views[0]->n)
        made = hapi_gpu_factors_zip(lists, counts, n);
    if (made < 0)
        return false;
    /* In the order in which the result lies: its neighbours are written by neighbouring threads. */
    for (int i = 0; i < made; i++) {
        int k = i;
        for (; k > 0 && lists[0][order[k - 1]].stride < lists[0][i].stride; k--)
            order[k] = order[k - 1];
        order[k] = i;
    }
    struct hapi_gpu_factor sorted[4][HAPI_GPU_FACTORS];
    for (int k = 0; k < n; k++)
        for (int i = 0; i < made; i++)
            sorted[k][i] = lists[k][order[i]];
    made = zipped_merge(sorted, made, n);
    if (made > HAPI_GPU_RANK)
        return false;
    *out = (struct hapi_gpu_loop){.rank = made};
    for (int i = 0; i < made; i++) {
        out->size[i] = sorted[0][i].size;
        for (int k = 0; k < n; k++)
            out->stride[k][i] = sorted[k][i].stride;
    }
    return true;
}
