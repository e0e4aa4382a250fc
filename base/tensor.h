/*
 * What every folder means by a tensor: dtype, shape, layout. Plain data, no ownership.
 *
 * Shapes are reported logically: (N,C,H,W) for 4-D tensors whatever the layout in memory. On the wire and
 * at the edges of a plan tensors are dense; 4-D ones are channels-last (HAPI_LAYOUT_NHWC), all others are
 * in the model's own order (HAPI_LAYOUT_PLAIN).
 */
#ifndef HAPI_BASE_TENSOR_H
#define HAPI_BASE_TENSOR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define HAPI_MAX_RANK 8

/* X(NAME, value on the wire, bytes, name) */
#define HAPI_DTYPES(X)                                                                                       \
    X(HAPI_F32, 1, 4, "f32")                                                                                 \
    X(HAPI_F16, 2, 2, "f16")                                                                                 \
    X(HAPI_BF16, 3, 2, "bf16")                                                                               \
    X(HAPI_F64, 4, 8, "f64")                                                                                 \
    X(HAPI_I8, 5, 1, "i8")                                                                                   \
    X(HAPI_U8, 6, 1, "u8")                                                                                   \
    X(HAPI_I16, 7, 2, "i16")                                                                                 \
    X(HAPI_U16, 8, 2, "u16")                                                                                 \
    X(HAPI_I32, 9, 4, "i32")                                                                                 \
    X(HAPI_U32, 10, 4, "u32")                                                                                \
    X(HAPI_I64, 11, 8, "i64")                                                                                \
    X(HAPI_U64, 12, 8, "u64")                                                                                \
    X(HAPI_BOOL, 13, 1, "bool")

enum hapi_dtype {
    HAPI_DTYPE_NONE = 0,
#define X(name, value, bytes, text) name = (value),
    HAPI_DTYPES(X)
#undef X
};

enum hapi_layout { HAPI_LAYOUT_PLAIN = 0, HAPI_LAYOUT_NHWC = 1 };

struct hapi_shape {
    int rank;                   /* 0 (scalar) .. HAPI_MAX_RANK */
    int64_t dim[HAPI_MAX_RANK]; /* each >= 0; unused ones are 0 */
};

/* Description without memory. `name` is borrowed from whoever gave it. */
struct hapi_tensor_desc {
    const char *name;
    enum hapi_dtype dtype;
    enum hapi_layout layout;
    struct hapi_shape shape;
};

size_t hapi_dtype_size(enum hapi_dtype dtype);          /* bytes of one element; 0 for an unknown dtype */
const char *hapi_dtype_name(enum hapi_dtype dtype);     /* "f32"; "?" for an unknown dtype */
enum hapi_dtype hapi_dtype_from_name(const char *name); /* HAPI_DTYPE_NONE when there is none */

/* Product of the dims; HAPI_ETOOBIG when it (or a negative dim) does not fit in int64. *out on success. */
int hapi_shape_elements(const struct hapi_shape *s, int64_t *out);
/* Elements times element size; HAPI_ETOOBIG as above, HAPI_EINVAL for an unknown dtype. */
int hapi_tensor_bytes(const struct hapi_shape *s, enum hapi_dtype dtype, size_t *out);
bool hapi_shape_equal(const struct hapi_shape *a, const struct hapi_shape *b);
/* "8x3x224x224" into buf; "scalar" for rank 0. Returns buf. */
char *hapi_shape_text(const struct hapi_shape *s, char *buf, size_t size);

#endif
