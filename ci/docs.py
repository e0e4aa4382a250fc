"""Checks that what the documents show can be typed: every `hapi ...`, `hapi-rt ...` and `ci/...` line in a fenced
```sh block names a command that exists, with options that its --help knows; relative links lead to files.

    ci/docs.py BUILD_FOLDER
"""

import os
import re
import shlex
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
FILES = ["README.md", "CHANGELOG.md"] + sorted(
    f"docs/{f}" for f in os.listdir(os.path.join(ROOT, "docs")) if f.endswith(".md")
)
known = {}


def help_of(command):
    if command not in known:
        r = subprocess.run([*command, "--help"], cwd=ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        known[command] = r.stdout if r.returncode == 0 else None
    return known[command]


def program_of(words, build):
    """The command whose --help to ask, or None when the line is not about our programs."""
    name = words[0]
    if name in ("hapi", "hapi-rt") or re.fullmatch(r"(build/release/)?(hapi|hapi-rt)", name):
        base = os.path.basename(name)
        program = os.path.join(build, base)
        has_command = base == "hapi" and len(words) > 1 and not words[1].startswith("-")
        return (program, words[1]) if has_command else (program,)
    if name.startswith("ci/"):
        return (name,)
    if name in ("python", "python3", "build/venv/bin/python") and words[1:2] == ["-m"]:
        return (sys.executable, "-m", words[2])
    return None


def lines_of(text):
    for block in re.findall(r"^```sh\n(.*?)^```", text, re.M | re.S):
        for line in block.replace("\\\n", " ").splitlines():
            line = line.split(" #")[0].strip().removeprefix("$ ").removesuffix("&").strip()
            if line and not line.startswith("#"):
                yield line


def main():
    build = sys.argv[1]
    passed = failed = 0
    for file in FILES:
        path = os.path.join(ROOT, file)
        if not os.path.exists(path):
            print(f"FAIL {file}: missing")
            failed += 1
            continue
        with open(path, encoding="utf-8") as f:
            text = f.read()
        problems = []
        for line in lines_of(text):
            words = shlex.split(line)
            while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                words = words[1:]
            command = program_of(words, build) if words else None
            if not command:
                continue
            said = help_of(command)
            if said is None:
                problems.append(f"`{line}`: {' '.join(command)} --help fails")
                continue
            passed += 1
            for word in words:
                option = word.split("=")[0]
                if option.startswith("--") and len(option) > 2 and not re.search(rf"{re.escape(option)}\b", said):
                    problems.append(f"`{line}`: no option {option}")
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
            if "://" in target:
                continue
            if os.path.exists(os.path.join(os.path.dirname(path), target)):
                passed += 1
            else:
                problems.append(f"link to {target}: no such file")
        for problem in problems:
            print(f"FAIL {file}: {problem}")
        failed += len(problems)
    print(f"{passed} passed, {failed} failed, 0 skipped")
    return 1 if failed or not passed else 0


if __name__ == "__main__":
    sys.exit(main())
