"""A node with a GPU, over a driver and a cuDNN that compute nothing (tests/fake_cuda): bytes of photos go in, rows of each wire dtype
come out, jobs end well. What is in the features is not looked at: nothing has computed them."""

import os
import tempfile
import unittest

from hapi.node import Failed
from harness import DATA, LITE0, PROGRAMS, hapi, node, tar_jpegs, tiny_model, train_json, write_folders
from test_transport import Peer

FAKE = os.path.join(PROGRAMS, "tests", "fake_cuda")


@unittest.skipUnless(os.path.exists(os.path.join(FAKE, "libcudnn.so.9")), "this build has no cuDNN")
class Gpu(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.env = {**os.environ, "LD_LIBRARY_PATH": FAKE, "HAPI_CACHE": folder.name}

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

    def test_is_left_alone_when_told(self):
        with node(DATA, "--backend", "onednn", env=self.env) as n:
            log = n.said()
        self.assertIn("class=onednn/", log)


if __name__ == "__main__":
    unittest.main()
