#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cache.h"
#include "check.h"

static char top[] = "/tmp/hapi-cache-XXXXXX";

static void folder__environment__first_that_is_absolute(void)
{
    char at[256], small[8];

    setenv("HOME", "/home/who", 1);
    setenv("XDG_CACHE_HOME", "/xdg", 1);
    setenv("HAPI_CACHE", "/own", 1);
    CHECK(hapi_cache_folder(at, sizeof at, "things") && !strcmp(at, "/own/things"));
    setenv("HAPI_CACHE", "relative", 1);
    CHECK(hapi_cache_folder(at, sizeof at, "things") && !strcmp(at, "/xdg/hapi/things"));
    CHECK(!hapi_cache_folder(small, sizeof small, "things"));
    unsetenv("XDG_CACHE_HOME");
    CHECK(hapi_cache_folder(at, sizeof at, "things") && !strcmp(at, "/home/who/.cache/hapi/things"));
    unsetenv("HOME");
    CHECK(!hapi_cache_folder(at, sizeof at, "things"));
}

static void read__what_was_written__whole(void)
{
    static const char name[] = "name.json", other[] = "other.json";
    char folder[256], path[512], *text;
    struct stat st;

    snprintf(folder, sizeof folder, "%s/a/b", top);
    CHECK(!hapi_cache_read(folder, name));
    CHECK(hapi_cache_write(folder, name, "first", false));
    CHECK(hapi_cache_write(folder, name, "second, in its place", false));
    CHECK(!hapi_cache_write(folder, name, "third, where there is one", true));
    text = hapi_cache_read(folder, name);
    REQUIRE(text);
    CHECK(!strcmp(text, "second, in its place"));
    free(text);
    CHECK(!hapi_cache_read(folder, other));
    REQUIRE(!stat(folder, &st));
    CHECK((st.st_mode & 0777) == 0700);
    snprintf(path, sizeof path, "%s/%s", folder, other);
    REQUIRE(!symlink("/etc/hostname", path));
    CHECK(!hapi_cache_read(folder, other)); /* a link leads elsewhere */
    CHECK(hapi_cache_drop(folder, other) && !hapi_cache_drop(folder, other));
    CHECK(hapi_cache_write(folder, other, "the first", true));
    CHECK(hapi_cache_drop(folder, name) && !hapi_cache_read(folder, name));
}

static void write__no_folder_can_be_made__nothing_happens(void)
{
    CHECK(!hapi_cache_write("/proc/none/here", "name", "text", false));
    CHECK(!hapi_cache_read("/proc/none/here", "name"));
}

static void name__of_keys__hex_and_apart(void)
{
    char name[HAPI_CACHE_NAME], other[HAPI_CACHE_NAME];

    hapi_cache_name(name, "key", 3);
    hapi_cache_name(other, "kez", 3);
    CHECK(strlen(name) == 64 && strspn(name, "0123456789abcdef") == 64 && strcmp(name, other));
}

int main(void)
{
    char command[64];

    REQUIRE(mkdtemp(top));
    CASE(folder__environment__first_that_is_absolute);
    CASE(read__what_was_written__whole);
    CASE(name__of_keys__hex_and_apart);
    CASE(write__no_folder_can_be_made__nothing_happens);
    snprintf(command, sizeof command, "rm -r %s", top);
    return system(command) ? 1 : check_done();
}
