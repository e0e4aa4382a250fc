/*
 * Fusion: turns a bound graph's nodes into steps, each of which a back end can run as one kernel.
 *
 *     [Pad .] Conv | Gemm | MatMul | Add ...  [+ bias]  [+ residual]  [activation]      one step
 *     Sigmoid . Mul (SiLU)                                                      one activation
 *     Add of a constant [. Reshape] [Add of a constant . Reshape] . Softmax     one step, where asked for
 *
 * Intermediate values inside a step have no other reader and are no output of the graph, so nobody misses
 * them. Steps are in an order in which every input is ready. Plain data in the caller's arena.
 */
#ifndef HAPI_KERNELS_FUSE_H
#define HAPI_KERNELS_FUSE_H

#include "graph.h"

enum hapi_act_kind {
    HAPI_ACT_NONE,
    HAPI_ACT_RELU, /* x < 0 ? alpha * x : x */
    HAPI_ACT_CLIP, /* [alpha, beta] */
    HAPI_ACT_SIGMOID,
    HAPI_ACT_SWISH,       /* x * sigmoid(x) */
    HAPI_ACT_HARDSIGMOID, /* clip(alpha * x + beta, 0, 1) */
    HAPI_ACT_HARDSWISH,
    HAPI_ACT_TANH,
    HAPI_ACT_ELU,      /* alpha */
    HAPI_ACT_GELU,     /* with erf */
    HAPI_ACT_GELU_TANH /* approximated */
};

struct hapi_act {
    enum hapi_act_kind kind;
    float alpha, beta;
};

enum { HAPI_STEP_NODES = 6 }; /* pad, head, bias, residual, and an activation of up to two nodes */
enum { HAPI_MASKS = 2 };

/* A constant that is added to x's rows: of its rows, row r of x has r / group % count * block + r % block. */
struct hapi_mask {
    int value; /* or HAPI_NO_VALUE */
    int64_t block, group, count;
};

struct hapi_step {
    const struct hapi_node *node; /* the head; its op says what the step is */
    bool act_only;                /* the head is the activation itself: read x, write act(x) */
    int64_t pad[4];               /* zeros around x (top, left, bottom, right): a Pad before a Conv */
    int x;        /* first operand (of an activation made of several nodes: what it is applied to) */
    int bias;     /* constant added per channel or column (MatMul then Add), or HAPI_NO_VALUE */
    int residual; /* value of the output's shape added before the activation, or HAPI_NO_VALUE */
    struct hapi_act act;
    struct hapi_mask mask[HAPI_MASKS]; /* of a Softmax along the last dim, added in this order */
    int out;                           /* value of the last node fused (first output) */
    int last;                          /* its index in the graph: where the step stands in the order */
    const struct hapi_node *nodes[HAPI_STEP_NODES]; /* all that is fused, in graph order */
    int n_nodes;
};

/* masks: the caller has a Softmax that adds them, one after the other in f32. Errors: HAPI_ENOMEM. *steps
 * lives in `arena`. */
int hapi_fuse(const struct hapi_graph *g, struct hapi_arena *arena, bool masks, struct hapi_step **steps,
              size_t *n, struct hapi_err *err);

#endif
