/*
 * Questions to a storage node over its control channel, answered with one message each: for commands.
 *
 *     ask_connect() ── ask_wait() ── [ask_again() ── ask_wait()] ... ── ask_close()
 *
 * Threads: all calls, and the loop, on one thread. While it is waited for one, the others are served, too.
 */
#ifndef HAPI_CLIENT_ASK_H
#define HAPI_CLIENT_ASK_H

#include <stdbool.h>
#include <stdint.h>

#include "control.h"

struct ask {
    /* the caller's */
    const char *node; /* HOST:PORT */
    enum hapi_message question, answer;
    int (*take)(struct ask *a, const void *body, size_t n,
                struct hapi_err *err); /* an answer: 0 or an error */
    /* ask.c's */
    struct hapi_loop *loop;
    struct hapi_control *control; /* NULL: over */
    bool answered, over;
    struct hapi_err err; /* why it is over */
};

/* The question goes out when the connection is there. Errors: of the address. */
int ask_connect(struct ask *a, struct hapi_loop *loop, const struct hapi_keys *keys, struct hapi_err *err);
void ask_again(struct ask *a); /* once it has been answered */
/* Until it is answered (0), or over, or until a time of hapi_clock_ns() (HAPI_ETIMEDOUT; -1: as long as it
 * takes). Errors name the node. */
int ask_wait(struct ask *a, int64_t until_ns, struct hapi_err *err);
void ask_close(struct ask *a); /* any state */

#endif
