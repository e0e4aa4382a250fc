/*
 * Everything that moves payload, seen where it moves, by the linker's --wrap and by libfabric's tables of
 * operations: which addresses a kernel writes, a work request names, a decoder reads.
 *
 *     SEAM_READ     hapi_store_read()                       object  -> slab        (node)
 *     SEAM_KERNEL   dnnl_primitive_execute(), hapi_ref_*    ...     -> its output  (either tier)
 *     SEAM_CONVERT  hapi_convert*(), hapi_i8_*()            f32 <-> wire dtype     (either tier)
 *     SEAM_WRITE    fi_write(), fi_writemsg()               slab    -> the client's registered memory
 *     SEAM_DECODE   jpeg_read_header()                      reads only
 *     SEAM_COPY     memcpy(), memmove() of our own code, SEAM_COPY_MIN bytes or more
 *
 * Node and client are one process, so that an address of either means one thing. A loop that copies is no
 * event, and shows by that: what it wrote, no event accounts for.
 */
#ifndef HAPI_TESTS_SEAMS_H
#define HAPI_TESTS_SEAMS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum seam_kind { SEAM_READ, SEAM_KERNEL, SEAM_CONVERT, SEAM_WRITE, SEAM_DECODE, SEAM_COPY };
enum { SEAM_COPY_MIN = 128 };

struct seam_event {
    enum seam_kind kind;
    uintptr_t dst, src; /* SEAM_READ and SEAM_KERNEL have no src */
    size_t n, src_n;    /* bytes of each */
    uint32_t crc32c;    /* SEAM_WRITE: of src when it was posted */
};

void seams_clear(void);
size_t seams_count(void); /* REQUIREs that none was lost */
struct seam_event seams_at(size_t i);

/* Where [at, at+n) came from, backwards from event `before`: the last event that wrote there must be of kind
 * want[0] and have written all of it; then the same of what it read, for want[1]; and so on. A source that
 * was already sent before does not count again. False, and a line on stderr, when it is otherwise. */
bool seams_chain(uintptr_t at, size_t n, size_t before, const enum seam_kind *want, size_t n_want);

/* A fault: the next payload write has a bit of its source turned over just before it is posted. */
void seams_corrupt_next(void);
bool seams_corrupted(void); /* it has happened */
/* What a node's hello is shown to offer: less these bits, and these more. */
void seams_hide_caps(uint32_t caps);
void seams_claim_caps(uint32_t caps);
/* A node's next word on an error goes out so much later than what it writes; one at a time. */
void seams_late_word(int ms);

#endif
