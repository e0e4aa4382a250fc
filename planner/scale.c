#include "scale.h"

static const char *const names[] = {
#define X(scale, name) [scale] = name,
    HAPI_SCALES(X)
#undef X
};

const char *hapi_scale_name(enum hapi_scale what)
{
    return names[what];
}

void hapi_curve_scale(struct hapi_curve *c, double by)
{
    if (c->s > 0)
        c->s *= by;
    for (uint32_t i = 0; i < c->n; i++)
        ((struct hapi_curve_point *)c->points)[i].s *= by; /* readers get it as const; it is the profile's */
}

void hapi_profile_scale(struct hapi_profile *p, enum hapi_scale what, double by)
{
    switch (what) {
    case HAPI_SCALE_BANDWIDTH:
        p->bandwidth_Bps *= by;
        p->client_bandwidth_Bps *= by;
        for (uint32_t i = 0; i < p->n_node_list; i++)
            p->node_list[i].bandwidth_Bps *= by;
        break;
    case HAPI_SCALE_STORAGE:
        hapi_curve_scale(&p->storage_prepare_s, 1 / by);
        for (uint32_t i = 0; i < p->n_cuts; i++)
            hapi_curve_scale(&p->cuts[i].storage_s, 1 / by);
        break;
    case HAPI_SCALE_COMPUTE:
        hapi_curve_scale(&p->source_prepare_s, 1 / by);
        hapi_curve_scale(&p->source_compute_s, 1 / by);
        for (uint32_t i = 0; i < p->n_cuts; i++)
            hapi_curve_scale(&p->cuts[i].compute_s, 1 / by);
        break;
    case HAPI_SCALE_DISK:
        hapi_curve_scale(&p->read_s, 1 / by);
        break;
    case HAPI_SCALE_TRAIN:
    case HAPI_SCALES_N:
        hapi_curve_scale(&p->train_s, 1 / by);
        break;
    }
}
