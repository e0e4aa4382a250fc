#include "profile_fields.h"

#include <stddef.h>

#define IMAGES_MAX 1099511627776.0 /* 2^40 */
#define BYTES_MAX 1e18
#define TIME_MAX 1e9
#define COUNT_MAX 16777216.0 /* 2^24 */

#define TEXT(s, f, need)                                                                                     \
    {                                                                                                        \
#f, offsetof(struct s, f), HAPI_FIELD_TEXT, need, 0, 0, 0                                            \
    }
#define TIME(s, f, need)                                                                                     \
    {                                                                                                        \
#f, offsetof(struct s, f), HAPI_FIELD_TIME, need, 0, TIME_MAX, 0                                     \
    }
#define NUMBER(s, f, kind, min, max)                                                                         \
    {                                                                                                        \
#f, offsetof(struct s, f), kind, true, min, max, 0                                                   \
    }
#define OPTION(s, f, kind, min, max, absent)                                                                 \
    {                                                                                                        \
#f, offsetof(struct s, f), kind, false, min, max, absent                                             \
    }
#define FIELDS(table)                                                                                        \
    {                                                                                                        \
        table, sizeof table / sizeof *table                                                                  \
    }

static const struct hapi_field profile[] = {
    TEXT(hapi_profile, model, true),
    TEXT(hapi_profile, hash, false),
    TEXT(hapi_profile, host, false),
    TEXT(hapi_profile, dtype, false),
    TEXT(hapi_profile, date, false),
    NUMBER(hapi_profile, images, HAPI_FIELD_LONG, 1, IMAGES_MAX),
    NUMBER(hapi_profile, train_batch, HAPI_FIELD_COUNT, 1, COUNT_MAX),
    NUMBER(hapi_profile, freeze, HAPI_FIELD_COUNT, 0, COUNT_MAX),
    TIME(hapi_profile, train_s, true),
    NUMBER(hapi_profile, source_bytes, HAPI_FIELD_AMOUNT, 1, BYTES_MAX),
    TIME(hapi_profile, source_prepare_s, true),
    TIME(hapi_profile, source_compute_s, false),
    TIME(hapi_profile, serialise_s, false),
    TIME(hapi_profile, read_s, true),
    TIME(hapi_profile, storage_prepare_s, true),
    NUMBER(hapi_profile, bandwidth_Bps, HAPI_FIELD_AMOUNT, 1, BYTES_MAX),
    NUMBER(hapi_profile, epochs, HAPI_FIELD_COUNT, 1, COUNT_MAX),
    NUMBER(hapi_profile, storage_cache, HAPI_FIELD_AMOUNT, 0, BYTES_MAX),
    NUMBER(hapi_profile, compute_cache, HAPI_FIELD_AMOUNT, 0, BYTES_MAX),
    NUMBER(hapi_profile, latency_s, HAPI_FIELD_AMOUNT, 0, TIME_MAX),
    NUMBER(hapi_profile, nodes, HAPI_FIELD_COUNT, 1, HAPI_PROFILE_NODES_MAX),
    NUMBER(hapi_profile, storage_memory, HAPI_FIELD_AMOUNT, 0, BYTES_MAX),
    NUMBER(hapi_profile, compute_memory, HAPI_FIELD_AMOUNT, 0, BYTES_MAX),
    OPTION(hapi_profile, client_bandwidth_Bps, HAPI_FIELD_AMOUNT, 1, BYTES_MAX, 0),
    OPTION(hapi_profile, jitter, HAPI_FIELD_AMOUNT, 0, 1, 0),
    OPTION(hapi_profile, request_images, HAPI_FIELD_COUNT, 1, COUNT_MAX, 0),
};

static const struct hapi_field cut[] = {
    NUMBER(hapi_profile_cut, index, HAPI_FIELD_COUNT, 0, COUNT_MAX),
    TEXT(hapi_profile_cut, name, true),
    TIME(hapi_profile_cut, storage_s, true),
    TIME(hapi_profile_cut, compute_s, true),
    TIME(hapi_profile_cut, serialise_s, false),
};

static const struct hapi_field memory[] = {
    NUMBER(hapi_profile_memory, fixed, HAPI_FIELD_AMOUNT, 0, BYTES_MAX),
    NUMBER(hapi_profile_memory, per_image, HAPI_FIELD_AMOUNT, 0, BYTES_MAX),
};

static const struct hapi_field tier[] = {
    OPTION(hapi_profile_tier, cores, HAPI_FIELD_COUNT, 1, 65536, 1),
    OPTION(hapi_profile_tier, contention, HAPI_FIELD_AMOUNT, 0, 1, 0),
    OPTION(hapi_profile_tier, devices, HAPI_FIELD_COUNT, 0, 65536, 0),
    OPTION(hapi_profile_tier, train_shares, HAPI_FIELD_FLAG, 0, 1, 0),
};

/* What a node leaves out is the profile's: filled in by the reader. */
static const struct hapi_field node[] = {
    TEXT(hapi_profile_node, name, true),
    OPTION(hapi_profile_node, bandwidth_Bps, HAPI_FIELD_AMOUNT, 1, BYTES_MAX, 0),
    OPTION(hapi_profile_node, cores, HAPI_FIELD_COUNT, 1, 65536, 0),
    OPTION(hapi_profile_node, speed, HAPI_FIELD_AMOUNT, 1e-6, 1e6, 1),
};

const struct hapi_fields hapi_profile_fields = FIELDS(profile), hapi_profile_cut_fields = FIELDS(cut),
                         hapi_profile_memory_fields = FIELDS(memory), hapi_profile_tier_fields = FIELDS(tier),
                         hapi_profile_node_fields = FIELDS(node);
