/* The `hapi` command: finds the sub-command, says the version. */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "cmd.h"

static const struct {
    const char *name, *what;
    int (*run)(int argc, char **argv);
} commands[] = {
    {"ls", "datasets, objects, samples and classes of storage nodes", cmd_ls},
    {"cuts", "where a network can be split, with bytes and FLOPs", cmd_cuts},
    {"calibrate", "measure a network's activations, for computing in int8", cmd_calibrate},
    {"plan", "where to split, from a profile: why, and what would move it", cmd_plan},
    {"plan-memory", "what memory a network takes, before any is taken", cmd_plan_memory},
    {"profile", "measure what planning a split needs to know", cmd_profile},
    {"run", "run a model on given inputs", cmd_run},
    {"sim", "what plans take, simulated: many clients, many nodes", cmd_sim},
    {"stat", "what storage nodes are doing, once a second", cmd_stat},
    {"train", "train a classifier on features computed beside the data", cmd_train},
};

static void help(FILE *f)
{
    fputs("usage: hapi COMMAND [ARGUMENT...]\n\ncommands:\n", f);
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++)
        fprintf(f, "  %-11s %s\n", commands[i].name, commands[i].what);
    fputs("\n  hapi COMMAND --help   says more\n  hapi --version\n", f);
}

int main(int argc, char **argv)
{
    if (argc < 2) {
        help(stderr);
        return CMD_USAGE;
    }
    if (!strcmp(argv[1], "--help") || !strcmp(argv[1], "-h") || !strcmp(argv[1], "help")) {
        help(stdout);
        return CMD_OK;
    }
    if (!strcmp(argv[1], "--version")) {
        puts("hapi " HAPI_VERSION);
        return CMD_OK;
    }
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++) {
        if (strcmp(argv[1], commands[i].name))
            continue;
        if (argc > 2 && !strcmp(argv[2], "--version")) {
            puts("hapi " HAPI_VERSION);
            return CMD_OK;
        }
        return commands[i].run(argc - 1, argv + 1);
    }
    fprintf(stderr, "hapi: no command `%s` (see hapi --help)\n", argv[1]);
    return CMD_USAGE;
}
