"""What a node computed it does not compute again: the same bits from memory, from disk and after a crash, never stale."""

import glob
import json
import os
import secrets
import subprocess
import tempfile
import time
import unittest

import numpy as np

from harness import DATA, HAPI, HAPI_RT, LITE0, Dump, hapi, node, run, tar_jpegs, train_json, write_folders

SET, SAMPLES = "photos", 96
TEST, TEST_SAMPLES = "others", 16
ALL = SAMPLES + TEST_SAMPLES
MIDDLE = "/_blocks.5/_project_conv/Conv_output_0"  # 62,720 bytes a sample
LOOKED_S = 5  # an object that was looked at so long ago is looked at again


class Remember(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = folder.name
        self.data = os.path.join(self.folder, "data")
        self.cache = os.path.join(self.folder, "cache")
        photos = tar_jpegs(os.path.join(DATA, "photos-train"), ALL + 1)
        self.paths = write_folders(photos[:SAMPLES], os.path.join(self.data, SET))
        write_folders(photos[SAMPLES:ALL], os.path.join(self.data, TEST))
        self.other = photos[ALL][0]
        self.jobs = 0

    def start(self, *options, memory=None, disk=None):
        if memory:
            options += ("--cache-memory", memory)
        if disk:
            options += ("--cache", self.cache, "--cache-disk", disk)
        started = node(self.data, *options)
        self.addCleanup(lambda: started.running() and started.stop())
        return started

    def job(self, at, *options):
        """All of a job's features, as float32 bits, in the dataset's order."""
        self.jobs += 1
        prefix = os.path.join(self.folder, f"job{self.jobs}")
        how = ("--epochs", 1, "--batch", 32, "--dump-features", prefix, *options)
        self.report = train_json(LITE0, at.address, SET, TEST, *how)
        dump = Dump(prefix)
        return np.concatenate([dump.train, dump.test]).view(np.uint32)

    def look(self, at, *options):
        r = hapi("stat", at.address, "--once", "--json", "--interval", "0.05", *options)
        self.assertEqual(r.code, 0, r)
        return json.loads(r.out)["nodes"][0]["counters"]

    def features(self, at, *options):
        return self.look(at, *options)["features"]

    def assert_same(self, a, b):
        np.testing.assert_array_equal(a, b)

    def test_from_memory(self):
        with self.start() as plain:
            truth = self.job(plain)
            self.assertNotIn("features", self.look(plain))
        at = self.start(memory="16M")
        self.assert_same(self.job(at), truth)
        first = self.look(at)
        kept = first["features"]
        self.assertEqual((kept["kept"], kept["memory_rows"], kept["disk_rows"], kept["hits"]), (ALL, ALL, 0, 0))
        self.assert_same(self.job(at), truth)
        second = self.look(at)
        self.assertEqual(second["features"]["hits"], ALL)
        self.assertEqual(second["read_bytes"], first["read_bytes"])
        self.assertEqual(second["stage_s"]["compute"], first["stage_s"]["compute"])
        self.assertEqual(second["samples"], 2 * ALL)

    def test_from_disk_after_the_end_and_after_a_crash(self):
        at = self.start(disk="16M")
        truth = self.job(at)
        self.loaded(at)
        self.assert_same(self.job(at), truth)
        self.assertEqual(self.features(at)["hits"], ALL)
        at.stop()
        at = self.start(disk="16M")
        self.assert_same(self.job(at), truth)
        self.loaded(at)
        before = self.features(at)["hits"]
        self.assert_same(self.job(at), truth)
        self.assertEqual(self.features(at)["hits"], before + ALL)
        at.kill()
        at = self.start(memory="8M", disk="16M")
        self.assert_same(self.job(at), truth)
        self.loaded(at)
        self.assertEqual(self.features(at)["torn"], 0)
        self.assert_same(self.job(at), truth)
        self.assertGreaterEqual(self.features(at)["hits"], ALL)

    def loaded(self, at):
        """What an earlier run left is read through beside the first job; what is computed is written beside it, too."""
        until = time.monotonic() + 20
        while True:
            f = self.features(at)
            if f["disk_rows"] + f["memory_rows"] + f["torn"] >= ALL:
                return
            self.assertLess(time.monotonic(), until, f)
            time.sleep(0.05)

    def test_what_a_crash_tore_is_computed(self):
        at = self.start(disk="16M")
        truth = self.job(at)
        at.kill()
        rows = glob.glob(os.path.join(self.cache, "features", "*.rows"))
        logs = glob.glob(os.path.join(self.cache, "features", "*.log"))
        self.assertEqual((len(rows), len(logs)), (1, 1))
        stride = os.path.getsize(rows[0]) // ALL
        with open(rows[0], "r+b") as f:
            for slot in range(0, ALL, 7):
                f.seek(slot * stride + 100)
                f.write(b"\xff")
            f.truncate(os.path.getsize(rows[0]) - stride // 2)
        with open(logs[0], "ab") as f:
            f.write(b"half an entry")
        at = self.start(disk="16M")
        self.assert_same(self.job(at), truth)
        self.loaded(at)
        self.assertGreaterEqual(self.features(at)["torn"], len(range(0, ALL, 7)))
        self.assert_same(self.job(at), truth)
        self.assert_same(self.job(at), truth)
        self.assertEqual(self.features(at)["disk_rows"], ALL)

    def test_files_that_are_no_sets_go(self):
        kept = os.path.join(self.cache, "features")
        os.makedirs(kept)
        for name in ("0" * 32 + ".log", "0" * 32 + ".rows", "a.log", "b.rows"):
            with open(os.path.join(kept, name), "wb") as f:
                f.write(secrets.token_bytes(5000))
        at = self.start(disk="16M")
        self.assertEqual(os.listdir(kept), [])
        self.assert_same(self.job(at), self.job(at))

    def test_partly(self):
        """Where memory has room for some rows, disk for others, and neither for the rest."""
        cut = ("--split", MIDDLE)
        with self.start() as plain:
            truth = self.job(plain, *cut)
        at = self.start("--send-area", "4M", memory="4M", disk="1M")
        for _ in range(3):
            self.assert_same(self.job(at, *cut), truth)
        f = self.features(at)
        self.assertTrue(0 < f["memory_rows"] < ALL and 0 < f["disk_rows"] < ALL, f)
        self.assertLess(f["memory_rows"] + f["disk_rows"], ALL)
        self.assertLessEqual(f["memory_bytes"], f["memory_budget"])
        self.assertLessEqual(f["disk_bytes"], 1 << 20)

    def test_every_wire_and_cut(self):
        at = self.start(memory="64M")
        calm = self.start()
        for options in (("--wire", "f16"), ("--wire", "int8"), ("--split", MIDDLE), ("--checksum",)):
            with self.subTest(options):
                truth = self.job(calm, *options)
                before = self.features(at)["hits"]
                self.assert_same(self.job(at, *options), truth)
                self.assert_same(self.job(at, *options), truth)
                self.assertGreaterEqual(self.features(at)["hits"], before + ALL)

    def test_a_profile_is_of_what_is_computed(self):
        """Though all of it is kept; and it says how much a node keeps."""
        at = self.start(memory="16M", disk="3M")
        self.job(at)
        self.job(at)
        before = self.features(at)
        command = ("profile", LITE0, "--nodes", at.address, "--dataset", SET, "--micro-batch", "1,8", "--seconds", "3")
        r = hapi(*command, "--fresh", "--quiet", "--json", "-")
        self.assertEqual(r.code, 0, r)
        profile = json.loads(r.out)
        self.assertEqual(profile["storage_cache"], 19 << 20)
        took = profile["cuts"][-1]["storage_s"]
        self.assertGreater(took["8"] if isinstance(took, dict) else took, 2e-4)
        after = self.features(at)
        self.assertEqual((after["hits"], after["kept"]), (before["hits"], before["kept"]))

    def test_raw_images_are_not_kept(self):
        at = self.start(memory="16M")
        self.assert_same(self.job(at, "--policy", "none"), self.job(at, "--policy", "none"))
        self.assertEqual(self.features(at)["kept"], 0)

    def test_an_object_that_changed_between_runs(self):
        at = self.start(disk="16M")
        truth = self.job(at)
        at.stop()
        self.replace(self.paths[5])
        at = self.start(disk="16M")
        at_first = self.job(at)
        self.loaded(at)
        self.job(at)
        before = self.features(at)
        now = self.job(at)
        self.assertEqual(self.features(at)["hits"] - before["hits"], ALL)
        with self.start() as plain:
            self.assert_same(now, self.job(plain))
        self.assert_same(now, at_first)
        differ = np.flatnonzero((now != truth).any(axis=1))
        self.assertEqual(differ.tolist(), [sorted(self.paths).index(self.paths[5])])

    def replace(self, path):
        with open(path + ".new", "wb") as f:
            f.write(self.other)
        os.rename(path + ".new", path)

    def test_an_object_that_changes_under_a_job(self):
        """What is kept of it is not served for long: the job hears of it as it would without."""
        at = self.start(memory="16M")
        self.job(at)
        where = ("--nodes", at.address, "--dataset", SET, "--test-dataset", TEST)
        how = ("--keep", "0", "--epochs", "1000000", "--on-bad", "fail", "--quiet")
        job = subprocess.Popen([HAPI, "train", LITE0, *where, *how], stderr=subprocess.PIPE, text=True)
        self.addCleanup(job.stderr.close)
        self.addCleanup(job.wait)
        self.addCleanup(job.kill)
        until = time.monotonic() + 20
        while self.features(at)["hits"] < 2 * ALL:
            self.assertLess(time.monotonic(), until)
        changed = time.monotonic()
        self.replace(self.paths[5])
        self.assertEqual(job.wait(timeout=30), 1)
        self.assertLess(time.monotonic() - changed, LOOKED_S + 5)
        self.assertIn(os.path.basename(self.paths[5]), job.stderr.read())

    def test_tenants_do_not_see_each_others(self):
        keys = [os.path.join(self.folder, name) for name in ("ann", "bob", "both")]
        texts = [f"{os.path.basename(k)}:{secrets.token_hex(32)}\n" for k in keys[:2]]
        for path, text in zip(keys, (*texts, "".join(texts))):
            with open(path, "w", encoding="ascii") as f:
                f.write(text)
            os.chmod(path, 0o600)
        at = self.start("--key", keys[2], memory="16M")
        truth = self.job(at, "--key", keys[0])
        self.assert_same(self.job(at, "--key", keys[1]), truth)
        self.assertEqual(self.features(at, "--key", keys[0])["hits"], 0)
        self.assert_same(self.job(at, "--key", keys[1]), truth)
        self.assertEqual(self.features(at, "--key", keys[0])["hits"], ALL)

    def test_a_disk_that_cannot_be_read(self):
        at = self.start(disk="16M")
        truth = self.job(at)
        rows = glob.glob(os.path.join(self.cache, "features", "*.rows"))[0]
        os.truncate(rows, 0)
        self.assert_same(self.job(at), truth)
        f = self.features(at)
        self.assertGreater(f["errors"], 0)
        self.assertIn("features are not kept there any more", at.said())

    def test_less_is_kept_when_the_budget_shrank(self):
        at = self.start(disk="16M")
        truth = self.job(at)
        self.job(at, "--split", MIDDLE)
        at.stop()
        at = self.start(disk="1M")
        self.assertLessEqual(self.features(at)["disk_bytes"], 1 << 20)
        self.assert_same(self.job(at), truth)

    def test_refusals(self):
        r = run(HAPI_RT, "--data", self.data, "--listen", "127.0.0.1:0", "--cache-disk", "1M")
        self.assertEqual(r.code, 1, r)
        self.assertIn("--cache-disk needs a folder", r.err)
        r = run(HAPI_RT, "--data", self.data, "--listen", "127.0.0.1:0", "--cache-memory", "1M")
        self.assertEqual(r.code, 1, r)
        self.assertIn("1048576 bytes hold nothing: less than --send-area, 8388608", r.err)
        self.start(disk="1M")
        r = run(HAPI_RT, "--data", self.data, "--listen", "127.0.0.1:0", "--cache-disk", "1M", "--cache", self.cache)
        self.assertEqual(r.code, 1, r)
        self.assertIn("another process keeps its features", r.err)


if __name__ == "__main__":
    unittest.main()
