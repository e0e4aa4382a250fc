/* Resize and Upsample: each output element from the taps of its coordinates. */
#include "ref.h"
#include "resample.h"

/* Sum over the taps of dims [d, rank) of the element that the dims before have led to. */
static double gather(const struct hapi_ref_call *c, const struct hapi_resample *r,
                     const struct hapi_resample_taps *t, int d, int64_t at)
{
    double sum = 0;

    if (d == r->rank)
        return hapi_ref_get_f(c->in[0], hapi_ref_in(c, 0)->dtype, at);
    for (int i = 0; i < t[d].n; i++)
        sum += t[d].weight[i] * gather(c, r, t, d + 1, at * r->axis[d].in + t[d].index[i]);
    return sum;
}

int hapi_ref_resize(const struct hapi_ref_call *c)
{
    const struct hapi_value *x = hapi_ref_in(c, 0), *o = hapi_ref_out(c, 0);
    struct hapi_resample_taps taps[HAPI_MAX_RANK];
    struct hapi_resample r;
    struct hapi_ref_walk w;
    int rc = hapi_resample_of(c->g, c->n, &r, c->err);

    if (rc)
        return rc;
    hapi_ref_walk_init(&w, &o->shape);
    for (int64_t row = 0, to = 0; row < w.rows; row++, hapi_ref_walk_next(&w)) {
        bool outside = false;
        for (int d = 0; d + 1 < r.rank; d++) {
            hapi_resample_taps(&r, d, w.at[d], &taps[d]);
            outside |= taps[d].outside;
        }
        for (int64_t i = 0; i < w.inner; i++, to++) {
            bool out = outside;
            if (r.rank) {
                hapi_resample_taps(&r, r.rank - 1, i, &taps[r.rank - 1]);
                out |= taps[r.rank - 1].outside;
            }
            hapi_ref_put_f(c->out[0], x->dtype, to, out ? r.extrapolation : gather(c, &r, taps, 0, 0));
        }
    }
    return HAPI_OK;
}
