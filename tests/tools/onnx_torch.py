"""Evaluates an ONNX graph with PyTorch's operators, node by node: the reference for tensors inside of a network.

    values = onnx_torch.evaluate(model, x, wanted, torch.float32)     {name: tensor} of the wanted tensors

Only what the exports of tests/tools/exports.py hold; anything else is a KeyError with the operator's name.
"""
import numpy as np
import onnx
import torch
import torch.nn.functional as F
from onnx import numpy_helper

OPS = {}


def op(*names):
    def add(f):
        OPS.update(dict.fromkeys(names, f))
        return f

    return add


def ints(t):
    return [int(v) for v in t.reshape(-1).tolist()]


def padded(x, pads, value):
    """ONNX's pads (all begins, then all ends) on the last axes; as F.pad wants them."""
    n = len(pads) // 2
    return F.pad(x, [p for i in reversed(range(n)) for p in (pads[i], pads[n + i])], value=value)


OPS.update({
    "Abs": lambda a, x: x.abs(), "Add": lambda a, x, y: x + y, "Sub": lambda a, x, y: x - y,
    "Mul": lambda a, x, y: x * y, "Pow": lambda a, x, y: x.pow(y), "Sqrt": lambda a, x: x.sqrt(),
    "Erf": lambda a, x: x.erf(), "Relu": lambda a, x: x.relu(), "Sigmoid": lambda a, x: x.sigmoid(),
    "Identity": lambda a, x: x, "Dropout": lambda a, x, *_: x, "Equal": lambda a, x, y: x == y,
    "Not": lambda a, x: ~x, "Where": lambda a, c, x, y: torch.where(c, x, y), "MatMul": lambda a, x, y: x @ y,
    "Shape": lambda a, x: torch.tensor(x.shape), "Softmax": lambda a, x: x.softmax(a.get("axis", -1)),
    "Transpose": lambda a, x: x.permute(a["perm"]), "Concat": lambda a, *x: torch.cat(x, a["axis"]),
    "Flatten": lambda a, x: x.flatten(a.get("axis", 1)), "Range": lambda a, x, y, z: torch.arange(*ints(torch.stack([x, y, z]))),
    "GlobalAveragePool": lambda a, x: x.mean((2, 3), keepdim=True),
    "ReduceMean": lambda a, x: x.mean(a["axes"], keepdim=bool(a.get("keepdims", 1))),
    "Constant": lambda a: a["value"], "ConstantOfShape": lambda a, s: a["value"].expand(ints(s)).clone(),
    "Mod": lambda a, x, y: torch.fmod(x, y) if a.get("fmod") else torch.remainder(x, y),
})  # fmt: skip


@op("Div")
def div(a, x, y):
    return x / y if x.is_floating_point() else torch.div(x, y, rounding_mode="trunc")


@op("Cast")
def cast(a, x):
    return x.to(torch.from_numpy(np.zeros(1, onnx.mapping.TENSOR_TYPE_TO_NP_TYPE[a["to"]])).dtype)


@op("Clip")
def clip(a, x, low=None, high=None):
    return torch.clamp(x, low, high)


@op("Conv")
def conv(a, x, w, b=None):
    n = len(a["pads"]) // 2
    if a["pads"][:n] != a["pads"][n:]:
        x, a = padded(x, a["pads"], 0.0), {**a, "pads": [0] * 2 * n}
    return F.conv2d(x, w, b, a["strides"], a["pads"][:n], a["dilations"], a["group"])


@op("BatchNormalization")
def batch_norm(a, x, scale, bias, mean, var):
    return F.batch_norm(x, mean, var, scale, bias, False, 0.0, a["epsilon"])


@op("LayerNormalization")
def layer_norm(a, x, scale, bias=None):
    return F.layer_norm(x, x.shape[a["axis"]:], scale, bias, a["epsilon"])


@op("Gemm")
def gemm(a, x, w, b):
    assert a["alpha"] == a["beta"] == 1.0
    return F.linear(x, w if a.get("transB") else w.t(), b)


@op("MaxPool")
def max_pool(a, x):
    assert a["pads"][:2] == a["pads"][2:]
    return F.max_pool2d(x, a["kernel_shape"], a["strides"], a["pads"][:2], ceil_mode=bool(a["ceil_mode"]))


@op("AveragePool")
def average_pool(a, x):
    assert not any(a.get("pads", [])) and not a.get("ceil_mode")
    return F.avg_pool2d(x, a["kernel_shape"], a["strides"])


@op("Pad")
def pad(a, x, pads, value=None):
    return padded(x, ints(pads), 0.0 if value is None else value.item())


@op("Reshape")
def reshape(a, x, shape):
    return x.reshape([x.shape[i] if d == 0 else d for i, d in enumerate(ints(shape))])


@op("Unsqueeze")
def unsqueeze(a, x, axes):
    for axis in sorted(ints(axes)):
        x = x.unsqueeze(axis)
    return x


@op("Expand")
def expand(a, x, shape):
    return x.expand(torch.broadcast_shapes(x.shape, ints(shape)))


@op("Gather")
def gather(a, x, index):
    axis, index = a.get("axis", 0), torch.remainder(index, x.shape[a.get("axis", 0)])
    return x.index_select(axis, index.reshape(-1)).reshape(x.shape[:axis] + index.shape + x.shape[axis + 1 :])


@op("Slice")
def slice_(a, x, starts, ends, axes, steps=None):
    steps = torch.ones_like(axes) if steps is None else steps
    for s, e, axis, step in zip(*map(ints, (starts, ends, axes, steps))):
        places = range(*slice(s, e, step).indices(x.shape[axis]))
        x = x.index_select(axis, torch.tensor(list(places), dtype=torch.int64))
    return x


@op("ScatterND")
def scatter_nd(a, x, index, updates):
    out = x.clone()
    out[tuple(index[..., i] for i in range(index.shape[-1]))] = updates
    return out


def attributes(node):
    out = {}
    for a in node.attribute:
        value = onnx.helper.get_attribute_value(a)
        out[a.name] = torch.from_numpy(numpy_helper.to_array(value).copy()) if a.type == a.TENSOR else value
    return out


def evaluate(model, x, wanted, dtype):
    """x: the one input. Floating-point weights and activations are of dtype."""
    g = model.graph
    values = {t.name: torch.from_numpy(numpy_helper.to_array(t).copy()) for t in g.initializer}
    values = {k: v.to(dtype) if v.is_floating_point() else v for k, v in values.items()}
    values[g.input[0].name] = x.to(dtype)
    left = {}
    for n in g.node:
        for name in n.input:
            left[name] = left.get(name, 0) + 1
    with torch.no_grad():
        for n in g.node:
            out = OPS[n.op_type](attributes(n), *(values[i] if i else None for i in n.input))
            if out.is_floating_point() and n.op_type in ("Constant", "ConstantOfShape"):
                out = out.to(dtype)
            values[n.output[0]] = out
            for name in n.input:  # what nobody reads again need not be kept
                left[name] -= 1
                if name and not left[name] and name not in wanted:
                    del values[name]
    return {name: values[name].float() for name in wanted}
