"""Find the runtime that pip can install into this interpreter, or the reason why there is none; the build reads it,
too.

A 32-bit Raspberry Pi OS runs on a 64-bit kernel by default. There `platform.machine()`, and with it every environment
marker (PEP 508), says aarch64, while pip takes only wheels for armv7l. The bits of the interpreter decide what pip can
install, and no marker knows them. The build loads this file by itself, so it imports the standard library only.
"""

from __future__ import annotations

import importlib.util
import platform
import struct
import sys
from dataclasses import dataclass

LITERT, TFLITE = "ai-edge-litert", "tflite-runtime"
# The module of each runtime, in the order in which they are looked for, and the packages that may bring it.
MODULES = {"ai_edge_litert": (LITERT, f"{LITERT}-nightly"), "tflite_runtime": (TFLITE, f"{TFLITE}-nightly")}
# tflite-runtime 2.14.0 is its last release. On PyPI it has manylinux_2_34_armv7l for CPython 3.8 to 3.11.
TFLITE_PYTHON, TFLITE_GLIBC = (3, 11), (2, 34)
# LiteRT 2.1 to 2.3 has wheels for manylinux_2_27_{x86_64,aarch64}, macosx_12_0_arm64 and win_amd64.
LITERT_MACHINES = {"Linux": ("x86_64", "aarch64"), "Darwin": ("arm64",), "Windows": ("AMD64",)}
LITERT_GLIBC = (2, 27)
_INSTEAD = "use a 64-bit Debian, Ubuntu or Raspberry Pi OS of 2023 or later (docs/how-to/install.md has the table)"


@dataclass(frozen=True, slots=True)
class Platform:
    """The facts that decide which wheels fit: machine of the kernel, bits and version of Python, the C library."""

    system: str
    machine: str
    bits: int
    python: tuple[int, int]
    libc: tuple[str, str]


def read_platform() -> Platform:
    """Return the platform of this interpreter."""
    return Platform(
        platform.system(), platform.machine(), 8 * struct.calcsize("P"), sys.version_info[:2], platform.libc_ver()
    )


def wheel_machine(host: Platform) -> str:
    """Return the machine whose wheels pip installs: the interpreter's, not the kernel's."""
    if host.system == "Linux" and host.bits == 32:
        return {"aarch64": "armv7l", "armv8l": "armv7l", "x86_64": "i686"}.get(host.machine, host.machine)
    return host.machine


def runtime_for(host: Platform) -> str:
    """Return the name of the runtime for this platform; `refusal` says whether it can be installed."""
    return TFLITE if host.system == "Linux" and wheel_machine(host) == "armv7l" else LITERT


def refusal(host: Platform) -> str | None:
    """Return why no runtime can be installed here, and what to do; None if one can."""
    machine = wheel_machine(host)
    came = f"{host.bits}-bit Python {host.python[0]}.{host.python[1]} for {machine} on {host.system}"
    if runtime_for(host) == TFLITE:
        if host.python > TFLITE_PYTHON:
            return (
                f"{came}: on 32-bit ARM the only runtime is {TFLITE} 2.14, which has no wheels for Python above "
                f"{'.'.join(map(str, TFLITE_PYTHON))}; {_INSTEAD}, or a 32-bit one with Python 3.11 (bookworm)"
            )
        needed = TFLITE_GLIBC
    elif machine not in LITERT_MACHINES.get(host.system, ()):
        expected = ", ".join(f"{system} {one}" for system, all_of in LITERT_MACHINES.items() for one in all_of)
        return f"{came}: no runtime has wheels for it; expected {expected} or Linux armv7l: {_INSTEAD}"
    else:
        needed = LITERT_GLIBC
    name, version = host.libc
    if host.system == "Linux" and (name != "glibc" or _numbers(version) < needed):
        return (
            f"{came}, C library {f'{name} {version}'.strip() or 'unknown'}: wheels of {runtime_for(host)} need glibc "
            f"{'.'.join(map(str, needed))} or later; {_INSTEAD}"
        )
    return None


def installed() -> str | None:
    """Return the name and version of the installed runtime, None where there is none."""
    for module, packages in MODULES.items():
        try:
            if importlib.util.find_spec(f"{module}.interpreter") is None:
                continue
        except ImportError:
            continue
        version = getattr(sys.modules[module], "__version__", "")  # the package of a module is imported to find it
        return f"{packages[0]} {version}" if version else _read_package(packages)
    return None


def _read_package(packages: tuple[str, ...]) -> str:
    """Return the name and version of the first of these packages that pip installed."""
    import importlib.metadata  # 2 MB, and a runtime that says its version needs none of it

    for package in packages:
        try:
            return f"{package} {importlib.metadata.version(package)}"
        except importlib.metadata.PackageNotFoundError:
            continue
    return packages[0]


def missing(host: Platform, error: str) -> str:
    """Return the text for a runtime that could not be imported: the cause, and what to do."""
    reason = refusal(host)
    if reason is not None:
        return f"there is no runtime for slices here: {reason}"
    needed = "'tflite-runtime>=2.14' 'numpy<2'" if runtime_for(host) == TFLITE else f"'{LITERT}>=2.1'"
    return f"there is no runtime for slices here ({error}); for this interpreter: pip install {needed}"


def resolve_requirements(requirements: list[str], machine: str) -> list[str]:
    """Return the requirements of one machine, without the markers that selected them; those of other machines are left
    out.
    """
    from packaging.requirements import Requirement  # there when something is built, and not on a device

    settled = []
    for text in requirements:
        requirement = Requirement(text)
        if requirement.marker is None or "platform_machine" not in str(requirement.marker):
            settled.append(text)
        elif requirement.marker.evaluate({"platform_machine": machine}):
            requirement.marker = None
            settled.append(str(requirement))
    return settled


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdecimal())
