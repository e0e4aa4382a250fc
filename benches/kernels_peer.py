"""One peer of benches/kernels_vs_peers: times one network in one framework, a round for each line of standard input,
which names the batch, and answers each with a line of JSON. Run by kernels_vs_peers, which pins it to a core.
"""

import argparse
import json
import statistics
import sys
import time
import warnings

PEERS = ("onnxruntime-f32", "torch-eager-f32", "torch-jit-f32", "torch-eager-bf16", "torch-jit-bf16")


def onnxruntime_runs(model):
    """batch -> a function that runs it."""
    import numpy
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    name, shape = session.get_inputs()[0].name, session.get_inputs()[0].shape

    def make(batch):
        x = numpy.random.default_rng(1).standard_normal((batch, *shape[1:]), dtype=numpy.float32)
        return lambda: session.run(None, {name: x})

    return make


def torch_runs(name, how, dtype):
    import torch
    from hapi import models

    torch.set_num_threads(1)
    net, transform = models.build(name)
    for p in net.parameters():
        p.requires_grad_(False)
    bf16 = dtype == "bf16"
    if bf16:
        net = net.to(memory_format=torch.channels_last)
    if bf16 and how == "eager":
        net = net.bfloat16()

    def make(batch):
        x = torch.randn(batch, 3, transform["crop"], transform["crop"], generator=torch.Generator().manual_seed(1))
        if bf16:
            x = x.to(memory_format=torch.channels_last)
        if how == "eager":
            x = x.bfloat16() if bf16 else x
            return lambda: net(x)
        if bf16:
            # Autocast inside the trace: the casts of the weights are folded by freezing.
            with torch.cpu.amp.autocast(cache_enabled=False):
                traced = torch.jit.trace(net, x)
            frozen = torch.jit.freeze(traced.eval())
        else:
            frozen = torch.jit.optimize_for_inference(torch.jit.trace(net, x))
        for _ in range(2):
            frozen(x)  # the profiling executor compiles in the first two
        return lambda: frozen(x)

    return make


def round_of(run, batch, seconds):
    ms = []
    end = time.perf_counter() + seconds
    while len(ms) < 3 or time.perf_counter() < end:
        t = time.perf_counter()
        run()
        ms.append(1e3 * (time.perf_counter() - t) / batch)
    return {"ms_per_image": statistics.median(ms), "ms_per_image_min": min(ms), "runs": len(ms)}


def serve(make, seconds):
    batch, run = None, None
    print("ready", flush=True)
    for line in sys.stdin:
        if int(line) != batch:
            batch = int(line)
            run = make(batch)
            run()
        print(json.dumps(round_of(run, batch, seconds)), flush=True)


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--peer", required=True, choices=PEERS)
    p.add_argument("--network", required=True)
    p.add_argument("--model", required=True, help="its ONNX file")
    p.add_argument("--seconds", type=float, default=2)
    a = p.parse_args()
    warnings.simplefilter("ignore")
    if a.peer.startswith("onnxruntime"):
        serve(onnxruntime_runs(a.model), a.seconds)
        return
    import torch

    _, how, dtype = a.peer.split("-")
    with torch.no_grad():
        serve(torch_runs(a.network, how, dtype), a.seconds)


main()
