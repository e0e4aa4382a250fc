#!/usr/bin/python3
"""Writes docs/operators.md from the table of ops (kernels/ops.def.h) and from what the oneDNN back end's dispatch
names; with --check says whether the file is as it would be written.

    ci/operators.py [--check]
"""

import os
import re
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TARGET = os.path.join(ROOT, "docs", "operators.md")

HEAD = """# Operators

<!-- Written by ci/operators.py; ci/check fails when it is out of date. -->

What a model may hold, of ONNX's default domain, opset 1 to {opset}. Anything else is refused when the model is loaded, by
the node's name, its op and the model's opset; so are subgraphs (If, Loop, Scan), sequences and strings.

`ref` runs every op by plain loops, with sums in f64: it is the truth that `onednn` is compared with. Under `onednn`,
*kernel* means that oneDNN (or a strided copy) runs the op where the shape and dtype allow it, and the plain loops do
where they do not (integers, f64, ways to resize that oneDNN does not know); *plain loops*, that they always do. No back end takes
oneDNN's own reference implementations. *at load*: the op is gone, or a constant, before anything runs, as is every node
whose inputs are constants.

Shapes, axes, pads, scales and the like must be constants, or follow from shapes alone. Tensors are f32, f64, f16, bf16,
signed and unsigned integers of 8 to 64 bits, and booleans, with at most 8 dims; oneDNN computes f32 tensors, in f32 or
bf16.

| op | opset | `onednn` | limits |
|---|---|---|---|
"""

AT_LOAD = {"Constant", "ConstantOfShape", "Dropout", "Identity", "Range", "Shape", "Size"}
WINDOW = "1 to 3 spatial dims"
LIMITS = {
    "AveragePool": WINDOW,
    "BatchNormalization": "inference only",
    "Conv": WINDOW + "; f32, f64",
    "ConvTranspose": WINDOW + "; f32, f64",
    "Dropout": "inference only",
    "Gather": "a list of indices by plain loops",
    "GlobalAveragePool": WINDOW,
    "GlobalMaxPool": WINDOW,
    "MaxPool": WINDOW + "; Indices by plain loops",
    "Pad": "constant, reflect, edge",
    "ReduceMean": "over height and width by oneDNN, else by plain loops",
    "Resize": "antialias down to 1/16",
    "Split": "at most 1024 outputs",
}


def text(path):
    with open(os.path.join(ROOT, path), encoding="utf-8") as f:
        return f.read()


def kernels_of_onednn():
    """Ops that the back end's dispatch has a case for, or that fusion makes an activation of."""
    dispatch = re.search(r"^static int step_compile\(.*?^}", text("kernels/onednn.c"), re.M | re.S)
    activations = re.search(r"^static bool act_of\(.*?^}", text("kernels/fuse.c"), re.M | re.S)
    if not dispatch or not activations:
        sys.exit("ci/operators.py: the dispatch of the oneDNN back end is not where it was")
    return set(re.findall(r"case HAPI_OP_(\w+):", dispatch[0])) | set(re.findall(r"HAPI_OP_(\w+)", activations[0]))


def document():
    rows = re.findall(r'X\((\w+), "(\w+)", (\d+), (\d+)\)', text("kernels/ops.def.h"))
    opset = re.search(r"HAPI_ONNX_OPSET_MAX (\d+)", text("kernels/onnx.h"))[1]
    own = kernels_of_onednn()
    lines = [HEAD.format(opset=opset)]
    for kind, name, since, until in sorted(rows, key=lambda r: r[1].lower()):
        runs = "at load" if name in AT_LOAD else "kernel" if kind in own else "plain loops"
        last = opset if until == "99" else until
        lines.append(f"| {name} | {since} to {last} | {runs} | {LIMITS.get(name, '')} |\n")
    return "".join(lines)


def main():
    wanted = document()
    if sys.argv[1:] == ["--check"]:
        have = text(TARGET) if os.path.exists(TARGET) else ""
        if have != wanted:
            print("FAIL docs/operators.md is out of date: run ci/operators.py")
        return have != wanted
    if sys.argv[1:]:
        print(__doc__)
        return 2
    with open(TARGET, "w", encoding="utf-8") as f:
        f.write(wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main())
