/* Tests of real networks: on the models that the command line names, else on exports of torchvision's. */
#ifndef HAPI_TESTS_EXPORTS_H
#define HAPI_TESTS_EXPORTS_H

#include "check.h"

/* An option: it takes a text, or sets a flag. */
struct export_option {
    const char *name;
    const char **text;
    bool *flag;
};

/* Options up to the first model; the index of that, argc when there is none. Ends the program with 2 on an
 * option that is none. */
static inline int exports_options(int argc, char **argv, const struct export_option *options, size_t n)
{
    int at = 1;

    for (; at < argc && !strncmp(argv[at], "--", 2); at++) {
        const struct export_option *o = options;
        while (o < options + n && strcmp(argv[at], o->name))
            o++;
        if (o == options + n || (o->text && at + 1 == argc)) {
            fprintf(stderr, "%s: no such option, or its value is missing\n", argv[at]);
            exit(2);
        }
        if (o->text)
            *o->text = argv[++at];
        else
            *o->flag = true;
    }
    return at;
}

static inline long exports_number(const char *text)
{
    char *end;
    long n = strtol(text, &end, 10);

    REQUIRE(*text && !*end && n >= 0);
    return n;
}

/* check(path) for torchvision's networks of these names, separated by spaces; they are exported where they
 * are missing. Skips where that is not possible. */
static inline void exports_each(const char *names, void (*check)(const char *path))
{
    char command[1024], path[1024];
    int wanted = 1, n = 0;

    snprintf(command, sizeof command, "/usr/bin/python3 '%s/tests/tools/exports.py' %s", HAPI_SOURCE_DIR,
             names);
    for (const char *s = names; *s; s++)
        wanted += *s == ' ';
    FILE *f = popen(command, "r");
    REQUIRE(f);
    while (fgets(path, sizeof path, f)) {
        path[strcspn(path, "\n")] = '\0';
        if (!strncmp(path, "skipped", 7))
            SKIP("python3 with torch, torchvision, onnx and photos is not installed");
        check(path);
        n++;
    }
    int rc = pclose(f);
    if (rc == 127 << 8)
        SKIP("there is no /usr/bin/python3");
    CHECK(rc == 0 && n == wanted);
}

#endif
