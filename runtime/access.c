/* Who may come in: the files of keys and of tenants, read at the start and on SIGHUP. */
#include <stdlib.h>

#include "log.h"
#include "runtime.h"

/* Keys and rules of tenants, as the files have them now. NULL and empty: there are none. */
static int access_read(const struct hapi_rt *rt, struct hapi_keys **keys, struct hapi_tenant_table *tenants,
                       struct hapi_err *err)
{
    const struct hapi_config *c = &rt->cfg;
    int rc = *c->key ? hapi_keys_load(keys, c->key, err) : 0;

    if (!rc && *c->tenants && (rc = hapi_tenants_read(tenants, c->tenants, err))) {
        hapi_keys_free(*keys);
        *keys = NULL;
    }
    return rc;
}

/* Who may not be here any more is told so. */
static void access_check(struct hapi_rt *rt)
{
    for (struct hapi_session *s = rt->sessions; s; s = s->next) {
        const char *identity = s->control ? hapi_control_identity(s->control) : NULL;
        bool unknown = identity && !hapi_keys_have(rt->keys, identity);
        struct hapi_err why = {0};
        if (!s->control || (!unknown && !s->tenant->refused))
            continue;
        hapi_err_set(&why, HAPI_EAUTH, 0, "%s %s any more", unknown ? "the key of" : "tenant",
                     unknown ? "this identity is not valid" : "rules do not let this identity in");
        hapi_session_fail(s, "client's access has ended", &why);
    }
}

int hapi_access_open(struct hapi_rt *rt, struct hapi_err *err)
{
    struct hapi_tenant_table tenants = {0};
    int rc = access_read(rt, &rt->keys, &tenants, err);

    if (!rc)
        hapi_tenants_set(rt, &tenants);
    return rc;
}

void hapi_access_close(struct hapi_rt *rt)
{
    hapi_tenants_free(rt);
    hapi_keys_free(rt->keys);
    while (rt->n_old_keys)
        hapi_keys_free(rt->old_keys[--rt->n_old_keys]);
    free(rt->old_keys);
}

void hapi_rt_reload(struct hapi_rt *rt)
{
    struct hapi_tenant_table tenants = {0};
    struct hapi_keys *keys = NULL, **old = NULL;
    struct hapi_err err = {0};
    char quoted[HAPI_ERR_TEXT];

    if (!rt->control)
        return;
    int rc = access_read(rt, &keys, &tenants, &err);
    if (!rc && keys && !(old = realloc(rt->old_keys, (rt->n_old_keys + 1) * sizeof(struct hapi_keys *))))
        rc = hapi_err_set(&err, HAPI_ENOMEM, 0, "no memory for keys");
    if (rc) {
        hapi_keys_free(keys);
        hapi_tenant_table_free(&tenants);
        hapi_log(HAPI_LOG_ERROR, "not reloaded: keys and tenants stay as they were", "why=%s",
                 hapi_log_quote(quoted, sizeof quoted, err.text));
        return;
    }
    if (keys) {
        rt->old_keys = old;
        rt->old_keys[rt->n_old_keys++] = rt->keys;
        rt->keys = keys;
        hapi_control_listener_keys(rt->control, keys);
    }
    uint32_t n = tenants.n;
    hapi_tenants_set(rt, &tenants);
    access_check(rt);
    hapi_log(HAPI_LOG_INFO, "reloaded", "key=%s tenants=%s rules=%u", *rt->cfg.key ? rt->cfg.key : "-",
             *rt->cfg.tenants ? rt->cfg.tenants : "-", n);
}
