#!/usr/bin/python3
"""Decode, resize and crop against PIL and torchvision's rules: mean and largest difference in pixel values.

    test_decode_pil.py TOOL        TOOL is the program built from tool_decode.c

Exit 0 when all agree, 1 when not, 77 when PIL or the photos are missing.
"""
import json
import os
import subprocess
import sys
import tempfile

try:
    import numpy as np
    from PIL import Image, ImageOps
except ImportError as e:
    print(f"skipped: {e} (Debian: python3-pil, python3-numpy)")
    sys.exit(77)

PHOTOS = [
    "/usr/lib/python3/dist-packages/skimage/data/" + n
    for n in ("rocket.jpg", "retina.jpg", "hubble_deep_field.jpg")
] + ["/usr/lib/python3/dist-packages/sklearn/datasets/images/" + n for n in ("china.jpg", "flower.jpg")]
FILTERS = {"bilinear": Image.BILINEAR, "bicubic": Image.BICUBIC, "nearest": Image.NEAREST}
TOOL = sys.argv[1]
failed = 0


def resize_and_crop(im, resize, crop, how):
    """torchvision 0.14's Resize and CenterCrop on a PIL image (its rules, without importing torch)."""
    w, h = im.size
    if isinstance(resize, list):
        im = im.resize((resize[1], resize[0]), FILTERS[how])
    elif resize:
        short, long = (w, h) if w <= h else (h, w)
        longer = int(resize * long / short)
        im = im.resize((resize, longer) if w <= h else (longer, resize), FILTERS[how])
    ch, cw = crop if isinstance(crop, list) else (crop, crop)
    w, h = im.size
    if cw > w or ch > h:
        left, top = max(cw - w, 0) // 2, max(ch - h, 0) // 2
        padded = Image.new(im.mode, (max(w, cw), max(h, ch)))
        padded.paste(im, (left, top))
        im = padded
        w, h = im.size
    top, left = int(round((h - ch) / 2.0)), int(round((w - cw) / 2.0))
    return im.crop((left, top, left + cw, top + ch))


def ours(path, resize, crop, how, exif=False, **more):
    t = {"resize": resize, "crop": crop, "interpolation": how, "exif": exif, **more}
    ch, cw = crop if isinstance(crop, list) else (crop, crop)
    with tempfile.TemporaryDirectory() as d:
        with open(d + "/t.json", "w") as f:
            json.dump(t, f)
        subprocess.run([TOOL, d + "/t.json", d + "/out", path], check=True)
        return np.fromfile(d + "/out", np.float32).reshape(ch, cw, 3)


def difference(name, got, want, mean_limit, max_limit):
    global failed
    d = np.abs(got.astype(np.float64) - want.astype(np.float64))
    ok = d.mean() <= mean_limit and d.max() <= max_limit
    failed += not ok
    print(f"{'ok  ' if ok else 'FAIL'} {name}: mean {d.mean():.4f} max {d.max():.0f}")


def compare(name, path, resize, crop, how, exif=False):
    im = Image.open(path)
    if exif:
        im = ImageOps.exif_transpose(im)
    want = np.asarray(resize_and_crop(im.convert("RGB"), resize, crop, how))
    difference(f"{name} {im.size[0]}x{im.size[1]} {im.mode} resize {resize} crop {crop} {how}",
               ours(path, resize, crop, how, exif), want, 0, 0)


def photos():
    for path in PHOTOS:
        name = os.path.basename(path)
        for how in FILTERS:
            compare(name, path, 256, 224, how)
        compare(name, path, 0, 224, "bilinear")
        compare(name, path, [100, 333], [97, 64], "bicubic")
        compare(name, path, 900, [901, 777], "bicubic")
        compare(name, path, 64, [81, 120], "bilinear")  # pads on both sides


def variants(folder):
    """Gray, CMYK, EXIF, progressive, chroma layouts, odd sizes: written by PIL, read by both."""
    photo = Image.open(PHOTOS[3]).convert("RGB")
    small = photo.resize((251, 167), Image.BICUBIC)

    def save(name, im, **kw):
        path = os.path.join(folder, name + ".jpg")
        im.save(path, **kw)
        return path

    compare("gray", save("gray", photo.convert("L"), quality=90), 256, 224, "bilinear")
    compare("cmyk", save("cmyk", photo.convert("CMYK"), quality=90), 256, 224, "bicubic")
    for s in (0, 1, 2):
        for progressive in (False, True):
            path = save(f"chroma{s}{progressive}", small, subsampling=s, progressive=progressive)
            compare(f"chroma {s} progressive {progressive}", path, 128, 112, "bicubic")
    for w, h in ((1, 1), (1, 50), (37, 1), (8, 8), (9, 17), (333, 2)):
        path = save(f"size{w}x{h}", photo.resize((w, h), Image.BICUBIC))
        for how in FILTERS:
            compare(f"size {w}x{h}", path, 31, 24, how)
    for o in range(1, 9):
        exif = Image.Exif()
        exif[0x112] = o
        path = save(f"exif{o}", small, exif=exif)
        compare(f"exif {o} applied", path, 100, 90, "bilinear", exif=True)
        compare(f"exif {o} ignored", path, 100, 90, "bilinear")
    path = save("plain", small)
    compare("exif asked for, not there", path, 100, 90, "bilinear", exif=True)


def numbers():
    """scale, mean, std and channel order, in f32 as written in kernels.h."""
    im = np.asarray(resize_and_crop(Image.open(PHOTOS[4]).convert("RGB"), 256, 224, "bicubic"))
    mean, std, scale = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225], 1 / 255
    f = np.float32
    for channels in ("rgb", "bgr"):
        src = im if channels == "rgb" else im[:, :, ::-1]
        want = (src.astype(f) * f(scale) - np.array(mean, f)) / np.array(std, f)
        got = ours(PHOTOS[4], 256, 224, "bicubic", mean=mean, std=std, scale=scale, channels=channels)
        difference(f"normalised {channels}, bit for bit", got.view(np.int32), want.astype(f).view(np.int32), 0, 0)


def drafted(path, size, exif=False):
    """PIL's draft of half the size, or the whole where `size`, that the shorter side or (h, w) must have, is larger."""
    im = Image.open(path)
    w, h = im.size
    half = [(w + 1) // 2, (h + 1) // 2]
    turned = exif and im.getexif().get(0x112, 1) >= 5
    want = size[::-1] if isinstance(size, list) else [size, size]
    shape = half[::-1] if turned else half
    enough = all(a >= b for a, b in zip(shape, want)) if isinstance(size, list) else min(half) >= size > 0
    if enough:
        im.draft("RGB", (w // 2, h // 2))
        assert list(im.size) == half
    return (ImageOps.exif_transpose(im) if exif else im).convert("RGB"), enough


def draft(folder):
    """The half, exactly where it is enough, and PIL's pixels of it."""
    taken = set()
    photo = Image.open(PHOTOS[3]).convert("RGB")
    orientation = Image.Exif()
    orientation[0x112] = 6
    kinds = {"gray": ("L", {}), "cmyk": ("CMYK", {}), "4:4:4": ("RGB", {"subsampling": 0})}
    kinds |= {"4:2:2": ("RGB", {"subsampling": 1}), "4:2:0": ("RGB", {"subsampling": 2})}
    kinds |= {"progressive": ("RGB", {"progressive": True}), "turned": ("RGB", {"exif": orientation})}
    for w, h in ((320, 256), (319, 255), (321, 257), (510, 333), (333, 510)):
        for kind, (mode, options) in kinds.items():
            path = os.path.join(folder, f"draft{w}x{h}{kind.replace(':', '')}.jpg")
            photo.resize((w, h), Image.BICUBIC).convert(mode).save(path, quality=90, **options)
            for size in (0, 64, 127, 128, 129, 167, [128, 160], [160, 128], [129, 160], [128, 161], [300, 20]):
                im, half = drafted(path, size, exif=True)
                taken.add((half, isinstance(size, list)))
                want = np.asarray(resize_and_crop(im, size, 100, "bilinear"))
                got = ours(path, size, 100, "bilinear", exif=True, draft=True)
                difference(f"draft {kind} {w}x{h} resize {size}: {'half' if half else 'whole'}", got, want, 0, 0)
    assert len(taken) == 4
    for path in PHOTOS[3:]:
        big = os.path.join(folder, "big.jpg")
        Image.open(path).convert("RGB").resize((1280, 854), Image.BICUBIC).save(big, quality=92)
        d = np.abs(ours(big, 256, 224, "bilinear", draft=True) - ours(big, 256, 224, "bilinear"))
        assert d.max() > 0
        print(f"     a draft of {os.path.basename(path)} at 1280x854 differs: mean {d.mean():.3f} max {d.max():.0f}")


missing = [p for p in PHOTOS if not os.path.exists(p)]
if missing:
    print(f"skipped: no {missing[0]} (Debian: python3-skimage, python3-sklearn)")
    sys.exit(77)
photos()
with tempfile.TemporaryDirectory() as tmp:
    variants(tmp)
    draft(tmp)
numbers()
print(f"{failed} comparisons failed")
sys.exit(1 if failed else 0)
