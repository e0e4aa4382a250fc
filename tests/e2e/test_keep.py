"""What a job keeps of its features on disk: later epochs and jobs fetch nothing, or what is missing, and the bits are the same."""

import glob
import os
import subprocess
import tempfile
import threading
import time
import unittest

import numpy as np

from harness import DATA, HAPI, LITE0, Dump, hapi, node, tar_jpegs, tiny_model, train_json, write_folders

SET, SAMPLES, EPOCHS = "photos", 64, 3
MIDDLE = "/_blocks.5/_project_conv/Conv_output_0"
ROW = 8192  # of lite0's 1280 features and a class, on disk


class Keep(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.made = tempfile.TemporaryDirectory()
        cls.addClassCleanup(cls.made.cleanup)
        cls.data = os.path.join(cls.made.name, "data")
        photos = tar_jpegs(os.path.join(DATA, "photos-train"), SAMPLES + 1)
        cls.paths = write_folders(photos[:SAMPLES], os.path.join(cls.data, SET))
        cls.other = photos[SAMPLES][0]
        cls.node = node(cls.data, "--threads", 1)
        cls.addClassCleanup(lambda: cls.node.running() and cls.node.stop())

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = folder.name
        self.keep_dir = os.path.join(self.folder, "kept")

    def job(self, *options, address=None, model=LITE0, epochs=EPOCHS):
        how = ("--epochs", epochs, "--batch", 32, "--threads", 1, "--seed", 4, *options)
        return train_json(model, address or self.node.address, SET, SET, *how)

    def kept(self, *options, disk="64M", memory="0", **kw):
        return self.job("--keep", memory, "--keep-disk", disk, "--keep-dir", self.keep_dir, *options, **kw)

    @staticmethod
    def losses(report):
        """Were one feature another in its last bit, so would be these."""
        return [(e["train_loss"], e["test_accuracy"]) for e in report["epochs"]]

    @staticmethod
    def counts(report):
        return [e["kept"] for e in report["epochs"]]

    def test_later_epochs_and_jobs_fetch_nothing(self):
        truth = self.losses(self.job("--keep", "0"))
        first = self.kept()
        self.assertEqual(self.losses(first), truth)
        self.assertEqual(self.counts(first), [0, SAMPLES, SAMPLES])
        self.assertEqual([e["source"] for e in first["epochs"]], ["nodes", "kept", "kept"])
        self.assertEqual([e["wire_bytes"] > 0 for e in first["epochs"]], [True, False, False])
        second = self.kept()
        self.assertEqual(self.losses(second), truth)
        self.assertEqual(self.counts(second)[1:], [SAMPLES, SAMPLES])
        third = self.kept(memory="64M", disk="64M")
        self.assertEqual(self.losses(third), truth)

    def test_memory_and_then_disk_and_then_nodes(self):
        for i, options in enumerate((("--freeze", MIDDLE), ("--checksum",), ("--wire", "f16"), ("--wire", "int8"), ("--policy", "none"), ("--split", MIDDLE))):
            with self.subTest(options):
                self.keep_dir = os.path.join(self.folder, str(i))
                truth = self.losses(self.job("--keep", "0", *options))
                wide = MIDDLE in options and "--freeze" in options  # 1 MiB of memory holds 16 of its rows, and disk 10
                parts = self.kept(*options, memory="1M" if wide else "0", disk=str(10 * 65536 if wide else 24 * ROW))
                self.assertEqual(self.losses(parts), truth)
                self.assertEqual(self.counts(parts), [0, 26, 26] if wide else [0, 24, 24])

    def test_with_a_part_less_is_fetched(self):
        parts = self.kept(disk=str(32 * ROW))
        self.assertEqual(self.counts(parts), [0, 32, 32])
        first, *later = [e["wire_bytes"] for e in parts["epochs"]]
        for bytes_of in later:
            self.assertLess(bytes_of, 0.6 * first)

    def test_replicas_and_a_death(self):
        model = tiny_model(os.path.join(self.folder, "tiny.onnx"))
        disk = ("--keep", "0", "--keep-disk", str(30 * 4096), "--keep-dir", self.keep_dir)
        truth = self.losses(self.job("--keep", "0", model=model, epochs=12))
        nodes = [node(self.data, "--threads", 1, "--micro-batch", 4) for _ in range(2)]
        for n in nodes:
            self.addCleanup(n.kill)
        killer = threading.Timer(0.8, nodes[0].kill)
        killer.start()
        both = ",".join(n.address for n in nodes)
        report = self.job(*disk, address=both, model=model, epochs=12)
        killer.join()
        self.assertEqual(self.losses(report), truth)
        self.assertEqual(set(self.counts(report)[1:]), {30})

    def test_a_job_that_is_killed(self):
        truth = self.losses(self.job("--keep", "0"))
        where = ("--nodes", self.node.address, "--dataset", SET, "--test-dataset", SET, "--threads", "1", "--quiet")
        command = [HAPI, "train", LITE0, *where, "--keep", "0", "--keep-disk", "64M", "--keep-dir", self.keep_dir]
        for after in (0.4, 0.6, 0.8):
            p = subprocess.Popen([*command, "--epochs", "1000000"], stderr=subprocess.DEVNULL)
            time.sleep(after)
            p.kill()
            p.wait()
        self.assertEqual(self.losses(self.kept()), truth)

    def test_files_that_went_bad(self):
        truth = self.losses(self.kept())
        rows = glob.glob(os.path.join(self.keep_dir, "*", "*.rows"))
        self.assertEqual(len(rows), 1)
        with open(rows[0], "r+b") as f:
            for slot in range(0, SAMPLES, 3):
                f.seek(slot * ROW + 64)
                f.write(b"\x7f\x7f\x7f\x7f")
        report = self.kept()
        self.assertEqual(self.losses(report), truth)
        self.assertLessEqual(self.counts(report)[0], SAMPLES - SAMPLES // 3)
        self.assertEqual(self.counts(self.kept())[1:], [SAMPLES, SAMPLES])

    def test_an_object_that_changed(self):
        data = os.path.join(self.folder, "data")
        photos = tar_jpegs(os.path.join(DATA, "photos-train"), SAMPLES)
        paths = write_folders(photos, os.path.join(data, SET))
        with node(data, "--threads", 1) as n:
            before = self.losses(self.kept(address=n.address))
        with open(paths[7], "wb") as f:
            f.write(self.other)
        with node(data, "--threads", 1) as n:
            truth = self.losses(self.job("--keep", "0", address=n.address))
            report = self.kept(address=n.address)
            self.assertEqual(self.losses(report), truth)
            self.assertNotEqual(truth, before)
            self.assertGreater(report["epochs"][0]["wire_bytes"], 0)

    def test_what_differs_is_not_mixed(self):
        """Another freeze layer, wire or network finds nothing of what the first left."""
        self.kept(epochs=1)
        for options in (("--freeze", MIDDLE), ("--wire", "f16"), ("--split", MIDDLE, "--wire", "bf16")):
            with self.subTest(options):
                self.assertEqual(self.counts(self.kept(*options, epochs=1)), [0])

    def test_features_that_are_written_down(self):
        prefix = os.path.join(self.folder, "plain")
        self.job("--dump-features", prefix, epochs=1)
        self.kept(epochs=1)
        again = os.path.join(self.folder, "again")
        self.kept("--dump-features", again, memory="64M", epochs=2)
        np.testing.assert_array_equal(Dump(again).train.view(np.uint32), Dump(prefix).train.view(np.uint32))
        np.testing.assert_array_equal(Dump(again).train_labels, Dump(prefix).train_labels)

    def test_refusals(self):
        common = ("train", LITE0, "--nodes", self.node.address, "--dataset", SET, "--test-dataset", SET, "--epochs", "1", "--quiet")
        for options in (("--keep-disk", "1M"), ("--keep-dir", self.keep_dir), ("--keep-disk", "much", "--keep-dir", self.keep_dir)):
            self.assertEqual(hapi(*common, *options).code, 2, options)
        command = [HAPI, *common, "--keep", "0", "--keep-disk", "64M", "--keep-dir", self.keep_dir]
        p = subprocess.Popen([*command, "--epochs", "1000000"], stderr=subprocess.DEVNULL)
        self.addCleanup(p.wait)
        self.addCleanup(p.kill)
        until = time.monotonic() + 10
        while not glob.glob(os.path.join(self.keep_dir, "*", "*.log")):
            self.assertLess(time.monotonic(), until)
            time.sleep(0.02)
        r = hapi(*command[1:])
        self.assertEqual(r.code, 1, r)
        self.assertIn("another process keeps its features", r.err)


if __name__ == "__main__":
    unittest.main()
