/*
 * Where a worker sits: cores, NUMA nodes and network devices, from hwloc. Read once, then only looked at.
 * Any thread after hapi_topology_open(); hapi_memory_available() on any thread, at any time.
 */
#ifndef HAPI_BASE_TOPOLOGY_H
#define HAPI_BASE_TOPOLOGY_H

#include <stddef.h>
#include <stdint.h>

#include "err.h"

struct hapi_topology;

/* What this process may use (cpuset and cgroup respected). Errors: HAPI_ENOMEM, HAPI_ESYS. */
int hapi_topology_open(struct hapi_topology **out, struct hapi_err *err);
void hapi_topology_close(struct hapi_topology *t);

/* Cores usable by this process (one per physical core, hyper-threads not counted twice), at least 1. */
int hapi_topology_cores(const struct hapi_topology *t);
/* NUMA node of core i (0 <= i < cores), 0 when the machine has none. */
int hapi_topology_core_numa(const struct hapi_topology *t, int core);
/* OS index (as in /proc/cpuinfo) of core i's first hardware thread. */
int hapi_topology_core_cpu(const struct hapi_topology *t, int core);
/* NUMA node nearest to a network or RDMA device ("eth0", "mlx5_0"), or -1 when unknown. */
int hapi_topology_device_numa(const struct hapi_topology *t, const char *device);
/* Pins the calling thread, and those that it will start, to `n` >= 1 cores from `core` on, and binds its new
 * memory to the node of the first. HAPI_EINVAL: there are not so many. */
int hapi_topology_pin(const struct hapi_topology *t, int core, int n, struct hapi_err *err);
/* Bytes that this process could still take without swapping, its cgroup's limits respected; 0: not said. */
uint64_t hapi_memory_available(void);
/* One line per core and NIC, for a person, into buf; returns buf. */
char *hapi_topology_text(const struct hapi_topology *t, char *buf, size_t size);

#endif
