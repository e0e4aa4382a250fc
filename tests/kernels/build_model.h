/* Small ONNX models made byte by byte, well-formed or not. Aborts without memory: it is a test's tool. */
#ifndef HAPI_TESTS_BUILD_MODEL_H
#define HAPI_TESTS_BUILD_MODEL_H

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "kernels.h"
#include "pb.h"

struct build {
    struct hapi_pb_out graph, attrs; /* attrs: AttributeProtos of the next node */
};

enum { ONNX_F32 = 1, ONNX_I64 = 7, ONNX_BOOL = 9 };

static inline void build_attr(struct build *b, const struct hapi_pb_out *a)
{
    hapi_pb_put_bytes(&b->attrs, 5, a->p, a->n);
    free(a->p);
}

static inline void build_int(struct build *b, const char *name, int64_t v)
{
    struct hapi_pb_out a = {.p = NULL};
    hapi_pb_put_string(&a, 1, name);
    hapi_pb_put_int(&a, 3, (uint64_t)v);
    hapi_pb_put_int(&a, 20, 2);
    build_attr(b, &a);
}

static inline void build_float(struct build *b, const char *name, float v)
{
    struct hapi_pb_out a = {.p = NULL};
    hapi_pb_put_string(&a, 1, name);
    hapi_pb_put_varint(&a, 2 << 3 | HAPI_PB_I32);
    hapi_pb_put(&a, &v, 4);
    hapi_pb_put_int(&a, 20, 1);
    build_attr(b, &a);
}

static inline void build_ints(struct build *b, const char *name, size_t n, const int64_t *v)
{
    struct hapi_pb_out a = {.p = NULL};
    hapi_pb_put_string(&a, 1, name);
    for (size_t i = 0; i < n; i++)
        hapi_pb_put_int(&a, 8, (uint64_t)v[i]);
    hapi_pb_put_int(&a, 20, 7);
    build_attr(b, &a);
}

#define INTS(b, name, ...)                                                                                   \
    build_ints(b, name, sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t), (const int64_t[]){__VA_ARGS__})

/* Names separated by commas; an empty one is an input left out. "" for none at all. */
static inline void build_names(struct hapi_pb_out *o, uint32_t number, const char *names)
{
    for (const char *s = names; *s || s != names;) {
        size_t n = strcspn(s, ",");
        hapi_pb_put_bytes(o, number, s, n);
        if (!s[n])
            return;
        s += n + 1;
    }
}

static inline void build_node(struct build *b, const char *op, const char *name, const char *in,
                              const char *out)
{
    struct hapi_pb_out n = {.p = NULL};
    build_names(&n, 1, in);
    build_names(&n, 2, out);
    hapi_pb_put_string(&n, 3, name);
    hapi_pb_put_string(&n, 4, op);
    hapi_pb_put(&n, b->attrs.p, b->attrs.n);
    b->attrs.n = 0;
    hapi_pb_put_bytes(&b->graph, 1, n.p, n.n);
    free(n.p);
}

/* A TensorProto with raw data. */
static inline void build_tensor(struct hapi_pb_out *t, const char *name, int type, size_t rank,
                                const int64_t *dims, const void *raw, size_t bytes)
{
    for (size_t i = 0; i < rank; i++)
        hapi_pb_put_int(t, 1, (uint64_t)dims[i]);
    hapi_pb_put_int(t, 2, (uint64_t)type);
    hapi_pb_put_string(t, 8, name);
    if (raw)
        hapi_pb_put_bytes(t, 9, raw, bytes);
}

static inline void build_initializer(struct build *b, const char *name, int type, size_t rank,
                                     const int64_t *dims, const void *raw, size_t bytes)
{
    struct hapi_pb_out t = {.p = NULL};
    build_tensor(&t, name, type, rank, dims, raw, bytes);
    hapi_pb_put_bytes(&b->graph, 5, t.p, t.n);
    free(t.p);
}

#define I64S(b, name, ...)                                                                                   \
    build_initializer(b, name, ONNX_I64, 1,                                                                  \
                      (const int64_t[]){sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t)},                 \
                      (const int64_t[]){__VA_ARGS__}, sizeof((int64_t[]){__VA_ARGS__}))

/* f32 weights from a fixed sequence in [-0.5, 0.5). */
static inline void build_weights(struct build *b, const char *name, size_t rank, const int64_t *dims)
{
    size_t n = 1;
    for (size_t i = 0; i < rank; i++)
        n *= (size_t)dims[i];
    float *w = malloc(n * sizeof *w + 1);
    uint32_t state = 12345 + (uint32_t)name[0] * 977 + (uint32_t)strlen(name);
    if (!w)
        abort();
    for (size_t i = 0; i < n; i++) {
        state = state * 1664525 + 1013904223;
        w[i] = (float)(state >> 8) / (float)(1 << 24) - 0.5F;
    }
    build_initializer(b, name, ONNX_F32, rank, dims, w, n * sizeof *w);
    free(w);
}

#define WEIGHTS(b, name, ...)                                                                                \
    build_weights(b, name, sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t), (const int64_t[]){__VA_ARGS__})

/* ValueInfoProto; a dim of -1 is the symbol "n". rank -1: no type at all. */
static inline void build_io(struct build *b, uint32_t number, const char *name, int type, int rank,
                            const int64_t *dims)
{
    struct hapi_pb_out shape = {.p = NULL}, tensor = {.p = NULL}, t = {.p = NULL}, v = {.p = NULL};
    for (int i = 0; i < rank; i++) {
        struct hapi_pb_out d = {.p = NULL};
        if (dims[i] < 0)
            hapi_pb_put_string(&d, 2, "n");
        else
            hapi_pb_put_int(&d, 1, (uint64_t)dims[i]);
        hapi_pb_put_bytes(&shape, 1, d.p, d.n);
        free(d.p);
    }
    hapi_pb_put_string(&v, 1, name);
    if (rank >= 0) {
        hapi_pb_put_int(&tensor, 1, (uint64_t)type);
        hapi_pb_put_bytes(&tensor, 2, shape.p, shape.n);
        hapi_pb_put_bytes(&t, 1, tensor.p, tensor.n);
        hapi_pb_put_bytes(&v, 2, t.p, t.n);
    }
    hapi_pb_put_bytes(&b->graph, number, v.p, v.n);
    free(shape.p);
    free(tensor.p);
    free(t.p);
    free(v.p);
}

#define INPUT(b, name, ...)                                                                                  \
    build_io(b, 11, name, ONNX_F32, (int)(sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t)),               \
             (const int64_t[]){__VA_ARGS__})
#define OUTPUT(b, name) build_io(b, 12, name, 0, -1, NULL)

/* The ModelProto, malloc'd; resets *b. opset 0: no opset_import. */
static inline void *build_finish(struct build *b, int ir, int64_t opset, size_t *size)
{
    struct hapi_pb_out m = {.p = NULL}, o = {.p = NULL};
    hapi_pb_put_int(&m, 1, (uint64_t)ir);
    hapi_pb_put_bytes(&m, 7, b->graph.p, b->graph.n);
    hapi_pb_put_int(&o, 2, (uint64_t)opset);
    if (opset)
        hapi_pb_put_bytes(&m, 8, o.p, o.n);
    if (m.failed || o.failed || b->graph.failed)
        abort();
    free(o.p);
    free(b->graph.p);
    free(b->attrs.p);
    memset(b, 0, sizeof *b);
    *size = m.n;
    return m.p;
}

/* Two convolutions with a residual and a classifier: "stem", "block/conv", "block/bn", "block/add". */
static inline void build_residual(struct build *b)
{
    INPUT(b, "x", -1, 3, 8, 8);
    OUTPUT(b, "y");
    WEIGHTS(b, "w1", 4, 3, 3, 3);
    WEIGHTS(b, "w2", 4, 4, 3, 3);
    WEIGHTS(b, "gamma", 4);
    WEIGHTS(b, "beta", 4);
    WEIGHTS(b, "mean", 4);
    float var[4] = {0.5F, 1, 2, 0.25F};
    build_initializer(b, "var", ONNX_F32, 1, (const int64_t[]){4}, var, sizeof var);
    WEIGHTS(b, "w3", 10, 4);
    WEIGHTS(b, "b3", 10);
    INTS(b, "pads", 1, 1, 1, 1);
    build_node(b, "Conv", "/stem/conv/Conv", "x,w1", "stem_conv");
    build_node(b, "Relu", "/stem/relu/Relu", "stem_conv", "stem_relu");
    INTS(b, "pads", 1, 1, 1, 1);
    build_node(b, "Conv", "/block/block.0/conv/Conv", "stem_relu,w2", "block_conv");
    build_node(b, "BatchNormalization", "/block/block.0/bn/BatchNormalization",
               "block_conv,gamma,beta,mean,var", "block_bn");
    build_node(b, "Add", "/block/block.0/Add", "block_bn,stem_relu", "block_add");
    build_node(b, "Relu", "/block/block.0/relu/Relu", "block_add", "block_relu");
    build_node(b, "GlobalAveragePool", "/pool/GlobalAveragePool", "block_relu", "pooled");
    build_node(b, "Flatten", "/Flatten", "pooled", "flat");
    build_node(b, "Identity", "/drop/Identity", "flat", "dropped");
    build_int(b, "transB", 1);
    build_node(b, "Gemm", "/fc/Gemm", "dropped,w3,b3", "y");
}

#endif
