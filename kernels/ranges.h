/*
 * The ranges of activations, measured on real samples (`hapi calibrate`), that int8 plans take their scales
 * from. They are part of the ONNX file: an entry "hapi.ranges" of its metadata_props, hashed with it and
 * taken along in its prefixes.
 *
 *     -2.5 2.5 /features/conv/out      one value a line: least, greatest, name (all to the end of the line)
 *
 * Internal to kernels/. Plain data in the model's arena.
 */
#ifndef HAPI_KERNELS_RANGES_H
#define HAPI_KERNELS_RANGES_H

#include "arena.h"
#include "kernels.h"
#include "pb.h"

struct hapi_ranges {
    struct hapi_range *list; /* by name */
    size_t n;
};

/* Reads one StringStringEntryProto of a model. Another key's is left alone. HAPI_EFORMAT: a line that is
 * none, a number that is not finite, out of bounds or of the wrong sign, a value named twice, a second entry;
 * HAPI_ETOOBIG. */
int hapi_ranges_read(struct hapi_ranges *r, struct hapi_view entry, struct hapi_arena *arena,
                     struct hapi_err *err);
/* Whether an entry of metadata_props is the one above; false for a malformed one. */
bool hapi_ranges_is(struct hapi_view entry);
/* Of the value, or NULL. */
const struct hapi_range *hapi_ranges_find(const struct hapi_ranges *r, const char *name);
/* Appends the entry to a ModelProto; nothing for n 0. keep[i] false: not this one (NULL: all). */
void hapi_ranges_put(struct hapi_pb_out *model, const struct hapi_range *list, const bool *keep, size_t n);

#endif
