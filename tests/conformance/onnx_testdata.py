#!/usr/bin/python3
"""Runs ONNX's own test data (Debian's libonnx-testdata) through `hapi run` on every back end.

    onnx_testdata.py --hapi BUILD/hapi [--backend ref --backend onednn] [--backend cudnn] [--only SUBSTRING] [--verbose]

A case runs when all its ops are in kernels/ops.def.h and its tensors have a dtype that HAPI has. Numbers are
compared with rtol 1e-3, atol 1e-5; integers and bools exactly. Exit 1 on a wrong number, on a case that HAPI
refused without being expected to, or when fewer cases of a folder pass than FLOOR; 77 where the data is not installed.
"""
import argparse
import collections
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
from onnx import numpy_helper

HERE = os.path.dirname(os.path.abspath(__file__))
FOLDERS = ("node", "pytorch-converted", "pytorch-operator")
# Cases that pass on each back end, of each folder; a lower count means that something that worked no longer does.
FLOOR = {"node": 641, "pytorch-converted": 82, "pytorch-operator": 35}
# What HAPI states that it does not do; any other refusal is a failure.
REFUSALS = {
    "gpu": re.compile(r"on a GPU: |edge of a GPU's plan|no kernel for node|no engine of"),
    "training": re.compile(r"\((BatchNormalization|Dropout)\): .*(training|output 1 is used)"),
}


def ops_known():
    text = open(os.path.join(HERE, "..", "..", "kernels", "ops.def.h")).read()
    return set(re.findall(r'X\(\w+, "(\w+)"', text))


def cases():
    try:
        listing = subprocess.run(["dpkg", "-L", "libonnx-testdata"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        print("skipped: libonnx-testdata is not installed (apt install libonnx-testdata)")
        sys.exit(77)
    for line in sorted(listing.stdout.split()):
        parts = line.split("/")
        if line.endswith("/model.onnx") and parts[-3] in FOLDERS:
            yield "/".join(parts[-3:-1]), os.path.dirname(line)


def dtypes_known(graph):
    # bfloat16 (16) is missing: NumPy has none, and the files hold its bits as another dtype.
    known = {1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13}
    for v in list(graph.input) + list(graph.output):
        if v.type.WhichOneof("value") != "tensor_type":
            return "input or output is no tensor"
        if v.type.tensor_type.elem_type not in known:
            return "dtype " + onnx.TensorProto.DataType.Name(v.type.tensor_type.elem_type)
    return None


def ops_of(graph):
    for n in graph.node:
        yield n.domain, n.op_type
        for a in n.attribute:
            if a.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS):
                yield "", "(subgraph)"


def why_not(model, known):
    for domain, op in ops_of(model.graph):
        if domain not in ("", "ai.onnx") or op not in known:
            return "op not supported: " + (domain + "." if domain else "") + op
    return dtypes_known(model.graph)


def compare(want_path, got_path):
    t = onnx.TensorProto()
    t.ParseFromString(open(want_path, "rb").read())
    want, got = numpy_helper.to_array(t), np.load(got_path)
    if want.shape != got.shape:
        return "shape %s, expected %s" % (got.shape, want.shape)
    if want.dtype.kind in "biu":
        return None if np.array_equal(want.astype(np.int64), got) else "integers differ"
    with np.errstate(over="ignore"):
        want = want.astype(np.float32)
    if np.allclose(got, want, rtol=1e-3, atol=1e-5, equal_nan=True):
        return None
    with np.errstate(invalid="ignore"):
        return "largest difference %g" % np.nanmax(np.abs(got.astype(np.float64) - want))


def run_set(hapi, backend, folder, data):
    """None, or (kind, text) of what went wrong."""
    names = sorted(os.listdir(data), key=lambda s: (s.split("_")[0], int(re.findall(r"\d+", s)[0])))
    inputs = [os.path.join(data, n) for n in names if n.startswith("input_")]
    outputs = [os.path.join(data, n) for n in names if n.startswith("output_")]
    with tempfile.TemporaryDirectory() as out:
        command = [hapi, "run", os.path.join(folder, "model.onnx"), "--output-dir", out, "--backend", backend]
        p = subprocess.run(command + (["--input"] + inputs if inputs else []), capture_output=True, text=True,
                           timeout=60)
        if p.returncode:
            return "refused" if p.returncode == 1 else "crashed", p.stderr.strip() or str(p.returncode)
        for i, want in enumerate(outputs):
            bad = compare(want, os.path.join(out, "output_%d.npy" % i))
            if bad:
                return "wrong", "output %d: %s" % (i, bad)
    return None


def run_case(hapi, backend, folder):
    sets = sorted(d for d in os.listdir(folder) if d.startswith("test_data_set_"))
    for s in sets:
        bad = run_set(hapi, backend, folder, os.path.join(folder, s))
        if bad:
            return bad
    return None


def report(backend, results, skipped, verbose):
    reasons = collections.Counter(skipped)
    passed, failed = collections.Counter(), []
    for name, bad in results:
        if not bad:
            passed[name.split("/")[0]] += 1
            continue
        kind, text = bad
        stated = [k for k, r in REFUSALS.items() if kind == "refused" and r.search(text)]
        if stated:
            reasons["refused as stated: " + stated[0]] += 1
            if verbose:
                print("refused %s %s: %s" % (backend, name, text))
        else:
            failed.append((name, kind, text))
    for name, kind, text in failed:
        print("FAIL %s %s: %s: %s" % (backend, name, kind, text))
    for folder in FOLDERS:
        print("  %s %s: %d passed" % (backend, folder, passed[folder]))
    print("%s: %d passed, %d failed, 0 skipped" % (backend, sum(passed.values()), len(failed)))
    return passed, failed, reasons


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hapi", required=True)
    parser.add_argument("--backend", action="append")
    parser.add_argument("--only", default="")
    parser.add_argument("--verbose", action="store_true")
    args = parser.parse_args()
    known, todo, skipped, status = ops_known(), [], [], 0
    for name, folder in cases():
        if args.only not in name:
            continue
        why = why_not(onnx.load(os.path.join(folder, "model.onnx")), known)
        if why:
            skipped.append(why)
        else:
            todo.append((name, folder))
    for backend in args.backend or ["ref", "onednn"]:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            done = pool.map(lambda c: (c[0], run_case(args.hapi, backend, c[1])), todo)
            passed, failed, reasons = report(backend, list(done), skipped, args.verbose)
        fewer = [] if args.only or backend == "cudnn" else [f for f in FOLDERS if passed[f] < FLOOR[f]]
        if failed or fewer:
            status = 1
        for folder in fewer:
            print("FAIL %s %s: fewer than the %d that are known to pass" % (backend, folder, FLOOR[folder]))
    grouped = collections.Counter(re.sub(r": .*", "", r) if not args.verbose else r for r in reasons.elements())
    for why, n in grouped.most_common():
        print("  not selected %4d  %s" % (n, why))
    sys.exit(status)


main()
