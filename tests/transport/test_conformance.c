/*
 * What transport.h promises, for every back end that works here, both sides on one loop.
 *
 *     transport_test_conformance              every kind; those without a device are skipped, and said
 *     transport_test_conformance verbs 10.1.1.1    one kind, the node listening on that address
 */
#include "conformance_sides.h"

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

static void send__requests_of_every_size__whole_and_in_order(void)
{
    static const size_t sizes[] = {1, 2, 64, 255, 256, 257, 4095, 4096, 4097, 30000, HAPI_REQUEST_MAX};
    enum { N = sizeof sizes / sizeof *sizes };
    size_t want = 0;

    connected(0);
    for (int round = 0; round < 4; round++) {
        uint8_t *at = window;
        for (size_t i = 0; i < N; i++, at += HAPI_REQUEST_MAX) {
            for (size_t b = 0; b < sizes[i]; b++)
                at[b] = (uint8_t)(round * 16 + (int)i + (int)b);
            struct op *op = &ops[round * N + (int)i];
            int rc = hapi_conn_send(client.c, at, sizes[i], &op->op);
            CHECKF(rc == 0, "%zu bytes: %s", sizes[i], hapi_err_name(rc));
            want += sizes[i];
        }
        run_until(&node.recvs, (round + 1) * N, 5000);
        run_until(&client.done, (round + 1) * N, 5000);
    }
    CHECK(node.recvs == 4 * N && node.recv_bytes == want && node.bad == 0);
    CHECK(node.last_n == HAPI_REQUEST_MAX);
    for (int i = 0; i < 4 * N; i++)
        CHECK(ops[i].done == 1 && ops[i].status == 0);
    CHECK(hapi_conn_send(client.c, window, HAPI_REQUEST_MAX + 1, NULL) == HAPI_ETOOBIG);
    CHECK(hapi_conn_send(client.c, window, 0, NULL) == HAPI_EINVAL);
    CHECK(hapi_conn_send(client.c, window - PAGE, 300, NULL) == HAPI_EINVAL);
    CHECK(hapi_conn_stats_get(client.c).sends == 4 * N && hapi_conn_stats_get(node.c).recvs == 4 * N);
    memset(window, 0, WINDOW);
    disconnected();
}

static size_t payload;
static int torn;

static void payload_is_there(uint32_t imm)
{
    for (size_t i = 0; i < payload; i++)
        if (window[i] != (uint8_t)(i * 7 + imm)) {
            torn++;
            return;
        }
    torn += payload < WINDOW - 64 && window[payload] != 0xee;
    torn += window[WINDOW - 64] != (uint8_t)imm;
}

static void write_imm__payload_before_it__visible_for_every_size(void)
{
    static const size_t sizes[] = {1,     2,      3,       7,       64,         255,   256,
                                   257,   1000,   4095,    4096,    4097,       65535, 65536,
                                   65537, 300000, 1 << 20, 3000000, WINDOW - 64};
    enum { N = sizeof sizes / sizeof *sizes };
    uint32_t imm = 0;

    connected(3 * N);
    client.imm_check = payload_is_there;
    torn = 0;
    for (size_t i = 0; i < N; i++)
        for (int round = 0; round < 3; round++) {
            payload = sizes[i];
            imm++;
            memset(window, 0xee, WINDOW);
            for (size_t b = 0; b < payload; b++)
                slab.base[b] = (uint8_t)(b * 7 + imm);
            memset(slab.base + WINDOW, (int)imm, 64);
            CHECK(hapi_conn_write(node.c, slab.base, payload, base, key, round == 1 ? NULL : &ops[0].op) ==
                  0);
            CHECK(hapi_conn_write_imm(node.c, slab.base + WINDOW, 64, base + WINDOW - 64, key, imm,
                                      &ops[1].op) == 0);
            run_until(&client.imms, (int)imm, 5000);
            run_until(&ops[1].done, (int)imm, 5000);
            REQUIRE(client.imms == (int)imm && client.last_imm == imm);
        }
    CHECKF(torn == 0, "%d immediates came before their payload", torn);
    CHECK(ops[0].done == 2 * N && ops[1].done == 3 * N && ops[0].status == 0 && ops[1].status == 0);
    struct hapi_conn_stats s = hapi_conn_stats_get(node.c);
    CHECK(s.writes == 6 * N && s.bytes > 3 * WINDOW && hapi_conn_stats_get(client.c).imms == 3 * N);
    client.imm_check = NULL;
    disconnected();
}

static uint32_t next_imm;

static void imm_in_order(uint32_t imm)
{
    torn += imm != next_imm * 2654435761u;
    next_imm++;
}

static void write_imm__many__all_in_order(void)
{
    enum { MANY = 2000 };
    uint32_t sent = 0;
    int64_t end = hapi_clock_ns() + 20000 * MS;

    connected(1000);
    client.imm_check = imm_in_order;
    next_imm = 0;
    torn = 0;
    for (bool granted = false; (int)next_imm < MANY && hapi_clock_ns() < end;) {
        if (next_imm >= 1000 && !granted) {
            CHECK(hapi_conn_grant(client.c, 1000) == 0);
            granted = true;
        }
        while (sent < (granted ? MANY : 1000)) {
            int rc =
                hapi_conn_write_imm(node.c, slab.base, sent % 3 * 8, base, key, sent * 2654435761u, NULL);
            if (rc == HAPI_EBUSY)
                break;
            REQUIRE(rc == 0);
            sent++;
        }
        run_for(1);
    }
    CHECKF(next_imm == MANY && torn == 0, "%u came, %d out of order", next_imm, torn);
    CHECK(client.closed == 0 && node.closed == 0);
    disconnected();
}

/* A write that must not happen ends the connection and changes nothing. */
static void refused_write(uint64_t remote, uint64_t with, size_t n)
{
    connected(4);
    memset(slab.base, 0x11, n);
    CHECK(hapi_conn_write(node.c, slab.base, n, remote, with, &ops[0].op) == 0);
    hapi_conn_write_imm(node.c, slab.base, 8, base, key, 1, &ops[1].op);
    run_until(&node.closed, 1, 5000);
    CHECKF(node.closed == 1, "the node's connection lives on after a write to %llx",
           (unsigned long long)remote);
    CHECK(ops[0].done == 1 && ops[1].done <= 1);
    run_until(&client.closed, 1, 5000);
    CHECK(client.imms == 0);
    CHECK(all(window - PAGE, WINDOW + 2 * PAGE, 0xee));
    disconnected();
}

static void write__unexposed_key_or_range__touches_nothing(void)
{
    connected(0);
    uint64_t k = key, b = base;
    disconnected();
    refused_write(b, k ^ 0x1000, 4096);
    connected(0);
    b = base;
    disconnected();
    /* A new connection's key; the old connection's key opens nothing. */
    connected(0);
    uint64_t old = key;
    disconnected();
    connected(0);
    CHECK(key != 0);
    bool same = key == old;
    disconnected();
    if (!same)
        refused_write(b, old, 4096);
}

static void write__out_of_the_window__touches_nothing(void)
{
    for (int i = 0; i < 4; i++) {
        connected(2);
        uint64_t at[] = {base + WINDOW, base + WINDOW - 8, base - 8, base + ((uint64_t)1 << 40)};
        memset(slab.base, 0x11, 4096);
        CHECK(hapi_conn_write(node.c, slab.base, 4096, at[i], key, &ops[0].op) == 0);
        hapi_conn_write_imm(node.c, slab.base, 8, base, key, 1, &ops[1].op);
        run_until(&node.closed, 1, 5000);
        CHECKF(node.closed == 1, "write %d", i);
        run_until(&client.closed, 1, 5000);
        CHECK(client.imms == 0 && all(window - PAGE, WINDOW + 2 * PAGE, 0xee));
        disconnected();
    }
}

static void grant__one_too_many__eproto(void)
{
    connected(2);
    for (uint32_t i = 0; i < 3; i++)
        CHECK(hapi_conn_write_imm(node.c, slab.base, 8, base, key, i, &ops[i].op) == 0);
    run_until(&client.closed, 1, 5000);
    CHECK(client.imms == 2 && client.closed == 1);
    CHECKF(client.why.code == HAPI_EPROTO, "%s", client.why.text);
    run_until(&node.closed, 1, 5000);
    for (int i = 0; i < 3; i++)
        CHECK(ops[i].done == 1);
    memset(window, 0xee, PAGE);
    disconnected();
    connected(0);
    CHECK(hapi_conn_grant(client.c, 1024) == 0);
    CHECK(hapi_conn_grant(client.c, 1) == HAPI_EBUSY);
    CHECK(hapi_conn_grant(node.c, 1) == HAPI_EINVAL);
    disconnected();
}

static void ops__more_than_max__ebusy_then_room_again(void)
{
    int rc = 0, n = 0;

    connected(0);
    while (n <= OPS && (rc = hapi_conn_write(node.c, slab.base, 1000, base, key, &ops[n].op)) == 0)
        n++;
    CHECKF(rc == HAPI_EBUSY && n == OPS, "%d posted, then %s", n, hapi_err_name(rc));
    CHECK(node.done == 0);
    run_until(&node.done, n, 5000);
    CHECK(node.done == n);
    for (int i = 0; i < n; i++)
        CHECK(ops[i].done == 1 && ops[i].status == 0);
    CHECK(hapi_conn_write(node.c, slab.base, 1000, base, key, &ops[0].op) == 0);
    run_until(&ops[0].done, 2, 5000);
    uint8_t elsewhere[512];
    CHECK(hapi_conn_write(node.c, elsewhere, sizeof elsewhere, base, key, NULL) == HAPI_EINVAL);
    CHECK(hapi_conn_write(node.c, slab.base + SLAB - 8, 16, base, key, NULL) == HAPI_EINVAL);
    disconnected();
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

static int child_main(char **argv)
{
    struct {
        uint64_t key, base;
    } where;
    struct hapi_err err;

    kind = argv[2];
    host = argv[3];
    window = mmap(NULL, WINDOW, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    REQUIRE(window != MAP_FAILED && hapi_loop_open(&loop, 256, NULL) == 0);
    REQUIRE(hapi_fabric_open(&client_fabric, loop, kind, NULL, NULL, &err) == 0);
    connect_with(nonce, (uint16_t)atoi(argv[4]));
    run_until(&client.opened, 1, 5000);
    REQUIRE(client.opened && hapi_conn_expose(client.c, window, WINDOW, &where.key, &where.base, NULL) == 0);
    REQUIRE(hapi_conn_send(client.c, &where, sizeof where, NULL) == 0);
    run_for(60000);
    return 0;
}

static void peer__killed__closes_and_every_op_completes(void)
{
    char port[8];
    uint64_t where[2];

    memset(&node, 0, sizeof node);
    memset(ops, 0, sizeof ops);
    for (size_t i = 0; i < sizeof ops / sizeof *ops; i++)
        ops[i].op.on_done = on_done;
    snprintf(port, sizeof port, "%u", hapi_listener_port(listener));
    /* Not fork(): a copy of a process that has rings and queue pairs mapped upsets small kernels. */
    char *argv[] = {(char *)"test_conformance", (char *)"--child", (char *)kind, (char *)host, port, NULL};
    pid_t pid;
    REQUIRE(posix_spawn(&pid, "/proc/self/exe", NULL, NULL, argv, environ) == 0);
    run_until(&node.recvs, 1, 10000);
    REQUIRE(node.recvs == 1 && node.last_n == sizeof where);
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

static void run_all(void)
{
    struct hapi_fabric_options opt = {.max_recv = 4, .max_ops = OPS, .ack_timeout = 12};

    printf("%s on %s\n", kind, host);
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
    CASE(reconnect__many_times__leaks_no_descriptor);
    CASE(peer__killed__closes_and_every_op_completes);
    fabrics_close();
}

int main(int argc, char **argv)
{
    static const char *const kinds[] = {"ofi", "verbs"};
    int ran = 0, fds;

    setvbuf(stdout, NULL, _IOLBF, 0);
    if (argc == 5 && strcmp(argv[1], "--child") == 0)
        return child_main(argv);
    fds = count_fds();
    REQUIRE(hapi_loop_open(&loop, 256, NULL) == 0 && hapi_slab_init(&slab, SLAB, NULL) == 0);
    uint8_t *m = mmap(NULL, WINDOW + 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    REQUIRE(m != MAP_FAILED);
    window = m + PAGE;
    CHECK(hapi_fabric_probe("pigeon", NULL) == HAPI_EUNSUPPORTED);
    for (size_t i = 0; i < 2; i++) {
        struct hapi_err err = {0};
        if (argc > 1 && strcmp(argv[1], kinds[i]))
            continue;
        if (hapi_fabric_probe(kinds[i], &err)) {
            printf("skipped %s: %s\n", kinds[i], err.text);
            continue;
        }
        kind = kinds[i];
        host = argc > 2 ? argv[2] : i ? getenv("HAPI_TEST_VERBS_HOST") : "127.0.0.1";
        if (!host) {
            printf("skipped verbs: HAPI_TEST_VERBS_HOST=address of an RDMA device is not set\n");
            continue;
        }
        run_all();
        ran++;
    }
    hapi_loop_close(loop);
    hapi_slab_fini(&slab);
    munmap(m, WINDOW + 2 * PAGE);
    if (!ran)
        return 77;
    printf("descriptors: %d before, %d after\n", fds, count_fds());
    return check_done();
}
