"""hapi-bench kernels: what it prints is complete and consistent."""

import json
import os
import subprocess
import unittest

from harness import MODELS, PROGRAMS, run

BENCH = os.path.join(PROGRAMS, "hapi-bench")
MODEL = os.path.join(MODELS, "lite0.onnx")
KEYS = {
    *("program", "version", "model", "dtype", "class", "stock", "micro_batch", "parts", "threads", "runs", "images_per_s"),
    *("ms_per_image", "ms_per_image_min", "ms_per_image_p99", "plan_ms", "first_result_ms", "memory"),
}


class Kernels(unittest.TestCase):
    def test_report_is_consistent(self):
        r = run(BENCH, "kernels", "--model", MODEL, "--micro-batch", "4", "--seconds", "0.1", "--bare", "--layers", "--json")
        self.assertEqual(r.code, 0, r)
        report = json.loads(r.out)
        self.assertEqual(set(report), KEYS | {"bare_ms_per_image", "whole_to_bare", "layers"})
        self.assertEqual(set(report["memory"]), {"weights", "arena", "scratch"})
        self.assertAlmostEqual(report["images_per_s"] * report["ms_per_image"], 1000, delta=0.01)
        self.assertLessEqual(report["ms_per_image_min"], report["ms_per_image"])
        self.assertLessEqual(report["ms_per_image"], report["ms_per_image_p99"])
        self.assertGreater(report["first_result_ms"], report["plan_ms"])
        self.assertGreater(len(report["layers"]), 40)
        # Lite0 has 0.8 GFLOP an image, of which a report knows each convolution and product.
        flops = sum(layer["flops"] for layer in report["layers"]) * report["parts"] / 4
        self.assertTrue(7e8 < flops < 9e8, flops)
        # The kernels of a run are the run: a generous bound, since other work shares the machine.
        within = sum(layer["ms_per_image"] for layer in report["layers"])
        self.assertTrue(0.4 < within / report["ms_per_image"] < 2.5, (within, report["ms_per_image"]))

    def test_paced_answers_each_line(self):
        command = [BENCH, "kernels", "--model", MODEL, "--seconds", "0", "--paced", "--json"]
        r = subprocess.run(command, input="2\n\n3\n", capture_output=True, text=True, timeout=60)
        self.assertEqual(r.returncode, 0, r.stderr)
        lines = r.stdout.splitlines()
        self.assertEqual(lines[0], "ready")
        self.assertEqual([json.loads(line)["micro_batch"] for line in lines[1:]], [2, 2, 3])

    def test_wrong_calls(self):
        for arguments, code in (
            (("--help",), 0),
            ((), 2),
            (("--model", MODEL, "more"), 2),
            (("--model", MODEL, "--micro-batch", "0"), 2),
            (("--model", MODEL, "--seconds", "x"), 2),
            (("--model", MODEL, "--nonsense"), 2),
            (("--model", "nowhere.onnx"), 1),
            (("--model", MODEL, "--dtype", "f64"), 1),
        ):
            r = run(BENCH, "kernels", *arguments)
            self.assertEqual(r.code, code, (arguments, r))
            self.assertEqual(bool(r.err), code != 0, arguments)
