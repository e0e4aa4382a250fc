/* What an epoch was like: what each resource did meanwhile, and which was the busiest. */
#include "sim_inside.h"

static const char *const names[] = {
#define X(resource, name) [resource] = name,
    HAPI_SIM_RESOURCES(X)
#undef X
};

const char *hapi_sim_resource_name(enum hapi_sim_resource r)
{
    return names[r];
}

static struct sim_gauge *of_link(struct sim *s, uint32_t number)
{
    if (!number)
        return NULL;
    sim_link_account(&s->net, number);
    return &s->net.links[number].gauge;
}

static struct sim_gauge *up_to_now(struct sim *s, struct sim_gauge *g)
{
    sim_gauge_set(g, sim_now(s), g->use, g->is_blocked);
    return g;
}

static struct sim_gauge *of_devices(struct sim *s, struct sim_machine *m)
{
    return m->devices.capacity > 0 ? up_to_now(s, &m->devices.gauge) : NULL;
}

/* Brought up to now; NULL: there is no such thing. */
static struct sim_gauge *of_client(struct sim_client *c, enum hapi_sim_resource r)
{
    switch (r) {
    case HAPI_SIM_TRAIN:
        return up_to_now(c->sim, &c->trainer);
    case HAPI_SIM_COMPUTE:
        return up_to_now(c->sim, &c->machine.cores.gauge);
    case HAPI_SIM_COMPUTE_DEVICE:
        return of_devices(c->sim, &c->machine);
    case HAPI_SIM_CLIENT_LINK:
        return of_link(c->sim, c->link);
    default:
        return c->sim->net.capacity > 0 ? up_to_now(c->sim, &c->sim->net.gauge) : NULL;
    }
}

struct sim_gauge *sim_node_gauge_of(struct sim_node *n, enum hapi_sim_resource r)
{
    switch (r) {
    case HAPI_SIM_NODE_LINK:
        return of_link(n->sim, n->link);
    case HAPI_SIM_STORAGE:
        return up_to_now(n->sim, &n->machine.cores.gauge);
    case HAPI_SIM_STORAGE_DEVICE:
        return of_devices(n->sim, &n->machine);
    default:
        return up_to_now(n->sim, &n->disk);
    }
}

static void keep(const struct sim_gauge *g, double *spent)
{
    spent[0] = g ? g->busy : 0;
    spent[1] = g ? g->blocked : 0;
}

void sim_epoch_begin(struct sim_client *c)
{
    c->now = (struct hapi_sim_epoch){.start_s = sim_now(c->sim)};
    for (int r = 0; r < HAPI_SIM_NODE_LINK; r++)
        keep(of_client(c, (enum hapi_sim_resource)r), c->spent[r]);
    for (uint32_t i = 0; i < c->spec->n_nodes; i++)
        for (int r = HAPI_SIM_NODE_LINK; r < HAPI_SIM_RESOURCES_N; r++)
            keep(sim_node_gauge_of(c->sessions[i].node, (enum hapi_sim_resource)r),
                 c->sessions[i].spent[r - HAPI_SIM_NODE_LINK]);
}

/* Rounding of sums of many small times may come to a little more than all of it. */
static double part(double s, double of)
{
    return of > 0 && s > 0 ? (s < of ? s / of : 1) : 0;
}

static struct hapi_sim_use use(const struct sim_gauge *g, double seconds, const double *spent)
{
    struct hapi_sim_use u = {0};

    if (!g || seconds <= 0)
        return u;
    u.busy = part(g->busy - spent[0], seconds);
    u.blocked = part(g->blocked - spent[1], seconds);
    u.starved = u.busy + u.blocked < 1 ? 1 - u.busy - u.blocked : 0;
    return u;
}

struct hapi_sim_use sim_use(const struct sim_gauge *g, double seconds)
{
    static const double nothing[2] = {0};

    return use(g, seconds, nothing);
}

void sim_epoch_end(struct sim_client *c)
{
    struct hapi_sim_epoch *e = &c->now;

    e->seconds = sim_now(c->sim) - e->start_s;
    for (int r = 0; r < HAPI_SIM_NODE_LINK; r++)
        e->use[r] = use(of_client(c, (enum hapi_sim_resource)r), e->seconds, c->spent[r]);
    for (uint32_t i = 0; i < c->spec->n_nodes; i++)
        for (int r = HAPI_SIM_NODE_LINK; r < HAPI_SIM_RESOURCES_N; r++) {
            struct sim_session *s = &c->sessions[i];
            struct hapi_sim_use u = use(sim_node_gauge_of(s->node, (enum hapi_sim_resource)r), e->seconds,
                                        s->spent[r - HAPI_SIM_NODE_LINK]);
            if (i && u.busy <= e->use[r].busy)
                continue;
            e->use[r] = u;
            e->node[r] = s->node->number;
        }
    for (int r = 0; r < HAPI_SIM_RESOURCES_N; r++)
        if (e->use[r].busy > e->use[e->bottleneck].busy)
            e->bottleneck = (enum hapi_sim_resource)r;
    c->epochs[c->epoch] = *e;
}
