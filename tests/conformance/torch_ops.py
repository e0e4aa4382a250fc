#!/usr/bin/python3
"""Convolutions, pools and Resize with random attributes, and chains of what only moves elements, through `hapi run` on
every back end, against torch.

    torch_ops.py --hapi BUILD/hapi [--seed N]

ONNX's own test data has few grouped, dilated, asymmetric or 3-D cases: these are drawn here, all of a family in one
model. Exit 1 when an element differs by more than 1e-4 of the largest, 77 where torch or onnx is missing.
"""
import argparse
import os
import random
import subprocess
import sys
import tempfile

try:
    import numpy as np
    import torch
    import torch.nn.functional as F
    from onnx import TensorProto, helper, numpy_helper
except ImportError as e:
    print(f"skipped: {e}")
    sys.exit(77)

SHAPES = {1: (2, 8, 17), 2: (2, 8, 11, 9), 3: (1, 4, 9, 8, 7)}
CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
CONV_T = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
MAX = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
MEAN = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


class Family:
    """A model with one input and one output a case."""

    def __init__(self, dims):
        self.dims = dims
        self.x = torch.randn(SHAPES[dims])
        self.nodes, self.inits, self.want, self.what = [], [], [], []

    def weights(self, *shape):
        t = torch.randn(*shape)
        return t, self.constant(t.numpy())

    def constant(self, a):
        name = f"c{len(self.inits)}"
        self.inits.append(numpy_helper.from_array(np.array(a, order="C"), name))
        return name

    def add(self, op, inputs, want, **attrs):
        name = f"y{len(self.want)}"
        self.nodes.append(helper.make_node(op, ["x", *inputs], [name], **attrs))
        self.want.append(want)
        self.what.append(f"{op} of {tuple(self.x.shape)} {attrs}")

    def save(self, path, opset):
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, list(self.x.shape))
        y = [helper.make_tensor_value_info(f"y{i}", TensorProto.FLOAT, None) for i in range(len(self.want))]
        graph = helper.make_graph(self.nodes, "g", [x], y, self.inits)
        with open(path, "wb") as f:
            f.write(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)]).SerializeToString())


def convolutions(rng, dims):
    f, channels = Family(dims), SHAPES[dims][1]
    for _ in range(12):
        group = rng.choice([1, 2, channels])
        out = rng.choice([channels, 2 * channels])
        k, s, d = ([rng.randint(1, 3) for _ in range(dims)] for _ in range(3))
        pads = [rng.randint(0, 2) for _ in range(2 * dims)]
        w, wn = f.weights(out, channels // group, *k)
        b, bn = f.weights(out)
        torch_pads = [p for i in reversed(range(dims)) for p in (pads[i], pads[dims + i])]
        want = CONV[dims](F.pad(f.x, torch_pads), w, b, stride=s, dilation=d, groups=group)
        f.add("Conv", [wn, bn], want, group=group, strides=s, dilations=d, pads=pads)
    for _ in range(12):
        group = rng.choice([1, 2, channels])
        out = rng.choice([channels, 2 * channels]) // group
        k, d = ([rng.randint(1, 3) for _ in range(dims)] for _ in range(2))
        s = [rng.randint(1, 3) for _ in range(dims)]
        pad = [rng.randint(0, 1) for _ in range(dims)]
        extra = [rng.randint(0, max(a, b) - 1) for a, b in zip(s, d)]
        w, wn = f.weights(channels, out, *k)
        b, bn = f.weights(out * group)
        bias = rng.random() < 0.5
        want = CONV_T[dims](f.x, w, b if bias else None, s, pad, extra, group, d)
        f.add("ConvTranspose", [wn, bn] if bias else [wn], want, group=group, strides=s, dilations=d, pads=pad + pad,
              output_padding=extra)
    return f


def pools(rng, dims):
    f = Family(dims)
    for _ in range(12):
        k, s = ([rng.randint(1, 3) for _ in range(dims)] for _ in range(2))
        pad, ceil = [rng.randint(0, a // 2) for a in k], rng.random() < 0.5
        d = [rng.randint(1, 2) for _ in range(dims)]
        f.add("MaxPool", [], MAX[dims](f.x, k, s, pad, d, ceil_mode=ceil), kernel_shape=k, strides=s, pads=pad + pad,
              dilations=d, ceil_mode=int(ceil))
    for _ in range(12):
        k, s = ([rng.randint(1, 3) for _ in range(dims)] for _ in range(2))
        pad, ceil, count = [rng.randint(0, a // 2) for a in k], rng.random() < 0.5, rng.random() < 0.5
        f.add("AveragePool", [], MEAN[dims](f.x, k, s, pad, ceil, count), kernel_shape=k, strides=s, pads=pad + pad,
              ceil_mode=int(ceil), count_include_pad=int(count))
    return f


def resizes(rng, dims):
    f = Family(dims)
    modes = {1: ["linear"], 2: ["bilinear", "bicubic"], 3: ["trilinear"]}[dims]
    for _ in range(12):
        mode, corners = rng.choice(modes), rng.random() < 0.5
        size = [rng.randint(2, 25) for _ in range(dims)]
        place = "align_corners" if corners else rng.choice(["half_pixel", "pytorch_half_pixel"])
        want = F.interpolate(f.x, size=size, mode=mode, align_corners=corners)
        sizes = f.constant(np.array([*f.x.shape[:2], *size], np.int64))
        f.add("Resize", ["", "", sizes], want, mode="cubic" if mode == "bicubic" else "linear",
              coordinate_transformation_mode=place)
    for _ in range(6):
        size = [rng.randint(1, 25) for _ in range(dims)]
        sizes = f.constant(np.array([*f.x.shape[:2], *size], np.int64))
        f.add("Resize", ["", "", sizes], F.interpolate(f.x, size=size, mode="nearest"), mode="nearest",
              coordinate_transformation_mode="asymmetric", nearest_mode="floor")
    return f


def antialiased(rng):
    f = Family(2)
    for mode in ("bilinear", "bicubic") * 3:
        size = [rng.randint(2, 25) for _ in range(2)]
        want = F.interpolate(f.x, size=size, mode=mode, antialias=True)
        sizes = f.constant(np.array(size, np.int64))
        # torch's antialiased bicubic has PIL's coefficient, and leaves out what is outside
        f.add("Resize", ["", "", sizes], want, mode="cubic" if mode == "bicubic" else "linear", antialias=1,
              axes=[2, 3], cubic_coeff_a=-0.5, exclude_outside=1)
    return f


def factors(rng, n):
    """Dims, one to three of them, that have n elements together."""
    dims = []
    while n > 1 and len(dims) < 2:
        d = rng.choice([d for d in range(1, n + 1) if n % d == 0])
        dims.append(d)
        n //= d
    return [*dims, n]


class Chain:
    """Nodes one after the other, computed by torch along the way."""

    def __init__(self, family, rng):
        self.f, self.rng, self.name, self.t = family, rng, "x", family.x
        self.what = []

    def node(self, op, inputs, outputs, keep, result, **attrs):
        names = [f"n{len(self.f.nodes)}_{i}" for i in range(outputs)]
        self.f.nodes.append(helper.make_node(op, [self.name, *inputs], names, **attrs))
        self.name, self.t = names[keep], result
        self.what.append(op)

    def ints(self, *values):
        return self.f.constant(np.array(values, np.int64))

    def transpose(self):
        perm = self.rng.sample(range(self.t.dim()), self.t.dim())
        self.node("Transpose", [], 1, 0, self.t.permute(perm), perm=perm)

    def reshape(self):
        shape = []
        for d in self.t.shape:
            shape += factors(self.rng, d) if self.rng.random() < 0.4 else [d]
        while len(shape) > 2 and self.rng.random() < 0.6:
            i = self.rng.randrange(len(shape) - 1)
            shape[i : i + 2] = [shape[i] * shape[i + 1]]
        shape = shape[:7] + [int(np.prod(shape[7:]))] if len(shape) > 7 else shape
        self.node("Reshape", [self.ints(*shape)], 1, 0, self.t.reshape(shape))

    def slice(self):
        axis = self.rng.randrange(self.t.dim())
        n = self.t.shape[axis]
        start, step = self.rng.randrange(n), self.rng.choice((1, 1, 2))
        self.node(
            "Slice",
            [self.ints(start), self.ints(n), self.ints(axis), self.ints(step)],
            1,
            0,
            self.t.index_select(axis, torch.arange(start, n, step)),
        )

    def split(self):
        axis = self.rng.randrange(self.t.dim())
        n = self.t.shape[axis]
        if n < 2:
            return
        a = self.rng.randrange(1, n)
        keep = self.rng.randrange(2)
        parts = self.t.split([a, n - a], axis)
        self.node("Split", [self.ints(a, n - a)], 2, keep, parts[keep], axis=axis)

    def gather(self):
        axis = self.rng.randrange(self.t.dim())
        if self.t.dim() < 3:
            return
        i = self.rng.randrange(self.t.shape[axis])
        self.node("Gather", [self.f.constant(np.array(i, np.int64))], 1, 0, self.t.select(axis, i), axis=axis)

    def unsqueeze(self):
        if self.t.dim() < 6:
            axis = self.rng.randrange(self.t.dim() + 1)
            self.node("Unsqueeze", [self.ints(axis)], 1, 0, self.t.unsqueeze(axis))

    def relu(self):
        self.node("Relu", [], 1, 0, self.t.relu())

    def twice(self):
        """Read by two, one of which may write over it."""
        self.node("Add", [self.name], 1, 0, self.t + self.t)

    def pool(self):
        if self.t.dim() == 4 and min(self.t.shape[2:]) > 1:
            self.node("MaxPool", [], 1, 0, F.max_pool2d(self.t, 2, 1), kernel_shape=[2, 2])

    def square(self):
        """Its own transpose is the second operand, as keys are."""
        if 3 <= self.t.dim() <= 4 and self.t.shape[-2] > 1:
            before, self_t = self.name, self.t
            perm = [*range(self.t.dim() - 2), self.t.dim() - 1, self.t.dim() - 2]
            self.node("Transpose", [], 1, 0, self.t.permute(perm), perm=perm)
            keys, self.name = self.name, before
            self.node("MatMul", [keys], 1, 0, self_t @ self.t)
            self.node("Softmax", [], 1, 0, self.t.softmax(-1), axis=-1)

    def end(self):
        name = f"y{len(self.f.want)}"
        self.f.nodes.append(helper.make_node("Identity", [self.name], [name]))
        self.f.want.append(self.t)
        self.f.what.append(" ".join(self.what))


def chains(rng):
    f = Family(2)
    f.x = torch.randn(2, 12, 10, 6)
    moves = ("transpose", "reshape", "slice", "split", "gather", "unsqueeze")
    for _ in range(60):
        c = Chain(f, rng)
        if rng.random() < 0.5:
            c.pool()
        for _ in range(rng.randint(2, 8)):
            getattr(c, rng.choice((*moves, *moves, "relu", "twice", "pool", "square")))()
        if rng.random() < 0.5:
            c.relu()
        c.end()
    return f


def run(hapi, backend, family, folder, opset):
    """What is wrong, one text a case."""
    model, x = os.path.join(folder, "m.onnx"), os.path.join(folder, "x.npy")
    family.save(model, opset)
    np.save(x, family.x.numpy())
    command = [hapi, "run", model, "--input", x, "--output-dir", folder, "--backend", backend]
    p = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if p.returncode:
        return [f"exit {p.returncode}: {p.stderr.strip()}"]
    bad = []
    for i, (want, what) in enumerate(zip(family.want, family.what)):
        got, want = np.load(os.path.join(folder, f"output_{i}.npy")), want.numpy()
        if got.shape != want.shape:
            bad.append(f"{what}: shape {got.shape}, torch has {want.shape}")
        elif np.abs(got - want).max() > 1e-4 * max(1, np.abs(want).max()):
            bad.append(f"{what}: differs by {np.abs(got - want).max():g}")
    return bad


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hapi", required=True)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    torch.manual_seed(args.seed)
    passed = failed = 0
    families = [(make(rng, dims), 17) for make in (convolutions, pools, resizes) for dims in (1, 2, 3)]
    for family, opset in [*families, (antialiased(rng), 18), (chains(rng), 17)]:
        for backend in ("ref", "onednn"):
            with tempfile.TemporaryDirectory() as folder:
                bad = run(args.hapi, backend, family, folder, opset)
            for text in bad:
                print(f"FAIL {backend}: {text}")
            passed += len(family.want) - len(bad)
            failed += len(bad)
    print(f"torch_ops: {passed} passed, {failed} failed, 0 skipped")
    sys.exit(failed > 0)


main()
