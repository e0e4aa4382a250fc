#include <sched.h>
#include <unistd.h>

#include "check.h"
#include "topology.h"

static void open__here__cores_are_ours(void)
{
    struct hapi_topology *t;
    struct hapi_err err = {0};
    cpu_set_t mask;
    char text[4096], small[8];

    REQUIRE(!hapi_topology_open(&t, &err));
    REQUIRE(!sched_getaffinity(0, sizeof mask, &mask));
    CHECK(hapi_topology_cores(t) >= 1 && hapi_topology_cores(t) <= CPU_COUNT(&mask));
    for (int i = 0; i < hapi_topology_cores(t); i++) {
        CHECK(CPU_ISSET(hapi_topology_core_cpu(t, i), &mask));
        CHECK(hapi_topology_core_numa(t, i) >= 0);
    }
    CHECK(hapi_topology_device_numa(t, "no-such-device") == -1);
    CHECK(strstr(hapi_topology_text(t, text, sizeof text), "core 0: cpu "));
    CHECK(strlen(hapi_topology_text(t, small, sizeof small)) < sizeof small);
    hapi_topology_close(t);
    hapi_topology_close(NULL);
}

static void open__one_cpu_allowed__one_core(void)
{
    struct hapi_topology *t;
    cpu_set_t before, one;
    int last = 0;

    REQUIRE(!sched_getaffinity(0, sizeof before, &before));
    for (int i = 0; i < CPU_SETSIZE; i++)
        if (CPU_ISSET(i, &before))
            last = i;
    CPU_ZERO(&one);
    CPU_SET(last, &one);
    REQUIRE(!sched_setaffinity(0, sizeof one, &one));
    REQUIRE(!hapi_topology_open(&t, NULL));
    CHECK(hapi_topology_cores(t) == 1);
    CHECK(hapi_topology_core_cpu(t, 0) == last);
    hapi_topology_close(t);
    REQUIRE(!sched_setaffinity(0, sizeof before, &before));
}

static void pin__each_core__runs_there(void)
{
    struct hapi_topology *t;
    struct hapi_err err = {0};

    REQUIRE(!hapi_topology_open(&t, NULL));
    for (int i = 0; i < hapi_topology_cores(t); i++) {
        CHECKF(!hapi_topology_pin(t, i, 1, &err), "%s", err.text);
        CHECK(sched_getcpu() == hapi_topology_core_cpu(t, i));
    }
    CHECKF(!hapi_topology_pin(t, 0, hapi_topology_cores(t), &err), "%s", err.text);
    CHECK(hapi_topology_pin(t, 0, hapi_topology_cores(t) + 1, &err) == HAPI_EINVAL);
    CHECK(hapi_topology_pin(t, 0, 0, &err) == HAPI_EINVAL);
    CHECK(hapi_topology_pin(t, hapi_topology_cores(t), 1, &err) == HAPI_EINVAL);
    CHECK(hapi_topology_pin(t, -1, 1, &err) == HAPI_EINVAL);
    hapi_topology_close(t);
}

static void memory__here__less_than_the_machine_has(void)
{
    uint64_t all = (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE);

    CHECK(hapi_memory_available() > 1 << 20);
    CHECK(hapi_memory_available() < all);
}

int main(void)
{
    CASE(open__here__cores_are_ours);
    CASE(open__one_cpu_allowed__one_core);
    CASE(pin__each_core__runs_there);
    CASE(memory__here__less_than_the_machine_has);
    return check_done();
}
