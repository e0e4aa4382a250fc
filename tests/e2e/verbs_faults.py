"""What can go wrong under a job on verbs, in ci/softroce's guest: loss, delay, a thin or cut cable, a device that goes
away, sudden death of either side. Whatever happens, what is delivered is right, bit for bit and once; whoever is left
has noticed within 5 s and holds no more than before; no receiver was ever not ready.

    python3 tests/e2e/verbs_faults.py [--kills N] [--seed S] [TEST...]     (as root, inside the guest)

HAPI_PROGRAMS and HAPI_DATA as for the other end-to-end tests. Without data: exit 77.
"""

import argparse
import os
import random
import re
import sys
import tempfile
import time
import unittest

from verbs_guest import (
    CLIENT_DEVICE,
    HAPI,
    HAPI_RT,
    HOST,
    HOST6,
    KINDS,
    NODE_DEVICE,
    NOTICE_S,
    PROGRAMS,
    Job,
    alive,
    device_add,
    device_added,
    device_remove,
    device_there,
    files,
    held,
    holders,
    link_down,
    link_up,
    no_route,
    queue_pairs,
    receiver_not_ready,
    shaped,
    small_sets,
    state,
    tiny_model,
    two_lanes,
    verbs_node,
    wait_until,
)

CLASSES, SAMPLES, TESTS = 10, 160, 20
PHOTO = 110_000  # bytes
PORT = 7500
JOB_QUEUE_PAIRS = 2  # its training and its test data: a connection each
MBIT = 100
SLOW_MBIT = 20  # for what takes a second to do while a job runs
options = argparse.Namespace()  # of the command line


class Faults(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory(dir="/dev/shm")
        cls.addClassCleanup(folder.cleanup)
        cls.folder = folder.name
        cls.data = os.path.join(cls.folder, "data")
        if not small_sets(cls.data, PHOTO, train=SAMPLES // CLASSES, test=TESTS // CLASSES):
            raise unittest.SkipTest("no shards in HAPI_DATA (ci/quickstart makes them)")
        cls.model = tiny_model(os.path.join(cls.folder, "tiny.onnx"))
        cls.node = None
        cls.addClassCleanup(lambda: cls.node and cls.node.kill())
        cls.node_start()
        cls.whole = {}
        for policy in ("none", "freeze"):
            job = cls.whole[policy] = cls.job(f"whole-{policy}", policy)
            if job.end(60) != 0:
                raise AssertionError(f"an undisturbed job fails: {job.said()}")
            job.bytes = job.report()["epochs"][0]["wire_bytes"]
            print(f"     policy {policy}: {job.bytes} bytes, {time.monotonic() - job.started:.1f} s", flush=True)
        cls.idle_remember()
        with cls.thin():
            job = cls.job("connected", "freeze")
            wait_until(lambda: len(job.delivered()) >= 16, 10, 0.02)
            cls.connected = {"files": files(job.pid), **held(job.pid)}
            job.kill()
        if cls.connected["qp"] != JOB_QUEUE_PAIRS:
            raise AssertionError(f"a job under way has {cls.connected}")

    @classmethod
    def node_start(cls):
        cls.node = verbs_node(cls.data, PORT)

    @classmethod
    def idle_remember(cls):
        """What the node holds when it serves nobody, once it has served somebody."""
        wait_until(lambda: queue_pairs(cls.node.process.pid) == 0, 5)
        cls.idle = {"files": files(cls.node.process.pid), **held(cls.node.process.pid)}

    @classmethod
    def job(cls, name, policy, **kw):
        return Job(cls.model, cls.node.address, os.path.join(cls.folder, name), policy, **kw)

    def setUp(self):
        self.jobs = []
        if not self.node.running():
            self.node_restart()
        self.rnr = receiver_not_ready()

    def tearDown(self):
        for job in self.jobs:
            job.kill()
        missing = [d for d in (NODE_DEVICE, CLIENT_DEVICE) if not device_there(d)]
        if missing:  # a test has failed; killing the node lets go of what could not be deleted
            self.node.kill()
            for device in missing:
                wait_until(lambda d=device: device_added(d), NOTICE_S)

    def node_restart(self):
        """One that has served somebody: it holds what it always will."""
        type(self).node_start()
        self.complete(self.start("first", "freeze"), "freeze")

    def start(self, name, policy, **kw):
        self.jobs.append(self.job(name, policy, **kw))
        return self.jobs[-1]

    # ---- what is demanded of every test

    def complete(self, job, policy, seconds=30):
        """The job succeeds, with the bits of the undisturbed one, every sample once."""
        rc = job.end(seconds)
        if rc is None:
            self.fail(f"the job is not over after {seconds} s: {state()}\n{self.node.said()}")
        self.assertEqual(rc, 0, job.said())
        self.assertEqual(job.same(self.whole[policy]), [], "features or labels differ")
        self.assertEqual(sorted(job.delivered()), [(0, s) for s in range(SAMPLES)])

    def idle_again(self):
        """The node alone is left, and holds what it held before any of this."""
        pid = self.node.process.pid

        def now():
            return {"files": files(pid), **held(pid)}

        wait_until(lambda: now() == self.idle, NOTICE_S, 0.1)
        self.assertEqual(now(), self.idle, f"the node's RDMA objects and descriptors; it said: {self.node.said()}")
        self.assertEqual(list(holders()), [pid], "objects of dead processes")
        self.assertEqual(alive(), {pid: "hapi-rt"}, "processes are left")

    def quiet(self):
        self.idle_again()
        self.assertEqual(receiver_not_ready(), self.rnr, "a receiver was not ready")

    def under_way(self, job, samples):
        """Waits until that many samples have been delivered."""
        there, _ = wait_until(lambda: len(job.delivered()) >= samples or not job.running(), 30, 0.02)
        self.assertTrue(there and job.running(), f"the job is over too early: {job.said()}")

    # ---- the cable

    def test_ipv6(self):
        if not HOST6:
            self.skipTest("HAPI_TEST_VERBS_HOST6 is not set")
        other = verbs_node(self.data, PORT + 1, HOST6)
        self.addCleanup(other.kill)
        for policy in ("none", "freeze"):
            job = Job(self.model, other.address, os.path.join(self.folder, "ipv6"), policy)
            self.jobs.append(job)
            self.complete(job, policy)
        self.assertEqual(other.stop(), 0)
        self.quiet()

    def spoiled(self, *qdisc):
        for policy in ("none", "freeze"):
            with self.subTest(policy), shaped(*qdisc):
                job = self.start("spoiled", policy)
                self.complete(job, policy, 60)
                print(f"     {' '.join(qdisc)}, policy {policy}: {time.monotonic() - job.started:.1f} s", flush=True)
        self.quiet()

    def test_loss_of_1_percent(self):
        self.spoiled("netem", "loss", "1%")

    def test_delay_of_2_ms(self):
        self.spoiled("netem", "delay", "2ms")

    def test_100_mbit(self):
        started = time.monotonic()
        self.spoiled("tbf", "rate", f"{MBIT}mbit", "burst", "64kb", "latency", "100ms")
        least = sum(w.bytes for w in self.whole.values()) * 8 / (MBIT * 1e6)
        self.assertGreater(time.monotonic() - started, least, "the cable was not shaped: the test shows nothing")

    @staticmethod
    def thin(mbit=MBIT):
        return shaped("tbf", "rate", f"{mbit}mbit", "burst", "64kb", "latency", "100ms")

    def test_cable_cut_and_mended(self):
        """Nothing passes, the control channel's packets neither."""
        rng = random.Random(options.seed)
        for policy, cut in (("none", 1), ("freeze", rng.uniform(1, 3)), ("none", 3)):
            with self.subTest(f"seed {options.seed}: {policy}, {cut:.1f} s"), self.thin():
                job = self.start("cut", policy)
                self.under_way(job, 32)
                with shaped("netem", "loss", "100%"):
                    time.sleep(cut)
                    self.assertTrue(job.running(), job.said())
                self.complete(job, policy)
                self.assertGreater(job.report()["reissued_requests"], 0)
        self.quiet()

    def test_link_down_and_up(self):
        """Both sides let go. What rxe has left in its error state is then made anew, and a new node serves a new job."""
        for policy, down in (("none", 1), ("freeze", 3)):
            with self.subTest(f"{policy}, {down} s"), self.thin():
                job = self.start("down", policy)
                self.under_way(job, 32)
                link_down()
                pids = (job.pid, self.node.process.pid)
                noticed, took = wait_until(lambda: max(map(queue_pairs, pids)) < JOB_QUEUE_PAIRS, NOTICE_S, 0.1)
                self.assertTrue(noticed, f"both sides wait: {state()}\n{self.node.said()}")
                time.sleep(max(0, down - took))
                self.assertTrue(job.running() and self.node.running(), f"{job.said()}\n{self.node.said()}")
                job.kill()
                self.assertEqual(self.node.stop(), 0)
                broken = link_up()
                self.rnr = receiver_not_ready()  # a new device counts from 0
                print(f"     link down: noticed after {took:.1f} s; made anew: {', '.join(broken) or 'nothing'}", flush=True)
                self.node_restart()
                self.complete(self.start("up", policy), policy)
        self.quiet()

    def test_data_packets_lost_control_alive(self):
        """RC gives up (retries exceeded); the control channel never notices. The job goes on when the path is back."""
        with two_lanes(MBIT) as cut:
            job = self.start("cut", "none")
            self.under_way(job, 32)
            cut()
            noticed, took = wait_until(lambda: queue_pairs(job.pid) < JOB_QUEUE_PAIRS, NOTICE_S, 0.1)
            self.assertTrue(noticed, "the client's queue pair outlives the path")
            self.assertTrue(job.running(), job.said())
            print(f"     retries exceeded: noticed after {took:.1f} s", flush=True)
        self.complete(job, "none")
        self.assertGreater(job.report()["reissued_requests"], 0)
        self.quiet()

    def test_no_route(self):
        with self.thin():
            job = self.start("route", "none")
            self.under_way(job, 32)
            with no_route():
                noticed, took = wait_until(lambda: queue_pairs(job.pid) < JOB_QUEUE_PAIRS, NOTICE_S, 0.1)
                self.assertTrue(noticed, f"both sides wait: {state()}\n{self.node.said()}")
                print(f"     no route: noticed after {took:.1f} s", flush=True)
            job.kill()
            self.assertEqual(self.node.stop(), 0)
            link_up()  # which makes devices anew where rxe has given up
            self.rnr = receiver_not_ready()
        self.node_restart()
        self.quiet()

    # ---- the device

    def test_device_removed_and_added(self):
        """Twice: what the node holds for a device that is gone does not add up."""
        first, idle = self.idle, []
        self.addCleanup(setattr, type(self), "idle", first)  # whatever happens: the other tests compare with it
        self.addCleanup(self.node.kill)  # the next test begins with one that knows no second device
        for policy in ("none", "freeze"):
            with self.thin(SLOW_MBIT):
                self.device_goes(policy)
            for after in ("none", "freeze"):
                self.complete(self.start("added", after), after)
            self.idle_remember()
            idle.append(self.idle)
            self.quiet()
        type(self).idle = first
        self.assertEqual(*idle, "the node holds more after each removal")

    def test_unused_device_removed_and_added(self):
        """One that the node has not chosen: it does not stand in its way."""
        took = device_remove(CLIENT_DEVICE)
        device_add(CLIENT_DEVICE)
        self.rnr = receiver_not_ready()
        print(f"     removed in {took:.2f} s", flush=True)
        self.complete(self.start("after", "freeze"), "freeze")
        self.quiet()

    def device_goes(self, policy):
        job = self.start("removed", policy)
        self.under_way(job, 32)
        with open(self.node.log, encoding="utf-8") as log:
            log.seek(0, os.SEEK_END)
            try:
                took = device_remove()
            except OSError as e:
                e = f"{e}\n{log.read()}"
                self.fail(e)  # tearDown puts things right
            gone, after = wait_until(lambda: queue_pairs(job.pid) < JOB_QUEUE_PAIRS or not job.running(), NOTICE_S)
            time.sleep(1)
            said = log.read()
        device_add()
        self.rnr = receiver_not_ready()  # a new device counts from 0
        self.assertTrue(gone, "the client has not noticed that the node's device is gone")
        self.assertTrue(self.node.running(), f"the node died: {self.node.said()}")
        self.assertRegex(said, f"session closed.*RDMA device {NODE_DEVICE} was removed", "the node does not say why")
        print(f"     removed in {took:.2f} s, the client noticed after {after:.1f} s", flush=True)
        if job.end(30) == 0:
            self.complete(job, policy)
        else:
            self.assertRegex(job.said(), "no node left that has object part.tar of dataset train: .+")
            print(f"     the job ended: {job.said()}", flush=True)

    # ---- sudden death

    def moments(self, policy):
        """Seeds of kills: a moment of a job's life, often with bytes on the wire."""
        rng = random.Random(options.seed)
        for i in range(options.kills // 2):
            yield i, policy[i % 2], rng.uniform(0, self.whole[policy[i % 2]].bytes * 8 / (MBIT * 1e6))

    def test_kill_the_client(self):
        for i, policy, after in self.moments(("none", "freeze")):
            with self.subTest(f"seed {options.seed}, round {i}: {policy}, killed after {after:.2f} s"), self.thin():
                job = self.start("killed", policy)
                time.sleep(after)
                self.assertTrue(job.running(), f"the job was over before it was killed: {job.said()}")
                at = len(job.delivered())
                job.kill()
                killed = time.monotonic()
                self.idle_again()
                print(
                    f"     client killed after {after:.2f} s and {at} samples:"
                    f" all released {time.monotonic() - killed:.1f} s later",
                    flush=True,
                )
        job = self.start("next", "freeze")
        self.complete(job, "freeze")
        self.quiet()

    def test_kill_the_node(self):
        for i, policy, after in self.moments(("freeze", "none")):
            with self.subTest(f"seed {options.seed}, round {i}: {policy}, killed after {after:.2f} s"), self.thin():
                try:
                    self.node_dies(policy, after)
                finally:
                    if not self.node.running():
                        self.node_restart()
        # The last one may have served nobody yet: then it holds less than what it is compared with.
        self.complete(self.start("last", "freeze"), "freeze")
        self.quiet()

    def node_dies(self, policy, after):
        job = self.start("orphan", policy)
        time.sleep(after)
        self.assertTrue(job.running(), f"the job was over before its node was killed: {job.said()}")
        dead = self.node.process.pid
        self.node.kill()
        at = len(job.delivered())
        there, took = wait_until(lambda: not job.running() or not queue_pairs(job.pid), NOTICE_S)
        self.assertTrue(there, f"the client still has queue pairs: {state()}")
        self.assertNotIn(dead, holders(), "objects of the dead node")
        said = f"node killed after {after:.2f} s and {at} samples: noticed after {took:.1f} s"
        # What is left belongs to the device, for local use: windows and domains of connections are gone with them.
        left = held(job.pid) if job.running() else dict.fromkeys(KINDS, 0)
        self.assertTrue(left["qp"] == left["cq"] == 0 and left["mr"] <= JOB_QUEUE_PAIRS, f"a client on its own: {left}")
        type(self).node_start()

        def back():
            return not job.running() or {"files": files(job.pid), **held(job.pid)} == self.connected

        again, _ = wait_until(back, NOTICE_S, 0.02)
        self.assertTrue(again, f"the client that reconnected holds {holders()}, before: {self.connected}")
        if not at and job.end(30) == 1:
            # Before its first connections stand a job has nothing to go back to: it says so and ends.
            self.assertIn(f"node {job.address}: ", job.said())
            self.assertEqual(job.delivered(), [])
            print(f"     {said}; it had not begun", flush=True)
            return
        self.complete(job, policy)
        print(f"     {said}; over after {time.monotonic() - job.started:.1f} s", flush=True)


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--kills", type=int, default=100 if os.environ.get("HAPI_NIGHTLY") else 10)
    p.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 30))
    p.add_argument("tests", nargs="*")
    p.parse_args(namespace=options)
    if not HOST or not os.environ.get("HAPI_SOFTROCE_GUEST"):
        print("skipped: the fault tests spoil cables and remove devices: in a guest only (ci/softroce --lane uml)")
        return 77
    if not os.access(HAPI, os.X_OK) or not os.access(HAPI_RT, os.X_OK):
        print(f"skipped: no hapi and hapi-rt in {PROGRAMS} (ci/quickstart makes them)")
        return 77
    print(f"verbs_faults: {options.kills} kills, --seed {options.seed}", flush=True)
    suite = unittest.TestSuite()
    for name in unittest.TestLoader().getTestCaseNames(Faults):
        if not options.tests or any(re.search(t, name) for t in options.tests):
            suite.addTest(Faults(name))
    r = unittest.TextTestRunner(stream=sys.stdout, verbosity=2).run(suite)
    bad, skipped = len(r.failures) + len(r.errors), len(r.skipped)
    print(f"verbs-faults: {max(r.testsRun - bad - skipped, 0)} passed, {bad} failed, {skipped} skipped")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
