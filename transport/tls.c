#include "tls.h"

#include <errno.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* TLS_AES_128_GCM_SHA256: the one cipher that RFC 8446 makes mandatory, and whose hash fits any PSK. */
static const unsigned char cipher_id[] = {0x13, 0x01};

/* ---- a socket BIO that never raises SIGPIPE (OpenSSL's own uses write()) ---- */

static int bio_write(BIO *b, const char *data, int n)
{
    const struct hapi_stream *s = BIO_get_data(b);
    ssize_t put = send(s->fd, data, (size_t)n, MSG_NOSIGNAL);

    BIO_clear_retry_flags(b);
    if (put < 0 && (errno == EAGAIN || errno == EINTR))
        BIO_set_retry_write(b);
    return (int)put;
}

static int bio_read(BIO *b, char *data, int n)
{
    const struct hapi_stream *s = BIO_get_data(b);
    ssize_t got = recv(s->fd, data, (size_t)n, 0);

    BIO_clear_retry_flags(b);
    if (got < 0 && (errno == EAGAIN || errno == EINTR))
        BIO_set_retry_read(b);
    if (got == 0)
        BIO_set_flags(b, BIO_FLAGS_IN_EOF);
    return (int)got;
}

static long bio_ctrl(BIO *b, int cmd, long num, void *ptr)
{
    (void)num;
    (void)ptr;
    switch (cmd) {
    case BIO_CTRL_FLUSH:
        return 1;
    case BIO_CTRL_EOF:
        return BIO_test_flags(b, BIO_FLAGS_IN_EOF) != 0;
    default:
        return 0;
    }
}

static int bio_create(BIO *b)
{
    BIO_set_init(b, 1);
    return 1;
}

static BIO *bio_new(struct hapi_stream *s)
{
    /* Made once for the process and never freed: OpenSSL's own methods are static too. */
    static BIO_METHOD *method;

    if (!method) {
        BIO_METHOD *m = BIO_meth_new(BIO_get_new_index() | BIO_TYPE_SOURCE_SINK, "hapi socket");
        if (!m || !BIO_meth_set_write(m, bio_write) || !BIO_meth_set_read(m, bio_read) ||
            !BIO_meth_set_ctrl(m, bio_ctrl) || !BIO_meth_set_create(m, bio_create)) {
            BIO_meth_free(m);
            return NULL;
        }
        BIO_METHOD *none = NULL;
        if (!__atomic_compare_exchange_n(&method, &none, m, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
            BIO_meth_free(m);
    }
    BIO *b = BIO_new(method);
    if (b)
        BIO_set_data(b, s);
    return b;
}

/* ---- pre-shared keys ---- */

static SSL_SESSION *psk_session(SSL *ssl, const struct hapi_key *k)
{
    const SSL_CIPHER *cipher = SSL_CIPHER_find(ssl, cipher_id);
    SSL_SESSION *sess = SSL_SESSION_new();

    if (sess && cipher && SSL_SESSION_set1_master_key(sess, k->key, k->n) &&
        SSL_SESSION_set_cipher(sess, cipher) && SSL_SESSION_set_protocol_version(sess, TLS1_3_VERSION))
        return sess;
    SSL_SESSION_free(sess);
    return NULL;
}

static int psk_server(SSL *ssl, const unsigned char *identity, size_t n, SSL_SESSION **sess)
{
    struct hapi_stream *s = SSL_get_app_data(ssl);
    const struct hapi_tls *t = SSL_CTX_get_app_data(SSL_get_SSL_CTX(ssl));

    *sess = NULL;
    s->key = hapi_keys_find(t->keys, identity, n);
    if (!s->key)
        return 1; /* unknown: the handshake then fails for want of a certificate */
    *sess = psk_session(ssl, s->key);
    return *sess != NULL;
}

static int psk_client(SSL *ssl, const EVP_MD *md, const unsigned char **id, size_t *n, SSL_SESSION **sess)
{
    struct hapi_stream *s = SSL_get_app_data(ssl);
    const struct hapi_tls *t = SSL_CTX_get_app_data(SSL_get_SSL_CTX(ssl));

    *sess = NULL;
    *id = NULL;
    *n = 0;
    if (md && EVP_MD_get_type(md) != NID_sha256)
        return 1;
    s->key = hapi_keys_first(t->keys);
    *sess = psk_session(ssl, s->key);
    *id = (const unsigned char *)s->key->identity;
    *n = strlen(s->key->identity);
    return *sess != NULL;
}

static int tls_error(struct hapi_err *err, int code, const char *what)
{
    unsigned long e = ERR_peek_error();
    const char *why = e ? ERR_reason_error_string(e) : NULL;

    return hapi_err_set(err, code, (long)ERR_GET_REASON(e), "%s: %s", what, why ? why : "unknown reason");
}

int hapi_tls_init(struct hapi_tls *t, const struct hapi_keys *keys, bool server, struct hapi_err *err)
{
    *t = (struct hapi_tls){.keys = keys};
    if (!keys)
        return 0;
    ERR_clear_error();
    t->ctx = SSL_CTX_new(server ? TLS_server_method() : TLS_client_method());
    if (!t->ctx || !SSL_CTX_set_min_proto_version(t->ctx, TLS1_3_VERSION) ||
        !SSL_CTX_set_max_proto_version(t->ctx, TLS1_3_VERSION) ||
        !SSL_CTX_set_ciphersuites(t->ctx, "TLS_AES_128_GCM_SHA256") || !SSL_CTX_set_num_tickets(t->ctx, 0)) {
        int rc = tls_error(err, HAPI_EUNSUPPORTED, "cannot set up TLS 1.3");
        hapi_tls_fini(t);
        return rc;
    }
    SSL_CTX_set_options(t->ctx, SSL_OP_NO_TICKET);
    SSL_CTX_set_session_cache_mode(t->ctx, SSL_SESS_CACHE_OFF);
    SSL_CTX_set_mode(t->ctx, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
    SSL_CTX_set_app_data(t->ctx, t);
    /* Without a certificate only the pre-shared key can prove the peer; a client must insist itself. */
    SSL_CTX_set_verify(t->ctx, server ? SSL_VERIFY_NONE : SSL_VERIFY_PEER, NULL);
    if (server)
        SSL_CTX_set_psk_find_session_callback(t->ctx, psk_server);
    else
        SSL_CTX_set_psk_use_session_callback(t->ctx, psk_client);
    return 0;
}

void hapi_tls_fini(struct hapi_tls *t)
{
    SSL_CTX_free(t->ctx);
    t->ctx = NULL;
}

/* ---- the stream ---- */

int hapi_stream_start(struct hapi_stream *s, const struct hapi_tls *tls, bool server, struct hapi_err *err)
{
    s->ssl = NULL;
    s->want_write = false;
    s->key = NULL;
    if (!tls || !tls->ctx)
        return 0;
    ERR_clear_error();
    SSL *ssl = SSL_new(tls->ctx);
    BIO *bio = ssl ? bio_new(s) : NULL;
    if (!bio) {
        SSL_free(ssl);
        return hapi_err_set(err, HAPI_ENOMEM, 0, "no memory for a TLS connection");
    }
    SSL_set_bio(ssl, bio, bio);
    SSL_set_app_data(ssl, s);
    if (server)
        SSL_set_accept_state(ssl);
    else
        SSL_set_connect_state(ssl);
    s->ssl = ssl;
    return 0;
}

/* What a failed SSL call means. */
static int ssl_outcome(struct hapi_stream *s, int rc, const char *what, int code, struct hapi_err *err)
{
    int e = errno, why = SSL_get_error(s->ssl, rc);

    s->want_write = why == SSL_ERROR_WANT_WRITE;
    switch (why) {
    case SSL_ERROR_WANT_READ:
    case SSL_ERROR_WANT_WRITE:
        return HAPI_STREAM_AGAIN;
    case SSL_ERROR_ZERO_RETURN:
        return hapi_err_set(err, HAPI_ECLOSED, 0, "the peer closed the connection");
    case SSL_ERROR_SYSCALL:
        if (e)
            return hapi_err_errno(err, e, "%s", what);
        return hapi_err_set(err, HAPI_ECLOSED, 0, "the peer closed the connection");
    default:
        if (ERR_GET_REASON(ERR_peek_error()) == SSL_R_UNEXPECTED_EOF_WHILE_READING)
            return hapi_err_set(err, HAPI_ECLOSED, 0, "the connection was cut off");
        return tls_error(err, code, what);
    }
}

int hapi_stream_handshake(struct hapi_stream *s, struct hapi_err *err)
{
    if (!s->ssl)
        return 0;
    ERR_clear_error();
    errno = 0;
    int rc = SSL_do_handshake(s->ssl);
    if (rc != 1)
        return ssl_outcome(s, rc, "TLS handshake failed (do both sides have the same key?)", HAPI_EAUTH, err);
    s->want_write = false;
    /* A handshake without our key would have proved nothing. */
    if (!SSL_session_reused(s->ssl) || !s->key)
        return hapi_err_set(err, HAPI_EAUTH, 0, "TLS handshake did not use the pre-shared key");
    return 0;
}

int hapi_stream_read(struct hapi_stream *s, void *buf, size_t n, size_t *got, struct hapi_err *err)
{
    if (s->ssl) {
        ERR_clear_error();
        errno = 0;
        int rc = SSL_read_ex(s->ssl, buf, n, got);
        return rc == 1 ? 0 : ssl_outcome(s, rc, "cannot receive", HAPI_EPROTO, err);
    }
    ssize_t rc = recv(s->fd, buf, n, 0);
    if (rc > 0) {
        *got = (size_t)rc;
        return 0;
    }
    if (rc == 0)
        return hapi_err_set(err, HAPI_ECLOSED, 0, "the peer closed the connection");
    if (errno == EAGAIN || errno == EINTR)
        return HAPI_STREAM_AGAIN;
    return hapi_err_errno(err, errno, "cannot receive");
}

int hapi_stream_write(struct hapi_stream *s, const void *buf, size_t n, size_t *put, struct hapi_err *err)
{
    if (s->ssl) {
        ERR_clear_error();
        errno = 0;
        int rc = SSL_write_ex(s->ssl, buf, n, put);
        return rc == 1 ? 0 : ssl_outcome(s, rc, "cannot send", HAPI_EPROTO, err);
    }
    ssize_t rc = send(s->fd, buf, n, MSG_NOSIGNAL);
    if (rc >= 0) {
        *put = (size_t)rc;
        return 0;
    }
    if (errno == EAGAIN || errno == EINTR)
        return HAPI_STREAM_AGAIN;
    return hapi_err_errno(err, errno, "cannot send");
}

bool hapi_stream_pending(const struct hapi_stream *s)
{
    return s->ssl && SSL_has_pending(s->ssl);
}

bool hapi_stream_heard(const struct hapi_stream *s)
{
    return s->ssl && BIO_number_read(SSL_get_rbio(s->ssl)) > 0;
}

void hapi_stream_shutdown(struct hapi_stream *s)
{
    if (s->ssl && SSL_is_init_finished(s->ssl)) {
        ERR_clear_error();
        SSL_shutdown(s->ssl);
    }
    shutdown(s->fd, SHUT_WR);
}

void hapi_stream_close(struct hapi_stream *s)
{
    SSL_free(s->ssl);
    s->ssl = NULL;
    if (s->fd >= 0)
        close(s->fd);
    s->fd = -1;
}
