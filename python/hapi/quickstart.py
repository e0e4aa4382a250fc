"""The same transfer learning twice, with and without near-data feature extraction, side by side."""

import argparse
import contextlib
import os
import secrets
import signal
import sys
import tempfile

from .node import Failed, Link, Node, train

MBIT = 50
EPOCHS = 20  # of the linear head


def bytes_text(n):
    for unit in ("B", "kB", "MB", "GB"):
        if n < 1000 or unit == "GB":
            return f"{n:.0f} {unit}" if unit == "B" else f"{n:.1f} {unit}"
        n /= 1000
    return ""


def row(what, result, accuracy=None):
    epochs = result["epochs"]
    later = epochs[1:]
    images = sum(e["images"] for e in later)
    seconds = sum(e["seconds"] for e in later)
    return (
        what,
        result["policy"],
        result["split"],
        f"{epochs[-1]['test_accuracy']:.3f}" if accuracy is None else accuracy,
        f"{epochs[0]['images_per_s']:,.0f}",
        f"{images / seconds:,.0f}" if seconds > 0 else "-",
        bytes_text(sum(e["wire_bytes"] for e in epochs)),
    )


def table(rows):
    head = ("data", "policy", "split", "test accuracy", "images/s, epoch 1", "later (kept features)", "over the wire")
    rows = [head, *rows]
    widths = [max(len(r[i]) for r in rows) for i in range(len(head))]
    for i, r in enumerate(rows):
        print("  ".join(c.ljust(w) if k < 3 else c.rjust(w) for k, (c, w) in enumerate(zip(r, widths))))
        if i == 0:
            print("  ".join("-" * w for w in widths))


def say(text):
    print(f"== {text}", flush=True)


def fashion(a):
    """Both policies on loopback; freeze with several seeds."""
    hapi, rt = (os.path.join(a.programs, p) for p in ("hapi", "hapi-rt"))
    rows = []
    with Node(rt, a.data) as node:
        for policy, seeds in (("freeze", range(a.seeds)), ("none", range(1))):
            results = []
            for seed in seeds:
                say(f"Fashion-MNIST, policy {policy}, seed {seed}")
                options = ("--policy", policy, "--epochs", a.epochs, "--seed", seed)
                results.append(train(hapi, a.model, node.address, "fashion-train", "fashion-test", *options))
            accuracy = [r["epochs"][-1]["test_accuracy"] for r in results]
            text = f"{sum(accuracy) / len(accuracy):.3f}"
            if len(accuracy) > 1:
                text += f" (mean of {len(accuracy)}: {min(accuracy):.3f}..{max(accuracy):.3f})"
            rows.append(row("Fashion-MNIST, loopback", results[0], text))
    return rows


def photos(a, stack):
    """Both policies on heavy photos, over a shaped link where that can be had."""
    hapi, rt = (os.path.join(a.programs, p) for p in ("hapi", "hapi-rt"))
    options, where, link = (), f"photos, {MBIT} Mbit/s", None
    if not a.unshaped:
        try:
            link = stack.enter_context(Link(MBIT))
        except OSError as e:
            say(f"the link is NOT shaped to {MBIT} Mbit/s: {e}")
    if link:
        key = os.path.join(stack.enter_context(tempfile.TemporaryDirectory(prefix="hapi-key-")), "key")
        with open(os.open(key, os.O_CREAT | os.O_WRONLY, 0o600), "w", encoding="ascii") as f:
            f.write(f"quickstart:{secrets.token_hex(32)}\n")
        options = ("--key", key)
        node = Node(rt, a.data, *options, listen=f"{Link.STORAGE}:0", prefix=link.storage())
    else:
        where = "photos, loopback, unshaped"
        node = Node(rt, a.data)
    rows = []
    with node:
        for policy in ("freeze", "none"):
            say(f"{where}, policy {policy}")
            prefix = link.compute() if link else ()
            more = ("--policy", policy, "--epochs", 3, "--seed", 0, *options)
            rows.append(row(where, train(hapi, a.model, node.address, "photos-train", "photos-test", *more, prefix=prefix)))
    return rows


def main(argv=None):
    p = argparse.ArgumentParser(prog="ci/quickstart", description=__doc__)
    p.add_argument("--programs", required=True, metavar="DIR", help="where hapi and hapi-rt are")
    p.add_argument("--data", required=True, metavar="DIR")
    p.add_argument("--model", required=True, metavar="FILE.onnx")
    p.add_argument("--seeds", type=int, default=3, help="runs of policy freeze whose accuracy is averaged (default: 3)")
    p.add_argument("--epochs", type=int, default=EPOCHS, help=f"of the linear head (default: {EPOCHS})")
    p.add_argument("--unshaped", action="store_true", help=f"photos over loopback in place of {MBIT} Mbit/s")
    a = p.parse_args(argv)
    # A signal unwinds the stack like an exception, so that nodes and namespaces are taken down.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        rows = fashion(a)
        with contextlib.ExitStack() as stack:
            rows += photos(a, stack)
    except (Failed, OSError, RuntimeError) as e:
        print(f"ci/quickstart: {e}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    print()
    table(rows)
    print("\nEpoch 1 reads, decodes and runs the frozen network; its features are kept in memory and train the later epochs.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
