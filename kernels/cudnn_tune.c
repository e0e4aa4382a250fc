#include "cudnn_tune.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cache.h"
#include "convert.h"
#include "cudnn_backend.h"
#include "cudnn_cache.h"
#include "gpu_memory.h"

/* RUNS: of a candidate, whose median counts. FILLS of a block of at least FILL_BYTES come before them: they
 * take longer than enqueuing the runs, so that the GPU goes from one run to the next and the CPU's part is
 * not measured. */
enum { RUNS = 7, FILLS = 16, FILL_BYTES = 32 << 20, FILL = 0x3c /* a small number in f16, bf16 and f32 */ };

/* What an engine may take beyond the first one's workspace: speed is not bought with other plans' memory. */
static const uint64_t WORKSPACE = 256 << 20;

static struct {
    struct hapi_cuda_device *device; /* held while tuning is on */
    void (*untuned)(const struct hapi_err *why);
    bool said;
    char class[128]; /* empty: off */
} tuning;

/* ------------------------------------------------------------------ one graph's candidates */

struct trial {
    struct hapi_cuda_device *d;
    const struct hapi_cudnn_graph *g;
    CUdeviceptr memory; /* the graph's tensors, workspace */
    uint64_t bytes;
    CUstream stream;
    CUevent events[RUNS + 1];
    cudnnBackendDescriptor_t pack;
};

static uint64_t tensor_bytes(const struct hapi_cudnn_tensor *t)
{
    int64_t last = 0;

    for (int i = 0; i < t->rank; i++)
        last += (t->dim[i] - 1) * t->stride[i];
    return (uint64_t)(last + 1) * hapi_dtype_size(t->dtype);
}

static uint64_t workspace_of(const struct hapi_cudnn_plan *p)
{
    return hapi_cudnn_plan_info_get(p).workspace;
}

static bool affordable(const struct hapi_cudnn_plan *first, const struct hapi_cudnn_plan *p)
{
    return workspace_of(p) <= workspace_of(first) || workspace_of(p) <= WORKSPACE;
}

static int memory_make(struct trial *t, struct hapi_cudnn_plan *const *plans, int n, struct hapi_err *err)
{
    struct hapi_cudnn_places at = {.n = 0};
    uint64_t offset[HAPI_CUDNN_TENSORS] = {0}, workspace = 0;

    for (int i = 0; i < t->g->n_tensors; i++) {
        offset[i] = t->bytes;
        if (!t->g->tensors[i].is_virtual && !t->g->tensors[i].by_value)
            t->bytes += hapi_gpu_round_up(tensor_bytes(&t->g->tensors[i]));
    }
    for (int i = 0; i < n; i++)
        if (affordable(plans[0], plans[i]) && workspace_of(plans[i]) > workspace)
            workspace = workspace_of(plans[i]);
    uint64_t tensors = t->bytes;
    t->bytes += hapi_gpu_round_up(workspace);
    t->bytes = t->bytes > FILL_BYTES ? t->bytes : FILL_BYTES;
    int rc = hapi_gpu_memory_take(t->d, t->bytes, "trying out engines", &t->memory, err);
    if (rc)
        return rc;
    for (int i = 0; i < t->g->n_tensors; i++)
        if (!t->g->tensors[i].is_virtual && !t->g->tensors[i].by_value) {
            at.uids[at.n] = t->g->tensors[i].uid;
            at.pointers[at.n++] = hapi_gpu_pointer(t->memory + offset[i]);
        }
    at.workspace = hapi_gpu_pointer(t->memory + tensors);
    return hapi_cudnn_pack_new(&t->pack, t->d->cudnn, t->g, &at, err);
}

static int trial_init(struct trial *t, struct hapi_cudnn_plan *const *plans, int n, struct hapi_err *err)
{
    const struct hapi_cuda *cu = t->d->cu;
    CUresult r = cu->StreamCreate(&t->stream, CU_STREAM_NON_BLOCKING);

    for (int i = 0; i <= RUNS && !r; i++)
        r = cu->EventCreate(&t->events[i], CU_EVENT_DEFAULT);
    if (r)
        return hapi_cuda_fail(cu, r, "trying out engines", err);
    cudnnStatus_t s = t->d->cudnn->SetStream(t->d->maker, (cudaStream_t)t->stream);
    if (s)
        return hapi_cudnn_fail(t->d->cudnn, s, "trying out engines", err);
    int rc = memory_make(t, plans, n, err);
    if (rc)
        return rc;
    r = cu->MemsetD8Async(t->memory, FILL, (size_t)t->bytes, t->stream);
    return r ? hapi_cuda_fail(cu, r, "trying out engines", err) : HAPI_OK;
}

static void trial_fini(struct trial *t)
{
    const struct hapi_cuda *cu = t->d->cu;

    if (t->stream)
        (void)cu->StreamSynchronize(t->stream);
    (void)t->d->cudnn->SetStream(t->d->maker, NULL);
    if (t->pack)
        (void)t->d->cudnn->BackendDestroyDescriptor(t->pack);
    hapi_gpu_memory_give(t->d, t->memory);
    for (int i = 0; i <= RUNS; i++)
        if (t->events[i])
            (void)cu->EventDestroy(t->events[i]);
    if (t->stream)
        (void)cu->StreamDestroy(t->stream);
}

static int by_value(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;

    return (x > y) - (x < y);
}

/* Everything of one candidate, one after the other. *s: what cuDNN says of running it. */
static CUresult enqueue(struct trial *t, cudnnBackendDescriptor_t plan, cudnnStatus_t *s)
{
    const struct hapi_cuda *cu = t->d->cu;
    CUresult r;

    *s = t->d->cudnn->BackendExecute(t->d->maker, plan, t->pack); /* its code is loaded now */
    r = *s ? CUDA_SUCCESS : cu->StreamSynchronize(t->stream);
    for (int i = 0; i < FILLS && !r && !*s; i++)
        r = cu->MemsetD8Async(t->memory, FILL, (size_t)t->bytes, t->stream);
    for (int i = 0; i <= RUNS && !r && !*s; i++) {
        if (i)
            *s = t->d->cudnn->BackendExecute(t->d->maker, plan, t->pack);
        if (!*s)
            r = cu->EventRecord(t->events[i], t->stream);
    }
    return r;
}

/* The median, in milliseconds; *s: cuDNN does not run it, which costs this candidate. */
static int time_of(struct trial *t, const struct hapi_cudnn_plan *p, float *ms, cudnnStatus_t *s,
                   struct hapi_err *err)
{
    const struct hapi_cuda *cu = t->d->cu;
    float each[RUNS];
    CUresult r = enqueue(t, hapi_cudnn_plan_descriptor(p), s), waited = cu->StreamSynchronize(t->stream);

    r = r ? r : waited;
    for (int i = 0; i < RUNS && !r && !*s; i++)
        r = cu->EventElapsedTime(&each[i], t->events[i], t->events[i + 1]);
    if (r)
        return hapi_cuda_fail(cu, r, t->g->name, err);
    if (!*s) {
        qsort(each, RUNS, sizeof *each, by_value);
        *ms = each[RUNS / 2];
    }
    return HAPI_OK;
}

/* struct hapi_cudnn_tuner: fastest. The context is current, the device's plans are locked. */
static int fastest(void *arg, const struct hapi_cudnn_graph *g, struct hapi_cudnn_plan *const *plans, int n,
                   int *best, struct hapi_err *err)
{
    struct trial t = {.d = arg, .g = g};
    cudnnStatus_t s = CUDNN_STATUS_SUCCESS, refused = CUDNN_STATUS_SUCCESS;
    int rc = trial_init(&t, plans, n, err), found = -1;
    float least = 0, ms = 0;

    for (int i = 0; i < n && !rc; i++) {
        if (!affordable(plans[0], plans[i]))
            continue;
        rc = time_of(&t, plans[i], &ms, &s, err);
        if (!rc && !s && (found < 0 || ms < least)) {
            least = ms;
            found = i;
        }
        refused = s ? s : refused;
    }
    if (!rc && found < 0) {
        (void)hapi_cudnn_fail(t.d->cudnn, refused, g->name, err);
        rc = err->code = HAPI_ESYS; /* not a word on other engines */
    }
    trial_fini(&t);
    if (!rc)
        *best = found;
    return rc;
}

static void untuned(void *arg, const struct hapi_err *why)
{
    (void)arg;
    if (!tuning.said)
        tuning.untuned(why);
    tuning.said = true;
}

/* ------------------------------------------------------------------ on and off */

static void tune_end(void)
{
    struct hapi_cuda_device *d = tuning.device;

    if (!d)
        return;
    hapi_cuda_plans_lock(d);
    hapi_cudnn_plans_tune(d->plans, NULL);
    hapi_cuda_plans_unlock(d);
    memset(&tuning, 0, sizeof tuning);
    hapi_cuda_device_put(d);
}

int hapi_cudnn_tune(void (*said)(const struct hapi_err *why), struct hapi_err *err)
{
    uint8_t whose[HAPI_CUDNN_OWNER + 32], hash[32];
    struct hapi_cuda_device *d;
    char folder[4096];

    tune_end();
    int rc = said ? hapi_cuda_device_get(&d, err) : HAPI_OK;
    if (rc || !said)
        return rc;
    bool keeps = hapi_cache_folder(folder, sizeof folder, "cudnn");
    hapi_cudnn_cache_owner(keeps ? folder : NULL, whose);
    memcpy(whose + HAPI_CUDNN_OWNER, hapi_cudnn_device_key(d->described), 32);
    hapi_sha256(hash, whose, sizeof whose);
    snprintf(tuning.class, sizeof tuning.class, "%s/tuned-%02x%02x%02x%02x", hapi_cudnn_class(), hash[0],
             hash[1], hash[2], hash[3]);
    tuning.device = d;
    tuning.untuned = said;
    const struct hapi_cudnn_tuner tuner = {.fastest = fastest, .untuned = untuned, .arg = d};
    hapi_cuda_plans_lock(d);
    hapi_cudnn_plans_tune(d->plans, &tuner);
    hapi_cuda_plans_unlock(d);
    return HAPI_OK;
}

const char *hapi_cudnn_tuned_class(void)
{
    return *tuning.class ? tuning.class : NULL;
}
