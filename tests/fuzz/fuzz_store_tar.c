/* Any bytes as a tar shard: every sample lies inside, has a key and a class, and keys differ. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "shard.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct bytes {
    const uint8_t *p;
    size_t n;
};

static void require(bool ok, const char *what)
{
    if (!ok) {
        fprintf(stderr, "%s\n", what);
        abort();
    }
}

static int read_at(void *user, void *buf, size_t n, uint64_t off, struct hapi_err *err)
{
    const struct bytes *b = user;

    (void)err;
    require(off <= b->n && n <= b->n - off, "a read outside");
    memcpy(buf, b->p + off, n);
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct bytes b = {data, size};
    struct hapi_tar_source src = {read_at, &b, size};
    struct hapi_arena *arena = hapi_arena_new(64 << 20);
    struct hapi_shard s;
    struct hapi_err err = {0};

    require(arena && !hapi_shard_index(&s, "fuzz.tar", &src, arena, &err), err.text);
    for (uint32_t i = 0; i < s.n_samples; i++) {
        const struct hapi_shard_sample *x = &s.samples[i];
        require(x->offset <= size && x->bytes <= size - x->offset, "a sample outside");
        require(hapi_name_printable(x->key) && hapi_name_printable(x->class_name), "a strange name");
        require(strlen(x->key) <= HAPI_TAR_NAME_MAX && strlen(x->class_name) <= HAPI_CLASS_NAME_MAX, "long");
        require(!i || x[-1].offset < x->offset, "not in tar order");
        for (uint32_t k = 0; k < i && k < 50; k++)
            require(strcmp(s.samples[k].key, x->key) != 0, "a key twice");
    }
    require(s.problems.n <= HAPI_PROBLEMS_MAX, "too many problems");
    hapi_shard_fini(&s);
    hapi_arena_free(arena);
    return 0;
}
