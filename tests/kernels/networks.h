/* Small networks with the building blocks of real ones, for tests of plans: weights scaled so that
 * activations keep their size. Each returns a model; aborts where it cannot (it is a test's tool). */
#ifndef HAPI_TESTS_NETWORKS_H
#define HAPI_TESTS_NETWORKS_H

#include <math.h>
#include <stdio.h>

#include "build_model.h"
#include "clock.h"

static uint32_t net_state = 1;

/* snprintf() whose result must fit. */
static inline void net_text(char *to, size_t size, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    if (vsnprintf(to, size, fmt, ap) >= (int)size)
        abort();
    va_end(ap);
}

static inline float net_random(void)
{
    net_state = net_state * 1664525 + 1013904223;
    return (float)(net_state >> 8) / (float)(1 << 23) - 1;
}

/* Uniform with the variance that keeps a layer's output as large as its input (He). */
static inline void net_weights(struct build *b, const char *name, size_t rank, const int64_t *dims,
                               double fan_in)
{
    size_t n = 1;
    for (size_t i = 0; i < rank; i++)
        n *= (size_t)dims[i];
    float *w = malloc(n * sizeof *w + 1), scale = (float)sqrt(6 / fan_in);
    if (!w)
        abort();
    for (size_t i = 0; i < n; i++)
        w[i] = net_random() * scale;
    build_initializer(b, name, ONNX_F32, rank, dims, w, n * sizeof *w);
    free(w);
}

static inline void net_vector(struct build *b, const char *name, int64_t n, float from, float to)
{
    float *w = malloc((size_t)n * sizeof *w + 1);
    if (!w)
        abort();
    for (int64_t i = 0; i < n; i++)
        w[i] = from + (to - from) * (net_random() + 1) / 2;
    build_initializer(b, name, ONNX_F32, 1, &n, w, (size_t)n * sizeof *w);
    free(w);
}

struct net_conv {
    int64_t in, out, kernel, stride, group;
    bool tf_pad; /* a Pad node with zeros at the right and bottom instead of the convolution's own padding */
};

static inline void net_conv(struct build *b, const char *x, const char *y, struct net_conv c)
{
    char name[64], inputs[160], padded[64];
    int64_t p = c.kernel / 2;

    net_text(name, sizeof name, "%s.w", y);
    net_weights(b, name, 4, (const int64_t[]){c.out, c.in / c.group, c.kernel, c.kernel},
                (double)c.kernel * (double)c.kernel * (double)c.in / (double)c.group);
    net_text(name, sizeof name, "%s.b", y);
    net_vector(b, name, c.out, -0.2F, 0.2F);
    net_text(padded, sizeof padded, "%s.padded", y);
    if (c.tf_pad) {
        net_text(name, sizeof name, "%s.pads", y);
        I64S(b, name, 0, 0, 0, 0, 0, 0, 1, 1);
        net_text(inputs, sizeof inputs, "%s,%s", x, name);
        build_node(b, "Pad", padded, inputs, padded);
    } else {
        INTS(b, "pads", p, p, p, p);
    }
    INTS(b, "strides", c.stride, c.stride);
    build_int(b, "group", c.group);
    net_text(inputs, sizeof inputs, "%s,%s.w,%s.b", c.tf_pad ? padded : x, y, y);
    build_node(b, "Conv", y, inputs, y);
}

static inline void net_gemm(struct build *b, const char *x, const char *y, int64_t in, int64_t out)
{
    char inputs[160], name[64];

    net_text(name, sizeof name, "%s.w", y);
    net_weights(b, name, 2, (const int64_t[]){out, in}, (double)in);
    net_text(name, sizeof name, "%s.b", y);
    net_vector(b, name, out, -1, 1);
    build_int(b, "transB", 1);
    net_text(inputs, sizeof inputs, "%s,%s.w,%s.b", x, y, y);
    build_node(b, "Gemm", y, inputs, y);
}

static inline struct hapi_model *net_finish(struct build *b)
{
    size_t size;
    void *bytes = build_finish(b, 8, 17, &size);
    struct hapi_err err = {0};
    struct hapi_model *m;

    if (hapi_model_from_bytes(&m, bytes, size, NULL, &err)) {
        fprintf(stderr, "network: %s\n", err.text);
        abort();
    }
    return m;
}

static inline void net_classifier(struct build *b, const char *x, int64_t channels)
{
    build_node(b, "GlobalAveragePool", "pool", x, "pooled");
    build_node(b, "Flatten", "flatten", "pooled", "flat");
    net_gemm(b, "flat", "y", channels, 10);
    OUTPUT(b, "y");
}

static inline void net_relu6(struct build *b, const char *x, const char *y)
{
    char in[96];
    net_text(in, sizeof in, "%s,zero,six", x);
    build_node(b, "Clip", y, in, y);
}

/* One inverted bottleneck (1x1 up, depthwise, 1x1 down), with a residual where shapes allow it. */
static inline void net_bottleneck(struct build *b, const char *x, const char *name, int64_t in, int64_t out,
                                  int64_t stride, bool tf_pad)
{
    char up[64], up6[64], dw[64], dw6[64], down[64], sum[128];
    int64_t wide = in * 6;
    bool residual = stride == 1 && in == out;

    net_text(up, sizeof up, "%s.up", name);
    net_text(up6, sizeof up6, "%s.up6", name);
    net_text(dw, sizeof dw, "%s.dw", name);
    net_text(dw6, sizeof dw6, "%s.dw6", name);
    net_text(down, sizeof down, "%s%s", name, residual ? ".down" : "");
    net_conv(b, x, up, (struct net_conv){in, wide, 1, 1, 1, false});
    net_relu6(b, up, up6);
    net_conv(b, up6, dw, (struct net_conv){wide, wide, 3, stride, wide, tf_pad});
    net_relu6(b, dw, dw6);
    net_conv(b, dw6, down, (struct net_conv){wide, out, 1, 1, 1, false});
    if (residual) {
        net_text(sum, sizeof sum, "%s,%s", down, x);
        build_node(b, "Add", name, sum, name);
    }
}

/* MobileNetV2 / EfficientNet-Lite: relu6, depthwise, residuals; tf_pad: TensorFlow's one-sided pads. */
static inline struct hapi_model *net_mobile(int64_t size, bool tf_pad)
{
    struct build b = {0};
    float zero = 0, six = 6;

    net_state = 11;
    INPUT(&b, "x", -1, 3, size, size);
    build_initializer(&b, "zero", ONNX_F32, 0, NULL, &zero, 4);
    build_initializer(&b, "six", ONNX_F32, 0, NULL, &six, 4);
    net_conv(&b, "x", "stem", (struct net_conv){3, 32, 3, 2, 1, tf_pad});
    net_relu6(&b, "stem", "stem6");
    net_bottleneck(&b, "stem6", "b1", 32, 24, 2, tf_pad);
    net_bottleneck(&b, "b1", "b2", 24, 24, 1, false);
    net_bottleneck(&b, "b2", "b3", 24, 40, 2, tf_pad);
    net_bottleneck(&b, "b3", "b4", 40, 40, 1, false);
    net_bottleneck(&b, "b4", "b5", 40, 112, 2, tf_pad);
    net_bottleneck(&b, "b5", "b6", 112, 112, 1, false);
    net_conv(&b, "b6", "head", (struct net_conv){112, 640, 1, 1, 1, false});
    net_relu6(&b, "head", "head6");
    net_classifier(&b, "head6", 640);
    return net_finish(&b);
}

/* ResNet-18's first two stages: max pool, plain and strided residual blocks with a 1x1 shortcut. */
static inline struct hapi_model *net_resnet(int64_t size)
{
    struct build b = {0};

    net_state = 22;
    INPUT(&b, "x", -1, 3, size, size);
    net_conv(&b, "x", "stem", (struct net_conv){3, 64, 7, 2, 1, false});
    build_node(&b, "Relu", "stem_relu", "stem", "stem_relu");
    INTS(&b, "kernel_shape", 3, 3);
    INTS(&b, "strides", 2, 2);
    INTS(&b, "pads", 1, 1, 1, 1);
    build_node(&b, "MaxPool", "maxpool", "stem_relu", "maxpool");
    net_conv(&b, "maxpool", "l1a", (struct net_conv){64, 64, 3, 1, 1, false});
    build_node(&b, "Relu", "l1a_relu", "l1a", "l1a_relu");
    net_conv(&b, "l1a_relu", "l1b", (struct net_conv){64, 64, 3, 1, 1, false});
    build_node(&b, "Add", "l1_add", "l1b,maxpool", "l1_add");
    build_node(&b, "Relu", "l1", "l1_add", "l1");
    net_conv(&b, "l1", "l2a", (struct net_conv){64, 128, 3, 2, 1, false});
    build_node(&b, "Relu", "l2a_relu", "l2a", "l2a_relu");
    net_conv(&b, "l2a_relu", "l2b", (struct net_conv){128, 128, 3, 1, 1, false});
    net_conv(&b, "l1", "l2_shortcut", (struct net_conv){64, 128, 1, 2, 1, false});
    build_node(&b, "Add", "l2_add", "l2b,l2_shortcut", "l2_add");
    build_node(&b, "Relu", "l2", "l2_add", "l2");
    net_classifier(&b, "l2", 128);
    return net_finish(&b);
}

/* EfficientNet's block: SiLU and squeeze-and-excite (a product with (N,C,1,1)). */
static inline struct hapi_model *net_excite(int64_t size)
{
    struct build b = {0};

    net_state = 33;
    INPUT(&b, "x", -1, 3, size, size);
    net_conv(&b, "x", "stem", (struct net_conv){3, 48, 3, 2, 1, false});
    build_node(&b, "Sigmoid", "stem_sig", "stem", "stem_sig");
    build_node(&b, "Mul", "stem_silu", "stem,stem_sig", "stem_silu");
    net_conv(&b, "stem_silu", "dw", (struct net_conv){48, 48, 5, 1, 48, false});
    build_node(&b, "Sigmoid", "dw_sig", "dw", "dw_sig");
    build_node(&b, "Mul", "dw_silu", "dw,dw_sig", "dw_silu");
    build_node(&b, "GlobalAveragePool", "squeeze", "dw_silu", "squeeze");
    net_conv(&b, "squeeze", "se1", (struct net_conv){48, 12, 1, 1, 1, false});
    build_node(&b, "Relu", "se1_relu", "se1", "se1_relu");
    net_conv(&b, "se1_relu", "se2", (struct net_conv){12, 48, 1, 1, 1, false});
    build_node(&b, "Sigmoid", "gate", "se2", "gate");
    build_node(&b, "Mul", "excited", "gate,dw_silu", "excited");
    net_conv(&b, "excited", "project", (struct net_conv){48, 48, 1, 1, 1, false});
    build_node(&b, "Add", "block", "project,stem_silu", "block");
    build_node(&b, "HardSwish", "swished", "block", "swished");
    net_classifier(&b, "swished", 48);
    return net_finish(&b);
}

/* DenseNet's layer: BatchNormalization and ReLU before a convolution, whose output is concatenated. */
static inline struct hapi_model *net_dense(int64_t size)
{
    struct build b = {0};
    char name[2][32], in[160];
    int64_t channels = 32;

    net_state = 44;
    INPUT(&b, "x", -1, 3, size, size);
    net_conv(&b, "x", "d0", (struct net_conv){3, 32, 3, 2, 1, false});
    for (int i = 0; i < 3; i++, channels += 16) {
        net_text(name[0], sizeof name[0], "d%d", i);
        const char *parts[4] = {"gamma", "beta", "mean", "var"};
        for (int k = 0; k < 4; k++) {
            net_text(name[1], sizeof name[1], "%s%d", parts[k], i);
            net_vector(&b, name[1], channels, k == 0 || k == 3 ? 0.5F : -0.3F,
                       k == 0 || k == 3 ? 1.5F : 0.3F);
        }
        net_text(in, sizeof in, "d%d,gamma%d,beta%d,mean%d,var%d", i, i, i, i, i);
        net_text(name[1], sizeof name[1], "bn%d", i);
        build_node(&b, "BatchNormalization", name[1], in, name[1]);
        net_text(name[0], sizeof name[0], "r%d", i);
        build_node(&b, "Relu", name[0], name[1], name[0]);
        net_text(name[1], sizeof name[1], "c%d", i);
        net_conv(&b, name[0], name[1], (struct net_conv){channels, 16, 3, 1, 1, false});
        net_text(in, sizeof in, "d%d,c%d", i, i);
        net_text(name[0], sizeof name[0], "d%d", i + 1);
        build_int(&b, "axis", 1);
        build_node(&b, "Concat", name[0], in, name[0]);
    }
    INTS(&b, "kernel_shape", 2, 2);
    INTS(&b, "strides", 2, 2);
    build_node(&b, "AveragePool", "avg", "d3", "avg");
    net_classifier(&b, "avg", channels);
    return net_finish(&b);
}

/* One product of a transformer with its bias: (N, T, in) . (in, out) + (out). */
static inline void net_linear(struct build *b, const char *x, const char *y, int64_t in, int64_t out)
{
    char w[64], bias[64], product[64], list[192];

    net_text(w, sizeof w, "%s.w", y);
    net_text(bias, sizeof bias, "%s.b", y);
    net_text(product, sizeof product, "%s.mm", y);
    net_weights(b, w, 2, (const int64_t[]){in, out}, 6.0 * (double)in);
    net_vector(b, bias, out, -0.1F, 0.1F);
    net_text(list, sizeof list, "%s,%s", x, w);
    build_node(b, "MatMul", product, list, product);
    net_text(list, sizeof list, "%s,%s", bias, product);
    build_node(b, "Add", y, list, y);
}

static inline void net_scalar(struct build *b, const char *name, float v)
{
    build_initializer(b, name, ONNX_F32, 0, NULL, &v, 4);
}

/* (N, T, D) -> heads (N, H, T, D/H) by Reshape and Transpose, as exporters write it (0 keeps a dim). */
static inline void net_heads(struct build *b, const char *x, const char *y, bool key)
{
    char list[96], split[64];

    net_text(list, sizeof list, "%s,head_shape", x);
    net_text(split, sizeof split, "%s.split", y);
    build_node(b, "Reshape", split, list, split);
    if (key)
        INTS(b, "perm", 0, 2, 3, 1);
    else
        INTS(b, "perm", 0, 2, 1, 3);
    build_node(b, "Transpose", y, split, y);
}

/* GELU as exporters write it, of constants root2, one and half. */
static inline void net_gelu(struct build *b, const char *x, const char *y)
{
    char name[4][64], list[192];
    static const char *const op[4] = {"Div", "Erf", "Add", "Mul"};
    const char *const second[4] = {"root2", NULL, "one", x};

    for (int i = 0; i < 4; i++) {
        net_text(name[i], sizeof name[i], "%s.%d", y, i);
        net_text(list, sizeof list, second[i] ? "%s,%s" : "%s", i ? name[i - 1] : x, second[i]);
        build_node(b, op[i], name[i], list, name[i]);
    }
    net_text(list, sizeof list, "%s,half", name[3]);
    build_node(b, "Mul", y, list, y);
}

/* A transformer encoder layer over patches: convolution, LayerNormalization, attention, GELU, mean. */
static inline struct hapi_model *net_transformer(int64_t size)
{
    struct build b = {0};
    int64_t tokens = size / 8 * (size / 8);

    net_state = 55;
    INPUT(&b, "x", -1, 3, size, size);
    net_weights(&b, "patch.w", 4, (const int64_t[]){64, 3, 8, 8}, 192);
    INTS(&b, "strides", 8, 8);
    build_node(&b, "Conv", "patch", "x,patch.w", "patch");
    I64S(&b, "token_shape", 0, 64, -1);
    I64S(&b, "head_shape", 0, 0, 4, 16);
    I64S(&b, "merge_shape", 0, 0, 64);
    build_node(&b, "Reshape", "flat_patches", "patch,token_shape", "flat_patches");
    INTS(&b, "perm", 0, 2, 1);
    build_node(&b, "Transpose", "tokens", "flat_patches", "tokens");
    net_vector(&b, "ln.g", 64, 0.5F, 1.5F);
    net_vector(&b, "ln.b", 64, -0.2F, 0.2F);
    build_node(&b, "LayerNormalization", "ln", "tokens,ln.g,ln.b", "ln");
    net_linear(&b, "ln", "q", 64, 64);
    net_linear(&b, "ln", "k", 64, 64);
    net_linear(&b, "ln", "v", 64, 64);
    net_heads(&b, "q", "qh", false);
    net_heads(&b, "k", "kh", true);
    net_heads(&b, "v", "vh", false);
    net_scalar(&b, "four", 4);
    build_node(&b, "MatMul", "scores", "qh,kh", "scores");
    build_node(&b, "Div", "scaled", "scores,four", "scaled");
    /* As attention in windows has it: a bias for each head, then a mask for each window, here of two heads.
     */
    WEIGHTS(&b, "bias", 1, 4, tokens, tokens);
    WEIGHTS(&b, "mask", 1, 2, 1, tokens, tokens);
    I64S(&b, "window_shape", -1, 2, 2, tokens, tokens);
    I64S(&b, "scores_shape", -1, 4, tokens, tokens);
    build_node(&b, "Add", "biased", "bias,scaled", "biased");
    build_node(&b, "Reshape", "windows", "biased,window_shape", "windows");
    build_node(&b, "Add", "masked", "windows,mask", "masked");
    build_node(&b, "Reshape", "logits", "masked,scores_shape", "logits");
    build_int(&b, "axis", -1);
    build_node(&b, "Softmax", "attention", "logits", "attention");
    build_node(&b, "MatMul", "mixed", "attention,vh", "mixed");
    INTS(&b, "perm", 0, 2, 1, 3);
    build_node(&b, "Transpose", "unheaded", "mixed", "unheaded");
    build_node(&b, "Reshape", "merged", "unheaded,merge_shape", "merged");
    net_linear(&b, "merged", "o", 64, 64);
    build_node(&b, "Add", "r1", "tokens,o", "r1");
    build_node(&b, "LayerNormalization", "ln2", "r1,ln.g,ln.b", "ln2");
    net_linear(&b, "ln2", "up", 64, 256);
    net_scalar(&b, "root2", sqrtf(2));
    net_scalar(&b, "one", 1);
    net_scalar(&b, "half", 0.5F);
    net_gelu(&b, "up", "gelu");
    net_linear(&b, "gelu", "down", 256, 64);
    build_node(&b, "Add", "r2", "down,r1", "r2");
    INTS(&b, "axes", 1);
    build_int(&b, "keepdims", 0);
    build_node(&b, "ReduceMean", "pooled", "r2", "pooled");
    net_linear(&b, "pooled", "head", 64, 64); /* no residual: a cut of one tensor before its bias */
    net_gelu(&b, "head", "head_gelu");
    net_gemm(&b, "head_gelu", "y", 64, 10);
    OUTPUT(&b, "y");
    return net_finish(&b);
}

/* (B,6) -> (B,5) that moves the batch about, and back by Reshapes that hold the number of samples, as a
 * transformer that was exported for B does; batch -1: the same for any number. Dim 0 of "moved" (3,B,2) is
 * not the batch. */
static inline struct hapi_model *net_grouped(int64_t batch)
{
    struct build b = {0};

    INPUT(&b, "x", batch, 6);
    OUTPUT(&b, "y");
    WEIGHTS(&b, "w", 2, 2);
    WEIGHTS(&b, "v", 6, 5);
    I64S(&b, "split", batch, 3, 2);
    I64S(&b, "join", batch, 6);
    build_node(&b, "Relu", "relu", "x", "h");
    build_node(&b, "Reshape", "re", "h,split", "r");
    INTS(&b, "perm", 1, 0, 2);
    build_node(&b, "Transpose", "", "r", "moved");
    build_node(&b, "MatMul", "", "moved,w", "m");
    INTS(&b, "perm", 1, 0, 2);
    build_node(&b, "Transpose", "", "m", "back");
    build_node(&b, "Reshape", "", "back,join", "flat");
    build_node(&b, "Add", "add", "flat,h", "sum");
    build_node(&b, "Softmax", "soft", "sum", "p");
    build_node(&b, "MatMul", "fc", "p,v", "y");
    return net_finish(&b);
}

/* ------------------------------------------------------------------ running */

/* A plan with all the memory it needs; the arena is filled with garbage that is no NaN. */
struct net_plan {
    struct hapi_plan *plan;
    void *arena;
    const struct hapi_tensor_desc *in, *out;
    size_t n_in, n_out;
};

static inline void *net_aligned(size_t bytes)
{
    void *p = aligned_alloc(4096, (bytes + 4096) / 4096 * 4096);
    if (!p)
        abort();
    return p;
}

static inline int net_plan_open(struct net_plan *p, struct hapi_model *m, const struct hapi_plan_spec *spec,
                                struct hapi_err *err)
{
    struct hapi_plan_memory memory;
    int rc = hapi_plan_new(&p->plan, m, spec, err);

    if (rc)
        return rc;
    memory = hapi_plan_memory_get(p->plan);
    p->arena = net_aligned(memory.arena + memory.scratch);
    memset(p->arena, 0x3f, memory.arena + memory.scratch);
    p->n_in = hapi_plan_inputs(p->plan, &p->in);
    p->n_out = hapi_plan_outputs(p->plan, &p->out);
    return 0;
}

static inline void net_plan_close(struct net_plan *p)
{
    hapi_plan_free(p->plan);
    free(p->arena);
}

static inline size_t net_elements(const struct hapi_tensor_desc *d)
{
    int64_t n = 0;
    return hapi_shape_elements(&d->shape, &n) ? 0 : (size_t)n;
}

static inline float *net_input(size_t n, uint32_t seed)
{
    float *x = net_aligned(n * sizeof *x);
    net_state = seed;
    for (size_t i = 0; i < n; i++)
        x[i] = net_random() * 1.7F;
    return x;
}

/* Bit for bit: also -0 and NaN. */
static inline bool net_same(const void *a, const void *b, size_t bytes)
{
    return !memcmp(a, b, bytes);
}

static inline double net_nmse(const float *got, const float *truth, size_t n);

/* Results of back end onednn from one sample: the same bits where this CPU promises them, else as near as
 * rounding is. */
static inline bool net_same_sample(const float *a, const float *b, size_t n)
{
    return net_same(a, b, n * sizeof *a) || (!hapi_cpu_same_bits() && net_nmse(a, b, n) < 1e-12);
}

/* Mean squared error over mean square of the truth. */
static inline double net_nmse(const float *got, const float *truth, size_t n)
{
    double error = 0, all = 0;
    for (size_t i = 0; i < n; i++) {
        double d = (double)got[i] - (double)truth[i];
        error += d * d;
        all += (double)truth[i] * (double)truth[i];
    }
    return all > 0 ? error / all : error > 0 || n == 0 ? INFINITY : 0;
}

#endif
