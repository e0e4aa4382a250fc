#include "cmd.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

int cmd_fail(const char *cmd, const struct hapi_err *err)
{
    fprintf(stderr, "hapi %s: %s\n", cmd, err->text[0] ? err->text : hapi_err_meaning(err->code));
    return CMD_FAILURE;
}

void cmd_batch_note(const char *cmd, struct hapi_model *m)
{
    int64_t fixed;
    enum hapi_model_batch batch = hapi_model_batch(m, &fixed);

    if (batch == HAPI_MODEL_BATCH_REBOUND)
        fprintf(stderr,
                "hapi %s: note: the model's batch of %" PRId64 " is fixed; it is re-bound to any number\n",
                cmd, fixed);
    else if (batch == HAPI_MODEL_BATCH_PADDED)
        fprintf(stderr,
                "hapi %s: note: the model's batch of %" PRId64
                " is fixed and cannot be re-bound: samples run "
                "%" PRId64 " at a time, the last ones with copies to fill up\n",
                cmd, fixed, fixed);
    else if (batch == HAPI_MODEL_BATCH_ONE)
        fprintf(stderr,
                "hapi %s: note: the model's batch of 1 is fixed and cannot be re-bound: samples run one at a "
                "time\n",
                cmd);
}

void cmd_usage_print(const char *cmd, const char *fmt, ...)
{
    va_list ap;

    fprintf(stderr, "hapi %s: ", cmd);
    va_start(ap, fmt);
    vfprintf(stderr, fmt, ap);
    va_end(ap);
    fprintf(stderr, " (see hapi %s --help)\n", cmd);
}
