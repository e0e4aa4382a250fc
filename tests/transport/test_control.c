/* The control channel over real loopback: both sides on one loop, hostile peers as raw sockets. */
#include "control_sides.h"

/* ---- cases ---- */

static void open_echo_close(const struct hapi_keys *nk, const struct hapi_keys *ck)
{
    struct hapi_control_options no = node_opt(), co = client_opt();
    no.keys = nk;
    co.keys = ck;
    struct hapi_control_listener *l = listen_on(&no);

    node.echo = true;
    connect_to(l, &co);
    run_until(&client.opened, 1, 2000);
    CHECKF(client.opened == 1 && node.opened == 1, "%s", client.why.text);
    if (client.opened && node.c) {
        CHECK(strcmp(node.role, "client") == 0 && strcmp(client.role, "node") == 0);
        CHECK(strncmp(hapi_control_peer(node.c), "127.0.0.1:", 10) == 0);
        CHECK(strcmp(hapi_control_local_host(node.c), "127.0.0.1") == 0);
        if (nk)
            CHECK(strcmp(hapi_control_identity(node.c), "alice") == 0);
        else
            CHECK(hapi_control_identity(node.c) == NULL);
        CHECK(hapi_control_send(client.c, HAPI_MSG_LS, "hello", 5) == 0);
        CHECK(client.messages == 0);
        run_until(&client.messages, 1, 2000);
        CHECK(node.messages == 1 && client.messages == 1 && client.bytes == 5);
        hapi_control_close(client.c);
        CHECK(client.closed == 0);
        run_until(&node.closed, 1, 2000);
        CHECK(client.closed == 1 && client.why.code == HAPI_ECANCELED);
        CHECK(node.closed == 1 && node.why.code == HAPI_ECLOSED);
    }
    end(l);
}

static void plain__open_echo_close__each_once(void)
{
    open_echo_close(NULL, NULL);
}

static void tls__open_echo_close__each_once(void)
{
    struct hapi_keys *nk = keys_of(KEY_B), *ck = keys_of(KEY_A);

    open_echo_close(nk, ck);
    hapi_keys_free(nk);
    hapi_keys_free(ck);
}

static void mismatch(const struct hapi_keys *nk, const struct hapi_keys *ck)
{
    struct hapi_control_options no = node_opt(), co = client_opt();
    no.keys = nk;
    co.keys = ck;
    struct hapi_control_listener *l = listen_on(&no);

    connect_to(l, &co);
    int64_t ms = run_until(&client.closed, 1, 3000);
    CHECK(client.closed == 1 && client.opened == 0 && node.opened == 0);
    CHECKF(client.why.code == HAPI_EAUTH || client.why.code == HAPI_ECLOSED, "%s", client.why.text);
    CHECKF(ms < 1000, "%lld ms", (long long)ms);
    CHECKF(strstr(client.why.text, "key"), "%s", client.why.text);
    end(l);
}

static void tls__wrong_or_no_key__refused_at_once(void)
{
    struct hapi_keys *a = keys_of(KEY_A), *wrong = keys_of(KEY_WRONG),
                     *stranger = keys_of("eve:00112233445566778899aabbccddeeff");

    mismatch(a, wrong);
    mismatch(a, stranger);
    mismatch(a, NULL);
    mismatch(NULL, a);
    hapi_keys_free(a);
    hapi_keys_free(wrong);
    hapi_keys_free(stranger);
}

static void keys__bad_files__are_refused(void)
{
    struct hapi_keys *k = NULL;
    struct hapi_err err;

    CHECK(keys_of("") == NULL);
    CHECK(keys_of("alice\n") == NULL);
    CHECK(keys_of("alice:0011\n") == NULL);
    CHECK(keys_of("alice:00112233445566778899aabbccddeefg\n") == NULL);
    CHECK(keys_of(":00112233445566778899aabbccddeeff\n") == NULL);
    CHECK(keys_of(KEY_A KEY_A) == NULL);
    CHECK(hapi_keys_load(&k, "/nonexistent/key", &err) == HAPI_ESYS && strstr(err.text, "/nonexistent/key"));
    k = keys_of(KEY_A);
    CHECK(k != NULL);
    hapi_keys_free(k);
    char path[64];
    snprintf(path, sizeof path, "/tmp/hapi-test-key-%d", (int)getpid());
    int fd = open(path, O_CREAT | O_WRONLY | O_TRUNC, 0644);
    REQUIRE(fd >= 0 && fchmod(fd, 0644) == 0 && write(fd, KEY_A, strlen(KEY_A)) > 0);
    close(fd);
    CHECK(hapi_keys_load(&k, path, &err) == HAPI_EINVAL && strstr(err.text, "chmod 600"));
    unlink(path);
}

static void hello__other_version__both_are_told(void)
{
    struct hapi_control_options no = node_opt(), co = client_opt();
    struct hapi_control_listener *l = listen_on(&no);

    co.hello.major_min = 2;
    co.hello.major_max = 5;
    connect_to(l, &co);
    int64_t ms = run_until(&client.closed, 1, 3000);
    CHECK(client.why.code == HAPI_EVERSION && node.opened == 0 && ms < 1000);
    CHECKF(strstr(client.why.text, "1 to 1") && strstr(client.why.text, "2 to 5"), "%s", client.why.text);
    client = (struct side){0};
    co.hello.major_min = 1;
    connect_to(l, &co);
    run_until(&client.opened, 1, 1000);
    CHECK(client.opened == 1);
    end(l);
}

static void port__random_bytes__told_and_dropped(void)
{
    struct hapi_control_options no = node_opt(), co = client_opt();
    struct hapi_control_listener *l = listen_on(&no);
    uint8_t junk[4096];
    bool ended;

    srand(1);
    for (int round = 0; round < 50; round++) {
        int fd = raw(l);
        for (size_t i = 0; i < sizeof junk; i++)
            junk[i] = (uint8_t)rand();
        CHECK(send(fd, junk, sizeof junk, MSG_NOSIGNAL) > 0);
        int code = raw_error(fd, 1000, &ended);
        CHECKF(ended && code == HAPI_EPROTO, "round %d: ended %d, code %d", round, ended, code);
        close(fd);
    }
    int fd = raw(l);
    CHECK(send(fd, "GET / HTTP/1.1\r\nHost: x\r\n\r\n", 27, MSG_NOSIGNAL) == 27);
    CHECK(raw_error(fd, 1000, &ended) == HAPI_EPROTO && ended);
    close(fd);
    CHECK(node.opened == 0);
    connect_to(l, &co);
    run_until(&client.opened, 1, 1000);
    CHECK(client.opened == 1);
    end(l);
}

/* Sends `n` bytes of a raw frame of `length` and type, and says how the node answers. */
static int raw_frame(struct hapi_control_listener *l, uint32_t length, uint16_t type, const void *body,
                     size_t n, int64_t ms, bool *ended)
{
    uint8_t frame[8 + 4096] = {(uint8_t)length, (uint8_t)(length >> 8), (uint8_t)(length >> 16),
                               (uint8_t)(length >> 24), (uint8_t)type};
    int fd = raw(l);

    memcpy(frame + 8, body, n);
    CHECK(send(fd, frame, 8 + n, MSG_NOSIGNAL) == (ssize_t)(8 + n));
    int code = raw_error(fd, ms, ended);
    close(fd);
    return code;
}

static void hello__half_or_malformed__dropped_at_the_deadline(void)
{
    struct hapi_control_options no = node_opt();
    no.handshake_ns = 150 * MS;
    struct hapi_control_listener *l = listen_on(&no);
    struct hapi_hello h = {.major_min = 1, .major_max = 1, .role = S("client")};
    uint8_t body[256];
    bool ended;
    int n = hapi_hello_encode(&h, body, sizeof body);

    REQUIRE(n > 0);
    /* half a hello */
    int64_t from = hapi_clock_ns();
    CHECK(raw_frame(l, (uint32_t)n + 4, HAPI_MSG_HELLO, body, (size_t)n / 2, 2000, &ended) == HAPI_ETIMEDOUT);
    CHECK(ended && (hapi_clock_ns() - from) / MS < 1000);
    /* nothing at all */
    int fd = raw(l);
    CHECK(raw_error(fd, 2000, &ended) == HAPI_ETIMEDOUT && ended);
    close(fd);
    /* a hello with a broken field, another first message, an over-long one */
    body[3] = 1;
    CHECK(raw_frame(l, (uint32_t)n + 4, HAPI_MSG_HELLO, body, (size_t)n, 1000, &ended) == HAPI_EPROTO &&
          ended);
    body[3] = 0;
    CHECK(raw_frame(l, 4, HAPI_MSG_LS, body, 0, 1000, &ended) == HAPI_EPROTO && ended);
    CHECK(raw_frame(l, 4 + 5000, HAPI_MSG_HELLO, body, 0, 1000, &ended) == HAPI_EPROTO && ended);
    CHECK(raw_frame(l, 3, HAPI_MSG_HELLO, body, 0, 1000, &ended) == HAPI_EPROTO && ended);
    CHECK(node.opened == 0);
    end(l);
}

static void open__over_long_frame_or_second_hello__closed(void)
{
    for (int round = 0; round < 2; round++) {
        struct hapi_control_options no = node_opt();
        struct hapi_control_listener *l = listen_on(&no);
        struct hapi_hello h = {.major_min = 1, .major_max = 1, .role = S("client")};
        uint8_t frame[300] = {0};
        bool ended;
        int n = hapi_hello_encode(&h, frame + 8, 200), fd = raw(l);
        frame[0] = (uint8_t)(n + 4);
        frame[4] = HAPI_MSG_HELLO;
        CHECK(send(fd, frame, (size_t)n + 8, MSG_NOSIGNAL) == n + 8);
        run_until(&node.opened, 1, 1000);
        CHECK(node.opened == 1);
        static const uint8_t too_long[] = {5, 0, 16, 0, HAPI_MSG_LS, 0, 0, 0};
        if (round == 0)
            CHECK(send(fd, too_long, sizeof too_long, MSG_NOSIGNAL) == 8);
        else
            CHECK(send(fd, frame, (size_t)n + 8, MSG_NOSIGNAL) == n + 8);
        CHECK(raw_error(fd, 1000, &ended) == HAPI_EPROTO && ended);
        run_until(&node.closed, 1, 1000);
        CHECK(node.closed == 1 && node.why.code == HAPI_EPROTO && node.messages == 0);
        close(fd);
        end(l);
    }
}

static void open__silent_peer__dropped_at_the_deadline(void)
{
    struct hapi_control_options no = node_opt();
    no.silence_ns = 200 * MS;
    struct hapi_control_listener *l = listen_on(&no);
    struct hapi_hello h = {.major_min = 1, .major_max = 1, .role = S("client")};
    uint8_t frame[300] = {0};
    int n = hapi_hello_encode(&h, frame + 8, 200), fd = raw(l);

    frame[0] = (uint8_t)(n + 4);
    frame[4] = HAPI_MSG_HELLO;
    CHECK(send(fd, frame, (size_t)n + 8, MSG_NOSIGNAL) == n + 8);
    run_until(&node.opened, 1, 1000);
    int64_t ms = run_until(&node.closed, 1, 2000);
    CHECK(node.closed == 1 && node.why.code == HAPI_ETIMEDOUT);
    CHECKF(ms >= 150 && ms < 600, "%lld ms", (long long)ms);
    close(fd);
    end(l);
}

static void open__idle_peers__kept_alive_by_heartbeats(void)
{
    struct hapi_control_options no = node_opt(), co = client_opt();
    no.silence_ns = 150 * MS; /* the client's own deadline is longer: it must follow the node's */
    struct hapi_control_listener *l = listen_on(&no);

    connect_to(l, &co);
    run_until(&client.opened, 1, 1000);
    REQUIRE(node.c);
    hapi_control_load_set(node.c, 77, 1);
    run_for(800);
    CHECK(node.closed == 0 && client.closed == 0 && node.beats >= 5 && client.beats >= 5);
    CHECK(client.beat_queued == 77);
    end(l);
}

static void hello__default_deadline__four_seconds_and_three_heartbeats(void)
{
    struct hapi_control_options no = node_opt(), co = client_opt();
    struct hapi_control_listener *l = listen_on(&no);

    connect_to(l, &co);
    run_until(&client.opened, 1, 1000);
    CHECK(HAPI_SILENCE_NS == 4 * HAPI_NS_PER_S);
    CHECKF(client.heartbeat_ms == 1333, "%llu ms", (unsigned long long)client.heartbeat_ms);
    end(l);
}

static void hello__changed_while_listening__later_peers_are_told(void)
{
    struct hapi_control_options no = node_opt(), co = client_opt();
    struct hapi_control_listener *l = listen_on(&no);
    struct hapi_hello h = no.hello;

    h.caps = HAPI_CAP_TRANSPORT_OFI | HAPI_CAP_TRANSPORT_VERBS;
    CHECK(hapi_control_listener_hello(l, &h, NULL) == 0);
    connect_to(l, &co);
    run_until(&client.opened, 1, 1000);
    CHECK(client.caps == h.caps && client.heartbeat_ms == 1333);
    h.role = (struct hapi_str){0};
    CHECK(hapi_control_listener_hello(l, &h, NULL) == HAPI_EINVAL);
    end(l);
}

static void pending__flood__a_real_client_gets_through_at_once(void)
{
    enum { FLOOD = 600 };
    static int fd[FLOOD];
    struct hapi_control_options no = node_opt(), co = client_opt();
    no.max_pending = 32;
    struct hapi_control_listener *l = listen_on(&no);

    for (int i = 0; i < FLOOD; i++) {
        fd[i] = raw(l);
        if (i % 100 == 99)
            run_for(30); /* no silent peer is dropped before 20 ms */
    }
    connect_to(l, &co);
    int64_t ms = run_until(&client.opened, 1, 3000);
    CHECKF(client.opened == 1 && ms < 500, "opened %d after %lld ms: %s", client.opened, (long long)ms,
           client.why.text);
    int alive = 0;
    run_for(300);
    for (int i = 0; i < FLOOD; i++) {
        char c;
        alive += recv(fd[i], &c, 1, 0) < 0 && errno == EAGAIN;
        close(fd[i]);
    }
    CHECKF(alive <= 32, "%d of the flood are still held", alive);
    end(l);
}

static void open__too_many__the_next_is_told(void)
{
    struct hapi_control_options no = node_opt(), co = client_opt();
    no.max_open = 1;
    struct hapi_control_listener *l = listen_on(&no);
    struct side second = {0};

    connect_to(l, &co);
    run_until(&client.opened, 1, 1000);
    REQUIRE(hapi_control_connect(&second.c, loop, "127.0.0.1", hapi_control_listener_port(l), &co,
                                 &client_handler, &second, NULL) == 0);
    run_until(&second.closed, 1, 1000);
    CHECK(second.opened == 0 && second.why.code == HAPI_EBUSY && client.closed == 0);
    hapi_control_close(client.c);
    run_until(&node.closed, 1, 1000);
    node.closed = 0; /* the next one is another connection of the same listener */
    second = (struct side){0};
    REQUIRE(hapi_control_connect(&second.c, loop, "127.0.0.1", hapi_control_listener_port(l), &co,
                                 &client_handler, &second, NULL) == 0);
    run_until(&second.opened, 1, 1000);
    CHECK(second.opened == 1);
    hapi_control_close(second.c);
    run_until(&second.closed, 1, 1000);
    run_for(20);
    end(l);
}

static void send__peer_that_does_not_read__bounded(void)
{
    struct hapi_control_options no = node_opt();
    no.send_max = 2 << 20;
    struct hapi_control_listener *l = listen_on(&no);
    struct hapi_hello h = {.major_min = 1, .major_max = 1, .role = S("client")};
    static uint8_t frame[300], big[HAPI_FRAME_MAX + 1];
    int n = hapi_hello_encode(&h, frame + 8, 200), fd = raw(l), rc = 0, sent = 0;

    frame[0] = (uint8_t)(n + 4);
    frame[4] = HAPI_MSG_HELLO;
    CHECK(send(fd, frame, (size_t)n + 8, MSG_NOSIGNAL) == n + 8);
    run_until(&node.opened, 1, 1000);
    REQUIRE(node.c);
    CHECK(hapi_control_send(node.c, HAPI_MSG_STAT_REPLY, big, sizeof big) == HAPI_ETOOBIG);
    while (sent < 100 && (rc = hapi_control_send(node.c, HAPI_MSG_STAT_REPLY, big, 512 << 10)) == 0) {
        sent++;
        run_for(1);
    }
    CHECKF(rc == HAPI_EBUSY && sent < 100, "rc %d after %d", rc, sent);
    int before = node.drained;
    size_t got = 0;
    for (int64_t until = hapi_clock_ns() + 3000 * MS; node.drained == before && hapi_clock_ns() < until;) {
        ssize_t r = recv(fd, big, sizeof big, 0);
        got += r > 0 ? (size_t)r : 0;
        run_for(1);
    }
    CHECK(node.drained > before && got > 1 << 20);
    CHECK(hapi_control_send(node.c, HAPI_MSG_STAT_REPLY, big, 100) == 0);
    close(fd);
    end(l);
}

static void big_frames(const struct hapi_keys *keys)
{
    struct hapi_control_options no = node_opt(), co = client_opt();
    static uint8_t big[HAPI_FRAME_MAX];
    uint32_t sum = 0;
    no.keys = co.keys = keys;
    struct hapi_control_listener *l = listen_on(&no);

    for (size_t i = 0; i < sizeof big; i++)
        big[i] = (uint8_t)(i * 2654435761u >> 13);
    for (int round = 0; round < 20; round++)
        for (size_t i = 0; i < sizeof big; i++)
            sum = sum * 31 + big[i];
    node.echo = true;
    connect_to(l, &co);
    run_until(&client.opened, 1, 2000);
    REQUIRE(client.opened == 1);
    for (int round = 0; round < 20;) {
        if (hapi_control_send(client.c, HAPI_MSG_MODEL_CHUNK, big, sizeof big) == 0)
            round++;
        run_for(1);
        REQUIRE(client.c && node.c);
    }
    run_until(&client.messages, 20, 10000);
    CHECK(client.messages == 20 && client.bytes == 20 * sizeof big && client.sum == sum);
    CHECK(client.drained > 0);
    end(l);
}

static void frames__one_mib_both_ways__whole(void)
{
    struct hapi_keys *k = keys_of(KEY_A);

    big_frames(NULL);
    big_frames(k);
    hapi_keys_free(k);
}

static void finish__queued_bytes__arrive_before_the_end(void)
{
    struct hapi_keys *k = keys_of(KEY_A);

    for (int round = 0; round < 2; round++) {
        struct hapi_control_options no = node_opt(), co = client_opt();
        static uint8_t big[900 << 10];
        no.keys = co.keys = round ? k : NULL;
        struct hapi_control_listener *l = listen_on(&no);
        connect_to(l, &co);
        run_until(&client.opened, 1, 1000);
        REQUIRE(node.c);
        for (int i = 0; i < 4; i++)
            CHECK(hapi_control_send(node.c, HAPI_MSG_INDEX_REPLY, big, sizeof big) == 0);
        CHECK(hapi_control_error(node.c, 0, HAPI_EBUSY, "draining") == 0);
        hapi_control_finish(node.c);
        CHECK(hapi_control_send(node.c, HAPI_MSG_LS, NULL, 0) == HAPI_ECLOSED);
        run_until(&client.closed, 1, 3000);
        CHECKF(client.messages == 5, "%d", client.messages);
        CHECK(client.why.code == HAPI_EBUSY && strstr(client.why.text, "draining"));
        run_until(&node.closed, 1, 2000);
        CHECK(node.closed == 1 && node.why.code == HAPI_ECANCELED);
        end(l);
    }
    hapi_keys_free(k);
}

static void finish__from_on_message__is_safe(void)
{
    struct hapi_control_options no = node_opt(), co = client_opt();
    struct hapi_control_listener *l = listen_on(&no);

    node.finish_on_message = node.echo = true;
    connect_to(l, &co);
    run_until(&client.opened, 1, 1000);
    for (int i = 0; i < 10; i++)
        CHECK(hapi_control_send(client.c, HAPI_MSG_LS, "x", 1) == 0);
    run_until(&client.closed, 1, 2000);
    run_until(&node.closed, 1, 2000);
    CHECK(node.messages == 1 && client.messages == 1 && node.closed == 1);
    end(l);
}

static void connect__nobody_there_or_bad_name__told_at_once(void)
{
    struct hapi_control_options no = node_opt(), co = client_opt();
    struct hapi_control_listener *l = listen_on(&no), *second = NULL;
    struct hapi_err err;
    uint16_t port = hapi_control_listener_port(l);

    CHECK(hapi_control_listen(&second, loop, "127.0.0.1", port, &no, &node_handler, NULL, &err) ==
              HAPI_EBUSY &&
          strstr(err.text, "127.0.0.1:"));
    CHECK(hapi_control_listen(&second, loop, "192.0.2.1", 0, &no, &node_handler, NULL, &err) == HAPI_EINVAL);
    hapi_control_listener_close(l);
    run_for(5);
    REQUIRE(hapi_control_connect(&client.c, loop, "127.0.0.1", port, &co, &client_handler, &client, NULL) ==
            0);
    int64_t ms = run_until(&client.closed, 1, 2000);
    CHECK(client.closed == 1 && ms < 500 && strstr(client.why.text, "refused") &&
          strstr(client.why.text, "127.0.0.1:"));
    client = (struct side){0};
    REQUIRE(hapi_control_connect(&client.c, loop, "no-such-host.invalid", port, &co, &client_handler, &client,
                                 NULL) == 0);
    run_until(&client.closed, 1, 6000);
    CHECKF(client.closed == 1 && (strstr(client.why.text, "no-such-host.invalid")), "%s", client.why.text);
}

static void connect__by_name__works_and_can_be_cancelled(void)
{
    struct hapi_control_options no = node_opt(), co = client_opt();
    struct hapi_control_listener *l = listen_on(&no);

    REQUIRE(hapi_control_connect(&client.c, loop, "localhost", hapi_control_listener_port(l), &co,
                                 &client_handler, &client, NULL) == 0);
    run_until(&client.opened, 1, 2000);
    CHECKF(client.opened == 1, "%s", client.why.text);
    struct side other = {0};
    REQUIRE(hapi_control_connect(&other.c, loop, "localhost", hapi_control_listener_port(l), &co,
                                 &client_handler, &other, NULL) == 0);
    hapi_control_close(other.c);
    run_until(&other.closed, 1, 2000);
    CHECK(other.closed == 1 && other.opened == 0 && other.why.code == HAPI_ECANCELED);
    end(l);
}

static void address__forms__parse(void)
{
    char host[HAPI_NAME_MAX + 1];
    uint16_t port;

    CHECK(hapi_address_parse("node-1:4000", host, &port, NULL) == 0 && !strcmp(host, "node-1") &&
          port == 4000);
    CHECK(hapi_address_parse("[::1]:1", host, &port, NULL) == 0 && !strcmp(host, "::1") && port == 1);
    CHECK(hapi_address_parse(":0", host, &port, NULL) == 0 && !*host && port == 0);
    static const char *const bad[] = {"",      "host",   "host:", "host:x", "host:65536",
                                      "::1:5", "[::1:5", "[:5",   "h:-1"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        CHECKF(hapi_address_parse(bad[i], host, &port, NULL) == HAPI_EINVAL, "%s", bad[i]);
    CHECK(hapi_address_is_loopback("127.0.0.1") && hapi_address_is_loopback("127.9.9.9"));
    CHECK(hapi_address_is_loopback("::1") && hapi_address_is_loopback("localhost"));
    CHECK(!hapi_address_is_loopback("0.0.0.0") && !hapi_address_is_loopback("") &&
          !hapi_address_is_loopback("192.0.2.1"));
}

int main(void)
{
    REQUIRE(hapi_loop_open(&loop, 256, NULL) == 0);
    CASE(address__forms__parse);
    CASE(keys__bad_files__are_refused);
    CASE(plain__open_echo_close__each_once);
    CASE(tls__open_echo_close__each_once);
    CASE(tls__wrong_or_no_key__refused_at_once);
    CASE(hello__other_version__both_are_told);
    CASE(port__random_bytes__told_and_dropped);
    CASE(hello__half_or_malformed__dropped_at_the_deadline);
    CASE(open__over_long_frame_or_second_hello__closed);
    CASE(open__silent_peer__dropped_at_the_deadline);
    CASE(open__idle_peers__kept_alive_by_heartbeats);
    CASE(hello__default_deadline__four_seconds_and_three_heartbeats);
    CASE(hello__changed_while_listening__later_peers_are_told);
    CASE(pending__flood__a_real_client_gets_through_at_once);
    CASE(open__too_many__the_next_is_told);
    CASE(send__peer_that_does_not_read__bounded);
    CASE(frames__one_mib_both_ways__whole);
    CASE(finish__queued_bytes__arrive_before_the_end);
    CASE(finish__from_on_message__is_safe);
    CASE(connect__nobody_there_or_bad_name__told_at_once);
    CASE(connect__by_name__works_and_can_be_cancelled);
    hapi_loop_close(loop);
    return check_done();
}
