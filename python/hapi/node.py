"""Starts and stops the programs: a storage node, a shaped link between two network namespaces."""

import json
import os
import selectors
import signal
import subprocess
import tempfile
import time


class Node:
    """One hapi-rt, stopped by its pid on exit. `with Node(...) as n: n.address`"""

    def __init__(self, program, data, *options, listen="127.0.0.1:0", prefix=(), timeout=30, env=None, log=None):
        self.log = log or tempfile.NamedTemporaryFile(prefix="hapi-rt-", suffix=".log", delete=False).name
        with open(self.log, "wb") as log_file:
            self.process = subprocess.Popen(
                [*prefix, program, "--data", data, "--listen", listen, *options],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log_file,
                env=env,
            )
        try:
            self.address = self._ready(timeout)
        except BaseException:
            self.kill()
            raise

    def _ready(self, timeout):
        line = b""
        deadline = time.monotonic() + timeout
        with selectors.DefaultSelector() as s:
            s.register(self.process.stdout, selectors.EVENT_READ)
            while not line.endswith(b"\n"):
                left = deadline - time.monotonic()
                if left <= 0 or not s.select(left):
                    raise TimeoutError(f"hapi-rt was not ready after {timeout} s: {self.said()}")
                byte = os.read(self.process.stdout.fileno(), 1)
                if not byte:
                    raise RuntimeError(f"hapi-rt ended with {self.process.wait()}: {self.said()}")
                line += byte
        word, address = line.decode().split()
        if word != "ready":
            raise RuntimeError(f"hapi-rt said {line!r}")
        return address

    def said(self):
        """The last of its log."""
        with open(self.log, errors="replace") as f:
            return f.read()[-2000:].strip()

    def running(self):
        return self.process.poll() is None

    def stop(self, timeout=20):
        """SIGTERM; the exit code (0 when it drained)."""
        if self.running():
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise TimeoutError(f"hapi-rt did not drain in {timeout} s: {self.said()}")
        finally:
            self.process.stdout.close()

    def kill(self):
        if self.running():
            self.process.kill()
        self.process.wait()
        self.process.stdout.close()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        if self.process.poll() is None:
            self.stop()
        else:
            self.process.stdout.close()
        if not exc[0]:
            os.unlink(self.log)


class Failed(Exception):
    """A program that did not exit 0."""


def train(program, model, node, dataset, test_dataset, *options, prefix=(), env=None, stderr=None, timeout=600):
    """Runs `hapi train` and returns its JSON."""
    with tempfile.NamedTemporaryFile(suffix=".json") as f:
        command = [program, "train", model, "--nodes", node, "--dataset", dataset, "--test-dataset", test_dataset]
        r = subprocess.run(
            [*prefix, *command, "--json", f.name, *map(str, options)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            env=env,
            timeout=timeout,
        )
        if r.returncode:
            said = (r.stderr or b"").decode(errors="replace").strip()
            raise Failed(f"hapi train ended with {r.returncode}{': ' + said if said else ''}")
        with open(f.name, encoding="utf-8") as out:
            return json.load(out)


class Link:
    """Two network namespaces joined by a wire of `mbit` Mbit/s each way (None: as fast as it goes); storage is 10.77.0.1,
    compute 10.77.0.2. Root only; PermissionError or OSError says why it cannot be had."""

    STORAGE, COMPUTE = "10.77.0.1", "10.77.0.2"

    def __init__(self, mbit):
        if os.geteuid() != 0:
            raise PermissionError("network namespaces need root")
        self.mbit = mbit
        self.names = [f"hapi-{os.getpid()}-{side}" for side in ("storage", "compute")]
        self.made = []

    def __enter__(self):
        a, b = self.names
        try:
            for name in self.names:
                self._ip("netns", "add", name)
                self.made.append(name)
                self._ip("-n", name, "link", "set", "lo", "up")
            self._ip("-n", a, "link", "add", "wire0", "type", "veth", "peer", "name", "wire0", "netns", b)
            for name, address in zip(self.names, (self.STORAGE, self.COMPUTE)):
                self._ip("-n", name, "address", "add", address + "/30", "dev", "wire0")
                self._ip("-n", name, "link", "set", "wire0", "up")
            self.shape(self.mbit)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, *exc):
        for name in self.made:
            self._run("ip", "netns", "delete", name)
        self.made = []

    def shape(self, mbit):
        """From now on so many Mbit/s each way. A burst is what passes in 1 ms, and always more than the largest packet that TCP
        hands down (64 kB and its headers): tbf waits for ever for one that was queued when bursts were larger."""
        self.mbit = mbit
        for name in self.names:
            if mbit:
                tbf = ["tbf", "rate", f"{mbit}mbit", "burst", f"{max(128, mbit // 8)}kb", "latency", "100ms"]
            else:
                tbf = ["pfifo"]
            self._run("tc", "-n", name, "qdisc", "replace", "dev", "wire0", "root", *tbf)

    def storage(self):
        return ("ip", "netns", "exec", self.names[0])

    def compute(self):
        return ("ip", "netns", "exec", self.names[1])

    def _ip(self, *args):
        self._run("ip", *args)

    @staticmethod
    def _run(*command):
        r = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if r.returncode:
            raise OSError(f"{' '.join(command)}: {r.stderr.strip()}")
