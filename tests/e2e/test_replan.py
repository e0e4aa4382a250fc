"""A job plans anew while it runs: when its link becomes slower, and when it is fast again."""

import json
import os
import subprocess
import tempfile
import time
import unittest

import numpy as np

from hapi.node import Link

from harness import DATA, HAPI, Dump, node, tar_jpegs, tiny_model, train_json, write_folders, write_profile
from test_bits import order_of

SANITIZED = bool(os.environ.get("HAPI_SANITIZED"))  # programs ten times as slow
PHOTOS, COPIES = 60, 30 if SANITIZED else 120
SAMPLES = PHOTOS * COPIES
FAST, SLOW = 1000, 50
CHANGES = ((SAMPLES // 4, SLOW), (SAMPLES // 2, FAST))  # after so many samples, to so many Mbit/s
SEED = 5


def bits(a):
    return a.view(np.uint32)


def mbit(replan):
    return replan["bandwidth_Bps"] * 8e-6


def raw(plan):
    return sum(p["share"] for p in plan["parts"] if p["wire"] == "raw")


def follow(process, order, link):
    """Changes the link while the job runs, as its order says how far it is."""
    changes, delivered, until = list(CHANGES), 0, time.monotonic() + 300
    with open(order, "a+", encoding="ascii") as f:
        while process.poll() is None and time.monotonic() < until:
            time.sleep(0.02)
            delivered += f.read().count("\n")
            if changes and delivered > changes[0][0]:
                link.shape(changes.pop(0)[1])


class Replan(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = folder.name
        self.data = self.at("data")
        paths = write_folders(tar_jpegs(os.path.join(DATA, "photos-train"), PHOTOS), os.path.join(self.data, "once"))
        for path in paths:
            label, name = path.split(os.sep)[-2:]
            os.makedirs(os.path.join(self.data, "often", label), exist_ok=True)
            for i in range(COPIES):
                os.link(path, os.path.join(self.data, "often", label, f"{name[:-4]}-{i:03d}.jpg"))
        self.model = tiny_model(self.at("tiny.onnx"))
        # Decoding is most of it, and takes as long on either tier: half of the samples go raw, if the link lets them.
        freeze = {"index": 0, "name": "/3/Flatten_output_0", "wire_bytes": {"f32": 1024}, "storage_s": 1e-3, "compute_s": 0}
        times = {"source_prepare_s": 4e-3, "storage_prepare_s": 4e-3, "source_compute_s": 1e-3}
        self.profile = write_profile(
            self.at("profile.json"), [freeze], model="tiny", source_bytes=110_000, bandwidth_Bps=FAST / 8 * 1e6, **times
        )

    def at(self, name):
        return os.path.join(self.folder, name)

    def once(self):
        """What each photo's features are."""
        with node(self.data) as n:
            options = ("--policy", "freeze", "--epochs", 1, "--dump-features", self.at("once"))
            train_json(self.model, n.address, "once", "once", *options)
        return Dump(self.at("once")).test

    def link(self):
        try:
            with Link(FAST):
                pass
        except OSError as e:
            self.skipTest(f"no network namespaces here: {e}")
        return Link(FAST)

    def job(self):
        with open(self.at("key"), "w", encoding="ascii") as f:
            f.write("job:" + "5a" * 32 + "\n")
        os.chmod(self.at("key"), 0o600)
        with self.link() as link:
            one = ("--key", self.at("key"), "--threads", "1")
            with node(self.data, *one, listen=f"{Link.STORAGE}:0", prefix=link.storage()) as n:
                command = [HAPI, "train", self.model, "--nodes", n.address, "--dataset", "often", "--test-dataset", "once"]
                command += [*one, "--profile", self.profile, "--epochs", "1", "--batch", "64", "--seed", str(SEED)]
                command += ["--dump-features", self.at("often"), "--dump-order", self.at("order"), "--json", self.at("report")]
                pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
                process = subprocess.Popen([*link.compute(), *command], **pipes)
                follow(process, self.at("order"), link)
                said = process.communicate()[0]
        self.assertEqual(process.returncode, 0, said)
        with open(self.at("report"), encoding="utf-8") as f:
            return json.load(f), said

    def followed(self, replans, said):
        slow = [r for r in replans if mbit(r) < 3 * SLOW]
        self.assertTrue(slow, said)
        self.assertGreater(mbit(slow[-1]), 0.6 * SLOW, said)
        fast = [r for r in replans if r["samples"] > slow[-1]["samples"] and mbit(r) > 3 * SLOW]
        self.assertTrue(fast, said)
        self.assertLess(raw(slow[-1]), raw(fast[-1]) - 0.1, said)
        self.assertEqual(said.count("a new plan"), len(replans))
        for r in replans:
            self.assertLess(r["epoch_s"], 0.9 * r["before_s"])

    def test_a_link_that_slows_down_and_recovers(self):
        report, said = self.job()
        replans = report["replans"]
        if not SANITIZED:  # which slows the tiers down, and the link no more matters
            self.followed(replans, said)
        with open(self.at("order"), encoding="ascii") as f:
            self.assertEqual([int(line.split()[1]) for line in f], order_of(SAMPLES, SEED, 0))
        features, once = Dump(self.at("often")).train, self.once()
        self.assertEqual(len(features), SAMPLES)
        self.assertGreater(float(once.std()), 0.01, "the features are dead")
        # Samples are in the order of their paths, and so are a photo's copies.
        different = (bits(features) != bits(np.repeat(once, COPIES, axis=0))).any(axis=1)
        self.assertEqual(int(different.sum()), 0, "samples whose bits differ")


if __name__ == "__main__":
    unittest.main()
