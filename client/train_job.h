/*
 * A job of `hapi train` from the inside: train.c runs it, train_report.c says what came of it. Private to
 * both.
 */
#ifndef HAPI_CLIENT_TRAIN_JOB_H
#define HAPI_CLIENT_TRAIN_JOB_H

#include <stdio.h>

#include "train.h"

enum { TRAIN_PARTS_MAX = 8, TRAIN_REPLANS_MAX = 64 };

/* Features kept by sample number. */
struct kept {
    float *features;
    uint32_t *labels;
    uint8_t *present;
    uint64_t n;
    size_t width;
};

struct result {
    double seconds, loss, accuracy;
    uint64_t images, bytes, kept; /* kept: of the images, that this tier had kept */
    int from_memory;
};

struct job {
    const struct train_options *o;
    struct hapi_loader *train, *test;
    struct head *head;
    struct kept kept, tested; /* kept.features NULL: fetched anew every epoch */
    uint32_t *predictions;
    const float **rows;
    uint32_t *labels, *order;
    FILE *order_file;
    struct result *results;
    double test_seconds;
    uint64_t test_bytes;
    int64_t shown_ns;
    uint32_t replans; /* that were printed */
};

/* train_report.c */
const char *train_policy(const struct hapi_loader_options *o);
/* Of what is pushed down: as it was asked for, or as it was chosen. */
const char *train_wire(struct job *j);
int train_json(struct job *j, struct hapi_err *err); /* HAPI_ESYS */
int train_dump(struct job *j, struct hapi_err *err); /* HAPI_ESYS, HAPI_EINVAL (the path), HAPI_ENOMEM */

#endif
