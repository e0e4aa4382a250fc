#include <unistd.h>

#include "check.h"
#include "config.h"

static struct hapi_config c;
static struct hapi_err err;

#define PARSE(...)                                                                                           \
    hapi_config_parse(&c, (int)(sizeof((const char *[]){"hapi-rt", __VA_ARGS__}) / sizeof(char *)),          \
                      (char **)(uintptr_t)(const char *[]){"hapi-rt", __VA_ARGS__, NULL}, &err)

static void flags__all_kinds__read(void)
{
    CHECK(PARSE("--data", "/d", "--listen=:0", "--micro-batch", "16", "--send-area", "2M", "--insecure") ==
          0);
    CHECK(!strcmp(c.data, "/d") && !strcmp(c.listen, ":0") && c.micro_batch == 16 && c.send_area == 2 << 20);
    CHECK(c.insecure && c.batches == 8 && !strcmp(c.transport, "auto") && !strcmp(c.backend, "auto"));
}

static void flags__of_verbs__read_and_checked(void)
{
    CHECK(PARSE("--data", "/d") == 0 && c.gid_index == -1 && c.mtu == -1 && c.tos == -1 && c.sl == -1);
    CHECK(PARSE("--data", "/d", "--gid-index", "0", "--mtu", "4096", "--tos", "106", "--sl", "3", "--device",
                "rxeA", "--busy-poll-us", "50", "--provider", "verbs") == 0);
    CHECK(c.gid_index == 0 && c.mtu == 4096 && c.tos == 106 && c.sl == 3 && !strcmp(c.device, "rxeA"));
    CHECK(c.busy_poll_us == 50 && !strcmp(c.provider, "verbs"));
    CHECK(PARSE("--data", "/d", "--mtu", "1500") == HAPI_EINVAL && strstr(err.text, "2048"));
    CHECK(PARSE("--data", "/d", "--tos", "256") == HAPI_EINVAL && strstr(err.text, "255"));
    CHECK(PARSE("--data", "/d", "--sl", "16") == HAPI_EINVAL);
    CHECK(PARSE("--data", "/d", "--gid-index", "-1") == HAPI_EINVAL);
    CHECK(PARSE("--data", "/d", "--transport", "pigeon") == HAPI_EINVAL && strstr(err.text, "pigeon"));
}

static void flags__wrong__named(void)
{
    CHECK(PARSE("--listen", ":0") == HAPI_EINVAL && strstr(err.text, "--data"));
    CHECK(PARSE("--data", "/d", "--colour", "red") == HAPI_EINVAL && strstr(err.text, "--colour"));
    CHECK(PARSE("--data", "/d", "--threads", "many") == HAPI_EINVAL && strstr(err.text, "many"));
    CHECK(PARSE("--data", "/d", "--send-area", "4X") == HAPI_EINVAL);
    CHECK(PARSE("--data", "/d", "--threads", "99999999999999999999") == HAPI_EINVAL);
    CHECK(PARSE("--data", "/d", "--micro-batch", "0") == HAPI_EINVAL);
    CHECK(PARSE("--data", "/d", "stray") == HAPI_EINVAL && strstr(err.text, "stray"));
    CHECK(PARSE("--data") == HAPI_EINVAL);
}

static void file__keys_and_comments__flags_win(void)
{
    char path[] = "/tmp/hapi-config-XXXXXX";
    static const char text[] = "# a node\n\n data = /from/file \nmicro_batch=4\nbatches = 12 # many\n";
    int fd = mkstemp(path);

    REQUIRE(fd >= 0 && write(fd, text, sizeof text - 1) == sizeof text - 1);
    CHECKF(PARSE("--micro-batch", "2", "--config", path) == 0, "%s", err.text);
    CHECK(!strcmp(c.data, "/from/file") && c.micro_batch == 2 && c.batches == 12);
    REQUIRE(write(fd, "colour = red\n", 13) == 13);
    CHECK(PARSE("--config", path) == HAPI_EFORMAT && strstr(err.text, ":6") && strstr(err.text, "colour"));
    close(fd);
    unlink(path);
    CHECK(PARSE("--config", path) == HAPI_ESYS && strstr(err.text, path));
}

int main(void)
{
    CASE(flags__all_kinds__read);
    CASE(flags__of_verbs__read_and_checked);
    CASE(flags__wrong__named);
    CASE(file__keys_and_comments__flags_win);
    return check_done();
}
