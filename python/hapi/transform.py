"""The transform that lies beside an ONNX file, and the same transform by PIL for comparisons."""

import json

import numpy as np
from PIL import Image

_PIL = {"bilinear": Image.BILINEAR, "bicubic": Image.BICUBIC, "nearest": Image.NEAREST}

# As EfficientNet-Lite was trained and evaluated: the central 224/(224+32) of the shorter side, bicubic.
LITE = {
    "resize": 256,
    "interpolation": "bicubic",
    "crop": 224,
    "mean": [127, 127, 127],
    "std": [128, 128, 128],
    "scale": 1,
    "channels": "rgb",
    "exif": False,
}


def from_torchvision(preset):
    """The dictionary of a torchvision ImageClassification preset (weights.transforms())."""
    return {
        "resize": preset.resize_size[0],
        "interpolation": preset.interpolation.value,
        "crop": preset.crop_size[0],
        "mean": [float(v) for v in preset.mean],
        "std": [float(v) for v in preset.std],
        "scale": 1 / 255,
        "channels": "rgb",
        "exif": False,
    }


def path_beside(model_path):
    """m.onnx -> m.transform.json"""
    base = model_path[: -len(".onnx")] if model_path.endswith(".onnx") else model_path
    return base + ".transform.json"


def write(transform, file):
    with open(file, "w", encoding="ascii") as f:
        json.dump(transform, f, indent=2)
        f.write("\n")


def _resized(w, h, resize):
    if isinstance(resize, (list, tuple)):
        return resize[1], resize[0]
    if not resize:
        return w, h
    # torchvision truncates the longer side
    return (resize, int(resize * h / w)) if w <= h else (int(resize * w / h), resize)


def _half_is_enough(w, h, resize):
    w, h = (w + 1) // 2, (h + 1) // 2
    if isinstance(resize, (list, tuple)):
        return w >= resize[1] and h >= resize[0]
    return 0 < resize <= min(w, h)


def apply(transform, image):
    """PIL image -> float32 (3,H,W), the way torchvision's PIL path does it. With "draft" the image must have been opened
    from a JPEG and not read yet."""
    if transform.get("draft") and _half_is_enough(*image.size, transform["resize"]):
        image.draft("RGB", (image.size[0] // 2, image.size[1] // 2))
    image = image.convert("RGB")
    size = _resized(*image.size, transform["resize"])
    if size != image.size:
        image = image.resize(size, _PIL[transform["interpolation"]])
    crop = transform["crop"]
    ch, cw = (crop, crop) if isinstance(crop, int) else crop
    w, h = image.size
    left, top = int(round((w - cw) / 2.0)), int(round((h - ch) / 2.0))
    image = image.crop((left, top, left + cw, top + ch))
    a = np.asarray(image, np.float32)
    if transform["channels"] == "bgr":
        a = a[:, :, ::-1]
    a = a * np.float32(transform["scale"]) - np.asarray(transform["mean"], np.float32)
    a = a / np.asarray(transform["std"], np.float32)
    return np.ascontiguousarray(a.transpose(2, 0, 1))
