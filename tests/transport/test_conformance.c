/*
 * What transport.h promises, for every back end that works here, both sides on one loop.
 *
 *     transport_test_conformance              every kind; those without a device are skipped, and said
 *     transport_test_conformance verbs 10.1.1.1    one kind, the node listening on that address
 */
#include <arpa/inet.h>
#include <errno.h>
#include <rdma/rdma_cma.h>
#include <sys/mman.h>
#include <sys/resource.h>

#include "conformance_data.h"
#include "conformance_two.h"

/* ---- cases ---- */

static void connect__good_nonce__opens_and_closes_once(void)
{
    connected(0);
    CHECK(admitted == 1 && accepted == 1 && unknown == 0);
    CHECK(client.closed == 0 && node.closed == 0);
    hapi_conn_close(client.c);
    CHECK(client.closed == 0);
    run_until(&client.closed, 1, 1000);
    CHECK(client.why.code == HAPI_ECANCELED);
    run_until(&node.closed, 1, 3000);
    CHECKF(node.closed == 1 && node.why.code == HAPI_ECLOSED, "%d %s", node.closed, node.why.text);
    disconnected();
}

static void connect__bad_nonce__refused(void)
{
    static const uint8_t wrong[HAPI_NONCE_SIZE] = {7, 7, 7, 1, 2, 4};

    connect_with(wrong, hapi_listener_port(listener));
    run_until(&client.closed, 1, 6000);
    CHECK(client.closed == 1 && client.opened == 0 && unknown == 1 && accepted == 0);
    CHECKF(client.why.code == HAPI_EAUTH, "%s: %s", hapi_err_name(client.why.code), client.why.text);
    run_for(5);
}

static void connect__nobody_there__told(void)
{
    connect_with(nonce, 1);
    run_until(&client.closed, 1, 8000);
    CHECK(client.closed == 1 && client.opened == 0 && client.why.code != 0 && client.why.text[0]);
    run_for(5);
    /* and one that is given up while it is on its way */
    connect_with(nonce, hapi_listener_port(listener));
    hapi_conn_close(client.c);
    run_until(&client.closed, 1, 1000);
    CHECK(client.closed == 1 && client.opened == 0);
    run_for(50);
    if (node.c) {
        run_until(&node.closed, 1, 6000);
        CHECK(node.closed == 1);
    }
}

/* `who` ends it while 48 writes are on their way; every one of them completes once, before on_close. */
static void close_in_transfer(struct side *who)
{
    connected(0);
    memset(slab.base, 0xaa, 256 << 10);
    for (int i = 0; i < 48; i++)
        CHECK(hapi_conn_write(node.c, slab.base, 256 << 10, base + (uint64_t)(i % 16) * (256 << 10), key,
                              &ops[i].op) == 0);
    run_for(1);
    int before = node.done;
    hapi_conn_close(who->c);
    CHECK(node.done == before);
    CHECK(hapi_conn_write(who == &node ? node.c : client.c, slab.base, 8, base, key, NULL) == HAPI_ECLOSED);
    run_until(&who->closed, 1, 1000);
    CHECK(who->closed == 1);
    if (who == &client) {
        /* The fence: from now on the memory is ours, whatever the node still tries. */
        memset(window, 0x55, WINDOW);
    }
    run_until(&node.closed, 1, 6000);
    run_until(&client.closed, 1, 6000);
    CHECK(node.closed == 1 && client.closed == 1 && node.done == 48 && node.done_after_close == 0);
    for (int i = 0; i < 48; i++)
        CHECKF(ops[i].done == 1, "write %d completed %d times", i, ops[i].done);
    run_for(50);
    if (who == &client)
        CHECK(all(window, WINDOW, 0x55));
    disconnected();
}

static void close__in_mid_transfer__each_op_once_and_memory_is_ours(void)
{
    for (int i = 0; i < 3; i++) {
        close_in_transfer(&client);
        close_in_transfer(&node);
    }
}

static void close__from_callbacks__is_safe(void)
{
    connected(8);
    client.close_on_imm = true;
    for (uint32_t i = 0; i < 8; i++)
        CHECK(hapi_conn_write_imm(node.c, slab.base, 8, base, key, i, &ops[i].op) == 0);
    run_until(&client.closed, 1, 2000);
    run_until(&node.closed, 1, 6000);
    CHECK(client.imms == 1 && client.closed == 1 && node.closed == 1);
    memset(window, 0xee, PAGE);
    disconnected();
    connected(0);
    node.close_on_recv = true;
    memset(window, 0, 8);
    for (int i = 0; i < 4; i++) {
        uint8_t msg[2] = {1, 2};
        hapi_conn_send(client.c, msg, sizeof msg, NULL);
    }
    run_until(&node.closed, 1, 2000);
    run_until(&client.closed, 1, 6000);
    CHECK(node.recvs == 1 && client.closed == 1);
    disconnected();
}

/* Either side gives up while the handshake is anywhere. */
static void close__at_any_moment_of_connecting__each_told_once(void)
{
    for (int i = 0; i < 60; i++) {
        connect_with(nonce, hapi_listener_port(listener));
        int64_t end = hapi_clock_ns() + i / 2 * MS / 5;
        while (hapi_clock_ns() < end)
            REQUIRE(hapi_loop_run_once(loop, 0, NULL) == 0);
        hapi_conn_close(i % 2 && node.c ? node.c : client.c);
        run_until(&client.closed, 1, 6000);
        run_for(1);
        if (node.c)
            run_until(&node.closed, 1, 6000);
        CHECKF(client.closed == 1 && node.closed == accepted, "round %d: %d, %d of %d", i, client.closed,
               node.closed, accepted);
    }
}

static void completions__many_writes__one_stands_for_many(void)
{
    enum { MANY = OPS * 20 };
    int posted = 0;

    connected(1);
    while (posted < MANY) {
        if (hapi_conn_write(node.c, slab.base, 512, base, key, NULL) == 0)
            posted++;
        else
            run_for(1);
    }
    while (hapi_conn_write_imm(node.c, slab.base, 8, base, key, 1, &ops[0].op) == HAPI_EBUSY)
        run_for(1);
    run_until(&ops[0].done, 1, 5000);
    run_until(&client.imms, 1, 5000);
    struct hapi_conn_stats s = hapi_conn_stats_get(node.c);
    CHECKF(s.writes == MANY + 1 && s.completions <= MANY / (OPS / 4) + 1, "%llu completions for %llu writes",
           (unsigned long long)s.completions, (unsigned long long)s.writes);
    disconnected();
}

/* ---- what a fabric is asked for ---- */

static void options__out_of_range__einval(void)
{
    struct hapi_fabric_path paths[] = {{-1, -1, -1, 1000}, {-1, -1, -1, 8192}, {-2, -1, -1, 0},
                                       {-1, 256, -1, 0},   {-1, -1, 16, 0},    {300, -1, -1, 0}};
    struct hapi_fabric *f;
    struct hapi_err err;

    for (size_t i = 0; i < sizeof paths / sizeof *paths; i++) {
        struct hapi_fabric_options o = {.path = &paths[i]};
        err = (struct hapi_err){0};
        CHECK(hapi_fabric_open(&f, loop, kind, NULL, &o, &err) == HAPI_EINVAL && err.text[0]);
    }
    struct hapi_fabric_options nowhere = {.device = "nosuchdevice", .provider = "nosuchprovider"};
    CHECK(hapi_fabric_open(&f, loop, kind, NULL, &nowhere, &err) == HAPI_EUNSUPPORTED);
    CHECKF(strstr(err.text, "nosuch"), "%s", err.text);
}

static void device_memory__none_here__named_error(void)
{
    struct hapi_err err = {0};
    /* Addresses that nobody may touch, as those of a device are to the kernel without its driver. */
    void *p = mmap(NULL, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    int rc = hapi_fabric_add_device_memory(node_fabric, p, 4096, 0, 0, &err);

    /* A device that can would refuse descriptor 0, which is no dma-buf. */
    CHECKF(rc == HAPI_EUNSUPPORTED || (rc == HAPI_ETRANSPORT && err.sys == EBADF), "%d %s", rc, err.text);
    CHECK(err.text[0]);
    err = (struct hapi_err){0};
    rc = hapi_fabric_add_device_memory(node_fabric, p, 4096, -1, 0, &err); /* nor is there memory */
    CHECKF(rc == HAPI_EUNSUPPORTED && err.text[0], "%d %s", rc, err.text);
    connected(0);
    CHECK(hapi_conn_write(node.c, p, 64, base, key, NULL) == HAPI_EINVAL);
    disconnected();
    munmap(p, 4096);
}

static void data_host__known_unknown_and_any__an_address_that_connects(void)
{
    char at[HAPI_NAME_MAX + 1];
    struct hapi_err err = {0};

    CHECK(hapi_fabric_data_host(node_fabric, host, at, &err) == 0 && strcmp(at, host) == 0);
    if (strcmp(kind, "verbs") == 0) { /* an address of no RDMA device: one of a device's is told */
        CHECKF(hapi_fabric_data_host(node_fabric, strchr(host, ':') ? "::1" : "127.0.0.1", at, &err) == 0,
               "%s", err.text);
        CHECK(strcmp(at, "127.0.0.1") != 0 && strcmp(at, "::1") != 0);
        CHECK(hapi_fabric_data_host(node_fabric, "", at, &err) == 0 && at[0]);
    }
}

static int count_fds(void)
{
    DIR *d = opendir("/proc/self/fd");
    int n = 0;

    REQUIRE(d);
    while (readdir(d))
        n++;
    closedir(d);
    return n;
}

static void reconnect__many_times__leaks_no_descriptor(void)
{
    connected(1);
    disconnected();
    run_for(20);
    int before = count_fds();
    for (int i = 0; i < 15; i++) {
        connected(1);
        CHECK(hapi_conn_write_imm(node.c, slab.base, 8, base, key, 5, NULL) == 0);
        run_until(&client.imms, 1, 3000);
        CHECK(client.imms == 1);
        memset(window, 0xee, PAGE);
        disconnected();
    }
    connect__bad_nonce__refused();
    run_for(50);
    int after = count_fds();
    CHECKF(after <= before, "%d descriptors before, %d after", before, after);
}

/* ---- a client in a process of its own, to be killed ---- */

static const char *provider = ""; /* of the variant that runs */

/* As valgrind's tool, /proc/self/exe would be valgrind. */
static const char *own_path(void)
{
    static char path[4096];

    REQUIRE(readlink("/proc/self/exe", path, sizeof path - 1) > 0);
    return path;
}

static int child_main(char **argv)
{
    struct {
        uint64_t key, base;
    } where;
    struct hapi_fabric_options opt = {.provider = *argv[5] ? argv[5] : NULL};
    struct hapi_err err;

    kind = argv[2];
    host = argv[3];
    window = mmap(NULL, WINDOW, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    REQUIRE(window != MAP_FAILED && hapi_loop_open(&loop, 256, NULL) == 0);
    REQUIRE(hapi_fabric_open(&client_fabric, loop, kind, NULL, &opt, &err) == 0);
    connect_with(child_nonce, (uint16_t)atoi(argv[4]));
    run_until(&client.opened, 1, 5000);
    REQUIRE(client.opened && hapi_conn_expose(client.c, window, WINDOW, &where.key, &where.base, NULL) == 0);
    REQUIRE(hapi_conn_send(client.c, &where, sizeof where, NULL) == 0);
    run_for(60000);
    return 0;
}

/* Its connection is open, and its window's key and base have come as a message. */
static pid_t child_start(void)
{
    char port[8];
    pid_t pid;

    memset(&node, 0, sizeof node);
    memset(ops, 0, sizeof ops);
    for (size_t i = 0; i < sizeof ops / sizeof *ops; i++)
        ops[i].op.on_done = on_done;
    snprintf(port, sizeof port, "%u", hapi_listener_port(listener));
    /* Not fork(): a copy of a process that has rings and queue pairs mapped upsets small kernels. */
    char *argv[] = {(char *)"test_conformance",
                    (char *)"--child",
                    (char *)kind,
                    (char *)host,
                    port,
                    (char *)provider,
                    NULL};
    REQUIRE(posix_spawn(&pid, own_path(), NULL, NULL, argv, environ) == 0);
    awaited = child_nonce;
    run_until(&node.recvs, 1, 10000);
    awaited = nonce;
    REQUIRE(node.recvs == 1 && node.last_n == 2 * sizeof(uint64_t));
    return pid;
}

static void peer__killed__closes_and_every_op_completes(void)
{
    uint64_t where[2];
    pid_t pid = child_start();

    memcpy(where, node.last, sizeof where);
    node.bad = 0; /* the message is no pattern */
    for (int i = 0; i < 40; i++)
        CHECK(hapi_conn_write(node.c, slab.base, 128 << 10, where[1] + (uint64_t)i * (64 << 10), where[0],
                              &ops[i].op) == 0);
    run_for(1);
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    int64_t from = hapi_clock_ns();
    run_until(&node.closed, 1, 3000);
    if (strcmp(kind, "ofi") == 0)
        CHECKF(node.closed == 1, "a killed peer was not noticed");
    printf("     %s: killed peer %s after %lld ms\n", kind, node.closed ? "noticed" : "not noticed",
           (long long)((hapi_clock_ns() - from) / MS));
    /* The control channel's heartbeat is what says so for certain; then close() must not hang. */
    hapi_conn_close(node.c);
    from = hapi_clock_ns();
    run_until(&node.closed, 1, 1000);
    CHECK(node.closed == 1 && (hapi_clock_ns() - from) / MS < 500);
    CHECK(node.done == 40 && node.done_after_close == 0);
    for (int i = 0; i < 40; i++)
        CHECK(ops[i].done == 1);
    /* and the node goes on serving */
    connected(1);
    disconnected();
}

/* A receiver that is not ready, for ever: its process is stopped and has granted nothing. */
static void rnr__exceeded__closes_with_the_reason(void)
{
    pid_t pid;

    if (strcmp(kind, "verbs") != 0)
        return; /* elsewhere immediates need no receive */
    pid = child_start();
    uint64_t where[2];
    memcpy(where, node.last, sizeof where);
    node.bad = 0; /* the message is no pattern */
    kill(pid, SIGSTOP);
    for (uint32_t i = 0; i < 4; i++) /* the first takes the one receive that is always there */
        CHECK(hapi_conn_write_imm(node.c, slab.base, 8, where[1], where[0], i, &ops[i].op) == 0);
    run_until(&node.closed, 1, 5000);
    CHECK(node.closed == 1 && node.done == 4);
    CHECKF(strstr(node.why.text, "RNR"), "%s", node.why.text);
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    connected(1);
    disconnected();
}

/* ---- little locked memory: an ordinary user with a limit, in a process of its own ---- */

static int limited_main(char **argv)
{
    struct rlimit lim = {64 << 10, 64 << 10};
    struct hapi_err err = {0};

    kind = argv[2];
    if (setrlimit(RLIMIT_MEMLOCK, &lim) || setgid(65534) || setuid(65534))
        return 3;
    REQUIRE(hapi_loop_open(&loop, 256, NULL) == 0 && hapi_slab_init(&slab, SLAB, NULL) == 0);
    int rc = hapi_fabric_open(&node_fabric, loop, kind, &slab, NULL, &err);
    if (rc == 0) /* several devices: the one of this address takes the memory */
        rc = hapi_listener_open(&listener, node_fabric, argv[3], 0, &listener_handler, NULL, &err);
    fprintf(stderr, "     %s\n", err.text);
    return rc == HAPI_ENOMEM && strstr(err.text, "6144 KiB") && strstr(err.text, "64 KiB") &&
                   strstr(err.text, "ulimit -l")
               ? 0
               : 1;
}

static void memory__limit_too_low__said_how_much_and_what_to_do(void)
{
    char *argv[] = {(char *)"test_conformance", (char *)"--limited", (char *)kind, (char *)host, NULL};
    int status = 0;
    pid_t pid;

    if (strcmp(kind, "verbs") != 0 || geteuid() != 0)
        return; /* ofi's tcp locks nothing */
    REQUIRE(posix_spawn(&pid, own_path(), NULL, NULL, argv, environ) == 0);
    REQUIRE(waitpid(pid, &status, 0) == pid);
    CHECKF(WIFEXITED(status) && WEXITSTATUS(status) == 0, "status 0x%x", status);
}

struct variant {
    const char *name, *kind;
    struct hapi_fabric_options opt;
};

static void run_all(const struct variant *v)
{
    struct hapi_fabric_options opt = v->opt;

    opt.max_recv = RECEIVES;
    opt.max_ops = OPS;
    opt.ack_timeout = 12;
    provider = opt.provider ? opt.provider : "";
    printf("%s on %s\n", v->name, host);
    fabrics_open(&opt);
    CASE(connect__good_nonce__opens_and_closes_once);
    CASE(connect__bad_nonce__refused);
    CASE(connect__nobody_there__told);
    CASE(send__requests_of_every_size__whole_and_in_order);
    CASE(write_imm__payload_before_it__visible_for_every_size);
    CASE(write_imm__many__all_in_order);
    CASE(write__unexposed_key_or_range__touches_nothing);
    CASE(write__out_of_the_window__touches_nothing);
    CASE(grant__one_too_many__eproto);
    CASE(ops__more_than_max__ebusy_then_room_again);
    CASE(close__in_mid_transfer__each_op_once_and_memory_is_ours);
    CASE(close__from_callbacks__is_safe);
    CASE(close__at_any_moment_of_connecting__each_told_once);
    CASE(completions__many_writes__one_stands_for_many);
    CASE(completions__each_posts_another__loop_goes_round);
    CASE(key__of_another_connection__opens_nothing);
    CASE(listener__same_port_at_another_address__its_end_is_its_own);
    CASE(fence__after_the_record__window_is_free);
    CASE(fence__after_close__memory_serves_another_request);
    CASE(fence__hedged__loser_cannot_touch_what_was_delivered);
    CASE(options__out_of_range__einval);
    CASE(device_memory__none_here__named_error);
    CASE(data_host__known_unknown_and_any__an_address_that_connects);
    CASE(reconnect__many_times__leaks_no_descriptor);
    CASE(peer__killed__closes_and_every_op_completes);
    CASE(rnr__exceeded__closes_with_the_reason);
    CASE(memory__limit_too_low__said_how_much_and_what_to_do);
    fabrics_close();
}

static const struct hapi_fabric_path narrow = {-1, 8, 1, 1024};
static struct hapi_fabric_path by_gid = {-1, -1, -1, 0};
static const struct variant variants[] = {
    {"ofi", "ofi", {0}},
    {"ofi, busy polling", "ofi", {.busy_poll_us = 200}},
    {"ofi, provider verbs", "ofi", {.provider = "verbs"}},
    {"verbs", "verbs", {0}},
    {"verbs, without memory windows", "verbs", {.no_memory_windows = true}},
    {"verbs, busy polling, mtu 1024, tos 8, sl 1", "verbs", {.busy_poll_us = 200, .path = &narrow}},
    {"verbs, by GID index", "verbs", {.path = &by_gid}},
};

/* Of the device that has this address: the GID that is made of it. */
static int gid_index_of(const char *address)
{
    struct rdma_cm_id *id;
    union ibv_gid gid;
    struct sockaddr_in6 v6 = {.sin6_family = AF_INET6};
    struct sockaddr_in v4 = {.sin_family = AF_INET};
    uint8_t want[16] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};
    bool is4 = inet_pton(AF_INET, address, &v4.sin_addr) == 1;
    int found = -1;

    REQUIRE(is4 || inet_pton(AF_INET6, address, &v6.sin6_addr) == 1);
    memcpy(want + (is4 ? 12 : 0), is4 ? (void *)&v4.sin_addr : (void *)&v6.sin6_addr, is4 ? 4 : 16);
    REQUIRE(rdma_create_id(NULL, &id, NULL, RDMA_PS_TCP) == 0);
    REQUIRE(rdma_bind_addr(id, is4 ? (struct sockaddr *)&v4 : (struct sockaddr *)&v6) == 0 && id->verbs);
    for (int i = 0; i < 16 && found < 0; i++)
        if (ibv_query_gid(id->verbs, id->port_num, i, &gid) == 0 && memcmp(gid.raw, want, 16) == 0)
            found = i;
    rdma_destroy_id(id);
    return found;
}

/* Where a kind listens; NULL with the reason printed: it cannot run here. */
static const char *host_of(const char *k, const char *asked)
{
    struct hapi_err err = {0};
    const char *h = asked ? asked : *k == 'o' ? "127.0.0.1" : getenv("HAPI_TEST_VERBS_HOST");

    if (hapi_fabric_probe(k, &err)) {
        printf("skipped %s: %s\n", k, err.text);
        return NULL;
    }
    if (!h)
        printf("skipped verbs: HAPI_TEST_VERBS_HOST=address of an RDMA device is not set\n");
    return h;
}

int main(int argc, char **argv)
{
    const char *first = getenv("HAPI_TEST_VARIANTS"); /* of the kinds asked for, only so many */
    int ran = 0, fds, most = first ? atoi(first) : 0;

    setvbuf(stdout, NULL, _IOLBF, 0);
    if (argc == 6 && strcmp(argv[1], "--child") == 0)
        return child_main(argv);
    if (argc == 4 && strcmp(argv[1], "--limited") == 0)
        return limited_main(argv);
    fds = count_fds();
    REQUIRE(hapi_loop_open(&loop, 256, NULL) == 0 && hapi_slab_init(&slab, SLAB, NULL) == 0);
    uint8_t *m = mmap(NULL, WINDOW + 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    REQUIRE(m != MAP_FAILED);
    window = m + PAGE;
    CHECK(hapi_fabric_probe("pigeon", NULL) == HAPI_EUNSUPPORTED);
    for (size_t i = 0; i < sizeof variants / sizeof *variants; i++) {
        kind = variants[i].kind;
        if (argc > 1 && strcmp(argv[1], kind))
            continue;
        /* libfabric's verbs provider is tried where there is a device. */
        bool rdma = variants[i].opt.provider != NULL;
        host = host_of(rdma ? "verbs" : kind, argc > 2 ? argv[2] : NULL);
        if (!host)
            continue;
        if (variants[i].opt.path == &by_gid) {
            by_gid.gid_index = gid_index_of(host);
            REQUIRE(by_gid.gid_index >= 0);
        }
        run_all(&variants[i]);
        if (++ran == most)
            break;
    }
    hapi_loop_close(loop);
    hapi_slab_fini(&slab);
    munmap(m, WINDOW + 2 * PAGE);
    if (!ran)
        return 77;
    printf("descriptors: %d before, %d after\n", fds, count_fds());
    return check_done();
}
