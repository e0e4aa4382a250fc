/* The node's counters as JSON: the answer to STAT. */
#include <cjson/cJSON.h>

#include "runtime.h"

static void number(cJSON *o, const char *name, uint64_t v)
{
    cJSON_AddNumberToObject(o, name, (double)v);
}

static void conn_json(cJSON *o, const struct hapi_conn_stats *s)
{
    number(o, "requests", s->recvs);
    number(o, "writes", s->writes);
    number(o, "bytes", s->bytes);
    number(o, "completions", s->completions);
    number(o, "rnr", s->rnr);
}

static void transport_json(cJSON *o, const struct hapi_rt *rt, enum hapi_transport t)
{
    const struct hapi_offer *offer = &rt->offers[t];
    struct hapi_conn_stats sum = offer->ended;
    uint64_t open = 0;

    cJSON_AddBoolToObject(o, "offered", offer->fabric != NULL);
    if (!offer->fabric) {
        cJSON_AddStringToObject(o, "why", offer->why.text);
        return;
    }
    for (const struct hapi_session *s = rt->sessions; s; s = s->next)
        if (s->conn && s->transport == t) {
            struct hapi_conn_stats now = hapi_conn_stats_get(s->conn);
            hapi_conn_stats_add(&sum, &now);
            open++;
        }
    number(o, "connections", offer->connections);
    number(o, "open", open);
    conn_json(o, &sum);
}

static void end_json(cJSON *o, const struct hapi_rt *rt)
{
    cJSON_AddStringToObject(o, "peer", rt->last_end.peer);
    cJSON_AddStringToObject(o, "transport", hapi_transport_names[rt->last_end.transport]);
    cJSON_AddStringToObject(o, "why", rt->last_end.why.text);
    conn_json(o, &rt->last_end.stats);
}

/* What bounds a micro-batch here, and what runs it: for who plans what to ask for. */
static void limits_json(cJSON *o, const struct hapi_rt *rt)
{
    const struct hapi_config *c = &rt->cfg;

    number(o, "threads", (uint64_t)hapi_pool_threads(rt->pool));
    number(o, "intra_op", c->intra_op);
    number(o, "micro_batch", c->micro_batch);
    number(o, "batches", c->batches);
    number(o, "read_area", c->read_area);
    number(o, "send_area", c->send_area);
    number(o, "memory", hapi_models_usage_get(rt->models).memory);
}

static void plans_json(cJSON *o, const struct hapi_rt *rt)
{
    struct hapi_models_usage u = hapi_runtime_usage(rt);

    number(o, "memory", u.memory);
    number(o, "taken", u.taken);
    number(o, "running", u.running);
    number(o, "waiting", u.waiting);
    number(o, "refused", u.refused);
}

static void features_json(cJSON *o, const struct hapi_rt *rt)
{
    struct hapi_features_stats t = hapi_features_stats_get(rt->features);

    number(o, "memory_budget", hapi_remember_bytes(&rt->cfg));
    number(o, "memory_bytes", t.memory_bytes);
    number(o, "memory_rows", t.memory_rows);
    number(o, "disk_budget", rt->cfg.cache_disk);
    number(o, "disk_bytes", t.disk_bytes);
    number(o, "disk_rows", t.disk_rows);
    number(o, "hits", rt->counters.remembered);
    number(o, "kept", t.kept);
    number(o, "dropped", t.dropped);
    number(o, "torn", t.torn);
    number(o, "errors", t.errors);
}

char *hapi_stat_json(const struct hapi_rt *rt, const struct hapi_tenant *asks)
{
    const struct hapi_counters *c = &rt->counters;
    struct hapi_device_usage gpu;
    cJSON *o = cJSON_CreateObject(), *part;

    uint64_t clients = 0, in_service = 0;
    for (const struct hapi_session *s = rt->sessions; s; s = s->next) {
        clients += s->control != NULL;
        in_service += s->in_service;
    }
    number(o, "clients", clients);
    number(o, "in_service", in_service);
    number(o, "sessions", c->sessions);
    number(o, "requests", c->requests);
    number(o, "parts", c->parts);
    number(o, "samples", c->samples);
    number(o, "bad_samples", c->bad_samples);
    number(o, "wire_bytes", c->wire_bytes);
    number(o, "read_bytes", c->read_bytes);
    number(o, "rejected", c->rejected);
    number(o, "device_errors", c->device_errors);
    part = cJSON_AddObjectToObject(o, "stage_s");
    for (int i = 0; i < HAPI_METRIC_STAGES_N; i++)
        cJSON_AddNumberToObject(part, hapi_metric_stage_names[i], 1e-9 * (double)c->stage[i].ns);
    limits_json(cJSON_AddObjectToObject(o, "limits"), rt);
    if (hapi_backend_usage(rt->cfg.backend, &gpu)) {
        part = cJSON_AddObjectToObject(o, "gpu_memory");
        number(part, "reserved", gpu.reserved);
        number(part, "used", gpu.used);
    }
    plans_json(cJSON_AddObjectToObject(o, "plans"), rt);
    if (rt->features)
        features_json(cJSON_AddObjectToObject(o, "features"), rt);
    part = cJSON_AddObjectToObject(o, "transports");
    for (int t = 0; t < HAPI_TRANSPORTS; t++)
        transport_json(cJSON_AddObjectToObject(part, hapi_transport_names[t]), rt, (enum hapi_transport)t);
    if (*rt->last_end.peer && rt->last_end.tenant == asks) /* whose address is nobody else's business */
        end_json(cJSON_AddObjectToObject(o, "last_end"), rt);
    char *text = cJSON_PrintUnformatted(o);
    cJSON_Delete(o);
    return text;
}
