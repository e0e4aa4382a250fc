/*
 * A bounded reader of tar archives: ustar, pax headers (path, size), GNU long names, base-256 sizes. It walks
 * the headers and never touches a member's bytes. Private to store/.
 *
 *     struct hapi_tar_source src = {read_at, &fd, size};
 *     rc = hapi_tar_walk(&src, member, arg, &err);
 *
 * Any thread; no state outlives a call.
 */
#ifndef HAPI_STORE_TAR_H
#define HAPI_STORE_TAR_H

#include <stddef.h>
#include <stdint.h>

#include "err.h"

#define HAPI_TAR_NAME_MAX 4096 /* bytes of a member's name; longer ones are malformed */

struct hapi_tar_source {
    /* Reads exactly n bytes at off (the walker stays within size). 0 or HAPI_ESYS. */
    int (*read_at)(void *user, void *buf, size_t n, uint64_t off, struct hapi_err *err);
    void *user;
    uint64_t size;
};

/* A regular file; offset + size <= the archive's size. name: terminated, without leading "./", borrowed. */
struct hapi_tar_member {
    const char *name;
    uint64_t offset, size;
};

/* Calls member() for each regular file that lies wholly inside, in archive order; a nonzero return ends the
 * walk and becomes its result. Directories, links, devices and sparse files are skipped. Errors:
 * HAPI_EFORMAT (cut off, bad checksum, malformed number or name; what came before has been delivered; the
 * text says where), HAPI_ENOMEM, what read_at() gave. */
int hapi_tar_walk(const struct hapi_tar_source *src,
                  int (*member)(void *arg, const struct hapi_tar_member *m), void *arg, struct hapi_err *err);

#endif
