"""Programs for another kind of CPU, run as if this machine were of that kind: by qemu, whom the kernel calls for them, in
namespaces of this process's own (nothing changes outside of them, and no root is needed)."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

BINFMT = Path("/proc/sys/fs/binfmt_misc")
NAME = "hearth-dist-test"
# How the kernel knows an arm64 program: the head of its file, and which of its bits count.
MAGIC = rb"\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00"
MASK = rb"\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff"
# CPUs as qemu names them (Debian 12's doesn't know the Neoverse V1 and N2), and the code that each should get.
CPUS = {
    "cortex-a53": "armv8.0_1",
    "cortex-a72": "armv8.0_1",
    "a64fx": "armv8.0_1",
    "cortex-a76": "armv8.2_2",
    "neoverse-n1": "armv8.2_2",
    "neoverse-v1": "armv8.6_1",
    "neoverse-n2": "armv8.6_2",
    "max,sme=off": "armv8.6_2",
    "max": "armv9.2_2",
}


def gone(why):
    sys.exit(f"dist_test: {why}")


def qemu():
    found = os.environ.get("QEMU") or shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
    return found or gone("qemu is missing: apt-get install qemu-user-static, or QEMU=path")


def root():
    """The arm64 system's libraries; those of the cross compiler are enough."""
    found = Path(os.environ.get("QEMU_LD_PREFIX", "/usr/aarch64-linux-gnu"))
    if not (found / "lib/ld-linux-aarch64.so.1").exists():
        gone(f"{found} has no arm64 libc: apt-get install g++-aarch64-linux-gnu, or QEMU_LD_PREFIX=folder")
    return found


def enter():
    """Comes back in namespaces where the kernel can be told of qemu: starts this program again in them."""
    if os.environ.get("HEARTH_DIST_TEST") == "inside":
        return
    qemu(), root()
    os.environ["HEARTH_DIST_TEST"] = "inside"
    mounted = f"mount -t binfmt_misc none {BINFMT}"
    inside = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    if subprocess.run([*inside, f"{mounted} && test -w {BINFMT}/register"]).returncode:
        gone("arm64 programs can't be registered here: needs Linux 6.7 or newer, and user namespaces allowed")
    os.execvp("unshare", [*inside, f'{mounted} && exec "$@"', "sh", sys.executable, *sys.argv])


def cpus():
    """Of the list, those that this qemu knows; CPUS=a:b in the environment names others, without an expectation."""
    known = subprocess.run([qemu(), "-cpu", "help"], capture_output=True, text=True).stdout.split()
    asked = os.environ.get("CPUS")
    if asked:
        return {cpu: CPUS.get(cpu) for cpu in asked.split(":")}
    return {cpu: code for cpu, code in CPUS.items() if cpu.partition(",")[0] in known}


def be(cpu, folder):
    """From now on arm64 programs run, as on that CPU, wherever they are started and with whatever environment."""
    interpreter = Path(folder) / "qemu"
    interpreter.write_text(f'#!/bin/sh\nexec {qemu()} -L {root()} -cpu {cpu} "$@"\n')
    interpreter.chmod(0o755)
    if (BINFMT / NAME).exists():
        (BINFMT / NAME).write_text("-1")
    (BINFMT / "register").write_bytes(b":%s:M::%s:%s:%s:" % (NAME.encode(), MAGIC, MASK, str(interpreter).encode()))


def ldd(exe):
    """What the loader of an arm64 system finds for a program."""
    loader = root() / "lib/ld-linux-aarch64.so.1"
    return [qemu(), "-L", str(root()), str(loader), "--list", str(exe)]
