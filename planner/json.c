#include "json.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* ------------------------------------------------------------------ paths */

/* Appends and keeps what is printable; what does not fit is left out. */
static size_t append(char *out, size_t at, const char *text, size_t n)
{
    for (size_t i = 0; i < n && at + 1 < HAPI_JSON_PATH; i++)
        out[at++] = text[i] >= 0x20 && text[i] < 0x7f ? text[i] : '?';
    out[at] = 0;
    return at;
}

static size_t append_key(char *out, size_t at, const char *key, size_t n)
{
    if (at)
        at = append(out, at, ".", 1);
    return append(out, at, key, n < 64 ? n : 64);
}

static size_t append_index(char *out, size_t at, uint32_t index)
{
    char text[16];

    return append(out, at, text, (size_t)snprintf(text, sizeof text, "[%u]", index));
}

static size_t path_of(const struct hapi_json *at, char *out)
{
    if (!at->in)
        return append(out, 0, "", 0);
    size_t n = path_of(at->in, out);
    return at->key ? append_key(out, n, at->key, strlen(at->key)) : append_index(out, n, at->index);
}

void hapi_json_path(const struct hapi_json *at, char out[HAPI_JSON_PATH])
{
    if (!path_of(at, out))
        append(out, 0, "the document", 12);
}

void hapi_json_bad(const struct hapi_json *at, const char *fmt, ...)
{
    char path[HAPI_JSON_PATH], text[HAPI_ERR_TEXT - HAPI_JSON_PATH - 2];
    va_list ap;

    if (at->state->rc)
        return;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    hapi_json_path(at, path);
    at->state->rc = hapi_err_set(at->state->err, HAPI_EINVAL, 0, "%s %s", path, text);
}

void hapi_json_no_memory(const struct hapi_json *at)
{
    if (at->state->rc)
        return;
    hapi_json_bad(at, "takes more memory than there is");
    at->state->rc = HAPI_ENOMEM;
    if (at->state->err)
        at->state->err->code = HAPI_ENOMEM;
}

/* ------------------------------------------------------------------ parsing */

enum { LEVELS = 16 };

struct level {
    bool array, key_next;
    uint32_t index;
    const char *key;
    size_t key_size;
};

/* The path at the end of n bytes that began as JSON: what was being read there. */
static void place_of(const char *text, size_t n, char *out)
{
    struct level levels[LEVELS] = {{0}};
    size_t depth = 0, at = 0;

    for (size_t i = 0; i < n; i++) {
        struct level *l = &levels[depth < LEVELS ? depth : LEVELS - 1];
        if (text[i] == '"') {
            size_t from = ++i;
            while (i < n && text[i] != '"')
                i += text[i] == '\\' ? 2 : 1;
            if (l->key_next) {
                l->key = text + from;
                l->key_size = i < n ? i - from : 0;
            }
        } else if (text[i] == '{' || text[i] == '[') {
            depth++;
            if (depth < LEVELS)
                levels[depth] = (struct level){.array = text[i] == '[', .key_next = text[i] == '{'};
        } else if ((text[i] == '}' || text[i] == ']') && depth) {
            depth--;
        } else if (text[i] == ',') {
            l->index++;
            l->key_next = !l->array;
        } else if (text[i] == ':') {
            l->key_next = false;
        }
    }
    out[0] = 0;
    for (size_t d = 1; d <= depth && d < LEVELS; d++) {
        if (levels[d].array)
            at = append_index(out, at, levels[d].index);
        else if (levels[d].key_size)
            at = append_key(out, at, levels[d].key, levels[d].key_size);
    }
}

int hapi_json_parse(cJSON **out, const char *text, size_t size, struct hapi_err *err)
{
    const char *end = NULL;
    char path[HAPI_JSON_PATH];
    cJSON *root = cJSON_ParseWithLengthOpts(text, size, &end, 0);
    size_t at = end ? (size_t)(end - text) : 0;

    if (root) {
        while (at < size && strchr(" \t\r\n", text[at]) && text[at])
            at++;
        if (at == size) {
            *out = root;
            return 0;
        }
        cJSON_Delete(root);
        return hapi_err_set(err, HAPI_EFORMAT, 0, "byte %zu: more text after the JSON document", at);
    }
    place_of(text, at < size ? at : size, path);
    return hapi_err_set(err, HAPI_EFORMAT, 0, "%s%sbyte %zu is no JSON (numbers must be finite)", path,
                        path[0] ? ": " : "", at);
}

/* ------------------------------------------------------------------ getters */

struct hapi_json hapi_json_top(const cJSON *root, struct hapi_json_state *state)
{
    return (struct hapi_json){.value = root, .state = state};
}

struct hapi_json hapi_json_member(const struct hapi_json *in, const char *key)
{
    return (struct hapi_json){
        .value = cJSON_IsObject(in->value) ? cJSON_GetObjectItemCaseSensitive(in->value, key) : NULL,
        .in = in,
        .key = key,
        .state = in->state,
    };
}

struct hapi_json hapi_json_item(const struct hapi_json *in, const cJSON *value, uint32_t index)
{
    return (struct hapi_json){.value = value, .in = in, .index = index, .state = in->state};
}

static bool there(const struct hapi_json *at)
{
    if (!at->state->rc && !at->value)
        hapi_json_bad(at, "is missing");
    return !at->state->rc;
}

bool hapi_json_object(const struct hapi_json *at)
{
    uint32_t n = 0;

    if (!there(at))
        return false;
    if (!cJSON_IsObject(at->value)) {
        hapi_json_bad(at, "must be an object");
        return false;
    }
    for (const cJSON *v = at->value->child; v; v = v->next, n++) {
        if (n == HAPI_JSON_KEYS) {
            hapi_json_bad(at, "has more than %d keys", HAPI_JSON_KEYS);
            return false;
        }
        for (const cJSON *w = at->value->child; w != v; w = w->next)
            if (!strcmp(v->string, w->string)) {
                struct hapi_json twice = hapi_json_member(at, v->string);
                hapi_json_bad(&twice, "is said twice");
                return false;
            }
    }
    return true;
}

uint32_t hapi_json_array(const struct hapi_json *at, uint32_t max)
{
    uint32_t n = 0;

    if (!there(at))
        return 0;
    if (!cJSON_IsArray(at->value)) {
        hapi_json_bad(at, "must be an array");
        return 0;
    }
    for (const cJSON *v = at->value->child; v; v = v->next)
        if (n++ == max) {
            hapi_json_bad(at, "has more than %u items", max);
            return 0;
        }
    return n;
}

double hapi_json_number(const struct hapi_json *at, double min, double max)
{
    if (!there(at))
        return 0;
    double v = cJSON_IsNumber(at->value) ? at->value->valuedouble : NAN;
    if (v >= min && v <= max)
        return v;
    hapi_json_bad(at, "must be a number from %.15g to %.15g", min, max);
    return 0;
}

uint64_t hapi_json_count(const struct hapi_json *at, uint64_t min, uint64_t max)
{
    if (!there(at))
        return 0;
    double v = cJSON_IsNumber(at->value) ? at->value->valuedouble : NAN;
    if (v >= (double)min && v <= (double)max && v == floor(v))
        return (uint64_t)v;
    hapi_json_bad(at, "must be a whole number from %llu to %llu", (unsigned long long)min,
                  (unsigned long long)max);
    return 0;
}

const char *hapi_json_string(const struct hapi_json *at)
{
    if (!there(at))
        return NULL;
    if (cJSON_IsString(at->value) && at->value->valuestring[0])
        return at->value->valuestring;
    hapi_json_bad(at, "must be a string, not empty");
    return NULL;
}
