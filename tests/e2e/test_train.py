"""The job does what it is for: a really pretrained network, trained on real images, beats the alternatives, and
where the network runs changes nothing."""

import os
import tempfile
import unittest

import numpy as np

from hapi import quickstart, reference
from harness import DATA, LITE0, LITE0_RANDOM, NIGHTLY, WIRES, Dump, node, train_json

SEEDS = 10 if NIGHTLY else 3


def accuracy(result):
    return result["epochs"][-1]["test_accuracy"]


class Train(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(cls.folder.cleanup)
        cls.freeze, cls.dumps = [], {}
        with node(DATA) as n:
            cls.freeze = [cls.job(n, "freeze", seed, dump=seed == 0) for seed in range(SEEDS)]
            cls.none = cls.job(n, "none", 0, dump=True)
            cls.random = cls.job(n, "freeze", 0, model=LITE0_RANDOM)
            cls.wires = {w: cls.job(n, "freeze", 0, dump=True, wire=w) for w in WIRES}
        cls.mean = sum(map(accuracy, cls.freeze)) / SEEDS

    @classmethod
    def job(cls, n, policy, seed, dump=False, model=LITE0, wire="f32"):
        name = policy if wire == "f32" else wire
        prefix = os.path.join(cls.folder.name, name)
        options = ["--policy", policy, "--seed", seed, "--epochs", quickstart.EPOCHS, "--wire", wire]
        options += ["--dump-features", prefix] if dump else []
        result = train_json(model, n.address, "fashion-train", "fashion-test", *options)
        if dump:
            cls.dumps[name] = Dump(prefix)
        return result

    def test_accuracy_is_at_least_83_percent(self):
        self.assertGreaterEqual(self.mean, 0.83)

    def test_pretrained_beats_random_weights_by_12_points(self):
        self.assertGreaterEqual(self.mean, accuracy(self.random) + 0.12)

    def test_beats_logistic_regression_on_raw_pixels_by_1_point(self):
        self.assertGreaterEqual(self.mean, reference.raw_pixels() + 0.01)

    def test_as_good_as_scikit_learn_on_the_same_features(self):
        d = self.dumps["freeze"]
        theirs = reference.probe(d.train, d.train_labels, d.test, d.test_labels, reference.C_FEATURES)
        self.assertGreaterEqual(self.mean, theirs - 0.005)

    def test_policies_agree_in_predictions_and_features(self):
        a, b = self.dumps["freeze"], self.dumps["none"]
        self.assertEqual(a.test.shape, (1000, 1280))
        self.assertEqual(a.train.shape, (2000, 1280))
        self.assertLessEqual(int((a.test_predictions != b.test_predictions).sum()), 3)
        for part in ("train", "test"):
            x, y = (getattr(d, part).astype(np.float64) for d in (a, b))
            self.assertLessEqual(np.linalg.norm(x - y) / np.linalg.norm(y), 1e-3)
            self.assertTrue(np.array_equal(getattr(a, part + "_labels"), getattr(b, part + "_labels")))

    def test_narrow_wires_train_as_well(self):
        whole = self.dumps["freeze"].train
        for wire, bytes_of in (("f16", 2 * 1280), ("bf16", 2 * 1280), ("int8", 1280 + 4 * 20)):
            with self.subTest(wire):
                result, train = self.wires[wire], self.dumps[wire].train
                error = float(np.linalg.norm(train - whole) / np.linalg.norm(whole))
                sent = result["epochs"][0]["wire_bytes"] / 2000
                print(f"{wire}: error {error:.5f}, accuracy {accuracy(result):.3f}, {sent:.0f} bytes a sample")
                self.assertTrue(0 < error < WIRES[wire], error)
                self.assertLessEqual(abs(accuracy(result) - accuracy(self.freeze[0])), 0.01)
                self.assertTrue(bytes_of < sent < bytes_of + 64, sent)  # the rest is the records'

    def test_labels_are_the_datasets(self):
        from hapi import data

        for part, name in (("train", "fashion-train"), ("test", "fashion-test")):
            p = data.DATASETS[name]
            _, labels = data.fashion_raw(p["part"], p["n"])
            self.assertTrue(np.array_equal(getattr(self.dumps["freeze"], part + "_labels"), labels))

    def test_features_are_torchs(self):
        # Through PIL and torch; the difference is the JPEG decoder's and the resizer's rounding.
        sample = 24
        ours = self.dumps["freeze"].test[:sample]
        theirs = reference.torch_features("pretrained", "fashion-test", sample)[0]
        self.assertLessEqual(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs), 0.02)

    def test_report_says_where_the_bytes_went(self):
        for result, split in ((self.freeze[0], None), (self.none, "none")):
            first, later = result["epochs"][0], result["epochs"][1:]
            self.assertEqual(result["classes"], 10)
            self.assertEqual(len(result["epochs"]), quickstart.EPOCHS)
            self.assertTrue(all(e["images"] == 2000 for e in result["epochs"]))
            self.assertTrue(all(e["wire_bytes"] == 0 for e in later), "features of epoch 1 are kept")
            if split:
                self.assertEqual(result["split"], split)
            else:
                self.assertNotEqual(result["split"], "none")
                self.assertGreaterEqual(first["wire_bytes"], 2000 * 1280 * 4)
        jpegs = self.none["epochs"][0]["wire_bytes"]
        self.assertTrue(2000 * 3000 < jpegs < 2000 * 6000, jpegs)


if __name__ == "__main__":
    unittest.main()
