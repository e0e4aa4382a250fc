"""--help, --version, exit codes, and what hapi-rt promises about starting and stopping."""

import json
import os
import socket
import subprocess
import tempfile
import time
import unittest

import numpy as np

from harness import DATA, HAPI, HAPI_RT, LITE0, hapi, node, run, tiny_model, train_json

COMMANDS = ("ls", "cuts", "run", "train")


class CommandLine(unittest.TestCase):
    def test_help_and_version(self):
        for command in ([HAPI], [HAPI_RT], *([HAPI, c] for c in COMMANDS)):
            for option in ("--help", "--version"):
                with self.subTest(f"{command[1:]} {option}"):
                    r = run(*command, option)
                    self.assertEqual((r.code, r.err), (0, ""), r)
                    self.assertRegex(r.out, r"usage: hapi" if option == "--help" else r"^hapi(-rt)? \d+\.\d+\.\d+\n$")

    def test_usage_errors_exit_2_and_say_so(self):
        cases = [[HAPI], [HAPI, "nonsense"], [HAPI_RT], [HAPI_RT, "--data"], [HAPI_RT, "--nonsense"]]
        cases += [[HAPI, c] for c in COMMANDS] + [[HAPI, c, "--nonsense"] for c in COMMANDS]
        cases += [[HAPI, "train", LITE0, "--nodes", "127.0.0.1:1"]]
        common = ["--nodes", "127.0.0.1:1", "--dataset", "a", "--test-dataset", "b"]
        cases += [[HAPI, "train", LITE0, *common, "--epochs", "none"]]
        cases += [[HAPI, "train", LITE0, *common, "--policy", "sideways"]]
        for case in cases:
            with self.subTest(" ".join(os.path.basename(c) for c in case)):
                r = run(*case)
                self.assertEqual(r.code, 2, r)
                self.assertEqual(r.out, "", r)
                self.assertTrue(r.err.strip(), r)

    def test_failures_exit_1_and_name_the_cause(self):
        for case, word in (
            ([HAPI, "cuts", "/nowhere/m.onnx"], "/nowhere/m.onnx"),
            ([HAPI, "run", "/nowhere/m.onnx", "--input", "x.npy", "--output-dir", "/tmp"], "/nowhere/m.onnx"),
            ([HAPI_RT, "--data", "/nowhere", "--listen", "127.0.0.1:0"], "/nowhere"),
            ([HAPI_RT, "--data", DATA, "--listen", "127.0.0.1:0", "--config", "/nowhere/c"], "/nowhere/c"),
            ([HAPI_RT, "--data", DATA, "--listen", "127.0.0.1:0", "--key", "/nowhere/key"], "/nowhere/key"),
        ):
            with self.subTest(" ".join(os.path.basename(c) for c in case)):
                r = run(*case)
                self.assertEqual(r.code, 1, r)
                self.assertIn(word, r.err)


class Programs(unittest.TestCase):
    def test_cuts_json(self):
        r = hapi("cuts", LITE0, "--json")
        self.assertEqual(r.code, 0, r)
        text = json.loads(r.out)
        self.assertIn("/_avg_pooling/GlobalAveragePool_output_0", r.out)
        self.assertTrue(text)

    def test_run_matches_torch(self):
        import torch

        from hapi import models

        net, t = models.build("lite0", "pretrained")
        x = models.photo_batch(t, 2, seed=11)
        with torch.no_grad():
            want = net(x).numpy()
        with tempfile.TemporaryDirectory() as d:
            np.save(os.path.join(d, "x.npy"), x.numpy())
            for backend in ("onednn", "ref"):
                with self.subTest(backend):
                    out = os.path.join(d, backend)
                    r = hapi("run", LITE0, "--input", f"{d}/x.npy", "--output-dir", out, "--backend", backend)
                    self.assertEqual(r.code, 0, r)
                    got = np.load(os.path.join(out, "output_0.npy"))
                    self.assertEqual(got.shape, want.shape)
                    self.assertLess(np.linalg.norm(got - want) / np.linalg.norm(want), 1e-4)

    def test_ls_lists_datasets_samples_and_classes(self):
        with node(DATA) as n:
            r = hapi("ls", n.address, "--json")
            self.assertEqual(r.code, 0, r)
            self.assertIn("fashion-train", hapi("ls", n.address).out)
        found = {d["dataset"]: d for d in json.loads(r.out)["nodes"][0]["datasets"]}
        self.assertEqual((found["fashion-train"]["objects"], found["fashion-train"]["samples"]), (10, 2000))
        self.assertEqual(found["fashion-test"]["classes"], [str(i) for i in range(10)])
        self.assertEqual(found["photos-folders"]["samples"], 60)
        self.assertIn("chelsea", found["photos-folders"]["classes"])


class Daemon(unittest.TestCase):
    def test_little_locked_memory_is_enough(self):
        """What an ordinary user has: 8 MiB. Reads go on without registered buffers, and the log says so."""
        prefix = ("prlimit", "--memlock=8388608")
        if os.geteuid() == 0:
            prefix += ("setpriv", "--bounding-set", "-ipc_lock")
        with node(DATA, prefix=prefix) as n, tempfile.TemporaryDirectory() as folder:
            model = tiny_model(os.path.join(folder, "tiny.onnx"))
            result = train_json(model, n.address, "photos-folders", "photos-folders", "--epochs", 1)
            self.assertEqual(result["epochs"][0]["images"], 60)
            self.assertIn("without registered buffers", n.said())

    def test_ready_line_names_a_free_port_and_sigterm_exits_0(self):
        with tempfile.TemporaryDirectory() as d:
            n = node(d)
            host, port = n.address.rsplit(":", 1)
            self.assertEqual(host, "127.0.0.1")
            self.assertGreater(int(port), 0)
            socket.create_connection((host, int(port)), 5).close()
            self.assertEqual(n.stop(), 0)

    def test_sigterm_while_a_client_works_drains(self):
        with tempfile.TemporaryDirectory() as d:
            model = tiny_model(os.path.join(d, "tiny.onnx"))
            n = node(DATA)
            options = ("--nodes", n.address, "--dataset", "fashion-test", "--test-dataset", "fashion-test")
            job = subprocess.Popen(
                [HAPI, "train", model, *options, "--keep", "0", "--epochs", "1000000", "--quiet"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
            )
            time.sleep(2)
            self.assertIsNone(job.poll(), "the job should still run")
            self.assertEqual(n.stop(), 0)
            _, err = job.communicate(timeout=60)
            self.assertEqual(job.returncode, 1, err)
            self.assertIn(n.address, err.decode())

    def test_off_loopback_needs_a_key_or_insecure(self):
        for address in ("0.0.0.0:0", "[::]:0"):
            r = run(HAPI_RT, "--data", DATA, "--listen", address)
            self.assertIn(r.code, (1, 2), r)
            self.assertTrue("--insecure" in r.err and "--key" in r.err, r)
        with node(DATA, "--insecure", listen="0.0.0.0:0") as n:
            r = hapi("ls", "127.0.0.1:" + n.address.rsplit(":", 1)[1])
            self.assertEqual(r.code, 0, r)

    def test_key_admits_only_those_who_have_it(self):
        with tempfile.TemporaryDirectory() as d:
            for name, text in (("good", "me:" + "5a" * 32), ("bad", "me:" + "5b" * 32)):
                with open(os.open(f"{d}/{name}", os.O_CREAT | os.O_WRONLY, 0o600), "w") as f:
                    f.write(text + "\n")
            with node(DATA, "--key", f"{d}/good") as n:
                self.assertEqual(hapi("ls", n.address, "--key", f"{d}/good").code, 0)
                for options in ((), ("--key", f"{d}/bad")):
                    r = hapi("ls", n.address, *options)
                    self.assertEqual(r.code, 1, r)
                    self.assertLess(r.seconds, 6, r)
                    self.assertNotIn("fashion", r.out)
                self.assertEqual(hapi("ls", n.address, "--key", f"{d}/good").code, 0)


if __name__ == "__main__":
    unittest.main()
