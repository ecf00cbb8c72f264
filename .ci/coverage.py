#!/usr/bin/env python3
"""Which lines of the front the tests run: `make coverage`, or with integration tests too, `make coverage TESTS="books_ routed_"`.

Only hearth is instrumented, in a target folder of its own; lines of tests themselves are not counted. Needs
`rustup component add llvm-tools`.
"""

import os
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
# The rooms of which the gateway's reference wants 95 per cent, then the rest of the front, of which it wants 85.
RULES = {
    "limiter": ["src/gateway/limits/"],
    "breaker": ["src/gateway/upstream/breaker.rs"],
    "ledger": ["src/gateway/books/ledger.rs", "src/gateway/store/row.rs"],
    "cache key": ["src/gateway/cache/key.rs"],
    "keys": ["src/gateway/keys/", "src/gateway/spec.rs", "src/gateway/names.rs", "src/http/auth.rs", "src/http/key.rs"],
}
FRONT = ["src/gateway/", "src/http/"]


def output(*command):
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT).stdout


def build_and_run(place, tests):
    """Returns the test executables; each of their processes leaves a profile in `place`."""
    wrapper = place / "rustc"
    wrapper.write_text('#!/bin/sh\nrustc=$1\nshift\nexec "$rustc" "$@" -C instrument-coverage\n')
    wrapper.chmod(0o755)
    for old in place.glob("*.prof*"):
        old.unlink()
    # %m: one file for each executable, which its processes add to. A child that is killed tells nothing.
    env = os.environ | {
        "CARGO_TARGET_DIR": str(place),
        "RUSTC_WORKSPACE_WRAPPER": str(wrapper),
        "LLVM_PROFILE_FILE": str(place / "hearth-%8m.profraw"),
    }
    cheap = ["--config", "profile.release.package.hearth.opt-level=0", "--config", "profile.release.package.hearth.debug=0"]
    cargo = [os.environ.get("CARGO", "cargo"), "test", "--release", *cheap]
    runs = [["--lib"]] + ([["--test", "it", "--", *tests]] if tests else [])
    executables = [place / "release/hearth"] if tests else []
    for run in runs:
        made = subprocess.run([*cargo, "--no-run", *run[:2]], env=env, cwd=ROOT, stderr=subprocess.PIPE, text=True)
        print(made.stderr, file=sys.stderr)
        if made.returncode:
            sys.exit(made.returncode)
        executables += [ROOT / found for found in re.findall(r"Executable .*\((.*)\)", made.stderr)]
        # A test that fails has run its lines too; that it fails is told.
        subprocess.run([*cargo, *run], env=env, cwd=ROOT, stdout=sys.stderr, check=False)
    return executables


def lines_run(place, executables):
    """{file: {line: whether it ran}}, over all executables."""
    tools = next(pathlib.Path(output("rustc", "--print", "sysroot").strip()).glob("lib/rustlib/*/bin/llvm-cov")).parent
    profiles = [str(path) for path in place.glob("*.profraw")]
    merged = place / "hearth.profdata"
    subprocess.run([tools / "llvm-profdata", "merge", "-sparse", "-o", merged, *profiles], check=True)
    objects = [part for one in executables[1:] for part in ("-object", str(one))]
    export = [str(tools / "llvm-cov"), "export", "--format=lcov", "--instr-profile", str(merged)]
    files = {}
    for line in output(*export, str(executables[0]), *objects).splitlines():
        kind, _, rest = line.partition(":")
        if kind == "SF":
            path = pathlib.Path(rest)
            file = str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else None
        elif kind == "DA" and file:
            at, n = rest.split(",")[:2]
            of = files.setdefault(file, {})
            of[int(at)] = of.get(int(at), False) or int(n) > 0
    return files


def is_test(file):
    stem = pathlib.Path(file).stem
    return stem == "tests" or stem.endswith("_tests")


def without_tests(file, lines):
    text = (ROOT / file).read_text()
    at = re.search(r"^#\[cfg\(test\)\]\n(#\[path.*\n)?mod ", text, re.MULTILINE)
    end = text.count("\n", 0, at.start()) + 1 if at else sys.maxsize
    return {n: ran for n, ran in lines.items() if n < end}


def main():
    place = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")).resolve() / "coverage"
    place.mkdir(parents=True, exist_ok=True)
    files = lines_run(place, build_and_run(place, sys.argv[1:]))
    front = {
        file: without_tests(file, lines)
        for file, lines in sorted(files.items())
        if file.startswith(tuple(FRONT)) and not is_test(file)
    }
    with open(place / "missed.txt", "w", encoding="utf-8") as missed:
        for file, lines in front.items():
            missed.writelines(f"{file}:{n}\n" for n, ran in sorted(lines.items()) if not ran)

    def row(name, chosen):
        ran = [is_run for file in chosen for is_run in front[file].values()]
        if ran:
            print(f"{name:<44} {len(ran):>7} {sum(ran):>7} {100 * sum(ran) / len(ran):>7.1f} %")

    print(f"{'':<44} {'lines':>7} {'run':>7}")
    rest = list(front)
    for name, paths in RULES.items():
        chosen = [file for file in front if file.startswith(tuple(paths))]
        rest = [file for file in rest if file not in chosen]
        row(name, chosen)
        for file in chosen:
            row(f"  {file}", [file])
    row("the rest of gateway", [file for file in rest if file.startswith("src/gateway/")])
    row("http", [file for file in rest if file.startswith("src/http/")])
    row("the rest of the front", rest)
    print(f"lines that did not run: {place / 'missed.txt'}")


main()
