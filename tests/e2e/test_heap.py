"""No heap call of ours on the data path after start; what libraries allocate there does not pile up."""

import os
import re
import signal
import subprocess
import tempfile
import time
import unittest

from harness import HAPI, HAPI_RT, PROGRAMS, Node, tar_jpegs, tiny_model, write_folders, DATA

MICRO_BATCHES = 10_000
SAMPLES = 1000
SHIM = next(
    (os.path.join(d, "libheapcount.so") for d in (os.path.join(PROGRAMS, "tests"), PROGRAMS)
     if os.path.exists(os.path.join(d, "libheapcount.so"))),
    None,
)


def counts(pid, path, n):
    """The n-th line that the shim wrote, asked for by a signal."""
    os.kill(pid, signal.SIGUSR1)
    for _ in range(100):
        time.sleep(0.02)
        if os.path.exists(path):
            with open(path, encoding="ascii") as f:
                lines = f.read().splitlines()
            if len(lines) >= n:
                return {k: int(v) for k, v in re.findall(r"(\w+)=(\d+)", lines[n - 1])}
    raise TimeoutError(f"{path} has no line {n}")


@unittest.skipUnless(SHIM, "built without tests, or under a sanitizer: libheapcount.so is not there")
class Heap(unittest.TestCase):
    def test_ten_thousand_micro_batches(self):
        with tempfile.TemporaryDirectory() as folder:
            model = tiny_model(os.path.join(folder, "tiny.onnx"))
            data = os.path.join(folder, "data")
            write_folders(tar_jpegs(os.path.join(DATA, "fashion-test"), SAMPLES), os.path.join(data, "set"))
            os.makedirs(os.path.join(data, "one"))
            write_folders(tar_jpegs(os.path.join(DATA, "fashion-test"), 40), os.path.join(data, "one"))
            for policy in ("freeze", "none"):
                with self.subTest(policy):
                    self.job(folder, model, data, policy)

    def job(self, folder, model, data, policy):
        order = os.path.join(folder, f"order-{policy}")
        paths = {who: os.path.join(folder, f"{who}-{policy}") for who in ("node", "client")}
        env = {who: {**os.environ, "LD_PRELOAD": SHIM, "HAPI_HEAPCOUNT": p} for who, p in paths.items()}
        epochs = MICRO_BATCHES // SAMPLES + 4
        with Node(HAPI_RT, data, "--micro-batch", "1", env=env["node"]) as node:
            command = [HAPI, "train", model, "--nodes", node.address, "--dataset", "set", "--test-dataset", "one"]
            command += ["--epochs", epochs, "--keep", "0", "--policy", policy, "--quiet", "--dump-order", order]
            client = subprocess.Popen([str(c) for c in command], env=env["client"])
            try:
                self.measure(client, node.process.pid, paths, order)
            finally:
                client.kill()
                client.wait()

    def measure(self, client, node, paths, order):
        self.wait_for(order, 2 * SAMPLES, client)
        before = [counts(p, paths[w], 1) for p, w in ((node, "node"), (client.pid, "client"))]
        self.wait_for(order, 2 * SAMPLES + MICRO_BATCHES, client)
        after = [counts(p, paths[w], 2) for p, w in ((node, "node"), (client.pid, "client"))]
        for who, a, b in zip(("node", "client"), before, after):
            ours = b["ours"] - a["ours"]
            live = (b["library"] - b["library_freed"]) - (a["library"] - a["library_freed"])
            print(f"{who}: {ours} heap calls of ours, {b['library'] - a['library']} of libraries, {live:+d} live")
            self.assertEqual(ours, 0, f"heap calls of ours in the {who} over {MICRO_BATCHES} micro-batches")
            self.assertLess(abs(live), 100, f"live library allocations in the {who} grow")

    def wait_for(self, path, lines, client):
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            self.assertIsNone(client.poll(), "hapi train ended early")
            if os.path.exists(path):
                with open(path, "rb") as f:
                    if f.read().count(b"\n") >= lines:
                        return
            time.sleep(0.1)
        self.fail(f"{lines} samples did not arrive in two minutes")


if __name__ == "__main__":
    unittest.main()
