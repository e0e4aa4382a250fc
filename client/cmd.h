/*
 * The sub-commands of `hapi`: each parses its own arguments (argv[0] is the sub-command's name), prints
 * results on stdout and errors on stderr, and returns the exit code: 0 ok, 1 failure, 2 usage.
 */
#ifndef HAPI_CLIENT_CMD_H
#define HAPI_CLIENT_CMD_H

#include "kernels.h"

enum { CMD_OK = 0, CMD_FAILURE = 1, CMD_USAGE = 2 };

int cmd_calibrate(int argc, char **argv);
int cmd_cuts(int argc, char **argv);
int cmd_ls(int argc, char **argv);
int cmd_plan(int argc, char **argv);
int cmd_plan_memory(int argc, char **argv);
int cmd_profile(int argc, char **argv);
int cmd_run(int argc, char **argv);
int cmd_sim(int argc, char **argv);
int cmd_stat(int argc, char **argv);
int cmd_train(int argc, char **argv);

/* "hapi cuts: ..." on stderr; returns CMD_FAILURE. */
int cmd_fail(const char *cmd, const struct hapi_err *err);
/* What a fixed batch of the model means, as a note on stderr; nothing where it is free. */
void cmd_batch_note(const char *cmd, struct hapi_model *m);
/* "hapi cuts: ... (see hapi cuts --help)" on stderr; gives CMD_USAGE. */
static inline int cmd_usage_code(void)
{
    return CMD_USAGE;
}

#define cmd_usage(cmd, ...) (cmd_usage_print(cmd, __VA_ARGS__), cmd_usage_code())
void cmd_usage_print(const char *cmd, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

#endif
