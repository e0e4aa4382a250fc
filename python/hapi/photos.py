"""Real photos that Debian's python3-skimage and python3-sklearn ship, and seeded crops of them."""

import os

import numpy as np
from PIL import Image

# One class each; retina and hubble are real images too, and as heavy to decode as any.
NAMES = (
    "astronaut",
    "chelsea",
    "china",
    "coffee",
    "flower",
    "hubble_deep_field",
    "ihc",
    "motorcycle_left",
    "retina",
    "rocket",
)


def _folders():
    import skimage.data
    import sklearn.datasets

    return (
        os.path.dirname(skimage.data.__file__),
        os.path.join(os.path.dirname(sklearn.datasets.__file__), "images"),
    )


def path(name):
    """Path of the photo with this name; FileNotFoundError says which package ships it."""
    for folder in _folders():
        for ext in ("png", "jpg"):
            p = os.path.join(folder, f"{name}.{ext}")
            if os.path.exists(p):
                return p
    raise FileNotFoundError(f"photo {name}: not in {' or '.join(_folders())} (apt: python3-skimage, python3-sklearn)")


def load(name):
    """PIL image, RGB."""
    return Image.open(path(name)).convert("RGB")


def crop(image, rng, size=(500, 375)):
    """A random part of the photo (35-100 % of its shorter side), perhaps mirrored, resized to size (w, h)."""
    w, h = image.size
    aspect = size[0] / size[1]
    scale = rng.uniform(0.35, 1.0)
    cw = min(w, h * aspect) * scale
    ch = cw / aspect
    x = rng.uniform(0, w - cw)
    y = rng.uniform(0, h - ch)
    out = image.resize(size, Image.BICUBIC, box=(x, y, x + cw, y + ch))
    return out.transpose(Image.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else out


def crops(n, seed=0, size=(500, 375)):
    """n crops, the photos taking turns."""
    rng = np.random.default_rng(seed)
    images = [load(name) for name in NAMES]
    return [crop(images[i % len(images)], rng, size) for i in range(n)]
