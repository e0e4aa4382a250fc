/* ONNX bytes: parse, bind at batch 1 and list the cuts, with small limits; what loads must load again from
 * its own prefix. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "graph.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const struct hapi_model_limits limits = {
    .file_bytes = 1 << 20, .nodes = 1000, .tensor_bytes = 1 << 20, .arena_bytes = 4 << 20};

static struct hapi_model *load(const void *data, size_t size)
{
    struct hapi_model *m;
    struct hapi_err err;
    void *copy = malloc(size ? size : 1);

    if (!copy)
        return NULL;
    memcpy(copy, data, size);
    if (!hapi_model_from_bytes(&m, copy, size, &limits, &err))
        return m;
    free(copy);
    return NULL;
}

/* A cut of a model is a cut of its own prefix, with the same work before it. */
static void check_prefix(struct hapi_model *m, const struct hapi_cut *cut)
{
    const struct hapi_cut *again;
    struct hapi_model *prefix;
    struct hapi_err err;
    void *bytes;
    size_t size;

    if (hapi_model_prefix_bytes(m, cut->id, &bytes, &size, &err))
        return;
    if (size > limits.file_bytes) {
        free(bytes);
        return;
    }
    prefix = load(bytes, size);
    free(bytes);
    if (!prefix || hapi_model_cut_find(prefix, cut->id, &again, &err) || again->flops != cut->flops ||
        again->bytes_f32 != cut->bytes_f32)
        abort();
    hapi_model_close(prefix);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct hapi_plan_spec spec = {.batch = 1};
    struct hapi_tensor_desc desc;
    struct hapi_graph *g;
    const struct hapi_cut *cuts;
    struct hapi_err err;
    size_t n;
    void *tensor;
    struct hapi_model *m = load(data, size);

    if (!hapi_tensorproto_read(data, size, &desc, &tensor, &err))
        free(tensor);
    if (!m)
        return 0;
    if (!hapi_graph_bind(&g, m, &spec, &err)) {
        for (size_t i = 0; i < g->n_values; i++) {
            size_t bytes;
            if (hapi_tensor_bytes(&g->values[i].shape, g->values[i].dtype, &bytes) ||
                bytes > limits.tensor_bytes)
                abort();
        }
        hapi_graph_free(g);
    }
    if (!hapi_model_cuts(m, &cuts, &n, &err) && n)
        check_prefix(m, &cuts[n / 2]);
    hapi_model_close(m);
    return 0;
}
