/*
 * The trainable part of `hapi train`: a linear classifier on standardised features, softmax cross-entropy,
 * SGD with momentum or Adam (Kingma and Ba 2015), its products by oneDNN's matmul.
 *
 * Features are standardised by the mean and variance of those seen so far (Welford), so that training can
 * begin with the first batch that arrives. Threads: one at a time.
 */
#ifndef HAPI_CLIENT_HEAD_H
#define HAPI_CLIENT_HEAD_H

#include <stddef.h>
#include <stdint.h>

#include "err.h"

struct head;

struct head_options {
    size_t width;                     /* features of a sample */
    uint32_t classes, batch;          /* batch: most rows of one call */
    int adam;                         /* else SGD */
    float lr, momentum, weight_decay; /* decoupled decay */
};

int head_new(struct head **out, const struct head_options *o, struct hapi_err *err);
void head_free(struct head *h);
/* rows[n] point to width floats each. */
void head_observe(struct head *h, const float *const *rows, uint32_t n);
/* One step; *loss: mean cross-entropy of the batch before it. Errors: HAPI_ESYS with dnnl's status. */
int head_train(struct head *h, const float *const *rows, const uint32_t *labels, uint32_t n, double *loss,
               struct hapi_err *err);
int head_predict(struct head *h, const float *const *rows, uint32_t n, uint32_t *predictions,
                 struct hapi_err *err);

#endif
