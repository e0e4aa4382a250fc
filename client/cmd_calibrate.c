/* hapi calibrate: runs a model on real samples and writes it anew with the ranges of its activations, which
 * computing in int8 needs. */
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "clock.h"
#include "cmd.h"
#include "kernels.h"
#include "store.h"

enum { SAMPLES_DEFAULT = 128, SAMPLES_MAX = 1 << 20, ALIGN = 4096, PATH_BYTES = 4096 };

struct job {
    const char *model, *data, *dataset, *transform, *output;
    uint64_t samples;
    double share; /* of each value's elements that its range holds */
    /* while it runs */
    struct hapi_loop *loop;
    struct hapi_store *store;
    const struct hapi_dataset *set;
    struct hapi_model *m;
    struct hapi_transform t;
    struct hapi_decoder *decoder;
    struct hapi_plan *plan;
    struct hapi_calibration *calibration;
    void *arena, *jpeg;
    float *image;
    void **out;
    size_t n_out;
    uint64_t used, skipped;
};

static void help(void)
{
    fputs("usage: hapi calibrate MODEL.onnx --data DIR --output OUT.onnx [--dataset NAME] [--samples N]\n"
          "                      [--transform FILE] [--share S]\n\n"
          "Runs the model in f32 on samples of a dataset and writes it to OUT.onnx with the ranges of its\n"
          "activations, as metadata: what --dtype i8 takes its scales from.\n\n"
          "  --data DIR         datasets as of hapi-rt --data: folders of class folders of JPEGs, or of tar "
          "shards\n"
          "  --dataset NAME     which of them [the only one]\n"
          "  --samples N        spread evenly over the dataset; at most 1048576 [128]\n"
          "  --transform FILE   JPEG to input [beside the model]\n"
          "  --share S          share of a value's elements that its range is to hold, 0.5 to 1 [0.9999]\n"
          "  --output OUT.onnx  also OUT.transform.json is written\n"
          "  --help\n",
          stdout);
}

/* ------------------------------------------------------------------ samples */

static int data_open(struct job *j, struct hapi_err *err)
{
    int rc = hapi_loop_open(&j->loop, 64, err);

    rc = rc ? rc : hapi_store_open(&j->store, j->data, NULL, err);
    rc = rc ? rc : hapi_store_attach(j->store, j->loop, err);
    if (rc)
        return rc;
    if (!j->dataset && hapi_store_count(j->store) != 1)
        return hapi_err_set(err, HAPI_EINVAL, 0, "%s has %u datasets: give --dataset", j->data,
                            hapi_store_count(j->store));
    j->set = j->dataset ? hapi_store_find(j->store, j->dataset) : hapi_store_at(j->store, 0);
    if (!j->set || !j->set->n_samples)
        return hapi_err_set(err, HAPI_ENOENT, 0, "%s has no dataset \"%.200s\" with samples", j->data,
                            j->set ? j->set->name : j->dataset);
    return HAPI_OK;
}

static void read_done(struct hapi_read *r)
{
    *(bool *)r->user = true;
}

static const struct hapi_object_info *object_of(const struct hapi_dataset *d, uint64_t sample)
{
    uint32_t lo = 0, hi = d->n_objects;

    while (hi - lo > 1) {
        uint32_t mid = lo + (hi - lo) / 2;
        *(d->objects[mid].first_sample <= sample ? &lo : &hi) = mid;
    }
    return &d->objects[lo];
}

/* The sample's bytes in j->jpeg, at *at. */
static int sample_read(struct job *j, uint64_t sample, const uint8_t **at, struct hapi_err *err)
{
    const struct hapi_object_info *o = object_of(j->set, sample);
    const struct hapi_sample_info *s = &j->set->samples[sample];
    bool done = false;
    struct hapi_read r = {.dataset = j->set,
                          .object = (uint32_t)(o - j->set->objects),
                          .offset = s->offset,
                          .bytes = s->bytes,
                          .buf = j->jpeg,
                          .capacity = hapi_read_capacity(j->set->max_sample_bytes),
                          .done = read_done,
                          .user = &done};
    int rc = hapi_store_read(j->store, &r);

    while (!rc && !done)
        rc = hapi_loop_run_once(j->loop, HAPI_NS_PER_S, err);
    *at = r.data;
    rc = rc ? rc : r.status;
    return rc ? hapi_err_set(err, rc, r.sys, "%s: %s", o->name, hapi_err_meaning(rc)) : HAPI_OK;
}

/* ------------------------------------------------------------------ running */

static void *aligned(size_t bytes)
{
    return aligned_alloc(ALIGN, (bytes + ALIGN) / ALIGN * ALIGN);
}

static int plan_open(struct job *j, struct hapi_err *err)
{
    struct hapi_plan_spec spec = {.batch = 1, .dtype = HAPI_F32, .backend = "onednn"};
    const struct hapi_tensor_desc *in, *out;
    int rc = hapi_plan_new(&j->plan, j->m, &spec, err);
    size_t bytes;

    if (rc)
        return rc;
    const struct hapi_shape want = {4, {1, 3, j->t.crop_h, j->t.crop_w}};
    if (hapi_plan_inputs(j->plan, &in) != 1 || in->dtype != HAPI_F32 || !hapi_shape_equal(&in->shape, &want))
        return hapi_err_set(err, HAPI_EINVAL, 0,
                            "its input is not one image of %dx%d, as the transform makes", j->t.crop_h,
                            j->t.crop_w);
    struct hapi_plan_memory mem = hapi_plan_memory_get(j->plan);
    j->n_out = hapi_plan_outputs(j->plan, &out);
    j->out = calloc(j->n_out + 1, sizeof *j->out);
    j->arena = aligned(mem.arena + mem.scratch);
    j->jpeg = aligned(hapi_read_capacity(j->set->max_sample_bytes));
    rc = hapi_tensor_bytes(&want, HAPI_F32, &bytes);
    j->image = rc ? NULL : aligned(bytes);
    bool ok = j->out && j->arena && j->jpeg && j->image;
    for (size_t i = 0; i < j->n_out && ok; i++) {
        ok = !hapi_tensor_bytes(&out[i].shape, out[i].dtype, &bytes);
        j->out[i] = ok ? aligned(bytes) : NULL;
        ok = j->out[i] != NULL;
    }
    if (!ok)
        return hapi_err_set(err, HAPI_ENOMEM, 0, "no memory to run the model");
    rc = hapi_decoder_new(&j->decoder, 0, err);
    return rc ? rc : hapi_calibration_new(&j->calibration, j->plan, err);
}

/* Images that cannot be decoded are left out, as in training. */
static int samples_run(struct job *j, struct hapi_err *err)
{
    uint64_t n = j->samples < j->set->n_samples ? j->samples : j->set->n_samples;
    const void *in[1] = {j->image};
    const uint8_t *jpeg;
    int rc = HAPI_OK;

    for (uint64_t i = 0; i < n && !rc; i++) {
        uint64_t k = (uint64_t)((double)i / (double)n * (double)j->set->n_samples);
        rc = sample_read(j, k, &jpeg, err);
        if (rc)
            return rc;
        if (hapi_decode(j->decoder, &j->t, jpeg, j->set->samples[k].bytes, j->image, NULL)) {
            j->skipped++;
            continue;
        }
        rc = hapi_plan_run(j->plan, j->arena, in, j->out, err);
        j->used++;
    }
    if (!rc && !j->used)
        rc = hapi_err_set(err, HAPI_EDECODE, 0, "none of %" PRIu64 " samples could be decoded", n);
    return rc;
}

/* ------------------------------------------------------------------ writing */

/* Whole, or not at all: under another name first, and read back as a model where `model` says so. */
static int file_write(const char *path, const void *bytes, size_t size, bool model, struct hapi_err *err)
{
    char part[PATH_BYTES];
    struct hapi_model *m = NULL;
    int rc = HAPI_OK;

    if (snprintf(part, sizeof part, "%s.part", path) >= (int)sizeof part)
        return hapi_err_set(err, HAPI_EINVAL, 0, "--output: the path is too long");
    FILE *f = fopen(part, "wb");
    bool ok = f && fwrite(bytes, 1, size, f) == size;
    if (f && fclose(f))
        ok = false;
    if (!ok)
        rc = hapi_err_errno(err, errno, "cannot write %s", part);
    else if (model)
        rc = hapi_model_open(&m, part, NULL, err);
    if (!rc && rename(part, path))
        rc = hapi_err_errno(err, errno, "cannot rename %s", part);
    hapi_model_close(m);
    if (rc && f)
        unlink(part);
    return rc;
}

static int transform_write(const struct job *j, struct hapi_err *err)
{
    char path[PATH_BYTES], text[4096];
    const char *dot = strrchr(j->output, '.');
    size_t stem = dot && !strcmp(dot, ".onnx") ? (size_t)(dot - j->output) : strlen(j->output);
    int n = hapi_transform_text(&j->t, text, sizeof text);

    if (n < 0 || snprintf(path, sizeof path, "%.*s.transform.json", (int)stem, j->output) >= (int)sizeof path)
        return hapi_err_set(err, HAPI_EINVAL, 0, "--output: the path is too long");
    return file_write(path, text, (size_t)n, false, err);
}

static int model_write(struct job *j, struct hapi_err *err)
{
    const struct hapi_range *ranges;
    size_t n, size;
    void *bytes;
    int rc = hapi_calibration_ranges(j->calibration, j->share, &ranges, &n, err);

    if (!rc && !n)
        rc = hapi_err_set(err, HAPI_EUNSUPPORTED, 0, "no activation of it has a range");
    rc = rc ? rc : hapi_model_with_ranges(j->m, ranges, n, &bytes, &size, err);
    if (rc)
        return rc;
    rc = file_write(j->output, bytes, size, true, err);
    free(bytes);
    rc = rc ? rc : transform_write(j, err);
    if (!rc)
        printf("%s: ranges of %zu values from %" PRIu64 " samples of %s (%" PRIu64 " could not be decoded)\n",
               j->output, n, j->used, j->set->name, j->skipped);
    return rc;
}

static int run(struct job *j, struct hapi_err *err)
{
    int rc = hapi_model_open(&j->m, j->model, NULL, err);

    rc = rc ? rc : hapi_transform_load(&j->t, j->transform, j->model, err);
    rc = rc ? rc : data_open(j, err);
    rc = rc ? rc : plan_open(j, err);
    rc = rc ? rc : samples_run(j, err);
    rc = rc ? rc : model_write(j, err);
    hapi_calibration_free(j->calibration);
    hapi_decoder_free(j->decoder);
    hapi_plan_free(j->plan);
    for (size_t i = 0; j->out && i < j->n_out; i++)
        free(j->out[i]);
    free(j->out);
    free(j->image);
    free(j->jpeg);
    free(j->arena);
    hapi_model_close(j->m);
    hapi_store_close(j->store);
    hapi_loop_close(j->loop);
    return rc;
}

static bool samples_parse(struct job *j, const char *text)
{
    char *end;

    errno = 0;
    j->samples = strtoull(text, &end, 10);
    return *text >= '0' && *text <= '9' && !*end && !errno && j->samples && j->samples <= SAMPLES_MAX;
}

static bool share_parse(struct job *j, const char *text)
{
    char *end;

    j->share = strtod(text, &end);
    return *text && !*end && j->share >= 0.5 && j->share <= 1;
}

static int parse(struct job *j, int argc, char **argv)
{
    static const struct option options[] = {{"data", required_argument, NULL, 'd'},
                                            {"dataset", required_argument, NULL, 's'},
                                            {"samples", required_argument, NULL, 'n'},
                                            {"transform", required_argument, NULL, 't'},
                                            {"share", required_argument, NULL, 'p'},
                                            {"output", required_argument, NULL, 'o'},
                                            {NULL, 0, NULL, 0}};
    int c;

    optind = 1;
    opterr = 0;
    while ((c = getopt_long(argc, argv, ":", options, NULL)) != -1) {
        if (c == 'd')
            j->data = optarg;
        else if (c == 's')
            j->dataset = optarg;
        else if (c == 't')
            j->transform = optarg;
        else if (c == 'o')
            j->output = optarg;
        else if (c == 'n' && !samples_parse(j, optarg))
            return cmd_usage("calibrate", "--samples is a number from 1 to %d", SAMPLES_MAX);
        else if (c == 'p' && !share_parse(j, optarg))
            return cmd_usage("calibrate", "--share is a number from 0.5 to 1");
        else if (c == ':' || c == '?')
            return cmd_usage("calibrate", c == ':' ? "%s needs a value" : "unknown option %s",
                             argv[optind - 1]);
    }
    if (optind + 1 != argc || !j->data || !j->output)
        return cmd_usage("calibrate", "%s",
                         optind + 1 != argc ? "one model must be given"
                         : !j->data         ? "--data is missing"
                                            : "--output is missing");
    j->model = argv[optind];
    return CMD_OK;
}

int cmd_calibrate(int argc, char **argv)
{
    struct job j = {.samples = SAMPLES_DEFAULT, .share = 0.9999};
    struct hapi_err err = {0};
    int rc;

    for (int i = 1; i < argc; i++)
        if (!strcmp(argv[i], "--help") || !strcmp(argv[i], "-h")) {
            help();
            return CMD_OK;
        }
    rc = parse(&j, argc, argv);
    if (rc == CMD_OK && run(&j, &err)) {
        hapi_err_context(&err, "%s", j.model);
        rc = cmd_fail("calibrate", &err);
    }
    return rc;
}
