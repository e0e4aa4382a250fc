/*
 * Geometry of Resize and Upsample: from where each output coordinate is taken, with all modes resolved.
 * Internal to kernels/. Shape inference, the plain loops and back ends use it alike, so that they cannot
 * disagree.
 *
 * Opset 10 and Upsample know asymmetric coordinates only; since 11 the attributes say. What the node takes as
 * numbers (scales, sizes, roi) must be constants. Plain data, any thread.
 */
#ifndef HAPI_KERNELS_RESAMPLE_H
#define HAPI_KERNELS_RESAMPLE_H

#include "graph.h"

enum hapi_resample_mode { HAPI_RESAMPLE_NEAREST, HAPI_RESAMPLE_LINEAR, HAPI_RESAMPLE_CUBIC };

enum hapi_resample_place {
    HAPI_PLACE_HALF_PIXEL,
    HAPI_PLACE_HALF_PIXEL_SYMMETRIC,
    HAPI_PLACE_PYTORCH_HALF_PIXEL,
    HAPI_PLACE_ALIGN_CORNERS,
    HAPI_PLACE_ASYMMETRIC,
    HAPI_PLACE_TF_HALF_PIXEL_FOR_NN,
    HAPI_PLACE_TF_CROP_AND_RESIZE
};

enum hapi_resample_nearest {
    HAPI_NEAREST_ROUND_PREFER_FLOOR,
    HAPI_NEAREST_ROUND_PREFER_CEIL,
    HAPI_NEAREST_FLOOR,
    HAPI_NEAREST_CEIL
};

struct hapi_resample_axis {
    int64_t in, out;
    double scale;
    double roi_start, roi_end; /* of tf_crop_and_resize */
};

struct hapi_resample {
    enum hapi_resample_mode mode;
    enum hapi_resample_place place;
    enum hapi_resample_nearest nearest;
    bool exclude_outside, antialias;
    double cubic_a, extrapolation;
    int rank;
    struct hapi_resample_axis axis[HAPI_MAX_RANK];
};

/* HAPI_EFORMAT, HAPI_EUNSUPPORTED (modes, a scale that is no constant), HAPI_ETOOBIG, naming the node. */
int hapi_resample_of(const struct hapi_graph *g, const struct hapi_node *n, struct hapi_resample *out,
                     struct hapi_err *err);

enum { HAPI_RESAMPLE_TAPS = 66 }; /* cubic, antialiased, down to 1/16 */

/* Input elements of an output coordinate along an axis: the weighted sum of n elements, whose indices are in
 * range and may repeat. outside: the extrapolation value instead. */
struct hapi_resample_taps {
    int n;
    bool outside;
    int64_t index[HAPI_RESAMPLE_TAPS];
    double weight[HAPI_RESAMPLE_TAPS];
};

void hapi_resample_taps(const struct hapi_resample *r, int axis, int64_t out, struct hapi_resample_taps *t);

/* How many input elements one output element is made of, at most; 1 when the node is malformed. */
uint64_t hapi_resize_work(const struct hapi_graph *g, const struct hapi_node *n);

#endif
