#include <cjson/cJSON.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "profile.h"
#include "profile_fields.h"

/* cJSON prints as many digits as a number needs to come back bit for bit. */
static bool number_add(cJSON *o, const char *key, double v)
{
    return cJSON_AddNumberToObject(o, key, v) != NULL;
}

static bool curve_add(cJSON *o, const char *key, const struct hapi_curve *c)
{
    char batch[16];

    if (!c->points)
        return c->s < 0 || number_add(o, key, c->s);
    cJSON *table = cJSON_AddObjectToObject(o, key);
    bool ok = table != NULL;
    for (uint32_t i = 0; i < c->n && ok; i++) {
        snprintf(batch, sizeof batch, "%u", c->points[i].batch);
        ok = number_add(table, batch, c->points[i].s);
    }
    return ok;
}

static bool field_add(cJSON *o, const struct hapi_field *f, const void *from)
{
    double v;

    switch (f->kind) {
    case HAPI_FIELD_TEXT:
        return !*(const char *const *)from || cJSON_AddStringToObject(o, f->key, *(const char *const *)from);
    case HAPI_FIELD_TIME:
        return curve_add(o, f->key, from);
    case HAPI_FIELD_FLAG:
        return !*(const bool *)from || cJSON_AddBoolToObject(o, f->key, 1);
    case HAPI_FIELD_COUNT:
        v = *(const uint32_t *)from;
        break;
    case HAPI_FIELD_LONG:
        v = (double)*(const uint64_t *)from;
        break;
    default:
        v = *(const double *)from;
    }
    return (!f->required && v == f->absent) || number_add(o, f->key, v);
}

static bool fields_add(cJSON *o, const struct hapi_fields *t, const void *from)
{
    bool ok = o != NULL;

    for (size_t i = 0; i < t->n && ok; i++)
        ok = field_add(o, &t->at[i], (const char *)from + t->at[i].offset);
    return ok;
}

static bool convert_add(cJSON *o, const struct hapi_curve *convert)
{
    cJSON *all = cJSON_AddObjectToObject(o, "convert_s");
    bool ok = all != NULL;

    for (int w = 0; w < HAPI_WIRES_N && ok; w++)
        ok = curve_add(all, hapi_wire_name((enum hapi_wire)w), &convert[w]);
    if (ok && !all->child)
        cJSON_DeleteItemFromObjectCaseSensitive(o, "convert_s");
    return ok;
}

static bool cut_add(cJSON *list, const struct hapi_profile_cut *c)
{
    cJSON *o = cJSON_CreateObject(), *wires;

    if (!o || !cJSON_AddItemToArray(list, o))
        return false;
    bool ok =
        fields_add(o, &hapi_profile_cut_fields, c) && (wires = cJSON_AddObjectToObject(o, "wire_bytes"));
    for (int w = 0; w < HAPI_WIRES_N && ok; w++)
        ok = !c->wire_bytes[w] || number_add(wires, hapi_wire_name((enum hapi_wire)w), c->wire_bytes[w]);
    return ok && convert_add(o, c->convert_s) &&
           fields_add(cJSON_AddObjectToObject(o, "storage_memory"), &hapi_profile_memory_fields,
                      &c->storage_memory) &&
           fields_add(cJSON_AddObjectToObject(o, "compute_memory"), &hapi_profile_memory_fields,
                      &c->compute_memory);
}

static bool nodes_add(cJSON *o, const struct hapi_profile *p)
{
    cJSON *list = p->n_node_list ? cJSON_AddArrayToObject(o, "node_list") : NULL;
    bool ok = list || !p->n_node_list;

    for (uint32_t i = 0; i < p->n_node_list && ok; i++) {
        cJSON *node = cJSON_CreateObject();
        ok = node && cJSON_AddItemToArray(list, node) &&
             fields_add(node, &hapi_profile_node_fields, &p->node_list[i]);
    }
    return ok;
}

static cJSON *tree(const struct hapi_profile *p)
{
    cJSON *o = cJSON_CreateObject(), *tiers, *cuts = NULL;
    bool ok = fields_add(o, &hapi_profile_fields, p) && convert_add(o, p->convert_s) &&
              (tiers = cJSON_AddObjectToObject(o, "tiers")) &&
              fields_add(cJSON_AddObjectToObject(tiers, "storage"), &hapi_profile_tier_fields, &p->storage) &&
              fields_add(cJSON_AddObjectToObject(tiers, "compute"), &hapi_profile_tier_fields, &p->compute) &&
              nodes_add(o, p) && (cuts = cJSON_AddArrayToObject(o, "cuts"));

    for (uint32_t i = 0; i < p->n_cuts && ok; i++)
        ok = cut_add(cuts, &p->cuts[i]);
    if (ok)
        return o;
    cJSON_Delete(o);
    return NULL;
}

int hapi_profile_write(const struct hapi_profile *p, char **out, struct hapi_err *err)
{
    struct hapi_profile *again;
    cJSON *o = tree(p);
    char *text = o ? cJSON_Print(o) : NULL;

    cJSON_Delete(o);
    if (!text)
        return hapi_err_set(err, HAPI_ENOMEM, 0, "no memory to write a profile");
    int rc = hapi_profile_parse(&again, text, strlen(text), err);
    if (rc) {
        free(text);
        return rc;
    }
    hapi_profile_free(again);
    *out = text;
    return 0;
}
