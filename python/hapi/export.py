"""torch module -> ONNX (opset 17 unless told, dynamic batch) and the transform beside it.

    python -m hapi.export --model lite0 --weights pretrained --output lite0.onnx
"""

import argparse
import os
import sys
import warnings

import onnx
import torch

from . import models, transform

OPSET = 17
OPSETS = range(13, 18)  # 17 has LayerNormalization; below it, it is exported in its parts


def export(module, path, example, transform_dict, input_name="input", output_name="output", opset=OPSET):
    """Writes path and its transform, both by rename so that a reader never sees half a file. The module is put
    into eval mode; example is one input batch (N,C,H,W). Dimension 0 of input and output becomes dynamic. The
    same module, example and opset give the same bytes."""
    module.eval()
    for p in module.parameters():
        p.requires_grad_(True)
    temporary = f"{path}.{os.getpid()}.tmp"
    try:
        # With grad enabled: under no_grad torch's fused attention is traced, which has no ONNX symbol.
        # The exporter's own notes on what it did not fold are not for the user: our reader folds it.
        with torch.enable_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                module,
                example,
                temporary,
                opset_version=opset,
                input_names=[input_name],
                output_names=[output_name],
                dynamic_axes={input_name: {0: "batch"}, output_name: {0: "batch"}},
            )
        onnx.checker.check_model(temporary)
        if transform_dict is not None:
            beside = transform.path_beside(path)
            transform.write(transform_dict, f"{beside}.tmp")
            os.replace(f"{beside}.tmp", beside)
        os.replace(temporary, path)
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)


def main(argv=None):
    p = argparse.ArgumentParser(prog="hapi.export", description=__doc__.splitlines()[0])
    p.add_argument("--model", required=True, choices=models.LITE + models.TORCHVISION)
    p.add_argument(
        "--weights",
        default="random",
        metavar="pretrained|random|FILE",
        help="as a package ships them, random and calibrated, or a state dictionary (default: random)",
    )
    p.add_argument("--seed", type=int, default=0, help="of random weights (default: 0)")
    p.add_argument(
        "--draft",
        action="store_true",
        help="images are decoded at half their size where that is enough: faster, and not exactly torchvision's pixels",
    )
    p.add_argument(
        "--opset", type=int, default=OPSET, choices=OPSETS, metavar="N", help=f"13..17 (default: {OPSET})"
    )
    p.add_argument("--output", required=True, metavar="FILE.onnx")
    a = p.parse_args(argv)
    try:
        net, t = models.build(a.model, a.weights, a.seed)
        t = {**t, "draft": True} if a.draft else t
        folder = os.path.dirname(os.path.abspath(a.output))
        os.makedirs(folder, exist_ok=True)
        size = t["crop"]
        export(net, a.output, torch.zeros(1, 3, size, size), t, opset=a.opset)
    except (ValueError, OSError, ImportError, RuntimeError) as e:
        print(f"hapi.export: {a.model}: {e}", file=sys.stderr)
        return 1
    print(f"{a.output}: {a.model}, {a.weights} weights, opset {a.opset}, {os.path.getsize(a.output):,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
