/* The keys of a profile that are read and written alike: one table for each kind of object. */
#ifndef HAPI_PLANNER_PROFILE_FIELDS_H
#define HAPI_PLANNER_PROFILE_FIELDS_H

#include "profile.h"

enum hapi_field_kind {
    HAPI_FIELD_TEXT,   /* const char * */
    HAPI_FIELD_COUNT,  /* uint32_t */
    HAPI_FIELD_LONG,   /* uint64_t */
    HAPI_FIELD_AMOUNT, /* double */
    HAPI_FIELD_TIME,   /* struct hapi_curve */
    HAPI_FIELD_FLAG,   /* bool */
};

struct hapi_field {
    const char *key;
    size_t offset;
    enum hapi_field_kind kind;
    bool required;
    double min, max;
    double absent; /* what an optional number is when it is not said */
};

struct hapi_fields {
    const struct hapi_field *at;
    size_t n;
};

extern const struct hapi_fields hapi_profile_fields, hapi_profile_cut_fields, hapi_profile_memory_fields,
    hapi_profile_tier_fields, hapi_profile_node_fields;

#endif
