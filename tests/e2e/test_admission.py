"""Batch adaptation: more networks than fit at their largest micro-batch share a node's memory; none fails, no bit changes."""

import json
import os
import subprocess
import tempfile
import time
import unittest

import numpy as np

from harness import DATA, HAPI, NIGHTLY, Dump, hapi, node, run, tar_jpegs, train_json, write_folders

SET, SAMPLES = "photos", 32
JOBS = 8
SIDE = 96
MICRO_BATCH = 8
THREADS = 2
WINDOW_S = 60 if NIGHTLY else 8
JAIN, BUSY = 0.95, 0.95
SLAB = MICRO_BATCH * (4 + 8 + 1) << 20  # --batches times read and send area
BASE = 96 << 20  # programs, libraries, decoders


def network(path, i):
    """Convolutions whose activations are large and whose weights are not, of another width each."""
    import torch

    from hapi import export

    torch.manual_seed(i)
    width = 48 + 8 * i
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, width, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.Conv2d(width, width, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool2d(2),
        torch.nn.Flatten(),
        torch.nn.Linear(4 * width, 10),
    )
    t = {"resize": SIDE, "interpolation": "bilinear", "crop": SIDE, "mean": [127, 127, 127], "std": [128, 128, 128]}
    t.update(scale=1, channels="rgb", exif=False)
    export.export(net, path, torch.zeros(1, 3, SIDE, SIDE), t)
    return path


class MemoryCap:
    """A control group of the memory controller, whichever version is mounted; a process in it that takes more is killed."""

    ROOTS = (("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.oom_control"), ("/sys/fs/cgroup", "memory.max", "memory.events"))

    @classmethod
    def make(cls, test, limit):
        """None where the machine has none that we may use."""
        for root, most, failed in cls.ROOTS:
            path = os.path.join(root, f"hapi-{os.getpid()}")
            try:
                os.mkdir(path)
                with open(os.path.join(path, most), "w", encoding="ascii") as f:
                    f.write(str(limit))
            except OSError:
                if os.path.isdir(path):
                    os.rmdir(path)
                continue
            cap = cls()
            cap.path, cap.failed = path, os.path.join(path, failed)
            test.addCleanup(os.rmdir, path)
            return cap
        return None

    def prefix(self):
        return ("sh", "-c", f'echo $$ > {self.path}/cgroup.procs && exec "$@"', "sh")

    def failures(self):
        with open(self.failed, encoding="ascii") as f:
            return int(f.read().split("oom_kill ")[1].split()[0])


class Admission(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.made = tempfile.TemporaryDirectory()
        cls.addClassCleanup(cls.made.cleanup)
        cls.models = [network(os.path.join(cls.made.name, f"net{i}.onnx"), i) for i in range(JOBS)]
        cls.data = os.path.join(cls.made.name, "data")
        write_folders(tar_jpegs(os.path.join(DATA, "photos-train"), SAMPLES), os.path.join(cls.data, SET))
        cls.least, cls.most = (sum(cls.bytes_of(m, b) for m in cls.models) for b in (1, MICRO_BATCH))

    @staticmethod
    def bytes_of(model, batch):
        """As the node counts them: the model, its weights, and an arena for each compute thread."""
        r = hapi("plan-memory", model, "--micro-batch", batch, "--json")
        plan = json.loads(r.out)["plans"][0]
        return os.path.getsize(model) + plan["weights"] + THREADS * (plan["arena"] + plan["scratch"])

    @staticmethod
    def log(at):
        with open(at.log, encoding="utf-8") as f:
            return f.read()

    def start(self, *options, **kw):
        started = node(self.data, "--threads", THREADS, "--micro-batch", MICRO_BATCH, *options, **kw)
        self.addCleanup(lambda: started.running() and started.stop())
        return started

    def job(self, at, model, *options):
        where = ("--nodes", at.address, "--dataset", SET, "--test-dataset", SET)
        how = ("--keep", "0", "--batch", "16", "--quiet", "--threads", "1", *map(str, options))
        process = subprocess.Popen([HAPI, "train", model, *where, *how], stderr=subprocess.PIPE, text=True)
        self.addCleanup(process.stderr.close)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        return process

    def look(self, at):
        r = hapi("stat", at.address, "--once", "--json", "--interval", "0.05")
        self.assertEqual(r.code, 0, (r, at.said()))
        return json.loads(r.out)["nodes"][0]["counters"]

    def until(self, at, what, seconds=60):
        end = time.monotonic() + seconds
        while True:
            c = self.look(at)
            self.assertLessEqual(c["plans"]["taken"], c["plans"]["memory"])
            if what(c):
                return c
            self.assertLess(time.monotonic(), end, (c["plans"], at.said()))

    def test_all_run_in_memory_for_less(self):
        self.assertGreater(self.most, 1.2 * self.least)
        memory = (3 * self.least + self.most) // 4
        calm = self.start()
        truth = {}
        for m in self.models[::3]:
            train_json(m, calm.address, SET, SET, "--epochs", 1, "--dump-features", m + "-calm")
            truth[m] = Dump(m + "-calm").train
        calm.stop()
        cap = MemoryCap.make(self, memory + SLAB + BASE)
        at = self.start("--memory", memory, prefix=cap.prefix() if cap else ())
        jobs = [self.job(at, m, "--epochs", 1000000) for m in self.models]
        self.until(at, lambda c: c["plans"]["running"] == JOBS)
        before = self.look(at)["samples"]
        self.until(at, lambda c: c["samples"] > before + JOBS * SAMPLES)
        self.assertEqual(self.look(at)["plans"]["refused"], 0)
        self.assertIn("another micro-batch", self.log(at))
        for m, expected in truth.items():
            train_json(m, at.address, SET, SET, "--epochs", 1, "--dump-features", m + "-shared")
            np.testing.assert_array_equal(Dump(m + "-shared").train.view(np.uint32), expected.view(np.uint32))
        self.assertTrue(all(p.poll() is None for p in jobs))
        for p in jobs[:-1]:
            p.kill()
        end = time.monotonic() + 20
        while f"to={MICRO_BATCH}\n" not in self.log(at):  # what the others had is given to the largest, which is left
            self.assertLess(time.monotonic(), end, self.log(at))
            time.sleep(0.1)
        if cap:
            self.assertEqual(cap.failures(), 0)

    def test_without_adaptation_some_are_refused(self):
        at = self.start("--memory", (self.least + self.most) // 2, "--adapt", "off")
        jobs = [self.job(at, m, "--epochs", 1000000) for m in self.models]
        self.until(at, lambda c: c["plans"]["refused"] > 0)
        end = time.monotonic() + 20
        while all(p.poll() is None for p in jobs) and time.monotonic() < end:
            time.sleep(0.05)
        failed = [p for p in jobs if p.poll() is not None]
        self.assertTrue(failed)
        self.assertIn("--adapt is off", failed[0].stderr.read())
        self.assertGreater(self.look(at)["plans"]["running"], 0)

    def test_who_does_not_fit_waits(self):
        first, second = self.models[-1], self.models[-2]
        at = self.start("--memory", int(1.1 * self.bytes_of(first, 1)))
        job = self.job(at, first, "--epochs", 1000000)
        self.until(at, lambda c: c["samples"] > SAMPLES)
        waits = self.job(at, second, "--epochs", 1)
        self.until(at, lambda c: c["plans"]["waiting"] == 1)
        time.sleep(2)
        self.assertIsNone(waits.poll())
        self.assertIsNone(job.poll())
        job.kill()
        self.assertEqual(waits.wait(timeout=30), 0, waits.stderr.read())

    def test_what_never_fits_is_refused(self):
        at = self.start("--memory", self.bytes_of(self.models[-1], 1) // 2)
        job = self.job(at, self.models[-1], "--epochs", 1)
        self.assertEqual(job.wait(timeout=30), 1)
        self.assertRegex(job.stderr.read(), "MiB.*give it more --memory")

    def test_the_setting(self):
        r = run(os.path.join(os.path.dirname(HAPI), "hapi-rt"), "--data", self.data, "--adapt", "maybe")
        self.assertEqual(r.code, 2, r)
        self.assertIn("adapt is on or off", r.err)

    def test_time_is_shared_evenly(self):
        """Eight tenants with eight networks, in memory that only fits them at smaller micro-batches."""
        keys = os.path.join(self.made.name, "keys")
        with open(keys, "w", encoding="ascii") as f:
            for i in range(JOBS):
                text = f"tenant{i}:{i + 1:064x}\n"
                f.write(text)
                with open(f"{keys}{i}", "w", encoding="ascii") as one:
                    one.write(text)
                os.chmod(f"{keys}{i}", 0o600)
        os.chmod(keys, 0o600)
        at = self.start("--key", keys, "--memory", (self.least + self.most) // 2, "--metrics", "127.0.0.1:0")
        url = at.said().split("url=")[1].split()[0]
        for i, m in enumerate(self.models):
            self.job(at, m, "--epochs", 1000000, "--key", f"{keys}{i}")
        end = time.monotonic() + 60
        while True:
            seconds = self.scrape(url, "tenant_compute_seconds_total")
            if len(seconds) == JOBS and min(seconds.values()) > 0.3:
                break
            self.assertLess(time.monotonic(), end, seconds)
            time.sleep(0.2)
        time.sleep(2)
        began, before = time.monotonic(), self.scrape(url, "tenant_compute_seconds_total")
        time.sleep(WINDOW_S)
        after, took = self.scrape(url, "tenant_compute_seconds_total"), time.monotonic() - began
        used = [after[t] - before[t] for t in after]
        self.assertGreaterEqual(sum(used) ** 2 / (len(used) * sum(u * u for u in used)), JAIN, used)
        self.assertGreaterEqual(sum(used) / THREADS / took, BUSY, used)

    @staticmethod
    def scrape(url, name):
        import urllib.request

        with urllib.request.urlopen(url, timeout=5) as r:
            lines = [line for line in r.read().decode().splitlines() if line.startswith(f"hapi_{name}{{tenant=\"tenant")]
        return {line.split('"')[1]: float(line.split()[-1]) for line in lines}


if __name__ == "__main__":
    unittest.main()
