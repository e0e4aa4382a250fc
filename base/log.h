/*
 * Logging for the programs and the runtime (libraries return errors instead). One logfmt line on stderr:
 *
 *     ts=2026-11-01T10:00:00.123Z level=info msg="session open" peer=127.0.0.1:40112
 *
 * The caller writes the key=value pairs; quote free text with hapi_log_quote(). Any thread.
 */
#ifndef HAPI_BASE_LOG_H
#define HAPI_BASE_LOG_H

#include <stddef.h>

enum hapi_log_level { HAPI_LOG_DEBUG, HAPI_LOG_INFO, HAPI_LOG_WARN, HAPI_LOG_ERROR };

/* Messages below `level` are dropped; the default is HAPI_LOG_INFO. */
void hapi_log_level_set(enum hapi_log_level level);

/* hapi_log(HAPI_LOG_INFO, "session open", "peer=%s", addr); fmt may be "". */
void hapi_log(enum hapi_log_level level, const char *msg, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/* Writes s as a quoted logfmt value into buf (control characters and quotes escaped); returns buf. */
char *hapi_log_quote(char *buf, size_t size, const char *s);

#endif
