/* The job behind `hapi train`: fetch, train, test, report. */
#ifndef HAPI_CLIENT_TRAIN_H
#define HAPI_CLIENT_TRAIN_H

#include "err.h"
#include "hapi.h"

struct train_options {
    struct hapi_loader_options loader; /* of the training set; the test set's differs in name and order */
    struct hapi_rdma_path path;        /* loader.path points here */
    const char *test_dataset, *json, *dump_features, *dump_order, *trace;
    uint32_t epochs;
    int adam, quiet;
    double lr, momentum, weight_decay;
    uint64_t keep; /* bytes of features kept in memory between epochs */
};

/* Errors: of the loader, HAPI_ESYS for files that cannot be written. */
int train_run(const struct train_options *o, struct hapi_err *err);

#endif
