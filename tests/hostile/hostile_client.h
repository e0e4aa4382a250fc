/* The two kinds of sessions of hostile_client.c. */
#ifndef HAPI_TESTS_HOSTILE_CLIENT_H
#define HAPI_TESTS_HOSTILE_CLIENT_H

#include "hostile.h"
#include "transport.h"

enum { STRANGERS_MAX = 400 };

/* What came of it all. A message counts when the node has shown that it has read it: by its answer to a later
 * one, or by the end of the session that the message asked for. */
struct tally {
    uint64_t control, data;  /* messages */
    uint64_t spoilt;         /* of them not well-formed, or well-formed before a spoiler came */
    uint64_t sessions;       /* that got as far as hello */
    uint64_t connections;    /* data connections that opened */
    uint64_t ended, refused; /* sessions that the node ended for cause; that it would not have */
    uint64_t lost;           /* messages of sessions that ended without a word */
    uint64_t stuck;          /* sessions that got no answer in time */
    uint64_t deaf;           /* messages of sessions that read no answer */
    int64_t slowest_ns;      /* of the data connections, to open */
};

struct war {
    struct hapi_loop *loop;
    struct sockaddr_in node;
    struct hapi_tls tls;
    struct known known;
    struct hapi_fabric *fabric;
    struct tally tally;
    int64_t patience_ns; /* for an answer */
    int64_t reached_ns;  /* when the node last took a connection */
    unsigned strangers;  /* that idle on each data port before the one for whom it was opened comes */
    bool vandals;        /* bytes that are none of libfabric's protocol on its connections */
    bool hog;            /* fetchers ask for much, and then nobody runs the loop any more */
    unsigned hogging;    /* that have asked */
};

/* 0, or not now: later again. Exits when the node has not been there for a while. */
int war_connect(struct war *w, struct raw *r);

struct talker;
/* kind 0: bursts of messages; 1: floods and does not read. */
struct talker *talker_new(struct war *w, uint64_t seed, int kind);
void talker_free(struct talker *t);
/* Connects when it is not connected, gives up what takes too long. Called every few milliseconds. */
void talker_step(struct talker *t);

struct fetcher;
struct fetcher *fetcher_new(struct war *w, uint64_t seed);
void fetcher_free(struct fetcher *f);
void fetcher_step(struct fetcher *f);
/* Says that it is alive; without the loop, which would take what it asked for. */
void fetcher_beat(struct fetcher *f);

#endif
