#include "model.h"

#include <errno.h>
#include <fcntl.h>
#include <openssl/evp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static struct hapi_model_limits with_defaults(const struct hapi_model_limits *given)
{
    struct hapi_model_limits l = {0};

    if (given)
        l = *given;
    if (!l.file_bytes)
        l.file_bytes = 2ULL << 30;
    if (!l.nodes)
        l.nodes = 100000;
    if (!l.tensor_bytes)
        l.tensor_bytes = 4ULL << 30;
    if (!l.arena_bytes)
        l.arena_bytes = 256ULL << 20;
    return l;
}

static struct hapi_model *model_new(const struct hapi_model_limits *limits)
{
    struct hapi_model *m = calloc(1, sizeof *m);

    if (!m)
        return NULL;
    m->limits = with_defaults(limits);
    m->cache = calloc(1, sizeof *m->cache);
    m->onnx.arena = hapi_arena_new(m->limits.arena_bytes);
    if (!m->cache || !m->onnx.arena) {
        hapi_model_close(m);
        return NULL;
    }
    m->cache->m = m;
    return m;
}

void hapi_model_close(struct hapi_model *m)
{
    if (!m)
        return;
    if (m->cache) {
        for (size_t i = 0; m->cache->folded && i < m->onnx.n_nodes; i++) {
            free(m->cache->folded[i].weight);
            free(m->cache->folded[i].bias);
        }
        free(m->cache->folded);
        free(m->cache->batch_first);
        free(m->cache->inputs);
        free(m->cache->outputs);
        hapi_cuts_free(m->cache->cuts);
        free(m->cache);
    }
    hapi_onnx_fini(&m->onnx);
    hapi_arena_free(m->onnx.arena);
    hapi_externals_close(m->externals);
    if (m->mapped)
        munmap((void *)(uintptr_t)m->bytes.p, m->bytes.n);
    else
        free((void *)(uintptr_t)m->bytes.p);
    free(m);
}

/* Maps the file. A file that shrinks while it is in use makes the process fail with SIGBUS: models are not
 * to be rewritten in place, and what comes from peers is never mapped but taken as bytes. */
static int map_model(struct hapi_model *m, const char *path, struct hapi_err *err)
{
    struct stat st;
    void *p = NULL;
    int rc = 0, fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);

    if (fd < 0)
        return errno == ENOENT ? hapi_err_set(err, HAPI_ENOENT, ENOENT, "%s: no such file", path)
                               : hapi_err_errno(err, errno, "cannot open %s", path);
    if (fstat(fd, &st))
        rc = hapi_err_errno(err, errno, "cannot stat %s", path);
    else if (!S_ISREG(st.st_mode))
        rc = hapi_err_set(err, HAPI_EFORMAT, 0, "%s: not a regular file", path);
    else if ((uint64_t)st.st_size > m->limits.file_bytes)
        rc = hapi_err_set(err, HAPI_ETOOBIG, 0, "%s: %lld bytes, the limit is %llu", path,
                          (long long)st.st_size, (unsigned long long)m->limits.file_bytes);
    else if (st.st_size && (p = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0)) == MAP_FAILED)
        rc = hapi_err_errno(err, errno, "cannot map %s", path);
    close(fd);
    if (!rc) {
        m->bytes = (struct hapi_view){p, (size_t)st.st_size};
        m->mapped = p != NULL;
    }
    return rc;
}

int hapi_model_open(struct hapi_model **out, const char *path, const struct hapi_model_limits *limits,
                    struct hapi_err *err)
{
    struct hapi_model *m = model_new(limits);
    int rc;

    if (!m)
        return hapi_err_set(err, HAPI_ENOMEM, 0, "%s: out of memory", path);
    rc = map_model(m, path, err);
    rc = rc ? rc : hapi_externals_open(&m->externals, path, m->limits.file_bytes, err);
    if (rc)
        goto fail;
    m->onnx.externals = m->externals;
    rc = hapi_onnx_read(&m->onnx, m->bytes, &m->limits, err);
    if (rc) {
        hapi_err_context(err, "%s", path);
        goto fail;
    }
    *out = m;
    return 0;
fail:
    hapi_model_close(m);
    return rc;
}

int hapi_model_from_bytes(struct hapi_model **out, void *bytes, size_t size,
                          const struct hapi_model_limits *limits, struct hapi_err *err)
{
    struct hapi_model *m = model_new(limits);
    int rc;

    if (!m)
        return hapi_err_set(err, HAPI_ENOMEM, 0, "model: out of memory");
    if (size > m->limits.file_bytes)
        rc = hapi_err_set(err, HAPI_ETOOBIG, 0, "model: %zu bytes, the limit is %llu", size,
                          (unsigned long long)m->limits.file_bytes);
    else
        rc = hapi_onnx_read(&m->onnx, (struct hapi_view){bytes, size}, &m->limits, err);
    if (rc) {
        hapi_model_close(m); /* m->bytes is not set: they stay the caller's */
        return rc;
    }
    m->bytes = (struct hapi_view){bytes, size};
    *out = m;
    return 0;
}

void hapi_model_drop_source(const struct hapi_model *m)
{
    if (m->mapped)
        madvise((void *)(uintptr_t)m->bytes.p, m->bytes.n, MADV_DONTNEED);
    for (size_t i = 0; i < hapi_externals_files(m->externals); i++) {
        struct hapi_view v = hapi_externals_file(m->externals, i);
        if (v.n)
            madvise((void *)(uintptr_t)v.p, v.n, MADV_DONTNEED);
    }
}

/* In pieces whose pages are given back, so that a large file is never in memory as a whole. */
static bool hash_view(EVP_MD_CTX *ctx, struct hapi_view v, bool mapped)
{
    enum { PIECE = 4 << 20 };

    for (size_t at = 0; at < v.n; at += PIECE) {
        size_t n = v.n - at < PIECE ? v.n - at : PIECE;
        if (!EVP_DigestUpdate(ctx, v.p + at, n))
            return false;
        if (mapped)
            madvise((void *)(uintptr_t)(v.p + at), n, MADV_DONTNEED);
    }
    return true;
}

const uint8_t *hapi_model_hash(const struct hapi_model *m)
{
    struct hapi_model_cache *c = m->cache;
    EVP_MD_CTX *ctx;

    if (c->hashed)
        return c->hash;
    /* OpenSSL fails here only without memory; the zero hash then matches nobody's. */
    ctx = EVP_MD_CTX_new();
    bool ok = ctx && EVP_DigestInit_ex(ctx, EVP_sha256(), NULL) && hash_view(ctx, m->bytes, m->mapped);
    for (size_t i = 0; ok && i < hapi_externals_files(m->externals); i++)
        ok = hash_view(ctx, hapi_externals_file(m->externals, i), true);
    c->hashed = ok && EVP_DigestFinal_ex(ctx, c->hash, NULL);
    EVP_MD_CTX_free(ctx);
    return c->hash;
}

static struct hapi_tensor_desc describe(const struct hapi_onnx *o, const struct hapi_onnx_io *io)
{
    struct hapi_tensor_desc d = {.name = o->values[io->value].name, .dtype = io->dtype};

    d.shape.rank = io->rank > 0 ? io->rank : 0;
    for (int i = 0; i < d.shape.rank; i++)
        d.shape.dim[i] = i == 0 || io->dim[i] < 0 ? 1 : io->dim[i];
    d.layout = d.shape.rank == 4 ? HAPI_LAYOUT_NHWC : HAPI_LAYOUT_PLAIN;
    return d;
}

/* Inputs as declared; outputs as they come out when the model binds at batch 1, else as declared. */
static bool describe_all(const struct hapi_model *m)
{
    struct hapi_model_cache *c = m->cache;
    const struct hapi_onnx *o = &m->onnx;
    struct hapi_graph *g = NULL;

    if (c->described)
        return true;
    c->inputs = calloc(o->n_inputs + 1, sizeof *c->inputs);
    c->outputs = calloc(o->n_outputs + 1, sizeof *c->outputs);
    if (!c->inputs || !c->outputs)
        return false;
    for (size_t i = 0; i < o->n_inputs; i++)
        c->inputs[i] = describe(o, &o->inputs[i]);
    bool bound = !hapi_graph_shapes(&g, c->m, NULL, NULL);
    for (size_t i = 0; i < o->n_outputs; i++) {
        c->outputs[i] = describe(o, &o->outputs[i]);
        if (bound) {
            const struct hapi_value *v = &g->values[g->outputs[i]];
            c->outputs[i].dtype = v->dtype;
            c->outputs[i].shape = v->shape;
            if (v->batch_first)
                c->outputs[i].shape.dim[0] = 1;
            c->outputs[i].layout = v->shape.rank == 4 ? HAPI_LAYOUT_NHWC : HAPI_LAYOUT_PLAIN;
        }
    }
    hapi_graph_free(g);
    c->described = true;
    return true;
}

size_t hapi_model_inputs(const struct hapi_model *m, const struct hapi_tensor_desc **out)
{
    if (!describe_all(m))
        return 0;
    *out = m->cache->inputs;
    return m->onnx.n_inputs;
}

size_t hapi_model_outputs(const struct hapi_model *m, const struct hapi_tensor_desc **out)
{
    if (!describe_all(m))
        return 0;
    *out = m->cache->outputs;
    return m->onnx.n_outputs;
}
