"""Sudden death on either side: the other one says so and goes on. A few rounds here, hundreds in ci/nightly."""

import os
import random
import subprocess
import tempfile
import time
import unittest

from harness import DATA, HAPI, NIGHTLY, hapi, node, tiny_model

ROUNDS = 200 if NIGHTLY else 4


class Kills(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.model = tiny_model(os.path.join(folder.name, "tiny.onnx"))

    def endless(self, n, policy):
        """A job that fetches every epoch anew until somebody ends it."""
        common = ("--nodes", n.address, "--dataset", "fashion-test", "--test-dataset", "fashion-test", "--quiet")
        return subprocess.Popen(
            [HAPI, "train", self.model, *common, "--policy", policy, "--keep", "0", "--epochs", "1000000"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )

    def reap(self, job):
        if job.poll() is None:
            job.kill()
            job.wait()
        job.stderr.close()

    def test_node_serves_on_when_clients_are_killed(self):
        rng = random.Random(1)
        with node(DATA) as n:
            for i in range(ROUNDS):
                job = self.endless(n, ("freeze", "none")[i % 2])
                self.addCleanup(self.reap, job)
                time.sleep(rng.uniform(0.05, 1.5))
                self.assertIsNone(job.poll(), "the job ended by itself")
                self.reap(job)
                r = hapi("ls", n.address)
                self.assertEqual(r.code, 0, r)
            common = ("--nodes", n.address, "--dataset", "fashion-test", "--test-dataset", "fashion-test")
            r = hapi("train", self.model, *common, "--epochs", "1", "--on-bad", "fail")
            self.assertEqual(r.code, 0, r)
            files = len(os.listdir(f"/proc/{n.process.pid}/fd"))
            self.assertLess(files, 100, "descriptors of dead clients are left")

    def test_client_names_the_node_that_died(self):
        rng = random.Random(2)
        for i in range(ROUNDS):
            n = node(DATA)
            self.addCleanup(n.kill)
            job = self.endless(n, ("freeze", "none")[i % 2])
            self.addCleanup(self.reap, job)
            time.sleep(rng.uniform(0.3, 1.5))
            n.kill()
            _, err = job.communicate(timeout=60)
            self.assertEqual(job.returncode, 1, err)
            self.assertIn(n.address, err.decode())


if __name__ == "__main__":
    unittest.main()
