"""The parts of hearth as a CycloneDX 1.6 document on stdout: each package that is compiled in, with the checksum of its
archive, its terms and what it needs. Arguments go to `cargo metadata`: the platform (`--filter-platform`), the features.
The same for the same Cargo.lock: no serial number and no time. Source: https://cyclonedx.org/docs/1.6/json/"""

import json
import re
from pathlib import Path

from licences import linked, metadata


def checksums():
    lock = Path("Cargo.lock").read_text(encoding="utf-8")
    pattern = r'name = "([^"]+)"\nversion = "([^"]+)"\nsource = "[^"]+"\nchecksum = "([0-9a-f]{64})"'
    return {(name, version): digest for name, version, digest in re.findall(pattern, lock)}


def reference(package):
    return f"pkg:cargo/{package['name']}@{package['version']}"


def component(package, sums):
    part = {
        "type": "library",
        "bom-ref": reference(package),
        "name": package["name"],
        "version": package["version"],
        "purl": reference(package),
    }
    digest = sums.get((package["name"], package["version"]))
    if digest:
        part["hashes"] = [{"alg": "SHA-256", "content": digest}]
    if package["license"]:
        # Older packages write a slash for OR.
        part["licenses"] = [{"expression": re.sub(r"\s*/\s*", " OR ", package["license"])}]
    if package["repository"]:
        part["externalReferences"] = [{"type": "vcs", "url": package["repository"]}]
    if package["name"] == "llama-cpp-sys-2":
        note = "The package's archive holds the source of llama.cpp and ggml; the checksum is of both."
        part["description"] = note
        part["components"] = [
            {
                "type": "library",
                "bom-ref": "pkg:github/ggml-org/llama.cpp",
                "name": "llama.cpp",
                "purl": "pkg:github/ggml-org/llama.cpp",
                "licenses": [{"license": {"id": "MIT"}}],
            }
        ]
    return part


def main():
    graph = metadata()
    root = graph["resolve"]["root"]
    ids = linked(graph)
    by_id = {package["id"]: package for package in graph["packages"]}
    sums = checksums()
    needs = {node["id"]: sorted(reference(by_id[dep["pkg"]]) for dep in node["deps"] if dep["pkg"] in ids) for node in graph["resolve"]["nodes"]}
    parts = sorted((by_id[i] for i in ids), key=lambda p: (p["name"], p["version"]))
    whole = component(by_id[root], sums) | {"type": "application"}
    document = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": whole},
        "components": [component(part, sums) for part in parts],
        "dependencies": [{"ref": reference(by_id[i]), "dependsOn": sorted(set(needs[i]))} for i in [root, *(p["id"] for p in parts)]],
    }
    print(json.dumps(document, indent=1))


main()
