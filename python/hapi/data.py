"""Datasets for the quick start, the tests and the benches, from images that Debian packages ship.

    python -m hapi.data --output DATA [NAME...]

fashion-train, fashion-test: the first 2,000 training and the first 1,000 test images of Fashion-MNIST (package
    dataset-fashion-mnist): inverted to a white ground, scaled to 196x196 (bicubic), centred on 224x224, gray JPEG,
    quality 90; WebDataset shards of 200 (KEY.jpg, KEY.cls). The margin is what a 256/224 centre crop cuts off.
photos-train, photos-test: 400 and 100 crops of the photos of python3-skimage and python3-sklearn as colour JPEGs
    as heavy as ImageNet's, 20..300 KB; shards of 50. One class a photo.
photos-folders: 60 of the same kind in class folders.

Same parameters, same bytes. What is already there with the same parameters is kept.
"""

import argparse
import gzip
import hashlib
import io
import json
import os
import shutil
import sys
import tarfile

import numpy as np
from PIL import Image

from . import photos

FASHION = "/usr/share/datasets/fashion-mnist"
VERSION = 1  # raise when the code below makes other bytes from the same parameters

DATASETS = {
    "fashion-train": {"kind": "fashion", "part": "train", "n": 2000, "shard": 200, "size": 196, "quality": 90},
    "fashion-test": {"kind": "fashion", "part": "t10k", "n": 1000, "shard": 200, "size": 196, "quality": 90},
    "photos-train": {"kind": "photos", "n": 400, "shard": 50, "seed": 1, "mean": 160_000, "low": 20_000, "high": 300_000},
    "photos-test": {"kind": "photos", "n": 100, "shard": 50, "seed": 2, "mean": 160_000, "low": 20_000, "high": 300_000},
    "photos-folders": {"kind": "photos", "n": 60, "shard": 0, "seed": 3, "mean": 160_000, "low": 20_000, "high": 300_000},
}


def fashion_raw(part, n):
    """(images u8 (n,28,28), labels u8 (n,)) of part "train" or "t10k", the first n of the file."""
    out = []
    for what, header in (("images-idx3", 16), ("labels-idx1", 8)):
        file = os.path.join(FASHION, f"{part}-{what}-ubyte.gz")
        try:
            with gzip.open(file) as f:
                out.append(np.frombuffer(f.read(), np.uint8, offset=header))
        except FileNotFoundError as e:
            raise FileNotFoundError(f"{file} is missing (apt: dataset-fashion-mnist)") from e
    return out[0].reshape(-1, 28, 28)[:n], out[1][:n]


def encode(image, quality):
    f = io.BytesIO()
    image.save(f, "JPEG", quality=quality)
    return f.getvalue()


def fashion_jpeg(pixels, size, quality):
    """u8 (28,28), white on black as the dataset has it -> JPEG bytes, dark on white, size x size on 224x224."""
    image = Image.fromarray(255 - pixels).resize((size, size), Image.BICUBIC)
    canvas = Image.new("L", (224, 224), 255)
    canvas.paste(image, ((224 - size) // 2,) * 2)
    return encode(canvas, quality)


def _fashion(p):
    images, labels = fashion_raw(p["part"], p["n"])
    for i, (pixels, label) in enumerate(zip(images, labels)):
        yield f"{i:06d}", str(label), fashion_jpeg(pixels, p["size"], p["quality"])


def photo_jpeg(source, rng, mean, low, high):
    """A crop whose JPEG has about as many bytes as one draw of a log-normal with this mean asks for, or as many as
    quality 98 makes where the photo is smooth: what comes out is lighter than the mean asked for."""
    sigma = 0.5
    target = float(np.clip(rng.lognormal(np.log(mean) - sigma**2 / 2, sigma), low * 1.1, high * 0.9))
    scale = float(np.clip((target / 110_000) ** 0.5, 0.6, 1.6))
    image = photos.crop(source, rng, (round(500 * scale), round(375 * scale)))
    worse, better = 20, 98
    best = encode(image, worse)
    while worse < better:
        quality = (worse + better + 1) // 2
        data = encode(image, quality)
        if len(data) <= target:
            worse, best = quality, data
        else:
            better = quality - 1
    return best


def _photos(p):
    rng = np.random.default_rng(p["seed"])
    sources = [photos.load(name) for name in photos.NAMES]
    i = 0
    while i < p["n"]:
        k = i % len(sources)
        data = photo_jpeg(sources[k], rng, p["mean"], p["low"], p["high"])
        if not p["low"] <= len(data) <= p["high"]:
            continue  # too smooth a corner of the photo for any quality
        yield f"{i:06d}", photos.NAMES[k], data
        i += 1


def _add(tar, name, data):
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = len(data), 0o644, 0
    tar.addfile(info, io.BytesIO(data))


def write_shards(samples, folder, per_shard):
    """samples: (key, class, jpeg bytes). folder/000000.tar ... with KEY.jpg and KEY.cls."""
    os.makedirs(folder, exist_ok=True)
    tar = None
    for i, (key, label, data) in enumerate(samples):
        if i % per_shard == 0:
            if tar:
                tar.close()
            tar = tarfile.open(os.path.join(folder, f"{i // per_shard:06d}.tar"), "w", format=tarfile.USTAR_FORMAT)
        _add(tar, f"{key}.jpg", data)
        _add(tar, f"{key}.cls", label.encode())
    if tar:
        tar.close()


def write_folders(samples, folder):
    for key, label, data in samples:
        os.makedirs(os.path.join(folder, label), exist_ok=True)
        with open(os.path.join(folder, label, f"{key}.jpg"), "wb") as f:
            f.write(data)


def prepare(root, name):
    """Makes dataset `name` under root unless it is there with the same parameters. True when it was made. The stamp
    lies beside root, not in it: everything in root is data."""
    p = DATASETS[name]
    stamp_file = os.path.join(root.rstrip("/") + ".stamps", name)
    stamp = hashlib.sha256(json.dumps([VERSION, name, p], sort_keys=True).encode()).hexdigest()
    folder = os.path.join(root, name)
    if os.path.isdir(folder) and os.path.exists(stamp_file):
        with open(stamp_file, encoding="ascii") as f:
            if f.read().strip() == stamp:
                return False
    os.makedirs(os.path.dirname(stamp_file), exist_ok=True)
    os.makedirs(root, exist_ok=True)
    temporary = os.path.join(os.path.dirname(stamp_file), f"{name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)
    samples = _fashion(p) if p["kind"] == "fashion" else _photos(p)
    if p["shard"]:
        write_shards(samples, temporary, p["shard"])
    else:
        write_folders(samples, temporary)
    os.rename(temporary, folder)
    with open(stamp_file, "w", encoding="ascii") as f:
        f.write(stamp + "\n")
    return True


def main(argv=None):
    p = argparse.ArgumentParser(prog="hapi.data", description=__doc__.splitlines()[0])
    p.add_argument("--output", required=True, metavar="DATA", help="folder of the datasets")
    p.add_argument("names", nargs="*", metavar="NAME", help="which (default: all): " + ", ".join(DATASETS))
    a = p.parse_args(argv)
    unknown = [n for n in a.names if n not in DATASETS]
    if unknown:
        p.error(f"no dataset {unknown[0]!r}; there are {', '.join(DATASETS)}")
    try:
        for name in a.names or DATASETS:
            made = prepare(a.output, name)
            print(f"{os.path.join(a.output, name)}: {'made' if made else 'kept'}")
    except OSError as e:
        print(f"hapi.data: {e}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
