"""How the two sides choose a transport, who may reach the data port and when, and what silence leads to."""

import contextlib
import glob
import json
import os
import random
import signal
import socket
import struct
import subprocess
import tempfile
import time
import unittest

from hapi.node import Link
from harness import DATA, HAPI, HAPI_RT, LITE0, hapi, node, run, tar_jpegs, tiny_model, train_json, write_folders

SILENCE_S, NONCE_S = 4, 10
RDMA = bool(glob.glob("/sys/class/infiniband/*"))
ERROR, DATA_OPEN, DATA_READY, HEARTBEAT, STAT, STAT_REPLY = 2, 11, 12, 13, 16, 17


def field(tag, value):
    value = value.encode() if isinstance(value, str) else value
    return struct.pack("<HHI", tag, 0, len(value)) + value


def fields(body):
    out, at = {}, 0
    while at < len(body):
        tag, _, size = struct.unpack_from("<HHI", body, at)
        out[tag] = body[at + 8 : at + 8 + size]
        at += 8 + size
    return out


class Peer:
    """A client that speaks the control protocol and does only what it is told."""

    def __init__(self, address):
        host, port = address.rsplit(":", 1)
        self.socket = socket.create_connection((host, int(port)), 5)
        hello = field(1, struct.pack("<I", 0x49504148)) + field(2, struct.pack("<H", 1)) + field(3, struct.pack("<H", 1))
        self.send(1, hello + field(6, "client"))
        self.hello = self.next(1)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.socket.close()

    def send(self, kind, body):
        self.socket.sendall(struct.pack("<IHH", len(body) + 4, kind, 0) + body)

    def bytes(self, n):
        out = b""
        while len(out) < n:
            more = self.socket.recv(n - len(out))
            if not more:
                raise ConnectionError("the node has closed the connection")
            out += more
        return out

    def next(self, *kinds):
        """The fields of the next message of one of these kinds; heartbeats are answered meanwhile."""
        while True:
            size, kind, _ = struct.unpack("<IHH", self.bytes(8))
            body = self.bytes(size - 4)
            if kind in kinds:
                return fields(body)
            if kind == HEARTBEAT:
                self.send(HEARTBEAT, b"")

    def data_open(self, transport="ofi"):
        self.send(DATA_OPEN, field(1, struct.pack("<Q", 7)) + field(2, transport) + field(6, struct.pack("<I", 1)))
        return self.next(DATA_READY, ERROR)

    def stat(self):
        self.send(STAT, field(1, struct.pack("<Q", 9)))
        return json.loads(self.next(STAT_REPLY)[2])


def listening(pid):
    """The ports on which a process listens."""
    inodes = set()
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            inodes.add(os.readlink(f"/proc/{pid}/fd/{fd}").removeprefix("socket:[").removesuffix("]"))
    ports = set()
    for table in ("tcp", "tcp6"):
        with open(f"/proc/{pid}/net/{table}", encoding="ascii") as f:
            for line in f.readlines()[1:]:
                row = line.split()
                if row[3] == "0A" and row[9] in inodes:
                    ports.add(int(row[1].rsplit(":", 1)[1], 16))
    return ports


def wait_until(what, seconds):
    started = time.monotonic()
    while not what() and time.monotonic() - started < seconds:
        time.sleep(0.02)
    return time.monotonic() - started


class Jobs(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.folder = folder.name
        cls.model = tiny_model(os.path.join(cls.folder, "tiny.onnx"))
        cls.data = os.path.join(cls.folder, "data")
        write_folders(tar_jpegs(os.path.join(DATA, "fashion-test"), 200), os.path.join(cls.data, "set"))

    def endless(self, address, order, *options, prefix=()):
        command = [*prefix, HAPI, "train", self.model, "--nodes", address, "--dataset", "set", "--test-dataset", "set"]
        command += ["--keep", "0", "--quiet", "--batch", "16", "--dump-order", order, *options]
        job = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        self.addCleanup(self.reap, job)
        return job

    @staticmethod
    def reap(job):
        if job.poll() is None:
            job.kill()
            job.wait()
        job.stderr.close()

    def delivered(self, order):
        try:
            with open(order, "rb") as f:
                return f.read().count(b"\n")
        except OSError:
            return 0

    def whole(self, order, epochs):
        with open(order, encoding="ascii") as f:
            got = sorted(tuple(map(int, line.split())) for line in f)
        self.assertEqual(got, [(e, s) for e in range(epochs) for s in range(200)])


class Choice(Jobs):
    @unittest.skipIf(RDMA, "this machine has an RDMA device: ci/softroce shows what is chosen then")
    def test_without_rdma_both_sides_take_ofi_and_say_why(self):
        with node(self.data) as n:
            self.assertRegex(n.said(), r'msg="ready" .*transport=ofi without=verbs why="[^"]*no RDMA device')
            result = train_json(self.model, n.address, "set", "set", "--epochs", 1)
            self.assertEqual(result["transport"], "ofi")
            self.assertIn("does not offer verbs", result["transport_why"])
            self.assertEqual([r["node"] for r in result["nodes"]], [n.address])
            common = ("--nodes", n.address, "--dataset", "set", "--test-dataset", "set", "--epochs", 1)
            loud = hapi("train", self.model, *common)
            self.assertEqual(loud.out.count(f"node {n.address}  transport ofi: "), 1, loud)
            self.assertNotIn("transport", hapi("train", self.model, *common, "--quiet").out)

    @unittest.skipIf(RDMA, "this machine has an RDMA device")
    def test_verbs_that_was_asked_for_does_not_fall_back(self):
        r = run(HAPI_RT, "--data", self.data, "--listen", "127.0.0.1:0", "--transport", "verbs")
        self.assertEqual(r.code, 1, r)
        self.assertIn("RDMA device", r.err)
        with node(self.data) as n:
            common = ("--nodes", n.address, "--dataset", "set", "--test-dataset", "set", "--epochs", 1)
            r = hapi("train", self.model, *common, "--transport", "verbs")
            self.assertEqual(r.code, 1, r)
            self.assertIn("RDMA device", r.err)

    def test_node_says_why_it_does_not_offer_what_is_asked_for(self):
        with node(self.data, "--transport", "ofi") as n, Peer(n.address) as peer:
            self.assertEqual(struct.unpack("<I", peer.hello[5])[0] & 3, 1)
            for transport in ("verbs", "pigeon"):
                said = peer.data_open(transport)
                self.assertEqual(struct.unpack("<Q", said[1])[0], 7)
                self.assertIn("offers transport ofi", said[3].decode())
            self.assertIn("--transport ofi", peer.data_open("verbs")[3].decode())
            self.assertGreater(struct.unpack("<H", peer.data_open("ofi")[4])[0], 0)

    def test_options_out_of_range_are_usage_errors(self):
        common = (HAPI, "train", LITE0, "--nodes", "127.0.0.1:1", "--dataset", "a", "--test-dataset", "b")
        for command in ((HAPI_RT, "--data", self.data, "--listen", "127.0.0.1:0"), common):
            for option, value in (("transport", "pigeon"), ("mtu", "1500"), ("tos", "256"), ("sl", "16")):
                with self.subTest(f"{os.path.basename(command[0])} --{option} {value}"):
                    r = run(*command, f"--{option}", value)
                    self.assertEqual(r.code, 2, r)
                    self.assertIn(option, r.err)

    def test_path_options_do_not_matter_to_ofi(self):
        path = ("--gid-index", 1, "--mtu", 1024, "--tos", 8, "--sl", 1, "--busy-poll-us", 20, "--provider", "tcp")
        with node(self.data, "--transport", "ofi", *path) as n:
            result = train_json(self.model, n.address, "set", "set", "--epochs", 1, "--transport", "ofi", *path)
            self.assertEqual((result["transport"], result["transport_why"]), ("ofi", "it was asked for"))
            self.assertEqual(result["epochs"][0]["images"], 200)

    def test_ipv4_client_of_a_dual_stack_node(self):
        with node(self.data, "--insecure", listen="[::]:0") as n:
            address = "127.0.0.1:" + n.address.rsplit(":", 1)[1]
            with Peer(address) as peer:
                self.assertEqual(peer.data_open()[3], b"127.0.0.1")
            result = train_json(self.model, address, "set", "set", "--epochs", 1)
            self.assertEqual(result["epochs"][0]["images"], 200)


class DataPort(Jobs):
    def test_only_while_a_client_is_awaited(self):
        with node(self.data, "--transport", "ofi") as n:
            control = {int(n.address.rsplit(":", 1)[1])}
            pid = n.process.pid
            self.assertEqual(listening(pid), control)
            with Peer(n.address) as peer:
                self.assertEqual(listening(pid), control, "hello alone opens nothing")
                first = struct.unpack("<H", peer.data_open()[4])[0]
                self.assertEqual(listening(pid), control | {first})
                second = struct.unpack("<H", peer.data_open()[4])[0]
                self.assertLess(wait_until(lambda: listening(pid) == control | {second}, 2), 2, "one at a time")
            self.assertLess(wait_until(lambda: listening(pid) == control, 2), 2, "gone with the session")
            order = os.path.join(self.folder, "port")
            job = self.endless(n.address, order, "--epochs", "100000")
            wait_until(lambda: self.delivered(order), 20)
            self.assertIsNone(job.poll())
            self.assertEqual(listening(pid), control, "its connection is made")

    def test_a_nonce_that_nobody_uses_expires_with_its_port(self):
        """Meanwhile strangers sit on the port: libfabric never closes them, its listener does."""
        with node(self.data, "--transport", "ofi") as n:
            control, pid = listening(n.process.pid), n.process.pid
            with Peer(n.address) as peer:
                peer.data_open()  # what libfabric opens once and keeps
                with contextlib.ExitStack() as idle:
                    files = len(os.listdir(f"/proc/{pid}/fd"))
                    asked = time.monotonic()
                    port = struct.unpack("<H", peer.data_open()[4])[0]
                    for _ in range(50):
                        idle.enter_context(socket.create_connection(("127.0.0.1", port), 5))
                    peer.socket.settimeout(0.5)
                    while listening(pid) != control and time.monotonic() - asked < NONCE_S + 5:
                        with contextlib.suppress(TimeoutError):
                            peer.next(HEARTBEAT)
                            peer.send(HEARTBEAT, b"")
                    took = time.monotonic() - asked
                    self.assertTrue(NONCE_S - 0.5 < took < NONCE_S + 2, f"{took:.1f} s")
                    self.assertIn("no data connection came", n.said())
                    with self.assertRaises(ConnectionRefusedError):
                        socket.create_connection(("127.0.0.1", port), 5)
                    wait_until(lambda: len(os.listdir(f"/proc/{pid}/fd")) <= files, 2)
                    self.assertLessEqual(len(os.listdir(f"/proc/{pid}/fd")), files, "strangers' sockets are left")
                peer.socket.settimeout(5)
                self.assertIn(4, peer.data_open(), "the session lives, and may ask again")

    def test_random_bytes_on_the_data_port(self):
        rng = random.Random(5)
        with node(self.data, "--transport", "ofi") as n:
            for _ in range(20):
                with Peer(n.address) as peer:
                    port = struct.unpack("<H", peer.data_open()[4])[0]
                    with socket.create_connection(("127.0.0.1", port), 5) as s:
                        s.sendall(rng.randbytes(rng.choice((1, 64, 400, 5000))))
            result = train_json(self.model, n.address, "set", "set", "--epochs", 1)
            self.assertEqual(result["epochs"][0]["images"], 200)


class Silence(Jobs):
    def test_a_client_that_was_stopped_goes_on(self):
        order = os.path.join(self.folder, "stopped")
        with node(self.data, "--micro-batch", 4) as n:
            job = self.endless(n.address, order, "--epochs", "60")
            wait_until(lambda: self.delivered(order) > 100, 20)
            job.send_signal(signal.SIGSTOP)
            stopped = time.monotonic()
            wait_until(lambda: "nothing was heard" in n.said(), SILENCE_S + 3)
            self.assertLess(time.monotonic() - stopped, SILENCE_S + 1)
            self.assertGreater(time.monotonic() - stopped, SILENCE_S * 0.6)
            self.assertIsNone(job.poll())
            before = self.delivered(order)
            self.assertLess(before, 60 * 200, "the job was over before it was stopped")
            job.send_signal(signal.SIGCONT)
            _, said = job.communicate(timeout=60)
            self.assertEqual(job.returncode, 0, said)
            self.whole(order, 60)

    def test_a_pulled_cable_is_noticed_by_both_within_5_s(self):
        order = os.path.join(self.folder, "pulled")
        try:
            link = Link(1000)
            link.__enter__()
        except (OSError, PermissionError) as e:
            self.skipTest(f"no network namespaces here: {e}")
        self.addCleanup(link.__exit__, None, None, None)
        wire = ("ip", "-n", link.names[0], "link", "set", "wire0")
        with node(self.data, "--insecure", "--micro-batch", 4, listen=f"{link.STORAGE}:0", prefix=link.storage()) as n:
            job = self.endless(n.address, order, "--epochs", "60", prefix=link.compute())
            wait_until(lambda: self.delivered(order) > 100, 20)
            subprocess.run((*wire, "down"), check=True)
            pulled = time.monotonic()
            wait_until(lambda: n.said().count("session closed") == 2, 8)
            self.assertLess(time.monotonic() - pulled, 5, n.said())
            wait_until(lambda: not self.established(job.pid), 8 - (time.monotonic() - pulled))
            self.assertLess(time.monotonic() - pulled, 5, "the client still holds its connections")
            self.assertIsNone(job.poll())
            self.assertLess(self.delivered(order), 60 * 200, "the job was over before the cable was pulled")
            subprocess.run((*wire, "up"), check=True)
            _, said = job.communicate(timeout=60)
            self.assertEqual(job.returncode, 0, said)
            self.whole(order, 60)

    @staticmethod
    def established(pid):
        """Its connections that TCP still takes for whole."""
        inodes = set()
        for fd in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                inodes.add(os.readlink(f"/proc/{pid}/fd/{fd}").removeprefix("socket:[").removesuffix("]"))
        with open(f"/proc/{pid}/net/tcp", encoding="ascii") as f:
            rows = [line.split() for line in f.readlines()[1:]]
        return [row for row in rows if row[3] == "01" and row[9] in inodes]


class Daemon(Jobs):
    def test_descriptors_up_to_the_hard_limit(self):
        with node(self.data, prefix=("prlimit", "--nofile=256:4096")) as n:
            with open(f"/proc/{n.process.pid}/limits", encoding="ascii") as f:
                row = next(line for line in f if line.startswith("Max open files"))
        self.assertEqual(row.split()[3:5], ["4096", "4096"])

    def test_stat_and_log_say_how_a_session_ended(self):
        with node(self.data, "--transport", "ofi") as n:
            train_json(self.model, n.address, "set", "set", "--epochs", 1)
            wait_until(lambda: n.said().count("session closed") == 2, 5)
            self.assertRegex(
                n.said(), r'msg="session closed" peer=\S+ transport=ofi requests=\d+ bytes=\d+ completions=\d+ rnr=0 why="'
            )
            with Peer(n.address) as peer:
                stat = peer.stat()
                ofi = stat["transports"]["ofi"]
                self.assertTrue(ofi["offered"])
                self.assertEqual((ofi["connections"], ofi["open"], ofi["rnr"]), (2, 0, 0))
                self.assertEqual(ofi["requests"], stat["requests"])
                self.assertGreater(ofi["bytes"], 400 * 4096 * 4 // 16)
                self.assertGreaterEqual(ofi["completions"], stat["parts"])
                self.assertFalse(stat["transports"]["verbs"]["offered"])
                self.assertIn("--transport ofi", stat["transports"]["verbs"]["why"])
                self.assertEqual(stat["last_end"]["transport"], "ofi")
                self.assertTrue(stat["last_end"]["why"])
            with Peer(n.address) as peer:
                self.assertEqual(peer.stat()["last_end"], stat["last_end"], "who only asks leaves no trace there")


if __name__ == "__main__":
    unittest.main()
