"""Where beds can be made, and what one leaves behind."""

from __future__ import annotations

import functools
import os
import subprocess
import time
from pathlib import Path

import pytest

from har_edge.emulation.emulation import FOLDER, TESTBED_VARIABLE
from har_edge.emulation.machine import find_tool, missing_tools

TIMEOUT_S = 30.0


def require_machine() -> None:
    """Skip where nobody could make a bed: no root, or a container that forbids namespaces; CI must have the tools."""
    missing = missing_tools()
    if missing and os.environ.get("CI") == "true":
        pytest.fail(f"CI needs {'; '.join(missing)}")
    reason = f"needs {'; '.join(missing)}" if missing else _refusal()
    if reason:
        pytest.skip(reason)


@functools.cache
def _refusal() -> str:
    if os.geteuid() != 0:
        return "emulated devices need root"
    name = f"har-edge-probe-{os.getpid()}"
    ip = find_tool("ip")
    answer = subprocess.run([str(ip), "netns", "add", name], capture_output=True, text=True, check=False)
    if answer.returncode != 0:
        return f"this container forbids network namespaces, so no emulated device was tested: {answer.stderr.strip()}"
    subprocess.run([str(ip), "netns", "delete", name], check=True)
    return ""


def traces(bed: str) -> list[str]:
    """Return everything of a bed that is on this machine: folder, namespaces, cgroups, processes."""
    found = [str(path) for path in Path("/run/netns").glob(f"har-{bed}-*")]
    found += [str(FOLDER / bed)] if (FOLDER / bed).exists() else []
    found += [folder for folder, _, _ in os.walk("/sys/fs/cgroup") if f"har-{bed}" in folder]
    return found + [f"process {pid}" for pid in processes(bed)]


def processes(bed: str) -> list[int]:
    """Return the processes that carry the id of a bed in their words or environment, without this one."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words, environment = (folder / "cmdline").read_bytes(), (folder / "environ").read_bytes()
        except OSError:  # it has ended
            continue
        if bed.encode() in words or f"{TESTBED_VARIABLE}={bed}".encode() in environment:
            found.append(int(folder.name))
    return [pid for pid in found if pid != os.getpid()]


def until_gone(bed: str) -> None:
    """Wait until nothing of a bed is left."""
    deadline = time.monotonic() + TIMEOUT_S
    while left := traces(bed):
        assert time.monotonic() < deadline, f"left behind: {left}"
        time.sleep(0.05)
