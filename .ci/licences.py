"""The licences of all that is compiled into hearth, as one text on stdout: each package with its terms, then each text
once with the packages that carry it. Arguments go to `cargo metadata`: the platform (`--filter-platform`), the features."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

NAMES = ("LICENSE", "LICENCE", "COPYING", "NOTICE", "UNLICENSE", "COPYRIGHT")
# Inside llama.cpp, with their terms in the files' own heads.
INSIDE = """\
  JSON for Modern C++ (nlohmann): MIT, Copyright 2013-2025 Niels Lohmann <https://nlohmann.me>
  miniaudio: public domain or MIT No Attribution, Copyright David Reid
  stb_image: public domain or MIT, Copyright 2017 Sean Barrett
  subprocess.h (sheredom): public domain"""


def metadata():
    command = [os.environ.get("CARGO", "cargo"), "metadata", "--format-version=1", "--locked"]
    return json.loads(subprocess.run(command + sys.argv[1:], check=True, stdout=subprocess.PIPE).stdout)


def linked(graph):
    """Ids of the packages that the root needs, or those need, other than for building and testing."""
    nodes = {node["id"]: node for node in graph["resolve"]["nodes"]}
    found, ahead = set(), [graph["resolve"]["root"]]
    while ahead:
        for dep in nodes[ahead.pop()]["deps"]:
            if dep["pkg"] not in found and any(kind["kind"] is None for kind in dep["dep_kinds"]):
                found.add(dep["pkg"])
                ahead.append(dep["pkg"])
    return found


def texts(package):
    folder = Path(package["manifest_path"]).parent
    files = {path for path in folder.rglob("*") if path.name.upper().startswith(NAMES)}
    named = package.get("license_file")
    if named:
        files.add(folder / named)
    for path in sorted(files):
        if path.is_file() and path.suffix.lower() in ("", ".txt", ".md", ".mit", ".apache", ".apache2", ".bsd"):
            yield path.read_text(encoding="utf-8", errors="replace").replace("\r\n", "\n").strip()


def main():
    graph = metadata()
    ids = linked(graph)
    packages = sorted((p for p in graph["packages"] if p["id"] in ids), key=lambda p: (p["name"], p["version"]))
    print("hearth contains these packages:\n")
    bodies = {}
    for package in packages:
        label = f"{package['name']} {package['version']}"
        print(f"{label}: {package['license'] or 'see its text'}, {package['repository'] or 'no address given'}")
        if package["name"] == "llama-cpp-sys-2":
            print(f"  with llama.cpp and ggml: MIT, https://github.com/ggml-org/llama.cpp, and in it\n{INSIDE}")
        for text in texts(package):
            digest = hashlib.sha256(" ".join(text.split()).encode()).digest()
            _, owners = bodies.setdefault(digest, (text, []))
            if label not in owners:
                owners.append(label)
    for text, owners in bodies.values():
        print(f"\n{'=' * 100}\n{', '.join(owners)}\n{'-' * 100}\n{text}")


if __name__ == "__main__":
    main()
