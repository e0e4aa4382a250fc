"""`hapi plan`: what it prints for a profile, and what it refuses."""

import json
import os
import tempfile
import unittest
import xml.etree.ElementTree as ElementTree

from harness import hapi

BYTES = (800e3, 400e3, 100e3, 10e3, 4e3)


def profile(**changes):
    """One core a tier: cut i has done i quarters of a network of 10 ms."""
    memory = {"fixed": 1e6, "per_image": 1e6}
    p = {"model": "made", "images": 4096, "train_batch": 256, "freeze": 4, "train_s": 1e-6, "epochs": 1, "nodes": 1}
    p |= {"source_bytes": 100e3, "source_prepare_s": 1e-3, "storage_prepare_s": 1e-3, "read_s": 1e-5}
    p |= {"bandwidth_Bps": 1e10, "latency_s": 1e-4, "storage_cache": 0, "compute_cache": 0}
    p |= {"storage_memory": 1e10, "compute_memory": 1e10}
    p["cuts"] = [
        {
            "index": i,
            "name": f"layer<{i}>",
            "wire_bytes": {"f32": b, "f16": b / 2},
            "storage_s": 2.5e-3 * i,
            "compute_s": 2.5e-3 * (4 - i),
            "storage_memory": memory,
            "compute_memory": memory,
        }
        for i, b in enumerate(BYTES)
    ]
    return p | changes


class Plan(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = folder.name

    def plan(self, p, *options):
        path = os.path.join(self.folder, "profile.json")
        with open(path, "w", encoding="utf-8") as f:
            json.dump(p, f)
        return hapi("plan", "--profile", path, *options)

    def plan_json(self, p, *options):
        r = self.plan(p, "--json", *options)
        self.assertEqual(r.code, 0, r)
        return json.loads(r.out)

    def test_json_has_the_choice_its_stages_and_every_candidate(self):
        j = self.plan_json(profile(), "--whole")
        self.assertEqual((j["policy"], j["split"], j["name"], j["wire"], j["share"]), ("pipeline", 2, "layer<2>", "f32", 1))
        self.assertAlmostEqual(j["epoch_s"] / 4096, 6e-3, delta=2e-4)
        self.assertAlmostEqual(j["stages"]["storage"] / 4096, 6e-3, delta=1e-6)
        self.assertEqual(j["bottleneck"], "storage")
        self.assertEqual([c["split"] for c in j["candidates"]], [-1, 0, 1, 2, 3, 4])
        best = min(j["candidates"], key=lambda c: c["epoch_s"])
        self.assertEqual((best["split"], best["epoch_s"]), (2, j["epoch_s"]))

    def test_policies_bandwidth_and_accuracy(self):
        self.assertEqual(self.plan_json(profile(), "--policy", "none")["split"], -1)
        self.assertEqual(self.plan_json(profile(), "--policy", "freeze")["split"], 4)
        self.assertEqual(self.plan_json(profile(), "--policy", "hapi", "--bandwidth", "4Mbit")["split"], 4)
        whole = ("--whole", "--bandwidth", "4Mbit")  # 0.5 MB/s: 10 kB take 20 ms, 4 kB 8 ms
        self.assertEqual(self.plan_json(profile(), *whole)["split"], 4)
        j = self.plan_json(profile(), *whole, "--accuracy", "f16")
        self.assertEqual((j["split"], j["wire"]), (3, "f16"))
        self.assertEqual(self.plan_json(profile(), *whole, "--accuracy", "1e-4")["wire"], "f32")

    def test_text_explains_and_a_plot_is_made(self):
        svg = os.path.join(self.folder, "plan.svg")
        r = self.plan(profile(), "--explain", "--whole", "--plot", svg)
        self.assertEqual(r.code, 0, r)
        self.assertIn("cut 2 (layer<2>), wire f32", r.out)
        self.assertIn("bottleneck storage", r.out)
        self.assertIn("what would move the choice:\n  storage speed x 2: layer<3>\n", r.out)
        texts = [t.text for t in ElementTree.parse(svg).iter("{http://www.w3.org/2000/svg}text")]
        self.assertIn("layer<2> (100 %)", texts)

    def test_bad_profiles_and_options_are_refused_by_name(self):
        bad = profile()
        del bad["cuts"][3]["storage_s"]
        for p, words in (
            (bad, "cuts[3].storage_s"),
            (profile(bandwidth_Bps=0), "bandwidth_Bps"),
            (profile(cuts=[]), "cuts"),
            (profile(train_s=-1), "train_s"),
            (profile(compute_memory=1), "compute_memory"),
        ):
            r = self.plan(p)
            self.assertEqual(r.code, 1, r)
            self.assertIn(words, r.err)
        for option in (("--policy", "best"), ("--bandwidth", "fast"), ("--accuracy", "-1"), ("--micro-batch", "0"), ("x",)):
            r = self.plan(profile(), *option)
            self.assertEqual(r.code, 2, r)
            self.assertIn("hapi plan --help", r.err)
        self.assertEqual(hapi("plan").code, 2)
        self.assertEqual(hapi("plan", "--profile", "/nowhere").code, 1)


if __name__ == "__main__":
    unittest.main()
