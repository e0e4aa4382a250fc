/*
 * libfabric as the data connection: FI_EP_MSG, because it has per-peer teardown (closing the endpoint is the
 * fence; closing a memory region is none) and carries the nonce in its CM data. The tcp provider, unless
 * another one is named that has such endpoints with remote completion data and descriptors to wait on: verbs
 * has; shm has neither.
 */
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ofi_int.h"

void hapi_ofi_close(struct fid *fid)
{
    if (fid)
        fi_close(fid);
}

int hapi_ofi_error(struct hapi_err *err, int rc, const char *what)
{
    int code = rc == -FI_ENOMEM ? HAPI_ENOMEM : HAPI_ETRANSPORT;

    return hapi_err_set(err, code, -rc, "libfabric: %s: %s", what, fi_strerror(-rc));
}

int hapi_ofi_info(struct fi_info **out, const char *provider, const char *host, uint16_t port, uint64_t flags,
                  struct hapi_err *err)
{
    struct fi_info *hints = fi_allocinfo();
    const char *name = *provider ? provider : "tcp";
    char service[8];

    if (!hints)
        return hapi_err_set(err, HAPI_ENOMEM, 0, "libfabric: no memory");
    hints->caps = FI_MSG | FI_RMA;
    hints->ep_attr->type = FI_EP_MSG;
    hints->addr_format = FI_FORMAT_UNSPEC;
    hints->fabric_attr->prov_name = strdup(name);
    /* tcp: offsets for addresses, keys of our own choice. Others may ask for all that ofi_fabric knows. */
    if (strcmp(name, "tcp") != 0) {
        hints->domain_attr->mr_mode = FI_MR_LOCAL | FI_MR_VIRT_ADDR | FI_MR_ALLOCATED | FI_MR_PROV_KEY;
        hints->mode = FI_RX_CQ_DATA;
    }
    hints->domain_attr->threading = FI_THREAD_DOMAIN;
    hints->domain_attr->cq_data_size = 4;
    /* A write with data is seen after the writes before it. */
    hints->tx_attr->msg_order = FI_ORDER_WAW | FI_ORDER_SAW;
    hints->tx_attr->comp_order = FI_ORDER_STRICT; /* a completion stands for all before it */
    hints->rx_attr->msg_order = FI_ORDER_WAW | FI_ORDER_SAW;
    snprintf(service, sizeof service, "%u", port);
    int rc = fi_getinfo(FI_VERSION(1, 15), host, host ? service : NULL, flags, hints, out);
    fi_freeinfo(hints);
    if (rc == -FI_ENODATA || rc == -FI_ENOSYS)
        return hapi_err_set(
            err, HAPI_EUNSUPPORTED, -rc,
            "libfabric here has no provider %s with connected endpoints (FI_EP_MSG) and remote "
            "completion data that reaches %s: fi_info -t FI_EP_MSG lists those there are",
            name, host ? host : "a network");
    return rc || !*out ? hapi_ofi_error(err, rc ? rc : -FI_ENODATA, "fi_getinfo") : 0;
}

static int ofi_probe(struct hapi_err *err)
{
    struct fi_info *info = NULL;
    int rc = hapi_ofi_info(&info, "", NULL, 0, 0, err);

    if (rc == 0)
        fi_freeinfo(info);
    return rc;
}

static int ofi_fabric_open(struct hapi_fabric **out, const struct hapi_fabric *proto, struct hapi_err *err)
{
    struct ofi_fabric *f = calloc(1, sizeof *f);
    int rc;

    if (!f)
        return hapi_err_set(err, HAPI_ENOMEM, 0, "no memory for a fabric");
    f->base = *proto;
    rc = hapi_ofi_info(&f->info, proto->provider, NULL, 0, 0, err);
    if (rc)
        goto fail_alloc;
    f->local_keys = f->info->domain_attr->mr_mode & FI_MR_LOCAL;
    f->addresses = f->info->domain_attr->mr_mode & FI_MR_VIRT_ADDR;
    f->provider_keys = f->info->domain_attr->mr_mode & FI_MR_PROV_KEY;
    f->imm_wants_recv = f->info->mode & FI_RX_CQ_DATA;
    rc = fi_fabric(f->info->fabric_attr, &f->fid, NULL);
    if (rc) {
        rc = hapi_ofi_error(err, rc, "fi_fabric");
        goto fail_info;
    }
    *out = &f->base;
    return 0;
fail_info:
    fi_freeinfo(f->info);
fail_alloc:
    free(f);
    return rc;
}

static void ofi_fabric_close(struct hapi_fabric *base)
{
    struct ofi_fabric *f = (struct ofi_fabric *)base;

    hapi_ofi_close(f->slab ? &f->slab->fid : NULL);
    hapi_ofi_close(f->domain ? &f->domain->fid : NULL);
    fi_close(&f->fid->fid);
    fi_freeinfo(f->info);
    free(f);
}

/* Opens an event queue and watches its descriptor. */
int hapi_ofi_eq(struct ofi_fabric *f, struct fid_eq **eq, struct hapi_watch *w, struct hapi_err *err)
{
    struct fi_eq_attr attr = {.size = 64, .wait_obj = FI_WAIT_FD};
    int rc = fi_eq_open(f->fid, &attr, eq, NULL);

    if (rc)
        return hapi_ofi_error(err, rc, "fi_eq_open");
    rc = fi_control(&(*eq)->fid, FI_GETWAIT, &w->fd);
    if (rc)
        return hapi_ofi_error(err, rc, "wait descriptor of an event queue");
    w->events = POLLIN;
    return 0;
}

const struct hapi_fabric_ops hapi_fabric_ofi = {
    .kind = "ofi",
    .conn = &hapi_ofi_conn_ops,
    .probe = ofi_probe,
    .open = ofi_fabric_open,
    .close = ofi_fabric_close,
    .listener_open = hapi_ofi_listener_open,
    .listener_close = hapi_ofi_listener_close,
};
