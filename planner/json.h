/*
 * JSON from outside, read so that what is wrong with it is said by its key: `cuts[3].storage_s`.
 *
 *     struct hapi_json_state s = {.err = err};
 *     struct hapi_json top = hapi_json_top(root, &s);
 *     struct hapi_json v = hapi_json_member(&top, "images");
 *     n = hapi_json_count(&v, 1, 1000);                        ... then one look at s.rc
 *
 * The first complaint is kept: after it every getter gives 0 or NULL and changes nothing. Errors:
 * HAPI_EFORMAT (no JSON), HAPI_EINVAL (a key that is missing or wrong), HAPI_ENOMEM.
 */
#ifndef HAPI_PLANNER_JSON_H
#define HAPI_PLANNER_JSON_H

#include <cjson/cJSON.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "err.h"

enum { HAPI_JSON_PATH = 192, HAPI_JSON_KEYS = 512 };

struct hapi_json_state {
    int rc;
    struct hapi_err *err;
};

/* A place in a document: a member `key`, or item `index` where key is NULL, of what `in` is. */
struct hapi_json {
    const cJSON *value; /* NULL: not there */
    const struct hapi_json *in;
    const char *key;
    uint32_t index;
    struct hapi_json_state *state;
};

/* The document, to be given to cJSON_Delete(); the error names the place where it stops being JSON. NaN and
 * Infinity are no JSON. */
int hapi_json_parse(cJSON **out, const char *text, size_t size, struct hapi_err *err);

struct hapi_json hapi_json_top(const cJSON *root, struct hapi_json_state *state);
/* `in` must outlive it. Its value is NULL when `in` is no object. */
struct hapi_json hapi_json_member(const struct hapi_json *in, const char *key);
struct hapi_json hapi_json_item(const struct hapi_json *in, const cJSON *value, uint32_t index);

/* Complains of that place: its path and the text, unless something was wrong before. */
void hapi_json_bad(const struct hapi_json *at, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* The same, for HAPI_ENOMEM. */
void hapi_json_no_memory(const struct hapi_json *at);
/* "cuts[3].storage_s" into out; bytes that are no printable ASCII become `?`. */
void hapi_json_path(const struct hapi_json *at, char out[HAPI_JSON_PATH]);

/* Each complains unless it is there and is that. Strings are not empty and live as long as the document; an
 * object has at most HAPI_JSON_KEYS keys, none twice. */
bool hapi_json_object(const struct hapi_json *at);
/* Items of an array; 0 when it is none or has more than `max`. */
uint32_t hapi_json_array(const struct hapi_json *at, uint32_t max);
double hapi_json_number(const struct hapi_json *at, double min, double max);
uint64_t hapi_json_count(const struct hapi_json *at, uint64_t min, uint64_t max);
const char *hapi_json_string(const struct hapi_json *at);

#endif
