#include "file.h"

#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>

int hapi_file_read(const char *path, size_t max, void **out, size_t *size, struct hapi_err *err)
{
    FILE *f = fopen(path, "rbe");
    struct stat st;
    int rc;

    if (!f && errno == ENOENT)
        return hapi_err_set(err, HAPI_ENOENT, errno, "there is no file %s", path);
    if (!f)
        return hapi_err_errno(err, errno, "cannot open %s", path);
    if (fstat(fileno(f), &st) || !S_ISREG(st.st_mode) || (uint64_t)st.st_size > max) {
        rc = hapi_err_set(err, HAPI_ETOOBIG, 0, "%s: not a file of at most %zu bytes", path, max);
        goto fail;
    }
    *size = (size_t)st.st_size;
    *out = malloc(*size ? *size : 1);
    if (!*out) {
        rc = hapi_err_set(err, HAPI_ENOMEM, 0, "%s: no memory for %zu bytes", path, *size);
        goto fail;
    }
    if (*size && fread(*out, *size, 1, f) != 1) {
        hapi_err_errno(err, errno, "cannot read %s", path);
        free(*out);
        rc = HAPI_ESYS;
        goto fail;
    }
    fclose(f);
    return HAPI_OK;
fail:
    fclose(f);
    return rc;
}
