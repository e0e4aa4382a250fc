#include "tenants.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "clock.h"
#include "log.h"
#include "runtime.h"

enum { TENANTS = 4096, LINE = 4096 };
/* A tenant with a rate may be so far ahead of it: the loop's rounds are no finer. */
#define BURST_NS (200 * HAPI_NS_PER_MS)

static const struct hapi_tenant_rules anything = {.datasets = "*", .upload = true, .weight = 1};

/* ------------------------------------------------------------------ the file */

static int datasets_set(struct hapi_tenant_rules *r, const char *value, struct hapi_err *err)
{
    if (!*value || strlen(value) >= sizeof r->datasets)
        return hapi_err_set(err, HAPI_EFORMAT, 0,
                            "datasets are names joined by commas, or *, at most %d bytes",
                            HAPI_TENANT_DATASETS - 1);
    memcpy(r->datasets, value, strlen(value) + 1);
    return 0;
}

static int option_set(struct hapi_tenant_rules *r, const char *key, const char *value, struct hapi_err *err)
{
    struct {
        const char *name, *takes;
        bool bytes;
        uint64_t least, most;
        uint32_t *u32;
        uint64_t *u64;
    } numbers[] = {
        {"sessions", "a number, 1 or more", false, 1, UINT32_MAX, &r->sessions, NULL},
        {"requests", "a number, 1 to 1024", false, 1, 1024, &r->requests, NULL},
        {"weight", "a number, 1 to 1024", false, 1, HAPI_TENANT_WEIGHT_MAX, &r->weight, NULL},
        {"memory", "bytes such as 4G", true, 1, INT64_MAX, NULL, &r->memory},
        {"rate", "bytes a second such as 100M", true, 1, INT64_MAX, NULL, &r->rate},
    };
    uint64_t v;

    if (!strcmp(key, "datasets"))
        return datasets_set(r, value, err);
    if (!strcmp(key, "upload")) {
        r->upload = !strcmp(value, "yes");
        return r->upload || !strcmp(value, "no")
                   ? 0
                   : hapi_err_set(err, HAPI_EFORMAT, 0, "upload is yes or no, not `%s`", value);
    }
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        if (strcmp(key, numbers[i].name))
            continue;
        if (hapi_config_number(value, numbers[i].bytes, numbers[i].most, &v) || v < numbers[i].least)
            return hapi_err_set(err, HAPI_EFORMAT, 0, "%s takes %s, not `%s`", key, numbers[i].takes, value);
        if (numbers[i].u32)
            *numbers[i].u32 = (uint32_t)v;
        else
            *numbers[i].u64 = v;
        return 0;
    }
    return hapi_err_set(
        err, HAPI_EFORMAT, 0,
        "no option `%s`: there are datasets, upload, sessions, requests, memory, rate, weight", key);
}

static int line_parse(struct hapi_tenant_rules *r, char *name, char *rest, struct hapi_err *err)
{
    int rc = 0;

    *r = (struct hapi_tenant_rules){.weight = 1};
    if (strlen(name) >= sizeof r->name)
        return hapi_err_set(err, HAPI_EFORMAT, 0, "an identity has at most %d bytes", HAPI_TENANT_NAME - 1);
    memcpy(r->name, name, strlen(name) + 1);
    for (char *save = rest, *word; !rc && (word = strtok_r(NULL, " \t\r\n", &save));) {
        char *eq = strchr(word, '=');
        if (!eq)
            return hapi_err_set(err, HAPI_EFORMAT, 0, "`%s`: no key=value", word);
        *eq = '\0';
        rc = option_set(r, word, eq + 1, err);
    }
    return rc;
}

static int table_add(struct hapi_tenant_table *t, const struct hapi_tenant_rules *r, struct hapi_err *err)
{
    for (uint32_t i = 0; i < t->n; i++)
        if (!strcmp(t->rules[i].name, r->name))
            return hapi_err_set(err, HAPI_EFORMAT, 0, "%s is there already", r->name);
    struct hapi_tenant_rules *more = realloc(t->rules, (t->n + 1) * sizeof *more);
    if (!more)
        return hapi_err_set(err, HAPI_ENOMEM, 0, "no memory for tenants");
    t->rules = more;
    t->rules[t->n++] = *r;
    return 0;
}

int hapi_tenants_read(struct hapi_tenant_table *out, const char *path, struct hapi_err *err)
{
    char line[LINE];
    struct hapi_tenant_rules r;
    FILE *f = fopen(path, "re");
    int rc = 0;

    *out = (struct hapi_tenant_table){0};
    if (!f)
        return hapi_err_errno(err, errno, "cannot open the tenants' file %s", path);
    for (int n = 1; !rc && fgets(line, sizeof line, f); n++) {
        char *save = NULL, *hash = strchr(line, '#');
        if (!strchr(line, '\n') && !feof(f))
            rc = hapi_err_set(err, HAPI_EFORMAT, 0, "the line is longer than %d bytes", LINE - 2);
        if (hash)
            *hash = '\0';
        char *name = rc ? NULL : strtok_r(line, " \t\r\n", &save);
        if (name)
            rc = line_parse(&r, name, save, err);
        if (name && !rc)
            rc = table_add(out, &r, err);
        if (rc)
            hapi_err_context(err, "%s:%d", path, n);
    }
    if (!rc && ferror(f))
        rc = hapi_err_errno(err, errno, "cannot read %s", path);
    fclose(f);
    if (rc)
        hapi_tenant_table_free(out);
    return rc;
}

void hapi_tenant_table_free(struct hapi_tenant_table *t)
{
    free(t->rules);
    *t = (struct hapi_tenant_table){0};
}

const struct hapi_tenant_rules *hapi_tenant_rules_find(const struct hapi_tenant_table *t, const char *name)
{
    const struct hapi_tenant_rules *others = NULL;

    for (uint32_t i = 0; i < t->n; i++) {
        if (!strcmp(t->rules[i].name, name))
            return &t->rules[i];
        if (!strcmp(t->rules[i].name, "*"))
            others = &t->rules[i];
    }
    return others;
}

/* ------------------------------------------------------------------ those that came */

static bool rules_equal(const struct hapi_tenant_rules *a, const struct hapi_tenant_rules *b)
{
    return !strcmp(a->datasets, b->datasets) && a->upload == b->upload && a->sessions == b->sessions &&
           a->requests == b->requests && a->memory == b->memory && a->rate == b->rate &&
           a->weight == b->weight;
}

static void rules_apply(const struct hapi_rt *rt, struct hapi_tenant *t)
{
    const struct hapi_tenant_rules *r =
        *rt->cfg.tenants ? hapi_tenant_rules_find(&rt->tenant_table, t->name) : &anything;

    const struct hapi_tenant_rules now = r ? *r : (struct hapi_tenant_rules){.weight = 1};
    bool changed = t->rules.weight && (t->refused != !r || !rules_equal(&t->rules, &now));

    t->refused = !r;
    t->rules = now;
    if (changed)
        hapi_log(HAPI_LOG_INFO, "tenant's rules changed", "tenant=%s refused=%s datasets=%.200s upload=%s",
                 t->name, r ? "no" : "yes", now.datasets, now.upload ? "yes" : "no");
}

struct hapi_tenant *hapi_tenant_of(struct hapi_rt *rt, const char *identity)
{
    const char *name = identity ? identity : "-";
    struct hapi_tenant *t;
    int n = 0;

    for (t = rt->tenants; t; t = t->next, n++)
        if (!strcmp(t->name, name))
            return t;
    t = n < TENANTS && strlen(name) < sizeof t->name ? calloc(1, sizeof *t) : NULL;
    if (!t)
        return &rt->other_tenants;
    memcpy(t->name, name, strlen(name) + 1);
    rules_apply(rt, t);
    t->next = rt->tenants;
    rt->tenants = t;
    return t;
}

void hapi_tenants_set(struct hapi_rt *rt, struct hapi_tenant_table *t)
{
    hapi_tenant_table_free(&rt->tenant_table);
    rt->tenant_table = *t;
    *t = (struct hapi_tenant_table){0};
    memcpy(rt->other_tenants.name, "(others)", 9);
    rules_apply(rt, &rt->other_tenants);
    rt->other_tenants.refused = *rt->cfg.tenants; /* nobody knows what their lines say */
    for (struct hapi_tenant *x = rt->tenants; x; x = x->next)
        rules_apply(rt, x);
}

void hapi_tenants_free(struct hapi_rt *rt)
{
    for (struct hapi_tenant *t = rt->tenants, *next; t; t = next) {
        next = t->next;
        free(t);
    }
    hapi_tenant_table_free(&rt->tenant_table);
}

/* ------------------------------------------------------------------ what they may */

bool hapi_tenant_reads(const struct hapi_tenant *t, const char *dataset)
{
    const char *s = t->rules.datasets;
    size_t length = strlen(dataset);

    for (size_t n; *s; s += n + (s[n] == ',')) {
        n = strcspn(s, ",");
        if ((n == 1 && *s == '*') || (n == length && !memcmp(s, dataset, n)))
            return true;
    }
    return false;
}

int hapi_tenant_admits(const struct hapi_rt *rt, const struct hapi_tenant *t, struct hapi_err *err)
{
    uint32_t n = 0;

    if (t->refused)
        return hapi_err_set(err, HAPI_EAUTH, 0, "identity %s is no tenant of this node (--tenants)%s",
                            t->name, t == &rt->other_tenants ? ": more than 4096 have come" : "");
    for (const struct hapi_session *s = rt->sessions; s; s = s->next)
        n += s->tenant == t && s->control && hapi_control_is_open(s->control);
    if (t->rules.sessions && n >= t->rules.sessions)
        return hapi_err_set(err, HAPI_EBUSY, 0, "tenant %s has its most clients (sessions=%u)", t->name,
                            t->rules.sessions);
    return 0;
}

void hapi_tenant_sends(struct hapi_tenant *t, uint64_t bytes, int64_t now_ns)
{
    if (!t->rules.rate)
        return;
    t->sent_ns = t->sent_ns < now_ns - BURST_NS ? now_ns - BURST_NS : t->sent_ns;
    t->sent_ns += (int64_t)(1e9 * (double)bytes / (double)t->rules.rate);
}

bool hapi_tenant_may_send(const struct hapi_tenant *t, int64_t now_ns)
{
    return !t->rules.rate || t->sent_ns <= now_ns;
}
