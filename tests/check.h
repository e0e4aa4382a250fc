/* What a test program needs: a named case, checks that say where and what, exit 0/1/77. */
#ifndef HAPI_TESTS_CHECK_H
#define HAPI_TESTS_CHECK_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* How much longer a bound on time is under sanitizers, which run the code several times slower. */
#if defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define CHECK_SLOWDOWN 10
#elif __has_feature(address_sanitizer)
#define CHECK_SLOWDOWN 3
#endif
#endif
#ifndef CHECK_SLOWDOWN
#define CHECK_SLOWDOWN 1
#endif

/* Whether a sanitizer watches: whole networks by plain loops would take minutes. */
#if defined(__has_feature)
#if __has_feature(thread_sanitizer) || __has_feature(address_sanitizer)
#define CHECK_SANITIZED 1
#endif
#endif
#ifndef CHECK_SANITIZED
#define CHECK_SANITIZED 0
#endif

static int check_failed, check_cases;
static const char *check_case __attribute__((unused)) = "";

#define CASE(fn)                                                                                             \
    do {                                                                                                     \
        int before = check_failed;                                                                           \
        check_case = #fn;                                                                                    \
        check_cases++;                                                                                       \
        fn();                                                                                                \
        printf("%s %s\n", before == check_failed ? "ok  " : "FAIL", #fn);                                    \
    } while (0)

#define CHECK(cond)                                                                                          \
    do {                                                                                                     \
        if (!(cond)) {                                                                                       \
            check_failed++;                                                                                  \
            fprintf(stderr, "%s:%d: %s: not true: %s\n", __FILE__, __LINE__, check_case, #cond);             \
        }                                                                                                    \
    } while (0)

/* With more to say: CHECKF(rc == 0, "rc %d: %s", rc, err.text). */
#define CHECKF(cond, ...)                                                                                    \
    do {                                                                                                     \
        if (!(cond)) {                                                                                       \
            check_failed++;                                                                                  \
            fprintf(stderr, "%s:%d: %s: not true: %s: ", __FILE__, __LINE__, check_case, #cond);             \
            fprintf(stderr, __VA_ARGS__);                                                                    \
            fputc('\n', stderr);                                                                             \
        }                                                                                                    \
    } while (0)

/* Ends the program when going on makes no sense. */
#define REQUIRE(cond)                                                                                        \
    do {                                                                                                     \
        if (!(cond)) {                                                                                       \
            fprintf(stderr, "%s:%d: %s: required: %s\n", __FILE__, __LINE__, check_case, #cond);             \
            exit(1);                                                                                         \
        }                                                                                                    \
    } while (0)

#define SKIP(why)                                                                                            \
    do {                                                                                                     \
        printf("skipped: %s\n", why);                                                                        \
        exit(77);                                                                                            \
    } while (0)

static inline int check_done(void)
{
    printf("%d cases, %d failed checks\n", check_cases, check_failed);
    return check_failed ? 1 : 0;
}

#endif
