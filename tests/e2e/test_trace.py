"""`hapi train --trace`: both tiers on one clock, whatever clock the node has."""

import collections
import json
import os
import signal
import subprocess
import tempfile
import unittest

from harness import DATA, LITE0, node, tar_jpegs, train_json, write_folders

SET, SAMPLES, BATCH = "photos", 40, 16
CUT = "/_blocks.8/_expand_conv/Conv_output_0"
OFF_S = 50_000  # of the node's clock
SLACK_US = 2_000  # that two clocks are known to be apart from each other, at the worst
STAGES = ("read", "wait for a thread", "decode", "compute", "convert")


class Trace(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = folder.name
        self.data = os.path.join(self.folder, "data")
        write_folders(tar_jpegs(os.path.join(DATA, "photos-train"), SAMPLES), os.path.join(self.data, SET))

    def node(self, *prefix):
        started = node(self.data, "--threads", 1, prefix=prefix)

        def stop():
            with open(f"/proc/{started.process.pid}/task/{started.process.pid}/children", encoding="ascii") as f:
                for child in f.read().split():
                    os.kill(int(child), signal.SIGTERM)  # unshare passes it on to nobody
            started.stop()

        self.addCleanup(stop if prefix else started.stop)
        return started.address

    def traced(self, address, *options):
        path = os.path.join(self.folder, "trace.json")
        report = train_json(LITE0, address, SET, SET, "--epochs", 1, "--batch", BATCH, "--trace", path, *options)
        self.assertEqual(report["bad_samples"], 0)
        with open(path, encoding="utf-8") as f:
            trace = json.load(f)
        self.assertEqual(trace["otherData"]["lost"], 0)
        self.processes, self.lanes, slices = {}, {}, []
        for e in trace["traceEvents"]:
            if e["name"] == "process_name":
                self.processes[e["pid"]] = e["args"]["name"]
            elif e["name"] == "thread_name":
                self.lanes[e["pid"], e["tid"]] = e["args"]["name"]
            else:
                e["end"] = e["ts"] + e["dur"]
                slices.append(e)
        return slices

    def check_lanes(self, slices):
        """Each has a name; in one, what begins later is over before what it lies in, or begins after it."""
        by_lane = collections.defaultdict(list)
        for e in slices:
            by_lane[e["pid"], e["tid"]].append(e)
        self.assertEqual(set(by_lane), set(self.lanes))
        for lane in by_lane.values():
            around = []
            for e in sorted(lane, key=lambda e: (e["ts"], -e["dur"])):
                while around and around[-1]["end"] <= e["ts"] + 0.002:
                    around.pop()
                if around:
                    self.assertLessEqual(e["end"], around[-1]["end"] + 0.01, (e, around[-1]))
                around.append(e)

    def check_one_clock(self, slices, pushed):
        """What belongs to a request lies in it, and comes one after the other; two loaders use the same numbers."""
        requests = collections.defaultdict(list)
        for e in slices:
            if e["name"] == "request":
                requests[e["args"]["request"]].append(e)
        links = [e for e in slices if e["name"] == "on the link"]
        parts = [e for e in slices if e["name"].endswith(" samples")]
        self.assertEqual(sum(e["args"]["samples"] for e in links), 2 * SAMPLES)
        self.assertEqual(len(parts), len(links))
        for e in links + parts:
            inside = [r for r in requests[e["args"]["request"]] if r["ts"] - SLACK_US <= e["ts"] and e["end"] <= r["end"] + SLACK_US]
            self.assertTrue(inside, f"{e} lies in none of {requests[e['args']['request']]}")
        took = collections.Counter()
        for e in slices:
            took[e["name"]] += e["dur"]
        self.assertEqual(took["compute"] > 0, pushed)
        self.assertLess(abs(sum(e["dur"] for e in parts) - sum(took[s] for s in STAGES)), 1)

    def test_a_node_with_a_clock_of_its_own(self):
        other = ("unshare", "--time", "--monotonic", str(OFF_S), "--fork")
        if subprocess.run([*other, "true"], stderr=subprocess.DEVNULL, check=False).returncode:
            self.skipTest("no time namespaces: `unshare --time` is refused")
        slices = self.traced(self.node(*other), "--split", CUT)
        self.assertEqual(self.processes[1], "compute node")
        self.assertRegex(self.processes[2], r"storage node 127\.0\.0\.1:\d+")
        self.check_lanes(slices)
        self.check_one_clock(slices, True)
        jobs = [e for e in slices if e["name"] == "rest of the network"]
        self.assertEqual(sum(e["args"]["samples"] for e in jobs), 2 * SAMPLES)
        self.assertEqual(sum(e["name"] == "train" for e in slices), -(-SAMPLES // BATCH))
        self.assertEqual(sum(e["name"] == "wait for a batch" for e in slices), 2 * -(-SAMPLES // BATCH))

    def test_raw_objects(self):
        slices = self.traced(self.node(), "--policy", "none")
        self.check_lanes(slices)
        self.check_one_clock(slices, False)

    def test_a_file_that_cannot_be_written(self):
        options = ("--trace", "/nowhere/trace.json")
        with self.assertRaisesRegex(Exception, "cannot write /nowhere/trace.json"):
            train_json(LITE0, self.node(), SET, SET, "--epochs", 1, *options)


if __name__ == "__main__":
    unittest.main()
