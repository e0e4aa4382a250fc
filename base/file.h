/* Whole files. Any thread. */
#ifndef HAPI_BASE_FILE_H
#define HAPI_BASE_FILE_H

#include <stddef.h>

#include "err.h"

/* The bytes of a file of at most `max`; *out is to be given to free(). Errors name the path: HAPI_ENOENT,
 * HAPI_ESYS, HAPI_ETOOBIG (also for what is no file), HAPI_ENOMEM. */
int hapi_file_read(const char *path, size_t max, void **out, size_t *size, struct hapi_err *err);

#endif
