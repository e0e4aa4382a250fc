"""Whether a shared machine stays the same while things are measured on it.

Two things make the same work take longer on a machine of many users: what runs beside it on these cores, and what runs where
nobody here can see it, on the other threads of the same physical cores, which halves their speed for a minute or for an hour.
The first is read from /proc; the second shows in how long a small piece of work takes, in the processor time of the thread
that does it.
"""

import json
import os
import threading
import time

PIECE = 30_000  # turns of a loop: a millisecond or two
EVERY_S = 0.3
TICK = os.sysconf("SC_CLK_TCK")


class Calm:
    """Watches `cores`, each by a thread that works for a few milliseconds a second. `path`: where what the cores are known to
    be able to do is kept between runs."""

    def __init__(self, cores, path=None):
        self.path, self.samples, self.lock = path, {c: [] for c in cores}, threading.Lock()
        self.best = dict.fromkeys(cores, float("inf"))
        if path and os.path.exists(path):
            with open(path, encoding="utf-8") as f:
                self.best.update({int(c): s for c, s in json.load(f).items()})
        self.over = threading.Event()
        self.threads = [threading.Thread(target=self._watch, args=(c,), daemon=True) for c in cores]
        for t in self.threads:
            t.start()

    def close(self):
        self.over.set()
        for t in self.threads:
            t.join()
        if self.path:
            with open(self.path, "w", encoding="utf-8") as f:
                json.dump(self.best, f)

    def _watch(self, core):
        os.sched_setaffinity(0, {core})  # of this thread
        while not self.over.wait(EVERY_S):
            began, x = time.thread_time(), 0
            for i in range(PIECE):
                x += i
            took = time.thread_time() - began
            with self.lock:
                self.best[core] = min(self.best[core], took)
                self.samples[core].append((time.monotonic(), took))

    def speed(self, since, until=float("inf")):
        """Of the slowest core from then to then (time.monotonic()), as a part of the best it has shown; None: nobody looked."""
        with self.lock:
            took = {c: [t for at, t in s if since <= at < until] for c, s in self.samples.items()}
            means = [sum(self.best[c] / t for t in x) / len(x) for c, x in took.items() if x]
        return min(means) if len(means) == len(took) else None

    def windows(self, since, width=5):
        """The speed in each whole `width` seconds since then."""
        now, out = time.monotonic(), []
        while since + width <= now:
            out.append(self.speed(since, since + width))
            since += width
        return [s for s in out or [self.speed(since, now)] if s is not None] or [1]

    def wait(self, like, tolerance, longest):
        """Until the cores are about as fast as that, for two seconds, and nobody else uses them; False: not within `longest`."""
        end = time.monotonic() + longest
        while time.monotonic() < end:
            since, used = time.monotonic(), others_s()
            time.sleep(2)
            speed = self.speed(since)
            if speed and abs(speed / like - 1) <= tolerance and others_s() - used < 2 * tolerance * len(self.best):
                return True
        return False


def _stat(pid):
    with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as f:
        fields = f.read().rsplit(")", 1)[1].split()
    return int(fields[1]), sum(int(t) for t in fields[11:15])  # parent; user, system, of children waited for


def others_s():
    """Seconds of processor time of what is neither this process nor made by it, since the machine started."""
    parents, times = {}, {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                parents[int(name)], times[int(name)] = _stat(name)
            except (FileNotFoundError, ProcessLookupError):
                continue
    ours, more = {os.getpid()}, True
    while more:
        found = {p for p, parent in parents.items() if parent in ours} - ours
        ours |= found
        more = bool(found)
    with open("/proc/stat", encoding="ascii") as f:
        user, nice, system = (int(t) for t in f.readline().split()[1:4])
    return (user + nice + system - sum(times[p] for p in ours if p in times)) / TICK
