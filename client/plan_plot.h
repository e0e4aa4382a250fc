/* Stage times by cut as an SVG file: where `hapi plan` sees the bottleneck of each. */
#ifndef HAPI_CLIENT_PLAN_PLOT_H
#define HAPI_CLIENT_PLAN_PLOT_H

#include "planner.h"

/* One column for each cut (the best wire dtype of it) and one for no pushdown; the chosen ones are marked.
 * HAPI_ESYS when it cannot be written. */
int plan_plot(const char *path, const struct hapi_profile *p, const struct hapi_choice *choice,
              const struct hapi_candidate *c, size_t n, struct hapi_err *err);

/* The candidate of that cut with the shortest epoch; NULL: none fits. */
const struct hapi_candidate *plan_best_of(const struct hapi_candidate *c, size_t n, int32_t cut);

#endif
