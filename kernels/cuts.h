/*
 * What cuts.c (one cut, sets of tensors, the default) and cut_list.c (listings) share. Internal to them.
 */
#ifndef HAPI_KERNELS_CUTS_H
#define HAPI_KERNELS_CUTS_H

#include "model.h"

enum { HAPI_CUTS_FOUND_MAX = 4096 };

/* One listing: the cuts of at most max_tensors tensors. */
struct hapi_cut_list {
    uint32_t max_tensors; /* 0: not made yet */
    struct hapi_cut *cuts;
    size_t n;
};

struct hapi_cuts {
    struct hapi_graph *g; /* the whole, at batch 1; names in it are the model's */
    struct hapi_arena *arena;
    struct hapi_cut_list single, all;            /* all: the last one asked for */
    struct hapi_cut *found[HAPI_CUTS_FOUND_MAX]; /* by hapi_model_cut_find(), beyond the listing */
    size_t n_found;
    const struct hapi_cut *standard;
};

/* cut_list.c: fills *out from c->g. HAPI_ETOOBIG beyond HAPI_CUTS_ALL_MAX cuts of several tensors,
 * HAPI_ENOMEM. */
int hapi_cuts_list(struct hapi_cuts *c, uint32_t max_tensors, struct hapi_cut_list *out,
                   struct hapi_err *err);

/* cuts.c */
bool hapi_cuts_is_float(enum hapi_dtype d);
/* [v]: comes from the model's inputs; all other values are constants. NULL without memory. */
bool *hapi_cuts_dynamic(const struct hapi_graph *g, struct hapi_arena *arena);
/* Adds what node n costs. `seen` begins as hapi_cuts_dynamic() and marks the weights that are counted;
 * shapes, axes and the scalars of Clip are constants too, but no parameters. */
void hapi_cuts_add_node(const struct hapi_graph *g, const struct hapi_node *n, bool *seen,
                        struct hapi_cut *sum);
/* Sorts n values by their names. */
void hapi_cuts_sort(int *values, const char **names, size_t n);
/* Fills id, tensors and bytes; values are sorted by name. */
int hapi_cuts_describe(struct hapi_arena *arena, const struct hapi_graph *g, const int *values, size_t n,
                       struct hapi_cut *cut, struct hapi_err *err);

#endif
