"""`hapi-rt --metrics`: what the node did, for Prometheus, and whether it is well; `hapi stat`, the same for people."""

import collections
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import tempfile
import time
import unittest
import urllib.error
import urllib.request

from harness import DATA, HAPI, LITE0, node, tar_jpegs, train_json, write_folders

SET, SAMPLES, MICRO_BATCH = "photos", 24, 8
MANY, MANY_SAMPLES = "many", 200
IDENTITY = 'a"quoted"\\one'
LINE = re.compile(r'hapi_([a-z_]+)(?:\{((?:[a-z]+="(?:[^"\\]|\\.)*",?)+)\})? (\S+)')
STAGES = ("queue", "read", "wait", "decode", "compute", "convert", "send")


def get(url, **kw):
    with urllib.request.urlopen(urllib.request.Request(url, **kw), timeout=5) as r:
        return r.status, r.headers["Content-Type"], r.read().decode()


class Metrics(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        data = os.path.join(folder.name, "data")
        photos = tar_jpegs(os.path.join(DATA, "photos-train"), MANY_SAMPLES)
        write_folders(photos[:SAMPLES], os.path.join(data, SET))
        write_folders(photos, os.path.join(data, MANY))
        self.key = os.path.join(folder.name, "key")
        with open(self.key, "w", encoding="utf-8") as f:
            f.write(f"{IDENTITY}:{secrets.token_hex(32)}\n")
        os.chmod(self.key, 0o600)
        options = ("--threads", 1, "--micro-batch", MICRO_BATCH, "--key", self.key, "--metrics", "127.0.0.1:0")
        self.node = node(data, *options)
        self.addCleanup(self.node.stop)
        self.url = re.search(r"url=(\S+)", self.node.said()).group(1)
        self.health = self.url.replace("/metrics", "/healthz")

    def scrape(self):
        """By (name, labels); every line has a form that Prometheus reads, and each name its type first."""
        status, kind, text = get(self.url)
        self.assertEqual((status, kind.split(";")[0]), (200, "text/plain"))
        out, types = {}, {}
        for line in text.splitlines():
            if line.startswith("# TYPE "):
                _, _, name, types[name] = line.split()
            elif not line.startswith("#"):
                name, labels, value = LINE.fullmatch(line).groups()
                base = re.sub(r"_(bucket|sum|count)$", "", name) if f"hapi_{name}" not in types else name
                self.assertIn(f"hapi_{base}", types, line)
                self.assertNotIn((name, labels), out)
                out[name, labels] = float(value)
        return out

    def test_a_job_is_counted(self):
        before = self.scrape()
        report = train_json(LITE0, self.node.address, SET, SET, "--epochs", 1, "--batch", SAMPLES, "--key", self.key)
        after = self.scrape()
        tenant = 'tenant="' + IDENTITY.replace("\\", "\\\\").replace('"', '\\"') + '"'
        for name in ("samples_total", "tenant_samples_total"):
            labels = tenant if name.startswith("tenant") else None
            self.assertEqual(after[name, labels] - before.get((name, labels), 0), 2 * SAMPLES)
        wire = report["epochs"][0]["wire_bytes"] + report["test"]["wire_bytes"]
        self.assertEqual(after["wire_bytes_total", None], wire)
        self.assertEqual(after["tenant_wire_bytes_total", tenant], wire)
        busy = after["compute_busy_seconds_total", None]
        self.assertGreater(busy, 0)
        self.assertAlmostEqual(after["tenant_compute_seconds_total", tenant], busy, places=6)
        stages = collections.Counter()
        for stage in STAGES:
            self.assertEqual(after["stage_seconds_count", f'stage="{stage}"'], after["parts_total", None], stage)
            buckets = [v for (name, labels), v in after.items() if name == "stage_seconds_bucket" and f'"{stage}"' in labels]
            self.assertEqual(buckets, sorted(buckets))
            self.assertEqual(buckets[-1], after["parts_total", None])
            stages[stage] = after["stage_seconds_sum", f'stage="{stage}"']
        self.assertAlmostEqual(stages["decode"] + stages["compute"] + stages["convert"], busy, places=6)
        self.assertEqual(after["sessions_total", None], 2)
        self.assertEqual(after["micro_batches", 'stage="free"'], 8)

    def stat(self, *options, key=None):
        command = [HAPI, "stat", *options, "--key", key or self.key, "--once", "--interval", "1"]
        return subprocess.run(command, capture_output=True, text=True, timeout=30)

    def test_stat_shows_what_goes_on(self):
        where = ("--nodes", self.node.address, "--dataset", SET, "--test-dataset", SET, "--key", self.key)
        job = ("--keep", "0", "--batch", str(SAMPLES), "--epochs", "1000", "--quiet")
        client = subprocess.Popen([HAPI, "train", LITE0, *where, *job], stderr=subprocess.DEVNULL)
        try:
            while not self.scrape()["samples_total", None]:
                self.assertIsNone(client.poll())
            r = self.stat(self.node.address, "--json")
            self.assertEqual((r.returncode, r.stderr), (0, ""))
            (seen,) = json.loads(r.stdout)["nodes"]
            self.assertEqual(seen["counters"]["clients"], 3)  # training, test, and this one
            self.assertGreater(seen["rates"]["images_per_s"], 0)
            self.assertTrue(0 < seen["rates"]["busy"] <= 1, seen["rates"])
            table = self.stat(self.node.address).stdout.splitlines()
            self.assertEqual(table[0].split()[:3], ["node", "clients", "requests"])
            self.assertEqual(table[1].split()[:2], [self.node.address, "3"])
        finally:
            client.kill()
            client.wait()

    def test_stat_says_who_does_not_answer(self):
        r = self.stat(self.node.address, "127.0.0.1:1", "--json")
        self.assertEqual(r.returncode, 1)
        self.assertRegex(r.stderr, "127.0.0.1:1")
        good, bad = json.loads(r.stdout)["nodes"]
        self.assertIn("rates", good)
        self.assertIn("error", bad)
        with open(self.key + "-of-another", "w", encoding="utf-8") as f:
            f.write(f"stranger:{secrets.token_hex(32)}\n")
        os.chmod(f.name, 0o600)
        r = self.stat(self.node.address, key=f.name)
        self.assertEqual((r.returncode, r.stdout), (1, ""))

    def test_only_two_pages_and_two_methods(self):
        for url, kw, want in (
            (self.url + "/", {}, 404),
            (self.url.replace("/metrics", "/../etc/passwd"), {}, 404),
            (self.url, {"data": b"x" * 100_000}, 405),
            (self.url, {"method": "DELETE"}, 405),
        ):
            with self.assertRaises(urllib.error.HTTPError) as e:
                get(url, **kw)
            self.assertEqual(e.exception.code, want)
            e.exception.close()
        self.assertEqual(get(self.url, method="HEAD")[2], "")

    def test_strangers_that_say_nothing_hold_nothing(self):
        """More of them than there are places: they are let go after a while, and jobs never notice."""
        host, port = re.search(r"//([^:]+):(\d+)", self.url).groups()
        idle = [socket.create_connection((host, int(port))) for _ in range(40)]
        for s in idle:
            self.addCleanup(s.close)
            s.sendall(b"GET /metrics HTTP/1.1\r\nHost:")
        train_json(LITE0, self.node.address, SET, SET, "--epochs", 1, "--batch", SAMPLES, "--key", self.key)
        end = time.monotonic() + 20
        while True:
            try:
                self.assertEqual(get(self.health)[2], "ok\n")
                break
            except OSError:
                self.assertLess(time.monotonic(), end, "nobody else is served")
                time.sleep(0.2)

    def test_a_draining_node_is_not_well(self):
        self.assertEqual(get(self.health)[0], 200)
        where = ("--nodes", self.node.address, "--dataset", MANY, "--test-dataset", MANY, "--key", self.key)
        job = ("--policy", "none", "--batch", "100", "--epochs", "1", "--quiet")
        client = subprocess.Popen([HAPI, "train", LITE0, *where, *job], stderr=subprocess.DEVNULL)
        try:
            while self.scrape()["requests", None] < 3:  # of more bytes than sockets hold
                self.assertIsNone(client.poll())
            client.send_signal(signal.SIGSTOP)
            self.node.process.send_signal(signal.SIGTERM)
            with self.assertRaises(urllib.error.HTTPError) as e:
                for _ in range(100):
                    get(self.health)
                    time.sleep(0.02)
            self.assertEqual(e.exception.code, 503)
            e.exception.close()
        finally:
            client.kill()
            client.wait()
        self.assertEqual(self.node.process.wait(20), 0)


if __name__ == "__main__":
    unittest.main()
