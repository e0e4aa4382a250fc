"""Bad input gets a clear error in under a second, and the daemon goes on serving."""

import io
import os
import random
import socket
import struct
import tarfile
import tempfile
import threading
import time
import unittest

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from harness import DATA, HAPI, HAPI_RT, Dump, hapi, node, run, tar_jpegs, tiny_model, train_json, write_folders

SOON = 1.0


def hello(major_min, major_max, role=b"client"):
    """docs/protocol.md: frame of type 1 with fields (tag, value)."""
    fields = [(1, struct.pack("<I", 0x49504148)), (2, struct.pack("<H", major_min)), (3, struct.pack("<H", major_max))]
    fields += [(4, struct.pack("<H", 0)), (5, struct.pack("<I", 0)), (6, role)]
    body = b"".join(struct.pack("<HHI", tag, 0, len(value)) + value for tag, value in fields)
    return struct.pack("<IHH", len(body) + 4, 1, 0) + body


class BadSamples(unittest.TestCase):
    """60 good images and five bad ones; the deleted one was there when the daemon looked."""

    BAD = ("empty", "truncated", "text", "png", "deleted")

    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.folder = folder.name
        cls.model = tiny_model(os.path.join(cls.folder, "tiny.onnx"))
        cls.data = os.path.join(cls.folder, "data")
        samples = tar_jpegs(os.path.join(DATA, "fashion-test"), 60)
        write_folders(samples, os.path.join(cls.data, "good"))
        write_folders(samples, os.path.join(cls.data, "mixed"))
        jpeg = samples[0][0]
        contents = {"empty": b"", "truncated": jpeg[: len(jpeg) // 2], "text": b"this is no image\n" * 50}
        contents.update(png=b"\x89PNG\r\n\x1a\n" + bytes(500), deleted=jpeg)
        for name, data in contents.items():
            write = os.path.join(cls.data, "mixed", "0", f"bad-{name}.jpg")
            with open(write, "wb") as f:
                f.write(data)
        for name, data in contents.items():
            write_folders(samples[:8], os.path.join(cls.data, f"only-{name}"))
            with open(os.path.join(cls.data, f"only-{name}", samples[0][1], f"bad-{name}.jpg"), "wb") as f:
                f.write(data)
        cls.node = node(cls.data)
        cls.addClassCleanup(cls.node.stop)
        hapi("ls", cls.node.address)
        for dataset in ("mixed/0", f"only-deleted/{samples[0][1]}"):
            os.unlink(os.path.join(cls.data, dataset, "bad-deleted.jpg"))

    def job(self, dataset, *options):
        common = ("--nodes", self.node.address, "--dataset", dataset, "--test-dataset", dataset, "--epochs", 1)
        return hapi("train", self.model, *common, *options)

    def test_skip_reports_and_trains_on_the_rest(self):
        for policy in ("freeze", "none"):
            with self.subTest(policy), tempfile.TemporaryDirectory() as d:
                r = train_json(
                    *(self.model, self.node.address, "mixed", "good", "--policy", policy, "--on-bad", "skip"),
                    *("--epochs", 2, "--dump-features", f"{d}/f"),
                )
                images = r["epochs"][0]["images"]
                self.assertEqual(images, 60)
                self.assertEqual(r["bad_samples"], len(self.BAD))
                good = Dump(f"{d}/f")
                self.assertTrue(np.isfinite(good.test).all())
                self.assertEqual(good.test.shape[0], 60)

    def test_fail_names_the_sample_in_under_a_second(self):
        for policy in ("freeze", "none"):
            for name in self.BAD:
                with self.subTest(f"{policy} {name}"):
                    r = self.job(f"only-{name}", "--policy", policy, "--on-bad", "fail")
                    self.assertEqual(r.code, 1, r)
                    self.assertIn(f"bad-{name}.jpg", r.err)
                    self.assertLess(r.seconds, SOON, r)

    def test_daemon_goes_on(self):
        self.job("mixed", "--on-bad", "fail")
        r = self.job("good", "--on-bad", "fail")
        self.assertEqual(r.code, 0, r)
        self.assertTrue(self.node.running())

    def test_dataset_that_is_not_there(self):
        r = self.job("nonsense")
        self.assertEqual(r.code, 1, r)
        self.assertIn("nonsense", r.err)
        self.assertLess(r.seconds, SOON, r)


class Tars(unittest.TestCase):
    def tar(self, path, samples, format, prefix=""):
        with tarfile.open(path, "w", format=format) as t:
            for i, (data, label) in enumerate(samples):
                for ext, content in (("jpg", data), ("cls", label.encode())):
                    info = tarfile.TarInfo(f"{prefix}{i:04d}.{ext}")
                    info.size, info.mtime = len(content), 1234567890.123
                    t.addfile(info, io.BytesIO(content))

    def serve(self, folder):
        with node(folder) as n:
            prefix = os.path.join(folder, "dump")
            model = tiny_model(prefix + ".onnx")
            r = train_json(model, n.address, "d", "d", "--epochs", 1, "--dump-features", prefix)
            return r, Dump(prefix), n.said()

    def test_pax_headers_long_names_and_gnu(self):
        samples = tar_jpegs(os.path.join(DATA, "fashion-test"), 30)
        features = []
        for format, prefix in (
            (tarfile.USTAR_FORMAT, ""),
            (tarfile.PAX_FORMAT, ""),
            (tarfile.PAX_FORMAT, "long/" + "x" * 180 + "/"),
            (tarfile.GNU_FORMAT, "long/" + "y" * 180 + "/"),
        ):
            with self.subTest(f"{format} {prefix[:6]}"), tempfile.TemporaryDirectory() as d:
                os.mkdir(os.path.join(d, "d"))
                self.tar(os.path.join(d, "d", "0.tar"), samples, format, prefix)
                r, dump, _ = self.serve(d)
                self.assertEqual(r["epochs"][0]["images"], 30)
                features.append(dump.test)
        self.assertTrue(all(np.array_equal(features[0], f) for f in features[1:]))

    def test_truncated_tar_serves_what_is_whole_and_names_the_file(self):
        samples = tar_jpegs(os.path.join(DATA, "fashion-test"), 30)
        with tempfile.TemporaryDirectory() as d:
            os.mkdir(os.path.join(d, "d"))
            path = os.path.join(d, "d", "0.tar")
            self.tar(path, samples, tarfile.USTAR_FORMAT)
            with tarfile.open(path) as t:
                cut = t.getmember("0020.jpg").offset_data + 100
            os.truncate(path, cut)
            with open(os.path.join(d, "d", "1.tar"), "wb") as f:
                f.write(random.Random(1).randbytes(5000))
            r, _, said = self.serve(d)
            self.assertEqual(r["epochs"][0]["images"], 20)
            self.assertIn("0.tar", said)
            self.assertIn("1.tar", said)


class Network(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.node = node(DATA)
        cls.addClassCleanup(cls.node.stop)
        host, port = cls.node.address.rsplit(":", 1)
        cls.at = (host, int(port))

    def serves(self):
        r = hapi("ls", self.node.address)
        self.assertEqual(r.code, 0, r)
        self.assertLess(r.seconds, SOON)

    def test_port_in_use(self):
        r = run(HAPI_RT, "--data", DATA, "--listen", self.node.address)
        self.assertEqual(r.code, 1, r)
        self.assertIn(self.node.address, r.err)
        self.assertLess(r.seconds, SOON)
        self.serves()

    def test_node_that_is_not_there(self):
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{s.getsockname()[1]}"
            with tempfile.TemporaryDirectory() as d:
                model = tiny_model(os.path.join(d, "tiny.onnx"))
                job = ("train", model, "--nodes", address, "--dataset", "a", "--test-dataset", "b")
                for command in (("ls", address), job):
                    r = hapi(*command)
                    self.assertEqual(r.code, 1, r)
                    self.assertIn(address, r.err)
                    self.assertLess(r.seconds, SOON, r)

    def test_client_of_another_protocol_version(self):
        started = time.monotonic()
        with socket.create_connection(self.at, 5) as s:
            s.sendall(hello(99, 99))
            got = b""
            while chunk := s.recv(4096):
                got += chunk
        self.assertLess(time.monotonic() - started, SOON)
        types = []
        while got:
            size, kind, _ = struct.unpack_from("<IHH", got)
            types.append((kind, got[8 : 4 + size]))
            got = got[4 + size :]
        self.assertEqual(types[-1][0], 2, "the last message is no ERROR")
        self.assertIn(b"version", types[-1][1])
        self.serves()

    def test_node_of_another_protocol_version(self):
        with socket.create_server(("127.0.0.1", 0)) as server:

            def answer():
                c, _ = server.accept()
                with c:
                    c.sendall(hello(99, 99, b"node"))
                    c.settimeout(5)
                    while c.recv(4096):
                        pass

            thread = threading.Thread(target=answer)
            thread.start()
            address = f"127.0.0.1:{server.getsockname()[1]}"
            r = hapi("ls", address)
            thread.join()
        self.assertEqual(r.code, 1, r)
        self.assertIn("version", r.err)
        self.assertLess(r.seconds, SOON, r)

    def test_random_bytes_on_the_port(self):
        rng = random.Random(7)
        for i in range(60):
            data = rng.randbytes(rng.choice((1, 7, 8, 100, 5000, 100_000)))
            if i % 3 == 0:  # past the hello
                data = hello(1, 1) + data
            elif i % 3 == 1:  # a frame that claims 4 GiB
                data = struct.pack("<IHH", 0xFFFFFFF0, 1, 0) + data
            with socket.create_connection(self.at, 5) as s:
                s.settimeout(2)
                try:
                    s.sendall(data)
                    s.shutdown(socket.SHUT_WR)
                    while s.recv(65536):
                        pass
                except (ConnectionError, TimeoutError):
                    pass
        self.serves()
        self.assertTrue(self.node.running())

    def test_silent_connections_do_not_keep_others_out(self):
        idle = [socket.create_connection(self.at, 5) for _ in range(40)]
        try:
            self.serves()
        finally:
            for s in idle:
                s.close()
        self.serves()


def model_of(nodes, inputs=(("x", (1, 3, 8, 8)),), outputs=(("y", None),), initializers=(), **kw):
    def info(name, shape):
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    graph = helper.make_graph(
        nodes, "g", [info(*i) for i in inputs], [info(*o) for o in outputs], initializer=list(initializers), **kw
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])


class Models(unittest.TestCase):
    """`hapi cuts` reads the file, binds it and infers every shape."""

    def setUp(self):
        d = tempfile.TemporaryDirectory()
        self.addCleanup(d.cleanup)
        self.folder = d.name
        self.path = os.path.join(d.name, "m.onnx")

    def refused(self, data, *words):
        with open(self.path, "wb") as f:
            f.write(data)
        r = run(HAPI, "cuts", self.path)
        self.assertEqual(r.code, 1, r)
        self.assertLess(r.seconds, SOON, r)
        for word in (self.path, *words):
            self.assertIn(word, r.err)

    def test_truncated(self):
        tiny_model(self.path)
        with open(self.path, "rb") as f:
            data = f.read()
        self.assertEqual(run(HAPI, "cuts", self.path).code, 0)
        for cut in [*range(0, 40), *random.Random(3).sample(range(40, len(data)), 60), len(data) - 1]:
            with self.subTest(cut):
                self.refused(data[:cut])

    def test_unsupported_op_is_named(self):
        node = helper.make_node("NonMaxSuppression", ["x", "x"], ["y"], name="the_culprit")
        self.refused(model_of([node]).SerializeToString(), "NonMaxSuppression", "the_culprit")

    def test_cycle(self):
        nodes = [helper.make_node("Add", ["x", "b"], ["a"]), helper.make_node("Relu", ["a"], ["b"])]
        nodes.append(helper.make_node("Relu", ["b"], ["y"]))
        self.refused(model_of(nodes).SerializeToString())

    def test_dims_that_overflow(self):
        w = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1 << 40, 1 << 40], raw_data=b"\0" * 16)
        nodes = [helper.make_node("Flatten", ["x"], ["f"]), helper.make_node("MatMul", ["f", "w"], ["y"])]
        self.refused(model_of(nodes, initializers=[w]).SerializeToString(), "w")

    def test_dims_that_lie_about_the_data(self):
        w = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[192, 10], raw_data=b"\0" * 16)
        nodes = [helper.make_node("Flatten", ["x"], ["f"]), helper.make_node("MatMul", ["f", "w"], ["y"])]
        self.refused(model_of(nodes, initializers=[w]).SerializeToString(), "w")

    def test_twenty_thousand_nested_subgraphs(self):
        def field(number, payload):
            size, out = len(payload), b""
            while size > 127:
                out, size = out + bytes([size & 127 | 128]), size >> 7
            return bytes([number << 3 | 2]) + out + bytes([size]) + payload

        graph = b""
        for _ in range(20000):
            attribute = field(1, b"then_branch") + field(6, graph) + b"\xa0\x01\x05"
            node = field(2, b"y") + field(4, b"If") + field(5, attribute)
            graph = field(1, node)
        self.refused(b"\x08\x08" + field(7, graph) + field(8, b"\x10\x11"))

    def test_external_data_outside_the_folder(self):
        with open(os.path.join(os.path.dirname(self.folder), "hapi-secret"), "wb") as f:
            f.write(b"\0" * 64)
        self.addCleanup(os.unlink, f.name)
        for location in ("../hapi-secret", f.name, "a/../../hapi-secret"):
            with self.subTest(location):
                w = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[16])
                w.data_location = TensorProto.EXTERNAL
                w.external_data.add(key="location", value=location)
                nodes = [helper.make_node("Add", ["x", "w"], ["y"])]
                model = model_of(nodes, inputs=(("x", (1, 16)),), initializers=[w])
                self.refused(model.SerializeToString(), "w")

    def test_good_external_data_is_read(self):
        w = numpy_helper.from_array(np.arange(160, dtype=np.float32).reshape(16, 10), "w")
        nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
        model = model_of(nodes, inputs=(("x", (1, 16)),), initializers=[w])
        onnx.save(model, self.path, save_as_external_data=True, location="w.bin", size_threshold=0)
        np.save(os.path.join(self.folder, "x.npy"), np.ones((1, 16), np.float32))
        r = hapi("run", self.path, "--input", f"{self.folder}/x.npy", "--output-dir", f"{self.folder}/out")
        self.assertEqual(r.code, 0, r)
        got = np.load(f"{self.folder}/out/output_0.npy")
        np.testing.assert_allclose(got, np.ones((1, 16)) @ np.arange(160).reshape(16, 10), rtol=1e-6)


if __name__ == "__main__":
    unittest.main()
