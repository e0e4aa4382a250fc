#!/usr/bin/python3
"""Ten networks compiled by cuDNN for two GPUs that are not here: every operation graph has an engine.

    test_cudnn_plans.py HAPI_BENCH [--all]      --all: both dtypes on both devices

Exits with 77 where there is no cuDNN.
"""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))

NETWORKS = (
    *("alexnet", "resnet18", "resnet50", "vgg11", "vgg19", "densenet121", "vit_b_16"),
    *("mobilenet_v2", "efficientnet_b0", "swin_t"),
)
# Few launches may be kernels of ours: cuDNN does the arithmetic. Swin's windows move, and its attention has a bias; on an A100
# cuDNN has no depthwise convolution in bf16 with a bias of f32.
OWN_MOST = {"swin_t": 200, "efficientnet_b0": 36, "vit_b_16": 20, "mobilenet_v2": 20}


def wrong_with(bench, model, name, device, dtype):
    """What is wrong with the report; None when nothing is."""
    command = [bench, "cudnn-plans", "--model", model, "--device", device, "--dtype", dtype, "--micro-batch", "8", "--json"]
    r = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=900)
    if r.returncode:
        return r.stderr.strip()
    report = json.loads(r.stdout)
    runs = report["launches"] - report["own_kernels"]
    if not report["ok"] or report["graphs"] < 5 or runs < report["graphs"]:
        return f"{report['graphs']} graphs, {runs} runs of them"
    if report["own_kernels"] > OWN_MOST.get(name, 10):
        return f"{report['own_kernels']} kernels of ours"
    for plan in report["plans"]:
        if plan["engine"] is None and "+" not in plan["operations"]:
            return f"no engine for {plan['operations']} of {plan['node']}"
        if plan["engine"] and plan["workspace"] > 1 << 30:
            return f"{plan['node']} wants {plan['workspace']} bytes of workspace"
    return None


def main():
    bench = sys.argv[1]
    r = subprocess.run([bench, "cudnn-plans", "--model", "/nowhere.onnx", "--device", "h100"], stderr=subprocess.PIPE, text=True)
    if "cuDNN" in r.stderr:
        print("skipped: no cuDNN here")
        return 77
    import exports

    models = {name: str(exports.network(name)) for name in NETWORKS}
    pairs = [("h100", "f16"), ("a100", "bf16")]
    if "--all" in sys.argv:
        pairs += [("h100", "bf16"), ("a100", "f16")]
    jobs = [(name, device, dtype) for name in NETWORKS for device, dtype in pairs]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        results = pool.map(lambda job: wrong_with(bench, models[job[0]], *job), jobs)
        bad = [(job, wrong) for job, wrong in zip(jobs, results) if wrong]
    for job, wrong in bad:
        print("FAILED", *job, wrong)
    print(f"{len(jobs) - len(bad)} passed, {len(bad)} failed, 0 skipped")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
