#include <cjson/cJSON.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench.h"

static double gigabytes(const struct bench_row *r)
{
    return 1e-9 * (double)r->writes * (double)r->size;
}

static void print_table(const struct bench_report *r, const struct bench_options *o)
{
    printf("%s over %s, %s:%u, %s, %u outstanding\n", o->program, o->transport, o->host, o->port,
           o->busy_poll_us ? "polling" : "event driven", o->depth);
    if (r->n_rows)
        printf("%10s %5s  %9s  %9s  %9s  %11s  %11s  %9s\n", "bytes", "crc", "MB/s", "min", "max",
               "node CPU/GB", "peer CPU/GB", "cqe/write");
    for (int i = 0; i < r->n_rows; i++) {
        const struct bench_row *w = &r->rows[i];
        printf("%10zu %5s  %9.1f  %9.1f  %9.1f  %9.3f s  %9.3f s  %9.3f\n", w->size,
               w->checksum ? "on" : "off", w->mbps, w->mbps_min, w->mbps_max, w->node_cpu / gigabytes(w),
               w->peer_cpu / gigabytes(w), (double)w->completions / (double)w->writes);
        if (w->rnr)
            printf("%10s receiver not ready: %llu times\n", "", (unsigned long long)w->rnr);
    }
    if (r->latency.n)
        printf("one way, %d bytes with immediate: median %.2f us, p99 %.2f us, min %.2f us (n %u)\n",
               BENCH_PING_BYTES, r->latency.median_us, r->latency.p99_us, r->latency.min_us, r->latency.n);
}

static void add_row(cJSON *list, const struct bench_row *w)
{
    cJSON *o = cJSON_CreateObject();

    cJSON_AddNumberToObject(o, "bytes", (double)w->size);
    cJSON_AddBoolToObject(o, "checksum", w->checksum);
    cJSON_AddNumberToObject(o, "depth", w->depth);
    cJSON_AddNumberToObject(o, "rounds", w->rounds);
    cJSON_AddNumberToObject(o, "writes", (double)w->writes);
    cJSON_AddNumberToObject(o, "seconds", w->seconds);
    cJSON_AddNumberToObject(o, "mb_per_s", w->mbps);
    cJSON_AddNumberToObject(o, "mb_per_s_min", w->mbps_min);
    cJSON_AddNumberToObject(o, "mb_per_s_max", w->mbps_max);
    cJSON_AddNumberToObject(o, "node_cpu_s_per_gb", w->node_cpu / gigabytes(w));
    cJSON_AddNumberToObject(o, "peer_cpu_s_per_gb", w->peer_cpu / gigabytes(w));
    cJSON_AddNumberToObject(o, "completions_per_write", (double)w->completions / (double)w->writes);
    cJSON_AddNumberToObject(o, "rnr", (double)w->rnr);
    cJSON_AddItemToArray(list, o);
}

static cJSON *json_of(const struct bench_report *r, const struct bench_options *o)
{
    cJSON *all = cJSON_CreateObject();

    cJSON_AddStringToObject(all, "program", o->program);
    cJSON_AddStringToObject(all, "version", HAPI_VERSION);
    cJSON_AddStringToObject(all, "transport", o->transport);
    cJSON_AddNumberToObject(all, "busy_poll_us", o->busy_poll_us);
    cJSON_AddNumberToObject(all, "depth", o->depth);
    cJSON *list = cJSON_AddArrayToObject(all, "goodput");
    for (int i = 0; i < r->n_rows; i++)
        add_row(list, &r->rows[i]);
    if (r->latency.n) {
        cJSON *l = cJSON_AddObjectToObject(all, "latency");
        cJSON_AddNumberToObject(l, "bytes", BENCH_PING_BYTES);
        cJSON_AddNumberToObject(l, "n", r->latency.n);
        cJSON_AddNumberToObject(l, "min_us", r->latency.min_us);
        cJSON_AddNumberToObject(l, "median_us", r->latency.median_us);
        cJSON_AddNumberToObject(l, "p99_us", r->latency.p99_us);
    }
    return all;
}

int bench_report_print(const struct bench_report *r, const struct bench_options *o)
{
    if (!o->json) {
        print_table(r, o);
        return BENCH_OK;
    }
    FILE *f = o->json_path ? fopen(o->json_path, "w") : stdout;
    cJSON *all = json_of(r, o);
    char *text = cJSON_PrintUnformatted(all);
    bool ok = f && text && fprintf(f, "%s\n", text) > 0;

    ok = f && (o->json_path ? fclose(f) == 0 : fflush(f) == 0) && ok;
    if (!ok)
        fprintf(stderr, "%s: cannot write %s: %s\n", o->program, o->json_path ? o->json_path : "the report",
                strerror(errno));
    free(text);
    cJSON_Delete(all);
    return ok ? BENCH_OK : BENCH_FAILURE;
}
