"""Tries the archive of `make dist` as a stranger would: unpacked elsewhere, with an empty environment. Arguments: the archive,
a model."""

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

PATIENCE_S = 60
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


def chat(home, exe, model, **variables):
    """Serves the model; the answer to a chat, and the log."""
    env = {"PATH": "/usr/bin:/bin", "HOME": str(home), "LD_LIBRARY_PATH": "", **variables}
    args = [exe, "serve", model, "--port", "0", "--threads", "1", "--ctx-size", "512"]
    with open(home / "log", "w+") as log:
        server = subprocess.Popen(args, env=env, cwd=home, stdout=subprocess.PIPE, stderr=log, text=True)
        try:
            base = "http" + server.stdout.readline().strip().rpartition("http")[2]
            await_ready(f"{base}/health")
            body = {"messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 16, "temperature": 0}
            ask = urllib.request.Request(
                f"{base}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
            )
            with urllib.request.urlopen(ask, timeout=PATIENCE_S) as answer:
                said = json.load(answer)["choices"][0]["message"]["content"]
        finally:
            server.terminate()
            assert server.wait(PATIENCE_S) == 0, (home / "log").read_text()
        log.seek(0)
        return said, log.read()


def libraries_are_found(home, top):
    linked = run(home, "ldd", top / "bin/hearth").stdout
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


def each_variant(home, top):
    """Alone in a folder, a variant runs or says that it doesn't."""
    can, cannot = [], []
    for library in sorted(top.glob(VARIANTS)):
        variant = library.stem.removeprefix("libggml-cpu-")
        with tempfile.TemporaryDirectory() as folder:
            shutil.copy(library, folder)
            told = code(home, top / "bin/hearth", HEARTH_BACKENDS=folder)
        if told.startswith("none: "):
            assert "none of the 1 libraries there can be loaded on this CPU" in told, told
            cannot.append(variant)
        else:
            assert told.startswith(f"{variant} ("), told
            can.append(variant)
    print(f"variants that run here: {', '.join(can)}; that don't: {', '.join(cannot) or 'none'}")
    return can


def main():
    archive, model = Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder).resolve()
        with tarfile.open(archive) as packed:
            packed.extractall(home)
        (top,) = home.iterdir()
        exe = top / "bin/hearth"
        libraries_are_found(home, top)
        no_path_of_this_machine(top)

        chosen = code(home, exe)
        variant = chosen.partition(" ")[0]
        assert (top / f"lib/hearth/libggml-cpu-{variant}.so").exists(), chosen
        said, log = chat(home, exe, model)
        assert said and chosen in log, f"{said!r}, and the log lacks {chosen!r}:\n{log}"
        print(f"chosen: {chosen}; it answers {said!r}")
        link = home / "hearth"
        link.symlink_to(exe)
        assert code(home, link) == chosen, "called by a symbolic link"

        can = each_variant(home, top)
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


main()
