"""Tries the archive of `make dist` as a stranger would: unpacked elsewhere, with an empty environment; one for another kind of
CPU under qemu, as on several of them (`foreign.py`). Arguments: the archive, a model."""

import contextlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
import zlib
from pathlib import Path

import foreign

# Not for speed: an emulated program may be a hundred times slower.
PATIENCE_S = 600
VARIANTS = "lib/hearth/libggml-cpu-*.so"


def run(home, *args, **variables):
    env = {"PATH": "/usr/bin:/bin", "HOME": str(home), "LD_LIBRARY_PATH": "", **variables}
    return subprocess.run(args, env=env, cwd=home, capture_output=True, text=True, timeout=PATIENCE_S)


def code(home, exe, **variables):
    """What `--version` says of the code for the CPU."""
    told = run(home, exe, "--version", **variables)
    assert told.returncode == 0, told.stderr
    return re.search(r"^CPU code: (.*)", told.stdout, re.M).group(1)


def await_ready(health):
    until = time.monotonic() + PATIENCE_S
    while True:
        try:
            return urllib.request.urlopen(health, timeout=PATIENCE_S).close()
        except urllib.error.HTTPError as answer:
            # 503 while the model is loaded.
            if answer.code != 503 or time.monotonic() > until:
                raise
        time.sleep(0.05)


def ask(url, body=None, key=None):
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
    with urllib.request.urlopen(
        urllib.request.Request(url, json.dumps(body).encode() if body else None, headers), timeout=PATIENCE_S
    ) as answer:
        return json.load(answer)


@contextlib.contextmanager
def serving(home, exe, model, *more, **variables):
    """Its address. It has to leave in peace when it is told to."""
    env = {"PATH": "/usr/bin:/bin", "HOME": str(home), "LD_LIBRARY_PATH": "", **variables}
    args = [exe, "serve", model, "--port", "0", "--threads", "1", "--ctx-size", "512", *more]
    with open(home / "log", "w") as log:
        server = subprocess.Popen(args, env=env, cwd=home, stdout=subprocess.PIPE, stderr=log, text=True)
        try:
            base = "http" + server.stdout.readline().strip().rpartition("http")[2]
            await_ready(f"{base}/health")
            yield base
        finally:
            server.terminate()
            assert server.wait(PATIENCE_S) == 0, (home / "log").read_text()


def say(base, text, key=None, **more):
    body = {"messages": [{"role": "user", "content": text}], "max_tokens": 16, "temperature": 0, **more}
    return ask(f"{base}/v1/chat/completions", body, key)["choices"][0]["message"]["content"]


def chat(home, exe, model, **variables):
    """The answer to a chat, and the log."""
    with serving(home, exe, model, **variables) as base:
        said = say(base, "Say hello.")
    return said, (home / "log").read_text()


SHAPE = {
    "type": "object",
    "properties": {"colour": {"enum": ["red", "green"]}, "n": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["colour", "n"],
    "additionalProperties": False,
}


def governed(home, exe, model):
    """With books: who has no key is refused; who has one gets an answer of a shape, a vector, and its lines in the chain."""
    books = home / "books"
    with serving(home, exe, model, "--data-dir", books, "--embeddings") as base:
        try:
            raise AssertionError(say(base, "Say hello."))
        except urllib.error.HTTPError as answer:
            assert answer.code == 401, answer
        key = run(home, exe, "keys", "new", "--data-dir", books, "--alias", "test").stdout.strip()
        shape = {"type": "json_schema", "json_schema": {"name": "it", "strict": True, "schema": SHAPE}}
        text = say(base, "Name a colour.", key, max_tokens=64, response_format=shape)
        said = json.loads(text)
        assert said.keys() == {"colour", "n"} and said["colour"] in ("red", "green") and 0 <= said["n"] <= 99, text
        (made,) = ask(f"{base}/v1/embeddings", {"input": "Say hello."}, key)["data"]
        length = sum(x * x for x in made["embedding"]) ** 0.5
        assert abs(length - 1) < 1e-3, length
    audit = run(home, exe, "audit", "verify", "--data-dir", books)
    assert audit.returncode == 0 and re.match(r"ok: \d+ links, 2 rows, ", audit.stdout), audit
    shutil.rmtree(books)
    head = " ".join(f"{x:.4f}" for x in made["embedding"][:3])
    print(f"with books: 401 without a key; {text}; a vector of {len(made['embedding'])}, {head} …; {audit.stdout.splitlines()[0]}")


def libraries_are_found(home, top, is_foreign):
    exe = top / "bin/hearth"
    linked = run(home, *(foreign.ldd(exe) if is_foreign else ["ldd", exe])).stdout
    assert "not found" not in linked, linked
    ours = re.findall(r"lib(?:llama|ggml|mtmd)\S* => (\S+)", linked)
    assert ours and all(Path(path).resolve().parent == top / "lib/hearth" for path in ours), linked
    print(f"libraries: {len(ours)} of its own, the rest the system's")


def no_path_of_this_machine(top):
    folders = [Path.cwd() / "target", Path.cwd() / "src", os.environ.get("CARGO_HOME", Path.home() / ".cargo")]
    folders.append(subprocess.run(["rustc", "--print=sysroot"], capture_output=True, text=True).stdout.strip() or folders[0])
    for path in top.rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        for folder in folders:
            assert str(folder).encode() not in content, f"{path} names {folder}"
    print("paths: none of this machine")


def each_variant(home, top, model):
    """Alone in a folder, a variant runs and answers, or says that it doesn't."""
    can, cannot, answers = [], [], {}
    for library in sorted(top.glob(VARIANTS)):
        variant = library.stem.removeprefix("libggml-cpu-")
        with tempfile.TemporaryDirectory() as folder:
            shutil.copy(library, folder)
            told = code(home, top / "bin/hearth", HEARTH_BACKENDS=folder)
            if not told.startswith("none: "):
                said, _ = chat(home, top / "bin/hearth", model, HEARTH_BACKENDS=folder)
                assert said, told
                answers.setdefault(said, []).append(variant)
        if told.startswith("none: "):
            assert "none of the 1 libraries there can be loaded on this CPU" in told, told
            cannot.append(variant)
        else:
            assert told.startswith(f"{variant} ("), told
            can.append(variant)
    print(f"variants that run here: {', '.join(can)}; that don't: {', '.join(cannot) or 'none'}")
    for said, variants in answers.items():
        print(f"  {said!r}: {', '.join(variants)}")
    return can


def on_this_cpu(home, packed, model, expected, is_foreign):
    """The whole of it, on one kind of CPU."""
    top = home / "hearth"
    shutil.copytree(packed, top)
    exe = top / "bin/hearth"
    chosen = code(home, exe)
    variant = chosen.partition(" ")[0]
    assert (top / f"lib/hearth/libggml-cpu-{variant}.so").exists(), chosen
    assert expected in (None, variant), f"{variant} was chosen, not {expected}"
    said, log = chat(home, exe, model)
    assert said and chosen in log, f"{said!r}, and the log lacks {chosen!r}:\n{log}"
    print(f"chosen: {chosen}; it answers {said!r}")
    governed(home, exe, model)
    link = home / "link"
    link.symlink_to(exe)
    assert code(home, link) == chosen, "called by a symbolic link"

    can = each_variant(home, top, model)
    assert variant in can
    least = next(name for name in ("x64", "armv8.0_1") if name in can)
    assert variant != least or len(can) == 1, f"{variant} was chosen among {can}"
    for library in top.glob(VARIANTS):
        if library.stem != f"libggml-cpu-{least}":
            library.unlink()
    said_by_least, log = chat(home, exe, model)
    assert said_by_least and f"{least} (" in log, log
    print(f"with {least} alone it answers {said_by_least!r}")

    for library in top.glob(VARIANTS):
        library.rename(home / library.name)
    failed = run(home, exe, "serve", model, "--port", "0")
    assert failed.returncode == 1 and "no libggml-cpu-*.so is there" in failed.stderr, failed
    assert str(top / "lib/hearth") in failed.stderr and "HEARTH_BACKENDS" in failed.stderr, failed.stderr
    assert code(home, exe, HEARTH_BACKENDS=str(home)).startswith(f"{least} ("), "HEARTH_BACKENDS"
    said, log = chat(home, exe, model, HEARTH_BACKENDS=str(home))
    assert said == said_by_least and f"{least} (" in log, log
    shutil.rmtree(top / "lib")
    failed = run(home, exe, "serve", model)
    assert failed.returncode == 127 and "shared libraries: libggml-base" in failed.stderr, failed
    print(f"without its libraries: {failed.stderr.strip()}")


def parts_are_listed(top):
    listed = json.loads((top / "licences/hearth.cdx.json").read_text())
    names = {part["name"] for part in listed["components"]}
    assert listed["specVersion"] == "1.6" and {"axum", "llama-cpp-sys-2", "rusqlite"} <= names, names
    bare = [part["name"] for part in listed["components"] if "hashes" not in part]
    assert not bare, f"without a checksum: {bare}"
    print(f"hearth.cdx.json lists {len(names)} packages")
    if os.environ.get("AUDITABLE") == "no":
        return
    # As cargo-auditable has it: https://github.com/rust-secure-code/cargo-auditable/blob/master/PARSING.md
    exe = top / "bin/hearth"
    sections = subprocess.run(["readelf", "-SW", exe], capture_output=True, text=True, check=True).stdout
    at, size = (int(n, 16) for n in re.search(r"\.dep-v0 +PROGBITS +\w+ (\w+) (\w+)", sections).groups())
    carried = json.loads(zlib.decompress(exe.read_bytes()[at : at + size]))["packages"]
    carried = {(part["name"], part["version"]) for part in carried if part.get("kind") != "build"}
    known = {(part["name"], part["version"]) for part in (*listed["components"], listed["metadata"]["component"])}
    assert carried <= known and {"axum", "hearth", "rusqlite"} <= {name for name, _ in carried}, carried - known
    print(f"bin/hearth carries the names of its {len(carried)} crates")


def main():
    archive, model = Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve()
    is_foreign = not archive.name.endswith(f"-{platform.machine()}.tar.gz")
    if is_foreign:
        foreign.enter()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder).resolve()
        with tarfile.open(archive) as packed:
            packed.extractall(home / "unpacked")
        (top,) = (home / "unpacked").iterdir()
        libraries_are_found(home, top, is_foreign)
        no_path_of_this_machine(top)
        parts_are_listed(top)
        for cpu, expected in foreign.cpus().items() if is_foreign else [(None, None)]:
            with tempfile.TemporaryDirectory() as each:
                if cpu:
                    print(f"\n{cpu}, emulated", flush=True)
                    foreign.be(cpu, each)
                on_this_cpu(Path(each).resolve(), top, model, expected, is_foreign)


main()
