/* Cases of test_conformance.c: what is sent and written, and what must not be. */
#ifndef HAPI_TESTS_CONFORMANCE_DATA_H
#define HAPI_TESTS_CONFORMANCE_DATA_H

#include "conformance_sides.h"

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
            if (i % RECEIVES == RECEIVES - 1) /* a node grants no more than it has receives for */
                run_until(&node.recvs, round * N + (int)i + 1, 5000);
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
    CHECK(hapi_conn_stats_get(client.c).sends == 4 * N + 1 && hapi_conn_stats_get(node.c).recvs == 4 * N + 1);
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

/* ---- an end of it ---- */

static int64_t posted_again, most_in_a_turn;

static void post_again(struct hapi_conn *c, struct hapi_conn_op *op, int status)
{
    if (status == 0 && posted_again++ < 20000)
        CHECK(hapi_conn_write(c, slab.base, 64, base, key, op) == 0);
}

/* Timers and the other connections get their turn while every completion posts the next write. */
static void completions__each_posts_another__loop_goes_round(void)
{
    connected(0);
    posted_again = most_in_a_turn = 0;
    for (int i = 0; i < OPS; i++) {
        ops[i].op.on_done = post_again;
        CHECK(hapi_conn_write(node.c, slab.base, 64, base, key, &ops[i].op) == 0);
    }
    for (int64_t end = hapi_clock_ns() + 10000 * MS; posted_again < 20000 && hapi_clock_ns() < end;) {
        int64_t before = posted_again;
        REQUIRE(hapi_loop_run_once(loop, 5 * MS, NULL) == 0);
        most_in_a_turn = posted_again - before > most_in_a_turn ? posted_again - before : most_in_a_turn;
    }
    CHECKF(posted_again >= 20000 && most_in_a_turn <= 1024, "%lld of 20000, %lld in one turn",
           (long long)posted_again, (long long)most_in_a_turn);
    disconnected();
}

#endif
