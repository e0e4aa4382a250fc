"""Nodes die in mid-epoch: every sample arrives exactly once, with the same bits, or the job says why not."""

import os
import random
import signal
import subprocess
import tempfile
import threading
import time
import unittest

import numpy as np

from harness import DATA, HAPI, NIGHTLY, WIRES, Dump, hapi, node, tar_jpegs, tiny_model, wait_for_samples, write_folders

KILLS = 30 if NIGHTLY else 3
SAMPLES, EPOCHS = 1000, 4


class Faults(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        cls.model = tiny_model(os.path.join(cls.folder.name, "tiny.onnx"))
        cls.data = os.path.join(cls.folder.name, "data")
        write_folders(tar_jpegs(os.path.join(DATA, "fashion-test"), SAMPLES), os.path.join(cls.data, "set"))
        cls.whole = cls.dump("whole", 1)

    @classmethod
    def tearDownClass(cls):
        cls.folder.cleanup()

    @classmethod
    def dump(cls, name, nodes, kill=None, options=(), how=lambda n: n.kill()):
        """Trains over that many replicas; the first is killed once `kill` samples have arrived. (dump, order)"""
        prefix = os.path.join(cls.folder.name, name)
        order = prefix + "-order"
        running = [node(cls.data, "--micro-batch", 4) for _ in range(nodes)]
        try:
            command = ["train", cls.model, "--nodes", ",".join(n.address for n in running), "--dataset", "set"]
            command += ["--test-dataset", "set", "--epochs", EPOCHS, "--keep", "1G", "--dump-features", prefix]
            command += ["--dump-order", order, "--quiet", "--batch", "16", *options]
            if kill is not None:
                threading.Thread(target=cls.kill_after, args=(running[0], order, kill, how), daemon=True).start()
            r = hapi(*command, timeout=60)
            if kill is not None and running[0].running() and not cls.stopped(running[0]):
                raise AssertionError("the job was over before its node was killed")
        finally:
            for n in running:
                n.kill()
        if r.code:
            raise AssertionError(r)
        with open(order, encoding="ascii") as f:
            return Dump(prefix), [tuple(map(int, line.split())) for line in f]

    @staticmethod
    def stopped(n):
        with open(f"/proc/{n.process.pid}/stat", encoding="ascii") as f:
            return f.read().rsplit(")", 1)[1].split()[0] == "T"

    @staticmethod
    def kill_after(victim, order, samples, how):
        wait_for_samples(order, samples)
        how(victim)

    def test_one_of_two_replicas_is_killed(self):
        rng = random.Random(1)
        for i in range(KILLS):
            with self.subTest(i):
                dump, order = self.dump(f"kill-{i}", 2, kill=rng.randrange(1, SAMPLES // 2))
                whole, _ = self.whole
                for epoch in range(EPOCHS):
                    self.assertEqual(sorted(s for e, s in order if e == epoch), list(range(SAMPLES)))
                self.assertTrue(np.array_equal(dump.train.view(np.uint32), whole.train.view(np.uint32)))
                self.assertTrue(np.array_equal(dump.train_labels, whole.train_labels))

    def test_one_of_two_replicas_falls_silent(self):
        """Stopped, not dead: sockets stay open. Its requests go to the other; when it wakes, nothing it writes lands."""
        dump, order = self.dump("silent", 2, kill=200, how=lambda n: n.process.send_signal(signal.SIGSTOP))
        whole, _ = self.whole
        for epoch in range(EPOCHS):
            self.assertEqual(sorted(s for e, s in order if e == epoch), list(range(SAMPLES)))
        self.assertTrue(np.array_equal(dump.train.view(np.uint32), whole.train.view(np.uint32)))

    def test_wire_dtypes_and_checksum(self):
        whole, _ = self.whole
        for wire, tolerance in WIRES.items():
            with self.subTest(wire):
                dump, _ = self.dump(wire, 2, options=("--wire", wire, "--checksum"))
                error = np.linalg.norm(dump.train - whole.train) / np.linalg.norm(whole.train)
                self.assertLess(error, tolerance)
                self.assertGreater(error, 0)
        with self.subTest("raw, checked"):
            dump, _ = self.dump("raw", 2, options=("--policy", "none", "--checksum"))
            self.assertTrue(np.array_equal(dump.train.view(np.uint32), whole.train.view(np.uint32)))

    def test_the_only_node_is_killed(self):
        n = node(self.data, "--micro-batch", 4)
        command = [HAPI, "train", self.model, "--nodes", n.address, "--dataset", "set", "--test-dataset", "set"]
        p = subprocess.Popen(
            [*command, "--epochs", "1000", "--keep", "0", "--quiet"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        try:
            time.sleep(1.5)
            self.assertIsNone(p.poll())
            n.kill()
            killed = time.monotonic()
            _, said = p.communicate(timeout=30)
            self.assertEqual(p.returncode, 1)
            self.assertLess(time.monotonic() - killed, 15)
            self.assertIn(b"no node left", said)
        finally:
            p.kill()
            n.kill()

    def test_a_node_that_comes_back(self):
        n = node(self.data, "--micro-batch", 4)
        port = n.address.rsplit(":", 1)[1]
        with tempfile.TemporaryDirectory() as folder:
            order = os.path.join(folder, "order")
            command = [HAPI, "train", self.model, "--nodes", n.address, "--dataset", "set", "--test-dataset", "set"]
            p = subprocess.Popen(
                [*command, "--epochs", "12", "--keep", "0", "--quiet", "--dump-order", order], stderr=subprocess.PIPE
            )
            try:
                while not os.path.exists(order) or not os.path.getsize(order):
                    time.sleep(0.02)
                    self.assertIsNone(p.poll())
                n.kill()
                time.sleep(0.3)
                n = node(self.data, "--micro-batch", 4, listen=f"127.0.0.1:{port}")
                _, said = p.communicate(timeout=60)
                self.assertEqual(p.returncode, 0, said)
                with open(order, encoding="ascii") as f:
                    got = [tuple(map(int, line.split())) for line in f]
                self.assertEqual(sorted(got), [(e, s) for e in range(12) for s in range(SAMPLES)])
            finally:
                p.kill()
                n.kill()


if __name__ == "__main__":
    unittest.main()
