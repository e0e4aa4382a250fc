"""A node with a GPU, over a driver and a cuDNN that compute nothing (tests/fake_cuda): bytes of photos go in, rows of each wire dtype
come out, jobs end well. What is in the features is not looked at: nothing has computed them."""

import json
import os
import re
import tempfile
import unittest

from hapi.node import Failed
from harness import DATA, HAPI_RT, LITE0, PROGRAMS, hapi, node, run, tar_jpegs, tiny_model, train_json, write_folders
from test_transport import Peer

FAKE = os.path.join(PROGRAMS, "tests", "fake_cuda")


@unittest.skipUnless(os.path.exists(os.path.join(FAKE, "libcudnn.so.9")), "this build has no cuDNN")
class Gpu(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        # Three engines for each operation graph, the second one the fastest.
        self.env = {**os.environ, "LD_LIBRARY_PATH": FAKE, "HAPI_CACHE": folder.name, "FAKE_CUDNN_US": "30,10,20"}

    def test_is_taken_by_itself_and_serves_each_wire_dtype(self):
        with node(DATA, "--threads", 2, "--micro-batch", 3, env=self.env) as n:
            log, sent = n.said(), {}
            for wire in ("f32", "f16", "bf16", "int8"):
                options = ("--policy", "freeze", "--epochs", 1, "--wire", wire, "--checksum")
                result = train_json(LITE0, n.address, "fashion-test", "fashion-test", *options)
                sent[wire] = result["epochs"][0]["wire_bytes"]
        self.assertIn("class=cudnn/sm_90/", log)
        self.assertNotIn("no gpu", log)
        # 1,000 vectors of 1,280: 4, 2 or 1 bytes each, int8 with a scale for each 64; records and their checksums are as many.
        self.assertEqual(sent["f32"] - sent["f16"], 1000 * 1280 * 2)
        self.assertEqual(sent["f16"], sent["bf16"])
        self.assertEqual(sent["f16"] - sent["int8"], 1000 * (1280 - 4 * 1280 // 64))

    def job(self, n, wire):
        return train_json(LITE0, n.address, "fashion-test", "fashion-test", "--policy", "freeze", "--epochs", 1, "--wire", wire)

    def test_memory_is_shared_and_what_is_kept_for_nobody_goes_first(self):
        options = ("--threads", 1, "--micro-batch", 2, "--gpu-memory")
        with node(DATA, *options, "256M", env=self.env) as n:
            self.job(n, "f32")
            with Peer(n.address) as peer:
                one = peer.stat()["gpu_memory"]
            self.job(n, "f16")
            with Peer(n.address) as peer:
                two = peer.stat()["gpu_memory"]
        self.assertEqual(one["reserved"], 256 << 20)
        self.assertGreater(one["used"], 10 << 20)
        more = two["used"] - one["used"]  # the weights are there already
        self.assertGreater(more, 1 << 20)
        # Room for one prefix and half of another: the first one goes.
        with node(DATA, *options, one["used"] + more // 2, env=self.env) as n:
            for wire in ("f32", "f16", "bf16", "f32"):
                self.job(n, wire)
            with Peer(n.address) as peer:
                self.assertEqual(peer.stat()["gpu_memory"]["used"], one["used"])
        # Room for the weights and one plan of three: one micro-batch at a time.
        with node(DATA, *options, one["used"] - more // 2, env=self.env) as n:
            self.job(n, "f32")
            self.assertRegex(n.said(), r"fewer micro-batches at once than threads could decode.* plans=[12] ")
        with node(DATA, *options, "4M", env=self.env) as n:
            with self.assertRaisesRegex(Failed, "memory"):
                self.job(n, "f32")

    def test_computes_in_f16_where_a_job_asks_for_it(self):
        options = ("--epochs", 1, "--dtype", "f16")
        with node(DATA, "--threads", 1, env=self.env) as n:
            result = train_json(LITE0, n.address, "fashion-test", "fashion-test", "--policy", "freeze", *options)
        self.assertEqual((result["dtype"], result["dtype_here"]), ("f16", "none"))
        self.assertEqual(result["epochs"][0]["images"], 1000)

    def test_without_one_f16_is_refused_by_name_and_is_f32_on_this_tier(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        data, model = os.path.join(folder.name, "data"), tiny_model(os.path.join(folder.name, "tiny.onnx"))
        write_folders(tar_jpegs(os.path.join(DATA, "fashion-test"), 20), os.path.join(data, "set"))
        common = ("train", model, "--dataset", "set", "--test-dataset", "set", "--epochs", 1, "--dtype", "f16")
        with node(data, "--backend", "onednn") as n:
            there = hapi(*common, "--nodes", n.address, "--policy", "freeze")
            here = hapi(*common, "--nodes", n.address, "--policy", "none")
        self.assertEqual(there.code, 1, there)
        self.assertIn(n.address, there.err)
        self.assertIn("it cannot compute in f16 (a node with a GPU can): give another --dtype", there.err)
        self.assertEqual(here.code, 0, here)
        self.assertIn("this tier computes in f32: its back end has no f16", here.out)

    def test_tuned_engines_make_a_numeric_class_of_the_folder_that_keeps_them(self):
        def tuned(n):
            return re.search(r"class=(cudnn/sm_90/[0-9.]+/tuned-[0-9a-f]{8}) ", n.said()).group(1)

        with tempfile.TemporaryDirectory() as folder, node(DATA, "--threads", 1, "--autotune", env=self.env) as first:
            self.job(first, "f32")
            with node(DATA, "--threads", 1, "--autotune", env=self.env) as same:
                self.assertEqual(tuned(same), tuned(first))
            with node(DATA, "--threads", 1, "--autotune", env={**self.env, "HAPI_CACHE": folder}) as other:
                self.assertNotEqual(tuned(other), tuned(first))
                nodes = f"{first.address},{other.address}"
                with self.assertRaisesRegex(Failed, "tuned-.*tuned-.*HAPI_CACHE"):
                    train_json(LITE0, nodes, "fashion-test", "fashion-test", "--policy", "freeze", "--epochs", 1)
            kept = os.listdir(os.path.join(self.env["HAPI_CACHE"], "cudnn"))
            self.assertIn("tuned-by", kept)
            chosen = [name for name in kept if name.endswith(".tuned.json")]
            self.assertGreater(len(chosen), 10)
            for name in chosen:
                with open(os.path.join(self.env["HAPI_CACHE"], "cudnn", name), encoding="ascii") as f:
                    self.assertEqual(json.load(f), {"engine": 1})

    def test_tuning_without_memory_is_said_once(self):
        with tempfile.TemporaryDirectory() as folder:
            data, model = os.path.join(folder, "data"), tiny_model(os.path.join(folder, "tiny.onnx"))
            write_folders(tar_jpegs(os.path.join(DATA, "fashion-test"), 20), os.path.join(data, "set"))
            with node(data, "--threads", 1, "--autotune", "--gpu-memory", "16M", env=self.env) as n:
                for wire in ("f32", "f16"):
                    train_json(model, n.address, "set", "set", "--policy", "freeze", "--epochs", 1, "--wire", wire)
                self.assertEqual(n.said().count("engines not tuned"), 1, n.said())

    def test_tuning_is_for_a_gpu(self):
        r = run(HAPI_RT, "--data", DATA, "--listen", "127.0.0.1:0", "--backend", "onednn", "--autotune")
        self.assertEqual(r.code, 1, r)
        self.assertIn("back end onednn has no engines to choose from", r.err)
        with node(DATA, "--autotune", env={**os.environ, "CUDA_VISIBLE_DEVICES": ""}) as n:  # `auto` takes what is there
            self.assertIn("class=", n.said())

    def test_bench_times_tuned_engines(self):
        command = (os.path.join(PROGRAMS, "hapi-bench"), "kernels", "--model", LITE0, "--backend", "cudnn", "--dtype", "f16")
        command += ("--micro-batch", 2, "--seconds", 0.1, "--json")
        plain, tuned = (json.loads(run(*command, *options, env=self.env).out)["class"] for options in ((), ("--autotune",)))
        self.assertRegex(tuned, f"^{re.escape(plain)}/tuned-[0-9a-f]{{8}}$")

    def test_is_left_alone_when_told(self):
        with node(DATA, "--backend", "onednn", env=self.env) as n:
            log = n.said()
        self.assertIn("class=onednn/", log)


if __name__ == "__main__":
    unittest.main()
