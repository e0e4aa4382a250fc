"""`hapi cuts` on torchvision's exports against the measured tables: where a split first pays.

    /usr/bin/python3 tests/kernels/test_cuts.py HAPI [NETWORK...]

HAPI: the program. The exports are those of tests/tools/exports.py. Exit code 77: torch is missing.
"""
import json
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))
import exports  # noqa: E402  (exits with 77 where torch is missing)

F32_INPUT = 3 * 224 * 224 * 4
U8_INPUT = 3 * 224 * 224
JPEG = 110 << 10

# Network: the first cut smaller than the f32 input, with the share of the network's FLOPs before it, in
# per cent; the first that is smaller than the uint8 image when f16 is on the wire; the first that is smaller
# than a JPEG in f32.
FIRST = {
    "alexnet": (("features.2", 10), ("features.2", 10), ("features.12", 92)),
    "resnet18": (("layer2.0", 42), ("layer3.0", 65), ("layer4.0", 87)),
    "resnet50": (("layer4.0", 89), ("avgpool", 100), ("avgpool", 100)),
    "vgg11": (("features.15", 86), ("features.20", 98), ("features.20", 98)),
    "vgg19": (("features.27", 90), ("features.36", 99), ("features.36", 99)),
    "densenet121": (("features.transition1", 45), ("features.transition2", 73), ("features.transition3", 96)),
    "vit_b_16": (("Gather", 100), ("Gather", 100), ("Gather", 100)),
    "mobilenet_v2": (("features.2", 17), ("features.4", 30), ("features.4", 30)),
    "efficientnet_b0": (("features.2.0", 13), ("features.3.0", 24), ("features.4.0", 33)),
    "swin_t": (("features.4", None), ("features.6", None), ("avgpool", 100)),
}

# Single cuts: bytes in f32 of one image, and FLOPs before it, both by hand.
EXACT = {
    "resnet18": {"layer2.0": (401408, 1520533504), "avgpool": (2048, None)},
    "resnet50": {"layer4.0": (2048 * 7 * 7 * 4, None)},
    "vgg11": {"features.0": (64 * 224 * 224 * 4, 2 * 64 * 27 * 224 * 224)},
    "alexnet": {"features.0": (64 * 55 * 55 * 4, 2 * 64 * 3 * 11 * 11 * 55 * 55)},
    "vit_b_16": {"conv_proj": (768 * 14 * 14 * 4, 2 * 768 * 3 * 16 * 16 * 14 * 14)},
}

failed = 0


def check(ok, text):
    global failed
    if not ok:
        failed += 1
        print(f"FAIL {text}", file=sys.stderr)


def named(cut, name):
    """"layer2.0", or an op inside of it, or torch's numbering of a repeated op: "Gather_4"."""
    return cut["name"] == name or cut["name"].startswith((name + "/", name + "_"))


def check_listing(network, cuts):
    check([c["index"] for c in cuts] == list(range(len(cuts))), f"{network}: indices")
    check(len({c["id"] for c in cuts}) == len(cuts), f"{network}: an id twice")
    check(len({c["name"] for c in cuts}) == len(cuts), f"{network}: a name twice")
    for before, after in zip(cuts, cuts[1:]):
        check(before["flops"] <= after["flops"] and before["params"] <= after["params"],
              f"{network}: {after['name']} has less before it than {before['name']}")
    for c in cuts:
        check(c["id"] == ",".join(sorted(t["name"] for t in c["tensors"])), f"{network}: id of {c['name']}")
        for t in c["tensors"]:
            elements = 1
            for d in t["shape"]:
                elements *= d
            check(t["shape"][0] == 1 and t["dtype"] == "f32" and t["bytes"] == 4 * elements,
                  f"{network}: tensor {t['name']}")
        check(c["bytes_f32"] == sum(t["bytes"] for t in c["tensors"]), f"{network}: bytes of {c['name']}")
    check(cuts[-1]["id"] == "output", f"{network}: the last cut is {cuts[-1]['id']}")


def check_first(network, cuts, bound, expected):
    name, share = expected
    first = next((c for c in cuts if c["bytes_f32"] < bound), None)
    percent = 100 * first["flops"] / cuts[-1]["flops"]
    check(named(first, name), f"{network}: first below {bound} B is {first['name']}, not {name}")
    check(share is None or abs(percent - share) <= 1.0,
          f"{network}: {percent:.1f} % before {name}, not {share}")
    return f"{first['name']} ({percent:.0f} %)"


def listing_of(hapi, path, *options):
    out = subprocess.run([hapi, "cuts", str(path), "--json", *options], check=True, stdout=subprocess.PIPE).stdout
    listing = json.loads(out)
    check(listing["model"] == str(path), f"{path}: {listing['model']}")
    return listing["cuts"]


def check_all(network, cuts, every):
    """--all: the single ones are among them, with the same figures; names and ids are each there once."""
    check_listing(network, every)
    figures = {c["id"]: (c["tensors"], c["bytes_f32"], c["flops"], c["params"]) for c in every}
    for c in cuts:
        check(figures.get(c["id"]) == (c["tensors"], c["bytes_f32"], c["flops"], c["params"]),
              f"{network}: {c['name']} is not in --all, or with other figures")
    wide = sum(len(c["tensors"]) > 1 for c in every)
    check(wide == len(every) - len(cuts), f"{network}: {wide} cuts of several tensors")
    check((wide > 0) == (network not in ("alexnet", "vgg11", "vgg19")), f"{network}: {wide} cuts of several tensors")
    return wide


def check_network(hapi, network):
    path = exports.network(network)
    cuts = listing_of(hapi, path)
    check(len(cuts) > 10, f"{network}: {len(cuts)} cuts")
    check_listing(network, cuts)
    every = listing_of(hapi, path, "--all")
    wide = check_all(network, cuts, every)
    two = listing_of(hapi, path, "--all", "--max-tensors", "2")
    check([c["id"] for c in two] == [c["id"] for c in every if len(c["tensors"]) <= 2], f"{network}: --max-tensors 2")
    firsts = [check_first(network, cuts, bound, expected)
              for bound, expected in zip((F32_INPUT, 2 * U8_INPUT, JPEG), FIRST[network])]
    by_name = {c["name"]: c for c in cuts}
    for name, (size, flops) in EXACT.get(network, {}).items():
        c = by_name.get(name)
        check(c is not None, f"{network}: no cut {name}")
        if c:
            check(c["bytes_f32"] == size, f"{network}: {name} has {c['bytes_f32']} B, not {size}")
            check(flops is None or c["flops"] == flops, f"{network}: {name}: {c['flops']} FLOP, not {flops}")
    print(f"{network:16} {len(cuts):3} cuts, {wide:3} of several tensors, {cuts[-1]['flops'] / 1e6:7.0f} MFLOP; {'; '.join(firsts)}")


def check_program(hapi):
    """Exit codes: 0, 1 failure, 2 usage."""
    cases = [(["--help"], 0), ([], 2), (["a", "b"], 2), (["--nonsense", "a"], 2), (["none"], 1)]
    cases += [(["a", "--max-tensors", "2"], 2), (["a", "--all", "--max-tensors"], 2)]
    cases += [(["a", "--all", "--max-tensors", n], 2) for n in ("0", "65", "-1", "2x", "")]
    for args, code in cases:
        got = subprocess.run([hapi, "cuts", *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        check(got.returncode == code, f"hapi cuts {args}: exit code {got.returncode}, not {code}")
        check(bool(got.stderr) == (code != 0), f"hapi cuts {args}: {got.stderr}")


def main():
    hapi = sys.argv[1]
    check_program(hapi)
    for network in sys.argv[2:] or FIRST:
        check_network(hapi, network)
    print(f"{failed} failed checks")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
