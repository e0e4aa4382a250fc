"""torchvision's networks as ONNX, exported once for every test: with calibrated random weights (hapi.models).

    path = exports.network("vit_b_16", opset=13)
    /usr/bin/python3 tests/tools/exports.py resnet18 swin_t     exports them and prints the two paths

They lie in $HAPI_NETWORKS, else in build/torchvision, and are made anew when python/hapi/models.py or export.py is
newer. Importing it exits with 77 where torch, torchvision, onnx or the photos are missing.
"""
import importlib
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "python"))

try:
    for needed in ("onnx", "torch", "torchvision", "skimage.data", "sklearn.datasets"):
        importlib.import_module(needed)
except ImportError as e:
    print(f"skipped: {e}")
    sys.exit(77)

import torch  # noqa: E402
from hapi import export, models  # noqa: E402

FOLDER = Path(os.environ.get("HAPI_NETWORKS", ROOT / "build" / "torchvision"))


def network(name, opset=export.OPSET):
    """The path of the export; the transform lies beside it."""
    path = FOLDER / (f"{name}.onnx" if opset == export.OPSET else f"{name}-{opset}.onnx")
    made = path.stat().st_mtime if path.exists() else 0
    if made < max(Path(module.__file__).stat().st_mtime for module in (export, models)):
        FOLDER.mkdir(parents=True, exist_ok=True)
        net, t = models.build(name)
        export.export(net, str(path), torch.zeros(1, 3, t["crop"], t["crop"]), t, opset=opset)
    return path


if __name__ == "__main__":
    for wanted in sys.argv[1:]:
        print(network(wanted), flush=True)
