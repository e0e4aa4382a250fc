/* What choose.c, paper.c and split.c share. Internal to planner/. */
#ifndef HAPI_PLANNER_CHOOSE_H
#define HAPI_PLANNER_CHOOSE_H

#include <stdbool.h>

#include "planner.h"

/* Fills out[hapi_candidates_max()]; returns how many. */
size_t hapi_candidates(const struct hapi_profile *p, const struct hapi_choose_options *o,
                       struct hapi_candidate *out);
void hapi_choice_whole(struct hapi_choice *out, const struct hapi_candidate *c);

/* ---- paper.c. Candidates get their paper_s; what its formula takes for the best, in f32. NULL: none fits.
 */
const struct hapi_candidate *hapi_paper_choose(const struct hapi_profile *p, struct hapi_candidate *c,
                                               size_t n);
/* What the heuristic of the first versions takes: index of a cut. */
int32_t hapi_paper_v1_cut(const struct hapi_profile *p);

#endif
