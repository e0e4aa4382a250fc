"""A network may be split anywhere, and samples may go several ways: the features are those of the whole."""

import json
import os
import tempfile
import unittest

import numpy as np

from harness import DATA, LITE0, Dump, hapi, lite0_profile, node, tar_jpegs, train_json, write_folders

SET = "photos"
FREEZE = "/Flatten_output_0"
# The image padded, a wide activation, one inside of a block, a residual sum, a pool's output.
CUTS = (
    "/_conv_stem/static_padding/Pad_output_0",
    "/_blocks.1/_swish/Clip_output_0",
    "/_blocks.5/_project_conv/Conv_output_0",
    "/_blocks.8/_expand_conv/Conv_output_0",
    "/_blocks.14/Add_output_0",
    "/_avg_pooling/GlobalAveragePool_output_0",
)


def bits(a):
    return a.view(np.uint32)


class Splits(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.folder = folder.name
        data = os.path.join(cls.folder, "data")
        write_folders(tar_jpegs(os.path.join(DATA, "photos-train"), 40), os.path.join(data, SET))
        cls.node = node(data)
        cls.addClassCleanup(cls.node.stop)
        cls.whole, _ = cls.features("none", "--policy", "none")

    @classmethod
    def features(cls, name, *options):
        prefix = os.path.join(cls.folder, name)
        options += ("--epochs", 1, "--dump-features", prefix)
        report = train_json(LITE0, cls.node.address, SET, SET, *options)
        return Dump(prefix), report

    def same(self, dump):
        self.assertTrue(np.array_equal(dump.train_labels, self.whole.train_labels))
        self.assertTrue(np.array_equal(bits(dump.train), bits(dump.test)))
        different = (bits(dump.train) != bits(self.whole.train)).any(axis=1)
        self.assertEqual(int(different.sum()), 0, "samples whose bits differ")

    def test_features_are_the_same_bits_wherever_it_is_split(self):
        for i, cut in enumerate(CUTS):
            with self.subTest(cut):
                dump, report = self.features(f"cut-{i}", "--split", cut)
                self.assertEqual((report["split"], report["policy"]), (cut, "split"))
                self.assertEqual(report["parts"], [{"split": cut, "wire": "f32", "share": 1, "micro_batch": 0}])
                self.same(dump)

    def test_a_checksum_is_checked_before_what_is_left_is_computed(self):
        self.same(self.features("checksum", "--split", CUTS[4], "--checksum")[0])

    def test_narrow_wires_change_little(self):
        for wire, tolerance in (("f16", 1e-3), ("bf16", 8e-3), ("int8", 4e-2)):
            with self.subTest(wire):
                dump, _ = self.features(wire, "--split", CUTS[2], "--wire", wire)
                error = np.linalg.norm(dump.train - self.whole.train) / np.linalg.norm(self.whole.train)
                self.assertLess(error, tolerance)
                self.assertGreater(error, 0)

    def test_a_plan_may_mix_two_ways(self):
        path = lite0_profile(os.path.join(self.folder, "mixed.json"))
        dump, report = self.features("mixed", "--profile", path, "--batch", 16, "--fixed-plan")
        self.assertEqual(report["policy"], "pipeline")
        self.assertEqual(sorted(p["wire"] for p in report["parts"]), ["f32", "raw"])
        self.assertAlmostEqual(sum(p["share"] for p in report["parts"]), 1)
        self.same(dump)

    def test_policies_by_profile_do_what_hapi_plan_says(self):
        path = lite0_profile(os.path.join(self.folder, "slow.json"), bandwidth_Bps=2e5)
        for policy in ("none", "freeze", "hapi", "hapi-v1", "pipeline"):
            with self.subTest(policy):
                plan = hapi("plan", "--profile", path, "--policy", policy, "--accuracy", "f16", "--json")
                want = json.loads(plan.out)["parts"]
                options = ("--profile", path, "--policy", policy, "--accuracy", "f16", "--fixed-plan")
                _, report = self.features(policy, *options)
                got = sorted(report["parts"], key=lambda p: -p["share"])
                self.assertEqual([p["split"] for p in got], [p["name"] for p in want])
                self.assertEqual([p["wire"] for p in got], [p["wire"] for p in want])

    def refused(self, text, *options):
        r = hapi("train", LITE0, "--nodes", self.node.address, "--dataset", SET, "--test-dataset", SET, *options)
        self.assertNotEqual(r.code, 0)
        self.assertIn(text, r.err)

    def test_what_cannot_be_is_refused(self):
        ok = lite0_profile(os.path.join(self.folder, "ok.json"))
        other = lite0_profile(os.path.join(self.folder, "other.json"), hash="00" * 32)
        two = lite0_profile(
            os.path.join(self.folder, "two.json"),
            nodes=2,
            node_list=[{"name": n, "bandwidth_Bps": 1e9, "cores": 1, "speed": 1} for n in "ab"],
        )
        self.refused("no_such_cut", "--split", "no_such_cut")
        self.refused("comes after the freeze layer", "--split", FREEZE, "--freeze", CUTS[4])
        self.refused("not `f64`", "--split", CUTS[4], "--wire", "f64")
        self.refused("a policy or profile", "--split", CUTS[4], "--policy", "none")
        self.refused("another model", "--profile", other)
        self.refused("it names 2 nodes, the job has 1", "--profile", two)
        self.refused("frozen at", "--profile", ok, "--freeze", CUTS[4])
        self.refused("bound it by accuracy", "--profile", ok, "--wire", "f16")
        self.refused("there is no profile", "--accuracy", "f16")
        self.refused("accuracy is an error", "--profile", ok, "--accuracy", "much")
        self.refused("there is no file", "--profile", os.path.join(self.folder, "none.json"))


if __name__ == "__main__":
    unittest.main()
