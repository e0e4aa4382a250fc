/* Which of several RDMA devices a connection uses. */
#include <arpa/inet.h>
#include <string.h>

#include "check.h"
#include "verbs_int.h"

static union hapi_sockaddr address(const char *text)
{
    union hapi_sockaddr a = {0};

    if (strchr(text, ':')) {
        a.in6.sin6_family = AF_INET6;
        REQUIRE(inet_pton(AF_INET6, text, &a.in6.sin6_addr) == 1);
    } else {
        a.in.sin_family = AF_INET;
        REQUIRE(inet_pton(AF_INET, text, &a.in.sin_addr) == 1);
    }
    return a;
}

static struct verbs_address list[5];
enum { N = sizeof list / sizeof *list };

/* Two devices, one on each NUMA node. */
static void fill(void)
{
    static const struct {
        const char *device, *at;
        int numa;
        bool gid_wanted;
    } rows[N] = {{"mlx5_0", "10.0.0.1", 0, false},
                 {"mlx5_0", "fd00::1", 0, true},
                 {"mlx5_1", "10.0.1.1", 1, false},
                 {"mlx5_1", "10.0.2.1", 1, true},
                 {"mlx5_1", "fd00::2", 1, false}};

    for (int i = 0; i < N; i++) {
        list[i] = (struct verbs_address){.port = i == 3 ? 2 : 1,
                                         .a = address(rows[i].at),
                                         .numa = rows[i].numa,
                                         .gid_wanted = rows[i].gid_wanted};
        strcpy(list[i].device, rows[i].device);
    }
}

static int choose(const char *want, const char *device, bool gid, int numa)
{
    union hapi_sockaddr a = {0};

    if (*want)
        a = address(want);
    return hapi_verbs_choose(list, N, &a, device, gid, numa);
}

static void choose__address_of_a_device__that_one(void)
{
    for (int numa = -1; numa < 2; numa++) {
        CHECK(choose("10.0.0.1", "", false, numa) == 0);
        CHECK(choose("10.0.2.1", "", false, numa) == 3);
        CHECK(choose("fd00::2", "", false, numa) == 4);
    }
}

static void choose__other_address__nearest_of_its_family(void)
{
    CHECK(choose("192.168.1.1", "", false, 1) == 2);
    CHECK(choose("192.168.1.1", "", false, 0) == 0);
    CHECK(choose("192.168.1.1", "", false, -1) == 0);
    CHECK(choose("192.168.1.1", "", false, 7) == 0);
    CHECK(choose("fe80::1", "", false, 1) == 4);
    CHECK(choose("", "", false, 1) == 2);
}

static void choose__device_or_gid_named__only_those(void)
{
    CHECK(choose("10.0.0.1", "mlx5_1", false, 0) == 2);
    CHECK(choose("10.0.2.1", "mlx5_1", false, 0) == 3);
    CHECK(choose("10.0.0.1", "", true, 0) == 3);
    CHECK(choose("fd00::9", "", true, 1) == 1);
    CHECK(choose("", "mlx5_1", true, 0) == 3);
    CHECK(choose("10.0.0.1", "mlx5_0", true, 0) == -1);
    CHECK(choose("10.0.0.1", "rxe9", false, 0) == -1);
    CHECK(choose("10.0.0.1", "mlx5_1:2", false, 0) == 3);
    CHECK(choose("10.0.0.1", "mlx5_1:1", false, 0) == 2);
    CHECK(choose("10.0.0.1", "mlx5_1:3", false, 0) == -1);
    CHECK(choose("10.0.0.1", "mlx5_:1", false, 0) == -1);
    CHECK(hapi_verbs_wanted("mlx5_0:2", "mlx5_0", 0) && !hapi_verbs_wanted("mlx5_0:2", "mlx5_00", 2));
    CHECK(hapi_verbs_choose(list, 0, &list[0].a, "", false, 0) == -1);
}

int main(void)
{
    fill();
    CASE(choose__address_of_a_device__that_one);
    CASE(choose__other_address__nearest_of_its_family);
    CASE(choose__device_or_gid_named__only_those);
    return check_done();
}
