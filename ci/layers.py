"""The layers of ci/check. Each returns counts; the last line says how many passed, failed and were skipped."""

import argparse
import os
import re
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
OURS = ("base", "store", "kernels", "transport", "planner", "runtime", "client")
CPUS = str(len(os.sched_getaffinity(0)))


class Counts:
    def __init__(self, passed=0, failed=0, skipped=0, notes=()):
        self.passed, self.failed, self.skipped = int(passed), int(failed), int(skipped)
        self.notes = list(notes)

    def __iadd__(self, other):
        self.passed += other.passed
        self.failed += other.failed
        self.skipped += other.skipped
        self.notes += other.notes
        return self

    def __str__(self):
        return f"{self.passed} passed, {self.failed} failed, {self.skipped} skipped"


class Layers:
    """Runs commands for one layer at a time into build/check/LAYER.log."""

    def __init__(self, build, nightly):
        self.build, self.nightly = build, nightly
        self.check = os.path.join(build, "check")
        self.log = None
        self.built = {}
        os.makedirs(self.check, exist_ok=True)

    def run(self, *command, timeout=1200, **env):
        """(exit code, output); the output goes into the layer's log too."""
        command = [str(c) for c in command]
        self.log.write(f"$ {' '.join(command)}\n")
        self.log.flush()
        started = time.monotonic()
        try:
            r = subprocess.run(
                command,
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=timeout,
                env={**os.environ, **env},
                text=True,
                errors="replace",
            )
            code, out = r.returncode, re.sub(r"\x1b\[[0-9;]*m", "", r.stdout)
        except subprocess.TimeoutExpired as e:
            code, out = 124, (e.stdout or b"").decode(errors="replace") + f"\ntimeout after {timeout} s\n"
        except OSError as e:
            code, out = 127, f"{e}\n"
        self.log.write(out)
        self.log.write(f"-> {code} after {time.monotonic() - started:.1f} s\n")
        self.log.flush()
        return code, out

    def one(self, *command, **kw):
        code, _ = self.run(*command, **kw)
        return Counts(passed=code == 0, failed=code != 0)

    # ---- builds

    def make(self, name, cc, *options):
        """Builds build/check/NAME once; later callers learn how it went."""
        if name not in self.built:
            folder = os.path.join(self.check, name)
            configured = os.path.exists(os.path.join(folder, "build.ninja")) or not self.run(
                *("cmake", "-S", ROOT, "-B", folder, "-G", "Ninja"), *options, CC=cc
            )[0]
            self.built[name] = configured and self.run("ninja", "-C", folder)[0] == 0
        return self.built[name], os.path.join(self.check, name)

    def gcc(self):
        return self.make("gcc", "gcc", "-DHAPI_WERROR=ON")

    def clang(self):
        return self.make("clang", "clang", "-DHAPI_WERROR=ON")

    def sanitized(self, name, what, *options):
        return self.make(name, "clang", f"-DHAPI_SANITIZE={what}", "-DCMAKE_BUILD_TYPE=RelWithDebInfo", *options)

    def asan_build(self):
        return self.sanitized("asan", "address,undefined", *(["-DHAPI_FUZZ=ON"] if self.nightly else []))

    # ---- counting

    def ctest(self, made, label, timeout=1200, **env):
        good, folder = made
        if not good:
            return Counts(failed=1, notes=[f"{os.path.relpath(folder, ROOT)} does not build"])
        xml = os.path.join(folder, f"ctest-{label}.xml")
        if os.path.exists(xml):
            os.unlink(xml)
        command = ("ctest", "--test-dir", folder, "-L", f"^{label}$", "--output-on-failure", "--output-junit", xml)
        code, _ = self.run(*command, "-j1", timeout=timeout, **env)
        counts = Counts()
        if os.path.exists(xml):
            for case in ElementTree.parse(xml).getroot().iter("testcase"):
                status = case.get("status")
                counts.passed += status == "run"
                counts.failed += status == "fail"
                if status == "fail":
                    said = (case.findtext("system-out") or "").splitlines()
                    what = [line for line in said if re.search(r"FAIL|not true|SUMMARY|ERROR|WARNING", line)]
                    counts.notes += [f"FAILED {case.get('name')}", *(f"    {line}" for line in (what or said)[-12:])]
                if status not in ("run", "fail"):
                    counts.skipped += 1
                    why = re.search(r"^skipped: (.*)$", case.findtext("system-out") or "", re.M)
                    counts.notes.append(f"skipped {case.get('name')}: {why.group(1) if why else status}")
        if code and not counts.failed:
            counts.failed += 1
        if not counts.passed and not counts.failed:
            counts.failed, counts.notes = 1, counts.notes + [f"no test has label {label}"]
        return counts

    def unittest(self, folder, *options, timeout=1200, **env):
        code, out = self.run(
            *(sys.executable, "-m", "unittest", "discover", "-v", "-s", folder, "-t", folder),
            *options,
            timeout=timeout,
            **env,
        )
        ran = re.search(r"^Ran (\d+) tests?", out, re.M)
        if not ran:
            return Counts(failed=1, notes=[f"{folder}: unittest did not finish"])
        total = {k: int(n) for k, n in re.findall(r"(failures|errors|skipped)=(\d+)", out.splitlines()[-1])}
        bad, skipped = total.get("failures", 0) + total.get("errors", 0), total.get("skipped", 0)
        if code and not bad:
            bad = 1
        notes = [f"skipped {a}: {b}" for a, b in re.findall(r"^(test\w+) .*\.\.\. skipped '(.*)'$", out, re.M)]
        return Counts(max(int(ran.group(1)) - bad - skipped, 0), bad, skipped, notes)

    def script(self, *command, timeout=1200, **env):
        """A script of ours that says `[PART: ]N passed, N failed, N skipped`, once or for each part; or exits 77."""
        code, out = self.run(*command, timeout=timeout, **env)
        notes = re.findall(r"^\s*(skipped.*)$", out, re.M)
        if code == 77:
            return Counts(skipped=1, notes=notes or ["skipped without a reason"])
        found = re.findall(r"^([\w-]+: )?(\d+) passed, (\d+) failed, (\d+) skipped", out, re.M)
        if not found:
            return Counts(passed=code == 0, failed=code != 0)
        parts = [f for f in found if f[0]] or found[-1:]
        counts = Counts(*(sum(int(f[i]) for f in parts) for i in (1, 2, 3)), notes)
        if code and not counts.failed:
            counts.failed = 1
        return counts


def sources(*patterns):
    r = subprocess.run(["git", "ls-files", "--", *patterns], cwd=ROOT, capture_output=True, text=True, check=True)
    return [f for f in r.stdout.split() if os.path.exists(os.path.join(ROOT, f))]


# ---- the layers, in order. Those with quick=True make up --quick.

LAYERS = {}


def layer(name, quick=False):
    def add(f):
        LAYERS[name] = (f, quick)
        return f

    return add


@layer("build-gcc", quick=True)
def build_gcc(ci):
    """gcc, -O3, warnings are errors"""
    good, _ = ci.gcc()
    return Counts(passed=good, failed=not good)


@layer("build-clang")
def build_clang(ci):
    """clang, -O3, warnings are errors"""
    good, _ = ci.clang()
    return Counts(passed=good, failed=not good)


@layer("format", quick=True)
def clang_format(ci):
    """clang-format on every C file"""
    files = sources("*.c", "*.h")
    code, out = ci.run("clang-format", "--dry-run", "-Werror", *files)
    bad = set(re.findall(r"^(\S+?):\d+:\d+: error", out, re.M))
    failed = len(bad) or (1 if code else 0)
    return Counts(len(files) - failed, failed, 0, [f"not formatted: {f}" for f in sorted(bad)])


@layer("scripts", quick=True)
def scripts(ci):
    """shellcheck on shell scripts, pyflakes on Python"""
    shell = [f for f in sources("ci/*", ".ci/*", "tests/*.sh") if _first_line(f).endswith(("bash", "sh"))]
    counts = Counts()
    for f in [*shell, "ci/lib.sh"]:
        counts += ci.one("shellcheck", "-x", f)
    for f in sources("*.py"):
        counts += ci.one("pyflakes3", f)
    return counts


def _first_line(file):
    with open(os.path.join(ROOT, file), errors="replace") as f:
        return f.readline().strip()


@layer("lint")
def lint(ci):
    """clang-tidy on the product's C files"""
    good, folder = ci.clang()
    if not good:
        return Counts(failed=1, notes=["the clang build fails"])
    files = sources(*(f"{d}/*.c" for d in OURS))
    command = ("run-clang-tidy", "-quiet", "-j", CPUS, "-p", folder)
    code, out = ci.run(*command, *(os.path.join(ROOT, f) for f in files), timeout=900)
    found = re.findall(rf"^{re.escape(ROOT)}/(\S+?:\d+):\d+: (?:error|warning): (.*)$", out, re.M)
    bad = {f.split(":")[0] for f, _ in found}
    failed = len(bad) or (1 if code else 0)
    return Counts(len(files) - failed, failed, 0, sorted({f"{f}: {text}" for f, text in found}))


@layer("unit", quick=True)
def unit(ci):
    """unit tests, gcc build"""
    return ci.ctest(ci.gcc(), "unit")


@layer("fuzz-replay", quick=True)
def fuzz_replay(ci):
    """the corpora of the fuzzers, cut at every byte, gcc build"""
    return ci.ctest(ci.gcc(), "fuzz")


@layer("conformance")
def conformance(ci):
    """hapi run against the ONNX project's test data, and against torch"""
    good, folder = ci.gcc()
    if not good:
        return Counts(failed=1, notes=["the gcc build fails"])
    hapi = ("--hapi", os.path.join(folder, "hapi"))
    counts = ci.script(sys.executable, "tests/conformance/onnx_testdata.py", *hapi)
    counts += ci.script("/usr/bin/python3", "tests/conformance/torch_ops.py", *hapi)
    return counts


@layer("cuts")
def cuts(ci):
    """hapi cuts of ten networks against measured bytes and FLOPs"""
    good, folder = ci.gcc()
    if not good:
        return Counts(failed=1, notes=["the gcc build fails"])
    return ci.one("/usr/bin/python3", "tests/kernels/test_cuts.py", os.path.join(folder, "hapi"))


@layer("networks")
def networks(ci):
    """ten networks at their cuts: agreement with PyTorch, prefix and suffix against the whole; nightly: at every cut"""
    good, folder = ci.gcc()
    if not good:
        return Counts(failed=1, notes=["the gcc build fails"])
    script = ("/usr/bin/python3", "tests/kernels/test_networks.py", os.path.join(folder, "hapi"))
    counts = ci.script(*script, "--sample", "0" if ci.nightly else "2", timeout=7200)
    split = (os.path.join(folder, "tests/kernels_test_split_bits"), "--batch", "2")
    exports = os.environ["HAPI_NETWORKS"]
    for name in sorted(f for f in os.listdir(exports) if f.endswith(".onnx")):
        # alexnet and the VGGs are chains: they have no cuts of several tensors.
        for options in ((),) if name.startswith(("alexnet", "vgg")) else ((), ("--all",)):
            sample = ("--sample", "0" if ci.nightly else "3")
            counts += ci.one(*split, *options, *sample, os.path.join(exports, name), timeout=3600)
    return counts


@layer("cudnn-plans")
def cudnn_plans(ci):
    """the ten networks compiled by cuDNN for GPUs that are not here: every operation graph has an engine"""
    good, folder = ci.gcc()
    if not good:
        return Counts(failed=1, notes=["the gcc build fails"])
    script = ("/usr/bin/python3", "tests/kernels/test_cudnn_plans.py", os.path.join(folder, "hapi-bench"))
    return ci.script(*script, *(["--all"] if ci.nightly else []), timeout=3600)


@layer("python")
def python(ci):
    """networks, transforms and data preparation"""
    return ci.unittest("python/tests")


@layer("docs", quick=True)
def docs(ci):
    """every command and option that the documents show exists; the list of operators is the code's"""
    good, folder = ci.gcc()
    if not good:
        return Counts(failed=1, notes=["the gcc build fails"])
    counts = ci.script(sys.executable, "ci/docs.py", folder)
    counts += ci.one(sys.executable, "ci/operators.py", "--check")
    return counts


def prepared(ci):
    """Data and models that the end-to-end tests use; kept from run to run."""
    code, _ = ci.run(sys.executable, "-m", "hapi.data", "--output", os.path.join(ci.build, "data"))
    for weights in ("pretrained", "random"):
        file = os.path.join(ci.build, "model", "lite0.onnx" if weights == "pretrained" else "lite0-random.onnx")
        if not os.path.exists(file) or os.path.getmtime(file) < os.path.getmtime(f"{ROOT}/python/hapi/models.py"):
            command = ("-m", "hapi.export", "--model", "lite0", "--weights", weights, "--output", file)
            code |= ci.run(sys.executable, *command)[0]
    return code == 0


def places(ci, programs):
    """Environment of the tests that run the programs."""
    env = {"HAPI_PROGRAMS": programs, "HAPI_DATA": os.path.join(ci.build, "data")}
    return {**env, "HAPI_MODELS": os.path.join(ci.build, "model"), "HAPI_NIGHTLY": "1" if ci.nightly else ""}


@layer("e2e")
def e2e(ci):
    """daemon and client together: training, order, bit-equality, bad input, command lines"""
    good, folder = ci.gcc()
    if not good or not prepared(ci):
        return Counts(failed=1, notes=["programs, data or model could not be made"])
    return ci.unittest("tests/e2e", timeout=10800 if ci.nightly else 2700, **places(ci, folder))


@layer("asan")
def asan(ci):
    """unit tests with AddressSanitizer, LeakSanitizer and UBSan"""
    return ci.ctest(ci.asan_build(), "unit", ASAN_OPTIONS="detect_leaks=1", UBSAN_OPTIONS="print_stacktrace=1")


@layer("fuzz")
def fuzz(ci):
    """the corpora of the fuzzers with the same sanitizers; nightly: libFuzzer on each"""
    counts = ci.ctest(ci.asan_build(), "fuzz", ASAN_OPTIONS="detect_leaks=1")
    if ci.nightly and ci.asan_build()[0]:
        seconds = os.environ.get("HAPI_FUZZ_SECONDS", "300")
        folder = os.path.join(ci.asan_build()[1], "tests")
        for name in sorted(f for f in os.listdir(folder) if f.startswith("fuzz_")):
            corpus = os.path.join(ci.build, "corpus", name)
            os.makedirs(corpus, exist_ok=True)
            committed = os.path.join(ROOT, "tests/fuzz/corpus", name[len("fuzz_") :])
            command = (os.path.join(folder, name), f"-max_total_time={seconds}", "-timeout=5", corpus, committed)
            counts += ci.one(*command, timeout=int(seconds) + 120)
    return counts


@layer("tsan")
def tsan(ci):
    """unit tests with ThreadSanitizer"""
    options = f"suppressions={ROOT}/ci/tsan.supp"
    return ci.ctest(ci.sanitized("tsan", "thread"), "unit", TSAN_OPTIONS=options)


def faults(ci, made, **env):
    """The end-to-end tests that stress threads and lifetimes most, with programs built by a sanitizer."""
    good, folder = made
    if not good or not prepared(ci):
        return Counts(failed=1, notes=["programs, data or model could not be made"])
    env = {**env, "HAPI_SANITIZED": "1", **places(ci, folder)}
    counts = ci.unittest("tests/e2e", "-p", "test_faults.py", **env)
    counts += ci.unittest("tests/e2e", "-p", "test_replan.py", **env)
    return counts


@layer("e2e-asan")
def e2e_asan(ci):
    """nodes killed in mid-epoch, every wire dtype, plans that change: daemon and client with AddressSanitizer and UBSan"""
    return faults(ci, ci.asan_build(), UBSAN_OPTIONS="print_stacktrace=1")


@layer("e2e-tsan")
def e2e_tsan(ci):
    """the same with ThreadSanitizer"""
    return faults(ci, ci.sanitized("tsan", "thread"), TSAN_OPTIONS=f"suppressions={ROOT}/ci/tsan.supp")


@layer("softroce")
def softroce(ci):
    """RDMA verbs on soft-RoCE inside a user-mode-linux kernel: conformance, faults, kills, a job"""
    good, folder = ci.gcc()
    if not good or not prepared(ci):
        return Counts(failed=1, notes=["programs, data or model could not be made"])
    limit = 3600 if ci.nightly else 600
    env = {"HAPI_BUILD_ROOT": ci.build, "HAPI_SOFTROCE_TIMEOUT": str(limit), **places(ci, folder)}
    return ci.script("ci/softroce", timeout=limit + 900, **env)


@layer("softroce-qemu")
def softroce_qemu(ci):
    """the same conformance test with AddressSanitizer, UBSan and ThreadSanitizer, in QEMU; nightly: perftest"""
    made = [ci.asan_build(), ci.sanitized("tsan", "thread")]
    if not all(good for good, _ in made):
        return Counts(failed=1, notes=["a sanitized build fails"])
    command = ("ci/softroce", "--lane", "qemu", "--", "ci/softroce-tests")
    limit = 3600 if ci.nightly else 600
    env = {"HAPI_BUILD_ROOT": ci.build, "HAPI_SOFTROCE_TIMEOUT": str(limit), "HAPI_NIGHTLY": "1" if ci.nightly else ""}
    counts = ci.script(*command, "sanitized", *(folder for _, folder in made), timeout=limit + 900, **env)
    if ci.nightly:
        counts += ci.script(*command, "perftest", timeout=limit + 900, **env)
    return counts


def tail(file, lines=40):
    with open(file, errors="replace") as f:
        return "".join(f.readlines()[-lines:])


def main():
    p = argparse.ArgumentParser(prog="ci/check", description="Runs the tests, layer by layer.")
    p.add_argument("--only", metavar="LAYER", action="append", choices=LAYERS, help="just this one (again for more)")
    p.add_argument("--quick", action="store_true", help="the layers of the inner loop (marked * in --list)")
    p.add_argument("--nightly", action="store_true", help="everything, for longer")
    p.add_argument("--list", action="store_true", help="what the layers are")
    p.add_argument("--build", required=True, help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.list:
        for name, (f, quick) in LAYERS.items():
            print(f"{'*' if quick else ' '} {name:12} {f.__doc__}")
        return 0
    os.environ.setdefault("HAPI_NETWORKS", os.path.join(a.build, "torchvision"))
    ci = Layers(a.build, a.nightly)
    total = Counts()
    failed = []
    for name, (f, quick) in LAYERS.items():
        if a.only and name not in a.only or a.quick and not quick and not a.only:
            continue
        log = os.path.join(ci.check, f"{name}.log")
        started = time.monotonic()
        print(f"{name:12} ... ", end="", flush=True)
        with open(log, "w") as ci.log:
            counts = f(ci)
        print(f"{counts} ({time.monotonic() - started:.0f} s)", flush=True)
        for note in counts.notes:
            print(f"    {note}")
        if counts.failed:
            failed.append(name)
            print(f"    {os.path.relpath(log, ROOT)} ends:\n" + re.sub("^", "    | ", tail(log), flags=re.M), flush=True)
        total += counts
    if failed:
        print(f"failed: {', '.join(failed)}")
    print(f"{total.passed} passed, {total.failed} failed, {total.skipped} skipped")
    return 1 if total.failed else 0


if __name__ == "__main__":
    sys.exit(main())
