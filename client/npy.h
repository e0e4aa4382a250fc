/*
 * NumPy's .npy files: dense arrays of numbers, C order. Any thread.
 */
#ifndef HAPI_CLIENT_NPY_H
#define HAPI_CLIENT_NPY_H

#include <stddef.h>

#include "err.h"
#include "tensor.h"

/* Parses bytes: format versions 1 to 3, little-endian, C order, rank <= HAPI_MAX_RANK. *data is malloc'd, the
 * caller frees it; desc->name is NULL. Errors: HAPI_EFORMAT (malformed, or shorter than its header says),
 * HAPI_EUNSUPPORTED (Fortran order, big-endian, a dtype that HAPI does not have), HAPI_ENOMEM. */
int hapi_npy_read(const void *bytes, size_t size, struct hapi_tensor_desc *desc, void **data,
                  struct hapi_err *err);
/* Writes a file: f32 or i64 elements. Errors: HAPI_EINVAL for other dtypes, HAPI_ESYS. */
int hapi_npy_write(const char *path, const struct hapi_shape *shape, enum hapi_dtype dtype, const void *data,
                   struct hapi_err *err);

#endif
