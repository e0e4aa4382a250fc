#include "measure.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "clock.h"
#include "convert.h"
#include "head.h"
#include "int8.h"

enum { ALIGN = 4096, RUNS = 3, RUNS_MOST = 12, PIECE = 16 << 20 };
#define VISIT_NS (30 * HAPI_NS_PER_MS)
#define LONG_S 0.2 /* a run that takes so long is not repeated within a visit */

/* ------------------------------------------------------------------ memory */

static void *aligned(size_t bytes)
{
    return aligned_alloc(ALIGN, (bytes + ALIGN) / ALIGN * ALIGN);
}

static float noise(uint32_t *state)
{
    *state = *state * 1664525u + 1013904223u;
    return (float)(*state >> 8) / (float)(1 << 24);
}

/* At least so much, what it held is lost; filled with numbers from 0 to 1, as activations are. */
static int grow(void **at, size_t *have, size_t bytes, bool fill)
{
    uint32_t state = 1;

    if (*have >= bytes && *at)
        return 0;
    free(*at);
    *have = 0;
    *at = aligned(bytes);
    if (!*at)
        return HAPI_ENOMEM;
    *have = bytes;
    for (size_t i = 0; fill && i < bytes / sizeof(float); i++)
        ((float *)*at)[i] = noise(&state);
    return 0;
}

void measure_close(struct measure *m)
{
    free(m->arena);
    for (int i = 0; i < HAPI_CUT_TENSORS_MAX; i++) {
        free(m->in[i]);
        free(m->out[i]);
    }
}

static int edges_grow(void **at, size_t *have, const struct hapi_tensor_desc *desc, size_t n, bool fill)
{
    int rc = n > HAPI_CUT_TENSORS_MAX ? HAPI_ETOOBIG : 0;

    for (size_t i = 0; i < n && !rc; i++) {
        size_t bytes;
        rc = hapi_tensor_bytes(&desc[i].shape, desc[i].dtype, &bytes);
        rc = rc ? rc : grow(&at[i], &have[i], bytes, fill);
    }
    return rc;
}

static int memory_for(struct measure *m, const struct hapi_plan *p, struct hapi_err *err)
{
    struct hapi_plan_memory need = hapi_plan_memory_get(p);
    const struct hapi_tensor_desc *in, *out;
    size_t n_in = hapi_plan_inputs(p, &in), n_out = hapi_plan_outputs(p, &out);
    int rc = grow(&m->arena, &m->arena_bytes, need.arena + need.scratch + 1, false);

    rc = rc ? rc : edges_grow(m->in, m->in_bytes, in, n_in, true);
    rc = rc ? rc : edges_grow(m->out, m->out_bytes, out, n_out, false);
    return rc ? hapi_err_set(err, rc, 0, "no memory to run a part of the network") : 0;
}

/* ------------------------------------------------------------------ plans */

static int run(struct measure *m, struct hapi_plan *p, double *seconds, struct hapi_err *err)
{
    int64_t since = hapi_clock_ns();
    int rc = hapi_plan_run(p, m->arena, (const void *const *)m->in, m->out, err);

    *seconds = 1e-9 * (double)(hapi_clock_ns() - since);
    return rc;
}

int measure_plan(struct measure *m, struct hapi_model *model, const struct hapi_plan_spec *spec,
                 struct series *s, struct hapi_err *err)
{
    struct hapi_plan *p;
    double seconds = 0;
    int rc = hapi_plan_new(&p, model, spec, err);

    if (rc)
        return rc;
    rc = memory_for(m, p, err);
    rc = rc ? rc : run(m, p, &seconds, err);
    int least = seconds < LONG_S ? RUNS : 1;
    int64_t until = hapi_clock_ns() + VISIT_NS;
    for (int i = 0; !rc && (i < least || (i < RUNS_MOST && hapi_clock_ns() < until)); i++) {
        rc = run(m, p, &seconds, err);
        if (!rc)
            series_add(s, seconds / (double)spec->batch);
    }
    hapi_plan_free(p);
    return rc;
}

struct lane { /* one of the threads that run at once */
    pthread_t thread;
    struct measure m;
    struct hapi_plan *plan;
    const struct hapi_topology *topology;
    int core, rc;
    _Atomic int *missing; /* of those that are to begin together */
    struct series s;
};

static void *lane_run(void *arg)
{
    struct lane *l = arg;
    double seconds = 0;

    hapi_topology_pin(l->topology, l->core, 1, NULL); /* where it cannot, the kernel places it */
    l->rc = run(&l->m, l->plan, &seconds, NULL);
    atomic_fetch_sub(l->missing, 1);
    while (atomic_load(l->missing) > 0)
        sched_yield();
    for (int i = 0, n = seconds < LONG_S ? RUNS : 1; i < n && !l->rc; i++) {
        l->rc = run(&l->m, l->plan, &seconds, NULL);
        series_add(&l->s, seconds);
    }
    return NULL;
}

/* The median over all lanes of one run, with k of them at once. */
static int lanes_run(struct lane *lanes, int k, double *median)
{
    _Atomic int missing = k;
    struct series all = {0};
    int rc = 0, started = 0;

    for (; started < k && !rc; started++) {
        lanes[started].missing = &missing;
        lanes[started].s.n = 0;
        rc = pthread_create(&lanes[started].thread, NULL, lane_run, &lanes[started]) ? HAPI_ESYS : 0;
    }
    if (rc) {
        started--;
        atomic_store(&missing, 0);
    }
    for (int i = 0; i < started; i++) {
        pthread_join(lanes[i].thread, NULL);
        rc = rc ? rc : lanes[i].rc;
        for (uint32_t v = 0; v < lanes[i].s.n; v++)
            series_add(&all, lanes[i].s.v[v]);
    }
    *median = series_median(&all);
    return rc;
}

int measure_contention(struct hapi_model *model, const struct hapi_plan_spec *spec,
                       const struct hapi_topology *topology, int cores, struct series *s,
                       struct hapi_err *err)
{
    struct lane *lanes = cores > 1 ? calloc((size_t)cores, sizeof *lanes) : NULL;
    double alone, together;
    int rc = cores > 1 && !lanes ? hapi_err_set(err, HAPI_ENOMEM, 0, "no memory for %d threads", cores) : 0;

    for (int i = 0; i < cores && lanes && !rc; i++) {
        lanes[i].topology = topology;
        lanes[i].core = i;
        rc = hapi_plan_new(&lanes[i].plan, model, spec, err);
        rc = rc ? rc : memory_for(&lanes[i].m, lanes[i].plan, err);
    }
    if (!rc && lanes) {
        rc = lanes_run(lanes, 1, &alone);
        rc = rc ? rc : lanes_run(lanes, cores, &together);
        if (rc)
            hapi_err_set(err, rc, 0, "the network cannot run on %d threads: %s", cores, hapi_err_meaning(rc));
        else
            series_add(s, (together / alone - 1) / (cores - 1));
    } else if (!rc) {
        series_add(s, 0);
    }
    for (int i = 0; lanes && i < cores; i++) {
        hapi_plan_free(lanes[i].plan);
        measure_close(&lanes[i].m);
    }
    free(lanes);
    return rc;
}

/* ------------------------------------------------------------------ decode */

int measure_decode(const struct hapi_transform *t, const struct hapi_image *images, uint32_t n,
                   struct series *s, struct hapi_err *err)
{
    struct hapi_decoder *d = NULL;
    int rc = hapi_decoder_new(&d, 0, err);
    float *to = rc ? NULL : aligned((size_t)t->crop_h * (size_t)t->crop_w * 3 * sizeof *to);

    if (!rc && !to)
        rc = hapi_err_set(err, HAPI_ENOMEM, 0, "no memory to decode");
    if (!rc)
        (void)hapi_decode(d, t, images[0].data, images[0].bytes, to, NULL);
    int64_t since = hapi_clock_ns();
    for (uint32_t i = 0; i < n && !rc; i++)
        (void)hapi_decode(d, t, images[i].data, images[i].bytes, to, NULL);
    if (!rc)
        series_add(s, 1e-9 * (double)(hapi_clock_ns() - since) / n);
    free(to);
    hapi_decoder_free(d);
    return rc;
}

/* ------------------------------------------------------------------ wire dtypes */

static int convert(bool pack, void *rows, float *x, const struct hapi_i8 *form, enum hapi_dtype wire,
                   size_t elements, uint32_t batch)
{
    if (wire == HAPI_I8 && pack)
        hapi_i8_pack(rows, x, form, batch, NULL);
    else if (wire == HAPI_I8)
        return hapi_i8_unpack(x, rows, form, batch, NULL);
    else if (pack)
        return hapi_convert(rows, wire, x, HAPI_F32, elements * batch);
    else
        return hapi_convert(x, HAPI_F32, rows, wire, elements * batch);
    return 0;
}

int measure_convert(struct measure *m, const struct hapi_cut *cut, enum hapi_dtype wire, uint32_t batch,
                    struct series *pack, struct series *unpack, struct hapi_err *err)
{
    struct hapi_i8 form = {0};
    uint64_t row;
    int64_t n;
    int rc = cut->n_tensors == 1 ? hapi_wire_row(&cut->tensors[0].shape, wire, &row) : HAPI_EUNSUPPORTED;

    rc = rc ? rc : hapi_shape_elements(&cut->tensors[0].shape, &n);
    rc = rc || wire != HAPI_I8 ? rc : hapi_i8_form(&form, &cut->tensors[0].shape);
    if (rc)
        return hapi_err_set(err, HAPI_EUNSUPPORTED, 0, "cut %s cannot travel so", cut->id);
    size_t bytes = (size_t)n * sizeof(float);
    while (batch > 1 && batch * bytes > PIECE) /* as much as is in flight at most */
        batch /= 2;
    if (grow(&m->in[0], &m->in_bytes[0], batch * bytes, true) ||
        grow(&m->out[0], &m->out_bytes[0], batch * row, false))
        return hapi_err_set(err, HAPI_ENOMEM, 0, "no memory to convert");
    for (int i = 0; i <= 2 * RUNS + 1 && !rc; i++) { /* to and fro; the first of each warms up */
        int64_t since = hapi_clock_ns();
        rc = convert(i % 2 == 0, m->out[0], m->in[0], &form, wire, (size_t)n, batch);
        if (i > 1)
            series_add(i % 2 ? unpack : pack, 1e-9 * (double)(hapi_clock_ns() - since) / batch);
    }
    return rc ? hapi_err_set(err, rc, 0, "cut %s cannot be converted", cut->id) : 0;
}

/* ------------------------------------------------------------------ training */

int measure_train(size_t width, uint32_t classes, uint32_t batch, struct series *s, struct hapi_err *err)
{
    struct head_options o = {.width = width, .classes = classes, .batch = batch, .adam = 1, .lr = 0.001f};
    float *x = aligned(batch * width * sizeof *x);
    const float **rows = calloc(batch, sizeof *rows);
    uint32_t *labels = calloc(batch, sizeof *labels), state = 1;
    struct head *h = NULL;
    double loss;
    int rc = x && rows && labels ? head_new(&h, &o, err)
                                 : hapi_err_set(err, HAPI_ENOMEM, 0, "no memory for a training batch");

    for (uint32_t i = 0; i < batch && !rc; i++) {
        rows[i] = x + i * width;
        labels[i] = i % classes;
        for (size_t k = 0; k < width; k++)
            x[i * width + k] = noise(&state);
    }
    if (!rc)
        head_observe(h, rows, batch);
    for (int i = 0; i <= RUNS && !rc; i++) {
        int64_t since = hapi_clock_ns();
        rc = head_train(h, rows, labels, batch, &loss, err);
        if (i && !rc)
            series_add(s, 1e-9 * (double)(hapi_clock_ns() - since) / batch);
    }
    head_free(h);
    free(labels);
    free(rows);
    free(x);
    return rc;
}
