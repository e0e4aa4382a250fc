/* The back ends of this build, and what may be asked of one by its name. */
#include <string.h>

#include "kernels_ops.h"

static const struct hapi_backend_ops *const backends[] = {
    &hapi_backend_ref,
#if HAPI_HAVE_ONEDNN
    &hapi_backend_onednn,
#endif
#if HAPI_HAVE_CUDNN
    &hapi_backend_cudnn,
#endif
};

const struct hapi_backend_ops *hapi_backend_find(const char *name)
{
    for (size_t i = 0; name && i < sizeof backends / sizeof *backends; i++)
        if (!strcmp(backends[i]->name, name))
            return backends[i];
    return NULL;
}

const char *hapi_numeric_class(const char *backend)
{
    const struct hapi_backend_ops *ops = hapi_backend_find(backend);
    return ops ? ops->numeric_class() : NULL;
}

const char *hapi_backend_choose(const char *name, struct hapi_err *why)
{
    const struct hapi_backend_ops *gpu = hapi_backend_find("cudnn");

    if (!name || strcmp(name, "auto"))
        return name;
    if (gpu && !gpu->ready(why))
        return gpu->name;
    if (!gpu)
        (void)hapi_err_set(why, HAPI_EUNSUPPORTED, 0, "this build has no cuDNN");
    return hapi_backend_find("onednn") ? "onednn" : "ref";
}

int hapi_backend_none(const char *name, struct hapi_err *err)
{
    return hapi_err_set(err, HAPI_EINVAL, 0, "no back end `%s` (built: ref%s%s)", name ? name : "",
                        hapi_backend_find("onednn") ? ", onednn" : "",
                        hapi_backend_find("cudnn") ? ", cudnn" : "");
}

int hapi_backend_ready(const char *name, struct hapi_err *err)
{
    const struct hapi_backend_ops *ops = hapi_backend_find(name);

    if (!ops)
        return hapi_backend_none(name, err);
    return ops->ready ? ops->ready(err) : HAPI_OK;
}

int hapi_backend_tune(const char *name, void (*untuned)(const struct hapi_err *why), struct hapi_err *err)
{
    const struct hapi_backend_ops *ops = hapi_backend_find(name);

    if (!ops)
        return hapi_backend_none(name, err);
    if (!ops->tune)
        return hapi_err_set(err, HAPI_EUNSUPPORTED, 0, "back end %s has no engines to choose from: a GPU has",
                            name);
    return ops->tune(untuned, err);
}

int hapi_backend_pin(const char *name, void *p, size_t bytes, struct hapi_err *err)
{
    const struct hapi_backend_ops *ops = hapi_backend_find(name);

    return ops && ops->pin ? ops->pin(p, bytes, err) : HAPI_OK;
}

void hapi_backend_unpin(const char *name, void *p)
{
    const struct hapi_backend_ops *ops = hapi_backend_find(name);

    if (ops && ops->unpin)
        ops->unpin(p);
}

int hapi_backend_reserve(const char *name, uint64_t bytes, struct hapi_err *err)
{
    const struct hapi_backend_ops *ops = hapi_backend_find(name);

    return ops && ops->reserve ? ops->reserve(bytes, err) : HAPI_OK;
}

void hapi_backend_release(const char *name)
{
    const struct hapi_backend_ops *ops = hapi_backend_find(name);

    if (ops && ops->release)
        ops->release();
}

bool hapi_backend_usage(const char *name, struct hapi_device_usage *out)
{
    const struct hapi_backend_ops *ops = hapi_backend_find(name);

    return ops && ops->usage && ops->usage(out);
}

int hapi_backend_device_memory(const char *name, size_t bytes, struct hapi_device_memory *out,
                               struct hapi_err *err)
{
    const struct hapi_backend_ops *ops = hapi_backend_find(name);

    if (!ops || !ops->device_memory)
        return hapi_err_set(err, HAPI_EUNSUPPORTED, 0, "back end %s computes in the host's memory", name);
    return ops->device_memory(bytes, out, err);
}

void hapi_backend_device_memory_free(const char *name, struct hapi_device_memory *m)
{
    const struct hapi_backend_ops *ops = hapi_backend_find(name);

    if (ops && ops->device_memory_free)
        ops->device_memory_free(m);
}

bool hapi_backend_converts(const char *name)
{
    const struct hapi_backend_ops *ops = hapi_backend_find(name);

    return ops && ops->ready;
}

bool hapi_backend_computes(const char *backend, enum hapi_dtype dtype)
{
    const struct hapi_backend_ops *ops = hapi_backend_find(backend);

    if (ops && ops->ready)
        return (dtype == HAPI_F32 || dtype == HAPI_F16 || dtype == HAPI_BF16) && !ops->ready(NULL);
    if (dtype == HAPI_F32)
        return ops != NULL;
    return ops && ops != &hapi_backend_ref &&
           ((dtype == HAPI_BF16 && hapi_cpu_has_bf16(NULL)) || (dtype == HAPI_I8 && hapi_cpu_has_int8()));
}
