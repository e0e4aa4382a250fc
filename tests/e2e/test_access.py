"""`hapi-rt --tenants`: each tenant sees, computes and takes what the file says; SIGHUP reads it again."""

import concurrent.futures
import json
import os
import secrets
import signal
import subprocess
import tempfile
import time
import unittest

import numpy as np

from hapi.node import Failed
from harness import DATA, HAPI, HAPI_RT, LITE0, Dump, hapi, node, run, tar_jpegs, train_json, write_folders

SAMPLES = 24
PUBLIC, PRIVATE = "public", "private"
ANN, BOB, EVE = "ann", "bob", "eve"


def write_private(path, text):
    with open(os.open(path, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600), "w", encoding="ascii") as f:
        f.write(text)


class Access(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = folder.name
        self.data = self.at("data")
        photos = tar_jpegs(os.path.join(DATA, "photos-train"), SAMPLES)
        for name in (PUBLIC, PRIVATE):
            write_folders(photos, os.path.join(self.data, name))
        self.lines = {who: f"{who}:{secrets.token_hex(32)}\n" for who in (ANN, BOB, EVE)}
        for who, line in self.lines.items():
            write_private(self.at(who), line)
        write_private(self.at("keys"), "".join(self.lines.values()))

    def at(self, name):
        return os.path.join(self.folder, name)

    def rules(self, text):
        with open(self.at("tenants"), "w", encoding="ascii") as f:
            f.write(text)

    def start(self, rules, *options):
        self.rules(rules)
        self.node = node(self.data, "--key", self.at("keys"), "--tenants", self.at("tenants"), *options)
        self.addCleanup(lambda: self.node.running() and self.node.stop())

    def ls(self, who):
        return hapi("ls", self.node.address, "--key", self.at(who), "--json")

    def sets(self, who):
        r = self.ls(who)
        self.assertEqual(r.code, 0, r)
        return sorted(d["dataset"] for d in json.loads(r.out)["nodes"][0]["datasets"])

    def job(self, who, dataset, *options):
        how = ("--epochs", 1, "--batch", SAMPLES, "--key", self.at(who), *options)
        return train_json(LITE0, self.node.address, dataset, dataset, *how)

    def refused(self, words, who, dataset, *options):
        with self.assertRaises(Failed) as e:
            self.job(who, dataset, *options)
        for word in words:
            self.assertIn(word, str(e.exception))
        return str(e.exception)

    def reload(self, said):
        before = self.log().count(said)
        self.node.process.send_signal(signal.SIGHUP)
        until = time.monotonic() + 5
        while self.log().count(said) == before:
            self.assertLess(time.monotonic(), until, self.log())
            time.sleep(0.02)

    def log(self):
        with open(self.node.log, encoding="utf-8") as f:
            return f.read()

    def test_datasets(self):
        self.start(f"{ANN} datasets=* upload=yes\n{BOB} datasets={PUBLIC} upload=yes\n")
        self.assertEqual(self.sets(ANN), [PRIVATE, PUBLIC])
        self.assertEqual(self.sets(BOB), [PUBLIC])
        self.job(ANN, PRIVATE)
        self.job(BOB, PUBLIC)
        hidden = self.refused([f"`{PRIVATE}`"], BOB, PRIVATE)
        missing = self.refused(["`nowhere`"], BOB, "nowhere")
        self.assertEqual(hidden.replace(PRIVATE, "nowhere"), missing)  # what one may not see is not there

    def test_who_is_not_listed(self):
        self.start(f"{ANN} datasets=*\n")
        self.assertEqual(self.sets(ANN), [PRIVATE, PUBLIC])
        r = self.ls(EVE)
        self.assertEqual(r.code, 1, r)
        self.assertIn("identity eve is no tenant of this node", r.err)
        self.rules(f"{ANN} datasets=*\n* datasets={PUBLIC}\n")
        self.reload("reloaded")
        self.assertEqual(self.sets(EVE), [PUBLIC])

    def test_models(self):
        self.start(f"{ANN} datasets=* upload=yes\n{BOB} datasets=* upload=yes\n{EVE} datasets=* upload=no\n")
        truth = self.at("truth")
        self.job(ANN, PUBLIC, "--dump-features", truth)
        self.refused(["eve", "upload=no"], EVE, PUBLIC)  # though ann has the same model here
        self.job(EVE, PUBLIC, "--policy", "none", "--dump-features", self.at("raw"))
        np.testing.assert_array_equal(Dump(self.at("raw")).train.view(np.uint32), Dump(truth).train.view(np.uint32))
        uploads = self.log().count('msg="model ready"')
        self.job(ANN, PUBLIC)
        self.assertEqual(self.log().count('msg="model ready"'), uploads)
        self.job(BOB, PUBLIC)  # does not find ann's
        self.assertEqual(self.log().count('msg="model ready"'), uploads + 1)
        self.rules(f"{ANN} datasets=* upload=no\n{BOB} datasets=* upload=yes\n")
        self.reload("reloaded")
        self.assertIn('msg="tenant\'s rules changed" tenant=ann', self.log())
        self.refused(["ann", "upload=no"], ANN, PUBLIC)  # though her model is here
        self.job(BOB, PUBLIC)

    def test_a_job_that_may_not_compute_any_more(self):
        self.start(f"{ANN} datasets=* upload=yes\n")
        job = self.endless(ANN)
        self.rules(f"{ANN} datasets=* upload=no\n")
        self.reload("reloaded")
        self.assertEqual(job.wait(timeout=30), 1)

    def test_many_tenants(self):
        """More than come into a table by accident: each by its own line."""
        many = {f"tenant{i}": f"tenant{i}:{i:064x}\n" for i in range(300)}
        write_private(self.at("keys"), "".join(many.values()))
        self.start("".join(f"{who} datasets={PRIVATE}\n" for who in many) + f"* datasets={PUBLIC}\n")
        for who, line in many.items():
            write_private(self.at(who), line)
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            for sets in pool.map(self.sets, many):
                self.assertEqual(sets, [PRIVATE])

    def test_what_others_do(self):
        """Counters of the node are for all; who was there last is not."""
        self.start(f"{ANN} datasets=* upload=yes\n{BOB} datasets=*\n")
        self.job(ANN, PUBLIC)
        seen = {}
        for who in (ANN, BOB):
            r = hapi("stat", self.node.address, "--key", self.at(who), "--once", "--json", "--interval", "0.05")
            seen[who] = json.loads(r.out)["nodes"][0]["counters"]
        self.assertIn("last_end", seen[ANN])
        self.assertNotIn("last_end", seen[BOB])

    def test_memory(self):
        self.start(f"{ANN} datasets=* upload=yes memory=8M\n{BOB} datasets=* upload=yes memory=64M\n")
        self.refused(["MiB", "memory="], ANN, PUBLIC)
        self.job(BOB, PUBLIC)

    def test_sessions_and_requests(self):
        self.start(f"{ANN} datasets=* upload=yes sessions=1 requests=1\n{BOB} datasets=* upload=yes requests=1\n")
        self.refused(["tenant ann has its most clients (sessions=1)"], ANN, PUBLIC)  # a job has two
        self.assertEqual(self.sets(ANN), [PRIVATE, PUBLIC])
        self.assertEqual(self.job(BOB, PUBLIC)["bad_samples"], 0)

    def test_rate(self):
        self.start(f"{ANN} datasets=* upload=yes rate=1M\n{BOB} datasets=* upload=yes\n")
        raw = sum(os.path.getsize(os.path.join(at, f)) for at, _, files in os.walk(os.path.join(self.data, PUBLIC)) for f in files)
        took = {}
        for who in (BOB, ANN):
            began = time.monotonic()
            self.job(who, PUBLIC, "--policy", "none")
            took[who] = time.monotonic() - began
        self.assertGreater(took[ANN], took[BOB] + 0.7 * (2 * raw / (1 << 20) - 1))
        self.assertLess(took[ANN], took[BOB] + 2 * raw / (1 << 20) + 5)

    def test_what_ends(self):
        """Keys and rules that go: who is connected is told so; a file that is wrong changes nothing."""
        self.start(f"{ANN} datasets=* upload=yes\n{BOB} datasets=* upload=yes\n")
        self.rules(f"{ANN} datasets=* colour=red\n")
        self.reload("not reloaded")
        self.assertIn("tenants:1: no option `colour`", self.log())
        self.assertEqual(self.sets(BOB), [PRIVATE, PUBLIC])
        write_private(self.at("keys"), self.lines[ANN] + self.lines[BOB] + "nonsense\n")
        self.reload("not reloaded")
        self.assertEqual(self.sets(BOB), [PRIVATE, PUBLIC])
        self.rules(f"{ANN} datasets=* upload=yes\n{BOB} datasets=* upload=yes\n")
        write_private(self.at("keys"), self.lines[ANN])
        self.reload("reloaded")
        self.assertEqual(self.ls(BOB).code, 1)
        self.assertEqual(self.sets(ANN), [PRIVATE, PUBLIC])
        self.rules(f"{BOB} datasets=*\n")
        self.reload("reloaded")
        r = self.ls(ANN)
        self.assertIn("identity ann is no tenant", r.err)

    def test_a_job_whose_key_goes(self):
        self.start("* datasets=* upload=yes\n")
        job = self.endless(BOB)
        write_private(self.at("keys"), self.lines[ANN])
        self.reload("reloaded")
        self.assertEqual(job.wait(timeout=30), 1)
        self.assertIn("client's access has ended", self.log())

    def endless(self, who):
        """A job that is under way and would never end."""
        where = ("--nodes", self.node.address, "--dataset", PUBLIC, "--test-dataset", PUBLIC, "--key", self.at(who))
        command = [HAPI, "train", LITE0, *where, "--keep", "0", "--epochs", "1000000", "--quiet"]
        job = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        self.addCleanup(job.stderr.close)
        self.addCleanup(job.wait)
        self.addCleanup(job.kill)
        until = time.monotonic() + 20
        while self.log().count(f"identity={who}") < 2:
            self.assertLess(time.monotonic(), until, self.log())
            time.sleep(0.05)
        time.sleep(0.5)
        return job

    def test_files_that_are_wrong(self):
        self.rules(f"{ANN} datasets=*\n{ANN} datasets=*\n")
        r = run(HAPI_RT, "--data", self.data, "--listen", "127.0.0.1:0", "--tenants", self.at("tenants"))
        self.assertEqual(r.code, 1, r)
        self.assertIn("tenants:2: ann is there already", r.err)

    def test_without_keys(self):
        """On loopback without keys everybody is `-`, and `*` stands for that."""
        self.rules(f"* datasets={PUBLIC} upload=yes\n")
        with node(self.data, "--tenants", self.at("tenants")) as n:
            r = hapi("ls", n.address, "--json")
            self.assertEqual([d["dataset"] for d in json.loads(r.out)["nodes"][0]["datasets"]], [PUBLIC])


if __name__ == "__main__":
    unittest.main()
