#include "cmd.h"

#include <stdarg.h>
#include <stdio.h>

int cmd_fail(const char *cmd, const struct hapi_err *err)
{
    fprintf(stderr, "hapi %s: %s\n", cmd, err->text[0] ? err->text : hapi_err_meaning(err->code));
    return CMD_FAILURE;
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
