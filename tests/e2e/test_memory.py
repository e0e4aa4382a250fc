"""A node's memory does not grow, whatever clients do: jobs that end and that are killed, questions, garbage, silence."""

import os
import random
import signal
import socket
import statistics
import subprocess
import tempfile
import threading
import time
import unittest

from harness import DATA, HAPI, LITE0, NIGHTLY, hapi, node, tar_jpegs, tiny_model, write_folders

WARM_UP_S, LOAD_S = (300, 1800) if NIGHTLY else (60, 180)
MOST_BYTES_S = (1 << 20) / 600  # 1 MiB in ten minutes
SLACK = 1 << 20  # what a window's median may be off by, where the load is short
WORKERS, WINDOW_S = 2, 20
PAGE = os.sysconf("SC_PAGESIZE")
SET = "set"


class Memory(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = folder.name
        data = os.path.join(self.folder, "data")
        write_folders(tar_jpegs(os.path.join(DATA, "photos-train"), 48), os.path.join(data, SET))
        self.tiny = tiny_model(os.path.join(self.folder, "tiny.onnx"))
        cache = ("--cache", os.path.join(self.folder, "cache"), "--cache-disk", "1M", "--cache-memory", "8M")
        self.node = node(data, "--threads", 1, "--log-level", "error", *cache)
        self.addCleanup(self.node.stop)
        self.over = threading.Event()
        self.failures = []
        self.done = dict.fromkeys(("job", "killed", "asked", "garbage", "silent"), 0)

    def resident(self):
        with open(f"/proc/{self.node.process.pid}/statm", encoding="ascii") as f:
            return int(f.read().split()[1]) * PAGE

    # ------------------------------------------------------------ what clients do

    def train(self, rng):
        model = rng.choice((LITE0, self.tiny))
        how = rng.choice((("--policy", "none"), ("--wire", "f32"), ("--wire", "int8"), ("--checksum",)))
        command = [HAPI, "train", model, "--nodes", self.node.address, "--dataset", SET, "--test-dataset", SET]
        command += ["--epochs", "1", "--quiet", "--threads", "1", *how]
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    def job(self, rng):
        p = self.train(rng)
        _, said = p.communicate(timeout=60)
        if p.returncode:
            raise AssertionError(f"a job failed: {said}")

    def killed(self, rng):
        p = self.train(rng)
        try:
            time.sleep(rng.uniform(0.02, 0.6))
        finally:
            p.kill()
            p.communicate()

    def silent(self, rng):
        p = self.train(rng)
        try:
            time.sleep(rng.uniform(0.1, 0.4))
            p.send_signal(signal.SIGSTOP)
            time.sleep(5)  # longer than the node waits for a sign of life
        finally:
            p.kill()
            p.communicate()

    def asked(self, rng):
        for what in (("ls",), ("stat", "--once", "--interval", "0.05")):
            r = hapi(what[0], self.node.address, *what[1:])
            if r.code:
                raise AssertionError(r)

    def garbage(self, rng):
        host, port = self.node.address.rsplit(":", 1)
        with socket.create_connection((host, int(port)), timeout=5) as s:
            s.sendall(rng.randbytes(rng.randrange(1, 4096)))
            s.settimeout(rng.uniform(0, 0.5))
            try:
                while s.recv(4096):
                    pass
            except OSError:
                pass

    def work(self, seed):
        rng = random.Random(seed)
        kinds = list(self.done)
        try:
            while not self.over.is_set():
                kind = rng.choices(kinds, (6, 4, 3, 4, 1))[0]
                getattr(self, kind)(rng)
                self.done[kind] += 1
        except BaseException as e:  # told by the test's thread
            self.failures.append(e)

    def test_it_does_not_grow(self):
        threads = [threading.Thread(target=self.work, args=(i,)) for i in range(WORKERS)]
        for t in threads:
            t.start()
        seen, began = [], time.monotonic()
        try:
            while time.monotonic() < began + LOAD_S and not self.failures and self.node.running():
                time.sleep(0.5)
                seen.append((time.monotonic() - began, self.resident()))
        finally:
            self.over.set()
            for t in threads:
                t.join()
        self.assertFalse(self.failures, self.failures)
        self.assertTrue(self.node.running(), self.node.said())
        self.assertTrue(all(self.done.values()), self.done)
        first = statistics.median(b for at, b in seen if WARM_UP_S <= at < WARM_UP_S + WINDOW_S)
        last = statistics.median(b for at, b in seen if at >= LOAD_S - WINDOW_S)
        most = MOST_BYTES_S * (LOAD_S - WARM_UP_S - WINDOW_S) + (0 if NIGHTLY else SLACK)
        self.assertLess(last - first, most, f"{first / 2**20:.1f} to {last / 2**20:.1f} MiB; {self.done}")


if __name__ == "__main__":
    unittest.main()
