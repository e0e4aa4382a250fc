/*
 * A byte stream over a non-blocking socket, plain or TLS 1.3 with a pre-shared key. Private to transport/.
 * The loop's thread.
 */
#ifndef HAPI_TRANSPORT_TLS_H
#define HAPI_TRANSPORT_TLS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "control.h"
#include "err.h"

enum { HAPI_PSK_IDENTITY_MAX = 127, HAPI_PSK_KEY_MAX = 64, HAPI_PSK_KEY_MIN = 16 };

struct hapi_key {
    char identity[HAPI_PSK_IDENTITY_MAX + 1];
    uint8_t key[HAPI_PSK_KEY_MAX];
    size_t n;
};

/* NULL when no key has that identity. */
const struct hapi_key *hapi_keys_find(const struct hapi_keys *k, const void *identity, size_t n);
const struct hapi_key *hapi_keys_first(const struct hapi_keys *k);

struct ssl_ctx_st;
struct ssl_st;

/* One per listener or outgoing connection; keys must outlive it and its streams. */
struct hapi_tls {
    struct ssl_ctx_st *ctx;
    const struct hapi_keys *keys;
};
int hapi_tls_init(struct hapi_tls *t, const struct hapi_keys *keys, bool server, struct hapi_err *err);
void hapi_tls_fini(struct hapi_tls *t);

struct hapi_stream {
    int fd;
    struct ssl_st *ssl;         /* NULL: plain */
    bool want_write;            /* the last call must be repeated when the socket can be written */
    const struct hapi_key *key; /* after the handshake: whose */
};

enum { HAPI_STREAM_AGAIN = 1 };

/* *s has its fd; tls NULL (or without context): plain. */
int hapi_stream_start(struct hapi_stream *s, const struct hapi_tls *tls, bool server, struct hapi_err *err);
/* 0, HAPI_STREAM_AGAIN or an error. */
int hapi_stream_handshake(struct hapi_stream *s, struct hapi_err *err);
/* 0 and *got > 0, HAPI_STREAM_AGAIN, HAPI_ECLOSED at the end of the stream, or an error. */
int hapi_stream_read(struct hapi_stream *s, void *buf, size_t n, size_t *got, struct hapi_err *err);
int hapi_stream_write(struct hapi_stream *s, const void *buf, size_t n, size_t *put, struct hapi_err *err);
/* Bytes that have been taken off the socket but not been read: poll does not see them. */
bool hapi_stream_pending(const struct hapi_stream *s);
/* TLS: whether any byte has been taken off the socket. */
bool hapi_stream_heard(const struct hapi_stream *s);
/* Says that nothing more will be written. */
void hapi_stream_shutdown(struct hapi_stream *s);
/* Frees the TLS state and closes the socket. */
void hapi_stream_close(struct hapi_stream *s);

#endif
