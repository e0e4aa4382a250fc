"""Tenants share a node's time evenly, whatever their networks cost."""

import os
import secrets
import subprocess
import tempfile
import time
import unittest
import urllib.request

from harness import DATA, HAPI, LITE0, node, tar_jpegs, write_folders
from verbs_guest import tiny_model

SET, SAMPLES = "photos", 400
WARM_UP_S, WINDOW_S = 3, 8
JAIN = 0.95


def jain(x):
    return sum(x) ** 2 / (len(x) * sum(v * v for v in x))


class Tenants(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = folder.name
        self.data = os.path.join(self.folder, "data")
        write_folders(tar_jpegs(os.path.join(DATA, "photos-train"), SAMPLES), os.path.join(self.data, SET))
        self.tiny = tiny_model(os.path.join(self.folder, "tiny.onnx"), 1)

    def start(self, tenants):
        keys = []
        for tenant in tenants:
            keys.append(os.path.join(self.folder, f"{tenant}.key"))
            with open(keys[-1], "w", encoding="ascii") as f:
                f.write(f"{tenant}:{secrets.token_hex(32)}\n")
        both = os.path.join(self.folder, "keys")
        with open(both, "w", encoding="ascii") as out:
            for path in keys:
                os.chmod(path, 0o600)
                with open(path, encoding="ascii") as f:
                    out.write(f.read())
        os.chmod(both, 0o600)
        started = node(self.data, "--threads", 1, "--key", both, "--metrics", "127.0.0.1:0")
        self.addCleanup(started.stop)
        self.url = started.said().split("url=")[1].split()[0]
        self.address = started.address
        return keys

    def job(self, model, key):
        """One that always wants more than the node can compute."""
        where = ("--nodes", self.address, "--dataset", SET, "--test-dataset", SET, "--key", key)
        how = ("--keep", "0", "--batch", "32", "--epochs", "100000", "--quiet", "--threads", "1")
        process = subprocess.Popen([HAPI, "train", model, *where, *how], stderr=subprocess.DEVNULL)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        return process

    def of_tenants(self, what):
        with urllib.request.urlopen(self.url, timeout=5) as r:
            lines = [line for line in r.read().decode().splitlines() if line.startswith(f"hapi_tenant_{what}_total{{")]
        named = {line.split('"')[1]: float(line.split()[-1]) for line in lines}
        named.pop("(others)")
        return named

    def measure(self, jobs):
        end = time.monotonic() + 60
        while len(self.of_tenants("samples")) < 2 or min(self.of_tenants("samples").values()) <= SAMPLES:
            self.assertLess(time.monotonic(), end, self.of_tenants("samples"))  # till they are past their test sets
            self.assertEqual([j.poll() for j in jobs], [None] * len(jobs))
            time.sleep(0.1)
        time.sleep(WARM_UP_S)
        before = self.of_tenants("compute_seconds"), self.of_tenants("samples")
        time.sleep(WINDOW_S)
        after = self.of_tenants("compute_seconds"), self.of_tenants("samples")
        return [{t: a[t] - b[t] for t in a} for a, b in zip(after, before)]

    def test_two_networks_of_different_cost(self):
        a, b = self.start(("heavy", "light"))
        seconds, samples = self.measure([self.job(LITE0, a), self.job(self.tiny, b)])
        each = samples["heavy"] / seconds["heavy"], samples["light"] / seconds["light"]
        self.assertGreater(each[1], 3 * each[0], "the networks cost nearly the same: this shows nothing")
        self.assertGreaterEqual(jain(list(seconds.values())), JAIN, seconds)

    def test_a_tenant_with_more_jobs_has_no_more(self):
        a, b = self.start(("one", "three"))
        seconds, _ = self.measure([self.job(LITE0, a), *(self.job(LITE0, b) for _ in range(3))])
        self.assertGreaterEqual(jain(list(seconds.values())), JAIN, seconds)


if __name__ == "__main__":
    unittest.main()
