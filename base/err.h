/*
 * Errors. Every fallible call returns 0 or a negative HAPI_E* code. Slow-path calls also take a last
 * argument `struct hapi_err *` (may be NULL): the layer that sees the cause fills it once with
 * hapi_err_set(), callers put what they know in front with hapi_err_context().
 *
 * A text names the file, node or sample, the cause, and where it helps what to do.
 * Thread safety: a struct hapi_err belongs to one thread; the functions share no state.
 */
#ifndef HAPI_BASE_ERR_H
#define HAPI_BASE_ERR_H

/* One line per error: X(NAME, value on the wire, what it means). Values never change: they travel. */
#define HAPI_ERRORS(X)                                                                                       \
    X(HAPI_EINVAL, 1, "invalid argument or value")                                                           \
    X(HAPI_ENOMEM, 2, "out of memory, or over a memory bound")                                               \
    X(HAPI_ESYS, 3, "system call failed")                                                                    \
    X(HAPI_ENOENT, 4, "no such object, dataset, tensor or model")                                            \
    X(HAPI_EFORMAT, 5, "malformed data")                                                                     \
    X(HAPI_EUNSUPPORTED, 6, "not supported")                                                                 \
    X(HAPI_EPROTO, 7, "peer broke the protocol")                                                             \
    X(HAPI_EVERSION, 8, "no protocol version in common")                                                     \
    X(HAPI_EAUTH, 9, "not authorised")                                                                       \
    X(HAPI_ETIMEDOUT, 10, "deadline passed")                                                                 \
    X(HAPI_ECLOSED, 11, "connection or service closed")                                                      \
    X(HAPI_EBUSY, 12, "resource busy")                                                                       \
    X(HAPI_ESTALE, 13, "object changed: version or digest differs")                                          \
    X(HAPI_ECORRUPT, 14, "checksum mismatch")                                                                \
    X(HAPI_EDECODE, 15, "sample cannot be decoded")                                                          \
    X(HAPI_ETOOBIG, 16, "larger than a stated limit")                                                        \
    X(HAPI_ECANCELED, 17, "cancelled")                                                                       \
    X(HAPI_ETRANSPORT, 18, "transport failed")

enum hapi_code {
    HAPI_OK = 0,
#define X(name, value, text) name = -(value),
    HAPI_ERRORS(X)
#undef X
};

#define HAPI_ERR_TEXT 512

struct hapi_err {
    int code;                 /* 0 or HAPI_E* */
    long sys;                 /* errno, fi_errno, wc status, dnnl_status; 0 when there is none */
    char text[HAPI_ERR_TEXT]; /* for a person; always terminated */
};

/* Name ("HAPI_EINVAL") and meaning of a code; "HAPI_E?" and "unknown error" for others. Static strings. */
const char *hapi_err_name(int code);
const char *hapi_err_meaning(int code);

/* Fill *e (may be NULL) and give code, so that `return hapi_err_set(e, HAPI_EINVAL, 0, "...")` works: a
 * macro, so that compilers and analyzers see that it is not 0. `code` is evaluated twice. */
static inline int hapi_err_pass(int code) /* a value that may go unused */
{
    return code;
}

#define hapi_err_set(e, code, sys, ...) (hapi_err_fill((e), (code), (sys), __VA_ARGS__), hapi_err_pass(code))
void hapi_err_fill(struct hapi_err *e, int code, long sys, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));

/* Put "context: " in front of the text; returns e->code (or HAPI_EINVAL when e is NULL). */
int hapi_err_context(struct hapi_err *e, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* HAPI_ESYS with errno's text appended to the message: "cannot open x: No such file or directory". */
#define hapi_err_errno(e, err, ...) (hapi_err_fill_errno((e), (err), __VA_ARGS__), hapi_err_pass(HAPI_ESYS))
void hapi_err_fill_errno(struct hapi_err *e, int err, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

#endif
