/* Our reader against python3-onnx on torchvision's exports: every node, attribute, initializer and shape.
 * tests/tools/onnx_expect.py makes the models and says what is in them; skipped where torch is missing. */
#include <cjson/cJSON.h>
#include <sys/wait.h>

#include "check.h"
#include "convert.h"
#include "model.h"

static const char *const networks[] = {"resnet18", "mobilenet_v2", "densenet121", "swin_t"};

static struct hapi_err err;

static char *slurp(const char *path)
{
    FILE *f = fopen(path, "rb");
    REQUIRE(f && !fseek(f, 0, SEEK_END));
    long n = ftell(f);
    char *text = n >= 0 ? malloc((size_t)n + 1) : NULL;
    REQUIRE(text && !fseek(f, 0, SEEK_SET) && fread(text, 1, (size_t)n, f) == (size_t)n);
    text[n] = '\0';
    fclose(f);
    return text;
}

static const cJSON *get(const cJSON *o, const char *key)
{
    const cJSON *v = cJSON_GetObjectItemCaseSensitive(o, key);
    REQUIRE(v);
    return v;
}

static const char *text(const cJSON *o, const char *key)
{
    const char *s = cJSON_GetStringValue(get(o, key));
    REQUIRE(s);
    return s;
}

static bool same_dims(const cJSON *dims, const struct hapi_shape *s)
{
    bool same = cJSON_GetArraySize(dims) == s->rank;
    for (int i = 0; same && i < s->rank; i++)
        same = (int64_t)cJSON_GetNumberValue(cJSON_GetArrayItem(dims, i)) == s->dim[i];
    return same;
}

/* dtype, shape and SHA-256 of the dense bytes. */
static void check_tensor(const cJSON *expected, struct hapi_onnx_tensor *t, const char *name)
{
    uint8_t hash[32];
    char hex[65];
    CHECKF(hapi_onnx_elem_type(t->dtype) == (unsigned)cJSON_GetNumberValue(get(expected, "dtype")), "%s",
           name);
    CHECKF(same_dims(get(expected, "dims"), &t->shape), "%s", name);
    const void *data = hapi_onnx_tensor_data(t);
    REQUIRE(data);
    hapi_sha256(hash, data, t->bytes);
    for (int i = 0; i < 32; i++)
        snprintf(hex + 2 * i, 3, "%02x", hash[i]);
    CHECKF(!strcmp(hex, text(expected, "sha256")), "%s", name);
}

static void check_attr(struct hapi_onnx *o, const cJSON *expected, const struct hapi_attr *a,
                       const char *node)
{
    /* AttributeProto's types, by ours. */
    static const int types[] = {[HAPI_ATTR_INT] = 2,  [HAPI_ATTR_FLOAT] = 1,  [HAPI_ATTR_STRING] = 3,
                                [HAPI_ATTR_INTS] = 7, [HAPI_ATTR_FLOATS] = 6, [HAPI_ATTR_TENSOR] = 4};
    const cJSON *v = get(expected, "value");
    CHECKF(!strcmp(a->name, text(expected, "name")), "%s: %s", node, a->name);
    CHECKF(types[a->type] == (int)cJSON_GetNumberValue(get(expected, "type")), "%s: %s", node, a->name);
    switch (a->type) {
    case HAPI_ATTR_INT:
        CHECKF(a->i == (int64_t)cJSON_GetNumberValue(v), "%s: %s", node, a->name);
        break;
    case HAPI_ATTR_FLOAT:
        CHECKF(a->f == (float)cJSON_GetNumberValue(v), "%s: %s", node, a->name);
        break;
    case HAPI_ATTR_STRING:
        CHECKF(!strcmp(a->s, cJSON_GetStringValue(v)), "%s: %s", node, a->name);
        break;
    case HAPI_ATTR_TENSOR:
        check_tensor(v, &o->tensors[a->value], node);
        break;
    case HAPI_ATTR_INTS:
    case HAPI_ATTR_FLOATS:
        CHECKF((int)a->n == cJSON_GetArraySize(v), "%s: %s", node, a->name);
        for (int i = 0; i < (int)a->n && i < cJSON_GetArraySize(v); i++) {
            double e = cJSON_GetNumberValue(cJSON_GetArrayItem(v, i));
            CHECKF(a->type == HAPI_ATTR_INTS ? a->ints[i] == (int64_t)e : a->floats[i] == (float)e, "%s: %s",
                   node, a->name);
        }
        break;
    }
}

static void check_edges(const struct hapi_onnx *o, const cJSON *expected, const int *v, int n,
                        const char *node)
{
    int size = cJSON_GetArraySize(expected);

    /* Ours drops optional ones that are left out at the end. */
    while (size > n && !*cJSON_GetStringValue(cJSON_GetArrayItem(expected, size - 1)))
        size--;
    CHECKF(size == n, "%s", node);
    for (int i = 0; i < n && i < size; i++) {
        const char *name = cJSON_GetStringValue(cJSON_GetArrayItem(expected, i));
        CHECKF(name && !strcmp(v[i] < 0 ? "" : o->values[v[i]].name, name), "%s: %s", node, name);
    }
}

static size_t check_nodes(struct hapi_onnx *o, const cJSON *nodes)
{
    const cJSON *expected;
    size_t i = 0, attrs = 0;

    REQUIRE((size_t)cJSON_GetArraySize(nodes) == o->n_nodes);
    cJSON_ArrayForEach(expected, nodes)
    {
        const struct hapi_onnx_node *n = &o->nodes[i++];
        const cJSON *list = get(expected, "attributes"), *a;
        size_t k = 0;
        CHECK(!strcmp(n->name, text(expected, "name")));
        CHECKF(!strcmp(hapi_op_name(n->op), text(expected, "op")), "%s", n->name);
        check_edges(o, get(expected, "inputs"), n->in, n->n_in, n->name);
        check_edges(o, get(expected, "outputs"), n->out, n->n_out, n->name);
        REQUIRE((size_t)cJSON_GetArraySize(list) == n->n_attrs);
        cJSON_ArrayForEach(a, list) check_attr(o, a, &n->attrs[k++], n->name);
        attrs += n->n_attrs;
    }
    return attrs;
}

static void check_initializers(struct hapi_onnx *o, const cJSON *expected)
{
    REQUIRE((size_t)cJSON_GetArraySize(expected) == o->n_initializers);
    for (size_t i = 0; i < o->n_initializers; i++)
        check_tensor(get(expected, o->tensors[i].name), &o->tensors[i], o->tensors[i].name);
}

/* Every shape that both know. onnx.shape_inference gives up on some of what follows from Shape ops. */
static size_t check_shapes(struct hapi_model *m, const cJSON *root)
{
    struct hapi_plan_spec spec = {.batch = (int64_t)cJSON_GetNumberValue(get(root, "batch"))};
    const cJSON *shapes = get(root, "shapes");
    struct hapi_binding b;
    size_t both = 0;

    int rc = hapi_binding_new(&b, m, &spec, true, &err);
    rc = rc ? rc : hapi_binding_infer(&b);
    CHECKF(!rc, "%s", err.text);
    for (size_t i = 0; !rc && i < m->onnx.n_values; i++) {
        const struct hapi_value *v = &b.g->values[i];
        const cJSON *s = cJSON_GetObjectItemCaseSensitive(shapes, v->name);
        char ours[96];
        if (!s || !v->dtype || m->onnx.values[i].producer < 0)
            continue;
        both++;
        CHECKF(same_dims(get(s, "dims"), &v->shape), "%s: ours is %s", v->name,
               hapi_shape_text(&v->shape, ours, sizeof ours));
        CHECKF(hapi_onnx_elem_type(v->dtype) == (unsigned)cJSON_GetNumberValue(get(s, "dtype")), "%s",
               v->name);
    }
    hapi_graph_free(b.g);
    hapi_binding_fini(&b);
    return both;
}

static void check_network(const char *folder, const char *name)
{
    struct hapi_model *m;
    char path[1024];

    snprintf(path, sizeof path, "%s/%s.json", folder, name);
    char *json = slurp(path);
    cJSON *root = cJSON_Parse(json);
    REQUIRE(root);
    CHECKF(!hapi_model_open(&m, cJSON_GetStringValue(get(root, "path")), NULL, &err), "%s", err.text);
    struct hapi_onnx *o = &m->onnx;
    CHECK(o->opset == (int64_t)cJSON_GetNumberValue(get(root, "opset")));
    for (size_t i = 0; i < o->n_inputs; i++)
        CHECK(!strcmp(o->values[o->inputs[i].value].name,
                      cJSON_GetStringValue(cJSON_GetArrayItem(get(root, "inputs"), (int)i))));
    CHECK((size_t)cJSON_GetArraySize(get(root, "outputs")) == o->n_outputs);
    size_t attrs = check_nodes(o, get(root, "nodes"));
    check_initializers(o, get(root, "initializers"));
    size_t shapes = check_shapes(m, root);
    CHECK(attrs > 0 && shapes > o->n_nodes / 4);
    printf("%s: %zu nodes, %zu attributes, %zu initializers, %zu shapes agree\n", name, o->n_nodes, attrs,
           o->n_initializers, shapes);
    hapi_model_close(m);
    cJSON_Delete(root);
    free(json);
}

static void exports__of_torchvision__are_read_as_onnx_reads_them(void)
{
    const char *folder = HAPI_BINARY_DIR "/onnx-expect";

    for (size_t i = 0; i < sizeof networks / sizeof *networks; i++)
        check_network(folder, networks[i]);
}

int main(void)
{
    char command[2048] = "";
    size_t at = (size_t)snprintf(command, sizeof command,
                                 "/usr/bin/python3 '%s/tests/tools/onnx_expect.py' '%s/onnx-expect'",
                                 HAPI_SOURCE_DIR, HAPI_BINARY_DIR);
    for (size_t i = 0; i < sizeof networks / sizeof *networks; i++)
        at += (size_t)snprintf(command + at, sizeof command - at, " %s", networks[i]);
    int rc = system(command);
    if (rc != -1 && WIFEXITED(rc) && (WEXITSTATUS(rc) == 77 || WEXITSTATUS(rc) == 127))
        SKIP("python3 with torch, torchvision and onnx is not installed");
    REQUIRE(rc == 0);
    CASE(exports__of_torchvision__are_read_as_onnx_reads_them);
    return check_done();
}
