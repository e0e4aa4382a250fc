"""torchvision's networks, cut by cut: `hapi run --to CUT` against PyTorch, on real photos.

    python3 tests/kernels/test_networks.py HAPI [--sample N] [--dtype f32|bf16] [NETWORK[-OPSET]...]

HAPI: the program. --sample N: N of a network's cuts, evenly spread, the last among them (default: every one).
--dtype: one of them (default: f32, and bf16 where `hapi run` computes in it). Networks: default ten, and two of them
at opset 13, where LayerNormalization is in its parts. Exit code 77: torch is missing.

The reference for every tensor is PyTorch's operators on the graph (tests/tools/onnx_torch.py), which must itself be
what the torch module gives at the output and at every module whose output is a tensor of a cut (with --sample, for
the networks that are built fast). Bounds: relative L2
1e-4 in f32; in bf16 2.5e-2, or 1.5 times PyTorch's own bf16 error at that tensor.
"""
import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))
import exports  # noqa: E402  (exits with 77 where torch is missing)
import numpy as np  # noqa: E402
import onnx  # noqa: E402
import onnx_torch  # noqa: E402
import torch  # noqa: E402
from hapi import models  # noqa: E402

NETWORKS = [*models.TORCHVISION, "vit_b_16-13", "swin_t-13"]
LIGHT = ("resnet18", "densenet121", "mobilenet_v2")  # built within seconds
BATCH = 2
F32, BF16, BF16_OF_TORCH = 1e-4, 2.5e-2, 1.5
counts = {"passed": 0, "failed": 0, "skipped": 0}


def check(ok, text):
    counts["passed" if ok else "failed"] += 1
    if not ok:
        print(f"FAIL {text}")


def distance(a, b):
    """Relative L2; infinite for other shapes and for numbers that are none."""
    if tuple(a.shape) != tuple(b.shape):
        return float("inf")
    d = (a.double() - b.double()).norm() / b.double().norm()
    return float(d) if torch.isfinite(d) else float("inf")


def run(hapi, path, folder, cut, dtype):
    """The cut's tensor; None where the CPU cannot compute in dtype."""
    command = [hapi, "run", path, "--input", f"{folder}/x.npy", "--to", cut, "--dtype", dtype, "--output-dir", folder]
    r = subprocess.run(command, capture_output=True, text=True)
    if r.returncode and dtype == "bf16" and "no bf16" in r.stderr:
        return None
    if r.returncode:
        raise RuntimeError(r.stderr)
    return torch.from_numpy(np.load(f"{folder}/output_0.npy"))


def keeper(made, name):
    def keep(_module, _inputs, out):
        if isinstance(out, torch.Tensor):
            made[name] = out.clone()  # a ReLU after it may work in place

    return keep


def check_reference(name, net, x, cuts, values):
    """The evaluator is as good as the module: at the output, and where a cut is named after a module."""
    made = {}
    for module_name, module in net.named_modules():
        if isinstance(module, torch.nn.Conv2d):
            continue  # the exporter multiplies the BatchNorm2d after it into its weights
        module.register_forward_hook(keeper(made, module_name))
    with torch.no_grad():
        net(x)
    seen, worst = 0, 0.0
    for c in cuts:
        out = made.get("" if c is cuts[-1] else c["name"])
        if out is not None and out.shape == values[c["id"]].shape:
            seen += 1
            d = distance(values[c["id"]], out)
            worst = max(worst, d)
            check(d <= F32, f"{name}: the reference for {c['name']} is {d:.2g} away from the module")
    check(seen > 3, f"{name}: only {seen} cuts are modules")
    return f"{seen} are modules, at most {worst:.2g}"


def check_cuts(hapi, name, path, folder, cuts, values, own, dtype):
    worst, where, ratio = 0.0, "", 0.0
    for c in cuts:
        got = run(hapi, path, folder, c["id"], dtype)
        if got is None:
            counts["skipped"] += 1
            return "skipped: this CPU has no bf16"
        d = distance(got, values[c["id"]])
        bound = F32 if dtype == "f32" else max(BF16, BF16_OF_TORCH * own[c["id"]])
        check(d <= bound, f"{name} {dtype}: {c['name']} is {d:.3g} away, at most {bound:.3g}")
        if d > worst:
            worst, where = d, c["name"]
        ratio = max(ratio, d / own[c["id"]] if own else 0)
    return f"{dtype}: at most {worst:.2g} ({where})" + (f", {ratio:.2f} of PyTorch's own" if own else "")


def check_network(hapi, name, sample, dtypes):
    network, _, opset = name.partition("-")
    path = str(exports.network(network, int(opset or 17)))
    listing = subprocess.run([hapi, "cuts", path, "--json"], check=True, capture_output=True).stdout
    every = json.loads(listing)["cuts"]
    n = min(sample or len(every), len(every))
    cuts = [every[(i + 1) * len(every) // n - 1] for i in range(n)]
    x = models.photo_batch(models.transform_of(network), BATCH, seed=7)
    model = onnx.load(path)
    values = onnx_torch.evaluate(model, x, {c["id"] for c in every}, torch.float32)
    modules = "modules are compared by night"
    if n == len(every) or name in LIGHT:
        modules = check_reference(name, models.build(network)[0], x, every, values)
    said = []
    with tempfile.TemporaryDirectory() as folder:
        np.save(f"{folder}/x.npy", x.numpy())
        for dtype in dtypes:
            own = {}
            if dtype == "bf16":
                rounded = onnx_torch.evaluate(model, x, {c["id"] for c in cuts}, torch.bfloat16)
                own = {k: distance(v, values[k]) for k, v in rounded.items()}
            said.append(check_cuts(hapi, name, path, folder, cuts, values, own, dtype))
    print(f"{name:16} {n:3} of {len(every):3} cuts ({modules}); {'; '.join(said)}", flush=True)


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("hapi")
    p.add_argument("networks", nargs="*", default=NETWORKS)
    p.add_argument("--sample", type=int, default=0)
    p.add_argument("--dtype", action="append", choices=("f32", "bf16"))
    a = p.parse_args()
    for name in a.networks:
        check_network(a.hapi, name, a.sample, a.dtype or ("f32", "bf16"))
    print(f"{counts['passed']} passed, {counts['failed']} failed, {counts['skipped']} skipped")
    return 1 if counts["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
