#!/usr/bin/python3
"""Writes the seeds of fuzz_kernels_decode, fuzz_kernels_transform and fuzz_store_tar (python3-pil needed)."""
import io
import os
import tarfile

from PIL import Image

HERE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "corpus")


def write(target, name, data):
    folder = os.path.join(HERE, target)
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, name), "wb") as f:
        f.write(data)


def photo(w, h, mode):
    im = Image.new("RGB", (w, h))
    im.putdata([((x * 7) % 256, (y * 5 + x) % 256, (x * y) % 256) for y in range(h) for x in range(w)])
    return im.convert(mode)


def jpeg(w, h, mode="RGB", orientation=None, **kw):
    out = io.BytesIO()
    if orientation:
        kw["exif"] = Image.Exif()
        kw["exif"][0x112] = orientation
    photo(w, h, mode).save(out, "JPEG", quality=60, **kw)
    return out.getvalue()


def tar(members, **kw):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", **kw) as t:
        for name, data, kind in members:
            info = tarfile.TarInfo(name)
            info.type = kind
            info.size = len(data)
            info.linkname = "0.jpg" if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE) else ""
            t.addfile(info, io.BytesIO(data))
    data = out.getvalue().rstrip(b"\0")  # tarfile fills up to 10 KiB
    return data + bytes(-len(data) % 512 + 1024)


for name, head, data in (
    ("gray", b"\x80\x30", jpeg(20, 13, "L")),
    ("rgb", b"\xc1\x41", jpeg(33, 17)),
    ("rgb444", b"\x02\x0f", jpeg(17, 40, subsampling=0)),
    ("cmyk", b"\xa1\x22", jpeg(16, 16, "CMYK")),
    ("progressive", b"\x80\x55", jpeg(40, 24, progressive=True)),
    ("restart", b"\x40\x13", jpeg(30, 30, optimize=True)),
    ("exif6", b"\x91\x60", jpeg(24, 10, orientation=6)),
    ("exif3", b"\x11\x60", jpeg(10, 24, orientation=3)),
    ("one", b"\x81\x1f", jpeg(1, 1)),
):
    write("kernels_decode", name, head + data)

for name, text in (
    ("short", '{"crop":224}'),
    ("all", '{"resize": 256, "interpolation": "bicubic", "crop": 224, "mean": [127,127,127], '
            '"std": [128,128,128], "scale": 1, "channels": "rgb", "exif": false}'),
    ("pairs", '{"resize":[10,20],"crop":[3,4],"channels":"bgr","exif":true,"interpolation":"nearest"}'),
    ("floats", '{"crop":1,"mean":[0.485,-0.0,1e-45],"std":[3.4e38,1.17549435e-38,0.1],"scale":0.00392156863}'),
    ("escapes", '{"cr\\u006fp":8}'),
    ("twice", '{"crop":8,"crop":9}'),
    ("deep", '{"crop":[[[[[[1]]]]]]}'),
):
    write("kernels_transform", name, text.encode())

REG, DIR, SYM, LNK = tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE
plain = [("0.jpg", b"x" * 9, REG), ("0.cls", b"3\n", REG), ("a/1.cls", b"4", REG), ("a/1.JPEG", b"y" * 30, REG)]
long = [("n" * 150 + ".jpg", b"z", REG), ("n" * 150 + ".cls", b"5", REG)]
for name, members, kw in (
    ("ustar", plain, {"format": tarfile.USTAR_FORMAT}),
    ("gnu", long, {"format": tarfile.GNU_FORMAT}),
    ("pax", long + [("\u00e9.jpg", b"q", REG), ("\u00e9.cls", b"6", REG)], {"format": tarfile.PAX_FORMAT}),
    ("paxglobal", plain, {"format": tarfile.PAX_FORMAT, "pax_headers": {"comment": "all"}}),
    ("links", [("d", b"", DIR), ("s.jpg", b"", SYM), ("h.jpg", b"", LNK)] + plain, {}),
    ("empty", [], {}),
    ("pairless", [("0.jpg", b"x", REG), ("1.cls", b"1", REG), ("2.cls", b"a\nb", REG)], {}),
):
    write("store_tar", name, tar(members, **kw))
short = tar(long, format=tarfile.PAX_FORMAT)
record = short.index(b" path=nnn")
write("store_tar", "paxzero", short[: record - 3] + b"000" + short[record:])
