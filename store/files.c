#include "files.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "store_impl.h"

/* From Linux 6.1; older kernels leave the mask bit clear and the fields zero. */
#ifndef STATX_DIOALIGN
#define STATX_DIOALIGN 0x2000u
#endif

void hapi_file_how(struct open_how *how, int flags)
{
    memset(how, 0, sizeof *how);
    how->flags = (uint64_t)(flags | O_CLOEXEC | (flags & O_PATH ? 0 : O_NONBLOCK | O_NOCTTY));
    how->resolve = RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS;
}

int hapi_file_open(int root, const char *path, int flags)
{
    struct open_how how;

    hapi_file_how(&how, flags);
    for (;;) {
        long fd = syscall(SYS_openat2, root, path, &how, sizeof how);
        if (fd >= 0)
            return (int)fd;
        /* EAGAIN: something was renamed while `..` was resolved. */
        if (errno != EINTR && errno != EAGAIN)
            return -errno;
    }
}

static void put64(uint8_t *p, uint64_t v)
{
    for (int i = 0; i < 8; i++)
        p[i] = (uint8_t)(v >> (8 * i));
}

/* The words after stx_mnt_id are named only by newer headers: by offset they are where the kernel's ABI has
 * them. stx_dio_mem_align at 152, stx_dio_offset_align at 156. */
static uint32_t direct_alignment(const struct statx *x)
{
    uint32_t mem, off;

    if (!(x->stx_mask & STATX_DIOALIGN))
        return HAPI_DIRECT_ALIGN_MAX; /* a guess that suits all block devices; EINVAL turns it off */
    memcpy(&mem, (const char *)x + 152, 4);
    memcpy(&off, (const char *)x + 156, 4);
    uint32_t a = mem > off ? mem : off;
    if (!off || a > HAPI_DIRECT_ALIGN_MAX || a & (a - 1))
        return 0;
    return a;
}

int hapi_file_info(int fd, struct hapi_file_info *out)
{
    struct statx x;

    if (statx(fd, "", AT_EMPTY_PATH, STATX_BASIC_STATS | STATX_DIOALIGN, &x))
        return -errno;
    memset(out, 0, sizeof *out);
    out->bytes = x.stx_size;
    out->regular = S_ISREG(x.stx_mode);
    out->folder = S_ISDIR(x.stx_mode);
    out->links = x.stx_nlink;
    out->direct_at = direct_alignment(&x);
    out->version.size = 24;
    put64(out->version.data, x.stx_size);
    put64(out->version.data + 8, (uint64_t)x.stx_mtime.tv_sec * 1000000000u + (uint64_t)x.stx_mtime.tv_nsec);
    put64(out->version.data + 16, x.stx_ino);
    return 0;
}

bool hapi_version_equal(const struct hapi_version *a, const struct hapi_version *b)
{
    return a->size == b->size && !memcmp(a->data, b->data, a->size);
}
