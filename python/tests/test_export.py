"""Exports agree with torch, carry their transform, and random networks are alive at every module."""

import json
import os
import tempfile
import unittest

import numpy as np
import onnx
import torch

from hapi import export, models, photos, transform


class RandomWeights(unittest.TestCase):
    def test_every_module_output_of_every_network_is_within_range(self):
        for name in models.NAMES:
            with self.subTest(name):
                net, t = models.build(name, "random", seed=3)
                rms = models.check_sane(net, models.photo_batch(t, 4, seed=9))
                self.assertGreater(len(rms), 10)
                out = net(models.photo_batch(t, 2, seed=10))
                self.assertGreater((out[0] - out[1]).abs().max().item(), 1e-3, "the output ignores the input")

    def test_untreated_network_is_refused(self):
        import torchvision

        net = torchvision.models.vit_b_16(weights=None).eval()
        with self.assertRaisesRegex(ValueError, "module .*RMS 0"):
            models.check_sane(net, models.photo_batch(models.transform_of("vit_b_16"), 1))

    def test_same_seed_same_weights_other_seed_others(self):
        a, b, c = (models.build("mobilenet_v2", "random", s)[0].state_dict() for s in (1, 1, 2))
        key = "features.0.0.weight"
        self.assertTrue(torch.equal(a[key], b[key]))
        self.assertFalse(torch.equal(a[key], c[key]))


class Export(unittest.TestCase):
    def export(self, folder, name, weights="random"):
        net, t = models.build(name, weights)
        path = os.path.join(folder, name + ".onnx")
        export.export(net, path, torch.zeros(1, 3, t["crop"], t["crop"]), t)
        return net, t, path

    def test_batch_is_dynamic_and_transform_lies_beside(self):
        with tempfile.TemporaryDirectory() as d:
            for name in ("alexnet", "vit_b_16"):
                with self.subTest(name):
                    _, t, path = self.export(d, name)
                    model = onnx.load(path)
                    onnx.checker.check_model(model, full_check=True)
                    self.assertEqual(model.opset_import[0].version, 17)
                    for v in (model.graph.input[0], model.graph.output[0]):
                        self.assertEqual(v.type.tensor_type.shape.dim[0].dim_param, "batch")
                    with open(transform.path_beside(path), encoding="ascii") as f:
                        self.assertEqual(json.load(f), t)
            self.assertEqual(len(os.listdir(d)), 4, "temporary files are left")

    def test_failed_export_leaves_nothing(self):
        class Broken(torch.nn.Module):
            def forward(self, x):
                raise RuntimeError("broken on purpose")

        with tempfile.TemporaryDirectory() as d:
            with self.assertRaises(RuntimeError):
                export.export(Broken(), os.path.join(d, "m.onnx"), torch.zeros(1, 3, 8, 8), None)
            self.assertEqual(os.listdir(d), [])

    def test_random_vit_is_not_zero(self):
        net, t = models.build("vit_b_16", "random")
        out = net(models.photo_batch(t, 1, seed=4))
        self.assertGreater(out.abs().max().item(), 0.1)

    def test_unknown_weights_are_an_error_that_says_what_to_do(self):
        with self.assertRaisesRegex(ValueError, "no package ships its weights"):
            models.build("resnet50", "pretrained")


class Lite0(unittest.TestCase):
    """The packaged weights are really trained: they know the photos (Debian's torchvision has the names)."""

    EXPECTED = {
        "chelsea": {281, 282, 285},  # tabby, tiger cat, Egyptian cat
        "china": {698, 663},  # palace, monastery
        "coffee": {967, 504},  # espresso, coffee mug
        "flower": {985},  # daisy
        "motorcycle_left": {665, 670},  # moped, motor scooter
        "rocket": {657, 744},  # missile, projectile
    }

    def test_top_class_of_photos(self):
        net, t = models.build("lite0", "pretrained")
        for name, classes in self.EXPECTED.items():
            with self.subTest(name):
                with torch.no_grad():
                    top = net(torch.from_numpy(transform.apply(t, photos.load(name)))[None]).argmax().item()
                self.assertIn(top, classes)


class Transform(unittest.TestCase):
    def test_same_pixels_as_torchvision(self):
        import torchvision.transforms as T

        for name in ("resnet18", "efficientnet_b0", "swin_t"):
            t = models.transform_of(name)
            mode = T.InterpolationMode(t["interpolation"])
            theirs = T.Compose(
                [T.Resize(t["resize"], mode), T.CenterCrop(t["crop"]), T.ToTensor(), T.Normalize(t["mean"], t["std"])]
            )
            for image in photos.crops(4, seed=5, size=(501, 334)):
                np.testing.assert_allclose(transform.apply(t, image), theirs(image).numpy(), atol=2e-6)


if __name__ == "__main__":
    unittest.main()
