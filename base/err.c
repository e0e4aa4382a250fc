#include "err.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

const char *hapi_err_name(int code)
{
    switch (code) {
    case 0:
        return "OK";
#define X(name, value, text)                                                                                 \
    case name:                                                                                               \
        return #name;
        HAPI_ERRORS(X)
#undef X
    default:
        return "HAPI_E?";
    }
}

const char *hapi_err_meaning(int code)
{
    switch (code) {
    case 0:
        return "ok";
#define X(name, value, text)                                                                                 \
    case name:                                                                                               \
        return text;
        HAPI_ERRORS(X)
#undef X
    default:
        return "unknown error";
    }
}

void hapi_err_fill(struct hapi_err *e, int code, long sys, const char *fmt, ...)
{
    if (e) {
        va_list ap;
        e->code = code;
        e->sys = sys;
        va_start(ap, fmt);
        vsnprintf(e->text, sizeof e->text, fmt, ap);
        va_end(ap);
    }
}

int hapi_err_context(struct hapi_err *e, const char *fmt, ...)
{
    char head[HAPI_ERR_TEXT], old[HAPI_ERR_TEXT];
    va_list ap;

    if (!e)
        return HAPI_EINVAL;
    va_start(ap, fmt);
    vsnprintf(head, sizeof head, fmt, ap);
    va_end(ap);
    memcpy(old, e->text, sizeof old);
    old[sizeof old - 1] = '\0';
    size_t n = strnlen(head, sizeof head - 3), tail = sizeof e->text - 1 - n - 2;
    memcpy(e->text, head, n);
    memcpy(e->text + n, ": ", 2);
    tail = strnlen(old, tail);
    memcpy(e->text + n + 2, old, tail);
    e->text[n + 2 + tail] = '\0';
    return e->code;
}

void hapi_err_fill_errno(struct hapi_err *e, int err, const char *fmt, ...)
{
    if (e) {
        va_list ap;
        char why[96];
        e->code = HAPI_ESYS;
        e->sys = err;
        va_start(ap, fmt);
        vsnprintf(e->text, sizeof e->text, fmt, ap);
        va_end(ap);
        size_t n = strnlen(e->text, sizeof e->text - 1);
        snprintf(e->text + n, sizeof e->text - n, ": %s", strerror_r(err, why, sizeof why));
    }
}
