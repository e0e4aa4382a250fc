#include "topology.h"

#include <errno.h>
#include <hwloc.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct core {
    int cpu, numa;
    hwloc_const_bitmap_t nodes;
};

struct hapi_topology {
    hwloc_topology_t hw;
    struct core *cores;
    int n_cores;
};

/* ceil(quota / period) of one cgroup, or `otherwise` when it has none. */
static int quota_of(const char *file, int otherwise)
{
    long long quota, period;
    FILE *f = fopen(file, "re");
    int n = otherwise;

    if (!f)
        return n;
    if (fscanf(f, "%lld %lld", &quota, &period) == 2 && quota > 0 && period > 0 &&
        (quota + period - 1) / period < otherwise)
        n = (int)((quota + period - 1) / period);
    fclose(f);
    return n > 0 ? n : 1;
}

/* Our (version 2) cgroup and those above it, "" last; false: that is not known. */
static bool cgroup_of(char *dir, size_t size)
{
    char line[1024];
    FILE *f = fopen("/proc/self/cgroup", "re");

    if (!f)
        return false;
    *dir = '\0';
    while (fgets(line, sizeof line, f)) {
        line[strcspn(line, "\n")] = '\0';
        if (!strncmp(line, "0::", 3))
            snprintf(dir, size, "%s", line + 3);
    }
    fclose(f);
    return true;
}

static bool cgroup_up(char *dir)
{
    char *slash = strrchr(dir, '/');

    if (slash)
        *slash = '\0';
    return slash != NULL;
}

/* The smallest CPU quota; "max" has none. */
static int cores_by_quota(int cores)
{
    char dir[1024], file[1200];

    if (!cgroup_of(dir, sizeof dir))
        return cores;
    do {
        snprintf(file, sizeof file, "/sys/fs/cgroup%s/cpu.max", dir);
        cores = quota_of(file, cores);
    } while (cgroup_up(dir));
    return cores;
}

/* false: there is no such file, or it says "max". */
static bool bytes_of(const char *dir, const char *name, unsigned long long *out)
{
    char file[1200];

    snprintf(file, sizeof file, "/sys/fs/cgroup%s/%s", dir, name);
    FILE *f = fopen(file, "re");
    bool said = f && fscanf(f, "%llu", out) == 1;
    if (f)
        fclose(f);
    return said;
}

uint64_t hapi_memory_available(void)
{
    unsigned long long kib, most, used;
    uint64_t bytes = 0;
    char line[256], dir[1024];
    FILE *f = fopen("/proc/meminfo", "re");

    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "MemAvailable: %llu kB", &kib) == 1)
            bytes = (uint64_t)kib << 10;
    if (f)
        fclose(f);
    bool known = cgroup_of(dir, sizeof dir);
    while (known) {
        if (bytes_of(dir, "memory.max", &most) && bytes_of(dir, "memory.current", &used)) {
            uint64_t left = most > used ? most - used : 0;
            bytes = left < bytes ? left : bytes;
        }
        known = cgroup_up(dir);
    }
    return bytes;
}

static int cores_find(struct hapi_topology *t, struct hapi_err *err)
{
    hwloc_obj_type_t type = HWLOC_OBJ_CORE;
    int n = hwloc_get_nbobjs_by_type(t->hw, type);

    if (n <= 0) {
        type = HWLOC_OBJ_PU;
        n = hwloc_get_nbobjs_by_type(t->hw, type);
    }
    if (n <= 0)
        return hapi_err_set(err, HAPI_ESYS, 0, "hwloc finds no usable processor");
    t->cores = calloc((size_t)n, sizeof *t->cores);
    if (!t->cores)
        return hapi_err_set(err, HAPI_ENOMEM, 0, "no memory for %d cores", n);
    for (int i = 0; i < n; i++) {
        hwloc_obj_t o = hwloc_get_obj_by_type(t->hw, type, (unsigned)i);
        int numa = o->nodeset ? hwloc_bitmap_first(o->nodeset) : -1;
        t->cores[i] = (struct core){hwloc_bitmap_first(o->cpuset), numa < 0 ? 0 : numa, o->nodeset};
    }
    t->n_cores = cores_by_quota(n);
    return 0;
}

/* hwloc shows what the cgroup's cpuset allows; taskset's mask is ours to apply. */
static void restrict_to_binding(hwloc_topology_t hw)
{
    hwloc_bitmap_t set = hwloc_bitmap_alloc();

    if (set && !hwloc_get_cpubind(hw, set, HWLOC_CPUBIND_PROCESS) && !hwloc_bitmap_iszero(set))
        (void)hwloc_topology_restrict(hw, set, 0); /* refused (empty result): keep what there is */
    hwloc_bitmap_free(set);
}

int hapi_topology_open(struct hapi_topology **out, struct hapi_err *err)
{
    struct hapi_topology *t = calloc(1, sizeof *t);
    int rc;

    if (!t || hwloc_topology_init(&t->hw)) {
        free(t);
        return hapi_err_set(err, HAPI_ENOMEM, 0, "no memory for the topology");
    }
    hwloc_topology_set_io_types_filter(t->hw, HWLOC_TYPE_FILTER_KEEP_IMPORTANT);
    if (hwloc_topology_load(t->hw)) {
        rc = hapi_err_errno(err, errno, "hwloc cannot read the topology");
        goto fail;
    }
    restrict_to_binding(t->hw);
    if ((rc = cores_find(t, err)))
        goto fail;
    *out = t;
    return 0;
fail:
    hapi_topology_close(t);
    return rc;
}

void hapi_topology_close(struct hapi_topology *t)
{
    if (!t)
        return;
    hwloc_topology_destroy(t->hw);
    free(t->cores);
    free(t);
}

int hapi_topology_cores(const struct hapi_topology *t)
{
    return t->n_cores;
}

static const struct core *core_at(const struct hapi_topology *t, int core)
{
    return core >= 0 && core < t->n_cores ? &t->cores[core] : NULL;
}

int hapi_topology_core_numa(const struct hapi_topology *t, int core)
{
    const struct core *c = core_at(t, core);
    return c ? c->numa : 0;
}

int hapi_topology_core_cpu(const struct hapi_topology *t, int core)
{
    const struct core *c = core_at(t, core);
    return c ? c->cpu : -1;
}

/* The node of an I/O object: where the parent that is no I/O object sits, if that is one node. */
static int device_node(const struct hapi_topology *t, hwloc_obj_t dev)
{
    hwloc_obj_t at = hwloc_get_non_io_ancestor_obj(t->hw, dev);

    if (!at || !at->nodeset || hwloc_bitmap_weight(at->nodeset) != 1)
        return -1;
    return hwloc_bitmap_first(at->nodeset);
}

int hapi_topology_device_numa(const struct hapi_topology *t, const char *device)
{
    for (hwloc_obj_t o = NULL; (o = hwloc_get_next_osdev(t->hw, o));)
        if (o->name && !strcmp(o->name, device))
            return device_node(t, o);
    return -1;
}

int hapi_topology_pin(const struct hapi_topology *t, int core, int n, struct hapi_err *err)
{
    const struct core *c = core_at(t, core);
    hwloc_bitmap_t set;
    int bad = 0;

    if (!c || n < 1 || n > t->n_cores - core)
        return hapi_err_set(err, HAPI_EINVAL, 0, "%d cores from core %d on, of %d", n, core, t->n_cores);
    set = hwloc_bitmap_alloc();
    if (!set)
        return hapi_err_set(err, HAPI_ENOMEM, 0, "no memory for a cpuset");
    for (int i = 0; i < n; i++)
        hwloc_bitmap_set(set, (unsigned)c[i].cpu);
    if (hwloc_set_cpubind(t->hw, set, HWLOC_CPUBIND_THREAD))
        bad = errno ? errno : EINVAL;
    hwloc_bitmap_free(set);
    if (bad)
        return hapi_err_errno(err, bad, "cannot pin to core %d (cpu %d)", core, c->cpu);
    /* With one node there is nothing to bind, and containers often forbid set_mempolicy. */
    if (hwloc_get_nbobjs_by_type(t->hw, HWLOC_OBJ_NUMANODE) > 1 && c->nodes &&
        hwloc_set_membind(t->hw, c->nodes, HWLOC_MEMBIND_BIND,
                          HWLOC_MEMBIND_THREAD | HWLOC_MEMBIND_BYNODESET))
        return hapi_err_errno(err, errno, "cannot bind memory to node %d", c->numa);
    return 0;
}

static size_t append(char *buf, size_t size, size_t at, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));

static size_t append(char *buf, size_t size, size_t at, const char *fmt, ...)
{
    va_list ap;
    int n;

    if (at + 1 >= size)
        return at;
    va_start(ap, fmt);
    n = vsnprintf(buf + at, size - at, fmt, ap);
    va_end(ap);
    if (n < 0)
        return at;
    return at + (size_t)n < size ? at + (size_t)n : size - 1;
}

char *hapi_topology_text(const struct hapi_topology *t, char *buf, size_t size)
{
    size_t at = 0;

    if (size)
        buf[0] = '\0';
    for (int i = 0; i < t->n_cores; i++)
        at = append(buf, size, at, "core %d: cpu %d, node %d\n", i, t->cores[i].cpu, t->cores[i].numa);
    for (hwloc_obj_t o = NULL; (o = hwloc_get_next_osdev(t->hw, o));) {
        hwloc_obj_osdev_type_t type = o->attr->osdev.type;
        if (type != HWLOC_OBJ_OSDEV_NETWORK && type != HWLOC_OBJ_OSDEV_OPENFABRICS)
            continue;
        int node = device_node(t, o);
        const char *kind = type == HWLOC_OBJ_OSDEV_NETWORK ? "network" : "rdma";
        if (node < 0)
            at = append(buf, size, at, "%s %s: node unknown\n", kind, o->name);
        else
            at = append(buf, size, at, "%s %s: node %d\n", kind, o->name, node);
    }
    return buf;
}
