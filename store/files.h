/*
 * Opening beneath a folder and asking what a file is. Private to store/. Any thread.
 */
#ifndef HAPI_STORE_FILES_H
#define HAPI_STORE_FILES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "store.h"

struct open_how;

struct hapi_file_info {
    struct hapi_version version; /* size, mtime_ns, inode, each a little-endian u64 */
    uint64_t bytes;
    bool regular, folder;
    uint32_t links;     /* 0: deleted or replaced since it was opened */
    uint32_t direct_at; /* O_DIRECT alignment of memory and offsets; 0: buffered reads only */
};

/* How every path is opened: no way out of the root, no magic links, never blocking on a FIFO. */
void hapi_file_how(struct open_how *how, int flags);
/* fd, or -errno. Blocks; the read path puts the same `how` through the ring. */
int hapi_file_open(int root, const char *path, int flags);
/* statx on an open fd (no path walk, does not block). 0 or -errno. */
int hapi_file_info(int fd, struct hapi_file_info *out);
bool hapi_version_equal(const struct hapi_version *a, const struct hapi_version *b);

#endif
