/* Cases of test_conformance.c: two connections at once, and the fence rules. */
#ifndef HAPI_TESTS_CONFORMANCE_TWO_H
#define HAPI_TESTS_CONFORMANCE_TWO_H

#include "conformance_sides.h"

/* ---- two connections: what one was given is nothing to the other ---- */

static struct side node2, client2;

static void second_connected(uint8_t *at, size_t n, uint64_t *its_key, uint64_t *its_base)
{
    memset(&node2, 0, sizeof node2);
    memset(&client2, 0, sizeof client2);
    accepting = &node2;
    REQUIRE(hapi_conn_connect(&client2.c, client_fabric, host, hapi_listener_port(listener), nonce, &handler,
                              &client2, NULL) == 0);
    run_until(&client2.opened, 1, 3000);
    run_until(&node2.opened, 1, 3000);
    accepting = &node;
    REQUIRE(client2.opened && node2.opened);
    REQUIRE(hapi_conn_expose(client2.c, at, n, its_key, its_base, NULL) == 0);
    told(&client2, &node2);
}

static void second_disconnected(void)
{
    hapi_conn_close(client2.c);
    run_until(&client2.closed, 1, 3000);
    run_until(&node2.closed, 1, 6000);
    CHECK(client2.closed == 1 && node2.closed == 1);
}

static void key__of_another_connection__opens_nothing(void)
{
    uint64_t key2, base2;

    connected(1);
    second_connected(window, WINDOW, &key2, &base2);
    CHECK(key2 != key);
    memset(slab.base, 0x11, 8192);
    CHECK(hapi_conn_write(node2.c, slab.base, 8192, base, key, &ops[0].op) == 0);
    run_until(&node2.closed, 1, 5000);
    CHECK(node2.closed == 1 && all(window, WINDOW, 0xee));
    run_until(&client2.closed, 1, 5000);
    /* and the one that it belongs to lives on */
    CHECK(hapi_conn_write_imm(node.c, slab.base, 8, base, key, 9, NULL) == 0);
    run_until(&client.imms, 1, 3000);
    CHECK(client.imms == 1 && client.last_imm == 9 && window[0] == 0x11);
    second_disconnected();
    disconnected();
}

/* Two listeners can have the same port, at two addresses. */
static void listener__same_port_at_another_address__its_end_is_its_own(void)
{
    struct hapi_listener *other = NULL;

    if (strcmp(host, "127.0.0.1") != 0)
        return; /* the one that has a second address everywhere */
    connected(1);
    REQUIRE(hapi_listener_open(&other, node_fabric, "127.0.0.2", hapi_listener_port(listener),
                               &listener_handler, NULL, NULL) == 0);
    hapi_listener_close(other);
    run_for(20);
    CHECK(client.closed == 0 && node.closed == 0);
    CHECK(hapi_conn_write_imm(node.c, slab.base, 8, base, key, 3, NULL) == 0);
    run_until(&client.imms, 1, 3000);
    CHECK(client.imms == 1 && client.last_imm == 3);
    disconnected();
}

/* ---- the fence rules of docs/architecture.md ---- */

/* (i) After a record that ends a request its window is free: the next one may be written at once. */
static void fence__after_the_record__window_is_free(void)
{
    connected(64);
    for (uint32_t round = 1; round <= 64; round++) {
        memset(slab.base, (int)round, 64 << 10);
        CHECK(hapi_conn_write(node.c, slab.base, 64 << 10, base, key, NULL) == 0);
        CHECK(hapi_conn_write_imm(node.c, slab.base, 64, base + (64 << 10), key, round, &ops[0].op) == 0);
        run_until(&client.imms, (int)round, 3000);
        /* Ours from here on: nothing of this round comes after its record. */
        CHECK(all(window, 64 << 10, (uint8_t)round));
        memset(window, 0xee, (64 << 10) + 64);
        run_for(1);
        CHECK(all(window, (64 << 10) + 64, 0xee));
        run_until(&ops[0].done, (int)round, 3000);
    }
    disconnected();
}

/* The first MiB is what the second connection wrote, the rest what we did. */
static void check_ours(void)
{
    size_t wrong = 0, first = 0;

    for (size_t i = 0; i < WINDOW; i++)
        if (window[i] != (i < 1 << 20 ? 0x66 : 0x55) && !wrong++)
            first = i;
    CHECKF(!wrong, "%zu bytes are not ours, from %zu on: 0x%02x", wrong, first, window[first]);
}

/* (ii) After silence the connection is destroyed, and only then its memory is used again. */
static void fence__after_close__memory_serves_another_request(void)
{
    uint64_t key2, base2;

    connected(0);
    memset(slab.base, 0xaa, 1 << 20);
    for (int i = 0; i < 32; i++)
        CHECK(hapi_conn_write(node.c, slab.base, 1 << 20, base + (uint64_t)(i % 4) * (1 << 20), key,
                              &ops[i].op) == 0);
    hapi_conn_close(client.c);
    run_until(&client.closed, 1, 3000);
    memset(window, 0x55, WINDOW);
    second_connected(window, 1 << 20, &key2, &base2);
    REQUIRE(hapi_conn_grant(client2.c, 1) == 0);
    memset(slab.base + (1 << 20), 0x66, 1 << 20);
    CHECK(hapi_conn_write(node2.c, slab.base + (1 << 20), 1 << 20, base2, key2, NULL) == 0);
    CHECK(hapi_conn_write_imm(node2.c, slab.base + (1 << 20), 8, base2, key2, 1, NULL) == 0);
    run_until(&client2.imms, 1, 5000);
    CHECKF(client2.imms == 1, "%d immediates, closed %d: %s", client2.imms, client2.closed, client2.why.text);
    check_ours();
    run_until(&node.closed, 1, 6000);
    second_disconnected();
    check_ours();
    CHECK(node.closed == 1 && node.done == 32);
    memset(window - PAGE, 0xee, WINDOW + 2 * PAGE);
    disconnected();
}

/* (iii) A hedged request goes to a spare slot. The copy that wins is taken from there; the slot of the one
 * that loses is used again only when its connection has gone. */
static void fence__hedged__loser_cannot_touch_what_was_delivered(void)
{
    enum { SLOT = 1 << 20 };
    uint8_t *spare = window + SLOT, *delivered = window + 2 * SLOT;
    uint64_t key2, base2;

    connected(0);
    second_connected(spare, SLOT, &key2, &base2);
    REQUIRE(hapi_conn_grant(client2.c, 1) == 0);
    memset(slab.base, 0xaa, SLOT);
    memset(slab.base + SLOT, 0xbb, SLOT);
    CHECK(hapi_conn_write(node2.c, slab.base + SLOT, SLOT, base2, key2, NULL) == 0);
    CHECK(hapi_conn_write_imm(node2.c, slab.base, 8, base2, key2, 7, NULL) == 0);
    run_until(&client2.imms, 1, 5000);
    CHECK(client2.imms == 1);
    for (int i = 0; i < 16; i++) /* the slow one wakes up */
        CHECK(hapi_conn_write(node.c, slab.base, SLOT, base, key, &ops[i].op) == 0);
    memcpy(delivered, spare, SLOT); /* the one counted copy */
    hapi_conn_close(client.c);
    run_until(&client.closed, 1, 3000);
    memset(window, 0x55, SLOT); /* its slot, for another request */
    run_until(&node.closed, 1, 6000);
    run_for(20);
    CHECK(all(window, SLOT, 0x55) && all(delivered + 8, SLOT - 8, 0xbb));
    second_disconnected();
    memset(window, 0xee, WINDOW);
    disconnected();
}

#endif
