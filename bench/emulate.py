"""Debian of another architecture below a folder, and commands run in it under qemu-user, in namespaces of their own.

    python bench/emulate.py build/arm64 --arch arm64 -- python3 -c 'import platform; print(platform.machine())'

Needs root, debootstrap, qemu-user-static, and Linux 6.7 or later: there binfmt_misc belongs to a user namespace, so
that nothing of this machine is changed. Packages are unpacked and not configured: Python needs no more. The speed of
what runs there says nothing.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

SUITE = "bookworm"
PACKAGES = ("python3", "python3-venv", "python3-pip", "ca-certificates")
SHELL_S = 0.01


@dataclass(frozen=True, slots=True)
class Architecture:
    """How Debian, qemu and the ELF header (e_ident, e_type, e_machine) call an architecture; the core to emulate.

    `cpuinfo` is what /proc/cpuinfo says: the one of this machine ends LiteRT's look at an ARM core with SIGSEGV.
    """

    debian: str
    qemu: str
    elf: str
    cpu: str
    cpuinfo: str


_CORE = (
    "processor\t: {number}\nBogoMIPS\t: 108.00\nFeatures\t: {features}\nCPU implementer\t: 0x41\n"
    "CPU architecture: {version}\nCPU variant\t: 0x0\nCPU part\t: {part}\nCPU revision\t: 3\n\n"
)
ARCHITECTURES = {
    "arm64": Architecture(
        "arm64",
        "qemu-aarch64-static",
        r"\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00",
        "cortex-a72",  # that of the Raspberry Pi 4
        _CORE.format(number="{number}", features="fp asimd evtstrm crc32 cpuid", version=8, part="0xd08"),
    ),
    "armhf": Architecture(
        "armhf",
        "qemu-arm-static",
        r"\x7fELF\x01\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\x28\x00",
        "cortex-a15",
        _CORE.format(
            number="{number}", features="half thumb fastmult vfp edsp neon vfpv3 tls vfpv4", version=7, part="0xc0f"
        ),
    ),
}
_MASK = r"\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff"
# Waits until its ids are mapped; then mounts, registers the emulator, enters the root and runs the command.
_ENTER = """
set -e
read go <&3
exec 3<&-
mount -t binfmt_misc binfmt_misc /proc/sys/fs/binfmt_misc
printf '%s' "$RULE" > /proc/sys/fs/binfmt_misc/register
mount --rbind /proc "$ROOT/proc"
mount --rbind /dev "$ROOT/dev"
mount --rbind /sys "$ROOT/sys"
mount --bind "$CPUINFO" "$ROOT/proc/cpuinfo"
exec chroot "$ROOT" /usr/bin/env -i "$@"
"""


def lacking(arch: str) -> str:
    """Say what keeps this machine from running another architecture; empty where nothing does."""
    if os.geteuid() != 0:
        return "needs root, for chroot and mounts"
    tools = [ARCHITECTURES[arch].qemu, "debootstrap", "dpkg-deb", "unshare"]
    missing = [tool for tool in tools if shutil.which(tool) is None]
    if missing:
        return f"needs {', '.join(missing)}: apt-get install debootstrap qemu-user-static"
    release = tuple(int(part) for part in os.uname().release.split("-")[0].split(".")[:2])
    return "" if release >= (6, 7) else f"needs Linux 6.7 for binfmt_misc in a user namespace; this is {release}"


def make_root(root: Path, arch: str, packages: Sequence[str] = PACKAGES) -> None:
    """Unpack Debian below `root`, unless it is there already."""
    if (root / "usr/bin/python3").exists():
        return
    kind = ARCHITECTURES[arch]
    include = f"--include={','.join(packages)}"
    command = ["debootstrap", "--foreign", "--variant=minbase", f"--arch={kind.debian}", include, SUITE, str(root)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    for package in sorted((root / "var/cache/apt/archives").glob("*.deb")):
        subprocess.run(["dpkg-deb", "-x", package, root], check=True)
    for name in ("resolv.conf", "hosts", "nsswitch.conf", "ssl/certs/ca-certificates.crt"):
        if Path("/etc", name).exists():
            (root / "etc" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(Path("/etc", name), root / "etc" / name)
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n")
    (root / "etc/group").write_text("root:x:0:\nnogroup:x:65534:\n")
    (root / "root").mkdir(exist_ok=True)
    (root / "tmp").mkdir(exist_ok=True)
    (root / "tmp").chmod(0o1777)


def run(
    root: Path, arch: str, command: Sequence[str], *, timeout_s: float = 600.0, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command in a root made by `make_root`, and return what it wrote."""
    kind = ARCHITECTURES[arch]
    inside = {
        "HOME": "/root",
        "PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
        "LANG": "C.UTF-8",
        "QEMU_CPU": kind.cpu,
        "PIP_CERT": "/etc/ssl/certs/ca-certificates.crt",
        # Alternatives are links that only a configured package has.
        "LD_LIBRARY_PATH": ":".join(
            f"/usr/lib/{name}-linux-gnu{'eabihf' if name == 'arm' else ''}/{part}"
            for name in ("aarch64", "arm")
            for part in ("blas", "lapack")
        ),
        **(env or {}),
    }
    with tempfile.NamedTemporaryFile("w", suffix=".cpuinfo") as cpuinfo:
        cpuinfo.write("".join(kind.cpuinfo.format(number=number) for number in range(os.cpu_count() or 1)))
        cpuinfo.flush()
        Path(cpuinfo.name).chmod(0o644)
        outside = {
            **os.environ,
            "ROOT": str(root.resolve()),
            "CPUINFO": cpuinfo.name,
            "RULE": f":{kind.qemu}:M::{kind.elf}:{_MASK}:{shutil.which(kind.qemu)}:OCF",
        }
        words = ["unshare", "--user", "--mount", "sh", "-c", _ENTER, "enter"]
        words += [*(f"{key}={value}" for key, value in inside.items()), *command]
        return _start(words, outside, timeout_s)


def _start(words: Sequence[str], env: Mapping[str, str], timeout_s: float) -> subprocess.CompletedProcess[str]:
    """Start what waits at descriptor 3, map its ids one to one, let it go, and wait for its end."""
    ours = Path("/proc/self/ns/user").readlink()
    reading, writing = os.pipe()
    wrapped = ["sh", "-c", f'exec 3<&{reading}; exec "$@"', "start", *words]
    with subprocess.Popen(
        wrapped,
        env=dict(env),
        pass_fds=(reading,),
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as child:
        os.close(reading)
        try:
            deadline = time.monotonic() + 10.0
            while Path(f"/proc/{child.pid}/ns/user").readlink() == ours:
                if time.monotonic() > deadline:
                    raise RuntimeError(f"no user namespace came: {child.communicate()[1]}")
                time.sleep(SHELL_S)
            for name in ("uid_map", "gid_map"):
                Path(f"/proc/{child.pid}/{name}").write_text("0 0 65536\n")
            os.write(writing, b"\n")
            said, errors = child.communicate(timeout=timeout_s)
        except BaseException:
            os.killpg(child.pid, signal.SIGKILL)
            raise
        finally:
            os.close(writing)
    return subprocess.CompletedProcess(list(words), child.returncode, said, errors)


def main() -> int:
    """Make a root and run a command in it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("--arch", choices=sorted(ARCHITECTURES), default="arm64")
    parser.add_argument("command", nargs="+")
    args = parser.parse_args()
    problem = lacking(args.arch)
    if problem:
        print(problem, file=sys.stderr)
        return 2
    make_root(args.root, args.arch)
    done = run(args.root, args.arch, args.command)
    print(done.stdout, end="")
    print(done.stderr, end="", file=sys.stderr)
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
