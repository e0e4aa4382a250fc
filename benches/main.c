/* `hapi-bench`: finds the benchmark, says the version. */
#include <stdio.h>
#include <string.h>

#include "bench.h"

static const struct {
    const char *name, *what;
    int (*run)(int argc, char **argv);
} commands[] = {
    {"cudnn-plans", "a network compiled by cuDNN for a GPU that need not be there", bench_cudnn_plans},
    {"kernels", "images a second of a network, where the time goes, and its bare primitives", bench_kernels},
    {"overlap", "an epoch against the slowest of its stages", bench_overlap},
    {"planner", "what each policy chooses, beside the best that the simulator knows", bench_planner},
    {"transport", "goodput, latency and CPU time of the data connection", bench_transport},
};

static void help(FILE *f)
{
    fputs("usage: hapi-bench COMMAND [ARGUMENT...]\n\ncommands:\n", f);
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++)
        fprintf(f, "  %-12s %s\n", commands[i].name, commands[i].what);
    fputs("\n  hapi-bench COMMAND --help   says more\n  hapi-bench --version\n", f);
}

int main(int argc, char **argv)
{
    const char *name = argc > 1 ? argv[1] : "";

    if (!strcmp(name, "--help") || !strcmp(name, "-h") || !strcmp(name, "help")) {
        help(stdout);
        return BENCH_OK;
    }
    if (!strcmp(name, "--version") || (argc > 2 && !strcmp(argv[2], "--version"))) {
        puts("hapi-bench " HAPI_VERSION);
        return BENCH_OK;
    }
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++)
        if (!strcmp(name, commands[i].name))
            return commands[i].run(argc - 1, argv + 1);
    if (argc > 1)
        fprintf(stderr, "hapi-bench: no command `%s` (see hapi-bench --help)\n", name);
    else
        help(stderr);
    return BENCH_USAGE;
}
