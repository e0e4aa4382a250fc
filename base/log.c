#include "log.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

static _Atomic int threshold = HAPI_LOG_INFO;

void hapi_log_level_set(enum hapi_log_level level)
{
    atomic_store(&threshold, (int)level);
}

char *hapi_log_quote(char *buf, size_t size, const char *s)
{
    size_t n = 0;

    if (size < 3) {
        if (size)
            buf[0] = '\0';
        return buf;
    }
    buf[n++] = '"';
    for (; *s && n + 3 < size; s++) {
        if (*s == '"' || *s == '\\')
            buf[n++] = '\\';
        buf[n++] = (unsigned char)*s < 0x20 || *s == 0x7f ? '?' : *s;
    }
    buf[n++] = '"';
    buf[n] = '\0';
    return buf;
}

void hapi_log(enum hapi_log_level level, const char *msg, const char *fmt, ...)
{
    static const char *const names[] = {"debug", "info", "warn", "error"};
    char line[1024];
    struct timespec t;
    struct tm tm;
    va_list ap;

    if ((int)level < atomic_load(&threshold))
        return;
    clock_gettime(CLOCK_REALTIME, &t);
    gmtime_r(&t.tv_sec, &tm);
    size_t n = strftime(line, sizeof line, "ts=%Y-%m-%dT%H:%M:%S", &tm);
    n += (size_t)snprintf(line + n, sizeof line - n, ".%03ldZ level=%s msg=\"%s\"%s", t.tv_nsec / 1000000,
                          names[level], msg, *fmt ? " " : "");
    va_start(ap, fmt);
    int k = vsnprintf(line + n, sizeof line - n, fmt, ap);
    va_end(ap);
    n += k < 0 ? 0 : (size_t)k;
    if (n > sizeof line - 2)
        n = sizeof line - 2;
    line[n++] = '\n';
    /* One write per line: lines of several threads do not mix. */
    if (write(STDERR_FILENO, line, n) < 0)
        return;
}
