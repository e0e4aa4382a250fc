/* What is wrong with an operation graph is said before cuDNN sees it, in words: above all what cuDNN itself
 * lets pass. */
#include "check.h"
#include "opgraph.h"

static struct hapi_err err;

/* ------------------------------------------------------------------ good ones */

static int image(struct hapi_cudnn_graph *g, int64_t n, int64_t c, int64_t h, int64_t w, bool is_virtual)
{
    const int64_t dim[4] = {n, c, h, w}, stride[4] = {c * h * w, 1, c * w, c};

    return hapi_cudnn_tensor_add(g, is_virtual ? HAPI_F32 : HAPI_F16, 4, dim, stride, is_virtual);
}

static struct hapi_cudnn_op *op_add(struct hapi_cudnn_graph *g, enum hapi_cudnn_op_kind kind, int a, int b,
                                    int out)
{
    struct hapi_cudnn_op *op = hapi_cudnn_op_add(g, kind, out);

    op->in[op->n_in++] = a;
    if (b >= 0)
        op->in[op->n_in++] = b;
    return op;
}

/* 3x3, 16 to 32 channels, 8x8, stride 1, with a bias and ReLU. Tensors: x, w, y, bias, sum, out. */
static struct hapi_cudnn_graph conv_bias_relu(void)
{
    struct hapi_cudnn_graph g = {.name = "/conv/Conv"};
    int x = image(&g, 2, 16, 8, 8, false), w = image(&g, 32, 16, 3, 3, false),
        y = image(&g, 2, 32, 8, 8, true);
    int bias = image(&g, 1, 32, 1, 1, false), sum = image(&g, 2, 32, 8, 8, true),
        out = image(&g, 2, 32, 8, 8, false);
    struct hapi_cudnn_op *op = op_add(&g, HAPI_CUDNN_CONV, x, w, y);

    op->spatial = 2;
    for (int i = 0; i < 2; i++) {
        op->kernel[i] = 3;
        op->stride[i] = op->dilation[i] = op->pad_begin[i] = op->pad_end[i] = 1;
    }
    op_add(&g, HAPI_CUDNN_POINTWISE, y, bias, sum)->mode = HAPI_CUDNN_ADD;
    op_add(&g, HAPI_CUDNN_POINTWISE, sum, -1, out)->mode = HAPI_CUDNN_RELU;
    return g;
}

static struct hapi_cudnn_graph product(void)
{
    struct hapi_cudnn_graph g = {.name = "/fc/Gemm"};
    const int64_t a[3] = {1, 8, 64}, as[3] = {512, 64, 1}, b[3] = {1, 64, 10}, bs[3] = {640, 10, 1},
                  y[3] = {1, 8, 10};
    const int64_t ys[3] = {80, 10, 1};
    int ta = hapi_cudnn_tensor_add(&g, HAPI_BF16, 3, a, as, false),
        tb = hapi_cudnn_tensor_add(&g, HAPI_BF16, 3, b, bs, false);
    int ty = hapi_cudnn_tensor_add(&g, HAPI_BF16, 3, y, ys, false);

    (void)op_add(&g, HAPI_CUDNN_MATMUL, ta, tb, ty);
    return g;
}

/* ------------------------------------------------------------------ bad ones */

static void refused(const struct hapi_cudnn_graph *g, int code, const char *word)
{
    int rc = hapi_cudnn_graph_check(g, &err);

    CHECKF(rc == code, "%d: %s", rc, rc ? err.text : "accepted");
    CHECKF(rc == 0 || strstr(err.text, g->name), "names no node: %s", err.text);
    CHECKF(rc == 0 || strstr(err.text, word), "no `%s` in: %s", word, err.text);
}

static void check__a_good_graph__is_accepted(void)
{
    struct hapi_cudnn_graph c = conv_bias_relu(), p = product();
    char text[64];

    CHECKF(!hapi_cudnn_graph_check(&c, &err), "%s", err.text);
    CHECKF(!hapi_cudnn_graph_check(&p, &err), "%s", err.text);
    CHECK(!strcmp(hapi_cudnn_graph_text(&c, text, sizeof text), "conv+add+relu"));
}

static void check__what_cudnn_lets_pass__is_refused(void)
{
    struct hapi_cudnn_graph g = conv_bias_relu();

    g.tensors[3].uid = g.tensors[1].uid;
    refused(&g, HAPI_EINVAL, "same id");
    g = conv_bias_relu();
    g.tensors[5].is_virtual = true;
    refused(&g, HAPI_EINVAL, "a result must be real");
    g = conv_bias_relu();
    g.tensors[0].is_virtual = true;
    refused(&g, HAPI_EINVAL, "which nothing has made");
    g = conv_bias_relu();
    g.ops[2].out = g.ops[1].out;
    refused(&g, HAPI_EINVAL, "written already");
    g = conv_bias_relu();
    (void)image(&g, 1, 1, 1, 1, false);
    refused(&g, HAPI_EINVAL, "neither read nor made");
}

static void check__wrong_shapes__are_refused_with_both_numbers(void)
{
    struct hapi_cudnn_graph g = conv_bias_relu();

    g.tensors[0].dim[1] = 24; /* the weights are for 16 */
    refused(&g, HAPI_EINVAL, "is 8 and should be 0");
    g = conv_bias_relu();
    g.tensors[1].dim[0] = 48;
    refused(&g, HAPI_EINVAL, "is 32 and should be 48");
    g = conv_bias_relu();
    g.ops[0].pad_end[1] = 0;
    refused(&g, HAPI_EINVAL, "is 8 and should be 7");
    g = conv_bias_relu();
    g.tensors[3].dim[1] = 16;
    refused(&g, HAPI_EINVAL, "is 16 and should be 32");
    g = conv_bias_relu();
    g.ops[0].kernel[0] = 5;
    g.ops[0].pad_begin[0] = g.ops[0].pad_end[0] = 2;
    refused(&g, HAPI_EINVAL, "is 3 and should be 5");
    g = product();
    g.tensors[1].dim[1] = 63;
    refused(&g, HAPI_EINVAL, "is 63 and should be 64");
    g = product();
    g.tensors[2].dim[2] = 12;
    refused(&g, HAPI_EINVAL, "is 12 and should be 10");
}

static void check__wrong_dtypes__are_refused(void)
{
    struct hapi_cudnn_graph g = product();

    g.tensors[0].dtype = HAPI_F64;
    refused(&g, HAPI_EUNSUPPORTED, "f64");
    g = product();
    g.tensors[1].dtype = HAPI_F16;
    refused(&g, HAPI_EINVAL, "dtype");
}

static void check__what_is_no_op__is_refused(void)
{
    struct hapi_cudnn_graph g = conv_bias_relu();

    g.ops[0].kind = (enum hapi_cudnn_op_kind)77;
    refused(&g, HAPI_EUNSUPPORTED, "kind 77");
    g = conv_bias_relu();
    g.ops[2].mode = HAPI_CUDNN_MAX_POOL; /* a pool is no pointwise op */
    refused(&g, HAPI_EUNSUPPORTED, "mode");
    g = conv_bias_relu();
    g.ops[1].n_in = 1;
    refused(&g, HAPI_EINVAL, "takes 2");
    g = conv_bias_relu();
    g.ops[1].in[1] = 23;
    refused(&g, HAPI_EINVAL, "is no tensor");
    g.n_ops = 0;
    refused(&g, HAPI_EINVAL, "without ops");
}

static void check__a_full_graph__is_said(void)
{
    struct hapi_cudnn_graph g = conv_bias_relu();

    while (g.n_ops <= HAPI_CUDNN_OPS)
        (void)op_add(&g, HAPI_CUDNN_POINTWISE, 4, -1, 5);
    refused(&g, HAPI_ETOOBIG, "more than");
    g = conv_bias_relu();
    for (int i = 0; i < HAPI_CUDNN_TENSORS + 3; i++)
        (void)image(&g, 1, 1, 1, 1, false);
    refused(&g, HAPI_ETOOBIG, "more than");
}

static void key__says_what_is_computed__not_for_whom(void)
{
    struct hapi_cudnn_graph a = conv_bias_relu(), b = conv_bias_relu();
    uint8_t ka[HAPI_CUDNN_KEY], kb[HAPI_CUDNN_KEY];

    b.name = "/another/Conv";
    hapi_cudnn_graph_key(&a, ka);
    hapi_cudnn_graph_key(&b, kb);
    CHECK(!memcmp(ka, kb, sizeof ka));
    b.ops[2].upper = 6;
    hapi_cudnn_graph_key(&b, kb);
    CHECK(memcmp(ka, kb, sizeof ka));
    b = conv_bias_relu();
    b.tensors[5].stride[3] = 64;
    hapi_cudnn_graph_key(&b, kb);
    CHECK(memcmp(ka, kb, sizeof ka));
}

int main(void)
{
    CASE(check__a_good_graph__is_accepted);
    CASE(check__what_cudnn_lets_pass__is_refused);
    CASE(check__wrong_shapes__are_refused_with_both_numbers);
    CASE(check__wrong_dtypes__are_refused);
    CASE(check__what_is_no_op__is_refused);
    CASE(check__a_full_graph__is_said);
    CASE(key__says_what_is_computed__not_for_whom);
    return check_done();
}
