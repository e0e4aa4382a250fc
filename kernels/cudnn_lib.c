#include "cudnn_lib.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

enum { VERSION_MIN = 90800 }; /* the first whose plans are made for a device that is only described */

static pthread_once_t once = PTHREAD_ONCE_INIT;
static struct hapi_cudnn_lib library;
static int result;
static struct hapi_err why;

static void load(void)
{
    void *so = dlopen("libcudnn.so.9", RTLD_NOW | RTLD_LOCAL);

    if (!so) {
        result =
            hapi_err_set(&why, HAPI_EUNSUPPORTED, 0,
                         "no cuDNN here (%s): install cuDNN 9 where the dynamic linker finds it", dlerror());
        return;
    }
#define X(ret, name, parameters)                                                                             \
    {                                                                                                        \
        void *f = dlsym(so, "cudnn" #name);                                                                  \
        if (!f) {                                                                                            \
            result = hapi_err_set(&why, HAPI_EUNSUPPORTED, 0, "libcudnn.so.9 has no cudnn" #name);           \
            return;                                                                                          \
        }                                                                                                    \
        memcpy(&library.name, &f, sizeof f);                                                                 \
    }
    HAPI_CUDNN_CALLS(X)
#undef X
    if (library.GetVersion() < VERSION_MIN)
        result = hapi_err_set(&why, HAPI_EUNSUPPORTED, 0, "cuDNN %zu is too old: %d or later is needed",
                              library.GetVersion(), VERSION_MIN);
}

int hapi_cudnn_lib_get(const struct hapi_cudnn_lib **out, struct hapi_err *err)
{
    pthread_once(&once, load);
    if (result)
        return hapi_err_set(err, result, why.sys, "%s", why.text);
    *out = &library;
    return HAPI_OK;
}

/* The last line says what; those before it repeat it from call to call. */
static const char *last_line(char *text)
{
    size_t n = strlen(text);

    while (n && (text[n - 1] == '\n' || text[n - 1] == ' '))
        text[--n] = 0;
    char *line = strrchr(text, '\n');
    return line ? line + 1 : text;
}

int hapi_cudnn_fail(const struct hapi_cudnn_lib *lib, cudnnStatus_t status, const char *what,
                    struct hapi_err *err)
{
    char text[2048] = "";
    int code = status >= 3000 && status < 4000 ? HAPI_EUNSUPPORTED : HAPI_ESYS;

    lib->GetLastErrorString(text, sizeof text);
    return hapi_err_set(err, code, (long)status, "%s: cuDNN says %d, %.300s", what, (int)status,
                        last_line(text));
}
