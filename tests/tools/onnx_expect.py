"""What python3-onnx reads in torchvision's exports, as JSON for tests/kernels/test_onnx_reader.c.

    /usr/bin/python3 tests/tools/onnx_expect.py FOLDER NETWORK...

Exports NETWORK (see exports.py) and writes FOLDER/NETWORK.json: where it lies, nodes with attributes,
initializers with the SHA-256 of their bytes, and the shapes that onnx.shape_inference finds at batch 2. Exit code
77: torch, torchvision or onnx is not installed.
"""
import hashlib
import json
import sys
from pathlib import Path

import exports  # first: exits with 77 where something is missing
import onnx
from onnx import numpy_helper, shape_inference

BATCH = 2


def tensor(t):
    array = numpy_helper.to_array(t)
    return {"dtype": t.data_type, "dims": list(t.dims), "sha256": hashlib.sha256(array.tobytes()).hexdigest()}


def attribute(a):
    value = onnx.helper.get_attribute_value(a)
    if a.type == onnx.AttributeProto.TENSOR:
        value = tensor(value)
    elif a.type == onnx.AttributeProto.STRING:
        value = value.decode()
    elif a.type in (onnx.AttributeProto.INTS, onnx.AttributeProto.FLOATS):
        value = list(value)
    return {"name": a.name, "type": a.type, "value": value}


def shapes(model):
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = BATCH
    for o in model.graph.output:
        o.type.tensor_type.shape.dim[0].dim_value = BATCH
    del model.graph.value_info[:]
    inferred = shape_inference.infer_shapes(model, data_prop=True)
    found = {}
    for v in list(inferred.graph.value_info) + list(inferred.graph.output):
        t = v.type.tensor_type
        if t.HasField("shape") and all(d.HasField("dim_value") for d in t.shape.dim):
            found[v.name] = {"dtype": t.elem_type, "dims": [d.dim_value for d in t.shape.dim]}
    return found


def describe(path):
    model = onnx.load(str(path))
    g = model.graph
    return {
        "path": str(path),
        "opset": model.opset_import[0].version,
        "inputs": [i.name for i in g.input],
        "outputs": [o.name for o in g.output],
        "nodes": [{"name": n.name, "op": n.op_type, "inputs": list(n.input), "outputs": list(n.output),
                   "attributes": [attribute(a) for a in n.attribute]} for n in g.node],
        "initializers": {t.name: tensor(t) for t in g.initializer},
        "batch": BATCH,
        "shapes": shapes(model),
    }


def main():
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name in sys.argv[2:]:
        (folder / f"{name}.json").write_text(json.dumps(describe(exports.network(name))))


if __name__ == "__main__":
    main()
