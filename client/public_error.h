/* An error of ours as a user of hapi.h has it. Internal to client/. */
#ifndef HAPI_CLIENT_PUBLIC_ERROR_H
#define HAPI_CLIENT_PUBLIC_ERROR_H

#include <string.h>

#include "err.h"
#include "hapi.h"

static inline int public_error(struct hapi_error *out, const struct hapi_err *err)
{
    if (out) {
        out->code = err->code;
        memcpy(out->text, err->text, sizeof out->text);
    }
    return err->code;
}

#endif
