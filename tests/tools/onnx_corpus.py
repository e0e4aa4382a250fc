"""Writes the seed corpus of fuzz_kernels_onnx: one small model per family of ops, and a few damaged ones.

    /usr/bin/python3 tests/tools/onnx_corpus.py tests/fuzz/corpus/kernels_onnx
"""
import sys
from pathlib import Path

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

F32, I64 = TensorProto.FLOAT, TensorProto.INT64


def init(name, value, dtype=np.float32):
    return numpy_helper.from_array(np.asarray(value, dtype), name)


def model(nodes, inits, x=("n", 4), opset=17, ir=8, listed=False):
    inputs = [helper.make_tensor_value_info("x", F32, list(x))]
    if listed:
        inputs += [helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in inits]
    outputs = [helper.make_tensor_value_info(nodes[-1].output[0], F32, None)]
    graph = helper.make_graph(nodes, "g", inputs, outputs, inits)
    m = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    m.ir_version = ir
    return m.SerializeToString(deterministic=True)


def node(op, inputs, output, **attrs):
    name = f"/m/m.0/{output.split()[0]}/{op}"
    return helper.make_node(op, inputs.split(" ") if inputs else [], output.split(), name=name, **attrs)


def ramp(*shape):
    n = int(np.prod(shape))
    return ((np.arange(n) % 7 - 3) / 4).reshape(shape)


def residual():
    inits = [init("w1", ramp(2, 1, 3, 3)), init("w2", ramp(2, 2, 1, 1)), init("g", [1, 2]), init("b", [0, 1]),
             init("m", [0, 0.5]), init("v", [1, 4]), init("w3", ramp(3, 2))]
    nodes = [node("Conv", "x w1", "c1", pads=[1, 1, 1, 1]), node("Relu", "c1", "r1"),
             node("Conv", "r1 w2", "c2"), node("BatchNormalization", "c2 g b m v", "bn"),
             node("Add", "bn r1", "a"), node("MaxPool", "a", "p", kernel_shape=[2, 2], ceil_mode=1),
             node("GlobalAveragePool", "p", "gp"), node("Flatten", "gp", "f"), node("Identity", "f", "id"),
             node("Gemm", "id w3", "y", transB=1)]
    return model(nodes, inits, ("n", 1, 5, 5))


def attention():
    inits = [init("w", ramp(4, 12)), init("three", 3, np.int64), init("one", [1], np.int64),
             init("cls", ramp(1, 1, 4)), init("ln", np.ones(4)), init("i0", 0, np.int64)]
    nodes = [node("Shape", "x", "s"), node("Gather", "s i0", "n"), node("Constant", "", "z", value_ints=[0]),
             node("Unsqueeze", "n z", "n1"),
             node("Constant", "", "tail", value=numpy_helper.from_array(np.array([1, 4], np.int64))),
             node("Concat", "n1 tail", "shape", axis=0), node("Expand", "cls shape", "e"),
             node("Concat", "e x", "t", axis=1), node("LayerNormalization", "t ln", "l"),
             node("MatMul", "l w", "qkv"), node("Split", "qkv", "q k v", axis=2),
             node("Transpose", "k", "kt", perm=[0, 2, 1]), node("MatMul", "q kt", "sc"),
             node("Softmax", "sc", "p"), node("MatMul", "p v", "o"), node("Add", "o t", "r"),
             node("Gather", "r i0", "head", axis=1), node("Erf", "head", "y")]
    return model(nodes, inits, ("n", 3, 4))


def moving():
    inits = [init("s", [0, 1], np.int64), init("e", [-1, 9], np.int64), init("ax", [2, 1], np.int64),
             init("st", [1, 2], np.int64), init("pads", [0, 0, 1, 0, 0, 1], np.int64),
             init("q", [2], np.int64),
             init("idx", [[0, 0, 0]], np.int64), init("up", [9.0])]
    nodes = [node("Pad", "x pads", "p", mode="reflect"), node("Slice", "p s e ax st", "sl"),
             node("Unsqueeze", "sl q", "u"), node("Squeeze", "u q", "sq"),
             node("ScatterND", "sq idx up", "sc"),
             node("ReduceMean", "sc", "m", axes=[2], keepdims=0), node("Clip", "m", "y")]
    return model(nodes, inits, ("n", 4, 4))


def integers():
    inits = [init("a", 0, np.int64), init("b", 6, np.int64), init("c", 2, np.int64),
             init("shape", [3, 1], np.int64)]
    nodes = [node("Range", "a b c", "r"), node("Mod", "r c", "mo"), node("Equal", "mo a", "eq"),
             node("Not", "eq", "nq"), node("ConstantOfShape", "shape", "z"), node("Cast", "r", "rf", to=F32),
             node("Where", "nq z rf", "wh"), node("ReduceSum", "wh", "rs", keepdims=0),
             node("Mul", "x rs", "y")]
    return model(nodes, inits)


def legacy():
    inits = [init("w", ramp(2, 1, 3, 3)), init("b", [1, 2]), init("s", [0.1, 0.2])]
    nodes = [node("Conv", "x w", "c"), node("Add", "c b", "a", broadcast=1, axis=1),
             node("PRelu", "a s", "p"), node("Dropout", "p", "d", is_test=1), node("AveragePool", "d", "v", kernel_shape=[2, 2]),
             node("Flatten", "v", "y")]
    return model(nodes, inits, ("n", 1, 5, 5), opset=6, ir=3, listed=True)


def untyped():
    """An input without a dtype, after an initializer that is listed as one."""
    m = ModelProto.FromString(model([node("Add", "x b", "a"), node("Relu", "a", "y")], [init("b", [1])], listed=True))
    m.graph.input.append(helper.make_tensor_value_info("z", TensorProto.UNDEFINED, [1]))
    m.graph.input[-1].type.tensor_type.ClearField("elem_type")
    return m.SerializeToString(deterministic=True)


def windows():
    inits = [init("w", ramp(1, 2, 3, 3)), init("b", [1, 2]), init("v", ramp(1, 2, 2, 2, 2)),
             init("up", [1, 1, 2, 1.5]), init("two", [2], np.int64), init("idx", [[[[0], [1]]]], np.int64)]
    nodes = [node("ConvTranspose", "x w b", "t", strides=[2, 1], output_padding=[1, 0], pads=[1, 0, 0, 1]),
             node("Resize", "t  up", "r", mode="cubic", coordinate_transformation_mode="align_corners"),
             node("MaxPool", "r", "p i", kernel_shape=[2, 2], storage_order=1),
             node("Unsqueeze", "p two", "u"), node("Conv", "u v", "c", pads=[1, 1, 1, 0, 0, 0]),
             node("Squeeze", "c two", "q"), node("LRN", "q", "l", size=3), node("Cast", "i", "f", to=F32),
             node("ReduceL2", "f", "n"), node("Add", "l n", "o"), node("GatherElements", "o idx", "y", axis=2)]
    return model(nodes, inits, ("n", 1, 5, 5))


def older():
    inits = [init("up", [1, 1, 2, 2]), init("rep", [1, 2, 1, 1], np.int64)]
    nodes = [node("Upsample", "x up", "u", mode="linear"), node("Tile", "u rep", "t"),
             node("SpaceToDepth", "t", "s", blocksize=2), node("ArgMax", "s", "a", axis=1, keepdims=0),
             node("Cast", "a", "f", to=F32),
             node("LogSoftmax", "f", "l", axis=1), node("Sum", "l f", "y")]
    return model(nodes, inits, ("n", 1, 2, 2), opset=9)


def decomposed():
    c = {"two": 2, "eps": 1e-5, "root2": 2**0.5, "one": 1, "half": 0.5, "k": 0.044715, "f": 0.7978845608, "three": 3}
    inits = [init(name, value) for name, value in c.items()] + [init("g", ramp(4)), init("b", ramp(4))]
    nodes = [node("ReduceMean", "x", "m", axes=[-1]), node("Sub", "x m", "d"), node("Pow", "d two", "q"),
             node("ReduceMean", "q", "v", axes=[-1]), node("Add", "v eps", "e"), node("Sqrt", "e", "r"),
             node("Div", "d r", "n"), node("Mul", "n g", "s"), node("Add", "s b", "l"),
             node("Div", "l root2", "h"), node("Erf", "h", "i"), node("Add", "i one", "j"), node("Mul", "l j", "o"),
             node("Mul", "o half", "p"), node("Pow", "p three", "a1"), node("Mul", "a1 k", "a2"),
             node("Add", "p a2", "a3"), node("Mul", "a3 f", "a4"), node("Tanh", "a4", "a5"),
             node("Add", "a5 one", "a6"), node("Mul", "p a6", "a7"), node("Mul", "a7 half", "y")]
    return model(nodes, inits, ("n", 3, 4), opset=13)


def main():
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    good = {"residual": residual(), "attention": attention(), "moving": moving(), "integers": integers(),
            "legacy": legacy(), "untyped": untyped(), "windows": windows(), "older": older(), "decomposed": decomposed()}
    for name, data in good.items():
        (out / f"{name}.onnx").write_bytes(data)
    cyclic = [node("Add", "x b", "a"), node("Relu", "a", "b"), node("Relu", "b", "y")]
    (out / "cyclic.onnx").write_bytes(model(cyclic, []))
    (out / "op.onnx").write_bytes(model([node("NonZero", "x", "y")], []))
    (out / "overflow.onnx").write_bytes(model([node("Relu", "x", "y")], [], ("n", 1 << 62, 1 << 62)))
    (out / "tensor.pb").write_bytes(init("t", ramp(2, 3)).SerializeToString())


if __name__ == "__main__":
    main()
