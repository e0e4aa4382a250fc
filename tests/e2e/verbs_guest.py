"""What the tests that run inside ci/softroce's guest share: a job on verbs, its devices, what spoils the cable.

Python's standard library only: a guest has one CPU, and importing torch takes longer than a test.
"""

import contextlib
import filecmp
import glob
import io
import json
import os
import random
import struct
import subprocess
import tarfile
import time

from hapi.node import Node

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
PROGRAMS = os.environ.get("HAPI_PROGRAMS", os.path.join(ROOT, "build", "release"))
DATA = os.environ.get("HAPI_DATA", os.path.join(ROOT, "build", "data"))
HAPI, HAPI_RT = os.path.join(PROGRAMS, "hapi"), os.path.join(PROGRAMS, "hapi-rt")
HOST = os.environ.get("HAPI_TEST_VERBS_HOST", "")
PEER = os.environ.get("HAPI_TEST_PEER_HOST", "")
HOST6 = os.environ.get("HAPI_TEST_VERBS_HOST6", "")
NODE_DEVICE, CLIENT_DEVICE, NODE_PORT, CLIENT_PORT = "rxeA", "rxeB", "va", "vb"

NOTICE_S = 5  # the documented deadline: whoever is left has noticed by then
KINDS = ("qp", "cq", "mr", "pd", "cm_id")


def sh(*command, timeout=30):
    """Its output. One that hangs in the kernel cannot be killed: it is left, and said."""
    p = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        out, err = p.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        p.kill()
        raise OSError(f"{' '.join(command)}: hangs for {timeout} s") from None
    if p.returncode:
        raise OSError(f"{' '.join(command)}: {err.strip()}")
    return out


def wait_until(what, seconds, every=0.05):
    """What `what` returned when it was true, or last; and the seconds it took."""
    started = time.monotonic()
    while True:
        said = what()
        took = time.monotonic() - started
        if said or took > seconds:
            return said, took
        time.sleep(every)


# ---- data and network


def _varint(n):
    out = b""
    while n > 127:
        out += bytes([n & 127 | 128])
        n >>= 7
    return out + bytes([n])


def _field(number, value):
    """A protobuf field: int, bytes or str."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    value = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _tensor(name, dims, rng, spread):
    count = 1
    for d in dims:
        count *= d
    raw = struct.pack(f"<{count}f", *(rng.uniform(-spread, spread) for _ in range(count)))
    return b"".join(_field(1, d) for d in dims) + _field(2, 1) + _field(8, name) + _field(9, raw)


def _ints(name, *values):
    return _field(1, name) + b"".join(_field(8, v) for v in values) + _field(20, 7)


def _node(op, inputs, output, *attributes):
    names = b"".join(_field(1, i) for i in inputs) + _field(2, output)
    return names + _field(3, output) + _field(4, op) + b"".join(_field(5, a) for a in attributes)


def _value(name, *dims):
    shape = b"".join(_field(1, _field(2, d) if isinstance(d, str) else _field(1, d)) for d in dims)
    return _field(1, name) + _field(2, _field(1, _field(1, 1) + _field(2, shape)))


def tiny_model(path, channels=16):
    """A network whose features are large and cheap: 3x3 convolution, ReLU, flatten: 64 KiB a sample at 16 channels."""
    rng, width = random.Random(1), channels * 32 * 32
    nodes = [
        _node("Conv", ("input", "w", "b"), "conv", _ints("strides", 2, 2), _ints("pads", 1, 1, 1, 1)),
        _node("Relu", ("conv",), "relu"),
        _node("Flatten", ("relu",), "features"),
        _node("Gemm", ("features", "gw", "gb"), "output"),
    ]
    tensors = [("w", (channels, 3, 3, 3), 0.5), ("b", (channels,), 0.1), ("gw", (width, 10), 0.01), ("gb", (10,), 0.1)]
    graph = b"".join(_field(1, n) for n in nodes) + _field(2, "tiny")
    graph += b"".join(_field(5, _tensor(name, dims, rng, spread)) for name, dims, spread in tensors)
    graph += _field(11, _value("input", "batch", 3, 64, 64)) + _field(12, _value("output", "batch", 10))
    with open(path, "wb") as f:
        f.write(_field(1, 8) + _field(8, _field(1, "") + _field(2, 17)) + _field(7, graph))
    transform = {"resize": 64, "interpolation": "bilinear", "crop": 64, "mean": [127] * 3, "std": [128] * 3}
    with open(path.replace(".onnx", ".transform.json"), "w", encoding="ascii") as f:
        json.dump({**transform, "scale": 1, "channels": "rgb", "exif": False}, f)
    return path


def add(tar, member, data):
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def padded(photo, size):
    """The same photo in `size` bytes: comments after its first marker, which a decoder skips. Bytes for the wire."""
    rng, comments = random.Random(size), b""
    while len(photo) + len(comments) < size:
        n = min(65533, max(size - len(photo) - len(comments) - 4, 0))
        comments += b"\xff\xfe" + struct.pack(">H", n + 2) + rng.randbytes(n)
    return photo[:2] + comments + photo[2:]


def small_sets(folder, size, **sizes):
    """Of each class the first photos of the prepared shards, padded to `size` bytes, as datasets of one shard; False:
    there are no shards."""
    for name, per_class in sizes.items():
        shards = sorted(glob.glob(os.path.join(DATA, f"fashion-{name}", "*.tar")))
        if not shards:
            return False
        os.makedirs(os.path.join(folder, name))
        with tarfile.open(os.path.join(folder, name, "part.tar"), "w", format=tarfile.USTAR_FORMAT) as out:
            left = {}
            for shard in shards:
                with tarfile.open(shard) as tar:
                    members = iter(tar)
                    for photo, label in zip(members, members):
                        of = tar.extractfile(label).read()
                        if left.setdefault(of, per_class):
                            left[of] -= 1
                            add(out, photo, padded(tar.extractfile(photo).read(), size))
                            add(out, label, of)
                if not any(left.values()):
                    break
    return True


# ---- programs


def verbs_node(data, port, host=None):
    host = host or HOST
    listen = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    small = ("--read-area", "1M", "--send-area", "4M", "--batches", "3")
    return Node(HAPI_RT, data, "--insecure", "--transport", "verbs", *small, listen=listen)


class Job:
    """One `hapi train` on verbs; its dump, its order and what it said lie beside `prefix`."""

    def __init__(self, model, address, prefix, policy, epochs=1, options=()):
        self.prefix, self.address = prefix, address
        self.order, self.json = prefix + "-order", prefix + ".json"
        for old in glob.glob(glob.escape(prefix) + "[-.]*"):
            os.unlink(old)
        command = [HAPI, "train", model, "--nodes", address, "--dataset", "train", "--test-dataset", "test"]
        command += ["--transport", "verbs", "--policy", policy, "--epochs", str(epochs), "--batch", "16", "--checksum"]
        command += ["--quiet", "--json", self.json, "--dump-features", prefix, "--dump-order", self.order, *options]
        self.started = time.monotonic()
        with open(prefix + ".said", "wb") as said:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=said, close_fds=True
            )
        self.pid = self.process.pid

    def delivered(self):
        """[(epoch, sample)] as delivered so far."""
        try:
            with open(self.order, encoding="ascii") as f:
                return [tuple(map(int, line.split())) for line in f if line.endswith("\n")]
        except OSError:
            return []

    def running(self):
        return self.process.poll() is None

    def end(self, seconds):
        """The exit code; None when it is not over in time."""
        try:
            return self.process.wait(max(seconds, 0))
        except subprocess.TimeoutExpired:
            return None

    def kill(self):
        self.process.kill()
        self.process.wait()

    def said(self):
        with open(self.prefix + ".said", errors="replace") as f:
            return f.read().strip()

    def report(self):
        with open(self.json, encoding="utf-8") as f:
            return json.load(f)

    def same(self, other):
        """The parts of its dump that differ from those of `other`."""
        parts = ("train", "train-labels", "test", "test-labels")
        files = [(f"{self.prefix}-{p}.npy", f"{other.prefix}-{p}.npy") for p in parts]
        return [a for a, b in files if not filecmp.cmp(a, b, shallow=False)]


# ---- what a process holds


def process_of(task):
    """The process that has this thread: objects are listed under the thread that made them."""
    with contextlib.suppress(OSError), open(f"/proc/{task}/status", encoding="ascii", errors="replace") as f:
        for line in f:
            if line.startswith("Tgid:"):
                return int(line.split()[1])
    return task


def holders(kinds=KINDS):
    """{pid: {kind: count}} of the RDMA objects of processes, dead ones included."""
    out = {}
    for kind in kinds:
        for row in json.loads(sh("rdma", "-j", "resource", "show", kind) or "[]"):
            if row.get("pid"):
                out.setdefault(process_of(row["pid"]), dict.fromkeys(kinds, 0))[kind] += 1
    return out


def held(pid):
    return holders().get(pid, dict.fromkeys(KINDS, 0))


def queue_pairs(pid):
    return holders(("qp",)).get(pid, {"qp": 0})["qp"]


def files(pid):
    return len(os.listdir(f"/proc/{pid}/fd"))


def alive():
    """{pid: name} of our programs, zombies left out."""
    out = {}
    for stat in glob.glob("/proc/[0-9]*/stat"):
        with contextlib.suppress(OSError), open(stat, encoding="ascii", errors="replace") as f:
            pid, rest = f.read().split(" (", 1)
            name, rest = rest.rsplit(") ", 1)
            if name in ("hapi", "hapi-rt") and rest[0] != "Z":
                out[int(pid)] = name
    return out


def state():
    """For a message: queue pairs, devices that processes have open, what has been said to the kernel's log."""
    lines = [sh("rdma", "resource", "show", "qp")]
    for pid, name in alive().items():
        for fd in glob.glob(f"/proc/{pid}/fd/*"):
            with contextlib.suppress(OSError):
                if "infiniband" in os.readlink(fd):
                    lines.append(f"{name} {pid} has {os.readlink(fd)} open as {os.path.basename(fd)}")
    return "\n".join(lines)


def receiver_not_ready():
    """The device's counters of it, added up."""
    total = 0
    for file in glob.glob("/sys/class/infiniband/*/ports/1/hw_counters/*rnr*"):
        with open(file, encoding="ascii") as f:
            total += int(f.read())
    return total


# ---- what spoils the cable


@contextlib.contextmanager
def shaped(*qdisc, ports=(NODE_PORT, CLIENT_PORT)):
    """Both directions through this queueing discipline: shaped("netem", "loss", "1%")."""
    try:
        for port in ports:
            sh("tc", "qdisc", "replace", "dev", port, "root", *qdisc)
        yield
    finally:
        for port in ports:
            subprocess.run(("tc", "qdisc", "del", "dev", port, "root"), capture_output=True)


@contextlib.contextmanager
def two_lanes(mbit):
    """TCP on one, everything else (RoCE) on the other, which has that rate; yields what cuts the other one."""
    ports = (NODE_PORT, CLIENT_PORT)

    def cut():
        for port in ports:
            sh("tc", "qdisc", "replace", "dev", port, "parent", "1:3", "handle", "31:", "netem", "loss", "100%")

    try:
        for port in ports:
            sh("tc", "qdisc", "replace", "dev", port, "root", "handle", "1:", "prio", "priomap", *"2" * 16)
            match = ("u32", "match", "ip", "protocol", "6", "0xff", "flowid", "1:1")
            sh("tc", "filter", "add", "dev", port, "parent", "1:", "protocol", "ip", *match)
            rate = ("tbf", "rate", f"{mbit}mbit", "burst", "64kb", "latency", "100ms")
            sh("tc", "qdisc", "add", "dev", port, "parent", "1:3", "handle", "30:", *rate)
        yield cut
    finally:
        for port in ports:
            subprocess.run(("tc", "qdisc", "del", "dev", port, "root"), capture_output=True)


def link_down():
    sh("ip", "link", "set", NODE_PORT, "down")


def link_up():
    """The devices whose kernel queue pair for connection management did not survive, made anew: rxe has it in its error
    state for ever once a message finds no way out (on a device that is down, no route helps)."""
    sh("ip", "link", "set", NODE_PORT, "up")
    sh(os.path.join(ROOT, "ci", "softroce-guest"), "routes")
    broken = []
    for row in json.loads(sh("rdma", "-j", "resource", "show", "qp")):
        if row["type"] == "GSI" and row["state"] == "ERR":
            broken.append(row["ifname"])
            device_remove(row["ifname"])
            device_add(row["ifname"])
    return broken


@contextlib.contextmanager
def no_route():
    """From the node to the client: rxe then flushes the queue pair without naming a cause, and its queue pair for
    connection management is of no use until the device is made anew."""
    route = ("unreachable", f"{PEER}/32", "metric", "1", "table", "101")
    sh("ip", "route", "add", *route)
    try:
        yield
    finally:
        sh("ip", "route", "del", *route)


def device_remove(device=NODE_DEVICE):
    """Seconds that it took; OSError when it hangs, which it does while a process keeps the device open."""
    started = time.monotonic()
    try:
        sh("rdma", "link", "delete", device, timeout=NOTICE_S)
    except OSError as e:
        raise OSError(f"{e}: {state()}") from None
    return time.monotonic() - started


def device_add(device=NODE_DEVICE):
    sh("rdma", "link", "add", device, "type", "rxe", "netdev", NODE_PORT if device == NODE_DEVICE else CLIENT_PORT)


def device_there(device):
    return any(row["ifname"] == device for row in json.loads(sh("rdma", "-j", "link", "show")))


def device_added(device):
    """Whether it is there now; it cannot be added again as long as its removal is under way."""
    with contextlib.suppress(OSError):
        device_add(device)
    return device_there(device)
