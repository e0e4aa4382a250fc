/*
 * Tenants: who may come in, what each may see and take. A tenant is an identity of the key file; without keys
 * all are `-`. With --tenants FILE each needs a line there, or `*` stands for all that have none:
 *
 *     # IDENTITY  what it may do
 *     ann         datasets=train,test upload=yes sessions=8 requests=16 memory=4G rate=500M weight=2
 *     *           datasets=public upload=no
 *
 * Threads: the loop's.
 */
#ifndef HAPI_RUNTIME_TENANTS_H
#define HAPI_RUNTIME_TENANTS_H

#include <stdbool.h>
#include <stdint.h>

#include "err.h"

struct hapi_rt;
struct hapi_session;

enum { HAPI_TENANT_NAME = 128, HAPI_TENANT_DATASETS = 1024, HAPI_TENANT_WEIGHT_MAX = 1024 };

/* 0: no limit but the node's own. */
struct hapi_tenant_rules {
    char name[HAPI_TENANT_NAME];         /* or "*" */
    char datasets[HAPI_TENANT_DATASETS]; /* names joined by ","; "*": all */
    bool upload;                         /* of models: what is computed here */
    uint32_t sessions;                   /* open at once */
    uint32_t requests;                   /* in service, of each session */
    uint64_t memory;                     /* bytes of its models and plans */
    uint64_t rate;                       /* bytes a second that are sent to it */
    uint32_t weight;                     /* of its share of the node's time, 1 to HAPI_TENANT_WEIGHT_MAX */
};

struct hapi_tenant_table {
    struct hapi_tenant_rules *rules;
    uint32_t n;
};

/* What was done for a tenant, and what it may do. */
struct hapi_tenant {
    struct hapi_tenant *next;
    char name[HAPI_TENANT_NAME];
    struct hapi_tenant_rules rules;
    bool refused;       /* it has no rules, and others have */
    int64_t virtual_ns; /* of the node's time by its weight, that it has had */
    int64_t session_ns; /* what its session that was served last had had by then: sched.c */
    int64_t sent_ns;    /* when all that was sent to it would have passed at its rate */
    uint64_t sessions, requests, samples, bad_samples, wire_bytes, thread_ns;
};

/* Errors: HAPI_ESYS, HAPI_ENOMEM, HAPI_EFORMAT naming file, line and what is wrong. */
int hapi_tenants_read(struct hapi_tenant_table *out, const char *path, struct hapi_err *err);
void hapi_tenant_table_free(struct hapi_tenant_table *t);
/* Of that identity, else of `*`; NULL: there are none. */
const struct hapi_tenant_rules *hapi_tenant_rules_find(const struct hapi_tenant_table *t, const char *name);

/* Never NULL: with too many, or without memory, it is the one of all others, whom
 * rules of tenants keep out. identity NULL: `-`. */
struct hapi_tenant *hapi_tenant_of(struct hapi_rt *rt, const char *identity);
/* Takes over a table, which is the caller's no more: of all tenants, from now on. */
void hapi_tenants_set(struct hapi_rt *rt, struct hapi_tenant_table *t);
void hapi_tenants_free(struct hapi_rt *rt);

bool hapi_tenant_reads(const struct hapi_tenant *t, const char *dataset);
/* Whether one more session of it may be open. *err says which limit it is. */
int hapi_tenant_admits(const struct hapi_rt *rt, const struct hapi_tenant *t, struct hapi_err *err);
/* Bytes are to go to it; whether its rate lets more go now. */
void hapi_tenant_sends(struct hapi_tenant *t, uint64_t bytes, int64_t now_ns);
bool hapi_tenant_may_send(const struct hapi_tenant *t, int64_t now_ns);

#endif
