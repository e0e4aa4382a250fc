/* Which device, by the addresses that lead to it: librdmacm says what device an address of this machine has.
 */
#include <errno.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "topology.h"
#include "verbs_int.h"

enum { ADDRESSES_MAX = 64 };

/* ---- choosing ---- */

bool hapi_verbs_wanted(const char *wanted, const char *device, int port)
{
    size_t n = strcspn(wanted, ":");

    if (!*wanted)
        return true;
    if (strlen(device) != n || memcmp(wanted, device, n) != 0)
        return false;
    return !wanted[n] || !port || atoi(wanted + n + 1) == port;
}

static bool same_host(const union hapi_sockaddr *a, const union hapi_sockaddr *b)
{
    if (a->sa.sa_family != b->sa.sa_family)
        return false;
    if (a->sa.sa_family == AF_INET)
        return a->in.sin_addr.s_addr == b->in.sin_addr.s_addr;
    return memcmp(&a->in6.sin6_addr, &b->in6.sin6_addr, sizeof a->in6.sin6_addr) == 0;
}

int hapi_verbs_choose(const struct verbs_address *list, int n, const union hapi_sockaddr *want,
                      const char *device, bool need_gid, int numa)
{
    int best = -1;

    for (int i = 0; i < n; i++) {
        const struct verbs_address *a = &list[i];
        if (!hapi_verbs_wanted(device, a->device, a->port) || (need_gid && !a->gid_wanted))
            continue;
        if (same_host(&a->a, want))
            return i;
        if (want->sa.sa_family != AF_UNSPEC && want->sa.sa_family != a->a.sa.sa_family)
            continue;
        if (best < 0 || (numa >= 0 && a->numa == numa && list[best].numa != numa))
            best = i;
    }
    return best;
}

/* ---- what there is ---- */

static bool gid_is(const union ibv_gid *gid, const union hapi_sockaddr *a)
{
    static const uint8_t mapped[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff}; /* ::ffff:a.b.c.d */

    if (a->sa.sa_family == AF_INET6)
        return memcmp(gid->raw, &a->in6.sin6_addr, sizeof gid->raw) == 0;
    return memcmp(gid->raw, mapped, sizeof mapped) == 0 &&
           memcmp(gid->raw + sizeof mapped, &a->in.sin_addr, 4) == 0;
}

/* Whether a device answers to that address; which one. */
static bool address_device(const struct verbs_fabric *f, const union hapi_sockaddr *a,
                           struct verbs_address *out)
{
    const struct hapi_topology *t = f->base.opt.topology;
    int gid_index = f->base.path.gid_index;
    struct rdma_cm_id *id;
    union ibv_gid gid;

    if (rdma_create_id(f->channel, &id, NULL, RDMA_PS_TCP))
        return false;
    union hapi_sockaddr bind_to = *a;
    bool found = rdma_bind_addr(id, &bind_to.sa) == 0 && id->verbs;
    if (found) {
        *out = (struct verbs_address){.port = id->port_num, .a = *a, .numa = -1};
        snprintf(out->device, sizeof out->device, "%s", ibv_get_device_name(id->verbs->device));
        out->numa = t ? hapi_topology_device_numa(t, out->device) : -1;
        out->gid_wanted =
            gid_index >= 0 && ibv_query_gid(id->verbs, id->port_num, gid_index, &gid) == 0 && gid_is(&gid, a);
    }
    rdma_destroy_id(id);
    return found;
}

static bool usable(const struct ifaddrs *i, union hapi_sockaddr *a)
{
    memset(a, 0, sizeof *a);
    if (!i->ifa_addr || !(i->ifa_flags & IFF_UP) || i->ifa_flags & IFF_LOOPBACK)
        return false;
    if (i->ifa_addr->sa_family == AF_INET)
        memcpy(&a->in, i->ifa_addr, sizeof a->in);
    else if (i->ifa_addr->sa_family == AF_INET6)
        memcpy(&a->in6, i->ifa_addr, sizeof a->in6);
    else
        return false;
    /* A peer could not say on which of its links a link-local address is. */
    return a->sa.sa_family == AF_INET || !IN6_IS_ADDR_LINKLOCAL(&a->in6.sin6_addr);
}

static int addresses_list(const struct verbs_fabric *f, struct verbs_address *list)
{
    struct ifaddrs *all;
    union hapi_sockaddr a;
    int n = 0;

    if (getifaddrs(&all))
        return 0;
    for (const struct ifaddrs *i = all; i && n < ADDRESSES_MAX; i = i->ifa_next)
        if (usable(i, &a) && address_device(f, &a, &list[n]))
            n++;
    freeifaddrs(all);
    return n;
}

static int choose_here(const struct verbs_fabric *f, const union hapi_sockaddr *want,
                       union hapi_sockaddr *out, struct hapi_err *err)
{
    const struct hapi_topology *t = f->base.opt.topology;
    struct verbs_address list[ADDRESSES_MAX];
    bool need_gid = f->base.path.gid_index >= 0;
    int n = addresses_list(f, list);
    int i =
        hapi_verbs_choose(list, n, want, f->base.device, need_gid, t ? hapi_topology_core_numa(t, 0) : -1);

    if (i >= 0) {
        *out = list[i].a;
        return 0;
    }
    if (need_gid)
        return hapi_err_set(err, HAPI_EUNSUPPORTED, 0,
                            "verbs: no address of this machine is GID %d of %s (see `rdma link show`, "
                            "/sys/class/infiniband/*/ports/*/gids)",
                            f->base.path.gid_index, *f->base.device ? f->base.device : "an RDMA device");
    return hapi_err_set(err, HAPI_EUNSUPPORTED, 0, "verbs: %s has no %saddress that is up (ip addr show)",
                        *f->base.device ? f->base.device : "no RDMA device here",
                        want->sa.sa_family == AF_INET6  ? "IPv6 "
                        : want->sa.sa_family == AF_INET ? "IPv4 "
                                                        : "");
}

int hapi_verbs_local_address(const struct verbs_fabric *f, const union hapi_sockaddr *want,
                             union hapi_sockaddr *out, bool *found, struct hapi_err *err)
{
    union hapi_sockaddr family = {.sa.sa_family = want->sa.sa_family};

    *found = *f->base.device || f->base.path.gid_index >= 0;
    return *found ? choose_here(f, &family, out, err) : 0;
}

int hapi_verbs_data_host(const struct hapi_fabric *base, const char *host, char out[HAPI_NAME_MAX + 1],
                         struct hapi_err *err)
{
    const struct verbs_fabric *f = (const struct verbs_fabric *)base;
    union hapi_sockaddr want = {.sa.sa_family = AF_UNSPEC}, a;
    struct hapi_addresses asked;
    char text[HAPI_ADDRESS_TEXT];

    if (*host) {
        int rc = hapi_addresses_resolve(&asked, host, 0, true, false, err);
        if (rc)
            return rc;
        want = asked.a[0];
        if (want.sa.sa_family == AF_INET && want.in.sin_addr.s_addr == htonl(INADDR_ANY))
            want = (union hapi_sockaddr){.sa.sa_family = AF_INET};
        else if (want.sa.sa_family == AF_INET6 && IN6_IS_ADDR_UNSPECIFIED(&want.in6.sin6_addr))
            want = (union hapi_sockaddr){.sa.sa_family = AF_UNSPEC};
    }
    int rc = choose_here(f, &want, &a, err);
    if (rc)
        return rc;
    hapi_sockaddr_host(&a, text);
    snprintf(out, HAPI_NAME_MAX + 1, "%s", text);
    return 0;
}
