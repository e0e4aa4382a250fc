/* hapi-bench transport: the data connection as runtime/ and client/ use it, and nothing else. */
#include <stdio.h>

#include "transport_bench.h"

static const char help[] =
    "usage: hapi-bench transport --serve HOST[:PORT] [OPTION...]    the node: writes\n"
    "       hapi-bench transport --peer HOST:PORT [OPTION...]       the compute side: measures\n\n"
    "Goodput by message size, the latency of a write with immediate, CPU time and completions of the data\n"
    "connection. A node serves one peer after the other and prints `ready HOST:PORT` when it can be "
    "reached.\n\n"
    "both sides:\n"
    "  --transport T      ofi or verbs (default: verbs where there is an RDMA device, else ofi)\n"
    "  --busy-poll-us N   look for completions for so long before sleeping (default 0: event driven)\n"
    "  --device NAME      verbs: this device; --gid-index, --mtu, --tos, --sl as for perftest\n"
    "the peer:\n"
    "  --sizes LIST       bytes of a write (default 4K,16K,64K,256K,1M,4M,16M)\n"
    "  --only WHAT        goodput or latency (default: both)\n"
    "  --seconds S        for each size (default 1)\n"
    "  --rounds N         in so many rounds; goodput is the median of them (default 5)\n"
    "  --count N          writes of a round, instead of --seconds; then nothing is warmed up\n"
    "  --depth N          writes outstanding (default 16; at most 32 MiB of them)\n"
    "  --checksum         every size also with the crc32c of each payload, made by the writer and checked\n"
    "                     by the reader\n"
    "  --json [FILE]      one JSON object:\n"
    "     program, version, transport, busy_poll_us, depth\n"
    "     goodput: list of {bytes, checksum, depth, rounds, writes (of all rounds), seconds (of all "
    "rounds),\n"
    "        mb_per_s (median of the rounds; MB = 1e6), mb_per_s_min, mb_per_s_max, node_cpu_s_per_gb,\n"
    "        peer_cpu_s_per_gb (user and system time of each process; GB = 1e9), completions_per_write\n"
    "        (local ones, on the node), rnr (receiver-not-ready events)}\n"
    "     latency: {bytes, n, min_us, median_us, p99_us}: half of the round trip of a send of 64 bytes\n"
    "        answered by a write with immediate of 64 bytes\n"
    "  --help, --version\n\nexit codes: 0 ok, 1 failure, 2 usage\n";

struct hapi_fabric_options bench_fabric_options(const struct bench_options *o)
{
    return (struct hapi_fabric_options){.device = o->device,
                                        .path = &o->path,
                                        .max_imm = BENCH_SLOTS_MAX + 64,
                                        .busy_poll_us = o->busy_poll_us};
}

static int run_peer(const struct bench_options *o, struct hapi_err *err)
{
    const struct bench_ops ops = {.can_checksum = true, .flood = bench_peer_flood, .ping = bench_peer_ping};
    struct bench_report report;
    struct bench_peer *p = NULL;

    if (bench_peer_open(&p, o, err))
        return bench_fail(o->program, err);
    int rc = bench_measure(&report, o, &ops, p, err);
    bench_peer_close(p);
    return rc ? bench_fail(o->program, err) : bench_report_print(&report, o);
}

int bench_transport(int argc, char **argv)
{
    struct bench_options o;
    struct hapi_err err = {0};
    int rc = bench_options_parse(&o, argc, argv, "hapi-bench transport", NULL, help);

    if (rc)
        return rc - 1;
    if (!o.serve)
        return run_peer(&o, &err);
    return bench_node_serve(&o, &err) ? bench_fail(o.program, &err) : BENCH_OK;
}
