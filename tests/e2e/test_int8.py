"""Computing in int8: calibrated on real images, the job trains as well as in f32, and how many images
go at a time changes no bit."""

import os
import tempfile
import unittest

import numpy as np

from harness import DATA, LITE0, Dump, hapi, node, train_json


def accuracy(result):
    return result["epochs"][-1]["test_accuracy"]


class Int8(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(cls.folder.cleanup)
        cls.model = os.path.join(cls.folder.name, "lite0.onnx")
        options = ("--dataset", "fashion-train", "--samples", 64)
        cls.calibrated = hapi("calibrate", LITE0, "--data", DATA, "--output", cls.model, *options)
        if "VNNI" in hapi("plan-memory", cls.model, "--dtype", "i8").err:
            raise unittest.SkipTest("this CPU has no int8 arithmetic")

    def job(self, n, model, dtype, name, *options):
        prefix = os.path.join(self.folder.name, name)
        options += ("--policy", "freeze", "--epochs", 10, "--dtype", dtype, "--dump-features", prefix)
        result = train_json(model, n.address, "fashion-train", "fashion-test", *options)
        return accuracy(result), Dump(prefix)

    def test_trains_as_well_as_f32(self):
        self.assertEqual(self.calibrated.code, 0, self.calibrated)
        with node(DATA) as n:
            f32, whole = self.job(n, LITE0, "f32", "f32")
            i8, quantised = self.job(n, self.model, "i8", "i8")
        three = os.path.join(self.folder.name, "three")
        with node(DATA, "--micro-batch", 3) as n:
            options = ("--policy", "freeze", "--epochs", 1, "--dtype", "i8", "--dump-features", three)
            train_json(self.model, n.address, "fashion-test", "fashion-test", *options)
        error = float(np.linalg.norm(quantised.test - whole.test) / np.linalg.norm(whole.test))
        print(f"int8: error {error:.4f}, accuracy {i8:.3f}, f32 {f32:.3f}")
        self.assertTrue(0 < error < 0.2, error)
        self.assertGreaterEqual(i8, f32 - 0.01)
        self.assertTrue(np.array_equal(Dump(three).test, quantised.test))

    def test_without_calibration_says_what_to_do(self):
        r = hapi("plan-memory", LITE0, "--dtype", "i8")
        self.assertEqual(r.code, 1)
        self.assertIn("hapi calibrate", r.err)
        self.assertEqual(r.out, "")

    def test_calibrate_says_what_is_wrong(self):
        out = os.path.join(self.folder.name, "no.onnx")
        for options, code, words in (
            (("--data", DATA), 2, "--output"),
            (("--data", DATA, "--output", out, "--samples", 0), 2, "--samples"),
            (("--data", DATA, "--output", out, "--share", "nan"), 2, "--share"),
            (("--data", DATA, "--output", out), 1, "--dataset"),
            (("--data", DATA, "--output", out, "--dataset", "none"), 1, "none"),
        ):
            with self.subTest(options):
                r = hapi("calibrate", LITE0, *options)
                self.assertEqual((r.code, words in r.err), (code, True), r)
                self.assertFalse(os.path.exists(out))


if __name__ == "__main__":
    unittest.main()
