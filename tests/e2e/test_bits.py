"""Features are the same bits whatever the micro-batch; every sample arrives once an epoch, in the seed's order."""

import json
import os
import shutil
import tempfile
import unittest

import numpy as np
import onnx
from onnx import helper, numpy_helper

from harness import DATA, LITE0, WIRES, Dump, hapi, node, tiny_model, train_json

MASK = (1 << 64) - 1


def splitmix64(state):
    """Steele, Lea and Flood 2014: (next state, value)."""
    state = (state + 0x9E3779B97F4A7C15) & MASK
    z = ((state ^ state >> 30) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ z >> 27) * 0x94D049BB133111EB) & MASK
    return state, z ^ z >> 31


def order_of(n, seed, epoch):
    """docs/architecture.md: Fisher-Yates over splitmix64, keyed by (seed, epoch)."""
    _, state = splitmix64(seed)
    _, state = splitmix64(state ^ epoch << 32)
    order = list(range(n))
    for i in range(n, 1, -1):
        state, value = splitmix64(state)
        j = value * i >> 64
        order[j], order[i - 1] = order[i - 1], order[j]
    return order


class MicroBatches(unittest.TestCase):
    def features(self, micro_batch, folder, policy="freeze", more=()):
        prefix = os.path.join(folder, f"{policy}-{micro_batch}")
        options = ("--policy", policy, "--epochs", 1, "--dump-features", prefix, *more)
        with node(DATA, "--micro-batch", micro_batch) as n:
            train_json(LITE0, n.address, "photos-folders", "photos-folders", *options)
        return Dump(prefix)

    def test_f32_features_are_bit_identical(self):
        with tempfile.TemporaryDirectory() as folder:
            first = self.features(1, folder)
            self.assertEqual(first.train.dtype, np.float32)
            self.assertGreater(float(first.train.std()), 0.01, "the features are dead")
            self.assertTrue(np.array_equal(first.train.view(np.uint32), first.test.view(np.uint32)))
            for micro_batch in (3, 8, 32):
                with self.subTest(micro_batch):
                    other = self.features(micro_batch, folder)
                    different = (first.train.view(np.uint32) != other.train.view(np.uint32)).any(axis=1)
                    self.assertEqual(int(different.sum()), 0, "samples whose bits differ")
                    self.assertTrue(np.array_equal(first.train_labels, other.train_labels))
            with self.subTest("computed on the compute tier"):
                other = self.features(8, folder, policy="none")
                self.assertTrue(np.array_equal(first.train.view(np.uint32), other.train.view(np.uint32)))

    def test_narrow_wires_keep_samples_apart(self):
        """A scale of int8 is that of one sample: of a channel of it in a convolution's output, of 64 features."""
        with tempfile.TemporaryDirectory() as folder:
            for freeze in ("/Flatten_output_0", "/_blocks.15/_project_conv/Conv_output_0"):
                whole = self.features(8, folder, more=("--freeze", freeze)).train
                for wire, tolerance in WIRES.items():
                    with self.subTest(f"{freeze} {wire}"):
                        more = ("--freeze", freeze, "--wire", wire)
                        one, many = (self.features(m, folder, more=more).train for m in (1, 8))
                        self.assertTrue(np.array_equal(one.view(np.uint32), many.view(np.uint32)))
                        error = np.linalg.norm(one - whole) / np.linalg.norm(whole)
                        self.assertTrue(0 < error < tolerance, error)


def fixed_batch(model, path, batch):
    """The model with its batch fixed, held by the constant of a Reshape in place of the Flatten."""
    m = onnx.load(model)
    m.graph.input[0].type.tensor_type.shape.dim[0].dim_value = batch
    m.graph.output[0].type.tensor_type.shape.dim[0].dim_value = batch
    flatten = next(n for n in m.graph.node if n.op_type == "Flatten")
    m.graph.initializer.append(numpy_helper.from_array(np.array([batch, 256], dtype=np.int64), "shape_of_all"))
    reshape = helper.make_node("Reshape", [flatten.input[0], "shape_of_all"], flatten.output, flatten.name)
    flatten.CopyFrom(reshape)
    onnx.save(m, path)
    shutil.copy(model.replace(".onnx", ".transform.json"), path.replace(".onnx", ".transform.json"))
    return path


class FixedBatch(unittest.TestCase):
    def test_a_model_for_seven_at_a_time_gives_the_same_features_and_says_so(self):
        with tempfile.TemporaryDirectory() as folder:
            free = tiny_model(os.path.join(folder, "tiny.onnx"))
            fixed = fixed_batch(free, os.path.join(folder, "fixed.onnx"), 7)
            r = hapi("cuts", fixed, "--json")
            self.assertEqual(json.loads(r.out)["batch"], "padded", r)
            self.assertIn("7 at a time", hapi("cuts", fixed).err)
            self.assertIn("7 at a time", hapi("plan-memory", fixed).err)
            dumps = []
            jobs = (free, 8, "freeze"), (fixed, 8, "freeze"), (fixed, 3, "freeze"), (fixed, 8, "none")
            for model, micro_batch, policy in jobs:
                prefix = os.path.join(folder, str(len(dumps)))
                options = ("--policy", policy, "--epochs", 1, "--dump-features", prefix)
                with node(DATA, "--micro-batch", micro_batch) as n:
                    train_json(model, n.address, "photos-folders", "photos-folders", *options)
                    said = "samples run in groups" in n.said()
                self.assertEqual(said, model == fixed and policy == "freeze")
                dumps.append(Dump(prefix).train.view(np.uint32))
            for d in dumps[1:]:
                self.assertTrue(np.array_equal(d, dumps[0]))


class Order(unittest.TestCase):
    SAMPLES, EPOCHS = 1000, 3

    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.folder = folder.name
        cls.model = tiny_model(os.path.join(cls.folder, "tiny.onnx"))
        cls.node = node(DATA)
        cls.addClassCleanup(cls.node.stop)

    def order(self, seed, *options):
        file = os.path.join(self.folder, "order")
        more = ("--epochs", self.EPOCHS, "--seed", seed, "--dump-order", file, *options)
        train_json(self.model, self.node.address, "fashion-test", "fashion-test", *more)
        with open(file, encoding="ascii") as f:
            lines = [tuple(map(int, line.split())) for line in f]
        self.assertEqual([e for e, _ in lines], [e for e in range(self.EPOCHS) for _ in range(self.SAMPLES)])
        return [[s for e, s in lines if e == epoch] for epoch in range(self.EPOCHS)]

    def test_every_sample_once_an_epoch_in_the_order_of_the_seed(self):
        for seed in (0, 7, (1 << 62) - 1):
            with self.subTest(seed):
                epochs = self.order(seed)
                for epoch, samples in enumerate(epochs):
                    self.assertEqual(sorted(samples), list(range(self.SAMPLES)))
                    self.assertEqual(samples, order_of(self.SAMPLES, seed, epoch))
                self.assertNotEqual(epochs[0], epochs[1])

    def test_fetched_or_kept_near_data_or_not_small_batch_or_large(self):
        want = [order_of(self.SAMPLES, 5, e) for e in range(self.EPOCHS)]
        for options in (("--keep", 0), ("--policy", "none"), ("--batch", 7), ("--batch", 1000), ("--threads", 1)):
            with self.subTest(" ".join(map(str, options))):
                self.assertEqual(self.order(5, *options), want)


if __name__ == "__main__":
    unittest.main()
