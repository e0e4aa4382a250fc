/*
 * LD_PRELOAD library: counts heap calls, those made by the program's own code apart from those of the
 * libraries it uses (by the caller's address). SIGUSR1 appends one line to $HAPI_HEAPCOUNT:
 *
 *     ours=N ours_freed=N library=N library_freed=N
 *
 * Counts are of calls. glibc only: __libc_malloc and friends are its own entry points.
 */
#include <errno.h>
#include <fcntl.h>
#include <link.h>
#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

void *__libc_malloc(size_t n);
void *__libc_calloc(size_t n, size_t size);
void *__libc_realloc(void *p, size_t n);
void *__libc_memalign(size_t align, size_t n);
void __libc_free(void *p);

static uintptr_t text_begin, text_end;
static _Atomic uint64_t calls[2], freed[2]; /* 0: libraries, 1: the program */

static void note(_Atomic uint64_t *counter, const void *caller)
{
    uintptr_t at = (uintptr_t)caller;
    atomic_fetch_add_explicit(&counter[at >= text_begin && at < text_end], 1, memory_order_relaxed);
}

static int first_object(struct dl_phdr_info *info, size_t size, void *arg)
{
    (void)size;
    (void)arg;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *p = &info->dlpi_phdr[i];
        if (p->p_type == PT_LOAD && p->p_flags & PF_X) {
            text_begin = info->dlpi_addr + p->p_vaddr;
            text_end = text_begin + p->p_memsz;
        }
    }
    return 1; /* the program itself comes first: enough */
}

static void report(int signal_number)
{
    char line[160];
    int saved = errno, fd = open(getenv("HAPI_HEAPCOUNT"), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);

    (void)signal_number;
    int n = snprintf(line, sizeof line, "ours=%llu ours_freed=%llu library=%llu library_freed=%llu\n",
                     (unsigned long long)calls[1], (unsigned long long)freed[1], (unsigned long long)calls[0],
                     (unsigned long long)freed[0]);
    if (fd >= 0 && write(fd, line, (size_t)n) == n)
        close(fd);
    errno = saved;
}

__attribute__((constructor)) static void start(void)
{
    struct sigaction sa = {.sa_handler = report, .sa_flags = SA_RESTART};
    dl_iterate_phdr(first_object, NULL);
    if (getenv("HAPI_HEAPCOUNT"))
        sigaction(SIGUSR1, &sa, NULL);
}

void *malloc(size_t n)
{
    note(calls, __builtin_return_address(0));
    return __libc_malloc(n);
}

void *calloc(size_t n, size_t size)
{
    note(calls, __builtin_return_address(0));
    return __libc_calloc(n, size);
}

void *realloc(void *p, size_t n)
{
    note(calls, __builtin_return_address(0));
    if (p)
        note(freed, __builtin_return_address(0));
    return __libc_realloc(p, n);
}

void *aligned_alloc(size_t align, size_t n)
{
    note(calls, __builtin_return_address(0));
    return __libc_memalign(align, n);
}

int posix_memalign(void **out, size_t align, size_t n)
{
    note(calls, __builtin_return_address(0));
    *out = __libc_memalign(align, n);
    return *out ? 0 : ENOMEM;
}

/* In glibc these call malloc from inside: they would count as the library's. */
char *strndup(const char *s, size_t n)
{
    size_t m = strnlen(s, n);
    note(calls, __builtin_return_address(0));
    char *p = __libc_malloc(m + 1);
    if (p) {
        memcpy(p, s, m);
        p[m] = '\0';
    }
    return p;
}

char *strdup(const char *s)
{
    size_t n = strlen(s) + 1;
    note(calls, __builtin_return_address(0));
    char *p = __libc_malloc(n);
    return p ? memcpy(p, s, n) : NULL;
}

void free(void *p)
{
    if (p)
        note(freed, __builtin_return_address(0));
    __libc_free(p);
}
