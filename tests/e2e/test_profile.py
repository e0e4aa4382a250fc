"""`hapi profile`: what it measures over loopback is plausible, kept, and its errors name what is missing."""

import json
import os
import tempfile
import unittest
from contextlib import ExitStack

from harness import DATA, LITE0, hapi, node, tiny_model

CUT = {"index", "name", "wire_bytes", "storage_s", "compute_s", "storage_memory", "compute_memory"}
CUT |= {"measured", "spread"}
TOP = {"model", "images", "train_batch", "freeze", "train_s", "source_bytes", "source_prepare_s", "read_s", "nodes"}
TOP |= {"storage_prepare_s", "bandwidth_Bps", "epochs", "storage_cache", "compute_cache", "latency_s", "cuts"}
TOP |= {"storage_memory", "compute_memory", "hash", "host", "dtype", "date", "tiers", "spread", "left_out"}


def at(curve, batch):
    """Seconds for an image at a micro-batch that is in the table."""
    return curve[str(batch)] if isinstance(curve, dict) else curve


def values(curve):
    return list(curve.values()) if isinstance(curve, dict) else [curve]


class Profile(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.stack = ExitStack()
        cls.addClassCleanup(cls.stack.close)
        cls.folder = cls.stack.enter_context(tempfile.TemporaryDirectory())
        before = os.environ.get("HAPI_CACHE")
        os.environ["HAPI_CACHE"] = cls.folder
        cls.stack.callback(os.environ.pop if before is None else os.environ.__setitem__, "HAPI_CACHE", before)
        cls.tiny = tiny_model(os.path.join(cls.folder, "tiny.onnx"))
        cls.nodes = [cls.stack.enter_context(node(DATA)) for _ in range(2)]
        cls.addresses = ",".join(n.address for n in cls.nodes)
        cls.first = cls.profile(LITE0, "--seconds", 8, "--micro-batch", "2,4")

    @classmethod
    def profile(cls, model, *options, nodes=None):
        path = os.path.join(cls.folder, "profile.json")
        where = ["--nodes", nodes or cls.addresses, "--dataset", "fashion-test", "--json", path, "--quiet"]
        r = hapi("profile", model, *where, *options, timeout=240)
        if r.code:
            raise AssertionError(r)
        with open(path, encoding="utf-8") as f:
            return json.load(f)

    def test_has_every_key_and_every_cut(self):
        p, cuts = self.first, json.loads(hapi("cuts", LITE0, "--json").out)["cuts"]
        self.assertLessEqual(TOP, set(p))
        self.assertEqual((p["images"], p["nodes"], p["train_batch"], p["dtype"]), (1000, 2, 128, "f32"))
        self.assertEqual([c["index"] for c in p["cuts"]], list(range(p["freeze"] + 1)))
        for mine, theirs in zip(p["cuts"], cuts):
            self.assertLessEqual(CUT, set(mine))
            self.assertEqual(mine["name"], theirs["id"])
            self.assertEqual(mine["wire_bytes"]["f32"], theirs["bytes_f32"])
            self.assertEqual(mine["wire_bytes"]["f16"] * 2, theirs["bytes_f32"])
        self.assertEqual(p["left_out"], [])

    def test_numbers_are_plausible(self):
        p = self.first
        for key in ("train_s", "source_prepare_s", "storage_prepare_s", "read_s", "latency_s"):
            self.assertTrue(0 < p[key] < 1, key)
        self.assertTrue(3000 < p["source_bytes"] < 6000)
        self.assertTrue(1e6 < p["bandwidth_Bps"] < 1e12)
        self.assertTrue(all(p[f"{tier}_memory"] > 1 << 20 for tier in ("storage", "compute")))
        self.assertTrue(all(0 <= p["tiers"][t].get("contention", 0) <= 1 for t in ("storage", "compute")))
        self.assertEqual(len(p["node_list"]), 2)
        for c in p["cuts"]:
            self.assertTrue(all(0 < s < 10 for s in values(c["storage_s"])), c)
            self.assertTrue(all(0 < s < 10 for s in values(c["compute_s"])) or c["index"] == p["freeze"], c)
            self.assertTrue(all(0 < s < 1 for s in c["convert_s"].values()), c)
        self.assertEqual(p["cuts"][-1]["compute_s"], 0)

    def halves(self, p):
        b = p["measured"]["micro_batch"]
        whole = at(p["source_compute_s"], b)
        sums = sorted((at(c["storage_s"], b) + at(c["compute_s"], b)) / whole for c in p["cuts"])
        print(f"halves by the whole: {sums[0]:.2f} to {sums[-1]:.2f}")
        return sums[len(sums) // 2]

    def test_halves_are_about_the_whole(self):
        # Loosely, and on a busy machine at the third attempt: what else runs disturbs them at different times.
        p, attempts = self.first, 3
        while not 1 / 3 < (middle := self.halves(p)) < 5 and attempts > 1:
            attempts -= 1
            p = self.profile(LITE0, "--seconds", 8, "--micro-batch", "2,4", "--batch", attempts)
        self.assertTrue(1 / 3 < middle < 5, middle)

    def test_it_can_be_planned_with(self):
        path = os.path.join(self.folder, "planned.json")
        with open(path, "w", encoding="utf-8") as f:
            json.dump(self.first, f)
        for bandwidth in ("1Mbit", "100Gbit"):
            r = hapi("plan", "--profile", path, "--bandwidth", bandwidth, "--json")
            self.assertEqual(r.code, 0, r)
            plan = json.loads(r.out)
            self.assertIn(plan["split"], [-1] + [c["index"] for c in self.first["cuts"]])
            self.assertGreater(plan["epoch_s"], 0)

    def test_both_ends_are_measured_and_it_is_said(self):
        p, b = self.first, self.first["measured"]["micro_batch"]
        for c in (p["cuts"][0], p["cuts"][-1]):
            self.assertIn(b, c["measured"]["storage_s"])
            self.assertIn(b, c["measured"]["compute_s"])
        for c in p["cuts"]:
            for key in ("storage_s", "compute_s"):
                table = {1, 2, 4} if not isinstance(c[key], dict) else {int(k) for k in c[key]}
                self.assertLessEqual(set(c["measured"][key]), table)
        self.assertTrue(all(s >= 0 for s in p["spread"].values()), p["spread"])

    def test_memory_is_what_plan_memory_says(self):
        p = self.first
        plans = json.loads(hapi("plan-memory", LITE0, "--micro-batch", "1,4", "--json").out)["plans"]
        m = p["cuts"][-1]["storage_memory"]
        for plan in plans:
            self.assertAlmostEqual(m["fixed"] + plan["micro_batch"] * m["per_image"], plan["total"], delta=4)

    def test_it_is_kept_and_what_is_given_is_put_in(self):
        same = ("--seconds", 8, "--micro-batch", "4,2,1")
        again = self.profile(LITE0, *same)
        self.assertEqual(again, self.first)
        given = self.profile(LITE0, *same, "--epochs", 3, "--bandwidth", "100Mbit", "--compute-memory", "2G")
        self.assertEqual((given["epochs"], given["bandwidth_Bps"], given["compute_memory"]), (3, 12.5e6, 2 << 30))
        self.assertEqual([n["bandwidth_Bps"] for n in given["node_list"]], [12.5e6] * 2)
        self.assertEqual(given["cuts"], self.first["cuts"])

    def test_another_batch_or_fresh_is_measured(self):
        quick = ("--seconds", 0.1)
        a = self.profile(self.tiny, *quick)
        self.assertEqual(a["cuts"], self.profile(self.tiny, *quick)["cuts"])
        self.assertNotEqual(a["cuts"], self.profile(self.tiny, *quick, "--fresh")["cuts"])
        b = self.profile(self.tiny, *quick, "--batch", 64)
        self.assertEqual((a["train_batch"], b["train_batch"]), (128, 64))
        self.assertNotEqual(a["cuts"], b["cuts"])

    def test_a_damaged_file_is_measured_anew(self):
        quick = ("--seconds", 0.1, "--batch", 32)
        self.profile(self.tiny, *quick)
        kept = os.path.join(self.folder, "profiles")
        for name in os.listdir(kept):
            with open(os.path.join(kept, name), encoding="utf-8") as f:
                text = f.read()
            if '"train_batch":\t32' in text:
                with open(os.path.join(kept, name), "w", encoding="utf-8") as f:
                    f.write(text[: len(text) // 2])
        self.assertEqual(self.profile(self.tiny, *quick)["train_batch"], 32)

    def test_a_cut_that_a_node_does_not_serve_is_left_out(self):
        with node(DATA, "--send-area", "1M") as n:
            p = self.profile(LITE0, "--seconds", 0.1, nodes=n.address)
        large = [c["index"] for c in self.first["cuts"] if c["wire_bytes"]["f32"] > 1 << 20]
        self.assertTrue(large)
        self.assertEqual([c["index"] for c in p["left_out"]], large)
        self.assertTrue(all("--send-area" in c["why"] for c in p["left_out"]))
        self.assertEqual(len(p["cuts"]) + len(large), len(self.first["cuts"]))
        self.assertNotIn("node_list", p)

    def test_without_nodes_this_machine_stands_for_them(self):
        options = ("--dataset", "fashion-test", "--bandwidth", "1Gbit", "--latency", 0.0002, "--storage-nodes", 3)
        path = os.path.join(self.folder, "local.json")
        r = hapi("profile", self.tiny, "--data", DATA, *options, "--seconds", 0.5, "--json", path)
        self.assertEqual(r.code, 0, r)
        with open(path, encoding="utf-8") as f:
            p = json.load(f)
        self.assertEqual((p["bandwidth_Bps"], p["latency_s"], p["nodes"]), (125e6, 2e-4, 3))
        self.assertEqual(p["storage_prepare_s"], p["source_prepare_s"])
        self.assertGreater(p["cuts"][-1]["storage_memory"]["fixed"], 0)

    def test_table_for_a_person(self):
        where = ("--nodes", self.addresses, "--dataset", "fashion-test")
        r = hapi("profile", self.tiny, *where, "--seconds", 0.1, "--quiet")
        self.assertEqual(r.code, 0, r)
        for word in ("goodput", "decode", "index", "whole", "65536"):
            self.assertIn(word, r.out)

    def test_errors_name_what_is_wrong(self):
        here = ("--nodes", self.nodes[0].address)
        data = ("--data", DATA, "--dataset", "fashion-test")
        for options, said, code in (
            ((), "--nodes", 2),
            (here, "--dataset", 2),
            (data, "bandwidth_Bps", 2),
            ((*data, "--bandwidth", "1Gbit"), "latency_s", 2),
            ((*data, "--bandwidth", "fast"), "--bandwidth", 2),
            ((*here, "--dataset", "fashion-test", "--micro-batch", "0"), "--micro-batch", 2),
            ((*here, "--dataset", "fashion-test", "--freeze", "nowhere"), "nowhere", 1),
            ((*here, "--dataset", "nothing"), "nothing", 1),
            ((*here, "--dataset", "fashion-test", "--storage-memory", "1"), "storage_memory", 2),
            (("--nodes", "127.0.0.1:1", "--dataset", "fashion-test"), "127.0.0.1:1", 1),
        ):
            with self.subTest(said):
                r = hapi("profile", self.tiny, *options, "--seconds", 0.1, "--quiet")
                self.assertEqual(r.code, code, r)
                self.assertIn(said, r.err)


if __name__ == "__main__":
    unittest.main()
