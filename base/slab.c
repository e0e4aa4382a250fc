#include "slab.h"

#include <errno.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>

enum { PAGE = 4096, HUGE_PAGE = 2 << 20 };

/* Pages that the administrator has set aside (vm.nr_hugepages); without enough of them the call fails. */
static unsigned char *map_reserved(size_t size)
{
    void *p = mmap(NULL, size, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | (21 << MAP_HUGE_SHIFT), -1, 0);

    return p == MAP_FAILED ? NULL : p;
}

int hapi_slab_init(struct hapi_slab *s, size_t size, struct hapi_err *err)
{
    if (!size || size > SIZE_MAX / 2)
        return hapi_err_set(err, HAPI_EINVAL, 0, "a slab of %zu bytes was asked for", size);
    if (size >= HUGE_PAGE) {
        size_t whole = (size + HUGE_PAGE - 1) & ~(size_t)(HUGE_PAGE - 1);
        unsigned char *huge = map_reserved(whole);
        if (huge) {
            *s = (struct hapi_slab){.base = huge, .size = whole};
            return 0;
        }
    }
    size = (size + PAGE - 1) & ~(size_t)(PAGE - 1);
    size_t pad = size >= HUGE_PAGE ? HUGE_PAGE : 0;
    unsigned char *p =
        mmap(NULL, size + pad, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED)
        return hapi_err_set(err, HAPI_ENOMEM, errno, "cannot map %zu bytes for the slab", size);
    if (pad) { /* start on a huge page, give the rest back */
        size_t head = (HUGE_PAGE - (uintptr_t)p % HUGE_PAGE) % HUGE_PAGE;
        if (head)
            munmap(p, head);
        if (pad - head)
            munmap(p + head + size, pad - head);
        p += head;
        (void)madvise(p, size, MADV_HUGEPAGE); /* only a wish */
    }
    *s = (struct hapi_slab){.base = p, .size = size};
    return 0;
}

void hapi_slab_fini(struct hapi_slab *s)
{
    if (s->base)
        munmap(s->base, s->size);
    memset(s, 0, sizeof *s);
}

void *hapi_slab_take(struct hapi_slab *s, size_t bytes, size_t align)
{
    size_t at = (s->used + align - 1) & ~(align - 1);
    if (at > s->size || bytes > s->size - at)
        return NULL;
    s->used = at + bytes;
    return s->base + at;
}

/* The huge page is split; its other part then stays in small ones, or the kernel would soon make it whole
 * again. One that is three quarters full is worth more as it is. */
void hapi_slab_trim(struct hapi_slab *s)
{
    size_t from = (s->used + PAGE - 1) & ~(size_t)(PAGE - 1), huge = from & ~(size_t)(HUGE_PAGE - 1);
    size_t end = huge + HUGE_PAGE < s->size ? huge + HUGE_PAGE : s->size;

    if (s->size < HUGE_PAGE || from == huge || end - from < HUGE_PAGE / 4)
        return;
    if (!madvise(s->base + huge, end - huge, MADV_NOHUGEPAGE)) /* not for reserved ones */
        (void)madvise(s->base + from, end - from, MADV_DONTNEED);
}
