"""A node with a GPU, over a driver and a cuDNN that compute nothing (tests/fake_cuda): bytes of photos go in, rows of each wire dtype
come out, jobs end well. What is in the features is not looked at: nothing has computed them."""

import os
import tempfile
import unittest

from harness import DATA, LITE0, PROGRAMS, node, train_json

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

    def test_is_left_alone_when_told(self):
        with node(DATA, "--backend", "onednn", env=self.env) as n:
            log = n.said()
        self.assertIn("class=onednn/", log)


if __name__ == "__main__":
    unittest.main()
