"""Prepared data: deterministic, complete, in the promised sizes, kept when nothing changed."""

import glob
import hashlib
import io
import os
import tarfile
import tempfile
import unittest
from unittest import mock

import numpy as np
from PIL import Image

from hapi import data


def samples_of(folder):
    for file in sorted(glob.glob(os.path.join(folder, "*.tar"))):
        with tarfile.open(file) as tar:
            members = tar.getmembers()
            for jpg, cls in zip(members[::2], members[1::2]):
                yield jpg.name, cls.name, tar.extractfile(jpg).read(), tar.extractfile(cls).read().decode()


def digest(folder):
    h = hashlib.sha256()
    for file in sorted(glob.glob(os.path.join(folder, "**", "*.*"), recursive=True)):
        with open(file, "rb") as f:
            h.update(f.read())
    return h.hexdigest()


class Data(unittest.TestCase):
    def setUp(self):
        d = tempfile.TemporaryDirectory()
        self.addCleanup(d.cleanup)
        self.root = os.path.join(d.name, "data")

    def small(self, name, **change):
        return mock.patch.dict(data.DATASETS, {name: dict(data.DATASETS[name], **change)})

    def test_fashion_holds_the_first_images_and_their_labels(self):
        with self.small("fashion-train", n=45, shard=20):
            self.assertTrue(data.prepare(self.root, "fashion-train"))
        folder = os.path.join(self.root, "fashion-train")
        self.assertEqual(sorted(os.listdir(folder)), ["000000.tar", "000001.tar", "000002.tar"])
        images, labels = data.fashion_raw("train", 45)
        got = list(samples_of(folder))
        self.assertEqual(len(got), 45)
        for i, (jpg, cls, pixels, label) in enumerate(got):
            self.assertEqual((jpg, cls), (f"{i:06d}.jpg", f"{i:06d}.cls"))
            self.assertEqual(label, str(labels[i]))
            image = Image.open(io.BytesIO(pixels))
            self.assertEqual((image.format, image.size), ("JPEG", (224, 224)))
            small = 255.0 - np.asarray(image.convert("L").crop((14, 14, 210, 210)).resize((28, 28), Image.BOX))
            self.assertLess(np.abs(small - images[i]).mean(), 12, "another picture than the dataset's")

    def test_promised_numbers(self):
        self.assertEqual([data.DATASETS[n]["n"] for n in ("fashion-train", "fashion-test")], [2000, 1000])
        for name in ("fashion-train", "photos-train"):
            self.assertGreaterEqual(data.DATASETS[name]["n"] // data.DATASETS[name]["shard"], 8)

    def test_photos_are_as_heavy_as_imagenets(self):
        with self.small("photos-test", n=100):
            data.prepare(self.root, "photos-test")
        got = list(samples_of(os.path.join(self.root, "photos-test")))
        sizes = [len(s[2]) for s in got]
        self.assertTrue(all(20_000 <= s <= 300_000 for s in sizes))
        self.assertTrue(95_000 <= np.mean(sizes) <= 125_000, np.mean(sizes))
        self.assertGreater(np.std(sizes), 30_000)
        self.assertEqual(len({s[3] for s in got}), 10)

    def test_same_bytes_again_and_kept_when_nothing_changed(self):
        for name in ("fashion-test", "photos-folders"):
            with self.subTest(name), self.small(name, n=20):
                self.assertTrue(data.prepare(self.root, name))
                first = digest(os.path.join(self.root, name))
                self.assertFalse(data.prepare(self.root, name))
                self.assertTrue(data.prepare(self.root + "2", name))
                self.assertEqual(first, digest(os.path.join(self.root + "2", name)))
                with self.small(name, n=10):
                    self.assertTrue(data.prepare(self.root, name), "other parameters, old data")

    def test_everything_in_the_root_is_data(self):
        with self.small("photos-folders", n=10):
            data.prepare(self.root, "photos-folders")
        self.assertEqual(os.listdir(self.root), ["photos-folders"])


if __name__ == "__main__":
    unittest.main()
