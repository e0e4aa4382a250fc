/*
 * What the hostile peers share: a seeded source of numbers, messages of every kind and ways to spoil them,
 * and a raw session that can say anything.
 *
 *     hostile_client   an authenticated client that breaks every rule, on control and data connections
 *     hostile_flood    peers that never get as far as hello
 *     hostile_node     a node that answers `hapi train` with nonsense
 *
 * Each prints one JSON object; the tests in tests/e2e/test_hostile.py judge it, and the program under attack.
 * One thread, one loop.
 */
#ifndef HAPI_TESTS_HOSTILE_H
#define HAPI_TESTS_HOSTILE_H

#include <netinet/in.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "clock.h"
#include "loop.h"
#include "tls.h"
#include "wire.h"

#define S(text) ((struct hapi_str){text, sizeof(text) - 1})
#define REQUIRE(e)                                                                                           \
    do {                                                                                                     \
        if (!(e)) {                                                                                          \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #e);                                          \
            exit(1);                                                                                         \
        }                                                                                                    \
    } while (0)

enum { FRAME_HEAD = 8, BODY_MAX = 80 << 10 };

/* ---- mutate.c ---- */

struct rng {
    uint64_t s;
};
uint64_t rng_next(struct rng *r);
uint32_t rng_below(struct rng *r, uint32_t n); /* n > 0 */
static inline bool rng_one_in(struct rng *r, uint32_t n)
{
    return rng_below(r, n) == 0;
}
void rng_bytes(struct rng *r, void *p, size_t n);

struct body {
    uint8_t b[BODY_MAX];
    size_t n;
};

/* Names that exist on the node, for messages that are right but for one thing. */
struct known {
    struct hapi_str dataset, object;
    uint8_t hash[HAPI_HASH_SIZE]; /* of an uploaded model; all zero: none */
    struct hapi_str cut, transform;
};

/* A well-formed body of a control message. */
void message_make(struct body *m, unsigned type, const struct known *k, struct rng *r);
/* Spoils it: bits, length, fields. Now and then it stays as it was. */
void message_spoil(struct body *m, struct rng *r);
/* Whether a node that gets it ends the session. */
bool message_is_fatal(unsigned type, const uint8_t *body, size_t n);
/* A frame that cannot be: any peer must take it for the end. */
size_t frame_garbage(uint8_t *out, size_t size, struct rng *r);

size_t hello_make(uint8_t *out, size_t size, const char *role);

/* ---- raw.c ---- */

struct raw;
struct raw_handler {
    void (*on_ready)(struct raw *r); /* TCP and TLS stand */
    void (*on_frame)(struct raw *r, unsigned type, const uint8_t *body, size_t n);
    void (*on_end)(struct raw *r, const struct hapi_err *why); /* by the peer; the socket is closed */
};

struct raw {
    struct hapi_watch watch; /* first */
    struct hapi_stream stream;
    struct hapi_loop *loop;
    const struct raw_handler *handler;
    bool open, shaken, deaf; /* deaf: reads nothing */
    uint8_t *tx, *rx;
    size_t tx_n, tx_at, tx_size, rx_n;
};

void raw_init(struct raw *r, struct hapi_loop *loop, const struct raw_handler *handler);
void raw_fini(struct raw *r);
/* Blocks for the TCP handshake only. 0, or -errno. */
int raw_connect(struct raw *r, const struct sockaddr_in *to, const struct hapi_tls *tls);
int raw_accept(struct raw *r, int fd, const struct hapi_tls *tls);
/* Queue and send what the socket takes now; the rest follows from the loop. */
void raw_put(struct raw *r, const void *p, size_t n);
void raw_frame(struct raw *r, unsigned type, const void *body, size_t n);
size_t raw_queued(const struct raw *r);
void raw_deaf(struct raw *r, bool deaf);
void raw_close(struct raw *r, bool reset);

struct sockaddr_in address_parse(const char *text); /* 127.0.0.1:PORT */
/* A TLS context for all sessions of a process; false: path is NULL. */
bool tls_open(struct hapi_tls *t, const char *path, bool server);
void tls_close(struct hapi_tls *t);

#endif
