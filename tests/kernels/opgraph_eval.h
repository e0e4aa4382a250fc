/* What an operation graph means, by plain loops in f32: the truth that a program is checked with where no GPU
 * is. */
#ifndef HAPI_TESTS_OPGRAPH_EVAL_H
#define HAPI_TESTS_OPGRAPH_EVAL_H

#include "opgraph.h"

/* memory[i]: of tensor i, where it is real and not given by value. */
void opgraph_eval(const struct hapi_cudnn_graph *g, void *const *memory);

#endif
