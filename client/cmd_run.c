/* hapi run: a model on given inputs, for checking numbers against other runtimes. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "cmd.h"
#include "convert.h"
#include "file.h"
#include "kernels.h"
#include "npy.h"

enum { INPUTS_MAX = 64, FILE_MAX = 1 << 30, ALIGN = 4096 };

struct tensor {
    struct hapi_tensor_desc desc;
    void *data;
};

struct job {
    const char *model, *output_dir, *backend;
    const char *from, *to; /* cut ids, or NULL */
    enum hapi_dtype dtype;
    const char *files[INPUTS_MAX];
    size_t n_files;
    struct tensor in[INPUTS_MAX];
    size_t n_in;
    struct hapi_tensor_desc bind[INPUTS_MAX]; /* inputs given as constants */
    const void *bind_data[INPUTS_MAX];
};

static void help(void)
{
    fputs(
        "usage: hapi run MODEL.onnx --input FILE... --output-dir DIR\n"
        "                [--from CUT] [--to CUT] [--backend ref|onednn|cudnn] [--dtype f32|bf16|f16|i8]\n\n"
        "Runs the model on tensors from files and writes DIR/output_0.npy, DIR/output_1.npy, ...\n\n"
        "  --input FILE...    inputs in the order of the graph's (initializers are none): .npy, or an ONNX\n"
        "                     TensorProto .pb; may be repeated; at most 64\n"
        "  --output-dir DIR   made if it is not there; floats are written as f32, integers and bools as "
        "int64\n"
        "  --from CUT         begin at a cut (an id of hapi cuts --all): inputs are its tensors, in its "
        "order\n"
        "  --to CUT           end at a cut: outputs are its tensors, in its order\n"
        "  --backend NAME     ref (plain loops, the truth), cudnn (a GPU) or onednn (default)\n"
        "  --dtype f32|bf16|f16|i8  of computing (default f32); f16: on a GPU; i8: of a model from hapi "
        "calibrate\n"
        "  --help\n",
        stdout);
}

static int tensor_read(const char *path, struct tensor *out, struct hapi_err *err)
{
    size_t size = 0, n = strlen(path);
    void *bytes = NULL;
    int rc = hapi_file_read(path, FILE_MAX, &bytes, &size, err);

    if (rc)
        return rc;
    if (n > 4 && !strcmp(path + n - 4, ".npy"))
        rc = hapi_npy_read(bytes, size, &out->desc, &out->data, err);
    else
        rc = hapi_tensorproto_read(bytes, size, &out->desc, &out->data, err);
    free(bytes);
    return rc ? hapi_err_context(err, "%s", path) : HAPI_OK;
}

/* Dim 0 may be a batch and dims reported as 1 may be symbols; all else must be what the model declares. */
static int declared_check(const struct job *j, const struct hapi_tensor_desc *model, struct hapi_err *err)
{
    char want[96], have[96];

    for (size_t i = 0; i < j->n_in; i++) {
        const struct hapi_shape *m = &model[i].shape, *g = &j->in[i].desc.shape;
        bool ok = m->rank == g->rank || m->rank == 0;
        for (int d = 1; ok && d < m->rank; d++)
            ok = m->dim[d] == 1 || m->dim[d] == g->dim[d];
        if (!ok)
            return hapi_err_set(err, HAPI_EINVAL, 0, "%s: shape %s, but input \"%s\" is %s", j->files[i],
                                hapi_shape_text(g, have, sizeof have), model[i].name,
                                hapi_shape_text(m, want, sizeof want));
        if (model[i].dtype && model[i].dtype != j->in[i].desc.dtype)
            return hapi_err_set(err, HAPI_EINVAL, 0, "%s: dtype %s, but input \"%s\" is %s", j->files[i],
                                hapi_dtype_name(j->in[i].desc.dtype), model[i].name,
                                hapi_dtype_name(model[i].dtype));
    }
    return HAPI_OK;
}

/* How much is bound as constants, for models whose shapes depend on values: nothing; all that is no float
 * (shapes, axes, indices); everything (the limits of a Range). */
enum level { LEVEL_NONE, LEVEL_INTEGERS, LEVEL_ALL, LEVELS };

static bool is_float(enum hapi_dtype d)
{
    return d == HAPI_F32 || d == HAPI_F64 || d == HAPI_F16 || d == HAPI_BF16;
}

static void spec_make(struct job *j, enum level level, int64_t batch, struct hapi_plan_spec *s)
{
    *s = (struct hapi_plan_spec){.from = j->from,
                                 .to = j->to,
                                 .dtype = j->dtype,
                                 .backend = j->backend,
                                 .plain_io = true,
                                 .batch = batch};
    for (size_t i = 0; i < j->n_in; i++) {
        if (level == LEVEL_NONE || (level == LEVEL_INTEGERS && is_float(j->in[i].desc.dtype)))
            continue;
        j->bind[s->n_bind] = j->in[i].desc;
        j->bind_data[s->n_bind++] = j->in[i].data;
    }
    s->bind = j->bind;
    s->bind_data = j->bind_data;
}

/* The file for an edge of the plan; inputs that became constants have none. */
static const struct tensor *tensor_of(const struct job *j, const struct hapi_tensor_desc *edge)
{
    for (size_t i = 0; i < j->n_in; i++)
        if (!strcmp(j->in[i].desc.name, edge->name))
            return &j->in[i];
    return NULL;
}

static int edges_check(const struct job *j, const struct hapi_plan *plan, struct hapi_err *err)
{
    const struct hapi_tensor_desc *in;
    size_t n = hapi_plan_inputs(plan, &in);
    char want[96], have[96];

    for (size_t i = 0; i < n; i++) {
        const struct tensor *t = tensor_of(j, &in[i]);
        if (!t || t->desc.dtype != in[i].dtype || !hapi_shape_equal(&t->desc.shape, &in[i].shape))
            return hapi_err_set(err, HAPI_EINVAL, 0, "input \"%s\" is %s, given is %s", in[i].name,
                                hapi_shape_text(&in[i].shape, want, sizeof want),
                                t ? hapi_shape_text(&t->desc.shape, have, sizeof have) : "nothing");
    }
    return HAPI_OK;
}

/* The model's own dims first, then the first input's dim 0 as the batch. The first error is the one to tell.
 * Cuts are batch-first, and what is between them reads no values that could be bound. */
static int plan_make(struct job *j, struct hapi_model *m, struct hapi_plan **plan, struct hapi_err *err)
{
    int64_t batch = j->n_in && j->in[0].desc.shape.rank ? j->in[0].desc.shape.dim[0] : 0;
    struct hapi_plan_spec spec;
    struct hapi_err later;
    int rc = HAPI_OK, levels = j->from ? LEVEL_NONE + 1 : LEVELS;

    for (int level = LEVEL_NONE; level < levels; level++)
        for (int with = batch > 0 && (j->from || j->to); with <= (batch > 0); with++) {
            struct hapi_err *e = rc ? &later : err;
            spec_make(j, (enum level)level, with ? batch : 0, &spec);
            int now = hapi_plan_new(plan, m, &spec, e);
            if (!now) {
                now = edges_check(j, *plan, e);
                if (!now && with)
                    cmd_batch_note("run", m);
                if (!now)
                    return HAPI_OK;
                hapi_plan_free(*plan);
                *plan = NULL;
            }
            rc = rc ? rc : now;
        }
    return rc;
}

/* Widens n elements to f32 or i64, as they are written. */
static int widen(enum hapi_dtype d, const void *data, int64_t n, enum hapi_dtype *to, void **out)
{
    *to = is_float(d) ? HAPI_F32 : HAPI_I64;
    *out = malloc((n ? (size_t)n : 1) * hapi_dtype_size(*to));
    if (!*out)
        return HAPI_ENOMEM;
    if (d == HAPI_F32 || d == HAPI_F16 || d == HAPI_BF16)
        return hapi_convert(*out, HAPI_F32, data, d, (size_t)n);
#define WIDEN(dtype, type, wide)                                                                             \
    case dtype:                                                                                              \
        for (int64_t i = 0; i < n; i++)                                                                      \
            ((wide *)*out)[i] = (wide)((const type *)data)[i];                                               \
        return HAPI_OK
    switch (d) {
        WIDEN(HAPI_F64, double, float);
        WIDEN(HAPI_I8, int8_t, int64_t);
        WIDEN(HAPI_U8, uint8_t, int64_t);
        WIDEN(HAPI_BOOL, uint8_t, int64_t);
        WIDEN(HAPI_I16, int16_t, int64_t);
        WIDEN(HAPI_U16, uint16_t, int64_t);
        WIDEN(HAPI_I32, int32_t, int64_t);
        WIDEN(HAPI_U32, uint32_t, int64_t);
        WIDEN(HAPI_I64, int64_t, int64_t);
        WIDEN(HAPI_U64, uint64_t, int64_t);
    default:
        return HAPI_EUNSUPPORTED;
    }
#undef WIDEN
}

static int output_write(const struct job *j, size_t index, const struct hapi_tensor_desc *d, const void *data,
                        struct hapi_err *err)
{
    char path[4096];
    enum hapi_dtype to;
    void *wide = NULL;
    int64_t n;
    int rc;

    if (snprintf(path, sizeof path, "%s/output_%zu.npy", j->output_dir, index) >= (int)sizeof path)
        return hapi_err_set(err, HAPI_EINVAL, 0, "--output-dir: the path is too long");
    rc = hapi_shape_elements(&d->shape, &n);
    if (!rc)
        rc = widen(d->dtype, data, n, &to, &wide);
    if (rc)
        hapi_err_set(err, rc, 0, "output \"%s\" of dtype %s cannot be written", d->name,
                     hapi_dtype_name(d->dtype));
    else
        rc = hapi_npy_write(path, &d->shape, to, wide, err);
    free(wide);
    return rc;
}

static void *aligned(size_t bytes)
{
    return aligned_alloc(ALIGN, (bytes + ALIGN) / ALIGN * ALIGN);
}

static int plan_execute(struct job *j, struct hapi_plan *plan, struct hapi_err *err)
{
    const struct hapi_tensor_desc *in, *out;
    size_t n_in = hapi_plan_inputs(plan, &in), n_out = hapi_plan_outputs(plan, &out), bytes;
    struct hapi_plan_memory mem = hapi_plan_memory_get(plan);
    const void **in_ptr = calloc(n_in + 1, sizeof *in_ptr);
    void **out_ptr = calloc(n_out + 1, sizeof *out_ptr), *arena = aligned(mem.arena + mem.scratch);
    int rc = in_ptr && out_ptr && arena ? HAPI_OK : HAPI_ENOMEM;

    for (size_t i = 0; i < n_out && !rc; i++) {
        rc = hapi_tensor_bytes(&out[i].shape, out[i].dtype, &bytes);
        out_ptr[i] = rc ? NULL : aligned(bytes);
        rc = out_ptr[i] ? HAPI_OK : HAPI_ENOMEM;
    }
    if (rc)
        hapi_err_set(err, rc, 0, "no memory to run: %" PRIu64 " bytes of arena and %zu outputs",
                     mem.arena + mem.scratch, n_out);
    for (size_t i = 0; i < n_in && !rc; i++)
        in_ptr[i] = tensor_of(j, &in[i])->data; /* there: edges_check() */
    if (!rc)
        rc = hapi_plan_run(plan, arena, in_ptr, out_ptr, err);
    for (size_t i = 0; i < n_out && !rc; i++)
        rc = output_write(j, i, &out[i], out_ptr[i], err);
    for (size_t i = 0; out_ptr && i < n_out; i++)
        free(out_ptr[i]);
    free(arena);
    free(out_ptr);
    free(in_ptr);
    return rc;
}

/* The tensors that files are for: the model's inputs, or those of the cut to begin at. */
static int inputs_find(const struct job *j, struct hapi_model *m, const struct hapi_tensor_desc **desc,
                       size_t *n, struct hapi_err *err)
{
    const struct hapi_cut *cut;
    int rc = j->to ? hapi_model_cut_find(m, j->to, &cut, err) : HAPI_OK;

    if (!rc && j->from) {
        rc = hapi_model_cut_find(m, j->from, &cut, err);
        *desc = rc ? NULL : cut->tensors;
        *n = rc ? 0 : cut->n_tensors;
    } else if (!rc) {
        *n = hapi_model_inputs(m, desc);
    }
    if (!rc && *n != j->n_files)
        rc = hapi_err_set(err, HAPI_EINVAL, 0, "%s has %zu inputs, %zu files are given",
                          j->from ? "the cut" : j->model, *n, j->n_files);
    return rc;
}

static int inputs_read(struct job *j, const struct hapi_tensor_desc *desc, size_t n, struct hapi_err *err)
{
    for (; j->n_in < n; j->n_in++) {
        int rc = tensor_read(j->files[j->n_in], &j->in[j->n_in], err);
        if (rc)
            return rc;
        j->in[j->n_in].desc.name = desc[j->n_in].name;
    }
    return declared_check(j, desc, err);
}

static int run(struct job *j, struct hapi_err *err)
{
    const struct hapi_tensor_desc *desc;
    struct hapi_plan *plan = NULL;
    struct hapi_model *m = NULL;
    size_t n;
    int rc = hapi_model_open(&m, j->model, NULL, err);

    if (rc)
        return rc;
    rc = inputs_find(j, m, &desc, &n, err);
    rc = rc ? rc : inputs_read(j, desc, n, err);
    if (!rc && mkdir(j->output_dir, 0777) && errno != EEXIST)
        rc = hapi_err_errno(err, errno, "cannot make %s", j->output_dir);
    if (!rc)
        rc = plan_make(j, m, &plan, err);
    if (!rc)
        rc = plan_execute(j, plan, err);
    if (rc)
        hapi_err_context(err, "%s", j->model);
    for (size_t i = 0; i < j->n_in; i++)
        free(j->in[i].data);
    hapi_plan_free(plan);
    hapi_model_close(m);
    return rc;
}

/* Options take one value, --input takes all up to the next option. */
static int parse(struct job *j, int argc, char **argv)
{
    for (int i = 1; i < argc; i++) {
        const char *a = argv[i], *value = i + 1 < argc ? argv[i + 1] : NULL;
        if (!strcmp(a, "--input")) {
            if (!value)
                return cmd_usage("run", "--input needs a file");
            while (i + 1 < argc && strncmp(argv[i + 1], "--", 2)) {
                if (j->n_files == INPUTS_MAX)
                    return cmd_usage("run", "more than %d inputs", INPUTS_MAX);
                j->files[j->n_files++] = argv[++i];
            }
        } else if (!strncmp(a, "--", 2)) {
            const char **to = !strcmp(a, "--output-dir") ? &j->output_dir
                              : !strcmp(a, "--backend")  ? &j->backend
                              : !strcmp(a, "--from")     ? &j->from
                              : !strcmp(a, "--to")       ? &j->to
                                                         : NULL;
            if (!to && strcmp(a, "--dtype"))
                return cmd_usage("run", "unknown option %s", a);
            if (!value)
                return cmd_usage("run", "%s needs a value", a);
            if (to)
                *to = value;
            else
                j->dtype = hapi_dtype_from_name(value);
            i++;
        } else if (*j->model) {
            return cmd_usage("run", "one model, not also `%s`", a);
        } else {
            j->model = a;
        }
    }
    if (!*j->model || !*j->output_dir) {
        cmd_usage("run", !*j->model ? "no model given" : "--output-dir is missing");
        return CMD_USAGE;
    }
    if (j->dtype != HAPI_F32 && j->dtype != HAPI_BF16 && j->dtype != HAPI_F16 && j->dtype != HAPI_I8)
        return cmd_usage("run", "--dtype is f32, bf16, f16 or i8");
    return CMD_OK;
}

int cmd_run(int argc, char **argv)
{
    struct job *j;
    struct hapi_err err = {0};
    int rc;

    for (int i = 1; i < argc; i++)
        if (!strcmp(argv[i], "--help") || !strcmp(argv[i], "-h")) {
            help();
            return CMD_OK;
        }
    j = calloc(1, sizeof *j);
    if (!j) {
        hapi_err_set(&err, HAPI_ENOMEM, 0, "no memory");
        return cmd_fail("run", &err);
    }
    j->backend = hapi_numeric_class("onednn") ? "onednn" : "ref";
    j->model = j->output_dir = "";
    j->dtype = HAPI_F32;
    rc = parse(j, argc, argv);
    if (rc == CMD_OK && run(j, &err))
        rc = cmd_fail("run", &err);
    free(j);
    return rc;
}
