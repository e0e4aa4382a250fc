/*
 * A storage node and what a loader needs, in this process: images, a network, hapi_rt on a thread of its own.
 * Their folder is removed at the end.
 */
#ifndef HAPI_TESTS_PAIR_H
#define HAPI_TESTS_PAIR_H

#include "hapi.h"

enum { PAIR_SAMPLES = 37, PAIR_MICRO_BATCH = 8 };

/* The network's tensors that a test may freeze at. */
#define PAIR_CONV "stem_relu" /* (16,32,32): what a convolution made, in oneDNN's own layout */
#define PAIR_POOL "flat"      /* (256): behind a pool and a Flatten */

struct pair;

/* backend: of the node. Ends the program when it cannot. */
struct pair *pair_open(const char *backend);
void pair_close(struct pair *p);
/* Options of a loader: the network, the node, the data; batches of 16. */
struct hapi_loader_options pair_options(const struct pair *p);

#endif
