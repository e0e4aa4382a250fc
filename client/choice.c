/* Which transport the data connection of a node uses, and why. */
#include <stdio.h>
#include <string.h>

#include "loader.h"

const char *const transport_names[TRANSPORTS] = {"ofi", "verbs"};

static bool automatic(const struct hapi_loader *l)
{
    return !strcmp(l->o.transport, "auto");
}

int choice_options(struct hapi_loader *l, struct hapi_err *err)
{
    const struct hapi_rdma_path any = HAPI_RDMA_PATH_ANY, *p = l->o.path ? l->o.path : &any;
    bool known = automatic(l), mtu = !p->mtu;

    for (int t = 0; t < TRANSPORTS; t++)
        known |= !strcmp(l->o.transport, transport_names[t]);
    if (!known)
        return hapi_err_set(err, HAPI_EINVAL, 0, "transport is auto, ofi or verbs, not `%s`", l->o.transport);
    for (uint32_t m = 256; m <= 4096; m *= 2)
        mtu |= p->mtu == m;
    if (p->gid_index < -1 || p->gid_index > 255 || p->tos < -1 || p->tos > 255 || p->sl < -1 || p->sl > 15 ||
        !mtu)
        return hapi_err_set(err, HAPI_EINVAL, 0,
                            "out of range: gid_index 0..255, mtu 256, 512, 1024, 2048 or 4096, tos 0..255, "
                            "sl 0..15");
    l->path = (struct hapi_fabric_path){p->gid_index, p->tos, p->sl, p->mtu};
    l->o.path = NULL; /* `path` is our copy */
    return 0;
}

/* Opens it on first need; a failure is remembered, since it will not go away. */
static int fabric_need(struct hapi_loader *l, enum transport t, struct hapi_err *err)
{
    struct loader_fabric *f = &l->fabrics[t];
    struct hapi_fabric_options opt = {
        .device = l->o.device,
        .provider = l->o.provider,
        .path = &l->path,
        .topology = l->topology,
        .max_recv = 1,
        .max_ops = 2 * NODE_REQUESTS,
        .max_imm = NODE_REQUESTS * REQUEST_SAMPLES,
        .busy_poll_us = l->o.busy_poll_us,
    };

    if (!f->fabric && !f->why.code)
        hapi_fabric_open(&f->fabric, l->loop, transport_names[t], &l->local, &opt, &f->why);
    if (f->fabric)
        return 0;
    *err = f->why;
    return err->code;
}

static bool verbs_possible(struct loader_node *n, struct hapi_err *why)
{
    if (!(n->caps & HAPI_CAP_TRANSPORT_VERBS))
        hapi_err_set(why, HAPI_EUNSUPPORTED, 0, "the node does not offer verbs");
    else if (n->no_verbs.code)
        *why = n->no_verbs;
    else
        return fabric_need(n->l, TRANSPORT_VERBS, why) == 0;
    return false;
}

int choice_make(struct loader_node *n, struct hapi_err *err)
{
    struct hapi_loader *l = n->l;
    struct hapi_err why = {0};

    if (!automatic(l)) {
        n->transport = strcmp(l->o.transport, "ofi") ? TRANSPORT_VERBS : TRANSPORT_OFI;
        return fabric_need(l, n->transport, err);
    }
    if (verbs_possible(n, &why)) {
        n->transport = TRANSPORT_VERBS;
        return 0;
    }
    if (!(n->caps & HAPI_CAP_TRANSPORT_OFI))
        return hapi_err_set(err, HAPI_EUNSUPPORTED, 0, "the node offers verbs only: %.400s", why.text);
    n->why_ofi = why;
    n->transport = TRANSPORT_OFI;
    return fabric_need(l, TRANSPORT_OFI, err);
}

bool choice_fall_back(struct loader_node *n, const struct hapi_err *why)
{
    if (!automatic(n->l) || n->transport != TRANSPORT_VERBS || n->verbs_was_up ||
        !(n->caps & HAPI_CAP_TRANSPORT_OFI))
        return false;
    hapi_err_set(&n->no_verbs, why->code, why->sys, "no data connection over verbs: %.400s", why->text);
    return true;
}

void choice_tell(struct loader_node *n)
{
    struct hapi_loader *l = n->l;
    struct hapi_loader_transport *t = &n->told;

    n->verbs_was_up |= n->transport == TRANSPORT_VERBS;
    pthread_mutex_lock(&l->lock);
    snprintf(t->transport, sizeof t->transport, "%s", transport_names[n->transport]);
    if (!automatic(l))
        snprintf(t->why, sizeof t->why, "it was asked for");
    else if (n->transport == TRANSPORT_VERBS)
        snprintf(t->why, sizeof t->why, "the node offers verbs, and an RDMA device reaches it");
    else
        snprintf(t->why, sizeof t->why, "%s", n->why_ofi.text);
    pthread_mutex_unlock(&l->lock);
}

void choice_close(struct hapi_loader *l)
{
    for (int t = 0; t < TRANSPORTS; t++)
        if (l->fabrics[t].fabric)
            hapi_fabric_close(l->fabrics[t].fabric);
}
