"""hapi-bench transport and bare_ofi over loopback: what they print is complete, consistent and about what was asked."""

import json
import os
import subprocess
import unittest

from harness import DATA, LITE0, PROGRAMS, node, run

BENCH = os.path.join(PROGRAMS, "hapi-bench")
BARE = os.path.join(PROGRAMS, "bare_ofi")
OURS = (BENCH, "transport", "--transport", "ofi")
SHORT = ("--seconds", "0.1", "--rounds", "3")
ROW = {
    "bytes", "checksum", "depth", "rounds", "writes", "seconds", "mb_per_s", "mb_per_s_min", "mb_per_s_max",
    "node_cpu_s_per_gb", "peer_cpu_s_per_gb", "completions_per_write", "rnr",
}  # fmt: skip


class Server:
    """The node side; stopped on exit, when it must say that all was well."""

    def __init__(self, *command):
        self.process = subprocess.Popen(
            [*command, "--serve", "127.0.0.1:0"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        word, self.address = self.process.stdout.readline().split()
        assert word == "ready"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.said = self.process.communicate(timeout=10)[1]


class Bench(unittest.TestCase):
    def peer(self, *command):
        r = run(*command)
        self.assertEqual((r.code, r.err), (0, ""), r)
        return json.loads(r.out)

    def check_rows(self, rows, expected):
        self.assertEqual([(r["bytes"], r["checksum"]) for r in rows], expected)
        for r in rows:
            with self.subTest(r):
                self.assertEqual(set(r), ROW)
                self.assertEqual((r["rounds"], r["rnr"]), (3, 0))
                self.assertGreaterEqual(r["writes"], 3 * r["depth"])
                self.assertTrue(0 < r["mb_per_s_min"] <= r["mb_per_s"] <= r["mb_per_s_max"])
                # The mean of the rounds, weighted by time, lies between their extremes.
                mean = 1e-6 * r["writes"] * r["bytes"] / r["seconds"]
                self.assertTrue(0.999 * r["mb_per_s_min"] <= mean <= 1.001 * r["mb_per_s_max"])
                self.assertTrue(1 < mean < 1e6)
                self.assertGreater(r["node_cpu_s_per_gb"] + r["peer_cpu_s_per_gb"], 0)
                self.assertTrue(0 < r["completions_per_write"] < 2)

    def check_latency(self, one_way):
        self.assertEqual(set(one_way), {"bytes", "n", "min_us", "median_us", "p99_us"})
        self.assertEqual(one_way["bytes"], 64)
        self.assertGreaterEqual(one_way["n"], 200)
        self.assertTrue(0.1 < one_way["min_us"] <= one_way["median_us"] <= one_way["p99_us"] < 1e6)

    def test_json_is_complete_with_and_without_checksum(self):
        with Server(*OURS) as node:
            peer = (*OURS, "--peer", node.address)
            out = self.peer(*peer, *SHORT, "--sizes", "4K,1M,16M", "--checksum", "--json")
        self.assertEqual((node.process.returncode, node.said), (0, ""))
        self.assertEqual((out["program"], out["transport"], out["depth"]), ("hapi-bench transport", "ofi", 16))
        self.check_rows(out["goodput"], [(n, c) for n in (4096, 1 << 20, 16 << 20) for c in (False, True)])
        self.assertEqual([r["depth"] for r in out["goodput"]], [16, 16, 16, 16, 2, 2])  # 32 MiB at most
        self.check_latency(out["latency"])

    def test_one_node_serves_one_peer_after_the_other(self):
        with Server(*OURS) as node:
            peer = (*OURS, "--peer", node.address, *SHORT, "--json")
            for busy in ("0", "200"):
                out = self.peer(*peer, "--only", "latency", "--busy-poll-us", busy)
                self.assertEqual((out["goodput"], out["busy_poll_us"]), ([], int(busy)))
                self.check_latency(out["latency"])
            out = self.peer(*peer, "--only", "goodput", "--sizes", "100000", "--depth", "4", "--count", "1000")
        self.assertNotIn("latency", out)
        self.check_rows(out["goodput"], [(100000, False)])
        self.assertEqual((out["goodput"][0]["writes"], out["goodput"][0]["depth"]), (3000, 4))

    def test_the_bare_loop_speaks_the_same_language(self):
        with Server(BARE) as node:
            for _ in range(2):
                out = self.peer(BARE, "--peer", node.address, *SHORT, "--sizes", "64K", "--json")
                self.check_rows(out["goodput"], [(65536, False)])
                self.check_latency(out["latency"])

    def test_table_and_file(self):
        with Server(*OURS) as node:
            peer = (*OURS, "--peer", node.address, *SHORT, "--sizes", "64K")
            r = run(*peer)
            self.assertEqual(r.code, 0, r)
            self.assertRegex(r.out, r"(?m)^ +65536 +off +\d+\.\d ")
            self.assertRegex(r.out, r"(?m)^one way, 64 bytes with immediate: median \d+\.\d\d us")
            r = run(*peer, "--json", "/nowhere/bench.json")
            self.assertEqual((r.code, "/nowhere/bench.json" in r.err), (1, True), r)

    def test_what_cannot_be_done_is_said(self):
        with Server(*OURS) as node:
            address = node.address
        for options, code, word in (
            (("--peer", address), 1, address),  # nobody listens any more
            (("--peer", "127.0.0.1"), 2, "HOST:PORT"),
            (("--peer", address, "--sizes", "17M"), 2, "16M"),
            (("--peer", address, "--rounds", "0"), 2, "rounds"),
            (("--nonsense",), 2, "--nonsense"),
            ((), 2, "--serve"),
        ):
            with self.subTest(options):
                r = run(*OURS, *options)
                self.assertEqual((r.code, r.out), (code, ""), r)
                self.assertIn(word, r.err)

    def test_help_and_version(self):
        for command in ((BENCH,), (BENCH, "transport")):
            self.assertRegex(run(*command, "--help").out, "^usage: hapi-bench")
            self.assertRegex(run(*command, "--version").out, r"^hapi-bench \d+\.\d+\.\d+\n$")
        for command in ((BENCH,), (BENCH, "nonsense")):
            r = run(*command)
            self.assertEqual((r.code, r.out), (2, ""), r)


class Overlap(unittest.TestCase):
    """hapi-bench overlap: what it prints, and when it says no. benches/overlap has the figures."""

    def test_it_measures_and_judges(self):
        with node(DATA, "--cache-memory", "16M") as n:
            command = (BENCH, "overlap", "--model", LITE0, "--nodes", n.address, "--dataset", "photos-test", "--epochs", "3")
            r = run(*command, "--stage", "far=1", "--stage", "near=0.001", "--most", "1", "--json")
            self.assertEqual(r.code, 0, r)
            report = json.loads(r.out)
            self.assertEqual((report["images"], len(report["epochs"]), report["slowest"]), (100, 3, "far"))
            self.assertEqual(report["stages"], {"far": 100, "near": 0.1})
            median = sorted(e["seconds"] for e in report["epochs"])[1]
            self.assertEqual((report["median_s"], report["ratio"]), (median, median / 100))
            self.assertAlmostEqual(report["images_per_s"], 100 / median)
            self.assertGreater(report["epochs"][0]["wire_bytes"], 100 * 1280 * 4)
            r = run(*command, "--stage", "none=1e-9", "--most", "1.1")
            self.assertEqual(r.code, 1, r)
            self.assertIn("none ", r.out)
        r = run(*command)
        self.assertEqual(r.code, 1, r)
        for wrong in (("--stage", "a"), ("--most", "2"), ("--epochs", "0"), ("--batch", "many"), ("--colour", "red")):
            self.assertEqual(run(*command, *wrong).code, 2, wrong)


if __name__ == "__main__":
    unittest.main()
