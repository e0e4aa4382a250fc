"""What the end-to-end tests share: where things are, running a program with a clock, small datasets.

HAPI_PROGRAMS (folder of hapi and hapi-rt), HAPI_DATA and HAPI_MODELS say where; ci/check --only e2e sets them.
"""

import json
import os
import subprocess
import tarfile
import time

import numpy as np

from hapi.node import Node, train

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
PROGRAMS = os.environ.get("HAPI_PROGRAMS", os.path.join(ROOT, "build", "release"))
DATA = os.environ.get("HAPI_DATA", os.path.join(ROOT, "build", "data"))
MODELS = os.environ.get("HAPI_MODELS", os.path.join(ROOT, "build", "model"))
NIGHTLY = bool(os.environ.get("HAPI_NIGHTLY"))

HAPI = os.path.join(PROGRAMS, "hapi")
HAPI_RT = os.path.join(PROGRAMS, "hapi-rt")
LITE0 = os.path.join(MODELS, "lite0.onnx")
LITE0_RANDOM = os.path.join(MODELS, "lite0-random.onnx")

# What a narrower wire may change of f32's features: relative L2 error.
WIRES = {"f16": 5e-4, "bf16": 4e-3, "int8": 1.2e-2}


class Result:
    def __init__(self, code, out, err, seconds):
        self.code, self.out, self.err, self.seconds = code, out, err, seconds

    def __repr__(self):
        return f"exit {self.code} after {self.seconds:.2f} s, stdout {self.out!r}, stderr {self.err!r}"


def run(*command, timeout=60, env=None):
    """Runs to the end; both outputs as text."""
    started = time.monotonic()
    r = subprocess.run([str(c) for c in command], stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout, env=env)
    seconds = time.monotonic() - started
    return Result(r.returncode, r.stdout.decode(errors="replace"), r.stderr.decode(errors="replace"), seconds)


def hapi(*args, **kw):
    return run(HAPI, *args, **kw)


def node(data, *options, **kw):
    return Node(HAPI_RT, data, *map(str, options), **kw)


def train_json(model, address, dataset, test_dataset, *options, **kw):
    """`hapi train` as JSON; its messages are part of the exception when it fails."""
    return train(HAPI, model, address, dataset, test_dataset, "--quiet", *options, stderr=subprocess.PIPE, **kw)


class Dump:
    """What --dump-features PREFIX wrote."""

    def __init__(self, prefix):
        for part in ("train", "train-labels", "test", "test-labels", "test-predictions"):
            setattr(self, part.replace("-", "_"), np.load(f"{prefix}-{part}.npy"))


def wait_for_samples(order, samples, job=None, seconds=30):
    """Until --dump-order has so many lines, or the job has ended; False when the time was up before."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if job and job.poll() is not None:
            return True
        if os.path.exists(order):
            with open(order, "rb") as f:
                if f.read().count(b"\n") >= samples:
                    return True
        time.sleep(0.002)
    return False


def tar_jpegs(folder, limit):
    """The first `limit` (jpeg bytes, class) of a dataset of shards."""
    out = []
    for name in sorted(os.listdir(folder)):
        with tarfile.open(os.path.join(folder, name)) as tar:
            members = tar.getmembers()
            for jpg, cls in zip(members[::2], members[1::2]):
                out.append((tar.extractfile(jpg).read(), tar.extractfile(cls).read().decode()))
                if len(out) == limit:
                    return out
    return out


def write_folders(samples, folder):
    """(jpeg bytes, class) -> class folders; the paths, in the order of `samples`."""
    paths = []
    for i, (data, label) in enumerate(samples):
        os.makedirs(os.path.join(folder, label), exist_ok=True)
        paths.append(os.path.join(folder, label, f"{i:04d}.jpg"))
        with open(paths[-1], "wb") as f:
            f.write(data)
    return paths


MEMORY = {"storage_memory": {"fixed": 0, "per_image": 0}, "compute_memory": {"fixed": 0, "per_image": 0}}


def write_profile(path, cuts, **keys):
    """A profile of a job with one node, one epoch and memory for all it may do; `cuts` lack their memory."""
    p = {"images": 4096, "train_batch": 128, "freeze": cuts[-1]["index"], "train_s": 1e-5, "read_s": 1e-6, "epochs": 1}
    p |= {"storage_cache": 0, "compute_cache": 0, "latency_s": 1e-4, "nodes": 1}
    p |= {"storage_memory": 1e9, "compute_memory": 1e9, "cuts": [c | MEMORY for c in cuts]} | keys
    with open(path, "w", encoding="ascii") as f:
        json.dump(p, f)
    return path


def lite0_profile(path, **other):
    """Of a job whose node and compute tier take as long as each other: half of the samples go raw."""
    cut = {"index": 1, "name": "/_blocks.5/_project_conv/Conv_output_0", "wire_bytes": {"f32": 62720, "f16": 31360}}
    cut |= {"storage_s": 0.005, "compute_s": 0.005}
    freeze = {"index": 2, "name": "/Flatten_output_0", "wire_bytes": {"f32": 5120, "f16": 2560}, "storage_s": 0.01, "compute_s": 0}
    p = {"model": "lite0", "source_bytes": 20000, "source_prepare_s": 0.001, "storage_prepare_s": 0.001}
    p |= {"bandwidth_Bps": 1e9, "source_compute_s": 0.01}
    return write_profile(path, [cut, freeze], **(p | other))


def tiny_model(path):
    """A network small enough that a job's time is the programs' own: 3x3 convolution, pool, linear; 64x64."""
    import torch

    from hapi import export

    torch.manual_seed(1)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 16, 3, stride=2, padding=1),
        torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool2d(4),
        torch.nn.Flatten(),
        torch.nn.Linear(256, 10),
    )
    t = {"resize": 64, "interpolation": "bilinear", "crop": 64, "mean": [127, 127, 127], "std": [128, 128, 128]}
    t.update(scale=1, channels="rgb", exif=False)
    export.export(net, path, torch.zeros(1, 3, 64, 64), t)
    return path
