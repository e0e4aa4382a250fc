"""--help, --version, exit codes, and what hapi-rt promises about starting and stopping."""

import json
import os
import re
import signal
import socket
import subprocess
import tempfile
import time
import unittest

import numpy as np

from harness import DATA, HAPI, HAPI_RT, LITE0, hapi, node, run, tiny_model, train_json

COMMANDS = ("ls", "cuts", "plan-memory", "run", "sim", "train")


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
        cases += [[HAPI, "plan-memory", LITE0, "--micro-batch", b] for b in ("0", "1,", "8x", "", "1048577")]
        cases += [[HAPI, "plan-memory", LITE0, "--dtype", "f64"], [HAPI, "plan-memory", LITE0, "--cut"]]
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
            ([HAPI, "plan-memory", "/nowhere/m.onnx"], "/nowhere/m.onnx"),
            ([HAPI, "plan-memory", LITE0, "--cut", "nonsense"], "nonsense"),
            ([HAPI, "run", "/nowhere/m.onnx", "--input", "x.npy", "--output-dir", "/tmp"], "/nowhere/m.onnx"),
            ([HAPI, "sim", "--scenario", "/nowhere/s.json"], "/nowhere/s.json"),
            ([HAPI_RT, "--data", "/nowhere", "--listen", "127.0.0.1:0"], "/nowhere"),
            ([HAPI_RT, "--data", DATA, "--listen", "127.0.0.1:0", "--config", "/nowhere/c"], "/nowhere/c"),
            ([HAPI_RT, "--data", DATA, "--listen", "127.0.0.1:0", "--key", "/nowhere/key"], "/nowhere/key"),
        ):
            with self.subTest(" ".join(os.path.basename(c) for c in case)):
                r = run(*case)
                self.assertEqual(r.code, 1, r)
                self.assertIn(word, r.err)


class Life(unittest.TestCase):
    """What a service manager and an operator are told."""

    def test_a_service_manager_is_told(self):
        with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
            s.bind(os.path.join(folder, "notify"))
            s.settimeout(10)
            with node(DATA, env={**os.environ, "NOTIFY_SOCKET": os.path.join(folder, "notify")}) as n:
                ready = s.recv(4096).decode().split("\n")
                self.assertEqual(ready, ["READY=1", f"STATUS=Serving at {n.address}"])
                before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
                n.process.send_signal(signal.SIGHUP)
                word, usec = s.recv(4096).decode().split("\n")
                self.assertEqual(word, "RELOADING=1")
                self.assertGreaterEqual(int(usec.removeprefix("MONOTONIC_USEC=")), before)
                self.assertEqual(s.recv(4096), b"READY=1")
                n.process.send_signal(signal.SIGTERM)
                self.assertEqual(s.recv(4096).decode().split("\n")[0], "STOPPING=1")

    def test_topology(self):
        r = run(HAPI_RT, "--topology", "--threads", 3)
        self.assertEqual((r.code, r.err), (0, ""))
        self.assertRegex(r.out, r"(?m)^core 0: cpu \d+, node \d+$")
        self.assertEqual(len(re.findall(r"(?m)^compute thread \d: core \d+, memory of node \d+$", r.out)), 3)


class Simulator(unittest.TestCase):
    """The scenarios of the documents, and files that are none."""

    SCENARIOS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../docs/scenarios")

    def test_one_client_takes_what_its_busiest_cores_take(self):
        r = hapi("sim", "--scenario", os.path.join(self.SCENARIOS, "one.json"), "--json")
        self.assertEqual((r.code, r.err), (0, ""), r)
        epoch = json.loads(r.out)["clients"][0]["epochs"][0]
        # Two nodes of four cores decode and compute 2,048 images, at 1 / (1 + 0.05 * 3) of a core's speed alone.
        work = 2048 * (2.5e-3 + 8e-3) / 2 / 4 * 1.15
        self.assertGreater(epoch["seconds"], work)
        self.assertLess(epoch["seconds"], work * 1.01)
        self.assertEqual((epoch["trained"], epoch["pushed"], epoch["raw"]), (2048, 2048, 0))
        self.assertEqual(epoch["bottleneck"], "storage cores")
        self.assertGreater(epoch["resources"]["storage cores"]["busy"], 0.99)

    def test_tables_say_the_same_as_json(self):
        file = os.path.join(self.SCENARIOS, "several.json")
        text, data = hapi("sim", "--scenario", file), json.loads(hapi("sim", "--scenario", file, "--json").out)
        self.assertEqual([c["name"] for c in data["clients"]], ["mixed.0", "mixed.1", "mixed.2", "mixed.3", "raw"])
        for client in data["clients"]:
            for i, epoch in enumerate(client["epochs"]):
                line = rf"(?m)^{client['name']} +{i + 1} +{epoch['seconds']:.4f} .*{epoch['bottleneck']}"
                self.assertRegex(text.out, line)
        for n in data["nodes"]:
            self.assertRegex(text.out, rf"(?m)^{n['name']} +{n['images']} ")
        self.assertEqual(sum(n["images"] for n in data["nodes"]), 9 * 2048)
        self.assertIn("switch", data)

    def test_a_thousand_clients_and_nodes_in_seconds(self):
        began = time.monotonic()
        r = hapi("sim", "--scenario", os.path.join(self.SCENARIOS, "thousand.json"), "--json")
        self.assertLess(time.monotonic() - began, 60)
        clients = json.loads(r.out)["clients"]
        self.assertEqual(len(clients), 1000)
        self.assertTrue(all(e["trained"] == 2048 for c in clients for e in c["epochs"]))

    def test_files_that_are_no_scenarios_are_refused_with_the_key(self):
        with open(os.path.join(self.SCENARIOS, "profile.json")) as f:
            profile = f.read()
        clients = '"clients": [{"profile": "p", "plan": [{"cut": 20, "wire": "f32", "micro_batch": 8}]}]'
        for broken, word in (
            ("", "no JSON"),
            ("[]", "the document must be an object"),
            ("{%s}" % clients, "profiles is missing"),
            ('{"profiles": {"p": "q.json"}, %s}' % clients, "q.json"),
            ('{"profiles": {"p": {}}, %s}' % clients, "profiles.p: cuts is missing"),
            ('{"profiles": {"p": "p.json"}, %s}' % clients.replace("20", "21"), "clients[0].plan[0].cut"),
            ('{"profiles": {"p": "p.json"}, "clients": [{"count": 0}]}', "clients[0].count"),
            ('{"profiles": {"p": "bad.json"}, %s}' % clients, "profiles.p: cuts[1].storage_s"),
        ):
            with self.subTest(word), tempfile.TemporaryDirectory() as folder:
                bad = profile.replace('"storage_s": {"1": 0.012, "8": 0.008}', '"storage_s": NaN')
                for name, text in (("p.json", profile), ("bad.json", bad), ("s.json", broken)):
                    with open(os.path.join(folder, name), "w") as f:
                        f.write(text)
                r = hapi("sim", "--scenario", os.path.join(folder, "s.json"))
                self.assertEqual((r.code, r.out), (1, ""), r)
                self.assertIn(word, r.err)
                self.assertIn("s.json", r.err)


class Programs(unittest.TestCase):
    def test_cuts_json(self):
        r = hapi("cuts", LITE0, "--json")
        self.assertEqual(r.code, 0, r)
        text = json.loads(r.out)
        self.assertIn("/_avg_pooling/GlobalAveragePool_output_0", r.out)
        self.assertTrue(text)

    def test_plan_memory_says_what_plans_take(self):
        cuts = json.loads(hapi("cuts", LITE0, "--json").out)["cuts"]
        stem, last = cuts[2]["id"], cuts[-1]["id"]
        for options, want in (
            ((), [1, 2, 4, 8, 16, 32, 64]),
            (("--micro-batch", "3,8", "--from", stem, "--cut", last), [3, 8]),
            (("--micro-batch", "5", "--backend", "ref", "--dtype", "f32", "--cut", stem), [5]),
        ):
            with self.subTest(options):
                r = hapi("plan-memory", LITE0, "--json", "--check", *options)
                self.assertEqual(r.code, 0, r)
                got = json.loads(r.out)
                self.assertEqual([p["micro_batch"] for p in got["plans"]], want)
                self.assertEqual((got["model"], got["dtype"]), (LITE0, "f32"))
                if "--cut" in options:
                    self.assertEqual(got["cut"], options[-1])
                for p in got["plans"]:
                    self.assertEqual(p["total"], p["weights"] + p["arena"] + p["scratch"])
                    self.assertEqual(p["actual"], {k: p[k] for k in ("weights", "arena", "scratch")})
                    self.assertGreater(p["weights"], 0)
                table = hapi("plan-memory", LITE0, *options)
                self.assertEqual(len(table.out.splitlines()), len(want) + 2, table)

    def test_run_between_cuts_gives_what_the_whole_gives(self):
        from hapi import models

        x = models.photo_batch(models.transform_of("lite0"), 2, seed=12)
        cuts = json.loads(hapi("cuts", LITE0, "--all", "--json").out)["cuts"]
        some = [next(c for c in cuts if len(c["tensors"]) == n) for n in (1, 2)]
        with tempfile.TemporaryDirectory() as d:
            np.save(f"{d}/x.npy", x.numpy())
            r = hapi("run", LITE0, "--input", f"{d}/x.npy", "--output-dir", f"{d}/whole")
            self.assertEqual(r.code, 0, r)
            for i, cut in enumerate(some):
                with self.subTest(cut["name"]):
                    out = f"{d}/{i}"
                    r = hapi("run", LITE0, "--input", f"{d}/x.npy", "--to", cut["id"], "--output-dir", out)
                    self.assertEqual(r.code, 0, r)
                    files = [f"{out}/output_{k}.npy" for k in range(len(cut["tensors"]))]
                    for file, t in zip(files, cut["tensors"]):
                        self.assertEqual(list(np.load(file).shape), [2, *t["shape"][1:]])
                    back = f"{out}/back"
                    r = hapi("run", LITE0, "--input", *files, "--from", cut["id"], "--output-dir", back)
                    self.assertEqual(r.code, 0, r)
                    whole, parts = (np.load(f"{f}/output_0.npy") for f in (f"{d}/whole", back))
                    self.assertTrue(np.array_equal(whole, parts))
                    r = hapi("run", LITE0, "--input", files[0], files[0], files[0], "--from", cut["id"], "--output-dir", back)
                    self.assertEqual(r.code, 1, r)
                    self.assertIn("3 files", r.err)
            r = hapi("run", LITE0, "--input", f"{d}/x.npy", "--to", "nonsense", "--output-dir", back)
            self.assertEqual(r.code, 1, r)
            self.assertIn("nearest", r.err)

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
