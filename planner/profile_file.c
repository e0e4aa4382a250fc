#include <stdlib.h>

#include "file.h"
#include "profile.h"

int hapi_profile_read(struct hapi_profile **out, const char *path, struct hapi_err *err)
{
    void *text = NULL;
    size_t size;
    int rc = hapi_file_read(path, HAPI_PROFILE_BYTES_MAX, &text, &size, err);

    if (rc)
        return rc;
    rc = hapi_profile_parse(out, text, size, err);
    free(text);
    if (rc)
        hapi_err_context(err, "%s", path);
    return rc;
}
