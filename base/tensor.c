#include "tensor.h"

#include <stdio.h>
#include <string.h>

#include "err.h"

size_t hapi_dtype_size(enum hapi_dtype dtype)
{
    switch (dtype) {
#define X(name, value, bytes, text)                                                                          \
    case name:                                                                                               \
        return bytes;
        HAPI_DTYPES(X)
#undef X
    case HAPI_DTYPE_NONE:
        break;
    }
    return 0;
}

const char *hapi_dtype_name(enum hapi_dtype dtype)
{
    switch (dtype) {
#define X(name, value, bytes, text)                                                                          \
    case name:                                                                                               \
        return text;
        HAPI_DTYPES(X)
#undef X
    case HAPI_DTYPE_NONE:
        break;
    }
    return "?";
}

enum hapi_dtype hapi_dtype_from_name(const char *s)
{
#define X(name, value, bytes, text)                                                                          \
    if (!strcmp(s, text))                                                                                    \
        return name;
    HAPI_DTYPES(X)
#undef X
    return HAPI_DTYPE_NONE;
}

int hapi_shape_elements(const struct hapi_shape *s, int64_t *out)
{
    int64_t n = 1;

    if (s->rank < 0 || s->rank > HAPI_MAX_RANK)
        return HAPI_ETOOBIG;
    for (int i = 0; i < s->rank; i++)
        if (s->dim[i] < 0 || __builtin_mul_overflow(n, s->dim[i], &n))
            return HAPI_ETOOBIG;
    *out = n;
    return 0;
}

int hapi_tensor_bytes(const struct hapi_shape *s, enum hapi_dtype dtype, size_t *out)
{
    size_t size = hapi_dtype_size(dtype);
    int64_t n;
    size_t bytes;

    if (!size)
        return HAPI_EINVAL;
    if (hapi_shape_elements(s, &n) || __builtin_mul_overflow((size_t)n, size, &bytes) || bytes > INT64_MAX)
        return HAPI_ETOOBIG;
    *out = bytes;
    return 0;
}

bool hapi_shape_equal(const struct hapi_shape *a, const struct hapi_shape *b)
{
    return a->rank == b->rank && !memcmp(a->dim, b->dim, sizeof a->dim[0] * (size_t)a->rank);
}

char *hapi_shape_text(const struct hapi_shape *s, char *buf, size_t size)
{
    size_t n = 0;

    if (!size)
        return buf;
    snprintf(buf, size, "scalar");
    for (int i = 0; i < s->rank && n < size; i++)
        n += (size_t)snprintf(buf + n, size - n, i ? "x%lld" : "%lld", (long long)s->dim[i]);
    return buf;
}
